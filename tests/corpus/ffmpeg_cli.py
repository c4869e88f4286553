"""What FFmpeg's command line plays of a file: each frame with its time, and the audio laid on the same clock.

One command reads both tracks, so that what FFmpeg corrects on the way (the start time, clocks that wrap or jump) is
the same for both. Its filters print the times; gaps between them are silence, as a player has it.
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SIDE = 32
RATE = 16000
TIME_LIMIT = 120.0
# A clock may leave the audio's samples by so much before it counts as a gap (Matroska and FLV round to milliseconds).
GAP_SECONDS = 0.010
# Nobody plays a file to the end whose few seconds reach over more than this.
LONGEST = 6 * 3600.0

# Formats that name other files, or hold one image or text: no media of their own.
_NO_MEDIA = re.compile(r"^(hls|dash|concat|sdp|rtsp|image2|tty|lavfi|.*_pipe)(,|$)")
_STREAM = re.compile(r"Stream #0:(\d+)\S*: (Video|Audio): (.*)")
_FAILED = re.compile(r"Decode error rate [\d.]+ exceeds maximum")
_COMPLAINT = re.compile(r"\[(?:error|fatal|panic)\]\s*(.*)")
_INPUT = re.compile(r"Input #0, (\S+), from")
_START = re.compile(r"Duration: \S+, start: (-?[\d.]+)")


@dataclass
class Played:
    """What FFmpeg plays.

    Attributes:
        frames: `(num_frames, SIDE, SIDE)` float32, grey values; empty without video.
        times: `(num_frames,)` float64, when each frame appears, seconds, ascending.
        ends: `(num_frames,)` float64, when each frame ends.
        waveform: `(num_samples,)` float32, first channel at `RATE`; empty without audio.
        form: FFmpeg's name of the container.
        start: Start time that the file's header gives and that FFmpeg subtracts, seconds.
        complaints: What FFmpeg printed about errors.
        refused: Why nothing is played, empty where something is.
    """

    frames: np.ndarray = field(default_factory=lambda: np.zeros((0, SIDE, SIDE), np.float32))
    times: np.ndarray = field(default_factory=lambda: np.zeros(0))
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0))
    waveform: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    form: str = ""
    start: float = 0.0
    complaints: list[str] = field(default_factory=list)
    refused: str = ""

    @property
    def duration(self) -> float:
        """To the end of the longer track, seconds."""
        return max(float(self.ends.max(initial=0.0)), len(self.waveform) / RATE)


def find_ffmpeg() -> str | None:
    """The command of `CAVMAE_SYNC_FFMPEG`, of the imageio-ffmpeg wheel, or of the system, in this order."""
    if named := os.environ.get("CAVMAE_SYNC_FFMPEG"):
        return named
    try:
        import imageio_ffmpeg
    except ImportError:
        return shutil.which("ffmpeg")
    return imageio_ffmpeg.get_ffmpeg_exe()


def play(ffmpeg: str, path: Path) -> Played:
    """Play a file with FFmpeg's command line."""
    head = [ffmpeg, "-hide_banner", "-nostdin", "-nostats", "-loglevel", "repeat+level+info", "-threads", "1"]
    head += ["-protocol_whitelist", "file", "-i", f"file:{path.resolve()}"]
    listing = _run(head, Path.cwd())
    played = Played(complaints=_COMPLAINT.findall(listing))
    if not (found := _INPUT.search(listing)):
        played.refused = played.complaints[-1] if played.complaints else "cannot be opened"
        return played
    played.form = found[1]
    if _NO_MEDIA.search(found[1]):
        played.refused = f"is {found[1]}, no media of its own"
        return played
    kinds = {kind.lower() for _, kind, text in _STREAM.findall(listing) if "(attached pic)" not in text}
    if not kinds:
        played.refused = "has neither audio nor video"
        return played
    with tempfile.TemporaryDirectory() as folder:
        # Small frames are enlarged first, so that what follows is a box filter for all.
        enlarge = f"scale=w='iw*if(lt(iw,{SIDE}),{SIDE},1)':h='ih*if(lt(ih,{SIDE}),{SIDE},1)':flags=neighbor"
        scale = f"{enlarge},scale={SIDE}:{SIDE}:flags=area+accurate_rnd+full_chroma_int"
        filters = {
            "video": ["-an", "-fps_mode", "passthrough", "-enc_time_base", "1:1000000", "-c:v", "rawvideo", "-vf"]
            + [f"format=rgb24,{scale}"],
            "audio": ["-vn", "-c:a", "pcm_f32le", "-af", "pan=mono|c0=c0"],
        }
        forms = {"video": "rawvideo", "audio": "f32le"}
        # Each track is written twice: its data, and a line for each frame with its time.
        outputs = {
            kind: [
                word
                for form, name in ((forms[kind], kind), ("framecrc", f"{kind}.times"))
                for word in (*options, "-sn", "-dn", "-f", form, "-y", name)
            ]
            for kind, options in filters.items()
        }
        # A track without a decoder would end the command; the other one plays alone.
        for attempt in (kinds, {"video"} & kinds, {"audio"} & kinds) if len(kinds) > 1 else (kinds,):
            log = _run(head + [word for kind in sorted(attempt) for word in outputs[kind]], Path(folder))
            played.complaints = _COMPLAINT.findall(log)
            start = _START.search(log)
            played.start = float(start[1]) if start else 0.0
            if _FAILED.search(log):
                played.refused = "most packets cannot be decoded"
                break
            if "video" in attempt:
                _take_video(played, Path(folder))
            if "audio" in attempt:
                _take_audio(played, Path(folder), ffmpeg)
            if played.refused or len(played.frames) or len(played.waveform):
                break
        else:
            played.refused = "nothing is decoded: " + (played.complaints[0] if played.complaints else "no packets")
    return played


