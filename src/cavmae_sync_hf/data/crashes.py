# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which files are being read, noted where it outlives this process, so that a file of which it dies is known.

A codec may crash and the memory may end; nothing in the process can catch that. Whoever started it can: it gives the
process a `CrashWatch`, reads in it afterwards what was being read, and starts another process that reads these files
one at a time and leaves out the one of which that dies again.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..model.errors_cavmae_sync import UnexpectedError

# A line of the notes: what happens to a reading, and the name of its file.
BEGUN, ENDED = "+", "-"


class CrashWatch:
    """Notes what is being read.

    Args:
        descriptor: Of a file that is open for appending; it is not closed.
        suspects: Names of what was being read when an earlier process died; read one at a time.
        fatal: Names of what must not be read, and why.
    """

    def __init__(self, descriptor: int, suspects: frozenset[str], fatal: Mapping[str, str]) -> None:
        self.descriptor, self.suspects, self.fatal = descriptor, set(suspects), dict(fatal)

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Note that a file is read as long as the block lasts."""
        if name in self.fatal:
            raise UnexpectedError(f"{name}: {self.fatal[name]}")
        self._note(BEGUN, name)
        try:
            yield
        finally:
            self._note(ENDED, name)
            self.suspects.discard(name)

    def _note(self, what: str, name: str) -> None:
        # One write, which no other thread's comes between and which is there when the process is not.
        os.write(self.descriptor, f"{what}{name!r}\n".encode())


_watch: CrashWatch | None = None


def watch_with(watch: CrashWatch | None) -> None:
    """From now on note in `watch` what this process reads."""
    global _watch
    _watch = watch


def must_read_alone() -> bool:
    """Whether files are to be read one at a time, since one of those to come may end the process."""
    return _watch is not None and bool(_watch.suspects)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Note, where somebody watches, that a file is read as long as the block lasts.

    Raises:
        UnexpectedError: Earlier processes died of it.
    """
    if _watch is None:
        yield
        return
    with _watch.reading(name):
        yield


def open_readings(notes: str) -> set[str]:
    """The names, as `repr` writes them, of what was being read when the notes end."""
    begun = Counter(line[1:] for line in notes.split("\n") if line[:1] == BEGUN)
    begun.subtract(line[1:] for line in notes.split("\n") if line[:1] == ENDED)
    return set(+begun)


def ended_readings(notes: str) -> set[str]:
    """The names, as `repr` writes them, of what was read to its end."""
    return {line[1:] for line in notes.split("\n") if line[:1] == ENDED}
