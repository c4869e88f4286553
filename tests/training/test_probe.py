"""Linear probes: what they find where there is something to find, and features that are kept and never mixed up."""

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cavmae_sync_hf import (
    AlreadyExistsError,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    InferenceError,
    TrainingError,
    save_for_hub,
)
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.training import feature_cache
from cavmae_sync_hf.training.arguments import parse_arguments
from cavmae_sync_hf.training.feature_cache import cached_features
from cavmae_sync_hf.training.probe import (
    ProbeArguments,
    chance_metrics,
    fit_probe,
    join_features,
    probe_metrics,
    run_probe,
    shuffled,
)
from helpers.apart import run_forked
from helpers.scripts import RECIPES
from helpers.tiny import tiny_config
from helpers.tiny_shards import tiny_processor, write_shards

sklearn = pytest.importorskip("sklearn")
SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def made_up(clips: int, classes: int, seed: int = 0, noise: float = 0.1) -> tuple[np.ndarray, list[list[int]]]:
    """Features that are the sum of their classes' directions, and those one to three classes."""
    generator = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((classes, 16))
    labels = [
        sorted(generator.choice(classes, generator.integers(1, 4), replace=False).tolist()) for _ in range(clips)
    ]
    features = np.stack([directions[numbers].sum(axis=0) for numbers in labels])
    return 3.0 + features + noise * generator.standard_normal(features.shape), labels


def test_fit__tells_separable_classes_apart():
    features, labels = made_up(300, 6)
    unseen, truth = made_up(100, 6, seed=1)
    probe = fit_probe(features, labels, 6)
    metrics = probe_metrics(probe, unseen, truth)

    assert metrics["mean_average_precision"] > 0.99 and metrics["accuracy"] > 0.99
    assert metrics["samples"] == 100 and metrics["classes"] == 6 and probe.converged


def test_fit__tells_exclusive_classes_apart():
    features, labels = made_up(300, 6)
    unseen, truth = made_up(100, 6, seed=1)
    # Clips of one class only.
    keep, keep_unseen = ([place for place, row in enumerate(rows) if len(row) == 1] for rows in (labels, truth))
    probe = fit_probe(features[keep], [labels[place] for place in keep], 6, SINGLE)
    metrics = probe_metrics(probe, unseen[keep_unseen], [truth[place] for place in keep_unseen])

    assert metrics["accuracy"] == 1.0


def test_fit__to_shuffled_labels_finds_nothing():
    features, labels = made_up(400, 6)
    unseen, truth = made_up(400, 6, seed=1)
    mixed = shuffled(labels, seed=0)
    metrics = probe_metrics(fit_probe(features, mixed, 6), unseen, truth)
    chance = chance_metrics(labels, truth, 6)

    assert sorted(map(tuple, mixed)) == sorted(map(tuple, labels)) and mixed != labels
    # 400 clips: the standard error of an area is about 0.03 for one class, less for the mean of six.
    assert metrics["mean_roc_auc"] == pytest.approx(0.5, abs=0.08)
    assert metrics["mean_average_precision"] == pytest.approx(chance["mean_average_precision"], abs=0.08)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_fit__is_scikit_learns_on_standardised_features(problem_type):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = made_up(80, 4, noise=2.0)
    if problem_type == SINGLE:
        labels = [row[:1] for row in labels]
    probe = fit_probe(features, labels, 4, problem_type, strengths=[0.5])
    standard = StandardScaler().fit_transform(features)

    if problem_type == SINGLE:
        expected = LogisticRegression(C=0.5, max_iter=1000).fit(standard, [row[0] for row in labels])
        scores = expected.decision_function(standard)
    else:
        truth = np.array([[number in row for number in range(4)] for row in labels])
        fits = [LogisticRegression(C=0.5, max_iter=1000).fit(standard, truth[:, k]) for k in range(4)]
        scores = np.stack([fit.decision_function(standard) for fit in fits], axis=1)
    # The optimiser ends within its tolerance of 1e-4.
    np.testing.assert_allclose(probe.scores(features), scores, atol=5e-3)
    assert probe.strength == 0.5 and not probe.selection


