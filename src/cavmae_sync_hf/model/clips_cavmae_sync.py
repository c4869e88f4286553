# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What clips does a call of the processor hold, and which of its arguments concerns which clip?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .errors_cavmae_sync import MissingTrackError
from .media_pass_cavmae_sync import as_seconds
from .video_processing_cavmae_sync import is_media_source, is_single_frame, split_clips
from .waveforms_cavmae_sync import split_waveforms


@dataclass
class Clip:
    """One clip on its way through the processor.

    Attributes:
        position: In the batch.
        name: For messages.
        video: What was given: a file, frames, or `None`.
        audio: What was given as sound of its own: a file, a waveform, or `None`.
        start: Where a file is cut, seconds.
        end: Likewise.
        fps: Frame rate of decoded frames.
        facts: What a loader says about decoded frames.
        times: Times of the frames in seconds, `None` when nobody knows them.
        pixels: `(num_frames, 3, height, width)`, `None` without video.
        waveform: What the feature extractor takes, `None` without sound.
        duration: Seconds, `None` when unknown.
    """

    position: int
    name: str
    video: Any = None
    audio: Any = None
    start: float | None = None
    end: float | None = None
    fps: float | None = None
    facts: Any = None
    times: list[float] | None = None
    pixels: torch.Tensor | None = None
    waveform: Any = None
    duration: float | None = None

    @property
    def has_file(self) -> bool:
        """Whether something of it is decoded here."""
        return is_media_source(self.video) or is_media_source(self.audio)

    @property
    def is_decoded(self) -> bool:
        """Whether its video is frames, not a file."""
        return self.video is not None and not is_media_source(self.video)

    @property
    def num_frames(self) -> int:
        """How many frames and windows it has, as far as known."""
        return len(self.pixels) if self.pixels is not None else len(self.times or ())


@dataclass(frozen=True)
class Wishes:
    """What a call asks for, alike for all clips.

    Attributes:
        with_sound: Whether there are windows at all.
        own_sound: Whether the sound is that of the video files.
        threads: Of a video decoder, 0 for as many as there are cores.
        The others are arguments of the processor's call.
    """

    num_frames: int | None
    sampling_rate: int | None
    do_sample_frames: bool
    missing: str
    damaged: str
    device: Any
    picture_options: dict[str, Any]
    sound_options: dict[str, Any]
    with_sound: bool
    own_sound: bool
    threads: int


def check_rate(clips: list[Clip], rate: Any, own_rate: int) -> None:
    """Refuse a rate that no waveform has: it would not be that of a file's sound."""
    if rate is None or rate == own_rate:
        return
    if all(clip.audio is None or is_media_source(clip.audio) for clip in clips):
        raise ValueError(
            f"sampling_rate is {rate}, but no waveform is given that it could belong to: files say the rate of their "
            f"sound themselves, and it is brought to {own_rate} Hz. Leave sampling_rate out."
        )


def check_tracks(clips: list[Clip], with_video: bool, with_audio: bool, own_sound: bool) -> None:
    """Refuse clips that lack what others have."""
    for clip in clips:
        if with_video and clip.video is None:
            raise ValueError(f"{clip.name} is None; pass missing='mask' to mark its frames as absent.")
        if with_audio and clip.audio is None:
            raise ValueError(f"The sound of {clip.name} is None; pass missing='mask' to mark it as absent.")
        if own_sound and not is_media_source(clip.video):
            raise MissingTrackError(
                f"{clip.name} is frames without sound, beside files with sound; pass missing='mask' to mark its sound "
                "as absent, or give everything its sound with `audio`.",
                "audio",
            )


