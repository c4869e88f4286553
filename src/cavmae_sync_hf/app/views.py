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

# An offset that fewer random draws agree on than this is not called one.
LEAST_CONFIDENCE = 0.5


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


def is_clear(result: SyncResult) -> bool:
    """Whether the best offset is one: draws of the clip's pieces agree on it, and it fits better than chance."""
    scores = np.asarray(result.offset_scores)
    above_chance = bool((scores[np.isfinite(scores)] > 0).any())
    return result.offset is not None and result.confidence >= LEAST_CONFIDENCE and above_chance


def verdict(result: SyncResult) -> dict[str, str]:
    """Whether audio and video are in step, for the page: `kind`, `headline` and `detail`."""
    if result.offset is None or not is_clear(result):
        return {
            "kind": "unsure",
            "headline": "No offset fits",
            "detail": f"Within {result.max_offset:g} s, no way of moving the audio makes it clearly fit the video. "
            "They may not belong together, they may hardly change, or the model may not know such things.",
        }
    sure = f"{result.confidence:.0%} of random draws of the clip's pieces agree."
    fine = max(result.hop, result.resolution)
    if abs(result.offset) <= fine:
        return {
            "kind": "step",
            "headline": "In step",
            "detail": f"Audio and video fit best as they are, to within {fine:.2g} s. {sure}",
        }
    late = result.offset > 0
    return {
        "kind": "late" if late else "early",
        "headline": f"The audio is {abs(result.offset):.1f} s {'late' if late else 'early'}",
        "detail": f"It would fit the video if it came {abs(result.offset):.2f} s {'earlier' if late else 'later'}. "
        f"{sure}",
    }


def sync_view(result: SyncResult) -> dict[str, Any]:
    """What the matrix, the timeline and the offset curve show."""
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
        "verdict": verdict(result),
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
        "clear": is_clear(result),
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
