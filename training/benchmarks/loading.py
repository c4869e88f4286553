"""Samples per second that a worker process loads, stage by stage, and the workers that a GPU needs.

    python training/benchmarks/loading.py                       # made shards, a step of 512 samples in 0.2 s
    python training/benchmarks/loading.py --data SHARDS --step-seconds 0.31 --batch-size 256 --workers 2
    python training/benchmarks/loading.py --measure-step cuda --step-samples 256 --step-variant sdpa+compiled+fused

Prints per stage the milliseconds of processor time per sample in one process with one thread (what a worker of a
`DataLoader` is), for three uses: pretraining (one random frame, the published crop and flip), the same without
augmentation, and evaluation (all frames); then samples per second of a whole loader, and the workers that keep up with
a training step. How fast that is, is said in three ways:

- the step as given (`--batch-size`, `--step-seconds`); the default is an estimate for one H100, 512 samples in 0.2 s;
- measured, with `--measure-step DEVICE`: the step of pretraining_step.py on a device of this machine;
- a projection for one H100 from the FLOPs of a sample and the 989 TFLOP/s that its data sheet says of dense bfloat16:
  at 50 %, which is what training aims at, and at 100 %, which no step can pass and so no loader need pass.

Stages: `read` finds and copies the bytes of the chosen frames out of the tar file; `decode` is JPEG, JSON and float16;
`crop` the random crop and flip; `pixels` the processor's resize and normalisation; `windows` cuts and normalises the
spectrogram; `collate` stacks batches. `all` is measured on its own and includes what lies between the stages.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretraining_step import measure_step_seconds

from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncProcessor
from cavmae_sync_hf.data.augmentation import AUGMENTATION_PRESETS
from cavmae_sync_hf.data.dataset import CavMaeSyncCollator, Frames, InputMaker
from cavmae_sync_hf.data.shards import (
    INDEX_NAME,
    ShardIndex,
    ShardInfo,
    ShardWriter,
    clip_key,
    decode_clip,
    encode_array,
    encode_jpeg,
    encode_json,
    read_index,
    shard_name,
)
from cavmae_sync_hf.data.streaming import CavMaeSyncStreamingDataset, StreamingLoader
from cavmae_sync_hf.training import pretraining_flops

# Dense bfloat16 of the SXM5 board, TFLOP/s, from NVIDIA's data sheet; and the share of it that training aims at.
H100_TFLOPS, GOAL = 989.0, 0.5
MADE_SHARDS, CLIPS_PER_SHARD, FRAMES, SECONDS = 4, 40, 16, 10.0
# Use: name, frames per clip, augmentation.
USES: tuple[tuple[str, Frames, str], ...] = (
    ("pretraining", 1, "cavmae_sync"),
    ("no augmentation", 1, "none"),
    ("evaluation", "all", "none"),
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of shards; made on the spot when absent")
    parser.add_argument("--clips", type=int, default=100, help="clips per measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the whole loader")
    parser.add_argument("--batch-size", type=int, default=512, help="samples per step of one GPU")
    parser.add_argument("--step-seconds", type=float, default=0.2, help="time of that step")
    parser.add_argument("--measure-step", metavar="DEVICE", help="also measure a step there, such as cuda or cpu")
    parser.add_argument("--step-samples", type=int, help="samples of the measured step; default: 64, CPU 2")
    parser.add_argument("--step-variant", default="sdpa", help="how it is made, see pretraining_step.py")
    parser.add_argument("--step-config", type=json.loads, default={}, help="other sizes of its model, as JSON")
    parser.add_argument("--need-only", action="store_true", help="say what a GPU needs and measure no loading")
    parser.add_argument(
        "--fast-resize", action="store_true", help="torchvision's resize instead of PIL's exact pixels"
    )
    return parser.parse_args()


def make_shards(folder: Path) -> None:
    """Shards of the published size: 16 smooth, slightly noisy frames of 256 x 455 and 10 s of log-mel per clip."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(FRAMES, 3, 16, 28, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(256, 455), mode="bicubic")
    frames = ((smooth + 0.01 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1) * 255).to(torch.uint8)
    jpegs = [encode_jpeg(frame, 95, "4:4:4") for frame in frames]
    log_mel = (4.5 * torch.randn(998, 128, generator=generator) - 5).numpy().astype(np.float16)
    members = [(f"frame_{number:02d}.jpg", jpeg) for number, jpeg in enumerate(jpegs)]
    members.append(("log_mel.npy", encode_array(log_mel)))
    times = [(number + 0.5) * SECONDS / FRAMES for number in range(FRAMES)]
    info = {"duration": SECONDS, "frame_times": times, "labels": [0]}
    shards = []
    for shard in range(MADE_SHARDS):
        writer = ShardWriter(folder / shard_name("made", shard))
        for place in range(CLIPS_PER_SHARD):
            number = shard * CLIPS_PER_SHARD + place
            clip = [*members, ("json", encode_json({"id": str(number)} | info))]
            writer.add(clip_key(number, str(number)), clip)
        size, digest = writer.finish()
        shards.append(ShardInfo(shard_name("made", shard), CLIPS_PER_SHARD, size, digest))
    clips = MADE_SHARDS * CLIPS_PER_SHARD
    index = ShardIndex(
        name="made", clips=clips, bad_clips=0, seconds=clips * SECONDS, num_frames=FRAMES, alignment="time",
        short_side=256, jpeg_quality=95, jpeg_chroma="4:4:4", sampling_rate=16000, num_mel_bins=128, channel="first",
        mean=-5.0, std=4.5, log_mel_frames=998 * clips, with_audio=clips, with_video=clips, label_names=None,
        label_counts={0: clips}, versions={}, shards=shards,
    )  # fmt: skip
    (folder / INDEX_NAME).write_text(index.to_json())


