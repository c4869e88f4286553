# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Views of SyncWorld clips with their truth drawn in, to check by eye and ear.

A contact sheet shows the 16 frame times of some clips over their spectrograms; a page plays the clips. Both read the
finished files, so that they show what a user of the world gets.
"""

import itertools
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..files import StrPath, check_free, whole_file, write_text
from ..model.alignment_cavmae_sync import frame_at
from .render import av
from .truth import read_truth
from .voices import CLASS_NAMES

STRIP_HEIGHT = 64  # pixels of a spectrogram
ROW_HEIGHT = 7  # pixels of an object's line of events
TITLE_HEIGHT = 14
HIGHEST_KILOHERTZ = 8
NOTE = (
    "How to read it: frames at 16 times, white boxes around what sounds. Lines below: an object sounds (colour) or",
    "is animated without a sound (grey). At the bottom: the spectrum from 0 to 8 kHz, and what begins and ends when.",
)


def contact_sheet(
    folder: StrPath, out: StrPath, *, split: str | None = None, clips: int = 8, overwrite: bool = False
) -> Path:
    """Draw the first clips of a split into one PNG.

    Each clip gets the name of its file, its frames at the 16 frame times with white boxes around what sounds, a line
    per object that shows when it sounds (its colour) or is animated (grey), and the spectrogram of the decoded audio
    up to 8 kHz.

    Args:
        folder: A world, or one split of it.
        out: PNG file to write; its folder is made.
        split: Name of the split when `folder` is the world.
        clips: How many clips to show.
        overwrite: Whether the file may replace an earlier one.

    Returns:
        The path written.

    Raises:
        AlreadyExistsError: There is such a file, and `overwrite` is off.
        ValueError: If there are no clips.
        ImportError: If PyAV is not installed.
    """
    check_free(out, overwrite=overwrite)
    records, path = _open(folder, out, split, clips)
    panels = [_panel(record) for record in records]
    top = TITLE_HEIGHT * len(NOTE) + 4
    sheet = Image.new("RGB", (max(p.width for p in panels), top + sum(p.height for p in panels)), "black")
    draw = ImageDraw.Draw(sheet)
    for number, words in enumerate(NOTE):
        draw.text((3, 1 + number * TITLE_HEIGHT), words, fill=(170, 176, 184))
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
    with whole_file(path, overwrite=overwrite) as partial:
        sheet.save(partial, format="PNG")
    return path


def preview_page(
    folder: StrPath, out: StrPath, *, split: str | None = None, clips: int = 12, overwrite: bool = False
) -> Path:
    """Write an HTML page that plays the first clips of a split with their truth drawn in.

    The page needs no server and no network; it refers to the clips by paths relative to itself.

    Args and errors are those of `contact_sheet`; `out` is the HTML file, and no PyAV is needed.
    """
    check_free(out, overwrite=overwrite)
    records, path = _open(folder, out, split, clips)
    shown = []
    for record in records:
        source = os.path.relpath(record.pop("path"), path.parent)
        shown.append({**record, "src": Path(source).as_posix()})
    colours = ["rgb({},{},{})".format(*_colour(label)) for label in range(len(CLASS_NAMES))]
    data = json.dumps({"clips": shown, "colours": colours}, separators=(",", ":"))
    page = resources.files(__package__).joinpath("preview.html").read_text(encoding="utf-8")
    write_text(path, page.replace("@DATA@", data.replace("</", "<\\/")), overwrite=overwrite)
    return path


def _open(folder: StrPath, out: StrPath, split: str | None, clips: int) -> tuple[list[dict[str, Any]], Path]:
    """The records of the first clips, and the file to write."""
    if clips < 1:
        raise ValueError(f"There must be at least one clip to show, got clips={clips}.")
    records = list(itertools.islice(read_truth(folder, split), clips))
    return records, Path(out)


def _colour(label: int) -> tuple[int, int, int]:
    """A colour to draw a class's lines with, evenly spread hues."""
    angle = 2 * np.pi * (label / len(CLASS_NAMES) + np.array([0, 1 / 3, 2 / 3]))
    red, green, blue = (int(c) for c in np.rint(150 + 100 * np.cos(angle)))
    return red, green, blue


