# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Sources of clips: a folder, pattern, list, bucket or data set becomes one list of clip records.

The list is sorted where the source has no order of its own, and its records name files relative to the source, so
that the same collection gives the same list wherever it lies. No media file is opened here.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import fsspec

from ..files import StrPath, parse_json
from ..model.errors_cavmae_sync import DataError, printable
from ..names import nothing_at
from ..syncworld.truth import OPTIONS_NAME as WORLD_OPTIONS
from ..syncworld.voices import CLASS_NAMES
from .caption_tables import ClipName, captions_of_clips
from .captions import TimedText
from .tables import (
    AUDIO_SUFFIXES,
    LIST_SUFFIXES,
    MEDIA_SUFFIXES,
    Entry,
    Vocabulary,
    entries_from_rows,
    is_data_set_name,
    number_labels,
    observed_vocabulary,
    read_list,
    read_vocabulary,
)

# Tables beside the files that give their labels, as `datasets`' video folders have them.
_FOLDER_TABLES = ("metadata.parquet", "metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class ClipRecord:
    """One clip of a source, before anything of it is opened.

    Attributes:
        id: Its name, unique in the list.
        source: Where it comes from, relative to the source: what shards and reports say.
        path: What is opened: a path or an address; `None` for a row of a data set, or when nothing was found.
        start: Where it starts in the file, seconds.
        end: Where it ends in the file, seconds.
        labels: Its label numbers.
        audio: Path of its audio where that is a file of its own.
        frames: Pattern of its images, with `{}` for the frame's number, where they are files of their own.
        row: Row of the data set that holds it.
        maybe_cut: The file may already be the segment from `start` to `end`; its length tells.
        problem: Why nothing was found, a bad clip already.
        size: Bytes of its file, where that is known without opening it.
        captions: What is said of it, in seconds from its start.
    """

    id: str
    source: str
    path: str | None = None
    start: float | None = None
    end: float | None = None
    labels: tuple[int, ...] = ()
    audio: str | None = None
    frames: str | None = None
    row: int | None = None
    maybe_cut: bool = False
    problem: str | None = None
    size: int | None = None
    captions: tuple[TimedText, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What makes this the same clip in another run: not where the files lie."""
        said = {"captions": [text.to_dict() for text in self.captions]} if self.captions else {}
        identity = {
            "id": self.id,
            "source": self.source,
            "start": self.start,
            "end": self.end,
            "labels": list(self.labels),
            "found": self.problem is None,
            "size": self.size,
        }
        return identity | said


@dataclass(frozen=True)
class MediaRows:
    """A data set whose rows hold media.

    Attributes:
        table: A `datasets.Dataset`.
        video_column: Its column of videos.
        audio_column: Its column of audio, if that is apart.
    """

    table: Any
    video_column: str
    audio_column: str | None = None

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        """Video and audio of a row; the audio is `None` where it is a track of the video."""
        values = self.table[row]
        return values[self.video_column], values[self.audio_column] if self.audio_column else None


@dataclass
class ClipList:
    """The clips of a source.

    Attributes:
        records: The clips, in their final order.
        label_names: Names of the label numbers, `None` when labels are numbers from the start.
        rows: The data set that records refer to by `row`.
        segments: Start and end of every clip as the list has them, also where its file is cut to them already; `None`
            where they are those of the records.
    """

    records: list[ClipRecord]
    label_names: list[str] | None = None
    rows: MediaRows | None = None
    segments: list[tuple[float | None, float | None]] | None = field(default=None, repr=False)
    _lines: list[str] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def lines(self) -> list[str]:
        """One JSON text per clip that says which clip it is."""
        if not self._lines:
            self._lines = [json.dumps(record.identity(), ensure_ascii=False) for record in self.records]
        return self._lines

    def digest(self, *, captions: bool = True) -> str:
        """Checksum of the whole list and of its label names; without `captions`, of what does not depend on them."""
        digest = hashlib.sha256(json.dumps(self.label_names, ensure_ascii=False).encode())
        lines = self.lines()
        if not captions and any(record.captions for record in self.records):
            lines = ClipList([replace(record, captions=()) for record in self.records]).lines()
        for line in lines:
            digest.update(b"\n" + line.encode())
        return digest.hexdigest()


def read_source(
    source: Any,
    *,
    media: StrPath | None = None,
    labels: StrPath | Sequence[str] | Vocabulary | None = None,
    split: str | None = None,
    folder_labels: bool = False,
    cut: str = "auto",
    audio_files: bool = True,
    caption_column: str | Sequence[str] | None = None,
    spans: StrPath | None = None,
) -> ClipList:
    """List the clips of a source.

    Args:
        source: One of
            - a folder, searched with all folders inside; a `metadata.parquet`, `.jsonl` or `.csv` in it is read as its
              list;
            - a pattern such as `videos/**/*.mp4`, or one media file;
            - a list: CSV, TSV, Parquet, JSON or JSON lines with columns such as `path`, `id`, `start`, `end`,
              `labels`, `audio`; AudioSet's and VGGSound's own CSV files; JSON as the published training code reads it;
            - any of these at an fsspec address (`s3://`, `hf://`, `file://`, ...);
            - a data set of the Hub, `owner/name`, for `datasets.load_dataset`, or a loaded `datasets.Dataset`;
            - a sequence of paths or of mappings with the columns of a list.
        media: Folder of the files that a list names; default: the list's own folder.
        labels: Label names in order, or a file of them (text lines, JSON, or a CSV table of index, mid and display
            name).
        split: Which split of a data set or of a list with such a column.
        folder_labels: Label each file of a folder with the name of the folder it lies in.
        cut: `"done"`: files found by a video's id are cut to the segment already, `"needed"`: they are whole videos,
            `"auto"`: their lengths tell.
        audio_files: Whether a folder or pattern also gives files with audio alone, such as .wav or .mp3; not those
            beside a video of the same name, whose audio they are.
        caption_column: Column, or columns, of a list or data set with what is said of a clip: a text, a list of
            texts, or of mappings with `text`, `start` and `end`; lists may be written as JSON. Rows that name the same
            clip and times are one clip with all of their captions.
        spans: Table of texts with times: rows of `file` (or the clip's id), `start`, `end` and `text`; see
            [`~cavmae_sync_hf.data.caption_tables.texts_of_clips`].

    Times of captions are those of the file, as the list's `start` and `end` are; those of a segment are cut to it.

    Raises:
        DataError: The source does not exist, holds no clips or cannot be understood; no clip has a caption where
            captions were asked for.
    """
    if cut not in ("auto", "done", "needed"):
        raise ValueError(f"cut must be 'auto', 'done' or 'needed', got {cut!r}.")
    columns = [caption_column] if isinstance(caption_column, str) else list(caption_column or ())
    vocabulary = read_vocabulary(labels)
    if hasattr(source, "column_names") or hasattr(source, "take"):
        _refuse_unused("a loaded data set", media=media, split=split, folder_labels=folder_labels or None)
        clips = _from_dataset(source, vocabulary, columns)
    elif isinstance(source, str | os.PathLike):
        clips = _from_address(
            os.fspath(source), vocabulary, media=media, split=split, folder_labels=folder_labels, cut=cut,
            audio_files=audio_files, caption_columns=columns,
        )  # fmt: skip
    elif isinstance(source, Iterable):
        rows = [item if isinstance(item, Mapping) else {"path": os.fspath(item)} for item in source]
        _refuse_unused("a list", folder_labels=folder_labels or None)
        clips = _from_entries(
            entries_from_rows(rows, "the list", split, columns),
            _folder_of(media, os.curdir),
            vocabulary,
            cut,
        )
    else:
        raise DataError(f"A source is a path, an address, a data set or a list, not {type(source).__name__}.")
    if not clips.records:
        raise DataError(f"{source}: holds no clips; nothing to prepare.")
    clips.records = [
        replace(record, id=printable(record.id), source=printable(record.source)) for record in clips.records
    ]
    if clips.label_names is not None:
        # Labels may have line breaks, which no file name in a list should; but UTF-8 has to hold them, too.
        clips.label_names = [
            re.sub("[\ud800-\udfff]+", lambda odd: printable(odd[0]), name) for name in clips.label_names
        ]
    counts = Counter(record.id for record in clips.records)
    doubled = [clip_id for clip_id, count in counts.items() if count > 1]
    if doubled:
        shown = ", ".join(repr(clip_id) for clip_id in doubled[:5]) + (", ..." if len(doubled) > 5 else "")
        raise DataError(
            f"{len(doubled)} ids stand for several clips: {shown}; give each clip an id of its own, or, if these rows "
            "are captions of one clip, name their column (option `caption_column`)."
        )
    if columns or spans is not None:
        _give_captions(clips, columns, spans)
    return clips


def _give_captions(clips: ClipList, columns: Sequence[str], spans: StrPath | None) -> None:
    """Cut captions to their clips, and add those of a table."""
    segments = clips.segments or [(record.start, record.end) for record in clips.records]
    names = [
        ClipName(record.id, record.source, record.path or "", *segment)
        for record, segment in zip(clips.records, segments, strict=True)
    ]
    given = captions_of_clips(names, [record.captions for record in clips.records], columns, spans)
    clips.records = [replace(record, captions=texts) for record, texts in zip(clips.records, given, strict=True)]


def _refuse_unused(kind: str, **options: Any) -> None:
    """Refuse arguments that a source of this kind has no use for, rather than ignore them."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise DataError(f"{kind} has no use for the option `{given[0]}`; leave it out.")


def _from_address(
    source: str,
    vocabulary: Vocabulary | None,
    *,
    media: StrPath | None,
    split: str | None,
    folder_labels: bool,
    cut: str,
    audio_files: bool,
    caption_columns: Sequence[str],
) -> ClipList:
    remote = "://" in source
    pattern = any(mark in source for mark in "*?[") and not os.path.exists(source)
    if not remote and not pattern and not os.path.exists(source):
        if is_data_set_name(source):
            _refuse_unused(f"{source}: a data set", media=media, folder_labels=folder_labels or None)
            return _from_dataset(_load_dataset(source, split), vocabulary, caption_columns)
        raise DataError(nothing_at(source))
    try:
        system, root = fsspec.url_to_fs(source if remote else os.path.abspath(source))
    except (ValueError, ImportError) as error:  # a protocol that nobody knows, or whose package is not installed
        raise DataError(f"{source}: cannot be read ({error}); check the address.") from error
    try:
        is_folder = not pattern and system.isdir(root)
        table = None
        if is_folder:
            tables = [f"{root.rstrip('/')}/{name}" for name in _FOLDER_TABLES]
            table = next((path for path in tables if system.exists(path)), None)
            if vocabulary is None and system.exists(f"{root.rstrip('/')}/{WORLD_OPTIONS}"):
                vocabulary = Vocabulary(CLASS_NAMES)  # a small SyncWorld need not show every class
        elif not pattern and os.path.splitext(root)[1].lower() in LIST_SUFFIXES:
            table = root
        if table is not None:
            _refuse_unused(f"{source}: a list", folder_labels=folder_labels or None)
            if table.lower().endswith(".parquet") and _holds_media(system, table):
                import datasets

                name = source if table == root else f"{source.rstrip('/')}/{table.rpartition('/')[2]}"
                rows = datasets.load_dataset("parquet", data_files=name, split="train")
                return _from_dataset(rows, vocabulary, caption_columns)
            entries = read_list(system, table, split, caption_columns)
            folder = _folder_of(media, _address(system, table.rpartition("/")[0] or "/"))
            return _from_entries(entries, folder, vocabulary, cut)
        _refuse_unused(
            f"{source}: a collection of files without a list",
            media=media, split=split, caption_column=caption_columns or None,
        )  # fmt: skip
        if pattern:
            base = root.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0]
            files = system.glob(root, detail=True)
        elif is_folder:
            base, files = root.rstrip("/"), system.find(root, detail=True)
        else:
            base, files = root.rpartition("/")[0], {root: system.info(root)}
        return _from_files(system, base, files, vocabulary, folder_labels=folder_labels, audio_files=audio_files)
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error}); check the address and its access.") from error


