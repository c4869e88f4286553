"""Small trainings of classifiers, for the tests of them: in this process, and in each of two."""

import os
from pathlib import Path
from typing import Any

import torch

from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncModel
from cavmae_sync_hf.training import (
    CavMaeSyncClassificationTrainer,
    ClassificationArguments,
    ClassificationModelArguments,
    EvaluationSet,
    augmentation_options,
    build_classifier,
    find_labels,
    starting_point,
)
from helpers import pretraining_runs
from helpers.pretraining_runs import weights
from helpers.tiny import TINY, tiny_config
from helpers.tiny_shards import tiny_processor

SIZES = {name: value for name, value in TINY.items() if name != "num_labels"}
ARGUMENTS = pretraining_runs.ARGUMENTS | {"max_steps": 4}


class Marked(CavMaeSyncDataset):
    """Clips whose labels can be heard: each is a raised stripe of three mel bins."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        for label in sample["labels"]:
            sample["input_values"][..., 3 * label : 3 * label + 3] += 2.0
        return sample


def save_pretrained(folder: Path, **settings: Any) -> Path:
    """A folder with the tiny encoder and its processor, as pretraining leaves it."""
    torch.manual_seed(5)
    CavMaeSyncModel(tiny_config(**settings)).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def make_trainer(
    shards: Path,
    out: Path,
    *,
    model: dict[str, Any] | None = None,
    augmentation: Any = None,
    frames: Any = 2,
    evaluation: bool = False,
    data: Any = CavMaeSyncDataset,
    callbacks: Any = None,
    **settings: Any,
) -> CavMaeSyncClassificationTrainer:
    """A trainer over tiny shards, from random weights unless `model` has `init_from`."""
    chosen = dict(model or {})
    if "init_from" not in chosen:
        chosen["model_config"] = SIZES | chosen.get("model_config", {})
    model_arguments = ClassificationModelArguments(**chosen)
    start = starting_point(model_arguments)
    options = augmentation_options(augmentation)
    train_set = data(shards, start.processor, frames=frames, augmentation=options)
    kind = Marked if data is Marked else CavMaeSyncDataset
    sets = {"all": EvaluationSet(kind(shards, start.processor, frames="all"))} if evaluation else {}
    labels = find_labels(train_set, sets, model_arguments.class_names, model_arguments.problem_type)
    base_model = settings.pop("base_model", None)
    return CavMaeSyncClassificationTrainer(
        build_classifier(start, labels, model_arguments, seed=3),
        ClassificationArguments(output_dir=str(out), **(ARGUMENTS | settings)),
        processor=start.processor,
        augmentation=options,
        base_model=base_model,
        train_dataset=train_set,
        evaluation_sets=sets,
        callbacks=callbacks,
    )


# Plain steps along the gradient: Adam would blow up the rounding of gradients that are zero in truth.
SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3, "head_lr_multiple": 2.0}


def train_rank(rank: int, shards: Path, out: Path, heads: tuple[str, ...]) -> dict[str, Any]:
    """Three steps of one of two processes with each head; what it was given, what came out."""
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2", OMP_NUM_THREADS="1")
    found = {}
    for head in heads:
        seen: list[str] = []

        class Watched(CavMaeSyncDataset):
            def __getitem__(self, index: int, seen: list[str] = seen) -> dict[str, Any]:
                sample = super().__getitem__(index)
                seen.append(sample["clip_id"])
                return sample

        trainer = make_trainer(
            shards, out / head, model={"classifier": head}, evaluation=True, data=Watched, ddp_backend="gloo",
            per_device_train_batch_size=2, **SGD,
        )  # fmt: skip
        assert trainer.args.ddp_find_unused_parameters is False
        trainer.train()
        metrics = trainer.evaluate()
        trainer.save_model()
        found[head] = {"seen": seen, "metrics": metrics, "weights": weights(trainer)}
    return found
