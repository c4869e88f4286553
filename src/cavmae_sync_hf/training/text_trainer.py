# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Training of a text side with transformers' Trainer: of what joins two frozen encoders, or of the encoders, too."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..data.dataset import CavMaeSyncCollator
from ..model.errors_cavmae_sync import TrainingError
from ..model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .base import CavMaeSyncBaseTrainer
from .freezing import freeze_for_text
from .sets import INPUT_NAMES, ModalityCollator
from .settings import TextArguments
from .speed import pretraining_flops
from .text_arguments import TextRunArguments
from .text_data import CaptionCollator, CaptionedClips, KnownTexts, Moments, TextSet, TwinsSampler, collate_moments

_INPUTS = (
    *INPUT_NAMES, "audio_embeds", "video_embeds", "teacher_embeds", "text_hidden_states", "input_ids",
    "attention_mask", "token_type_ids", "caption_clip_ids", "caption_keys", "clip_keys", "caption_moments",
    "hard_clip_ids",
)  # fmt: skip
# Scalars such as the scale of similarities have far to go.
_SCALARS = 10.0


class CavMaeSyncTextTrainer(CavMaeSyncBaseTrainer):
    """transformers' Trainer for `CavMaeSyncTextDualEncoderModel`.

    Args:
        model: The model; what is trained of it needs gradients.
        args: `TextRunArguments`. Its batch is made smaller where there are fewer clips.
        rates: Times `learning_rate` by the part of the model that weights belong to, such as `av_model`; others: 1.
        kwargs: Other arguments of `CavMaeSyncBaseTrainer`.
    """

    logged_parts = (
        "text_audio_loss", "text_video_loss", "text_audio_video_loss", "moment_loss", "audio_video_loss",
        "bridge_loss",
    )  # fmt: skip
    args: TextRunArguments

    def __init__(self, model: Any, args: TextRunArguments, *, rates: dict[str, float] | None = None, **kwargs: Any):
        self._rates = rates or {}
        self._still = [
            part for part in (model.av_model, model.text_model) if not any(w.requires_grad for w in part.parameters())
        ]
        trains_towers = model.av_model not in self._still
        batch = max(1, len(kwargs["train_dataset"]) // args.world_size)
        args.per_device_train_batch_size = min(args.per_device_train_batch_size, batch)
        if not trains_towers:
            args.dataloader_num_workers = 0  # batches come from memory
        super().__init__(model, args, flops_per_pair=_flops(model.av_model) if trains_towers else 0, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, CaptionedClips):
            return super()._get_train_sampler(dataset)
        return TwinsSampler(dataset, self._data_seed)

    def rate_multiple(self, name: str, weight: nn.Parameter) -> float:
        """Encoders learn at rates of their own, and so do scalars."""
        return self._rates.get(name.partition(".")[0], 1.0 if weight.ndim else _SCALARS)

    def _model_inputs(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        for part in self._still:  # Trainer sets the whole model to training, and with it dropout in frozen parts
            part.eval()
        given = {name: inputs[name] for name in _INPUTS if name in inputs}
        return given | {"return_loss": True}


def _flops(av_model: Any) -> int:
    """Operations of a step for one moment: that of pretraining without masks and decoder."""
    config = copy.copy(av_model.config)
    config.audio_mask_ratio = config.video_mask_ratio = config.reconstruction_loss_weight = 0.0
    config.contrastive_mask_ratio, config.contrastive_loss_weight = None, 1.0
    return pretraining_flops(config)


def train_text(
    model: CavMaeSyncTextDualEncoderModel,
    texts: KnownTexts,
    clips: TextSet,
    arguments: TextArguments,
    training: TextRunArguments,
    *,
    processor: CavMaeSyncProcessor,
    dataset: Any = None,
    resume: str | None = None,
    progress: Callable[..., None] | None = None,
) -> CavMaeSyncTextTrainer:
    """Train a model with text.

    Args:
        model: The model.
        texts: Its text encoder.
        clips: What is said of the clips to train on, and the embeddings of their moments.
        arguments: How much is said, and what is trained.
        training: Steps, batch, rate and seed.
        processor: Of the model, with the text encoder's tokenizer.
        dataset: The clips themselves, where the audio-visual model is trained, too (`arguments.joint`).
        resume: A checkpoint to go on from.
        progress: As in `run_text`.

    Returns:
        The trainer, with its log; `stopped_by` says whether a signal ended it.

    Raises:
        NonFiniteLossError: The loss is NaN or infinite.
        TrainingError: There are no captions, or of fewer than two clips.
    """
    if clips.captions is None:
        raise TrainingError("There are no captions to train on; give `captions`, labels, or a SyncWorld.")
    freeze_for_text(model, joint=arguments.joint, towers=arguments.towers, text_model=arguments.train_text_model)
    train_set = CaptionedClips(
        Moments(clips) if dataset is None else dataset, clips.captions, count=arguments.captions_per_step,
        seed=training.seed, twins=clips.twins, shuffled=arguments.shuffled_texts,
    )  # fmt: skip
    texts.add(
        train_set.texts(), None if progress is None else lambda done, total: progress(done, total, "encoding texts")
    )
    collate: Any = collate_moments
    if dataset is not None:
        collate = ModalityCollator(CavMaeSyncCollator(processor))
    trainer = CavMaeSyncTextTrainer(
        model, training, processor=processor, train_dataset=train_set,
        data_collator=CaptionCollator(collate, texts, train_set.numbers),
        rates={"av_model": arguments.av_lr_multiple, "text_model": arguments.text_lr_multiple},
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    model.eval()
    return trainer


def train_bridge(
    model: CavMaeSyncTextDualEncoderModel,
    clips: TextSet,
    teacher: Tensor,
    training: TextRunArguments,
    *,
    processor: CavMaeSyncProcessor,
    resume: str | None = None,
) -> CavMaeSyncTextTrainer:
    """Train the projections of audio and video to where another model puts the frames, without a text.

    Args:
        model: From `bridge.join_by_frames`.
        clips: Embeddings of the moments.
        teacher: Embeddings of their frames, from `bridge.centred`, `(clips, moments, P)`, zeros where there is none.
        training, processor, resume: As of `train_text`.

    Returns:
        As `train_text`.

    Raises:
        NonFiniteLossError: The loss is NaN or infinite.
    """
    model.requires_grad_(False)
    model.projections.requires_grad_(True)
    trainer = CavMaeSyncTextTrainer(
        model, training, processor=processor, train_dataset=Moments(clips, teacher), data_collator=collate_moments
    )
    trainer.train(resume_from_checkpoint=resume)
    model.eval()
    return trainer


__all__ = ["CavMaeSyncTextTrainer", "train_bridge", "train_text"]
