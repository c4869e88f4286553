# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How well does a classifier that is being trained tell the classes of whole clips?"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..evaluation import classification_metrics
from .evaluation import map_clips
from .sets import EvaluationSet

__all__ = ["Predictions", "classification_figures", "predict_clips"]


@dataclass
class Predictions:
    """What a classifier says of whole clips, on the CPU.

    Attributes:
        logits: Scores of the clips, `(clips, num_labels)` float32; with the mean-pooling head those whose
            probabilities are the mean of the frames'.
        targets: 0/1 floats `(clips, num_labels)`, or class numbers `(clips,)`.
        middle_logits: Scores of each clip's middle frame, `None` for heads that see all frames at once.
    """

    logits: Tensor
    targets: Tensor
    middle_logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.logits)


def predict_clips(
    model: Any,
    evaluation_set: EvaluationSet,
    collator: Any,
    *,
    accelerator: Any,
    batch_frames: int = 256,
    num_workers: int = 0,
) -> Predictions:
    """Classify all clips from all their frames; the work is shared by all processes.

    Args:
        model: A classifier or what is called like one.
        evaluation_set: The clips.
        collator: Makes batches of the model's inputs and `labels`; what is left out of them the model does not see.
        accelerator: Tells the processes and the precision.
        batch_frames: Frames per batch; at least one clip is taken.
        num_workers: Processes that load.

    Returns:
        Predictions in the order of the set, the same on every process.
    """
    parts = map_clips(
        partial(_predict, model, accelerator=accelerator),
        evaluation_set,
        collator,
        accelerator=accelerator,
        batch_frames=batch_frames,
        num_workers=num_workers,
    )
    return Predictions(parts["logits"], parts["targets"], parts.get("middle_logits"))


def _predict(model: Any, batch: dict[str, Any], *, accelerator: Any) -> dict[str, Tensor]:
    names = ("pixel_values_videos", "input_values", "padding_mask", "padding_mask_videos")
    inputs = {name: batch[name].to(accelerator.device, non_blocking=True) for name in names if name in batch}
    with accelerator.autocast():
        output = model(**inputs)
    found = {"logits": output.logits.float(), "targets": batch["labels"].to(accelerator.device)}
    if output.frame_logits is not None:
        scores = output.frame_logits.float()
        clips, frames = scores.shape[:2]
        masks = [inputs[name] for name in ("padding_mask", "padding_mask_videos") if name in inputs]
        # Shorter clips are filled up at their end, so the middle is that of the frames that are there.
        several = len(masks) == len([name for name in names[:2] if name in inputs])
        counts = torch.stack(masks).any(dim=0).sum(dim=1) if several else scores.new_full((clips,), frames)
        found["middle_logits"] = scores[torch.arange(clips, device=scores.device), counts.long() // 2]
    return found


def classification_figures(predictions: Predictions, problem_type: str) -> dict[str, float]:
    """The figures of a set.

    Args:
        predictions: Of whole clips.
        problem_type: `"single_label_classification"` or `"multi_label_classification"`.

    Returns:
        `loss`, the figures of `classification_metrics` (`mean_average_precision`, `mean_roc_auc`, `d_prime`,
        `accuracy`, `hit_at_5`), and `middle_frame_mean_average_precision` and `middle_frame_accuracy` for heads that
        classify frame by frame. A figure that is infinite (the `d_prime` of a perfect ranking) is left out.
    """
    logits, targets = predictions.logits, predictions.targets
    metrics = {"loss": float(_loss(logits, targets, problem_type))}
    found = classification_metrics(targets, _scores(logits, problem_type))
    metrics |= {name: float(value) for name, value in found.items() if name not in _COUNTS}
    if predictions.middle_logits is not None:
        found = classification_metrics(targets, _scores(predictions.middle_logits, problem_type), ks=())
        metrics |= {f"middle_frame_{name}": float(found[name]) for name in ("mean_average_precision", "accuracy")}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


_COUNTS = ("samples", "classes", "classes_scored")


def _scores(logits: Tensor, problem_type: str) -> Tensor:
    """Scores that compare between clips, as probabilities do; classes that exclude each other need the softmax."""
    return logits.log_softmax(dim=-1) if problem_type == "single_label_classification" else logits


def _loss(logits: Tensor, targets: Tensor, problem_type: str) -> Tensor:
    if problem_type == "single_label_classification":
        return functional.cross_entropy(logits, targets)
    return functional.binary_cross_entropy_with_logits(logits, targets)
