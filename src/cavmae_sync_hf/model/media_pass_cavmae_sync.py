# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What happens in one pass over a file: which frames are wanted, which are decoded, and was the file whole?"""

import bisect
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .alignment_cavmae_sync import TIME_TOLERANCE, center_times, reference_indices
from .errors_cavmae_sync import MediaError
from .media_pictures_cavmae_sync import FrameConverter, PictureStore
from .media_source_cavmae_sync import MediaSource
from .media_tracks_cavmae_sync import (
    FramePicker,
    IndexPicker,
    MediaReader,
    PacketAdvisor,
    Pick,
    TimeGrid,
    WaveformBuilder,
    codec_skips_exactly,
)

# A header that is off by less than this is right: AAC and Opus end on whole packets of 20 to 64 ms.
DURATION_TOLERANCE = 0.05
# A file with an exact header that ends earlier than it says by more than this is truncated.
TRUNCATION_TOLERANCE = 0.25
# Share of packets that may fail to decode before a file counts as corrupt (cut recordings begin with a few).
MAX_BAD_PACKET_SHARE = 0.02
# Resampling starts at a whole second at least this much before a segment, so that segments are exact slices of the
# whole.
PRE_ROLL_SECONDS = 1.0
POST_ROLL_SECONDS = 0.1
# For files that do not say their frame rate.
DEFAULT_FRAME_RATE = 25.0


@dataclass
class MediaRequest:
    """What is wanted of a file; the fields are those of `decode_media`, with an infinite `end` for the clip's."""

    num_frames: int
    alignment: str
    frame_times: list[float] | None
    sampling_rate: int
    channel: str
    start: float
    end: float
    want_audio: bool
    want_video: bool
    missing: str
    damaged: str
    short_side: int | None
    threads: int

    def check(self, name: str) -> None:
        """Refuse values that cannot work (`ValueError`)."""
        choices = (
            ("alignment", self.alignment, ("time", "reference")),
            ("channel", self.channel, ("first", "mean")),
            ("missing", self.missing, ("error", "mask")),
            ("damaged", self.damaged, ("error", "keep")),
        )
        for option, value, allowed in choices:
            if value not in allowed:
                raise ValueError(f"{option} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
        if not (self.want_audio or self.want_video):
            raise ValueError("want_audio and want_video are both False: there is nothing to decode.")
        for option, count in (("num_frames", self.num_frames), ("sampling_rate", self.sampling_rate)):
            if not isinstance(count, int | np.integer) or count < 1:
                raise ValueError(f"{option} must be a whole number of at least 1, got {count!r}.")
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short_side must be at least 1 pixel, got {self.short_side}.")
        if not 0 <= self.start < self.end:
            raise MediaError(f"{name}: the segment {self.start:g} to {self.end:g} s is empty; give 0 <= start < end.")

    def open(self, media: MediaSource) -> MediaReader:
        """Open the file for a pass."""
        return MediaReader(media, self.want_audio, self.want_video, self.missing, self.threads)


@dataclass
class PassResult:
    """What one pass over the file gave. Times are on the file's clock.

    Attributes:
        clip_end: End of the span, as assumed before the pass.
        measured_end: The longer of the ends of both tracks, as demuxed.
        asked: Times asked for, ascending.
        indices: Frame numbers asked for (reference alignment).
        num_frames: Frames of the span, counted.
        pictures: The frames picked, each once.
        picked: Picture number and frame time for each asked frame.
        shown_until: When the frame after it appears, for each asked frame.
        waveform: `(num_samples,)` float32, cut to the span; `None` when no sound was decoded.
        skipped: Whether frames that nobody asked for were left undecoded.
        late: Whether the seek landed behind the start of the span.
        packet_times: Presentation times of the video packets, ascending.
        info: Facts about the file that `DecodedMedia` repeats.
    """

    clip_end: float
    measured_end: float = 0.0
    asked: list[float] = field(default_factory=list)
    indices: list[int] | None = None
    num_frames: int = 0
    pictures: PictureStore | None = None
    picked: list[tuple[int, float]] = field(default_factory=list)
    shown_until: list[float] = field(default_factory=list)
    waveform: torch.Tensor | None = None
    has_video: bool = False
    has_audio: bool = False
    skipped: bool = False
    late: bool = False
    packet_times: list[float] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)