def milliseconds(work: Callable[[int], Any], clips: int, repeats: int) -> float:
    """Median processor time of `work(number)` per clip; unlike the clock's, it hardly depends on who else is busy."""
    work(0)
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for number in range(clips):
            work(number)
        times.append((time.process_time() - start) / clips)
    return 1000 * statistics.median(times)


def measure_stages(maker: InputMaker, source: Any, clips: int, repeats: int) -> dict[str, float]:
    """Milliseconds per sample of every stage on its own, and of all together."""
    extractor, collator = maker.processor.feature_extractor, CavMaeSyncCollator(maker.processor)
    records = [source.read(number, lambda name, count: maker.choose(name, count, 0)) for number in range(clips)]

    def members(number: int) -> tuple[str, dict[str, bytes]]:
        place = number
        group = 0
        while place >= source.group_sizes[group]:
            place -= source.group_sizes[group]
            group += 1
        shard = source._shard(group)
        key, places = shard.members(place)
        jpegs = sorted(name for name in places if name.startswith("frame_"))
        wanted = [jpegs[index] for index in records[number].chosen]
        return key, {name: shard.content(places[name]) for name in (*wanted, "log_mel.npy", "json")}

    def decode(number: int) -> None:
        clip = decode_clip(*stored[number])
        clip.frames()
        torch.from_numpy(clip.log_mel).float()

    stored = [members(number) for number in range(clips)]
    crop = maker.augmentation.frames if maker.augmentation is not None else None
    cropped = records if crop is None else [replace(r, frames=crop(r.frames, r.clip_id)) for r in records]
    bare = InputMaker(maker.processor, maker.frames)
    samples = [maker.make(source, number, 0) for number in range(min(clips, 16))]
    stages = {
        "read": milliseconds(members, clips, repeats),
        "decode": milliseconds(decode, clips, repeats),
        "crop": 0.0 if crop is None else milliseconds(lambda n: crop(records[n].frames, n), clips, repeats),
        "pixels": milliseconds(lambda n: bare._pixels(cropped[n], ()), clips, repeats),
        "windows": milliseconds(
            lambda n: extractor.windows(records[n].log_mel, records[n].frame_times, chosen=records[n].chosen),
            clips,
            repeats,
        ),
        "collate": milliseconds(lambda n: collator(samples), 4, repeats) / len(samples),
    }
    stages["all"] = milliseconds(lambda n: maker.make(source, n, 0), clips, repeats) + stages["collate"]
    return stages


