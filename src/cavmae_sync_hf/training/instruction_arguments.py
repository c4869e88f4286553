# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Settings of an instruction training that transformers' Trainer has, with other defaults.

In a module of their own, which the `training_args.bin` of checkpoints names.
"""

from dataclasses import dataclass

from ..model.errors_cavmae_sync import TrainingError
from .arguments import SmallRunArguments
from .settings import setting


@dataclass
class InstructionRunArguments(SmallRunArguments):
    """`SmallRunArguments` with the defaults of projectors and low-rank changes."""

    output_dir: str | None = setting(
        "outputs/instruction", "Where checkpoints, the model, metrics.json and tokens go."
    )
    per_device_train_batch_size: int = setting(16, "Chats of a process in a batch.")
    learning_rate: float = setting(2e-4, "Its highest value, after the warm-up.")
    weight_decay: float = setting(0.0, "Of AdamW.")
    save_steps: float = setting(500, "Steps from one checkpoint to the next.")
    average_tokens_across_devices: bool = setting(True, "Every token counts the same, whichever process has it.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push_to_hub:
            raise TrainingError(
                "`push_to_hub` would upload the tokens of clips as well; leave it out, and upload the folder `model` "
                "of output_dir when it is done: `push_to_hub(model, processor, NAME)`."
            )
        if self.eval_strategy != "no":
            raise TrainingError("`eval_strategy` must be no: answers are evaluated once, at the end.")
