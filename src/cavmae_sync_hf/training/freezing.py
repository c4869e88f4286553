# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Weights that a training leaves as they are: those without a gradient, or all but low-rank changes (LoRA)."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from ..model.errors_cavmae_sync import TrainingError
from ..model.modeling_cavmae_sync import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
)
from ..model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel
from ..provenance import require_package

if TYPE_CHECKING:
    from peft import PeftModel

# A classifier as it is, or with low-rank changes around it, which is called like it.
Classifier: TypeAlias = "CavMaeSyncForAudioVisualClassification | PeftModel"

# How the head is called in the classifier; it starts at random, so it is trained as a whole and saved beside the
# low-rank changes.
_HEAD = "head"


def freeze_unused(model: CavMaeSyncForPreTraining) -> list[str]:
    """Freeze the weights that no loss with a weight reaches, so that none waits for a gradient in vain.

    Returns:
        The names of the frozen weights: those of the decoder and the fused norms without reconstruction, those of the
        contrastive path without contrast; none with both losses.
    """
    encoder, unused = model.model, []
    for tower in model.encoder_towers().values():
        tower.freeze()
    if not model.config.reconstruction_loss_weight:
        unused += [model.decoder, *_norms(encoder, "fused")]
    if not model.config.contrastive_loss_weight:
        unused += [encoder.contrastive_layers, *_norms(encoder, "audio"), *_norms(encoder, "video")]
    unused.append(encoder.local_heads)
    return _freeze(model, unused)


def freeze_for_text(
    model: CavMaeSyncTextDualEncoderModel, *, joint: bool, towers: str = "full", text_model: bool = False
) -> list[str]:
    """Freeze what a training with text leaves as it is, and what no loss reaches.

    Args:
        model: The model.
        joint: Whether the audio-visual model is trained.
        towers: `"frozen"`: then only what follows its towers; `"full"`: all of it. Encoders of transformers in place
            of towers are trained as `encoder_training` of their configuration says.
        text_model: Whether the text encoder is trained.

    Returns:
        The names of the frozen weights.
    """
    av, config = model.av_model, model.config
    still: list[Any] = [] if text_model else [model.text_model]
    if not joint:
        still.append(av)
    else:
        for tower in av.encoder_towers().values():
            tower.freeze()
        still += [
            av.local_heads,
            av.dense_projections,
            *_norms(av, "fused"),
            *([av.audio_tower, av.video_tower] if towers == "frozen" else []),
        ]
    pooler = getattr(model.text_model, "pooler", None)
    if config.text_pooling != "pooler" and isinstance(pooler, nn.Module):
        still.append(pooler)
    if not config.num_clip_layers:
        still.append(model.clip_logit_scale)
    if config.clip_pooling != "lse":
        still.append(model.log_pooling_temperature)
    return _freeze(model, still)


def idle_modules(model: CavMaeSyncForAudioVisualClassification) -> list[nn.Module]:
    """Parts of a classifier that a clip with all its modalities does not pass.

    The contrastive layers always; beside them, with mean pooling, the norms of other paths than the one taken (fused
    tokens in a multimodal model, else the modality's own); with frame attention, the fused path is taken by a
    single-modality model, while a multimodal one leaves the towers before any joint layer.
    """
    encoder, config = model.model, model.config
    idle: list[nn.Module] = [encoder.contrastive_layers, encoder.local_heads, encoder.dense_projections]
    multimodal, over_frames = config.modality == "multimodal", config.classifier_type == "frame_attention"
    if over_frames and multimodal:
        return [*idle, encoder.joint_layers, encoder.norms]
    used = "fused" if over_frames or multimodal else config.modality
    return idle + [norm for kind in ("audio", "video", "fused") if kind != used for norm in _norms(encoder, kind)]


def freeze_idle(model: CavMaeSyncForAudioVisualClassification) -> list[str]:
    """Freeze what `idle_modules` names, so that no weight waits for a gradient that never comes.

    In a multimodal model with mean pooling, clips without audio (or video) do pass the norms for one modality alone,
    which stay as pretrained.

    Returns:
        The names of the frozen weights.
    """
    return _freeze(model, idle_modules(model))


def _norms(encoder: CavMaeSyncModel, kind: str) -> list[nn.Module]:
    """The final norm and the joint layers' norms of one kind: `"audio"`, `"video"` or `"fused"`."""
    layers: Any = encoder.joint_layers
    return [
        encoder.norms[kind],
        *(n[kind] for layer in layers for n in (layer.layernorm_before, layer.layernorm_after)),
    ]


def _freeze(model: nn.Module, modules: Sequence[nn.Module | nn.Parameter]) -> list[str]:
    """Freeze parts of a model; the names of all its frozen weights."""
    for module in modules:
        module.requires_grad_(False)
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def add_lora(
    model: CavMaeSyncForAudioVisualClassification,
    rank: int,
    *,
    alpha: float = 0.0,
    dropout: float = 0.0,
    targets: Sequence[str] = ("q_proj", "v_proj"),
) -> "PeftModel":
    """Freeze a classifier's encoder and give its linear layers low-rank changes; the head is trained as a whole.

    Args:
        model: The classifier; it is changed.
        rank: Rank of the changes.
        alpha: They are scaled by `alpha / rank`; `0`: by 2.
        dropout: Dropout on their inputs.
        targets: Last parts of the names of the linear layers: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `fc1`, `fc2`.
            Layers that the classification never passes are left out.

    Returns:
        A `peft.PeftModel` around the model, which is called like it.

    Raises:
        ImportError: peft is not installed.
        TrainingError: A target is the name of no linear layer.
    """
    peft = require_package("peft", "lora", "LoRA")
    unreached = {id(layer) for module in idle_modules(model) for layer in module.modules()}
    layers = [
        f"model.{name}"
        for name, layer in model.model.named_modules()
        if isinstance(layer, nn.Linear) and id(layer) not in unreached
    ]
    known = {name.rpartition(".")[2] for name in layers}
    unknown = sorted(set(targets) - known)
    if unknown or not targets:
        raise TrainingError(
            f"`lora_targets` has {', '.join(unknown) or 'no name'}; the encoder's linear layers are "
            f"{', '.join(sorted(known))}."
        )
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        target_modules=[name for name in layers if name.rpartition(".")[2] in targets],
        modules_to_save=[_HEAD],
    )
    return peft.get_peft_model(model, settings)


def is_lora(model: nn.Module) -> bool:
    """Whether it is a model that `add_lora` gave."""
    return hasattr(model, "get_base_model") and hasattr(model, "peft_config")


def plain_model(model: nn.Module) -> Any:
    """The model inside the low-rank changes, or the model itself."""
    given: Any = model
    return given.get_base_model() if is_lora(model) else given


def merged_copy(model: "PeftModel") -> CavMaeSyncForAudioVisualClassification:
    """A classifier of its own, on the CPU, whose weights include the changes; the model stays as it is."""
    return copy.deepcopy(model).cpu().merge_and_unload()
