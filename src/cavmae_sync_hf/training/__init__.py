# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Training: arguments, data sets, initial weights, transformers' Trainer for these models, and probes."""

from .arguments import (
    DataArguments,
    ModelArguments,
    PretrainingArguments,
    ProbeArguments,
    RunArguments,
    parse_arguments,
)
from .base import CavMaeSyncBaseTrainer, EpochSampler, SaveOnSignal, run_to_end
from .checkpoints import average_checkpoints, average_weights, check_output, checkpoints_of_epochs, last_checkpoint
from .classification import CavMaeSyncClassificationTrainer, Predictions, prediction_metrics
from .classification_arguments import ClassificationArguments, ClassificationModelArguments
from .evaluation import Embeddings, evaluate_alignment
from .freezing import add_lora, freeze_idle, freeze_unused, idle_modules, merged_copy
from .initialization import (
    LabelSpace,
    StartingPoint,
    build_classifier,
    build_for_pretraining,
    find_labels,
    starting_point,
)
from .pretraining import CavMaeSyncTrainer
from .probe import run_probe
from .sets import EvaluationSet, InMemoryDataset, ModalityCollator, augmentation_options, build_sets, make_syncworld
from .speed import classification_flops, measure_peak, pretraining_flops

__all__ = [
    "CavMaeSyncBaseTrainer",
    "CavMaeSyncClassificationTrainer",
    "CavMaeSyncTrainer",
    "ClassificationArguments",
    "ClassificationModelArguments",
    "DataArguments",
    "Embeddings",
    "EpochSampler",
    "EvaluationSet",
    "InMemoryDataset",
    "LabelSpace",
    "ModalityCollator",
    "ModelArguments",
    "Predictions",
    "PretrainingArguments",
    "ProbeArguments",
    "RunArguments",
    "SaveOnSignal",
    "StartingPoint",
    "add_lora",
    "augmentation_options",
    "average_checkpoints",
    "average_weights",
    "build_classifier",
    "build_for_pretraining",
    "build_sets",
    "check_output",
    "checkpoints_of_epochs",
    "classification_flops",
    "evaluate_alignment",
    "find_labels",
    "freeze_idle",
    "freeze_unused",
    "idle_modules",
    "last_checkpoint",
    "make_syncworld",
    "measure_peak",
    "merged_copy",
    "parse_arguments",
    "prediction_metrics",
    "pretraining_flops",
    "run_probe",
    "run_to_end",
    "starting_point",
]
