# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How do videos become features per window, as arrays in memory or as files of any size?

`extract_features` gives arrays and a timing table, `extract_to_folder` writes them: in constant memory, whole or not
at all, and going on where a killed run has stopped. What a window's feature is, is told in `windows`.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..data.packing import BadClip, is_cut
from ..data.sources import ClipList, ClipRecord, printable, read_source
from ..data.tables import LIST_SUFFIXES
from ..files import locked
from ..model.alignment_cavmae_sync import window_seconds
from ..model.errors_cavmae_sync import InferenceError
from ..model.media_cavmae_sync import probe_media
from ..provenance import model_fingerprint, software_versions
from .feature_folder import FeatureFolder, check_folder, nothing_came
from .features import choose_features
from .scramble import ScrambledSound
from .windows import Film, Plan, WindowGrid, WindowRow, iter_windows

__all__ = ["ExtractionSummary", "WindowFeatures", "extract_features", "extract_to_folder"]

Progress = Callable[..., None]


@dataclass
class WindowFeatures:
    """Features of windows, row by row.

    Attributes:
        features: Feature name -> `(rows, hidden)` float32; NaN where a window has no sound or picture for it.
        timing: One mapping per row, see `extract_features`; a table by `pandas.DataFrame(timing)`.
        failed: Name of each film that gave no rows -> why.
        pairing: With `control="scramble"`, which piece of picture got which piece of sound.
    """

    features: dict[str, np.ndarray]
    timing: list[dict[str, Any]]
    failed: dict[str, str] = field(default_factory=dict)
    pairing: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.timing)


@dataclass
class ExtractionSummary:
    """What a run of `extract_to_folder` has done.

    Attributes:
        folder: The folder.
        films: Films of the source.
        made: Films that this run has read.
        rows: Rows in the folder.
        features: Feature name -> length of its vectors.
        failed: Name of each film that gave no rows -> why.
        seconds: How long the run took.
    """

    folder: Path
    films: int
    made: int
    rows: int
    features: dict[str, int]
    failed: dict[str, str]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self) | {"folder": str(self.folder)}

    def __str__(self) -> str:
        columns = ", ".join(f"{name} ({size})" for name, size in self.features.items())
        text = f"{self.folder}: {_count(self.rows, 'window')} of {_count(self.films - len(self.failed), 'film')}"
        done = f"{_count(self.made, 'film')} read in {self.seconds:.1f} s" if self.made else "all there already"
        return f"{text}; {columns}; {done}"


def extract_features(
    model: Any,
    processor: Any,
    source: Any,
    *,
    window: float = 5.0,
    stride: float = 1.0,
    hop: float | None = None,
    modalities: Sequence[str] | None = None,
    layers: Sequence[int] = (),
    control: Literal["scramble"] | None = None,
    seed: int = 0,
    sound: Literal["around", "inside"] = "around",
    partial: Literal["drop", "keep"] = "drop",
    missing: Literal["error", "mask"] = "error",
    damaged: Literal["error", "keep"] = "error",
    batch_frames: int = 16,
    media: str | os.PathLike[str] | None = None,
    split: str | None = None,
    progress: Progress | None = None,
) -> WindowFeatures:
    """Features of every window of one or more videos, in memory.

    Args:
        model: A `CavMaeSyncModel` in evaluation mode, as `load_model` gives it.
        processor: Its processor.
        source: A video file, or what [`~cavmae_sync_hf.data.sources.read_source`] lists: a folder, a pattern, a list
            with spans, a sequence of paths. Files of other suffixes than videos', such as sounds, are taken where
            they are named one by one.
        window: Length of a window, seconds.
        stride: From the start of a window to the start of the next, seconds.
        hop: From one moment to the next, seconds; must divide `stride`. Default: the longest that does and is no more
            than 0.625 s or the window.
        modalities: `"a"` (sound), `"v"` (picture), `"av"` (both fused), `"a_patches"`, ...; see `features`. Default:
            all of the first three that the model has. With sound alone the picture is not decoded, and moments lie on
            the grid itself instead of on the frame that is on screen there, at most one frame earlier.
        layers: Layers whose mean patches are added per modality; negative ones count from the last.
        control: `"scramble"`: pictures get the sound of other pieces of the films; see `scramble`.
        seed: Seeds the control.
        sound: `"around"`: every moment in the window hears its full window of sound, so a row hears up to half of it
            beyond both ends. `"inside"`: rows are means of the moments that hear nothing from outside (`v` still of
            all); takes windows longer than the model's window of sound.
        partial: `"drop"`: no row for windows with moments beyond the film's end. `"keep"`: means of those that are
            there.
        missing: `"error"`, or `"mask"`: NaN where a film lacks the sound or the picture.
        damaged: `"error"`, or `"keep"`: what can be decoded of a damaged film counts.
        batch_frames: Moments decoded and encoded at a time.
        media: Folder of the files that a list names.
        split: Split of a list or data set.
        progress: Called with films done, their number and a remark.

    Returns:
        The features, and per row: `id` and `file` of the film, `window` (its number in the film), `start`, `end`,
        `centre` (seconds of the file), `moments`, `partial`, `frame_times` (when the frames appeared),
        `video_moments` and `audio_moments` (those present, that the means are of), `sound_coverage` (mean share of
        the moments' sound windows inside the film), `sound_start` and `sound_end` (what was heard; `None` in the
        control), `similarity` (mean cosine of sound and picture, with `a` and `v`).

    Raises:
        InferenceError: The only film cannot be used, or none of several can.
        ValueError: A setting cannot work.
    """
    job = _Job(
        model, processor, source, window, stride, hop, modalities, layers, control, seed, sound, partial, missing,
        damaged, batch_frames, media, split,
    )  # fmt: skip
    rows: list[WindowRow] = []
    result = WindowFeatures({}, [], pairing=job.deal(progress))
    for number, film in enumerate(job.films):
        try:
            rows += list(job.rows(film, _remarks(progress, number, len(job.films), film)))
        except _FilmFailure as failure:
            result.failed[film.id] = str(failure)
    if not rows:
        raise InferenceError(nothing_came(result.failed))
    result.timing = [row.facts for row in rows]
    for name in job.sizes:
        result.features[name] = np.stack([row.vectors[name] for row in rows])
    return result


