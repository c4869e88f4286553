# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Augmentations: each does what it says when it is on, and nothing when it is off."""

import dataclasses
import math
import wave

import numpy as np
import pytest
import torch

from cavmae_sync_hf.data.augmentation import (
    AUGMENTATION_PRESETS,
    AugmentationOptions,
    BackgroundNoise,
    SampleAugmentation,
    blank,
    change_speed,
    make_generator,
    mix_windows,
    mixing_weight,
    random_crop,
    shift_pitch,
    smooth_labels,
)
from cavmae_sync_hf.data.captions import TimedText
from cavmae_sync_hf.data.clips import LoadedClip
from cavmae_sync_hf.data.dataset import CavMaeSyncCollator, CavMaeSyncDataset
from cavmae_sync_hf.model.feature_extraction_cavmae_sync import SILENCE, CavMaeSyncFeatureExtractor
from helpers.tiny_shards import frame_of, tiny_processor, write_shards

FRAMES = torch.stack([frame_of(0, 0), frame_of(0, 1)])  # (2, 3, 36, 48)
WINDOWS = torch.randn(3, 48, 16, generator=torch.Generator().manual_seed(0))


def augmentation(**options) -> SampleAugmentation:
    return SampleAugmentation(AugmentationOptions(**options), tiny_processor())


def test_nothing__changes_nothing():
    off = augmentation()
    assert torch.equal(off.frames(FRAMES, 0), FRAMES)
    assert torch.equal(off.windows(WINDOWS, 0), WINDOWS)


def test_switches__touch_only_their_own_side():
    windows = WINDOWS.clone()
    for options in ({"crop_scale": (0.1, 0.5)}, {"flip": 1.0}, {"color_jitter": 0.5}):
        assert torch.equal(augmentation(**options).windows(WINDOWS, 0), WINDOWS)
        assert not torch.equal(augmentation(**options).frames(FRAMES, 0)[..., :32, :32], FRAMES[..., :32, :32])
    for options in ({"frequency_mask": 8}, {"time_mask": 20}, {"noise": 0.1}, {"time_roll": 20}):
        assert torch.equal(augmentation(**options).frames(FRAMES, 0), FRAMES)
        assert not torch.equal(augmentation(**options).windows(WINDOWS, 0), WINDOWS)
    assert torch.equal(WINDOWS, windows)  # never in place


def test_switches__do_not_move_each_other():
    """The crop is the same whether or not there is a flip, a change of colours, or anything done to the windows."""
    crop = {"crop_scale": (0.1, 0.5)}
    alone = augmentation(**crop).frames(FRAMES, 5)
    assert torch.equal(augmentation(**crop, flip=1.0).frames(FRAMES, 5), alone.flip(-1))
    roll = augmentation(time_roll=20).windows(WINDOWS, 5)
    both = augmentation(time_roll=20, frequency_mask=8).windows(WINDOWS, 5)
    assert torch.equal(both[both != 0], roll[both != 0])


def test_choices__follow_the_key_alone():
    options = {"crop_scale": (0.1, 1.0), "flip": 0.5, "color_jitter": 0.4}
    torch.manual_seed(0)
    first = augmentation(**options).frames(FRAMES, 0, 0, "clip")
    torch.manual_seed(1)
    assert torch.equal(augmentation(**options).frames(FRAMES, 0, 0, "clip"), first)
    assert not torch.equal(augmentation(**options).frames(FRAMES, 0, 1, "clip"), first)
    assert not torch.equal(augmentation(**options).frames(FRAMES, 0, 0, "other"), first)


# --- frames ---------------------------------------------------------------------------------------------------------


def test_crop__has_the_models_size_and_one_place_for_all_frames():
    cropped = augmentation(crop_scale=(0.2, 0.4)).frames(FRAMES, 1)
    assert cropped.shape == (2, 3, 32, 32) and cropped.dtype == torch.uint8
    # Frame 1 is frame 0 plus 10 in red; interpolation rounds by at most one level.
    difference = cropped[1].int() - cropped[0].int()
    assert (difference[0] - 10).abs().max() <= 1 and not difference[1:].any()


