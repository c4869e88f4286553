# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A model's name becomes a model and its processor, fit for a use."""

from typing import Any, Literal, overload

import torch

from .files import StrPath
from .inference.loading import load_torch_model
from .model.modeling_cavmae_sync import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
)
from .model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel
from .model.processing_cavmae_sync import CavMaeSyncProcessor


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


@overload
def load_model(
    name: StrPath,
    *,
    use: Literal["text"],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    modalities: Literal["any", "both"] = "any",
) -> tuple[CavMaeSyncTextDualEncoderModel, CavMaeSyncProcessor]: ...


def load_model(
    name: StrPath,
    *,
    use: Literal["embedding", "classification", "pretraining", "text"] = "embedding",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    modalities: Literal["any", "both"] = "any",
) -> tuple[Any, CavMaeSyncProcessor]:
    """A model in evaluation mode, and its processor, from a folder or the Hub.

    Args:
        name: Folder of a saved model, Hub repository as `OWNER/NAME` or `hf://OWNER/NAME`, with `@REVISION` for a
            branch, tag or commit of it, `published:NAME` for weights of the methods' authors
            (`cavmae_sync_hf.convert.published_weights` lists them; fetched and converted once), or `example` for the
            small model that comes with the package. The Hub is asked for nothing else.
        use: `"embedding"` loads the encoder of any checkpoint, of a model with text the audio-visual model inside;
            `"classification"` and `"pretraining"` need a checkpoint that has that head, `"text"` one of a
            `CavMaeSyncTextDualEncoderModel` with its tokenizer.
        device: Where the model goes, `"auto"` for the first of CUDA, MPS and CPU that this machine has; inputs that
            you hand to it yourself have to go there, too.
        dtype: Of its weights.
        modalities: `"both"` refuses models of one tower, for uses that compare audio and video.

    Raises:
        ModelError: There is no such model, it is of another kind, or lacks what the use needs.
    """
    return load_torch_model(name, use=use, device=device, dtype=dtype, modalities=modalities)
