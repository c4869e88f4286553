# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards: filled from results, true to them, and with lines that run."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cavmae_sync_hf import (
    CavMaeSyncConfig,
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    EvaluationError,
    save_for_hub,
)
from cavmae_sync_hf.evaluation import evaluate_retrieval, write_results
from cavmae_sync_hf.evaluation.card import card_text, read_details, results_details
from cavmae_sync_hf.evaluation.results import read_results
from cavmae_sync_hf.loading import load_model
from helpers.clips import noise, write_clip
from helpers.tiny import tiny_config
from helpers.tiny_shards import tiny_processor, write_shards

CARDS = Path(__file__).parents[2] / "model_cards"
NAMES = ("cav-mae-scale-plus", "cav-mae-sync", "syncworld_tiny")


def results_of(name: str) -> list[Path]:
    return sorted((CARDS / "results" / name).glob("*.json"))


COMMAND = ("card",)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return save_for_hub(CavMaeSyncModel(tiny_config()), tiny_processor(), tmp_path_factory.mktemp("m") / "little")


@pytest.fixture(scope="module")
def measured(saved, tmp_path_factory) -> Path:
    """Results of the saved model on seven clips, one of which is silent."""
    folder = tmp_path_factory.mktemp("r")
    model, processor = load_model(saved)
    shards = write_shards(folder / "shards", [4, 3], silent=[2])
    return write_results(folder / "results.json", evaluate_retrieval(model, processor, shards, command="the command"))


# The cards of this project


@pytest.mark.parametrize("name", NAMES)
def test_cards__are_what_the_command_makes(run, name, tmp_path, monkeypatch):
    folder, target = CARDS / "checkpoints" / name, tmp_path / "card.md"
    results = [part for path in results_of(name) for part in ("--results", path)]
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "cavmae_sync")  # nothing has registered the classes yet

    code, _, err = run(folder, "--details", folder / "details.yaml", *results, "--out", target)

    assert code == 0, err
    assert target.read_text() == (CARDS / f"{name}.md").read_text(), "fill the card again, see model_cards/README.md"


@pytest.mark.parametrize("name", NAMES)
def test_cards__have_the_hubs_metadata_and_every_part(name):
    card = ModelCard.load(CARDS / f"{name}.md")
    data = card.data.to_dict()

    assert data["library_name"] == "transformers" and "pipeline_tag" not in data
    assert {"audio-visual-feature-extraction", "audio-visual-retrieval"} <= set(data["tags"])
    assert data["license"] in ("apache-2.0", "bsd-2-clause")
    for part in ("Intended use", "Limits", "Biases", "Training", "Evaluation", "Licence", "Citation"):
        assert len(re.search(rf"## {part}\n\n(.*?)(\n## |\Z)", card.text, re.DOTALL)[1].strip()) > 40, part
    # A figure is on a card only where results of this project say so.
    assert ("model-index" in data) == bool(results_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_cards__figures_are_those_of_the_results(name):
    listed = ModelCard.load(CARDS / f"{name}.md").data.to_dict().get("model-index", [{"results": []}])[0]["results"]
    figures = {
        (entry["dataset"]["type"], entry["task"]["name"], metric["type"]): metric["value"]
        for entry in listed
        for metric in entry["metrics"]
    }
    known = {}
    for path in results_of(name):
        record = read_results(path)
        assert record["complete"] and record["command"].startswith("cavmae-sync evaluate")
        for result in results_details([record])[0]:
            key = (result.dataset_type, result.task_name, result.metric_type)
            known[key] = result.metric_value
            assert result.metric_value == pytest.approx(record["metrics"][result.metric_type], abs=5e-5)
    assert figures == known


@pytest.mark.parametrize("name", NAMES)
def test_cards__snippets_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kind, config = CavMaeSyncForPreTraining, tiny_config(num_frames=3)
    save_for_hub(kind(config), CavMaeSyncProcessor.from_config(config), name)
    write_clip(tmp_path / "clip.mp4", seconds=2, audio=noise(2.0))
    (snippet,) = re.findall(r"```python\n(.*?)```", (CARDS / f"{name}.md").read_text(), flags=re.DOTALL)
    assert f'"{name}"' in snippet

    names: dict = {}
    exec(compile(snippet, name, "exec"), names)

    assert names["outputs"].similarity.shape == (1, 3, 3) and "tensor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "config"),
    [("cav-mae-sync", CavMaeSyncConfig.cav_mae_sync()), ("cav-mae-scale-plus", CavMaeSyncConfig.cav_mae())],
)
def test_published_checkpoints__have_the_configuration_of_their_conversion(name, config):
    folder = CARDS / "checkpoints" / name
    stored = CavMaeSyncConfig.from_pretrained(folder)
    ignored = {"transformers_version", "architectures", "auto_map", "dtype", "_name_or_path"}

    assert {k: v for k, v in stored.to_dict().items() if k not in ignored} == {
        k: v for k, v in config.to_dict().items() if k not in ignored
    }
    assert CavMaeSyncProcessor.from_pretrained(folder).feature_extractor.alignment == "reference"


