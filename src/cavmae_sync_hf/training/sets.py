# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which data sets does a run train and evaluate on, and how do they come to be?"""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.augmentation import AUGMENTATION_PRESETS, AugmentationOptions
from ..data.clips import ClipSource, FrameChooser, LoadedClip
from ..data.dataset import CavMaeSyncDataset, Frames
from ..data.prepare import prepare
from ..data.streaming import CavMaeSyncStreamingDataset
from ..files import usable_cores
from ..metrics.localization import boxes_in_view
from ..model.alignment_cavmae_sync import center_times, frame_at, reference_indices
from ..model.errors_cavmae_sync import TrainingError
from ..syncworld import make_world, read_truth
from .arguments import DataArguments

__all__ = ["EvaluationSet", "InMemoryDataset", "augmentation_options", "build_sets", "make_syncworld"]

# What SyncWorld's evaluation splits hold, by the key that sets their number of clips.
_EVALUATION_SPLITS = ("semantic", "temporal", "spatial")


@dataclass
class EvaluationSet:
    """Clips to evaluate on, with all their frames.

    Attributes:
        dataset: Gives every clip with all its frames.
        partners: Number of each clip's temporal twin, `None` where clips have none.
        boxes: Per clip and frame the boxes of what sounds at that moment, `(boxes, 4)` in pixels of the model's view;
            `None` where they are not known.
    """

    dataset: CavMaeSyncDataset
    partners: list[int | None] | None = field(default=None)
    boxes: list[list[Tensor]] | None = field(default=None)

    def __len__(self) -> int:
        return len(self.dataset)


