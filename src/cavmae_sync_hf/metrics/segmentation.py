# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which picture, sound and mask belong together, and how well do maps of sound find the masks of a class?"""

import csv
import json
import os
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

from ..model.alignment_cavmae_sync import resized_size
from ..model.errors_cavmae_sync import EvaluationError
from .classification import average_precision

__all__ = ["Prompt", "class_segmentation_metrics", "mask_in_view", "read_mask", "read_prompts"]

_REQUIRED = ("audio", "mask")
_PICTURES = ("image", "video")


@dataclass(frozen=True)
class Prompt:
    """One sound-prompted picture.

    Attributes:
        name: For messages and counts.
        image: File of the picture, or of a video.
        time: Where in a video the picture is, seconds.
        audio: File of the sound.
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


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Read a table of pictures, sounds and masks.

    Args:
        path: CSV, TSV, JSON or JSON lines with the columns `image` (or `video` and `time`, seconds), `audio`, `mask`
            (PNG or other picture of one channel, NPY, NPZ), and, where the mask holds several objects, `mask_value`;
            `label` is the object's class, `id` a name. Files are relative to the table.

    Raises:
        EvaluationError: The table cannot be read, or a row lacks something.
    """
    rows = _read_rows(Path(path))
    folder = Path(path).parent
    prompts = []
    for number, row in enumerate(rows, start=1):
        lacking = [name for name in _REQUIRED if not row.get(name)]
        picture = next((row[name] for name in _PICTURES if row.get(name)), None)
        if lacking or picture is None:
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
                image=str(folder / str(picture)),
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
            rows = json.loads(text)
            rows = rows.get("data", rows) if isinstance(rows, dict) else rows
        elif suffix in (".jsonl", ".ndjson"):
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            raise EvaluationError(f"{path}: is no table; name a CSV, TSV, JSON or JSON lines file.")
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise EvaluationError(f"{path}: the table cannot be read ({error}).") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"{path}: holds no rows with named columns; it needs image, audio and mask.")
    return rows


def read_mask(path: str | os.PathLike[str], value: int | None = None) -> np.ndarray:
    """Read a mask as booleans `(height, width)`.

    Args:
        path: A picture of one channel (PNG and the like, palettes as their numbers), an NPY, or an NPZ with one array
            or one called `mask`.
        value: The object's number in it; without it, all that is not 0.

    Raises:
        EvaluationError: The file cannot be read, is no mask, or does not hold the object.
    """
    suffix = Path(path).suffix.lower()
    try:
        if suffix in (".npy", ".npz"):
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
                    raise EvaluationError(f"{path}: is a picture of {len(image.getbands())} channels; a mask has one.")
                pixels = np.array(image)
    except FileNotFoundError as error:
        raise EvaluationError(f"{path}: no such mask; correct the table.") from error
    except (OSError, UnidentifiedImageError, EOFError) as error:
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
    """A mask in the model's view: resized (nearest pixel) and cropped in the centre, as the picture is.

    Args:
        mask: Booleans `(height, width)` of the picture's size.
        shortest_edge: Shorter side after resizing and before the crop, pixels.
        image_size: Side of the square view.

    Returns:
        Booleans `(image_size, image_size)`.
    """
    size = list(resized_size(mask.shape[0], mask.shape[1], shortest_edge))
    values = torch.from_numpy(np.ascontiguousarray(mask)).to(torch.uint8)[None]
    resized = tvF.resize(values, size, interpolation=InterpolationMode.NEAREST_EXACT)
    return tvF.center_crop(resized, [image_size, image_size])[0].bool()


def class_segmentation_metrics(
    maps: Tensor, masks: Tensor, labels: Sequence[str], thresholds: int = 20
) -> dict[str, float | int]:
    """Sound-prompted segmentation over classes: all pixels of a class's pictures together, then the mean over classes.

    These are DenseAV's figures on ADE20K: average precision, and the intersection over union at the best of the
    thresholds, which lie evenly between a class's lowest and highest value.

    Args:
        maps: Similarity at every pixel, `(maps, height, width)`.
        masks: True where the object is, same shape.
        labels: The class of every map.
        thresholds: How many are tried.

    Returns:
        `mean_average_precision`, `mean_iou`, `classes` and `maps`; classes whose masks are all out of view take no
        part. `chance_average_precision`: what a constant map scores.

    Raises:
        ValueError: Shapes differ, a map is not finite, or no mask is in view.
    """
    values, truth = maps.detach().cpu().double(), torch.as_tensor(masks).cpu().bool()
    if values.shape != truth.shape or values.ndim != 3 or len(labels) != len(values):
        raise ValueError(
            f"Maps {tuple(values.shape)}, masks {tuple(truth.shape)} and {len(labels)} labels do not fit each other."
        )
    if not torch.isfinite(values).all():
        raise ValueError(f"Map {int((~torch.isfinite(values)).flatten(1).any(1).nonzero()[0])} is not finite.")
    precisions, overlaps, shares, used = [], [], [], 0
    for label in sorted(set(labels)):
        rows = torch.tensor([own == label for own in labels])
        pixels, object_pixels = values[rows].flatten(), truth[rows].flatten()
        if not object_pixels.any():
            continue
        used += int(rows.sum())
        precisions.append(average_precision(object_pixels, pixels))
        shares.append(float(object_pixels.double().mean()))
        levels = torch.linspace(float(pixels.min()), float(pixels.max()), thresholds, dtype=torch.float64)
        overlaps.append(max(_overlap(pixels > level, object_pixels) for level in levels))
    if not precisions:
        raise ValueError("No mask is in view; there is nothing to segment.")
    return {
        "mean_average_precision": sum(precisions) / len(precisions),
        "mean_iou": sum(overlaps) / len(overlaps),
        "chance_average_precision": sum(shares) / len(shares),
        "classes": len(precisions),
        "maps": used,
    }


def _overlap(chosen: Tensor, truth: Tensor) -> float:
    return float((chosen & truth).sum() / (chosen | truth).sum())
