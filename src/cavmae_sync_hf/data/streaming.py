# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Streaming over large sets of shards: the order of an epoch, its shares, and how a stopped epoch goes on.

`EpochPlan` is a pure function of a few numbers, so any process can work out what any other has done, and a stopped
epoch goes on with its unseen clips, also with another number of processes or workers. An epoch's order is cut into one
contiguous share per process, those into one per worker. A worker's share is whole batches, and worker w of a process
gives its batches w, w + workers, ...: the order in which a `DataLoader` asks.

`CavMaeSyncStreamingDataset` reads each worker's share. `StreamingLoader` is a `DataLoader` over it whose `state_dict`
says which samples were handed out, batches that workers have prepared ahead not counted. torchdata's
`StatefulDataLoader` can be used instead.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .augmentation import AugmentationOptions
from .clips import open_clips
from .dataset import Frames, InputMaker

# How the last clips are treated when they do not fill a batch for every process.
UNEVEN = ("keep", "drop", "repeat")
_STATE_VERSION = 1


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
                self._mixed(share, (len(history), rank, worker))
                for worker, share in enumerate(_split_workers(part, layout))
            ]
            for rank, part in enumerate(ranks)
        ]

    def share(self, layout: Layout, rank: int, worker: int, history: Sequence[Stage] = ()) -> np.ndarray:
        """`shares(layout, history)[rank][worker]`, without mixing the others."""
        part = _split_ranks(self.remaining(history), layout, self.uneven)[rank]
        return self._mixed(_split_workers(part, layout)[worker], (len(history), rank, worker))

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

    def _mixed(self, share: np.ndarray, whose: tuple[int, int, int]) -> np.ndarray:
        """A share as it leaves a shuffle buffer, whose seed is `whose` (stage, process, worker).

        Each time one of `buffer` waiting clips leaves, and the next one takes its place. Only numbers wait in it, so a
        large buffer costs no memory; it spreads reading over as many shards as it spans.
        """
        if not self.shuffle or self.buffer <= 1 or len(share) < 2:
            return share
        generator = self._generator("buffer", *whose)
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


