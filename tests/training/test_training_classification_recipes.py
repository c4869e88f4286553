"""Fine-tuning recipes: each runs on a small SyncWorld and saves what loads; published values are the published."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForVideoClassification

from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from cavmae_sync_hf.model.processing_cavmae_sync import CavMaeSyncProcessor
from cavmae_sync_hf.training import (
    ClassificationArguments,
    ClassificationModelArguments,
    DataArguments,
    parse_arguments,
)
from cavmae_sync_hf.training.finetune import finetune
from helpers.scripts import RECIPES, run_training
from helpers.tiny import tiny_config

NAMES = sorted(path.stem for path in (RECIPES / "classification").glob("*.yaml"))
KINDS = (ClassificationModelArguments, DataArguments, ClassificationArguments)
CLASSES = ["bell", "string", "whistle", "hum", "hiss", "bark", "clicks", "siren", "chirp", "buzz", "drum", "bubble"]
SMALL = {
    "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_modality_layers": 1, "image_size": 48,
    "num_frames": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, Any]:
    return {
        "folder": str(tmp_path_factory.mktemp("world")), "train": 8, "semantic": 8, "size": 48, "seconds": 3.0,
        "workers": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """What the recipe of this package's own starts from, in small."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = tiny_config(**SMALL, patch_size=16, num_mel_bins=128)
    CavMaeSyncForPreTraining(config).save_pretrained(folder)
    CavMaeSyncProcessor.from_config(config).save_pretrained(folder)
    return folder


def finetuned(recipe: str, out: Path, world: dict[str, Any], *more: str) -> int:
    flags = {
        "output_dir": out, "max_steps": 2, "per_device_train_batch_size": 4, "dataloader_num_workers": 0,
        "use_cpu": "true", "disable_tqdm": "true", "eval_strategy": "no", "log_level": "error", "save_strategy": "no",
        "dataloader_pin_memory": "false", "model_config": json.dumps(SMALL), "syncworld": json.dumps(world),
        "average_epochs": 0, "bf16": "false",
    }  # fmt: skip
    return run_training(finetune, flags, recipe, *more)


@pytest.mark.parametrize("recipe", NAMES)
def test_recipe__runs_two_steps_and_saves(recipe, world, pretrained, tmp_path, capsys):
    more = ["--init_from", str(pretrained), "--model_config", "{}"] if recipe == "syncworld" else []
    if recipe in ("vggsound", "grid_words"):  # one class a clip, which is not SyncWorld's way
        more = ["--problem_type", "multi_label_classification"]
    assert finetuned(recipe, tmp_path, world, *more) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 < metrics["eval_semantic_mean_average_precision"] <= 1
    assert "eval_semantic_mean_average_precision" in capsys.readouterr().out
    card = (tmp_path / "README.md").read_text()
    assert f"{metrics['eval_semantic_mean_average_precision']:.4g}" in card
    model = AutoModelForVideoClassification.from_pretrained(tmp_path)
    assert list(model.config.id2label.values()) == CLASSES
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 2
    alignment = "time" if recipe in ("syncworld", "grid_words") else "reference"
    assert CavMaeSyncProcessor.from_pretrained(tmp_path).feature_extractor.alignment == alignment


def test_script__lora_head_over_frames_and_resume(world, pretrained, tmp_path):
    pytest.importorskip("peft")
    flags = ["--init_from", str(pretrained), "--model_config", "{}", "--classifier", "frame_attention",
             "--frames_per_clip", "4", "--lora_rank", "2", "--lora_targets", "q_proj", "v_proj", "fc1",
             "--save_strategy", "steps", "--save_steps", "2", "--resume_from_checkpoint", "auto"]  # fmt: skip
    for steps in (2, 4):  # the first time there is nothing to go on from
        assert finetuned("syncworld", tmp_path, world, *flags, "--max_steps", str(steps)) == 0
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 4
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    model, _ = load_model(tmp_path, use="classification")
    assert model.config.classifier_type == "frame_attention"
    assert any(not torch.equal(*pair) for pair in zip(
        model.model.audio_tower.layers[0].mlp.fc1.parameters(),
        load_model(pretrained)[0].audio_tower.layers[0].mlp.fc1.parameters(), strict=True,
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "rate", "head", "start", "averaged", "balanced"),
    [
        ("audioset_20k", 36, 15, 5e-5, 100, 5, [3, 15], False),
        ("audioset_2m", 48, 10, 1e-5, 50, 2, [1, 10], True),
        ("vggsound", 48, 10, 1e-4, 10, 2, [3, 10], True),
    ],
)
def test_published_recipes__are_the_published_values(name, batch, epochs, rate, head, start, averaged, balanced):
    model, data, settings = parse_arguments(KINDS, [name, "--use_cpu", "--bf16", "false"], "classification")
    assert settings.per_device_train_batch_size * 4 == batch and settings.num_train_epochs == epochs
    assert (settings.learning_rate, settings.head_lr_multiple, settings.weight_decay) == (rate, head, 5e-7)
    assert (settings.adam_beta1, settings.adam_beta2, settings.adam_with_l2) == (0.95, 0.999, True)
    assert settings.step_decay == {"start": start, "every": 1, "factor": 0.5}
    assert (settings.average_epochs, settings.balanced_sampling) == (averaged, balanced)
    assert (data.augmentation, data.frames_per_clip) == ("cavmae_classification", 1)
    assert (model.family, model.model_config, model.processor) == (
        "cav_mae", {"num_frames": 10}, {"alignment": "reference"},
    )  # fmt: skip
    assert (model.problem_type == "single_label_classification") == (name == "vggsound")
