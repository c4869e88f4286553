# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The process that opens an uploaded file.

It runs with bounds on time, memory and disk, and without the server's environment (see `guard.py`). It decodes the
file and writes video and audio into a new one: from then on the server touches that copy alone, and the upload is
removed. A video becomes H.264 and AAC, which every browser plays; audio becomes WAV, an image PNG.

The job arrives as JSON on the standard input; lines of JSON on the standard output tell of progress and of the end.
"""

import errno
import io
import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..model.errors_cavmae_sync import CavMaeSyncError, Hint, MediaError, MediaWarning, collected_remarks
from .spelling import on_page

# Shorter side of the copy. The largest model sees 224 lines, so this costs it nothing.
LINES = 480
LONGEST_SIDE = 1280
MAX_FRAME_RATE = 30.0
USUAL_FRAME_RATE = 25.0
# Frames that are held at once.
_CHUNK = 8
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_WAV_RATE = 16000
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
# With less memory left than this at the worst moment, what failed may have failed for want of it: FFmpeg and its
# encoders often call the data or the options wrong instead.
_TIGHT_BYTES = 256 << 20
# A clip as long as is allowed may end a little later, by the last packet of its audio.
_GRACE_SECONDS = 0.5

Progress = Callable[[float, float], None]


class _Upload(io.FileIO):
    """An open file that calls itself as its owner does, in messages; its path stays unknown to FFmpeg."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(path, "rb")
        self.name = name


