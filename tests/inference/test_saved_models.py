"""Folders of which no model can be made are refused in a line that names the file, before anything is built."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cavmae_sync_hf import CavMaeSyncForAudioVisualClassification, CavMaeSyncProcessor, ModelError
from cavmae_sync_hf.loading import load_model
from helpers.tiny import tiny_config

WEIGHTS = "model.safetensors"
Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A classifier, which every command takes."""
    folder = tmp_path_factory.mktemp("models") / "saved"
    config = tiny_config()
    CavMaeSyncForAudioVisualClassification(config).save_pretrained(folder)
    CavMaeSyncProcessor.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def change(file: str, part: str | None = None, **values: Any) -> Damage:
    """Other values in a JSON file, or in a part of it."""

    def damage(folder: Path) -> None:
        settings = json.loads((folder / file).read_text(encoding="utf-8"))
        (settings if part is None else settings[part]).update(values)
        (folder / file).write_text(json.dumps(settings), encoding="utf-8")

    return damage


def replace(file: str, content: bytes) -> Damage:
    return lambda folder: (folder / file).write_bytes(content)


def cut(share: float) -> Damage:
    """Weights that end early, or go on behind their end."""

    def damage(folder: Path) -> None:
        whole = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes((whole + bytes(len(whole)))[: round(len(whole) * share)])

    return damage


def header_length(length: int) -> Damage:
    return lambda folder: (folder / WEIGHTS).write_bytes(
        length.to_bytes(8, "little") + (folder / WEIGHTS).read_bytes()[8:]
    )


