# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How are the models trained? Arguments, data sets, initial weights and the Trainer, for scripts of any kind."""

from .arguments import DataArguments, ModelArguments, PretrainingArguments, RecipeError, RunArguments, parse_arguments
from .base import CavMaeSyncBaseTrainer, EpochSampler, NonFiniteLossError, last_checkpoint
from .callbacks import SaveOnSignal
from .evaluation import Embeddings, embed_clips, evaluate_alignment
from .flops import measure_peak, pretraining_flops
from .initialization import build_for_pretraining, freeze_unused
from .sets import EvaluationSet, InMemoryDataset, augmentation_options, build_sets, make_syncworld
from .trainer import CavMaeSyncTrainer

__all__ = [
    "CavMaeSyncBaseTrainer",
    "CavMaeSyncTrainer",
    "DataArguments",
    "Embeddings",
    "EpochSampler",
    "EvaluationSet",
    "InMemoryDataset",
    "ModelArguments",
    "NonFiniteLossError",
    "PretrainingArguments",
    "RecipeError",
    "RunArguments",
    "SaveOnSignal",
    "augmentation_options",
    "build_for_pretraining",
    "build_sets",
    "embed_clips",
    "evaluate_alignment",
    "freeze_unused",
    "last_checkpoint",
    "make_syncworld",
    "measure_peak",
    "parse_arguments",
    "pretraining_flops",
]
