# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Heat on frames: how maps are coloured, wherever they are shown."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..model.errors_cavmae_sync import InferenceError
from ..model.media_cavmae_sync import decode_media
from .localize import LocalizationResult

# Cold to hot: clear, violet, red, orange, pale yellow, at equal steps, each with its opacity.
_HEAT = (
    ((60, 0, 90), 0.0),
    ((110, 20, 160), 0.35),
    ((220, 40, 60), 0.6),
    ((255, 150, 30), 0.72),
    ((255, 245, 170), 0.8),
)
_RING = (230, 232, 235)
_DIMMED = 0.45  # brightness of what the model does not see


def overlay_frames(
    found: LocalizationResult,
    video: Any,
    count: int = 12,
    size: int = 320,
    *,
    indices: Sequence[int] | None = None,
) -> list[Image.Image]:
    """Frames with the heat of their audio on them.

    Args:
        found: From `localize`.
        video: The video that it was found in.
        count: How many moments, evenly spread.
        size: Longer side of an image in pixels.
        indices: These moments instead.

    Returns:
        One image per moment. What the model does not see is darker; a ring marks the highest patch where it is hot.

    Raises:
        InferenceError: There is no such moment.
        MediaError: The video cannot be read.
    """
    chosen = choose_moments(found, count, indices)
    start, end = found.span
    begin = start or 0.0
    times = [max(0.0, float(found.times[index]) - begin) for index in chosen]
    media = decode_media(video, frame_times=times, start=start, end=end, want_audio=False, damaged="keep")
    assert media.frames is not None  # want_video makes its absence an error
    frames = media.frames.permute(0, 2, 3, 1).numpy()
    heat = found.heat()
    images = []
    for frame, index in zip(frames, chosen, strict=True):
        shown = fit(Image.fromarray(frame), size)
        images.append(blend(shown, heat[index] if found.present[index] else None, found.region))
    return images


def choose_moments(found: LocalizationResult, count: int, indices: Sequence[int] | None = None) -> list[int]:
    """Numbers of so many moments, evenly spread, or those that are given, checked."""
    total = len(found.times)
    if indices is None:
        if count < 1:
            raise InferenceError(f"count is {count}; show at least one moment.")
        # The middles of equal spans.
        return sorted({int((number + 0.5) * total / min(count, total)) for number in range(min(count, total))})
    wrong = [index for index in indices if not 0 <= index < total]
    if wrong or not len(indices):
        raise InferenceError(f"There are moments 0 to {total - 1}; got {list(indices)}.")
    return [int(index) for index in indices]


def fit(image: Image.Image, size: int) -> Image.Image:
    """An image scaled so that its longer side has `size` pixels."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def blend(
    image: Image.Image, heat: np.ndarray | None, region: tuple[float, float, float, float], ring: bool = True
) -> Image.Image:
    """An image with heat on a part of it.

    Args:
        image: RGB.
        heat: `(rows, columns)`, 0 and below cold, 1 and above hottest; `None` for none.
        region: Left, top, right and bottom of the part it covers, as shares of the image.
        ring: Whether a hot highest patch gets a ring.
    """
    width, height = image.size
    left, right = round(region[0] * width), round(region[2] * width)
    top, bottom = round(region[1] * height), round(region[3] * height)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    outside = np.full((height, width, 1), _DIMMED, dtype=np.float32)
    outside[top:bottom, left:right] = 1.0
    pixels = pixels * outside
    if heat is not None and right > left and bottom > top:
        stretched = stretch(heat, (right - left, bottom - top))
        colours, opacity = colour(stretched)
        part = pixels[top:bottom, left:right]
        pixels[top:bottom, left:right] = part * (1 - opacity[..., None]) + colours * opacity[..., None]
    result = Image.fromarray(pixels.round().astype(np.uint8))
    if ring and heat is not None and float(heat.max()) >= 0.5:
        row, column = np.unravel_index(int(heat.argmax()), heat.shape)
        x = left + (column + 0.5) / heat.shape[1] * (right - left)
        y = top + (row + 0.5) / heat.shape[0] * (bottom - top)
        radius, line = max(4, width // 40), max(1, width // 200)
        draw, place = ImageDraw.Draw(result), (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(tuple(np.add(place, (-1, -1, 1, 1))), outline="black", width=line + 2)  # on light ground, too
        draw.ellipse(place, outline=_RING, width=line)
    return result


def stretch(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values `(rows, columns)` at `(width, height)` pixels, smooth between the patches' centres."""
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def colour(heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours `(..., 3)` in 0 to 255 and opacities in 0 to 1 of heat in 0 to 1."""
    table, opacity = _heat_table()
    places = (np.clip(heat, 0.0, 1.0) * (len(table) - 1)).astype(np.intp)
    return table[places], opacity[places]


@lru_cache(maxsize=1)
def _heat_table() -> tuple[np.ndarray, np.ndarray]:
    at, fine = np.linspace(0, 1, len(_HEAT)), np.linspace(0, 1, 256)
    colours = np.array([stop for stop, _ in _HEAT], dtype=np.float32)
    table = np.stack([np.interp(fine, at, colours[:, channel]) for channel in range(3)], axis=1)
    return table.astype(np.float32), np.interp(fine, at, [value for _, value in _HEAT]).astype(np.float32)
