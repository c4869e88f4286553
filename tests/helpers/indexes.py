"""Indexes of made-up vectors, for tests of searching that need no model and no media, and rows of any index."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cavmae_sync_hf.search import ClipEntry, IndexSettings, MomentStore, Query
from cavmae_sync_hf.search.tables import clip_key, moments_schema, new_rows_name

HIDDEN = 16
HOP = 0.5
# Tolerance of cosines of vectors that were rounded to half precision.
HALF = 2e-3


def index_settings(hidden_size: int = HIDDEN, **changes: Any) -> IndexSettings:
    """Settings of no model; audio windows are half a second long."""
    values = {"hop": HOP, "hidden_size": hidden_size, "window_seconds": 0.5, "weights": "w" * 64, "model": ""}
    return IndexSettings(**(values | changes))


def unit(vectors: np.ndarray) -> np.ndarray:
    """At length 1, float32."""
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_vectors(count: int, seed: int, hidden_size: int = HIDDEN) -> np.ndarray:
    """Vectors of length 1 as half precision holds them."""
    values = unit(np.random.default_rng(seed).standard_normal((count, hidden_size)))
    return values.astype(np.float16).astype(np.float32)


def make_store(
    uri: Path | str, clips: Mapping[str, Mapping[str, Any]], settings: IndexSettings | None = None
) -> MomentStore:
    """An index of clips: path -> `audio` and `video` `(moments, hidden)` or `None`, `loudness` `(moments,)`, `start`,
    `content`, `thumbnails`."""
    settings = settings or index_settings()
    store = MomentStore.create(uri, settings)
    entries, batches = [], []
    for path, clip in clips.items():
        name = new_rows_name()
        size = len(next(clip[side] for side in ("audio", "video") if clip.get(side) is not None))
        start = clip.get("start", 0.0)
        windows = np.arange(size, dtype=np.int32)
        columns = {
            "rows": pa.array([name] * size),
            "window": pa.array(windows),
            "start": start + windows * settings.hop,
            "end": start + (windows + 1) * settings.hop,
            "time": start + (windows + 0.5) * settings.hop,
            "loudness": np.asarray(clip.get("loudness", np.full(size, -20.0)), np.float32),
            "thumbnail": pa.array(clip.get("thumbnails", [None] * size), pa.binary()),
        }
        for side in ("audio", "video"):
            vectors = clip.get(side)
            absent = np.full(size, vectors is None)
            vectors = np.zeros((size, settings.hidden_size)) if vectors is None else vectors
            values = pa.array(vectors.astype(np.float16).ravel())
            columns[side] = pa.FixedSizeListArray.from_arrays(values, settings.hidden_size, mask=pa.array(absent))
        batches.append(pa.record_batch(columns, schema=moments_schema(settings.hidden_size)))
        mean = {side: None if clip.get(side) is None else unit(clip[side].mean(axis=0)) for side in ("audio", "video")}
        entries.append(
            ClipEntry(
                key=clip_key(path, start or None, None),
                rows=name,
                path=path,
                start=start,
                end=start + size * settings.hop,
                moments=size,
                has_audio=clip.get("audio") is not None,
                has_video=clip.get("video") is not None,
                content=clip.get("content", ""),
                **mean,
            )
        )
    store.append(batches)
    assert store.register(entries) == {entry.key for entry in entries}
    return store


def vector_query(
    audio: np.ndarray | None = None, video: np.ndarray | None = None, by: str = "audio", **changes: Any
) -> Query:
    """A query of vectors."""
    given = audio if audio is not None else video
    there, nothing = np.ones(len(given), bool), np.zeros_like(given)
    values = {
        "name": "query", "by": by, "audio": nothing if audio is None else audio,
        "video": nothing if video is None else video, "audio_present": there if audio is not None else ~there,
        "video_present": there if video is not None else ~there, "start": 0.0, "seconds": len(given) * HOP,
    }  # fmt: skip
    return Query(**(values | changes))


def rows_of(index: Path | MomentStore) -> dict[str, list[tuple]]:
    """All that counts, by file name: window, start, end, and the two vectors."""
    store = index if isinstance(index, MomentStore) else MomentStore.open(index)
    names = {entry.rows: Path(entry.path).name for entry in store.entries().values() if entry.rows}
    found: dict[str, list[tuple]] = {name: [] for name in names.values()}
    for batch in store.scan(["rows", "window", "start", "end", "time", "loudness", "audio", "video"]):
        for row in batch.to_pylist():
            if row["rows"] in names:
                found[names[row["rows"]]].append(tuple(row.values())[1:])
    return {name: sorted(rows, key=lambda row: row[0]) for name, rows in found.items()}


def same_rows(one: dict, other: dict) -> bool:
    """Equal but for what the order of batches does to the last bits."""
    if {name: [row[:5] for row in rows] for name, rows in one.items()} != {
        name: [row[:5] for row in rows] for name, rows in other.items()
    }:
        return False
    return all(
        np.allclose(a[side], b[side], atol=HALF)
        for name in one
        for a, b in zip(one[name], other[name], strict=True)
        for side in (5, 6)
    )
