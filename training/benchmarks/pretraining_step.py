"""How fast is a pretraining step, and how close to what this machine's matrix products reach?

    python training/benchmarks/pretraining_step.py                     # this CPU, published sizes, 4 samples a step
    python training/benchmarks/pretraining_step.py --device cuda --batch-size 64 128 256 --profile
    python training/benchmarks/pretraining_step.py --model-config '{"num_modality_layers": 2}' --variants sdpa

A step is what `cavmae-sync pretrain` makes of a batch in memory: masks drawn, forward pass (in bfloat16: autocast),
backward pass, norm of the gradients, Adam with float32 weights. Loading is not part of it (see loading.py). The
variants take turns in one run, so that a busy machine slows all of them alike; each value is the median over the
rounds. A variant is an attention implementation and what is added to it:

    +compiled   torch.compile, as `torch_compile: true` in a recipe
    +fused      Adam as one kernel, where it otherwise is a few (CUDA) or one per weight and operation (CPU)
    +checked    the loss is looked at before the backward pass, as the trainer does to stop at one that is not finite
    +mask       the batch says which windows are present (all are), as where some window of a batch is absent
    +cross      a decoder that attends to the visible patches alone (`decoder_type`)
    +half       half of the removed patches are reconstructed (`decoder_mask_ratio`)
    +quarter    a quarter of them is

`--decoders` compares decoders: the published one, and those that do less. Beside its time each has the operations that
it counts, as a share of those of the published computation: matrix products of a step at the same sizes, with the
published decoder, which need no foreign code to be known.

Utilisation is the model's FLOPs (`pretraining_flops`, checked against torch's counter in the tests) over the time and
the rate of a large matrix product in the same precision, measured in every round. Memory is the most that was held
during a step: on CUDA of tensors, on Linux CPUs of the whole process. On a CPU that others use, too, the time that
processors worked for a step says more than the time that it took.

`--profile` times the step's parts, each by itself, forward and backward; what is left of the whole step are the sums
of gradients where parts meet, the drawing of masks and what the processor needs to start kernels.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import is_flash_attn_2_available

from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncForPreTraining
from cavmae_sync_hf.model.losses_cavmae_sync import patchify, reconstruction_loss
from cavmae_sync_hf.model.masking_cavmae_sync import Masking, random_masking
from cavmae_sync_hf.training import measure_peak, pretraining_flops
from cavmae_sync_hf.training.speed import pretraining_flops_by_part

EXTRAS = ("compiled", "fused", "checked", "mask", "cross", "half", "quarter")
DECODERS = ("eager+fused", "eager+fused+half", "eager+fused+quarter", "eager+fused+cross", "eager+fused+cross+half",
            "eager+fused+cross+quarter")  # fmt: skip
DEFAULT_VARIANTS = ("eager", "sdpa", "sdpa+checked", "sdpa+fused", "sdpa+compiled+fused", "sdpa+compiled+fused+mask")
# The authors' optimiser: torch's Adam, whose weight decay is part of the gradient.
ADAM: dict[str, Any] = {"lr": 2e-4, "betas": (0.95, 0.999), "weight_decay": 5e-7}


@dataclass(frozen=True)
class Variant:
    """A way of making a step: an attention implementation and some of `EXTRAS`."""

    attention: str
    extras: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """From a text like `"sdpa+compiled+fused"`; an error says what may be written."""
        attention, *extras = text.split("+")
        unknown = set(extras) - set(EXTRAS)
        if unknown or not attention:
            some = ", ".join(f"+{extra}" for extra in EXTRAS)
            raise argparse.ArgumentTypeError(f"{text!r}: write an attention implementation, then any of {some}")
        return cls(attention, frozenset(extras))

    def __str__(self) -> str:
        return "+".join([self.attention, *(extra for extra in EXTRAS if extra in self.extras)])

    @property
    def decoder(self) -> dict[str, Any]:
        """Settings of the model's configuration that it changes."""
        shares = [ratio for extra, ratio in (("half", 0.5), ("quarter", 0.75)) if extra in self.extras]
        settings: dict[str, Any] = {"decoder_mask_ratio": max(shares)} if shares else {}
        return settings | ({"decoder_type": "cross"} if "cross" in self.extras else {})


