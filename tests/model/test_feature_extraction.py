"""Waveform to windows: parity with the published pipeline, the two alignments, and clear refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cavmae_sync_hf import CavMaeSyncForAudioVisualClassification, CavMaeSyncProcessor
from cavmae_sync_hf.model import feature_extraction_cavmae_sync
from cavmae_sync_hf.model.feature_extraction_cavmae_sync import SILENCE, CavMaeSyncFeatureExtractor
from helpers.tiny import tiny_config

FIXTURES = Path(__file__).parents[1] / "fixtures"
CASES = {"preprocess_10s": 16, "preprocess_3s": 10}
RATE = 16000


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(int(seconds * RATE), generator=generator)


def assert_log_mel_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-4 wherever float32 can carry that.

    A bin far below the loudest bin of its frame holds the rounding of the Fourier transform: torchaudio itself moves
    there by 2e-3 between two machines or thread counts. So each energy may move by two float32 steps of the frame's
    largest energy, beside the 1e-4.
    """
    energy = expected.double().exp()
    rounding = 2 * torch.finfo(torch.float32).eps * energy.amax(dim=-1, keepdim=True) / energy
    excess = (actual - expected).abs() - (1e-4 + rounding)
    assert excess.max() <= 0
    # ... which leaves no room for a systematic difference.
    assert (actual - expected).abs().mean() < 1e-5


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[dict[str, torch.Tensor], int]:
    return load_file(FIXTURES / f"{request.param}.safetensors"), CASES[request.param]


def test_log_mel__equals_published_filter_bank(case: tuple[dict[str, torch.Tensor], int]) -> None:
    tensors, _ = case
    log_mel = CavMaeSyncFeatureExtractor().log_mel(tensors["waveform"][0])
    assert (tensors["fbank"][len(log_mel) :] == 0).all()
    assert_log_mel_close(log_mel, tensors["fbank"][: len(log_mel)])


@pytest.mark.parametrize("bins", [64, 128])
def test_log_mel__equals_torchaudio(bins: int) -> None:
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    time = torch.arange(3 * RATE) / RATE
    waveform = 0.3 * torch.sin(2 * torch.pi * (200 + 900 * time) * time) + 0.1 * noise(3) + 0.02
    expected = kaldi.fbank(
        (waveform - waveform.mean()).unsqueeze(0),
        htk_compat=True,
        sample_frequency=RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=bins,
        dither=0.0,
        frame_shift=10,
    )
    actual = CavMaeSyncFeatureExtractor(num_mel_bins=bins).log_mel(waveform)
    assert actual.shape == expected.shape
    # The same operations in the same order: equal on one machine but for the blocking of the matrix product.
    assert_log_mel_close(actual, expected)
    loud = expected > expected.amax(dim=-1, keepdim=True) - 10.0
    assert (actual - expected)[loud].abs().max() < 2e-5


