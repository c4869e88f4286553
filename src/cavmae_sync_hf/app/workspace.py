# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Visitors' files: where they lie, who may fetch them, when they are removed, and how much room they may take.

Everything lies in one private folder that goes with the program. A visitor gets a folder in it with a name that nobody
can guess; only files that the program itself put on its list are handed out, under names of the program's own making.
Every upload gets a folder of its own, with such a name too, and belongs to the visitor who asks for something with it.
"""

import atexit
import contextlib
import itertools
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import locked
from ..model.errors_cavmae_sync import AppError, LockedError

# Where the server hands out files: `FILES_ROUTE/TOKEN/NAME`, relative to the page.
FILES_ROUTE = "cavmae-files"
_PREFIX = "cavmae-sync-app-"
_LOCK = ".in-use"
# Who did nothing for so long makes room for others when there is none left.
_AWAY_SECONDS = 60.0
# Space on the disk that is left to everything else.
_SPARE_BYTES = 100_000_000
_FULL = "There is no room for more files here just now; try again in a few minutes."


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
        letters: Length of the longest text that is taken.
        labels: Labels in words that are taken at a time.
        step_seconds: Time that one analysis may take.
        waiting: Requests of one visitor that may wait or run at the same time.
        uploads: Files that may be on their way at the same time.
        upload_seconds: Time that a file may take to arrive.
        unclaimed_seconds: Time after which an upload that nobody asks anything of is removed.
        disk_megabytes: Room for the uploads, copies and results of all visitors, in millions of bytes; default: 2000,
            or what two visitors may take where that is more.
    """

    megabytes: float = 100.0
    seconds: float = 60.0
    decode_seconds: float = 180.0
    decode_memory: int = 3 << 30
    pixels: int = 4096 * 2304
    sessions: int = 128
    idle_seconds: float = 3600.0
    search_results: int = 6
    letters: int = 500
    labels: int = 50
    step_seconds: float = 600.0
    waiting: int = 12
    uploads: int = 8
    upload_seconds: float = 300.0
    unclaimed_seconds: float = 180.0
    disk_megabytes: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and name != "search_results" and not value > 0:
                raise ValueError(f"`{name}` is {value!r}; it must be above 0.")
        if self.disk_bytes < self.visitor_bytes:
            raise ValueError(
                f"`disk_megabytes` is {self.disk_megabytes:g}, and one visitor's files may take "
                f"{self.visitor_bytes / 1e6:.0f}; give more, or accept smaller and shorter clips."
            )

    @property
    def max_bytes(self) -> int:
        """Largest file that is accepted, bytes."""
        return round(self.megabytes * 1e6)

    @property
    def copy_bytes(self) -> int:
        """Largest file that is written for a clip, bytes. At its quality noise itself stays under 60 MB a minute."""
        return round(50e6 + 2e6 * self.seconds)

    @property
    def visitor_bytes(self) -> int:
        """Room for one visitor's files, bytes: an upload on top of the clip before, and what was made of that."""
        return self.max_bytes + 3 * self.copy_bytes

    @property
    def disk_bytes(self) -> int:
        """Room for the files of all visitors, bytes."""
        if self.disk_megabytes is None:
            return max(2_000_000_000, 2 * self.visitor_bytes)
        return round(self.disk_megabytes * 1e6)