class PretrainingStep:
    """One model and one batch, and the ways of making a step with them.

    Args:
        config: The model.
        device: Where.
        dtype: Of the matrix products: float32, or bfloat16 by autocast. Weights are float32.
        batch_size: Samples of a step, one frame and its window each.
    """

    def __init__(self, config: CavMaeSyncConfig, device: str, dtype: torch.dtype, batch_size: int) -> None:
        self.device, self.dtype, self.batch_size = torch.device(device), dtype, batch_size
        self.config = config
        with self.device:
            self.model = CavMaeSyncForPreTraining(config).train()
            self.inputs = {
                "pixel_values_videos": torch.randn(
                    batch_size, 1, config.frame_channels, config.image_size, config.image_size
                ),
                "input_values": torch.randn(batch_size, 1, config.audio_length, config.num_mel_bins),
            }
        self.parameters = [weight for weight in self.model.parameters() if weight.requires_grad]
        self._published = config.decoder_type, config.decoder_mask_ratio
        self._decoders = {config.decoder_type: self.model.decoder}
        self._compiled: Any = None
        self._optimizers: dict[tuple[bool, str], torch.optim.Optimizer] = {}

    def prepare(self, variant: Variant) -> Callable[[], None]:
        """What makes one step; the model is then set to the variant, until another one is prepared."""
        self._set_decoder(variant)
        self.model.set_attn_implementation(variant.attention)
        if "compiled" in variant.extras and self._compiled is None:
            # One graph for each batch size: with changing sizes torch would make slower, general ones.
            self._compiled = torch.compile(self.model, dynamic=False)
        forward: Any = self._compiled if "compiled" in variant.extras else self.model
        optimizer = self._optimizer("fused" in variant.extras)
        inputs = dict(self.inputs)
        if "mask" in variant.extras:
            inputs["padding_mask"] = torch.ones(self.batch_size, 1, dtype=torch.bool, device=self.device)

        def step() -> None:
            with self.autocast():
                loss = forward(**inputs, **self.noise()).loss
            if "checked" in variant.extras and not bool(torch.isfinite(loss.detach())):
                raise FloatingPointError("the loss is not finite")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, torch.inf)  # Trainer does, for its log
            optimizer.step()
            optimizer.zero_grad()

        return step

    def flops(self, variant: Variant) -> int:
        """Operations of a sample's step."""
        config = copy.copy(self.config)
        config.decoder_type, config.decoder_mask_ratio = self._published
        for name, value in variant.decoder.items():
            setattr(config, name, value)
        return pretraining_flops(config)

    def _set_decoder(self, variant: Variant) -> None:
        """Give the model the variant's decoder; its encoder stays, and so does the memory of both."""
        self.config.decoder_type, self.config.decoder_mask_ratio = self._published
        for name, value in variant.decoder.items():
            setattr(self.config, name, value)
        if self.config.decoder_type not in self._decoders:
            with self.device:
                made = CavMaeSyncForPreTraining(self.config).decoder
            self._decoders[self.config.decoder_type] = made.train()
        if self.model.decoder is not self._decoders[self.config.decoder_type]:
            self.model.decoder = self._decoders[self.config.decoder_type]
            self.model.zero_grad()
            self.parameters = [weight for weight in self.model.parameters() if weight.requires_grad]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def noise(self) -> dict[str, Tensor]:
        """As the trainer draws it: on the processor, so that a run can be repeated anywhere."""
        sizes = {"video_noise": self.config.video_grid, "audio_noise": self.config.audio_grid}
        return {
            name: torch.rand(self.batch_size, 1, rows * columns).to(self.device, non_blocking=True)
            for name, (rows, columns) in sizes.items()
        }

    def other_state_bytes(self, variant: Variant) -> int:
        """Memory of optimisers that other variants use: a run has one of them."""
        kept = self._optimizers.get(
            ("fused" in variant.extras, variant.decoder.get("decoder_type", self._published[0]))
        )
        others = [optimizer for optimizer in self._optimizers.values() if optimizer is not kept]
        return sum(
            value.numel() * value.element_size()
            for optimizer in others
            for state in optimizer.state.values()
            for value in state.values()
        )

    def _optimizer(self, fused: bool) -> torch.optim.Optimizer:
        key = fused, self.config.decoder_type
        if key not in self._optimizers:
            self._optimizers[key] = torch.optim.Adam(self.parameters, fused=fused or None, **ADAM)
        return self._optimizers[key]


