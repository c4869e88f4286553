# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How do the two tracks of one open file become pictures and sound on one clock?

`MediaReader` demuxes a file once and decodes both tracks; `FramePicker` finds the frame on screen at each wanted time;
`WaveformBuilder` lays the sound on the clock, one channel, resampled. Times are seconds from the start of the file:
the earliest track starts at 0, and a track that starts later keeps its distance.
"""

import bisect
import gc
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .alignment_cavmae_sync import TIME_TOLERANCE
from .errors_cavmae_sync import MissingTrackError
from .media_source_cavmae_sync import MediaSource

try:
    import av
    import av.audio.resampler
    import av.stream
except ImportError:
    av = None  # type: ignore[assignment]

# Containers with millisecond clocks (Matroska, FLV) jitter by 1 ms; a larger gap in the sound is a real one.
GAP_TOLERANCE_SECONDS = 0.010
# Decoders in which skipping "non-reference" frames drops only frames that no other frame is built from.
_EXACT_SKIP_CODECS = frozenset({"h264", "vp9"})
_MAX_LOOKAHEAD = 64
_SAMPLE_SCALES = {"u8": 128.0, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63, "flt": 1.0, "dbl": 1.0}


class TimeGrid:
    """Wanted times in ascending order: a list, or a regular row `offset + k * step` up to `end`.

    Args:
        times: The times in seconds, ascending; or `None` for a row.
        offset: First time of the row.
        step: Distance between times of the row.
        end: The row stops before this time.
    """

    def __init__(
        self, times: Sequence[float] | None = None, offset: float = 0.0, step: float = 1.0, end: float = math.inf
    ) -> None:
        self.times = None if times is None else list(times)
        self.offset, self.step = offset, step
        self.count: float = math.inf  # how many times there are
        if self.times is not None:
            self.count = len(self.times)
        elif end < math.inf:
            self.count = self.count_before(end)

    def time(self, index: int) -> float:
        """The wanted time number `index`."""
        return self.times[index] if self.times is not None else self.offset + index * self.step

    def count_before(self, time: float) -> int:
        """How many wanted times lie before `time` (those within the tolerance of `time` do not)."""
        limit = time - TIME_TOLERANCE
        if self.times is not None:
            return bisect.bisect_left(self.times, limit)
        return int(min(self.count, max(0, math.ceil((limit - self.offset) / self.step))))


class Pick(NamedTuple):
    """A frame that answers what was asked.

    Attributes:
        asked: Which of the asked times or numbers it answers, counted from 0.
        time: When it appears on screen, seconds.
        until: When the next frame follows, seconds (as far as frames were decoded).
        frame: The decoded frame.
    """

    asked: int
    time: float
    until: float
    frame: Any


class FramePicker:
    """Picks, from frames that arrive in order, the one on screen at each wanted time.

    The frame on screen at `t` is the last one whose presentation time is not after `t`; before the first frame it is
    the first frame, after the last frame the last.
    """

    def __init__(self, grid: TimeGrid) -> None:
        self.grid = grid
        self.next = 0
        self.last: tuple[float, Any] | None = None

    def push(self, time: float, frame: Any) -> Iterator[Pick]:
        """Take the next frame; yield what it settles."""
        if self.last is not None and time < self.last[0]:
            return  # a decoder that hands out frames backwards has lost them; the later one is on screen
        held_time, held = self.last or (time, frame)
        self.last = (time, frame)
        for index in range(self.next, self.grid.count_before(time)):
            self.next = index + 1
            yield Pick(index, held_time, time, held)

    @property
    def done(self) -> bool:
        """Whether everything asked is answered."""
        return self.next >= self.grid.count

    def asks(self, begin: float, end: float) -> bool:
        """Whether a frame on screen from `begin` to `end` is wanted."""
        return self.grid.count_before(end) > self.grid.count_before(begin)

    def flush(self, end: float = math.inf) -> Iterator[Pick]:
        """No more frames: the last one answers what is left before `end`."""
        while self.last is not None and self.next < self.grid.count and self.grid.time(self.next) < end:
            self.next += 1
            yield Pick(self.next - 1, self.last[0], end, self.last[1])


class IndexPicker:
    """Picks frames by their number in presentation order (`indices` ascending)."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = list(indices)
        self.next = 0
        self.last: tuple[float, Any] | None = None

    @property
    def done(self) -> bool:
        """Whether everything asked is answered."""
        return self.next >= len(self.indices)

    def push(self, time: float, frame: Any, number: int) -> Iterator[Pick]:
        """Take frame number `number`; yield it each time it is wanted."""
        self.last = (time, frame)
        while self.next < len(self.indices) and self.indices[self.next] <= number:
            self.next += 1
            yield Pick(self.next - 1, time, time, frame)

    def flush(self, end: float = math.inf) -> Iterator[Pick]:
        """No more frames: the last one stands for the numbers that never came."""
        while self.last is not None and self.next < len(self.indices):
            self.next += 1
            yield Pick(self.next - 1, self.last[0], end, self.last[1])


