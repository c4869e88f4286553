# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Media files as rows of an index: vectors, loudness and thumbnails, in memory that does not grow with a video.

`inference.moments` decodes ahead and embeds, moments of several short clips in one batch. Finished rows of a long clip
wait in a file.
"""

import contextlib
import io
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..data.failures import passes
from ..files import writing
from ..inference.loudness import SILENCE_DB, span_loudness
from ..inference.moments import MediaSpan, MomentChunk, embed_moments
from ..model.errors_cavmae_sync import CavMaeSyncError, DiskError, Hint, MediaError, SearchError, UnexpectedError
from ..model.media_cavmae_sync import probe_media
from ..model.media_stream_cavmae_sync import MediaChunk
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .store import MomentStore
from .tables import READ_AGAIN, ClipEntry, content_of, moments_schema, new_rows_name, release_names

# Rows of a clip in memory; more wait in a file.
_BLOCK_ROWS = 512
# What is embedded is written after so many rows or seconds: what a killed run loses at most.
_ROWS_PER_COMMIT = 20_000
_SECONDS_PER_COMMIT = 20.0
_CLIPS_PER_COMMIT = 256


@dataclass(frozen=True)
class EmbeddingOptions:
    """How clips are embedded.

    Attributes:
        hop: Seconds from one moment to the next.
        batch_size: Moments that the model is given at a time.
        decoders: Files decoded at a time; `None`: one per core, at most 4.
        thumbnails: Longer side of a stored image of each moment, pixels; 0 for none.
        damaged: `"error"`: damaged files are bad. `"keep"`: what can be decoded of them counts.
        still: As of `embed_moments`.
    """

    hop: float
    batch_size: int = 64
    decoders: int | None = None
    thumbnails: int = 0
    damaged: str = "error"
    still: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("decoders", 1), ("thumbnails", 0)):
            value = getattr(self, name)
            if name == "decoders" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SearchError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
        if not (math.isfinite(self.still) and self.still >= 0):
            raise SearchError(f"still is {self.still!r}; it must be a number of at least 0, such as 0.02.")
        if self.damaged not in ("error", "keep"):
            raise SearchError(f'damaged is {self.damaged!r}; it must be "error" or "keep".')


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
    model: CavMaeSyncModel,
    processor: CavMaeSyncProcessor,
    clips: Iterable[ClipEntry],
    options: EmbeddingOptions,
    show: Callable[[float], None] | None = None,
) -> Iterator[EmbeddedClip]:
    """Embed clips.

    Args:
        model: The model, in evaluation mode.
        processor: Its processor.
        clips: What is known of each; the next is asked for when there is room for it.
        options: How.
        show: Called now and then with seconds of media embedded since the last call.

    Yields:
        The clips in their order. One that cannot be used has a `problem`.
    """

    def spans() -> Iterator[MediaSpan]:
        for entry in clips:
            rows = _Rows(entry, options.hop)
            start, end = entry.start or None, entry.end or None
            yield MediaSpan(rows.open_file, name=entry.path, start=start, end=end, about=rows)

    def keep(_span: MediaSpan, inputs: dict[str, Any], _first: int) -> dict[str, Any]:
        return {
            "loudness": span_loudness(inputs["media"], inputs["window_times"][0].numpy()),
            "thumbnails": _thumbnails(inputs["media"], options.thumbnails),
        }

    embedded = embed_moments(
        model,
        processor,
        spans(),
        hop=options.hop,
        batch_size=options.batch_size,
        decoders=options.decoders,
        missing="mask",
        damaged=options.damaged,
        still=options.still,
        prepare=keep,
    )
    for span, chunks in embedded:
        rows: _Rows = span.about
        try:
            for chunk in chunks:
                rows.add(chunk)
                if show is not None:
                    show(len(chunk) * options.hop)
        except DiskError:  # of this machine, and no file's fault
            rows.close()
            raise
        except CavMaeSyncError as error:
            rows.error = error
        yield rows.finish()


def append_clips(store: MomentStore, clips: Iterator[EmbeddedClip]) -> Iterator[list[ClipEntry]]:
    """Write embedded clips, several with one commit; gives what is to be registered after each."""
    group: list[EmbeddedClip] = []
    begin = time.monotonic()

    def write() -> list[ClipEntry]:
        if any(item.entry.rows for item in group):
            store.append(batch for item in group for batch in item.batches())
        for item in group:
            item.close()
        return [item.entry for item in group]

    try:
        for clip in clips:
            group.append(clip)
            full = sum(item.entry.moments for item in group) >= _ROWS_PER_COMMIT or len(group) >= _CLIPS_PER_COMMIT
            if full or time.monotonic() - begin > _SECONDS_PER_COMMIT:
                yield write()
                group, begin = [], time.monotonic()
        if group:
            yield write()
    finally:
        for item in group:
            item.close()


def _thumbnails(chunk: MediaChunk, side: int) -> list[bytes | None]:
    """JPEG of each frame, at most `side` pixels long."""
    if chunk.frames is None or not side:
        return [None] * len(chunk.frame_times)
    from PIL import Image

    thumbnails: list[bytes | None] = []
    for frame in chunk.frames.permute(0, 2, 3, 1).numpy():
        image = Image.fromarray(np.ascontiguousarray(frame))
        image.thumbnail((side, side))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
        thumbnails.append(file.getvalue())
    return thumbnails


class _Rows:
    """Collects the rows of one clip: the last ones in memory, those before in a file.

    What is kept in memory is allocated once. Small pieces, kept among the large ones that come and go with every
    chunk, would split the heap so that it grows with the video.
    """

    def __init__(self, entry: ClipEntry, hop: float) -> None:
        self.entry, self.hop = entry, hop
        self.error: CavMaeSyncError | None = None
        self.duration: float | None = None
        self.content = entry.content
        self.name = new_rows_name()
        self.count = 0
        self._block: dict[str, Any] = {}
        self._file: Any = None
        self._writer: Any = None
        self._sums: dict[str, Any] = {"audio": 0.0, "video": 0.0}
        self._seen = {"audio": False, "video": False}

    def open_file(self) -> str:
        """What is decoded; called in the thread that does."""
        self.duration = probe_media(self.entry.path).duration
        self.content = self.entry.content or content_of(self.entry.path)
        return self.entry.path

    def add(self, chunk: MomentChunk) -> None:
        """Take the moments of a chunk."""
        loudness = chunk.kept["loudness"]
        vectors = {
            "audio": (chunk.values["a"], chunk.audio_present),
            "video": (chunk.values["v"], chunk.video_present),
        }
        for side, (values, present) in vectors.items():
            # What is silent says nothing of the clip.
            counted = present & (loudness >= SILENCE_DB) if side == "audio" else present
            self._sums[side] = self._sums[side] + values[counted].sum(axis=0, dtype=np.float64)
            self._seen[side] |= bool(present.any())
        if not self._block:
            self._block = _empty_block(chunk.values["a"].shape[1])
        done = 0
        while done < len(chunk):
            first = self.count % _BLOCK_ROWS
            taken = min(len(chunk) - done, _BLOCK_ROWS - first)
            here, there = slice(first, first + taken), slice(done, done + taken)
            self._block["times"][here] = chunk.times[there]
            self._block["loudness"][here] = loudness[there]
            self._block["thumbnails"][here] = chunk.kept["thumbnails"][there]
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

        with writing(tempfile.gettempdir()):
            if self._writer is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
                self._writer = pa.ipc.new_stream(pa.PythonFile(self._file, "w"), batch.schema)
            self._writer.write_batch(batch)

    def finish(self) -> EmbeddedClip:
        """The clip, with all its rows."""
        error = self.error
        if error is None and not self.count:
            error = MediaError(f"{self.entry.path}: holds no moment; use a smaller hop.")
        if error is not None:
            self.close()
            release_names([self.name])
            hints = error.hints
            if any(hint.argument == "damaged" for hint in hints):  # bad files are not read again by themselves
                hints = (*hints, Hint("retry_bad", True, "read it again though it has not changed"))
            entry = replace(self.entry, rows="", problem=error.message, hints=hints, content=self.content)
            if isinstance(error, UnexpectedError):
                entry = replace(entry, place=error.place)
            if passes(error):
                entry = replace(entry, size=READ_AGAIN, content="")
            return EmbeddedClip(entry)
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
        """Free memory and file."""
        self._block = {}
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk takes not even what is still in memory
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
