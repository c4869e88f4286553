# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How often each verdict on synchrony is right, on SyncWorld or on any folder of clips that are in sync.

    cavmae-sync world seed12 --preset temporal --split temporal --clips 100 --seed 12
    cavmae-sync world seed12 --preset semantic --split semantic --clips 100 --seed 12
    python training/benchmarks/verdict.py example seed12/temporal seed12/semantic
    python training/benchmarks/verdict.py lips grid/validation --hop 0.04 --max-offset 1 --shift 0.12 0.9

Of every clip: its own audio; its audio moved by `--shift` seconds, either way, with the missing part silent; the same
with the audio turned round; and another clip's audio. Right is "in sync", the right side to within two hops, and "does
not fit".
The thresholds were chosen on the seed 11. As a control the table says what a verdict that is always the most frequent
one would reach.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from sync import Embedder, shift

from cavmae_sync_hf.inference.sync import SyncResult, sync_from_embeddings
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from cavmae_sync_hf.syncworld import read_truth
from cavmae_sync_hf.syncworld.truth import OPTIONS_NAME


def is_right(result: SyncResult, kind: str, offset: float, tolerance: float) -> bool:
    verdict = result.verdict
    if kind == "foreign":
        return verdict.kind == "does not fit"
    side = "in sync" if not offset else "late" if offset > 0 else "early"
    return verdict.kind == side and verdict.offset is not None and abs(verdict.offset - offset) <= tolerance + 1e-9


def find_clips(folder: str) -> list[str]:
    """Paths of the clips of a SyncWorld split, or of the files of a folder."""
    if (Path(folder) / OPTIONS_NAME).is_file():
        return [record["path"] for record in read_truth(folder)]
    return sorted(str(path) for path in Path(folder).iterdir() if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folders", nargs="+", help="SyncWorld splits, or folders of video files")
    parser.add_argument("--clips", type=int, default=100, help="of each folder")
    parser.add_argument("--hop", type=float, default=0.1)
    parser.add_argument("--max-offset", type=float, default=2.0)
    parser.add_argument(
        "--shift", type=float, nargs=2, default=[0.3, 1.9], help="least and most seconds of the shifts"
    )
    parser.add_argument("--seed", type=int, default=5, help="of the offsets")
    arguments = parser.parse_args()
    model, processor = load_model(arguments.model, modalities="both")
    embedder, rate = Embedder(model, processor, arguments.hop), processor.feature_extractor.sampling_rate
    tolerance, generator = 2 * arguments.hop, np.random.default_rng(arguments.seed)
    counts: Counter[tuple[str, str]] = Counter()
    for folder in arguments.folders:
        with torch.inference_mode():
            clips = []
            for path in find_clips(folder)[: arguments.clips]:
                times, frames = embedder.frames(path)
                waveform = decode_media(path, sampling_rate=rate, want_video=False).waveform
                clips.append((times, frames, waveform, embedder.windows(waveform, times)))
            for place, (times, frames, waveform, own) in enumerate(clips):
                offset = float(generator.uniform(*arguments.shift) * generator.choice([-1, 1]))
                moved = {turn: embedder.windows(shift(waveform, offset, rate, turn), times) for turn in (False, True)}
                # A temporal twin shares its sounds, so the other clip is one further on.
                other = clips[(place + 2) % len(clips)][3]
                trials = [("true", 0.0, own), ("moved", offset, moved[False]), ("turned", offset, moved[True])]
                for kind, late, audio in [*trials, ("foreign", 0.0, other)]:
                    count = min(len(times), len(audio))
                    result = sync_from_embeddings(
                        audio[:count], frames[:count], times[:count], processor, model.config.temperature,
                        hop=arguments.hop, max_offset=arguments.max_offset,
                    )  # fmt: skip
                    right = is_right(result, kind, late, tolerance)
                    unsure = result.verdict.kind == "cannot tell"
                    counts[kind, "cannot tell" if unsure else "right" if right else "wrong"] += 1
    kinds = ("true", "moved", "turned", "foreign")
    print(f"{'audio':10s} {'right':>7s} {'wrong':>7s} {'cannot tell':>12s}")
    for kind in kinds:
        print(f"{kind:10s} {counts[kind, 'right']:7d} {counts[kind, 'wrong']:7d} {counts[kind, 'cannot tell']:12d}")
    right, wrong, unsure = (sum(counts[kind, word] for kind in kinds) for word in ("right", "wrong", "cannot tell"))
    print(
        f"{right / (right + wrong):.1%} of {right + wrong} verdicts are right; "
        f"{unsure / (right + wrong + unsure):.1%} cannot tell; "
        "one verdict for all would be right 25.0% of the time"
    )


if __name__ == "__main__":
    main()
