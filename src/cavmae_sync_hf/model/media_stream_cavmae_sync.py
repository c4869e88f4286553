# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A video of hours is read in constant memory.

`iter_media` decodes a file once, from start to end, and hands out `num_frames` frames at a time, at regular times,
with the part of the audio around them. Only what the next chunk needs is held.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .alignment_cavmae_sync import HELD_FRAME_SECONDS, TIME_TOLERANCE, shown_time
from .batching_cavmae_sync import MomentFrames
from .errors_cavmae_sync import MediaError
from .media_cavmae_sync import Reading, read_media
from .media_decoders_cavmae_sync import FramePicker, MomentPicker, Pick, TimeGrid
from .media_objects_cavmae_sync import DecoderObject, iter_object
from .media_request_cavmae_sync import SAMPLING_RATE, MediaRequest, as_seconds
from .media_source_cavmae_sync import MediaSource, decoder_kind, encoded_source
from .media_tracks_cavmae_sync import MediaReader, TimedPacket, Track
from .media_waveform_cavmae_sync import checked_waveform

# A frame's own time lies at most so far before the centre of its step (see `shown_time`).
DUB_CONTEXT_SECONDS = HELD_FRAME_SECONDS
# Audio around a frame for longer than this would have to be held for every chunk.
MAX_CONTEXT_SECONDS = 32.0


@dataclass(kw_only=True)
class MediaChunk:
    """Some frames in a row and the audio around them. Times are seconds from the start of the span that is read.

    Attributes:
        frames: `(num_frames, 3, height, width)` uint8 RGB, upright; `None` without video. Of moments of several frames
            the middle ones.
        frame_times: `(num_frames,)` float64, the time that stands for each frame, as in `DecodedMedia`; without
            video the asked times.
        asked_times: `(num_frames,)` float64, the centres of the steps.
        waveform: `(num_samples,)` float32 in [-1, 1], the audio at least `context` seconds to either side of the
            frames, where there is any; `None` without audio.
        waveform_start: Whole second at which the waveform starts.
        sampling_rate: Hz.
        start: Where the span starts in the file, seconds.
        source: Name of the file.
        moments: The frames of moments that have several; `None` where they have one each.
    """

    frames: torch.Tensor | None
    frame_times: torch.Tensor
    asked_times: torch.Tensor
    waveform: torch.Tensor | None
    waveform_start: int
    sampling_rate: int
    start: float
    source: str
    moments: MomentFrames | None = None


