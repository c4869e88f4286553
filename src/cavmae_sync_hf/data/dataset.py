# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""From clips to batches: samples, a map-style data set of them, balanced sampling, and collation.

`InputMaker` is the one way from a clip to a sample, shared with the streaming data set: it picks frames, varies them,
and lets the processor make pixels and windows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..model.alignment_cavmae_sync import window_times
from ..model.batching_cavmae_sync import pad_batch
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .augmentation import (
    AugmentationOptions,
    BackgroundNoise,
    SampleAugmentation,
    frame_size,
    make_generator,
    mix_windows,
    mixing_weight,
    smooth_labels,
)
from .captions import TimedText
from .clips import ClipSource, LoadedClip, open_clips

# What `frames` of a data set may be: how many random frames per clip, or all of them.
Frames = int | Literal["all"]
# The published weight of a class is 1000 / (count + 0.01); the factor drops out, the sum keeps unseen classes finite.
_COUNT_OFFSET = 0.01
_PROBLEM_TYPES = (None, "single_label_classification", "multi_label_classification")


class InputMaker:
    """Turns clips into samples.

    Args:
        processor: Makes pixels and windows, and decides alignment, sizes and normalisation.
        frames: How many random frames (with their windows) a sample has, in order of time; 1 as published. Clips with
            fewer frames give all they have. `"all"` for evaluation.
        augmentation: What to vary, `None` for nothing.
        seed: Seeds all random choices, together with the epoch and the clip's id.

    Raises:
        ValueError: `frames` is neither a positive number nor `"all"`.
    """

    def __init__(
        self,
        processor: CavMaeSyncProcessor,
        frames: Frames = 1,
        augmentation: AugmentationOptions | None = None,
        seed: int = 0,
    ) -> None:
        if frames != "all" and (not isinstance(frames, int) or isinstance(frames, bool) or frames < 1):
            raise ValueError(f'`frames` is {frames!r}; it must be a positive number or "all".')
        self.processor = processor
        self.frames = frames
        self.seed = seed
        self.augmentation = None if augmentation is None else SampleAugmentation(augmentation, processor)
        noisy = augmentation is not None and augmentation.noise_snr_db is not None
        self.noise = BackgroundNoise(augmentation, processor) if noisy else None  # type: ignore[arg-type]
        self.frame_size = frame_size(processor.video_processor)

    def make(self, source: ClipSource, number: int, epoch: int, draw: int = 0) -> dict[str, Any]:
        """Read a clip and make a sample of it.

        Args:
            source: Where the clip comes from.
            number: Its number there.
            epoch: Pass over the data; seeds the choices.
            draw: How often the clip was used in this epoch before; seeds them too.

        Returns:
            See `sample`.
        """
        clip = source.read(number, lambda clip_id, count: self.choose(clip_id, count, epoch, draw))
        key = (self.seed, epoch, clip.clip_id, draw)
        if self.augmentation is not None:
            clip = self.augmentation.clip(clip, *key)
        if self.noise is not None and clip.log_mel is not None:
            heard = self.noise.add(clip.log_mel, source, number, *key)
            clip = replace(clip, log_mel=heard)
        return self.sample(clip, epoch, draw)

    def sample(self, clip: LoadedClip, epoch: int, draw: int = 0, *, pixels: Tensor | None = None) -> dict[str, Any]:
        """Make a sample of a clip whose frames were chosen by `choose`.

        Args:
            clip: The clip.
            epoch, draw: As of `make`.
            pixels: Normalised pixels of its images, where they are known.

        Returns:
            `pixel_values_videos` `(n, channels, height, width)` and `input_values` `(n, audio_length, num_mel_bins)`,
            float32; `padding_mask_videos` and `padding_mask` `(n,)` bool, False where the clip has no frame or no
            audio; `frame_times` `(n,)` float64 seconds; `frame_indices` `(n,)`; `labels` (list of numbers);
            `captions` (list of texts) and `caption_spans` (of each text a list of its spans, start and end in seconds
            from the clip's start, empty where it is about the whole); `clip_id`; `epoch`.
        """
        key = (self.seed, epoch, clip.clip_id, draw)
        pixels = self._pixels(clip, key) if pixels is None else clip.stacked(pixels)
        extractor = self.processor.feature_extractor
        log_mel = torch.empty(0, extractor.num_mel_bins) if clip.log_mel is None else clip.log_mel
        windows = extractor.windows(log_mel, clip.frame_times, chosen=clip.chosen)
        values, mask = windows.values, windows.mask
        if clip.log_mel is None:
            mask = torch.zeros_like(mask)
        elif self.augmentation is not None:
            values = self.augmentation.windows(values, *key)
        within = {} if extractor.clip_length is None else {"window_offsets": windows.offsets}
        return within | {
            "pixel_values_videos": pixels,
            "input_values": values,
            "padding_mask": mask,
            "padding_mask_videos": torch.full((len(clip.chosen),), clip.frames is not None),
            "frame_times": torch.tensor([clip.frame_times[index] for index in clip.chosen], dtype=torch.float64),
            "window_times": torch.tensor(
                window_times(windows.starts, extractor.audio_length), dtype=torch.float64
            ).reshape(-1, 2),
            "frame_indices": torch.tensor(clip.chosen),
            "labels": clip.labels,
            "captions": [text.text for text in clip.captions],
            "caption_spans": [list(text.spans) for text in clip.captions],
            "clip_id": clip.clip_id,
            "epoch": epoch,
        }

    def choose(self, clip_id: str, count: int, epoch: int, draw: int = 0) -> list[int]:
        """Indices of the frames of a sample, ascending, out of `count`."""
        if self.frames == "all" or self.frames >= count:
            return list(range(count))
        generator = make_generator("frames", self.seed, epoch, clip_id, draw)
        return sorted(torch.randperm(count, generator=generator)[: self.frames].tolist())

    def _pixels(self, clip: LoadedClip, key: tuple[Any, ...]) -> Tensor:
        """Normalised pixels of the chosen frames, zeros where the clip has none."""
        images = clip.images
        if images is None:
            return torch.zeros(len(clip.chosen), 3 * len(self.processor.video_processor.shifts), *self.frame_size)
        frames = images if self.augmentation is None else self.augmentation.frames(images, *key)
        done = self.processor.video_processor(
            frames, do_sample_frames=False, input_data_format="channels_first", return_tensors="pt"
        )
        return clip.stacked(done["pixel_values_videos"][0])


