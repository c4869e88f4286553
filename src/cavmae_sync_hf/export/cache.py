# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Exports that tools make of a model when they first run it in ONNX Runtime, and find again.

Each lies in a folder of the user's cache that is named after all that decides it: configuration, weights, precision
and the version of the format. It may be removed at any time.
"""

import contextlib
import gc
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file

from ..files import (
    file_digest,
    locked,
    parse_json,
    remove_partial,
    user_cache,
    whole_folder,
    write_json,
    write_text,
    writing,
)
from ..inference.loading import load_torch_model, model_folder, read_model
from ..model.configuration_text_cavmae_sync import audio_visual_config
from ..model.errors_cavmae_sync import ExportError, ModelError
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..provenance import folder_digest, weights_fingerprint
from .folder import DESCRIPTION, FORMAT_VERSION, export_model
from .onnx_models import OnnxModel, OnnxTextModel, OnnxTower
from .tower_files import require_onnx

# Of the folders' names and of what lies in them beside an export; another one is made anew.
_CACHE_VERSION = 1
_RECORD = "cache.json"
_PARTS = "text_parts.safetensors"
_PART_NAMES = ("video_gate.", "projections.", "moment_logit_scale", "moment_logit_bias")
_PATIENCE_SECONDS = 3600.0


def load_onnx_model(
    name: str,
    *,
    use: Literal["embedding", "text"],
    modalities: Literal["any", "both"],
    precision: Literal["float32", "int8"],
    progress: Callable[..., None] | None = None,
) -> tuple[Any, CavMaeSyncProcessor]:
    """A model whose towers run in ONNX Runtime, and its processor; arguments and errors as of `loading.load_model`."""
    require_onnx("onnxruntime")
    name, outer, processor = read_model(name, use=use, modalities=modalities)
    folder = cached_export(name, use=use, precision=precision, progress=progress)
    try:
        record, description = (parse_json((folder / file).read_text("utf-8")) for file in (_RECORD, DESCRIPTION))
        checkpoint = description["checkpoint"] | {"name": name}
        exported = {"backend": "onnx", "precision": precision, "weights": record["weights"], "checkpoint": checkpoint}
        config = audio_visual_config(outer)
        grids = {"audio": config.audio_grid, "video": config.video_grid, "text": None}
        towers = {}
        for modality, entry in description["towers"].items():
            file = (entry["int8"] if precision == "int8" else entry)["file"]
            towers[modality] = OnnxTower(entry, folder / file, grids[modality])
        parts = load_file(folder / _PARTS) if use == "text" else {}
    except (OSError, ValueError, KeyError) as error:  # removed, or changed, since it was looked through
        raise ExportError(f"{folder}: cannot be read ({error}); run the same again.") from error
    text = towers.pop("text", None)
    config._name_or_path = name
    model = OnnxModel(config, towers, exported)
    return (model if text is None else OnnxTextModel(outer, model, text, parts)), processor


def cached_export(
    name: str,
    *,
    use: Literal["embedding", "text"] = "embedding",
    precision: Literal["float32", "int8"] = "float32",
    progress: Callable[..., None] | None = None,
) -> Path:
    """The folder of a model's export, made now where it is not there, or not whole.

    Args:
        name: Of the model, as `loading.load_model` takes it.
        use: `"embedding"` for audio and video, `"text"` for the text tower, too.
        precision: Of the weights.
        progress: As of `export_model`; called only where the export is made.

    Raises:
        ExportError: The model cannot be exported.
        DiskError: The cache cannot be written to.
        LockedError: Another run has been exporting it for an hour.
    """
    place = model_folder(name)
    key = _key(place, use, precision)
    own = user_cache() / "exports" / key[:32]
    folder = own / "towers"
    if _is_whole(folder):
        return folder
    with writing(own):
        own.mkdir(parents=True, exist_ok=True)
    with locked(own / ".lock", own, patience=_PATIENCE_SECONDS):
        if not _is_whole(folder):
            remove_partial(own)  # of a run that was killed
            _make(name, folder, use=use, precision=precision, progress=progress)
    return folder


def _key(place: Path, use: str, precision: str) -> str:
    """Checksum of all that decides an export."""
    config = parse_json((place / "config.json").read_text("utf-8"))
    inner = config.get("av_config") or config
    sources = [inner.get(f"{modality}_encoder_source") for modality in ("audio", "video")]
    facts = {
        "versions": [_CACHE_VERSION, FORMAT_VERSION],
        "use": use,
        "precision": precision,
        "config": config,
        "weights": _weights_digest(place),
        # Of encoders that are saved by reference.
        "encoders": [
            _weights_digest(Path(source)) if source and Path(source).is_dir() else source for source in sources
        ],
    }
    return _digest(facts)


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _weights_digest(place: Path) -> str:
    """Checksum of a folder's weights, noted for files that have not changed: reading them all takes seconds."""
    states = [(os.path.realpath(path), *_state(path)) for path in sorted(place.glob("*.safetensors"))]
    note = user_cache() / "exports" / "weights" / _digest(states)[:32]
    with contextlib.suppress(OSError):
        return note.read_text("utf-8")
    digest = folder_digest(place)
    if digest is None:
        raise ModelError(f"{place} holds no weights (model.safetensors); save the model anew.")
    with contextlib.suppress(OSError):  # a cache that is read alone
        write_text(note, digest)
    return digest


def _state(path: Path) -> list[int]:
    """Size and time of a file, which are others once it has been written to."""
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _make(
    name: str, folder: Path, *, use: Literal["embedding", "text"], precision: str, progress: Callable[..., None] | None
) -> None:
    require_onnx("onnx", "onnxscript", "onnxruntime")
    model, processor = load_torch_model(name, use=use)
    with whole_folder(folder) as made:
        description = export_model(model, processor, made, int8=precision == "int8", progress=progress)
        if precision == "int8":
            for entry in description["towers"].values():
                for file in (entry["file"], entry.get("data_file")):
                    if file is not None:
                        (made / file).unlink()
        if use == "text":
            weights = {key: value for key, value in model.state_dict().items() if key.startswith(_PART_NAMES)}
            save_file({key: value.contiguous() for key, value in weights.items()}, made / _PARTS)
        files = {path.name: [*_state(path), file_digest(path)] for path in sorted(made.iterdir())}
        write_json(made / _RECORD, {"weights": weights_fingerprint(model.base_model), "files": files})
    del model
    gc.collect()


def _is_whole(folder: Path) -> bool:
    """Whether all files are there, as they were written."""
    try:
        files = parse_json((folder / _RECORD).read_text("utf-8"))["files"]
        return all(
            _state(folder / name) == state or file_digest(folder / name) == digest
            for name, (*state, digest) in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
