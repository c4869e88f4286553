# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""`cavmae-sync score`: what people see, what scripts get, what is written, and plain words for bad input."""

import json

import numpy as np
import pytest

from cavmae_sync_hf import index_videos, load_model, make_world
from cavmae_sync_hf.model.media_cavmae_sync import probe_media
from helpers.clips import noise, write_clip


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A film of SyncWorld without and with audio, and an index of clips of another world."""
    folder = tmp_path_factory.mktemp("score")
    make_world(folder, clips=1, seed=5, split="films", preset="semantic", seconds=4, workers=1)
    make_world(folder, clips=6, seed=6, split="sounds", preset="semantic", seconds=4, workers=1)
    index_videos(folder / "sounds", folder / "sounds.index", *load_model("example"), hop=0.5)
    return folder


def test_a_film__is_written_with_what_was_placed(run, studio, tmp_path):
    film, index = studio / "films" / "000000.mp4", studio / "sounds.index"
    options = ("--library", index, "--original", "replace", "--min-fit", 3)
    written = ("--out", tmp_path / "film.mp4", "--timeline", tmp_path / "film.csv", "--stems", tmp_path / "stems")

    code, out, _ = run("score", film, *options, *written)

    lines = out.splitlines()
    assert code == 0 and " nats better than silence" in lines[0] and f"wrote {tmp_path / 'film.mp4'}" in lines
    assert probe_media(tmp_path / "film.mp4").has_audio and list((tmp_path / "stems").iterdir())
    assert not list(tmp_path.glob("*.jsonl"))  # what an interrupted run leaves
    placed = (tmp_path / "film.csv").read_text().splitlines()[1:]
    assert len(placed) == sum("nats" in line for line in lines)
    code, _, err = run("score", film, *options, *written)
    assert code == 1 and "film.mp4" in err and "--overwrite" in err

    code, out, _ = run("score", film, *options, "--json", "--layers", 2, "--seed", 3)
    found = json.loads(out)
    assert code == 0 and found["kind"] == "audio" and {placed["layer"] for placed in found["placements"]} == {0, 1}


def test_a_film_with_audio__is_refused_before_anything_is_computed(run, studio, tmp_path):
    film = studio / "films" / "000000.mp4"
    code, _, err = run("score", film, "--library", studio / "sounds.index", "--out", tmp_path / "film.mp4")
    assert code == 1 and "has audio of its own" in err and "--original replace" in err
    assert not list(tmp_path.iterdir())


def test_audio_alone__gets_pictures(run, studio, tmp_path):
    track = write_clip(tmp_path / "a.wav", seconds=2, video=False, audio=noise(2), audio_codec="pcm_s16le")
    code, out, _ = run("score", track, "--library", studio / "sounds.index", "--out", tmp_path / "film.mkv")
    assert code == 0 and "mean picture of the library" in out and "pictures in" in out
    assert probe_media(tmp_path / "film.mkv").has_video


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{grey}", "--library", "{studio}/sounds.index", "--min-fit", "15"], "nothing in it asks for anything of"),
        (["{grey}", "--library", "{studio}/none.index"], "none.index"),
        (["{grey}", "--library", "{studio}/sounds.index", "--hop", "0"], "hop is 0"),
        (["{grey}", "--library", "{studio}/sounds.index", "--out", "film.avi"], "film.avi"),
        (["{grey}", "--library", "{studio}/sounds.index", "--files", "*/nobody"], "nothing in it asks"),
        (["{grey}", "--library", "{studio}/sounds.index", "--text", "bell"], "no text encoder"),
    ],
    ids=["still", "no index", "hop", "suffix", "files", "words"],
)
def test_bad_input__is_told(run, studio, tmp_path, words, message):
    grey = np.full((96, 96, 3), 128, np.uint8)
    film = write_clip(tmp_path / "grey.mp4", seconds=2, size=(96, 96), frame=lambda number, time: grey, audio=False)
    code, _, err = run("score", *(word.format(grey=film, studio=studio) for word in words))
    assert code in (1, 2) and message in err and "Traceback" not in err
