# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Decoded frames become upright RGB images."""

from typing import Any

import numpy as np

from .errors_cavmae_sync import MediaError

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]


class FrameConverter:
    """Turns decoded frames into upright RGB images of one size.

    Args:
        name: Name of the file, for messages.
        short_side: Scale the shorter side to this many pixels (bicubic) while converting; `None` keeps the size.
    """

    def __init__(self, name: str, short_side: int | None = None) -> None:
        self.name = name
        self.short_side = short_side
        self.size: tuple[int, int] | None = None  # (height, width) before rotation

    def __call__(self, frame: Any) -> np.ndarray:
        """Convert one frame.

        Returns:
            uint8 `(height, width, 3)`, rotated as the file says it is shown; a view of FFmpeg's memory, to be copied.
        """
        if self.size is None:
            scale = 1.0 if self.short_side is None else self.short_side / min(frame.height, frame.width)
            self.size = max(1, round(frame.height * scale)), max(1, round(frame.width * scale))
        height, width = self.size
        scaled = {"interpolation": "BICUBIC"} if (height, width) != (frame.height, frame.width) else {}
        try:
            # One thread: converters that have threads, when freed in a forked process, wait for them for ever.
            image = frame.reformat(width=width, height=height, format="rgb24", threads=1, **scaled)
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(
                f"{self.name}: frames of format {frame.format.name} cannot be turned into RGB ({error}); "
                "convert the file with ffmpeg -pix_fmt yuv420p."
            ) from error
        plane = image.planes[0]
        pixels = np.ndarray((height, width, 3), np.uint8, buffer=plane, strides=(plane.line_size, 3, 1))
        a, b, c, d = _display_matrix(frame)
        if a == 0:  # x and y change places
            pixels, flip_x, flip_y = pixels.swapaxes(0, 1), c < 0, b < 0
        else:
            flip_x, flip_y = a < 0, d < 0
        return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
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
    # Angles in between are rounded to the nearest quarter turn: a slanted image has no rectangular frame.
    a, b, c, d = (entries / scale).round().astype(int).tolist()
    return (a, b, c, d) if abs(a * d - b * c) == 1 and abs(a) + abs(b) == 1 else (1, 0, 0, 1)
