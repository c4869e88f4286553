# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Files: what is no checkpoint is refused and leaves nothing; what is one becomes a folder that loads."""

import argparse
import hashlib
import json
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from cavmae_sync_hf import ModelError
from cavmae_sync_hf.convert import convert_checkpoint, convert_state_dict
from cavmae_sync_hf.convert.reading import read_checkpoint, strip_prefixes
from cavmae_sync_hf.model.auto_map_cavmae_sync import code_files
from cavmae_sync_hf.model.feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from helpers.published_tensors import assert_close

FIXTURES = Path(__file__).parents[1] / "fixtures"
HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 2}


@pytest.fixture
def fixture_of(tmp_path):
    """`sync.pth`'s tensors, to be saved in some way."""
    return torch.load(FIXTURES / "sync.pth", weights_only=True)


def refusal(src: Path, tmp_path: Path, **overrides) -> str:
    """The message that refuses a file; it names the file, and nothing is left behind."""
    dst = tmp_path / "out"
    with pytest.raises(ModelError) as caught:
        convert_checkpoint(src, dst, HEADS | overrides)
    assert str(src) in str(caught.value)
    assert not dst.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    return str(caught.value)


@pytest.mark.parametrize(
    ("contents", "match"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>quota exceeded</html>", "web page"),
        (b"version 1\ngit-lfs pointer\n", "git lfs pull"),
        (b"just a text file", "neither a torch checkpoint nor safetensors"),
        (b"PK\x03\x04 and then nothing", "truncated or damaged"),
        (b"\x80\x02}q\x00(X", "truncated or damaged"),
    ],
)
def test_file__that_is_no_checkpoint(tmp_path, contents, match):
    src = tmp_path / "audio_model.25.pth"
    src.write_bytes(contents)
    assert re.search(match, refusal(src, tmp_path))


def test_file__missing(tmp_path):
    assert re.search("no such file", refusal(tmp_path / "none.pth", tmp_path))


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_file__truncated(tmp_path, share):
    whole = (FIXTURES / "sync.pth").read_bytes()
    src = tmp_path / "cut.pth"
    src.write_bytes(whole[: int(share * len(whole))])
    assert re.search(r"cut.pth \([\d,]+ bytes\) is truncated or damaged", refusal(src, tmp_path))


def test_file__truncated_safetensors(tmp_path, fixture_of):
    src = tmp_path / "cut.safetensors"
    save_file(fixture_of, src)
    src.write_bytes(src.read_bytes()[:-100])
    assert re.search("truncated or damaged safetensors", refusal(src, tmp_path))


def test_file__that_would_run_code(tmp_path):
    src = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(2, 2), src)
    assert re.search("could run code", refusal(src, tmp_path))


def test_file__optimizer_state(tmp_path):
    src = tmp_path / "best_optim_state.pth"
    torch.save(torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))]).state_dict(), src)
    assert re.search("state of an optimizer", refusal(src, tmp_path))


@pytest.mark.parametrize(("contents", "match"), [([1, 2], "holds a list"), ({"epoch": 3}, "it holds: epoch")])
def test_file__without_tensors(tmp_path, contents, match):
    src = tmp_path / "other.pth"
    torch.save(contents, src)
    assert re.search(match, refusal(src, tmp_path))