def copy_video(
    source: Any,
    target: Path,
    *,
    max_seconds: float,
    max_pixels: int,
    progress: Progress | None = None,
    audio: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the video and audio of a file into a plain mp4 file, on the same clock.

    Args:
        source: Binary file object with a `name`.
        target: File to write.
        max_seconds: Longest clip that is accepted.
        max_pixels: Largest frame that is accepted.
        progress: Called with the seconds that are done, and of how many.
        audio: What of its audio to take: `channel` and `audio_track` of `iter_media`.

    Returns:
        `duration`, `frame_rate`, `width` and `height` of the copy.

    Raises:
        MediaError: The file cannot be used, lacks a track, or is too long or too large.
    """
    info = _probe(source, max_seconds, max_pixels)

    def show(done: float) -> None:
        if done > max_seconds + _GRACE_SECONDS:
            raise _too_long(source.name, None, max_seconds)
        if progress is not None:
            progress(done, info.duration or 0.0)

    audio = audio or {}
    _remark_on_tracks(source.name, info, audio)
    return _rewrite(source, target, info, show, max_pixels=max_pixels, **audio)


def _remark_on_tracks(name: str, info: Any, audio: dict[str, Any]) -> None:
    """Say which audio track is heard of several that none was chosen of."""
    if len(info.audio_tracks) > 1 and "audio_track" not in audio:
        number = next((track.number for track in info.audio_tracks if track.is_default), 0)
        other = next(track.number for track in info.audio_tracks if track.number != number)
        told = f"{name}: it has {len(info.audio_tracks)} audio tracks, and number {number + 1} is heard."
        warnings.warn(MediaWarning(told, hint=Hint("audio_track", other, "hear another")), stacklevel=3)


def dub(
    source: Any,
    target: Path,
    *,
    frames: str,
    max_seconds: float,
    audio: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the frames of a clip with the audio of another file, whose time 0 is the clip's.

    Args:
        source: Audio or video file whose audio is taken, a binary file object with a `name`.
        target: File to write.
        frames: The clip, which is trusted.
        max_seconds: Longest file that is accepted.
        audio: What of the audio to take: `channel` and `audio_track` of `iter_media`.
        progress: Called with the seconds that are done, and of how many.

    Raises:
        MediaError: The file cannot be used, has no audio, or is too long.
    """
    from ..model.media_cavmae_sync import decode_media, probe_media

    info, clip, audio = _probe(source, max_seconds, None), probe_media(frames), audio or {}
    _remark_on_tracks(source.name, info, audio)
    length = max_seconds + 2 * _GRACE_SECONDS
    media = decode_media(source, sampling_rate=_AAC_RATES[-1], want_video=False, end=length, **audio)
    if media.duration > max_seconds + _GRACE_SECONDS:
        raise _too_long(source.name, None, max_seconds)

    def show(done: float) -> None:
        if progress is not None:
            progress(done, clip.duration or 0.0)

    return _rewrite(frames, target, clip, show, waveform=media.waveform, want_audio=False)


def cut(source: Any, target: Path, start: float, end: float) -> dict[str, Any]:
    """Write a piece of a video as `copy_video` writes a whole one. For files that are trusted.

    Args:
        source: Path, address, bytes or file object.
        target: File to write.
        start: Where the piece starts, seconds.
        end: Where it ends.

    Raises:
        MediaError: The file cannot be used.
    """
    from ..model.media_cavmae_sync import probe_media

    return _rewrite(source, target, probe_media(source), lambda done: None, start=start, end=end)


def _rewrite(
    source: Any, target: Path, info: Any, show: Callable[[float], None], *, waveform: Any = None, **options: Any
) -> dict[str, Any]:
    """Decode a file chunk by chunk, with these options of `iter_media`, and write it anew.

    `waveform`, at the highest rate that is written, replaces its audio.
    """
    from ..model.media_stream_cavmae_sync import iter_media

    rate = Fraction(min(info.frame_rate or USUAL_FRAME_RATE, MAX_FRAME_RATE)).limit_denominator(1001)
    own_rate = info.sampling_rate in _AAC_RATES and waveform is None
    audio_rate = info.sampling_rate if own_rate else _AAC_RATES[-1]
    writer: _Writer | None = None
    for chunk in iter_media(
        source, hop=float(1 / rate), num_frames=_CHUNK, context=1.0, sampling_rate=audio_rate, threads=1, **options
    ):
        show(float(chunk.asked_times[-1]))
        assert chunk.frames is not None  # a file without video is an error of `iter_media`
        if writer is None:
            writer = _Writer(target, rate, audio_rate, *_fit(*chunk.frames.shape[2:]))
        writer.add(chunk if waveform is None else replace(chunk, waveform=waveform, waveform_start=0))
    assert writer is not None  # a file without a frame is an error of `iter_media`
    writer.close()
    return {
        "duration": float(writer.frames / rate),
        "frame_rate": float(rate),
        "width": writer.size[1],
        "height": writer.size[0],
    }


def copy_audio(
    source: Any, target: Path, *, max_seconds: float, audio: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write the audio of a file into a WAV file; arguments and errors as for `copy_video`."""
    import wave

    from ..model.media_cavmae_sync import decode_media

    info, audio = _probe(source, max_seconds, None), audio or {}
    _remark_on_tracks(source.name, info, audio)
    length = max_seconds + 2 * _GRACE_SECONDS
    media = decode_media(source, sampling_rate=_WAV_RATE, want_video=False, end=length, **audio)
    if media.duration > max_seconds + _GRACE_SECONDS:
        raise _too_long(source.name, None, max_seconds)
    assert media.waveform is not None  # a file without audio is an error of `decode_media`
    samples = (media.waveform * 32767.0).round().clamp(-32768, 32767).numpy().astype("<i2")
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_WAV_RATE)
        file.writeframes(samples.tobytes())
    return {"duration": len(samples) / _WAV_RATE}


def copy_image(source: Any, target: Path, *, max_pixels: int) -> dict[str, Any]:
    """Write an image as PNG, upright and no larger than is of use; arguments and errors as for `copy_video`."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(source, formats=_IMAGE_FORMATS) as opened:
            if opened.width * opened.height > max_pixels:
                raise _too_large(source.name, opened.width, opened.height, max_pixels)
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        most = f"{max_pixels / 1e6:.1f} million pixels"
        raise MediaError(f"{source.name}: has more than the {most} that are taken here; scale it down.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"{source.name}: is not an image that can be read; save it as PNG or JPEG.") from error
    height, width = _fit(image.height, image.width)
    image.resize((width, height), Image.Resampling.BICUBIC).save(target, format="PNG")
    return {"width": width, "height": height}


def _kind_of(source: Any, *, images: bool) -> str:
    """`"video"`, `"audio"`, or `"image"` where those count too."""
    from PIL import Image, UnidentifiedImageError

    from ..model.media_cavmae_sync import probe_media

    if images:
        try:
            with Image.open(source, formats=_IMAGE_FORMATS):
                return "image"
        except Image.DecompressionBombError:
            return "image"
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
            pass
        finally:
            source.seek(0)
    info = probe_media(source)
    return "audio" if info.has_audio and not info.has_video else "video"


class _Writer:
    """An mp4 file in the making: constant frame rate, one channel of audio, both from time zero."""

    def __init__(self, target: Path, rate: Fraction, audio_rate: int, height: int, width: int) -> None:
        import av

        self.size, self.frames, self.samples, self.rate, self.audio_rate = (height, width), 0, 0, rate, audio_rate
        self.file = av.open(os.fspath(target), "w", format="mp4", options={"movflags": "+faststart"})
        self.image: Any = self.file.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "16"})
        self.image.width, self.image.height, self.image.pix_fmt = width, height, "yuv420p"
        self.image.thread_count = 1
        self.audio: Any = self.file.add_stream("aac", rate=audio_rate, options={"aac_coder": "fast"})
        self.audio.bit_rate, self.audio.layout = 128_000, "mono"

    def add(self, chunk: Any) -> None:
        """Write the frames of a chunk, and its audio as far as it is not written yet."""
        import av

        for pixels in chunk.frames.permute(0, 2, 3, 1).contiguous().numpy():
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(self.size[1], self.size[0], "yuv420p", interpolation="BICUBIC")
            frame.pts, frame.time_base = self.frames, 1 / self.rate
            self.file.mux(self.image.encode(frame))
            self.frames += 1
        if chunk.waveform is None:
            return
        # A second beyond the last frame is there too; it counts at the end alone, where no chunk follows.
        ends = math.ceil(self.frames / self.rate * self.audio_rate)
        first = chunk.waveform_start * self.audio_rate
        samples = chunk.waveform[max(0, self.samples - first) : max(0, ends - first)].numpy()
        if len(samples):
            audio = av.AudioFrame.from_ndarray(samples[None].copy(), format="fltp", layout="mono")
            audio.sample_rate, audio.pts = self.audio_rate, self.samples
            self.file.mux(self.audio.encode(audio))
            self.samples += len(samples)

    def close(self) -> None:
        self.file.mux(self.image.encode())
        self.file.mux(self.audio.encode())
        self.file.close()


def _probe(source: Any, max_seconds: float, max_pixels: int | None) -> Any:
    """Refuse by its header what is too long or too large."""
    from ..model.media_cavmae_sync import probe_media

    info = probe_media(source)
    if info.duration is not None and info.duration > max_seconds + _GRACE_SECONDS:
        raise _too_long(source.name, info.duration, max_seconds)
    if max_pixels is not None and info.width * info.height > max_pixels:
        raise _too_large(source.name, info.width, info.height, max_pixels)
    return info


def _too_long(name: str, seconds: float | None, most: float) -> ValueError:

    length = "more" if seconds is None else f"{seconds:.0f} s"
    return MediaError(
        f"{name}: lasts {length}, and at most {most:g} s are taken here. Cut out the part that matters, or use the "
        "command line, which reads videos of any length."
    )


def _too_large(name: str, width: int, height: int, most: int) -> ValueError:

    return MediaError(
        f"{name}: its frame is {width} by {height}, and at most {most / 1e6:.1f} million pixels are taken here; "
        "scale it down."
    )


def _fit(height: int, width: int) -> tuple[int, int]:
    """Height and width of the copy: even, as H.264 needs, and no larger than is of use."""
    scale = min(1.0, LINES / min(height, width), LONGEST_SIDE / max(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def limit_resources(memory: int, cpu_seconds: float, file_bytes: int) -> None:
    """Bound what this process can take, as far as the system knows such bounds.

    Args:
        memory: Bytes of address space beyond what it has now.
        cpu_seconds: Processor time.
        file_bytes: Largest file that it can write.
    """
    try:
        import resource
    except ImportError:  # Windows: there is the time limit alone
        return

    def bound(name: str, value: float) -> None:
        try:
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            most = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
            resource.setrlimit(kind, (most, most))
        except (AttributeError, ValueError, OSError):  # not on this system
            return

    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        bound("RLIMIT_AS", pages * resource.getpagesize() + memory)
    except OSError:  # no /proc: what the process has now is unknown
        pass
    bound("RLIMIT_CPU", math.ceil(cpu_seconds))
    bound("RLIMIT_FSIZE", file_bytes)
    bound("RLIMIT_CORE", 0)
    bound("RLIMIT_NOFILE", 128)


def do_job(job: dict[str, Any], progress: Progress | None = None) -> dict[str, Any]:
    """Make the copy that a job of `guard.copy_safely` asks for; returns its facts.

    Args:
        job: `source`, `target`, `name` for messages, `kind`, the limits `max_seconds` and `max_pixels`, `audio`, and
            `frames` of a clip that gets other audio.
        progress: Called with the seconds that are done, of how many.

    Returns:
        The facts, what `kind` of copy it is, and `remarks`, sentences about the file for the one who sent it.

    Raises:
        MediaError: The file cannot be used.
    """
    target = Path(job["target"])
    with _Upload(job["source"], job["name"]) as source, collected_remarks() as remarks:
        kind, length, pixels = job["kind"], job["max_seconds"], job["max_pixels"]
        if kind in ("clip", "query"):
            kind = _kind_of(source, images=kind == "query")
        if kind == "image":
            facts = copy_image(source, target, max_pixels=pixels)
        elif kind == "audio":
            facts = copy_audio(source, target, max_seconds=length, audio=job["audio"])
        elif kind == "dub":
            facts = dub(
                source, target, frames=job["frames"], max_seconds=length, audio=job["audio"], progress=progress
            )
        else:
            facts = copy_video(
                source, target, max_seconds=length, max_pixels=pixels, audio=job["audio"], progress=progress
            )
    told = [remark.spelled(on_page).removeprefix(f"{job['name']}: ") for remark in remarks]
    return facts | {"kind": kind, "remarks": [text[:1].upper() + text[1:] for text in told]}


def main() -> None:
    """Do the job on the standard input and tell of it on the standard output."""
    job = json.load(sys.stdin)
    import torch  # before the limits: what it needs is not the upload's doing

    from ..model import media_cavmae_sync, media_stream_cavmae_sync  # noqa: F401

    torch.set_num_threads(1)
    reserve = bytearray(8 << 20)  # given back to tell of a shortage
    limit_resources(job["memory"], job["cpu_seconds"], job["file_bytes"])

    def tell(**message: Any) -> None:
        print(json.dumps(message), flush=True)

    try:
        result = do_job(job, lambda done, total: tell(done=done, total=total))
        tell(result=result)
    except Exception as error:
        del reserve
        tell(**describe_failure(error))


def describe_failure(error: Exception) -> dict[str, Any]:
    """What to tell of an error: a sentence for the visitor, or which kind it is and details for the operator."""
    if _is_scarcity(error) or _least_room() < _TIGHT_BYTES:
        return {"failed": "memory"}
    if isinstance(error, CavMaeSyncError):
        return {"error": error.spelled(on_page)}
    return {"failed": "unknown", "details": f"{type(error).__name__}: {error}"}


def _least_room() -> float:
    """Bytes of address space that were left when the process was largest; infinite where that is unknown."""
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        facts = Path("/proc/self/status").read_text(encoding="ascii")
        peak = next(int(line.split()[1]) for line in facts.splitlines() if line.startswith("VmPeak:"))
    except (ImportError, AttributeError, OSError, ValueError, StopIteration):
        return math.inf
    return math.inf if most == resource.RLIM_INFINITY else most - 1024 * peak


def _is_scarcity(error: BaseException | None) -> bool:
    """Whether the system had no memory left, somewhere beneath an error."""
    while error is not None:
        # Where a thread finds no memory for its stack, FFmpeg says "try again" (EAGAIN).
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.ENOMEM, errno.EAGAIN):
            return True
        if isinstance(error, RuntimeError) and "memory" in str(error).lower():  # torch
            return True
        error = error.__cause__ or error.__context__
    return False
