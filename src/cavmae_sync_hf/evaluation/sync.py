# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Synchrony on a set of clips: audio that belongs to its frames in time told from audio that does not."""

import math
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from ..data.failures import Failure
from ..files import plain
from ..inference.sync import SyncResult, sync_from_embeddings
from ..metrics.synchrony import (
    alignment_test,
    bootstrap_interval,
    default_min_shift,
    loud_moments,
    other_clips,
    shifts_with_control,
    sync_detection,
    sync_scores,
    temporal_pair_discrimination,
)
from ..model.errors_cavmae_sync import EvaluationError, Hint
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..syncworld import find_truth, temporal_partners
from .clips import EvaluationClips, RunOptions, open_evaluation
from .protocols import SYNC_PROTOCOLS, SyncProtocol, find_protocol, modify
from .retrieval import ClipEmbeddings, embed_clips

# Seconds within which an offset counts as found, and by which audio is shifted to be told from its own.
OFFSET_LIMITS, OFFSET_SHIFTS = (0.04, 0.08, 0.2), (0.1, 0.2, 0.4)
_MIN_MOMENTS = 3
SCORES = ("mean", "minimum", "p10", "median", "z_score")
# Clips whose moments are this much closer or further apart than in most cannot be shifted by the same seconds.
_STEP_TOLERANCE = 0.05


