# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""CAV-MAE Sync: the encoder, its pretraining with contrast and reconstruction, and classification of clips."""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, maybe_autocast

from .configuration_cavmae_sync import CavMaeSyncConfig
from .distributed_cavmae_sync import share_of_mean, world_size
from .encoder_families_cavmae_sync import encoder_family, patch_size
from .encoders_cavmae_sync import (
    CavMaeSyncAttentionPool,
    CavMaeSyncEncoderTower,
    WithEncoders,
)
from .local_cavmae_sync import CavMaeSyncFall, CavMaeSyncLocalHead
from .losses_cavmae_sync import (
    ContrastiveLoss,
    contrastive_loss,
    dense_contrastive_loss,
    dense_regularization,
    patch_statistics,
    patchify,
    reconstruction_loss,
    unpatchify,
)
from .masking_cavmae_sync import Masking, gather_patches, random_masking, removed_part, structured_noise

logger = logging.get_logger(__name__)

# What a forward or feature method takes without using it, so that the whole output of a processor or collator, and the
# arguments of the other classes, can be passed. Anything else is refused: it would be a typing mistake.
KNOWN_ARGUMENTS = (
    "pixel_values_videos", "input_values", "padding_mask", "padding_mask_videos", "attention_mask", "audio_noise",
    "video_noise", "labels", "return_loss", "output_attentions", "output_hidden_states", "return_dict",
    "output_local_embeds", "num_items_in_batch", "frame_times", "window_times", "window_coverage", "window_offsets",
    "frame_indices", "clip_ids", "audio_tokens", "video_tokens",
)  # fmt: skip


# The arguments that every `forward` shares, and what each raises.
_INPUTS = """\
    pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`):
        Frames, normalised by the processor; of `config.frames_per_moment` frames the channels one after the other,
        `num_channels * frames_per_moment` of them.
    input_values (`torch.Tensor` of shape `(batch_size, num_frames, audio_length, num_mel_bins)`):
        Audio windows (log-mel spectrograms), normalised by the processor.
    padding_mask (`torch.Tensor` of shape `(batch_size, num_frames)`, *optional*):
        False for absent windows, which take part in no loss; `None`: none is absent.
    padding_mask_videos (`torch.Tensor` of shape `(batch_size, num_frames)`, *optional*):
        False for absent frames, likewise.
    output_attentions (`bool`, *optional*):
        Whether to return attention probabilities (eager attention only); `None`: as configured.
    output_hidden_states (`bool`, *optional*):
        Whether to return the layers' hidden states; `None`: as configured.
    kwargs:
        `attention_mask` is another name for `padding_mask`. With an encoder of another model: `audio_tokens` or
        `video_tokens` `(batch_size, num_frames, tokens, width)`, that it gave before (`encode_tokens`), in place of
        its input. Where `config.audio_context` is `"clip"`, `input_values` has rows of `config.heard_length`, and
        `window_offsets` `(batch_size, num_frames)` says where in its row each window starts.
        What else a processor or collator gives is ignored; unknown names are refused.

Raises:
    ValueError: No input, an input that the model's modality does not have, shapes that do not fit the
        configuration, or counts of frames and windows that differ.
    TypeError: An unknown argument.
"""

_Method = TypeVar("_Method", bound=Callable)


def documents_inputs(forward: _Method) -> _Method:
    """Append the shared arguments to the docstring of a `forward`, whose own arguments come last in it."""
    forward.__doc__ = f"{inspect.cleandoc(forward.__doc__ or '')}\n{_INPUTS}"
    return forward


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

    def __init__(self, config: CavMaeSyncConfig, modality: str):
        super().__init__()
        video = modality == "video"
        num_channels, grid = (config.frame_channels, config.video_grid) if video else (1, config.audio_grid)
        self.frames_per_moment = config.frames_per_moment if video else None
        self.subtracts_mean = config.subtract_mean_frame if video else config.subtract_mean_spectrum
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
            images: Frames, or spectrograms as one-channel images of (mel, time).
            ids_keep: Patches to keep, `(samples, kept)`; all when absent.
        """
        images = images.to(self.projection.weight.dtype)
        if self.subtracts_mean and self.frames_per_moment:
            frames = images.unflatten(1, (self.frames_per_moment, -1))
            images = (frames - frames.mean(dim=1, keepdim=True)).flatten(1, 2)
        elif self.subtracts_mean:
            images = images - images.mean(dim=-1, keepdim=True)
        patches = self.projection(images)
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
    """Multi-head attention through transformers' attention interface."""

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

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within `(samples, tokens, hidden)`, or from it to a memory `(samples, others, hidden)`; also gives
        the probabilities where they are computed.
        """
        shape = hidden_states.shape
        memory = hidden_states if memory is None else memory
        query, key, value = (
            projection(values).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, values in ((self.q_proj, hidden_states), (self.k_proj, memory), (self.v_proj, memory))
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
        self,
        hidden_states: Tensor,
        norm_before: nn.Module,
        norm_after: nn.Module,
        attention_mask: Tensor | None,
        memory: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        mixed, weights = self.attention(norm_before(hidden_states), attention_mask, memory)
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


class CavMaeSyncCrossLayer(CavMaeSyncLayer):
    """A layer whose tokens attend to those of a memory, not to each other."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None, memory: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """As `CavMaeSyncLayer`, with a memory `(samples, others, hidden)`."""
        return self._transform(hidden_states, self.layernorm_before, self.layernorm_after, attention_mask, memory)


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

    def __init__(self, config: CavMaeSyncConfig, modality: str):
        super().__init__()
        self.num_register_tokens = config.num_register_tokens
        self.patch_size = config.patch_size
        self.embeddings = CavMaeSyncEmbeddings(config, modality)
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

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patches as (rows, columns) of images `(..., height, width)`."""
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size


def middle_frames(config: CavMaeSyncConfig, images: Tensor) -> Tensor:
    """The middle frame of every moment, `(..., num_channels, height, width)` of the channels of all its frames."""
    first = config.frames_per_moment // 2 * config.num_channels
    return images[..., first : first + config.num_channels, :, :] if config.frames_per_moment > 1 else images


def make_tower(config: CavMaeSyncConfig, modality: str) -> CavMaeSyncTower | CavMaeSyncEncoderTower | None:
    """The tower of a modality: this package's, or another model's encoder; `None` where the model has none."""
    if config.modality not in ("multimodal", modality):
        return None
    if modality in config.encoders:
        return CavMaeSyncEncoderTower(config, modality)
    return CavMaeSyncTower(config, modality)


def make_local_heads(config: CavMaeSyncConfig) -> nn.ModuleDict:
    """A local head for every tower; none where the configuration has no `local_head_size`."""
    heads = nn.ModuleDict()
    for modality in ("audio", "video"):
        if config.local_head_size and config.modality in ("multimodal", modality):
            # What comes in and what each layer makes of it; of an encoder of another model what it gives.
            own = 0 if modality in config.encoders else config.num_modality_layers
            count = 1 + own + config.num_joint_layers + config.num_contrastive_head_layers
            heads[modality] = CavMaeSyncLocalHead(config.hidden_size, count, config.local_head_size)
    return heads


