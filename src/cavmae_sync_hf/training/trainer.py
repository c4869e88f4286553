# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How is a CAV-MAE Sync model pretrained with transformers' Trainer?

`CavMaeSyncTrainer` adds to what all trainings share masks that depend on the seed, the process and the step alone, and
retrieval and alignment as evaluation.
"""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from ..data.augmentation import make_generator
from ..data.dataset import CavMaeSyncCollator
from ..model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from ..model_card import CardDetails
from .arguments import PretrainingArguments
from .base import CavMaeSyncBaseTrainer
from .cached_contrast import cached_contrastive_step
from .card import training_details
from .evaluation import Embeddings, embed_clips, evaluate_alignment
from .flops import pretraining_flops
from .initialization import freeze_unused
from .pictures import draw_reconstructions, draw_similarities
from .sets import EvaluationSet
from .teacher import MomentumTeacher

__all__ = ["CavMaeSyncTrainer"]

_INPUTS = {"video": "pixel_values_videos", "audio": "input_values"}


class CavMaeSyncTrainer(CavMaeSyncBaseTrainer):
    """transformers' Trainer for `CavMaeSyncForPreTraining`.

    Args:
        model: The model; weights that none of its losses reaches are frozen.
        args: `PretrainingArguments`.
        processor: The model's `CavMaeSyncProcessor`, saved with every checkpoint.
        data_collator: Default: a `CavMaeSyncCollator`.
        kwargs: Other arguments of `CavMaeSyncBaseTrainer` (`train_dataset`, `evaluation_sets`) and of Trainer.
    """

    logged_parts = (
        "contrastive_loss", "distillation_loss", "audio_reconstruction_loss", "video_reconstruction_loss",
        "contrastive_accuracy",
    )  # fmt: skip
    args: PretrainingArguments

    def __init__(
        self,
        model: CavMaeSyncForPreTraining,
        args: PretrainingArguments,
        *,
        processor: Any,
        data_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        _check_teacher(args, model.config)
        freeze_unused(model)
        self._mask_place = (-1, 0)
        self._teacher: MomentumTeacher | None = None
        self._taught_step = -1
        super().__init__(
            model,
            args,
            processor=processor,
            data_collator=data_collator or CavMaeSyncCollator(processor),
            flops_per_pair=pretraining_flops(model.config),
            **kwargs,
        )

    # Steps

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see `CavMaeSyncBaseTrainer.train`."""
        self._teacher, self._taught_step = None, -1
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's loss, with masks drawn for this step and process, its parts noted and checked."""
        fed = self._fed(model, inputs)
        output = model(**fed)
        if model.training:
            self._check_and_note(output, fed, inputs.get("clip_ids"))
        return (output.loss, output) if return_outputs else output.loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in Trainer; with `contrast_chunk_size` in chunks whose contrast is that of the whole batch."""
        size = self.args.contrast_chunk_size
        if not size or not self._config.contrastive_loss_weight:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        fed = self._fed(model, inputs)
        # While gradients accumulate, Trainer keeps the processes from exchanging them already.
        exchange = self.accelerator.sync_gradients
        output = cached_contrastive_step(
            model,
            self.accelerator.unwrap_model(model, keep_torch_compile=False),
            dict(fed),
            size,
            backward=lambda loss: self.accelerator.backward(loss / self.current_gradient_accumulation_steps),
            autocast=self.compute_loss_context_manager,
            no_sync=(lambda: self.accelerator.no_sync(model)) if exchange else contextlib.nullcontext,
        )
        self._check_and_note(output, fed, inputs.get("clip_ids"))
        loss: Any = output.loss
        return loss / self.current_gradient_accumulation_steps

    def _fed(self, model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """What the model is called with: its inputs, and in training noise and the teacher's guidance."""
        names = ("pixel_values_videos", "input_values", "padding_mask", "padding_mask_videos")
        fed = {name: inputs[name] for name in names if name in inputs}
        if not model.training:
            return fed
        noise = self._noise(fed)
        fed |= {"video_noise": noise["video"], "audio_noise": noise["audio"]}
        if self._config.contrastive_mask_ratio is not None:
            fed |= {f"contrastive_{modality}_noise": noise[f"contrastive_{modality}"] for modality in _INPUTS}
        if self.args.teacher_momentum:
            uniform = {modality: noise[f"contrastive_{modality}"] for modality in _INPUTS}
            with self.compute_loss_context_manager():
                fed |= self._current_teacher().guide(fed, uniform)
        return fed

    def _noise(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Uniform noise that decides the masks: other on every process, the same again after a resume."""
        step = self.state.global_step
        batch = self._mask_place[1] + 1 if self._mask_place[0] == step else 0
        self._mask_place = (step, batch)
        generator = make_generator("masks", self.args.seed, self.args.process_index, step, batch)
        size, noise = self._config.patch_size, {}
        for prefix in ("", "contrastive_"):
            for modality, key in _INPUTS.items():
                values = inputs[key]
                patches = (values.shape[-2] // size) * (values.shape[-1] // size)
                drawn = torch.rand(*values.shape[:2], patches, generator=generator)
                noise[prefix + modality] = drawn.to(values.device, non_blocking=True)
        return noise

    def _check_and_note(self, output: Any, inputs: dict[str, Tensor], clip_ids: list[str] | None) -> None:
        if not bool(torch.isfinite(output.loss.detach())):
            self._refuse(output, inputs, clip_ids)
        self._note(output, inputs)

    def _current_teacher(self) -> MomentumTeacher:
        """The teacher, moved towards the model once for every step."""
        core = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self._teacher is None:
            # Not before the first step, when a resumed run has its weights.
            if isinstance(core, FSDPModule) or any(weight.numel() == 0 for weight in core.parameters()):
                raise ValueError(
                    "`teacher_momentum` needs the model's weights whole on every process, which FSDP and ZeRO-3 do "
                    "not keep; train with plain data parallelism, or set it to 0."
                )
            self._teacher = MomentumTeacher(core.model, self.args.teacher_momentum)
            if self._resume_from:
                self._teacher.load(Path(self._resume_from))
        if self._taught_step != self.state.global_step:
            self._taught_step = self.state.global_step
            self._teacher.update(core.model, self.state.global_step)
        return self._teacher

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._teacher is not None and self.args.should_save:
            # Before the trainer's state, whose file says that a checkpoint is whole.
            self._teacher.save(self._checkpoint_folder(trial))
        super()._save_checkpoint(model, trial)

    # Evaluation

    def evaluate_set(self, name: str, evaluation_set: EvaluationSet) -> dict[str, float]:
        """Retrieval, alignment, temporal twins and pointing; see `evaluate_alignment`."""
        embeddings = self.embed(evaluation_set)
        if self.args.pictures and self.is_world_process_zero():
            self._draw(name, evaluation_set, embeddings)
        return evaluate_alignment(
            embeddings,
            evaluation_set.partners,
            self.args.eval_min_shift,
            evaluation_set.boxes,
            self._config.image_size,
        )

    def embed(self, evaluation_set: EvaluationSet) -> Embeddings:
        """Embeddings of all clips of a set, on every process."""
        model = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        training = model.training
        model.eval()
        try:
            return embed_clips(
                _encoder(model),
                evaluation_set,
                self.data_collator,
                accelerator=self.accelerator,
                batch_frames=self.args.eval_batch_frames,
                num_workers=self.args.dataloader_num_workers,
            )
        finally:
            model.train(training)

    def _draw(self, name: str, evaluation_set: EvaluationSet, embeddings: Embeddings) -> None:
        folder, step = Path(str(self.args.output_dir)) / "pictures", f"step_{self.state.global_step:06d}"
        draw_similarities(embeddings, folder / f"{step}_{name}_similarity.png")
        model = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        if self._config.reconstruction_loss_weight and not isinstance(model, FSDPModule):
            some = range(min(4, len(evaluation_set)))
            batch = self.data_collator([evaluation_set.dataset[number] for number in some])
            draw_reconstructions(model, self.processor, batch, folder / f"{step}_{name}_reconstruction.png")

    def card_details(self, metrics: dict[str, float]) -> CardDetails:
        """The run's settings and the figures of the last evaluation."""
        counts = {name: len(evaluation_set) for name, evaluation_set in self.evaluation_sets.items()}
        steps, processes = self.state.global_step, self.args.world_size
        return training_details(self.args, metrics, counts, steps, processes, len(self.train_dataset))


def _check_teacher(args: PretrainingArguments, config: Any) -> None:
    """Refuse a teacher that nothing would listen to, and what only a teacher can give."""
    follows = config.contrastive_mask_ratio is not None or config.distillation_loss_weight
    if args.teacher_momentum and not (follows and config.contrastive_loss_weight):
        raise ValueError(
            f"`teacher_momentum` is {args.teacher_momentum}, but the model follows no teacher: set "
            "`contrastive_mask_ratio` (published: 0.5) or `distillation_loss_weight` in `model_config`."
        )
    if config.distillation_loss_weight and not args.teacher_momentum:
        raise ValueError(
            f"`distillation_loss_weight` is {config.distillation_loss_weight}, but there is no teacher; set "
            "`teacher_momentum`, such as 0.999."
        )


def _encoder(model: Any) -> Any:
    """What embeds clips: the encoder inside, entered through the whole model where its weights are sharded."""
    encoder = model.model
    if isinstance(model, FSDPModule):
        whole: Any = model
        # Sharded weights come together when the outermost module is called, or a method registered like this one.
        whole.run_encoder = lambda **inputs: encoder(**inputs)
        register_fsdp_forward_method(whole, "run_encoder")
        return whole.run_encoder
    return encoder
