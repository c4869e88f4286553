# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""CAV-MAE Sync for transformers: which sound belongs to which moment of a video.

Importing the package registers its classes with transformers' auto classes.
"""

import sys
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classification_cavmae_sync import CavMaeSyncClassifierOutput, CavMaeSyncForAudioVisualClassification
    from .configuration_cavmae_sync import CavMaeSyncConfig
    from .feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor
    from .hub import push_to_hub, register_auto_classes, save_for_hub
    from .media_cavmae_sync import decode_media
    from .media_source_cavmae_sync import MediaError, MissingTrackError
    from .model_card import CardDetails
    from .modeling_cavmae_sync import CavMaeSyncModel, CavMaeSyncModelOutput, CavMaeSyncPreTrainedModel
    from .pretraining_cavmae_sync import CavMaeSyncForPreTraining, CavMaeSyncForPreTrainingOutput
    from .processing_cavmae_sync import CavMaeSyncProcessor
    from .video_processing_cavmae_sync import CavMaeSyncVideoProcessor

    __version__: str

# Where each public name lives. `selfcheck` and `convert` are modules of these names: import from them.
_MODULES = {
    "CardDetails": "model_card",
    "CavMaeSyncClassifierOutput": "classification_cavmae_sync",
    "CavMaeSyncConfig": "configuration_cavmae_sync",
    "CavMaeSyncFeatureExtractor": "feature_extraction_cavmae_sync",
    "CavMaeSyncForAudioVisualClassification": "classification_cavmae_sync",
    "CavMaeSyncForPreTraining": "pretraining_cavmae_sync",
    "CavMaeSyncForPreTrainingOutput": "pretraining_cavmae_sync",
    "CavMaeSyncModel": "modeling_cavmae_sync",
    "CavMaeSyncModelOutput": "modeling_cavmae_sync",
    "CavMaeSyncPreTrainedModel": "modeling_cavmae_sync",
    "CavMaeSyncProcessor": "processing_cavmae_sync",
    "CavMaeSyncVideoProcessor": "video_processing_cavmae_sync",
    "MediaError": "media_source_cavmae_sync",
    "MissingTrackError": "media_source_cavmae_sync",
    "decode_media": "media_cavmae_sync",
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
    "CardDetails",
    "CavMaeSyncClassifierOutput",
    "CavMaeSyncConfig",
    "CavMaeSyncFeatureExtractor",
    "CavMaeSyncForAudioVisualClassification",
    "CavMaeSyncForPreTraining",
    "CavMaeSyncForPreTrainingOutput",
    "CavMaeSyncModel",
    "CavMaeSyncModelOutput",
    "CavMaeSyncPreTrainedModel",
    "CavMaeSyncProcessor",
    "CavMaeSyncVideoProcessor",
    "MediaError",
    "MissingTrackError",
    "decode_media",
    "push_to_hub",
    "register_auto_classes",
    "save_for_hub",
]
