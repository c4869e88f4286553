# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of every published family become ours, whole or not at all."""

import functools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cavmae_sync_hf import ModelError
from cavmae_sync_hf.convert import convert_state_dict
from cavmae_sync_hf.model.configuration_cavmae_sync import CavMaeSyncConfig
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncModel, sincos_positions
from helpers.published_tensors import (
    WIDTH,
    apply_layer,
    apply_norm,
    apply_tower,
    assert_close,
    inputs,
    layer,
    model_of,
    module,
    normal,
    published_decoder,
    published_encoder,
    sync_classifier,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_contrastive_heads__run_with_their_plain_norms():
    tensors = published_encoder() | published_decoder()
    for name in ("audio", "visual"):
        tensors |= layer(f"constrative_head_{name}.0", WIDTH) | layer(f"constrative_head_{name}.1", WIDTH)
    model, conversion = model_of(tensors)
    assert conversion.config.num_contrastive_head_layers == 2
    given = inputs()
    with torch.no_grad():
        output = model.model(**given)
    images = {"a": given["input_values"].transpose(2, 3), "v": given["pixel_values_videos"][:, 0]}
    for modality, head, ours in (("a", "audio", output.audio_embeds), ("v", "visual", output.video_embeds)):
        values = apply_layer(tensors, "blocks_u.0", apply_tower(tensors, modality, images[modality]), f"_{modality}")
        for index in range(2):
            values = apply_layer(tensors, f"constrative_head_{head}.{index}", values)
        token = apply_norm(tensors, f"norm_{modality}", values)[:, 0]
        assert_close(ours[:, 0], F.normalize(token, dim=-1))


def apply_sync_head(tensors: dict[str, Tensor], frames: Tensor) -> Tensor:
    values = torch.cat([tensors["cls_cls_token"].expand(len(frames), -1, -1), frames], dim=1)
    for index in range(2):
        values = apply_layer(tensors, f"classifier_layers.{index}", values)
    token = apply_norm(tensors, "classifier_norm", values)[:, 0]
    return F.linear(token, tensors["classifier_head.weight"], tensors["classifier_head.bias"])


def test_sync_classifier__multimodal_by_its_width():
    tensors = sync_classifier(2 * WIDTH)
    model, conversion = model_of(tensors)
    assert conversion.config.modality == "multimodal"
    assert conversion.config.num_labels == 5
    assert conversion.config.num_frames == 16
    given = {name: values.reshape(2, 2, *values.shape[2:]) for name, values in inputs(4).items()}
    audio = apply_tower(tensors, "a", given["input_values"].flatten(0, 1).unsqueeze(1).transpose(2, 3))
    video = apply_tower(tensors, "v", given["pixel_values_videos"].flatten(0, 1))
    expected = apply_sync_head(tensors, torch.cat([audio[:, 0], video[:, 0]], dim=1).unflatten(0, (2, 2)))
    with torch.no_grad():
        assert_close(model(**given).logits, expected)


def test_sync_classifier__one_modality_must_be_named():
    tensors = sync_classifier(WIDTH)
    with pytest.raises(ModelError, match="'modality': 'audio'"):
        model_of(tensors)
    model, conversion = model_of(tensors, modality="audio")
    assert any("blocks_v.0.attn.qkv.weight" in names for names in conversion.report.dropped.values())
    windows = inputs(4)["input_values"].reshape(2, 2, 12, 8)
    audio = apply_tower(tensors, "a", windows.flatten(0, 1).unsqueeze(1).transpose(2, 3))
    audio = apply_norm(tensors, "norm", apply_layer(tensors, "blocks_u.0", audio)).mean(dim=1)
    with torch.no_grad():
        assert_close(model(input_values=windows).logits, apply_sync_head(tensors, audio.unflatten(0, (2, 2))))


def test_sync_classifier__modality_against_its_width_is_refused():
    with pytest.raises(ModelError, match="modality .file: multimodal, override: audio"):
        model_of(sync_classifier(2 * WIDTH), modality="audio")


def test_registers__audio_first():
    tensors = published_encoder() | published_decoder()
    _, conversion = model_of(tensors)
    for modality, rows in (("audio", slice(0, 2)), ("video", slice(2, 4))):
        ours = conversion.state_dict[f"model.{modality}_tower.embeddings.register_tokens"]
        assert torch.equal(ours[0], tensors["register_tokens"][rows])


def test_joint_layers__several_follow_one_another():
    tensors = published_encoder(joint=2) | published_decoder()
    _, conversion = model_of(tensors)
    assert conversion.config.num_joint_layers == 2
    assert any("joint layer" in note for note in conversion.report.notes)


# Published names and shapes, full size.


@functools.cache
def stand_ins(name: str) -> dict[str, Tensor]:
    """Tensors of the published shapes without values, but with true positions."""
    shapes = json.loads((FIXTURES / "checkpoint_keys.json").read_text())[name]
    tensors = {}
    for key, shape in shapes.items():
        tensors[key] = torch.empty(shape, device="meta")
        if "pos_embed_a" in key:
            tensors[key] = sincos_positions((8, shape[1] // 8), shape[2])
        elif "pos_embed_v" in key:
            tensors[key] = sincos_positions((14, 14), shape[2])
    return tensors


@functools.cache
def converted_stand_ins(name: str):
    return convert_state_dict(stand_ins(name))


@pytest.mark.parametrize(
    ("name", "family", "config"),
    [
        ("cav_mae_sync_release", "CAV-MAE Sync pretraining", CavMaeSyncConfig.cav_mae_sync()),
        ("cav_mae", "CAV-MAE pretraining", CavMaeSyncConfig.cav_mae()),
        ("cav_mae_ft_309", "CAV-MAE classifier", CavMaeSyncConfig.cav_mae(num_labels=309)),
    ],
)
def test_published_names__every_one_is_used_or_listed(name, family, config):
    tensors, conversion = stand_ins(name), converted_stand_ins(name)
    report = conversion.report
    assert report.family == family
    assert conversion.config.to_dict() == config.to_dict()
    assert report.new == []
    dropped = [key for names in report.dropped.values() for key in names]
    unused = [key for key in dropped if re.search(r"blocks(_[av])?\.\d+\.norm[12]_[av]\.", key)]
    assert set(dropped) - set(unused) == {key.removeprefix("module.") for key in tensors if "pos_embed" in key}
    fused = sum(".attn.qkv." in key for key in tensors)
    registers = sum(key.endswith("register_tokens") for key in tensors)
    assert len(conversion.state_dict) == len(tensors) - len(dropped) + 2 * fused + registers
    with torch.device("meta"):
        expected = conversion.model_class(conversion.config).state_dict()
    assert {key: value.shape for key, value in conversion.state_dict.items()} == {
        key: value.shape for key, value in expected.items()
    }


def test_report__says_what_was_found_and_dropped():
    report = converted_stand_ins("cav_mae_sync_release").report
    dropped = {key for names in report.dropped.values() for key in names}
    tensors = stand_ins("cav_mae_sync_release").items()
    kept = sum(math.prod(tensor.shape) for key, tensor in tensors if key.removeprefix("module.") not in dropped)
    assert report.num_parameters == kept
    text = str(report)
    for expected in ("CAV-MAE Sync pretraining", "audio_length=416", "num_register_tokens=8", f"{kept:,}"):
        assert expected in text


# Families, prefixes and sizes.


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_prefix__with_and_without(prefix):
    tensors = published_encoder() | published_decoder()
    _, plain = model_of(tensors)
    _, prefixed = model_of({prefix + name: tensor for name, tensor in tensors.items()})
    assert plain.state_dict.keys() == prefixed.state_dict.keys()
    assert all(torch.equal(plain.state_dict[name], prefixed.state_dict[name]) for name in plain.state_dict)


def test_family__plain_cav_mae_takes_its_own_settings():
    _, conversion = model_of(published_encoder(registers=0, cls=False) | published_decoder())
    assert conversion.report.family == "CAV-MAE pretraining"
    assert conversion.config.contrastive_loss_weight == CavMaeSyncConfig.cav_mae().contrastive_loss_weight
    assert conversion.config.num_frames == 1


def test_encoder_only__becomes_the_base_model():
    model, conversion = model_of(published_encoder())
    assert isinstance(model, CavMaeSyncModel)
    assert any("no decoder" in note for note in conversion.report.notes)


def test_decoder__in_part_is_refused():
    tensors = published_encoder() | published_decoder()
    del tensors["decoder_pred_a.weight"], tensors["mask_token"]
    with pytest.raises(ModelError, match="mask_token, decoder_pred_a.weight"):
        model_of(tensors)


def test_one_modality_of_a_pretrained_file__is_the_encoder_alone():
    model, conversion = model_of(published_encoder() | published_decoder(), modality="video")
    assert isinstance(model, CavMaeSyncModel)
    assert model.audio_tower is None
    assert "mask_token" in conversion.report.dropped["the decoder, which this model does not have"]


@pytest.mark.parametrize(
    "name",
    [
        "blocks_a.1.mlp.fc1.bias",
        "norm_v.weight",
        "cls_token_v",
        "blocks_u.0.norm1_a.weight",
        "patch_embed_a.proj.weight",
    ],
)
def test_missing_encoder_name__is_listed(name):
    tensors = published_encoder() | published_decoder()
    del tensors[name]
    with pytest.raises(ModelError, match=re.escape(name)):
        model_of(tensors)


def test_left_over_name__is_listed():
    with pytest.raises(ModelError, match="left over are 1 names: blocks_a.0.attn.gate"):
        model_of(published_encoder() | published_decoder() | {"blocks_a.0.attn.gate": normal(3)})


def test_layer_gap__is_listed():
    tensors = {k: v for k, v in (published_encoder() | published_decoder()).items() if not k.startswith("blocks_v.1.")}
    with pytest.raises(ModelError, match="blocks_v.1.norm1.weight"):
        model_of(tensors)


def test_wrong_shape__is_listed():
    tensors = published_encoder() | published_decoder()
    tensors["blocks_v.0.mlp.fc1.weight"] = normal(3, WIDTH)
    with pytest.raises(ModelError, match=r"mlp.fc1.weight \(file: \(3, 24\), model: \(48, 24\)\)"):
        model_of(tensors)


def test_nan__is_refused():
    tensors = published_encoder() | published_decoder()
    tensors["norm.bias"][0] = torch.nan
    with pytest.raises(ModelError, match="NaN.*norms.fused.bias"):
        model_of(tensors)


def test_unknown_names__are_shown():
    with pytest.raises(ModelError, match="no known family.*conv1.weight"):
        model_of({"conv1.weight": normal(3), "fc.weight": normal(3)})


def test_converted_already__says_so():
    _, conversion = model_of(published_encoder() | published_decoder())
    with pytest.raises(ModelError, match="from_pretrained"):
        model_of(conversion.state_dict)


def test_heads__that_do_not_fit_are_asked_for():
    published = torch.load(FIXTURES / "sync.pth", weights_only=True)
    with pytest.raises(
        ModelError, match=r"`hidden_size` is 32.*12 attention heads.*'num_attention_heads': (\d+)"
    ) as caught:
        convert_state_dict(published)
    suggested = re.search(r"'num_attention_heads': (\d+)", str(caught.value))[1]
    assert 32 % int(suggested) == 0


def test_overrides__contradicting_the_shapes_are_refused():
    with pytest.raises(ModelError, match=r"num_register_tokens \(file: 2, override: 8\)"):
        model_of(published_encoder() | published_decoder(), num_register_tokens=8)


def test_overrides__unknown_are_refused():
    with pytest.raises(ModelError, match=r"num_heads \(did you mean num_attention_heads\?\), zzz\."):
        model_of(published_encoder() | published_decoder(), num_heads=8, zzz=1)
    # A configuration has these too, but they are no settings.
    for name in ("to_dict", "model_type", "num_hidden_layers"):
        with pytest.raises(ModelError, match=f"no setting of CavMaeSyncConfig: {name}"):
            model_of(published_encoder() | published_decoder(), **{name: 1})


def test_overrides__that_make_no_model_are_refused_in_plain_words():
    with pytest.raises(ModelError, match=r"do not make a model: `audio_length` is 13, not a multiple"):
        model_of(published_encoder() | published_decoder(), audio_length=13)


def test_mel_bins__that_do_not_fit_the_positions_are_asked_for():
    tensors = published_encoder() | {"pos_embed_a": torch.zeros(1, 7, WIDTH)}
    with pytest.raises(ModelError, match=r"7 positions.*config_overrides=\{'num_mel_bins': \d+\}"):
        model_of(tensors)


def test_overrides__window_length_is_free_with_fixed_positions():
    _, conversion = model_of(published_encoder() | published_decoder(), audio_length=24, norm_pix_loss=False)
    assert conversion.config.audio_length == 24
    assert conversion.config.norm_pix_loss is False


def test_positions__trained_ones_are_kept():
    tensors = published_encoder() | published_decoder()
    tensors["pos_embed_a"] = tensors["pos_embed_a"] + 0.01
    _, conversion = model_of(tensors)
    assert conversion.config.position_embedding_type == "learned"
    ours = conversion.state_dict["model.audio_tower.embeddings.positions.weight"]
    assert torch.equal(ours, tensors["pos_embed_a"])
    assert "decoder.positions.video.weight" in conversion.state_dict
    with pytest.raises(ModelError, match="position_embedding_type"):
        model_of(tensors, position_embedding_type="sincos")


def test_positions__of_half_precision_are_still_sincos():
    tensors = {name: tensor.half() for name, tensor in (published_encoder() | published_decoder()).items()}
    model, conversion = model_of(tensors)
    assert conversion.config.position_embedding_type == "sincos"
    assert {tensor.dtype for tensor in conversion.state_dict.values()} == {torch.float32}
    assert any("float16" in note for note in conversion.report.notes)


def test_classifier__modality_is_asked_of_the_reader():
    tensors = published_encoder(registers=0, cls=False) | module("mlp_head.0", WIDTH) | module("mlp_head.1", 7, WIDTH)
    _, conversion = model_of(tensors)
    assert conversion.config.modality == "multimodal"
    assert "Pass config_overrides={'modality': 'audio'} to convert" in str(conversion.report)
    model, conversion = model_of(tensors, modality="audio", id2label={i: f"sound {i}" for i in range(7)})
    assert model.model.video_tower is None
    assert conversion.config.id2label[3] == "sound 3"


def test_classifier__of_audioset_is_multi_label():
    tensors = (
        published_encoder(registers=0, cls=False) | module("mlp_head.0", WIDTH) | module("mlp_head.1", 527, WIDTH)
    )
    assert model_of(tensors)[1].config.problem_type == "multi_label_classification"


def test_classifier__with_a_perceptron_over_frames_is_refused():
    tensors = published_encoder(registers=0, cls=False) | module("mlp_head.0", 4 * WIDTH)
    tensors |= module("mlp_head.1", 8, 4 * WIDTH) | module("mlp_head.3", 5, 8)
    with pytest.raises(ModelError, match="perceptron"):
        model_of(tensors)
