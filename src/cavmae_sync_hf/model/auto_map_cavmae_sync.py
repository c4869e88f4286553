# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which class stands behind each auto class and each pipeline in a saved folder, and the code that travels with it."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

# File names of the code that travels with weights; nothing else of the package does.
CODE_FILES = "*_cavmae_sync.py"
_SUFFIX = "_cavmae_sync"

# transformers copies the file that an entry names, and what that file imports, out of a folder or the Hub. The file
# that they all name imports everything, so that the code is whole, and can be saved again, whichever class is loaded.
AUTO_MAP: dict[str, str] = {
    "AutoConfig": "auto_classes_cavmae_sync.CavMaeSyncConfig",
    "AutoModel": "auto_classes_cavmae_sync.CavMaeSyncModel",
    "AutoModelForPreTraining": "auto_classes_cavmae_sync.CavMaeSyncForPreTraining",
    "AutoModelForAudioClassification": "auto_classes_cavmae_sync.CavMaeSyncForAudioVisualClassification",
    "AutoModelForVideoClassification": "auto_classes_cavmae_sync.CavMaeSyncForAudioVisualClassification",
    "AutoFeatureExtractor": "auto_classes_cavmae_sync.CavMaeSyncFeatureExtractor",
    "AutoVideoProcessor": "auto_classes_cavmae_sync.CavMaeSyncVideoProcessor",
    "AutoProcessor": "auto_classes_cavmae_sync.CavMaeSyncProcessor",
}

# Of a model with text; its processors are those of `AUTO_MAP`.
TEXT_AUTO_MAP: dict[str, str] = {
    "AutoConfig": "auto_classes_cavmae_sync.CavMaeSyncTextDualEncoderConfig",
    "AutoModel": "auto_classes_cavmae_sync.CavMaeSyncTextDualEncoderModel",
} | {name: AUTO_MAP[name] for name in ("AutoFeatureExtractor", "AutoVideoProcessor", "AutoProcessor")}

# Of a language model that sees and hears.
LM_AUTO_MAP: dict[str, str] = {
    "AutoConfig": "auto_classes_cavmae_sync.CavMaeSyncLMConfig",
    "AutoModel": "auto_classes_cavmae_sync.CavMaeSyncLMModel",
    "AutoModelForMultimodalLM": "auto_classes_cavmae_sync.CavMaeSyncForConditionalGeneration",
    "AutoModelForImageTextToText": "auto_classes_cavmae_sync.CavMaeSyncForConditionalGeneration",
    "AutoFeatureExtractor": AUTO_MAP["AutoFeatureExtractor"],
    "AutoVideoProcessor": AUTO_MAP["AutoVideoProcessor"],
    "AutoProcessor": "auto_classes_cavmae_sync.CavMaeSyncLMProcessor",
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

TEXT_PIPELINES: dict[str, dict[str, Any]] = {
    "zero-shot-audio-visual-classification": {
        "impl": "pipelines_text_cavmae_sync.CavMaeSyncZeroShotClassificationPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    },
}
_ALL_PIPELINES = CUSTOM_PIPELINES | TEXT_PIPELINES


def complete_auto_map(
    auto_map: Mapping[str, Any] | None = None, classes: Mapping[str, str] = AUTO_MAP
) -> dict[str, Any]:
    """`auto_map` with every auto class of `classes` in it.

    transformers writes the saved class alone, so that a checkpoint of the pretraining model could not be opened as a
    classifier. Entries of a user's own classes stay. Entries of this package's classes name the file of today,
    whatever file of an earlier version they named. Entries that point at the code in another repository
    (`"owner/name--file.Class"`) give way where this package has the class, since its code is saved alongside.
    """
    ours = {reference.split(".")[1]: reference for reference in classes.values()}
    completed: dict[str, Any] = dict(classes)
    for name, reference in (auto_map or {}).items():
        file, _, class_name = str(reference).rpartition(".")
        if file.endswith(_SUFFIX) and class_name in ours:
            completed[name] = ours[class_name]
        elif name not in classes or "--" not in file:
            completed[name] = reference
    return completed


def complete_pipelines(
    custom_pipelines: Mapping[str, Any] | None = None, pipelines: Mapping[str, dict[str, Any]] = CUSTOM_PIPELINES
) -> dict[str, Any]:
    """`custom_pipelines` with every one of `pipelines` in it, as JSON takes them."""
    return dict(custom_pipelines or {}) | {task: dict(entry) for task, entry in pipelines.items()}


def pipelines_to_load(custom_pipelines: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of a folder's pipelines whose code must come from that folder.

    An installed package has registered its own; transformers would ask for `trust_remote_code=True` all the same.
    """
    remote = __name__.split(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME
    return {task: entry for task, entry in (custom_pipelines or {}).items() if remote or task not in _ALL_PIPELINES}


def code_files() -> list[Path]:
    """The files that a saved folder carries: all of the folder that this code lies in."""
    return sorted(Path(__file__).parent.glob(CODE_FILES))


class SavedWithCode:
    """Base of the configuration and the processors: the folder that one is saved to holds the code of all classes."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type | None = None) -> None:
        """Let saved folders name a subclass of your own and carry its file.

        The package's classes need it not; for them it does nothing, since transformers would write the file that each
        lies in, which does not bring the others along.

        Args:
            auto_class: The auto class of transformers; by default that of the kind, such as `"AutoConfig"`.
        """
        if not cls.__module__.endswith(_SUFFIX):
            parent: Any = super()
            parent.register_for_auto_class(*([] if auto_class is None else [auto_class]))

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write the settings, and beside them the code of all classes.

        Args:
            save_directory: The folder, made where it does not exist.
            push_to_hub: Whether to upload it as well.
            kwargs: For the upload: `repo_id` (default: the folder's name) and what `push_to_hub` takes.
        """
        parent: Any = super()
        saved = parent.save_pretrained(save_directory)
        for file in code_files():
            shutil.copyfile(file, Path(save_directory) / file.name)
        if push_to_hub:
            # Not the parent's own upload, which would leave out the code that is copied after it.
            own: Any = self
            own.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return saved


class ConfigSavedWithCode(SavedWithCode):
    """Base of the configurations: a saved one names every auto class and pipeline, whichever model is being saved."""

    own_auto_map = AUTO_MAP
    own_pipelines = CUSTOM_PIPELINES

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `config.json`, with every auto class and pipeline, and the code beside it."""
        own = getattr(self, "custom_pipelines", None)
        self.auto_map = complete_auto_map(getattr(self, "auto_map", None), self.own_auto_map)
        self.custom_pipelines = complete_pipelines(own, self.own_pipelines)
        try:
            super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:  # for the file alone: in memory the registered ones serve
            if own is None:
                del self.custom_pipelines
            else:
                self.custom_pipelines = own


__all__ = [
    "AUTO_MAP",
    "CODE_FILES",
    "CUSTOM_PIPELINES",
    "LM_AUTO_MAP",
    "TEXT_AUTO_MAP",
    "TEXT_PIPELINES",
    "ConfigSavedWithCode",
    "SavedWithCode",
    "code_files",
    "complete_auto_map",
    "complete_pipelines",
    "pipelines_to_load",
]
