# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Plots of localization and synchrony: maps on frames and spectrogram, and a timeline of offset and scores.

Each has the name of the file, scales for its colours, axes with units, and a sentence on how to read it. `draw_*` give
and write images; `*_figure` give the matplotlib figures, without the name of the file, to be changed first.
"""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..files import StrPath, check_free, whole_file
from ..model.errors_cavmae_sync import InferenceError, printable
from ..provenance import require_package
from .heat import blend, choose_moments, overlay_frames
from .lettering import shorten, title_font
from .localize import LocalizationResult
from .moments import format_clock
from .strength import NO_SOURCE
from .sync import SyncResult

_PAPER, _INK, _FRAME, _WARN = "#121418", "#e6e8eb", "#969ea8", "#f0b45a"
# Of the timeline: colour maps and colours.
_SIMILARITY, _CONTRAST = "viridis", "RdBu_r"
_LINE, _ACCENT, _FAINT = "#1f4e79", "#c2410c", "#9aa5b1"
_DOTS_PER_INCH, _TITLE_POINTS, _POINTS = 100, 11, 9
# Pixels: around everything, of the lines at the top, of a line of text, and of a letter on average.
_MARGIN, _HEADER, _TEXT, _LETTER = 16, 56, 17, 6.9
# Pixels from one time written along an axis to the next.
_LABEL = 75
# Narrower sheets cannot hold their legend.
_LEAST_WIDTH = 900
_HERTZ = (50, 100, 200, 500, 1000, 2000, 4000, 8000, 16000, 32000)


class _Sheet:
    """A figure laid out in pixels from the top left, with a line below the name and a note at the bottom.

    Args:
        size: Width and height of what is between them.
        line: What stands below the name of the file.
        note: How to read it.
        dark: Whether the letters are light.
    """

    def __init__(self, size: tuple[int, int], line: str, note: str, *, dark: bool = False) -> None:
        matplotlib = require_package("matplotlib.figure", "plots", "Drawing")
        self.dark, self.ink = dark, _INK if dark else "black"
        self.width = size[0]
        wrapped = textwrap.wrap(note, int((self.width - 2 * _MARGIN) / _LETTER))
        self.bottom = _HEADER + size[1]
        self.height = self.bottom + len(wrapped) * _TEXT + _MARGIN
        # Figures of their own, not pyplot's, so that several threads of a server can draw.
        self.figure = matplotlib.Figure(
            figsize=(self.width / _DOTS_PER_INCH, self.height / _DOTS_PER_INCH),
            dpi=_DOTS_PER_INCH,
            facecolor=_PAPER if dark else "white",
        )
        self.words(_MARGIN, 32, line, size=_TITLE_POINTS)
        for number, text in enumerate(wrapped):
            self.words(_MARGIN, self.bottom + number * _TEXT, text, colour=_FRAME if dark else "#4b5563")

    def words(self, x: float, y: float, text: str, *, size: float = _POINTS, colour: str | None = None) -> None:
        """Text whose top left corner is there."""
        # Names of files may hold dollar signs, which are no formula.
        self.figure.text(
            x / self.width, 1 - y / self.height, text, fontsize=size, color=colour or self.ink, va="top", ha="left",
            parse_math=False,
        )  # fmt: skip

    def axes(self, x: float, y: float, width: float, height: float, **options: Any) -> Any:
        """Axes that fill a part of the sheet."""
        place = x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height
        axis = self.figure.add_axes(place, facecolor="none" if self.dark else "white", **options)
        if self.dark:
            axis.tick_params(colors=self.ink, labelsize=_POINTS)
            axis.xaxis.label.set_color(self.ink)
            axis.yaxis.label.set_color(self.ink)
            for spine in axis.spines.values():
                spine.set_color(_FRAME)
        return axis

    def picture(self, image: Image.Image, x: float, y: float) -> Any:
        """An image, pixel by pixel."""
        axis = self.axes(x, y, *image.size)
        axis.imshow(np.asarray(image), aspect="auto", interpolation="nearest")
        axis.set_axis_off()
        return axis

    def scale(self, x: float, y: float, width: float, height: float, label: str) -> Any:
        """The scale of heat, as it looks on grey: upright where it is higher than wide."""
        upright = height > width
        ramp = np.linspace(0, 1, 256)[None]
        strip = blend(Image.new("RGB", (256, 1), (110, 110, 110)), ramp, (0.0, 0.0, 1.0, 1.0), ring=False)
        pixels = np.asarray(strip)
        axis = self.axes(x, y, width, height)
        if upright:
            axis.imshow(pixels.transpose(1, 0, 2), aspect="auto", extent=(0, 1, 0, 1), origin="lower")
            axis.set(xticks=[], yticks=[0, 0.5, 1])
            axis.yaxis.tick_right()
            axis.yaxis.set_label_position("right")
            axis.set_ylabel(label, fontsize=_POINTS)
        else:
            axis.imshow(pixels, aspect="auto", extent=(0, 1, 0, 1))
            axis.set(yticks=[], xticks=[0, 0.5, 1])
            axis.set_xlabel(label, fontsize=_POINTS, loc="left")
        return axis


def draw_strip(
    found: LocalizationResult,
    video: Any,
    path: StrPath | None = None,
    *,
    count: int = 12,
    size: int = 320,
    columns: int = 4,
    overwrite: bool = False,
) -> Image.Image:
    """A contact strip: moments of a video with the heat of their audio, each with its time and strength.

    Args:
        found: From `localize`.
        video: The video that it was found in.
        path: PNG file to write as well.
        count: How many moments, evenly spread.
        size: Longer side of a frame in pixels.
        columns: Frames in a row.
        overwrite: Whether the file may replace an earlier one.

    Raises:
        AlreadyExistsError: There is such a file, and `overwrite` is off.
        InferenceError: `count` is below 1.
        MediaError: The video cannot be read.
        ImportError: matplotlib is not installed.
    """
    return _draw(
        lambda: strip_figure(found, video, count=count, size=size, columns=columns), _names(found), path, overwrite
    )


def strip_figure(found: LocalizationResult, video: Any, *, count: int = 12, size: int = 320, columns: int = 4) -> Any:
    """The figure of `draw_strip`."""
    chosen = choose_moments(found, count)
    images = overlay_frames(found, video, size=size, indices=chosen)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = images[0].size
    across, down = width + _MARGIN, height + _TEXT + _MARGIN
    legend = 76
    sources = int(found.has_source[chosen].sum())
    times = f"{format_clock(found.times[0])} to {format_clock(found.times[-1])}"
    sheet = _Sheet(
        (max(_MARGIN + columns * across, _LEAST_WIDTH), rows * down + legend),
        *_strip_words(found, f"{len(chosen)} of {len(found.times)} moments, {times}; {sources} of them"),
        dark=True,
    )
    for place, (image, index) in enumerate(zip(images, chosen, strict=True)):
        x = _MARGIN + place % columns * across
        y = _HEADER + place // columns * down
        sheet.picture(image, x, y)
        sheet.words(x, y + height + 3, format_clock(found.times[index]), size=_POINTS)
        words, weak = _strength_words(found, index, short=width < 240)
        sheet.words(x + 54, y + height + 3, words, colour=_WARN if weak else None)
    top = _HEADER + rows * down + 4
    other = "audio" if found.text is None else "words"
    measure = {
        "relevance": f"what the place contributes to the similarity with the {other}",
        "occlusion": "fall of the similarity without the place",
        "local": "predicted fall of the similarity without the place",
    }.get(found.method, f"cosine with the {other}")
    sheet.scale(_MARGIN, top, 300, 12, f"{measure}, share of the moment's largest")
    ring = sheet.axes(_MARGIN + 330, top - 4, 20, 20)
    ring.set(xlim=(-1, 1), ylim=(-1, 1))
    ring.set_axis_off()
    ring.plot(0, 0, "o", markersize=10, markerfacecolor="none", markeredgecolor=_INK)
    where = "where there is a source" if found.text is None else "where it is seen"
    sheet.words(_MARGIN + 358, top - 1, f"ring: the warmest place, {where}", colour=_INK)
    if found.region != (0.0, 0.0, 1.0, 1.0):
        sheet.words(_MARGIN + 358, top + _TEXT, "darker edges: not seen by the model", colour=_INK)
    return sheet.figure


def _strip_words(found: LocalizationResult, count: str) -> tuple[str, str]:
    """Title of the contact strip, and how to read it."""
    least = f"{found.least_strength:g}"
    if found.text is not None:
        return (
            f'Where "{printable(found.text)}" is: {count} show it',
            "How to read it: the warmer a place, the more of it fits the words. Strength (nats) is the "
            f"log-odds that they are true of the frame; below {least} it is not seen, and the heat is dimmed.",
        )
    return (
        f"Where the sound comes from: {count} have a source in the frame",
        "How to read it: the warmer a place, the more of it fits the audio. Strength (nats) says how "
        f"much better the two fit than without sound or place; below {least} there is no source, and the heat is "
        "dimmed. Silent moments have no heat.",
    )


def _strength_words(found: LocalizationResult, index: int, *, short: bool) -> tuple[str, bool]:
    """What is said of a moment, and whether it has no source; `short` is for narrow frames."""
    if not found.present[index]:
        return "no audio or video" if found.text is None else "no frame", True
    if not found.compared[index]:
        return f"{NO_SOURCE}: silence", True
    number = f"{float(found.strength[index]):z.1f}"
    if found.has_source[index]:
        return f"strength {number}", False
    return f"{found.absence} ({number if short else f'strength {number}'})", True


def draw_spectrogram(
    found: LocalizationResult,
    path: StrPath | None = None,
    *,
    size: tuple[int, int] = (1200, 520),
    overwrite: bool = False,
) -> Image.Image:
    """The spectrogram of the video, with the heat of what the frames show, and the strength of each moment below it.

    At each time the maps of all moments whose windows reach there are averaged, those nearest counting most.

    Args:
        found: From `localize`.
        path: PNG file to write as well.
        size: Width and height in pixels.
        overwrite: Whether the file may replace an earlier one.

    Raises:
        AlreadyExistsError: There is such a file, and `overwrite` is off.
        InferenceError: The size is too small.
        ImportError: matplotlib is not installed.
    """
    return _draw(lambda: spectrogram_figure(found, size=size), _names(found), path, overwrite)


def spectrogram_figure(found: LocalizationResult, *, size: tuple[int, int] = (1200, 520)) -> Any:
    """The figure of `draw_spectrogram`."""
    if size[0] < 400 or size[1] < 300:
        raise InferenceError(f"A spectrogram of {size[0]} x {size[1]} pixels is too small; use 400 x 300 or more.")
    least = f"{found.least_strength:g} nats"
    title = "When and at which pitch the frame's content is heard"
    note = (
        "How to read it: grey is loudness; the warmer, the more the frames' content is heard at that time and pitch. "
        f"Below: how much speaks for a source in the frame; under {least} there is none."
    )
    if found.text is not None:
        title = f'When and at which pitch "{printable(found.text)}" is heard'
        note = (
            "How to read it: grey is loudness; the warmer, the more the words are heard at that time and pitch. "
            f"Below: log-odds that they are true of the frame; under {least} it is not seen."
        )
    lines = len(textwrap.wrap(note, int((size[0] - 2 * _MARGIN) / _LETTER)))
    sheet = _Sheet(
        (size[0], size[1] - _HEADER - lines * _TEXT - _MARGIN), title, note, dark=True,
    )  # fmt: skip
    left, right, gap, below = 92, 96, 14, 52
    inner = size[0] - left - right
    room = sheet.bottom - _HEADER - gap - below
    lower = max(50, room // 4)
    upper = room - lower
    begin, bins = found.spectrogram_start, len(found.frequencies)
    end = begin + found.spectrogram.shape[1] * found.spectrogram_step
    levels = found.spectrogram.astype(np.float32)[::-1]
    low, high = np.quantile(levels, [0.05, 0.998])
    grey = np.clip((levels - low) / max(float(high - low), 1e-6), 0, 1) * 210
    image = Image.fromarray(grey.astype(np.uint8)).resize((inner, upper), Image.Resampling.BILINEAR).convert("RGB")
    image = blend(image, joined_audio_maps(found)[::-1], (0.0, 0.0, 1.0, 1.0), ring=False)
    axis = sheet.axes(left, _HEADER, inner, upper)
    axis.imshow(np.asarray(image)[::-1], origin="lower", extent=(begin, end, -0.5, bins - 0.5), aspect="auto")
    marks = _frequency_marks(found.frequencies, upper)
    axis.set_yticks(
        np.interp(marks, found.frequencies, np.arange(bins)),
        [f"{hertz} Hz" if hertz < 1000 else f"{hertz // 1000} kHz" for hertz in marks],
    )
    axis.set(ylabel="frequency", xlim=(begin, end), ylim=(-0.5, bins - 0.5))
    other = "frame" if found.text is None else "words"
    measure = {
        "relevance": "contribution to the similarity",
        "occlusion": "fall of the similarity without it",
        "local": "predicted fall without it",
    }.get(found.method, f"cosine with the {other}")
    sheet.scale(left + inner + 16, _HEADER, 12, upper, f"{measure}\n(1: the window's largest)")
    _draw_strength(sheet.axes(left, _HEADER + upper + gap, inner, lower), found)
    _time_axis(axis, begin, end, labels=False)
    return sheet.figure


def _frequency_marks(frequencies: np.ndarray, height: int) -> list[int]:
    """Round frequencies whose labels do not meet on an axis of so many pixels."""
    marks: list[int] = []
    last = np.inf
    for hertz in reversed(_HERTZ):
        # The highest filter is centred a little below half the sampling rate.
        if not frequencies[0] <= hertz <= frequencies[-1] * 1.05:
            continue
        place = float(np.interp(hertz, frequencies, np.arange(len(frequencies)))) / len(frequencies) * height
        if last - place >= _TEXT:
            marks.insert(0, hertz)
            last = place
    return marks


def _draw_strength(axis: Any, found: LocalizationResult) -> None:
    """Strength along time: moments with a source, and those without."""
    begin = found.spectrogram_start
    end = begin + found.spectrogram.shape[1] * found.spectrogram_step
    width, has = 0.9 / found.fps, found.has_source
    values = np.where(found.compared, found.strength, 0.0)
    least = found.least_strength
    axis.bar(found.times[has], values[has], width, color="#dc6a3c", label="source")
    axis.bar(found.times[~has], values[~has], width, color="#5b6470", label=found.absence)
    for time in found.times[~found.compared]:
        axis.axvspan(time - 0.5 / found.fps, time + 0.5 / found.fps, color="#2a2f37", linewidth=0)
    axis.axhline(least, color=_INK, linewidth=0.8, linestyle="--")
    axis.axhline(0, color=_FRAME, linewidth=0.6)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), least)
    axis.set(ylabel="strength,\nnats", xlim=(begin, end), ylim=(low - 0.1 * (high - low), high + 0.15 * (high - low)))
    axis.text(
        1.008, (least - axis.get_ylim()[0]) / np.ptp(axis.get_ylim()), f"{found.absence}\nbelow {least:g}",
        transform=axis.transAxes, color=_WARN, fontsize=_POINTS, va="center",
    )  # fmt: skip
    _time_axis(axis, begin, end)


def _time_axis(axis: Any, begin: float, end: float, *, labels: bool = True) -> None:
    """Round times, written as everywhere: `0:05`, `1:02:03.5`; no more than have room."""
    marks = ticks(begin, end, most=int(np.clip(axis.get_window_extent().width // _LABEL, 2, 10)))
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    digits = 0 if step >= 1 else 1 if step >= 0.1 else 2
    axis.set_xticks(marks, [format_clock(time, digits) for time in marks] if labels else [])
    if labels:
        axis.set_xlabel("time, minutes:seconds")


def joined_audio_maps(found: LocalizationResult) -> np.ndarray:
    """The moments' heat on the time axis of the spectrogram, `(mel rows, columns)`; 0 where no window reaches."""
    rows, columns = found.audio_maps.shape[1:]
    length = float(found.window_times[0, 1] - found.window_times[0, 0])
    step = length / columns
    total = found.spectrogram.shape[1] * found.spectrogram_step
    count = max(1, round(total / step))
    sums, weights = np.zeros((rows, count)), np.zeros(count)
    heard = found.compared
    # A triangle over the window: a moment says most about the audio at its own time.
    shape = 1 - np.abs(np.arange(columns) + 0.5 - columns / 2) / (columns / 2 + 0.5)
    for maps, (start, _), here in zip(found.heat("audio"), found.window_times, heard, strict=True):
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
    size: tuple[int, int] = (1200, 960),
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
    return _draw(lambda: timeline_figure(result, size=size), _names(result), path, overwrite)


