# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Commands with a model that sees several frames of each moment."""

import json

import pytest
import torch
from PIL import Image

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor, save_for_hub
from cavmae_sync_hf.loading import load_model
from helpers.clips import SIZE, noise, numbered_frame, write_clip
from helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = CavMaeSyncModel(tiny_config(frames_per_moment=3, num_frames=10))
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return save_for_hub(model, CavMaeSyncProcessor.from_config(model.config), folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for clip in range(2):
        pictures = [numbered_frame(7 * number + clip) for number in range(25)]
        write_clip(
            folder / f"{clip}.mp4", seconds=1, audio=noise(1.0, seed=clip), frame=lambda k, _, all=pictures: all[k]
        )
    return folder


def test_sync__compares_moments_of_several_frames(run, saved, clips):
    code, out, _ = run("sync", clips / "0.mp4", "-m", saved, "--hop", 0.1, "--max-offset", 0.2, "--json")
    model, processor = load_model(saved)
    inputs = processor(clips / "0.mp4", num_frames=10, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).similarity[0].diagonal().mean()
    assert code == 0 and inputs["pixel_values_videos"].shape[2] == 9
    assert json.loads(out)["videos"][0]["alignment_score"] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("protocol", ["shifted", "offsets"])
def test_evaluate__counts_every_clip(protocol, run, saved, clips):
    more = ["--max-offset", 0.3] if protocol == "offsets" else []
    code, out, err = run("evaluate", "sync", saved, clips, "--protocol", protocol, "--json", *more)
    assert code == 0, err
    assert json.loads(out)["counts"]["clips_seen"] == 2


def test_search__finds_a_moment_by_its_frames_and_takes_an_image_for_one_that_stands_still(
    run, saved, clips, tmp_path
):
    code, _, err = run("index", clips, tmp_path / "index", "-m", saved, "--hop", 0.2)
    assert code == 0, err
    span = ("--by", "video", "--in", "video", "--start", 0.4, "--end", 0.6)
    code, out, _ = run("search", tmp_path / "index", clips / "1.mp4", *span, "--json")
    hit = json.loads(out)["hits"][0]
    assert (code, hit["path"], hit["start"]) == (0, str(clips / "1.mp4"), pytest.approx(0.4))
    assert hit["score"] == pytest.approx(1, abs=1e-2)
    Image.fromarray(numbered_frame(1, SIZE)).save(tmp_path / "still.png")
    code, out, _ = run("search", tmp_path / "index", tmp_path / "still.png", "--json")
    assert code == 0 and json.loads(out)["hits"]


def test_localize__maps_every_moment(run, saved, clips):
    code, out, err = run("localize", clips / "0.mp4", "-m", saved, "--fps", 5, "--json")
    assert code == 0, err
    assert len(json.loads(out)["videos"][0]["moments"]) == 5
