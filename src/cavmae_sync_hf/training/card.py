# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What does the card of a trained model say about its training and its figures?"""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from ..model_card import CardDetails

__all__ = ["classification_details", "training_details"]

# What is worth a line in a card, by the end of a figure's name.
_ALIGNMENT = {
    "audio_to_video_r1": "recall at 1, sound to pictures",
    "video_to_audio_r1": "recall at 1, pictures to sound",
    "audio_to_video_r10": "recall at 10, sound to pictures",
    "video_to_audio_r10": "recall at 10, pictures to sound",
    "shift_accuracy": "true alignment told from shifted ones",
    "pair_accuracy": "right partner of two clips that differ in time alone",
}

_CLASSIFICATION = {
    "mean_average_precision": "mean average precision",
    "accuracy": "accuracy",
    "d_prime": "d-prime",
    "audio_mean_average_precision": "mean average precision, sound alone",
    "video_mean_average_precision": "mean average precision, picture alone",
}

_WHEN = "The figures are those of the evaluation after the last step."

_CLASSIFIER_USE = """\
Sorting clips into the classes that `config.json` lists, for search, statistics and sifting of collections. Test it on
your own data first: classes that the training clips did not show in all their kinds are missed, and a score is no
measured probability. It is not made to identify people, nor to decide about them."""


def training_details(
    settings: Any, metrics: Mapping[str, float], counts: Mapping[str, int], steps: int, processes: int, clips: int
) -> CardDetails:
    """The details of a card, from the run itself.

    Args:
        settings: The run's `PretrainingArguments`.
        metrics: Of the last evaluation, under `eval_SET_FIGURE`.
        counts: Clips of each evaluation set.
        steps: Optimiser steps made.
        processes: Processes that trained together.
        clips: Clips of the training set.
    """
    task = ("feature-extraction", "audio-visual alignment")
    results = _results(task, _ALIGNMENT, metrics, counts)
    return CardDetails(results=results, training=f"{_course(settings, steps, processes, clips)} {_WHEN}")


def classification_details(
    settings: Any,
    metrics: Mapping[str, float],
    counts: Mapping[str, int],
    steps: int,
    processes: int,
    clips: int,
    averaged: Sequence[int] | None = None,
) -> CardDetails:
    """The details of a classifier's card; as `training_details`.

    Args:
        settings: The run's `ClassificationArguments`.
        metrics, counts, steps, processes, clips: As of `training_details`.
        averaged: First and last epoch whose checkpoints were averaged, if any were.
    """
    task = ("video-classification", "audio-visual classification")
    training = _course(settings, steps, processes, clips)
    if settings.head_lr_multiple != 1:
        training += f" The head's rate was {settings.head_lr_multiple:g} times as high."
    if averaged:
        training += f" The weights are the mean of those after epochs {averaged[0]} to {averaged[1]}."
    return CardDetails(
        results=_results(task, _CLASSIFICATION, metrics, counts),
        training=f"{training} {_WHEN}",
        intended_use=_CLASSIFIER_USE,
    )


def _results(
    task: tuple[str, str], figures: Mapping[str, str], metrics: Mapping[str, float], counts: Mapping[str, int]
) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=task[0],
            task_name=task[1],
            dataset_type=name,
            dataset_name=f"{name} ({count} clips)",
            metric_type=figure,
            metric_name=text,
            metric_value=round(metrics[f"eval_{name}_{figure}"], 4),
        )
        for name, count in counts.items()
        for figure, text in figures.items()
        if f"eval_{name}_{figure}" in metrics
    ]


def _course(settings: Any, steps: int, processes: int, clips: int) -> str:
    """How the training went, in a few sentences."""
    batch = settings.per_device_train_batch_size * processes
    schedule = "steps" if settings.step_decay else str(settings.lr_scheduler_type.value)
    optimiser = "Adam with L2" if settings.adam_with_l2 else str(settings.optim.value)
    return (
        f"{steps} steps with batches of {batch} clips out of {clips}, on {processes} "
        f"{'process' if processes == 1 else 'processes'}; {optimiser}, rate {settings.learning_rate:g} ({schedule}), "
        f"betas {settings.adam_beta1:g} and {settings.adam_beta2:g}, weight decay {settings.weight_decay:g}, seed "
        f"{settings.seed}."
    )
