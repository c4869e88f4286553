# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Films with the recordings that `score_film` placed: mixed, each alone, as a timeline, as a table.

Recordings are matched in loudness (EBU R 128, FFmpeg's `ebur128`), cut with short fades and added up a few seconds at
a time, so that memory grows with the sounds that overlap and not with the film. The picture is copied.
"""

import contextlib
import heapq
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from ..files import StrPath, file_stem, whole_file, whole_folder, write_csv, write_json, write_text
from ..inference.moments import Progress
from ..model.errors_cavmae_sync import Hint, InferenceError, MediaError, printable
from ..model.media_cavmae_sync import probe_media
from ..model.media_request_cavmae_sync import MediaRequest
from ..model.media_source_cavmae_sync import MediaSource, require_av
from ..model.media_tracks_cavmae_sync import DEFAULT_FRAME_RATE, MediaReader
from .cutting import (
    ENCODER,
    audio_packets,
    frames_of_span,
    packets_of_span,
    track_samples,
    video_packets,
    with_decode_times,
)
from .placements import FilmScore, Placement
from .timelines import score_timeline

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

FILM_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
Original = Literal["refuse", "under", "replace"]
RATE = 48000
# EBU R 128, and what a mix may reach at most, in LUFS and dB of true peak.
TARGET_LUFS, MAX_TRUE_PEAK = -23.0, -1.0
# A film's own audio, where it is kept under the sounds, and what loudness cannot be measured of.
_UNDER_DB, _LEAST_LUFS = -10.0, -60.0
# R 128 measures blocks of 0.4 s; shorter recordings are measured repeated.
_LEAST_MEASURED = 1.0
_FADE_IN, _FADE_OUT = 0.005, 0.05
_JOIN_SECONDS = 0.1
_BLOCK_SECONDS = 10.0
_AUDIO_BITS_PER_SECOND = 192_000
# The first sound of a recording is what is this much quieter than its loudest, in pieces of so many seconds.
_ONSET_DB, _ONSET_SECONDS = -25.0, 0.005
_LONGEST_LOOK = 60.0


def read_samples(source: StrPath, start: float, end: float, rate: int = RATE, layout: str = "stereo") -> np.ndarray:
    """Samples of a span of a file's audio, `(channels, samples)` float32.

    Raises:
        MediaError: It cannot be read, or has no audio there.
    """
    require_av()
    request = MediaRequest(start=start, end=end, want_video=False)
    with MediaSource(source) as media, MediaReader(media, request) as reader:
        pieces = list(track_samples(reader, request, SimpleNamespace(rate=rate, layout=layout)))
    if not pieces:
        raise MediaError(f"{printable(os.fspath(source))}: has no audio between {start:.2f} s and {end:.2f} s.")
    return np.concatenate(pieces, axis=1)


def first_sound(source: StrPath, start: float, end: float) -> float:
    """When the first sound of a recording begins, seconds of the file: 25 dB below its loudest or louder."""
    samples = read_samples(source, start, min(end, start + _LONGEST_LOOK), layout="mono")[0]
    step = round(_ONSET_SECONDS * RATE)
    whole = len(samples) // step * step
    power = np.square(samples[:whole].reshape(-1, step).astype(np.float64)).mean(axis=1)
    if not len(power) or power.max() <= 0:
        return start
    return start + float(np.flatnonzero(power >= power.max() * 10 ** (_ONSET_DB / 10))[0]) * _ONSET_SECONDS


@dataclass(frozen=True)
class Loudness:
    """Integrated loudness in LUFS and the true peak in dB."""

    integrated: float
    true_peak: float

    def gain(self, target: float = TARGET_LUFS) -> float:
        """The factor that brings it to a loudness without a true peak above -1 dB."""
        decibels = min(target - self.integrated, MAX_TRUE_PEAK - self.true_peak)
        return float(10 ** (decibels / 20)) if self.integrated > _LEAST_LUFS else 1.0


def measure_loudness(blocks: Iterator[np.ndarray] | Sequence[np.ndarray]) -> Loudness:
    """Loudness of stereo blocks of 48 kHz, `(2, samples)` float32, by EBU R 128."""
    require_av()
    graph = av.filter.Graph()
    source = graph.add_abuffer(format="fltp", sample_rate=RATE, layout="stereo", time_base=Fraction(1, RATE))
    meter, sink = graph.add("ebur128", "metadata=1:peak=true"), graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    known: dict[str, str] = {}
    peak = 0.0

    def take() -> None:
        nonlocal known, peak
        with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                known |= sink.pull().metadata  # not every frame says all
                peak = max(peak, float(known.get("lavfi.r128.true_peak", 0)))

    written = 0
    for block in blocks:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block, np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = RATE, written, Fraction(1, RATE)
        written += block.shape[1]
        source.push(frame)
        take()
    source.push(None)
    take()
    integrated = float(known.get("lavfi.r128.I", "-inf"))
    return Loudness(integrated, 20 * math.log10(peak) if peak > 0 else -math.inf)


@dataclass
class _Track:
    """A placed sound, decoded when it is reached."""

    sound: Placement
    samples: np.ndarray | None = None

    @property
    def first(self) -> int:
        """Its first sample in the film."""
        return round(self.sound.time * RATE)

    @property
    def stop(self) -> int:
        """The sample after its last, with what fades out under what follows it."""
        return self.first + round((self.sound.seconds + _FADE_OUT) * RATE)

    def decode(self) -> np.ndarray:
        """Its samples at the right loudness, with fades: a recording that is cut fades out after its place."""
        samples = read_samples(self.sound.path, self.sound.start, self.sound.end + _FADE_OUT)
        samples = samples[:, : self.stop - self.first]
        least = round(_LEAST_MEASURED * RATE)
        times = -(-least // max(1, samples.shape[1]))
        samples = samples * np.float32(measure_loudness([np.tile(samples, times)]).gain())
        count = samples.shape[1]
        for seconds, at_end in ((_FADE_IN, False), (_FADE_OUT, True)):
            length = min(round(seconds * RATE), count // 2)
            ramp = np.linspace(0, 1, length, endpoint=False, dtype=np.float32)
            if at_end:
                samples[:, count - length :] *= ramp[::-1]
            else:
                samples[:, :length] *= ramp
        return samples


def mix(
    sounds: Sequence[Placement],
    seconds: float,
    original: StrPath | None = None,
    gain: float = 1.0,
    room_tone: StrPath | None = None,
) -> Iterator[np.ndarray]:
    """Sounds at their times, added up, as blocks `(2, samples)` of 48 kHz.

    Args:
        sounds: The sounds.
        seconds: Length of the film.
        original: A file whose audio is kept under them.
        gain: Factor for all.
        room_tone: A file whose audio sounds under all of it, again and again, as loud as it is.
    """
    tone = None if room_tone is None else _loop(room_tone)
    tracks = [_Track(sound) for sound in sorted(sounds, key=lambda sound: sound.time)]
    total, size = round(seconds * RATE), round(_BLOCK_SECONDS * RATE)
    with contextlib.ExitStack() as stack:
        under = None if original is None else stack.enter_context(_steady(original, seconds, size))
        for first in range(0, total, size):
            stop = min(first + size, total)
            block = np.zeros((2, stop - first), np.float32)
            if tone is not None:
                block += tone[:, np.arange(first, stop) % tone.shape[1]]
            if under is not None:
                block += np.float32(10 ** (_UNDER_DB / 20)) * next(under)[:, : stop - first]
            for track in tracks:
                if track.first >= stop:
                    break
                if track.stop <= first:
                    track.samples = None
                    continue
                if track.samples is None:
                    track.samples = track.decode()
                begin, end = max(first, track.first), min(stop, track.first + track.samples.shape[1])
                if end > begin:
                    block[:, begin - first : end - first] += track.samples[:, begin - track.first : end - track.first]
            tracks = [track for track in tracks if track.stop > stop]
            yield block * np.float32(gain)


def _loop(source: StrPath) -> np.ndarray:
    """A recording, a minute at most, that can be played again and again: its end is faded into its beginning."""
    samples = read_samples(source, 0.0, min(probe_media(source).duration or _LONGEST_LOOK, _LONGEST_LOOK))
    count = min(round(_JOIN_SECONDS * RATE), samples.shape[1] // 2)
    ramp = np.sqrt(np.linspace(0, 1, count, dtype=np.float32))  # of noise, powers add up
    joined = samples[:, : samples.shape[1] - count].copy()
    joined[:, :count] = joined[:, :count] * ramp + samples[:, samples.shape[1] - count :] * ramp[::-1]
    return joined


@contextlib.contextmanager
def _steady(source: StrPath, seconds: float, size: int) -> Iterator[Iterator[np.ndarray]]:
    """A file's audio in blocks of one size, with silence where it has none."""
    request = MediaRequest(start=0.0, end=seconds, want_video=False, damaged="keep")
    with MediaSource(source) as media, MediaReader(media, request) as reader:
        pieces = track_samples(reader, request, SimpleNamespace(rate=RATE, layout="stereo"))

        def blocks() -> Iterator[np.ndarray]:
            held = np.zeros((2, 0), np.float32)
            while True:
                while held.shape[1] < size and (piece := next(pieces, None)) is not None:
                    held = np.concatenate([held, piece], axis=1)
                lacking = max(0, size - held.shape[1])
                yield np.pad(held[:, :size], ((0, 0), (0, lacking)))
                held = held[:, size:]

        yield blocks()


def write_film(
    found: FilmScore,
    path: StrPath,
    *,
    original: Original = "refuse",
    room_tone: StrPath | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a film with its sounds: the picture as it is, the sounds as AAC; or audio with its pictures, as H.264.

    Args:
        found: From `score_film`.
        path: File to write: .mp4, .m4v, .mov or .mkv. It is there whole or not at all.
        original: What becomes of the film's own audio: `"refuse"` a film that has some, keep it `"under"` the sounds
            (10 dB quieter), or `"replace"` it.
        room_tone: A recording of the room that sounds under all of it, as loud as it is; default: silence.
        overwrite: Whether an earlier file is replaced.
        progress: Called with seconds done and in all.

    Raises:
        AlreadyExistsError: There is such a file, and `overwrite` is off.
        InferenceError: The film has audio, or its picture does not go into such a file.
        MediaError: The film or a recording cannot be read.
    """
    require_av()
    target = Path(path)
    if target.suffix.lower() not in FILM_SUFFIXES:
        raise InferenceError(f"{printable(str(path))}: films are written as {', '.join(FILM_SUFFIXES)}; name one.")
    info = probe_media(found.film)
    if found.kind == "video":
        return _write_pictures(found, target, overwrite=overwrite, progress=progress)
    check_original(found.film, info.has_audio, original)
    kept = found.film if original == "under" and info.has_audio else None
    seconds = found.seconds
    # All of it at once may be louder than its parts.
    peak = measure_loudness(mix(found.placements, seconds, kept, room_tone=room_tone)).true_peak
    gain = min(1.0, float(10 ** ((MAX_TRUE_PEAK - peak) / 20)))
    options = {} if target.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
    with whole_file(target, overwrite=overwrite) as partial, contextlib.ExitStack() as stack:
        request = MediaRequest(want_audio=False, damaged="keep")
        media = stack.enter_context(MediaSource(found.film))
        reader = stack.enter_context(MediaReader(media, request))
        file = stack.enter_context(av.open(os.fspath(partial), "w", options=options))
        assert reader.video is not None  # it is wanted
        try:
            video = file.add_stream_from_template(reader.video.stream)
        except ValueError as error:
            raise InferenceError(
                f"{printable(found.film)}: its picture ({reader.video.stream.codec_context.name}) does not go into "
                f"{target.suffix} as it is; name a file ending in .mkv."
            ) from error
        audio = file.add_stream("aac", rate=RATE, layout="stereo")
        audio.bit_rate = _AUDIO_BITS_PER_SECOND
        shift = round(reader.origin / reader.video.stream.time_base)

        def pictures() -> Iterator[tuple[float, Any]]:
            for packet in with_decode_times(packets_of_span(reader, 0.0, math.inf)):
                data = packet.data
                data.pts, data.dts = data.pts - shift, data.dts - shift
                time = float(data.dts * data.time_base)
                data.stream = video
                yield time, data
                if progress is not None:
                    progress(min(int(seconds), max(0, int(time))), math.ceil(seconds))

        def sounds() -> Iterator[tuple[float, Any]]:
            for packet in audio_packets(audio, mix(found.placements, seconds, kept, gain, room_tone)):
                yield float(packet.dts * packet.time_base), packet

        for _, packet in heapq.merge(pictures(), sounds(), key=lambda timed: timed[0]):
            file.mux(packet)
    return target


def _write_pictures(found: FilmScore, target: Path, *, overwrite: bool, progress: Progress | None) -> Path:
    """Write audio with the videos placed for it, each as large as the first; short ones stand still at their ends."""
    rate = Fraction(probe_media(found.placements[0].path).frame_rate or DEFAULT_FRAME_RATE).limit_denominator(1001)
    first = probe_media(found.placements[0].path)
    size = ((first.width or 2) // 2 * 2, (first.height or 2) // 2 * 2)
    ends = [placed.time for placed in found.placements[1:]] + [found.seconds]

    def frames() -> Iterator[np.ndarray]:
        written, last = 0, np.zeros((size[1], size[0], 3), np.uint8)
        for placed, end in zip(found.placements, ends, strict=True):
            until = round(end * rate)
            request = MediaRequest(start=placed.start, end=placed.end, want_audio=False, damaged="keep")
            for image in frames_of_span(placed.path, request, rate):
                if written >= until:
                    break
                last = np.asarray(ImageOps.pad(Image.fromarray(image), size))
                written += 1
                yield last
            for _ in range(written, until):
                written += 1
                yield last
            if progress is not None:
                progress(int(end), math.ceil(found.seconds))

    options = {} if target.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
    with whole_file(target, overwrite=overwrite) as partial, contextlib.ExitStack() as stack:
        file = stack.enter_context(av.open(os.fspath(partial), "w", options=options))
        video = file.add_stream("libx264", rate=rate, options=ENCODER)
        audio = file.add_stream("aac", rate=RATE, layout="stereo")
        audio.bit_rate = _AUDIO_BITS_PER_SECOND
        total, size_of_block = round(found.seconds * RATE), round(_BLOCK_SECONDS * RATE)
        blocks = stack.enter_context(_steady(found.film, found.seconds, size_of_block))
        heard = (next(blocks)[:, : total - first] for first in range(0, total, size_of_block))
        packets = (video_packets(video, frames(), rate), audio_packets(audio, heard))
        for packet in heapq.merge(*packets, key=lambda packet: packet.dts * packet.time_base):
            file.mux(packet)
    return target


def check_original(film: StrPath, has_audio: bool, original: str) -> None:
    """Refuse a film with audio unless it is said what becomes of that.

    Raises:
        InferenceError: It has some, or there is no such choice.
    """
    if original not in ("refuse", "under", "replace"):
        raise InferenceError(f'original is {original!r}; it must be "refuse", "under" or "replace".')
    if has_audio and original == "refuse":
        raise InferenceError(
            f'{printable(os.fspath(film))}: has audio of its own; keep it ("under" the sounds), or replace it.',
            hint=Hint("original", "replace", "leave it out"),
        )


def write_stems(found: FilmScore, folder: StrPath, *, overwrite: bool = False) -> list[Path]:
    """Write each recording's sounds as a WAV file as long as the film, named after its file.

    Raises:
        AlreadyExistsError: There is such a folder, and `overwrite` is off.
        MediaError: A recording cannot be read.
    """
    taken: set[str] = set()
    names: list[str] = []
    with whole_folder(folder, overwrite=overwrite) as partial:
        for path in dict.fromkeys(sound.path for sound in found.placements):
            names.append(f"{file_stem(path, taken)}.wav")
            with av.open(os.fspath(partial / names[-1]), "w") as file:
                stream = file.add_stream("pcm_s16le", rate=RATE, layout="stereo")
                own = [sound for sound in found.placements if sound.path == path]
                for packet in audio_packets(stream, mix(own, found.seconds)):
                    file.mux(packet)
    return [Path(folder) / name for name in names]


def sound_rows(found: FilmScore) -> list[dict[str, Any]]:
    """The sounds as rows of a table, times in seconds."""
    return [
        {
            "time": round(sound.time, 3), "seconds": round(sound.seconds, 3), "path": sound.path,
            "in": round(sound.start, 3), "out": round(sound.end, 3), "fit": round(sound.fit, 3), "layer": sound.layer,
            "segment_start": round(sound.segment[0], 3), "segment_end": round(sound.segment[1], 3),
            "reason": sound.reason, "others": " | ".join(choice.path for choice in sound.choices),
        }
        | {f"about_{name}": value for name, value in sound.about.items()}
        for sound in found.placements
    ]  # fmt: skip


SCORE_SUFFIXES = (".csv", ".json", ".otio")


def write_score(found: FilmScore, path: StrPath, *, overwrite: bool = False) -> Path:
    """Write what was placed as a table (`.csv`), as JSON, or as an OpenTimelineIO timeline (`.otio`).

    Raises:
        AlreadyExistsError: There is such a file, and `overwrite` is off.
        ImportError: OpenTimelineIO is not installed.
        InferenceError: There is no such format.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        return write_csv(path, sound_rows(found), columns=("time", "seconds", "path"), overwrite=overwrite)
    if suffix == ".json":
        return write_json(path, found.to_dict(), overwrite=overwrite)
    if suffix == ".otio":
        return write_text(path, score_timeline(found), overwrite=overwrite)
    raise InferenceError(
        f"{printable(os.fspath(path))}: a score is written as {', '.join(SCORE_SUFFIXES)}; name such a file."
    )


__all__ = [
    "FILM_SUFFIXES",
    "SCORE_SUFFIXES",
    "Loudness",
    "check_original",
    "first_sound",
    "measure_loudness",
    "mix",
    "read_samples",
    "sound_rows",
    "write_film",
    "write_score",
    "write_stems",
]
