# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What may be asked of a search beside its query, and what does it give back?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Hit", "SearchFilters", "SearchResult"]


@dataclass(frozen=True)
class SearchFilters:
    """Which moments may be found.

    Attributes:
        exclude_same_file: Leave out the file that the query is from, and its copies.
        within: Start and end in seconds: moments outside this span of their files are left out; `None` in either
            place for no limit.
        files: Pattern, such as `*/interviews/*.mp4`, of the paths that are searched; default: all.
        min_loudness: Quieter moments are left out, dB of full scale. Default: those that are silent, where stored
            sound is compared; `-inf` leaves none out.
        min_overlap: Share of the query's windows that must meet a moment: less at the border of a clip is no hit.
        min_gap: Hits of one file lie at least so far apart, seconds. Default: the longer of the query and what the
            model hears around a moment, so that no sound is in two hits.
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
                raise ValueError(f"within is {self.within!r}; it holds seconds of at least 0.")
        if first is not None and last is not None and last <= first:
            raise ValueError(f"within is {self.within!r}; its end must come after its start.")
        if not 0 < self.min_overlap <= 1:
            raise ValueError(f"min_overlap is {self.min_overlap!r}; it must be above 0 and at most 1.")
        if self.min_gap is not None and not self.min_gap >= 0:
            raise ValueError(f"min_gap is {self.min_gap!r}; it must be a number of seconds of at least 0.")
        if self.min_loudness is not None and math.isnan(self.min_loudness):
            raise ValueError("min_loudness is NaN; it must be a number of dB.")
        if self.per_file is not None and (isinstance(self.per_file, bool) or not self.per_file >= 1):
            raise ValueError(f"per_file is {self.per_file!r}; it must be at least 1.")


@dataclass(frozen=True)
class Hit:
    """A moment that was found.

    Attributes:
        path: Its file.
        start: Where it starts in the file, seconds.
        end: Where it ends.
        score: Mean cosine of the query's windows and the moments they meet; those that meet none count as 0.
        windows: How many meet one.
        clip_start: Where the clip that it belongs to starts in the file.
        clip_end: Where that ends.
        loudness: Of the loudest moment in it, dB of full scale; `None` where whole clips are compared.
        thumbnail: JPEG of its middle, where the index has pictures.
    """

    path: str
    start: float
    end: float
    score: float
    windows: int
    clip_start: float
    clip_end: float
    loudness: float | None = None
    thumbnail: bytes | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON; without the thumbnail."""
        return {name: value for name, value in vars(self).items() if name != "thumbnail"}


@dataclass(frozen=True)
class SearchResult(Sequence[Hit]):
    """The moments found, best first, and how.

    Attributes:
        hits: The moments.
        by: What of the query was compared: `"sound"`, `"picture"` or `"both"`.
        find: With what of the index.
        pairs: Both together, such as `["sound -> picture"]`.
        exact: Whether all moments were compared.
        query: Name of the query.
        query_start: Where the query starts in its source, seconds.
        query_seconds: How long it is.
        query_windows: How many windows it has.
    """

    hits: tuple[Hit, ...]
    by: str
    find: str
    pairs: tuple[str, ...]
    exact: bool
    query: str
    query_start: float
    query_seconds: float
    query_windows: int

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, place: Any) -> Any:
        return self.hits[place]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dict(vars(self)) | {"pairs": list(self.pairs), "hits": [hit.to_dict() for hit in self.hits]}
