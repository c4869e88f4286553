# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How do media files become rows of an index, several decoded at a time, in memory that does not grow with a film?

Threads decode files ahead (the decoder does not hold the interpreter's lock) into short queues; this thread embeds
whatever comes, moments of several short clips in one batch. Finished rows of a long clip wait in a file.
"""

import contextlib
import io
import itertools
import queue
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..inference.features import choose_features, encode_moments
from ..model.errors_cavmae_sync import MediaError
from ..model.media_cavmae_sync import probe_media
from .identity import content_of
from .loudness import SILENCE_DB, window_loudness
from .tables import ClipEntry, moments_schema, new_rows_name, release_names

__all__ = ["EmbeddedClip", "EmbeddingOptions", "embed_clips"]

# Chunks of a file that wait for the model; each holds a few moments' pixels and spectrograms.
_CHUNKS_AHEAD = 3
# Rows of a clip in memory; more wait in a file.
_BLOCK_ROWS = 512


@dataclass(frozen=True)
class EmbeddingOptions:
    """How clips are embedded.

    Attributes:
        hop: Seconds from one moment to the next.
        batch_size: Moments that the model is given at a time.
        decoders: Files decoded at a time.
        thumbnails: Longer side of a stored picture of each moment, pixels; 0 for none.
        damaged: `"error"`: damaged files are bad. `"keep"`: what can be decoded of them counts.
        device: Where inputs are computed; `None` for the CPU.
    """

    hop: float
    batch_size: int = 64
    decoders: int = 2
    thumbnails: int = 0
    damaged: str = "error"
    device: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("decoders", 1), ("thumbnails", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
        if self.damaged not in ("error", "keep"):
            raise ValueError(f'damaged is {self.damaged!r}; it must be "error" or "keep".')


@dataclass
class EmbeddedClip:
    """A clip whose moments are embedded, or that could not be used.

    Attributes:
        entry: What the index is to hold of it.
        batches: Gives its rows, as record batches; once.
        close: Frees what holds them.
    """

    entry: ClipEntry
    batches: Callable[[], Iterator[Any]] = field(default=lambda: iter(()))
    close: Callable[[], None] = field(default=lambda: None)


def embed_clips(
    model: Any,
    processor: Any,
    clips: Iterable[ClipEntry],
    options: EmbeddingOptions,
    show: Callable[[float], None] | None = None,
) -> Iterator[EmbeddedClip]:
    """Embed clips.

    Args:
        model: A `CavMaeSyncModel` in evaluation mode.
        processor: Its processor.
        clips: What is known of each; the next is asked for when there is room for it.
        options: How.
        show: Called now and then with seconds of media embedded since the last call.

    Yields:
        The clips in their order. One that cannot be used has a `problem`.
    """
    reading: deque[_Reading] = deque()
    waiting: deque[tuple[_Rows, dict[str, Any] | None]] = deque()
    features = choose_features(("a", "v"), model.config)
    source = iter(clips)
    try:
        for entry in itertools.islice(source, options.decoders):
            reading.append(_Reading(processor, entry, options))
        moments = 0
        while reading:
            current = reading[0]
            rows = current.rows
            item = current.next()
            if item is not None:
                waiting.append((rows, item))
                moments += len(item["loudness"])
            else:
                waiting.append((rows, None))  # the clip ends here
                reading.popleft()
                for entry in itertools.islice(source, 1):
                    reading.append(_Reading(processor, entry, options))
            # The last clip is not waited for: nothing more will fill the batch.
            if moments >= options.batch_size or not reading or len(waiting) > 4 * options.batch_size:
                yield from _embed_waiting(model, waiting, features, options, show)
                moments = 0
    finally:
        for unfinished in reading:
            unfinished.stop()


def _embed_waiting(
    model: Any, waiting: deque[Any], features: Any, options: EmbeddingOptions, show: Callable[[float], None] | None
) -> Iterator[EmbeddedClip]:
    """Embed all that waits in one batch, and give the clips that are complete by it."""
    items = [(rows, item) for rows, item in waiting if item is not None and not rows.problem]
    if items:
        inputs = {
            name: torch.cat([item[name] for _, item in items], dim=1)
            for name in ("input_values", "pixel_values_videos", "padding_mask", "padding_mask_videos")
        }
        encoded = encode_moments(model, inputs, features)
        done = 0
        for rows, item in items:
            part = slice(done, done + len(item["loudness"]))
            done = part.stop
            rows.add(item, {
                "audio": (encoded.values["a"][0, part].numpy(), encoded.audio_present[0, part].numpy()),
                "video": (encoded.values["v"][0, part].numpy(), encoded.video_present[0, part].numpy()),
            })  # fmt: skip
        if show is not None:
            show(done * options.hop)
    while waiting:
        rows, item = waiting.popleft()
        if item is None:
            yield rows.finish()


class _Reading:
    """A file that a thread decodes; `next` gives its chunks, `None` at its end."""

    def __init__(self, processor: Any, entry: ClipEntry, options: EmbeddingOptions) -> None:
        self.rows = _Rows(entry, options.hop)
        self._chunks: queue.Queue[Any] = queue.Queue(_CHUNKS_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(processor, entry, options), daemon=True)
        self._thread.start()

    def next(self) -> dict[str, Any] | None:
        chunk = self._chunks.get()
        if isinstance(chunk, MediaError):
            self.rows.problem = str(chunk)
            return None
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    def stop(self) -> None:
        """End the thread, wherever it is."""
        self._stopped.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._chunks.get_nowait()
        self._thread.join()

    def _run(self, processor: Any, entry: ClipEntry, options: EmbeddingOptions) -> None:
        try:
            self.rows.duration = probe_media(entry.path).duration
            self.rows.content = entry.content or content_of(entry.path)
            span = {"start": entry.start or None, "end": entry.end or None}
            stream = processor.stream(
                entry.path, hop=options.hop, missing="mask", damaged=options.damaged, device=options.device,
                return_media=True, **span,
            )  # fmt: skip
            for batch in stream:
                self._put(_prepare(batch, options))
                if self._stopped.is_set():
                    return
            self._put(None)
        except BaseException as error:  # whatever it is, the thread that waits must hear of it
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stopped.is_set():
            try:
                self._chunks.put(item, timeout=0.1)
                return
            except queue.Full:
                continue


def _prepare(batch: Any, options: EmbeddingOptions) -> dict[str, Any]:
    """What is kept of a chunk: the model's inputs, times, loudness and thumbnails, but no full-size frames."""
    chunk = batch.pop("media")
    count = len(chunk.frame_times)
    everywhere = torch.ones(1, count, dtype=torch.bool)
    return {
        "input_values": batch["input_values"],
        "padding_mask": batch["padding_mask"],
        "pixel_values_videos": batch["pixel_values_videos"],
        "padding_mask_videos": batch.get("padding_mask_videos", everywhere),
        "times": batch["frame_times"][0].numpy(),
        "loudness": window_loudness(batch, chunk),
        "thumbnails": _thumbnails(chunk.frames, options.thumbnails, count),
    }


def _thumbnails(frames: torch.Tensor | None, side: int, count: int) -> list[bytes | None]:
    """JPEG of each frame, at most `side` pixels long."""
    if frames is None or not side:
        return [None] * count
    from PIL import Image

    pictures: list[bytes | None] = []
    for frame in frames.permute(0, 2, 3, 1).numpy():
        picture = Image.fromarray(np.ascontiguousarray(frame))
        picture.thumbnail((side, side))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=80)
        pictures.append(file.getvalue())
    return pictures


