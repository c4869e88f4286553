# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A video with the place of its sounding object drawn in, and its audio.

The video is read and written a few frames at a time. Frame k of the new file is the one on screen in the middle of
its own time, `(k + 0.5) / fps`, so it is never more than half a frame off its audio.
"""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import StrPath, whole_file
from ..model.errors_cavmae_sync import InferenceError, printable
from ..model.feature_extraction_cavmae_sync import load_waveform, samples_and_rate
from ..model.media_cavmae_sync import probe_media
from ..model.media_source_cavmae_sync import require_av
from ..model.media_stream_cavmae_sync import MediaChunk, iter_media, iter_waveform, with_audio_of
from ..model.video_processing_cavmae_sync import is_media_source
from .heat import blend
from .lettering import any_font, shorten
from .localize import LocalizationResult
from .moments import Progress, format_clock
from .strength import NO_SOURCE

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]


_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
# What AAC can carry.
_SAMPLING_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000})
_DEFAULT_RATE, _DEFAULT_FPS = 48000, 25.0
# Slides come with a frame in several seconds; the heat moves all the same.
_LEAST_FPS, _MOST_FPS = 10.0, 60.0
_FRAMES_AT_A_TIME = 8
# Audio beyond the frames of a chunk, so that the last one reaches to the video's end.
_CONTEXT_SECONDS = 0.5
_AUDIO_BITS_PER_SECOND = 96_000
# Narrower frames have no room for words below them, pixels.
_LEAST_FOOTER = 240
_PAPER, _INK, _FAINT, _WARN = "#121418", "#e6e8eb", "#969ea8", "#f0b45a"


def write_overlay_video(
    found: LocalizationResult,
    video: Any,
    path: StrPath,
    audio: Any = None,
    *,
    sampling_rate: int | None = None,
    fps: float | None = None,
    short_side: int = 480,
    crf: int = 20,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a video with the heat of its audio on the frames, as H.264 and AAC.

    The maps of moments are interpolated in time. Below the frames, where they are wide enough for it, stand the time,
    the strength or "no source", the name of the file, and the scale of the heat. The audio is the channel that the
    model heard.

    Args:
        found: From `localize`.
        video: The video that it was found in.
        path: File to write: .mp4, .m4v, .mov or .mkv. It is there whole or not at all; its folder is made.
        audio: The audio track given to `localize`, if it was one of its own.
        sampling_rate: Of a waveform in `audio`, Hz.
        fps: Frames per second; default: the video's own, from 10 to 60.
        short_side: Shorter side of the frames in pixels.
        crf: H.264 quality, 0 (lossless) to 51.
        overwrite: Whether the file may replace an earlier one.
        progress: Called with seconds done and seconds in all (0 where unknown).

    Raises:
        AlreadyExistsError: There is such a file, and `overwrite` is off.
        InferenceError: An argument cannot work, or the span holds no audio.
        MediaError: The video or its audio cannot be read.
        ImportError: PyAV is not installed.
    """
    require_av()
    target = Path(path)
    if target.suffix.lower() not in _SUFFIXES:
        raise InferenceError(f"{target}: the video is written as {', '.join(_SUFFIXES)}; give it such a name.")
    if (fps is not None and not fps > 0) or short_side < 16 or not 0 <= crf <= 51:
        raise InferenceError(f"fps is {fps}, short_side {short_side} and crf {crf}; see the arguments' meaning.")
    info = probe_media(video)
    own = fps or min(max(info.frame_rate or _DEFAULT_FPS, _LEAST_FPS), _MOST_FPS)
    rate = Fraction(own).limit_denominator(1001)
    heard = _own_rate(audio, sampling_rate, info)
    total = int((found.times[-1] - found.times[0]) + 1 / found.fps)
    heat = found.heat()
    footer: _Footer | None = None
    muxing = {} if target.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
    with whole_file(target, overwrite=overwrite) as partial, av.open(os.fspath(partial), "w", options=muxing) as file:
        # Words need no audio.
        mute = found.text is not None and audio is None and not info.has_audio
        writer = _Writer(file, rate, None if mute else heard, crf)
        chunks = _read(
            found, video, audio, sampling_rate=sampling_rate, hop=1 / float(rate), rate=heard, short_side=short_side
        )
        for chunk in chunks:
            assert chunk.frames is not None  # want_video makes its absence an error
            frames = chunk.frames.permute(0, 2, 3, 1).numpy()
            for frame, time in zip(frames, chunk.asked_times.tolist(), strict=True):
                shown = Image.fromarray(np.ascontiguousarray(frame))
                footer = footer or _Footer(found, shown.width)
                moment = time + chunk.start
                writer.add_frame(footer.below(blend(shown, _heat_at(found, heat, moment), found.region), moment))
            writer.add_audio(chunk)
            if progress is not None:
                done = int(writer.frames / rate)
                progress(min(done, total), total)
        writer.finish()
        if not writer.samples and not mute:
            raise InferenceError(f"{found.source}: this span holds no audio.")
    return target


