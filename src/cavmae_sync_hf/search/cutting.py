# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Hits of a search as files of their own: copied as they are stored, or decoded and encoded anew.

A copy costs nothing and loses nothing, but begins at a key frame, which may lie seconds before the hit. What cannot be
copied, since the container lacks times or cannot be written, is encoded.
"""

import contextlib
import heapq
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..data.failures import file_error
from ..files import StrPath, check_free, file_stem, whole_file
from ..model.errors_cavmae_sync import AlreadyExistsError, CavMaeSyncError, DiskError, MediaError, QueryError
from ..model.media_cavmae_sync import MediaInfo, decode_media, probe_media
from ..model.media_request_cavmae_sync import PRE_ROLL_SECONDS, MediaRequest
from ..model.media_source_cavmae_sync import MediaSource, require_av
from ..model.media_stream_cavmae_sync import iter_media
from ..model.media_tracks_cavmae_sync import DEFAULT_FRAME_RATE, MediaReader, TimedPacket
from .searching import Hit

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

# Containers that are written as they are read; of others the packets go into Matroska, which takes all codecs.
_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts", ".m2ts", ".mts", ".mxf", ".3gp"})
_AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus"})
_ANY_SUFFIX = ".mkv"
_LONGEST_NAME = 60
_SAME_TIME = 1e-4
# How far before a hit a key frame is looked for: seeking in transport streams does not lead to one.
_SECONDS_BACK = (0.0, 2.0, 12.0)
# Packets that wait for one that says when it is decoded.
_MOST_WAITING = 64
_FRAMES_AT_A_TIME = 8
# Visually without loss, and small enough.
ENCODER = {"crf": "18", "preset": "veryfast"}
_AUDIO_BITS_PER_CHANNEL = 96_000
# What AAC can carry.
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_MOST_CHANNELS = 2
# Pauses of the audio that are shorter are the rounding of its clock.
_LEAST_PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class CutClip:
    """A file that was cut out of another.

    Attributes:
        path: The new file.
        start: Where it starts in the file that it is from, seconds.
        end: Where it ends there.
        is_copy: Whether it holds what was stored, and so begins at a key frame; else it was encoded anew.
    """

    path: Path
    start: float
    end: float
    is_copy: bool

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return vars(self) | {"path": os.fspath(self.path)}


def cut_hits(
    hits: Sequence[Hit],
    folder: StrPath,
    *,
    reencode: bool = False,
    padding: float = 0.0,
    audio_track: int | str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    on_error: Callable[[str, CavMaeSyncError], None] | None = None,
) -> list[CutClip | None]:
    """Cut hits out of their files, each with its video and one audio track.

    Args:
        hits: The hits, such as a `SearchResult`.
        folder: Folder of the new files, which is made; they are named after file and time.
        reencode: Encode each anew (H.264 and AAC in .mp4, audio alone in .wav), so that it begins and ends where the
            hit does. Otherwise what is stored is copied, from the key frame before.
        padding: Seconds more on either side, as far as the file goes.
        audio_track: Which of several audio tracks, by number or language; default: the one that a player plays.
        overwrite: Whether earlier files are replaced.
        progress: Called with the clips done and in all.
        on_error: Called with the file and the error of a hit that cannot be cut; the others are cut all the same.

    Returns:
        For each hit its clip, `None` for those that cannot be cut.

    Raises:
        AlreadyExistsError: There is such a file, and `overwrite` is off; nothing was cut then.
        DiskError: A clip cannot be written.
        MediaError: A file cannot be cut, where there is no `on_error`.
    """
    require_av()
    if not (math.isfinite(padding) and padding >= 0):
        raise QueryError(f"padding is {padding!r}; it must be a number of seconds of at least 0.")
    taken: set[str] = set()
    stems = [_stem(hit, taken) for hit in hits]
    targets = [(Path(folder) / stem, _suffix(hit.path)) for hit, stem in zip(hits, stems, strict=True)]
    for stem, suffix in targets:
        check_free(*{f"{stem}{end}" for end in (suffix, ".mp4", ".wav")}, overwrite=overwrite)
    cuts: list[CutClip | None] = []
    for number, (hit, (stem, suffix)) in enumerate(zip(hits, targets, strict=True)):
        span = max(0.0, hit.start - padding), hit.end + padding
        try:
            cuts.append(_cut(hit.path, stem, suffix, span, reencode, audio_track, overwrite))
        except (AlreadyExistsError, DiskError):
            raise
        except Exception as error:
            known = file_error(error, hit.path)
            if on_error is None:
                raise known from error
            on_error(hit.path, known)
            cuts.append(None)
        if progress is not None:
            progress(number + 1, len(hits))
    return cuts


def _stem(hit: Hit, taken: set[str]) -> str:
    """A file name of a hit without suffix: its file's, and when it starts."""
    minutes, seconds = divmod(hit.start, 60)
    hours, minutes = divmod(int(minutes), 60)
    clock = f"{hours:02d}-{minutes:02d}-{seconds:05.2f}"
    return file_stem(f"{file_stem(hit.path, set())[:_LONGEST_NAME]}_{clock}.clip", taken)


