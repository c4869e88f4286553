# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which weights does the training of a classifier leave as they are?"""

from typing import Any

from torch import nn

from .initialization import _joint_norms

__all__ = ["freeze_encoder", "freeze_idle", "idle_modules"]


def idle_modules(model: Any) -> list[nn.Module]:
    """Parts of a `CavMaeSyncForAudioVisualClassification` that a clip with all its modalities does not pass.

    The contrastive layers always; beside them, with mean pooling, the norms of other paths than the one taken (fused
    tokens in a multimodal model, else the modality's own); with frame attention, the fused path is taken by a
    single-modality model, while a multimodal one leaves the towers before any joint layer.
    """
    encoder, config = model.model, model.config
    idle: list[nn.Module] = [encoder.contrastive_layers]
    multimodal = config.modality == "multimodal"
    if config.classifier_type == "frame_attention" and multimodal:
        return [*idle, encoder.joint_layers, encoder.norms]
    fused = multimodal or config.classifier_type == "frame_attention"
    used = "fused" if fused else config.modality
    for kind in {"audio", "video", "fused"} - {used}:
        idle += [encoder.norms[kind], *_joint_norms(encoder, kind)]
    return idle


def freeze_idle(model: Any) -> list[str]:
    """Freeze what `idle_modules` names, so that no weight waits for a gradient that never comes.

    In a multimodal model with mean pooling, clips without sound (or picture) do pass the norms for one modality alone,
    which stay as pretrained.

    Returns:
        The names of the frozen weights.
    """
    for module in idle_modules(model):
        module.requires_grad_(False)
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def freeze_encoder(model: Any) -> None:
    """Freeze all but the head."""
    model.model.requires_grad_(False)
