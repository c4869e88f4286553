# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How good are a classifier's guesses where clips have several labels, heard, seen or both? (VGGSounder's rules.)"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..model.errors_cavmae_sync import EvaluationError
from .classification import average_precision, roc_auc

__all__ = ["VIEWS", "Annotations", "modality_confusion", "read_annotations", "top_k_metrics", "vggsounder_metrics"]

# Which labels count in a view of the annotations, by where they are perceived, and which of the model's scores answer.
VIEWS: dict[str, tuple[frozenset[str], str]] = {
    "av": (frozenset({"AV"}), "av"),
    "a": (frozenset({"A", "AV"}), "a"),
    "v": (frozenset({"V", "AV"}), "v"),
    "a_only": (frozenset({"A"}), "a"),
    "v_only": (frozenset({"V"}), "v"),
}
_COLUMNS = ("video_id", "label", "modality")
_META = ("background_music", "static_image", "voice_over")


@dataclass(frozen=True)
class Annotations:
    """Labels of clips and where each is perceived.

    Attributes:
        labels: Per clip its labels, each with `"A"` (heard), `"V"` (seen) or `"AV"` (both).
        background_music: Clips that have background music.
        name: The file.
    """

    labels: dict[str, dict[str, str]]
    background_music: frozenset[str]
    name: str

    def select(self, background_music: bool | None) -> "Annotations":
        """The clips with (True) or without (False) background music; all of them (None)."""
        if background_music is None:
            return self
        kept = {
            clip: labels for clip, labels in self.labels.items() if (clip in self.background_music) == background_music
        }
        return Annotations(kept, self.background_music & set(kept), self.name)


def read_annotations(path: str | os.PathLike[str]) -> Annotations:
    """Read VGGSounder's table: a CSV with a row per clip and label.

    Args:
        path: Columns `video_id` (`YOUTUBEID_000030`), `label`, `modality` (A, V or AV) and, where they are known,
            `background_music`, `static_image`, `voice_over`.

    Raises:
        EvaluationError: The file cannot be read, or a row cannot be understood.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path}: the annotations cannot be read ({error}).") from error
    if not rows:
        raise EvaluationError(f"{path}: holds no annotations.")
    lacking = [column for column in _COLUMNS if column not in rows[0]]
    if lacking:
        raise EvaluationError(
            f"{path}: has no column {lacking[0]!r}; VGGSounder's table has {', '.join((*_COLUMNS, *_META))}."
        )
    labels: dict[str, dict[str, str]] = {}
    music = set()
    for number, row in enumerate(rows, start=2):
        clip, label, modality = ((row[column] or "").strip() for column in _COLUMNS)
        modality = modality.upper()
        if not clip or not label or modality not in ("A", "V", "AV"):
            raise EvaluationError(
                f"{path}: line {number} has clip {clip!r}, label {label!r} and modality {modality!r}; the modality is "
                "A, V or AV."
            )
        labels.setdefault(clip, {})[label] = modality
        if (row.get("background_music") or "").strip().lower() == "true":
            music.add(clip)
    return Annotations(labels, frozenset(music), Path(path).name)


def _guesses(scores: np.ndarray, k: int) -> np.ndarray:
    """The k best classes as booleans `(samples, classes)`; of equal ones the lower number comes first."""
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    guesses = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(guesses, chosen, True, axis=1)
    return guesses


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def top_k_metrics(truth: np.ndarray, scores: np.ndarray, k: int) -> dict[str, float]:
    """Figures of the k best guesses of every sample.

    Args:
        truth: Booleans `(samples, classes)`.
        scores: `(samples, classes)`.
        k: How many classes are guessed.

    Returns:
        `hit_rate` (share of samples with a right guess), `accuracy` (share whose guesses are exactly their labels,
        subset accuracy), `f1`, `precision`, `recall` and `jaccard` over all guesses together (micro), and `f1_macro`,
        the mean over all classes of each one's F1 (0 for a class neither guessed nor there).

    Raises:
        ValueError: k is not between 1 and the number of classes, or shapes differ.
    """
    if truth.shape != scores.shape or truth.ndim != 2 or not truth.size:
        raise ValueError(
            f"Labels {truth.shape} and scores {scores.shape} must be (samples, classes), alike and not empty."
        )
    if not 1 <= k <= truth.shape[1]:
        raise ValueError(f"k is {k}; with {truth.shape[1]} classes it must be between 1 and {truth.shape[1]}.")
    guesses = _guesses(scores, k)
    right = guesses & truth
    hits, guessed, there = right.sum(axis=0), guesses.sum(axis=0), truth.sum(axis=0)
    total_hits, total_guessed, total_there = int(hits.sum()), int(guessed.sum()), int(there.sum())
    sums = guessed + there
    return {
        "hit_rate": float(right.any(axis=1).mean()),
        "accuracy": float((guesses == truth).all(axis=1).mean()),
        "f1": _share(2 * total_hits, total_guessed + total_there),
        "f1_macro": float(np.mean(np.divide(2 * hits, sums, out=np.zeros(len(sums)), where=sums > 0))),
        "precision": _share(total_hits, total_guessed),
        "recall": _share(total_hits, total_there),
        "jaccard": _share(total_hits, total_guessed + total_there - total_hits),
    }


def modality_confusion(truth: np.ndarray, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How often one modality alone gets right what both together get wrong (VGGSounder's mu).

    Args:
        truth: All labels of the samples, booleans `(samples, classes)`.
        scores: `(samples, classes)` for the inputs `"a"`, `"v"` and `"av"`.

    Returns:
        Shares of the samples: `mu_a`, the best guess from sound is right and the one from both is not; `mu_v`, the
        same for pictures; `mu_av`, both alone are right and together they are not.
    """
    right = {name: (_guesses(values, 1) & truth).any(axis=1) for name, values in scores.items()}
    lost = ~right["av"]
    return {
        "mu_a": float((right["a"] & lost).mean()),
        "mu_v": float((right["v"] & lost).mean()),
        "mu_av": float((right["a"] & right["v"] & lost).mean()),
    }


