# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How do rows of features become files: numpy arrays with a timing table, or Parquet, whole or not at all?

Rows are written film by film as they are made, under a temporary name that the finished part gives up, so that memory
does not grow with a film's length and a kill costs no more than the film at hand.
"""

import csv
import json
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .windows import WindowRow

__all__ = [
    "PARTIAL",
    "TIMING_COLUMNS",
    "FeaturePart",
    "NpyPart",
    "ParquetPart",
    "join_npy",
    "npy_names",
    "open_part",
    "parquet_name",
    "part_folder",
    "table_row",
]

# What is still being written is called like this.
PARTIAL = "partial-"
# The columns of a timing table, in order, with Arrow's names of their types.
TIMING_COLUMNS: dict[str, str] = {
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
    "sound_coverage": "float32",
    "sound_start": "float64",
    "sound_end": "float64",
    "similarity": "float32",
}
_ROWS_AT_A_TIME = 256
_TABLE_NAME = "timing.csv"


class FeaturePart(ABC):
    """The rows of one film on their way to the disk.

    Args:
        work: Folder for what is not finished.
        number: Number of the film.
        sizes: Feature name -> length of its vectors.
    """

    def __init__(self, work: Path, number: int, sizes: Mapping[str, int]) -> None:
        self.work, self.number, self.sizes = work, number, dict(sizes)
        self.rows = 0
        self._waiting: list[WindowRow] = []
        self.partial = work / f"{PARTIAL}{number:06d}-{uuid.uuid4().hex}"

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


class NpyPart(FeaturePart):
    """A folder of raw float32 numbers, one file per feature, and the timing as JSON lines; see `join_npy`."""

    def __init__(self, work: Path, number: int, sizes: Mapping[str, int]) -> None:
        super().__init__(work, number, sizes)
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
        place = part_folder(self.work, self.number)
        if place.exists():  # a kill came between this and the note
            shutil.rmtree(place)
        os.replace(self.partial, place)

    def abandon(self) -> None:
        """Remove what is written."""
        for file in (*self._files.values(), self._timing):
            file.close()
        shutil.rmtree(self.partial, ignore_errors=True)


class ParquetPart(FeaturePart):
    """One Parquet file, `part-NUMBER.parquet`: the timing columns, and a list of numbers per feature."""

    def __init__(self, work: Path, number: int, sizes: Mapping[str, int], folder: Path) -> None:
        super().__init__(work, number, sizes)
        import pyarrow.parquet as pq

        self.place = folder / parquet_name(number)
        self.schema = _schema(sizes)
        self._writer = pq.ParquetWriter(self.partial, self.schema, compression="zstd")

    def _write(self, rows: Sequence[WindowRow]) -> None:
        import pyarrow as pa

        columns: list[Any] = [
            pa.array([row.facts[name] for row in rows], self.schema.field(name).type) for name in TIMING_COLUMNS
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
        self._writer.close()
        self.partial.unlink(missing_ok=True)


def open_part(kind: str, folder: Path, work: Path, number: int, sizes: Mapping[str, int]) -> FeaturePart:
    """A part of the format `"npy"` or `"parquet"`."""
    return NpyPart(work, number, sizes) if kind == "npy" else ParquetPart(work, number, sizes, folder)


def part_folder(work: Path, number: int) -> Path:
    """Where the finished rows of a film lie until all films are joined."""
    return work / f"part-{number:06d}"


def parquet_name(number: int) -> str:
    """Name of the Parquet file of a film."""
    return f"part-{number:06d}.parquet"


def npy_names(sizes: Mapping[str, int]) -> list[str]:
    """Names of the files that `join_npy` makes."""
    return [*(f"{name}.npy" for name in sizes), _TABLE_NAME]


def join_npy(folder: Path, work: Path, numbers: Sequence[int], rows: int, sizes: Mapping[str, int]) -> None:
    """Make `FEATURE.npy`, `(rows, length)` float32, and `timing.csv` of the parts, in their order.

    Args:
        folder: Where the files go.
        work: Where the parts lie.
        numbers: Numbers of the films.
        rows: Rows of all of them.
        sizes: Feature name -> length of its vectors.
    """
    for name, size in sizes.items():
        partial = work / f"{PARTIAL}{uuid.uuid4().hex}"
        with open(partial, "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, size)}
            np.lib.format.write_array_header_1_0(file, header)
            for number in numbers:
                with open(part_folder(work, number) / f"{name}.f32", "rb") as part:
                    shutil.copyfileobj(part, file, 1 << 20)
        os.replace(partial, folder / f"{name}.npy")
    partial = work / f"{PARTIAL}{uuid.uuid4().hex}"
    with open(partial, "w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["row", *TIMING_COLUMNS])
        for row, facts in enumerate(_timing(work, numbers)):
            writer.writerow([row, *table_row(facts)])
    os.replace(partial, folder / _TABLE_NAME)


def _timing(work: Path, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    for number in numbers:
        with open(part_folder(work, number) / "timing.jsonl", encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def table_row(facts: Mapping[str, Any]) -> list[str]:
    """A row's facts as the cells of a CSV table: microseconds, `;` between the times of a list, nothing for none."""
    return [_cell(facts[name]) for name in TIMING_COLUMNS]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ";".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return str(value)


def _schema(sizes: Mapping[str, int]) -> Any:
    import pyarrow as pa

    kinds = {
        "string": pa.string(),
        "int64": pa.int64(),
        "int32": pa.int32(),
        "bool": pa.bool_(),
        "float32": pa.float32(),
        "float64": pa.float64(),
        "list<float64>": pa.list_(pa.float64()),
    }
    fields = [pa.field(name, kinds[kind]) for name, kind in TIMING_COLUMNS.items()]
    return pa.schema(fields + [pa.field(name, pa.list_(pa.float32(), size)) for name, size in sizes.items()])
