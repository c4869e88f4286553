# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which class and which code file stands behind each auto class and each pipeline in a saved folder."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

if TYPE_CHECKING:
    # transformers copies the files it finds by following relative imports, this block included. The configuration and
    # the processor import this file, so that whatever is saved first, a folder holds the code of every auto class.
    from .configuration_cavmae_sync import CavMaeSyncConfig as _Config  # noqa: F401
    from .feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor as _FeatureExtractor  # noqa: F401
    from .modeling_cavmae_sync import CavMaeSyncForAudioVisualClassification as _Classification  # noqa: F401
    from .modeling_cavmae_sync import CavMaeSyncForPreTraining as _PreTraining  # noqa: F401
    from .modeling_cavmae_sync import CavMaeSyncModel as _Model  # noqa: F401
    from .pipelines_cavmae_sync import CavMaeSyncClassificationPipeline as _Pipeline  # noqa: F401
    from .processing_cavmae_sync import CavMaeSyncProcessor as _Processor  # noqa: F401
    from .video_processing_cavmae_sync import CavMaeSyncVideoProcessor as _VideoProcessor  # noqa: F401

AUTO_MAP: dict[str, str] = {
    "AutoConfig": "configuration_cavmae_sync.CavMaeSyncConfig",
    "AutoModel": "modeling_cavmae_sync.CavMaeSyncModel",
    "AutoModelForPreTraining": "modeling_cavmae_sync.CavMaeSyncForPreTraining",
    "AutoModelForAudioClassification": "modeling_cavmae_sync.CavMaeSyncForAudioVisualClassification",
    "AutoModelForVideoClassification": "modeling_cavmae_sync.CavMaeSyncForAudioVisualClassification",
    "AutoFeatureExtractor": "feature_extraction_cavmae_sync.CavMaeSyncFeatureExtractor",
    "AutoVideoProcessor": "video_processing_cavmae_sync.CavMaeSyncVideoProcessor",
    "AutoProcessor": "processing_cavmae_sync.CavMaeSyncProcessor",
}

# Tasks of `pipeline(...)`, the class of each, and the auto classes of transformers that load its model.
CUSTOM_PIPELINES: dict[str, dict[str, Any]] = {
    "audio-visual-classification": {
        "impl": "pipelines_cavmae_sync.CavMaeSyncClassificationPipeline",
        "pt": ["AutoModelForVideoClassification"],
        "type": "multimodal",
    },
    "audio-visual-feature-extraction": {
        "impl": "pipelines_cavmae_sync.CavMaeSyncFeatureExtractionPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    },
    "audio-visual-retrieval": {
        "impl": "pipelines_cavmae_sync.CavMaeSyncRetrievalPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    },
}


def complete_auto_map(auto_map: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`auto_map` with every auto class in it.

    transformers writes the saved class alone, so that a checkpoint of the pretraining model could not be opened as a
    classifier. Entries of a user's own classes stay. Entries that point at the code in another repository
    (`"owner/name--file.Class"`) give way where this package has the class, since its code is saved alongside.
    """
    own = {
        name: reference
        for name, reference in (auto_map or {}).items()
        if name not in AUTO_MAP or "--" not in str(reference)
    }
    return AUTO_MAP | own


def complete_pipelines(custom_pipelines: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`custom_pipelines` with every pipeline of this package in it, as JSON takes them."""
    return dict(custom_pipelines or {}) | {task: dict(entry) for task, entry in CUSTOM_PIPELINES.items()}


def pipelines_to_load(custom_pipelines: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of a folder's pipelines whose code must come from that folder.

    An installed package has registered its own; transformers would ask for `trust_remote_code=True` all the same.
    """
    remote = __name__.split(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME
    return {task: entry for task, entry in (custom_pipelines or {}).items() if remote or task not in CUSTOM_PIPELINES}


__all__ = ["AUTO_MAP", "CUSTOM_PIPELINES", "complete_auto_map", "complete_pipelines", "pipelines_to_load"]
