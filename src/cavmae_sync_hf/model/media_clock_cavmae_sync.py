# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Packets of a file whose clock jumps, starts anew or is damaged are put on one clock that runs on.

What plays counts, in the order of the file. In containers whose clocks may be discontinuous (transport and program
streams, Ogg) a decoding time that lies more than ten seconds ahead of what was expected, or behind what was there
before, begins a new section of the file, which is moved so that it goes on where the last one ended: FFmpeg's command
line follows the same rule (`ts_discontinuity_detect`). A section belongs to all tracks, and each track enters it with
the first of its packets that lies in it, so that tracks that stood together stay together, whichever came first.

In all other containers a clock counts as right, pauses of hours included, until a packet lies far ahead of its track
and beyond what the header allows, or by more than anybody would wait: its time is not believed, and the file counts as
damaged.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

# A decoding time that is farther ahead than this is a jump (`-dts_delta_threshold` of FFmpeg's command line).
JUMP_SECONDS = 10.0
# Decoding times may go back by so much, as FFmpeg's command line has it.
BACKWARD_SECONDS = 0.1
# Where the header does not say how long a file is, no pause is longer than this; nor do clocks of tracks differ by it.
LONGEST_PAUSE_SECONDS = 3600.0
# Nobody waits longer for the next frame or sound, whatever the header says; times of damaged files may.
LONGEST_WAIT_SECONDS = 6 * 3600.0
# A packet that is later than expected by more is looked at closely.
_LATE_SECONDS = 0.5
# A packet that comes so near to what was expected continues a section.
_CONTINUES_SECONDS = 0.25
# Packets of tracks lie so near to each other in a file as it is usually written.
_BESIDE_SECONDS = 1.0
# Damage can make many sections; only the latest can still go on.
_MAX_SECTIONS = 64


class _Ticking(Protocol):
    """A track, as far as clocks need it."""

    def seconds(self, ticks: int | None) -> float: ...


AnyTrack = TypeVar("AnyTrack", bound=_Ticking)


class _Section:
    """A part of a file whose clock runs on.

    Attributes:
        offset: What is added to its clock, seconds.
        low: The earliest time on its own clock, seconds.
        high: The latest.
    """

    __slots__ = ("high", "low", "offset")

    def __init__(self, offset: float, time: float) -> None:
        self.offset, self.low, self.high = offset, time, time


class _Pace:
    """Where one track is.

    Attributes:
        section: The section that it is in, `None` before its first packet.
        last: Its last decoding time on the clock of that section, seconds.
        next: The decoding time that is expected next.
        seconds: How long a packet lasts, by its ticks.
        delay: From decoding to presentation of its last packet, ticks.
    """

    __slots__ = (
        *("delay", "last", "next", "seconds", "section", "ticks_per_second"),
        *("_ahead", "_behind", "_duration", "_earliest", "_latest", "_longest_delay", "_step"),
    )

    def __init__(self, ticks_per_second: float, seconds: Callable[[int | None], float]) -> None:
        self.ticks_per_second, self.seconds = ticks_per_second, seconds
        self.section: _Section | None = None
        self.last = self.next = 0.0
        self.delay: int | None = None
        self._duration: int | None = -1  # of the last packet, ticks
        self._step = self._ahead = 0.0
        self._behind, self._longest_delay = BACKWARD_SECONDS * ticks_per_second, JUMP_SECONDS * ticks_per_second
        self._earliest, self._latest = math.inf, -math.inf  # what needs no closer look, ticks

    def run_on(self, packet: Any) -> float | None:
        """Take the next packet if it runs on, as most do; gives its decoding time in seconds, otherwise `None`."""
        ticks = packet.dts
        if ticks is None or not self._earliest < ticks < self._latest:
            return None
        shown = packet.pts
        if shown is not None:
            if not -self._behind < shown - ticks < self._longest_delay:
                return None
            self.delay = shown - ticks
        return self.go_on(ticks, packet)

    def is_before(self, packet: Any) -> bool:
        """Whether a packet comes much later than it was expected."""
        if self.section is None or packet.dts is None:
            return False
        return packet.dts / self.ticks_per_second - self.next > _LATE_SECONDS

    def go_on(self, ticks: int, packet: Any) -> float:
        """Take the decoding time of the last packet; gives it in seconds."""
        duration = packet.duration
        if duration != self._duration:
            if self.seconds(duration) > LONGEST_WAIT_SECONDS:  # as long as the one before
                packet.duration = duration = max(0, self._duration or 0)
            self._duration, self._step = duration, self.seconds(duration)
            self._ahead = (self._step + _LATE_SECONDS) * self.ticks_per_second
        self.last = time = ticks / self.ticks_per_second
        self.next = time + self._step
        self._earliest, self._latest = ticks - self._behind, ticks + self._ahead
        return time


