# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""An index of a collection of videos: made, brought up to date when files come, change and go, and described."""

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
from transformers import PreTrainedModel

from ..data.failures import Failure
from ..data.sources import ClipRecord, read_source
from ..files import StrPath
from ..model.errors_cavmae_sync import CavMaeSyncError, SearchError, printable
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .approximate import DEFAULT_THRESHOLD, keep_index
from .cluster import append_with_ray
from .embedding import EmbeddingOptions, append_clips, embed_clips
from .settings import IndexSettings
from .store import MomentStore, open_index
from .tables import (
    ClipEntry,
    as_matrix,
    clip_key,
    content_of,
    file_facts,
    is_unchanged,
    new_rows_name,
    segment_of,
)

DEFAULT_HOP = 0.5
# What `index_status` gives of a clip.
_SHOWN = ("path", "start", "end", "moments", "has_audio", "has_video", "size", "mtime_ns", "content")
# Of the length of vectors, which are stored in half precision.
_LENGTH_TOLERANCE = 0.01


@dataclass
class IndexSummary:
    """What one run of `index_videos` did.

    Attributes:
        index: Where the index lies.
        found: Clips in the source.
        added: Clips that are new in the index.
        changed: Clips whose file had changed and that were embedded anew.
        copied: Of both, clips whose rows were copied from a clip with the same content.
        unchanged: Clips that were there already.
        removed: Clips that went because their file did.
        others: Clips that another run was faster to index.
        errors: Name of each file that could not be used, and why; an `UnexpectedError` where the program is at fault.
        moments: Rows written.
        media_seconds: Length of what was embedded.
        seconds: Duration of the run.
        total_clips: Usable clips in the index now.
        total_moments: Rows in the index now.
        approximate: Rows that the approximate index covers.
    """

    index: str
    found: int = 0
    added: int = 0
    changed: int = 0
    copied: int = 0
    unchanged: int = 0
    removed: int = 0
    others: int = 0
    errors: dict[str, CavMaeSyncError] = field(default_factory=dict)
    moments: int = 0
    media_seconds: float = 0.0
    seconds: float = 0.0
    total_clips: int = 0
    total_moments: int = 0
    approximate: int = 0

    @property
    def bad(self) -> dict[str, str]:
        """Name of each file that could not be used, and why in words."""
        return {path: str(error) for path, error in self.errors.items()}

    @property
    def failures(self) -> list[Failure]:
        """The files that could not be used, as every batch tells them."""
        return [Failure.of(path, error) for path, error in self.errors.items()]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        values = {"bad" if name == "errors" else name: value for name, value in vars(self).items()}
        return values | {"bad": self.bad, "failures": [item.to_dict() for item in self.failures]}

    def __str__(self) -> str:
        parts = [
            f"{count} {name}"
            for name, count in (
                ("added", self.added), ("changed", self.changed), ("unchanged", self.unchanged),
                ("removed", self.removed), ("indexed by another run", self.others), ("bad", len(self.errors)),
            )
            if count
        ]  # fmt: skip
        text = f"{printable(self.index)}: {', '.join(parts) or 'nothing to do'}"
        if self.copied:
            text += f"; {self.copied} of the same content as another were copied"
        text += f"; holds {self.total_clips} clips, {self.total_moments} moments"
        if self.media_seconds and self.seconds:
            text += f"; {self.media_seconds / self.seconds:.1f} times as fast as playing"
        return text


