# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""`cavmae-sync evaluate`: every subcommand does its work, writes what it says, and explains what it cannot do."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cavmae_sync_hf import CavMaeSyncForAudioVisualClassification, CavMaeSyncModel, save_for_hub
from cavmae_sync_hf.evaluation import read_results
from cavmae_sync_hf.syncworld import make_world
from helpers.clips import noise, write_clip
from helpers.tiny import tiny_config
from helpers.tiny_shards import tiny_processor, write_shards

TASKS = ("retrieval", "classification", "localization", "sync")


COMMAND = ("evaluate",)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return save_for_hub(CavMaeSyncModel(tiny_config()), tiny_processor(), tmp_path_factory.mktemp("m") / "model")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = CavMaeSyncForAudioVisualClassification(tiny_config(num_labels=3))
    return save_for_hub(model, tiny_processor(), tmp_path_factory.mktemp("c") / "classifier")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), [4, 3], silent=[2])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, clips=3, split="spatial", preset="spatial", size=48, fps=8, seconds=3.0, workers=1)
    return folder / "spatial"


@pytest.mark.parametrize("task", TASKS)
def test_help__names_every_option(run, task):
    code, out, _ = run(task, "--help")

    assert code == 0 and "Usage: cavmae-sync evaluate" in out
    for option in ("--protocol", "--out", "--json", "--strict", "--device"):
        assert option in out


def test_protocols__are_listed(run):
    code, out, _ = run("protocols")
    assert code == 0 and "cav-mae-sync-vggsound" in out and "ade20k-sound" in out

    code, out, _ = run("protocols", "--json")
    assert code == 0 and set(json.loads(out)) == set(TASKS)


def test_retrieval__writes_shows_and_prints(run, saved, shards, tmp_path):
    target = tmp_path / "results.json"

    code, out, err = run("retrieval", saved, shards, "--out", target)

    record = read_results(target)
    assert code == 1 and "audio_to_video_r1" in out and "6 of 7 clips seen: 0 missing, 1 unusable" in out
    assert "Left out: clip-2: has no audio" in err and str(target) in out
    assert err.splitlines()[-1] == f"6 clips done, 1 left out; see {target}"
    assert record["command"] == f"cavmae-sync evaluate retrieval {saved} {shards} --out {target}"

    code, out, _ = run("retrieval", saved, shards, "--json", "--strategy", "mean", "--batch-size", "2")
    assert code == 1 and json.loads(out)["protocol"]["name"] == "clips, strategy mean"


def test_sync__of_shards(run, saved, shards):
    code, out, err = run("sync", saved, shards, "--json", "--min-shift", "0.5")

    record = json.loads(out)
    assert code == 1 and record["counts"]["clips_unusable"] == 1  # it has no audio
    assert record["task"] == "sync" and 0 <= record["metrics"]["auc"] <= 1


def test_sync__of_a_labelled_list(run, saved, tmp_path):
    rows = ["path,label"]
    for seed in range(4):
        write_clip(tmp_path / f"{seed}.mp4", seconds=1, audio=noise(1.0, seed=seed))
        rows.append(f"{seed}.mp4,{'real' if seed % 2 else 'dubbed'}")
    table = tmp_path / "list.csv"
    table.write_text("\n".join(rows))

    code, out, _ = run("sync", saved, table, "--protocol", "labelled", "--positive", "real", "--json")

    assert code == 0 and json.loads(out)["metrics"]["clips_in_sync"] == 2
    code, _, err = run("sync", saved, table, "--protocol", "labelled", "--positive", "fake")
    assert code == 1 and "no clip has the label 'fake'; its labels are dubbed, real" in " ".join(err.split())


