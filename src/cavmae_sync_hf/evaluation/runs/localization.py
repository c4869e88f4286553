# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How well does a model find in the picture what sounds, on SyncWorld's truth or on masks?"""

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import torch
import torchvision.transforms.v2.functional as tvF
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ...data.tables import MEDIA_SUFFIXES
from ...feature_extraction_cavmae_sync import FRAMES_PER_SECOND
from ...media_cavmae_sync import MediaError, decode_media
from ..localization import (
    boxes_in_view,
    localization_metrics,
    patch_maps,
    pointing_accuracy,
    segmentation_metrics,
    time_pointing_accuracy,
    upsample_maps,
)
from ..protocols import LOCALIZATION_PROTOCOLS, LocalizationProtocol, ProtocolError, find_protocol
from ..results import make_record
from ..segmentation import (
    MaskError,
    Prompt,
    class_segmentation_metrics,
    mask_in_view,
    read_mask,
    read_prompts,
)
from .clips import EvaluationError, RunOptions, batches, find_world, fit_processor, open_evaluation

__all__ = ["evaluate_localization", "sounding_boxes"]

# The control's sound is that of the clip so many before: a clip's neighbour may be its temporal twin.
_CONTROL_DISTANCE = 2


def evaluate_localization(
    model: Any,
    processor: Any,
    data: Any,
    protocol: str | LocalizationProtocol = "syncworld",
    *,
    truth: str | os.PathLike[str] | None = None,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Localisation of sounds in pictures, under a protocol.

    Args:
        model: A `CavMaeSyncModel` with both towers, in evaluation mode.
        processor: Its processor.
        data: `"syncworld"`: a SyncWorld split, or shards of one. `"masks"`: a table as `read_prompts` takes it.
        protocol: One of `LOCALIZATION_PROTOCOLS`, by name, or one of your own.
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
    rules = find_protocol(protocol, LOCALIZATION_PROTOCOLS)
    fitted = fit_processor(processor, rules)
    if rules.truth == "masks":
        if truth is not None:
            raise ProtocolError(f"The protocol {rules.name} has no use for `truth`; the table names the masks.")
        return _masks(model, fitted, data, rules, options)
    return _syncworld(model, fitted, data, rules, truth, options)


def sounding_boxes(record: Mapping[str, Any], times: Sequence[float]) -> list[list[list[int]]]:
    """Boxes `[x0, y0, x1, y1]` of what sounds on the frames on screen at `times` (seconds), in pixels of the clip."""
    boxes = []
    for time in times:
        # The frame on screen is the last one that began; the tiny sum keeps 0.3 * 10 from falling to frame 2.
        frame = min(math.floor(time * record["fps"] + 1e-6), record["num_video_frames"] - 1)
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
    """Maps and truths of the moments at which something sounds, clip by clip."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.grids = model.config.video_grid, model.config.audio_grid
        video_processor = processor.video_processor
        self.extractor = processor.feature_extractor
        self.side = model.config.image_size
        self.shortest_edge = _shortest_edge(video_processor)
        self.maps: list[Tensor] = []
        self.boxes: list[Any] = []
        self.control_maps: list[Tensor] = []
        self.control_boxes: list[Any] = []
        self.time_maps: list[Tensor] = []
        self.spans: list[Any] = []
        self.window_times: list[list[float]] = []
        self.earlier: deque[Tensor] = deque(maxlen=_CONTROL_DISTANCE)

    def add(self, record: Mapping[str, Any], times: list[float], output: Any, row: int, present: Tensor) -> None:
        """One clip of a batch."""
        kept = present.nonzero()[:, 0].tolist()
        sounds, pictures = output.audio_embeds[row], output.video_embeds[row]
        maps = patch_maps(sounds, output.video_patch_embeds[row], self.grids[0]).cpu()
        size = (record["height"], record["width"])
        boxes = [
            boxes_in_view(given, size, self.side, self.shortest_edge)
            for given in sounding_boxes(record, [times[k] for k in kept])
        ]
        self.maps.append(maps[kept])
        self.boxes += boxes
        if len(self.earlier) == _CONTROL_DISTANCE and self.earlier[0].shape == sounds.shape:
            other = patch_maps(self.earlier[0], output.video_patch_embeds[row], self.grids[0]).cpu()
            self.control_maps.append(other[kept])
            self.control_boxes += boxes
        self.earlier.append(sounds)
        self.time_maps.append(patch_maps(pictures, output.audio_patch_embeds[row], self.grids[1]).cpu()[kept])
        self.spans += _sounding_spans(record, [times[k] for k in kept])
        starts = self.extractor.window_starts(times)
        length = self.extractor.audio_length
        self.window_times += [[starts[k] / FRAMES_PER_SECOND, (starts[k] + length) / FRAMES_PER_SECOND] for k in kept]

    def metrics(self, rules: LocalizationProtocol) -> dict[str, float | int]:
        view = (self.side, self.side)
        metrics = localization_metrics(
            torch.cat(self.maps), self.boxes, view, tolerance=rules.tolerance, threshold=rules.threshold
        )
        if any(len(boxes) for boxes in self.control_boxes):
            control = pointing_accuracy(
                torch.cat(self.control_maps), self.control_boxes, view, tolerance=rules.tolerance
            )
            metrics["pointing_other_sound"] = control["accuracy"]
        if any(self.spans):
            found = time_pointing_accuracy(torch.cat(self.time_maps), self.spans, self.window_times)
            metrics |= {f"time_pointing_{key}": value for key, value in found.items()}
        return metrics


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
    collector = _Collector(model, processor)
    for inputs, about in batches(clips, processor, model, options):
        output = model(**inputs)
        present = inputs["padding_mask"] & inputs.get("padding_mask_videos", inputs["padding_mask"])
        for row, place in enumerate(about["places"]):
            times = about["frame_times"][row].tolist()
            collector.add(records[place], times, output, row, present[row].cpu())
    clips.check(options.get("strict", False))
    settings = {"alignment": processor.feature_extractor.alignment, "view": model.config.image_size}
    return make_record(
        "localization",
        rules,
        collector.metrics(rules),
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
        raise MaskError(f"{data}: the protocol {rules.name} needs the column `label` in every row.")
    # Before anything is embedded: a mask that cannot be read ends the run, and should do so at once.
    side, edge = model.config.image_size, _shortest_edge(processor.video_processor)
    masks = [read_mask(prompt.mask, prompt.mask_value) for prompt in prompts]
    progress = options.get("progress")
    maps, truths, labels, unusable = [], [], [], []
    for done, (prompt, mask) in enumerate(zip(prompts, masks, strict=True), start=1):
        try:
            maps.append(_prompted_map(model, processor, prompt, mask.shape))
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
    if rules.pooling == "classes":
        metrics = class_segmentation_metrics(pixels, torch.stack(truths), labels, rules.thresholds)
    else:
        metrics = segmentation_metrics(pixels, torch.stack(truths), rules.thresholds)
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


def _prompted_map(model: Any, processor: Any, prompt: Prompt, mask_size: tuple[int, ...]) -> Tensor:
    """Mean over the sound's windows of the maps on the picture, `(rows, columns)` on the CPU."""
    picture = _picture(prompt)
    if tuple(picture.shape[-2:]) != mask_size:
        raise MaskError(
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
    mask = windows["padding_mask"].to(model.device)
    embeds = model.get_audio_features(windows["input_values"].to(model.device, model.dtype), mask).audio_embeds[0]
    patches = model.get_video_features(pixels.to(model.device, model.dtype)).last_hidden_state[0, 0]
    maps = patch_maps(embeds[mask[0]], patches, model.config.video_grid)
    return maps.mean(dim=0).cpu()


def _picture(prompt: Prompt) -> Tensor:
    """The picture as `(1, 3, height, width)` uint8."""
    if Path(prompt.image).suffix.lower() in MEDIA_SUFFIXES:
        times = None if prompt.time is None else [prompt.time]
        media = decode_media(prompt.image, num_frames=1, frame_times=times, want_audio=False)
        assert media.frames is not None  # want_video makes its absence an error
        return media.frames
    with Image.open(prompt.image) as image:
        return tvF.pil_to_tensor(image.convert("RGB"))[None]
