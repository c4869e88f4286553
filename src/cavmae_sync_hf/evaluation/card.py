# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The card of a model, filled from results files and from a file of what only people know."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult

from ..files import StrPath
from ..inference.loading import (
    has_language_model,
    has_text,
    model_folder,
    read_config,
    read_joined_config,
    read_processor,
)
from ..model.errors_cavmae_sync import EvaluationError
from ..model.modeling_cavmae_sync import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
)
from ..model.modeling_lm_cavmae_sync import CavMaeSyncForConditionalGeneration
from ..model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model.processing_lm_cavmae_sync import CavMaeSyncLMProcessor
from ..model_card import CardDetails, create_model_card
from ..names import HUB, PUBLISHED
from ..provenance import folder_digest
from .results import read_results

_CLASSES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        CavMaeSyncModel,
        CavMaeSyncForPreTraining,
        CavMaeSyncForAudioVisualClassification,
        CavMaeSyncTextDualEncoderModel,
        CavMaeSyncForConditionalGeneration,
    )
}
# Task type and name of a card's entries, by task of a results file, in the order of the card. The types differ, since
# the Hub's metadata has one entry per type and data set.
_TASKS = {
    "retrieval": ("audio-visual-retrieval", "audio-visual retrieval"),
    "sync": ("audio-visual-synchrony", "audio-visual synchrony"),
    "localization": ("sound-localization", "sound localization"),
    "classification": ("video-classification", "audio-visual classification"),
    "text": ("text-to-audio-visual-retrieval", "texts of clips and moments"),
}
_TEXT_METRICS = {
    "text_to_clip_r1_audio_video": "recall at 1, text to clip (%)",
    "text_to_clip_r1_audio": "recall at 1, text to clip by audio (%)",
    "text_to_clip_r1_video": "recall at 1, text to clip by video (%)",
    "clip_to_text_r1": "recall at 1, clip to text (%)",
    "zero_shot_map": "mean average precision of classes by name (%)",
    "zero_shot_top1": "best class by name is there (%)",
    "moment_auroc_audio": "AUROC of names at moments, heard",
    "moment_auroc_video": "AUROC of names at moments, seen",
    "twins": "right clip of two that differ in time alone (%)",
}
# What is worth a line in a card, by task and by the metric's name.
_HEADLINES: dict[str, dict[str, str]] = {
    "retrieval": {
        "audio_to_video_r1": "recall at 1, audio to video",
        "audio_to_video_r5": "recall at 5, audio to video",
        "audio_to_video_r10": "recall at 10, audio to video",
        "video_to_audio_r1": "recall at 1, video to audio",
        "video_to_audio_r5": "recall at 5, video to audio",
        "video_to_audio_r10": "recall at 10, video to audio",
    },
    "classification": {
        "mean_average_precision": "mean average precision",
        "accuracy": "accuracy",
        "d_prime": "d-prime",
        "a_mean_average_precision": "mean average precision, audio alone",
        "v_mean_average_precision": "mean average precision, video alone",
        **{
            f"{view}_{metric}@1": f"{text}, one guess, {labels}"
            for view, labels in (
                ("av", "labels heard and seen"),
                ("a", "labels heard"),
                ("v", "labels seen"),
            )
            for metric, text in (("hit_rate", "hit rate"), ("accuracy", "subset accuracy"), ("f1", "F1 (micro)"))
        },
        "mu_a": "modality confusion, audio",
        "mu_v": "modality confusion, video",
        "mu_av": "modality confusion, both",
    },
    "localization": {
        "pointing_accuracy": "pointing accuracy",
        "pointing_chance": "pointing accuracy of a random patch",
        "pointing_other_audio": "pointing accuracy with another clip's audio",
        "mean_average_precision": "mean average precision",
        "chance_average_precision": "mean average precision of a constant map",
        "mean_iou": "mean IoU",
    },
    "sync": {
        "accuracy": "true alignment told from shifted ones",
        "other_audio_accuracy": "the same with another clip's audio (what timing alone tells)",
        "beyond_other_audio": "how much the clip's own audio adds to that",
        "auc": "AUC of one threshold",
        "equal_error_rate": "equal error rate of one threshold",
        **{
            f"within_{limit:g}{ending}": f"offset found within {limit:g} s{words}"
            for limit in (0.04, 0.08, 0.2)
            for ending, words in (("", ""), ("_other_audio", ", another clip's audio"), ("_chance", ", by chance"))
        },
        "median_error": "median error of the offset (s)",
        "other_audio_auc_best_contrast": "AUC of own audio against another clip's",
        "pair_accuracy": "right partner of two clips that differ in time alone",
    },
    "text": {
        "text_to_clip_r1": "recall at 1, text to clip (%)",
        "text_to_clip_r10": "recall at 10, text to clip (%)",
        "clip_to_text_r1": "recall at 1, clip to text (%)",
        "clip_to_text_r10": "recall at 10, clip to text (%)",
        **{
            f"{wording}_{metric}": f"{text}, {words}"
            for wording, words in (("unseen", "wordings not trained with"), ("seen", "wordings of training"))
            for metric, text in _TEXT_METRICS.items()
        },
        **{name: text for name, text in _TEXT_METRICS.items() if name.startswith("moment_auroc")},
        "chance_recall": "recall at 1 by chance (%)",
    },
}


