# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""All classes that transformers loads from a saved folder; every entry of its `auto_map` names this file.

So whichever class is loaded, all code comes along, and all classes of a folder are those of one copy of the code.
"""

from .configuration_cavmae_sync import CavMaeSyncConfig
from .configuration_lm_cavmae_sync import CavMaeSyncLMConfig
from .configuration_text_cavmae_sync import CavMaeSyncTextDualEncoderConfig
from .feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor
from .modeling_cavmae_sync import CavMaeSyncForAudioVisualClassification, CavMaeSyncForPreTraining, CavMaeSyncModel
from .modeling_lm_cavmae_sync import CavMaeSyncForConditionalGeneration, CavMaeSyncLMModel
from .modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel
from .pipelines_cavmae_sync import (
    CavMaeSyncClassificationPipeline,
    CavMaeSyncFeatureExtractionPipeline,
    CavMaeSyncRetrievalPipeline,
)
from .pipelines_text_cavmae_sync import CavMaeSyncZeroShotClassificationPipeline
from .processing_cavmae_sync import CavMaeSyncProcessor
from .processing_lm_cavmae_sync import CavMaeSyncLMProcessor
from .video_processing_cavmae_sync import CavMaeSyncVideoProcessor

__all__ = [
    "CavMaeSyncClassificationPipeline",
    "CavMaeSyncConfig",
    "CavMaeSyncFeatureExtractionPipeline",
    "CavMaeSyncFeatureExtractor",
    "CavMaeSyncForAudioVisualClassification",
    "CavMaeSyncForConditionalGeneration",
    "CavMaeSyncForPreTraining",
    "CavMaeSyncLMConfig",
    "CavMaeSyncLMModel",
    "CavMaeSyncLMProcessor",
    "CavMaeSyncModel",
    "CavMaeSyncProcessor",
    "CavMaeSyncRetrievalPipeline",
    "CavMaeSyncTextDualEncoderConfig",
    "CavMaeSyncTextDualEncoderModel",
    "CavMaeSyncVideoProcessor",
    "CavMaeSyncZeroShotClassificationPipeline",
]