def test_random_crop__keeps_to_scale_ratio_and_image():
    generator = make_generator("crop test")
    areas = []
    for _ in range(500):
        top, left, height, width = random_crop((90, 160), (0.08, 1.0), (0.9, 1.1), generator)
        assert top >= 0 and left >= 0 and top + height <= 90 and left + width <= 160
        assert 0.85 < width / height < 1.16  # 0.9 to 1.1, and whole pixels
        areas.append(height * width / (90 * 160))
    assert min(areas) >= 0.075 and max(areas) > 0.5
    # A square of the whole area does not fit: the largest part that does, in the middle.
    assert random_crop((90, 160), (1.0, 1.0), (1.0, 1.0), generator) == (0, 35, 90, 90)
    assert random_crop((160, 90), (1.0, 1.0), (1.0, 1.0), generator) == (35, 0, 90, 90)


def test_flip__comes_as_often_as_asked():
    half = augmentation(flip=0.5)
    flipped = [torch.equal(half.frames(FRAMES, number), FRAMES.flip(-1)) for number in range(200)]
    assert 70 < sum(flipped) < 130  # four standard deviations
    assert all(torch.equal(augmentation(flip=1.0).frames(FRAMES, n), FRAMES.flip(-1)) for n in range(5))


def test_color_jitter__keeps_grey_grey_and_the_frames_alike():
    grey = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    levels = set()
    for number in range(20):
        changed = augmentation(color_jitter=0.4).frames(grey, number)
        assert len(changed.unique()) == 1
        levels.add(int(changed[0, 0, 0, 0]))
    assert len(levels) > 5 and min(levels) >= 59 and max(levels) <= 141  # 100 times 0.6 to 1.4


# --- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "axis", "largest"), [("time_mask", 0, 20), ("frequency_mask", 1, 8)])
def test_masks__blank_one_stretch_of_bounded_length(option, axis, largest):
    masked = augmentation(**{option: largest}).windows(WINDOWS.repeat(20, 1, 1) + 5.0, 0)
    lengths = []
    for window in masked:
        blanked = (window == 0).all(dim=1 - axis).nonzero().flatten().tolist()
        assert blanked == list(range(blanked[0], blanked[-1] + 1)) if blanked else True
        assert int((window == 0).sum()) == len(blanked) * window.shape[1 - axis]
        lengths.append(len(blanked))
    assert max(lengths) < largest and len(set(lengths)) > 3


def test_masks__are_torchaudios_for_the_same_numbers():
    functional = pytest.importorskip("torchaudio.functional")
    for seed in range(100):
        for axis, largest in ((0, 30), (1, 12)):
            window = WINDOWS[0].clone()
            blank(window, axis, largest, fill=-1.5, generator=torch.Generator().manual_seed(seed))
            torch.manual_seed(seed)
            expected = functional.mask_along_axis(WINDOWS[0].t(), largest, -1.5, 1 - axis).t()
            assert torch.equal(window, expected)


def test_masks__wider_than_the_window():
    window = WINDOWS[0].clone()
    blank(window, 1, 1000, fill=0.0, generator=torch.Generator().manual_seed(0))
    assert not window.any()


def test_mask_fill__published_value_is_zero_before_normalisation():
    extractor = tiny_processor().feature_extractor
    masked = augmentation(time_mask=40, mask_fill="reference").windows(WINDOWS, 3)
    changed = masked[masked != WINDOWS]
    assert len(changed) and torch.allclose(changed, torch.tensor((0.0 - extractor.mean) / extractor.std))


def test_noise__is_uniform_and_bounded():
    added = augmentation(noise=0.1).windows(WINDOWS.repeat(40, 1, 1), 0) - WINDOWS.repeat(40, 1, 1)
    assert added.min() >= -1e-6 and added.max() <= 0.1 + 1e-6
    strengths = added.flatten(1).amax(dim=1)
    assert strengths.max() > 0.08 and strengths.min() < 0.02  # each window has a strength of its own


class Tones:
    """A set of clips of one tone each: clip `n` sounds in mel filter `n` alone, `n` times as loud as the first."""

    group_sizes = (8,)

    def read(self, number: int, choose) -> LoadedClip:
        log_mel = torch.full((50, 16), SILENCE)
        log_mel[:, number] = math.log(1.0 + number)
        return LoadedClip(
            clip_id=str(number), frames=None, frame_times=[0.1], chosen=[0], log_mel=log_mel, labels=[], duration=0.5
        )


def energy(log_mel: torch.Tensor) -> float:
    return float(log_mel.double().exp().mean())


