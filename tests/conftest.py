"""Settings shared by all tests: no network, one seed, few threads."""

import os
import sys
from collections.abc import Callable

# Before anything imports huggingface_hub: a test that reaches for the network must fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from rich.console import Console

# The tensors are tiny: threads that wait for each other cost up to ten times what they save.
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
