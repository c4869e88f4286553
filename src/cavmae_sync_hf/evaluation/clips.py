# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The clips of an evaluation: which there are, how they reach the model, and what became of them."""

import copy
import hashlib
import json
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

import fsspec
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from ..data import crashes
from ..data.augmentation import AugmentationOptions
from ..data.dataset import CavMaeSyncCollator, CavMaeSyncDataset, InputMaker
from ..data.engines import worker_deaths
from ..data.failures import Failure
from ..data.shards import INDEX_NAME
from ..data.sources import read_source
from ..data.tables import LIST_SUFFIXES, Entry, read_list
from ..files import StrPath
from ..inference.features import move_inputs
from ..inference.moments import Progress
from ..model.errors_cavmae_sync import (
    DataError,
    EvaluationError,
    Hint,
    MediaWarning,
    UnexpectedError,
    WorkerError,
    collected_remarks,
)
from ..model.modeling_cavmae_sync import CavMaeSyncPreTrainedModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..syncworld.truth import OPTIONS_NAME
from .protocols import Protocol, RetrievalProtocol
from .results import make_record

# So many deaths of processes, and no batch in between: it is not the clips.
_MOST_DEATHS = 20
# Clips in a row of which the model raised an error: it is not the clips.
_MOST_IN_A_ROW = 20
# Of missing and unusable clips so many are named in a results file.
_NAMED = 100


T = TypeVar("T")


class RunOptions(TypedDict, total=False):
    """What every evaluation takes beside the model, the data and the protocol.

    Attributes:
        ids: The clips to evaluate on, as a list of ids or a file of them (text lines, CSV, JSON as published).
        media: Folder of the files that a list names.
        labels: Label names in order, or a file of them.
        split: Split of a list or data set.
        limit: Take so many clips at most, for a try; the result then is not complete.
        strict: Refuse to give metrics where a clip is missing or unusable.
        channel: `"first"` or `"mean"` of several audio channels; default: the processor's.
        audio_track: Which audio track of files that have several, by number or language; default: the one that a
            player plays.
        noise_snr_db: Add noise to every clip's audio at this ratio of energies, dB; see `AugmentationOptions`.
        noise_source: Which: `"white"` (default), `"babble"`, or a folder of recordings.
        batch_size: Clips per batch.
        num_workers: Processes that load.
        progress: Called with clips done, their number and a remark.
        command: The command line, for the record.
    """

    ids: StrPath | Sequence[str] | None
    media: StrPath | None
    labels: StrPath | Sequence[str] | None
    split: str | None
    limit: int | None
    strict: bool
    channel: Literal["first", "mean"] | None
    audio_track: int | str | None
    noise_snr_db: float | None
    noise_source: str
    batch_size: int
    num_workers: int
    progress: Progress | None
    command: str | None


