# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""One video file becomes frames and a waveform on a common clock.

`decode_media` opens a file once, demuxes it once and decodes both tracks in that pass; only the frames that are
asked for are turned into RGB. It shares `read_media`, the loop over packets, with `iter_media`, which reads long files
piece by piece. `resample` brings a waveform in memory to another rate.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from .alignment_cavmae_sync import TIME_TOLERANCE, center_times, reference_indices, shown_time
from .batching_cavmae_sync import MomentFrames
from .errors_cavmae_sync import Hint, MediaError, MissingTrackError
from .media_clock_cavmae_sync import LONGEST_PAUSE_SECONDS
from .media_decoders_cavmae_sync import FramePicker, IndexPicker, Pick, TimeGrid, VideoDecoder
from .media_images_cavmae_sync import FrameConverter
from .media_objects_cavmae_sync import DecoderObject, decode_object
from .media_request_cavmae_sync import POST_ROLL_SECONDS, SAMPLING_RATE, MediaRequest, as_seconds
from .media_selection_cavmae_sync import AudioTrack, list_audio_tracks
from .media_source_cavmae_sync import MediaSource, decoder_kind, encoded_source, require_av
from .media_tracks_cavmae_sync import DEFAULT_FRAME_RATE, TRUNCATION_TOLERANCE, MediaReader, TimedPacket, Track
from .media_waveform_cavmae_sync import WaveformBuilder, checked_waveform, resample_with_ffmpeg, warn_of_silence

try:
    import soxr
except ImportError:
    soxr = None

# A header that is off by less than this is right: AAC and Opus end on whole packets of 20 to 64 ms.
DURATION_TOLERANCE = 0.05


@dataclass
class DecodedMedia:
    """Both tracks of a clip, or of a segment of it, on one clock whose zero is the start of the clip or segment.

    Attributes:
        frames: `(num_frames, 3, height, width)` uint8 RGB, upright as shown, with square pixels (see
            `FrameConverter`); `None` without video. Of moments of several frames the middle ones.
        frame_times: `(num_frames,)` float64, when each frame appeared on screen in seconds (the asked time for a
            frame that stays for more than a second); `None` without video.
        asked_times: `(num_frames,)` float64, the times asked for, in seconds; `None` without video.
        waveform: `(num_samples,)` float32 in [-1, 1], one channel, sample 0 at time 0; `None` without audio.
        sampling_rate: Rate of the waveform, Hz.
        duration: Length of the clip or segment in seconds: to the end of the longer track.
        source: Name of the file, for messages.
        start: Where the segment starts in the file, seconds.
        frame_rate: Average frames per second of the video track, `None` if unknown.
        native_sampling_rate: Rate of the audio track in the file, Hz, 0 without audio.
        native_channels: Channels of the audio track in the file, 0 without audio.
        num_bad_packets: Packets that could not be decoded.
        moments: The frames of moments that have several; `None` where they have one each.
    """

    frames: torch.Tensor | None
    frame_times: torch.Tensor | None
    waveform: torch.Tensor | None
    sampling_rate: int
    duration: float
    source: str
    asked_times: torch.Tensor | None = None
    start: float = 0.0
    frame_rate: float | None = None
    native_sampling_rate: int = 0
    native_channels: int = 0
    num_bad_packets: int = 0
    moments: MomentFrames | None = None


@dataclass
class MediaInfo:
    """What the header of a media file says.

    Attributes:
        duration: Seconds, `None` when the header does not say.
        has_audio: Whether there is an audio track.
        has_video: Whether there is a video track.
        frame_rate: Average frames per second, `None` without video or when unknown.
        height: Height of the stored frames (before rotation), 0 without video.
        width: Width of the stored frames, 0 without video.
        sampling_rate: Hz, 0 without audio.
        channels: Audio channels, 0 without audio.
        container: FFmpeg's name of the container.
        source: Name of the file.
        audio_tracks: All audio tracks, in order. What is said of the audio above is said of the default one.
        timecode: Time code of the first frame, such as `10:00:00:00`, empty where the file has none.
    """

    duration: float | None
    has_audio: bool
    has_video: bool
    frame_rate: float | None
    height: int
    width: int
    sampling_rate: int
    channels: int
    container: str
    source: str
    audio_tracks: tuple[AudioTrack, ...] = ()
    timecode: str = ""


