# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Questions on the web page of a model with a language model: what the tab shows, and what programs get."""

import json

import pytest
import torch

from cavmae_sync_hf import AppError, ask, load_model
from cavmae_sync_hf.app import demo_clips
from cavmae_sync_hf.app.endpoints import Endpoints
from cavmae_sync_hf.app.engine import Engine
from cavmae_sync_hf.app.handlers import RequestHandler
from cavmae_sync_hf.app.workspace import Limits, Workspace
from helpers.little_app import decode_here, make_video, send, write_tone
from helpers.lm import lm_model
from helpers.words import save

QUESTION = "When does it ring?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that answers with many different letters."""
    model, processor = lm_model(seed=1, tie_word_embeddings=False)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    return save(model, processor, tmp_path_factory.mktemp("models") / "lm")


@pytest.fixture(scope="module")
def engine(folder):
    return Engine(folder)


@pytest.fixture
def handler(engine, demo, tmp_path):
    with Workspace(Limits(), parent=tmp_path) as workspace:
        yield RequestHandler(engine, workspace, demo)


def test_engine__holds_the_model_once(engine, folder):
    whole, processor = engine.language

    assert engine.model is whole.model.av_model and engine.text_model is None and engine.name == str(folder)
    assert type(engine.processor).__name__ == "CavMaeSyncProcessor"
    assert engine.processor.feature_extractor is processor.feature_extractor


def test_ask__answers_as_python_does_and_keeps_the_clip(handler, demo, folder, monkeypatch):
    turn, told = handler.pick("visitor", 0)["turn"], []
    read = []
    encode = handler.engine.model.encode
    monkeypatch.setattr(handler.engine.model, "encode", lambda *a: read.append(a[0]) or encode(*a))

    first = handler.ask("visitor", turn, f"  {QUESTION} ", lambda *step: told.append(step))
    second = handler.ask("visitor", turn, "What is seen?")

    assert sorted(read) == ["audio", "video"]
    monkeypatch.undo()
    streamed: list[str] = []
    expected = ask(demo.clips[0].video, QUESTION, folder, max_new_tokens=128, stream=streamed.append)
    (shown,) = first["answers"]
    assert (shown["question"], shown["text"]) == (QUESTION, expected.text) and expected.text
    assert shown["times"] == pytest.approx(expected.times.tolist(), abs=1e-3)
    assert shown["scores"] == pytest.approx(expected.scores.tolist(), abs=1e-3)
    assert [one["question"] for one in second["answers"]] == ["What is seen?", QUESTION]
    pieces = [step[2] for step in told if len(step) > 2]
    assert pieces[-1] == "".join(streamed) and len(pieces) > 1  # bytes that are no UTF-8 come in other pieces
    _, token, name = second["downloads"][0]["url"].split("/")
    saved = json.loads(handler.workspace.find(token, name)[0].read_bytes())
    assert second["downloads"][0]["name"] == "in-sync-answers.json"
    assert saved["answers"][1]["answer"] == expected.text
    json.dumps(second, allow_nan=False)


def test_ask__of_another_clip_starts_anew(handler):
    turn = handler.pick("visitor", 0)["turn"]
    handler.ask("visitor", turn, QUESTION)
    other = handler.pick("visitor", 3)["turn"]

    assert handler.ask("visitor", turn, QUESTION) == {}
    assert len(handler.ask("visitor", other, QUESTION)["answers"]) == 1


def test_ask__stops_when_the_visitor_goes_on(handler):
    turn, left = handler.pick("visitor", 0)["turn"], []

    def leave(*step):
        if not left:
            left.append(step)
            handler.pick("visitor", 1)

    assert handler.ask("visitor", turn, QUESTION, leave) == {} and left


def test_ask__audio_alone_and_from_programs(handler, tmp_path, monkeypatch, folder):
    decode_here(monkeypatch)
    tone, video = write_tone(tmp_path / "tone.wav"), make_video(tmp_path / "video.mp4")
    turn = handler.take("visitor", send(handler.workspace, tone))["turn"]

    assert handler.ask("visitor", turn, QUESTION)["answers"][0]["scores"]
    upload = send(handler.workspace, video)
    found = Endpoints(handler).ask("program", upload, QUESTION)
    assert found["source"] == "video.mp4" and found["model"] == str(folder) and not upload.exists()
    assert found["answer"] == ask(video, QUESTION, folder).text
    with pytest.raises(AppError, match="Write a question first"):
        Endpoints(handler).ask("program", send(handler.workspace, video), " ")


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("", "Write a question first"),
        (None, "Write a question first"),
        ("a" * (Limits().letters + 1), "shorten it"),
        ("is <|video|> red?", "stands for media"),
    ],
)
def test_ask__what_is_no_question_is_told(handler, question, says):
    turn = handler.pick("visitor", 0)["turn"]

    assert says in handler.ask("visitor", turn, question)["error"]


def test_ask__needs_a_model_that_answers(handler, monkeypatch):
    monkeypatch.setattr(handler.engine, "language", None)
    turn = handler.pick("visitor", 0)["turn"]

    assert "no language model" in handler.ask("visitor", turn, QUESTION)["error"]


def test_page__has_the_tab_where_the_model_answers(demo, folder, monkeypatch):
    from cavmae_sync_hf.app import build_app

    monkeypatch.setattr(demo_clips, "LIBRARY_CLIPS", 1)
    for model, expected in ((folder, True), (None, False)):
        page = build_app(model, demo_folder=demo.library.parent)
        labels = [part["props"].get("label") for part in page.get_config_file()["components"]]
        page.close()
        assert ("Ask" in labels) == ("Question about this clip" in labels) == expected and "Where?" in labels


def test_onnx__runs_the_towers_of_such_a_model(folder, monkeypatch):
    towers = load_model(folder)
    monkeypatch.setattr("cavmae_sync_hf.loading.load_onnx_model", lambda *_, **__: towers)

    engine = Engine(folder, backend="onnx", device="cpu")

    assert engine.model is towers[0] and type(engine.language[0]).__name__ == "CavMaeSyncForConditionalGeneration"
    assert engine.torch_model() is not towers[0]
