# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How often each verdict on synchrony is right, on SyncWorld.

    cavmae-sync world seed12 --preset temporal --split temporal --clips 100 --seed 12
    cavmae-sync world seed12 --preset semantic --split semantic --clips 100 --seed 12
    python training/benchmarks/verdict.py example seed12/temporal seed12/semantic

Of every clip: its own audio; its audio moved by 0.3 to 1.9 s, either way, with the missing part silent; the same with
the audio turned round; and another clip's audio. Right is "in sync", the right side to within 0.2 s, and "does not
fit".
The thresholds were chosen on the seed 11. As a control the table says what a verdict that is always the most frequent
one would reach.
"""

import argparse
from collections import Counter

import numpy as np
import torch
from sync import Embedder, shift

from cavmae_sync_hf.inference.sync import SyncResult, sync_from_embeddings
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from cavmae_sync_hf.syncworld import read_truth

HOP, MAX_OFFSET, TOLERANCE = 0.1, 2.0, 0.2


def is_right(result: SyncResult, kind: str, offset: float) -> bool:
    verdict = result.verdict
    if kind == "foreign":
        return verdict.kind == "does not fit"
    side = "in sync" if not offset else "late" if offset > 0 else "early"
    return verdict.kind == side and verdict.offset is not None and abs(verdict.offset - offset) <= TOLERANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("worlds", nargs="+", help="SyncWorld splits")
    parser.add_argument("--clips", type=int, default=100, help="of each split")
    parser.add_argument("--seed", type=int, default=5, help="of the offsets")
    arguments = parser.parse_args()
    model, processor = load_model(arguments.model, modalities="both")
    embedder, rate = Embedder(model, processor, HOP), processor.feature_extractor.sampling_rate
    generator = np.random.default_rng(arguments.seed)
    counts: Counter[tuple[str, str]] = Counter()
    for world in arguments.worlds:
        with torch.inference_mode():
            clips = []
            for record in list(read_truth(world))[: arguments.clips]:
                times, frames = embedder.frames(record["path"])
                waveform = decode_media(record["path"], sampling_rate=rate, want_video=False).waveform
                clips.append((times, frames, waveform, embedder.windows(waveform, times)))
            for place, (times, frames, waveform, own) in enumerate(clips):
                offset = float(generator.uniform(0.3, 1.9) * generator.choice([-1, 1]))
                moved = {turn: embedder.windows(shift(waveform, offset, rate, turn), times) for turn in (False, True)}
                # A temporal twin shares its sounds, so the other clip is one further on.
                other = clips[(place + 2) % len(clips)][3]
                trials = [("true", 0.0, own), ("moved", offset, moved[False]), ("turned", offset, moved[True])]
                for kind, late, audio in [*trials, ("foreign", 0.0, other)]:
                    count = min(len(times), len(audio))
                    result = sync_from_embeddings(
                        audio[:count], frames[:count], times[:count], processor, model.config.temperature, hop=HOP,
                        max_offset=MAX_OFFSET,
                    )  # fmt: skip
                    unsure = result.verdict.kind == "cannot tell"
                    word = "cannot tell" if unsure else "right" if is_right(result, kind, late) else "wrong"
                    counts[kind, word] += 1
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