def test_reference_alignment__equals_published_windows(case: tuple[dict[str, torch.Tensor], int]) -> None:
    tensors, count = case
    extractor = CavMaeSyncFeatureExtractor(alignment="reference", num_frames=count)
    output = extractor(tensors["waveform"][0], sampling_rate=RATE, return_tensors="pt", return_times=True)
    starts = tensors["window_starts"].tolist()
    assert extractor.window_starts([0.0] * count) == starts
    assert output["input_values"].shape == (1, count, 416, 128)
    assert output["padding_mask"].all()
    assert output["window_times"][0, :, 0].tolist() == pytest.approx([start / 100 for start in starts])
    length = extractor.spectrogram_length(tensors["waveform"].shape[1])
    for name, index in (("first", 0), ("mid", count // 2), ("last", count - 1)):
        expected, actual = tensors[f"window_{name}"], output["input_values"][0, index]
        held = max(0, min(length - starts[index], 416))
        # Padding is exact: zeros before normalisation.
        assert torch.equal(actual[held:], expected[held:])
        if held:
            assert_log_mel_close(actual[:held] * 4.4849 - 5.081, expected[:held] * 4.4849 - 5.081)


def test_reference_alignment__windows_are_slices_of_the_padded_spectrogram() -> None:
    extractor = CavMaeSyncFeatureExtractor(alignment="reference", num_frames=7, audio_length=96)
    log_mel = extractor.log_mel(noise(12))
    assert len(log_mel) > 1024
    cut = extractor.windows(log_mel, [0.0] * 7)
    for value, start in zip(cut.values, cut.starts, strict=True):
        assert torch.equal(value, (log_mel[start : start + 96] - (-5.081)) / 4.4849)
    assert cut.starts[0] == 0 and cut.starts[1] == round(1024 / 7) - 48


def test_reference_alignment__plain_cav_mae_sees_the_whole_clip() -> None:
    extractor = CavMaeSyncFeatureExtractor(alignment="reference", num_frames=3, audio_length=1024)
    output = extractor(noise(2), sampling_rate=RATE, return_tensors="pt")["input_values"]
    assert output.shape == (1, 3, 1024, 128)
    assert torch.equal(output[0, 0], output[0, 2])
    assert torch.equal(output[0, 0, 198:], torch.full((826, 128), 0.0).sub(-5.081).div(4.4849))


def test_time_alignment__click_at_a_frame_time_lies_in_the_middle_of_its_window() -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96)
    times = [0.6, 1.5, 2.35]
    for index, time in enumerate(times):
        waveform = torch.zeros(3 * RATE)
        waveform[round(time * RATE)] = 1.0
        window = extractor(waveform, sampling_rate=RATE, frame_times=times, return_tensors="pt")["input_values"][0]
        loudest = window[index].mean(dim=-1).argmax().item()
        # The 25 ms analysis window of a spectrogram frame reaches up to two hops ahead of the frame's start.
        assert -2 <= loudest - 48 <= 0


def test_time_alignment__windows_are_centred_whatever_the_length() -> None:
    extractor = CavMaeSyncFeatureExtractor()
    for seconds in (2.0, 10.0, 31.7):
        output = extractor(noise(seconds), sampling_rate=RATE, return_tensors="pt", return_times=True)
        centres = output["window_times"].mean(dim=-1)
        expected = (torch.arange(16, dtype=torch.float64) + 0.5) * seconds / 16
        torch.testing.assert_close(output["frame_times"][0], expected)
        # Window starts are whole spectrogram frames, so centres move by at most half a hop.
        assert (centres[0] - expected).abs().max() <= 0.005 + 1e-9


def test_time_alignment__outside_the_clip_is_silence() -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96)
    output = extractor(noise(2), sampling_rate=RATE, frame_times=[0.0, 1.0, 1.99, 9.0], return_tensors="pt")
    windows, silence = output["input_values"][0], (SILENCE + 5.081) / 4.4849
    torch.testing.assert_close(windows[0, :48], torch.full((48, 128), silence))
    # Means over the bins: the narrowest filters hold no Fourier bin and are always at the floor.
    assert (windows[0, 48:].mean(dim=-1) > 0).all() and (windows[1].mean(dim=-1) > 0).all()
    torch.testing.assert_close(windows[2, 48:], torch.full((48, 128), silence))
    assert output["padding_mask"].tolist() == [[True, True, True, False]]
    quiet = extractor(torch.zeros(2 * RATE), sampling_rate=RATE, frame_times=[1.0], return_tensors="pt")
    torch.testing.assert_close(quiet["input_values"][0, 0], torch.full((96, 128), silence))


def test_time_alignment__coverage_and_its_threshold() -> None:
    times = [0.0, 1.0, 5.0]
    options = {"sampling_rate": RATE, "frame_times": times, "return_tensors": "pt", "return_times": True}
    output = CavMaeSyncFeatureExtractor(audio_length=96)(noise(2), **options)
    assert output["window_coverage"].tolist() == [[0.5, 1.0, 0.0]]
    assert output["padding_mask"].tolist() == [[True, True, False]]
    strict = CavMaeSyncFeatureExtractor(audio_length=96, min_window_coverage=0.5)(noise(2), **options)
    assert strict["padding_mask"].tolist() == [[False, True, False]]


