# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How is a film of hours read in constant memory?

`iter_media` decodes a file once, from start to end, and hands out `num_frames` frames at a time, at regular times,
with the part of the sound around them. Only what the next chunk needs is held.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .alignment_cavmae_sync import TIME_TOLERANCE, shown_time
from .errors_cavmae_sync import MediaError
from .media_pass_cavmae_sync import (
    POST_ROLL_SECONDS,
    PRE_ROLL_SECONDS,
    VideoFeed,
    as_seconds,
    check_damage,
    checked_waveform,
)
from .media_pictures_cavmae_sync import FrameConverter
from .media_source_cavmae_sync import MediaSource
from .media_tracks_cavmae_sync import (
    FramePicker,
    MediaReader,
    TimeGrid,
    WaveformBuilder,
)

# Tracks of a file lie at most this far apart. What is further behind has ended: waiting for it would fill the memory.
INTERLEAVE_SECONDS = 10.0
# A frame's own time lies at most so far before the centre of its step (see `shown_time`).
DUB_CONTEXT_SECONDS = 1.0


@dataclass
class MediaChunk:
    """Some frames in a row and the sound around them. Times are seconds from the start of the span that is read.

    Attributes:
        frames: `(num_frames, 3, height, width)` uint8 RGB, upright; `None` without video.
        frame_times: `(num_frames,)` float64, the time that stands for each frame, as in `DecodedMedia`; without
            video the asked times.
        asked_times: `(num_frames,)` float64, the centres of the steps.
        waveform: `(num_samples,)` float32 in [-1, 1], the sound at least `context` seconds to either side of the
            frames, where there is any; `None` without audio.
        waveform_start: Whole second at which the waveform starts.
        sampling_rate: Hz.
        start: Where the span starts in the file, seconds.
        source: Name of the file.
    """

    frames: torch.Tensor | None
    frame_times: torch.Tensor
    asked_times: torch.Tensor
    waveform: torch.Tensor | None
    waveform_start: int
    sampling_rate: int
    start: float
    source: str


def iter_waveform(
    waveform: torch.Tensor,
    sampling_rate: int,
    *,
    hop: float,
    num_frames: int,
    context: float,
    start: float | None = None,
    end: float | None = None,
    name: str = "the sound",
) -> Iterator[MediaChunk]:
    """A waveform in memory as `iter_media(want_video=False)` gives the sound of a file.

    Args:
        waveform: Samples `(num_samples,)`, sample 0 at time 0.
        sampling_rate: Hz.
        hop: As for `iter_media`, like the others.
        num_frames: Steps per chunk.
        context: Seconds of sound before and after a step's centre.
        start: Start of the span, seconds.
        end: End of the span, seconds.
        name: For messages.
    """
    begin = 0.0 if start is None else start
    samples = waveform[round(begin * sampling_rate) : None if end is None else round(end * sampling_rate)]
    grid = TimeGrid(offset=0.5 * hop, step=hop, end=len(samples) / sampling_rate)
    count = int(grid.count)
    for first in range(0, count, num_frames):
        asked = [grid.time(place) for place in range(first, min(first + num_frames, count))]
        second = max(0, math.floor(asked[0] - context))
        piece = samples[second * sampling_rate : math.ceil(asked[-1] + context) * sampling_rate]
        times = torch.tensor(asked, dtype=torch.float64)
        yield MediaChunk(None, times, times, piece, second, sampling_rate, begin, name)


def with_sound_of(pictures: Iterator[MediaChunk], sounds: Iterator[MediaChunk]) -> Iterator[MediaChunk]:
    """The pictures of one reading with the sound of another, in step: another sound track for the same film.

    Args:
        pictures: From `iter_media(want_audio=False)`.
        sounds: From `iter_media(want_video=False)` or `iter_waveform`, with the same `hop`, `num_frames`, `start` and
            `end`, and with `DUB_CONTEXT_SECONDS` more `context`: a frame may have appeared before its step's centre.

    Yields:
        Chunks of `pictures` with their sound, as far as it goes.
    """
    sound: MediaChunk | None = None
    for chunk in pictures:
        # When the sound has ended, its last piece still reaches into the windows that follow.
        sound = next(sounds, sound)
        if sound is not None:
            chunk.waveform, chunk.waveform_start = sound.waveform, sound.waveform_start
        yield chunk


class _LateSeek(Exception):
    """The file can only be read from its beginning."""


