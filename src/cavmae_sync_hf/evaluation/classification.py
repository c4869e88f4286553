# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Classification on a set of clips by a fine-tuned model, from audio, video or both."""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from ..data.failures import Failure
from ..data.tables import read_vocabulary
from ..files import StrPath
from ..inference.features import OFFSETS, not_finite_error
from ..metrics import compute, vggsounder_metrics
from ..model.errors_cavmae_sync import EvaluationError, Hint
from ..model.modeling_cavmae_sync import CavMaeSyncForAudioVisualClassification
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .clips import ClipFacts, EvaluationClips, RunOptions, open_evaluation
from .protocols import CLASSIFICATION_PROTOCOLS, ClassificationProtocol, find_protocol, modify
from .tables import Annotations, read_annotations

# What the model needs of a clip, and gets, for each kind of input.
_NEEDS = {"av": ("audio", "video"), "a": ("audio",), "v": ("video",)}
_MODALITY = {"multimodal": "av", "audio": "a", "video": "v"}


def evaluate_classification(
    model: CavMaeSyncForAudioVisualClassification,
    processor: CavMaeSyncProcessor,
    data: Any,
    protocol: str | ClassificationProtocol = "clips",
    *,
    inputs: Sequence[str] | None = None,
    annotations: StrPath | Annotations | None = None,
    class_names: StrPath | Sequence[str] | None = None,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Classification of clips, under a protocol.

    Args:
        model: A fine-tuned model, in evaluation mode.
        processor: Its processor; the protocol may change alignment and number of frames for the run.
        data: A folder of shards, a folder or list of videos, a SyncWorld split, or what else `read_source` lists.
        protocol: One of `CLASSIFICATION_PROTOCOLS`, by name, or one of your own.
        inputs: Other inputs than the protocol's: any of `"av"`, `"a"`, `"v"`. A model of one tower takes its own.
        annotations: VGGSounder's table, for protocols that are scored by it.
        class_names: Names of the model's classes in order, or a file of them, where its configuration has none.
        options: See `RunOptions`.

    Returns:
        A results record, see `make_record`. `metrics` are those of `classification_metrics` or `vggsounder_metrics`;
        those of further inputs than the first carry its name before theirs.

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
    if table is not None and names is None:
        hint = Hint("class_names", "FILE", "give them in order")
        raise EvaluationError(f"The model's {model.config.num_labels} classes have no names.", hint=hint)
    options = options.copy()
    if table is not None and options.get("ids") is None:
        options["ids"] = list(table.labels)
    clips = open_evaluation(data, processor, rules, options)
    numbers = None if table is not None else _label_numbers(clips, names)
    scores, places, labels = score_clips(model, clips, chosen)
    settings: dict[str, Any] = {"inputs": list(chosen)}
    settings["frames_per_clip"] = (
        "as prepared" if clips.kind == "shards" else clips.processor.feature_extractor.num_frames
    )
    if table is not None and names is not None:
        # The data may have a clip in a folder.
        own = [clips.ids[place] for place in places]
        heard, seen = table.arrays([clip if clip in table.labels else clip.rpartition("/")[2] for clip in own], names)
        metrics = vggsounder_metrics(heard, seen, scores, rules.ks)
        settings["annotations"] = table.name
    else:
        own_classes = [list(own) if numbers is None else [numbers[label] for label in own] for own in labels]
        truth = _truth(clips, places, own_classes, int(model.config.num_labels or 0))
        metrics = {}
        labelled = truth.any(axis=1)
        for name, values in scores.items():
            found = compute("classification", predictions=values[labelled], references=truth[labelled], ks=rules.ks)
            prefix = f"{name}_" if metrics else ""
            metrics |= {f"{prefix}{key}": value for key, value in found.items() if key != "samples"}
    return clips.record("classification", metrics, model=model, **settings)


def _inputs(
    model: CavMaeSyncForAudioVisualClassification, rules: ClassificationProtocol, inputs: Sequence[str] | None
) -> tuple[str, ...]:
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


def _class_names(
    model: CavMaeSyncForAudioVisualClassification, given: StrPath | Sequence[str] | None
) -> list[str] | None:
    """Names of the model's classes, `None` where they are numbers only."""
    count, known = int(model.config.num_labels or 0), dict[Any, str](model.config.id2label or {})
    if given is not None:
        vocabulary = read_vocabulary(given)
        names = vocabulary.names if vocabulary is not None else []
        if len(names) != count:
            raise EvaluationError(f"There are {len(names)} class names for a model of {count} classes.")
        return list(names)
    names = [str(known[number]) for number in range(count)]
    return None if names == [f"LABEL_{number}" for number in range(count)] else names


def _annotations(rules: ClassificationProtocol, given: StrPath | Annotations | None) -> Annotations | None:
    if rules.scoring != "vggsounder":
        if given is not None:
            raise EvaluationError(f"The protocol {rules.name} has no use for annotations; leave them out.")
        return None
    if given is None:
        hint = Hint("annotations", "vggsounder.csv", "name it")
        raise EvaluationError(f"The protocol {rules.name} needs VGGSounder's table.", hint=hint)
    table = given if isinstance(given, Annotations) else read_annotations(given)
    selected = table.select(rules.background_music)
    if not selected.labels:
        raise EvaluationError(f"{table.name}: every clip has background music; nothing is left.")
    return selected


@torch.no_grad()
def score_clips(
    model: CavMaeSyncForAudioVisualClassification, clips: EvaluationClips, inputs: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[int], list[list[int]]]:
    """The classifier's scores of the usable clips, from each kind of input.

    Returns:
        Logits per input, `(clips, classes)` float64; places of the clips in `clips.ids`; their label numbers.

    Raises:
        EvaluationError: As `EvaluationClips.each_batch`.
    """
    keys = {
        "audio": ("input_values", "padding_mask", OFFSETS),
        "video": ("pixel_values_videos", "padding_mask_videos"),
    }
    # With both as input, a clip that lacks one is classified by the model's missing-modality path.
    needs = sorted({need for name in inputs if name != "av" for need in _NEEDS[name]})

    def score(batch: dict[str, Tensor], _facts: ClipFacts) -> dict[str, np.ndarray]:
        found = {}
        for name in inputs:
            given = {key: batch[key] for need in _NEEDS[name] for key in keys[need] if key in batch}
            found[name] = model(**given).logits.double().cpu().numpy()
            if not np.isfinite(found[name]).all():
                raise not_finite_error("a score", model)
        return found

    scores: dict[str, list[np.ndarray]] = {name: [] for name in inputs}
    places: list[int] = []
    labels: list[list[int]] = []
    for found, facts in clips.each_batch(model, score, needs):
        for name in inputs:
            scores[name].append(found[name])
        places += facts.places
        labels += facts.labels
    return {name: np.concatenate(rows) for name, rows in scores.items()}, places, labels


def _label_numbers(clips: EvaluationClips, names: list[str] | None) -> dict[int, int] | None:
    """The model's class of each of the data's label numbers, by name; `None` where the data has numbers alone."""
    if clips.label_names is None:
        return None
    if names is None:
        # Numbers of names follow the order that the data has them in, which need not be the model's.
        raise EvaluationError(
            f"{clips.name}: its labels have names ({', '.join(clips.label_names[:3])}, ...), the model's classes have "
            "none.",
            hint=Hint("class_names", "FILE", "give the classes' names in order"),
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


def _truth(
    clips: EvaluationClips, places: Sequence[int], own_classes: Sequence[Sequence[int]], classes: int
) -> np.ndarray:
    """Which classes clips have, booleans `(clips, classes)`; clips without any are unusable."""
    truth = np.zeros((len(places), classes), dtype=bool)
    for row, own in enumerate(own_classes):
        wrong = [label for label in own if not 0 <= label < classes]
        if wrong:
            raise EvaluationError(
                f"{clips.name}: clip {clips.ids[places[row]]!r} has label {wrong[0]}, the model {classes} classes; "
                "evaluate on data with the model's labels."
            )
        truth[row, list(own)] = True
        if not len(own):
            clips.leave_out(Failure(clips.ids[places[row]], "has no label."))
    if not truth.any():
        raise EvaluationError(f"{clips.name}: no clip has a label; prepare the data with labels.")
    return truth