def test_localization__of_a_world_and_of_masks(run, saved, world, tmp_path):
    code, out, _ = run("localization", saved, world)
    assert code == 0 and "pointing_accuracy" in out and "pointing_chance" in out and "3 of 3 clips seen" in out

    write_clip(tmp_path / "a.mp4", seconds=1, audio=noise(1.0))
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    mask = np.zeros((48, 64), np.uint8)
    mask[20:30, 30:40] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    table = tmp_path / "t.csv"
    table.write_text("image,audio,mask,label\na.png,a.mp4,mask.png,dog\n")
    code, out, _ = run("localization", saved, table, "--protocol", "ade20k-sound", "--json")
    assert code == 0 and json.loads(out)["metrics"]["classes"] == 1

    (tmp_path / "mask.png").write_bytes(b"no image")
    code, _, err = run("localization", saved, table, "--protocol", "ade20k-sound")
    assert code == 1 and "mask.png: the mask cannot be read" in " ".join(err.split())


def test_classification__by_labels_and_by_annotations(run, classifier, shards, tmp_path):
    code, out, _ = run("classification", classifier, shards, "--inputs", "av,v", "--json")
    metrics = json.loads(out)["metrics"]
    # With both inputs asked for, a clip without audio takes part by its frames.
    assert code == 0 and {"accuracy", "v_accuracy", "mean_average_precision"} <= set(metrics)

    names, table = tmp_path / "names.txt", tmp_path / "vggsounder.csv"
    names.write_text("dog\ncat\nbird\n")
    table.write_text(
        "video_id,label,modality\n" + "".join(f"clip-{k},{'dog' if k % 2 else 'cat'},AV\n" for k in range(4))
    )
    arguments = ("--protocol", "vggsounder", "--annotations", table, "--class-names", names)
    code, out, _ = run("classification", classifier, shards, *arguments)
    assert code == 1 and "hit_rate@1" in out and "mu_a" in out and "3 of 4 clips seen" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("retrieval", "nowhere", "{shards}"), "nowhere is not a folder"),
        (("retrieval", "{saved}", "nowhere/"), "nowhere/: no such file or folder"),
        (("retrieval", "{saved}", "{empty}"), "holds no clips"),
        (("retrieval", "{saved}", "{shards}", "--ids", "none.txt"), "none.txt: no such file; check the path."),
        (("retrieval", "{saved}", "{shards}", "--ids", "{ids}"), "None of the 1 ids of the list is in"),
        (
            ("retrieval", "{saved}", "{shards}", "--protocol", "mine"),
            "There is no protocol 'mine' here; choose one of",
        ),
        (
            ("retrieval", "{saved}", "{shards}", "--protocol", "cav-mae-sync-vggsound"),
            "Add --ids FILE to give the list.",
        ),
        (("retrieval", "{saved}", "{shards}", "--strategy", "best"), "`strategy` is 'best'; choose one of"),
        (("retrieval", "{saved}", "{shards}", "--strict"), "1 of 7 clips are missing or unusable (clip-2)"),
        (("retrieval", "{saved}", "{shards}", "--media", "{empty}"), "shards have no use for the option `media`"),
        (("retrieval", "{saved}", "{shards}", "--out", "{empty}"), "is a folder; name the file to write"),
        (("classification", "{saved}", "{shards}"), "without the classification head"),
        (
            ("classification", "{classifier}", "{shards}", "--protocol", "vggsounder"),
            "Add --annotations vggsounder.csv",
        ),
        (("localization", "{saved}", "{shards}"), "there is no truth about what sounds where"),
        (("sync", "{saved}", "{shards}", "--min-shift", "9"), "No shift from 9.0 s"),
        (("sync", "{saved}", "{shards}", "--protocol", "labelled"), "needs the label of clips in sync"),
    ],
)
def test_evaluate__explains_what_it_cannot_do(run, saved, classifier, shards, tmp_path, monkeypatch, arguments, words):
    empty = tmp_path / "empty"
    empty.mkdir()
    ids = tmp_path / "ids.txt"
    ids.write_text("nothing\n")
    monkeypatch.chdir(tmp_path)
    places = {"saved": saved, "classifier": classifier, "shards": shards, "empty": empty, "ids": ids}

    code, out, err = run(*(argument.format(**places) for argument in arguments))

    assert code == 1 and words in " ".join(err.split()) and not out


@pytest.mark.parametrize("arguments", [("retrieval",), ("retrieval", "m"), ("retrieval", "m", "d", "--limit", "0")])
def test_evaluate__wrong_usage_has_its_own_code(run, arguments):
    assert run(*arguments)[0] == 2
