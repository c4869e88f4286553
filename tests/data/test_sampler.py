# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Balanced sampling draws rare classes as often as common ones, alike on all processes."""

import pickle
from collections import Counter

import pytest
import torch

from cavmae_sync_hf.data.dataset import ClassBalancedSampler, Draw, class_balanced_weights

# 90 clips of class 0, 9 of class 1, one of class 2.
SINGLE = [[0]] * 90 + [[1]] * 9 + [[2]]


def test_single_label__classes_come_equally_often():
    sampler = ClassBalancedSampler(SINGLE, num_samples=9000)
    drawn = Counter(SINGLE[number][0] for number in sampler)
    # Binomial with p = 1/3: standard deviation 45 of 3000, four of them. The offset of 0.01 moves the mean by 9.
    for label in range(3):
        assert abs(drawn[label] - 3000) < 180, drawn


def test_multi_label__weights_are_the_sum_over_labels():
    labels = [[0], [0, 1], [0, 1, 2], []]
    weights = class_balanced_weights(labels)
    # Counts 3, 2, 1; the offset of 0.01 changes the third digit.
    expected = torch.tensor([1 / 3, 1 / 3 + 1 / 2, 1 / 3 + 1 / 2 + 1.0, 0.0], dtype=torch.float64)
    assert torch.allclose(weights, expected / expected.sum(), atol=0.005)
    assert weights[3] == 0
    assert torch.equal(class_balanced_weights([[0, 0], [1]]), class_balanced_weights([[0], [1]]))
    drawn = Counter(int(number) for number in ClassBalancedSampler(labels, num_samples=6000))
    assert drawn[3] == 0
    assert abs(drawn[2] / 6000 - float(weights[2])) < 0.03  # 4.5 standard deviations


def test_processes__share_the_same_draws_equally():
    whole = [int(number) for number in ClassBalancedSampler(SINGLE, num_samples=100)]
    parts = [
        [int(number) for number in ClassBalancedSampler(SINGLE, num_samples=100, rank=rank, world_size=4)]
        for rank in range(4)
    ]
    assert [len(part) for part in parts] == [25] * 4
    assert [number for row in zip(*parts, strict=True) for number in row] == whole
    assert len(ClassBalancedSampler(SINGLE, num_samples=10, rank=1, world_size=4)) == 3


def test_draws__depend_on_seed_and_epoch_alone():
    def draws(seed: int, epoch: int) -> list[int]:
        sampler = ClassBalancedSampler(SINGLE, seed=seed)
        sampler.set_epoch(epoch)
        return [int(number) for number in sampler]

    torch.manual_seed(0)
    first = draws(0, 0)
    torch.manual_seed(1)
    assert draws(0, 0) == first
    assert draws(0, 1) != first and draws(1, 0) != first


def test_draw__counts_repetitions_over_all_processes():
    draws = [draw for rank in range(2) for draw in ClassBalancedSampler(SINGLE, rank=rank, world_size=2)]
    rare = sorted(draw.draw for draw in draws if draw == 99)
    assert len(rare) > 10 and rare == list(range(len(rare)))
    copy = pickle.loads(pickle.dumps(Draw(7, 3)))
    assert copy == 7 and copy.draw == 3 and [10, 20, 30][Draw(1, 5)] == 20


def test_without_labels__is_an_error():
    with pytest.raises(ValueError, match="needs labels"):
        ClassBalancedSampler([[], []])
    with pytest.raises(ValueError, match="`rank` is 2"):
        ClassBalancedSampler(SINGLE, rank=2, world_size=2)
    with pytest.raises(ValueError, match="`num_samples` is 0"):
        ClassBalancedSampler(SINGLE, num_samples=0)
