# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The module of all metrics for `evaluate.load(metric_path(), NAME)`, which copies this file to its cache."""

from typing import Any

import datasets
import evaluate

from cavmae_sync_hf.metrics.table import METRICS, compute, list_metrics


def _values(kind: str, dimensions: int) -> Any:
    feature: Any = datasets.Value(kind)
    for _ in range(dimensions):
        feature = datasets.List(feature)
    return feature


class CavMaeSyncMetric(evaluate.Metric):
    """The metric that the configuration's name says; see `cavmae_sync_hf.metrics.table`."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in METRICS:
            raise ValueError(
                f"There is no metric {self.config_name!r}; name one of {', '.join(list_metrics())} after the path."
            )
        metric = METRICS[self.config_name]
        return evaluate.MetricInfo(
            description=f"{metric.summary}.",
            citation="",
            inputs_description=f"predictions: {metric.predictions}. references: {metric.references}.",
            features=[
                datasets.Features(
                    {
                        "predictions": _values(metric.kind, metric.dimensions),
                        "references": _values(metric.reference_kind, dimensions),
                    }
                )
                for dimensions in metric.reference_dimensions
            ],
        )

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float | int]:
        return compute(self.config_name, predictions=predictions, references=references, **options)
