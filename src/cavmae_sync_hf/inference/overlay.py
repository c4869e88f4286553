# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How do maps of sounds and pictures look on the frames and on the spectrogram of a film?"""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..model.errors_cavmae_sync import InferenceError
from ..model.media_cavmae_sync import decode_media
from .localize import LocalizationResult
from .picture_files import save_image

__all__ = ["blend", "draw_spectrogram", "draw_strip", "joined_audio_maps", "overlay_frames", "ticks"]

# Cold to hot: clear, violet, red, orange, pale yellow, at equal steps, each with its opacity.
_HEAT = (
    ((60, 0, 90), 0.0),
    ((110, 20, 160), 0.35),
    ((220, 40, 60), 0.6),
    ((255, 150, 30), 0.72),
    ((255, 245, 170), 0.8),
)
_PAPER, _INK, _FRAME = (18, 20, 24), (230, 232, 235), (150, 158, 168)
_DIMMED = 0.45  # brightness of what the model does not see
_MARGIN = 8


def overlay_frames(
    found: LocalizationResult,
    video: Any,
    count: int = 12,
    size: int = 320,
    *,
    indices: Sequence[int] | None = None,
) -> list[Image.Image]:
    """Frames with the heat of their sound on them.

    Args:
        found: From `localize`.
        video: The film that it was found in.
        count: How many moments, evenly spread.
        size: Longer side of a picture in pixels.
        indices: These moments instead.

    Returns:
        One picture per moment. What the model does not see is darker; a ring marks the highest patch where it is hot.

    Raises:
        InferenceError: There is no such moment.
        MediaError: The film cannot be read.
    """
    chosen = _choose(found, count, indices)
    start, end = found.span
    begin = start or 0.0
    times = [max(0.0, float(found.times[index]) - begin) for index in chosen]
    media = decode_media(video, frame_times=times, start=start, end=end, want_audio=False, damaged="keep")
    assert media.frames is not None  # want_video makes its absence an error
    frames = media.frames.permute(0, 2, 3, 1).numpy()
    heat = found.heat()
    pictures = []
    for frame, index in zip(frames, chosen, strict=True):
        shown = fit(Image.fromarray(frame), size)
        pictures.append(blend(shown, heat[index] if found.present[index] else None, found.region))
    return pictures


def _choose(found: LocalizationResult, count: int, indices: Sequence[int] | None) -> list[int]:
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
    """A picture scaled so that its longer side has `size` pixels."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def blend(
    image: Image.Image, heat: np.ndarray | None, region: tuple[float, float, float, float], ring: bool = True
) -> Image.Image:
    """A picture with heat on a part of it.

    Args:
        image: RGB.
        heat: `(rows, columns)`, 0 and below cold, 1 and above hottest; `None` for none.
        region: Left, top, right and bottom of the part it covers, as shares of the picture.
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
        ImageDraw.Draw(result).ellipse((x - radius, y - radius, x + radius, y + radius), outline=_INK, width=line)
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


