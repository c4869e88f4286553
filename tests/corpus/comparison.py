"""This package's reading of media files beside what FFmpeg's command line plays.

    python tests/corpus/comparison.py FOLDER_OR_FILE ...

prints one line for each file: right, wrong, refused by both, refused by us alone, read by us alone, with the reason.
"""

import argparse
import collections
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the command runs without pytest

from cavmae_sync_hf.model.errors_cavmae_sync import MediaError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, probe_media
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from corpus.ffmpeg_cli import RATE, Played, find_ffmpeg, play, shrink, to_grey
from helpers.bounded import BoundedCalls, Outcome

NUM_FRAMES = 16
SECONDS, MEMORY = 60.0, 1 << 30
# Mean absolute difference of grey values (0 to 255) after scaling to 32 x 32. Both sides decode the same bits. What
# remains is the rounding of two conversions: at most 0.3 over 55 videos, and 2.0 where non-square pixels are made
# square while converting (FFmpeg makes 253 of white there). Neighbouring frames of a moving scene differ by 1 to 10;
# of a still one, the frame's time tells whether it is the right one.
GREY_TOLERANCE = 2.5
# A time this near to a change of frames may show either: clocks of milliseconds are rounded once by each side.
CHANGE_SECONDS = 0.002
# A frame's own time, audio's lag and its least correlation. Both sides decode the same bits here, too, and correlate
# by more than 0.999, but where AAC says "noise" (its perceptual noise substitution) each decoder makes its own.
TIME_SECONDS, LAG_SECONDS, CORRELATION = 0.005, 0.010, 0.95
# Headers are believed to within 50 ms, and a codec's last packet is padded by up to 64 ms.
DURATION_SECONDS = 0.1
DELAY_SECONDS = 0.2  # of decoders that put frames in order
SILENCE = 1e-4  # root mean square
FAILURES = ("wrong", "refused by us alone", "crash", "hang", "memory")


class Verdict(NamedTuple):
    """What was found about a file: one of right, wrong, refused by both, refused by us alone, read by us alone, crash,
    hang, memory; and why."""

    kind: str
    reason: str = ""


def read(path: str) -> dict[str, Any]:
    """Read a file with this package; runs in a bounded process.

    Returns:
        `refused`: the message of the `MediaError`, if the file is refused as it is; of what is read then with
        `damaged="keep"`: `frames` as of `Played`, `asked` and `times` in seconds, `waveform`, `duration`, and
        `stream`, what `iter_media` gives differently.
    """
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"refused": "", "read": False}
    for damaged in ("error", "keep"):
        try:
            probe_media(path)
            media = decode_media(path, num_frames=NUM_FRAMES, missing="mask", damaged=damaged, threads=1)
        except MediaError as error:
            found["refused"] = found["refused"] or str(error)
            continue
        found |= {"read": True, "duration": media.duration, "stream": _stream_difference(path, media, damaged)}
        found |= dict.fromkeys(("frames", "asked", "times", "waveform"))
        if media.frames is not None:
            # One at a time: large frames would count against the limit.
            images = media.frames.permute(0, 2, 3, 1).numpy()
            found["frames"] = np.concatenate([shrink(to_grey(image[None])) for image in images])
            found["asked"], found["times"] = media.asked_times.numpy(), media.frame_times.numpy()
        if media.waveform is not None:
            found["waveform"] = media.waveform.numpy()
        break
    return found


