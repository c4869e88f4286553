# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of a run: the newest whole one, those of epochs, and the mean of several as one model."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..convert.reading import not_finite
from ..files import StrPath, parse_json, whole_folder
from ..model.errors_cavmae_sync import AlreadyExistsError, Hint, TrainingError, printable
from .arguments import RunArguments

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# What belongs to a run and not to the model.
_RUN_FILES = ("optimizer.*", "scheduler.*", "rng_state*", "trainer_state.json", "training_args.bin", "data_state.json",
              "scaler.pt", "README.md", "model*.safetensors*", "global_step*", "pytorch_model*")  # fmt: skip

# What an earlier run left that a new one would replace.
_RESULTS, _PLOTS = ("model*.safetensors*", "metrics.json"), "plots/*.png"


def last_checkpoint(folder: StrPath | None) -> Path | None:
    """The newest checkpoint of an output folder that was written to its end; `None` where there is none.

    A run that is killed while it saves leaves a checkpoint without (or with half) the trainer's state, which is
    written last.
    """
    found = []
    for path in Path(folder or ".").glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rpartition("-")[2]
        try:
            parse_json((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if number.isdigit():
            found.append((int(number), path))
    return max(found)[1] if found else None


def check_output(arguments: RunArguments) -> str | None:
    """Find out where a run begins, and refuse an output folder whose contents it would replace.

    Args:
        arguments: Of the run. `resume_from_checkpoint="auto"` stands for the newest whole checkpoint, if there is one.

    Returns:
        The checkpoint to go on from; `None` where the run starts anew.

    Raises:
        AlreadyExistsError: The folder holds an earlier run, which is neither resumed nor to be replaced.
    """
    folder, resume = Path(str(arguments.output_dir)), arguments.resume_from_checkpoint
    checkpoint = last_checkpoint(folder)
    if resume == "auto" and checkpoint is not None:
        return str(checkpoint)
    if resume != "auto" and resume is not None:
        return resume
    # One that was stopped before its first checkpoint has plots at most, and is begun again.
    patterns = _RESULTS if resume == "auto" else (*_RESULTS, _PLOTS)
    kept = checkpoint or next((entry for pattern in patterns for entry in sorted(folder.glob(pattern))), None)
    if kept is not None and not arguments.overwrite:
        hints = [Hint("resume_from_checkpoint", "auto", "go on with it")] if checkpoint is not None else []
        raise AlreadyExistsError(
            f"{printable(str(folder))}: holds an earlier run ({kept.name}); name another output_dir.",
            hint=(*hints, Hint("overwrite", True, "start anew and replace it")),
        )
    return None


def remove_checkpoints(folder: StrPath) -> None:
    """Remove the checkpoints of an earlier run, which the next run would take for its own."""
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if path.name.rpartition("-")[2].isdigit():
            shutil.rmtree(path, ignore_errors=True)


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
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            epoch = float(parse_json((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["epoch"])
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
