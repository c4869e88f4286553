# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Hits of a search written to a file: a table, a page to look at, or a timeline for an editing program."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..data.clock import format_clock
from ..files import StrPath, write_csv, write_json
from ..model.errors_cavmae_sync import CavMaeSyncError, QueryError, printable
from .cutting import CutClip
from .hits_page import write_page
from .searching import SearchResult
from .timelines import write_edl, write_otio

# What hits are written as, by the file's suffix.
HIT_SUFFIXES = (".csv", ".json", ".html", ".edl", ".otio")

_COLUMNS = ("hit", "score", "path", "start", "end", "from", "to", "loudness")


def check_hits_path(path: StrPath) -> str:
    """The suffix of a file for hits, refused where there is no such format.

    Raises:
        QueryError: Hits are not written as this.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in HIT_SUFFIXES:
        raise QueryError(
            f"{printable(os.fspath(path))}: hits are written as {', '.join(HIT_SUFFIXES)}; name such a file."
        )
    return suffix


def write_hits(
    result: SearchResult,
    path: StrPath,
    *,
    clips: Sequence[CutClip | None] | None = None,
    overwrite: bool = False,
    on_error: Callable[[str, CavMaeSyncError], None] | None = None,
) -> list[Path]:
    """Write hits in the format that the file's suffix says.

    Args:
        result: The hits.
        path: File to write, whole or not at all; its folder is made. `.csv`: a table, which serves as a list of
            segments elsewhere (columns path, start, end, in seconds); `.json`: `result.to_dict()`; `.html`: a page
            that plays them; `.otio`: an OpenTimelineIO timeline; `.edl`: CMX 3600 edit lists, one for each frame rate.
        clips: What `cut_hits` gave for them: told in the table and in JSON, and played by the page.
        overwrite: Whether earlier files are replaced.
        on_error: Called with the name and the error of a hit's file that cannot be read, of which the page lacks the
            picture, and timelines the length.

    Returns:
        The files written.

    Raises:
        AlreadyExistsError: There is such a file, and `overwrite` is off.
        DiskError: It cannot be written.
        ImportError: The format needs a package that is not installed.
        MediaError: A hit's file cannot be read, where there is no `on_error`.
        QueryError: There is no such format.
    """
    suffix = check_hits_path(path)
    cuts = list(clips) if clips is not None else [None] * len(result)
    if len(cuts) != len(result):
        raise QueryError(f"There are {len(cuts)} clips for {len(result)} hits; pass what cut_hits gave for them.")
    told = None if clips is None else [None if cut is None else os.fspath(cut.path) for cut in cuts]
    if suffix == ".csv":
        return [write_csv(path, hit_rows(result, told), columns=_COLUMNS, overwrite=overwrite)]
    if suffix == ".json":
        values = result.to_dict()
        for hit, cut in zip(values["hits"], cuts, strict=True):
            hit.update({} if told is None else {"clip": None if cut is None else cut.to_dict()})
        return [write_json(path, values, overwrite=overwrite)]
    if suffix == ".html":
        return [write_page(result, path, clips=cuts, overwrite=overwrite, on_error=on_error)]
    if suffix == ".otio":
        return [write_otio(result, path, overwrite=overwrite, on_error=on_error)]
    return write_edl(result, path, overwrite=overwrite, on_error=on_error)


def hit_rows(result: SearchResult, clips: Sequence[str | None] | None = None) -> list[dict[str, Any]]:
    """The hits as rows of a table, times in seconds and as people write them.

    Args:
        result: The hits.
        clips: Names of their clips.
    """
    rows = []
    for number, hit in enumerate(result, 1):
        loudness = None if hit.loudness is None else round(hit.loudness, 1)
        times = round(hit.start, 4), round(hit.end, 4), format_clock(hit.start), format_clock(hit.end)
        row = dict(zip(_COLUMNS, (number, round(hit.score, 6), hit.path, *times, loudness), strict=True))
        rows.append(row if clips is None else row | {"clip": clips[number - 1]})
    return rows
