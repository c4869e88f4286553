# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Clips on their way into a text: which placeholder each belongs to, how many moments it has, what is said at them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .alignment_cavmae_sync import center_times
from .batching_cavmae_sync import stack_all
from .feature_extraction_cavmae_sync import samples_and_rate
from .media_cavmae_sync import decode_media, probe_media
from .media_request_cavmae_sync import as_seconds
from .processing_cavmae_sync import per_clip, split_audio
from .video_processing_cavmae_sync import is_media_source, pad_clips, split_clips, split_frames


@dataclass
class MediaClip:
    """One clip, from what was given to what the model takes.

    Attributes:
        name: For messages.
        kind: `"video"` or `"audio"`, which of the placeholders stands for it.
        media: What was given: a file, frames, or a waveform.
        audio: Audio of its own for a video.
        hears: Whether a video's own audio is used.
        start: Where a file is cut, seconds.
        end: Likewise.
        video_metadata: What a loader says about decoded frames.
        times: The asked moments, or the times of decoded frames, seconds.
        texts: What is said at each moment.
        count: How many moments it has at most.
        shows: Whether there are frames, as far as known.
        sounds: Whether there is audio, likewise.
        duration: Seconds, `None` where unknown.
    """

    name: str
    kind: str
    media: Any
    audio: Any = None
    hears: bool = True
    start: float | None = None
    end: float | None = None
    video_metadata: Any = None
    times: list[float] | None = None
    texts: list[str] | None = None
    count: int = 1
    shows: bool = True
    sounds: bool = True
    duration: float | None = None

    @property
    def is_decoded(self) -> bool:
        """Whether it is frames, not a file."""
        return self.kind == "video" and not is_media_source(self.media)

    @property
    def is_seen(self) -> bool:
        """Whether its frames are expected."""
        return self.kind == "video" and self.shows

    @property
    def is_heard(self) -> bool:
        """Whether its windows are expected."""
        own = self.hears and self.sounds and not self.is_decoded
        return self.kind == "audio" or self.audio is not None or own

    def times_of(self, count: int) -> list[float]:
        """`count` of the asked moments, evenly chosen."""
        times = self.times or []
        return [times[int(place)] for place in center_times(len(times), count)]

    def texts_of(self, count: int) -> list[str] | None:
        """The texts where it has `count` moments: of moments that became one, they follow each other."""
        if self.texts is None:
            return None
        merged: list[list[str]] = [[] for _ in range(count)]
        for place, text in enumerate(self.texts):
            merged[place * count // len(self.texts)] += [text] if text else []
        return [" ".join(texts) for texts in merged]

    def measure(self, rate: int | None = None) -> float:
        """Length in seconds, without decoding a file whose header says it; also learns which tracks that has.

        Args:
            rate: Of a waveform that does not bring its own, Hz.
        """
        if self.duration is not None:
            return self.duration
        if self.is_decoded:
            times = self.times
            metadata = self.video_metadata or {}
            if times is None and metadata.get("fps"):
                indices = metadata.get("frames_indices")
                indices = range(len(split_frames(self.media))) if indices is None else indices
                times = [float(index) / metadata["fps"] for index in indices]
            if times is None:
                raise ValueError(f"{self.name}: fps says nothing of frames whose times are unknown; leave it out.")
            self.duration = (max(times) - min(times)) * len(times) / max(1, len(times) - 1)
        elif not is_media_source(self.media):
            samples, own_rate = samples_and_rate(self.media, rate_beside(self.media, rate), self.name)
            self.duration = torch.as_tensor(samples).shape[-1] / own_rate
        else:
            info = probe_media(self.media)
            self.shows, self.sounds = info.has_video, info.has_audio
            whole = info.duration
            if whole is None:
                whole = decode_media(self.media, num_frames=1, missing="mask").duration
            self.duration = max(0.0, min(whole, math.inf if self.end is None else self.end) - (self.start or 0.0))
        return self.duration

    def choose_count(
        self, default: int, *, num_frames: int | None, fps: float | None, rate: int | None, sampled: bool | None
    ) -> None:
        """Set how many moments it has before its text is made to fit.

        Args:
            default: Where nothing else says it.
            num_frames: As in the processor's call.
            fps: Likewise.
            rate: As of `measure`.
            sampled: `do_sample_frames` of the call.
        """
        most = None
        if self.is_decoded:
            most = len(split_frames(self.media))
            if self.times is None and not self.video_metadata and self.audio is None:
                raise ValueError(
                    f"{self.name} is decoded frames whose times are unknown; pass `video_metadata` ({{'fps': ...}}) "
                    "or `frame_times`, or the file itself."
                )
        elif self.times is not None:
            most = len(self.times)
        wanted = num_frames
        if fps is not None:
            wanted = max(1, round(self.measure(rate) * fps))
        if most is not None:
            self.count = most if wanted is None or (sampled is False and self.is_decoded) else min(most, wanted)
        elif wanted is not None:
            self.count = wanted
        else:
            self.count = default if self.texts is None else len(self.texts)
        if self.texts is not None and len(self.texts) != self.count:
            raise ValueError(
                f"{self.name} has {self.count} moments and {len(self.texts)} moment_texts; give one per moment."
            )


@dataclass
class LoadedMedia:
    """One clip as the model takes it.

    Attributes:
        times: Of its moments, seconds, `(num_moments,)`.
        video_mask: Which frames are present, likewise.
        audio_mask: Which windows are present, likewise.
        pixels: `(num_moments, channels, height, width)`; `None` where no frame is present.
        windows: `input_values`, and `window_offsets` where there are such, with one value per moment; empty where no
            window is present.
    """

    times: Tensor
    video_mask: Tensor
    audio_mask: Tensor
    pixels: Tensor | None
    windows: dict[str, Tensor]


def pair_clips(
    kinds: list[list[str]],
    *,
    tokens: Mapping[str, str],
    videos: Any,
    audio: Any,
    indices: Sequence[int | None] | None,
    load_audio: bool,
) -> list[list[MediaClip]]:
    """The clips of each text, in the order of its placeholders.

    Args:
        kinds: Of each text what its placeholders stand for, `"video"` or `"audio"`.
        tokens: The placeholder of each of the two.
        videos: As in the processor's call.
        audio: Likewise.
        indices: `audio_from_video_indices` of the call.
        load_audio: `load_audio_from_video` of the call.

    Raises:
        ValueError: There are not as many clips as placeholders, in a text or in all.
    """
    shown, shown_counts = _flat(videos, split_clips, _is_frame)
    heard, heard_counts = _flat(audio, split_audio, _is_sample)
    hears, own = [load_audio] * len(shown), dict[int, Any]()
    if indices is not None:
        wrong = [number for number in indices if number is not None and not 0 <= number < len(shown)]
        alone = [place for place, number in enumerate(indices) if number is None]
        if wrong or len(heard) not in (len(indices), len(alone)):
            raise ValueError(
                f"audio_from_video_indices is {list(indices)} for {len(heard)} audio inputs and {len(shown)} videos; "
                "give None for each clip of audio alone and the number of a video for each of its own."
            )
        hears = [number in indices for number in range(len(shown))]
        if len(heard) > len(alone):
            own = {number: heard[place] for place, number in enumerate(indices) if number is not None}
            heard, heard_counts = [heard[place] for place in alone], None
    _check_counts([row.count("video") for row in kinds], shown, shown_counts, tokens["video"])
    _check_counts([row.count("audio") for row in kinds], heard, heard_counts, tokens["audio"])
    left = {"video": iter(enumerate(shown)), "audio": iter(enumerate(heard))}
    rows: list[list[MediaClip]] = []
    for row in kinds:
        rows.append([])
        for kind in row:
            number, media = next(left[kind])
            clip = MediaClip(f"{kind.capitalize()} {number}", kind, media)
            if media is None:
                raise ValueError(f"{clip.name} is None; give what stands at its placeholder {tokens[kind]}.")
            if kind == "video":
                clip.audio, clip.hears = own.get(number), hears[number]
            rows[-1].append(clip)
    return rows


def _check_counts(wanted: list[int], given: list[Any], counts: list[int] | None, token: str) -> None:
    """Refuse placeholders without media and media without placeholder.

    Args:
        wanted: Placeholders in each text.
        given: All clips.
        counts: How many of them are of each text, where that is known.
        token: The placeholder.
    """
    if counts is None:
        pairs = [("The texts have" if len(wanted) > 1 else "The text has", sum(wanted), len(given))]
    elif len(counts) != len(wanted):
        raise ValueError(f"There are {len(wanted)} texts and {len(counts)} lists of clips for {token}; give one each.")
    else:
        pairs = [(f"Text {place} has", *both) for place, both in enumerate(zip(wanted, counts, strict=True))]
    for begin, placeholders, clips in pairs:
        remedy = f"write {token} into the text where each belongs"
        if placeholders > clips:
            remedy = f"give one for each, or take {token} out of the text"
        if placeholders != clips:
            raise ValueError(f"{begin} {placeholders} placeholders {token} for {clips} clips; {remedy}.")


def stack_media(clips: Sequence[LoadedMedia], outside_value: float, *, with_times: bool) -> dict[str, Tensor]:
    """The media of a batch as the model takes them; clips with fewer moments are filled up.

    Args:
        clips: In the order of the text.
        outside_value: What fills up windows.
        with_times: Whether to add `frame_times`.
    """
    output: dict[str, Tensor] = {}
    shown = [clip for clip in clips if clip.pixels is not None]
    heard = [clip for clip in clips if clip.windows]
    if shown:
        output |= pad_clips([clip.pixels for clip in shown if clip.pixels is not None])
        output |= stack_all({"video_times": [clip.times.float() for clip in shown]}, {})
    if heard:
        values = {name: [clip.windows[name] for clip in heard] for name in heard[0].windows}
        values["audio_times"] = [clip.times.float() for clip in heard]
        output |= stack_all(values, {"input_values": outside_value})
    if with_times and clips:
        output |= stack_all({"frame_times": [clip.times for clip in clips]}, {"frame_times": math.nan})
    return output


def _flat(
    values: Any, split: Callable[[Any], list[Any]], is_part: Callable[[Any], bool]
) -> tuple[list[Any], list[int] | None]:
    """Clips one after the other, and how many each text has where they were given so.

    Args:
        values: What the call was given.
        split: Tells one clip from several.
        is_part: Whether a value is a part of a clip, so that a list of them is one clip.
    """
    if values is None or (isinstance(values, list | tuple) and not values):
        return [], None
    nested = isinstance(values, list | tuple) and all(isinstance(inner, list | tuple) for inner in values)
    if not nested or any(is_part(part) for inner in values for part in inner):
        return split(values), None
    return [clip for inner in values for clip in inner], [len(inner) for inner in values]


def _is_frame(value: Any) -> bool:
    """Whether a value in a list is one frame of a clip."""
    return isinstance(value, Image.Image) or getattr(value, "ndim", 4) < 4


def _is_sample(value: Any) -> bool:
    """Whether a value in a list is a sample of a waveform."""
    return isinstance(value, int | float) or getattr(value, "ndim", 1) == 0


def rate_beside(audio: Any, rate: int | None) -> int | None:
    """The rate to name beside audio: files and mappings bring their own."""
    brings = audio is None or is_media_source(audio) or (isinstance(audio, Mapping) and audio.get("sampling_rate"))
    return None if brings else rate


def set_options(clips: Sequence[MediaClip], *, frame_times: Any, moment_texts: Any, **options: Any) -> None:
    """Give every clip its part of arguments of the processor's call.

    Args:
        clips: In the order of the text.
        frame_times: As in the call.
        moment_texts: Likewise.
        options: `start`, `end` and `video_metadata`, one value for all or one per clip.
    """
    files = [is_media_source(clip.media) or is_media_source(clip.audio) for clip in clips]
    decoded = [clip.is_decoded for clip in clips]
    for name, value in options.items():
        frames = name == "video_metadata"
        reason = "it says the times of decoded frames" if frames else "only files are cut"
        parts = per_clip(name, value, heeds=decoded if frames else files, reason=reason)
        for clip, part in zip(clips, parts, strict=True):
            setattr(clip, name, part)
    if frame_times is not None:
        rows = frame_times.tolist() if hasattr(frame_times, "tolist") else list(frame_times)
        if rows and all(isinstance(value, int | float | np.number) for value in rows):
            rows = [rows]
        for clip, row in zip(clips, _rows("frame_times", rows, len(clips)), strict=True):
            clip.times = None if row is None else [as_seconds("A frame time", time) for time in row]
    if moment_texts is not None:
        for clip, row in zip(clips, _rows("moment_texts", moment_texts, len(clips)), strict=True):
            clip.texts = None if row is None else [text or "" for text in row]


def _rows(name: str, rows: Any, count: int) -> list[Any]:
    """One row per clip of an argument; a row may be `None`, and has at least one entry otherwise."""
    if not isinstance(rows, list | tuple) or len(rows) != count:
        told = f"{len(rows)} rows" if isinstance(rows, list | tuple) else f"{rows!r}"
        raise ValueError(f"{name} is {told} for {count} clips; give one row, or None, per clip.")
    for number, row in enumerate(rows):
        if row is not None and (isinstance(row, str) or len(row) == 0):
            raise ValueError(f"Row {number} of {name} is {row!r}; give one value per moment, or None.")
    return list(rows)


__all__ = ["LoadedMedia", "MediaClip", "pair_clips", "rate_beside", "set_options", "stack_media"]
