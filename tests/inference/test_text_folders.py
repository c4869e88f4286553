# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of models with text: their text model, and for all other uses the audio-visual model inside."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncTextDualEncoderModel, ModelError
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.provenance import weights_fingerprint
from helpers.tiny import tiny_inputs
from helpers.words import save, text_model

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(*text_model(num_clip_layers=1), tmp_path_factory.mktemp("models") / "words")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def test_folder_with_text__gives_both_models(saved, capfd):
    whole, processor = load_model(saved, use="text")
    inside, plain = load_model(saved)

    assert isinstance(whole, CavMaeSyncTextDualEncoderModel) and type(inside) is CavMaeSyncModel
    assert processor.has_tokenizer and not whole.training and not inside.training
    inputs = tiny_inputs()
    assert torch.equal(inside(**inputs).audio_embeds, whole.av_model(**inputs).audio_embeds)
    assert weights_fingerprint(inside) == weights_fingerprint(whole.base_model)
    assert inside.config._name_or_path == whole.base_model.config._name_or_path == str(saved)
    assert load_model(saved, modalities="both")[1].feature_extractor.to_dict() == plain.feature_extractor.to_dict()
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_other_heads__are_not_in_it(saved):
    with pytest.raises(ModelError, match="CavMaeSyncTextDualEncoderModel, without the classification head"):
        load_model(saved, use="classification")


def test_model_without_text__says_what_has_one():
    with pytest.raises(ModelError, match=r"has no text encoder; .*`cavmae-sync text`.*from_av_text_pretrained"):
        load_model("example", use="text")


def config(part=None, **values):
    def damage(folder):
        settings = json.loads((folder / "config.json").read_text())
        (settings if part is None else settings[part]).update(values)
        (folder / "config.json").write_text(json.dumps(settings))

    return damage


def tensors(change):
    def damage(folder):
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


DAMAGE = {
    "a loss that is none": (config(text_loss="l2"), "config.json: `text_loss` is 'l2';"),
    "a width that is none": (config("av_config", hidden_size="32"), "config.json: `hidden_size` is '32';"),
    "no text encoder": (config(text_config=None), "config.json: `av_config` and `text_config` must hold settings"),
    "an encoder's attention of elsewhere": (
        config("text_config", _attn_implementation="o/kernel"),
        "`text_config` is .*; it must be a mapping, with kernels of transformers' own",
    ),
    "an encoder without end": (config("text_config", num_hidden_layers=10**9), "`num_hidden_layers` 10*, and the"),
    "clip layers beyond the weights": (config(num_clip_layers=60), "`num_clip_layers` 60, and the weights have"),
    "another width of text": (config("text_config", intermediate_size=33), "has shape .* config.json asks for"),
    "a tensor that is not there": (tensors(lambda t: t.pop("logit_scale")), "the weights lack logit_scale"),
    "NaN": (tensors(lambda t: t["text_head.projection.bias"].fill_(torch.nan)), "NaN or infinite.*text_head.proj"),
    "half the weights": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000]),
        "model.safetensors .* is truncated or damaged",
    ),
    "no tokenizer": (without_tokenizer, r"holds no tokenizer; save .*CavMaeSyncProcessor\(feature_extractor"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage__is_told_in_a_line(folder, what):
    damage, says = DAMAGE[what]
    damage(folder)
    begin = time.process_time()

    with pytest.raises(ModelError, match=says) as caught:
        load_model(folder, use="text")

    assert time.process_time() - begin < 5
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_what_the_audio_visual_model_does_not_need__may_be_anything(folder):
    without_tokenizer(folder)
    tensors(lambda found: found.pop("text_head.projection.bias"))(folder)

    assert load_model(folder)[0].config.hidden_size == 32


def test_card__is_that_of_a_model_with_text(run, saved):
    code, out, _ = run("card", saved)

    assert code == 0 and "CavMaeSyncTextDualEncoderModel" in out
