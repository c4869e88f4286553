# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What is said of clips: captions of a file, labels as sentences, or what SyncWorld's truth makes true."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..files import StrPath
from ..model.errors_cavmae_sync import TrainingError
from ..syncworld.captions import KINDS, Statement, Wording, statements, write

TEMPLATES = ("{}", "the sound of {}", "a video of {}", "{} is heard")


@dataclass(frozen=True)
class Caption:
    """A text about a clip.

    Attributes:
        text: The words.
        key: Equal for captions that say the same.
        true: Whether it is true of the clip; made negatives are not.
        spans: Where in the clip, seconds; empty where it is about the whole or nobody knows.
    """

    text: str
    key: str
    true: bool = True
    spans: tuple[tuple[float, float], ...] = ()


@dataclass
class CaptionSet:
    """Captions of every clip of a set.

    Attributes:
        captions: One list per clip.
        keys: One list per clip: of all that is known to be true of it, said or not.
    """

    captions: list[list[Caption]]
    keys: list[list[str]]


def syncworld_captions(
    records: Sequence[Mapping[str, Any]], per_clip: int, seed: int, wording: Wording = "seen"
) -> CaptionSet:
    """Captions from the truth of SyncWorld clips: every kind alike, each with its opposite where it has one.

    Args:
        records: The truth of every clip.
        per_clip: True captions of each clip.
        seed: Seeds what is said, and how.
        wording: Of `syncworld.captions`.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, KINDS.index("order")]))
    captions, keys = [], []
    for record in records:
        known = statements(record)
        true = {statement.key for statement in known}
        kinds = sorted({statement.kind for statement in known})
        said: list[Caption] = []
        for _ in range(per_clip):
            kind = kinds[rng.integers(len(kinds))]
            choices = [statement for statement in known if statement.kind == kind]
            statement = choices[rng.integers(len(choices))]
            said.append(Caption(write(statement, rng, wording), statement.key, spans=statement.spans))
            opposite: Statement | None = statement.opposite
            if opposite is not None and opposite.key not in true:
                said.append(Caption(write(opposite, rng, wording), opposite.key, true=False))
        captions.append(said)
        keys.append(sorted(true))
    return CaptionSet(captions, keys)


def label_captions(
    labels: Sequence[Sequence[int]], names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> CaptionSet:
    """Labels as sentences, in every template.

    Args:
        labels: Class numbers of every clip.
        names: Of the classes.
        templates: Each with a place for the name, `{}`.

    Raises:
        TrainingError: A template has no place for the name, or there are no names.
    """
    if not names:
        raise TrainingError("The labels have no names; give `class_names`, or a file of `captions`.")
    for template in templates:
        if "{}" not in template:
            raise TrainingError(f"The template {template!r} has no place for the label, '{{}}'.")
    captions = [
        [Caption(template.format(names[label]), f"label:{label}") for label in row for template in templates]
        for row in labels
    ]
    return CaptionSet(captions, [[f"label:{label}" for label in row] for row in labels])


def read_captions(path: StrPath, clip_ids: Sequence[str]) -> CaptionSet:
    """Captions of a table (CSV or Parquet) with the columns `clip_id` and `text`, and perhaps `start` and `end`.

    Args:
        path: The table. Clips may have several rows, or none.
        clip_ids: The clips of the set; rows of others are passed over.

    Raises:
        TrainingError: The table cannot be read, lacks a column, has an empty text, or none of the clips.
    """
    import pandas as pd

    try:
        table = pd.read_parquet(path) if str(path).endswith(".parquet") else pd.read_csv(path, dtype={"clip_id": str})
    except (OSError, ValueError, ImportError) as error:
        raise TrainingError(f"{path}: cannot be read ({error}); give a CSV or Parquet file.") from error
    lacking = [name for name in ("clip_id", "text") if name not in table]
    if lacking:
        raise TrainingError(f"{path}: has no column {lacking[0]!r}; captions need the columns clip_id and text.")
    places = {clip_id: place for place, clip_id in enumerate(clip_ids)}
    captions: list[list[Caption]] = [[] for _ in clip_ids]
    for number, row in enumerate(table.to_dict("records")):
        place = places.get(str(row["clip_id"]))
        if place is None:
            continue
        text = row["text"]
        if not isinstance(text, str) or not text.strip():
            raise TrainingError(f"{path}: row {number + 1} has no text; fill it or take it out.")
        start, end = (row.get(name) for name in ("start", "end"))
        spans: tuple[tuple[float, float], ...] = ()
        if isinstance(start, float | int) and isinstance(end, float | int) and not (start != start or end != end):
            if end <= start:
                raise TrainingError(f"{path}: row {number + 1} ends ({end:g} s) before it starts ({start:g} s).")
            spans = ((float(start), float(end)),)
        captions[place].append(Caption(text, text.strip().lower(), spans=spans))
    if not any(captions):
        raise TrainingError(f"{path}: has no caption of any of the {len(clip_ids)} clips; is its clip_id theirs?")
    return CaptionSet(captions, [sorted({caption.key for caption in said}) for said in captions])


__all__ = ["Caption", "CaptionSet", "label_captions", "read_captions", "syncworld_captions"]
