# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What each patch contributes to a similarity, in one pass forward and one backward.

Relevance propagation through transformers in its conservative form (Ali et al. 2022, "XAI for Transformers: Better
Explanations through Conservative Propagation"; Achtibat et al. 2024, "AttnLRP", there CP-LRP): gradient times input,
where a normalisation's deviation, an attention's probabilities and an activation's ratio of output to input pass as
constants. All else of a layer is linear, so the contributions of all tokens add up to the similarity, up to biases.

Contributions lie on the rim of an object as well as on it. So its place is looked for where a whole block of patches
contributes most, and the best of these blocks are then left out one by one, as `occlusion_maps` does with all.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..model.errors_cavmae_sync import InferenceError
from ..model.local_cavmae_sync import default_block
from ..model.modeling_cavmae_sync import (
    CavMaeSyncAttention,
    CavMaeSyncMLP,
    CavMaeSyncModel,
    CavMaeSyncTower,
)
from .occlusion import embed_without
from .texts import project

# Blocks of a frame that are left out, of those that contribute most.
CANDIDATES = 3
# How much of what a block contributes counts beside the fall without it; chosen on SyncWorld's seeds 21 and 24.
_SUM_WEIGHT = 0.25
_SAMPLES_AT_A_TIME = 64
# An activation's ratio of output to input is that at this input where it is smaller: at 0 there is none.
_LEAST_INPUT = 1e-6
LEAST_HEAT = 1e-6
# The most of a patch beside the peak, which another candidate may have been.
BESIDE_PEAK = 0.999


class RelevanceMaps(NamedTuple):
    """What `relevance_maps` gives.

    Attributes:
        maps: `(batch, frames, rows, columns)` float32, 0 and above. The highest patch is the middle of the block that
            was found, and its value how far the similarity falls where the block is left out; without candidates, what
            the block contributes.
        hidden: Embeddings without that block, `(batch, frames, hidden)`; `None` without candidates.
    """

    maps: Tensor
    hidden: Tensor | None


def has_relevance(model: CavMaeSyncModel) -> bool:
    """Whether both towers are this package's own: other models' encoders may hold anything."""
    return all(isinstance(model.tower(modality), CavMaeSyncTower) for modality in ("audio", "video"))


def contributions(model: CavMaeSyncModel, modality: str, inputs: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """What each patch of frames or windows contributes to the similarity with a query, and their embeddings.

    Args:
        model: A `CavMaeSyncModel` in evaluation mode.
        modality: Whose patches, `"audio"` or `"video"`.
        inputs: `input_values` or `pixel_values_videos` of the model.
        queries: What is compared with, `(batch, frames, hidden)`; embeddings or differences of them.

    Returns:
        `(batch, frames, rows, columns)` float32, in units of the cosine, and `(batch, frames, hidden)` float32.

    Raises:
        InferenceError: The tower is another model's encoder.
    """
    tower = model.tower(modality)
    if not isinstance(tower, CavMaeSyncTower):
        raise InferenceError(
            f"The {modality} tower is an encoder of transformers, and relevance is known of this package's own towers "
            'alone; use method="occlusion".'
        )
    images = model.as_images(modality, inputs)
    samples, wanted = images.flatten(0, 1), queries.flatten(0, 1).float()
    parts = zip(samples.split(_SAMPLES_AT_A_TIME), wanted.split(_SAMPLES_AT_A_TIME), strict=True)
    found = zip(*(_propagate(model, tower, modality, *part) for part in parts), strict=True)
    values, embeds = (torch.cat(list(part)).unflatten(0, images.shape[:2]) for part in found)
    return values, embeds


@torch.no_grad()
def relevance_maps(
    model: CavMaeSyncModel,
    modality: str,
    inputs: Tensor,
    queries: Tensor,
    *,
    present: Tensor | None = None,
    block: tuple[int, int] | None = None,
    candidates: int = CANDIDATES,
    fill: float | None = None,
    projection: Tensor | None = None,
) -> RelevanceMaps:
    """Where in frames or windows the content that a query speaks of is.

    Args:
        model: A `CavMaeSyncModel` in evaluation mode, with towers of this package.
        modality: `"audio"` or `"video"`.
        inputs: `input_values` or `pixel_values_videos` of the model.
        queries: What is compared with, `(batch, frames, hidden)`; embeddings or differences of them.
        present: False for absent windows or frames, `(batch, frames)`; their maps are 0.
        block: Rows and columns of the block, odd; see `default_block`.
        candidates: Blocks that are left out to choose between them; 0: the one that contributes most is taken.
        fill: Value that replaces a block that is left out, in the input; `None` leaves its tokens out.
        projection: Weights `(P, hidden)` that bring embeddings into the space of the queries, if that is another.

    Raises:
        InferenceError: A tower is another model's encoder.
    """
    # Of a projected embedding, too, the length passes as a constant, and that changes no map.
    directions = queries if projection is None else queries.float() @ projection.to(queries.device)
    values, embeds = (found.flatten(0, 1) for found in contributions(model, modality, inputs, directions))
    size = block or default_block((values.shape[-2], values.shape[-1]))
    sums = _filtered(values, size, centre=1)
    # Summed, a map is right about the peak and too wide; with more weight in the middle it is neither.
    maps = BESIDE_PEAK * _share(sums) * _share(_filtered(values, size, centre=max(size)))
    values, places = sums.flatten(1).topk(min(max(1, candidates), sums[0].numel()), dim=1)  # (samples, candidates)
    heights, best, hidden = values, torch.zeros_like(places[:, :1]), None
    if candidates:
        without = torch.stack([
            embed_without(
                model, modality, inputs, place.view(queries.shape[:2]), block=size, fill=fill
            ).flatten(0, 1)
            for place in places.T
        ], dim=1)  # (samples, candidates, hidden)  # fmt: skip
        lost = project(embeds, projection).unsqueeze(1) - project(without, projection)
        heights = torch.einsum("skh,sh->sk", lost, queries.flatten(0, 1).to(lost))
        best = (heights + _SUM_WEIGHT * values).argmax(dim=1, keepdim=True)
        hidden = without.take_along_dim(best.unsqueeze(-1), dim=1)[:, 0].unflatten(0, queries.shape[:2])
    height = heights.gather(1, best).clamp(min=LEAST_HEAT)
    maps = maps.flatten(1).scatter(1, places.gather(1, best), 1.0) * height
    maps = maps.view(*queries.shape[:2], *sums.shape[-2:])
    return RelevanceMaps(maps if present is None else maps * present[..., None, None].to(maps), hidden)


def _filtered(values: Tensor, size: tuple[int, int], centre: int) -> Tensor:
    """Sums over a block around each patch, in which the middle row and column count `centre` times."""
    kernels = []
    for side in size:
        kernel = torch.ones(side, device=values.device)
        kernel[side // 2] = centre
        kernels.append(kernel)
    kernel = torch.outer(*kernels)[None, None]
    return nn.functional.conv2d(values.unsqueeze(1), kernel, padding=(size[0] // 2, size[1] // 2))[:, 0]


def _share(values: Tensor) -> Tensor:
    """What is above 0, as shares of the highest."""
    values = values.clamp(min=0)
    return values / values.amax(dim=(-2, -1), keepdim=True).clamp(min=LEAST_HEAT)


def _propagate(
    model: CavMaeSyncModel, tower: CavMaeSyncTower, modality: str, images: Tensor, queries: Tensor
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        tokens = tower.embeddings(images).detach().requires_grad_()
        states = tokens
        for layer in tower.layers:
            states = _pass_layer(layer, states, layer.layernorm_before, layer.layernorm_after)
        states = states[:, : states.shape[1] - tower.num_register_tokens]
        joint: Any = model.joint_layers
        for layer in joint:
            before, after = (part[modality] for part in (layer.layernorm_before, layer.layernorm_after))
            states = _pass_layer(layer, states, before, after)
        if modality in model.contrastive_layers:
            head: Any = model.contrastive_layers[modality]
            for layer in head:
                states = _pass_layer(layer, states, layer.layernorm_before, layer.layernorm_after)
        states = _pass_norm(model.norms[modality], states)
        pooled = (states[:, 0] if model.config.use_global_tokens else states.mean(dim=1)).float()
        pooled = pooled / torch.linalg.vector_norm(pooled, dim=-1, keepdim=True).detach()
        (gradient,) = torch.autograd.grad((pooled * queries).sum(), tokens)
    rows, columns = tower.grid(images)
    first = int(model.config.use_global_tokens)
    patches = (gradient.float() * tokens.detach().float()).sum(dim=-1)[:, first : first + rows * columns]
    return patches.unflatten(1, (rows, columns)), pooled.detach()


def _pass_layer(layer: Any, states: Tensor, before: Any, after: Any) -> Tensor:
    states = states + _pass_attention(layer.attention, _pass_norm(before, states))
    return states + _pass_mlp(layer.mlp, _pass_norm(after, states))


def _pass_norm(norm: Any, states: Tensor) -> Tensor:
    centred = states - states.mean(dim=-1, keepdim=True)
    scale = (centred.detach().float().square().mean(dim=-1, keepdim=True) + norm.eps).rsqrt()
    return centred * scale.to(states.dtype) * norm.weight + norm.bias


def _pass_attention(attention: CavMaeSyncAttention, states: Tensor) -> Tensor:
    with torch.no_grad():
        query, key = (
            projection(states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj)
        )
        weights = (query @ key.transpose(-1, -2) * attention.scaling).softmax(dim=-1)
    value = attention.v_proj(states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    return attention.o_proj((weights @ value).transpose(1, 2).flatten(2))


def _pass_mlp(mlp: CavMaeSyncMLP, states: Tensor) -> Tensor:
    states = mlp.fc1(states)
    with torch.no_grad():
        inputs = torch.where(states.abs() < _LEAST_INPUT, _LEAST_INPUT, states)
        ratio = mlp.activation_fn(inputs) / inputs
    return mlp.fc2(states * ratio)
