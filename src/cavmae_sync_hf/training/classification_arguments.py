# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Settings of a classifier's training, beside those that every training has.

In a module of their own, which the `training_args.bin` of checkpoints names.
"""

from dataclasses import dataclass
from typing import Literal

from ..model.errors_cavmae_sync import Hint, TrainingError
from .arguments import ModelArguments, RunArguments, setting


@dataclass
class ClassificationModelArguments(ModelArguments):
    """Which classifier is trained, from which weights, and which of them.

    Attributes:
        init_from: As in `ModelArguments`. A pretrained model gives the encoder; a classifier gives its head as well
            where it has the same classes and the same kind of head.
        from_scratch: Take the sizes and the processor of `init_from`, but draw all weights at random, to see what
            pretraining is worth.
        modality: What the model sees; `"audio"` and `"video"` leave the other tower out. Default: that of the model
            that is continued, else both.
        classifier: `"mean_pooling"` (CAV-MAE: frames are classified one by one and their predictions averaged) or
            `"frame_attention"` (CAV-MAE Sync: layers that attend over the clip's frames; give `frames_per_clip` as
            many frames as a clip has). Default: that of the model that is continued, else mean pooling.
        problem_type: Cross-entropy over classes that exclude each other, or binary cross-entropy of each class.
            Default: the former where every training clip has exactly one label.
        class_names: File with the names of the classes (text lines, JSON, or a CSV table of index, mid and display
            name); default: those stored with the training set.
        freeze: `"encoder"` trains the head alone.
        lora_rank: Rank of low-rank changes to the encoder (LoRA), trained instead of its weights; `0`: none. Needs
            the `lora` extra.
        lora_alpha: Their scale is this over the rank; `0`: twice the rank.
        lora_dropout: Dropout on their inputs.
        lora_targets: Last parts of the names of the linear layers that get them.
    """

    from_scratch: bool = setting(False, "Take sizes and processor of init_from, and no weights.")
    modality: Literal["multimodal", "audio", "video"] | None = setting(None, "What the model sees.")
    classifier: Literal["mean_pooling", "frame_attention"] | None = setting(None, "Which head the model has.")
    problem_type: Literal["single_label_classification", "multi_label_classification"] | None = setting(
        None, "Cross-entropy, or binary cross-entropy of each class."
    )
    class_names: str | None = setting(None, "File of class names; empty: those stored with the training set.")
    freeze: Literal["none", "encoder"] = setting("none", "What is not trained.")
    lora_rank: int = setting(0, "Rank of low-rank changes to the encoder; 0: none.")
    lora_alpha: float = setting(0.0, "Scale of the changes; 0: twice the rank.")
    lora_dropout: float = setting(0.0, "Dropout on the inputs of the changes.")
    lora_targets: list[str] = setting(["q_proj", "v_proj"], "Linear layers that are changed.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_scratch and not self.init_from:
            raise TrainingError(
                "`from_scratch` takes the sizes of `init_from`, which is empty; name a model or drop it."
            )
        if self.lora_rank < 0 or not 0 <= self.lora_dropout < 1:
            raise TrainingError(
                f"`lora_rank` is {self.lora_rank} and `lora_dropout` {self.lora_dropout}; use a rank of 0 (none) or "
                "more, and a dropout of 0 or more, below 1."
            )
        if self.lora_rank and self.freeze != "none":
            raise TrainingError(
                "`lora_rank` leaves the encoder's own weights as they are already; leave `freeze` out."
            )


@dataclass
class ClassificationArguments(RunArguments):
    """`RunArguments` with what the training of a classifier needs beside them.

    Attributes:
        head_lr_multiple: The head, which starts at random, learns at so many times `learning_rate` (published: 10 to
            100).
        balanced_sampling: Draw clips, with replacement, so that rare classes come as often as common ones.
        average_epochs: First and last epoch whose checkpoints are averaged, weight by weight, into the final model;
            as two numbers. Needs `save_strategy: epoch` and a `save_total_limit` that keeps them. `0`: none.
        eval_each_modality: Evaluate a multimodal model with audio alone and with video alone as well.
    """

    head_lr_multiple: float = setting(1.0, "The head's learning rate over the encoder's.")
    balanced_sampling: bool = setting(False, "Draw rare classes as often as common ones.")
    average_epochs: list[int] | None = setting(None, "First and last epoch whose checkpoints are averaged; 0: none.")
    eval_each_modality: bool = setting(False, "Evaluate with audio alone and video alone, too.")

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
