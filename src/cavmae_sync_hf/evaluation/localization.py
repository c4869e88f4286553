# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How well does a model find in the picture what sounds, on SyncWorld's truth or on masks?"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
import torchvision.transforms.v2.functional as tvF
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..data.tables import MEDIA_SUFFIXES
from ..inference.localize import occlusion_maps
from ..metrics import boxes_in_view, compute, patch_maps, pointing_accuracy
from ..metrics.localization import time_pointing_accuracy, upsample_maps
from ..model.alignment_cavmae_sync import frame_at, window_times
from ..model.errors_cavmae_sync import EvaluationError, MediaError
from ..model.feature_extraction_cavmae_sync import SILENCE
from ..model.media_cavmae_sync import decode_media
from .clips import RunOptions, batches, find_world, fit_processor, open_evaluation
from .protocols import LOCALIZATION_PROTOCOLS, LocalizationProtocol, find_protocol, modify
from .results import make_record
from .tables import Prompt, mask_in_view, read_mask, read_prompts

__all__ = ["evaluate_localization", "sounding_boxes"]

# The control's sound is that of the clip so many before: a clip's neighbour may be its temporal twin.
_CONTROL_DISTANCE = 2


def evaluate_localization(
    model: Any,
    processor: Any,
    data: Any,
    protocol: str | LocalizationProtocol = "syncworld",
    *,
    maps: str | None = None,
    truth: str | os.PathLike[str] | None = None,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Localisation of sounds in pictures, under a protocol.

    Args:
        model: A `CavMaeSyncModel` with both towers, in evaluation mode.
        processor: Its processor.
        data: `"syncworld"`: a SyncWorld split, or shards of one. `"masks"`: a table as `read_prompts` takes it.
        protocol: One of `LOCALIZATION_PROTOCOLS`, by name, or one of your own.
        maps: Other maps than the protocol's: `"occlusion"` or `"cosine"`.
        truth: The SyncWorld split of shards that lie elsewhere.
        options: See `RunOptions`.

    Returns:
        A results record, see `make_record`. With boxes, `metrics` are those of `localization_metrics` over all
        moments at which something sounds; `pointing_other_sound`, the pointing accuracy with the sound of another
        clip (what of it is owed to the picture alone); `time_pointing_*`, the other way round: the picture's place in
        the sound. With masks, those of `segmentation_metrics` or `class_segmentation_metrics`.

    Raises:
        ValueError: The protocol, the truth or the data cannot be used; the message says why.
    """
    rules = modify(find_protocol(protocol, LOCALIZATION_PROTOCOLS), maps=maps)
    fitted = fit_processor(processor, rules)
    if rules.truth == "masks":
        if truth is not None:
            raise EvaluationError(f"The protocol {rules.name} has no use for `truth`; the table names the masks.")
        return _masks(model, fitted, data, rules, options)
    return _syncworld(model, fitted, data, rules, truth, options)


def sounding_boxes(record: Mapping[str, Any], times: Sequence[float]) -> list[list[list[int]]]:
    """Boxes `[x0, y0, x1, y1]` of what sounds on the frames on screen at `times` (seconds), in pixels of the clip."""
    boxes = []
    for time in times:
        # The frame on screen is the last one that began; the tiny sum keeps 0.3 * 10 from falling to frame 2.
        frame = min(frame_at(time, record["fps"]), record["num_video_frames"] - 1)
        events = [event for event in record["events"] if event["start_frame"] <= frame < event["end_frame"]]
        boxes.append([event["boxes"][frame - event["start_frame"]] for event in events])
    return boxes


def _sounding_spans(record: Mapping[str, Any], times: Sequence[float]) -> list[list[list[float]]]:
    """When the objects that sound at each of `times` do so, `[start, end]` in seconds."""
    spans = []
    for time in times:
        on = {event["object"] for event in record["events"] if event["start"] <= time < event["end"]}
        spans.append([[event["start"], event["end"]] for event in record["events"] if event["object"] in on])
    return spans


class _Collector:
    """Maps and truths of the moments at which something sounds, batch by batch."""

    def __init__(self, model: Any, processor: Any, rules: LocalizationProtocol) -> None:
        self.mapper, self.rules = _Mapper(model, processor, rules.maps), rules
        self.extractor = processor.feature_extractor
        self.side, self.edge = model.config.image_size, _shortest_edge(processor.video_processor)
        self.maps: list[Tensor] = []
        self.boxes: list[Any] = []
        self.control_maps: list[Tensor] = []
        self.control_boxes: list[Any] = []
        self.time_maps: list[Tensor] = []
        self.spans: list[Any] = []
        self.window_times: list[list[float]] = []
        self.earlier: deque[Tensor] = deque(maxlen=_CONTROL_DISTANCE)

    def add(self, records: Sequence[Mapping[str, Any]], times: Tensor, inputs: Mapping[str, Tensor]) -> None:
        """A batch of clips: truth records, frame times `(clips, frames)` and the model's inputs."""
        heard = inputs["padding_mask"]
        wanted = heard & inputs.get("padding_mask_videos", heard)
        boxes = []
        for row, record in enumerate(records):
            size = (record["height"], record["width"])
            given = sounding_boxes(record, times[row].tolist())
            boxes.append([boxes_in_view(own, size, self.side, self.edge) for own in given])
            # The maps of moments without a box serve nothing, and may be costly.
            wanted[row] &= torch.tensor([len(own) > 0 for own in boxes[row]], device=wanted.device)
        maps = self.mapper(inputs, wanted, self._other_sounds)
        for row, record in enumerate(records):
            kept = wanted[row].nonzero()[:, 0].tolist()
            own_boxes = [boxes[row][k] for k in kept]
            self.maps.append(maps.own[row, kept])
            self.boxes += own_boxes
            if maps.known[row]:
                self.control_maps.append(maps.other[row, kept])
                self.control_boxes += own_boxes
            self.time_maps.append(maps.time[row, kept])
            moments = times[row].tolist()
            self.spans += _sounding_spans(record, [moments[k] for k in kept])
            times_of_windows = window_times(self.extractor.window_starts(moments), self.extractor.audio_length)
            self.window_times += [list(times_of_windows[k]) for k in kept]

    def _other_sounds(self, sounds: Tensor) -> tuple[Tensor, list[bool]]:
        """For every clip of a batch an earlier one's sound `(clips, frames, hidden)`, and whether there is one."""
        others, known = torch.zeros_like(sounds), []
        for row, sound in enumerate(sounds):
            there = len(self.earlier) == _CONTROL_DISTANCE and self.earlier[0].shape == sound.shape
            if there:
                others[row] = self.earlier[0]
            known.append(there)
            self.earlier.append(sound)
        return others, known

    def metrics(self) -> dict[str, float | int]:
        view, rules = (self.side, self.side), self.rules
        metrics = compute(
            "localization",
            predictions=torch.cat(self.maps),
            references=self.boxes,
            view=view,
            tolerance=rules.tolerance,
            threshold=rules.threshold,
        )
        if self.control_boxes:
            control = pointing_accuracy(
                torch.cat(self.control_maps), self.control_boxes, view, tolerance=rules.tolerance
            )
            metrics["pointing_other_sound"] = control["accuracy"]
        if any(self.spans):
            found = time_pointing_accuracy(torch.cat(self.time_maps), self.spans, self.window_times)
            metrics |= {f"time_pointing_{key}": value for key, value in found.items()}
        return metrics


class _Maps(NamedTuple):
    """Of a batch, on the CPU, `(clips, frames, rows, columns)`; `known` says whose `other` there is."""

    own: Tensor
    other: Tensor
    known: list[bool]
    time: Tensor


class _Mapper:
    """Makes maps by one of the ways of `MAPS`."""

    def __init__(self, model: Any, processor: Any, method: str) -> None:
        self.model, self.method = model, method
        extractor = processor.feature_extractor
        self.silent_window = torch.full(
            (1, 1, extractor.audio_length, extractor.num_mel_bins), (SILENCE - extractor.mean) / extractor.std
        )

    @cached_property
    def silence(self) -> Tensor:
        """The embedding of a silent window, `(hidden,)`; a sound is what sets it apart from that."""
        window = self.silent_window.to(self.model.device, self.model.dtype)
        return self.model.get_audio_features(window).audio_embeds[0, 0]

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        wanted: Tensor,
        other_sounds: Callable[[Tensor], tuple[Tensor, list[bool]]],
    ) -> _Maps:
        """Maps of the moments where `wanted` `(clips, frames)` is True; those of others mean nothing."""
        model = self.model
        output = model(**inputs)
        others, known = other_sounds(output.audio_embeds)
        if self.method == "cosine":
            grids = model.config.video_grid, model.config.audio_grid
            own = patch_maps(output.audio_embeds, output.video_patch_embeds, grids[0])
            other = patch_maps(others, output.video_patch_embeds, grids[0])
            time = patch_maps(output.video_embeds, output.audio_patch_embeds, grids[1])
        else:
            # Every picture twice in a row, which the model looks at once: with its own sound and with another.
            pictures, both = (values.repeat_interleave(2, dim=1) for values in (inputs["pixel_values_videos"], wanted))
            queries = torch.stack([output.audio_embeds, others], dim=2).flatten(1, 2) - self.silence
            maps = occlusion_maps(model, "video", pictures, queries, both)
            own, other = maps[:, 0::2], maps[:, 1::2]
            time = occlusion_maps(model, "audio", inputs["input_values"], output.video_embeds, wanted)
        return _Maps(own.float().cpu(), other.float().cpu(), known, time.float().cpu())

    def prompted(self, windows: Tensor, present: Tensor, pictures: Tensor) -> Tensor:
        """Mean over the present windows `(1, windows, ...)` of the maps on one picture, `(rows, columns)`."""
        model = self.model
        embeds = model.get_audio_features(windows, present).audio_embeds[0][present[0]]
        if self.method == "cosine":
            patches = model.get_video_features(pictures).last_hidden_state[0, 0]
            return patch_maps(embeds, patches, model.config.video_grid).mean(dim=0).cpu()
        # Maps are linear in what is compared with, so the mean of the maps is the map of the mean.
        query = (embeds.mean(dim=0) - self.silence)[None, None]
        return occlusion_maps(model, "video", pictures, query)[0, 0].float().cpu()


