# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Queries: audio, an image, a moment of a video or words, as vectors to search with."""

import contextlib
import hashlib
import io
import math
import os
import re
import warnings
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import torch

from ..inference.features import choose_features, encode_moments, not_finite_error
from ..inference.loudness import SILENCE_DB, span_loudness
from ..inference.moments import MediaSpan, embed_moments, source_name
from ..inference.texts import embed_texts
from ..model.errors_cavmae_sync import InferenceError, MediaError, QueryError
from ..model.media_cavmae_sync import probe_media
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model.video_processing_cavmae_sync import is_media_source

Side = Literal["audio", "video", "both", "auto"]

# Longer queries find nothing more, and their similarities with all moments would fill the memory.
MAX_QUERY_WINDOWS = 256
# Old spellings, accepted in this version.
OLD_SIDES = {"sound": "audio", "picture": "video"}
# Seconds from one part of "A, then B" to the next, at most.
THEN_WITHIN = 10.0
# "now and then" speaks of no order.
_THEN = re.compile(r"(?:\s*[,;]\s*|(?<!\bnow)(?<!\bnow\sand)\s+)(?:and\s+)?(?:then|followed\s+by)\s+", re.IGNORECASE)
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\x00", b"MM\x00*")


def choose_side(value: str, argument: str) -> Side:
    """A value of `by` or `find`, checked; old spellings are accepted with a warning.

    Args:
        value: `"audio"`, `"video"`, `"both"` or `"auto"`.
        argument: Its name, for messages.

    Raises:
        QueryError: There is no such value.
    """
    if value in OLD_SIDES:
        warnings.warn(
            f"{argument}={value!r} is now {argument}={OLD_SIDES[value]!r}; the old spelling will be refused in a "
            "later version.",
            FutureWarning,
            stacklevel=3,
        )
        return cast(Side, OLD_SIDES[value])
    if value not in ("audio", "video", "both", "auto"):
        raise QueryError(f'{argument} is {value!r}; it must be "audio", "video", "both" or "auto".')
    return cast(Side, value)


@dataclass(frozen=True)
class Query:
    """What is searched for: consecutive windows, `hop` seconds apart.

    Attributes:
        name: Where it comes from, for messages.
        by: `"audio"`, `"video"` or `"both"`: which of its vectors are compared; `"text"`: words alone.
        audio: Vectors of its audio windows, float32 `(windows, hidden)`; zeros where there is none.
        video: Vectors of its frames, the same.
        audio_present: Which windows have audio that is not silence, `(windows,)` bool.
        video_present: Which have a frame, `(windows,)` bool.
        start: Where it starts in its source, seconds.
        seconds: How long it is.
        path: Its file, where it is one.
        content: Checksum of its bytes, where it was handed in as bytes.
        texts: The words.
        text: Vectors of the words that each window stands for, float32 `(windows, P)`.
        projections: Of `"audio"` and `"video"`, weights `(P, hidden)` float32 that bring the index's vectors into the
            space of the words; empty where these are in the space of the index.
        video_shares: How much frames count against audio for these words, 0 to 1, `(windows,)`.
        text_weight: Share of the words in a score, beside audio or video.
        then_within: The windows are parts of a sequence, each of which follows the one before it within so many
            seconds; `None`: they lie side by side.
    """

    name: str
    by: str
    audio: np.ndarray
    video: np.ndarray
    audio_present: np.ndarray
    video_present: np.ndarray
    start: float
    seconds: float
    path: str | None = None
    content: str = ""
    texts: tuple[str, ...] = ()
    text: np.ndarray | None = None
    projections: Mapping[str, np.ndarray] = field(default_factory=dict)
    video_shares: np.ndarray | None = None
    text_weight: float = 1.0
    then_within: float | None = None

    def __post_init__(self) -> None:
        if self.by != "text":
            object.__setattr__(self, "by", choose_side(self.by, "by"))

    def __len__(self) -> int:
        return len(self.audio_present)

    @property
    def sides(self) -> tuple[str, ...]:
        """Which vectors of media are compared: `"audio"`, `"video"`, both, or, of words alone, none."""
        return {"both": ("audio", "video"), "text": ()}.get(self.by, (self.by,))

    @property
    def present(self) -> np.ndarray:
        """Which windows have all that is compared, `(windows,)` bool."""
        masks = [self.audio_present if side == "audio" else self.video_present for side in self.sides]
        return np.logical_and.reduce(masks) if masks else np.ones(len(self), bool)

    def vectors(self, side: str) -> np.ndarray:
        """`audio`, `video` or `text`."""
        if side == "text":
            assert self.text is not None
            return self.text
        return self.audio if side == "audio" else self.video

    def as_compared(self, asked: str, stored: str, vectors: np.ndarray) -> np.ndarray:
        """Vectors `(rows, hidden)` of one side of the index in the space of what is asked for."""
        if asked != "text" or stored not in self.projections:
            return vectors
        projected = vectors @ self.projections[stored].T
        return np.asarray(projected / np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-12))

    def probes(self, asked: str, stored: str, places: np.ndarray) -> np.ndarray:
        """What the approximate index is asked for, `(places, hidden)`.

        Of words in a space of their own, the direction along which their product with projected vectors grows: it
        leaves out that these are then normalised, so that it finds the nearest less surely.
        """
        vectors = self.vectors(asked)[places]
        return vectors @ self.projections[stored] if asked == "text" and stored in self.projections else vectors


