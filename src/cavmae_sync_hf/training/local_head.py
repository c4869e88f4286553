# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Training of local heads: `cavmae-sync local-head`.

The towers stay as they are. In each step a few random blocks of every frame and window are hidden, one at a time, and
the heads learn by which vector that changes the embedding (`CavMaeSyncLocalHead`); there are no labels. Over the steps
all blocks have their turn, so that nothing has to be computed in advance or kept.

`torchrun -m cavmae_sync_hf.training.local_head` and `accelerate launch -m` start the command on several processes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.augmentation import make_generator
from ..data.dataset import CavMaeSyncCollator
from ..inference.local import local_maps
from ..inference.occlusion import embed_without
from ..loading import load_model
from ..metrics import pointing_accuracy
from ..model.distributed_cavmae_sync import share_of_mean
from ..model.errors_cavmae_sync import TrainingError
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .base import CavMaeSyncBaseTrainer, run_to_end, start_run
from .local_head_arguments import LocalHeadRunArguments
from .sets import EvaluationSet, ModalityCollator, build_sets
from .settings import DataArguments, LocalHeadArguments
from .speed import pretraining_flops

_INPUTS = {"audio": ("input_values", "padding_mask"), "video": ("pixel_values_videos", "padding_mask_videos")}


class CavMaeSyncLocalHeadTrainer(CavMaeSyncBaseTrainer):
    """transformers' Trainer for the local heads of a `CavMaeSyncModel`, all else of which is frozen.

    Args:
        model: With local heads.
        args: `LocalHeadRunArguments`.
        processor: The model's processor, which knows what silence is.
        kwargs: Other arguments of `CavMaeSyncBaseTrainer`.

    Raises:
        TrainingError: Windows are heard within whole clips, of which no part of a window can be hidden alone.
    """

    logged_parts = ("audio_loss", "video_loss")
    card_task = ("audio-visual-localization", "localisation by local heads")
    card_metrics = {
        "video_explained": "share of the falls that is predicted, frames",
        "audio_explained": "share of the falls that is predicted, audio",
        "pointing_accuracy": "pointing at what sounds",
    }
    args: LocalHeadRunArguments

    def __init__(
        self, model: CavMaeSyncModel, args: LocalHeadRunArguments, *, processor: CavMaeSyncProcessor, **kwargs: Any
    ) -> None:
        if model.config.audio_context == "clip":
            raise TrainingError(
                "The audio encoder hears windows within whole clips (`audio_context` is 'clip'), so no part of a "
                "window can be hidden alone; local heads need a model that hears each window by itself."
            )
        model.requires_grad_(False)
        model.local_heads.requires_grad_(True)
        extractor = processor.feature_extractor
        self.silence: float = (extractor.silence - extractor.mean) / extractor.std
        self.fills = {"audio": self.silence, "video": None}
        self._place = (-1, 0)
        super().__init__(
            model, args, processor=processor, data_collator=ModalityCollator(CavMaeSyncCollator(processor)),
            flops_per_pair=_flops(model, args.blocks_per_frame), **kwargs,
        )  # fmt: skip

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over both modalities of the share of the falls that the heads do not predict, see `fall_loss`."""
        model.eval()  # nothing of the towers is to change; the heads have no dropout
        given = self._model_inputs(model, inputs)
        core: CavMaeSyncModel = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        output = model(**given, output_local_embeds=True)
        asked = self._asked(core, output, given)
        generator, losses = self._generator(), []
        for modality, (name, mask) in _INPUTS.items():
            places, falls = hidden_falls(
                core, modality, given[name], output[f"{modality}_embeds"], count=self.args.blocks_per_frame,
                fill=self.fills[modality], generator=generator,
            )  # fmt: skip
            found = output[f"local_{modality}_embeds"].take_along_dim(places.unsqueeze(-1), dim=2)
            losses.append(
                fall_loss(found, falls, asked[modality], given.get(mask), distributed=self.args.world_size > 1)
            )
            setattr(output, f"{modality}_loss", losses[-1])
        output.loss = torch.stack(losses).mean()
        self._check_and_note(output, given, inputs.get("clip_ids"))
        return (output.loss, output) if return_outputs else output.loss

    def _asked(self, model: CavMaeSyncModel, output: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """By modality what its maps are asked for by the other, as `localize` does, `(moments, hidden)`."""
        audio, mask = output.audio_embeds - self._silence(model), inputs.get("padding_mask")
        if mask is not None:
            audio = audio * mask.unsqueeze(-1)
        return {"video": audio.flatten(0, 1), "audio": output.video_embeds.flatten(0, 1)}

    def _generator(self) -> torch.Generator:
        """Draws the hidden blocks: others on every process and step, the same again after a resume."""
        step = self.state.global_step
        self._place = (step, self._place[1] + 1 if self._place[0] == step else 0)
        return make_generator("blocks", self.args.seed, self.args.process_index, *self._place)

    def evaluate_set(self, name: str, evaluation_set: EvaluationSet) -> dict[str, float]:
        """How much of the falls the heads predict, and pointing where it is known what sounds.

        Returns:
            `audio_explained` and `video_explained`, 1 less the squared error over that of predicting no fall, from
            `blocks_per_frame` random blocks of each frame and window; `pointing_accuracy` and `pointing_chance`, see
            `pointing_accuracy` in `metrics`.
        """
        model = self._unwrapped()
        generator = make_generator("evaluated blocks", self.args.seed)
        silence = self._silence(model)

        def keep(output: Any, inputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
            kept = {}
            for modality, (values, mask) in _INPUTS.items():
                places, falls = hidden_falls(
                    model, modality, inputs[values], output[f"{modality}_embeds"], count=self.args.blocks_per_frame,
                    fill=self.fills[modality], generator=generator,
                )  # fmt: skip
                found = output[f"local_{modality}_embeds"].float().take_along_dim(places.unsqueeze(-1), dim=2)
                there = inputs[mask] if mask in inputs else torch.ones_like(falls[:, :, 0, 0])
                for what, error in (("error", found - falls), ("fall", falls)):
                    kept[f"{modality}_{what}"] = (error.square().sum(dim=(2, 3)) * there).sum(dim=1)
            asked = output.audio_embeds - silence
            grid = model.tower("video").grid(inputs["pixel_values_videos"])
            maps = local_maps(output.video_embeds, output.local_video_embeds, asked, grid)
            everything = torch.ones(maps.shape[:2], dtype=torch.bool, device=maps.device)
            both = inputs.get("padding_mask", everything) & inputs.get("padding_mask_videos", everything)
            return kept | {"maps": maps, "present": both.to(torch.uint8)}

        found = self.map_set(
            evaluation_set, keep, self.data_collator,
            lambda core: lambda **inputs: core(**inputs, output_local_embeds=True),
        )  # fmt: skip
        metrics = {
            f"{modality}_explained": 1 - (found[f"{modality}_error"].sum() / found[f"{modality}_fall"].sum()).item()
            for modality in _INPUTS
        }
        if evaluation_set.boxes is None:
            return metrics
        present = found["present"].bool()
        side = model.config.image_size
        boxes = [box for clip, there in zip(evaluation_set.boxes, present, strict=True)
                 for box, counts in zip(clip, there.tolist(), strict=True) if counts]  # fmt: skip
        pointing = pointing_accuracy(found["maps"][present], boxes, (side, side))
        return metrics | {"pointing_accuracy": pointing["accuracy"], "pointing_chance": pointing["chance"]}

    @torch.no_grad()
    def _silence(self, model: CavMaeSyncModel) -> Tensor:
        """The embedding of a silent window, `(hidden,)`."""
        config = model.config
        silent = torch.ones(1, 1, config.audio_length, config.num_mel_bins, device=model.device, dtype=model.dtype)
        return model.get_audio_features(silent * self.silence).audio_embeds[0, 0]


@torch.no_grad()
def hidden_falls(
    model: CavMaeSyncModel,
    modality: str,
    inputs: Tensor,
    embeds: Tensor,
    *,
    count: int,
    fill: float | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """By which vectors embeddings fall where random blocks are hidden, as `occlusion_maps` hides them.

    Args:
        model: A `CavMaeSyncModel` in evaluation mode.
        modality: `"audio"` or `"video"`.
        inputs: `input_values` or `pixel_values_videos`, `(batch, frames, ...)`.
        embeds: The embeddings of these, `(batch, frames, hidden)`.
        count: Blocks of each frame or window, all different; at most as many as there are patches.
        fill: As of `occlusion_maps`.
        generator: Draws the blocks.

    Returns:
        Numbers of the patches in the middle of the blocks `(batch, frames, count)`, and the falls
        `(batch, frames, count, hidden)` float32.
    """
    grid = model.tower(modality).grid(model.as_images(modality, inputs))
    draws = torch.rand(*inputs.shape[:2], grid[0] * grid[1], generator=generator)
    places = draws.argsort(dim=-1)[..., :count]
    count = places.shape[-1]
    without = embed_without(
        model, modality, inputs.repeat_interleave(count, dim=1), places.flatten(1), fill=fill
    ).unflatten(1, (-1, count))
    return places.to(inputs.device), embeds.float().unsqueeze(2) - without


def fall_loss(
    found: Tensor, falls: Tensor, queries: Tensor, present: Tensor | None = None, *, distributed: bool = False
) -> Tensor:
    """Squared error of predicted falls over that of predicting none, a scalar in float32.

    The mean of two such shares: of the vectors, and of their products with queries, in which the directions count that
    are asked for.

    Args:
        found: Predicted, `(batch, frames, blocks, hidden)`.
        falls: True ones, same shape.
        queries: `(queries, hidden)`; zeros where there is none.
        present: False for absent frames or windows, `(batch, frames)`.
        distributed: Whether all processes compute this loss together; then it is this one's share.
    """
    there = torch.ones_like(falls[..., 0]) if present is None else present.unsqueeze(2).expand(falls.shape[:3])
    errors, shares = found.float() - falls, []
    directions = queries.float().T
    for error, whole in ((errors, falls), (errors @ directions, falls @ directions)):
        total, size = ((values.square().sum(dim=-1) * there).sum() for values in (error, whole))
        size = size.clamp(min=torch.finfo(torch.float32).tiny)
        shares.append(share_of_mean(total, size, True) if distributed else total / size)
    return torch.stack(shares).mean()


def _flops(model: CavMaeSyncModel, blocks: int) -> int:
    """Operations of a step for one moment, the heads' own apart, which are few: a pass forward, and one per block."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.audio_mask_ratio = config.video_mask_ratio = config.reconstruction_loss_weight = 0.0
    config.contrastive_mask_ratio, config.contrastive_loss_weight = None, 1.0
    return pretraining_flops(config) // 3 * (1 + blocks)


