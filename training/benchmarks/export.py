# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Speed of an exported encoder, and what 8-bit weights cost in retrieval.

    python training/benchmarks/export.py                                          # speed at published sizes, this CPU
    python training/benchmarks/export.py --model MODEL --data SHARDS              # also what retrieval loses
    python training/benchmarks/export.py --kinds [--model MODEL]                  # kinds of 8-bit weights instead

Needs the `export` extra. Speed: clips per second of PyTorch, of ONNX Runtime and of ONNX Runtime with 8-bit weights
side by side in one run, each tower by itself and both, by the clock and by processor time, which other work on the
machine changes less. The three take turns, and each figure is the median. All of them encode every window: exported
towers do not look for equal ones. Retrieval: R@1 of the same clips with the embeddings of each, and how far these lie
apart. `SHARDS` is a folder that `cavmae-sync prepare` wrote. Kinds: signed or unsigned 8-bit weights, one scale a
tensor or a column, all 8 bits or 7 of them; for each tower speed and lowest cosine with PyTorch's embeddings, at
published sizes or of `MODEL`. Any machine shows what they give on a processor without VNNI:
`qemu-x86_64 -cpu Haswell python training/benchmarks/export.py --kinds --repeats 1 --threads 1 --model MODEL`.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncModel, CavMaeSyncProcessor
from cavmae_sync_hf.data.dataset import CavMaeSyncCollator, CavMaeSyncDataset
from cavmae_sync_hf.export import ExportedModel, export_model
from cavmae_sync_hf.export.tower_files import load_tower, write_onnx
from cavmae_sync_hf.export.towers import TowerIO, example_input, make_towers, trace
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.metrics import retrieval_metrics

RUNTIMES = ("PyTorch", "ONNX Runtime", "8-bit weights")
AUDIO, VIDEO = "input_values", "pixel_values_videos"
INPUTS = {"audio": (AUDIO,), "video": (VIDEO,), "both": (AUDIO, VIDEO)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=16, help="windows and frames of a clip")
    parser.add_argument("--batch-size", type=int, default=1, help="clips")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch and of ONNX Runtime")
    parser.add_argument("--no-speed", action="store_true", help="leave out the published sizes")
    parser.add_argument("--kinds", action="store_true", help="compare kinds of 8-bit weights")
    parser.add_argument("--model", help="trained model for the retrieval, or for the kinds")
    parser.add_argument("--data", help="folder of shards for the retrieval")
    return parser.parse_args()


def make_runtimes(model: Any, processor: Any, folder: Path, threads: int) -> dict[str, Any]:
    """The same encoder three times, as functions from the model's inputs to embeddings."""
    torch.set_num_threads(threads)
    begin = time.perf_counter()
    found = export_model(model, processor, folder / "exported", int8=True)
    print(f"exported and checked in {time.perf_counter() - begin:.0f} s:", end="")
    for modality, entry in found["towers"].items():
        print(f" {modality} {entry['bytes'] / 1e6:.0f} MB, in 8 bits {entry['int8']['bytes'] / 1e6:.0f} MB;", end="")
        print(f" differs by {max(entry['max_difference'].values()):.1g};", end="")
    print()
    exact = ExportedModel(folder / "exported", threads=threads)
    small = ExportedModel(folder / "exported", precision="int8", threads=threads)
    return dict(zip(RUNTIMES, (model, exact, small), strict=True))


def measure_speed(arguments: argparse.Namespace, folder: Path) -> None:
    """Clips per second at published sizes, with random weights: they do not matter for the speed."""
    torch.manual_seed(0)
    config = CavMaeSyncConfig.cav_mae_sync(deduplicate_windows=False)
    model = CavMaeSyncModel(config).eval()
    runtimes = make_runtimes(model, CavMaeSyncProcessor.from_config(config), folder, arguments.threads)
    shape = (arguments.batch_size, arguments.moments)
    inputs = {
        name: example_input(TowerIO.of(config, modality), shape)
        for modality, name in (("audio", AUDIO), ("video", VIDEO))
    }
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with torch.inference_mode():
        for repeat in range(arguments.repeats + 1):
            for part, names in INPUTS.items():
                for name, runtime in runtimes.items():
                    begin = time.perf_counter(), time.process_time()
                    runtime(**{key: inputs[key] for key in names})
                    took = time.perf_counter() - begin[0], time.process_time() - begin[1]
                    if repeat:  # the first round warms up
                        times.setdefault((part, name), []).append(took)
    print(f"\nViT-B towers, {shape[0]} clips of {shape[1]} moments, {arguments.threads} threads, load", end="")
    print(f" {os.getloadavg()[0]:.1f} (against PyTorch)")
    for place, unit in enumerate(("clips/s", "clips per second of processor time")):
        print(unit)
        for part in INPUTS:
            medians = {name: statistics.median(took[place] for took in times[part, name]) for name in RUNTIMES}
            gains = {name: medians["PyTorch"] / medians[name] for name in RUNTIMES}
            row = [f"{name} {shape[0] / medians[name]:.3f} ({gains[name]:.2f})" for name in RUNTIMES]
            print(f"  {part:6}", "   ".join(row))


