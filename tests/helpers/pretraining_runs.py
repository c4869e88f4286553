"""Small pretrainings, for the tests of them."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from cavmae_sync_hf import CavMaeSyncForPreTraining
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.data.streaming import CavMaeSyncStreamingDataset
from cavmae_sync_hf.training import CavMaeSyncTrainer, PretrainingArguments
from helpers.tiny import tiny_config
from helpers.tiny_shards import tiny_processor

ARGUMENTS: dict[str, Any] = {
    "use_cpu": True, "per_device_train_batch_size": 4, "max_steps": 8, "learning_rate": 3e-3, "save_strategy": "no",
    "logging_steps": 1, "disable_tqdm": True, "dataloader_pin_memory": False, "log_level": "error",
}  # fmt: skip


def make_trainer(
    shards: Path, out: Path, train_set: Any = None, *, model: Any = None, callbacks: Any = None, **settings: Any
) -> CavMaeSyncTrainer:
    """A trainer over tiny shards, its settings `ARGUMENTS` but for those given; `model`: settings of its config."""
    torch.manual_seed(3)
    processor = tiny_processor()
    dataset = CavMaeSyncDataset(shards, processor, frames=2) if train_set is None else train_set(shards, processor)
    return CavMaeSyncTrainer(
        CavMaeSyncForPreTraining(tiny_config(contrastive_loss_weight=1.0, **(model or {}))),
        PretrainingArguments(output_dir=str(out), **(ARGUMENTS | settings)),
        processor=processor,
        train_dataset=dataset,
        callbacks=callbacks,
    )


class PoisonedDataset(CavMaeSyncDataset):
    """The first frame or window of the clip `clip-5`, of the input named `poisoned`, holds a NaN."""

    poisoned = "input_values"

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        if sample["clip_id"] == "clip-5":
            sample[self.poisoned][0][..., 3, 3] = torch.nan
        return sample


def streaming(shards: Path, processor: Any) -> CavMaeSyncStreamingDataset:
    """A training set that is streamed."""
    return CavMaeSyncStreamingDataset(shards, processor, frames=2, batch_size=4, uneven="drop", shuffle_buffer=5)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def losses(trainer: Trainer) -> list[float]:
    """The logged losses."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class AtStep(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action()
