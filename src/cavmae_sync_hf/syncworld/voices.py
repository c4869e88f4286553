# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Audio of the SyncWorld classes: twelve voices, synthesized from a few numbers.

The voices differ in where their energy lies (low, middle, high, broad), in whether it is tonal or noisy, and in rhythm
(one strike, sustained, pulsed), so that a 1.3 s log-mel window is enough to name the class; pitch, loudness and decay
vary from event to event, so that no single spectrogram line is. Every voice is audible from its first sample (attack
of 4 ms) and silent after its last one: an event is as long as its audio.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ATTACK_SECONDS = 0.004
RELEASE_SECONDS = 0.03
LEVEL_DB = (-22.0, -12.0)  # loudest 50 ms of an event, in dB relative to a full-scale square wave


@dataclass(frozen=True)
class Voice:
    """What decides the audio of one event.

    Attributes:
        class_name: One of `CLASS_NAMES`.
        pitch: Fundamental (or centre) frequency in hertz.
        rate: Pulses, strikes or wobbles per second.
        decay: How fast struck and pulsed voices fade; 1 is slow, 3 is fast.
        level_db: Root mean square of the loudest 50 ms, in dB relative to full scale.
        seed: Seed of what is random inside the voice (noise, the pitch of each blip).
    """

    class_name: str
    pitch: float
    rate: float
    decay: float
    level_db: float
    seed: int


@dataclass(frozen=True)
class VoiceKind:
    """How the audio of a class is made, and the ranges its events draw from (hertz, pulses per second)."""

    make: Callable[[Voice, np.ndarray, int, np.random.Generator], np.ndarray]
    pitch: tuple[float, float]
    rate: tuple[float, float]


def sample_voice(class_name: str, rng: np.random.Generator) -> Voice:
    """Draw the voice of one event; pitch and rate are uniform on a logarithmic scale."""
    kind = VOICE_KINDS[class_name]
    pitch = math.exp(rng.uniform(math.log(kind.pitch[0]), math.log(kind.pitch[1])))
    rate = math.exp(rng.uniform(math.log(kind.rate[0]), math.log(kind.rate[1])))
    return Voice(
        class_name=class_name,
        pitch=pitch,
        rate=rate,
        decay=rng.uniform(1.0, 3.0),
        level_db=rng.uniform(*LEVEL_DB),
        seed=int(rng.integers(2**31)),
    )


