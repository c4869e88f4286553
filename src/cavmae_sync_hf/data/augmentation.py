# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Variation of training samples: crops, flips, colours; masks, noise and shifts of windows; pitch, speed; mixed clips.

Everything is off by default and switched on by a field of [`AugmentationOptions`]; `AUGMENTATION_PRESETS` holds what
the published recipes use. Every random choice comes from a generator of its own, seeded by (seed, epoch, clip,
purpose), so that switching one augmentation changes no other, and neither does the number of workers.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tvF
from torch import Tensor
from torchvision.transforms import InterpolationMode

from ..model.feature_extraction_cavmae_sync import PREEMPHASIS, CavMaeSyncFeatureExtractor
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model.video_processing_cavmae_sync import CavMaeSyncVideoProcessor
from .clips import ClipSource, LoadedClip, open_clips
from .sources import read_source

# Clips that speak at once in babble.
_VOICES = 4
# Tries to fit a random crop into the image before the largest possible one is taken, as torchvision has it.
_CROP_TRIES = 10


def make_generator(*key: Any) -> torch.Generator:
    """A generator seeded by a key of numbers and texts, the same in every process and on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class AugmentationOptions:
    """What is varied, and how much. The defaults vary nothing.

    Attributes:
        crop_scale: Smallest and largest share of the image's area that a random crop keeps; `None` for the
            processor's resize and centre crop. All frames of a sample get the same crop.
        crop_ratio: Smallest and largest width : height of the crop.
        flip: Probability of mirroring all frames of a sample.
        color_jitter: Brightness, contrast and saturation are each multiplied by a factor from `[1 - x, 1 + x]`.
        frequency_mask: Largest number of neighbouring mel bins blanked per window.
        time_mask: Largest number of neighbouring spectrogram frames (10 ms) blanked per window.
        mask_fill: What blanked places hold: `"mean"` (0 after normalisation) or `"reference"` (0 before it, as
            published, which is louder than most audio).
        noise: Strength of uniform noise on normalised windows: its range is drawn from `[0, noise]` per window.
        noise_snr_db: Smallest and largest ratio of the clip's energy to that of noise which is added to its audio, dB;
            drawn evenly for every sample. `None` adds none.
        noise_source: `"white"`; `"babble"`: four other clips of the same set at once; or a folder or list of
            recordings, one of which is drawn. Several of these: one is drawn for every sample.
        time_roll: Windows are shifted, circularly, by up to so many spectrogram frames either way. This breaks the
            alignment within a window by as much, so it suits classification and whole-clip windows.
        pitch: Log-mels are shifted by up to so many mel bins either way, all windows of a sample alike: a voice
            becomes lower or higher.
        speed: Smallest and largest factor by which a clip is played faster, audio and frame times together, so that
            they stay aligned; drawn evenly for every sample. The pitch stays. `None` leaves it as it is.
        mixup: Probability that a sample is mixed with another of its batch (done by the collator).
        mixup_alpha: Weights of the mixture come from a Beta(alpha, alpha) distribution.
        mixup_audio: `"waveform"`: mel energies are added with squared weights, which is what mixing the two waveforms
            gives on average (their cross terms cancel for unrelated audio), since shards hold no waveforms.
            `"spectrogram"`: the log-mels are averaged.
        label_smoothing: Share of a label that is spread over all classes.

    Raises:
        ValueError: A value is out of its range.
    """

    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (0.9, 1.1)
    flip: float = 0.0
    color_jitter: float = 0.0
    frequency_mask: int = 0
    time_mask: int = 0
    mask_fill: str = "mean"
    noise: float = 0.0
    noise_snr_db: tuple[float, float] | None = None
    noise_source: str | tuple[str, ...] = "white"
    time_roll: int = 0
    pitch: int = 0
    speed: tuple[float, float] | None = None
    mixup: float = 0.0
    mixup_alpha: float = 10.0
    mixup_audio: str = "waveform"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "mixup", "color_jitter", "label_smoothing"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"`{name}` is {value}; it must lie in [0, 1].")
        for name in ("frequency_mask", "time_mask", "noise", "time_roll", "pitch"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"`{name}` is {value}; it must not be negative.")
        if self.noise_snr_db is not None:
            low, high = self.noise_snr_db
            if not -100.0 <= low <= high <= 100.0:
                raise ValueError(
                    f"`noise_snr_db` is {self.noise_snr_db}; give two numbers of dB in [-100, 100], the smaller first."
                )
        if self.speed is not None and not 0.5 <= self.speed[0] <= self.speed[1] <= 2.0:
            raise ValueError(f"`speed` is {self.speed}; give two factors in [0.5, 2], the smaller one first.")
        if not self.noise_source:
            raise ValueError("`noise_source` is empty; name white, babble or a folder of recordings.")
        if self.crop_scale is not None and not 0.0 < self.crop_scale[0] <= self.crop_scale[1] <= 1.0:
            raise ValueError(f"`crop_scale` is {self.crop_scale}; give two shares in (0, 1], the smaller one first.")
        if not 0.0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"`crop_ratio` is {self.crop_ratio}; give two positive numbers, the smaller one first.")
        if not self.mixup_alpha > 0:
            raise ValueError(f"`mixup_alpha` is {self.mixup_alpha}; it must be positive.")
        if self.mask_fill not in ("mean", "reference"):
            raise ValueError(f'`mask_fill` is {self.mask_fill!r}; it must be "mean" or "reference".')
        if self.mixup_audio not in ("waveform", "spectrogram"):
            raise ValueError(f'`mixup_audio` is {self.mixup_audio!r}; it must be "waveform" or "spectrogram".')


_PUBLISHED_NOISE: dict[str, Any] = {"noise": 0.1, "time_roll": 1024}

# The published training code's settings: CAV-MAE Sync's pretraining crops and flips; CAV-MAE's adds noise and rolls
# the whole clip; its classification also masks, mixes and smooths.
AUGMENTATION_PRESETS: dict[str, AugmentationOptions] = {
    "none": AugmentationOptions(),
    "cavmae_sync": AugmentationOptions(crop_scale=(0.08, 1.0), flip=0.5),
    "cavmae": AugmentationOptions(**_PUBLISHED_NOISE),
    "cavmae_classification": AugmentationOptions(
        **_PUBLISHED_NOISE, frequency_mask=48, time_mask=192, mask_fill="reference", mixup=0.5, label_smoothing=0.1
    ),
}


class SampleAugmentation:
    """Varies the frames and the windows of one sample.

    Args:
        options: What to vary.
        processor: The model's processor; gives the size of the frames and the normalisation of the windows.
    """

    def __init__(self, options: AugmentationOptions, processor: CavMaeSyncProcessor) -> None:
        self.options = options
        self.frame_size = frame_size(processor.video_processor)
        extractor = processor.feature_extractor
        wrong = [name for name in ("frequency_mask", "noise", "pitch", "speed") if getattr(options, name)]
        if extractor.features == "waveform" and wrong:
            raise ValueError(
                f"`{wrong[0]}` varies log-mels, and this model's encoder hears waveforms; turn it off "
                "(`time_mask` and `time_roll` work on both)."
            )
        if options.speed is not None and extractor.alignment != "time":
            raise ValueError(
                f'`speed` needs `alignment="time"`: with "{extractor.alignment}", windows do not follow frame times.'
            )
        self.fill = 0.0 if options.mask_fill == "mean" else -extractor.mean / extractor.std

    def clip(self, clip: LoadedClip, *key: Any) -> LoadedClip:
        """Vary what audio and frames of a clip have in common, its speed, and the pitch of its audio.

        Args:
            clip: The clip; not changed.
            key: Seeds the choices.
        """
        options = self.options
        if options.speed is not None:
            clip = change_speed(clip, _uniform(make_generator("speed", *key), *options.speed))
        if options.pitch and clip.log_mel is not None:
            generator = make_generator("pitch", *key)
            bins = int(torch.randint(-options.pitch, options.pitch + 1, (), generator=generator))
            clip = replace(clip, log_mel=shift_pitch(clip.log_mel, bins))
        return clip

    def frames(self, frames: Tensor, *key: Any) -> Tensor:
        """Vary frames `(num_frames, 3, height, width)` uint8; all of them alike.

        Args:
            frames: Decoded frames.
            key: Seeds the choices.

        Returns:
            Frames of the model's size where a crop is on, else of their own size.
        """
        options = self.options
        if options.crop_scale is not None:
            crop = random_crop(frames.shape[-2:], options.crop_scale, options.crop_ratio, make_generator("crop", *key))
            # Bilinear, as the published recipe has it; parity with the processor's resize means nothing for a random
            # crop.
            frames = tvF.resized_crop(
                frames, *crop, list(self.frame_size), interpolation=InterpolationMode.BILINEAR, antialias=True
            )
        if options.flip and _uniform(make_generator("flip", *key)) < options.flip:
            frames = frames.flip(-1)
        if options.color_jitter:
            generator = make_generator("color", *key)
            for adjust in (tvF.adjust_brightness, tvF.adjust_contrast, tvF.adjust_saturation):
                factor = _uniform(generator, 1.0 - options.color_jitter, 1.0 + options.color_jitter)
                frames = adjust(frames, factor)
        return frames

    def windows(self, windows: Tensor, *key: Any) -> Tensor:
        """Vary normalised windows `(num_frames, audio_length, num_mel_bins)`, each for itself.

        Args:
            windows: From the feature extractor; not changed.
            key: Seeds the choices.
        """
        options = self.options
        if not (options.frequency_mask or options.time_mask or options.noise or options.time_roll):
            return windows
        windows = windows.clone()
        generators = {name: make_generator(name, *key) for name in ("frequency", "time", "noise", "roll")}
        for window in windows:
            if options.frequency_mask:
                blank(window, 1, options.frequency_mask, fill=self.fill, generator=generators["frequency"])
            if options.time_mask:
                blank(window, 0, options.time_mask, fill=self.fill, generator=generators["time"])
            if options.noise:
                strength = _uniform(generators["noise"], 0.0, options.noise)
                window += torch.rand(window.shape, generator=generators["noise"]) * strength
            if options.time_roll:
                shift = torch.randint(-options.time_roll, options.time_roll + 1, (), generator=generators["roll"])
                window.copy_(window.roll(int(shift), 0))
        return windows


class BackgroundNoise:
    """Adds noise to the audio of clips, at a ratio of energies over the whole clip.

    Shards hold log-mels, where the energies of clip and noise add up; those of two waveforms do so on average, since
    their cross terms cancel for unrelated audio. Waveforms, where a model hears them, are added themselves.

    Args:
        options: `noise_snr_db` and `noise_source`.
        processor: The model's processor.

    Raises:
        DataError: There are no recordings where `noise_source` says.
    """

    def __init__(self, options: AugmentationOptions, processor: CavMaeSyncProcessor) -> None:
        if options.noise_snr_db is None:
            raise ValueError("`noise_snr_db` is None; give the ratios in dB that noise is added at.")
        self.snr_db, self.extractor = options.noise_snr_db, processor.feature_extractor
        named = options.noise_source
        self.kinds = (named,) if isinstance(named, str) else tuple(named)
        self.recordings = {
            kind: open_clips(read_source(kind), processor) for kind in self.kinds if kind not in ("white", "babble")
        }

    def add(self, log_mel: Tensor, source: ClipSource, number: int, *key: Any) -> Tensor:
        """Audio of a clip with noise.

        Args:
            log_mel: The clip's, not normalised, `(time, num_mel_bins)`; or rows of samples.
            source: The set that the clip is of.
            number: The clip's number there.
            key: Seeds the choices.

        Returns:
            The same shape. A clip, or noise, without any energy stays without noise.
        """
        generator = make_generator("background", *key)
        noise = self._draw(len(log_mel), source, number, generator)
        if noise is None:
            return log_mel
        decibels = _uniform(generator, *self.snr_db)
        if self.extractor.features == "waveform":
            power, other = (float(values.double().square().mean()) for values in (log_mel, noise))
            return (
                log_mel
                if not power or not other
                else log_mel + noise * (power / other * 10 ** (-decibels / 10)) ** 0.5
            )
        power, other = (float(self._power(values)) for values in (log_mel, noise))
        return torch.logaddexp(log_mel, noise + math.log(power / other) - decibels * math.log(10) / 10)

    def _draw(self, length: int, source: ClipSource, number: int, generator: torch.Generator) -> Tensor | None:
        """As much noise, of any loudness."""
        several = len(self.kinds) > 1
        kind = self.kinds[int(torch.randint(len(self.kinds), (), generator=generator))] if several else self.kinds[0]
        if kind == "white":
            samples = length * self.extractor.hop_samples + self.extractor.window_samples
            noise: Tensor = self.extractor.log_mel(0.1 * torch.randn(samples, generator=generator))
            return noise[:length]
        clips, voices = (source, _VOICES) if kind == "babble" else (self.recordings[kind], 1)
        count = sum(clips.group_sizes)
        heard = []
        for place in torch.randperm(count, generator=generator)[: voices + 1].tolist():
            if clips is source and place == number:
                continue
            audio = clips.read(place, lambda *_: []).log_mel
            if audio is None or not len(audio):
                continue
            turned = audio.roll(int(torch.randint(len(audio), (), generator=generator)), 0)
            heard.append(turned.repeat(-(-length // len(turned)), 1)[:length])
        heard = heard[:voices]
        if not heard:
            return None
        if self.extractor.features == "waveform":
            return torch.stack([audio / audio.square().mean().sqrt().clamp(min=1e-8) for audio in heard]).sum(dim=0)
        # Each as loud as the others.
        return torch.stack([audio - self._power(audio).log() for audio in heard]).logsumexp(dim=0)

    def _power(self, log_mel: Tensor) -> Tensor:
        """Mean power of the samples behind a log-mel, up to a factor: the filters add up to 1 at every frequency, and
        the filter bank's pre-emphasis is undone at the centre of each."""
        turn = 2 * math.pi * torch.from_numpy(self.extractor.mel_frequencies) / self.extractor.sampling_rate
        gain = 1 + PREEMPHASIS**2 - 2 * PREEMPHASIS * turn.cos()
        return (log_mel.exp() / gain).sum(dim=-1).mean().float()


