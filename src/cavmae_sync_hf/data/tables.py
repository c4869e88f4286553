# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Lists of clips: their formats, what their columns and rows mean, and their labels."""

import csv
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from ..files import StrPath, parse_json
from ..model.errors_cavmae_sync import DataError
from ..names import hub_name
from ..provenance import install_line
from .captions import TimedText, first_of, merge_texts, texts_of_cell
from .clock import as_seconds, cell_seconds

MEDIA_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".asf")
    + (".ogv", ".3gp", ".mxf")
)
# Of files with audio alone.
AUDIO_SUFFIXES = frozenset(
    (".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".mka", ".aif", ".aiff", ".wma")
)
LIST_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
# What columns are called, the first that is there counts.
_COLUMNS = {
    "path": ("path", "video", "file", "file_name", "filename", "filepath", "video_file", "url", "source", "mp4"),
    "id": ("id", "video_id", "clip_id", "youtube_id", "ytid", "key", "uid"),
    "start": ("start", "start_time", "start_seconds", "start_sec", "begin"),
    "end": ("end", "end_time", "end_seconds", "end_sec", "stop"),
    "labels": ("labels", "label", "positive_labels", "class", "category", "classes", "word"),
    "names": ("label_names",),
    "audio": ("audio", "wav", "audio_path", "wav_path"),
    "frames": ("video_path",),
    "split": ("split", "subset", "part"),
}
_VGGSOUND_SECONDS = _AUDIOCAPS_SECONDS = 10.0
# The column that only AudioCaps' tables have.
_AUDIOCAPS_ID = "audiocap_id"
# What stands for a number; tables whose column has empty cells come with "1.0" for 1.
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
_WITH_NAMES = "give the label names in order (option `labels`)"


def is_data_set_name(source: str) -> bool:
    """Whether a source that is no place on this machine may be a data set of the Hub: `owner/name`, and no file."""
    return hub_name(source) and not source.lower().endswith((*LIST_SUFFIXES, *MEDIA_SUFFIXES, *AUDIO_SUFFIXES))


@dataclass
class Entry:
    """One row of a list.

    Attributes:
        id: Name of the clip, or of the video it is cut from.
        path: Its file as the list has it.
        start: Seconds.
        end: Seconds.
        labels: Names or numbers.
        label_names: Names of `labels` where the list gives both.
        audio: File of its audio.
        frames: Pattern of its images, `{}` for the number.
        place: Where it stands in the list, for messages.
        captions: What is said of it, in the time of `start` and `end`.
    """

    id: str | None = None
    path: str | None = None
    start: float | None = None
    end: float | None = None
    labels: list[Any] = field(default_factory=list)
    label_names: list[str] = field(default_factory=list)
    audio: str | None = None
    frames: str | None = None
    place: str = ""
    captions: tuple[TimedText, ...] = ()


class Vocabulary:
    """Label names in order, and other words for them.

    Args:
        names: Name of label 0, 1, ...
        aliases: Further words, such as AudioSet's mids, to numbers.
    """

    def __init__(self, names: Sequence[str], aliases: Mapping[str, int] | None = None) -> None:
        self.names = list(names)
        self.numbers = {name: number for number, name in reversed(list(enumerate(self.names)))} | dict(aliases or {})

    def __contains__(self, word: object) -> bool:
        return word in self.numbers

    def number(self, label: Any) -> int:
        """The number of a label that is a name, an alias or a number."""
        text = str(label).strip()
        if text in self.numbers:
            return self.numbers[text]
        number = _as_number(label)
        if number is not None and number < len(self.names):
            return number
        raise DataError(
            f"The label {label!r} is not among the {len(self.names)} label names; add it or correct the list."
        )


def read_vocabulary(labels: StrPath | Sequence[str] | Vocabulary | None) -> Vocabulary | None:
    """Label names from a sequence or a file: text lines, a JSON list or mapping, or a CSV of index, mid, display_name.

    Raises:
        DataError: The file cannot be understood.
    """
    if labels is None or isinstance(labels, Vocabulary):
        return labels
    if not isinstance(labels, str | os.PathLike):
        return _each_once(Vocabulary([str(name) for name in labels]), "the label names")
    path = os.fspath(labels)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the label names cannot be read ({error}).") from error
    try:
        return _each_once(_parse_vocabulary(text, path), path)
    except DataError:
        raise
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: the label names cannot be understood ({error}); correct the file.") from error


def _each_once(vocabulary: Vocabulary, name: str) -> Vocabulary:
    doubled = [word for word, count in Counter(vocabulary.names).items() if count > 1]
    if doubled:
        raise DataError(f"{name}: holds {', '.join(map(repr, doubled[:5]))} more than once; give each label one name.")
    return vocabulary


def _parse_vocabulary(text: str, path: str) -> Vocabulary:
    if path.lower().endswith(".json"):
        value = parse_json(text)
        if isinstance(value, list):
            return Vocabulary([str(name) for name in value])
        if isinstance(value, dict) and value:
            if all(isinstance(number, int) and not isinstance(number, bool) for number in value.values()):
                return Vocabulary(_in_order(value, path))
            if all(str(number).isdigit() for number in value):
                return Vocabulary(_in_order({str(name): int(number) for number, name in value.items()}, path))
        raise DataError(f"{path}: label names are a JSON list, or a mapping between names and numbers.")
    if path.lower().endswith(".csv"):
        rows = list(csv.DictReader(io.StringIO(text)))
        if rows and {"index", "display_name"} <= set(rows[0]):
            names = _in_order({row["display_name"]: int(row["index"]) for row in rows}, path)
            return Vocabulary(names, {row["mid"]: int(row["index"]) for row in rows if row.get("mid")})
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path}: holds no label names.")
    return Vocabulary(names)


