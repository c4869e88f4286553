# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What the model is built of: patch embeddings with positions, attention, and transformer layers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_cavmae_sync import CavMaeSyncConfig
from .masking_cavmae_sync import gather_patches


def sincos_positions(grid: tuple[int, int], hidden_size: int) -> Tensor:
    """Fixed 2-D sine-cosine positions of a patch grid, shape `(1, rows * columns, hidden_size)`, float32.

    The first half of the width encodes the column and the second the row: the published code (`pos_embed.py`, from
    MAE) calls them the other way round, but its checkpoints were trained like this. Computed in float64, as there.
    """
    rows, columns = grid
    quarter = hidden_size // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    column, row = (
        torch.arange(size, dtype=torch.float64).unsqueeze(1) * frequencies for size in (columns, rows)
    )  # (columns, quarter), (rows, quarter)
    column, row = (torch.cat([angles.sin(), angles.cos()], dim=1) for angles in (column, row))
    cells = torch.cat([column.expand(rows, -1, -1), row.unsqueeze(1).expand(-1, columns, -1)], dim=-1)
    return cells.reshape(1, rows * columns, hidden_size).to(torch.float32)


class CavMaeSyncPositions(nn.Module):
    """Position embeddings of a patch grid, for the configured grid at once and for any other grid on demand.

    Sine-cosine positions are no weights: they are made again for the grid at hand. Learned ones (fine-tuned CAV-MAE)
    are, and are resized bicubically where the grid differs.
    """

    def __init__(self, grid: tuple[int, int], hidden_size: int, learned: bool = False):
        super().__init__()
        self.grid = grid
        self.learned = learned
        if learned:
            self.weight = nn.Parameter(sincos_positions(grid, hidden_size))
        else:
            self.register_buffer("weight", sincos_positions(grid, hidden_size), persistent=False)

    def reset(self) -> None:
        """Fill in the sine-cosine values, on whatever device the module was made."""
        init.copy_(self.weight, sincos_positions(self.grid, self.weight.shape[-1]))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """Positions `(1, rows * columns, hidden)` for a grid of (rows, columns)."""
        if grid == self.grid:
            return self.weight
        if not self.learned:
            return sincos_positions(grid, self.weight.shape[-1]).to(self.weight.device, self.weight.dtype)
        cells = self.weight.unflatten(1, self.grid).permute(0, 3, 1, 2).float()
        cells = nn.functional.interpolate(cells, size=grid, mode="bicubic", align_corners=False)
        return cells.permute(0, 2, 3, 1).flatten(1, 2).to(self.weight.dtype)


