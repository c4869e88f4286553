# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""One clip of a source becomes the members of a shard: decoded once, its frames and its audio compressed.

Frames come from the processor's own decoder and the log-mel from its own filter bank. What cannot be used is a
`BadClip` with a reason, never a row of zeros.
"""

import errno
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvF

from ..model.alignment_cavmae_sync import reference_frame_times
from ..model.errors_cavmae_sync import (
    CavMaeSyncError,
    Hint,
    MediaError,
    MissingTrackError,
    UnexpectedError,
    WorkerError,
    printable,
)
from ..model.feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor
from ..model.media_cavmae_sync import SAMPLING_RATE, DecodedMedia, decode_media, probe_media
from ..model.media_selection_cavmae_sync import check_audio_track
from . import crashes
from .captions import cut_texts
from .failures import file_error
from .fetching import fault_of_machine, local_file, reading_fault
from .shards import FLAC_NAME, decode_jpeg, encode_array, encode_flac, encode_jpeg, encode_json
from .sources import ClipRecord, MediaRows

# Audio that never exceeds this is silence: 80 dB below full scale, under what 16-bit dither makes audible.
SILENT_PEAK = 1e-4
# A file may be this much shorter than the end of its segment and still hold it; cutters stop at whole packets.
_CUT_TOLERANCE = 1.0
# Files above this size (bytes) have their length looked up before they are decoded, since that costs an opening.
_LARGE_FILE = 1 << 26
# Of a segment, at least this share must lie in the file.
_LEAST_SHARE_OF_SEGMENT = 0.5
# A machine at these limits can read no clip at all.
_LIMITS_OF_MACHINE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EMFILE, errno.ENFILE)
# Arguments of the decoder that `prepare` has too, with the values that it has for them.
_REMEDIES = {"missing": "keep", "damaged": "keep"}


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
    audio_track: int | str | None = None
    missing: str = "error"
    silent: str = "error"
    damaged: str = "error"
    max_seconds: float = 600.0
    audio: str = "log_mel"

    def __post_init__(self) -> None:
        choices = (
            ("alignment", self.alignment, ("time", "reference")),
            ("jpeg_chroma", self.jpeg_chroma, ("4:4:4", "4:2:2", "4:2:0")),
            ("channel", self.channel, ("first", "mean")),
            ("missing", self.missing, ("error", "keep")),
            ("silent", self.silent, ("error", "keep")),
            ("damaged", self.damaged, ("error", "keep")),
            ("audio", self.audio, ("log_mel", "waveform")),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
        check_audio_track(self.audio_track)
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

    def settings(self) -> dict[str, Any]:
        """As a folder of shards notes them; an option that is younger than such folders only where it is set."""
        settings = asdict(self)
        if self.audio == "log_mel":
            del settings["audio"]
        return settings

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
        passes: Whether the machine is at fault, not the clip, so that another run should try it again.
        place: Where in the code an unexpected error was raised; `None` for a clip that was refused.
    """

    def __init__(self, reason: str, message: str, *, passes: bool = False, place: str | None = None) -> None:
        super().__init__(message)
        self.reason, self.passes, self.place = reason, passes, place