def _from_files(
    system: Any,
    base: str,
    files: Mapping[str, Mapping[str, Any]],
    vocabulary: Vocabulary | None,
    *,
    folder_labels: bool,
    audio_files: bool,
) -> ClipList:
    """Media files below a folder, by their names."""
    named, audio = [], []
    for file in sorted(files):
        relative = file[len(base) :].lstrip("/")
        if any(part.startswith(".") for part in relative.split("/")):
            continue
        suffix = os.path.splitext(file)[1].lower()
        if suffix in MEDIA_SUFFIXES:
            named.append((relative, file))
        elif suffix in AUDIO_SUFFIXES:
            audio.append((relative, file))
    with_video = {os.path.splitext(relative)[0] for relative, _ in named}
    if audio_files:
        named = sorted(named + [each for each in audio if os.path.splitext(each[0])[0] not in with_video])
    elif audio and not named:
        raise DataError(f"{base}: holds no clips with video, only audio (such as {audio[0][0]}); name videos.")
    stems = Counter(os.path.splitext(relative)[0] for relative, _ in named)
    entries = []
    for relative, file in named:
        stem = os.path.splitext(relative)[0]
        label = [relative.split("/")[-2]] if folder_labels and "/" in relative else []
        # Two files that differ in their suffix only keep it.
        entries.append(Entry(id=stem if stems[stem] == 1 else relative, path=_address(system, file), labels=label))
    folders = sorted({label for entry in entries for label in entry.labels})
    if vocabulary is None and not all(name.isascii() and name.isdigit() for name in folders):
        vocabulary = Vocabulary(folders)  # names all, some of which may be digits
    places = [relative for relative, _ in named]
    numbers, names = number_labels([entry.labels for entry in entries], vocabulary, places)
    records = [
        ClipRecord(str(entry.id), relative, entry.path, labels=row, size=files[file].get("size"))
        for entry, row, (relative, file) in zip(entries, numbers, named, strict=True)
    ]
    return ClipList(records, names)