def local_head(words: Sequence[str]) -> int:
    """Train the local heads of a model by a recipe and flags.

    Args:
        words: As for `parse_arguments`, with the fields of `LocalHeadArguments`, `DataArguments` and
            `LocalHeadRunArguments`.

    Returns:
        The status to exit with, see `run_to_end`.

    Raises:
        CavMaeSyncError: The recipe, a flag, the model, the data or the output folder cannot be used.
    """
    kinds = (LocalHeadArguments, DataArguments, LocalHeadRunArguments)
    arguments, data, training = start_run(kinds, words, "local_head")
    if data.streaming or data.token_dir:
        name = "streaming" if data.streaming else "token_dir"
        raise TrainingError(f"`{name}` has no use here: blocks are hidden in the clips themselves; leave it out.")

    model, processor = load_model(str(arguments.model), device=training.device, modalities="both")
    torch.manual_seed(training.seed)
    model.set_local_heads(arguments.local_head_size)
    train_set, evaluation_sets = build_sets(data, processor, training)
    trainer = CavMaeSyncLocalHeadTrainer(
        model, training, processor=processor, train_dataset=train_set, evaluation_sets=evaluation_sets
    )
    return run_to_end(trainer)


if __name__ == "__main__":
    from cavmae_sync_command import main

    main("local-head")
