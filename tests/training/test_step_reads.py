"""A training step waits for nothing: no value is read from the device but where the step is logged."""

import signal
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cavmae_sync_hf import NonFiniteLossError
from cavmae_sync_hf.model import losses_cavmae_sync
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from cavmae_sync_hf.training import CavMaeSyncTrainer
from cavmae_sync_hf.training.base import SaveOnSignal
from helpers.pretraining_runs import AtStep, PoisonedDataset, make_trainer, weights
from helpers.tiny import tiny_config, tiny_inputs
from helpers.training_ranks import train_poisoned
from helpers.two_ranks import run_ranks

# What gives Python a number, or a tensor whose shape depends on values.
READS = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "masked_select", "equal", "unique_dim", "_unique2")


class Reads(TorchDispatchMode):
    """Names of the operations that would wait for a device, in `found`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = func.overloadpacket.__name__, kwargs or {}
        by_mask = name.startswith("index") and any(
            value.dtype == torch.bool for value in torch.utils._pytree.tree_leaves(args[1:2]) if torch.is_tensor(value)
        )
        to_host = name == "_to_copy" and given.get("device") == torch.device("cpu") and args[0].device.type != "cpu"
        if name in READS or by_mask or to_host:
            self.found.append(name)
        return func(*args, **given)


MODELS = {
    "published": {},
    "a pass of its own for the contrast": {"contrastive_mask_ratio": 0.5, "bidirectional_contrast": True},
    "cross-attention, a part": {"decoder_type": "cross", "decoder_mask_ratio": 0.5},
    "structured masks, no global tokens": {"audio_mask_mode": "time_frequency", "use_global_tokens": False},
}


@pytest.mark.parametrize("name", MODELS)
def test_model__reads_nothing_in_a_step(name):
    model = CavMaeSyncForPreTraining(tiny_config(**MODELS[name])).train()
    inputs = tiny_inputs()
    with Reads() as reads:
        model(**inputs).loss.backward()
        assert reads.found == []
        # The one look at masks, where there are some, does not depend on how many layers there are.
        model(**inputs, padding_mask=torch.ones(2, 3, dtype=torch.bool)).loss.backward()
    assert set(reads.found) == {"_local_scalar_dense"} and len(reads.found) == 1


@pytest.fixture
def two_processes(monkeypatch):
    """As if another process trained beside this one; what they tell each other is lost on the way."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    # Their hosts tell each other the sizes, which `test_distributed.py` tests.
    monkeypatch.setattr(losses_cavmae_sync, "gather_sizes", lambda *sizes: [[size, size] for size in sizes])
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [1, 2])
def test_model__copies_nothing_to_the_host(processes, request):
    """On a device that is not there: its tensors have shapes and no values, so nothing could be read."""
    if processes == 2:
        request.getfixturevalue("two_processes")
    settings = {"contrastive_mask_ratio": 0.5, "distillation_loss_weight": 0.5, "bidirectional_contrast": True}
    with FakeTensorMode(), torch.device("cuda"), Reads() as reads:
        model = CavMaeSyncForPreTraining(tiny_config(**settings)).train()
        assert model.model.trains_together == (processes == 2)
        inputs = {name: torch.empty(value.shape) for name, value in tiny_inputs().items()}
        taught = {f"{modality}_teacher_embeds": torch.empty(2, 3, 32) for modality in ("audio", "video")}
        loss = model(**inputs, **taught).loss
        assert reads.found == []
        loss.cpu()
    assert reads.found == ["_to_copy"]


def test_signal__is_told_to_other_processes_where_a_step_is_logged(two_processes, monkeypatch):
    asked = []

    def tell(number: torch.Tensor, **kwargs: Any) -> None:  # another process was told in the second step
        asked.append(state.global_step)
        number.fill_(signal.SIGTERM if state.global_step >= 2 else 0)

    monkeypatch.setattr(dist, "all_reduce", tell)
    callback, state = SaveOnSignal(), TrainerState()
    for state.global_step in range(1, 7):
        control = TrainerControl(should_log=state.global_step % 3 == 0)
        callback.on_step_end(TrainingArguments(use_cpu=True), state, control)
        if control.should_training_stop:
            break
    assert asked == [3] and control.should_save and callback.received == signal.SIGTERM


