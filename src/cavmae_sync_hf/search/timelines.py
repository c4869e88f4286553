# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Hits of a search one after the other, as editing programs read them: OpenTimelineIO, and CMX 3600 edit lists.

Times are counted in frames of each file's own rate, from the time code that the file begins with.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.failures import file_error
from ..files import StrPath, check_free, plain, write_text
from ..model.errors_cavmae_sync import CavMaeSyncError, printable
from ..model.media_cavmae_sync import probe_media
from ..model.media_tracks_cavmae_sync import DEFAULT_FRAME_RATE
from ..provenance import require_package
from .placements import FilmScore
from .searching import Hit, SearchResult

OnError = Callable[[str, CavMaeSyncError], None]

_LONGEST_REEL = 8
_LONGEST_TITLE = 70
# What times of placed sounds are counted in, Hz.
_SOUND_RATE = 48000
# Frame rates whose time codes leave out numbers, to keep up with the clock.
_DROPPING = (29.97, 59.94)


@dataclass(frozen=True)
class _File:
    """What a timeline says of a file.

    Attributes:
        path: Path or address.
        rate: Frames per second.
        timecode: Of its first frame.
        seconds: How long it is, `None` where that is not known.
        has_video: Whether it has video.
        channels: Audio channels, 0 without audio.
        is_there: Whether it can be read.
    """

    path: str
    rate: float = DEFAULT_FRAME_RATE
    timecode: str = ""
    seconds: float | None = None
    has_video: bool = True
    channels: int = 2
    is_there: bool = True

    @property
    def list_rate(self) -> float:
        """The nearest rate that time codes are made for."""
        otio = _require_otio()
        return otio.opentime.RationalTime.nearest_smpte_timecode_rate(self.rate) or DEFAULT_FRAME_RATE

    @property
    def drops(self) -> bool:
        """Whether its time code leaves out numbers of frames; where it has none, it does if it otherwise would lag."""
        return ";" in self.timecode if self.timecode else any(abs(self.rate - rate) < 0.01 for rate in _DROPPING)

    @property
    def first(self) -> int:
        """Number of its first frame, by its time code."""
        if not self.timecode:
            return 0
        try:
            return int(_require_otio().opentime.from_timecode(self.timecode, self.list_rate).value)
        except ValueError:  # no time code after all
            return 0

    @property
    def kinds(self) -> str:
        """What of it an event of an edit list plays: video, one audio channel or two."""
        audio = "AA" if self.channels > 1 else "A" if self.channels else ""
        if not self.has_video:
            return audio or "NONE"
        return {"": "V", "A": "B", "AA": "AA/V"}[audio]


def write_otio(
    result: SearchResult, path: StrPath, *, overwrite: bool = False, on_error: OnError | None = None
) -> Path:
    """Write hits as an OpenTimelineIO timeline: a video track and an audio track, the best hit first.

    Args:
        result: The hits.
        path: File to write.
        overwrite: Whether an earlier file is replaced.
        on_error: Called with the name and the error of a file that cannot be read; its hits have a missing reference.

    Raises:
        MediaError: A file cannot be read, where there is no `on_error`.
        ImportError: OpenTimelineIO is not installed.
    """
    otio = _require_otio()
    check_free(path, overwrite=overwrite)
    files = _look_at(result, on_error)
    timeline = otio.schema.Timeline(_title(result), metadata={"cavmae_sync": plain(_about(result))})
    kinds = otio.schema.TrackKind
    for name, kind in (("V1", kinds.Video), ("A1", kinds.Audio)):
        track = otio.schema.Track(name, kind=kind)
        for number, hit in enumerate(result, 1):
            file = files[hit.path]
            has_it = file.has_video if kind == kinds.Video else file.channels > 0
            gap = otio.schema.Gap(source_range=_span(file, hit.start, hit.end))
            track.append(_clip(file, hit, number) if has_it else gap)
        if any(isinstance(item, otio.schema.Clip) for item in track):
            timeline.tracks.append(track)
    text = otio.adapters.write_to_string(timeline, "otio_json")
    return write_text(path, text + "\n", overwrite=overwrite)