def vggsounder_metrics(
    annotations: Annotations,
    clips: Sequence[str],
    scores: Mapping[str, Any],
    classes: Sequence[str],
    ks: Sequence[int] = (1, 3, 5, 10),
) -> dict[str, float | int]:
    """VGGSounder's figures.

    Every view of the annotations (see `VIEWS`) has the clips with a label of its own: `av` labels that are heard and
    seen, `a` those that are heard, `a_only` those that are heard and not seen, and so on. Labels that the model has no
    class for are left out, as in the published code, and counted.

    Args:
        annotations: From `read_annotations`.
        clips: Names of the clips, each one annotated.
        scores: Per input (`"av"`, `"a"`, `"v"`) `(clips, classes)`; views whose input is not there are left out.
        classes: Names of the classes, in the order of the scores.
        ks: How many guesses; figures of k guesses are called `VIEW_FIGURE@k`.

    Returns:
        Per view the figures of `top_k_metrics` at each k, `VIEW_auc_roc` and `VIEW_auc_pr` (means over classes with
        positives and, for the former, negatives), `VIEW_clips`; `mu_a`, `mu_v`, `mu_av` where all inputs are there;
        `labels_unknown`, labels (of all clips) that the model has no class for.

    Raises:
        EvaluationError: A clip is not annotated, or no annotated label is among the classes.
    """
    unknown_clips = [clip for clip in clips if clip not in annotations.labels]
    if unknown_clips:
        raise EvaluationError(f"{annotations.name}: has no labels for the clip {unknown_clips[0]!r}.")
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    numbers = {name: number for number, name in enumerate(classes)}
    wanted = {label for clip in clips for label in annotations.labels[clip]}
    known = wanted & set(numbers)
    if not known:
        raise EvaluationError(
            f"{annotations.name}: none of its labels is a class of the model: the table has {sorted(wanted)[:3]}, the "
            f"model {list(classes)[:3]}; give the class names in the model's order (option `labels`)."
        )
    metrics: dict[str, float | int] = {}
    for view, (modalities, name) in VIEWS.items():
        if name not in arrays:
            continue
        truth = _truth(annotations, clips, numbers, modalities)
        rows = np.array([bool(modalities & set(annotations.labels[clip].values())) for clip in clips])
        metrics[f"{view}_clips"] = int(rows.sum())
        if not rows.any():
            continue
        metrics |= _view_metrics(truth[rows], arrays[name][rows], view, ks)
    if {"av", "a", "v"} <= set(arrays):
        metrics |= modality_confusion(_truth(annotations, clips, numbers, frozenset({"A", "V", "AV"})), arrays)
    return metrics | {"labels_unknown": len(wanted - known)}


def _truth(
    annotations: Annotations, clips: Sequence[str], numbers: Mapping[str, int], modalities: frozenset[str]
) -> np.ndarray:
    truth = np.zeros((len(clips), len(numbers)), dtype=bool)
    for row, clip in zip(truth, clips, strict=True):
        for label, modality in annotations.labels[clip].items():
            if modality in modalities and label in numbers:
                row[numbers[label]] = True
    return truth


def _view_metrics(truth: np.ndarray, scores: np.ndarray, view: str, ks: Sequence[int]) -> dict[str, float]:
    metrics = {
        f"{view}_{figure}@{k}": value
        for k in ks
        if k <= truth.shape[1]
        for figure, value in top_k_metrics(truth, scores, k).items()
    }
    there = np.flatnonzero(truth.any(axis=0))
    if len(there):
        metrics[f"{view}_auc_pr"] = float(np.mean([average_precision(truth[:, k], scores[:, k]) for k in there]))
    mixed = [k for k in there if not truth[:, k].all()]
    if mixed:
        metrics[f"{view}_auc_roc"] = float(np.mean([roc_auc(truth[:, k], scores[:, k]) for k in mixed]))
    return metrics
