# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Figures of the k best guesses where samples have several labels, as an `evaluate` metric."""

from typing import Any

import datasets
import evaluate
import numpy as np

from cavmae_sync_hf.metrics.multilabel import top_k_metrics

__all__ = ["TopK"]


class TopK(evaluate.Metric):
    """`top_k_metrics` of `cavmae_sync_hf.metrics.multilabel`, which documents it."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation="",
            inputs_description="predictions: scores of every class per sample. references: 0 and 1 for every class.",
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float64")),
                    "references": datasets.List(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any, k: int = 1) -> dict[str, float]:
        return top_k_metrics(np.asarray(references, dtype=bool), np.asarray(predictions, dtype=np.float64), k)
