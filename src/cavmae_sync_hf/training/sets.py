# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets that a run trains and evaluates on, and what its batches hold."""

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from ..data.augmentation import AUGMENTATION_PRESETS, AugmentationOptions
from ..data.captions import TimedText
from ..data.clips import ClipSource, FrameChooser, LoadedClip
from ..data.dataset import CavMaeSyncCollator, CavMaeSyncDataset, Frames
from ..data.prepare import prepare
from ..data.streaming import CavMaeSyncStreamingDataset
from ..files import usable_cores
from ..metrics.localization import boxes_in_view
from ..model.alignment_cavmae_sync import center_times, reference_indices
from ..model.batching_cavmae_sync import MomentFrames
from ..model.errors_cavmae_sync import DataError, TrainingError
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model.video_processing_cavmae_sync import CavMaeSyncVideoProcessor
from ..syncworld import find_truth, make_world, sounding_boxes, temporal_partners
from .settings import DataArguments, InstructionArguments, ProbeArguments, TextArguments

# Inputs of the models by modality: values, and the mask of those that are there.
_INPUTS = {"video": ("pixel_values_videos", "padding_mask_videos"), "audio": ("input_values", "padding_mask")}
INPUT_NAMES = (
    *(name for names in _INPUTS.values() for name in names), "audio_tokens", "video_tokens", "window_offsets",
)  # fmt: skip

# What SyncWorld's evaluation splits hold, by the key that sets their number of clips.
_EVALUATION_SPLITS = ("semantic", "temporal", "spatial", "mixed")


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


@dataclass
class ModalityCollator:
    """Leaves out of a collator's batches what the model does not see: a modality, and masks that mask nothing.

    Args:
        collator: Makes the batches.
        modality: `"multimodal"`, `"audio"` or `"video"`.
    """

    collator: CavMaeSyncCollator
    modality: str = "multimodal"

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch."""
        batch = self.collator(samples)
        batch.pop("window_times", None)
        for modality, names in _INPUTS.items():
            if self.modality not in ("multimodal", modality):
                for name in names:
                    batch.pop(name, None)
        # On the CPU, where looking costs nothing: without a mask the model takes the path for whole clips alone.
        for _, name in _INPUTS.values():
            if name in batch and bool(batch[name].all()):
                del batch[name]
        return batch


class InMemoryDataset(CavMaeSyncDataset):
    """A `CavMaeSyncDataset` whose clips are decoded once, at the start, and kept.

    Frames are kept as 8-bit pixels of the model's size, or of the source's where an augmentation is to vary them, and
    audio as half-precision log-mels, so samples are those of `CavMaeSyncDataset` over shards. Without augmentation the
    pixels of a batch are normalised together, which a `DataLoader` uses by itself (`__getitems__`). Meant for loading
    without worker processes, each of which would need a copy unless it is forked.

    Args:
        source, processor, frames, augmentation, seed: As of `CavMaeSyncDataset`.
        threads: Clips decoded at a time.
    """

    def __init__(
        self,
        source: Any,
        processor: CavMaeSyncProcessor,
        *,
        frames: Frames = 1,
        augmentation: AugmentationOptions | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        super().__init__(source, processor, frames=frames, augmentation=augmentation, seed=seed)
        whole = processor.feature_extractor.features == "waveform"  # of which halves lose what is soft
        resize = partial(_resized, processor.video_processor) if augmentation is None else None
        self.source = _KeptClips(self.source, threads or usable_cores(), whole, resize)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several samples, as `__getitem__` gives each."""
        maker = self.maker
        if maker.augmentation is not None:
            return [self[index] for index in indices]
        epoch = self.epoch
        clips = [
            self.source.read(int(index), partial(self._choose, epoch, getattr(index, "draw", 0))) for index in indices
        ]
        shown = [clip.images for clip in clips if clip.images is not None]
        if len(shown) < len(clips) or len({tuple(frames.shape[1:]) for frames in shown}) > 1:
            return [self[index] for index in indices]
        done = maker.processor.video_processor(
            torch.cat(shown), do_sample_frames=False, input_data_format="channels_first", return_tensors="pt"
        )["pixel_values_videos"][0]
        pixels = done.split([len(frames) for frames in shown])
        return [maker.sample(clip, epoch, pixels=values) for clip, values in zip(clips, pixels, strict=True)]

    def _choose(self, epoch: int, draw: int, clip_id: str, count: int) -> list[int]:
        return self.maker.choose(clip_id, count, epoch, draw)


