# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A SyncWorld split, made by all cores; a run can be continued after any interruption, and the bytes are the same.

A clip is whole when its JSON file has its final name: the mp4 is renamed first and the JSON last. What a killed run
left half-written has a name of its own and is removed by the next run. `metadata.parquet` is written once all clips
are there.
"""

import contextlib
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ..files import StrPath, locked, parse_json, remove_partial, usable_cores, whole_file, write_json, write_text
from ..model.errors_cavmae_sync import DataError, DiskError, WorkerError
from .render import av, write_clip
from .scene import MAX_SOUNDING, TRAIN_SPLIT, WorldOptions, sample_scene, sounding_class_sets
from .truth import METADATA_NAME, OPTIONS_NAME, clip_stem, read_truth, truth_record, write_parquet
from .voices import CLASS_NAMES

FORMAT_VERSION = 2  # 2: objects in random order, one room for both clips of a temporal pair
CARD_MARK = "pretty_name: SyncWorld"
# The workers of a killed run notice within a second and finish their clip; their lock goes with them.
LOCK_PATIENCE = 3.0
CHUNK = 4  # clips handed to a worker at a time: few enough to share out evenly, many enough to keep it busy


@dataclass(frozen=True)
class WorldSummary:
    """What `make_world` did: the split's folder, its clips, how many were made now, and the seconds it took."""

    folder: Path
    clips: int
    made: int
    seconds: float

    @property
    def clips_per_second(self) -> float:
        """Rate of this run; 0 when nothing was left to make."""
        return self.made / self.seconds if self.made else 0.0


def make_world(
    out: StrPath,
    *,
    clips: int = 1000,
    seed: int = 0,
    split: str = "train",
    preset: str = "mixed",
    size: int | tuple[int, int] = 96,
    fps: int = 10,
    seconds: float = 10.0,
    sampling_rate: int = 16000,
    echo: float = 0.0,
    noise_db: float | None = -55.0,
    overlap: float = 0.0,
    crf: int = 23,
    encoder_preset: str = "ultrafast",
    audio_bitrate: int = 64000,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> WorldSummary:
    """Make, continue or extend one split of a SyncWorld: `out/split/000000.mp4`, its truth, and so on.

    The bytes of clip i depend on the options and i alone (and on the versions of NumPy and FFmpeg), not on the number
    of workers or of clips, nor on being interrupted: the same call again makes what is missing.

    Args:
        out: Folder of the world; splits are folders in it.
        clips: Clips of the split.
        size: Side of the square frames, or `(height, width)`, in pixels.
        workers: Processes, at least one; by default one for each core this process may use.
        progress: Called as `progress(done, total)` at the start and after each clip; clips of earlier runs count.
        seed, split, preset, fps, seconds, sampling_rate, echo, noise_db, overlap, crf, encoder_preset, audio_bitrate:
            See `WorldOptions`.

    Returns:
        A `WorldSummary`.

    Raises:
        ValueError: An option is out of range.
        DataError: The split exists with other options or more clips.
        LockedError: Another run is making the split.
        WorkerError: A worker process died or failed.
        ImportError: PyAV is not installed.
    """
    began = time.perf_counter()
    height, width = (size, size) if isinstance(size, int) else size
    options = WorldOptions(
        seed=seed,
        split=split,
        preset=preset,
        width=width,
        height=height,
        fps=fps,
        seconds=seconds,
        sampling_rate=sampling_rate,
        echo=echo,
        noise_db=noise_db,
        overlap=overlap,
        crf=crf,
        encoder_preset=encoder_preset,
        audio_bitrate=audio_bitrate,
    )
    if av is None:
        raise ImportError("Making a SyncWorld needs PyAV; run `pip install av`.")
    _check_clips(options, clips)
    if workers is not None and workers < 1:
        raise DataError(f"workers must be at least 1, got {workers}; leave it out for one per core.")
    folder = Path(out) / split
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f".{split}.lock", folder, patience=LOCK_PATIENCE):
        _claim_folder(folder, options, clips)
        missing = [
            index
            for index in range(clips)
            if not all((folder / f"{clip_stem(index)}{suffix}").is_file() for suffix in (".json", ".mp4"))
        ]
        if missing:  # the table of a smaller or broken split must not outlive it if this run is killed
            (folder / METADATA_NAME).unlink(missing_ok=True)
        done = clips - len(missing)
        if progress is not None:
            progress(done, clips)
        try:
            with contextlib.closing(_make_clips(folder, options, missing, workers or usable_cores())) as made:
                for _ in made:
                    done += 1
                    if progress is not None:
                        progress(done, clips)
        finally:
            remove_partial(folder)
        _finish(folder)
    return WorldSummary(folder, clips, len(missing), time.perf_counter() - began)