def _own_rate(audio: Any, sampling_rate: int | None, info: Any) -> int:
    """The sampling rate to write: the audio's own, where AAC can carry it."""
    own = info.sampling_rate if audio is None else sampling_rate
    if audio is not None and is_media_source(audio):
        own = probe_media(audio).sampling_rate
    elif audio is not None:
        own = samples_and_rate(audio, sampling_rate)[1]
    return own if own in _SAMPLING_RATES else _DEFAULT_RATE


def _read(
    found: LocalizationResult,
    video: Any,
    audio: Any,
    *,
    sampling_rate: int | None,
    hop: float,
    rate: int,
    short_side: int,
) -> Iterator[MediaChunk]:
    """The video's frames at regular times, with its audio."""
    start, end = found.span
    span: dict[str, Any] = {"hop": hop, "num_frames": _FRAMES_AT_A_TIME, "start": start, "end": end}
    missing = "error" if found.text is None else "mask"
    heard: dict[str, Any] = {"sampling_rate": rate, "damaged": "keep"}
    heard |= {"channel": found.channel, "audio_track": found.audio_track}
    if audio is None:
        return iter_media(video, context=_CONTEXT_SECONDS, short_side=short_side, missing=missing, **span, **heard)
    frames = iter_media(video, context=0.0, short_side=short_side, want_audio=False, damaged="keep", **span)
    if is_media_source(audio):
        return with_audio_of(frames, iter_media(audio, context=_CONTEXT_SECONDS, want_video=False, **span, **heard))
    samples, own = samples_and_rate(audio, sampling_rate)
    waveform = load_waveform(samples, own, to_rate=rate, channel=found.channel, name="The audio")
    return with_audio_of(frames, iter_waveform(waveform, rate, context=_CONTEXT_SECONDS, **span))


def _heat_at(found: LocalizationResult, heat: np.ndarray, time: float) -> np.ndarray | None:
    """Heat at a time of the video, between the moments on either side; `None` where neither has audio."""
    times = found.times
    after = int(np.searchsorted(times, time))
    before = max(0, after - 1)
    after = min(after, len(times) - 1)
    if not found.present[before] and not found.present[after]:
        return None
    gap = float(times[after] - times[before])
    share = float(np.clip((time - times[before]) / gap, 0.0, 1.0)) if gap > 0 else 0.0
    return (1 - share) * heat[before] + share * heat[after]


