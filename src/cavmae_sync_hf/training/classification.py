# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How is a classifier fine-tuned with transformers' Trainer?

`CavMaeSyncClassificationTrainer` adds to what all trainings share targets, a learning rate of its own for the head,
class-balanced sampling, the figures of whole clips at every evaluation, and the mean of several checkpoints' weights.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINING_ARGS_NAME

from ..data.augmentation import AugmentationOptions
from ..data.dataset import CavMaeSyncCollator, ClassBalancedSampler
from ..data.streaming import CavMaeSyncStreamingDataset
from ..model_card import CardDetails
from .averaging import average_weights, checkpoints_of_epochs
from .base import CavMaeSyncBaseTrainer
from .card import classification_details
from .classification_arguments import ClassificationArguments
from .classification_evaluation import classification_figures, predict_clips
from .flops import classification_flops
from .lora import is_lora, merged_copy, plain_model
from .sets import EvaluationSet

__all__ = ["BalancedEpochSampler", "CavMaeSyncClassificationTrainer", "ModalityCollator"]

_INPUTS = {"video": ("pixel_values_videos", "padding_mask_videos"), "audio": ("input_values", "padding_mask")}
_ADAPTER = "adapter"


@dataclass
class ModalityCollator:
    """Leaves out of a collator's batches what the model does not see: a modality, and masks that mask nothing.

    Args:
        collator: Makes the batches.
        modality: `"multimodal"`, `"audio"` or `"video"`.
    """

    collator: CavMaeSyncCollator
    modality: str = "multimodal"

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch."""
        batch = self.collator(samples)
        for modality, names in _INPUTS.items():
            if self.modality not in ("multimodal", modality):
                for name in names:
                    batch.pop(name, None)
        # On the CPU, where looking costs nothing: without a mask the model takes the path for whole clips alone.
        for name in ("padding_mask", "padding_mask_videos"):
            if name in batch and bool(batch[name].all()):
                del batch[name]
        return batch


class BalancedEpochSampler(ClassBalancedSampler):
    """`ClassBalancedSampler` that tells the data set the epoch as well; see `EpochSampler`.

    Args:
        dataset: Its `labels()` decide the draws.
        seed: Seeds them, together with the epoch.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        super().__init__(dataset.labels(), seed=seed)
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """Change the draws."""
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)