@pytest.mark.parametrize("decibels", [-10.0, 0.0, 20.0])
def test_background_noise__is_as_loud_as_in_mixed_waveforms(decibels):
    processor = tiny_processor()
    processor.feature_extractor = extractor = CavMaeSyncFeatureExtractor()
    # Mostly low, as speech is: the filter bank's pre-emphasis would make its share of the energy too small.
    samples = torch.arange(32000) / 16000
    speech = torch.sin(2 * math.pi * 200 * samples) + 0.3 * torch.sin(2 * math.pi * 1500 * samples)
    white = torch.randn(32000, generator=torch.Generator().manual_seed(9))
    white *= (speech.square().mean() / white.square().mean()).sqrt() * 10 ** (-decibels / 20)
    clean = extractor.log_mel(speech)
    options = AugmentationOptions(noise_snr_db=(decibels, decibels))

    heard = BackgroundNoise(options, processor).add(clean, Tones(), 0, "clip")

    expected = extractor.log_mel(speech + white)
    assert heard.shape == clean.shape and bool((heard >= clean).all())
    assert energy(heard) - energy(clean) == pytest.approx(energy(expected) - energy(clean), rel=0.15)
    means = [values.exp().mean(dim=0).log() for values in (heard, expected)]
    assert float((means[0] - means[1]).abs().mean()) < 0.15


def test_background_noise__babble_is_four_other_clips():
    clean = Tones().read(0, None).log_mel
    options = AugmentationOptions(noise_snr_db=(0.0, 0.0), noise_source="babble")

    added = BackgroundNoise(options, tiny_processor()).add(clean, Tones(), 0, "clip").double().exp() - clean.exp()

    sounding = added.mean(dim=0) > 1e-5 * added.mean(dim=0).max()
    assert int(sounding.sum()) == 4 and not sounding[0]


def test_background_noise__of_recordings_of_a_range_and_repeatable(tmp_path):
    with wave.open(str(tmp_path / "hum.wav"), "wb") as hum:
        hum.setparams((1, 2, 16000, 0, "NONE", ""))
        hum.writeframes((3000 * np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000)).astype("<i2").tobytes())
    options = AugmentationOptions(noise_snr_db=(-5.0, 5.0), noise_source=str(tmp_path))
    background, tones = BackgroundNoise(options, tiny_processor()), Tones()
    clean = tones.read(3, None).log_mel

    made = [background.add(clean, tones, 3, seed) for seed in range(8)]

    again = background.add(clean, tones, 3, 5)
    assert torch.equal(again, made[5])
    added = [10 * math.log10(energy(heard) - energy(clean)) for heard in made]
    assert 3 < max(added) - min(added) <= 10.05
    # A clip that is silent, or alone with itself, has nothing to be mixed with.
    alone = BackgroundNoise(AugmentationOptions(noise_snr_db=(0.0, 0.0), noise_source="babble"), tiny_processor())
    tones.group_sizes = (1,)
    assert torch.equal(alone.add(clean, tones, 0, 0), clean)


def test_background_noise__of_several_sources_draws_one_for_each_sample():
    clean = Tones().read(0, None).log_mel
    options = AugmentationOptions(noise_snr_db=(0.0, 0.0), noise_source=("white", "babble"))
    background = BackgroundNoise(options, tiny_processor())
    with pytest.raises(ValueError, match="`noise_source` is empty"):
        AugmentationOptions(noise_snr_db=(0.0, 0.0), noise_source=())

    made = [background.add(clean, Tones(), 0, seed).double().exp() - clean.exp() for seed in range(20)]

    # White noise is in all mel filters but that of the clip, where it is little beside it; babble in those of voices.
    filters = [int((added.mean(dim=0) > 1e-5 * added.mean(dim=0).max()).sum()) for added in made]
    assert set(filters) == {4, 16} and 5 <= filters.count(4) <= 15


def test_background_noise__reaches_samples_and_spares_frames(tmp_path):
    shards = write_shards(tmp_path / "shards", [5])
    clean, noisy = (
        CavMaeSyncDataset(shards, tiny_processor(), frames="all", augmentation=options)[2]
        for options in (None, AugmentationOptions(noise_snr_db=(0.0, 0.0), noise_source="babble"))
    )

    assert torch.equal(clean["pixel_values_videos"], noisy["pixel_values_videos"])
    assert bool((noisy["input_values"] >= clean["input_values"]).all())
    assert not torch.equal(noisy["input_values"], clean["input_values"])


def test_time_roll__shifts_circularly_up_to_the_limit():
    shifts = set()
    for number in range(60):
        rolled = augmentation(time_roll=3).windows(WINDOWS, number)
        for window, original in zip(rolled, WINDOWS, strict=True):
            shifts.add(next(s for s in range(-3, 4) if torch.equal(window, original.roll(s, 0))))
    assert shifts == set(range(-3, 4))


