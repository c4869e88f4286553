# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Training: arguments, data sets, initial weights, transformers' Trainer for these models, and probes.

Names are loaded on first use: recipes and settings are read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arguments import PretrainingArguments, RunArguments, parse_arguments
    from .base import CavMaeSyncBaseTrainer, EpochSampler, SaveOnSignal, run_to_end
    from .checkpoints import average_checkpoints, average_weights, checkpoints_of_epochs
    from .classification import CavMaeSyncClassificationTrainer, Predictions, prediction_metrics
    from .classification_arguments import ClassificationArguments
    from .earlier_run import check_output, last_checkpoint
    from .evaluation import Embeddings, evaluate_alignment
    from .freezing import add_lora, freeze_idle, freeze_unused, idle_modules, merged_copy
    from .initialization import (
        LabelSpace,
        StartingPoint,
        build_classifier,
        build_for_pretraining,
        find_labels,
        starting_point,
    )
    from .local_head import CavMaeSyncLocalHeadTrainer
    from .local_head_arguments import LocalHeadRunArguments
    from .pretraining import CavMaeSyncTrainer
    from .probe import run_probe
    from .recipe import find_recipe, list_recipes
    from .sets import (
        EvaluationSet,
        InMemoryDataset,
        ModalityCollator,
        augmentation_options,
        build_sets,
        make_syncworld,
    )
    from .settings import ClassificationModelArguments, DataArguments, ModelArguments, ProbeArguments
    from .speed import classification_flops, measure_peak, pretraining_flops

# Module -> the public names in it.
_PUBLIC: dict[str, tuple[str, ...]] = {
    "arguments": ("PretrainingArguments", "RunArguments", "parse_arguments"),
    "base": ("CavMaeSyncBaseTrainer", "EpochSampler", "SaveOnSignal", "run_to_end"),
    "checkpoints": ("average_checkpoints", "average_weights", "checkpoints_of_epochs"),
    "classification": ("CavMaeSyncClassificationTrainer", "Predictions", "prediction_metrics"),
    "classification_arguments": ("ClassificationArguments",),
    "earlier_run": ("check_output", "last_checkpoint"),
    "evaluation": ("Embeddings", "evaluate_alignment"),
    "freezing": ("add_lora", "freeze_idle", "freeze_unused", "idle_modules", "merged_copy"),
    "initialization": (
        "LabelSpace",
        "StartingPoint",
        "build_classifier",
        "build_for_pretraining",
        "find_labels",
        "starting_point",
    ),
    "local_head": ("CavMaeSyncLocalHeadTrainer",),
    "local_head_arguments": ("LocalHeadRunArguments",),
    "pretraining": ("CavMaeSyncTrainer",),
    "probe": ("run_probe",),
    "recipe": ("find_recipe", "list_recipes"),
    "sets": (
        "EvaluationSet",
        "InMemoryDataset",
        "ModalityCollator",
        "augmentation_options",
        "build_sets",
        "make_syncworld",
    ),
    "settings": ("ClassificationModelArguments", "DataArguments", "ModelArguments", "ProbeArguments"),
    "speed": ("classification_flops", "measure_peak", "pretraining_flops"),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


__all__ = sorted(_MODULES)
