# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How is one clip prepared, and how does a run of clips become a shard?

A clip is decoded once, by the processor's own decoder; its sound becomes a log-mel by the processor's own filter
bank. What cannot be used is a `BadClip` with a reason, never a row of zeros.
"""

import math
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvF

from ..model.alignment_cavmae_sync import reference_frame_times
from ..model.errors_cavmae_sync import MediaError, MissingTrackError, WorkerError
from ..model.feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor
from ..model.media_cavmae_sync import SAMPLING_RATE, DecodedMedia, decode_media, probe_media
from .fetching import fault_of_machine, local_file, reading_fault
from .shards import ShardWriter, clip_key, decode_jpeg, encode_array, encode_jpeg, encode_json, shard_name
from .sources import ClipRecord, printable

# Sound that never exceeds this is silence: 80 dB below full scale, under what 16-bit dither makes audible.
SILENT_PEAK = 1e-4
# A file may be this much shorter than the end of its segment and still hold it; cutters stop at whole packets.
_CUT_TOLERANCE = 1.0
# Files above this size (bytes) have their length looked up before they are decoded, since that costs an opening.
_LARGE_FILE = 1 << 26
# Of a segment, at least this share must lie in the file.
_LEAST_SHARE_OF_SEGMENT = 0.5
JPEG_CHROMA = ("4:4:4", "4:2:2", "4:2:0")


@dataclass(frozen=True)
class PrepareOptions:
    """What is kept of a clip; the fields are the arguments of `prepare`."""

    num_frames: int = 16
    alignment: str = "time"
    short_side: int | None = 256
    jpeg_quality: int = 95
    jpeg_chroma: str = "4:4:4"
    sampling_rate: int = SAMPLING_RATE
    num_mel_bins: int = 128
    channel: str = "first"
    missing: str = "error"
    silent: str = "error"
    damaged: str = "error"
    max_seconds: float = 600.0

    def __post_init__(self) -> None:
        choices = (
            ("alignment", self.alignment, ("time", "reference")),
            ("jpeg_chroma", self.jpeg_chroma, JPEG_CHROMA),
            ("channel", self.channel, ("first", "mean")),
            ("missing", self.missing, ("error", "keep")),
            ("silent", self.silent, ("error", "keep")),
            ("damaged", self.damaged, ("error", "keep")),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
        if not 1 <= self.num_frames <= 100:
            raise ValueError(
                f"num_frames must be 1 to 100 (frames are numbered with two digits), got {self.num_frames}."
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be 1 to 100, got {self.jpeg_quality}.")
        if self.short_side is not None and self.short_side < 16:
            raise ValueError(f"short_side must be at least 16 pixels, or None to keep all, got {self.short_side}.")
        if not self.max_seconds > 0:  # also NaN
            raise ValueError(f"max_seconds must be positive, got {self.max_seconds}.")
        self.extractor()

    def extractor(self) -> CavMaeSyncFeatureExtractor:
        """The feature extractor that computes the log-mel."""
        return CavMaeSyncFeatureExtractor(
            sampling_rate=self.sampling_rate,
            num_mel_bins=self.num_mel_bins,
            channel=self.channel,
            alignment=self.alignment,
        )


class BadClip(Exception):
    """A clip that cannot be used.

    Attributes:
        reason: Which kind of fault, a few words that can be counted.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class PreparedClip:
    """What is written of a clip, and what the index wants to know of it.

    Attributes:
        members: Extension and content of its tar members.
        info: Its JSON record.
        log_mel_values: Number of log-mel values.
        log_mel_sum: Their sum.
        log_mel_squares: The sum of their squares.
    """

    members: list[tuple[str, bytes]]
    info: dict[str, Any]
    log_mel_values: int
    log_mel_sum: float
    log_mel_squares: float


@dataclass
class _Material:
    """A clip's frames and sound, decoded; frames are tensors, or JPEG files as they were."""

    frames: list[torch.Tensor | bytes]
    frame_times: list[float]
    waveform: torch.Tensor | None
    duration: float