def iter_media(
    source: Any,
    *,
    hop: float = 0.625,
    num_frames: int = 16,
    context: float = 2.2,
    start: float | None = None,
    end: float | None = None,
    sampling_rate: int = 16000,
    channel: str = "first",
    want_audio: bool = True,
    want_video: bool = True,
    missing: str = "error",
    damaged: str = "error",
    short_side: int | None = None,
    threads: int = 0,
) -> Iterator[MediaChunk]:
    """Read frames at regular times, with the sound around them, in constant memory.

    Frame k is the one on screen at `(k + 0.5) * hop` seconds, the centre of step k; the last chunk may hold fewer
    frames. Over a clip of `n * hop` seconds these are the frames of `decode_media(..., num_frames=n)`, and the
    waveforms are slices of its waveform. The length of the file need not be known.

    Args:
        source: As for `decode_media`.
        hop: Seconds from one frame to the next.
        num_frames: Frames per chunk.
        context: Seconds of sound needed before and after the time of a frame.
        start: Start of the span in the file, seconds.
        end: End of the span in the file, seconds.
        sampling_rate: Rate of the waveform, Hz.
        channel: `"first"` or `"mean"` of all channels.
        want_audio: Whether audio is decoded.
        want_video: Whether video is decoded.
        missing: `"error"`, or `"mask"` to go on without a wanted track that is not there.
        damaged: `"error"`: a truncated or corrupt file ends in an error, after all that could be decoded has been
            handed out. `"keep"`: it ends there without one.
        short_side: Scale frames to this shorter side while converting; `None` keeps their size.
        threads: Threads of the video decoder, 0 for as many as there are cores.

    Yields:
        `MediaChunk`.

    Raises:
        MediaError: The file cannot be used, nothing of it lies in the span, or it turned out to be damaged.
    """
    whole = isinstance(num_frames, int | np.integer) and num_frames >= 1
    if not whole or not as_seconds("hop", hop) > 0 or not 0 <= context < INTERLEAVE_SECONDS:
        raise ValueError(
            "hop must be positive, num_frames a whole number of at least 1 and context in "
            f"[0, {INTERLEAVE_SECONDS:g}) seconds; got hop={hop!r}, num_frames={num_frames!r}, context={context!r}."
        )
    begin = 0.0 if start is None else as_seconds("start", start)
    stop = math.inf if end in (None, math.inf) else as_seconds("end", end)
    with MediaSource(source) as media:
        if not 0 <= begin < stop:
            raise MediaError(f"{media.name}: the span {begin:g} s to {stop:g} s is empty; give 0 <= start < end.")
        for seek in (True, False):
            with MediaReader(media, want_audio, want_video, missing, threads) as reader:
                stream = _Stream(reader, hop, num_frames, context, begin, stop, sampling_rate, channel, short_side)
                try:
                    yield from stream.chunks(seek)
                    if damaged == "error":
                        check_damage(reader, stop)
                    return
                except _LateSeek:
                    continue


