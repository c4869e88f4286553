"""Low-rank changes: what is trained, what a checkpoint holds, and that the merged model computes the same."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from peft import PeftModel
from transformers import AutoModel, AutoModelForVideoClassification

from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForAudioVisualClassification
from cavmae_sync_hf.training import add_lora, merged_copy
from helpers.classification_runs import make_trainer, save_pretrained
from helpers.pretraining_runs import AtStep, weights
from helpers.tiny import tiny_config, tiny_inputs
from helpers.tiny_shards import write_shards

LABELS = [[0], [0, 1], [1], [2, 0], [1], [3, 1], [0, 2], [4]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), [8], LABELS)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return save_pretrained(tmp_path_factory.mktemp("pretrained"))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(**tiny_inputs(2, 3)).logits


@pytest.mark.parametrize("head", ["mean_pooling", "frame_attention"])
def test_lora__saves_changes_and_a_merged_model_that_agree(head, shards, pretrained, tmp_path):
    settings = {"init_from": str(pretrained), "lora_rank": 2, "classifier": head, "lora_targets": ["q_proj", "fc1"]}
    trainer = make_trainer(
        shards, tmp_path, model=settings, evaluation=True, save_strategy="steps", save_steps=4, max_steps=4,
        learning_rate=0.05,
    )  # fmt: skip
    before = weights(trainer)
    trainer.train()
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert all("lora_" in name or "head.modules_to_save" in name for name in changed)
    assert any("fc1.lora_A" in name for name in changed) and any("classifier.weight" in name for name in changed)
    assert not any("joint_layers" in name for name in changed) or head == "mean_pooling"
    trainer.evaluate()
    trainer.create_model_card()
    trainer.save_model()
    expected = logits(trainer.model)

    merged, processor = load_model(tmp_path, use="classification")
    # Adding the product to the weights once rounds otherwise than adding two outputs.
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        logits(AutoModelForVideoClassification.from_pretrained(tmp_path)), logits(merged), rtol=0, atol=0
    )
    assert torch.equal(AutoModel.from_pretrained(tmp_path).norms["audio"].weight, merged.model.norms["audio"].weight)
    assert processor.to_dict() == trainer.processor.to_dict()
    assert "CavMaeSyncForAudioVisualClassification" in (tmp_path / "README.md").read_text()

    for folder in (tmp_path / "adapter", tmp_path / "checkpoint-4"):
        assert not (folder / "model.safetensors").exists()
        assert (folder / "adapter_model.safetensors").stat().st_size < (tmp_path / "model.safetensors").stat().st_size
        base = CavMaeSyncForAudioVisualClassification.from_pretrained(
            pretrained, num_labels=5, classifier_type=head, problem_type="multi_label_classification"
        )
        torch.testing.assert_close(logits(PeftModel.from_pretrained(base, folder)), expected, rtol=1e-5, atol=1e-5)


def test_lora__resumes_where_it_stopped(shards, pretrained, tmp_path):
    settings = {"init_from": str(pretrained), "lora_rank": 2}

    stop = AtStep(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    whole = make_trainer(shards, tmp_path / "whole", model=settings, max_steps=4)
    whole.train()
    make_trainer(shards, tmp_path / "parts", model=settings, max_steps=4, callbacks=[stop]).train()
    second = make_trainer(shards, tmp_path / "parts", model=settings, max_steps=4)
    second.train(resume_from_checkpoint=True)
    for name, value in weights(whole).items():
        assert torch.equal(weights(second)[name], value), name


def test_lora__best_checkpoint_is_loaded(shards, pretrained, tmp_path, monkeypatch):
    trainer = make_trainer(
        shards, tmp_path, model={"init_from": str(pretrained), "lora_rank": 2}, evaluation=True, max_steps=3,
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model="all_score",
    )  # fmt: skip
    seen = {}

    def metrics(name, evaluation_set) -> dict[str, float]:
        seen[trainer.state.global_step] = weights(trainer)
        return {"score": {1: 0.1, 2: 0.8, 3: 0.2}[trainer.state.global_step]}

    monkeypatch.setattr(trainer, "evaluate_set", metrics)
    trainer.train()
    for name, value in weights(trainer).items():
        assert torch.equal(value, seen[2][name]), name


def test_merged_copy__leaves_the_model_as_it_is():
    torch.manual_seed(0)
    model = add_lora(CavMaeSyncForAudioVisualClassification(tiny_config()), rank=2, alpha=8.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged = merged_copy(model)
    assert type(merged) is CavMaeSyncForAudioVisualClassification
    assert {name: value.shape for name, value in merged.state_dict().items()} == {
        name: value.shape for name, value in CavMaeSyncForAudioVisualClassification(tiny_config()).state_dict().items()
    }
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    layer = dict(model.named_parameters())
    stem = "base_model.model.model.audio_tower.layers.0.attention.q_proj"
    change = 4.0 * layer[f"{stem}.lora_B.default.weight"] @ layer[f"{stem}.lora_A.default.weight"]
    expected = layer[f"{stem}.base_layer.weight"] + change
    torch.testing.assert_close(merged.model.audio_tower.layers[0].attention.q_proj.weight, expected)


def test_lora__unknown_targets_and_a_missing_package_say_what_would_do(monkeypatch):
    model = CavMaeSyncForAudioVisualClassification(tiny_config())
    with pytest.raises(ValueError, match="`lora_targets` has query; .*are fc1, fc2, k_proj, o_proj, q_proj, v_proj"):
        add_lora(model, 2, targets=["q_proj", "query"])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"cavmae-sync-hf\[lora\]"):
        add_lora(model, 2)


def test_lora__average_is_refused(shards, pretrained, tmp_path):
    with pytest.raises(ValueError, match="would average low-rank changes"):
        make_trainer(
            shards, tmp_path, model={"init_from": str(pretrained), "lora_rank": 2}, max_steps=-1, num_train_epochs=3,
            save_strategy="epoch", average_epochs=[1, 3],
        )  # fmt: skip
