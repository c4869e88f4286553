# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Settings of a text side's training that transformers' Trainer has, with other defaults.

In a module of their own, which the `training_args.bin` of checkpoints names.
"""

from dataclasses import dataclass

from transformers.trainer_utils import SchedulerType

from ..model.errors_cavmae_sync import TrainingError
from .arguments import RunArguments
from .settings import setting


@dataclass
class TextRunArguments(RunArguments):
    """`RunArguments` whose defaults are those of training what joins two frozen encoders."""

    output_dir: str | None = setting("outputs/text", "Where checkpoints, the model, metrics.json and embeddings go.")
    max_steps: int = setting(1000, "Steps to train.")
    per_device_train_batch_size: int = setting(64, "Clips of a process in a batch.")
    learning_rate: float = setting(1e-3, "Its highest value, after the warm-up.")
    warmup_steps: float = setting(0.1, "Steps of warm-up, or their share of all.")
    lr_scheduler_type: SchedulerType | str = setting("cosine", "Course of the rate.")
    weight_decay: float = setting(0.05, "Of AdamW.")
    logging_steps: float = setting(0.1, "Steps from one line of the log to the next, or their share of all.")
    save_steps: float = setting(200, "Steps from one checkpoint to the next.")
    save_total_limit: int | None = setting(1, "Checkpoints that are kept.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push_to_hub:
            raise TrainingError(
                "`push_to_hub` would upload the embeddings as well; leave it out, and upload the folder `model` of "
                "output_dir when it is done: `push_to_hub(model, processor, NAME)`."
            )
        if self.eval_strategy != "no":
            raise TrainingError("`eval_strategy` must be no: a text side is evaluated once, at the end.")
