# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which moment of which clip a row is, from its id alone, and where the row of a moment lies.

The rows of a clip are written one after the other, so that a few stretches tell of all rows; rows that lie elsewhere,
as those of two writers in turn do, are stretches of their own.
"""

from typing import NamedTuple

import numpy as np

from .store import MomentStore


class Runs(NamedTuple):
    """Stretches of rows whose ids and moments both rise by one, `(stretches,)` each, by their ids.

    Attributes:
        ids: Of the first row of each.
        lengths: Rows of each.
        clips: Number of the clip, -1 for rows of none.
        windows: Moment of the first row.
        codes: Clips and moments as `code` joins them, rising.
        order: Places of the stretches in the order of `codes`.
    """

    ids: np.ndarray
    lengths: np.ndarray
    clips: np.ndarray
    windows: np.ndarray
    codes: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, store: MomentStore, numbers: dict[str, int]) -> "Runs":
        """Those of an index.

        Args:
            store: The index.
            numbers: Number of each clip, by the name of its rows.
        """
        parts = [np.zeros((4, 0), np.int64)]
        for batch in store.scan(["rows", "window"], row_ids=True):
            coded = batch["rows"].dictionary_encode()
            clips = np.array([numbers.get(name, -1) for name in coded.dictionary.to_pylist()], np.int64)
            which, windows = coded.indices.to_numpy(), batch["window"].to_numpy().astype(np.int64)
            ids = batch["_rowid"].to_numpy().astype(np.int64)
            follows = (np.diff(ids) == 1) & (np.diff(windows) == 1) & (np.diff(which) == 0)
            begins = np.concatenate(([0], np.flatnonzero(~follows) + 1))[: len(ids)]
            lengths = np.diff(begins, append=len(ids))
            parts.append(np.stack((ids[begins], lengths, clips[which[begins]], windows[begins])))
        ids, lengths, clips, windows = np.concatenate(parts, axis=1)
        by_id = np.argsort(ids)
        codes = code(clips, windows)[by_id]
        order = np.argsort(codes, kind="stable")
        return cls(ids[by_id], lengths[by_id], clips[by_id], windows[by_id], codes[order], order)

    def moments(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Clip and moment of each of some rows; the clip is -1 where the row belongs to none."""
        if not len(self.ids):
            return np.full(len(ids), -1), np.zeros(len(ids), np.int64)
        at, beyond = _within(self.ids, ids)
        there = (beyond >= 0) & (beyond < self.lengths[at])
        return np.where(there, self.clips[at], -1), self.windows[at] + beyond

    def rows(self, codes: np.ndarray) -> np.ndarray:
        """Ids of the rows of some moments, told by `code`; moments that no clip has are left out."""
        if not len(self.ids):
            return np.zeros(0, np.int64)
        at, beyond = _within(self.codes, codes)
        at = self.order[at]
        there = (beyond >= 0) & (beyond < self.lengths[at])
        return self.ids[at[there]] + beyond[there]


def _within(begins: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each value the place of the last beginning that is no greater, and how far beyond it the value is."""
    at = np.maximum(np.searchsorted(begins, values, side="right") - 1, 0)
    return at, values - begins[at]


def code(clips: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Clip and moment as one number; no clip has so many moments, and no query begins so far before one."""
    return np.asarray(clips).astype(np.int64) * (1 << 32) + np.asarray(windows).astype(np.int64) + (1 << 20)
