"""How many samples per second does a worker process load, stage by stage, and how many workers does a GPU need?

    python training/benchmarks/loading.py                       # made shards, a step of 512 samples in 0.2 s
    python training/benchmarks/loading.py --data SHARDS --step-seconds 0.31 --batch-size 256 --workers 2

Prints per stage the milliseconds of processor time per sample in one process with one thread (what a worker of a
`DataLoader` is), for three uses: pretraining (one random frame, the published crop and flip), the same without
augmentation, and evaluation (all frames); then samples per second of a whole loader, and the workers that keep up with
a training step. Take the step's time from a measurement on your GPU. The default is an estimate for one H100: the
published pretraining costs about 135 GFLOP a sample, so 512 samples take 0.2 s at 350 TFLOP/s, half of what its matrix
products reach in bfloat16.

Stages: `read` finds and copies the bytes of the chosen frames out of the tar file; `decode` is JPEG, JSON and float16;
`crop` the random crop and flip; `pixels` the processor's resize and normalisation; `windows` cuts and normalises the
spectrogram; `collate` stacks batches. `all` is measured on its own and includes what lies between the stages.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncProcessor
from cavmae_sync_hf.data.augmentation import AUGMENTATION_PRESETS
from cavmae_sync_hf.data.collator import CavMaeSyncCollator
from cavmae_sync_hf.data.dataset import Frames, InputMaker
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
        pictures = sorted(name for name in places if name.startswith("frame_"))
        wanted = [pictures[index] for index in records[number].chosen]
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


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    need = arguments.batch_size / arguments.step_seconds
    print(f"need: {arguments.batch_size} samples every {arguments.step_seconds:g} s = {need:.0f} samples/s per GPU\n")
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
                print(f"  workers for {need:.0f} samples/s: {math.ceil(need / rate)}")
            print()


if __name__ == "__main__":
    main()
