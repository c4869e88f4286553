# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The alignments of a query with the moments of an index: of all of them, or of those the approximate index points at.

The rows of a clip are written one after the other, so that from the number of a row that is alike follow the numbers
of those that the other windows of the query meet. What was read tells whether they are: rows that lie elsewhere, as
those of a clip over the border of two files do, are then looked for by the name of the clip.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from .alignment import Alignments, align, align_sequence, best_apart
from .approximate import partitions_to_search
from .comparing import Comparison, similarity
from .querying import Query
from .view import View

# Windows that look for candidates: all of so many, half of more up to so many; all of the query's are compared.
_PROBES = (8, 16)
# Moments that each of them finds first; more, where hits of one file crowd out the others.
_PER_PROBE = 800
_MOST_PER_PROBE = 3200
# As many times more where words are compared in a space of their own, of which the index knows no distances.
_PROJECTED = 4
# Places in clips that are compared along the diagonal: as many as lie in so many bytes of vectors, within limits.
_CANDIDATE_BYTES = 32 << 20
_CANDIDATES = (64, 800)
# Where filters leave less, the approximate index is told of them.
_LEAST_SHARE = 0.3
# Moments beside a candidate that are tried as well.
_SLACK = 1


class Found(NamedTuple):
    """Where a query was laid.

    Attributes:
        alignments: All ways that were compared.
        picked: Places of the hits among them, best first.
        rows: The rows under them, with their names, windows, loudness and ids, where these were read.
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
        found = align(*places, present=query.present, min_pairs=_min_pairs(view, query))
    return Found(found, _pick(view, found, top))


def compare_candidates(view: View, query: Query, comparison: Comparison, top: int) -> Found:
    """Compare what the approximate index finds, and look for more until there are hits enough or no more to be had."""
    efforts = [(_PER_PROBE, view.where), (_MOST_PER_PROBE, view.where)]
    share, time_share = view.allowed_share(), view.time_share()
    # To look through all rows for those that limits leave takes longer than to drop some of what was found.
    if share * time_share >= _LEAST_SHARE:
        efforts.insert(0, (math.ceil(_PER_PROBE / (share * time_share)), view.of_clips))
    elif share >= _LEAST_SHARE:
        efforts.insert(0, (math.ceil(_PER_PROBE / share), view.of_times))
    if efforts[0] == efforts[1]:
        del efforts[0]
    for per_probe, where in efforts:
        found, rows = _compare_nearest(view, query, comparison, per_probe, where)
        picked = _pick(view, found, top)
        if len(picked) >= top:
            break
    return Found(found, picked, rows)


def rows_under(view: View, clips: np.ndarray, firsts: np.ndarray, length: int, columns: list[str]) -> Any:
    """All rows that a query of some length meets at some places.

    Args:
        view: What is searched.
        clips: Numbers of clips, `(places,)`.
        firsts: Moment that the query's first window meets, `(places,)`.
        length: Of the query.
        columns: What is read of the rows.

    Returns:
        A table of the columns and `_rowid`, in no certain order.
    """
    ids, found, windows = view.store.locate([view.clips.entries[number].rows for number in np.unique(clips)])
    begins = np.sort(_code(clips, firsts))
    codes = _code(view.numbers_of(found), windows)
    # Under a place lie the rows from its first moment on; the last place that begins at or before a row tells.
    last = np.searchsorted(begins, codes, side="right") - 1
    under = (last >= 0) & (codes - begins[np.maximum(last, 0)] < length)
    return view.store.take(ids[under], columns)


def _min_pairs(view: View, query: Query) -> int:
    return max(1, math.ceil(view.filters.min_overlap * int(query.present.sum()) - 1e-9))


def _compare_nearest(
    view: View, query: Query, comparison: Comparison, per_probe: int, where: str | None
) -> tuple[Alignments, Any]:
    """Compare the places that so many moments for each probe point at; gives the rows that were read, too."""
    import pyarrow as pa

    places = np.flatnonzero(query.present)
    looking = min(len(places), int(np.clip(len(places) // 2, *_PROBES)))
    probes = places[np.unique(np.linspace(0, len(places) - 1, looking).round().astype(int))]
    count = per_probe * (_PROJECTED if query.projections else 1)
    ids, meets, votes = [], [], []
    for asked, stored in comparison.all_pairs:
        vectors = query.probes(asked, stored, probes)
        partitions = partitions_to_search(view.clips.partitions[stored])
        found, which, cosines = view.store.nearest(stored, vectors, count, where, partitions=partitions)
        ids.append(found)
        meets.append(probes[which])
        # Each of as many moments is near by chance: they speak for their places by how much nearer they are than the
        # farthest that the probe found.
        farthest = np.full(len(probes), np.inf)
        np.minimum.at(farthest, which, cosines)
        votes.append(cosines - farthest[which])
    slack = _SLACK if len(query) > 1 else 0
    reach = len(query) + 2 * slack
    row_bytes = 2 * view.store.settings.hidden_size * len(comparison.stored)
    most = int(np.clip(_CANDIDATE_BYTES // (reach * row_bytes), *_CANDIDATES)) * count // _PER_PROBE
    near, met = _strongest(np.concatenate(ids), np.concatenate(meets), np.concatenate(votes), most)
    if not len(near):
        return Alignments.none(), None
    limited = [name for name, _, _ in view.limits if name != "loudness"]
    columns = ["rows", "window", "loudness", *limited, *comparison.stored]
    around = np.unique(np.unique(near - met)[:, None] + np.arange(-slack, len(query) + slack))
    rows = view.store.take(around[around >= 0], columns)
    numbers, windows = view.numbers_of(rows["rows"]), rows["window"].to_numpy()
    # The rows that were near tell where in which clip the query's first window lies.
    order = np.argsort(rows["_rowid"].to_numpy())
    at = order[np.searchsorted(rows["_rowid"].to_numpy(), near, sorter=order)]
    clips, firsts = numbers[at], windows[at] - met
    clips, firsts = np.unique(np.stack((clips, firsts))[:, clips >= 0], axis=1)
    beside = firsts[:, None] + np.arange(-slack, len(query) + slack)
    expected = _code(clips[:, None], beside)[(beside >= 0) & (beside < view.clips.moments[clips][:, None])]
    absent = np.setdiff1d(expected, _code(numbers, windows))
    if len(absent):
        more = np.isin(clips, np.unique(absent >> 32))
        others = rows_under(view, clips[more], firsts[more] - slack, reach, columns)
        others = others.filter(~np.isin(others["_rowid"].to_numpy(), rows["_rowid"].to_numpy()))
        rows = pa.concat_tables([rows, others])
        numbers, windows = view.numbers_of(rows["rows"]), rows["window"].to_numpy()
    kept = (numbers >= 0) & view.allows(rows)
    compared = align(
        similarity(query, comparison, rows)[:, kept], numbers[kept], windows[kept], present=query.present,
        min_pairs=_min_pairs(view, query),
    )  # fmt: skip
    # Others hang over the borders of what was fetched.
    wanted = np.concatenate([_code(clips, firsts + shift) for shift in range(-slack, slack + 1)])
    fetched = np.isin(_code(compared.clips, compared.firsts), wanted)
    return Alignments(*(values[fetched] for values in compared)), rows


def _strongest(ids: np.ndarray, meets: np.ndarray, votes: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of rows and the windows they meet, of the diagonals that most, and most alike, moments speak for."""
    diagonals, which = np.unique(ids - meets, return_inverse=True)
    chosen = np.zeros(len(diagonals), bool)
    chosen[np.argsort(-np.bincount(which, votes, len(diagonals)), kind="stable")[:most]] = True
    return ids[chosen[which]], meets[chosen[which]]


def _code(clips: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Clip and moment as one number; no clip has so many moments, and no query begins so far before one."""
    return clips.astype(np.int64) * (1 << 32) + windows.astype(np.int64) + (1 << 20)


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
