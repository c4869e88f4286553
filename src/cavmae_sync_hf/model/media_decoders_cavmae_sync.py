# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The video decoder: packets of an open file in, the wanted frames out.

`VideoDecoder` picks the frame on screen at each wanted time and decodes no more than it must.
"""

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .alignment_cavmae_sync import TIME_TOLERANCE
from .media_tracks_cavmae_sync import DEFAULT_FRAME_RATE, MediaReader, TimedPacket

# Decoders in which skipping "non-reference" frames drops only frames that no other frame is built from.
_EXACT_SKIP_CODECS = frozenset({"h264", "vp9"})
_MAX_LOOKAHEAD = 64


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
