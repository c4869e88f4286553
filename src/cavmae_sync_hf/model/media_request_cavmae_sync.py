# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What is wanted of a media file."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .alignment_cavmae_sync import TIME_TOLERANCE, moment_shifts
from .errors_cavmae_sync import MediaError
from .media_selection_cavmae_sync import check_audio_track

SAMPLING_RATE = 16000
# Resampling starts at a whole second at least this much before a segment, so that segments are exact slices of the
# whole.
PRE_ROLL_SECONDS = 1.0
POST_ROLL_SECONDS = 0.1


@dataclass(kw_only=True)
class MediaRequest:
    """What is wanted of a file; the fields are the arguments of `decode_media`, with an infinite `end` for the file's.

    Raises:
        ValueError: A value cannot work.
    """

    num_frames: int = 16
    alignment: str = "time"
    frame_times: Any = None
    sampling_rate: int = SAMPLING_RATE
    channel: str = "first"
    audio_track: int | str | None = None
    start: float = 0.0
    end: float = math.inf
    want_audio: bool = True
    want_video: bool = True
    missing: str = "error"
    damaged: str = "error"
    frames_per_moment: int = 1
    frame_step: float = 0.04
    short_side: int | None = None
    max_pixels: int | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        for option, value, allowed in (
            ("alignment", self.alignment, ("time", "reference")),
            ("channel", self.channel, ("first", "mean")),
            ("missing", self.missing, ("error", "mask")),
            ("damaged", self.damaged, ("error", "keep")),
        ):
            if value not in allowed:
                raise ValueError(f"{option} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
        if not (self.want_audio or self.want_video):
            raise ValueError("want_audio and want_video are both False: there is nothing to decode.")
        self.audio_track = check_audio_track(self.audio_track)
        self.num_frames = _as_whole("num_frames", self.num_frames)
        self.sampling_rate = _as_whole("sampling_rate", self.sampling_rate)
        if self.frames_per_moment > 1 and self.alignment != "time" and self.frame_times is None:
            raise ValueError(
                f"frames_per_moment is {self.frames_per_moment}, and the frames of a moment are told by time: use "
                f"alignment='time', not {self.alignment!r}."
            )
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short_side must be at least 1 pixel, got {self.short_side}.")
        if self.frame_times is not None:
            try:
                times = torch.as_tensor(self.frame_times, dtype=torch.float64).flatten()
            except (TypeError, ValueError):
                times = torch.empty(0)
            if times.numel() == 0 or not bool(torch.isfinite(times).all()) or bool((times < 0).any()):
                raise MediaError(
                    "frame_times must be finite seconds from the start of the clip, at least one; got "
                    f"{self.frame_times!r}."
                )
            self.frame_times = times.tolist()

    @property
    def shifts(self) -> list[float]:
        """From the time of a moment to those of its frames, seconds, ascending."""
        return moment_shifts(self.frames_per_moment, self.frame_step)

    def around(self, time: float, end: float) -> list[float]:
        """Times of the frames of a moment, those outside of the span moved to its border.

        Args:
            time: Of the moment, seconds of the file.
            end: Where the span ends, likewise.
        """
        last = max(time, end - 2 * TIME_TOLERANCE)
        return [min(max(self.start, time + shift), last) if shift else time for shift in self.shifts]

    @property
    def begin(self) -> float:
        """Where decoding starts, so that the span is an exact slice of the whole, seconds."""
        return max(0.0, math.floor(self.start) - PRE_ROLL_SECONDS)


def _as_whole(name: str, value: Any) -> int:
    """A whole number of at least 1, of whatever type; `ValueError` names what was given."""
    if isinstance(value, int | float | np.number) and value >= 1 and float(value).is_integer():
        return int(value)
    raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")


def as_seconds(name: str, value: Any, default: float | None = None) -> float:
    """A finite time in seconds out of a number; `ValueError` names what was given.

    Args:
        name: Of the argument.
        value: A number.
        default: What `None` stands for, and is itself allowed.
    """
    if default is not None and (value is None or value == default):
        return default
    try:
        seconds = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"{name} is {value!r}; give a finite number of seconds.")
    return seconds


__all__ = ["POST_ROLL_SECONDS", "PRE_ROLL_SECONDS", "SAMPLING_RATE", "MediaRequest", "as_seconds"]
