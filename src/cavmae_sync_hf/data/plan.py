# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which clips does each process and worker of a streamed epoch read, in which order, and what is left after a stop?

Everything here is a pure function of a few numbers, so any process can work out what any other has done, and a
stopped epoch goes on with its unseen clips, also with another number of processes or workers.

An epoch's order is cut into one contiguous share per process, those into one per worker. A worker's share is whole
batches, and worker w of a process gives its batches w, w + workers, ...: the order in which a `DataLoader` asks.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

# How the last clips are treated when they do not fill a batch for every process.
UNEVEN = ("keep", "drop", "repeat")


@dataclass(frozen=True)
class Layout:
    """How many read an epoch, and in what portions.

    Attributes:
        world_size: Processes.
        num_workers: Workers per process, at least 1 (a process that reads itself counts as its only worker).
        batch_size: Samples per batch of one process.
    """

    world_size: int
    num_workers: int
    batch_size: int


@dataclass
class Stage:
    """What was read of an epoch under one layout.

    Attributes:
        layout: The layout.
        yielded: Samples that each worker of a process has given, by the worker's number. It holds for every process,
            since all make the same number of steps; shares that are shorter are exhausted.
        complete: Whether `yielded` has all workers. The state that a worker keeps for itself knows its own alone.
    """

    layout: Layout
    yielded: dict[int, int] = field(default_factory=dict)
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        yielded = {str(worker): count for worker, count in self.yielded.items()}
        return asdict(self.layout) | {"yielded": yielded, "complete": self.complete}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Stage":
        """Back from `to_dict`."""
        layout = Layout(*(int(values[name]) for name in ("world_size", "num_workers", "batch_size")))
        yielded = {int(worker): int(count) for worker, count in values["yielded"].items()}
        return cls(layout, yielded, bool(values["complete"]))

    @property
    def steps(self) -> int:
        """Batches that each process has given."""
        return sum(-(-count // self.layout.batch_size) for count in self.yielded.values())


@dataclass(frozen=True)
class EpochPlan:
    """The order of one epoch.

    Attributes:
        group_sizes: Clips per shard.
        seed: Seeds the order together with the epoch.
        epoch: Pass over the data.
        shuffle: Whether the order is random.
        buffer: Clips among which a worker picks the next one; 1 keeps the order of the shards.
        uneven: One of `UNEVEN`.
    """

    group_sizes: tuple[int, ...]
    seed: int
    epoch: int
    shuffle: bool
    buffer: int
    uneven: str

    def order(self) -> np.ndarray:
        """Numbers of all clips: shards in random order, the clips of a shard in random order; int64."""
        ends = np.cumsum(self.group_sizes, dtype=np.int64)
        groups = [np.arange(end - size, end) for end, size in zip(ends, self.group_sizes, strict=True)]
        if not groups:
            return np.zeros(0, dtype=np.int64)
        if self.shuffle:
            generator = self._generator("order")
            groups = [generator.permutation(groups[place]) for place in generator.permutation(len(groups))]
        return np.concatenate(groups)

    def shares(self, layout: Layout, history: Sequence[Stage] = ()) -> list[list[np.ndarray]]:
        """Clips of every process and worker, in reading order: `shares[rank][worker]`."""
        ranks = _split_ranks(self.remaining(history), layout, self.uneven)
        return [
            [
                self._mixed(share, "buffer", len(history), rank, worker)
                for worker, share in enumerate(_split_workers(part, layout))
            ]
            for rank, part in enumerate(ranks)
        ]

    def share(self, layout: Layout, rank: int, worker: int, history: Sequence[Stage] = ()) -> np.ndarray:
        """`shares(layout, history)[rank][worker]`, without mixing the others."""
        part = _split_ranks(self.remaining(history), layout, self.uneven)[rank]
        return self._mixed(_split_workers(part, layout)[worker], "buffer", len(history), rank, worker)

    def share_sizes(self, layout: Layout, rank: int, history: Sequence[Stage] = ()) -> list[int]:
        """Number of clips of every worker of a process."""
        part = _split_ranks(self.remaining(history), layout, self.uneven)[rank]
        return [len(share) for share in _split_workers(part, layout)]

    def remaining(self, history: Sequence[Stage] = ()) -> np.ndarray:
        """Clips that no stage has read, in the order that the next stage cuts.

        Clips that a stage had to drop, to give all processes equally many, are among them.
        """
        order = self.order()
        for place, stage in enumerate(history):
            before = EpochPlan.shares(self, stage.layout, history[:place])
            seen: list[np.ndarray] = []
            left: list[np.ndarray] = []
            for workers in before:
                for worker, share in enumerate(workers):
                    count = stage.yielded.get(worker, 0)
                    seen.append(share[:count])
                    left.append(share[count:])
            # A repeated clip is unseen only while none of its copies was read.
            rest = np.concatenate([*left, order])
            rest = rest[~np.isin(rest, np.concatenate(seen))]
            order = rest[np.sort(np.unique(rest, return_index=True)[1])]
        return order

    def _mixed(self, share: np.ndarray, *purpose: Any) -> np.ndarray:
        """A share as it leaves a shuffle buffer: each time one of `buffer` waiting clips, replaced by the next to
        come.

        Only numbers wait in it, so a large buffer costs no memory; it spreads reading over as many shards as it spans.
        """
        if not self.shuffle or self.buffer <= 1 or len(share) < 2:
            return share
        generator = self._generator(*purpose)
        size = min(self.buffer, len(share))
        waiting = share[:size].tolist()
        arriving = share[size:].tolist()
        mixed = []
        for clip, place in zip(arriving, generator.integers(size, size=len(arriving)).tolist(), strict=True):
            mixed.append(waiting[place])
            waiting[place] = clip
        return np.array(mixed + generator.permutation(waiting).tolist(), dtype=np.int64)

    def _generator(self, *purpose: Any) -> np.random.Generator:
        digest = hashlib.blake2b(repr((self.seed, self.epoch, *purpose)).encode(), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))


def rank_size(count: int, layout: Layout, uneven: str, rank: int) -> int:
    """Samples of one process out of `count` clips."""
    world, batch = layout.world_size, layout.batch_size
    if uneven == "drop":
        return count // (world * batch) * batch
    if uneven == "repeat":
        return -(-count // (world * batch)) * batch
    return count // world + (rank < count % world)


def yielded_after(
    steps: int, sizes: Sequence[int], batch_size: int, start: Mapping[int, int] | None = None
) -> dict[int, int]:
    """Samples that each worker has given after more batches of a process.

    Args:
        steps: Batches since `start`.
        sizes: Samples in each worker's share.
        batch_size: Samples per batch.
        start: Samples given before; default: none.
    """
    workers = len(sizes)
    given = {worker: (start or {}).get(worker, 0) for worker in range(workers)}
    first = sum(-(-count // batch_size) for count in given.values())
    for worker in range(workers):
        turns = max(0, (steps - (worker - first) % workers + workers - 1) // workers)
        given[worker] = min(sizes[worker], given[worker] + turns * batch_size)
    return given


def _split_ranks(order: np.ndarray, layout: Layout, uneven: str) -> list[np.ndarray]:
    """Contiguous shares of the processes."""
    sizes = [rank_size(len(order), layout, uneven, rank) for rank in range(layout.world_size)]
    ends = np.cumsum([0] + sizes)
    # `resize` repeats the order from its start where "repeat" asks for more than there is.
    whole = np.resize(order, int(ends[-1])) if len(order) else order
    return [whole[ends[rank] : ends[rank + 1]] for rank in range(layout.world_size)]


def _split_workers(share: np.ndarray, layout: Layout) -> list[np.ndarray]:
    """Contiguous shares of the workers: whole batches, the broken one for whoever's turn is last."""
    workers, size = layout.num_workers, layout.batch_size
    batches = -(-len(share) // size)
    counts = [(batches + workers - 1 - worker) // workers * size for worker in range(workers)]
    if batches:
        counts[(batches - 1) % workers] -= batches * size - len(share)
    ends = np.cumsum([0] + counts)
    return [share[ends[worker] : ends[worker + 1]] for worker in range(workers)]


__all__ = ["UNEVEN", "EpochPlan", "Layout", "Stage", "rank_size", "yielded_after"]
