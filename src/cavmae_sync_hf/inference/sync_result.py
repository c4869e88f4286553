# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What are the figures of a film's synchrony, and how do they come from the embeddings of its moments?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ..metrics.synchrony import QUANTILES, alignment_test
from ..model.alignment_cavmae_sync import window_seconds
from ..model.errors_cavmae_sync import InferenceError
from .sync_band import Band, Outline, band_contrast, shift_test
from .sync_offset import find_offset

__all__ = [
    "DEFAULT_MAX_OFFSET",
    "SYNC_SCORES",
    "Gathered",
    "SyncResult",
    "SyncSettings",
    "assemble",
    "plain",
    "sync_from_embeddings",
]

DEFAULT_MAX_OFFSET = 2.0
# Single figures of a film by which films can be told apart.
SYNC_SCORES = ("lead", "contrast", "similarity", "z_score")
# Offsets closer to the diagonal than this share of a window overlap with it too much to be another alignment.
_OTHER_ALIGNMENT = 1 / 3
# Mean vectors this long (of unit vectors) stand for sounds or pictures that do not change, or hardly.
_CONSTANT, _NEARLY_CONSTANT = 0.9995, 0.99
_MIN_MOMENTS = 3
_FEWEST_BLOCKS = 8


@dataclass
class SyncResult:
    """How well a film's sound and pictures fit in time.

    Moments lie `hop` seconds apart. Times are seconds of the film's file. Offsets are seconds by which the sound is
    late: positive when it comes after its picture, so that playing it earlier by that much repairs the film.

    Attributes:
        source: Name of the film.
        audio_source: Name of its sound track, where that is another file.
        times: When each moment's frame is on screen, `(moments,)`; the window of sound is centred there.
        scores: Cosine of each moment's window and frame, `(moments,)`, NaN where one is absent.
        contrast: How much better the two fit than others within `max_offset`, in nats, `(moments,)`; 0 is chance.
        band: Cosine of every frame with the windows around it, `(moments, offsets)`; NaN where there is none.
        band_offsets: Offset of each column of the band, `(offsets,)`.
        matrix: Cosine of every window with every frame, `[window, frame]`; of evenly spread moments in a long film.
        matrix_times: Times of the matrix's moments.
        offset: The offset at which sound and picture fit best; `None` if it cannot be told.
        resolution: How fine the offset can be at best: the hop, or the time between frames where that is longer. Its
            place between two steps is interpolated.
        confidence: Share of random draws of the film's pieces that have the same offset to within one hop.
        interval: 5 % and 95 % of these draws' offsets.
        offsets: The offsets tried, `(tried,)`.
        offset_scores: Mean contrast at each of them, `(tried,)`.
        similarity: Mean of `scores`, the fine-grained alignment score.
        maximum, minimum, quantiles: Of `scores`.
        mean_contrast: Mean of `contrast`.
        lead: Mean contrast without an offset less the best one at clearly other offsets; above 0 in sync. `None` for
            films too short for another offset.
        test: The diagonal of `matrix` against the rest: `z_score`, `p_value`, `effect` and means of `alignment_test`,
            and `shift_p_value`, the share of turns of the sound track that fit as well (see `shift_test`), which is
            fair to moments that lie close together, of `shifts`.
        hop, max_offset, window: Seconds.
        protocol: How all this was measured: the same string means comparable figures.
        remarks: What a reader of the figures should know.
    """

    source: str
    audio_source: str | None
    times: np.ndarray
    scores: np.ndarray
    contrast: np.ndarray
    band: np.ndarray
    band_offsets: np.ndarray
    matrix: np.ndarray
    matrix_times: np.ndarray
    offset: float | None
    resolution: float
    confidence: float
    interval: tuple[float, float] | None
    offsets: np.ndarray
    offset_scores: np.ndarray
    similarity: float
    maximum: float
    minimum: float
    quantiles: dict[float, float]
    mean_contrast: float
    lead: float | None
    test: dict[str, float | int | None]
    hop: float
    max_offset: float
    window: float
    protocol: str
    remarks: list[str] = field(default_factory=list)

    @property
    def alignment_score(self) -> float:
        """Mean cosine of every window with its own frame; comparable between equal protocols."""
        return self.similarity

    def score(self, name: str) -> float | None:
        """One of `SYNC_SCORES`."""
        if name not in SYNC_SCORES:
            raise InferenceError(f"There is no score {name!r}; choose one of {', '.join(SYNC_SCORES)}.")
        values = {"lead": self.lead, "contrast": self.mean_contrast, "z_score": self.test["z_score"]}
        return values.get(name, self.similarity)

    def to_dict(self, series: bool = True) -> dict[str, Any]:
        """Ready for JSON, what is not finite as `None`; without the matrix and the band.

        Args:
            series: Whether to include what has one entry per moment.
        """
        left_out = {"band", "band_offsets", "matrix", "matrix_times"}
        if not series:
            left_out |= {"times", "scores", "contrast"}
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in left_out}
        return plain(values | {"moments": len(self.times), "alignment_score": self.similarity})


