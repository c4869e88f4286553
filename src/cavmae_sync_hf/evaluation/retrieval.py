# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Retrieval on a set of clips: video by audio, and audio by video."""

from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from ..inference.features import not_finite_error
from ..metrics import compute
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .clips import ClipFacts, EvaluationClips, RunOptions, open_evaluation, stack_clips
from .protocols import RETRIEVAL_PROTOCOLS, RetrievalProtocol, find_protocol, modify


@dataclass(kw_only=True)
class ClipEmbeddings:
    """Embeddings of the usable clips of an evaluation, on the CPU.

    Attributes:
        audio, video: `(clips, frames, hidden)` float32, unit length.
        audio_mask, video_mask: `(clips, frames)` bool, False where absent.
        frame_times: `(clips, frames)` seconds.
        levels: `(clips, frames)` loudness in the middle of each window, dB; see `window_levels` of the processor.
        places: Places of the clips in `EvaluationClips.ids`.
        labels: Label numbers of the clips.
    """

    audio: Tensor
    video: Tensor
    audio_mask: Tensor
    video_mask: Tensor
    frame_times: Tensor
    levels: Tensor
    places: list[int]
    labels: list[list[int]]

    @property
    def similarity(self) -> Tensor:
        """Of each clip's windows (rows) with its own frames, `(clips, frames, frames)`."""
        return self.audio @ self.video.transpose(1, 2)


@torch.no_grad()
def embed_clips(model: CavMaeSyncModel, clips: EvaluationClips) -> ClipEmbeddings:
    """Embed the clips that have both audio and frames; the others go to `clips.unusable`.

    Raises:
        EvaluationError: As `EvaluationClips.each_batch`.
    """

    def embed(inputs: dict[str, Tensor], facts: ClipFacts) -> dict[str, Tensor]:
        output = model(**inputs)
        mask = inputs["padding_mask"].cpu()
        found = {
            "audio": output.audio_embeds.float().cpu(),
            "video": output.video_embeds.float().cpu(),
            "audio_mask": mask,
            "video_mask": inputs.get("padding_mask_videos", torch.ones_like(mask)).cpu(),
            "frame_times": facts.frame_times.float(),
            "levels": clips.processor.feature_extractor.window_levels(inputs["input_values"], mask).cpu(),
        }
        for side in ("audio", "video"):
            if not torch.isfinite(found[side][found[f"{side}_mask"].bool()]).all():
                raise not_finite_error("an embedding", model)
        return found

    parts: dict[str, list[Tensor]] = {}
    places: list[int] = []
    labels: list[list[int]] = []
    for found, facts in clips.each_batch(model, embed):
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
        places += facts.places
        labels += facts.labels
    joined = {name: stack_clips(values) for name, values in parts.items()}
    return ClipEmbeddings(**joined, places=places, labels=labels)


def evaluate_retrieval(
    model: CavMaeSyncModel,
    processor: CavMaeSyncProcessor,
    data: Any,
    protocol: str | RetrievalProtocol = "clips",
    *,
    strategy: str | None = None,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Retrieval of clips in both directions, under a protocol.

    Args:
        model: With both towers, in evaluation mode.
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
    clips = open_evaluation(data, processor, rules, options)
    embeddings = embed_clips(model, clips)
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
    record = clips.record("retrieval", metrics, model=model, frames_per_clip=embeddings.audio.shape[1])
    if rules.published_clips is not None:
        record["counts"]["published_list"] = rules.published_clips
    return record
