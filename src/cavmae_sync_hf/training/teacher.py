# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What does a momentum teacher tell the model that it follows (TG-DP, Wang et al., CVPR 2026)?

The teacher is a running mean of the model's own encoder. It sees every patch, and tells the contrastive pass two
things: which patches matter, so that these are likelier to be visible, and which embedding to come close to.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..model.modeling_cavmae_sync import CavMaeSyncModel, LayerRecord

__all__ = ["TEACHER_FILE", "MomentumTeacher"]

TEACHER_FILE = "teacher.safetensors"

_INPUTS = {"audio": "input_values", "video": "pixel_values_videos"}
_MASKS = {"audio": "padding_mask", "video": "padding_mask_videos"}


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
    def guide(self, inputs: dict[str, Tensor], uniform: dict[str, Tensor]) -> dict[str, Tensor]:
        """Noise for the contrastive pass and target embeddings.

        A patch is visible with a chance that grows with the attention that the global token pays it in the last joint
        layer (all tokens, where there is no global one): drawing exponential times of that rate and keeping the
        earliest samples patches without replacement (Efraimidis and Spirakis 2006, the Gumbel-top-k trick).

        Args:
            inputs: Arguments of the model, `(batch, frames, ...)`.
            uniform: By modality noise in [0, 1), `(batch, frames, patches)`, to draw from.

        Returns:
            `contrastive_{audio,video}_noise` and `{audio,video}_teacher_embeds`, as the model takes them.
        """
        encoder, given = self.encoder, {}
        images, _ = encoder.check_inputs(inputs["pixel_values_videos"], inputs["input_values"], None, None)
        for modality, values in images.items():
            shape, record = values.shape[:2], LayerRecord(attentions=[])
            embeds, _ = encoder.separate(modality, encoder.tower(modality)(values.flatten(0, 1)), record)
            recorded: Any = record.attentions
            # Where every layer is plain, all are recorded, the contrastive head's behind the joint ones.
            weights = recorded[len(encoder.joint_layers) - 1 if len(recorded) > 1 else 0].float()
            paid = weights[:, :, 0, 1:].mean(dim=1) if encoder.config.use_global_tokens else weights.mean(dim=(1, 2))
            rates = paid.clamp(min=1e-8).unflatten(0, shape)
            given[f"contrastive_{modality}_noise"] = -torch.log1p(-uniform[modality].to(rates.device)) / rates
            given[f"{modality}_teacher_embeds"] = embeds.unflatten(0, shape)
        return given

    def save(self, folder: Path) -> None:
        """Write the weights beside a checkpoint's others."""
        save_file(
            {name: value.contiguous() for name, value in self.encoder.state_dict().items()}, folder / TEACHER_FILE
        )

    def load(self, folder: Path) -> None:
        """Go on with the weights of a checkpoint.

        Raises:
            ValueError: It holds none.
        """
        path = folder / TEACHER_FILE
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no {TEACHER_FILE}: its run had no teacher. Resume without `teacher_momentum`, or "
                "start from that model with `init_from`."
            )
        self.encoder.load_state_dict(load_file(path))