def _shortest_edge(video_processor: Any) -> int:
    size = video_processor.size
    edge = size.get("shortest_edge") if hasattr(size, "get") else getattr(size, "shortest_edge", None)
    if edge is None:
        raise EvaluationError(
            "The processor does not resize by the shortest side, so boxes and masks cannot follow the picture; use a "
            "processor from CavMaeSyncProcessor.from_config."
        )
    return int(edge)


@torch.no_grad()
def _syncworld(
    model: Any, processor: Any, data: Any, rules: LocalizationProtocol, truth: Any, options: RunOptions
) -> dict[str, Any]:
    clips = open_evaluation(data, processor, rules, options)
    records = find_world(data, clips.ids, truth)
    if not records:
        raise EvaluationError(
            f"{clips.name}: there is no truth about what sounds where; evaluate on a SyncWorld split (`cavmae-sync "
            "world`), name the split of these shards as `truth` (--truth), or use a protocol of masks."
        )
    if clips.missing:
        clips.check(options.get("strict", False))
    collector = _Collector(model, processor, rules)
    for inputs, about in batches(clips, processor, model, options):
        collector.add([records[place] for place in about["places"]], about["frame_times"], inputs)
    clips.check(options.get("strict", False))
    settings = {"alignment": processor.feature_extractor.alignment, "view": model.config.image_size}
    return make_record(
        "localization",
        rules,
        collector.metrics(),
        model=model,
        data=clips.data_record(),
        counts=clips.counts(),
        settings=settings,
        command=options.get("command"),
    )


