# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Synchrony of audio and video, moment by moment: scores, and by how much the audio is late.

`measure_sync` is for one video, of any length, with its own audio or another track; `score_alignment` scores a set of
videos, such as generated ones, under a protocol that is written down; `detection_metrics` says how well the scores of
labelled videos tell those in sync from the others.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from importlib import metadata
from typing import Any, Literal, cast

import numpy as np

from ..files import StrPath, plain, whole_file
from ..metrics.synchrony import QUANTILES, alignment_test, sync_detection
from ..model.alignment_cavmae_sync import window_seconds
from ..model.errors_cavmae_sync import CavMaeSyncError, InferenceError
from ..model.modeling_cavmae_sync import CavMaeSyncModel, CavMaeSyncPreTrainedModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..provenance import model_fingerprint
from .features import check_towers, evaluating
from .moments import MediaSpan, OnError, Progress, embed_moments, report_seconds, source_name
from .sync_band import Band, Outline, band_contrast, find_offset, shift_test
from .verdict import SyncVerdict, give_verdict

PROTOCOL_VERSION = 1
DEFAULT_HOP = 0.1
DEFAULT_MAX_OFFSET = 2.0
# Single values of a video by which videos can be told apart.
SYNC_SCORES = ("lead", "contrast", "similarity", "z_score")
# Offsets closer to the diagonal than this share of a window overlap with it too much to be another alignment.
_OTHER_ALIGNMENT = 1 / 3
# Mean vectors this long (of unit vectors) stand for audio or frames that do not change, or hardly.
_CONSTANT, _NEARLY_CONSTANT = 0.9995, 0.99
_MIN_MOMENTS = 3
_FEWEST_BLOCKS = 8


