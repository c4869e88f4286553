# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How far a similarity falls where a part of a frame or of a window is left out."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..model.errors_cavmae_sync import InferenceError
from ..model.local_cavmae_sync import default_block
from ..model.modeling_cavmae_sync import CavMaeSyncModel, select_distinct
from ..provenance import backend_of
from .texts import project

# Grids of more patches are asked at every second patch: the time grows with the square of their number.
_LARGE_GRID = 100
_SAMPLES_AT_A_TIME = 128


@torch.no_grad()
def occlusion_maps(
    model: CavMaeSyncModel,
    modality: str,
    inputs: Tensor,
    queries: Tensor,
    *,
    present: Tensor | None = None,
    block: tuple[int, int] | None = None,
    stride: int | None = None,
    fill: float | None = None,
    projection: Tensor | None = None,
) -> Tensor:
    """How far the similarity with a query falls where a part is left out.

    Args:
        model: A `CavMaeSyncModel` in evaluation mode.
        modality: Whose parts are left out, `"audio"` or `"video"`.
        inputs: `input_values` or `pixel_values_videos` of the model.
        queries: What is compared with, `(batch, frames, hidden)`; embeddings or differences of them. Where embeddings
            are projected, of the width of that.
        present: False for absent windows or frames, `(batch, frames)`; their maps are 0.
        block: Rows and columns of patches that are left out together, odd; see `default_block`.
        stride: Patches from one place that is tried to the next; between them the map is interpolated. Default: 1 for
            small grids, 2 for others.
        fill: Value that replaces a part in the input; `None` leaves its tokens out.
        projection: Weights `(P, hidden)` that bring embeddings into the space of the queries, if that is another.

    Returns:
        `(batch, frames, rows, columns)` float32 in units of the cosine: the fall of `embedding . query` when the block
        around the patch is left out; at the borders the block is cut. Positive where the part speaks for the query.
    """
    images = model.as_images(modality, inputs)
    grid = model.tower(modality).grid(images)
    height, width = block or default_block(grid)
    step = stride or (1 if grid[0] * grid[1] <= _LARGE_GRID else 2)
    rows, columns = _places(grid[0], step), _places(grid[1], step)
    kept = [_without(grid, (row, column), (height, width)) for row in rows for column in columns]
    encode = partial(_embed_parts, model, modality) if fill is None else partial(_embed_filled, model, modality, fill)
    distinct, places = select_distinct(images, present, model.config.deduplicate_windows)
    whole, without = (
        project(part, projection) for part in (_embed(model, modality, distinct), encode(distinct, kept))
    )
    falls = whole.unsqueeze(1) - without
    wanted = queries.flatten(0, 1).to(falls)
    values = torch.einsum("mph,mh->mp", falls if places is None else falls[places], wanted)
    maps = values.unflatten(1, (len(rows), len(columns)))
    maps = _spread(grid[0], rows).to(maps) @ maps @ _spread(grid[1], columns).to(maps).T
    maps = maps.unflatten(0, queries.shape[:2])
    return maps if present is None else maps * present[..., None, None].to(maps)


@torch.no_grad()
def embed_without(
    model: CavMaeSyncModel,
    modality: str,
    inputs: Tensor,
    places: Tensor,
    *,
    block: tuple[int, int] | None = None,
    fill: float | Literal["mean"] | None = None,
) -> Tensor:
    """Embeddings of frames or windows each of which lacks one block.

    Args:
        model: A `CavMaeSyncModel` in evaluation mode.
        modality: `"audio"` or `"video"`.
        inputs: `input_values` or `pixel_values_videos` of the model.
        places: Number of the patch in the middle of the block, row by row, `(batch, frames)`.
        block: Rows and columns of the block; see `default_block`.
        fill: Value that replaces it in the input, `"mean"` for the mean of each frame's channels; `None` leaves its
            tokens out, and is `"mean"` for models in ONNX Runtime, which take whole frames.

    Returns:
        `(batch, frames, hidden)` float32.
    """
    images = model.as_images(modality, inputs).flatten(0, 1)
    grid = model.tower(modality).grid(images)
    chosen = [divmod(place, grid[1]) for place in places.flatten().tolist()]
    masks = [_without(grid, place, block or default_block(grid)) for place in chosen]
    if fill is None and backend_of(model)["backend"] != "torch":
        fill = "mean"
    if fill is not None:
        values = images.mean(dim=(-2, -1), keepdim=True) if fill == "mean" else fill
        return _embed(model, modality, _filled(images, torch.stack(masks), values)).unflatten(0, inputs.shape[:2])
    kept = [mask.flatten().nonzero()[:, 0] for mask in masks]
    result = images.new_empty(len(images), model.config.hidden_size, dtype=torch.float32)
    for length in {len(ids) for ids in kept}:  # blocks cut at the border leave more patches
        rows = torch.tensor([row for row, ids in enumerate(kept) if len(ids) == length], device=images.device)
        ids = torch.stack([ids for ids in kept if len(ids) == length]).to(images.device)
        result[rows] = _embed(model, modality, images[rows], ids)
    return result.unflatten(0, inputs.shape[:2])