def extract_to_folder(
    model: Any,
    processor: Any,
    source: Any,
    out: str | os.PathLike[str],
    *,
    format: Literal["npy", "parquet"] = "npy",  # noqa: A002 - the word users look for
    progress: Progress | None = None,
    **settings: Any,
) -> ExtractionSummary:
    """Write the features of every window of many or long videos.

    A film whose rows are written is not read again: a run that is killed goes on with the next one. Films that cannot
    be used are left out and listed in the manifest; another run tries them again.

    Args:
        model, processor, source: As of `extract_features`.
        out: Folder, new or begun by a run with the same model, source and settings. With `format="npy"` it holds
            `FEATURE.npy` `(rows, hidden)` float32 and `timing.csv`; with `"parquet"` a file `part-NUMBER.parquet` for
            each film, which together read as one table. `manifest.json` says what the rows are, which of them are
            whose, and which films failed; `pairing.json` which sound a scrambled picture got.
        format: `"npy"` or `"parquet"` (needs pyarrow).
        progress: Called with films done, their number and a remark.
        settings: As of `extract_features`.

    Raises:
        InferenceError: The folder holds something else, or the features of another model, source or setting; or no
            film could be used.
        LockedError: Another run is writing to the folder.
        ValueError: A setting cannot work.
    """
    began = time.perf_counter()
    if format not in ("npy", "parquet"):
        raise ValueError(f"`format` is {format!r}; it must be 'npy' or 'parquet'.")
    if format == "parquet":
        _require_pyarrow()
    folder = check_folder(out)
    job = _Job(model, processor, source, **settings)
    store = FeatureFolder(
        folder, format, job.films, job.sizes, model=model_fingerprint(model, processor), settings=job.settings(),
        lines=job.clips.lines(), digest=job.clips.digest(),
    )  # fmt: skip
    store.work.mkdir(parents=True, exist_ok=True)
    total = len(job.films)
    failed: dict[str, str] = {}
    with locked(store.work / "lock", folder):
        try:
            missing = store.begin()
            if missing:
                store.claim(job.deal(progress))
            for place, number in enumerate(missing):
                film = job.films[number]
                show = _remarks(progress, total - len(missing) + place, total, film)
                try:
                    store.add(number, job.rows(film, show))
                except _FilmFailure as failure:
                    failed[film.id] = str(failure)
            rows = store.finish(failed, job.facts()) if missing else store.rows()
            if not failed or not rows:
                store.leave()
        except BaseException:
            if not store.is_claimed():
                store.leave()
            raise
    if not rows:
        raise InferenceError(nothing_came(failed))
    if progress is not None:
        progress(total, total, "")
    made = len(missing) - len(failed)
    return ExtractionSummary(folder, total, made, rows, job.sizes, failed, time.perf_counter() - began)


class _FilmFailure(Exception):
    """One film cannot be used; the others go on."""