def measure_kinds(arguments: argparse.Namespace, folder: Path) -> None:
    """Speed and closeness of each kind of 8-bit weights, one tower after the other."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.model:
        model = load_model(arguments.model)[0]
    else:
        model = CavMaeSyncModel(CavMaeSyncConfig.cav_mae_sync()).eval()
    for tower in make_towers(model):
        (inputs,) = tower.example((arguments.batch_size, arguments.moments), seed=1)
        with torch.no_grad():
            wanted = tower(inputs)[0].numpy()
        exact = folder / f"{tower.io.modality}.onnx"
        write_onnx(trace(tower), tower.io, exact)
        runs = {"float32": load_tower(exact, arguments.threads)}
        for sign, columns, reduced in itertools.product((False, True), repeat=3):
            bits = "7 bits" if reduced else "8 bits"
            name = f"{'signed' if sign else 'unsigned'}, a scale per {'column' if columns else 'tensor'}, {bits}"
            quantize_dynamic(
                str(exact),
                str(folder / "small.onnx"),
                weight_type=QuantType.QInt8 if sign else QuantType.QUInt8,
                per_channel=columns,
                reduce_range=reduced,
                op_types_to_quantize=["MatMul"],
            )
            runs[name] = load_tower(folder / "small.onnx", arguments.threads)
        times: dict[str, list[float]] = {name: [] for name in runs}
        lowest = {}
        for repeat in range(arguments.repeats + 1):
            for name, run in runs.items():
                begin = time.process_time()
                (found,) = run(tower.io.outputs[:1], inputs.numpy())
                if repeat:  # the first round warms up
                    times[name].append(time.process_time() - begin)
                lowest[name] = float((found * wanted).sum(-1).min())
        shape = f"{inputs.shape[0]} clips of {inputs.shape[1]} moments"
        print(f"\n{tower.io.modality} tower, {shape}: processor time (float32's over it), lowest cosine with PyTorch")
        medians = {name: statistics.median(took) for name, took in times.items()}
        for name, took in medians.items():
            print(f"  {name:38} {took:.4f} s ({medians['float32'] / took:.2f})   {lowest[name]:.6f}")


def measure_retrieval(arguments: argparse.Namespace, folder: Path) -> None:
    """R@1 of all clips with each runtime's embeddings."""
    model, processor = load_model(arguments.model, modalities="both")
    runtimes = make_runtimes(model, processor, folder, arguments.threads)
    dataset = CavMaeSyncDataset(arguments.data, processor, frames="all")
    loader = DataLoader(dataset, batch_size=8, collate_fn=CavMaeSyncCollator(processor))
    embeds: dict[tuple[str, str], list[np.ndarray]] = {}
    masks: dict[str, list[np.ndarray]] = {"padding_mask": [], "padding_mask_videos": []}
    names = (*INPUTS["both"], *masks)
    for batch in loader:
        given = {name: batch[name] for name in names if name in batch}
        for name, runtime in runtimes.items():
            with torch.inference_mode():
                found = runtime(**given)
            for side in ("audio_embeds", "video_embeds"):
                embeds.setdefault((name, side), []).append(np.asarray(found[side]))
        for name, kept in masks.items():
            present = given.get(name)
            kept.append(np.ones(found["audio_embeds"].shape[:2], bool) if present is None else np.asarray(present))
    joined = {key: np.concatenate(parts) for key, parts in embeds.items()}
    present = {name: np.concatenate(parts) for name, parts in masks.items()}
    clips = len(present["padding_mask"])
    print(f"\n{arguments.model} on {clips} clips of {arguments.data}, diagonal mean")
    for name in RUNTIMES:
        metrics = retrieval_metrics(
            audio_embeds=joined[name, "audio_embeds"],
            video_embeds=joined[name, "video_embeds"],
            audio_mask=present["padding_mask"],
            video_mask=present["padding_mask_videos"],
        )
        cosines = [
            (joined[name, side] * joined["PyTorch", side]).sum(-1)[present[mask]].min()
            for side, mask in (("audio_embeds", "padding_mask"), ("video_embeds", "padding_mask_videos"))
        ]
        ways = {"audio to video": "audio_to_video", "video to audio": "video_to_audio"}
        row = [f"{way} R@1 {metrics[f'{key}_r1']:.4f} R@5 {metrics[f'{key}_r5']:.4f}" for way, key in ways.items()]
        print(f"  {name:13}", "   ".join(row), f"  lowest cosine with PyTorch's {min(cosines):.5f}")


def main() -> None:
    arguments = parse_arguments()
    if arguments.kinds:
        jobs = [measure_kinds]
    elif (arguments.model is None) != (arguments.data is None):
        raise SystemExit("--model and --data belong together.")
    else:
        jobs = [measure_speed] * (not arguments.no_speed) + [measure_retrieval] * (arguments.model is not None)
    for measure in jobs:
        with tempfile.TemporaryDirectory() as scratch:
            measure(arguments, Path(scratch))


if __name__ == "__main__":
    main()