def score_timeline(found: FilmScore) -> str:
    """A film with the sounds that `score_film` placed, as an OpenTimelineIO timeline in JSON.

    The film is a video track; each layer's sounds are one audio track, or more where some overlap. Times of sounds are
    counted in samples of 48 kHz, so that none is moved to a frame.

    Raises:
        ImportError: OpenTimelineIO is not installed.
        MediaError: The film cannot be read.
    """
    otio = _require_otio()
    info = probe_media(found.film)
    film = _File(
        found.film, info.frame_rate or DEFAULT_FRAME_RATE, info.timecode, info.duration, channels=info.channels
    )
    timeline = otio.schema.Timeline(f"Sounds for {printable(os.path.basename(found.film))}")
    picture = otio.schema.Track("V1", kind=otio.schema.TrackKind.Video)
    picture.append(_reference_clip(film, 0.0, found.seconds, {}))
    timeline.tracks.append(picture)

    def samples(seconds: float) -> Any:
        return otio.opentime.RationalTime(round(seconds * _SOUND_RATE), _SOUND_RATE)

    tracks: list[tuple[int, float, Any]] = []  # the layer, where the track ends so far, and the track
    for sound in found.placements:
        place = next(
            (n for n, (layer, end, _) in enumerate(tracks) if layer == sound.layer and end <= sound.time + 1e-6), None
        )
        if place is None:
            place = len(tracks)
            track = otio.schema.Track(f"A{place + 1}", kind=otio.schema.TrackKind.Audio)
            tracks.append((sound.layer, 0.0, track))
        layer, end, track = tracks[place]
        if sound.time > end:
            gap = otio.opentime.TimeRange(samples(0), samples(sound.time) - samples(end))
            track.append(otio.schema.Gap(source_range=gap))
        about = {name: value for name, value in plain(asdict(sound)).items() if name not in ("path", "start", "end")}
        name = printable(os.path.basename(sound.path))
        reference = otio.schema.ExternalReference(media_address(sound.path))
        reference.name = name
        begin, stop = samples(sound.time), samples(sound.time + sound.seconds)
        source = otio.opentime.TimeRange(samples(sound.start), stop - begin)
        track.append(otio.schema.Clip(name, reference, source, metadata={"cavmae_sync": about}))
        tracks[place] = (layer, sound.time + sound.seconds, track)
    for _, _, track in tracks:
        timeline.tracks.append(track)
    return str(otio.adapters.write_to_string(timeline, "otio_json")) + "\n"


def write_edl(
    result: SearchResult, path: StrPath, *, overwrite: bool = False, on_error: OnError | None = None
) -> list[Path]:
    """Write hits as CMX 3600 edit lists: cuts one after the other, the best hit first.

    An edit list has one frame rate. Hits of files of several rates make several lists, `hits.25.edl` and so on.

    Args:
        result: The hits.
        path: File to write.
        overwrite: Whether earlier files are replaced.
        on_error: Called with the name and the error of a file that cannot be read; its hits are listed all the same.

    Returns:
        The files written.

    Raises:
        MediaError: A file cannot be read, where there is no `on_error`.
        ImportError: OpenTimelineIO is not installed.
    """
    _require_otio()
    check_free(path, overwrite=overwrite)
    files = _look_at(result, on_error)
    most = Counter(files[hit.path].list_rate for hit in result if files[hit.path].has_video)
    lists: dict[float, list[tuple[int, Hit]]] = {}
    for number, hit in enumerate(result, 1):
        file = files[hit.path]
        # Audio alone, and what is not there, has no frames and goes where most hits go.
        is_free = bool(most) and not (file.has_video and file.is_there)
        lists.setdefault(most.most_common(1)[0][0] if is_free else file.list_rate, []).append((number, hit))
    target = Path(path)
    targets = {rate: target if len(lists) < 2 else target.with_suffix(f".{rate:.5g}{target.suffix}") for rate in lists}
    check_free(*targets.values(), overwrite=overwrite)
    reels = _reels(files)
    for rate, hits in lists.items():
        write_text(targets[rate], _edit_list(_title(result), rate, hits, files, reels), overwrite=overwrite)
    return list(targets.values())


