# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Files written whole, locked, hashed and named, and the cores that work on them."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from filelock import FileLock, Timeout

from .model.errors_cavmae_sync import AlreadyExistsError, CavMaeSyncError, DiskError, Hint, LockedError, printable

__all__ = [
    "check_array_size",
    "StrPath",
    "check_free",
    "disk_fault",
    "file_digest",
    "file_stem",
    "locked",
    "parse_json",
    "plain",
    "remove_partial",
    "taken",
    "usable_cores",
    "user_cache",
    "whole_file",
    "whole_files",
    "whole_folder",
    "write_bytes",
    "write_csv",
    "write_json",
    "write_text",
    "writing",
]

StrPath: TypeAlias = str | os.PathLike[str]

_LONGEST_STEM = 80
# File systems count bytes, at most 255 of them; what is appended to a stem takes some.
_MOST_STEM_BYTES = 160
_RESERVED_BY_WINDOWS = re.compile(r"(?:con|prn|aux|nul|(?:com|lpt)[0-9¹²³])(?=\.|$)", re.IGNORECASE)
_PARTIAL = ".partial-"
_WRITING_FAILED = "writing failed"
_NEXT_TO_NOTHING = 1 << 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
# What libraries say that keep the system's own words to themselves.
_FAILED_WORDS = ("file write failed", "PytorchStreamWriter failed", "unexpected pos", "disk is full")


def check_free(*paths: StrPath, overwrite: bool = False) -> None:
    """Refuse names that are taken, before there is anything to write.

    Args:
        paths: Files to write.
        overwrite: Whether they may be replaced; folders may not.

    Raises:
        AlreadyExistsError: There is something of such a name.
    """
    for path in map(Path, paths):
        if os.path.isdir(path):
            raise AlreadyExistsError(f"{_shown(path)} is a folder; name a file.")
        if not overwrite and os.path.lexists(path):
            raise taken(path)


def taken(path: Path) -> AlreadyExistsError:
    """The error of a place where there is something already."""
    return AlreadyExistsError(
        f"{_shown(path)} is there already and is not replaced; name another place.",
        hint=Hint("overwrite", True, "replace it"),
    )


def _shown(path: StrPath) -> str:
    return printable(os.fspath(path))


def disk_fault(error: BaseException | None) -> str | None:
    """Why writing failed, where a full disk or one that refuses is behind an error; `None` where it is something else.

    Libraries wrap the system's error, or only tell its text.
    """
    while error is not None:
        code = error.errno if isinstance(error, OSError) else None
        if code in _FULL + _REFUSED:
            return os.strerror(code)
        text = str(error)
        for code in _FULL + _REFUSED:
            if os.strerror(code) in text or f"os error {code})" in text:
                return os.strerror(code)
        if any(words in text for words in _FAILED_WORDS):
            return _WRITING_FAILED
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def writing(path: StrPath, *, partial: StrPath | None = None, size: int | None = None) -> Iterator[None]:
    """Name the file, how much was written and how much is free, in errors of a disk that is full or refuses.

    Errors that already are sentences of this package pass, and so does what cannot be told from an error of reading.

    Args:
        path: What is written.
        partial: The file or folder in which it lies until it is whole.
        size: Its size in bytes where that is known.

    Raises:
        DiskError: It cannot be written.
    """
    try:
        yield
    except CavMaeSyncError:
        raise
    except Exception as error:
        here = _is_of(error, [Path(path), Path(partial or path)])
        reason = disk_fault(error)
        if _is_refusal(reason) and not here:
            reason = None  # what is read may be refused, too
        if reason is None and here and isinstance(error, OSError):
            reason = error.strerror
        if reason is None:
            raise
        raise DiskError(_disk_text(Path(path), Path(partial) if partial else None, reason, size)) from error


def _is_refusal(reason: str | None) -> bool:
    return reason in {os.strerror(code) for code in _REFUSED}