# --- pitch and speed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [-6, 0, 9])
def test_pitch__moves_the_peak_of_a_tone_by_so_many_bins(bins):
    tone = 0.3 * torch.sin(2 * math.pi * 1000 * torch.arange(16000) / 16000)
    log_mel = CavMaeSyncFeatureExtractor().log_mel(tone)

    shifted = shift_pitch(log_mel, bins)

    assert shifted.shape == log_mel.shape
    assert int(shifted.mean(dim=0).argmax()) == int(log_mel.mean(dim=0).argmax()) + bins
    kept = slice(max(0, -bins), 128 - max(0, bins))
    assert torch.equal(shifted.roll(-bins, 1)[:, kept], log_mel[:, kept])
    # What no bin moved to holds its neighbour's value, not that of the other end of the spectrum.
    edge = shifted[:, :bins] if bins >= 0 else shifted[:, bins:]
    assert torch.equal(edge, log_mel[:, [0 if bins >= 0 else -1]].expand_as(edge))


def test_pitch__is_one_draw_up_to_the_limit_for_all_windows_of_a_sample():
    clip = Tones().read(5, None)
    peaks = [augmentation(pitch=2).clip(clip, seed).log_mel.argmax(dim=1).unique().tolist() for seed in range(60)]
    assert {tuple(peak) for peak in peaks} == {(bin,) for bin in range(3, 8)}


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_speed__keeps_audio_frames_and_captions_aligned(factor):
    """Clicks of 30 ms at the times of frames stay at the times of those frames, and of captions."""
    times = [0.3 + 0.25 * number for number in range(10)]
    log_mel = torch.full((300, 16), SILENCE)
    for time in times:
        log_mel[round(100 * time) - 1 : round(100 * time) + 2] = 0.0
    clip = LoadedClip(
        clip_id="clicks", frames=None, frame_times=times, chosen=[0, 9], log_mel=log_mel, labels=[], duration=3.0,
        captions=[TimedText("last", ((times[-1], 3.0),)), TimedText("whole")],
    )  # fmt: skip

    played = change_speed(clip, factor)

    assert len(played.log_mel) == math.floor(300 / factor) and played.duration == pytest.approx(3.0 / factor)
    assert played.frame_times == pytest.approx([time / factor for time in times])
    assert played.captions[0].spans[0] == pytest.approx((times[-1] / factor, 3.0 / factor))
    assert played.captions[1] == clip.captions[1] and played.chosen == clip.chosen
    loud = played.log_mel.mean(dim=1) - SILENCE
    for time in played.frame_times:
        near = torch.arange(max(0, round(100 * time) - 6), round(100 * time) + 7)
        centre = float((loud[near] * (near + 0.5)).sum() / loud[near].sum()) / 100
        assert centre == pytest.approx(time, abs=0.006)
    assert (factor == 1.0) == torch.equal(played.log_mel, log_mel)
    assert torch.equal(clip.log_mel, log_mel) and clip.frame_times == times  # never in place


def test_speed__of_clips_without_audio():
    clip = dataclasses.replace(Tones().read(0, None), log_mel=None)
    assert change_speed(clip, 2.0).frame_times == [0.05] and change_speed(clip, 2.0).log_mel is None
    assert augmentation(pitch=3).clip(clip, 0) is clip


def test_speed__is_drawn_evenly_and_repeatably():
    clip = Tones().read(0, None)
    lengths = [augmentation(speed=(0.8, 1.25)).clip(clip, seed).duration for seed in range(100)]
    assert 0.4 <= min(lengths) < 0.42 and 0.6 < max(lengths) <= 0.625
    assert augmentation(speed=(0.8, 1.25), pitch=4).clip(clip, 7).duration == lengths[7]


def test_pitch_and_speed__reach_samples(tmp_path):
    shards = write_shards(tmp_path / "shards", [5])
    plain, off, higher, faster = (
        CavMaeSyncDataset(shards, tiny_processor(), frames="all", augmentation=options)[2]
        for options in (
            None, AugmentationOptions(), AugmentationOptions(pitch=8), AugmentationOptions(speed=(1.1, 1.1))
        )
    )  # fmt: skip

    assert all(torch.equal(plain[name], off[name]) for name in ("input_values", "pixel_values_videos", "frame_times"))
    assert torch.equal(plain["input_values"], higher["input_values"])  # the clip's bins are all alike
    assert torch.allclose(faster["frame_times"], plain["frame_times"] / 1.1)
    assert torch.equal(plain["pixel_values_videos"], faster["pixel_values_videos"])
    # A ramp over time, 0.005 a row: the middle of a frame's window is what it was, to half a row; the ramp is steeper.
    before, after = plain["input_values"][1:3], faster["input_values"][1:3]
    assert torch.allclose(after[:, 24], before[:, 24], atol=0.003)
    assert torch.allclose(after[:, 40] - after[:, 8], 1.1 * (before[:, 40] - before[:, 8]), atol=0.004)
    assert not torch.allclose(after[:, 40] - after[:, 8], before[:, 40] - before[:, 8], atol=0.008)


