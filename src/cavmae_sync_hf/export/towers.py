# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What is exported of a model: its towers, their names and shapes, and how torch traces them.

A tower is one modality's way through the encoder: windows or frames in, their embeddings and patch embeddings out. The
numbers of clips and of frames stay free; the size of a window or frame is the model's. Equal windows are not looked
for (`deduplicate_windows`): shapes that depend on data cannot be traced.
"""

import copy
import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.errors_cavmae_sync import ExportError
from ..model.modeling_cavmae_sync import CavMaeSyncModel

# (clips, frames) to check exported towers with: one of each, more of either, and not the shape that was traced.
EXAMPLE_SHAPES = ((1, 1), (1, 3), (3, 2))
_TRACED_SHAPE = (2, 3)


@dataclass(frozen=True)
class TowerIO:
    """Names and sizes of a tower's input and outputs.

    Attributes:
        modality: `"audio"` or `"video"`.
        input: Name of the input, the model's own.
        input_shape: What follows `(batch, frames)`.
        outputs: Names of the outputs, embeddings first.
        output_shapes: What follows `(batch, frames)` in each.
    """

    modality: str
    input: str
    input_shape: tuple[int, ...]
    outputs: tuple[str, str]
    output_shapes: tuple[tuple[int, ...], tuple[int, ...]]

    @classmethod
    def of(cls, config: CavMaeSyncConfig, modality: str) -> "TowerIO":
        """The names and sizes of a configuration's tower."""
        if modality == "audio":
            name, grid = "input_values", config.audio_grid
            shape: tuple[int, ...] = (config.audio_length, config.num_mel_bins)
        else:
            name, grid = "pixel_values_videos", config.video_grid
            shape = (config.num_channels, config.image_size, config.image_size)
        width = config.hidden_size
        outputs = (f"{modality}_embeds", f"{modality}_patch_embeds")
        return cls(
            modality=modality,
            input=name,
            input_shape=shape,
            outputs=outputs,
            output_shapes=((width,), (grid[0] * grid[1], width)),
        )


class Tower(nn.Module):
    """One modality of an encoder, with no more weights than it needs; shares them with the model."""

    def __init__(self, model: CavMaeSyncModel, modality: str):
        super().__init__()
        own = copy.copy(model)
        own._modules = dict(model._modules)
        own._modules["video_tower" if modality == "audio" else "audio_tower"] = None
        own.config = copy.copy(model.config)
        own.config.deduplicate_windows = False
        self.encoder = own
        self.io = TowerIO.of(model.config, modality)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings `(batch, frames, hidden)` and patch embeddings `(batch, frames, patches, hidden)`."""
        images = self.encoder.as_images(self.io.modality, inputs)
        encoding = self.encoder.encode(self.io.modality, images)
        return encoding.embeds, encoding.patch_embeds


def make_towers(model: PreTrainedModel) -> list[Tower]:
    """The towers that an encoder has, in evaluation mode.

    Args:
        model: Any of this package's models; of one with a head, the encoder.

    Raises:
        ExportError: Its weights or its attention cannot be exported.
    """
    encoder = cast(CavMaeSyncModel, getattr(model, "base_model", model))
    if encoder.dtype != torch.float32 or encoder.device.type != "cpu":
        raise ExportError(
            f"The model is in {str(encoder.dtype).removeprefix('torch.')} on {encoder.device}; export it in float32 "
            "on the CPU: model.float().cpu()."
        )
    attention = encoder.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ExportError(
            f'attn_implementation="{attention}" runs on its own kernels, which cannot be exported; load the model '
            'with attn_implementation="sdpa".'
        )
    modality = encoder.config.modality
    wanted = ("audio", "video") if modality == "multimodal" else (modality,)
    return [Tower(encoder, name).eval() for name in wanted]


def example_input(io: TowerIO, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Noise as spread as normalised windows and frames, `(*shape, *io.input_shape)`."""
    return torch.randn(*shape, *io.input_shape, generator=torch.Generator().manual_seed(seed))


def trace(tower: Tower) -> torch.export.ExportedProgram:
    """The tower as a program for any number of clips and frames.

    Raises:
        RuntimeError: torch cannot trace it, or only for one number of clips or frames.
    """
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("frames")}
    with quiet(), torch.no_grad():
        example = example_input(tower.io, _TRACED_SHAPE)
        return torch.export.export(tower, (example,), dynamic_shapes={"inputs": sizes})


class quiet(warnings.catch_warnings):  # noqa: N801 (a context manager, read like a function)
    """Keeps to itself what libraries tell their own developers while they trace."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        return entered
