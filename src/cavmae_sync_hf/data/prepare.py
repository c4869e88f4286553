# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A collection of videos becomes a folder of shards, by all cores; a run can be continued after any interruption.

The list of clips is fixed first, then cut into shards. A shard is whole when its note lies in the hidden work folder;
a run makes the shards that have none, and then writes the index from the notes, in their order. So neither the number
of processes nor interruptions leave a trace in the result.
"""

import csv
import gzip
import io
import math
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..files import StrPath, locked, parse_json, remove_partial, usable_cores, whole_file, write_bytes, writing
from ..model.errors_cavmae_sync import DataError, DiskError, WorkerError, collected_remarks
from ..provenance import package_version
from .caption_tables import examples, tell
from .engines import DECODER_CRASHES, run_here, run_processes, run_ray
from .failures import Failure
from .packing import BadClip, ClipPacker, PrepareOptions
from .prepare_report import PrepareProgress, PrepareSummary, ProgressMeter, counted
from .shards import (
    BAD_CLIPS_COLUMNS,
    BAD_CLIPS_NAME,
    CARD_NAME,
    CLIPS_NAME,
    INDEX_NAME,
    ShardIndex,
    ShardInfo,
    ShardWriter,
    card_text,
    clip_key,
    encode_json,
    shard_name,
    split_name,
)
from .sources import ClipList, ClipRecord, MediaRows, describe_difference, read_source

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

WORK_FOLDER = ".prepare"
ENGINES = ("local", "ray")
_JOB_NAME = "job.json"
_LIST_NAME = "clips.jsonl.gz"
_LOCK_NAME = "lock"
# So many clips in a row that cannot be read for now, and it is the disk or the network that is at fault.
_MOST_OUT_OF_REACH = 10
# Shards of about 200 MB for large sets, and enough of them to share out for small ones.
_MOST_CLIPS_PER_SHARD, _LEAST_CLIPS_PER_SHARD, _SHARDS_OF_SMALL_SETS = 256, 8, 64


def prepare(
    source: Any,
    out: StrPath,
    *,
    name: str = "train",
    media: StrPath | None = None,
    labels: StrPath | Sequence[str] | None = None,
    split: str | None = None,
    folder_labels: bool = False,
    cut: str = "auto",
    caption_column: str | Sequence[str] | None = None,
    spans: StrPath | None = None,
    num_frames: int = 16,
    alignment: str = "time",
    short_side: int | None = 256,
    jpeg_quality: int = 95,
    jpeg_chroma: str = "4:4:4",
    sampling_rate: int = 16000,
    num_mel_bins: int = 128,
    channel: str = "first",
    audio_track: int | str | None = None,
    missing: str = "error",
    silent: str = "error",
    damaged: str = "error",
    max_seconds: float = 600.0,
    audio: str = "log_mel",
    clips_per_shard: int | None = None,
    workers: int | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    progress: Callable[[PrepareProgress], None] | None = None,
) -> PrepareSummary:
    """Turn a collection of videos into shards; the same call again continues after an interruption.

    A clip that cannot be used (not found, no media, damaged) is a bad clip: it is left out and listed with its reason,
    whatever goes wrong with it, and also if the process that reads it dies of it. A clip that could not be read for
    now (a server that does not answer after three attempts, a failing disk, no access) is left out, too, but the same
    call tries it again. Ten of these in a row, and a full disk, end the run; finished shards stay, and the
    same call continues.

    The bytes written depend on the source, the options and the versions of the software, not on the number of
    processes, the engine or interruptions.

    Args:
        source: Folder, pattern, list, bucket or data set; see `read_source`.
        out: Folder for the shards: new, empty, or begun by the same call.
        name: Name of the set; shards are called `NAME-00000.tar`. Not `all`, by which `datasets` means every split.
        media, labels, split, folder_labels, cut: How the source is read, see `read_source`.
        caption_column: Column, or columns, of a list or data set with what is said of a clip: a text, a list of texts,
            or of mappings with `text`, `start` and `end`. Several rows of one clip are then one clip.
        spans: Table of texts with times: rows of `file`, `start`, `end` and `text`. Without times a row is about the
            whole. Times are seconds of the file, as the list's `start` and `end` are.
        num_frames: Frames per clip.
        alignment: Which frames: `"time"` (centres of equal spans) or `"reference"` (as published), see `decode_media`.
        short_side: Shorter side of the stored frames, pixels; smaller images keep their size. `None`: all do.
        jpeg_quality: 1 to 100.
        jpeg_chroma: `"4:4:4"`, or `"4:2:2"` or `"4:2:0"` for a fifth less space and coarser colour edges.
        sampling_rate: Rate of the audio in Hz that the log-mel is computed at.
        num_mel_bins: Mel bins.
        channel: `"first"` (as published) or `"mean"`.
        audio_track: Which audio track of files that have several: its number, counted from 0, or its language such as
            `"de"`. Default: the one that a player plays.
        missing: `"error"`: a clip without audio or without video is a bad clip; `"keep"`: it is kept, with
            `has_audio` or `has_video` false, without frames or with a log-mel of no frames.
        silent: `"error"`: a clip whose audio never exceeds -80 dB is a bad clip; `"keep"`: it is kept.
        damaged: `"error"`: a truncated or corrupt file is a bad clip; `"keep"`: what can be decoded of it is kept.
        max_seconds: Longer clips are bad clips.
        audio: What is kept of the audio: `"log_mel"`, or `"waveform"`: the audio itself, as FLAC of 16 bits at
            `sampling_rate`, for audio encoders that hear samples; models that hear a log-mel take both.
        clips_per_shard: Clips of the source per shard; default: 256, less for small sets.
        workers: Processes; default: one for each core this process may use. 1 works in this process.
        engine: `"local"`, or `"ray"` to work on a Ray cluster, whose nodes must all see `out`.
        ray_address: Address of the cluster; default: `RAY_ADDRESS`, else a Ray of this machine's own.
        progress: Called with a `PrepareProgress` at the start and whenever clips are finished.

    Returns:
        A `PrepareSummary`.

    Raises:
        ValueError: An option is wrong.
        DataError: The source is wrong, the folder holds another set or cannot be written, no clip can be used, or
            nothing can be read for now.
        LockedError: Another run writes to the folder.
        ImportError: PyAV or Ray is not installed.
    """
    began = time.perf_counter()
    _check_run(name, clips_per_shard=clips_per_shard, workers=workers, engine=engine, ray_address=ray_address)
    options = PrepareOptions(
        num_frames=num_frames,
        alignment=alignment,
        short_side=short_side,
        jpeg_quality=jpeg_quality,
        jpeg_chroma=jpeg_chroma,
        sampling_rate=sampling_rate,
        num_mel_bins=num_mel_bins,
        channel=channel,
        audio_track=audio_track,
        missing=missing,
        silent=silent,
        damaged=damaged,
        max_seconds=float(max_seconds),
        audio=audio,
    )
    if av is None:
        raise ImportError("Decoding media needs PyAV, which brings its own FFmpeg: pip install av")
    folder = _open_folder(out)
    clips = read_source(
        source, media=media, labels=labels, split=split, folder_labels=folder_labels, cut=cut, audio_files=False,
        caption_column=caption_column, spans=spans,
    )  # fmt: skip
    per_shard = clips_per_shard or min(
        _MOST_CLIPS_PER_SHARD, max(_LEAST_CLIPS_PER_SHARD, math.ceil(len(clips) / _SHARDS_OF_SMALL_SETS))
    )
    tasks = shard_tasks(clips.records, per_shard)
    notes = folder / WORK_FOLDER
    with ExitStack() as stack:
        with _writable(folder):
            notes.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(notes / _LOCK_NAME, folder))
        _claim(folder, clips, {"name": name, "clips_per_shard": per_shard, "cut": cut} | options.settings())
        job = ShardJob(folder, notes, name, options, rows=clips.rows, versions=_versions())
        missing_tasks = [task for task in tasks if not _is_whole(folder, notes, task)]
        meter = ProgressMeter(progress, len(clips), sum(task.size for task in missing_tasks))
        if missing_tasks:
            with _writable(folder):
                (folder / INDEX_NAME).unlink(missing_ok=True)
            if engine == "ray":
                results = run_ray(job, missing_tasks, workers, ray_address)
            elif workers == 1:
                results = run_here(job, missing_tasks, meter.show)
            else:
                results = run_processes(job, missing_tasks, workers or usable_cores(), meter.show)
            _collect(job, results, meter)
        with _writable(folder):
            summary = _finish(job, clips, tasks)
    return replace(summary, made=meter.to_make, seconds=time.perf_counter() - began)


@dataclass(frozen=True)
class ShardTask:
    """The unit of work and of resuming: one shard.

    Attributes:
        number: Number of the shard.
        first: Number of its first clip in the list.
        records: Its clips.
    """

    number: int
    first: int
    records: tuple[ClipRecord, ...]

    @property
    def size(self) -> int:
        """Its clips, good and bad."""
        return len(self.records)


def shard_tasks(records: Sequence[ClipRecord], clips_per_shard: int) -> list[ShardTask]:
    """Cut a list of clips into shards: shard i holds clips i * n to (i + 1) * n - 1."""
    return [
        ShardTask(number, first, tuple(records[first : first + clips_per_shard]))
        for number, first in enumerate(range(0, len(records), clips_per_shard))
    ]


@dataclass
class ShardJob:
    """Makes shards: what every process of a run is given once.

    Calling it with a task writes the shard under a name of its own, renames it, and leaves a note beside it; a shard
    with a note is whole.

    Attributes:
        folder: Folder of the shards.
        notes: Folder of the notes.
        name: What shards are called.
        options: What is kept of a clip.
        rows: The rows of a data set that records may refer to.
        versions: Versions of the software.
    """

    folder: Path
    notes: Path
    name: str
    options: PrepareOptions
    rows: MediaRows | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, task: ShardTask, begin: Callable[[int], None] | None = None, skip: Mapping[int, str] | None = None
    ) -> dict[str, Any]:
        """Write one shard.

        Args:
            task: Which one.
            begin: Called with the place of each clip in the task before it is touched.
            skip: Places of clips that must not be touched, and why.

        Returns:
            The shard's note: its checksum, its clips, its bad clips and its share of the set's sums; and `remarks`,
            the warnings, which are not written down.

        Raises:
            WorkerError: The shard cannot be written, or nothing can be read for now; nothing of the shard is left.
        """
        path = self.folder / shard_name(self.name, task.number)
        # Processes share the cores already, and sums must not depend on how many threads there are.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with (
                collected_remarks() as remarks,
                whole_file(path, workplace=self.notes) as partial,
                closing(ShardWriter(partial)) as writer,
            ):
                note = self._fill(writer, task, begin or (lambda place: None), skip or {})
            if not note["clips"]:
                path.unlink()
                note["file"] = None
            write_bytes(_note_path(self.notes, task), encode_json(note) + b"\n", workplace=self.notes)
        except DiskError as error:
            raise WorkerError(error.message) from error
        except OSError as error:  # clips' own are told apart before
            raise WorkerError(
                f"The shard {path} cannot be written ({error}); make room or mend the access."
            ) from error
        finally:
            torch.set_num_threads(threads)
        return note | {"remarks": remarks}

    def _fill(
        self, writer: ShardWriter, task: ShardTask, begin: Callable[[int], None], skip: Mapping[int, str]
    ) -> dict[str, Any]:
        """Write a shard's clips, and say which they are."""
        packer = ClipPacker(self.options, self.rows, self.versions)
        clips: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        outside: list[str] = []
        labels: Counter[int] = Counter()
        totals: dict[str, float] = {"log_mel_values": 0, "log_mel_sum": 0.0, "log_mel_squares": 0.0, "seconds": 0.0}
        with_audio = with_video = out_of_reach = 0
        for place, record in enumerate(task.records):
            begin(place)
            number = task.first + place
            try:
                if place in skip:
                    again = not skip[place].startswith(DECODER_CRASHES)
                    raise BadClip("crash", f"{record.source}: {skip[place]}", passes=again, place="")
                clip = packer.pack(record)
            except BadClip as fault:
                out_of_reach = out_of_reach + 1 if fault.reason == "no access" else 0
                if out_of_reach == _MOST_OUT_OF_REACH:
                    raise WorkerError(f"{out_of_reach} clips in a row cannot be read for now: {fault}") from fault
                facts = {"number": number, "id": record.id, "source": record.source}
                facts |= {"reason": fault.reason, "message": str(fault)}
                bad.append(facts | {"again": fault.passes, "place": fault.place})
                continue
            out_of_reach = 0
            key = clip_key(number, record.id)
            offset, size = writer.add(key, clip.members)
            duration = clip.info["duration"]
            clips.append(
                {"key": key, "id": record.id, "labels": list(record.labels), "duration": duration}
                | {name: clip.info[name] for name in ("captions",) if name in clip.info}
                | {"offset": offset, "size": size}
            )
            if len(clip.info.get("captions", ())) < len(record.captions):
                outside.append(record.id)
            totals["log_mel_values"] += clip.log_mel_values
            totals["log_mel_sum"] += clip.log_mel_sum
            totals["log_mel_squares"] += clip.log_mel_squares
            totals["seconds"] += duration
            labels.update(record.labels)
            with_audio += clip.info["has_audio"]
            with_video += clip.info["has_video"]
        size, digest = writer.finish()
        return {
            "shard": task.number,
            "file": shard_name(self.name, task.number),
            "bytes": size,
            "sha256": digest,
            "clips": clips,
            "bad": bad,
            "label_counts": sorted(labels.items()),
            "with_audio": with_audio,
            "with_video": with_video,
            **totals,
            **({"outside": outside} if outside else {}),
        }


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Name the folder in errors of writing to it."""
    try:
        with writing(folder):
            yield
    except DiskError as error:
        raise DataError(error.message) from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error}); make room, mend the access or name another.") from (
            error
        )


def _check_run(
    name: str, *, clips_per_shard: int | None, workers: int | None, engine: str, ray_address: str | None
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


def _versions() -> dict[str, str]:
    return {"cavmae_sync_hf": package_version(), "av": av.__version__, "torch": torch.__version__}


def _open_folder(out: StrPath) -> Path:
    if re.match(r"\w[\w.+-]+:/", os.fspath(out)):  # `Path` makes s3:/ of s3://; a Windows drive is one letter
        raise DataError(f"{os.fspath(out)}: shards are written to a folder; write them here and upload the folder.")
    folder = Path(out).absolute()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a new or empty folder.")
    if folder.is_dir() and not (folder / WORK_FOLDER).is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder}: holds other files already; name a new or empty folder.")
    return folder


def _claim(folder: Path, clips: ClipList, settings: dict[str, Any]) -> None:
    """Note what this folder is for, or refuse when it is for something else."""
    notes = folder / WORK_FOLDER
    with _writable(folder):
        _remove_partial(notes)
    job: dict[str, Any] = {"options": settings, "versions": _versions(), "clips": len(clips), "digest": clips.digest()}
    try:
        before = parse_json((notes / _JOB_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        lines = "".join(f"{line}\n" for line in clips.lines()).encode()
        with _writable(folder):
            write_bytes(notes / _LIST_NAME, gzip.compress(lines, mtime=0), workplace=notes)
            write_bytes(notes / _JOB_NAME, encode_json(job) + b"\n", workplace=notes)
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


def _remove_partial(notes: Path) -> None:
    remove_partial(notes)
    for left_over in notes.glob("partial-*"):  # of versions that named such files so
        left_over.unlink(missing_ok=True)


def _note_path(notes: Path, task: ShardTask) -> Path:
    return notes / f"shard-{task.number:05d}.json"


def _is_whole(folder: Path, notes: Path, task: ShardTask) -> bool:
    try:
        note = parse_json(_note_path(notes, task).read_text(encoding="utf-8"))
        if any(bad.get("again") for bad in note["bad"]):
            return False
        return note["file"] is None or (folder / note["file"]).stat().st_size == note["bytes"]
    except (FileNotFoundError, ValueError, KeyError):
        return False


def _collect(job: ShardJob, results: Iterator[dict[str, Any]], meter: ProgressMeter) -> None:
    """Make shards until all are there, or the run has to end."""
    try:
        with closing(results) as notes:  # type: ignore[type-var]
            for note in notes:
                for remark in note["remarks"]:
                    warnings.warn(remark, stacklevel=2)
                meter.add(note)
    except BaseException as error:  # Ctrl-C, too; the workers have ended
        with suppress(OSError):
            _remove_partial(job.notes)
        if not isinstance(error, WorkerError):
            raise
        raise DataError(
            f"{job.folder}: stopped with {meter.finished} of {meter.to_make} clips done. {error} Run the same "
            "command again to continue."
        ) from error


def _finish(job: ShardJob, clips: ClipList, tasks: Sequence[ShardTask]) -> PrepareSummary:
    """Write report, clip table, card and index from the notes, one shard after the other, the index last."""
    shards: list[ShardInfo] = []
    reasons: Counter[str] = Counter()
    labels: Counter[int] = Counter()
    sums: Counter[str] = Counter()
    report, table = io.StringIO(), io.StringIO()
    failures: list[Failure] = []
    outside: list[str] = []
    captions = with_captions = 0
    rows = csv.DictWriter(report, BAD_CLIPS_COLUMNS, lineterminator="\n", extrasaction="ignore")
    rows.writeheader()
    first_bad = ""
    for task in tasks:
        note = parse_json(_note_path(job.notes, task).read_text(encoding="utf-8"))
        for bad in note["bad"]:
            first_bad = first_bad or bad["message"]
            reasons[bad["reason"]] += 1
            place = bad.get("place")
            failures.append(Failure(bad["source"], bad["message"], place is not None, place or ""))
            rows.writerow(bad)
        for clip in note["clips"]:
            captions += len(clip.get("captions", ()))
            with_captions += "captions" in clip
            table.write(encode_json({"key": clip["key"], "shard": note["file"]} | clip).decode() + "\n")
        if note["file"] is not None:
            shards.append(ShardInfo(note["file"], len(note["clips"]), note["bytes"], note["sha256"]))
        outside += note.get("outside", ())
        for label, count in note["label_counts"]:
            labels[label] += count
        for key in ("log_mel_values", "log_mel_sum", "log_mel_squares", "seconds", "with_audio", "with_video"):
            sums[key] += note[key]
    write_bytes(job.folder / BAD_CLIPS_NAME, report.getvalue().encode(), workplace=job.notes)
    good = sum(shard.clips for shard in shards)
    if not good:
        kinds = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise DataError(
            f"{job.folder}: none of the {len(clips)} clips can be used ({kinds}; see {BAD_CLIPS_NAME}). "
            f"The first: {first_bad}"
        )
    index = _index(job, shards, sums, bad=sum(reasons.values()), label_names=clips.label_names, labels=labels)
    card = card_text(index, captions=captions, with_captions=with_captions)
    for file, text in ((CLIPS_NAME, table.getvalue()), (CARD_NAME, card), (INDEX_NAME, index.to_json())):
        write_bytes(job.folder / file, text.encode(), workplace=job.notes)
    if outside:
        tell(
            f"{counted(len(outside), 'clip')} of {good} had texts with times after their end, which were left out: "
            f"{examples(outside)}."
        )
    return PrepareSummary(
        job.folder, index, made=0, reasons=dict(sorted(reasons.items())), seconds=0.0, failures=failures,
        captions=captions, with_captions=with_captions,
    )  # fmt: skip


def _index(
    job: ShardJob,
    shards: list[ShardInfo],
    sums: Counter[str],
    *,
    bad: int,
    label_names: list[str] | None,
    labels: Counter[int],
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
        label_names=label_names,
        label_counts=dict(sorted(labels.items())),
        versions=job.versions,
        shards=shards,
        folder=str(job.folder),
        **settings,
    )
