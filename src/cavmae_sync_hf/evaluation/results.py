# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What does a results file say, so that a figure can be checked and taken again?"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "ResultsError",
    "check_target",
    "checkpoint_record",
    "folder_digest",
    "make_record",
    "read_results",
    "software_versions",
    "write_results",
]

FORMAT = "cavmae-sync-results"
FORMAT_VERSION = 1
_PACKAGES = ("cavmae-sync-hf", "torch", "torchvision", "transformers", "numpy", "av")
_WEIGHTS = "model*.safetensors"
# What a reader of a record relies on.
_KEYS = ("task", "protocol", "metrics", "counts", "checkpoint", "data", "versions", "date")


class ResultsError(ValueError):
    """A results file cannot be read or written; the message names it, the reason and the remedy."""


def software_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a figure depends on; a package that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def checkpoint_record(model: Any) -> dict[str, Any]:
    """Which weights these are.

    Returns:
        `name` as it was loaded, `class`, `parameters`, and `sha256` of what `sha256_of` says: the weights' file where
        the model came from a folder or the Hub (`sha256sum` gives the same; of several files, of the lines that it
        prints), else of the tensors in memory.
    """
    name = str(getattr(model, "name_or_path", "") or getattr(model.config, "_name_or_path", ""))
    record: dict[str, Any] = {"name": name or None, "class": type(model).__name__}
    record["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    files = _weight_files(name)
    if files:
        what = files[0].name if len(files) == 1 else f"{len(files)} files"
        return record | {"sha256": _files_digest(files), "sha256_of": what}
    return record | {"sha256": _tensor_digest(model), "sha256_of": "tensors"}


def folder_digest(folder: str | os.PathLike[str]) -> str | None:
    """Checksum of a model folder's weights, as `checkpoint_record` has it; `None` where there are none."""
    files = sorted(Path(folder).glob(_WEIGHTS))
    return _files_digest(files) if files else None


def _files_digest(files: list[Path]) -> str:
    if len(files) == 1:
        return _file_digest(files[0])
    lines = "".join(f"{_file_digest(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


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


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensor_digest(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make_record(
    task: str,
    protocol: Any,
    metrics: Mapping[str, float | int],
    *,
    model: Any,
    data: Mapping[str, Any],
    counts: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    seeds: Mapping[str, int] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """A results record, plain values all through.

    Args:
        task: `"retrieval"`, `"classification"`, `"localization"` or `"sync"`.
        protocol: A protocol of `evaluation.protocols`.
        metrics: Figures by name. What is not finite becomes `None`, since JSON has no other word for it.
        model: What was evaluated.
        data: `name`, `kind`, `fingerprint` and what else tells the data.
        counts: `clips_seen` of `clips_expected`, `missing` and `unusable` clips.
        settings: What else a figure may depend on, such as the precision.
        seeds: Of random choices; empty where nothing was drawn.
        command: The command line.
    """
    seen, expected = counts["clips_seen"], counts["clips_expected"]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "task": task,
        "protocol": protocol.to_dict(),
        "metrics": {key: _plain(value) for key, value in metrics.items()},
        "counts": dict(counts),
        "complete": seen == expected,
        "checkpoint": checkpoint_record(model),
        "data": dict(data),
        "settings": {
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            **(settings or {}),
        },
        "seeds": dict(seeds or {}),
        "versions": software_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def _plain(value: Any) -> float | int | None:
    if isinstance(value, bool | int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def write_results(path: str | os.PathLike[str], record: Mapping[str, Any]) -> Path:
    """Write a record as JSON; the file is there whole or not at all, and replaces an earlier results file.

    Raises:
        ResultsError: The path is a folder, or a file that holds something else.
    """
    target = Path(path).expanduser()
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    handle, scratch = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes files private; others may read results as they may read what is beside them.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(scratch, 0o666 & ~umask)
        os.replace(scratch, target)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    return target


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a path that `write_results` would refuse, before there is anything to write.

    Raises:
        ResultsError: As `write_results`.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        raise ResultsError(f"{target} is a folder; name the file to write, such as {target / 'results.json'}.")
    if target.exists():
        try:
            read_results(target)
        except ResultsError as error:
            raise ResultsError(
                f"{target} exists and holds no results, so it is not replaced; name another file."
            ) from error


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a results file.

    Raises:
        ResultsError: There is no such file, or it holds no results.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror or error}); name a results file.") from error
    except ValueError as error:
        raise ResultsError(f"{path}: is not JSON ({error}); name a file that `cavmae-sync evaluate` wrote.") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ResultsError(f"{path}: holds no results; name a file that `cavmae-sync evaluate` wrote.")
    if record.get("format_version") != FORMAT_VERSION:
        raise ResultsError(
            f"{path}: has format version {record.get('format_version')}, this package reads {FORMAT_VERSION}; "
            "evaluate again."
        )
    lacking = [key for key in _KEYS if key not in record]
    if lacking:
        raise ResultsError(f"{path}: lacks {', '.join(lacking)}; evaluate again.")
    return record
