# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What is exported of a model: its towers, their names and shapes, and how torch traces them.

A tower is one modality's way through the encoder: windows or frames in, their embeddings and patch embeddings out; or
tokens of texts in, their embeddings out. The numbers of clips and of frames, of texts and of tokens stay free; the
size of a window or frame is the model's. Equal windows are not looked for (`deduplicate_windows`): shapes that depend
on data cannot be traced.
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

# (clips, frames) and (texts, tokens) to check exported towers with: one of each, more of either, and not the shape
# that was traced.
EXAMPLE_SHAPES = ((1, 1), (1, 3), (3, 2))
_TRACED_SHAPE = (2, 3)


@dataclass(frozen=True)
class TowerIO:
    """Names and sizes of a tower's inputs and outputs.

    Attributes:
        modality: `"audio"`, `"video"` or `"text"`.
        inputs: Names of the inputs, the model's own.
        input_shape: What follows `axes` in each.
        outputs: Names of the outputs, embeddings first.
        output_shapes: What follows `output_axes` in each.
        axes: Names of the free sizes of inputs.
        output_axes: Those of outputs.
        dtype: Of inputs.
    """

    modality: str
    inputs: tuple[str, ...]
    input_shape: tuple[int, ...]
    outputs: tuple[str, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    axes: tuple[str, str] = ("batch", "frames")
    output_axes: tuple[str, ...] = ("batch", "frames")
    dtype: str = "float32"

    @classmethod
    def of(cls, config: CavMaeSyncConfig, modality: str, *, local: bool = False) -> "TowerIO":
        """The names and sizes of a configuration's tower, with a local head or without."""
        if modality == "audio":
            name, grid = "input_values", config.audio_grid
            shape: tuple[int, ...] = (config.audio_length, config.num_mel_bins)
        else:
            name, grid = "pixel_values_videos", config.video_grid
            shape = (config.frame_channels, config.image_size, config.image_size)
        width = config.hidden_size
        patches = (grid[0] * grid[1], width)
        outputs = {f"{modality}_embeds": (width,), f"{modality}_patch_embeds": patches}
        if local:
            outputs[f"local_{modality}_embeds"] = patches
        return cls(
            modality=modality,
            inputs=(name,),
            input_shape=shape,
            outputs=tuple(outputs),
            output_shapes=tuple(outputs.values()),
        )

    @classmethod
    def of_text(cls, config: Any) -> "TowerIO":
        """The names and sizes of the text tower of a `CavMaeSyncTextDualEncoderConfig`."""
        outputs: dict[str, tuple[int, ...]] = {"text_embeds": (config.space_dim,), "video_shares": ()}
        if config.num_clip_layers:
            outputs["text_clip_embeds"] = (config.av_config.hidden_size,)
        return cls(
            modality="text",
            inputs=("input_ids", "attention_mask"),
            input_shape=(),
            outputs=tuple(outputs),
            output_shapes=tuple(outputs.values()),
            axes=("batch", "tokens"),
            output_axes=("batch",),
            dtype="int64",
        )


class Tower(nn.Module):
    """One modality of an encoder, with no more weights than it needs; shares them with the model."""

    def __init__(self, model: CavMaeSyncModel, modality: str):
        super().__init__()
        own = copy.copy(model)
        own._modules = dict(model._modules)
        own._modules["video_tower" if modality == "audio" else "audio_tower"] = None
        self.local = modality in model.local_heads
        own._modules["local_heads"] = nn.ModuleDict({modality: model.local_heads[modality]} if self.local else {})
        own.config = copy.copy(model.config)
        own.config.deduplicate_windows = False
        self.encoder = own
        self.io = TowerIO.of(model.config, modality, local=self.local)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Embeddings `(batch, frames, hidden)`, patch embeddings `(batch, frames, patches, hidden)` and, with local
        heads, what they make of each patch."""
        images = self.encoder.as_images(self.io.modality, inputs)
        encoding = self.encoder.encode(self.io.modality, images, output_local_embeds=self.local)
        found = encoding.embeds, encoding.patch_embeds
        return found if encoding.local_embeds is None else (*found, encoding.local_embeds)

    def example(self, shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of so many clips and frames."""
        return (example_input(self.io, shape, seed),)

    @property
    def sizes(self) -> Any:
        """Which sizes of the inputs are free, for `torch.export`."""
        return {"inputs": {number: torch.export.Dim(name) for number, name in enumerate(self.io.axes)}}


class TextTower(nn.Module):
    """The text encoder of a model with text and what joins it to the others; shares its weights with the model.

    Args:
        model: A `CavMaeSyncTextDualEncoderModel`.
        longest: Tokens that a text may have.
    """

    def __init__(self, model: Any, longest: int):
        super().__init__()
        self.text_model, self.text_head, self.video_gate = model.text_model, model.text_head, model.video_gate
        self.io, self.longest = TowerIO.of_text(model.config), longest
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Embeddings `(texts, P)`, how much frames count against audio `(texts,)`, and, with clip layers, embeddings
        in the space of clips `(texts, hidden)`."""
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask)
        texts = self.text_head(output, attention_mask)
        found = (texts.embeds, self.video_gate(texts.embeds).sigmoid()[:, 0])
        return found if texts.clip_embeds is None else (*found, texts.clip_embeds)

    def example(self, shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, ...]:
        """Tokens of so many texts, each with one place less than the one before it."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(self.vocabulary, shape, generator=generator)
        lengths = (shape[1] - torch.arange(shape[0])).clamp(min=1)
        return ids, (torch.arange(shape[1]) < lengths.unsqueeze(1)).long()

    @property
    def sizes(self) -> Any:
        """Which sizes of the inputs are free, for `torch.export`."""
        texts, tokens = self.io.axes
        free = {0: torch.export.Dim(texts), 1: torch.export.Dim(tokens, max=self.longest)}
        return dict.fromkeys(self.io.inputs, free)


AnyTower = Tower | TextTower


def make_towers(model: PreTrainedModel, *, longest_text: int | None = None) -> list[AnyTower]:
    """The towers that an encoder has, in evaluation mode.

    Args:
        model: Any of this package's models; of one with a head, the encoder.
        longest_text: Tokens that a text may have: then of a model with text its text tower, too.

    Raises:
        ExportError: Its weights or its attention cannot be exported.
    """
    encoder = cast(CavMaeSyncModel, getattr(model, "base_model", model))
    parts: list[Any] = [encoder] if longest_text is None else [encoder, model.text_model]
    for part in parts:
        if part.dtype != torch.float32 or part.device.type != "cpu":
            raise ExportError(
                f"The model is in {str(part.dtype).removeprefix('torch.')} on {part.device}; export it in float32 "
                "on the CPU: model.float().cpu()."
            )
        attention = part.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ExportError(
                f'attn_implementation="{attention}" runs on its own kernels, which cannot be exported; load the model '
                'with attn_implementation="sdpa".'
            )
    modality = encoder.config.modality
    wanted = ("audio", "video") if modality == "multimodal" else (modality,)
    towers: list[AnyTower] = [Tower(encoder, name).eval() for name in wanted]
    return towers if longest_text is None else [*towers, TextTower(model, longest_text).eval()]


def example_input(io: TowerIO, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Noise as spread as normalised windows and frames, `(*shape, *io.input_shape)`."""
    return torch.randn(*shape, *io.input_shape, generator=torch.Generator().manual_seed(seed))


def trace(tower: AnyTower) -> torch.export.ExportedProgram:
    """The tower as a program for any number of clips and frames, or of texts and tokens.

    Raises:
        RuntimeError: torch cannot trace it, or only for one number of these.
    """
    with quiet(), torch.no_grad():
        return torch.export.export(tower, tower.example(_TRACED_SHAPE), dynamic_shapes=tower.sizes)


class quiet(warnings.catch_warnings):  # noqa: N801 (a context manager, read like a function)
    """Keeps to itself what libraries tell their own developers while they trace."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        return entered
