# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Similarities between clips and retrieval metrics: parity, ties, masks, memory."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cavmae_sync_hf.metrics.retrieval import (
    RetrievalRanks,
    rank_metrics,
    retrieval_metrics,
    retrieval_ranks,
    similarity_ranks,
)
from cavmae_sync_hf.metrics.similarity import (
    STRATEGIES,
    clip_similarity,
    make_sides,
    paired_similarity,
    similarity_blocks,
)
from helpers.apart import run_apart

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def reference():
    return load_file(FIXTURES / "retrieval.safetensors")


def embeds(clips=7, frames=4, hidden=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clips, frames, hidden, generator=generator)


def double_loop(audio, video, strategy, audio_mask=None, video_mask=None):
    """The definition, pair by pair, in float64."""
    audio, video = (torch.nn.functional.normalize(part.double(), dim=-1) for part in (audio, video))
    result = torch.empty(len(audio), len(video), dtype=torch.float64)
    for i, j in itertools.product(range(len(audio)), range(len(video))):
        values = []
        for t, s in itertools.product(range(audio.shape[1]), range(video.shape[1])):
            if strategy.startswith("diagonal") and t != s:
                continue
            if (audio_mask is None or audio_mask[i, t]) and (video_mask is None or video_mask[j, s]):
                values.append(float(audio[i, t] @ video[j, s]))
        reduce = max if strategy.endswith("max") else lambda given: sum(given) / len(given)
        result[i, j] = reduce(values) if values else -torch.inf
    return result


