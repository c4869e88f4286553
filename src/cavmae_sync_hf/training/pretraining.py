# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Pretraining with transformers' Trainer, and the momentum teacher that a model may follow.

`CavMaeSyncTrainer` adds to what all trainings share masks that depend on the seed, the process and the step alone, and
retrieval and alignment as evaluation. `MomentumTeacher` is that of TG-DP (Wang et al., CVPR 2026): a running mean of
the model's own encoder. It sees every patch, and tells the contrastive pass two things: which patches matter, so that
these are likelier to be visible, and which embedding to come close to.
"""

import contextlib
import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from ..data.augmentation import make_generator
from ..data.dataset import CavMaeSyncCollator
from ..files import whole_file
from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.errors_cavmae_sync import Hint, TrainingError
from ..model.modeling_cavmae_sync import CavMaeSyncForPreTraining, CavMaeSyncModel, LayerRecord
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .arguments import PretrainingArguments
from .base import CavMaeSyncBaseTrainer
from .cached_contrast import cached_contrastive_step
from .evaluation import (
    Embeddings,
    draw_reconstructions,
    draw_similarities,
    evaluate_alignment,
    keep_embeddings,
)
from .freezing import freeze_unused
from .sets import INPUT_NAMES, EvaluationSet, ModalityCollator
from .speed import pretraining_flops

TEACHER_FILE = "teacher.safetensors"

_INPUTS = {"video": "pixel_values_videos", "audio": "input_values"}


class MomentumTeacher:
    """An exponential moving average of an encoder.

    Args:
        encoder: Whose weights it begins with.
        momentum: Share of the old weights that an update keeps. Early updates keep less, `(1 + n) / (10 + n)` in the
            n-th, so that the random first weights are soon forgotten.
    """

    def __init__(self, encoder: CavMaeSyncModel, momentum: float) -> None:
        self.momentum = momentum
        self.encoder: Any = copy.deepcopy(encoder).eval().requires_grad_(False)
        # The attention of one layer is to be read, which only the plain implementation gives.
        last = self.encoder.joint_layers[-1].attention
        last.config = copy.copy(last.config)
        last.config._attn_implementation = "eager"

    @torch.no_grad()
    def update(self, encoder: CavMaeSyncModel, step: int) -> None:
        """Move towards the model's weights after `step` steps."""
        keep = min(self.momentum, (1 + step) / (10 + step))
        mine, theirs = list(self.encoder.parameters()), [weight.detach() for weight in encoder.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - keep)

    @torch.no_grad()
    def guide(self, inputs: dict[str, Tensor], uniform: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Noise for the contrastive pass and target embeddings.

        A patch is visible with a chance that grows with the attention that the global token pays it in the last joint
        layer (all tokens, where there is no global one): drawing exponential times of that rate and keeping the
        earliest samples patches without replacement (Efraimidis and Spirakis 2006, the Gumbel-top-k trick).

        Args:
            inputs: Arguments of the model, `(batch, frames, ...)`.
            uniform: By modality noise in [0, 1), `(batch, frames, patches)`, to draw from; `None`: there is no such
                pass, and no noise is given.

        Returns:
            `contrastive_{audio,video}_noise` and `{audio,video}_teacher_embeds`, as the model takes them.
        """
        encoder, given = self.encoder, {}
        images, _ = encoder.check_inputs(
            inputs["pixel_values_videos"], inputs["input_values"], None, None,
            window_offsets=inputs.get("window_offsets"),
        )  # fmt: skip
        for modality, values in images.items():
            shape, record = values.shape[:2], LayerRecord(attentions=[])
            embeds, _ = encoder.separate(modality, encoder.tower(modality)(values.flatten(0, 1)), record)
            given[f"{modality}_teacher_embeds"] = embeds.unflatten(0, shape)
            if uniform is None:
                continue
            recorded: Any = record.attentions
            # Where every layer is plain, all are recorded, the contrastive head's behind the joint ones.
            weights = recorded[len(encoder.joint_layers) - 1 if len(recorded) > 1 else 0].float()
            paid = weights[:, :, 0, 1:].mean(dim=1) if encoder.config.use_global_tokens else weights.mean(dim=(1, 2))
            rates = paid.clamp(min=1e-8).unflatten(0, shape)
            given[f"contrastive_{modality}_noise"] = -torch.log1p(-uniform[modality].to(rates.device)) / rates
        return given

    def save(self, folder: Path) -> None:
        """Write the weights beside a checkpoint's others."""
        weights = {name: value.contiguous() for name, value in self.encoder.state_dict().items()}
        with whole_file(folder / TEACHER_FILE) as path:
            save_file(weights, path)

    def load(self, folder: Path) -> None:
        """Go on with the weights of a checkpoint.

        Raises:
            TrainingError: It holds none.
        """
        path = folder / TEACHER_FILE
        if not path.is_file():
            raise TrainingError(
                f"{folder} holds no {TEACHER_FILE}: its run had no teacher. Start from that model with `init_from`.",
                hint=Hint("teacher_momentum", 0, "resume without a teacher"),
            )
        self.encoder.load_state_dict(load_file(path))


class CavMaeSyncTrainer(CavMaeSyncBaseTrainer):
    """transformers' Trainer for `CavMaeSyncForPreTraining`.

    Args:
        model: The model; weights that none of its losses reaches are frozen.
        args: `PretrainingArguments`.
        processor: The model's `CavMaeSyncProcessor`, saved with every checkpoint.
        data_collator: Default: a `CavMaeSyncCollator` without the masks that mask nothing.
        kwargs: Other arguments of `CavMaeSyncBaseTrainer` (`train_dataset`, `evaluation_sets`) and of Trainer.

    Raises:
        TrainingError: The arguments ask for a teacher that the model does not follow, or it follows one and there is
            none.
    """

    logged_parts = (
        "contrastive_loss", "distillation_loss", "dense_loss", "dense_regularization_loss",
        "audio_reconstruction_loss", "video_reconstruction_loss", "contrastive_accuracy",
    )  # fmt: skip
    card_task = ("audio-visual-retrieval", "audio-visual alignment")
    card_metrics = {
        "audio_to_video_r1": "recall at 1, audio to video",
        "video_to_audio_r1": "recall at 1, video to audio",
        "audio_to_video_r10": "recall at 10, audio to video",
        "video_to_audio_r10": "recall at 10, video to audio",
        "shift_accuracy": "true alignment told from shifted ones",
        "pair_accuracy": "right partner of two clips that differ in time alone",
    }
    args: PretrainingArguments

    def __init__(
        self,
        model: CavMaeSyncForPreTraining,
        args: PretrainingArguments,
        *,
        processor: CavMaeSyncProcessor,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_teacher(args, model.config)
        if args.contrast_chunk_size and model.config.dense_loss_weight:
            raise TrainingError(
                f"`contrast_chunk_size` is {args.contrast_chunk_size}, and `dense_loss_weight` needs all patches "
                "at once; leave one of them out."
            )
        freeze_unused(model)
        self._mask_place = (-1, 0)
        self._teacher: MomentumTeacher | None = None
        self._taught_step = -1
        super().__init__(
            model,
            args,
            processor=processor,
            data_collator=data_collator or ModalityCollator(CavMaeSyncCollator(processor)),
            flops_per_pair=pretraining_flops(model.config),
            **kwargs,
        )

    # Steps

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see `CavMaeSyncBaseTrainer.train`."""
        self._teacher, self._taught_step = None, -1
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in Trainer; with `contrast_chunk_size` in chunks whose contrast is that of the whole batch."""
        size = self.args.contrast_chunk_size
        if not size or not self._config.contrastive_loss_weight:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        given = self._model_inputs(model, inputs)
        # While gradients accumulate, Trainer keeps the processes from exchanging them already.
        exchange = self.accelerator.sync_gradients
        output = cached_contrastive_step(
            model,
            self.accelerator.unwrap_model(model, keep_torch_compile=False),
            dict(given),
            size,
            backward=lambda loss: self.accelerator.backward(loss / self.current_gradient_accumulation_steps),
            autocast=self.compute_loss_context_manager,
            no_sync=(lambda: self.accelerator.no_sync(model)) if exchange else contextlib.nullcontext,
        )
        self._check_and_note(output, given, inputs.get("clip_ids"))
        assert output.loss is not None
        return output.loss / self.current_gradient_accumulation_steps

    def _model_inputs(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """What the model is called with: its inputs, and in training noise and the teacher's guidance."""
        given = {name: inputs[name] for name in INPUT_NAMES if name in inputs}
        if not model.training:
            return given
        config = self._config
        apart = config.contrastive_mask_ratio is not None and bool(config.contrastive_loss_weight)
        # A pass for the decoder, and one for the contrast, or one for both.
        passes = (
            ("",) if not apart else ("", "contrastive_") if config.reconstruction_loss_weight else ("contrastive_",)
        )
        noise = self._noise(given, passes)
        given |= noise
        if self.args.teacher_momentum:
            uniform = {modality: noise[f"contrastive_{modality}_noise"] for modality in _INPUTS} if apart else None
            with self.compute_loss_context_manager():
                given |= self._current_teacher().guide(given, uniform)
        return given

    def _noise(self, inputs: dict[str, Tensor], passes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
        """Uniform noise that decides the masks: other on every process, the same again after a resume.

        Args:
            inputs: Of the model.
            passes: Prefixes of the names of each pass's noise.
        """
        step = self.state.global_step
        batch = self._mask_place[1] + 1 if self._mask_place[0] == step else 0
        self._mask_place = (step, batch)
        generator = make_generator("masks", self.args.seed, self.args.process_index, step, batch)
        encoder = self.accelerator.unwrap_model(self.model, keep_torch_compile=False).model
        noise = {}
        # That of the contrastive pass is drawn last, so that the other's does not depend on it.
        for prefix in passes:
            for modality, name in _INPUTS.items():
                tower, values = encoder.tower(modality), inputs.get(f"{modality}_tokens")
                if values is None:
                    values = inputs[name]
                    images = encoder.as_images(modality, values)
                    if modality == "audio" and "window_offsets" in inputs:  # patches of a window, cut out of the clip
                        images = images[..., : encoder.config.audio_length]
                    patches = math.prod(tower.grid(images))
                else:
                    patches = math.prod(tower.grid(values[0]))
                drawn = torch.rand(*values.shape[:2], patches, generator=generator)
                noise[f"{prefix}{modality}_noise"] = drawn.to(values.device, non_blocking=True)
        return noise

    def _current_teacher(self) -> MomentumTeacher:
        """The teacher, moved towards the model once for every step."""
        core = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self._teacher is None:
            # Not before the first step, when a resumed run has its weights.
            if isinstance(core, FSDPModule) or any(weight.numel() == 0 for weight in core.parameters()):
                raise TrainingError(
                    "`teacher_momentum` needs the model's weights whole on every process, which FSDP and ZeRO-3 do "
                    "not keep; train with plain data parallelism.",
                    hint=Hint("teacher_momentum", 0, "train without a teacher"),
                )
            self._teacher = MomentumTeacher(core.model, self.args.teacher_momentum)
            if self._resume_from:
                self._teacher.load(Path(self._resume_from))
        if self._taught_step != self.state.global_step:
            self._taught_step = self.state.global_step
            self._teacher.update(core.model, self.state.global_step)
        return self._teacher

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._whole_checkpoint(trial) as folder:
            if self._teacher is not None and self.args.should_save:
                # Before the trainer's state, whose file says that a checkpoint is whole.
                self._teacher.save(folder)
            super()._save_checkpoint(model, trial)

    # Evaluation

    def evaluate_set(self, name: str, evaluation_set: EvaluationSet) -> dict[str, float]:
        """Retrieval, alignment, temporal twins and pointing; see `evaluate_alignment`."""
        embeddings = self.embed(evaluation_set)
        if self.args.plots and self.is_world_process_zero():
            self._draw(name, evaluation_set, embeddings)
        return evaluate_alignment(
            embeddings,
            evaluation_set.partners,
            min_shift=self.args.eval_min_shift,
            boxes=evaluation_set.boxes,
            image_size=self._config.image_size,
        )

    def embed(self, evaluation_set: EvaluationSet) -> Embeddings:
        """Embeddings of all clips of a set, on every process."""
        keep = partial(keep_embeddings, processor=self.processor)
        part: Callable[[Any], Any] = _encoder
        if self._config.dense_loss_weight:
            part = _with_local_embeds
        return Embeddings(self.map_set(evaluation_set, keep, self.data_collator, part))

    def _draw(self, name: str, evaluation_set: EvaluationSet, embeddings: Embeddings) -> None:
        folder, step = Path(str(self.args.output_dir)) / "plots", f"step_{self.state.global_step:06d}"
        draw_similarities(embeddings, folder / f"{step}_{name}_similarity.png")
        model = self._unwrapped()
        if self._config.reconstruction_loss_weight and not isinstance(model, FSDPModule):
            some = range(min(4, len(evaluation_set)))
            batch = self.data_collator([evaluation_set.dataset[number] for number in some])
            draw_reconstructions(model, self.processor, batch, folder / f"{step}_{name}_reconstruction.png")


def _check_teacher(args: PretrainingArguments, config: CavMaeSyncConfig) -> None:
    """Refuse a teacher that nothing would listen to, and what only a teacher can give."""
    follows = config.contrastive_mask_ratio is not None or config.distillation_loss_weight
    if args.teacher_momentum and not (follows and config.contrastive_loss_weight):
        raise TrainingError(
            f"`teacher_momentum` is {args.teacher_momentum}, but the model follows no teacher: set "
            "`contrastive_mask_ratio` (published: 0.5) or `distillation_loss_weight` in `model_config`."
        )
    if config.distillation_loss_weight and not args.teacher_momentum:
        raise TrainingError(
            f"`distillation_loss_weight` is {config.distillation_loss_weight}, but there is no teacher.",
            hint=Hint("teacher_momentum", 0.999, "have one"),
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


def _with_local_embeds(model: Any) -> Any:
    """The same, which also gives projected patches."""
    return partial(_encoder(model), output_local_embeds=True)