def synthesize(voice: Voice, num_samples: int, sampling_rate: int) -> np.ndarray:
    """Make the audio of one event.

    Args:
        voice: What to play.
        num_samples: Length of the event in samples; the audio fills it from the first sample to the last.
        sampling_rate: Samples per second; partials above 0.45 of it are left out.

    Returns:
        Samples in [-0.95, 0.95], float32, shape `(num_samples,)`.
    """
    time = np.arange(num_samples) / sampling_rate
    rng = np.random.default_rng(voice.seed)
    samples = VOICE_KINDS[voice.class_name].make(voice, time, sampling_rate, rng)
    attack = min(num_samples // 4, round(ATTACK_SECONDS * sampling_rate))
    release = min(num_samples // 4, round(RELEASE_SECONDS * sampling_rate))
    samples[:attack] *= np.linspace(0.0, 1.0, attack, endpoint=False)
    samples[num_samples - release :] *= np.linspace(1.0, 0.0, release)
    # Clicks and hums of the same overall power differ by 15 dB to the ear, hence the loudest 50 ms set the level.
    span = min(num_samples, sampling_rate // 20)
    power = np.add.reduceat(samples**2, np.arange(0, num_samples - span + 1, span)) / span
    gain = 10 ** (voice.level_db / 20) / math.sqrt(float(power.max()) + 1e-12)
    return np.clip(samples * min(gain, 0.95 / (np.abs(samples).max() + 1e-9)), -0.95, 0.95).astype(np.float32)


def _partials(
    phase: np.ndarray, frequency: float, ratios: np.ndarray, weights: np.ndarray, *, sampling_rate: int
) -> np.ndarray:
    """Sum of sines whose phases are multiples of one phase; partials near or above Nyquist are dropped."""
    total = np.zeros_like(phase)
    for ratio, weight in zip(ratios, weights, strict=True):
        if ratio * frequency < 0.45 * sampling_rate:
            total += weight * np.sin(ratio * phase)
    return total


def _band_noise(
    num_samples: int, band: tuple[float, float], sampling_rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Noise between two frequencies in hertz, with edges half an octave wide, by shaping a spectrum."""
    low, high = band
    size = 1 << (num_samples - 1).bit_length()  # a power of two keeps the transform fast
    frequencies = np.fft.rfftfreq(size, 1 / sampling_rate) + 1.0
    shape = 1 / (1 + (low / frequencies) ** 8) / (1 + (frequencies / high) ** 8)
    spectrum = np.fft.rfft(rng.standard_normal(size)) * shape
    return np.fft.irfft(spectrum, size)[:num_samples]


def _pulses(time: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Index of the pulse each sample belongs to, and seconds since that pulse began; pulse 0 begins at once."""
    index = np.floor(time * rate).astype(np.int64)
    return index, time - index / rate


def _bell(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A struck bar: the inharmonic modes of a free bar (1, 2.76, 5.40, 8.93), higher ones fading faster."""
    speed = voice.decay / (time[-1] + 1e-9)
    total = np.zeros_like(time)
    for order, (ratio, weight) in enumerate(zip((1.0, 2.756, 5.404, 8.933), (1.0, 0.7, 0.5, 0.3), strict=True)):
        if ratio * voice.pitch < 0.45 * sampling_rate:
            tone = np.sin(2 * np.pi * ratio * voice.pitch * time + rng.uniform(0, 6))
            total += weight * tone * np.exp(-speed * (1 + 0.6 * order) * time)
    return total


def _string(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A plucked string: harmonics with weights 1/k that fade faster the higher they are, plucked again and again."""
    _, since = _pulses(time, voice.rate)
    phase = 2 * np.pi * voice.pitch * since
    total = np.zeros_like(time)
    for order in range(1, 13):
        total += np.sin(order * phase) / order * np.exp(-since * voice.rate * (0.8 * voice.decay + 0.25 * order))
    return total


def _whistle(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """One pure tone with vibrato."""
    phase = 2 * np.pi * voice.pitch * time + 0.02 * voice.pitch / voice.rate * np.sin(2 * np.pi * voice.rate * time)
    return np.sin(phase) + 0.02 * np.sin(2 * phase)


def _hum(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Five low harmonics that swell slightly."""
    weights = np.array([1.0, 0.8, 0.5, 0.3, 0.12]) * rng.uniform(0.6, 1.0, 5)
    tone = _partials(
        2 * np.pi * voice.pitch * time, voice.pitch, np.arange(1, 6), weights, sampling_rate=sampling_rate
    )
    return tone * (1 - 0.25 * np.sin(2 * np.pi * voice.rate * time) ** 2)


def _hiss(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """High noise, steady."""
    return _band_noise(len(time), (voice.pitch, 0.49 * sampling_rate), sampling_rate, rng)


def _bark(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Bursts of falling pitch, their harmonics weighted by two formants, with some breath."""
    _, since = _pulses(time, voice.rate)
    phase = 2 * np.pi * voice.pitch * (since - 0.35 * voice.rate * since**2)
    orders = np.arange(1, 15)
    first, second = rng.uniform(650, 850), rng.uniform(1400, 1800)
    weights = 1 / (1 + ((orders * voice.pitch - first) / 150) ** 2)
    weights += 0.6 / (1 + ((orders * voice.pitch - second) / 200) ** 2)
    tone = _partials(phase, voice.pitch, orders, weights, sampling_rate=sampling_rate)
    breath = 0.8 * _band_noise(len(time), (500, 2200), sampling_rate, rng)
    return (tone + breath) * np.exp(-((since * voice.rate / 0.42) ** 4))


def _clicks(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A rattle: short bursts of white noise."""
    _, since = _pulses(time, voice.rate)
    return rng.standard_normal(len(time)) * np.exp(-since / (0.006 / voice.decay))


def _siren(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A hollow tone (odd harmonics) that sweeps an octave up and down."""
    start = rng.uniform(0, 2 * np.pi)
    bend = 2 ** (0.5 * np.sin(2 * np.pi * voice.rate * time + start))
    phase = 2 * np.pi * np.cumsum(voice.pitch * bend) / sampling_rate
    orders = np.arange(1, 10, 2)
    return _partials(phase, 1.4 * voice.pitch, orders, 1 / orders, sampling_rate=sampling_rate)


def _chirp(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A bird: quick upward sweeps from the pitch to 1.7 times the pitch."""
    _, since = _pulses(time, voice.rate)
    part = np.minimum(since * voice.rate / 0.6, 1.0)
    phase = 2 * np.pi * voice.pitch * (since + 0.35 * part * since)
    return np.sin(phase) * np.sin(np.pi * np.minimum(part + 0.04, 1.0)) ** 0.5


def _buzz(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A rough saw: many strong harmonics up to the top, shaken thirty times a second."""
    orders = np.arange(1, 41)
    phase = 2 * np.pi * voice.pitch * time + rng.uniform(0, 6)
    tone = _partials(phase, voice.pitch, orders, orders**-0.4, sampling_rate=sampling_rate)
    return tone * (0.65 + 0.35 * np.cos(2 * np.pi * voice.rate * time))


def _drum(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Repeated hits: a tone that drops by more than an octave under a burst of middle noise."""
    _, since = _pulses(time, voice.rate)
    phase = 2 * np.pi * voice.pitch * (since + 1.5 * 0.03 * (1 - np.exp(-since / 0.03)))
    skin = _band_noise(len(time), (250, 1300), sampling_rate, rng)
    return np.sin(phase + 0.5) * np.exp(-since * 7 * voice.decay**0.5) + 2.0 * skin * np.exp(-since / 0.025)


def _bubble(voice: Voice, time: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Blips of pure tone that rise by an octave, each from a pitch of its own."""
    index, since = _pulses(time, voice.rate)
    base = voice.pitch * 2 ** rng.uniform(-0.5, 0.5, index[-1] + 1)[index]
    phase = 2 * np.pi * base * (since + 0.5 * voice.rate * since**2)
    return np.sin(phase) * np.exp(-((since * voice.rate / 0.6) ** 4))


VOICE_KINDS: dict[str, VoiceKind] = {
    "bell": VoiceKind(_bell, (600.0, 950.0), (1.0, 1.0)),
    "string": VoiceKind(_string, (130.0, 260.0), (1.4, 2.4)),
    "whistle": VoiceKind(_whistle, (1500.0, 2500.0), (5.0, 7.0)),
    "hum": VoiceKind(_hum, (70.0, 115.0), (1.0, 3.0)),
    "hiss": VoiceKind(_hiss, (3200.0, 4500.0), (1.0, 1.0)),
    "bark": VoiceKind(_bark, (260.0, 400.0), (3.2, 4.6)),
    "clicks": VoiceKind(_clicks, (1000.0, 1000.0), (10.0, 17.0)),
    "siren": VoiceKind(_siren, (520.0, 760.0), (1.3, 2.2)),
    "chirp": VoiceKind(_chirp, (2800.0, 3800.0), (6.0, 9.0)),
    "buzz": VoiceKind(_buzz, (130.0, 210.0), (26.0, 36.0)),
    "drum": VoiceKind(_drum, (60.0, 95.0), (3.5, 5.5)),
    "bubble": VoiceKind(_bubble, (380.0, 620.0), (8.0, 12.0)),
}

CLASS_NAMES: tuple[str, ...] = tuple(VOICE_KINDS)
