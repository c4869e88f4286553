# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What does a model score on a data set, under a protocol? One file per task; each gives a results record."""

from .classification import evaluate_classification
from .clips import EvaluationError, RunOptions
from .localization import evaluate_localization
from .retrieval import evaluate_retrieval
from .sync import evaluate_sync

__all__ = [
    "EvaluationError",
    "RunOptions",
    "evaluate_classification",
    "evaluate_localization",
    "evaluate_retrieval",
    "evaluate_sync",
]
