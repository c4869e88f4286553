# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Features of windows of videos, as arrays in memory or as files of any size.

`extract_features` gives arrays and a timing table, `extract_to_folder` writes them: in constant memory, whole or not
at all, and going on where a killed run has stopped. What a window's feature is, is told in `windows`.
"""

import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from ..data import crashes
from ..data.clock import format_clock
from ..data.failures import Failure, file_error
from ..data.packing import BadClip, is_cut
from ..data.sources import ClipList, ClipRecord, MediaRows, read_source
from ..data.tables import LIST_SUFFIXES
from ..files import StrPath, locked
from ..model.alignment_cavmae_sync import window_seconds
from ..model.errors_cavmae_sync import CavMaeSyncError, DiskError, Hint, InferenceError, printable
from ..model.media_cavmae_sync import probe_media
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..provenance import backend_of, model_fingerprint, require_package, software_versions
from .feature_folder import FeatureFolder, check_folder, nothing_came
from .features import choose_features
from .moments import MediaSpan, Progress
from .windows import Plan, ScrambledAudio, WindowGrid, WindowRow, iter_windows


@dataclass
class WindowFeatures:
    """Features of windows, row by row.

    Attributes:
        features: Feature name -> `(rows, hidden)` float32; NaN where a window has no audio or frame for it.
        timing: One mapping per row, see `extract_features`; a table by `pandas.DataFrame(timing)`.
        failed: Name of each video that gave no rows -> why. Whatever goes wrong with one video costs that video.
        pairing: With `control="scramble"`, which piece of frames got which piece of audio.
        errors: The same names -> the errors, whose remedies each reader can spell; an `UnexpectedError` where the
            program is at fault.
    """

    features: dict[str, np.ndarray]
    timing: list[dict[str, Any]]
    failed: dict[str, str] = field(default_factory=dict)
    pairing: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.timing)


@dataclass
class ExtractionSummary:
    """What a run of `extract_to_folder` has done.

    Attributes:
        folder: The folder.
        videos: Videos of the source.
        made: Videos that this run has read.
        rows: Rows in the folder.
        features: Feature name -> length of its vectors.
        failed: Name of each video that gave no rows -> why.
        seconds: How long the run took.
        errors: The names of `failed` -> the errors, whose remedies each reader can spell; an `UnexpectedError` where
            the program is at fault.
    """

    folder: Path
    videos: int
    made: int
    rows: int
    features: dict[str, int]
    failed: dict[str, str]
    seconds: float
    errors: dict[str, Exception] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        values = {name: value for name, value in vars(self).items() if name != "errors"}
        return values | {"folder": str(self.folder), "failures": [item.to_dict("video") for item in self.failures]}

    @property
    def failures(self) -> list[Failure]:
        """The videos that gave no rows, as every batch tells them."""
        return [Failure.of(name, error) for name, error in self.errors.items()]

    def __str__(self) -> str:
        columns = ", ".join(f"{name} ({size})" for name, size in self.features.items())
        text = f"{self.folder}: {_count(self.rows, 'window')} of {_count(self.videos - len(self.failed), 'video')}"
        done = f"{_count(self.made, 'video')} read in {self.seconds:.1f} s" if self.made else "all there already"
        return f"{text}; {columns}; {done}"


def extract_features(
    model: CavMaeSyncModel,
    processor: CavMaeSyncProcessor,
    source: Any,
    *,
    window: float = 5.0,
    stride: float = 1.0,
    hop: float | None = None,
    modalities: Sequence[str] | None = None,
    layers: Sequence[int] = (),
    control: Literal["scramble"] | None = None,
    seed: int = 0,
    audio_context: Literal["around", "inside"] = "around",
    partial: Literal["drop", "keep"] = "drop",
    missing: Literal["error", "mask"] = "error",
    damaged: Literal["error", "keep"] = "error",
    channel: Literal["first", "mean"] | None = None,
    audio_track: int | str | None = None,
    batch_frames: int = 16,
    media: StrPath | None = None,
    split: str | None = None,
    progress: Progress | None = None,
    sound: Literal["around", "inside"] | None = None,
) -> WindowFeatures:
    """Features of every window of one or more videos, in memory.

    Args:
        model: In evaluation mode, as `load_model` gives it.
        processor: Its processor.
        source: A video file, or what [`~cavmae_sync_hf.data.sources.read_source`] lists: a folder, a pattern, a list
            with spans, a sequence of paths. Files of other suffixes than videos', such as audio files, are taken
            where they are named one by one.
        window: Length of a window, seconds.
        stride: From the start of a window to the start of the next, seconds.
        hop: From one moment to the next, seconds; must divide `stride`. Default: the longest that does and is no more
            than 0.625 s or the window.
        modalities: `"a"` (audio), `"v"` (frames), `"av"` (both fused), `"a_patches"`, ...; see `features`. Default:
            all of the first three that the model has, in ONNX Runtime the first two. With audio alone no frame is
            decoded, and moments lie on the grid itself instead of on the frame that is on screen there, at most one
            frame earlier.
        layers: Layers whose mean patches are added per modality; negative ones count from the last.
        control: `"scramble"`: frames get the audio of other pieces of the videos; see `ScrambledAudio`.
        seed: Seeds the control.
        audio_context: `"around"`: every moment in the window hears its full audio window, so a row hears up to half of
            it beyond both ends. `"inside"`: rows are means of the moments that hear nothing from outside (`v` still of
            all); takes windows longer than the model's audio window.
        partial: `"drop"`: no row for windows with moments beyond the video's end. `"keep"`: means of those that are
            there.
        missing: `"error"`, or `"mask"`: NaN where a video lacks the audio or the frames.
        damaged: `"error"`, or `"keep"`: what can be decoded of a damaged video counts.
        channel: `"first"` or `"mean"` of several audio channels; default: the processor's.
        audio_track: Which audio track of files that have several: its number, counted from 0, or its language such as
            `"de"`. Default: the one that a player plays.
        batch_frames: Moments decoded and encoded at a time.
        media: Folder of the files that a list names.
        split: Split of a list or data set.
        progress: Called with videos done, their number and a remark.
        sound: Earlier name of `audio_context`.

    Returns:
        The features, and per row: `id` and `file` of the video, `window` (its number in the video), `start`, `end`,
        `centre` (seconds of the file), `moments`, `partial`, `frame_times` (when the frames appeared),
        `video_moments` and `audio_moments` (those present, that the means are of), `audio_coverage` (mean share of
        the moments' audio windows inside the video), `audio_start` and `audio_end` (what was heard; `None` in the
        control), `similarity` (mean cosine of audio and frame, with `a` and `v`).

    Raises:
        InferenceError: A setting cannot work, the only video cannot be used, or none of several can.
    """
    job = _Job(
        model, processor, source, window=window, stride=stride, hop=hop, modalities=modalities, layers=layers,
        control=control, seed=seed, audio_context=audio_context, partial=partial, missing=missing, damaged=damaged,
        channel=channel, audio_track=audio_track, batch_frames=batch_frames, media=media, split=split, sound=sound,
    )  # fmt: skip
    rows: list[WindowRow] = []
    result = WindowFeatures({}, [], pairing=job.deal(progress))
    for number, made in job.rows(range(len(job.videos)), progress):
        try:
            rows += list(made)
        except _VideoFailure as failure:
            failure.note(job.videos[number], result)
    if not rows:
        raise nothing_came(result.errors)
    result.timing = [row.facts for row in rows]
    for name in job.sizes:
        result.features[name] = np.stack([row.vectors[name] for row in rows])
    return result


def extract_to_folder(
    model: CavMaeSyncModel,
    processor: CavMaeSyncProcessor,
    source: Any,
    out: StrPath,
    *,
    format: Literal["npy", "parquet"] = "npy",  # noqa: A002 - the word users look for
    progress: Progress | None = None,
    **settings: Any,
) -> ExtractionSummary:
    """Write the features of every window of many or long videos.

    A video whose rows are written is not read again: a run that is killed goes on with the next one. Videos that
    cannot be used are left out and listed in the manifest; another run tries them again.

    Args:
        model, processor, source: As of `extract_features`.
        out: Folder, new or begun by a run with the same model, source and settings. With `format="npy"` it holds
            `FEATURE.npy` `(rows, hidden)` float32 and `timing.csv`; with `"parquet"` a file `part-NUMBER.parquet` for
            each video, which together read as one table. `manifest.json` says what the rows are, which of them are
            whose, and which videos failed; `pairing.json` which audio scrambled frames got.
        format: `"npy"` or `"parquet"` (needs pyarrow).
        progress: Called with videos done, their number and a remark.
        settings: As of `extract_features`.

    Raises:
        InferenceError: A setting cannot work; the folder holds something else, or the features of another model,
            source or setting; or no video could be used.
        LockedError: Another run is writing to the folder.
    """
    began = time.perf_counter()
    if format not in ("npy", "parquet"):
        raise InferenceError(f"`format` is {format!r}; it must be 'npy' or 'parquet'.")
    if format == "parquet":
        require_package("pyarrow.parquet", "parquet", "Parquet")
    folder = check_folder(out)
    job = _Job(model, processor, source, **settings)
    store = FeatureFolder(
        folder, format, videos=job.videos, sizes=job.sizes, model=model_fingerprint(model, job.processor),
        settings=job.settings(), lines=job.clips.lines(), digest=job.clips.digest(),
    )  # fmt: skip
    store.work.mkdir(parents=True, exist_ok=True)
    summary = ExtractionSummary(folder, len(job.videos), made=0, rows=0, features=job.sizes, failed={}, seconds=0.0)
    with locked(store.work / "lock", folder):
        try:
            missing = store.begin()
            if missing:
                store.claim(job.deal(progress))
            for number, made in job.rows(missing, progress):
                try:
                    store.add(number, made)
                except _VideoFailure as failure:
                    failure.note(job.videos[number], summary)
            # A run that was stopped while it joined the rows misses no video, and yet is not at its end.
            summary.rows = store.rows() if store.is_complete else store.finish(summary.failed, job.facts())
            if not summary.failed or not summary.rows:
                store.leave()
        except BaseException:
            if not store.is_claimed():
                store.leave()
            raise
    if not summary.rows:
        raise nothing_came(summary.errors)
    if progress is not None:
        progress(summary.videos, summary.videos, "")
    summary.made = len(missing) - len(summary.failed)
    summary.seconds = time.perf_counter() - began
    return summary


class _VideoFailure(Exception):
    """One video cannot be used; the others go on."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error

    def note(self, video: MediaSpan, result: WindowFeatures | ExtractionSummary) -> None:
        """Write it down."""
        result.failed[video.id], result.errors[video.id] = str(self), self.error