class PacketAdvisor:
    """Tells, before decoding, which packets hold a frame that somebody asks for.

    Packets come in decoding order; one whose frame nobody asks for need not be decoded when nothing else is built from
    it. A packet is judged once the presentation time that follows its own is certain, which is when a decoding time
    reaches it (no later packet can be presented before it is decoded).

    Args:
        asks: `asks(begin, end, number)` says whether the frame that is on screen from `begin` to `end`, the one with
            this number in presentation order, is wanted.
        keep_times: Keep the times of all packets in `times` (ascending), not only those that are still needed.
    """

    def __init__(self, asks: Callable[[float, float, int], bool], keep_times: bool = True) -> None:
        self.asks = asks
        self.keep_times = keep_times
        self.times: list[float] = []
        self._pending: deque[tuple[float, Any]] = deque()
        self._first = True

    def push(self, time: float, decode_time: float, packet: Any) -> Iterator[tuple[Any, bool]]:
        """Take the next packet; yield `(packet, wanted)` for those that can be judged, in decoding order."""
        bisect.insort(self.times, time)
        self._pending.append((time, packet))
        while self._pending:
            head, item = self._pending[0]
            following = bisect.bisect_right(self.times, head)
            certain = following < len(self.times) and self.times[following] <= decode_time + TIME_TOLERANCE
            if not certain and len(self._pending) <= _MAX_LOOKAHEAD:
                break
            self._pending.popleft()
            # The first packet also answers the times before the first frame.
            wanted = not certain or self.asks(head, self.times[following], following - 1) or self._first
            self._first = False
            yield item, wanted
        if not self.keep_times:
            earliest = min((entry[0] for entry in self._pending), default=time)
            del self.times[: bisect.bisect_left(self.times, earliest)]

    def flush(self) -> Iterator[tuple[Any, bool]]:
        """Give up looking ahead: everything left counts as wanted."""
        while self._pending:
            yield self._pending.popleft()[1], True

    def count_before(self, time: float) -> int:
        """How many of the packets seen so far are presented before `time`."""
        return bisect.bisect_left(self.times, time - TIME_TOLERANCE)


