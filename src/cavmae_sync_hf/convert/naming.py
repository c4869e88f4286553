# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which published tensor becomes which of ours?"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.errors_cavmae_sync import ModelError
from .report import ConversionReport, shorten

_MODALITIES = {"audio": "a", "video": "v"}
_UNUSED_NORMS = "modality norms that the published forward pass never uses outside the joint layers"
_POSITIONS = "sine-cosine positions, which are computed"
_TOWER = "the tower of the other modality"
_TOKENS = "tokens that the configuration leaves out"
_DECODER = "the decoder, which this model does not have"
_SEED = 0


class Renaming:
    """Moves tensors from published names to ours, and keeps account of both sides."""

    def __init__(self, tensors: Mapping[str, Tensor], config: CavMaeSyncConfig, report: ConversionReport):
        self.left = dict(tensors)
        self.config = config
        self.report = report
        self.result: dict[str, Tensor] = {}
        self.missing: list[str] = []
        self._generator = torch.Generator().manual_seed(_SEED)

    def take(self, published: str) -> Tensor | None:
        """The tensor of a published name, which is then used up; `None`, and noted, where it is missing."""
        if published not in self.left:
            self.missing.append(published)
            return None
        return self.left.pop(published)

    def move(self, published: str, ours: str) -> None:
        """One tensor under another name."""
        if (tensor := self.take(published)) is not None:
            self.result[ours] = tensor

    def move_module(self, published: str, ours: str) -> None:
        """Weight and bias of a module."""
        for kind in ("weight", "bias"):
            self.move(f"{published}.{kind}", f"{ours}.{kind}")

    def move_or_make(self, published: str, ours: str, shape: tuple[int, ...]) -> None:
        """One token, drawn as in a fresh model where an initialisation does not have it."""
        if published in self.left:
            self.move(published, ours)
            return
        token = torch.randn(shape, generator=self._generator) * self.config.initializer_range
        self.result[ours] = token
        self.report.new.append(ours)

    def drop(self, published: str, reason: str) -> None:
        """Leave a tensor out, if it is there."""
        if self.left.pop(published, None) is not None:
            self.report.drop(reason, published)

    def drop_all(self, prefixes: tuple[str, ...], reason: str) -> None:
        """Leave out every tensor whose name starts like this."""
        for name in [name for name in self.left if name.startswith(prefixes)]:
            self.drop(name, reason)

    def move_layer(self, published: str, ours: str, joint: bool = False) -> None:
        """A transformer layer; a joint one has the three sets of norms, any other one uses its plain set."""
        for theirs, norm in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
            self.move_module(f"{published}.{theirs}", f"{ours}.{norm}" + (".fused" if joint else ""))
            for modality, suffix in _MODALITIES.items():
                if joint:
                    self.move_module(f"{published}.{theirs}_{suffix}", f"{ours}.{norm}.{modality}")
                else:
                    self.drop_all((f"{published}.{theirs}_{suffix}.",), _UNUSED_NORMS)
        for kind in ("weight", "bias"):
            fused = self.take(f"{published}.attn.qkv.{kind}")
            if fused is not None:
                for part, values in zip("qkv", fused.chunk(3), strict=True):
                    self.result[f"{ours}.attention.{part}_proj.{kind}"] = values
        self.move_module(f"{published}.attn.proj", f"{ours}.attention.o_proj")
        self.move_module(f"{published}.mlp.fc1", f"{ours}.mlp.fc1")
        self.move_module(f"{published}.mlp.fc2", f"{ours}.mlp.fc2")

    def finish(self) -> None:
        """Refuse what is missing or left over, with a list."""
        problems = []
        if self.missing:
            problems.append(f"missing are {len(self.missing)} names: {shorten(self.missing)}")
        if self.left:
            problems.append(f"left over are {len(self.left)} names: {shorten(sorted(self.left))}")
        if problems:
            raise ModelError(
                f"this looks like {self.report.family}, but the names do not fit; {'; '.join(problems)}. A model with "
                "random or lost weights would be the result, so nothing is converted."
            )


