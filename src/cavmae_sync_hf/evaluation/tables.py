# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Tables that benchmarks come with: VGGSounder's labels, and images with the audio and the mask that go with them."""

import csv
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvF
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from ..files import StrPath, check_array_size, parse_json
from ..model.alignment_cavmae_sync import resized_size
from ..model.errors_cavmae_sync import EvaluationError

_COLUMNS = ("video_id", "label", "modality")
_MOST_MASK_BYTES = 1 << 31
_META = ("background_music", "static_image", "voice_over")
_REQUIRED = ("audio", "mask")
_IMAGES = ("image", "video")


@dataclass(frozen=True)
class Annotations:
    """Labels of clips and where each is perceived.

    Attributes:
        labels: Per clip its labels, each with `"A"` (heard), `"V"` (seen) or `"AV"` (both).
        background_music: Clips that have background music.
        name: The file.
    """

    labels: dict[str, dict[str, str]]
    background_music: frozenset[str]
    name: str

    def select(self, background_music: bool | None) -> "Annotations":
        """The clips with (True) or without (False) background music; all of them (None)."""
        if background_music is None:
            return self
        kept = {
            clip: labels for clip, labels in self.labels.items() if (clip in self.background_music) == background_music
        }
        return Annotations(kept, self.background_music & set(kept), self.name)

    def arrays(self, clips: Sequence[str], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Which labels of clips are heard and which are seen, as `vggsounder_metrics` takes them.

        Args:
            clips: Names of the clips.
            classes: Names of the model's classes, in order.

        Returns:
            Booleans `(clips, labels)` each: the classes first, then the clips' labels that are none of them.

        Raises:
            EvaluationError: A clip is not annotated, or no label is among the classes.
        """
        unknown_clips = [clip for clip in clips if clip not in self.labels]
        if unknown_clips:
            raise EvaluationError(f"{self.name}: has no labels for the clip {unknown_clips[0]!r}.")
        given = {label for clip in clips for label in self.labels[clip]}
        if given.isdisjoint(classes):
            raise EvaluationError(
                f"{self.name}: none of its labels is a class of the model: the table has {sorted(given)[:3]}, the "
                f"model {list(classes)[:3]}; give the class names in the model's order as `class_names`."
            )
        places = {name: place for place, name in enumerate([*classes, *sorted(given - set(classes))])}
        heard, seen = np.zeros((2, len(clips), len(places)), dtype=bool)
        for row, clip in enumerate(clips):
            for label, modality in self.labels[clip].items():
                heard[row, places[label]] = "A" in modality
                seen[row, places[label]] = "V" in modality
        return heard, seen


def read_annotations(path: StrPath) -> Annotations:
    """Read VGGSounder's table: a CSV with a row per clip and label.

    Args:
        path: Columns `video_id` (`YOUTUBEID_000030`), `label`, `modality` (A, V or AV) and, where they are known,
            `background_music`, `static_image`, `voice_over`.

    Raises:
        EvaluationError: The file cannot be read, or a row cannot be understood.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path}: the annotations cannot be read ({error}).") from error
    if not rows:
        raise EvaluationError(f"{path}: holds no annotations.")
    lacking = [column for column in _COLUMNS if column not in rows[0]]
    if lacking:
        raise EvaluationError(
            f"{path}: has no column {lacking[0]!r}; VGGSounder's table has {', '.join((*_COLUMNS, *_META))}."
        )
    labels: dict[str, dict[str, str]] = {}
    music = set()
    for number, row in enumerate(rows, start=2):
        clip, label, modality = ((row[column] or "").strip() for column in _COLUMNS)
        modality = modality.upper()
        if not clip or not label or modality not in ("A", "V", "AV"):
            raise EvaluationError(
                f"{path}: line {number} has clip {clip!r}, label {label!r} and modality {modality!r}; the modality is "
                "A, V or AV."
            )
        labels.setdefault(clip, {})[label] = modality
        if (row.get("background_music") or "").strip().lower() == "true":
            music.add(clip)
    return Annotations(labels, frozenset(music), Path(path).name)


@dataclass(frozen=True)
class Prompt:
    """One audio-prompted image.

    Attributes:
        name: For messages and counts.
        image: File of the image, or of a video.
        time: Where in a video the image is, seconds.
        audio: File of the audio.
        mask: File of the mask.
        mask_value: The object's number in the mask; without it, all that is not 0.
        label: The object's class.
    """

    name: str
    image: str
    time: float | None
    audio: str
    mask: str
    mask_value: int | None
    label: str


