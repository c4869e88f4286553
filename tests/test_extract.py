"""Features of windows: what a row is, that streaming changes nothing, controls, and folders that survive a kill."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import cavmae_sync_hf
from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor, cli, save_for_hub
from cavmae_sync_hf.data.locks import LockedError, exclusive
from cavmae_sync_hf.inference import windows as windows_module
from cavmae_sync_hf.inference.extract import extract_features, extract_to_folder
from cavmae_sync_hf.inference.feature_folder import WORK_NAME, ExtractionError
from cavmae_sync_hf.inference.features import FeatureError, choose_features, encode_moments, model_fingerprint
from cavmae_sync_hf.inference.scramble import derange
from cavmae_sync_hf.inference.windows import WindowGrid
from clips import noise, tone, truncate, write_clip
from tiny import tiny_config, tiny_inputs

SOURCE = str(Path(cavmae_sync_hf.__file__).parents[1])
# Frames appear at the very times of moments half a second apart.
FPS = 4


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model = CavMaeSyncModel(tiny_config()).eval()
    return model, CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """Three films of 6, 4 and 5 s."""
    folder = tmp_path_factory.mktemp("films")
    for number, seconds in enumerate((6.0, 4.0, 5.0)):
        write_clip(folder / f"{number}.mp4", seconds=seconds, fps=FPS, audio=noise(seconds, seed=number))
    return folder


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


def test_rows__are_the_means_of_what_the_model_gives_for_the_same_moments(tiny, films):
    model, _ = tiny
    found = extract_features(*tiny, films / "1.mp4", window=2, stride=1, modalities=["a", "v", "av"], hop=0.5)

    output, inputs = direct(tiny, films / "1.mp4", 8)
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


def test_rows__do_not_depend_on_the_size_of_chunks(tiny, films):
    settings = {"window": 2, "stride": 0.5, "layers": [1]}
    whole = extract_features(*tiny, films / "0.mp4", **settings)
    pieces = extract_features(*tiny, films / "0.mp4", batch_frames=3, **settings)

    assert list(whole.features) == ["a", "v", "av", "a_layer_01", "v_layer_01"]
    for name in whole.features:
        np.testing.assert_allclose(whole.features[name], pieces.features[name], atol=1e-5)
    assert [row["frame_times"] for row in whole.timing] == [row["frame_times"] for row in pieces.timing]


def test_layers__are_the_mean_patches_without_global_token_and_registers(tiny, films):
    found = extract_features(
        *tiny, films / "1.mp4", window=4, stride=4, hop=0.5, modalities=["a_patches", "v"], layers=[0, 2, -1]
    )

    output, _ = direct(tiny, films / "1.mp4", 8)
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


def test_timing__says_what_a_row_has_seen_and_heard(tiny, films):
    found = extract_features(*tiny, films / "1.mp4", window=2, stride=1, hop=0.5)

    first, second, last = found.timing
    assert [row["window"] for row in found.timing] == [0, 1, 2]
    assert (second["start"], second["end"], second["centre"]) == (1, 3, 2)
    assert second["frame_times"] == pytest.approx([1.25, 1.75, 2.25, 2.75])
    # Windows of sound are 0.48 s long and centred on the frames.
    assert (second["sound_start"], second["sound_end"]) == pytest.approx((1.01, 2.99))
    assert (second["moments"], second["audio_moments"], second["video_moments"]) == (4, 4, 4)
    assert second["sound_coverage"] == 1 and not second["partial"]
    assert {row["id"] for row in found.timing} == {"1.mp4"}
    assert first["start"] == 0 and last["end"] == 4


def test_span__of_a_list_is_cut_out_and_timed_in_seconds_of_the_file(tiny, films):
    clips = [{"path": str(films / "0.mp4"), "id": "part", "start": 2.0, "end": 6.0}]
    part = extract_features(*tiny, clips, window=2, stride=2, hop=0.5, modalities=["v"])
    whole = extract_features(*tiny, films / "0.mp4", window=2, stride=2, hop=0.5, modalities=["v"])

    assert [row["start"] for row in part.timing] == [2, 4]
    assert part.timing[0]["frame_times"] == pytest.approx([2.25, 2.75, 3.25, 3.75])
    np.testing.assert_allclose(part.features["v"], whole.features["v"][1:], atol=1e-6)


def test_sound_inside__leaves_out_moments_that_hear_beyond_the_window(tiny, films):
    settings = {"window": 1, "stride": 1, "hop": 0.25, "modalities": ["a", "v"]}
    inside = extract_features(*tiny, films / "1.mp4", sound="inside", **settings)
    around = extract_features(*tiny, films / "1.mp4", **settings)

    output, _ = direct(tiny, films / "1.mp4", 16)
    # Centres at 0.125, 0.375, 0.625 and 0.875 s, each with 0.24 s of sound to either side.
    expected = torch.stack([output.audio_embeds[0, 4 * at + 1 : 4 * at + 3].mean(dim=0) for at in range(4)])
    np.testing.assert_allclose(inside.features["a"], expected, atol=1e-5)
    np.testing.assert_array_equal(inside.features["v"], around.features["v"])
    assert not np.allclose(inside.features["a"], around.features["a"])
    row = inside.timing[1]
    assert (row["audio_moments"], row["video_moments"]) == (2, 4)
    assert row["start"] - 0.25 <= row["sound_start"] < row["sound_end"] <= row["end"]


def test_sound_inside__needs_windows_longer_than_the_models(tiny, films):
    with pytest.raises(ValueError, match="windows of at least 0.73 s"):
        extract_features(*tiny, films / "1.mp4", window=0.25, stride=0.25, sound="inside")


def test_partial__windows_are_dropped_or_means_of_what_is_there(tiny, films):
    settings = {"window": 3, "stride": 2, "hop": 0.5, "modalities": ["v"]}
    dropped = extract_features(*tiny, films / "2.mp4", **settings)
    kept = extract_features(*tiny, films / "2.mp4", partial="keep", **settings)

    assert [row["start"] for row in dropped.timing] == [0, 2]
    assert [(row["start"], row["moments"], row["partial"]) for row in kept.timing] == [
        (0, 6, False), (2, 6, False), (4, 2, True),
    ]  # fmt: skip
    output, _ = direct(tiny, films / "2.mp4", 10)
    np.testing.assert_allclose(kept.features["v"][2], output.video_embeds[0, 8:].mean(dim=0), atol=1e-5)


def test_film__shorter_than_a_window_is_refused_with_what_would_do(tiny, films):
    with pytest.raises(ExtractionError, match=r"1.mp4: has moments up to 3.75 s, too few .* keep partial ones"):
        extract_features(*tiny, films / "1.mp4", window=30)

    kept = extract_features(*tiny, films / "1.mp4", window=30, stride=30, partial="keep", modalities=["v"])
    assert len(kept) == 1


def test_gaps__between_windows_are_not_encoded(tiny, films, monkeypatch):
    encoded: list[int] = []

    def count(model, inputs, features):
        encoded.append(inputs["pixel_values_videos"].shape[1])
        return encode_moments(model, inputs, features)

    monkeypatch.setattr(windows_module, "encode_moments", count)
    found = extract_features(*tiny, films / "1.mp4", window=0.5, stride=2, hop=0.5, modalities=["v"])

    output, _ = direct(tiny, films / "1.mp4", 8)
    assert sum(encoded) == 2
    np.testing.assert_allclose(found.features["v"], output.video_embeds[0, [0, 4]], atol=1e-5)


def test_memory__is_that_of_a_window_and_a_chunk(tiny, tmp_path, monkeypatch):
    held: list[int] = []
    add = windows_module._Rows.add

    def watch(self, *arguments):
        add(self, *arguments)
        held.append(len(self.held))

    monkeypatch.setattr(windows_module._Rows, "add", watch)
    film = write_clip(tmp_path / "long.mp4", seconds=40, fps=FPS, audio=False)
    extract_features(*tiny, film, window=2, stride=1, hop=0.5, modalities=["v"], batch_frames=4)

    assert len(held) == 20 and max(held) <= 4 + 4


def test_sound_alone__does_not_need_pictures(tiny, films, tmp_path):
    sound = write_clip(
        tmp_path / "sound.wav", seconds=4, video=False, audio=noise(4.0, seed=1), audio_codec="pcm_s16le"
    )
    alone = extract_features(*tiny, sound, window=2, stride=1, hop=0.5, modalities=["a"])
    film = extract_features(*tiny, films / "1.mp4", window=2, stride=1, hop=0.5, modalities=["a"])
    output, _ = direct(tiny, films / "1.mp4", 8)

    assert alone.features["a"].shape == (3, 32)
    np.testing.assert_allclose(film.features["a"], windows_of(output.audio_embeds[0], 8, 4, 2), atol=1e-5)
    assert alone.timing[0]["video_moments"] is None and alone.timing[0]["similarity"] is None


def test_missing_track__is_an_error_or_nan(tiny, tmp_path):
    silent = write_clip(tmp_path / "silent.mp4", seconds=2, fps=FPS, audio=False)
    settings = {"window": 1, "stride": 1, "hop": 0.5}

    with pytest.raises(ExtractionError, match="audio"):
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
    with pytest.raises(FeatureError, match=words):
        choose_features(names, tiny_config(), layers)


def test_model_with_one_tower__gives_what_it_has(films):
    model = CavMaeSyncModel(tiny_config(modality="audio")).eval()
    processor = CavMaeSyncProcessor.from_config(model.config)

    assert list(extract_features(model, processor, films / "1.mp4", window=2).features) == ["a"]
    with pytest.raises(FeatureError, match="'v' takes the video tower, and this model has the audio tower alone"):
        extract_features(model, processor, films / "1.mp4", modalities=["v"])
    with pytest.raises(FeatureError, match="'av' takes the other tower"):
        extract_features(model, processor, films / "1.mp4", modalities=["av"])


def test_encoding__equals_the_model_with_absent_moments_and_still_pictures(tiny):
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


def test_scramble__gives_pictures_the_sound_of_other_pieces(tiny, films):
    settings = {"window": 1, "stride": 1, "hop": 0.5, "batch_frames": 3}
    true = extract_features(*tiny, films, **settings)
    mixed = extract_features(*tiny, films, control="scramble", seed=3, **settings)

    assert len(true) == len(mixed) == len(mixed.pairing) == 15
    np.testing.assert_array_equal(mixed.features["v"], true.features["v"])
    rows = {(row["id"], row["start"]): number for number, row in enumerate(true.timing)}
    taken = []
    for number, pair in enumerate(mixed.pairing):
        assert rows[pair["id"], pair["start"]] == number
        source = rows[pair["sound_id"], pair["sound_start"]]
        taken.append(source)
        # Pieces of 1 s whose sound reaches 0.24 s further: the neighbours are left out as well.
        assert pair["id"] != pair["sound_id"] or abs(pair["start"] - pair["sound_start"]) > 1
        # Resampled from another point of the file, and spectrograms of another piece of it.
        np.testing.assert_allclose(mixed.features["a"][number], true.features["a"][source], atol=1e-3)
        assert np.abs(mixed.features["a"][number] - true.features["a"][number]).max() > 1e-2
    assert sorted(taken) == list(range(15))
    assert not np.allclose(mixed.features["av"], true.features["av"], atol=1e-4)


def test_scramble__is_drawn_by_its_seed(tiny, films):
    settings = {"window": 1, "stride": 1, "modalities": ["av"], "control": "scramble"}
    first, again, other = (extract_features(*tiny, films, seed=seed, **settings) for seed in (0, 0, 1))

    np.testing.assert_array_equal(first.features["av"], again.features["av"])
    assert first.pairing == again.pairing != other.pairing


def test_scramble__lends_sound_to_the_rest_of_a_film(tiny, films):
    settings = {"window": 4, "stride": 1, "modalities": ["a", "v"]}
    true = extract_features(*tiny, films, **settings)
    mixed = extract_features(*tiny, films, control="scramble", **settings)

    # Pieces of 4 s: one whole one a film, and the rest borrows.
    assert len(mixed.pairing) == 3 and len(mixed) == len(true)
    assert np.isfinite(mixed.features["a"]).all()
    # The two moments of the first film after its only whole piece hear nothing of their own time.
    assert all(np.abs(mixed.features["a"][at] - true.features["a"][at]).max() > 1e-3 for at in range(len(true)))


def test_scramble__with_unreadable_sound_keeps_rows_and_says_nan(tiny, films, tmp_path):
    for name in ("0.mp4", "1.mp4"):
        (tmp_path / name).write_bytes((films / name).read_bytes())
    write_clip(tmp_path / "silent.mp4", seconds=4, fps=FPS, audio=False)
    found = extract_features(
        *tiny, tmp_path, window=2, stride=2, control="scramble", modalities=["a", "v"], missing="mask"
    )

    silent = [row["sound_id"] == "silent" for row in found.pairing]
    assert sum(silent) == 2
    assert [bool(np.isnan(row).all()) for row in found.features["a"]] == silent


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"control": "scramble", "modalities": ["a"]}, "ask for `av`, or for `a` and `v`"),
        ({"control": "shuffle"}, "there is 'scramble'"),
        ({"control": "scramble", "window": 4}, "1 whole piece"),
        ({"sound": "outside"}, "`sound` is 'outside'"),
        ({"partial": "pad"}, "`partial` is 'pad'"),
        ({"missing": "skip"}, "`missing` is 'skip'"),
        ({"batch_frames": 0}, "`batch_frames` is 0"),
    ],
)
def test_settings__that_cannot_work_are_refused(tiny, films, settings, words):
    with pytest.raises(ValueError, match=words):
        extract_features(*tiny, films / "1.mp4", **({"window": 1} | settings))


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_folder__holds_arrays_a_timing_table_and_a_manifest(tiny, films, tmp_path):
    shown: list[tuple] = []
    summary = extract_to_folder(
        *tiny, films, tmp_path / "out", window=2, stride=1, progress=lambda *at: shown.append(at)
    )

    expected = extract_features(*tiny, films, window=2, stride=1)
    assert sorted(contents(tmp_path / "out")) == ["a.npy", "av.npy", "manifest.json", "timing.csv", "v.npy"]
    for name, values in expected.features.items():
        stored = np.load(tmp_path / "out" / f"{name}.npy", mmap_mode="r")
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, values)
    table = read_table(tmp_path / "out" / "timing.csv")
    assert [int(row["row"]) for row in table] == list(range(len(expected)))
    assert [row["file"] for row in table] == ["0.mp4"] * 5 + ["1.mp4"] * 3 + ["2.mp4"] * 4
    assert [float(row["centre"]) for row in table] == [row["centre"] for row in expected.timing]
    assert [float(time) for time in table[1]["frame_times"].split(";")] == expected.timing[1]["frame_times"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["complete"] and manifest["rows"] == 12
    assert [(film["id"], film["first_row"], film["rows"]) for film in manifest["films"]] == [
        ("0", 0, 5), ("1", 5, 3), ("2", 8, 4),
    ]  # fmt: skip
    assert manifest["identity"]["settings"]["sound_window"] == 0.48
    assert (summary.rows, summary.made, summary.failed) == (12, 3, {})
    assert shown[-1][:2] == (3, 3) and any("1.mp4 at 0:0" in remark for _, _, remark in shown)


def test_folder__as_parquet_reads_as_one_table(tiny, films, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    extract_to_folder(*tiny, films, tmp_path / "out", window=2, stride=1, format="parquet", modalities=["a", "v"])

    expected = extract_features(*tiny, films, window=2, stride=1, modalities=["a", "v"])
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert len(parts) == 3
    np.testing.assert_array_equal(np.array([row["v"] for row in rows], dtype=np.float32), expected.features["v"])
    assert [row["frame_times"] for row in rows] == [row["frame_times"] for row in expected.timing]
    assert [row["sound_start"] for row in rows] == [row["sound_start"] for row in expected.timing]


def test_folder__that_is_complete_is_not_made_again(tiny, films, tmp_path):
    extract_to_folder(*tiny, films, tmp_path / "out", window=2)
    before = contents(tmp_path / "out")
    again = extract_to_folder(*tiny, films, tmp_path / "out", window=2, batch_frames=5)

    assert again.made == 0 and again.rows == 12 and "all there already" in str(again)
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "v.npy").unlink()
    mended = extract_to_folder(*tiny, films, tmp_path / "out", window=2)
    assert mended.made == 3 and contents(tmp_path / "out") == before


def read_features(folder: Path) -> dict[str, np.ndarray]:
    """All features of a folder of either format."""
    if (folder / "timing.csv").exists():
        return {path.stem: np.load(path) for path in folder.glob("*.npy")}
    import pyarrow.parquet as pq

    rows = [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    return {name: np.array([row[name] for row in rows]) for name in ("a", "v", "av")}


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from cavmae_sync_hf.inference.extract import extract_to_folder
from cavmae_sync_hf.inference.loading import load_model

def progress(done, total, remark=""):
    if done == 1 and not remark.endswith("0:00"):
        os.kill(os.getpid(), signal.SIGKILL)

extract_to_folder(*load_model(sys.argv[1]), sys.argv[2], sys.argv[3], format=sys.argv[4], control=sys.argv[5] or None,
                  window=1, stride=1, batch_frames=2, progress=progress)
"""


