# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A folder of shards made in milliseconds, and a processor that fits it, for tests of loading.

Clip k has the id `clip-k`; its frame i is a ramp plus `10 * i`, its log-mel rises by one per 10 ms from `-10 - k`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cavmae_sync_hf.data.shards import (
    CLIPS_NAME,
    INDEX_NAME,
    ShardIndex,
    ShardInfo,
    ShardWriter,
    clip_key,
    encode_array,
    encode_jpeg,
    encode_json,
    shard_name,
)
from cavmae_sync_hf.model.processing_cavmae_sync import CavMaeSyncProcessor
from helpers.tiny import tiny_config

NUM_FRAMES, NUM_MEL_BINS, SECONDS = 4, 16, 2.0


def tiny_processor(**settings: Any) -> CavMaeSyncProcessor:
    """The processor of the tiny model: 32 pixels, 4 frames, windows of 48 by 16."""
    return CavMaeSyncProcessor.from_config(tiny_config(), **settings)


def frame_of(clip: int, frame: int) -> torch.Tensor:
    """Frame `(3, 36, 48)` uint8 of a clip."""
    rows, columns = torch.meshgrid(torch.arange(36), torch.arange(48), indexing="ij")
    return torch.stack([rows * 3 + 10 * frame, columns * 2 + clip % 64, torch.full_like(rows, 90)]).to(torch.uint8)


def log_mel_of(clip: int) -> np.ndarray:
    """Log-mel `(200, 16)` float16 of a clip of 2 s."""
    ramp = np.arange(round(SECONDS * 100))[:, None] * 0.01
    return (-10.0 - clip * 0.125 + ramp + np.zeros(NUM_MEL_BINS)).astype(np.float16)


def write_shards(
    folder: Path,
    shard_sizes: Sequence[int],
    labels: Sequence[Sequence[int]] | None = None,
    alignment: str = "time",
    silent: Sequence[int] = (),
    blind: Sequence[int] = (),
    short: Sequence[int] = (),
) -> Path:
    """Write shards of so many clips each; `silent` clips have no audio, `blind` no frames, `short` only two frames."""
    folder.mkdir(parents=True, exist_ok=True)
    infos, rows, number = [], [], 0
    for shard, size in enumerate(shard_sizes):
        name = shard_name("set", shard)
        writer = ShardWriter(folder / name)
        for _ in range(size):
            members, info = clip_members(number, alignment, number in silent, number in blind, number in short)
            info["labels"] = list(labels[number]) if labels is not None else [number % 3]
            key = clip_key(number, info["id"])
            offset, length = writer.add(key, [*members, ("json", encode_json(info))])
            rows.append({"key": key, "id": info["id"], "labels": info["labels"], "duration": SECONDS})
            rows[-1] |= {"shard": name, "offset": offset, "size": length}
            number += 1
        total, digest = writer.finish()
        infos.append(ShardInfo(name, size, total, digest))
    index = ShardIndex(
        name="set", clips=number, bad_clips=0, seconds=SECONDS * number, num_frames=NUM_FRAMES, alignment=alignment,
        short_side=36, jpeg_quality=95, jpeg_chroma="4:4:4", sampling_rate=16000, num_mel_bins=NUM_MEL_BINS,
        channel="first", mean=-9.0, std=2.0, log_mel_frames=200 * number, with_audio=number, with_video=number,
        label_names=None, label_counts={0: number}, versions={}, shards=infos,
    )  # fmt: skip
    (folder / CLIPS_NAME).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / INDEX_NAME).write_text(index.to_json())
    return folder


def clip_members(
    number: int, alignment: str, silent: bool, blind: bool, short: bool
) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
    """Tar members of a clip except its JSON, and the JSON's content."""
    count = 2 if short else NUM_FRAMES
    times = [(i + (0.5 if alignment == "time" else 0.0)) * SECONDS / count for i in range(count)]
    frames = [] if blind else [frame_of(number, i) for i in range(count)]
    log_mel = log_mel_of(number)[: 0 if silent else None]
    members = [(f"frame_{i:02d}.jpg", encode_jpeg(frame, 95, "4:4:4")) for i, frame in enumerate(frames)]
    members.append(("log_mel.npy", encode_array(log_mel)))
    info = {
        "id": f"clip-{number}",
        "source": f"clip-{number}.mp4",
        "start": None,
        "end": None,
        "duration": SECONDS,
        "frame_times": [] if blind else times,
        "sampling_rate": 16000,
        "num_mel_bins": NUM_MEL_BINS,
        "alignment": alignment,
        "has_audio": not silent,
        "has_video": not blind,
        "versions": {},
    }
    return members, info