class CavMaeSyncEmbeddings(nn.Module):
    """One modality's patches as tokens: projection, positions, modality embedding, global and register tokens.

    Tokens are ordered (global, patches, registers); there is no position on the global and register tokens.
    """

    def __init__(self, config: CavMaeSyncConfig, num_channels: int, grid: tuple[int, int]):
        super().__init__()
        self.patch_size = config.patch_size
        self.projection = nn.Conv2d(
            num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        learned = config.position_embedding_type == "learned"
        self.positions = CavMaeSyncPositions(grid, config.hidden_size, learned)
        self.modality_embedding = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.global_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_global_tokens else None
        self.register_tokens = (
            nn.Parameter(torch.zeros(1, config.num_register_tokens, config.hidden_size))
            if config.num_register_tokens
            else None
        )

    def forward(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Tokens `(samples, tokens, hidden)` of images `(samples, channels, height, width)`.

        Args:
            images: Frames, or spectrograms as one-channel pictures of (mel, time).
            ids_keep: Patches to keep, `(samples, kept)`; all when absent.
        """
        patches = self.projection(images.to(self.projection.weight.dtype))
        grid = (patches.shape[2], patches.shape[3])
        # Sine-cosine positions stay in float32 when weights are loaded in half precision; the tokens must not.
        places = (self.positions(grid) + self.modality_embedding).to(self.modality_embedding.dtype)
        tokens = patches.flatten(2).transpose(1, 2) + places
        if ids_keep is not None:
            tokens = gather_patches(tokens, ids_keep)
        parts = [self.global_token, tokens, self.register_tokens]
        parts = [part.expand(tokens.shape[0], -1, -1) for part in parts if part is not None]
        return torch.cat(parts, dim=1) if len(parts) > 1 else tokens


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Plain attention that returns its probabilities; inputs `(samples, heads, tokens, head size)`."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class CavMaeSyncAttention(nn.Module):
    """Multi-head self-attention through transformers' attention interface."""

    def __init__(self, config: CavMaeSyncConfig, hidden_size: int, num_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Attend within `(samples, tokens, hidden)`; also gives the probabilities where they are computed."""
        shape = hidden_states.shape
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        mixed, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling)
        return self.o_proj(mixed.reshape(shape).contiguous()), weights


class CavMaeSyncMLP(nn.Module):
    """Feed-forward part of a layer."""

    def __init__(self, config: CavMaeSyncConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class CavMaeSyncLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer; width, heads and feed-forward width default to the encoder's."""

    def __init__(
        self,
        config: CavMaeSyncConfig,
        hidden_size: int | None = None,
        num_heads: int | None = None,
        intermediate_size: int | None = None,
    ):
        super().__init__()
        hidden_size = hidden_size or config.hidden_size
        self.attention = CavMaeSyncAttention(config, hidden_size, num_heads or config.num_attention_heads)
        self.mlp = CavMaeSyncMLP(config, hidden_size, intermediate_size or config.intermediate_size)
        self.layernorm_before = self._make_norm(config, hidden_size)
        self.layernorm_after = self._make_norm(config, hidden_size)

    def _make_norm(self, config: CavMaeSyncConfig, hidden_size: int) -> nn.Module:
        return nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Transform `(samples, tokens, hidden)`; also gives the attention probabilities, if any."""
        return self._transform(hidden_states, self.layernorm_before, self.layernorm_after, attention_mask)

    def _transform(
        self, hidden_states: Tensor, norm_before: nn.Module, norm_after: nn.Module, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        mixed, weights = self.attention(norm_before(hidden_states), attention_mask)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(norm_after(hidden_states)), weights


class CavMaeSyncJointLayer(CavMaeSyncLayer):
    """A layer shared by both modalities, with norms of its own for audio, video and fused tokens."""

    def _make_norm(self, config: CavMaeSyncConfig, hidden_size: int) -> nn.Module:
        return nn.ModuleDict(
            {name: nn.LayerNorm(hidden_size, eps=config.layer_norm_eps) for name in ("audio", "video", "fused")}
        )

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, norms: str = "fused"
    ) -> tuple[Tensor, Tensor | None]:
        """As `CavMaeSyncLayer`; `norms` is `"audio"`, `"video"` or `"fused"`."""
        before, after = self.layernorm_before.get_submodule(norms), self.layernorm_after.get_submodule(norms)
        return self._transform(hidden_states, before, after, attention_mask)


@dataclass
class LayerRecord:
    """Collects what the layers of one modality's pass compute, where it was asked for."""

    hidden_states: list[Tensor] | None = None
    attentions: list[Tensor] | None = None

    def add_hidden_states(self, hidden_states: Tensor) -> None:
        if self.hidden_states is not None:
            self.hidden_states.append(hidden_states)

    def add_attentions(self, attentions: Tensor | None) -> None:
        if self.attentions is not None and attentions is not None:
            self.attentions.append(attentions)

    def batch_first(self, modality: str, batch_shape: torch.Size) -> dict[str, tuple[Tensor, ...]]:
        """What was recorded, as output fields of shape `(batch, frames, ...)`; nothing where nothing was asked for."""
        recorded = {"hidden_states": self.hidden_states, "attentions": self.attentions}
        return {
            f"{modality}_{name}": tuple(value.unflatten(0, batch_shape) for value in values)
            for name, values in recorded.items()
            if values is not None
        }


def run_layers(
    layers: Iterable[nn.Module], hidden_states: Tensor, *arguments: Any, record: LayerRecord | None = None
) -> Tensor:
    """Apply layers one after the other, noting hidden states and attentions in `record`."""
    for layer in layers:
        hidden_states, attentions = layer(hidden_states, *arguments)
        if record is not None:
            record.add_attentions(attentions)
            record.add_hidden_states(hidden_states)
    return hidden_states


class CavMaeSyncTower(nn.Module):
    """One modality's own part of the encoder: embeddings and layers."""

    def __init__(self, config: CavMaeSyncConfig, num_channels: int, grid: tuple[int, int]):
        super().__init__()
        self.num_register_tokens = config.num_register_tokens
        self.embeddings = CavMaeSyncEmbeddings(config, num_channels, grid)
        self.layers = nn.ModuleList([CavMaeSyncLayer(config) for _ in range(config.num_modality_layers)])

    def forward(self, images: Tensor, ids_keep: Tensor | None = None, record: LayerRecord | None = None) -> Tensor:
        """Tokens (global, patches) `(samples, tokens, hidden)` of `(samples, channels, height, width)`.

        The registers are dropped at the end, as published; recorded hidden states still have them.
        """
        hidden_states = self.embeddings(images, ids_keep)
        if record is not None:
            record.add_hidden_states(hidden_states)
        hidden_states = run_layers(self.layers, hidden_states, record=record)
        return hidden_states[:, : hidden_states.shape[1] - self.num_register_tokens]


__all__ = [
    "CavMaeSyncEmbeddings",
    "CavMaeSyncJointLayer",
    "CavMaeSyncLayer",
    "CavMaeSyncPositions",
    "CavMaeSyncTower",
    "LayerRecord",
    "run_layers",
    "sincos_positions",
]