@torch.no_grad()
def _masks(model: Any, processor: Any, data: Any, rules: LocalizationProtocol, options: RunOptions) -> dict[str, Any]:
    unused = [key for key in ("ids", "media", "labels", "split") if options.get(key) is not None]
    if unused:
        raise EvaluationError(f"A table of masks has no use for the option `{unused[0]}`; leave it out.")
    if not isinstance(data, str | os.PathLike) or not Path(data).is_file():
        raise EvaluationError(f"{data}: the protocol {rules.name} needs a table with image, audio and mask per row.")
    prompts = read_prompts(data)
    expected = len(prompts)
    prompts = prompts[: options.get("limit")]
    if rules.pooling == "classes" and not all(prompt.label for prompt in prompts):
        raise EvaluationError(f"{data}: the protocol {rules.name} needs the column `label` in every row.")
    # Before anything is embedded: a mask that cannot be read ends the run, and should do so at once.
    side, edge = model.config.image_size, _shortest_edge(processor.video_processor)
    masks = [read_mask(prompt.mask, prompt.mask_value) for prompt in prompts]
    mapper = _Mapper(model, processor, rules.maps)
    progress = options.get("progress")
    maps, truths, labels, unusable = [], [], [], []
    for done, (prompt, mask) in enumerate(zip(prompts, masks, strict=True), start=1):
        try:
            maps.append(_prompted_map(mapper, processor, prompt, mask.shape))
        except (MediaError, FileNotFoundError, UnidentifiedImageError) as error:
            unusable.append({"id": prompt.name, "reason": " ".join(str(error).split())})
        else:
            truths.append(mask_in_view(mask, edge, side))
            labels.append(prompt.label)
        if progress is not None:
            progress(done, len(prompts), f"{len(unusable)} unusable" if unusable else "")
    if not maps:
        raise EvaluationError(f"{data}: no row can be used; the first: {unusable[0]['reason']}")
    if unusable and options.get("strict", False):
        raise EvaluationError(f"{data}: {len(unusable)} of {expected} rows cannot be used: {unusable[0]['reason']}")
    pixels = upsample_maps(torch.stack(maps), (side, side))
    metrics = compute(
        "segmentation",
        predictions=pixels,
        references=torch.stack(truths),
        labels=labels if rules.pooling == "classes" else None,
        thresholds=rules.thresholds,
    )
    counts = {
        "clips_seen": len(maps),
        "clips_expected": expected,
        "clips_missing": 0,
        "clips_unusable": len(unusable),
        "missing": [],
        "unusable": unusable[:100],
    }
    text = json.dumps([_identity(prompt, Path(data).parent) for prompt in prompts])
    record = {
        "name": os.fspath(data),
        "kind": "masks",
        "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
    }
    settings = {"alignment": processor.feature_extractor.alignment, "view": side}
    return make_record(
        "localization",
        rules,
        metrics,
        model=model,
        data=record,
        counts=counts,
        settings=settings,
        command=options.get("command"),
    )


