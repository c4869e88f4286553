# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Does a film's sound happen when its pictures say, moment by moment, and if not, how far is it off?

`measure_sync` answers for one film, of any length, with its own sound or another track; `score_alignment` scores a set
of films, such as generated ones, under a protocol that is written down; `detection_figures` says how well the scores
of labelled films tell those in sync from the others.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib import metadata
from typing import Any, Literal

import numpy as np
import torch

from ..data.sources import printable
from ..evaluation.synchrony import QUANTILES, alignment_test, sync_detection
from ..feature_extraction_cavmae_sync import FRAMES_PER_SECOND
from ..media_cavmae_sync import probe_media
from ..media_source_cavmae_sync import describe_source
from .features import choose_features, encode_moments, model_fingerprint
from .sync_band import Band, Outline, band_contrast, shift_test
from .sync_offset import find_offset

__all__ = [
    "SYNC_SCORES",
    "AlignmentScores",
    "SyncError",
    "SyncResult",
    "alignment_protocol",
    "detection_figures",
    "measure_sync",
    "score_alignment",
]

PROTOCOL_VERSION = 1
# Single figures of a film by which films can be told apart.
SYNC_SCORES = ("lead", "contrast", "similarity", "z_score")
DEFAULT_HOP = 0.1
DEFAULT_MAX_OFFSET = 2.0
# Offsets closer to the diagonal than this share of a window overlap with it too much to be another alignment.
_OTHER_ALIGNMENT = 1 / 3
# Mean vectors this long (of unit vectors) stand for sounds or pictures that do not change, or hardly.
_CONSTANT, _NEARLY_CONSTANT = 0.9995, 0.99
_MIN_MOMENTS = 3
_FEWEST_BLOCKS = 8
Progress = Callable[..., None]


class SyncError(ValueError):
    """Synchrony cannot be measured; the message names the file or value, the reason and the remedy."""


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
            raise SyncError(f"There is no score {name!r}; choose one of {', '.join(SYNC_SCORES)}.")
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
        return _plain(values | {"moments": len(self.times), "alignment_score": self.similarity})


@dataclass
class AlignmentScores:
    """Alignment of a set of films.

    Attributes:
        score: Mean over the films of their alignment score, the mean cosine of every window with its own frame.
        standard_error: Of that mean over films; `None` for one film.
        contrast: Mean over the films of their mean contrast: what is left when nothing is owed to sounds and pictures
            that fit everything.
        films: Figures of each film, as `SyncResult.to_dict(series=False)`.
        protocol: How the scores were made.
    """

    score: float
    standard_error: float | None
    contrast: float
    films: list[dict[str, Any]]
    protocol: str

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return _plain({item.name: getattr(self, item.name) for item in fields(self)})


