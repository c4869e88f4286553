# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""One open file: its audio and video track, their packets on one clock, and whether it was whole.

Times are seconds from the start of the file: the earliest track starts at 0, and a track that starts later keeps its
distance.
"""

import contextlib
import errno
import functools
import gc
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .alignment_cavmae_sync import TIME_TOLERANCE
from .errors_cavmae_sync import Hint, MediaError, MissingTrackError
from .media_clock_cavmae_sync import LONGEST_WAIT_SECONDS, Clock
from .media_request_cavmae_sync import MediaRequest
from .media_selection_cavmae_sync import is_described, list_audio_tracks, select_streams
from .media_source_cavmae_sync import MAX_FRAME_PIXELS, MediaSource

try:
    import av
    import av.format
except ImportError:
    av = None  # type: ignore[assignment]

# Tracks that lie further apart in a file than this are read by a demuxer each; waiting packets would fill the memory.
INTERLEAVE_SECONDS = 10.0
INTERLEAVE_BYTES = 1 << 26
# A file with an exact header that ends earlier than it says by more than this is truncated.
TRUNCATION_TOLERANCE = 0.25
# Share of packets that may fail to decode before a file counts as corrupt (cut recordings begin with a few), and share
# of a file that may be missing in its middle.
MAX_BAD_PACKET_SHARE = 0.02
# What lasts for hours has more than this: frames that do not change take ten bytes each.
LEAST_BYTES_PER_SECOND = 1.0
# Where all tracks of a video are silent for longer, something is missing.
HOLE_SECONDS = 0.25
# Video of fewer frames per second consists of pauses.
_STEADY_FRAME_RATE = 5.0
# No audio has more samples a second than the fastest kind of DSD; a resampler for any rate would take any memory.
MAX_AUDIO_RATE = 1 << 22
# For files that do not say their frame rate.
DEFAULT_FRAME_RATE = 25.0
# No encoder is so late; a track that starts further below zero has a clock that does.
MAX_ENCODER_DELAY = 1.0
# Video starts with one frame, or with a few that come before it on screen.
_SAME_START_SECONDS = 0.5
# FFmpeg's mark for containers whose clocks may jump or start anew (AVFMT_TS_DISCONT).
_MAY_RESTART = 0x0200
# Containers whose headers are written from the tracks themselves.
_EXACT_CONTAINERS = frozenset({"mov", "matroska", "avi", "flv", "ogg", "flac", "mp3"})
# Containers whose headers say nothing of the length; FFmpeg takes it for size divided by bit rate.
_ESTIMATED_CONTAINERS = frozenset({"mp3", "aac", "ac3", "eac3", "dts", "amr"})


class Track:
    """The audio or the video track of an open file.

    Args:
        stream: PyAV's stream.
        origin: The file's zero on the stream's own clock, seconds.
        is_wanted: Whether it is decoded, or only measured.

    Attributes:
        kind: `"audio"` or `"video"`.
        is_bare: Whether it is video that lies in the file without a container, which would have a clock.
        is_reordered: Whether frames are shown in another order than they are decoded in.
        frame_rate: Frames per second, `None` where the file does not say.
        pixel_aspect: Width of a pixel by its height.
        start: When it starts, as the header has it, seconds.
        declared_end: When it ends, as the header has it, infinite where that does not say.
        end: When the latest of its packets ends, seconds.
        first_time: Time of the first frame that was decoded, `None` before.
        is_over: Whether it has ended, or the end of the span was passed.
        has_ended: Whether it has ended.
        num_demuxed: Packets that were read of it.
        gaps: From when to when it had no packets though it went on, seconds, in decoding order.
    """

    def __init__(self, stream: Any, origin: float, is_wanted: bool) -> None:
        self.stream, self.origin, self.is_wanted = stream, origin, is_wanted
        self.kind: str = stream.type
        # PyAV makes a new Fraction at each look at a time base, which would cost as much as demuxing.
        self._numerator, self._denominator = stream.time_base.numerator, stream.time_base.denominator
        # Audio's packets tell how long they last.
        has_clock = not stream.container.format.flags & av.format.Flags.no_timestamps.value
        self.is_bare = self.kind == "video" and not has_clock
        self.is_reordered = self.kind == "video" and bool(stream.codec_context.has_b_frames)
        self.frame_rate: float | None = None
        self.pixel_aspect = 1.0
        if self.kind == "video":
            self.pixel_aspect = float(stream.sample_aspect_ratio or 1.0)
            # The average is over what a container says; of a bare stream FFmpeg takes it to be 25.
            rate = stream.guessed_rate if self.is_bare else stream.average_rate or stream.guessed_rate
            self.frame_rate = float(rate) if rate else None
        self.start = self.time(stream.start_time) or 0.0
        end = None if stream.duration is None else (stream.start_time or 0) + stream.duration
        self.declared_end = math.inf if end is None else (self.time(end) or 0.0)
        self.end = 0.0
        self.first_time: float | None = None
        self.is_over = self.has_ended = False
        self.num_demuxed = 0
        self.gaps: list[tuple[float, float]] = []
        self._reached = math.inf
        self._is_ogg_audio = self.kind == "audio" and stream.container.format.name == "ogg"
        self._longest = 0.0
        self._lasting: tuple[int | None, float] = -1, 0.0  # ticks of the last packet that was asked for, and seconds
        self.waiting: deque[TimedPacket] = deque()  # demuxed while packets of the other track were asked for
        self.waiting_bytes = 0
        self.own_packets: Iterator[TimedPacket] | None = None  # of a demuxer of its own

    def time(self, ticks: int | None) -> float | None:
        """Seconds from the start of the file, `None` when the file does not say."""
        return None if ticks is None else ticks * self._numerator / self._denominator - self.origin

    def note(self, packet: "TimedPacket") -> None:
        """Take note of where a packet lies, before it is decoded."""
        end, begin = packet.end, packet.position
        if end > self.end:
            self.end = end
        if begin is not None:
            if begin - self._reached > HOLE_SECONDS:
                self.gaps.append((self._reached, begin))
            self._reached = begin + packet.duration

    def seconds(self, ticks: int | None) -> float:
        """How long a packet or a frame lasts: its own ticks, or one frame where it does not say."""
        if ticks == self._lasting[0]:  # most of them last equally long
            return self._lasting[1]
        seconds = ticks * self._numerator / self._denominator if ticks else 0.0
        if self.is_bare:
            # FFmpeg may not know, and a packet may hold one field of a frame; but a frame may last for three fields.
            seconds = max(2, round(seconds / self.frame_seconds * 2)) / 2 * self.frame_seconds
        elif not ticks and self.kind == "video":
            seconds = self.frame_seconds
        elif self._is_ogg_audio:
            # The last packet of a stream lasts as long as its page says, which counts what was lost before it, too.
            if 0 < self._longest < seconds - HOLE_SECONDS:
                seconds = self._longest
            self._longest = max(self._longest, seconds)
        self._lasting = ticks, seconds
        return seconds

    @property
    def frame_seconds(self) -> float:
        """How long a frame of the video is shown by its frame rate, seconds."""
        return 1.0 / (self.frame_rate or DEFAULT_FRAME_RATE)


class TimedPacket(NamedTuple):
    """A packet on the file's clock.

    Attributes:
        track: The track it belongs to.
        data: PyAV's packet; `None` when the track has ended.
        time: When its frame is shown or heard, seconds; `None` where the file does not say.
        decode_time: When it is decoded, seconds; of a packet without any time, when the one before it has ended, and
            `None` where that is not known.
        duration: How long it lasts, seconds.
        position: Where in the order of the file it lies, seconds; `None` where the file does not say.
    """

    track: Track
    data: Any = None
    time: float | None = None
    decode_time: float | None = None
    duration: float = 0.0
    position: float | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return 0 if self.data is None else self.data.size

    @property
    def end(self) -> float:
        """When what it holds ends, seconds; 0 for packets without a time and those that an edit list leaves out."""
        begin = self.decode_time if self.time is None else self.time
        if begin is None or self.data.is_discard:
            return 0.0
        end = begin + self.duration
        if self.track.is_reordered and begin < self.track.declared_end < end:
            return self.track.declared_end  # mp4 says how long until the next packet is decoded, not shown
        return end


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


class _Scan(NamedTuple):
    """What is known of a file that was demuxed to its end.

    Attributes:
        end: When the latest packet ends, seconds.
        is_straight: Whether the file's clock ran on to it.
        second_start: The earliest time behind its beginning from which video can be decoded, seconds.
    """

    end: float
    is_straight: bool
    second_start: float


class MediaReader:
    """One pass over one open file.

    Args:
        source: The file.
        request: What is wanted of it.

    Attributes:
        audio: The audio track, `None` when it is absent or not wanted.
        video: The video track, likewise.
        tracks: Both, wanted or not.
        num_packets: Packets taken so far.
        num_bad_packets: How many of them could not be decoded.
        is_encrypted: Whether some of these are encrypted.
        broken_off: Why reading ended before the end of the file, `None` where it did not.
        last_error: Why demuxing or decoding failed the last time.
        sought: Where it was told to start, seconds; `None` for its beginning.

    Raises:
        MissingTrackError: A wanted track is absent and `missing="error"`, or none of the wanted tracks is there.
    """

    def __init__(self, source: MediaSource, request: MediaRequest) -> None:
        self.name = source.name
        self._source = source
        self._max_pixels = min(request.max_pixels or MAX_FRAME_PIXELS, MAX_FRAME_PIXELS)
        _FORK_GUARD.note_reader()
        self.container = source.open()
        self._containers = [self.container]
        try:
            self._find_tracks(self._select_streams(request), request)
            if self.video is not None:
                self._check_size(self.video.stream)
        except BaseException:
            self.close()
            raise
        if self.video is not None:
            self.video.stream.thread_type = "AUTO"
            self.video.stream.codec_context.thread_count = request.threads
            # Larger frames than this are refused before there is memory for them.
            self.video.stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
        self.sought: float | None = None
        self._clocks: list[Clock] = []
        self._packets = self.packets(self.container, self.tracks)
        self.num_packets = self._num_bytes = 0
        self.num_bad_packets = 0
        self.is_encrypted = False
        self.last_error: Exception | None = None
        self.broken_off: str | None = None

    def _select_streams(self, request: MediaRequest) -> dict[str, Any]:
        audio_track = request.audio_track if request.want_audio else None
        streams = select_streams(self.container, audio_track, self._source.streams)
        wanted = [kind for kind, want in (("audio", request.want_audio), ("video", request.want_video)) if want]
        is_whole = all(kind in streams and is_described(streams[kind]) for kind in wanted)
        if not is_whole and self._source.look_further():
            # A track may begin only behind what FFmpeg has looked at.
            self.container.close()
            self.container = self._containers[0] = self._source.open()
            streams = select_streams(self.container, audio_track, self._source.streams)
        return streams

    def _find_tracks(self, streams: dict[str, Any], request: MediaRequest) -> None:
        wanted = {"audio": request.want_audio, "video": request.want_video}
        absent = [kind for kind, want in wanted.items() if want and kind not in streams]
        if "audio" in absent and request.audio_track is not None:
            self._refuse_choice(request.audio_track)
        if absent and (request.missing == "error" or len(absent) == sum(wanted.values())):
            has = " and ".join(streams) or "neither audio nor video"
            message = f"{self.name}: has no {absent[0]} track (it has {has}); "
            if not streams:
                raise MissingTrackError(f"{message}it cannot be used.", absent[0])
            hint = Hint("missing", "mask", "go on without it")
            raise MissingTrackError(f"{message}give the {absent[0]} separately.", absent[0], hint=hint)
        starts = [
            stream.start_time * stream.time_base.numerator / stream.time_base.denominator
            for stream in streams.values()
            if stream.start_time is not None
        ]
        self.origin = min(starts, default=0.0)
        self.may_restart = bool(self.container.format.flags & _MAY_RESTART)
        whole = self.container.start_time
        if whole is not None and not self.may_restart and whole / 1e6 < self.origin - TIME_TOLERANCE:
            self.origin = whole / 1e6  # another track, chapters for one, begins earlier: the file begins there
        if self.origin >= -MAX_ENCODER_DELAY and not self.may_restart:
            # Negative starts are encoder delay that the decoder drops; a positive common start is only an offset.
            self.origin = max(0.0, self.origin)
        found = {kind: Track(stream, self.origin, wanted[kind]) for kind, stream in streams.items()}
        self.tracks = list(found.values())
        self.audio = found.get("audio") if wanted["audio"] else None
        self.video = found.get("video") if wanted["video"] else None

    def _refuse_choice(self, audio_track: int | str) -> None:
        """Name the audio tracks of a file that has some, but not the one that was asked for."""
        there = list_audio_tracks(self.container)
        if there:
            raise MissingTrackError(
                f"{self.name}: has no audio track {audio_track!r} that can be decoded; it has "
                f"{', '.join(map(str, there))}. Choose one by its number or its language.",
                "audio",
            )

    @property
    def declared_duration(self) -> float | None:
        """Seconds from the clock's zero to the end of the clip as the header has it, `None` when it does not say."""
        if any(track.is_bare for track in self.tracks):
            return None  # FFmpeg estimates it from the bit rate
        streams = [track.stream for track in self.tracks]
        if streams and all(stream.duration for stream in streams):
            return max(
                (stream.duration + (stream.start_time or 0)) * float(stream.time_base) - self.origin
                for stream in streams
            )
        duration = (self.container.duration or 0) / 1e6
        if self.container.format.name.startswith("matroska"):
            duration -= self.origin  # FFmpeg and others write when the last frame ends; who does not is measured
        return duration if duration > 0 else None

    @property
    def is_broadcast(self) -> bool:
        """Whether the file is read as it comes and may never end."""
        return self._source.is_broadcast

    @property
    def measured_duration(self) -> float:
        """The longer of the ends of both tracks, as far as they were demuxed."""
        return max((track.end for track in self.tracks), default=0.0)

    @functools.cached_property
    def known_duration(self) -> float | None:
        """Seconds from the clock's zero to the end of the clip, `None` when the header does not say.

        In containers whose headers do not know it, or know it of one of several files that were joined, it is counted.
        """
        is_estimate = self.may_restart or self.container.format.name in _ESTIMATED_CONTAINERS
        if is_estimate and not self._source.is_broadcast:
            return self._scan.end or self.declared_duration
        return self.declared_duration

    def scan_duration(self) -> float:
        """Length of the file as it plays: demuxed to its end beside this pass, without decoding.

        Raises:
            MediaError: There is nothing in it.
        """
        end = self._scan.end
        if not end:
            raise MediaError(f"{self.name}: holds no media data; it is truncated or corrupt, fetch it again.")
        return end

    @functools.cached_property
    def _scan(self) -> _Scan:
        clock, state = self._new_clock(), (self.broken_off, self.last_error)
        end, second_start = 0.0, math.inf
        with self._source.open(beside=True) as container:
            for packet in self._demux(container, clock):
                end = max(end, packet.end)
                is_start = packet.track.kind == "video" and packet.data.is_keyframe
                if is_start and packet.position is not None and packet.position > _SAME_START_SECONDS:
                    second_start = min(second_start, packet.position)
        self.broken_off, self.last_error = state  # this pass may end before, and then tells of it itself
        return _Scan(end, clock.is_straight, second_start)

    def _new_clock(self) -> Clock:
        declared = self.declared_duration
        is_known = declared is not None and not self._is_fragmented
        end = self.origin + declared if is_known and declared is not None else math.inf
        is_start = self.sought is None
        return Clock(may_restart=self.may_restart and is_start, origin=self.origin, end=end, is_start=is_start)

    @property
    def _is_fragmented(self) -> bool:
        """Whether this is an mp4 whose fragments may go on behind what its header says."""
        return self.container.format.name.startswith("mov") and not all(track.stream.frames for track in self.tracks)

    def seek(self, time: float) -> None:
        """Go to the last point from which everything shown at `time` can be decoded.

        Where the file's clock does not run on, its times do not say where that is, and the file is read from its
        beginning.
        """
        if self.may_restart:
            if self._source.is_broadcast or not self._scan.is_straight:
                return
            if self.video is not None and self._scan.second_start > time:
                return  # nothing to be gained
        self.sought = time
        self._go_to_start(self.container)

    def _go_to_start(self, container: Any) -> None:
        # The times of a bare stream are counted from its beginning.
        if self.sought is not None and not any(track.is_bare for track in self.tracks):
            for place in (math.floor((self.sought + self.origin) * 1e6), 0):
                with contextlib.suppress(av.error.FFmpegError, OSError, OverflowError):
                    container.seek(place)
                    return

    def packets(self, container: Any, tracks: Sequence[Track]) -> Iterator[TimedPacket]:
        """Demux tracks in the order of the file, from where was sought; the last packet of each has no data."""
        found = set()
        for packet in self._demux(container, self._new_clock()):
            if packet.track in tracks:
                found.add(packet.track)
                yield packet
        for track in tracks:
            lost = self.sought is not None and track not in found and track.declared_end > self.sought
            if lost and track.is_wanted and not self._source.is_broadcast:
                # Seeking goes by one track, and led behind all of this one, which stands before it in the file.
                for packet in self._demux(self._open_beside(), self._new_clock()):
                    is_due = track.kind == "video" or packet.end > (self.sought or 0.0)
                    if packet.track is track and is_due:
                        yield packet
            yield TimedPacket(track)

    def _demux(self, container: Any, clock: Clock) -> Iterator[TimedPacket]:
        """All packets of both tracks: where the clock jumps is told by both, and so is the same in every pass."""
        self._clocks.append(clock)
        # Of the packet before, for those that have no times; unknown where was sought.
        is_start_known = self.sought is None or any(track.is_bare for track in self.tracks)
        ends: dict[Track, float | None] = dict.fromkeys(self.tracks, 0.0 if is_start_known else None)
        for track, packet in clock.straightened(self._raw_packets(container)):
            time, decode_time, duration = None, None, track.seconds(packet.duration)
            if not track.is_bare:
                shown, decoded = packet.pts, packet.dts
                time = track.time(shown)
                decode_time = time if shown == decoded else track.time(decoded)
            if time is None and decode_time is None:
                decode_time = ends[track]
            begin = time if decode_time is None else decode_time
            ends[track] = None if begin is None else begin + duration
            # Of a frame that is shown in another order, only when it is decoded tells where in the file it lies.
            position = decode_time if track.is_reordered else begin
            yield TimedPacket(track, packet, time, decode_time, duration, None if track.is_bare else position)

    def _raw_packets(self, container: Any) -> Iterator[tuple[Track, Any]]:
        by_index = {track.stream.index: track for track in self.tracks}
        demuxed = container.demux([container.streams[index] for index in by_index])
        while True:
            try:
                packet = next(demuxed)
            except (StopIteration, IndexError):
                # PyAV ends with an IndexError where streams that the header does not name were found on the way.
                break
            except Exception as error:  # FFmpeg's, PyAV's own of many types, and those of the file object read from
                if self.is_broadcast and getattr(error, "errno", None) == errno.EIO:
                    break  # the connection was closed, which is the only way to end where no length was told
                self.broken_off, self.last_error = str(error) or type(error).__name__, error
                break
            # Empty packets are PyAV's way to say that a track has ended. FFmpeg gives some in the middle of files,
            # too, where they mean nothing, but would end the decoding.
            if packet.size:
                # Not `packet.stream_index`, which is 0 for packets that PyAV made itself.
                yield by_index[packet.stream.index], packet

    def _open_beside(self) -> Any:
        self._containers.append(self._source.open(beside=True))
        return self._containers[-1]

    def next_packet(self, track: Track | None = None) -> TimedPacket | None:
        """Take the next packet of a track, or of any wanted track in the order of the file.

        Packets of the other track wait in memory meanwhile; when they become too many, because the tracks lie far
        apart in the file, the track is read by a demuxer of its own from there on. A pass asks for one track at a
        time always or never.

        Returns:
            The packet; `None` at the end of the file.
        """
        own = None if track is None else track.own_packets
        while track is None or not track.waiting:
            packet = next(self._packets if own is None else own, None)
            if packet is None:
                return None
            if own is None and packet.track.own_packets is not None:
                continue  # the track's own demuxer gives it
            packet.track.num_demuxed += packet.data is not None
            if not packet.track.is_wanted:
                self._count(packet)
            elif track is None or packet.track is track:
                return self._count(packet)
            else:
                self._keep_waiting(packet, track)
                own = track.own_packets
        packet = track.waiting.popleft()
        track.waiting_bytes -= packet.size
        return self._count(packet)

    def _keep_waiting(self, packet: TimedPacket, asked: Track) -> None:
        """Put a packet aside; should there be too many, read the track that was asked for on its own."""
        waiting = packet.track.waiting
        waiting.append(packet)
        packet.track.waiting_bytes += packet.size
        apart = packet.end - waiting[0].end > INTERLEAVE_SECONDS
        if apart or packet.track.waiting_bytes > INTERLEAVE_BYTES:
            if self._source.is_broadcast:  # opening it again would give other packets
                if packet.track.waiting_bytes <= INTERLEAVE_BYTES:
                    return
                raise MediaError(f"{self.name}: its tracks lie too far apart to be read as they come; download it.")
            container = self._open_beside()
            self._go_to_start(container)
            asked.own_packets = self.packets(container, [asked])
            for _ in range(asked.num_demuxed):  # demuxing again gives the same packets
                next(asked.own_packets, None)

    def _count(self, packet: TimedPacket) -> TimedPacket:
        if packet.data is None:
            packet.track.is_over = packet.track.has_ended = True
        else:
            self.num_packets += 1
            self._num_bytes += packet.data.size
            packet.track.note(packet)
            if packet.position is not None and packet.position > LONGEST_WAIT_SECONDS:
                self._check_rate(packet.position)
        return packet

    def _check_rate(self, position: float) -> None:
        """Refuse a clock that next to nothing stands behind: damaged headers let a frame stay for hours."""
        seconds = position - (self.sought or 0.0)
        if self._num_bytes < LEAST_BYTES_PER_SECOND * seconds:
            raise MediaError(
                f"{self.name}: {self.num_packets} packets of {self._num_bytes} bytes in all are said to last for "
                f"{seconds / 3600:.1f} hours; its header is damaged, fetch the file again."
            )

    def decode(self, packet: TimedPacket) -> list[Any]:
        """Decode a packet, or what the decoder still holds of a track; damaged ones are counted and give nothing.

        Raises:
            MediaError: A frame is larger than the request allows, or audio faster than any is.
            MemoryError: There is no memory for it, which is no damage.
        """
        try:
            frames = packet.track.stream.codec_context.decode(packet.data)
        except EOFError:
            return []
        except MemoryError:
            raise
        except Exception as error:  # FFmpeg's, and PyAV's own of many types for values that it does not know
            self.last_error = error
            if packet.data is not None:
                self.num_bad_packets += 1
                self.is_encrypted |= packet.data.has_sidedata("encryption_info")
            return []
        for frame in frames:  # what the header says may change on the way
            if packet.track.kind == "video":
                self._check_size(frame)
            elif frame.sample_rate > MAX_AUDIO_RATE:
                raise MediaError(
                    f"{self.name}: its audio claims {frame.sample_rate} samples a second, and at most "
                    f"{MAX_AUDIO_RATE} are taken; the file is corrupt."
                )
        return frames

    def _check_size(self, frame: Any) -> None:
        """Refuse a frame, or a stream by its header, that is too large."""
        most = self._max_pixels
        if frame.width * frame.height > most:
            raise MediaError(
                f"{self.name}: a frame in it is {frame.width} by {frame.height}, and at most {most / 1e6:.1f} "
                "million pixels are taken; scale it down."
            )

    def check_damage(self, end: float) -> None:
        """Refuse a file that was found to be cut short or corrupt on the way to `end`, seconds.

        Raises:
            MediaError: Reading broke off, too many packets could not be decoded, too much is missing in the middle, or
                the file is truncated.
        """
        measured, promised = self.measured_duration, self._promised_end
        problem = None
        wild = next((clock.wild for clock in self._clocks if clock.wild is not None), None)
        holes = [(first, last) for first, last in self._holes() if first < end]
        missing_bytes = self._source.missing_bytes if all(track.has_ended for track in self.tracks) else 0
        if self.broken_off is not None:
            problem = f"reading breaks off at {measured:.2f} s ({self.broken_off})"
        elif wild is not None and wild[0] < end:
            problem = f"its clock jumps from {wild[0]:.2f} s to {wild[1]:.2f} s, the file is corrupt"
        elif self.num_bad_packets > max(1, MAX_BAD_PACKET_SHARE * self.num_packets):
            if self.is_encrypted:
                raise MediaError(f"{self.name}: is encrypted; decrypt it first.") from self.last_error
            problem = f"{self.num_bad_packets} of {self.num_packets} packets cannot be decoded, the file is corrupt"
        elif measured < min(promised, end) - TRUNCATION_TOLERANCE:
            problem = f"is truncated, it ends after {measured:.2f} s of the {promised:.2f} s its header promises"
        elif missing_bytes:
            problem = f"is truncated, {missing_bytes} bytes that its header promises are missing"
        elif sum(last - first for first, last in holes) > MAX_BAD_PACKET_SHARE * measured:
            first, last = holes[0]
            problem = f"nothing is there from {first:.2f} s to {last:.2f} s, the file is corrupt"
        if problem is not None:
            hint = Hint("damaged", "keep", "use what can be decoded")
            raise MediaError(f"{self.name}: {problem}; fetch it again.", hint=hint) from self.last_error

    @property
    def _promised_end(self) -> float:
        """Where the file ends at the earliest as its header has it, seconds; 0 where that is only an estimate."""
        name = self.container.format.name.split(",")[0]
        complete = all(track.stream.duration for track in self.tracks)
        alone = len(self.tracks) == len(self.container.streams)
        if name not in _EXACT_CONTAINERS or not (alone if name == "matroska" else complete or name == "flv"):
            return 0.0
        if name == "mp3" and not self._source.has_frame_count:
            return 0.0
        if name == "avi":  # the length of the audio depends on a bit rate that many get wrong
            return min(track.declared_end for track in self.tracks)
        if name == "mov":
            # Whether a length counts from the first sample or from the clock's zero differs with edit lists.
            return max(track.stream.duration * float(track.stream.time_base) for track in self.tracks) - self.origin
        declared = self.declared_duration or 0.0
        # Where FLV has no length, FFmpeg gives the time of the last packet, which counts from the clock's own zero.
        return declared - max(0.0, self.origin) if name == "flv" else declared

    def _holes(self) -> list[tuple[float, float]]:
        """From when to when nothing was there, seconds, though there should have been."""
        name = self.container.format.name.split(",")[0]
        if name == "mov":
            return []  # has an index: what is lost cannot be decoded, and pauses are meant
        if len(self.tracks) == 1:
            # Alone, sound of other containers may pause, and so may video.
            return self.tracks[0].gaps if name in ("ogg", "flac") else []
        video, audio = sorted(self.tracks, key=lambda track: track.kind != "video")
        if not 0 < video.end * _STEADY_FRAME_RATE < video.num_demuxed:
            return []
        if name == "mpeg":  # its tracks lie seconds apart in the file, so that each lacks another part
            return video.gaps if audio.gaps else []
        overlaps = ((max(a, c), min(b, d)) for a, b in video.gaps for c, d in audio.gaps)
        return [(first, last) for first, last in overlaps if last - first > HOLE_SECONDS]

    def close(self) -> None:
        """Close the file."""
        for container in self._containers:
            container.close()

    def __enter__(self) -> "MediaReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
