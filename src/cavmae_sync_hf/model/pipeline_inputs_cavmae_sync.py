# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The forms in which a clip may reach a pipeline, and how it becomes the model's inputs."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers.image_utils import load_image

from .configuration_cavmae_sync import CavMaeSyncConfig
from .errors_cavmae_sync import Hint, MediaNotFoundError, MissingTrackError
from .media_cavmae_sync import probe_media
from .media_source_cavmae_sync import describe_source
from .processing_cavmae_sync import CavMaeSyncProcessor
from .video_processing_cavmae_sync import is_media_source, is_single_frame

MODALITIES = ("both", "audio", "video")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# What a mapping may say about its video and its audio: arguments of the processor's call, one value for the clip.
_CLIP_OPTIONS = ("sampling_rate", "fps", "video_metadata", "frame_times", "start", "end", "audio_track")


@dataclass
class ClipInput:
    """A clip as a pipeline's user gave it.

    Attributes:
        name: For messages and results.
        video: File, or decoded frames.
        audio: File, or waveform; `None` with `one_file`.
        one_file: Whether `video` is a file that may bring both tracks.
        options: Arguments for the processor that belong to this clip.
    """

    name: str
    video: Any = None
    audio: Any = None
    one_file: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def tracks(self) -> list[str]:
        """Which of `"audio"` and `"video"` it brings; for a file, by its header."""
        if not self.one_file:
            return [track for track in ("audio", "video") if getattr(self, track) is not None]
        info = probe_media(self.video)
        return [track for track, here in (("audio", info.has_audio), ("video", info.has_video)) if here]

    @property
    def has_times(self) -> bool:
        """Whether it is known when its moments are: not for decoded frames on their own without a rate."""
        return (
            self.audio is not None
            or is_media_source(self.video)
            or any(self.options.get(name) is not None for name in ("fps", "video_metadata", "frame_times"))
        )


def read_clip(clip: Any) -> ClipInput:
    """Tell what a pipeline was given.

    Args:
        clip: A file with both tracks or one of them (path, address, bytes, file object); a mapping with `"video"`
            and/or `"audio"` (files, frames, a waveform; a video file brings its own audio) and, where needed,
            `"sampling_rate"`, `"fps"`, `"video_metadata"`, `"frame_times"`, `"start"`, `"end"` and `"audio_track"`;
            `datasets`'
            `{"array", "sampling_rate"}`; frames as one array `(T, H, W, C)` or `(T, C, H, W)`; a still image (PIL, an
            array, or an image file).

    Raises:
        ValueError: It is none of these; the message says which would do.
    """
    if isinstance(clip, ClipInput):
        return clip
    if isinstance(clip, Mapping) and ("video" in clip or "audio" in clip):
        return _read_mapping(clip)
    if isinstance(clip, Mapping) and clip.get("array") is not None:
        return ClipInput("the waveform", audio=clip)
    image = _as_image(clip)
    if image is not None:
        return image
    if is_media_source(clip):
        if isinstance(clip, Mapping) and clip.get("bytes") is None and clip.get("path") is None:
            raise ValueError(
                f"Got a mapping with {sorted(map(str, clip))}; a clip is a mapping with 'video' and/or 'audio' "
                "(a file, frames, or a waveform with its 'sampling_rate')."
            )
        return ClipInput(describe_source(clip), video=clip, one_file=True)
    if hasattr(clip, "ndim") and clip.ndim >= 3:
        return ClipInput("the frames", video=clip)
    raise ValueError(
        f"Got a {type(clip).__name__} as a clip; pass a path, an address, bytes, a file object, or a mapping such as "
        '{"video": frames, "fps": 25, "audio": waveform, "sampling_rate": 16000}.'
    )


def _read_mapping(clip: Mapping) -> ClipInput:
    known = ("video", "audio", *_CLIP_OPTIONS)
    unknown = sorted(str(name) for name in clip if name not in known)
    if unknown:
        raise ValueError(f"A clip has no {', '.join(map(repr, unknown))}; it may have {', '.join(known)}.")
    video, audio = clip.get("video"), clip.get("audio")
    options = {name: clip[name] for name in _CLIP_OPTIONS if clip.get(name) is not None}
    if video is None and audio is None:
        raise ValueError('A clip needs "video", "audio" or both; both are None.')
    source = video if video is not None else audio
    name = describe_source(source) if is_media_source(source) else "the clip"
    image = _as_image(video) if video is not None else None
    if image is not None:
        video = image.video
        options = image.options | options
    one_file = audio is None and is_media_source(video)
    return ClipInput(name, video=video, audio=audio, one_file=one_file, options=options)


def _as_image(value: Any) -> ClipInput | None:
    """A still image as a clip of one frame at time 0; `None` for anything else."""
    name = "the image"
    if isinstance(value, str | os.PathLike):
        name = os.fspath(value)
        if not str(name).lower().partition("?")[0].endswith(_IMAGE_SUFFIXES):
            return None
        if "://" not in str(name) and not os.path.exists(name):
            raise MediaNotFoundError(f"{name}: no such file; check the path.")
        try:
            value = load_image(str(name))
        except Exception as error:  # PIL and the network have errors of many kinds
            raise ValueError(f"{name}: cannot be read as an image ({error}).") from error
    single = hasattr(value, "ndim") and is_single_frame(value) and value.ndim == 3
    if not isinstance(value, Image.Image) and not single:
        return None
    return ClipInput(os.path.basename(str(name)), video=[value], options={"frame_times": [0.0]})