# Similarity


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clip_similarity__matches_published_values(reference, strategy):
    ours = clip_similarity(reference["audio_embeds"], reference["video_embeds"], strategy)
    # Sums of 16 x 32 products in float32, in another order.
    torch.testing.assert_close(ours, reference[f"sim_{strategy}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_retrieval_metrics__matches_published_values(reference, strategy):
    cases = json.loads((FIXTURES / "cases.json").read_text())
    published = next(case for case in cases if case["case"] == "retrieval")["metrics_audio_to_video"][strategy]
    audio, video = reference["audio_embeds"], reference["video_embeds"]
    for ours in (
        retrieval_metrics(clip_similarity(audio, video, strategy)),
        retrieval_metrics(audio_embeds=audio, video_embeds=video, strategy=strategy),
    ):
        for k in (1, 5, 10):
            assert ours[f"audio_to_video_r{k}"] == pytest.approx(published[f"R@{k}"], abs=1e-5)
        assert ours["audio_to_video_median_rank"] == published["MedR"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clip_similarity__matches_its_definition(strategy, masked):
    audio, video = embeds(5, seed=1), embeds(6, seed=2)
    masks = {}
    if masked:
        masks = {
            "audio_mask": torch.rand(5, 4, generator=torch.Generator().manual_seed(3)) > 0.4,
            "video_mask": torch.rand(6, 4, generator=torch.Generator().manual_seed(4)) > 0.4,
        }
        masks["audio_mask"][2] = False  # a clip without audio
        audio[~masks["audio_mask"]] = torch.nan  # whatever stands there must not matter
    ours = clip_similarity(audio, video, strategy, **masks)
    expected = double_loop(audio.nan_to_num(), video, strategy, **masks)
    torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=0)
    if masked:
        assert torch.isneginf(ours[2]).all()


@pytest.mark.parametrize("side", ["audio_mask", "video_mask"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clip_similarity__takes_one_mask(strategy, side):
    audio, video = embeds(5, seed=1), embeds(5, seed=2)
    mask = {side: torch.tensor([[True, False, True, True]] * 5)}
    expected = double_loop(audio, video, strategy, **mask)
    torch.testing.assert_close(clip_similarity(audio, video, strategy, **mask).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("strategy", ["mean", "max"])
def test_clip_similarity__takes_different_numbers_of_windows_and_frames(strategy):
    audio, video = embeds(5, frames=3, seed=1), embeds(4, frames=5, seed=2)
    masks = {"video_mask": torch.tensor([[True, False, True, False, True]] * 4)}
    for given in ({}, masks):
        ours = clip_similarity(audio, video, strategy, **given)
        torch.testing.assert_close(ours.double(), double_loop(audio, video, strategy, **given), atol=1e-6, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clip_similarity__does_not_depend_on_chunks(strategy, masked):
    audio, video = embeds(11, seed=1), embeds(9, seed=2)
    masks = {"audio_mask": torch.arange(44).view(11, 4) % 3 > 0} if masked else {}
    whole = clip_similarity(audio, video, strategy, **masks)
    small = clip_similarity(audio, video, strategy, chunk_bytes=4000, **masks)
    torch.testing.assert_close(small, whole, atol=1e-6, rtol=0)


def test_similarity_blocks__shrink_with_the_budget():
    sides = make_sides(embeds(50), embeds(50), "max")
    assert [scores.shape for _, _, scores in similarity_blocks(*sides, 2**20)] == [(50, 50)]
    shapes = [scores.shape for _, _, scores in similarity_blocks(*sides, 20_000)]
    # Copies of 14 clips of each modality (4 x 6 floats, three times) and 14 x 14 pairs (14 floats) are 19 kB.
    assert len(shapes) == 16 and max(shapes) == (14, 14)
    assert sum(rows * columns for rows, columns in shapes) == 2500


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_paired_similarity__is_the_diagonal(strategy):
    audio, video = embeds(seed=1), embeds(seed=2)
    masks = {"audio_mask": torch.arange(28).view(7, 4) % 3 > 0, "video_mask": torch.arange(28).view(7, 4) % 5 > 0}
    masks["video_mask"][3] = False
    for given in ({}, masks):
        whole = clip_similarity(audio, video, strategy, **given).diagonal()
        torch.testing.assert_close(paired_similarity(audio, video, strategy, **given), whole, atol=1e-6, rtol=0)
        small = paired_similarity(audio, video, strategy, chunk_bytes=2000, **given)
        torch.testing.assert_close(small, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_clip_similarity__computes_half_precision_in_float32(dtype):
    audio, video = embeds(hidden=256, seed=1).to(dtype), embeds(hidden=256, seed=2).to(dtype)
    ours = clip_similarity(audio, video)
    assert ours.dtype == torch.float32
    # Far below the steps of half precision: only the inputs are rounded.
    torch.testing.assert_close(ours, clip_similarity(audio.float(), video.float()), atol=1e-7, rtol=0)


def test_clip_similarity__keeps_float64():
    ours = clip_similarity(embeds(seed=1).double(), embeds(seed=2).double(), "max")
    torch.testing.assert_close(ours, double_loop(embeds(seed=1), embeds(seed=2), "max"), atol=1e-14, rtol=0)


def test_clip_similarity__reads_memory_maps(tmp_path):
    audio, video = embeds(seed=1), embeds(seed=2)
    maps = []
    for name, values in (("a", audio), ("v", video)):
        np.save(tmp_path / f"{name}.npy", values.numpy())
        maps.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    assert torch.equal(clip_similarity(*maps), clip_similarity(audio, video))
    assert retrieval_metrics(audio_embeds=maps[0], video_embeds=maps[1]) == retrieval_metrics(
        audio_embeds=audio, video_embeds=video
    )


def test_clip_similarity__without_normalisation_is_the_product():
    audio, video = embeds(seed=1), embeds(seed=2)
    ours = clip_similarity(audio, video, normalize=False)
    torch.testing.assert_close(ours, torch.einsum("itd,jtd->ij", audio, video) / 4, atol=1e-5, rtol=0)
    # Normalised embeddings do not change by it.
    unit = [torch.nn.functional.normalize(part, dim=-1) for part in (audio, video)]
    torch.testing.assert_close(clip_similarity(*unit, normalize=False), clip_similarity(*unit), atol=1e-6, rtol=0)


def test_clip_similarity__leaves_its_inputs_alone():
    audio, video = embeds(seed=1), embeds(seed=2)
    mask = torch.arange(28).view(7, 4) % 3 > 0
    retrieval_metrics(audio_embeds=audio, video_embeds=video, audio_mask=mask, normalize=False)
    similarity = clip_similarity(audio, video)
    kept = similarity.clone()
    retrieval_metrics(similarity)
    assert torch.equal(audio, embeds(seed=1)) and torch.equal(video, embeds(seed=2)) and torch.equal(similarity, kept)


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clip_similarity__is_the_same_on_a_gpu(strategy):
    audio, video = embeds(30, seed=1), embeds(30, seed=2)
    masks = {"audio_mask": torch.arange(120).view(30, 4) % 3 > 0}
    expected = clip_similarity(audio, video, strategy, **masks)
    ours = clip_similarity(audio, video, strategy, device="cuda", **masks)
    assert ours.device.type == "cpu"
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    on_gpu = retrieval_ranks(audio.cuda(), video.cuda(), strategy, chunk_bytes=20_000, **masks)
    for mine, theirs in zip(on_gpu, retrieval_ranks(audio, video, strategy, **masks), strict=True):
        assert torch.equal(mine.better, theirs.better)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "median"}, "'median'; choose one of diagonal_mean"),
        ({"audio_embeds": torch.zeros(7, 6)}, r"\(7, 6\); it must be \(clips, frames, hidden\)"),
        ({"audio_embeds": torch.zeros(0, 4, 6)}, "none of them 0"),
        ({"audio_embeds": [[1.0]]}, "is a list; pass a torch tensor"),
        ({"audio_embeds": torch.zeros(7, 4, 6, dtype=torch.int64)}, "torch.int64; convert"),
        ({"audio_embeds": torch.zeros(7, 4, 5)}, "5 dimensions, the video embeddings 6"),
        ({"audio_embeds": torch.zeros(7, 3, 6)}, "3 windows and 4 frames"),
        ({"audio_mask": torch.ones(7, 3)}, r"\(7, 3\); it must be .* \(7, 4\)"),
        ({"chunk_bytes": 100}, "`chunk_bytes` is 100; one pair of clips of this shape needs"),
    ],
)
@pytest.mark.parametrize("function", [clip_similarity, paired_similarity])
def test_clip_similarity__names_what_is_wrong(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(**{"audio_embeds": embeds(), "video_embeds": embeds(), **arguments})


def test_clip_similarity__names_the_clip_that_is_not_finite():
    audio = embeds(40)
    audio[33, 1, 2] = torch.nan
    for budget in (2**20, 20_000):
        with pytest.raises(ValueError, match="`audio_embeds` of clip 33 hold NaN"):
            clip_similarity(audio, embeds(40), chunk_bytes=budget)
    mask = torch.ones(40, 4, dtype=torch.bool)
    mask[33, 1] = False
    assert torch.isfinite(clip_similarity(audio, embeds(40), audio_mask=mask)).all()


# Ranks and metrics


def test_retrieval_metrics__by_hand():
    similarity = torch.tensor([[0.9, 0.1, 0.3], [0.8, 0.2, 0.7], [0.0, 0.4, 0.5]])
    metrics = retrieval_metrics(similarity, ks=(1, 2), clips_expected=4)
    # Rows: ranks 1, 3, 1. Columns: 0.9 first; 0.2 behind 0.4; 0.5 behind 0.7.
    assert metrics == {
        "audio_to_video_r1": pytest.approx(2 / 3),
        "audio_to_video_r2": pytest.approx(2 / 3),
        "audio_to_video_median_rank": 1.0,
        "audio_to_video_mean_rank": pytest.approx(5 / 3),
        "video_to_audio_r1": pytest.approx(1 / 3),
        "video_to_audio_r2": 1.0,
        "video_to_audio_median_rank": 2.0,
        "video_to_audio_mean_rank": pytest.approx(5 / 3),
        "clips_seen": 3,
        "clips_expected": 4,
    }


def test_rank_metrics__median_of_an_even_number_is_the_mean_of_the_middle():
    ranks = RetrievalRanks(torch.tensor([0, 1, 4, 9]), torch.zeros(4, dtype=torch.int64), 10)
    assert rank_metrics(ranks)["median_rank"] == 3.5


@pytest.mark.parametrize(
    ("ties", "r1", "r2", "rank"), [("expected", 1 / 3, 2 / 3, 2.0), ("optimistic", 1, 1, 1), ("pessimistic", 0, 0, 3)]
)
def test_rank_metrics__counts_a_tie_once(ties, r1, r2, rank):
    similarity = torch.tensor([[0.5, 0.5, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    metrics = retrieval_metrics(similarity, ks=(1, 2), ties=ties)
    # Query 0 is level with two others, queries 1 and 2 are right; three queries in the denominator.
    assert metrics["audio_to_video_r1"] == pytest.approx((r1 + 2) / 3)
    assert metrics["audio_to_video_r2"] == pytest.approx((r2 + 2) / 3)
    assert metrics["audio_to_video_mean_rank"] == pytest.approx((rank + 2) / 3)


def test_rank_metrics__expectation_is_the_average_over_orders():
    # Two better, two level with the true match: the mean over all six orders of the three that are level.
    ranks = RetrievalRanks(torch.tensor([2]), torch.tensor([2]), 8)
    places = [3 + order.index("true") for order in itertools.permutations(["true", "b", "c"])]
    assert rank_metrics(ranks)["mean_rank"] == pytest.approx(np.mean(places))
    for k in range(1, 7):
        assert float(ranks.recalls(k)[0]) == pytest.approx(np.mean([place <= k for place in places]))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("budget", [2**20, 20_000])
def test_retrieval_metrics__collapsed_embeddings_score_chance(strategy, budget):
    one = embeds(1, seed=5).expand(40, 4, 6)
    metrics = retrieval_metrics(audio_embeds=one, video_embeds=one + 0.1, strategy=strategy, chunk_bytes=budget)
    for direction in ("audio_to_video", "video_to_audio"):
        assert metrics[f"{direction}_r1"] == pytest.approx(1 / 40)
        assert metrics[f"{direction}_r10"] == pytest.approx(10 / 40)
        assert metrics[f"{direction}_median_rank"] == pytest.approx(20.5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("budget", [2**22, 20_000])
def test_retrieval_ranks__equal_those_of_the_whole_matrix(strategy, masked, budget):
    audio = embeds(61, seed=1)
    video = audio + 1.5 * embeds(61, seed=2)
    audio[7], video[7] = audio[30], video[30]  # two clips alike: ties
    masks = {"audio_mask": torch.arange(244).view(61, 4) % 3 > 0} if masked else {}
    if masked:
        masks["audio_mask"][7] = masks["audio_mask"][30]
        masks["audio_mask"][12] = False
    chunked = retrieval_ranks(audio, video, strategy, chunk_bytes=budget, **masks)
    whole = similarity_ranks(clip_similarity(audio, video, strategy, **masks), tolerance=1e-6)
    for ours, expected in zip(chunked, whole, strict=True):
        assert torch.equal(ours.better, expected.better) and torch.equal(ours.tied, expected.tied)
        assert ours.candidates == 61
    assert chunked[0].tied[7] >= 1 and chunked[0].better.max() > 0
    if masked:
        assert chunked[0].better[12] == 0 and chunked[0].tied[12] == 60  # nothing is comparable: all level
        assert chunked[1].better[12] == 60


def test_similarity_ranks__match_sorting_and_do_not_depend_on_order():
    similarity = torch.rand(50, 50, generator=torch.Generator().manual_seed(0)).mul(20).round()
    by_row, by_column = similarity_ranks(similarity, chunk_bytes=3000)
    for ranks, matrix in ((by_row, similarity), (by_column, similarity.T)):
        for query, row in enumerate(matrix.tolist()):
            others = row[:query] + row[query + 1 :]
            assert int(ranks.better[query]) == sum(value > row[query] for value in others)
            assert int(ranks.tied[query]) == others.count(row[query])
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    shuffled = similarity_ranks(similarity[order][:, order])[0]
    assert torch.equal(shuffled.better, by_row.better[order]) and torch.equal(shuffled.tied, by_row.tied[order])
    assert retrieval_metrics(similarity) == retrieval_metrics(similarity.numpy())


def test_retrieval_metrics__of_one_clip_and_of_minus_infinity():
    assert retrieval_metrics(torch.zeros(1, 1))["audio_to_video_r1"] == 1.0
    similarity = torch.full((3, 3), -torch.inf)
    similarity[1, 1] = 0.5
    metrics = retrieval_metrics(similarity, ks=(1,))
    assert metrics["audio_to_video_r1"] == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either a similarity matrix or both"),
        ({"audio_embeds": embeds()}, "either a similarity matrix or both"),
        ({"similarity": torch.eye(3), "audio_embeds": embeds(), "video_embeds": embeds()}, "either"),
        ({"similarity": torch.eye(3), "audio_mask": torch.ones(3, 1)}, "Masks belong to embeddings"),
        ({"similarity": torch.ones(3, 2)}, r"\(3, 2\); it must be \(clips, clips\)"),
        ({"similarity": torch.tensor([[1.0, 0.0], [torch.nan, 1.0]])}, "NaN in row 1"),
        ({"similarity": torch.eye(3), "clips_expected": 2}, "`clips_expected` is 2, but 3 clips"),
        ({"similarity": torch.eye(3), "ties": "none"}, "'none'; choose one of expected"),
        ({"similarity": torch.eye(3), "ks": (0,)}, "k is 0"),
        ({"similarity": torch.eye(3), "tolerance": -1.0}, "must not be negative"),
        ({"audio_embeds": embeds(3), "video_embeds": embeds(4)}, "3 clips of audio and 4 of video"),
    ],
)
def test_retrieval_metrics__names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**arguments)


def test_retrieval__ranks_of_many_clips_never_hold_the_matrix(tmp_path):
    code = """
import resource, sys, torch
from cavmae_sync_hf.metrics.retrieval import retrieval_ranks
torch.set_num_threads(1)
few = torch.randn(50, 1, 8)
retrieval_ranks(few, few)
audio = torch.randn(12_000, 1, 8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ranks, _ = retrieval_ranks(audio, audio + 0.1 * torch.randn_like(audio), chunk_bytes=16 * 2**20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10, len(ranks.better))
"""
    done = run_apart(["-c", code], tmp_path, PYTHONPATH=":".join(sys.path))

    assert done.returncode == 0, done.stderr
    megabytes, queries = map(float, done.stdout.split())
    # The whole matrix has 549 MiB; the budget is 16, beside counts and what an allocator keeps.
    assert queries == 12_000 and megabytes < 100
