# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How does a collection of videos become a folder of shards, by all cores, resumable and the same bytes every time?

The list of clips is fixed first, then cut into shards. A shard is whole when its note lies in the hidden work folder;
a run makes the shards that have none, and then writes the index from the notes, in their order. So neither the number
of processes nor interruptions leave a trace in the result.
"""

import csv
import gzip
import io
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..files import locked, usable_cores
from ..model.errors_cavmae_sync import DataError, LockedError, WorkerError
from .engines import run_here, run_processes, run_ray
from .samples import PARTIAL, PrepareOptions, ShardJob, ShardTask, note_path, shard_tasks, write_whole
from .shards import (
    BAD_CLIPS_COLUMNS,
    BAD_CLIPS_NAME,
    CARD_NAME,
    CLIPS_NAME,
    INDEX_NAME,
    ShardIndex,
    ShardInfo,
    card_text,
    encode_json,
    split_name,
)
from .sources import ClipList, describe_difference, read_source

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

WORK_FOLDER = ".prepare"
ENGINES = ("local", "ray")
_JOB_NAME = "job.json"
_LIST_NAME = "clips.jsonl.gz"
_LOCK_NAME = "lock"
# Shards of about 200 MB for large sets, and enough of them to share out for small ones.
_MOST_CLIPS_PER_SHARD, _LEAST_CLIPS_PER_SHARD, _SHARDS_OF_SMALL_SETS = 256, 8, 64


@dataclass(frozen=True)
class PrepareProgress:
    """How far a run is.

    Attributes:
        done: Clips finished, good and bad, in this run and in earlier ones.
        total: Clips of the source.
        bad: Bad clips in finished shards.
        rate: Clips per second of this run, 0 before the first.
        seconds_left: At that rate, `None` before the first clip.
    """

    done: int
    total: int
    bad: int
    rate: float
    seconds_left: float | None


@dataclass(frozen=True)
class PrepareSummary:
    """What a run did.

    Attributes:
        folder: Folder of the shards.
        index: What its `index.json` says.
        made: Clips read in this run, good and bad; the others were there already.
        reasons: Bad clips per reason.
        seconds: Time this run took.
    """

    folder: Path
    index: ShardIndex
    made: int
    reasons: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        index = self.index
        rate = f", {self.made / self.seconds:.1f} clips/s" if self.made and self.seconds else ", all there already"
        text = f"{self.folder}: {_count(index.clips, 'clip')} in {_count(len(index.shards), 'shard')}{rate}; "
        text += _count(index.bad_clips, "bad clip")
        if not index.bad_clips:
            return text
        kinds = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        return f"{text} left out ({kinds}), see {BAD_CLIPS_NAME}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def prepare(
    source: Any,
    out: str | os.PathLike[str],
    *,
    name: str = "train",
    media: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | Sequence[str] | None = None,
    split: str | None = None,
    folder_labels: bool = False,
    cut: str = "auto",
    num_frames: int = 16,
    alignment: str = "time",
    short_side: int | None = 256,
    jpeg_quality: int = 95,
    jpeg_chroma: str = "4:4:4",
    sampling_rate: int = 16000,
    num_mel_bins: int = 128,
    channel: str = "first",
    missing: str = "error",
    silent: str = "error",
    damaged: str = "error",
    max_seconds: float = 600.0,
    clips_per_shard: int | None = None,
    workers: int | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    progress: Callable[[PrepareProgress], None] | None = None,
) -> PrepareSummary:
    """Turn a collection of videos into shards; the same call again continues after an interruption.

    A clip that cannot be used (not found, no media, damaged) is a bad clip: it is left out and listed with its reason.
    A clip that cannot be read for now (a server that does not answer after three attempts, a failing disk, no access)
    says nothing about the clip: it ends the run, finished shards stay, and the same call continues.

    The bytes written depend on the source, the options and the versions of the software, not on the number of
    processes, the engine or interruptions.

    Args:
        source: Folder, pattern, list, bucket or data set; see `read_source`.
        out: Folder for the shards: new, empty, or begun by the same call.
        name: Name of the set; shards are called `NAME-00000.tar`. Not `all`, by which `datasets` means every split.
        media: Folder of the files that a list names, see `read_source`.
        labels: Label names or a file of them, see `read_source`.
        split: Split of a list or data set, see `read_source`.
        folder_labels: Label files by their folders, see `read_source`.
        cut: Whether files found by id are cut to their segments, see `read_source`.
        num_frames: Frames per clip.
        alignment: Which frames: `"time"` (centres of equal spans) or `"reference"` (as published), see `decode_media`.
        short_side: Shorter side of the stored frames, pixels; smaller pictures keep their size. `None`: all do.
        jpeg_quality: 1 to 100.
        jpeg_chroma: `"4:4:4"`, or `"4:2:2"` or `"4:2:0"` for a fifth less space and coarser colour edges.
        sampling_rate: Rate of the sound in Hz that the log-mel is computed at.
        num_mel_bins: Mel bins.
        channel: `"first"` (as published) or `"mean"`.
        missing: `"error"`: a clip without sound or without pictures is a bad clip; `"keep"`: it is kept, with
            `has_audio` or `has_video` false, without frames or with a log-mel of no frames.
        silent: `"error"`: a clip whose sound never exceeds -80 dB is a bad clip; `"keep"`: it is kept.
        damaged: `"error"`: a truncated or corrupt file is a bad clip; `"keep"`: what can be decoded of it is kept.
        max_seconds: Longer clips are bad clips.
        clips_per_shard: Clips of the source per shard; default: 256, less for small sets.
        workers: Processes; default: one for each core this process may use. 1 works in this process.
        engine: `"local"`, or `"ray"` to work on a Ray cluster, whose nodes must all see `out`.
        ray_address: Address of the cluster; default: `RAY_ADDRESS`, else a Ray of this machine's own.
        progress: Called with a `PrepareProgress` at the start and whenever clips are finished.

    Returns:
        A `PrepareSummary`.

    Raises:
        ValueError: An option or the source is wrong (`DataError`, `DataError`), the folder holds another set or is
            in use or cannot be written, no clip could be used, a clip could not be read for now, or a process was
            killed (`DataError`).
    """
    began = time.perf_counter()
    _check_run(name, clips_per_shard, workers, engine, ray_address)
    options = PrepareOptions(
        num_frames, alignment, short_side, jpeg_quality, jpeg_chroma, sampling_rate, num_mel_bins, channel, missing,
        silent, damaged, float(max_seconds),
    )  # fmt: skip
    if av is None:
        raise ImportError("Decoding media needs PyAV, which brings its own FFmpeg: pip install av")
    folder = _open_folder(out)
    clips = read_source(source, media=media, labels=labels, split=split, folder_labels=folder_labels, cut=cut)
    per_shard = clips_per_shard or _clips_per_shard(len(clips))
    tasks = shard_tasks(clips.records, per_shard)
    notes = folder / WORK_FOLDER
    with _writable(folder):
        notes.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _claim(folder, clips, {"name": name, "clips_per_shard": per_shard, "cut": cut} | asdict(options))
        job = ShardJob(
            folder, notes, name, options, clips.rows, clips.video_column, clips.audio_column, _versions()
        )  # fmt: skip
        missing_tasks = [task for task in tasks if not _is_whole(folder, notes, task)]
        meter = _Meter(progress, len(clips), sum(task.size for task in missing_tasks))
        if missing_tasks:
            with _writable(folder):
                (folder / INDEX_NAME).unlink(missing_ok=True)
            _run(job, missing_tasks, meter, engine, workers, ray_address)
        with _writable(folder):
            index, reasons = _finish(job, clips, tasks)
    return PrepareSummary(folder, index, meter.to_make, reasons, time.perf_counter() - began)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Name the folder in errors of writing to it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error}); make room, mend the access or name another.") from (
            error
        )


def _check_run(
    name: str, clips_per_shard: int | None, workers: int | None, engine: str, ray_address: str | None
) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(
            f"name must be letters, digits, '_', '-' and '.', got {name!r}; it becomes part of file names."
        )
    if split_name(name) == "all":
        raise ValueError("name must not be 'all', by which `datasets` means every split; use another such as 'train'.")
    for option, value in (("clips_per_shard", clips_per_shard), ("workers", workers)):
        if value is not None and value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}.")
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}, got {engine!r}.")
    if ray_address is not None and engine != "ray":
        raise ValueError(f"ray_address is for the engine 'ray', got the engine {engine!r}; set engine='ray' too.")


def _clips_per_shard(clips: int) -> int:
    return min(_MOST_CLIPS_PER_SHARD, max(_LEAST_CLIPS_PER_SHARD, math.ceil(clips / _SHARDS_OF_SMALL_SETS)))


def _versions() -> dict[str, str]:
    from .. import __version__

    return {"cavmae_sync_hf": __version__, "av": av.__version__, "torch": torch.__version__}


def _open_folder(out: str | os.PathLike[str]) -> Path:
    if re.match(r"\w[\w.+-]+:/", os.fspath(out)):  # `Path` makes s3:/ of s3://; a Windows drive is one letter
        raise DataError(f"{os.fspath(out)}: shards are written to a folder; write them here and upload the folder.")
    folder = Path(out).absolute()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a new or empty folder.")
    if folder.is_dir() and not (folder / WORK_FOLDER).is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder}: holds other files already; name a new or empty folder.")
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second run out."""
    with ExitStack() as stack:
        with _writable(folder):
            try:
                stack.enter_context(locked(folder / WORK_FOLDER / _LOCK_NAME, folder))
            except LockedError as error:
                raise DataError(str(error)) from error
        yield


