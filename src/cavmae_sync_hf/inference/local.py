# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Maps from local embeddings of one pass: of local heads, for any query, and of the projections of a dense loss."""

from typing import Any

import torch
from torch import Tensor

from ..model.errors_cavmae_sync import InferenceError
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from .occlusion import embed_without
from .relevance import BESIDE_PEAK, CANDIDATES, LEAST_HEAT
from .texts import project


def has_local_heads(model: CavMaeSyncModel) -> bool:
    """Whether both towers have a local head."""
    return len(model.local_heads) == 2  # audio and video


def require_local_heads(model: CavMaeSyncModel) -> None:
    """Refuse a model without them.

    Raises:
        InferenceError: It has none.
    """
    if not has_local_heads(model):
        raise InferenceError(
            "The model has no local heads, which maps by `local` need: train them by `cavmae-sync local-head`, or use "
            "another method."
        )


def has_dense_projections(model: CavMaeSyncModel) -> bool:
    """Whether it was trained with a dense loss."""
    return len(getattr(model, "dense_projections", ())) == 2  # audio and video


def require_dense_projections(model: CavMaeSyncModel, words: bool = False) -> None:
    """Refuse a model without projections of a dense loss, and queries in words, to which these do not lead.

    Raises:
        InferenceError: It has none, or there are words.
    """
    if words:
        raise InferenceError("Maps by `dense` compare patches with patches, not with words; use another method.")
    if not has_dense_projections(model):
        raise InferenceError(
            "The model was trained without a dense loss (`dense_loss_weight`), which maps by `dense` need; use "
            "another method."
        )


def dense_maps(others: Tensor, local_embeds: Tensor, reduce: str = "mean") -> Tensor:
    """Cosines of patches with those of the other modality, which a dense loss has trained.

    Args:
        others: Local embeddings of the other modality, `(batch, frames, patches, size)`.
        local_embeds: Those whose maps are made, `(batch, frames, patches, size)`.
        reduce: `"mean"` over the others, as a frame is compared with a window; `"max"`, as a window with a frame.

    Returns:
        `(batch, frames, patches)` float32.
    """
    cosines = torch.einsum("bfpd,bfqd->bfpq", local_embeds.float(), others.float())
    return cosines.mean(dim=-1) if reduce == "mean" else cosines.amax(dim=-1)


@torch.no_grad()
def settle_peaks(
    model: CavMaeSyncModel,
    modality: str,
    inputs: Tensor,
    embeds: Tensor,
    queries: Tensor,
    maps: Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Leave out the blocks around the highest patches of maps in turn; that without which most is lost is the peak.

    Args:
        model: A `CavMaeSyncModel` in evaluation mode.
        modality: `"audio"` or `"video"`.
        inputs: `input_values` or `pixel_values_videos` of the model.
        embeds: The embeddings of these, `(batch, frames, hidden)`.
        queries: As of `local_maps`.
        maps: From `local_maps`, `(batch, frames, rows, columns)`.
        options: `projection` as of `local_maps`; `block` and `fill` as of `embed_without`.

    Returns:
        The maps, with the fall at the peak that was found and less than that everywhere else, and embeddings without
        the block there, `(batch, frames, hidden)`.
    """
    projection = options.pop("projection", None)
    places = maps.flatten(-2).topk(min(CANDIDATES, maps[0, 0].numel()), dim=-1).indices
    without = torch.stack(
        [embed_without(model, modality, inputs, places[..., k], **options) for k in range(places.shape[-1])], dim=2
    )  # (batch, frames, candidates, hidden)
    lost = project(embeds.float(), projection).unsqueeze(2) - project(without, projection)
    falls = torch.einsum("bfkh,bfh->bfk", lost, queries.to(lost))
    best = falls.argmax(dim=-1, keepdim=True)
    height = falls.gather(-1, best).clamp(min=LEAST_HEAT)
    flat = torch.minimum(maps.flatten(-2), BESIDE_PEAK * height).scatter(-1, places.gather(-1, best), height)
    hidden = without.take_along_dim(best.unsqueeze(-1), dim=2)[:, :, 0]
    return flat.unflatten(-1, maps.shape[-2:]), hidden


def local_maps(
    embeds: Tensor,
    local_embeds: Tensor,
    queries: Tensor,
    grid: tuple[int, int],
    *,
    present: Tensor | None = None,
    projection: Tensor | None = None,
) -> Tensor:
    """How far a similarity falls where the block around a patch is hidden, as a local head predicts it.

    Args:
        embeds: `audio_embeds` or `video_embeds` of the model, `(batch, frames, hidden)`.
        local_embeds: The `local_audio_embeds` or `local_video_embeds` beside them, `(batch, frames, patches, hidden)`.
        queries: What is compared with, `(batch, frames, hidden)`; embeddings or differences of them. Where embeddings
            are projected, of the width of that.
        grid: Rows and columns of the patches.
        present: False for absent windows or frames, `(batch, frames)`; their maps are 0.
        projection: Weights `(P, hidden)` that bring embeddings into the space of the queries, if that is another.

    Returns:
        `(batch, frames, rows, columns)` float32 in units of the cosine, as `occlusion_maps`.
    """
    falls = local_embeds.float()
    if projection is not None:
        whole = embeds.float().unsqueeze(-2)
        falls = project(whole, projection) - project(whole - falls, projection)
    maps = torch.einsum("bfph,bfh->bfp", falls, queries.to(falls)).unflatten(-1, grid)
    return maps if present is None else maps * present[..., None, None].to(maps)
