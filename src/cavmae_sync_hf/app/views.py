# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Results as the JSON that the page's script draws.

Maps of many numbers go as one byte each, in base64, with the values that 1 and 255 stand
for; 0 is what is absent. Texts are plain: the script never takes them for HTML.
"""

import base64
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..inference.ask import Answer
from ..inference.classify import ClipLabels
from ..inference.localize import LocalizationResult
from ..inference.plots import joined_audio_maps
from ..inference.sync import SyncResult
from ..inference.verdict import SyncVerdict
from ..search.placements import FilmScore

# More are narrower than a pixel of a phone, and sixty seconds have three thousand.
_SPECTROGRAM_COLUMNS = 800
_MINUS = "\N{MINUS SIGN}"


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
            "how alike the model finds audio and frame of the same moment, mean over the clip; 1 is the same, 0 has "
            "nothing in common",
        ],
        [
            "Fit",
            _signed(result.mean_contrast),
            "how much better audio and frame of the same moment fit than audio and frames a little apart, mean over "
            "the clip; 0 is chance",
        ],
    ]
    shift = result.test.get("shift_p_value")
    if shift is not None:
        facts.append(
            ["Chance", f"{shift:.1%}", "share of other starts of the audio that fit as well (circular shift test)"]
        )
    return {
        "verdict": {
            "kind": verdict.kind.replace(" ", "-"),
            "headline": verdict.headline[0].upper() + verdict.headline[1:],
            "detail": re.sub(r"-(?=\d)", _MINUS, verdict.reason),
            "advice": _advice(verdict),
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


def _advice(verdict: SyncVerdict) -> str:
    """What a visitor can do about a verdict."""
    if verdict.kind in ("late", "early") and verdict.offset is not None:
        way = "earlier" if verdict.kind == "late" else "later"
        return f"Playing the audio {abs(verdict.offset):.2f} s {way} would mend it."
    return {"does not fit": "The audio seems to be of something else.", "in sync": "Nothing to mend."}.get(
        verdict.kind, ""
    )


def places_view(found: LocalizationResult) -> dict[str, Any]:
    """What the overlay on the player shows.

    `region` is what the model sees of the frame, as shares of the whole; `source` says of which moments it finds
    something in the frame that the audio comes from, and `none` what to call the others; `asked` are the words that
    were looked for in place of it.
    """
    return {
        "times": _rounded(found.times, 3),
        "maps": bytes_view(found.heat(), 0.0, 1.0),
        "region": [round(float(value), 5) for value in found.region],
        "source": [bool(value) for value in found.has_source],
        "none": found.absence,
        "asked": found.text,
        "remarks": list(found.remarks),
    }


def frame_numbers(total: int, count: int = 12) -> list[int]:
    """Numbers of up to `count` of `total` moments, the middles of equal spans."""
    count = min(count, total)
    return [int((number + 0.5) * total / count) for number in range(count)]


def sound_view(found: LocalizationResult) -> dict[str, Any]:
    """The spectrogram, from low to high, and which part of it fits the frames."""
    levels = _narrowed(found.spectrogram.astype(np.float32), _SPECTROGRAM_COLUMNS)
    low, high = (float(value) for value in np.quantile(levels, [0.05, 0.998]))
    return {
        "levels": bytes_view(levels, low, high),
        "fits": bytes_view(_narrowed(joined_audio_maps(found), _SPECTROGRAM_COLUMNS), 0.0, 1.0),
        "start": found.spectrogram_start,
        "seconds": round(found.spectrogram.shape[1] * found.spectrogram_step, 3),
    }


def _narrowed(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many columns, each the highest of some."""
    step = -(-values.shape[1] // most)
    padding = -values.shape[1] % step
    padded = np.pad(values, ((0, 0), (0, padding)), mode="edge")
    return padded.reshape(len(values), -1, step).max(axis=2)


def labels_view(result: ClipLabels, names: Sequence[str]) -> dict[str, Any]:
    """What the labels show; `names` are those of the columns of `moment_scores`.

    `when` says of each label shown how it scores at every moment, and where that begins.
    """
    assert result.spans is not None and result.moment_scores is not None
    columns = [names.index(str(entry["label"])) for entry in result.labels]
    return {
        "when": {
            "starts": _rounded(result.spans[:, 0], 3),
            "scores": [_rounded(result.moment_scores[:, column], 3) for column in columns],
        },
        "labels": [[str(entry["label"]), round(float(entry["score"]), 4)] for entry in result.labels],
        "moments": result.num_moments,
    }


def answers_view(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """What the answers show: words, the likely moments, and how likely each moment is."""
    return [
        {
            "question": one.question,
            "text": one.text,
            "moments": [[round(time, 3), round(share, 4)] for time, share in one.moments],
            "times": _rounded(one.times, 3),
            "scores": _rounded(one.scores, 4),
        }
        for one in answers
    ]


def scored_view(found: FilmScore) -> dict[str, Any]:
    """What was placed in a clip: when, of which file, why, and what else there is."""
    return {
        "seconds": round(found.seconds, 3),
        "sounds": [
            {
                "time": round(placed.time, 3),
                "end": round(placed.time + placed.seconds, 3),
                "name": os.path.basename(placed.path),
                "fit": round(placed.fit, 1),
                "choices": [os.path.basename(choice.path) for choice in placed.choices],
            }
            for placed in found.placements
        ],
    }


def _signed(value: float) -> str:
    return f"{value:+z.2f}".replace("-", _MINUS)


def _rounded(values: Any, digits: int) -> list[float | None]:
    return [round(float(value), digits) if np.isfinite(value) else None for value in np.asarray(values)]
