# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How well can classes be read off fixed features by a linear map? Logistic regression, its strength chosen honestly.

Features are standardised by the training clips. The strength of regularisation is chosen on a part of the training
clips that is held out for it; the evaluation set plays no role in any choice.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..metrics.classification import accuracy, classification_metrics, mean_average_precision

__all__ = ["LinearProbe", "chance_figures", "fit_probe", "multi_hot", "shuffled"]

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


@dataclass
class LinearProbe:
    """A fitted linear classifier of features.

    Attributes:
        mean, scale: Of the training features, `(size,)`.
        weights: `(classes, size)`, of standardised features.
        bias: `(classes,)`; minus infinity for classes that the training clips do not have.
        strength: The chosen inverse strength of regularisation, scikit-learn's `C`.
        selection: Strength -> score on the clips held out: mean average precision, or accuracy for single labels.
        converged: Whether the optimiser came to its end.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    strength: float
    selection: dict[float, float] = field(default_factory=dict)
    converged: bool = True

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Log-odds (single labels: logits) of clips `(clips, classes)`; features that are NaN count as average."""
        return _standardised(features, self.mean, self.scale) @ self.weights.T + self.bias


def fit_probe(
    features: np.ndarray,
    labels: Sequence[Sequence[int]],
    classes: int,
    problem_type: str = MULTI,
    *,
    strengths: Sequence[float] = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0),
    held_out: float = 0.2,
    max_iterations: int = 1000,
    jobs: int = 1,
    seed: int = 0,
) -> LinearProbe:
    """Fit a linear classifier.

    Args:
        features: `(clips, size)`; NaN where a clip has none.
        labels: Class numbers of every clip.
        classes: How many classes there are.
        problem_type: `"single_label_classification"`: one softmax over the classes. `"multi_label_classification"`: a
            logistic regression for each class (one against the rest).
        strengths: Values of scikit-learn's `C` to choose from.
        held_out: Share of the clips that the choice is made on; the final fit is on all.
        max_iterations: Of the optimiser (L-BFGS).
        jobs: Classes fitted side by side; -1 for all cores.
        seed: Seeds which clips are held out.

    Raises:
        ValueError: Features, labels and settings do not fit each other.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(f"Features of shape {features.shape} for {len(labels)} labels; give one row per clip.")
    truth = multi_hot(labels, classes)
    if problem_type == SINGLE and (truth.sum(axis=1) != 1).any():
        worst = int(np.flatnonzero(truth.sum(axis=1) != 1)[0])
        raise ValueError(f"Clip {worst} has the labels {list(labels[worst])}; single-label probes need exactly one.")
    values = sorted(float(value) for value in strengths)
    if not values or values[0] <= 0:
        raise ValueError(f"`strengths` is {list(strengths)}; give one or more numbers above 0.")
    if not 0 < held_out < 1:
        raise ValueError(f"`held_out` is {held_out}; it must lie between 0 and 1.")
    mean, scale = _moments(features)
    standard = _standardised(features, mean, scale)
    fit = _fit_single if problem_type == SINGLE else _fit_multi
    selection: dict[float, float] = {}
    chosen = values[0]
    if len(values) > 1:
        chosen, selection = _choose(standard, truth, values, fit, held_out, max_iterations, jobs, seed)
    ((weights, bias, converged),) = fit(standard, truth, [chosen], max_iterations, jobs)
    return LinearProbe(mean, scale, weights, bias, chosen, selection, converged)


def _choose(
    features: np.ndarray,
    truth: np.ndarray,
    strengths: list[float],
    fit: Any,
    held_out: float,
    max_iterations: int,
    jobs: int,
    seed: int,
) -> tuple[float, dict[float, float]]:
    """The strength that does best on clips held out; of equals the one that regularises most."""
    order = np.random.default_rng(seed).permutation(len(features))
    count = max(1, round(held_out * len(features)))
    apart, rest = order[:count], order[count:]
    if not len(rest) or not truth[apart].any() or not truth[rest].any():
        raise ValueError(f"{len(features)} clips are too few to hold some out; give one strength, or more clips.")
    score = accuracy if fit is _fit_single else mean_average_precision
    selection = {}
    fits = fit(features[rest], truth[rest], strengths, max_iterations, jobs)
    for strength, (weights, bias, _) in zip(strengths, fits, strict=True):
        selection[strength] = score(truth[apart].astype(int), features[apart] @ weights.T + bias)
    return max(strengths, key=lambda strength: (selection[strength], -strength)), selection


def _fit_multi(
    features: np.ndarray, truth: np.ndarray, strengths: list[float], max_iterations: int, jobs: int
) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """One against the rest, for every strength: weights, bias, whether all converged."""
    from joblib import Parallel, delayed

    classes, size = truth.shape[1], features.shape[1]
    # With no positive or no negative there is nothing to fit; such a class keeps one score for all.
    known = [k for k in range(classes) if truth[:, k].any() and not truth[:, k].all()]
    fitted = Parallel(n_jobs=jobs)(delayed(_regress)(features, truth[:, k], strengths, max_iterations) for k in known)
    results = []
    for place in range(len(strengths)):
        weights, bias = np.zeros((classes, size)), _constant_bias(truth)
        for k, path in zip(known, fitted, strict=True):
            weights[k], bias[k] = path[place][0][0], path[place][1][0]
        results.append((weights, bias, all(path[place][2] for path in fitted)))
    return results


def _constant_bias(truth: np.ndarray) -> np.ndarray:
    """Scores of classes that all training clips have, or none."""
    return np.where(truth.all(axis=0), np.inf, -np.inf)


def _fit_single(
    features: np.ndarray, truth: np.ndarray, strengths: list[float], max_iterations: int, jobs: int
) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """One softmax over the classes, for every strength."""
    numbers = truth.argmax(axis=1)
    known = np.unique(numbers)
    if len(known) < 2:
        raise ValueError(f"All training clips belong to class {known[0]}; there is nothing to tell apart.")
    results = []
    for weights, bias, converged in _regress(features, numbers, strengths, max_iterations):
        if len(known) == 2:  # scikit-learn has one row of log-odds then
            weights, bias = np.concatenate([-weights / 2, weights / 2]), np.concatenate([-bias / 2, bias / 2])
        every = np.zeros((truth.shape[1], features.shape[1]))
        every_bias = np.full(truth.shape[1], -np.inf)
        every[known], every_bias[known] = weights, bias
        results.append((every, every_bias, converged))
    return results


def _regress(
    features: np.ndarray, target: np.ndarray, strengths: list[float], max_iterations: int
) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Logistic regressions of rising `C`, each begun where the one before ended."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(max_iter=max_iterations, warm_start=True)
    results = []
    for strength in strengths:
        regression.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said by `converged`
            regression.fit(features, target)
        converged = bool(np.max(regression.n_iter_) < max_iterations)
        results.append((regression.coef_.copy(), regression.intercept_.copy(), converged))
    return results


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every feature over the clips that have it; 1 for constant ones."""
    there = ~np.isnan(features).any(axis=1)
    if not there.any():
        raise ValueError("No training clip has these features; is there a sound or a picture in any of them?")
    mean, scale = features[there].mean(axis=0), features[there].std(axis=0)
    return mean, np.where(scale > 0, scale, 1.0)