def index_videos(
    source: Any,
    index: StrPath | MomentStore,
    model: PreTrainedModel,
    processor: CavMaeSyncProcessor,
    *,
    hop: float = DEFAULT_HOP,
    media: StrPath | None = None,
    batch_size: int = 64,
    decoders: int | None = None,
    thumbnails: int = 0,
    damaged: Literal["error", "keep"] = "error",
    still: float = 0.0,
    channel: Literal["first", "mean"] | None = None,
    audio_track: int | str | None = None,
    retry_bad: bool = False,
    remove_missing: bool = True,
    approximate_from: int | None = DEFAULT_THRESHOLD,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    address: str | None = None,
    storage_options: dict[str, str] | None = None,
    progress: Callable[..., None] | None = None,
) -> IndexSummary:
    """Bring an index up to date with a collection of videos.

    New and changed files are embedded; a file counts as changed when its size or its time *and* its content differ.
    Whatever goes wrong with one file costs that file: it is bad, and is read again once it has changed; where the
    machine or the program was at fault, the next run tries it again by itself.
    Clips whose file the source holds no more are removed. A run that is stopped, in whatever way, loses at most the
    work of the last seconds; the next one goes on. Several runs may write to one index at the same time.

    Args:
        source: A folder, pattern, list of files or segments, or one file, as `data.sources.read_source` takes them.
        index: Where the index is or shall be: a folder or an address of an object store. Or an open `MomentStore`.
        model: A `CavMaeSyncModel`, or another of this package's models, in evaluation mode.
        processor: Its processor.
        hop: Seconds from one moment to the next.
        media: Folder of the files that a list names.
        batch_size: Moments that the model is given at a time.
        decoders: Files decoded at a time; default: one per core, at most 4.
        thumbnails: Longer side of a stored image of each moment, pixels; 0 for none.
        damaged: `"error"`: damaged files are bad. `"keep"`: what can be decoded of them counts.
        still: Frames of still scenes are encoded once: those of which no square of 16 x 16 pixels differs from the
            last one that was encoded by more than this on average, in the processor's values (of which 1 is about a
            quarter of the way from black to white). 0: only equal ones. Their vectors are then those of that frame.
        channel: `"first"` or `"mean"` of several audio channels; default: the processor's.
        audio_track: Which audio track of files that have several: its number, counted from 0, or its language such as
            `"de"`. Default: the one that a player plays.
        retry_bad: Try files again that were bad before and have not changed.
        remove_missing: Whether clips go whose file is in the source no more.
        approximate_from: Rows from which on an approximate index is built; `None`: never.
        engine: `"local"`, or `"ray"` to embed on a Ray cluster whose machines see the files and the index.
        workers: With `engine="ray"`, actors; default: one per core or GPU.
        address: Of the Ray cluster; default: `RAY_ADDRESS`, else a Ray of this machine's own.
        storage_options: For an index in an object store.
        progress: Called as `progress(done, total, remark)`.

    Raises:
        DataError: The source does not exist or holds no clips.
        SearchError: The index was made with another model or hop, or cannot be read or written, or an argument cannot
            work.
    """
    begin = time.monotonic()
    options = EmbeddingOptions(
        hop=hop, batch_size=batch_size, decoders=decoders, thumbnails=thumbnails, damaged=damaged, still=still
    )
    if engine not in ("local", "ray"):
        raise SearchError(f'engine is {engine!r}; it must be "local" or "ray".')
    records = read_source(source, media=media).records
    base = cast(CavMaeSyncModel, model.base_model)
    processor = processor.with_audio_choice(channel, audio_track)
    settings = IndexSettings.of(base, processor, hop)
    store = index if isinstance(index, MomentStore) else MomentStore.create(index, settings, storage_options)
    store.settings.check(settings, store.uri, adding=True)
    store.sweep()
    run = _Run(store, _root_of(source), retry_bad, progress)
    run.plan(records)
    run.copy_known()  # first, so that a file that was moved keeps its rows
    if remove_missing:
        run.remove_missing()
    if run.pending:
        if engine == "ray":
            groups = append_with_ray(
                store.uri, base, processor, run.next_clips(), options=options, workers=workers, address=address,
                storage_options=storage_options,
            )  # fmt: skip
        else:
            embedded = embed_clips(base, processor, run.next_clips(), options=options, show=run.show)
            groups = append_clips(store, embedded)
        for group in groups:
            run.register(group)
            if engine == "ray":  # which tells nothing on the way
                run.show(sum(entry.end - entry.start for entry in group if entry.rows))
    store.sweep()
    summary = run.summary
    if approximate_from is not None:
        summary.approximate = keep_index(store, approximate_from)
    store.refresh()
    usable = [entry for entry in store.entries().values() if entry.rows]
    summary.total_clips, summary.total_moments = len(usable), sum(entry.moments for entry in usable)
    summary.seconds = time.monotonic() - begin
    return summary