def _in_order(numbers: Mapping[str, int], path: str) -> list[str]:
    names = sorted(numbers, key=lambda name: numbers[name])
    if [numbers[name] for name in names] != list(range(len(names))):
        raise DataError(f"{path}: the label numbers are not 0 to {len(names) - 1}, each once.")
    return names


def number_labels(
    rows: Sequence[Sequence[Any]], vocabulary: Vocabulary | None, places: Sequence[str] | None = None
) -> tuple[list[tuple[int, ...]], list[str] | None]:
    """Label numbers of all clips.

    Args:
        rows: Labels per clip, as the list has them.
        vocabulary: Names in order, `None` to number the names found, in alphabetical order (numbers stay numbers).
        places: Where the list has each clip, for messages.

    Returns:
        Ascending label numbers per clip, each once, and the names of the numbers (`None` where there are none).

    Raises:
        DataError: A label is not in the vocabulary; without one, labels are numbers and names mixed, or are neither
            names nor whole numbers from 0.
    """
    places = places or [f"the list: row {number + 1}" for number in range(len(rows))]
    if vocabulary is not None:
        numbers = []
        for row, place in zip(rows, places, strict=True):
            try:
                numbers.append(tuple(sorted({vocabulary.number(label) for label in _split_text(row, vocabulary)})))
            except DataError as error:
                raise DataError(f"{place}: {error}") from error
        return numbers, vocabulary.names
    rows = [_split_text(row, None) for row in rows]
    kinds: dict[bool, tuple[str, Any]] = {}
    for row, place in zip(rows, places, strict=True):
        for label in row:
            is_name = isinstance(label, str) and not _NUMBER.fullmatch(label)
            if not is_name and _as_number(label) is None:
                raise DataError(
                    f"{place}: has the label {label!r}; labels are names or whole numbers from 0. Correct it, or "
                    f"{_WITH_NAMES}."
                )
            kinds.setdefault(is_name, (place, label))
    if len(kinds) == 2:
        (place, label), (other, other_label) = kinds.values()
        raise DataError(
            f"{other}: has the label {other_label!r} where {place} has {label!r}; names and numbers are mixed: use "
            f"one kind, or {_WITH_NAMES}."
        )
    if True not in kinds:
        return [tuple(sorted({_as_number(label) or 0 for label in row})) for row in rows], None
    return number_labels(rows, Vocabulary(sorted({label for row in rows for label in row})), places)


