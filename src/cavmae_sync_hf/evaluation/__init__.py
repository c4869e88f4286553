# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How good is a model? Retrieval, classification, synchrony and localisation, as functions of tensors, and as runs of
a model on a data set under a protocol (`evaluate_*`)."""

from ..metrics.classification import classification_metrics, d_prime, equal_error_rate, mean_average_precision, roc_auc
from ..metrics.evaluate_modules import list_metrics, load_metric
from ..metrics.localization import boxes_in_view, localization_metrics, patch_maps, pointing_accuracy
from ..metrics.retrieval import RetrievalRanks, clip_similarity, paired_similarity, retrieval_metrics, retrieval_ranks
from ..metrics.synchrony import (
    alignment_test,
    estimate_offset,
    shift_discrimination,
    sync_detection,
    sync_scores,
    temporal_pair_discrimination,
)
from .classification import evaluate_classification
from .clips import RunOptions
from .localization import evaluate_localization
from .protocols import PROTOCOLS
from .results import read_results, write_results
from .retrieval import evaluate_retrieval
from .sync import evaluate_sync

__all__ = [
    "PROTOCOLS",
    "RetrievalRanks",
    "RunOptions",
    "alignment_test",
    "boxes_in_view",
    "classification_metrics",
    "clip_similarity",
    "d_prime",
    "equal_error_rate",
    "estimate_offset",
    "evaluate_classification",
    "evaluate_localization",
    "evaluate_retrieval",
    "evaluate_sync",
    "list_metrics",
    "load_metric",
    "localization_metrics",
    "mean_average_precision",
    "paired_similarity",
    "patch_maps",
    "pointing_accuracy",
    "read_results",
    "retrieval_metrics",
    "retrieval_ranks",
    "roc_auc",
    "shift_discrimination",
    "sync_detection",
    "sync_scores",
    "temporal_pair_discrimination",
    "write_results",
]