@dataclass(kw_only=True)
class EvaluatedSet:
    """What an evaluation is about, and what became of it.

    Attributes:
        name: What the data was called.
        kind: `"shards"`, `"syncworld"`, `"videos"` or `"masks"`.
        fingerprint: Checksum of what is evaluated.
        ids: Names of the clips that are evaluated.
        expected: How many clips there should be.
        missing: Ids of a list that the data lacks.
        protocol: The rules.
        processor: Fitted to the protocol.
        options: See `RunOptions`.
        unusable: Clips that cannot be used, and why; filled while they are read.
    """

    name: str
    kind: str
    fingerprint: str
    ids: list[str]
    expected: int
    missing: list[str] = field(default_factory=list)
    protocol: Protocol
    processor: CavMaeSyncProcessor
    options: RunOptions
    unusable: list[Failure] = field(default_factory=list)

    def leave_out(self, failure: Failure) -> None:
        """Note that a clip cannot be used, and why."""
        self.unusable.append(failure)

    def report(self, done: int) -> None:
        """Tell the caller's `progress` how many clips are done."""
        progress = self.options.get("progress")
        if progress is not None:
            progress(done, len(self.ids), f"{len(self.unusable)} unusable" if self.unusable else "")

    def check(self) -> None:
        """Refuse what is incomplete, or empty.

        Raises:
            EvaluationError: None of the clips can be used; or the run is `strict`, and one is missing or unusable.
        """
        first = next((f"the first, {clip.name!r}: {clip.reason}" for clip in self.unusable), "")
        if len(self.unusable) == len(self.ids):
            raise EvaluationError(f"{self.name}: none of the {len(self.ids)} clips can be used; {first}")
        absent = [*self.missing, *(clip.name for clip in self.unusable)]
        if absent and self.options.get("strict", False):
            named = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            raise EvaluationError(
                f"{self.name}: {len(absent)} of {self.expected} clips are missing or unusable ({named}); get them, "
                "or evaluate without `strict`, which states how many were seen."
                + (f" Of the unusable {first}" if first else "")
            )

    def _heard(self) -> dict[str, Any]:
        """What was chosen of the audio, for the record."""
        choice = {"channel": self.processor.feature_extractor.channel, "audio_track": self.processor.audio_track}
        chosen: dict[str, Any] = {name: value for name, value in choice.items() if self.options.get(name) is not None}
        noise = noise_of(self.options)
        if noise is not None:
            chosen |= {"noise_snr_db": self.options["noise_snr_db"], "noise_source": noise.noise_source}
        return chosen

    def record(
        self, task: str, metrics: Mapping[str, float | int], *, model: CavMaeSyncPreTrainedModel, **settings: Any
    ) -> dict[str, Any]:
        """The results record, see `make_record`."""
        return make_record(
            task,
            self.protocol,
            metrics,
            model=model,
            data={"name": self.name, "kind": self.kind, "fingerprint": self.fingerprint},
            counts={
                "clips_seen": len(self.ids) - len(self.unusable),
                "clips_expected": self.expected,
                "clips_missing": len(self.missing),
                "clips_unusable": len(self.unusable),
                "clips_unexpected": sum(clip.unexpected for clip in self.unusable),
                "missing": self.missing[:_NAMED],
                "unusable": [clip.to_dict("id", "reason") for clip in self.unusable[:_NAMED]],
            },
            settings={"alignment": self.processor.feature_extractor.alignment} | self._heard() | settings,
            command=self.options.get("command"),
        )


@dataclass
class ClipFacts:
    """What is known of the clips of a batch, beside the model's inputs.

    Attributes:
        places: Places of the clips in `EvaluatedSet.ids`.
        labels: Label numbers of each.
        frame_times: `(clips, frames)` seconds.
    """

    places: list[int]
    labels: list[list[int]]
    frame_times: Tensor

    def alone(self, row: int) -> "ClipFacts":
        """Those of one of them."""
        return ClipFacts([self.places[row]], [self.labels[row]], self.frame_times[row : row + 1])


@dataclass(kw_only=True)
class EvaluationClips(EvaluatedSet):
    """The clips of an evaluation, prepared for the model.

    Attributes:
        dataset: Gives every clip of the data.
        numbers: Which of them are evaluated, in order.
        label_names: Names of the data's label numbers, where they have names.
    """

    dataset: CavMaeSyncDataset
    numbers: list[int]
    label_names: list[str] | None

    def each_batch(
        self,
        model: CavMaeSyncPreTrainedModel,
        compute: Callable[[dict[str, Tensor], ClipFacts], T],
        needs: Sequence[str] = ("audio", "video"),
    ) -> Iterator[tuple[T, ClipFacts]]:
        """Read the clips and compute something of the model's inputs, batch by batch.

        What cannot be used goes to `unusable`: clips that cannot be read, and clips of which `compute` raises an error
        also where it is given them alone.

        Args:
            model: Tells device and precision.
            compute: Called with the model's inputs of some clips, and what the model does not take of them. Called
                again for each clip of a batch where it raises an error; must leave nothing behind then.
            needs: What a clip must have: `"audio"`, `"video"`.

        Yields:
            What `compute` gave, and of which clips.

        Raises:
            EvaluationError: As `check`, after the last batch.
            Exception: What `compute` raised of many clips, one after the other: it is not the clips'.
        """
        size = self.options.get("batch_size", 8)
        if size < 1:
            raise EvaluationError(f"`batch_size` is {size}; it must be at least 1.")
        samples = _Samples(self, needs)
        collate = _Collate(CavMaeSyncCollator(self.processor))
        loaded = _load(samples, collate, batch_size=size, num_workers=self.options.get("num_workers", 0))
        done = failed_in_a_row = 0
        for batch, places, reasons, remarks in loaded:
            for remark in remarks:
                warnings.warn(remark, stacklevel=2)
            for _, failure in sorted(reasons.items()):
                self.leave_out(failure)
            waiting: list[tuple[dict[str, Tensor], ClipFacts]] = []
            if batch is not None:
                facts = ClipFacts(places, batch["labels"], batch["frame_times"])
                waiting.append((move_inputs(batch, model), facts))
            while waiting:
                inputs, facts = waiting.pop(0)
                try:
                    found = compute(inputs, facts)
                except Exception as error:
                    traceback.clear_frames(error.__traceback__)  # which may hold much memory
                    if len(facts.places) > 1:
                        waiting = [
                            ({name: values[row : row + 1] for name, values in inputs.items()}, facts.alone(row))
                            for row in range(len(facts.places))
                        ]
                        continue
                    failed_in_a_row += 1
                    if failed_in_a_row == _MOST_IN_A_ROW:
                        raise
                    self.leave_out(Failure.of(self.ids[facts.places[0]], error))
                else:
                    failed_in_a_row = 0
                    yield found, facts
            done += len(places) + len(reasons)
            self.report(done)
        self.check()


