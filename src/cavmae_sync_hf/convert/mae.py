# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How a picture-only MAE becomes the start of an audio-visual one.

The adaptation is the one of the CAV-MAE authors (`adapt_vmae_weights.py`): both towers start from the same layers, the
last ones become the joint layers with one set of norms thrice, the audio projection is the sum of the three colour
channels', and the audio prediction starts from the first rows of the picture's.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..model.errors_cavmae_sync import ModelError
from .report import shorten

# transformers' ViT-MAE has had several names for the same layers; (pattern, MAE name).
_TRANSFORMERS_NAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^(?:vit\.)?embeddings\.cls_token$", "cls_token"),
        (r"^(?:vit\.)?embeddings\.position_embeddings$", "pos_embed"),
        (r"^(?:vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^(?:vit\.)?layernorm\.", "norm."),
        (r"^(?:vit\.)?(?:encoder\.layer|layers)\.", "blocks."),
        (r"^decoder\.(?:decoder_layers|decoder_encoder\.layer)\.", "decoder_blocks."),
        (r"^decoder\.mask_token$", "mask_token"),
        (r"^decoder\.(decoder_(?:pos_embed|embed|norm|pred))", r"\1"),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.attention\.(?:attention\.query|q_proj)\.", ".attn.q."),
        (r"\.attention\.(?:attention\.key|k_proj)\.", ".attn.k."),
        (r"\.attention\.(?:attention\.value|v_proj)\.", ".attn.v."),
        (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
        (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
    )
]


def is_transformers_mae(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of transformers' ViT-MAE, with or without its decoder."""
    return any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in names)


def is_mae(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of the MAE authors' own checkpoints."""
    return "patch_embed.proj.weight" in names and "blocks.0.attn.qkv.weight" in names


def rename_transformers_mae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of transformers' ViT-MAE, old and new, as the MAE authors' names, with q, k and v in one tensor."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _TRANSFORMERS_NAMES:
            name = pattern.sub(replacement, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        missing = [part for part in parts if part not in renamed]
        if missing:
            raise ModelError(f"encoder names are missing: {shorten(missing)}.")
        renamed[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def adapt_mae(tensors: Mapping[str, Tensor], num_joint_layers: int) -> dict[str, Tensor]:
    """An MAE checkpoint under the MAE authors' names, as an initialisation under the CAV-MAE authors' names."""
    left = dict(tensors)
    depth = 1 + max(int(name.split(".")[1]) for name in left if name.startswith("blocks."))
    first_joint = depth - num_joint_layers
    if first_joint < 0:
        raise ModelError(f"`num_joint_layers` is {num_joint_layers}, but the file has {depth} layers.")
    adapted: dict[str, Tensor] = {}
    for name in [name for name in left if name.startswith("blocks.")]:
        tensor, (_, number, rest) = left.pop(name), name.split(".", 2)
        index = int(number)
        if index < first_joint:
            adapted[f"blocks_a.{index}.{rest}"] = adapted[f"blocks_v.{index}.{rest}"] = tensor
            continue
        adapted[f"blocks_u.{index - first_joint}.{rest}"] = tensor
        norm, _, kind = rest.partition(".")
        if norm in ("norm1", "norm2"):
            for modality in "av":
                adapted[f"blocks_u.{index - first_joint}.{norm}_{modality}.{kind}"] = tensor
    for kind in ("weight", "bias"):
        if f"norm.{kind}" in left:
            norm_values = left.pop(f"norm.{kind}")
            adapted |= {f"{norm}.{kind}": norm_values for norm in ("norm", "norm_a", "norm_v")}
        projection = f"patch_embed.proj.{kind}"
        if projection in left:
            values = left.pop(projection)
            adapted[f"patch_embed_v.proj.{kind}"] = values
            adapted[f"patch_embed_a.proj.{kind}"] = values.sum(1, keepdim=True) if kind == "weight" else values
        if f"decoder_pred.{kind}" in left:
            prediction = left.pop(f"decoder_pred.{kind}")
            adapted[f"decoder_pred_v.{kind}"] = prediction
            adapted[f"decoder_pred_a.{kind}"] = prediction[: _audio_patch_values(adapted)]
    if "cls_token" in left:
        adapted["cls_token_a"] = adapted["cls_token_v"] = left.pop("cls_token")
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in left:
            # The first position is the class token's, and zero.
            adapted[f"{name}_v"] = left.pop(name)[:, 1:]
    return adapted | left


def _audio_patch_values(adapted: Mapping[str, Tensor]) -> int | None:
    """Spectrogram values in a patch; `None` while the projection is missing, which is refused later on."""
    projection = adapted.get("patch_embed_a.proj.weight")
    return None if projection is None else projection[0].numel()


__all__ = ["adapt_mae", "is_mae", "is_transformers_mae", "rename_transformers_mae"]
