# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How well do scores tell classes, or positives from negatives, apart?

All functions take scores of any monotone scale (logits or probabilities) as tensors or arrays and compute in float64.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

__all__ = [
    "accuracy",
    "average_precision",
    "classification_metrics",
    "d_prime",
    "equal_error_rate",
    "hit_at_k",
    "mean_average_precision",
    "mean_roc_auc",
    "roc_auc",
]


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        # numpy has no bfloat16.
        values = values.detach().cpu().double() if values.is_floating_point() else values.detach().cpu()
    return np.asarray(values)


def _scores(values: Any, name: str, dimensions: int) -> np.ndarray:
    scores = _array(values).astype(np.float64)
    if scores.ndim != dimensions or scores.size == 0:
        wanted = "(samples,)" if dimensions == 1 else "(samples, classes)"
        raise ValueError(f"`{name}` has shape {scores.shape}; it must be {wanted} and not empty.")
    if np.isnan(scores).any():
        row = int(np.argwhere(np.isnan(scores))[0][0])
        raise ValueError(f"`{name}` holds NaN, first in sample {row}; leave such samples out or find what made it.")
    return scores


def _binary(labels: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Labels as booleans of the scores' shape."""
    truth = _array(labels)
    if truth.shape != shape:
        raise ValueError(f"The labels have shape {truth.shape}, the scores {shape}; they must be the same.")
    odd = truth[(truth != 0) & (truth != 1)]
    if odd.size:
        raise ValueError(f"The labels hold {odd.flat[0]!r}; use 0 and 1 (or False and True).")
    return truth.astype(bool)


def _multi_hot(labels: Any, scores: np.ndarray) -> np.ndarray:
    """Labels `(samples, classes)` of 0 and 1, or class numbers `(samples,)`, as booleans `(samples, classes)`."""
    truth = _array(labels)
    if truth.ndim != 1:
        return _binary(truth, scores.shape)
    samples, classes = scores.shape
    if len(truth) != samples:
        raise ValueError(f"There are {len(truth)} labels for {samples} samples.")
    if truth.dtype.kind not in "iu" or truth.min() < 0 or truth.max() >= classes:
        raise ValueError(
            f"The labels go from {truth.min()} to {truth.max()} ({truth.dtype}); class numbers are integers from 0 to "
            f"{classes - 1}."
        )
    return np.asarray(truth[:, None] == np.arange(classes))


def _descending(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives at or above every distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    # The last sample of every run of equal scores: nothing between them can be a threshold.
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(scores) - 1)
    positives = np.cumsum(truth[order])[ends]
    return positives, ends + 1 - positives


def average_precision(labels: Any, scores: Any) -> float:
    """Area under the precision-recall curve, as a sum over its steps (no interpolation), of one class.

    Args:
        labels: 0 or 1, shape `(samples,)`.
        scores: Higher for the positives, shape `(samples,)`; equal scores form one threshold.

    Raises:
        ValueError: On NaN, shapes that differ, labels other than 0 and 1, or no positive.
    """
    values = _scores(scores, "scores", 1)
    truth = _binary(labels, values.shape)
    if not truth.any():
        raise ValueError("No sample is positive, so precision over recall is undefined; leave this class out.")
    positives, negatives = _descending(values, truth)
    recall_steps = np.diff(positives, prepend=0) / positives[-1]
    return float(np.sum(recall_steps * positives / (positives + negatives)))


def roc_auc(labels: Any, scores: Any) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        labels: 0 or 1, shape `(samples,)`.
        scores: Higher for the positives, shape `(samples,)`.

    Raises:
        ValueError: As `average_precision`, and where no sample is negative.
    """
    positives, negatives = _roc(labels, scores)
    steps = np.diff(negatives, prepend=0)
    area = np.sum(steps * (positives + np.append(0, positives[:-1]))) / 2
    return float(area / (positives[-1] * negatives[-1]))


def _roc(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    values = _scores(scores, "scores", 1)
    truth = _binary(labels, values.shape)
    if truth.all() or not truth.any():
        raise ValueError(f"All {len(truth)} samples have label {int(truth[0])}; two classes are needed.")
    return _descending(values, truth)


def equal_error_rate(labels: Any, scores: Any) -> float:
    """Share of errors at the threshold where as many negatives pass as positives fail.

    The ROC curve is taken as straight between its points; the rate is where it crosses `1 - x`.

    Args:
        labels: 0 or 1, shape `(samples,)`.
        scores: Higher for the positives, shape `(samples,)`.

    Returns:
        Between 0 and 1; 0.5 is chance.

    Raises:
        ValueError: As `roc_auc`.
    """
    positives, negatives = _roc(labels, scores)
    passed = np.append(0.0, negatives / negatives[-1])
    failed = np.append(1.0, 1 - positives / positives[-1])
    # From nothing passing (0, 1) to everything passing (1, 0): the difference rises from -1 to 1.
    difference = passed - failed
    after = int(np.argmax(difference >= 0))
    before = after - 1
    share = -difference[before] / (difference[after] - difference[before])
    return float(passed[before] + share * (passed[after] - passed[before]))


def _scored_classes(labels: Any, scores: Any, negatives_needed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = _scores(scores, "scores", 2)
    truth = _multi_hot(labels, values)
    scored = truth.any(axis=0)
    if negatives_needed:
        scored &= ~truth.all(axis=0)
    if not scored.any():
        raise ValueError(f"None of the {truth.shape[1]} classes has the examples it takes; check the labels.")
    return truth, values, np.flatnonzero(scored)


def mean_average_precision(labels: Any, scores: Any) -> float:
    """Mean over classes of `average_precision`; classes without a positive are left out.

    Args:
        labels: 0 or 1, shape `(samples, classes)`, or class numbers, shape `(samples,)`.
        scores: Shape `(samples, classes)`.

    Raises:
        ValueError: On NaN, shapes that differ, impossible labels, or no class with a positive.
    """
    truth, values, classes = _scored_classes(labels, scores, negatives_needed=False)
    return float(np.mean([average_precision(truth[:, k], values[:, k]) for k in classes]))


def mean_roc_auc(labels: Any, scores: Any) -> float:
    """Mean over classes of `roc_auc`; classes without a positive or without a negative are left out.

    Arguments and errors as `mean_average_precision`.
    """
    truth, values, classes = _scored_classes(labels, scores, negatives_needed=True)
    return float(np.mean([roc_auc(truth[:, k], values[:, k]) for k in classes]))


def d_prime(labels: Any, scores: Any) -> float:
    """Distance, in standard deviations, of two normal distributions with the classes' mean ROC area.

    `sqrt(2) * Phi^-1(mean AUC)`, as AudioSet's baselines define it (Hershey et al. 2017). Infinite at an area of 1,
    0 at chance. Arguments and errors as `mean_average_precision`.
    """
    area = mean_roc_auc(labels, scores)
    if area in (0.0, 1.0):
        return math.inf if area else -math.inf
    return math.sqrt(2) * NormalDist().inv_cdf(area)


def hit_at_k(labels: Any, scores: Any, k: int = 1) -> float:
    """Share of samples for which one of the k highest scores belongs to one of their classes.

    Of equal scores the lower class number comes first. Samples without any class are left out.

    Args:
        labels: 0 or 1, shape `(samples, classes)`, or class numbers, shape `(samples,)`.
        scores: Shape `(samples, classes)`.
        k: How many classes are guessed.

    Raises:
        ValueError: As `mean_average_precision`, and where k is not between 1 and the number of classes.
    """
    values = _scores(scores, "scores", 2)
    truth = _multi_hot(labels, values)
    if not 1 <= k <= values.shape[1]:
        raise ValueError(f"k is {k}; with {values.shape[1]} classes it must be between 1 and {values.shape[1]}.")
    labelled = truth.any(axis=1)
    if not labelled.any():
        raise ValueError("No sample has a label; there is nothing to hit.")
    guesses = np.argsort(-values, axis=1, kind="stable")[:, :k]
    right = np.take_along_axis(truth, guesses, axis=1)
    return float(np.mean(right.sum(axis=1)[labelled] > 0))


def accuracy(labels: Any, scores: Any) -> float:
    """Share of samples whose highest score belongs to their class (one of their classes): `hit_at_k` with k = 1."""
    return hit_at_k(labels, scores, 1)


def classification_metrics(labels: Any, scores: Any, ks: Sequence[int] = (5,)) -> dict[str, float | int]:
    """All figures of a classifier at once.

    Args:
        labels: 0 or 1, shape `(samples, classes)`, or class numbers, shape `(samples,)`.
        scores: Shape `(samples, classes)`.
        ks: For `hit_at_{k}`; values above the number of classes are left out.

    Returns:
        `mean_average_precision`, `mean_roc_auc`, `d_prime`, `accuracy`, `hit_at_{k}`, `samples`, `classes` and
        `classes_scored` (those with positives and negatives).

    Raises:
        ValueError: As `mean_roc_auc`.
    """
    truth, values, classes = _scored_classes(labels, scores, negatives_needed=True)
    metrics: dict[str, float | int] = {
        "mean_average_precision": mean_average_precision(truth, values),
        "mean_roc_auc": mean_roc_auc(truth, values),
        "d_prime": d_prime(truth, values),
        "accuracy": accuracy(truth, values),
    }
    metrics |= {f"hit_at_{k}": hit_at_k(truth, values, k) for k in ks if k <= truth.shape[1]}
    return metrics | {"samples": len(truth), "classes": truth.shape[1], "classes_scored": len(classes)}