@dataclass
class SyncResult:
    """How well the audio and the frames of a video fit in time.

    Moments lie `hop` seconds apart. Times are seconds of the video's file. Offsets are seconds by which the audio is
    late: positive when it comes after its frame, so that playing it earlier by that much repairs the video.

    Attributes:
        source: Name of the video.
        audio_source: Name of its audio track, where that is another file.
        times: When each moment's frame is on screen, `(moments,)`; the audio window is centred there.
        scores: Cosine of each moment's window and frame, `(moments,)`, NaN where one is absent.
        contrast: How much better the two fit than others within `max_offset`, in nats, `(moments,)`; 0 is chance.
        band: Cosine of every frame with the windows around it, `(moments, offsets)`; NaN where there is none.
        band_offsets: Offset of each column of the band, `(offsets,)`.
        matrix: Cosine of every window with every frame, `[window, frame]`; of evenly spread moments in a long video.
        matrix_times: Times of the matrix's moments.
        offset: The offset at which audio and video fit best; `None` if it cannot be told.
        resolution: How fine the offset can be at best: the hop, or the time between frames where that is longer. Its
            place between two steps is interpolated.
        confidence: Share of random draws of the video's pieces that have the same offset to within one hop.
        interval: 5 % and 95 % of these draws' offsets.
        offsets: The offsets tried, `(tried,)`.
        offset_scores: Mean contrast at each of them, `(tried,)`.
        similarity: Mean of `scores`, the fine-grained alignment score.
        maximum, minimum, quantiles: Of `scores`.
        mean_contrast: Mean of `contrast`.
        lead: Mean contrast without an offset less the best one at clearly other offsets; above 0 in sync. `None` for
            videos too short for another offset.
        test: The diagonal of `matrix` against the rest: `z_score`, `p_value`, `effect` and means of `alignment_test`,
            and `shift_p_value`, the share of turns of the audio track that fit as well (see `shift_test`), which is
            fair to moments that lie close together, of `shifts`.
        hop, max_offset, window: Seconds.
        protocol: How all this was measured: the same string means comparable values.
        unchanging: `"audio"`, `"video"` or both, where all moments are the same to the model.
        remarks: What a reader of the values should know.
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
    unchanging: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> SyncVerdict:
        """Whether audio and video fit in time, in words that every surface uses."""
        return give_verdict(
            offset=self.offset,
            confidence=self.confidence,
            resolution=self.resolution,
            offsets=self.offsets,
            offset_scores=self.offset_scores,
            max_offset=self.max_offset,
            unchanging=self.unchanging,
        )

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
        verdict = {"kind": self.verdict.kind, "headline": self.verdict.headline, "reason": self.verdict.reason}
        counts = {"moments": len(self.times), "alignment_score": self.similarity}
        return _rounded(plain({"verdict": verdict} | values | counts))

    def save_arrays(self, path: StrPath, *, overwrite: bool = False) -> None:
        """Write series, band and matrix as a NumPy archive; `overwrite` replaces an earlier one."""
        names = (
            "times", "scores", "contrast", "band", "band_offsets", "matrix", "matrix_times", "offsets",
            "offset_scores",
        )  # fmt: skip
        with whole_file(path, overwrite=overwrite) as partial:
            np.savez_compressed(partial, **{name: getattr(self, name) for name in names})


@dataclass
class AlignmentScores:
    """Alignment of a set of videos.

    Attributes:
        score: Mean over the videos of their alignment score, the mean cosine of every window with its own frame.
        standard_error: Of that mean over videos; `None` for one video.
        contrast: Mean over the videos of their mean contrast: what is left when nothing is owed to audio and frames
            that fit everything.
        videos: Values of each video, as `SyncResult.to_dict(series=False)`.
        protocol: How the scores were made.
    """

    score: float
    standard_error: float | None
    contrast: float
    videos: list[dict[str, Any]]
    protocol: str

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return _rounded(plain({item.name: getattr(self, item.name) for item in fields(self)}))


def measure_sync(
    model: CavMaeSyncPreTrainedModel,
    processor: CavMaeSyncProcessor,
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
    channel: Literal["first", "mean"] | None = None,
    audio_track: int | str | None = None,
    fingerprint: str | None = None,
    progress: Progress | None = None,
) -> SyncResult:
    """Measure how well audio and frames of one video fit in time.

    The video is read once, some moments at a time: but for the values of each moment, memory does not grow with its
    length.

    Args:
        model: A model with both towers, as `load_model(name, modalities="both")` gives it.
        processor: Its processor.
        video: Path, address, bytes or file object.
        audio: Another audio track for it, a file or waveform, whose time 0 is the video's. Default: the video's own.
        sampling_rate: Of a waveform in `audio`, Hz.
        start: Where in the video to start, seconds.
        end: Where to end, seconds.
        hop: Seconds between moments. Offsets are tried in steps of it.
        max_offset: Largest offset tried both ways, seconds.
        batch_size: Moments decoded and embedded at a time.
        matrix_limit: Moments of the whole matrix at most; videos with more give every second, fourth... of theirs.
        damaged: `"keep"` uses what can be decoded of truncated and corrupt files.
        channel: `"first"` or `"mean"` of several audio channels; default: the processor's.
        audio_track: Which audio track of files that have several: its number, counted from 0, or its language such as
            `"de"`. Default: the one that a player plays.
        fingerprint: `model_fingerprint` of model and processor where it is known, to spare computing it again.
        progress: Called with seconds done and seconds in all (0 where unknown).

    Returns:
        A `SyncResult`.

    Raises:
        InferenceError: The model has one tower, an argument cannot work, or too few moments have audio and video.
        MediaError: The video or its audio cannot be read.
    """
    span = MediaSpan(video, audio=audio, sampling_rate=sampling_rate, start=start, end=end)
    options: dict[str, Any] = {"hop": hop, "max_offset": max_offset, "batch_size": batch_size}
    options |= {"matrix_limit": matrix_limit, "damaged": damaged, "fingerprint": fingerprint}
    options |= {"channel": channel, "audio_track": audio_track}
    (result,) = _measure_each(model, processor, [span], progress=progress, **options)
    return result


def score_alignment(
    model: CavMaeSyncPreTrainedModel,
    processor: CavMaeSyncProcessor,
    videos: Iterable[Any],
    *,
    hop: float = DEFAULT_HOP,
    max_offset: float = DEFAULT_MAX_OFFSET,
    progress: Progress | None = None,
    on_error: OnError | None = None,
    **options: Any,
) -> AlignmentScores:
    """The alignment score of a set of videos, such as generated ones or videos with generated audio.

    Args:
        model: As for `measure_sync`.
        processor: Its processor.
        videos: Videos, or pairs `(video, audio)` where the audio is a file or waveform of its own.
        hop: Seconds between moments.
        max_offset: Seconds within which the contrast compares.
        progress: Called with videos done and videos in all.
        on_error: Called with the name and the error of each video that cannot be used; it is then left out of the
            score. Default: its error is raised.
        options: More arguments of `measure_sync`.

    Raises:
        InferenceError: There are no videos, or one cannot be measured, or none can.
        MediaError: A video cannot be read.
    """
    pairs = [video if isinstance(video, tuple) else (video, None) for video in videos]
    if not pairs:
        raise InferenceError("Got no videos to score; pass videos, or pairs of video and audio.")
    where = {name: options.pop(name, None) for name in ("sampling_rate", "start", "end")}
    spans = [MediaSpan(video, audio=audio, **where) for video, audio in pairs]
    results: list[SyncResult] = []
    options |= {"hop": hop, "max_offset": max_offset, "on_error": on_error}
    for result in _measure_each(model, processor, spans, **options):
        if progress is not None:
            progress(len(results), len(pairs))
        results.append(result)
    if not results:
        raise InferenceError(f"None of {len(pairs)} videos can be measured.")
    if progress is not None:
        progress(len(pairs), len(pairs))
    return join_scores(results)


def _measure_each(
    model: CavMaeSyncPreTrainedModel,
    processor: CavMaeSyncProcessor,
    spans: Sequence[MediaSpan],
    *,
    hop: float,
    max_offset: float,
    batch_size: int = 32,
    matrix_limit: int = 600,
    damaged: str = "error",
    channel: str | None = None,
    audio_track: int | str | None = None,
    fingerprint: str | None = None,
    progress: Progress | None = None,
    on_error: OnError | None = None,
) -> Iterator[SyncResult]:
    """The results of videos, several of which are decoded at a time."""
    check_towers(model)
    processor = processor.with_audio_choice(channel, audio_track)
    if batch_size < 1:
        raise InferenceError(f"batch_size is {batch_size}; embed at least 1 moment at a time.")
    base = cast(CavMaeSyncModel, model.base_model)
    settings = _Settings.of(processor, base.config.temperature, hop, max_offset)
    protocol = ""
    with evaluating(base):
        # Batches do not reach over videos, so that a video's values do not depend on others.
        groups = embed_moments(base, processor, spans, hop=hop, num_frames=batch_size, batch_size=1, damaged=damaged)
        for span, chunks in groups:
            protocol = protocol or alignment_protocol(
                base, processor, hop=hop, max_offset=settings.max_offset, fingerprint=fingerprint
            )
            gathered = _Gathered(settings, matrix_limit)
            try:
                show = report_seconds(progress, span)
                for chunk in chunks:
                    audio, video = (
                        np.where(present[:, None], chunk.values[name], np.float32(np.nan))
                        for name, present in (("a", chunk.audio_present), ("v", chunk.video_present))
                    )
                    gathered.add(chunk.times, audio, video)
                    show(float(chunk.times[-1]))
                audio_source = None if span.audio is None else source_name(span.audio)
                result = _assemble(gathered, source_name(span.media), audio_source, protocol)
            except CavMaeSyncError as error:
                if on_error is None:
                    raise
                on_error(source_name(span.media), error)
            else:
                yield result


def alignment_protocol(
    model: CavMaeSyncPreTrainedModel,
    processor: CavMaeSyncProcessor,
    *,
    hop: float,
    max_offset: float,
    fingerprint: str | None = None,
) -> str:
    """How an alignment score was made, as one line: values with the same line can be compared.

    Args:
        model: What embedded audio and frames.
        processor: Its processor.
        hop: Seconds between moments.
        max_offset: Seconds within which the contrast compares.
        fingerprint: `model_fingerprint` of both where it is known.
    """
    extractor = processor.feature_extractor
    crop = processor.video_processor.crop_size
    try:
        version = metadata.version("cavmae-sync-hf")
    except metadata.PackageNotFoundError:  # run from a source tree
        version = "0+unknown"
    # The names are those of version 1, which published scores carry.
    parts = {
        "score": "mean-cosine",
        "hop": f"{hop:g}s",
        "contrast": f"{max_offset:g}s",
        "window": f"{window_seconds(extractor.audio_length):g}s",
        "sound": f"{extractor.sampling_rate}Hz-{extractor.channel}-{extractor.num_mel_bins}mel",
        "picture": f"{crop['height']}x{crop['width']}",
        "model": (fingerprint or model_fingerprint(model, processor))[:16],
        "package": version,
    }
    if processor.audio_track is not None:
        parts["track"] = str(processor.audio_track)
    return f"cavmae-sync-alignment/{PROTOCOL_VERSION};" + ";".join(f"{key}={value}" for key, value in parts.items())


def join_scores(results: Sequence[SyncResult]) -> AlignmentScores:
    """The alignment score of videos that were measured under one protocol."""
    protocols = {result.protocol for result in results}
    if len(protocols) != 1:
        raise InferenceError(
            f"Scores of {len(protocols)} protocols cannot be joined; measure all videos in the same way."
        )
    scores = np.array([result.similarity for result in results])
    return AlignmentScores(
        score=float(scores.mean()),
        standard_error=float(scores.std(ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else None,
        contrast=float(np.mean([result.mean_contrast for result in results])),
        videos=[result.to_dict(series=False) for result in results],
        protocol=protocols.pop(),
    )


def detection_metrics(results: Sequence[SyncResult], in_sync: Sequence[bool]) -> dict[str, dict[str, float]]:
    """How well each of `SYNC_SCORES` tells videos in sync from others by one threshold.

    Args:
        results: Of the videos.
        in_sync: Whether each is in sync.

    Returns:
        Score -> `auc` and `equal_error_rate`. A score that a video is too short for is left out.

    Raises:
        InferenceError: Videos of one kind alone.
    """
    truth = np.asarray(in_sync, dtype=bool)
    if len(truth) != len(results) or not truth.any() or truth.all():
        raise InferenceError(
            f"{int(truth.sum())} of {len(truth)} labels for {len(results)} videos say that a video is in sync; videos "
            "of both kinds are needed, with a label each."
        )
    metrics = {}
    for name in SYNC_SCORES:
        values = [result.score(name) for result in results]
        if all(value is not None for value in values):
            scores = np.array(values, dtype=np.float64)
            metrics[name] = sync_detection(scores[truth], scores[~truth])
    return metrics


def sync_from_embeddings(
    audio_embeds: np.ndarray,
    video_embeds: np.ndarray,
    times: np.ndarray,
    processor: CavMaeSyncProcessor,
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
        source: Name of the video.
        protocol: How the embeddings were made, where that is to be kept.
    """
    gathered = _Gathered(_Settings.of(processor, temperature, hop, max_offset), matrix_limit)
    gathered.add(
        np.asarray(times, np.float64), np.asarray(audio_embeds, np.float32), np.asarray(video_embeds, np.float32)
    )
    return _assemble(gathered, source, None, protocol)