def _decode(path: str) -> tuple[list[np.ndarray], np.ndarray]:
    """All frames and the waveform of a clip."""
    if av is None:
        raise ImportError("Drawing SyncWorld clips needs PyAV; run `pip install av`.")
    with av.open(path) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        file.seek(0)
        waveform = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    return frames, waveform


def _spectrogram(waveform: np.ndarray, sampling_rate: int, width: int) -> np.ndarray:
    """An image of the spectrum over time, low frequencies at the bottom; uint8, shape `(STRIP_HEIGHT, width)`."""
    window = sampling_rate // 40
    starts = np.linspace(0, len(waveform) - 1, width).astype(int)
    padded = np.pad(waveform, window // 2)  # each column is centred on its time
    pieces = padded[starts[:, None] + np.arange(window)] * np.hanning(window)
    size = 2 * STRIP_HEIGHT * max(1, round(sampling_rate / 16000))
    power = np.abs(np.fft.rfft(pieces, max(size, window), axis=1)) ** 2
    bands = np.array_split(power[:, : power.shape[1] * 16000 // sampling_rate], STRIP_HEIGHT, axis=1)
    level = 10 * np.log10(np.stack([band.mean(1) for band in bands]) + 1e-9)
    return np.clip((level[::-1] + 50) * 255 / 70, 0, 255).astype(np.uint8)


def _panel(record: dict[str, Any]) -> Image.Image:
    """One clip of the contact sheet."""
    frames, waveform = _decode(record["path"])
    cell_width, cell_height = record["width"] + 2, record["height"] + 2
    width = cell_width * len(record["frame_times"])
    lines = ROW_HEIGHT * len(record["objects"])
    panel = Image.new("RGB", (width, TITLE_HEIGHT + cell_height + lines + STRIP_HEIGHT + 6), "black")
    draw = ImageDraw.Draw(panel)
    silent = [item["label_name"] for item in record["objects"] if not item["sounding"]]
    partner = f"   partner {record['partner']}" if record["partner"] is not None else ""
    heard = ", ".join(record["label_names"])
    title = f"{Path(record['path']).name}  {record['kind']}   sounding: {heard}   silent: {', '.join(silent)}{partner}"
    draw.text((3, 1), title, fill="white")
    top = TITLE_HEIGHT + cell_height
    for i, time in enumerate(record["frame_times"]):
        shown = frames[min(frame_at(time, record["fps"]), len(frames) - 1)]
        panel.paste(Image.fromarray(shown), (i * cell_width, TITLE_HEIGHT))
        when = f"{int(time // 60)}:{time % 60:04.1f}"
        draw.text((i * cell_width + 2, top - 2), when, fill="white", anchor="ld", stroke_width=1, stroke_fill="black")
        for x0, y0, x1, y1 in record["sounding_boxes"][i]:
            box = (i * cell_width + x0, TITLE_HEIGHT + y0, i * cell_width + x1 - 1, TITLE_HEIGHT + y1 - 1)
            draw.rectangle(box, outline="white")
    scale = width / record["duration"]
    for span in record["animations"] + record["events"]:
        fill = _colour(span["label"]) if "pitch" in span else (110, 110, 110)
        line = top + ROW_HEIGHT * span["object"]
        draw.rectangle((span["start"] * scale, line, span["end"] * scale - 1, line + ROW_HEIGHT - 2), fill=fill)
    strip = Image.fromarray(_spectrogram(waveform, record["sampling_rate"], width))
    panel.paste(strip, (0, top + lines + 2))
    for span in record["events"]:
        colour = _colour(span["label"])
        for x in (span["start"] * scale, span["end"] * scale):
            draw.line((x, top + lines, x, top + lines + STRIP_HEIGHT), fill=colour)
        draw.text((span["start"] * scale + 3, top + lines + 2), span["label_name"], fill=colour)
    for kilohertz in (0, HIGHEST_KILOHERTZ // 2, HIGHEST_KILOHERTZ):
        y = top + lines + 2 + STRIP_HEIGHT * (1 - kilohertz / HIGHEST_KILOHERTZ)
        anchor = {0: "ld", HIGHEST_KILOHERTZ: "la"}.get(kilohertz, "lm")
        draw.line((0, y, 4, y), fill="white")
        words = f"{kilohertz} kHz"
        draw.text((6, y), words, fill="white", anchor=anchor, stroke_width=1, stroke_fill="black")
    return panel
