"""What version 0.1.0 wrote is read: a saved folder, a Trainer checkpoint, an index, shards, a SyncWorld, features and
results (`fixtures/README.md` says how they were made)."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor

from cavmae_sync_hf import CavMaeSyncForPreTraining, CavMaeSyncModel, save_for_hub
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.data.shards import check_shards
from cavmae_sync_hf.evaluation import evaluate_retrieval, read_results
from cavmae_sync_hf.inference.extract import extract_to_folder
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.model.auto_map_cavmae_sync import AUTO_MAP
from cavmae_sync_hf.search import index_videos, search
from cavmae_sync_hf.syncworld import load_syncworld, read_truth
from cavmae_sync_hf.training import CavMaeSyncTrainer, PretrainingArguments
from helpers.tiny import tiny_config, tiny_inputs
from helpers.tiny_shards import tiny_processor

ARCHIVE = Path(__file__).parent / "fixtures" / "written_by_0.1.0.tar.xz"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "v0_1_0"


@pytest.fixture(scope="module")
def expected(earlier) -> dict:
    return json.loads((earlier / "expected.json").read_text())


def test_saved_folder__gives_the_same_embeddings_and_is_saved_in_the_form_of_today(earlier, expected, tmp_path):
    model, processor = AutoModel.from_pretrained(earlier / "model"), AutoProcessor.from_pretrained(earlier / "model")
    assert isinstance(model, CavMaeSyncModel)
    with torch.no_grad():
        embeds = model.eval()(**tiny_inputs()).audio_embeds
    assert embeds.flatten()[:8].tolist() == pytest.approx(expected["similarity"], abs=1e-6)
    save_for_hub(model, processor, tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert {f"{entry.split('.')[0]}.py" for entry in AUTO_MAP.values()} <= names
    assert "pretraining_cavmae_sync.py" not in names


def test_checkpoint__resumes_as_it_would_have_gone_on(earlier, expected, tmp_path):
    shutil.copytree(earlier / "checkpoints", tmp_path / "out")
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path / "out/checkpoint-2"), CavMaeSyncForPreTraining)
    torch.manual_seed(3)
    processor = tiny_processor()
    arguments = PretrainingArguments(
        output_dir=str(tmp_path / "out"), use_cpu=True, per_device_train_batch_size=2, max_steps=4, learning_rate=3e-3,
        save_strategy="steps", save_steps=2, logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False,
        log_level="error",
    )  # fmt: skip
    trainer = CavMaeSyncTrainer(
        CavMaeSyncForPreTraining(tiny_config(contrastive_loss_weight=1.0)),
        arguments,
        train_dataset=CavMaeSyncDataset(earlier / "set", processor, frames=2),
        processor=processor,
    )
    trainer.train(resume_from_checkpoint=True)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(expected["losses"], rel=1e-5)


def test_index__is_searched_and_brought_up_to_date(earlier, expected, tmp_path):
    model, processor = load_model(earlier / "model")
    shutil.copytree(earlier / "index", tmp_path / "index")
    found = search(tmp_path / "index", earlier / "videos" / "clip0.mp4", model, processor, by="audio")
    assert {hit.path for hit in found.hits} == {path for (path,) in expected["hits"]}
    index_videos(earlier / "videos", tmp_path / "index", model, processor, remove_missing=False)
    paths = {hit.path for hit in search(tmp_path / "index", earlier / "videos/clip1.mp4", model, processor).hits}
    assert str(earlier / "videos" / "clip0.mp4") in paths


def test_shards__are_whole_and_make_batches(earlier):
    for name, clips in (("set", 5), ("shards", 2)):
        assert check_shards(earlier / name) == []
        dataset = CavMaeSyncDataset(earlier / name, tiny_processor())
        assert len(dataset) == clips and dataset[0]["pixel_values_videos"].shape[1:] == (3, 32, 32)


def test_syncworld__is_read(earlier):
    records = list(read_truth(earlier / "world", "temporal"))
    assert len(records) == 2 and all(record["sounding_boxes"] for record in records)
    assert len(list(load_syncworld(earlier / "world", "temporal"))) == 2


def test_features__are_complete_for_the_same_settings(earlier, tmp_path):
    model, processor = load_model(earlier / "model")
    shutil.copytree(earlier / "features", tmp_path / "features")
    before = np.load(tmp_path / "features" / "av.npy")
    summary = extract_to_folder(
        model, processor, earlier / "videos", tmp_path / "again", window=1.0, stride=0.5, missing="mask"
    )
    assert summary.rows == len(before) == 9
    np.testing.assert_allclose(np.load(tmp_path / "again" / "av.npy"), before, atol=1e-6)


def test_results__are_read_and_can_be_taken_again(earlier):
    record = read_results(earlier / "retrieval.json")
    model, processor = load_model(earlier / "model")
    again = evaluate_retrieval(model, processor, earlier / "set")
    assert (
        again["metrics"] == pytest.approx(record["metrics"])
        and again["data"]["fingerprint"] == record["data"]["fingerprint"]
    )
    assert again["checkpoint"]["sha256"] == record["checkpoint"]["sha256"]
