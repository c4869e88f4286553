# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics of maps that show where in a frame the audio is, and where in a spectrogram the frame is.

Maps are cosines of one modality's global embedding with the other's patches, on the patch grid `(rows, columns)`: top
to bottom and left to right in a frame, low to high mel and earlier to later in a spectrogram. Boxes are half-open
`[x0, y0, x1, y1]` in pixels of the view, the square that the model sees; `boxes_in_view` brings boxes of the original
there. Maps without any box or span take no part in a metric.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model.alignment_cavmae_sync import view_of
from .classification import average_precision

Boxes = Sequence[Sequence[float]] | Tensor


def patch_maps(embeds: Tensor, patch_embeds: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cosine of a global embedding with every patch of the other modality.

    `patch_maps(audio_embeds, video_patch_embeds, (14, 14))` shows where in a frame the audio of its window is;
    `patch_maps(video_embeds, audio_patch_embeds, (8, 26))` which part of a window's spectrogram the frame shows.

    Args:
        embeds: Global embeddings, shape `(..., hidden)`.
        patch_embeds: Patches of the other modality, row-major on the grid, shape `(..., patches, hidden)`; leading
            dimensions broadcast with those of `embeds`.
        grid: Rows and columns of the patches.

    Returns:
        Float32 of shape `(..., rows, columns)`; 0 for zero embeddings.

    Raises:
        ValueError: If the sizes do not fit each other.
    """
    rows, columns = grid
    if patch_embeds.ndim < 2 or patch_embeds.shape[-2] != rows * columns:
        raise ValueError(
            f"`patch_embeds` has shape {tuple(patch_embeds.shape)}; a grid of {rows} x {columns} needs "
            f"(..., {rows * columns}, hidden)."
        )
    if embeds.shape[-1] != patch_embeds.shape[-1]:
        raise ValueError(f"The embeddings have {embeds.shape[-1]} dimensions, the patches {patch_embeds.shape[-1]}.")
    wide = torch.promote_types(torch.promote_types(embeds.dtype, patch_embeds.dtype), torch.float32)
    queries = nn.functional.normalize(embeds.to(wide), dim=-1)
    patches = nn.functional.normalize(patch_embeds.to(wide), dim=-1)
    return (patches @ queries.unsqueeze(-1)).squeeze(-1).unflatten(-1, (rows, columns)).float()


def upsample_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Stretch maps `(..., rows, columns)` to `(..., height, width)` pixels, linear between the patches' centres."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:]).float()
    stretched = nn.functional.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return stretched.view(*maps.shape[:-2], *size)


def boxes_in_view(boxes: Boxes, size: tuple[int, int], image_size: int, shortest_edge: int | None = None) -> Tensor:
    """Boxes of the original frame in pixels of the model's view: resized, then cropped in the centre.

    Args:
        boxes: Shape `(boxes, 4)`, in pixels of the original; may be empty.
        size: Height and width of the original.
        image_size: Side of the square view.
        shortest_edge: Shorter side after resizing and before the crop, by default `image_size`.

    Returns:
        Float64 of shape `(boxes that are in view, 4)`, cut at the edges of the view.

    Raises:
        ValueError: On a box without area or boxes not of shape `(boxes, 4)`.
    """
    view = view_of(size, (image_size, image_size), image_size if shortest_edge is None else shortest_edge)
    return torch.tensor(view.boxes(_box_tensor(boxes).tolist()), dtype=torch.float64).view(-1, 4)


def _box_tensor(boxes: Boxes) -> Tensor:
    given = torch.as_tensor(boxes, dtype=torch.float64).detach().cpu()
    if given.numel() == 0:
        return torch.zeros(0, 4, dtype=torch.float64)
    if given.ndim != 2 or given.shape[1] != 4:
        raise ValueError(f"The boxes have shape {tuple(given.shape)}; they must be (boxes, 4) as [x0, y0, x1, y1].")
    wrong = ((given[:, 2] <= given[:, 0]) | (given[:, 3] <= given[:, 1])).nonzero()
    if len(wrong):
        raise ValueError(f"Box {given[int(wrong[0])].tolist()} has no area; boxes are [x0, y0, x1, y1] with x0 < x1.")
    return given


def _maps_and_truths(maps: Tensor, truths: Sequence[Any] | Tensor, name: str) -> Tensor:
    if maps.ndim != 3 or maps.numel() == 0:
        raise ValueError(f"The maps have shape {tuple(maps.shape)}; they must be (maps, rows, columns).")
    if len(truths) != len(maps):
        raise ValueError(f"There are {len(maps)} maps and {len(truths)} lists of {name}; give one (or []) per map.")
    values = maps.detach().cpu().double()
    if not torch.isfinite(values).all():
        raise ValueError(f"Map {int((~torch.isfinite(values)).flatten(1).any(1).nonzero()[0])} is not finite.")
    return values


def _centres(grid: tuple[int, int], view: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Heights of the rows' centres and positions of the columns' centres in pixels."""
    rows, columns = (
        (torch.arange(count, dtype=torch.float64) + 0.5) * size / count for count, size in zip(grid, view, strict=True)
    )
    return rows, columns


def _inside(boxes: Tensor, grid: tuple[int, int], view: tuple[int, int], slack: float = 0.0) -> Tensor:
    """Which patches have their centre in one of the boxes, or at most `slack` pixels outside; shape of the grid."""
    rows, columns = _centres(grid, view)
    x0, y0, x1, y1 = (boxes[:, side, None] for side in range(4))
    across = torch.maximum(x0 - columns, columns - x1).clamp(min=0)  # (boxes, columns), pixels outside
    down = torch.maximum(y0 - rows, rows - y1).clamp(min=0)
    # Half-open: a centre on the right or lower edge is outside.
    within = (across == 0) & (columns < x1), (down == 0) & (rows < y1)
    hit = within[1][:, :, None] & within[0][:, None]
    if slack > 0:
        hit |= torch.hypot(down[:, :, None], across[:, None]) <= slack
    return hit.any(dim=0)


def peak_positions(maps: Tensor, view: tuple[int, int]) -> Tensor:
    """Where the maps are highest: centre of that patch as `(x, y)` in pixels, shape `(..., 2)`.

    Args:
        maps: Shape `(..., rows, columns)`. Among equal patches the first one counts.
        view: Height and width of the view in pixels.
    """
    best = maps.flatten(-2).argmax(dim=-1).cpu()
    rows, columns = _centres((maps.shape[-2], maps.shape[-1]), view)
    return torch.stack([columns[best % maps.shape[-1]], rows[best // maps.shape[-1]]], dim=-1)


def pointing_accuracy(
    maps: Tensor, boxes: Sequence[Boxes], view: tuple[int, int], *, tolerance: float = 0.0
) -> dict[str, float | int]:
    """How often the highest patch lies on a sounding object (the pointing game, Zhang et al. 2016).

    Args:
        maps: Shape `(maps, rows, columns)`.
        boxes: Boxes of the sounding objects of every map, in pixels of the view.
        view: Height and width of the model's view in pixels.
        tolerance: A centre so many pixels outside a box still counts; the pointing game is usually played with 15 on
            views of 224.

    Returns:
        `accuracy`: share of maps whose highest patch has its centre in a box; of several equally high patches each
        has its share, so a flat map scores chance. `chance`: the same for a random patch. `maps`: maps with a box.

    Raises:
        ValueError: If shapes do not fit, a map is not finite, or no map has a box.
    """
    values = _maps_and_truths(maps, boxes, "boxes")
    if tolerance < 0:
        raise ValueError(f"`tolerance` is {tolerance} pixels; it must not be negative.")
    hits, chances = [], []
    for value, given in zip(values, boxes, strict=True):
        truth = _box_tensor(given)
        if not len(truth):
            continue
        inside = _inside(truth, (value.shape[0], value.shape[1]), view, tolerance)
        highest = value == value.max()
        hits.append(float((inside & highest).sum() / highest.sum()))
        chances.append(float(inside.double().mean()))
    return _pointing(hits, chances, "box")


def _pointing(hits: list[float], chances: list[float], name: str) -> dict[str, float | int]:
    if not hits:
        raise ValueError(f"No map has a {name}; there is nothing to point at.")
    return {"accuracy": sum(hits) / len(hits), "chance": sum(chances) / len(chances), "maps": len(hits)}


def time_pointing_accuracy(
    maps: Tensor, spans: Sequence[Sequence[Sequence[float]]], window_times: Sequence[Sequence[float]] | Tensor
) -> dict[str, float | int]:
    """How often the highest column of a spectrogram's map lies in a time at which the object on screen sounds.

    Args:
        maps: Shape `(maps, mel rows, columns)`; a column's height is its highest row's.
        spans: For every map the `[start, end]` in seconds of the events to be found.
        window_times: Start and end of every map's window in seconds, shape `(maps, 2)`.

    Returns:
        `accuracy`, `chance` and `maps` as `pointing_accuracy`; maps none of whose columns lies in a span do not
        count.

    Raises:
        ValueError: If shapes do not fit, a map is not finite, or no column of any map lies in a span.
    """
    values = _maps_and_truths(maps, spans, "spans")
    edges = torch.as_tensor(window_times, dtype=torch.float64).cpu()
    if tuple(edges.shape) != (len(values), 2):
        raise ValueError(f"`window_times` has shape {tuple(edges.shape)}; it must be ({len(values)}, 2).")
    hits, chances = [], []
    share = (torch.arange(values.shape[2], dtype=torch.float64) + 0.5) / values.shape[2]
    for value, given, (start, end) in zip(values, spans, edges, strict=True):
        times = start + share * (end - start)
        inside = torch.zeros_like(times, dtype=torch.bool)
        for first, last in given:
            inside |= (times >= first) & (times < last)
        if not inside.any():
            continue
        columns = value.amax(dim=0)
        highest = columns == columns.max()
        hits.append(float((inside & highest).sum() / highest.sum()))
        chances.append(float(inside.double().mean()))
    return _pointing(hits, chances, "span in its window")


def _above(maps: Tensor, threshold: float) -> Tensor:
    """Patches above a share of each map's own range; all of a flat map."""
    low, high = (edge(maps, dim=(-2, -1), keepdim=True) for edge in (torch.amin, torch.amax))
    return maps >= low + threshold * (high - low)


def map_boxes(maps: Tensor, view: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """The box around the highest patch and what hangs together with it above a threshold.

    Args:
        maps: Shape `(maps, rows, columns)`.
        view: Height and width of the view in pixels.
        threshold: Share of each map's range between its lowest and highest value.

    Returns:
        Float64 of shape `(maps, 4)`. Patches that touch at a side or corner hang together.
    """
    count, rows, columns = maps.shape
    values = maps.detach().cpu().double()
    allowed = _above(values, threshold)
    region = torch.zeros(count, rows * columns, dtype=torch.bool)
    region[torch.arange(count), values.flatten(1).argmax(dim=1)] = True
    region = region.view(count, rows, columns)
    while True:
        # Grow by one patch in all directions within what is above the threshold, until nothing changes.
        grown = nn.functional.max_pool2d(region.float(), 3, stride=1, padding=1).bool() & allowed
        if torch.equal(grown, region):
            break
        region = grown
    boxes = []
    for axis, length, size in ((region.any(dim=1), columns, view[1]), (region.any(dim=2), rows, view[0])):
        first = axis.double().argmax(dim=1)
        last = length - axis.flip(1).double().argmax(dim=1)
        boxes += [first.double() * size / length, last.double() * size / length]
    return torch.stack([boxes[0], boxes[2], boxes[1], boxes[3]], dim=1)


def box_iou(boxes: Boxes, others: Boxes) -> Tensor:
    """Intersection over union of every box with every other box, shape `(boxes, others)`."""
    left, right = _box_tensor(boxes), _box_tensor(others)
    low, high = torch.maximum(left[:, None, :2], right[:, :2]), torch.minimum(left[:, None, 2:], right[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(part[:, 2:] - part[:, :2]).prod(dim=-1) for part in (left, right)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def consensus_iou(maps: Tensor, truths: Tensor, threshold: float = 0.5) -> Tensor:
    """Consensus intersection over union (cIoU, Senocak et al. 2018) of every map with its truth.

    With A the pixels of a map above the threshold and g the truth's weights: the sum of g over A, divided by the sum
    of all g plus the number of pixels of A where g is 0. For a truth of 0 and 1 it is the plain intersection over
    union.

    Args:
        maps: Shape `(maps, height, width)`.
        truths: Weights between 0 and 1, same shape; some annotators' agreement, or 1 in the boxes.
        threshold: Share of each map's range between its lowest and highest value.

    Returns:
        Float64 of shape `(maps,)`; NaN where the truth is empty.

    Raises:
        ValueError: If the shapes differ or a weight lies outside 0 to 1.
    """
    weights = torch.as_tensor(truths).detach().cpu().double()
    if maps.shape != weights.shape or maps.ndim != 3:
        raise ValueError(f"Maps {tuple(maps.shape)} and truths {tuple(weights.shape)} must be (maps, height, width).")
    if bool(((weights < 0) | (weights > 1)).any()):
        raise ValueError(f"The truth's weights go from {weights.min():g} to {weights.max():g}; they must be 0 to 1.")
    chosen = _above(maps.detach().cpu().double(), threshold)
    total = weights.sum(dim=(1, 2))
    union = total + (chosen & (weights == 0)).sum(dim=(1, 2))
    return torch.where(total > 0, (weights * chosen).sum(dim=(1, 2)) / union, torch.nan)


def localization_metrics(
    maps: Tensor,
    boxes: Sequence[Boxes],
    view: tuple[int, int],
    *,
    tolerance: float = 0.0,
    threshold: float = 0.5,
) -> dict[str, float | int]:
    """All metrics of maps against boxes.

    Args:
        maps: Shape `(maps, rows, columns)`.
        boxes: Boxes of the sounding objects of every map, in pixels of the view.
        view: Height and width of the model's view in pixels.
        tolerance: Pixels outside a box at which pointing still counts.
        threshold: Share of each map's range above which a pixel belongs to the object.

    Returns:
        `pointing_accuracy` and `pointing_chance`; `box_iou`, the mean IoU of the map's box with its best box, and
        `box_accuracy`, the share at 0.5 and above; `ciou_success`, the share of stretched maps whose cIoU with the
        boxes is at least 0.5, and `ciou_auc`, that share averaged over 21 limits from 0 to 1; `maps`.

    Raises:
        ValueError: As `pointing_accuracy`.
    """
    pointing = pointing_accuracy(maps, boxes, view, tolerance=tolerance)
    truths = [_box_tensor(given) for given in boxes]
    used = [index for index, truth in enumerate(truths) if len(truth)]
    found = map_boxes(maps[used], view, threshold)
    overlaps = torch.stack([box_iou(box[None], truths[k]).max() for box, k in zip(found, used, strict=True)])
    areas = [
        # In parts, because stretched maps are a few hundred times as large as the maps.
        consensus_iou(
            upsample_maps(maps[part], view), torch.stack([_inside(truths[k], view, view) for k in part]), threshold
        )
        for part in (used[start : start + 256] for start in range(0, len(used), 256))
    ]
    consensus = torch.cat(areas)
    limits = torch.linspace(0, 1, 21, dtype=torch.float64)
    success = (consensus[:, None] >= limits).double().mean(dim=0)
    return {
        "pointing_accuracy": pointing["accuracy"],
        "pointing_chance": pointing["chance"],
        "box_iou": float(overlaps.mean()),
        "box_accuracy": float((overlaps >= 0.5).double().mean()),
        "ciou_success": float((consensus >= 0.5).double().mean()),
        "ciou_auc": float(torch.trapezoid(success, limits)),
        "maps": len(used),
    }


def _maps_and_masks(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    values = _maps_and_truths(maps, masks, "masks")
    truth = torch.as_tensor(masks).detach().cpu().bool()
    if truth.shape != values.shape:
        raise ValueError(f"Maps {tuple(values.shape)} and masks {tuple(truth.shape)} must have the same shape.")
    return values, truth


def segmentation_metrics(maps: Tensor, masks: Tensor, thresholds: int = 20) -> dict[str, float | int]:
    """Audio-prompted segmentation: maps against masks of the prompted object.

    Args:
        maps: Similarity at every pixel of the mask (see `upsample_maps`), shape `(maps, height, width)`. Compared with
            one threshold over all of them, so they must share a scale, as cosines do.
        masks: True where the object is, same shape.
        thresholds: Thresholds tried, evenly between the lowest and the highest value of all maps.

    Returns:
        `mean_average_precision` over the maps' pixels, one value per map; `mean_iou`, the mean IoU at the one
        threshold that is best for all maps together, `threshold`; and `maps`, those with a mask that is not empty.

    Raises:
        ValueError: If shapes differ, a map is not finite, or all masks are empty.
    """
    values, truth = _maps_and_masks(maps, masks)
    used = truth.flatten(1).any(dim=1)
    if not used.any():
        raise ValueError("All masks are empty; there is nothing to segment.")
    values, truth = values[used], truth[used]
    precisions = [
        average_precision(mask.flatten(), value.flatten()) for value, mask in zip(values, truth, strict=True)
    ]
    best, level = -math.inf, 0.0
    for candidate in torch.linspace(
        float(values.min()), float(values.max()), thresholds, dtype=torch.float64
    ).tolist():
        chosen = values >= candidate
        union = (chosen | truth).sum(dim=(1, 2))
        mean = float(((chosen & truth).sum(dim=(1, 2)) / union).mean())
        if mean > best:
            best, level = mean, candidate
    return {
        "mean_average_precision": sum(precisions) / len(precisions),
        "mean_iou": best,
        "threshold": level,
        "maps": len(precisions),
    }


def class_segmentation_metrics(
    maps: Tensor, masks: Tensor, labels: Sequence[str], thresholds: int = 20
) -> dict[str, float | int]:
    """Audio-prompted segmentation over classes: all pixels of a class's maps together, then the mean over classes.

    These are DenseAV's metrics on ADE20K: average precision, and the intersection over union at the best of the
    thresholds, which lie evenly between a class's lowest and highest value.

    Args:
        maps: Similarity at every pixel, `(maps, height, width)`.
        masks: True where the object is, same shape.
        labels: The class of every map.
        thresholds: How many are tried.

    Returns:
        `mean_average_precision`, `mean_iou`, `classes` and `maps`; classes whose masks are all out of view take no
        part. `chance_average_precision`: what a constant map scores.

    Raises:
        ValueError: Shapes differ, a map is not finite, or no mask is in view.
    """
    values, truth = _maps_and_masks(maps, masks)
    if len(labels) != len(values):
        raise ValueError(f"There are {len(values)} maps and {len(labels)} labels; give one label per map.")
    precisions, overlaps, shares, used = [], [], [], 0
    for label in sorted(set(labels)):
        rows = torch.tensor([own == label for own in labels])
        pixels, object_pixels = values[rows].flatten(), truth[rows].flatten()
        if not object_pixels.any():
            continue
        used += int(rows.sum())
        precisions.append(average_precision(object_pixels, pixels))
        shares.append(float(object_pixels.double().mean()))
        levels = torch.linspace(float(pixels.min()), float(pixels.max()), thresholds, dtype=torch.float64)
        chosen = (pixels > level for level in levels)
        overlaps.append(max(float((own & object_pixels).sum() / (own | object_pixels).sum()) for own in chosen))
    if not precisions:
        raise ValueError("No mask is in view; there is nothing to segment.")
    return {
        "mean_average_precision": sum(precisions) / len(precisions),
        "mean_iou": sum(overlaps) / len(overlaps),
        "chance_average_precision": sum(shares) / len(shares),
        "classes": len(precisions),
        "maps": used,
    }
