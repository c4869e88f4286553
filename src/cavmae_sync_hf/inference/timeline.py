# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How does the synchrony of a film look? One picture: the matrix, the offset curve, and both along time."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .picture_files import save_image
from .sync import SyncResult

__all__ = ["draw_timeline", "require_matplotlib"]

_SIMILARITY, _CONTRAST = "viridis", "RdBu_r"
_LINE, _ACCENT, _FAINT = "#1f4e79", "#c2410c", "#9aa5b1"
_DOTS_PER_INCH = 100


def draw_timeline(
    result: SyncResult, path: str | os.PathLike[str] | None = None, *, size: tuple[int, int] = (1200, 900)
) -> Image.Image:
    """Draw the matrix of windows and frames, the offset curve, and offset and score along time.

    Args:
        result: From `measure_sync`.
        path: PNG file to write as well; its folder is made, and the file is there whole or not at all.
        size: Width and height in pixels.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require_matplotlib()
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
    figure.suptitle(_title(result), x=0.01, y=0.99, ha="left", va="top", fontsize=11)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    if path is not None:
        save_image(image, path)
    return image


def require_matplotlib() -> None:
    """Raise an `ImportError` that says what to install when matplotlib is absent."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("The timeline picture needs matplotlib: pip install matplotlib")


def _title(result: SyncResult) -> str:
    name = Path(result.source).name
    if result.audio_source is not None:
        name += f" with the sound of {Path(result.audio_source).name}"
    # A dollar sign would begin a formula.
    name = "".join(letter if letter.isprintable() else "?" for letter in name).replace("$", r"\$")
    return (name if len(name) < 70 else name[:67] + "...") + f"\n{_verdict(result)}"


def _verdict(result: SyncResult) -> str:
    score = f"mean similarity {result.similarity:.3f}"
    if result.offset is None:
        return f"offset cannot be told; {score}"
    side = "late" if result.offset > 0 else "early"
    words = f"sound {abs(result.offset):.2f} s {side}" if abs(result.offset) >= result.hop / 2 else "sound in step"
    if result.confidence < 0.5:
        words = f"offset uncertain, best guess: {words}"
    return f"{words} (to {result.resolution:.2g} s, confidence {result.confidence:.0%}); {score}"


def _draw_matrix(figure: Any, axis: Any, result: SyncResult) -> None:
    times, reach = result.matrix_times, result.max_offset
    half = (times[-1] - times[0]) / max(1, len(times) - 1) / 2
    low, high = times[0] - half, times[-1] + half
    image = axis.imshow(result.matrix, origin="lower", extent=(low, high, low, high), cmap=_SIMILARITY)
    axis.plot([low, high], [low, high], color="white", linewidth=0.8, linestyle=":")
    for offset in (-reach, reach):
        axis.plot([low, high], [low + offset, high + offset], color="white", linewidth=0.4, linestyle="--")
    if result.offset is not None and abs(result.offset) >= result.hop / 2:
        axis.plot([low, high], [low + result.offset, high + result.offset], color=_ACCENT, linewidth=1)
    axis.set(xlim=(low, high), ylim=(low, high), xlabel="picture at, s", ylabel="sound at, s", title="similarity")
    figure.colorbar(image, ax=axis, shrink=0.9)


def _draw_curve(axis: Any, result: SyncResult) -> None:
    axis.axvline(0, color=_FAINT, linewidth=0.8)
    axis.axhline(0, color=_FAINT, linewidth=0.8)
    axis.plot(result.offsets, result.offset_scores, color=_LINE, marker=".", markersize=4, linewidth=1.2)
    if result.offset is not None:
        axis.axvline(result.offset, color=_ACCENT, linewidth=1.2, label=f"best: {result.offset:+.2f} s")
        if result.interval is not None:
            axis.axvspan(*result.interval, color=_ACCENT, alpha=0.15, linewidth=0, label="90 % of draws")
        axis.legend(loc="best", fontsize=8, edgecolor="none", framealpha=0.9)
    axis.set(xlabel="sound late by, s", ylabel="fit, nats (0: chance)", title="offset")


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
    axis.set(xlabel="", ylabel="sound late by, s", title="each picture's fit with the sound around it")
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
