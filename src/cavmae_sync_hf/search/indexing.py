# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How does a collection of videos become an index, and stay its image when files come, change and go?"""

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..data.sources import ClipRecord, printable, read_source
from .approximate import DEFAULT_THRESHOLD, keep_index
from .embedding import EmbeddedClip, EmbeddingOptions, embed_clips
from .identity import clip_key, content_of, file_facts, looks_unchanged, segment_of
from .settings import IndexSettings
from .store import MomentStore
from .tables import ClipEntry, new_rows_name

__all__ = ["DEFAULT_HOP", "IndexSummary", "append_clips", "index_videos"]

DEFAULT_HOP = 0.5
# What is embedded is written after so many rows or seconds: what a killed run loses at most.
_ROWS_PER_COMMIT = 20_000
_SECONDS_PER_COMMIT = 20.0
_CLIPS_PER_COMMIT = 256


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
        bad: Name of each file that could not be used, and why.
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
    bad: dict[str, str] = field(default_factory=dict)
    moments: int = 0
    media_seconds: float = 0.0
    seconds: float = 0.0
    total_clips: int = 0
    total_moments: int = 0
    approximate: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dict(vars(self))

    def __str__(self) -> str:
        parts = [
            f"{count} {name}"
            for name, count in (
                ("added", self.added), ("changed", self.changed), ("unchanged", self.unchanged),
                ("removed", self.removed), ("indexed by another run", self.others), ("bad", len(self.bad)),
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
    index: str | os.PathLike[str] | MomentStore,
    model: Any,
    processor: Any,
    *,
    hop: float = DEFAULT_HOP,
    media: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    decoders: int | None = None,
    thumbnails: int = 0,
    damaged: Literal["error", "keep"] = "error",
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
        thumbnails: Longer side of a stored picture of each moment, pixels; 0 for none.
        damaged: `"error"`: damaged files are bad. `"keep"`: what can be decoded of them counts.
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
        SearchError: The index was made with another model or hop, or cannot be read or written.
        ValueError: An argument cannot work.
    """
    begin = time.monotonic()
    decoders = min(4, os.cpu_count() or 1) if decoders is None else decoders
    options = EmbeddingOptions(hop, batch_size, decoders, thumbnails, damaged, _device_of(model))
    if engine not in ("local", "ray"):
        raise ValueError(f'engine is {engine!r}; it must be "local" or "ray".')
    records = read_source(source, media=media).records
    base = getattr(model, model.base_model_prefix, model)
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
            from .cluster import append_with_ray

            groups = append_with_ray(
                store.uri, base, processor, run.next_clips(), options, workers, address, storage_options
            )
        else:
            groups = append_clips(store, embed_clips(base, processor, run.next_clips(), options, run.show))
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


def append_clips(store: MomentStore, clips: Iterator[EmbeddedClip]) -> Iterator[list[ClipEntry]]:
    """Write embedded clips, several with one commit; gives what is to be registered after each."""
    group: list[EmbeddedClip] = []
    begin = time.monotonic()
    try:
        for clip in clips:
            group.append(clip)
            full = sum(item.entry.moments for item in group) >= _ROWS_PER_COMMIT or len(group) >= _CLIPS_PER_COMMIT
            if full or time.monotonic() - begin > _SECONDS_PER_COMMIT:
                yield _append(store, group)
                group, begin = [], time.monotonic()
        if group:
            yield _append(store, group)
    finally:
        for item in group:
            item.close()


def _append(store: MomentStore, group: list[EmbeddedClip]) -> list[ClipEntry]:
    if any(item.entry.rows for item in group):
        store.append(batch for item in group for batch in item.batches())
    for item in group:
        item.close()
    return [item.entry for item in group]


class _Run:
    """What is known, what is to be done and what was done, of one run."""

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
                same = looks_unchanged(entry, old)
                if not same and entry.size == old.size and old.content.startswith("sha256:"):
                    entry = replace(entry, content=content_of(entry.path))
                    same = entry.content == old.content
                    if same:
                        touched.append(entry)
                if same and not (old.problem and self.retry_bad):
                    self._note_unchanged(old)
                    continue
            self.pending.append(entry)
        self._touch(touched)
        self.total = len(self.pending) + len(refused)
        self.register(refused)

    def _note_unchanged(self, old: ClipEntry) -> None:
        if old.problem:
            self.summary.bad[old.path] = old.problem
        else:
            self.summary.unchanged += 1

    def _touch(self, entries: Sequence[ClipEntry]) -> None:
        """Note new times of files whose content is the same."""
        if entries:
            whole = self.store.with_vectors([entry.key for entry in entries])
            times = {entry.key: entry.mtime_ns for entry in entries}
            self.store.register([replace(old, mtime_ns=times[old.key], previous=old.rows) for old in whole.values()])

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
                self.summary.bad[entry.path] = entry.problem
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
        if self.summary.bad:
            parts.append(f"{len(self.summary.bad)} bad")
        self.progress(self.done, self.total, ", ".join(parts))


def _entry_of(record: ClipRecord, root: str) -> ClipEntry:
    """What is known of a clip before it is opened."""
    path = record.path or record.source
    entry = ClipEntry(
        clip_key(path, record.start, record.end), "", path, record.start or 0.0, record.end or 0.0, printable(root)
    )
    problem = record.problem
    if record.row is not None:
        problem = "rows of a data set have no file to play; index a folder or a list of files"
    elif record.frames is not None or record.audio is not None:
        problem = "pictures or sound in files of their own cannot be indexed; join them to videos"
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


def _device_of(model: Any) -> str | None:
    device = str(model.device)
    return None if device == "cpu" else device