def _from_entries(entries: Sequence[Entry], folder: str, vocabulary: Vocabulary | None, cut: str) -> ClipList:
    """Records of the entries of a list, whose files lie in `folder`."""
    wanted = any(entry.path is None and entry.frames is None for entry in entries)
    finder = _MediaFinder(folder) if wanted else None
    vocabulary = vocabulary or observed_vocabulary(entries)
    places = [entry.place for entry in entries]
    numbers, names = number_labels([entry.labels for entry in entries], vocabulary, places)
    # Named first: a file that is the segment itself has no times left, but they tell segments of one video apart.
    records = _with_ids(
        [
            ClipRecord(
                entry.id or "",
                entry.path or entry.frames or "",
                start=entry.start,
                end=entry.end,
                labels=row,
                captions=entry.captions,
            )  # fmt: skip
            for entry, row in zip(entries, numbers, strict=True)
        ],
        [entry.id is not None for entry in entries],
    )
    for place, entry in enumerate(entries):
        record = records[place]
        if entry.path is not None:
            path = _join(folder, entry.path)
            size = None
            # Asking elsewhere takes too long for a whole list; what is wrong with a file is said when it is opened.
            if "://" not in path:
                with suppress(OSError, ValueError):
                    size = os.path.getsize(path)
            record = replace(record, path=path, size=size)
        elif entry.frames is not None:
            record = replace(record, frames=_join(folder, entry.frames))
        elif finder is not None:
            record = finder.find(record, str(entry.id), cut)
        records[place] = record if entry.audio is None else replace(record, audio=_join(folder, entry.audio))
    return ClipList(records, names, segments=[(entry.start, entry.end) for entry in entries])


