# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""`cavmae-sync text`: from a model, a text encoder and clips to a model with text; what it learns and refuses."""

import dataclasses
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, BertModel

from cavmae_sync_hf import (
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    CavMaeSyncTextDualEncoderModel,
    TrainingError,
    make_world,
)
from cavmae_sync_hf.evaluation.results import read_results
from cavmae_sync_hf.provenance import folder_digest
from cavmae_sync_hf.training.captions import Caption, CaptionSet, choose_captions, label_captions, open_captioned
from cavmae_sync_hf.training.settings import TextArguments
from cavmae_sync_hf.training.text import run_text
from cavmae_sync_hf.training.text_arguments import TextRunArguments
from cavmae_sync_hf.training.text_data import KnownTexts, TextSet
from cavmae_sync_hf.training.text_trainer import train_text
from helpers.clips import write_clip
from helpers.tiny import tiny_tokenizer
from helpers.tiny_shards import write_shards
from helpers.training_ranks import train_text as train_text_by_ranks
from helpers.two_ranks import run_ranks
from helpers.words import save_parts

COMMAND = ("text",)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A model, a text encoder, and a small world."""
    folder = tmp_path_factory.mktemp("text-training")
    save_parts(folder)
    for split, preset in (("train", "mixed"), ("semantic", "semantic"), ("temporal", "temporal")):
        make_world(
            folder / "world", clips=4, seed=3, split=split, preset=preset, size=48, seconds=4.0, fps=5, workers=1
        )
    return folder


def arguments(desk, output, **settings) -> tuple[TextArguments, TextRunArguments]:
    """Of a run, and of Trainer, told apart by their names."""
    world = desk / "world"
    values = {
        "model": str(desk / "model"),
        "text_model": str(desk / "encoder"),
        "train_data": str(world / "train"),
        "eval_data": {name: str(world / name) for name in ("semantic", "temporal")},
        "cache_dir": str(desk / "moments"),
    }
    run = {"output_dir": str(output), "max_steps": 3, "per_device_train_batch_size": 4, "use_cpu": True}
    run |= {"disable_tqdm": True, "log_level": "error"}
    own = {item.name for item in dataclasses.fields(TextArguments)}
    values |= {name: value for name, value in settings.items() if name in own}
    run |= {name: value for name, value in settings.items() if name not in own}
    return TextArguments(**values), TextRunArguments(**run)


def test_run__gives_a_model_with_text(desk, tmp_path):
    status, record = run_text(*arguments(desk, tmp_path / "out"))

    model, processor = (auto.from_pretrained(tmp_path / "out" / "model") for auto in (AutoModel, AutoProcessor))
    before = CavMaeSyncModel.from_pretrained(desk / "model")
    after = model.av_model.state_dict()
    assert all(torch.equal(after[name], values) for name, values in before.state_dict().items())
    assert (
        status == 0
        and processor.has_tokenizer
        and json.loads((tmp_path / "out" / "metrics.json").read_text()) == record
    )
    semantic, temporal = record["metrics"]["semantic"], record["metrics"]["temporal"]
    for wording in ("seen", "unseen"):
        names = {"zero_shot_map", "zero_shot_top1", "moment_auroc_audio", "moment_auroc_video", "clip_to_text_r1"}
        names |= {f"text_to_clip_r1_{target}" for target in ("audio", "video", "audio_video")}
        assert names <= set(semantic[wording]) and "twins" in temporal[wording]
        assert all(0 <= semantic[wording][name] <= 100 for name in names)
    assert semantic["chance"] == {"recall": 25.0, "twins": 50, "auroc": 0.5}
    # The same as results files of these weights, and in the card.
    results = read_results(tmp_path / "out" / "results-semantic.json")
    assert results["metrics"]["unseen_zero_shot_map"] == pytest.approx(semantic["unseen"]["zero_shot_map"])
    assert results["checkpoint"]["sha256"] == folder_digest(tmp_path / "out" / "model")
    card = ModelCard.load(tmp_path / "out" / "model" / "README.md")
    shown = {(entry.metric_type, entry.dataset_type): entry.metric_value for entry in card.data.eval_results}
    recall = "unseen_text_to_clip_r1_audio_video"
    assert shown[recall, "semantic"] == pytest.approx(semantic["unseen"]["text_to_clip_r1_audio_video"], abs=1e-3)
    assert shown["chance_recall", "semantic"] == 25 and ("unseen_twins", "temporal") in shown
    assert "for 3 steps on 4 clips" in card.text and "text=[" in card.text


def test_command__prints_metrics_and_replaces_nothing(desk, tmp_path, run):
    words = ["--model", desk / "model", "--text_model", desk / "encoder", "--output_dir", tmp_path / "out"]
    words += ["--train_data", desk / "world" / "train", "--cache_dir", desk / "moments", "--use_cpu"]
    words += ["--eval_data", json.dumps({"semantic": str(desk / "world" / "semantic")}), "--max_steps", "2"]

    code, out, err = run(*words)
    again, _, refused = run(*words)

    assert code == 0, err
    assert "semantic, unseen wordings: " in out and "text_to_clip_r1_audio_video" in out
    assert again == 1 and "holds an earlier run" in refused and "overwrite" in refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--text_model", "x"], "nothing to join; name a model by --model"),
        (["--model", "example"], "nothing to join; name a model by --text_model"),
        (["--model", "example", "--text_model", "x", "--train_data", "nowhere"], "nowhere"),
        (["--model", "example", "--text_model", "x", "--max_stesp", "3"], "did you mean --max_steps"),
    ],
    ids=["no model", "no text model", "no data", "a flag"],
)
def test_command__refuses_before_it_loads(run, words, says):
    code, _, err = run(*words)
    assert code != 0 and says in err


WORDS = ("a bell", "a dog", "a drum")  # of which the tiny tokenizer knows every one


def synthetic(count: int = 24, seed: int = 0) -> tuple[TextSet, list[int], list[int]]:
    """Clips whose audio is one of three vectors at one of four moments; also which of them, and where."""
    rng = np.random.default_rng(seed)
    vectors = torch.nn.functional.normalize(torch.randn(4, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    named, places = rng.integers(3, size=count).tolist(), rng.integers(4, size=count).tolist()
    audio = vectors[3].repeat(count, 4, 1)
    audio[torch.arange(count), torch.tensor(places)] = vectors[torch.tensor(named)]
    said = [
        [Caption(WORDS[name], WORDS[name], spans=((float(place), place + 1.0),))]
        for name, place in zip(named, places, strict=True)
    ]
    present = torch.ones(count, 4, dtype=torch.bool)
    clips = TextSet(
        moments={"audio": audio, "video": audio.clone()},
        present={"audio": present, "video": present},
        times=np.tile(np.arange(4) + 0.5, (count, 1)),
        captions=CaptionSet(said, [[row[0].key] for row in said]),
        records=None,
    )
    return clips, named, places


@pytest.mark.parametrize("shuffled", [False, True], ids=["true texts", "shuffled texts"])
def test_training__finds_what_is_said_and_the_control_does_not(desk, tmp_path, shuffled):
    torch.manual_seed(0)
    model = CavMaeSyncTextDualEncoderModel.from_av_text_pretrained(desk / "model", desk / "encoder")
    texts = KnownTexts(model, tiny_tokenizer())
    clips, named, places = synthetic()
    settings = arguments(
        desk, tmp_path, max_steps=60, per_device_train_batch_size=16, learning_rate=1e-2, shuffled_texts=shuffled
    )

    processor = CavMaeSyncProcessor.from_pretrained(desk / "model")
    trainer = train_text(model, texts, clips, *settings, processor=processor)

    with torch.no_grad():
        logits = model.moment_logits("audio", texts.encode(WORDS), model.encode_clips(clips.moments, {}))
    found = [int(logits[name, clip].argmax()) for clip, name in enumerate(named)]
    right = np.mean(np.array(found) == np.array(places))
    assert (right > 0.9) == (not shuffled), right
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 10 and all(np.isfinite(losses))


def test_labels__become_sentences():
    found = label_captions([[0, 2], []], ["rain", "bell", "dog"], ["{}", "a {} is heard"])
    assert [caption.text for caption in found.captions[0]] == ["rain", "a rain is heard", "dog", "a dog is heard"]
    assert found.captions[1] == [] and found.keys == [["label:0", "label:2"], []]
    with pytest.raises(TrainingError, match="has no place for the label"):
        label_captions([[0]], ["rain"], ["rain"])


def test_resumed__is_the_run_that_was_not_interrupted(desk, tmp_path):
    settings = {"max_steps": 4, "save_steps": 2, "save_total_limit": 3}
    _, whole = run_text(*arguments(desk, tmp_path / "whole", **settings))
    # As a run leaves it that is killed after its first checkpoint, in the middle of the next.
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "killed" / "checkpoint-2")
    (tmp_path / "killed" / "checkpoint-4").mkdir()
    kept = {path: path.stat().st_mtime_ns for path in (desk / "moments").rglob("part-*")}

    _, resumed = run_text(*arguments(desk, tmp_path / "killed", **settings, resume_from_checkpoint="auto"))

    assert kept and kept == {path: path.stat().st_mtime_ns for path in (desk / "moments").rglob("part-*")}
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(first[name], values) for name, values in second.items())
    assert resumed["metrics"] == whole["metrics"] and resumed["loss"] == whole["loss"]


@pytest.mark.parametrize(
    "trains", [{}, {"towers": "frozen", "train_text_model": True}], ids=["towers", "text encoder"]
)
def test_joint__trains_the_model_and_keeps_its_contrast(desk, tmp_path, trains):
    status, record = run_text(
        *arguments(desk, tmp_path / "out", joint=True, max_steps=3, logging_steps=1, frames_per_clip=2, **trains)
    )

    before = CavMaeSyncModel.from_pretrained(desk / "model").state_dict()
    model = AutoModel.from_pretrained(tmp_path / "out" / "model")
    after = model.av_model.state_dict()
    changed = {name for name, values in before.items() if not torch.equal(after[name], values)}
    towers = {name for name in before if name.startswith(("audio_tower.", "video_tower."))}
    assert (towers <= changed) if not trains else not (towers & changed)
    assert any("joint_layers" in name for name in changed)
    encoder = BertModel.from_pretrained(desk / "encoder").state_dict()
    word = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(model.text_model.state_dict()[word], encoder[word]) == (not trains)
    log = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    assert status == 0 and all(entry["audio_video_loss"] > 0 for entry in log if "loss" in entry)
    assert "text_to_clip_r1_audio_video" in record["metrics"]["semantic"]["seen"]


def test_joint__on_two_processes_is_one_with_the_joined_batch(desk, tmp_path):
    settings = {"joint": True, "frames_per_clip": 2, "eval_data": {}, "text_config": {"text_dropout": 0.0}}
    own, _ = arguments(desk, tmp_path, **settings)
    _, alone = run_text(*arguments(desk, tmp_path / "one", **settings))
    run = {"output_dir": str(tmp_path / "two"), "max_steps": 3, "per_device_train_batch_size": 2, "use_cpu": True}

    ranks = run_ranks(train_text_by_ranks, tmp_path, dataclasses.asdict(own), run | {"disable_tqdm": True})

    assert [rank["status"] for rank in ranks] == [0, 0]
    assert ranks[0]["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["shards", "data set"])
def test_labels__of_shards_and_data_sets_train_by_templates(desk, tmp_path, kind):
    names = ["a dog", "rain", "a bell"]
    videos = [write_clip(tmp_path / f"{number}.mp4", seconds=1.0) for number in range(3)]
    if kind == "data set":
        labels = datasets.Features({"video": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        rows = {"video": [str(video) for video in videos], "label": [0, 1, 2]}
        source = datasets.Dataset.from_dict(rows, features=labels)
    else:
        source = write_shards(tmp_path / "shards", [3])
    (tmp_path / "names.txt").write_text("\n".join(names))
    dataset = open_captioned(source, CavMaeSyncProcessor.from_pretrained(desk / "model"))

    found = choose_captions(
        dataset, class_names=None if kind == "data set" else tmp_path / "names.txt", templates=["hear {}", "{}"]
    )

    assert [[caption.text for caption in said] for said in found.captions] == [[f"hear {one}", one] for one in names]
