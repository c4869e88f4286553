# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Classification metrics against scikit-learn and hand-computed values."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from cavmae_sync_hf.metrics import classification as ours


def samples(ties=False, count=60, classes=5, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.random((count, classes)) < 0.3
    scores = labels * 0.8 + generator.normal(size=(count, classes))
    return labels.astype(int), np.round(scores) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
def test_binary_metrics__match_sklearn(ties):
    labels, scores = samples(ties)
    for k in range(5):
        expected = sk.average_precision_score(labels[:, k], scores[:, k])
        assert ours.average_precision(labels[:, k], scores[:, k]) == pytest.approx(expected, abs=1e-12)
        assert ours.roc_auc(labels[:, k], scores[:, k]) == pytest.approx(
            sk.roc_auc_score(labels[:, k], scores[:, k]), abs=1e-12
        )
        passed, found, _ = sk.roc_curve(labels[:, k], scores[:, k], drop_intermediate=False)
        fine = np.linspace(0, 1, 200_001)
        crossing = fine[np.argmin(np.abs(1 - fine - np.interp(fine, passed, found)))]
        # The grid is 5e-6 wide.
        assert ours.equal_error_rate(labels[:, k], scores[:, k]) == pytest.approx(crossing, abs=1e-5)


def test_multilabel_metrics__match_sklearn():
    labels, scores = samples()
    assert ours.mean_average_precision(labels, scores) == pytest.approx(
        sk.average_precision_score(labels, scores, average="macro"), abs=1e-12
    )
    assert ours.mean_roc_auc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)


def test_single_label_metrics__match_sklearn():
    generator = np.random.default_rng(1)
    labels, scores = generator.integers(0, 6, 80), generator.normal(size=(80, 6))
    assert ours.accuracy(labels, scores) == pytest.approx(sk.accuracy_score(labels, scores.argmax(axis=1)))
    for k in (1, 2, 5, 6):
        expected = sk.top_k_accuracy_score(labels, scores, k=k, labels=range(6)) if k < 6 else 1.0
        assert ours.hit_at_k(labels, scores, k) == pytest.approx(expected)
    # Class numbers and one-hot labels are the same.
    assert ours.classification_metrics(labels, scores) == ours.classification_metrics(np.eye(6)[labels], scores)


def test_average_precision__by_hand():
    # From the top: hit (1/1), miss, hit (2/3), miss.
    assert ours.average_precision([1, 0, 1, 0], [4.0, 3.0, 2.0, 1.0]) == pytest.approx((1 + 2 / 3) / 2)
    # All level: one threshold, half of what passes is right.
    assert ours.average_precision([1, 0, 1, 0], [1.0, 1.0, 1.0, 1.0]) == pytest.approx(0.5)


def test_d_prime__by_hand():
    # One class: 3 of 4 pairs in order. Phi^-1(0.75) = 0.67449.
    labels, scores = np.array([[1], [0], [1], [0]]), np.array([[4.0], [3.0], [2.0], [1.0]])
    assert ours.mean_roc_auc(labels, scores) == 0.75
    assert ours.d_prime(labels, scores) == pytest.approx(math.sqrt(2) * 0.6744897501960817)
    assert ours.d_prime(labels, np.zeros((4, 1))) == 0.0
    assert ours.d_prime([[1], [0]], [[1.0], [0.0]]) == math.inf
    assert ours.d_prime([[1], [0]], [[0.0], [1.0]]) == -math.inf


def test_equal_error_rate__by_hand():
    assert ours.equal_error_rate([1, 1, 0, 0], [4.0, 3.0, 2.0, 1.0]) == 0.0
    assert ours.equal_error_rate([0, 0, 1, 1], [4.0, 3.0, 2.0, 1.0]) == 1.0
    assert ours.equal_error_rate([1, 0, 1, 0], [4.0, 3.0, 2.0, 1.0]) == 0.5
    assert ours.equal_error_rate([1, 0, 1, 0], [0.0] * 4) == 0.5
    # One of three positives below one of three negatives: a third of each fails.
    assert ours.equal_error_rate([1, 1, 0, 1, 0, 0], [6.0, 5, 4, 3, 2, 1]) == pytest.approx(1 / 3)