def embed_query(
    query: Any,
    model: CavMaeSyncModel,
    processor: CavMaeSyncProcessor,
    *,
    hop: float,
    by: Side = "auto",
    start: float | None = None,
    end: float | None = None,
    min_loudness: float = SILENCE_DB,
) -> Query:
    """Vectors of a query.

    Args:
        query: An audio file, a video or an image, as a path, address, bytes or file object; a `PIL.Image`; or audio as
            `{"array": samples, "sampling_rate": Hz}`, samples `(samples,)` or `(channels, samples)`, floating-point in
            [-1, 1] or 16-bit.
        model: The model that the index was made with.
        processor: Its processor.
        hop: Seconds between the index's moments.
        by: Which of the query counts: `"audio"`, `"video"`, `"both"`, or `"auto"` for all there is.
        start: Where in the file the moment starts, seconds. Audio around it counts as it does in the index.
        end: Where it ends.
        min_loudness: Windows quieter than this, in dB of full scale, count as silent and are not searched for.

    Raises:
        MediaError: The file cannot be used.
        QueryError: It lacks what `by` asks for, is silent or too long, or an argument cannot work.
    """
    by = choose_side(by, "by")
    path = os.fspath(query) if isinstance(query, str | os.PathLike) else None
    content = ""
    if isinstance(query, bytes | bytearray | memoryview):
        content = f"sha256:{hashlib.sha256(query).hexdigest()}"
    is_image = hasattr(query, "convert") and hasattr(query, "size")
    name = (getattr(query, "filename", "") or "the image") if is_image else source_name(query)
    image = _as_image(query, name)
    if image is not None:
        if by in ("audio", "both"):
            raise QueryError(f"{name}: is an image and has no audio; search by video.")
        if start is not None or end is not None:
            raise QueryError(f"{name}: is an image, which has no start and end; leave them out.")
        frames = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        device = None if model.device.type == "cpu" else model.device
        inputs = processor(videos=[frames], return_tensors="pt", device=device)
        features = choose_features(("v",), model.config)
        encoded = encode_moments(model, inputs, features)
        if encoded.broken(features).any():
            raise QueryError(not_finite_error(f"{name}: the embedding", model).message)
        vector = encoded.values["v"][0].numpy()
        there = np.ones(1, bool)
        return Query(
            name=name, by="video", audio=np.zeros_like(vector), video=vector, audio_present=~there,
            video_present=there, start=0.0, seconds=hop, path=path, content=content,
        )  # fmt: skip
    media = as_wave(query, name) if isinstance(query, Mapping) and "array" in query else query
    moments = _embed_media(media, name, model, processor, hop=hop, start=start, end=end)
    has_audio, has_video, loudness = moments.audio_present, moments.video_present, moments.loudness
    if by == "auto":
        by = "both" if has_audio.any() and has_video.any() else "audio" if has_audio.any() else "video"
    heard = has_audio & (loudness >= min_loudness)
    if by in ("audio", "both") and not heard.any():
        if not has_audio.any():
            raise QueryError(f"{name}: has no audio here; search by video, or name another moment.")
        raise QueryError(
            f"{name}: is silent (at most {loudness[has_audio].max():.0f} dB of full scale, and silence begins below "
            f"{min_loudness:g} dB); name a louder moment, search by video, or lower the least loudness."
        )
    if by in ("video", "both") and not has_video.any():
        raise QueryError(f"{name}: has no frames here; search by audio.")
    return Query(
        name=name, by=by, audio=moments.audio, video=moments.video, audio_present=heard, video_present=has_video,
        start=start or 0.0, seconds=moments.seconds, path=path, content=content,
    )  # fmt: skip