def read_prompts(path: StrPath) -> list[Prompt]:
    """Read a table of images, audio and masks.

    Args:
        path: CSV, TSV, JSON or JSON lines with the columns `image` (or `video` and `time`, seconds), `audio`, `mask`
            (PNG or other image of one channel, NPY, NPZ), and, where the mask holds several objects, `mask_value`;
            `label` is the object's class, `id` a name. Files are relative to the table.

    Raises:
        EvaluationError: The table cannot be read, or a row lacks something.
    """
    rows = _read_rows(Path(path))
    folder = Path(path).parent
    prompts = []
    for number, row in enumerate(rows, start=1):
        lacking = [name for name in _REQUIRED if not row.get(name)]
        image = next((row[name] for name in _IMAGES if row.get(name)), None)
        if lacking or image is None:
            lack = lacking[0] if lacking else "image"
            raise EvaluationError(
                f"{path}: row {number} has no {lack!r}; a row names image (or video), audio and mask."
            )
        value = row.get("mask_value")
        try:
            mask_value = None if value in (None, "") else int(value)
            time = None if row.get("time") in (None, "") else float(row["time"])
        except (TypeError, ValueError) as error:
            raise EvaluationError(
                f"{path}: row {number} has a mask_value or time that is no number ({error})."
            ) from error
        prompts.append(
            Prompt(
                name=str(row.get("id") or f"row {number}"),
                image=str(folder / str(image)),
                time=time,
                audio=str(folder / str(row["audio"])),
                mask=str(folder / str(row["mask"])),
                mask_value=mask_value,
                label=str(row.get("label") or ""),
            )
        )
    return prompts


def _read_rows(path: Path) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix in (".csv", ".tsv"):
            rows: Any = list(csv.DictReader(text.splitlines(), delimiter="\t" if suffix == ".tsv" else ","))
        elif suffix == ".json":
            rows = parse_json(text)
            rows = rows.get("data", rows) if isinstance(rows, dict) else rows
        elif suffix in (".jsonl", ".ndjson"):
            rows = [parse_json(line) for line in text.splitlines() if line.strip()]
        else:
            raise EvaluationError(f"{path}: is no table; name a CSV, TSV, JSON or JSON lines file.")
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise EvaluationError(f"{path}: the table cannot be read ({error}).") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"{path}: holds no rows with named columns; it needs image, audio and mask.")
    return rows


def read_mask(path: StrPath, value: int | None = None) -> np.ndarray:
    """Read a mask as booleans `(height, width)`.

    Args:
        path: An image of one channel (PNG and the like, palettes as their numbers), an NPY, or an NPZ with one array
            or one called `mask`.
        value: The object's number in it; without it, all that is not 0.

    Raises:
        EvaluationError: The file cannot be read, is no mask, or does not hold the object.
    """
    suffix = Path(path).suffix.lower()
    try:
        if suffix in (".npy", ".npz"):
            check_array_size(path, _MOST_MASK_BYTES)
            loaded: Any = np.load(path, allow_pickle=False)
            if suffix == ".npz":
                with loaded:
                    names = loaded.files
                    if "mask" not in names and len(names) != 1:
                        raise EvaluationError(f"{path}: holds {', '.join(names) or 'nothing'}; call the mask 'mask'.")
                    loaded = loaded["mask" if "mask" in names else names[0]]
            pixels = np.asarray(loaded)
        else:
            with Image.open(path) as image:
                if len(image.getbands()) != 1:
                    raise EvaluationError(f"{path}: is an image of {len(image.getbands())} channels; a mask has one.")
                pixels = np.array(image)
    except FileNotFoundError as error:
        raise EvaluationError(f"{path}: no such mask; correct the table.") from error
    except (OSError, EOFError, zipfile.BadZipFile, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise EvaluationError(f"{path}: the mask cannot be read ({error}); fetch or write it again.") from error
    except EvaluationError:
        raise
    except ValueError as error:  # numpy's word for what it would have to unpickle
        raise EvaluationError(f"{path}: the mask cannot be read ({error}); save it as a plain array.") from error
    if pixels.ndim != 2 or not pixels.size:
        raise EvaluationError(f"{path}: has shape {pixels.shape}; a mask is (height, width).")
    mask = pixels != 0 if value is None else pixels == value
    if not mask.any():
        what = "anything but 0" if value is None else f"the value {value}"
        raise EvaluationError(
            f"{path}: does not hold {what}; a prompt needs an object. Take the row out of the table."
        )
    return np.asarray(mask)


def mask_in_view(mask: np.ndarray, shortest_edge: int, image_size: int) -> Tensor:
    """A mask in the model's view: resized (nearest pixel) and cropped in the centre, as the image is.

    Args:
        mask: Booleans `(height, width)` of the image's size.
        shortest_edge: Shorter side after resizing and before the crop, pixels.
        image_size: Side of the square view.

    Returns:
        Booleans `(image_size, image_size)`.
    """
    size = list(resized_size(mask.shape[0], mask.shape[1], shortest_edge))
    values = torch.from_numpy(np.ascontiguousarray(mask)).to(torch.uint8)[None]
    resized = tvF.resize(values, size, interpolation=InterpolationMode.NEAREST_EXACT)
    return tvF.center_crop(resized, [image_size, image_size])[0].bool()
