"""Recipes and flags: each recipe runs, flags change it, and what cannot be used is refused with what would do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForPreTraining

from cavmae_sync_hf import AlreadyExistsError, TrainingError
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from cavmae_sync_hf.model.processing_cavmae_sync import CavMaeSyncProcessor
from cavmae_sync_hf.names import example_model
from cavmae_sync_hf.training import (
    DataArguments,
    ModelArguments,
    PretrainingArguments,
    augmentation_options,
    build_for_pretraining,
    check_output,
    make_syncworld,
    parse_arguments,
)
from cavmae_sync_hf.training.pretrain import pretrain
from helpers.published_tensors import published_decoder, published_encoder
from helpers.scripts import RECIPES, run_training
from helpers.tiny import tiny_config

# `dinov2_ast` names encoders of the Hub; see test_training_encoders.py.
NAMES = sorted(path.stem for path in (RECIPES / "pretraining").glob("*.yaml") if path.stem != "dinov2_ast")
KINDS = (ModelArguments, DataArguments, PretrainingArguments)
SMALL = {
    "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_modality_layers": 1, "image_size": 48,
    "num_frames": 4, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, Any]:
    return {
        "folder": str(tmp_path_factory.mktemp("world")),
        "train": 8, "semantic": 4, "temporal": 4, "spatial": 3, "size": 48, "seconds": 3.0, "workers": 1,
    }  # fmt: skip


def pretrained(recipe: str, out: Path, world: dict[str, Any], *more: str) -> int:
    flags = {
        "output_dir": out, "max_steps": 2, "per_device_train_batch_size": 4, "dataloader_num_workers": 0,
        "use_cpu": "true", "torch_compile": "false", "disable_tqdm": "true", "eval_strategy": "no",
        "log_level": "error",
        "dataloader_pin_memory": "false", "model_config": json.dumps(SMALL), "syncworld": json.dumps(world),
        "eval_min_shift": 0.5,
    }  # fmt: skip
    return run_training(pretrain, flags, recipe, *more)


@pytest.mark.parametrize("recipe", NAMES)
def test_recipe__runs_two_steps_and_saves(recipe, world, tmp_path):
    assert pretrained(recipe, tmp_path, world) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 <= metrics["eval_semantic_audio_to_video_r1"] <= 1
    assert "eval_temporal_pair_accuracy" in metrics and "eval_semantic_shift_accuracy" in metrics
    card = (tmp_path / "README.md").read_text()
    assert f"{metrics['eval_semantic_audio_to_video_r1']:.4g}" in card and "2 steps with batches of 4 clips" in card
    model = AutoModelForPreTraining.from_pretrained(tmp_path)
    (recipe_model, _, settings) = parse_arguments(KINDS, [recipe, "--use_cpu"], "pretraining")
    for name, value in (recipe_model.model_config or {}).items():
        assert getattr(model.config, name) == SMALL.get(name, value)
    processor = CavMaeSyncProcessor.from_pretrained(tmp_path)
    assert processor.feature_extractor.alignment == recipe_model.processor["alignment"]
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).learning_rate == settings.learning_rate


def test_script__resumes_from_its_last_checkpoint_if_there_is_one(world, tmp_path, capsys):
    for steps in (2, 4):  # the first time there is nothing to go on from
        pretrained("syncworld_tiny", tmp_path, world, "--resume_from_checkpoint", "auto", "--save_steps", "2",
            "--max_steps", str(steps))  # fmt: skip
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert "eval_semantic_audio_to_video_r1" in capsys.readouterr().out


def test_script__replaces_an_earlier_run_only_when_asked(world, tmp_path):
    assert pretrained("syncworld_tiny", tmp_path, world, "--save_steps", "1", "--plots", "true") == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    words = r"earlier run .checkpoint-2.*resume_from_checkpoint=.auto.*overwrite=True"
    with pytest.raises(AlreadyExistsError, match=words):
        pretrained("syncworld_tiny", tmp_path, world)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert pretrained("syncworld_tiny", tmp_path, world, "--overwrite", "--save_strategy", "no", "--seed", "5") == 0
    assert (tmp_path / "model.safetensors").read_bytes() != before[tmp_path / "model.safetensors"]
    assert not list(tmp_path.glob("checkpoint-*"))  # which a later run would go on from


@pytest.mark.parametrize("left", ["model.safetensors", "metrics.json", "plots/step_000001_x.png"])
def test_check_output__tells_an_earlier_run_by_what_it_left(tmp_path, left):
    settings = PretrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    (tmp_path / "world").mkdir()
    assert check_output(settings) is None
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).touch()

    with pytest.raises(AlreadyExistsError, match=f"earlier run .{Path(left).name}.*Pass overwrite=True to start anew"):
        check_output(settings)
    settings.resume_from_checkpoint = "auto"  # one that was stopped before its first checkpoint has plots alone
    if "plots" in left:
        assert check_output(settings) is None
    else:
        with pytest.raises(AlreadyExistsError, match="earlier run"):
            check_output(settings)
    settings.overwrite = True
    assert check_output(settings) is None


def test_published_recipes__are_the_published_values():
    sync_model, sync_data, sync = parse_arguments(KINDS, ["audioset", "--use_cpu"], "pretraining")
    plain_model, _, plain = parse_arguments(KINDS, ["audioset_cavmae", "--use_cpu"], "pretraining")
    for settings, batch in ((sync, 512), (plain, 256)):
        assert (settings.learning_rate, settings.weight_decay) == (2e-4, 5e-7)
        assert (settings.adam_beta1, settings.adam_beta2, settings.adam_with_l2) == (0.95, 0.999, True)
        assert batch % settings.per_device_train_batch_size == 0 and settings.num_train_epochs == 25
    assert (sync.warmup_steps, sync.lr_scheduler_kwargs) == (0.1, {"min_lr_rate": 0.1})
    assert plain.step_decay == {"start": 10, "every": 5, "factor": 0.5}
    assert (sync_model.model_config, sync_data.frames_per_clip) == (None, 1)  # the release's are the defaults
    assert plain_model.family == "cav_mae"


def test_flags__win_over_the_recipe_and_change_single_keys_of_mappings(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output_dir: here\nlearning_rate: 1e-3\nmodel_config: {hidden_size: 96, temperature: 7e-2}\n")
    model, _, settings = parse_arguments(
        KINDS, [str(recipe), "--output_dir", "there", "--model_config", '{"hidden_size": 32}']
    )
    assert (settings.output_dir, settings.learning_rate) == ("there", 1e-3)  # YAML takes 1e-3 for a text
    assert model.model_config == {"hidden_size": 32, "temperature": 0.07}


def test_eval_data__may_be_one_source_alone(tmp_path):
    def sets(*words):
        (data,) = (
            kind for kind in parse_arguments(KINDS, ["--output_dir", "out", *words]) if hasattr(kind, "in_memory")
        )
        return data.eval_data

    assert sets("--eval_data", "shards/held_out/") == {"held_out": "shards/held_out/"}
    assert sets("--eval_data", "clips.csv") == {"clips": "clips.csv"}
    assert sets("--eval_data", '{"a": "b"}') == {"a": "b"}
    assert sets() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "`learning_rat` is no setting; did you mean `learning_rate`"),
        ("- a\n- b", "a YAML mapping"),
        ("a: [", "cannot be read"),
        ("streaming: true\nin_memory: true", "take one of them"),
        ("frames_per_clip: 0", "at least 1"),
        ("step_decay: {start: 1}", "start, every and factor"),
        ("remove_unused_columns: true", "leave it off"),
        ("model_config: '[1]'", "must be a mapping"),
    ],
)
def test_recipe__what_cannot_be_used_is_refused(text, message, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(TrainingError, match=message):
        parse_arguments(KINDS, [str(recipe), "--output_dir", str(tmp_path)])


def test_data__missing_and_unknown_ones_are_refused():
    with pytest.raises(TrainingError, match="`folder`"):
        make_syncworld({"train": 4})
    with pytest.raises(TrainingError, match="presets are"):
        augmentation_options("cavmea")
    with pytest.raises(TrainingError, match="rotate"):
        augmentation_options({"rotate": 1})
    assert augmentation_options("none") is None
    assert augmentation_options({"crop_scale": [0.5, 1.0]}).crop_scale == (0.5, 1.0)


def test_init__continues_a_saved_model_with_its_processor(tmp_path):
    torch.manual_seed(5)
    saved = CavMaeSyncForPreTraining(tiny_config())
    saved.save_pretrained(tmp_path)
    CavMaeSyncProcessor.from_config(saved.config, alignment="reference", mean=-4.0).save_pretrained(tmp_path)
    model, processor = build_for_pretraining(
        ModelArguments(init_from=str(tmp_path), model_config={"contrastive_loss_weight": 0.5})
    )
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in model.state_dict().items())
    assert model.config.contrastive_loss_weight == 0.5 and model.config.hidden_size == 32
    assert (processor.feature_extractor.alignment, processor.feature_extractor.mean) == ("reference", -4.0)
    _, changed = build_for_pretraining(ModelArguments(init_from=str(tmp_path), processor={"alignment": "time"}))
    assert (changed.feature_extractor.alignment, changed.video_processor.alignment) == ("time", "time")


def test_init__takes_the_example_by_its_name():
    model, processor = build_for_pretraining(ModelArguments(init_from="example"))
    saved = CavMaeSyncForPreTraining.from_pretrained(example_model())
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in model.state_dict().items())
    assert processor.feature_extractor.alignment == "time"


def test_init__takes_a_published_file(tmp_path):
    torch.manual_seed(0)
    tensors = published_encoder() | published_decoder()
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "published.pth")
    from helpers.published_tensors import SMALL as SIZES

    model, processor = build_for_pretraining(
        ModelArguments(init_from=str(tmp_path / "published.pth"), model_config=dict(SIZES))
    )
    expected = tensors["patch_embed_v.proj.weight"]
    assert torch.equal(model.model.video_tower.embeddings.projection.weight, expected)
    assert processor.feature_extractor.alignment == "reference"


def test_init__from_scratch_depends_on_the_seed_alone():
    arguments = ModelArguments(model_config=dict(SMALL), attention="eager")
    first, again, other = (build_for_pretraining(arguments, seed)[0] for seed in (1, 1, 2))
    weight = [model.model.audio_tower.layers[0].mlp.fc1.weight for model in (first, again, other)]
    assert torch.equal(weight[0], weight[1]) and not torch.equal(weight[0], weight[2])
    assert first.config._attn_implementation == "eager"


def test_pictures__is_the_old_name_of_plots(tmp_path):
    recipe = tmp_path / "old.yaml"
    recipe.write_text("pictures: true\nuse_cpu: true\n")
    with pytest.warns(FutureWarning, match="`plots`"):
        *_, settings = parse_arguments(KINDS, [str(recipe), "--output_dir", str(tmp_path)])
    assert settings.plots
    with pytest.warns(FutureWarning, match="`plots`"):
        assert PretrainingArguments(output_dir=str(tmp_path), use_cpu=True, pictures=True).plots