class _MediaFinder:
    """Finds the file of a video by its id and segment, as the usual downloaders name it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        system, root = fsspec.url_to_fs(folder)
        if not system.isdir(root):
            raise DataError(f"{folder}: no such folder; name the one with the media files (option `media`).")
        self.files: dict[str, str] = {}
        self.base = root.rstrip("/")
        self.system = system
        self.details = system.find(root, detail=True)
        for file in sorted(self.details, reverse=True):  # of equal stems the first in order stays
            stem, suffix = os.path.splitext(file.rpartition("/")[2])
            if suffix.lower() in MEDIA_SUFFIXES:
                self.files[stem] = file

    def find(self, record: ClipRecord, video: str, cut: str) -> ClipRecord:
        """The record with its file, or with what is wrong."""
        for stem, is_cut in _stems(video, record.start, record.end):
            file = self.files.get(stem)
            if file is None:
                continue
            record = replace(
                record,
                path=_address(self.system, file),
                source=file[len(self.base) :].lstrip("/"),
                size=self.details[file].get("size"),
            )
            if is_cut or cut == "done":
                return replace(record, start=None, end=None)
            return replace(record, maybe_cut=cut == "auto" and record.end is not None)
        return replace(record, source=video, problem="no media file has this id in its name")


def _stems(video: str, start: float | None, end: float | None) -> list[tuple[str, bool]]:
    """File names without suffix that a video's segment may have, and whether such a file is the segment itself."""
    stems = [(video, False), (f"Y{video}", False)]
    if start is None:
        return stems
    whole = int(start)
    named = [f"{video}_{whole:06d}", f"{video}_{whole}", f"{video}_{round(start * 1000)}", f"{video}_{start:.3f}"]
    if end is not None:
        named += [
            f"{video}_{whole:06d}_{int(end):06d}",
            f"{video}_{whole}_{int(end)}",
            f"{video}_{round(start * 1000)}_{round(end * 1000)}",
            f"{video}_{start:.3f}_{end:.3f}",
        ]
    named += [f"Y{stem}" for stem in named]
    return [(stem, True) for stem in named] + stems


