# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""`cavmae-sync ask`: what it prints, and how it refuses."""

import json
import re

import numpy as np
import pytest
import torch

from cavmae_sync_hf import load_model
from cavmae_sync_hf.search import asking
from helpers.clips import noise, write_clip
from helpers.lm import letters, lm_model
from helpers.words import save, text_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Models that answer with many different letters, one without a template, and one with text alone."""
    folder = tmp_path_factory.mktemp("models")
    model, processor = lm_model(seed=1, tie_word_embeddings=False)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    save(model, processor, folder / "lm")
    save(*lm_model(letters(None)), folder / "bare")
    save(*text_model(), folder / "words")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=3, audio=noise(3))


def test_ask__prints_the_answer_and_the_likely_moments(run, saved, clip, monkeypatch):
    scores = torch.log(torch.tensor([0.1, 0.65, 0.2, 0.05]))
    monkeypatch.setattr("cavmae_sync_hf.inference.ask.answer_scores", lambda *_: scores)

    code, out, err = run("ask", clip, "When does it ring?", "-m", saved / "lm", "--max-new-tokens", 12)

    expected = asking.ask(clip, "When does it ring?", saved / "lm", max_new_tokens=12)
    assert code == 0 and err.splitlines() == [f"loading model {saved / 'lm'} ...", "running on cpu"]
    *words, moment = out.splitlines()
    assert re.fullmatch(r"  0:01\.[01]  65%", moment)
    assert expected.text and "\n".join(words).strip().isprintable()


def test_ask__as_json_and_nothing_else(run, saved, clip):
    code, out, _ = run("ask", clip, "Is it loud?", "What rings?", "-m", saved / "lm", "--json", "--num-frames", 2)

    values = json.loads(out)
    assert code == 0 and values["model"] == str(saved / "lm")
    assert [entry["question"] for entry in values["answers"]] == ["Is it loud?", "What rings?"]
    for entry in values["answers"]:
        assert len(entry["times"]) == 2 and sum(entry["scores"]) == pytest.approx(1, abs=1e-4)
        assert entry["source"] == str(clip) and entry["seconds_watched"] == pytest.approx(3, abs=0.1)


def test_ask__several_questions_stand_before_their_answers(run, saved, clip):
    code, out, err = run(
        "ask", clip, "Is it loud?", "What rings?", "-m", saved / "lm", "--max-new-tokens", 3, "--start", "0:01"
    )

    lines = out.splitlines()
    assert code == 0 and lines[0] == "Is it loud?" and "What rings?" in lines
    assert "Times in the words of an answer count from 0:01.0." in err


def test_ask__looks_through_the_film_first(run, saved, clip):
    code, out, _ = run(
        "ask", clip, "a bell", "-m", saved / "lm", "--search-model", saved / "words", "--most-moments", 3, "--json",
        "--max-new-tokens", 2,
    )  # fmt: skip

    (entry,) = json.loads(out)["answers"]
    assert code == 0 and len(entry["times"]) <= 3 and np.diff(entry["times"]).min() > 0.4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{clip}", " ", "-m", "{saved}/lm"], "The question is ' '; ask something"),
        (["{clip}", "why " * 400, "-m", "{saved}/lm"], "Add --max-new-tokens 32 to leave more room."),
        (["{clip}", "why", "-m", "{saved}/bare"], "has no chat template"),
        (["{clip}", "why", "-m", "{saved}/words"], "no language model; name a model with one: `cavmae-sync instruct`"),
        (["{clip}", "why", "-m", "{saved}/lm", "--search-model", "{saved}/lm"], "has no text encoder"),
        (["{clip}", "why", "-m", "{saved}/lm", "--most-moments", 3], "Leave out --most-moments."),
        (["{notes}", "why", "-m", "{saved}/lm"], "notes.mp4"),
    ],
)  # fmt: skip
def test_ask__refuses_in_a_line(run, saved, clip, tmp_path, words, told):
    (tmp_path / "notes.mp4").write_text("nothing to see")
    places = {"clip": clip, "saved": saved, "notes": tmp_path / "notes.mp4"}

    code, out, err = run("ask", *(str(word).format(**places) for word in words))

    assert code == 1 and out == "" and told in err.splitlines()[-1]


def test_other_commands__take_the_model_inside(run, saved, clip):
    code, out, _ = run("sync", clip, "-m", saved / "lm", "--hop", 0.5, "--max-offset", 0.5, "--json")
    card_code, card, _ = run("card", saved / "lm")

    expected, _ = load_model(saved / "lm")
    assert code == 0 and json.loads(out)["videos"] and type(expected).__name__ == "CavMaeSyncModel"
    assert card_code == 0 and "CavMaeSyncForConditionalGeneration" in card