class CavMaeSyncClassificationTrainer(CavMaeSyncBaseTrainer):
    """transformers' Trainer for `CavMaeSyncForAudioVisualClassification`.

    Args:
        model: From `build_classifier`; its `config.modality` decides which inputs it is given.
        args: `ClassificationArguments`.
        processor: The model's `CavMaeSyncProcessor`, saved with every checkpoint.
        augmentation: Its mixup and label smoothing are applied to training batches; the rest is the data set's.
        base_model: What the model starts from; the card names it where it is a repository on the Hub.
        kwargs: Other arguments of `CavMaeSyncBaseTrainer` (`train_dataset`, `evaluation_sets`) and of Trainer.

    Raises:
        ValueError: The arguments ask for what this model or data set cannot do.
    """

    args: ClassificationArguments

    def __init__(
        self,
        model: Any,
        args: ClassificationArguments,
        *,
        processor: Any,
        augmentation: AugmentationOptions | None = None,
        base_model: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = self._classes = plain_model(model).config
        if config.problem_type not in ("single_label_classification", "multi_label_classification"):
            raise ValueError(
                f"`config.problem_type` is {config.problem_type!r}; set single_label_classification or "
                "multi_label_classification."
            )
        if args.balanced_sampling and isinstance(kwargs.get("train_dataset"), CavMaeSyncStreamingDataset):
            raise ValueError("`balanced_sampling` draws clips by number, `streaming` reads them in order; take one.")
        if args.average_epochs and args.fsdp:
            raise ValueError(
                "`average_epochs` cannot replace sharded weights; leave it out and call `average_checkpoints` on the "
                "saved checkpoints."
            )
        if args.average_epochs and is_lora(model):
            raise ValueError("`average_epochs` would average low-rank changes; leave it or `lora_rank` out.")
        targets = {"problem_type": config.problem_type, "num_labels": config.num_labels}
        seed = args.seed if args.data_seed is None else args.data_seed
        self._clean = CavMaeSyncCollator(processor, **targets)
        batches = CavMaeSyncCollator(processor, **targets, augmentation=augmentation, seed=seed)
        super().__init__(
            model,
            args,
            processor=processor,
            data_collator=ModalityCollator(batches, config.modality),
            flops_per_pair=classification_flops(config, _encoder_passes(model)),
            **kwargs,
        )
        self.averaged_epochs: list[int] | None = None
        self.base_model = base_model

    # Steps

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self.args.balanced_sampling:
            return super()._get_train_sampler(train_dataset)
        return BalancedEpochSampler(self.train_dataset if train_dataset is None else train_dataset, self._data_seed)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's loss, checked."""
        fed = {name: inputs[name] for names in _INPUTS.values() for name in names if name in inputs}
        output = model(**fed, labels=inputs["labels"])
        if model.training:
            if not bool(torch.isfinite(output.loss.detach())):
                self._refuse(output, fed, inputs.get("clip_ids"))
            self._note(output, fed)
        return (output.loss, output) if return_outputs else output.loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's optimiser, with a learning rate of its own for the head."""
        multiple = self.args.head_lr_multiple
        if self.optimizer is None and multiple != 1:
            chosen = self.model if model is None else model
            kind, settings = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, chosen)
            groups = self._parameter_groups(chosen, settings.get("lr", self.args.learning_rate), multiple)
            self.optimizer_cls_and_kwargs = (kind, settings | {"params": groups})
        return super().create_optimizer(model)

    def _parameter_groups(self, model: Any, rate: float, multiple: float) -> list[dict[str, Any]]:
        """Weights by whether they are the head's and whether they decay; the encoder's first, whose rate is logged."""
        decaying = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[bool, bool], list[Any]] = {
            (head, decays): [] for head in (False, True) for decays in (True, False)
        }
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups[".head." in f".{name}", name in decaying].append(parameter)
        return [
            {
                "params": parameters,
                "lr": rate * multiple if head else rate,
                "weight_decay": self.args.weight_decay if decays else 0.0,
            }
            for (head, decays), parameters in groups.items()
            if parameters
        ]

    # Evaluation

    def evaluate_set(self, name: str, evaluation_set: EvaluationSet) -> dict[str, float]:
        """The figures of whole clips; see `classification_figures`."""
        config = self._classes
        metrics = classification_figures(self.predict_set(evaluation_set), config.problem_type)
        if self.args.eval_each_modality and config.modality == "multimodal":
            for modality in ("audio", "video"):
                found = classification_figures(self.predict_set(evaluation_set, modality), config.problem_type)
                metrics |= {f"{modality}_{key}": value for key, value in found.items() if "middle" not in key}
        return metrics

    def predict_set(self, evaluation_set: EvaluationSet, modality: str | None = None) -> Any:
        """Predictions for all clips of a set, on every process.

        Args:
            evaluation_set: The clips.
            modality: `"audio"` or `"video"` to show a multimodal model that alone; default: the model's own.
        """
        model = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        training = model.training
        model.eval()
        try:
            return predict_clips(
                model,
                evaluation_set,
                ModalityCollator(self._clean, modality or self._classes.modality),
                accelerator=self.accelerator,
                batch_frames=self.args.eval_batch_frames,
                num_workers=self.args.dataloader_num_workers,
            )
        finally:
            model.train(training)

    # The end

    def after_training(self) -> None:
        """Take the mean of the checkpoints that `average_epochs` names for the final weights."""
        if self.args.average_epochs:
            first, last = self.args.average_epochs
            self.accelerator.wait_for_everyone()  # the first process may still be writing the last one
            self.load_average(checkpoints_of_epochs(str(self.args.output_dir), first, last))
            self.averaged_epochs = [first, last]

    def load_average(self, folders: Sequence[Path]) -> None:
        """Give the model, whose weights must not be sharded, the mean of several checkpoints' weights.

        Raises:
            TrainingError: The checkpoints do not belong together.
        """
        model = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        model.load_state_dict(average_weights(folders))

    def card_details(self, metrics: dict[str, float]) -> CardDetails:
        """The run's settings and the figures of the last evaluation."""
        counts = {name: len(evaluation_set) for name, evaluation_set in self.evaluation_sets.items()}
        steps, processes = self.state.global_step, self.args.world_size
        details = classification_details(
            self.args, metrics, counts, steps, processes, len(self.train_dataset), averaged=self.averaged_epochs
        )
        base = self.base_model or ""
        on_hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", base) and not Path(base).exists()
        return replace(details, base_model=base) if on_hub else details

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As in Trainer; of LoRA, checkpoints hold the changes and the final folder a merged model and the changes."""
        target = Path(output_dir or str(self.args.output_dir))
        if not is_lora(self.model) or target != Path(str(self.args.output_dir)):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            self.model.save_pretrained(target / _ADAPTER, state_dict=state_dict)
            merged_copy(self.model).save_pretrained(target)
            self.processor.save_pretrained(target)
            torch.save(self.args, target / TRAINING_ARGS_NAME)


def _encoder_passes(model: Any) -> int:
    """How often a step goes through the encoder, counting forward as one and each kind of gradient as one."""
    if is_lora(model):
        return 2
    return 3 if any(parameter.requires_grad for parameter in model.model.parameters()) else 1
