# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Localization on a set: maps of what sounds in a frame, against SyncWorld's truth or masks."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
import torchvision.transforms.v2.functional as tvF
from PIL import Image
from torch import Tensor

from ..data.failures import Failure
from ..data.tables import MEDIA_SUFFIXES
from ..files import StrPath
from ..inference.features import OFFSETS, move_inputs, not_finite_error
from ..inference.local import dense_maps, local_maps, require_dense_projections, require_local_heads, settle_peaks
from ..inference.localize import check_method
from ..inference.occlusion import occlusion_maps
from ..inference.relevance import relevance_maps
from ..metrics import boxes_in_view, compute, patch_maps, pointing_accuracy
from ..metrics.localization import time_pointing_accuracy, upsample_maps
from ..model.alignment_cavmae_sync import window_times
from ..model.batching_cavmae_sync import MomentFrames, cut_windows
from ..model.errors_cavmae_sync import EvaluationError, Hint, MediaError
from ..model.media_cavmae_sync import decode_media
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..provenance import backend_of
from ..syncworld import find_truth, sounding_boxes
from .clips import ClipFacts, EvaluatedSet, RunOptions, fit_processor, open_evaluation
from .protocols import LOCALIZATION_PROTOCOLS, LocalizationProtocol, find_protocol, modify
from .tables import Prompt, mask_in_view, read_mask, read_prompts

# The control's audio is that of the clip so many before: a clip's neighbour may be its temporal twin.
_CONTROL_DISTANCE = 2


