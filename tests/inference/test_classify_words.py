# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Labels in words: the same as the pipeline's, of whole clips and of long files, in Python and on the command line."""

import json

import pytest
import torch

from cavmae_sync_hf import CavMaeSyncModel, InferenceError, classify
from cavmae_sync_hf.model.pipelines_text_cavmae_sync import CavMaeSyncZeroShotClassificationPipeline
from helpers.clips import noise, write_clip
from helpers.tiny import tiny_config
from helpers.words import save, teach, text_model

LABELS = ["dog", "bell", "rain"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", seconds=2, audio=noise(2))


@pytest.fixture(
    scope="module", params=[{}, {"num_clip_layers": 1, "num_text_layers": 1, "score_sequences": True}], ids=str
)
def pair(request):
    return text_model(**request.param)


@pytest.mark.parametrize("modality", ["both", "audio"])
def test_labels__score_as_in_the_pipeline(pair, clip, modality):
    model, processor = pair
    classifier = CavMaeSyncZeroShotClassificationPipeline(
        model=model, processor=processor, task="zero-shot-audio-visual-classification"
    )
    expected = classifier(str(clip), LABELS, hypothesis_template="the {}", moments=True, modality=modality)

    (result,) = classify(
        model, processor, clip, labels=LABELS, template="the {}", moments=True, modality=modality, top_k=None
    )

    assert [entry["label"] for entry in result.labels] == [entry["label"] for entry in expected]
    torch.testing.assert_close(
        torch.tensor([entry["score"] for entry in result.labels]), torch.tensor([one["score"] for one in expected])
    )
    for entry in expected:
        row = result.moment_scores[:, LABELS.index(entry["label"])]
        torch.testing.assert_close(row, torch.tensor([moment["score"] for moment in entry["moments"]]))
    assert result.num_moments == len(result.spans) == 4


def test_label__is_what_is_heard(clip):
    model, processor = text_model()
    audio = model.av_model(input_values=processor(videos=clip, return_tensors="pt")["input_values"]).audio_embeds
    mean = torch.nn.functional.normalize(audio[0].mean(dim=0), dim=0).detach()
    teach(model, processor, {"rain": mean, "bell": -mean, "dog": torch.zeros(32) + 1e-6})

    (result,) = classify(model, processor, clip, labels="bell, rain, dog", modality="audio", top_k=1, moments=True)

    assert [entry["label"] for entry in result.labels] == ["rain"]
    assert {entry["label"] for moment in result.moment_labels for entry in moment} == {"rain"}


def test_long_files__are_the_mean_of_their_pieces(clip):
    model, processor = text_model()

    (whole,) = classify(model, processor, clip, labels=LABELS, hop=0.25, num_frames=8, moments=True)
    (pieces,) = classify(model, processor, clip, labels=LABELS, hop=0.25, num_frames=5, moments=True)

    torch.testing.assert_close(whole.moment_scores, pieces.moment_scores)
    assert whole.num_moments == pieces.num_moments == 8
    torch.testing.assert_close(pieces.scores, whole.scores, atol=0.05, rtol=0)
    assert not torch.equal(pieces.scores, whole.scores)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labels": []}, "`candidate_labels` is missing"),
        ({"labels": ["dog", ""]}, "every label must be a text that is not empty"),
        ({"labels": ["a dog " * 20]}, "takes 32 at most; shorten it"),
        ({"labels": LABELS, "template": "a dog"}, "must have a place for the label"),
        ({}, r"A model with text is given its labels in words. Pass labels='dog,rain'."),
    ],
)
def test_bad_labels__are_refused(pair, clip, options, says):
    with pytest.raises(ValueError, match=says):
        classify(*pair, clip, **options)


def test_model_without_text__takes_no_words(pair, clip):
    with pytest.raises(InferenceError, match="A CavMaeSyncModel has no text encoder"):
        classify(CavMaeSyncModel(tiny_config()), pair[1], clip, labels=LABELS)


def test_command__labels_in_words(run, pair, clip, tmp_path):
    folder = save(*pair, tmp_path / "words")
    words = ("classify", clip, "--model", folder, "--labels", "dog, bell,rain")

    shown = run(*words, "--moments")
    values = json.loads(run(*words, "--template", "the {}", "--json")[1])["clips"][0]
    empty = run(*words[:-1], "dog,,rain")
    unsaid = run(*words[:-2])

    assert shown[0] == 0 and all(f" {label}" in shown[1] for label in LABELS) and "0:00" in shown[1]
    assert {entry["label"] for entry in values["labels"]} == set(LABELS) and values["num_moments"] == 4
    assert empty[0] == 1 and empty[2].count("every label must be a text") == 1
    assert unsaid[0] == 1 and "without the classification head" in unsaid[2]
    assert "Add --labels dog,rain to label in words." in unsaid[2]
