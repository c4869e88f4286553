# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The approximate index: from which size on it is built, how, and how much of it is searched.

Below the threshold every moment is compared, which is exact. Above it, vectors are sorted into parts (IVF) and
compressed; a search reads some of the parts and compares the nearest candidates exactly. The defaults were measured
with `training/benchmarks/search.py`.
"""

import math
from typing import Any

from .store import MomentStore

# Comparing as many moments takes about a second on two cores.
DEFAULT_THRESHOLD = 100_000
# Where a pattern of files and limits of time leave few moments, or few bytes of vectors, all of them are compared,
# which takes no longer than the approximate index. Its time grows with the windows that ask (no more than so many do)
# and with the moments that it finds before the filters, the more the fewer are left: so the root.
COMPARED_ALL, COMPARED_ALL_BYTES = 2_000, 6 << 20
COMPARED_ALL_OF, COMPARED_ALL_WINDOWS = 75, 16
# Small pieces of the tables that a search may have to visit.
_PIECES = 32
# Rows that the index does not cover are compared one by one: exact, but slow.
_UNCOVERED_SHARE = 0.05
# The parts are made for the vectors that there are; so many times more need parts of their own.
_GROWTH_UNTIL_REBUILT = 4
# Nearly all of the time to build it goes into comparing every vector with the centre of every part, which LanceDB does
# one float16 value at a time. So there are no more parts from a million rows up to ten million; from there on their
# number and their size grow alike.
_ROWS_PER_PARTITION = 5_000
_PARTITIONS, _ROWS_OF_PARTITIONS = 200, 10_000_000
_SEARCHED_SHARE = 0.05
_LEAST_SEARCHED = 20


def index_config(rows: int) -> Any:
    """LanceDB's description of an index of so many vectors."""
    from lancedb.index import IvfRq

    return IvfRq(distance_type="cosine", num_partitions=number_of_partitions(rows), sample_rate=32, max_iterations=12)


def number_of_partitions(rows: int) -> int:
    """Parts into which so many vectors are sorted."""
    most = _PARTITIONS * math.sqrt(max(1.0, rows / _ROWS_OF_PARTITIONS))
    return max(1, round(min(rows / _ROWS_PER_PARTITION, most)))


def partitions_to_search(total: int) -> int:
    """How many of so many parts of an index a search looks into."""
    return min(total, max(_LEAST_SEARCHED, math.ceil(_SEARCHED_SHARE * total)))


def keep_index(store: MomentStore, threshold: int) -> int:
    """Join the small pieces that adding leaves, and build or extend the approximate index where it is worth it.

    Args:
        store: The index.
        threshold: Rows from which on there is to be an approximate index.

    Returns:
        Rows that it covers now.
    """
    rows = store.count()
    if not rows:
        return 0
    covered = store.indexed_columns()
    if store.pieces() > _PIECES or (covered and rows - min(covered.values()) > _UNCOVERED_SHARE * rows):
        store.optimise()
        covered = store.indexed_columns()
    if rows >= threshold:
        trained_on = store.trained_on()
        stale = [
            side
            for side in ("audio", "video")
            if store.has_vectors(side) and rows > _GROWTH_UNTIL_REBUILT * trained_on.get(side, 0)
        ]
        if stale:
            store.build_index(index_config(rows), rows, stale)
            covered = store.indexed_columns()
    return min(covered.values(), default=0)