def decode_media(
    source: Any,
    *,
    num_frames: int = 16,
    alignment: str = "time",
    frame_times: Sequence[float] | torch.Tensor | np.ndarray | None = None,
    sampling_rate: int = SAMPLING_RATE,
    channel: str = "first",
    audio_track: int | str | None = None,
    start: float | None = None,
    end: float | None = None,
    want_audio: bool = True,
    want_video: bool = True,
    missing: str = "error",
    damaged: str = "error",
    frames_per_moment: int = 1,
    frame_step: float = 0.04,
    short_side: int | None = None,
    threads: int = 0,
    name: str | None = None,
) -> DecodedMedia:
    """Decode frames and audio of one file in one pass.

    Args:
        source: Path, address, bytes, binary file object, a mapping with `bytes` or `path`, or a decoder object of
            torchcodec. One of a data set's column stands for its file; another one has its own track alone.
        num_frames: Number of frames to pick.
        alignment: `"time"`: frame i is on screen at `(i + 0.5) * duration / num_frames`, the centres of equal spans.
            `"reference"`: frame number `int(i * min(N, 10 * fps) / num_frames)` of the N frames, as the published
            preparation has it, at time number / fps.
        frame_times: Seconds from the start of the clip or segment; replaces `num_frames` and `alignment`.
        sampling_rate: Rate of the waveform, Hz.
        channel: `"first"` (as published) or `"mean"` of all channels, chosen before resampling. A first channel that
            is silent beside one that is not gives a `MediaWarning`.
        audio_track: Which audio track, where a file has several: its number among them, counted from 0, or its
            language (`"de"`, `"deu"`). Default: the one that a player plays. A file that has others, but not that one,
            is an error whatever `missing` says.
        start: Start of the segment in the file, seconds.
        end: End of the segment in the file, seconds.
        want_audio: Whether audio is decoded.
        want_video: Whether video is decoded.
        missing: `"error"`, or `"mask"` to return `None` for a wanted track that is not there (both missing is an
            error).
        damaged: `"error"` refuses truncated and corrupt files, `"keep"` uses what can be decoded of them.
        frames_per_moment: Frames for each of the times, an odd number of which the middle one is on screen then. At
            the borders of the clip or segment its first and last frame stand for those outside.
        frame_step: Seconds from one of them to the next.
        short_side: Scale frames to this shorter side while converting. `None` keeps their size, which is what parity
            with the published pixels needs.
        threads: Threads of the video decoder, 0 for as many as there are cores.
        name: What messages call the source; default: its path or address.

    Returns:
        A `DecodedMedia`.

    Raises:
        MediaError: The file cannot be used; the message says which, why and what to do.
        MissingTrackError: A wanted track is not in the file.
    """
    request = MediaRequest(
        num_frames=num_frames,
        alignment=alignment,
        frame_times=frame_times,
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
        threads=threads,
    )
    if decoder_kind(source) and encoded_source(source) is None:
        return DecodedMedia(**decode_object(source, request, name))
    with MediaSource(source, name) as media:
        clip = _read_clip(media, request)
        known: dict[str, Any] = {}
        for _ in range(3):
            # The header was wrong (or silent), or packets hold something else than a frame each: a pass finds out what
            # the next must know.
            found = clip.correction()
            if found is None:
                break
            known |= found
            again = _read_clip(media, request, seek=clip.reader.sought is not None, with_audio=False, **known)
            again.waveform, again.facts = clip.waveform, clip.facts
            for track, before in zip(again.reader.tracks, clip.reader.tracks, strict=True):
                track.end = max(track.end, before.end)
            clip = again
        return clip.assembled()


def probe_media(source: Any, name: str | None = None) -> MediaInfo:
    """Read the header of a media file without decoding it.

    Args:
        source: As of `decode_media`.
        name: What messages call the source; default: its path or address.

    Raises:
        MediaError: The file cannot be opened.
    """
    if decoder_kind(source) and encoded_source(source) is None:
        return MediaInfo(**DecoderObject(source, name).facts())
    with MediaSource(source, name) as media, MediaReader(media, MediaRequest(missing="mask")) as reader:
        video = reader.video.stream if reader.video is not None else None
        audio = reader.audio.stream if reader.audio is not None else None
        return MediaInfo(
            duration=reader.known_duration,
            has_audio=audio is not None,
            has_video=video is not None,
            frame_rate=None if reader.video is None else reader.video.frame_rate,
            height=video.height if video is not None else 0,
            width=video.width if video is not None else 0,
            sampling_rate=audio.rate if audio is not None else 0,
            channels=audio.channels if audio is not None else 0,
            container=reader.container.format.name,
            source=media.name,
            audio_tracks=list_audio_tracks(reader.container),
            timecode=_timecode(reader.container),
        )