def frame_size(video_processor: CavMaeSyncVideoProcessor) -> tuple[int, int]:
    """Height and width of the frames that a video processor gives."""
    size = video_processor.crop_size if video_processor.do_center_crop else video_processor.size
    if not size.get("height") or not size.get("width"):
        raise ValueError(
            f"The video processor gives frames of no fixed size ({size}); use `do_center_crop=True`, `crop_size`."
        )
    return size["height"], size["width"]


def random_crop(
    shape: tuple[int, ...] | torch.Size,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> tuple[int, int, int, int]:
    """A random part of an image: its area uniform in `scale`, its aspect log-uniform in `ratio`, its place uniform.

    Args:
        shape: Height and width of the image.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width : height.
        generator: Source of randomness.

    Returns:
        Top, left, height and width. Where nothing fits, the largest centred part with an allowed aspect.
    """
    height, width = shape
    for _ in range(_CROP_TRIES):
        area = height * width * _uniform(generator, *scale)
        aspect = math.exp(_uniform(generator, math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(torch.randint(height - crop_height + 1, (), generator=generator))
            left = int(torch.randint(width - crop_width + 1, (), generator=generator))
            return top, left, crop_height, crop_width
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width, crop_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def change_speed(clip: LoadedClip, factor: float) -> LoadedClip:
    """A clip played `factor` times as fast: log-mel, frame times, length and spans of captions alike.

    Log-mels are interpolated linearly in time, so that the pitch stays. Frames that are shown as one moment
    (`frames_per_moment`) stay the same ones and lie closer together.

    Args:
        clip: The clip, with log-mels; not changed.
        factor: Above 1 for faster.
    """
    log_mel = clip.log_mel
    if log_mel is not None and len(log_mel) > 1:
        # The factor itself, not the ratio of the whole lengths, or the end would drift from the frames.
        log_mel = F.interpolate(
            log_mel.t().unsqueeze(0), scale_factor=1.0 / factor, mode="linear", recompute_scale_factor=False
        )[0].t()
    return replace(
        clip,
        frame_times=[time / factor for time in clip.frame_times],
        log_mel=log_mel,
        duration=clip.duration / factor,
        captions=[
            replace(text, spans=tuple((start / factor, end / factor) for start, end in text.spans))
            for text in clip.captions
        ],
    )


def shift_pitch(log_mel: Tensor, bins: int) -> Tensor:
    """A log-mel `(time, num_mel_bins)` with its spectrum `bins` mel bins higher; the bin at the edge fills the gap."""
    last = log_mel.shape[-1] - 1
    return log_mel[:, (torch.arange(last + 1) - bins).clamp(0, last)]


def blank(window: Tensor, axis: int, largest: int, *, fill: float, generator: torch.Generator) -> None:
    """Blank a random stretch of a window, in place, as torchaudio's `TimeMasking` and `FrequencyMasking` do.

    The stretch's length is uniform in `[0, largest)` and its place uniform where it fits. (torchaudio draws from the
    global generator, which would tie samples to their order; given the same two numbers, its masks are the same.)

    Args:
        window: `(audio_length, num_mel_bins)`.
        axis: 0 for time, 1 for mel bins.
        largest: Bound of the length.
        fill: Value to write.
        generator: Source of randomness.
    """
    length, place = (float(number) for number in torch.rand(2, generator=generator))
    size = window.shape[axis]
    span = length * largest
    first = int(place * (size - span)) if span < size else 0
    window.narrow(axis, first, min(int(span), size - first)).fill_(fill)


def mix_windows(
    first: Tensor, second: Tensor, weight: float, extractor: CavMaeSyncFeatureExtractor, *, rule: str = "waveform"
) -> Tensor:
    """Mix normalised windows of two clips.

    For waveforms, `weight * a + (1 - weight) * b` has the power spectrum `weight² |A|² + (1 - weight)² |B|²` plus a
    cross term that is zero on average for unrelated audio. Mel energies are sums of power, so the same holds for
    them; in the normalised log domain the sum is a `logaddexp`, from which the mean drops out.

    Args:
        first: Windows of any shape.
        second: Windows of the same shape.
        weight: Weight of `first`, in [0, 1].
        extractor: The feature extractor that normalised them. Waveforms themselves are averaged under either rule.
        rule: `"waveform"` or `"spectrogram"` (plain average of the log-mels).
    """
    if rule == "spectrogram" or extractor.features == "waveform" or weight in (0.0, 1.0):
        return weight * first + (1.0 - weight) * second
    std = extractor.std
    loudness = [2.0 * math.log(share) for share in (weight, 1.0 - weight)]
    mixed = torch.logaddexp(first * std + loudness[0], second * std + loudness[1]) / std
    # The filter bank floors energies, also those of mixed waveforms.
    return mixed.clamp_(min=(extractor.silence - extractor.mean) / std)


def smooth_labels(labels: Tensor, smoothing: float) -> Tensor:
    """Spread a share of the labels over all classes: `(1 - smoothing) * labels + smoothing / num_labels`.

    The published code does so for mixed clips; for others it leaves the second term out where a label is set, a
    difference of `smoothing / num_labels`. Being linear, this commutes with mixing.

    Args:
        labels: Targets `(..., num_labels)`, float.
        smoothing: The share, in [0, 1].
    """
    return labels * (1.0 - smoothing) + smoothing / labels.shape[-1]


def mixing_weight(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha)."""
    seed = int(torch.randint(1 << 62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