def measure_sync(
    model: Any,
    processor: Any,
    video: Any,
    audio: Any = None,
    *,
    sampling_rate: int | None = None,
    start: float | None = None,
    end: float | None = None,
    hop: float = DEFAULT_HOP,
    max_offset: float = DEFAULT_MAX_OFFSET,
    batch_size: int = 32,
    matrix_limit: int = 600,
    damaged: Literal["error", "keep"] = "error",
    fingerprint: str | None = None,
    progress: Progress | None = None,
) -> SyncResult:
    """Measure how well sound and pictures of one film fit in time.

    The film is read once, some moments at a time: but for the figures of each moment, memory does not grow with its
    length.

    Args:
        model: A `CavMaeSyncModel` with both towers, as `load_model(name, modalities="both")` gives it.
        processor: Its processor.
        video: Path, address, bytes or file object.
        audio: Another sound track for it, a file or waveform, whose time 0 is the film's. Default: the film's own.
        sampling_rate: Of a waveform in `audio`, Hz.
        start: Where in the film to start, seconds.
        end: Where to end, seconds.
        hop: Seconds between moments. Offsets are tried in steps of it.
        max_offset: Largest offset tried both ways, seconds.
        batch_size: Moments decoded and embedded at a time.
        matrix_limit: Moments of the whole matrix at most; films with more give every second, fourth... of theirs.
        damaged: `"keep"` uses what can be decoded of truncated and corrupt files.
        fingerprint: `model_fingerprint` of model and processor where it is known, to spare computing it again.
        progress: Called with seconds done and seconds in all (0 where unknown).

    Returns:
        A `SyncResult`.

    Raises:
        SyncError: The model has one tower, an argument cannot work, or too few moments have both sound and picture.
        MediaError: The film or its sound cannot be read.
    """
    check_towers(model)
    _check_settings(hop, max_offset, batch_size, matrix_limit)
    base = getattr(model, "base_model", model)
    source, audio_source = source_name(video), None if audio is None else source_name(audio)
    reach = round(max_offset / hop)
    band, outline, times = Band(reach), Outline(matrix_limit), _Times()
    with evaluating(base):
        chunks = processor.stream(
            video, hop=hop, num_frames=batch_size, start=start, end=end, damaged=damaged, audio=audio,
            sampling_rate=sampling_rate, device=base.device,
        )  # fmt: skip
        for inputs in track_seconds(chunks, video, start, end, progress):
            sounds, pictures = _embed(base, inputs)
            band.add(sounds, pictures)
            outline.add(times.count, sounds, pictures)
            times.add(inputs["frame_times"][0].numpy(), sounds, pictures)
    settings = _Settings(
        source, audio_source, hop, reach * hop, processor.feature_extractor.audio_length / FRAMES_PER_SECOND,
        alignment_protocol(base, processor, hop, reach * hop, fingerprint), base.config.temperature,
    )  # fmt: skip
    return _assemble(settings, times, band.finish(), outline)


def alignment_protocol(
    model: Any, processor: Any, hop: float, max_offset: float, fingerprint: str | None = None
) -> str:
    """How an alignment score was made, as one line: figures with the same line can be compared.

    Args:
        model: What embedded sound and pictures.
        processor: Its processor.
        hop: Seconds between moments.
        max_offset: Seconds within which the contrast compares.
        fingerprint: `model_fingerprint` of both where it is known.
    """
    extractor = processor.feature_extractor
    crop = processor.video_processor.crop_size
    parts = {
        "score": "mean-cosine",
        "hop": f"{hop:g}s",
        "contrast": f"{max_offset:g}s",
        "window": f"{extractor.audio_length / FRAMES_PER_SECOND:g}s",
        "sound": f"{extractor.sampling_rate}Hz-{extractor.channel}-{extractor.num_mel_bins}mel",
        "picture": f"{crop['height']}x{crop['width']}",
        "model": (fingerprint or model_fingerprint(model, processor))[:16],
        "package": _package_version(),
    }
    return f"cavmae-sync-alignment/{PROTOCOL_VERSION};" + ";".join(f"{key}={value}" for key, value in parts.items())


def score_alignment(
    model: Any,
    processor: Any,
    films: Iterable[Any],
    *,
    hop: float = DEFAULT_HOP,
    max_offset: float = DEFAULT_MAX_OFFSET,
    progress: Progress | None = None,
    **options: Any,
) -> AlignmentScores:
    """The alignment score of a set of films, such as generated ones or films with generated sound.

    Args:
        model: As for `measure_sync`.
        processor: Its processor.
        films: Videos, or pairs `(video, audio)` where the sound is a file or waveform of its own.
        hop: Seconds between moments.
        max_offset: Seconds within which the contrast compares.
        progress: Called with films done and films in all.
        options: More arguments of `measure_sync`.

    Raises:
        SyncError: There are no films, or one cannot be measured.
        MediaError: A film cannot be read.
    """
    pairs = [film if isinstance(film, tuple) else (film, None) for film in films]
    if not pairs:
        raise SyncError("Got no films to score; pass videos, or pairs of video and audio.")
    print_of = model_fingerprint(getattr(model, "base_model", model), processor)
    results = []
    for done, (video, audio) in enumerate(pairs):
        if progress is not None:
            progress(done, len(pairs))
        settings = {"hop": hop, "max_offset": max_offset, "fingerprint": print_of} | options
        results.append(measure_sync(model, processor, video, audio, **settings))
    if progress is not None:
        progress(len(pairs), len(pairs))
    return join_scores(results)


