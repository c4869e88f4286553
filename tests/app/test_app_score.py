# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Sounds of the index for a clip on the web page: what the tab shows, and how another sound is chosen."""

import csv

import pytest

from cavmae_sync_hf.app.engine import Engine
from cavmae_sync_hf.app.handlers import RequestHandler
from cavmae_sync_hf.app.workspace import Limits, Workspace
from cavmae_sync_hf.model.media_cavmae_sync import probe_media

LIBRARY_CLIPS = 3


@pytest.fixture
def handler(demo, tmp_path):
    with Workspace(Limits(), parent=tmp_path) as workspace:
        yield RequestHandler(Engine(), workspace, demo)


def test_sounds__are_placed_and_may_be_exchanged(handler, demo):
    turn = handler.pick("visitor", 0)["turn"]
    first = handler.score("visitor", turn)

    assert first["turn"] == turn and "error" not in first, first
    sounds = first["scored"]["sounds"]
    assert sounds and first["scored"]["seconds"] == pytest.approx(demo.clips[0].seconds, abs=0.1)
    assert all(0 <= one["time"] < one["end"] <= first["scored"]["seconds"] + 0.01 and one["fit"] > 0 for one in sounds)
    assert not any("/" in name for one in sounds for name in (one["name"], *one["choices"]))
    assert [entry["name"].rpartition("-")[2] for entry in first["downloads"]] == ["sounds.mp4", "sounds.csv"]

    number = next(number for number, one in enumerate(sounds) if one["choices"])
    second = handler.exchange("visitor", turn, number, 0)

    there = second["scored"]["sounds"]
    assert there[number]["name"] == sounds[number]["choices"][0] and there[number]["time"] == sounds[number]["time"]
    assert there[number]["choices"][0] == sounds[number]["name"]
    assert there[:number] + there[number + 1 :] == sounds[:number] + sounds[number + 1 :]
    assert second["scored"]["url"] != first["scored"]["url"]
    session = handler.workspace.session("visitor")
    (film,) = session.folder.glob("*scored-*.mp4")  # that of before is gone
    assert film == session.path("scored-2.mp4") and probe_media(film).has_audio
    with session.path("scored-2.csv").open(encoding="utf-8", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [one["name"] for one in there]


@pytest.mark.parametrize(("number", "choice"), [(99, 0), (0, 99), ("0", 0), (None, None)])
def test_what_is_not_there__cannot_be_chosen(handler, number, choice):
    turn = handler.pick("visitor", 0)["turn"]
    assert "press the button first" in handler.exchange("visitor", turn, 0, 0)["error"]
    handler.score("visitor", turn)
    assert handler.exchange("visitor", turn, number, choice)["error"]


def test_a_clip_that_is_not_looked_at_any_more__is_not_worked_on(handler):
    turn = handler.pick("visitor", 0)["turn"]
    handler.pick("visitor", 1)
    assert handler.score("visitor", turn) == {} and handler.exchange("visitor", turn, 0, 0) == {}
