# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How does a clip become a training or evaluation sample, and how are clips had by their number?

`InputMaker` is the one way from a clip to a sample, shared with the streaming data set: it picks frames, varies them,
and lets the processor make pixels and windows. `CavMaeSyncDataset` is the map-style data set over shards or video
files.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .augmentation import AugmentationOptions, SampleAugmentation, make_generator, picture_size
from .clips import Clip, Clips, open_clips

# What `frames` of a data set may be: how many random frames per clip, or all of them.
Frames = int | Literal["all"]


class InputMaker:
    """Turns clips into samples.

    Args:
        processor: A `CavMaeSyncProcessor`; makes pixels and windows and decides alignment, sizes and normalisation.
        frames: How many random frames (with their windows) a sample has, in order of time; 1 as published. Clips with
            fewer frames give all they have. `"all"` for evaluation.
        augmentation: What to vary, `None` for nothing.
        seed: Seeds all random choices, together with the epoch and the clip's id.

    Raises:
        ValueError: `frames` is neither a positive number nor `"all"`.
    """

    def __init__(
        self, processor: Any, frames: Frames = 1, augmentation: AugmentationOptions | None = None, seed: int = 0
    ) -> None:
        if frames != "all" and (not isinstance(frames, int) or isinstance(frames, bool) or frames < 1):
            raise ValueError(f'`frames` is {frames!r}; it must be a positive number or "all".')
        self.processor = processor
        self.frames = frames
        self.seed = seed
        self.augmentation = None if augmentation is None else SampleAugmentation(augmentation, processor)
        self.picture_size = picture_size(processor.video_processor)

    def make(self, source: Clips, number: int, epoch: int, draw: int = 0) -> dict[str, Any]:
        """Read a clip and make a sample of it.

        Args:
            source: Where the clip comes from.
            number: Its number there.
            epoch: Pass over the data; seeds the choices.
            draw: How often the clip was used in this epoch before; seeds them too.

        Returns:
            `pixel_values_videos` `(n, 3, height, width)` and `input_values` `(n, audio_length, num_mel_bins)`,
            float32; `padding_mask_videos` and `padding_mask` `(n,)` bool, False where the clip has no picture or
            sound; `frame_times` `(n,)` float64 seconds; `frame_indices` `(n,)`; `labels` (list of numbers);
            `clip_id`; `epoch`.
        """
        record = source.read(number, lambda clip_id, count: self.choose(clip_id, count, epoch, draw))
        key = (self.seed, epoch, record.clip_id, draw)
        pixels, frame_mask = self._pixels(record, key)
        values, window_mask = self._windows(record, key)
        return {
            "pixel_values_videos": pixels,
            "input_values": values,
            "padding_mask": window_mask,
            "padding_mask_videos": frame_mask,
            "frame_times": torch.tensor([record.frame_times[index] for index in record.chosen], dtype=torch.float64),
            "frame_indices": torch.tensor(record.chosen),
            "labels": record.labels,
            "clip_id": record.clip_id,
            "epoch": epoch,
        }

    def choose(self, clip_id: str, count: int, epoch: int, draw: int = 0) -> list[int]:
        """Indices of the frames of a sample, ascending, out of `count`."""
        if self.frames == "all" or self.frames >= count:
            return list(range(count))
        generator = make_generator("frames", self.seed, epoch, clip_id, draw)
        return sorted(torch.randperm(count, generator=generator)[: self.frames].tolist())

    def _pixels(self, record: Clip, key: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Normalised pixels and the mask of the frames that are there."""
        mask = torch.full((len(record.chosen),), record.frames is not None)
        if record.frames is None:
            return torch.zeros(len(record.chosen), 3, *self.picture_size), mask
        frames = record.frames if self.augmentation is None else self.augmentation.frames(record.frames, *key)
        done = self.processor.video_processor(
            frames, do_sample_frames=False, input_data_format="channels_first", return_tensors="pt"
        )
        return done["pixel_values_videos"][0], mask

    def _windows(self, record: Clip, key: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Normalised windows of the chosen frames and the mask of those that are there."""
        extractor = self.processor.feature_extractor
        absent = record.log_mel is None
        log_mel = torch.empty(0, extractor.num_mel_bins) if absent else record.log_mel
        windows = extractor.windows(log_mel, record.frame_times, chosen=record.chosen)
        if absent:
            return windows.values, torch.zeros_like(windows.mask)
        values = windows.values if self.augmentation is None else self.augmentation.windows(windows.values, *key)
        return values, windows.mask


class CavMaeSyncDataset(Dataset):
    """Samples by the number of their clip, over prepared shards or video files.

    The order of the clips, and with it everything about resuming, is the sampler's business. Reading a shard starts
    with its headers, so over very large sets the streaming data set is the better choice.

    Args:
        source: What [`~cavmae_sync_hf.data.clips.open_clips`] takes: a folder of shards, a folder of video files, a
            list of clips, or rows of a `datasets.Dataset`.
        processor: A `CavMaeSyncProcessor`.
        frames: Random frames per clip, or `"all"` (evaluation).
        augmentation: What to vary, `None` for nothing.
        seed: Seeds the random choices.

    Raises:
        ValueError: There are no clips, or the shards do not fit the processor.
    """

    def __init__(
        self,
        source: Any,
        processor: Any,
        *,
        frames: Frames = 1,
        augmentation: AugmentationOptions | None = None,
        seed: int = 0,
    ) -> None:
        self.source = open_clips(source, processor)
        self.maker = InputMaker(processor, frames, augmentation, seed)
        # In shared memory, so that workers that live on from epoch to epoch see the change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The pass over the data that random choices are made for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Change the random choices; call it before each epoch (accelerate and Trainer do on one process).

        On several processes accelerate tells the epoch to the sampler alone; call this from a callback there.
        """
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return sum(self.source.group_sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of a clip; see `InputMaker.make`. A `Draw` of the balanced sampler varies repeated clips."""
        number = int(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"Clip {number} of {len(self)}.")
        return self.maker.make(self.source, number % len(self), self.epoch, getattr(index, "draw", 0))

    def labels(self) -> list[list[int]]:
        """The label numbers of every clip, for balanced sampling."""
        return self.source.labels()

    def clip_ids(self) -> Sequence[str]:
        """The name of every clip."""
        return self.source.clip_ids()


__all__ = ["CavMaeSyncDataset", "Frames", "InputMaker"]
