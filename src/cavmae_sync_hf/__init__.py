# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""CAV-MAE Sync for transformers: which sound belongs to which moment of a video.

Importing the package registers its classes with transformers' auto classes.
"""

import sys
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hub import push_to_hub, register_auto_classes, save_for_hub
    from .model.configuration_cavmae_sync import CavMaeSyncConfig
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
    from .model.processing_cavmae_sync import CavMaeSyncProcessor
    from .model.video_processing_cavmae_sync import CavMaeSyncVideoProcessor
    from .model_card import CardDetails

    __version__: str

# Where each public name lives. `selfcheck` and `convert` are modules of these names: import from them.
_MODULES = {
    "AppError": "model.errors_cavmae_sync",
    "CavMaeSyncError": "model.errors_cavmae_sync",
    "DataError": "model.errors_cavmae_sync",
    "EvaluationError": "model.errors_cavmae_sync",
    "ExportError": "model.errors_cavmae_sync",
    "Hint": "model.errors_cavmae_sync",
    "InferenceError": "model.errors_cavmae_sync",
    "LockedError": "model.errors_cavmae_sync",
    "MediaError": "model.errors_cavmae_sync",
    "MediaNotFoundError": "model.errors_cavmae_sync",
    "MissingTrackError": "model.errors_cavmae_sync",
    "ModelError": "model.errors_cavmae_sync",
    "NonFiniteLossError": "model.errors_cavmae_sync",
    "QueryError": "model.errors_cavmae_sync",
    "SearchError": "model.errors_cavmae_sync",
    "SelfCheckError": "model.errors_cavmae_sync",
    "TrainingError": "model.errors_cavmae_sync",
    "WorkerError": "model.errors_cavmae_sync",
    "CardDetails": "model_card",
    "CavMaeSyncClassifierOutput": "model.modeling_cavmae_sync",
    "CavMaeSyncConfig": "model.configuration_cavmae_sync",
    "CavMaeSyncFeatureExtractor": "model.feature_extraction_cavmae_sync",
    "CavMaeSyncForAudioVisualClassification": "model.modeling_cavmae_sync",
    "CavMaeSyncForPreTraining": "model.modeling_cavmae_sync",
    "CavMaeSyncForPreTrainingOutput": "model.modeling_cavmae_sync",
    "CavMaeSyncModel": "model.modeling_cavmae_sync",
    "CavMaeSyncModelOutput": "model.modeling_cavmae_sync",
    "CavMaeSyncPreTrainedModel": "model.modeling_cavmae_sync",
    "CavMaeSyncProcessor": "model.processing_cavmae_sync",
    "CavMaeSyncVideoProcessor": "model.video_processing_cavmae_sync",
    "decode_media": "model.media_cavmae_sync",
    "push_to_hub": "hub",
    "register_auto_classes": "hub",
    "save_for_hub": "hub",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return metadata.version("cavmae-sync-hf")
        except metadata.PackageNotFoundError:  # run from a source tree
            return "0+unknown"
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# The `cavmae-sync` script alone asks to leave this out, so that its help appears at once (see that module).
if not getattr(sys.modules.get("cavmae_sync_command"), "defer_registration", False):
    from .hub import register_auto_classes

    register_auto_classes()

__all__ = [
    "AppError",
    "CardDetails",
    "CavMaeSyncClassifierOutput",
    "CavMaeSyncConfig",
    "CavMaeSyncError",
    "CavMaeSyncFeatureExtractor",
    "CavMaeSyncForAudioVisualClassification",
    "CavMaeSyncForPreTraining",
    "CavMaeSyncForPreTrainingOutput",
    "CavMaeSyncModel",
    "CavMaeSyncModelOutput",
    "CavMaeSyncPreTrainedModel",
    "CavMaeSyncProcessor",
    "CavMaeSyncVideoProcessor",
    "DataError",
    "EvaluationError",
    "ExportError",
    "Hint",
    "InferenceError",
    "LockedError",
    "MediaError",
    "MediaNotFoundError",
    "MissingTrackError",
    "ModelError",
    "NonFiniteLossError",
    "QueryError",
    "SearchError",
    "SelfCheckError",
    "TrainingError",
    "WorkerError",
    "decode_media",
    "push_to_hub",
    "register_auto_classes",
    "save_for_hub",
]