def _resized(view: CavMaeSyncVideoProcessor, frames: Tensor) -> Tensor:
    """Frames as the model sees them, in 8 bits, which is what they have before they are normalised."""
    shown = view(
        frames, do_sample_frames=False, do_rescale=False, do_normalize=False, input_data_format="channels_first",
        return_tensors="pt",
    )  # fmt: skip
    return shown["pixel_values_videos"][0].to(torch.uint8)


class _KeptClips:
    """Clips of another source, held decoded."""

    def __init__(
        self, source: ClipSource, threads: int, whole: bool, resize: Callable[[Tensor], Tensor] | None
    ) -> None:
        self.group_sizes = source.group_sizes
        self.fingerprint = source.fingerprint
        self.label_names = source.label_names

        def keep(number: int) -> LoadedClip:
            clip = source.read(number, lambda clip_id, frames: range(frames))
            if clip.log_mel is not None and not whole:
                clip.log_mel = clip.log_mel.half()
            if clip.frames is not None and resize is not None:
                frames = clip.frames
                if isinstance(frames, MomentFrames):
                    clip.frames = frames._replace(images=resize(frames.images))
                else:
                    clip.frames = resize(frames)
            return clip

        count, show = sum(self.group_sizes), counter("clips in memory")
        self._clips: list[LoadedClip] = []
        with ThreadPoolExecutor(threads) as pool:
            for clip in pool.map(keep, range(count)):
                self._clips.append(clip)
                if show is not None:
                    show(len(self._clips), count)

    def read(self, number: int, choose: FrameChooser) -> LoadedClip:
        kept = self._clips[number]
        chosen = list(choose(kept.clip_id, len(kept.frame_times)))
        frames = kept.frames
        if frames is not None:
            frames = frames.of(chosen) if isinstance(frames, MomentFrames) else frames[chosen]
        return replace(
            kept,
            frames=frames,
            chosen=chosen,
            log_mel=None if kept.log_mel is None else kept.log_mel.float(),
        )

    def labels(self) -> list[list[int]]:
        return [clip.labels for clip in self._clips]

    def clip_ids(self) -> list[str]:
        return [clip.clip_id for clip in self._clips]

    def captions(self) -> list[list[TimedText]]:
        return [clip.captions for clip in self._clips]