def measure_variants(
    work: PretrainingStep, variants: Sequence[Variant], rounds: int, steps: int
) -> tuple[float, list[dict[str, Any]]]:
    """Time the variants in turns.

    Args:
        work: What is timed.
        variants: How; one that does not fit into memory is left out after it failed.
        rounds: Turns of each.
        steps: Steps of a turn.

    Returns:
        The peak in TFLOP/s, and for each variant `name`, `seconds` per step, `samples_per_second`, `tflops`,
        `utilisation`, `memory_gib`, `processor_seconds` per step; or `name` and `error`.
    """
    times: dict[Variant, list[float]] = {variant: [] for variant in variants}
    processor: dict[Variant, list[float]] = {variant: [] for variant in variants}
    memory: dict[Variant, float] = dict.fromkeys(variants, 0.0)
    errors: dict[Variant, str] = {}
    peaks = []
    for turn in range(rounds + 1):  # the first one warms up, and compiles
        if turn:
            peaks.append(measure_peak(work.device, work.dtype, seconds=0.2))
        for variant in variants:
            if variant in errors:
                continue
            show_progress(f"batch of {work.batch_size}, round {turn} of {rounds}, {variant}")
            try:
                step = work.prepare(variant)
                if not turn:
                    step()
                with most_memory(work.device) as most:
                    began = time.process_time()
                    seconds = time_calls(step, steps if turn else 1, work.device)
                    used = time.process_time() - began
            except torch.OutOfMemoryError:
                errors[variant] = "out of memory"
                work.model.zero_grad()
                torch.cuda.empty_cache()
                continue
            memory[variant] = max(memory[variant], (most[0] - work.other_state_bytes(variant)) / 2**30)
            times[variant] += [seconds] if turn else []
            processor[variant] += [used / steps] if turn else []
    peak = statistics.median(peaks)
    found: list[dict[str, Any]] = []
    for variant in variants:
        if variant in errors:
            found.append({"name": str(variant), "error": errors[variant]})
            continue
        seconds = statistics.median(times[variant])
        flops = work.flops(variant)
        tflops = flops * work.batch_size / seconds / 1e12
        found.append(
            {"name": str(variant), "gflop_per_sample": flops / 1e9, "seconds": seconds,
             "samples_per_second": work.batch_size / seconds, "tflops": tflops, "utilisation": tflops / peak,
             "memory_gib": memory[variant], "processor_seconds": statistics.median(processor[variant])}
        )  # fmt: skip
    return peak, found


def measure_step_seconds(
    device: str, dtype: torch.dtype, batch_size: int, variant: str, rounds: int, steps: int, settings: dict[str, Any]
) -> float:
    """Seconds of a step of the published model (with `settings` changed), for other benchmarks."""
    work = PretrainingStep(CavMaeSyncConfig.cav_mae_sync(**settings), device, dtype, batch_size)
    _, (found,) = measure_variants(work, [Variant.parse(variant)], rounds, steps)
    if "error" in found:
        raise ValueError(f"A step of {batch_size} samples on {device}: {found['error']}; take fewer.")
    return found["seconds"]