def test_time_alignment__clip_longer_than_its_audio() -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96, num_frames=4)
    output = extractor(noise(2), sampling_rate=RATE, duration=8.0, return_tensors="pt", return_times=True)
    assert output["frame_times"].tolist() == [[1.0, 3.0, 5.0, 7.0]]
    assert output["padding_mask"].tolist() == [[True, False, False, False]]


def test_windows__part_of_a_long_clip_gives_the_same_windows() -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96)
    log_mel, times = extractor.log_mel(noise(6)), [2.5, 3.0, 3.2]
    whole = extractor.windows(log_mel, times)
    part = extractor.windows(log_mel[150:420], times, first_frame=150, total_frames=len(log_mel))
    assert torch.equal(part.values, whole.values)
    assert torch.equal(part.coverage, whole.coverage) and part.starts == whole.starts


def test_batch__equals_single_clips_of_any_length() -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96, num_frames=4)
    clips = [noise(2, 1), noise(0.7, 2), noise(13, 3)]
    batch = extractor(clips, sampling_rate=RATE, return_tensors="pt", return_times=True)
    for index, clip in enumerate(clips):
        single = extractor(clip, sampling_rate=RATE, return_tensors="pt", return_times=True)
        for name, value in single.items():
            torch.testing.assert_close(batch[name][index], value[0])


def test_log_mel__tensor_and_list_agree() -> None:
    extractor = CavMaeSyncFeatureExtractor()
    clips = torch.stack([noise(1.5, 1), noise(1.5, 2)])
    stacked = extractor.log_mel(clips)
    assert stacked.shape == (2, extractor.spectrogram_length(clips.shape[1]), 128)
    for together, alone in zip(stacked, extractor.log_mel(list(clips)), strict=True):
        torch.testing.assert_close(together, alone)
    assert extractor.log_mel([]) == []


def test_call__accepts_lists_arrays_and_integer_samples() -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96, num_frames=2)
    pcm = (noise(0.5).clamp(-1, 1) * 32767).round().to(torch.int16)
    floats = pcm.float() / 32768
    expected = extractor(floats, sampling_rate=RATE, return_tensors="pt")["input_values"]
    forms = [pcm, pcm.numpy(), floats.numpy(), floats.double(), floats.tolist(), floats.unsqueeze(0), [floats.numpy()]]
    forms += [floats.view(1, 1, -1), pcm.numpy()[::-1][::-1], pcm.int() * 65536, [floats.tolist()]]
    for form in forms:
        torch.testing.assert_close(extractor(form, sampling_rate=RATE, return_tensors="pt")["input_values"], expected)
    eight_bit = (floats * 128 + 128).round().clamp(0, 255).to(torch.uint8)
    coarse = extractor(eight_bit, sampling_rate=RATE, return_tensors="pt")["input_values"]
    # 8 bit adds its own noise; the loud bins stay.
    assert (coarse - expected).abs().mean() < 0.1


def test_call__takes_audio_as_datasets_decodes_it() -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96, num_frames=2)
    waveforms = [noise(1).numpy(), noise(0.5, 1).numpy()]
    mappings = [
        {"path": None, "array": waveforms[0], "sampling_rate": RATE},
        {"array": waveforms[1], "sampling_rate": 8000},
    ]
    for mapping, waveform, rate in zip(mappings, waveforms, (RATE, 8000), strict=True):
        expected = extractor(waveform, sampling_rate=rate, return_tensors="pt")["input_values"]
        assert torch.equal(extractor(mapping, return_tensors="pt")["input_values"], expected)
        assert torch.equal(
            extractor(audio=waveform, sampling_rate=rate, return_tensors="pt")["input_values"], expected
        )
    assert extractor(mappings, return_tensors="pt")["input_values"].shape == (2, 2, 96, 128)


