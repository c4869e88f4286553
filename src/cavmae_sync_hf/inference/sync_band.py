# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Similarities of audio windows and frames near each other in time, and the offset at which they fit best.

Moments come one batch after the other, as embeddings of an audio window and of a frame each. Kept are the embeddings
of the last few seconds, a *band* of similarities around the diagonal (one row per frame, one column per offset), and
the *outline*: at most so many moments, evenly spread, whose whole matrix is made in the end.

An offset's score is the mean contrast of all frames with the windows so much later: the training objective itself,
evaluated at that offset. A parabola tells where between its neighbours the best one lies. How sure it is comes from
the video itself: pieces of it are drawn again and again, with repetition, and each draw has a winner of its own (a
bootstrap of blocks, which keeps how alike neighbouring moments are).

Nothing here depends on a model; everything is NumPy, NaN standing for pairs that do not exist.
"""

from dataclasses import dataclass

import numpy as np

_ROWS_AT_A_TIME = 4096
_EQUAL = 1e-9


class Band:
    """The similarities of every frame with the windows at most `reach` moments away, built as moments come.

    Args:
        reach: Largest distance of a window from its frame, in moments.
    """

    def __init__(self, reach: int) -> None:
        self.reach = reach
        self._closed: list[np.ndarray] = []  # rows whose windows have all come
        self._open = np.empty((0, 2 * reach + 1), dtype=np.float32)
        self._audio: np.ndarray | None = None  # embeddings of the moments of the open rows
        self._video: np.ndarray | None = None

    def add(self, audio: np.ndarray, video: np.ndarray) -> None:
        """Take the next moments.

        Args:
            audio: Embedding of each window, `(moments, hidden)` float32; NaN where it is absent.
            video: Embedding of each frame, of the same shape.
        """
        new = len(audio)
        self._audio = audio if self._audio is None else np.concatenate([self._audio, audio])
        self._video = video if self._video is None else np.concatenate([self._video, video])
        rows = np.full((new, 2 * self.reach + 1), np.nan, dtype=np.float32)
        self._open = np.concatenate([self._open, rows])
        count = len(self._audio)
        products = self._audio @ self._video.T  # (windows, frames)
        windows, frames = np.nonzero(np.abs(np.arange(count)[:, None] - np.arange(count)) <= self.reach)
        # Pairs of two earlier moments are in their rows already.
        fresh = np.maximum(windows, frames) >= count - new
        windows, frames = windows[fresh], frames[fresh]
        self._open[frames, windows - frames + self.reach] = products[windows, frames]
        done = max(0, count - self.reach)
        self._closed.append(self._open[:done])
        self._open, self._audio, self._video = self._open[done:], self._audio[done:], self._video[done:]

    def finish(self) -> np.ndarray:
        """The band, `(moments, 2 * reach + 1)` float32: row j, column `reach + k` is frame j with window j + k."""
        return np.concatenate([*self._closed, self._open])


class Outline:
    """At most `limit` moments of a video, evenly spread, as it turns out to be long.

    Args:
        limit: How many moments at most, 2 or more.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.stride = limit, 1
        self.indices: list[int] = []
        self._audio: list[np.ndarray] = []
        self._video: list[np.ndarray] = []

    def add(self, first: int, audio: np.ndarray, video: np.ndarray) -> None:
        """Take the moments from number `first` on; arrays as for `Band.add`."""
        for place in range(len(audio)):
            if (first + place) % self.stride:
                continue
            self.indices.append(first + place)
            self._audio.append(audio[place])
            self._video.append(video[place])
            if len(self.indices) > self.limit:
                self.stride *= 2
                self.indices, self._audio, self._video = self.indices[::2], self._audio[::2], self._video[::2]

    def matrix(self) -> np.ndarray:
        """Similarities of the kept moments, `(moments, moments)` float32 as `[window, frame]`."""
        return np.stack(self._audio) @ np.stack(self._video).T


