# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How is a second run kept out of a folder that one run is writing to?"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there the lock keeps nobody out
    fcntl = None  # type: ignore[assignment]

__all__ = ["LockedError", "exclusive"]


class LockedError(ValueError):
    """Another run holds the lock; the message names the folder and the remedy."""


@contextlib.contextmanager
def exclusive(lock: Path, folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Keep every other run out of `folder` for as long as the block lasts.

    The lock goes with the process and its forked children, however they end; the file is removed at the end of the
    block. File systems without locks are written to without one.

    Args:
        lock: The file to lock, made where it is missing; its folder must exist.
        folder: What the lock guards, for the message.
        patience: Seconds to wait for the other run to end.

    Raises:
        LockedError: If another run holds the lock.
    """
    if fcntl is None:
        yield
        return
    deadline = time.monotonic() + patience
    while (handle := _try(lock)) is None:
        if time.monotonic() >= deadline:
            raise LockedError(f"{folder}: another run is writing to it; wait until it has ended.")
        time.sleep(0.05)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()  # before unlocking, so that nobody else's file is removed
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing alone leaves it with children that still run
        os.close(handle)


def _try(lock: Path) -> int | None:
    """The descriptor of the locked file, or None when another run holds it."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:  # no locks on this file system
        return handle
    try:
        if os.path.samestat(os.fstat(handle), os.stat(lock)):
            return handle
    except FileNotFoundError:
        pass
    os.close(handle)  # its last holder removed it between the two calls
    return None