@dataclass(frozen=True)
class _Settings:
    """Seconds between moments, of the largest offset and of a window, and the temperature of the loss."""

    hop: float
    max_offset: float
    window: float
    temperature: float

    @classmethod
    def of(cls, processor: CavMaeSyncProcessor, temperature: float, hop: float, max_offset: float) -> "_Settings":
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


class _Gathered:
    """What is kept of a video's moments: their times, band and outline, and how much audio and frames change."""

    def __init__(self, settings: _Settings, matrix_limit: int) -> None:
        if matrix_limit < _MIN_MOMENTS:
            raise InferenceError(f"matrix_limit is {matrix_limit}; keep at least {_MIN_MOMENTS} moments.")
        self.settings = settings
        self.band, self.outline = Band(settings.reach), Outline(matrix_limit)
        self.count = 0
        self.times: list[np.ndarray] = []
        self._sums: dict[str, np.ndarray] = {}
        self._counts = {"audio": 0, "video": 0}

    def add(self, times: np.ndarray, audio: np.ndarray, video: np.ndarray) -> None:
        """Take the next moments: their times, and embeddings with NaN for what is absent."""
        self.band.add(audio, video)
        self.outline.add(self.count, audio, video)
        self.count += len(times)
        self.times.append(times)
        for name, values in (("audio", audio), ("video", video)):
            present = values[np.isfinite(values[:, 0])].astype(np.float64)
            self._sums[name] = self._sums.get(name, 0.0) + present.sum(axis=0)
            self._counts[name] += len(present)

    def sameness(self, name: str) -> float:
        """Length of the mean of the unit vectors: 1 where they are all the same."""
        return float(np.linalg.norm(self._sums[name]) / max(1, self._counts[name]))