def test_call__two_rows_are_two_clips_and_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(feature_extraction_cavmae_sync.logger, "warning_once", said.append)
    extractor = CavMaeSyncFeatureExtractor(audio_length=96, num_frames=1)
    stereo = torch.stack((noise(1), noise(1, 1)))
    assert extractor(stereo, sampling_rate=RATE, return_tensors="pt")["input_values"].shape[0] == 2
    assert len(said) == 1 and "[waveform]" in said[0]
    assert extractor([stereo], sampling_rate=RATE, return_tensors="pt")["input_values"].shape[0] == 1
    assert len(said) == 1


def test_call__two_dimensional_array_is_a_batch() -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96, num_frames=2)
    output = extractor(np.zeros((3, RATE), dtype=np.float32), sampling_rate=RATE, return_tensors="np")
    assert output["input_values"].shape == (3, 2, 96, 128)
    assert isinstance(output["input_values"], np.ndarray)


@pytest.mark.parametrize("channel", ["first", "mean"])
def test_channel__first_or_mean(channel: str) -> None:
    left, right = noise(1, 1), noise(1, 2)
    extractor = CavMaeSyncFeatureExtractor(audio_length=96, num_frames=2, channel=channel)
    output = extractor([torch.stack((left, right))], sampling_rate=RATE, return_tensors="pt")["input_values"]
    single = left if channel == "first" else (left + right) / 2
    torch.testing.assert_close(output, extractor(single, sampling_rate=RATE, return_tensors="pt")["input_values"])


@pytest.mark.parametrize("rate", [8000, 44100, 48000, 96000])
def test_other_rates__are_resampled(rate: int) -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96, num_frames=1)
    tones = [
        0.5 * torch.sin(2 * torch.pi * 1000 * torch.arange(2 * samples) / samples).float() for samples in (RATE, rate)
    ]
    expected = extractor(tones[0], sampling_rate=RATE, return_tensors="pt")["input_values"]
    actual = extractor(tones[1], sampling_rate=rate, return_tensors="pt")["input_values"]
    assert actual.mean(dim=(0, 1, 2)).argmax() == expected.mean(dim=(0, 1, 2)).argmax()
    # The tone's own bin keeps its level; far bins hold the resampler's stop band.
    assert (actual - expected).abs().amin() < 1e-3
    assert abs(actual.max() - expected.max()) < 1e-2


def test_short_audio__is_one_padded_frame() -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96, num_frames=2)
    assert extractor.log_mel(noise(0.01)).shape == (1, 128)
    output = extractor(noise(0.2), sampling_rate=RATE, return_tensors="pt", return_times=True)
    assert output["padding_mask"].all() and output["window_coverage"].max() < 0.2


def test_missing_audio__is_marked_absent() -> None:
    for alignment, level in (("time", SILENCE), ("reference", 0.0)):
        extractor = CavMaeSyncFeatureExtractor(audio_length=96, num_frames=2, alignment=alignment)
        output = extractor([noise(1), None], sampling_rate=RATE, return_tensors="pt")
        assert output["padding_mask"].tolist() == [[True, True], [False, False]]
        torch.testing.assert_close(output["input_values"][1], torch.full((2, 96, 128), (level + 5.081) / 4.4849))


def test_frame_times__of_different_number_are_filled_up() -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96)
    output = extractor(
        [noise(2, 1), noise(2, 2)],
        sampling_rate=RATE,
        frame_times=[[0.5], [0.5, 1.5]],
        return_tensors="pt",
        return_times=True,
    )
    assert output["frame_times"].isnan().tolist() == [[False, True], [False, False]]
    assert output["window_times"].isnan().any(-1).tolist() == [[False, True], [False, False]]
    assert output["window_coverage"][0, 1] == 0
    assert output["padding_mask"].tolist() == [[True, False], [True, True]]
    torch.testing.assert_close(output["input_values"][0, 1], torch.full((96, 128), (SILENCE + 5.081) / 4.4849))


def test_no_return_tensors__gives_one_array_per_clip() -> None:
    output = CavMaeSyncFeatureExtractor(audio_length=96, num_frames=2)([noise(1), noise(2)], sampling_rate=RATE)
    assert [value.shape for value in output["input_values"]] == [(2, 96, 128)] * 2
    assert all(isinstance(value, np.ndarray) for value in output["input_values"])


