# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Entry point of the `cavmae-sync` script, and how it and the training scripts end.

Importing `cavmae_sync_hf` registers its classes with transformers, which loads torch and takes seconds. The script
does not need that to parse its arguments or to print its help, so it starts here, outside the package, and asks for
the import without the registration; a subcommand that needs the registration does it. Nothing else asks for that:
neither a program that imports the package, nor this script's worker processes, which import this module but do not
run `main`.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

# Read by `cavmae_sync_hf` while it is imported.
defer_registration = False

# A Ctrl-C may arrive twice: from the terminal, and from a process that passes it on.
_SAME_SECONDS = 1.0


class Terminated(KeyboardInterrupt):
    """SIGTERM was received, which interrupts as Ctrl-C does."""


def main(*words: str) -> NoReturn:
    """Run the command line and exit with its code.

    Args:
        words: Stand before this process's arguments, for scripts that are one command.
    """
    global defer_registration
    sys.argv[1:1] = words
    defer_registration = True
    try:
        from cavmae_sync_hf.cli import main as run
        from cavmae_sync_hf.cli.supervision import run_supervised
    except KeyboardInterrupt:
        sys.exit(report_interrupt(False, "Nothing was written; run the command again."))
    finally:
        defer_registration = False
    run_supervised(run, sys.argv[1:])
    sys.exit(0)


def run_script(run: Callable[[], int | None], kept: str) -> NoReturn:
    """Run a script's `main` and exit with its code; at Ctrl-C and SIGTERM print one line instead of a traceback.

    Args:
        run: Gives the code.
        kept: Sentences that say what is kept then, and how to go on.
    """
    with interruptible():
        try:
            code = run()
        except KeyboardInterrupt as error:
            code = report_interrupt(isinstance(error, Terminated), kept)
    sys.exit(code)


def report_interrupt(terminated: bool, kept: str) -> int:
    """Print what is kept, as the last line; gives the exit code: 130, or 143 for SIGTERM."""
    print(f"{'Terminated' if terminated else 'Interrupted'}. {kept}", file=sys.stderr, flush=True)
    return 128 + (signal.SIGTERM if terminated else signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """As long as the block lasts, SIGTERM raises `Terminated`, and what interrupts twice interrupts once.

    Yields:
        The signals that were taken, empty at first.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    last = -_SAME_SECONDS

    def interrupt(number: int, _frame: Any) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= _SAME_SECONDS:
            received.append(number)
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    previous = {}
    # Where somebody else takes a signal or has it ignored (as `nohup` and background shells do), that stays.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is usual:
            previous[number] = signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            # Where one was taken the process is about to end, in which nothing more is to disturb it.
            signal.signal(number, signal.SIG_IGN if received else handler)


__all__ = ["Terminated", "interruptible", "main", "report_interrupt", "run_script"]
