"""The verdict on synchrony: each kind, with its reason, from an offset curve."""

import numpy as np
import pytest

from cavmae_sync_hf.inference.verdict import FITS, FITS_NOT, give_verdict

OFFSETS = np.arange(-5, 6) * 0.1


def curve(best: float, top: float) -> np.ndarray:
    """Scores with their highest, `top`, at the offset `best`."""
    return top - 4.0 * np.abs(OFFSETS - best)


def verdict_of(best: float = 0.0, top: float = 0.5, **changes):
    values = {"offset": best, "confidence": 0.9, "resolution": 0.1, "offsets": OFFSETS, "max_offset": 0.5}
    return give_verdict(**(values | {"offset_scores": curve(best, top)} | changes))


@pytest.mark.parametrize(
    ("verdict", "kind", "headline", "reason"),
    [
        (verdict_of(), "in sync", "in sync", "90% of random selections"),
        (verdict_of(0.1), "in sync", "in sync", "To within 0.1 s"),
        (verdict_of(0.3), "late", "audio late by 0.30 s", "To within 0.1 s"),
        (verdict_of(-0.3), "early", "audio early by 0.30 s", "To within 0.1 s"),
        (verdict_of(top=FITS_NOT - 0.01), "does not fit", "audio does not fit", "At no offset within 0.5 s"),
        (verdict_of(0.5, top=FITS_NOT - 0.01), "does not fit", "audio does not fit", "At no offset"),
        (verdict_of(top=FITS - 0.01), "cannot tell", "cannot tell", "hardly better than chance"),
        (verdict_of(0.5), "cannot tell", "cannot tell", "at the edge of what was searched (+0.5 s)"),
        (verdict_of(confidence=0.4), "cannot tell", "cannot tell", "only 40% of random selections"),
        (verdict_of(offset=None), "cannot tell", "cannot tell", "too short"),
        (verdict_of(unchanging=["audio"]), "cannot tell", "cannot tell", "silent or one steady sound"),
        (verdict_of(unchanging=["audio", "video"]), "cannot tell", "cannot tell", "and the video is a still"),
    ],
)
def test_verdict__kinds_and_reasons(verdict, kind, headline, reason):
    assert (verdict.kind, str(verdict)) == (kind, headline)
    assert reason.lower() in verdict.reason.lower() and verdict.reason.endswith(".")
    assert verdict.fits == (kind in ("in sync", "late", "early"))


def test_verdict__bounds_are_where_they_are_said_to_be():
    assert verdict_of(top=FITS).kind == "in sync" and verdict_of(top=FITS_NOT).kind == "cannot tell"