class ClipPreparer:
    """Prepares clips, one at a time.

    Args:
        options: What is kept of a clip.
        rows: The data set that records may refer to.
        video_column: Its column of videos.
        audio_column: Its column of sound.
        versions: Versions of the software, for the record.
    """

    def __init__(
        self,
        options: PrepareOptions,
        rows: Any = None,
        video_column: str | None = None,
        audio_column: str | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self.options, self.rows = options, rows
        self.video_column, self.audio_column = video_column, audio_column
        self.versions = dict(versions or {})
        self.extractor = options.extractor()

    def prepare(self, record: ClipRecord) -> PreparedClip:
        """Decode one clip and compress what is kept of it.

        Raises:
            BadClip: The clip cannot be used.
            WorkerError: It cannot be read for now, which says nothing about the clip.
        """
        if record.problem is not None:
            raise BadClip("not found", record.problem)
        try:
            return self._pack(record, self.material(record))
        except MissingTrackError as error:
            raise BadClip(f"no {error.track}", self._say(record, error)) from error
        except FileNotFoundError as error:
            raise BadClip("not found", self._say(record, error)) from error
        except WorkerError:
            raise
        except (MediaError, OSError) as error:
            fault = fault_of_machine(error) or reading_fault((record.path, record.audio))
            if fault is not None:
                raise WorkerError(
                    f"The clip {printable(record.source)} cannot be read for now ({printable(str(fault))}); mend the "
                    "cause."
                ) from error
            raise BadClip("unreadable", self._say(record, error)) from error
        except (ValueError, RuntimeError, ArithmeticError, LookupError) as error:
            raise BadClip("error", f"{type(error).__name__}: {self._say(record, error)}") from error

    def _say(self, record: ClipRecord, error: Exception) -> str:
        """An error's message that names the clip as the source does, wherever the source lies."""
        message = " ".join(str(error).split())
        for path in (record.path, record.audio):
            message = message.replace(path, record.source) if path else message
        message = message.replace("<SpooledTemporaryFile>", record.source).replace("missing='mask'", "missing='keep'")
        message = printable(message)
        return message if record.source in message else f"{record.source}: {message}"

    def material(self, record: ClipRecord) -> _Material:
        if record.frames is not None:
            return self._from_pictures(record)
        video: Any = record.path
        audio: Any = record.audio
        if record.row is not None:
            row = self.rows[record.row]
            video = row[self.video_column]
            audio = row[self.audio_column] if self.audio_column else None
        if video is None:
            raise BadClip("not found", f"{record.source}: has no video.")
        with local_file(video) as file:
            media = self._decode(record, file, own_sound=audio is None)
        if audio is not None:
            with local_file(audio) as file:
                sound = self._decode_sound(file, record.start, record.end)
            media.waveform, media.duration = sound.waveform, max(media.duration, sound.duration)
        frames = list(media.frames) if media.frames is not None else []
        times = media.frame_times.tolist() if media.frame_times is not None else []
        return _Material(frames, times, media.waveform, media.duration)

    def _decode(self, record: ClipRecord, file: Any, own_sound: bool) -> DecodedMedia:
        options, start, end = self.options, record.start, record.end
        if record.maybe_cut and is_cut(record, probe_media(file).duration):
            start = end = None
        if end is None and _size(file) > _LARGE_FILE:
            self._check_length(record, (probe_media(file).duration or 0.0) - (start or 0.0))
        media = decode_media(
            file,
            num_frames=options.num_frames,
            alignment=options.alignment,
            sampling_rate=options.sampling_rate,
            channel=options.channel,
            start=start,
            end=end,
            want_audio=own_sound,
            missing="mask" if options.missing == "keep" else "error",
            damaged=options.damaged,
            threads=1,
        )
        self._check_length(record, media.duration)
        wanted = math.inf if end is None else end - (start or 0.0)
        if end is not None and media.duration < _LEAST_SHARE_OF_SEGMENT * wanted:
            raise BadClip(
                "cut short",
                f"{record.source}: holds {media.duration:.1f} s of the {wanted:g} s from {start or 0.0:g} s to "
                f"{end:g} s; correct the times or fetch the file again.",
            )
        return media

    def _decode_sound(self, file: Any, start: float | None, end: float | None) -> DecodedMedia:
        options = self.options
        return decode_media(
            file,
            sampling_rate=options.sampling_rate,
            channel=options.channel,
            start=start,
            end=end,
            want_video=False,
            damaged=options.damaged,
        )

    def _check_length(self, record: ClipRecord, seconds: float) -> None:
        if seconds > self.options.max_seconds:
            raise BadClip(
                "too long",
                f"{record.source}: lasts {seconds:.0f} s, the limit is {self.options.max_seconds:g} s; give start "
                "and end times in a list, or raise the limit.",
            )

    def _from_pictures(self, record: ClipRecord) -> _Material:
        """A clip of the published layout: pictures `frame_i/ID.jpg` and a sound file."""
        count = self.options.num_frames
        # Only the number's own place is filled in: folders and ids may hold braces.
        before, place, after = str(record.frames).rpartition("frame_{}/")
        jpegs: list[bytes] = []
        for number in range(count):
            try:
                with local_file(f"{before}{place.format(number)}{after}") as file:
                    jpegs.append(file.read() if hasattr(file, "read") else Path(file).read_bytes())
            except FileNotFoundError:
                break
        if len(jpegs) < count:
            raise BadClip(
                "not found", f"{record.source}: has {len(jpegs)} of {count} pictures; see the option num_frames."
            )
        if record.audio is None:
            raise BadClip("no audio", f"{record.source}: the list names no sound file for it.")
        with local_file(record.audio) as file:
            sound = self._decode_sound(file, record.start, record.end)
        self._check_length(record, sound.duration)
        times = reference_frame_times(sound.duration, count)
        return _Material([self._keep_or_open(jpeg) for jpeg in jpegs], times, sound.waveform, sound.duration)

    def _keep_or_open(self, jpeg: bytes) -> torch.Tensor | bytes:
        """A picture that is small enough stays as it was compressed."""
        frame = decode_jpeg(jpeg)
        small = self.options.short_side is None or min(frame.shape[-2:]) <= self.options.short_side
        return jpeg if small and jpeg.startswith(b"\xff\xd8") else frame

    def _pack(self, record: ClipRecord, material: _Material) -> PreparedClip:
        options, waveform = self.options, material.waveform
        if waveform is not None and options.silent == "error" and float(waveform.abs().max()) < SILENT_PEAK:
            raise BadClip("silent", f"{record.source}: its sound track is silent throughout.")
        members = [(f"frame_{number:02d}.jpg", self._jpeg(frame)) for number, frame in enumerate(material.frames)]
        log_mel = np.empty((0, options.num_mel_bins), dtype=np.float32)
        if waveform is not None:
            log_mel = self.extractor.log_mel(waveform).numpy()
        info = {
            "id": record.id,
            "source": record.source,
            "start": record.start,
            "end": record.end,
            "duration": material.duration,
            "frame_times": material.frame_times,
            "labels": list(record.labels),
            "sampling_rate": options.sampling_rate,
            "num_mel_bins": options.num_mel_bins,
            "alignment": options.alignment,
            "has_audio": waveform is not None,
            "has_video": bool(members),
            "versions": self.versions,
        }
        members += [("log_mel.npy", encode_array(log_mel.astype(np.float16))), ("json", encode_json(info))]
        total, squares = float(log_mel.sum(dtype=np.float64)), float(np.square(log_mel, dtype=np.float64).sum())
        return PreparedClip(members, info, log_mel.size, total, squares)

    def _jpeg(self, frame: torch.Tensor | bytes) -> bytes:
        if isinstance(frame, bytes):
            return frame
        options = self.options
        return encode_jpeg(shrink(frame, options.short_side), options.jpeg_quality, options.jpeg_chroma)


def shrink(frame: torch.Tensor, short_side: int | None) -> torch.Tensor:
    """Bring the shorter side of a picture down to `short_side` pixels; smaller pictures stay as they are.

    Args:
        frame: `(3, height, width)` uint8.
        short_side: Pixels, `None` to keep every size.

    Returns:
        `(3, height, width)` uint8: bicubic with antialias by torchvision's integer kernel, within one grey level of
        PIL's. (FFmpeg's scaler is no faster for this and 1.1 grey levels too bright on average.)
    """
    if short_side is None or min(frame.shape[-2:]) <= short_side:
        return frame
    return tvF.resize(frame, [short_side], tvF.InterpolationMode.BICUBIC, antialias=True)


def is_cut(record: ClipRecord, seconds: float | None) -> bool:
    """Whether a file of this length is the segment itself rather than the video it is cut from."""
    start, end = record.start or 0.0, record.end or math.inf
    if seconds is None or seconds >= end - _CUT_TOLERANCE:
        return False
    if seconds > end - start + _CUT_TOLERANCE:
        raise BadClip(
            "unreadable",
            f"{record.source}: lasts {seconds:.1f} s, neither a video with the segment {start:g} s to {end:g} s nor "
            "that segment alone.",
        )
    return True


def _size(file: Any) -> int:
    """Bytes of a file of this machine, 0 where that is not known at once."""
    try:
        return os.path.getsize(file) if isinstance(file, str) else 0
    except OSError:
        return 0


@dataclass(frozen=True)
class ShardTask:
    """The unit of work and of resuming: one shard.

    Attributes:
        number: Number of the shard.
        first: Number of its first clip in the list.
        records: Its clips.
    """

    number: int
    first: int
    records: tuple[ClipRecord, ...]

    @property
    def size(self) -> int:
        """Its clips, good and bad."""
        return len(self.records)


@dataclass
class ShardJob:
    """Makes shards: what every process of a run is given once.

    Calling it with a task writes the shard under a name of its own, renames it, and leaves a note beside it; a shard
    with a note is whole.

    Attributes:
        folder: Folder of the shards.
        notes: Folder of the notes.
        name: What shards are called.
        options: What is kept of a clip.
        rows: The data set that records may refer to.
        video_column: Its column of videos.
        audio_column: Its column of sound.
        versions: Versions of the software.
    """

    folder: Path
    notes: Path
    name: str
    options: PrepareOptions
    rows: Any = None
    video_column: str | None = None
    audio_column: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, task: ShardTask, begin: Callable[[int], None] | None = None, skip: Mapping[int, str] | None = None
    ) -> dict[str, Any]:
        """Write one shard.

        Args:
            task: Which one.
            begin: Called with the place of each clip in the task before it is touched.
            skip: Places of clips that must not be touched, and why.

        Returns:
            The shard's note, see `note_path`.

        Raises:
            WorkerError: The shard cannot be written, or a clip cannot be read for now; nothing of the shard is left.
        """
        try:
            return self._make(task, begin or (lambda place: None), skip or {})
        except OSError as error:  # clips' own are told apart before
            raise WorkerError(
                f"The shard {self.folder / shard_name(self.name, task.number)} cannot be written ({error}); make room "
                "or mend the access."
            ) from error

    def _make(self, task: ShardTask, begin: Callable[[int], None], skip: Mapping[int, str]) -> dict[str, Any]:
        with one_thread():
            preparer = ClipPreparer(self.options, self.rows, self.video_column, self.audio_column, self.versions)
            partial = self.notes / f"{PARTIAL}{task.number:05d}-{uuid.uuid4().hex}"
            writer = ShardWriter(partial)
            try:
                note = self._fill(writer, task, preparer, begin, skip)
            except BaseException:
                writer.abandon()
                raise
            if note["clips"]:
                os.replace(partial, self.folder / note["file"])
            else:
                partial.unlink()
                note["file"] = None
            write_whole(note_path(self.notes, task.number), encode_json(note) + b"\n", self.notes)
        return note

    def _fill(
        self,
        writer: ShardWriter,
        task: ShardTask,
        preparer: ClipPreparer,
        begin: Callable[[int], None],
        skip: Mapping[int, str],
    ) -> dict[str, Any]:
        clips: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        labels: Counter[int] = Counter()
        totals = {"log_mel_values": 0, "log_mel_sum": 0.0, "log_mel_squares": 0.0, "seconds": 0.0}
        with_audio = with_video = 0
        for place, record in enumerate(task.records):
            begin(place)
            number = task.first + place
            try:
                if place in skip:
                    raise BadClip("crash", f"{record.source}: {skip[place]}")
                clip = preparer.prepare(record)
            except BadClip as fault:
                facts = {"number": number, "id": record.id, "source": record.source}
                bad.append(facts | {"reason": fault.reason, "message": str(fault)})
                continue
            key = clip_key(number, record.id)
            offset, size = writer.add(key, clip.members)
            duration = clip.info["duration"]
            clips.append(
                {"key": key, "id": record.id, "labels": list(record.labels), "duration": duration}
                | {"offset": offset, "size": size}
            )
            totals["log_mel_values"] += clip.log_mel_values
            totals["log_mel_sum"] += clip.log_mel_sum
            totals["log_mel_squares"] += clip.log_mel_squares
            totals["seconds"] += duration
            labels.update(record.labels)
            with_audio += clip.info["has_audio"]
            with_video += clip.info["has_video"]
        size, digest = writer.finish()
        return {
            "shard": task.number,
            "file": shard_name(self.name, task.number),
            "bytes": size,
            "sha256": digest,
            "clips": clips,
            "bad": bad,
            "label_counts": sorted(labels.items()),
            "with_audio": with_audio,
            "with_video": with_video,
            **totals,
        }


