# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A model folder or Hub name becomes a model and its processor, fit for a use."""

import os
import re
from pathlib import Path
from typing import Any, Literal, overload

import torch

from ..files import StrPath
from ..hub import register_auto_classes
from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.errors_cavmae_sync import ModelError
from ..model.modeling_cavmae_sync import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncPreTrainedModel,
)
from ..model.processing_cavmae_sync import CavMaeSyncProcessor

_CLASSES: dict[str, Any] = {
    "embedding": CavMaeSyncModel,
    "classification": CavMaeSyncForAudioVisualClassification,
    "pretraining": CavMaeSyncForPreTraining,
}


@overload
def load_model(
    name: StrPath,
    *,
    use: Literal["embedding"] = "embedding",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    modalities: Literal["any", "both"] = "any",
) -> tuple[CavMaeSyncModel, CavMaeSyncProcessor]: ...


@overload
def load_model(
    name: StrPath,
    *,
    use: Literal["classification"],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    modalities: Literal["any", "both"] = "any",
) -> tuple[CavMaeSyncForAudioVisualClassification, CavMaeSyncProcessor]: ...


@overload
def load_model(
    name: StrPath,
    *,
    use: Literal["pretraining"],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    modalities: Literal["any", "both"] = "any",
) -> tuple[CavMaeSyncForPreTraining, CavMaeSyncProcessor]: ...


def load_model(
    name: StrPath,
    *,
    use: Literal["embedding", "classification", "pretraining"] = "embedding",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    modalities: Literal["any", "both"] = "any",
) -> tuple[CavMaeSyncPreTrainedModel, CavMaeSyncProcessor]:
    """A model in evaluation mode, and its processor, from a folder or the Hub.

    Args:
        name: Folder of a saved model, Hub repository as `OWNER/NAME`, or `example` for the small model that comes with
            the package (see `example_model`).
        use: `"embedding"` loads the encoder of any checkpoint; the other two need a checkpoint that has that head.
        device: Where the model goes.
        dtype: Of its weights.
        modalities: `"both"` refuses models of one tower, for uses that compare audio and video.

    Raises:
        ModelError: There is no such model, it is of another kind, or lacks what the use needs.
    """
    name = os.fspath(name)
    if name == "example" and not Path(name).exists():
        name = str(example_model())
    _check_name(name)
    from transformers import AutoConfig, AutoProcessor
    from transformers.utils import logging

    register_auto_classes()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        if Path(name).is_dir():
            raise ModelError(f"{name}: config.json cannot be read ({error}); save the model anew.") from error
        raise ModelError(f"There is no folder {name}, and the Hub gives no model of this name: {error}") from error
    if config.model_type != CavMaeSyncConfig.model_type:
        raise ModelError(f"{name} holds a model of type {config.model_type!r}, not {CavMaeSyncConfig.model_type!r}.")
    kinds = config.architectures or []
    if use != "embedding" and _CLASSES[use].__name__ not in kinds:
        remedy = "training/run_classification.py fine-tunes one" if use == "classification" else "name another"
        raise ModelError(
            f"{name} was saved as {', '.join(kinds) or 'a bare model'}, without the {use} head that this needs; "
            f"{remedy}."
        )
    if modalities == "both" and config.modality != "multimodal":
        raise ModelError(f"{name} has the {config.modality} tower alone; this compares audio and video.")
    try:
        model = _CLASSES[use].from_pretrained(name, dtype=dtype)
        processor = AutoProcessor.from_pretrained(name)
    except OSError as error:
        raise ModelError(f"{name}: cannot be loaded ({error})") from error
    return model.to(device).eval(), processor


def example_model() -> Path:
    """Folder of the small model that comes with the package, to try everything with.

    Trained on SyncWorld by `training/recipes/pretraining/syncworld_tiny.yaml`: it knows that world, and nothing of the
    real one.
    """
    return Path(__file__).parents[1] / "example"


def _check_name(name: str) -> None:
    """Refuse what can be neither a folder with a model nor a repository on the Hub, without asking the Hub."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} holds no config.json; name a folder that holds a saved model.")
    elif path.exists():
        raise ModelError(f"{name} is a file; name the folder of a saved model (`cavmae-sync convert` makes one).")
    elif not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise ModelError(
            f"{name} is not a folder; name one that holds a saved model, or a Hub repository as OWNER/NAME."
        )
