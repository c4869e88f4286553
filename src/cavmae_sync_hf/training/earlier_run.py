# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What an earlier run left in an output folder: whether there is a checkpoint to go on from, and what is in the way.

Nothing here loads torch, so that the command line tells a folder in use before anything is loaded.
"""

import shutil
from pathlib import Path

from ..files import StrPath, parse_json
from ..model.errors_cavmae_sync import AlreadyExistsError, Hint, printable
from .settings import RunSettings

# Names that transformers' Trainer gives; a test holds them to be its own.
CHECKPOINT, TRAINER_STATE = "checkpoint", "trainer_state.json"
# What a new run would replace.
_RESULTS, _PLOTS = ("model*.safetensors*", "metrics.json"), "plots/*.png"


def last_checkpoint(folder: StrPath | None) -> Path | None:
    """The newest checkpoint of an output folder that was written to its end; `None` where there is none.

    A run that is killed while it saves leaves a checkpoint without (or with half) the trainer's state, which is
    written last.
    """
    found = []
    for path in Path(folder or ".").glob(f"{CHECKPOINT}-*"):
        number = path.name.rpartition("-")[2]
        try:
            parse_json((path / TRAINER_STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if number.isdigit():
            found.append((int(number), path))
    return max(found)[1] if found else None


def check_output(arguments: RunSettings) -> str | None:
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
    for path in Path(folder).glob(f"{CHECKPOINT}-*"):
        if path.name.rpartition("-")[2].isdigit():
            shutil.rmtree(path, ignore_errors=True)
