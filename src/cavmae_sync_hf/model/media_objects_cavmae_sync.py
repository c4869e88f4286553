# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Decoder objects of torchcodec that do not say what they read, asked for frames and samples.

Those of a data set's `Video()` and `Audio()` columns know their file, which is read as any other. The others are asked
at the same times, on a clock whose zero is the start of their track.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .alignment_cavmae_sync import TIME_TOLERANCE, center_times, reference_indices, shown_time
from .batching_cavmae_sync import MomentFrames
from .errors_cavmae_sync import Hint, MediaError, MissingTrackError
from .media_request_cavmae_sync import MediaRequest
from .media_source_cavmae_sync import decoder_kind, describe_source
from .media_tracks_cavmae_sync import DEFAULT_FRAME_RATE, TRUNCATION_TOLERANCE
from .media_waveform_cavmae_sync import checked_waveform, is_one_sided, resample_with_ffmpeg, warn_of_silence


class DecoderObject:
    """A decoder object with one track.

    Args:
        given: A `torchcodec.decoders.VideoDecoder` or `AudioDecoder`, or what has their methods.
        name: What messages call it; default: its class.

    Attributes:
        kind: `"audio"` or `"video"`.
        name: For messages.
        duration: Length of its track, seconds; `None` where it does not say.
        frame_rate: Average frames per second, `None` for audio.
    """

    def __init__(self, given: Any, name: str | None = None) -> None:
        self.given, self.name = given, name or describe_source(given)
        self.kind = decoder_kind(given)
        self.about = getattr(given, "metadata", None)
        self._begin = self._fact("begin_stream_seconds") or 0.0
        end, length = self._fact("end_stream_seconds"), self._fact("duration_seconds")
        self.duration = length if end is None else end - self._begin
        self.frame_rate = self._fact("average_fps") if self.kind == "video" else None

    def _fact(self, name: str) -> Any:
        return getattr(self.about, name, None)

    def facts(self) -> dict[str, Any]:
        """What `MediaInfo` tells of it."""
        is_video = self.kind == "video"
        return {
            "duration": self.duration,
            "has_audio": not is_video,
            "has_video": is_video,
            "frame_rate": self.frame_rate,
            "height": (self._fact("height") or 0) if is_video else 0,
            "width": (self._fact("width") or 0) if is_video else 0,
            "sampling_rate": 0 if is_video else self._fact("sample_rate") or 0,
            "channels": 0 if is_video else self._fact("num_channels") or 0,
            "container": "",
            "source": self.name,
        }

    def check(self, request: MediaRequest) -> None:
        """Refuse a request for the track that it has not.

        Raises:
            MissingTrackError: It is wanted, and `missing="error"` or nothing else is.
            MediaError: The span does not lie in it.
        """
        other = "audio" if self.kind == "video" else "video"
        wants_other = request.want_audio if other == "audio" else request.want_video
        wants_own = request.want_video if other == "audio" else request.want_audio
        if wants_other and (request.missing == "error" or not wants_own):
            raise MissingTrackError(
                f"{self.name}: is a decoder of {self.kind} that does not say what file it reads; give the {other} "
                "separately, or the file itself.",
                other,
                hint=Hint("missing", "mask", "go on without it") if wants_own else (),
            )
        if not 0 <= request.start < min(request.end, self.duration or math.inf):
            raise MediaError(
                f"{self.name}: the segment {request.start:g} to {request.end:g} s does not lie in its "
                f"{self.duration or math.inf:g} s; give 0 <= start < end."
            )

    def frames(self, asked: Sequence[float], short_side: int | None = None) -> tuple[Tensor, list[float]]:
        """Frames on screen at times, and when they appeared.

        Args:
            asked: Seconds from the start of the track, in any order.
            short_side: Scale them to this shorter side, pixels.

        Returns:
            uint8 `(len(asked), 3, height, width)`, and a time for each (see `shown_time`).
        """
        first, last = self._begin, self._begin + (self.duration or math.inf)
        times = [min(max(first, first + time), last - TIME_TOLERANCE) for time in asked]
        batch = self._ask(self.given.get_frames_played_at, times)
        shown = [
            shown_time(float(begin) - first, float(begin + length) - first, time)
            for begin, length, time in zip(batch.pts_seconds, batch.duration_seconds, asked, strict=True)
        ]
        return self._images(batch.data, short_side), shown

    def numbered_frames(self, numbers: Sequence[int], short_side: int | None = None) -> Tensor:
        """Frames by their numbers, uint8 `(len(numbers), 3, height, width)`."""
        return self._images(self._ask(self.given.get_frames_at, list(numbers)).data, short_side)

    @property
    def num_frames(self) -> int:
        """How many frames it has."""
        count = self._fact("num_frames")
        return int(count) if count else max(1, round((self.duration or 0.0) * (self.frame_rate or DEFAULT_FRAME_RATE)))

    def waveform(self, rate: int, channel: str) -> Tensor:
        """Its samples as one channel at a rate in Hz, `(num_samples,)`, sample 0 at time 0 of the track."""
        found = self._ask(self.given.get_all_samples)
        data = found.data.detach().cpu().to(torch.float32)
        if channel == "first" and is_one_sided(data):
            warn_of_silence(self.name)
        samples = (data[0] if channel == "first" else data.mean(dim=0)).numpy()
        if int(found.sample_rate) != rate:
            samples = resample_with_ffmpeg(samples, int(found.sample_rate), rate)
        return checked_waveform(samples, self.name)

    def _ask(self, method: Any, *arguments: Any) -> Any:
        try:
            return method(*arguments)
        except (RuntimeError, ValueError, IndexError) as error:
            raise MediaError(f"{self.name}: the decoder gives nothing ({error}); give the file itself.") from error

    def _images(self, data: Tensor, short_side: int | None) -> Tensor:
        images = data.detach().cpu()
        if images.shape[1] not in (1, 3, 4):  # (frames, height, width, channels)
            images = images.permute(0, 3, 1, 2)
        if short_side is not None and min(images.shape[-2:]) != short_side:
            scale = short_side / min(images.shape[-2:])
            size = [max(1, round(side * scale)) for side in images.shape[-2:]]
            scaled = functional.interpolate(images.float(), size, mode="bicubic", antialias=True)
            images = scaled.round().clamp(0, 255).to(torch.uint8)
        return images


