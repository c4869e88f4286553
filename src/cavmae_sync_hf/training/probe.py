# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The linear probe: how much of the classes a linear map reads off a frozen model's features, as a run with a recipe.

Logistic regression on features that are standardised by the training clips. The strength of regularisation is chosen
on a part of the training clips that is held out for it; the evaluation set plays no role in any choice.
"""

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ..data.dataset import CavMaeSyncDataset
from ..files import check_free, write_json
from ..inference.features import choose_features
from ..loading import load_model
from ..metrics import accuracy, compute, mean_average_precision
from ..model.errors_cavmae_sync import TrainingError
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..provenance import checkpoint_record, software_versions
from .feature_cache import cached_features
from .initialization import LabelSpace, find_labels
from .sets import EvaluationSet, find_sources
from .settings import ProbeArguments

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def run_probe(
    arguments: ProbeArguments, *, process: PartialState | None = None, progress: Callable[..., None] | None = None
) -> list[dict[str, Any]]:
    """Extract features, fit the probes, evaluate them, and write `metrics.json`.

    Args:
        arguments: What to do.
        process: An `accelerate.PartialState` where several processes share the work of extraction; the first one
            fits.
        progress: Called with clips done, their number and which they are, during extraction.

    Returns:
        A row for each set, model, labels and features, see `metrics.json`; none on other processes than the first.

    Raises:
        AlreadyExistsError: There is a `metrics.json`, and `overwrite` is off.
        CavMaeSyncError: The model, the data, the cache or a setting cannot be used; the message says why.
    """
    rank, world = (0, 1) if process is None else (process.process_index, process.num_processes)
    wait = process.wait_for_everyone if process is not None else lambda: None
    if arguments.model is None:
        raise TrainingError("There is nothing to probe; name a `model`.")
    metrics = Path(arguments.output_dir) / "metrics.json"
    check_free(metrics, overwrite=arguments.overwrite)
    device: Any = arguments.device
    if device is None:
        device = process.device if process is not None else "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load_model(arguments.model, device=device, dtype=getattr(torch, arguments.dtype))
    parts = dict.fromkeys(part for name in arguments.features for part in name.split("+"))
    needed = [feature.name for part in parts for feature in choose_features([part], model.config)]
    if rank == 0:  # the others find what it makes
        _sources(arguments, processor, is_main=True)
    wait()
    train_source, evaluation = _sources(arguments, processor, is_main=False)
    sets = {"train": CavMaeSyncDataset(train_source, processor, frames="all")}
    sets |= {name: CavMaeSyncDataset(source, processor, frames="all") for name, source in evaluation.items()}
    wrapped = {name: EvaluationSet(dataset) for name, dataset in sets.items() if name != "train"}
    space = find_labels(sets["train"], wrapped, arguments.class_names, arguments.problem_type)
    rows: list[dict[str, Any]] = []
    before, total = 0, (1 + ("random_weights" in arguments.baselines)) * sum(map(len, sets.values()))
    cache_dir = Path(arguments.cache_dir or os.path.join(arguments.output_dir, "features"))
    for weights, probed in _models(arguments, model):
        vectors = {}
        for name, dataset in sets.items():
            folder = cache_dir / (name if weights == "trained" else f"{name}-random_{arguments.seed}")
            vectors[name] = cached_features(
                probed, dataset, needed, folder,
                refresh=arguments.refresh_cache, batch_frames=arguments.batch_frames,
                num_workers=arguments.num_workers, rank=rank, world_size=world, wait=wait,
                progress=_counting(progress, before, total, f"{name}, {weights} weights"),
            )  # fmt: skip
            before += len(dataset)
        if rank == 0:
            rows += _fit_all(arguments, weights, vectors=vectors, sets=sets, space=space)
    if rank == 0:
        record = {
            "protocol": "linear probe of clip means, version 1",
            "checkpoint": checkpoint_record(model),
            "problem_type": space.problem_type,
            "classes": space.count,
            "clips": {name: len(dataset) for name, dataset in sets.items()},
            "held_out": arguments.held_out,
            "seed": arguments.seed,
            "versions": software_versions(),
            "rows": rows,
        }
        write_json(metrics, record, overwrite=arguments.overwrite)
    wait()
    return rows


def join_features(vectors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Features by a name that may join several, `(clips, size)`: `a+v` has the columns of `a`, then those of `v`."""
    return np.concatenate([vectors[part] for part in name.split("+")], axis=1)