def as_seconds(name: str, value: Any) -> float:
    """A finite time in seconds out of a number; `ValueError` names what was given."""
    try:
        seconds = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"{name} is {value!r}; give a finite number of seconds.")
    return seconds


def run_pass(
    media: MediaSource,
    request: MediaRequest,
    *,
    seek: bool = True,
    with_audio: bool = True,
    skip: bool = True,
    duration: float | None = None,
    total_frames: int | None = None,
) -> PassResult:
    """Demux the file once and decode what is wanted of it.

    Args:
        media: The file.
        request: What is wanted.
        seek: Whether to jump to the start of the span instead of decoding up to it.
        with_audio: Whether sound is decoded in this pass.
        skip: Whether frames that nobody asks for may be left undecoded.
        duration: Length of the clip in seconds if known better than by the header.
        total_frames: Frames of the span if known better than by the header.

    Raises:
        MediaError: The span lies outside the clip, or the file is damaged and `request.damaged` is `"error"`.
    """
    with request.open(media) as reader:
        duration = duration or reader.declared_duration or _scan_duration(media, request)
        if request.start >= duration:
            raise MediaError(
                f"{media.name}: the segment starts at {request.start:g} s, the clip ends at {duration:g} s; "
                "choose an earlier start."
            )
        result = PassResult(clip_end=min(request.end, duration))
        picker = _plan(reader, request, result, total_frames)
        begin = max(0.0, math.floor(request.start) - PRE_ROLL_SECONDS)
        seek = seek and begin > 0
        if seek:
            reader.seek(begin - POST_ROLL_SECONDS)
        sound = None
        if reader.audio is not None and with_audio:
            sound = WaveformBuilder(request.sampling_rate, request.channel, begin, request.end + POST_ROLL_SECONDS)
        video = VideoFeed(reader, picker, request.start, request.end, skip) if picker is not None else None
        pieces = _decode_tracks(reader, request, result, video, sound)
        if sound is not None and result.has_audio:
            result.waveform = _cut_waveform(pieces + sound.flush(), request, begin, media.name)
        result.late = result.late and seek
        result.measured_end = reader.measured_duration
        result.info = {
            "frame_rate": reader.frame_rate,
            "num_bad_packets": reader.num_bad_packets,
            "native_sampling_rate": reader.audio.rate if reader.audio is not None else 0,
            "native_channels": reader.audio.channels if reader.audio is not None else 0,
        }
        if with_audio and request.damaged == "error":
            check_damage(reader, request.end)
        return result


def _plan(
    reader: MediaReader, request: MediaRequest, result: PassResult, total: int | None
) -> FramePicker | IndexPicker | None:
    """Decide which frames are wanted."""
    if reader.video is None:
        return None
    span = result.clip_end - request.start
    if request.frame_times is not None:
        result.asked = sorted(request.start + time for time in request.frame_times)
    elif request.alignment == "time":
        result.asked = center_times(span, request.num_frames, request.start)
    else:
        rate = reader.frame_rate or DEFAULT_FRAME_RATE
        whole = request.start == 0 and request.end == math.inf
        total = total or (reader.video.frames if whole else 0) or max(1, round(span * rate))
        result.indices = reference_indices(total, rate, request.num_frames)
        result.asked = [request.start + index / rate for index in result.indices]
        return IndexPicker(result.indices)
    return FramePicker(TimeGrid(result.asked))


def _scan_duration(media: MediaSource, request: MediaRequest) -> float:
    """Demux without decoding to learn the length of a file whose header does not say."""
    with request.open(media) as reader:
        for _ in reader.packets():
            pass
        if not reader.measured_duration:
            raise MediaError(f"{media.name}: holds no media data; it is truncated or corrupt, fetch it again.")
        return reader.measured_duration


