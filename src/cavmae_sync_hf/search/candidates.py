# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The alignments of a query with the moments of an index: of all of them, or of those the approximate index points at.

The approximate index gives ids of rows. These tell clip and moment, so that what filters leave out is dropped before
anything is read, and where the rows lie that the other windows of the query meet.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from .alignment import Alignments, align, align_sequence, best_apart
from .approximate import partitions_to_search
from .comparing import Comparison, similarity
from .querying import Query
from .runs import code
from .view import SearchFilters, View

# Windows that look for candidates: all of so many, half of more up to so many; all of the query's are compared.
_PROBES = (8, 16)
# Moments that each of them finds first; more, where hits of one file crowd out the others.
_PER_PROBE = 800
# As many times more where words are compared in a space of their own, of which the index knows no distances.
_PROJECTED = 4
# Places in clips that are compared along the diagonal: as many as lie in so many bytes of vectors, within limits.
_CANDIDATE_BYTES = 32 << 20
_CANDIDATES = (64, 800)
# Where filters leave less, the approximate index is told of them, which makes it look at each row of them; for one
# probe it is cheaper to find as many more and drop the others.
_LEAST_SHARE, _LEAST_SHARE_OF_ONE = 0.3, 0.06
# Telling it takes time in proportion to all moments, for every probe. So where there are as many times as many moments
# as each probe is to find, a fixed number is found at any share, of which so few are enough.
_TOLD_MOMENTS, _FOUND_OF_MANY, _LEFT_OF_MANY = 9_000, 8_000, 30
# Of the moments that each probe finds, and of the places compared, where filters leave few.
_LEAST_PART = 0.25
# As many times more parts are looked into for one probe then: filters may leave out the nearest part, and there are no
# other probes that find what this one misses. Where the index is told of the filters, each part takes twice as long.
_PARTS_OF_ONE, _PARTS_OF_ONE_TOLD = 2.0, 1.75
# Where the first search leaves less than this of what it was to find, as where the moments that are most alike are
# those that filters leave out, the next one finds and compares so many times more, in so many times more parts.
_ENOUGH = 0.5
_WIDER, _WIDER_PARTS = 2, 3
# The last one finds as many times more.
_LAST = 4
# Moments beside a candidate that are tried as well.
_SLACK = 1


class Found(NamedTuple):
    """Where a query was laid.

    Attributes:
        alignments: All ways that were compared.
        picked: Places of the hits among them, best first.
        rows: The rows under them, with their loudness and ids, where these were read.
    """

    alignments: Alignments
    picked: list[int]
    rows: Any = None


def compare_all(view: View, query: Query, comparison: Comparison, top: int) -> Found:
    """Compare every moment."""
    alike, clips, windows = [], [], []
    for batch in view.store.scan(["rows", "window", *comparison.stored], view.where):
        numbers = view.numbers_of(batch["rows"])
        kept = numbers >= 0
        alike.append(similarity(query, comparison, batch)[:, kept])
        clips.append(numbers[kept])
        windows.append(batch["window"].to_numpy()[kept])
    if not clips:
        return Found(Alignments.none(), [])
    places = np.concatenate(alike, axis=1), np.concatenate(clips), np.concatenate(windows)
    if query.then_within is not None:
        hops = math.floor(query.then_within / view.store.settings.hop + 1e-9)
        found = align_sequence(*places, most=max(1, hops))
    else:
        found = align(*places, present=query.present, min_pairs=min_pairs(query, view.filters))
    return Found(found, _pick(view, found, top))


class _Effort(NamedTuple):
    """How the approximate index is asked.

    Attributes:
        found: Moments that each probe finds.
        kept: How many of them are to be left by the filters that are applied afterwards.
        compared: Places in clips that are compared, as multiple of the usual number.
        where: Condition that LanceDB is told.
        parts: Parts that are looked into, as multiple of the usual number.
    """

    found: int
    kept: int
    compared: float
    where: str | None
    parts: float = 1.0


# Clips, moments there that the query's first window meets, and what each counts, `(places,)` each.
_Places = tuple[np.ndarray, np.ndarray, np.ndarray]


