# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics by name, and as modules of the `evaluate` library."""

import sys

import evaluate
import numpy as np
import pytest
import torch

from cavmae_sync_hf.metrics import (
    class_segmentation_metrics,
    compute,
    list_metrics,
    load_metric,
    localization_metrics,
    metric_path,
    retrieval_metrics,
    segmentation_metrics,
)
from cavmae_sync_hf.metrics import classification as ours


def samples(count=60, classes=5):
    generator = np.random.default_rng(0)
    labels = generator.random((count, classes)) < 0.3
    return labels.astype(int), labels * 0.8 + generator.normal(size=(count, classes))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))


def test_list_metrics__all_load_by_name_and_by_path():
    names = list_metrics()
    assert {"retrieval", "mean_average_precision", "d_prime", "accuracy", "equal_error_rate"} <= set(names)
    for name in names:
        assert isinstance(load_metric(name), evaluate.Metric)
        by_path = evaluate.load(metric_path(), name)
        assert by_path.config_name == name and by_path.description and by_path.inputs_description
    with pytest.raises(ValueError, match="no metric 'default'; name one of accuracy, .* after the path"):
        evaluate.load(metric_path())


@pytest.mark.parametrize("name", ["mean_average_precision", "mean_roc_auc", "d_prime", "accuracy"])
def test_load_metric__computes_as_the_function(name):
    labels, scores = samples()
    result = load_metric(name).compute(predictions=scores, references=labels)
    assert result == {name: pytest.approx(getattr(ours, name)(labels, scores))}
    numbers = labels.argmax(axis=1)
    in_batches = load_metric(name)
    for part in (slice(0, 20), slice(20, 60)):
        in_batches.add_batch(predictions=scores[part], references=numbers[part])
    assert in_batches.compute() == {name: pytest.approx(getattr(ours, name)(numbers, scores))}


def test_load_metric__passes_options():
    labels, scores = samples()
    result = load_metric("hit_at_k").compute(predictions=scores, references=labels, k=2)
    assert result == {"hit_at_k": pytest.approx(ours.hit_at_k(labels, scores, 2))}


def test_load_metric__equal_error_rate():
    result = load_metric("equal_error_rate").compute(predictions=[4.0, 3.0, 2.0, 1.0], references=[1, 0, 1, 0])
    assert result == {"equal_error_rate": pytest.approx(0.5), "roc_auc": pytest.approx(0.75)}


def test_load_metric__retrieval_in_batches():
    generator = np.random.default_rng(0)
    audio = generator.normal(size=(9, 4, 6)).astype(np.float32)
    video = audio + generator.normal(size=(9, 4, 6)).astype(np.float32)
    metric = load_metric("retrieval")
    for part in (slice(0, 4), slice(4, 9)):
        metric.add_batch(predictions=audio[part], references=video[part])
    result = metric.compute(strategy="mean", clips_expected=10)
    assert result == pytest.approx(
        retrieval_metrics(audio_embeds=audio, video_embeds=video, strategy="mean", clips_expected=10)
    )


def test_metrics__name_what_there_is():
    for call in (lambda: load_metric("bleu"), lambda: compute("bleu", predictions=[], references=[])):
        with pytest.raises(ValueError, match="'bleu'; choose one of accuracy, "):
            call()


def test_load_metric__maps_against_boxes_and_masks():
    generator = np.random.default_rng(0)
    maps, masks = generator.random((3, 4, 4)), generator.integers(0, 2, (3, 4, 4))
    # The third map has no box.
    boxes = [[[0.0, 0.0, 8.0, 8.0]], [[8.0, 0.0, 16.0, 4.0], [0.0, 8.0, 4.0, 16.0]], []]

    pointing = load_metric("localization").compute(predictions=maps, references=boxes, view=(16, 16))
    whole = load_metric("segmentation").compute(predictions=maps, references=masks)
    pooled = load_metric("segmentation").compute(predictions=maps, references=masks, labels=["a", "b", "a"])

    maps, masks = torch.from_numpy(maps), torch.from_numpy(masks)
    assert pointing == pytest.approx(localization_metrics(maps, boxes, (16, 16))) and pointing["maps"] == 2
    assert whole == pytest.approx(segmentation_metrics(maps, masks))
    assert pooled == pytest.approx(class_segmentation_metrics(maps, masks, ["a", "b", "a"])) and pooled["classes"] == 2


def test_compute__takes_tensors_and_gives_values_by_name():
    labels, scores = samples()
    given = {"predictions": torch.from_numpy(scores).float(), "references": torch.from_numpy(labels)}

    assert compute("d_prime", **given) == {"d_prime": pytest.approx(ours.d_prime(labels, scores))}
    assert compute("classification", **given, ks=(2,)) == pytest.approx(
        ours.classification_metrics(labels, scores, ks=(2,))
    )


def test_compute__says_which_extra_brings_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ImportError, match=r"needs sklearn: pip install 'cavmae-sync-hf\[evaluation\]'"):
        compute("mean_roc_auc", predictions=[[0.1], [0.2]], references=[[0], [1]])
    assert compute("accuracy", predictions=[[0.1, 0.2]], references=[1]) == {"accuracy": 1.0}


def test_load_metric__top_k():
    truth, scores = np.eye(3, dtype=int), np.array([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])

    result = load_metric("top_k").compute(predictions=scores, references=truth, k=1)

    assert result == pytest.approx(ours.top_k_metrics(truth.astype(bool), scores, 1)) and result["hit_rate"] == 2 / 3