def check_modality(modality: str | None, config: CavMaeSyncConfig) -> str:
    """The modality to use: as asked, or all that the model has.

    Raises:
        ValueError: The word is unknown or the model has no such tower.
    """
    own = "both" if config.modality == "multimodal" else config.modality
    if modality is None:
        return own
    if modality not in MODALITIES:
        raise ValueError(f"`modality` is {modality!r}; use one of {', '.join(map(repr, MODALITIES))}.")
    if own not in ("both", modality):
        raise ValueError(f"`modality` is {modality!r}, but the model has the {own} tower alone; use {own!r}.")
    return modality


def prepare_clip(
    processor: CavMaeSyncProcessor,
    clip: Any,
    modality: str,
    *,
    num_frames: int | None = None,
    missing: str = "error",
    damaged: str = "error",
    channel: str | None = None,
    audio_track: int | str | None = None,
    choice: str = "modality",
) -> dict[str, Any]:
    """The model's inputs of one clip, the same entries for every clip of a modality, so that clips can be batched.

    Args:
        processor: The model's processor.
        clip: As for `read_clip`.
        modality: `"audio"` and `"video"` read that track alone; `"both"` needs both unless `missing` is `"mask"`.
        num_frames: Moments to take; default: the processor's.
        missing: `"error"`, or `"mask"` to mark an absent track as absent.
        damaged: `"error"`, or `"keep"` to use what can be decoded.
        channel: As of the processor's call.
        audio_track: Likewise, where the clip does not say.
        choice: The caller's argument that chooses the modality, for messages.

    Returns:
        `input_values` and `padding_mask`, `pixel_values_videos` and `padding_mask_videos`, as the modality has them,
        with a batch dimension of 1; `frame_times`, seconds, one per moment (NaN where not known), and, with audio,
        `window_times`, pairs of seconds, as lists, and `window_offsets` where the processor gives them.

    Raises:
        ValueError: The clip cannot be used; the message names it.
    """
    given = read_clip(clip)
    tracks = ("audio", "video") if modality == "both" else (modality,)
    other = {"audio": Hint(choice, "video", "do without it"), "video": Hint(choice, "audio", "do without it")}
    for track in tracks:
        if not given.one_file and getattr(given, track) is None and (missing == "error" or modality != "both"):
            masked = (Hint("missing", "mask", "go on without it"),) if modality == "both" else ()
            raise MissingTrackError(f"{given.name} has no {track}.", track, hint=(*masked, other[track]))
    processor = processor.with_audio_choice(channel, given.options.get("audio_track", audio_track))
    call = {"missing": missing} | _processor_call(given, modality, num_frames)
    try:
        inputs = processor(**call, damaged=damaged, return_times=given.has_times, return_tensors="pt")
    except MissingTrackError as error:
        raise MissingTrackError(error.message, error.track, hint=(*error.hints, other[error.track])) from error
    result: dict[str, Any] = {}
    for track, values, mask in (
        ("audio", "input_values", "padding_mask"),
        ("video", "pixel_values_videos", "padding_mask_videos"),
    ):
        if track in tracks and values not in inputs:  # a decoder object whose file has no audio
            raise MissingTrackError(f"{given.name} has no {track}.", track, hint=other[track])
        if track in tracks:
            result[values] = inputs[values]
            present = inputs.get(mask)
            result[mask] = torch.ones(inputs[values].shape[:2], dtype=torch.bool) if present is None else present
    count = next(iter(result.values())).shape[1]
    result["frame_times"] = inputs["frame_times"][0].tolist() if "frame_times" in inputs else [math.nan] * count
    if "audio" in tracks:
        times = inputs.get("window_times")
        result["window_times"] = [[math.nan, math.nan]] * count if times is None else times[0].tolist()
        if "window_offsets" in inputs:
            result["window_offsets"] = inputs["window_offsets"]
    return result


def _processor_call(given: ClipInput, modality: str, num_frames: int | None) -> dict[str, Any]:
    """Arguments that make the processor read the wanted tracks, so that no other is decoded."""
    call: dict[str, Any] = {name: value for name, value in given.options.items() if name != "audio_track"}
    if "frame_times" in call:
        call["frame_times"] = [call["frame_times"]]
    else:
        call["num_frames"] = num_frames
    video, audio = given.video, given.audio
    if modality == "audio":
        call.pop("fps", None)
        call.pop("video_metadata", None)
        call["audio"] = [video if given.one_file else audio]
    elif modality == "video" and is_media_source(video):
        # An audio of None beside a file: the file's own is not read.
        call |= {"videos": [video], "audio": [None], "missing": "mask"}
    else:
        call["videos"] = [video]
        if modality == "both" and not given.one_file:
            call["audio"] = [audio]
    if not is_media_source(video) and not is_media_source(audio):
        call.pop("start", None)
        call.pop("end", None)
    if (call.get("audio") or [None])[0] is None:
        call.pop("sampling_rate", None)
    return call


__all__ = ["MODALITIES", "ClipInput", "check_modality", "prepare_clip", "read_clip"]