def _assemble(gathered: _Gathered, source: str, audio_source: str | None, protocol: str) -> SyncResult:
    """All values of a video whose moments have been embedded."""
    settings, outline = gathered.settings, gathered.outline
    hop, window, reach = settings.hop, settings.window, settings.reach
    times, band = np.concatenate(gathered.times), gathered.band.finish()
    scores = band[:, reach]
    present = np.isfinite(scores)
    if present.sum() < _MIN_MOMENTS:
        raise InferenceError(
            f"{source}: only {int(present.sum())} of {len(times)} moments have both audio and video, and "
            f"{_MIN_MOMENTS} are needed; take a longer span, a smaller hop than {hop:g} s, or a video with audio."
        )
    contrast = band_contrast(band, settings.temperature)
    length = len(times) * hop
    block = max(1, round(min(window / 2, length / _FEWEST_BLOCKS) / hop))
    found = find_offset(contrast, hop, block=block)
    constant = [name for name in ("audio", "video") if gathered.sameness(name) > _CONSTANT]
    here = scores[present]
    zero = np.abs(found.offsets) < 1e-9
    other = np.abs(found.offsets) >= window * _OTHER_ALIGNMENT - 1e-9
    lead = float(found.scores[zero][0] - found.scores[other].max()) if zero.any() and other.any() else None
    distinct = np.unique(times)  # where moments share frames, these are further apart than a hop
    shared = 2 <= len(distinct) < len(times)
    frame_period = float(distinct[-1] - distinct[0]) / (len(distinct) - 1) if shared else 0.0
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
        resolution=max(hop, frame_period),
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
        test=_test(outline, window, hop),
        hop=hop,
        max_offset=settings.max_offset,
        window=window,
        protocol=protocol,
        unchanging=constant,
    )
    result.remarks = _remarks(result, gathered, length=length)
    return result