def move_encoder(names: Renaming, prefix: str, fresh_tokens: bool) -> None:
    """Everything that `CavMaeSyncModel` has; `prefix` goes before our names.

    Args:
        names: Where to take from and to put to.
        prefix: `"model."` for a model with a head.
        fresh_tokens: Whether tokens may be missing, as in an initialisation, and are then drawn.
    """
    config = names.config
    registers = _split_registers(names, fresh_tokens)
    for modality, letter in _MODALITIES.items():
        head = f"constrative_head_{'audio' if modality == 'audio' else 'visual'}"  # the published spelling
        for index in range(config.num_contrastive_head_layers):
            names.move_layer(f"{head}.{index}", f"{prefix}contrastive_layers.{modality}.{index}")
        names.move_module(f"norm_{letter}", f"{prefix}norms.{modality}")
        if config.modality not in ("multimodal", modality):
            names.drop_all((f"blocks_{letter}.", f"patch_embed_{letter}.", f"pos_embed_{letter}"), _TOWER)
            names.drop_all((f"modality_{letter}", f"cls_token_{letter}"), _TOWER)
            continue
        tower = f"{prefix}{modality}_tower"
        _move_embeddings(names, letter, f"{tower}.embeddings", registers.get(modality), fresh_tokens)
        for index in range(config.num_modality_layers):
            names.move_layer(f"blocks_{letter}.{index}", f"{tower}.layers.{index}")
    for index in range(config.num_joint_layers):
        names.move_layer(f"blocks_u.{index}", f"{prefix}joint_layers.{index}", joint=True)
    names.move_module("norm", f"{prefix}norms.fused")
    names.drop("cls_token_av", _TOKENS)


def _split_registers(names: Renaming, fresh_tokens: bool) -> dict[str, Tensor]:
    """Register tokens per modality: the published tensor holds the audio ones first."""
    count = names.config.num_register_tokens
    if not count or (fresh_tokens and "register_tokens" not in names.left):
        names.drop("register_tokens", _TOKENS)
        return {}
    both = names.take("register_tokens")
    if both is None:
        return {}
    return {"audio": both[:count].unsqueeze(0), "video": both[count:].unsqueeze(0)}


def _move_embeddings(names: Renaming, letter: str, ours: str, registers: Tensor | None, fresh_tokens: bool) -> None:
    config = names.config
    names.move_module(f"patch_embed_{letter}.proj", f"{ours}.projection")
    _move_positions(names, f"pos_embed_{letter}", f"{ours}.positions.weight")
    token_shape = (1, 1, config.hidden_size)
    move_token = names.move_or_make if fresh_tokens else lambda published, ours, shape: names.move(published, ours)
    move_token(f"modality_{letter}", f"{ours}.modality_embedding", token_shape)
    if config.use_global_tokens:
        move_token(f"cls_token_{letter}", f"{ours}.global_token", token_shape)
    else:
        names.drop(f"cls_token_{letter}", _TOKENS)
    if registers is not None:
        names.result[f"{ours}.register_tokens"] = registers
    elif config.num_register_tokens and fresh_tokens:
        shape = (1, config.num_register_tokens, config.hidden_size)
        names.move_or_make("", f"{ours}.register_tokens", shape)


def _move_positions(names: Renaming, published: str, ours: str) -> None:
    if names.config.position_embedding_type == "learned":
        names.move(published, ours)
    else:
        names.drop(published, _POSITIONS)


def move_decoder(names: Renaming, fresh_tokens: bool) -> None:
    """Everything that the decoder of `CavMaeSyncForPreTraining` has."""
    config = names.config
    names.move_module("decoder_embed", "decoder.embed")
    names.move("mask_token", "decoder.mask_token")
    for modality, letter in _MODALITIES.items():
        published, ours = f"decoder_modality_{letter}", f"decoder.modality_embeddings.{modality}"
        if fresh_tokens:
            names.move_or_make(published, ours, (1, 1, config.decoder_hidden_size))
        else:
            names.move(published, ours)
        _move_positions(names, f"decoder_pos_embed_{letter}", f"decoder.positions.{modality}.weight")
        names.move_module(f"decoder_pred_{letter}", f"decoder.predictions.{modality}")
    for index in range(config.decoder_num_hidden_layers):
        names.move_layer(f"decoder_blocks.{index}", f"decoder.layers.{index}")
    names.move_module("decoder_norm", "decoder.norm")


def drop_decoder(names: Renaming) -> None:
    """Leave the decoder out."""
    names.drop_all(("decoder_", "mask_token"), _DECODER)


def move_classifier(names: Renaming) -> None:
    """The classification head, of either kind."""
    if names.config.classifier_type == "mean_pooling":
        names.move_module("mlp_head.0", "head.norm")
        names.move_module("mlp_head.1", "head.classifier")
        return
    names.move("cls_cls_token", "head.class_token")
    for index in range(names.config.num_classifier_layers):
        names.move_layer(f"classifier_layers.{index}", f"head.layers.{index}")
    names.move_module("classifier_norm", "head.norm")
    names.move_module("classifier_head", "head.classifier")


__all__ = ["Renaming", "drop_decoder", "move_classifier", "move_decoder", "move_encoder"]
