# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Alignment of a query with stored clips: scores of consecutive windows along the diagonals of their similarities.

A query of q windows and a clip of n moments have q x n similarities. Laid against the clip from moment f on, window i
meets moment f + i, and the score is the mean along that diagonal. Windows that meet nothing, because they hang over
the border of the clip, count as 0: a mean over fewer pairs would vary more, and so win too often. All diagonals of all
clips are summed at once: clips are written one after the other into one wide matrix, with a gap of q columns between
them, so that no diagonal reaches from one clip into the next.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# Similarities that are laid out at a time.
_BLOCK_VALUES = 1 << 24


class Alignments(NamedTuple):
    """Ways to lay a query against clips.

    Attributes:
        clips: Number of the clip, `(alignments,)` int64.
        firsts: Moment that the query's first window meets, `(alignments,)` int64; negative where the query begins
            before the clip does.
        scores: Mean similarity of the query's windows, `(alignments,)` float32.
        counts: Number of those pairs, `(alignments,)` int64.
        lengths: Moments from the first to the last that is met, both counted, `(alignments,)` int64.
    """

    clips: np.ndarray
    firsts: np.ndarray
    scores: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def none(cls) -> "Alignments":
        """No alignment."""
        nothing = np.zeros(0, np.int64)
        return cls(nothing, nothing, np.zeros(0, np.float32), nothing, nothing)


