# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""From which weights does a training start: none, an own checkpoint, a published file or an ImageNet MAE?"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..convert.conversion import convert_file
from ..convert.settings import Family
from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .arguments import ModelArguments

__all__ = ["build_for_pretraining", "freeze_unused"]


def build_for_pretraining(
    arguments: ModelArguments, seed: int = 0
) -> tuple[CavMaeSyncForPreTraining, CavMaeSyncProcessor]:
    """The model to pretrain, in float32, and the processor that makes its inputs.

    Args:
        arguments: What to build.
        seed: Seeds the weights that are drawn at random.

    Raises:
        ValueError: The source holds no model that can be pretrained, or a setting contradicts it.
    """
    torch.manual_seed(seed)
    changes, settings = _own(arguments.model_config), _own(arguments.processor)
    source = arguments.init_from
    extra: dict[str, Any] = {"attn_implementation": arguments.attention} if arguments.attention else {}
    published = False
    if source is None:
        config = getattr(CavMaeSyncConfig, arguments.family)(**changes)
        model = CavMaeSyncForPreTraining._from_config(config, **extra)
    elif _is_foreign(source):
        model, published = _from_published(source, changes, arguments.family, extra)
    else:
        model = CavMaeSyncForPreTraining.from_pretrained(source, **changes, **extra)
        processor = _own_processor(source, settings)
        if processor is not None:
            return model, processor
    alignment = {"alignment": "reference" if published else "time"}
    return model, CavMaeSyncProcessor.from_config(model.config, **(alignment | settings))


def freeze_unused(model: CavMaeSyncForPreTraining) -> list[str]:
    """Freeze the weights that no loss with a weight reaches, so that none waits for a gradient in vain.

    Returns:
        The names of the frozen weights: those of the decoder and the fused norms without reconstruction, those of the
        contrastive path without contrast; none with both losses.
    """
    encoder, unused = model.model, []
    if not model.config.reconstruction_loss_weight:
        unused += [model.decoder, encoder.norms["fused"], *_joint_norms(encoder, "fused")]
    if not model.config.contrastive_loss_weight:
        unused.append(encoder.contrastive_layers)
        for modality in ("audio", "video"):
            unused += [encoder.norms[modality], *_joint_norms(encoder, modality)]
    for module in unused:
        module.requires_grad_(False)
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def _joint_norms(encoder: Any, kind: str) -> list[nn.Module]:
    """The joint layers' norms of one kind: `"audio"`, `"video"` or `"fused"`."""
    return [norms[kind] for layer in encoder.joint_layers for norms in (layer.layernorm_before, layer.layernorm_after)]


def _is_foreign(source: str) -> bool:
    """Whether it is a file, or a folder of another model (a ViT-MAE); Hub names are taken for this package's."""
    path = Path(source).expanduser()
    if path.is_file():
        return True
    config = path / "config.json"
    if not config.is_file():
        return False
    return json.loads(config.read_text(encoding="utf-8")).get("model_type") != CavMaeSyncConfig.model_type


def _from_published(
    source: str, changes: dict[str, Any], family: str, extra: dict[str, Any]
) -> tuple[CavMaeSyncForPreTraining, bool]:
    """A model out of a published file, and whether it was an audio-visual one."""
    preset = {} if family == "cav_mae_sync" else _differences(CavMaeSyncConfig.cav_mae())
    conversion = convert_file(source, preset | changes)
    initialisation = conversion.report.family == Family.INITIALISATION
    if conversion.model_class is not CavMaeSyncForPreTraining:
        raise ValueError(
            f"{source}: is a {conversion.report.family}, converted to {conversion.model_class.__name__}, which cannot "
            "be pretrained; take a file with a decoder."
        )
    model = CavMaeSyncForPreTraining.from_pretrained(
        None, config=conversion.config, state_dict=conversion.state_dict, **extra
    )
    return model, not initialisation


def _differences(config: CavMaeSyncConfig) -> dict[str, Any]:
    """Settings that differ from the defaults."""
    default = CavMaeSyncConfig()
    names = ("audio_length", "num_frames", "use_global_tokens", "num_register_tokens", "contrastive_loss_weight")
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(default, name)}


def _own(settings: Any) -> dict[str, Any]:
    """A mapping of one's own."""
    return dict(settings or {})


def _own_processor(source: str, settings: dict[str, Any]) -> CavMaeSyncProcessor | None:
    """The processor saved with a model, with the settings that were named; `None` where there is none."""
    try:
        processor = CavMaeSyncProcessor.from_pretrained(source)
    except OSError:
        return None
    for name, value in settings.items():
        if not hasattr(processor.feature_extractor, name):
            raise ValueError(f"`processor` has `{name}`, which the feature extractor does not know.")
        setattr(processor.feature_extractor, name, value)
        if name == "alignment":
            processor.video_processor.alignment = value
    return processor
