# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Equal-error rate and ROC area of one score against 0 and 1, as an `evaluate` metric."""

from typing import Any

import datasets
import evaluate
import numpy as np

from cavmae_sync_hf.metrics.classification import equal_error_rate, roc_auc

__all__ = ["EqualErrorRate"]


class EqualErrorRate(evaluate.Metric):
    """`equal_error_rate` and `roc_auc` of `cavmae_sync_hf.metrics.classification`, which documents them."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation="",
            inputs_description="predictions: one score per sample, higher for the positives. references: 0 or 1.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        labels, scores = np.asarray(references), np.asarray(predictions)
        return {"equal_error_rate": equal_error_rate(labels, scores), "roc_auc": roc_auc(labels, scores)}