def _standardised(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.nan_to_num((np.asarray(features, dtype=np.float64) - mean) / scale, nan=0.0)


def multi_hot(labels: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """Labels as booleans `(clips, classes)`.

    Raises:
        ValueError: A label is no class number.
    """
    truth = np.zeros((len(labels), classes), dtype=bool)
    for row, numbers in zip(truth, labels, strict=True):
        if any(not 0 <= number < classes for number in numbers):
            raise ValueError(f"Labels {list(numbers)} among {classes} classes; they go from 0 to {classes - 1}.")
        row[list(numbers)] = True
    return truth


def shuffled(labels: Sequence[Sequence[int]], seed: int) -> list[Sequence[int]]:
    """The same labels, dealt out to the clips at random: what a probe of these features finds where there is
    nothing to find.
    """
    return [labels[place] for place in np.random.default_rng(seed).permutation(len(labels))]


def chance_figures(
    train_labels: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], classes: int
) -> dict[str, float]:
    """What can be had without looking at a clip.

    Args:
        train_labels: Class numbers of every training clip.
        labels: Those of the evaluation clips.
        classes: How many classes there are.

    Returns:
        `mean_average_precision` of random scores (a class's share of the clips, to be expected of large sets; mean
        over the classes scored), `mean_roc_auc` of them, and `accuracy` of always naming the commonest class of the
        training clips.
    """
    train, truth = multi_hot(train_labels, classes), multi_hot(labels, classes)
    scored = truth.any(axis=0) & ~truth.all(axis=0)
    guess = np.broadcast_to(train.mean(axis=0), truth.shape)
    return {
        "mean_average_precision": float(truth[:, scored].mean()),
        "mean_roc_auc": 0.5,
        "accuracy": accuracy(truth.astype(int), guess),
    }


def probe_figures(probe: LinearProbe, features: np.ndarray, labels: Sequence[Sequence[int]]) -> dict[str, float | int]:
    """The figures of `classification_metrics` of a probe on an evaluation set."""
    truth = multi_hot(labels, len(probe.bias))
    return classification_metrics(truth.astype(int), probe.scores(features))
