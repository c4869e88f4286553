# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Settings of a local head's training that transformers' Trainer has, with other defaults.

In a module of their own, which the `training_args.bin` of checkpoints names.
"""

from dataclasses import dataclass

from .arguments import SmallRunArguments
from .settings import LocalHeadSettings, setting


@dataclass
class LocalHeadRunArguments(LocalHeadSettings, SmallRunArguments):
    """`SmallRunArguments` with `LocalHeadSettings` and the defaults of small heads on frozen towers."""

    output_dir: str | None = setting("outputs/local_head", "Where checkpoints, the model and metrics.json go.")
    per_device_train_batch_size: int = setting(16, "Clips of a process in a batch.")
    learning_rate: float = setting(2e-3, "Its highest value, after the warm-up.")
    weight_decay: float = setting(0.01, "Of AdamW.")
    save_steps: float = setting(500, "Steps from one checkpoint to the next.")

    def __post_init__(self) -> None:
        LocalHeadSettings.__post_init__(self)
        SmallRunArguments.__post_init__(self)