def sync_from_embeddings(
    audio_embeds: np.ndarray,
    video_embeds: np.ndarray,
    times: np.ndarray,
    processor: Any,
    temperature: float,
    *,
    hop: float,
    max_offset: float = DEFAULT_MAX_OFFSET,
    matrix_limit: int = 600,
    source: str = "the embeddings",
    protocol: str = "",
) -> SyncResult:
    """`measure_sync` where the embeddings are there already.

    Args:
        audio_embeds: Of every moment's window, L2-normalised, `(moments, hidden)`; NaN where absent.
        video_embeds: Of every moment's frame, likewise.
        times: Of the moments, seconds, `(moments,)`, `hop` apart.
        processor: What made the windows and frames.
        temperature: `model.config.temperature`.
        hop: Seconds between moments.
        max_offset: As for `measure_sync`.
        matrix_limit: As for `measure_sync`.
        source: Name of the film.
        protocol: How the embeddings were made, where that is to be kept.
    """
    gathered = Gathered(SyncSettings.of(processor, temperature, hop, max_offset), matrix_limit)
    gathered.add(
        np.asarray(times, np.float64), np.asarray(audio_embeds, np.float32), np.asarray(video_embeds, np.float32)
    )
    return assemble(gathered, source, None, protocol)


@dataclass(frozen=True)
class SyncSettings:
    """Seconds between moments, of the largest offset and of a window, and the temperature of the loss."""

    hop: float
    max_offset: float
    window: float
    temperature: float

    @classmethod
    def of(cls, processor: Any, temperature: float, hop: float, max_offset: float) -> "SyncSettings":
        """Checked settings; the largest offset becomes a whole number of hops.

        Raises:
            InferenceError: A value cannot work.
        """
        if not (math.isfinite(hop) and hop > 0 and math.isfinite(max_offset)):
            raise InferenceError(f"hop is {hop} and max_offset {max_offset} seconds; both must be above 0.")
        if max_offset < hop:
            raise InferenceError(
                f"max_offset is {max_offset:g} s, less than one hop of {hop:g} s; raise it or lower the hop."
            )
        window = window_seconds(processor.feature_extractor.audio_length)
        return cls(hop, round(max_offset / hop) * hop, window, temperature)

    @property
    def reach(self) -> int:
        """Steps of the largest offset."""
        return round(self.max_offset / self.hop)


class Gathered:
    """What is kept of a film's moments: their times, band and outline, and how much sound and picture change."""

    def __init__(self, settings: SyncSettings, matrix_limit: int) -> None:
        if matrix_limit < _MIN_MOMENTS:
            raise InferenceError(f"matrix_limit is {matrix_limit}; keep at least {_MIN_MOMENTS} moments.")
        self.settings = settings
        self.band, self.outline = Band(settings.reach), Outline(matrix_limit)
        self.count = 0
        self._times: list[np.ndarray] = []
        self._sums: dict[str, np.ndarray] = {}
        self._counts = {"sound": 0, "picture": 0}

    def add(self, times: np.ndarray, sounds: np.ndarray, pictures: np.ndarray) -> None:
        """Take the next moments: their times, and embeddings with NaN for what is absent."""
        self.band.add(sounds, pictures)
        self.outline.add(self.count, sounds, pictures)
        self.count += len(times)
        self._times.append(times)
        for name, values in (("sound", sounds), ("picture", pictures)):
            present = values[np.isfinite(values[:, 0])].astype(np.float64)
            self._sums[name] = self._sums.get(name, 0.0) + present.sum(axis=0)
            self._counts[name] += len(present)

    @property
    def times(self) -> np.ndarray:
        """Of all moments, seconds."""
        return np.concatenate(self._times) if self._times else np.zeros(0)

    def sameness(self, name: str) -> float:
        """Length of the mean of the unit vectors: 1 where they are all the same."""
        return float(np.linalg.norm(self._sums[name]) / max(1, self._counts[name]))


