# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How often `localize` is right about whether the audio has a source in the frame, on SyncWorld.

    cavmae-sync world seed23 --preset spatial --split spatial --clips 60 --seed 23
    python training/benchmarks/strength.py example seed23/spatial

Every clip shows two objects, one of which sounds about half of the time; the other is silent and moves. It is taken
with its own audio, with that of another clip whose object is of another class, and with none (digital silence).
Looked at are the 16 frame times of each clip. A source is right where its own object sounds, and "no source" where
nothing sounds or what sounds is another clip's. As controls stand the share of moments that would be right if the
answer were always the same, and if the answers were those of another moment, drawn by chance. The threshold was chosen
on the seed 21.
"""

import argparse
from itertools import islice
from typing import Any

import numpy as np

from cavmae_sync_hf.inference.localize import LocalizationResult, localize
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from cavmae_sync_hf.syncworld import read_truth

DRAWS = 1000


def heard(record: dict[str, Any], time: float) -> bool:
    return any(event["start"] <= time < event["end"] for event in record["events"])


def kind_of(own: bool, shown: bool, audible: bool) -> str:
    """What a moment is: whose the audio is, whether the frame shows what sounds, and whether anything is heard."""
    if own:
        return "own, sounds" if shown else "own, at rest"
    if not audible:
        return "foreign, at rest"
    return "foreign, sounds, frame active" if shown else "foreign, sounds, frame at rest"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("worlds", nargs="+", help="SyncWorld splits of the spatial preset")
    parser.add_argument("--clips", type=int, default=60, help="of each split")
    parser.add_argument("--method", default="relevance")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    model, processor = load_model(arguments.model, device=arguments.device, modalities="both")
    rate = processor.feature_extractor.sampling_rate
    kinds: list[str] = []
    answers: list[bool] = []
    strengths: list[float] = []
    for world in arguments.worlds:
        records = list(islice(read_truth(world), arguments.clips))
        for place, record in enumerate(records):
            sounding = set(record["label_names"])
            # Not the neighbour, whose audio is given in turn to a clip nearby.
            order = [records[(place + step) % len(records)] for step in range(2, len(records))]
            other = next(item for item in order if not sounding & set(item["label_names"]))
            samples = {
                "own": None,
                "foreign": decode_media(other["path"], sampling_rate=rate, want_video=False).waveform,
                "silence": np.zeros(round(record["duration"] * rate), np.float32),
            }
            for name, waveform in samples.items():
                found: LocalizationResult = localize(
                    model, processor, record["path"], waveform, sampling_rate=None if waveform is None else rate,
                    fps=len(record["frame_times"]) / record["duration"], method=arguments.method, fingerprint="-",
                )  # fmt: skip
                for k, time in enumerate(record["frame_times"]):
                    shown = heard(record, time)
                    kind = "silence" if name == "silence" else kind_of(name == "own", shown, heard(other, time))
                    kinds.append(kind)
                    answers.append(bool(found.has_source[k]))
                    strengths.append(float(found.strength[k]))
    report(np.array(kinds), np.array(answers), np.array(strengths))


def report(kinds: np.ndarray, answers: np.ndarray, strengths: np.ndarray) -> None:
    truth = kinds == "own, sounds"
    right = answers == truth
    generator = np.random.default_rng(0)
    print(f"{'audio':32s} {'moments':>7s} {'right':>7s} {'source':>7s} {'median strength':>16s}")
    for kind in sorted(set(kinds.tolist()), key=lambda name: (name != "own, sounds", name)):
        of = kinds == kind
        print(f"{kind:32s} {of.sum():7d} {right[of].mean():7.1%} {answers[of].mean():7.1%} "
              f"{np.median(strengths[of]):16.2f}")  # fmt: skip
    # Silence is told by its loudness, so the model is judged by the others.
    judged = kinds != "silence"
    by_chance = [generator.permutation(answers[judged]) == truth[judged] for _ in range(DRAWS)]
    hit = (answers & truth).sum() / truth.sum(), (~answers & ~truth & judged).sum() / (~truth & judged).sum()
    print(f"without silence: {hit[0]:.1%} of sources kept, {hit[1]:.1%} of the others say no source; mean "
          f"{np.mean(hit):.1%}, always the same answer 50.0%, another moment's answer "
          f"{balanced(by_chance, truth[judged]):.1%}")  # fmt: skip


def balanced(draws: list[np.ndarray], truth: np.ndarray) -> float:
    """Mean over draws of the mean share of right answers of both kinds."""
    return float(np.mean([(right[truth].mean() + right[~truth].mean()) / 2 for right in draws]))


if __name__ == "__main__":
    main()