def test_folder__without_weights(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    (src / "notes.txt").write_text("no weights here")
    assert re.search("it holds: notes.txt", refusal(src, tmp_path))


def test_destination__in_use_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("mine")
    with pytest.raises(ModelError, match="already exists"):
        convert_checkpoint(FIXTURES / "sync.pth", tmp_path / "out", HEADS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept.txt"]


def test_failure__leaves_nothing(tmp_path, fixture_of):
    fixture_of.pop("module.norm_a.weight")
    src = tmp_path / "incomplete.pth"
    torch.save(fixture_of, src)
    assert re.search("norm_a.weight", refusal(src, tmp_path))


WRAPPINGS = {
    "bare": lambda tensors: tensors,
    "ordered": OrderedDict,
    "model": lambda tensors: {"model": tensors, "epoch": 25, "args": argparse.Namespace(lr=2e-4)},
    "state_dict": lambda tensors: {"state_dict": OrderedDict(tensors), "optimizer": {"param_groups": []}},
    "without prefix": lambda tensors: {name.removeprefix("module."): tensor for name, tensor in tensors.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("container", ["zip", "pickle", "safetensors"])
def test_file__in_every_wrapping_and_container(tmp_path, fixture_of, wrapping, container):
    src, contents = tmp_path / "weights", WRAPPINGS[wrapping](fixture_of)
    if container == "safetensors":
        save_file(next((value for value in contents.values() if isinstance(value, dict)), contents), src)
    else:
        torch.save(contents, src, _use_new_zipfile_serialization=container == "zip")
    tensors = strip_prefixes(read_checkpoint(src).tensors)
    assert {f"module.{name}" for name in tensors} == set(fixture_of)
    assert all(torch.equal(tensor, fixture_of[f"module.{name}"]) for name, tensor in tensors.items())


def test_folder__in_shards(tmp_path, fixture_of):
    names = list(fixture_of)
    shards = {"model-1.safetensors": names[:100], "model-2.safetensors": names[100:]}
    for file, held in shards.items():
        save_file({name: fixture_of[name] for name in held}, tmp_path / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = read_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == set(names)
    assert set(checkpoint.sha256) == set(shards)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match="names files that are not there: model-2.safetensors"):
        read_checkpoint(tmp_path)


@torch.no_grad()
def test_round_trip__published_figures(tmp_path):
    src, dst = FIXTURES / "sync.pth", tmp_path / "out"
    dst.mkdir()  # an empty folder is fine
    report = convert_checkpoint(src, dst, HEADS)
    assert report.sha256 == {src.name: hashlib.sha256(src.read_bytes()).hexdigest()}
    assert report.sha256[src.name] in str(report)
    names = {path.name for path in dst.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "README.md"} <= names
    assert {file.name for file in code_files()} <= names
    assert (dst / "model.safetensors").stat().st_mode == (dst / "config.json").stat().st_mode
    model = CavMaeSyncForPreTraining.from_pretrained(dst).eval()
    published = load_file(FIXTURES / "sync_inputs.safetensors") | load_file(FIXTURES / "sync_outputs.safetensors")
    output = model(
        pixel_values_videos=published["pixel_values"].unsqueeze(1),
        input_values=published["input_values"].unsqueeze(1),
        video_noise=published["noise_visual"].unsqueeze(1),
        audio_noise=published["noise_audio"].unsqueeze(1),
    )
    assert_close(output.loss.reshape(1), published["loss"])
    assert_close(output.audio_patch_embeds[:, 0], published["masked_audio_patch_tokens"])


@pytest.mark.parametrize("case", ["sync", "cavmae", "cavmae_ft"])
def test_round_trip__weights_are_those_of_the_conversion(tmp_path, case):
    convert_checkpoint(FIXTURES / f"{case}.pth", tmp_path / "out", HEADS)
    conversion = convert_state_dict(torch.load(FIXTURES / f"{case}.pth", weights_only=True), HEADS)
    state = conversion.model_class.from_pretrained(tmp_path / "out").state_dict()
    assert state.keys() == conversion.state_dict.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in conversion.state_dict.items())


def test_round_trip__processor_keeps_the_published_alignment(tmp_path):
    convert_checkpoint(FIXTURES / "sync.pth", tmp_path / "out", HEADS)
    feature_extractor = CavMaeSyncFeatureExtractor.from_pretrained(tmp_path / "out")
    assert feature_extractor.alignment == "reference"
    assert feature_extractor.audio_length == 96


@pytest.mark.parametrize(
    ("case", "auto_class"),
    [("sync", "AutoModel"), ("cavmae_ft", "AutoModelForVideoClassification")],
)
def test_model_card__tells_origin_and_use(tmp_path, case, auto_class):
    src = FIXTURES / f"{case}.pth"
    report = convert_checkpoint(src, tmp_path / "my-model", HEADS)
    card = ModelCard.load(tmp_path / "my-model" / "README.md")
    assert card.data.library_name == "transformers"
    assert f'{auto_class}.from_pretrained("my-model"' in card.text
    assert report.family in card.text and report.sha256[src.name] in card.text
    assert str(tmp_path) not in card.text  # nobody else's business
    assert "No licence is stated for the weights" in card.text


def test_conversion__prints_nothing(tmp_path, capfd):
    convert_checkpoint(FIXTURES / "sync.pth", tmp_path / "out", HEADS)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