def _decode_tracks(
    reader: MediaReader,
    request: MediaRequest,
    result: PassResult,
    video: "VideoFeed | None",
    sound: WaveformBuilder | None,
) -> list[np.ndarray]:
    """Feed packets to the decoders and picked frames to the result; returns the pieces of the waveform."""
    pieces: list[np.ndarray] = []
    keep = _Keeper(result, FrameConverter(reader.name, request.short_side))
    passed = dict.fromkeys(reader.ends, False)
    video_index = reader.video.index if video is not None else -1
    audio_index = reader.audio.index if sound is not None else -1
    limit = request.end + POST_ROLL_SECONDS
    for packet, index, time, decode_time in reader.packets():
        if index == video_index and video is not None:
            keep(video.push(packet, time, decode_time))
        elif index == audio_index and sound is not None:
            for frame in reader.decode(packet):
                frame_time = reader.frame_time(frame, reader.audio)
                if not result.has_audio:
                    result.has_audio = True
                    result.late |= frame_time is not None and frame_time > request.start
                pieces += sound.push(frame, frame_time)
        position = time if decode_time is None else decode_time
        if position is not None and position > limit:
            passed[index] = True
            if all(passed.values()):
                break
    if video is not None:
        keep(video.finish())
        result.has_video = video.first_time is not None
        result.late |= (video.first_time or 0.0) > max(request.start, TIME_TOLERANCE)
        result.skipped, result.num_frames, result.packet_times = video.skipped, video.num_frames, video.packet_times
    return pieces


class _Keeper:
    """Turns picked frames into pictures of the result, each frame once."""

    def __init__(self, result: PassResult, convert: FrameConverter) -> None:
        self.result, self.convert = result, convert
        self._shown: Any = None  # the frame that the last picture was made from

    def __call__(self, picks: Iterable[Pick]) -> None:
        for pick in picks:
            if self.result.pictures is None:
                self.result.pictures = PictureStore(len(self.result.asked))
            if pick.frame is not self._shown:
                self.result.pictures.add(self.convert(pick.frame))
                self._shown = pick.frame
            self.result.picked.append((self.result.pictures.count - 1, pick.time))
            self.result.shown_until.append(pick.until)


class VideoFeed:
    """The video half of a pass: packets in, picked frames out.

    Args:
        reader: The open file; its video track is decoded.
        picker: What is asked for.
        start: Start of the span on the file's clock, seconds.
        end: End of the span.
        skip: Whether frames that nobody asks for may be left undecoded.
        keep_times: Keep the times of all packets, which `packet_times` and `num_frames` are made of. Without it memory
            stays constant, and `pause` is possible.

    Attributes:
        first_time: Time of the first frame that was decoded, `None` before.
        last_time: Time of the latest packet.
        skipped: Whether frames were left undecoded.
        num_frames: Frames of the span; complete after `finish`.
        packet_times: Presentation times of the packets, ascending; complete after `finish`.
    """

    def __init__(
        self,
        reader: MediaReader,
        picker: FramePicker | IndexPicker,
        start: float = 0.0,
        end: float = math.inf,
        skip: bool = True,
        keep_times: bool = True,
    ) -> None:
        self.reader, self.picker, self.start, self.end = reader, picker, start, end
        self.keep_times = keep_times
        self.advisor = None
        if skip and codec_skips_exactly(reader.video):
            self.advisor = PacketAdvisor(self._asks, keep_times)
        self.first_time: float | None = None
        self.last_time = 0.0
        self.skipped = False
        self.num_frames = 0
        self.packet_times: list[float] = []
        self._done = False
        self._paused = False
        self._group: list[Any] = []  # packets since the last key frame, where a pause may come
        self._skipping = False
        self._previous = 0.0
        self._until: dict[float, float] = {}  # frame time: time of the frame that follows, for wanted frames

    def push(self, packet: Any, time: float | None, decode_time: float | None) -> Iterator[Pick]:
        """Take the next packet in decoding order; yield the frames that it settles."""
        if time is not None:
            self.last_time = max(self.last_time, time)
        if not self.keep_times and packet.size:
            yield from self._remember(packet)
        if self._done:
            if time is not None and packet.size and not packet.is_discard:
                bisect.insort(self.packet_times, time)
        elif self.advisor is None:
            yield from self._take(self.reader.decode(packet))
        elif not packet.size:
            yield from self._drain()
        elif packet.is_discard or time is None:
            # Frames that an edit list drops are decoded, for others are built from them, but have no number.
            for item, _ in self.advisor.flush():
                yield from self._decode(item, True)
            yield from self._decode(packet, True)
        else:
            due = -math.inf if decode_time is None else decode_time
            for item, wanted in self.advisor.push(time, due, packet):
                yield from self._decode(item, wanted)

    def finish(self, end: float = math.inf) -> Iterator[Pick]:
        """No more packets: yield what the decoder holds and what the last frame answers before `end`."""
        if not self._done:
            yield from self._drain()
        yield from self.settle(end)
        if self.advisor is not None:
            self.packet_times = sorted(self.packet_times + self.advisor.times)
            first, last = (bisect.bisect_left(self.packet_times, at - TIME_TOLERANCE) for at in (self.start, self.end))
            self.num_frames = last - first

    def settle(self, end: float) -> Iterator[Pick]:
        """Let the last frame answer what is asked before `end`."""
        yield from map(self._with_next, self.picker.flush(end))

    def pause(self) -> Iterator[Pick]:
        """No packet came for long: take what the decoder holds, so that its last frame can answer; more may follow."""
        if not (self._done or self._paused or self.keep_times):
            self._paused = True
            yield from self._drain()
            self.reader.video.codec_context.flush_buffers()

    def _remember(self, packet: Any) -> Iterator[Pick]:
        """Keep the packets since the last key frame; decode them again when packets follow a pause."""
        if packet.is_keyframe:
            self._group.clear()
        if self._paused:
            self._paused = False
            for earlier in self._group:
                yield from self._decode(earlier, True)
        self._group.append(packet)

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
            yield from self._take(self.reader.drain(self.reader.video))

    def _decode(self, packet: Any, wanted: bool) -> Iterator[Pick]:
        if self._done:
            return
        if self._skipping == wanted:
            self._skipping = not wanted
            self.reader.video.codec_context.skip_frame = "NONREF" if self._skipping else "DEFAULT"
            self.skipped |= self._skipping
        yield from self._take(self.reader.decode(packet))

    def _take(self, frames: list[Any]) -> Iterator[Pick]:
        for frame in frames:
            time = self.reader.frame_time(frame, self.reader.video)
            if time is None:  # some AVI files have no presentation times
                step = 1.0 / (self.reader.frame_rate or DEFAULT_FRAME_RATE)
                time = 0.0 if self.first_time is None else self._previous + step
            self._previous = time
            if self.first_time is None:
                self.first_time = time
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


