# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What evaluations are made of: protocols, lists, annotations and masks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cavmae_sync_hf import EvaluationError
from cavmae_sync_hf.evaluation import PROTOCOLS
from cavmae_sync_hf.evaluation.clips import read_ids
from cavmae_sync_hf.evaluation.protocols import RETRIEVAL_PROTOCOLS, find_protocol, modify
from cavmae_sync_hf.evaluation.tables import mask_in_view, read_annotations, read_mask, read_prompts
from cavmae_sync_hf.metrics import vggsounder_metrics
from helpers.tiny_shards import tiny_processor


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


HEADER = "video_id,label,modality"


def annotation_file(folder, rows, header="video_id,label,modality,background_music,static_image,voice_over"):
    path = folder / "vggsounder.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_vggsounder_metrics__views_take_their_labels(tmp_path):
    annotations = read_annotations(annotation_file(tmp_path, ["x,one,A", "x,two,V", "y,two,AV"], HEADER))
    scores = np.array([[0.9, 0.1], [0.2, 0.8]])

    heard, seen = annotations.arrays(["x", "y"], ["one", "two"])
    metrics = vggsounder_metrics(heard, seen, {"a": scores, "v": scores}, ks=(1,))

    assert metrics["a_hit_rate@1"] == 1.0 and metrics["a_only_clips"] == 1 and metrics["a_only_accuracy@1"] == 1.0
    assert metrics["v_hit_rate@1"] == 0.5 and metrics["v_only_hit_rate@1"] == 0.0
    assert "av_clips" not in metrics and "mu_a" not in metrics and metrics["labels_unknown"] == 0


def test_vggsounder_metrics__counts_labels_without_a_class(tmp_path):
    annotations = read_annotations(annotation_file(tmp_path, ["x,one,A", "x,more,V", "y,more,AV"], HEADER))
    scores = np.array([[0.9, 0.1], [0.2, 0.8]])

    metrics = vggsounder_metrics(*annotations.arrays(["x", "y"], ["one", "two"]), {"v": scores, "av": scores}, ks=(1,))

    # The clips take part with no label that could be hit.
    assert metrics["labels_unknown"] == 1 and metrics["v_clips"] == 2 and metrics["av_clips"] == 1
    assert metrics["v_hit_rate@1"] == metrics["v_recall@1"] == 0.0
    assert "v_auc_pr" not in metrics and "v_auc_roc" not in metrics
    with pytest.raises(EvaluationError, match="no labels for the clip 'z'"):
        annotations.arrays(["x", "z"], ["one"])
    with pytest.raises(EvaluationError, match="none of its labels is a class of the model"):
        annotations.arrays(["x"], ["two"])


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
        ("g.png", None, "image of 3 channels"),
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
def test_mask_in_view__lies_where_the_image_does(processor, size):
    mask = np.zeros(size, bool)
    mask[: size[0] // 2] = True
    frames = torch.from_numpy(mask[None, None].repeat(3, 1) * np.uint8(255))

    view = processor.video_processor(frames, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"][
        0, 0, 0
    ]

    assert torch.equal(mask_in_view(mask, 32, 32)[:14], (view > 0)[:14])
    assert torch.equal(mask_in_view(mask, 32, 32)[18:], (view > 0)[18:])


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
    with pytest.raises(
        EvaluationError, match="`maps` is 'guess'; choose one of relevance, local, occlusion, dense, cosine"
    ):
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