def test_attention__is_given_no_mask_that_hides_nothing(monkeypatch):
    given = []
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, attn_mask=None, **kwargs: (
            given.append(attn_mask) or attention(*args, attn_mask=attn_mask, **kwargs)
        ),
    )
    model = CavMaeSyncForPreTraining(tiny_config()).train()
    mask = torch.ones(2, 3, dtype=torch.bool)
    model(**tiny_inputs(), padding_mask=mask, padding_mask_videos=mask)
    assert given and not any(mask is not None for mask in given)
    model(**tiny_inputs(), padding_mask=mask.index_fill(1, torch.tensor([1]), False))
    assert any(mask is not None for mask in given)


class Watched(CavMaeSyncTrainer):
    """Counts from the beginning of each step to its end, where it is logged."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.reads = Reads()
        self.reads.__enter__()
        return super().training_step(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if hasattr(self, "reads"):
            self.reads.__exit__(None, None, None)
            self.seen = {**getattr(self, "seen", {}), self.state.global_step: self.reads.found}
            del self.reads


RUNS: dict[str, dict[str, Any]] = {
    "published": {},
    "teacher": {"teacher_momentum": 0.9, "model": {"contrastive_mask_ratio": 0.5, "distillation_loss_weight": 0.5}},
    "chunks": {"contrast_chunk_size": 2},
}


@pytest.mark.parametrize("name", RUNS)
def test_trainer__reads_only_where_a_step_is_logged(name, shards, tmp_path):
    trainer = make_trainer(shards, tmp_path, logging_steps=3, max_steps=6, **RUNS[name])
    trainer.__class__ = Watched
    trainer.train()
    assert set(trainer.seen) == set(range(1, 7))
    assert [step for step, found in trainer.seen.items() if found] == [3, 6]


def test_noise__is_drawn_for_the_passes_there_are(shards, tmp_path):
    passes = {
        (): {"audio_noise", "video_noise"},
        (("contrastive_mask_ratio", 0.5), ("reconstruction_loss_weight", 0.0)): {
            "contrastive_audio_noise", "contrastive_video_noise",
        },
        (("distillation_loss_weight", 0.5),): {
            "audio_noise", "video_noise", "audio_teacher_embeds", "video_teacher_embeds",
        },
    }  # fmt: skip
    for number, (settings, expected) in enumerate(passes.items()):
        taught = {"teacher_momentum": 0.9} if "distillation_loss_weight" in dict(settings) else {}
        trainer = make_trainer(shards, tmp_path / str(number), model=dict(settings), **taught)
        given = trainer._model_inputs(trainer.model.train(), tiny_inputs(2, 2))
        assert set(given) == {"pixel_values_videos", "input_values"} | expected


class Remember(TrainerCallback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.after.append({name: value.clone() for name, value in model.state_dict().items()})


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_loss_that_is_not_finite__is_told_with_the_log_and_changes_nothing(optim, shards, tmp_path):
    remember = Remember()
    trainer = make_trainer(
        shards, tmp_path, lambda s, p: PoisonedDataset(s, p, frames=2), callbacks=[remember], optim=optim,
        logging_steps=8, max_steps=8, seed=2,
    )  # fmt: skip
    with pytest.raises(NonFiniteLossError, match="clip-5, whose inputs are not finite") as caught:
        trainer.train()
    assert caught.value.clip_ids == ["clip-5"]
    step = int(str(caught.value).split("step ")[1].split()[0])
    # Looked at once, or at every step; either way the weights are those of before the step.
    assert len(remember.after) == (8 if optim == "adamw_torch_fused" else step - 1) and 2 <= step < 8
    for name, value in weights(trainer).items():
        assert torch.equal(value, remember.after[step - 2][name]), name
    assert not torch.equal(
        remember.after[0]["model.norms.audio.weight"], remember.after[1]["model.norms.audio.weight"]
    )
    assert not hasattr(trainer.optimizer.optimizer, "found_inf")


def test_loss_that_is_not_finite__is_found_before_a_checkpoint(shards, tmp_path):
    def poison() -> None:
        with torch.no_grad():
            trainer.model.decoder.mask_token.fill_(torch.inf)

    trainer = make_trainer(
        shards, tmp_path, logging_steps=8, save_strategy="steps", save_steps=3, callbacks=[AtStep(4, poison)]
    )
    with pytest.raises(NonFiniteLossError, match="step 5 "):
        trainer.train()
    assert trainer.state.global_step == 6  # of the next checkpoint
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes__both_stop_where_one_has_a_loss_that_is_not_finite(shards, tmp_path):
    first, second = run_ranks(train_poisoned, tmp_path, shards, tmp_path / "out")
    told, other = (first, second) if "clip-5" in first["error"] else (second, first)
    assert "clip-5" in told["error"] and "another process" in other["error"]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]) and value.isfinite().all()