def decode_object(given: Any, request: MediaRequest, name: str | None = None) -> dict[str, Any]:
    """What `DecodedMedia` holds, of a decoder object."""
    reader = DecoderObject(given, name)
    reader.check(request)
    result: dict[str, Any] = {
        "frames": None, "frame_times": None, "waveform": None, "sampling_rate": request.sampling_rate,
        "source": reader.name, "start": request.start, "frame_rate": reader.frame_rate,
    }  # fmt: skip
    if reader.kind == "audio":
        samples = _cut(reader.waveform(request.sampling_rate, request.channel), request)
        about = reader.facts()
        return result | {
            "waveform": samples,
            "duration": len(samples) / request.sampling_rate,
            "native_sampling_rate": about["sampling_rate"],
            "native_channels": about["channels"],
        }
    span = min(request.end, reader.duration or 0.0) - request.start
    times: list[float]
    if request.alignment == "reference" and request.frame_times is None:
        rate = reader.frame_rate or DEFAULT_FRAME_RATE
        whole = request.start == 0 and request.end == math.inf
        numbers = reference_indices(
            reader.num_frames if whole else max(1, round(span * rate)), rate, request.num_frames
        )
        asked = times = [number / rate for number in numbers]
        first = 0 if whole else round(request.start * rate)
        images = reader.numbered_frames([first + number for number in numbers], request.short_side)
    else:
        asked = request.frame_times or center_times(span, request.num_frames)
        if max(asked) > span + TRUNCATION_TOLERANCE:
            raise MediaError(
                f"{reader.name}: a frame is asked for at {max(asked):.3f} s, the clip lasts {span:.3f} s; ask for "
                "times inside it."
            )
        moments, shown = _moments(reader, request, [request.start + time for time in asked])
        images, times = moments.middle, [time - request.start for time in shown]
        result["moments"] = moments if request.frames_per_moment > 1 else None
    return result | {
        "frames": images,
        "frame_times": torch.tensor(times, dtype=torch.float64),
        "asked_times": torch.tensor(asked, dtype=torch.float64),
        "duration": span,
    }


def _moments(reader: DecoderObject, request: MediaRequest, asked: list[float]) -> tuple[MomentFrames, list[float]]:
    """The frames of moments at times of the track, and when the middle ones appeared."""
    count = request.frames_per_moment
    end = min(request.end, reader.duration or math.inf)
    images, shown = reader.frames([each for time in asked for each in request.around(time, end)], request.short_side)
    return MomentFrames(images, torch.arange(len(images)).view(-1, count)), shown[count // 2 :: count]


def iter_object(
    reader: DecoderObject, request: MediaRequest, hop: float
) -> Iterator[tuple[list[float], list[float], MomentFrames]]:
    """Frames of a decoder of video at the centres of steps, `request.num_frames` at a time.

    Yields:
        Asked times, times at which the frames appeared, both from the start of the span, and the moments' frames.
    """
    span = min(request.end, reader.duration or 0.0) - request.start
    count = max(0, math.ceil((span - TIME_TOLERANCE) / hop - 0.5))
    if not count:
        raise MediaError(f"{reader.name}: no frame lies in this span; choose an earlier start or a smaller hop.")
    for first in range(0, count, request.num_frames):
        asked = [(place + 0.5) * hop for place in range(first, min(first + request.num_frames, count))]
        moments, shown = _moments(reader, request, [request.start + time for time in asked])
        yield asked, [time - request.start for time in shown], moments


def _cut(samples: Tensor, request: MediaRequest) -> Tensor:
    last = None if request.end == math.inf else round(request.end * request.sampling_rate)
    return samples[round(request.start * request.sampling_rate) : last]


__all__ = ["DecoderObject", "decode_object", "iter_object"]