class Clock:
    """The clock of one pass over the packets of a file.

    Args:
        may_restart: Whether the container's clock may be discontinuous.
        origin: The file's zero on its own clock, seconds.
        end: Where the header says that the file ends, on the same clock; infinite where it does not say.
        is_start: Whether the pass begins where the file does.

    Attributes:
        wild: Where the clock could not be believed: the time there and the one that the file has, seconds from the
            origin; `None` where it could.
    """

    def __init__(
        self, *, may_restart: bool, origin: float = 0.0, end: float = math.inf, is_start: bool = True
    ) -> None:
        self.may_restart, self.origin, self.end, self.is_start = may_restart, origin, end, is_start
        self.wild: tuple[float, float] | None = None
        self._sections: list[_Section] = []
        self._paces: dict[_Ticking, _Pace] = {}
        self._reached = origin  # time of the last packet of any track, straightened

    @property
    def is_straight(self) -> bool:
        """Whether all packets so far lay on one clock."""
        return len(self._sections) < 2 and all(section.offset == 0 for section in self._sections)

    def straightened(self, packets: Iterable[tuple[AnyTrack, Any]]) -> Iterator[tuple[AnyTrack, Any]]:
        """Move the times of PyAV's packets, in place, to the clock that runs on.

        A packet that comes late waits for the next one of its track, which tells whether its time can be right.

        Args:
            packets: Tracks and packets in the order of the file.

        Yields:
            The same.
        """
        waiting: dict[AnyTrack, Any] = {}
        for track, packet in packets:
            pace = self._paces.get(track)
            if pace is None:
                pace = self._paces[track] = _Pace(float(1 / packet.time_base), track.seconds)
            if waiting:
                late = waiting.pop(track, None)
                if late is not None:
                    self._compare(pace, late, packet)
                    self._straighten(pace, late)
                    yield track, late
            time = pace.run_on(packet)
            if time is not None:
                section = pace.section
                assert section is not None
                if time > section.high:
                    section.high = time
                self._reached = time + section.offset
                if section.offset:
                    self._move(pace, section, packet)
                yield track, packet
            elif pace.is_before(packet):
                waiting[track] = packet
            else:
                self._straighten(pace, packet)
                yield track, packet
        for track, packet in waiting.items():
            self._straighten(self._paces[track], packet)
            yield track, packet

    def _compare(self, pace: _Pace, late: Any, following: Any) -> None:
        """Correct a late packet, in place, where the next one goes on as if the clock had not moved."""
        if following.dts is None or following.dts >= late.dts:
            return
        wait = following.dts / pace.ticks_per_second - pace.next - pace.seconds(late.duration)
        if abs(wait) < _CONTINUES_SECONDS:
            move = round(pace.next * pace.ticks_per_second) - late.dts
            late.dts += move
            if late.pts is not None:
                late.pts += move

    def _straighten(self, pace: _Pace, packet: Any) -> None:
        ticks, shown = packet.dts, packet.pts
        if ticks is None and not self.may_restart:
            ticks = shown  # only looked at for whether it is too late, so that the order of frames does not matter
        if ticks is not None:
            self._follow(pace, ticks, packet)
            if shown is not None:
                self._check_order(pace, packet, shown - ticks)
        if pace.section is not None and pace.section.offset:
            self._move(pace, pace.section, packet)

    @staticmethod
    def _move(pace: _Pace, section: _Section, packet: Any) -> None:
        shift = round(section.offset * pace.ticks_per_second)
        if packet.dts is not None:
            packet.dts += shift
        if packet.pts is not None:
            packet.pts += shift

    def _check_order(self, pace: _Pace, packet: Any, delay: int) -> None:
        """Correct a presentation time, in place, that cannot belong to the decoding time.

        FFmpeg makes up the decoding times of some containers from presentation times before them; where the clock
        jumps, a frame has one from before and one from behind it.
        """
        seconds = delay / pace.ticks_per_second
        if self.may_restart:
            is_wrong = not -BACKWARD_SECONDS < seconds < JUMP_SECONDS
        else:
            is_beyond = packet.pts / pace.ticks_per_second > self.end + JUMP_SECONDS
            is_wrong = abs(seconds) > (JUMP_SECONDS if is_beyond else LONGEST_PAUSE_SECONDS)
        if is_wrong:
            packet.pts = None if pace.delay is None else packet.dts + pace.delay
        else:
            pace.delay = delay

    def _follow(self, pace: _Pace, ticks: int, packet: Any) -> None:
        """Find the section of a packet and go there with its track."""
        section, time = pace.section, ticks / pace.ticks_per_second
        if section is None:
            section = pace.section = self._first_section(time)
            pace.last = pace.next = time
        elif time - pace.next > _LATE_SECONDS or time - pace.last < -BACKWARD_SECONDS:
            section = self._section_of(pace, section, time)
            if section is not pace.section:
                pace.section, pace.last, pace.next = section, time, time
        if time > section.high:
            section.high = time
        elif time < section.low:
            section.low = time
        if self.may_restart or time >= pace.last:
            pace.go_on(ticks, packet)
        self._reached = time + section.offset

    def _first_section(self, time: float) -> _Section:
        """The section in which a track begins."""
        ahead = time - self.origin
        if not self.may_restart and self.is_start and ahead > LONGEST_WAIT_SECONDS:
            self.wild = self.wild or (0.0, ahead)
            return self._open(-ahead, time)
        if not self._sections:
            return self._open(-ahead if self.may_restart and ahead > LONGEST_PAUSE_SECONDS else 0.0, time)
        newest = self._sections[-1]
        if abs(time - newest.high) <= _BESIDE_SECONDS:
            return newest
        for section in self._sections:  # tracks may stand one behind the other: the others may be far ahead
            if section.low - LONGEST_PAUSE_SECONDS <= time <= section.high + LONGEST_PAUSE_SECONDS:
                return section
        return self._open(self._reached - time, time) if self.may_restart else self._open(0.0, time)

    def _section_of(self, pace: _Pace, own: _Section, time: float) -> _Section:
        """The section of a packet that is late or lies behind the last one of its track.

        Args:
            pace: Where the track is.
            own: The section it is in.
            time: When the packet is decoded, by its own clock.
        """
        ahead = time - pace.next
        last, expected = pace.last + own.offset, pace.next + own.offset
        others = [section for section in self._sections if section is not own]

        def late(section: _Section) -> float:
            return time + section.offset - expected

        nearest = min(others, key=lambda section: abs(late(section)), default=own)
        if abs(late(nearest)) < min(_CONTINUES_SECONDS, abs(ahead)):
            return nearest
        if own.offset and not self.may_restart:
            is_jump = time < pace.last - BACKWARD_SECONDS or ahead > JUMP_SECONDS  # it was wild anyhow
        elif self.may_restart:
            # A pause of one track alone is no jump: the others have come that far meanwhile.
            is_jump = time < pace.last - BACKWARD_SECONDS or time - max(pace.next, own.high) > JUMP_SECONDS
        elif self.end < math.inf:
            is_jump = ahead > LONGEST_WAIT_SECONDS or (ahead > JUMP_SECONDS and time > self.end + JUMP_SECONDS)
        else:
            is_jump = ahead > LONGEST_PAUSE_SECONDS
        if not is_jump:
            return own
        newer = [
            section
            for section in self._sections[self._sections.index(own) + 1 :]
            if section.low - JUMP_SECONDS <= time <= section.high + JUMP_SECONDS
        ]
        if newer and self.may_restart:
            section = newer[-1] if abs(time - newer[-1].high) <= _BESIDE_SECONDS else newer[0]
            if time + section.offset < last - BACKWARD_SECONDS:
                section.offset = expected - time  # this track went on for longer; all of the section waits for it
            return section
        fitting = [
            section
            for section in others
            if last - BACKWARD_SECONDS <= time + section.offset <= expected + JUMP_SECONDS
        ]
        if fitting:
            return min(fitting, key=late)
        if not self.may_restart and self.wild is None:
            self.wild = expected - self.origin, time - self.origin
        return self._open(expected - time, time)

    def _open(self, offset: float, time: float) -> _Section:
        in_use = {pace.section for pace in self._paces.values()}
        while len(self._sections) >= _MAX_SECTIONS:
            self._sections.remove(next(section for section in self._sections if section not in in_use))
        self._sections.append(_Section(offset, time))
        return self._sections[-1]


__all__ = ["BACKWARD_SECONDS", "JUMP_SECONDS", "LONGEST_PAUSE_SECONDS", "Clock"]