def _identity(prompt: Prompt, folder: Path) -> dict[str, Any]:
    """What tells a row wherever the table lies: its values, with files relative to it."""
    values = asdict(prompt)
    for key in ("image", "audio", "mask"):
        values[key] = os.path.relpath(values[key], folder)
    return values


def _prompted_map(mapper: _Mapper, processor: Any, prompt: Prompt, mask_size: tuple[int, ...]) -> Tensor:
    """Mean over the sound's windows of the maps on the picture, `(rows, columns)` on the CPU."""
    picture = _picture(prompt)
    if tuple(picture.shape[-2:]) != mask_size:
        raise EvaluationError(
            f"{prompt.mask}: is {mask_size[1]} x {mask_size[0]} pixels, its picture {prompt.image} "
            f"{picture.shape[-1]} x {picture.shape[-2]}; a mask has the size of its picture."
        )
    pixels = processor.video_processor(picture, do_sample_frames=False, input_data_format="channels_first",
                                       return_tensors="pt")["pixel_values_videos"]  # fmt: skip
    extractor = processor.feature_extractor
    sound = decode_media(
        prompt.audio, sampling_rate=extractor.sampling_rate, channel=extractor.channel, want_video=False
    )
    windows = extractor(sound.waveform, sampling_rate=sound.sampling_rate, return_tensors="pt")
    model = mapper.model
    values = windows["input_values"].to(model.device, model.dtype)
    return mapper.prompted(values, windows["padding_mask"].to(model.device), pixels.to(model.device, model.dtype))


def _picture(prompt: Prompt) -> Tensor:
    """The picture as `(1, 3, height, width)` uint8."""
    if Path(prompt.image).suffix.lower() in MEDIA_SUFFIXES:
        times = None if prompt.time is None else [prompt.time]
        media = decode_media(prompt.image, num_frames=1, frame_times=times, want_audio=False)
        assert media.frames is not None  # want_video makes its absence an error
        return media.frames
    with Image.open(prompt.image) as image:
        return tvF.pil_to_tensor(image.convert("RGB"))[None]