def evaluate_localization(
    model: CavMaeSyncModel,
    processor: CavMaeSyncProcessor,
    data: Any,
    protocol: str | LocalizationProtocol = "syncworld",
    *,
    maps: str | None = None,
    truth: StrPath | None = None,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Localization of what sounds in frames, under a protocol.

    Args:
        model: With both towers, in evaluation mode.
        processor: Its processor.
        data: `"syncworld"`: a SyncWorld split, or shards of one. `"masks"`: a table as `read_prompts` takes it.
        protocol: One of `LOCALIZATION_PROTOCOLS`, by name, or one of your own.
        maps: Other maps than the protocol's, one of `MAPS`.
        truth: The SyncWorld split of shards that lie elsewhere.
        options: See `RunOptions`.

    Returns:
        A results record, see `make_record`. With boxes, `metrics` are those of `localization_metrics` over all
        moments at which something sounds; `pointing_other_audio`, the pointing accuracy with the audio of another
        clip (what of it is owed to the frame alone); `time_pointing_*`, the other way round: the frame's place in the
        audio. With masks, those of `segmentation_metrics` or `class_segmentation_metrics`.

    Raises:
        ValueError: The protocol, the truth or the data cannot be used; the message says why.
    """
    rules = modify(find_protocol(protocol, LOCALIZATION_PROTOCOLS), maps=maps)
    check_method(backend_of(model)["backend"], rules.maps, "maps")
    if rules.truth == "masks":
        if truth is not None:
            raise EvaluationError(f"The protocol {rules.name} has no use for `truth`; the table names the masks.")
        return _masks(model, fit_processor(processor, rules, options), data, rules=rules, options=options)
    clips = open_evaluation(data, processor, rules, options)
    records = find_truth(data, clips.ids, truth)
    if not records:
        raise EvaluationError(
            f"{clips.name}: there is no truth about what sounds where; evaluate on a SyncWorld split (`cavmae-sync "
            "world`), or use a protocol of masks.",
            hint=Hint("truth", "FOLDER", "name the split of these shards"),
        )
    collector = _Collector(model, clips.processor, rules)

    def collect(inputs: dict[str, Tensor], facts: ClipFacts) -> None:
        collector.add([records[place] for place in facts.places], facts.frame_times, inputs)

    with torch.no_grad():
        for _ in clips.each_batch(model, collect):
            pass
    return clips.record("localization", collector.metrics(), model=model, view=model.config.image_size)


def _sounding_spans(record: Mapping[str, Any], times: Sequence[float]) -> list[list[list[float]]]:
    """When the objects that sound at each of `times` do so, `[start, end]` in seconds."""
    spans = []
    for time in times:
        on = {event["object"] for event in record["events"] if event["start"] <= time < event["end"]}
        spans.append([[event["start"], event["end"]] for event in record["events"] if event["object"] in on])
    return spans


class _Collector:
    """Maps and truths of the moments at which something sounds, batch by batch."""

    def __init__(self, model: CavMaeSyncModel, processor: CavMaeSyncProcessor, rules: LocalizationProtocol) -> None:
        self.mapper, self.rules = _Mapper(model, processor, rules.maps), rules
        self.extractor = processor.feature_extractor
        self.side, self.edge = model.config.image_size, _shortest_edge(processor)
        self.maps: list[Tensor] = []
        self.boxes: list[Any] = []
        self.control_maps: list[Tensor] = []
        self.control_boxes: list[Any] = []
        self.time_maps: list[Tensor] = []
        self.spans: list[Any] = []
        self.window_times: list[list[float]] = []
        self.earlier: deque[Tensor] = deque(maxlen=_CONTROL_DISTANCE)

    def add(self, records: Sequence[Mapping[str, Any]], times: Tensor, inputs: Mapping[str, Tensor]) -> None:
        """A batch of clips: truth records, frame times `(clips, frames)` and the model's inputs.

        Nothing of it is kept where it raises an error.
        """
        heard = inputs["padding_mask"]
        wanted = heard & inputs.get("padding_mask_videos", heard)
        boxes = []
        for row, record in enumerate(records):
            size = (record["height"], record["width"])
            given = sounding_boxes(record, times[row].tolist())
            boxes.append([boxes_in_view(own, size, self.side, self.edge) for own in given])
            # The maps of moments without a box serve nothing, and may be costly.
            wanted[row] &= torch.tensor([len(own) > 0 for own in boxes[row]], device=wanted.device)
        earlier = self.earlier.copy()
        maps = self.mapper(inputs, wanted, partial(self._other_audio, earlier))
        for found in (maps.own, maps.time):
            if not torch.isfinite(found[wanted.cpu()]).all():
                raise not_finite_error("a map", self.mapper.model)
        self.earlier = earlier
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

    @staticmethod
    def _other_audio(earlier: deque[Tensor], embeds: Tensor) -> tuple[Tensor, list[bool]]:
        """For every clip of a batch an earlier one's audio `(clips, frames, hidden)`, and whether there is one; the
        batch joins the earlier ones."""
        others, known = torch.zeros_like(embeds), []
        for row, own in enumerate(embeds):
            there = len(earlier) == _CONTROL_DISTANCE and earlier[0].shape == own.shape
            if there:
                others[row] = earlier[0]
            known.append(there)
            earlier.append(own)
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
            metrics["pointing_other_audio"] = control["accuracy"]
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

    def __init__(self, model: CavMaeSyncModel, processor: CavMaeSyncProcessor, method: str) -> None:
        self.model, self.method = model, method
        if method == "local":
            require_local_heads(model)
        if method == "dense":
            require_dense_projections(model)
        extractor = processor.feature_extractor
        silence = (extractor.silence - extractor.mean) / extractor.std
        windows = extractor.windows(torch.empty(0, extractor.num_mel_bins), [0.0])
        self.silent = {"input_values": torch.full_like(windows.values[None], silence)}
        if extractor.clip_length is not None:
            self.silent[OFFSETS] = windows.offsets[None]

    @cached_property
    def silence(self) -> Tensor:
        """The embedding of a silent window, `(hidden,)`; audio is what sets others apart from that."""
        return self.model.get_audio_features(**move_inputs(self.silent, self.model)).audio_embeds[0, 0]

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        wanted: Tensor,
        other_audio: Callable[[Tensor], tuple[Tensor, list[bool]]],
    ) -> _Maps:
        """Maps of the moments where `wanted` `(clips, frames)` is True; those of others mean nothing."""
        model = self.model
        output = model(**inputs, output_local_embeds=self.method in ("local", "dense"))
        # Of all audio patches it is their mean that patches of a frame are compared with.
        dense = self.method == "dense"
        heard = output.local_audio_embeds.mean(dim=-2) if dense else output.audio_embeds
        others, known = other_audio(heard)
        if self.method == "cosine":
            grids = model.config.video_grid, model.config.audio_grid
            own = patch_maps(output.audio_embeds, output.video_patch_embeds, grids[0])
            other = patch_maps(others, output.video_patch_embeds, grids[0])
            time = patch_maps(output.video_embeds, output.audio_patch_embeds, grids[1])
        elif dense:
            own, other = (
                dense_maps(audio.unsqueeze(-2), output.local_video_embeds).unflatten(-1, model.config.video_grid)
                for audio in (heard, others)
            )
            time = dense_maps(output.local_video_embeds, output.local_audio_embeds, "max")
            time = time.unflatten(-1, model.config.audio_grid)
        elif self.method == "local":
            grids = model.config.video_grid, model.config.audio_grid
            frames = inputs["pixel_values_videos"]
            own, other = (
                self._local(frames, output.video_embeds, output.local_video_embeds, audio - self.silence)
                for audio in (output.audio_embeds, others)
            )
            time = local_maps(output.audio_embeds, output.local_audio_embeds, output.video_embeds, grids[1])
        elif self.method == "relevance":
            frames = inputs["pixel_values_videos"]
            own, other = (
                relevance_maps(model, "video", frames, audio - self.silence, present=wanted).maps
                for audio in (output.audio_embeds, others)
            )
            windows = inputs["input_values"]
            time = relevance_maps(model, "audio", windows, output.video_embeds, present=wanted, candidates=0).maps
        else:
            # Every frame twice in a row, which the model looks at once: with its own audio and with another.
            frames, both = (values.repeat_interleave(2, dim=1) for values in (inputs["pixel_values_videos"], wanted))
            queries = torch.stack([output.audio_embeds, others], dim=2).flatten(1, 2) - self.silence
            maps = occlusion_maps(model, "video", frames, queries, present=both)
            own, other = maps[:, 0::2], maps[:, 1::2]
            windows = cut_windows(inputs["input_values"], inputs.get(OFFSETS), model.config.audio_length)
            time = occlusion_maps(model, "audio", windows, output.video_embeds, present=wanted)
        return _Maps(own.float().cpu(), other.float().cpu(), known, time.float().cpu())

    def _local(self, frames: Tensor, embeds: Tensor, local_embeds: Tensor, queries: Tensor) -> Tensor:
        maps = local_maps(embeds, local_embeds, queries, self.model.config.video_grid)
        return settle_peaks(self.model, "video", frames, embeds, queries, maps)[0]

    def prompted(self, inputs: dict[str, Tensor]) -> Tensor:
        """Mean over the present windows of one sound of the maps on one image, `(rows, columns)`."""
        model, present, frames = self.model, inputs["padding_mask"], inputs["pixel_values_videos"]
        heard = {name: inputs[name] for name in ("input_values", "padding_mask", OFFSETS) if name in inputs}
        embeds = model.get_audio_features(**heard).audio_embeds[0][present[0]]
        if self.method == "cosine":
            patches = model.get_video_features(frames).last_hidden_state[0, 0]
            return patch_maps(embeds, patches, model.config.video_grid).mean(dim=0).cpu()
        # Maps are linear in what is compared with, so the mean of the maps is the map of the mean.
        query = (embeds.mean(dim=0) - self.silence)[None, None]
        if self.method == "dense":
            sounds = model.get_audio_features(**heard, output_local_embeds=True).local_audio_embeds[:, present[0]]
            seen = model.get_video_features(frames, output_local_embeds=True).local_video_embeds
            maps = dense_maps(sounds.flatten(1, 2).unsqueeze(1), seen)
            return maps[0, 0].unflatten(-1, model.config.video_grid).cpu()
        if self.method == "local":
            seen = model.get_video_features(frames, output_local_embeds=True)
            return self._local(frames, seen.video_embeds, seen.local_video_embeds, query)[0, 0].cpu()
        if self.method == "relevance":
            return relevance_maps(model, "video", frames, query).maps[0, 0].cpu()
        return occlusion_maps(model, "video", frames, query)[0, 0].float().cpu()


def _shortest_edge(processor: CavMaeSyncProcessor) -> int:
    size = processor.video_processor.size
    edge = size.get("shortest_edge") if hasattr(size, "get") else getattr(size, "shortest_edge", None)
    if edge is None:
        raise EvaluationError(
            "The processor does not resize by the shortest side, so boxes and masks cannot follow the frame; use a "
            "processor from CavMaeSyncProcessor.from_config."
        )
    return int(edge)


@torch.no_grad()
def _masks(
    model: CavMaeSyncModel,
    processor: CavMaeSyncProcessor,
    data: Any,
    *,
    rules: LocalizationProtocol,
    options: RunOptions,
) -> dict[str, Any]:
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
    side, edge = model.config.image_size, _shortest_edge(processor)
    masks = [read_mask(prompt.mask, prompt.mask_value) for prompt in prompts]
    # What tells a row wherever the table lies: its values, with files relative to it.
    rows = [
        asdict(prompt)
        | {key: os.path.relpath(getattr(prompt, key), Path(data).parent) for key in ("image", "audio", "mask")}
        for prompt in prompts
    ]
    evaluated = EvaluatedSet(
        name=os.fspath(data),
        kind="masks",
        fingerprint=hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        ids=[prompt.name for prompt in prompts],
        expected=expected,
        protocol=rules,
        processor=processor,
        options=options,
    )
    mapper = _Mapper(model, processor, rules.maps)
    maps, truths, labels = [], [], []
    for done, (prompt, mask) in enumerate(zip(prompts, masks, strict=True), start=1):
        try:
            maps.append(_prompted_map(mapper, processor, prompt, mask.shape))
        except EvaluationError:  # of the table
            raise
        except Exception as error:
            evaluated.leave_out(Failure.of(prompt.name, error))
        else:
            truths.append(mask_in_view(mask, edge, side))
            labels.append(prompt.label)
        evaluated.report(done)
    evaluated.check()
    metrics = compute(
        "segmentation",
        predictions=upsample_maps(torch.stack(maps), (side, side)),
        references=torch.stack(truths),
        labels=labels if rules.pooling == "classes" else None,
        thresholds=rules.thresholds,
    )
    return evaluated.record("localization", metrics, model=model, view=side)


def _prompted_map(
    mapper: _Mapper, processor: CavMaeSyncProcessor, prompt: Prompt, mask_size: tuple[int, ...]
) -> Tensor:
    """Mean over the audio's windows of the maps on the image, `(rows, columns)` on the CPU."""
    view, moments = processor.video_processor, None
    if Path(prompt.image).suffix.lower() in MEDIA_SUFFIXES:
        times = None if prompt.time is None else [prompt.time]
        media = decode_media(prompt.image, num_frames=1, frame_times=times, want_audio=False, **view.moment_options)
        image, moments = media.frames, media.moments
        assert image is not None  # want_video makes its absence an error
    else:
        try:
            with Image.open(prompt.image) as still:
                image = tvF.pil_to_tensor(still.convert("RGB"))[None]
        except (OSError, Image.DecompressionBombError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # it is not there, or the disk fails
                raise
            raise MediaError(f"{prompt.image}: is no image, or is damaged; fetch it again.") from error
    height, width = image.shape[-2:]
    if (height, width) != mask_size:
        raise EvaluationError(
            f"{prompt.mask}: is {mask_size[1]} x {mask_size[0]} pixels, its image {prompt.image} {width} x {height}; "
            "a mask has the size of its image."
        )
    moments = moments or MomentFrames(image, torch.zeros(1, len(view.shifts), dtype=torch.long))
    pixels = view(moments.images, do_sample_frames=False, input_data_format="channels_first", return_tensors="pt")
    pixels["pixel_values_videos"] = moments.stacked(pixels["pixel_values_videos"][0])[None]
    extractor = processor.feature_extractor
    audio = decode_media(
        prompt.audio, sampling_rate=extractor.sampling_rate, channel=extractor.channel,
        audio_track=processor.audio_track, want_video=False,
    )  # fmt: skip
    windows = extractor(audio.waveform, sampling_rate=audio.sampling_rate, return_tensors="pt")
    inputs = move_inputs({**windows, **pixels}, mapper.model)
    return mapper.prompted(inputs)
