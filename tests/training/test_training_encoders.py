"""Pretraining with encoders of other models: kept tokens, checkpoints, and the recipe for DINOv2 and AST."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import ASTConfig, ASTModel, AutoModelForPreTraining, Dinov2Config, Dinov2Model

from cavmae_sync_hf import CavMaeSyncForPreTraining, CavMaeSyncProcessor, DataError, TrainingError
from cavmae_sync_hf.data.augmentation import AUGMENTATION_PRESETS
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.data.prepare import prepare
from cavmae_sync_hf.data.streaming import CavMaeSyncStreamingDataset
from cavmae_sync_hf.training import CavMaeSyncTrainer, PretrainingArguments
from cavmae_sync_hf.training.initialization import build_for_pretraining
from cavmae_sync_hf.training.pretrain import pretrain
from cavmae_sync_hf.training.sets import InMemoryDataset, make_syncworld
from cavmae_sync_hf.training.settings import ModelArguments
from cavmae_sync_hf.training.token_cache import keep_tokens
from helpers.clips import noise, write_clip
from helpers.encoders import encoder_config, encoder_settings
from helpers.pretraining_runs import ARGUMENTS, losses
from helpers.scripts import run_training
from helpers.tiny import TINY
from helpers.tiny_shards import tiny_processor, write_shards

AST = "audio-spectrogram-transformer"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), [5, 3], silent=[1], short=[6])


def make_model(audio=AST, video="dinov2", **settings) -> CavMaeSyncForPreTraining:
    torch.manual_seed(3)
    whole = {"audio_mask_ratio": 0.0, "video_mask_ratio": 0.0, "contrastive_loss_weight": 1.0}
    return CavMaeSyncForPreTraining(encoder_config(audio, video, **(whole | settings)))


def train(model, dataset, out, **settings) -> CavMaeSyncTrainer:
    arguments = PretrainingArguments(output_dir=str(out), **(ARGUMENTS | {"max_steps": 4} | settings))
    trainer = CavMaeSyncTrainer(model, arguments, processor=tiny_processor(), train_dataset=dataset)
    trainer.train()
    return trainer


@pytest.mark.parametrize("video", ["dinov2", None])
def test_kept_tokens__train_as_the_clips_do_and_the_encoder_is_not_run_again(shards, tmp_path, video):
    model, dataset = make_model(video=video), CavMaeSyncDataset(shards, tiny_processor(), frames=2)
    expected = losses(train(model, dataset, tmp_path / "a"))
    model = make_model(video=video)
    kept = keep_tokens(model, dataset, tmp_path / "tokens", batch_frames=8)
    passes = []
    for tower in model.encoder_towers().values():
        tower.encoder.register_forward_hook(lambda *_: passes.append(1))
    found = losses(train(model, kept, tmp_path / "b"))
    assert found == pytest.approx(expected, rel=2e-3)  # tokens are kept in half precision
    assert not passes
    again = keep_tokens(model, dataset, tmp_path / "tokens")  # only joint layers were trained
    assert not passes and torch.equal(again[0]["audio_tokens"], kept[0]["audio_tokens"])


def test_kept_tokens__are_not_taken_for_those_of_another_encoder(shards, tmp_path):
    dataset = CavMaeSyncDataset(shards, tiny_processor(), frames=1)
    keep_tokens(make_model(), dataset, tmp_path)
    other = make_model()
    with torch.no_grad():
        other.model.video_tower.encoder.embeddings.cls_token.add_(1.0)
    with pytest.raises(TrainingError, match="holds the features of another model"):
        keep_tokens(other, dataset, tmp_path)


@pytest.mark.parametrize(
    ("settings", "augmentation", "message"),
    [
        ({"encoder_training": "full"}, None, "`encoder_training` is 'full'; leave out `token_dir`"),
        ({"audio": None, "video": None}, None, "there is none; leave out `token_dir`"),
        ({}, AUGMENTATION_PRESETS["cavmae_sync"], "set `augmentation` to none"),
    ],
)
def test_tokens_that_would_not_stay__are_not_kept(shards, tmp_path, settings, augmentation, message):
    dataset = CavMaeSyncDataset(shards, tiny_processor(), augmentation=augmentation)
    with pytest.raises(TrainingError, match=message):
        keep_tokens(make_model(**settings), dataset, tmp_path / "tokens")


@pytest.mark.parametrize("training", ["lora", "full"])
def test_checkpoint__resumes_as_the_run_would_have_gone_on(shards, tmp_path, training):
    dataset = CavMaeSyncDataset(shards, tiny_processor(), frames=2)
    train(make_model(encoder_training=training), dataset, tmp_path / "b", max_steps=2, save_strategy="steps",
          save_steps=2, lr_scheduler_type="constant")  # fmt: skip
    arguments = ARGUMENTS | {"max_steps": 4, "output_dir": str(tmp_path / "b"), "lr_scheduler_type": "constant"}
    resumed = CavMaeSyncTrainer(make_model(encoder_training=training), PretrainingArguments(**arguments),
                                processor=tiny_processor(), train_dataset=dataset)  # fmt: skip
    resumed.train(resume_from_checkpoint=True)
    constant = train(make_model(encoder_training=training), dataset, tmp_path / "c", lr_scheduler_type="constant")
    assert losses(resumed) == pytest.approx(losses(constant), rel=1e-5)
    moved = [
        name for name, value in resumed.model.named_parameters()
        if ".encoder." in name and not torch.equal(value, make_model(encoder_training=training).get_parameter(name))
    ]  # fmt: skip
    assert moved and all((".lora_" in name) is (training == "lora") for name in moved)


@pytest.mark.parametrize("frames", [1, "all"])
def test_whole_clips__are_heard_in_training_and_evaluation(shards, tmp_path, frames):
    sizes = {"audio_encoder_config": encoder_settings("audio", AST, max_length=96)}
    model = make_model(audio_context="clip", **sizes)
    processor = CavMaeSyncProcessor.from_config(model.config, mean=tiny_processor().feature_extractor.mean)
    dataset = CavMaeSyncDataset(shards, processor, frames=frames)
    assert dataset[0]["input_values"].shape[1:] == (96, 16)
    found = losses(train(model, dataset, tmp_path / "a"))
    kept = keep_tokens(make_model(audio_context="clip", **sizes), dataset, tmp_path / "tokens")
    again = losses(train(make_model(audio_context="clip", **sizes), kept, tmp_path / "b"))
    assert again == pytest.approx(found, rel=2e-3)
    streamed = CavMaeSyncStreamingDataset(shards, processor, frames=frames, shuffle_buffer=1, batch_size=4)
    for sample in streamed:
        number = dataset.clip_ids().index(sample["clip_id"])
        chosen = dataset.maker.make(dataset.source, number, sample["epoch"])
        for name in ("input_values", "window_offsets"):
            assert torch.equal(sample[name], chosen[name])


def test_settings_that_do_not_fit_the_model_to_start_from__are_refused_before_training(tmp_path):
    model = make_model(audio_context="clip")
    model.save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="nothing can be removed and recovered: use 0"):
        build_for_pretraining(
            ModelArguments(init_from=str(tmp_path), model_config={"reconstruction_loss_weight": 0.1})
        )


def test_recipe_for_dinov2_and_ast__runs_two_steps_on_small_encoders(shards, tmp_path):
    torch.manual_seed(0)
    video = {key: value for key, value in encoder_settings("video", "dinov2").items() if key != "model_type"}
    audio = {key: value for key, value in encoder_settings("audio", AST).items() if key != "model_type"}
    Dinov2Model(Dinov2Config(**video)).save_pretrained(tmp_path / "dinov2")
    ASTModel(ASTConfig(**audio)).save_pretrained(tmp_path / "ast")
    (tmp_path / "ast" / "preprocessor_config.json").write_text(json.dumps({"mean": -4.0, "std": 4.5}))
    sizes = {name: value for name, value in TINY.items() if name != "num_labels"}
    flags = {
        "output_dir": tmp_path / "out", "train_data": shards, "token_dir": tmp_path / "tokens", "max_steps": 2,
        "video_encoder": tmp_path / "dinov2", "audio_encoder": tmp_path / "ast",
        "model_config": json.dumps(sizes | {"save_encoders": "reference", "contrastive_loss_weight": 1.0}),
        "per_device_train_batch_size": 4, "dataloader_num_workers": 0, "use_cpu": "true", "bf16": "false",
        "disable_tqdm": "true", "log_level": "error", "dataloader_pin_memory": "false",
    }  # fmt: skip
    assert run_training(pretrain, flags, "dinov2_ast") == 0
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out")
    assert model.config.encoder_training == "frozen" and model.config.audio_encoder_std == 9.0
    own = Dinov2Model.from_pretrained(tmp_path / "dinov2").state_dict()
    for name, value in model.model.video_tower.encoder.state_dict().items():
        assert torch.equal(value, own[name])
    assert CavMaeSyncProcessor.from_pretrained(tmp_path / "out").feature_extractor.num_mel_bins == 16
    assert "its weights are not in this folder" in (tmp_path / "out" / "README.md").read_text()


def test_encoder_of_waveforms__trains_from_files_and_from_shards_of_waveforms(shards, tmp_path):
    processor = CavMaeSyncProcessor.from_config(make_model(audio="hubert").config)
    with pytest.raises(DataError, match="hold log-mels, and .* hears waveforms; prepare them with audio='waveform'"):
        CavMaeSyncDataset(shards, processor)
    (tmp_path / "videos").mkdir()
    for number in range(4):
        write_clip(tmp_path / "videos" / f"{number}.mp4", seconds=1, audio=noise(1, seed=number))
    options = {"audio": "waveform", "num_frames": 4, "short_side": None, "jpeg_quality": 100, "workers": 1}
    prepare(tmp_path / "videos", tmp_path / "shards", **options)
    files = CavMaeSyncDataset(str(tmp_path / "videos"), processor, frames=2)
    kept = CavMaeSyncDataset(tmp_path / "shards", processor, frames=2)
    expected = losses(train(make_model(audio="hubert"), files, tmp_path / "a"))
    found = losses(train(make_model(audio="hubert"), kept, tmp_path / "b"))
    assert found == pytest.approx(expected, rel=0.02)  # frames are JPEG
    tokens = keep_tokens(make_model(audio="hubert"), kept, tmp_path / "tokens")
    assert losses(train(make_model(audio="hubert"), tokens, tmp_path / "c")) == pytest.approx(found, rel=2e-3)


def test_syncworld__has_shards_of_waveforms_for_encoders_that_hear_them(tmp_path):
    world = {"folder": str(tmp_path), "train": 4, "seconds": 3.0, "fps": 5, "size": 48, "workers": 1}
    train_set, _ = make_syncworld(world, num_frames=4, waveform_rate=16_000)
    processor = CavMaeSyncProcessor.from_config(make_model(audio="wav2vec2").config)
    samples = InMemoryDataset(train_set, processor, frames="all")
    for number in range(3):
        expected = CavMaeSyncDataset(train_set, processor, frames="all")[number]
        assert torch.equal(samples[number]["input_values"], expected["input_values"])


def test_benchmark__times_clips_kept_tokens_and_full_training(capsys, monkeypatch):
    path = Path(__file__).parents[2] / "training" / "benchmarks" / "encoders.py"
    monkeypatch.setattr(sys, "argv", [str(path), "step", "--small", "--batch-size", "2", "--rounds", "1"])
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["frozen, clips", "frozen, kept tokens", "trained in full"]
    # At the sizes of ViT-B the factor is six; these encoders cost next to nothing.
    assert all(float(line.split("pairs,")[1].split()[0]) > 0 for line in lines)
