# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Results as the JSON that the page's script draws.

Maps of many numbers go as one byte each, in base64, with the values that 1 and 255 stand
for; 0 is what is absent. Texts are plain: the script never takes them for HTML.
"""

import base64
from typing import Any

import numpy as np

from ..inference.classify import ClipLabels
from ..inference.localize import LocalizationResult
from ..inference.sync import SyncResult


def bytes_view(values: np.ndarray, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    """An array as bytes: `shape`, `low`, `high` and `data`."""
    finite = values[np.isfinite(values)]
    low = float(finite.min()) if low is None and finite.size else low or 0.0
    high = float(finite.max()) if high is None and finite.size else high or 0.0
    scale = 254.0 / (high - low) if high > low else 0.0
    levels = np.rint(np.clip(np.nan_to_num((values - low) * scale, nan=0.0), 0, 254)) + 1
    levels = np.where(np.isfinite(values), levels, 0).astype(np.uint8)
    data = base64.b64encode(np.ascontiguousarray(levels).tobytes()).decode("ascii")
    return {"shape": list(values.shape), "low": low, "high": high, "data": data}


def sync_view(result: SyncResult) -> dict[str, Any]:
    """What the matrix, the timeline and the offset curve show."""
    verdict = result.verdict
    facts = [
        [
            "Similarity",
            f"{result.similarity:.2f}",
            "of audio window and frame, mean over all moments",
        ],
        ["Fit", f"{result.mean_contrast:+.2f}", "how much better they fit than moments nearby; 0 is chance"],
    ]
    shift = result.test.get("shift_p_value")
    if shift is not None:
        facts.append(["Chance", f"{shift:.1%}", "share of turns of the audio track that fit as well as the true one"])
    return {
        "verdict": {
            "kind": verdict.kind.replace(" ", "-"),
            "headline": verdict.headline[0].upper() + verdict.headline[1:],
            "detail": verdict.reason,
        },
        "facts": facts,
        "remarks": list(result.remarks),
        "times": _rounded(result.times, 3),
        "scores": _rounded(result.scores, 4),
        "contrast": _rounded(result.contrast, 4),
        "hop": result.hop,
        "matrix": bytes_view(result.matrix),
        "matrix_times": _rounded(result.matrix_times, 3),
        "offset": result.offset,
        "interval": list(result.interval) if result.interval is not None else None,
        "clear": verdict.fits,
        "offsets": _rounded(result.offsets, 3),
        "offset_scores": _rounded(result.offset_scores, 4),
    }


def places_view(found: LocalizationResult) -> dict[str, Any]:
    """What the overlay on the player shows; `region` is what the model sees of the frame, as shares of the whole."""
    return {
        "times": _rounded(found.times, 3),
        "maps": bytes_view(found.heat(), 0.0, 1.0),
        "region": [round(float(value), 5) for value in found.region],
        "remarks": list(found.remarks),
    }


def labels_view(result: ClipLabels, modality: str) -> dict[str, Any]:
    """What the labels show."""
    return {
        "labels": [[str(entry["label"]), round(float(entry["score"]), 4)] for entry in result.labels],
        "moments": result.num_moments,
        "modality": modality,
    }


def _rounded(values: Any, digits: int) -> list[float | None]:
    return [round(float(value), digits) if np.isfinite(value) else None for value in np.asarray(values)]
