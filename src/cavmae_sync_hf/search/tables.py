# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which columns do the two tables of an index have, and how do clips and vectors go in and out of them?"""

import os
import secrets
import socket
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.sources import printable

__all__ = [
    "ClipEntry",
    "as_entry",
    "as_matrix",
    "as_row",
    "clips_schema",
    "moments_schema",
    "new_rows_name",
    "release_names",
    "shared_row",
    "writer_is_gone",
]

# Of a writer elsewhere nobody can tell whether it lives; so long after it began, its rows are swept away.
STALE_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class ClipEntry:
    """A clip of an index: a media file, or a segment of one.

    Attributes:
        key: Which clip it is: made of its path and segment, fit for SQL.
        rows: Name of its rows in `moments`; empty for a file that could not be used.
        path: The file: a path or an address.
        start: Where the clip starts in the file, seconds.
        end: Where it ends, seconds.
        root: The folder, pattern or list that was indexed; its clips go when it holds them no more.
        size: Bytes of the file; -1 if unknown.
        mtime_ns: When the file was changed, nanoseconds; 0 if unknown.
        content: Checksum of the file, such as `sha256:...`; empty if unknown.
        moments: Number of its rows.
        has_audio: Whether it has sound.
        has_video: Whether it has pictures.
        problem: Why it could not be used; empty if it could.
        audio: Its clip vector, the mean of its moments' sounds, float32 of length 1; `None` without.
        video: The same of its pictures.
        previous: `rows` of the entry that this one replaces; empty for none. Where another writer was faster, it is
            not replaced.
    """

    key: str
    rows: str
    path: str
    start: float = 0.0
    end: float = 0.0
    root: str = ""
    size: int = -1
    mtime_ns: int = 0
    content: str = ""
    moments: int = 0
    has_audio: bool = False
    has_video: bool = False
    problem: str = ""
    audio: np.ndarray | None = None
    video: np.ndarray | None = None
    previous: str = ""


def moments_schema(hidden_size: int) -> Any:
    """Columns of `moments`: `rows` and `window` say which row it is, `start`, `end` and `time` are seconds of the file
    (of the step that the moment stands for, and of its frame), `loudness` is in dB of full scale."""
    import pyarrow as pa

    vector = pa.list_(pa.float16(), hidden_size)
    return pa.schema(
        [
            pa.field("rows", pa.string(), nullable=False),
            pa.field("window", pa.int32(), nullable=False),
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
            pa.field("time", pa.float64()),
            pa.field("loudness", pa.float32()),
            pa.field("audio", vector),
            pa.field("video", vector),
            pa.field("thumbnail", pa.binary()),
        ]
    )


def clips_schema(hidden_size: int) -> Any:
    """Columns of `clips`: those of `ClipEntry`. A path that is no UTF-8 is kept as bytes in `raw_path`; `turn` changes
    with every commit in the row that all commits share."""
    import pyarrow as pa

    vector = pa.list_(pa.float16(), hidden_size)
    text, number = pa.string(), pa.float64()
    fields = {
        "key": text, "rows": text, "path": text, "raw_path": pa.binary(), "start": number, "end": number, "root": text,
        "size": pa.int64(), "mtime_ns": pa.int64(), "content": text, "moments": pa.int64(), "has_audio": pa.bool_(),
        "has_video": pa.bool_(), "problem": text, "audio": vector, "video": vector, "previous": text,
        "turn": pa.int64(),
    }  # fmt: skip
    return pa.schema([pa.field(name, kind, nullable=name != "key") for name, kind in fields.items()])


# Names of rows that this process is about to register.
_unfinished: set[str] = set()


def new_rows_name() -> str:
    """A name for rows that nobody else uses, and that tells who wrote them and since when.

    `release_names` says that it counts, or never will.
    """
    name = f"{int(time.time()):x}-{_this_host()}-{os.getpid():x}-{secrets.token_hex(6)}"
    _unfinished.add(name)
    return name


def release_names(names: Iterable[str]) -> None:
    """Rows under these names may be swept away, unless a clip has them."""
    _unfinished.difference_update(names)


def _this_host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def writer_is_gone(rows: str) -> bool:
    """Whether whoever wrote these rows will not make them count any more."""
    try:
        since, host, process, _ = rows.split("-")
        age, number = time.time() - int(since, 16), int(process, 16)
    except ValueError:
        return True  # none of this package's names
    if age > STALE_SECONDS:
        return True
    if host != _this_host() or os.name != "posix":
        return False
    if number == os.getpid():
        return rows not in _unfinished
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def as_matrix(column: Any, hidden_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of a column that are there `(present, hidden)` float32, and which rows they are of."""
    present = column.is_valid().to_numpy(zero_copy_only=False)
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    flat = np.concatenate(values) if values else np.zeros(0, np.float16)
    return flat.reshape(-1, hidden_size).astype(np.float32), np.flatnonzero(present)


def shared_row() -> dict[str, Any]:
    """The row that every commit to `clips` changes."""
    return {"key": "", "rows": "", "previous": "", "turn": secrets.randbits(62)}


def as_row(entry: ClipEntry) -> dict[str, Any]:
    """A clip as a row of `clips`."""
    row = dict(vars(entry))
    row["path"] = printable(entry.path)
    row["raw_path"] = None if row["path"] == entry.path else os.fsencode(entry.path)
    row["root"] = printable(entry.root)
    for name in ("audio", "video"):
        row[name] = None if row[name] is None else row[name].astype(np.float16)
    return row


def as_entry(row: dict[str, Any]) -> ClipEntry:
    """Back from a row of `clips`, which may lack the vectors."""
    raw = row.pop("raw_path")
    return replace(ClipEntry(**row), path=row["path"] if raw is None else os.fsdecode(raw))
