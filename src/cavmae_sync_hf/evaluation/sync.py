# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Synchrony on a set of clips: audio that belongs to its frames in time told from audio that does not."""

import math
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from ..data.failures import Failure
from ..metrics.synchrony import (
    alignment_test,
    default_min_shift,
    loud_moments,
    other_clips,
    shift_discrimination,
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
        score: Another of `SCORES` to be the `auc` (`"labelled"`).
        positive: The label, name or number, of clips in sync (`"labelled"`; all others are out of sync).
        options: See `RunOptions`.

    Returns:
        A results record, see `make_record`. `"shifted"` and its kin: those of `shift_discrimination` with another
        clip's audio as the control, `pair_*` of temporal pairs, and mean similarity of the same and of other moments.
        `"labelled"`: `auc` and `equal_error_rate` of the protocol's score and, with its name before them, of each.

    Raises:
        ValueError: The protocol, the labels or the data cannot be used; the message says why.
    """
    rules = modify(find_protocol(protocol, SYNC_PROTOCOLS), min_shift=min_shift, score=score)
    if rules.score not in SCORES:
        raise EvaluationError(f"The score {rules.score!r} is none; choose one of {', '.join(SCORES)}.")
    if rules.truth == "labels" and positive is None:
        hint = Hint("positive", "LABEL", "name it")
        raise EvaluationError(f"The protocol {rules.name} needs the label of clips in sync.", hint=hint)
    clips = open_evaluation(data, processor, rules, options)
    embeddings = embed_clips(model, clips)
    settings: dict[str, Any]
    if rules.truth == "labels":
        metrics, settings = _labelled(clips, embeddings, rules, positive), {"positive": positive}
    else:
        twins = _partners(clips, embeddings, data)
        kept, step = _of_one_length(clips, embeddings)
        smallest = rules.min_shift or default_min_shift(step, embeddings.audio.shape[1])
        counted = _counted(clips, embeddings, rules.moments) & kept[:, None]
        metrics = _shifted(embeddings, counted, twins, step=step, min_shift=smallest)
        settings = {"seconds_between_moments": round(step, 6), "smallest_shift": round(smallest, 6)}
    return clips.record("sync", metrics, model=model, frames_per_clip=embeddings.audio.shape[1], **settings)


def _shifted(
    embeddings: ClipEmbeddings, counted: Tensor, twins: list[int | None] | None, *, step: float, min_shift: float
) -> dict[str, float | int]:
    """Every clip against its own audio shifted, and another's likewise, over the moments that count; and all against
    their temporal twins where there are some."""
    similarity = embeddings.similarity
    windows, frames = embeddings.audio_mask & counted, embeddings.video_mask & counted
    controls: dict[str, Any] = {}
    if len(similarity) > 1:
        others = other_clips(len(similarity), twins)
        controls["other_similarity"] = embeddings.audio[others] @ embeddings.video.transpose(1, 2)
        controls["other_window_mask"] = embeddings.audio_mask[others] & counted
    found = shift_discrimination(
        similarity, step=step, min_shift=min_shift, window_mask=windows, frame_mask=frames, **controls
    )
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
            f"{clips.name}: no caption of its clips has a span; prepare it with `--spans FILE`, or take the protocol "
            "shifted-loud, which goes by loudness."
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
        [gap[here].median() if here.any() else gap.new_tensor(math.nan) for gap, here in zip(gaps, both, strict=True)]
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