def index(weight_map: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")

    return damage


def value(number: float, name: str = "model.audio_tower.layers.1.mlp.fc1.weight") -> Damage:
    """One value of one tensor."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        tensors[name].view(-1)[-1] = number
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def other_tensors(alter: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        alter(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


CONFIG, PROCESSOR = "config.json", "processor_config.json"
DAMAGE: dict[str, tuple[Damage, str]] = {
    "a width beyond use": (change(CONFIG, hidden_size=10**9), "config.json: `hidden_size` is 1000000000; .* to 16384"),
    "layers beyond use": (change(CONFIG, num_modality_layers=10**9), "config.json: `num_modality_layers` is 10*;"),
    "labels beyond use": (change(CONFIG, num_labels=10**9), "config.json: `num_labels` is 1000000000;"),
    "a number as text": (change(CONFIG, image_size="32"), "config.json: `image_size` is '32';"),
    "a number as a list": (change(CONFIG, patch_size=[8]), r"config.json: `patch_size` is \[8\];"),
    "null": (change(CONFIG, layer_norm_eps=None), "config.json: `layer_norm_eps` is None;"),
    "not a number": (change(CONFIG, temperature=float("nan")), "config.json: `temperature` is nan;"),
    "true for a number": (change(CONFIG, num_frames=True), "config.json: `num_frames` is True;"),
    "a long list": (change(CONFIG, hidden_act=["gelu"] * 10**5), r"config.json: `hidden_act` is \['gelu'.*\.\.\."),
    "sizes that do not go together": (change(CONFIG, num_attention_heads=5), "config.json: .*`hidden_size` is 32.*30"),
    "patches that do not fit": (change(CONFIG, patch_size=7), "config.json: .*not a multiple of `patch_size`"),
    "a dtype that is none": (change(CONFIG, dtype="nn"), "config.json: `dtype` is 'nn';"),
    "labels that are no numbers": (change(CONFIG, id2label={"a": "b"}), "config.json: cannot be loaded"),
    "a method's name": (change(CONFIG, audio_grid=5), "config.json: cannot be loaded .*audio_grid"),
    "an unknown type": (change(CONFIG, model_type="vit"), "holds a model of type 'vit'"),
    "no type": (change(CONFIG, model_type=None), "holds a model of type None"),
    "an attention of elsewhere": (
        change(CONFIG, attn_implementation="o/kernel"),
        "`attn_implementation` is 'o/kernel'",
    ),
    "an encoder's attention of elsewhere": (
        change(CONFIG, video_encoder_config={"model_type": "vit", "_attn_implementation": "o/kernel"}),
        "`video_encoder_config` is .*; it must be a mapping, with kernels of transformers' own",
    ),
    "an encoder without end": (
        change(CONFIG, video_encoder_config={"model_type": "vit", "num_hidden_layers": 10**9, "patch_size": 8}),
        "a video encoder of 1000000000 blocks, and the weights have",
    ),
    "no JSON": (replace(CONFIG, b"<html>"), "config.json is no readable JSON"),
    "an empty file": (replace(CONFIG, b""), "config.json is no readable JSON"),
    "no text": (replace(CONFIG, b"\xff\xfe\x00"), "config.json is no readable JSON"),
    "no object": (replace(CONFIG, b"[1]"), "config.json holds no JSON object"),
    "endless brackets": (replace(CONFIG, b'{"a":' + b"[" * 200_000), "config.json is no readable JSON"),
    "more layers than weights": (
        change(CONFIG, num_modality_layers=400),
        "`num_modality_layers` 400, and the weights",
    ),
    "one layer too many": (
        change(CONFIG, num_modality_layers=3),
        "`num_modality_layers` 3, and the weights|lack audio",
    ),
    "one layer too few": (change(CONFIG, num_modality_layers=1), "the weights hold.*audio_tower.layers.1.*not of one"),
    "another width": (change(CONFIG, hidden_size=16384), "shape .*32.* in the weights.*16384"),
    "half the weights": (cut(0.5), r"model.safetensors \([\d,]+ bytes\) is truncated or damaged"),
    "twice the weights": (cut(2), r"model.safetensors \([\d,]+ bytes\) is truncated or damaged"),
    "a header without end": (header_length(2**62), "model.safetensors .* is truncated or damaged.*header"),
    "a header cut short": (header_length(100), "model.safetensors .* is truncated or damaged.*header"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "the folder holds none of model.safetensors"),
    "empty weights": (replace(WEIGHTS, b""), r"model.safetensors is empty \(0 bytes\)"),
    "five bytes": (replace(WEIGHTS, b"12345"), "model.safetensors .* is truncated or damaged"),
    "a pointer": (replace(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS pointer"),
    "a web page": (replace(WEIGHTS, b"<!DOCTYPE html><html>"), "model.safetensors is a web page"),
    "a shard that is not there": (index({"a": "model-1.safetensors"}), "names files that are not there: model-1"),
    "an index without shards": (index({}), "names files that are not there: none at all"),
    "an index that is a list": (index([1]), "names files that are not there: none at all"),
    "a tensor that is not there": (
        other_tensors(lambda t: t.pop("head.classifier.weight")),
        "the weights lack head.c",
    ),
    "NaN": (value(float("nan")), "1 of its tensors hold NaN or infinite.*audio_tower.layers.1.mlp.fc1.weight"),
    "infinity": (
        value(float("-inf"), "head.classifier.bias"),
        "1 of its tensors hold NaN or infinite.*head.classifier.b",
    ),
    "no processor": (lambda folder: (folder / PROCESSOR).unlink(), "holds no processor_config.json"),
    "a processor that is no JSON": (replace(PROCESSOR, b"{"), "processor_config.json is no readable JSON"),
    "half a processor": (
        change(PROCESSOR, feature_extractor=[]),
        r"processor_config.json: `feature_extractor` is \[\]",
    ),
    "another's processor": (change(PROCESSOR, processor_class="BertTokenizer"), "make a BertTokenizer in place of"),
    "another's extractor": (
        change(PROCESSOR, "feature_extractor", feature_extractor_type="WhisperFeatureExtractor"),
        "make a WhisperFeatureExtractor in place of",
    ),
    "no rate": (change(PROCESSOR, "feature_extractor", sampling_rate=0), f"{PROCESSOR}: `sampling_rate` is 0;"),
    "bins below none": (
        change(PROCESSOR, "feature_extractor", num_mel_bins=-1),
        f"{PROCESSOR}: `num_mel_bins` is -1;",
    ),
    "frames beyond use": (
        change(PROCESSOR, "video_processor", num_frames=10**9),
        f"{PROCESSOR}: `num_frames` is 10*;",
    ),
    "two colours": (change(PROCESSOR, "video_processor", image_std=[1, 1]), rf"{PROCESSOR}: `image_std` is \[1, 1\];"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage__is_told_in_a_line_before_anything_is_built(folder, what, capfd):
    damage, says = DAMAGE[what]
    damage(folder)
    begin = time.process_time()
    with pytest.raises(ModelError, match=says) as caught:
        load_model(folder, use="classification")
    assert time.process_time() - begin < 5
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message and len(message) < 600
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_several_files__are_checked_like_one(folder):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, part in shards.items() for name in part}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert load_model(folder)[0].config.hidden_size == 32
    (folder / "b.safetensors").write_bytes((folder / "b.safetensors").read_bytes()[:-9])
    with pytest.raises(ModelError, match="b.safetensors .* truncated"):
        load_model(folder)


def test_processor_files_of_their_own__are_checked_too(folder):
    settings = json.loads((folder / PROCESSOR).read_text())
    for file, part in (
        ("preprocessor_config.json", "feature_extractor"),
        ("video_preprocessor_config.json", "video_processor"),
    ):
        (folder / file).write_text(json.dumps(settings.pop(part)))
    (folder / PROCESSOR).write_text(json.dumps(settings))
    assert load_model(folder)[1].feature_extractor.num_mel_bins == 16
    change("video_preprocessor_config.json", image_std=0)(folder)
    with pytest.raises(ModelError, match="video_preprocessor_config.json: `image_std` is 0;"):
        load_model(folder)
    change("preprocessor_config.json", std="much")(folder)
    with pytest.raises(ModelError, match=r"[/\\]preprocessor_config.json: `std` is 'much';"):
        load_model(folder)


def test_what_is_not_needed__may_be_anything(folder):
    """Of a classifier's head, or of a tower that the configuration leaves out, embedding takes nothing."""
    value(float("nan"), "head.classifier.weight")(folder)
    change(CONFIG, modality="audio")(folder)
    assert load_model(folder)[0].config.modality == "audio"


COMMANDS: dict[str, tuple[str, ...]] = {
    "sync": ("sync", "{clip}", "--model", "{model}"),
    "localize": ("localize", "{clip}", "--model", "{model}", "--out", "{out}"),
    "classify": ("classify", "{clip}", "--model", "{model}"),
    "extract": ("extract", "{clip}", "{out}", "--model", "{model}"),
    "index": ("index", "{clip}", "{out}", "--model", "{model}"),
    "selfcheck": ("selfcheck", "{model}", "{clip}"),
    "export": ("export", "{model}", "{out}"),
    "evaluate": ("evaluate", "retrieval", "{model}", "{clip}"),
}


@pytest.mark.parametrize("damage", ["a width beyond use", "half the weights", "NaN", "no rate"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command__says_it_in_a_line(run, folder, tmp_path, command, damage):
    DAMAGE[damage][0](folder)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"\x00\x00\x00\x18ftypmp42")
    places = {"clip": clip, "model": folder, "out": tmp_path / "out"}
    code, out, err = run(*(argument.format(**places) for argument in COMMANDS[command]))
    lines = [line for line in (out + err).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("loading model ", "running on "))]
    assert code == 1 and len(lines) <= 2 and str(folder) in lines[-1]
    assert not (tmp_path / "out").exists()
