# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics of classifiers and of scores that tell positives from negatives.

Scores may be of any monotone scale (logits or probabilities), as tensors or arrays; everything is computed in float64.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from types import ModuleType

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..provenance import require_package

Scores = ArrayLike | torch.Tensor

# Which labels count in a view of VGGSounder's annotations, as (heard, seen; `None` for either), and which of the
# model's scores answer.
VIEWS: dict[str, tuple[bool | None, bool | None, str]] = {
    "av": (True, True, "av"),
    "a": (True, None, "a"),
    "v": (None, True, "v"),
    "a_only": (True, False, "a"),
    "v_only": (False, True, "v"),
}


def _sklearn() -> ModuleType:
    return require_package("sklearn.metrics", "evaluation", "This metric")


def _array(values: Scores) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        # numpy has no bfloat16.
        values = values.detach().cpu().double() if values.is_floating_point() else values.detach().cpu()
    return np.asarray(values)


def _scores(values: Scores, dimensions: int) -> np.ndarray:
    scores = _array(values).astype(np.float64)
    if scores.ndim != dimensions or scores.size == 0:
        wanted = "(samples,)" if dimensions == 1 else "(samples, classes)"
        raise ValueError(f"`scores` has shape {scores.shape}; it must be {wanted} and not empty.")
    if np.isnan(scores).any():
        row = int(np.argwhere(np.isnan(scores))[0][0])
        raise ValueError(f"`scores` holds NaN, first in sample {row}; leave such samples out or find what made it.")
    if np.isinf(scores).any():
        # scikit-learn refuses infinity; ranks order the samples alike.
        scores = np.unique(scores, return_inverse=True)[1].reshape(scores.shape).astype(np.float64)
    return scores


def _binary(labels: Scores, shape: tuple[int, ...]) -> np.ndarray:
    """Labels as booleans of the scores' shape."""
    truth = _array(labels)
    if truth.shape != shape:
        raise ValueError(f"The labels have shape {truth.shape}, the scores {shape}; they must be the same.")
    odd = truth[(truth != 0) & (truth != 1)]
    if odd.size:
        raise ValueError(f"The labels hold {odd.flat[0]!r}; use 0 and 1 (or False and True).")
    return truth.astype(bool)


def _multi_hot(labels: Scores, scores: np.ndarray) -> np.ndarray:
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


def average_precision(labels: Scores, scores: Scores) -> float:
    """Area under the precision-recall curve, as a sum over its steps (no interpolation), of one class.

    Args:
        labels: 0 or 1, shape `(samples,)`.
        scores: Higher for the positives, shape `(samples,)`; equal scores form one threshold.

    Raises:
        ValueError: On NaN, shapes that differ, labels other than 0 and 1, or no positive.
    """
    values = _scores(scores, 1)
    truth = _binary(labels, values.shape)
    if not truth.any():
        raise ValueError("No sample is positive, so precision over recall is undefined; leave this class out.")
    return float(_sklearn().average_precision_score(truth, values))


def roc_auc(labels: Scores, scores: Scores) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        labels: 0 or 1, shape `(samples,)`.
        scores: Higher for the positives, shape `(samples,)`.

    Raises:
        ValueError: As `average_precision`, and where no sample is negative.
    """
    truth, values = _two_classes(labels, scores)
    return float(_sklearn().roc_auc_score(truth, values))


def _two_classes(labels: Scores, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    values = _scores(scores, 1)
    truth = _binary(labels, values.shape)
    if truth.all() or not truth.any():
        raise ValueError(f"All {len(truth)} samples have label {int(truth[0])}; two classes are needed.")
    return truth, values


def equal_error_rate(labels: Scores, scores: Scores) -> float:
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
    truth, values = _two_classes(labels, scores)
    passed, found, _ = _sklearn().roc_curve(truth, values, drop_intermediate=False)
    # From nothing passing (0, 1) to everything passing (1, 0): the difference rises from -1 to 1.
    difference = passed - (1 - found)
    after = int(np.argmax(difference >= 0))
    before = after - 1
    share = -difference[before] / (difference[after] - difference[before])
    return float(passed[before] + share * (passed[after] - passed[before]))


def _scored_classes(labels: Scores, scores: Scores, negatives_needed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of the classes that can be scored."""
    values = _scores(scores, 2)
    truth = _multi_hot(labels, values)
    scored = truth.any(axis=0)
    if negatives_needed:
        scored &= ~truth.all(axis=0)
    if not scored.any():
        raise ValueError(f"None of the {truth.shape[1]} classes has the examples it takes; check the labels.")
    # Indexed arrays lie class by class, and scikit-learn would copy them whole for every class.
    return np.ascontiguousarray(truth[:, scored]), np.ascontiguousarray(values[:, scored])