class CavMaeSyncDataset(Dataset):
    """Samples by the number of their clip, over prepared shards or video files.

    The order of the clips, and with it resuming, is left to the sampler. Reading a shard starts
    with its headers, so over very large sets the streaming data set is the better choice.

    Args:
        source: What [`~cavmae_sync_hf.data.clips.open_clips`] takes: a folder of shards, a folder of video files, a
            list of clips, or rows of a `datasets.Dataset`.
        processor: The model's processor.
        frames: Random frames per clip, or `"all"` (evaluation).
        augmentation: What to vary, `None` for nothing.
        seed: Seeds the random choices.

    Raises:
        ValueError: There are no clips, or the shards do not fit the processor.
    """

    def __init__(
        self,
        source: Any,
        processor: CavMaeSyncProcessor,
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

    def captions(self) -> list[list[TimedText]]:
        """What is said of every clip, and where in it: texts with `spans`; empty lists where nothing is known."""
        return self.source.captions()


class Draw(int):
    """A clip's number that also says how often the clip was drawn before in the epoch (`draw`).

    Drawing with replacement gives a rare clip many times an epoch; with this the data set varies it each time.
    """

    draw: int

    def __new__(cls, number: int, draw: int = 0) -> "Draw":
        value = super().__new__(cls, number)
        value.draw = draw
        return value

    def __reduce__(self) -> tuple[type["Draw"], tuple[int, int]]:
        return Draw, (int(self), self.draw)


def class_balanced_weights(labels: Sequence[Sequence[int]]) -> torch.Tensor:
    """Weight of every clip: the sum over its labels of 1 / (clips with that label), as published.

    With one label per clip all classes are then drawn equally often; with several, classes that keep company with
    common ones come more often than their share. Clips without labels are never drawn.

    Args:
        labels: Label numbers of every clip.

    Returns:
        `(num_clips,)` float64, summing to 1.

    Raises:
        ValueError: No clip has a label.
    """
    counts: dict[int, int] = {}
    for clip in labels:
        for label in set(clip):
            counts[label] = counts.get(label, 0) + 1
    if not counts:
        raise ValueError("No clip has a label; balanced sampling needs labels, prepare the set with them.")
    weights = [sum(1.0 / (counts[label] + _COUNT_OFFSET) for label in set(clip)) for clip in labels]
    total = torch.tensor(weights, dtype=torch.float64)
    return total / total.sum()


class ClassBalancedSampler(Sampler[int]):
    """Draws clips with replacement so that rare classes come as often as common ones.

    The draws depend on (seed, epoch) alone. All processes make the same ones; process `rank` takes every
    `world_size`-th, and all take equally many. Leave both at their defaults under Trainer or accelerate, which split
    batches themselves.

    Args:
        labels: Label numbers of every clip, from `CavMaeSyncDataset.labels()`.
        num_samples: Draws per epoch over all processes; default: as many as there are clips. Raised to the next
            multiple of `world_size`.
        seed: Seeds the draws together with the epoch.
        rank: Number of this process.
        world_size: Processes.

    Raises:
        ValueError: No clip has a label, or an argument is out of range.
    """

    def __init__(
        self,
        labels: Sequence[Sequence[int]],
        num_samples: int | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` is {rank} of `world_size` {world_size}; it must lie in [0, world_size).")
        count = len(labels) if num_samples is None else num_samples
        if count < 1:
            raise ValueError(f"`num_samples` is {count}; it must be at least 1.")
        self.weights = class_balanced_weights(labels)
        self.num_samples = -(-count // world_size) * world_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Change the draws; call it before each epoch (accelerate and Trainer do)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // self.world_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        # `torch.multinomial` stops at 2^24 clips, and AudioSet with several copies per clip may pass that.
        edges = np.cumsum(self.weights.numpy())
        numbers = np.searchsorted(edges, generator.random(self.num_samples) * edges[-1], side="right")
        seen: dict[int, int] = {}
        for position, number in enumerate(numbers.tolist()):
            draw = seen.get(number, 0)
            seen[number] = draw + 1
            if position % self.world_size == self.rank:
                yield Draw(number, draw)


@dataclass
class CavMaeSyncCollator:
    """Collects samples of the data sets of this package into a batch of tensors.

    It lives through pickling, so it works in worker processes of any start method; pinned memory is the loader's
    option (`pin_memory`, on by default in Trainer). Trainer must be told `remove_unused_columns=False`, since samples
    are not rows of columns named like the model's arguments.

    Args:
        processor: The model's processor; gives the value of padded windows.
        problem_type: `"multi_label_classification"`: `labels` are 0/1 floats `(batch, num_labels)`.
            `"single_label_classification"`: class numbers `(batch,)`, or probabilities `(batch, num_labels)` with
            mixup or smoothing. `None`: no labels.
        num_labels: Number of classes, where there are labels.
        augmentation: Its `mixup`, `mixup_alpha`, `mixup_audio` and `label_smoothing` are applied here.
        num_frames: Fill every clip up to so many frames, for batches of one shape. Default: the longest in the batch.
        with_captions: Whether `captions` and `caption_spans` (a list for each clip) are part of the batch, as samples
            have them.
        with_ids: Whether `clip_ids` (list of texts) and `frame_times` `(batch, num_frames)` are part of the batch.
        seed: Seeds mixup.

    Raises:
        ValueError: The settings contradict each other.
    """

    processor: CavMaeSyncProcessor
    problem_type: str | None = None
    num_labels: int | None = None
    augmentation: AugmentationOptions | None = None
    num_frames: int | None = None
    with_ids: bool = True
    seed: int = 0
    with_captions: bool = False

    def __post_init__(self) -> None:
        if self.problem_type not in _PROBLEM_TYPES:
            raise ValueError(f"`problem_type` is {self.problem_type!r}; it must be one of {_PROBLEM_TYPES}.")
        if self.problem_type is not None and not self.num_labels:
            raise ValueError(f"`num_labels` is {self.num_labels}; labels need the number of classes.")

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            samples: As `InputMaker.make` gives them, or rows of any table: what the processor gave for a clip, and its
                `label` or `labels`, a number or a list of numbers.

        Returns:
            `pixel_values_videos` `(batch, num_frames, 3, height, width)`, `input_values`
            `(batch, num_frames, audio_length, num_mel_bins)`, `padding_mask` `(batch, num_frames)`; as from the
            processor, `padding_mask_videos` only when a frame is absent; `labels`, `captions`, `clip_ids` and
            `frame_times` as set.

        Raises:
            ValueError: A sample has more frames than `num_frames`, or labels that do not fit.
        """
        names = ["pixel_values_videos", "input_values", "padding_mask", "padding_mask_videos", "window_offsets"]
        names += ["audio_tokens", "video_tokens"]  # of frozen encoders, in place of their inputs
        names += ["frame_times", "window_times"] if self.with_ids else []
        fills = {"input_values": self.processor.feature_extractor.outside_value, "window_times": math.nan}
        batch: dict[str, Any] = pad_batch(
            [{name: sample[name] for name in names if name in sample} for sample in samples],
            fills,
            count=self._count(samples),
        )
        if self.problem_type is not None:
            batch["labels"] = self._labels(samples)
        self._mix(batch, samples)
        options = self.augmentation
        if "labels" in batch and options is not None and options.label_smoothing:
            batch["labels"] = smooth_labels(batch["labels"], options.label_smoothing)
        if "padding_mask_videos" in batch and bool(batch["padding_mask_videos"].all()):
            del batch["padding_mask_videos"]
        if self.with_captions:
            batch |= {name: [sample.get(name, []) for sample in samples] for name in ("captions", "caption_spans")}
        if self.with_ids and "clip_id" in samples[0]:
            batch["clip_ids"] = [sample["clip_id"] for sample in samples]
        return batch

    def _count(self, samples: Sequence[dict[str, Any]]) -> int | None:
        """Frames per clip of the batch; `None` for as many as the longest clip has."""
        if self.num_frames is None:
            return None
        for place, sample in enumerate(samples):
            longest = max(len(sample[name]) for name in ("pixel_values_videos", "input_values") if name in sample)
            if longest > self.num_frames:
                raise ValueError(
                    f"Clip {sample.get('clip_id', place)!r} has {longest} frames, the batch has room for "
                    f"{self.num_frames}; raise the collator's `num_frames` or lower the data set's `frames`."
                )
        return self.num_frames

    def _labels(self, samples: Sequence[dict[str, Any]]) -> Tensor:
        """Targets: 0/1 floats, or class numbers where nothing softens them."""
        classes = int(self.num_labels or 0)
        targets = torch.zeros(len(samples), classes)
        for place, (row, sample) in enumerate(zip(targets, samples, strict=True)):
            given = sample["labels"] if "labels" in sample else sample["label"]
            labels = [int(label) for label in np.atleast_1d(np.asarray(given))]
            name = sample.get("clip_id", place)
            if any(not 0 <= label < classes for label in labels):
                raise ValueError(f"Clip {name!r} has labels {labels}; `num_labels` is {classes}.")
            if self.problem_type == "single_label_classification" and len(set(labels)) != 1:
                raise ValueError(
                    f"Clip {name!r} has labels {labels}; single-label classification needs exactly one. "
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
        masks = torch.stack([batch[name] for name in ("padding_mask", "padding_mask_videos") if name in batch])
        fitting = (masks == masks.roll(-1, 1)).all(dim=2).all(dim=0)
        if "window_offsets" in batch:  # windows that lie at other places of their clips would be mixed with others
            fitting &= (batch["window_offsets"] == batch["window_offsets"].roll(-1, 0)).all(dim=1)
        for place, sample in enumerate(samples):
            generator = make_generator("mixup", self.seed, sample["epoch"], sample["clip_id"])
            if float(torch.rand((), generator=generator)) >= options.mixup or not fitting[place]:
                continue
            weight = mixing_weight(options.mixup_alpha, generator)
            for name in names:
                own, other = batch[name][place], partners[name][place]
                if name == "input_values":
                    extractor = self.processor.feature_extractor
                    mixed = mix_windows(own, other, weight, extractor, rule=options.mixup_audio)
                else:
                    mixed = weight * own + (1.0 - weight) * other
                batch[name][place] = mixed
