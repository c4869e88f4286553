# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The rules of the method: when a frame is, which window of audio belongs to it, and which part of a frame is seen.

A **moment** is one frame of a video together with the window of audio around the frame's time. CAV-MAE Sync
(arXiv:2505.01237) aligns the two modalities moment by moment instead of clip by clip. Two rules place the moments of
a clip:

- **time**: frame i of n is on screen at the centre of the i-th of n equal spans, and its window is centred on it;
- **reference**: the published preparation, which takes every clip for one of 10.24 s. Its frames come from the files
  prepared by CAV-MAE (`src/preprocess/extract_video_frame.py` of YuanGongND/cav-mae), its windows from
  `map_frame_to_spectrogram` in `src/dataloader_sync.py` of edsonroteia/cav-mae-sync.

Times are in seconds, positions in a spectrogram in its frames of 10 ms, and places in an image in pixels. Everything
here is arithmetic on numbers: nothing is decoded and no tensor is touched.
"""

from collections.abc import Sequence
from typing import NamedTuple

# Frames of a spectrogram per second: Kaldi's default hop of 10 ms, which is fixed for every model.
FRAMES_PER_SECOND = 100
# The published preparation takes frames from the first ten seconds of a clip only.
REFERENCE_SECONDS = 10
# A frame that stays on screen for longer than this (a slide, a still with audio) has no one time.
HELD_FRAME_SECONDS = 1.0
# Two times closer than this are the same: half a tick of the finest common video clock (90 kHz) is 5.6 microseconds.
TIME_TOLERANCE = 5e-6
# In frames: keeps `0.58 * 50`, which is 28.999999999999996, from falling to frame 28.
_FRAME_TOLERANCE = 1e-6


def check_alignment(alignment: object) -> None:
    """Refuse the name of a rule that there is not (`ValueError`)."""
    if alignment not in ("time", "reference"):
        raise ValueError(f'`alignment` is {alignment!r}; it must be "time" or "reference".')


def center_times(duration: float, num_frames: int, start: float = 0.0) -> list[float]:
    """Times of the frames of a clip by the rule of time: `start + (i + 0.5) * duration / num_frames`.

    These are the centres of `num_frames` equal spans of `[start, start + duration]`.

    Args:
        duration: Length of the clip, seconds (or any other unit, which is then that of the result).
        num_frames: How many frames are taken.
        start: Where the clip starts, seconds.
    """
    return [start + (index + 0.5) * duration / num_frames for index in range(num_frames)]


def step_times(hop: float, count: int, first: int = 0) -> list[float]:
    """Times of moments `hop` seconds apart, from number `first` on: `(k + 0.5) * hop`, the centres of the steps.

    A clip of `n * hop` seconds has the same moments as by `center_times`.
    """
    return [(first + index + 0.5) * hop for index in range(count)]


def moment_shifts(frames_per_moment: int, frame_step: float) -> list[float]:
    """From the time of a moment to those of its frames: `j * frame_step` for `j = -k // 2 ... k // 2`, seconds.

    Args:
        frames_per_moment: k, an odd number.
        frame_step: Seconds from one of these frames to the next.
    """
    half = frames_per_moment // 2
    return [place * frame_step for place in range(-half, half + 1)]


def frame_at(time: float, frame_rate: float) -> int:
    """Number of the frame on screen at a time, for a constant rate: `floor(time * frame_rate)`, the last that began.

    Args:
        time: Seconds from the first frame, not negative.
        frame_rate: Frames per second.
    """
    return int(time * frame_rate + _FRAME_TOLERANCE)


def shown_time(appeared: float, until: float, asked: float) -> float:
    """The time that stands for a frame, in seconds.

    That is when it appeared; but a frame that stays for more than a second is as much the frame of the asked time,
    which is then returned.

    Args:
        appeared: When the frame appeared on screen.
        until: When the next one follows.
        asked: The time for which the frame was taken.
    """
    held = until - appeared > HELD_FRAME_SECONDS + TIME_TOLERANCE and asked > appeared
    return asked if held else appeared


def reference_indices(total_frames: int, frame_rate: float, num_frames: int) -> list[int]:
    """Numbers of the frames that the published preparation takes: `int(i * min(N, 10 * fps) / n)`.

    Args:
        total_frames: N, frames of the clip.
        frame_rate: fps, frames per second.
        num_frames: n, how many frames are taken (16 as published).
    """
    used = min(total_frames, REFERENCE_SECONDS * frame_rate)
    return [int(index * used / num_frames) for index in range(num_frames)]


def reference_frame_times(duration: float, num_frames: int) -> list[float]:
    """When the frames of `reference_indices` are: `i * min(duration, 10) / n` seconds, to a frame's length."""
    span = min(duration, REFERENCE_SECONDS)
    return [index * span / num_frames for index in range(num_frames)]


def reference_window_times(num_windows: int, reference_length: int) -> list[float]:
    """When the published mapping takes the frames to be: `i * L / n / 100` seconds, whatever the clip's length.

    Args:
        num_windows: n, frames and windows of the clip.
        reference_length: L, spectrogram frames that stand for the whole clip (1024, or 10.24 s, as published).
    """
    return [index * reference_length / num_windows / FRAMES_PER_SECOND for index in range(num_windows)]


