"""Alignments of a query with clips: every diagonal, and the best ones apart in time."""

import numpy as np
import pytest

from cavmae_sync_hf.search import alignment as alignment_module
from cavmae_sync_hf.search.alignment import align, best_apart


def alignments_by_hand(similarity, clips, windows, present, min_pairs):
    """Every diagonal, pair by pair."""
    found = {}
    place = {
        (int(clip), int(window)): column for column, (clip, window) in enumerate(zip(clips, windows, strict=True))
    }
    queries = len(similarity)
    for clip in sorted(set(clips.tolist())):
        own = [window for number, window in place if number == clip]
        for first in range(min(own) - queries + 1, max(own) + 1):
            values = [
                similarity[i, place[clip, first + i]]
                for i in range(queries)
                if present[i] and (clip, first + i) in place and not np.isnan(similarity[i, place[clip, first + i]])
            ]
            if len(values) >= min_pairs:
                found[clip, first] = (sum(values) / present.sum(), len(values))
    return found


@pytest.mark.parametrize("block", [1 << 24, 40])
@pytest.mark.parametrize("queries", [1, 2, 5, 9])
@pytest.mark.parametrize("min_pairs", [1, 3])
def test_align__is_every_diagonal_pair_by_pair(queries, min_pairs, block, monkeypatch):
    monkeypatch.setattr(alignment_module, "_BLOCK_VALUES", block)
    generator = np.random.default_rng(queries)
    clips = np.repeat([7, 3, 5, 4], [6, 1, 30, 12])
    windows = np.concatenate([np.arange(6), [0], np.arange(30), np.arange(12)])
    kept = np.flatnonzero(~((clips == 5) & np.isin(windows, [4, 5, *range(12, 26)])))  # holes, one longer than a query
    kept = generator.permutation(kept)
    clips, windows = clips[kept], windows[kept]
    similarity = generator.standard_normal((queries, len(kept))).astype(np.float32)
    similarity[:, generator.random(len(kept)) < 0.1] = np.nan
    present = np.ones(queries, bool)
    present[queries // 3] = queries < 3

    found = align(similarity, clips, windows, present=present, min_pairs=min_pairs)

    expected = alignments_by_hand(similarity, clips, windows, present, min_pairs)
    places = list(zip(found.clips.tolist(), found.firsts.tolist(), strict=True))
    assert sorted(places) == sorted(expected)
    np.testing.assert_allclose(found.scores, [expected[place][0] for place in places], atol=1e-6)
    assert found.counts.tolist() == [expected[place][1] for place in places]


def test_align__of_nothing():
    found = align(np.zeros((3, 0), np.float32), np.zeros(0), np.zeros(0))

    assert len(found.scores) == 0


def test_best_apart__suppresses_the_neighbours_of_better_ones():
    scores = np.array([0.9, 0.95, 0.8, 0.7, 0.93])
    groups = np.array([0, 0, 0, 0, 1])
    times = np.array([1.0, 1.5, 2.5, 9.0, 1.5])

    assert best_apart(scores, groups, times, top=10, min_gap=1.0) == [1, 4, 2, 3]
    assert best_apart(scores, groups, times, top=10, min_gap=1.01) == [1, 4, 3]
    assert best_apart(scores, groups, times, top=2, min_gap=0.0) == [1, 4]
    assert best_apart(scores, groups, times, top=10, min_gap=0.0, per_group=1) == [1, 4]


def test_best_apart__sorts_no_more_than_needed_and_keeps_ties_in_order():
    scores = np.repeat(np.float32([3, 1, 2]), 7000)

    picked = best_apart(scores, np.arange(len(scores)), np.zeros(len(scores)), top=len(scores), min_gap=1.0)

    assert picked == np.argsort(-scores, kind="stable").tolist()
