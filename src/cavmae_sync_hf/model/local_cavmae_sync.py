# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Vectors of single patches, whose product with a query says how much the patch speaks for it.

`CavMaeSyncLocalHead` predicts by how much an embedding falls where the block of patches around a patch is hidden: an
amortised explanation, as FastSHAP (Jethani et al. 2022) and ViT Shapley (Covert et al. 2023) train for classifiers.
The fall is a vector, which depends on no query, so that one pass serves any.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_SMALLEST_BLOCK = 3


def default_block(grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns left out together: about a quarter of each side, odd, at least 3."""
    rows, columns = (max(_SMALLEST_BLOCK, 2 * round((side / 4 - 1) / 2) + 1) for side in grid)
    return rows, columns


def block_sums(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sum over the block around each patch, of patches `(samples, rows * columns, size)`, over the block's size.

    See `default_block`; beyond the borders there is nothing.
    """
    height, width = default_block(grid)
    cells = patches.transpose(1, 2).unflatten(2, grid)
    sums = nn.functional.avg_pool2d(cells, (height, width), stride=1, padding=(height // 2, width // 2))
    return sums.flatten(2).transpose(1, 2)


class CavMaeSyncFall(nn.Linear):
    """The last layer of a local head. Falls are small: untrained, it predicts none."""


class CavMaeSyncLocalHead(nn.Module):
    """Predicts from the tokens of all layers by which vector the embedding falls where the block around a patch is
    hidden.

    Args:
        hidden_size: Of the tokens and the embedding.
        num_states: How many layers' tokens there are.
        width: Of the head.
    """

    def __init__(self, hidden_size: int, num_states: int, width: int):
        super().__init__()
        size = hidden_size * num_states
        self.patch = nn.Linear(size, width)
        self.whole = nn.Linear(size, width, bias=False)
        self.mix = nn.Linear(2 * width, width)
        self.fall = CavMaeSyncFall(width, hidden_size)

    def forward(self, states: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Falls `(samples, rows * columns, hidden)`.

        Args:
            states: Of each layer the tokens `(samples, 1 + rows * columns, hidden)`, first what stands for the whole.
            grid: Rows and columns of the patches.
        """
        # Layers differ in scale by far more than tokens of one do.
        tokens = torch.cat([nn.functional.layer_norm(state, state.shape[-1:]) for state in states], dim=-1)
        # What each patch gives to the whole adds up over a block, to a first approximation.
        patches = nn.functional.gelu(self.patch(tokens[:, 1:]) + self.whole(tokens[:, :1]))
        sums = block_sums(patches, grid)
        return self.fall(sums + nn.functional.gelu(self.mix(torch.cat([patches, sums], dim=-1))))


__all__ = ["CavMaeSyncFall", "CavMaeSyncLocalHead", "block_sums", "default_block"]
