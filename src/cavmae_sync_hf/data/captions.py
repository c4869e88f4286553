# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Texts about a clip and where in it they are true: read from the values of tables, cut to clips, kept in shards."""

import ast
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..files import parse_json
from ..model.errors_cavmae_sync import DataError, printable
from .clock import cell_seconds

# What the parts of a text with times are called, the first that is there counts.
TEXT_NAMES = ("text", "caption", "word", "sentence", "description", "desc", "event_label", "label")
START_NAMES = ("start", "start_time", "start_seconds", "start_sec", "onset", "begin")
END_NAMES = ("end", "end_time", "end_seconds", "end_sec", "offset", "stop")
# Times of texts are kept to the microsecond.
_DIGITS = 6


@dataclass(frozen=True)
class TimedText:
    """A caption, a word, or anything else that is said of a clip.

    Attributes:
        text: The words, on one line.
        spans: Where it is true, start and end in seconds, ascending; empty where it is about the whole.
    """

    text: str
    spans: tuple[tuple[float, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {"text": self.text, "spans": [list(span) for span in self.spans]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TimedText":
        """Back from `to_dict`."""
        return cls(str(values["text"]), tuple((float(start), float(end)) for start, end in values["spans"]))


def given_texts(record: Mapping[str, Any]) -> list[TimedText]:
    """The texts in a clip's record in a shard, or in its row of `clips.jsonl`; older ones have none."""
    return [TimedText.from_dict(values) for values in record.get("captions", ())]


def one_line(value: Any) -> str:
    """A text of a table on one line; empty where there is none (also for NaN)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return printable(" ".join(str(value).split()))


def first_of(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first of these columns that has one."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def span_of(start: Any, end: Any, place: str) -> tuple[tuple[float, float], ...]:
    """One span, or none where both times are empty.

    Raises:
        DataError: A time is none, one of the two is missing, or the span is empty.
    """
    first, last = cell_seconds(start, f"{place} has the start"), cell_seconds(end, f"{place} has the end")
    if first is None and last is None:
        return ()
    if first is None or last is None:
        raise DataError(f"{place} has a {'start' if last is None else 'end'} alone; give both, or neither.")
    if last <= first:
        raise DataError(f"{place} ends ({last:g} s) before it starts ({first:g} s); correct its times.")
    return ((first, last),)


def texts_of_cell(value: Any, place: str) -> list[TimedText]:
    """Texts of one value of a table: a text, a list of texts, or of mappings with `text`, `start` and `end`.

    Args:
        value: The value; lists may be written as JSON, as CSV files have them. Empty values give no text.
        place: Where it stands, for messages.

    Raises:
        DataError: It is something else, or a span is wrong.
    """
    if isinstance(value, str):
        listed = _written_list(value)
        if listed is not None:
            return texts_of_cell(listed, place)
        return [TimedText(one_line(value))] if value.strip() else []
    if isinstance(value, Mapping):
        return _texts_of_mapping({str(name).lower(): part for name, part in value.items()}, place)
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [text for part in value for text in texts_of_cell(part, place)]
    if not one_line(value):
        return []
    raise DataError(f"{place} has the caption {value!r}; captions are texts, or lists of texts.")


def _texts_of_mapping(value: Mapping[str, Any], place: str) -> list[TimedText]:
    text = first_of(value, TEXT_NAMES)
    start, end = first_of(value, START_NAMES), first_of(value, END_NAMES)
    if isinstance(text, Iterable) and not isinstance(text, str):  # a list for each column, as `datasets` may have it
        texts = list(text)
        starts, ends = ([None] * len(texts) if times is None else list(times) for times in (start, end))
        if not len(texts) == len(starts) == len(ends):
            raise DataError(f"{place} has {len(texts)} texts, {len(starts)} starts and {len(ends)} ends; correct it.")
        rows = [dict(zip(("text", "start", "end"), row, strict=True)) for row in zip(texts, starts, ends, strict=True)]
        return [one for row in rows for one in _texts_of_mapping(row, place)]
    if text is None and not any(name in value for name in TEXT_NAMES):
        raise DataError(f"{place} has a caption with {', '.join(value)}; texts with times have text, start and end.")
    words = one_line(text)
    if not words:
        return []
    pairs = value.get("spans")
    if pairs is None:
        return [TimedText(words, span_of(start, end, place))]
    if not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs):
        raise DataError(f"{place} has the spans {pairs!r}; they are a list of [start, end] in seconds.")
    spans = [span for start, end in pairs for span in span_of(start, end, place)]
    return [TimedText(words, tuple(sorted(spans)))]


def _written_list(value: str) -> Any:
    """A list of texts or mappings that is written as JSON or as Python; `None` for a text, which may begin alike."""
    if not re.match(r"\s*[\[{]\s*[\[{\"'\]]", value):
        return None
    for parse in (parse_json, ast.literal_eval):
        try:
            found = parse(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return found if isinstance(found, list | dict) else None
    return None


def merge_texts(texts: Iterable[TimedText]) -> tuple[TimedText, ...]:
    """Each text once, with all of its spans, in the order in which they come first."""
    merged: dict[str, set[tuple[float, float]]] = {}
    for one in texts:
        merged.setdefault(one.text, set()).update(one.spans)
    return tuple(TimedText(text, tuple(sorted(spans))) for text, spans in merged.items())


def cut_texts(texts: Iterable[TimedText], start: float | None, end: float | None) -> tuple[TimedText, ...]:
    """Texts of a file as those of its segment: spans in seconds from its start, texts of other places left out.

    Args:
        texts: Of the file.
        start: Where the segment begins, seconds; `None`: at the beginning.
        end: Where it ends; `None`: at the end.
    """
    first, last = start or 0.0, math.inf if end is None else end
    kept = []
    for one in texts:
        spans = []
        for begin, stop in one.spans:
            if begin < last and stop > first:  # most of a long file's lie elsewhere
                spans.append((round(max(begin, first) - first, _DIGITS), round(min(stop, last) - first, _DIGITS)))
        spans = [span for span in spans if span[0] < span[1]]
        if spans or not one.spans:
            kept.append(TimedText(one.text, tuple(spans)))
    return tuple(kept)