class _Rows:
    """Collects the rows of one clip: the last ones in memory, those before in a file.

    What is kept in memory is allocated once. Little pieces, kept among the large ones that come and go with every
    chunk, would split the heap so that it grows with the film.
    """

    def __init__(self, entry: ClipEntry, hop: float) -> None:
        self.entry, self.hop = entry, hop
        self.problem = ""
        self.duration: float | None = None
        self.content = entry.content
        self.name = new_rows_name()
        self.count = 0
        self._block: dict[str, Any] = {}
        self._file: Any = None
        self._writer: Any = None
        self._sums: dict[str, Any] = {"audio": 0.0, "video": 0.0}
        self._seen = {"audio": False, "video": False}

    def add(self, item: dict[str, Any], vectors: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Take the moments of a chunk."""
        for side, (values, present) in vectors.items():
            # What is silent says nothing of the clip.
            counted = present & (item["loudness"] >= SILENCE_DB) if side == "audio" else present
            self._sums[side] = self._sums[side] + values[counted].sum(axis=0, dtype=np.float64)
            self._seen[side] |= bool(present.any())
        if not self._block:
            self._block = _empty_block(vectors["audio"][0].shape[1])
        size, done = len(item["loudness"]), 0
        while done < size:
            first = self.count % _BLOCK_ROWS
            taken = min(size - done, _BLOCK_ROWS - first)
            here, there = slice(first, first + taken), slice(done, done + taken)
            for name in ("times", "loudness", "thumbnails"):
                self._block[name][here] = item[name][there]
            for side, (values, present) in vectors.items():
                self._block[side][here] = values[there]
                self._block[f"{side}_present"][here] = present[there]
            done += taken
            self.count += taken
            if self.count % _BLOCK_ROWS == 0:
                self._write(self._as_batch(_BLOCK_ROWS))

    def _as_batch(self, size: int) -> Any:
        """The last rows, as many as the block holds, as a record batch of its own memory."""
        import pyarrow as pa

        windows = np.arange(self.count - size, self.count)
        starts = self.entry.start + windows * self.hop
        columns: dict[str, Any] = {
            "rows": pa.array([self.name] * size),
            "window": pa.array(windows.astype(np.int32)),
            "start": starts,
            "end": starts + self.hop,
            "time": self._block["times"][:size].copy(),
            "loudness": self._block["loudness"][:size].copy(),
            "thumbnail": pa.array(self._block["thumbnails"][:size].tolist(), pa.binary()),
        }
        hidden = self._block["audio"].shape[1]
        for side in ("audio", "video"):
            values = pa.array(self._block[side][:size].copy().ravel())
            absent = pa.array(~self._block[f"{side}_present"][:size])
            columns[side] = pa.FixedSizeListArray.from_arrays(values, hidden, mask=absent)
        return pa.record_batch(columns, schema=moments_schema(hidden))

    def _write(self, batch: Any) -> None:
        import pyarrow as pa

        if self._writer is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
            self._writer = pa.ipc.new_stream(pa.PythonFile(self._file, "w"), batch.schema)
        self._writer.write_batch(batch)

    def finish(self) -> EmbeddedClip:
        """The clip, with all its rows."""
        if self.problem or not self.count:
            self.close()
            release_names([self.name])
            problem = self.problem or f"{self.entry.path}: holds no moment; use a smaller hop."
            return EmbeddedClip(replace(self.entry, rows="", problem=problem, content=self.content))
        # A header may be wrong; the last frame lies within half a hop of the end.
        reached = self.entry.start + self.count * self.hop
        declared = min(self.duration or reached, self.entry.end or reached + self.hop)
        entry = replace(
            self.entry,
            rows=self.name,
            content=self.content,
            end=declared if abs(declared - reached) <= self.hop else reached,
            moments=self.count,
            has_audio=self._seen["audio"],
            has_video=self._seen["video"],
            audio=_unit(self._sums["audio"]),
            video=_unit(self._sums["video"]),
        )
        rest = self.count % _BLOCK_ROWS
        last = [self._as_batch(rest)] if rest else []
        self._block = {}
        return EmbeddedClip(entry, partial(self._batches, last), self.close)

    def _batches(self, last: list[Any]) -> Iterator[Any]:
        import pyarrow as pa

        if self._writer is not None:
            self._writer.close()
            self._file.seek(0)
            yield from pa.ipc.open_stream(self._file)
        yield from last

    def close(self) -> None:
        self._block = {}
        if self._file is not None:
            self._file.close()


def _empty_block(hidden: int) -> dict[str, Any]:
    """Room for some rows of a clip."""
    block: dict[str, Any] = {
        "times": np.zeros(_BLOCK_ROWS),
        "loudness": np.zeros(_BLOCK_ROWS, np.float32),
        "thumbnails": np.full(_BLOCK_ROWS, None, dtype=object),
    }
    for side in ("audio", "video"):
        block |= {side: np.zeros((_BLOCK_ROWS, hidden), np.float16), f"{side}_present": np.zeros(_BLOCK_ROWS, bool)}
    return block


def _unit(total: Any) -> np.ndarray | None:
    """A sum of vectors at length 1; `None` where there is none."""
    length = float(np.linalg.norm(total)) if np.ndim(total) else 0.0
    return None if length == 0 else (total / length).astype(np.float32)
