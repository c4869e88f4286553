"""Settings shared by all tests: no network, one seed, few threads."""

import os
import signal
import sys
import threading
from collections.abc import Callable

# Before anything imports huggingface_hub: a test that reaches for the network must fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The tensors are tiny: threads that wait for each other cost up to ten times what they save. So, too, in processes
# that tests start, of which several run at a time under `-n`.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a shell starts in its background ignores SIGINT, and so would all processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from rich.console import Console

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)


@pytest.fixture
def run(capsys, monkeypatch, request) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; gives the exit code, what it printed and its errors.

    Words in a module's `COMMAND` stand before the arguments.
    """
    from cavmae_sync_hf import cli

    command = getattr(request.module, "COMMAND", ())
    monkeypatch.setattr(cli.terminal, "console", Console(width=200))
    monkeypatch.setattr(cli.terminal, "errors", Console(stderr=True, width=200))
    monkeypatch.setattr(cli.terminal, "show_tracebacks", False)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cavmae-sync", *command, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return caught.value.code, printed.out, printed.err

    return run
