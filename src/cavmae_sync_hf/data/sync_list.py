# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A list of videos that says which of them are in sync."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..files import StrPath
from ..model.errors_cavmae_sync import DataError
from .tables import Entry, read_list

_IN_SYNC = frozenset({"1", "1.0", "true", "yes", "sync", "in_sync", "in sync", "real", "genuine", "original"})
_OUT_OF_SYNC = frozenset(
    {"0", "0.0", "false", "no", "off", "off_sync", "out_of_sync", "out of sync", "shifted", "fake", "generated"}
)


@dataclass(frozen=True)
class SyncVideo:
    """A video, its audio track where that is a file of its own, and whether they are in sync."""

    video: str
    audio: str | None
    in_sync: bool


def read_sync_list(path: StrPath, in_sync: Sequence[str] = ()) -> list[SyncVideo]:
    """Read a list of videos with the columns `path`, `label` and, where audio is in files of its own, `audio`.

    Args:
        path: CSV, TSV, JSON, JSON lines or Parquet. Files are relative to its folder.
        in_sync: The labels of videos in sync; all others are out of sync. Default: words such as 1, true, sync, real
            against 0, false, shifted, fake.

    Raises:
        DataError: The list cannot be read, or a row lacks its video or a label that is understood.
    """
    from fsspec.implementations.local import LocalFileSystem

    name = os.fspath(path)
    wanted = {str(label).strip().lower() for label in in_sync}
    folder = os.path.dirname(os.path.abspath(name))
    videos = []
    for entry in read_list(LocalFileSystem(), name):
        if not entry.path:
            raise DataError(f"{entry.place or name}: names no video; the list needs the columns path and label.")
        audio = None if entry.audio is None else _beside(folder, entry.audio)
        videos.append(SyncVideo(_beside(folder, entry.path), audio, _is_in_sync(entry, wanted, name)))
    if not videos:
        raise DataError(f"{name}: lists no videos.")
    return videos


def _is_in_sync(entry: Entry, wanted: set[str], name: str) -> bool:
    labels = {str(label).strip().lower() for label in entry.labels}
    place = f"{entry.place or name} ({entry.path})"
    if len(labels) != 1:
        raise DataError(f"{place}: has {len(labels)} labels; give one that says whether the video is in sync.")
    if wanted:
        return bool(labels & wanted)
    if labels & _IN_SYNC or labels & _OUT_OF_SYNC:
        return bool(labels & _IN_SYNC)
    raise DataError(
        f"{place}: the label {labels.pop()!r} does not say whether the video is in sync; write 1 or 0, or name "
        "the labels of videos in sync (in_sync)."
    )


def _beside(folder: str, path: str) -> str:
    return path if "://" in path else os.path.join(folder, path)