def _class_mean(score: Callable[[np.ndarray, np.ndarray], float], truth: np.ndarray, values: np.ndarray) -> float:
    """The mean over classes; to scikit-learn a single class has one dimension."""
    return float(score(truth[:, 0], values[:, 0]) if truth.shape[1] == 1 else score(truth, values))


def mean_average_precision(labels: Scores, scores: Scores) -> float:
    """Mean over classes of `average_precision`; classes without a positive are left out.

    Args:
        labels: 0 or 1, shape `(samples, classes)`, or class numbers, shape `(samples,)`.
        scores: Shape `(samples, classes)`.

    Raises:
        ValueError: On NaN, shapes that differ, impossible labels, or no class with a positive.
    """
    truth, values = _scored_classes(labels, scores, negatives_needed=False)
    return _class_mean(_sklearn().average_precision_score, truth, values)


def mean_roc_auc(labels: Scores, scores: Scores) -> float:
    """Mean over classes of `roc_auc`; classes without a positive or without a negative are left out.

    Arguments and errors as `mean_average_precision`.
    """
    truth, values = _scored_classes(labels, scores, negatives_needed=True)
    return _class_mean(_sklearn().roc_auc_score, truth, values)


def d_prime(labels: Scores, scores: Scores) -> float:
    """Distance, in standard deviations, of two normal distributions with the classes' mean ROC area.

    `sqrt(2) * Phi^-1(mean AUC)`, as AudioSet's baselines define it (Hershey et al. 2017). Infinite at an area of 1,
    0 at chance. Arguments and errors as `mean_average_precision`.
    """
    return _d_prime_of_area(mean_roc_auc(labels, scores))


def _d_prime_of_area(area: float) -> float:
    if area in (0.0, 1.0):
        return math.inf if area else -math.inf
    return math.sqrt(2) * NormalDist().inv_cdf(area)


def _guesses(scores: np.ndarray, k: int) -> np.ndarray:
    """The k best classes as booleans `(samples, classes)`; of equal ones the lower number comes first."""
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    guesses = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(guesses, chosen, True, axis=1)
    return guesses


def hit_at_k(labels: Scores, scores: Scores, k: int = 1) -> float:
    """Share of samples for which one of the k highest scores belongs to one of their classes.

    Of equal scores the lower class number comes first (scikit-learn takes the higher). Samples without any class are
    left out.

    Args:
        labels: 0 or 1, shape `(samples, classes)`, or class numbers, shape `(samples,)`.
        scores: Shape `(samples, classes)`.
        k: How many classes are guessed.

    Raises:
        ValueError: As `mean_average_precision`, and where k is not between 1 and the number of classes.
    """
    values = _scores(scores, 2)
    truth = _multi_hot(labels, values)
    _check_k(k, values.shape[1])
    labelled = truth.any(axis=1)
    if not labelled.any():
        raise ValueError("No sample has a label; there is nothing to hit.")
    return float(np.mean((_guesses(values, k) & truth).any(axis=1)[labelled]))


def _check_k(k: int, classes: int) -> None:
    if not 1 <= k <= classes:
        raise ValueError(f"k is {k}; with {classes} classes it must be between 1 and {classes}.")


def accuracy(labels: Scores, scores: Scores) -> float:
    """Share of samples whose highest score belongs to their class (one of their classes): `hit_at_k` with k = 1."""
    return hit_at_k(labels, scores, 1)


