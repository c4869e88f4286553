# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A model's name becomes a model and its processor, fit for a use."""

import os
from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack, cast, overload

import torch

from .export.cache import load_onnx_model
from .files import StrPath
from .inference.loading import load_torch_model
from .model.errors_cavmae_sync import Hint, ModelError
from .model.modeling_cavmae_sync import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
)
from .model.modeling_lm_cavmae_sync import CavMaeSyncForConditionalGeneration
from .model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel
from .model.processing_cavmae_sync import CavMaeSyncProcessor
from .model.processing_lm_cavmae_sync import CavMaeSyncLMProcessor

Backend = Literal["torch", "onnx"]
Precision = Literal["float32", "bfloat16", "int8"]
_PRECISIONS = {"torch": ("float32", "bfloat16"), "onnx": ("float32", "int8")}


class LoadOptions(TypedDict, total=False):
    """What `load_model` takes beside the name and the use; see there."""

    device: str | torch.device
    dtype: torch.dtype | None
    modalities: Literal["any", "both"]
    backend: Backend
    precision: Precision
    progress: Callable[..., None] | None


@overload
def load_model(
    name: StrPath, *, use: Literal["embedding"] = ..., **options: Unpack[LoadOptions]
) -> tuple[CavMaeSyncModel, CavMaeSyncProcessor]: ...


@overload
def load_model(
    name: StrPath, *, use: Literal["classification"], **options: Unpack[LoadOptions]
) -> tuple[CavMaeSyncForAudioVisualClassification, CavMaeSyncProcessor]: ...


@overload
def load_model(
    name: StrPath, *, use: Literal["pretraining"], **options: Unpack[LoadOptions]
) -> tuple[CavMaeSyncForPreTraining, CavMaeSyncProcessor]: ...


@overload
def load_model(
    name: StrPath, *, use: Literal["text"], **options: Unpack[LoadOptions]
) -> tuple[CavMaeSyncTextDualEncoderModel, CavMaeSyncProcessor]: ...


@overload
def load_model(
    name: StrPath, *, use: Literal["answer"], **options: Unpack[LoadOptions]
) -> tuple[CavMaeSyncForConditionalGeneration, CavMaeSyncLMProcessor]: ...


def load_model(
    name: StrPath,
    *,
    use: Literal["embedding", "classification", "pretraining", "text", "answer"] = "embedding",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    modalities: Literal["any", "both"] = "any",
    backend: Backend = "torch",
    precision: Precision = "float32",
    progress: Callable[..., None] | None = None,
) -> tuple[Any, Any]:
    """A model in evaluation mode, and its processor, from a folder or the Hub.

    Args:
        name: Folder of a saved model, Hub repository as `OWNER/NAME` or `hf://OWNER/NAME`, with `@REVISION` for a
            branch, tag or commit of it, `published:NAME` for weights of the methods' authors
            (`cavmae_sync_hf.convert.published_weights` lists them; fetched and converted once), or `example` for the
            small model that comes with the package. The Hub is asked for nothing else.
        use: `"embedding"` loads the encoder of any checkpoint, of a model with text or with a language model the
            audio-visual model inside; `"classification"` and `"pretraining"` need a checkpoint that has that head,
            `"text"` one of a `CavMaeSyncTextDualEncoderModel` with its tokenizer, `"answer"` one of a
            `CavMaeSyncForConditionalGeneration` with its `CavMaeSyncLMProcessor`.
        device: Where the model goes, `"auto"` for the first of CUDA, MPS and CPU that this machine has; inputs that
            you hand to it yourself have to go there, too.
        dtype: Of its weights, in place of `precision`; in PyTorch alone.
        modalities: `"both"` refuses models of one tower, for uses that compare audio and video.
        backend: `"torch"`, or `"onnx"` for towers that ONNX Runtime runs on this machine's processor: exported and
            checked as by `cavmae-sync export` when they are first asked for, and kept in the user's cache. Such a
            model embeds audio, frames and texts; it cannot be trained, nor say what depends on which patch.
        precision: `"float32"` or `"bfloat16"` of `"torch"`, `"float32"` or `"int8"` of `"onnx"`.
        progress: Called with steps done, their number and what is being done, where the model is exported.

    Raises:
        ExportError: The model cannot be exported.
        ImportError: `backend="onnx"` without the `export` extra.
        ModelError: There is no such model, it is of another kind, or lacks what the use needs; or backend, precision,
            device and use do not go together.
    """
    _check_backend(backend, precision, dtype)
    if backend == "torch":
        dtype = dtype or getattr(torch, precision)
        return load_torch_model(name, use=use, device=device, dtype=dtype, modalities=modalities)
    in_torch = Hint("backend", "torch", "run it in PyTorch")
    if use == "answer":
        raise ModelError("ONNX Runtime runs the towers alone, without the language model.", hint=in_torch)
    if use not in ("embedding", "text"):
        raise ModelError(f"ONNX Runtime runs the towers alone, without the {use} head that this needs.", hint=in_torch)
    if str(device) not in ("auto", "cpu"):
        raise ModelError(f"ONNX Runtime runs models on the CPU, and the device is {device}.", hint=in_torch)
    return load_onnx_model(
        os.fspath(name), use=use, modalities=modalities, precision=cast(Any, precision), progress=progress
    )


def _check_backend(backend: str, precision: str, dtype: torch.dtype | None) -> None:
    """Refuse what does not go together."""
    if backend not in _PRECISIONS:
        raise ModelError(f"There is no backend {backend!r}.", hint=Hint("backend", "torch", "run it in PyTorch"))
    known = _PRECISIONS[backend]
    if precision not in known:
        hints = [Hint("precision", "float32", "keep the model's own")]
        hints += [Hint("backend", name, "have it") for name, others in _PRECISIONS.items() if precision in others]
        raise ModelError(
            f"The backend {backend} runs models in {' or '.join(known)}, not {precision}.", hint=tuple(hints)
        )
    given = None if dtype is None else str(dtype).removeprefix("torch.")
    if given not in (None, precision) and (precision != "float32" or backend != "torch"):
        raise ModelError(f"`dtype` is {given} and `precision` {precision}; name one of them.")
