"""The training step: its FLOPs, its benchmark, its rate's course; half precision, compilation, sharding together."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cavmae_sync_hf.model.configuration_cavmae_sync import CavMaeSyncConfig
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from cavmae_sync_hf.training import (
    DataArguments,
    ModelArguments,
    PretrainingArguments,
    freeze_unused,
    parse_arguments,
    pretraining_flops,
)
from cavmae_sync_hf.training.speed import measure_peak, pretraining_flops_by_part
from helpers.pretraining_runs import losses, make_trainer
from helpers.tiny import TINY, tiny_config
from helpers.training_ranks import train
from helpers.two_ranks import run_ranks

BENCHMARKS = Path(__file__).parents[2] / "training" / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_benchmark("pretraining_step")


def load_benchmark(name: str) -> ModuleType:
    """A benchmark as a module; they import each other by name, as scripts of one folder do."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    return importlib.import_module(name)


# FLOPs


PUBLISHED = {
    "CAV-MAE Sync": CavMaeSyncConfig.cav_mae_sync(),
    "CAV-MAE": CavMaeSyncConfig.cav_mae(),
    "a pass of its own for the contrast": CavMaeSyncConfig.cav_mae_sync(contrastive_mask_ratio=0.5),
    "contrastive layers, no decoder": CavMaeSyncConfig.cav_mae_sync(
        num_contrastive_head_layers=1, num_joint_layers=2, reconstruction_loss_weight=0.0
    ),
    "reconstruction alone": CavMaeSyncConfig.cav_mae_sync(contrastive_loss_weight=0.0),
    "half of the removed patches": CavMaeSyncConfig.cav_mae_sync(decoder_mask_ratio=0.5),
    "a cross-attention decoder": CavMaeSyncConfig.cav_mae_sync(decoder_type="cross"),
    "that of half of them": CavMaeSyncConfig.cav_mae_sync(decoder_type="cross", decoder_mask_ratio=0.5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_flops__of_the_published_sizes_are_those_that_torch_counts(name):
    config = PUBLISHED[name]
    config._attn_implementation = "eager"  # torch's counter knows the fused kernels of GPUs alone
    with torch.device("meta"):  # nothing is computed, only counted
        model = CavMaeSyncForPreTraining(config)
        inputs = {
            "pixel_values_videos": torch.randn(4, 1, 3, 224, 224),
            "input_values": torch.randn(4, 1, config.audio_length, 128),
        }
        freeze_unused(model)
        with FlopCounterMode(display=False) as counter:
            model(**inputs).loss.backward()
    # Torch also counts the scores of the 4 pairs: 3 * 2 * 4 * 4 * 768 operations, one in ten million.
    assert 4 * pretraining_flops(config) == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert sum(pretraining_flops_by_part(config).values()) == pretraining_flops(config)


def test_peak__is_a_rate_of_this_device():
    # Any processor makes more than 10 million and less than 100 trillion operations a second.
    assert 1e-5 < measure_peak(torch.device("cpu"), torch.float32, size=64, seconds=0.01) < 100


# The benchmark


def test_benchmark__gives_every_variant_its_values(benchmark, capsys):
    sizes = json.dumps(TINY)
    words = ["--model-config", sizes, "--batch-size", "2", "3", "--rounds", "2", "--json", "--profile", "sdpa+fused"]
    names = ["eager", "sdpa+checked+mask", "sdpa+fused"]
    benchmark.main([*words, "--variants", *names])
    report = json.loads(capsys.readouterr().out)  # and nothing else is printed
    config = CavMaeSyncConfig.cav_mae_sync(**TINY)
    assert report["gflop_per_sample"] == pretraining_flops(config) / 1e9
    assert [result["batch_size"] for result in report["results"]] == [2, 3]
    for result in report["results"]:
        assert [row["name"] for row in result["variants"]] == names
        for row in result["variants"]:
            assert row["samples_per_second"] == pytest.approx(result["batch_size"] / row["seconds"])
            work = pretraining_flops(config) * result["batch_size"]
            assert row["utilisation"] == pytest.approx(work / row["seconds"] / 1e12 / result["peak_tflops"])
            assert row["memory_gib"] >= 0
        parts = {row["name"]: row for row in result["parts"]}
        assert {"audio tower", "video tower", "contrast", "fusion", "decoder", "optimiser", "rest"} <= set(parts)
        assert sum(row["share"] for row in parts.values()) == pytest.approx(1)
        assert {name for name, row in parts.items() if "tflops" in row} == set(pretraining_flops_by_part(config))


def test_benchmark__shows_a_table(benchmark, capsys):
    benchmark.main(["--model-config", json.dumps(TINY), "--rounds", "1", "--variants", "sdpa", "--batch-size", "2"])
    shown = capsys.readouterr().out
    assert "GFLOP a sample" in shown and "samples/s" in shown and "of the peak" in shown


def test_benchmark__a_step_has_the_gradients_of_the_model_in_every_variant(benchmark):
    torch.manual_seed(0)
    work = benchmark.PretrainingStep(tiny_config(), "cpu", torch.float32, 3)
    start = {name: value.clone() for name, value in work.model.state_dict().items()}
    noise = work.noise()
    work.noise = lambda: noise
    twin = CavMaeSyncForPreTraining(tiny_config()).train()
    twin.load_state_dict(start)
    twin(**work.inputs, **noise).loss.backward()
    for text in ("eager", "sdpa+mask+checked", "sdpa+fused"):
        work.model.load_state_dict(start)
        work._optimizers.clear()
        work.prepare(benchmark.Variant.parse(text))()
        state = work._optimizer("fused" in text).state
        for (name, weight), other in zip(work.model.named_parameters(), twin.parameters(), strict=True):
            # Adam's first moment after one step is the gradient times 1 - 0.95 (and a weight decay of 5e-7).
            torch.testing.assert_close(state[weight]["exp_avg"] / 0.05, other.grad, rtol=1e-3, atol=1e-6, msg=name)
            assert not torch.equal(weight, start[name]) or not other.grad.any()


def test_benchmark__compares_decoders(benchmark, capsys):
    words = ["--model-config", json.dumps(TINY), "--batch-size", "2", "--rounds", "1", "--decoders"]
    benchmark.main([*words, "--json"])
    (result,) = json.loads(capsys.readouterr().out)["results"]
    rows = {row["name"]: row["gflop_per_sample"] for row in result["variants"]}
    assert tuple(rows) == benchmark.DECODERS
    published = CavMaeSyncConfig.cav_mae_sync(**TINY)
    assert rows["eager+fused"] == result["published_gflop_per_sample"] == pretraining_flops(published) / 1e9
    cross = CavMaeSyncConfig.cav_mae_sync(**TINY, decoder_type="cross", decoder_mask_ratio=0.5)
    assert rows["eager+fused+cross+half"] == pretraining_flops(cross) / 1e9
    assert rows["eager+fused+quarter"] < rows["eager+fused+half"] < rows["eager+fused"]
    work = benchmark.PretrainingStep(tiny_config(), "cpu", torch.float32, 2)
    for name in benchmark.DECODERS:  # what is timed does what is counted
        step, variant = work.prepare(benchmark.Variant.parse(name)), benchmark.Variant.parse(name)
        with FlopCounterMode(display=False) as counter:
            step()
        assert counter.get_total_flops() == pytest.approx(2 * work.flops(variant), rel=1e-3)
    benchmark.main([*words[:-1], "--variants", "eager+cross"])
    assert "of the published work" in capsys.readouterr().out


def test_benchmark__counts_only_the_optimiser_of_the_variant(benchmark):
    work = benchmark.PretrainingStep(tiny_config(), "cpu", torch.float32, 2)
    plain, fused = benchmark.Variant.parse("sdpa"), benchmark.Variant.parse("sdpa+fused")
    work.prepare(plain)()
    assert work.other_state_bytes(plain) == 0
    moments = 2 * 4 * sum(weight.numel() for weight in work.parameters)
    assert work.other_state_bytes(fused) == pytest.approx(moments, rel=0.01)  # and a step count for each weight


@pytest.mark.parametrize("text", ["sdpa+quick", "+fused"])
def test_benchmark__refuses_unknown_variants(text, benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_arguments(["--variants", text])
    assert "+compiled, +fused" in capsys.readouterr().err


def test_loading_benchmark__states_the_need_from_a_measured_step(monkeypatch, capsys):
    loading = load_benchmark("loading")
    words = ["--need-only", "--measure-step", "cpu", "--step-samples", "2", "--step-config", json.dumps(TINY)]
    monkeypatch.setattr(sys, "argv", ["loading.py", *words])
    loading.main()
    shown = capsys.readouterr().out
    assert "measured on cpu" in shown and "samples/s" in shown
    assert "an estimate" in shown and "989 TFLOP/s" in shown


# The rate's course


def rates_of(recipe: str, shards: Path, out: Path, steps_per_epoch: int) -> list[float]:
    """The rate at every step of a recipe's run, were an epoch so many steps."""
    words = [f"pretraining/{recipe}", "--use_cpu", "--output_dir", str(out), "--bf16", "false"]
    (*_, settings) = parse_arguments((ModelArguments, DataArguments, PretrainingArguments), words)
    names = ("learning_rate", "num_train_epochs", "warmup_steps", "step_decay", "lr_scheduler_type",
             "lr_scheduler_kwargs", "adam_with_l2", "adam_beta1", "adam_beta2", "weight_decay")  # fmt: skip
    trainer = make_trainer(shards, out, max_steps=-1, **{name: getattr(settings, name) for name in names})
    steps = int(settings.num_train_epochs) * steps_per_epoch
    optimizer = trainer.create_optimizer()
    scheduler = trainer.create_scheduler(steps, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    group = optimizer.param_groups[0]
    assert type(optimizer) is torch.optim.Adam and group["fused"]
    assert (group["betas"], group["weight_decay"]) == ((0.95, 0.999), 5e-7)
    return rates


def test_rate__of_cav_mae_falls_as_published(shards, tmp_path):
    """Torch's MultiStepLR, stepped after every epoch with milestones 10, 15, 20, ..., as the authors use it."""
    by_hand = [2e-4] * 10 + [1e-4] * 5 + [5e-5] * 5 + [2.5e-5] * 5
    ours = rates_of("audioset_cavmae", shards, tmp_path, steps_per_epoch=7)
    assert ours == pytest.approx([rate for rate in by_hand for _ in range(7)])

    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], 2e-4)
    published = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(range(10, 1000, 5)), gamma=0.5)
    theirs = []
    for _ in range(25):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        published.step()
    assert theirs == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("recipe", "epochs", "warmup", "peak"),
    [("audioset", 25, 0.1, 2e-4), ("vggsound", 10, 0.05, 5e-5)],
)
def test_rate__of_cav_mae_sync_warms_up_and_falls_to_a_tenth(recipe, epochs, warmup, peak, shards, tmp_path):
    rates = rates_of(recipe, shards, tmp_path, steps_per_epoch=40)
    steps = 40 * epochs
    first = round(steps * warmup)
    assert len(rates) == steps
    assert rates[: first + 1] == pytest.approx([peak * step / first for step in range(first + 1)])
    middle = first + (steps - first) // 2  # of the cosine: half-way between the peak and a tenth of it
    assert rates[middle] == pytest.approx(0.55 * peak, rel=0.01)
    assert rates[-1] == pytest.approx(0.1 * peak, rel=0.01)