def test_strength__is_the_one_that_does_best_on_clips_held_out():
    features, labels = made_up(60, 4, noise=4.0)
    probe = fit_probe(features, labels, 4, strengths=[10, 0.001, 0.1], seed=1)

    assert list(probe.selection) == [0.001, 0.1, 10]
    best = max(probe.selection.values())
    assert probe.strength == min(strength for strength, score in probe.selection.items() if score == best)
    assert fit_probe(features, labels, 4, strengths=[10, 0.001, 0.1], seed=1).selection == probe.selection
    assert fit_probe(features, labels, 4, strengths=[10, 0.001, 0.1], seed=2).selection != probe.selection


def test_fit__bears_classes_without_examples_and_features_that_are_missing():
    features, labels = made_up(60, 3)
    labels = [sorted({3, *row}) for row in labels]  # class 3 in every clip, class 4 in none
    features[:5] = np.nan
    features[:, 2] = 7.0  # a constant
    probe = fit_probe(features, labels, 5, strengths=[1.0])
    scores = probe.scores(np.concatenate([features[-1:], np.full((1, 16), np.nan)]))

    assert (scores[:, 3] == np.inf).all() and (scores[:, 4] == -np.inf).all()
    assert np.isfinite(scores[:, :3]).all()
    np.testing.assert_allclose(scores[1, :3], probe.bias[:3])  # the average clip


def test_fit__of_two_exclusive_classes_among_three():
    features = np.array([[0.0], [0.1], [1.0], [1.1]])
    probe = fit_probe(features, [[0], [0], [2], [2]], 3, SINGLE, strengths=[10.0])

    assert probe.scores(features).argmax(axis=1).tolist() == [0, 0, 2, 2]
    assert (probe.scores(features)[:, 1] == -np.inf).all()


