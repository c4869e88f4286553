# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The training of a classifier as one call: `cavmae-sync finetune`.

`torchrun -m cavmae_sync_hf.training.finetune` and `accelerate launch -m` start the same command on several processes.
"""

from collections.abc import Sequence

from .base import run_to_end, start_run
from .classification import CavMaeSyncClassificationTrainer
from .classification_arguments import ClassificationArguments
from .initialization import build_classifier, find_labels, starting_point
from .sets import augmentation_options, build_sets
from .settings import ClassificationModelArguments, DataArguments


def finetune(words: Sequence[str]) -> int:
    """Train a classifier by a recipe and flags.

    Args:
        words: As for `parse_arguments`, with the fields of `ClassificationModelArguments`, `DataArguments` and
            `ClassificationArguments`.

    Returns:
        The status to exit with, see `run_to_end`.

    Raises:
        CavMaeSyncError: The recipe, a flag, the model, the data or the output folder cannot be used.
    """
    kinds = (ClassificationModelArguments, DataArguments, ClassificationArguments)
    model_arguments, data_arguments, training_arguments = start_run(kinds, words, "classification")
    start = starting_point(model_arguments)
    train_set, evaluation_sets = build_sets(data_arguments, start.processor, training_arguments)
    labels = find_labels(train_set, evaluation_sets, model_arguments.class_names, model_arguments.problem_type)
    model = build_classifier(start, labels, model_arguments, training_arguments.seed)
    trainer = CavMaeSyncClassificationTrainer(
        model,
        training_arguments,
        processor=start.processor,
        augmentation=augmentation_options(data_arguments.augmentation),
        base_model=model_arguments.init_from,
        train_dataset=train_set,
        evaluation_sets=evaluation_sets,
    )
    return run_to_end(trainer)


if __name__ == "__main__":
    from cavmae_sync_command import main

    main("finetune")
