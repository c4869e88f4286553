# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The verdict on whether audio and frames of a video fit in time: one for Python, command line, plots and page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

__all__ = ["FITS", "FITS_NOT", "SyncVerdict", "VerdictKind", "give_verdict"]

VerdictKind: TypeAlias = Literal["in sync", "late", "early", "does not fit", "cannot tell"]

# Mean contrast at the best offset, in nats, from which on audio and video fit, and below which they do not; 0 is what
# the average of the windows nearby has. Chosen on 800 pairs of two SyncWorld worlds, shown on 800 of two others:
# `python training/benchmarks/verdict.py`.
FITS, FITS_NOT = 0.15, -0.05
# Share of draws of the video's pieces that must agree on an offset. With half of them, 58 instead of 34 of
# 100 other sentences of the same person passed as late or early (clips of 3 s, steps of 0.04 s).
LEAST_CONFIDENCE = 0.8


@dataclass(frozen=True)
class SyncVerdict:
    """Whether audio and video fit in time.

    Attributes:
        kind: `"in sync"`, `"late"` or `"early"` (the audio), `"does not fit"` or `"cannot tell"`.
        headline: The verdict in a few words, such as `"audio late by 0.42 s"`.
        reason: What it rests on, one sentence.
        offset: Seconds by which the audio is late; `None` unless the two fit.
    """

    kind: VerdictKind
    headline: str
    reason: str
    offset: float | None = None

    @property
    def fits(self) -> bool:
        """Whether audio and video belong together, at whatever offset."""
        return self.offset is not None

    def __str__(self) -> str:
        return self.headline


def give_verdict(
    *,
    offset: float | None,
    confidence: float,
    resolution: float,
    offsets: np.ndarray,
    offset_scores: np.ndarray,
    max_offset: float,
    unchanging: Sequence[str] = (),
) -> SyncVerdict:
    """The verdict that an offset curve allows.

    Args:
        offset: The best offset, seconds; `None` if there is none.
        confidence: Share of draws of the video's pieces that agree on it.
        resolution: How fine an offset can be told, seconds.
        offsets: The offsets tried, ascending, seconds, `(tried,)`.
        offset_scores: Mean contrast at each of them, nats, `(tried,)`.
        max_offset: Largest offset that was asked for, seconds.
        unchanging: `"audio"`, `"video"` or both, where all moments are the same to the model.
    """
    if unchanging:
        kinds = {"audio": "the audio is silent or one steady sound", "video": "the video is a still"}
        return _cannot_tell(" and ".join(kinds[name] for name in unchanging) + " for this model")
    if offset is None:
        return _cannot_tell("the video is too short to try other offsets")
    best = int(np.argmax(offset_scores))
    score, reach = float(offset_scores[best]), float(np.abs(offsets).max())
    if score < FITS_NOT:
        return SyncVerdict(
            "does not fit",
            "audio does not fit",
            f"At no offset within {reach:g} s do audio and frames fit better than chance "
            f"(the best fit is {score:+z.2f}, chance is 0).",
        )
    if best in (0, len(offsets) - 1):
        return _cannot_tell(
            f"the best offset is at the edge of what was searched ({offsets[best]:+g} s); search further than "
            f"{max_offset:g} s"
        )
    if score < FITS:
        return _cannot_tell(
            f"audio and frames fit hardly better than chance (the best fit is {score:+z.2f}, chance is 0)"
        )
    if confidence < LEAST_CONFIDENCE:
        return _cannot_tell(f"only {confidence:.0%} of random selections of the moments agree on an offset")
    reason = (
        f"To within {resolution:.2g} s; {confidence:.0%} of random selections of the moments agree, and the fit is "
        f"{score:+z.2f} (chance is 0)."
    )
    if abs(offset) <= resolution:
        return SyncVerdict("in sync", "in sync", reason, offset)
    kind: VerdictKind = "late" if offset > 0 else "early"
    return SyncVerdict(kind, f"audio {kind} by {abs(offset):.2f} s", reason, offset)


def _cannot_tell(reason: str) -> SyncVerdict:
    return SyncVerdict("cannot tell", "cannot tell", f"{reason[0].upper()}{reason[1:]}.")
