# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Pretraining of CAV-MAE Sync or CAV-MAE as one call: `cavmae-sync pretrain`.

`torchrun -m cavmae_sync_hf.training.pretrain` and `accelerate launch -m` start the same command on several processes.
"""

from collections.abc import Sequence
from typing import Any

from accelerate import PartialState
from transformers.utils import logging

from ..hub import register_auto_classes
from ..model.errors_cavmae_sync import TrainingError
from .arguments import PretrainingArguments, parse_arguments
from .base import run_to_end
from .earlier_run import check_output
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
    register_auto_classes()
    kinds = (ModelArguments, DataArguments, PretrainingArguments)
    model_arguments, data_arguments, training_arguments = parse_arguments(kinds, words, "pretraining")
    logging.set_verbosity(training_arguments.get_process_log_level())
    check_output(training_arguments)  # before the work, not after it

    model, processor = build_for_pretraining(model_arguments, training_arguments.seed)
    with training_arguments.main_process_first(desc="data preparation"):
        train_set: Any
        train_set, evaluation_sets = build_sets(
            data_arguments,
            processor,
            seed=training_arguments.seed,
            batch_size=training_arguments.per_device_train_batch_size,
            is_main=training_arguments.process_index == 0,
        )
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