def _with_ids(records: list[ClipRecord], given: list[bool]) -> list[ClipRecord]:
    """Name clips without an id by their file, and tell segments of one video apart by their times."""
    named = [
        record if has_id else replace(record, id=os.path.splitext(record.source)[0])
        for record, has_id in zip(records, given, strict=True)
    ]
    counts = Counter(record.id for record in named)
    return [
        replace(record, id=f"{record.id}_{_number(record.start)}-{_number(record.end)}")
        if counts[record.id] > 1 and (record.start is not None or record.end is not None)
        else record
        for record in named
    ]


def _number(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.12g}"


def _load_dataset(name: str, split: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{name}: is no file or folder; to load it as a data set: pip install datasets") from error
    try:
        return datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # each loading script and backend has its own errors
        raise DataError(f"{name}: no such file or folder, and not a data set that loads ({error}).") from error


def _holds_media(system: Any, root: str) -> bool:
    """Whether a Parquet file holds the media themselves, not their names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with system.open(root, "rb") as file:
            schema = pq.read_schema(file)
    except pa.ArrowException as error:
        raise DataError(f"{root}: is not a whole Parquet file ({error}); fetch or write it again.") from error
    kinds = [field.type for field in schema if field.name.lower() in ("video", "mp4", "path", "file")]
    return any(
        pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in kinds
    )


def _from_dataset(rows: Any, vocabulary: Vocabulary | None, caption_columns: Sequence[str]) -> ClipList:
    """Rows of a `datasets.Dataset` whose videos are bytes or paths."""
    import datasets

    if isinstance(rows, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise DataError(f"The data set has the splits {', '.join(rows)}; pass one of them, such as dataset['train'].")
    if not isinstance(rows, datasets.Dataset):
        raise DataError("A streaming data set has no fixed list of clips; load it without streaming=True.")
    columns = {name.lower(): name for name in rows.column_names}
    video = _media_column(rows, datasets.Video, ("video", "mp4", "path", "file", "file_name"))
    if video is None:
        raise DataError(f"The data set has no column of videos, it has {', '.join(rows.column_names)}.")
    audio = _media_column(rows, datasets.Audio, ("audio", "wav"))
    # Undecoded: bytes and paths, which the processor's decoder reads itself.
    for column, kind in ((video, datasets.Video), (audio, datasets.Audio)):
        if column is not None and isinstance(rows.features[column], kind):
            rows = rows.cast_column(column, kind(decode=False))
    heavy = {column for column in (video, audio) if column is not None}
    light = rows.select_columns([name for name in rows.column_names if name not in heavy])
    label = next((columns[name] for name in ("labels", "label", "class", "category") if name in columns), None)
    table = [dict(row, path=str(number)) for number, row in enumerate(light)] if light.column_names else []
    table = table or [{"path": str(number)} for number in range(len(rows))]
    entries = entries_from_rows(table, "the data set", None, caption_columns)
    names = _class_names(rows.features[label]) if label is not None else None
    if names is not None and vocabulary is None:
        vocabulary = Vocabulary(names)
    places = [entry.place for entry in entries]
    numbers, label_names = number_labels([entry.labels for entry in entries], vocabulary, places)
    records = [
        ClipRecord(
            entry.id or f"row_{number:08d}",
            f"row {number}",
            start=entry.start,
            end=entry.end,
            labels=row,
            row=number,
            captions=entry.captions,
        )  # fmt: skip
        for number, (entry, row) in enumerate(zip(entries, numbers, strict=True))
    ]
    return ClipList(_with_ids(records, [True] * len(records)), label_names, MediaRows(rows, video, audio))


def _media_column(rows: Any, kind: type, names: Sequence[str]) -> str | None:
    typed = [name for name, feature in rows.features.items() if isinstance(feature, kind)]
    lowered = {name.lower(): name for name in rows.column_names}
    return next(iter(typed + [lowered[name] for name in names if name in lowered]), None)


def _class_names(feature: Any) -> list[str] | None:
    inner = getattr(feature, "feature", feature)
    return list(inner.names) if hasattr(inner, "names") else None


def _folder_of(media: StrPath | None, default: str) -> str:
    folder = os.fspath(media) if media is not None else default
    return folder if "://" in folder else os.path.abspath(folder)


def _address(system: Any, path: str) -> str:
    """A path as `decode_media` opens it: plain on this machine, with its protocol elsewhere."""
    protocols = system.protocol if isinstance(system.protocol, tuple | list) else (system.protocol,)
    return path if "file" in protocols or "local" in protocols else system.unstrip_protocol(path)


def _join(folder: str, path: str) -> str:
    if "://" in path or os.path.isabs(path):
        return path
    return f"{folder.rstrip('/')}/{path}" if "://" in folder else os.path.join(folder, path)


def describe_difference(old: Sequence[str], new: Sequence[str]) -> str:
    """How two lists of clips (as `ClipList.lines` gives them) differ, in a few words."""
    before, after = ({parse_json(line)["id"]: line for line in lines} for lines in (old, new))
    parts = []
    for what, ids in (
        ("new", [clip_id for clip_id in after if clip_id not in before]),
        ("gone", [clip_id for clip_id in before if clip_id not in after]),
        ("changed", [clip_id for clip_id in after if clip_id in before and before[clip_id] != after[clip_id]]),
    ):
        if ids:
            shown = ", ".join(repr(clip_id) for clip_id in ids[:3]) + (", ..." if len(ids) > 3 else "")
            parts.append(f"{len(ids)} {what} ({shown})")
    return "; ".join(parts) or "the same clips in another order"