def _fit_all(
    arguments: ProbeArguments,
    weights: str,
    *,
    vectors: dict[str, dict[str, np.ndarray]],
    sets: dict[str, CavMaeSyncDataset],
    space: LabelSpace,
) -> Iterator[dict[str, Any]]:
    """Rows of one model: every choice of features, true labels first."""
    labels = {name: dataset.labels() for name, dataset in sets.items()}
    kinds: list[tuple[str, Any]] = [("true", labels["train"])]
    if "shuffled_labels" in arguments.baselines:
        kinds.append(("shuffled", shuffled(labels["train"], arguments.seed)))
    for kind, train_labels in kinds:
        for name in arguments.features:
            probe = fit_probe(
                join_features(vectors["train"], name), train_labels, space.count, space.problem_type,
                strengths=arguments.strengths, held_out=arguments.held_out,
                max_iterations=arguments.max_iterations, jobs=arguments.jobs, seed=arguments.seed,
            )  # fmt: skip
            for set_name in sets:
                if set_name == "train":
                    continue
                values = join_features(vectors[set_name], name)
                yield {
                    "set": set_name,
                    "weights": weights,
                    "labels": kind,
                    "features": name,
                    **probe_metrics(probe, values, labels[set_name]),
                    "chance": chance_metrics(labels["train"], labels[set_name], space.count),
                    "absent": int(np.isnan(values).any(axis=1).sum()),
                    "size": values.shape[1],
                    "strength": probe.strength,
                    "selection": {f"{strength:g}": score for strength, score in probe.selection.items()},
                    "converged": probe.converged,
                }


def _counting(
    progress: Callable[..., None] | None, before: int, total: int, text: str
) -> Callable[[int, int], None] | None:
    """The progress of one set as that of all sets and models together."""
    return None if progress is None else lambda done, _: progress(before + done, total, text)


def _models(arguments: ProbeArguments, model: CavMaeSyncModel) -> Iterator[tuple[str, CavMaeSyncModel]]:
    """The model, and its like before any training."""
    yield "trained", model
    if "random_weights" in arguments.baselines:
        state = torch.random.get_rng_state()
        torch.manual_seed(arguments.seed)
        untrained = CavMaeSyncModel(copy.deepcopy(model.config))
        torch.random.set_rng_state(state)
        untrained.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]
        yield "random", untrained.eval()


def _sources(arguments: ProbeArguments, processor: CavMaeSyncProcessor, is_main: bool) -> tuple[str, dict[str, str]]:
    """The training source and the evaluation sources by name."""
    train, evaluation = find_sources(arguments, processor, is_main)
    if not evaluation:
        raise TrainingError("There is nothing to evaluate the probe on; name `eval_data`.")
    if "train" in evaluation:
        raise TrainingError("An evaluation set is called 'train'; give it another name.")
    wrong = [name for name in evaluation if os.path.basename(name) != name or name in ("", ".", "..")]
    if wrong:
        raise TrainingError(f"An evaluation set is called {wrong[0]!r}, which is no name of a folder; choose another.")
    return train, evaluation


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
        TrainingError: Features, labels and settings do not fit each other.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) != len(labels):
        raise TrainingError(f"Features of shape {features.shape} for {len(labels)} labels; give one row per clip.")
    truth = multi_hot(labels, classes)
    if problem_type == SINGLE and (truth.sum(axis=1) != 1).any():
        worst = int(np.flatnonzero(truth.sum(axis=1) != 1)[0])
        raise TrainingError(
            f"Clip {worst} has the labels {list(labels[worst])}; single-label probes need exactly one."
        )
    values = sorted(float(value) for value in strengths)
    if not values or values[0] <= 0:
        raise TrainingError(f"`strengths` is {list(strengths)}; give one or more numbers above 0.")
    if not 0 < held_out < 1:
        raise TrainingError(f"`held_out` is {held_out}; it must lie between 0 and 1.")
    mean, scale = _moments(features)
    standard = _standardised(features, mean, scale)
    fit = partial(_fit_single if problem_type == SINGLE else _fit_multi, max_iterations=max_iterations, jobs=jobs)
    score = accuracy if problem_type == SINGLE else mean_average_precision
    selection: dict[float, float] = {}
    chosen = values[0]
    if len(values) > 1:
        order = np.random.default_rng(seed).permutation(len(features))
        count = max(1, round(held_out * len(features)))
        apart, rest = order[:count], order[count:]
        if not len(rest) or not truth[apart].any() or not truth[rest].any():
            raise TrainingError(
                f"{len(features)} clips are too few to hold some out; give one strength, or more clips."
            )
        for strength, (weights, bias, _) in zip(values, fit(standard[rest], truth[rest], values), strict=True):
            selection[strength] = score(truth[apart].astype(int), standard[apart] @ weights.T + bias)
        # Of equals the one that regularises most.
        chosen = max(values, key=lambda strength: (selection[strength], -strength))
    ((weights, bias, converged),) = fit(standard, truth, [chosen])
    return LinearProbe(
        mean=mean,
        scale=scale,
        weights=weights,
        bias=bias,
        strength=chosen,
        selection=selection,
        converged=converged,
    )


