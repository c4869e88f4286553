# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Pretraining of CAV-MAE Sync or CAV-MAE as one call: `cavmae-sync pretrain`.

`torchrun -m cavmae_sync_hf.training.pretrain` and `accelerate launch -m` start the same command on several processes.
"""

from collections.abc import Sequence
from typing import Any

from accelerate import PartialState

from ..model.errors_cavmae_sync import TrainingError
from .arguments import PretrainingArguments
from .base import run_to_end, start_run
from .initialization import build_for_pretraining
from .pretraining import CavMaeSyncTrainer
from .sets import build_sets, counter
from .settings import DataArguments, ModelArguments
from .token_cache import keep_tokens


def pretrain(words: Sequence[str]) -> int:
    """Pretrain by a recipe and flags.

    Args:
        words: As for `parse_arguments`, with the fields of `ModelArguments`, `DataArguments` and
            `PretrainingArguments`.

    Returns:
        The status to exit with, see `run_to_end`.

    Raises:
        CavMaeSyncError: The recipe, a flag, the model, the data or the output folder cannot be used.
    """
    kinds = (ModelArguments, DataArguments, PretrainingArguments)
    model_arguments, data_arguments, training_arguments = start_run(kinds, words, "pretraining")
    model, processor = build_for_pretraining(model_arguments, training_arguments.seed)
    train_set: Any
    train_set, evaluation_sets = build_sets(data_arguments, processor, training_arguments)
    if data_arguments.token_dir:
        if training_arguments.teacher_momentum:
            raise TrainingError("A teacher sees the clips themselves; leave out `token_dir` or `teacher_momentum`.")
        train_set = keep_tokens(
            model,
            train_set,
            data_arguments.token_dir,
            device=training_arguments.device,
            num_workers=training_arguments.dataloader_num_workers,
            rank=training_arguments.process_index,
            world_size=training_arguments.world_size,
            wait=PartialState().wait_for_everyone,
            progress=counter("clips with tokens"),
        )
    trainer = CavMaeSyncTrainer(
        model, training_arguments, processor=processor, train_dataset=train_set, evaluation_sets=evaluation_sets
    )
    return run_to_end(trainer)


if __name__ == "__main__":
    from cavmae_sync_command import main

    main("pretrain")