def _test(outline: Outline, window: float, hop: float) -> dict[str, float | int | None]:
    """The diagonal against the rest, over the moments of the outline."""
    matrix = outline.matrix()
    present = np.isfinite(matrix.diagonal())
    count = int(present.sum())
    empty = ("z_score", "p_value", "effect", "diagonal_mean", "off_diagonal_mean", "shift_p_value")
    if count < _MIN_MOMENTS:
        return dict.fromkeys(empty) | {"shifts": 0}
    # Windows that share audio with each other are no alternatives to each other.
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


def _remarks(result: SyncResult, gathered: _Gathered, *, length: float) -> list[str]:
    """What a reader should know beside the verdict before believing the values."""
    remarks = []
    absent = int((~np.isfinite(result.scores)).sum())
    if absent:
        remarks.append(f"{absent} of {len(result.times)} moments lack audio or video and do not count.")
    for name in ("audio", "video"):
        if name not in result.unchanging and gathered.sameness(name) > _NEARLY_CONSTANT:
            remarks.append(f"The {name} hardly changes for this model; the values mean little.")
    if result.offset is not None:
        tried = float(np.abs(result.offsets).max())
        if tried < result.max_offset - result.hop / 2:
            remarks.append(f"These {length:g} s are long enough for offsets up to {tried:g} s only.")
        if result.resolution > result.hop:
            remarks.append(
                f"There is a frame every {result.resolution:.3g} s only; the hop of {result.hop:g} s is finer."
            )
    if result.window > length / 2:
        remarks.append(f"A window of {result.window:g} s is more than half of these {length:g} s.")
    return remarks


def _rounded(value: Any) -> Any:
    """Plain values with numbers of six decimals."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value
