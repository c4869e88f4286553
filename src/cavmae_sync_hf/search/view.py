# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What of an index is searched: its clips, told by numbers, and what filters leave of them and of their moments."""

import fnmatch
import math
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..inference.loudness import SILENCE_DB
from ..model.errors_cavmae_sync import QueryError
from .comparing import Comparison
from .querying import Query
from .runs import Runs
from .store import MomentStore
from .tables import ClipEntry, content_of, file_key

_SECONDS_TOLERANCE = 1e-6
# That an open index remembers the fitting files of.
_PATTERNS = 64


@dataclass(frozen=True)
class SearchFilters:
    """Which moments may be found.

    Attributes:
        exclude_same_file: Leave out the file that the query is from, and its copies.
        within: Start and end in seconds: moments outside this span of their files are left out; `None` in either
            place for no limit.
        files: Pattern, such as `*/interviews/*.mp4`, of the paths that are searched; default: all.
        min_loudness: Quieter moments are left out, dB of full scale. Default: those that are silent, where stored
            audio is compared; `-inf` leaves none out.
        min_overlap: Share of the query's windows that must meet a moment: less at the border of a clip is no hit.
        min_gap: Hits of one file lie at least so far apart, seconds. Default: the longer of the hits and the audio
            window of a moment, so that no audio is in two hits.
        per_file: Hits of one file, at most; default: any number.
    """

    exclude_same_file: bool = False
    within: tuple[float | None, float | None] = (None, None)
    files: str | None = None
    min_loudness: float | None = None
    min_overlap: float = 0.75
    min_gap: float | None = None
    per_file: int | None = None

    def __post_init__(self) -> None:
        first, last = self.within
        for value in self.within:
            if value is not None and not value >= 0:
                raise QueryError(f"within is {self.within!r}; it holds seconds of at least 0.")
        if first is not None and last is not None and last <= first:
            raise QueryError(f"within is {self.within!r}; its end must come after its start.")
        if not 0 < self.min_overlap <= 1:
            raise QueryError(f"min_overlap is {self.min_overlap!r}; it must be above 0 and at most 1.")
        if self.min_gap is not None and not self.min_gap >= 0:
            raise QueryError(f"min_gap is {self.min_gap!r}; it must be a number of seconds of at least 0.")
        if self.min_loudness is not None and math.isnan(self.min_loudness):
            raise QueryError("min_loudness is NaN; it must be a number of dB.")
        if self.per_file is not None and (isinstance(self.per_file, bool) or not self.per_file >= 1):
            raise QueryError(f"per_file is {self.per_file!r}; it must be at least 1.")


@dataclass(frozen=True)
class _Clips:
    """The clips of an index that have moments, as of one version of it.

    Attributes:
        entries: The clips, by their keys; a clip is told by its place among them.
        numbers: That place, by the name of its rows.
        files: Number of each clip's file, `(clips,)`: hits of one file keep apart.
        starts: Where each starts in its file, seconds, `(clips,)`.
        ends: Where each ends, `(clips,)`.
        moments: How many each has, `(clips,)`.
        loose: Names of rows that belong to no clip.
        partitions: Parts of the approximate index, by the column.
        shares: Share of the rows that fulfil a condition, as far as asked for.
        fits: Which clips' paths fit a pattern, `(clips,)` bool, as far as asked for.
    """

    entries: list[ClipEntry]
    numbers: dict[str, int]
    files: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    moments: np.ndarray
    loose: list[str]
    partitions: dict[str, int]
    shares: dict[str, float]
    fits: dict[str, np.ndarray]

    @classmethod
    def of(cls, store: MomentStore) -> "_Clips":
        """Those of an index."""
        entries = sorted((entry for entry in store.entries().values() if entry.rows), key=lambda entry: entry.key)
        paths = {path: number for number, path in enumerate(dict.fromkeys(entry.path for entry in entries))}
        return cls(
            entries=entries,
            numbers={entry.rows: number for number, entry in enumerate(entries)},
            files=np.array([paths[entry.path] for entry in entries], np.int64),
            starts=np.array([entry.start for entry in entries], np.float64),
            ends=np.array([entry.end for entry in entries], np.float64),
            moments=np.array([entry.moments for entry in entries], np.int64),
            loose=store.loose_rows(),
            partitions={column: store.partitions(column) for column in store.indexed_columns()},
            shares={},
            fits={},
        )

    def fitting(self, pattern: str) -> np.ndarray:
        """Which clips' paths fit a pattern, `(clips,)` bool."""
        if pattern not in self.fits:
            fits = re.compile(fnmatch.translate(pattern)).match
            if len(self.fits) >= _PATTERNS:
                self.fits.clear()
            self.fits[pattern] = np.array([fits(entry.path) is not None for entry in self.entries], bool)
        return self.fits[pattern]