def compare_candidates(view: View, query: Query, comparison: Comparison, top: int) -> Found:
    """Compare what the approximate index finds, and look for more until there are hits enough or no more to be had."""
    places = np.flatnonzero(query.present)
    looking = min(len(places), int(np.clip(len(places) // 2, *_PROBES)))
    probes = places[np.unique(np.linspace(0, len(places) - 1, looking).round().astype(int))]
    efforts = _efforts(view, _PER_PROBE * (_PROJECTED if query.projections else 1), len(probes))
    for effort in efforts:
        found_at = _look(view, query, comparison, probes, effort)
        if len(found_at[0]) < _ENOUGH * effort.kept * len(probes) and effort is not efforts[-1]:
            continue
        found, rows = _compare(view, query, comparison, found_at, effort)
        picked = _pick(view, found, top)
        if len(picked) >= top:
            break
    return Found(found, picked, rows)


def _efforts(view: View, wanted: int, probes: int) -> list[_Effort]:
    """How the approximate index is asked for so many moments that filters leave, one way after the other."""
    loud, share = max(view.loud_share(), 1e-9), max(view.place_share(), 1e-9)
    last = _Effort(_LAST * wanted, 0, _LAST, view.where, _WIDER_PARTS)
    # Among fewer moments fewer are nearly as much alike as the best.
    part = float(np.clip(math.sqrt(loud * share / _LEAST_SHARE), _LEAST_PART, 1))
    # Each place of several windows takes many rows, and several probes speak for the right one.
    places = part if probes == 1 else max(part**2, _LEAST_PART)
    wanted = math.ceil(part * wanted)
    many = view.clips.moments.sum() >= _TOLD_MOMENTS * wanted
    enough = loud * share >= (_LEAST_SHARE_OF_ONE if probes == 1 and not many else _LEAST_SHARE)
    is_told = loud < _LEAST_SHARE or not (many or enough)
    parts = 1.0 if probes > 1 or part == 1 else _PARTS_OF_ONE_TOLD if is_told else _PARTS_OF_ONE
    if not is_told:
        # Loudness is dropped when the rows have been read.
        count, kept = math.ceil(wanted / (loud * share)), math.ceil(wanted / loud)
        count, kept = (count, kept) if enough else (_FOUND_OF_MANY, _LEFT_OF_MANY)
        first = _Effort(count, kept, places / loud, None, parts)
        wider = first._replace(found=_WIDER * first.found, compared=_WIDER * first.compared, parts=_WIDER_PARTS)
        return [first, wider, last]
    if loud >= _LEAST_SHARE:
        return [_Effort(math.ceil(wanted / loud), 0, places / loud, view.of_places, parts), last]
    return [_Effort(wanted, 0, places, view.where, parts), last]


def _look(view: View, query: Query, comparison: Comparison, probes: np.ndarray, effort: _Effort) -> _Places:
    """Where what the index finds says that the query may lie."""
    clips, firsts, votes = [], [], []
    for asked, stored in comparison.all_pairs:
        vectors = query.probes(asked, stored, probes)
        total = view.clips.partitions[stored]
        partitions = min(total, math.ceil(effort.parts * partitions_to_search(total)))
        ids, which, cosines = view.store.nearest(stored, vectors, effort.found, effort.where, partitions=partitions)
        # Each of as many moments is near by chance: they speak for their places by how much nearer they are than the
        # farthest that the probe found.
        farthest = np.full(len(probes), np.inf)
        np.minimum.at(farthest, which, cosines)
        numbers, windows = view.moments_of(ids)
        kept = numbers >= 0
        clips.append(numbers[kept])
        firsts.append((windows - probes[which])[kept])
        votes.append((cosines - farthest[which])[kept])
    return np.concatenate(clips), np.concatenate(firsts), np.concatenate(votes)


def _compare(
    view: View, query: Query, comparison: Comparison, places: _Places, effort: _Effort
) -> tuple[Alignments, Any]:
    """Compare the places that moments speak for; gives the rows that were read, too."""
    slack = _SLACK if len(query) > 1 else 0
    reach = len(query) + 2 * slack
    row_bytes = 2 * view.store.settings.hidden_size * len(comparison.stored)
    most = int(np.clip(_CANDIDATE_BYTES // (reach * row_bytes), *_CANDIDATES) * effort.compared)
    most *= _PROJECTED if query.projections else 1
    chosen = _strongest(*places, most)
    if not len(chosen):
        return Alignments.none(), None
    around = np.unique(chosen[:, None] + np.arange(-slack, len(query) + slack))
    rows = view.store.take(np.sort(view.runs.rows(around)), ["loudness", *comparison.stored])
    numbers, windows = view.moments_of(rows["_rowid"].to_numpy().astype(np.int64))
    kept = (numbers >= 0) & view.loud_enough(rows)
    compared = align(
        similarity(query, comparison, rows)[:, kept], numbers[kept], windows[kept], present=query.present,
        min_pairs=min_pairs(query, view.filters),
    )  # fmt: skip
    # Others hang over the borders of what was fetched.
    wanted = (chosen[:, None] + np.arange(-slack, slack + 1)).ravel()
    fetched = np.isin(code(compared.clips, compared.firsts), wanted)
    return Alignments(*(values[fetched] for values in compared)), rows


def min_pairs(query: Query, filters: SearchFilters) -> int:
    """Windows of a query that must meet a moment."""
    return max(1, math.ceil(filters.min_overlap * int(query.present.sum()) - 1e-9))


def _strongest(clips: np.ndarray, firsts: np.ndarray, votes: np.ndarray, most: int) -> np.ndarray:
    """The places, as `code` tells them, that most, and most alike, moments speak for; rising."""
    codes, which = np.unique(code(clips, firsts), return_inverse=True)
    return np.sort(codes[np.argsort(-np.bincount(which, votes, len(codes)), kind="stable")[:most]])


def _pick(view: View, found: Alignments, top: int) -> list[int]:
    """Places among the alignments of the hits, best first."""
    hop, filters = view.store.settings.hop, view.filters
    least = filters.min_gap
    return best_apart(
        found.scores, view.clips.files[found.clips],
        view.clips.starts[found.clips] + (found.firsts + found.lengths / 2) * hop,
        top=top, min_gap=view.store.settings.window_seconds if least is None else least, per_group=filters.per_file,
        lengths=found.lengths * hop if least is None else None,
    )  # fmt: skip
