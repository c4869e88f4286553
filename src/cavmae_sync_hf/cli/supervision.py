# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Commands over many files work in a child process that may die of a file.

A codec may crash and the memory may end, and the process with it. This one, which has loaded nothing, then starts
another child, in which what was being read is read one file at a time, and the file of which that dies again is left
out. Files are decoded in threads of the child as ever, so that this costs nothing until it is needed. Results of files
that the first child had finished lie in a temporary folder, out of which the next takes them.
"""

import ast
import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from typing import IO, Any

from ..data.crashes import CrashWatch, ended_readings, open_readings, watch_with
from . import terminal

_BATCHES = frozenset({"prepare", "index", "extract", "evaluate", "sync", "localize", "classify"})
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP")
# So many deaths, and no file read to its end in between: it is not the files.
_MOST_IN_VAIN = 20
# Alone or not, a file with which so many processes died is left out.
_MOST_DEATHS = 4
_PR_SET_PDEATHSIG = 1
# The last note of a child that ends by itself.
_BY_ITSELF = "."


def run_supervised(run: Callable[[], Any], words: list[str]) -> None:
    """Run the command line, in a child process where it is a batch and the system can fork; does not return.

    Args:
        run: Runs it and exits.
        words: Its arguments.
    """
    if not _BATCHES & set(words[:2]) or {"-h", "--help"} & set(words) or not _can_fork():
        run()
        return
    with (
        tempfile.TemporaryFile("w+b", buffering=0) as notes,
        tempfile.TemporaryDirectory(prefix="cavmae-sync-", ignore_cleanup_errors=True) as folder,
    ):
        history = _History()
        while True:
            notes.truncate(0)
            notes.seek(0)
            watch = CrashWatch(notes.fileno(), frozenset(history.suspects), history.fatal, folder)
            status = _run_child(run, notes, watch)
            notes.seek(0)
            told = notes.read().decode(errors="replace")
            if told.endswith(f"{_BY_ITSELF}\n"):
                sys.exit(os.waitstatus_to_exitcode(status))
            code = os.waitstatus_to_exitcode(status)
            if not history.add(told, _cause(code)):
                sys.exit(code if code > 0 else 128 - code)


def _can_fork() -> bool:
    """Whether a child can be a copy of this process: it has no threads, and nothing loaded that a copy would break."""
    return sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules


def _run_child(run: Callable[[], Any], notes: IO[bytes], watch: CrashWatch) -> int:
    """Run in a child and wait for its end; gives its status. Signals of this process go on to it."""
    parent, child = os.getpid(), 0

    def forward(number: int, _frame: Any) -> None:
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    sys.stdout.flush()
    sys.stderr.flush()
    previous = {number: signal.signal(number, forward) for number in map(signal.Signals.__getitem__, _FORWARDED)}
    try:
        child = os.fork()
        if child:
            return os.waitpid(child, 0)[1]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    # The child. It must not go on where its parent was killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    watch_with(watch)
    try:
        run()
    finally:
        os.write(notes.fileno(), f"{_BY_ITSELF}\n".encode())
    os._exit(0)


def _cause(code: int) -> str:
    """What ended a process, in words."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}: memory may have run out" if name == "SIGKILL" else name


class _History:
    """What the children died of.

    Attributes:
        suspects: Names of what was being read, and has not been read to its end since.
        fatal: Names of what is left out -> why.
    """

    def __init__(self) -> None:
        self.suspects: set[str] = set()
        self.fatal: dict[str, str] = {}
        self._deaths: Counter[str] = Counter()
        self._alone: Counter[str] = Counter()
        self._in_vain = 0

    def add(self, notes: str, cause: str) -> bool:
        """Take the notes of a child that died; gives whether it makes sense to start another."""
        being_read = {ast.literal_eval(name) for name in open_readings(notes)}
        ended = {ast.literal_eval(name) for name in ended_readings(notes)}
        self._in_vain = 0 if ended else self._in_vain + 1
        if not being_read or self._in_vain > _MOST_IN_VAIN:
            what = "one file after the other" if being_read else "no file"
            terminal.print_error(f"The process died ({cause}) while it read {what}.")
            return False
        for name in being_read:
            self._deaths[name] += 1
            self._alone[name] += len(being_read) == 1
            if (self._deaths[name] > 1 and self._alone[name]) or self._deaths[name] == _MOST_DEATHS:
                self.fatal[name] = f"the process that read it died, {self._deaths[name]} times ({cause})."
        self.suspects = (self.suspects - ended | being_read) - set(self.fatal)
        shown = ", ".join(sorted(being_read))
        terminal.print_error(f"The process died ({cause}) while it read {shown}; another goes on.", label="Note")
        return True