@dataclass(frozen=True)
class View:
    """What of an index is searched.

    Attributes:
        store: The index.
        clips: All of its clips.
        searched: Which of them are searched, `(clips,)` bool.
        limits: Column, least and greatest value that moments may have, where they are limited.
        filters: As asked for.
    """

    store: MomentStore
    clips: _Clips
    searched: np.ndarray
    limits: tuple[tuple[str, float, float], ...]
    filters: SearchFilters

    @classmethod
    def of(cls, store: MomentStore, query: Query, comparison: Comparison, filters: SearchFilters) -> "View":
        """What the filters leave."""
        clips = store.remember("clips", lambda: _Clips.of(store))
        searched = np.ones(len(clips.entries), bool)
        if filters.exclude_same_file:
            own = _of_same_file(query, clips.entries)
            searched &= np.array([entry.key not in own for entry in clips.entries], bool)
        if filters.files is not None:
            searched &= clips.fitting(filters.files)
        loudness = filters.min_loudness
        if loudness is None:
            loudness = SILENCE_DB if comparison.needs_sound else -math.inf
        limits = []
        if loudness > -math.inf:
            limits.append(("loudness", float(loudness), math.inf))
        first, last = filters.within
        if first is not None or last is not None:
            # A moment ends a hop after its start.
            latest = math.inf if last is None else last - store.settings.hop
            limits.append(("start", (first or 0.0) - _SECONDS_TOLERANCE, latest + _SECONDS_TOLERANCE))
        return cls(store=store, clips=clips, searched=searched, limits=tuple(limits), filters=filters)

    def with_room_for(self, count: int) -> "View":
        """Without clips that have fewer moments within the limits of time: who needs so many has no place there."""
        hop, starts = self.store.settings.hop, self.clips.starts
        first, last = np.zeros(len(starts)), self.clips.moments - 1.0
        for name, least, greatest in self.limits:
            if name == "start":
                first = np.maximum(first, np.ceil((least - starts) / hop))
                last = np.minimum(last, np.floor((greatest - starts) / hop))
        return replace(self, searched=self.searched & (last - first + 1 >= count))

    @cached_property
    def of_places(self) -> str | None:
        """Condition for LanceDB of clips and times alone, which it has indexes of."""
        entries, loose = self.clips.entries, self.clips.loose
        kept, left_out = (
            [entries[at].rows for at in np.flatnonzero(mask)] for mask in (self.searched, ~self.searched)
        )
        return " AND ".join(self._conditions("start") + self.store.only_rows(kept, [*left_out, *loose])) or None

    @cached_property
    def where(self) -> str | None:
        """Condition for rows that are searched, within all limits."""
        return " AND ".join(self._conditions("loudness") + ([self.of_places] if self.of_places else [])) or None

    def _conditions(self, column: str) -> list[str]:
        found = []
        for name, least, greatest in self.limits:
            if name == column:
                found += [f"`{name}` >= {least!r}"] + ([f"`{name}` <= {greatest!r}"] if greatest < math.inf else [])
        return found

    @property
    def runs(self) -> Runs:
        """Where the rows of the clips lie."""
        return self.store.remember("runs", lambda: Runs.of(self.store, self.clips.numbers))

    def moments_of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Clip and moment of each of some rows; the clip is -1 where the row is not searched, or not at this time."""
        numbers, windows = self.runs.moments(ids)
        numbers = np.where((numbers >= 0) & self.searched[np.maximum(numbers, 0)], numbers, -1)
        for name, least, greatest in self.limits:
            if name == "start":  # as it is written
                starts = self.clips.starts[np.maximum(numbers, 0)] + windows * self.store.settings.hop
                numbers = np.where((starts >= least) & (starts <= greatest), numbers, -1)
        return numbers, windows

    def numbers_of(self, names: Any) -> np.ndarray:
        """Number of the clip that each of some rows belongs to, -1 for those that are not searched."""
        coded = (names.combine_chunks() if hasattr(names, "combine_chunks") else names).dictionary_encode()
        numbers = np.array([self.clips.numbers.get(name, -1) for name in coded.dictionary.to_pylist()], np.int64)
        if not len(numbers):
            return np.zeros(0, np.int64)
        numbers[numbers >= 0] = np.where(self.searched[numbers], numbers, -1)[numbers >= 0]
        return numbers[coded.indices.to_numpy()]

    def place_share(self) -> float:
        """About how much of all rows is of the clips that are searched and within the limits of time, 0 to 1."""
        first, last = self.filters.within
        begins, ends = self.clips.starts[self.searched], self.clips.ends[self.searched]
        inside = np.minimum(ends, np.inf if last is None else last) - np.maximum(begins, first or 0.0)
        in_time = min(1.0, float(np.maximum(inside, 0).sum() / max(1e-9, (ends - begins).sum())))
        moments = self.clips.moments
        return in_time * float(moments[self.searched].sum() / max(1, moments.sum()))

    def loud_share(self) -> float:
        """How much of all rows is loud enough, 0 to 1."""
        share = 1.0
        for name, least, _ in self.limits:
            if name == "loudness":
                condition, shares = f"loudness >= {least!r}", self.clips.shares
                if condition not in shares:
                    shares[condition] = self.store.share_of(condition)
                share = shares[condition]
        return share

    def loud_enough(self, rows: Any) -> np.ndarray:
        """Which rows of a table keep the limit of loudness, `(rows,)` bool."""
        values, enough = rows["loudness"].to_numpy(), np.ones(len(rows), bool)
        for name, least, _ in self.limits:
            if name == "loudness":
                enough &= values >= least
        return enough


def _of_same_file(query: Query, everything: list[ClipEntry]) -> frozenset[str]:
    """Keys of the clips of the query's file and of files with the same content."""
    content = query.content
    if query.path is not None:
        content = content_of(query.path)
    own = {entry.key for entry in everything if query.path is not None and entry.key.startswith(file_key(query.path))}
    return frozenset(own | {entry.key for entry in everything if content and entry.content == content})