# The command


def test_card__says_what_was_measured_and_how(run, saved, measured, tmp_path):
    details = tmp_path / "details.yaml"
    details.write_text("license: apache-2.0\ndatasets:\n  - owner/data\ntraining: Not at all.\n")
    target = tmp_path / "deep" / "README.md"
    target.parent.mkdir()

    code, out, _ = run(saved, "--results", measured, "--details", details, "--name", "owner/name", "--out", target)

    card = ModelCard.load(target)
    assert code == 0 and str(target) in out and [target] == list(target.parent.iterdir())
    assert card.data.license == "apache-2.0" and card.data.datasets == ["owner/data"]
    record = read_results(measured)
    entry = card.data.to_dict()["model-index"][0]["results"][0]
    assert entry["dataset"]["name"] == "shards (6 of 7 clips)"
    assert entry["metrics"][0]["value"] == round(record["metrics"]["audio_to_video_r1"], 4)
    for words in ("Not at all.", "protocol clips (version 1", "`the command`", record["data"]["fingerprint"][:12]):
        assert words in card.text
    assert 'from_pretrained("owner/name"' in card.text
    code, _, err = run(saved, "--out", target)
    assert code == 1 and "Add --overwrite to replace it." in err and ModelCard.load(target).text == card.text
    assert run(saved, "--results", measured, "--out", target, "--overwrite")[0] == 0


@pytest.mark.parametrize("name", ["example", "owner/name", "hf://owner/name"])
def test_card__of_a_model_by_any_name(run, saved, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, **_: {"owner/name": saved}[repository])

    code, out, err = run(name)

    assert code == 0 and f"# {name.removeprefix('hf://').rpartition('/')[2]}" in out, err


def test_card__is_printed_without_out(run, saved):
    code, out, _ = run(saved)

    assert code == 0 and "# little" in out and "No results are recorded for this checkpoint." in out


def test_card__of_a_classifier_needs_no_weights(run, tmp_path):
    config = tiny_config(num_labels=3)
    model = CavMaeSyncForAudioVisualClassification(config)
    folder = save_for_hub(model, tiny_processor(), tmp_path / "tagger")
    (folder / "model.safetensors").unlink()

    code, out, _ = run(folder)

    assert code == 0 and "pipeline_tag: video-classification" in out and "sorts video clips into 3 classes" in out


def test_card__refuses_results_of_other_weights(run, saved, measured, tmp_path):
    torch.manual_seed(1)
    other = save_for_hub(CavMaeSyncModel(tiny_config()), tiny_processor(), tmp_path / "other")

    code, _, err = run(other, "--results", measured)

    assert code == 1 and "was measured on weights with the checksum" in " ".join(err.split())
    (other / "model.safetensors").unlink()
    with pytest.raises(EvaluationError, match="has none; evaluate this model"):
        card_text(other, [measured])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{tmp}/none",), "none is not a folder. Name one that holds a saved model"),
        (("{saved}", "--results", "{tmp}/none.json"), "none.json: no such file"),
        (("{saved}", "--results", "{saved}/config.json"), "config.json: holds no results"),
        (("{saved}", "--details", "{tmp}/none.yaml"), "none.yaml: no such file"),
        (("{saved}", "--details", "{tmp}/unknown.yaml"), "has the field 'licence'; the fields are"),
        (("{saved}", "--details", "{tmp}/wrong.yaml"), "`tags` is a list"),
        (("{saved}", "--details", "{tmp}/number.yaml"), "`license` is 2; it is a text"),
        (("{saved}", "--out", "{tmp}"), "is a folder; name the file to write"),
        (("{saved}", "--out", "{tmp}/unknown.yaml"), "exists and is no model card, so it is not replaced"),
    ],
)
def test_card__explains_what_it_cannot_do(run, saved, tmp_path, arguments, words):
    (tmp_path / "unknown.yaml").write_text("licence: mine\n")
    (tmp_path / "wrong.yaml").write_text("tags: one\n")
    (tmp_path / "number.yaml").write_text("license: 2\n")
    kept = (tmp_path / "unknown.yaml").read_bytes()

    code, _, err = run(*(argument.format(tmp=tmp_path, saved=saved) for argument in arguments))

    assert code == 1 and words in " ".join(err.split())
    assert (tmp_path / "unknown.yaml").read_bytes() == kept


def test_details__hold_what_a_card_takes(tmp_path):
    path = tmp_path / "details.yaml"
    path.write_text("name: x\nevaluations:\n  - one\nlimits: >-\n  two\n  lines\n")

    details = read_details(path)

    assert details.name == "x" and details.evaluations == ["one"] and details.limits == "two lines"


def test_results__are_plain_json():
    for path in CARDS.glob("results/*/*.json"):
        text = path.read_text()
        assert json.loads(text)["task"] in ("retrieval", "classification", "localization", "sync")
        assert not re.search(r"""[" ']/""", text), f"{path} names a place of one machine"