def test_hit_at_k__counts_any_of_the_labels_and_skips_unlabelled_samples():
    labels = [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    scores = [[0.1, 0.5, 0.3], [0.9, 0.8, 0.1], [0.1, 0.2, 0.3]]
    assert ours.hit_at_k(labels, scores, 1) == 0.5
    assert ours.hit_at_k(labels, scores, 3) == 1.0
    # Of equal scores the lower class number comes first.
    assert ours.accuracy([0, 1], np.zeros((2, 2))) == 0.5


def test_means__leave_out_classes_without_examples():
    labels, scores = samples()
    wide = np.concatenate([labels, np.zeros((60, 1)), np.ones((60, 1))], axis=1)
    more = np.concatenate([scores, scores[:, :2]], axis=1)
    assert ours.mean_roc_auc(wide, more) == pytest.approx(ours.mean_roc_auc(labels, scores))
    # The class that is always there has a precision of 1.
    expected = (5 * ours.mean_average_precision(labels, scores) + 1) / 6
    assert ours.mean_average_precision(wide, more) == pytest.approx(expected)
    everything = ours.classification_metrics(wide, more, ks=(1, 3, 50))
    assert (everything["samples"], everything["classes"], everything["classes_scored"]) == (60, 7, 5)
    assert everything["hit_at_1"] == everything["accuracy"] and "hit_at_50" not in everything


def test_metrics__do_not_depend_on_order_scale_or_container():
    labels, scores = samples(ties=True)
    order = np.random.default_rng(3).permutation(60)
    expected = ours.classification_metrics(labels, scores)
    assert ours.classification_metrics(labels[order], scores[order]) == pytest.approx(expected)
    assert ours.classification_metrics(labels, 3 * scores - 1) == pytest.approx(expected)
    half = torch.tensor(scores, dtype=torch.bfloat16, requires_grad=True)  # small whole numbers: exact
    assert ours.classification_metrics(torch.tensor(labels), half) == pytest.approx(expected)


def test_average_precision__takes_infinite_scores():
    assert ours.average_precision([1, 0, 0], [math.inf, -math.inf, -math.inf]) == 1.0
    assert ours.roc_auc([1, 0, 1, 0], [math.inf, -math.inf, -math.inf, -math.inf]) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("function", "labels", "scores", "message"),
    [
        (ours.roc_auc, [1, 0], [0.0, math.nan], "NaN, first in sample 1"),
        (ours.roc_auc, [1, 1], [0.0, 1.0], "All 2 samples have label 1"),
        (ours.roc_auc, [1, 2], [0.0, 1.0], "labels hold .*2.*; use 0 and 1"),
        (ours.roc_auc, [1], [0.0, 1.0], r"\(1,\), the scores \(2,\)"),
        (ours.average_precision, [0, 0], [0.0, 1.0], "No sample is positive"),
        (ours.average_precision, [], [], "not empty"),
        (ours.accuracy, [0, 3], np.zeros((2, 3)), "from 0 to 3 .* 0 to 2"),
        (ours.accuracy, [0.0, 1.0], np.zeros((2, 3)), "class numbers are integers"),
        (ours.accuracy, [0], np.zeros((2, 3)), "1 labels for 2 samples"),
        (ours.accuracy, [0, 1], np.zeros(2), r"it must be \(samples, classes\)"),
        (ours.accuracy, np.zeros((2, 3)), np.zeros((2, 3)), "No sample has a label"),
        (ours.mean_roc_auc, np.ones((2, 3)), np.zeros((2, 3)), "None of the 3 classes"),
    ],
)
def test_metrics__name_what_is_wrong(function, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        function(labels, scores)


def test_hit_at_k__refuses_impossible_k():
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is {k}; with 3 classes"):
            ours.hit_at_k([0], np.zeros((1, 3)), k)


def test_top_k_metrics__match_sklearn():
    generator = np.random.default_rng(0)
    truth, scores = generator.random((40, 6)) < 0.3, generator.random((40, 6))
    truth[:, 5] = False
    for k in (1, 3):
        guesses = np.zeros_like(truth)
        np.put_along_axis(guesses, np.argsort(-scores, axis=1)[:, :k], True, axis=1)
        options = {"average": "micro", "zero_division": 0}
        expected = {
            "hit_rate": (guesses & truth).any(axis=1).mean(),
            "accuracy": sk.accuracy_score(truth, guesses),
            "f1": sk.f1_score(truth, guesses, **options),
            "f1_macro": sk.f1_score(truth, guesses, average="macro", zero_division=0),
            "precision": sk.precision_score(truth, guesses, **options),
            "recall": sk.recall_score(truth, guesses, **options),
            "jaccard": sk.jaccard_score(truth, guesses, **options),
        }
        assert ours.top_k_metrics(truth, scores, k) == pytest.approx(expected)


def test_modality_confusion__by_hand():
    truth = np.array([[True, False], [True, False], [False, True], [False, True]])
    right = np.where(truth, 1.0, 0.0)
    scores = {"av": right.copy(), "a": right.copy(), "v": right.copy()}
    scores["av"][:2] = right[:2, ::-1]  # together wrong on the first two
    scores["v"][1] = right[1, ::-1]  # video wrong on the second

    assert ours.modality_confusion(truth, scores) == {"mu_a": 0.5, "mu_v": 0.25, "mu_av": 0.25}
