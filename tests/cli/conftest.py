# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Models for the command line: saved ones, and one that knows the answer."""

from pathlib import Path

import pytest

from cavmae_sync_hf import CavMaeSyncProcessor
from cavmae_sync_hf.hub import save_for_hub
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from helpers.classifiers import make_classifier
from helpers.rule_models import ramp_pair
from helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Folders of a classifier, and of a model with both towers and a decoder."""
    folder = tmp_path_factory.mktemp("models")
    classifier, both = make_classifier(), CavMaeSyncForPreTraining(tiny_config())
    return {
        name: save_for_hub(model, CavMaeSyncProcessor.from_config(model.config), folder / name)
        for name, model in (("classifier", classifier), ("both", both))
    }


@pytest.fixture
def telling(monkeypatch) -> str:
    """The commands load the model that knows the answer."""
    pair = ramp_pair()
    monkeypatch.setattr("cavmae_sync_hf.loading.load_model", lambda *_, **__: pair)
    return "example"