@dataclass
class Session:
    """What the program keeps for one visitor.

    Attributes:
        token: Part of the addresses of the visitor's files; not to be guessed.
        folder: Where they lie.
        counter: Gives turns, which grow from one visitor to the next too.
        clock: Gives the time in seconds.
        turn: What the visitor has begun last; work of an earlier turn stops.
        state: Results that later steps need, by name.
        files: Files that may be fetched: name to path and to the name it is saved under.
        seen: When the visitor last did something, by the clock.
    """

    token: str
    folder: Path
    counter: Iterator[int]
    clock: Callable[[], float] = time.monotonic
    turn: int = -1
    state: dict[str, Any] = field(default_factory=dict)
    files: dict[str, tuple[Path, str]] = field(default_factory=dict)
    seen: float = 0.0

    def begin(self) -> int:
        """Start anew: what was made for the last clip is removed, and work on it stops at its next step."""
        self.turn = next(self.counter)
        self.state.clear()
        self.files.clear()
        for path in self.folder.iterdir():
            _remove(path)
        return self.turn

    def touch(self) -> None:
        """Note that the visitor, or work for them, is here."""
        self.seen = self.clock()

    def path(self, name: str) -> Path:
        """Where to write a file of this name of the program's own making."""
        return self.folder / f"{self.turn}-{name}"

    def offer(self, path: Path, save_as: str) -> str:
        """Put a file on the list of what may be fetched; returns its address, relative to the page."""
        self.files[path.name] = (path, save_as)
        return f"{FILES_ROUTE}/{self.token}/{path.name}"

    def remove(self, prefix: str) -> None:
        """Remove the files of this turn whose names start so, and take them off the list."""
        for path in self.folder.glob(f"{self.turn}-{prefix}*"):
            self.files.pop(path.name, None)
            _remove(path)


@dataclass
class Upload:
    """A file that a visitor sent.

    Attributes:
        path: Where it lies: the only file in a folder whose name nobody can guess.
        name: What the visitor calls it.
        since: When it came, or was asked for last, by the clock; `None` while it is on its way.
        owner: The visitor who asked for something with it.
        size: Its bytes.
    """

    path: Path
    name: str
    since: float | None = None
    owner: str | None = None
    size: int = 0