def evaluate_sync(
    model: CavMaeSyncModel,
    processor: CavMaeSyncProcessor,
    data: Any,
    protocol: str | SyncProtocol = "shifted",
    *,
    min_shift: float | None = None,
    max_offset: float | None = None,
    seconds: float | None = None,
    moments: Literal["all", "loud", "captions"] | None = None,
    num_frames: int | None = None,
    score: str | None = None,
    positive: str | int | None = None,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Synchrony on a set of clips, under a protocol.

    Args:
        model: With both towers, in evaluation mode.
        processor: Its processor.
        data: A folder of shards, a folder or list of videos, a SyncWorld split, or what else `read_source` lists. In a
            SyncWorld of temporal pairs the right partner is asked for, too.
        protocol: One of `SYNC_PROTOCOLS`, by name, or one of your own.
        min_shift: Another smallest shift, seconds (protocols with shifts).
        max_offset: Another largest offset, seconds (`"offsets"`).
        seconds: Use so much of the middle of each clip's moments alone (`"offsets"`).
        moments: Which moments count, as in `SyncProtocol` (protocols without labels).
        num_frames: Moments per clip; default: the processor's. Offsets are found in steps of the time between two.
        score: Another of `SCORES` to be the `auc` (`"labelled"`).
        positive: The label, name or number, of clips in sync (`"labelled"`; all others are out of sync).
        options: See `RunOptions`.

    Returns:
        A results record, see `make_record`. `"shifted"` and its kin: those of `shift_discrimination` with another
        clip's audio as the control, `pair_*` of temporal pairs, and mean similarity of the same and of other moments.
        `"offsets"`: for each limit of `OFFSET_LIMITS` the share of clips whose offset is found to within it, with its
        interval of 95 %, the share with another clip's audio, and chance; `median_error` in seconds; `shifted_..._auc`
        of telling the true alignment from one shifted by so many seconds, and `other_audio_auc_...` of telling a
        clip's own audio from another's, by the mean contrast without an offset and at the best one. Beside the
        metrics `offsets` has the offset of each clip, seconds, as of `SyncResult`.
        `"labelled"`: `auc` and `equal_error_rate` of the protocol's score and, with its name before them, of each.

    Raises:
        ValueError: The protocol, the labels or the data cannot be used; the message says why.
    """
    rules = modify(
        find_protocol(protocol, SYNC_PROTOCOLS), min_shift=min_shift, max_offset=max_offset, seconds=seconds,
        moments=moments, num_frames=num_frames, score=score,
    )  # fmt: skip
    if seconds is not None and not seconds > 0:
        raise EvaluationError(f"`seconds` is {seconds}; it must be above 0.")
    if rules.score not in SCORES:
        raise EvaluationError(f"The score {rules.score!r} is none; choose one of {', '.join(SCORES)}.")
    if rules.truth == "labels" and positive is None:
        hint = Hint("positive", "LABEL", "name it")
        raise EvaluationError(f"The protocol {rules.name} needs the label of clips in sync.", hint=hint)
    clips = open_evaluation(data, processor, rules, options)
    embeddings = embed_clips(model, clips)
    settings: dict[str, Any]
    beside_metrics: dict[str, Any] = {}
    if rules.truth == "labels":
        metrics, settings = _labelled(clips, embeddings, rules, positive), {"positive": positive}
    else:
        kept, step = _of_one_length(clips, embeddings)
        twins = _partners(clips, embeddings, data)
        counted = _counted(clips, embeddings, rules.moments) & kept[:, None]
        settings = {"seconds_between_moments": round(step, 6)}
        if rules.truth == "offsets":
            metrics, beside_metrics["offsets"] = _offsets(
                model, clips, embeddings, counted, twins, step=step, rules=rules
            )
        else:
            smallest = rules.min_shift or default_min_shift(step, embeddings.audio.shape[1])
            metrics = _shifted(embeddings, counted, twins, step=step, min_shift=smallest)
            settings["smallest_shift"] = round(smallest, 6)
    record = clips.record("sync", metrics, model=model, frames_per_clip=embeddings.audio.shape[1], **settings)
    return record | beside_metrics


def _shifted(
    embeddings: ClipEmbeddings, counted: Tensor, twins: list[int | None] | None, *, step: float, min_shift: float
) -> dict[str, float | int]:
    """Every clip against its own audio shifted, and another's likewise, over the moments that count; and all against
    their temporal twins where there are some."""
    similarity = embeddings.similarity
    windows, frames = embeddings.audio_mask & counted, embeddings.video_mask & counted
    found = shifts_with_control(
        embeddings.audio, embeddings.video, counted, twins, audio_mask=embeddings.audio_mask,
        video_mask=embeddings.video_mask, step=step, min_shift=min_shift,
    )  # fmt: skip
    metrics = {key: value for key, value in found.items() if key != "clips"}
    both = windows[:, :, None] & frames[:, None]
    own = torch.eye(similarity.shape[-1], dtype=torch.bool).expand_as(both)
    metrics["same_moment_similarity"] = float(similarity[both & own].mean())
    metrics["other_moment_similarity"] = float(similarity[both & ~own].mean())
    if twins is not None:
        pairs = temporal_pair_discrimination(
            embeddings.audio,
            embeddings.video,
            twins,
            audio_mask=embeddings.audio_mask,
            video_mask=embeddings.video_mask,
        )
        metrics |= {f"pair_{key}": value for key, value in pairs.items()}
    return metrics


def _offsets(
    model: CavMaeSyncModel, clips: EvaluationClips, embeddings: ClipEmbeddings, counted: Tensor,
    twins: list[int | None] | None, *, step: float, rules: SyncProtocol,
) -> tuple[dict[str, float | int], dict[str, float | None]]:  # fmt: skip
    """What `measure_sync` finds of clips in sync, and of their frames with another clip's audio; offsets by clip.

    Frames count as `counted` says, windows wherever they are: at an offset, speech meets the silence beside it.
    """
    if rules.seconds is not None:
        # The middle of what counts.
        place = counted.cumsum(dim=1) - counted.sum(dim=1, keepdim=True) / 2 - 0.5
        counted = counted & (place.abs() * step <= rules.seconds / 2)
    # Of clips that are too short or too quiet nothing can be told, of their own audio or of another's.
    usable = (counted & embeddings.audio_mask & embeddings.video_mask).sum(dim=1) >= _MIN_MOMENTS
    for row in (~usable).nonzero()[:, 0].tolist():
        name = clips.ids[embeddings.places[row]]
        if not any(failure.name == name for failure in clips.unusable):
            clips.leave_out(Failure(name, f"has fewer than {_MIN_MOMENTS} moments that count, with audio and frame."))
    rows = usable.nonzero()[:, 0]
    kept_twins = None
    if twins is not None:
        number = {row: place for place, row in enumerate(rows.tolist())}
        kept_twins = [None if twins[row] is None else number.get(twins[row]) for row in rows.tolist()]
    clips.check()
    try:
        others = rows[other_clips(len(rows), kept_twins)]
    except ValueError as error:
        raise EvaluationError(f"{clips.name}: {error}") from error

    def measure(audio_row: int, video_row: int) -> SyncResult:
        audio, video = (
            values[row].masked_fill(~mask[row][:, None], torch.nan).numpy()
            for values, mask, row in (
                (embeddings.audio, embeddings.audio_mask, audio_row),
                (embeddings.video, embeddings.video_mask & counted, video_row),
            )
        )
        return sync_from_embeddings(
            audio, video, embeddings.frame_times[video_row].numpy(), clips.processor, model.config.temperature,
            hop=step, max_offset=rules.max_offset,
        )  # fmt: skip

    found = [
        (measure(row, row), measure(other, row)) for row, other in zip(rows.tolist(), others.tolist(), strict=True)
    ]
    own, control = ([pair[side] for pair in found] for side in (0, 1))
    metrics: dict[str, float | int] = {"clips": len(found)}
    errors, of_others = (
        np.array([math.inf if result.offset is None else abs(result.offset) for result in results])
        for results in (own, control)
    )
    metrics["median_error"] = float(np.median(errors))
    for limit in OFFSET_LIMITS:
        within = (errors <= limit + 1e-9).astype(float)
        low, high = bootstrap_interval(within)
        metrics |= {
            f"within_{limit:g}": float(within.mean()),
            f"within_{limit:g}_low": low,
            f"within_{limit:g}_high": high,
            f"within_{limit:g}_other_audio": float((of_others <= limit + 1e-9).mean()),
            # Of an offset drawn evenly from all that are tried.
            f"within_{limit:g}_chance": min(1.0, (2 * limit + step) / (2 * own[0].max_offset + step)),
        }
    for shift in OFFSET_SHIFTS:
        pairs = [_at(result, 0.0) for result in own], [_at(result, s) for result in own for s in (-shift, shift)]
        aligned, shifted = ([value for value in values if value is not None] for values in pairs)
        if aligned and shifted:
            metrics[f"shifted_{shift:g}_auc"] = sync_detection(aligned, shifted)["auc"]
    for name, pick in (("contrast", lambda result: _at(result, 0.0)), ("best_contrast", _best)):
        pairs = [pick(result) for result in own], [pick(result) for result in control]
        aligned, shifted = ([value for value in values if value is not None] for values in pairs)
        if aligned and shifted:
            metrics[f"other_audio_auc_{name}"] = sync_detection(aligned, shifted)["auc"]
    names = [clips.ids[embeddings.places[row]] for row in rows.tolist()]
    return metrics, {name: plain(result.offset) for name, result in zip(names, own, strict=True)}


def _at(result: SyncResult, offset: float) -> float | None:
    """Mean contrast at an offset, of those tried."""
    if not len(result.offsets):
        return None
    place = int(np.abs(result.offsets - offset).argmin())
    return float(result.offset_scores[place]) if abs(result.offsets[place] - offset) <= result.hop / 2 + 1e-9 else None


def _best(result: SyncResult) -> float | None:
    return float(result.offset_scores.max()) if len(result.offset_scores) else None


def _counted(clips: EvaluationClips, embeddings: ClipEmbeddings, moments: str) -> Tensor:
    """Which moments of each clip count, `(clips, frames)`."""
    if moments == "all":
        return torch.ones_like(embeddings.audio_mask, dtype=torch.bool)
    if moments == "loud":
        return loud_moments(embeddings.levels)
    said = clips.dataset.captions()
    rows = []
    for place, times in zip(embeddings.places, embeddings.frame_times, strict=True):
        spans = [span for text in said[clips.numbers[place]] for span in text.spans]
        first = min((start for start, _ in spans), default=math.inf)
        last = max((end for _, end in spans), default=-math.inf)
        rows.append((times >= first) & (times < last))
    if not any(row.any() for row in rows):
        raise EvaluationError(
            f"{clips.name}: no caption of its clips has a span; prepare it with `--spans FILE`.",
            hint=Hint("moments", "loud", "go by loudness instead"),
        )
    return torch.stack(rows)


def _of_one_length(clips: EvaluationClips, embeddings: ClipEmbeddings) -> tuple[Tensor, float]:
    """Which clips have their moments as far apart as most, and how far; the others become unusable."""
    present = embeddings.audio_mask & embeddings.video_mask
    gaps = embeddings.frame_times.diff(dim=1)
    both = present[:, 1:] & present[:, :-1]
    if gaps.shape[1] == 0 or not bool(both.any()):
        raise EvaluationError(f"{clips.name}: no clip has two moments; shifts need several per clip.")
    steps = torch.stack(
        [gap[here].mean() if here.any() else gap.new_tensor(math.nan) for gap, here in zip(gaps, both, strict=True)]
    ).double()
    step = float(steps.nanmedian())
    if not step > 0:
        raise EvaluationError(f"{clips.name}: moments are {step:g} s apart; shifts need clips that last.")
    fits = (steps - step).abs() <= _STEP_TOLERANCE * step
    for place in (~fits).nonzero()[:, 0].tolist():
        reason = f"its moments are {steps[place]:.3f} s apart, those of most clips {step:.3f} s."
        clips.leave_out(Failure(clips.ids[embeddings.places[place]], reason))
    return fits, step


def _partners(clips: EvaluationClips, embeddings: ClipEmbeddings, data: Any) -> list[int | None] | None:
    """Row of every clip's temporal twin, where a SyncWorld tells."""
    records = find_truth(data, clips.ids)
    return temporal_partners([records[place] for place in embeddings.places]) if records else None


def clip_scores(similarity: Tensor, windows: Tensor, frames: Tensor) -> dict[str, float]:
    """How well one clip's audio fits its frames, summed up in each of the ways of `SCORES`.

    Args:
        similarity: Shape `(frames, frames)`: window i is centred on frame i.
        windows: True where a window is present, shape `(frames,)`.
        frames: True where a frame is present, shape `(frames,)`.
    """
    scores = sync_scores(similarity, window_mask=windows, frame_mask=frames)
    # The z-score is exact; its permutation test is not needed here.
    test = alignment_test(similarity, window_mask=windows, frame_mask=frames, permutations=1)
    return {
        "mean": scores.mean,
        "minimum": scores.minimum,
        "p10": scores.quantiles[0.1],
        "median": scores.quantiles[0.5],
        "z_score": test.z_score,
    }


def _labelled(
    clips: EvaluationClips, embeddings: ClipEmbeddings, rules: SyncProtocol, positive: str | int | None
) -> dict[str, float | int]:
    """One threshold over clips that are labelled as in sync or not."""
    names = clips.label_names or []
    if positive in names:
        number = names.index(str(positive))
    elif not names and str(positive).isdigit():
        number = int(str(positive))
    else:
        known = ", ".join(names) if names else "numbers"
        raise EvaluationError(f"{clips.name}: no clip has the label {positive!r}; its labels are {known}.")
    rows, in_sync = [], []
    for row, (matrix, windows, frames) in enumerate(
        zip(embeddings.similarity, embeddings.audio_mask, embeddings.video_mask, strict=True)
    ):
        name, labels = clips.ids[embeddings.places[row]], embeddings.labels[row]
        reason = "has no label." if not labels else ""
        if int((windows & frames).sum()) < 3:
            reason = "has fewer than 3 moments with audio and frame."
        if reason:
            clips.leave_out(Failure(name, reason))
            continue
        rows.append(clip_scores(matrix, windows, frames))
        in_sync.append(number in labels)
    truth = np.array(in_sync, dtype=bool)
    if not truth.any() or truth.all():
        raise EvaluationError(
            f"{clips.name}: {int(truth.sum())} of {len(truth)} labelled clips have the label {positive!r} of clips in "
            "sync; clips of both kinds are needed."
        )
    metrics: dict[str, float | int] = {}
    for score in (rules.score, *SCORES):
        values = np.array([row[score] for row in rows])
        prefix = f"{score}_" if metrics else ""
        metrics |= {f"{prefix}{key}": value for key, value in sync_detection(values[truth], values[~truth]).items()}
    return metrics | {"clips_in_sync": int(truth.sum()), "clips_out_of_sync": int((~truth).sum())}
