# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Decoders: packets of an open file in, the wanted frames and a waveform out.

`VideoDecoder` picks the frame on screen at each wanted time and decodes no more than it must; `FrameConverter` makes
upright RGB images of frames; `WaveformBuilder` lays the audio on the file's clock, one channel, resampled.
"""

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .alignment_cavmae_sync import TIME_TOLERANCE
from .errors_cavmae_sync import MediaError
from .media_tracks_cavmae_sync import DEFAULT_FRAME_RATE, MediaReader, TimedPacket

try:
    import av
    import av.audio.resampler
except ImportError:
    av = None  # type: ignore[assignment]

# Containers with millisecond clocks (Matroska, FLV) jitter by 1 ms; a larger gap in the audio is a real one.
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
        self._pending: deque[tuple[float, TimedPacket]] = deque()
        self._first = True

    def push(self, time: float, packet: TimedPacket) -> Iterator[tuple[TimedPacket, bool]]:
        """Take the packet presented at `time`; yield `(packet, wanted)` for those that can be judged, in order."""
        bisect.insort(self.times, time)
        self._pending.append((time, packet))
        reached = -math.inf if packet.decode_time is None else packet.decode_time + TIME_TOLERANCE
        while self._pending:
            head, item = self._pending[0]
            following = bisect.bisect_right(self.times, head)
            certain = following < len(self.times) and self.times[following] <= reached
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

    def flush(self) -> Iterator[tuple[TimedPacket, bool]]:
        """Give up looking ahead: everything left counts as wanted."""
        while self._pending:
            yield self._pending.popleft()[1], True

    def count_before(self, time: float) -> int:
        """How many of the packets seen so far are presented before `time`."""
        return bisect.bisect_left(self.times, time - TIME_TOLERANCE)


class VideoDecoder:
    """Packets of the video track in, picked frames out.

    Args:
        reader: The open file.
        picker: What is asked for.
        start: Start of the span on the file's clock, seconds.
        end: End of the span.
        skip: Whether frames that nobody asks for may be left undecoded.
        keep_times: Keep the times of all packets, which `packet_times` and `num_frames` are made of. Without it memory
            stays constant.

    Attributes:
        skipped: Whether frames were left undecoded.
        num_frames: Frames of the span; complete after `finish`.
        packet_times: Presentation times of the packets, ascending; complete after `finish`.
    """

    def __init__(
        self,
        reader: MediaReader,
        picker: FramePicker | IndexPicker,
        *,
        start: float = 0.0,
        end: float = math.inf,
        skip: bool = True,
        keep_times: bool = True,
    ) -> None:
        assert reader.video is not None
        self.reader, self.track, self.picker, self.start, self.end = reader, reader.video, picker, start, end
        self._codec = self.track.stream.codec_context
        self.advisor = None
        if skip and self._codec.name in _EXACT_SKIP_CODECS:
            self.advisor = PacketAdvisor(self._asks, keep_times)
        self.skipped = False
        self.num_frames = 0
        self.packet_times: list[float] = []
        self._done = False
        self._skipping = False
        self._previous = 0.0
        self._until: dict[float, float] = {}  # frame time: time of the frame that follows, for wanted frames

    def push(self, packet: TimedPacket) -> Iterator[Pick]:
        """Take the next packet in decoding order; yield the frames that it settles."""
        if packet.data is None:
            yield from self._drain()
            self._done = True
        elif self._done:
            if packet.time is not None and not packet.data.is_discard:
                bisect.insort(self.packet_times, packet.time)
        elif self.advisor is None:
            yield from self._take(self.reader.decode(packet))
        elif packet.data.is_discard or packet.time is None:
            # Frames that an edit list drops are decoded, for others are built from them, but have no number.
            for item, _ in self.advisor.flush():
                yield from self._decode(item, True)
            yield from self._decode(packet, True)
        else:
            for item, wanted in self.advisor.push(packet.time, packet):
                yield from self._decode(item, wanted)

    def finish(self, end: float = math.inf) -> Iterator[Pick]:
        """No more packets: yield what the decoder holds and what the last frame answers before `end`."""
        yield from self._drain()
        yield from self.settle(end)
        if self.advisor is not None:
            self.packet_times = sorted(self.packet_times + self.advisor.times)
            first, last = (bisect.bisect_left(self.packet_times, at - TIME_TOLERANCE) for at in (self.start, self.end))
            self.num_frames = last - first

    def settle(self, end: float) -> Iterator[Pick]:
        """Let the last frame answer what is asked before `end`."""
        yield from map(self._with_next, self.picker.flush(end))

    def _asks(self, begin: float, end: float, number: int) -> bool:
        if isinstance(self.picker, FramePicker):
            wanted = self.picker.asks(begin, end)
            if wanted:
                self._until[begin] = end
            return wanted
        assert self.advisor is not None
        return number - self.advisor.count_before(self.start) in self.picker.indices

    def _drain(self) -> Iterator[Pick]:
        for item, wanted in self.advisor.flush() if self.advisor is not None else ():
            yield from self._decode(item, wanted)
        if not self._done:
            yield from self._take(self.reader.decode(TimedPacket(self.track)))

    def _decode(self, packet: TimedPacket, wanted: bool) -> Iterator[Pick]:
        if self._done:
            return
        if self._skipping == wanted:
            self._skipping = not wanted
            self._codec.skip_frame = "NONREF" if self._skipping else "DEFAULT"
            self.skipped |= self._skipping
        yield from self._take(self.reader.decode(packet))

    def _take(self, frames: list[Any]) -> Iterator[Pick]:
        for frame in frames:
            time = self.track.time(frame.pts)
            if time is None:  # some AVI files have no presentation times
                step = 1.0 / (self.track.frame_rate or DEFAULT_FRAME_RATE)
                time = 0.0 if self.track.first_time is None else self._previous + step
            self._previous = time
            if self.track.first_time is None:
                self.track.first_time = time
            if isinstance(self.picker, FramePicker):
                yield from map(self._with_next, self.picker.push(time, frame))
            elif self.start - TIME_TOLERANCE <= time < self.end - TIME_TOLERANCE:
                yield from self.picker.push(time, frame, self._number(time))
        # Without packet times the frames themselves are counted, all of them, for the reference alignment.
        counted = isinstance(self.picker, FramePicker) or self.advisor is not None
        self._done = counted and self.picker.done

    def _number(self, time: float) -> int:
        if self.advisor is not None:
            return self.advisor.count_before(time) - self.advisor.count_before(self.start)
        self.num_frames += 1
        return self.num_frames - 1

    def _with_next(self, pick: Pick) -> Pick:
        """Correct when the next frame follows: the packets know it even where it was not decoded."""
        until = self._until.get(pick.time, pick.until)
        for earlier in [time for time in self._until if time < pick.time]:
            del self._until[earlier]
        return pick._replace(until=until)


class FrameConverter:
    """Turns decoded frames into upright RGB images of one size.

    Args:
        name: Name of the file, for messages.
        short_side: Scale the shorter side to this many pixels (bicubic) while converting; `None` keeps the size.
    """

    def __init__(self, name: str, short_side: int | None = None) -> None:
        self.name = name
        self.short_side = short_side
        self.size: tuple[int, int] | None = None  # (height, width) before rotation

    def __call__(self, frame: Any) -> np.ndarray:
        """Convert one frame.

        Returns:
            uint8 `(height, width, 3)`, rotated as the file says it is shown; a view of FFmpeg's memory, to be copied.
        """
        if self.size is None:
            scale = 1.0 if self.short_side is None else self.short_side / min(frame.height, frame.width)
            self.size = max(1, round(frame.height * scale)), max(1, round(frame.width * scale))
        height, width = self.size
        scaled = {"interpolation": "BICUBIC"} if (height, width) != (frame.height, frame.width) else {}
        try:
            # One thread: converters that have threads, when freed in a forked process, wait for them for ever.
            image = frame.reformat(width=width, height=height, format="rgb24", threads=1, **scaled)
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(
                f"{self.name}: frames of format {frame.format.name} cannot be turned into RGB ({error}); "
                "convert the file with ffmpeg -pix_fmt yuv420p."
            ) from error
        plane = image.planes[0]
        pixels = np.ndarray((height, width, 3), np.uint8, buffer=plane, strides=(plane.line_size, 3, 1))
        a, b, c, d = _display_matrix(frame)
        if a == 0:  # x and y change places
            pixels, flip_x, flip_y = pixels.swapaxes(0, 1), c < 0, b < 0
        else:
            flip_x, flip_y = a < 0, d < 0
        return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """The 2 x 2 part `(a, b, c, d)` of a frame's display matrix, entries -1, 0 or 1; the identity when it has none.

    A stored point `(x, y)` is shown at `(a x + c y, b x + d y)`, x to the right and y down (ISO/IEC 14496-12, tkhd).
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    entries = np.frombuffer(bytes(data), dtype=np.int32)[[0, 1, 3, 4]]
    scale = np.abs(entries).max()
    if not scale:
        return 1, 0, 0, 1
    # Angles in between are rounded to the nearest quarter turn: a slanted image has no rectangular frame.
    a, b, c, d = (entries / scale).round().astype(int).tolist()
    return (a, b, c, d) if abs(a * d - b * c) == 1 and abs(a) + abs(b) == 1 else (1, 0, 0, 1)


class WaveformBuilder:
    """Lays decoded audio on the file's clock: one channel, one rate, gaps filled with silence.

    Args:
        rate: Sampling rate of the result, Hz.
        channel: `"first"` (channel 0, front left in surround sound) or `"mean"` of all channels, chosen before
            resampling.
        begin: Time in seconds at which sample 0 of the result lies; earlier audio is dropped.
        end: Time in seconds after which audio is not needed.
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
        pieces = self._resample_block() + self._finished(self._resampler.flush())
        self._resampler, self.source_rate = None, 0
        return pieces

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
        return self._finished(self._resampler.push(block))

    def _finished(self, piece: np.ndarray) -> list[np.ndarray]:
        self.num_samples += len(piece)
        return [piece]


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


def checked_waveform(samples: np.ndarray, name: str) -> torch.Tensor:
    """Decoded samples as a tensor in [-1, 1]; `MediaError` when they are no numbers."""
    if not np.isfinite(samples).all():
        raise MediaError(f"{name}: the audio holds values that are not numbers (NaN or infinite); encode it again.")
    # Lossy decoders overshoot full scale slightly; the published 16-bit files are clipped there.
    return torch.from_numpy(samples.clip(-1.0, 1.0))
