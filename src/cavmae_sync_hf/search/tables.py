# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What the two tables of an index hold: their columns, keys of clips and names of rows, and facts of files."""

import hashlib
import json
import os
import secrets
import socket
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..files import file_digest, parse_json
from ..model.errors_cavmae_sync import CavMaeSyncError, Hint, MediaError, UnexpectedError, printable

# Of a writer elsewhere nobody can tell whether it lives; so long after it began, its rows are swept away.
STALE_SECONDS = 24 * 3600.0
# The size that is noted of a file where the next run is to read it again, changed or not.
READ_AGAIN = -2
# How a problem begins that is written with its hints.
_AS_JSON = '{"message"'


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
        size: Bytes of the file; -1 if unknown, `READ_AGAIN` where the next run must take the file for a changed one.
        mtime_ns: When the file was changed, nanoseconds; 0 if unknown.
        content: Checksum of the file, such as `sha256:...`; empty if unknown.
        moments: Number of its rows.
        has_audio: Whether it has audio.
        has_video: Whether it has frames.
        problem: Why it could not be used; empty if it could.
        hints: What may help.
        place: Where in the code an unexpected error was raised, as of `UnexpectedError`; `None` for a file that was
            refused.
        audio: Its clip vector, the mean of its moments' audio vectors, float32 of length 1; `None` without.
        video: The same of its frames' vectors.
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
    hints: tuple[Hint, ...] = ()
    place: str | None = None
    audio: np.ndarray | None = None
    video: np.ndarray | None = None
    previous: str = ""

    @property
    def error(self) -> CavMaeSyncError:
        """The problem with its hints."""
        if self.place is not None:
            return UnexpectedError(self.problem, self.place)
        return MediaError(self.problem, hint=self.hints)


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
    """A clip as a row of `clips`; a problem with hints or a place is written as JSON."""
    row = dict(vars(entry))
    hints, place = row.pop("hints"), row.pop("place")
    if hints or place is not None or entry.problem.startswith(_AS_JSON):
        about = {} if place is None else {"place": place}
        row["problem"] = json.dumps({"message": entry.problem, "hints": [vars(hint) for hint in hints], **about})
    row["path"] = printable(entry.path)
    row["raw_path"] = None if row["path"] == entry.path else os.fsencode(entry.path)
    row["root"] = printable(entry.root)
    for name in ("audio", "video"):
        row[name] = None if row[name] is None else row[name].astype(np.float16)
    return row


def as_entry(row: dict[str, Any]) -> ClipEntry:
    """Back from a row of `clips`, which may lack the vectors."""
    raw = row.pop("raw_path")
    if row["problem"].startswith(_AS_JSON):
        problem = parse_json(row["problem"])
        row["problem"], row["hints"] = problem["message"], tuple(Hint(**hint) for hint in problem["hints"])
        row["place"] = problem.get("place")
    return replace(ClipEntry(**row), path=row["path"] if raw is None else os.fsdecode(raw))


def clip_key(path: str, start: float | None, end: float | None) -> str:
    """A name for a clip that is fit for SQL: of its file, and of its segment in milliseconds."""
    span = "-".join("" if seconds is None else str(round(seconds * 1000)) for seconds in (start, end))
    return f"{file_key(path)}:{span}"


def file_key(path: str) -> str:
    """What the keys of all clips of a file start with."""
    address = path if "://" in path else os.path.abspath(path)
    return hashlib.sha256(os.fsencode(address)).hexdigest()[:32]


def segment_of(key: str) -> str:
    """Which part of its file a clip is, from its key."""
    return key.partition(":")[2]


def is_unchanged(entry: ClipEntry, old: ClipEntry) -> bool:
    """Whether a file is the one that was indexed, as far as can be told without reading it.

    Args:
        entry: Of the file as it is.
        old: Of the file when it was indexed.
    """
    if entry.size != old.size:
        return False
    return entry.content == old.content if entry.content else entry.mtime_ns == old.mtime_ns


def file_facts(path: str) -> tuple[int, int, str]:
    """Size, time of change and, where a store keeps one, checksum of a file; -1, 0 and "" where unknown."""
    if "://" not in path:
        try:
            facts = os.stat(path)
        except (OSError, ValueError):  # what is wrong with it is said when it is opened
            return -1, 0, ""
        return facts.st_size, facts.st_mtime_ns, ""
    import fsspec

    try:
        system, inner = fsspec.url_to_fs(path)
        info = system.info(inner)
    except Exception:  # each backend has its own errors; opening the file says what is wrong
        return -1, 0, ""
    tag = next((str(info[name]) for name in ("ETag", "etag", "md5", "checksum") if info.get(name)), "")
    changed = info.get("LastModified", info.get("mtime", info.get("updated")))
    stamp = changed.timestamp() if hasattr(changed, "timestamp") else changed
    mtime = round(float(stamp) * 1e9) if isinstance(stamp, int | float) else 0
    return int(info.get("size") or -1), mtime, f"etag:{tag}" if tag else ""


def content_of(path: str) -> str:
    """Checksum of a file of this machine; empty where it cannot be read, which opening it will say."""
    try:
        return f"sha256:{file_digest(path)}" if os.path.isfile(path) else ""  # a pipe may never end
    except (OSError, ValueError):
        return ""
