"""Models whose embeddings follow from the input by a rule, so that the right answer is known, and videos for them.

`RampModel` sees how bright a frame is and hears how high a tone is. In a ramp video both rise with time, so that the
two fit exactly where they belong together. `ColourModel` sees how red, green and blue the patches are that it is
given, and hears nothing but how loud the mel bands are.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor
from helpers.clips import write_clip
from helpers.tiny import tiny_config

RATE = 16000
BINS = 64
SECONDS = 6.0
_LOW_BIN, _HIGH_BIN = 6.0, 56.0
_DARK, _BRIGHT = 30.0, 220.0
_CENTRES = torch.linspace(0, 1, 32)
_WIDTH = 0.03


def _bump(position: Tensor) -> Tensor:
    """A place between 0 and 1 as a vector: places near each other are alike."""
    return torch.nn.functional.normalize(torch.exp(-((position[:, None] - _CENTRES) ** 2) / (2 * _WIDTH**2)), dim=-1)


class RampModel(CavMaeSyncModel):
    """Brightness of the frame, and pitch in the middle of the window, as places between 0 and 1."""

    def __init__(self) -> None:
        super().__init__(tiny_config(num_mel_bins=BINS, hidden_size=32, temperature=0.05))

    def tower(self, modality: str) -> Any:
        def read(images: Tensor, ids_keep: Any = None, record: Any = None) -> Tensor:
            if modality == "video":
                grey = (images * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)).mean(dim=(1, 2, 3)) + 0.449
                position = (grey * 255 - _DARK) / (_BRIGHT - _DARK)
            else:
                middle = images.shape[-1] // 2
                loudest = images[:, 0, :, middle - 2 : middle + 2].exp().mean(dim=-1)  # (samples, mel)
                powers = loudest**4
                pitch = (powers * torch.arange(BINS)).sum(dim=-1) / powers.sum(dim=-1)
                position = (pitch - _LOW_BIN) / (_HIGH_BIN - _LOW_BIN)
            return _bump(position)[:, None].expand(-1, 2, -1)

        return read

    def separate(self, modality: str, tokens: Tensor, record: Any = None) -> tuple[Tensor, Tensor]:
        return torch.nn.functional.normalize(tokens[:, 0], dim=-1), tokens[:, 1:]


def rising_tone(seconds: float = SECONDS, rate: int = RATE, late: float = 0.0) -> np.ndarray:
    """A tone `(1, samples)` whose mel bin rises evenly, `late` seconds behind: it stays on the lowest until then."""
    share = np.clip((np.arange(round(seconds * rate)) / rate - late) / seconds, 0, 1)
    low, high = (1127 * np.log1p(hertz / 700) for hertz in (20.0, 8000.0))
    mel = low + (_LOW_BIN + share * (_HIGH_BIN - _LOW_BIN) + 1) * (high - low) / (BINS + 1)
    hertz = 700 * (np.exp(mel / 1127) - 1)
    return (0.4 * np.sin(2 * np.pi * np.cumsum(hertz) / rate)).astype(np.float32)[None]


def brighter(number: int, time: float, seconds: float = SECONDS) -> np.ndarray:
    """A grey frame that grows brighter evenly."""
    return np.full((48, 64, 3), round(_DARK + (_BRIGHT - _DARK) * time / seconds), dtype=np.uint8)


def ramp_video(path: Path, late: float = 0.0, fps: int = 20, **options: Any) -> Path:
    """A video that `RampModel` understands, its audio late by some seconds."""
    options = {"audio": rising_tone(late=late), "rate": RATE, "frame": brighter} | options
    return write_clip(path, seconds=SECONDS, fps=fps, **options)


def ramp_pair() -> tuple[RampModel, CavMaeSyncProcessor]:
    """The model and a processor for it."""
    model = RampModel().eval()
    return model, CavMaeSyncProcessor.from_config(model.config)


class ColourModel(CavMaeSyncModel):
    """Frames are the mean colour of their patches, windows the mean level of the lower and upper half of the bins.

    Both as three numbers, so that audio in the lower half goes with red and in the upper half with blue.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(tiny_config(num_mel_bins=BINS, audio_length=48, **settings))

    def tower(self, modality: str) -> Any:
        size = self.config.patch_size

        def read(images: Tensor, ids_keep: Tensor | None = None, record: Any = None) -> Tensor:
            patches = torch.nn.functional.unfold(images, size, stride=size).mT  # (samples, patches, values)
            if modality == "video":
                values = patches.unflatten(-1, (3, -1)).mean(dim=-1)
            else:
                level = patches.mean(dim=-1)
                rows = images.shape[-2] // size
                upper = (torch.arange(level.shape[1]) >= level.shape[1] * (rows // 2) // rows).float()
                values = torch.stack([level * (1 - upper), torch.zeros_like(level), level * upper], dim=-1)
            padded = torch.nn.functional.pad(values, (0, self.config.hidden_size - 3))
            if ids_keep is not None:
                padded = padded.gather(1, ids_keep[..., None].expand(-1, -1, padded.shape[-1]))
            return torch.cat([padded.mean(dim=1, keepdim=True), padded], dim=1)

        read.grid = lambda images: (images.shape[-2] // size, images.shape[-1] // size)  # type: ignore[attr-defined]
        return read

    def separate(self, modality: str, tokens: Tensor, record: Any = None) -> tuple[Tensor, Tensor]:
        # Not normalised, so that what a part adds is the same wherever it is.
        return tokens[:, 0], tokens[:, 1:]