class _Job:
    """What is to be done, checked before anything is done."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        source: Any,
        window: float = 5.0,
        stride: float = 1.0,
        hop: float | None = None,
        modalities: Sequence[str] | None = None,
        layers: Sequence[int] = (),
        control: str | None = None,
        seed: int = 0,
        sound: Any = "around",
        partial: Any = "drop",
        missing: Any = "error",
        damaged: Any = "error",
        batch_frames: int = 16,
        media: Any = None,
        split: str | None = None,
    ) -> None:
        if modalities is None:
            modalities = {"audio": ("a",), "video": ("v",)}.get(model.config.modality, ("a", "v", "av"))
        features = choose_features(modalities, model.config, layers)
        self.plan = Plan(WindowGrid.of(window, stride, hop), features, sound, partial, missing, damaged, batch_frames)
        self.sound_seconds = window_seconds(processor.feature_extractor.audio_length)
        self.plan.heard(self.sound_seconds)
        if control not in (None, "scramble"):
            raise ValueError(f"`control` is {control!r}; there is 'scramble'.")
        if control and not (self.plan.needs_audio and self.plan.needs_video):
            raise ValueError(
                'control="scramble" gives pictures the sound of other moments; ask for `av`, or for `a` and `v`.'
            )
        self.model, self.processor = model, processor
        self.control, self.seed = control, seed
        self.sizes = {feature.name: int(model.config.hidden_size) for feature in features}
        self.clips = _read(source, media, split)
        self.films, self.problems = _films(self.clips)
        self.supply: ScrambledSound | None = None

    def deal(self, progress: Progress | None) -> list[dict[str, Any]]:
        """Deal out the sound for the control condition; who got whose."""
        if self.control is None:
            return []

        def show(done: int, total: int) -> None:
            if progress is not None:
                progress(0, len(self.films), f"measured {done} of {total}")

        usable = [film for film in self.films if film.id not in self.problems]
        self.supply = ScrambledSound(usable, self.plan, self.processor, self.seed, show)
        return self.supply.pairing()

    def rows(self, film: Film, show: Callable[[float], None] | None) -> Iterator[WindowRow]:
        """The rows of a film; what is wrong with the film itself becomes a `_FilmFailure`."""
        problem = self.problems.get(film.id)
        if problem is not None:
            raise _FilmFailure(problem)
        made = iter_windows(self.model, self.processor, film, self.plan, self.supply, show)
        while True:
            # Around the reading alone: a full disk, which fails between two rows, is not the film's fault.
            try:
                row = next(made)
            except StopIteration:
                return
            except (ValueError, OSError) as error:
                raise _FilmFailure(str(error)) from error
            yield row

    def settings(self) -> dict[str, Any]:
        """What decides the values of the rows."""
        plan, grid = self.plan, self.plan.grid
        return {
            "window": grid.window,
            "stride": grid.stride,
            "hop": grid.hop,
            "moments_per_window": grid.per_window,
            "sound_window": self.sound_seconds,
            "sound": plan.sound,
            "partial": plan.partial,
            "missing": plan.missing,
            "damaged": plan.damaged,
            "control": self.control,
            "seed": self.seed if self.control else None,
            "features": {feature.name: feature.describe() for feature in plan.features},
        }

    def facts(self) -> dict[str, Any]:
        """Where the features come from, for the reader."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"model": self.model.config._name_or_path, "dtype": dtype, "versions": software_versions()}


def _read(source: Any, media: Any, split: str | None) -> ClipList:
    """The clips of a source; a file is taken at its word, whatever its suffix."""
    if isinstance(source, str | os.PathLike) and os.path.isfile(source):
        path = os.fspath(source)
        if not path.lower().endswith(LIST_SUFFIXES):
            name = os.path.basename(path)
            clips = read_source([{"path": os.path.abspath(path), "id": name}])
            clips.records = [replace(record, source=printable(name)) for record in clips.records]
            return clips
    return read_source(source, media=media, split=split)


def _films(clips: ClipList) -> tuple[list[Film], dict[str, str]]:
    """The films of a list, and what is wrong with those that cannot be read."""
    films, problems = [], {}
    for record in clips.records:
        start, end = record.start or 0.0, record.end
        problem = record.problem and f"{record.source}: {record.problem}"
        apart = record.row is not None and clips.rows is not None and clips.rows.audio_column is not None
        if record.frames is not None or record.audio is not None or apart:
            problem = f"{record.source}: has its sound or pictures in files of their own; films are one file each."
        elif problem is None and record.maybe_cut:
            start, end, problem = _span(record)
        if problem is not None:
            problems[record.id] = problem
        films.append(Film(record.id, record.source, _media(clips, record), start, end))
    return films, problems


def _media(clips: ClipList, record: ClipRecord) -> Any:
    """The file of a clip; rows of a data set hold the film itself, which is fetched when its turn comes."""
    rows, row = clips.rows, record.row
    if rows is None or row is None:
        return record.path
    return lambda: rows[row][0]


def _span(record: ClipRecord) -> tuple[float, float | None, str | None]:
    """Span of a file that may be the segment already, which its length tells."""
    try:
        cut = is_cut(record, probe_media(record.path).duration)
    except (BadClip, ValueError, OSError) as error:
        return 0.0, None, str(error)
    return (0.0, None, None) if cut else (record.start or 0.0, record.end, None)


def _remarks(progress: Progress | None, done: int, total: int, film: Film) -> Callable[[float], None] | None:
    """Reports of where in a film the work is."""
    if progress is None:
        return None
    name = "".join(letter if letter.isprintable() else "?" for letter in film.name)

    def show(seconds: float) -> None:
        minutes, rest = divmod(int(film.start + seconds), 60)
        progress(done, total, f"{name} at {minutes}:{rest:02d}")

    return show


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError('Parquet needs pyarrow: pip install "cavmae-sync-hf[training]"; or use npy.') from error