def split_text(text: str | Sequence[str]) -> tuple[str, ...]:
    """The parts of a text that follow each other: "A, then B", "A and then B", "A followed by B".

    Args:
        text: A text, or its parts.

    Raises:
        QueryError: There is none, or a part of it is empty.
    """
    parts = [part.strip(" ,;.") for part in _THEN.split(text)] if isinstance(text, str) else list(text)
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise QueryError(f"The text is {text!r}; say in words what is to be found, such as 'a dog barks'.")
    return tuple(parts)


def embed_words(
    texts: Sequence[str],
    model: Any,
    processor: CavMaeSyncProcessor,
    *,
    hop: float,
    then_within: float = THEN_WITHIN,
) -> Query:
    """Vectors of a text, or of texts that follow each other.

    Args:
        texts: The parts of what is searched for, as `split_text` gives them.
        model: A `CavMaeSyncTextDualEncoderModel` whose audio-visual model the index was made with.
        processor: Its processor, with a tokenizer.
        hop: Seconds between the index's moments.
        then_within: Each part begins within so many seconds of the one before it.

    Raises:
        QueryError: The model has no text encoder, a text is empty or too long, or an argument cannot work.
    """
    if not (math.isfinite(then_within) and then_within > 0):
        raise QueryError(f"then_within is {then_within!r}; it must be a number of seconds above 0.")
    try:
        found = embed_texts(model, processor, texts)
    except InferenceError as error:
        raise QueryError(error.message, hint=error.hints) from error
    there = np.zeros(len(texts), bool)
    nothing = np.zeros((len(texts), model.base_model.config.hidden_size), np.float32)
    return Query(
        name=", then ".join(f'"{text}"' for text in texts), by="text", audio=nothing, video=nothing,
        audio_present=there, video_present=there, start=0.0, seconds=hop * len(texts), texts=tuple(texts),
        text=found.embeds.numpy(), projections={name: weights.numpy() for name, weights in found.projections.items()},
        video_shares=found.video_shares.numpy(),
        then_within=then_within if len(texts) > 1 else None,
    )  # fmt: skip


def join_words(query: Query, words: Query, weight: float) -> Query:
    """A query of audio or video and of a text that counts beside it in every window.

    Args:
        query: The audio or video.
        words: The text.
        weight: Its share of the score, 0 to 1.

    Raises:
        QueryError: The text has parts that follow each other, or the weight is no share.
    """
    if not 0 <= weight <= 1:
        raise QueryError(f"text_weight is {weight!r}; it must be from 0 to 1.")
    if len(words) > 1:
        raise QueryError(
            f"{query.name}: texts that follow each other ({words.name}) cannot be joined with it; search by one text "
            "and it, or by the texts alone."
        )
    assert words.text is not None and words.video_shares is not None
    return replace(
        query, name=f"{query.name} with {words.name}", texts=words.texts, text=words.text.repeat(len(query), axis=0),
        projections=words.projections, video_shares=words.video_shares.repeat(len(query)), text_weight=float(weight),
    )  # fmt: skip


def has_several_tracks(query: Any) -> bool:
    """Whether a query is a file with several audio tracks, of which one is to be chosen."""
    if not is_media_source(query) or isinstance(query, Mapping) and "array" in query:
        return False
    try:
        return len(probe_media(query).audio_tracks) > 1
    except MediaError:  # also images; told when it is read
        return False


@dataclass
class _Moments:
    """Moments of a query: vectors `(moments, hidden)`, presence and loudness `(moments,)`, and their length."""

    audio: np.ndarray
    video: np.ndarray
    audio_present: np.ndarray
    video_present: np.ndarray
    loudness: np.ndarray
    seconds: float