def _is_of(error: BaseException, places: list[Path]) -> bool:
    """Whether an error of the system names one of these places, something in it, or a folder above it."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | bytes | os.PathLike):
        return False
    named = Path(os.path.abspath(os.fsdecode(name)))
    places = [Path(os.path.abspath(place)) for place in places]
    return any(named == place or named in place.parents or place in named.parents for place in places)


def _disk_text(path: Path, partial: Path | None, reason: str, size: int | None) -> str:
    if reason not in {_WRITING_FAILED, *map(os.strerror, _FULL)}:
        return f"{_shown(path)}: cannot be written ({reason}); mend the access, or name another place."
    place, amounts = path.absolute(), []
    with contextlib.suppress(OSError):
        files = {} if partial is None else {file: file.stat() for file in (partial, *partial.rglob("*"))}
        files = {file: facts for file, facts in files.items() if stat.S_ISREG(facts.st_mode)}
        if files:
            written = _amount(sum(facts.st_size for facts in files.values()))
            amounts.append(f"{written} {'' if size is None else f'of {_amount(size)} '}written")
        if partial not in files and files:  # of a folder, the file at which it ended
            path = path / max(files, key=lambda file: files[file].st_mtime_ns).relative_to(str(partial))
    with contextlib.suppress(OSError, StopIteration):
        free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.is_dir())).free
        amounts.append(f"{_amount(free)} free")
        if reason == _WRITING_FAILED and free < _NEXT_TO_NOTHING:
            reason = os.strerror(errno.ENOSPC)
    reason = "; ".join([reason, ", ".join(amounts)]) if amounts else reason
    return (
        f"{_shown(path)}: cannot be written ({reason}); make room and run the same again. Nothing half-written is "
        "left, and what was finished before is kept."
    )


def _amount(count: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


@contextlib.contextmanager
def whole_file(
    path: StrPath, *, workplace: StrPath | None = None, overwrite: bool = True, size: int | None = None
) -> Iterator[Path]:
    """Give a temporary path beside `path`, which becomes `path` when the block succeeds and disappears otherwise.

    The folder is made. The temporary name has the suffix of `path`, by which writers choose the format. The file gets
    the permissions of any new file.

    Args:
        path: The file to write.
        workplace: Folder of the temporary file, on the same file system: what a killed run leaves lies there.
        overwrite: Whether an earlier file is replaced.
        size: Bytes that will be written, for the message about a full disk.

    Raises:
        AlreadyExistsError: There is such a file, also one that came meanwhile, and `overwrite` is off.
        DiskError: The disk is full, or refuses the file.
    """
    target = Path(path)
    name = f"{_PARTIAL}{secrets.token_hex(4)}{target.suffix}"
    partial = target.with_name(name) if workplace is None else Path(workplace) / name
    check_free(target, overwrite=overwrite)
    try:
        with writing(target, partial=partial, size=size):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _give_name(partial, target, overwrite)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _give_name(partial: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(partial, target)
        return
    try:
        os.link(partial, target)  # which fails where there is such a name, whoever made it a moment ago
    except FileExistsError as error:
        raise taken(target) from error
    except OSError:  # a file system without such links
        check_free(target)
        os.replace(partial, target)


@contextlib.contextmanager
def whole_folder(path: StrPath, *, overwrite: bool = True) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block succeeds.

    When the block fails, or the folder cannot be moved, `path` is as it was.

    Args:
        path: The folder to write.
        overwrite: Whether an earlier folder is replaced; an empty one is in any case.

    Raises:
        AlreadyExistsError: There is such a folder, also one that came meanwhile, and `overwrite` is off.
        DiskError: The disk is full, or refuses the folder.
    """
    target = Path(path)
    scratch: Path | None = None
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=target.parent))
        folder, previous = scratch / "new", scratch / "previous"
        with writing(target, partial=folder):
            folder.mkdir()
            yield folder
            if overwrite and target.exists():
                target.rename(previous)
            try:
                if not overwrite and target.exists():
                    target.rmdir()  # which fails unless it is empty
                folder.rename(target)
            except OSError as error:
                if previous.exists():
                    previous.rename(target)
                if not overwrite and target.exists():
                    raise taken(target) from error
                raise
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def whole_files(path: StrPath) -> Iterator[Path]:
    """Give a temporary folder whose files go into the folder `path`, beside others, when the block succeeds.

    Raises:
        DiskError: The disk is full, or refuses the files; those of before are as they were.
    """
    target = Path(path)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=target))
    try:
        with writing(target, partial=scratch):
            yield scratch
            for file in sorted(scratch.rglob("*")):
                place = target / file.relative_to(scratch)
                if file.is_dir():
                    place.mkdir(exist_ok=True)
                else:
                    os.replace(file, place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_partial(folder: StrPath) -> None:
    """Remove what killed runs left of `whole_file` in a folder, which no other run may be writing to."""
    for left_over in Path(folder).glob(f"{_PARTIAL}*"):
        if left_over.is_dir():
            shutil.rmtree(left_over, ignore_errors=True)
        else:
            left_over.unlink(missing_ok=True)


def write_bytes(path: StrPath, content: bytes, *, workplace: StrPath | None = None, overwrite: bool = True) -> Path:
    """Write bytes, whole or not at all, also when the machine goes down; arguments as for `whole_file`."""
    with (
        whole_file(path, workplace=workplace, overwrite=overwrite, size=len(content)) as partial,
        open(partial, "wb") as file,
    ):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return Path(path)


def write_text(path: StrPath, text: str, *, workplace: StrPath | None = None, overwrite: bool = True) -> Path:
    """Write UTF-8 text as `write_bytes` does; bytes of file names that are not UTF-8 are written as `\\udce9`."""
    content = text.encode("utf-8", "backslashreplace")
    return write_bytes(path, content, workplace=workplace, overwrite=overwrite)


def write_json(path: StrPath, values: Any, *, indent: int | None = 2, overwrite: bool = True) -> Path:
    """Write JSON, whole or not at all; values are made `plain` first."""
    text = json.dumps(plain(values), indent=indent, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n", overwrite=overwrite)


def write_csv(
    path: StrPath, rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str] = (), overwrite: bool = True
) -> Path:
    """Write a table as UTF-8 CSV, whole or not at all: names on one line each, nothing for what is missing.

    Args:
        path: The file.
        rows: Its rows by the names of the columns; a column that a row lacks stays empty.
        columns: Columns that come first, in any case.
        overwrite: Whether an earlier file is replaced.
    """
    text = io.StringIO()
    columns = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: printable(value) if isinstance(value, str) else value for name, value in row.items()})
    return write_text(path, text.getvalue(), overwrite=overwrite)


