# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which clip is this, and is its file still the one that was indexed?"""

import hashlib
import os
from typing import Any

__all__ = ["clip_key", "content_of", "file_facts", "file_key", "looks_unchanged", "segment_of"]

_HASH_BYTES = 1 << 20


def looks_unchanged(entry: Any, old: Any) -> bool:
    """Whether a file is the one that was indexed, as far as can be told without reading it.

    Args:
        entry: `ClipEntry` of the file as it is.
        old: `ClipEntry` of when it was indexed.
    """
    if entry.size != old.size:
        return False
    return entry.content == old.content if entry.content else entry.mtime_ns == old.mtime_ns


def clip_key(path: str, start: float | None, end: float | None) -> str:
    """A name for a clip that is fit for SQL: of its file, and of its segment."""
    return f"{file_key(path)}:{_milliseconds(start)}-{_milliseconds(end)}"


def file_key(path: str) -> str:
    """What the keys of all clips of a file start with."""
    address = path if "://" in path else os.path.abspath(path)
    return hashlib.sha256(os.fsencode(address)).hexdigest()[:32]


def segment_of(key: str) -> str:
    """Which part of its file a clip is, from its key."""
    return key.partition(":")[2]


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else str(round(seconds * 1000))


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
    if "://" in path:
        return ""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_HASH_BYTES):
                digest.update(block)
    except (OSError, ValueError):
        return ""
    return f"sha256:{digest.hexdigest()}"