@pytest.mark.parametrize(("format", "control"), [("npy", ""), ("parquet", "scramble")])
def test_folder__goes_on_after_a_kill_in_the_middle_of_a_film(saved, films, tmp_path, format, control):
    from cavmae_sync_hf.inference.loading import load_model

    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(saved), str(films), str(out), format, control]
    killed = subprocess.run(command, env={"PYTHONPATH": SOURCE, "HF_HUB_OFFLINE": "1"}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (out / "manifest.json").exists()
    assert list((out / WORK_NAME).glob("partial-*"))

    settings = {"format": format, "control": control or None, "window": 1, "stride": 1, "batch_frames": 2}
    resumed = extract_to_folder(*load_model(saved), films, out, **settings)
    extract_to_folder(*load_model(saved), films, tmp_path / "whole", **settings)

    assert resumed.made == 2 and resumed.rows == 15
    whole = tmp_path / "whole"
    assert sorted(contents(out)) == sorted(contents(whole))
    assert json.loads((out / "manifest.json").read_text()) == json.loads((whole / "manifest.json").read_text())
    for name, values in read_features(whole).items():
        np.testing.assert_allclose(read_features(out)[name], values, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 3}, "was begun with window=2.0, now it is 3.0"),
        ({"modalities": ["a"]}, "was begun with features=a, v, av, now it is a"),
        ({"control": "scramble"}, "was begun with control=None, now it is scramble"),
        ({"format": "parquet"}, "is in the format npy, not parquet"),
    ],
)
def test_folder__of_other_settings_is_refused(tiny, films, tmp_path, change, words):
    extract_to_folder(*tiny, films, tmp_path / "out", window=2)
    before = contents(tmp_path / "out")

    with pytest.raises(ExtractionError, match=words):
        extract_to_folder(*tiny, films, tmp_path / "out", **({"window": 2} | change))
    assert contents(tmp_path / "out") == before


