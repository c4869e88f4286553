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
from .media_tracks_cavmae_sync import MediaReader, TimedPacket, Track

# Decoders in which skipping "non-reference" frames drops only frames that no other frame is built from.
_EXACT_SKIP_CODECS = frozenset({"h264", "vp9"})
_MAX_LOOKAHEAD = 64
# So many frames must have come at the times of their packets before any packet is left undecoded.
_PROBATION_FRAMES = 2


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
        place: Which of the frames of its moment it is, counted from 0.
    """

    asked: int
    time: float
    until: float
    frame: Any
    place: int = 0


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


class MomentPicker(FramePicker):
    """Picks, for each wanted time, several frames around it.

    Args:
        grid: The wanted times.
        shifts: From each of them to those of its frames, seconds, ascending.
        start: Where the span starts, before which nothing is looked for.
        end: Likewise, where it ends.
    """

    def __init__(self, grid: TimeGrid, shifts: Sequence[float], start: float, end: float) -> None:
        super().__init__(grid)
        self.pickers = [FramePicker(_ShiftedGrid(grid, shift, start, end) if shift else grid) for shift in shifts]

    def push(self, time: float, frame: Any) -> Iterator[Pick]:
        """Take the next frame; yield what it settles."""
        for place, picker in enumerate(self.pickers):
            for pick in picker.push(time, frame):
                yield pick._replace(place=place)
        self.last = self.pickers[0].last

    @property
    def done(self) -> bool:
        """Whether everything asked is answered."""
        return all(picker.done for picker in self.pickers)

    def asks(self, begin: float, end: float) -> bool:
        """Whether a frame on screen from `begin` to `end` is wanted."""
        return any(picker.asks(begin, end) for picker in self.pickers)

    def flush(self, end: float = math.inf) -> Iterator[Pick]:
        """No more frames: the last one answers what is left of the moments before `end`."""
        for place, picker in enumerate(self.pickers):
            while self.last is not None and picker.next < self.grid.count and self.grid.time(picker.next) < end:
                picker.next += 1
                yield Pick(picker.next - 1, self.last[0], end, self.last[1], place)


class _ShiftedGrid(TimeGrid):
    """The times of another grid, all later (or earlier) by as much, those outside of a span moved to its border."""

    def __init__(self, grid: TimeGrid, shift: float, start: float, end: float) -> None:
        super().__init__()
        self.grid, self.shift, self.first, self.final = grid, shift, start, end - 2 * TIME_TOLERANCE
        self.count = grid.count

    def time(self, index: int) -> float:
        """The wanted time number `index`."""
        return max(self.first, min(self.grid.time(index) + self.shift, self.final))

    def count_before(self, time: float) -> int:
        """How many wanted times lie before `time`."""
        limit = time - TIME_TOLERANCE
        if limit <= self.first:
            return 0
        return int(self.grid.count) if limit > self.final else self.grid.count_before(time - self.shift)


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


class FrameClock:
    """Says when each frame is shown that a decoder gives; they come in the order in which they are shown.

    A frame has the presentation time of its packet. Where there is none, or where presentation times have gone
    backwards more often than decoding times have, it has the decoding time of the packet that brought it out of the
    decoder: AVI has no others. A frame without either follows the one before it by that one's length; so do all
    frames of a bare stream, which has no clock. FFmpeg's command line shows frames at these times.

    Args:
        reader: The open file.
        track: Its video track.
    """

    def __init__(self, reader: MediaReader, track: Track) -> None:
        self.reader, self.track = reader, track
        self._shown = self._decoded = -math.inf  # the last presentation and decoding time
        self._shown_faults = self._decoded_faults = 0  # how often each went backwards or stood still
        self._time: float | None = None  # of the last frame
        self._ticks = 0  # its length

    @property
    def end(self) -> float | None:
        """When the last frame ends, seconds, `None` before the first."""
        return None if self._time is None else self._time + self.track.seconds(self._ticks)

    def __call__(self, frame: Any) -> float | None:
        """The time of the next frame, seconds; `None` where nothing says it, right behind a seek."""
        shown = decoded = None
        if not self.track.is_bare:
            shown, decoded = self.track.time(frame.pts), self.track.time(frame.dts)
        time = shown
        if shown is not None:
            self._shown_faults += shown <= self._shown
            self._shown = shown
        elif decoded is not None:
            time = self._shown = decoded
        if decoded is not None:
            self._decoded_faults += decoded <= self._decoded
            self._decoded = decoded
            if self._shown_faults > self._decoded_faults:
                time = decoded
        elif shown is not None:
            self._decoded = shown
        if time is None:
            time = self.end
        if time is None and (self.track.is_bare or self.reader.sought is None):
            time = 0.0
        if time is not None:
            self._time, self._ticks = time, frame.duration
        return time


class PacketAdvisor:
    """Tells, before decoding, which packets hold a frame that somebody asks for.

    Packets come in decoding order; one whose frame nobody asks for need not be decoded when nothing else is built from
    it. A packet is judged once the presentation time that follows its own is certain, which is when a decoding time
    reaches it (no later packet can be presented before it is decoded).

    It goes by the times of packets, and frames must be found to come at these before it is believed: where one packet
    holds one field of a frame, or nothing that is shown, or where the container has decoding times only, they do not.

    Args:
        asks: `asks(begin, end, number)` says whether the frame that is on screen from `begin` to `end`, the one with
            this number in presentation order, is wanted.
        keep_times: Keep the times of all packets in `times` (ascending), not only those that are still needed.
    """

    def __init__(self, asks: Callable[[float, float, int], bool], keep_times: bool = True) -> None:
        self.asks = asks
        self.keep_times = keep_times
        self.times: list[float] = []
        self.is_right = True  # whether frames came at the times of their packets so far
        self._pending: deque[tuple[float, TimedPacket]] = deque()
        self._due: list[float] = []  # times of packets that were decoded and gave no frame yet
        self._num_met = 0

    def push(self, time: float, packet: TimedPacket) -> Iterator[tuple[TimedPacket, bool]]:
        """Take the packet presented at `time`; yield `(packet, wanted)` for those that can be judged, in order."""
        place = bisect.bisect_left(self.times, time)
        self.is_right &= place == len(self.times) or self.times[place] != time
        self.times.insert(place, time)
        self._pending.append((time, packet))
        reached = -math.inf if packet.decode_time is None else packet.decode_time + TIME_TOLERANCE
        while self._pending:
            head, item = self._pending[0]
            following = bisect.bisect_right(self.times, head)
            certain = following < len(self.times) and self.times[following] <= reached
            if not certain and len(self._pending) <= _MAX_LOOKAHEAD:
                break
            self._pending.popleft()
            wanted = not certain or self.asks(head, self.times[following], following - 1)
            if wanted or self._num_met < _PROBATION_FRAMES:  # the first one also answers the times before it
                bisect.insort(self._due, head)
                wanted = True
            yield item, wanted
        if not self.keep_times:
            earliest = min((entry[0] for entry in self._pending), default=time)
            del self.times[: bisect.bisect_left(self.times, earliest)]

    def meet(self, time: float, frame: Any) -> None:
        """Compare with the packets a frame that the decoder gives, in the order in which they are shown."""
        # The next frame may come in two packets; and what stands for lost frames depends on those that were decoded.
        if frame.interlaced_frame or frame.is_corrupt:
            self.is_right = False
        if not self._due:
            return
        passed = bisect.bisect_left(self._due, time - TIME_TOLERANCE)
        # Decoders leave out what is shown before the first key frame and needs frames before that.
        self.is_right &= not passed or not self._num_met
        is_met = passed < len(self._due) and self._due[passed] <= time + TIME_TOLERANCE
        del self._due[: passed + is_met]
        self._num_met += is_met

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
        is_sure: Whether it was right to leave them undecoded, and to count packets for frames.
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
        self._clock = FrameClock(reader, self.track)
        self.advisor = None
        if skip and self._codec.name in _EXACT_SKIP_CODECS and not self.track.is_bare:
            self.advisor = PacketAdvisor(self._asks, keep_times)
        self.skipped = False
        self.is_sure = True
        self.num_frames = 0
        self.packet_times: list[float] = []
        self._done = False
        self._skipping = False
        self._until: dict[float, float] = {}  # frame time: time of the frame that follows, for wanted frames

    def push(self, packet: TimedPacket) -> Iterator[Pick]:
        """Take the next packet in decoding order; yield the frames that it settles."""
        if packet.data is None:
            yield from self._drain()
            if self.track.is_bare and not self._done:
                self.track.end = self._clock.end or 0.0  # packets that hold a field each were counted as frames
            self._done = True
        elif self._done:
            if packet.time is not None and not packet.data.is_discard:
                bisect.insort(self.packet_times, packet.time)
        elif self.advisor is None:
            yield from self._decode(packet, True)
        elif packet.data.is_discard:
            # Frames that an edit list drops are decoded, for others are built from them, but have no number.
            yield from self._decode_pending()
            yield from self._decode(packet, True)
        elif packet.time is None:
            yield from self._give_up_skipping()
            yield from self._decode(packet, True)
        else:
            for item, wanted in self.advisor.push(packet.time, packet):
                yield from self._decode(item, wanted)
            if not self.advisor.is_right:
                yield from self._give_up_skipping()

    def finish(self, end: float = math.inf) -> Iterator[Pick]:
        """No more packets: yield what the decoder holds and what the last frame answers before `end`."""
        yield from self._drain()
        if self.advisor is not None and not self.advisor.is_right:
            yield from self._give_up_skipping()
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
        yield from self._decode_pending()
        if not self._done:
            yield from self._take(self.reader.decode(TimedPacket(self.track)))

    def _decode_pending(self) -> Iterator[Pick]:
        for item, wanted in self.advisor.flush() if self.advisor is not None else ():
            yield from self._decode(item, wanted)

    def _give_up_skipping(self) -> Iterator[Pick]:
        """The times of packets are not those of frames: from here on, decode all and go by the frames alone."""
        yield from self._decode_pending()
        # The numbers of frames were told by packets, too; the first frame has the first number all the same.
        self.is_sure = not self.skipped and (isinstance(self.picker, FramePicker) or self.num_frames <= 1)
        self.advisor = None

    def _decode(self, packet: TimedPacket, wanted: bool) -> Iterator[Pick]:
        if self._done:
            return
        if self._skipping == wanted:
            self._skipping = not wanted
            self._codec.skip_frame = "NONREF" if self._skipping else "DEFAULT"
            self.skipped |= self._skipping
        num_bad = self.reader.num_bad_packets
        frames = self.reader.decode(packet)
        if self.advisor is not None:
            self.advisor.is_right &= num_bad == self.reader.num_bad_packets
        yield from self._take(frames)

    def _take(self, frames: list[Any]) -> Iterator[Pick]:
        for frame in frames:
            time = self._clock(frame)
            if time is None:
                # Sought to where no packet says its time: too late, whatever it is.
                self.track.first_time = math.inf
                continue
            if self.track.first_time is None:
                self.track.first_time = time
            if self.advisor is not None:
                self.advisor.meet(time, frame)
            if isinstance(self.picker, FramePicker):
                yield from map(self._with_next, self.picker.push(time, frame))
            elif self.start - TIME_TOLERANCE <= time < self.end - TIME_TOLERANCE:
                yield from self.picker.push(time, frame, self._number(time))
        # Without packet times the frames themselves are counted, all of them, for the reference alignment.
        counted = isinstance(self.picker, FramePicker) or self.advisor is not None
        self._done = counted and self.picker.done

    def _number(self, time: float) -> int:
        self.num_frames += 1
        if self.advisor is not None:
            return self.advisor.count_before(time) - self.advisor.count_before(self.start)
        return self.num_frames - 1

    def _with_next(self, pick: Pick) -> Pick:
        """Correct when the next frame follows: the packets know it even where it was not decoded."""
        until = self._until.get(pick.time, pick.until)
        for earlier in [time for time in self._until if time < pick.time]:
            del self._until[earlier]
        return pick._replace(until=until)