# Half precision, fused attention, compilation, fused optimiser, sharding

FAST = {"bf16": True, "optim": "adamw_torch_fused", "torch_compile": True, "torch_compile_backend": "aot_eager"}


def test_bf16_sdpa_compile_and_fused_optimiser__train_together(shards, tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = make_trainer(shards, tmp_path / "plain", optim="adamw_torch", max_steps=3)
    plain.train()
    fast = make_trainer(shards, tmp_path / "fast", max_steps=3, **FAST)
    assert fast.model.config._attn_implementation == "sdpa"
    fast.train()
    assert fast.model_wrapped is not fast.model and isinstance(fast.model_wrapped, torch._dynamo.OptimizedModule)
    assert fast.optimizer.optimizer.param_groups[0]["fused"]
    assert {weight.dtype for weight in fast.model.parameters()} == {torch.float32}
    assert not torch._dynamo.utils.counters["graph_break"]  # one graph, forward and loss
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # and no second one for a later step
    # bfloat16 has 8 bits of mantissa: losses agree to about 1 %, and drift apart with the steps.
    assert losses(fast) == pytest.approx(losses(plain), rel=0.03)
    assert losses(fast) != losses(plain)
    fast.save_model()
    saved = CavMaeSyncForPreTraining.from_pretrained(tmp_path / "fast")
    assert all(torch.equal(value, fast.model.state_dict()[name]) for name, value in saved.state_dict().items())


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_inductor__trains_as_eager_does(shards, tmp_path):
    """With the compiler that a run uses; needs a C++ compiler, and minutes to build its kernels."""
    torch._dynamo.reset()
    runs = {}
    for backend in ("eager", "inductor"):
        runs[backend] = make_trainer(
            shards, tmp_path / backend, max_steps=3, **FAST | {"torch_compile_backend": backend}
        )
        runs[backend].train()
    assert all(math.isfinite(loss) for loss in losses(runs["inductor"]))
    assert losses(runs["inductor"]) == pytest.approx(losses(runs["eager"]), rel=0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes__bf16_compiled_fused_and_sharded(shards, tmp_path):
    ranks = {}
    for name in ("ddp", "fsdp"):
        (tmp_path / name).mkdir()
        ranks[name] = run_ranks(train, tmp_path / name, shards, tmp_path / name / "out", name == "fsdp", FAST)
    sharded, whole = ranks["fsdp"][0], ranks["ddp"][0]
    assert sharded["split"] and not whole["split"]
    assert sharded["losses"] == ranks["fsdp"][1]["losses"] and len(sharded["losses"]) == 3
    assert all(math.isfinite(loss) for loss in sharded["losses"])
    # FSDP2 makes weights, inputs and even the losses bfloat16, autocast the matrix products.
    assert sharded["losses"] == pytest.approx(whole["losses"], rel=0.05)
