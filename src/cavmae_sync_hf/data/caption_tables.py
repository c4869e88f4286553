# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Tables of texts beside clips: rows of file, start, end and text, given to the clips that they are about."""

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec

from ..files import StrPath, parse_json
from ..model.errors_cavmae_sync import DataError, DataWarning
from ..names import nothing_at
from .captions import (
    END_NAMES,
    START_NAMES,
    TEXT_NAMES,
    TimedText,
    cut_texts,
    first_of,
    merge_texts,
    one_line,
    span_of,
)
from .tables import AUDIO_SUFFIXES, LIST_SUFFIXES, MEDIA_SUFFIXES, csv_rows, named_rows, parquet_rows

# What the column that says which clip or file a row is about is called.
CLIP_NAMES = (
    "clip_id",
    "file",
    "file_name",
    "filename",
    "filepath",
    "path",
    "video",
    "id",
    "video_id",
    "youtube_id",
    "ytid",
)
_MEDIA = MEDIA_SUFFIXES | AUDIO_SUFFIXES
# So many names are told as examples.
_EXAMPLES = 3


@dataclass(frozen=True)
class ClipName:
    """What a table may call a clip.

    Attributes:
        id: Its name in the set.
        source: Its file, relative to the source.
        path: Its file as it is opened.
        start: Where it begins in the file, in the time that the table is written in, seconds.
        end: Where it ends there.
    """

    id: str
    source: str = ""
    path: str = ""
    start: float | None = None
    end: float | None = None


def read_texts(path: StrPath) -> list[tuple[str, TimedText]]:
    """Rows of a table of texts: the name of the clip or file, and the text with its span.

    Args:
        path: CSV, TSV, JSON (lines) or Parquet file, or its address, with a column such as `clip_id` or `file`, one
            such as `text`, `caption` or `word`, and perhaps `start` and `end` in seconds.

    Raises:
        DataError: The table cannot be read, lacks a column, or a row has no text or wrong times.
    """
    address = os.fspath(path)
    rows = table_rows(address)
    columns = dict.fromkeys(name for row in rows for name in row)
    for what, names in (("the clip", CLIP_NAMES), ("the text", TEXT_NAMES)):
        if not any(name in columns for name in names):
            raise DataError(
                f"{address}: no column says {what}, it has {', '.join(columns)}; name it {names[0]!r} or {names[1]!r}."
            )
    found = []
    for number, row in enumerate(rows):
        place = f"{address}: row {number + 1}"
        name, text = one_line(first_of(row, CLIP_NAMES)), one_line(first_of(row, TEXT_NAMES))
        for what, value in (("name of a clip", name), ("text", text)):
            if not value:
                raise DataError(f"{place} has no {what}; fill it or take the row out.")
        span = span_of(first_of(row, START_NAMES), first_of(row, END_NAMES), place)
        found.append((name, TimedText(text, span)))
    if not found:
        raise DataError(f"{address}: holds no rows.")
    return found


def table_rows(address: str) -> list[dict[str, Any]]:
    suffix = os.path.splitext(address)[1].lower()
    if suffix not in LIST_SUFFIXES:
        raise DataError(f"{address}: a table of texts ends in {', '.join(LIST_SUFFIXES)}.")
    try:
        system, root = fsspec.url_to_fs(address if "://" in address else os.path.abspath(address))
        if suffix == ".parquet":
            return _lower(parquet_rows(system, root, [*CLIP_NAMES, *TEXT_NAMES, *START_NAMES, *END_NAMES]))
        with system.open(root, "rb") as file:
            text = file.read().decode("utf-8-sig")
        if suffix in (".csv", ".tsv"):
            rows, _ = csv_rows(text, address, "\t" if suffix == ".tsv" else ",")
            return list(named_rows(rows, address))
        value = (
            parse_json(text) if suffix == ".json" else [parse_json(line) for line in text.split("\n") if line.strip()]
        )
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(nothing_at(address, "file")) from error
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{address}: cannot be read ({error}); give a CSV, JSON or Parquet file in UTF-8.") from error
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise DataError(f"{address}: a JSON table of texts is a list of rows with names, such as file and text.")
    return _lower(value)


def _lower(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{str(name).lower(): value for name, value in row.items()} for row in rows]