def pair_clips(videos: Any, audio: Any) -> list[Clip]:
    """Pair videos with their sound."""
    pictures = split_clips(videos) if videos is not None else None
    sounds = _split_audio(audio) if audio is not None else None
    if pictures is not None and sounds is not None and len(pictures) != len(sounds):
        raise ValueError(
            f"Got {len(pictures)} videos and {len(sounds)} waveforms; pass one waveform per video (several "
            "channels of one clip as `[array]`, channels first)."
        )
    count = len(pictures if pictures is not None else sounds or [])
    return [
        Clip(position, f"Clip {position}", video, sound)
        for position, (video, sound) in enumerate(
            zip(pictures or [None] * count, sounds or [None] * count, strict=True)
        )
    ]


def _split_audio(audio: Any) -> list[Any]:
    """Tell one waveform or file from several."""
    if is_media_source(audio):
        return [audio]
    if isinstance(audio, list | tuple) and any(map(is_media_source, audio)):
        return list(audio)
    return split_waveforms(audio)[0]


def share_out(
    clips: list[Clip], wishes: Wishes, frame_times: Any, fps: Any, video_metadata: Any, start: Any, end: Any
) -> None:
    """Give every clip its part of the arguments, and refuse those that nothing would heed."""
    for clip, row in zip(clips, _time_rows(frame_times, len(clips)), strict=True):
        clip.times = row
        sampled = wishes.do_sample_frames and clip.is_decoded
        if row is None or sampled:
            continue
        if wishes.num_frames is not None and len(row) != wishes.num_frames:
            raise ValueError(
                f"{clip.name}: {len(row)} frame times, but num_frames is {wishes.num_frames}; leave one of them out."
            )
        if fps is not None and clip.is_decoded:
            raise ValueError(f"{clip.name} has frame_times and fps, which could differ; leave one of them out.")
    decoded = [clip.is_decoded for clip in clips]
    files = [clip.has_file for clip in clips]
    by_time = "frames of files are chosen by time, with `num_frames` or `frame_times`"
    cuts = "only files are cut"
    for name, field, value, heeds, reason in (
        ("fps", "fps", fps, decoded, by_time),
        ("video_metadata", "facts", video_metadata, decoded, by_time),
        ("start", "start", start, files, cuts),
        ("end", "end", end, files, cuts),
    ):
        given = isinstance(value, list | tuple | np.ndarray)
        if value is not None and not given and not any(heeds):
            raise ValueError(f"{name} means nothing for this input: {reason}. Leave it out.")
        for clip, part, heeded in zip(clips, _per_clip(name, value, len(clips)), heeds, strict=True):
            if given and part is not None and not heeded:
                raise ValueError(f"{name} means nothing for {clip.name.lower()}: {reason}. Give None there.")
            setattr(clip, field, part if heeded else None)


def _time_rows(frame_times: Any, count: int) -> list[list[float] | None]:
    """One row of times per clip."""
    if frame_times is None:
        return [None] * count
    try:
        rows = [] if isinstance(frame_times, str | bytes) else list(frame_times)
    except TypeError:
        rows = []
    if not rows:
        raise ValueError(f"frame_times is {frame_times!r}; give the frames' times in seconds, one row per clip.")
    if all(np.ndim(row) == 0 for row in rows):
        rows = [rows]
    if len(rows) != count:
        raise ValueError(f"frame_times has {len(rows)} rows for {count} clips; give one row of times per clip.")
    return [None if row is None else [as_seconds("A frame time", time) for time in row] for row in rows]


def _per_clip(name: str, value: Any, count: int) -> list[Any]:
    """One value per clip out of one for all or a list."""
    if not isinstance(value, list | tuple | np.ndarray):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"{name} has {len(value)} {'entries' if name == 'video_metadata' else 'values'} for {count} clips; give "
            "one for all or one per clip."
        )
    return list(value)


def as_frame_list(frames: Any) -> Any:
    """Frames as something with a length and an order: a single picture becomes a list of one."""
    if isinstance(frames, np.ndarray | torch.Tensor):
        return frames[None] if is_single_frame(frames) else frames
    return list(frames) if isinstance(frames, list | tuple) else [frames]


__all__ = ["Clip", "Wishes", "as_frame_list", "check_rate", "check_tracks", "pair_clips", "share_out"]
