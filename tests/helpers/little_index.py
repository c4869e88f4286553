"""Indexes of made-up vectors, for tests of searching that need no model and no media."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cavmae_sync_hf.search import ClipEntry, IndexSettings, MomentStore, Query
from cavmae_sync_hf.search.identity import clip_key
from cavmae_sync_hf.search.tables import moments_schema, new_rows_name

HIDDEN = 16
HOP = 0.5


def little_settings(hidden_size: int = HIDDEN, **changes: Any) -> IndexSettings:
    """Settings of no model; moments hear half a second."""
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
    settings = settings or little_settings()
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
                clip_key(path, start or None, None), name, path, start, start + size * settings.hop, moments=size,
                has_audio=clip.get("audio") is not None, has_video=clip.get("video") is not None,
                content=clip.get("content", ""), **mean,
            )
        )  # fmt: skip
    store.append(batches)
    assert store.register(entries) == {entry.key for entry in entries}
    return store


def little_query(
    audio: np.ndarray | None = None, video: np.ndarray | None = None, by: str = "sound", **changes: Any
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
