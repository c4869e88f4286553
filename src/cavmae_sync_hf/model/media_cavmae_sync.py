# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How does one video file become frames and a waveform on a common clock?

`decode_media` opens a file once, demuxes it once and decodes both tracks in that pass; only the frames that are
asked for are turned into RGB. `resample` brings a waveform in memory to another rate.
"""

import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .alignment_cavmae_sync import TIME_TOLERANCE, reference_indices, shown_time
from .errors_cavmae_sync import MediaError, MissingTrackError
from .media_pass_cavmae_sync import (
    DEFAULT_FRAME_RATE,
    DURATION_TOLERANCE,
    TRUNCATION_TOLERANCE,
    MediaRequest,
    PassResult,
    as_seconds,
    run_pass,
)
from .media_source_cavmae_sync import MediaSource, require_av
from .media_tracks_cavmae_sync import MediaReader, resample_with_ffmpeg

try:
    import soxr
except ImportError:
    soxr = None

SAMPLING_RATE = 16000


@dataclass
class DecodedMedia:
    """Both tracks of a clip, or of a segment of it, on one clock whose zero is the start of the clip or segment.

    Attributes:
        frames: `(num_frames, 3, height, width)` uint8 RGB, upright as shown; `None` without video.
        frame_times: `(num_frames,)` float64, when each frame appeared on screen in seconds (the asked time for a
            picture that stays for more than a second); `None` without video.
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


@dataclass
class MediaInfo:
    """What the header of a media file says.

    Attributes:
        duration: Seconds, `None` when the header does not say.
        has_audio: Whether there is an audio track.
        has_video: Whether there is a video track.
        frame_rate: Average frames per second, `None` without video or when unknown.
        height: Height of the stored picture (before rotation), 0 without video.
        width: Width of the stored picture, 0 without video.
        sampling_rate: Hz, 0 without audio.
        channels: Audio channels, 0 without audio.
        container: FFmpeg's name of the container.
        source: Name of the file.
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


def decode_media(
    source: Any,
    *,
    num_frames: int = 16,
    alignment: str = "time",
    frame_times: Sequence[float] | torch.Tensor | np.ndarray | None = None,
    sampling_rate: int = SAMPLING_RATE,
    channel: str = "first",
    start: float | None = None,
    end: float | None = None,
    want_audio: bool = True,
    want_video: bool = True,
    missing: str = "error",
    damaged: str = "error",
    short_side: int | None = None,
    threads: int = 0,
    name: str | None = None,
) -> DecodedMedia:
    """Decode frames and sound of one file in one pass.

    Args:
        source: Path, address, bytes, binary file object, or a mapping with `bytes` or `path`.
        num_frames: Number of frames to pick.
        alignment: `"time"`: frame i is on screen at `(i + 0.5) * duration / num_frames`, the centres of equal spans.
            `"reference"`: frame number `int(i * min(N, 10 * fps) / num_frames)` of the N frames, as the published
            preparation has it, at time number / fps.
        frame_times: Seconds from the start of the clip or segment; replaces `num_frames` and `alignment`.
        sampling_rate: Rate of the waveform, Hz.
        channel: `"first"` (as published) or `"mean"` of all channels, chosen before resampling.
        start: Start of the segment in the file, seconds.
        end: End of the segment in the file, seconds.
        want_audio: Whether audio is decoded.
        want_video: Whether video is decoded.
        missing: `"error"`, or `"mask"` to return `None` for a wanted track that is not there (both missing is an
            error).
        damaged: `"error"` refuses truncated and corrupt files, `"keep"` uses what can be decoded of them.
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
        _as_whole(num_frames), alignment, _as_times(frame_times), _as_whole(sampling_rate), channel,
        0.0 if start is None else as_seconds("start", start),
        math.inf if end in (None, math.inf) else as_seconds("end", end),
        want_audio, want_video, missing, damaged, short_side, threads,
    )  # fmt: skip
    with MediaSource(source, name) as media:
        request.check(media.name)
        result = run_pass(media, request)
        if result.late:
            result = run_pass(media, request, seek=False)
        repeat = _correction(result, request)
        if repeat is not None:
            # The header was wrong (or silent): what it promised is known now, so this pass is the last one.
            waveform, info = result.waveform, result.info
            result = run_pass(media, request, seek=not result.late, with_audio=False, **repeat)
            result.waveform, result.info = waveform, info
        return _assemble(result, request, media.name)


def decode_many(sources: Iterable[Any], workers: int | None = None, **kwargs: Any) -> list[DecodedMedia]:
    """Decode several files side by side; see `decode_media` for the arguments.

    Args:
        sources: The files.
        workers: Files decoded at a time; `None` for as many as there are cores.

    Returns:
        One `DecodedMedia` per source, in their order.

    Raises:
        MediaError: As `decode_media`, for the first file in order that cannot be used.
    """
    sources = list(sources)
    workers = min(len(sources), workers or os.cpu_count() or 1)
    if workers <= 1:
        return [decode_media(source, **kwargs) for source in sources]
    # One decoder thread each: with a file per core, more would only get in each other's way.
    kwargs.setdefault("threads", 1)
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda source: decode_media(source, **kwargs), sources))


