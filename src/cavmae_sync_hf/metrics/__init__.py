# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics of retrieval, classification, synchrony and localization, as functions of arrays."""

from .classification import (
    accuracy,
    average_precision,
    classification_metrics,
    d_prime,
    equal_error_rate,
    hit_at_k,
    mean_average_precision,
    mean_roc_auc,
    roc_auc,
    top_k_metrics,
    vggsounder_metrics,
)
from .localization import (
    boxes_in_view,
    class_segmentation_metrics,
    localization_metrics,
    patch_maps,
    pointing_accuracy,
    segmentation_metrics,
)
from .retrieval import RetrievalRanks, retrieval_metrics, retrieval_ranks
from .similarity import clip_similarity, paired_similarity
from .synchrony import (
    alignment_test,
    bootstrap_interval,
    loud_moments,
    other_clips,
    shift_discrimination,
    sync_detection,
    sync_scores,
    temporal_pair_discrimination,
)
from .table import compute, list_metrics, load_metric, metric_path

__all__ = [
    "RetrievalRanks",
    "accuracy",
    "alignment_test",
    "average_precision",
    "bootstrap_interval",
    "boxes_in_view",
    "class_segmentation_metrics",
    "classification_metrics",
    "clip_similarity",
    "compute",
    "d_prime",
    "equal_error_rate",
    "hit_at_k",
    "list_metrics",
    "load_metric",
    "localization_metrics",
    "loud_moments",
    "mean_average_precision",
    "mean_roc_auc",
    "metric_path",
    "other_clips",
    "paired_similarity",
    "patch_maps",
    "pointing_accuracy",
    "retrieval_metrics",
    "retrieval_ranks",
    "roc_auc",
    "segmentation_metrics",
    "shift_discrimination",
    "sync_detection",
    "sync_scores",
    "temporal_pair_discrimination",
    "top_k_metrics",
    "vggsounder_metrics",
]