def _as_number(label: Any) -> int | None:
    """A label that is a whole number from 0, however it is written; `None` for any other."""
    if isinstance(label, str):
        text = label.strip()
        label = float(text) if _NUMBER.fullmatch(text) else None
        # Above 2 ** 53 a float is no longer that number; no set has as many labels.
    if isinstance(label, bool) or not isinstance(label, int | float) or not 0 <= label < 2**53:
        return None
    return int(label) if label == int(label) else None


def observed_vocabulary(entries: Sequence[Entry]) -> Vocabulary | None:
    """The names that a list gives beside its label numbers; a number that never occurs is its own name."""
    names = {number: name for entry in entries for number, name in zip(entry.labels, entry.label_names, strict=False)}
    return Vocabulary([names.get(number, str(number)) for number in range(max(names) + 1)]) if names else None


def _split_text(labels: Sequence[Any], vocabulary: Vocabulary | None) -> list[Any]:
    """Labels of one clip, where a text may hold several."""
    parts: list[Any] = []
    for label in labels:
        if not isinstance(label, str) or (vocabulary is not None and label.strip() in vocabulary):
            parts.append(label.strip() if isinstance(label, str) else label)
            continue
        separator = next((mark for mark in (";", "|") if mark in label), None)
        pieces = [piece.strip() for piece in label.split(separator)] if separator else [label.strip()]
        # Names may hold commas ("gunshot, gunfire"); ids and numbers never do.
        listed = [piece.strip() for piece in label.split(",")]
        if separator is None and len(listed) > 1:
            is_code = [
                piece.startswith(("/m/", "/t/", "/g/"))
                or _NUMBER.fullmatch(piece) is not None
                or (vocabulary is not None and piece in vocabulary)
                for piece in listed
            ]
            pieces = listed if all(is_code) else pieces
        parts += [piece for piece in pieces if piece]
    return parts


def read_list(system: Any, path: str, split: str | None = None, caption_columns: Sequence[str] = ()) -> list[Entry]:
    """Read a list of clips.

    Args:
        system: fsspec file system.
        path: Path of the list on it.
        split: Keep the rows of this split only.
        caption_columns: As in `entries_from_rows`.

    Raises:
        DataError: The list cannot be understood.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".parquet":
        known = [*(name for names in _COLUMNS.values() for name in names), _AUDIOCAPS_ID, *caption_columns]
        return entries_from_rows(parquet_rows(system, path, known), path, split, caption_columns)
    try:
        with system.open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
        if suffix in (".csv", ".tsv"):
            return _csv_entries(text, path, "\t" if suffix == ".tsv" else ",", split, caption_columns)
        if suffix == ".json":
            value = parse_json(text)
            if isinstance(value, dict) and isinstance(value.get("data"), list):
                value = value["data"]
            elif isinstance(value, dict) and isinstance(value.get("sentences"), list):
                value = _msrvtt_rows(value)
            if not isinstance(value, list):
                raise DataError(f'{path}: a JSON list of clips is a list, or a mapping with the key "data".')
        else:
            value = [parse_json(line) for line in text.split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error}).") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not valid JSON ({error}).") from error
    rows = [row if isinstance(row, dict) else {"path": row} for row in value]
    return entries_from_rows(rows, path, split, caption_columns)


def _msrvtt_rows(value: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per sentence of MSR-VTT's own file, with the split of its video, whose file is cut already."""
    videos = [video for video in value.get("videos") or () if isinstance(video, dict)]
    splits = {str(video.get("video_id")): video.get("split") for video in videos}
    return [
        {"id": row.get("video_id"), "split": splits.get(str(row.get("video_id")))} | row
        for row in value["sentences"]
        if isinstance(row, dict)
    ]


