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
from dataclasses import dataclass, fields
from importlib import metadata
from typing import Any, Literal

import numpy as np
import torch

from ..data.sources import printable
from ..metrics.synchrony import sync_detection
from ..model.alignment_cavmae_sync import window_seconds
from ..model.errors_cavmae_sync import InferenceError
from ..model.media_cavmae_sync import probe_media
from ..model.media_source_cavmae_sync import describe_source
from ..provenance import model_fingerprint
from .features import choose_features, encode_moments
from .sync_result import (
    DEFAULT_MAX_OFFSET,
    SYNC_SCORES,
    Gathered,
    SyncResult,
    SyncSettings,
    assemble,
    plain,
    sync_from_embeddings,
)

__all__ = [
    "SYNC_SCORES",
    "AlignmentScores",
    "SyncResult",
    "alignment_protocol",
    "detection_figures",
    "measure_sync",
    "score_alignment",
    "sync_from_embeddings",
]

PROTOCOL_VERSION = 1
DEFAULT_HOP = 0.1
Progress = Callable[..., None]


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
        return plain({item.name: getattr(self, item.name) for item in fields(self)})


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
        InferenceError: The model has one tower, an argument cannot work, or too few moments have audio and video.
        MediaError: The film or its sound cannot be read.
    """
    check_towers(model)
    if batch_size < 1:
        raise InferenceError(f"batch_size is {batch_size}; embed at least 1 moment at a time.")
    base = getattr(model, "base_model", model)
    settings = SyncSettings.of(processor, base.config.temperature, hop, max_offset)
    gathered = Gathered(settings, matrix_limit)
    with evaluating(base):
        chunks = processor.stream(
            video, hop=hop, num_frames=batch_size, start=start, end=end, damaged=damaged, audio=audio,
            sampling_rate=sampling_rate, device=base.device,
        )  # fmt: skip
        for inputs in track_seconds(chunks, video, start, end, progress):
            sounds, pictures = _embed(base, inputs)
            gathered.add(inputs["frame_times"][0].numpy(), sounds, pictures)
    audio_source = None if audio is None else source_name(audio)
    protocol = alignment_protocol(base, processor, hop, settings.max_offset, fingerprint)
    return assemble(gathered, source_name(video), audio_source, protocol)


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
        "window": f"{window_seconds(extractor.audio_length):g}s",
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
        InferenceError: There are no films, or one cannot be measured.
        MediaError: A film cannot be read.
    """
    pairs = [film if isinstance(film, tuple) else (film, None) for film in films]
    if not pairs:
        raise InferenceError("Got no films to score; pass videos, or pairs of video and audio.")
    print_of = model_fingerprint(getattr(model, "base_model", model), processor)
    results = []
    for done, (video, audio) in enumerate(pairs):
        if progress is not None:
            progress(done, len(pairs))
        results.append(
            measure_sync(
                model, processor, video, audio, hop=hop, max_offset=max_offset, fingerprint=print_of, **options
            )
        )
    if progress is not None:
        progress(len(pairs), len(pairs))
    return join_scores(results)


def join_scores(results: Sequence[SyncResult]) -> AlignmentScores:
    """The alignment score of films that were measured under one protocol."""
    protocols = {result.protocol for result in results}
    if len(protocols) != 1:
        raise InferenceError(
            f"Scores of {len(protocols)} protocols cannot be joined; measure all films in the same way."
        )
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
        InferenceError: Films of one kind alone.
    """
    truth = np.asarray(in_sync, dtype=bool)
    if len(truth) != len(results) or not truth.any() or truth.all():
        raise InferenceError(
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
        raise InferenceError(f"The model has the {modality} tower alone; comparing sound and picture needs both.")


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