def test_folder__of_another_model_or_list_is_refused(tiny, films, tmp_path):
    model, processor = tiny
    extract_to_folder(model, processor, films, tmp_path / "out", window=2)

    torch.manual_seed(1)
    with pytest.raises(ExtractionError, match="features of another model"):
        extract_to_folder(CavMaeSyncModel(tiny_config()).eval(), processor, films, tmp_path / "out", window=2)
    with pytest.raises(ExtractionError, match="another list of films"):
        extract_to_folder(model, processor, films / "1.mp4", tmp_path / "out", window=2)


def test_folder__that_is_not_ours_is_left_alone(tiny, films, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "manifest.json").write_text('{"name": "another tool"}')

    with pytest.raises(ExtractionError, match="holds other files"):
        extract_to_folder(*tiny, films, tmp_path)
    with pytest.raises(ExtractionError, match="is a file"):
        extract_to_folder(*tiny, films, tmp_path / "notes.txt")
    with pytest.raises(ExtractionError, match="written to a folder here"):
        extract_to_folder(*tiny, films, "s3://bucket/features")
    assert sorted(contents(tmp_path)) == ["manifest.json", "notes.txt"]


def test_folder__in_use_is_refused(tiny, films, tmp_path):
    (tmp_path / "out" / WORK_NAME).mkdir(parents=True)
    with exclusive(tmp_path / "out" / WORK_NAME / "lock", tmp_path), pytest.raises(LockedError, match="another run"):
        extract_to_folder(*tiny, films, tmp_path / "out")