def test_save_and_load__keeps_every_setting_and_no_arrays(tmp_path: Path) -> None:
    settings = {"num_frames": 5, "audio_length": 64, "num_mel_bins": 32, "alignment": "reference", "channel": "mean"}
    settings |= {"mean": -4.0, "std": 3.0, "reference_length": 512, "min_window_coverage": 0.25}
    extractor = CavMaeSyncFeatureExtractor(**settings)
    extractor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert not {"mel_filters", "window", "return_attention_mask"} & set(written)
    loaded = CavMaeSyncFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict()
    assert {name: getattr(loaded, name) for name in settings} == settings
    left, right = (e(noise(1), sampling_rate=RATE, return_tensors="pt")["input_values"] for e in (extractor, loaded))
    assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("waveform", "options", "message"),
    [
        (noise(1), {"sampling_rate": None}, "`sampling_rate` is missing"),
        (noise(1), {"sampling_rate": 0}, "positive"),
        (noise(1), {"sampling_rate": 16000.5}, "whole number"),
        ("clip.wav", {}, "text"),
        (Path("clip.wav"), {}, "text"),
        (["clip.wav"], {}, "text"),
        (b"RIFF", {}, "text"),
        (np.array(["a", "b"]), {}, "not samples"),
        (torch.tensor([0.0, float("nan")]), {}, "NaN"),
        (torch.tensor([0.0, float("inf")]), {}, "infinite"),
        (torch.zeros(0), {}, "empty"),
        ([], {}, "empty"),
        (torch.full((100,), 3000.0), {}, "32768"),
        (torch.zeros(100, dtype=torch.int64), {}, "int16"),
        (torch.zeros(1, 1, 1, 100), {}, r"\(1, 1, 1, 100\)"),
        ([torch.zeros(100, 2)], {}, "channels first"),
        (torch.zeros(16000, 2), {}, r"\(16000, 2\).*channels first"),
        (torch.zeros(3, 16000, 2), {}, r"\(16000, 2\).*channels first"),
        ([[0.0, 0.1]] * 16000, {}, r"\(16000, 2\).*channels first"),
        (None, {}, "`raw_speech` or as `audio`"),
        (noise(1), {"audio": noise(1)}, "one of them"),
        ({"path": "clip.wav"}, {}, "'array'"),
        ({"array": noise(1), "sampling_rate": 8000}, {}, "8000 and the call says 16000"),
        (5.0, {}, "float"),
        ([[0.0, 1.0], [0.0]], {"frame_times": [[0.1]]}, "1 rows for 2 clips"),
        ([noise(1), noise(1)], {"frame_times": [0.1, 0.2]}, "2 clips"),
        (noise(1), {"frame_times": []}, "0 rows"),
        (noise(1), {"frame_times": [float("nan")]}, "not finite"),
        (noise(1), {"frame_times": [0.1, 0.2], "num_frames": 3}, "`num_frames` is 3"),
        (noise(1), {"num_frames": 0}, "at least 1"),
        (noise(1), {"duration": [1.0, 2.0]}, "2 values for 1 clips"),
    ],
)
def test_bad_input__is_refused_with_the_remedy(waveform: object, options: dict, message: str) -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96, num_frames=2)
    with pytest.raises(ValueError, match=message):
        extractor(waveform, **{"sampling_rate": RATE, **options})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alignment": "frames"}, "alignment"),
        ({"channel": "left"}, "channel"),
        ({"std": 0.0}, "std"),
        ({"audio_length": 0}, "audio_length"),
        ({"num_frames": 2.5}, "whole number"),
        ({"sampling_rate": 11025}, "multiple of 100"),
        ({"min_window_coverage": 1.0}, "min_window_coverage"),
        ({"alignment": "reference", "audio_length": 1040}, "at most 1024"),
    ],
)
def test_bad_settings__are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CavMaeSyncFeatureExtractor(**settings)


