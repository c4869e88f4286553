# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which files are being read, noted where it outlives this process, so that a file of which it dies is known.

A codec may crash and the memory may end; nothing in the process can catch that. Whoever started it can: it gives the
process a `CrashWatch`, reads in it afterwards what was being read, and starts another process that reads these files
one at a time and leaves out the one of which that dies again. What the earlier one has done is not done again where it
was done `once`.
"""

import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar

from ..model.errors_cavmae_sync import UnexpectedError

# A line of the notes: what happens to a reading, and the name of its file.
BEGUN, ENDED = "+", "-"

_T = TypeVar("_T")


class CrashWatch:
    """Notes what is being read.

    Args:
        descriptor: Of a file that is open for appending; it is not closed.
        suspects: Names of what was being read when an earlier process died; read one at a time.
        fatal: Names of what must not be read, and why.
        folder: Where results outlive this process; without it they do not.
    """

    def __init__(
        self, descriptor: int, suspects: frozenset[str], fatal: Mapping[str, str], folder: str | None = None
    ) -> None:
        self.descriptor, self.suspects, self.fatal, self.folder = descriptor, set(suspects), dict(fatal), folder
        self._whole = False
        self._before = frozenset(os.listdir(folder)) if folder is not None else frozenset()

    def once(self, key: str, make: Callable[[], _T]) -> _T:
        """What `make` gives, or gave to an earlier process under this key."""
        if self.folder is None:
            return make()
        path = os.path.join(self.folder, key)
        if key in self._before:
            with open(path, "rb") as file:
                return pickle.load(file)  # written below by a process of this command, where nobody else can write
        value = make()
        # Where there is no room, it would be made again.
        with suppress(OSError):
            with open(f"{path}.part", "wb") as file:
                pickle.dump(value, file)
            os.replace(f"{path}.part", path)
        return value

    def begin(self, key: str) -> bool:
        """Note that something is begun; gives whether an earlier process had begun it."""
        name = f"{key}.begun"
        if self.folder is not None and name not in self._before:
            with suppress(OSError):
                open(os.path.join(self.folder, name), "wb").close()
        return self.was_begun(key)

    def was_begun(self, key: str) -> bool:
        """Whether an earlier process had begun something."""
        return f"{key}.begun" in self._before

    @contextmanager
    def reading(self, name: str, whole: bool = False) -> Iterator[None]:
        """Note that a file is read as long as the block lasts."""
        if self._whole:
            yield
            return
        if name in self.fatal:
            raise UnexpectedError(f"{name}: {self.fatal[name]}")
        self._note(BEGUN, name)
        self._whole = whole
        try:
            yield
        finally:
            self._whole = False
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
def reading(name: str, whole: bool = False) -> Iterator[None]:
    """Note, where somebody watches, that a file is read as long as the block lasts.

    Args:
        name: The file.
        whole: Whatever else is read meanwhile, in any thread, is part of it and not noted.

    Raises:
        UnexpectedError: Earlier processes died of it.
    """
    if _watch is None:
        yield
        return
    with _watch.reading(name, whole):
        yield


def once(key: str, make: Callable[[], _T]) -> _T:
    """What `make` gives; where an earlier process of this command died after it was given that, the same.

    Args:
        key: Names it among what this command does once; goes into a file's name.
        make: Makes it; what it gives can be pickled.
    """
    return make() if _watch is None else _watch.once(key, make)


def begin(key: str) -> bool:
    """Note that something is begun; gives whether an earlier process of this command had begun it and died."""
    return _watch is not None and _watch.begin(key)


def was_begun(key: str) -> bool:
    """Whether an earlier process of this command had begun it and died."""
    return _watch is not None and _watch.was_begun(key)


def open_readings(notes: str) -> set[str]:
    """The names, as `repr` writes them, of what was being read when the notes end."""
    begun = Counter(line[1:] for line in notes.split("\n") if line[:1] == BEGUN)
    begun.subtract(line[1:] for line in notes.split("\n") if line[:1] == ENDED)
    return set(+begun)


def ended_readings(notes: str) -> set[str]:
    """The names, as `repr` writes them, of what was read to its end."""
    return {line[1:] for line in notes.split("\n") if line[:1] == ENDED}