def probe_media(source: Any, name: str | None = None) -> MediaInfo:
    """Read the header of a media file without decoding it.

    Args:
        source: As of `decode_media`.
        name: What messages call the source; default: its path or address.

    Raises:
        MediaError: The file cannot be opened.
    """
    with MediaSource(source, name) as media, MediaReader(media, True, True, "mask") as reader:
        video, audio = reader.video, reader.audio
        return MediaInfo(
            duration=reader.declared_duration,
            has_audio=audio is not None,
            has_video=video is not None,
            frame_rate=reader.frame_rate,
            height=video.height if video is not None else 0,
            width=video.width if video is not None else 0,
            sampling_rate=audio.rate if audio is not None else 0,
            channels=audio.channels if audio is not None else 0,
            container=reader.container.format.name,
            source=media.name,
        )


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


def _as_whole(value: Any) -> Any:
    """Whole numbers of other types as `int`, anything else as it is, to be refused by name."""
    return int(value) if isinstance(value, float | np.number) and float(value).is_integer() else value


def _as_times(times: Any) -> list[float] | None:
    if times is None:
        return None
    try:
        array = torch.as_tensor(times, dtype=torch.float64).flatten()
    except (TypeError, ValueError):
        array = torch.empty(0)
    if array.numel() == 0 or not bool(torch.isfinite(array).all()) or bool((array < 0).any()):
        raise MediaError(
            f"frame_times must be finite seconds from the start of the clip, at least one; got {times!r}."
        )
    return array.tolist()


def _correction(result: PassResult, request: MediaRequest) -> dict[str, Any] | None:
    """What a second pass must know, or `None` when the first one was right."""
    if not result.has_video:
        return None
    true_end = min(request.end, result.measured_end)
    if result.indices is not None:
        rate = result.info["frame_rate"] or DEFAULT_FRAME_RATE
        if reference_indices(result.num_frames, rate, request.num_frames) != result.indices:
            return {"total_frames": result.num_frames, "duration": result.measured_end}
        return None
    if request.frame_times is None and abs(true_end - result.clip_end) > DURATION_TOLERANCE:
        return {"duration": result.measured_end}
    if result.skipped and not _agrees(result):
        return {"skip": False}
    return None


def _agrees(result: PassResult) -> bool:
    """Whether the frames picked are those that the packets' times call for."""
    times = np.sort(np.asarray(result.packet_times))
    places = np.searchsorted(times, np.asarray(result.asked) + TIME_TOLERANCE, side="right") - 1
    due = times[np.maximum(places, 0)]
    return bool(np.all(np.abs(due - [time for _, time in result.picked]) < TIME_TOLERANCE))


def _assemble(result: PassResult, request: MediaRequest, name: str) -> DecodedMedia:
    video_present, audio_present = result.has_video, result.waveform is not None and result.waveform.numel() > 0
    for kind, wanted, present in (
        ("video", request.want_video, video_present),
        ("audio", request.want_audio, audio_present),
    ):
        if wanted and not present and (request.missing == "error" or not (video_present or audio_present)):
            raise MissingTrackError(
                f"{name}: nothing could be decoded from its {kind} track in this span; the track is empty, damaged or "
                "ends earlier. Pass missing='mask' to go on without it.",
                kind,
            )
    true_end = min(request.end, result.measured_end)
    duration = (result.clip_end if abs(true_end - result.clip_end) <= DURATION_TOLERANCE else true_end) - request.start
    media = DecodedMedia(
        None, None, result.waveform if audio_present else None, request.sampling_rate, duration, name,
        start=request.start, **result.info,
    )  # fmt: skip
    if video_present:
        _assemble_frames(media, result, request)
    return media


def _assemble_frames(media: DecodedMedia, result: PassResult, request: MediaRequest) -> None:
    asked = torch.tensor(result.asked, dtype=torch.float64) - request.start
    if request.frame_times is not None and asked.max() > media.duration + TRUNCATION_TOLERANCE:
        raise MediaError(
            f"{media.source}: a frame is asked for at {asked.max():.3f} s, the clip lasts {media.duration:.3f} s; "
            "ask for times inside it."
        )
    if result.indices is None:
        shown = [
            shown_time(time, min(until, request.start + media.duration), ask) - request.start
            for (_, time), until, ask in zip(result.picked, result.shown_until, result.asked, strict=True)
        ]
        times = torch.tensor(shown, dtype=torch.float64)
    else:
        times = asked.clone()  # the published clock: frame number / fps
    places = [picture for picture, _ in result.picked]
    if request.frame_times is not None:  # back to the order in which they were asked
        order = torch.tensor(request.frame_times, dtype=torch.float64).argsort(stable=True).argsort()
        times, asked = times[order], asked[order]
        places = [places[index] for index in order.tolist()]
    assert result.pictures is not None
    media.frames, media.frame_times, media.asked_times = result.pictures.tensor(places), times, asked


__all__ = ["DecodedMedia", "MediaInfo", "SAMPLING_RATE", "decode_many", "decode_media", "probe_media", "resample"]
