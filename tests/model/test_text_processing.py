# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Texts beside clips: the processor's tokenizer, folders with and without it, and pipelines of a model with text."""

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, pipeline

from cavmae_sync_hf import (
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    CavMaeSyncTextDualEncoderConfig,
    CavMaeSyncTextDualEncoderModel,
    save_for_hub,
)
from helpers.clips import noise, write_clip
from helpers.tiny import tiny_config, tiny_text_config, tiny_tokenizer

TEXTS = ["a dog barks", "the bell rings , then a dog barks"]
LABELS = ["dog", "bell", "siren"]


@pytest.fixture(scope="module")
def processor() -> CavMaeSyncProcessor:
    plain = CavMaeSyncProcessor.from_config(tiny_config())
    return CavMaeSyncProcessor(plain.feature_extractor, plain.video_processor, tiny_tokenizer())


@pytest.fixture(scope="module")
def folder(processor, tmp_path_factory):
    torch.manual_seed(0)
    config = CavMaeSyncTextDualEncoderConfig.from_av_text_configs(tiny_config(), tiny_text_config())
    folder = tmp_path_factory.mktemp("text") / "model"
    save_for_hub(CavMaeSyncTextDualEncoderModel(config).eval(), processor, folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", seconds=2, audio=noise(2))


def test_texts__become_tokens(processor):
    tokens = processor(text=TEXTS, return_tensors="pt")

    assert tokens["input_ids"].shape == tokens["attention_mask"].shape == (2, 10)
    assert tokens["attention_mask"].sum(dim=1).tolist() == [5, 10]
    assert processor.tokenizer.decode(tokens["input_ids"][0], skip_special_tokens=True) == TEXTS[0]
    assert processor(text=TEXTS[0], return_tensors="pt")["input_ids"].shape == (1, 5)


def test_texts__go_with_clips(processor, clip):
    both = processor(videos=clip, text=TEXTS, return_tensors="pt")

    assert both["input_values"].shape[0] == 1 and both["input_ids"].shape[0] == 2
    assert torch.equal(both["input_values"], processor(videos=clip, return_tensors="pt")["input_values"])


def test_saved__has_its_tokenizer(folder, processor):
    again = AutoProcessor.from_pretrained(folder)

    assert isinstance(again, CavMaeSyncProcessor) and again.has_tokenizer
    first, second = (one(text=TEXTS, return_tensors="pt")["input_ids"] for one in (again, processor))
    assert torch.equal(first, second)
    assert AutoTokenizer.from_pretrained(folder).tokenize("a dog") == ["a", "dog"]


def test_without_a_tokenizer__nothing_changes(tmp_path):
    config = tiny_config()
    plain = CavMaeSyncProcessor.from_config(config)
    save_for_hub(CavMaeSyncModel(config), plain, tmp_path / "model")

    again = CavMaeSyncProcessor.from_pretrained(tmp_path / "model")

    assert not again.has_tokenizer and not plain.has_tokenizer
    assert "tokenizer" not in (tmp_path / "model" / "processor_config.json").read_text()
    assert not list((tmp_path / "model").glob("tokenizer*"))
    with pytest.raises(ValueError, match="has no tokenizer, and its model no text encoder; leave `text` out"):
        again(text="a dog")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ([], "pass a text or a list of texts"),
        ("", "Text 0 is ''; every text must be a string that is not empty"),
        (["a dog", 3], "Text 1 is 3"),
        (["a dog", "a " * 40], "Text 1 has 42 tokens, and the text encoder takes 32; shorten it"),
    ],
    ids=["none", "empty", "a number", "overlong"],
)
def test_bad_texts__are_told(processor, text, words):
    with pytest.raises(ValueError, match=words):
        processor(text=text)


def test_overlong_texts__are_cut_on_request(processor):
    assert processor(text="a " * 40, text_kwargs={"truncation": True}, return_tensors="np")["input_ids"].shape == (
        1,
        32,
    )