def join_scores(results: Sequence[SyncResult]) -> AlignmentScores:
    """The alignment score of films that were measured under one protocol."""
    protocols = {result.protocol for result in results}
    if len(protocols) != 1:
        raise SyncError(f"Scores of {len(protocols)} protocols cannot be joined; measure all films in the same way.")
    scores = np.array([result.similarity for result in results])
    return AlignmentScores(
        score=float(scores.mean()),
        standard_error=float(scores.std(ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else None,
        contrast=float(np.mean([result.mean_contrast for result in results])),
        films=[result.to_dict(series=False) for result in results],
        protocol=protocols.pop(),
    )


def detection_figures(results: Sequence[SyncResult], in_sync: Sequence[bool]) -> dict[str, dict[str, float]]:
    """How well each of `SYNC_SCORES` tells films in sync from others by one threshold.

    Args:
        results: Of the films.
        in_sync: Whether each is in sync.

    Returns:
        Score -> `auc` and `equal_error_rate`. A score that a film is too short for is left out.

    Raises:
        SyncError: Films of one kind alone.
    """
    truth = np.asarray(in_sync, dtype=bool)
    if len(truth) != len(results) or not truth.any() or truth.all():
        raise SyncError(
            f"{int(truth.sum())} of {len(truth)} labels for {len(results)} films say that a film is in sync; films of "
            "both kinds are needed, with a label each."
        )
    figures = {}
    for name in SYNC_SCORES:
        values = [result.score(name) for result in results]
        if all(value is not None for value in values):
            scores = np.array(values, dtype=np.float64)
            figures[name] = sync_detection(scores[truth], scores[~truth])
    return figures


def check_towers(model: Any) -> None:
    """Refuse models that cannot compare sound and picture."""
    modality = getattr(getattr(model, "config", None), "modality", "multimodal")
    if modality != "multimodal":
        raise SyncError(f"The model has the {modality} tower alone; comparing sound and picture needs both.")


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def track_seconds(
    chunks: Iterator[Any], video: Any, start: float | None, end: float | None, progress: Progress | None
) -> Iterator[Any]:
    """Chunks of a stream, reporting how many seconds of the film are done."""
    begin, total = start or 0.0, 0
    if progress is not None and isinstance(video, str | bytes | os.PathLike):
        duration = probe_media(video).duration
        total = math.ceil(max(0.0, min(duration or 0.0, end or math.inf) - begin))
    for chunk in chunks:
        yield chunk
        if progress is not None:
            done = int(float(chunk["frame_times"][0, -1]) - begin)
            progress(min(done, total) if total else done, total)


def _check_settings(hop: float, max_offset: float, batch_size: int, matrix_limit: int) -> None:
    if not (math.isfinite(hop) and hop > 0 and math.isfinite(max_offset)):
        raise SyncError(f"hop is {hop} and max_offset {max_offset} seconds; both must be above 0.")
    if max_offset < hop:
        raise SyncError(f"max_offset is {max_offset:g} s, less than one hop of {hop:g} s; raise it or lower the hop.")
    if batch_size < 1 or matrix_limit < _MIN_MOMENTS:
        raise SyncError(
            f"batch_size is {batch_size} and matrix_limit {matrix_limit}; use at least 1 and {_MIN_MOMENTS}."
        )


def source_name(source: Any) -> str:
    """What a film or sound is called in results and messages."""
    is_sound = isinstance(source, np.ndarray | torch.Tensor | list | tuple)
    if is_sound or (isinstance(source, Mapping) and source.get("array") is not None):
        return "a waveform"
    return printable(describe_source(source))


def _package_version() -> str:
    try:
        return metadata.version("cavmae-sync-hf")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "0+unknown"


def _embed(model: Any, inputs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of a chunk's windows and frames, `(moments, hidden)` float32, NaN where absent."""
    found = encode_moments(model, inputs, choose_features(("a", "v"), model.config))
    sounds, pictures = found.values["a"][0].numpy().copy(), found.values["v"][0].numpy().copy()
    sounds[~found.audio_present[0].numpy()] = np.nan
    pictures[~found.video_present[0].numpy()] = np.nan
    return sounds, pictures


class _Times:
    """When the moments are, and how much sounds and pictures change."""

    def __init__(self) -> None:
        self.count = 0
        self._times: list[np.ndarray] = []
        self._sums: dict[str, np.ndarray] = {}
        self._counts = {"sound": 0, "picture": 0}

    def add(self, times: np.ndarray, sounds: np.ndarray, pictures: np.ndarray) -> None:
        self.count += len(times)
        self._times.append(times)
        for name, values in (("sound", sounds), ("picture", pictures)):
            present = values[np.isfinite(values[:, 0])].astype(np.float64)
            self._sums[name] = self._sums.get(name, 0.0) + present.sum(axis=0)
            self._counts[name] += len(present)

    def all(self) -> np.ndarray:
        return np.concatenate(self._times) if self._times else np.zeros(0)

    def sameness(self, name: str) -> float:
        """Length of the mean of the unit vectors: 1 where they are all the same."""
        return float(np.linalg.norm(self._sums[name]) / max(1, self._counts[name]))


@dataclass(frozen=True)
class _Settings:
    source: str
    audio_source: str | None
    hop: float
    max_offset: float
    window: float
    protocol: str
    temperature: float


def _assemble(settings: _Settings, seen: _Times, band: np.ndarray, outline: Outline) -> SyncResult:
    """All figures of a film whose moments have been embedded."""
    hop, window = settings.hop, settings.window
    times, reach = seen.all(), band.shape[1] // 2
    scores = band[:, reach]
    present = np.isfinite(scores)
    if present.sum() < _MIN_MOMENTS:
        raise SyncError(
            f"{settings.source}: only {int(present.sum())} of {len(times)} moments have both sound and picture, and "
            f"{_MIN_MOMENTS} are needed; take a longer span, a smaller hop than {hop:g} s, or a film with sound."
        )
    contrast = band_contrast(band, settings.temperature)
    length = len(times) * hop
    block = max(1, round(min(window / 2, length / _FEWEST_BLOCKS) / hop))
    found = find_offset(contrast, hop, block=block)
    constant = [name for name in ("sound", "picture") if seen.sameness(name) > _CONSTANT]
    test, lead = _test(outline, window, hop), _lead(found.offsets, found.scores, window)
    here = scores[present]
    result = SyncResult(
        source=settings.source,
        audio_source=settings.audio_source,
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
        protocol=settings.protocol,
    )
    result.remarks = _remarks(result, seen, constant, found.at_edge, length)
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


def _remarks(result: SyncResult, seen: _Times, constant: list[str], at_edge: bool, length: float) -> list[str]:
    """What a reader should know before believing the figures."""
    remarks = []
    absent = int((~np.isfinite(result.scores)).sum())
    if absent:
        remarks.append(f"{absent} of {len(result.times)} moments lack sound or picture and do not count.")
    for name in ("sound", "picture"):
        if name in constant:
            words = "silent, or one steady tone" if name == "sound" else "a still"
            remarks.append(f"The {name} does not change for this model ({words}): no offset can be told.")
        elif seen.sameness(name) > _NEARLY_CONSTANT:
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


def _plain(value: Any) -> Any:
    """Values as JSON takes them."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