class _Job:
    """What is to be done, checked before anything is done; arguments as of `extract_features`."""

    def __init__(
        self,
        model: CavMaeSyncModel,
        processor: CavMaeSyncProcessor,
        source: Any,
        *,
        window: float = 5.0,
        stride: float = 1.0,
        hop: float | None = None,
        modalities: Sequence[str] | None = None,
        layers: Sequence[int] = (),
        control: str | None = None,
        seed: int = 0,
        audio_context: Literal["around", "inside"] = "around",
        partial: Literal["drop", "keep"] = "drop",
        missing: Literal["error", "mask"] = "error",
        damaged: Literal["error", "keep"] = "error",
        channel: Literal["first", "mean"] | None = None,
        audio_track: int | str | None = None,
        batch_frames: int = 16,
        media: StrPath | None = None,
        split: str | None = None,
        sound: Literal["around", "inside"] | None = None,
    ) -> None:
        if sound is not None:
            warnings.warn(f"`sound={sound!r}` is now called `audio_context={sound!r}`.", FutureWarning, stacklevel=3)
            audio_context = sound
        if modalities is None:
            both = ("a", "v", "av") if backend_of(model)["backend"] == "torch" else ("a", "v")
            modalities = {"audio": ("a",), "video": ("v",)}.get(model.config.modality, both)
        features = choose_features(modalities, model.config, layers)
        inner = [feature.name for feature in features if feature.kind in ("fused", "layer")]
        if inner and backend_of(model)["backend"] != "torch":
            raise InferenceError(
                f"{inner[0]!r} comes from within the model, and ONNX Runtime gives what comes out at its end: a, v, "
                "a_patches and v_patches.",
                hint=Hint("backend", "torch", "have it"),
            )
        self.plan = Plan(
            grid=WindowGrid.of(window, stride, hop),
            features=features,
            audio_context=audio_context,
            partial=partial,
            missing=missing,
            damaged=damaged,
            batch_frames=batch_frames,
        )
        processor = processor.with_audio_choice(channel, audio_track)
        self.audio_seconds = window_seconds(processor.feature_extractor.audio_length)
        self.plan.heard(self.audio_seconds)
        if audio_context == "inside" and processor.feature_extractor.clip_length is not None:
            raise InferenceError(
                "The model hears moments within longer clips, so that none hears the window alone.",
                hint=Hint("audio_context", "around", "let moments hear beyond the window"),
            )
        if control not in (None, "scramble"):
            raise InferenceError(f"`control` is {control!r}; there is 'scramble'.")
        if control and not (self.plan.needs_audio and self.plan.needs_video):
            raise InferenceError(
                "The control condition gives frames the audio of other moments; ask for `av`, or for `a` and `v`."
            )
        self.model, self.processor = model, processor
        self.control, self.seed = control, seed
        self.sizes = {feature.name: int(model.config.hidden_size) for feature in features}
        self.clips = _read(source, media, split, missing == "mask" or not self.plan.needs_video)
        self.videos = [_video(self.clips, record) for record in self.clips.records]
        self.supply: ScrambledAudio | None = None

    def deal(self, progress: Progress | None) -> list[dict[str, Any]]:
        """Deal out the audio for the control condition; who got whose."""
        if self.control is None:
            return []

        def show(done: int, total: int) -> None:
            if progress is not None:
                progress(0, len(self.videos), f"measured {done} of {total}")

        usable = [video for video in self.videos if video.about is None]
        self.supply = ScrambledAudio(usable, self.plan, self.processor, seed=self.seed, progress=show)
        return self.supply.pairing()

    def rows(self, numbers: Sequence[int], progress: Progress | None) -> Iterator[tuple[int, Iterator[WindowRow]]]:
        """Videos by their numbers, with their rows; what is wrong with a video becomes a `_VideoFailure`."""
        videos = [self.videos[number] for number in numbers]
        total = len(self.videos)
        done = {video.id: total - len(videos) + place for place, video in enumerate(videos)}

        def show(video: MediaSpan, seconds: float) -> None:
            if progress is not None:
                clock = format_clock(math.floor((video.start or 0.0) + seconds), 0)
                progress(done[video.id], total, f"{printable(video.name)} at {clock}")

        made = iter_windows(self.model, self.processor, videos, self.plan, supply=self.supply, show=show)
        for number, (_, rows) in zip(numbers, made, strict=True):
            yield number, _reading_errors(rows)

    def settings(self) -> dict[str, Any]:
        """What decides the values of the rows."""
        plan, grid = self.plan, self.plan.grid
        return {
            "window": grid.window,
            "stride": grid.stride,
            "hop": grid.hop,
            "moments_per_window": grid.per_window,
            "audio_window": self.audio_seconds,
            "audio_context": plan.audio_context,
            "partial": plan.partial,
            "missing": plan.missing,
            "damaged": plan.damaged,
            "audio_track": self.processor.audio_track,
            "control": self.control,
            "seed": self.seed if self.control else None,
            "features": {feature.name: feature.describe() for feature in plan.features},
            **backend_of(self.model),
        }

    def facts(self) -> dict[str, Any]:
        """Where the features come from, for the reader."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"model": self.model.config._name_or_path, "dtype": dtype, "versions": software_versions()}


def _reading_errors(rows: Iterator[WindowRow]) -> Iterator[WindowRow]:
    """Errors of the reading as those of the video; a full disk, which fails between two rows, is not its fault."""
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except DiskError:
            raise
        except CavMaeSyncError as error:
            raise _VideoFailure(error) from error
        yield row


def _read(source: Any, media: StrPath | None, split: str | None, audio_files: bool) -> ClipList:
    """The clips of a source; a file is taken at its word, whatever its suffix."""
    if isinstance(source, str | os.PathLike) and os.path.isfile(source):
        path = os.fspath(source)
        if not path.lower().endswith(LIST_SUFFIXES):
            name = os.path.basename(path)
            clips = read_source([{"path": os.path.abspath(path), "id": name}])
            clips.records = [replace(record, source=printable(name)) for record in clips.records]
            return clips
    return read_source(source, media=media, split=split, audio_files=audio_files)


def _video(clips: ClipList, record: ClipRecord) -> MediaSpan:
    """The video of a record; one that cannot be used has its error in `about`, and raises it when it is opened."""
    start, end = record.start or 0.0, record.end
    error: Exception | None = None
    apart = record.row is not None and clips.rows is not None and clips.rows.audio_column is not None
    if record.frames is not None or record.audio is not None or apart:
        error = InferenceError(f"{record.source}: has its audio or frames in files of their own; a video is one file.")
    elif record.problem is not None:
        error = InferenceError(f"{record.source}: {record.problem}")
    elif record.maybe_cut:
        # A file that may be the segment already, which its length tells.
        try:
            with crashes.reading(record.source):
                duration = probe_media(record.path).duration
            if is_cut(record, duration):
                start, end = 0.0, None
        except BadClip as caught:
            error = InferenceError(str(caught))
        except Exception as caught:
            error = file_error(caught, record.source)
    media: Any = record.path
    if error is not None:
        media = partial(_refuse, error)
    elif clips.rows is not None and record.row is not None:
        # Rows of a data set hold the video itself, which is fetched when its turn comes.
        media = partial(_fetch, clips.rows, record.row)
    return MediaSpan(media, name=record.source, id=record.id, start=start, end=end, about=error)


def _fetch(rows: MediaRows, row: int) -> Any:
    return rows[row][0]


def _refuse(error: Exception) -> NoReturn:
    raise error


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
