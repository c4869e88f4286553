# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""In which order, and how often, are clips drawn so that rare classes are seen as often as common ones?"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

# The published weight of a class is 1000 / (count + 0.01); the factor drops out, the sum keeps unseen classes finite.
_COUNT_OFFSET = 0.01


class Draw(int):
    """A clip's number that also says how often the clip was drawn before in the epoch (`draw`).

    Drawing with replacement gives a rare clip many times an epoch; with this the data set varies it each time.
    """

    draw: int

    def __new__(cls, number: int, draw: int = 0) -> "Draw":
        value = super().__new__(cls, number)
        value.draw = draw
        return value

    def __reduce__(self) -> tuple[type["Draw"], tuple[int, int]]:
        return Draw, (int(self), self.draw)


def class_balanced_weights(labels: Sequence[Sequence[int]]) -> torch.Tensor:
    """Weight of every clip: the sum over its labels of 1 / (clips with that label), as published.

    With one label per clip all classes are then drawn equally often; with several, classes that keep company with
    common ones come more often than their share. Clips without labels are never drawn.

    Args:
        labels: Label numbers of every clip.

    Returns:
        `(num_clips,)` float64, summing to 1.

    Raises:
        ValueError: No clip has a label.
    """
    counts: dict[int, int] = {}
    for clip in labels:
        for label in set(clip):
            counts[label] = counts.get(label, 0) + 1
    if not counts:
        raise ValueError("No clip has a label; balanced sampling needs labels, prepare the set with them.")
    weights = [sum(1.0 / (counts[label] + _COUNT_OFFSET) for label in set(clip)) for clip in labels]
    total = torch.tensor(weights, dtype=torch.float64)
    return total / total.sum()


class ClassBalancedSampler(Sampler[int]):
    """Draws clips with replacement so that rare classes come as often as common ones.

    The draws depend on (seed, epoch) alone. All processes make the same ones; process `rank` takes every
    `world_size`-th, and all take equally many. Leave both at their defaults under Trainer or accelerate, which split
    batches themselves.

    Args:
        labels: Label numbers of every clip, from `CavMaeSyncDataset.labels()`.
        num_samples: Draws per epoch over all processes; default: as many as there are clips. Raised to the next
            multiple of `world_size`.
        seed: Seeds the draws together with the epoch.
        rank: Number of this process.
        world_size: Processes.

    Raises:
        ValueError: No clip has a label, or an argument is out of range.
    """

    def __init__(
        self,
        labels: Sequence[Sequence[int]],
        num_samples: int | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` is {rank} of `world_size` {world_size}; it must lie in [0, world_size).")
        count = len(labels) if num_samples is None else num_samples
        if count < 1:
            raise ValueError(f"`num_samples` is {count}; it must be at least 1.")
        self.weights = class_balanced_weights(labels)
        self.num_samples = -(-count // world_size) * world_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Change the draws; call it before each epoch (accelerate and Trainer do)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // self.world_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        # `torch.multinomial` stops at 2^24 clips, and AudioSet with several copies per clip may pass that.
        edges = np.cumsum(self.weights.numpy())
        numbers = np.searchsorted(edges, generator.random(self.num_samples) * edges[-1], side="right")
        seen: dict[int, int] = {}
        for position, number in enumerate(numbers.tolist()):
            draw = seen.get(number, 0)
            seen[number] = draw + 1
            if position % self.world_size == self.rank:
                yield Draw(number, draw)


__all__ = ["ClassBalancedSampler", "Draw", "class_balanced_weights"]
