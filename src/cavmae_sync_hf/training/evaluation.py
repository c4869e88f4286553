# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How well does a model that is being trained align sound and picture, on whole clips?"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..evaluation import retrieval_metrics, shift_discrimination, temporal_pair_discrimination
from ..metrics.localization import patch_maps, pointing_accuracy
from ..model.distributed_cavmae_sync import world_size
from .sets import EvaluationSet

__all__ = ["Embeddings", "embed_clips", "evaluate_alignment", "map_clips"]


class Embeddings:
    """Embeddings of whole clips, on the CPU.

    Attributes:
        audio, video: `(clips, frames, hidden)` float32, unit length.
        audio_mask, video_mask: `(clips, frames)` bool, False where a clip has no sound or picture.
        frame_times: `(clips, frames)` seconds.
        video_maps: `(clips, frames, rows, columns)`, cosine of every picture patch with the sound of its moment.
    """

    def __init__(self, parts: dict[str, Tensor]) -> None:
        self.audio, self.video = parts["audio"], parts["video"]
        self.audio_mask, self.video_mask = parts["audio_mask"].bool(), parts["video_mask"].bool()
        self.frame_times, self.video_maps = parts["frame_times"], parts["video_maps"]

    def __len__(self) -> int:
        return len(self.audio)

    @property
    def similarity(self) -> Tensor:
        """Of each clip's windows (rows) with its own frames, `(clips, frames, frames)`."""
        return self.audio @ self.video.transpose(1, 2)


def embed_clips(
    model: Any,
    evaluation_set: EvaluationSet,
    collator: Any,
    *,
    accelerator: Any,
    batch_frames: int = 256,
    num_workers: int = 0,
) -> Embeddings:
    """Embed all frames and windows of all clips, unmasked; the work is shared by all processes.

    Args:
        model: A `CavMaeSyncModel` or what is called like one.
        evaluation_set: The clips; all must have equally many frames.
        collator: Makes batches.
        accelerator: Tells the processes and the precision.
        batch_frames: Frames per batch; at least one clip is taken.
        num_workers: Processes that load.

    Returns:
        Embeddings in the order of the set, the same on every process.
    """
    parts = map_clips(
        partial(_embed, model, accelerator=accelerator),
        evaluation_set,
        collator,
        accelerator=accelerator,
        batch_frames=batch_frames,
        num_workers=num_workers,
    )
    return Embeddings(parts)


