# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Tiny classifiers for the tests of tagging, and what their scores must be."""

from pathlib import Path

import pytest
import torch

from cavmae_sync_hf import CavMaeSyncForAudioVisualClassification, CavMaeSyncProcessor, save_for_hub
from helpers.tiny import tiny_config

LABELS = ["applause", "barking", "chime", "drumming", "engine"]
RATE = 16000


def make_classifier(**overrides) -> CavMaeSyncForAudioVisualClassification:
    torch.manual_seed(0)
    return CavMaeSyncForAudioVisualClassification(tiny_config(id2label=dict(enumerate(LABELS)), **overrides)).eval()


def save(model, folder: Path) -> str:
    return str(save_for_hub(model, CavMaeSyncProcessor.from_config(model.config), folder))


def expected(model, inputs, top_k=5, activation=torch.softmax) -> list[dict]:
    """What the pipelines give for one clip, from the model and its inputs."""
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    scores = logits.softmax(-1) if activation is torch.softmax else activation(logits)
    order = scores.argsort(descending=True)[:top_k].tolist()
    return [{"label": LABELS[place], "score": scores[place].item()} for place in order]


def assert_same(found: list[dict], wanted: list[dict], tolerance: float = 1e-5) -> None:
    # Batches and single clips sum in another order; nothing else differs.
    assert [entry["label"] for entry in found] == [entry["label"] for entry in wanted]
    assert [entry["score"] for entry in found] == pytest.approx([entry["score"] for entry in wanted], abs=tolerance)


def seen(model, processor, clip, **options) -> list[dict]:
    """What a model makes of the frames of a clip."""
    num_frames = options.pop("num_frames", model.config.num_frames)
    frames = processor.video_processor(clip, do_sample_frames=True, num_frames=num_frames, return_tensors="pt")
    return expected(model, frames, **options)


def heard(model, processor, waveform, rate=RATE, **options) -> list[dict]:
    """What a model makes of a waveform."""
    windows = processor.feature_extractor(waveform, sampling_rate=rate, return_tensors="pt")
    return expected(model, windows, **options)