def make_clip(folder: Path, options: WorldOptions, index: int) -> None:
    """Make one clip and its truth under their final names, or leave neither."""
    scene = sample_scene(options, index)
    stem = clip_stem(index)
    with whole_file(folder / f"{stem}.mp4") as partial:
        boxes = write_clip(partial, scene, options)
    with whole_file(folder / f"{stem}.json") as partial:
        partial.write_text(json.dumps(truth_record(scene, options, boxes), separators=(",", ":")), encoding="utf-8")


def _check_clips(options: WorldOptions, clips: int) -> None:
    """Refuse counts that would cut a pair in two or repeat a set of classes."""
    if clips < 1:
        raise DataError(f"A split needs at least one clip, got {clips}.")
    if options.preset == "temporal" and clips % 2:
        raise DataError(f"Temporal clips come in pairs; {clips} would cut the last pair, use {clips + 1}.")
    if options.preset == "mixed" and clips % 4 == 3:
        raise DataError(f"{clips} mixed clips would cut the last temporal pair; use {clips + 1}.")
    most = len(sounding_class_sets())
    if options.preset == "semantic" and options.is_evaluation and clips > most:
        raise DataError(
            f"A semantic evaluation split holds one clip for each of the {most} sets of sounding classes, {clips} "
            f"were asked for; use at most {most}, or split='train' for clips that repeat sets."
        )