def parquet_rows(system: Any, path: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a Parquet file.

    Args:
        system: fsspec file system.
        path: Path of the file on it.
        columns: Names of the columns that are read, where they are there, in lower case.

    Raises:
        DataError: The file is damaged, or pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow: {install_line('parquet')}") from error
    known = {name.lower() for name in columns}
    try:
        with system.open(path, "rb") as file:
            table = pq.ParquetFile(file)
            wanted = [name for name in table.schema_arrow.names if name.lower() in known]
            return table.read(columns=wanted).to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"{path}: is not a whole Parquet file ({error}); fetch or write it again.") from error


def csv_rows(text: str, path: str, delimiter: str) -> tuple[list[list[str]], list[str]]:
    """Rows of a CSV file that are not empty, as lists, and the lines of comments before the first.

    Raises:
        DataError: It cannot be read, or has no rows.
    """
    lines = io.StringIO(text, newline="").readlines()
    # Comments stand before the first row only: further down a row's first value may begin with "#".
    first = next((number for number, line in enumerate(lines) if line.strip() and line[0] != "#"), len(lines))
    comments = lines[:first]
    try:
        table = csv.reader(lines[first:], delimiter=delimiter, skipinitialspace=True)
        rows = [row for row in table if any(value.strip() for value in row)]
    except csv.Error as error:
        raise DataError(f"{path}: is not a table that can be read ({error}); correct it.") from error
    if not rows:
        raise DataError(f"{path}: holds no rows.")
    return rows, comments


def named_rows(rows: Sequence[Sequence[str]], path: str) -> list[dict[str, str]]:
    """Rows by the names in the first, in lower case.

    Raises:
        DataError: A row is shorter or longer.
    """
    header = [name.strip().lower() for name in rows[0]]
    short = next((number for number, row in enumerate(rows) if len(row) != len(header)), None)
    if short is not None:
        raise DataError(f"{path}: row {short + 1} has {len(rows[short])} values for {len(header)} columns.")
    return [dict(zip(header, row, strict=True)) for row in rows[1:]]


def _csv_entries(
    text: str, path: str, delimiter: str, split: str | None, caption_columns: Sequence[str]
) -> list[Entry]:
    """A table with a header, or AudioSet's or VGGSound's without one."""
    rows, comments = csv_rows(text, path, delimiter)
    header = [name.strip().lower() for name in rows[0]]
    first_row = rows[0]
    is_audioset = (
        any("ytid" in line.lower() for line in comments)
        or header[:1] == ["ytid"]
        or (
            len(first_row) == 4
            and all(as_seconds(value) is not None for value in first_row[1:3])
            and first_row[3].startswith(("/m/", "/t/"))
        )
    )
    if is_audioset:
        if split is not None:
            raise DataError(f"{path}: a list of AudioSet has no splits; leave the option `split` out.")
        named = [dict(zip(("ytid", "start", "end", "labels"), row, strict=False)) for row in rows if row[0] != "YTID"]
        return entries_from_rows(named, path, None, caption_columns)
    if len(first_row) == 4 and first_row[1].strip().isdigit() and first_row[3].strip() in ("train", "test"):
        # VGGSound: id, start, label, split.
        named = [dict(zip(("id", "start", "label", "split"), row, strict=False)) for row in rows]
        for entry in named:
            entry["end"] = str(float(entry["start"]) + _VGGSOUND_SECONDS)
        return entries_from_rows(named, path, split, caption_columns)
    known = {name for role in ("path", "id", "frames") for name in _COLUMNS[role]}
    if known & set(header):
        return entries_from_rows(named_rows(rows, path), path, split, caption_columns)
    if caption_columns:
        raise DataError(
            f"{path}: has no column {caption_columns[0]!r}; name the columns in its first row, such as "
            f"path,{caption_columns[0]}."
        )
    if len(header) <= 2 and os.path.splitext(first_row[0])[1]:
        return entries_from_rows([dict(zip(("path", "label"), row, strict=False)) for row in rows], path, split)
    raise DataError(
        f"{path}: which column is the file? It begins with {', '.join(first_row[:6])}; name the columns in the first "
        "row, such as path,start,end,labels."
    )


