# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Plots of localization and synchrony: maps on frames and spectrogram, and a timeline of offset and scores."""

import importlib.util
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from ..files import StrPath, check_free, whole_file
from ..model.errors_cavmae_sync import InferenceError, printable
from ..model.media_cavmae_sync import decode_media
from ..provenance import install_line
from .localize import LocalizationResult
from .sync import SyncResult

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
# Of the timeline: colour maps, colours and resolution.
_SIMILARITY, _CONTRAST = "viridis", "RdBu_r"
_LINE, _ACCENT, _FAINT = "#1f4e79", "#c2410c", "#9aa5b1"
_DOTS_PER_INCH, _TITLE_POINTS = 100, 11
# Joiners and choices between forms of a sign, which no font needs to have.
_UNSEEN = "\u200c\u200d\ufe0e\ufe0f"


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
    chosen = _choose(found, count, indices)
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
    path: StrPath | None = None,
    *,
    count: int = 12,
    size: int = 240,
    columns: int = 4,
    overwrite: bool = False,
) -> Image.Image:
    """A contact strip: moments of a video with the heat of their audio, each with its time and similarity.

    Args:
        found: From `localize`.
        video: The video that it was found in.
        path: PNG file to write as well.
        count: How many moments, evenly spread.
        size: Longer side of a frame in pixels.
        columns: Frames in a row.
        overwrite: Whether the file may replace an earlier one.
    """
    if path is not None:
        check_free(path, overwrite=overwrite)
    chosen = _choose(found, count, None)
    images = overlay_frames(found, video, size=size, indices=chosen)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = images[0].size
    text = 16
    sheet = Image.new(
        "RGB",
        (columns * (width + _MARGIN) + _MARGIN, rows * (height + text + _MARGIN) + _MARGIN + text + 4),
        _PAPER,
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((_MARGIN, 5), "Where in the frame the sound comes from: clear to pale yellow", fill=_INK, font=font)
    for place, (image, index) in enumerate(zip(images, chosen, strict=True)):
        x = _MARGIN + place % columns * (width + _MARGIN)
        y = _MARGIN + text + 4 + place // columns * (height + text + _MARGIN)
        sheet.paste(image, (x, y))
        caption = f"similarity {found.similarity[index]:.2f}" if found.present[index] else "no audio"
        draw.text((x + 2, y + height + 1), f"{found.times[index]:.2f} s   {caption}", fill=_INK, font=font)
    if path is not None:
        save_image(sheet, path, overwrite=overwrite)
    return sheet


def draw_spectrogram(
    found: LocalizationResult,
    path: StrPath | None = None,
    *,
    size: tuple[int, int] = (1200, 360),
    overwrite: bool = False,
) -> Image.Image:
    """The spectrogram of the video, with the heat of what the frames show; time to the right, pitch upwards.

    At each time the maps of all moments whose windows reach there are averaged, those nearest counting most.

    Args:
        found: From `localize`.
        path: PNG file to write as well.
        size: Width and height in pixels.
        overwrite: Whether the file may replace an earlier one.
    """
    if path is not None:
        check_free(path, overwrite=overwrite)
    left, bottom, top, right = 56, 34, 26, 10
    inner = (size[0] - left - right, size[1] - top - bottom)
    if min(inner) < 16:
        raise InferenceError(f"A spectrogram of {size[0]} x {size[1]} pixels is too small; use 200 x 120 or more.")
    levels = found.spectrogram.astype(np.float32)[::-1]
    low, high = np.quantile(levels, [0.05, 0.998])
    grey = np.clip((levels - low) / max(float(high - low), 1e-6), 0, 1) * 210
    image = Image.fromarray(grey.astype(np.uint8)).resize(inner, Image.Resampling.BILINEAR).convert("RGB")
    image = blend(image, joined_audio_maps(found)[::-1], (0.0, 0.0, 1.0, 1.0), ring=False)
    sheet = Image.new("RGB", size, _PAPER)
    sheet.paste(image, (left, top))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((left, 5), "When and at which pitch the frame's content is heard", fill=_INK, font=font)
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
        save_image(sheet, path, overwrite=overwrite)
    return sheet


def joined_audio_maps(found: LocalizationResult) -> np.ndarray:
    """The moments' heat on the time axis of the spectrogram, `(mel rows, columns)`; 0 where no window reaches."""
    rows, columns = found.audio_maps.shape[1:]
    length = float(found.window_times[0, 1] - found.window_times[0, 0])
    step = length / columns
    total = found.spectrogram.shape[1] * found.spectrogram_step
    count = max(1, round(total / step))
    sums, weights = np.zeros((rows, count)), np.zeros(count)
    # A triangle over the window: a moment says most about the audio at its own time.
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


def draw_timeline(
    result: SyncResult,
    path: StrPath | None = None,
    *,
    size: tuple[int, int] = (1200, 900),
    overwrite: bool = False,
) -> Image.Image:
    """Draw the matrix of windows and frames, the offset curve, and offset and score along time.

    Args:
        result: From `measure_sync`.
        path: PNG file to write as well; its folder is made, and the file is there whole or not at all.
        size: Width and height in pixels.
        overwrite: Whether the file may replace an earlier one.

    Raises:
        AlreadyExistsError: There is such a file, and `overwrite` is off.
        ImportError: matplotlib is not installed.
    """
    require_matplotlib()
    if path is not None:
        check_free(path, overwrite=overwrite)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Figures of their own, not pyplot's, so that several threads of a server can draw.
    figure = Figure(figsize=(size[0] / _DOTS_PER_INCH, size[1] / _DOTS_PER_INCH), dpi=_DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    # Fixed places: matplotlib's own layout takes longer than all the drawing.
    rows = figure.add_gridspec(
        3, 1, height_ratios=[1.3, 0.8, 0.8], left=0.06, right=0.94, top=0.9, bottom=0.065, hspace=0.42
    )
    top = rows[0].subgridspec(1, 2, width_ratios=[1, 1.4], wspace=0.16)
    _draw_matrix(figure, figure.add_subplot(top[0]), result)
    _draw_curve(figure.add_subplot(top[1]), result)
    _draw_band(figure, figure.add_subplot(rows[1]), result)
    _draw_scores(figure.add_subplot(rows[2]), result)
    name = _names(result)
    font = title_font(name, _TITLE_POINTS * _DOTS_PER_INCH / 72)
    # Below the name, which is drawn apart: matplotlib takes one font for it and gives boxes for signs that it lacks.
    verdict = f"{result.verdict}; mean similarity {result.similarity:.3f}"
    verdict = verdict if font is None else f" \n{verdict}"
    figure.suptitle(verdict, x=0.01, y=0.99, ha="left", va="top", fontsize=_TITLE_POINTS)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    if font is not None:
        shown = shorten(name, font, 0.98 * image.width)
        place = 0.01 * image.width, 0.01 * image.height + font.size  # on one line, whatever the font's height
        ImageDraw.Draw(image).text(place, shown, fill="black", font=font, anchor="ls")
    if path is not None:
        save_image(image, path, overwrite=overwrite)
    return image


def require_matplotlib() -> None:
    """Raise an `ImportError` that says what to install when matplotlib is absent."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(f"Drawing needs matplotlib: {install_line('plots')}")


def title_font(text: str, size: float, fonts: Sequence[str] | None = None) -> ImageFont.FreeTypeFont | None:
    """A font that has every sign of a text; `None` where there is none, or the text cannot be laid out.

    Args:
        text: Such as the name of a file in any script.
        size: Of the letters, pixels.
        fonts: Font files to choose from, best first; default: matplotlib's own, then this machine's.
    """
    text = unicodedata.normalize("NFC", text)
    turned = any(unicodedata.bidirectional(sign) in ("R", "AL") for sign in text)
    joined = turned or any(unicodedata.category(sign)[0] == "M" for sign in text)
    if joined and not features.check("raqm") or turned and not features.check("fribidi"):
        return None  # letters would stand apart, or in the wrong order
    signs = "".join(sorted({sign for sign in text if not sign.isspace() and sign not in _UNSEEN}))
    path = _font_with(signs, None if fonts is None else tuple(fonts))
    return None if path is None else ImageFont.truetype(path, size)


@lru_cache(maxsize=256)
def _font_with(signs: str, fonts: tuple[str, ...] | None) -> str | None:
    """The first font file that draws something for each of some signs."""
    from matplotlib import font_manager

    if fonts is not None:
        return next((path for path in fonts if _draws(path, signs)), None)
    own = font_manager.findfont("DejaVu Sans")
    return own if _draws(own, signs) else next((path for path in _installed_fonts() if _draws(path, signs)), None)


@lru_cache(maxsize=1)
def _installed_fonts() -> tuple[str, ...]:
    """This machine's font files, upright ones without serifs first."""
    from matplotlib import font_manager

    def rank(path: str) -> tuple[int, bool, str]:
        name = Path(path).name.lower()
        unlike = sum(word in name for word in ("bold", "italic", "oblique", "black", "light", "thin", "mono", "serif"))
        return unlike, "sans" not in name, path

    return tuple(sorted(font_manager.findSystemFonts(), key=rank))


def _draws(path: str, signs: str) -> bool:
    from matplotlib.ft2font import FT2Font, LoadFlags

    if "lastresort" in Path(path).name.lower():  # boxes for everything
        return False
    try:
        font = FT2Font(path)
        if not font.scalable or not all(font.get_char_index(ord(sign)) for sign in signs):
            return False
        # Fonts of coloured emoji have empty outlines.
        return all(font.load_char(ord(sign), flags=LoadFlags.NO_SCALE).width > 0 for sign in signs)
    except (OSError, RuntimeError, ValueError):  # no font, or one in a form of its own
        return False


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """A text cut to a width in pixels, with three dots where something is cut off."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _names(result: SyncResult) -> str:
    """The names of the video and, where it is another file, of its audio."""
    name = printable(Path(result.source).name)
    if result.audio_source is not None:
        name += f" with the audio of {printable(Path(result.audio_source).name)}"
    return name


def _draw_matrix(figure: Any, axis: Any, result: SyncResult) -> None:
    times, reach = result.matrix_times, result.max_offset
    half = (times[-1] - times[0]) / max(1, len(times) - 1) / 2
    low, high = times[0] - half, times[-1] + half
    image = axis.imshow(result.matrix, origin="lower", extent=(low, high, low, high), cmap=_SIMILARITY)
    axis.plot([low, high], [low, high], color="white", linewidth=0.8, linestyle=":")
    for offset in (-reach, reach):
        axis.plot([low, high], [low + offset, high + offset], color="white", linewidth=0.4, linestyle="--")
    if (late := result.verdict.offset) is not None and abs(late) >= result.hop / 2:
        axis.plot([low, high], [low + late, high + late], color=_ACCENT, linewidth=1)
    axis.set(xlim=(low, high), ylim=(low, high), xlabel="frame at, s", ylabel="audio at, s", title="similarity")
    figure.colorbar(image, ax=axis, shrink=0.9)


def _draw_curve(axis: Any, result: SyncResult) -> None:
    axis.axvline(0, color=_FAINT, linewidth=0.8)
    axis.axhline(0, color=_FAINT, linewidth=0.8)
    axis.plot(result.offsets, result.offset_scores, color=_LINE, marker=".", markersize=4, linewidth=1.2)
    if result.verdict.offset is not None:
        axis.axvline(
            result.verdict.offset, color=_ACCENT, linewidth=1.2, label=f"best: {result.verdict.offset:+.2f} s"
        )
        if result.interval is not None:
            axis.axvspan(*result.interval, color=_ACCENT, alpha=0.15, linewidth=0, label="90 % of draws")
        axis.legend(loc="best", fontsize=8, edgecolor="none", framealpha=0.9)
    axis.set(xlabel="audio late by, s", ylabel="fit, nats (0: chance)", title="offset")


def _draw_band(figure: Any, axis: Any, result: SyncResult) -> None:
    times, offsets = result.times, result.band_offsets
    step = result.hop / 2
    extent = (times[0] - step, times[-1] + step, offsets[0] - step, offsets[-1] + step)
    # What a frame has in common with all its windows would hide which one fits it.
    absent = ~np.isfinite(result.band)
    filled = np.where(absent, np.nan, result.band)
    count = np.maximum((~absent).sum(axis=1, keepdims=True), 1)
    relative = filled - np.where(absent, 0.0, filled).sum(axis=1, keepdims=True) / count
    limit = max(float(np.nanmax(np.abs(relative))), 1e-6) if np.isfinite(relative).any() else 1.0
    image = axis.imshow(
        relative.T, origin="lower", extent=extent, aspect="auto", cmap=_CONTRAST, vmin=-limit, vmax=limit,
        interpolation="nearest",
    )  # fmt: skip
    axis.axhline(0, color="black", linewidth=0.6, linestyle=":")
    axis.set(xlabel="", ylabel="audio late by, s", title="each frame's fit with the audio around it")
    # Beside the axis, not out of it, so that time runs alike above and below.
    place = axis.get_position()
    figure.colorbar(image, cax=figure.add_axes((place.x1 + 0.008, place.y0, 0.01, place.height)))


def _draw_scores(axis: Any, result: SyncResult) -> None:
    axis.axhline(result.similarity, color=_FAINT, linewidth=0.8, linestyle="--")
    axis.plot(result.times, result.scores, color=_LINE, linewidth=1.2)
    axis.set_ylabel("similarity", color=_LINE)
    axis.set(xlabel="time, s", title="each moment: similarity, and fit against moments nearby")
    axis.set_xlim(result.times[0] - result.hop / 2, result.times[-1] + result.hop / 2)
    other = axis.twinx()
    other.axhline(0, color=_ACCENT, linewidth=0.5, alpha=0.5)
    other.plot(result.times, result.contrast, color=_ACCENT, linewidth=0.9, alpha=0.8)
    other.set_ylabel("fit, nats", color=_ACCENT)


def save_image(image: Image.Image, path: StrPath, *, overwrite: bool = False) -> Path:
    """Write a PNG file, whole or not at all; `overwrite` replaces an earlier one."""
    with whole_file(path, overwrite=overwrite) as partial:
        image.save(partial, format="PNG")
    return Path(path)