class Workspace:
    """The private folder of a running page, and who has which part of it.

    Args:
        limits: How many visitors, for how long, and how much room they have.
        parent: Folder to make it in; by default the system's folder for temporary files.
        clock: Gives the time in seconds.
    """

    def __init__(
        self, limits: Limits | None = None, parent: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits or Limits()
        self.clock = clock
        parent = Path(parent or tempfile.gettempdir())
        _remove_abandoned(parent)
        self.root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))  # for this user's eyes only
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(locked(self.root / _LOCK, self.root))
        self.uploads = self.root / "uploads"
        self.uploads.mkdir()
        self._turns = itertools.count()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._sent: dict[str, Upload] = {}
        self._reserved = 0
        self._lock = threading.RLock()
        # Files of the page itself, the same for every visitor.
        self.shared = self._make("shared")
        atexit.register(self.close)

    # --- visitors ------------------------------------------------------------------------------------------------

    def session(self, visitor: str) -> Session:
        """The visitor's session, made at first use. Makes room by removing one who has been away for long.

        Raises:
            AppError: So many visitors are here that there is no room.
        """
        with self._lock:
            self.sweep()
            if visitor not in self._sessions:
                if len(self._sessions) >= self.limits.sessions and not self._drop_away():
                    raise AppError("As many visitors as there is room for are here; try again in a few minutes.")
                self._sessions[visitor] = self._make(secrets.token_urlsafe(18))
            session = self._sessions[visitor]
            session.touch()
            return session

    def drop(self, visitor: str) -> None:
        """Remove everything of a visitor; work for them stops at its next step."""
        with self._lock:
            session = self._sessions.pop(visitor, None)
            sent = [upload for upload in self._sent.values() if upload.owner == visitor]
        for upload in sent:
            self.remove_upload(upload.path)
        if session is not None:
            session.turn = next(session.counter)
            session.files.clear()
            session.state.clear()
            _remove(session.folder)

    def _drop_away(self) -> bool:
        """Remove everything of the visitor who has been away longest; `False` where all are here."""
        visitor, session = min(self._sessions.items(), key=lambda item: item[1].seen, default=(None, None))
        if visitor is None or session is None or session.seen > self.clock() - _AWAY_SECONDS:
            return False
        self.drop(visitor)
        return True

    def sweep(self) -> None:
        """Remove what belongs to visitors who have been away for too long, and uploads that nothing came of."""
        now = self.clock()
        with self._lock:
            limit = now - self.limits.idle_seconds
            for visitor in [name for name, session in self._sessions.items() if session.seen < limit]:
                self.drop(visitor)
            known = {upload.path for upload in self._sent.values()}
            for upload in list(self._sent.values()):
                # One that waits its turn in the queue, which may be long, is not abandoned.
                patience = self.limits.unclaimed_seconds if upload.owner is None else self.limits.idle_seconds / 4
                if upload.since is not None and upload.since < now - patience:
                    self.remove_upload(upload.path)
        oldest = time.time() - self.limits.unclaimed_seconds
        for path in _files(self.uploads):  # Gradio makes an empty file for each
            with contextlib.suppress(OSError):
                if path not in known and path.stat().st_mtime < oldest:
                    self.remove_upload(path)

    def find(self, token: str, name: str) -> tuple[Path, str] | None:
        """A file that may be fetched, and the name it is saved under."""
        with self._lock:
            for session in (self.shared, *self._sessions.values()):
                if secrets.compare_digest(session.token.encode(), token.encode()):
                    session.touch()
                    return session.files.get(name)
        return None

    # --- uploads -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def receive(self, name: str, size: int) -> Iterator[Upload]:
        """A place for a file that comes; it is removed when the block fails.

        Args:
            name: What the visitor calls it.
            size: How many bytes it may have.

        Raises:
            AppError: There is no room.
        """
        suffix = re.search(r"\.[A-Za-z0-9]{1,8}$", name)
        with self._lock:
            sent = sum(upload.size for upload in self._sent.values())
            # Uploads alone must not keep those who are at work from going on.
            if sent + self._reserved + size > self.limits.disk_bytes / 2:
                raise AppError(_FULL)
            folder = self.uploads / secrets.token_urlsafe(18)
            upload = Upload(folder / f"upload{suffix[0].lower() if suffix else ''}", name)
        with self.room(size):
            folder.mkdir(mode=0o700)
            with self._lock:
                self._sent[os.fspath(upload.path)] = upload
            try:
                yield upload
                upload.size, upload.since = upload.path.stat().st_size, self.clock()
            except BaseException:
                self.remove_upload(upload.path)
                raise

    def claim(self, path: str, visitor: str) -> bool:
        """Give an upload to the visitor who asks for something with it; `False` where there is no such upload."""
        with self._lock:
            upload = self._sent.get(path)
            if upload is None or upload.since is None or upload.owner not in (None, visitor):
                return False
            upload.owner, upload.since = visitor, self.clock()
            return True

    def upload(self, path: str | os.PathLike[str]) -> Upload | None:
        """The upload that lies at a path."""
        return self._sent.get(os.fspath(path))

    def remove_upload(self, path: str | os.PathLike[str]) -> None:
        """Remove an uploaded file, and the folder that was made for it alone. Files elsewhere are left."""
        with self._lock:
            self._sent.pop(os.fspath(path), None)
        place = Path(path).resolve()
        uploads = self.uploads.resolve()
        if uploads not in place.parents:
            return
        place.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            if place.parent != uploads:
                place.parent.rmdir()

    # --- room ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def room(self, size: int, session: Session | None = None) -> Iterator[None]:
        """Keep room for what the block writes; those who have been away for long make it.

        Args:
            size: Bytes that the block may write.
            session: Whose files they will be.

        Raises:
            AppError: There is no room, or the visitor has too much already.
        """
        with self._lock:
            if session is not None and _size(session.folder) + size > self.limits.visitor_bytes:
                raise AppError("Your files here take all the room that one visitor has; choose a clip anew to go on.")
            while size > self._free():
                if not self._drop_away():
                    raise AppError(_FULL)
            self._reserved += size
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= size

    def used(self) -> int:
        """Bytes that visitors' files take, without what is being written."""
        with self._lock:
            sent = sum(upload.size for upload in self._sent.values())
            return sent + sum(_size(session.folder) for session in self._sessions.values())

    def _free(self) -> int:
        disk = shutil.disk_usage(self.root).free - _SPARE_BYTES
        return min(self.limits.disk_bytes - self.used(), disk) - self._reserved

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
        return Session(token, folder, self._turns, self.clock, seen=self.clock())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder. Other threads may remove some, and their folders, meanwhile: `rglob` fails there."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    total = 0
    for path in _files(folder):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


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