def test_pitch_and_speed__need_log_mels_and_the_times_of_frames():
    with pytest.raises(ValueError, match='`speed` needs `alignment="time"`'):
        SampleAugmentation(AugmentationOptions(speed=(0.9, 1.1)), tiny_processor(alignment="reference"))
    processor = tiny_processor()
    processor.feature_extractor = CavMaeSyncFeatureExtractor(features="waveform")
    for options in ({"pitch": 2}, {"speed": (0.9, 1.1)}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` varies log-mels"):
            SampleAugmentation(AugmentationOptions(**options), processor)


# --- mixing ---------------------------------------------------------------------------------------------------------


def test_mix_windows__waveform_rule_is_the_mean_of_mixed_waveforms():
    """Mel energies add with squared weights: on average over unrelated audio, that is what mixing waveforms gives."""
    extractor = CavMaeSyncFeatureExtractor()
    generator = torch.Generator().manual_seed(0)
    first, second = 0.1 * torch.randn(2, 80000, generator=generator)
    second = second.cumsum(0).sub(second.cumsum(0).mean()).mul(0.01)  # low-pitched, unlike the first
    weight = 0.6

    def normalised(waveform: torch.Tensor) -> torch.Tensor:
        return (extractor.log_mel(waveform) - extractor.mean) / extractor.std

    def energy(values: torch.Tensor) -> torch.Tensor:
        return torch.exp(values * extractor.std + extractor.mean).mean(dim=0)

    true = energy(normalised(weight * first + (1 - weight) * second))
    by_rule = energy(mix_windows(normalised(first), normalised(second), weight, extractor))
    by_average = energy(mix_windows(normalised(first), normalised(second), weight, extractor, rule="spectrogram"))
    # 498 frames leave a few per cent of chance in each bin's mean energy.
    assert (by_rule / true).log().abs().mean() < 0.05
    assert (by_average / true).log().abs().mean() > 0.2


def test_mix_windows__edges():
    extractor = tiny_processor().feature_extractor
    silent = torch.full((2, 3), (SILENCE - extractor.mean) / extractor.std)
    loud = torch.ones(2, 3)
    assert torch.equal(mix_windows(loud, silent, 1.0, extractor), loud)
    assert torch.equal(mix_windows(loud, silent, 0.0, extractor), silent)
    # Beside silence, audio only gets quieter: by 2 ln(weight) in the log-mel.
    mixed = mix_windows(loud, silent, 0.5, extractor)
    assert torch.allclose(mixed, loud + 2 * math.log(0.5) / extractor.std, atol=1e-5)
    assert torch.allclose(mix_windows(silent, silent, 0.5, extractor), silent)  # never below the floor
    assert torch.allclose(mix_windows(loud, silent, 0.25, extractor, rule="spectrogram"), 0.25 * loud + 0.75 * silent)


def make_samples(count: int) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "pixel_values_videos": torch.randn(2, 3, 32, 32, generator=generator),
            "input_values": torch.randn(2, 48, 16, generator=generator),
            "padding_mask": torch.ones(2, dtype=torch.bool),
            "padding_mask_videos": torch.ones(2, dtype=torch.bool),
            "frame_times": torch.zeros(2, dtype=torch.float64),
            "labels": [number % 5],
            "clip_id": f"clip-{number}",
            "epoch": 0,
        }
        for number in range(count)
    ]


def collate(samples, **options):
    collator = CavMaeSyncCollator(
        tiny_processor(), "multi_label_classification", 5, augmentation=AugmentationOptions(**options)
    )
    return collator(samples)


def test_mixup__labels_pixels_and_windows_have_the_same_weight():
    samples = make_samples(4)
    plain, mixed = collate(samples), collate(samples, mixup=1.0)
    extractor = tiny_processor().feature_extractor
    for place in range(4):
        partner = (place + 1) % 4
        weight = float(mixed["labels"][place, place])
        assert 0.05 < weight < 0.95
        assert mixed["labels"][place].sum() == pytest.approx(1.0)
        assert float(mixed["labels"][place, partner]) == pytest.approx(1.0 - weight)
        pixels = plain["pixel_values_videos"]
        expected = weight * pixels[place] + (1 - weight) * pixels[partner]
        assert torch.allclose(mixed["pixel_values_videos"][place], expected, atol=1e-5)
        values = plain["input_values"]
        expected = mix_windows(values[place], values[partner], weight, extractor)
        assert torch.allclose(mixed["input_values"][place], expected, atol=1e-4)
    assert len(set(mixed["labels"].diagonal().tolist())) == 4  # a weight of each sample's own


def test_mixup__comes_as_often_as_asked_and_by_the_clip():
    samples = make_samples(200)
    mixed = collate(samples, mixup=0.5)
    soft = ((mixed["labels"] > 0) & (mixed["labels"] < 1)).any(dim=1)
    assert 70 < int(soft.sum()) < 130
    reversed_soft = collate(samples[::-1], mixup=0.5)["labels"]
    assert torch.equal(((reversed_soft > 0) & (reversed_soft < 1)).any(dim=1).flip(0), soft)
    assert torch.equal(collate(samples, mixup=0.0)["labels"], collate(samples)["labels"])


def test_mixup__leaves_clips_with_absent_tracks_alone():
    samples = make_samples(3)
    samples[1]["padding_mask"] = torch.zeros(2, dtype=torch.bool)
    plain, mixed = collate(samples), collate(samples, mixup=1.0)
    assert torch.equal(mixed["labels"][:2], plain["labels"][:2])
    assert torch.equal(mixed["input_values"][:2], plain["input_values"][:2])
    assert not torch.equal(mixed["labels"][2], plain["labels"][2])


def test_mixup__weights_follow_the_beta_distribution():
    weights = np.array([mixing_weight(10.0, make_generator("beta", number)) for number in range(2000)])
    # Beta(10, 10): mean 1/2, variance 1 / (4 * 21).
    assert abs(weights.mean() - 0.5) < 0.01 and abs(weights.var() * 84 - 1) < 0.15


def test_label_smoothing__spreads_the_share_and_commutes_with_mixing():
    labels = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1, 1, 0, 0]])
    smoothed = smooth_labels(labels, 0.1)
    assert smoothed[0].tolist() == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])
    assert smoothed[0].sum() == pytest.approx(1.0)
    mixed = 0.3 * labels[0] + 0.7 * labels[1]
    assert torch.allclose(smooth_labels(mixed, 0.1), 0.3 * smoothed[0] + 0.7 * smoothed[1])
    samples = make_samples(2)
    assert torch.allclose(
        collate(samples, label_smoothing=0.1)["labels"], smooth_labels(collate(samples)["labels"], 0.1)
    )


def test_single_label__becomes_probabilities_when_softened():
    collator = CavMaeSyncCollator(
        tiny_processor(), "single_label_classification", 5, augmentation=AugmentationOptions(label_smoothing=0.2)
    )
    labels = collator(make_samples(2))["labels"]
    assert labels.shape == (2, 5) and torch.allclose(labels.sum(dim=1), torch.ones(2))


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"mixup": -0.1},
        {"color_jitter": 2.0},
        {"label_smoothing": 1.1},
        {"time_mask": -1},
        {"noise": -0.1},
        {"pitch": -1},
        {"speed": (1.1, 0.9)},
        {"speed": (0.0, 1.0)},
        {"noise_snr_db": (5.0, -5.0)},
        {"noise_snr_db": (-101.0, 0.0)},
        {"crop_scale": (0.5, 0.1)},
        {"crop_scale": (0.0, 1.0)},
        {"crop_ratio": (0.0, 1.0)},
        {"mixup_alpha": 0.0},
        {"mask_fill": "zero"},
        {"mixup_audio": "sound"},
    ],
)
def test_options__out_of_range_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentationOptions(**wrong)


def test_presets__published_values():
    assert AUGMENTATION_PRESETS["none"] == AugmentationOptions()
    assert AUGMENTATION_PRESETS["cavmae_sync"] == AugmentationOptions(crop_scale=(0.08, 1.0), flip=0.5)
    fine = dataclasses.asdict(AUGMENTATION_PRESETS["cavmae_classification"])
    assert (fine["frequency_mask"], fine["time_mask"], fine["mixup"], fine["label_smoothing"]) == (48, 192, 0.5, 0.1)
