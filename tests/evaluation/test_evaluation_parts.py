# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What evaluations are made of: protocols, lists, annotations and masks, and the figures over them."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cavmae_sync_hf import EvaluationError
from cavmae_sync_hf.evaluation import PROTOCOLS, load_metric
from cavmae_sync_hf.evaluation.clips import read_ids
from cavmae_sync_hf.evaluation.protocols import RETRIEVAL_PROTOCOLS, find_protocol, modify
from cavmae_sync_hf.metrics.multilabel import modality_confusion, read_annotations, top_k_metrics, vggsounder_metrics
from cavmae_sync_hf.metrics.segmentation import class_segmentation_metrics, mask_in_view, read_mask, read_prompts
from helpers.apart import run_apart
from helpers.tiny_shards import tiny_processor


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


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


def annotation_file(folder, rows, header="video_id,label,modality,background_music,static_image,voice_over"):
    path = folder / "vggsounder.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_top_k_metrics__match_sklearn():
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    truth, scores = generator.random((40, 6)) < 0.3, generator.random((40, 6))
    truth[:, 5] = False
    for k in (1, 3):
        guesses = np.zeros_like(truth)
        np.put_along_axis(guesses, np.argsort(-scores, axis=1)[:, :k], True, axis=1)
        options = {"average": "micro", "zero_division": 0}
        expected = {
            "hit_rate": (guesses & truth).any(axis=1).mean(),
            "accuracy": sklearn.accuracy_score(truth, guesses),
            "f1": sklearn.f1_score(truth, guesses, **options),
            "f1_macro": sklearn.f1_score(truth, guesses, average="macro", zero_division=0),
            "precision": sklearn.precision_score(truth, guesses, **options),
            "recall": sklearn.recall_score(truth, guesses, **options),
            "jaccard": sklearn.jaccard_score(truth, guesses, **options),
        }
        assert top_k_metrics(truth, scores, k) == pytest.approx(expected)


def test_top_k__is_an_evaluate_module(monkeypatch, tmp_path):
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    truth, scores = np.eye(3, dtype=int), np.array([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])

    result = load_metric("top_k").compute(predictions=scores, references=truth, k=1)

    assert result == pytest.approx(top_k_metrics(truth.astype(bool), scores, 1)) and result["hit_rate"] == 2 / 3


def test_modality_confusion__by_hand():
    truth = np.array([[True, False], [True, False], [False, True], [False, True]])
    right = np.where(truth, 1.0, 0.0)
    scores = {"av": right.copy(), "a": right.copy(), "v": right.copy()}
    scores["av"][:2] = right[:2, ::-1]  # together wrong on the first two
    scores["v"][1] = right[1, ::-1]  # pictures wrong on the second

    assert modality_confusion(truth, scores) == {"mu_a": 0.5, "mu_v": 0.25, "mu_av": 0.25}


def test_vggsounder_metrics__views_take_their_labels(tmp_path):
    annotations = read_annotations(
        annotation_file(tmp_path, ["x,one,A", "x,two,V", "y,two,AV"], "video_id,label,modality")
    )
    scores = np.array([[0.9, 0.1], [0.2, 0.8]])

    metrics = vggsounder_metrics(annotations, ["x", "y"], {"a": scores, "v": scores}, ["one", "two"], ks=(1,))

    assert metrics["a_hit_rate@1"] == 1.0 and metrics["a_only_clips"] == 1 and metrics["a_only_accuracy@1"] == 1.0
    assert metrics["v_hit_rate@1"] == 0.5 and metrics["v_only_hit_rate@1"] == 0.0
    assert "av_clips" not in metrics and "mu_a" not in metrics


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (["a,b,C"], "video_id,label,modality", "line 2 has clip 'a', label 'b' and modality 'C'"),
        (["a,b"], "video_id,label", "has no column 'modality'"),
        ([], "video_id,label,modality", "holds no annotations"),
    ],
)
def test_read_annotations__names_what_is_wrong(tmp_path, rows, header, words):
    with pytest.raises(EvaluationError, match=words):
        read_annotations(annotation_file(tmp_path, rows, header))