class _Footer:
    """What stands below the frames of a video: time, strength, name of the file, and the scale of the heat.

    Args:
        found: From `localize`.
        width: Of the frames, pixels.
    """

    def __init__(self, found: LocalizationResult, width: int) -> None:
        self.found = found
        self.line = max(12, width // 36)
        self.height = 0 if width < _LEAST_FOOTER else (3 * self.line + 26) // 2 * 2
        if not self.height:
            return
        self.font = any_font(NO_SOURCE, 0.85 * self.line)
        self.empty = Image.new("RGB", (width, self.height), _PAPER)
        draw = ImageDraw.Draw(self.empty)
        name = printable(Path(found.source).name)
        font = any_font(name, 0.85 * self.line)
        if isinstance(font, ImageFont.FreeTypeFont):
            name = shorten(name, font, width - 12)
        draw.text((6, self.height - 6), name, fill=_FAINT, font=font, anchor="ld")
        # The scale, as heat looks on grey, at the right of the first line.
        bar = Image.new("RGB", (5 * self.line, self.line - 2), (110, 110, 110))
        bar = blend(bar, np.linspace(0, 1, 64)[None], (0.0, 0.0, 1.0, 1.0), ring=False)
        draw.text((width - 6, 4), "most", fill=_INK, font=self.font, anchor="ra")
        left = width - 12 - round(draw.textlength("most", font=self.font)) - bar.width
        self.empty.paste(bar, (left, 5))
        draw.text((left - 6, 4), "fit lost without the place: none", fill=_INK, font=self.font, anchor="ra")
        draw.text((width - 6, 8 + self.line), "ring: warmest place", fill=_FAINT, font=self.font, anchor="ra")

    def below(self, image: Image.Image, time: float) -> Image.Image:
        """The frame with what holds at a time of the video below it."""
        if not self.height:
            return image
        found, near = self.found, int(np.abs(self.found.times - time).argmin())
        footer = self.empty.copy()
        draw = ImageDraw.Draw(footer)
        draw.text((6, 4), format_clock(time), fill=_INK, font=self.font, anchor="la")
        has = bool(found.has_source[near])
        what = "source" if found.text is None else "seen"
        words = f"{what}, strength {found.strength[near]:.1f}" if has else found.absence
        draw.text((6, 8 + self.line), words, fill=_INK if has else _WARN, font=self.font, anchor="la")
        sheet = Image.new("RGB", (image.width, image.height // 2 * 2 + self.height), _PAPER)
        sheet.paste(image, (0, 0))
        sheet.paste(footer, (0, image.height // 2 * 2))
        return sheet


class _Writer:
    """Encodes frames and audio into one file, both from time 0."""

    def __init__(self, file: Any, rate: Fraction, sampling_rate: int | None, crf: int) -> None:
        """`sampling_rate` is `None` for a video without audio."""
        self.file, self.rate, self.sampling_rate = file, rate, sampling_rate or 0
        self.video = file.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "veryfast"})
        self.audio = None
        if sampling_rate is not None:
            self.audio = file.add_stream("aac", rate=sampling_rate)
            self.audio.bit_rate, self.audio.layout = _AUDIO_BITS_PER_SECOND, "mono"
        self.frames = self.samples = 0

    def add_frame(self, image: Image.Image) -> None:
        # H.264 in the format that all players know has even sides.
        width, height = (side // 2 * 2 for side in image.size)
        if not self.frames:
            self.video.width, self.video.height, self.video.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.asarray(image.crop((0, 0, width, height))), format="rgb24")
        frame.pts, frame.time_base = self.frames, 1 / self.rate
        self.frames += 1
        self.file.mux(self.video.encode(frame))

    def add_audio(self, chunk: MediaChunk) -> None:
        """The audio up to the end of the last frame."""
        if chunk.waveform is None or self.audio is None:
            return
        first = self.samples - chunk.waveform_start * self.sampling_rate
        last = round(self.frames / self.rate * self.sampling_rate) - chunk.waveform_start * self.sampling_rate
        piece = chunk.waveform[max(0, first) : max(0, last)].numpy()
        if not len(piece):
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece[None]), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = (
            self.sampling_rate,
            self.samples,
            Fraction(1, self.sampling_rate),
        )
        self.samples += len(piece)
        self.file.mux(self.audio.encode(frame))

    def finish(self) -> None:
        for stream in filter(None, (self.video, self.audio)):
            self.file.mux(stream.encode(None))
