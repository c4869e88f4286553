"""How often a shift of the audio is found, and clips in sync are told from others, on SyncWorld.

    cavmae-sync world world --preset temporal --split temporal --clips 200
    python training/benchmarks/sync.py MODEL world/temporal
    python training/benchmarks/sync.py MODEL world/temporal --hops 0.2 --turn

The audio of every clip is shifted: by 0, by -2 s and 2 s, and by further offsets drawn evenly from -2 s to 2 s. What
is missing then is silent; with `--turn` the end of the audio comes in again at its start instead, so that no silence
gives the shift away.

An offset is found when the estimate is within one hop of it. In sync or not: the clip's own audio against its shifted
audio (by half a second and more, and by less) and against another clip's audio, by each score of `measure_sync`.
"""

import argparse
import copy
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from cavmae_sync_hf.inference.sync import SYNC_SCORES, SyncResult, sync_from_embeddings
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.metrics.synchrony import sync_detection
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from cavmae_sync_hf.syncworld import read_truth

MOST = 2.0
CLEAR_SECONDS = 0.5
Trial = tuple[float | None, SyncResult]
SHARES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0 + 1e-9)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("world", help="a SyncWorld split")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--hops", type=float, nargs="+", default=[0.1, 0.2])
    parser.add_argument("--drawn", type=int, default=4, help="offsets drawn per clip, besides 0, -2 s and 2 s")
    parser.add_argument("--turn", action="store_true", help="fill up with the audio from the other end, not silence")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def shift(waveform: torch.Tensor, offset: float, rate: int, turn: bool) -> torch.Tensor:
    """The same length of audio, late by `offset` seconds; silence where nothing is left, or what fell off."""
    count = round(offset * rate)
    if turn:
        return waveform.roll(count)
    result = torch.zeros_like(waveform)
    if count >= 0:
        result[count:] = waveform[: len(waveform) - count]
    else:
        result[:count] = waveform[-count:]
    return result


class Embedder:
    """Embeds the frames of a clip once, and windows of its audio as often as it is shifted."""

    def __init__(self, model: Any, processor: Any, hop: float) -> None:
        self.model, self.processor, self.hop = model, processor, hop

    def frames(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """Times and embeddings of the frames, as `processor.stream` gives them."""
        times, embeds = [], []
        for chunk in self.processor.stream(path, hop=self.hop, num_frames=32, want_audio=False):
            pixels = chunk["pixel_values_videos"].to(self.model.device)
            embeds.append(self.model.get_video_features(pixels).video_embeds[0].cpu())
            times.append(chunk["frame_times"][0])
        return torch.cat(times).numpy(), torch.cat(embeds).numpy()

    def windows(self, waveform: torch.Tensor, times: np.ndarray) -> np.ndarray:
        """Embeddings of the windows around these times."""
        extractor = copy.copy(self.processor.feature_extractor)
        extractor.alignment = "time"
        values = extractor.windows(extractor.log_mel(waveform), times.tolist()).values[None].to(self.model.device)
        return self.model.get_audio_features(values).audio_embeds[0].cpu().numpy()


def measure(arguments: argparse.Namespace, model: Any, processor: Any, hop: float) -> Iterator[Trial]:
    """Offset (`None`: another clip's audio) and result of every trial."""
    generator = np.random.default_rng(arguments.seed)
    embedder = Embedder(model, processor, hop)
    records = list(islice(read_truth(arguments.world), arguments.clips))
    # A temporal twin shares its sounds, so the other clip is one further on.
    rate = processor.feature_extractor.sampling_rate
    tracks = [decode_media(record["path"], sampling_rate=rate, want_video=False).waveform for record in records]
    for place, record in enumerate(records):
        times, frames = embedder.frames(record["path"])
        offsets = [0.0, -MOST, MOST, *generator.uniform(-MOST, MOST, arguments.drawn)]
        trials = [(offset, shift(tracks[place], offset, rate, arguments.turn)) for offset in offsets]
        other = tracks[(place + 2) % len(records)]
        for offset, audio in [*trials, (None, other)]:
            yield offset, sync_from_embeddings(
                embedder.windows(audio, times), frames, times, processor, model.config.temperature, hop=hop,
                max_offset=MOST, source=record["file_name"],
            )  # fmt: skip


def share(errors: np.ndarray, limit: float) -> float:
    return float((errors <= limit + 1e-9).mean())


def report_offsets(trials: list[Trial], hop: float) -> None:
    """Which share is found, and whether confidence tells which."""
    shifted = [(offset, result) for offset, result in trials if offset is not None]
    errors = np.array([np.inf if r.offset is None else abs(r.offset - offset) for offset, r in shifted])
    found, sure = errors <= hop + 1e-9, np.array([result.confidence for _, result in shifted])
    grid = np.array(
        [np.inf if r.offset is None else abs(r.offsets[r.offset_scores.argmax()] - offset) for offset, r in shifted]
    )
    inside = [r.interval is not None and r.interval[0] <= offset <= r.interval[1] for offset, r in shifted]
    print(
        f"hop {hop:g} s: {found.mean():.1%} of {len(found)} offsets within one hop ({share(grid, hop):.1%} without "
        f"interpolation), {share(errors, hop / 2):.1%} ({share(grid, hop / 2):.1%}) within half of one, "
        f"{share(errors, 0.5):.1%} within 0.5 s; median error {np.median(errors) * 1000:.0f} ms; "
        f"{np.mean(inside):.1%} in the interval"
    )
    for low, high in zip(SHARES, SHARES[1:], strict=False):
        here = (sure >= low) & (sure < high)
        if here.any():
            print(
                f"  confidence {low:.2f} to {min(high, 1):.2f}: {here.sum():4d} trials, {found[here].mean():.1%} found"
            )


def report_detection(trials: list[Trial]) -> None:
    """AUC and equal-error rate of each score."""
    moved = [(abs(offset), result) for offset, result in trials if offset]
    groups = {
        f"shifted by {CLEAR_SECONDS:g} to {MOST:g} s": [r for offset, r in moved if offset >= CLEAR_SECONDS],
        f"shifted by less than {CLEAR_SECONDS:g} s": [r for offset, r in moved if offset < CLEAR_SECONDS],
        "another clip's audio": [r for offset, r in trials if offset is None],
    }
    true = [result for offset, result in trials if offset == 0.0]
    for name, others in groups.items():
        if not others:
            continue
        print(f"  {len(true)} in sync against {len(others)} {name}:")
        for score in SYNC_SCORES:
            metrics = sync_detection([r.score(score) for r in true], [r.score(score) for r in others])
            print(f"    {score:10s} AUC {metrics['auc']:.4f}   equal-error rate {metrics['equal_error_rate']:.2%}")


def main() -> None:
    arguments = parse_arguments()
    model, processor = load_model(arguments.model, device=arguments.device, modalities="both")
    for hop in arguments.hops:
        began = time.perf_counter()
        with torch.inference_mode():
            trials = list(measure(arguments, model, processor, hop))
        report_offsets(trials, hop)
        report_detection(trials)
        print(f"  {len(trials)} trials in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