def window_starts(frame_times: Sequence[float], window_length: int) -> list[int]:
    """Where windows start by the rule of time: `round(100 * t) - length // 2`, so that they are centred on t.

    Args:
        frame_times: t, times of the frames in seconds.
        window_length: Spectrogram frames of a window (416, or 4.16 s, as published).

    Returns:
        One spectrogram frame per time; it may be negative or lie beyond the clip's end.
    """
    return [round(FRAMES_PER_SECOND * float(time)) - window_length // 2 for time in frame_times]


def reference_window_starts(num_windows: int, window_length: int, reference_length: int) -> list[int]:
    """Where windows start by the published mapping: `round(i * L / n) - length // 2`, moved into `[0, L - length]`.

    `map_frame_to_spectrogram` in `src/dataloader_sync.py` of edsonroteia/cav-mae-sync. Frame i of n is taken to lie
    at the share i / n of the spectrogram, whatever its time is.

    Args:
        num_windows: n, frames and windows of the clip.
        window_length: Spectrogram frames of a window.
        reference_length: L, spectrogram frames that stand for the whole clip (1024 as published).
    """
    half, last = window_length // 2, reference_length - window_length
    # Python's `round` (half to even) is part of the published mapping.
    centers = [round(index * reference_length / num_windows) for index in range(num_windows)]
    return [min(max(center - half, 0), last) for center in centers]


def window_seconds(window_length: int) -> float:
    """Length of a window in seconds: `length / 100`."""
    return window_length / FRAMES_PER_SECOND


def window_times(starts: Sequence[int], window_length: int) -> list[tuple[float, float]]:
    """Start and end of windows in seconds: `start / 100` and `(start + length) / 100`."""
    return [(start / FRAMES_PER_SECOND, (start + window_length) / FRAMES_PER_SECOND) for start in starts]


def clip_starts(starts: Sequence[int], window_length: int, clip_length: int, origin: int = 0) -> list[int]:
    """Where the longer clip starts that each window is heard within, for models that hear more than a window at once.

    Clips lie at fixed places of the file, one every `clip_length - window_length` steps, so that each window lies in
    one of them as a whole, and that clip is the same wherever reading begins: number k starts at
    `k * (clip_length - window_length) - window_length // 2`, and has the windows whose centre is in its stretch.

    Args:
        starts: Where the windows start, spectrogram frames.
        window_length: Their length.
        clip_length: That of the clips, no less.
        origin: Where position 0 of `starts` lies in the file.

    Returns:
        As `starts`, counted from the same position 0.
    """
    step, half = max(1, clip_length - window_length), window_length // 2
    return [(start + half + origin) // step * step - half - origin for start in starts]


def window_coverage(starts: Sequence[int], window_length: int, total_frames: int) -> list[float]:
    """Share of each window that lies inside a clip of `total_frames` spectrogram frames, in [0, 1]."""
    held = [min(start + window_length, total_frames) - max(start, 0) for start in starts]
    return [max(0, frames) / window_length for frames in held]


class ViewGeometry(NamedTuple):
    """Which part of an image the model sees: the image is resized, then a window is cut out of its centre.

    Attributes:
        size: Height and width of the image, pixels.
        resized: Height and width after resizing.
        window: `(top, left, height, width)` of what is cut out, pixels of the resized image; it may reach outside.
    """

    size: tuple[int, int]
    resized: tuple[int, int]
    window: tuple[int, int, int, int]

    @property
    def seen(self) -> tuple[float, float, float, float]:
        """`(x0, y0, x1, y1)` of the part of the image that is seen, in pixels of the image."""
        (full_height, full_width), (top, left, height, width) = self.size, self.window
        down, across = full_height / self.resized[0], full_width / self.resized[1]
        return (
            max(0.0, left * across),
            max(0.0, top * down),
            min(full_width, (left + width) * across),
            min(full_height, (top + height) * down),
        )

    def boxes(self, boxes: Sequence[Sequence[float]]) -> list[list[float]]:
        """Boxes of the image in pixels of the view: `x * resized / original - left`, cut at the edges of the view.

        Args:
            boxes: `[x0, y0, x1, y1]` each, half-open, in pixels of the image.

        Returns:
            The boxes of which something is in view, in pixels of the view.
        """
        top, left, height, width = self.window
        down, across = self.resized[0] / self.size[0], self.resized[1] / self.size[1]
        found = []
        for x0, y0, x1, y1 in boxes:
            x0, x1 = (min(max(x * across - left, 0.0), float(width)) for x in (x0, x1))
            y0, y1 = (min(max(y * down - top, 0.0), float(height)) for y in (y0, y1))
            if x1 > x0 and y1 > y0:
                found.append([x0, y0, x1, y1])
        return found


def resized_size(height: int, width: int, shortest_edge: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side is brought to `shortest_edge` pixels.

    The longer side is cut to whole pixels, `int(shortest_edge * longer / shorter)`, as torchvision's `Resize` does.
    """
    longer = int(shortest_edge * max(height, width) / min(height, width))
    return (shortest_edge, longer) if height <= width else (longer, shortest_edge)


def center_crop_window(height: int, width: int, crop: tuple[int, int]) -> tuple[int, int, int, int]:
    """`(top, left, height, width)` of a crop out of the centre: `round((side - crop) / 2)`, as torchvision rounds.

    Args:
        height: Of the image, pixels.
        width: Of the image.
        crop: Height and width of the crop; it may be larger than the image and then reaches outside.
    """
    return round((height - crop[0]) / 2.0), round((width - crop[1]) / 2.0), *crop


def view_of(size: tuple[int, int], crop: tuple[int, int], shortest_edge: int) -> ViewGeometry:
    """The view of an image: the shorter side is brought to `shortest_edge`, then the centre is cut out.

    This is what the published preparation does (`Resize(224)`, `CenterCrop(224)`).

    Args:
        size: Height and width of the image, pixels.
        crop: Height and width of the view, pixels.
        shortest_edge: Shorter side after resizing, pixels.
    """
    resized = resized_size(*size, shortest_edge)
    return ViewGeometry(size, resized, center_crop_window(*resized, crop))