class CavMaeSyncPreTrainedModel(WithEncoders, PreTrainedModel):
    """Loading, saving and initialisation shared by the CAV-MAE Sync models."""

    config: CavMaeSyncConfig
    config_class = CavMaeSyncConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values_videos"
    input_modalities = ["video", "audio"]
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "CavMaeSyncEmbeddings", "CavMaeSyncLayer", "CavMaeSyncJointLayer", "CavMaeSyncCrossLayer", "CavMaeSyncDecoder",
    ]  # fmt: skip
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Published initialisation: Xavier-uniform projections, normal tokens, sine-cosine positions.

        Register tokens start with the small spread of the other tokens, not with the published unit variance.
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            if isinstance(module, CavMaeSyncFall):
                init.zeros_(module.weight)
            else:
                init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, CavMaeSyncPositions):
            module.reset()
        elif isinstance(module, CavMaeSyncEmbeddings):
            weight, bias = module.projection.weight, module.projection.bias
            bound = (6 / (weight[0].numel() + weight.shape[0])) ** 0.5  # Xavier of the equivalent linear layer
            init.uniform_(weight, -bound, bound)
            if bias is not None:
                init.zeros_(bias)
            for token in (module.modality_embedding, module.global_token, module.register_tokens):
                if token is not None:
                    init.normal_(token, std=std)
        elif isinstance(module, CavMaeSyncDecoder):
            for token in (module.mask_token, *module.modality_embeddings.parameters()):
                init.normal_(token, std=std)
        elif isinstance(module, CavMaeSyncFrameTransformerClassificationHead):
            init.normal_(module.class_token, std=std)
        elif isinstance(module, CavMaeSyncAttentionPool):
            init.normal_(module.query, std=std)

    def get_input_embeddings(self) -> nn.Module:
        """The patch projection of the frames (of the audio windows in an audio-only model)."""
        tower = self._main_tower()
        if isinstance(tower, CavMaeSyncTower):
            return tower.embeddings.projection
        return tower.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the module that `get_input_embeddings` gives."""
        tower = self._main_tower()
        if isinstance(tower, CavMaeSyncTower):
            tower.embeddings.projection = value  # type: ignore[assignment]
        else:
            tower.encoder.set_input_embeddings(value)

    def _main_tower(self) -> CavMaeSyncTower | CavMaeSyncEncoderTower:
        base: Any = getattr(self, self.base_model_prefix, self)
        return base.tower("audio" if self.config.modality == "audio" else "video")


@dataclass
class CavMaeSyncModelOutput(ModelOutput):
    """
    Output of [`CavMaeSyncModel`]. What belongs to a modality that was not given is `None`.

    Args:
        loss (`torch.Tensor` scalar, *optional*, returned when `return_loss=True`):
            Contrastive loss over the windows and frames of the batch; other moments of a frame's own clip are
            negatives only with `config.intra_clip_negatives`.
        audio_embeds (`torch.Tensor` of shape `(batch_size, num_frames, hidden_size)`):
            L2-normalised embedding of every audio window; zeros where a window is absent.
        video_embeds (`torch.Tensor` of shape `(batch_size, num_frames, hidden_size)`):
            L2-normalised embedding of every frame; zeros where a frame is absent.
        similarity (`torch.Tensor` of shape `(batch_size, num_frames, num_frames)`):
            Cosine similarity of window `i` (row) and frame `j` (column) of the same clip.
        audio_patch_embeds (`torch.Tensor` of shape `(batch_size, num_frames, patches, hidden_size)`):
            Audio patches after the modality's final norm, mel-major: `patch = mel_row * columns + time_column`.
        video_patch_embeds (`torch.Tensor` of shape `(batch_size, num_frames, patches, hidden_size)`):
            Frame patches after the modality's final norm, row-major.
        local_audio_embeds, local_video_embeds (`torch.Tensor` `(batch_size, num_frames, patches, hidden_size)`):
            On `output_local_embeds=True`: by which vector the embedding falls where the block around a patch is
            hidden, as the local head predicts it. Its product with any vector says how much the patch speaks for that.
            Of a model with `dense_loss_weight`: projected patches, L2-normalised, of width `dense_size`, whose
            products with the other modality's are what its dense loss compares.
        audio_hidden_states, video_hidden_states (`tuple` of `(batch_size, num_frames, tokens, hidden_size)`):
            On `output_hidden_states=True`: the embeddings and the output of every layer. Tokens are ordered (global,
            patches, registers); the registers end with the tower.
        audio_attentions, video_attentions (`tuple` of `(batch_size, num_frames, heads, tokens, tokens)`):
            On `output_attentions=True` (eager attention): the attention probabilities of every layer.
    """

    loss: Tensor | None = None
    audio_embeds: Tensor | None = None
    video_embeds: Tensor | None = None
    similarity: Tensor | None = None
    audio_patch_embeds: Tensor | None = None
    video_patch_embeds: Tensor | None = None
    audio_hidden_states: tuple[Tensor, ...] | None = None
    video_hidden_states: tuple[Tensor, ...] | None = None
    audio_attentions: tuple[Tensor, ...] | None = None
    video_attentions: tuple[Tensor, ...] | None = None
    local_audio_embeds: Tensor | None = None
    local_video_embeds: Tensor | None = None


@dataclass
class CavMaeSyncAudioFeatures(BaseModelOutputWithPooling):
    """
    Output of `get_audio_features`.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, num_frames, patches, hidden_size)`):
            Audio patches after the modality's final norm.
        pooler_output (`torch.Tensor` of shape `(batch_size, hidden_size)`):
            One L2-normalised vector per clip: the mean of its present windows' embeddings.
        hidden_states, attentions (`tuple`, *optional*):
            As `audio_hidden_states` and `audio_attentions` of [`CavMaeSyncModelOutput`].
        audio_embeds (`torch.Tensor` of shape `(batch_size, num_frames, hidden_size)`):
            L2-normalised embedding of every window.
        local_audio_embeds (`torch.Tensor` of shape `(batch_size, num_frames, patches, hidden_size)`, *optional*):
            As in [`CavMaeSyncModelOutput`].
    """

    audio_embeds: Tensor | None = None
    local_audio_embeds: Tensor | None = None


@dataclass
class CavMaeSyncVideoFeatures(BaseModelOutputWithPooling):
    """
    Output of `get_video_features`: as [`CavMaeSyncAudioFeatures`], with `video_embeds` of every frame
    `(batch_size, num_frames, hidden_size)`, and `local_video_embeds`.
    """

    video_embeds: Tensor | None = None
    local_video_embeds: Tensor | None = None


class ModalityEncoding(NamedTuple):
    """One modality of a batch after its tower and the joint layers; every tensor starts `(batch, frames, ...)`."""

    embeds: Tensor
    patch_embeds: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    local_embeds: Tensor | None = None


def select_distinct(images: Tensor, present: Tensor | None, deduplicate: bool) -> tuple[Tensor, Tensor | None]:
    """Pick the frames or windows that need encoding.

    Consecutive equal ones (a clip's first and last windows are clamped to its ends, and videos stand still) are taken
    once, absent ones are not taken at all.

    Args:
        images: Shape `(batch, frames, ...)`.
        present: False for absent ones, shape `(batch, frames)`.
        deduplicate: Whether to look for equal neighbours.

    Returns:
        The picked ones `(picked, ...)`, and for each of the `batch * frames` places its index among them (`None`: all
        were picked). The index at an absent place is arbitrary.
    """
    flat = images.flatten(0, 1)
    # Shapes that depend on data break compiled and exported graphs; gradients with respect to the input must not be
    # collected at one of several equal windows.
    fixed_shapes = torch.compiler.is_compiling() or torch.jit.is_tracing() or images.is_meta
    if fixed_shapes or images.requires_grad or (present is None and (images.shape[1] == 1 or not deduplicate)):
        return flat, None
    first = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
    if deduplicate:
        first[:, 1:] = (images[:, 1:] != images[:, :-1]).flatten(2).any(dim=2)
    if present is not None:
        # The first present one after absent ones must be taken even if it equals the absent one before it.
        first[:, 1:] |= ~present[:, :-1]
        first &= present
    first = first.flatten()
    picked = first.nonzero().squeeze(1)  # the one look at the data: what waits for the device
    if len(picked) == len(flat):
        return flat, None
    if not len(picked):  # all are absent: the layers still need something to run on
        return flat[:1], torch.zeros_like(first, dtype=torch.long)
    return flat[picked], first.cumsum(0) - 1


def pool_clip(embeds: Tensor) -> Tensor:
    """One L2-normalised vector per clip `(batch, hidden)`: the mean of its embeddings (absent ones are zeros)."""
    return nn.functional.normalize(embeds.sum(dim=1), dim=-1)


def both_present(padding_mask: Tensor | None, padding_mask_videos: Tensor | None) -> Tensor | None:
    """True where window and frame are both present, `(batch, frames)`; `None` when nothing is absent."""
    if padding_mask is None or padding_mask_videos is None:
        mask = padding_mask if padding_mask_videos is None else padding_mask_videos
        return None if mask is None else mask.bool()
    return padding_mask.bool() & padding_mask_videos.bool()


def _some_absent(present: dict[str, Tensor | None]) -> bool:
    """Whether a mask hides anything, and must be known to the attention, where it rules out the fastest kernels.

    To look at masks is to wait for their device. Trainer's batches have none where all is present.
    """
    masks = [mask for mask in present.values() if mask is not None]
    if not masks:
        return False
    return torch.compiler.is_compiling() or not all(bool(mask.all()) for mask in masks)


def _put_patches(values: Tensor, ids: Tensor, count: int) -> Tensor:
    """Patches `(samples, picked, size)` at their places among `count`, zeros elsewhere."""
    everywhere = values.new_zeros(values.shape[0], count, values.shape[-1])
    return everywhere.scatter(1, ids.unsqueeze(-1).expand_as(values), values)


def _tower_outputs(encoding: ModalityEncoding) -> dict[str, Any]:
    """What the outputs of `get_audio_features` and `get_video_features` have in common."""
    return {
        "last_hidden_state": encoding.patch_embeds,
        "pooler_output": pool_clip(encoding.embeds),
        "hidden_states": encoding.hidden_states,
        "attentions": encoding.attentions,
    }


class CavMaeSyncModel(CavMaeSyncPreTrainedModel):
    """
    The CAV-MAE Sync encoder. It turns audio windows `input_values` of shape `(batch_size, num_frames, audio_length,
    num_mel_bins)` and frames `pixel_values_videos` of shape `(batch_size, num_frames, num_channels, height, width)`
    into one embedding each, in a space where a frame lies near the audio of its own moment.

    Args:
        config (`CavMaeSyncConfig`): Sizes and options; `config.modality` says which towers exist.

    Example:

    ```python
    >>> import torch
    >>> from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncModel

    >>> model = CavMaeSyncModel(CavMaeSyncConfig(num_modality_layers=1)).eval()
    >>> output = model(pixel_values_videos=torch.rand(1, 4, 3, 224, 224), input_values=torch.rand(1, 4, 416, 128))
    >>> output.similarity.shape
    torch.Size([1, 4, 4])
    ```
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^head\.", r"local_heads\.", r"dense_projections\."]

    def __init__(self, config: CavMaeSyncConfig):
        super().__init__(config)
        self.audio_tower = make_tower(config, "audio")
        self.video_tower = make_tower(config, "video")
        self.joint_layers = nn.ModuleList([CavMaeSyncJointLayer(config) for _ in range(config.num_joint_layers)])
        self.contrastive_layers = nn.ModuleDict(
            {
                modality: nn.ModuleList([CavMaeSyncLayer(config) for _ in range(config.num_contrastive_head_layers)])
                for modality in ("audio", "video")
                if config.num_contrastive_head_layers
            }
        )
        self.norms = nn.ModuleDict(
            {name: nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for name in ("audio", "video", "fused")}
        )
        self.local_heads = make_local_heads(config)
        self.dense_projections = nn.ModuleDict(
            {
                modality: nn.Linear(config.hidden_size, config.dense_size)
                for modality in ("audio", "video")
                if config.dense_loss_weight and config.modality in ("multimodal", modality)
            }
        )
        self.post_init()
        if self.config.encoders and self.config.save_encoders == "reference":
            patterns: Any = self._keys_to_ignore_on_load_missing
            patterns.update(rf"{name}\.encoder\." for name in ("audio_tower", "video_tower"))

    @can_return_tuple
    @documents_inputs
    def forward(
        self,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        padding_mask_videos: Tensor | None = None,
        return_loss: bool | None = None,
        output_local_embeds: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> tuple | CavMaeSyncModelOutput:
        """Embed frames, windows, or both. A modality that is not given costs nothing.

        Args:
            return_loss (`bool`, *optional*):
                Whether to compute the contrastive loss between the windows and frames of the batch.
            output_local_embeds (`bool`, *optional*, defaults to `False`):
                Whether to return what the local heads make of each patch (`config.local_head_size`).
        """
        images, present = self.check_inputs(
            pixel_values_videos, input_values, padding_mask, padding_mask_videos, **kwargs
        )
        if return_loss and len(images) < 2:
            raise ValueError("`return_loss=True` needs both `pixel_values_videos` and `input_values`.")
        encodings = {
            modality: self.encode(
                modality,
                values,
                present[modality],
                output_local_embeds=output_local_embeds,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
            )
            for modality, values in images.items()
        }
        audio, video = encodings.get("audio"), encodings.get("video")
        similarity = loss = None
        if audio is not None and video is not None:
            # Autocast would round the cosines of its float32 embeddings to half precision.
            with maybe_autocast(audio.embeds.device.type, enabled=False):
                similarity = audio.embeds @ video.embeds.to(audio.embeds.device).transpose(1, 2)
            if return_loss:
                loss = self.contrast(audio.embeds, video.embeds, present["audio"], present["video"]).loss
        return CavMaeSyncModelOutput(
            loss=loss,
            audio_embeds=audio and audio.embeds,
            video_embeds=video and video.embeds,
            similarity=similarity,
            audio_patch_embeds=audio and audio.patch_embeds,
            video_patch_embeds=video and video.patch_embeds,
            audio_hidden_states=audio and audio.hidden_states,
            video_hidden_states=video and video.hidden_states,
            audio_attentions=audio and audio.attentions,
            video_attentions=video and video.attentions,
            local_audio_embeds=audio and audio.local_embeds,
            local_video_embeds=video and video.local_embeds,
        )

    @can_return_tuple
    def get_audio_features(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        output_local_embeds: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> tuple | CavMaeSyncAudioFeatures:
        """Embed audio windows alone; arguments as in `forward`. `pooler_output` is one vector per clip."""
        images, present = self.check_inputs(None, input_values, padding_mask, None, **kwargs)
        recorded = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        encoding = self.encode(
            "audio", images["audio"], present["audio"], output_local_embeds=output_local_embeds, **recorded
        )
        return CavMaeSyncAudioFeatures(
            audio_embeds=encoding.embeds, local_audio_embeds=encoding.local_embeds, **_tower_outputs(encoding)
        )

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: Tensor,
        padding_mask_videos: Tensor | None = None,
        output_local_embeds: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> tuple | CavMaeSyncVideoFeatures:
        """Embed frames alone; arguments as in `forward`. `pooler_output` is one vector per clip."""
        images, present = self.check_inputs(pixel_values_videos, None, None, padding_mask_videos, **kwargs)
        recorded = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        encoding = self.encode(
            "video", images["video"], present["video"], output_local_embeds=output_local_embeds, **recorded
        )
        return CavMaeSyncVideoFeatures(
            video_embeds=encoding.embeds, local_video_embeds=encoding.local_embeds, **_tower_outputs(encoding)
        )

    def check_inputs(
        self,
        pixel_values_videos: Tensor | None,
        input_values: Tensor | None,
        padding_mask: Tensor | None,
        padding_mask_videos: Tensor | None,
        **kwargs: Any,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
        """The given modalities, audio first, as `(batch, frames, channels, height, width)`, and who is present.

        Args:
            pixel_values_videos: As in `forward`.
            input_values: As in `forward`.
            padding_mask: As in `forward`.
            padding_mask_videos: As in `forward`.
            kwargs: Further arguments; `attention_mask` as in `forward`, unknown ones are refused.
        """
        for name, value in kwargs.items():
            if name not in KNOWN_ARGUMENTS and value is not None:  # PEFT passes what other models take as None
                near = difflib.get_close_matches(name, KNOWN_ARGUMENTS, n=1)
                raise TypeError(f"Unknown argument `{name}`" + (f"; is `{near[0]}` meant?" if near else "."))
        attention_mask = kwargs.get("attention_mask")
        if attention_mask is not None and input_values is None and kwargs.get("audio_tokens") is None:
            raise ValueError(
                "`attention_mask` says which audio windows are present, and there is no audio; absent frames are "
                "marked in `padding_mask_videos`."
            )
        images: dict[str, Tensor] = {}
        present: dict[str, Tensor | None] = {}
        for modality, inputs, masks in (
            ("audio", input_values, (padding_mask, attention_mask)),
            ("video", pixel_values_videos, (padding_mask_videos,)),
        ):
            tokens = kwargs.get(f"{modality}_tokens")
            if tokens is not None:
                images[modality] = self._check_tokens(modality, tokens)
            elif inputs is not None:
                images[modality] = self.as_images(modality, inputs)
                if modality == "audio" and self.config.audio_context == "clip":
                    images[modality] = self._clip_tokens(images[modality], kwargs.get("window_offsets"))
            if modality in images:
                shape = images[modality].shape[:2]
                present[modality] = None
                for mask in masks:
                    if mask is None:
                        continue
                    if mask.shape != shape:
                        raise ValueError(
                            f"The padding mask has shape {tuple(mask.shape)} for an input of (batch, frames) "
                            f"{tuple(shape)}; pass one value per window or frame."
                        )
                    others = present[modality]
                    present[modality] = mask.bool() if others is None else others & mask.bool()
        if not images:
            raise ValueError("Got neither `pixel_values_videos` nor `input_values`; pass at least one of them.")
        shapes = [values.shape[:2] for values in images.values()]
        if shapes[0] != shapes[-1]:
            (batch_size, windows), (videos, frames) = shapes
            raise ValueError(
                f"Got {windows} audio windows for {frames} frames (batch sizes {batch_size} and {videos}); give every "
                "frame the window of its moment, as CavMaeSyncProcessor does, or call get_audio_features and "
                "get_video_features."
            )
        return images, present

    def encode_tokens(self, modality: str, images: Tensor, window_offsets: Tensor | None = None) -> Tensor:
        """Tokens of a modality's encoder, to be kept and given as `audio_tokens` or `video_tokens`.

        Args:
            modality: `"audio"` or `"video"`, with an encoder of another model.
            images: The modality's input, as of `forward`.
            window_offsets: As of `forward`, where the encoder hears whole clips.

        Returns:
            `(batch, frames, tokens, width)`: the encoder's own, of which a class token is the first.
        """
        tower, values = self.tower(modality), self.as_images(modality, images)
        if not isinstance(tower, CavMaeSyncEncoderTower):
            raise ValueError(f"The {modality} tower is this package's own and has no tokens to keep.")
        if modality == "audio" and self.config.audio_context == "clip":
            return self._clip_tokens(values, window_offsets)
        return tower.encode(values.flatten(0, 1)).unflatten(0, values.shape[:2])

    def _clip_tokens(self, images: Tensor, window_offsets: Tensor | None) -> Tensor:
        """Tokens of windows that the encoder hears within a clip."""
        tower: Any = self.tower("audio")
        if window_offsets is None or window_offsets.shape != images.shape[:2]:
            given = "none" if window_offsets is None else f"shape {tuple(window_offsets.shape)}"
            raise ValueError(
                "With `audio_context='clip'` the model needs `window_offsets` of (batch_size, num_frames), got "
                f"{given}; pass all that its processor gives (CavMaeSyncProcessor.from_config)."
            )
        return tower.encode_clips(images, window_offsets.to(images.device))

    def _check_tokens(self, modality: str, tokens: Tensor) -> Tensor:
        tower = self.tower(modality)
        if not isinstance(tower, CavMaeSyncEncoderTower):
            raise ValueError(f"`{modality}_tokens` are those of an encoder, and the {modality} tower is none.")
        expected = (tower.num_tokens, tower.width)
        if tokens.ndim != 4 or tokens.shape[2:] != expected:
            raise ValueError(
                f"`{modality}_tokens` has shape {tuple(tokens.shape)}; expected (batch_size, num_frames, "
                f"{expected[0]}, {expected[1]}), as `encode_tokens` gives them."
            )
        return tokens

    def encode(
        self,
        modality: str,
        images: Tensor,
        present: Tensor | None = None,
        *,
        output_local_embeds: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ModalityEncoding:
        """One modality through its tower, the joint layers and its final norm, unmasked.

        Args:
            modality: `"audio"` or `"video"`.
            images: From `check_inputs`, `(batch, frames, channels, height, width)`.
            present: From `check_inputs`, `(batch, frames)`.
            output_local_embeds: As in `forward`.
            output_attentions: As in `forward`.
            output_hidden_states: As in `forward`.
        """
        record = self.make_record(output_attentions, output_hidden_states)
        distinct, places = select_distinct(images, present, self.config.deduplicate_windows)
        local: Tensor | None = None
        if output_local_embeds and modality not in self.dense_projections:
            embeds, patch_embeds, local = self._separate_locally(modality, distinct, record)
        else:
            embeds, patch_embeds = self.separate(modality, self.tower(modality)(distinct, record=record), record)
            if output_local_embeds:
                local = self.project_patches(modality, patch_embeds)

        def restore(encoded: Tensor) -> Tensor:
            encoded = encoded if places is None else encoded[places]
            encoded = encoded.unflatten(0, images.shape[:2])
            if present is None:
                return encoded
            return encoded * present.view(*images.shape[:2], *[1] * (encoded.ndim - 2)).to(encoded.dtype)

        return ModalityEncoding(
            restore(embeds),
            restore(patch_embeds),
            None if record.hidden_states is None else tuple(map(restore, record.hidden_states)),
            None if record.attentions is None else tuple(restore(weights) for weights in record.attentions),
            None if local is None else restore(local),
        )

    def _separate_locally(self, modality: str, images: Tensor, record: LayerRecord) -> tuple[Tensor, Tensor, Tensor]:
        """As the tower and `separate`, with what the local head makes of the tokens of all layers."""
        if modality not in self.local_heads:
            raise ValueError(
                "`output_local_embeds=True` needs a local head, and this model has none (`local_head_size` is 0); "
                "train one: cavmae-sync local-head."
            )
        tower, noted = self.tower(modality), LayerRecord([], record.attentions)
        tokens = tower(images, record=noted)
        states: list[Tensor] = noted.hidden_states or []
        count = len(states)
        embeds, patches = self.separate(modality, tokens, noted)
        if record.hidden_states is not None:
            record.hidden_states += states
        if not isinstance(tower, CavMaeSyncTower):  # whose layers may be of any width and number
            states = [tokens, *states[count:]]
        first, length = int(self.config.use_global_tokens), patches.shape[1]
        wholes = [state[:, :1] if first else state[:, :length].mean(dim=1, keepdim=True) for state in states]
        states = [
            torch.cat([whole, state[:, first : first + length]], dim=1)
            for whole, state in zip(wholes, states, strict=True)
        ]
        return embeds, patches, self.local_heads[modality](states, tower.grid(images))

    def project_patches(self, modality: str, patch_embeds: Tensor) -> Tensor:
        """Patches as the dense loss compares them, L2-normalised, `(..., patches, dense_size)`."""
        return nn.functional.normalize(self.dense_projections[modality](patch_embeds), dim=-1)

    def set_local_heads(self, size: int) -> None:
        """Give the model new, untrained local heads of a width, or with 0 none; all its other weights stay.

        Args:
            size: As `local_head_size` of the configuration, which it becomes. Projections of a dense loss go: local
                embeddings are of one kind.
        """
        self.config.local_head_size = size
        if size and self.config.dense_loss_weight:
            self.config.dense_loss_weight = 0.0
            self.dense_projections = nn.ModuleDict()
        self.local_heads = make_local_heads(self.config)
        for module in self.local_heads.modules():
            self._init_weights(module)
        self.local_heads.to(self.device, self.dtype)

    def set_frames_per_moment(self, count: int, frame_step: float | None = None) -> None:
        """Let a model of single frames see several of each moment; all its other weights stay.

        Weights of a patch are repeated for each frame and divided by their number, as those of images are for videos
        (Carreira and Zisserman 2017): of a moment that stands still the model makes what it made before.

        Args:
            count: `frames_per_moment` of the configuration, which it becomes.
            frame_step: Likewise; `None` leaves that as it is.

        Raises:
            ValueError: The model sees another number of several frames, or has a video encoder of another model.
        """
        known = self.config.frames_per_moment
        changes: dict[str, Any] = {"frames_per_moment": count}
        if known not in (1, count):
            raise ValueError(
                f"`frames_per_moment` is {known}, and weights of several frames do not become those of {count}; start "
                "from a model of single frames."
            )
        if frame_step is not None:
            changes["frame_step"] = frame_step
        type(self.config).from_dict(self.config.to_dict() | changes)  # refuses what cannot work
        if known != count and isinstance(self.video_tower, CavMaeSyncTower):
            projection = self.video_tower.embeddings.projection
            with torch.no_grad():
                projection.weight = nn.Parameter(projection.weight.repeat(1, count, 1, 1) / count)
            projection.in_channels *= count
            self.video_tower.embeddings.frames_per_moment = count
        for name, value in changes.items():
            setattr(self.config, name, value)

    def separate(self, modality: str, tokens: Tensor, record: LayerRecord | None = None) -> tuple[Tensor, Tensor]:
        """From a tower's tokens `(samples, tokens, hidden)` to embeddings `(samples, hidden)` and patch embeddings."""
        tokens = run_layers(self.joint_layers, tokens, None, modality, record=record)
        if modality in self.contrastive_layers:
            head: Any = self.contrastive_layers[modality]
            tokens = run_layers(head, tokens, record=record)
        tokens = self.norms[modality](tokens)
        patches = tokens[:, 1:] if self.config.use_global_tokens else tokens
        pooled = tokens[:, 0] if self.config.use_global_tokens else tokens.mean(dim=1)
        return nn.functional.normalize(pooled, dim=-1), patches

    def fuse(self, audio_patches: Tensor, video_patches: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Both towers' patch tokens, joined, through the joint layers and the fused norm."""
        tokens = torch.cat([audio_patches, video_patches.to(audio_patches.device)], dim=1)
        return self.norms["fused"](run_layers(self.joint_layers, tokens, attention_mask, "fused"))

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        """A tower's tokens without the global token."""
        return tokens[:, 1:] if self.config.use_global_tokens else tokens

    def contrast(
        self,
        audio_embeds: Tensor,
        video_embeds: Tensor,
        padding_mask: Tensor | None = None,
        padding_mask_videos: Tensor | None = None,
    ) -> ContrastiveLoss:
        """Contrastive loss of embeddings `(batch, frames, hidden)` with the configuration's settings."""
        batch_size, num_frames = audio_embeds.shape[:2]
        valid = both_present(padding_mask, padding_mask_videos)
        clip_ids = None
        # Processes may differ in their number of frames, but not in whether they name their clips.
        if not self.config.intra_clip_negatives:
            if batch_size == 1 and not self.trains_together and not torch.compiler.is_compiling():
                logger.warning_once(
                    "The contrastive loss of a batch of one clip is 0, since other moments of the same clip are no "
                    "negatives; give several clips, or set `config.intra_clip_negatives=True`."
                )
            clip_ids = torch.arange(batch_size, device=audio_embeds.device).repeat_interleave(num_frames)
        return contrastive_loss(
            audio_embeds.flatten(0, 1),
            video_embeds.flatten(0, 1),
            self.config.temperature,
            bidirectional=self.config.bidirectional_contrast,
            valid=None if valid is None else valid.flatten(),
            clip_ids=clip_ids,
            distributed=self.trains_together,
        )

    @property
    def trains_together(self) -> bool:
        """Whether losses are those of the joined batch of several processes: in distributed training.

        Not in evaluation, where processes may hold different numbers of batches and would wait for each other for
        ever.
        """
        return self.training and world_size() > 1

    def tower(self, modality: str) -> CavMaeSyncTower | CavMaeSyncEncoderTower:
        """The tower of `"audio"` or `"video"`; a `ValueError` where the configuration has none."""
        tower = self.audio_tower if modality == "audio" else self.video_tower
        if tower is None:
            given = {"audio": "input_values", "video": "pixel_values_videos"}
            raise ValueError(
                f"Got `{given[modality]}`, but this model has `modality={self.config.modality!r}` and no {modality} "
                "tower; leave that input out or load a multimodal checkpoint."
            )
        return tower

    def as_images(self, modality: str, inputs: Tensor) -> Tensor:
        """Check a modality's input and give it as `(batch, frames, channels, height, width)`."""
        self.tower(modality)
        if not isinstance(inputs, Tensor):
            raise ValueError(
                f"The {modality} input is a {type(inputs).__name__}, not a tensor; call the processor with "
                "return_tensors='pt'."
            )
        config, patch = self.config, self.config.patch_size
        encoder = config.encoders.get(modality)
        if modality == "video":
            if encoder is not None:
                patch = 1 if encoder_family(encoder).fixed_size else patch_size(encoder)
            expected = f"(batch_size, num_frames, {config.frame_channels}, height, width)"
            if inputs.ndim != 5 or inputs.shape[2] != config.frame_channels:
                several = config.frames_per_moment > 1
                stacked = f", {config.frames_per_moment} frames a moment as CavMaeSyncProcessor stacks them"
                raise ValueError(
                    f"`pixel_values_videos` has shape {tuple(inputs.shape)}; expected {expected}"
                    f"{stacked if several else ''}."
                )
            if inputs.shape[3] % patch or inputs.shape[4] % patch:
                raise ValueError(
                    f"`pixel_values_videos` has frames of {inputs.shape[3]} x {inputs.shape[4]} pixels, not multiples "
                    f"of the patch size {patch}; resize them to {config.image_size} x {config.image_size}."
                )
            return inputs
        expected = f"(batch_size, num_frames, audio_length, {config.num_mel_bins})"
        if inputs.ndim != 4 or inputs.shape[3] != config.num_mel_bins:
            raise ValueError(
                f"`input_values` has shape {tuple(inputs.shape)}; expected {expected}. The feature extractor's "
                "`num_mel_bins` must equal the model's."
            )
        if encoder is None and inputs.shape[2] % patch:
            raise ValueError(
                f"`input_values` has windows of {inputs.shape[2]} spectrogram frames, not a multiple of the patch "
                f"size {patch}; {max(1, inputs.shape[2] // patch) * patch} would work."
            )
        return inputs.transpose(2, 3).unsqueeze(2)  # a spectrogram is a one-channel image of (mel, time)

    def make_record(self, output_attentions: bool | None, output_hidden_states: bool | None) -> LayerRecord:
        """Where the layers note what was asked for, in the call or in the configuration."""
        if output_attentions is None:
            output_attentions = bool(self.config.output_attentions)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                f"attn_implementation={self.config._attn_implementation!r} does not compute attention probabilities; "
                "load the model with attn_implementation='eager' or call model.set_attn_implementation('eager')."
            )
        return LayerRecord([] if output_hidden_states else None, [] if output_attentions else None)


@dataclass
class CavMaeSyncForPreTrainingOutput(ModelOutput):
    """
    Output of [`CavMaeSyncForPreTraining`]. The single losses are unweighted; what a zero weight skips is `None`.

    Args:
        loss (`torch.Tensor` scalar, *optional*):
            `reconstruction_loss_weight * (audio + video) + contrastive_loss_weight * contrastive +
            distillation_loss_weight * distillation + dense_loss_weight * (dense + dense_regularization)`.
        contrastive_loss (`torch.Tensor` scalar, *optional*):
            InfoNCE over the pairs of the batch; pairs of the same clip are negatives of each other only with
            `config.intra_clip_negatives`.
        audio_reconstruction_loss, video_reconstruction_loss (`torch.Tensor` scalar, *optional*):
            Mean squared error over the removed patches (those that were reconstructed).
        distillation_loss (`torch.Tensor` scalar, *optional*):
            One less the cosine of an embedding and its teacher's, mean over the embeddings of both modalities; where
            a teacher's embeddings were given.
        contrastive_accuracy (`torch.Tensor` scalar, *optional*):
            Share of the frames whose own window scores highest, of those with a negative (with both directions: the
            mean of the two shares).
        audio_mask, video_mask (`torch.Tensor` of shape `(batch_size, num_frames, patches)`):
            1 where a patch was removed: in the pass that reconstructs, or in the only one there is.
        audio_reconstruction, video_reconstruction (`torch.Tensor` of shape `(batch_size, num_frames, patches, size)`):
            The decoder's patches, in normalised values under `norm_pix_loss`; of moments of several frames those of
            the middle one. `unpatchify_audio` and `unpatchify_video` put them together. Zeros where none was
            predicted: visible patches with `config.decoder_type="cross"`, and those that `config.decoder_mask_ratio`
            leaves out of a training step.
        audio_embeds, video_embeds (`torch.Tensor` of shape `(batch_size, num_frames, hidden_size)`):
            L2-normalised embeddings made from the visible patches (of the contrastive pass, where it is a pass of its
            own).
        audio_patch_embeds, video_patch_embeds (`torch.Tensor` of shape `(batch_size, num_frames, kept, hidden_size)`):
            The visible patches after the modality's final norm, in the order in which the noise picked them.
        audio_hidden_states, video_hidden_states (`tuple` of `(batch_size, num_frames, tokens, hidden_size)`):
            On `output_hidden_states=True`: the visible tokens and the output of every tower layer.
        audio_attentions, video_attentions (`tuple` of `(batch_size, num_frames, heads, tokens, tokens)`):
            On `output_attentions=True` (eager attention): the towers' attention probabilities.
        audio_reconstruction_mask, video_reconstruction_mask (`torch.Tensor` `(batch_size, num_frames, patches)`):
            1 where a removed patch was reconstructed, in a training step with `config.decoder_mask_ratio` above 0;
            `None`: all were.
        dense_loss, dense_regularization_loss (`torch.Tensor` scalar, *optional*):
            Contrast between the patches of both modalities, and the weighted sum of its regularisers; where
            `config.dense_loss_weight` is above 0.
    """

    loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    audio_reconstruction_loss: Tensor | None = None
    video_reconstruction_loss: Tensor | None = None
    distillation_loss: Tensor | None = None
    contrastive_accuracy: Tensor | None = None
    audio_mask: Tensor | None = None
    video_mask: Tensor | None = None
    audio_reconstruction: Tensor | None = None
    video_reconstruction: Tensor | None = None
    audio_embeds: Tensor | None = None
    video_embeds: Tensor | None = None
    audio_patch_embeds: Tensor | None = None
    video_patch_embeds: Tensor | None = None
    audio_hidden_states: tuple[Tensor, ...] | None = None
    video_hidden_states: tuple[Tensor, ...] | None = None
    audio_attentions: tuple[Tensor, ...] | None = None
    video_attentions: tuple[Tensor, ...] | None = None
    audio_reconstruction_mask: Tensor | None = None
    video_reconstruction_mask: Tensor | None = None
    dense_loss: Tensor | None = None
    dense_regularization_loss: Tensor | None = None


@dataclass
class CavMaeSyncInpaintingOutput(ModelOutput):
    """
    Output of [`CavMaeSyncForPreTraining.inpaint`].

    Args:
        pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`):
            The frames (of moments of several frames the middle ones) with their removed patches filled in, in the
            processor's normalised values.
        input_values (`torch.Tensor` of shape `(batch_size, num_frames, audio_length, num_mel_bins)`):
            The spectrograms with their removed patches filled in.
        video_mask, audio_mask (`torch.Tensor` of shape `(batch_size, num_frames, patches)`):
            1 where a patch was removed, and is now the model's.
    """

    pixel_values_videos: Tensor | None = None
    input_values: Tensor | None = None
    video_mask: Tensor | None = None
    audio_mask: Tensor | None = None


class CavMaeSyncModalityEmbeddings(nn.Module):
    """One embedding per modality, got by a call: weights offloaded to disk are brought in when a module is called."""

    def __init__(self, width: int):
        super().__init__()
        self.audio, self.video = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))

    def forward(self, modality: str) -> Tensor:
        """The embedding of `"audio"` or `"video"`, `(1, 1, width)`."""
        return self.audio if modality == "audio" else self.video


class CavMaeSyncDecoder(nn.Module):
    """Recovers patches of both modalities from the fused visible ones."""

    def __init__(self, config: CavMaeSyncConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.modality_embeddings = CavMaeSyncModalityEmbeddings(width)
        learned = config.position_embedding_type == "learned"
        self.positions = nn.ModuleDict(
            {
                "audio": CavMaeSyncPositions(config.audio_grid, width, learned),
                "video": CavMaeSyncPositions(config.video_grid, width, learned),
            }
        )
        heads, inner = config.decoder_num_attention_heads, config.decoder_intermediate_size
        self.crosses = config.decoder_type == "cross"
        layer = CavMaeSyncCrossLayer if self.crosses else CavMaeSyncLayer
        self.layers = nn.ModuleList(
            [layer(config, width, heads, inner) for _ in range(config.decoder_num_hidden_layers)]
        )
        if self.crosses:
            self.memory_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.predictions = nn.ModuleDict(
            {
                "audio": nn.Linear(width, config.patch_size**2),
                "video": nn.Linear(width, config.patch_size**2 * config.num_channels),
            }
        )

    def forward(
        self,
        fused: Tensor,
        maskings: dict[str, Masking],
        grids: dict[str, tuple[int, int]],
        attention_mask: Tensor | None = None,
        wanted: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Predict patches `(samples, patches, values)` per modality.

        Args:
            fused: Visible patches, audio first, `(samples, kept of both, hidden)`.
            maskings: Per modality which patches those are.
            grids: Per modality the patch grid.
            attention_mask: In the form of the attention implementation; `None` when every sample has both modalities.
            wanted: Per modality the indices of the removed patches to predict, `(samples, wanted)`, which then are
                all that is given; `None`: all patches, which a decoder that crosses does not do.
        """
        fused = self.embed(fused)
        kept = [masking.ids_keep.shape[1] for masking in maskings.values()]
        visible = dict(zip(maskings, fused.split(kept, dim=1), strict=True))
        memory, parts, counts = [], [], []
        for modality, masking in maskings.items():
            embedding = self.modality_embeddings(modality)
            places = (self.positions[modality](grids[modality]) + embedding).to(embedding.dtype)
            if wanted is None:
                removed = masking.ids_restore.shape[1] - masking.ids_keep.shape[1]
                mask_tokens = self.mask_token.expand(fused.shape[0], removed, -1)
                tokens = gather_patches(torch.cat([visible[modality], mask_tokens], dim=1), masking.ids_restore)
                parts.append(tokens + places)
                counts.append(parts[-1].shape[1])
                continue
            places = places.expand(fused.shape[0], -1, -1)
            seen = visible[modality] + gather_patches(places, masking.ids_keep)
            asked = self.mask_token + gather_patches(places, wanted[modality])
            memory.append(seen)
            parts.append(asked if self.crosses else torch.cat([seen, asked], dim=1))
            counts.append(asked.shape[1])
        given = (self.memory_norm(torch.cat(memory, dim=1)),) if self.crosses else ()
        hidden_states = self.norm(run_layers(self.layers, torch.cat(parts, dim=1), attention_mask, *given))
        predictions = {}
        split = hidden_states.split([part.shape[1] for part in parts], dim=1)
        for modality, part, count in zip(maskings, split, counts, strict=True):
            predictions[modality] = self.predictions[modality](part[:, part.shape[1] - count :])
        return predictions


