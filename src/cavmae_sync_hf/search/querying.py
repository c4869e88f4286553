# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How does a sound, a picture or a moment of a video become the vectors of a query?"""

import hashlib
import io
import math
import os
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..inference.features import choose_features, encode_moments
from ..model.alignment_cavmae_sync import window_seconds
from ..model.errors_cavmae_sync import QueryError
from ..model.media_cavmae_sync import probe_media
from ..model.media_source_cavmae_sync import describe_source
from .loudness import SILENCE_DB, window_loudness

__all__ = ["MAX_QUERY_WINDOWS", "Query", "Side", "embed_query"]

Side = Literal["sound", "picture", "both", "auto"]
# Longer queries find nothing more, and their similarities with all moments would fill the memory.
MAX_QUERY_WINDOWS = 256
_PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\x00", b"MM\x00*")


@dataclass(frozen=True)
class Query:
    """What is searched for: consecutive windows, `hop` seconds apart.

    Attributes:
        name: Where it comes from, for messages.
        by: `"sound"`, `"picture"` or `"both"`: which of its vectors are compared.
        audio: Vectors of its sounds, float32 `(windows, hidden)`; zeros where there is none.
        video: Vectors of its pictures, the same.
        audio_present: Which windows have sound that is not silence, `(windows,)` bool.
        video_present: Which have a picture, `(windows,)` bool.
        start: Where it starts in its source, seconds.
        seconds: How long it is.
        path: Its file, where it is one.
        content: Checksum of its bytes, where it was handed in as bytes.
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

    def __len__(self) -> int:
        return len(self.audio_present)

    @property
    def sides(self) -> tuple[str, ...]:
        """Which vectors are compared: `"audio"`, `"video"` or both."""
        return {"sound": ("audio",), "picture": ("video",), "both": ("audio", "video")}[self.by]

    @property
    def present(self) -> np.ndarray:
        """Which windows have all that is compared, `(windows,)` bool."""
        masks = [self.audio_present if side == "audio" else self.video_present for side in self.sides]
        return np.logical_and.reduce(masks)


def embed_query(
    query: Any,
    model: Any,
    processor: Any,
    *,
    hop: float,
    by: Side = "auto",
    start: float | None = None,
    end: float | None = None,
    min_loudness: float = SILENCE_DB,
    device: str | torch.device | None = None,
) -> Query:
    """Vectors of a query.

    Args:
        query: A file of sound, a video or a picture, as a path, address, bytes or file object; a `PIL.Image`; or sound
            as `{"array": samples, "sampling_rate": Hz}`, samples `(samples,)` or `(channels, samples)`, floating-point
            in [-1, 1] or 16-bit.
        model: The model that the index was made with.
        processor: Its processor.
        hop: Seconds between the index's moments.
        by: Which of the query counts: `"sound"`, `"picture"`, `"both"`, or `"auto"` for all there is.
        start: Where in the file the moment starts, seconds. What is heard around it counts as it does in the index.
        end: Where it ends.
        min_loudness: Windows quieter than this, in dB of full scale, count as silent and are not searched for.
        device: Where inputs are computed.

    Raises:
        MediaError: The file cannot be used.
        QueryError: It lacks what `by` asks for, is silent or too long.
        ValueError: An argument cannot work.
    """
    if by not in ("sound", "picture", "both", "auto"):
        raise ValueError(f'by is {by!r}; it must be "sound", "picture", "both" or "auto".')
    path = os.fspath(query) if isinstance(query, str | os.PathLike) else None
    name = describe_query(query)
    content = ""
    if isinstance(query, bytes | bytearray | memoryview):
        content = f"sha256:{hashlib.sha256(query).hexdigest()}"
    picture = _as_picture(query, name)
    if picture is not None:
        if by in ("sound", "both"):
            raise QueryError(f"{name}: is a picture and has no sound; search by picture.")
        if start is not None or end is not None:
            raise QueryError(f"{name}: is a picture, which has no start and end; leave them out.")
        vector = _embed_picture(model, processor, picture, device)
        nothing = np.zeros_like(vector)
        there = np.ones(1, bool)
        return Query(name, "picture", nothing, vector, ~there, there, 0.0, hop, path, content)
    media = _as_wave(query, name) if isinstance(query, Mapping) and "array" in query else query
    audio, video, loudness, has_audio, has_video, seconds = _embed_media(
        media, name, model, processor, hop, start, end, device
    )
    if by == "auto":
        by = "both" if has_audio.any() and has_video.any() else "sound" if has_audio.any() else "picture"
    heard = has_audio & (loudness >= min_loudness)
    if by in ("sound", "both") and not heard.any():
        if not has_audio.any():
            raise QueryError(f"{name}: has no sound here; search by picture, or name another moment.")
        raise QueryError(
            f"{name}: is silent (at most {loudness[has_audio].max():.0f} dB of full scale, and silence begins below "
            f"{min_loudness:g} dB); name a louder moment, search by picture, or lower the least loudness."
        )
    if by in ("picture", "both") and not has_video.any():
        raise QueryError(f"{name}: has no picture here; search by sound.")
    return Query(name, by, audio, video, heard, has_video, start or 0.0, seconds, path, content)


def describe_query(query: Any) -> str:
    """Name a query for messages."""
    if isinstance(query, Mapping) and "array" in query:
        return "the sound"
    if hasattr(query, "convert") and hasattr(query, "size"):
        return getattr(query, "filename", "") or "the picture"
    return describe_source(query)


def _embed_media(
    media: Any,
    name: str,
    model: Any,
    processor: Any,
    hop: float,
    start: float | None,
    end: float | None,
    device: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Vectors of sound and picture, loudness, presence of both, and the length of the query in seconds."""
    begin = 0.0 if start is None else float(start)
    length = _length(media, begin, end)
    # A query shorter than a step is one window, on its middle.
    step = min(hop, length) if length is not None and length > 0 else hop
    # The steps before belong to the grid of the query, so that its own windows hear what is around them.
    around = window_seconds(processor.feature_extractor.audio_length) / 2
    before = min(math.ceil(around / step), math.floor(begin / step + 1e-9)) if begin > 0 else 0
    features = choose_features(("a", "v"), model.config)
    parts: list[tuple[np.ndarray, ...]] = []
    taken = -before
    for batch in processor.stream(
        media,
        hop=step,
        start=begin - before * step if before else start,
        end=None if end is None else end + around,
        missing="mask",
        return_media=True,
        device=device,
    ):
        chunk = batch.pop("media")
        encoded = encode_moments(model, batch, features)
        numbers = taken + np.arange(len(chunk.frame_times))
        taken += len(numbers)
        kept = numbers >= 0
        if end is not None:
            kept &= (numbers + 0.5) * step < end - begin - 1e-9
        values = (
            encoded.values["a"][0].numpy(), encoded.values["v"][0].numpy(), window_loudness(batch, chunk),
            encoded.audio_present[0].numpy(), encoded.video_present[0].numpy(),
        )  # fmt: skip
        parts.append(tuple(value[kept] for value in values))
        count = sum(len(part[0]) for part in parts)
        if count > MAX_QUERY_WINDOWS:
            raise QueryError(
                f"{name}: a query may be {MAX_QUERY_WINDOWS * hop:g} s long; choose a moment with start and end."
            )
        if end is not None and not kept[-1] and numbers[-1] >= 0:
            break
    audio, video, loudness, has_audio, has_video = (np.concatenate(values) for values in zip(*parts, strict=True))
    if not len(audio):
        raise QueryError(f"{name}: nothing lies between {begin:g} s and {end} s; choose another moment.")
    seconds = len(audio) * step if length is None else min(length, len(audio) * step)
    return audio, video, loudness, has_audio, has_video, seconds


def _length(media: Any, begin: float, end: float | None) -> float | None:
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
    duration = probe_media(media).duration
    if duration is not None and begin >= duration:
        raise QueryError(
            f"{describe_source(media)}: lasts {duration:.2f} s, and the moment starts at {begin:g} s; choose an "
            "earlier one."
        )
    return None if duration is None else duration - begin


def _as_picture(query: Any, name: str) -> Any:
    """The query as an upright RGB picture, or `None` where it is none."""
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
    if not head.startswith(_PICTURE_STARTS) and not (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return None
    try:
        with Image.open(source, formats=_PICTURE_FORMATS) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise QueryError(f"{name}: is a picture that cannot be read ({error}); save it anew.") from error


def _embed_picture(model: Any, processor: Any, picture: Any, device: Any) -> np.ndarray:
    """The vector of a picture, float32 `(1, hidden)`."""
    frames = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    inputs = processor.video_processor([frames], do_sample_frames=False, return_tensors="pt", device=device)
    features = choose_features(("v",), model.config)
    return encode_moments(model, inputs, features).values["v"][0].numpy()


def _as_wave(query: Mapping[str, Any], name: str) -> bytes:
    """Samples in memory as a file, so that they take the way of all sound."""
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
