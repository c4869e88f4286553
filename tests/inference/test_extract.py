"""Features of windows: what a row is, that streaming changes nothing, and the control condition."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor, InferenceError
from cavmae_sync_hf.inference import moments as moments_module
from cavmae_sync_hf.inference import windows as windows_module
from cavmae_sync_hf.inference.extract import extract_features
from cavmae_sync_hf.inference.features import choose_features, encode_moments
from cavmae_sync_hf.inference.windows import WindowGrid, derange
from cavmae_sync_hf.model.errors_cavmae_sync import Hint
from cavmae_sync_hf.provenance import model_fingerprint
from helpers.clips import noise, tone, write_clip
from helpers.tiny import tiny_config, tiny_inputs

# Frames appear at the very times of moments half a second apart.
FPS = 4


def direct(tiny, path: Path, num_frames: int):
    """The model's own output over a whole clip, and its inputs."""
    model, processor = tiny
    inputs = processor(videos=str(path), num_frames=num_frames, return_tensors="pt")
    with torch.inference_mode():
        return model(**inputs, output_hidden_states=True), inputs


def windows_of(values: torch.Tensor, count: int, per_window: int, per_stride: int) -> np.ndarray:
    """Means over the moments of every window, of values `(moments, hidden)`."""
    starts = range(0, count - per_window + 1, per_stride)
    return torch.stack([values[at : at + per_window].mean(dim=0) for at in starts]).numpy()