def draw_strip(
    found: LocalizationResult,
    video: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    count: int = 12,
    size: int = 240,
    columns: int = 4,
) -> Image.Image:
    """A contact strip: moments of a film with the heat of their sound, each with its time and similarity.

    Args:
        found: From `localize`.
        video: The film that it was found in.
        path: PNG file to write as well.
        count: How many moments, evenly spread.
        size: Longer side of a frame in pixels.
        columns: Frames in a row.
    """
    chosen = _choose(found, count, None)
    pictures = overlay_frames(found, video, size=size, indices=chosen)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    text = 16
    sheet = Image.new(
        "RGB",
        (columns * (width + _MARGIN) + _MARGIN, rows * (height + text + _MARGIN) + _MARGIN + text + 4),
        _PAPER,
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((_MARGIN, 5), "Where in the picture is the sound: clear to pale yellow", fill=_INK, font=font)
    for place, (picture, index) in enumerate(zip(pictures, chosen, strict=True)):
        x = _MARGIN + place % columns * (width + _MARGIN)
        y = _MARGIN + text + 4 + place // columns * (height + text + _MARGIN)
        sheet.paste(picture, (x, y))
        draw.text((x + 2, y + height + 1), _caption(found, index), fill=_INK, font=font)
    if path is not None:
        save_image(sheet, path)
    return sheet


def _caption(found: LocalizationResult, index: int) -> str:
    time = f"{found.times[index]:.2f} s"
    return f"{time}   similarity {found.similarity[index]:.2f}" if found.present[index] else f"{time}   no sound"


def draw_spectrogram(
    found: LocalizationResult, path: str | os.PathLike[str] | None = None, *, size: tuple[int, int] = (1200, 360)
) -> Image.Image:
    """The spectrogram of the film, with the heat of what the pictures show; time to the right, pitch upwards.

    At each time the maps of all moments whose windows reach there are averaged, those nearest counting most.

    Args:
        found: From `localize`.
        path: PNG file to write as well.
        size: Width and height in pixels.
    """
    left, bottom, top, right = 56, 34, 26, 10
    inner = (size[0] - left - right, size[1] - top - bottom)
    if min(inner) < 16:
        raise InferenceError(f"A spectrogram of {size[0]} x {size[1]} pixels is too small; use 200 x 120 or more.")
    levels = found.spectrogram.astype(np.float32)[::-1]
    low, high = np.quantile(levels, [0.05, 0.998])
    grey = np.clip((levels - low) / max(float(high - low), 1e-6), 0, 1) * 210
    picture = Image.fromarray(grey.astype(np.uint8)).resize(inner, Image.Resampling.BILINEAR).convert("RGB")
    joined = joined_audio_maps(found)
    picture = blend(picture, joined[::-1], (0.0, 0.0, 1.0, 1.0), ring=False)
    sheet = Image.new("RGB", size, _PAPER)
    sheet.paste(picture, (left, top))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((left, 5), "When and at which pitch in the sound is the picture", fill=_INK, font=font)
    begin = found.spectrogram_start
    seconds = found.spectrogram.shape[1] * found.spectrogram_step
    for time in ticks(begin, begin + seconds):
        x = left + (time - begin) / seconds * inner[0]
        draw.line((x, top + inner[1], x, top + inner[1] + 4), fill=_FRAME)
        draw.text((x, top + inner[1] + 5), f"{time:g}", fill=_INK, font=font, anchor="ma")
    draw.text((left + inner[0], size[1] - 3), "s", fill=_INK, font=font, anchor="rd")
    draw.text((6, top), "high", fill=_INK, font=font)
    draw.text((6, top + inner[1]), "low", fill=_INK, font=font, anchor="ld")
    draw.text((6, top + inner[1] / 2), "mel", fill=_FRAME, font=font, anchor="lm")
    if path is not None:
        save_image(sheet, path)
    return sheet


def joined_audio_maps(found: LocalizationResult) -> np.ndarray:
    """The moments' heat on the time axis of the spectrogram, `(mel rows, columns)`; 0 where no window reaches."""
    rows, columns = found.audio_maps.shape[1:]
    length = float(found.window_times[0, 1] - found.window_times[0, 0])
    step = length / columns
    total = found.spectrogram.shape[1] * found.spectrogram_step
    count = max(1, round(total / step))
    sums, weights = np.zeros((rows, count)), np.zeros(count)
    # A triangle over the window: a moment says most about the sound at its own time.
    shape = 1 - np.abs(np.arange(columns) + 0.5 - columns / 2) / (columns / 2 + 0.5)
    for maps, (start, _), here in zip(found.heat("audio"), found.window_times, found.present, strict=True):
        if not here:
            continue
        places = round((start - found.spectrogram_start) / step) + np.arange(columns)
        inside = (places >= 0) & (places < count)
        sums[:, places[inside]] += maps[:, inside] * shape[inside]
        weights[places[inside]] += shape[inside]
    return sums / np.maximum(weights, 1e-9)


def ticks(start: float, end: float, most: int = 10) -> list[float]:
    """Round times between two, at most so many."""
    span = max(end - start, 1e-3)
    step = next(
        step
        for power in range(-3, 8)
        for step in (1 * 10.0**power, 2 * 10.0**power, 5 * 10.0**power)
        if span / step <= most
    )
    first = int(np.ceil(start / step - 1e-9))
    return [round(number * step, 6) for number in range(first, int(np.floor(end / step + 1e-9)) + 1)]