def read_details(path: StrPath) -> CardDetails:
    """Read what a card says beyond the model and its results: a YAML mapping with the fields of `CardDetails`.

    Raises:
        EvaluationError: The file cannot be read, or has a field that is none.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise EvaluationError(f"{path}: the details cannot be read ({error}).") from error
    known = {item.name for item in fields(CardDetails)} - {"results"}
    if not isinstance(values, dict):
        raise EvaluationError(f"{path}: holds no fields; a details file has lines such as `license: apache-2.0`.")
    unknown = sorted(set(map(str, values)) - known)
    if unknown:
        raise EvaluationError(f"{path}: has the field {unknown[0]!r}; the fields are {', '.join(sorted(known))}.")
    for name in ("datasets", "evaluations", "tags"):
        if not isinstance(values.get(name, []), list):
            raise EvaluationError(f"{path}: `{name}` is a list, each entry on a line that begins with `-`.")
    for name in known - {"datasets", "evaluations", "tags"}:
        if not isinstance(values.get(name), str | None):
            raise EvaluationError(f"{path}: `{name}` is {values[name]!r}; it is a text, so quote it.")
    return CardDetails(**values)


def results_details(records: Sequence[Mapping[str, Any]]) -> tuple[list[EvalResult], list[str]]:
    """A card's metrics and how each was measured, from results records (see `read_results`)."""
    results, lines = [], []
    order = list(_TASKS)
    for record in sorted(records, key=lambda record: order.index(record["task"])):
        kind, task = _TASKS[record["task"]]
        data, counts = record["data"], record["counts"]
        seen, expected = counts["clips_seen"], counts["clips_expected"]
        name = f"{'SyncWorld, ' if data['kind'] == 'syncworld' else ''}{Path(data['name']).name} "
        name += f"({seen} clips)" if seen == expected else f"({seen} of {expected} clips)"
        for metric, text in _HEADLINES[record["task"]].items():
            value = record["metrics"].get(metric)
            if value is None:
                continue
            results.append(
                EvalResult(
                    task_type=kind,
                    task_name=task,
                    dataset_type=Path(data["name"]).name,
                    dataset_name=name,
                    metric_type=metric,
                    metric_name=text,
                    metric_value=round(value, 4),
                )
            )
        lines.append(_evidence(record, task, name))
    return results, lines


def _evidence(record: Mapping[str, Any], task: str, name: str) -> str:
    """Everything needed to measure a metric again, in one line."""
    rules, versions = record["protocol"], record["versions"]
    software = ", ".join(
        f"{package} {versions[package]}"
        for package in ("cavmae-sync-hf", "torch", "transformers")
        if package in versions
    )
    settings = record["settings"]
    where = f"{settings['dtype']} on {settings['device']}"
    if settings.get("backend", "torch") != "torch":
        where = f"{settings['precision']} on {settings['device']} ({settings['backend']})"
    line = (
        f"{task}, {name}: protocol {rules['name']} (version {rules['version']}: {rules['summary']}), data "
        f"`{record['data']['fingerprint'][:12]}`, {software}, {where}, {record['date'][:10]}"
    )
    return f"{line}: `{record['command']}`" if record.get("command") else line


def card_text(
    model: StrPath,
    results: Sequence[StrPath] = (),
    details: CardDetails | None = None,
) -> str:
    """The card of a model, filled from results files.

    Args:
        model: Folder with a model's `config.json` and `processor_config.json`, or another name that `load_model`
            takes. Its weights are not loaded; where a folder has none, `details.weights_sha256` says which they are.
        results: Files that `cavmae-sync evaluate` wrote for these weights.
        details: What the model and the results do not tell.

    Returns:
        The text of a `README.md`.

    Raises:
        EvaluationError: The folder holds no model, or a results file was measured on other weights.
        EvaluationError: A results file cannot be read.
    """
    name = os.fspath(model)
    folder = model_folder(name)
    described, processor = _describe(folder)
    details = details or CardDetails()
    records = [read_results(path) for path in results]
    digest = folder_digest(folder) or details.weights_sha256
    for path, record in zip(results, records, strict=True):
        measured = record["checkpoint"]["sha256"]
        if measured != digest:
            raise EvaluationError(
                f"{path}: was measured on weights with the checksum {measured[:12]}, {folder} has "
                f"{digest[:12] if digest else 'none'}; evaluate this model (or state `weights_sha256` in the details)."
            )
    metrics, lines = results_details(records)
    details = replace(
        details,
        results=[*details.results, *metrics],
        evaluations=[*lines, *details.evaluations],
    ).named(folder.resolve().name if Path(name).is_dir() else name.removeprefix(PUBLISHED).removeprefix(HUB))
    return str(create_model_card(described, processor, details))


def _describe(folder: Path) -> tuple[Any, CavMaeSyncProcessor | CavMaeSyncLMProcessor]:
    """A model without values, of the class that was saved, and its processor."""
    name = str(folder)
    answers = has_language_model(name)
    processor = read_processor(name, CavMaeSyncLMProcessor if answers else CavMaeSyncProcessor)
    config: Any = read_joined_config(name) if answers or has_text(name) else read_config(name)
    kinds = getattr(config, "architectures", None) or [CavMaeSyncModel.__name__]
    if kinds[0] not in _CLASSES:
        raise EvaluationError(f"{folder} holds a {kinds[0]}, which is no model of this package.")
    with torch.device("meta"):
        return _CLASSES[kinds[0]](config), processor