HOSTILE = ("line\nbreak.mp4", "ünï 日本 [bold]*?.mp4", "-rf.mp4", "up..mp4", "quote\"',;.mp4")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, films) -> Path:
    """A folder of films with odd names, and of files that are none."""
    folder = tmp_path_factory.mktemp("mixed")
    for name in HOSTILE:
        (folder / name).write_bytes((films / "1.mp4").read_bytes())
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:5,\n/etc/passwd\n")
    (folder / "archive.mp4").write_bytes(b"PK\x03\x04" + b"\0" * 64)
    (folder / "empty.mkv").write_bytes(b"")
    truncate(films / "1.mp4", folder / "cut.mp4", 0.5)
    return folder


def test_folder__lists_bad_films_and_keeps_the_good_ones(tiny, mixed, tmp_path):
    summary = extract_to_folder(*tiny, mixed, tmp_path / "out", window=2, stride=2)

    assert set(summary.failed) == {"playlist", "archive", "empty", "cut"}
    assert "playlist" in summary.failed["playlist"] and "ZIP" in summary.failed["archive"]
    assert summary.rows == 2 * len(HOSTILE)
    table = read_table(tmp_path / "out" / "timing.csv")
    assert {row["file"] for row in table} == set(HOSTILE)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert not manifest["complete"] and manifest["failed"] == summary.failed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_folder__tries_bad_films_again(tiny, films, tmp_path):
    source = tmp_path / "films"
    source.mkdir()
    (source / "0.mp4").write_bytes((films / "0.mp4").read_bytes())
    (source / "1.mp4").write_bytes(b"\0" * (films / "1.mp4").stat().st_size)
    first = extract_to_folder(*tiny, source, tmp_path / "out", window=2)
    assert list(first.failed) == ["1"] and first.made == 1
    (source / "1.mp4").write_bytes((films / "1.mp4").read_bytes())
    second = extract_to_folder(*tiny, source, tmp_path / "out", window=2)

    assert second.made == 1 and not second.failed and second.rows == 8
    assert not (tmp_path / "out" / WORK_NAME).exists()


