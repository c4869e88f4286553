# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What does an index hold, and is all of it there?"""

import os
from typing import Any

import numpy as np

from ..model.errors_cavmae_sync import SearchError
from .store import MomentStore, open_index
from .tables import as_matrix

__all__ = ["index_status"]

_SHOWN = ("path", "start", "end", "moments", "has_audio", "has_video", "size", "mtime_ns", "content", "problem")
# Vectors are stored in half precision.
_LENGTH_TOLERANCE = 0.01


def index_status(index: str | os.PathLike[str] | MomentStore, *, check: bool = False) -> dict[str, Any]:
    """What an index holds.

    Args:
        index: Where it is, or the open index.
        check: Read every row, too, and raise an error where any is missing or damaged.

    Returns:
        `index`, `model`, `weights`, `hop`, `window_seconds`, `hidden_size`, numbers of `clips`, `files`, `bad`,
        `moments` and `loose_rows` (of runs that were stopped; never found, and swept away in time), `seconds` of
        media, rows of the `approximate` index by column, `thumbnails`, and `entries`: one mapping per clip, its
        `problem` empty where there is none.

    Raises:
        SearchError: There is no index, or it cannot be read, or `check` finds it damaged.
    """
    store = open_index(index)
    entries = sorted(store.entries().values(), key=lambda entry: (entry.path, entry.start))
    usable = [entry for entry in entries if entry.rows]
    if check:
        _check(store)
    settings = store.settings
    return {
        "index": store.uri,
        "model": settings.model,
        "weights": settings.weights,
        "hop": settings.hop,
        "window_seconds": settings.window_seconds,
        "hidden_size": settings.hidden_size,
        "clips": len(usable),
        "files": len({entry.path for entry in usable}),
        "bad": len(entries) - len(usable),
        "moments": sum(entry.moments for entry in usable),
        "loose_rows": store.count() - sum(entry.moments for entry in usable),
        "seconds": sum(entry.end - entry.start for entry in usable),
        "approximate": store.indexed_columns(),
        "thumbnails": store.has_thumbnails,
        "entries": [{name: getattr(entry, name) for name in _SHOWN} for entry in entries],
    }


def _check(store: MomentStore) -> None:
    """Raise an error where rows are missing or vectors damaged."""
    entries = store.entries()
    incomplete = [entries[key].path for key in store.incomplete()]
    if incomplete:
        raise SearchError(
            f"{store.uri}: {len(incomplete)} clips lack rows, such as {incomplete[0]}; run `cavmae-sync index` again, "
            "which mends them."
        )
    for batch in store.scan(["rows", "window", "audio", "video"]):
        for side in ("audio", "video"):
            vectors, _ = as_matrix(batch[side], store.settings.hidden_size)
            # Not a number is no length near 1, either.
            if len(vectors) and not np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1) < _LENGTH_TOLERANCE):
                raise SearchError(
                    f"{store.uri}: holds {side} vectors that are not of length 1; it is damaged: make it anew."
                )
