"""The mean of several checkpoints' weights: by hand, as a folder, and as the end of a training."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForVideoClassification, AutoProcessor

from cavmae_sync_hf import TrainingError
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.training import average_checkpoints, average_weights, checkpoints_of_epochs
from helpers.classification_runs import make_trainer
from helpers.pretraining_runs import weights
from helpers.tiny_shards import write_shards


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The output of three epochs of two steps, whose final weights are the mean of the last two."""
    shards = write_shards(tmp_path_factory.mktemp("shards"), [8])
    out = tmp_path_factory.mktemp("run")
    trainer = make_trainer(
        shards, out, evaluation=True, max_steps=-1, num_train_epochs=3, save_strategy="epoch", average_epochs=[2, 3],
    )  # fmt: skip
    trainer.train()
    trainer.after_training()
    trainer.evaluate()
    trainer.create_model_card()
    trainer.save_model()
    torch.save(weights(trainer), out / "averaged.pt")
    return out


def test_average__is_the_mean_of_each_weight(run):
    folders = checkpoints_of_epochs(run, 1, 3)
    assert [folder.name for folder in folders] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    parts = [load_file(folder / "model.safetensors") for folder in folders]
    seen = []
    means = average_weights(folders, progress=lambda done, total: seen.append((done, total)))
    assert set(means) == set(parts[0])
    for name, value in means.items():
        expected = (parts[0][name].double() + parts[1][name] + parts[2][name]) / 3
        torch.testing.assert_close(value, expected.float(), rtol=0, atol=0, msg=name)
    assert not torch.equal(parts[0]["head.classifier.weight"], parts[2]["head.classifier.weight"])
    assert seen[-1] == (len(means), len(means))


def test_average_checkpoints__writes_a_folder_that_loads(run, tmp_path):
    folders = checkpoints_of_epochs(run, 2, 3)
    out = average_checkpoints(folders, tmp_path / "below" / "mean")
    model = AutoModelForVideoClassification.from_pretrained(out)
    means = average_weights(folders)
    assert all(torch.equal(value, means[name]) for name, value in model.state_dict().items())
    assert AutoProcessor.from_pretrained(out).feature_extractor.audio_length == 48
    assert load_model(out, use="classification")[0].config.num_labels == 3
    names = {path.name for path in out.iterdir()}
    assert "modeling_cavmae_sync.py" in names and "config.json" in names
    assert not names & {"optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.bin", "rng_state.pth"}
    assert [path.name for path in out.parent.iterdir()] == ["mean"]  # no scratch folder is left
    with pytest.raises(TrainingError, match="already exists"):
        average_checkpoints(folders, out)


def test_training__ends_with_the_mean_of_its_epochs(run):
    means = average_weights(checkpoints_of_epochs(run, 2, 3))
    for found in (torch.load(run / "averaged.pt"), load_file(run / "model.safetensors")):
        assert all(torch.equal(found[name], value) for name, value in means.items())
    assert "mean of those after epochs 2 to 3" in (run / "README.md").read_text()


def test_epochs__without_a_checkpoint_are_named(run, tmp_path):
    with pytest.raises(TrainingError, match=r"end of epoch 4, 5 \(but of 1, 2, 3\)"):
        checkpoints_of_epochs(run, 3, 5)
    (tmp_path / "checkpoint-7").mkdir()  # begun and not finished
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-9" / "trainer_state.json").write_text(json.dumps({"epoch": 1.5}))
    with pytest.raises(TrainingError, match=r"epoch 1 \(but of none\)"):
        checkpoints_of_epochs(tmp_path, 1, 1)


def test_checkpoints__that_do_not_belong_together_are_refused(tmp_path):
    base = {"a": torch.ones(2), "count": torch.tensor(3)}
    for name, change in {"same": {}, "other": {"b": torch.ones(1)}, "shape": {"a": torch.ones(3)},
                         "count": {"count": torch.tensor(4)}}.items():  # fmt: skip
        (tmp_path / name).mkdir()
        save_file(base | change, tmp_path / name / "model.safetensors")
    assert average_weights([tmp_path / "same"] * 2)["count"] == 3
    with pytest.raises(TrainingError, match="other: has other weights than .*: b"):
        average_weights([tmp_path / "same", tmp_path / "other"])
    with pytest.raises(TrainingError, match=r"`a` has shape \(3,\)"):
        average_weights([tmp_path / "same", tmp_path / "shape"])
    with pytest.raises(TrainingError, match="`count` holds other numbers"):
        average_weights([tmp_path / "same", tmp_path / "count"])
    with pytest.raises(TrainingError, match="no checkpoints"):
        average_weights([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="holds no whole model"):
        average_checkpoints([tmp_path / "empty"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(TrainingError, match="low-rank changes"):
        average_weights([tmp_path / "empty"])


def test_training__refuses_to_average_sharded_weights(tmp_path):
    shards = write_shards(tmp_path / "shards", [8])
    with pytest.raises(ValueError, match="call `average_checkpoints`"):
        make_trainer(
            shards, tmp_path / "out", max_steps=-1, num_train_epochs=3, save_strategy="epoch", average_epochs=[2, 3],
            fsdp=True, fsdp_config={"version": 2},
        )  # fmt: skip


def test_average__of_weights_in_several_files(tmp_path):
    for name, shift in (("first", 0.0), ("second", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"a": torch.full((2,), shift)}, tmp_path / name / "model-1.safetensors")
        save_file({"b": torch.full((1,), 1 + shift, dtype=torch.bfloat16)}, tmp_path / name / "model-2.safetensors")
        index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
        (tmp_path / name / "model.safetensors.index.json").write_text(json.dumps(index))
    means = average_weights([tmp_path / "first", tmp_path / "second"])
    assert means["a"].tolist() == [1.0, 1.0] and means["b"].tolist() == [2.0] and means["b"].dtype == torch.bfloat16