def align(
    similarity: np.ndarray,
    clips: np.ndarray,
    windows: np.ndarray,
    *,
    present: np.ndarray | None = None,
    min_pairs: int = 1,
) -> Alignments:
    """Score every way to lay a query against clips.

    Args:
        similarity: Of each query window and each stored moment, `(query windows, moments)`; what cannot be compared
            is NaN.
        clips: Number of the clip that each moment belongs to, `(moments,)`.
        windows: Number of each moment in its clip, `(moments,)`. Moments may come in any order, and some be missing.
        present: Which windows of the query count, `(query windows,)` bool; default: all.
        min_pairs: Alignments that compare fewer pairs are left out. So a query may hang over the borders of a clip,
            but not by more than that.

    Returns:
        The alignments, clip by clip, from the first moment to the last.
    """
    queries = len(similarity)
    if not len(clips):
        return Alignments.none()
    order = np.lexsort((windows, clips))
    clips, windows = np.asarray(clips, np.int64)[order], np.asarray(windows, np.int64)[order]
    if similarity.size > _BLOCK_VALUES and clips[0] != clips[-1]:
        # In two parts, so that the copies below stay small; no clip is cut.
        middle = len(clips) // 2
        cut = np.searchsorted(clips, clips[middle])
        cut = cut if cut else np.searchsorted(clips, clips[middle], side="right")
        parts = [
            align(similarity[:, part], clips[at], windows[at], present=present, min_pairs=min_pairs)
            for at, part in ((slice(0, cut), order[:cut]), (slice(cut, None), order[cut:]))
        ]
        return Alignments(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    # A gap within a clip is as good as one of q moments when it is longer.
    steps = np.where(np.diff(clips) == 0, np.minimum(np.diff(windows), queries), queries)
    columns = np.concatenate(([queries - 1], queries - 1 + np.cumsum(steps)))
    width = int(columns[-1]) + queries
    wide = np.full((queries, width), np.nan, np.float32)
    wide[:, columns] = similarity[:, order]
    if present is not None:
        wide[~present] = np.nan
    there = ~np.isnan(wide)
    sums = _diagonal_sums(np.where(there, wide, 0))
    counts = _diagonal_sums(there.astype(np.int32)).astype(np.int64)
    kept = np.flatnonzero(counts >= max(1, min_pairs))
    # Some moment of the clip lies under every alignment kept: the first at or after its beginning tells which clip.
    nearest = np.searchsorted(columns, kept)
    firsts = windows[nearest] - (columns[nearest] - kept)
    scores = sums[kept] / (queries if present is None else max(1, int(present.sum())))
    lengths = np.full(len(kept), queries, np.int64)
    return Alignments(clips[nearest], firsts, scores.astype(np.float32), counts[kept], lengths)


def align_sequence(similarity: np.ndarray, clips: np.ndarray, windows: np.ndarray, *, most: int) -> Alignments:
    """Score the ways in which parts of a query follow each other in clips, with gaps between them.

    The first k parts that end at moment f have the score `s[k, f] + max over g of best[k - 1, f - g]`, for gaps g of 1
    to `most` moments; of equal ones the nearest.

    Args:
        similarity: Of each part and each stored moment, `(parts, moments)`; what cannot be compared is NaN.
        clips: Number of the clip that each moment belongs to, `(moments,)`.
        windows: Number of each moment in its clip, `(moments,)`, in any order.
        most: Moments from one part to the next, at most; at least 1.

    Returns:
        For every moment that the last part can meet, the best; its score is the mean over the parts.
    """
    if not len(clips):
        return Alignments.none()
    order = np.lexsort((windows, clips))
    clips, windows = np.asarray(clips, np.int64)[order], np.asarray(windows, np.int64)[order]
    # Clips lie so far apart in one row that no part reaches from one into the next.
    steps = np.where(np.diff(clips) == 0, np.minimum(np.diff(windows), most + 1), most + 1)
    columns = np.concatenate(([0], np.cumsum(steps)))
    row = np.full(int(columns[-1]) + 1, -1, np.int64)
    row[columns] = np.arange(len(columns))
    wide = np.full((len(similarity), len(row)), -np.inf)
    wide[:, columns] = np.nan_to_num(similarity[:, order], nan=-np.inf)
    best, first = wide[0], np.arange(len(row))
    for scores in wide[1:]:
        earlier = np.concatenate((np.full(most, -np.inf), best[:-1]))
        gaps = np.lib.stride_tricks.sliding_window_view(earlier, most)[:, ::-1].argmax(axis=1)
        came = np.maximum(np.arange(len(row)) - 1 - gaps, 0)
        reached = np.where(np.arange(len(row)) - 1 - gaps >= 0, best[came], -np.inf)
        best, first = scores + reached, first[came]
    kept = np.flatnonzero(np.isfinite(best))
    begins, ends = row[first[kept]], row[kept]
    return Alignments(
        clips=clips[ends],
        firsts=windows[begins],
        scores=(best[kept] / len(wide)).astype(np.float32),
        counts=np.full(len(kept), len(wide), np.int64),
        lengths=windows[ends] - windows[begins] + 1,
    )


def _diagonal_sums(values: np.ndarray) -> np.ndarray:
    """Sum of `values[i, c + i]` over the rows i, for each column c from which on the diagonal fits."""
    rows, width = values.shape
    values = np.ascontiguousarray(values)
    down, right = values.strides
    diagonals = np.lib.stride_tricks.as_strided(
        values, (rows, width - rows + 1), (down + right, right), writeable=False
    )
    return diagonals.sum(axis=0, dtype=np.float64)


def best_apart(
    scores: np.ndarray,
    groups: np.ndarray,
    times: np.ndarray,
    *,
    top: int,
    min_gap: float,
    per_group: int | None = None,
    lengths: np.ndarray | None = None,
) -> list[int]:
    """Pick the best, so that none of one group lies too near a better one in time (non-maximum suppression).

    Args:
        scores: Higher is better, `(candidates,)`.
        groups: What must lie apart belongs to one group: a file, `(candidates,)`.
        times: Seconds in it, `(candidates,)`.
        top: How many are picked at most.
        min_gap: Least distance in time within a group, seconds.
        per_group: How many of one group are picked at most; default: any number.
        lengths: Of each, seconds around its time, `(candidates,)`; then those of one group do not overlap, either.

    Returns:
        Their places, best first; of equal scores the first comes first.
    """
    picked: list[int] = []
    taken: dict[int, list[tuple[float, float]]] = {}
    for place in _in_order(scores):
        group, time = int(groups[place]), float(times[place])
        half = 0.0 if lengths is None else float(lengths[place]) / 2
        near = taken.setdefault(group, [])
        if per_group is not None and len(near) >= per_group:
            continue
        # Times carry rounding errors of their sums.
        if any(abs(time - other) < max(min_gap, half + reach) - 1e-6 for other, reach in near):
            continue
        near.append((time, half))
        picked.append(int(place))
        if len(picked) == top:
            break
    return picked


def _in_order(scores: np.ndarray, first: int = 4096) -> Iterable[int]:
    """Places by falling score; only as many are sorted as are asked for."""
    done = 0
    while done < len(scores):
        count = min(len(scores), max(first, 4 * done))
        if count < len(scores):
            part = np.argpartition(-scores, count - 1)[:count]
            # All that equal the last one come along, so that ties are ordered by place, whatever the portions.
            part = np.flatnonzero(scores >= scores[part].min())
        else:
            part = np.arange(len(scores))
        ordered = part[np.argsort(-scores[part], kind="stable")]
        yield from ordered[done:].tolist()
        done = len(ordered)