def iter_media(
    source: Any,
    *,
    hop: float = 0.625,
    num_frames: int = 16,
    context: float = 2.2,
    start: float | None = None,
    end: float | None = None,
    sampling_rate: int = SAMPLING_RATE,
    channel: str = "first",
    audio_track: int | str | None = None,
    want_audio: bool = True,
    want_video: bool = True,
    missing: str = "error",
    damaged: str = "error",
    frames_per_moment: int = 1,
    frame_step: float = 0.04,
    short_side: int | None = None,
    max_pixels: int | None = None,
    threads: int = 0,
) -> Iterator[MediaChunk]:
    """Read frames at regular times, with the audio around them, in constant memory.

    Frame k is the one on screen at `(k + 0.5) * hop` seconds, the centre of step k; the last chunk may hold fewer
    frames. Over a clip of `n * hop` seconds these are the frames of `decode_media(..., num_frames=n)`, and the
    waveforms are slices of its waveform. The length of the file need not be known.

    What is held is the next chunk and what waits for it: packets of at most 10 s or 64 MB, for tracks that lie further
    apart in the file are read by a demuxer each. Silence of hours takes no memory.

    Args:
        source: As for `decode_media`.
        hop: Seconds from one frame to the next.
        num_frames: Frames per chunk.
        context: Seconds of audio needed before and after the time of a frame.
        start: Start of the span in the file, seconds.
        end: End of the span in the file, seconds.
        sampling_rate: Rate of the waveform, Hz.
        channel: `"first"` or `"mean"` of all channels.
        audio_track: As for `decode_media`.
        want_audio: Whether audio is decoded.
        want_video: Whether video is decoded.
        missing: `"error"`, or `"mask"` to go on without a wanted track that is not there.
        damaged: `"error"`: a truncated or corrupt file ends in an error, after all that could be decoded has been
            handed out. `"keep"`: it ends there without one.
        frames_per_moment, frame_step: As for `decode_media`.
        short_side: Scale frames to this shorter side while converting; `None` keeps their size.
        max_pixels: Largest frame that is accepted, width times height, wherever in the file it comes; `None` for any.
        threads: Threads of the video decoder, 0 for as many as there are cores.

    Yields:
        `MediaChunk`.

    Raises:
        MediaError: The file cannot be used, nothing of it lies in the span, or it turned out to be damaged.
    """
    if not as_seconds("hop", hop) > 0 or not 0 <= context < MAX_CONTEXT_SECONDS:
        raise ValueError(
            f"hop must be positive and context in [0, {MAX_CONTEXT_SECONDS:g}) seconds; got hop={hop!r}, "
            f"context={context!r}."
        )
    request = MediaRequest(
        num_frames=num_frames,
        sampling_rate=sampling_rate,
        channel=channel,
        audio_track=audio_track,
        start=as_seconds("start", start, 0.0),
        end=as_seconds("end", end, math.inf),
        want_audio=want_audio,
        want_video=want_video,
        missing=missing,
        damaged=damaged,
        frames_per_moment=frames_per_moment,
        frame_step=frame_step,
        short_side=short_side,
        max_pixels=max_pixels,
        threads=threads,
    )
    if decoder_kind(source) and encoded_source(source) is None:
        yield from _object_chunks(source, request, hop, context)
        return
    with MediaSource(source) as media:
        for stream in read_media(media, request, lambda reader: _Stream(reader, request, hop, context)):
            while stream.is_ready():
                yield stream.chunk()


def _object_chunks(source: Any, request: MediaRequest, hop: float, context: float) -> Iterator[MediaChunk]:
    """`iter_media` of a decoder object that does not say what it reads."""
    reader = DecoderObject(source)
    reader.check(request)
    if reader.kind == "audio":
        end = None if request.end == math.inf else request.end
        yield from iter_waveform(
            reader.waveform(request.sampling_rate, request.channel), request.sampling_rate, hop=hop,
            num_frames=request.num_frames, context=context, start=request.start, end=end, name=reader.name,
        )  # fmt: skip
        return
    for asked, shown, moments in iter_object(reader, request, hop):
        yield MediaChunk(
            frames=moments.middle,
            frame_times=torch.tensor(shown, dtype=torch.float64),
            asked_times=torch.tensor(asked, dtype=torch.float64),
            waveform=None,
            waveform_start=0,
            sampling_rate=request.sampling_rate,
            start=request.start,
            source=reader.name,
            moments=moments if request.frames_per_moment > 1 else None,
        )


