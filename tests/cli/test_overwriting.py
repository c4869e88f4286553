# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""No command replaces a file unless it is told to, and names of files in any script come through whole."""

import io
import json
import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from cavmae_sync_hf import CavMaeSyncModel, save_for_hub
from cavmae_sync_hf.cli import terminal
from cavmae_sync_hf.model.errors_cavmae_sync import MediaError, printable
from helpers.clips import noise, write_clip
from helpers.rule_models import ramp_video
from helpers.tiny import tiny_config
from helpers.tiny_shards import tiny_processor, write_shards

NAMES = ("日本.mp4", "Überschrift.mp4", "U\u0308berschrift.mp4", "مرحبا.mp4", "👩‍🚀.mp4", "CON.mp4", "-rf.mp4",
         "a\nb\x1b[31m.mp4", os.fsdecode(b"caf\xe9.mp4"))  # fmt: skip


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return ramp_video(tmp_path_factory.mktemp("videos") / "clip.mp4")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return save_for_hub(CavMaeSyncModel(tiny_config()), tiny_processor(), tmp_path_factory.mktemp("m") / "model")


def copies(video: Path, folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The video under other names."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(video.read_bytes())
    return paths


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_sync__results_of_equal_names_stand_side_by_side(run, telling, video, tmp_path):
    pytest.importorskip("matplotlib")
    paths = copies(video, tmp_path, ("a/clip.mp4", "b/clip.mp4", "c/Clip.mp4"))

    code, _, _ = run("sync", *paths, "-m", telling, "--hop", 0.2, "--out", tmp_path / "out")

    stems = {name.partition(".")[0] for name in contents(tmp_path / "out")}
    assert code == 0 and stems == {"clip", "clip-2", "Clip-3"}
    sources = [json.loads((tmp_path / "out" / f"{stem}.sync.json").read_text())["source"] for stem in sorted(stems)]
    assert sorted(sources) == sorted(map(str, paths))


def test_sync__another_run_refuses_before_it_measures(run, telling, video, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    first, second, new = copies(video, tmp_path, ("a/clip.mp4", "b/clip.mp4", "b/new.mp4"))
    arguments = ("-m", telling, "--hop", 0.2, "--out", tmp_path / "out")
    assert run("sync", first, *arguments)[0] == 0
    before = contents(tmp_path / "out")

    code, _, err = run("sync", second, new, *arguments)  # another file of the name is refused, the others are not
    assert code == 1 and "clip.sync.png is there already" in err and "Add --overwrite to replace it." in err
    after = contents(tmp_path / "out")
    assert len(after) == 6 and before.items() <= after.items()

    monkeypatch.setattr("cavmae_sync_hf.inference.sync.measure_sync", None)
    code, _, err = run("sync", first, *arguments)  # and so is the same file
    assert code == 1 and "clip.sync.png is there already" in err and contents(tmp_path / "out") == after
    monkeypatch.undo()


def test_sync__overwrite_replaces(run, telling, video, tmp_path):
    pytest.importorskip("matplotlib")
    first, second = copies(video, tmp_path, ("a/clip.mp4", "b/clip.mp4"))
    arguments = ("-m", telling, "--hop", 0.2, "--out", tmp_path / "out")
    run("sync", first, *arguments)

    assert run("sync", second, *arguments, "--overwrite")[0] == 0

    assert len(contents(tmp_path / "out")) == 3
    assert json.loads((tmp_path / "out" / "clip.sync.json").read_text())["source"] == str(second)


def test_sync__names_in_any_script(run, telling, video, tmp_path):
    pytest.importorskip("matplotlib")
    paths = copies(video, tmp_path / "in", NAMES)

    code, out, err = run("sync", *paths, "-m", telling, "--hop", 0.2, "--out", tmp_path / "out")

    stems = {name.removesuffix(".sync.json") for name in contents(tmp_path / "out") if name.endswith(".json")}
    assert code == 0 and "Left out" not in err and "\x1b[31m" not in out
    assert stems == {"日本", "Überschrift", "Überschrift-2", "مرحبا", "👩‍🚀", "CON_", "rf", "a_nb_x1b_31m", "caf_xe9"}
    assert {unicodedata.normalize("NFC", stem) for stem in stems} == stems
    for shown in ("日本", "Überschrift", "مرحبا", r"a\nb\x1b[31m", r"caf\xe9"):
        assert f"in/{shown}.mp4" in out or f"{shown}.mp4" in out


def test_localize__another_run_refuses_before_it_works(run, saved, video, tmp_path, monkeypatch):
    first, second = copies(video, tmp_path, ("a/日本.mp4", "b/日本.mp4"))
    arguments = ("-m", saved, "--fps", 1, "--method", "cosine", "--end", 2, "--out", tmp_path / "out")
    assert run("localize", first, *arguments)[0] == 0
    before = contents(tmp_path / "out")
    assert {name.partition(".")[0] for name in before} == {"日本"} and len(before) == 5

    monkeypatch.setattr("cavmae_sync_hf.inference.localize.localize", None)
    code, _, err = run("localize", second, *arguments)
    assert code == 1 and "日本.frames.png is there already" in err and "--overwrite" in err
    (tmp_path / "out" / "日本.frames.png").unlink()
    assert run("localize", second, *arguments)[0] == 1  # one of them is enough
    monkeypatch.undo()


def test_localize__overwrite_replaces(run, saved, video, tmp_path):
    arguments = ("-m", saved, "--fps", 1, "--method", "cosine", "--end", 2, "--no-video", "--out", tmp_path / "out")
    run("localize", video, *arguments)

    assert run("localize", video, *arguments, "--overwrite")[0] == 0
    assert len(contents(tmp_path / "out")) == 4


def test_evaluate__refuses_before_it_works(run, saved, tmp_path, monkeypatch):
    shards, out = write_shards(tmp_path / "shards", [3]), tmp_path / "結果.json"
    arguments = ("evaluate", "retrieval", saved, shards, "--out", out)
    assert run(*arguments)[0] == 0
    before = out.read_bytes()

    assert run(*arguments, "--overwrite")[0] == 0 and json.loads(out.read_text())["metrics"]
    monkeypatch.setattr("cavmae_sync_hf.evaluation.evaluate_retrieval", None)
    out.write_bytes(before)
    code, _, err = run(*arguments)
    assert code == 1 and "結果.json is there already" in err and "Add --overwrite to replace it." in err
    assert out.read_bytes() == before


def test_world__previews_are_replaced_only_when_asked(run, tmp_path):
    arguments = (
        "world",
        tmp_path / "w",
        "--clips",
        2,
        "--seconds",
        3,
        "--size",
        48,
        "--preset",
        "spatial",
        "--preview",
    )
    assert run(*arguments, "--workers", 1)[0] == 0
    (tmp_path / "w" / "train.html").write_text("mine")

    code, _, err = run(*arguments)
    assert code == 1 and "train.html is there already" in err and "Add --overwrite" in err
    assert (tmp_path / "w" / "train.html").read_text() == "mine"
    assert run(*arguments, "--overwrite")[0] == 0 and "mine" not in (tmp_path / "w" / "train.html").read_text()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_output__takes_every_name_in_every_encoding(monkeypatch, encoding):
    name = os.fsdecode(b"\xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x98\x80 caf\xe9\x1b[31m\n.mp4")
    streams = {what: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for what in ("stdout", "stderr")}
    for what, stream in streams.items():
        monkeypatch.setattr(sys, what, stream)
    monkeypatch.setattr(terminal, "console", Console(width=200))
    monkeypatch.setattr(terminal, "errors", Console(stderr=True, width=200))

    terminal.accept_all_names()
    terminal.say(f"wrote {printable(name)}")
    terminal.report(MediaError(f"{name}: is empty."))
    terminal.print_json({"name": name})

    for stream in streams.values():
        stream.flush()
    printed, errors = (stream.buffer.getvalue() for stream in streams.values())
    line, _, values = printed.decode(encoding).partition("\n")
    shown = "日本 😀" if encoding == "utf-8" else r"\u65e5\u672c \U0001f600"
    assert line == rf"wrote {shown} caf\xe9\x1b[31m\n.mp4" and b"\x1b" not in printed + errors
    assert errors.decode(encoding) == rf"Error: {shown} caf\xe9\x1b[31m .mp4: is empty." + "\n"
    assert json.loads(values)["name"] == name


def test_tables__have_one_line_per_clip_whatever_its_name(run, saved, tmp_path):
    sound = noise(3.0, 16000, 1)
    names = ("日本\n.mp4", "tab\t\u2028.mp4", os.fsdecode(b"\xff\x1b]0;x\x07.mp4"))
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in names:
        write_clip(clips / "x.mp4", audio=sound, rate=16000).rename(clips / name)
        (clips / f"bad {name}").write_bytes(b"nothing")

    assert run("extract", clips, tmp_path / "features", "-m", saved, "--window", 2)[0] == 1
    assert run("prepare", clips, tmp_path / "shards", "--workers", 1)[0] in (0, 1)

    timing = (tmp_path / "features" / "timing.csv").read_text(encoding="utf-8")
    assert len(timing.splitlines()) == 1 + np.load(tmp_path / "features" / "a.npy").shape[0]
    for table, rows in (("bad_clips.csv", 1 + len(names)), ("clips.jsonl", len(names))):
        text = (tmp_path / "shards" / table).read_text(encoding="utf-8")
        assert len(text.splitlines()) == rows and text.replace("\n", "").isprintable()
    manifest = json.loads((tmp_path / "features" / "manifest.json").read_text(encoding="utf-8"))
    assert {video["file"] for video in manifest["videos"]} == {
        r"日本\n.mp4",
        r"tab\t\u2028.mp4",
        r"\xff\x1b]0;x\x07.mp4",
    }
