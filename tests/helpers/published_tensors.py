# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Small checkpoints under the names that the authors publish, and the published arithmetic on them."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cavmae_sync_hf.convert import Conversion, convert_state_dict
from cavmae_sync_hf.model.modeling_cavmae_sync import sincos_positions

# Figures go through float32 in two orders of summation; relative to the largest value.
TOLERANCE = 1e-5
WIDTH, PATCH, HEADS = 24, 4, 3
SMALL = {"num_attention_heads": HEADS, "decoder_num_attention_heads": 2, "num_mel_bins": 8}


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.3


def module(name: str, out: int, *rest: int) -> dict[str, Tensor]:
    return {f"{name}.weight": normal(out, *rest) + (not rest), f"{name}.bias": normal(out)}


def layer(name: str, width: int, norms: tuple[str, ...] = ("", "_a", "_v")) -> dict[str, Tensor]:
    tensors = module(f"{name}.attn.qkv", 3 * width, width) | module(f"{name}.attn.proj", width, width)
    tensors |= module(f"{name}.mlp.fc1", 2 * width, width) | module(f"{name}.mlp.fc2", width, 2 * width)
    for norm in norms:
        tensors |= module(f"{name}.norm1{norm}", width) | module(f"{name}.norm2{norm}", width)
    return tensors


def published_encoder(registers: int = 2, cls: bool = True, joint: int = 1) -> dict[str, Tensor]:
    """A small encoder under the authors' names: 8 mel bins, 12 time steps, 16 x 16 pixels in patches of 4."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for modality, channels, grid in (("a", 1, (2, 3)), ("v", 3, (4, 4))):
        tensors |= module(f"patch_embed_{modality}.proj", WIDTH, channels, PATCH, PATCH)
        tensors |= {f"modality_{modality}": normal(1, 1, WIDTH)}
        tensors |= {f"pos_embed_{modality}": sincos_positions(grid, WIDTH)}
        if cls:
            tensors |= {f"cls_token_{modality}": normal(1, 1, WIDTH)}
        for index in range(2):
            tensors |= layer(f"blocks_{modality}.{index}", WIDTH)
        tensors |= module(f"norm_{modality}", WIDTH)
    for index in range(joint):
        tensors |= layer(f"blocks_u.{index}", WIDTH)
    tensors |= module("norm", WIDTH)
    if registers:
        tensors["register_tokens"] = normal(2 * registers, WIDTH)
    return tensors


def sync_classifier(width: int) -> dict[str, Tensor]:
    """An encoder with a frame-attention head; twice as wide as the encoder for both modalities."""
    tensors = published_encoder() | {"cls_cls_token": normal(1, 1, width)}
    for index in range(2):
        tensors |= layer(f"classifier_layers.{index}", width)
    return tensors | module("classifier_norm", width) | module("classifier_head", 5, width)


def published_decoder() -> dict[str, Tensor]:
    tensors = module("decoder_embed", 8, WIDTH) | {"mask_token": normal(1, 1, 8)}
    for modality, values, grid in (("a", PATCH**2, (2, 3)), ("v", 3 * PATCH**2, (4, 4))):
        tensors |= {f"decoder_modality_{modality}": normal(1, 1, 8)}
        tensors |= {f"decoder_pos_embed_{modality}": sincos_positions(grid, 8)}
        tensors |= module(f"decoder_pred_{modality}", values, 8)
    return tensors | layer("decoder_blocks.0", 8) | module("decoder_norm", 8)


def model_of(tensors: dict[str, Tensor], **overrides: Any) -> tuple[Any, Conversion]:
    conversion = convert_state_dict(tensors, SMALL | overrides)
    model = conversion.model_class(conversion.config).eval()
    model.load_state_dict(conversion.state_dict)
    return model, conversion


def inputs(samples: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_values": torch.randn(samples, 1, 12, 8, generator=generator),
        "pixel_values_videos": torch.randn(samples, 1, 3, 16, 16, generator=generator),
    }


def assert_close(ours: Tensor, expected: Tensor) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < TOLERANCE * expected.abs().max()


# The published arithmetic, straight from the published tensors, for what the reference values do not cover.


def apply_norm(tensors: dict[str, Tensor], name: str, values: Tensor) -> Tensor:
    return F.layer_norm(values, values.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def apply_layer(tensors: dict[str, Tensor], name: str, values: Tensor, norms: str = "") -> Tensor:
    def linear(part: str, given: Tensor) -> Tensor:
        return F.linear(given, tensors[f"{name}.{part}.weight"], tensors[f"{name}.{part}.bias"])

    qkv = linear("attn.qkv", apply_norm(tensors, f"{name}.norm1{norms}", values)).chunk(3, dim=-1)
    query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv)
    weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(dim=-1)
    values = values + linear("attn.proj", (weights @ value).transpose(1, 2).flatten(2))
    hidden = F.gelu(linear("mlp.fc1", apply_norm(tensors, f"{name}.norm2{norms}", values)))
    return values + linear("mlp.fc2", hidden)


def apply_tower(tensors: dict[str, Tensor], modality: str, images: Tensor, registers: int = 2) -> Tensor:
    name = f"patch_embed_{modality}.proj"
    patches = F.conv2d(images, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride=PATCH)
    values = patches.flatten(2).transpose(1, 2) + tensors[f"pos_embed_{modality}"] + tensors[f"modality_{modality}"]
    own = tensors["register_tokens"].chunk(2)["av".index(modality)]
    parts = (tensors[f"cls_token_{modality}"], values, own.unsqueeze(0))
    values = torch.cat([part.expand(len(images), -1, -1) for part in parts], dim=1)
    for index in range(2):
        values = apply_layer(tensors, f"blocks_{modality}.{index}", values)
    return values[:, :-registers]
