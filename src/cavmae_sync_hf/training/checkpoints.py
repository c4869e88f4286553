# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of the epochs of a run, and the mean of several as one model."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..convert.reading import not_finite
from ..files import StrPath, parse_json, whole_folder
from ..model.errors_cavmae_sync import TrainingError
from .earlier_run import CHECKPOINT, TRAINER_STATE

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# What belongs to a run and not to the model.
_RUN_FILES = ("optimizer.*", "scheduler.*", "rng_state*", "trainer_state.json", "training_args.bin", "data_state.json",
              "scaler.pt", "README.md", "model*.safetensors*", "global_step*", "pytorch_model*")  # fmt: skip


def checkpoints_of_epochs(output_dir: StrPath, first: int, last: int) -> list[Path]:
    """The checkpoints that a run wrote at the ends of its epochs `first` to `last`, both included.

    Args:
        output_dir: Of the run, which was trained with `save_strategy="epoch"`.
        first: Counted from 1.
        last: As `first`.

    Raises:
        TrainingError: There is no checkpoint of one of these epochs.
    """
    found: dict[int, Path] = {}
    for folder in Path(output_dir).glob(f"{CHECKPOINT}-*"):
        try:
            epoch = float(parse_json((folder / TRAINER_STATE).read_text(encoding="utf-8"))["epoch"])
        except (OSError, ValueError, KeyError):
            continue  # begun and not finished
        if abs(epoch - round(epoch)) < 1e-6:
            found[round(epoch)] = folder
    missing = [str(epoch) for epoch in range(first, last + 1) if epoch not in found]
    if missing:
        raise TrainingError(
            f"{output_dir}: holds no checkpoint of the end of epoch {', '.join(missing)} (but of "
            f"{', '.join(map(str, sorted(found))) or 'none'}); train with `save_strategy: epoch` and a "
            "`save_total_limit` that keeps them."
        )
    return [found[epoch] for epoch in range(first, last + 1)]


def average_weights(
    folders: Sequence[StrPath], progress: Callable[[int, int], None] | None = None
) -> dict[str, Tensor]:
    """The mean of each weight over several checkpoints of one model, computed in float64.

    Only one weight of each checkpoint is held at a time. What is no floating-point number must be the same in all.

    Args:
        folders: Saved models.
        progress: Called with the weights done and all weights.

    Returns:
        Name -> mean, in the checkpoints' own precision.

    Raises:
        TrainingError: A folder holds no whole model, or a model of other weights than the first.
    """
    if not folders:
        raise TrainingError("There are no checkpoints to average.")
    with ExitStack() as stack:
        readers = [_open(Path(folder), stack) for folder in folders]
        names = sorted(readers[0])
        for folder, reader in zip(folders, readers, strict=True):
            other = sorted(set(reader) ^ set(names))
            if other:
                raise TrainingError(f"{folder}: has other weights than {folders[0]}: {', '.join(other[:5])}.")
        means = {}
        for done, name in enumerate(names, 1):
            means[name] = _mean(name, [reader[name].get_tensor(name) for reader in readers], folders)
            if progress is not None:
                progress(done, len(names))
    return means


def average_checkpoints(
    folders: Sequence[StrPath],
    out: StrPath,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a model folder with the mean of several checkpoints' weights, as published CAV-MAE takes it.

    Configuration, processor and code are those of the last checkpoint. The folder appears when all of it is written.

    Args:
        folders: Saved models, such as those of `checkpoints_of_epochs`.
        out: Where to; must not exist, or be empty.
        progress: As of `average_weights`.

    Returns:
        The folder; `from_pretrained` takes it.

    Raises:
        TrainingError: As of `average_weights`, or `out` holds something.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise TrainingError(f"{target}: already exists and is not an empty folder; name another one, or remove it.")
    means = average_weights(folders, progress)
    with whole_folder(target, overwrite=False) as folder:
        shutil.copytree(folders[-1], folder, ignore=shutil.ignore_patterns(*_RUN_FILES), dirs_exist_ok=True)
        save_file(means, folder / _WEIGHTS, metadata={"format": "pt"})
    return target


def _open(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Name of each weight -> the open file that holds it."""
    try:
        if (folder / _INDEX).is_file():
            places = parse_json((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
            files = {file: stack.enter_context(safe_open(folder / file, "pt")) for file in set(places.values())}
            return {name: files[file] for name, file in places.items()}
        reader = stack.enter_context(safe_open(folder / _WEIGHTS, "pt"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if (folder / "adapter_config.json").is_file():
            raise TrainingError(
                f"{folder}: holds low-rank changes (LoRA) and no whole model; their mean is not the change to the "
                "mean. Merge each into a model first, or train without LoRA."
            ) from error
        raise TrainingError(f"{folder}: holds no whole model ({error}); name folders of saved models.") from error
    return dict.fromkeys(reader.keys(), reader)


def _mean(name: str, tensors: list[Tensor], folders: Sequence[StrPath]) -> Tensor:
    first = tensors[0]
    for folder, tensor in zip(folders, tensors, strict=True):
        if tensor.shape != first.shape:
            raise TrainingError(
                f"{folder}: `{name}` has shape {tuple(tensor.shape)}, in {folders[0]} {tuple(first.shape)}; average "
                "checkpoints of one model."
            )
        if not_finite({name: tensor}):
            raise TrainingError(f"{folder}: `{name}` holds NaN or infinite values; leave this checkpoint out.")
        if not first.is_floating_point() and not torch.equal(tensor, first):
            raise TrainingError(f"{folder}: `{name}` holds other numbers than in {folders[0]} and has no mean.")
    if not first.is_floating_point():
        return first
    total = torch.zeros(first.shape, dtype=torch.float64)
    for tensor in tensors:
        total += tensor
    return (total / len(tensors)).to(first.dtype)
