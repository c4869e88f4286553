"""`cavmae-sync sync` and `cavmae-sync localize`: what they print and write, and how they refuse."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor, save_for_hub
from cavmae_sync_hf.model.media_cavmae_sync import probe_media
from helpers.clips import write_clip
from helpers.rule_models import RATE, SECONDS, ramp_video, rising_tone
from helpers.tiny import tiny_config


def save(config, folder: Path) -> Path:
    torch.manual_seed(0)
    model = CavMaeSyncModel(config)
    return save_for_hub(model, CavMaeSyncProcessor.from_config(model.config), folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save(tiny_config(), tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {late: ramp_video(folder / f"{late}.mp4", late=late) for late in (0.0, 0.5, -0.7)}


@pytest.mark.parametrize("command", ["sync", "localize"])
def test_help__is_printed(run, command):
    code, out, _ = run(command, "--help")

    assert code == 0 and f"Usage: cavmae-sync {command}" in out and "--model" in out


def test_sync__says_how_late_the_audio_is(run, telling, videos):
    code, out, err = run("sync", videos[0.5], videos[0.0], "-m", telling, "--hop", 0.2)

    lines = out.splitlines()
    late, true = (next(line for line in lines if name in line and "│" in line) for name in ("0.5.mp4", "0.0.mp4"))
    assert code == 0 and err.splitlines() == ["loading model example ...", "running on cpu"]
    assert float(re.search(r"audio late by (\d\.\d\d) s", late)[1]) == pytest.approx(0.5, abs=0.06)
    assert "│ in sync" in true and "To within 0.2 s" in out
    assert any(line.startswith("Alignment score of 2 videos: 0.") for line in lines)
    assert any(line.startswith("Protocol: cavmae-sync-alignment/1;") for line in lines)


def test_sync__as_json_and_nothing_else(run, telling, videos):
    code, out, _ = run("sync", videos[-0.7], "-m", telling, "--json", "--start", 1, "--end", 5)

    values = json.loads(out)
    video = values["videos"][0]
    assert code == 0 and values["failed"] == [] and video["files"] == [] and values["device"] == "cpu"
    assert video["offset"] == pytest.approx(-0.7, abs=0.06) and video["moments"] == len(video["scores"]) == 40
    assert video["remarks"] == [] and video["confidence"] > 0.9


def test_sync__writes_image_values_and_arrays(run, telling, videos, tmp_path):
    pytest.importorskip("matplotlib")
    out_folder = tmp_path / "new" / "results"

    code, out, _ = run("sync", videos[0.5], videos[0.5], "-m", telling, "--hop", 0.2, "--out", out_folder)

    names = {path.name for path in out_folder.iterdir()}
    assert code == 0
    assert names == {f"{stem}.sync.{suffix}" for stem in ("0.5", "0.5-2") for suffix in ("png", "json", "npz")}
    assert out.count("wrote ") == 6
    assert Image.open(out_folder / "0.5.sync.png").size == (1200, 960)
    assert json.loads((out_folder / "0.5.sync.json").read_text())["offset"] == pytest.approx(0.5, abs=0.05)
    with np.load(out_folder / "0.5.sync.npz") as arrays:
        assert arrays["band"].shape == (30, 21) and arrays["matrix"].shape == (30, 30)


def test_sync__another_audio_track_for_each(run, telling, videos, tmp_path):
    dub = write_clip(
        tmp_path / "dub.wav", video=False, audio=rising_tone(late=0.3), rate=RATE, audio_codec="pcm_s16le"
    )

    code, out, _ = run(
        "sync",
        videos[-0.7],
        videos[0.0],
        "--audio",
        dub,
        "--audio",
        videos[0.5],
        "-m",
        telling,
        "--json",
        "--hop",
        0.2,
    )

    found = [video["offset"] for video in json.loads(out)["videos"]]
    assert code == 0 and found == pytest.approx([0.3, 0.5], abs=0.05)
    assert json.loads(out)["alignment"]["standard_error"] is not None


def test_sync__bad_files_are_named_and_the_others_measured(run, telling, videos, tmp_path):
    trap = tmp_path / "trap.mp4"
    trap.write_text("#EXTM3U\n/etc/passwd\n")
    mute = ramp_video(tmp_path / "mute [red].mp4", audio=False)

    code, out, err = run("sync", tmp_path / "none.mp4", videos[0.0], trap, mute, "-m", telling, "--json", "--hop", 0.2)

    values = json.loads(out)
    assert code == 1 and len(values["videos"]) == 1
    assert [Path(entry["video"]).name for entry in values["failed"]] == ["none.mp4", "trap.mp4", "mute [red].mp4"]
    assert "none.mp4: no such file" in err and "playlist" in err and "mute [red].mp4" in err


def test_sync__hostile_names_stay_names(run, telling, videos, tmp_path):
    pytest.importorskip("matplotlib")
    hostile = tmp_path / "-rf [bold]$x$\x1b[31m;ls.mp4"
    hostile.write_bytes(videos[0.0].read_bytes())

    code, out, _ = run("sync", "-m", telling, "--hop", 0.5, "--out", tmp_path / "out", "--", hostile)

    assert code == 0 and "\x1b[31m" not in out and "[bold]" in out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 3 and all(name.startswith("rf_bold_") and ";" not in name for name in names)


def test_sync__labelled_films_give_auc(run, telling, videos, tmp_path):
    rows = [f"{videos[0.0]},real", f"{videos[0.5]},fake", f"{videos[-0.7]},fake"]
    table = tmp_path / "videos.csv"
    table.write_text("\n".join(["path,label", *rows]) + "\n")

    code, out, _ = run("sync", "--labels", table, "-m", telling, "--hop", 0.2)
    as_json = json.loads(run("sync", "--labels", table, "-m", telling, "--hop", 0.2, "--json")[1])

    assert code == 0 and "lead       AUC 1.0000, equal-error rate 0.00%" in out
    assert as_json["detection"]["contrast"]["auc"] == 1.0


def test_sync__labels_of_one_kind_give_no_auc(run, telling, videos, tmp_path):
    table = tmp_path / "videos.csv"
    table.write_text(f"path,label\n{videos[0.0]},1\n")

    code, out, err = run("sync", "--labels", table, "-m", telling, "--json", "--hop", 0.5)

    assert code == 0 and json.loads(out)["detection"] is None and "both kinds" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sync", "-m", "example"], "Name videos"),
        (["sync", __file__, "-m", "example", "--labels", __file__], "Name videos"),
        (["sync", __file__, __file__, "-m", "example", "--audio", __file__], "--audio was given 1 times for 2 videos"),
        (["sync", __file__, "-m", "example", "--in-sync", "1"], "--labels"),
        (["sync", "a.mp4"], "--model"),
        (["sync", __file__, "-m", "example", "--device", "foo"], "'foo' is no device"),
        (["sync", "a.mp4", "-m", "x", "--start", "-1"], "--start"),
        (["localize", "-m", "x"], "VIDEO"),
        (["localize", "a.mp4", "-m", "x", "--out", "o", "--method", "guess"], "guess"),
    ],
)
def test_wrong_usage__exits_with_2(run, arguments, words):
    code, _, err = run(*arguments)

    assert code == 2 and words in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize("command", ["sync", "localize"])
def test_wrong_checkpoints__are_refused(run, videos, tmp_path, command):
    one = save(tiny_config(modality="video"), tmp_path / "one")
    out = ["--out", tmp_path / "out"] if command == "localize" else []

    tower = run(command, videos[0.0], "-m", one, *out)
    nothing = run(command, videos[0.0], "-m", tmp_path / "missing", *out)

    assert tower[0] == nothing[0] == 1
    assert "video tower alone" in tower[2] and "is not a folder" in nothing[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["sync", "localize"])
def test_out__must_be_a_folder(run, saved, videos, tmp_path, command):
    (tmp_path / "file").write_text("")

    code, _, err = run(command, videos[0.0], "-m", saved, "--out", tmp_path / "file")

    assert code == 1 and "is a file; name a folder" in " ".join(err.split())


def test_sync__span_outside_the_film(run, saved, videos):
    code, _, err = run("sync", videos[0.0], "-m", saved, "--start", 60)

    assert code == 1 and "earlier start" in err


def test_localize__writes_everything(run, saved, videos, tmp_path):
    folder = tmp_path / "new" / "places"

    code, out, _ = run("localize", videos[0.0], "-m", saved, "--out", folder, "--fps", 2, "--end", 2, "--frames", 3)

    suffixes = {"frames.png", "spectrogram.png", "places.json", "maps.npz", "places.mp4"}
    assert code == 0 and {path.name for path in folder.iterdir()} == {f"0.0.{suffix}" for suffix in suffixes}
    assert out.count("wrote ") == 5 and "0:00.2" in out
    assert probe_media(folder / "0.0.places.mp4").duration == pytest.approx(2.0, abs=0.06)
    values = json.loads((folder / "0.0.places.json").read_text())
    assert len(values["moments"]) == 4 and values["width"] == 64 and values["method"] == "relevance"
    with np.load(folder / "0.0.maps.npz") as arrays:
        assert arrays["video_maps"].shape == (4, 4, 4) and arrays["audio_maps"].shape == (4, 2, 6)


@pytest.mark.parametrize(("options", "word"), [(["--audio"], "silence"), (["--least-strength", 1000], None)])
def test_localize__says_where_there_is_no_source(run, saved, videos, tmp_path, options, word):
    """Of silence there never is one, however weak one may be; of sound, none that is not strong enough."""
    if word:
        silence = write_clip(tmp_path / "s.wav", video=False, audio=np.zeros((1, round(16000 * SECONDS)), np.float32),
                             rate=16000, audio_codec="pcm_s16le")  # fmt: skip
        options = [*options, silence, "--least-strength", -1000]
    words = ["localize", videos[0.0], "-m", saved, "--fps", 1, "--method", "cosine", *options]

    table, values = run(*words)[1], json.loads(run(*words, "--json")[1])["videos"][0]

    assert table.count("no source") >= SECONDS and (not word or table.count(word) >= SECONDS)
    assert [moment["source"] for moment in values["moments"]] == [False] * round(SECONDS)
    assert {moment["silent"] for moment in values["moments"]} == {bool(word)}


def test_localize__as_json_without_the_film(run, saved, videos, tmp_path):
    code, out, _ = run(
        "localize", videos[0.0], "-m", saved, "--out", tmp_path, "--no-video", "--json", "--fps", 1,
        "--method", "cosine", "--audio", videos[0.5],
    )  # fmt: skip

    (values,) = json.loads(out)["videos"]
    assert code == 0 and len(values["moments"]) == SECONDS and values["method"] == "cosine"
    assert set(values["files"]) == {"frames", "spectrogram", "values", "maps"}
    assert values["audio_source"].endswith("0.5.mp4") and not list(tmp_path.glob("*.mp4"))


@pytest.mark.parametrize("command", ["sync", "localize"])
def test_files_folders_and_patterns__are_all_taken_and_bad_ones_named(run, saved, videos, tmp_path, command):
    folder = tmp_path / "more"
    folder.mkdir()
    for name in ("b.mp4", "日本.mp4"):
        (folder / name).write_bytes(videos[0.0].read_bytes())
    (folder / "c.mp4").write_text("text")
    (tmp_path / "empty").mkdir()
    named = (videos[0.5], tmp_path / "none.mp4", folder, folder.parent / "*" / "b.mp4", tmp_path / "empty")
    quick = (
        "-m",
        saved,
        "--end",
        "0:02",
        *(("--hop", 0.5) if command == "sync" else ("--fps", 1, "--method", "cosine")),
    )

    code, out, err = run(command, *named, *quick)
    as_json = json.loads(run(command, *named, *quick, "--json")[1])

    assert [Path(video["source"]).name for video in as_json["videos"]] == ["0.5.mp4", "b.mp4", "日本.mp4", "b.mp4"]
    assert sorted(Path(video["video"]).name for video in as_json["failed"]) == ["c.mp4", "empty", "none.mp4"]
    assert code == 1 and out.count("b.mp4") >= 2 and "日本.mp4" in out
    assert err.count("Left out:") == 3 and err.splitlines()[-1] == "4 videos done, 3 left out."


@pytest.mark.parametrize("command", ["sync", "localize"])
def test_out__takes_a_table_or_a_folder(run, saved, videos, tmp_path, command, monkeypatch):
    named = (videos[0.5], videos[0.0], tmp_path / "none.mp4")
    quick = (
        "-m",
        saved,
        "--end",
        "0:02",
        *(("--hop", 0.5) if command == "sync" else ("--fps", 1, "--method", "cosine")),
    )

    code, out, _ = run(command, *named, *quick, "--out", tmp_path / "found.csv")
    _, printed, _ = run(command, *named, *quick, "--out", tmp_path / "found.json", "--json")

    with open(tmp_path / "found.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert code == 1 and f"wrote {tmp_path / 'found.csv'}" in out
    assert [Path(row["video"]).name for row in rows if not row["error"]] == (
        ["0.5.mp4", "0.0.mp4"] if command == "sync" else ["0.5.mp4"] * 2 + ["0.0.mp4"] * 2
    )
    assert "no such file" in rows[-1]["error"]
    column, least, most = ("similarity", -1, 1) if command == "sync" else ("x", 0, 1)
    assert all(least <= float(row[column]) <= most for row in rows[:-1])
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8")) == json.loads(printed)
    before = (tmp_path / "found.csv").read_bytes()
    monkeypatch.setattr("cavmae_sync_hf.loading.load_model", None)
    code, _, err = run(command, *named, *quick, "--out", tmp_path / "found.csv")
    assert code == 1 and "found.csv is there already" in err and (tmp_path / "found.csv").read_bytes() == before


def test_localize__mute_films_and_playlists_leave_nothing(run, saved, tmp_path):
    trap = tmp_path / "trap.mp4"
    trap.write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    mute = write_clip(tmp_path / "mute.mp4", audio=False)

    for video, words in ((trap, "playlist"), (mute, "no audio")):
        code, _, err = run("localize", video, "-m", saved, "--out", tmp_path / "out")
        assert code == 1 and video.name in err and words in err
        assert not (tmp_path / "out").exists()
