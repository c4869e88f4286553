"""Videos of hours are read in memory that does not grow with them."""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cavmae_sync_hf import CavMaeSyncForPreTraining, CavMaeSyncProcessor
from helpers.apart import run_apart
from helpers.tiny import tiny_config

RATE = 8000
# Runs a command on a video of ten minutes, then of two hours; prints the peaks of both, in MB.
PEAKS = """
import resource, sys
from cavmae_sync_hf import cli

peaks, words = [], sys.argv[1:]
for length in ("short", "long"):
    sys.argv = ["cavmae-sync", *(word.replace("LENGTH", length) for word in words)]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, end.code
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(*peaks, file=sys.stderr)
"""


def write_long(path: Path, seconds: int) -> None:
    """A frame and a tone of its own for every second."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=1)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        tick = np.arange(RATE) / RATE
        for second in range(seconds):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), second % 251, np.uint8), format="rgb24")
            frame.pts, frame.time_base = second, Fraction(1)
            container.mux(video.encode(frame))
            tone = (8000 * np.sin(2 * np.pi * (200 + second % 997) * tick)).astype(np.int16)[None]
            sound = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = RATE, second * RATE, Fraction(1, RATE)
            container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    config = tiny_config()
    CavMaeSyncForPreTraining(config).save_pretrained(folder / "model")
    CavMaeSyncProcessor.from_config(config).save_pretrained(folder / "model")
    write_long(folder / "short.mkv", 600)
    write_long(folder / "long.mkv", 7200)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="memory is measured as Unix does")
@pytest.mark.parametrize(
    "command",
    [
        ("extract", "LENGTH.mkv", "features-LENGTH", "--model", "model", "--hop", "1", "--format", "parquet"),
        ("index", "LENGTH.mkv", "index-LENGTH", "--model", "model", "--hop", "1"),
        ("sync", "LENGTH.mkv", "--model", "model", "--hop", "1", "--max-offset", "2"),
    ],
    ids=lambda command: command[0],
)
def test_two_hours__take_the_memory_of_ten_minutes(folder, command):
    done = run_apart(["-c", PEAKS, *command], folder)
    assert done.returncode == 0, done.stderr
    short, long = map(float, done.stderr.split()[-2:])
    print(f"{command[0]}: {short:.0f} MB for 10 minutes, {long:.0f} MB for 2 hours")
    assert long < short + 96