def timeline_figure(result: SyncResult, *, size: tuple[int, int] = (1200, 960)) -> Any:
    """The figure of `draw_timeline`."""
    note = (
        "How to read it: bright on the diagonal of the matrix, and a peak of the curve above 0, mean that audio and "
        "frames fit; where the peak lies is by how much the audio is late. Red in the band below is where a frame's "
        "best audio lies. Fit is the log-likelihood ratio against moments nearby, in nats; 0 is chance."
    )
    lines = len(textwrap.wrap(note, int((size[0] - 2 * _MARGIN) / _LETTER)))
    sheet = _Sheet(
        (size[0], size[1] - _HEADER - lines * _TEXT - _MARGIN),
        f"{result.verdict}; mean similarity {result.similarity:.3f}", note,
    )  # fmt: skip
    figure = sheet.figure
    # Fixed places: matplotlib's own layout takes longer than all the drawing.
    rows = figure.add_gridspec(
        3, 1, height_ratios=[1.3, 0.8, 0.8], left=78 / size[0], right=1 - 92 / size[0],
        top=1 - (_HEADER + 24) / size[1], bottom=1 - (sheet.bottom - 52) / size[1], hspace=0.42,
    )  # fmt: skip
    top = rows[0].subgridspec(1, 2, width_ratios=[1, 1.4], wspace=0.2)
    _draw_matrix(figure, figure.add_subplot(top[0]), result)
    _draw_curve(figure.add_subplot(top[1]), result)
    _draw_band(figure, figure.add_subplot(rows[1]), result)
    _draw_scores(figure.add_subplot(rows[2]), result)
    return figure


