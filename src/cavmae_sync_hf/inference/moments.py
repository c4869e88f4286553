# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The one loop over moments of videos: threads decode files ahead, the model embeds what comes.

`embed_moments` gives the vectors of moments (see `features`) for any number of videos of any length: threads decode
files, without holding the interpreter's lock, into short queues, while the caller's thread embeds what comes, moments
of several short files in one batch. `read_ahead` is its first half, for what needs more than vectors.
"""

import contextlib
import itertools
import math
import os
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from ..data import crashes
from ..data.clock import format_clock
from ..data.failures import file_error
from ..files import usable_cores
from ..model.errors_cavmae_sync import CavMaeSyncError, InferenceError, MediaError, printable
from ..model.media_cavmae_sync import probe_media
from ..model.media_source_cavmae_sync import describe_source
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .features import (
    INPUTS,
    OFFSETS,
    Embedder,
    Feature,
    StillFrames,
    choose_features,
    encode_moments,
    not_finite_error,
)

# Called with what is done, how much there is (0 where unknown) and, in some places, a remark.
Progress = Callable[..., None]
# Called with a file's name and its error.
OnError = Callable[[str, CavMaeSyncError], None]

# Chunks of a file that wait for the model; each holds a few moments' pixels and spectrograms.
_CHUNKS_AHEAD = 2
_MOST_DECODERS = 4
# A thread that has not worked at all for so long waits for a file that does not come, such as one of a network that is
# down; one that decodes slowly works.
STALLED_SECONDS = 120.0
_WORK_SECONDS = 0.001
# So many chunks that the model could not embed, and none that it could: it is not the files'.
_MOST_IN_VAIN = 20
# How long the end waits for a thread to notice it.
_PATIENCE_SECONDS = 10.0

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class MediaSpan:
    """One video, or a span of one.

    Attributes:
        media: What is opened: path, address, bytes, file object, or a function that gives one of them, called in the
            thread that decodes.
        name: What messages and tables call its file.
        id: Its name in the set, unique.
        start: Where the span starts in the file, seconds.
        end: Where it ends; `None`: with the file.
        audio: Another audio track for it, a file or waveform, whose time 0 is the file's.
        sampling_rate: Of a waveform in `audio`, Hz.
        frame_times: Moments of a span that is read whole, seconds from its start.
        about: What the caller wants to find with the span's results.
    """

    media: Any = field(repr=False)
    name: str = ""
    id: str = ""
    start: float | None = None
    end: float | None = None
    audio: Any = field(default=None, repr=False)
    sampling_rate: int | None = None
    frame_times: Sequence[float] | None = None
    about: Any = field(default=None, repr=False)

    def open(self) -> Any:
        """What the decoder takes."""
        return self.media() if callable(self.media) else self.media


@dataclass
class MomentChunk:
    """Vectors of some moments in a row of one source.

    Attributes:
        values: Feature name -> `(moments, hidden)` float32; zeros where absent.
        audio_present: `(moments,)` bool, whether there is audio.
        video_present: `(moments,)` bool, whether there is a frame.
        times: `(moments,)` float64, when each frame appeared, seconds of the file.
        window_times: `(moments, 2)` float64, start and end of each audio window, seconds of the file; NaN without.
        window_coverage: `(moments,)`, share of each audio window that lies inside the span.
        kept: What `prepare` gave for the chunk.
    """

    values: dict[str, np.ndarray]
    audio_present: np.ndarray
    video_present: np.ndarray
    times: np.ndarray
    window_times: np.ndarray
    window_coverage: np.ndarray
    kept: Any = None

    def __len__(self) -> int:
        return len(self.times)


def embed_moments(
    model: Embedder,
    processor: CavMaeSyncProcessor,
    sources: Iterable[MediaSpan],
    features: Sequence[str] | Sequence[Feature] = ("a", "v"),
    *,
    hop: float | None = None,
    num_frames: int | None = None,
    batch_size: int = 64,
    decoders: int | None = None,
    missing: str = "error",
    damaged: str = "error",
    want_audio: bool | None = None,
    still: float = 0.0,
    prepare: Callable[[MediaSpan, dict[str, Any], int], Any] | None = None,
) -> Iterator[tuple[MediaSpan, Iterator[MomentChunk]]]:
    """Embed the moments of videos, in memory that grows neither with their number nor with their length.

    ```python
    for span, chunks in embed_moments(model, processor, spans, hop=0.5):
        try:
            for chunk in chunks:
                ...
        except CavMaeSyncError as error:
            ...  # this file's; the others go on
    ```

    Args:
        model: A `CavMaeSyncModel` in evaluation mode, or an `ExportedModel`.
        processor: Its processor.
        sources: The videos; the next is asked for when there is room for it.
        features: Names, or features from `choose_features`.
        hop: Seconds from one moment to the next; as for `CavMaeSyncProcessor.stream`. `None`: each span is read whole
            and has `num_frames` moments, or those of its `frame_times`, placed as in training.
        num_frames: Moments decoded at a time; without `hop`, moments of a span. Default: the processor's.
        batch_size: Moments that the model is given at a time, of one or several files. With 1, every chunk that comes
            out of a file goes alone, so that vectors do not depend, not even in their last bits, on other files.
        decoders: Files decoded at a time; default: one per core, at most 4.
        missing: `"error"`, or `"mask"` to mark an absent track as absent.
        damaged: `"error"`, or `"keep"` to use what can be decoded of damaged files.
        want_audio: Whether the files' audio is decoded; default: if a feature takes it.
        still: Frames that hardly differ from an earlier one of their video are taken for it, and so encoded once; see
            `StillFrames`.
        prepare: Called in the decoding thread with a chunk's span, its inputs (from `read_moments`, with `"media"`,
            the decoded `MediaChunk`, where there is a `hop`) and the number of its first moment; may change the
            inputs, or leave out moments of all of them. What it gives is the chunk's `kept`.

    Yields:
        Each source in order with its chunks, in order; what a caller leaves of them is passed over. An error of the
        file comes out of the chunks, after all that could be read, as a `CavMaeSyncError`: whatever else was raised is
        its cause (see `data.failures.file_error`). So do embeddings that are not finite, and an error of the model.
        Where the model can embed nothing at all, its first error ends all; errors of `sources` do, too.

    Raises:
        InferenceError: A setting cannot work; raised at once.
    """
    if batch_size < 1:
        raise InferenceError(f"batch_size is {batch_size}; embed at least 1 moment at a time.")
    chosen = [feature for feature in features if isinstance(feature, Feature)] or choose_features(
        cast(Sequence[str], features), getattr(model, "config", None)
    )
    device = getattr(model, "device", None)
    read = partial(
        _read_chunks,
        processor,
        prepare,
        hop=hop,
        num_frames=num_frames,
        missing=missing,
        damaged=damaged,
        still=still,
        want_audio=any(feature.needs_audio for feature in chosen) if want_audio is None else want_audio,
        want_video=any(feature.needs_video for feature in chosen),
        device=None if device is None or device.type == "cpu" else device,
    )
    return _by_source(_embedded(_read_events(sources, read, decoders), model, chosen, batch_size))


def read_ahead(
    sources: Iterable[S], read: Callable[[S], Iterator[T]], *, decoders: int | None = None
) -> Iterator[tuple[S, Iterator[T]]]:
    """What `read` gives of each source, several sources read at a time in threads, a few items ahead.

    Args:
        sources: The next is asked for when there is room for it.
        read: Reads one; called in a thread.
        decoders: Sources read at a time; default: one per core, at most 4.

    Yields:
        Each source in order, with its items; see `embed_moments` for what is left of them and for errors.
    """
    return _by_source(_read_events(sources, read, decoders))


def read_moments(
    processor: CavMaeSyncProcessor,
    span: MediaSpan,
    *,
    hop: float | None = None,
    num_frames: int | None = None,
    missing: str = "error",
    damaged: str = "error",
    want_audio: bool = True,
    want_video: bool = True,
    return_media: bool = False,
    device: str | torch.device | None = None,
) -> Iterator[dict[str, Any]]:
    """The model's inputs of a span's moments, some at a time.

    Args:
        processor: Makes them.
        span: The span.
        hop, num_frames, missing, damaged: As of `embed_moments`.
        want_audio: Whether audio is decoded; heeded with a `hop`, as are the others.
        want_video: Whether frames are decoded.
        return_media: Also give the decoded `MediaChunk` as `media`.
        device: Where to compute spectrograms and pixels.

    Yields:
        Inputs with a batch dimension of 1, with `frame_times` `(1, moments)`, `window_times` `(1, moments, 2)`, in
        seconds of the file, and `window_coverage` `(1, moments)`.
    """
    rules: dict[str, Any] = {"start": span.start or None, "end": span.end, "missing": missing, "damaged": damaged}
    if hop is not None:
        if span.audio is not None:  # then both are read
            rules |= {"audio": span.audio, "sampling_rate": span.sampling_rate}
        else:
            rules |= {"want_audio": want_audio, "want_video": want_video}
        for batch in processor.stream(
            span.open(), hop=hop, num_frames=num_frames, return_media=return_media, device=device, **rules
        ):
            yield dict(batch)
        return
    if span.audio is not None:
        rules |= {"audio": [span.audio], "sampling_rate": span.sampling_rate}
    if span.frame_times is not None:
        rules["frame_times"] = [span.frame_times]
    else:
        rules["num_frames"] = num_frames
    inputs = dict(processor(videos=[span.open()], return_times=True, return_tensors="pt", device=device, **rules))
    for name in ("frame_times", "window_times"):  # counted from the start of the span
        if name in inputs:
            inputs[name] = inputs[name] + (span.start or 0.0)
    yield inputs


def source_name(source: Any) -> str:
    """What a video or an audio track is called in results and messages."""
    is_waveform = isinstance(source, np.ndarray | torch.Tensor | list | tuple)
    if is_waveform or (isinstance(source, Mapping) and source.get("array") is not None):
        return "a waveform"
    return printable(describe_source(source))


def report_seconds(progress: Progress | None, span: MediaSpan) -> Callable[[float], None]:
    """A function of the time reached, seconds of the file, that tells `progress` the seconds done and in all."""
    if progress is None:
        return lambda _: None
    begin, total = span.start or 0.0, 0
    if isinstance(span.media, str | bytes | os.PathLike):
        duration = probe_media(span.media).duration
        total = math.ceil(max(0.0, min(duration or 0.0, span.end or math.inf) - begin))

    def show(time: float) -> None:
        done = int(time - begin)
        progress(min(done, total) if total else done, total)

    return show


class _Begin:
    """The first event of a source."""


@dataclass
class _End:
    """The last event of a source."""

    error: BaseException | None = None


@dataclass
class _Failed:
    """An event in place of moments that the model could not embed."""

    error: CavMaeSyncError


class _Reading(Generic[S, T]):
    """A source that a thread reads."""

    def __init__(self, source: S, read: Callable[[S], Iterator[T]]) -> None:
        self.source = source
        self.name, self._mark = _names_of(source)
        self._items: queue.Queue[T | _End] = queue.Queue(_CHUNKS_AHEAD)
        self._stopped = threading.Event()
        self._clock: int | None = None  # tells how long the thread has worked
        self._thread = threading.Thread(target=self._run, args=(read,), daemon=True)
        self._thread.start()

    def next(self) -> T | _End:
        """The next item, or the end, which has also come where the thread waits in vain."""
        while True:
            before = self._worked()
            try:
                return self._items.get(timeout=STALLED_SECONDS)
            except queue.Empty:
                after = self._worked()
                if before is None or after is None or after - before > _WORK_SECONDS:
                    continue
            self._stopped.set()
            return _End(
                MediaError(
                    f"{self.name}: nothing came of it for {STALLED_SECONDS:g} s; check the disk or the network, and "
                    "run again."
                )
            )

    def stop(self) -> None:
        """End the thread, wherever it is; the next item is the end."""
        self._stopped.set()
        self._thread.join(_PATIENCE_SECONDS)
        with contextlib.suppress(queue.Empty):
            while True:
                self._items.get_nowait()
        self._items.put(_End())

    def _run(self, read: Callable[[S], Iterator[T]]) -> None:
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        end = _End()
        try:
            with crashes.reading(self._mark):
                for item in read(self.source):
                    self._put(item)
                    if self._stopped.is_set():
                        return
        except BaseException as error:  # whatever it is, the thread that waits must hear of it
            end.error = file_error(error, self.name)
        self._put(end)

    def _worked(self) -> float | None:
        """Seconds for which the thread has worked; `None` where the system does not tell."""
        try:
            return None if self._clock is None else time.clock_gettime(self._clock)
        except OSError:  # it has ended
            return None

    def _put(self, item: T | _End) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=0.1)
                return


def _names_of(source: Any) -> tuple[str, str]:
    """What messages call a source, and what tells it from other spans of the same file."""
    if not isinstance(source, MediaSpan):
        name = source_name(source)
        return name, name
    name = source.name or source_name(source.media)
    span = [source.start, source.end] if source.start or source.end else ""
    return name, f"{name} {span}" if span else name


# A reading and, in order, its `_Begin`, its items and its `_End`; then those of the next one.
_Events = Iterator[tuple[_Reading[S, Any], Any]]


def _read_events(sources: Iterable[S], read: Callable[[S], Iterator[Any]], decoders: int | None) -> _Events[S]:
    if decoders is None:
        decoders = min(_MOST_DECODERS, usable_cores())
    if decoders < 1:
        raise InferenceError(f"decoders is {decoders}; read at least 1 file at a time.")
    return _read_in_threads(iter(sources), read, decoders)


def _read_in_threads(sources: Iterator[S], read: Callable[[S], Iterator[Any]], decoders: int) -> _Events[S]:
    readings: deque[_Reading[S, Any]] = deque()
    failure: Exception | None = None

    def refill() -> None:
        nonlocal failure
        while failure is None and len(readings) < (1 if crashes.must_read_alone() else decoders):
            try:
                readings.append(_Reading(next(sources), read))
            except StopIteration:
                return
            except Exception as error:  # told when what came before it is done
                failure = error

    try:
        refill()
        while readings:
            reading = readings[0]
            yield reading, _Begin()
            while not isinstance(item := reading.next(), _End):
                yield reading, item
            readings.popleft()
            refill()
            yield reading, item
        if failure is not None:
            raise failure
    finally:
        for reading in readings:
            reading.stop()


class _Items(Iterator[T]):
    """The items of the source whose `_Begin` was the last event."""

    def __init__(self, events: _Events[Any]) -> None:
        self._events = events
        self.ended = False
        self.failure: BaseException | None = None  # of the model or of the sources

    def __next__(self) -> T:
        if self.ended:
            raise StopIteration
        try:
            _, item = next(self._events)
        except BaseException as error:
            self.ended, self.failure = True, error
            raise
        if isinstance(item, _Failed):  # what is left of the source is passed over
            raise item.error
        if not isinstance(item, _End):
            return cast(T, item)
        self.ended = True
        if item.error is not None:
            raise item.error
        raise StopIteration


def _by_source(events: _Events[S]) -> Iterator[tuple[S, Iterator[Any]]]:
    """Each source with its items; what is left of them is passed over."""
    with contextlib.closing(cast(Any, events)):
        for reading, _ in events:
            items: _Items[Any] = _Items(events)
            yield reading.source, items
            if not items.ended:
                reading.stop()
            while not items.ended:
                with contextlib.suppress(Exception):
                    deque(items, maxlen=0)
            if items.failure is not None:
                raise items.failure


def _read_chunks(
    processor: CavMaeSyncProcessor,
    prepare: Callable[[MediaSpan, dict[str, Any], int], Any] | None,
    span: MediaSpan,
    *,
    still: float,
    **options: Any,
) -> Iterator[tuple[dict[str, Tensor], MomentChunk]]:
    """Inputs of some moments, and what is known of them before they are embedded."""
    first, frames = 0, StillFrames(still)
    for inputs in read_moments(processor, span, return_media=prepare is not None, **options):
        count = inputs["frame_times"].shape[1]
        if "pixel_values_videos" in inputs:
            frames.hold(inputs["pixel_values_videos"][0])
        kept = None if prepare is None else prepare(span, inputs, first)
        first += count
        times = inputs["frame_times"][0].numpy()
        spans, coverage = inputs.get("window_times"), inputs.get("window_coverage")
        chunk = MomentChunk(
            values={},
            audio_present=np.zeros(len(times), bool),
            video_present=np.zeros(len(times), bool),
            times=times,
            window_times=np.full((len(times), 2), np.nan) if spans is None else spans[0].numpy(),
            window_coverage=np.zeros(len(times)) if coverage is None else coverage[0].cpu().numpy(),
            kept=kept,
        )
        # The frames at full size go now, not when the model has had its turn.
        names = (*(name for pair in INPUTS for name in pair), OFFSETS)
        inputs = {name: inputs[name] for name in names if name in inputs}
        yield inputs, chunk


def _embedded(events: _Events[S], model: Embedder, features: Sequence[Feature], batch_size: int) -> _Events[S]:
    """Events of `_read_chunks` with their chunks embedded."""
    waiting: list[tuple[_Reading[S, Any], Any]] = []
    moments = 0
    embed = _Batches(model, features)
    with contextlib.closing(cast(Any, events)):
        for reading, item in events:
            waiting.append((reading, item))
            if isinstance(item, tuple):
                moments += len(item[1])
            # Where no moment waits for the model, nothing else waits for a batch to fill.
            if moments >= batch_size or not moments or len(waiting) > 4 * batch_size:
                yield from embed(waiting)
                waiting, moments = [], 0
        yield from embed(waiting)
        embed.end()


class _Batches:
    """Embeds chunks together, and apart where together they raise an error, to find whose it is."""

    def __init__(self, model: Embedder, features: Sequence[Feature]) -> None:
        self.model, self.features = model, features
        self._works = False
        self._in_vain: list[Exception] = []  # as long as nothing works

    def __call__(self, waiting: list[tuple[_Reading[S, Any], Any]]) -> _Events[S]:
        """The events with their chunks embedded."""
        items = [(reading, item) for reading, item in waiting if isinstance(item, tuple) and len(item[1])]
        failed: dict[int, Exception] = {}
        for _, alike in itertools.groupby(items, lambda item: _shapes(item[1][0])):
            batch = list(alike)
            if len(batch) > 1:
                try:
                    failed |= self._embed(batch)
                    continue
                except Exception as error:
                    traceback.clear_frames(error.__traceback__)  # which may hold much memory
            for one in batch:
                try:
                    failed |= self._embed([one])
                except Exception as error:
                    traceback.clear_frames(error.__traceback__)
                    failed[id(one[1])] = error
                    self._in_vain += [] if self._works else [error]
                    if len(self._in_vain) == _MOST_IN_VAIN:
                        self.end()
        for reading, item in waiting:
            if id(item) in failed:
                yield reading, _Failed(file_error(failed[id(item)], reading.name))
            else:
                yield reading, item[1] if isinstance(item, tuple) else item

    def end(self) -> None:
        """Raise the first error of a model that could embed nothing."""
        if self._in_vain and not self._works:
            raise self._in_vain[0]

    def _embed(self, batch: list[tuple[_Reading[S, Any], Any]]) -> dict[int, Exception]:
        """Embed chunks together; gives the errors of those that are not finite, by their identity."""
        inputs = _join_inputs([inputs for _, (inputs, _) in batch])
        encoded = encode_moments(self.model, inputs, self.features)
        broken = encoded.broken(self.features)[0]
        failed: dict[int, Exception] = {}
        end = 0
        for reading, item in batch:
            chunk = item[1]
            start, end = end, end + len(chunk)
            chunk.values = {name: value[0, start:end].numpy() for name, value in encoded.values.items()}
            chunk.audio_present = encoded.audio_present[0, start:end].numpy()
            chunk.video_present = encoded.video_present[0, start:end].numpy()
            if broken[start:end].any():
                time = format_clock(float(chunk.times[int(broken[start:end].int().argmax())]))
                failed[id(item)] = not_finite_error(f"{reading.name}: the embedding at {time}", self.model)
        self._works = True
        return failed


def _shapes(inputs: dict[str, Tensor]) -> dict[str, torch.Size]:
    """What two chunks must have in common to be embedded together: processors may leave sizes to the files."""
    return {values: inputs[values].shape[2:] for values, _ in INPUTS if values in inputs}


def _join_inputs(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The moments of several chunks as one."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Tensor] = {}
    if OFFSETS in parts[0]:
        joined[OFFSETS] = torch.cat([part[OFFSETS] for part in parts], dim=1)
    for values, mask in INPUTS:
        if values in parts[0]:
            joined[values] = torch.cat([part[values] for part in parts], dim=1)
            if any(mask in part for part in parts):  # a mask may be left out where nothing is absent
                everywhere = [torch.ones(part[values].shape[:2], dtype=torch.bool) for part in parts]
                joined[mask] = torch.cat(
                    [part.get(mask, there).cpu() for part, there in zip(parts, everywhere, strict=True)], dim=1
                )
    return joined
