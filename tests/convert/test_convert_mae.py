# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""An image MAE, in every naming, becomes the start of an audio-visual model."""

import re

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from cavmae_sync_hf import ModelError
from cavmae_sync_hf.convert import convert_checkpoint, convert_state_dict
from cavmae_sync_hf.model.configuration_cavmae_sync import CavMaeSyncConfig
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForPreTraining, CavMaeSyncModel, sincos_positions
from helpers.published_tensors import (
    HEADS,
    PATCH,
    SMALL,
    WIDTH,
    assert_close,
    inputs,
    model_of,
    normal,
    published_decoder,
    published_encoder,
)


@pytest.fixture(scope="module")
def vit_mae() -> ViTMAEForPreTraining:
    torch.manual_seed(0)
    config = ViTMAEConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=48,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        image_size=16,
        patch_size=PATCH,
        mask_ratio=0.0,
    )
    model = ViTMAEForPreTraining(config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    # Trained checkpoints hold the fixed positions, a fresh model need not; the class token's is zero.
    for positions, width in ((model.vit.embeddings.position_embeddings, WIDTH), (model.decoder.decoder_pos_embed, 8)):
        positions.data = F.pad(sincos_positions((4, 4), width), (0, 0, 1, 0))
    return model


def old_names(tensors: dict[str, Tensor], decoder: str) -> dict[str, Tensor]:
    """transformers' names before version 5: `decoder` is how the decoder's layers were called."""
    renamed = {}
    for name, tensor in tensors.items():
        name = name.replace("vit.layers.", "vit.encoder.layer.").replace("decoder.decoder_layers.", decoder)
        name = re.sub(r"attention\.o_proj", "attention.output.dense", name)
        for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            name = name.replace(f"attention.{new}", f"attention.attention.{old}")
        name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        renamed[name] = tensor
    return renamed


def mae_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The MAE authors' names."""
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in (
            ("vit.embeddings.cls_token", "cls_token"),
            ("vit.embeddings.position_embeddings", "pos_embed"),
            ("vit.embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("vit.layernorm", "norm"),
            ("vit.layers", "blocks"),
            ("decoder.decoder_layers", "decoder_blocks"),
            ("decoder.", ""),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.o_proj", "attn.proj"),
        ):
            name = name.replace(ours, theirs)
        if "attention.q_proj" in name:
            name_in_file = next(key for key in tensors if tensors[key] is tensor)
            parts = [tensors[name_in_file.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            renamed[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
        elif "attention." not in name:
            renamed[name] = tensor
    return renamed


MAE_NAMINGS = {
    "transformers 5": lambda tensors: tensors,
    "transformers 4": lambda tensors: old_names(tensors, "decoder.decoder_layers."),
    "saved by transformers 5": lambda tensors: old_names(tensors, "decoder.decoder_encoder.layer."),
    "MAE authors": mae_names,
}


@pytest.mark.parametrize("naming", MAE_NAMINGS)
@torch.no_grad()
def test_vit_mae__image_path_is_its_encoder(vit_mae, naming):
    tensors = MAE_NAMINGS[naming](vit_mae.state_dict())
    # Its own epsilon and no registers, so that nothing but the modality embedding differs.
    model, conversion = model_of(tensors, num_register_tokens=0, layer_norm_eps=1e-12, audio_length=12)
    assert isinstance(model, CavMaeSyncForPreTraining)
    assert conversion.report.family == "ImageNet MAE initialisation"
    assert (conversion.config.num_modality_layers, conversion.config.num_joint_layers) == (2, 1)
    embeddings = model.model.video_tower.embeddings
    embeddings.modality_embedding.zero_()
    frames = inputs()["pixel_values_videos"]
    noise = torch.arange(16.0).expand(4, -1)  # keeps every patch in its place
    expected = vit_mae.vit(frames[:, 0], noise=noise).last_hidden_state
    output = model.model(pixel_values_videos=frames)
    assert_close(output.video_patch_embeds[:, 0], expected[:, 1:])
    assert_close(output.video_embeds[:, 0], F.normalize(expected[:, 0], dim=-1))


def test_vit_mae__audio_tower_starts_from_the_images(vit_mae):
    _, conversion = model_of(vit_mae.state_dict())
    state, tensors = conversion.state_dict, vit_mae.state_dict()
    projection = tensors["vit.embeddings.patch_embeddings.projection.weight"]
    assert torch.equal(state["model.audio_tower.embeddings.projection.weight"], projection.sum(1, keepdim=True))
    assert torch.equal(
        state["model.audio_tower.layers.1.attention.k_proj.weight"], tensors["vit.layers.1.attention.k_proj.weight"]
    )
    for norm in ("audio", "video", "fused"):
        assert torch.equal(
            state[f"model.joint_layers.0.layernorm_after.{norm}.bias"], tensors["vit.layers.2.layernorm_after.bias"]
        )
    assert torch.equal(state["decoder.predictions.audio.weight"], tensors["decoder.decoder_pred.weight"][: PATCH**2])
    assert sorted(conversion.report.new) == sorted(
        [f"model.{modality}_tower.embeddings.{token}" for modality in ("audio", "video")
         for token in ("modality_embedding", "register_tokens")]
        + [f"decoder.modality_embeddings.{modality}" for modality in ("audio", "video")]
    )  # fmt: skip


def test_vit_mae__is_the_same_each_time(vit_mae):
    first, second = (model_of(vit_mae.state_dict())[1].state_dict for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    name = "model.audio_tower.embeddings.register_tokens"
    assert first[name].std() == pytest.approx(0.02, rel=0.2)  # 192 draws


def test_vit_mae__as_plain_cav_mae_and_split_elsewhere(vit_mae):
    overrides = {"use_global_tokens": False, "num_register_tokens": 0, "audio_length": 1024, "num_joint_layers": 2}
    model, conversion = model_of(vit_mae.state_dict(), **overrides)
    assert (conversion.config.num_modality_layers, conversion.config.num_joint_layers) == (1, 2)
    assert conversion.config.audio_length == 1024
    assert model.model.video_tower.embeddings.global_token is None


def test_vit_mae__without_decoder_is_the_base_model(vit_mae):
    encoder = ViTMAEModel(vit_mae.config)
    encoder.load_state_dict(vit_mae.vit.state_dict())
    _, conversion = model_of(encoder.state_dict())
    assert conversion.model_class is CavMaeSyncModel


def test_vit_mae__with_trained_positions_is_refused(vit_mae):
    tensors = vit_mae.state_dict() | {"vit.embeddings.position_embeddings": normal(1, 17, WIDTH)}
    with pytest.raises(ModelError, match="sine-cosine"):
        model_of(tensors)


def test_vit_mae__towers_are_not_tied(vit_mae):
    _, conversion = model_of(vit_mae.state_dict())
    pointers = [tensor.data_ptr() for tensor in conversion.state_dict.values()]
    assert len(set(pointers)) == len(pointers)


def test_vit_mae__missing_key_projection_is_refused(vit_mae):
    tensors = dict(vit_mae.state_dict())
    del tensors["vit.layers.1.attention.k_proj.weight"]
    with pytest.raises(ModelError, match="blocks.1.attn.k.weight"):
        model_of(tensors)


def test_adapted_initialisation__is_told_by_equal_towers():
    tensors = published_encoder(registers=0, cls=False) | published_decoder()
    tensors |= {name.replace("blocks_a", "blocks_v"): t for name, t in tensors.items() if name.startswith("blocks_a")}
    _, conversion = model_of(tensors)
    assert conversion.report.family == "ImageNet MAE initialisation"
    assert conversion.config.audio_length == CavMaeSyncConfig().audio_length
    assert conversion.config.num_register_tokens == CavMaeSyncConfig().num_register_tokens
    assert "model.audio_tower.embeddings.global_token" in conversion.report.new


def test_adapted_initialisation__class_tokens_become_global_tokens():
    tensors = published_encoder(registers=0) | published_decoder() | {"cls_token_av": normal(1, 1, WIDTH)}
    _, conversion = model_of(tensors)
    assert torch.equal(conversion.state_dict["model.video_tower.embeddings.global_token"], tensors["cls_token_v"])
    assert ["cls_token_av"] in conversion.report.dropped.values()


def test_round_trip__transformers_folder_names_its_heads(tmp_path, vit_mae):
    vit_mae.save_pretrained(tmp_path / "mae")
    report = convert_checkpoint(tmp_path / "mae", tmp_path / "out", {"num_mel_bins": 8})
    assert (report.config.num_attention_heads, report.config.decoder_num_attention_heads) == (HEADS, 2)
    assert list(report.sha256) == ["model.safetensors"]
    state = CavMaeSyncForPreTraining.from_pretrained(tmp_path / "out").state_dict()
    expected = convert_state_dict(vit_mae.state_dict(), SMALL).state_dict
    assert all(torch.equal(state[name], expected[name]) for name in expected)