class _Stream(Reading):
    """What of one reading is held for the next chunks; times inside are on the file's clock."""

    def __init__(self, reader: MediaReader, request: MediaRequest, hop: float, context: float) -> None:
        self.grid = TimeGrid(offset=request.start + 0.5 * hop, step=hop, end=request.end)
        picker: FramePicker | None = None
        if reader.video is not None and request.frames_per_moment > 1:
            picker = MomentPicker(self.grid, request.shifts, request.start, request.end)
        elif reader.video is not None:
            picker = FramePicker(self.grid)
        super().__init__(reader, request, picker, keep_times=False)
        self.context = context
        self.is_finished = False
        self.lacks = {"audio", "video"}  # what the next chunk lacks something of
        self.is_changed = True  # since that was found out
        self.next = 0  # number of the next frame to hand out
        self.total: float = self.grid.count  # how many there are, as far as it is known
        # (time, image) of frames that wait for their audio: for each frame of a moment a row of them.
        self.waiting: list[deque[tuple[float, np.ndarray]]] = [deque() for _ in request.shifts]
        self.pending = self.waiting[len(self.waiting) // 2]
        self._shown: tuple[Any, np.ndarray] | None = None
        self.pieces: deque[np.ndarray] = deque()  # audio held, without gaps
        # Sample numbers count from the start of the span; the pre-roll lies below zero and is dropped.
        self.held_from = -round((request.start - request.begin) * request.sampling_rate)
        self.held_to = self.held_from

    @property
    def wanted(self) -> Track | None:
        """Of the tracks that the next chunk lacks something of, the one that is behind."""
        tracks = [track for track in self.tracks if not track.is_over]
        return min(tracks, key=lambda track: (track.kind not in self.lacks, track.end), default=None)

    @property
    def has_started(self) -> bool:
        """Whether frames were found that are not to be found again."""
        return bool(self.next or self.pending)

    @property
    def heard_to(self) -> float:
        """End of the audio that is held, seconds."""
        return self.request.start + self.held_to / self.request.sampling_rate

    def is_ready(self) -> bool:
        """Whether the next chunk has all its frames and all the audio it needs."""
        if self.is_finished:
            return self.next < self.total
        if self.is_changed:
            self._find_lacks()
        return not self.lacks and self.next + self.request.num_frames <= self.grid.count

    def _leave_out(self) -> None:
        """Go on without a track that gave nothing, if that is allowed."""
        for track in [track for track in self.tracks if track.is_over and track.first_time is None]:
            if self.request.missing == "error" or len(self.tracks) == 1:
                raise self.lost_track(track.kind) from self.reader.last_error
            self.tracks.remove(track)
            if track.kind == "video":
                self.video = None
            else:
                self.audio = None

    def _find_lacks(self) -> None:
        self._leave_out()
        if self.audio is not None and self.video is not None and self.video.track.is_over:
            last_frame = self.video.picker.last
            # The last frame stays on screen as long as there is audio: how long makes no difference by now.
            if last_frame is not None and self.heard_to > last_frame[0] + HELD_FRAME_SECONDS + 2 * TIME_TOLERANCE:
                self.add_frames(self.video.settle(self.heard_to))
        self.lacks, self.is_changed = set(), False
        count = self.request.num_frames
        until = self.grid.time(self.next + count - 1)
        if self.video is not None and min(map(len, self.waiting)) < count:
            self.lacks.add("video")
        elif self.video is not None:
            until = max(until, self.pending[count - 1][0])
        if self.audio is not None and self.reader.audio is not None:
            # Frames go on where audio has ended.
            is_there = self.reader.audio.is_over and self.video is not None
            if not is_there and self.heard_to < min(until + self.context, self.request.end):
                self.lacks.add("audio")

    def chunk(self) -> MediaChunk:
        """Hand out the next chunk and drop what nothing needs any more."""
        count = int(min(self.request.num_frames, self.total - self.next))
        asked = [self.grid.time(self.next + place) - self.request.start for place in range(count)]
        frames, times, moments = None, asked, None
        if self.video is not None:
            taken = [[row.popleft() for _ in range(count)] for row in self.waiting]
            middle = taken[len(taken) // 2]
            times = [time - self.request.start for time, _ in middle]
            frames = _as_frames([image for _, image in middle])
            if len(taken) > 1:
                moments = _as_moments([[image for _, image in moment] for moment in zip(*taken, strict=True)])
        self.next += count
        self.is_changed = True
        # Whole seconds keep every chunk on the spectrogram's grid, whatever the hop of the spectrogram.
        second = max(0, math.floor(min(times[0], asked[0]) - self.context))
        return MediaChunk(
            frames=frames,
            frame_times=torch.tensor(times, dtype=torch.float64),
            asked_times=torch.tensor(asked, dtype=torch.float64),
            waveform=None if self.audio is None else self._audio_of(second, max(times[-1], asked[-1]) + self.context),
            waveform_start=second,
            sampling_rate=self.request.sampling_rate,
            start=self.request.start,
            source=self.reader.name,
            moments=moments,
        )

    def _audio_of(self, second: int, last: float) -> torch.Tensor:
        """The audio from a whole second to the whole second after `last`, and no more of what lies before."""
        rate = self.request.sampling_rate
        while self.pieces and self.held_from + len(self.pieces[0]) <= second * rate:
            self.held_from += len(self.pieces.popleft())
        last_sample = math.ceil(last) * rate
        if self.request.end < math.inf:
            last_sample = min(last_sample, round((self.request.end - self.request.start) * rate))
        parts = [np.zeros(0, dtype=np.float32)]
        position = self.held_from
        for piece in self.pieces:  # not joined first: pieces of silence may be hours long
            if position < last_sample:
                parts.append(piece[max(0, second * rate - position) : last_sample - position])
            position += len(piece)
        return checked_waveform(np.concatenate(parts), self.reader.name)

    def take(self, packet: TimedPacket) -> None:
        super().take(packet)
        self.is_changed |= packet.data is None

    def add_frames(self, picks: Iterable[Pick]) -> None:
        for pick in picks:
            self.is_changed = True
            if self._shown is None or pick.frame is not self._shown[0]:
                self._shown = (pick.frame, np.array(self.convert(pick.frame)))
            asked = self.grid.time(pick.asked)
            self.waiting[pick.place].append((shown_time(pick.time, pick.until, asked), self._shown[1]))

    def add_audio(self, pieces: list[np.ndarray]) -> None:
        for piece in pieces:
            self.is_changed = True
            self.held_to += len(piece)
            self.pieces.append(piece)

    def finish(self) -> None:
        request, reader = self.request, self.reader
        if self.audio is not None:
            self.add_audio(self.audio.flush())
        clip_end = min(request.end, reader.measured_duration)
        self.total = self.grid.count_before(clip_end)
        if self.video is not None:
            self.add_frames(self.video.finish(clip_end))
        self._leave_out()
        if self.video is not None:
            self.total = self.next + len(self.pending)
        if not self.total:
            raise MediaError(
                f"{reader.name}: no frame lies between {request.start:g} s and its end at {clip_end:g} s; choose an "
                "earlier start or a smaller hop."
            )
        self.is_finished = True


def _as_frames(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _as_moments(moments: list[list[np.ndarray]]) -> MomentFrames:
    """Frames of moments, each of which is there once, since the same one is the same array."""
    distinct = {id(image): image for moment in moments for image in moment}
    numbers = {name: number for number, name in enumerate(distinct)}
    places = torch.tensor([[numbers[id(image)] for image in moment] for moment in moments])
    return MomentFrames(_as_frames(list(distinct.values())), places)


def iter_waveform(
    waveform: torch.Tensor,
    sampling_rate: int,
    *,
    hop: float,
    num_frames: int,
    context: float,
    start: float | None = None,
    end: float | None = None,
    name: str = "the audio",
) -> Iterator[MediaChunk]:
    """A waveform in memory as `iter_media(want_video=False)` gives the audio of a file.

    Args:
        waveform: Samples `(num_samples,)`, sample 0 at time 0.
        sampling_rate: Hz.
        hop: As for `iter_media`, like the others.
        num_frames: Steps per chunk.
        context: Seconds of audio before and after a step's centre.
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
        times = torch.tensor(asked, dtype=torch.float64)
        yield MediaChunk(
            frames=None,
            frame_times=times,
            asked_times=times,
            waveform=samples[second * sampling_rate : math.ceil(asked[-1] + context) * sampling_rate],
            waveform_start=second,
            sampling_rate=sampling_rate,
            start=begin,
            source=name,
        )


def with_audio_of(frames: Iterator[MediaChunk], audio: Iterator[MediaChunk]) -> Iterator[MediaChunk]:
    """The frames of one reading with the audio of another, in step: another audio track for the same video.

    Args:
        frames: From `iter_media(want_audio=False)`.
        audio: From `iter_media(want_video=False)` or `iter_waveform`, with the same `hop`, `num_frames`, `start` and
            `end`, and with `DUB_CONTEXT_SECONDS` more `context`: a frame may have appeared before its step's centre.

    Yields:
        Chunks of `frames` with their audio, as far as it goes.
    """
    heard: MediaChunk | None = None
    for chunk in frames:
        # When the audio has ended, its last piece still reaches into the windows that follow.
        heard = next(audio, heard)
        if heard is not None:
            chunk.waveform, chunk.waveform_start = heard.waveform, heard.waveform_start
        yield chunk


__all__ = ["DUB_CONTEXT_SECONDS", "MediaChunk", "iter_media", "iter_waveform", "with_audio_of"]