def texts_of_clips(path: StrPath, clips: Sequence[ClipName]) -> list[tuple[TimedText, ...]]:
    """The texts of every clip out of a table, with spans in seconds from the clip's start.

    A row names a clip by its id, or its file by a path, with or without folders and suffix. Its times are those of the
    file; clips that are segments get what lies in them. A row without times is about every clip of its file.

    Args:
        path: See `read_texts`.
        clips: The clips.

    Raises:
        DataError: As `read_texts`; a row may be about several files; no row is about a clip.
    """
    rows = read_texts(path)
    finder = _Finder(clips)
    given: list[list[TimedText]] = [[] for _ in clips]
    unknown: dict[str, int] = {}
    for name, text in rows:
        numbers = finder.find(name, os.fspath(path))
        if not numbers:
            unknown[name] = unknown.get(name, 0) + 1
        for number in numbers:
            given[number].append(text)
    if len(unknown) and not any(given):
        raise DataError(
            f"{os.fspath(path)}: none of its {len(rows)} rows is about one of the {len(clips)} clips: it has "
            f"{examples(unknown)}, the clips are {examples(clip.id for clip in clips)}; write their ids or files."
        )
    if unknown:
        tell(
            f"{os.fspath(path)}: {sum(unknown.values())} of {len(rows)} texts are about no clip here, but about "
            f"{examples(unknown)}."
        )
    return [merge_texts(cut_texts(texts, clip.start, clip.end)) for texts, clip in zip(given, clips, strict=True)]


def captions_of_clips(
    clips: Sequence[ClipName],
    given: Sequence[Sequence[TimedText]],
    columns: Sequence[str] = (),
    table: StrPath | None = None,
) -> list[tuple[TimedText, ...]]:
    """Captions that lie in each clip, those of its row in a list and those of a table; clips without are told.

    Args:
        clips: The clips.
        given: Captions of their rows, in the times of the files.
        columns: Where those stood.
        table: See `texts_of_clips`.

    Raises:
        DataError: No clip has a caption; as `texts_of_clips`.
    """
    captions = [cut_texts(texts, clip.start, clip.end) for texts, clip in zip(given, clips, strict=True)]
    if table is not None:
        more = texts_of_clips(table, clips)
        captions = [merge_texts([*one, *other]) for one, other in zip(captions, more, strict=True)]
    if not any(captions):
        where = " or ".join([*map(repr, columns), *([os.fspath(table)] if table is not None else [])])
        raise DataError(
            f"None of the {len(clips)} clips has a caption in {where}; fill it, and check that times are those of the "
            "files, in seconds."
        )
    tell_of_clips_without([clip.id for clip in clips], captions)
    return captions


def tell_of_clips_without(clip_ids: Sequence[str], captions: Sequence[Sequence[Any]]) -> None:
    """Warn of clips without a caption."""
    without = [clip_id for clip_id, texts in zip(clip_ids, captions, strict=True) if not texts]
    if without:
        tell(f"{len(without)} of {len(captions)} clips have no caption: {examples(without)}.")


class _Finder:
    """Clips by what a table calls them."""

    def __init__(self, clips: Sequence[ClipName]) -> None:
        self.clips = clips
        self._exact: dict[str, list[int]] = defaultdict(list)
        self._last: dict[str, list[int]] = defaultdict(list)
        for number, clip in enumerate(clips):
            for name in dict.fromkeys((clip.id, clip.source, clip.path)):
                if name:
                    self._exact[name].append(number)
            for last in dict.fromkeys(_parts(name)[-1] for name in (clip.id, clip.source, clip.path) if _parts(name)):
                self._last[last].append(number)
        self._known: dict[str, list[int]] = {}

    def find(self, name: str, table: str) -> list[int]:
        """Numbers of the clips that a row is about."""
        if name not in self._known:
            self._known[name] = self._exact.get(name) or self._by_parts(name, table)
        return self._known[name]

    def _by_parts(self, name: str, table: str) -> list[int]:
        parts = _parts(name)
        found = [
            number
            for number in (self._last.get(parts[-1], ()) if parts else ())
            if any(
                _is_end(parts, _parts(own))
                for own in (self.clips[number].id, self.clips[number].source, self.clips[number].path)
            )
        ]
        files = dict.fromkeys(self.clips[number].source or self.clips[number].id for number in found)
        if len(files) > 1:
            raise DataError(
                f"{table}: the name {name!r} may mean {' or '.join(list(files)[:_EXAMPLES])}; write the folder and "
                "the suffix, too."
            )
        return found


def _parts(name: str) -> list[str]:
    """Folders and stem of a path or id."""
    stem, suffix = os.path.splitext(name.replace("\\", "/"))
    parts = (stem if suffix.lower() in _MEDIA else stem + suffix).split("/")
    return [part for part in parts if part not in ("", ".")]


def _is_end(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether one of two paths is the end of the other."""
    count = min(len(one), len(other))
    return count > 0 and list(one[-count:]) == list(other[-count:])


def examples(names: Iterable[str]) -> str:
    """A few names."""
    every = list(names)
    more = len(every) - _EXAMPLES
    return ", ".join(map(repr, every[:_EXAMPLES])) + (f" and {more} more" if more > 0 else "")


def tell(message: str) -> None:
    """Say what a reader may want otherwise."""
    warnings.warn(DataWarning(message), stacklevel=2)