def band_contrast(band: np.ndarray, temperature: float) -> np.ndarray:
    """How much better than others nearby each pair in the band fits, in nats; 0 is as well as the average.

    With s the similarities divided by the temperature, the logarithm of how much likelier than the average window of
    the band the frame finds this one, by the softmax that the contrastive loss is made of, and the same for the window
    and its frames; the mean of the two. A frame that fits all windows, or a window that fits all frames, gains nothing
    from it.

    Args:
        band: From `Band.finish`, `(moments, 2 * reach + 1)`.
        temperature: Of the model's contrastive loss.

    Returns:
        float32 of the same shape, NaN where `band` is.
    """
    count, width = band.shape
    reach = width // 2
    steps = np.arange(-reach, reach + 1)
    by_frame, by_window = np.empty(count), np.empty(count)
    parts = [slice(start, min(start + _ROWS_AT_A_TIME, count)) for start in range(0, count, _ROWS_AT_A_TIME)]
    for part in parts:
        moments = np.arange(part.start, part.stop)[:, None]
        by_frame[part] = _log_mean_exp(band[part].astype(np.float64) / temperature)
        # Window i meets frame i - k in column k.
        frames = moments - steps
        met = band[frames.clip(0, count - 1), steps + reach].astype(np.float64) / temperature
        by_window[part] = _log_mean_exp(np.where((frames >= 0) & (frames < count), met, np.nan))
    contrast = np.empty_like(band)
    for part in parts:
        windows = (np.arange(part.start, part.stop)[:, None] + steps).clip(0, count - 1)
        levels = (by_frame[part, None] + by_window[windows]) / 2
        contrast[part] = band[part].astype(np.float64) / temperature - levels
    return contrast


def _log_mean_exp(values: np.ndarray) -> np.ndarray:
    """Over the last dimension, leaving out NaN; NaN where there is nothing else."""
    present = np.isfinite(values)
    highest = np.where(present, values, -np.inf).max(axis=-1)
    usable = np.isfinite(highest)
    shifted = np.where(present, values - np.where(usable, highest, 0.0)[..., None], -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(usable, highest + np.log(np.exp(shifted).sum(axis=-1) / present.sum(axis=-1)), np.nan)


def shift_test(matrix: np.ndarray, exclude: int) -> tuple[float, int] | None:
    """Whether the diagonal stands out from what turning the whole audio track round by some time gives.

    Turning (what falls off at the end comes in again at the start) keeps how alike neighbouring moments are, which a
    random order does not; so this share is fair where moments lie close together.

    Args:
        matrix: Whole similarities of the present moments, `(moments, moments)` as `[window, frame]`.
        exclude: Turns by fewer moments than this, either way, are left out, for they hardly change anything.

    Returns:
        Share of turns (the true position counts as one) at which the mean similarity is at least that of the diagonal,
        and how many turns there were; `None` if there is none.
    """
    count = len(matrix)
    turns = np.arange(max(exclude, 1), count - max(exclude, 1) + 1)
    if not len(turns):
        return None
    frames = np.arange(count)
    true = matrix.diagonal().mean(dtype=np.float64)
    means = np.array([matrix[(frames + turn) % count, frames].mean(dtype=np.float64) for turn in turns])
    return (1 + int((means >= true - 1e-9).sum())) / (1 + len(turns)), len(turns)


@dataclass(frozen=True)
class OffsetFinding:
    """What the offset curve says.

    Attributes:
        offset: Seconds by which the audio is late (negative: early); `None` when too few offsets can be tried.
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
    """Find the offset at which audio and video fit best.

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
        return OffsetFinding(
            offset=None, confidence=0.0, interval=None, offsets=steps * hop, scores=scores, at_edge=False
        )
    # Among equal scores the smallest offset wins.
    best = int(np.where(scores >= scores.max() - _EQUAL, -np.abs(steps), -width).argmax())
    weights = np.random.default_rng(seed).multinomial(len(edges), np.full(len(edges), 1 / len(edges)), size=draws)
    counts = weights @ block_counts
    drawn = np.where(counts > 0, weights @ block_sums / np.maximum(counts, 1), -np.inf)
    winners = drawn.argmax(axis=1)
    low, high = (float(steps[0] + place) * hop for place in np.quantile(winners, [0.05, 0.95]))
    between = 0.0  # where the top of a parabola through the best and its neighbours lies, in steps from -0.5 to 0.5
    if 0 < best < len(scores) - 1:
        before, top, after = scores[best - 1 : best + 2]
        bend = before - 2 * top + after
        between = float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < -_EQUAL else 0.0
    return OffsetFinding(
        offset=float(steps[best] + between) * hop,
        confidence=float((np.abs(winners - best) <= 1).mean()),
        interval=(low - hop / 2, high + hop / 2),
        offsets=steps * hop,
        scores=scores,
        at_edge=best in (0, len(steps) - 1),
    )