def _edit_list(
    title: str, rate: float, hits: list[tuple[int, Hit]], files: dict[str, _File], reels: dict[str, str]
) -> str:
    """The text of an edit list of numbered hits."""
    opentime = _require_otio().opentime

    def code(frame: int, drops: bool) -> str:
        return opentime.to_timecode(opentime.RationalTime(frame, rate), rate, drops)

    drops = any(files[hit.path].drops for _, hit in hits)
    record = int(opentime.from_timecode("01:00:00;00" if drops else "01:00:00:00", rate).value)
    lines = [f"TITLE: {title[:_LONGEST_TITLE]}", f"FCM: {'' if drops else 'NON-'}DROP FRAME", ""]
    for event, (number, hit) in enumerate(hits, 1):
        file = files[hit.path]
        first, count = round(hit.start * rate), max(1, round(hit.end * rate) - round(hit.start * rate))
        source = [code(file.first + at, file.drops) for at in (first, first + count)]
        placed = [code(record + at, drops) for at in (0, count)]
        record += count
        lines.append(f"{event:03d}  {reels[hit.path]:8} {file.kinds:5} C        {' '.join([*source, *placed])}")
        lines.append(f"* FROM CLIP NAME:  {printable(os.path.basename(hit.path))}")
        lines.append(f"* FROM FILE: {printable(hit.path)}")
        lines += [] if file.is_there else ["* FILE NOT FOUND"]
        lines += [f"* HIT {number}, SCORE {hit.score:.4f}", ""]
    return "\n".join(lines)


def media_address(path: str) -> str:
    """The address of a file as browsers and editing programs take it: `file:///...`, or what it is."""
    return path if "://" in path else Path(path).absolute().as_uri()


def _require_otio() -> Any:
    return require_package("opentimelineio", "archive", "Writing timelines")


def _title(result: SearchResult) -> str:
    return f"Hits for {printable(os.path.basename(result.query) or result.query)}"


def _about(result: SearchResult) -> dict[str, Any]:
    return {name: value for name, value in result.to_dict().items() if name != "hits"}


def _look_at(result: SearchResult, on_error: OnError | None) -> dict[str, _File]:
    """What timelines say of the files of hits, by their paths."""
    found: dict[str, _File] = {}
    for path in dict.fromkeys(hit.path for hit in result):
        try:
            info = probe_media(path)
        except Exception as error:
            known = file_error(error, path)
            if on_error is None:
                raise known from error
            on_error(path, known)
            found[path] = _File(path, DEFAULT_FRAME_RATE, is_there=False)
            continue
        found[path] = _File(
            path, info.frame_rate or DEFAULT_FRAME_RATE, info.timecode, info.duration, has_video=info.has_video,
            channels=info.channels,
        )  # fmt: skip
    return found


def _span(file: _File, start: float, end: float) -> Any:
    """A span of a file's own time, in its frames."""
    opentime = _require_otio().opentime
    end = end if file.seconds is None else min(end, file.seconds)
    first, last = (round(seconds * file.rate) for seconds in (start, end))
    begin = opentime.RationalTime(file.first + first, file.rate)
    return opentime.TimeRange(begin, opentime.RationalTime(max(1, last - first), file.rate))


def _clip(file: _File, hit: Hit, number: int) -> Any:
    return _reference_clip(file, hit.start, hit.end, {"hit": number} | plain(hit.to_dict()))


def _reference_clip(file: _File, start: float, end: float, about: dict[str, Any]) -> Any:
    """A span of a file, with what is known of it."""
    otio = _require_otio()
    name = printable(os.path.basename(file.path))
    if file.is_there:
        there = None if file.seconds is None else _span(file, 0.0, file.seconds)
        reference = otio.schema.ExternalReference(media_address(file.path), there)
        reference.name = name
    else:
        reference = otio.schema.MissingReference(name=name, metadata={"cavmae_sync": {"path": printable(file.path)}})
    return otio.schema.Clip(name, reference, _span(file, start, end), metadata={"cavmae_sync": about})


def _reels(paths: Iterable[str]) -> dict[str, str]:
    """Names of reels, eight capital letters and digits, each once."""
    reels: dict[str, str] = {}
    for path in paths:
        stem = re.sub("[^A-Z0-9]", "", os.path.splitext(os.path.basename(path))[0].upper()) or "REEL"
        reel, number = stem[:_LONGEST_REEL], 2
        while reel in reels.values():
            reel = f"{stem[: _LONGEST_REEL - len(str(number))]}{number}"
            number += 1
        reels[path] = reel
    return reels