def _suffix(path: str) -> str:
    suffix = os.path.splitext(path.split("?")[0] if "://" in path else path)[1].lower()
    return suffix if suffix in _SUFFIXES | _AUDIO_SUFFIXES else _ANY_SUFFIX


class _NoCopyError(Exception):
    """Packets cannot be copied."""


def _cut(
    source: str,
    stem: Path,
    suffix: str,
    span: tuple[float, float],
    reencode: bool,
    audio_track: int | str | None,
    overwrite: bool,
) -> CutClip:
    info = probe_media(source)
    start, end = span[0], min(span[1], span[1] if info.duration is None else info.duration)
    if end <= start:
        raise MediaError(f"{source}: lasts {info.duration:.2f} s, and the clip would start at {start:.2f} s.")
    request = MediaRequest(start=start, end=end, missing="mask", damaged="keep", audio_track=audio_track)
    if not reencode:
        path = Path(f"{stem}{suffix}")
        try:
            with whole_file(path, overwrite=overwrite) as partial:
                begin = _copy(source, partial, request)
            return CutClip(path, begin, end, is_copy=True)
        except (av.error.FFmpegError, _NoCopyError):
            pass  # encoded instead
    path = Path(f"{stem}.mp4" if info.has_video else f"{stem}.wav")
    with whole_file(path, overwrite=overwrite) as partial:
        _encode(source, partial, request, info)
    return CutClip(path, start, end, is_copy=False)


def _copy(source: str, partial: Path, request: MediaRequest) -> float:
    """Copy the packets of a span; gives where the copy begins, seconds."""
    with MediaSource(source) as media:
        begin, sought = _copy_start(media, request)
        with MediaReader(media, request) as reader, av.open(os.fspath(partial), "w") as file:
            reader.seek(sought)
            tracks = [track for track in (reader.video, reader.audio) if track is not None]
            try:
                streams = {track: file.add_stream_from_template(track.stream) for track in tracks}
            except ValueError as error:  # PyAV's word for a codec that the container cannot hold
                raise _NoCopyError from error
            shifts = {track: round((begin + reader.origin) / track.stream.time_base) for track in tracks}
            for packet in with_decode_times(packets_of_span(reader, begin, request.end)):
                data, shift = packet.data, shifts[packet.track]
                data.pts, data.dts = data.pts - shift, data.dts - shift
                data.stream = streams[packet.track]
                file.mux(data)
    _check_copy(partial, request.end - begin)
    return begin


def _copy_start(media: MediaSource, request: MediaRequest) -> tuple[float, float]:
    """The last time at or before the start of a span from which a copy can be decoded, and where to seek for it."""
    for back in _SECONDS_BACK:
        begin, sought = None, max(0.0, request.start - back)
        with MediaReader(media, request) as reader:
            reader.seek(sought)
            while (packet := reader.next_packet()) is not None:
                if packet.track is not (reader.video or reader.audio):
                    continue
                if packet.data is None or _order(packet) > request.start + _SAME_TIME:
                    break
                time = packet.time
                is_start = packet.data.is_keyframe and not packet.data.is_discard
                if is_start and time is not None and time <= request.start + _SAME_TIME:
                    begin = time
        if begin is not None:
            return begin, sought
        if sought == 0.0:
            break
    raise _NoCopyError


def _order(packet: TimedPacket) -> float:
    """When a packet is decoded, as far as it is known."""
    return next((time for time in (packet.decode_time, packet.time) if time is not None), 0.0)


def packets_of_span(reader: MediaReader, begin: float, end: float) -> Iterator[TimedPacket]:
    """The packets of what is shown or heard from `begin`, where a key frame is, to `end`."""
    tracks = {track for track in (reader.video, reader.audio) if track is not None}
    has_begun = reader.video is None
    while tracks and (packet := reader.next_packet()) is not None:
        if packet.track not in tracks:
            continue
        if packet.data is None or _order(packet) >= end - _SAME_TIME:
            tracks.discard(packet.track)
            continue
        if packet.time is None:
            raise _NoCopyError
        # What is shown before the key frame is built from frames that are left out.
        if packet.time < begin - _SAME_TIME or packet.data.is_discard:
            continue
        has_begun |= packet.track is reader.video
        if has_begun:
            yield packet


def with_decode_times(packets: Iterator[TimedPacket]) -> Iterator[TimedPacket]:
    """Packets that all say when they are decoded: Matroska does not, for the first ones of video."""
    waiting: list[TimedPacket] = []
    for packet in packets:
        waiting.append(packet)
        if packet.track.kind == "video" and packet.data.dts is not None or len(waiting) > _MOST_WAITING:
            yield from _counted_back(waiting)
            waiting = []
    yield from _counted_back(waiting)