def index_status(index: StrPath | MomentStore, *, check: bool = False) -> dict[str, Any]:
    """What an index holds.

    Args:
        index: Where it is, or the open index.
        check: Read every row, too, and raise an error where any is missing or damaged.

    Returns:
        `index`, `model`, `backend`, `precision`, `weights`, `hop`, `window_seconds`, `hidden_size`, numbers of
        `clips`, `files`, `bad`, `moments` and `loose_rows` (of runs that were stopped; never found, and swept away in
        time), `seconds` of media, rows of the `approximate` index by column, `thumbnails`, and `entries`: one mapping
        per clip, its `problem` empty where there is none.

    Raises:
        SearchError: There is no index, or it cannot be read, or `check` finds it damaged.
    """
    store = open_index(index)
    entries = sorted(store.entries().values(), key=lambda entry: (entry.path, entry.start))
    usable = [entry for entry in entries if entry.rows]
    if check:
        _check_rows(store)
    settings = store.settings
    return {
        "index": store.uri,
        "model": settings.model,
        "backend": settings.backend,
        "precision": settings.precision,
        "weights": settings.weights,
        "hop": settings.hop,
        "window_seconds": settings.window_seconds,
        "hidden_size": settings.hidden_size,
        "clips": len(usable),
        "files": len({entry.path for entry in usable}),
        "bad": len(entries) - len(usable),
        "moments": sum(entry.moments for entry in usable),
        "loose_rows": store.count() - sum(entry.moments for entry in usable),
        "seconds": sum(entry.end - entry.start for entry in usable),
        "approximate": store.indexed_columns(),
        "thumbnails": store.has_thumbnails,
        "entries": [
            {name: getattr(entry, name) for name in _SHOWN} | {"problem": str(entry.error)} for entry in entries
        ],
    }


def _check_rows(store: MomentStore) -> None:
    """Raise an error where rows are missing or vectors damaged."""
    entries = store.entries()
    incomplete = [entries[key].path for key in store.incomplete()]
    if incomplete:
        raise SearchError(
            f"{store.uri}: {len(incomplete)} clips lack rows, such as {incomplete[0]}; run `cavmae-sync index` again, "
            "which mends them."
        )
    for batch in store.scan(["rows", "window", "audio", "video"]):
        for side in ("audio", "video"):
            vectors, _ = as_matrix(batch[side], store.settings.hidden_size)
            # Not a number is no length near 1, either.
            if len(vectors) and not np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1) < _LENGTH_TOLERANCE):
                raise SearchError(
                    f"{store.uri}: holds {side} vectors that are not of length 1; it is damaged: make it anew."
                )