class WaveformBuilder:
    """Lays decoded audio on the file's clock: one channel, one rate, gaps filled with silence.

    Args:
        rate: Sampling rate of the result, Hz.
        channel: `"first"` (channel 0, front left in surround sound) or `"mean"` of all channels, chosen before
            resampling.
        begin: Time in seconds at which sample 0 of the result lies; earlier sound is dropped.
        end: Time in seconds after which sound is not needed.
    """

    def __init__(self, rate: int, channel: str, begin: float = 0.0, end: float = math.inf) -> None:
        self.rate, self.channel, self.begin, self.end = rate, channel, begin, end
        self.source_rate = 0
        self.num_samples = 0  # of the result so far
        self._resampler: _MonoResampler | None = None
        self._block: list[np.ndarray] = []
        self._block_samples = 0
        self._origin = begin  # time of the first sample at the present source rate
        self._position = 0  # source samples laid since then

    def push(self, frame: Any, time: float | None) -> list[np.ndarray]:
        """Take a decoded frame that starts at `time` (`None`: right after the last); return finished pieces."""
        finished: list[np.ndarray] = []
        if frame.sample_rate != self.source_rate:
            finished = self.flush()
            self.source_rate = frame.sample_rate
            self._resampler = _MonoResampler(self.source_rate, self.rate)
            self._origin, self._position = self.begin + self.num_samples / self.rate, 0
        if time is not None and time > self.end:
            return finished
        samples = mono_samples(frame, self.channel)
        if time is not None:
            gap = round((time - self._origin) * self.source_rate) - self._position
            if gap > 0 and (self._position == 0 or gap > GAP_TOLERANCE_SECONDS * self.source_rate):
                self._add(np.zeros(gap, dtype=np.float32))
            elif gap < 0 and (self._position == 0 or -gap > GAP_TOLERANCE_SECONDS * self.source_rate):
                samples = samples[-gap:]
        if len(samples):
            self._add(samples)
        if self._block_samples >= self.source_rate:  # a second at a time keeps the calls few
            finished += self._resample_block()
        return finished

    def flush(self) -> list[np.ndarray]:
        """No more frames at this rate: return what is left."""
        if self._resampler is None or self._position == 0:
            return []
        pieces = self._resample_block() + [self._resampler.flush()]
        # The resampler may round the last fraction of a sample up; the piece ends where the sound ends.
        return self._count(pieces[-1:], pieces[:-1])

    def _count(self, new: list[np.ndarray], before: list[np.ndarray]) -> list[np.ndarray]:
        self.num_samples += sum(map(len, new))
        return before + new

    def _add(self, samples: np.ndarray) -> None:
        self._block.append(samples)
        self._block_samples += len(samples)
        self._position += len(samples)

    def _resample_block(self) -> list[np.ndarray]:
        if not self._block:
            return []
        block = self._block[0] if len(self._block) == 1 else np.concatenate(self._block)
        self._block, self._block_samples = [], 0
        assert self._resampler is not None
        return self._count([self._resampler.push(block)], [])


class _MonoResampler:
    """FFmpeg's resampler on one channel of float samples, fed piece by piece."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self.from_rate, self.to_rate = from_rate, to_rate
        self._position = 0
        self._resampler = None
        if from_rate != to_rate:
            self._resampler = av.audio.resampler.AudioResampler(format="flt", layout="mono", rate=to_rate)

    def push(self, samples: np.ndarray) -> np.ndarray:
        if self._resampler is None:
            return samples
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = self.from_rate, self._position
        self._position += len(samples)
        return self._join(self._resampler.resample(frame))

    def flush(self) -> np.ndarray:
        return self._join(self._resampler.resample(None) if self._resampler is not None and self._position else [])

    @staticmethod
    def _join(frames: list[Any]) -> np.ndarray:
        arrays = [frame.to_ndarray()[0] for frame in frames]
        return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.float32)


def resample_with_ffmpeg(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample one channel of float32 samples `(num_samples,)` with FFmpeg's resampler."""
    resampler = _MonoResampler(from_rate, to_rate)
    return np.concatenate([resampler.push(samples), resampler.flush()])


def mono_samples(frame: Any, channel: str) -> np.ndarray:
    """One channel of a decoded audio frame as float32 in [-1, 1], shape `(num_samples,)`."""
    if channel == "first" and frame.format.is_planar and frame.format.name == "fltp":
        return np.frombuffer(frame.planes[0], dtype=np.float32, count=frame.samples)
    array = frame.to_ndarray()
    channels = array if frame.format.is_planar else array.reshape(frame.samples, -1).T  # (channels, num_samples)
    scale = _SAMPLE_SCALES[frame.format.packed.name]
    samples = channels[0].astype(np.float64) if channel == "first" else channels.astype(np.float64).mean(axis=0)
    if frame.format.packed.name == "u8":
        samples = samples - 128.0
    return (samples / scale).astype(np.float32)


