# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Decoded audio becomes a waveform: laid on the file's clock, one channel, resampled."""

import math
import warnings
from typing import Any

import numpy as np
import torch

from .errors_cavmae_sync import Hint, MediaError, MediaWarning

try:
    import av
    import av.audio.plane
    import av.audio.resampler
except ImportError:
    av = None  # type: ignore[assignment]

# Containers with millisecond clocks (Matroska, FLV) jitter by 1 ms; a larger gap in the audio is a real one.
GAP_TOLERANCE_SECONDS = 0.010
# A first channel that never reaches -60 dB of full scale is silent, and one that reaches -30 dB beside it is not.
SILENT_PEAK = 1e-3
LOUD_PEAK = 0.03
# Of each packed format: the type of its samples and the value of full scale.
_SAMPLES: dict[str, tuple[str, float]] = {
    "u8": ("u1", 128.0),
    "s16": ("i2", 2.0**15),
    "s32": ("i4", 2.0**31),
    "s64": ("i8", 2.0**63),
    "flt": ("f4", 1.0),
    "dbl": ("f8", 1.0),
}


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
        self.num_silent = 0  # how many of them fill gaps
        self._peaks = [0.0, 0.0]  # of the first channel, and of all others while that is silent
        self._resampler: _MonoResampler | None = None
        self._block: list[np.ndarray] = []
        self._block_samples = 0
        self._origin = begin  # time of the first sample at the present source rate
        self._position = 0  # source samples laid since then
        self._last_time: float | None = None  # of the last frame

    def push(self, frame: Any, time: float | None) -> list[np.ndarray]:
        """Take a decoded frame that starts at `time` (`None`: right after the last); return finished pieces."""
        finished: list[np.ndarray] = []
        if not frame.samples or not frame.sample_rate:
            return finished
        if frame.sample_rate != self.source_rate:
            finished = self.flush()
            self.source_rate = frame.sample_rate
            self._resampler = _MonoResampler(self.source_rate, self.rate)
            self._origin, self._position = self.begin + self.num_samples / self.rate, 0
        if time is not None and time > self.end:
            return finished
        samples = mono_samples(frame, self.channel)
        if self._peaks[0] < SILENT_PEAK and self.channel == "first" and frame.layout.nb_channels > 1:
            self._peaks[0] = max(self._peaks[0], float(np.abs(samples).max(initial=0.0)))
            if self._peaks[0] < SILENT_PEAK:
                others = _samples_of(frame, slice(1, None))
                self._peaks[1] = max(self._peaks[1], float(np.abs(others).max(initial=0.0)))
        if time is not None:
            # A clock that goes on by a part of what is heard meanwhile is none (AVI with a wrong rate, AAC without a
            # container whose rate falls: its packets are timed by the first rate).
            step = math.inf if self._last_time is None else (time - self._last_time) * self.source_rate
            is_creeping = 0 < step < 0.75 * frame.samples
            self._last_time = time
            gap = round((time - self._origin) * self.source_rate) - self._position
            if gap > 0 and (self._position == 0 or gap > GAP_TOLERANCE_SECONDS * self.source_rate):
                finished += self._add_silence(gap)
            elif (
                gap < 0
                and not is_creeping
                and (self._position == 0 or -gap > GAP_TOLERANCE_SECONDS * self.source_rate)
            ):
                samples = samples[-gap:]
        if len(samples):
            self._add(samples)
        if self._block_samples >= self.source_rate:  # a second at a time keeps the calls few
            finished += self._resample_block()
        return finished

    @property
    def is_one_sided(self) -> bool:
        """Whether the first channel, which is heard, was silent so far, and another one was not."""
        return self._peaks[0] < SILENT_PEAK and self._peaks[1] > LOUD_PEAK

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

    def _add_silence(self, num_samples: int) -> list[np.ndarray]:
        """Lay silence; the whole seconds in the middle of hours of it take neither time nor memory."""
        self.num_silent += round(num_samples / self.source_rate * self.rate)
        seconds = num_samples // self.source_rate - 2
        if seconds <= 0:
            self._add(np.zeros(num_samples, dtype=np.float32))
            return []
        # The resampler's filter, which is milliseconds long, holds nothing but silence after a second of it; and whole
        # seconds are whole numbers of samples at both rates.
        self._add(np.zeros(self.source_rate, dtype=np.float32))
        pieces = self._resample_block()
        pieces += self._finished(np.broadcast_to(np.float32(0), (seconds * self.rate,)))
        self._position += seconds * self.source_rate
        self._add(np.zeros(num_samples - (seconds + 1) * self.source_rate, dtype=np.float32))
        return pieces

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
    if channel == "first" and frame.format.name == "fltp":
        return _plane(frame, 0, "f4", frame.samples)
    if channel == "first":
        return _samples_of(frame, slice(1))[0].astype(np.float32)
    return _samples_of(frame, slice(None)).mean(axis=0).astype(np.float32)


def _samples_of(frame: Any, which: slice) -> np.ndarray:
    """Some channels of a decoded audio frame as float64 in [-1, 1], shape `(channels, num_samples)`."""
    sample_format = frame.format.packed.name
    dtype, scale = _SAMPLES[sample_format]
    count, num_channels = frame.samples, frame.layout.nb_channels
    if frame.format.is_planar:
        planes = [_plane(frame, index, dtype, count) for index in range(*which.indices(num_channels))]
        channels = np.stack(planes).astype(np.float64)
    else:
        packed = _plane(frame, 0, dtype, count * num_channels)
        channels = packed.reshape(count, num_channels).T[which].astype(np.float64)
    if sample_format == "u8":
        channels -= 128.0
    return channels / scale


def _plane(frame: Any, index: int, dtype: str, count: int) -> np.ndarray:
    """The samples of one plane of a frame.

    Not from PyAV's `frame.planes`, which looks for the end of a list that has none where there are eight planes or
    more, and reads from wherever what stands behind it points.
    """
    plane: Any = av.audio.plane.AudioPlane(frame, index)
    return np.frombuffer(plane, dtype=dtype, count=count)


def is_one_sided(channels: torch.Tensor) -> bool:
    """Whether the first of several channels `(channels, num_samples)` in [-1, 1] is silent, and another one is not."""
    if len(channels) < 2 or not channels.shape[1] or float(channels[0].abs().max()) >= SILENT_PEAK:
        return False
    return float(channels[1:].abs().max()) > LOUD_PEAK


def warn_of_silence(name: str) -> None:
    """Say that the first channel of something is silent, beside another that is not."""
    message = f"{name}: the first channel of its audio, which is the one heard, is silent, and another one is not."
    warnings.warn(MediaWarning(message, hint=Hint("channel", "mean", "hear all channels")), stacklevel=2)


def checked_waveform(samples: np.ndarray, name: str) -> torch.Tensor:
    """Decoded samples as a tensor in [-1, 1]; `MediaError` when they are no numbers."""
    if not np.isfinite(samples).all():
        raise MediaError(f"{name}: the audio holds values that are not numbers (NaN or infinite); encode it again.")
    # Lossy decoders overshoot full scale slightly; the published 16-bit files are clipped there.
    return torch.from_numpy(samples.clip(-1.0, 1.0))