def time_calls(work: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds per call; the device is waited for before and after all of them, not in between."""
    wait(device)
    began = time.perf_counter()
    for _ in range(count):
        work()
    wait(device)
    return (time.perf_counter() - began) / count


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def most_memory(device: torch.device) -> Iterator[list[int]]:
    """Bytes held at most while the block ran, in a list that is filled at its end; 0 where that cannot be told."""
    most: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield most
        most.append(torch.cuda.max_memory_allocated(device))
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    except OSError:
        yield most
        most.append(0)
        return
    yield most
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    most.append(int(status["VmHWM"].split()[0]) * 1024)


def profile(work: PretrainingStep, variant: Variant, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Time the parts of a step, each by itself.

    Returns:
        For each part `name`, `seconds`, and where it is matrix products mostly `tflops`.
    """
    whole = work.prepare(variant)
    parts = make_parts(work, "compiled" in variant.extras, "mask" in variant.extras)
    optimizer = work._optimizer("fused" in variant.extras)
    for weight in work.parameters:
        weight.grad = torch.zeros_like(weight)
    parts |= {
        "gradient norm": lambda: torch.nn.utils.clip_grad_norm_(work.parameters, torch.inf),
        "optimiser": optimizer.step,
        "masks drawn": work.noise,
    }
    times: dict[str, list[float]] = {name: [] for name in (*parts, "whole step")}
    for turn in range(rounds + 1):
        show_progress(f"batch of {work.batch_size}, parts, round {turn} of {rounds}")
        for name, part in parts.items():
            times[name].append(time_calls(part, steps if turn else 1, work.device))
        times["whole step"].append(time_calls(whole, steps if turn else 1, work.device))
        for weight in work.parameters:
            weight.grad = torch.zeros_like(weight)
    flops = pretraining_flops_by_part(work.config)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    whole_seconds = medians.pop("whole step")
    medians["rest"] = whole_seconds - sum(medians.values())
    found: list[dict[str, Any]] = []
    for name, seconds in medians.items():
        found.append({"name": name, "seconds": seconds, "share": seconds / whole_seconds})
        if name in flops:
            found[-1]["tflops"] = flops[name] * work.batch_size / seconds / 1e12
    work.model.zero_grad()
    return found


def make_parts(work: PretrainingStep, compiled: bool, masked: bool) -> dict[str, Callable[[], object]]:
    """The parts of the forward pass with their backward passes, each fed what the part before it gave."""
    model, encoder, config = work.model, work.model.model, work.config
    images = {
        "audio": work.inputs["input_values"].transpose(2, 3),
        "video": work.inputs["pixel_values_videos"].flatten(0, 1),
    }
    grids = {"audio": config.audio_grid, "video": config.video_grid}
    ratios = {"audio": config.audio_mask_ratio, "video": config.video_mask_ratio}
    noise = {name.removesuffix("_noise"): values.flatten(0, 1) for name, values in work.noise().items()}
    maskings = {name: random_masking(noise[name], ratios[name]) for name in images}
    visible = None
    if masked:
        # What the model makes of an all-present mask where it may not look at its values, as in a compiled graph.
        length = sum(rows * columns for rows, columns in grids.values())
        visible = torch.ones(work.batch_size, 1, length, length, dtype=torch.bool, device=work.device)
    fused_length = sum(masking.ids_keep.shape[1] for masking in maskings.values())

    def masks() -> list[Masking]:
        return [random_masking(noise[name], ratios[name]) for name in images]

    def fuse(audio: Tensor, video: Tensor) -> Tensor:
        mask = None if visible is None else visible[..., :fused_length, :fused_length]
        return encoder.fuse(encoder.patch_tokens(audio), encoder.patch_tokens(video), mask)

    def decode(fused: Tensor) -> list[Tensor]:
        return list(model.decoder(fused, maskings, grids, visible).values())

    def contrast(audio: Tensor, video: Tensor) -> Tensor:
        embeds = [
            encoder.separate(name, tokens)[0].unsqueeze(1) for name, tokens in (("audio", audio), ("video", video))
        ]
        return encoder.contrast(*embeds).loss

    def reconstruct(audio: Tensor, video: Tensor) -> Tensor:
        losses = [
            reconstruction_loss(
                prediction,
                patchify(images[name], config.patch_size),
                maskings[name].mask,
                norm_pix_loss=config.norm_pix_loss,
            )
            for name, prediction in (("audio", audio), ("video", video))
        ]
        return losses[0] + losses[1]

    with torch.no_grad(), work.autocast():
        tokens = [encoder.tower(name)(images[name], maskings[name].ids_keep) for name in images]
        fused = fuse(*tokens)
        predictions = decode(fused)
    works: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
        "masking": (masks, []),
        "audio tower": (lambda: encoder.tower("audio")(images["audio"], maskings["audio"].ids_keep), []),
        "video tower": (lambda: encoder.tower("video")(images["video"], maskings["video"].ids_keep), []),
        "contrast": (contrast, tokens),
    }
    if config.reconstruction_loss_weight:
        works |= {
            "fusion": (fuse, tokens),
            "decoder": (decode, [fused]),
            "reconstruction loss": (reconstruct, predictions),
        }
    return {
        name: forward_and_backward(work, torch.compile(part, dynamic=False) if compiled else part, given)
        for name, (part, given) in works.items()
    }