def measure_loader(arguments: argparse.Namespace, folder: str, processor: Any, frames: Frames, preset: str) -> float:
    """Samples per second out of a loader, its start not counted."""
    dataset = CavMaeSyncStreamingDataset(
        folder, processor, frames=frames, augmentation=AUGMENTATION_PRESETS[preset], batch_size=8
    )
    loader = StreamingLoader(
        dataset, num_workers=arguments.workers, collate_fn=CavMaeSyncCollator(processor), persistent_workers=True
    )
    rates = []
    for epoch in range(arguments.repeats + 1):
        loader.set_epoch(epoch)
        start = time.perf_counter()
        count = sum(len(batch["clip_ids"]) for batch in loader)
        rates.append(count / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def needs(arguments: argparse.Namespace) -> dict[str, float]:
    """Samples per second that one device trains on, by the way in which that is known."""
    given = f"as given: {arguments.batch_size} samples in {arguments.step_seconds:g} s"
    if (arguments.batch_size, arguments.step_seconds) == (512, 0.2):
        given += " (an estimate for one H100)"
    found = {given: arguments.batch_size / arguments.step_seconds}
    device, variant = arguments.measure_step, arguments.step_variant
    if device:
        on_cpu = device.startswith("cpu")
        samples = arguments.step_samples or (2 if on_cpu else 64)
        dtype, rounds, steps = (torch.float32, 2, 1) if on_cpu else (torch.bfloat16, 5, 10)
        # In a process of its own: its threads and its memory must not be the loader's.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
            measured = apart.submit(
                measure_step_seconds, device, dtype, samples, variant, rounds, steps, arguments.step_config
            )
            seconds = measured.result()
        kind = f"{variant}, {str(dtype).removeprefix('torch.')}"
        found[f"measured on {device}: {samples} samples in {seconds:.3g} s ({kind})"] = samples / seconds
    flops = pretraining_flops(CavMaeSyncConfig.cav_mae_sync(**arguments.step_config))
    for share, what in ((GOAL, "projection for one H100"), (1.0, "upper bound for one H100")):
        label = f"{what}: {flops / 1e9:.4g} GFLOP a sample, {share:.0%} of {H100_TFLOPS:g} TFLOP/s"
        found[label] = share * H100_TFLOPS * 1e12 / flops
    return found


def main() -> None:
    arguments = parse_arguments()
    wanted = needs(arguments)
    torch.set_num_threads(1)
    print("need of one device in samples/s")
    for label, need in wanted.items():
        print(f"  {need:9.4g}  {label}")
    print()
    if arguments.need_only:
        return
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.data
        if folder is None:
            folder = made
            make_shards(Path(made))
        index = read_index(folder)
        processor = CavMaeSyncProcessor.from_config(
            CavMaeSyncConfig(num_mel_bins=index.num_mel_bins), alignment=index.alignment, channel=index.channel
        )
        processor.video_processor.exact_resize = not arguments.fast_resize
        clips = min(arguments.clips, index.clips)
        for name, frames, preset in USES:
            maker = InputMaker(processor, frames, AUGMENTATION_PRESETS[preset])
            source = CavMaeSyncStreamingDataset(folder, processor).source
            stages = measure_stages(maker, source, clips, arguments.repeats)
            rate = 1000 / stages["all"]
            whole = measure_loader(arguments, folder, processor, frames, preset)
            print(f"{name} (frames per clip: {frames})")
            print("  " + "  ".join(f"{stage} {value:.3f}" for stage, value in stages.items()) + "  ms per sample")
            print(f"  one process {rate:.0f} samples/s; loader with {arguments.workers} workers {whole:.0f} samples/s")
            if frames != "all":
                workers = (f"{math.ceil(need / rate)} for {need:.4g} samples/s" for need in wanted.values())
                print(f"  workers needed: {', '.join(workers)}")
            print()


if __name__ == "__main__":
    main()