class CavMaeSyncForPreTraining(CavMaeSyncPreTrainedModel):
    """
    CAV-MAE Sync with its two pretraining objectives: contrast between a frame and the window of its moment, and
    reconstruction of removed patches of both.

    Args:
        config (`CavMaeSyncConfig`): Sizes, mask ratios and loss weights; `modality` must be `"multimodal"`.

    Example:

    ```python
    >>> import torch
    >>> from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncForPreTraining

    >>> model = CavMaeSyncForPreTraining(CavMaeSyncConfig(num_modality_layers=1, decoder_num_hidden_layers=1))
    >>> output = model(pixel_values_videos=torch.rand(2, 1, 3, 224, 224), input_values=torch.rand(2, 1, 416, 128))
    >>> output.audio_reconstruction.shape
    torch.Size([2, 1, 208, 256])
    ```
    """

    _keys_to_ignore_on_load_unexpected = [r"local_heads\.", r"dense_projections\."]
    # The losses are means over the batch: the Trainer must divide them by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: CavMaeSyncConfig):
        super().__init__(config)
        if config.modality != "multimodal":
            raise ValueError(f"Pretraining needs both towers; `modality` is {config.modality!r}, use 'multimodal'.")
        if not config.contrastive_loss_weight and not config.reconstruction_loss_weight:
            raise ValueError(
                "`contrastive_loss_weight` and `reconstruction_loss_weight` are both 0: nothing would be learned."
            )
        self.model = CavMaeSyncModel(config)
        self.decoder = CavMaeSyncDecoder(config)
        self.post_init()

    @can_return_tuple
    @documents_inputs
    def forward(
        self,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        padding_mask_videos: Tensor | None = None,
        video_noise: Tensor | None = None,
        audio_noise: Tensor | None = None,
        contrastive_video_noise: Tensor | None = None,
        contrastive_audio_noise: Tensor | None = None,
        video_teacher_embeds: Tensor | None = None,
        audio_teacher_embeds: Tensor | None = None,
        return_loss: bool = True,
        reconstruct: bool = True,
        contrast: bool = True,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> tuple | CavMaeSyncForPreTrainingOutput:
        """One pretraining step's computation; both modalities are needed.

        Args:
            video_noise, audio_noise (`torch.Tensor` of shape `(batch_size, num_frames, patches)`, *optional*):
                Decide the masking: the patches with the smallest values are kept. Drawn uniformly when absent.
            contrastive_video_noise, contrastive_audio_noise (`torch.Tensor`, *optional*):
                Likewise for the contrastive pass, where `config.contrastive_mask_ratio` makes it one of its own; a
                teacher's attention may have shaped them (the smallest are kept, whatever the scale).
            video_teacher_embeds, audio_teacher_embeds (`torch.Tensor`, *optional*):
                Embeddings of the frames and windows by a teacher, `(batch_size, num_frames, hidden_size)`,
                L2-normalised, for `config.distillation_loss_weight`.
            return_loss (`bool`, *optional*, defaults to `True`):
                Whether to compute the losses; embeddings and reconstructions come either way.
            reconstruct (`bool`, *optional*, defaults to `True`):
                Whether to run the decoder; without it no reconstruction and no loss of it.
            contrast (`bool`, *optional*, defaults to `True`):
                Whether to compute the losses between embeddings, which come either way. `align` computes them
                elsewhere, for a batch that is larger than memory holds.
        """
        given = {
            "pixel_values_videos": (pixel_values_videos, kwargs.get("video_tokens")),
            "input_values": (input_values, kwargs.get("audio_tokens")),
        }
        missing = next((name for name, ways in given.items() if all(way is None for way in ways)), None)
        if missing is not None:
            raise ValueError(f"Pretraining needs both modalities; `{missing}` is missing.")
        images, present = self.model.check_inputs(
            pixel_values_videos, input_values, padding_mask, padding_mask_videos, **kwargs
        )
        batch_shape = images["audio"].shape[:2]
        images = {modality: values.flatten(0, 1) for modality, values in images.items()}
        align = bool(self.config.contrastive_loss_weight)
        # Of tokens that were kept from before there is nothing to be recovered.
        reconstruct = reconstruct and all(values.ndim == 4 for values in images.values())
        decode = bool(self.config.reconstruction_loss_weight) and reconstruct
        # Where the contrast has a pass of its own, the other one serves the decoder alone.
        apart = align and self.config.contrastive_mask_ratio is not None
        records = {modality: self.model.make_record(output_attentions, output_hidden_states) for modality in images}
        output = CavMaeSyncForPreTrainingOutput()
        if decode or not apart:
            maskings = self._mask(output, images, batch_shape, {"audio": audio_noise, "video": video_noise})
            tokens = self._towers(images, maskings, records)
        if decode:
            self._reconstruct(output, tokens, images, maskings, present=present, with_loss=return_loss)
        if apart:
            noise = {"audio": contrastive_audio_noise, "video": contrastive_video_noise}
            maskings = self._mask(output, images, batch_shape, noise, ratio=self.config.contrastive_mask_ratio)
            tokens = self._towers(images, maskings, {} if decode else records)
        if align:
            for modality, values in tokens.items():
                embeds, patches = self.model.separate(modality, values)
                output[f"{modality}_embeds"] = embeds.unflatten(0, batch_shape)
                output[f"{modality}_patch_embeds"] = patches.unflatten(0, batch_shape)
            if return_loss and contrast:
                self.align(output, present, {"audio": audio_teacher_embeds, "video": video_teacher_embeds})
                if self.config.dense_loss_weight:
                    self._align_patches(output, images["audio"], maskings["audio"], present)
        output.loss = self.weigh(output) if return_loss else None
        for modality, record in records.items():
            for name, recorded in record.batch_first(modality, batch_shape).items():
                output[name] = recorded
        return output

    def align(
        self,
        output: CavMaeSyncForPreTrainingOutput,
        present: dict[str, Tensor | None],
        teacher: dict[str, Tensor | None],
    ) -> None:
        """Add the losses between the embeddings that `output` holds: contrastive, and to a teacher's where given.

        Args:
            output: With `audio_embeds` and `video_embeds`, `(batch_size, num_frames, hidden_size)`.
            present: By modality False for absent frames or windows, `(batch_size, num_frames)`; `None`: none is.
            teacher: By modality a teacher's embeddings, of the same shape as the own.
        """
        output.contrastive_loss, output.contrastive_accuracy = self.model.contrast(
            output.audio_embeds, output.video_embeds, present["audio"], present["video"]
        )
        if not self.config.distillation_loss_weight or any(target is None for target in teacher.values()):
            return
        distances, counts = [], []
        for modality, target in teacher.items():
            embeds, mask = output[f"{modality}_embeds"], present[modality]
            assert target is not None
            if target.shape != embeds.shape:
                raise ValueError(
                    f"`{modality}_teacher_embeds` has shape {tuple(target.shape)}; expected {tuple(embeds.shape)}."
                )
            valid = torch.ones_like(embeds[..., 0]) if mask is None else mask
            distance = 1 - (embeds.float() * target.to(embeds.device).float()).sum(dim=-1)  # 1 - cosine
            distances.append((distance * valid).sum())
            counts.append(valid.sum().to(distance.dtype))
        total, count = torch.stack(distances).sum(), torch.stack(counts).sum()
        output.distillation_loss = share_of_mean(total, count, self.model.trains_together)

    def _align_patches(
        self,
        output: CavMaeSyncForPreTrainingOutput,
        images: Tensor,
        masking: Masking,
        present: dict[str, Tensor | None],
    ) -> None:
        """Add the dense losses of the patch embeddings that `output` holds.

        Args:
            output: With `audio_patch_embeds` and `video_patch_embeds`.
            images: The audio input, `(samples, 1, mel, time)`, or an encoder's tokens of it.
            masking: Which of its patches these are.
            present: As of `align`.
        """
        config, heard, seen = self.config, output.audio_patch_embeds, output.video_patch_embeds
        assert heard is not None and seen is not None
        shape = heard.shape[:2]
        audio = self.model.project_patches("audio", heard.flatten(0, 1))
        video = self.model.project_patches("video", seen.flatten(0, 1)).to(audio.device)
        valid = both_present(present["audio"], present["video"])
        valid = None if valid is None else valid.flatten()
        clip_ids = None
        if not config.intra_clip_negatives:
            clip_ids = torch.arange(shape[0], device=audio.device).repeat_interleave(shape[1])
        output.dense_loss = dense_contrastive_loss(
            audio, video, config.temperature, bidirectional=config.bidirectional_contrast,
            valid=valid, clip_ids=clip_ids, distributed=self.model.trains_together,
        )  # fmt: skip
        silent = None
        if "audio" not in config.encoders:  # digital silence is the same everywhere
            values = gather_patches(patchify(images, config.patch_size), masking.ids_keep)
            silent = (values == values[..., :1]).all(dim=-1)
        output.dense_regularization_loss = dense_regularization(
            audio, video, places=masking.ids_keep, grid=self.model.tower("audio").grid(images),
            silent=silent, valid=valid, distributed=self.model.trains_together,
            weights=(
                config.dense_nonnegative_weight, config.dense_silence_weight, config.dense_variation_weight,
            ),
        )  # fmt: skip

    def weigh(self, output: CavMaeSyncForPreTrainingOutput) -> Tensor | None:
        """The weighted sum of the losses that `output` holds, a scalar; `None` where it holds none."""
        config = self.config
        weighted = [
            weight * loss
            for weight, loss in (
                (config.reconstruction_loss_weight, output.audio_reconstruction_loss),
                (config.reconstruction_loss_weight, output.video_reconstruction_loss),
                (config.contrastive_loss_weight, output.contrastive_loss),
                (config.distillation_loss_weight, output.distillation_loss),
                (config.dense_loss_weight, output.dense_loss),
                (config.dense_loss_weight, output.dense_regularization_loss),
            )
            if weight and loss is not None
        ]
        return sum(weighted[1:], weighted[0]) if weighted else None

    @torch.no_grad()
    def inpaint(
        self,
        pixel_values_videos: Tensor,
        input_values: Tensor,
        video_noise: Tensor | None = None,
        audio_noise: Tensor | None = None,
        **kwargs: Any,
    ) -> CavMaeSyncInpaintingOutput:
        """Remove patches and fill them in again.

        Under `norm_pix_loss` the decoder predicts each patch up to its mean and standard deviation; these two numbers
        are then taken from the true patch, so the result shows what was learned but is no reconstruction from
        nothing.

        Args:
            pixel_values_videos: As in `forward`.
            input_values: As in `forward`.
            video_noise: As in `forward`.
            audio_noise: As in `forward`.
            kwargs: Masks of absent windows and frames, and the rest of a processor's output, as in `forward`.
        """
        if not self.config.reconstruction_loss_weight:
            raise ValueError("`reconstruction_loss_weight` is 0, so the decoder is off; set it above 0 to inpaint.")
        output = self(
            pixel_values_videos=pixel_values_videos,
            input_values=input_values,
            video_noise=video_noise,
            audio_noise=audio_noise,
            **(kwargs | {"return_loss": False, "return_dict": True}),
        )
        video = self._fill(self.patchify_video(pixel_values_videos), output.video_reconstruction, output.video_mask)
        audio = self._fill(self.patchify_audio(input_values), output.audio_reconstruction, output.audio_mask)
        height, width = pixel_values_videos.shape[-2:]
        return CavMaeSyncInpaintingOutput(
            pixel_values_videos=self.unpatchify_video(video, height, width),
            input_values=self.unpatchify_audio(audio, input_values.shape[2]),
            video_mask=output.video_mask,
            audio_mask=output.audio_mask,
        )

    def patchify_video(self, pixel_values_videos: Tensor) -> Tensor:
        """Frames `(batch, frames, channels, height, width)` as patches `(batch, frames, patches, values)`, of moments
        of several frames the middle one."""
        images = middle_frames(self.config, self.model.as_images("video", pixel_values_videos))
        return patchify(images.flatten(0, 1), self.config.patch_size).unflatten(0, images.shape[:2])

    def patchify_audio(self, input_values: Tensor) -> Tensor:
        """Windows `(batch, frames, audio_length, mel)` as patches `(batch, frames, patches, values)`, mel-major."""
        patches = patchify(self.model.as_images("audio", input_values).flatten(0, 1), self.config.patch_size)
        return patches.unflatten(0, input_values.shape[:2])

    def unpatchify_video(self, patches: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        """Frames `(batch, frames, num_channels, height, width)` of what `patchify_video` gives; the size defaults to
        the configured one."""
        height, width = height or self.config.image_size, width or self.config.image_size
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        return unpatchify(patches.flatten(0, 1), grid, self.config.patch_size).unflatten(0, patches.shape[:2])

    def unpatchify_audio(self, patches: Tensor, audio_length: int | None = None) -> Tensor:
        """Inverse of `patchify_audio`; the window length defaults to the configured one."""
        size = self.config.patch_size
        grid = (self.config.audio_grid[0], (audio_length or self.config.audio_length) // size)
        spectrograms = unpatchify(patches.flatten(0, 1), grid, size).unflatten(0, patches.shape[:2])
        return spectrograms.squeeze(2).transpose(2, 3)

    def _mask(
        self,
        output: CavMaeSyncForPreTrainingOutput,
        images: dict[str, Tensor],
        batch_shape: torch.Size,
        given: dict[str, Tensor | None],
        *,
        ratio: float | None = None,
    ) -> dict[str, Masking]:
        """Draw and check the maskings of a pass; those of the first pass are noted in `output`.

        Args:
            output: Where to note them.
            images: By modality, `(samples, channels, height, width)`.
            batch_shape: `(batch, frames)`.
            given: Noise that the caller drew, by modality.
            ratio: Share to remove; default: the configured ones, with the configured structure in the audio.
        """
        config, maskings = self.config, {}
        for modality, values in images.items():
            grid = self.model.tower(modality).grid(values)
            expected, noise = (*batch_shape, grid[0] * grid[1]), given[modality]
            if noise is None:
                noise = torch.rand(expected, device=values.device)
            elif noise.shape != expected:
                name = f"{modality}_noise" if ratio is None else f"contrastive_{modality}_noise"
                raise ValueError(
                    f"`{name}` has shape {tuple(noise.shape)}; expected (batch_size, num_frames, patches) {expected}."
                )
            noise = noise.flatten(0, 1)
            if modality == "audio" and ratio is None:
                noise = structured_noise(noise, grid, config.audio_mask_ratio, config.audio_mask_mode)
            configured = config.audio_mask_ratio if modality == "audio" else config.video_mask_ratio
            maskings[modality] = random_masking(noise, configured if ratio is None else ratio)
            if f"{modality}_mask" not in output:
                output[f"{modality}_mask"] = maskings[modality].mask.unflatten(0, batch_shape)
        return maskings

    def _towers(
        self, images: dict[str, Tensor], maskings: dict[str, Masking], records: dict[str, LayerRecord]
    ) -> dict[str, Tensor]:
        """The visible tokens of both modalities after their towers."""
        return {
            modality: self.model.tower(modality)(values, maskings[modality].ids_keep, records.get(modality))
            for modality, values in images.items()
        }

    def _reconstruct(
        self,
        output: CavMaeSyncForPreTrainingOutput,
        tokens: dict[str, Tensor],
        images: dict[str, Tensor],
        maskings: dict[str, Masking],
        *,
        present: dict[str, Tensor | None],
        with_loss: bool,
    ) -> None:
        """Decode patches from the visible ones, and compare the removed ones with the true ones."""
        config = self.config
        patches = {modality: self.model.patch_tokens(values) for modality, values in tokens.items()}
        # A part of the removed patches serves to learn from; to look at, or to measure, all of them are wanted.
        left_out = config.decoder_mask_ratio if self.training and torch.is_grad_enabled() else 0.0
        crosses, wanted = config.decoder_type == "cross", None
        if left_out or crosses:
            wanted = {modality: removed_part(masking, left_out) for modality, masking in maskings.items()}
        fused_mask = decoder_mask = None
        if _some_absent(present):
            like, kept = patches["audio"], [values.shape[1] for values in patches.values()]
            fused_mask = self._attention_mask(like, present, kept, sum(kept))
            if wanted is None:
                asked = [
                    masking.ids_restore.shape[1] - count
                    for masking, count in zip(maskings.values(), kept, strict=True)
                ]
            else:
                asked = [ids.shape[1] for ids in wanted.values()]
            seen = kept if crosses else [count + more for count, more in zip(kept, asked, strict=True)]
            decoder_mask = self._attention_mask(like, present, seen, sum(asked) if crosses else sum(seen))
        fused = self.model.fuse(patches["audio"], patches["video"], fused_mask)
        grids = {modality: self.model.tower(modality).grid(values) for modality, values in images.items()}
        predictions = self.decoder(fused, maskings, grids, decoder_mask, wanted)
        for modality, prediction in predictions.items():
            batch_shape, masking = output[f"{modality}_mask"].shape[:2], maskings[modality]
            ids = None if wanted is None else wanted[modality]
            shown = prediction if ids is None else _put_patches(prediction, ids, masking.mask.shape[1])
            output[f"{modality}_reconstruction"] = shown.unflatten(0, batch_shape)
            if left_out and ids is not None:
                decoded = torch.zeros_like(masking.mask).scatter(1, ids, 1.0)
                output[f"{modality}_reconstruction_mask"] = decoded.unflatten(0, batch_shape)
            if with_loss:
                true = middle_frames(config, images[modality]) if modality == "video" else images[modality]
                target, mask, valid = patchify(true, config.patch_size), masking.mask, present[modality]
                if ids is not None:
                    target, mask = gather_patches(target, ids), torch.ones_like(ids, dtype=mask.dtype)
                output[f"{modality}_reconstruction_loss"] = reconstruction_loss(
                    prediction,
                    target,
                    mask,
                    norm_pix_loss=config.norm_pix_loss,
                    valid=None if valid is None else valid.flatten(),
                    distributed=self.model.trains_together,
                )

    def _attention_mask(self, like: Tensor, present: dict[str, Tensor | None], lengths: list[int], asking: int) -> Any:
        """Hide an absent modality's tokens from the other's.

        Args:
            like: Of the samples, type and device of the tokens.
            present: By modality, `(batch, frames)`.
            lengths: Counts of the (audio, video) tokens that are attended to.
            asking: Count of the tokens that attend to them.
        """
        samples, device = like.shape[0], like.device
        masks = [
            torch.ones(samples, dtype=torch.bool, device=device) if mask is None else mask.flatten()
            for mask in present.values()
        ]
        # With both absent nothing is counted in any loss; attending to something keeps the softmax defined.
        nothing = ~(masks[0] | masks[1])
        visible = torch.cat(
            [(mask | nothing).unsqueeze(1).expand(-1, length) for mask, length in zip(masks, lengths, strict=True)],
            dim=1,
        )
        return create_bidirectional_mask(
            config=self.config,
            inputs_embeds=like.new_empty(samples, asking, 1),
            attention_mask=visible,
            encoder_hidden_states=like.new_empty(samples, sum(lengths), 1),
            allow_is_bidirectional_skip=False,  # `_some_absent` has looked, once for all masks
        )

    def _fill(self, patches: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """True patches where visible, predicted ones where removed; all `(batch, frames, patches, values)`."""
        prediction = prediction.to(patches.dtype)
        if self.config.norm_pix_loss:
            mean, std = patch_statistics(patches)
            prediction = prediction * std + mean
        return torch.where(mask.unsqueeze(-1).bool(), prediction, patches)


@dataclass
class CavMaeSyncClassifierOutput(ModelOutput):
    """
    Output of [`CavMaeSyncForAudioVisualClassification`].

    Args:
        loss (`torch.Tensor` scalar, *optional*, returned when `labels` are given):
            Classification (or regression) loss.
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`):
            Scores of the clip. With the mean-pooling head and several frames, those whose probabilities are the mean
            of the frames' probabilities.
        frame_logits (`torch.Tensor` of shape `(batch_size, num_frames, num_labels)`, *optional*):
            Scores of every frame (mean-pooling head).
        audio_hidden_states, video_hidden_states (`tuple` of `(batch_size, num_frames, tokens, hidden_size)`):
            On `output_hidden_states=True`: the embeddings and the output of every tower layer.
        audio_attentions, video_attentions (`tuple` of `(batch_size, num_frames, heads, tokens, tokens)`):
            On `output_attentions=True` (eager attention): the towers' attention probabilities.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    frame_logits: Tensor | None = None
    audio_hidden_states: tuple[Tensor, ...] | None = None
    video_hidden_states: tuple[Tensor, ...] | None = None
    audio_attentions: tuple[Tensor, ...] | None = None
    video_attentions: tuple[Tensor, ...] | None = None


class CavMaeSyncMeanPoolingClassificationHead(nn.Module):
    """CAV-MAE's head: norm and linear over the mean of a sample's tokens."""

    def __init__(self, config: CavMaeSyncConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 1)

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits `(samples, num_labels)` of pooled tokens `(samples, hidden)`."""
        return self.classifier(self.norm(pooled))


class CavMaeSyncFrameTransformerClassificationHead(nn.Module):
    """CAV-MAE Sync's head: a class token attends to one token per frame, the modalities' global tokens joined."""

    def __init__(self, config: CavMaeSyncConfig):
        super().__init__()
        self.config = config
        scale = 2 if config.modality == "multimodal" else 1
        width = config.hidden_size * scale
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.layers = nn.ModuleList(
            [
                CavMaeSyncLayer(config, width, config.num_attention_heads, config.intermediate_size * scale)
                for _ in range(config.num_classifier_layers)
            ]
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(width, config.num_labels or 1)

    def forward(self, frames: Tensor, present: Tensor | None = None) -> Tensor:
        """Logits `(batch, num_labels)` of frame tokens `(batch, frames, width)`; `present` is False where absent."""
        tokens = torch.cat([self.class_token.expand(frames.shape[0], -1, -1), frames], dim=1)
        attention_mask = None
        if present is not None:
            attention_mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=tokens, attention_mask=nn.functional.pad(present, (1, 0), value=True)
            )
        return self.classifier(self.norm(run_layers(self.layers, tokens, attention_mask))[:, 0])


class CavMaeSyncForAudioVisualClassification(CavMaeSyncPreTrainedModel):
    """
    CAV-MAE Sync with a classification head over clips. `config.modality` says what it is fine-tuned with, and
    `config.classifier_type` which head it has. A multimodal model also takes one modality alone, by the published
    missing-modality path.

    Args:
        config (`CavMaeSyncConfig`): Sizes, head and labels.

    Example:

    ```python
    >>> import torch
    >>> from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncForAudioVisualClassification

    >>> config = CavMaeSyncConfig(num_modality_layers=1, num_labels=7)
    >>> model = CavMaeSyncForAudioVisualClassification(config).eval()
    >>> model(input_values=torch.rand(1, 2, 416, 128)).logits.shape
    torch.Size([1, 7])
    ```
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"local_heads\.", r"dense_projections\."]
    # The losses are means over the batch: the Trainer must divide them by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: CavMaeSyncConfig):
        super().__init__(config)
        self.loss_type = "ForSequenceClassification"
        self.model = CavMaeSyncModel(config)
        heads = {
            "mean_pooling": CavMaeSyncMeanPoolingClassificationHead,
            "frame_attention": CavMaeSyncFrameTransformerClassificationHead,
        }
        self.head = heads[config.classifier_type](config)
        self.post_init()

    @can_return_tuple
    @documents_inputs
    def forward(
        self,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        padding_mask_videos: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> tuple | CavMaeSyncClassifierOutput:
        """Classify clips, from both modalities or from one.

        Args:
            labels (`torch.Tensor`, *optional*):
                Class indices `(batch_size,)`, or 0/1 (also soft) targets `(batch_size, num_labels)` in floats for
                several labels; `config.problem_type` decides where set (`"single_label_classification"` also takes
                class probabilities `(batch_size, num_labels)`).
        """
        images, present = self.model.check_inputs(
            pixel_values_videos, input_values, padding_mask, padding_mask_videos, **kwargs
        )
        batch_shape = next(iter(images.values())).shape[:2]
        records = {modality: self.model.make_record(output_attentions, output_hidden_states) for modality in images}
        tokens = {
            modality: self.model.tower(modality)(values.flatten(0, 1), record=records[modality])
            for modality, values in images.items()
        }
        # True for frames that have audio or video, `(batch, frames)`; `None` when all have.
        masks = [mask for mask in present.values() if mask is not None]
        any_present = None if len(masks) < len(present) else torch.stack(masks).any(dim=0)
        if self.config.classifier_type == "frame_attention":
            frames = self._frame_tokens(tokens, present).unflatten(0, batch_shape)
            logits, frame_logits = self.head(frames, any_present), None
        else:
            frame_logits = self.head(self._pooled_tokens(tokens, present)).unflatten(0, batch_shape)
            logits = self._ensemble(frame_logits, any_present, labels)
        loss = None
        if labels is not None:
            # transformers' loss, except for class probabilities as labels (mixup, smoothing), which it does not take.
            soft = self._problem_type(labels) == "single_label_classification" and labels.is_floating_point()
            loss = (
                nn.functional.cross_entropy(logits, labels.to(logits))
                if soft
                else self.loss_function(labels, logits, self.config)
            )
        output = CavMaeSyncClassifierOutput(loss=loss, logits=logits, frame_logits=frame_logits)
        for modality, record in records.items():
            for name, values in record.batch_first(modality, batch_shape).items():
                output[name] = values
        return output

    def _pooled_tokens(self, tokens: dict[str, Tensor], present: dict[str, Tensor | None]) -> Tensor:
        """Mean tokens `(samples, hidden)` by the paths that CAV-MAE publishes for full and missing modalities."""
        patches = {modality: self.model.patch_tokens(values) for modality, values in tokens.items()}
        if len(patches) == 1:
            return self._single_modality(*next(iter(patches.items())))
        pooled = self.model.fuse(patches["audio"], patches["video"]).mean(dim=1)
        for modality, other in (("audio", "video"), ("video", "audio")):
            mask = present[other]
            if mask is not None and (torch.compiler.is_compiling() or not bool(mask.all())):
                alone = self._single_modality(modality, patches[modality])
                pooled = torch.where(mask.flatten().unsqueeze(1), pooled, alone)
        return pooled

    def _single_modality(self, modality: str, patches: Tensor) -> Tensor:
        """One modality's mean token; in a multimodal model the mean of the modality's and the fused norms' passes."""
        own = self.model.norms[modality](run_layers(self.model.joint_layers, patches, None, modality)).mean(dim=1)
        if self.config.modality != "multimodal":
            return own
        fused = self.model.norms["fused"](run_layers(self.model.joint_layers, patches, None, "fused")).mean(dim=1)
        return (own + fused) / 2

    def _frame_tokens(self, tokens: dict[str, Tensor], present: dict[str, Tensor | None]) -> Tensor:
        """One token per sample for the frame-attention head, `(samples, width)`.

        As published: a multimodal model joins the towers' global tokens (means without them); a single-modality model
        takes the mean over its tokens after the joint layers with the fused norms. Nothing is published for a missing
        modality here: its half is zero.
        """
        if self.config.modality != "multimodal":
            values = next(iter(tokens.values()))
            return self.model.norms["fused"](run_layers(self.model.joint_layers, values, None, "fused")).mean(dim=1)
        halves = []
        for modality in ("audio", "video"):
            if modality not in tokens:
                halves.append(torch.zeros_like(next(iter(tokens.values()))[:, 0]))
                continue
            values = tokens[modality]
            half = values[:, 0] if self.config.use_global_tokens else values.mean(dim=1)
            here = present[modality]
            halves.append(half if here is None else half * here.flatten().unsqueeze(1).to(half.dtype))
        return torch.cat(halves, dim=1)

    def _problem_type(self, labels: Tensor | None) -> str:
        """The configured problem type, or the one that the labels show."""
        if self.config.problem_type is not None:
            return self.config.problem_type
        if self.config.num_labels == 1:
            return "regression"
        multi_label = labels is not None and labels.is_floating_point()
        return "multi_label_classification" if multi_label else "single_label_classification"

    def _ensemble(self, frame_logits: Tensor, present: Tensor | None, labels: Tensor | None) -> Tensor:
        """Logits `(batch, num_labels)` whose probabilities are the mean of the present frames' probabilities.

        The published evaluation averages the frames' predictions; these logits put that average through any loss or
        activation. One frame keeps its logits.
        """
        if frame_logits.shape[1] == 1:
            return frame_logits[:, 0]
        scores = frame_logits.float()
        weights = torch.ones_like(scores[..., :1]) if present is None else present.unsqueeze(-1).to(scores.dtype)
        problem_type = self._problem_type(labels)
        if problem_type == "regression":
            mean = (scores * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
            return mean.to(frame_logits.dtype)
        # Absent frames get no weight; a clip without any frame falls back to all of them instead of to NaN.
        log_weights = torch.where((weights > 0) | (weights.sum(dim=1, keepdim=True) == 0), 0.0, -math.inf)
        if problem_type == "multi_label_classification":
            positive = (nn.functional.logsigmoid(scores) + log_weights).logsumexp(dim=1)
            negative = (nn.functional.logsigmoid(-scores) + log_weights).logsumexp(dim=1)
            return (positive - negative).to(frame_logits.dtype)
        log_probabilities = scores.log_softmax(dim=-1) + log_weights
        counts = log_weights.exp().sum(dim=1)
        return (log_probabilities.logsumexp(dim=1) - counts.log()).to(frame_logits.dtype)


__all__ = [
    "CavMaeSyncAudioFeatures",
    "CavMaeSyncClassifierOutput",
    "CavMaeSyncForAudioVisualClassification",
    "CavMaeSyncForPreTraining",
    "CavMaeSyncForPreTrainingOutput",
    "CavMaeSyncInpaintingOutput",
    "CavMaeSyncModel",
    "CavMaeSyncModelOutput",
    "CavMaeSyncPreTrainedModel",
    "CavMaeSyncVideoFeatures",
]