def test_read_mask__kinds_and_faults(tmp_path):
    mask = np.zeros((4, 6), np.int32)
    mask[1:3, 2:5] = 300
    np.save(tmp_path / "a.npy", mask)
    np.savez(tmp_path / "b.npz", mask=mask, other=np.zeros(3))
    Image.fromarray((mask > 0).astype(np.uint8)).save(tmp_path / "c.png")
    for name, value in (("a.npy", 300), ("b.npz", 300), ("c.png", None), ("a.npy", None)):
        assert np.array_equal(read_mask(tmp_path / name, value), mask > 0)
    (tmp_path / "d.png").write_bytes(b"broken")
    np.save(tmp_path / "e.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "f.npz", x=mask, y=mask)
    Image.new("RGB", (4, 4)).save(tmp_path / "g.png")
    for name, value, words in (
        ("d.png", None, "d.png: the mask cannot be read"),
        ("e.npy", None, "save it as a plain array"),
        ("f.npz", None, "call the mask 'mask'"),
        ("g.png", None, "picture of 3 channels"),
        ("h.png", None, "no such mask"),
        ("a.npy", 5, "does not hold the value 5"),
    ):
        with pytest.raises(EvaluationError, match=words):
            read_mask(tmp_path / name, value)


def test_read_prompts__names_what_is_wrong(tmp_path):
    table = tmp_path / "t.csv"
    for text, words in (
        ("image,audio\na.png,b.wav\n", "row 1 has no 'mask'"),
        ("audio,mask\nb.wav,c.png\n", "row 1 has no 'image'"),
        ("image,audio,mask,mask_value\na,b,c,x\n", "row 1 has a mask_value or time that is no number"),
        ("", "holds no rows"),
    ):
        table.write_text(text)
        with pytest.raises(EvaluationError, match=words):
            read_prompts(table)
    other = tmp_path / "t.parquet"
    other.write_text("")
    with pytest.raises(EvaluationError, match="is no table"):
        read_prompts(other)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (50, 50)])
def test_mask_in_view__lies_where_the_picture_does(processor, size):
    mask = np.zeros(size, bool)
    mask[: size[0] // 2] = True
    frames = torch.from_numpy(mask[None, None].repeat(3, 1) * np.uint8(255))

    view = processor.video_processor(frames, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"][
        0, 0, 0
    ]

    assert torch.equal(mask_in_view(mask, 32, 32)[:14], (view > 0)[:14])
    assert torch.equal(mask_in_view(mask, 32, 32)[18:], (view > 0)[18:])


def test_class_segmentation_metrics__pool_the_pixels_of_a_class():
    maps = torch.tensor([[[0.9, 0.1], [0.2, 0.3]], [[0.8, 0.7], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 0], [0, 0]], [[0, 1], [0, 0]]]).bool()

    metrics = class_segmentation_metrics(maps, masks, ["a", "a", "b"], thresholds=10)

    # Class a: the two object pixels are the two highest of eight; class b: the object is the highest.
    assert metrics["mean_average_precision"] == 1.0 and metrics["mean_iou"] == 1.0
    assert metrics["classes"] == 2 and metrics["maps"] == 3
    assert metrics["chance_average_precision"] == pytest.approx(0.25)
    # Pooled, the second picture's 0.7 outranks nothing; raised above the first object it does.
    maps[1, 0, 1] = 0.95
    assert class_segmentation_metrics(maps, masks, ["a", "a", "b"])["mean_average_precision"] == pytest.approx(
        ((1 / 2 + 2 / 3) / 2 + 1) / 2
    )
    with pytest.raises(ValueError, match="No mask is in view"):
        class_segmentation_metrics(maps, torch.zeros_like(masks), ["a", "a", "b"])


def test_protocols__have_versions_and_say_what_was_changed():
    for task, group in PROTOCOLS.items():
        for name, protocol in group.items():
            assert protocol.name == name and protocol.version and protocol.summary, (task, name)
            json.dumps(protocol.to_dict())
    changed = modify(RETRIEVAL_PROTOCOLS["clips"], strategy="mean")
    assert changed.name == "clips, strategy mean" and changed.strategy == "mean"
    assert modify(RETRIEVAL_PROTOCOLS["clips"], strategy="diagonal_mean").name == "clips"
    with pytest.raises(EvaluationError, match="no protocol 'x' here; choose one of clips"):
        find_protocol("x", RETRIEVAL_PROTOCOLS)
    with pytest.raises(EvaluationError, match="`maps` is 'guess'; choose one of occlusion, cosine"):
        modify(PROTOCOLS["localization"]["syncworld"], maps="guess")
    with pytest.raises(EvaluationError, match="`strategy` is 'best'"):
        modify(RETRIEVAL_PROTOCOLS["clips"], strategy="best")


def test_read_ids__kinds(tmp_path):
    for name, text, expected in (
        ("a.txt", "one\n\n two \n", [("one",), ("two",)]),
        ("b.csv", "abc,30,dog barking,test\n", [("abc_000030", "abc", "Yabc")]),
        ("c.csv", '# YTID, start_seconds\nxyz, 10.000, 20.000, "/m/0"\n', [("xyz_000010", "xyz", "Yxyz")]),
        ("d.json", '["x/y.mp4"]', [("x/y", "y")]),
    ):
        (tmp_path / name).write_text(text)
        assert read_ids(tmp_path / name) == expected
    (tmp_path / "e.txt").write_text("\n")
    for name, words in (("e.txt", "holds no ids"), ("f.txt", "no such file"), ("f.csv", "no such file")):
        with pytest.raises(EvaluationError, match=words):
            read_ids(tmp_path / name)
