# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Feature extractor: turns waveforms into the log-mel windows that the audio tower reads.

Two steps. The *log-mel* is Kaldi's filter bank, computed once per clip. The *windows* are cut from it, one per video
frame, by one of the two rules of `alignment_cavmae_sync.py`:

- `alignment="time"`: window i is centred on the time of frame i, and whatever lies outside the clip is silence;
- `alignment="reference"`: the published rule, in which 1024 spectrogram frames stand for the clip whatever its length.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import PaddingStrategy, TensorType, logging

from .alignment_cavmae_sync import (
    FRAMES_PER_SECOND,
    center_times,
    check_alignment,
    clip_starts,
    reference_window_starts,
    reference_window_times,
    window_coverage,
    window_starts,
    window_times,
)
from .auto_map_cavmae_sync import SavedWithCode, complete_auto_map
from .batching_cavmae_sync import holds, pad_batch, stack_all, to_batch
from .media_cavmae_sync import decode_media, resample
from .media_source_cavmae_sync import decoder_kind
from .media_waveform_cavmae_sync import is_one_sided, warn_of_silence
from .values_cavmae_sync import Allowed, check_values, choice, flag, number, optional, whole

logger = logging.get_logger(__name__)

# Kaldi's defaults: 25 ms analysis window, pre-emphasis 0.97, first mel filter from 20 Hz.
WINDOW_SECONDS = 0.025
PREEMPHASIS = 0.97
LOWEST_HERTZ = 20.0
# Kaldi floors the mel energies at the float32 epsilon, so this is the log-mel of digital silence.
ENERGY_FLOOR = float(torch.finfo(torch.float32).eps)
SILENCE = math.log(ENERGY_FLOOR)
# The published pipeline pads the spectrogram, before normalisation, with plain zeros.
REFERENCE_PADDING = 0.0
# Spectrogram frames per block on the CPU: the working set (a few MB) then stays in the cache. Accelerators take more.
_CPU_BLOCK, _DEVICE_BLOCK = 1024, 1 << 17
# Float samples are meant to lie in [-1, 1]; far above that they are integers in disguise.
_LARGEST_SAMPLE = 64.0
_HIGHEST_RATE = 384_000
# Of every setting.
FEATURE_VALUES: dict[str, Allowed] = {
    "feature_size": whole(1, 1),
    "sampling_rate": Allowed(
        f"a multiple of {FRAMES_PER_SECOND} Hz from {2 * FRAMES_PER_SECOND} to {_HIGHEST_RATE}, since the hop is "
        f"1/{FRAMES_PER_SECOND} s (published: 16000)",
        lambda rate: whole(2 * FRAMES_PER_SECOND, _HIGHEST_RATE)(rate) and rate % FRAMES_PER_SECOND == 0,
    ),
    "padding_value": number(-1e6, 1e6),
    "padding_side": choice("left", "right"),
    "return_attention_mask": optional(flag()),
    "num_frames": whole(1, 1 << 16),
    "audio_length": whole(1, 1 << 16),
    "num_mel_bins": whole(1, 1 << 10),
    "alignment": choice("time", "reference"),
    "channel": choice("first", "mean"),
    "mean": number(-1e6, 1e6),
    "std": number(0, 1e6, above=True),
    "reference_length": whole(1, 1 << 20),
    "min_window_coverage": number(0, 1, below=True),
    "features": choice("log_mel", "waveform"),
    "clip_length": optional(whole(1, 1 << 16)),
}
_MEL_BINS, _MEAN, _STD = 128, -5.081, 4.4849
# Arguments that transformers hands to every feature extractor and that have no meaning for fixed-size windows.
IGNORED_ARGUMENTS = frozenset({"padding", "max_length", "truncation", "pad_to_multiple_of", "padding_side"})


class AudioWindows(NamedTuple):
    """Windows of one clip.

    Attributes:
        values: Normalised log-mel, shape `(num_frames, audio_length, num_mel_bins)`, or rows of `clip_length` where
            that is set.
        starts: Spectrogram frame at which each window starts (negative before the clip), length `num_frames`.
        coverage: Share of each window that lies inside the clip, in [0, 1], shape `(num_frames,)`.
        mask: True where the window is present, shape `(num_frames,)`.
        offsets: Where in its row of `values` each window starts, spectrogram frames, shape `(num_frames,)`: 0, unless
            the rows are longer clips (`clip_length`).
    """

    values: Tensor
    starts: list[int]
    coverage: Tensor
    mask: Tensor
    offsets: Tensor


