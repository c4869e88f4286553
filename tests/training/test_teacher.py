"""A momentum teacher: a running mean of the model that says which patches matter, and goes on after a stop."""

import os
import signal

import pytest
import torch

from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncModel
from cavmae_sync_hf.training import last_checkpoint
from cavmae_sync_hf.training.pretraining import TEACHER_FILE, MomentumTeacher
from helpers.pretraining_runs import AtStep, losses, make_trainer, weights
from helpers.tiny import tiny_config, tiny_inputs

TAUGHT = {
    "model": {"contrastive_mask_ratio": 0.5, "distillation_loss_weight": 0.5},
    "teacher_momentum": 0.9,
}


def taught(**settings):
    """Settings of a run with a teacher; `make_trainer` takes the model's out of them."""
    return TAUGHT | {"model": dict(TAUGHT["model"])} | settings


def test_update__is_a_running_mean_that_begins_fast():
    torch.manual_seed(0)
    encoder = CavMaeSyncModel(tiny_config())
    teacher = MomentumTeacher(encoder, 0.75)
    before = encoder.norms["audio"].weight.detach().clone()
    with torch.no_grad():
        encoder.norms["audio"].weight.add_(1.0)
    teacher.update(encoder, 2)  # keeps (1 + 2) / (10 + 2)
    torch.testing.assert_close(teacher.encoder.norms["audio"].weight, before + 0.75)
    teacher.update(encoder, 1000)  # keeps no more than the momentum
    torch.testing.assert_close(teacher.encoder.norms["audio"].weight, before + 1 - 0.25 * 0.75)
    assert not any(weight.requires_grad for weight in teacher.encoder.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("settings", [{}, {"use_global_tokens": False, "num_contrastive_head_layers": 1}])
def test_guide__patches_that_get_attention_are_likelier_to_stay(settings, attention):
    torch.manual_seed(0)
    encoder = CavMaeSyncModel(tiny_config(num_joint_layers=2, **settings)).eval()
    encoder.set_attn_implementation(attention)
    teacher, inputs = MomentumTeacher(encoder, 0.9), tiny_inputs(batch_size=1, num_frames=1)
    with torch.no_grad():  # attention that differs between patches, at random weights
        for projection in ("q_proj", "k_proj"):
            getattr(teacher.encoder.joint_layers[-1].attention, projection).weight.mul_(6.0)
    generator = torch.Generator().manual_seed(2)
    first = torch.zeros(16)
    for _ in range(600):
        uniform = {name: torch.rand(1, 1, patches, generator=generator) for name, patches in PATCHES}
        given = teacher.guide(inputs, uniform)
        first[given["contrastive_video_noise"].flatten().argmin()] += 1

    plain = CavMaeSyncModel(encoder.config)
    plain.load_state_dict(teacher.encoder.state_dict())
    plain.set_attn_implementation("eager")
    joint = []
    plain.joint_layers[-1].register_forward_hook(lambda module, arguments, result: joint.append(result[1]))
    output = plain.eval()(**inputs)
    paid = joint[1][:, :, 0, 1:].mean(1) if encoder.config.use_global_tokens else joint[1].mean((1, 2))
    expected = (paid / paid.sum()).flatten().detach() * 600
    # The first kept patch is drawn in proportion to attention: five deviations of a count.
    assert ((first - expected).abs() < 5 * expected.sqrt() + 3).all()
    assert expected.max() > 1.5 * expected.min()
    torch.testing.assert_close(given["video_teacher_embeds"], output.video_embeds, rtol=1e-4, atol=1e-5)


PATCHES = (("audio", 12), ("video", 16))


def test_train__a_taught_model_learns_and_logs_its_distance(shards, tmp_path):
    trainer = make_trainer(shards, tmp_path, **taught(max_steps=40))
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    first, last = (sum(entry["loss"] for entry in part) for part in (log[:5], log[-5:]))
    assert last < 0.9 * first
    # At first the teacher is the model itself, which sees less; later it lags behind.
    assert 0 < log[0]["distillation_loss"] < 0.1 and all(0 < entry["distillation_loss"] <= 2 for entry in log)


@pytest.mark.parametrize("chunks", [0, 2])
def test_resume__a_taught_run_ends_as_if_it_had_not_stopped(chunks, shards, tmp_path):
    settings = {"max_steps": 5, "contrast_chunk_size": chunks}
    whole = make_trainer(shards, tmp_path / "whole", **taught(**settings))
    whole.train()
    stop = AtStep(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    make_trainer(shards, tmp_path / "parts", callbacks=[stop], **taught(**settings)).train()
    assert (last_checkpoint(tmp_path / "parts") / TEACHER_FILE).is_file()
    second = make_trainer(shards, tmp_path / "parts", **taught(**settings))
    second.train(resume_from_checkpoint=True)
    for name, value in weights(whole).items():
        assert torch.equal(weights(second)[name], value), name

    (last_checkpoint(tmp_path / "parts") / TEACHER_FILE).unlink()
    with pytest.raises(ValueError, match=f"holds no {TEACHER_FILE}"):
        make_trainer(shards, tmp_path / "parts", **taught(max_steps=6)).train(resume_from_checkpoint=True)


def test_chunks__train_to_the_same_weights_as_whole_batches(shards, tmp_path):
    settings = {"max_steps": 3, "optim": "sgd", "gradient_accumulation_steps": 2}
    trained = []
    for size in (0, 3):
        trainer = make_trainer(shards, tmp_path / str(size), **taught(contrast_chunk_size=size, **settings))
        trainer.train()
        trained.append((weights(trainer), losses(trainer)))
    assert trained[1][1] == pytest.approx(trained[0][1], rel=1e-5)
    for name, value in trained[0][0].items():
        torch.testing.assert_close(trained[1][0][name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_momentum": 0.9}, "the model follows no teacher"),
        ({"model": {"distillation_loss_weight": 1.0}}, "there is no teacher"),
        ({"teacher_momentum": 1.0}, "`teacher_momentum` is 1.0"),
        ({"contrast_chunk_size": -1}, "`contrast_chunk_size` is -1"),
    ],
)
def test_settings__that_contradict_each_other_are_refused(settings, message, shards, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(shards, tmp_path, **settings)