@dataclass
class PackedClip:
    """What is written of a clip, and what the index needs of it.

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
class DecodedClip:
    """A clip of a source, decoded.

    Attributes:
        frames: Images, `(3, height, width)` uint8, or JPEG files as they were.
        frame_times: Seconds from the clip's start.
        waveform: `(num_samples,)` float32, `None` without audio.
        duration: Seconds.
        places: Of moments of several frames, numbers among `frames` of each moment's, `(moments, frames)`.
    """

    frames: list[torch.Tensor | bytes]
    frame_times: list[float]
    waveform: torch.Tensor | None
    duration: float
    places: torch.Tensor | None = None


class ClipPacker:
    """Decodes and packs clips, one at a time.

    Args:
        options: What is kept of a clip.
        rows: The rows of a data set that records may refer to.
        versions: Versions of the software, for the record.
        moment_options: Of `decode_media`, for clips whose moments have several frames.
    """

    def __init__(
        self,
        options: PrepareOptions,
        rows: MediaRows | None = None,
        versions: Mapping[str, str] | None = None,
        moment_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.options, self.rows = options, rows
        self.moment_options = dict(moment_options or {})
        self.versions = dict(versions or {})
        self.extractor = options.extractor()

    def pack(self, record: ClipRecord) -> PackedClip:
        """Decode one clip and compress what is kept of it.

        Raises:
            BadClip: The clip cannot be used, for good or for now; whatever goes wrong with it is one.
            WorkerError: No clip can be read: the disk is full, or too many files are open.
        """
        if record.problem is not None:
            raise BadClip("not found", record.problem)
        try:
            with crashes.reading(record.source):
                return self._pack(record, self.decode(record))
        except BadClip:
            raise
        except MissingTrackError as error:
            raise BadClip(f"no {error.track}", _told(record, error)) from error
        except FileNotFoundError as error:
            raise BadClip("not found", _told(record, file_error(error, record.source))) from error
        except UnexpectedError as error:  # processes have died of it
            raise BadClip("crash", _told(record, error), passes=True, place=error.place) from error
        except (MediaError, OSError, WorkerError) as error:
            fault = fault_of_machine(error) or reading_fault((record.path, record.audio))
            if fault is None and not isinstance(error, WorkerError):
                raise BadClip("unreadable", _told(record, error)) from error
            if getattr(fault, "errno", None) in _LIMITS_OF_MACHINE:
                raise WorkerError(
                    f"The clip {record.source} cannot be read for now ({printable(str(fault))}); mend the cause."
                ) from error
            cause = f"{record.source}: cannot be read for now ({printable(str(fault))})"
            message = _told(record, error) if fault is None else f"{cause}; mend the cause and run again."
            raise BadClip("no access", message, passes=True) from error
        except Exception as error:
            unexpected = file_error(error, record.source)
            place = unexpected.place if isinstance(unexpected, UnexpectedError) else None
            raise BadClip("unexpected", _told(record, unexpected), place=place) from error

    def decode(self, record: ClipRecord) -> DecodedClip:
        """Decode one clip, in messages named as the source names it.

        Raises:
            BadClip: The clip cannot be used.
            MediaError: It cannot be decoded, or is not there.
            WorkerError: It cannot be fetched for now.
        """
        if record.frames is not None:
            return self._from_images(record)
        video: Any = record.path
        audio: Any = record.audio
        if record.row is not None and self.rows is not None:
            video, audio = self.rows[record.row]
        if video is None:
            raise BadClip("not found", f"{record.source}: has no video.")
        with local_file(video, record.source) as file:
            media = self._decode_video(record, file, with_audio=audio is None)
        if audio is not None:
            own = self._decode_audio(record, audio)
            media.waveform, media.duration = own.waveform, max(media.duration, own.duration)
        moments = media.moments
        images = media.frames if moments is None else moments.images
        frames = list(images) if images is not None else []
        times = media.frame_times.tolist() if media.frame_times is not None else []
        places = None if moments is None else moments.places
        return DecodedClip(frames, times, media.waveform, media.duration, places)

    def _decode_video(self, record: ClipRecord, file: Any, with_audio: bool) -> DecodedMedia:
        options, start, end = self.options, record.start, record.end
        if record.maybe_cut and is_cut(record, probe_media(file, record.source).duration):
            start = end = None
        if end is None and isinstance(file, str) and os.path.exists(file) and os.path.getsize(file) > _LARGE_FILE:
            self._check_length(record, (probe_media(file, record.source).duration or 0.0) - (start or 0.0))
        media = decode_media(
            file,
            num_frames=options.num_frames,
            alignment=options.alignment,
            sampling_rate=options.sampling_rate,
            channel=options.channel,
            audio_track=options.audio_track,
            start=start,
            end=end,
            want_audio=with_audio,
            missing="mask" if options.missing == "keep" else "error",
            damaged=options.damaged,
            threads=1,
            name=record.source,
            **self.moment_options,
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

    def _decode_audio(self, record: ClipRecord, audio: Any) -> DecodedMedia:
        options = self.options
        with local_file(audio, record.source) as file:
            return decode_media(
                file,
                sampling_rate=options.sampling_rate,
                channel=options.channel,
                audio_track=options.audio_track,
                start=record.start,
                end=record.end,
                want_video=False,
                damaged=options.damaged,
                name=record.source,
            )

    def _check_length(self, record: ClipRecord, seconds: float) -> None:
        if seconds > self.options.max_seconds:
            raise BadClip(
                "too long",
                f"{record.source}: lasts {seconds:.0f} s, the limit is {self.options.max_seconds:g} s; give start "
                "and end times in a list, or raise the limit.",
            )

    def _from_images(self, record: ClipRecord) -> DecodedClip:
        """A clip of the published layout: images `frame_i/ID.jpg` and an audio file."""
        count, short_side = self.options.num_frames, self.options.short_side
        # Only the number's own place is filled in: folders and ids may hold braces.
        before, place, after = str(record.frames).rpartition("frame_{}/")
        jpegs: list[bytes] = []
        for number in range(count):
            try:
                with local_file(f"{before}{place.format(number)}{after}", record.source) as file:
                    jpegs.append(file.read() if hasattr(file, "read") else Path(file).read_bytes())
            except FileNotFoundError:
                break
        if len(jpegs) < count:
            raise BadClip(
                "not found", f"{record.source}: has {len(jpegs)} of {count} images; see the option num_frames."
            )
        if record.audio is None:
            raise BadClip("no audio", f"{record.source}: the list names no audio file for it.")
        audio = self._decode_audio(record, record.audio)
        self._check_length(record, audio.duration)
        frames: list[torch.Tensor | bytes] = []
        for jpeg in jpegs:
            try:
                frame = decode_jpeg(jpeg)
            except OSError as error:
                raise MediaError(f"{record.source}: an image of it is damaged, or is no image.") from error
            # An image that is small enough stays as it was compressed.
            small = short_side is None or min(frame.shape[-2:]) <= short_side
            frames.append(jpeg if small and jpeg.startswith(b"\xff\xd8") else frame)
        return DecodedClip(frames, reference_frame_times(audio.duration, count), audio.waveform, audio.duration)

    def _pack(self, record: ClipRecord, clip: DecodedClip) -> PackedClip:
        options, waveform = self.options, clip.waveform
        if waveform is not None and options.silent == "error" and float(waveform.abs().max()) < SILENT_PEAK:
            raise BadClip("silent", f"{record.source}: its audio track is silent throughout.")
        members = []
        for number, frame in enumerate(clip.frames):
            if isinstance(frame, torch.Tensor):
                frame = encode_jpeg(shrink(frame, options.short_side), options.jpeg_quality, options.jpeg_chroma)
            members.append((f"frame_{number:02d}.jpg", frame))
        log_mel = np.empty((0, options.num_mel_bins), dtype=np.float32)
        if waveform is not None:
            log_mel = self.extractor.log_mel(waveform).numpy()
        info: dict[str, Any] = {
            "id": record.id,
            "source": record.source,
            "start": record.start,
            "end": record.end,
            "duration": clip.duration,
            "frame_times": clip.frame_times,
            "labels": list(record.labels),
            "sampling_rate": options.sampling_rate,
            "num_mel_bins": options.num_mel_bins,
            "alignment": options.alignment,
            "has_audio": waveform is not None,
            "has_video": bool(members),
            "versions": self.versions,
        }
        captions = [text.to_dict() for text in cut_texts(record.captions, None, clip.duration)]
        if captions:
            info["captions"] = captions
        if options.audio == "log_mel":
            members.append(("log_mel.npy", encode_array(log_mel.astype(np.float16))))
        elif waveform is not None:
            members.append((FLAC_NAME, encode_flac(waveform, options.sampling_rate)))
        members.append(("json", encode_json(info)))
        return PackedClip(
            members,
            info,
            log_mel_values=log_mel.size,
            log_mel_sum=float(log_mel.sum(dtype=np.float64)),
            log_mel_squares=float(np.square(log_mel, dtype=np.float64).sum()),
        )


def _told(record: ClipRecord, error: Exception) -> str:
    """An error's message on one line, with the clip's name, and with remedies as options of `prepare`."""

    def as_option(hint: Hint) -> str | None:
        value = _REMEDIES.get(hint.argument)
        return f"set the option {hint.argument} to {value!r}" if value else None

    if isinstance(error, CavMaeSyncError):
        message = error.spelled(as_option)
    else:
        message = getattr(error, "strerror", None) or str(error)
    message = printable(" ".join(message.splitlines()))
    return message if record.source in message else f"{record.source}: {message}"


def shrink(frame: torch.Tensor, short_side: int | None) -> torch.Tensor:
    """Bring the shorter side of an image down to `short_side` pixels; smaller images stay as they are.

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