def augmentation_options(value: str | Mapping[str, Any] | None) -> AugmentationOptions | None:
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
    settings: Mapping[str, Any],
    num_frames: int | None = 16,
    alignment: str = "time",
    is_main: bool = True,
    waveform_rate: int | None = None,
) -> tuple[str, dict[str, str]]:
    """Make a SyncWorld and its shards, as far as they are not there; returns the training set and the evaluation sets.

    Args:
        settings: As `DataArguments.syncworld`.
        num_frames: Frames kept per clip; `None`: all, where a moment has several, and the clips are read as they are.
        alignment: Which frames, see `prepare`; each choice has shards of its own beside the one world.
        is_main: Whether this process makes them; the others must wait until it has.
        waveform_rate: Rate in Hz at which waveforms are kept, for encoders that hear samples; `None`: log-mels are.

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
        kept = f"_waveform_{waveform_rate}" if waveform_rate else ""
        place = "" if num_frames is None else f"shards_{alignment}_{num_frames}{kept}"
        shards[split] = str(folder / place / split)
        if is_main:
            chosen = preset if split == "train" else split
            make_world(
                folder, clips=clips, split=split, preset=chosen, progress=counter(f"clips of {split}"), **options
            )
        if is_main and num_frames is not None:
            prepare(
                folder / split, shards[split], name=split, short_side=None, num_frames=num_frames,
                alignment=alignment, workers=options.get("workers"),
                audio="waveform" if waveform_rate else "log_mel", sampling_rate=waveform_rate or 16_000,
            )  # fmt: skip
    return shards.pop("train"), shards


def find_sources(
    arguments: DataArguments | InstructionArguments | ProbeArguments | TextArguments,
    processor: CavMaeSyncProcessor,
    is_main: bool = True,
) -> tuple[str, dict[str, str]]:
    """Where the clips to train on are, and those of the evaluation sets, by name.

    Args:
        arguments: Data, or a SyncWorld to make.
        processor: The model's processor.
        is_main: Whether this process makes a SyncWorld where one is asked for.

    Raises:
        TrainingError: There is no training set.
    """
    settings: Any = arguments.syncworld
    given: Any = arguments.eval_data
    train, evaluation = arguments.train_data, dict(given or {})
    if settings and not (train and evaluation):
        extractor = processor.feature_extractor
        rate = extractor.sampling_rate if extractor.features == "waveform" else None
        frames = extractor.num_frames if processor.video_processor.frames_per_moment == 1 else None
        made, made_evaluation = make_syncworld(settings, frames, extractor.alignment, is_main, rate)
        train, evaluation = train or made, evaluation or made_evaluation
    if train is None:
        raise TrainingError("There is nothing to train on; name `train_data`, or a `syncworld` to make.")
    return train, evaluation


def build_sets(
    arguments: DataArguments, processor: CavMaeSyncProcessor, training: TrainingArguments
) -> tuple[CavMaeSyncDataset | CavMaeSyncStreamingDataset, dict[str, EvaluationSet]]:
    """The training set and the evaluation sets.

    Args:
        arguments: What to build.
        processor: The model's processor.
        training: Of the run: seed, size of batches and processes, of which the first makes a SyncWorld where one is
            asked for.

    Raises:
        TrainingError: There is no training set.
        DataError: A source cannot be used.
    """
    with training.main_process_first(desc="data preparation"):
        train, evaluation = find_sources(arguments, processor, training.process_index == 0)
        options: dict[str, Any] = {
            "frames": arguments.frames_per_clip,
            "augmentation": augmentation_options(arguments.augmentation),
            "seed": training.seed,
        }
        kind = InMemoryDataset if arguments.in_memory else CavMaeSyncDataset
        train_set: CavMaeSyncDataset | CavMaeSyncStreamingDataset
        if arguments.streaming:
            train_set = CavMaeSyncStreamingDataset(
                train, processor, shuffle_buffer=arguments.shuffle_buffer,
                batch_size=training.per_device_train_batch_size, uneven="drop", **options,
            )  # fmt: skip
        else:
            train_set = kind(train, processor, **options)
        sets = {}
        for name, source in evaluation.items():
            dataset = kind(source, processor, frames="all")
            sets[name] = EvaluationSet(dataset, *_syncworld_truth(source, dataset, processor))
    return train_set, sets


def _syncworld_truth(
    source: str, dataset: CavMaeSyncDataset, processor: CavMaeSyncProcessor
) -> tuple[list[int | None] | None, list[list[Tensor]] | None]:
    """Temporal twins and sounding boxes of a SyncWorld split, which lies beside the folder of its shards, or is the
    source itself; `None` for what is not known.
    """
    try:
        records = find_truth(source, dataset.clip_ids())
    except DataError:  # clips of something else, where a SyncWorld's would lie
        records = None
    if records is None:
        return None, None
    extractor, view = processor.feature_extractor, processor.video_processor
    count, side, edge = extractor.num_frames, view.crop_size["height"], view.size["shortest_edge"]
    boxes = []
    for record in records:
        if extractor.alignment == "time":
            times = center_times(record["duration"], count)
        else:
            numbers = reference_indices(record["num_video_frames"], record["fps"], count)
            times = [(number + 0.5) / record["fps"] for number in numbers]
        size = (record["height"], record["width"])
        boxes.append([boxes_in_view(given, size, side, edge) for given in sounding_boxes(record, times)])
    return temporal_partners(records), boxes


def counter(noun: str) -> Callable[[int, int], None] | None:
    """Shows progress as a line on the terminal that counts; nothing where no one watches."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        print(f"\r{done} / {total} {noun}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