def _draw(make: Callable[[], Any], name: str, path: StrPath | None, overwrite: bool) -> Image.Image:
    """The image of a figure with the name of its file above it, written where there is a path."""
    if path is not None:
        check_free(path, overwrite=overwrite)
    figure = make()
    canvas = require_package("matplotlib.backends.backend_agg", "plots", "Drawing").FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # The name is drawn apart: matplotlib takes one font for it and gives boxes for signs that it lacks.
    font = title_font(name, _TITLE_POINTS * _DOTS_PER_INCH / 72)
    if font is not None:
        shown = shorten(name, font, image.width - 2 * _MARGIN)
        dark = np.asarray(image)[0, 0].mean() < 128
        # On one line, whatever the font's height.
        ImageDraw.Draw(image).text((_MARGIN, 24), shown, fill=_INK if dark else "black", font=font, anchor="ls")
    if path is not None:
        save_image(image, path, overwrite=overwrite)
    return image


def _names(result: SyncResult | LocalizationResult) -> str:
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
    axis.plot([low, high], [low, high], color="white", linewidth=0.8, linestyle=":", label="same time")
    for offset, label in ((-reach, None), (reach, f"{reach:g} s apart")):
        axis.plot(
            [low, high], [low + offset, high + offset], color="white", linewidth=0.4, linestyle="--", label=label
        )
    if (late := result.verdict.offset) is not None and abs(late) >= result.hop / 2:
        axis.plot([low, high], [low + late, high + late], color=_ACCENT, linewidth=1, label="best offset")
    axis.set(xlim=(low, high), ylim=(low, high), ylabel="audio at", title="similarity of audio and frames")
    _time_axis(axis, low, high)
    axis.set_xlabel("frame at, minutes:seconds")
    axis.set_yticks(axis.get_xticks(), [label.get_text() for label in axis.get_xticklabels()])
    axis.legend(loc="lower right", fontsize=7, framealpha=0.55, facecolor="#222", labelcolor="white", edgecolor="none")
    figure.colorbar(image, ax=axis, shrink=0.9, label="cosine")


