"""Fine-tuning with Trainer: each option does what it says, and what it leaves behind loads."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForVideoClassification, AutoProcessor

from cavmae_sync_hf import NonFiniteLossError, TrainingError
from cavmae_sync_hf.data.dataset import CavMaeSyncCollator, CavMaeSyncDataset
from cavmae_sync_hf.data.streaming import CavMaeSyncStreamingDataset
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForAudioVisualClassification
from cavmae_sync_hf.training import (
    CavMaeSyncClassificationTrainer,
    ClassificationArguments,
    EvaluationSet,
    ModalityCollator,
    classification_flops,
    freeze_idle,
)
from cavmae_sync_hf.training.classification import BalancedEpochSampler
from helpers.classification_runs import ARGUMENTS, Marked, make_trainer, save_pretrained
from helpers.pretraining_runs import AtStep, PoisonedDataset, weights
from helpers.tiny import tiny_config, tiny_inputs
from helpers.tiny_shards import tiny_processor, write_shards

VARIED = {"noise": 0.1, "frequency_mask": 4, "time_mask": 8, "mixup": 0.5, "label_smoothing": 0.1, "flip": 0.5}


@pytest.fixture(scope="module")
def many_labels(tmp_path_factory) -> Path:
    """8 clips of up to two of five labels, the last of them rare."""
    labels = [[0], [0, 1], [1], [2, 0], [], [3, 1], [0, 2], [4]]
    return write_shards(tmp_path_factory.mktemp("many"), [8], labels)


# Learning


@pytest.mark.parametrize("head", ["mean_pooling", "frame_attention"])
@pytest.mark.parametrize(("kind", "problem_type"), [("shards", "single_label"), ("many_labels", "multi_label")])
def test_train__loss_falls_and_metrics_rise(head, kind, problem_type, request, tmp_path):
    trainer = make_trainer(
        request.getfixturevalue(kind), tmp_path, model={"classifier": head}, data=Marked, evaluation=True, max_steps=25
    )
    assert trainer.model.config.problem_type == f"{problem_type}_classification"
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert after["eval_all_loss"] < 0.8 * before["eval_all_loss"]
    assert after["eval_all_mean_average_precision"] > before["eval_all_mean_average_precision"]
    entry = next(entry for entry in reversed(trainer.state.log_history) if "loss" in entry)
    assert entry["samples_per_second"] > 0 and entry["tflops_per_device"] > 0


@pytest.mark.parametrize("modality", ["audio", "video"])
@pytest.mark.parametrize("head", ["mean_pooling", "frame_attention"])
def test_modality__the_other_is_neither_built_nor_given(modality, head, shards, tmp_path):
    trainer = make_trainer(shards, tmp_path, model={"modality": modality, "classifier": head}, evaluation=True)
    assert not any(f"{'video' if modality == 'audio' else 'audio'}_tower" in name for name in weights(trainer))
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_all_loss"])


def test_modality_collator__leaves_out_what_the_model_does_not_see(tmp_path):
    shards = write_shards(tmp_path / "shards", [3], silent=[1])
    dataset = CavMaeSyncDataset(shards, tiny_processor(), frames=2)
    collator = CavMaeSyncCollator(dataset.maker.processor)
    whole, silent = ([dataset[place] for place in places] for places in ((0, 2), (0, 1)))
    masks = {"padding_mask", "padding_mask_videos"}
    assert not masks & set(ModalityCollator(collator)(whole))
    assert masks & set(ModalityCollator(collator)(silent)) == {"padding_mask"}
    names = {modality: set(ModalityCollator(collator, modality)(silent)) for modality in ("audio", "video")}
    assert names["audio"] == {"input_values", "padding_mask", "clip_ids", "frame_times"}
    assert names["video"] == {"pixel_values_videos", "clip_ids", "frame_times"}


def test_head_lr_multiple__gives_the_head_a_rate_of_its_own(shards, tmp_path):
    settings = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 1,
                "learning_rate": 1e-3}  # fmt: skip
    changes = {}
    for multiple in (1.0, 50.0):
        trainer = make_trainer(shards, tmp_path, head_lr_multiple=multiple, **settings)
        before = weights(trainer)
        trainer.train()
        changes[multiple] = {name: value - before[name] for name, value in weights(trainer).items()}
        logged = next(entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry)
        assert logged == pytest.approx(1e-3)  # the encoder's
    for name in ("head.classifier.weight", "model.audio_tower.layers.0.mlp.fc1.weight"):
        factor = 50.0 if name.startswith("head") else 1.0
        # Steps of 1e-6 on weights of 0.1 keep a few digits.
        torch.testing.assert_close(changes[50.0][name], factor * changes[1.0][name], rtol=0.02, atol=2e-8 * factor)


def test_head_lr_multiple__goes_with_the_published_optimiser_and_schedule(shards, tmp_path):
    trainer = make_trainer(
        shards, tmp_path, head_lr_multiple=10.0, adam_with_l2=True, step_decay={"start": 1, "every": 1, "factor": 0.5},
        num_train_epochs=3, max_steps=-1, weight_decay=0.01,
    )  # fmt: skip
    trainer.train()
    optimiser = trainer.optimizer.optimizer
    assert type(optimiser) is torch.optim.Adam
    groups = [(group["initial_lr"], group["weight_decay"]) for group in optimiser.param_groups]
    assert groups == [(3e-3, 0.01), (3e-3, 0.0), (pytest.approx(3e-2), 0.01), (pytest.approx(3e-2), 0.0)]
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([3e-3] * 3 + [1.5e-3] * 3 + [0.75e-3] * 3)


def test_freeze_encoder__trains_the_head_alone(shards, tmp_path):
    trainer = make_trainer(shards, tmp_path, model={"freeze": "encoder"})
    before = weights(trainer)
    trainer.train()
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed == {"head.norm.weight", "head.norm.bias", "head.classifier.weight", "head.classifier.bias"}


@pytest.mark.parametrize("modality", ["multimodal", "audio", "video"])
@pytest.mark.parametrize("head", ["mean_pooling", "frame_attention"])
@pytest.mark.parametrize("settings", [{}, {"use_global_tokens": False, "num_register_tokens": 0},
                                      {"num_contrastive_head_layers": 1, "num_joint_layers": 2}])  # fmt: skip
def test_freeze_idle__freezes_what_gets_no_gradient_and_nothing_else(modality, head, settings):
    model = CavMaeSyncForAudioVisualClassification(
        tiny_config(modality=modality, classifier_type=head, problem_type="single_label_classification", **settings)
    )
    frozen = freeze_idle(model)
    inputs = tiny_inputs(3, 2)
    if modality != "multimodal":
        inputs = {name: value for name, value in inputs.items() if ("video" in name) == (modality == "video")}
    model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == frozen


def test_freeze_idle__clips_without_sound_leave_no_weight_without_gradient():
    model = CavMaeSyncForAudioVisualClassification(tiny_config(problem_type="single_label_classification"))
    frozen = freeze_idle(model)
    mask = torch.tensor([[True, True], [False, False]])
    model(**tiny_inputs(2, 2), padding_mask=mask, labels=torch.tensor([0, 1])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == frozen


# Order and augmentation


def test_balanced_sampling__draws_rare_classes_as_often_as_common_ones(tmp_path):
    shards = write_shards(tmp_path / "shards", [10], [[0]] * 9 + [[1]])
    drawn: list[str] = []

    class Watched(CavMaeSyncDataset):
        def __getitem__(self, index: int) -> dict[str, Any]:
            sample = super().__getitem__(index)
            drawn.append(sample["clip_id"])
            return sample

    trainer = make_trainer(shards, tmp_path / "out", balanced_sampling=True, max_steps=30, data=Watched)
    trainer.train()
    # 120 draws, half of them of the one clip; three standard deviations are 14 %.
    assert drawn.count("clip-9") / len(drawn) == pytest.approx(0.5, abs=0.14)


def test_balanced_sampler__tells_the_data_set_the_epoch_and_draws_anew(shards):
    dataset = CavMaeSyncDataset(shards, tiny_processor())
    sampler = BalancedEpochSampler(dataset, seed=1)
    draws = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        assert dataset.epoch == epoch
        draws.append(list(sampler))
    assert draws[0] != draws[1]


@pytest.mark.parametrize("balanced", [False, True])
def test_resume__ends_with_the_weights_of_an_uninterrupted_run(balanced, many_labels, tmp_path):
    settings = {"augmentation": VARIED, "balanced_sampling": balanced, "max_steps": 5, "head_lr_multiple": 5.0}
    whole = make_trainer(many_labels, tmp_path / "whole", **settings)
    whole.train()
    stop = AtStep(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    first = make_trainer(many_labels, tmp_path / "parts", callbacks=[stop], **settings)
    first.train()
    assert first.stopped_by == signal.SIGTERM and first.state.global_step == 3  # in the middle of an epoch
    torch.manual_seed(99)  # nothing may depend on what happened before
    second = make_trainer(many_labels, tmp_path / "parts", **settings)
    second.train(resume_from_checkpoint=True)
    for name, value in weights(whole).items():
        assert torch.equal(weights(second)[name], value), name


def test_augmentation__softens_training_targets_and_leaves_evaluation_alone(many_labels, tmp_path):
    trainer = make_trainer(many_labels, tmp_path, augmentation=VARIED, evaluation=True)
    batch = next(iter(trainer.get_train_dataloader()))
    assert ((batch["labels"] > 0) & (batch["labels"] < 1)).any()
    predictions = trainer.predict_set(trainer.evaluation_sets["all"])
    expected = [[0], [0, 1], [1], [2, 0], [], [3, 1], [0, 2], [4]]
    assert [row.nonzero().flatten().tolist() for row in predictions.targets] == [sorted(row) for row in expected]
    trainer.args.max_steps = 2
    trainer.train()
    assert trainer.state.global_step == 2


# Evaluation


def test_evaluate__metrics_are_those_of_frame_averaged_predictions(many_labels, tmp_path):
    trainer = make_trainer(many_labels, tmp_path, evaluation=True, eval_each_modality=True, eval_batch_frames=12)
    trainer.train()
    metrics = trainer.evaluate()
    dataset = trainer.evaluation_sets["all"].dataset
    inputs = {
        name: torch.stack([dataset[place][name] for place in range(len(dataset))])
        for name in ("input_values", "pixel_values_videos")
    }
    truth = np.zeros((8, 5))
    for place, labels in enumerate(dataset.labels()):
        truth[place, labels] = 1
    trainer.model.eval()
    with torch.no_grad():
        frames = trainer.model(**inputs).frame_logits
        heard = trainer.model(input_values=inputs["input_values"]).logits
    probabilities = frames.sigmoid().mean(dim=1)
    scored = {
        "": probabilities, "middle_frame_": frames[:, 2], "audio_": heard,
    }  # fmt: skip
    for prefix, scores in scored.items():
        expected = average_precision_score(truth, scores.numpy(), average="macro")
        assert metrics[f"eval_all_{prefix}mean_average_precision"] == pytest.approx(expected, abs=1e-6)
    expected = functional.binary_cross_entropy(probabilities, torch.from_numpy(truth).float())
    assert metrics["eval_all_loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert "eval_all_video_accuracy" in metrics and "eval_all_hit_at_5" in metrics
    assert trainer.model.training is False  # as it was


def test_best_checkpoint__by_a_metric_is_the_final_model(many_labels, tmp_path, monkeypatch):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
                "load_best_model_at_end": True, "metric_for_best_model": "all_mean_average_precision"}  # fmt: skip
    trainer = make_trainer(many_labels, tmp_path, evaluation=True, **settings)
    wanted = {1: 0.3, 2: 0.9, 3: 0.5, 4: 0.7}
    seen = {}

    def metrics(name: str, evaluation_set: EvaluationSet) -> dict[str, float]:
        seen[trainer.state.global_step] = weights(trainer)
        return {"mean_average_precision": wanted[trainer.state.global_step]}

    monkeypatch.setattr(trainer, "evaluate_set", metrics)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    for name, value in weights(trainer).items():
        assert torch.equal(value, seen[2][name]), name


def test_evaluation__infinite_metrics_are_left_out(shards, tmp_path):
    trainer = make_trainer(shards, tmp_path, evaluation=True)
    predictions = trainer.predict_set(trainer.evaluation_sets["all"])
    from cavmae_sync_hf.training import Predictions, prediction_metrics

    perfect = functional.one_hot(predictions.targets).float() * 9
    found = prediction_metrics(Predictions(perfect, predictions.targets), "single_label_classification")
    assert found["mean_average_precision"] == found["accuracy"] == 1.0
    assert "d_prime" not in found and json.loads(json.dumps(found, allow_nan=False)) == found


# What is left behind


def test_checkpoint__holds_model_processor_code_and_class_names(many_labels, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("bell\ndrum\nhum\nbark\nsiren\n")
    trainer = make_trainer(
        many_labels, tmp_path / "out", model={"class_names": str(names)}, save_strategy="steps", save_steps=2,
        max_steps=2,
    )  # fmt: skip
    trainer.train()
    folder = tmp_path / "out" / "checkpoint-2"
    model = AutoModelForVideoClassification.from_pretrained(folder)
    assert all(torch.equal(value, weights(trainer)[name]) for name, value in model.state_dict().items())
    assert model.config.id2label == dict(enumerate(["bell", "drum", "hum", "bark", "siren"]))
    assert model.config.problem_type == "multi_label_classification"
    assert AutoProcessor.from_pretrained(folder).to_dict() == trainer.processor.to_dict()
    assert (folder / "modeling_cavmae_sync.py").is_file()
    assert load_model(folder, use="classification")[0].config.num_labels == 5


def test_card__has_the_metrics_of_the_last_evaluation(many_labels, tmp_path):
    trainer = make_trainer(many_labels, tmp_path, evaluation=True, head_lr_multiple=7.0, eval_each_modality=True)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert f"{metrics['eval_all_mean_average_precision']:.4f}".rstrip("0") in card
    assert "mean average precision, audio alone" in card and "7 times as high" in card
    assert "AutoModelForVideoClassification" in card and "all (8 clips)" in card


def test_push_to_hub__uploads_model_processor_code_and_card(many_labels, tmp_path, monkeypatch):
    sent: dict[str, str] = {}

    class Hub:
        def create_repo(self, name: str, **given: Any) -> Any:
            return type("Repo", (), {"repo_id": name})()

        def upload_folder(self, *, folder_path: str, **given: Any) -> None:
            sent.update({path.name: path.read_text(errors="replace") for path in Path(folder_path).iterdir()})

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    trainer = make_trainer(
        many_labels, tmp_path, evaluation=True, push_to_hub=True, hub_model_id="someone/classes",
        base_model="someone/pretrained",
    )  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    trainer.create_model_card()
    trainer.save_model()
    assert {"model.safetensors", "config.json", "processor_config.json", "modeling_cavmae_sync.py"} <= set(sent)
    assert 'from_pretrained("someone/classes"' in sent["README.md"]
    assert "base_model: someone/pretrained" in sent["README.md"]
    assert f"value: {round(metrics['eval_all_mean_average_precision'], 4)}" in sent["README.md"]


def test_non_finite_loss__names_the_clips(shards, tmp_path):
    class Poisoned(PoisonedDataset):
        poisoned = "pixel_values_videos"

    trainer = make_trainer(shards, tmp_path, model={"modality": "video"}, data=Poisoned)
    with pytest.raises(NonFiniteLossError, match="clip-5") as caught:
        trainer.train()
    assert caught.value.clip_ids == ["clip-5"]


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_lr_multiple": 0.0}, "must be positive"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing` of `augmentation`"),
        ({"average_epochs": [3]}, "first and the last epoch"),
        ({"average_epochs": [3, 2]}, "first and the last epoch"),
        ({"average_epochs": [1, 2]}, "`max_steps` out"),
        ({"average_epochs": [2, 9], "max_steps": -1, "num_train_epochs": 3}, "the training has 3 epochs"),
        ({"average_epochs": [2, 3], "max_steps": -1}, "save_strategy='epoch' to have them"),
        (
            {"average_epochs": [2, 3], "max_steps": -1, "save_strategy": "epoch", "save_total_limit": 1},
            "save_total_limit=2 to keep them",
        ),
    ],
)
def test_arguments__that_contradict_are_refused(settings, message, tmp_path):
    with pytest.raises(TrainingError, match=message):
        ClassificationArguments(output_dir=str(tmp_path), **(ARGUMENTS | settings))


def test_trainer__refuses_what_it_cannot_do(shards, tmp_path):
    with pytest.raises(ValueError, match="`streaming` reads them in order"):
        make_trainer(shards, tmp_path, data=CavMaeSyncStreamingDataset, balanced_sampling=True)
    processor = tiny_processor()
    with pytest.raises(ValueError, match="problem_type"):
        CavMaeSyncClassificationTrainer(
            CavMaeSyncForAudioVisualClassification(tiny_config()),
            ClassificationArguments(output_dir=str(tmp_path), **ARGUMENTS),
            processor=processor,
            train_dataset=CavMaeSyncDataset(shards, processor),
        )


@pytest.mark.parametrize("modality", ["multimodal", "audio", "video"])
@pytest.mark.parametrize("head", ["mean_pooling", "frame_attention"])
def test_flops__agree_with_the_counted_ones(modality, head):
    config = tiny_config(modality=modality, classifier_type=head, problem_type="single_label_classification")
    config._attn_implementation = "eager"  # its products are counted one by one
    model = CavMaeSyncForAudioVisualClassification(config)
    inputs = tiny_inputs(3, config.num_frames)
    if modality != "multimodal":
        inputs = {name: value for name, value in inputs.items() if ("video" in name) == (modality == "video")}
    with FlopCounterMode(display=False) as counter:
        model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    # Layers over a whole clip have one token more than the clip has frames, which the count per frame rounds.
    assert classification_flops(config) * 3 * config.num_frames == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_pretrained__the_encoder_is_taken_and_the_head_is_new(shards, tmp_path):
    folder = save_pretrained(tmp_path / "pretrained")
    trainer = make_trainer(shards, tmp_path / "out", model={"init_from": str(folder)})
    encoder = load_model(folder)[0].state_dict()
    assert all(torch.equal(weights(trainer)[f"model.{name}"], value) for name, value in encoder.items())