def _cut_waveform(pieces: list[np.ndarray], request: MediaRequest, begin: float, name: str) -> torch.Tensor:
    waveform = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)
    first = round((request.start - begin) * request.sampling_rate)
    last = None if request.end == math.inf else first + round((request.end - request.start) * request.sampling_rate)
    return checked_waveform(waveform[first:last], name)


def checked_waveform(samples: np.ndarray, name: str) -> torch.Tensor:
    """Decoded samples as a tensor in [-1, 1]; `MediaError` when they are no numbers."""
    if not np.isfinite(samples).all():
        raise MediaError(f"{name}: the sound holds values that are not numbers (NaN or infinite); encode it again.")
    # Lossy decoders overshoot full scale a little; the published 16-bit files are clipped there.
    return torch.from_numpy(samples.clip(-1.0, 1.0))


def check_damage(reader: MediaReader, end: float) -> None:
    """Refuse what a reader that has come to `end` (seconds of the file) found to be cut short or corrupt."""
    remedy = "fetch it again, or pass damaged='keep' to use what can be decoded"
    measured, declared = reader.measured_duration, reader.declared_duration
    if reader.broken_off is not None:
        raise MediaError(f"{reader.name}: reading breaks off at {measured:.2f} s ({reader.broken_off}); {remedy}.")
    if reader.num_bad_packets > max(1, MAX_BAD_PACKET_SHARE * reader.num_packets):
        raise MediaError(
            f"{reader.name}: {reader.num_bad_packets} of {reader.num_packets} packets cannot be decoded, the file is "
            f"corrupt; {remedy}."
        )
    promised = min(declared or 0.0, end) if reader.declares_exactly else 0.0
    if measured < promised - TRUNCATION_TOLERANCE:
        raise MediaError(
            f"{reader.name}: is truncated, it ends after {measured:.2f} s of the {declared:.2f} s its header "
            f"promises; {remedy}."
        )


__all__ = [
    "DEFAULT_FRAME_RATE",
    "DURATION_TOLERANCE",
    "POST_ROLL_SECONDS",
    "PRE_ROLL_SECONDS",
    "TRUNCATION_TOLERANCE",
    "MediaRequest",
    "PassResult",
    "VideoFeed",
    "as_seconds",
    "check_damage",
    "checked_waveform",
    "run_pass",
]