def test_encoders_without_a_mask__get_texts_of_one_length(processor):
    tokenizer = tiny_tokenizer(model_max_length=12, model_input_names=["input_ids"])
    other = CavMaeSyncProcessor(processor.feature_extractor, processor.video_processor, tokenizer)
    assert other(text=TEXTS, return_tensors="pt")["input_ids"].shape == (2, 12)


def test_zero_shot_pipeline__ranks_labels(folder, clip):
    classify = pipeline("zero-shot-audio-visual-classification", model=str(folder))
    model, processor = classify.model, classify.processor

    found = classify(str(clip), candidate_labels=LABELS, hypothesis_template="a {} is heard", moments=True)
    several = classify([str(clip), str(clip)], candidate_labels="dog, bell, siren", top_k=1, batch_size=2)

    inputs = processor(videos=clip, text=[f"a {label} is heard" for label in LABELS], return_tensors="pt")
    output = model(**inputs)
    scores = output.logits_per_text[:, 0].sigmoid()
    order = scores.argsort(descending=True).tolist()
    assert [entry["label"] for entry in found] == [LABELS[place] for place in order]
    assert [entry["score"] for entry in found] == pytest.approx(scores[order].tolist(), rel=1e-4)
    best = torch.maximum(output.moment_logits_audio, output.moment_logits_video)[order[0], 0].sigmoid()
    assert [moment["score"] for moment in found[0]["moments"]] == pytest.approx(best.tolist(), rel=1e-4)
    assert [moment["time"] for moment in found[0]["moments"]] == pytest.approx([0.25, 0.75, 1.25, 1.75], abs=0.04)
    assert len(several) == 2 and len(several[0]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "`candidate_labels` is missing"),
        ({"candidate_labels": []}, "`candidate_labels` is missing"),
        ({"candidate_labels": ["dog", ""]}, "every label must be a text that is not empty"),
        ({"candidate_labels": LABELS, "hypothesis_template": "a dog"}, "it must have a place for the label"),
        ({"candidate_labels": LABELS, "function_to_apply": "max"}, "use .softmax., .sigmoid. or .none."),
        ({"candidate_labels": LABELS, "top_k": 0}, "whole number of at least 1"),
    ],
    ids=lambda value: None,
)
def test_zero_shot_pipeline__refuses(folder, clip, options, words):
    classify = pipeline("zero-shot-audio-visual-classification", model=str(folder))
    with pytest.raises(ValueError, match=words):
        classify(str(clip), **options)


def test_zero_shot_pipeline__needs_a_model_with_text(tmp_path, clip):
    config = tiny_config()
    save_for_hub(CavMaeSyncModel(config), CavMaeSyncProcessor.from_config(config), tmp_path / "model")
    with pytest.raises(ValueError, match="needs a CavMaeSyncTextDualEncoderModel, got a CavMaeSyncModel"):
        pipeline("zero-shot-audio-visual-classification", model=str(tmp_path / "model"))


def test_transformers_own_zero_shot_audio_pipeline__runs_unchanged(folder):
    classify = pipeline("zero-shot-audio-classification", model=str(folder))
    wave = noise(2, rate=16000, channels=1)[0].astype("float32")

    found = classify(wave, candidate_labels=LABELS, hypothesis_template="a {} is heard")

    model, processor = classify.model, AutoProcessor.from_pretrained(folder)
    inputs = processor(
        audio=wave, sampling_rate=16000, text=[f"a {label} is heard" for label in LABELS], return_tensors="pt"
    )
    expected = model(**inputs).logits_per_audio[0].softmax(dim=0)
    scores = {entry["label"]: entry["score"] for entry in found}
    assert [scores[label] for label in LABELS] == pytest.approx(expected.tolist(), rel=1e-4)


def test_tokenizer__is_one_of_transformers(processor):
    with pytest.raises(TypeError, match="`tokenizer` is a str; pass a tokenizer of transformers"):
        CavMaeSyncProcessor(processor.feature_extractor, processor.video_processor, "bert")