# What files are called that a process is still writing.
PARTIAL = "partial-"


def note_path(notes: Path, number: int) -> Path:
    """Where the note of a shard lies: its checksum, its clips, its bad clips and its share of the set's sums."""
    return notes / f"shard-{number:05d}.json"


def write_whole(path: Path, content: bytes, workplace: Path) -> None:
    """Write a file that is either there as a whole or not at all, by way of a name in `workplace`."""
    partial = workplace / f"{PARTIAL}{uuid.uuid4().hex}"
    file: BinaryIO
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: processes share the cores already, and sums must not depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def shard_tasks(records: Sequence[ClipRecord], clips_per_shard: int) -> list[ShardTask]:
    """Cut a list of clips into shards: shard i holds clips i * n to (i + 1) * n - 1."""
    return [
        ShardTask(number, first, tuple(records[first : first + clips_per_shard]))
        for number, first in enumerate(range(0, len(records), clips_per_shard))
    ]


__all__ = [
    "PARTIAL",
    "SILENT_PEAK",
    "BadClip",
    "PreparedClip",
    "ClipPreparer",
    "PrepareOptions",
    "ShardJob",
    "ShardTask",
    "is_cut",
    "note_path",
    "one_thread",
    "shard_tasks",
    "shrink",
    "write_whole",
]