class InMemoryDataset(CavMaeSyncDataset):
    """A `CavMaeSyncDataset` whose clips are decoded once, at the start, and kept.

    Frames are kept as 8-bit pixels of the source's size and sounds as half-precision log-mels, so samples are those of
    `CavMaeSyncDataset` over shards. Without augmentation the pixels of a batch are normalised together, which a
    `DataLoader` uses by itself (`__getitems__`). Meant for loading without worker processes, each of which would need
    a copy unless it is forked.

    Args:
        source, processor, frames, augmentation, seed: As of `CavMaeSyncDataset`.
        threads: Clips decoded at a time.
    """

    def __init__(
        self,
        source: Any,
        processor: Any,
        *,
        frames: Frames = 1,
        augmentation: AugmentationOptions | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        super().__init__(source, processor, frames=frames, augmentation=augmentation, seed=seed)
        self.source = _KeptClips(self.source, threads or usable_cores())

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several samples, as `__getitem__` gives each."""
        maker = self.maker
        if maker.augmentation is not None:
            return [self[index] for index in indices]
        epoch = self.epoch
        clips = [
            self.source.read(int(index), partial(self._choose, epoch, getattr(index, "draw", 0))) for index in indices
        ]
        pictures = [clip.frames for clip in clips if clip.frames is not None]
        if len(pictures) < len(clips) or len({tuple(frames.shape[1:]) for frames in pictures}) > 1:
            return [self[index] for index in indices]
        done = maker.processor.video_processor(
            torch.cat(pictures), do_sample_frames=False, input_data_format="channels_first", return_tensors="pt"
        )["pixel_values_videos"][0]
        pixels = done.split([len(frames) for frames in pictures])
        return [maker.sample(clip, epoch, pixels=values) for clip, values in zip(clips, pixels, strict=True)]

    def _choose(self, epoch: int, draw: int, clip_id: str, count: int) -> list[int]:
        return self.maker.choose(clip_id, count, epoch, draw)


class _KeptClips:
    """Clips of another source, held decoded."""

    def __init__(self, source: ClipSource, threads: int) -> None:
        self.group_sizes = source.group_sizes
        self.fingerprint = source.fingerprint
        self.label_names = source.label_names
        count = sum(self.group_sizes)
        with ThreadPoolExecutor(threads) as pool:
            self._clips = list(pool.map(lambda number: self._keep(source, number), range(count)))

    @staticmethod
    def _keep(source: ClipSource, number: int) -> LoadedClip:
        clip = source.read(number, lambda clip_id, frames: range(frames))
        if clip.log_mel is not None:
            clip.log_mel = clip.log_mel.half()
        return clip

    def read(self, number: int, choose: FrameChooser) -> LoadedClip:
        kept = self._clips[number]
        chosen = list(choose(kept.clip_id, len(kept.frame_times)))
        return LoadedClip(
            kept.clip_id,
            None if kept.frames is None else kept.frames[chosen],
            kept.frame_times,
            chosen,
            None if kept.log_mel is None else kept.log_mel.float(),
            kept.labels,
            kept.duration,
        )

    def labels(self) -> list[list[int]]:
        return [clip.labels for clip in self._clips]

    def clip_ids(self) -> list[str]:
        return [clip.clip_id for clip in self._clips]


def augmentation_options(value: Any) -> AugmentationOptions | None:
    """Options from the name of a preset or from settings; `None` where nothing is varied.

    Raises:
        TrainingError: The name is that of no preset, or a setting is unknown.
    """
    if value is None or value == "none":
        return None
    if isinstance(value, str):
        if value not in AUGMENTATION_PRESETS:
            raise TrainingError(f"`augmentation` is {value!r}; presets are {', '.join(AUGMENTATION_PRESETS)}.")
        return AUGMENTATION_PRESETS[value]
    unknown = set(value) - {item.name for item in fields(AugmentationOptions)}
    if unknown:
        raise TrainingError(f"`augmentation` has {', '.join(sorted(unknown))}; no such settings.")
    settings: dict[str, Any] = {
        name: tuple(setting) if isinstance(setting, list) else setting for name, setting in value.items()
    }
    return AugmentationOptions(**settings)


def make_syncworld(
    settings: dict[str, Any], num_frames: int = 16, alignment: str = "time", is_main: bool = True
) -> tuple[str, dict[str, str]]:
    """Make a SyncWorld and its shards, as far as they are not there; returns the training set and the evaluation sets.

    Args:
        settings: As `DataArguments.syncworld`.
        num_frames: Frames kept per clip.
        alignment: Which frames, see `prepare`; each choice has shards of its own beside the one world.
        is_main: Whether this process makes them; the others must wait until it has.

    Raises:
        TrainingError: `folder` is missing.
        DataError: The folder holds another world.
    """
    options = dict(settings)
    try:
        folder = Path(options.pop("folder")).expanduser()
    except KeyError:
        raise TrainingError("`syncworld` needs `folder`, where the world is, or is to be made.") from None
    counts = {"train": int(options.pop("train", 1000))}
    counts |= {name: int(count) for name in _EVALUATION_SPLITS if (count := options.pop(name, 0))}
    preset = options.pop("preset", "mixed")
    shards = {}
    for split, clips in counts.items():
        shards[split] = str(folder / f"shards_{alignment}_{num_frames}" / split)
        if is_main:
            chosen = preset if split == "train" else split
            make_world(
                folder, clips=clips, split=split, preset=chosen, progress=_Counter(f"clips of {split}"), **options
            )
            prepare(
                folder / split, shards[split], name=split, short_side=None, num_frames=num_frames,
                alignment=alignment, workers=options.get("workers"),
            )  # fmt: skip
    return shards.pop("train"), shards


def build_sets(
    arguments: DataArguments, processor: Any, *, seed: int, batch_size: int, is_main: bool = True
) -> tuple[Any, dict[str, EvaluationSet]]:
    """The training set and the evaluation sets.

    Args:
        arguments: What to build.
        processor: The model's processor.
        seed: Seeds order and samples.
        batch_size: Samples of a process in a batch; only streaming needs it.
        is_main: Whether this process makes a SyncWorld where one is asked for.

    Raises:
        TrainingError: There is no training set.
        ValueError: A source cannot be used.
    """
    settings: Any = arguments.syncworld
    given: Any = arguments.eval_data
    train, evaluation = arguments.train_data, dict(given or {})
    if settings:
        extractor = processor.feature_extractor
        made, made_evaluation = make_syncworld(settings, extractor.num_frames, extractor.alignment, is_main)
        train, evaluation = train or made, evaluation or made_evaluation
    if train is None:
        raise TrainingError("There is nothing to train on; name `train_data`, or a `syncworld` to make.")
    options: dict[str, Any] = {"augmentation": augmentation_options(arguments.augmentation), "seed": seed}
    train_set: Any
    if arguments.streaming:
        train_set = CavMaeSyncStreamingDataset(
            train, processor, frames=arguments.frames_per_clip, shuffle_buffer=arguments.shuffle_buffer,
            batch_size=batch_size, uneven="drop", **options,
        )  # fmt: skip
    else:
        kind = InMemoryDataset if arguments.in_memory else CavMaeSyncDataset
        train_set = kind(train, processor, frames=arguments.frames_per_clip, **options)
    kind = InMemoryDataset if arguments.in_memory else CavMaeSyncDataset
    sets = {}
    for name, source in evaluation.items():
        dataset = kind(source, processor, frames="all")
        sets[name] = EvaluationSet(dataset, *_syncworld_truth(source, dataset, processor))
    return train_set, sets


def _syncworld_truth(
    source: str, dataset: CavMaeSyncDataset, processor: Any
) -> tuple[list[int | None] | None, list[list[Tensor]] | None]:
    """Temporal twins and sounding boxes of a SyncWorld split, which lies beside the folder of its shards, or is the
    source itself; `None` for what is not known.
    """
    path = Path(source)
    for split in (path, path.parent.parent / path.name):
        if (split / "world.json").is_file():
            break
    else:
        return None, None
    records = {record["clip_id"].rpartition("-")[2]: record for record in read_truth(split)}
    stems = [clip_id.rpartition("-")[2] for clip_id in dataset.clip_ids()]
    if not set(stems) <= set(records):
        return None, None
    places = {int(stem): place for place, stem in enumerate(stems)}
    partners = [places.get(records[stem]["partner"]) for stem in stems]
    boxes = [_sounding_boxes(records[stem], processor) for stem in stems]
    return (partners if any(partner is not None for partner in partners) else None), boxes


def _sounding_boxes(record: dict[str, Any], processor: Any) -> list[Tensor]:
    """What sounds in each of a clip's frames, as boxes in the model's view."""
    extractor, view = processor.feature_extractor, processor.video_processor
    count, shown, fps = extractor.num_frames, record["num_video_frames"], record["fps"]
    if extractor.alignment == "time":
        frames = [frame_at(time, fps) for time in center_times(record["duration"], count)]
    else:
        frames = reference_indices(shown, fps, count)
    side, edge = view.crop_size["height"], view.size["shortest_edge"]
    found = []
    for frame in frames:
        given = [
            event["boxes"][frame - event["start_frame"]]
            for event in record["events"]
            if event["start_frame"] <= frame < event["end_frame"]
        ]
        found.append(boxes_in_view(given, (record["height"], record["width"]), side, edge))
    return found


class _Counter:
    """One line on the terminal that counts; nothing where no one watches."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self.shown = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        if self.shown:
            print(f"\r{done} / {total} {self.noun}", end="\n" if done == total else "", file=sys.stderr, flush=True)