def entries_from_rows(
    rows: Iterable[Mapping[str, Any]], name: str, split: str | None, caption_columns: Sequence[str] = ()
) -> list[Entry]:
    """Entries of rows with named columns.

    Args:
        rows: The rows.
        name: The list's name, for messages.
        split: Keep the rows of this split only; needs such a column.
        caption_columns: Columns of captions, see `texts_of_cell`. With them several rows may be of one clip.

    Raises:
        DataError: A row names no clip, or holds a time that is none; no row has a column of captions.
    """
    entries = []
    caption_names = [column.lower() for column in caption_columns]
    columns: dict[str, None] = {}
    for number, given in enumerate(rows):
        row = {str(key).lower(): value for key, value in given.items()}
        columns |= dict.fromkeys(row)
        values = {role: first_of(row, names) for role, names in _COLUMNS.items()}
        if split is not None:
            if values["split"] is None:
                raise DataError(f"{name}: row {number + 1} has no split; leave the option `split` out.")
            if str(values["split"]) != split:
                continue
        entry = Entry(
            id=_text(values["id"]),
            path=_text(values["path"]),
            start=cell_seconds(values["start"], f"{name}: row {number + 1} has the start"),
            end=cell_seconds(values["end"], f"{name}: row {number + 1} has the end"),
            labels=_labels(values["labels"] if values["labels"] is not None else values["names"]),
            audio=_text(values["audio"]),
            place=f"{name}: row {number + 1}",
            captions=merge_texts(
                text
                for column in caption_names
                for text in texts_of_cell(row.get(column), f"{name}: row {number + 1}")
            ),
        )
        if _AUDIOCAPS_ID in row and entry.start is not None and entry.end is None:
            entry.end = entry.start + _AUDIOCAPS_SECONDS  # AudioCaps gives the start alone
        names = _labels(values["names"])
        if len(names) == len(entry.labels) and all(type(label) is int for label in entry.labels):
            entry.label_names = [str(label) for label in names]
        # `video_path` is a video file, but in the published lists the folder of `frame_0/ID.jpg` and so on.
        folder = _text(values["frames"])
        if folder is not None and entry.path is None:
            # Not any suffix: folders are called "frames_v1.0", too.
            if os.path.splitext(folder)[1].lower() in MEDIA_SUFFIXES or entry.id is None:
                entry.path = folder
            else:
                entry.frames = f"{folder.rstrip('/')}/frame_{{}}/{entry.id}.jpg"
        if entry.id is None and entry.path is None:
            raise DataError(f"{name}: row {number + 1} names no clip; it needs a path or an id, it has {sorted(row)}.")
        if entry.start is not None and entry.end is not None and not 0 <= entry.start < entry.end:
            raise DataError(
                f"{name}: row {number + 1} goes from {entry.start:g} s to {entry.end:g} s, which is empty."
            )
        entries.append(entry)
    if not entries:
        raise DataError(f"{name}: holds no rows" + (f" of the split {split!r}." if split is not None else "."))
    for column in caption_names:
        if column not in columns:
            raise DataError(f"{name}: has no column {column!r}; it has {', '.join(columns)}.")
    return _one_per_clip(entries) if caption_names else entries


def _one_per_clip(entries: Sequence[Entry]) -> list[Entry]:
    """Rows of one clip, which differ in their captions, as one entry with all of them."""
    clips: dict[tuple[Any, ...], Entry] = {}
    for entry in entries:
        known = clips.setdefault((entry.id, entry.path, entry.start, entry.end, entry.audio, entry.frames), entry)
        if known is not entry:
            known.captions = merge_texts([*known.captions, *entry.captions])
            known.labels += [label for label in entry.labels if label not in known.labels]
            known.label_names += [label for label in entry.label_names if label not in known.label_names]
    return list(clips.values())


def _text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("path")
    text = "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()
    return text or None


def _labels(value: Any) -> list[Any]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                return _labels(parse_json(text))
            except json.JSONDecodeError:
                return [text]
        return [text] if text else []
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return [label for part in value for label in _labels(part)]
    if isinstance(value, Integral | float) and not isinstance(value, bool):
        return [int(value) if math.isfinite(value) and value == int(value) else value]
    return [value]  # what is no label is refused where labels are numbered