def _fit_multi(
    features: np.ndarray, truth: np.ndarray, strengths: list[float], *, max_iterations: int, jobs: int
) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """One against the rest, for every strength: weights, bias, whether all converged."""
    from joblib import Parallel, delayed

    classes, size = truth.shape[1], features.shape[1]
    # With no positive or no negative there is nothing to fit; such a class keeps one score for all.
    known = [k for k in range(classes) if truth[:, k].any() and not truth[:, k].all()]
    fitted = Parallel(n_jobs=jobs)(delayed(_regress)(features, truth[:, k], strengths, max_iterations) for k in known)
    results = []
    for place in range(len(strengths)):
        weights = np.zeros((classes, size))
        bias = np.where(truth.all(axis=0), np.inf, -np.inf)  # of classes that all training clips have, or none
        for k, path in zip(known, fitted, strict=True):
            weights[k], bias[k] = path[place][0][0], path[place][1][0]
        results.append((weights, bias, all(path[place][2] for path in fitted)))
    return results


def _fit_single(
    features: np.ndarray, truth: np.ndarray, strengths: list[float], *, max_iterations: int, jobs: int
) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """One softmax over the classes, for every strength."""
    numbers = truth.argmax(axis=1)
    known = np.unique(numbers)
    if len(known) < 2:
        raise TrainingError(f"All training clips belong to class {known[0]}; there is nothing to tell apart.")
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
        raise TrainingError("No training clip has these features; is there audio or video in any of them?")
    mean, scale = features[there].mean(axis=0), features[there].std(axis=0)
    return mean, np.where(scale > 0, scale, 1.0)


def _standardised(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.nan_to_num((np.asarray(features, dtype=np.float64) - mean) / scale, nan=0.0)


def multi_hot(labels: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """Labels as booleans `(clips, classes)`.

    Raises:
        TrainingError: A label is no class number.
    """
    truth = np.zeros((len(labels), classes), dtype=bool)
    for row, numbers in zip(truth, labels, strict=True):
        if any(not 0 <= number < classes for number in numbers):
            raise TrainingError(f"Labels {list(numbers)} among {classes} classes; they go from 0 to {classes - 1}.")
        row[list(numbers)] = True
    return truth


def shuffled(labels: Sequence[Sequence[int]], seed: int) -> list[Sequence[int]]:
    """The same labels, dealt out to the clips at random: what a probe of these features finds where there is
    nothing to find.
    """
    return [labels[place] for place in np.random.default_rng(seed).permutation(len(labels))]


def chance_metrics(
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


def probe_metrics(probe: LinearProbe, features: np.ndarray, labels: Sequence[Sequence[int]]) -> dict[str, float | int]:
    """`classification_metrics` of a probe on an evaluation set."""
    truth = multi_hot(labels, len(probe.bias))
    return compute("classification", predictions=probe.scores(features), references=truth.astype(int))


if __name__ == "__main__":
    from cavmae_sync_command import main

    main("probe")
