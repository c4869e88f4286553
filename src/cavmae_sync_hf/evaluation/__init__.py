# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Runs of a model on a data set under a protocol (`evaluate_*`), their results files and the cards made of them."""

from .classification import evaluate_classification
from .clips import RunOptions
from .localization import evaluate_localization
from .protocols import PROTOCOLS
from .results import read_results, write_results
from .retrieval import evaluate_retrieval
from .sync import evaluate_sync

__all__ = [
    "PROTOCOLS",
    "RunOptions",
    "evaluate_classification",
    "evaluate_localization",
    "evaluate_retrieval",
    "evaluate_sync",
    "read_results",
    "write_results",
]