def _stream_difference(path: str, media: Any, damaged: str) -> str:
    """What `iter_media` gives otherwise than `decode_media` gave; empty where they agree."""
    hop = media.duration / NUM_FRAMES
    other, count = [], 0  # numbers of frames
    try:
        for chunk in iter_media(path, hop=hop, num_frames=5, context=1.0, missing="mask", damaged=damaged, threads=1):
            if (chunk.frames is None) != (media.frames is None):
                return "streaming has other tracks"
            if chunk.frames is not None:
                pairs = zip(chunk.frames, media.frames[count:], strict=False)
                other += [count + k for k, (ours, due) in enumerate(pairs) if not torch.equal(ours, due)]
            count += len(chunk.frame_times)
            if (chunk.waveform is None) != (media.waveform is None):
                return "streaming has other tracks"
            if chunk.waveform is not None:
                first = chunk.waveform_start * media.sampling_rate
                due = media.waveform[first : first + len(chunk.waveform)]
                needed = min(float(chunk.asked_times[-1]) + 1.0, len(media.waveform) / media.sampling_rate)
                if len(chunk.waveform) < min(len(due), (needed - 0.1) * media.sampling_rate - first):
                    return f"streaming hears only {len(chunk.waveform)} samples from {chunk.waveform_start} s on"
                size = min(len(due), len(chunk.waveform))
                if size and float((chunk.waveform[:size] - due[:size]).abs().max()) > 1e-3:
                    return f"streaming hears otherwise from {chunk.waveform_start} s on"
    except MediaError as error:
        return f"streaming refuses: {error}"
    if abs(count * hop - media.duration) > DURATION_SECONDS + hop:
        return f"streaming gives {count} frames instead of {NUM_FRAMES}"
    return f"streaming shows other frames ({', '.join(map(str, other))})" if other else ""


def judge(outcome: Outcome, played: Played) -> Verdict:
    """Compare a reading with what FFmpeg plays."""
    if outcome.kind == "error":
        return Verdict("crash", outcome.reason)
    if outcome.kind != "value":
        return Verdict(outcome.kind, outcome.reason)
    if outcome.peak > MEMORY:
        return Verdict("memory", f"{outcome.peak >> 20} MiB")
    ours = outcome.value
    if not ours["read"]:
        return Verdict("refused by both" if played.refused else "refused by us alone", ours["refused"])
    if played.refused:
        if ours["refused"]:
            return Verdict("refused by both", ours["refused"])
        return Verdict("read by us alone", f"FFmpeg: {played.refused}")
    # A negative start (the priming samples of a codec) is before zero here; FFmpeg moves both tracks by it.
    shifts = [0.0, played.start] if -0.1 < played.start < 0 else [0.0]
    problems = min((_differences(ours, played, shift) for shift in shifts), key=len)
    if problems:
        return Verdict("wrong", "; ".join(problems))
    if ours["refused"] and not played.complaints:
        return Verdict("refused by us alone", f"unless kept: {ours['refused']}")
    return Verdict("right", f"kept: {ours['refused']}" if ours["refused"] else "")


def _differences(ours: dict[str, Any], played: Played, shift: float) -> list[str]:
    """What is other than FFmpeg plays it, on a clock that begins `shift` seconds later."""
    problems = [ours["stream"]] if ours["stream"] else []
    waveform = played.waveform[max(0, round(-shift * RATE)) :]
    if abs(ours["duration"] - played.duration - shift) > DURATION_SECONDS:
        problems.append(f"lasts {ours['duration']:.3f} s instead of {played.duration:.3f} s")
    for kind, there, due in (
        ("video", ours["frames"] is not None, len(played.frames) > 0),
        ("audio", ours["waveform"] is not None, len(waveform) > 0),
    ):
        if there != due:
            problems.append(f"{kind} is not read" if due else f"FFmpeg plays no {kind}")
    if ours["frames"] is not None and len(played.frames):
        clocks = [played.times + shift]
        if played.form == "avi" and 0 < clocks[0][0] <= DELAY_SECONDS:
            # There are no presentation times: FFmpeg shows frames as late as the decoder gives them; players do not.
            clocks.append(clocks[0] - clocks[0][0])
        problems += min((_frame_differences(ours, played, times) for times in clocks), key=len)
    if ours["waveform"] is not None and len(waveform):
        problems += _audio_differences(ours["waveform"], waveform.clip(-1.0, 1.0))
    return problems


def _frame_differences(ours: dict[str, Any], played: Played, times: np.ndarray) -> list[str]:
    wrong, late = [], []
    for frame, asked, time in zip(ours["frames"], ours["asked"], ours["times"], strict=True):
        first, last = (
            max(0, int(np.searchsorted(times, asked + step, side="right")) - 1)
            for step in (-CHANGE_SECONDS, CHANGE_SECONDS)
        )
        differences = np.abs(played.frames[first : last + 1] - frame).mean(axis=(1, 2))
        if differences.min() > GREY_TOLERANCE:
            nearest = int(np.abs(played.frames - frame).mean(axis=(1, 2)).argmin())
            wrong.append(f"{asked:.3f} s by {differences.min():.1f} (as at {times[nearest]:.3f} s)")
        # A frame that stays for longer than a second is reported at the time asked for; one is shown from 0 on.
        due = times[first : last + 1]
        if min(np.abs(due - time).min(), abs(time - asked), abs(time - max(0.0, due[0]))) > TIME_SECONDS:
            late.append(f"{time:.3f} s instead of {due[-1]:.3f} s")
    problems = [f"other frames at {len(wrong)} of {len(ours['frames'])} times: {wrong[0]}"] if wrong else []
    return problems + ([f"other frame times, {len(late)}: {late[0]}"] if late else [])


