# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Labels of clips and videos: the ensemble of a clip's moments, long files in pieces, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from cavmae_sync_hf import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    MissingTrackError,
    save_for_hub,
)
from cavmae_sync_hf.inference import classify as room
from cavmae_sync_hf.inference.classify import classify, iter_classify
from helpers.classifiers import LABELS, RATE, make_classifier
from helpers.clips import truncate, write_clip, write_clips
from helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def model():
    return make_classifier()


@pytest.fixture(scope="module")
def processor(model):
    return CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory) -> str:
    return str(save_for_hub(model, processor, tmp_path_factory.mktemp("saved") / "classifier"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    """Three clips; the last one has no audio."""
    return write_clips(tmp_path_factory.mktemp("clips"), 3, seconds=2.0, darker=2, silent=1)


def scores_of(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits[0].softmax(-1)


# The library function


def test_classify__is_the_models_score_of_the_whole_clip(model, processor, clips):
    results = classify(model, processor, clips[:2], top_k=2)

    for result, clip in zip(results, clips[:2], strict=True):
        wanted = scores_of(model, processor(videos=clip, return_tensors="pt"))
        torch.testing.assert_close(result.scores, wanted, rtol=0, atol=1e-6)
        best = wanted.topk(2)
        assert [entry["label"] for entry in result.labels] == [LABELS[place] for place in best.indices]
        assert [entry["score"] for entry in result.labels] == pytest.approx(best.values.tolist(), abs=1e-6)
        assert result.num_moments == 4 and result.moment_scores is None
    assert [Path(result.clip).name for result in results] == ["0.mp4", "1.mp4"]


def test_classify__agrees_with_the_pipeline(model, processor, folder, clips):
    found = classify(model, processor, clips[0], top_k=None)[0].labels

    wanted = pipeline("audio-visual-classification", folder)(clips[0], top_k=None)
    assert [entry["label"] for entry in found] == [entry["label"] for entry in wanted]
    assert [entry["score"] for entry in found] == pytest.approx([entry["score"] for entry in wanted], abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"problem_type": "multi_label_classification"}, {"num_labels": 1}])
def test_classify__is_the_mean_of_its_moments(processor, clips, settings):
    torch.manual_seed(0)
    model = CavMaeSyncForAudioVisualClassification(tiny_config(**settings)).eval()

    result = classify(model, processor, clips[0], moments=True, top_k=1)[0]

    with torch.no_grad():
        output = model(**processor(videos=clips[0], return_tensors="pt"))
    frames = output.frame_logits[0]
    if "problem_type" in settings:
        frames = frames.sigmoid()
    elif not settings:
        frames = frames.softmax(-1)
    torch.testing.assert_close(result.moment_scores, frames, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.scores, frames.mean(dim=0), rtol=0, atol=1e-6)
    # Four moments of half a second each; frames lie up to one frame before the centres.
    np.testing.assert_allclose(result.spans.numpy(), [[place / 2, place / 2 + 0.5] for place in range(4)], atol=0.041)
    assert len(result.moment_labels) == 4 and len(result.moment_labels[0]) == 1


def test_classify__streamed_file_equals_the_file_taken_whole(model, processor, clips):
    whole = classify(model, processor, clips[0], moments=True)[0]

    # As many moments as the clip has when it is taken whole, in pieces of two.
    streamed = classify(model, processor, clips[0], hop=0.5, num_frames=2, moments=True)[0]

    torch.testing.assert_close(streamed.scores, whole.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(streamed.moment_scores, whole.moment_scores, rtol=0, atol=1e-5)
    np.testing.assert_allclose(streamed.spans, whole.spans, atol=0.02)


def test_classify__long_files_are_streamed_and_tell_where_they_are(model, processor, clips, monkeypatch):
    monkeypatch.setattr(room, "WHOLE_SECONDS", 1.5)
    monkeypatch.setattr(room, "HOP_SECONDS", 0.25)
    told = []

    found = classify(model, processor, clips[:1], progress=lambda *told_now: told.append(told_now))[0]

    assert found.num_moments == 8
    torch.testing.assert_close(found.scores, classify(model, processor, clips[0], hop=0.25)[0].scores)
    assert told[0][:2] == (0, 1) and told[-1] == (1, 1, "")
    assert "0.mp4: 1 s" in told[1][2] and "0.mp4: 2 s" in told[2][2]
    # A part of a long file is no long file.
    part = classify(model, processor, {"video": clips[0], "start": 0.5, "end": 1.5})[0]
    wanted = scores_of(model, processor(videos=clips[0], start=0.5, end=1.5, return_tensors="pt"))
    torch.testing.assert_close(part.scores, wanted, rtol=0, atol=1e-6)


def test_classify__head_over_several_frames_gives_one_score_per_piece(clips):
    model = make_classifier(classifier_type="frame_attention")
    processor = CavMaeSyncProcessor.from_config(model.config)

    found = classify(model, processor, clips[0], hop=0.25, num_frames=3, moments=True)[0]

    pieces = [
        scores_of(model, {name: chunk[name] for name in ("input_values", "pixel_values_videos", "padding_mask")})
        for chunk in processor.stream(clips[0], hop=0.25, num_frames=3)
    ]
    assert found.num_moments == 8 and len(pieces) == 3
    wanted = (3 * pieces[0] + 3 * pieces[1] + 2 * pieces[2]) / 8
    torch.testing.assert_close(found.scores, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.moment_scores, torch.stack(pieces), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.spans, [[0.0, 0.75], [0.75, 1.5], [1.5, 2.0]], atol=0.041)


def test_classify__one_modality(model, processor, clips):
    for modality, inputs in (
        ("audio", processor(audio=clips[0], return_tensors="pt")),
        ("video", {"pixel_values_videos": processor(videos=clips[0], return_tensors="pt")["pixel_values_videos"]}),
    ):
        whole = classify(model, processor, clips[0], modality=modality)[0]
        torch.testing.assert_close(whole.scores, scores_of(model, inputs), rtol=0, atol=1e-6)
        streamed = classify(model, processor, clips[0], modality=modality, hop=0.5)[0]
        torch.testing.assert_close(streamed.scores, whole.scores, rtol=0, atol=1e-5)


def test_classify__clip_without_sound(model, processor, clips):
    with pytest.raises(MissingTrackError, match=r"2\.mp4.*modality='video'"):
        classify(model, processor, clips[2])
    wanted = classify(model, processor, clips[2], modality="video")[0].scores
    for options in ({}, {"hop": 0.5}):
        found = classify(model, processor, clips[2], missing="mask", **options)[0]
        torch.testing.assert_close(found.scores, wanted, rtol=0, atol=1e-5)


def test_classify__results_come_one_by_one_from_any_iterable(model, processor, clips):
    results = iter_classify(model, processor, (clip for clip in [clips[0], "nowhere.mp4"]))

    assert Path(next(results).clip).name == "0.mp4"
    with pytest.raises(ValueError, match=r"nowhere\.mp4"):
        next(results)


def test_classify__damaged_file(model, processor, tmp_path):
    # Matroska keeps no index at its end, so that its beginning can be read.
    whole = write_clip(tmp_path / "whole.mkv", seconds=4.0)
    broken = truncate(whole, tmp_path / "broken.mkv")

    for options in ({}, {"hop": 0.5}):
        with pytest.raises(ValueError, match=r"broken\.mkv"):
            classify(model, processor, broken, **options)
        found = classify(model, processor, broken, damaged="keep", **options)[0]
        assert found.num_moments >= 3 and found.scores.isfinite().all()


def test_classify__bad_arguments(model, processor, clips):
    sound = {"audio": np.zeros(RATE, dtype=np.float32), "sampling_rate": RATE}
    for options, words in (
        ({"modality": "text"}, "'text'"),
        ({"top_k": 0}, "`top_k` is 0"),
        ({"hop": 0}, "`hop` is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            classify(model, processor, clips[0], **options)
    with pytest.raises(ValueError, match="which `hop` needs"):
        classify(model, processor, sound, modality="audio", hop=0.5)
    for other in (CavMaeSyncModel(tiny_config()), CavMaeSyncForPreTraining(tiny_config())):
        with pytest.raises(ValueError, match="no classification head"):
            classify(other, processor, clips[0])
    alone = make_classifier(modality="audio")
    with pytest.raises(ValueError, match="audio tower alone"):
        classify(alone, processor, clips[0], modality="both")
    assert classify(alone, processor, clips[0])[0].scores.sum().item() == pytest.approx(1.0, abs=1e-5)


def test_clip_labels__become_json(model, processor, clips):
    found = json.loads(json.dumps(classify(model, processor, clips[0], top_k=2, moments=True)[0].to_dict()))

    assert found["num_moments"] == 4 and len(found["labels"]) == 2
    assert found["moments"][0]["start"] == 0.0 and len(found["moments"][0]["labels"]) == 2


# The command


def test_command__help(run):
    code, out, _ = run("classify", "--help")

    assert code == 0 and "--modality" in out and "--moments" in out


def test_command__shows_labels_and_when(run, folder, model, processor, clips):
    code, out, err = run("classify", *clips[:2], "--model", folder, "--top", 2, "--moments")

    assert code == 0 and err == f"loading model {folder} ...\nrunning on cpu\n"
    wanted = classify(model, processor, clips[:2], top_k=2)
    for result, shown in zip(wanted, out.split(f"{Path(clips[1]).parent}/")[1:], strict=True):
        assert "4 moments" in shown
        for entry in result.labels:
            assert f"{entry['score']:.3f}" in shown and entry["label"] in shown
        assert "0:00.0 - 0:" in shown
    assert "1.mp4" in out


def test_command__json(run, folder, clips):
    code, out, _ = run("classify", clips[0], "--model", folder, "--top", 1, "--modality", "audio", "--json")

    found = json.loads(out)
    assert code == 0 and found["model"] == folder and found["failed"] == []
    assert len(found["clips"]) == 1 and len(found["clips"][0]["labels"]) == 1 and "moments" not in found["clips"][0]


def test_command__names_what_cannot_be_used_and_classifies_the_rest(run, folder, clips, tmp_path):
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n")
    (tmp_path / "a [b].mp4").write_bytes(b"PK\x03\x04 an archive")
    bad = [tmp_path / "nowhere.mp4", tmp_path / "list.mp4", tmp_path / "a [b].mp4", clips[2]]

    code, out, err = run("classify", *bad, clips[0], "--model", folder)

    assert code == 1 and "0.mp4" in out and "applause" in out
    lines = [line for line in err.splitlines() if line.startswith("Left out:")]
    assert len(lines) == 4
    for line, words in zip(lines, ("nowhere.mp4", "playlist", "a [b].mp4", "--modality video"), strict=True):
        assert words in line
    code, out, _ = run("classify", *bad, clips[0], "--model", folder, "--json")
    found = json.loads(out)
    assert code == 1 and len(found["clips"]) == 1 and len(found["failed"]) == 4


def test_command__checkpoint_without_a_head_is_refused(run, clips, tmp_path):
    other = CavMaeSyncForPreTraining(tiny_config())
    folder = save_for_hub(other, CavMaeSyncProcessor.from_config(other.config), tmp_path / "model")

    code, out, err = run("classify", clips[0], "--model", folder)

    assert code == 1 and out == "" and "without the classification head" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "VIDEO"),
        (["x.mp4"], 2, "--model"),
        (["x.mp4", "--model", "m", "--top", "0"], 2, "--top"),
        (["x.mp4", "--model", "m", "--modality", "text"], 2, "--modality"),
        ([__file__, "--model", "example", "--device", "foo"], 2, "'foo' is no device"),
        ([__file__, "--model", "no-such-folder"], 1, "no-such-folder is not a folder"),
    ],
)
def test_command__wrong_usage(run, arguments, code, words):
    found, _, err = run("classify", *arguments)

    assert found == code and words in " ".join(err.replace("│", " ").split())


def test_command__modality_that_the_model_lacks(run, clips, tmp_path):
    alone = make_classifier(modality="audio")
    folder = save_for_hub(alone, CavMaeSyncProcessor.from_config(alone.config), tmp_path / "model")

    code, _, err = run("classify", clips[0], "--model", folder, "--modality", "video")

    assert code == 1 and "audio tower alone" in err


def test_command__long_file_shows_stretches_of_one_label(run, folder, tmp_path, monkeypatch):
    spans = [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [5.0, 6.0]]
    labels = [[{"label": name, "score": score}] for name, score in zip("aabb", (0.5, 0.7, 0.9, 0.8), strict=True)]
    result = room.ClipLabels("video", labels[0], torch.zeros(5), 4, torch.tensor(spans), torch.zeros(4, 5), labels)
    monkeypatch.setattr(room, "iter_classify", lambda *_, **__: iter([result]))

    _, out, _ = run("classify", __file__, "--model", folder, "--moments")

    assert [line.strip() for line in out.splitlines()[-3:]] == [
        "0:00.0 - 0:02.0  a (0.600)",
        "0:02.0 - 0:03.0  b (0.900)",
        "0:05.0 - 0:06.0  b (0.800)",
    ]
