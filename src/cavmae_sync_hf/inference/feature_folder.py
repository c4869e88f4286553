# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A folder of extracted features: numpy arrays with a timing table, or Parquet; whole or not at all.

The folder belongs to one job: one model, one list of videos, one set of settings. Rows are written video by video as
they are made, under a temporary name that the finished part gives up, so that memory does not grow with a video's
length and a kill costs no more than the videos at hand. A video is done when its note lies in the hidden work folder;
when all are, their rows are joined, `manifest.json` vouches for the whole, and the work folder goes.

Version 1 of the format had other names for what `_OLD_NAMES` lists; a folder that was begun in it keeps them.
"""

import csv
import json
import os
import re
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..data.sources import describe_difference
from ..files import StrPath, parse_json, whole_file, write_bytes, writing
from ..model.errors_cavmae_sync import CavMaeSyncError, InferenceError
from .moments import MediaSpan
from .windows import WindowRow

MANIFEST_NAME = "manifest.json"
WORK_NAME = ".extract"
FORMAT = "cavmae-sync-features"
_FORMAT_VERSION = 2
_JOB_NAME, _PAIRING_NAME, _TABLE_NAME = "job.json", "pairing.json", "timing.csv"
# What is still being written is called like this.
_PARTIAL = "partial-"
# The columns of a timing table, in order, with Arrow's names of their types.
_TIMING_COLUMNS: dict[str, str] = {
    "id": "string",
    "file": "string",
    "window": "int64",
    "start": "float64",
    "end": "float64",
    "centre": "float64",
    "moments": "int32",
    "partial": "bool",
    "frame_times": "list<float64>",
    "video_moments": "int32",
    "audio_moments": "int32",
    "audio_coverage": "float32",
    "audio_start": "float64",
    "audio_end": "float64",
    "similarity": "float32",
}
# Names of settings, columns and entries -> what version 1 called them.
_OLD_NAMES = {
    "audio_coverage": "sound_coverage",
    "audio_start": "sound_start",
    "audio_end": "sound_end",
    "audio_id": "sound_id",
    "audio_window": "sound_window",
    "audio_context": "sound",
    "videos": "films",
}
_ROWS_AT_A_TIME = 256


class FeatureFolder:
    """The folder of a job.

    Args:
        folder: Where it is.
        kind: `"npy"` or `"parquet"`.
        videos: All videos, in order.
        sizes: Feature name -> length of its vectors.
        model: Checksum of the model.
        settings: What decides the values of the rows.
        lines: One text per video that says which it is.
        digest: Checksum of the list of videos.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        *,
        videos: Sequence[MediaSpan],
        sizes: dict[str, int],
        model: str,
        settings: dict[str, Any],
        lines: list[str],
        digest: str,
    ) -> None:
        self.folder, self.kind, self.videos, self.sizes, self.lines = folder, kind, videos, sizes, lines
        self.work = folder / WORK_NAME
        self.is_complete = False  # known once `begin` has looked
        self.names: dict[str, str] = {}  # those of the folder's version that differ
        self.identity: dict[str, Any] = {
            "format": FORMAT,
            "format_version": _FORMAT_VERSION,
            "files": kind,
            "model": model,
            "settings": settings,
            "source": digest,
        }

    def begin(self) -> list[int]:
        """Look at what is there, and whether it is complete; returns the numbers of the videos that are missing.

        Raises:
            InferenceError: It belongs to another job.
        """
        for left in (*self.work.glob(f"{_PARTIAL}*"), *self.work.glob(f".{_PARTIAL}*")):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        finished = _read_json(self.folder / MANIFEST_NAME)
        started = _read_json(self.work / _JOB_NAME)
        before = (started or finished or {}).get("identity")
        if before is not None:
            self._compare(before, (started or {}).get("lines"))
            if before.get("format_version") == 1:
                self.identity, self.names = before, _OLD_NAMES
        self.is_complete = finished is not None and bool(finished.get("complete")) and self._all_files(finished)
        if self.is_complete:
            return []
        return [number for number in range(len(self.videos)) if not self._is_whole(number)]

    def claim(self, pairing: list[dict[str, Any]]) -> None:
        """Write down whose folder it is from now on, and who got whose audio, if it was dealt out.

        Raises:
            InferenceError: An earlier run of the job dealt it out otherwise.
        """
        path = self.folder / _PAIRING_NAME
        if not self.is_claimed():
            job = {"identity": self.identity, "lines": self.lines}
            write_bytes(self.work / _JOB_NAME, json.dumps(job).encode(), workplace=self.work)
        if not pairing:
            return
        text = json.dumps([self._named(row) for row in pairing], indent=0, ensure_ascii=False) + "\n"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise InferenceError(
                f"{self.folder}: the videos have other lengths than when this was begun, so their audio would be "
                "dealt out otherwise; name another folder, or delete this one."
            )
        write_bytes(path, text.encode(), workplace=self.work)

    def is_claimed(self) -> bool:
        """Whether a run of this job has begun to write."""
        return (self.work / _JOB_NAME).is_file()

    def add(self, number: int, rows: Iterator[WindowRow]) -> None:
        """Write the rows of a video, and the note that says so; nothing of it stays if the rows end in an error."""
        columns = self._named(_TIMING_COLUMNS)
        part: _Part
        with writing(self._part(number)):
            if self.kind == "npy":
                part = _NpyPart(self.work, number, self.sizes, self._part(number))
            else:
                part = _ParquetPart(self.work, number, self.sizes, self._part(number), columns)
        try:
            for row in rows:
                with writing(part.place, partial=part.partial):
                    part.add(WindowRow(row.vectors, self._named(row.facts)))
            with writing(part.place, partial=part.partial):
                count = part.finish()
        except BaseException:
            part.abandon()
            raise
        write_bytes(self._note(number), json.dumps({"rows": count}).encode(), workplace=self.work)

    def finish(self, failed: dict[str, str], facts: dict[str, Any]) -> int:
        """Join what is there and write the manifest.

        Args:
            failed: Name of each video that gave no rows -> why.
            facts: What else the manifest says.

        Returns:
            The number of rows; with none, nothing is written.
        """
        done = {
            number: int((_read_json(self._note(number)) or {})["rows"])
            for number in range(len(self.videos))
            if self._is_whole(number)
        }
        if not done:
            return 0
        # While files are exchanged no manifest vouches for them.
        (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
        total = sum(done.values())
        if self.kind == "npy":
            self._join_npy(list(done), total)
        manifest = {
            "identity": self.identity,
            "complete": not failed,
            "rows": total,
            "features": self.sizes,
            "videos": self._entries(done),
            "failed": failed,
            **facts,
        }
        text = json.dumps(self._named(manifest), indent=1, ensure_ascii=False) + "\n"
        write_bytes(self.folder / MANIFEST_NAME, text.encode(), workplace=self.work)
        return total

    def leave(self) -> None:
        """Remove what only a further run would need, and the folder itself if there is nothing else in it."""
        shutil.rmtree(self.work, ignore_errors=True)
        if not (self.folder / MANIFEST_NAME).exists():
            (self.folder / _PAIRING_NAME).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def rows(self) -> int:
        """Rows of a folder in which nothing is missing."""
        return int((_read_json(self.folder / MANIFEST_NAME) or {}).get("rows", 0))

    def _named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values under the names of the folder's version."""
        return {self.names.get(name, name): value for name, value in values.items()}

    def _compare(self, before: dict[str, Any], lines: list[str] | None) -> None:
        old, new = _comparable(before.get("settings", {})), _comparable(self.identity["settings"])
        if "precision" not in old:  # an earlier version ran PyTorch; the model's checksum tells in which precision
            old |= {"backend": "torch", "precision": new["precision"]}
        changed = [key for key in new if old.get(key) != new[key]]
        if before.get("files") != self.kind:
            what = f"is in the format {before.get('files')}, not {self.kind}"
        elif changed:
            key = changed[0]
            shown = [", ".join(value) if isinstance(value, list) else value for value in (old.get(key), new[key])]
            what = f"was begun with {key}={shown[0]}, now it is {shown[1]}"
        elif before.get("model") != self.identity["model"]:
            what = "holds the features of another model (other weights, configuration or processor)"
        elif before.get("source") != self.identity["source"]:
            told = describe_difference(lines, self.lines) if lines else "other files, or files of other sizes"
            what = f"holds the features of another list of videos ({told})"
        elif before.get("format_version") not in (1, _FORMAT_VERSION):
            what = f"is in version {before.get('format_version')} of the format, this writes {_FORMAT_VERSION}"
        else:
            return
        raise InferenceError(f"{self.folder}: {what}; name another folder, or delete this one.")

    def _all_files(self, manifest: dict[str, Any]) -> bool:
        if self.kind == "npy":
            names = [*(f"{name}.npy" for name in self.sizes), _TABLE_NAME]
        else:
            names = [video["part"] for video in manifest[self.names.get("videos", "videos")]]
        return all((self.folder / name).is_file() for name in names)

    def _is_whole(self, number: int) -> bool:
        return self._note(number).is_file() and self._part(number).exists()

    def _part(self, number: int) -> Path:
        return _part_folder(self.work, number) if self.kind == "npy" else self.folder / _parquet_name(number)

    def _entries(self, done: dict[int, int]) -> list[dict[str, Any]]:
        entries, first = [], 0
        for number, rows in done.items():
            video = self.videos[number]
            entry: dict[str, Any] = {"id": video.id, "file": video.name, "rows": rows}
            entry |= {"first_row": first} if self.kind == "npy" else {"part": _parquet_name(number)}
            entries.append(entry)
            first += rows
        return entries

    def _note(self, number: int) -> Path:
        return self.work / f"{_part_folder(self.work, number).name}.json"

    def _join_npy(self, numbers: Sequence[int], rows: int) -> None:
        """Make `FEATURE.npy`, `(rows, length)` float32, and `timing.csv` of the parts, in their order."""
        for name, size in self.sizes.items():
            path, length = self.folder / f"{name}.npy", rows * size * 4
            with whole_file(path, workplace=self.work, size=length) as partial, open(partial, "wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (rows, size)}
                np.lib.format.write_array_header_1_0(file, header)
                for number in numbers:
                    with open(_part_folder(self.work, number) / f"{name}.f32", "rb") as part:
                        shutil.copyfileobj(part, file, 1 << 20)
        columns = self._named(_TIMING_COLUMNS)
        with (
            whole_file(self.folder / _TABLE_NAME, workplace=self.work) as partial,
            open(partial, "w", encoding="utf-8", newline="") as table,
        ):
            writer = csv.writer(table)
            writer.writerow(["row", *columns])
            row = 0
            for number in numbers:
                with open(_part_folder(self.work, number) / "timing.jsonl", encoding="utf-8") as lines:
                    for facts in map(parse_json, lines):
                        writer.writerow([row, *(_cell(facts[name]) for name in columns)])
                        row += 1


class _Part(ABC):
    """The rows of one video on their way to the disk.

    Args:
        work: Folder for what is not finished.
        number: Number of the video.
        sizes: Feature name -> length of its vectors.
        place: What it becomes.
    """

    def __init__(self, work: Path, number: int, sizes: Mapping[str, int], place: Path) -> None:
        self.work, self.number, self.sizes, self.place = work, number, dict(sizes), place
        self.rows = 0
        self._waiting: list[WindowRow] = []
        self.partial = work / f"{_PARTIAL}{number:06d}-{uuid.uuid4().hex}"

    def add(self, row: WindowRow) -> None:
        """Take a row."""
        self._waiting.append(row)
        if len(self._waiting) >= _ROWS_AT_A_TIME:
            self._flush()

    def finish(self) -> int:
        """Write the rest and give the part its name; returns the number of rows."""
        self._flush()
        self._close()
        return self.rows

    @abstractmethod
    def abandon(self) -> None:
        """Remove what is written."""

    def _flush(self) -> None:
        if self._waiting:
            self._write(self._waiting)
            self.rows += len(self._waiting)
            self._waiting = []

    @abstractmethod
    def _write(self, rows: Sequence[WindowRow]) -> None:
        """Write rows behind the others."""

    @abstractmethod
    def _close(self) -> None:
        """Make the part whole under its final name."""


class _NpyPart(_Part):
    """A folder of raw float32 numbers, one file per feature, and the timing as JSON lines, to be joined."""

    def __init__(self, work: Path, number: int, sizes: Mapping[str, int], place: Path) -> None:
        super().__init__(work, number, sizes, place)
        self.partial.mkdir()
        # Open until the part is whole or abandoned.
        self._files: dict[str, Any] = {name: open(self.partial / f"{name}.f32", "wb") for name in sizes}  # noqa: SIM115
        self._timing: Any = open(self.partial / "timing.jsonl", "w", encoding="utf-8")  # noqa: SIM115

    def _write(self, rows: Sequence[WindowRow]) -> None:
        for name, file in self._files.items():
            file.write(np.stack([row.vectors[name] for row in rows]).astype("<f4").tobytes())
        for row in rows:
            self._timing.write(json.dumps(row.facts) + "\n")

    def _close(self) -> None:
        for file in (*self._files.values(), self._timing):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        if self.place.exists():  # a kill came between this and the note
            shutil.rmtree(self.place)
        os.replace(self.partial, self.place)

    def abandon(self) -> None:
        """Remove what is written."""
        for file in (*self._files.values(), self._timing):
            with suppress(OSError):  # a full disk takes not even what is still in memory
                file.close()
        shutil.rmtree(self.partial, ignore_errors=True)


class _ParquetPart(_Part):
    """One Parquet file: the timing columns, and a list of numbers per feature."""

    def __init__(
        self, work: Path, number: int, sizes: Mapping[str, int], place: Path, columns: Mapping[str, str]
    ) -> None:
        super().__init__(work, number, sizes, place)
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {
            "string": pa.string(),
            "int64": pa.int64(),
            "int32": pa.int32(),
            "bool": pa.bool_(),
            "float32": pa.float32(),
            "float64": pa.float64(),
            "list<float64>": pa.list_(pa.float64()),
        }
        fields = [pa.field(name, kinds[kind]) for name, kind in columns.items()]
        fields += [pa.field(name, pa.list_(pa.float32(), size)) for name, size in sizes.items()]
        self.columns, self.schema = list(columns), pa.schema(fields)
        self._writer = pq.ParquetWriter(self.partial, self.schema, compression="zstd")

    def _write(self, rows: Sequence[WindowRow]) -> None:
        import pyarrow as pa

        columns: list[Any] = [
            pa.array([row.facts[name] for row in rows], self.schema.field(name).type) for name in self.columns
        ]
        for name, size in self.sizes.items():
            values = pa.array(np.concatenate([row.vectors[name] for row in rows]).astype(np.float32))
            columns.append(pa.FixedSizeListArray.from_arrays(values, size))
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self.schema))

    def _close(self) -> None:
        self._writer.close()
        with open(self.partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.partial, self.place)

    def abandon(self) -> None:
        """Remove what is written."""
        with suppress(OSError):
            self._writer.close()
        self.partial.unlink(missing_ok=True)


