# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Mean area under the ROC curve over classes, as an `evaluate` metric."""

from typing import Any

import datasets
import evaluate
import numpy as np

from cavmae_sync_hf.metrics.classification import mean_roc_auc

__all__ = ["MeanRocAuc"]


class MeanRocAuc(evaluate.Metric):
    """`mean_roc_auc` of `cavmae_sync_hf.metrics.classification`, which documents it."""

    def _info(self) -> evaluate.MetricInfo:
        scores = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation="",
            inputs_description=(
                "predictions: scores of every class for each sample. references: for each sample its class number, or "
                "0 and 1 for every class."
            ),
            features=[
                datasets.Features({"predictions": scores, "references": datasets.Value("int64")}),
                datasets.Features({"predictions": scores, "references": datasets.List(datasets.Value("int64"))}),
            ],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        value = mean_roc_auc(np.asarray(references), np.asarray(predictions))
        return {"mean_roc_auc": value}