def _claim_folder(folder: Path, options: WorldOptions, clips: int) -> None:
    """Write the split's options before its first clip, or compare with those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial(folder)
    wanted = {"format_version": FORMAT_VERSION, "classes": list(CLASS_NAMES), "options": options.to_dict()}
    path = folder / OPTIONS_NAME
    if not path.exists():
        if any(folder.iterdir()):
            raise DataError(f"{folder} is not empty and no SyncWorld split (no {OPTIONS_NAME}); name another folder.")
        write_json(path, wanted, indent=1)
        return
    try:
        present = parse_json(path.read_text(encoding="utf-8"))
        before = present["options"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not describe a SyncWorld split ({error!r}); name another folder.") from error
    if present != wanted:
        now = options.to_dict()
        changes = [f"{name} {before.get(name)!r} -> {now[name]!r}" for name in now if before.get(name) != now[name]]
        if not changes:
            raise DataError(
                f"{folder} was made by another version of SyncWorld (format {present.get('format_version')!r}, "
                f"this is {FORMAT_VERSION}); remove it, or name another folder or split."
            )
        raise DataError(
            f"{folder} was made with other settings ({', '.join(changes)}); "
            "continue with the same ones, or name another folder or split."
        )
    if any(int(file.stem) >= clips for file in folder.glob("[0-9]*.json")):
        raise DataError(f"{folder} already has more than {clips} clips; ask for as many or remove it first.")


def _make_clips(folder: Path, options: WorldOptions, missing: list[int], workers: int) -> Generator[int, None, None]:
    """Make clips in this process, or share them out to several in small chunks; yields each index as it is made."""
    workers = min(workers, math.ceil(len(missing) / CHUNK))
    if workers <= 1:
        for index in missing:
            make_clip(folder, options, index)
            yield index
        return
    # Forked workers start at once and need no `__main__` guard in the caller's script; they use NumPy and PyAV alone.
    # The threads of a process group may hold locks that a fork would copy without them.
    fork = sys.platform == "linux" and not _is_in_process_group()
    context: Any = multiprocessing.get_context("fork" if fork else "spawn")
    chunks = iter([missing[k : k + CHUNK] for k in range(0, len(missing), CHUNK)])
    running: dict[Connection, Any] = {}
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, folder, options, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            running[ours] = process
            ours.send(next(chunks, None))
        left = len(missing)
        while left:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                try:
                    message = ready.recv()
                    if message is None:  # the worker's chunk is done
                        chunk = next(chunks, None)
                        ready.send(chunk)
                        if chunk is None:
                            running.pop(ready).join()
                except (EOFError, OSError) as error:
                    process = running[ready]
                    process.join()
                    raise WorkerError(
                        f"A worker died with exit code {process.exitcode} (out of memory, or killed) while making "
                        f"{folder}; the finished clips are kept, run the same command again to continue."
                    ) from error
                if isinstance(message, DiskError):
                    raise message
                if isinstance(message, str):
                    raise WorkerError(f"Making {folder} failed: {message}. The finished clips are kept.")
                if message is not None:
                    left -= 1
                    yield message
    finally:
        for connection, process in running.items():
            with contextlib.suppress(OSError):
                connection.send(None)
            process.join(timeout=0.5)
            if process.is_alive():
                process.terminate()
                process.join()
            connection.close()


def _is_in_process_group() -> bool:
    """Whether this process trains together with others; torch is not imported to find out."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _work(connection: Connection, folder: Path, options: WorldOptions, parent: int) -> None:
    """Make clips as they are handed out, until told to stop or the parent is gone."""
    try:
        while True:
            # Other forked workers hold copies of the pipe's other end, so a killed parent does not close it.
            while not connection.poll(1.0):
                if os.getppid() != parent:
                    return
            chunk = connection.recv()
            if chunk is None:
                return
            for index in chunk:
                make_clip(folder, options, index)
                connection.send(index)
                if os.getppid() != parent:
                    return
            connection.send(None)
    except (BrokenPipeError, EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        with contextlib.suppress(OSError):
            # Exceptions of FFmpeg do not all travel by pipe.
            connection.send(error if isinstance(error, DiskError) else f"{type(error).__name__}: {error}")


def _finish(folder: Path) -> None:
    """Write the split's table unless it is there, and the world's card."""
    path = folder / METADATA_NAME
    if not path.exists():
        with whole_file(path) as partial:
            write_parquet(({k: v for k, v in r.items() if k != "path"} for r in read_truth(folder)), partial)
    card = folder.parent / "README.md"
    if not card.exists() or CARD_MARK in card.read_text(encoding="utf-8", errors="replace"):
        write_text(card, _card(folder.parent))  # never over a text of someone else's


def _card(world: Path) -> str:
    """The world's README, which is also its dataset card."""
    rows, files = [], []
    for path in sorted(world.glob(f"*/{OPTIONS_NAME}")):
        o = WorldOptions.from_dict(parse_json(path.read_text(encoding="utf-8"))["options"])
        count = sum(1 for _ in path.parent.glob("[0-9]*.json"))
        size = f"{o.width}x{o.height}"
        rows.append(f"| {o.split} | {count} | {o.preset} | {o.seed} | {size} | {o.fps} | {o.duration:g} |")
        files.append(f"  - split: {o.split}\n    path: {o.split}/{METADATA_NAME}")
    table, data_files = "\n".join(rows), "\n".join(files)
    return f"""---
{CARD_MARK}
task_categories: [video-classification]
tags: [audio-visual, synthetic, synchronization, sound-localization]
license: apache-2.0
configs:
- config_name: default
  data_files:
{data_files}
---

# SyncWorld

Synthetic mp4 clips (H.264 and AAC) in which it is known which object sounds, when and where. Objects of
{len(CLASS_NAMES)} classes move over textured backgrounds; one that sounds opens its mouth and gets a white glowing rim
for exactly as long as it is heard. The other objects are silent; some are animated in other ways at other times.

Classes: {", ".join(CLASS_NAMES)}.

Presets:

- `semantic`: 1 to {MAX_SOUNDING} of 2 to 4 objects sound; in an evaluation split (any but `{TRAIN_SPLIT}`) no two
  clips have the same set of sounding classes.
- `temporal`: clips 2k and 2k + 1 have the same objects, appearances, paths and events and differ only in when the
  objects sound (and in the samples of their background noise).
- `spatial`: one of two objects sounds.
- `mixed`: in turn one semantic clip, one spatial clip and a temporal pair; `kind` tells which.

The order of `objects` is random: it does not tell which of them sound.

| split | clips | preset | seed | size | frames per second | seconds |
|---|---|---|---|---|---|---|
{table}

Beside each `NNNNNN.mp4` lies `NNNNNN.json` with its truth; `metadata.parquet` holds the same for the split. Boxes are
half-open `[x0, y0, x1, y1]` in pixels; times are seconds. `events` has the class, start and end of all that sounds and
its box at every frame, `sounding_boxes` the boxes of what sounds at each of the 16 `frame_times`, `partner` the other
clip of a temporal pair. Made with `cavmae-sync world`; load it with `cavmae_sync_hf.syncworld.load_syncworld`, or
without this package with `datasets.load_dataset` (the truth), or its `"videofolder"` builder and `data_dir` (with the
videos).
"""