def check_folder(out: StrPath) -> Path:
    """The folder to write to; refuses what is not one, or holds something else."""
    if re.match(r"\w[\w.+-]+:/", os.fspath(out)):
        raise InferenceError(f"{os.fspath(out)}: features are written to a folder here; upload the folder afterwards.")
    folder = Path(out).absolute()
    if folder.exists() and not folder.is_dir():
        raise InferenceError(f"{folder}: is a file; name a new or empty folder.")
    manifest = _read_json(folder / MANIFEST_NAME) or {}
    ours = (folder / WORK_NAME).is_dir() or manifest.get("identity", {}).get("format") == FORMAT
    if folder.is_dir() and not ours and any(folder.iterdir()):
        raise InferenceError(f"{folder}: holds other files; name a new or empty folder.")
    return folder


def nothing_came(errors: Mapping[str, Exception]) -> InferenceError:
    """The error that says why there is not one row, with the remedies of the first video's error."""
    first = next(iter(errors.values()))
    message, hints = (first.message, first.hints) if isinstance(first, CavMaeSyncError) else (str(first), ())
    if len(errors) > 1:
        message = f"None of {len(errors)} videos could be used. The first: {message}"
    return InferenceError(message, hint=hints)


def _part_folder(work: Path, number: int) -> Path:
    """Where the finished rows of a video lie until all videos are joined."""
    return work / f"part-{number:06d}"


def _parquet_name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings under their present names, features by their names alone: their descriptions are for readers."""
    new_names = {old: new for new, old in _OLD_NAMES.items()}
    renamed = {new_names.get(name, name): value for name, value in settings.items()}
    return renamed | {"features": list(renamed.get("features", ()))}


def _cell(value: Any) -> str:
    """A fact as the cell of a CSV table: microseconds, `;` between the times of a list, nothing for none."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ";".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return str(value)


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, `None` where there is none that can be read."""
    with suppress(OSError, ValueError):
        value = parse_json(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else None
    return None
