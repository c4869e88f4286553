# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How does a decoded frame become an upright RGB picture?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .errors_cavmae_sync import MediaError

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]


class FrameConverter:
    """Turns decoded frames into upright RGB pictures of one size.

    Args:
        name: Name of the file, for messages.
        short_side: Scale the shorter side to this many pixels (bicubic) while converting; `None` keeps the size.
    """

    def __init__(self, name: str, short_side: int | None = None) -> None:
        self.name = name
        self.short_side = short_side
        self.size: tuple[int, int] | None = None  # (height, width) before rotation
        self.rotation = 0

    def __call__(self, frame: Any) -> np.ndarray:
        """Convert one frame.

        Returns:
            uint8 `(height, width, 3)`, rotated as the file says it is shown; a view of FFmpeg's memory, to be copied.
        """
        if self.size is None:
            self.size = self._target_size(frame.height, frame.width)
        height, width = self.size
        scaled = {"interpolation": "BICUBIC"} if (height, width) != (frame.height, frame.width) else {}
        try:
            # One thread: converters that have threads, when freed in a forked process, wait for them for ever.
            picture = frame.reformat(width=width, height=height, format="rgb24", threads=1, **scaled)
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(
                f"{self.name}: frames of format {frame.format.name} cannot be turned into RGB ({error}); "
                "convert the file with ffmpeg -pix_fmt yuv420p."
            ) from error
        plane = picture.planes[0]
        pixels = np.ndarray((height, width, 3), np.uint8, buffer=plane, strides=(plane.line_size, 3, 1))
        return orient(pixels, display_matrix(frame))

    def _target_size(self, height: int, width: int) -> tuple[int, int]:
        if self.short_side is None:
            return height, width
        scale = self.short_side / min(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))


def display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """The 2 x 2 part `(a, b, c, d)` of a frame's display matrix, entries -1, 0 or 1; the identity when it has none.

    A stored point `(x, y)` is shown at `(a x + c y, b x + d y)`, x to the right and y down (ISO/IEC 14496-12, tkhd).
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    entries = np.frombuffer(bytes(data), dtype=np.int32)[[0, 1, 3, 4]]
    scale = np.abs(entries).max()
    if not scale:
        return 1, 0, 0, 1
    # Angles in between are rounded to the nearest quarter turn: a slanted picture has no rectangular frame.
    a, b, c, d = (entries / scale).round().astype(int).tolist()
    return (a, b, c, d) if abs(a * d - b * c) == 1 and abs(a) + abs(b) == 1 else (1, 0, 0, 1)


def orient(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Show a picture `(height, width, channels)` as a display matrix has it."""
    a, b, c, d = matrix
    if a == 0:  # x and y change places
        pixels, flip_x, flip_y = pixels.swapaxes(0, 1), c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


class PictureStore:
    """Pictures of one size, copied into one block of memory as they come.

    Args:
        capacity: Most pictures to come.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self._block: np.ndarray | None = None

    def add(self, picture: np.ndarray) -> int:
        """Copy a picture `(height, width, 3)`; returns its number."""
        if self._block is None:
            # NumPy asks the kernel for huge pages where torch does not: a third of the time for 16 HD pictures.
            self._block = np.empty((self.capacity, *picture.shape), dtype=np.uint8)
        self._block[self.count] = picture
        self.count += 1
        return self.count - 1

    def tensor(self, order: Sequence[int]) -> torch.Tensor:
        """The pictures numbered `order`, as `(len(order), 3, height, width)` uint8."""
        assert self._block is not None
        block = torch.from_numpy(self._block[: self.count])
        if list(order) != list(range(self.count)):
            block = block[torch.tensor(order, dtype=torch.long)]
        return block.permute(0, 3, 1, 2)


__all__ = ["FrameConverter", "PictureStore", "display_matrix", "orient"]
