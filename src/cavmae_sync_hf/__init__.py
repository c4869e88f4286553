# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""CAV-MAE Sync for transformers: which sound belongs to which moment of a video.

Importing the package registers its classes with transformers' auto classes; everything else is loaded on first use.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .model import errors_cavmae_sync
from .model.errors_cavmae_sync import *  # noqa: F403 - they load nothing else

if TYPE_CHECKING:
    from .data.prepare import prepare
    from .evaluation import evaluate_classification, evaluate_localization, evaluate_retrieval, evaluate_sync
    from .hub import push_to_hub, register_auto_classes, save_for_hub
    from .inference.classify import classify
    from .inference.extract import extract_features
    from .inference.localize import localize
    from .inference.sync import measure_sync
    from .loading import load_model
    from .model.configuration_cavmae_sync import CavMaeSyncConfig
    from .model.configuration_lm_cavmae_sync import CavMaeSyncLMConfig
    from .model.configuration_text_cavmae_sync import CavMaeSyncTextDualEncoderConfig
    from .model.feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor
    from .model.media_cavmae_sync import decode_media
    from .model.modeling_cavmae_sync import (
        CavMaeSyncClassifierOutput,
        CavMaeSyncForAudioVisualClassification,
        CavMaeSyncForPreTraining,
        CavMaeSyncForPreTrainingOutput,
        CavMaeSyncModel,
        CavMaeSyncModelOutput,
        CavMaeSyncPreTrainedModel,
    )
    from .model.modeling_lm_cavmae_sync import CavMaeSyncForConditionalGeneration, CavMaeSyncLMModel
    from .model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel, CavMaeSyncTextOutput
    from .model.processing_cavmae_sync import CavMaeSyncProcessor
    from .model.processing_lm_cavmae_sync import CavMaeSyncLMProcessor
    from .model.video_processing_cavmae_sync import CavMaeSyncVideoProcessor
    from .model_card import CardDetails
    from .search import index_videos
    from .search.asking import ask
    from .search.scoring import score_film
    from .search.searching import search
    from .search.soundtrack import write_film, write_score, write_stems
    from .syncworld import make_world

    __version__: str

# Module -> the public names in it, loaded on first use. `convert` and `selfcheck` are modules themselves.
_PUBLIC: dict[str, tuple[str, ...]] = {
    "model.configuration_cavmae_sync": ("CavMaeSyncConfig",),
    "model.feature_extraction_cavmae_sync": ("CavMaeSyncFeatureExtractor",),
    "model.media_cavmae_sync": ("decode_media",),
    "model.modeling_cavmae_sync": (
        "CavMaeSyncClassifierOutput",
        "CavMaeSyncForAudioVisualClassification",
        "CavMaeSyncForPreTraining",
        "CavMaeSyncForPreTrainingOutput",
        "CavMaeSyncModel",
        "CavMaeSyncModelOutput",
        "CavMaeSyncPreTrainedModel",
    ),
    "model.configuration_text_cavmae_sync": ("CavMaeSyncTextDualEncoderConfig",),
    "model.configuration_lm_cavmae_sync": ("CavMaeSyncLMConfig",),
    "model.modeling_lm_cavmae_sync": ("CavMaeSyncForConditionalGeneration", "CavMaeSyncLMModel"),
    "model.modeling_text_cavmae_sync": ("CavMaeSyncTextDualEncoderModel", "CavMaeSyncTextOutput"),
    "model.processing_cavmae_sync": ("CavMaeSyncProcessor",),
    "model.processing_lm_cavmae_sync": ("CavMaeSyncLMProcessor",),
    "model.video_processing_cavmae_sync": ("CavMaeSyncVideoProcessor",),
    "model_card": ("CardDetails",),
    "hub": (
        "push_to_hub",
        "register_auto_classes",
        "save_for_hub",
    ),
    "data.prepare": ("prepare",),
    "syncworld": ("make_world",),
    "loading": ("load_model",),
    "inference.sync": ("measure_sync",),
    "inference.localize": ("localize",),
    "inference.classify": ("classify",),
    "inference.extract": ("extract_features",),
    "evaluation": (
        "evaluate_classification",
        "evaluate_localization",
        "evaluate_retrieval",
        "evaluate_sync",
    ),
    "search": ("index_videos", "search"),
    "search.asking": ("ask",),
    "search.scoring": ("score_film",),
    "search.soundtrack": ("write_film", "write_score", "write_stems"),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from .provenance import package_version

        return package_version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_MODULES[name]}", __name__)
    value = module if _MODULES[name] == name else getattr(module, name)  # `search` is a module that can be called
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


# The `cavmae-sync` script alone asks to leave this out, so that its help appears at once (see that module).
if not getattr(sys.modules.get("cavmae_sync_command"), "defer_registration", False):
    from .hub import register_auto_classes

    register_auto_classes()

__all__ = sorted({*_MODULES, *errors_cavmae_sync.__all__})
