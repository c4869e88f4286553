# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning of classifiers with transformers' Trainer, and predictions for whole clips.

`CavMaeSyncClassificationTrainer` adds to what all trainings share targets, a learning rate of its own for the head,
class-balanced sampling, the metrics of whole clips at every evaluation, and the mean of several checkpoints' weights.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.trainer import TRAINING_ARGS_NAME

from ..data.augmentation import AugmentationOptions
from ..data.dataset import CavMaeSyncCollator, ClassBalancedSampler
from ..data.streaming import CavMaeSyncStreamingDataset
from ..files import whole_files
from ..metrics import compute
from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.errors_cavmae_sync import TrainingError
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model_card import CardDetails
from .base import CavMaeSyncBaseTrainer
from .checkpoints import average_weights, checkpoints_of_epochs
from .classification_arguments import ClassificationArguments
from .freezing import Classifier, is_lora, merged_copy, plain_model
from .sets import EvaluationSet, ModalityCollator
from .speed import classification_flops

_ADAPTER = "adapter"
# What a result says of its size.
_COUNTS = ("samples", "classes", "classes_scored")

_INTENDED_USE = """\
Sorting clips into the classes that `config.json` lists, for search, statistics and sifting of collections. Test it on
your own data first: classes that the training clips did not show in all their kinds are missed, and a score is no
measured probability. It is not made to identify people, nor to decide about them."""


@dataclass
class Predictions:
    """What a classifier says of whole clips, on the CPU.

    Attributes:
        logits: Scores of the clips, `(clips, num_labels)` float32; with the mean-pooling head those whose
            probabilities are the mean of the frames'.
        targets: 0/1 floats `(clips, num_labels)`, or class numbers `(clips,)`.
        middle_logits: Scores of each clip's middle frame, `None` for heads that see all frames at once.
    """

    logits: Tensor
    targets: Tensor
    middle_logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.logits)


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
        TrainingError: The arguments ask for what this model or data set cannot do.
    """

    card_task = ("video-classification", "audio-visual classification")
    card_metrics = {
        "mean_average_precision": "mean average precision",
        "accuracy": "accuracy",
        "d_prime": "d-prime",
        "audio_mean_average_precision": "mean average precision, audio alone",
        "video_mean_average_precision": "mean average precision, video alone",
    }
    args: ClassificationArguments

    def __init__(
        self,
        model: Classifier,
        args: ClassificationArguments,
        *,
        processor: CavMaeSyncProcessor,
        augmentation: AugmentationOptions | None = None,
        base_model: str | None = None,
        **kwargs: Any,
    ) -> None:
        config: CavMaeSyncConfig = plain_model(model).config
        if config.problem_type not in ("single_label_classification", "multi_label_classification"):
            raise TrainingError(
                f"`config.problem_type` is {config.problem_type!r}; set single_label_classification or "
                "multi_label_classification."
            )
        if args.balanced_sampling and isinstance(kwargs.get("train_dataset"), CavMaeSyncStreamingDataset):
            raise TrainingError(
                "`balanced_sampling` draws clips by number, `streaming` reads them in order: take one."
            )
        if args.average_epochs and args.fsdp:
            raise TrainingError(
                "`average_epochs` cannot replace sharded weights; leave it out and call `average_checkpoints` on the "
                "saved checkpoints."
            )
        if args.average_epochs and is_lora(model):
            raise TrainingError("`average_epochs` would average low-rank changes; leave it or `lora_rank` out.")
        # How often a step goes through the encoder, counting forward as one and each kind of gradient as one.
        passes = 3 if any(weight.requires_grad for weight in plain_model(model).model.parameters()) else 1
        if is_lora(model):
            passes = 2
        self._problem_type, self._modality = str(config.problem_type), config.modality
        seed = args.seed if args.data_seed is None else args.data_seed
        self._clean = CavMaeSyncCollator(processor, problem_type=config.problem_type, num_labels=config.num_labels)
        batches = replace(self._clean, augmentation=augmentation, seed=seed)
        super().__init__(
            model,
            args,
            processor=processor,
            data_collator=ModalityCollator(batches, config.modality),
            flops_per_pair=classification_flops(config, passes),
            **kwargs,
        )
        self.averaged_epochs: list[int] | None = None
        self.base_model = base_model

    # Steps

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self.args.balanced_sampling:
            return super()._get_train_sampler(train_dataset)
        return BalancedEpochSampler(self.train_dataset if train_dataset is None else train_dataset, self._data_seed)

    def rate_multiple(self, name: str, weight: nn.Parameter) -> float:
        """The head learns at a rate of its own."""
        return self.args.head_lr_multiple if ".head." in f".{name}" else 1.0

    # Evaluation

    def evaluate_set(self, name: str, evaluation_set: EvaluationSet) -> dict[str, float]:
        """The metrics of whole clips; see `prediction_metrics`."""
        metrics = prediction_metrics(self.predict_set(evaluation_set), self._problem_type)
        if self.args.eval_each_modality and self._modality == "multimodal":
            for modality in ("audio", "video"):
                found = prediction_metrics(self.predict_set(evaluation_set, modality), self._problem_type)
                metrics |= {f"{modality}_{key}": value for key, value in found.items() if "middle" not in key}
        return metrics

    def predict_set(self, evaluation_set: EvaluationSet, modality: str | None = None) -> Predictions:
        """Predictions for all clips of a set, on every process.

        Args:
            evaluation_set: The clips.
            modality: `"audio"` or `"video"` to show a multimodal model that alone; default: the model's own.
        """
        collator = ModalityCollator(self._clean, modality or self._modality)
        return Predictions(**self.map_set(evaluation_set, _keep_predictions, collator))

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
        self._unwrapped().load_state_dict(average_weights(folders))

    def card_details(self, metrics: Mapping[str, float]) -> CardDetails:
        """As of `CavMaeSyncBaseTrainer`, with the use of a classifier and the model that it was tuned from."""
        details = replace(super().card_details(metrics), intended_use=_INTENDED_USE)
        base = self.base_model or ""
        on_hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", base) and not Path(base).exists()
        return replace(details, base_model=base) if on_hub else details

    def _course(self) -> str:
        course, averaged = super()._course(), self.averaged_epochs
        if self.args.head_lr_multiple != 1:
            course += f" The head's rate was {self.args.head_lr_multiple:g} times as high."
        if averaged:
            course += f" The weights are the mean of those after epochs {averaged[0]} to {averaged[1]}."
        return course

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As in Trainer; of LoRA, checkpoints hold the changes and the final folder a merged model and the changes."""
        target = Path(output_dir or str(self.args.output_dir))
        if not is_lora(self.model) or target != Path(str(self.args.output_dir)):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            with whole_files(target) as folder:
                self.model.save_pretrained(folder / _ADAPTER, state_dict=state_dict)
                merged_copy(self.model).save_pretrained(folder)
                self.processor.save_pretrained(folder)
                torch.save(self.args, folder / TRAINING_ARGS_NAME)


