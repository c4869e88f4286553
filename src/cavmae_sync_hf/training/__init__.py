# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How are the models trained? Arguments, data sets, initial weights and the Trainer, for scripts of any kind."""

from .arguments import DataArguments, ModelArguments, PretrainingArguments, RunArguments, parse_arguments
from .averaging import average_checkpoints, average_weights, checkpoints_of_epochs
from .base import CavMaeSyncBaseTrainer, EpochSampler, last_checkpoint
from .callbacks import SaveOnSignal
from .classification import CavMaeSyncClassificationTrainer
from .classification_arguments import ClassificationArguments, ClassificationModelArguments
from .classification_evaluation import Predictions, classification_figures, predict_clips
from .classification_model import LabelSpace, StartingPoint, build_classifier, find_labels, starting_point
from .evaluation import Embeddings, embed_clips, evaluate_alignment
from .flops import classification_flops, measure_peak, pretraining_flops
from .freezing import freeze_encoder, freeze_idle, idle_modules
from .initialization import build_for_pretraining, freeze_unused
from .lora import add_lora, merged_copy
from .running import run_to_end
from .sets import EvaluationSet, InMemoryDataset, augmentation_options, build_sets, make_syncworld
from .trainer import CavMaeSyncTrainer

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
    "ModelArguments",
    "Predictions",
    "PretrainingArguments",
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
    "checkpoints_of_epochs",
    "classification_figures",
    "classification_flops",
    "embed_clips",
    "evaluate_alignment",
    "find_labels",
    "freeze_encoder",
    "freeze_idle",
    "freeze_unused",
    "idle_modules",
    "last_checkpoint",
    "make_syncworld",
    "measure_peak",
    "merged_copy",
    "parse_arguments",
    "predict_clips",
    "pretraining_flops",
    "run_to_end",
    "starting_point",
]
