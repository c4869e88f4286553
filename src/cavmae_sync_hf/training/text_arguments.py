# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Settings of a text side's training that transformers' Trainer has, with other defaults.

In a module of their own, which the `training_args.bin` of checkpoints names.
"""

from dataclasses import dataclass

from ..model.errors_cavmae_sync import TrainingError
from .arguments import SmallRunArguments
from .settings import setting


@dataclass
class TextRunArguments(SmallRunArguments):
    """`SmallRunArguments` with the defaults of training what joins two frozen encoders."""

    output_dir: str | None = setting("outputs/text", "Where checkpoints, the model, metrics.json and embeddings go.")
    per_device_train_batch_size: int = setting(64, "Clips of a process in a batch.")
    learning_rate: float = setting(1e-3, "Its highest value, after the warm-up.")
    weight_decay: float = setting(0.05, "Of AdamW.")
    save_steps: float = setting(200, "Steps from one checkpoint to the next.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push_to_hub:
            raise TrainingError(
                "`push_to_hub` would upload the embeddings as well; leave it out, and upload the folder `model` of "
                "output_dir when it is done: `push_to_hub(model, processor, NAME)`."
            )
        if self.eval_strategy != "no":
            raise TrainingError("`eval_strategy` must be no: a text side is evaluated once, at the end.")
