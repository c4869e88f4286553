# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Small clips made on the spot, so that no media file needs to be kept: `write_clip` and what tests read back from
it.

Every frame carries its own frame number as black and white blocks (`numbered_frame`, `read_number`), so that a
test can tell which frame it was given, after compression and scaling.
"""

import contextlib
import functools
import http.server
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.stream
import numpy as np
import torch

SIZE = (64, 48)  # width, height
RATE = 48000
_BITS_PER_ROW = 8
_ROWS = 2


def numbered_frame(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame `(height, width, 3)` uint8 whose upper half holds `number` (below 65536) as 2 rows of 8 blocks.

    The lower half is a colour ramp: red grows to the right, green downwards.
    """
    width, height = size
    frame = np.zeros((height, width, 3), dtype=np.uint8)
    frame[..., 0] = np.linspace(40, 200, width).astype(np.uint8)[None]
    frame[..., 1] = np.linspace(40, 200, height).astype(np.uint8)[:, None]
    frame[..., 2] = 90
    for bit in range(_ROWS * _BITS_PER_ROW):
        row, column = divmod(bit, _BITS_PER_ROW)
        top, bottom = (height // 2) * row // _ROWS, (height // 2) * (row + 1) // _ROWS
        left, right = width * column // _BITS_PER_ROW, width * (column + 1) // _BITS_PER_ROW
        frame[top:bottom, left:right] = 235 if number >> bit & 1 else 16
    return frame


def read_number(frame: np.ndarray) -> int:
    """The number in a frame made by `numbered_frame`; `frame` is `(3, height, width)` in [0, 255]."""
    grey = np.asarray(frame, dtype=np.float64).mean(axis=0)
    height, width = grey.shape
    number = 0
    for bit in range(_ROWS * _BITS_PER_ROW):
        row, column = divmod(bit, _BITS_PER_ROW)
        y = int((row + 0.5) * (height // 2) / _ROWS)
        x = int((column + 0.5) * width / _BITS_PER_ROW)
        number |= int(grey[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].mean() > 128) << bit
    return number


def numbers(media) -> list[int]:
    """The numbers in the frames of what `decode_media` or `iter_media` gives."""
    return [read_number(frame.numpy()) for frame in media.frames]


def joined(chunks) -> tuple[list[int], torch.Tensor]:
    """The numbers and the times of the frames of all chunks of a stream."""
    times = torch.cat([chunk.frame_times for chunk in chunks])
    return [number for chunk in chunks for number in numbers(chunk)], times


def on_screen(times: Sequence[float], asked: Sequence[float]) -> list[int]:
    """Brute force: the last frame that appears by each asked time, the first one before any does."""
    return [max([k for k, time in enumerate(times) if time <= t + 1e-9], default=0) for t in asked]


def tone(seconds: float, rate: int = RATE, frequency: float = 440.0, channels: int = 2) -> np.ndarray:
    """A sine `(channels, samples)` float32; channel k sounds at `frequency * (k + 1)`, amplitude 0.3."""
    times = np.arange(round(seconds * rate)) / rate
    rows = [0.3 * np.sin(2 * np.pi * frequency * (channel + 1) * times) for channel in range(channels)]
    return np.stack(rows).astype(np.float32)


def noise(seconds: float, rate: int = RATE, channels: int = 2, seed: int = 0) -> np.ndarray:
    """White noise `(channels, samples)` float32, amplitude 0.1."""
    generator = np.random.default_rng(seed)
    return (0.1 * generator.standard_normal((channels, round(seconds * rate)))).astype(np.float32)


def clicks(times: Iterable[float], seconds: float, rate: int = RATE, channels: int = 2) -> np.ndarray:
    """Silence with a 5 ms burst of 2 kHz that starts at each of `times`, `(channels, samples)` float32."""
    samples = np.zeros(round(seconds * rate), dtype=np.float32)
    burst = np.sin(2 * np.pi * 2000 * np.arange(round(0.005 * rate)) / rate).astype(np.float32)
    for time in times:
        first = round(time * rate)
        samples[first : first + len(burst)] += 0.8 * burst[: len(samples) - first]
    return np.repeat(samples[None], channels, axis=0)


def onset(waveform: np.ndarray, rate: int, after: float = 0.0) -> float:
    """Time in seconds of the first sample from `after` on that is louder than a fifth of the loudest."""
    loud = np.abs(np.asarray(waveform, dtype=np.float64))
    first = round(after * rate)
    hits = np.flatnonzero(loud[first:] > 0.2 * loud.max())
    return (first + hits[0]) / rate


def write_clip(
    path: Path | str,
    *,
    seconds: float = 2.0,
    fps: int | Fraction = 25,
    size: tuple[int, int] = SIZE,
    frame: Callable[[int, float], np.ndarray] | None = None,
    video: bool = True,
    num_frames: int | None = None,
    frame_times: Sequence[float] | None = None,
    video_codec: str = "libx264",
    pixel_format: str = "yuv420p",
    frame_format: str = "rgb24",
    rotation: int = 0,
    gop: int = 12,
    video_start: float = 0.0,
    audio: np.ndarray | bool = True,
    audio_codec: str = "aac",
    sample_format: str | None = None,
    layout: str | None = None,
    rate: int = RATE,
    audio_start: float = 0.0,
    container_options: dict[str, str] | None = None,
    video_options: dict[str, str] | None = None,
    audio_options: dict[str, str] | None = None,
    first_track: str = "video",
    unused_track: bool = False,
    apart: str | None = None,
) -> Path:
    """Write a clip and return its path; the suffix of the path chooses the container.

    Args:
        path: Where to write.
        seconds: Length of the video, and of the audio when `audio` is `True`.
        fps: Frames per second.
        size: `(width, height)`.
        frame: `frame(number, time)` makes each frame as `(height, width, channels)` uint8; default
            `numbered_frame`.
        video: Whether there is a video track.
        num_frames: Number of frames instead of `seconds * fps`.
        frame_times: Presentation times in seconds of a variable frame rate, one per frame.
        video_codec: FFmpeg's name of the encoder.
        pixel_format: Format of the encoded frames.
        frame_format: Format of what `frame` makes.
        rotation: Degrees by which a player is told to turn the frames.
        gop: Distance between key frames.
        video_start: When the video starts, seconds.
        audio: Samples `(channels, samples)` in [-1, 1], `True` for a tone, `False` for no audio track.
        audio_codec: FFmpeg's name of the encoder.
        sample_format: Format of the encoded samples; the encoder's first if `None`.
        layout: Channel layout; by the number of channels if `None`.
        rate: Sampling rate, Hz.
        audio_start: When the audio starts, seconds.
        container_options: Options of the muxer.
        video_options: Options of the video encoder.
        audio_options: Options of the audio encoder.
        first_track: `"video"` or `"audio"`, which comes first in the list of tracks.
        unused_track: Begin that list with a video track of one tiny frame, which no player would choose.
        apart: `"video"` or `"audio"`: all packets of that track stand before all of the other.
    """
    path = Path(path)
    samples = tone(seconds, rate) if audio is True else audio
    options = dict(container_options or {})
    if apart:
        options["max_interleave_delta"] = "1"  # microseconds for which FFmpeg would put packets in order itself
    with _ordinary_priority(), av.open(str(path), "w", options=options) as container:
        video_stream = audio_stream = unused_stream = None
        if unused_track:
            unused_stream = container.add_stream("mpeg4", rate=25)
            unused_stream.width, unused_stream.height, unused_stream.pix_fmt = 16, 16, "yuv420p"
            unused_stream.disposition = av.stream.Disposition(0)
        for kind in sorted(("video", "audio"), key=lambda kind: kind != first_track):
            if kind == "video" and video:
                encoder = {"preset": "veryfast", "crf": "16"} if video_codec == "libx264" else {}
                video_stream = container.add_stream(
                    video_codec, rate=Fraction(fps), options=encoder | (video_options or {})
                )
                video_stream.width, video_stream.height = size
                video_stream.pix_fmt = pixel_format
                video_stream.gop_size = gop
                if unused_track:
                    video_stream.disposition = av.stream.Disposition.default
                if frame_times is not None:
                    video_stream.codec_context.time_base = Fraction(1, 90000)
                if rotation:
                    video_stream.set_display_rotation(rotation)
            if kind == "audio" and samples is not False:
                layout = layout or {1: "mono", 2: "stereo", 4: "quad", 6: "5.1"}[len(samples)]
                audio_stream = container.add_stream(audio_codec, rate=rate, layout=layout)
                if sample_format:
                    audio_stream.format = sample_format
                if audio_options:
                    audio_stream.codec_context.options = audio_options
        packets = []
        if video_stream is not None:
            count = len(frame_times) if frame_times is not None else num_frames or round(seconds * fps)
            frames = _frames(count, fps, size, frame, frame_format, pixel_format, frame_times, video_start)
            packets += _encode(video_stream, frames)
        if audio_stream is not None:
            packets += _encode(audio_stream, _audio_frames(samples, audio_stream, layout, rate, audio_start))
        if unused_stream is not None:
            tiny = _frames(1, 25, (16, 16), None, "rgb24", "yuv420p", None, 0.0)
            packets += _encode(unused_stream, tiny)
        # Interleaved by time as a recorder would write them.
        packets.sort(key=lambda packet: (apart and packet.stream.type != apart, packet.dts * packet.time_base))
        container.mux(packets)
    return path


@contextlib.contextmanager
def _ordinary_priority() -> Iterator[None]:
    """Undo what SVT-AV1 does where root encodes: it gives its caller, and what that starts, real-time priority."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != before[0]:
            os.sched_setscheduler(0, *before)


def write_audio_tracks(
    path: Path | str,
    tracks: Sequence[dict],
    *,
    seconds: float = 1.0,
    video: bool = True,
    rate: int = RATE,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a clip with several audio tracks, track k a tone of `300 * (k + 1)` Hz, and return its path.

    Args:
        path: Where to write.
        tracks: Of each track, as far as it is wanted, `language`, `title`, `disposition` (PyAV's, `None` for the
            muxer's own), `codec`, `channels`, and `audio`, samples instead of the tone.
        seconds: Length.
        video: Whether there is a video track, too.
        rate: Sampling rate, Hz.
        container_options: Options of the muxer.
    """
    with av.open(str(path), "w", options=dict(container_options or {})) as container:
        packets = []
        if video:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height = SIZE
            stream.pix_fmt = "yuv420p"
        streams = []
        for track in tracks:
            audio = container.add_stream(track.get("codec", "aac"), rate=rate)
            audio.layout = {1: "mono", 2: "stereo"}[track.get("channels", 1)]
            audio.metadata.update({name: track[name] for name in ("language", "title") if name in track})
            if track.get("disposition") is not None:
                audio.disposition = track["disposition"]
            streams.append(audio)
        for number, (audio, track) in enumerate(zip(streams, tracks, strict=True)):
            channels = track.get("channels", 1)
            samples = track.get("audio")
            if samples is None:
                samples = np.repeat(tone(seconds, rate, 300.0 * (number + 1), 1), channels, axis=0)
            packets += _encode(audio, _audio_frames(samples, audio, audio.layout.name, rate, 0.0))
        if video:
            packets += _encode(stream, _frames(round(seconds * 25), 25, SIZE, None, "rgb24", "yuv420p", None, 0.0))
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    return Path(path)


def loudest_frequency(waveform: np.ndarray, rate: int = 16000) -> float:
    """Frequency of the strongest tone in samples `(num_samples,)`, Hz; 0 where they are silent."""
    samples = np.asarray(waveform, dtype=np.float64)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return 0.0 if spectrum.max() < 1e-3 else float(spectrum.argmax() * rate / len(samples))


def _encode(stream, frames) -> list[av.Packet]:
    packets = [packet for frame in frames for packet in stream.encode(frame)]
    return packets + list(stream.encode(None))


def _frames(count, fps, size, make, frame_format, pixel_format, frame_times, start):
    for number in range(count):
        time = number / float(fps) if frame_times is None else frame_times[number]
        array = numbered_frame(number, size) if make is None else make(number, time)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=frame_format)
        frame = frame.reformat(format=pixel_format)
        if frame_times is None:
            frame.time_base = 1 / Fraction(fps)
            frame.pts = number + round(start * fps)
        else:
            frame.time_base = Fraction(1, 90000)
            frame.pts = round((time + start) * 90000)
        yield frame


def _audio_frames(samples, stream, layout, rate, start):
    sample_format = stream.format.name
    block = stream.codec_context.frame_size or 1024
    for first in range(0, samples.shape[1], block):
        piece = np.ascontiguousarray(samples[:, first : first + block], dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(_as_format(piece, sample_format), format=sample_format, layout=layout)
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        frame.pts = first + round(start * rate)
        yield frame


def _as_format(piece: np.ndarray, sample_format: str) -> np.ndarray:
    packed = not sample_format.endswith("p")
    kind = sample_format.rstrip("p")
    if kind in ("s16", "s32"):
        scale = 2 ** (int(kind[1:]) - 1)
        piece = np.clip(np.round(piece.astype(np.float64) * scale), -scale, scale - 1).astype(f"int{kind[1:]}")
    elif kind == "u8":
        piece = np.clip(np.round(piece * 128) + 128, 0, 255).astype(np.uint8)
    elif kind == "dbl":
        piece = piece.astype(np.float64)
    return np.ascontiguousarray(piece.T.reshape(1, -1)) if packed else piece


def write_click_and_flash(
    path: Path | str,
    moments: Sequence[float] = (0.52, 1.4),
    *,
    seconds: float = 2.0,
    fps: int = 25,
    channels: int = 2,
    rate: int = RATE,
    **kwargs,
) -> Path:
    """A dark clip in which the screen is white for two frames, and a click sounds, from each of `moments` on."""

    def flashing(number: int, time: float) -> np.ndarray:
        lit = any(-1e-6 <= time - moment < 2 / fps - 1e-6 for moment in moments)
        return np.full((SIZE[1], SIZE[0], 3), 235 if lit else 16, dtype=np.uint8)

    audio = clicks(moments, seconds, rate, channels)
    return write_clip(path, seconds=seconds, fps=fps, frame=flashing, audio=audio, rate=rate, **kwargs)


def truncate(path: Path, destination: Path, share: float = 0.6) -> Path:
    """Copy the first `share` of a file's bytes."""
    data = path.read_bytes()
    destination.write_bytes(data[: math.floor(len(data) * share)])
    return destination


def corrupt(path: Path, destination: Path, begin: float = 0.3, end: float = 0.8, seed: int = 0) -> Path:
    """Copy a file with random bytes in the part from `begin` to `end` of its length."""
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * begin), int(len(data) * end)
    data[first:last] = np.random.default_rng(seed).bytes(last - first)
    destination.write_bytes(data)
    return destination


class _Files(http.server.SimpleHTTPRequestHandler):
    """The files of a folder; byte ranges are answered or ignored, as `ranges` says."""

    def __init__(self, *args, ranges: bool, stop_after: int | None, times: float, **kwargs) -> None:
        self.ranges, self.stop_after, self.times = ranges, stop_after, times
        super().__init__(*args, **kwargs)

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if self.times and path.is_file():
            self.send_response(200)
            self.end_headers()
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < self.times:
                    self.wfile.write(path.read_bytes())
                    sent += 1
            return
        if not path.is_file() or (not (asked and self.ranges) and self.stop_after is None):
            with contextlib.suppress(ConnectionError):  # the other side may have seen enough
                super().do_GET()
            return
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        if asked and self.ranges:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[first : last + 1][: self.stop_after])


@contextlib.contextmanager
def serve(folder: Path, ranges: bool = False, stop_after: int | None = None, broadcast: float = 0) -> Iterator[str]:
    """Serve a folder on this machine; gives the address without a slash at its end.

    Args:
        folder: What to serve.
        ranges: Whether the server knows byte ranges.
        stop_after: Break every reply off after this many bytes.
        broadcast: Neither answer ranges nor say how long a reply is, and send the file so often, perhaps without end.
    """
    options = {"ranges": ranges, "stop_after": stop_after, "times": broadcast}
    handler = functools.partial(_Files, directory=str(folder), **options)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def write_clips(
    folder: Path, count: int, *, seconds: float = 1.0, darker: int = 1, loud: float | None = None, silent: int = 0
) -> list[str]:
    """Clips whose frames get darker from one to the next, each with noise of its own; returns their paths.

    Args:
        folder: Where to write.
        count: How many.
        seconds: Length of each.
        darker: Frames of clip `k` are divided by `1 + darker * k`.
        loud: Loudness of the first clip, from which the others rise by 1; `None`: all have that of `noise`.
        silent: How many at the end have no audio track.
    """
    return [
        str(
            write_clip(
                folder / f"{place}.mp4",
                seconds=seconds,
                frame=lambda number, _, dark=place: numbered_frame(number) // (1 + darker * dark),
                audio=place < count - silent
                and noise(seconds, seed=place) * np.float32(1.0 if loud is None else loud + place),
            )
        )
        for place in range(count)
    ]
