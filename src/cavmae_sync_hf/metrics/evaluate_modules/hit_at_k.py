# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Share of samples with a right class among the best k, as an `evaluate` metric."""

from typing import Any

import datasets
import evaluate
import numpy as np

from cavmae_sync_hf.metrics.classification import hit_at_k

__all__ = ["HitAtK"]


class HitAtK(evaluate.Metric):
    """`hit_at_k` of `cavmae_sync_hf.metrics.classification`, which documents it."""

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

    def _compute(self, predictions: Any, references: Any, k: int = 5) -> dict[str, float]:
        value = hit_at_k(np.asarray(references), np.asarray(predictions), k)
        return {"hit_at_k": value}