def test_fit__says_when_it_has_not_converged():
    features, labels = made_up(100, 4)
    assert not fit_probe(features, labels, 4, strengths=[100.0], max_iterations=2).converged


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [[0]]}, "for 1 labels"),
        ({"labels": [[0], [5], [1], [0]]}, r"Labels \[5\] among 3 classes"),
        ({"labels": [[0], [0, 1], [1], [0]], "problem_type": SINGLE}, r"Clip 1 has the labels \[0, 1\]"),
        ({"labels": [[1]] * 4, "problem_type": SINGLE}, "belong to class 1"),
        ({"strengths": []}, "`strengths` is"),
        ({"strengths": [0.0, 1.0]}, "above 0"),
        ({"held_out": 1.0}, "`held_out` is 1.0"),
        ({"features": np.full((4, 2), np.nan)}, "No training clip has these features"),
        ({"features": np.zeros((1, 2)), "labels": [[0]]}, "too few to hold some out"),
    ],
)
def test_fit__refuses_what_does_not_fit(change, words):
    given: dict[str, Any] = {
        "features": np.arange(8.0).reshape(4, 2), "labels": [[0], [1], [2], [0]], "classes": 3, "problem_type": MULTI,
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        fit_probe(**(given | change))


def test_chance__is_what_can_be_had_without_looking():
    metrics = chance_metrics([[0], [0], [1]], [[0], [1], [1], [1, 0]], 3)

    # Classes 0 and 1 are in 2 and 3 of 4 clips; class 2 is in none and not scored. Naming class 0 is right twice.
    assert metrics == {"mean_average_precision": (0.5 + 0.75) / 2, "mean_roc_auc": 0.5, "accuracy": 0.5}


def test_joined_features__stand_side_by_side():
    vectors = {"a": np.zeros((2, 3)), "v": np.ones((2, 2))}
    assert join_features(vectors, "v+a").tolist() == [[1, 1, 0, 0, 0]] * 2


@pytest.fixture
def few_clips_a_part(monkeypatch):
    monkeypatch.setattr(feature_cache.ClipCache, "per_part", 2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CavMaeSyncModel(tiny_config()).eval()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Seven clips, one without audio and one without frames, with one or two of three classes."""
    labels = [[0], [1], [2], [0, 1], [1, 2], [0], [2]]
    return write_shards(tmp_path_factory.mktemp("shards") / "train", [4, 3], labels, silent=[2], blind=[5])


def dataset(source: Any) -> CavMaeSyncDataset:
    return CavMaeSyncDataset(source, tiny_processor(), frames="all")


def test_cache__holds_means_over_the_moments_of_each_clip(model, shards, tmp_path, few_clips_a_part):
    clips = dataset(shards)
    shown: list[tuple[int, int]] = []
    found = cached_features(
        model, clips, ["a", "v", "av"], tmp_path / "cache", batch_frames=12, progress=lambda *at: shown.append(at)
    )

    for number in range(len(clips)):
        sample = clips[number]
        with torch.inference_mode():
            output = model(
                input_values=sample["input_values"][None],
                pixel_values_videos=sample["pixel_values_videos"][None],
                padding_mask=sample["padding_mask"][None],
                padding_mask_videos=sample["padding_mask_videos"][None],
            )
        for name, embeds, absent in (("a", output.audio_embeds, 2), ("v", output.video_embeds, 5)):
            if number == absent:
                assert np.isnan(found[name][number]).all()
            else:
                np.testing.assert_allclose(found[name][number], embeds[0].mean(dim=0), atol=1e-6)
    assert np.isnan(found["av"]).all(axis=1).tolist() == [number in (2, 5) for number in range(7)]
    assert shown == [(2, 7), (4, 7), (6, 7), (7, 7)]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "index.json", *(f"part-0000{part}.npz" for part in range(4)),
    ]  # fmt: skip


def test_cache__is_read_instead_of_computed(model, shards, tmp_path, monkeypatch):
    first = cached_features(model, dataset(shards), ["a", "v"], tmp_path)
    monkeypatch.setattr(feature_cache, "encode_moments", None)
    again = cached_features(model, dataset(shards), ["v"], tmp_path, batch_frames=1)

    assert list(again) == ["v"]
    np.testing.assert_array_equal(again["v"], first["v"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_cache__goes_on_after_a_kill(model, shards, tmp_path, monkeypatch, few_clips_a_part):
    folder, clips, savez = tmp_path / "cache", dataset(shards), np.savez

    def die(file, **values):
        if sum(name.startswith("part-") for name in os.listdir(folder)) == 2:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        savez(file, **values)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", die)
        status = run_forked(lambda: cached_features(model, clips, ["a", "av"], folder))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert len(list(folder.glob("part-*.npz"))) == 2 and len(list(folder.glob(".partial-*"))) == 1

    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.npz")}
    shown: list[tuple[int, int]] = []
    resumed = cached_features(model, clips, ["a", "av"], folder, progress=lambda *at: shown.append(at))
    whole = cached_features(model, clips, ["a", "av"], tmp_path / "whole")

    assert shown == [(6, 7), (7, 7)]
    assert all((folder / name).stat().st_mtime_ns == time for name, time in before.items())
    assert not list(folder.glob(".partial-*"))
    for name in ("a", "av"):
        np.testing.assert_allclose(resumed[name], whole[name], atol=1e-6)


def test_cache__of_another_model_set_or_choice_is_refused(model, shards, tmp_path):
    folder = tmp_path / "cache"
    cached_features(model, dataset(shards), ["a"], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    torch.manual_seed(1)
    other = CavMaeSyncModel(tiny_config()).eval()
    fewer = write_shards(tmp_path / "fewer", [3], [[0], [1], [2]])
    coarse = CavMaeSyncDataset(shards, tiny_processor(mean=-4.0), frames="all")

    for arguments, words in (
        ((other, dataset(shards), ["a"]), "features of another model"),
        ((model, coarse, ["a"]), "features of another model .*processor"),
        ((model, dataset(fewer), ["a"]), r"features of another set \(7 clips, this one has 3\)"),
        ((model, dataset(shards), ["a", "v"]), "the features a and not v"),
    ):
        with pytest.raises(TrainingError, match=words):
            cached_features(*arguments, folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    anew = cached_features(other, dataset(shards), ["a"], folder, refresh=True)
    assert not np.allclose(anew["a"][0], cached_features(model, dataset(shards), ["a"], tmp_path / "first")["a"][0])


def test_cache__leaves_other_files_alone(model, shards, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")

    for refresh in (False, True):
        with pytest.raises(TrainingError, match="holds other files"):
            cached_features(model, dataset(shards), ["a"], tmp_path, refresh=refresh)
    with pytest.raises(TrainingError, match="is a file"):
        cached_features(model, dataset(shards), ["a"], tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_cache__that_is_damaged_is_named(model, shards, tmp_path, few_clips_a_part):
    cached_features(model, dataset(shards), ["a"], tmp_path)
    (tmp_path / "part-00001.npz").write_bytes(b"PK damaged")

    with pytest.raises(TrainingError, match="part-00001.npz: cannot be read .* delete it and run again"):
        cached_features(model, dataset(shards), ["a"], tmp_path)
    (tmp_path / "part-00001.npz").unlink()
    assert len(cached_features(model, dataset(shards), ["a"], tmp_path)["a"]) == 7


def test_cache__is_shared_out_between_processes(model, shards, tmp_path, few_clips_a_part):
    barrier = threading.Barrier(2)
    computed: dict[int, list[int]] = {0: [], 1: []}
    results: dict[int, dict[str, np.ndarray]] = {}

    def work(rank: int) -> None:
        results[rank] = cached_features(
            model, dataset(shards), ["v"], tmp_path / "cache", rank=rank, world_size=2, wait=lambda: barrier.wait(60),
            progress=lambda done, _total: computed[rank].append(done),
        )  # fmt: skip

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {rank: len(parts) for rank, parts in computed.items()} == {0: 2, 1: 2}
    alone = cached_features(model, dataset(shards), ["v"], tmp_path / "alone")["v"]
    for rank in range(2):
        np.testing.assert_allclose(results[rank]["v"], alone, atol=1e-6)


def test_cache__needs_whole_clips(model, shards, tmp_path):
    with pytest.raises(ValueError, match='frames="all"'):
        cached_features(model, CavMaeSyncDataset(shards, tiny_processor(), frames=1), ["a"], tmp_path)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    return save_for_hub(model, tiny_processor(), tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> Path:
    labels = [[0], [1], [2], [0, 1], [1, 2]]
    return write_shards(tmp_path_factory.mktemp("held") / "eval", [5], labels)


def arguments(saved: Path, shards: Path, held: Path, out: Path, **changes: Any) -> ProbeArguments:
    given: dict[str, Any] = {
        "model": str(saved), "train_data": str(shards), "eval_data": {"held": str(held)}, "output_dir": str(out),
        "device": "cpu", "features": ["a", "a+v"], "jobs": 1,
    }  # fmt: skip
    return ProbeArguments(**(given | changes))


def test_run__writes_metrics_beside_those_of_the_baselines(saved, shards, held, tmp_path, monkeypatch):
    settings = arguments(saved, shards, held, tmp_path, baselines=["random_weights", "shuffled_labels"])
    shown: list[tuple] = []
    rows = run_probe(settings, progress=lambda *at: shown.append(at))

    assert [(row["weights"], row["labels"], row["features"]) for row in rows] == [
        (weights, labels, features)
        for weights in ("trained", "random")
        for labels in ("true", "shuffled")
        for features in ("a", "a+v")
    ]
    assert all(0 <= row["mean_average_precision"] <= 1 and row["samples"] == 5 for row in rows)
    assert [row["size"] for row in rows[:2]] == [32, 64]
    assert rows[0]["absent"] == 0 and rows[0]["selection"]
    assert shown[0][:2] == (7, 24) and shown[-1][:2] == (24, 24)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["clips"] == {"train": 7, "held": 5} and record["problem_type"] == MULTI
    assert len(record["rows"]) == 8 and record["checkpoint"]["sha256"]

    monkeypatch.setattr(feature_cache, "encode_moments", None)
    with pytest.raises(AlreadyExistsError, match="Pass overwrite=True"):
        run_probe(settings)
    again = run_probe(replace(settings, overwrite=True))
    assert [row["mean_average_precision"] for row in again] == [row["mean_average_precision"] for row in rows]


def test_run__reads_folders_of_videos(saved, tmp_path):
    from helpers.clips import noise, write_clip

    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        for number in range(3):
            write_clip(tmp_path / name / f"{number}.mp4", seconds=1.0, fps=8, audio=noise(1.0, seed=number))
    rows = [f"{name}/{number}.mp4,{name}" for name in ("dog", "cat") for number in range(3)]
    (tmp_path / "list.csv").write_text("\n".join(["path,labels", *rows]))
    source = tmp_path / "list.csv"
    found = run_probe(arguments(saved, source, source, tmp_path / "out", features=["v"], strengths=[1.0]))

    assert found[0]["samples"] == 6 and found[0]["classes"] == 2
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["problem_type"] == SINGLE


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"model": None}, TrainingError, "name a `model`"),
        ({"model": "nowhere"}, ValueError, "nowhere is not a folder"),
        ({"train_data": None}, TrainingError, "nothing to train on"),
        ({"train_data": "gone"}, ValueError, "gone"),
        ({"eval_data": None}, TrainingError, "nothing to evaluate the probe on"),
        ({"eval_data": {"../up": "x"}}, TrainingError, "no name of a folder"),
        ({"eval_data": {"train": "x"}}, TrainingError, "called 'train'"),
        ({"features": ["a+x"]}, InferenceError, "'x' is no feature"),
        ({"features": ["a+"]}, InferenceError, "'' is no feature"),
        ({"held_out": 2.0}, ValueError, "`held_out` is 2.0"),
    ],
)
def test_run__refuses_what_cannot_work(saved, shards, held, tmp_path, changes, kind, words):
    with pytest.raises(kind, match=words):
        run_probe(arguments(saved, shards, held, tmp_path, **changes))
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"baselines": ["luck"]}, "'luck'; there are"), ({"features": []}, "empty"), ({"eval_data": "{x"}, "no JSON")],
)
def test_arguments__that_cannot_work_are_refused(changes, words):
    with pytest.raises(TrainingError, match=words):
        ProbeArguments(**changes)


def test_run__needs_the_tower_and_labels(shards, held, tmp_path):
    audio = CavMaeSyncModel(tiny_config(modality="audio"))
    folder = save_for_hub(audio, CavMaeSyncProcessor.from_config(audio.config), tmp_path / "audio")
    with pytest.raises(InferenceError, match="audio tower alone"):
        run_probe(arguments(folder, shards, held, tmp_path / "out"))
    assert run_probe(arguments(folder, shards, held, tmp_path / "out", features=["a"]))

    bare = write_shards(tmp_path / "bare", [2], [[], []])
    with pytest.raises(TrainingError, match="No training clip has a label"):
        run_probe(arguments(folder, bare, held, tmp_path / "bare_out", features=["a"]))


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (RECIPES / "probe").glob("*.yaml")))
def test_recipe__is_read(recipe):
    (settings,) = parse_arguments((ProbeArguments,), [recipe, "--seed", "3"], "probe")

    assert settings.seed == 3 and settings.problem_type in (SINGLE, MULTI) and len(settings.strengths) > 1


def test_command__probes_a_syncworld(run, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(num_mel_bins=128, patch_size=16, image_size=48, audio_length=64)
    model = CavMaeSyncModel(config)
    saved = save_for_hub(model, CavMaeSyncProcessor.from_config(config), tmp_path / "model")
    world = {
        "folder": str(tmp_path / "world"), "train": 8, "semantic": 4, "temporal": 0, "size": 48, "seconds": 3.0,
        "workers": 1,
    }  # fmt: skip
    code, out, _ = run(
        "probe", "syncworld", "--model", saved, "--output_dir", tmp_path / "out", "--syncworld", json.dumps(world),
        "--jobs", "1", "--features", "a", "v_patches",
    )  # fmt: skip

    assert code == 0 and "semantic: 4 clips, 12 classes; chance: mAP" in out
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [row["set"] for row in record["rows"]] == ["semantic"] * 8
    assert (tmp_path / "out" / "features" / "semantic-random_0" / "index.json").is_file()