def test_unknown_argument__is_an_error_but_the_usual_ones_are_ignored() -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96, num_frames=1)
    extractor(noise(1), sampling_rate=RATE, padding=True, truncation=False)
    with pytest.raises(TypeError, match="frame_time"):
        extractor(noise(1), sampling_rate=RATE, frame_time=[0.5])


def test_pad__fills_up_clips_with_fewer_windows() -> None:
    extractor = CavMaeSyncFeatureExtractor(audio_length=96, num_mel_bins=16)
    clips = [extractor(noise(2), sampling_rate=RATE, num_frames=frames) for frames in (1, 3)]
    rows = [{name: values[0] for name, values in clip.items()} | {"label": 7} for clip in clips]
    lists = [
        {name: getattr(value, "tolist", lambda value=value: value)() for name, value in row.items()} for row in rows
    ]

    for given in (rows, lists, {name: [row[name] for row in rows] for name in rows[0]}):
        batch = extractor.pad(given, return_tensors="pt", return_attention_mask=True)
        assert batch["input_values"].dtype == torch.float32 and batch["label"].tolist() == [7, 7]
        assert batch["padding_mask"].tolist() == [[True, False, False], [True, True, True]]
        assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
        for row, values in zip(rows, batch["input_values"], strict=True):
            np.testing.assert_array_equal(values[: len(row["input_values"])], row["input_values"])
        assert (batch["input_values"][0, 1:] == extractor.outside_value).all()
    assert isinstance(extractor.pad(rows)["input_values"], np.ndarray)
    longer = extractor.pad(rows, padding="max_length", max_length=5, pad_to_multiple_of=4, return_tensors="pt")
    assert longer["padding_mask"].sum(1).tolist() == [1, 3] and longer["padding_mask"].shape == (2, 8)
    shorter = extractor.pad(rows, padding="max_length", max_length=2, truncation=True, return_tensors="pt")
    assert shorter["padding_mask"].tolist() == [[True, False], [True, True]]
    for options in ({"padding": False}, {"padding": "max_length", "max_length": 2}):
        with pytest.raises(ValueError, match="1 to 3 windows"):
            extractor.pad(rows, **options)
    with pytest.raises(ValueError, match="nothing to pad"):
        extractor.pad([{"label": 1}])


def test_attention_mask__is_the_padding_mask_under_the_name_of_other_extractors() -> None:
    model = CavMaeSyncForAudioVisualClassification(tiny_config()).eval()
    extractor = CavMaeSyncProcessor.from_config(model.config).feature_extractor
    waveforms = [noise(2).numpy(), None]
    batch = extractor(waveforms, sampling_rate=RATE, return_tensors="pt", padding=True, return_attention_mask=True)
    assert batch["attention_mask"].dtype == torch.int64
    assert torch.equal(batch["attention_mask"].bool(), batch["padding_mask"]) and not batch["padding_mask"].all()
    masked = {"input_values": batch["input_values"], "attention_mask": batch["attention_mask"]}

    with torch.no_grad():
        expected = model(
            batch["input_values"].new_zeros(2, 4, 3, 32, 32), batch["input_values"], batch["padding_mask"]
        )
        found = model(batch["input_values"].new_zeros(2, 4, 3, 32, 32), **masked)
        assert torch.equal(model(**batch).logits, model(**masked).logits)
    assert torch.equal(found.logits, expected.logits)
    with pytest.raises(ValueError, match="padding_mask_videos"):
        model(torch.zeros(2, 4, 3, 32, 32), attention_mask=batch["attention_mask"])
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        model(input_values=batch["input_values"], attention_mask=batch["attention_mask"][:, :1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_log_mel__cuda_equals_cpu() -> None:
    extractor = CavMaeSyncFeatureExtractor()
    clips = torch.stack([noise(3, 1), noise(3, 2)])
    on_device = extractor(clips, sampling_rate=RATE, return_tensors="pt", device="cuda")["input_values"]
    assert on_device.device.type == "cuda"
    expected = extractor(clips, sampling_rate=RATE, return_tensors="pt")["input_values"]
    torch.testing.assert_close(on_device.cpu(), expected, atol=1e-4, rtol=0)