def check_array_size(path: StrPath, most: int) -> None:
    """Refuse an NPY or NPZ file whose arrays would take more memory than expected: a small ZIP may hold much.

    Args:
        path: The file; only the arrays' headers are read.
        most: Bytes that all arrays together may have.

    Raises:
        ValueError: They have more, or are no plain arrays.
    """
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(open(path, "rb"))
        parts = [file]
        if zipfile.is_zipfile(file):
            archive = stack.enter_context(zipfile.ZipFile(file))
            parts = [stack.enter_context(archive.open(name)) for name in archive.namelist()]
        else:
            file.seek(0)
        total = sum(map(_array_bytes, parts))
    if total > most:
        raise ValueError(f"its arrays have {total:,} bytes, and at most {most:,} are expected")


def _array_bytes(file: Any) -> int:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, and reading those could run code")
    return math.prod(shape) * dtype.itemsize


def parse_json(text: str | bytes) -> Any:
    """What JSON says; `json.JSONDecodeError` also where it is nested too deeply or holds endless numbers."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        raise json.JSONDecodeError(str(error), "", 0) from error


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
    """A file name without suffix for the results of a video, each once, that every file system takes.

    Letters of every script, digits, dots, dashes and signs beyond ASCII stay; spaces and what a system or a shell
    could take for something else become `_`.

    Args:
        source: Path or address of the video, or any name.
        taken: Stems given out before, as file systems compare them; the new one is added.
    """
    text = str(source)
    if "://" in text:
        text = text.split("?")[0]
    name = os.path.basename(text.rstrip("/"))
    name = unicodedata.normalize("NFC", printable(Path(name).stem))
    stem = "".join(sign if _may_stay(sign) else " " for sign in name)
    stem = re.sub(" +", "_", stem).strip("._-")[:_LONGEST_STEM]
    stem = stem.encode()[:_MOST_STEM_BYTES].decode(errors="ignore").rstrip("._-\u200d") or "video"
    reserved = _RESERVED_BY_WINDOWS.match(stem)
    if reserved:
        stem = f"{reserved[0]}_{stem[reserved.end() :]}"
    unique, number = stem, 2
    while _folded(unique) in taken:
        unique, number = f"{stem}-{number}", number + 1
    taken.add(_folded(unique))
    return unique


def _may_stay(sign: str) -> bool:
    if sign.isascii():
        return sign.isalnum() or sign in "._-"
    return not sign.isspace()


def _folded(stem: str) -> str:
    """A name as file systems compare it that tell neither case nor forms of a letter apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", stem).casefold())


def user_cache() -> Path:
    """The user's folder for what this package can make or fetch again; `CAVMAE_SYNC_CACHE` names another."""
    own = os.environ.get("CAVMAE_SYNC_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or os.path.join("~", ".cache")
    return Path(own).expanduser() if own else Path(base).expanduser() / "cavmae-sync-hf"


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; macOS and Windows have no such limit to ask for
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
