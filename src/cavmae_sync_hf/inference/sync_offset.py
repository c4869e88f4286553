# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""By how much is the sound late, and how sure is that?

An offset's score is the mean contrast of all frames with the windows so much later: the training objective itself,
evaluated at that offset. A parabola tells where between its neighbours the best one lies. How sure it is comes from
the clip itself: pieces of it are drawn again and again, with repetition, and each draw has a winner of its own (a
bootstrap of blocks, which keeps how alike neighbouring moments are).
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["OffsetFinding", "find_offset"]

_EQUAL = 1e-9


@dataclass(frozen=True)
class OffsetFinding:
    """What the offset curve says.

    Attributes:
        offset: Seconds by which the sound is late (negative: early); `None` when too few offsets can be tried.
        confidence: Share of draws whose winner is at most one step away from the winner; 0 without one.
        interval: 5 % and 95 % of the draws' winners, seconds, half a step wider to both sides.
        offsets: The offsets tried, ascending, seconds, `(offsets,)`.
        scores: Mean contrast at each, nats, `(offsets,)`.
        at_edge: Whether the winner is the first or last offset tried, so that the true one may lie beyond.
    """

    offset: float | None
    confidence: float
    interval: tuple[float, float] | None
    offsets: np.ndarray
    scores: np.ndarray
    at_edge: bool


def find_offset(
    contrast: np.ndarray,
    hop: float,
    *,
    block: int,
    min_overlap: float = 0.5,
    draws: int = 400,
    seed: int = 0,
) -> OffsetFinding:
    """Find the offset at which sound and picture fit best.

    Args:
        contrast: From `band_contrast`, `(moments, 2 * reach + 1)`.
        hop: Seconds between moments, and between offsets.
        block: Moments in a row that are drawn together.
        min_overlap: Share of the present frames that must have a window at an offset for it to be tried.
        draws: How often pieces are drawn.
        seed: Of the draws.
    """
    width = contrast.shape[1]
    present = np.isfinite(contrast)
    sums = np.where(present, contrast, 0.0).astype(np.float64)
    needed = max(1.0, min_overlap * present.any(axis=1).sum())
    tried = np.flatnonzero(present.sum(axis=0) >= needed)
    steps = tried - width // 2
    edges = np.arange(0, len(contrast), max(1, block))
    block_sums = np.add.reduceat(sums, edges, axis=0)[:, tried]
    block_counts = np.add.reduceat(present.astype(np.float64), edges, axis=0)[:, tried]
    scores = block_sums.sum(axis=0) / np.maximum(block_counts.sum(axis=0), 1)
    if len(tried) < 3:
        return OffsetFinding(None, 0.0, None, steps * hop, scores, False)
    # Among equal scores the smallest offset wins.
    best = int(np.where(scores >= scores.max() - _EQUAL, -np.abs(steps), -width).argmax())
    weights = np.random.default_rng(seed).multinomial(len(edges), np.full(len(edges), 1 / len(edges)), size=draws)
    counts = weights @ block_counts
    drawn = np.where(counts > 0, weights @ block_sums / np.maximum(counts, 1), -np.inf)
    winners = drawn.argmax(axis=1)
    low, high = (float(steps[0] + place) * hop for place in np.quantile(winners, [0.05, 0.95]))
    return OffsetFinding(
        offset=float(steps[best] + _between(scores, best)) * hop,
        confidence=float((np.abs(winners - best) <= 1).mean()),
        interval=(low - hop / 2, high + hop / 2),
        offsets=steps * hop,
        scores=scores,
        at_edge=best in (0, len(steps) - 1),
    )


def _between(scores: np.ndarray, best: int) -> float:
    """Where between its neighbours the top of a parabola through the three lies, in steps from -0.5 to 0.5."""
    if not 0 < best < len(scores) - 1:
        return 0.0
    before, top, after = scores[best - 1 : best + 2]
    bend = before - 2 * top + after
    return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < -_EQUAL else 0.0
