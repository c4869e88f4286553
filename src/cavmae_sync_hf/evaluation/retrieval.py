# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How well does a model find the pictures of a sound, and the sound of pictures, on a set of clips?"""

from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from ..metrics import compute
from .clips import EvaluationClips, RunOptions, batches, fit_processor, open_evaluation, stack_clips
from .protocols import RETRIEVAL_PROTOCOLS, RetrievalProtocol, find_protocol, modify
from .results import make_record

__all__ = ["ClipEmbeddings", "embed_clips", "evaluate_retrieval"]


@dataclass
class ClipEmbeddings:
    """Embeddings of the usable clips of an evaluation, on the CPU.

    Attributes:
        audio, video: `(clips, frames, hidden)` float32, unit length.
        audio_mask, video_mask: `(clips, frames)` bool, False where absent.
        frame_times: `(clips, frames)` seconds.
        places: Places of the clips in `EvaluationClips.ids`.
        labels: Label numbers of the clips.
    """

    audio: Tensor
    video: Tensor
    audio_mask: Tensor
    video_mask: Tensor
    frame_times: Tensor
    places: list[int]
    labels: list[list[int]]

    @property
    def similarity(self) -> Tensor:
        """Of each clip's windows (rows) with its own frames, `(clips, frames, frames)`."""
        return self.audio @ self.video.transpose(1, 2)


@torch.no_grad()
def embed_clips(clips: EvaluationClips, processor: Any, model: Any, options: RunOptions) -> ClipEmbeddings:
    """Embed the clips that have both sound and pictures; the others go to `clips.unusable`.

    Raises:
        EvaluationError: No clip can be used.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in ("audio", "video", "audio_mask", "video_mask", "times")}
    places: list[int] = []
    labels: list[list[int]] = []
    for inputs, about in batches(clips, processor, model, options):
        output = model(**inputs)
        mask = inputs["padding_mask"]
        parts["audio"].append(output.audio_embeds.float().cpu())
        parts["video"].append(output.video_embeds.float().cpu())
        parts["audio_mask"].append(mask.cpu())
        parts["video_mask"].append(inputs.get("padding_mask_videos", torch.ones_like(mask)).cpu())
        parts["times"].append(about["frame_times"].float())
        places += about["places"]
        labels += about["labels"]
    clips.check(strict=False)
    joined = {name: stack_clips(values) for name, values in parts.items()}
    return ClipEmbeddings(
        joined["audio"], joined["video"], joined["audio_mask"], joined["video_mask"], joined["times"], places, labels
    )


def evaluate_retrieval(
    model: Any,
    processor: Any,
    data: Any,
    protocol: str | RetrievalProtocol = "clips",
    *,
    strategy: str | None = None,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Retrieval of clips in both directions, under a protocol.

    Args:
        model: A `CavMaeSyncModel` with both towers, in evaluation mode.
        processor: Its processor; the protocol may change alignment and number of frames for the run.
        data: A folder of shards, a folder or list of videos, a SyncWorld split, or what else `read_source` lists.
        protocol: One of `RETRIEVAL_PROTOCOLS`, by name, or one of your own.
        strategy: Another way to compare clips than the protocol's.
        options: See `RunOptions`.

    Returns:
        A results record, see `make_record`. `metrics` are those of `retrieval_metrics` and `chance_r{k}`, what a model
        that knows nothing scores.

    Raises:
        ValueError: The protocol, the list of ids or the data cannot be used; the message says why.
    """
    rules = modify(find_protocol(protocol, RETRIEVAL_PROTOCOLS), strategy=strategy)
    fitted = fit_processor(processor, rules)
    strict = options.get("strict", False)
    clips = open_evaluation(data, fitted, rules, options, middle=rules.frames == "middle")
    if clips.missing:
        clips.check(strict)
    embeddings = embed_clips(clips, fitted, model, options)
    clips.check(strict)
    metrics = compute(
        "retrieval",
        predictions=embeddings.audio,
        references=embeddings.video,
        strategy=rules.strategy,
        audio_mask=embeddings.audio_mask,
        video_mask=embeddings.video_mask,
        ks=rules.ks,
        ties=rules.ties,
        device=model.device,
    )
    seen = int(metrics.pop("clips_seen"))
    del metrics["clips_expected"]
    metrics |= {f"chance_r{k}": min(1.0, k / seen) for k in rules.ks}
    counts = clips.counts()
    if rules.published_clips is not None:
        counts["published_list"] = rules.published_clips
    settings = {"alignment": fitted.feature_extractor.alignment, "frames_per_clip": embeddings.audio.shape[1]}
    return make_record(
        "retrieval",
        rules,
        metrics,
        model=model,
        data=clips.data_record(),
        counts=counts,
        settings=settings,
        command=options.get("command"),
    )
