# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How do samples become a batch that the model takes, mixed and with targets where that is wanted?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .augmentation import AugmentationOptions, make_generator, mix_windows, mixing_weight, smooth_labels

_PROBLEM_TYPES = (None, "single_label_classification", "multi_label_classification")


@dataclass
class CavMaeSyncCollator:
    """Collects samples of the data sets of this package into a batch of tensors.

    It lives through pickling, so it works in worker processes of any start method; pinned memory is the loader's
    option (`pin_memory`, on by default in Trainer). Trainer must be told `remove_unused_columns=False`, since samples
    are not rows of columns named like the model's arguments.

    Args:
        processor: A `CavMaeSyncProcessor`; gives the value of padded windows.
        problem_type: `"multi_label_classification"`: `labels` are 0/1 floats `(batch, num_labels)`.
            `"single_label_classification"`: class numbers `(batch,)`, or probabilities `(batch, num_labels)` with
            mixup or smoothing. `None`: no labels.
        num_labels: Number of classes, where there are labels.
        augmentation: Its `mixup`, `mixup_alpha`, `mixup_audio` and `label_smoothing` are applied here.
        num_frames: Fill every clip up to so many frames, for batches of one shape. Default: the longest in the batch.
        with_ids: Whether `clip_ids` (list of texts) and `frame_times` `(batch, num_frames)` are part of the batch.
        seed: Seeds mixup.

    Raises:
        ValueError: The settings contradict each other.
    """

    processor: Any
    problem_type: str | None = None
    num_labels: int | None = None
    augmentation: AugmentationOptions | None = None
    num_frames: int | None = None
    with_ids: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.problem_type not in _PROBLEM_TYPES:
            raise ValueError(f"`problem_type` is {self.problem_type!r}; it must be one of {_PROBLEM_TYPES}.")
        if self.problem_type is not None and not self.num_labels:
            raise ValueError(f"`num_labels` is {self.num_labels}; labels need the number of classes.")

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            samples: As `InputMaker.make` gives them.

        Returns:
            `pixel_values_videos` `(batch, num_frames, 3, height, width)`, `input_values`
            `(batch, num_frames, audio_length, num_mel_bins)`, `padding_mask` `(batch, num_frames)`; as from the
            processor, `padding_mask_videos` only when a frame is absent; `labels`, `clip_ids` and `frame_times` as
            set.

        Raises:
            ValueError: A sample has more frames than `num_frames`, or labels that do not fit.
        """
        count = self._count(samples)
        fills = {
            "pixel_values_videos": 0.0,
            "input_values": self.processor.feature_extractor.outside_value,
            "padding_mask": False,
            "padding_mask_videos": False,
        }
        if self.with_ids:
            fills["frame_times"] = 0.0
        batch: dict[str, Any] = {
            name: _stack([sample[name] for sample in samples], count, fill) for name, fill in fills.items()
        }
        if self.problem_type is not None:
            batch["labels"] = self._labels(samples)
        self._mix(batch, samples)
        options = self.augmentation
        if "labels" in batch and options is not None and options.label_smoothing:
            batch["labels"] = smooth_labels(batch["labels"], options.label_smoothing)
        if bool(batch["padding_mask_videos"].all()):
            del batch["padding_mask_videos"]
        if self.with_ids:
            batch["clip_ids"] = [sample["clip_id"] for sample in samples]
        return batch

    def _count(self, samples: Sequence[dict[str, Any]]) -> int:
        """Frames per clip of the batch."""
        longest = max(len(sample["padding_mask"]) for sample in samples)
        if self.num_frames is None:
            return longest
        if longest > self.num_frames:
            worst = next(sample["clip_id"] for sample in samples if len(sample["padding_mask"]) > self.num_frames)
            raise ValueError(
                f"Clip {worst!r} has {longest} frames, the batch has room for {self.num_frames}; raise the collator's "
                "`num_frames` or lower the data set's `frames`."
            )
        return self.num_frames

    def _labels(self, samples: Sequence[dict[str, Any]]) -> Tensor:
        """Targets: 0/1 floats, or class numbers where nothing softens them."""
        classes = int(self.num_labels or 0)
        targets = torch.zeros(len(samples), classes)
        for row, sample in zip(targets, samples, strict=True):
            labels = sample["labels"]
            if any(not 0 <= label < classes for label in labels):
                raise ValueError(f"Clip {sample['clip_id']!r} has labels {labels}; `num_labels` is {classes}.")
            if self.problem_type == "single_label_classification" and len(set(labels)) != 1:
                raise ValueError(
                    f"Clip {sample['clip_id']!r} has labels {labels}; single-label classification needs exactly one. "
                    'Use `problem_type="multi_label_classification"`.'
                )
            row[labels] = 1.0
        options = self.augmentation
        soft = options is not None and (options.mixup > 0 or options.label_smoothing > 0)
        if self.problem_type == "single_label_classification" and not soft:
            return targets.argmax(dim=1)
        return targets

    def _mix(self, batch: dict[str, Any], samples: Sequence[dict[str, Any]]) -> None:
        """Mix some samples with their neighbour in the batch, in place.

        Whether and how much is drawn by the sample's id; the partner depends on the batch. Samples whose partner lacks
        frames or windows that they have (or the other way round) stay as they are.
        """
        options = self.augmentation
        if options is None or not options.mixup or len(samples) < 2:
            return
        names = [name for name in ("pixel_values_videos", "input_values", "labels") if name in batch]
        partners = {name: batch[name].roll(-1, 0) for name in names}
        masks = torch.stack((batch["padding_mask"], batch["padding_mask_videos"]))
        fitting = (masks == masks.roll(-1, 1)).all(dim=2).all(dim=0).tolist()
        for place, sample in enumerate(samples):
            generator = make_generator("mixup", self.seed, sample["epoch"], sample["clip_id"])
            if float(torch.rand((), generator=generator)) >= options.mixup or not fitting[place]:
                continue
            weight = mixing_weight(options.mixup_alpha, generator)
            for name in names:
                own, other = batch[name][place], partners[name][place]
                if name == "input_values":
                    mixed = mix_windows(own, other, weight, self.processor.feature_extractor, options.mixup_audio)
                else:
                    mixed = weight * own + (1.0 - weight) * other
                batch[name][place] = mixed


def _stack(rows: Sequence[Tensor], count: int, fill: float | bool) -> Tensor:
    """Stack rows along a new first dimension, filling shorter ones to `count`."""
    if all(len(row) == count for row in rows):
        return torch.stack(list(rows))
    stacked = rows[0].new_full((len(rows), count, *rows[0].shape[1:]), fill)
    for target, row in zip(stacked, rows, strict=True):
        target[: len(row)] = row
    return stacked


__all__ = ["CavMaeSyncCollator"]