def _embed_media(
    media: Any,
    name: str,
    model: CavMaeSyncModel,
    processor: CavMaeSyncProcessor,
    *,
    hop: float,
    start: float | None,
    end: float | None,
) -> _Moments:
    begin = 0.0 if start is None else float(start)
    length = _length(media, name, begin, end)
    # A query shorter than a step is one window, on its middle.
    step = min(hop, length) if length is not None and length > 0 else hop
    # The steps before belong to the grid of the query, so that its own windows hold the audio around them.
    around = processor.feature_extractor.context_seconds
    before = min(math.ceil(around / step), math.floor(begin / step + 1e-9)) if begin > 0 else 0
    span = MediaSpan(
        media,
        name=name,
        start=begin - before * step if before else start,
        end=None if end is None else end + around,
    )
    embedded = embed_moments(
        model, processor, [span], hop=step, batch_size=1, decoders=1, missing="mask",
        prepare=lambda _, inputs, first: (first, span_loudness(inputs["media"], inputs["window_times"][0].numpy())),
    )  # fmt: skip
    parts: list[tuple[np.ndarray, ...]] = []
    count = 0
    with contextlib.closing(cast(Any, embedded)):
        for _, chunks in embedded:
            for chunk in chunks:
                first, loudness = chunk.kept
                numbers = first - before + np.arange(len(chunk))
                kept = numbers >= 0
                if end is not None:
                    kept &= (numbers + 0.5) * step < end - begin - 1e-9
                values = chunk.values["a"], chunk.values["v"], chunk.audio_present, chunk.video_present, loudness
                parts.append(tuple(value[kept] for value in values))
                count += int(kept.sum())
                if count > MAX_QUERY_WINDOWS:
                    longest = MAX_QUERY_WINDOWS * hop
                    raise QueryError(f"{name}: a query may be {longest:g} s long; choose a moment with start and end.")
                if end is not None and not kept[-1] and numbers[-1] >= 0:
                    break
    if not count:
        raise QueryError(f"{name}: nothing lies between {begin:g} s and {end} s; choose another moment.")
    seconds = count * step if length is None else min(length, count * step)
    audio, video, audio_present, video_present, loudness = map(np.concatenate, zip(*parts, strict=True))
    return _Moments(
        audio=audio, video=video, audio_present=audio_present, video_present=video_present, loudness=loudness,
        seconds=seconds,
    )  # fmt: skip


def _length(media: Any, name: str, begin: float, end: float | None) -> float | None:
    """Length of the query in seconds, as far as it is known before decoding."""
    for value in (begin, end):
        if value is not None and (not math.isfinite(value) or value < 0):
            raise QueryError(f"A moment starts and ends at seconds of the file, at least 0; got {value!r}.")
    if end is not None:
        if end <= begin:
            raise QueryError(f"The moment from {begin:g} s to {end:g} s is empty; its end must come after its start.")
        return end - begin
    if hasattr(media, "read"):
        return None  # probing would move a stream that cannot go back
    duration = probe_media(media, name).duration
    if duration is not None and begin >= duration:
        raise QueryError(
            f"{name}: lasts {duration:.2f} s, and the moment starts at {begin:g} s; choose an earlier one."
        )
    return None if duration is None else duration - begin


def _as_image(query: Any, name: str) -> Any:
    """The query as an upright RGB image, or `None` where it is none."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(query, Image.Image):
        return ImageOps.exif_transpose(query).convert("RGB")
    source: Any = query
    if isinstance(query, bytes | bytearray | memoryview):
        head, source = bytes(query[:16]), io.BytesIO(query)
    elif isinstance(query, str | os.PathLike) and os.path.isfile(query):
        try:
            with open(query, "rb") as file:
                head = file.read(16)
        except OSError as error:
            raise QueryError(f"{name}: cannot be read ({error}); check the access rights.") from error
    else:
        return None
    if not head.startswith(_IMAGE_STARTS) and not (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return None
    try:
        with Image.open(source, formats=_IMAGE_FORMATS) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise QueryError(f"{name}: is an image that cannot be read ({error}); save it anew.") from error


def as_wave(query: Mapping[str, Any], name: str) -> bytes:
    """Samples in memory as a WAV file, which is read as every other file is."""
    rate = query.get("sampling_rate")
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not rate > 0 or rate != int(rate):
        raise QueryError(f"{name}: sampling_rate is {rate!r}; it must be a whole number of Hz above 0.")
    samples = np.asarray(query["array"])
    if samples.ndim not in (1, 2) or not samples.size:
        raise QueryError(f"{name}: samples have shape {samples.shape}; pass (samples,) or (channels, samples).")
    samples = np.atleast_2d(samples)
    if samples.shape[0] > 32:
        raise QueryError(f"{name}: samples have shape {samples.shape}; channels come first.")
    if samples.dtype.kind == "f":
        if not np.isfinite(samples).all():
            raise QueryError(f"{name}: has samples that are NaN or infinite; mend them first.")
        samples = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    elif samples.dtype != np.int16:
        raise QueryError(f"{name}: samples are {samples.dtype}; pass floating-point ones in [-1, 1], or int16.")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(samples.shape[0])
        writer.setsampwidth(2)
        writer.setframerate(int(rate))
        writer.writeframes(np.ascontiguousarray(samples.T).astype("<i2").tobytes())
    return file.getvalue()