def _audio_differences(ours: np.ndarray, due: np.ndarray) -> list[str]:
    problems = []
    if abs(len(ours) - len(due)) > DURATION_SECONDS * RATE:
        problems.append(f"audio lasts {len(ours) / RATE:.3f} s instead of {len(due) / RATE:.3f} s")
    size = min(len(ours), len(due))
    spans = [
        slice(first, min(first + RATE, size))
        for first in range(0, size, RATE)
        if size - first > RATE // 4 or not first
    ]
    wrong = []
    for span in [*spans, slice(0, size)]:
        a, b = ours[span].astype(np.float64), due[span].astype(np.float64)
        loud = [float(np.sqrt(np.mean(x**2))) if len(x) else 0.0 for x in (a, b)]
        if max(loud) < SILENCE:
            continue
        place = f"{span.start / RATE:.0f} to {span.stop / RATE:.1f} s"
        if min(loud) < 0.9 * max(loud) - SILENCE:
            wrong.append(f"loudness {loud[0]:.4f} instead of {loud[1]:.4f} at {place}")
            continue
        correlation, lag = best_lag(a, b, LAG_SECONDS)
        if correlation < CORRELATION:
            far, lag = best_lag(a, b, 1.0)
            wrong.append(f"audio correlates {correlation:.3f} at {place} ({far:.3f} {lag:+.3f} s later)")
    return problems + ([f"{wrong[0]} ({len(wrong)} of {len(spans) + 1} spans)"] if wrong else [])


def best_lag(ours: np.ndarray, due: np.ndarray, most: float) -> tuple[float, float]:
    """The highest correlation of two waveforms over lags of at most `most` seconds, and the lag of the first in s."""
    size = 1 << (len(ours) + len(due)).bit_length()
    products = np.fft.irfft(np.fft.rfft(ours, size) * np.fft.rfft(due, size).conj(), size)
    reach = min(round(most * RATE), len(ours) - 1)
    lags = np.arange(-reach, reach + 1)
    correlations = products[lags] / max(1e-12, float(np.linalg.norm(ours) * np.linalg.norm(due)))
    # Near the ends of a short span what was shifted out is lost; the share that is left is what correlates.
    best = int(correlations.argmax())
    return float(correlations[best]), lags[best] / RATE


def media_files(places: list[str]) -> list[Path]:
    """The files of folders, with those in their folders, and files."""
    files = []
    for place in map(Path, places):
        files += sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    return files


def compare(files: list[Path], ffmpeg: str) -> Iterator[tuple[Path, Verdict]]:
    """The verdict about each file; ours is read in a process of its own for each, within time and memory."""
    for path in files:
        with BoundedCalls(read, SECONDS, MEMORY) as bounded:
            yield path, judge(bounded(str(path)), play(ffmpeg, path))


def line(path: Path, verdict: Verdict) -> str:
    """A line of the table."""
    return f"{verdict.kind:20} {path.name}  {verdict.reason}".rstrip()


def totals(verdicts: Iterable[Verdict]) -> str:
    """How many files there are of each kind."""
    counts = collections.Counter(verdict.kind for verdict in verdicts)
    return ", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", help="folders and files")
    command = find_ffmpeg()
    if command is None:
        parser.error("FFmpeg is needed: pip install imageio-ffmpeg, or set CAVMAE_SYNC_FFMPEG")
    found = []
    for path, verdict in compare(media_files(parser.parse_args().places), command):
        print(line(path, verdict), flush=True)
        found.append(verdict)
    print(totals(found))
    sys.exit(any(verdict.kind in FAILURES for verdict in found))
