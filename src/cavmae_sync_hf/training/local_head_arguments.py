# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Settings of a local head's training that transformers' Trainer has, with other defaults.

In a module of their own, which the `training_args.bin` of checkpoints names.
"""

from dataclasses import dataclass

from transformers.trainer_utils import SchedulerType

from .arguments import RunArguments
from .settings import LocalHeadSettings, setting


@dataclass
class LocalHeadRunArguments(LocalHeadSettings, RunArguments):
    """`RunArguments` with `LocalHeadSettings`, whose defaults are those of small heads on frozen towers."""

    output_dir: str | None = setting("outputs/local_head", "Where checkpoints, the model and metrics.json go.")
    max_steps: int = setting(1000, "Steps to train.")
    per_device_train_batch_size: int = setting(16, "Clips of a process in a batch.")
    learning_rate: float = setting(2e-3, "Its highest value, after the warm-up.")
    warmup_steps: float = setting(0.1, "Steps of warm-up, or their share of all.")
    lr_scheduler_type: SchedulerType | str = setting("cosine", "Course of the rate.")
    weight_decay: float = setting(0.01, "Of AdamW.")
    logging_steps: float = setting(0.1, "Steps from one line of the log to the next, or their share of all.")
    save_steps: float = setting(500, "Steps from one checkpoint to the next.")
    save_total_limit: int | None = setting(1, "Checkpoints that are kept.")

    def __post_init__(self) -> None:
        LocalHeadSettings.__post_init__(self)
        RunArguments.__post_init__(self)
