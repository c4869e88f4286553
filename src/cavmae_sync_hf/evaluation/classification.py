# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How well does a fine-tuned checkpoint tag clips, from sound, pictures or both?"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import torch

from ..data.tables import read_vocabulary
from ..metrics import compute, vggsounder_metrics
from ..model.errors_cavmae_sync import EvaluationError
from .clips import EvaluationClips, RunOptions, batches, fit_processor, open_evaluation
from .protocols import CLASSIFICATION_PROTOCOLS, ClassificationProtocol, find_protocol, modify
from .results import make_record
from .tables import Annotations, read_annotations

__all__ = ["evaluate_classification", "score_clips"]

# What the model needs of a clip, and gets, for each kind of input.
_NEEDS = {"av": ("audio", "video"), "a": ("audio",), "v": ("video",)}
_MODALITY = {"multimodal": "av", "audio": "a", "video": "v"}


def evaluate_classification(
    model: Any,
    processor: Any,
    data: Any,
    protocol: str | ClassificationProtocol = "clips",
    *,
    inputs: Sequence[str] | None = None,
    annotations: str | os.PathLike[str] | Annotations | None = None,
    class_names: str | os.PathLike[str] | Sequence[str] | None = None,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Classification of clips, under a protocol.

    Args:
        model: A `CavMaeSyncForAudioVisualClassification`, in evaluation mode.
        processor: Its processor; the protocol may change alignment and number of frames for the run.
        data: A folder of shards, a folder or list of videos, a SyncWorld split, or what else `read_source` lists.
        protocol: One of `CLASSIFICATION_PROTOCOLS`, by name, or one of your own.
        inputs: Other inputs than the protocol's: any of `"av"`, `"a"`, `"v"`. A model of one tower takes its own.
        annotations: VGGSounder's table, for protocols that are scored by it.
        class_names: Names of the model's classes in order, or a file of them, where its configuration has none.
        options: See `RunOptions`.

    Returns:
        A results record, see `make_record`. `metrics` are those of `classification_metrics` or `vggsounder_metrics`;
        figures of further inputs than the first carry its name before theirs.

    Raises:
        ValueError: The protocol, the labels, the annotations or the data cannot be used; the message says why.
    """
    rules = find_protocol(protocol, CLASSIFICATION_PROTOCOLS)
    chosen = _inputs(model, rules, inputs)
    rules = modify(rules, inputs=chosen)
    if rules.classes is not None and model.config.num_labels != rules.classes:
        raise EvaluationError(
            f"The protocol {rules.name} has {rules.classes} classes, the model {model.config.num_labels}; evaluate a "
            "model that was fine-tuned for it."
        )
    names = _class_names(model, class_names)
    table = _annotations(rules, annotations)
    fitted = fit_processor(processor, rules)
    options = options.copy()
    if table is not None and options.get("ids") is None:
        options["ids"] = list(table.labels)
    clips = open_evaluation(data, fitted, rules, options)
    strict = options.get("strict", False)
    if clips.missing:
        clips.check(strict)
    numbers = None if table is not None else _label_numbers(clips, model, names)
    scores, places, labels = score_clips(clips, fitted, model, chosen, options)
    clips.check(strict)
    if table is not None:
        annotated = [_annotated(table, clips.ids[place]) for place in places]
        heard, seen = table.arrays(annotated, _needed_names(names, model))
        metrics = vggsounder_metrics(heard, seen, scores, rules.ks)
    else:
        metrics = _by_labels(clips, scores, places, labels, numbers, model, rules)
    settings: dict[str, Any] = {"alignment": fitted.feature_extractor.alignment, "inputs": list(chosen)}
    settings["frames_per_clip"] = fitted.feature_extractor.num_frames if clips.kind != "shards" else "as prepared"
    if table is not None:
        settings["annotations"] = table.name
    return make_record(
        "classification",
        rules,
        metrics,
        model=model,
        data=clips.data_record(),
        counts=clips.counts(),
        settings=settings,
        command=options.get("command"),
    )


def _inputs(model: Any, rules: ClassificationProtocol, inputs: Sequence[str] | None) -> tuple[str, ...]:
    """What the model is given, in turn."""
    own = _MODALITY[model.config.modality]
    if inputs is None:
        return rules.inputs if own == "av" else (own,)
    chosen = tuple(dict.fromkeys(inputs))
    if not chosen:
        raise EvaluationError("`inputs` is empty; choose among av, a and v.")
    other = [name for name in chosen if own != "av" and name != own]
    if other:
        raise EvaluationError(f"The model takes {own!r} alone, not {other[0]!r}.")
    return chosen


def _class_names(model: Any, given: str | os.PathLike[str] | Sequence[str] | None) -> list[str] | None:
    """Names of the model's classes, `None` where they are numbers only."""
    count = model.config.num_labels
    if given is not None:
        vocabulary = read_vocabulary(given)
        names = vocabulary.names if vocabulary is not None else []
        if len(names) != count:
            raise EvaluationError(f"There are {len(names)} class names for a model of {count} classes.")
        return list(names)
    names = [str(model.config.id2label[number]) for number in range(count)]
    return None if names == [f"LABEL_{number}" for number in range(count)] else names


def _needed_names(names: list[str] | None, model: Any) -> list[str]:
    if names is None:
        raise EvaluationError(
            f"The model's {model.config.num_labels} classes have no names; give them in order as `class_names` "
            "(--class-names FILE)."
        )
    return names


def _annotations(rules: ClassificationProtocol, given: Any) -> Annotations | None:
    if rules.scoring != "vggsounder":
        if given is not None:
            raise EvaluationError(f"The protocol {rules.name} has no use for annotations; leave them out.")
        return None
    if given is None:
        raise EvaluationError(f"The protocol {rules.name} needs VGGSounder's table (--annotations vggsounder.csv).")
    table = given if isinstance(given, Annotations) else read_annotations(given)
    selected = table.select(rules.background_music)
    if not selected.labels:
        raise EvaluationError(f"{table.name}: every clip has background music; nothing is left.")
    return selected


def _annotated(table: Annotations, clip: str) -> str:
    """A clip's name in the table: the data may have it in a folder."""
    return clip if clip in table.labels else clip.rpartition("/")[2]


@torch.no_grad()
def score_clips(
    clips: EvaluationClips, processor: Any, model: Any, inputs: Sequence[str], options: RunOptions
) -> tuple[dict[str, np.ndarray], list[int], list[list[int]]]:
    """The classifier's scores of the usable clips, from each kind of input.

    Returns:
        Logits per input, `(clips, classes)` float64; places of the clips in `clips.ids`; their label numbers.

    Raises:
        EvaluationError: No clip can be used.
    """
    # With both as input, a clip that lacks one is classified by the model's missing-modality path.
    needs = sorted({need for name in inputs if name != "av" for need in _NEEDS[name]})
    scores: dict[str, list[np.ndarray]] = {name: [] for name in inputs}
    places: list[int] = []
    labels: list[list[int]] = []
    for batch, about in batches(clips, processor, model, options, needs):
        for name in inputs:
            logits = model(**_given(batch, name)).logits
            scores[name].append(logits.double().cpu().numpy())
        places += about["places"]
        labels += about["labels"]
    clips.check(strict=False)
    return {name: np.concatenate(rows) for name, rows in scores.items()}, places, labels


def _given(batch: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The part of a batch that an input is."""
    keys = {"audio": ("input_values", "padding_mask"), "video": ("pixel_values_videos", "padding_mask_videos")}
    return {key: batch[key] for need in _NEEDS[name] for key in keys[need] if key in batch}


def _label_numbers(clips: EvaluationClips, model: Any, names: list[str] | None) -> dict[int, int] | None:
    """The model's class of each of the data's label numbers, by name; `None` where the data has numbers alone."""
    if clips.label_names is None:
        return None
    if names is None:
        # Numbers of names follow the order that the data has them in, which need not be the model's.
        raise EvaluationError(
            f"{clips.name}: its labels have names ({', '.join(clips.label_names[:3])}, ...), the model's classes have "
            "none; give the classes' names in order as `class_names` (--class-names FILE)."
        )
    places = {name: number for number, name in enumerate(names)}
    unknown = [name for name in clips.label_names if name not in places]
    if unknown:
        raise EvaluationError(
            f"{clips.name}: has the label {unknown[0]!r}, which is no class of the model ({', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}); evaluate on data with the model's labels, or give the data's "
            "label names as the model has them (option `labels`)."
        )
    return {number: places[name] for number, name in enumerate(clips.label_names)}


def _by_labels(
    clips: EvaluationClips,
    scores: Mapping[str, np.ndarray],
    places: Sequence[int],
    labels: Sequence[Sequence[int]],
    numbers: Mapping[int, int] | None,
    model: Any,
    rules: ClassificationProtocol,
) -> dict[str, float | int]:
    """Figures against the labels of the data; clips without any are unusable."""
    classes = model.config.num_labels
    truth = np.zeros((len(labels), classes), dtype=bool)
    for row, own in enumerate(labels):
        mapped = list(own) if numbers is None else [numbers[label] for label in own]
        wrong = [label for label in mapped if not 0 <= label < classes]
        if wrong:
            raise EvaluationError(
                f"{clips.name}: clip {clips.ids[places[row]]!r} has label {wrong[0]}, the model {classes} classes; "
                "evaluate on data with the model's labels."
            )
        truth[row, mapped] = True
    labelled = truth.any(axis=1)
    for row in np.flatnonzero(~labelled).tolist():
        clips.unusable.append({"id": clips.ids[places[row]], "reason": "has no label."})
    if not labelled.any():
        raise EvaluationError(f"{clips.name}: no clip has a label; prepare the data with labels.")
    metrics: dict[str, float | int] = {}
    for name, values in scores.items():
        found = compute("classification", predictions=values[labelled], references=truth[labelled], ks=rules.ks)
        prefix = f"{name}_" if metrics else ""
        metrics |= {f"{prefix}{key}": value for key, value in found.items() if key != "samples"}
    return metrics