def _claim(folder: Path, clips: ClipList, settings: dict[str, Any]) -> None:
    """Note what this folder is for, or refuse when it is for something else."""
    notes = folder / WORK_FOLDER
    with _writable(folder):
        _clear(notes)
    job: dict[str, Any] = {"options": settings, "versions": _versions(), "clips": len(clips), "digest": clips.digest()}
    try:
        before = json.loads((notes / _JOB_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        lines = "".join(f"{line}\n" for line in clips.lines()).encode()
        with _writable(folder):
            write_whole(notes / _LIST_NAME, gzip.compress(lines, mtime=0), notes)
            write_whole(notes / _JOB_NAME, encode_json(job) + b"\n", notes)
        return
    for what in ("options", "versions"):
        old, new = before[what], job[what]
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if changed:
            shown = ", ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in changed)
            raise DataError(
                f"{folder}: was begun with other {what}: {shown}; use the same, or another folder, or delete it."
            )
    if before["digest"] != job["digest"]:
        begun = gzip.decompress((notes / _LIST_NAME).read_bytes()).decode().splitlines()
        difference = describe_difference(begun, clips.lines())
        raise DataError(
            f"{folder}: was begun with another list of clips: {difference}; use the same source, or another "
            "folder, or delete it."
        )


def _clear(notes: Path) -> None:
    """Remove what was being written when a run ended."""
    for left in notes.glob(f"{PARTIAL}*"):
        left.unlink(missing_ok=True)


def _is_whole(folder: Path, notes: Path, task: ShardTask) -> bool:
    try:
        note = json.loads(note_path(notes, task.number).read_text(encoding="utf-8"))
        return note["file"] is None or (folder / note["file"]).stat().st_size == note["bytes"]
    except (FileNotFoundError, ValueError, KeyError):
        return False


class _Meter:
    """Counts clips and tells how fast and how far.

    Args:
        report: Who wants to know.
        total: Clips of the source.
        to_make: Clips to make in this run.
    """

    def __init__(self, report: Callable[[PrepareProgress], None] | None, total: int, to_make: int) -> None:
        self.report, self.total, self.to_make = report, total, to_make
        self.finished = self.bad = self.shown = 0
        self.began = time.perf_counter()
        self.show(0)

    def add(self, note: dict[str, Any]) -> None:
        """A shard is finished."""
        self.finished += len(note["clips"]) + len(note["bad"])
        self.bad += len(note["bad"])
        self.show(0)

    def show(self, unfinished: int) -> None:
        """Report, with this many clips finished in unfinished shards."""
        if self.report is None:
            return
        # A shard that is begun again, after a crash, takes nothing back.
        self.shown = made = max(self.shown, self.finished + unfinished)
        rate = made / max(time.perf_counter() - self.began, 1e-9)
        left = (self.to_make - made) / rate if made else None
        self.report(PrepareProgress(self.total - self.to_make + made, self.total, self.bad, rate, left))


def _run(
    job: ShardJob, tasks: Sequence[ShardTask], meter: _Meter, engine: str, workers: int | None, ray_address: str | None
) -> None:
    if engine == "ray":
        results = run_ray(job, tasks, workers, ray_address)
    elif workers == 1:
        results = run_here(job, tasks, meter.show)
    else:
        results = run_processes(job, tasks, workers or usable_cores(), meter.show)
    try:
        with closing(results) as notes:  # type: ignore[type-var]
            for note in notes:
                meter.add(note)
    except BaseException as error:  # Ctrl-C, too; the workers have ended
        with suppress(OSError):
            _clear(job.notes)
        if not isinstance(error, WorkerError):
            raise
        raise DataError(
            f"{job.folder}: stopped with {meter.finished} of {meter.to_make} clips done. {error} Run the same "
            "command again to continue."
        ) from error


def _finish(job: ShardJob, clips: ClipList, tasks: Sequence[ShardTask]) -> tuple[ShardIndex, dict[str, int]]:
    """Write report, clip table, card and index from the notes, one shard after the other, the index last."""
    shards: list[ShardInfo] = []
    reasons: Counter[str] = Counter()
    labels: Counter[int] = Counter()
    sums: Counter[str] = Counter()
    report, table = io.StringIO(), io.StringIO()
    rows = csv.DictWriter(report, BAD_CLIPS_COLUMNS, lineterminator="\n")
    rows.writeheader()
    first_bad = ""
    for task in tasks:
        note = json.loads(note_path(job.notes, task.number).read_text(encoding="utf-8"))
        for bad in note["bad"]:
            first_bad = first_bad or bad["message"]
            reasons[bad["reason"]] += 1
            rows.writerow(bad)
        for clip in note["clips"]:
            table.write(encode_json({"key": clip["key"], "shard": note["file"]} | clip).decode() + "\n")
        if note["file"] is not None:
            shards.append(ShardInfo(note["file"], len(note["clips"]), note["bytes"], note["sha256"]))
        for label, count in note["label_counts"]:
            labels[label] += count
        for key in ("log_mel_values", "log_mel_sum", "log_mel_squares", "seconds", "with_audio", "with_video"):
            sums[key] += note[key]
    write_whole(job.folder / BAD_CLIPS_NAME, report.getvalue().encode(), job.notes)
    good = sum(shard.clips for shard in shards)
    if not good:
        kinds = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise DataError(
            f"{job.folder}: none of the {len(clips)} clips can be used ({kinds}; see {BAD_CLIPS_NAME}). "
            f"The first: {first_bad}"
        )
    index = _index(job, clips, sums, shards, labels, sum(reasons.values()))
    for file, text in ((CLIPS_NAME, table.getvalue()), (CARD_NAME, card_text(index)), (INDEX_NAME, index.to_json())):
        write_whole(job.folder / file, text.encode(), job.notes)
    return index, dict(sorted(reasons.items()))


def _index(
    job: ShardJob, clips: ClipList, sums: Counter[str], shards: list[ShardInfo], labels: Counter[int], bad: int
) -> ShardIndex:
    options = job.options
    mean = std = None
    values = sums["log_mel_values"]
    if values:
        mean = sums["log_mel_sum"] / values
        std = math.sqrt(max(0.0, sums["log_mel_squares"] / values - mean * mean))
    kept = {field.name for field in fields(ShardIndex)}
    settings = {key: value for key, value in asdict(options).items() if key in kept}
    return ShardIndex(
        name=job.name,
        clips=sum(shard.clips for shard in shards),
        bad_clips=bad,
        seconds=float(sums["seconds"]),
        mean=mean,
        std=std,
        log_mel_frames=values // options.num_mel_bins,
        with_audio=sums["with_audio"],
        with_video=sums["with_video"],
        label_names=clips.label_names,
        label_counts=dict(sorted(labels.items())),
        versions=job.versions,
        shards=shards,
        folder=str(job.folder),
        **settings,
    )


__all__ = ["ENGINES", "WORK_FOLDER", "PrepareProgress", "PrepareSummary", "prepare"]
