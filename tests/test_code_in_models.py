"""Nothing that lies in a model's folder, a checkpoint or a run's folder is run as code, and nobody is asked to."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, AutoVideoProcessor

from cavmae_sync_hf import (
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    ModelError,
    load_model,
)
from cavmae_sync_hf.convert import convert_checkpoint
from cavmae_sync_hf.evaluation.card import card_text
from cavmae_sync_hf.evaluation.tables import read_mask
from cavmae_sync_hf.model.errors_cavmae_sync import CavMaeSyncError, EvaluationError
from cavmae_sync_hf.training import ModelArguments
from cavmae_sync_hf.training.initialization import build_for_pretraining
from helpers.pretraining_runs import make_trainer
from helpers.tiny import tiny_config
from helpers.tiny_shards import write_shards


@pytest.fixture
def sentinel(tmp_path, monkeypatch) -> Path:
    """A file that any of the attacks below would make; nobody answers questions on the terminal."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    return tmp_path / "was-here"


@pytest.fixture
def folder(tmp_path) -> Path:
    config = tiny_config()
    CavMaeSyncForPreTraining(config).save_pretrained(tmp_path / "model")
    CavMaeSyncProcessor.from_config(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_attack__works_where_nothing_keeps_it_off(sentinel):
    pickle.loads(pickle.dumps(Attack(sentinel)))
    assert sentinel.exists()


def write_pickle(path: Path, sentinel: Path, kind: str) -> None:
    weights = {"a": torch.zeros(2), "evil": Attack(sentinel)}
    if kind == "bare":
        path.write_bytes(pickle.dumps(weights))
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ""])
def test_published_file__is_read_as_data(tmp_path, sentinel, kind, suffix):
    source = tmp_path / f"weights{suffix}"
    write_pickle(source, sentinel, kind)
    with pytest.raises(ModelError, match="could run code|truncated or damaged"):
        convert_checkpoint(source, tmp_path / "out")
    with pytest.raises(ModelError):
        build_for_pretraining(ModelArguments(init_from=str(source)))
    assert not sentinel.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_saved_weights__are_read_as_data(folder, sentinel, name, kind):
    (folder / "model.safetensors").unlink()
    write_pickle(folder / name, sentinel, kind)
    for use in (load_model, lambda path: build_for_pretraining(ModelArguments(init_from=str(path)))):
        with pytest.raises(ModelError, match="could run code|truncated or damaged"):
            use(folder)
    with pytest.raises(Exception, match="."):  # transformers' own
        CavMaeSyncModel.from_pretrained(folder)
    assert not sentinel.exists()


def test_weights_of_an_earlier_kind__are_still_read(folder):
    """`.bin` files that hold tensors alone."""
    model = CavMaeSyncForPreTraining.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    loaded = load_model(folder)[0]
    assert torch.equal(loaded.audio_tower.layers[0].mlp.fc1.weight, model.model.audio_tower.layers[0].mlp.fc1.weight)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "training_args.bin"])
def test_resuming__reads_a_run_as_data(tmp_path, sentinel, name):
    shards = write_shards(tmp_path / "shards", [4, 4])
    settings = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(shards, tmp_path / "run", max_steps=1, **settings).train()
    write_pickle(tmp_path / "run" / "checkpoint-1" / name, sentinel, "zip")
    trainer = make_trainer(shards, tmp_path / "run", max_steps=2, **settings)
    if name == "training_args.bin":  # is not read at all
        trainer.train(resume_from_checkpoint=True)
    else:
        with pytest.raises(Exception, match="(?i)weights.only"):
            trainer.train(resume_from_checkpoint=True)
    assert not sentinel.exists()


def test_resuming__refuses_weights_that_are_not_finite_or_whole(tmp_path):
    shards = write_shards(tmp_path / "shards", [4, 4])
    settings = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(shards, tmp_path / "run", max_steps=1, **settings).train()
    weights = tmp_path / "run" / "checkpoint-1" / "model.safetensors"
    tensors = load_file(weights)
    tensors[max(tensors)].view(-1)[0] = torch.inf
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="checkpoint-1: 1 of its tensors hold NaN or infinite"):
        make_trainer(shards, tmp_path / "run", max_steps=2, **settings).train(resume_from_checkpoint=True)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CavMaeSyncError, match="checkpoint-1: its weights are truncated or damaged"):
        make_trainer(shards, tmp_path / "run", max_steps=2, **settings).train(resume_from_checkpoint=True)


def plant(folder: Path, sentinel: Path, reference: str) -> None:
    """Code that makes the sentinel when it is imported, named by all that may name code, of this folder or another."""
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(sentinel)!r})\n\n\nclass Thing:\n    pass\n")
    kinds = ("Config", "Model", "ModelForPreTraining", "Processor", "FeatureExtractor", "VideoProcessor", "Tokenizer")
    places = {f"Auto{kind}": reference for kind in kinds}
    for file in ("config.json", "processor_config.json"):
        values = json.loads((folder / file).read_text())
        values["auto_map"] = places
        for part in ("feature_extractor", "video_processor"):
            if part in values:
                values[part]["auto_map"] = places
        if file == "config.json":
            values["custom_pipelines"] = {"audio-visual-retrieval": {"impl": reference, "pt": ["AutoModel"]}}
        (folder / file).write_text(json.dumps(values))


LOADERS: dict[str, Callable[[Path], Any]] = {
    "load_model": load_model,
    "load_model for pretraining": lambda path: load_model(path, use="pretraining"),
    "training": lambda path: build_for_pretraining(ModelArguments(init_from=str(path))),
    "card": lambda path: card_text(path, []),
    "AutoConfig": AutoConfig.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
    "AutoProcessor": AutoProcessor.from_pretrained,
    "AutoFeatureExtractor": AutoFeatureExtractor.from_pretrained,
    "AutoVideoProcessor": AutoVideoProcessor.from_pretrained,
}


@pytest.mark.parametrize("reference", ["evil.Thing", "someone/else--evil.Thing"])
@pytest.mark.parametrize("loader", LOADERS)
def test_auto_map__brings_no_code_where_the_package_is_installed(folder, sentinel, loader, reference):
    plant(folder, sentinel, reference)
    LOADERS[loader](folder)
    assert not sentinel.exists()


@pytest.mark.parametrize("reference", ["evil.Thing", "someone/else--evil.Thing"])
@pytest.mark.parametrize(
    "unknown", ["processor_class", "feature_extractor_type", "video_processor_type", "model_type"]
)
def test_classes_that_nobody_knows__are_refused_without_a_question(folder, sentinel, unknown, reference):
    plant(folder, sentinel, reference)
    for file in ("config.json", "processor_config.json"):
        values = json.loads((folder / file).read_text())
        for part in (values, values.get("feature_extractor", {}), values.get("video_processor", {})):
            if unknown in part:
                part[unknown] = "Thing"
        (folder / file).write_text(json.dumps(values))
    with pytest.raises(ModelError):
        load_model(folder)
    assert not sentinel.exists()


def test_masks__are_arrays_alone(tmp_path, sentinel):
    evil = np.array([Attack(sentinel)], dtype=object)
    np.save(tmp_path / "mask.npy", evil, allow_pickle=True)
    np.savez(tmp_path / "mask.npz", mask=evil)
    for name in ("mask.npy", "mask.npz"):
        with pytest.raises(EvaluationError, match=f"{name}: the mask cannot be read .*Python objects"):
            read_mask(tmp_path / name)
    assert not sentinel.exists()
