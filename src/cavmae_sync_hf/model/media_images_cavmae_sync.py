# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Decoded frames become upright RGB images, as a player shows them.

Colours follow the matrix and the range that the file names, BT.601 and limited range where it names none; levels are
those of the file (no tone mapping of HDR), alpha is dropped, and both fields of an interlaced frame stay: so FFmpeg's
command line converts, too.
"""

import math
from typing import Any

import numpy as np

from .errors_cavmae_sync import MediaError
from .media_source_cavmae_sync import MAX_FRAME_PIXELS

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

# Pixels that are nearer to square than this are square: encoders of scaled video round its shape to whole pixels.
_SQUARE_TOLERANCE = 0.02
# No pixel is further from square than this; a file that says so is wrong.
_MAX_PIXEL_ASPECT = 4.0
# Matrices by their numbers in ITU-T H.273: those that FFmpeg's converter knows, those that it takes another one for,
# and those that are no such thing, so that nothing stands for them.
_KNOWN_MATRICES = frozenset({0, 1, 2, 4, 5, 6, 7, 9})
_MATRIX_FOR = {10: 9}  # BT.2020 with constant luminance is shown as that without
_MATRIX_OF_PRIMARIES = {1: 1, 4: 4, 5: 5, 6: 6, 7: 7, 9: 9}
_BY_PRIMARIES = frozenset({12, 13})
_OTHER_TRANSFORMS = frozenset({8, 11, 14, 15, 16, 17})
_UNSPECIFIED = 2
# FFmpeg ends the process when it is asked to convert these.
_DEADLY_FORMATS = frozenset({"yaf16le", "yaf16be", "yaf32le", "yaf32be"})


class FrameConverter:
    """Turns decoded frames into upright RGB images of one size, that of the first.

    Args:
        name: Name of the file, for messages.
        short_side: Scale the shorter side to this many pixels (bicubic) while converting; `None` keeps the size.
        pixel_aspect: Width of a stored pixel by its height. Images have square pixels: where stored ones are not,
            frames are made wider or higher, never smaller. Frames of square pixels are left as they are.
    """

    def __init__(self, name: str, short_side: int | None = None, pixel_aspect: float = 1.0) -> None:
        self.name = name
        self.short_side = short_side
        is_square = abs(pixel_aspect - 1.0) < _SQUARE_TOLERANCE
        is_possible = 1 / _MAX_PIXEL_ASPECT <= pixel_aspect <= _MAX_PIXEL_ASPECT
        self.pixel_aspect = pixel_aspect if is_possible and not is_square else 1.0
        self.size: tuple[int, int] | None = None  # (height, width) of all images

    def __call__(self, frame: Any) -> np.ndarray:
        """Convert one frame.

        Returns:
            uint8 `(height, width, 3)`, rotated as the file says it is shown; a view of FFmpeg's memory, to be copied.

        Raises:
            MediaError: FFmpeg cannot turn frames of this format or with these colours into RGB.
        """
        a, b, c, d = _display_matrix(frame)
        is_turned = a == 0  # x and y change places
        if self.size is None:
            height, width = self._fitted(frame)
            self.size = (width, height) if is_turned else (height, width)
        height, width = self.size[::-1] if is_turned else self.size
        plane = self._rgb(frame, width, height).planes[0]
        pixels = np.ndarray((height, width, 3), np.uint8, buffer=plane, strides=(plane.line_size, 3, 1))
        if is_turned:
            pixels, flip_x, flip_y = pixels.swapaxes(0, 1), c < 0, b < 0
        else:
            flip_x, flip_y = a < 0, d < 0
        return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]

    def _fitted(self, frame: Any) -> tuple[int, int]:
        """Height and width of images before rotation."""
        height, width = frame.height / min(1.0, self.pixel_aspect), frame.width * max(1.0, self.pixel_aspect)
        if self.short_side is not None:
            largest = max(1.0, math.sqrt(MAX_FRAME_PIXELS / (height * width)))  # of a frame that is a mere line
            scale = min(self.short_side / min(height, width), largest)
            height, width = height * scale, width * scale
        return max(1, round(height)), max(1, round(width))

    def _rgb(self, frame: Any, width: int, height: int) -> Any:
        """The frame as FFmpeg's `rgb24`."""
        name = frame.format.name
        if name in _DEADLY_FORMATS:
            raise self._refused(name, "FFmpeg has no conversion")
        _name_known_matrix(frame)
        scaled = (height, width) != (frame.height, frame.width)
        try:
            if scaled and frame.interlaced_frame:
                # FFmpeg would scale each field for itself, and lay the small fields into each other.
                frame = frame.reformat(format="rgb24", threads=1)
                frame = av.VideoFrame.from_ndarray(frame.to_ndarray(), format="rgb24")
            # One thread: converters that have threads, when freed in a forked process, wait for them for ever.
            interpolation = {"interpolation": "BICUBIC"} if scaled else {}
            return frame.reformat(width=width, height=height, format="rgb24", threads=1, **interpolation)
        except (av.error.FFmpegError, ValueError) as error:
            reason = str(error)
            if frame.colorspace in _OTHER_TRANSFORMS:
                reason = f"their colours are coded by transform {frame.colorspace} of ITU-T H.273"
            raise self._refused(name, reason) from error

    def _refused(self, name: str, reason: str) -> MediaError:
        return MediaError(
            f"{self.name}: frames of format {name} cannot be turned into RGB ({reason}); convert the file with ffmpeg "
            "-pix_fmt yuv420p."
        )


def _name_known_matrix(frame: Any) -> None:
    """Give a frame whose colour matrix FFmpeg does not know the one that stands for it."""
    matrix = frame.colorspace
    if matrix in _KNOWN_MATRICES or matrix in _OTHER_TRANSFORMS:
        return
    if matrix in _BY_PRIMARIES:
        frame.colorspace = _MATRIX_OF_PRIMARIES.get(frame.color_primaries, _UNSPECIFIED)
    else:
        frame.colorspace = _MATRIX_FOR.get(matrix, _UNSPECIFIED)


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """The 2 x 2 part `(a, b, c, d)` of a frame's display matrix, entries -1, 0 or 1; the identity when it has none.

    A stored point `(x, y)` is shown at `(a x + c y, b x + d y)`, x to the right and y down (ISO/IEC 14496-12, tkhd).
    """
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV refuses all side data of a frame where it does not know one kind of it; it tells the angle still.
        turns = round(frame.rotation / 90) % 4  # counterclockwise
        return ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[turns]
    if data is None:
        return 1, 0, 0, 1
    entries = np.frombuffer(bytes(data), dtype=np.int32)[[0, 1, 3, 4]]
    scale = np.abs(entries.astype(np.int64)).max()
    if not scale:
        return 1, 0, 0, 1
    # Angles in between are rounded to the nearest quarter turn: a slanted image has no rectangular frame.
    a, b, c, d = (entries / scale).round().astype(int).tolist()
    return (a, b, c, d) if abs(a * d - b * c) == 1 and abs(a) + abs(b) == 1 else (1, 0, 0, 1)