def assemble(gathered: Gathered, source: str, audio_source: str | None, protocol: str) -> SyncResult:
    """All figures of a film whose moments have been embedded."""
    settings, outline = gathered.settings, gathered.outline
    hop, window, reach = settings.hop, settings.window, settings.reach
    times, band = gathered.times, gathered.band.finish()
    scores = band[:, reach]
    present = np.isfinite(scores)
    if present.sum() < _MIN_MOMENTS:
        raise InferenceError(
            f"{source}: only {int(present.sum())} of {len(times)} moments have both sound and picture, and "
            f"{_MIN_MOMENTS} are needed; take a longer span, a smaller hop than {hop:g} s, or a film with sound."
        )
    contrast = band_contrast(band, settings.temperature)
    length = len(times) * hop
    block = max(1, round(min(window / 2, length / _FEWEST_BLOCKS) / hop))
    found = find_offset(contrast, hop, block=block)
    constant = [name for name in ("sound", "picture") if gathered.sameness(name) > _CONSTANT]
    test, lead = _test(outline, window, hop), _lead(found.offsets, found.scores, window)
    here = scores[present]
    result = SyncResult(
        source=source,
        audio_source=audio_source,
        times=times,
        scores=scores,
        contrast=contrast[:, reach],
        band=band,
        band_offsets=np.arange(-reach, reach + 1) * hop,
        matrix=outline.matrix(),
        matrix_times=times[outline.indices],
        offset=None if constant else found.offset,
        resolution=max(hop, _frame_period(times)),
        confidence=0.0 if constant else found.confidence,
        interval=None if constant else found.interval,
        offsets=found.offsets,
        offset_scores=found.scores,
        similarity=float(here.mean(dtype=np.float64)),
        maximum=float(here.max()),
        minimum=float(here.min()),
        quantiles={level: float(np.quantile(here, level)) for level in QUANTILES},
        mean_contrast=float(np.nanmean(contrast[:, reach])),
        lead=lead,
        test=test,
        hop=hop,
        max_offset=settings.max_offset,
        window=window,
        protocol=protocol,
    )
    result.remarks = _remarks(result, gathered, constant, found.at_edge, length)
    return result


def _lead(offsets: np.ndarray, scores: np.ndarray, window: float) -> float | None:
    """How far no offset is ahead of clearly other ones."""
    other = np.abs(offsets) >= window * _OTHER_ALIGNMENT - 1e-9
    here = np.abs(offsets) < 1e-9
    return float(scores[here][0] - scores[other].max()) if other.any() and here.any() else None


def _test(outline: Outline, window: float, hop: float) -> dict[str, float | int | None]:
    """The diagonal against the rest, over the moments of the outline."""
    matrix = outline.matrix()
    present = np.isfinite(matrix.diagonal())
    count = int(present.sum())
    empty = ("z_score", "p_value", "effect", "diagonal_mean", "off_diagonal_mean", "shift_p_value")
    if count < _MIN_MOMENTS:
        return dict.fromkeys(empty) | {"shifts": 0}
    # Windows that share sound with each other are no alternatives to each other.
    apart = max(1, min(round(window / (hop * outline.stride)), (count - 1) // 2))
    found = alignment_test(matrix, window_mask=present, frame_mask=present, exclude=apart)
    turned = shift_test(matrix[np.ix_(present, present)], apart)
    return {
        "z_score": found.z_score,
        "p_value": found.p_value,
        "effect": found.effect,
        "diagonal_mean": found.diagonal_mean,
        "off_diagonal_mean": found.off_diagonal_mean,
        "shift_p_value": None if turned is None else turned[0],
        "shifts": 0 if turned is None else turned[1],
    }


def _frame_period(times: np.ndarray) -> float:
    """Mean seconds between different frames where moments share frames, else 0."""
    distinct = np.unique(times)
    if len(distinct) == len(times) or len(distinct) < 2:
        return 0.0
    return float(distinct[-1] - distinct[0]) / (len(distinct) - 1)


def _remarks(result: SyncResult, gathered: Gathered, constant: list[str], at_edge: bool, length: float) -> list[str]:
    """What a reader should know before believing the figures."""
    remarks = []
    absent = int((~np.isfinite(result.scores)).sum())
    if absent:
        remarks.append(f"{absent} of {len(result.times)} moments lack sound or picture and do not count.")
    for name in ("sound", "picture"):
        if name in constant:
            words = "silent, or one steady tone" if name == "sound" else "a still"
            remarks.append(f"The {name} does not change for this model ({words}): no offset can be told.")
        elif gathered.sameness(name) > _NEARLY_CONSTANT:
            remarks.append(f"The {name} hardly changes for this model; the figures mean little.")
    if not constant:
        remarks += _offset_remarks(result, at_edge, length)
    if result.window > length / 2:
        remarks.append(f"A window of {result.window:g} s is more than half of these {length:g} s.")
    return remarks


def _offset_remarks(result: SyncResult, at_edge: bool, length: float) -> list[str]:
    if result.offset is None:
        return [f"{length:g} s are too short to try offsets in steps of {result.hop:g} s."]
    remarks = []
    tried = float(np.abs(result.offsets).max())
    if tried < result.max_offset - result.hop / 2:
        remarks.append(f"These {length:g} s are long enough for offsets up to {tried:g} s only.")
    if at_edge:
        remarks.append(f"The best offset is the largest one tried ({tried:g} s); the true one may lie beyond.")
    if result.confidence < 0.5:
        remarks.append("The offset is a guess: most draws of the film's pieces give another one.")
    if result.resolution > result.hop:
        remarks.append(
            f"There is a frame every {result.resolution:.3g} s only; the hop of {result.hop:g} s is finer than that."
        )
    return remarks


def plain(value: Any) -> Any:
    """Values as JSON takes them; what is not finite as `None`."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
