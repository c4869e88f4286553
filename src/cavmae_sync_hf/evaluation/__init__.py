# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How good is a model? Retrieval, classification, synchrony and localisation, as functions of tensors, and as runs of
a model on a data set under a protocol (`evaluate_*`)."""

from .classification import classification_metrics, d_prime, equal_error_rate, mean_average_precision, roc_auc
from .evaluate_modules import list_metrics, load_metric
from .localization import boxes_in_view, localization_metrics, patch_maps, pointing_accuracy
from .protocols import PROTOCOLS
from .results import read_results, write_results
from .retrieval import RetrievalRanks, clip_similarity, paired_similarity, retrieval_metrics, retrieval_ranks
from .runs import evaluate_classification, evaluate_localization, evaluate_retrieval, evaluate_sync
from .synchrony import (
    alignment_test,
    estimate_offset,
    shift_discrimination,
    sync_detection,
    sync_scores,
    temporal_pair_discrimination,
)

__all__ = [
    "PROTOCOLS",
    "RetrievalRanks",
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
