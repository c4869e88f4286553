# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The metrics that compare predictions with references, by name: for `compute`, and for the `evaluate` library."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..provenance import require_package
from . import classification, localization
from .retrieval import retrieval_metrics

if TYPE_CHECKING:
    import evaluate


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of the table.

    Attributes:
        summary: What it says, in one line.
        function: Takes references, predictions and options; gives a value, or several by name.
        predictions: What the predictions are.
        references: What the references are.
        dimensions: Dimensions of one sample's prediction.
        reference_dimensions: Dimensions of one sample's reference, in each form that it may have.
        kind: Numbers of the predictions, as `datasets` calls them.
        reference_kind: Numbers of the references.
    """

    summary: str
    function: Callable[..., Any]
    predictions: str = "scores of every class for each sample"
    references: str = "for each sample its class number, or 0 and 1 for every class"
    dimensions: int = 1
    reference_dimensions: tuple[int, ...] = (0, 1)
    kind: str = "float64"
    reference_kind: str = "int64"


def _of_two_classes(references: Any, predictions: Any) -> dict[str, float]:
    return {
        "equal_error_rate": classification.equal_error_rate(references, predictions),
        "roc_auc": classification.roc_auc(references, predictions),
    }


def _of_clips(references: Any, predictions: Any, **options: Any) -> dict[str, float | int]:
    # Lists are what `evaluate` has read back from its cache.
    audio, video = (
        np.asarray(embeds, dtype=np.float32) if isinstance(embeds, list) else embeds
        for embeds in (predictions, references)
    )
    return retrieval_metrics(audio_embeds=audio, video_embeds=video, **options)


def _of_boxes(references: Any, predictions: Any, **options: Any) -> dict[str, float | int]:
    return localization.localization_metrics(torch.as_tensor(predictions), references, **options)


def _of_masks(references: Any, predictions: Any, labels: Any = None, **options: Any) -> dict[str, float | int]:
    maps, masks = torch.as_tensor(predictions), torch.as_tensor(references)
    if labels is None:
        return localization.segmentation_metrics(maps, masks, **options)
    return localization.class_segmentation_metrics(maps, masks, labels, **options)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(summary="Share of samples whose best class is right", function=classification.accuracy),
    "classification": Metric(
        summary="All metrics of a classifier at once; option `ks`", function=classification.classification_metrics
    ),
    "d_prime": Metric(summary="The d-prime of the mean ROC area over classes", function=classification.d_prime),
    "equal_error_rate": Metric(
        summary="Equal error rate and ROC area of one score against 0 and 1",
        function=_of_two_classes,
        predictions="one score per sample, higher for the positives",
        references="0 or 1",
        dimensions=0,
        reference_dimensions=(0,),
    ),
    "hit_at_k": Metric(
        summary="Share of samples with a right class among the best k; option `k`",
        function=partial(classification.hit_at_k, k=5),
    ),
    "localization": Metric(
        summary="Pointing accuracy, IoU and cIoU of maps against boxes; option `view`, height and width in pixels",
        function=_of_boxes,
        predictions="maps, (rows, columns)",
        references="for each map its boxes [x0, y0, x1, y1] in pixels of the view",
        dimensions=2,
        reference_dimensions=(2,),
        reference_kind="float64",
    ),
    "mean_average_precision": Metric(
        summary="Mean average precision over classes", function=classification.mean_average_precision
    ),
    "mean_roc_auc": Metric(summary="Mean area under the ROC curve over classes", function=classification.mean_roc_auc),
    "retrieval": Metric(
        summary="Retrieval of video by audio and of audio by video; options of `retrieval_metrics`",
        function=_of_clips,
        predictions="audio embeddings of each clip, (windows, hidden)",
        references="video embeddings of the same clips, (frames, hidden); all clips have as many windows and frames",
        dimensions=2,
        reference_dimensions=(2,),
        kind="float32",
        reference_kind="float32",
    ),
    "segmentation": Metric(
        summary="Average precision and IoU of maps against masks; option `labels`, to join the pixels of a class",
        function=_of_masks,
        predictions="similarity at every pixel of each map, (height, width)",
        references="masks of 0 and 1, of the same shape",
        dimensions=2,
        reference_dimensions=(2,),
    ),
    "top_k": Metric(
        summary="Metrics of the k best guesses where samples have several labels; option `k`",
        function=classification.top_k_metrics,
        references="0 and 1 for every class",
        reference_dimensions=(1,),
    ),
}


def list_metrics() -> list[str]:
    """Names of the metrics that `compute` and `load_metric` know."""
    return sorted(METRICS)


def compute(name: str, *, predictions: Any, references: Any, **options: Any) -> dict[str, float | int]:
    """Compute a metric of the table.

    Args:
        name: One of `list_metrics()`.
        predictions: What was predicted, a row per sample, as tensor, array or list; see `METRICS`.
        references: What is true, a row per sample.
        options: Those of the metric's function, such as `k` of `hit_at_k`.

    Returns:
        Values by name: of one value under the metric's own name.

    Raises:
        ValueError: There is no metric of this name, or the function's own.
        ImportError: The metric needs scikit-learn, which is not installed.
    """
    result = _find(name).function(references, predictions, **options)
    return result if isinstance(result, dict) else {name: result}


def metric_path() -> str:
    """Path of the module that `evaluate.load` takes, with a metric's name as the configuration's."""
    return str(Path(__file__).with_name("evaluate_module.py"))


def load_metric(name: str, **kwargs: Any) -> "evaluate.EvaluationModule":
    """Load a metric of the table as an `evaluate` module, without a network.

    Args:
        name: One of `list_metrics()`.
        **kwargs: Passed on to `evaluate.load`, `process_id` and `num_process` for example.

    Raises:
        ValueError: There is no metric of this name.
        ImportError: The `evaluate` library is not installed.
    """
    _find(name)
    return require_package("evaluate", "evaluation", "load_metric").load(metric_path(), name, **kwargs)


def _find(name: str) -> Metric:
    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r}; choose one of {', '.join(list_metrics())}.")
    return METRICS[name]
