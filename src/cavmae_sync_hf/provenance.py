# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Weights, processors, packages and versions that a result comes from."""

import hashlib
import importlib
import importlib.metadata
import json
import platform
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .files import StrPath, file_digest

if TYPE_CHECKING:  # `cavmae-sync --version` does not wait for torch
    import torch
    from transformers import PreTrainedModel

__all__ = [
    "backend_of",
    "checkpoint_record",
    "folder_digest",
    "install_line",
    "model_fingerprint",
    "package_version",
    "require_package",
    "software_versions",
    "weights_fingerprint",
]

_PACKAGES = ("cavmae-sync-hf", "torch", "torchvision", "transformers", "numpy", "av")
_WEIGHTS = "model*.safetensors"
# What says nothing of the features: where a model came from and by which version it was written.
_INCIDENTAL = frozenset({"_name_or_path", "architectures", "auto_map", "transformers_version", "label2id", "id2label"})
# Values of the configuration that change vectors without showing in the weights.
_ARCHITECTURE = (
    "num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size", "image_size", "position_embedding_type",
    "use_global_tokens", "num_register_tokens", "num_joint_layers", "num_contrastive_head_layers",
)  # fmt: skip
# Hashing a large model takes longer than a search; weights that change in place get another version.
_known_fingerprints: weakref.WeakKeyDictionary[Any, tuple[int, str]] = weakref.WeakKeyDictionary()


def install_line(extra: str) -> str:
    """The command that brings an extra, in a clone and beside an installed wheel: pip knows what it has installed."""
    return f"pip install 'cavmae-sync-hf[{extra}]'"


def require_package(name: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Args:
        name: What is imported, such as `"sklearn.metrics"`.
        extra: The extra of this package that brings it.
        purpose: What needs it, as the beginning of a sentence: `"Average precision"`.

    Raises:
        ImportError: It is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{purpose} needs {name.split('.')[0]}: {install_line(extra)} ({error}).") from error


def package_version() -> str:
    """Version of this package; `"0+unknown"` when it runs from a source tree that is not installed."""
    try:
        return importlib.metadata.version("cavmae-sync-hf")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def software_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a metric depends on; a package that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def checkpoint_record(model: "PreTrainedModel") -> dict[str, Any]:
    """Which weights these are.

    Returns:
        `name` as it was loaded, `class`, `parameters`, and `sha256` of what `sha256_of` says: the weights' file where
        the model came from a folder or the Hub (`sha256sum` gives the same; of several files, of the lines that it
        prints), else of the tensors in memory. Of a model in ONNX Runtime, those of the model it was made from.
    """
    exported = _exported(model)
    if exported is not None:
        return dict(exported["checkpoint"])
    name = str(getattr(model, "name_or_path", "") or getattr(model.config, "_name_or_path", ""))
    record: dict[str, Any] = {"name": name or None, "class": type(model).__name__}
    record["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    files = _weight_files(name)
    if files:
        what = files[0].name if len(files) == 1 else f"{len(files)} files"
        return record | {"sha256": _files_digest(files), "sha256_of": what}
    digest = hashlib.sha256()
    _add_tensors(digest, model.state_dict(), lambda name, tensor: f"{name} {tensor.dtype} {tuple(tensor.shape)}\n")
    return record | {"sha256": digest.hexdigest(), "sha256_of": "tensors"}


def folder_digest(folder: StrPath) -> str | None:
    """Checksum of a model folder's weights, as `checkpoint_record` has it; `None` where there are none."""
    files = sorted(Path(folder).glob(_WEIGHTS))
    return _files_digest(files) if files else None


def backend_of(model: Any) -> dict[str, str]:
    """What runs a model, and in which precision: `{"backend": "torch", "precision": "float32"}`."""
    exported = _exported(model)
    if exported is not None:
        return {"backend": exported["backend"], "precision": exported["precision"]}
    return {"backend": "torch", "precision": str(model.dtype).removeprefix("torch.")}


def _exported(model: Any) -> "Mapping[str, Any] | None":
    """What a model that PyTorch does not run says of the one that it was made from."""
    found: Mapping[str, Any] | None = getattr(getattr(model, "base_model", model), "exported", None)
    return found


def model_fingerprint(model: "PreTrainedModel", processor: Any) -> str:
    """Checksum of all that decides a model's features: weights, their type, configuration and processor.

    Args:
        model: Any model of transformers.
        processor: A `CavMaeSyncProcessor`, or what prepares the inputs of another model.
    """
    digest = hashlib.sha256()
    names = ("feature_extractor", "video_processor")
    parts = [getattr(processor, name) for name in names if hasattr(processor, name)] or [processor]
    for part in (model.config, *parts):
        settings = {key: value for key, value in part.to_dict().items() if key not in _INCIDENTAL}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    exported = _exported(model)
    if exported is not None:
        digest.update("{backend} {precision} {weights}".format(**exported).encode())
        return digest.hexdigest()
    _add_tensors(digest, model.state_dict(), lambda name, tensor: f"{name} {tensor.dtype} {tuple(tensor.shape)}")
    return digest.hexdigest()


def weights_fingerprint(model: "PreTrainedModel") -> str:
    """Checksum of a model's encoder, alike in every precision; heads and decoder do not count.

    Weights count in bfloat16, so that an index made in half precision on a GPU can be searched in single precision
    elsewhere: vectors of both agree to the precision in which they are stored.
    """
    exported = _exported(model)
    if exported is not None:
        return str(exported["weights"])
    import torch

    base = getattr(model, model.base_model_prefix, model)
    version = sum(tensor._version for tensor in base.parameters() if not tensor.is_inference())
    if _known_fingerprints.get(base, (-1, ""))[0] == version:
        return _known_fingerprints[base][1]
    architecture = [getattr(model.config, name) for name in _ARCHITECTURE]
    encoders = getattr(model.config, "encoders", {})
    if encoders:
        names = [f"{modality}_encoder_{what}" for modality in encoders for what in ("layer", "mean", "std")]
        architecture += [getattr(model.config, name) for name in (*names, "audio_context")]
        if model.config.audio_context == "clip":
            architecture.append(model.config.heard_length)
        for _, config in sorted(encoders.items()):
            architecture.append({key: value for key, value in config.to_dict().items() if key not in _INCIDENTAL})
    digest = hashlib.sha256(json.dumps(architecture, default=str).encode())
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in base.state_dict().items()}
    _add_tensors(digest, tensors, lambda name, tensor: f"{name} {tuple(tensor.shape)}")
    _known_fingerprints[base] = (version, digest.hexdigest())
    return digest.hexdigest()


def _add_tensors(
    digest: Any, tensors: "Mapping[str, torch.Tensor]", heading: "Callable[[str, torch.Tensor], str]"
) -> None:
    """Add named tensors to a checksum, in the order of their names."""
    import torch

    for name, tensor in sorted(tensors.items()):
        digest.update(heading(name, tensor).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _weight_files(name: str) -> list[Path]:
    """The files of a checkpoint: of a folder, or of the Hub's cache."""
    if not name:
        return []
    if Path(name).is_dir():
        return sorted(Path(name).glob(_WEIGHTS))
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except ValueError:  # not the name of a repository
        return []
    return sorted(Path(cached).parent.glob(_WEIGHTS)) if isinstance(cached, str) else []


def _files_digest(files: list[Path]) -> str:
    if len(files) == 1:
        return file_digest(files[0])
    lines = "".join(f"{file_digest(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()
