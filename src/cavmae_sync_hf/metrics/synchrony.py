# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics of synchrony: whether a clip's audio happens when its frames show it.

Everything here is a function of similarity matrices: rows are audio windows, columns are video frames, one clip
`(windows, frames)` or many `(clips, windows, frames)`. Times are seconds.
"""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .classification import equal_error_rate, roc_auc
from .similarity import paired_similarity

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
# Moments that are so much quieter than their clip's loudest, in dB, count as silence at its ends.
LOUD_RANGE = 30.0


def _matrix(similarity: Any, dimensions: tuple[int, ...] = (2,)) -> Tensor:
    matrix = torch.as_tensor(similarity).detach().cpu().double()
    if matrix.ndim not in dimensions or matrix.numel() == 0 or matrix.shape[-1] != matrix.shape[-2]:
        shapes = " or ".join("(windows, frames)" if n == 2 else "(clips, windows, frames)" for n in dimensions)
        raise ValueError(
            f"The similarity matrix has shape {tuple(matrix.shape)}; it must be {shapes}, as many windows as frames: "
            "window i belongs to frame i."
        )
    return matrix


def _present(mask: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    present = torch.ones(shape, dtype=torch.bool) if mask is None else torch.as_tensor(mask).detach().cpu().bool()
    if tuple(present.shape) != shape:
        raise ValueError(
            f"`{name}` has shape {tuple(present.shape)}; it must be {shape}, one entry per row or column."
        )
    return present


def _check_finite(matrix: Tensor, valid: Tensor) -> None:
    wrong = (valid & ~torch.isfinite(matrix)).nonzero()
    if len(wrong):
        raise ValueError(
            f"The similarity matrix is not finite at {tuple(wrong[0].tolist())}; mark that window or frame as absent "
            "in its mask."
        )


@dataclass(frozen=True)
class SyncScores:
    """How well each moment of a clip fits.

    Args:
        times_present: Whether window and frame i are both present, shape `(frames,)`.
        per_frame: Similarity of window i with frame i, NaN where one is absent, shape `(frames,)`.
        mean: Mean over the present moments.
        maximum: Highest of them.
        minimum: Lowest of them.
        quantiles: `{0.1: ..., 0.25: ..., 0.5: ..., 0.75: ..., 0.9: ...}` of them.
    """

    times_present: Tensor
    per_frame: Tensor
    mean: float
    maximum: float
    minimum: float
    quantiles: dict[float, float]


def sync_scores(similarity: Any, *, window_mask: Any = None, frame_mask: Any = None) -> SyncScores:
    """Summarise the diagonal of one clip's matrix.

    Args:
        similarity: Shape `(frames, frames)`: window i is centred on frame i.
        window_mask: True where an audio window is present, shape `(frames,)`.
        frame_mask: True where a frame is present, shape `(frames,)`.

    Raises:
        ValueError: If the matrix is not square, no moment is present, or a present one is not finite.
    """
    matrix = _matrix(similarity)
    count = len(matrix)
    present = _present(window_mask, "window_mask", (count,)) & _present(frame_mask, "frame_mask", (count,))
    if not present.any():
        raise ValueError(f"None of the {count} moments has both its window and its frame; there is nothing to score.")
    diagonal = matrix.diagonal()
    _check_finite(diagonal, present)
    here = diagonal[present]
    levels = torch.quantile(here, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return SyncScores(
        times_present=present,
        per_frame=diagonal.masked_fill(~present, torch.nan),
        mean=float(here.mean()),
        maximum=float(here.max()),
        minimum=float(here.min()),
        quantiles=dict(zip(QUANTILES, levels, strict=True)),
    )


@dataclass(frozen=True)
class AlignmentTest:
    """The diagonal of a clip's matrix against the rest of it.

    Args:
        diagonal_mean: Mean similarity of windows with their own frames.
        off_diagonal_mean: Mean similarity of windows with frames at least `exclude` moments away.
        effect: Difference of the two in standard deviations of the off-diagonal.
        z_score: Distance of the diagonal's mean from that of a random assignment of windows to frames, in standard
            deviations of such assignments.
        p_value: Share of random assignments that fit at least as well, one-sided.
    """

    diagonal_mean: float
    off_diagonal_mean: float
    effect: float
    z_score: float
    p_value: float


def alignment_test(
    similarity: Any,
    *,
    window_mask: Any = None,
    frame_mask: Any = None,
    exclude: int = 1,
    permutations: int = 9999,
    seed: int = 0,
) -> AlignmentTest:
    """Compare the diagonal with what chance would make it.

    `z_score` compares the diagonal with a random one-to-one assignment of windows to frames, whose mean and variance
    are known exactly (Hoeffding 1951): with the rows' and columns' means taken out, the variance of the sum is the
    sum of squares over n - 1. So a frame that fits every window, or a window that fits every frame, counts for
    nothing. `p_value` counts random assignments, the true one included. Neighbouring moments look and sound alike, so
    within one clip neither is a probability that the clip is in sync: compare clips of one kind.

    Args:
        similarity: Shape `(frames, frames)`: window i is centred on frame i.
        window_mask: True where an audio window is present, shape `(frames,)`.
        frame_mask: True where a frame is present, shape `(frames,)`.
        exclude: `off_diagonal_mean` and `effect` leave out pairs closer than this many moments.
        permutations: Random assignments drawn.
        seed: Of the draw.

    Returns:
        `effect` and `z_score` are 0 where all entries are equal.

    Raises:
        ValueError: On fewer than 3 present moments, an `exclude` that leaves no pair, or entries that are not finite.
    """
    matrix = _matrix(similarity)
    count = len(matrix)
    kept = _present(window_mask, "window_mask", (count,)) & _present(frame_mask, "frame_mask", (count,))
    moments = kept.nonzero()[:, 0]
    if len(moments) < 3:
        raise ValueError(f"Only {len(moments)} moments have both window and frame; the test needs 3 or more.")
    matrix = matrix[moments][:, moments]
    _check_finite(matrix, torch.ones_like(matrix, dtype=torch.bool))
    far = (moments[:, None] - moments).abs() >= max(exclude, 1)
    if not far.any():
        raise ValueError(f"`exclude` is {exclude}, which leaves no pair among {len(moments)} moments; lower it.")
    diagonal, others = matrix.diagonal().mean(), matrix[far]
    spread = float(others.std(correction=0))

    size = len(moments)
    centred = matrix - matrix.mean(dim=0) - matrix.mean(dim=1, keepdim=True) + matrix.mean()
    deviation = float((centred.square().sum() / (size - 1)).sqrt()) / size
    # Entries that are equal but for rounding have a deviation that means nothing.
    tiny = 1e-12 * max(float(matrix.abs().max()), 1e-300)
    generator = np.random.default_rng(seed)
    values, rows = centred.numpy(), np.arange(size)
    observed = values[rows, rows].mean()
    drawn = generator.permuted(np.tile(rows, (permutations, 1)), axis=1)
    at_least = int((values[rows, drawn].mean(axis=1) >= observed - tiny).sum())
    return AlignmentTest(
        diagonal_mean=float(diagonal),
        off_diagonal_mean=float(others.mean()),
        effect=float(diagonal - others.mean()) / spread if spread > tiny else 0.0,
        z_score=float(observed) / deviation if deviation > tiny else 0.0,
        p_value=(at_least + 1) / (permutations + 1),
    )


def win_rate(true_scores: Any, other_scores: Any) -> float:
    """Share of comparisons that the true score wins; equal scores count half.

    Args:
        true_scores: Scores of what is right, any shape.
        other_scores: Scores of the alternatives, of a shape that broadcasts with it.

    Raises:
        ValueError: If there is nothing to compare, or NaN among it.
    """
    true, other = torch.broadcast_tensors(
        torch.as_tensor(true_scores).cpu().double(), torch.as_tensor(other_scores).cpu().double()
    )
    if true.numel() == 0:
        raise ValueError("There are no scores to compare.")
    if bool(true.isnan().any() | other.isnan().any()):
        raise ValueError("The scores hold NaN; leave out what could not be scored.")
    return float((true > other).double().mean() + 0.5 * (true == other).double().mean())


def sync_detection(aligned_scores: Any, shifted_scores: Any) -> dict[str, float]:
    """How well one threshold on the score tells aligned clips from shifted ones.

    Args:
        aligned_scores: Scores of clips in sync, shape `(aligned clips,)`.
        shifted_scores: Scores of clips out of sync, shape `(shifted clips,)`.

    Returns:
        `auc` and `equal_error_rate`.

    Raises:
        ValueError: If either is empty or holds NaN.
    """
    aligned, shifted = (
        torch.as_tensor(scores).cpu().double().flatten() for scores in (aligned_scores, shifted_scores)
    )
    if len(aligned) == 0 or len(shifted) == 0:
        raise ValueError(f"There are {len(aligned)} aligned and {len(shifted)} shifted scores; both are needed.")
    labels = torch.cat([torch.ones_like(aligned), torch.zeros_like(shifted)])
    scores = torch.cat([aligned, shifted])
    return {"auc": roc_auc(labels, scores), "equal_error_rate": equal_error_rate(labels, scores)}


def default_min_shift(step: float, moments: int) -> float:
    """The smallest shift that clips of so many moments are asked for: a fifth of their length, 2 s at most."""
    return min(2.0, step * moments / 5)


def shift_discrimination(
    similarity: Any,
    *,
    step: float,
    min_shift: float | None = None,
    max_shift: float | None = None,
    min_overlap: int | None = None,
    window_mask: Any = None,
    frame_mask: Any = None,
    other_similarity: Any = None,
    other_window_mask: Any = None,
) -> dict[str, float | int]:
    """How well the true alignment is told from the same clip's audio shifted by some seconds.

    Shifting the audio by k moments puts window `i + k` on frame `i`: the k-th diagonal of the same matrix. Both
    directions count. True and shifted alignment are compared as means over the same frames, those that still have a
    window after the shift.

    **The control** is the same question with another clip's audio at the same moments. Clips of one kind share when
    things happen in them (all begin and end in silence, say), and a model that knows this alone tells true from
    shifted as well with foreign audio. Only what exceeds the control comes from the clip itself.

    Args:
        similarity: Shape `(clips, frames, frames)` or `(frames, frames)`, moments equally far apart.
        step: Seconds between moments.
        min_shift: Smallest shift in seconds; default: `default_min_shift`.
        max_shift: Largest shift in seconds; by default as far as the overlap allows.
        min_overlap: Frames that must still have a window after the shift; by default a quarter of them.
        window_mask: True where an audio window is present, of the matrix's shape without its last dimension.
        frame_mask: True where a frame is present, of the same shape.
        other_similarity: Of another clip's windows with these frames, of the shape of `similarity`, for the control.
        other_window_mask: True where such a window is present.

    Returns:
        `accuracy`: share of comparisons (all clips, all shifts) won by the true alignment, ties counting half, clips
        weighing alike; chance is 0.5. `accuracy_low`, `accuracy_high`: its interval of 95 %, see
        `bootstrap_interval`. `all_shifts_accuracy`: share of clips that beat every shift. `auc` and
        `equal_error_rate` of one threshold over all clips, for the true alignment over all frames against every
        shift. `clips`: clips compared. `comparisons`: their number. With `other_similarity` also
        `other_audio_accuracy`, `other_audio_auc`, and `beyond_other_audio`, the accuracy less that of the control
        over the clips that have both, with `..._low` and `..._high`.

    Raises:
        ValueError: If no shift fits, no clip can be compared, or present entries are not finite.
    """
    matrix = _matrix(similarity, dimensions=(2, 3))
    if min_shift is None:
        min_shift = default_min_shift(step, matrix.shape[-1])
    shifts, needed = _shifts(
        matrix.shape[-1], step=step, min_shift=min_shift, max_shift=max_shift, min_overlap=min_overlap
    )
    per_clip, metrics = _compare_shifts(matrix, shifts, needed, window_mask, frame_mask)
    interval = bootstrap_interval(per_clip[~per_clip.isnan()])
    metrics |= {"accuracy_low": interval[0], "accuracy_high": interval[1]}
    if other_similarity is not None:
        others = _matrix(other_similarity, dimensions=(2, 3))
        if others.shape != matrix.shape:
            raise ValueError(
                f"`other_similarity` has shape {tuple(others.shape)}; it must be that of `similarity`, "
                f"{tuple(matrix.shape)}."
            )
        of_others, found = _compare_shifts(others, shifts, needed, other_window_mask, frame_mask)
        metrics |= {"other_audio_accuracy": found["accuracy"], "other_audio_auc": found["auc"]}
        beyond = (per_clip - of_others)[~(per_clip - of_others).isnan()]
        if len(beyond):
            low, high = bootstrap_interval(beyond)
            metrics |= {
                "beyond_other_audio": float(beyond.mean()),
                "beyond_other_audio_low": low,
                "beyond_other_audio_high": high,
            }
    return metrics


def shifts_with_control(
    audio_embeds: Tensor,
    video_embeds: Tensor,
    counted: Tensor,
    partners: Any = None,
    *,
    audio_mask: Tensor,
    video_mask: Tensor,
    step: float,
    min_shift: float | None = None,
) -> dict[str, float | int]:
    """`shift_discrimination` of clips, and as its control of their frames with the audio of `other_clips`.

    Args:
        audio_embeds: Shape `(clips, frames, hidden)`.
        video_embeds: Of the same shape.
        counted: Which moments count, `(clips, frames)` bool.
        partners: As of `other_clips`.
        audio_mask: True where a window is present, `(clips, frames)`.
        video_mask: True where a frame is present, `(clips, frames)`.
        step, min_shift: As of `shift_discrimination`.

    Returns:
        As `shift_discrimination`; without the control where the clips hold no other one for each.
    """
    controls: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        others = other_clips(len(audio_embeds), partners)
        controls["other_similarity"] = audio_embeds[others] @ video_embeds.transpose(1, 2)
        controls["other_window_mask"] = audio_mask[others] & counted
    return shift_discrimination(
        audio_embeds @ video_embeds.transpose(1, 2), step=step, min_shift=min_shift,
        window_mask=audio_mask & counted, frame_mask=video_mask & counted, **controls,
    )  # fmt: skip


def bootstrap_interval(values: Any, *, share: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The interval in which the mean of values lies, by drawing as many of them anew with replacement (percentiles).

    Args:
        values: One per clip, shape `(clips,)`.
        share: Of the draws' means that lie inside.
        draws: How often.
        seed: Of the draws.

    Raises:
        ValueError: There are no values, or NaN among them.
    """
    given = np.asarray(torch.as_tensor(values).cpu().double())
    if given.ndim != 1 or not len(given) or np.isnan(given).any():
        raise ValueError(f"The values have shape {given.shape}; give one number per clip, none of them NaN.")
    drawn = np.random.default_rng(seed).integers(len(given), size=(draws, len(given)))
    low, high = np.quantile(given[drawn].mean(axis=1), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _compare_shifts(
    matrix: Tensor, shifts: list[int], needed: int, window_mask: Any, frame_mask: Any
) -> tuple[Tensor, dict[str, float | int]]:
    """Each clip's share of won comparisons, NaN where it has none, and the metrics over all clips."""
    shape = tuple(matrix.shape[:-1])
    windows, frames = _present(window_mask, "window_mask", shape), _present(frame_mask, "frame_mask", shape)
    if matrix.ndim == 2:
        matrix, windows, frames = matrix[None], windows[None], frames[None]
    valid = windows[:, :, None] & frames[:, None]
    _check_finite(matrix, valid)
    matrix = matrix.masked_fill(~valid, 0.0)
    own, own_valid = (part.diagonal(dim1=1, dim2=2) for part in (matrix, valid))
    true, shifted, kept = [], [], []
    for shift in shifts:
        # Window i + shift on frame i: rows are windows, so this diagonal lies below the main one for shift > 0.
        moved, moved_valid = (part.diagonal(-shift, dim1=1, dim2=2) for part in (matrix, valid))
        first = max(0, -shift)
        span = slice(first, first + moved.shape[1])
        both = moved_valid & own_valid[:, span]
        count = both.sum(dim=1)
        true.append((own[:, span] * both).sum(dim=1) / count.clamp(min=1))
        shifted.append((moved * both).sum(dim=1) / count.clamp(min=1))
        kept.append(count >= needed)
    true_scores, shifted_scores, counted = torch.stack(true, 1), torch.stack(shifted, 1), torch.stack(kept, 1)
    usable = counted.any(dim=1)
    if not usable.any():
        raise ValueError(f"No clip has {needed} present frames that keep a present window after a shift.")
    wins = (true_scores > shifted_scores).double() + 0.5 * (true_scores == shifted_scores).double()
    # 0 / 0 is NaN: a clip without comparisons.
    per_clip = (wins * counted).sum(dim=1) / counted.sum(dim=1)
    perfect = ((true_scores > shifted_scores) | ~counted).all(dim=1)[usable]
    whole = own.masked_fill(~own_valid, 0).sum(dim=1)[usable] / own_valid.sum(dim=1)[usable]
    return per_clip, {
        "accuracy": float(per_clip[usable].mean()),
        "all_shifts_accuracy": float(perfect.double().mean()),
        **sync_detection(whole, shifted_scores[counted]),
        "clips": int(usable.sum()),
        "comparisons": int(counted.sum()),
    }


def loud_moments(levels: Any) -> Tensor:
    """The moments of each clip from its first loud one to its last, without the silence before and after.

    Args:
        levels: Loudness of every moment in dB, `(clips, frames)`; NaN where there is no audio.

    Returns:
        bool `(clips, frames)`. A moment is loud where it is within 30 dB of its clip's loudest.
    """
    given = torch.as_tensor(levels).cpu().double()
    given = given.masked_fill(given.isnan(), -math.inf)
    loudest = given.amax(dim=1, keepdim=True)
    loud = (given >= loudest - LOUD_RANGE) & loudest.isfinite()
    return (loud.cumsum(dim=1) > 0) & (loud.flip(1).cumsum(dim=1).flip(1) > 0)


def other_clips(count: int, partners: Any = None) -> Tensor:
    """For each of so many clips another one, whose audio stands beside its own as a control.

    Args:
        count: Of clips.
        partners: Number of each clip's temporal twin, which shares its sounds and is no control; `None` or -1 where
            there is none.

    Returns:
        Numbers `(count,)`: those of the clips some places further on, every clip once.

    Raises:
        ValueError: There is one clip alone, or no such order.
    """
    own = torch.arange(count)
    twins = torch.tensor([-1 if partner is None else int(partner) for partner in partners or [None] * count])
    for places in range(1, count):
        others = own.roll(-places)
        if not bool((others == twins).any()):
            return others
    raise ValueError(f"{count} clips hold no other clip for each, which the control with another clip's audio needs.")


def _shifts(
    count: int, *, step: float, min_shift: float, max_shift: float | None, min_overlap: int | None
) -> tuple[list[int], int]:
    """Shifts in moments, both ways, and the overlap they must leave."""
    if not step > 0 or not min_shift > 0:
        raise ValueError(f"`step` is {step} and `min_shift` is {min_shift}; both are seconds above 0.")
    needed = max(1, count // 4) if min_overlap is None else min_overlap
    if needed < 1:
        raise ValueError(f"`min_overlap` is {needed}; at least 1 frame must be compared.")
    limit = float("inf") if max_shift is None else max_shift
    # The sum keeps a shift of exactly `min_shift` in spite of rounding: 10 / 16 seconds is no round number.
    sizes = [k for k in range(1, count - needed + 1) if min_shift <= k * step + 1e-9 and k * step - 1e-9 <= limit]
    if not sizes:
        raise ValueError(
            f"No shift from {min_shift} s to {limit} s leaves {needed} of {count} frames {step} s apart; use longer "
            "clips, a smaller `min_shift` or a smaller `min_overlap`."
        )
    return [-k for k in reversed(sizes)] + sizes, needed


def temporal_pair_discrimination(
    audio_embeds: Tensor | np.ndarray,
    video_embeds: Tensor | np.ndarray,
    partners: Any,
    strategy: str = "diagonal_mean",
    *,
    audio_mask: Any = None,
    video_mask: Any = None,
) -> dict[str, float | int]:
    """Share of clips whose own partner is found, among two clips that differ only in when things sound.

    Args:
        audio_embeds: Shape `(clips, windows, hidden)`.
        video_embeds: Shape `(clips, frames, hidden)`.
        partners: Index of each clip's twin, shape `(clips,)`; -1 or None where it has none.
        strategy: How clips are compared; see `clip_similarity`.
        audio_mask: True where a window is present, shape `(clips, windows)`.
        video_mask: True where a frame is present, shape `(clips, frames)`.

    Returns:
        `audio_to_video`: share of clips whose audio is closer to their own frames than to the twin's, ties counting
        half; `video_to_audio`; `accuracy`, their mean; chance is 0.5. `clips`: clips with a twin.

    Raises:
        ValueError: If a partner is out of range or the clip itself, or no clip has one.
    """
    count = len(audio_embeds)
    twins = torch.tensor([-1 if partner is None else int(partner) for partner in partners])
    if len(twins) != count:
        raise ValueError(f"There are {len(twins)} partners for {count} clips.")
    own = (twins >= 0).nonzero()[:, 0]
    if not len(own):
        raise ValueError("No clip has a partner; this metric needs clips in pairs, such as SyncWorld's temporal ones.")
    wrong = own[(twins[own] >= count) | (twins[own] == own)]
    if len(wrong):
        clip = int(wrong[0])
        raise ValueError(f"Clip {clip} has partner {int(twins[clip])}; it must be another of the {count} clips.")
    twin = twins[own]

    def scores(audio: Tensor, video: Tensor) -> Tensor:
        return paired_similarity(
            _pick(audio_embeds, audio),
            _pick(video_embeds, video),
            strategy,
            audio_mask=None if audio_mask is None else _pick(audio_mask, audio),
            video_mask=None if video_mask is None else _pick(video_mask, video),
        )

    true = scores(own, own)
    to_video, to_audio = win_rate(true, scores(own, twin)), win_rate(true, scores(twin, own))
    return {
        "audio_to_video": to_video,
        "video_to_audio": to_audio,
        "accuracy": (to_video + to_audio) / 2,
        "clips": len(own),
    }


def _pick(values: Any, clips: Tensor) -> Any:
    return values[clips.numpy()] if isinstance(values, np.ndarray) else values[clips.to(values.device)]