def _keep_predictions(output: Any, inputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
    """The fields of `Predictions`, for `map_clips`."""
    found = {"logits": output.logits.float(), "targets": batch["labels"].to(output.logits.device)}
    if output.frame_logits is not None:
        scores = output.frame_logits.float()
        clips, frames = scores.shape[:2]
        masks = [inputs[name] for name in ("padding_mask", "padding_mask_videos") if name in inputs]
        # Shorter clips are filled up at their end, so the middle is that of the frames that are there.
        several = len(masks) == len([name for name in ("pixel_values_videos", "input_values") if name in inputs])
        counts = torch.stack(masks).any(dim=0).sum(dim=1) if several else scores.new_full((clips,), frames)
        found["middle_logits"] = scores[torch.arange(clips, device=scores.device), counts.long() // 2]
    return found


def prediction_metrics(predictions: Predictions, problem_type: str) -> dict[str, float]:
    """The metrics of a set.

    Args:
        predictions: Of whole clips.
        problem_type: `"single_label_classification"` or `"multi_label_classification"`.

    Returns:
        `loss`, those of `classification_metrics` (`mean_average_precision`, `mean_roc_auc`, `d_prime`, `accuracy`,
        `hit_at_5`), and `middle_frame_mean_average_precision` and `middle_frame_accuracy` for heads that classify
        frame by frame. A value that is infinite (the `d_prime` of a perfect ranking) is left out.
    """
    logits, middle, targets = predictions.logits, predictions.middle_logits, predictions.targets
    single = problem_type == "single_label_classification"
    loss = functional.cross_entropy if single else functional.binary_cross_entropy_with_logits
    metrics = {"loss": float(loss(logits, targets))}

    def scores(given: Tensor) -> Tensor:
        """Scores that compare between clips, as probabilities do; classes that exclude each other need the softmax."""
        return given.log_softmax(dim=-1) if single else given

    found = compute("classification", predictions=scores(logits), references=targets)
    metrics |= {name: float(value) for name, value in found.items() if name not in _COUNTS}
    if middle is not None:
        found = compute("classification", predictions=scores(middle), references=targets, ks=())
        metrics |= {f"middle_frame_{name}": float(found[name]) for name in ("mean_average_precision", "accuracy")}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