class _MiddleFrame(InputMaker):
    """One frame per clip: the first of the second half."""

    def choose(self, clip_id: str, count: int, epoch: int, draw: int = 0) -> list[int]:
        return [count // 2]


def noise_of(options: RunOptions) -> AugmentationOptions | None:
    """The noise that a run adds to every clip, the same in each run; `None` for none.

    Raises:
        EvaluationError: The ratio cannot work.
    """
    level = options.get("noise_snr_db")
    if level is None:
        return None
    try:
        return AugmentationOptions(noise_snr_db=(level, level), noise_source=options.get("noise_source", "white"))
    except ValueError as error:
        raise EvaluationError(str(error)) from error


def fit_processor(
    processor: CavMaeSyncProcessor, protocol: Protocol, options: RunOptions | None = None
) -> CavMaeSyncProcessor:
    """The processor with a protocol's alignment and number of frames and a run's choice of audio; the given one stays
    as it is."""
    choice = options or {}
    fitted = copy.copy(processor.with_audio_choice(choice.get("channel"), choice.get("audio_track")))
    fitted.feature_extractor = copy.copy(fitted.feature_extractor)
    fitted.video_processor = copy.copy(fitted.video_processor)
    for part in (fitted.feature_extractor, fitted.video_processor):
        if protocol.alignment is not None:
            part.alignment = protocol.alignment
        if protocol.num_frames is not None:
            part.num_frames = protocol.num_frames
    return fitted


def open_evaluation(
    data: Any, processor: CavMaeSyncProcessor, protocol: Protocol, options: RunOptions
) -> EvaluationClips:
    """Find the clips of an evaluation.

    Args:
        data: A folder of shards, a folder or list of videos, a SyncWorld split, or what else `read_source` lists.
        processor: The model's; alignment and number of frames become the protocol's.
        protocol: The rules.
        options: See `RunOptions`.

    Raises:
        EvaluationError: There is nothing to evaluate on, or no id of the list is there; or, in a `strict` run, one is
            missing.
        EvaluationError: The protocol needs a list of ids and none is given.
    """
    processor = fit_processor(processor, protocol, options)
    ids, limit = options.get("ids"), options.get("limit")
    retrieval = protocol if isinstance(protocol, RetrievalProtocol) else None
    if ids is None and retrieval is not None and retrieval.needs_ids:
        hint = Hint("ids", "FILE", "give the list")
        raise EvaluationError(f"The protocol {protocol.name} is defined on a list of clips.", hint=hint)
    if limit is not None and limit < 1:
        raise EvaluationError(f"`limit` is {limit}; it must be at least 1.")
    given: dict[str, Any] = {
        key: options.get(key) for key in ("media", "labels", "split") if options.get(key) is not None
    }
    is_path = isinstance(data, str | os.PathLike)
    is_shards = is_path and _exists(os.fspath(data), INDEX_NAME)
    if is_shards and given:
        raise EvaluationError(f"{data}: shards have no use for the option `{next(iter(given))}`; leave it out.")
    source = data if is_shards or not given else read_source(data, audio_files=False, **given)
    dataset = CavMaeSyncDataset(source, processor, frames="all", augmentation=noise_of(options))
    if retrieval is not None and retrieval.frames == "middle":
        dataset.maker = _MiddleFrame(processor)
    kind = "shards" if is_shards else "syncworld" if is_path and _exists(os.fspath(data), OPTIONS_NAME) else "videos"
    there = list(dataset.clip_ids())
    if not there:
        raise EvaluationError(f"{data}: holds no clips; prepare or make some first.")
    numbers, names, missing = _pick(there, ids, str(data))
    expected = len(numbers) + len(missing)
    if limit is not None:
        numbers, names = numbers[:limit], names[:limit]
    digest = hashlib.sha256(dataset.source.fingerprint.encode())
    digest.update(json.dumps(names).encode())
    clips = EvaluationClips(
        name=os.fspath(data) if is_path else type(data).__name__,
        kind=kind,
        fingerprint=digest.hexdigest(),
        ids=names,
        expected=expected,
        missing=missing,
        protocol=protocol,
        processor=processor,
        options=options,
        dataset=dataset,
        numbers=numbers,
        label_names=dataset.source.label_names,
    )
    clips.check()  # before the work, not after it
    return clips


def _exists(folder: str, name: str) -> bool:
    system, root = fsspec.url_to_fs(folder)
    return bool(system.exists(f"{root.rstrip('/')}/{name}"))


def _pick(
    there: Sequence[str], ids: StrPath | Sequence[str] | None, data: str
) -> tuple[list[int], list[str], list[str]]:
    """Numbers and names of the clips of a list, in its order, and the ids that are not there."""
    if ids is None:
        return list(range(len(there))), list(there), []
    wanted = read_ids(ids) if isinstance(ids, str | os.PathLike) else [(str(name),) for name in ids]
    places: dict[str, int] = {}
    for number, name in reversed(list(enumerate(there))):
        # A list names the clip, the data may have it in a folder.
        places[name.rpartition("/")[2]] = number
    places |= {name: number for number, name in enumerate(there)}
    numbers: dict[int, None] = {}
    missing: dict[str, None] = {}
    for names in wanted:
        found = next((places[name] for name in names if name in places), None)
        if found is None:
            missing[names[0]] = None
        else:
            numbers[found] = None
    if not numbers:
        raise EvaluationError(
            f"None of the {len(wanted)} ids of the list is in {data}: the list has {wanted[0][0]!r}, for example, the "
            f"data {there[0]!r}; the ids must be the clips' names."
        )
    return list(numbers), [there[number] for number in numbers], list(missing)


def read_ids(path: StrPath) -> list[tuple[str, ...]]:
    """Read a list of clips: per row the names that the clip may have, the likeliest first.

    Args:
        path: Text with one id a line, or a list as `cavmae-sync prepare` reads it: CSV (AudioSet's and VGGSound's own
            too), JSON (the published evaluation lists too), JSON lines, Parquet.

    Raises:
        EvaluationError: The file cannot be read or is empty.
    """
    address = os.fspath(path)
    try:
        if not address.lower().endswith(LIST_SUFFIXES):
            with fsspec.open(address, "r", encoding="utf-8-sig") as file:
                lines = [line.strip() for line in file]
            names: list[tuple[str, ...]] = [(line,) for line in lines if line and not line.startswith("#")]
        else:
            system, root = fsspec.url_to_fs(address)
            names = [_names(entry) for entry in read_list(system, root)]
    except FileNotFoundError as error:
        raise EvaluationError(f"{address}: no such file; name the list of ids.") from error
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise EvaluationError(f"{address}: the ids cannot be read ({error}).") from error
    if not names:
        raise EvaluationError(f"{address}: holds no ids.")
    return names


def _names(entry: Entry) -> tuple[str, ...]:
    """What a clip of a list may be called: by its segment's start as the benchmarks do, by id, or by its file."""
    names = []
    if entry.id is not None:
        if entry.start is not None:
            names.append(f"{entry.id}_{int(entry.start):06d}")
        # Some downloaders put a Y before ids, which may begin with a dash.
        names += [entry.id, f"Y{entry.id}"]
    if entry.path is not None:
        names += [os.path.splitext(entry.path)[0], Path(entry.path).stem]
    return tuple(dict.fromkeys(names))


def _load(samples: "_Samples", collate: "_Collate", *, batch_size: int, num_workers: int) -> Iterator[tuple[Any, ...]]:
    """Batches of all samples in their order; a sample of which worker processes die is left out.

    Where a worker dies, what was being read is read again by a single one, which tells whose fault it was.

    Raises:
        WorkerError: Workers die of no sample, or of one after the other.
    """
    begin, alone_until, died_in_a_row = 0, 0, 0
    while begin < len(samples):
        alone = begin < alone_until
        workers = min(1, num_workers) if alone else num_workers
        samples.being_read = torch.full((max(1, workers),), -1).share_memory_() if workers else None
        numbers = range(begin, min(alone_until, len(samples)) if alone else len(samples))
        loader = DataLoader(Subset(samples, numbers), batch_size=batch_size, collate_fn=collate, num_workers=workers)
        try:
            for loaded in _deaths_in_turn(loader):
                begin = min(begin + batch_size, numbers.stop)
                died_in_a_row = 0
                yield loaded
        except WorkerError as error:
            suspects = [] if samples.being_read is None else [int(at) for at in samples.being_read if at >= 0]
            died_in_a_row += 1
            if not suspects or died_in_a_row > _MOST_DEATHS:
                raise
            if alone:
                name = samples.ids[suspects[0]]
                reason = f"{name}: the process that read it died, twice ({error.__cause__})."
                samples.fatal[suspects[0]] = UnexpectedError(" ".join(reason.split()))
            alone_until = max(alone_until, max(suspects) + 1)


def _deaths_in_turn(loader: DataLoader) -> Iterator[Any]:
    """What a loader gives; the death of a worker is a `WorkerError`, and comes when the next batch is asked for."""
    if not loader.num_workers:
        yield from loader
        return
    # torch would raise it wherever the program is then, also in the midst of the model.
    listens = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if listens else None
    batches: Any = None
    try:
        with worker_deaths():
            batches = iter(loader)
            if listens:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            yield from batches
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # what it had ready went with it
        raise WorkerError("A process that loads clips died before its batch was fetched.") from error
    finally:
        # Before torch listens again: it would hear the end of the other workers.
        if batches is not None:
            batches._shutdown_workers()
        if listens:
            signal.signal(signal.SIGCHLD, before)


class _Samples(Dataset):
    """The samples of an evaluation; one that cannot be read is a `Failure` instead.

    Attributes:
        being_read: The place that each worker process reads, -1 for none; in shared memory.
        fatal: Places that must not be read, and why.
    """

    def __init__(self, clips: EvaluationClips, needs: Sequence[str]) -> None:
        self.dataset, self.numbers, self.ids, self.needs = clips.dataset, clips.numbers, clips.ids, needs
        self.of_shards = clips.kind == "shards"
        self.being_read: Tensor | None = None
        self.fatal: dict[int, UnexpectedError] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> dict[str, Any]:
        worker = get_worker_info()
        if place in self.fatal:
            return {"place": place, "reason": Failure.of(self.ids[place], self.fatal[place])}
        if worker is None or self.being_read is None:
            return self._read(place)
        self.being_read[worker.id] = place
        with collected_remarks() as remarks:  # a worker's own words would reach nobody who knows how to tell them
            sample = self._read(place) | {"remarks": remarks}
        self.being_read[worker.id] = -1
        return sample

    def _read(self, place: int) -> dict[str, Any]:
        name = self.ids[place]
        try:
            with crashes.reading(name):
                sample = self.dataset[self.numbers[place]]
        except Exception as error:
            if self.of_shards and isinstance(error, DataError):
                raise  # the set is damaged, not the clip
            return {"place": place, "reason": Failure.of(name, error)}
        for need, mask in (("audio", "padding_mask"), ("video", "padding_mask_videos")):
            if need in self.needs and not bool(sample[mask].any()):
                return {"place": place, "reason": Failure(name, f"{name}: has no {need}.")}
        return sample | {"place": place}


class _Collate:
    """Makes batches of what can be used, beside what cannot; a class, so that it reaches any kind of worker."""

    def __init__(self, collator: CavMaeSyncCollator) -> None:
        self.collator = collator

    def __call__(
        self, samples: list[dict[str, Any]]
    ) -> tuple[dict[str, Any] | None, list[int], dict[int, Failure], list[MediaWarning]]:
        remarks = [remark for sample in samples for remark in sample.pop("remarks", ())]
        usable = [sample for sample in samples if "reason" not in sample]
        reasons = {sample["place"]: sample["reason"] for sample in samples if "reason" in sample}
        if not usable:
            return None, [], reasons, remarks
        batch = self.collator(usable)
        batch["labels"] = [sample["labels"] for sample in usable]
        return batch, [sample["place"] for sample in usable], reasons, remarks


def stack_clips(parts: Sequence[Tensor], fill: float | bool = 0) -> Tensor:
    """Join batches `(clips, frames, ...)` whose clips may have different numbers of frames."""
    longest = max(part.shape[1] for part in parts)
    wide = [
        part
        if part.shape[1] == longest
        else torch.cat([part, part.new_full((part.shape[0], longest - part.shape[1], *part.shape[2:]), fill)], dim=1)
        for part in parts
    ]
    return torch.cat(wide)