class _Stream:
    """State of one reading; times inside are on the file's clock."""

    def __init__(
        self,
        reader: MediaReader,
        hop: float,
        num_frames: int,
        context: float,
        start: float,
        end: float,
        sampling_rate: int,
        channel: str,
        short_side: int | None,
    ) -> None:
        self.reader, self.num_frames, self.context = reader, num_frames, context
        self.start, self.end, self.rate = start, end, sampling_rate
        self.grid = TimeGrid(offset=start + 0.5 * hop, step=hop, end=end)
        self.pre_roll_start = max(0.0, math.floor(start) - PRE_ROLL_SECONDS)
        self.video = None
        if reader.video is not None:
            self.video = VideoFeed(reader, FramePicker(self.grid), start, end, keep_times=False)
        self.sound = None
        if reader.audio is not None:
            self.sound = WaveformBuilder(sampling_rate, channel, self.pre_roll_start, end + POST_ROLL_SECONDS)
        self.convert = FrameConverter(reader.name, short_side)
        self.next = 0  # number of the next frame to hand out
        self.pending: deque[tuple[float, np.ndarray]] = deque()  # (time, picture) of frames that wait for their sound
        self._shown: tuple[Any, np.ndarray] | None = None
        self.pieces: deque[np.ndarray] = deque()  # sound held, without gaps
        # Sample numbers count from the start of the span; the pre-roll lies below zero and is dropped.
        self.held_from = -round((start - self.pre_roll_start) * sampling_rate)
        self.held_to = self.held_from
        self.heard = False

    def chunks(self, seek: bool) -> Iterator[MediaChunk]:
        """Read to the end and yield chunks as they are complete."""
        seek = seek and self.pre_roll_start > 0
        if seek:
            self.reader.seek(self.pre_roll_start - POST_ROLL_SECONDS)
        video_index = self.reader.video.index if self.video is not None else -1
        audio_index = self.reader.audio.index if self.sound is not None else -1
        passed = dict.fromkeys(self.reader.ends, False)
        for packet, index, time, decode_time in self.reader.packets():
            if index == video_index and self.video is not None:
                self._see(self.video.push(packet, time, decode_time))
                self._check_seek(seek, self.video.first_time)
            elif index == audio_index and self.sound is not None:
                self._hear(packet, seek)
            while self._ready():
                yield self._chunk(self.num_frames)
            position = time if decode_time is None else decode_time
            if position is not None and position > self.end + POST_ROLL_SECONDS:
                passed[index] = True
                if all(passed.values()):
                    break
        yield from self._rest()

    def _rest(self) -> Iterator[MediaChunk]:
        """The tracks have ended: hand out what is left."""
        if self.sound is not None:
            self._hold(self.sound.flush())
        clip_end = min(self.end, self.reader.measured_duration)
        if self.video is not None:
            self._see(self.video.finish(clip_end))
            if self.video.first_time is None and not self.heard:
                raise MediaError(f"{self.reader.name}: nothing could be decoded; the file is damaged or ends earlier.")
            count = self.next + len(self.pending)
        else:
            count = self.grid.count_before(clip_end)
        if not count:
            raise MediaError(
                f"{self.reader.name}: no frame lies between {self.start:g} s and its end at {clip_end:g} s; choose an "
                "earlier start or a smaller hop."
            )
        while self.next < count:
            yield self._chunk(min(self.num_frames, count - self.next))

    def _check_seek(self, seek: bool, first: float | None) -> None:
        if seek and first is not None and first > self.start + TIME_TOLERANCE and not self.next and not self.pending:
            raise _LateSeek

    def _see(self, picks: Iterator[Any]) -> None:
        for pick in picks:
            if self._shown is None or pick.frame is not self._shown[0]:
                self._shown = (pick.frame, np.array(self.convert(pick.frame)))
            asked = self.grid.time(pick.asked)
            self.pending.append((shown_time(pick.time, pick.until, asked), self._shown[1]))

    def _hear(self, packet: Any, seek: bool) -> None:
        assert self.sound is not None
        for frame in self.reader.decode(packet):
            time = self.reader.frame_time(frame, self.reader.audio)
            if not self.heard:
                self._check_seek(seek, time)
            self.heard = True
            self._hold(self.sound.push(frame, time))

    def _hold(self, pieces: list[np.ndarray]) -> None:
        for piece in pieces:
            self.held_to += len(piece)
            self.pieces.append(piece)

    def _ready(self) -> bool:
        """Whether the next full chunk has all its frames and all the sound it needs."""
        if self.next + self.num_frames > self.grid.count:
            return False
        needed = self.grid.time(self.next + self.num_frames - 1) + self.context
        heard_to = self.start + self.held_to / self.rate
        if self.video is None:
            return heard_to >= min(needed, self.end)
        silent_since = heard_to - INTERLEAVE_SECONDS
        if self.sound is not None and silent_since > self.video.last_time:
            # Video that has fallen this far behind the sound has paused or ended: its last frame stays on screen.
            self._see(self.video.pause())
            self._see(self.video.settle(silent_since))
        if len(self.pending) < self.num_frames:
            return False
        needed = max(needed, self.pending[self.num_frames - 1][0] + self.context)
        heard = self.sound is None or heard_to >= min(needed, self.end)
        return heard or self.video.last_time > needed + INTERLEAVE_SECONDS

    def _chunk(self, count: int) -> MediaChunk:
        asked = [self.grid.time(self.next + place) - self.start for place in range(count)]
        frames, times = None, asked
        if self.video is not None and self.pending:
            taken = [self.pending.popleft() for _ in range(count)]
            times = [time - self.start for time, _ in taken]
            frames = torch.from_numpy(np.stack([picture for _, picture in taken])).permute(0, 3, 1, 2)
        self.next += count
        waveform, second = self._sound_around(min(times[0], asked[0]), max(times[-1], asked[-1]))
        return MediaChunk(
            frames, torch.tensor(times, dtype=torch.float64), torch.tensor(asked, dtype=torch.float64), waveform,
            second, self.rate, self.start, self.reader.name,
        )  # fmt: skip

    def _sound_around(self, first: float, last: float) -> tuple[torch.Tensor | None, int]:
        """The sound from `context` before `first` to `context` after `last`, and the second at which it starts."""
        # Whole seconds keep every chunk on the spectrogram's grid, whatever the hop of the spectrogram.
        second = max(0, math.floor(first - self.context))
        if self.sound is None:
            return None, second
        while self.pieces and self.held_from + len(self.pieces[0]) <= second * self.rate:
            self.held_from += len(self.pieces.popleft())
        last_sample = math.ceil(last + self.context) * self.rate
        if self.end < math.inf:
            last_sample = min(last_sample, round((self.end - self.start) * self.rate))
        held = np.concatenate(self.pieces) if self.pieces else np.zeros(0, dtype=np.float32)
        offset = second * self.rate - self.held_from
        piece = held[max(0, offset) : max(0, last_sample - self.held_from)]
        return checked_waveform(piece, self.reader.name), second


__all__ = [
    "DUB_CONTEXT_SECONDS",
    "INTERLEAVE_SECONDS",
    "MediaChunk",
    "iter_media",
    "iter_waveform",
    "with_sound_of",
]