@torch.no_grad()
def map_clips(
    run: Callable[[dict[str, Any]], dict[str, Tensor]],
    evaluation_set: EvaluationSet,
    collator: Any,
    *,
    accelerator: Any,
    batch_frames: int = 256,
    num_workers: int = 0,
) -> dict[str, Tensor]:
    """Have all clips of a set go through a function, with all their frames; the work is shared by all processes.

    Args:
        run: Takes a batch on the CPU, gives tensors with a row per clip, of equal shapes from batch to batch.
        evaluation_set, collator, accelerator, batch_frames, num_workers: As of `embed_clips`.

    Returns:
        What `run` gives, a row per clip in the order of the set, on the CPU, the same on every process.
    """
    count, ranks = len(evaluation_set), accelerator.num_processes
    # Every process gets equally many clips (some twice), so that gathering is one collective of equal shapes.
    per_rank = -(-count // ranks)
    mine = [(accelerator.process_index + place * ranks) % count for place in range(per_rank)]
    frames = evaluation_set.dataset.maker.processor.feature_extractor.num_frames
    loader = DataLoader(
        Subset(evaluation_set.dataset, mine),
        batch_size=max(1, batch_frames // frames),
        collate_fn=collator,
        num_workers=num_workers,
    )
    parts: dict[str, list[Tensor]] = {}
    for batch in loader:
        for name, value in run(batch).items():
            parts.setdefault(name, []).append(value)
    joined = {name: torch.cat(values) for name, values in parts.items()}
    if world_size() > 1:
        # Rank by rank; place k of rank r is clip k * ranks + r.
        order = torch.arange(per_rank * ranks).reshape(ranks, per_rank).T.flatten()[:count]
        joined = {
            name: accelerator.gather(value.contiguous())[order.to(value.device)] for name, value in joined.items()
        }
    return {name: value.cpu() for name, value in joined.items()}


def _embed(model: Any, batch: dict[str, Any], *, accelerator: Any) -> dict[str, Tensor]:
    device = accelerator.device
    names = ("pixel_values_videos", "input_values", "padding_mask", "padding_mask_videos")
    inputs = {name: batch[name].to(device, non_blocking=True) for name in names if name in batch}
    with accelerator.autocast():
        output = model(**inputs)
    everything = torch.ones(inputs["input_values"].shape[:2], dtype=torch.bool, device=device)
    audio_mask = inputs.get("padding_mask", everything)
    patch = batch["pixel_values_videos"].shape[-1] // round(output.video_patch_embeds.shape[2] ** 0.5)
    grid = tuple(side // patch for side in batch["pixel_values_videos"].shape[-2:])
    return {
        "audio": output.audio_embeds.float(),
        "video": output.video_embeds.float(),
        "audio_mask": audio_mask.to(torch.uint8),
        "video_mask": inputs.get("padding_mask_videos", everything).to(torch.uint8),
        "frame_times": batch["frame_times"].float().to(device),
        "video_maps": patch_maps(output.audio_embeds, output.video_patch_embeds, (grid[0], grid[1])),
    }


def evaluate_alignment(
    embeddings: Embeddings,
    partners: list[int | None] | None = None,
    min_shift: float = 2.0,
    boxes: list[list[Tensor]] | None = None,
    image_size: int = 224,
) -> dict[str, float]:
    """The figures of a set: recall in both directions, the true alignment against shifted ones, temporal twins, and
    pointing at what sounds.

    Args:
        embeddings: Of whole clips.
        partners: As in `EvaluationSet`.
        min_shift: Smallest shift in seconds.
        boxes: As in `EvaluationSet`.
        image_size: Side of the pictures that the boxes are in, pixels.

    Returns:
        `audio_to_video_r1`, `..._r5`, `..._r10`, `..._median_rank`, the same for `video_to_audio`; `shift_accuracy`,
        `shift_auc` where clips are long enough; `pair_accuracy`, `pair_audio_to_video`, `pair_video_to_audio` where
        clips have twins; `pointing_accuracy` and `pointing_chance` (of a random patch) where boxes are known: the
        share of moments at which the patch most like the sound lies on what sounds; `same_moment_similarity` and
        `other_moment_similarity`, means over the clips.
    """
    masks: dict[str, Any] = {"audio_mask": embeddings.audio_mask, "video_mask": embeddings.video_mask}
    found = retrieval_metrics(audio_embeds=embeddings.audio, video_embeds=embeddings.video, **masks)
    metrics = {name: float(value) for name, value in found.items() if not name.startswith("clips_")}
    similarity = embeddings.similarity
    count = similarity.shape[-1]
    if count > 1:
        step = float((embeddings.frame_times[:, 1:] - embeddings.frame_times[:, :-1]).median())
        own = torch.eye(count, dtype=torch.bool)
        metrics["same_moment_similarity"] = float(similarity[:, own].mean())
        metrics["other_moment_similarity"] = float(similarity[:, ~own].mean())
        if step > 0 and step * (count - max(1, count // 4)) >= min_shift:
            shifted = shift_discrimination(
                similarity,
                step=step,
                min_shift=min_shift,
                window_mask=embeddings.audio_mask,
                frame_mask=embeddings.video_mask,
            )
            metrics["shift_accuracy"] = float(shifted["accuracy"])
            metrics["shift_all_accuracy"] = float(shifted["all_shifts_accuracy"])
            metrics["shift_auc"] = float(shifted["auc"])
    if partners is not None:
        pairs = temporal_pair_discrimination(embeddings.audio, embeddings.video, partners, **masks)
        metrics |= {f"pair_{name}": float(pairs[name]) for name in ("accuracy", "audio_to_video", "video_to_audio")}
    if boxes is not None:
        sounding = [given for clip in boxes for given in clip]
        pointing = pointing_accuracy(embeddings.video_maps.flatten(0, 1), sounding, (image_size, image_size))
        metrics |= {f"pointing_{name}": float(pointing[name]) for name in ("accuracy", "chance")}
    return metrics
