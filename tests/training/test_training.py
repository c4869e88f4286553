"""Pretraining with Trainer: it learns, stops and goes on, saves what loads, and names what breaks it."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor

from cavmae_sync_hf import NonFiniteLossError
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from cavmae_sync_hf.training import (
    EpochSampler,
    EvaluationSet,
    InMemoryDataset,
    freeze_unused,
    last_checkpoint,
    pretraining_flops,
)
from helpers.pretraining_runs import AtStep, PoisonedDataset, losses, make_trainer, streaming, weights
from helpers.tiny import tiny_config, tiny_inputs
from helpers.tiny_shards import tiny_processor, write_shards


def test_train__loss_falls_and_its_parts_are_logged(shards, tmp_path):
    trainer = make_trainer(shards, tmp_path, max_steps=40)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    first, last = ({name: sum(e[name] for e in part) for name in ("loss", "audio_reconstruction_loss")}
                   for part in (log[:5], log[-5:]))  # fmt: skip
    assert all(last[name] < 0.9 * first[name] for name in first)
    entry = log[-1]
    config = trainer.model.config
    parts = entry["audio_reconstruction_loss"] + entry["video_reconstruction_loss"] + entry["contrastive_loss"]
    assert config.reconstruction_loss_weight == config.contrastive_loss_weight == 1.0
    assert entry["loss"] == pytest.approx(parts, rel=1e-4)  # Trainer rounds nothing, float32 sums differ
    assert 0 <= entry["contrastive_accuracy"] <= 1
    assert entry["samples_per_second"] > 0 and entry["tflops_per_device"] > 0 and entry["memory_gib"] > 0
    assert 0 <= entry["data_wait_share"] <= 1


@pytest.mark.parametrize("train_set", [None, streaming], ids=["map", "streaming"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume__ends_with_the_weights_of_an_uninterrupted_run(train_set, accumulate, shards, tmp_path):
    settings = {"gradient_accumulation_steps": accumulate, "max_steps": 5}
    whole = make_trainer(shards, tmp_path / "whole", train_set, **settings)
    whole.train()

    stop = AtStep(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    first = make_trainer(shards, tmp_path / "parts", train_set, callbacks=[stop], **settings)
    first.train()
    assert first.stopped_by == signal.SIGTERM and first.state.global_step == 2  # in the middle of an epoch
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint-2"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    torch.manual_seed(99)  # nothing may depend on what happened before
    second = make_trainer(shards, tmp_path / "parts", train_set, **settings)
    second.train(resume_from_checkpoint=True)
    assert second.stopped_by is None and second.state.epoch == pytest.approx(whole.state.epoch)
    for name, value in weights(whole).items():
        assert torch.equal(weights(second)[name], value), name
    assert losses(second) == losses(whole)


def _train_until_killed(shards: Path, folder: Path, settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    trainer = make_trainer(shards, folder, **settings)
    save = trainer._save_rng_state
    trainer._save_rng_state = lambda place: (
        os.kill(os.getpid(), signal.SIGKILL) if trainer.state.global_step == 4 else save(place)
    )
    trainer.train()


def test_sigkill_while_saving__loses_at_most_the_interval(shards, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    whole = make_trainer(shards, tmp_path / "whole", max_steps=5)
    whole.train()
    # A new interpreter: autograd refuses to run in a fork of a process that has used its threads.
    child = multiprocessing.get_context("spawn").Process(
        target=_train_until_killed, args=(shards, tmp_path / "killed", settings)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / "killed" / "checkpoint-4" / "model.safetensors").is_file()  # begun, and not whole
    assert last_checkpoint(tmp_path / "killed") == tmp_path / "killed" / "checkpoint-2"
    resumed = make_trainer(shards, tmp_path / "killed", **settings)
    resumed.train(resume_from_checkpoint=True)
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name


def test_resume__without_a_checkpoint_is_refused(shards, tmp_path):
    with pytest.raises(ValueError, match="no whole checkpoint"):
        make_trainer(shards, tmp_path).train(resume_from_checkpoint=True)


def test_checkpoint__holds_model_processor_and_code(shards, tmp_path):
    trainer = make_trainer(shards, tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    assert {"modeling_cavmae_sync.py", "processing_cavmae_sync.py", "processor_config.json"} <= {
        path.name for path in folder.iterdir()
    }
    model, processor = AutoModelForPreTraining.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert all(torch.equal(value, weights(trainer)[name]) for name, value in model.state_dict().items())
    assert processor.to_dict() == trainer.processor.to_dict()
    encoder = AutoModel.from_pretrained(folder)
    assert torch.equal(encoder.norms["audio"].weight, trainer.model.model.norms["audio"].weight)


@pytest.mark.parametrize("where", ["inputs", "weights"])
def test_non_finite_loss__stops_before_the_update_and_names_the_clips(where, shards, tmp_path):
    def poison() -> None:
        with torch.no_grad():
            trainer.model.decoder.mask_token.fill_(torch.inf)

    kind, callbacks = (PoisonedDataset, None) if where == "inputs" else (CavMaeSyncDataset, [AtStep(2, poison)])
    trainer = make_trainer(
        shards, tmp_path, lambda s, p: kind(s, p), callbacks=callbacks, save_strategy="steps", save_steps=1
    )
    with pytest.raises(NonFiniteLossError, match="not finite") as caught:
        trainer.train()
    if where == "inputs":
        assert caught.value.clip_ids == ["clip-5"] and "clip-5" in str(caught.value)
        assert all(torch.isfinite(value).all() for value in weights(trainer).values())
    else:
        assert len(caught.value.clip_ids) == 4 and "to go on from there" in str(caught.value)
        assert str(last_checkpoint(tmp_path)) in str(caught.value)


def test_masks__differ_between_processes_and_steps_but_not_between_runs(shards, tmp_path):
    trainer = make_trainer(shards, tmp_path)
    inputs = tiny_inputs(2, 2)
    drawn = {}
    for rank in (0, 1):
        for step in (0, 1):
            type(trainer.args).process_index = property(lambda self, rank=rank: rank)
            try:
                trainer.state.global_step, trainer._mask_place = step, (-1, 0)
                drawn[rank, step] = trainer._noise(inputs)["audio_noise"]
                trainer._mask_place = (-1, 0)
                assert torch.equal(trainer._noise(inputs)["audio_noise"], drawn[rank, step])
                assert not torch.equal(trainer._noise(inputs)["audio_noise"], drawn[rank, step])  # next micro-batch
            finally:
                del type(trainer.args).process_index
    values = [tensor.flatten()[:8].tolist() for tensor in drawn.values()]
    assert len({tuple(value) for value in values}) == 4
    assert drawn[0, 0].shape == (2, 2, 12) and drawn[0, 0].min() >= 0 and drawn[0, 0].max() < 1


def test_batches__of_whole_clips_have_no_masks(shards, tmp_path):
    loader = make_trainer(shards, tmp_path / "whole").get_train_dataloader()
    assert all(set(batch) & {"padding_mask", "padding_mask_videos"} == set() for batch in loader)
    silent = write_shards(tmp_path / "silent", [8], silent=[2])
    batches = list(make_trainer(silent, tmp_path / "some").get_train_dataloader())
    assert sorted("padding_mask" in batch for batch in batches) == [False, True]


def test_epochs__have_other_orders_and_other_frames(shards, tmp_path):
    seen: list[tuple[str, float]] = []

    class Watched(CavMaeSyncDataset):
        def __getitem__(self, index: int) -> dict[str, Any]:
            sample = super().__getitem__(index)
            seen.append((sample["clip_id"], float(sample["frame_times"][0])))
            return sample

    trainer = make_trainer(shards, tmp_path, lambda s, p: Watched(s, p, frames=1), max_steps=6)
    trainer.train()
    # An epoch reads 12 of the 14 clips; accelerate looks one batch ahead, so counts are not exact at the border.
    first, second = [clip for clip, _ in seen[:12]], [clip for clip, _ in seen[-12:]]
    assert len(set(first)) == 12 and first != second
    times = [dict(part) for part in (seen[:12], seen[-12:])]
    assert any(times[0][clip] != times[1][clip] for clip in set(times[0]) & set(times[1]))


def test_epoch_sampler__tells_the_data_set_and_draws_every_clip_once(shards):
    dataset = CavMaeSyncDataset(shards, tiny_processor())
    sampler = EpochSampler(dataset, seed=1)
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)  # on several processes accelerate calls this alone
        assert dataset.epoch == epoch
        orders.append(list(sampler))
    assert sorted(orders[0]) == list(range(14)) and orders[0] != orders[1]
    assert list(EpochSampler(dataset, seed=1)) == orders[0] != list(EpochSampler(dataset, seed=2))


def test_evaluation__without_sets_is_left_out(shards, tmp_path):
    trainer = make_trainer(shards, tmp_path, eval_strategy="steps", eval_steps=1, max_steps=1)
    trainer.train()
    assert not any("eval_runtime" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize("weights_of_losses", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("settings", [{}, {"use_global_tokens": False, "num_register_tokens": 0},
                                      {"num_contrastive_head_layers": 1, "num_joint_layers": 2}])  # fmt: skip
def test_freeze_unused__leaves_no_weight_without_gradient(weights_of_losses, settings):
    reconstruction, contrast = weights_of_losses
    model = CavMaeSyncForPreTraining(
        tiny_config(reconstruction_loss_weight=reconstruction, contrastive_loss_weight=contrast, **settings)
    )
    frozen = freeze_unused(model)
    model(**tiny_inputs(3, 1)).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == frozen
    assert bool(frozen) == (0.0 in weights_of_losses)


@pytest.mark.parametrize("settings", [{}, {"reconstruction_loss_weight": 0.0}, {"contrastive_loss_weight": 0.0}])
def test_flops__agree_with_the_counted_ones(settings):
    config = tiny_config(**settings)
    config._attn_implementation = "eager"  # its products are counted one by one
    model = CavMaeSyncForPreTraining(config)
    freeze_unused(model)
    with FlopCounterMode(display=False) as counter:
        model(**tiny_inputs(3, 2)).loss.backward()
    # Besides, the contrastive scores of 6 pairs are counted: 3 * 2 * 6 * 6 * 32 products.
    assert pretraining_flops(config) * 6 == pytest.approx(counter.get_total_flops(), rel=0.002)


def test_step_decay__halves_as_published(shards, tmp_path):
    decay = {"start": 2, "every": 1, "factor": 0.5}
    trainer = make_trainer(shards, tmp_path, step_decay=decay, adam_with_l2=True, num_train_epochs=5, max_steps=-1)
    trainer.train()
    assert type(trainer.optimizer.optimizer) is torch.optim.Adam
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([3e-3] * 6 + [1.5e-3] * 3 + [0.75e-3] * 3 + [0.375e-3] * 3)


def test_in_memory__gives_the_samples_of_the_shards(shards):
    processor = tiny_processor()
    plain, kept = (kind(shards, processor, frames=2, seed=4) for kind in (CavMaeSyncDataset, InMemoryDataset))
    for epoch in (0, 3):
        plain.set_epoch(epoch)
        kept.set_epoch(epoch)
        for several, one, sample in zip(kept.__getitems__([5, 0, 9]), (5, 0, 9), (5, 0, 9), strict=True):
            expected, single = plain[sample], kept[one]
            assert set(several) == set(expected)
            for name, value in expected.items():
                for other in (several[name], single[name]):
                    assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value, name


def test_evaluate__embeds_every_clip_in_order(shards, tmp_path):
    trainer = make_trainer(shards, tmp_path, plots=True)
    dataset = CavMaeSyncDataset(shards, trainer.processor, frames="all")
    found = trainer.embed(EvaluationSet(dataset))
    trainer.model.eval()
    with torch.no_grad():
        output = trainer.model.model(**{
            name: dataset[9][name][None] for name in ("pixel_values_videos", "input_values", "padding_mask")
        })  # fmt: skip
    torch.testing.assert_close(found.audio[9:10], output.audio_embeds, rtol=0, atol=1e-5)  # batches of other sizes
    torch.testing.assert_close(found.video[9:10], output.video_embeds, rtol=0, atol=1e-5)
    trainer.evaluation_sets = {"held_out": EvaluationSet(dataset, [k ^ 1 for k in range(14)])}
    metrics = trainer.evaluate()
    assert {"eval_held_out_audio_to_video_r1", "eval_held_out_pair_accuracy"} <= set(metrics)
    assert (
        trainer.state.log_history[-1]["eval_held_out_audio_to_video_r1"] == metrics["eval_held_out_audio_to_video_r1"]
    )
    drawn = [Image.open(path) for path in sorted((tmp_path / "plots").iterdir())]
    assert [Path(image.filename).stem for image in drawn] == [
        "step_000000_held_out_reconstruction", "step_000000_held_out_similarity",
    ]  # fmt: skip
    assert all(len(np.unique(np.asarray(image.convert("L")))) > 20 for image in drawn)  # something is drawn