def _without(grid: tuple[int, int], patch: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """Which patches lie outside the block around a patch, bool `(rows, columns)`."""
    mask = torch.ones(grid, dtype=torch.bool)
    height, width = block
    top, left = patch[0] - height // 2, patch[1] - width // 2
    mask[max(0, top) : top + height, max(0, left) : left + width] = False
    if not mask.any():
        raise InferenceError(
            f"A block of {height} x {width} patches covers the whole grid of {grid[0]} x {grid[1]}; lower `block`."
        )
    return mask


def _embed_parts(model: CavMaeSyncModel, modality: str, images: Tensor, kept: list[Tensor]) -> Tensor:
    """Embeddings `(samples, parts, hidden)` of images of which each part keeps only some patches."""
    ids = [mask.flatten().nonzero()[:, 0] for mask in kept]
    result = images.new_empty(len(images), len(kept), model.config.hidden_size, dtype=torch.float32)
    # Blocks cut at the border leave more patches: what keeps equally many goes through the tower together.
    for length in {len(part) for part in ids}:
        parts = torch.tensor([number for number, part in enumerate(ids) if len(part) == length])
        chosen = torch.stack([ids[number] for number in parts.tolist()]).to(images.device)
        for samples, places in _pairs(len(images), len(parts), images.device):
            result[samples, parts.to(images.device)[places]] = _embed(model, modality, images[samples], chosen[places])
    return result


def _embed_filled(model: CavMaeSyncModel, modality: str, fill: float, images: Tensor, kept: list[Tensor]) -> Tensor:
    """The same where what is not kept has a value instead."""
    masks = torch.stack(kept)
    result = images.new_empty(len(images), len(kept), model.config.hidden_size, dtype=torch.float32)
    for samples, places in _pairs(len(images), len(kept), images.device):
        result[samples, places] = _embed(model, modality, _filled(images[samples], masks[places.cpu()], fill))
    return result


def _filled(images: Tensor, kept: Tensor, fill: float | Tensor) -> Tensor:
    """Images with a value where their patches are not `kept`, bool `(samples, rows, columns)`."""
    mask = kept.to(images.device, torch.float32).unsqueeze(1)
    mask = torch.nn.functional.interpolate(mask, size=images.shape[-2:], mode="nearest")
    return torch.where(mask == 0, fill, images)


def _pairs(samples: int, parts: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs of a sample and a part, some at a time."""
    pairs = torch.cartesian_prod(torch.arange(samples), torch.arange(parts)).view(-1, 2)
    for some in pairs.split(_SAMPLES_AT_A_TIME):
        yield some[:, 0].to(device), some[:, 1].to(device)


def _embed(model: CavMaeSyncModel, modality: str, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
    tokens = model.tower(modality)(images, ids_keep)
    return model.separate(modality, tokens)[0].float()


def _places(count: int, step: int) -> list[int]:
    """Rows or columns that are tried: the first, every further step, and the last."""
    return sorted({*range(0, count, step), count - 1})


def _spread(count: int, places: list[int]) -> Tensor:
    """Weights `(count, places)` that interpolate linearly between the places."""
    weights = torch.zeros(count, len(places))
    for index in range(count):
        after = next(number for number, place in enumerate(places) if place >= index)
        if places[after] == index:
            weights[index, after] = 1.0
            continue
        gap = places[after] - places[after - 1]
        weights[index, after] = (index - places[after - 1]) / gap
        weights[index, after - 1] = (places[after] - index) / gap
    return weights