class _ForkGuard:
    """Frees what is left of decoders before this process forks.

    PyAV's containers and streams hold each other, so decoders, which own threads, wait for the cycle collector. Should
    it find them in a forked process, where those threads do not exist, freeing them would wait for ever.
    """

    def __init__(self) -> None:
        self.registered = False
        self.pending = False

    def note_reader(self) -> None:
        """Say that there is a new decoder."""
        self.pending = True
        if not self.registered and hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self.collect)
            self.registered = True

    def collect(self) -> None:
        """Collect, if a file was decoded since the last time."""
        if self.pending:
            self.pending = False
            gc.collect()


_FORK_GUARD = _ForkGuard()


class MediaReader:
    """One pass over one open file.

    Args:
        source: The file.
        want_audio: Whether audio is decoded.
        want_video: Whether video is decoded.
        missing: `"error"` raises for a wanted track that is absent, `"mask"` goes on without it.
        threads: Threads of the video decoder, 0 for as many as there are cores.

    Raises:
        MissingTrackError: A wanted track is absent and `missing="error"`, or none of the wanted tracks is there.
    """

    def __init__(
        self, source: MediaSource, want_audio: bool, want_video: bool, missing: str = "error", threads: int = 0
    ) -> None:
        self.name = source.name
        _FORK_GUARD.note_reader()
        self.container = source.open()
        try:
            self._find_tracks(want_audio, want_video, missing)
        except BaseException:
            self.container.close()
            raise
        if self.video is not None:
            self.video.thread_type = "AUTO"
            self.video.codec_context.thread_count = threads
        starts = [
            stream.start_time * stream.time_base.numerator / stream.time_base.denominator
            for stream in self.tracks
            if stream.start_time is not None
        ]
        # Negative starts are encoder delay that the decoder drops; a positive common start is only the clock's offset.
        self.origin = max(0.0, min(starts, default=0.0))
        # PyAV makes a new Fraction at each look at a time base, which would cost as much as demuxing.
        self._clocks = {stream.index: _Clock(stream) for stream in self.tracks}
        self.ends = dict.fromkeys(self._clocks, 0.0)
        self.num_packets = 0
        self.num_bad_packets = 0
        self.broken_off: str | None = None

    def _find_tracks(self, want_audio: bool, want_video: bool, missing: str) -> None:
        found = {kind: self._best(kind) for kind in ("audio", "video")}
        self.tracks = [stream for stream in found.values() if stream is not None]
        wanted = [kind for kind, want in (("audio", want_audio), ("video", want_video)) if want]
        absent = [kind for kind in wanted if found[kind] is None]
        if absent and (missing == "error" or len(absent) == len(wanted)):
            has = " and ".join(stream.type for stream in self.tracks) or "neither audio nor video"
            remedy = (
                "it cannot be used"
                if not self.tracks
                else f"pass missing='mask' to go on without it, or give the {absent[0]} separately"
            )
            raise MissingTrackError(f"{self.name}: has no {absent[0]} track (it has {has}); {remedy}.", absent[0])
        self.audio: Any = found["audio"] if want_audio else None
        self.video: Any = found["video"] if want_video else None

    def _best(self, kind: str) -> Any:
        # Cover pictures of music files are video streams to FFmpeg, but no track. Streams without a decoder are none
        # either.
        for stream in (self.container.streams.best(kind), *getattr(self.container.streams, kind)):
            cover = stream is not None and av.stream.Disposition.attached_pic in stream.disposition
            if stream is not None and not cover and stream.codec_context is not None and stream.time_base is not None:
                return stream
        return None

    @property
    def declared_duration(self) -> float | None:
        """Seconds from the clock's zero to the end of the clip as the header has it, `None` when it does not say."""
        ends = [
            (stream.duration + (stream.start_time or 0)) * float(stream.time_base) - self.origin
            for stream in self.tracks
            if stream.duration
        ]
        if len(ends) == len(self.tracks) and ends:
            return max(ends)
        duration = self.container.duration
        return duration / 1e6 if duration is not None and duration > 0 else None

    @property
    def declares_exactly(self) -> bool:
        """Whether the header of this kind of container is written from the tracks themselves, not estimated."""
        name = self.container.format.name
        complete = all(stream.duration for stream in self.tracks)
        alone = len(self.tracks) == len(self.container.streams)
        return (name.startswith("mov") and complete) or (name.startswith("matroska") and alone)

    @property
    def measured_duration(self) -> float:
        """The longer of the ends of both tracks, as far as they were demuxed."""
        return max(self.ends.values(), default=0.0)

    @property
    def frame_rate(self) -> float | None:
        """Average frames per second of the video track as the file has it."""
        rate = None if self.video is None else self.video.average_rate or self.video.guessed_rate
        return float(rate) if rate else None

    def frame_time(self, frame: Any, stream: Any) -> float | None:
        """When a decoded frame is shown or heard, `None` when the file does not say."""
        clock = self._clocks[stream.index]
        return None if frame.pts is None else frame.pts * clock.numerator / clock.denominator - self.origin

    def seek(self, time: float) -> None:
        """Go to the last point from which everything shown at `time` can be decoded."""
        try:
            self.container.seek(max(0, math.floor((time + self.origin) * 1e6)))
        except (av.error.FFmpegError, OSError):
            self.container.seek(0)

    def packets(self) -> Iterator[tuple[Any, int, float | None, float | None]]:
        """Demux both tracks.

        Yields:
            `(packet, stream index, presentation time, decoding time)`; the last packet of each track is empty.
        """
        packets = self.container.demux(self.tracks)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.error.FFmpegError, OSError) as error:
                self.broken_off = str(error)
                return
            index, pts, dts = packet.stream_index, packet.pts, packet.dts
            clock = self._clocks[index]
            time = None if pts is None else pts * clock.numerator / clock.denominator - self.origin
            decode_time = None if dts is None else dts * clock.numerator / clock.denominator - self.origin
            if packet.size:
                self.num_packets += 1
                begin = decode_time if time is None else time
                if begin is not None and not packet.is_discard:
                    ticks = packet.duration
                    end = begin + (ticks * clock.numerator / clock.denominator if ticks else clock.frame_seconds)
                    if end > self.ends[index]:
                        self.ends[index] = end
            yield packet, index, time, decode_time

    def decode(self, packet: Any) -> list[Any]:
        """Decode a packet; damaged ones are counted and give nothing."""
        try:
            return packet.decode()
        except EOFError:
            return []
        except av.error.FFmpegError:
            self.num_bad_packets += 1
            return []

    def drain(self, stream: Any) -> list[Any]:
        """Take the frames that a decoder still holds."""
        try:
            return stream.decode(None)
        except (EOFError, av.error.FFmpegError):
            return []

    def close(self) -> None:
        """Close the container."""
        self.container.close()

    def __enter__(self) -> "MediaReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Clock:
    """The tick of a track as two whole numbers, and the length of a frame whose packet does not say it."""

    def __init__(self, stream: Any) -> None:
        self.numerator, self.denominator = stream.time_base.numerator, stream.time_base.denominator
        rate = (stream.average_rate or stream.guessed_rate) if stream.type == "video" else None
        self.frame_seconds = 1.0 / float(rate) if rate else 0.0


def codec_skips_exactly(stream: Any) -> bool:
    """Whether the decoder of a video stream can leave out frames without touching the others."""
    return stream is not None and stream.codec_context.name in _EXACT_SKIP_CODECS


__all__ = [
    "FramePicker",
    "IndexPicker",
    "MediaReader",
    "PacketAdvisor",
    "Pick",
    "TimeGrid",
    "WaveformBuilder",
    "codec_skips_exactly",
    "mono_samples",
    "resample_with_ffmpeg",
]
