# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Visitors' files: where they lie, who may fetch them, when they are removed, and how much a visitor may ask for.

Everything lies in one private folder that goes with the program. A visitor gets a folder in it with a name that nobody
can guess; only files that the program itself put on its list are handed out, under names of the program's own making.
"""

import atexit
import contextlib
import itertools
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import locked
from ..model.errors_cavmae_sync import LockedError

# Where the server hands out files: `FILES_ROUTE/TOKEN/NAME`, relative to the page.
FILES_ROUTE = "cavmae-files"
_PREFIX = "cavmae-sync-app-"
_LOCK = ".in-use"


@dataclass(frozen=True)
class Limits:
    """Bounds on what one visitor, and all of them together, can take.

    Attributes:
        megabytes: Largest file that is accepted, in millions of bytes.
        seconds: Longest clip that is accepted.
        decode_seconds: Wall-clock time that decoding one file may take.
        decode_memory: Bytes of address space that decoding one file may take, beyond what the process starts with.
        pixels: Largest frame that is decoded, width times height.
        sessions: Visitors whose files are kept at the same time; the one who was away longest makes room.
        idle_seconds: Time after which the files of a visitor who does nothing are removed.
        search_results: Moments that a search shows.
    """

    megabytes: float = 100.0
    seconds: float = 60.0
    decode_seconds: float = 180.0
    decode_memory: int = 3 << 30
    pixels: int = 4096 * 2304
    sessions: int = 32
    idle_seconds: float = 3600.0
    search_results: int = 6

    def __post_init__(self) -> None:
        for name in ("megabytes", "seconds", "decode_seconds", "decode_memory", "pixels", "sessions", "idle_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; it must be above 0.")

    @property
    def max_bytes(self) -> int:
        """Largest file that is accepted, bytes."""
        return round(self.megabytes * 1e6)


@dataclass
class Session:
    """What the program keeps for one visitor.

    Attributes:
        token: Part of the addresses of the visitor's files; not to be guessed.
        folder: Where they lie.
        counter: Gives turns, which grow from one visitor to the next too.
        turn: What the visitor has begun last; work of an earlier turn stops.
        state: Results that later steps need, by name.
        files: Files that may be fetched: name to path and to the name it is saved under.
        seen: When the visitor last did something, in seconds of the monotonic clock.
    """

    token: str
    folder: Path
    counter: Iterator[int]
    turn: int = -1
    state: dict[str, Any] = field(default_factory=dict)
    files: dict[str, tuple[Path, str]] = field(default_factory=dict)
    seen: float = field(default_factory=time.monotonic)

    def begin(self) -> int:
        """Start anew: what was made for the last clip is removed, and work on it stops at its next step."""
        self.turn = next(self.counter)
        self.state.clear()
        self.files.clear()
        for path in self.folder.iterdir():
            _remove(path)
        return self.turn

    def path(self, name: str) -> Path:
        """Where to write a file of this name of the program's own making."""
        return self.folder / f"{self.turn}-{name}"

    def offer(self, path: Path, save_as: str) -> str:
        """Put a file on the list of what may be fetched; returns its address, relative to the page."""
        self.files[path.name] = (path, save_as)
        return f"{FILES_ROUTE}/{self.token}/{path.name}"


class Workspace:
    """The private folder of a running page, and who has which part of it.

    Args:
        limits: How many visitors, and for how long.
        parent: Folder to make it in; by default the system's folder for temporary files.
    """

    def __init__(self, limits: Limits | None = None, parent: Path | None = None) -> None:
        self.limits = limits or Limits()
        parent = Path(parent or tempfile.gettempdir())
        _remove_abandoned(parent)
        self.root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))  # for this user's eyes only
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(locked(self.root / _LOCK, self.root))
        self.uploads = self.root / "uploads"
        self.uploads.mkdir()
        self._turns = itertools.count()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.RLock()
        # Files of the page itself, the same for every visitor.
        self.shared = self._make("shared")
        atexit.register(self.close)

    def session(self, visitor: str) -> Session:
        """The visitor's session, made at first use. Makes room by removing those who have been away longest."""
        with self._lock:
            self.sweep()
            session = self._sessions.pop(visitor, None) or self._make(secrets.token_urlsafe(18))
            session.seen = time.monotonic()
            self._sessions[visitor] = session
            while len(self._sessions) > self.limits.sessions:
                self.drop(next(iter(self._sessions)))
            return session

    def drop(self, visitor: str) -> None:
        """Remove everything of a visitor; work for them stops at its next step."""
        with self._lock:
            session = self._sessions.pop(visitor, None)
        if session is not None:
            session.turn = next(session.counter)
            session.files.clear()
            session.state.clear()
            _remove(session.folder)

    def sweep(self) -> None:
        """Remove what belongs to visitors who have been away for too long, and uploads that nothing came of."""
        with self._lock:
            limit = time.monotonic() - self.limits.idle_seconds
            for visitor in [name for name, session in self._sessions.items() if session.seen < limit]:
                self.drop(visitor)
        oldest = time.time() - self.limits.idle_seconds
        for path in self.uploads.rglob("*"):  # such as one that was broken off on its way
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_mtime < oldest:
                    self.remove_upload(path)

    def find(self, token: str, name: str) -> tuple[Path, str] | None:
        """A file that may be fetched, and the name it is saved under."""
        with self._lock:
            for session in (self.shared, *self._sessions.values()):
                if secrets.compare_digest(session.token.encode(), token.encode()):
                    session.seen = time.monotonic()
                    return session.files.get(name)
        return None

    def remove_upload(self, path: str | os.PathLike[str]) -> None:
        """Remove an uploaded file, and the folder that was made for it alone. Files elsewhere are left."""
        place = Path(path).resolve()
        uploads = self.uploads.resolve()
        if uploads not in place.parents:
            return
        place.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            if place.parent != uploads:
                place.parent.rmdir()

    def close(self) -> None:
        """Remove the folder with all that is in it. Harmless when called again."""
        atexit.unregister(self.close)
        with self._lock:
            for visitor in list(self._sessions):
                self.drop(visitor)
        shutil.rmtree(self.root, ignore_errors=True)
        self._stack.close()

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self, token: str) -> Session:
        folder = self.root / token
        folder.mkdir(mode=0o700)
        return Session(token, folder, self._turns)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of runs that were killed before they could tidy up."""
    if not hasattr(os, "getuid"):  # Windows has no such locks, so there it cannot be told who still runs
        return
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, LockedError):
            # Without a lock file it is not known whether its run has come that far yet; the next start will tell.
            if folder.stat().st_uid == os.getuid() and (folder / _LOCK).exists():
                with locked(folder / _LOCK, folder):
                    shutil.rmtree(folder)