class _Run:
    """What is known, what is to be done and what was done, of one run of `index_videos`."""

    def __init__(self, store: MomentStore, root: str, retry_bad: bool, progress: Callable[..., None] | None) -> None:
        self.store, self.root, self.retry_bad = store, printable(root), retry_bad
        self.progress = progress or (lambda *_: None)
        self.summary = IndexSummary(store.uri)
        self.pending: list[ClipEntry] = []
        self.listed: set[str] = set()
        self.known: Mapping[str, ClipEntry] = store.entries()
        self.done = self.total = 0
        self.begin = time.monotonic()

    def plan(self, records: Sequence[ClipRecord]) -> None:
        """Compare the source with the index."""
        incomplete = set(self.store.incomplete())
        touched: list[ClipEntry] = []
        refused: list[ClipEntry] = []
        self.summary.found = len(records)
        for record in records:
            entry = _entry_of(record, self.root)
            if entry.key in self.listed:
                continue
            self.listed.add(entry.key)
            old = self.known.get(entry.key)
            entry = replace(entry, previous=old.rows if old else "")
            if entry.problem:
                refused.append(entry)
                continue
            if old is not None and entry.key not in incomplete:
                same = is_unchanged(entry, old)
                if not same and entry.size == old.size and old.content.startswith("sha256:"):
                    entry = replace(entry, content=content_of(entry.path))
                    same = entry.content == old.content
                    if same:
                        touched.append(entry)
                if same and not (old.problem and self.retry_bad):
                    if old.problem:
                        self.summary.errors[old.path] = old.error
                    else:
                        self.summary.unchanged += 1
                    continue
            self.pending.append(entry)
        if touched:  # their times are noted
            whole = self.store.with_vectors([entry.key for entry in touched])
            times = {entry.key: entry.mtime_ns for entry in touched}
            self.store.register([replace(old, mtime_ns=times[old.key], previous=old.rows) for old in whole.values()])
        self.total = len(self.pending) + len(refused)
        self.register(refused)

    def remove_missing(self) -> None:
        """Remove clips that were indexed from this source and are in it no more."""
        if not self.root:
            return
        below = self.root.rstrip("/") + "/"
        gone = [
            key
            for key, old in self.known.items()
            if key not in self.listed
            and (old.root == self.root or (old.path.startswith(below) and not os.path.exists(old.path)))
        ]
        if gone:
            self.store.forget(gone)
            self.summary.removed = len(gone)

    def copy_known(self) -> None:
        """Copy the rows of clips whose content is in the index under another name: moved and doubled files."""
        self.known = self.store.entries()
        sources = {(old.content, segment_of(old.key)): old for old in self.known.values() if old.rows and old.content}
        sizes = {old.size for old in sources.values()}
        rest, copies = [], []
        for entry in self.pending:
            if entry.size in sizes:
                entry = replace(entry, content=entry.content or content_of(entry.path))
                old = sources.get((entry.content, segment_of(entry.key)))
                if old is not None:
                    copies.append((old, entry))
                    continue
            rest.append(entry)
        vectors = self.store.with_vectors(sorted({old.key for old, _ in copies}))
        copied = []
        for old, entry in copies:
            name = new_rows_name()
            if self.store.copy(old.rows, name) != old.moments:  # another run has removed them
                rest.append(entry)
                continue
            own = {field: getattr(entry, field) for field in ("key", "path", "root", "size", "mtime_ns", "previous")}
            copied.append(replace(vectors[old.key], rows=name, **own))
        self.pending = rest
        # At once: names may have been swapped.
        self.register(copied, copied=True)

    def next_clips(self) -> Iterator[ClipEntry]:
        """The clips to embed, without those that another run has finished meanwhile."""
        pending = list(reversed(self.pending))
        while pending:
            entry = pending.pop()
            self.store.refresh()
            now = self.store.entries().get(entry.key)
            if now is not None and now.rows != entry.previous and now.rows:
                self.summary.others += 1
                self._advance(1)
                # Whoever it is works through the same list: better not side by side.
                random.shuffle(pending)
                continue
            yield entry

    def register(self, entries: Sequence[ClipEntry], copied: bool = False) -> None:
        """Make clips count, and note what came of them."""
        accepted = self.store.register(entries)
        for entry in entries:
            if entry.key not in accepted:
                self.summary.others += 1
            elif entry.problem:
                self.summary.errors[entry.path] = entry.error
            else:
                known = self.known.get(entry.key)
                self.summary.added += known is None or not known.rows
                self.summary.changed += known is not None and bool(known.rows)
                self.summary.copied += copied
                self.summary.moments += entry.moments
        self._advance(len(entries))

    def show(self, media_seconds: float) -> None:
        """Show that work goes on."""
        self.summary.media_seconds += media_seconds
        self._advance(0)

    def _advance(self, clips: int) -> None:
        self.done += clips
        parts = []
        if self.summary.media_seconds:
            speed = self.summary.media_seconds / max(1e-3, time.monotonic() - self.begin)
            parts.append(f"{self.summary.media_seconds / 60:.1f} min of media, {speed:.1f}x")
        if self.summary.errors:
            parts.append(f"{len(self.summary.errors)} bad")
        self.progress(self.done, self.total, ", ".join(parts))


def _entry_of(record: ClipRecord, root: str) -> ClipEntry:
    """What is known of a clip before it is opened."""
    path = record.path or record.source
    entry = ClipEntry(
        key=clip_key(path, record.start, record.end),
        rows="",
        path=path,
        start=record.start or 0.0,
        end=record.end or 0.0,
        root=printable(root),
    )
    problem = record.problem
    if record.row is not None:
        problem = "rows of a data set have no file to play; index a folder or a list of files"
    elif record.frames is not None or record.audio is not None:
        problem = "frames or audio in files of their own cannot be indexed; join them to videos"
    elif record.maybe_cut:
        problem = "whether its file is cut to its segment is unknown; give a list with paths and times"
    if problem:
        return replace(entry, problem=f"{path}: {problem}." if not problem.startswith(path) else problem)
    size, mtime, content = file_facts(path)
    return replace(entry, size=size, mtime_ns=mtime, content=content)


def _root_of(source: Any) -> str:
    """What the clips of a source are told by from those of others; empty for lists in memory."""
    if not isinstance(source, str | os.PathLike):
        return ""
    name = os.fspath(source)
    return name if "://" in name else os.path.abspath(name)