def _timecode(container: Any) -> str:
    """Time code of the first frame: cameras and MXF write it into the header, or into a track of its own."""
    tables = [container.metadata, *(stream.metadata for stream in container.streams)]
    return next((table["timecode"] for table in tables if table.get("timecode")), "")


def resample(waveform: torch.Tensor | np.ndarray, from_rate: int, to_rate: int) -> torch.Tensor:
    """Bring waveforms in memory to another sampling rate.

    Uses soxr where it is installed and FFmpeg's resampler (through PyAV) otherwise; both keep sample 0 at time 0.

    Args:
        waveform: Samples, shape `(..., num_samples)`.
        from_rate: Present rate, Hz.
        to_rate: Wanted rate, Hz.

    Returns:
        float32, shape `(..., ceil(num_samples * to_rate / from_rate))`.

    Raises:
        ValueError: A rate is not a positive whole number.
        ImportError: Neither soxr nor PyAV is installed.
    """
    for rate in (from_rate, to_rate):
        if not (rate > 0 and float(rate).is_integer()):
            raise ValueError(f"A sampling rate must be a positive whole number of Hz, got {rate}.")
    tensor = torch.as_tensor(waveform).to(torch.float32)
    from_rate, to_rate = int(from_rate), int(to_rate)
    if from_rate == to_rate or tensor.numel() == 0:
        return tensor
    length = -(-tensor.shape[-1] * to_rate // from_rate)
    rows = tensor.detach().cpu().reshape(-1, tensor.shape[-1]).numpy()
    result = torch.zeros(len(rows), length)
    for number, row in enumerate(rows):
        if soxr is not None:
            samples = soxr.resample(np.ascontiguousarray(row), from_rate, to_rate)
        else:
            require_av()
            samples = resample_with_ffmpeg(row, from_rate, to_rate)
        samples = samples[:length]
        result[number, : len(samples)] = torch.from_numpy(np.ascontiguousarray(samples))
    return result.reshape(*tensor.shape[:-1], length).to(tensor.device)


class Reading(ABC):
    """One pass over an open file: packets go to the decoders, and what they give to `add_frames` and `add_audio`.

    Args:
        reader: The open file.
        request: What is wanted of it.
        picker: Which frames are wanted; `None` without video.
        with_audio: Whether audio is decoded.
        skip: Whether frames that nobody asks for may be left undecoded.
        keep_times: As for `VideoDecoder`.

    Attributes:
        tracks: The tracks that are decoded.
    """

    def __init__(
        self,
        reader: MediaReader,
        request: MediaRequest,
        picker: FramePicker | IndexPicker | None,
        *,
        with_audio: bool = True,
        skip: bool = True,
        keep_times: bool = True,
    ) -> None:
        self.reader, self.request = reader, request
        self.tracks: list[Track] = []
        self.audio: WaveformBuilder | None = None
        if reader.audio is not None and with_audio:
            end = request.end + POST_ROLL_SECONDS
            self.audio = WaveformBuilder(request.sampling_rate, request.channel, request.begin, end)
            self.tracks.append(reader.audio)
        self.video: VideoDecoder | None = None
        if picker is not None:
            self.video = VideoDecoder(
                reader, picker, start=request.start, end=request.end, skip=skip, keep_times=keep_times
            )
            self.tracks.append(self.video.track)
        pixel_aspect = 1.0 if reader.video is None else reader.video.pixel_aspect
        self.convert = FrameConverter(reader.name, request.short_side, pixel_aspect)

    def take(self, packet: TimedPacket) -> None:
        """Decode a packet."""
        if packet.track not in self.tracks:
            return
        if self.video is not None and packet.track is self.video.track:
            self.add_frames(self.video.push(packet))
            return
        assert self.audio is not None
        for frame in self.reader.decode(packet):
            time = packet.track.time(frame.pts)
            if packet.track.first_time is None:
                packet.track.first_time = self.request.start if time is None else time
            self.add_audio(self.audio.push(frame, time))
        if packet.data is None:
            self.add_audio(self.audio.flush())
            heard_to = self.audio.begin + self.audio.num_samples / self.audio.rate
            if (
                heard_to > packet.track.end + 2 * DURATION_TOLERANCE
            ):  # packets that say too little of how long they last
                packet.track.end = heard_to

    @property
    def wanted(self) -> Track | None:
        """The track of which a packet is wanted next; `None` for whatever comes next in the file."""
        return None

    @property
    def has_started(self) -> bool:
        """Whether anything was given out, so that it is too late to begin anew."""
        return False

    @property
    def is_late(self) -> bool:
        """Whether a track that had begun before the span came only behind its start, or nothing could be decoded."""
        return any(
            track.is_over and track.num_demuxed > 0
            if track.first_time is None
            else track.first_time > max(self.request.start, track.start) + TIME_TOLERANCE
            for track in self.tracks
        )

    def lost_track(self, kind: str) -> MissingTrackError:
        """That a track gave nothing."""
        reason = "encrypted; decrypt it first" if self.reader.is_encrypted else "empty, damaged or ends earlier"
        return MissingTrackError(
            f"{self.reader.name}: nothing could be decoded from its {kind} track in this span; the track is {reason}.",
            kind,
            hint=Hint("missing", "mask", "go on without it"),
        )

    @abstractmethod
    def finish(self) -> None:
        """No more packets come."""

    @abstractmethod
    def add_frames(self, picks: Iterable[Pick]) -> None:
        """Keep frames that were picked."""

    @abstractmethod
    def add_audio(self, pieces: list[np.ndarray]) -> None:
        """Keep pieces of the waveform."""


AnyReading = TypeVar("AnyReading", bound=Reading)


def read_media(
    media: MediaSource,
    request: MediaRequest,
    start_reading: Callable[[MediaReader], AnyReading],
    *,
    seek: bool = True,
) -> Iterator[AnyReading]:
    """Read the wanted tracks of a file, packet by packet, from just before the span to its end.

    The file is read from its beginning where it cannot be told where the span starts in it: where seeking led behind
    the start of a track's part of the span.

    Args:
        media: The file.
        request: What is wanted of it.
        start_reading: Makes what takes the packets of an open file.
        seek: Whether to go to the start of the span instead of decoding up to it.

    Yields:
        The reading, after each packet and once more when it is finished.

    Raises:
        MediaError: The span is empty, or the file is damaged and `request.damaged` is `"error"`.
    """
    if not 0 <= request.start < request.end:
        raise MediaError(
            f"{media.name}: the segment {request.start:g} to {request.end:g} s is empty; give 0 <= start < end."
        )
    limit = request.end + POST_ROLL_SECONDS
    for seeks in (True, False) if seek and request.begin > 0 else (False,):
        with MediaReader(media, request) as reader:
            reading = start_reading(reader)
            if seeks:
                reader.seek(request.begin - POST_ROLL_SECONDS)
            is_late = False
            beyond: set[Track] = set()  # tracks of which the last packet lies behind the span
            while (packet := reader.next_packet(reading.wanted)) is not None:
                reading.take(packet)
                track, position = packet.track, packet.position
                if position is None or position <= limit:
                    beyond.discard(track)
                elif track not in beyond:
                    beyond.add(track)  # one packet alone may have a wrong time
                elif not track.is_over:
                    track.is_over = True
                    reading.take(TimedPacket(track))  # what its decoder holds
                is_late = seeks and not reading.has_started and reading.is_late
                if is_late:
                    break
                yield reading
                if track.is_over and all(track.is_over for track in reading.tracks):
                    break
            if is_late:
                continue
            reading.finish()
            if reading.audio is not None and reading.audio.is_one_sided:
                warn_of_silence(reader.name)
            yield reading
            if request.damaged == "error":
                reader.check_damage(request.end)
            return


class _Clip(Reading):
    """A whole span in memory.

    Args:
        reader: The open file.
        request: What is wanted of it.
        duration: Length of the file in seconds if known better than by the header.
        total_frames: Frames of the span if known better than by the header.
        with_audio: Whether audio is decoded.
        skip: Whether frames that nobody asks for may be left undecoded.
    """

    def __init__(
        self,
        reader: MediaReader,
        request: MediaRequest,
        *,
        duration: float | None = None,
        total_frames: int | None = None,
        with_audio: bool = True,
        skip: bool = True,
    ) -> None:
        if duration is None:
            # The whole is measured while it is read, but where a span lies must be known before.
            is_span = request.start > 0 or request.end < math.inf
            duration = reader.known_duration if is_span else reader.declared_duration
            if reader.is_broadcast and request.end < math.inf:
                duration = request.end  # it may never end
            duration = duration or reader.scan_duration()
            if request.start >= duration:  # headers err
                duration = max(duration, reader.scan_duration())
        if request.start >= duration:
            raise MediaError(
                f"{reader.name}: the segment starts at {request.start:g} s, the clip ends at {duration:g} s; "
                "choose an earlier start."
            )
        self.clip_end = min(request.end, duration)
        span = self.clip_end - request.start
        self.in_order: list[float] = []  # times, those of a moment's frames after each other
        self.asked: list[float] = []  # the same, ascending
        self.indices: list[int] | None = None  # numbers of frames, where they are what is asked for
        picker: FramePicker | IndexPicker | None = None
        if reader.video is not None and request.alignment == "reference" and request.frame_times is None:
            rate = reader.video.frame_rate or DEFAULT_FRAME_RATE
            whole = request.start == 0 and request.end == math.inf
            total = total_frames or (reader.video.stream.frames if whole else 0) or max(1, round(span * rate))
            self.indices = reference_indices(total, rate, request.num_frames)
            self.asked = self.in_order = [request.start + index / rate for index in self.indices]
            picker = IndexPicker(self.indices)
        elif reader.video is not None:
            if request.frame_times is not None:
                moments = [request.start + time for time in request.frame_times]
            else:
                moments = center_times(span, request.num_frames, request.start)
            self.in_order = [time for moment in moments for time in request.around(moment, self.clip_end)]
            self.asked = sorted(self.in_order)
            picker = FramePicker(TimeGrid(self.asked))
        super().__init__(reader, request, picker, with_audio=with_audio, skip=skip)
        self.images: np.ndarray | None = None  # (len(asked), height, width, 3), each frame once
        self.places: list[int] = []  # of the images, one for each asked frame
        self.shown: list[tuple[float, float]] = []  # when each asked frame appears, and the one that follows it
        self.pieces: list[np.ndarray] = []
        self.waveform: torch.Tensor | None = None
        self.facts: dict[str, Any] = {}
        self._last_frame: Any = None  # the one that the last image was made from

    def add_frames(self, picks: Iterable[Pick]) -> None:
        for pick in picks:
            place = self.places[-1] if self.places else -1
            if pick.frame is not self._last_frame:
                image = self.convert(pick.frame)
                if self.images is None:
                    # NumPy asks the kernel for huge pages where torch does not: a third of the time for 16 HD images.
                    self.images = np.empty((len(self.asked), *image.shape), dtype=np.uint8)
                place += 1
                self.images[place] = image
                self._last_frame = pick.frame
            self.places.append(place)
            self.shown.append((pick.time, pick.until))

    def add_audio(self, pieces: list[np.ndarray]) -> None:
        self.pieces += pieces
        assert self.audio is not None
        if pieces and self.audio.num_silent > LONGEST_PAUSE_SECONDS * self.audio.rate:
            raise MediaError(
                f"{self.reader.name}: its audio pauses for {self.audio.num_silent / self.audio.rate:.0f} s up to "
                f"{self.audio.begin + self.audio.num_samples / self.audio.rate:.0f} s, so long that its clock may be "
                "wrong; decode shorter spans of it (start, end)."
            )

    def finish(self) -> None:
        request, reader = self.request, self.reader
        if self.video is not None:
            self.add_frames(self.video.finish())
        if self.audio is not None and reader.audio is not None and reader.audio.first_time is not None:
            pieces = self.pieces + self.audio.flush()
            samples = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)
            first = round((request.start - request.begin) * request.sampling_rate)
            last = None
            if request.end < math.inf:
                last = first + round((request.end - request.start) * request.sampling_rate)
            self.waveform = checked_waveform(samples[first:last], reader.name)
        self.facts = {
            "frame_rate": None if reader.video is None else reader.video.frame_rate,
            "num_bad_packets": reader.num_bad_packets,
            "native_sampling_rate": reader.audio.stream.rate if reader.audio is not None else 0,
            "native_channels": reader.audio.stream.channels if reader.audio is not None else 0,
        }

    @property
    def has_video(self) -> bool:
        """Whether a frame of the span could be decoded."""
        return self.images is not None

    @property
    def true_end(self) -> float:
        """End of the span as it was demuxed."""
        return min(self.request.end, self.reader.measured_duration)

    def correction(self) -> dict[str, Any] | None:
        """What a second pass must know (arguments of this class), or `None` when this one was right."""
        if self.video is None or not self.has_video:
            return None
        measured = self.reader.measured_duration
        if not self.video.is_sure:
            return {"skip": False}
        if self.indices is not None:
            rate = self.video.track.frame_rate or DEFAULT_FRAME_RATE
            if reference_indices(self.video.num_frames, rate, self.request.num_frames) != self.indices:
                return {"total_frames": self.video.num_frames, "duration": measured}
            return None
        if self.request.frame_times is None and abs(self.true_end - self.clip_end) > DURATION_TOLERANCE:
            return {"duration": measured}
        if self.video.skipped:
            # Are the frames picked those that the packets' times call for?
            times = np.sort(np.asarray(self.video.packet_times))
            places = np.searchsorted(times, np.asarray(self.asked) + TIME_TOLERANCE, side="right") - 1
            due = times[np.maximum(places, 0)]
            if np.any(np.abs(due - [time for time, _ in self.shown]) >= TIME_TOLERANCE):
                return {"skip": False}
        return None

    def assembled(self) -> DecodedMedia:
        """The result on the clock of the span."""
        request, name = self.request, self.reader.name
        present = {"video": self.has_video, "audio": self.waveform is not None and self.waveform.numel() > 0}
        for kind, wanted in (("video", self.reader.video), ("audio", self.reader.audio)):
            if wanted is not None and not present[kind] and (request.missing == "error" or not any(present.values())):
                raise self.lost_track(kind) from self.reader.last_error
        is_right = abs(self.true_end - self.clip_end) <= DURATION_TOLERANCE
        media = DecodedMedia(
            frames=None,
            frame_times=None,
            waveform=self.waveform if present["audio"] else None,
            sampling_rate=request.sampling_rate,
            duration=(self.clip_end if is_right else self.true_end) - request.start,
            source=name,
            start=request.start,
            **self.facts,
        )
        if not present["video"]:
            return media
        asked = torch.tensor(self.asked, dtype=torch.float64) - request.start
        if self.indices is None:
            end = request.start + media.duration
            shown = [
                shown_time(time, min(until, end), ask) - request.start
                for (time, until), ask in zip(self.shown, self.asked, strict=True)
            ]
            times = torch.tensor(shown, dtype=torch.float64)
        else:
            times = asked.clone()  # the published clock: frame number / fps
        places = torch.tensor(self.places)
        if self.in_order != self.asked:  # back to the order in which they were asked
            order = torch.tensor(self.in_order, dtype=torch.float64).argsort(stable=True).argsort()
            times, asked, places = times[order], asked[order], places[order]
        assert self.images is not None
        images = torch.from_numpy(self.images[: self.places[-1] + 1])
        if request.frames_per_moment > 1:
            middle = slice(request.frames_per_moment // 2, None, request.frames_per_moment)
            media.moments = MomentFrames(images.permute(0, 3, 1, 2), places.unflatten(0, (-1, len(request.shifts))))
            times, asked, places = times[middle], asked[middle], places[middle]
        if request.frame_times is not None and asked.max() > media.duration + TRUNCATION_TOLERANCE:
            raise MediaError(
                f"{name}: a frame is asked for at {asked.max():.3f} s, the clip lasts {media.duration:.3f} s; "
                "ask for times inside it."
            )
        if not torch.equal(places, torch.arange(len(images))):
            images = images[places]
        media.frames, media.frame_times, media.asked_times = images.permute(0, 3, 1, 2), times, asked
        return media


def _read_clip(media: MediaSource, request: MediaRequest, *, seek: bool = True, **known: Any) -> _Clip:
    return deque(read_media(media, request, lambda reader: _Clip(reader, request, **known), seek=seek), maxlen=1).pop()


__all__ = ["SAMPLING_RATE", "DecodedMedia", "MediaInfo", "decode_media", "probe_media", "resample"]
