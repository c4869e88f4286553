"""What each of two processes does in the tests of distributed training with Trainer."""

import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from cavmae_sync_hf.training import CavMaeSyncTrainer, EvaluationSet, PretrainingArguments
from cavmae_sync_hf.training.settings import TextArguments
from cavmae_sync_hf.training.text import run_text
from cavmae_sync_hf.training.text_arguments import TextRunArguments
from helpers.pretraining_runs import PoisonedDataset
from helpers.tiny import tiny_config
from helpers.tiny_shards import tiny_processor


def train_text(rank: int, settings: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """`cavmae-sync text` on two processes; what the first one records."""
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2", OMP_NUM_THREADS="1")
    # A run to its end leaves the group, whose store the other may still wait at.
    with mock.patch("torch.distributed.destroy_process_group"):
        status, record = run_text(TextArguments(**settings), TextRunArguments(ddp_backend="gloo", **run))
    return {"status": status, "loss": record["loss"]}


FSDP = {
    "version": 2,
    "reshard_after_forward": True,
    "transformer_layer_cls_to_wrap": ["CavMaeSyncLayer", "CavMaeSyncJointLayer"],
    "state_dict_type": "FULL_STATE_DICT",
}


def train(rank: int, shards: Path, out: Path, sharded: bool, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Three steps with a checkpoint after the second, with `more` settings; what was seen, what came out."""
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2", OMP_NUM_THREADS="1")
    torch.manual_seed(3)
    model = CavMaeSyncForPreTraining(tiny_config(contrastive_loss_weight=1.0))
    processor = tiny_processor()
    settings: dict[str, Any] = {"fsdp": True, "fsdp_config": dict(FSDP)} if sharded else {}
    settings |= more or {}
    arguments = PretrainingArguments(
        output_dir=str(out), use_cpu=True, ddp_backend="gloo", per_device_train_batch_size=3, max_steps=3,
        learning_rate=3e-3, save_steps=2, logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False,
        log_level="error", seed=1, **settings,
    )  # fmt: skip
    if sharded:
        # accelerate shards on accelerators alone, and quietly trains whole models on CPUs; torch shards on both.
        arguments.device  # noqa: B018 - sets up the processes' state
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    seen: list[str] = []

    class Watched(CavMaeSyncDataset):
        def __getitem__(self, index: int) -> dict[str, Any]:
            sample = super().__getitem__(index)
            seen.append(sample["clip_id"])
            return sample

    trainer = CavMaeSyncTrainer(
        model, arguments, processor=processor, train_dataset=Watched(shards, processor, frames=2),
        evaluation_sets={"all": EvaluationSet(CavMaeSyncDataset(shards, processor, frames="all"))},
    )  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    audio = trainer.embed(trainer.evaluation_sets["all"]).audio
    losses = [entry["contrastive_loss"] for entry in trainer.state.log_history if "contrastive_loss" in entry]
    split = any(isinstance(parameter, DTensor) for parameter in trainer.model_wrapped.parameters())
    return {"split": split, "seen": seen, "metrics": metrics, "losses": losses, "audio": audio}


def train_poisoned(rank: int, shards: Path, out: Path) -> dict[str, Any]:
    """A run in which one clip's audio is not finite, looked at after three steps; its error and its weights."""
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2", OMP_NUM_THREADS="1")

    torch.manual_seed(3)
    processor = tiny_processor()
    trainer = CavMaeSyncTrainer(
        CavMaeSyncForPreTraining(tiny_config(contrastive_loss_weight=0.0)),
        PretrainingArguments(
            output_dir=str(out), use_cpu=True, ddp_backend="gloo", per_device_train_batch_size=2, max_steps=3,
            save_strategy="no", logging_steps=3, disable_tqdm=True, dataloader_pin_memory=False, log_level="error",
        ),
        processor=processor,
        train_dataset=PoisonedDataset(shards, processor, frames=2),
    )  # fmt: skip
    try:
        trainer.train()
        error = ""
    except ValueError as found:
        error = str(found)
    return {"error": error, "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()}}
