# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Maps from a model's local heads: in one pass, for any query."""

import torch
from torch import Tensor

from ..model.errors_cavmae_sync import InferenceError
from ..model.modeling_cavmae_sync import CavMaeSyncModel
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
