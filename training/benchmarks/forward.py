"""How fast is the forward pass, against what this machine's matrix products reach?

    python training/benchmarks/forward.py                         # published sizes, one 10 s clip, this CPU
    python training/benchmarks/forward.py --device cuda --dtype bfloat16 --batch-size 16

Prints, side by side in one run: the matrix-product peak, then clips per second and utilisation of the encoder with
every window encoded, with equal windows encoded once, and of the audio tower alone. The measurements take turns, so
that a busy machine slows all of them alike; each figure is the median.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncFeatureExtractor, CavMaeSyncModel


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch-size", type=int, default=1, help="clips of 16 frames and windows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--attention", default="sdpa", help="attn_implementation")
    return parser.parse_args()


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of one call, the device's queue included."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def clip_inputs(batch_size: int, config: CavMaeSyncConfig) -> dict[str, torch.Tensor]:
    """Windows of 10 s of noise, cut as for published checkpoints, and random frames."""
    extractor = CavMaeSyncFeatureExtractor(alignment="reference")
    noise = torch.randn(batch_size, 160_000, generator=torch.Generator().manual_seed(0)) * 0.1
    windows = extractor(list(noise), sampling_rate=16_000, return_tensors="pt")["input_values"]
    frames = torch.randn(batch_size, config.num_frames, config.frame_channels, config.image_size, config.image_size)
    return {"input_values": windows, "pixel_values_videos": frames}


def main() -> None:
    arguments = parse_arguments()
    dtype = getattr(torch, arguments.dtype)
    config = CavMaeSyncConfig.cav_mae_sync()
    model = CavMaeSyncModel._from_config(config, attn_implementation=arguments.attention)
    model = model.to(arguments.device, dtype).eval()
    inputs = {
        name: value.to(arguments.device, dtype) for name, value in clip_inputs(arguments.batch_size, config).items()
    }
    windows = inputs["input_values"]

    side = 2048 if arguments.device == "cpu" else 8192
    left, right = (torch.randn(side, side, device=arguments.device, dtype=dtype) for _ in range(2))

    def encode(deduplicate: bool, **given: torch.Tensor) -> object:
        config.deduplicate_windows = deduplicate
        return model(**given)

    works: dict[str, Callable[[], object]] = {
        "matrix product": lambda: left @ right,
        "both towers, every window": lambda: encode(False, **inputs),
        "both towers, equal windows once": lambda: encode(True, **inputs),
        "audio tower, every window": lambda: encode(False, input_values=windows),
        "audio tower, equal windows once": lambda: encode(True, input_values=windows),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    flops: dict[str, int] = {}
    with torch.inference_mode():
        for name, work in works.items():
            with FlopCounterMode(display=False) as counter:
                work()
            flops[name] = counter.get_total_flops()
        for _ in range(arguments.repeats):
            for name, work in works.items():
                times[name].append(seconds(work, arguments.device))

    medians = {name: statistics.median(values) for name, values in times.items()}
    peak = flops["matrix product"] / medians["matrix product"]
    print(
        f"torch {torch.__version__}, {arguments.device}, {arguments.dtype}, {torch.get_num_threads()} threads, ",
        end="",
    )
    print(f"{arguments.attention}, {arguments.batch_size} clips of {config.num_frames} frames, ViT-B towers")
    print(f"{'matrix product peak':34} {peak / 1e9:9.1f} GFLOP/s")
    for name in list(works)[1:]:
        rate = flops[name] / medians[name]
        clips = arguments.batch_size / medians[name]
        print(f"{name:34} {clips:9.3f} clips/s {flops[name] / arguments.batch_size / 1e9:8.0f} GFLOP/clip", end="")
        print(f" {rate / peak:6.1%} of the peak")
    for part in ("both towers", "audio tower"):
        saved = 1 - medians[f"{part}, equal windows once"] / medians[f"{part}, every window"]
        print(f"{part}: encoding equal windows once saves {saved:.1%} of the time")


if __name__ == "__main__":
    main()