def test_source__without_films_leaves_nothing_behind(tiny, mixed, tmp_path):
    (tmp_path / "nothing").mkdir()
    for source, words in (
        (tmp_path / "nothing", "holds no clips"),
        (tmp_path / "missing.mp4", "no such file or folder"),
        (mixed / "playlist.mp4", "never followed"),
        ([mixed / "archive.mp4", mixed / "empty.mkv"], "None of 2 films could be used. The first: .*ZIP"),
        ([{"path": "../gone.mp4", "id": "x"}], "gone.mp4"),
    ):
        with pytest.raises(ValueError, match=words):
            extract_to_folder(*tiny, source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_folder__stays_whole_when_the_disk_is_full(tiny, films, tmp_path, monkeypatch):
    from cavmae_sync_hf.inference import feature_files

    def full(self, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_files.NpyPart, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        extract_to_folder(*tiny, films, tmp_path / "out", window=2)
    assert not list((tmp_path / "out" / WORK_NAME).glob("partial-*"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny) -> Path:
    return save_for_hub(*tiny, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command line in this process; gives the exit code, what it printed and its errors."""
    monkeypatch.setattr(cli.terminal, "console", Console(width=100))
    monkeypatch.setattr(cli.terminal, "errors", Console(stderr=True, width=100))
    monkeypatch.setattr(cli.terminal, "show_tracebacks", False)

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cavmae-sync", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        return caught.value.code, printed.out, printed.err

    return run


def test_command__takes_several_features_in_a_row(run, saved, films, tmp_path):
    code, out, _ = run(
        "extract", films, tmp_path / "out", "--model", saved, "--window", 2, "--stride", 1,
        "--modalities", "a", "v", "av", "--layers", "1", "2", "--control", "scramble", "--json",
    )  # fmt: skip

    assert code == 0
    summary = json.loads(out)
    assert list(summary["features"]) == [
        "a", "v", "av", "a_layer_01", "v_layer_01", "a_layer_02", "v_layer_02",
    ]  # fmt: skip
    assert summary["rows"] == 12 and (tmp_path / "out" / "pairing.json").is_file()


def test_command__says_what_was_written_and_what_was_left_out(run, saved, mixed, tmp_path):
    code, out, err = run("extract", mixed, tmp_path / "out", "-m", saved, "--window", "2")

    assert code == 1
    assert "15 windows of 5 films; a (32), v (32), av (32); 5 films read" in out
    assert err.count("Left out:") == 4 and "--damaged keep" in err
    code, out, _ = run("extract", mixed, tmp_path / "kept", "-m", saved, "--window", "1", "--damaged", "keep")
    assert code == 1 and "of 6 films" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["SOURCE", "OUT"], 2, "Missing option '--model'"),
        (["SOURCE", "OUT", "-m", "MODEL", "more"], 2, "too many: 'more'"),
        (["SOURCE", "OUT", "-m", "MODEL", "--modalities", "x"], 1, "'x' is no feature"),
        (["SOURCE", "OUT", "-m", "MODEL", "--layers", "first"], 2, "whole numbers, got 'first'"),
        (["SOURCE", "OUT", "-m", "MODEL", "--window", "0"], 1, "`window` is 0.0"),
        (["SOURCE", "OUT", "-m", "MODEL", "--window", "0.2", "--sound", "inside"], 1, "or --sound around"),
        (["SOURCE", "OUT", "-m", "OUT"], 1, "is not a folder"),
        (["gone.mp4", "OUT", "-m", "MODEL"], 1, "gone.mp4: no such file"),
        (["SOURCE", "OUT", "-m", "MODEL", "--device", "foo"], 2, "'foo' is no device"),
    ],
)
def test_command__wrong_arguments(run, saved, films, tmp_path, arguments, code, words):
    places = {"SOURCE": films, "OUT": tmp_path / "out", "MODEL": saved}
    given, out, err = run("extract", *(places.get(word, word) for word in arguments))

    assert given == code and not out
    assert words in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_tone__keeps_its_features_across_the_border_of_chunks(tiny, tmp_path):
    """A steady tone and a still picture: all inner windows have the same features, wherever chunks end."""
    film = write_clip(
        tmp_path / "still.mp4",
        seconds=8,
        fps=FPS,
        audio=tone(8.0),
        picture=lambda *_: np.full((48, 64, 3), 90, np.uint8),
    )
    found = extract_features(*tiny, film, window=1, stride=1, hop=0.5, batch_frames=3, modalities=["a", "v"])

    inner = found.features["a"][1:-1]
    # AAC changes a steady tone a little over time.
    assert np.abs(inner - inner[0]).max() < 0.05
    assert np.abs(found.features["v"] - found.features["v"][0]).max() < 0.05