def _draw_curve(axis: Any, result: SyncResult) -> None:
    axis.axvline(0, color=_FAINT, linewidth=0.8)
    axis.axhline(0, color=_FAINT, linewidth=0.8)
    axis.plot(
        result.offsets, result.offset_scores, color=_LINE, marker=".", markersize=4, linewidth=1.2,
        label="mean fit of all moments",
    )  # fmt: skip
    if result.verdict.offset is not None:
        axis.axvline(
            result.verdict.offset, color=_ACCENT, linewidth=1.2, label=f"best: {result.verdict.offset:+z.2f} s"
        )
        if result.interval is not None:
            axis.axvspan(*result.interval, color=_ACCENT, alpha=0.15, linewidth=0, label="90 % of draws")
    axis.legend(loc="best", fontsize=8, edgecolor="none", framealpha=0.9)
    axis.set(xlabel="audio late by, s", ylabel="fit, nats (0: chance)", title="fit with the audio moved")


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
    axis.set(ylabel="audio late by, s", title="each frame's fit with the audio around it")
    _time_axis(axis, extent[0], extent[1])
    axis.set_xlabel("")
    # Beside the axis, not out of it, so that time runs alike above and below.
    place = axis.get_position()
    bar = figure.colorbar(image, cax=figure.add_axes((place.x1 + 0.008, place.y0, 0.01, place.height)))
    bar.set_label("against the frame's mean", fontsize=8)


def _draw_scores(axis: Any, result: SyncResult) -> None:
    low, high = result.times[0] - result.hop / 2, result.times[-1] + result.hop / 2
    axis.axhline(result.similarity, color=_FAINT, linewidth=0.8, linestyle="--")
    axis.plot(result.times, result.scores, color=_LINE, linewidth=1.2)
    axis.set_ylabel("similarity (cosine)", color=_LINE)
    axis.set(title="each moment: similarity (dashed: mean), and fit against moments nearby", xlim=(low, high))
    other = axis.twinx()
    other.axhline(0, color=_ACCENT, linewidth=0.5, alpha=0.5)
    other.plot(result.times, result.contrast, color=_ACCENT, linewidth=0.9, alpha=0.8)
    other.set_ylabel("fit, nats (0: chance)", color=_ACCENT)
    _time_axis(axis, low, high)


def save_image(image: Image.Image, path: StrPath, *, overwrite: bool = False) -> Path:
    """Write a PNG file, whole or not at all; `overwrite` replaces an earlier one."""
    with whole_file(path, overwrite=overwrite) as partial:
        image.save(partial, format="PNG")
    return Path(path)