def classification_metrics(labels: Scores, scores: Scores, ks: Sequence[int] = (5,)) -> dict[str, float | int]:
    """All metrics of a classifier at once.

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
    values = _scores(scores, 2)
    truth = _multi_hot(labels, values)
    area = mean_roc_auc(truth, values)
    metrics: dict[str, float | int] = {
        "mean_average_precision": mean_average_precision(truth, values),
        "mean_roc_auc": area,
        "d_prime": _d_prime_of_area(area),
        "accuracy": accuracy(truth, values),
    }
    metrics |= {f"hit_at_{k}": hit_at_k(truth, values, k) for k in ks if k <= truth.shape[1]}
    scored = truth.any(axis=0) & ~truth.all(axis=0)
    return metrics | {"samples": len(truth), "classes": truth.shape[1], "classes_scored": int(scored.sum())}


def top_k_metrics(labels: Scores, scores: Scores, k: int = 1) -> dict[str, float]:
    """Metrics of the k best guesses of every sample, where samples may have several labels or none.

    Args:
        labels: 0 or 1, shape `(samples, classes)`.
        scores: Shape `(samples, classes)`.
        k: How many classes are guessed.

    Returns:
        `hit_rate` (share of samples with a right guess), `accuracy` (share whose guesses are exactly their labels,
        subset accuracy), `f1`, `precision`, `recall` and `jaccard` over all guesses together (micro), and `f1_macro`,
        the mean over all classes of each one's F1 (0 for a class neither guessed nor there).

    Raises:
        ValueError: On NaN, shapes that differ, labels other than 0 and 1, or k is not between 1 and the number of
            classes.
    """
    values = _scores(scores, 2)
    truth = _binary(labels, values.shape)
    _check_k(k, values.shape[1])
    guesses = _guesses(values, k)
    hit_rate = float((guesses & truth).any(axis=1).mean())
    sklearn = _sklearn()
    # Sparse, as nearly all entries are 0: five times as fast. With an empty class at the end, which changes nothing
    # but that scikit-learn takes a single class as multi-label, too.
    sparse = require_package("scipy.sparse", "evaluation", "This metric").csr_matrix
    sides = [sparse(np.pad(part, ((0, 0), (0, 1)))) for part in (truth, guesses)]
    precision, recall, f1, _ = sklearn.precision_recall_fscore_support(*sides, average="micro", zero_division=0)
    return {
        "hit_rate": hit_rate,
        "accuracy": float(sklearn.accuracy_score(*sides)),
        "f1": float(f1),
        "f1_macro": float(sklearn.f1_score(*sides, average=None, zero_division=0)[:-1].mean()),
        "precision": float(precision),
        "recall": float(recall),
        "jaccard": float(sklearn.jaccard_score(*sides, average="micro", zero_division=0)),
    }


def modality_confusion(labels: np.ndarray, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How often one modality alone gets right what both together get wrong (VGGSounder's mu).

    Args:
        labels: All labels of the samples, booleans `(samples, classes)`.
        scores: `(samples, classes)` for the inputs `"a"`, `"v"` and `"av"`.

    Returns:
        Shares of the samples: `mu_a`, the best guess from audio is right and the one from both is not; `mu_v`, the
        same for video; `mu_av`, both alone are right and together they are not.
    """
    right = {name: (_guesses(values, 1) & labels).any(axis=1) for name, values in scores.items()}
    lost = ~right["av"]
    return {
        "mu_a": float((right["a"] & lost).mean()),
        "mu_v": float((right["v"] & lost).mean()),
        "mu_av": float((right["a"] & right["v"] & lost).mean()),
    }


def vggsounder_metrics(
    heard: np.ndarray, seen: np.ndarray, scores: Mapping[str, Scores], ks: Sequence[int] = (1, 3, 5, 10)
) -> dict[str, float | int]:
    """Metrics of a classifier where labels are heard, seen or both (VGGSounder, Zverev, Wiedemer et al. 2025).

    Every view of the labels (see `VIEWS`) has the clips with a label of its own: `av` labels that are heard and seen,
    `a` those that are heard, `a_only` those that are heard and not seen, and so on. Labels that the model has no class
    for are left out, as in the published code, and counted.

    Args:
        heard: Booleans `(clips, labels)`. The first labels are the model's classes, in the order of the scores; more
            of them are labels that the model has no class for.
        seen: Booleans, of the same shape.
        scores: Per input (`"av"`, `"a"`, `"v"`) `(clips, classes)`; views whose input is not there are left out.
        ks: How many guesses; metrics of k guesses are called `VIEW_METRIC@k`.

    Returns:
        Per view those of `top_k_metrics` at each k, `VIEW_auc_roc` and `VIEW_auc_pr` (means over classes with
        positives and, for the former, negatives), `VIEW_clips`; `mu_a`, `mu_v`, `mu_av` where all inputs are there;
        `labels_unknown`, labels that the model has no class for.
    """
    arrays = {name: _scores(values, 2) for name, values in scores.items()}
    classes = next(iter(arrays.values())).shape[1]
    metrics: dict[str, float | int] = {}
    for view, (want_heard, want_seen, name) in VIEWS.items():
        if name not in arrays:
            continue
        truth = heard | seen
        for wanted, labels in ((want_heard, heard), (want_seen, seen)):
            truth &= True if wanted is None else labels == wanted
        rows = truth.any(axis=1)
        metrics[f"{view}_clips"] = int(rows.sum())
        if rows.any():
            metrics |= _view_metrics(truth[rows, :classes], arrays[name][rows], view, ks)
    if {"av", "a", "v"} <= set(arrays):
        metrics |= modality_confusion((heard | seen)[:, :classes], arrays)
    return metrics | {"labels_unknown": heard.shape[1] - classes}


def _view_metrics(truth: np.ndarray, scores: np.ndarray, view: str, ks: Sequence[int]) -> dict[str, float]:
    metrics = {
        f"{view}_{name}@{k}": value
        for k in ks
        if k <= truth.shape[1]
        for name, value in top_k_metrics(truth, scores, k).items()
    }
    there = truth.any(axis=0)
    if there.any():
        metrics[f"{view}_auc_pr"] = mean_average_precision(truth, scores)
    if (there & ~truth.all(axis=0)).any():
        metrics[f"{view}_auc_roc"] = mean_roc_auc(truth, scores)
    return metrics