def _run(command: list[str], folder: Path) -> str:
    with tempfile.TemporaryFile() as log:
        try:
            subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=log, timeout=TIME_LIMIT, check=False)
        except subprocess.TimeoutExpired:
            return "[fatal] FFmpeg does not come to an end"
        log.seek(0)
        return log.read().decode("utf-8", "replace")


def _written(folder: Path, kind: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Bytes of a track; time, duration and bytes of each of its frames, in ticks; seconds of a tick."""
    data, listing = folder / kind, folder / f"{kind}.times"
    lines = listing.read_text().splitlines() if listing.exists() else []
    numerator, denominator = next((line.split()[2].split("/") for line in lines if line.startswith("#tb")), (1, 1))
    rows = [[int(word) for word in line.split(",")[2:5]] for line in lines if not line.startswith("#")]
    table = np.array(rows, np.int64).reshape(-1, 3)  # (frames, [pts, duration, bytes])
    return (
        np.fromfile(data, np.uint8) if data.exists() else np.zeros(0, np.uint8),
        table,
        int(numerator) / int(denominator),
    )


def _take_video(played: Played, folder: Path) -> None:
    data, table, tick = _written(folder, "video")
    count = min(len(data) // (SIDE * SIDE * 3), len(table))
    known = table[:count, 0] * tick > -LONGEST  # frames without a time are shown at no time
    times, lengths = table[:count][known, 0] * tick, table[:count][known, 1] * tick
    if len(times) and times.max() > LONGEST:
        played.refused = f"its clock jumps to {times.max():.0f} s"
        return
    order = np.argsort(times, kind="stable")
    images = data[: count * SIDE * SIDE * 3].reshape(count, SIDE, SIDE, 3)
    played.frames, played.times = to_grey(images[known])[order], times[order]
    played.ends = np.append(played.times[1:], played.times[-1:] + lengths[order][-1:])


def _take_audio(played: Played, folder: Path, ffmpeg: str) -> None:
    data, table, tick = _written(folder, "audio")
    samples, rate = data.view(np.float32), round(1 / tick)
    pieces, first, end, last = [], 0, 0, -np.inf  # (place, samples)
    for place, _, size in table.tolist():
        piece = samples[first : first + size // 4]
        first += size // 4
        # A clock that goes on by a part of what is heard meanwhile is none: in a row, as FFmpeg writes the samples.
        # (It puts times that went back one tick behind the last.)
        creeps, last = 2 < place - last < 0.75 * len(piece), place
        if pieces and (creeps or abs(place - end) <= GAP_SECONDS * rate) or place * tick < -LONGEST:
            place = end
        pieces.append((max(place, end), piece[max(0, end - place) :]))  # what was heard already is not heard again
        end = pieces[-1][0] + len(pieces[-1][1])
    if end > LONGEST * rate:
        played.refused = f"its clock jumps to {end / rate:.0f} s"
        return
    laid = np.zeros(end, np.float32)
    for place, piece in pieces:
        laid[place : place + len(piece)] = piece
    command = [ffmpeg, "-v", "error", "-f", "f32le", "-ar", str(rate), "-i", "-", "-ar", str(RATE), "-f", "f32le", "-"]
    made = subprocess.run(command, input=laid.tobytes(), stdout=subprocess.PIPE, timeout=TIME_LIMIT, check=True).stdout
    played.waveform = np.frombuffer(made, np.float32)


def to_grey(images: np.ndarray) -> np.ndarray:
    """Grey values of RGB images `(..., 3)`, with the weights of BT.601."""
    return images.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def shrink(images: np.ndarray) -> np.ndarray:
    """Means over equal boxes of images `(num_images, height, width)`: `(num_images, SIDE, SIDE)`."""
    rows, columns = (_boxes(size) for size in images.shape[1:])
    return rows @ images @ columns.T


def _boxes(size: int) -> np.ndarray:
    """The share of each of `size` pixels in each of `SIDE` boxes, `(SIDE, size)`."""
    edges = np.arange(SIDE + 1)[:, None] * size / SIDE
    reach = np.clip(edges - np.arange(size), 0, 1)  # how much of each pixel lies before each edge
    return (np.diff(reach, axis=0) * SIDE / size).astype(np.float32)