class CavMaeSyncStreamingDataset(IterableDataset):
    """Samples in a shuffled order that is good to the disk, split over processes and workers without overlap or loss.

    Shards come in random order, each with its clips in random order, and each worker picks among `shuffle_buffer`
    clips; all of this is seeded by (seed, epoch) and worked out before anything is read. The choices within a sample
    depend on (seed, epoch, clip) alone, not on who reads it.

    Under accelerate and Trainer, which would split or dispatch an iterable data set once more, use a
    `StreamingLoader` and do not let them prepare it.

    Args:
        source: What [`~cavmae_sync_hf.data.clips.open_clips`] takes, as a rule a folder of shards.
        processor: The model's processor.
        frames: Random frames per clip, or `"all"` (evaluation).
        augmentation: What to vary, `None` for nothing.
        seed: Seeds order and samples.
        shuffle: Whether the order is random; off for evaluation.
        shuffle_buffer: Clips among which a worker picks the next. Only their numbers wait, not their bytes.
        batch_size: Samples per batch of the loader. Known here so that each worker's share is whole batches.
        uneven: What becomes of the clips that do not fill a batch for every process: `"keep"` gives every clip once,
            but processes may then differ by a sample and so by a batch (single process, or evaluation); `"drop"`
            leaves the last clips of the order out, others each epoch; `"repeat"` repeats the first ones. The latter
            two give all processes equally many whole batches, which gathering over processes needs (`drop_last` of a
            loader cannot, since it knows neither the other workers nor the other processes).
        rank: Number of this process; default: from `torch.distributed` or the environment (`RANK`).
        world_size: Number of processes; default: likewise (`WORLD_SIZE`).

    Raises:
        ValueError: There are too few clips, or an argument is out of range.
    """

    def __init__(
        self,
        source: Any,
        processor: CavMaeSyncProcessor,
        *,
        frames: Frames = 1,
        augmentation: AugmentationOptions | None = None,
        seed: int = 0,
        shuffle: bool = True,
        shuffle_buffer: int = 1000,
        batch_size: int = 1,
        uneven: str = "keep",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__()
        self.source = open_clips(source, processor)
        self.maker = InputMaker(processor, frames, augmentation, seed)
        self.rank, self.world_size = _place_among_processes(rank, world_size)
        for name, value in (("shuffle_buffer", shuffle_buffer), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"`{name}` is {value}; it must be at least 1.")
        if uneven not in UNEVEN:
            raise ValueError(f"`uneven` is {uneven!r}; it must be one of {UNEVEN}.")
        self.seed, self.shuffle, self.shuffle_buffer = seed, shuffle, shuffle_buffer
        self.batch_size, self.uneven = batch_size, uneven
        self._sizes = tuple(self.source.group_sizes)
        clips = sum(self._sizes)
        if not len(self):
            raise ValueError(
                f"{clips} clips are too few for {self.world_size} processes with batches of {batch_size}; use smaller "
                'batches, fewer processes, or `uneven="repeat"`.'
            )
        # In shared memory: the epoch for workers that live on, and whether a worker has started.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._in_workers = torch.zeros((), dtype=torch.int64).share_memory_()
        self._loaded: dict[str, Any] | None = None
        self._running: tuple[int, list[Stage]] | None = None

    @property
    def epoch(self) -> int:
        """The pass over the data."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Change order and random choices; call it before each epoch.

        A loaded state is for its own epoch; another epoch begins at its beginning.
        """
        self._epoch.fill_(epoch)

    def plan(self, epoch: int | None = None) -> EpochPlan:
        """The order of an epoch; default: the current one's."""
        number = self.epoch if epoch is None else epoch
        return EpochPlan(
            group_sizes=self._sizes,
            seed=self.seed,
            epoch=number,
            shuffle=self.shuffle,
            buffer=self.shuffle_buffer,
            uneven=self.uneven,
        )

    def layout(self, num_workers: int) -> Layout:
        """How this data set is read with `num_workers` of a loader (0: by the process itself)."""
        return Layout(self.world_size, max(1, num_workers), self.batch_size)

    def __len__(self) -> int:
        """Samples of this process in a whole epoch."""
        return rank_size(sum(self._sizes), self.layout(0), self.uneven, self.rank)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        if info is not None:
            self._in_workers.fill_(1)
        loaded, self._loaded = self._loaded, None
        history, start = self.resolve(loaded, num_workers)
        if loaded is not None and loaded.get("worker") is None:
            # A loader asks worker 0 first; the turn was this one's when the state was taken.
            worker = (worker + Stage(self.layout(num_workers), start).steps) % num_workers
        stage = Stage(self.layout(num_workers), {worker: start.get(worker, 0)}, num_workers == 1)
        self._running = (self.epoch, [*history, stage])
        return self._samples(worker, stage, history, self.epoch)

    def _samples(self, worker: int, stage: Stage, history: list[Stage], epoch: int) -> Iterator[dict[str, Any]]:
        """Read one worker's share from where it stands, counting in `stage`."""
        share = self.plan(epoch).share(stage.layout, self.rank, worker, history)
        for number in share[stage.yielded[worker] :].tolist():
            sample = self.maker.make(self.source, number, epoch)
            # Counted before it is handed out: whoever asks for the state in between has the sample.
            stage.yielded[worker] += 1
            yield sample

    def resolve(self, state: dict[str, Any] | None, num_workers: int) -> tuple[list[Stage], dict[int, int]]:
        """What a state means for a loader with `num_workers`.

        Returns:
            The stages that are over, and the samples that each worker of the current one has given. A state of another
            layout is over: its unseen clips are shared out anew.

        Raises:
            ValueError: The state is one worker's and the layout is another now.
        """
        if state is None or state["epoch"] != self.epoch:
            return [], {}
        stages = [Stage.from_dict(values) for values in state["stages"]]
        if stages and stages[-1].layout == self.layout(num_workers):
            return stages[:-1], stages[-1].yielded
        if stages and not stages[-1].complete:
            raise ValueError(
                f"The state is that of one of {stages[-1].layout.num_workers} workers, now there are "
                f"{max(1, num_workers)}. Go on with as many, or save states with `StreamingLoader`."
            )
        return stages, {}

    def pack_state(self, epoch: int, stages: list[Stage], worker: int | None = None) -> dict[str, Any]:
        """A state as plain values that JSON and `torch.save` keep."""
        return {
            "version": _STATE_VERSION,
            "epoch": epoch,
            "order": self._order_settings(),
            "stages": [stage.to_dict() for stage in stages],
            "worker": worker,
        }

    def state_dict(self) -> dict[str, Any]:
        """Which samples of the epoch were given so far, by the worker or process that this is called in.

        Raises:
            RuntimeError: Called in the main process while workers read, which it knows nothing of.
        """
        info = get_worker_info()
        if info is None and int(self._in_workers):
            raise RuntimeError(
                "Worker processes read this data set, and only a loader knows how far they are: use the `state_dict` "
                "of `StreamingLoader` (or of torchdata's `StatefulDataLoader`)."
            )
        if self._running is None or self._running[0] != self.epoch:
            return self._loaded or self.pack_state(self.epoch, [])
        epoch, stages = self._running
        return self.pack_state(epoch, stages, None if info is None else next(iter(stages[-1].yielded)))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after a stop: the next iteration gives the samples that `state` has not seen, then epochs are whole
        again.

        Raises:
            ValueError: The state is of other data, or of another order.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(f"The state has version {state.get('version')}, this package reads {_STATE_VERSION}.")
        ours = self._order_settings()
        differing = [name for name, value in ours.items() if state["order"].get(name) != value]
        if differing:
            name = differing[0]
            raise ValueError(
                f"The state was saved with {name}={state['order'].get(name)!r}, this data set has {ours[name]!r}: the "
                "order of the clips is another one. Use the same data and settings, or start without the state."
            )
        self.set_epoch(int(state["epoch"]))
        self._loaded, self._running = state, None

    def yielded(self, state: dict[str, Any]) -> list[int]:
        """Numbers of the clips that all processes together have given by a state, ascending."""
        plan = self.plan(int(state["epoch"]))
        left = plan.remaining([Stage.from_dict(values) for values in state["stages"]])
        return sorted(set(plan.order().tolist()) - set(left.tolist()))

    def _order_settings(self) -> dict[str, Any]:
        """What the order of the clips depends on, besides epoch and layout."""
        text = repr((self._sizes, self.source.fingerprint))
        return {
            "data": hashlib.sha256(text.encode()).hexdigest()[:16],
            "seed": self.seed,
            "shuffle": self.shuffle,
            "shuffle_buffer": self.shuffle_buffer,
            "uneven": self.uneven,
        }


class StreamingLoader(DataLoader):
    """A `DataLoader` over a streaming data set that can stop after any batch and go on later.

    With as many processes, workers and samples per batch as before it goes on with the very batches that an
    uninterrupted run would have had; with others it gives the unseen clips in a new order.

    Args:
        dataset: A `CavMaeSyncStreamingDataset`; its `batch_size` is the loader's.
        kwargs: Other arguments of `DataLoader` (`num_workers`, `collate_fn`, `pin_memory`, `persistent_workers`,
            `multiprocessing_context`, ...). Where video files are decoded in workers, take
            `multiprocessing_context="forkserver"`: FFmpeg's threads do not live through a fork.

    Raises:
        ValueError: An argument would break the order that states rely on.
    """

    dataset: CavMaeSyncStreamingDataset

    def __init__(self, dataset: CavMaeSyncStreamingDataset, **kwargs: Any) -> None:
        size = kwargs.pop("batch_size", dataset.batch_size)
        if size != dataset.batch_size:
            raise ValueError(
                f"`batch_size` is {size}, the data set was made for {dataset.batch_size}; give it there, so that each "
                "worker's share is whole batches."
            )
        if kwargs.get("drop_last"):
            raise ValueError('`drop_last` would drop a batch per worker; use `uneven="drop"` of the data set.')
        if kwargs.get("in_order") is False:
            raise ValueError("`in_order=False` gives batches in any order, so no state could say which were given.")
        for name in ("sampler", "batch_sampler", "shuffle"):
            if kwargs.get(name):
                raise ValueError(f"`{name}` has no use here: the streaming data set orders itself.")
        self._history: list[Stage] = []
        self._start: dict[int, int] = {}
        self._steps = 0
        self._counted_epoch: int | None = None
        self._pending: dict[str, Any] | None = None
        super().__init__(dataset, batch_size=size, **kwargs)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        state = self._pending if self._pending is not None else self.dataset._loaded
        self._pending = None
        self.dataset._loaded = state
        self._history, self._start = self.dataset.resolve(state, self.num_workers)
        self._steps, self._counted_epoch = 0, self.dataset.epoch
        batches = super().__iter__()
        # The workers (or the iterator of this process) have their copy now.
        self.dataset._loaded = None
        return self._count(batches)

    def _count(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self._steps += 1
            yield batch

    def __len__(self) -> int:
        """Batches of this process in a whole epoch."""
        return -(-len(self.dataset) // self.dataset.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Change order and random choices; call it before each epoch. A loaded state stays for its own epoch only."""
        self.dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Which samples were handed out so far in this epoch; the same on every process.

        Plain numbers: a JSON file keeps it. Between epochs (after `set_epoch`) it says that nothing was.
        """
        if self._pending is not None:
            return self._pending
        if self._counted_epoch != self.dataset.epoch:
            return self.dataset.pack_state(self.dataset.epoch, [])
        layout = self.dataset.layout(self.num_workers)
        sizes = self.dataset.plan().share_sizes(layout, self.dataset.rank, self._history)
        yielded = yielded_after(self._steps, sizes, layout.batch_size, self._start)
        return self.dataset.pack_state(self.dataset.epoch, [*self._history, Stage(layout, yielded)])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after a stop: the next iteration gives the rest of the state's epoch.

        Raises:
            ValueError: The state is of other data, another order, or a single worker's.
        """
        self.dataset.load_state_dict(state)
        self.dataset.resolve(state, self.num_workers)
        self._pending = state
        # Workers that live on have an old copy of the data set; they are replaced.
        self._iterator = None


def _place_among_processes(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Number of this process and of all."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if world_size is None:
        world_size = torch.distributed.get_world_size() if distributed else int(os.environ.get("WORLD_SIZE", "1"))
    if rank is None:
        rank = torch.distributed.get_rank() if distributed else int(os.environ.get("RANK", "0"))
    if not 0 <= rank < world_size:
        raise ValueError(f"`rank` is {rank} of `world_size` {world_size}; it must lie in [0, world_size).")
    return rank, world_size