def forward_and_backward(
    work: PretrainingStep, part: Callable[..., Any], given: Sequence[Tensor]
) -> Callable[[], None]:
    """A function that runs a part and, where it gives what has a gradient, its backward pass."""
    leaves = [values.detach().clone().requires_grad_() for values in given]

    def run() -> None:
        with work.autocast():
            made = part(*leaves)
        outputs = [value for value in (made if isinstance(made, list) else [made]) if isinstance(value, Tensor)]
        if outputs:
            # A gradient of the outputs' own dtype; its values do not change the time.
            torch.autograd.backward(outputs, [torch.ones_like(value) for value in outputs])
        for leaf in leaves:
            leaf.grad = None

    return run


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 on CUDA, else float32")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[], help="samples of a step; default: 64, CPU 4")
    parser.add_argument("--variants", nargs="+", type=Variant.parse, help="see above; default: all that can run")
    parser.add_argument("--decoders", action="store_true", help="the variants are decoders")
    parser.add_argument("--family", choices=["cav_mae_sync", "cav_mae"], default="cav_mae_sync")
    parser.add_argument("--model-config", type=json.loads, default={}, help="other sizes, as JSON")
    parser.add_argument("--rounds", type=int, help="turns of each variant; default: 5, CPU 3")
    parser.add_argument("--steps", type=int, help="steps of a turn; default: 10, CPU 1")
    parser.add_argument(
        "--profile", nargs="?", const="sdpa", type=Variant.parse, help="time the parts, of this variant (sdpa)"
    )
    parser.add_argument("--json", action="store_true", help="print the values as JSON, and nothing else")
    arguments = parser.parse_args(words)
    on_cpu = torch.device(arguments.device).type == "cpu"
    arguments.dtype = getattr(torch, arguments.dtype or ("float32" if on_cpu else "bfloat16"))
    arguments.batch_size = arguments.batch_size or [4 if on_cpu else 64]
    arguments.rounds = arguments.rounds or (3 if on_cpu else 5)
    arguments.steps = arguments.steps or (1 if on_cpu else 10)
    if arguments.decoders and arguments.variants is None:
        arguments.variants = [Variant.parse(name) for name in DECODERS]
    if arguments.variants is None:
        names = list(DEFAULT_VARIANTS)
        if not on_cpu and arguments.dtype == torch.bfloat16 and is_flash_attn_2_available():
            names += ["flash_attention_2", "flash_attention_2+compiled+fused"]
        arguments.variants = [Variant.parse(name) for name in names]
    return arguments


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def show_progress(text: str) -> None:
    """One line on the terminal, where there is one; the first round compiles, which takes minutes."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def show(result: dict[str, Any]) -> None:
    """The values of one batch size as a table."""
    print(f"\nbatch of {result['batch_size']}; matrix-product peak {result['peak_tflops']:.4g} TFLOP/s")
    for row in result["variants"]:
        if "error" in row:
            print(f"  {row['name']:34} {row['error']}")
            continue
        share = row["gflop_per_sample"] / result["published_gflop_per_sample"]
        print(
            f"  {row['name']:34} {1000 * row['seconds']:9.1f} ms  {row['samples_per_second']:9.2f} samples/s"
            f"  {row['tflops']:8.4g} TFLOP/s  {row['utilisation']:6.1%} of the peak  {row['memory_gib']:6.2f} GiB"
            f"  {share:4.2f} of the published work  {row['processor_seconds']:7.3f} s of processors"
        )
    for row in result.get("parts", ()):
        rate = f"{row['tflops'] / result['peak_tflops']:8.1%} of the peak" if "tflops" in row else ""
        print(f"    {row['name']:32} {1000 * row['seconds']:9.2f} ms  {row['share']:6.1%} of the step {rate}")


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = parse_arguments(words)
    torch.manual_seed(0)
    config = getattr(CavMaeSyncConfig, arguments.family)(**arguments.model_config)
    device = torch.device(arguments.device)
    published = pretraining_flops(
        getattr(CavMaeSyncConfig, arguments.family)(
            **arguments.model_config
            | {"decoder_type": "self", "decoder_mask_ratio": 0, "contrastive_mask_ratio": None}
        )
    )
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "device": device_name(device),
        "dtype": str(arguments.dtype).removeprefix("torch."),
        "gflop_per_sample": pretraining_flops(config) / 1e9,
        "results": [],
    }
    if not arguments.json:
        print(f"published computation: {published / 1e9:.1f} GFLOP a sample (matrix products, counted)")
        head = ", ".join([f"torch {report['torch']}", report["device"], report["dtype"]])
        rounds = f"{arguments.rounds} rounds of {arguments.steps} steps"
        print(f"{head}, {report['gflop_per_sample']:.1f} GFLOP a sample, {rounds}")
    for batch_size in arguments.batch_size:
        work = PretrainingStep(config, arguments.device, arguments.dtype, batch_size)
        peak, found = measure_variants(work, arguments.variants, arguments.rounds, arguments.steps)
        result = {"batch_size": batch_size, "peak_tflops": peak, "variants": found}
        result["published_gflop_per_sample"] = published / 1e9
        if arguments.profile is not None:
            result["parts"] = profile(work, arguments.profile, arguments.rounds, arguments.steps)
        show_progress("")
        if not arguments.json:
            show(result)
        report["results"].append(result)
        del work
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if arguments.json:
        print(json.dumps(report, indent=1))
    return report


if __name__ == "__main__":
    main()
