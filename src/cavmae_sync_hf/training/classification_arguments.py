# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Settings of a classifier's training, transformers' own among them.

In a module of their own, which the `training_args.bin` of checkpoints names.
"""

from dataclasses import dataclass

from ..model.errors_cavmae_sync import Hint, TrainingError
from .arguments import RunArguments
from .settings import ClassificationSettings


@dataclass
class ClassificationArguments(ClassificationSettings, RunArguments):
    """`RunArguments` with `ClassificationSettings`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_lr_multiple <= 0:
            raise TrainingError(f"`head_lr_multiple` is {self.head_lr_multiple}; it must be positive.")
        if self.label_smoothing_factor:
            raise TrainingError(
                "`label_smoothing_factor` has no effect here; use `label_smoothing` of `augmentation`."
            )
        if self.average_epochs in ([0], []):
            self.average_epochs = None
        if self.average_epochs is not None:
            self._check_average(self.average_epochs)

    def _check_average(self, epochs: list[int]) -> None:
        if len(epochs) != 2 or not 1 <= epochs[0] <= epochs[1]:
            raise TrainingError(f"`average_epochs` is {epochs}; give the first and the last epoch, such as 3 15.")
        first, last = epochs
        if self.max_steps > 0 or last > self.num_train_epochs:
            length = f"{self.max_steps} steps" if self.max_steps > 0 else f"{self.num_train_epochs:g} epochs"
            raise TrainingError(
                f"`average_epochs` goes to epoch {last}, the training has {length}; raise `num_train_epochs` "
                "(and leave `max_steps` out), or average fewer."
            )
        if self.save_strategy != "epoch":
            hint = Hint("save_strategy", "epoch", "have them")
            raise TrainingError("`average_epochs` takes the checkpoints of epochs.", hint=hint)
        kept, needed = self.save_total_limit, int(self.num_train_epochs) - first + 1
        if kept is not None and kept < needed:
            raise TrainingError(
                f"`save_total_limit` of {kept} deletes checkpoints that `average_epochs` needs.",
                hint=Hint("save_total_limit", needed, "keep them"),
            )
        if self.load_best_model_at_end:
            raise TrainingError(
                "`average_epochs` and `load_best_model_at_end` both choose the final weights; take one."
            )
