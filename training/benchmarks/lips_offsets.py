"""Offsets of talking clips by linear regression, beside those that models found: which clips are out of step.

    python training/benchmarks/lips_offsets.py grid --results seed0.json seed1.json seed2.json

`grid` holds `train` and `validation`, clips of 3 s cut to the face; the results are those of `cavmae-sync evaluate
sync MODEL validation --protocol offsets --out FILE`. From the mouth's pixels around a frame (40 principal components
of five frames) ridge regression predicts 16 bands of the log-mel at that time, each clip less its mean. Of a clip of
`validation` the offset is that at which the prediction correlates best with its audio, among -0.3 to 0.3 s. No
network takes part, so what it finds of a clip as models do is the clip's own. Control: the audio of the next clip.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from cavmae_sync_hf.model.media_cavmae_sync import decode_media

RATE, FPS, FRAMES, MAX_OFFSET = 16_000, 25, 75, 30  # offset in spectrogram frames of 10 ms
MOUTH = (slice(60, 132), slice(44, 116))  # of 160 x 160 pixels


def read(folder: Path) -> tuple[list[str], Tensor, Tensor]:
    """Names of the clips, mouths `(clips, frames, pixels)`, log-mels `(clips, time, 16)` of 100 Hz."""
    mel = MelSpectrogram(RATE, n_fft=512, win_length=400, hop_length=RATE // 100, n_mels=64)
    names, mouths, audio = [], [], []
    for path in sorted(folder.glob("*.mp4")):
        media = decode_media(path, num_frames=FRAMES, end=FRAMES / FPS)
        frames, samples = media.frames.float().mean(dim=1), media.waveform.reshape(-1)
        bands = F.avg_pool1d(torch.log(mel(samples[: 3 * RATE]) + 1e-5).T, 4)[: 3 * 100]
        bands = F.pad(bands, (0, 0, 0, 3 * 100 - len(bands)))
        names.append(path.stem)
        mouths.append(F.avg_pool2d(frames[:, *MOUTH], 3).flatten(1))
        audio.append(F.avg_pool1d(bands.T, 5, 1, 2).T)
    bands = torch.stack(audio)
    return names, torch.stack(mouths), bands - bands.mean(dim=1, keepdim=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--results", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    _, mouths, audio = read(arguments.grid / "train")
    mean = mouths.mean(dim=(0, 1))
    axes = torch.linalg.svd((mouths - mean).flatten(0, 1)[::7], full_matrices=False)[2][:40].T

    def components(values: Tensor) -> Tensor:
        parts = (values - mean) @ axes
        parts = parts - parts.mean(dim=1, keepdim=True)
        return torch.cat([parts.roll(shift, 1) for shift in range(-2, 3)], dim=-1)

    inner = torch.arange(4, FRAMES - 4)
    inputs, targets = components(mouths)[:, inner].flatten(0, 1), audio[:, inner * 4 + 2].flatten(0, 1)
    ridge = 0.01 * len(inputs) * inputs.var() * torch.eye(inputs.shape[1])
    weights = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets)

    names, mouths, audio = read(arguments.grid / "validation")
    middle, lags = torch.arange(18, 57), range(-MAX_OFFSET, MAX_OFFSET + 1)
    predicted = (components(mouths) @ weights)[:, middle]
    predicted = predicted - predicted.mean(dim=1, keepdim=True)

    def offsets(spectra: Tensor) -> np.ndarray:
        fits = []
        for lag in lags:
            shifted = spectra[:, middle * 4 + 2 + lag]
            shifted = shifted - shifted.mean(dim=1, keepdim=True)
            fits.append(F.cosine_similarity(predicted.flatten(1), shifted.flatten(1)))
        return (torch.stack(fits).argmax(dim=0).numpy() - MAX_OFFSET) / 100

    found, control = offsets(audio), offsets(audio.roll(1, 0))
    for words, values in (("its own audio", found), ("another clip's", control)):
        shares = ", ".join(f"{limit} s in {(abs(values) <= limit + 1e-9).mean():.0%}" for limit in (0.04, 0.08, 0.2))
        print(f"linear regression, {words}: within {shares}; median {np.median(values):+z.3f} s")
    models = [json.loads(path.read_text(encoding="utf-8"))["offsets"] for path in arguments.results]
    if not models:
        return
    table = {name: [values[name] for values in models] for name in names}
    apart = [max(values) - min(values) for values in table.values()]
    print(f"models apart: median {statistics.median(apart):.4f} s, at most {max(apart):.4f} s")
    for name, values in table.items():
        if statistics.mean(map(abs, values)) > 0.04:
            shown = ", ".join(f"{value:+z.3f}" for value in values)
            print(f"{name}: models {shown}; linear regression {found[names.index(name)]:+z.2f} s")


if __name__ == "__main__":
    main()
