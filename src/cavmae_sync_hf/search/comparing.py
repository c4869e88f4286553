# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What of a query is compared with what of an index, and how alike they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..model.errors_cavmae_sync import SearchError
from .querying import Query
from .tables import as_matrix

# So that a text for which one modality counts for nothing is still found where the other one is absent.
_LEAST_SHARE = 1e-6


@dataclass(frozen=True)
class Comparison:
    """Which vectors are compared.

    Attributes:
        find: `"audio"`, `"video"` or `"both"` of the index.
        pairs: Of the query's media and of the index, such as `(("audio", "video"),)`; their mean counts.
        text: What of the index texts are compared with. Of both the mean counts, weighted as the model learned of the
            text; where one is absent the other counts alone.
    """

    find: str
    pairs: tuple[tuple[str, str], ...]
    text: tuple[str, ...] = ()

    @classmethod
    def of(cls, query: Query, find: str) -> "Comparison":
        """What `find` means for a query."""
        text: tuple[str, ...] = ()
        if query.text is not None:
            text = ("audio", "video") if find in ("auto", "both") else (find,)
        if find == "auto":
            find = {"audio": "video", "video": "audio", "both": "both", "text": "both"}[query.by]
        stored = ("audio", "video") if find == "both" else (find,)
        if query.by == "both" and find == "both":
            return cls(find, (("audio", "audio"), ("video", "video")), text)
        return cls(find, tuple((asked, side) for asked in query.sides for side in stored), text)

    @property
    def all_pairs(self) -> tuple[tuple[str, str], ...]:
        """Those of texts, too."""
        return self.pairs + tuple(("text", side) for side in self.text)

    @property
    def names(self) -> tuple[str, ...]:
        """As results tell them: `"audio -> video"`."""
        return tuple(f"{asked} -> {stored}" for asked, stored in self.all_pairs)

    @property
    def stored(self) -> tuple[str, ...]:
        """Columns of the index that are compared."""
        return tuple(sorted({stored for _, stored in self.all_pairs}))

    @property
    def needs_sound(self) -> bool:
        """Whether there is nothing to compare at silent moments."""
        return any(stored == "audio" for _, stored in self.pairs) or self.text == ("audio",)


def similarity(query: Query, comparison: Comparison, rows: Any) -> np.ndarray:
    """How alike each query window and each row are, `(windows, rows)`; NaN where what is needed is missing.

    Args:
        query: The query.
        comparison: What is compared.
        rows: Columns of the index.
    """

    def of_rows(asked: str, stored: str) -> np.ndarray:
        vectors, places = as_matrix(rows[stored], query.audio.shape[1])
        found = np.full((len(query), len(rows)), np.nan, np.float32)
        found[:, places] = cosines(query.vectors(asked), query.as_compared(asked, stored, vectors))
        return found

    return _combined(query, comparison, of_rows, query.video_shares)


def clip_similarity(
    query: Query, comparison: Comparison, clip_vectors: Callable[[str], tuple[list[str], np.ndarray]]
) -> dict[str, float]:
    """How alike the means of a query and of clips are, by the clips' keys.

    Args:
        query: The query.
        comparison: What is compared.
        clip_vectors: Keys and vectors `(clips, hidden)` of audio or video.
    """
    known = {side: clip_vectors(side) for side in comparison.stored}
    keys = sorted({key for names, _ in known.values() for key in names})
    number = {key: place for place, key in enumerate(keys)}

    def of_clips(asked: str, stored: str) -> np.ndarray:
        names, vectors = known[stored]
        mean = query.vectors(asked)[query.present].mean(axis=0)
        found = np.full((1, len(keys)), np.nan, np.float32)
        mean = mean / max(1e-12, float(np.linalg.norm(mean)))
        found[0, [number[name] for name in names]] = cosines(query.as_compared(asked, stored, vectors), mean)
        return found

    shares = None if query.video_shares is None else query.video_shares[:1]
    scores = _combined(query, comparison, of_clips, shares)[0]
    return {key: float(score) for key, score in zip(keys, scores, strict=True) if not np.isnan(score)}


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Products of vectors that are there; an index of a broken model, or a damaged one, gives none."""
    with np.errstate(invalid="ignore"):
        found = first @ second.T
    if not np.isfinite(found).all():
        raise SearchError("The index or the query holds vectors that are NaN or infinite; make the index anew.")
    return np.asarray(found)


def _combined(
    query: Query,
    comparison: Comparison,
    compare: Callable[[str, str], np.ndarray],
    video_shares: np.ndarray | None,
) -> np.ndarray:
    """The mean over pairs, in which all must be there, joined with what the texts say."""
    media: Any = None
    text: Any = None
    if comparison.pairs:
        media = sum(compare(asked, stored) for asked, stored in comparison.pairs) / np.float32(len(comparison.pairs))
    if comparison.text:
        assert video_shares is not None
        share = np.clip(video_shares[:, None], _LEAST_SHARE, 1 - _LEAST_SHARE).astype(np.float32)
        shares = {"video": share, "audio": 1 - share}
        weighted: Any = 0.0
        weight: Any = 0.0
        for side in comparison.text:
            found = compare("text", side)
            there = ~np.isnan(found)
            weighted = weighted + np.where(there, shares[side] * found, 0)
            weight = weight + there * shares[side]
        with np.errstate(invalid="ignore"):
            text = weighted / weight  # 0 / 0 is NaN: neither is there
    if media is None or text is None:
        return np.asarray(text if media is None else media)
    return np.asarray((1 - query.text_weight) * media + query.text_weight * text)
