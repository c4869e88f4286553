"""A name becomes a model and its processor, or an error that says what would do."""

from pathlib import Path

import pytest
import torch

from cavmae_sync_hf import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    ModelError,
)
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.names import example_model
from cavmae_sync_hf.syncworld import make_world
from helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """Folders of each kind of model."""
    folder, kinds = tmp_path_factory.mktemp("models"), {}
    for name, kind, settings in (
        ("pretraining", CavMaeSyncForPreTraining, {}),
        ("classification", CavMaeSyncForAudioVisualClassification, {}),
        ("audio", CavMaeSyncForAudioVisualClassification, {"modality": "audio"}),
    ):
        config = tiny_config(**settings)
        kinds[name] = folder / name
        kind(config).save_pretrained(kinds[name])
        CavMaeSyncProcessor.from_config(config).save_pretrained(kinds[name])
    return kinds


@pytest.mark.parametrize("name", ["pretraining", "classification"])
def test_embedding__loads_the_encoder_of_any_model(name, saved):
    model, processor = load_model(saved[name], dtype=torch.bfloat16)
    assert type(model) is CavMaeSyncModel and not model.training and model.dtype == torch.bfloat16
    assert processor.feature_extractor.num_mel_bins == 16


def test_head__is_loaded_where_there_is_one(saved):
    assert type(load_model(saved["classification"], use="classification")[0]) is CavMaeSyncForAudioVisualClassification
    assert type(load_model(saved["pretraining"], use="pretraining")[0]) is CavMaeSyncForPreTraining


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pretraining", {"use": "classification"}, "without the classification head.*cavmae-sync finetune"),
        ("audio", {"modalities": "both"}, "has the audio tower alone"),
        ("nowhere", {}, "is not a folder. Name one that holds a saved model"),
        ("empty", {}, "holds no config.json"),
        ("file", {}, "is a file; name the folder"),
        ("other", {}, "holds a model of type 'bert'"),
        ("unprocessed", {}, "holds no processor_config.json; save a processor"),
    ],
)
def test_what_cannot_be_used__is_named_with_a_remedy(name, options, message, saved, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("weights", encoding="utf-8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    CavMaeSyncModel(tiny_config()).save_pretrained(tmp_path / "unprocessed")
    path = saved.get(name, tmp_path / name)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path, **options)
    assert str(path) in str(caught.value)


def test_example__tells_moments_of_its_world_apart(tmp_path):
    """The shipped model hears: a moment's sound is nearer to its own frame than to the clip's other ones."""
    model, processor = load_model("example")
    assert sum(path.stat().st_size for path in example_model().iterdir()) < 5e6
    world = make_world(tmp_path, clips=4, split="train", preset="semantic", seed=77, size=96, workers=1)
    paths = sorted(str(path) for path in world.folder.glob("*.mp4"))
    with torch.inference_mode():
        similarity = model(**processor(videos=paths, return_tensors="pt")).similarity
    own = torch.eye(16, dtype=torch.bool)
    assert similarity[:, own].mean() > similarity[:, ~own].mean() + 0.05
