# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Choice of the patches that pretraining removes from the encoder's input."""

from typing import NamedTuple

import torch
from torch import Tensor

# Time-frequency masking removes this share of the ratio along each axis; both together hide about the ratio
# (published: CAV-MAE, `random_masking_structured`).
TIME_FREQUENCY_SHARE = 0.7
_REMOVED = 2.0  # above every uniform noise, so such patches are the last to be kept


class Masking(NamedTuple):
    """What a masking keeps.

    Attributes:
        ids_keep: Indices of the visible patches, in order of their noise, shape `(batch, kept)`.
        mask: 1 where a patch is removed, shape `(batch, patches)`, float32.
        ids_restore: For every patch its place in (visible, removed) order, shape `(batch, patches)`.
    """

    ids_keep: Tensor
    mask: Tensor
    ids_restore: Tensor


def random_masking(noise: Tensor, mask_ratio: float) -> Masking:
    """Keep the `int(patches * (1 - mask_ratio))` patches with the smallest noise (MAE, He et al. 2022).

    Args:
        noise: Uniform in [0, 1), shape `(batch, patches)`.
        mask_ratio: Share of the patches to remove.
    """
    num_patches = noise.shape[1]
    num_keep = int(num_patches * (1 - mask_ratio))
    order = noise.argsort(dim=1, stable=True)
    ids_restore = order.argsort(dim=1)
    mask = (ids_restore >= num_keep).to(torch.float32)
    return Masking(order[:, :num_keep], mask, ids_restore)


def removed_part(masking: Masking, share: float) -> Tensor:
    """Indices of the removed patches but for a random `share` of them, `(batch, picked)`; at least one, if any is.

    They are taken evenly from the order of the noise, so that the noise decides them, too, and a structured masking's
    columns or rows keep their share.
    """
    kept, patches = masking.ids_keep.shape[1], masking.ids_restore.shape[1]
    removed = patches - kept
    picked = min(removed, max(1, removed - int(removed * share)))
    places = kept + torch.arange(picked, device=masking.ids_restore.device) * removed // max(1, picked)
    # The inverse of a permutation is the order that sorts it.
    return masking.ids_restore.argsort(dim=1)[:, places]


def structured_noise(noise: Tensor, grid: tuple[int, int], mask_ratio: float, mode: str) -> Tensor:
    """Raise the noise of whole spectrogram columns or rows, so that `random_masking` removes them first.

    Columns (rows) are chosen by their mean noise: any subset is equally likely, and the caller's noise decides all.

    Args:
        noise: Uniform in [0, 1), shape `(batch, rows * columns)`, patches mel-major.
        grid: (mel rows, time columns); any window length.
        mask_ratio: Share of the patches that will be removed.
        mode: `"unstructured"`, `"time"`, `"frequency"` or `"time_frequency"`.
    """
    if mode == "unstructured":
        return noise
    share = mask_ratio * (TIME_FREQUENCY_SHARE if mode == "time_frequency" else 1.0)
    cells = noise.unflatten(1, grid)  # (batch, rows, columns)
    removed = torch.zeros_like(cells, dtype=torch.bool)
    if mode in ("time", "time_frequency"):
        removed = removed | _largest(cells.mean(dim=1), int(grid[1] * share)).unsqueeze(1)
    if mode in ("frequency", "time_frequency"):
        removed = removed | _largest(cells.mean(dim=2), int(grid[0] * share)).unsqueeze(2)
    return torch.where(removed, _REMOVED + cells, cells).flatten(1)


def _largest(scores: Tensor, count: int) -> Tensor:
    """True for the `count` largest scores of each row."""
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < count


def gather_patches(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens `(batch, patches, hidden)` by `ids` `(batch, picked)`, giving `(batch, picked, hidden)`."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


__all__ = ["Masking", "gather_patches", "random_masking", "removed_part", "structured_noise"]