def _counted_back(packets: list[TimedPacket]) -> list[TimedPacket]:
    following: int | None = None
    for packet in reversed(packets):
        if packet.data.dts is None:
            step = max(1, round(packet.track.frame_seconds / packet.track.stream.time_base))
            packet.data.dts = packet.data.pts if following is None else following - step
        if packet.track.kind == "video":
            following = min(packet.data.dts, packet.data.pts)
    return packets


def _check_copy(path: Path, seconds: float) -> None:
    """Refuse a copy that would not play: containers take packets that nobody can decode."""
    try:
        decode_media(path, num_frames=1, end=min(1.0, seconds), missing="mask")
    except MediaError as error:
        raise _NoCopyError from error


def _encode(source: str, partial: Path, request: MediaRequest, info: MediaInfo) -> None:
    """Decode a span and encode it anew."""
    with contextlib.ExitStack() as stack:
        options = {"movflags": "+faststart"} if info.has_video else {}
        file = stack.enter_context(av.open(os.fspath(partial), "w", options=options))
        packets: list[Iterator[Any]] = []
        if info.has_video:
            rate = Fraction(info.frame_rate or DEFAULT_FRAME_RATE).limit_denominator(1001)
            stream = file.add_stream("libx264", rate=rate, options=ENCODER)
            packets.append(video_packets(stream, frames_of_span(source, request, rate), rate))
        if info.has_audio:
            wanted = replace(request, want_video=False, missing="error")
            reader = stack.enter_context(MediaReader(stack.enter_context(MediaSource(source)), wanted))
            assert reader.audio is not None  # it is wanted
            heard = reader.audio.stream
            stream = _audio_stream(file, heard.rate, heard.channels, info.has_video)
            packets.append(audio_packets(stream, track_samples(reader, request, stream)))
        for packet in heapq.merge(*packets, key=lambda packet: packet.dts * packet.time_base):
            file.mux(packet)


def frames_of_span(source: str, request: MediaRequest, rate: Fraction) -> Iterator[np.ndarray]:
    """Frame after frame of a span, `(height, width, 3)` uint8: number k is on screen in the middle of its time."""
    chunks = iter_media(
        source, hop=float(1 / rate), num_frames=_FRAMES_AT_A_TIME, context=0.0, start=request.start, end=request.end,
        want_audio=False, damaged="keep",
    )  # fmt: skip
    for chunk in chunks:
        assert chunk.frames is not None  # want_video makes its absence an error
        yield from chunk.frames.permute(0, 2, 3, 1).numpy()


def video_packets(stream: Any, frames: Iterator[np.ndarray], rate: Fraction) -> Iterator[Any]:
    for number, image in enumerate(frames):
        height, width = (side // 2 * 2 for side in image.shape[:2])  # H.264 as all players know it has even sides
        if not number:
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
        frame.pts, frame.time_base = number, 1 / rate
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _audio_stream(file: Any, rate: int, channels: int, with_video: bool) -> Any:
    """Audio of as many channels and of the rate of the file's, as far as its codec takes them."""
    channels = min(channels, _MOST_CHANNELS)
    layout = "mono" if channels == 1 else "stereo"
    if not with_video:
        return file.add_stream("pcm_s16le", rate=rate, layout=layout)
    rate = next((known for known in _AAC_RATES if known <= rate), _AAC_RATES[-1])
    stream = file.add_stream("aac", rate=rate, layout=layout)
    stream.bit_rate = _AUDIO_BITS_PER_CHANNEL * channels
    return stream


def track_samples(reader: MediaReader, request: MediaRequest, stream: Any) -> Iterator[np.ndarray]:
    """The samples of a span without gaps, `(channels, samples)` float32, as a stream wants them."""
    rate, layout = stream.rate, stream.layout
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    total, written = round((request.end - request.start) * rate), 0
    position: int | None = None  # of the next sample, from the start of the span
    reader.seek(max(0.0, request.start - PRE_ROLL_SECONDS))
    while written < total and (packet := reader.next_packet()) is not None:
        for frame in reader.decode(packet):
            time = packet.track.time(frame.pts)
            at = position or 0 if time is None else round((time - request.start) * rate)
            if position is None or at - position > _LEAST_PAUSE_SECONDS * rate:
                position = at
            frame.pts = None
            for piece in resampler.resample(frame):
                samples = piece.to_ndarray()
                if position > written:
                    silence = min(position, total) - written
                    yield np.zeros((len(samples), silence), np.float32)
                    written += silence
                kept = samples[:, max(0, written - position) : max(0, total - position)]
                position += samples.shape[1]
                if kept.shape[1]:
                    yield kept
                    written += kept.shape[1]


def audio_packets(stream: Any, pieces: Iterator[np.ndarray]) -> Iterator[Any]:
    written = 0
    for samples in pieces:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=stream.layout)
        frame.sample_rate, frame.pts, frame.time_base = stream.rate, written, Fraction(1, stream.rate)
        written += samples.shape[1]
        yield from stream.encode(frame)
    yield from stream.encode(None)
