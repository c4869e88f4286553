# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Fetching of media files, and whether a file that cannot be read is at fault or the machine is.

A faulty file is left out for good; a faulty network or disk ends the run, which continues when it is mended.
"""

import contextlib
import errno
import http.client
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from ..model.errors_cavmae_sync import MediaError, MediaNotFoundError, WorkerError, printable
from ..model.media_source_cavmae_sync import MOST_UNKNOWN_BYTES

try:
    from av.error import FFmpegError
except ImportError:

    class FFmpegError(Exception):  # type: ignore[no-redef]
        """Never raised without PyAV."""


_FETCH_ATTEMPTS = 3
_FETCH_PAUSE_SECONDS = 1.0
_FETCH_TIMEOUT_SECONDS = 30.0
_MEMORY_FOR_FETCHED_FILE = 1 << 27
# What servers answer for files that are gone for good.
_HTTP_NOT_FOUND = (404, 410)
# What FFmpeg reports for faults of the machine; its other errors are faults of files.
_FAULTS_OF_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT)
_READ_BYTES = 1 << 20


def fault_of_machine(error: BaseException | None) -> BaseException | None:
    """The error behind an error that is the machine's or the network's rather than the file's, if one is."""
    while error is not None:
        if isinstance(error, FFmpegError):
            if error.errno in _FAULTS_OF_MACHINE:
                return error
        # Pillow's errors for damaged images are OSErrors without a number.
        elif isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            return error
        error = error.__cause__
    return None


def reading_fault(paths: Iterable[str | None]) -> OSError | None:
    """Why a file of this machine cannot be read to its end; FFmpeg takes a failing disk for a broken file."""
    for path in paths:
        if path is None or "://" in path or not os.path.isfile(path):  # a pipe may have no end
            continue
        try:
            with open(path, "rb") as file:
                while file.read(_READ_BYTES):
                    pass
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            continue
        except OSError as error:
            return error
    return None


@contextmanager
def local_file(source: Any, name: str) -> Iterator[Any]:
    """A media source that is cheap to open again and again: what lies elsewhere is fetched once, as a whole.

    Args:
        source: Path, address, or what else `decode_media` takes.
        name: What messages about a faulty file call it.

    Yields:
        The source, or a file of what was fetched.

    Raises:
        MediaError: There is no such file, or the address is none.
        WorkerError: Three attempts to fetch it failed.
    """
    if isinstance(source, dict) and source.get("bytes") is None and source.get("path") is not None:
        source = source["path"]
    if not isinstance(source, str) or "://" not in source or source.startswith("file://"):
        if isinstance(source, str) and printable(source) != source and os.path.isfile(source):
            with open(source, "rb") as named:  # FFmpeg takes names in UTF-8 only
                yield named
            return
        yield source
        return
    with tempfile.SpooledTemporaryFile(max_size=_MEMORY_FOR_FETCHED_FILE) as file:
        for attempt in range(1, _FETCH_ATTEMPTS + 1):
            try:
                file.seek(0)
                file.truncate()
                _fetch(source, file)
                break
            except FileNotFoundError as error:
                raise MediaNotFoundError(f"{name}: no such file; check the address.") from error
            except MediaError:
                raise
            except (ValueError, http.client.InvalidURL) as error:
                raise MediaError(f"{name}: is no address that can be read ({error}); correct it.") from error
            except Exception as error:  # each backend has its own errors
                if attempt == _FETCH_ATTEMPTS or isinstance(error, PermissionError | ImportError):
                    raise WorkerError(
                        f"{source}: cannot be fetched ({type(error).__name__}: {error}); check the address, the "
                        "access and the network."
                    ) from error
                time.sleep(_FETCH_PAUSE_SECONDS * attempt)
        file.seek(0)
        yield file


def _fetch(source: str, file: Any) -> None:
    """Copy a file from elsewhere.

    Raises:
        FileNotFoundError: It is not there.
        MediaError: It has no end.
        Exception: As the backend has it; trying again may help.
    """
    if not source.startswith(("http://", "https://")):
        with fsspec.open(source, "rb") as remote:
            shutil.copyfileobj(remote, file)
        return
    try:
        with contextlib.closing(urllib.request.urlopen(source, timeout=_FETCH_TIMEOUT_SECONDS)) as reply:  # noqa: S310
            promised = reply.headers.get("Content-Length")
            while block := reply.read(_READ_BYTES):
                file.write(block)
                if promised is None and file.tell() > MOST_UNKNOWN_BYTES:
                    raise MediaError(f"{source}: the server sends without end; store a piece of it.")
    except urllib.error.HTTPError as error:
        if error.code in _HTTP_NOT_FOUND:
            raise FileNotFoundError(f"{source}: the server answers {error.code}") from error
        raise
    if promised is not None and file.tell() < int(promised):
        raise http.client.IncompleteRead(b"", int(promised) - file.tell())