@pytest.mark.parametrize(
    ("window", "stride", "hop", "expected"),
    [
        (5, 1, None, (0.5, 10, 2)),
        (10, 10, None, (0.625, 16, 16)),  # the published 16 frames in 10 s
        (0.25, 1, None, (0.25, 1, 4)),  # shorter than the stride: three of four moments belong to no window
        (4.47, 1.49, None, (1.49 / 3, 9, 3)),
        (1, 1, 1, (1, 1, 1)),
        (0.5, 0.1, 0.1, (0.1, 5, 1)),
    ],
)
def test_grid__samples_all_windows_alike(window, stride, hop, expected):
    grid = WindowGrid.of(window, stride, hop)

    assert (grid.per_window, grid.per_stride) == expected[1:]
    assert grid.hop == pytest.approx(expected[0])
    assert ((grid.centres() > 0) & (grid.centres() < window)).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": 0, "stride": 1}, "`window` is 0"),
        ({"window": 5, "stride": 0}, "`stride` is 0"),
        ({"window": -1, "stride": 1}, "above 0"),
        ({"window": float("nan"), "stride": 1}, "`window` is nan"),
        ({"window": float("inf"), "stride": 1}, "`window` is inf"),
        ({"window": 5, "stride": True}, "`stride` is True"),
        ({"window": 5, "stride": 1, "hop": 0.3}, "Use 0.333333, or a stride of 0.9"),
        ({"window": 0.2, "stride": 1, "hop": 1}, "No moment lies in a window of 0.2 s"),
    ],
)
def test_grid__refuses_what_cannot_work(settings, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        WindowGrid.of(**settings)


def test_rows__are_the_means_of_what_the_model_gives_for_the_same_moments(tiny, videos):
    model, _ = tiny
    found = extract_features(*tiny, videos / "1.mp4", window=2, stride=1, modalities=["a", "v", "av"], hop=0.5)

    output, inputs = direct(tiny, videos / "1.mp4", 8)
    assert len(found) == 3
    # Sums in another order, and spectrograms of another piece of the sound.
    np.testing.assert_allclose(found.features["a"], windows_of(output.audio_embeds[0], 8, 4, 2), atol=1e-5)
    np.testing.assert_allclose(found.features["v"], windows_of(output.video_embeds[0], 8, 4, 2), atol=1e-5)
    with torch.inference_mode():
        tokens = [
            model.patch_tokens(model.tower(modality)(model.as_images(modality, inputs[name]).flatten(0, 1)))
            for modality, name in (("audio", "input_values"), ("video", "pixel_values_videos"))
        ]
        fused = model.fuse(*tokens).mean(dim=1)
    np.testing.assert_allclose(found.features["av"], windows_of(fused, 8, 4, 2), atol=1e-5)
    cosines = torch.diagonal(output.similarity[0])
    expected = [float(cosines[at : at + 4].mean()) for at in (0, 2, 4)]
    assert [row["similarity"] for row in found.timing] == pytest.approx(expected, abs=1e-5)


def test_rows__do_not_depend_on_the_size_of_chunks(tiny, videos):
    settings = {"window": 2, "stride": 0.5, "layers": [1]}
    whole = extract_features(*tiny, videos / "0.mp4", **settings)
    pieces = extract_features(*tiny, videos / "0.mp4", batch_frames=3, **settings)

    assert list(whole.features) == ["a", "v", "av", "a_layer_01", "v_layer_01"]
    for name in whole.features:
        np.testing.assert_allclose(whole.features[name], pieces.features[name], atol=1e-5)
    assert [row["frame_times"] for row in whole.timing] == [row["frame_times"] for row in pieces.timing]


def test_layers__are_the_mean_patches_without_global_token_and_registers(tiny, videos):
    found = extract_features(
        *tiny, videos / "1.mp4", window=4, stride=4, hop=0.5, modalities=["a_patches", "v"], layers=[0, 2, -1]
    )

    output, _ = direct(tiny, videos / "1.mp4", 8)
    assert list(found.features) == [
        "a_patches", "v", *(f"{letter}_layer_{layer}" for layer in ("00", "02", "03") for letter in ("a", "v")),
    ]  # fmt: skip
    for layer in (0, 2, 3):
        for letter, states, patches in (
            ("a", output.audio_hidden_states, 12),
            ("v", output.video_hidden_states, 16),
        ):
            expected = states[layer][0, :, 1 : 1 + patches].mean(dim=(0, 1))
            np.testing.assert_allclose(found.features[f"{letter}_layer_{layer:02d}"][0], expected, atol=1e-5)
    np.testing.assert_allclose(
        found.features["a_patches"][0], output.audio_patch_embeds[0].mean(dim=(0, 1)), atol=1e-5
    )


def test_timing__says_what_a_row_has_seen_and_heard(tiny, videos):
    found = extract_features(*tiny, videos / "1.mp4", window=2, stride=1, hop=0.5)

    first, second, last = found.timing
    assert [row["window"] for row in found.timing] == [0, 1, 2]
    assert (second["start"], second["end"], second["centre"]) == (1, 3, 2)
    assert second["frame_times"] == pytest.approx([1.25, 1.75, 2.25, 2.75])
    # Windows of sound are 0.48 s long and centred on the frames.
    assert (second["audio_start"], second["audio_end"]) == pytest.approx((1.01, 2.99))
    assert (second["moments"], second["audio_moments"], second["video_moments"]) == (4, 4, 4)
    assert second["audio_coverage"] == 1 and not second["partial"]
    assert {row["id"] for row in found.timing} == {"1.mp4"}
    assert first["start"] == 0 and last["end"] == 4


def test_span__of_a_list_is_cut_out_and_timed_in_seconds_of_the_file(tiny, videos):
    clips = [{"path": str(videos / "0.mp4"), "id": "part", "start": 2.0, "end": 6.0}]
    part = extract_features(*tiny, clips, window=2, stride=2, hop=0.5, modalities=["v"])
    whole = extract_features(*tiny, videos / "0.mp4", window=2, stride=2, hop=0.5, modalities=["v"])

    assert [row["start"] for row in part.timing] == [2, 4]
    assert part.timing[0]["frame_times"] == pytest.approx([2.25, 2.75, 3.25, 3.75])
    np.testing.assert_allclose(part.features["v"], whole.features["v"][1:], atol=1e-6)


def test_rows_of_a_data_set__are_fetched_one_at_a_time(tiny, videos):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"video": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    content = [{"bytes": (videos / f"{number}.mp4").read_bytes(), "path": None} for number in range(2)]
    rows = datasets.Dataset.from_dict({"video": content}, features=features)
    found = extract_features(*tiny, rows, window=2, stride=2, modalities=["v"])

    expected = extract_features(*tiny, [videos / "0.mp4", videos / "1.mp4"], window=2, stride=2, modalities=["v"])
    np.testing.assert_array_equal(found.features["v"], expected.features["v"])
    assert [row["file"] for row in found.timing] == ["row 0"] * 3 + ["row 1"] * 2


def test_videos__of_several_files_are_refused(tiny, videos):
    clips = [{"path": str(videos / "1.mp4"), "audio": str(videos / "0.mp4"), "id": "both"}]
    with pytest.raises(InferenceError, match="audio or frames in files of their own"):
        extract_features(*tiny, clips, window=2)


def test_sound_inside__leaves_out_moments_that_hear_beyond_the_window(tiny, videos):
    settings = {"window": 1, "stride": 1, "hop": 0.25, "modalities": ["a", "v"]}
    inside = extract_features(*tiny, videos / "1.mp4", audio_context="inside", **settings)
    around = extract_features(*tiny, videos / "1.mp4", **settings)

    output, _ = direct(tiny, videos / "1.mp4", 16)
    # Centres at 0.125, 0.375, 0.625 and 0.875 s, each with 0.24 s of sound to either side.
    expected = torch.stack([output.audio_embeds[0, 4 * at + 1 : 4 * at + 3].mean(dim=0) for at in range(4)])
    np.testing.assert_allclose(inside.features["a"], expected, atol=1e-5)
    np.testing.assert_array_equal(inside.features["v"], around.features["v"])
    assert not np.allclose(inside.features["a"], around.features["a"])
    row = inside.timing[1]
    assert (row["audio_moments"], row["video_moments"]) == (2, 4)
    assert row["start"] - 0.25 <= row["audio_start"] < row["audio_end"] <= row["end"]


def test_audio_context__is_still_taken_under_its_earlier_name(tiny, videos):
    settings = {"window": 1, "stride": 1, "modalities": ["a"]}
    with pytest.warns(FutureWarning, match="now called `audio_context='inside'`"):
        earlier = extract_features(*tiny, videos / "1.mp4", sound="inside", **settings)
    now = extract_features(*tiny, videos / "1.mp4", audio_context="inside", **settings)
    np.testing.assert_array_equal(earlier.features["a"], now.features["a"])


def test_sound_inside__needs_windows_longer_than_the_models(tiny, videos):
    with pytest.raises(ValueError, match="windows of at least 0.73 s"):
        extract_features(*tiny, videos / "1.mp4", window=0.25, stride=0.25, audio_context="inside")


def test_partial__windows_are_dropped_or_means_of_what_is_there(tiny, videos):
    settings = {"window": 3, "stride": 2, "hop": 0.5, "modalities": ["v"]}
    dropped = extract_features(*tiny, videos / "2.mp4", **settings)
    kept = extract_features(*tiny, videos / "2.mp4", partial="keep", **settings)

    assert [row["start"] for row in dropped.timing] == [0, 2]
    assert [(row["start"], row["moments"], row["partial"]) for row in kept.timing] == [
        (0, 6, False), (2, 6, False), (4, 2, True),
    ]  # fmt: skip
    output, _ = direct(tiny, videos / "2.mp4", 10)
    np.testing.assert_allclose(kept.features["v"][2], output.video_embeds[0, 8:].mean(dim=0), atol=1e-5)


def test_video__shorter_than_a_window_is_refused_with_what_would_do(tiny, videos):
    with pytest.raises(InferenceError, match=r"1.mp4: has moments up to 3.75 s, too few .* keep partial ones"):
        extract_features(*tiny, videos / "1.mp4", window=30)

    with pytest.raises(InferenceError) as caught:
        extract_features(*tiny, videos / "1.mp4", window=30)
    assert caught.value.hints == (Hint("partial", "keep", "keep partial ones"),)
    kept = extract_features(*tiny, videos / "1.mp4", window=30, stride=30, partial="keep", modalities=["v"])
    assert len(kept) == 1


def test_gaps__between_windows_are_not_encoded(tiny, videos, monkeypatch):
    encoded: list[int] = []

    def count(model, inputs, features):
        encoded.append(inputs["pixel_values_videos"].shape[1])
        return encode_moments(model, inputs, features)

    monkeypatch.setattr(moments_module, "encode_moments", count)
    found = extract_features(*tiny, videos / "1.mp4", window=0.5, stride=2, hop=0.5, modalities=["v"])

    output, _ = direct(tiny, videos / "1.mp4", 8)
    assert sum(encoded) == 2
    np.testing.assert_allclose(found.features["v"], output.video_embeds[0, [0, 4]], atol=1e-5)


def test_memory__is_that_of_a_window_and_a_chunk(tiny, tmp_path, monkeypatch):
    held: list[int] = []
    add = windows_module._Rows.add

    def watch(self, *arguments):
        add(self, *arguments)
        held.append(len(self.held))

    monkeypatch.setattr(windows_module._Rows, "add", watch)
    video = write_clip(tmp_path / "long.mp4", seconds=40, fps=FPS, audio=False)
    extract_features(*tiny, video, window=2, stride=1, hop=0.5, modalities=["v"], batch_frames=4)

    assert len(held) == 20 and max(held) <= 4 + 4


def test_sound_alone__does_not_need_frames(tiny, videos, tmp_path):
    sound = write_clip(
        tmp_path / "sound.wav", seconds=4, video=False, audio=noise(4.0, seed=1), audio_codec="pcm_s16le"
    )
    alone = extract_features(*tiny, sound, window=2, stride=1, hop=0.5, modalities=["a"])
    video = extract_features(*tiny, videos / "1.mp4", window=2, stride=1, hop=0.5, modalities=["a"])
    output, _ = direct(tiny, videos / "1.mp4", 8)

    assert alone.features["a"].shape == (3, 32)
    np.testing.assert_allclose(video.features["a"], windows_of(output.audio_embeds[0], 8, 4, 2), atol=1e-5)
    assert alone.timing[0]["video_moments"] is None and alone.timing[0]["similarity"] is None


def test_missing_track__is_an_error_or_nan(tiny, tmp_path):
    silent = write_clip(tmp_path / "silent.mp4", seconds=2, fps=FPS, audio=False)
    settings = {"window": 1, "stride": 1, "hop": 0.5}

    with pytest.raises(InferenceError, match="audio"):
        extract_features(*tiny, silent, **settings)
    masked = extract_features(*tiny, silent, missing="mask", **settings)
    assert np.isnan(masked.features["a"]).all() and np.isnan(masked.features["av"]).all()
    assert np.isfinite(masked.features["v"]).all()
    assert [row["audio_moments"] for row in masked.timing] == [0, 0]
    assert len(extract_features(*tiny, silent, modalities=["v"], **settings)) == 2


@pytest.mark.parametrize(
    ("names", "layers", "words"),
    [
        (["x"], [], "'x' is no feature; there are a, v, av"),
        (["a_layer_9"], [], "There is no layer 9; this model's go from 0 .* to 3"),
        (["a"], [-9], "is no feature|no layer"),
        (["av"], [1], "add `a` or `v`"),
        (["a", "a"], [], "a is asked for twice"),
        (["a_layer_1"], [1], "a_layer_01 is asked for twice"),
        ("av", [], "as a list"),
        ([], [], "as a list"),
    ],
)
def test_features__that_do_not_exist_are_refused(names, layers, words):
    with pytest.raises(InferenceError, match=words):
        choose_features(names, tiny_config(), layers)


def test_model_with_one_tower__gives_what_it_has(videos):
    model = CavMaeSyncModel(tiny_config(modality="audio")).eval()
    processor = CavMaeSyncProcessor.from_config(model.config)

    assert list(extract_features(model, processor, videos / "1.mp4", window=2).features) == ["a"]
    with pytest.raises(InferenceError, match="'v' takes the video tower, and this model has the audio tower alone"):
        extract_features(model, processor, videos / "1.mp4", modalities=["v"])
    with pytest.raises(InferenceError, match="'av' takes the other tower"):
        extract_features(model, processor, videos / "1.mp4", modalities=["av"])


def test_encoding__equals_the_model_with_absent_moments_and_still_frames(tiny):
    model, _ = tiny
    inputs = tiny_inputs(2, 3)
    inputs["pixel_values_videos"][0, 1] = inputs["pixel_values_videos"][0, 0]
    inputs["padding_mask"] = torch.tensor([[True, False, True], [True, True, True]])
    features = choose_features(["a", "v", "av"], model.config)
    encoded = encode_moments(model, inputs, features)

    with torch.inference_mode():
        output = model(**inputs)
    torch.testing.assert_close(encoded.values["a"], output.audio_embeds)
    torch.testing.assert_close(encoded.values["v"], output.video_embeds)
    assert encoded.present(features[2]).tolist() == inputs["padding_mask"].tolist()
    assert (encoded.values["av"].abs().sum(dim=-1) > 0).tolist() == inputs["padding_mask"].tolist()


def test_fingerprint__changes_with_weights_configuration_and_processor(tiny):
    model, processor = tiny
    torch.manual_seed(1)
    other = CavMaeSyncModel(tiny_config())
    coarse = CavMaeSyncProcessor.from_config(model.config, mean=-4.0)
    known = {
        model_fingerprint(model, processor), model_fingerprint(other, processor), model_fingerprint(model, coarse),
    }  # fmt: skip

    assert len(known) == 3
    again = CavMaeSyncModel(tiny_config())
    again.load_state_dict(model.state_dict())
    assert model_fingerprint(again, processor) in known


@pytest.mark.parametrize("count", [2, 3, 10, 300])
def test_derange__leaves_none_in_place(count):
    generator = np.random.default_rng(0)
    for _ in range(20):
        dealt = derange(count, lambda i, j: abs(i - j) <= 1, generator)

        assert sorted(dealt) == list(range(count))
        assert (dealt != np.arange(count)).all()
        if count >= 10:
            assert (np.abs(dealt - np.arange(count)) > 1).all()


def test_scramble__gives_frames_the_sound_of_other_pieces(tiny, videos):
    settings = {"window": 1, "stride": 1, "hop": 0.5, "batch_frames": 3}
    true = extract_features(*tiny, videos, **settings)
    mixed = extract_features(*tiny, videos, control="scramble", seed=3, **settings)

    assert len(true) == len(mixed) == len(mixed.pairing) == 15
    np.testing.assert_array_equal(mixed.features["v"], true.features["v"])
    rows = {(row["id"], row["start"]): number for number, row in enumerate(true.timing)}
    taken = []
    for number, pair in enumerate(mixed.pairing):
        assert rows[pair["id"], pair["start"]] == number
        source = rows[pair["audio_id"], pair["audio_start"]]
        taken.append(source)
        # Pieces of 1 s whose sound reaches 0.24 s further: the neighbours are left out as well.
        assert pair["id"] != pair["audio_id"] or abs(pair["start"] - pair["audio_start"]) > 1
        # Resampled from another point of the file, and spectrograms of another piece of it.
        np.testing.assert_allclose(mixed.features["a"][number], true.features["a"][source], atol=1e-3)
        assert np.abs(mixed.features["a"][number] - true.features["a"][number]).max() > 1e-2
    assert sorted(taken) == list(range(15))
    assert not np.allclose(mixed.features["av"], true.features["av"], atol=1e-4)


def test_scramble__is_drawn_by_its_seed(tiny, videos):
    settings = {"window": 1, "stride": 1, "modalities": ["av"], "control": "scramble"}
    first, again, other = (extract_features(*tiny, videos, seed=seed, **settings) for seed in (0, 0, 1))

    np.testing.assert_array_equal(first.features["av"], again.features["av"])
    assert first.pairing == again.pairing != other.pairing


def test_scramble__lends_sound_to_the_rest_of_a_video(tiny, videos):
    settings = {"window": 4, "stride": 1, "modalities": ["a", "v"]}
    true = extract_features(*tiny, videos, **settings)
    mixed = extract_features(*tiny, videos, control="scramble", **settings)

    # Pieces of 4 s: one whole one a video, and the rest borrows.
    assert len(mixed.pairing) == 3 and len(mixed) == len(true)
    assert np.isfinite(mixed.features["a"]).all()
    # The two moments of the first video after its only whole piece hear nothing of their own time.
    assert all(np.abs(mixed.features["a"][at] - true.features["a"][at]).max() > 1e-3 for at in range(len(true)))


def test_scramble__with_unreadable_sound_keeps_rows_and_says_nan(tiny, videos, tmp_path):
    for name in ("0.mp4", "1.mp4"):
        (tmp_path / name).write_bytes((videos / name).read_bytes())
    write_clip(tmp_path / "silent.mp4", seconds=4, fps=FPS, audio=False)
    found = extract_features(
        *tiny, tmp_path, window=2, stride=2, control="scramble", modalities=["a", "v"], missing="mask"
    )

    silent = [row["audio_id"] == "silent" for row in found.pairing]
    assert sum(silent) == 2
    assert [bool(np.isnan(row).all()) for row in found.features["a"]] == silent


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"control": "scramble", "modalities": ["a"]}, "ask for `av`, or for `a` and `v`"),
        ({"control": "shuffle"}, "there is 'scramble'"),
        ({"control": "scramble", "window": 4}, "1 whole piece"),
        ({"audio_context": "outside"}, "`audio_context` is 'outside'"),
        ({"partial": "pad"}, "`partial` is 'pad'"),
        ({"missing": "skip"}, "`missing` is 'skip'"),
        ({"batch_frames": 0}, "`batch_frames` is 0"),
    ],
)
def test_settings__that_cannot_work_are_refused(tiny, videos, settings, words):
    with pytest.raises(ValueError, match=words):
        extract_features(*tiny, videos / "1.mp4", **({"window": 1} | settings))


def test_tone__keeps_its_features_across_the_border_of_chunks(tiny, tmp_path):
    """A steady tone and a still frame: all inner windows have the same features, wherever chunks end."""
    video = write_clip(
        tmp_path / "still.mp4",
        seconds=8,
        fps=FPS,
        audio=tone(8.0),
        frame=lambda *_: np.full((48, 64, 3), 90, np.uint8),
    )
    found = extract_features(*tiny, video, window=1, stride=1, hop=0.5, batch_frames=3, modalities=["a", "v"])

    inner = found.features["a"][1:-1]
    # AAC changes a steady tone a little over time.
    assert np.abs(inner - inner[0]).max() < 0.05
    assert np.abs(found.features["v"] - found.features["v"][0]).max() < 0.05