class CavMaeSyncFeatureExtractor(SavedWithCode, SequenceFeatureExtractor):
    """Turns waveforms into `input_values` of shape `(batch, num_frames, audio_length, num_mel_bins)`.

    **Which windows count as absent.** With `alignment="time"` a window may reach beyond the clip, where it holds
    silence. `padding_mask` is False for windows that lie wholly outside the clip and True for those that lie partly
    inside; a positive `min_window_coverage` also drops windows of which no more than that share lies inside. The
    share itself is `window_coverage`, which `return_times=True` adds: 1.0 for windows wholly inside the clip, between
    0 and 1 for those partly in padding, 0.0 for those wholly in it. With `alignment="reference"` all windows of a
    clip with audio count as present, since the published model is given its zero padding unmasked.

    Args:
        feature_size: Channels of a waveform after loading; always 1.
        sampling_rate: Rate in Hz that the filter bank runs at; other rates are resampled to it.
        padding_value: As every feature extractor of transformers has it; nothing is padded with it.
        num_frames: Windows per clip where neither `num_frames` nor `frame_times` is given in the call.
        audio_length: Spectrogram frames of 10 ms per window (416 for CAV-MAE Sync, 1024 for plain CAV-MAE).
        num_mel_bins: Mel filters.
        alignment: `"time"` or `"reference"`, see the module's text.
        channel: `"first"` (as published) or `"mean"`: how a clip of several channels becomes one.
        mean: Mean of the log-mel over the training data.
        std: Its standard deviation. The log-mel is divided by it once, not twice as AST does.
        reference_length: Spectrogram frames that stand for the whole clip with `alignment="reference"`.
        min_window_coverage: With `alignment="time"`, a window is marked absent when the share of it inside the clip
            is not above this. 0.0 marks only windows that lie wholly outside.
        features: `"log_mel"`, or `"waveform"` for models with an audio encoder that hears samples: each row of 10 ms
            then holds the samples themselves, `num_mel_bins` is their number (left at its default it becomes that),
            and `mean` and `std` are 0 and 1 unless they are given.
        clip_length: For models that hear each window within a longer clip (`audio_context="clip"`): length of the
            rows of `input_values`, in place of `audio_length`. `window_offsets` `(batch, num_frames)` then says where
            in its row each window starts; see `clip_starts` for where clips lie.
        kwargs: Passed on to [`SequenceFeatureExtractor`].

    Raises:
        ValueError: A setting cannot work; the message says what would.
    """

    model_input_names = ["input_values", "padding_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        num_frames: int = 16,
        audio_length: int = 416,
        num_mel_bins: int = 128,
        alignment: str = "time",
        channel: str = "first",
        mean: float = -5.081,
        std: float = 4.4849,
        reference_length: int = 1024,
        min_window_coverage: float = 0.0,
        features: str = "log_mel",
        clip_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        given: dict[str, Any] = {
            "feature_size": feature_size, "sampling_rate": sampling_rate, "padding_value": padding_value,
            "num_frames": num_frames, "audio_length": audio_length, "num_mel_bins": num_mel_bins,
            "alignment": alignment, "channel": channel, "mean": mean, "std": std,
            "reference_length": reference_length, "min_window_coverage": min_window_coverage,
            "features": features, "clip_length": clip_length,
        }  # fmt: skip
        check_values(given | kwargs, FEATURE_VALUES)
        if features == "waveform":
            values = sampling_rate // FRAMES_PER_SECOND
            if num_mel_bins not in (_MEL_BINS, values):
                raise ValueError(
                    f"`num_mel_bins` is {num_mel_bins}; with features='waveform' a row of 10 ms has {values} samples "
                    "at this rate: use that, or leave it out."
                )
            num_mel_bins = values
            mean, std = (0.0 if mean == _MEAN else mean), (1.0 if std == _STD else std)
        # Written into the saved settings, and completed where those of an earlier version are loaded.
        self.auto_map = complete_auto_map(getattr(self, "auto_map", None))
        self.num_frames = num_frames
        self.audio_length = audio_length
        self.num_mel_bins = num_mel_bins
        self.alignment = alignment
        self.channel = channel
        self.mean = mean
        self.std = std
        self.reference_length = reference_length
        self.min_window_coverage = min_window_coverage
        self.features = features
        self.clip_length = clip_length
        if clip_length is not None and clip_length < audio_length:
            raise ValueError(
                f"`clip_length` is {clip_length}, shorter than the windows in it, `audio_length`={audio_length}; use "
                "at least that, or leave it out."
            )
        self._check_alignment()

        samples = self.window_samples
        # Kaldi's "hanning" is the symmetric window, hence not periodic. The names `window` and `mel_filters` are the
        # two that transformers leaves out of the JSON file.
        self.window = torch.hann_window(samples, periodic=False)
        self.mel_filters = _kaldi_mel_filters(num_mel_bins, self.fft_length, sampling_rate)

    @property
    def hop_samples(self) -> int:
        """Samples between two spectrogram frames."""
        return self.sampling_rate // FRAMES_PER_SECOND

    @property
    def window_samples(self) -> int:
        """Samples that one spectrogram frame sees (25 ms)."""
        return int(self.sampling_rate * WINDOW_SECONDS)

    @property
    def fft_length(self) -> int:
        """Length of the Fourier transform: the next power of two, as Kaldi rounds."""
        return 1 << (self.window_samples - 1).bit_length()

    @property
    def mel_frequencies(self) -> np.ndarray:
        """Where each mel filter is centred, Hz, `(num_mel_bins,)`: at equal steps of the mel scale from 20 Hz on."""
        low, high = 1127.0 * np.log1p(np.array([LOWEST_HERTZ, self.sampling_rate / 2]) / 700.0)
        centres: np.ndarray = 700.0 * np.expm1(np.linspace(low, high, self.num_mel_bins + 2)[1:-1] / 1127.0)
        return centres

    def spectrogram_length(self, num_samples: int) -> int:
        """Spectrogram frames of a waveform: whole windows only, at least one (short clips are padded with zeros)."""
        return 1 + max(0, num_samples - self.window_samples) // self.hop_samples

    def to_dict(self) -> dict[str, Any]:
        """Settings as they are saved; `return_attention_mask` of the base class means nothing here."""
        settings = super().to_dict()
        settings.pop("return_attention_mask", None)
        if self.features == "log_mel":  # as every saved folder without the setting has it
            settings.pop("features", None)
        if self.clip_length is None:  # likewise
            settings.pop("clip_length", None)
        return settings

    @property
    def row_length(self) -> int:
        """Spectrogram frames of a row of `input_values`: those of a window, or of the clip it is heard within."""
        return self.audio_length if self.clip_length is None else self.clip_length

    @property
    def context_seconds(self) -> float:
        """Seconds of audio that a row of `input_values` may hold before, and after, the time of its frame."""
        return (self.row_length - self.audio_length // 2) / FRAMES_PER_SECOND

    def window_levels(self, values: Tensor, mask: Tensor | None = None, seconds: float = 0.1) -> Tensor:
        """How loud the middle of each window is.

        Args:
            values: `input_values` `(..., audio_length, num_mel_bins)`.
            mask: True where a window is present, `(...)`.
            seconds: Length of the middle.

        Returns:
            float32 `(...)`: mean energy of the mel filters, or of the samples, in dB of an arbitrary unit; NaN where
            a window is absent, or is heard within a longer clip (`clip_length`), where it is not in the middle.
        """
        half = max(1, round(seconds * FRAMES_PER_SECOND / 2))
        centre = values.shape[-2] // 2
        raw = values[..., max(0, centre - half) : centre + half, :].float() * self.std + self.mean
        energy = raw.exp() if self.features == "log_mel" else raw.square()
        levels = 10 * energy.mean(dim=(-2, -1)).clamp(min=1e-20).log10()
        if self.clip_length is not None:
            levels = torch.full_like(levels, torch.nan)
        return levels if mask is None else levels.masked_fill(~mask.to(levels.device).bool(), torch.nan)

    @property
    def silence(self) -> float:
        """What digital silence is before normalisation: the lowest log-mel, or a sample of 0."""
        return SILENCE if self.features == "log_mel" else 0.0

    def __call__(
        self,
        raw_speech: Any = None,
        sampling_rate: int | None = None,
        frame_times: Any = None,
        num_frames: int | None = None,
        duration: Any = None,
        return_tensors: str | TensorType | None = None,
        return_times: bool = False,
        device: str | torch.device | None = None,
        audio: Any = None,
        return_attention_mask: bool | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Compute the windows of one clip or of a batch.

        Args:
            raw_speech: One clip or several. One clip: `(num_samples,)` as array, tensor or list of floats. Several: a
                list of clips, each `(num_samples,)` or `(channels, num_samples)` or None for a clip without audio
                (all its windows are marked absent); a 2-D array `(batch, num_samples)`; or a 3-D array
                `(batch, channels, num_samples)`. So an array of two rows is two clips: the two channels of one clip
                are given as `[array]`. Instead of an array also `{"array": ..., "sampling_rate": ...}` or a decoder
                of torchcodec, as `datasets` hands out audio. Floats lie in [-1, 1]; int16, int32 and uint8 samples are
                scaled.
            sampling_rate: Rate of the samples in Hz. Required, unless each clip brings its own; other rates than the
                extractor's are resampled.
            frame_times: Times of the video frames in seconds, `(num_frames,)` for one clip, one such row per clip for
                several. Default: the centres of `num_frames` equal parts of the clip.
            num_frames: Windows per clip, where `frame_times` is not given.
            duration: Length of the clip in seconds (one per clip) where the audio track is longer or shorter than the
                clip; used for the default frame times. Default: the waveform's length.
            return_tensors: `"pt"`, `"np"` or None (lists of arrays, one per clip).
            return_times: Also return `frame_times` `(batch, num_frames)`, `window_times` `(batch, num_frames, 2)`
                (start and end in seconds) and `window_coverage` `(batch, num_frames)`, the share of each window that
                lies inside the clip. Times that fill up clips with fewer frames are NaN.
            device: Where to compute; default: where the waveform is.
            audio: Another name for `raw_speech`.
            return_attention_mask: Also return `padding_mask` as `attention_mask` in whole numbers; the models take
                either.
            kwargs: Arguments that transformers hands to every extractor (`padding`, `truncation`, ...) are ignored.

        Returns:
            `input_values` `(batch, num_frames, audio_length, num_mel_bins)` float32 and `padding_mask`
            `(batch, num_frames)` bool, True where the window is present (see the class's text). Clips with fewer
            frames than the longest of the batch are filled with silent windows marked absent.

        Raises:
            ValueError: The input cannot be used; the message names the value and the remedy.
        """
        unknown = set(kwargs) - IGNORED_ARGUMENTS
        if unknown:
            raise TypeError(f"Unknown arguments for the feature extractor: {', '.join(sorted(unknown))}.")
        self._check_alignment()
        if (raw_speech is None) == (audio is None):
            raise ValueError("Pass the waveform as `raw_speech` or as `audio`, one of them.")
        clips, is_batch = split_waveforms(raw_speech if audio is None else audio)
        waveforms: list[Tensor | None] = []
        for position, clip in enumerate(clips):
            name = f"Clip {position}"
            if decoder_kind(clip):
                media = decode_media(
                    clip, sampling_rate=self.sampling_rate, channel=self.channel, want_video=False, name=name
                )
                clip = {"array": media.waveform, "sampling_rate": self.sampling_rate}
            samples, rate = samples_and_rate(clip, sampling_rate, name)
            waveform = None
            if samples is not None:
                waveform = load_waveform(samples, rate, to_rate=self.sampling_rate, channel=self.channel, name=name)
                waveform = waveform if device is None else waveform.to(device)
            waveforms.append(waveform)
        if frame_times is not None:
            times = _given_times(frame_times, len(clips), is_batch=is_batch, num_frames=num_frames)
        else:
            times = self._default_times(waveforms, duration, num_frames)
        spectrograms = iter(self.log_mel([waveform for waveform in waveforms if waveform is not None]))
        nothing = torch.empty((0, self.num_mel_bins), device=device)
        windows = []
        for waveform, clip_times in zip(waveforms, times, strict=True):
            part = self.windows(nothing if waveform is None else next(spectrograms), clip_times)
            windows.append(part._replace(mask=torch.zeros_like(part.mask)) if waveform is None else part)
        data: dict[str, list[Tensor]] = {
            "input_values": [clip.values for clip in windows],
            "padding_mask": [clip.mask for clip in windows],
        }
        if self.clip_length is not None:
            data["window_offsets"] = [clip.offsets for clip in windows]
        if return_attention_mask:
            data["attention_mask"] = [mask.long() for mask in data["padding_mask"]]
        if return_times:
            data["frame_times"] = [torch.tensor(row, dtype=torch.float64) for row in times]
            data["window_times"] = [
                torch.tensor(window_times(clip.starts, self.audio_length), dtype=torch.float64) for clip in windows
            ]
            data["window_coverage"] = [clip.coverage for clip in windows]
        if return_tensors is None:
            return BatchFeature({name: [value.cpu().numpy() for value in clips] for name, clips in data.items()})
        return to_batch(stack_all(data, self._fills), return_tensors)

    def pad(
        self,
        processed_features: Any,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """Collect clips into a batch, filling up those with fewer windows or frames, as Trainer's collator asks it.

        Args:
            processed_features: A list of what a call gave for each clip, or one mapping from names to lists over
                clips; what the processor gave is taken as well, and other entries, such as labels, are stacked.
            padding: Windows per clip: `True` or `"longest"`: as many as the longest clip has; `"max_length"`: as many
                as `max_length` says; `False`: all clips have as many.
            max_length: See `padding`.
            truncation: Whether clips with more windows than `max_length` lose their last ones.
            pad_to_multiple_of: Round the number of windows up to a multiple of this.
            return_attention_mask: As in a call.
            return_tensors: `"pt"`, `"np"`, or `None` for what the clips hold.

        Returns:
            The batch. Windows and frames that fill up a clip are False in `padding_mask` and `padding_mask_videos`.

        Raises:
            ValueError: The clips cannot be collected.
        """
        strategy = self._get_padding_strategies(padding=padding, max_length=max_length)
        batch = pad_batch(
            processed_features,
            self._fills,
            count=max_length if strategy == PaddingStrategy.MAX_LENGTH else None,
            most=max_length if truncation else None,
            multiple=pad_to_multiple_of or 1,
            equal=strategy == PaddingStrategy.DO_NOT_PAD,
        )
        if return_attention_mask and "padding_mask" in batch:
            batch["attention_mask"] = batch["padding_mask"].long()
        if return_tensors is None:
            return_tensors = holds(processed_features)
        return to_batch(batch, return_tensors)

    @property
    def _fills(self) -> dict[str, float | bool]:
        """What fills up each entry of a clip that has fewer windows than others."""
        nan = math.nan
        return {"input_values": self.outside_value, "frame_times": nan, "window_times": nan}

    def fetch_audio(self, audio_url_or_urls: Any, sampling_rate: int | None = None) -> Any:
        """Decode files of audio, or of video, as pipelines of transformers ask it of a processor's part.

        Args:
            audio_url_or_urls: A file, or a list in which files may be; anything else is handed back as it is.
            sampling_rate: Rate of the waveforms, Hz; default: the extractor's.

        Returns:
            In place of each file a mapping of `array` `(num_samples,)` and `sampling_rate`.

        Raises:
            MediaError: A file cannot be used.
        """
        if isinstance(audio_url_or_urls, str | os.PathLike):
            rate = self.sampling_rate if sampling_rate is None else sampling_rate
            media = decode_media(audio_url_or_urls, sampling_rate=rate, channel=self.channel, want_video=False)
            return {"array": media.waveform, "sampling_rate": rate}
        if isinstance(audio_url_or_urls, list | tuple):
            return [self.fetch_audio(one, sampling_rate=sampling_rate) for one in audio_url_or_urls]
        return audio_url_or_urls

    def log_mel(self, waveforms: Tensor | Sequence[Tensor]) -> Any:
        """Kaldi's log-mel filter bank, not normalised.

        The arithmetic is that of `compute-fbank-feats` with `--htk-compat=true --use-energy=false
        --window-type=hanning --dither=0 --snip-edges=true`: the waveform's mean is removed, then per frame the mean,
        pre-emphasis, window, power spectrum, mel sums and logarithm. Frames are independent of each other, so clips
        of different lengths share one pass without any padding.

        Args:
            waveforms: `(num_samples,)`, `(batch, num_samples)`, or a sequence of 1-D tensors of any lengths, float32
                at `self.sampling_rate`, on any device.

        Returns:
            `(frames, num_mel_bins)`, `(batch, frames, num_mel_bins)`, or a list of `(frames_i, num_mel_bins)`, like
            the input. `frames` is [`~CavMaeSyncFeatureExtractor.spectrogram_length`]. With `features="waveform"` the
            samples themselves, of the same times.
        """
        clips = [waveforms] if isinstance(waveforms, Tensor) and waveforms.ndim == 1 else list(waveforms)
        if not clips:
            return []
        if self.features == "waveform":
            rows = [self._sample_rows(clip.to(torch.float32)) for clip in clips]
            if isinstance(waveforms, Tensor):
                return rows[0] if waveforms.ndim == 1 else torch.stack(rows)
            return rows
        frames = []  # (frames_i, window_samples) of each clip, views of its waveform
        for clip in clips:
            clip = clip.to(torch.float32)
            clip = clip - clip.mean()
            if len(clip) < self.window_samples:
                clip = torch.nn.functional.pad(clip, (0, self.window_samples - len(clip)))
            frames.append(clip.unfold(0, self.window_samples, self.hop_samples))
        lengths = [len(clip) for clip in frames]
        device, block_size = clips[0].device, _CPU_BLOCK
        if device.type != "cpu":
            frames, block_size = [torch.cat(frames) if len(frames) > 1 else frames[0]], _DEVICE_BLOCK
        window, filters = self.window.to(device), self.mel_filters.to(device)
        log_mel = torch.empty((sum(lengths), self.num_mel_bins), dtype=torch.float32, device=device)
        position = 0
        for block in (block for clip in frames for block in clip.split(block_size)):
            torch.matmul(self._power_spectrum(block, window), filters, out=log_mel[position : position + len(block)])
            position += len(block)
        log_mel.clamp_(min=ENERGY_FLOOR).log_()
        if isinstance(waveforms, Tensor):
            return log_mel if waveforms.ndim == 1 else log_mel.view(len(clips), lengths[0], self.num_mel_bins)
        return list(log_mel.split(lengths))

    def window_starts(self, frame_times: Sequence[float]) -> list[int]:
        """Spectrogram frame at which the window of each video frame starts.

        Args:
            frame_times: Times of the video frames in seconds. With `alignment="reference"` only their number counts.

        Returns:
            One start per frame; with `alignment="time"` it may be negative or beyond the clip's end.
        """
        if self.alignment == "time":
            return window_starts(frame_times, self.audio_length)
        return reference_window_starts(len(frame_times), self.audio_length, self.reference_length)

    @property
    def outside_value(self) -> float:
        """Normalised log-mel of what lies outside a clip: silence, or the published zero padding."""
        padding = self.silence if self.alignment == "time" else REFERENCE_PADDING
        return (padding - self.mean) / self.std

    def windows(
        self,
        log_mel: Tensor,
        frame_times: Sequence[float],
        first_frame: int = 0,
        total_frames: int | None = None,
        chosen: Sequence[int] | None = None,
        origin: float = 0.0,
    ) -> AudioWindows:
        """Normalise a clip's log-mel and cut one window per video frame.

        Args:
            log_mel: `(frames, num_mel_bins)`, from [`~CavMaeSyncFeatureExtractor.log_mel`].
            frame_times: Times of the video frames in seconds from the clip's start.
            first_frame: Index in the clip of `log_mel[0]`, for callers that hold only a part of a long clip
                (`alignment="time"` only). Whatever is not held counts as silence in `values`.
            total_frames: Spectrogram frames of the whole clip, for coverage and mask; default: up to the end of
                `log_mel`.
            chosen: Indices of the frames whose windows are wanted; default: all. A window's place may depend on how
                many frames there are, so `frame_times` has all of them.
            origin: Where the clip starts in its file, seconds, where clips within it are counted from the file's
                start (`clip_length`).

        Returns:
            The windows, see [`AudioWindows`].
        """
        starts = self.window_starts(frame_times)
        if chosen is not None:
            starts = [starts[index] for index in chosen]
        total = first_frame + len(log_mel) if total_frames is None else total_frames
        padding = self.silence
        if self.alignment == "reference":
            if first_frame:
                raise ValueError(
                    f'`first_frame` is {first_frame}; `alignment="reference"` needs the whole clip. Use "time".'
                )
            padding = REFERENCE_PADDING
            log_mel, total = log_mel[: self.reference_length], min(total, self.reference_length)
        outside = log_mel.new_full((1, log_mel.shape[-1]), padding)
        # One extra row stands for everything outside the clip; normalising before cutting touches each frame once.
        rows = torch.cat((log_mel, outside)).sub_(self.mean).div_(self.std)
        held = starts
        if self.clip_length is not None:
            place = round(origin * FRAMES_PER_SECOND)
            held = clip_starts(starts, self.audio_length, self.clip_length, place)
        offsets = torch.tensor(starts, dtype=torch.long) - torch.tensor(held, dtype=torch.long)
        index = torch.tensor(held, dtype=torch.long).unsqueeze(1) + torch.arange(self.row_length)
        index -= first_frame
        index[(index < 0) | (index >= len(log_mel))] = len(log_mel)
        values = rows[index.to(rows.device)]  # (num_frames, row_length, num_mel_bins)
        coverage = torch.tensor(window_coverage(starts, self.audio_length, total), dtype=torch.float32)
        # The published model was trained on its own padding and sees every window, so nothing is absent there.
        mask = torch.ones(len(starts), dtype=torch.bool)
        if self.alignment == "time":
            mask = coverage > self.min_window_coverage
        return AudioWindows(values, starts, coverage, mask, offsets)

    def default_frame_times(self, duration: float, num_frames: int | None = None) -> list[float]:
        """Times of the frames of a clip, in seconds, where nobody gave them.

        With `alignment="time"` the centres of `num_frames` equal parts of `duration`; with `"reference"` the times
        that the published rule gives to its frames, a share i / n of the reference length.
        """
        count = self.num_frames if num_frames is None else num_frames
        if count < 1:
            raise ValueError(f"`num_frames` is {count}; it must be at least 1.")
        if self.alignment == "reference":
            return reference_window_times(count, self.reference_length)
        return center_times(duration, count)

    def _check_alignment(self) -> None:
        """Refuse an unknown alignment, or one that the window length does not allow."""
        check_alignment(self.alignment)
        if self.alignment == "reference" and self.audio_length > self.reference_length:
            raise ValueError(
                f"`audio_length` is {self.audio_length}, longer than `reference_length`={self.reference_length}; "
                f'use at most {self.reference_length}, or `alignment="time"`.'
            )

    def _sample_rows(self, waveform: Tensor) -> Tensor:
        """Samples of one clip in rows of 10 ms, as many as its spectrogram has frames."""
        missing = max(0, self.window_samples - len(waveform))
        waveform = torch.nn.functional.pad(waveform, (0, missing))
        return waveform.unfold(0, self.hop_samples, self.hop_samples)[: self.spectrogram_length(len(waveform))]

    def _power_spectrum(self, frames: Tensor, window: Tensor) -> Tensor:
        """Power spectrum of frames after mean removal, pre-emphasis and window, `(frames, fft_length / 2 + 1)`."""
        frames = frames - frames.mean(dim=1, keepdim=True)
        padded = frames.new_zeros((len(frames), self.fft_length))
        content = padded[:, : self.window_samples]
        # In two steps, so that the product is rounded as in the published pipeline (no fused multiply-add). The first
        # sample has no predecessor: Kaldi repeats it.
        torch.mul(frames[:, :-1], PREEMPHASIS, out=content[:, 1:])
        torch.mul(frames[:, :1], PREEMPHASIS, out=content[:, :1])
        torch.sub(frames, content, out=content)
        content *= window
        return torch.fft.rfft(padded).abs().square_()

    def _default_times(
        self, waveforms: Sequence[Tensor | None], duration: Any, num_frames: int | None
    ) -> list[list[float]]:
        """Times of every clip's frames, in seconds, where the call has none."""
        count = len(waveforms)
        durations = list(duration) if isinstance(duration, (list, tuple, np.ndarray, Tensor)) else [duration] * count
        if len(durations) != count:
            raise ValueError(f"`duration` has {len(durations)} values for {count} clips; give one per clip.")
        lengths = [0.0 if waveform is None else len(waveform) / self.sampling_rate for waveform in waveforms]
        return [
            self.default_frame_times(length if given is None else float(given), num_frames)
            for given, length in zip(durations, lengths, strict=True)
        ]


def _kaldi_mel_filters(num_mel_bins: int, fft_length: int, sampling_rate: int) -> Tensor:
    """Kaldi's triangular filters, `(fft_length / 2 + 1, num_mel_bins)` float32.

    Centres are equally spaced on the mel scale 1127 ln(1 + f / 700), from 20 Hz to half the sampling rate, and the
    sides are straight lines in mel, not in Hz. In float32 as the published pipeline computes them: rounding moves the
    weights at the triangles' feet, which shows in the logarithm of nearly silent bins.
    """

    def mel(hertz: float) -> float:
        return 1127.0 * math.log1p(hertz / 700.0)

    lowest = mel(LOWEST_HERTZ)
    spacing = (mel(sampling_rate / 2) - lowest) / (num_mel_bins + 1)
    left = lowest + torch.arange(num_mel_bins, dtype=torch.float32) * spacing
    centre = lowest + (torch.arange(num_mel_bins, dtype=torch.float32) + 1.0) * spacing
    right = lowest + (torch.arange(num_mel_bins, dtype=torch.float32) + 2.0) * spacing
    # The bin at half the sampling rate belongs to no filter.
    hertz = torch.arange(fft_length // 2, dtype=torch.float32) * (sampling_rate / fft_length)
    position = (1127.0 * torch.log(1.0 + hertz / 700.0)).unsqueeze(1)
    rising = (position - left) / (centre - left)
    falling = (right - position) / (right - centre)
    filters = torch.minimum(rising, falling).clamp_(min=0.0)
    return torch.nn.functional.pad(filters, (0, 0, 0, 1))


def check_channel(channel: Any) -> str:
    """The choice of a channel, `"first"` or `"mean"`; `ValueError` for anything else."""
    if channel not in ("first", "mean"):
        raise ValueError(f'`channel` is {channel!r}; it must be "first" or "mean".')
    return channel


def _given_times(frame_times: Any, count: int, *, is_batch: bool, num_frames: int | None) -> list[list[float]]:
    """Times of every clip's frames, in seconds, from the argument of the call."""
    rows = [row if isinstance(row, Tensor) else np.asarray(row, dtype=np.float64) for row in frame_times]
    if rows and rows[0].ndim == 0:
        rows = [np.asarray([float(value) for value in rows])]
        if is_batch and count > 1:
            raise ValueError(f"One row of `frame_times` for {count} clips; give one row of times per clip.")
    if len(rows) != count:
        raise ValueError(f"`frame_times` has {len(rows)} rows for {count} clips; give one row per clip.")
    times = [[float(value) for value in row] for row in rows]
    for position, row in enumerate(times):
        if not row or not all(math.isfinite(value) for value in row):
            raise ValueError(f"`frame_times` of clip {position} is empty or not finite: {row}.")
        if num_frames is not None and len(row) != num_frames:
            raise ValueError(
                f"`frame_times` of clip {position} has {len(row)} times but `num_frames` is {num_frames}; leave one "
                "of them out."
            )
    return times


def split_waveforms(audio: Any) -> tuple[list[Any], bool]:
    """Tell one clip from several; see [`CavMaeSyncFeatureExtractor`] for the forms.

    Returns:
        The clips and whether the input was a batch.

    Raises:
        ValueError: The input is neither a waveform nor a list of them.
    """
    for value in (audio, *(audio if isinstance(audio, (list, tuple)) else ())):
        if isinstance(value, (str, bytes)) or hasattr(value, "__fspath__"):
            raise ValueError(
                f"Got text ({str(value)[:80]!r}) where a waveform belongs. To read a file use the processor, "
                "`processor(videos=path)`, or decode it first."
            )
    if isinstance(audio, Mapping) or decoder_kind(audio):
        return [audio], False
    if isinstance(audio, (np.ndarray, Tensor)):
        shape = tuple(audio.shape)
        if len(shape) not in (1, 2, 3):
            raise ValueError(
                f"The waveform has shape {shape}; expected (num_samples,), (batch, num_samples) or (batch, channels, "
                "num_samples)."
            )
        if len(shape) == 1:
            return [audio], False
        if shape[-2] > shape[-1]:
            raise _channels_last("The waveform", shape[-2:], "clips" if len(shape) == 2 else "channels")
        if len(shape) == 2 and shape[0] == 2:
            logger.warning_once(
                "A waveform array of two rows is read as two clips; pass `[waveform]` if they are the two channels of "
                "one."
            )
        return list(audio), True
    if not isinstance(audio, (list, tuple)):
        raise ValueError(f"`audio` must be a waveform (array, tensor or list) or several, not {type(audio).__name__}.")
    if not audio:
        raise ValueError("The list of clips is empty; pass at least one waveform.")
    if all(isinstance(value, (int, float, np.number)) for value in audio):
        return [np.asarray(audio)], False
    # Rows of numbers read by a program that puts the channels last.
    if all(isinstance(clip, (list, tuple)) for clip in audio) and len(audio) > max(map(len, audio)):
        raise _channels_last("The waveform", (len(audio), max(map(len, audio))), "clips")
    return list(audio), True


def _channels_last(name: str, shape: Sequence[int], what: str) -> ValueError:
    """The error for arrays `(num_samples, channels)`, as soundfile reads them."""
    rows, samples = shape
    return ValueError(
        f"{name} has shape {(rows, samples)}, which reads as {rows} {what} of {samples} samples; put the channels "
        "first, `(channels, num_samples)`, and pass several channels of one clip as `[waveform]`."
    )


def samples_and_rate(clip: Any, sampling_rate: Any, name: str = "Clip 0") -> tuple[Any, int]:
    """Samples of one clip and their rate in Hz.

    Args:
        clip: A waveform, `None`, or `{"array": ..., "sampling_rate": ...}`.
        sampling_rate: Rate of waveforms that do not bring their own.
        name: Of the clip, for messages.

    Raises:
        ValueError: The rate is missing, impossible, or given twice and differently.
    """
    if clip is None:
        return None, 0
    if isinstance(clip, Mapping):
        if clip.get("array") is None:
            raise ValueError(
                f"{name} is a mapping with {sorted(map(str, clip))}; decoded audio has 'array' and 'sampling_rate'."
            )
        own = clip.get("sampling_rate")
        if own is not None and sampling_rate is not None and own != sampling_rate:
            raise ValueError(
                f"{name} brings the sampling rate {own} and the call says {sampling_rate}; leave `sampling_rate` out."
            )
        clip, sampling_rate = clip["array"], sampling_rate if own is None else own
    if sampling_rate is None:
        raise ValueError(
            "`sampling_rate` is missing. Pass the rate of the waveform in Hz, e.g. `sampling_rate=16000`; a wrong "
            "rate would shift every mel band without any error."
        )
    number = isinstance(sampling_rate, (int, float, np.number)) and not isinstance(sampling_rate, bool)
    if not number or sampling_rate <= 0 or sampling_rate != int(sampling_rate):
        raise ValueError(f"`sampling_rate` is {sampling_rate!r}; it must be a positive whole number of Hz.")
    return clip, int(sampling_rate)


def load_waveform(
    samples: Any, sampling_rate: int, *, to_rate: int, channel: str = "first", name: str = "Clip 0"
) -> Tensor:
    """Check the samples of one clip and bring them to one float32 channel at another rate.

    Args:
        samples: `(num_samples,)` or `(channels, num_samples)`: array, tensor or list. Floats lie in [-1, 1]; int16,
            int32 and uint8 samples are scaled.
        sampling_rate: Their rate, Hz.
        to_rate: Rate of the result, Hz.
        channel: `"first"` or `"mean"` of several channels.
        name: Of the clip, for messages.

    Returns:
        `(num_samples,)` float32 on the samples' device.

    Raises:
        ValueError: The samples cannot be used; the message names the clip and the remedy.
    """
    waveform = _as_float(samples, name)
    if waveform.ndim == 2:
        if waveform.shape[0] > waveform.shape[1]:
            raise _channels_last(name, waveform.shape, "channels")
        if channel == "first" and is_one_sided(waveform):
            warn_of_silence(name)
        waveform = waveform[0] if channel == "first" else waveform.mean(dim=0)
    if waveform.numel() == 0:
        raise ValueError(f"{name} is an empty waveform; pass None for a clip without audio.")
    # A NaN or an infinity survives the maximum, so one pass finds all three faults.
    largest = float(waveform.abs().max())
    if not math.isfinite(largest):
        raise ValueError(f"{name} contains NaN or infinite samples; repair or drop it.")
    if largest > _LARGEST_SAMPLE:
        raise ValueError(
            f"{name} has samples up to {largest:.0f} where [-1, 1] is expected; divide integer samples stored as "
            "floats by their full scale (32768 for 16 bit)."
        )
    if sampling_rate != to_rate:
        waveform = resample(waveform, sampling_rate, to_rate).to(waveform.device)
    return waveform


def _as_float(clip: Any, name: str) -> Tensor:
    """One clip as float32 tensor, `(num_samples,)` or `(channels, num_samples)`; integer samples are scaled."""
    if not isinstance(clip, Tensor):
        try:
            array = np.asarray(clip)
        except ValueError as error:
            raise ValueError(f"{name} is a ragged list; its channels must have equal lengths.") from error
        if array.dtype.kind not in "iuf":
            raise ValueError(
                f"{name} holds {array.dtype} values, not samples; pass floats in [-1, 1], int16 or int32."
            )
        # A copy where torch cannot share the memory: negative strides, read-only or byte-swapped arrays.
        native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
        clip = torch.from_numpy(np.ascontiguousarray(native))
    if clip.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {tuple(clip.shape)}; expected (num_samples,) or (channels, num_samples).")
    clip = clip.detach()
    if clip.is_floating_point():
        return clip.to(torch.float32)
    # Integer PCM at full scale, as in WAV files; 8 bit is unsigned around 128.
    if clip.dtype == torch.uint8:
        return (clip.to(torch.float32) - 128.0) / 128.0
    if clip.dtype in (torch.int16, torch.int32):
        return clip.to(torch.float32) / float(-torch.iinfo(clip.dtype).min)
    raise ValueError(
        f"{name} has dtype {clip.dtype}, whose full scale is unknown; pass floats in [-1, 1], int16 or int32."
    )


__all__ = [
    "IGNORED_ARGUMENTS",
    "SILENCE",
    "AudioWindows",
    "CavMaeSyncFeatureExtractor",
    "check_channel",
    "load_waveform",
    "samples_and_rate",
    "split_waveforms",
]
