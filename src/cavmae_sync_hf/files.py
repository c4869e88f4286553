# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Files written whole, locked, hashed and named, and the cores that work on them."""

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from filelock import FileLock, Timeout

from .model.errors_cavmae_sync import LockedError

__all__ = [
    "StrPath",
    "file_digest",
    "file_stem",
    "locked",
    "plain",
    "remove_partial",
    "usable_cores",
    "whole_file",
    "whole_folder",
    "write_bytes",
    "write_json",
    "write_text",
]

StrPath: TypeAlias = str | os.PathLike[str]

_LONGEST_STEM = 80
_PARTIAL = ".partial-"


@contextlib.contextmanager
def whole_file(path: StrPath, *, workplace: StrPath | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path`, which becomes `path` when the block succeeds and disappears otherwise.

    The folder is made. The temporary name has the suffix of `path`, by which writers choose the format. The file gets
    the permissions of any new file.

    Args:
        path: The file to write; an earlier one is replaced.
        workplace: Folder of the temporary file, on the same file system: what a killed run leaves lies there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f"{_PARTIAL}{secrets.token_hex(4)}{target.suffix}"
    partial = target.with_name(name) if workplace is None else Path(workplace) / name
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: StrPath) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block succeeds, in place of an earlier one if there is one.

    When the block fails, or the folder cannot be moved, `path` is as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    folder, previous = scratch / "new", scratch / "previous"
    try:
        folder.mkdir()
        yield folder
        if target.exists():
            target.rename(previous)
        try:
            folder.rename(target)
        except OSError:
            if previous.exists():
                previous.rename(target)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_partial(folder: StrPath) -> None:
    """Remove what killed runs left of `whole_file` in a folder, which no other run may be writing to."""
    for left_over in Path(folder).glob(f"{_PARTIAL}*"):
        left_over.unlink(missing_ok=True)


def write_bytes(path: StrPath, content: bytes, *, workplace: StrPath | None = None) -> Path:
    """Write bytes, whole or not at all, also when the machine goes down; `workplace` as for `whole_file`."""
    with whole_file(path, workplace=workplace) as partial, open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return Path(path)


def write_text(path: StrPath, text: str, *, workplace: StrPath | None = None) -> Path:
    """Write UTF-8 text as `write_bytes` does."""
    return write_bytes(path, text.encode(), workplace=workplace)


def write_json(path: StrPath, values: Any, *, indent: int | None = 2) -> Path:
    """Write JSON, whole or not at all; values are made `plain` first."""
    return write_text(path, json.dumps(plain(values), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """`value` as JSON takes it: arrays and tuples as lists, numbers that are not finite as `None`, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@contextlib.contextmanager
def locked(lock: StrPath, folder: StrPath, *, patience: float = 0.0) -> Iterator[None]:
    """Keep every other run out of `folder` for as long as the block lasts.

    The lock ends with the process, however it ends; its file is removed at the end of the block.

    Args:
        lock: The file to lock, made where it is missing; its folder must exist.
        folder: What the lock guards, for the message.
        patience: Seconds to wait for the other run.

    Raises:
        LockedError: Another run holds the lock.
    """
    guard = FileLock(lock, timeout=patience)
    try:
        guard.acquire(poll_interval=0.05)
    except Timeout as error:
        raise LockedError(f"{folder}: another run is writing to it; wait until it has ended.") from error
    try:
        yield
    finally:
        # Before the release, so that nobody else's file is removed; a waiting run notices and makes a new one.
        # Windows refuses, and keeps the file.
        with contextlib.suppress(OSError):
            os.unlink(lock)
        guard.release()


def file_digest(path: StrPath) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stem(source: object, taken: set[str]) -> str:
    """A file name without suffix for the results of a video: letters, digits, dots, dashes; each once.

    Args:
        source: Path or address of the video, or any name.
        taken: Stems given out before, in lower case; the new one is added.
    """
    name = re.split(r"[\\/]", str(source).split("?")[0].rstrip("/\\"))[-1]
    stem = re.sub(r"[^\w.-]+", "_", Path(name).stem, flags=re.ASCII).strip("._-")[:_LONGEST_STEM] or "video"
    unique, number = stem, 2
    while unique.lower() in taken:
        unique, number = f"{stem}-{number}", number + 1
    taken.add(unique.lower())
    return unique


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; macOS and Windows have no such limit to ask for
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
