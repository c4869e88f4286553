"""Any folder of media is read as FFmpeg's command line plays it (`make test-corpus MEDIA=folder`)."""

import os

import numpy as np
import pytest

from corpus.comparison import FAILURES, NUM_FRAMES, compare, judge, line, media_files, totals
from corpus.ffmpeg_cli import RATE, SIDE, Played, find_ffmpeg
from helpers import bounded
from helpers.bounded import BoundedCalls, Outcome


@pytest.mark.corpus
@pytest.mark.timeout(0)  # each file has its own limit
def test_folder__reads_what_ffmpeg_plays(capsys):
    place, ffmpeg = os.environ.get("CAVMAE_SYNC_MEDIA"), find_ffmpeg()
    if not place:
        pytest.skip("CAVMAE_SYNC_MEDIA names no folder of media files")
    if ffmpeg is None:
        pytest.skip("there is no FFmpeg: pip install imageio-ffmpeg, or set CAVMAE_SYNC_FFMPEG")
    verdicts = {}
    with capsys.disabled():
        for path, verdict in compare(media_files([place]), ffmpeg):
            print(line(path, verdict), flush=True)
            verdicts[path] = verdict
        print(totals(verdicts.values()))
    assert verdicts, f"there is no file in {place}"
    assert not {str(path): verdict for path, verdict in verdicts.items() if verdict.kind in FAILURES}


def scene(shift: float = 0.0) -> Played:
    """Two seconds of 25 frames each that differ, with noise; what is heard and seen `shift` seconds late."""
    generator = np.random.default_rng(0)
    frames = generator.uniform(0, 255, (50, SIDE, SIDE)).astype(np.float32)
    times = np.arange(50) / 25
    waveform = generator.normal(0, 0.1, 2 * RATE).astype(np.float32)
    late = round(shift * RATE)
    return Played(frames, times + shift, times + shift + 0.04, np.concatenate([np.zeros(late, np.float32), waveform]))


def reading(played: Played, **changes: object) -> Outcome:
    """What a right reading of it gives, with changes."""
    asked = (np.arange(NUM_FRAMES) + 0.5) * 2.0 / NUM_FRAMES
    places = np.searchsorted(played.times, asked, side="right") - 1
    right = {
        "read": True,
        "refused": "",
        "stream": "",
        "duration": 2.0,
        "frames": played.frames[places],
        "asked": asked,
        "times": played.times[places],
        "waveform": played.waveform,
    }
    return Outcome("value", right | changes)


def test_judge__right():
    assert judge(reading(scene()), scene()).kind == "right"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"waveform": scene(0.02).waveform}, "audio correlates"),
        ({"waveform": scene().waveform[: RATE // 2]}, "audio lasts 0.500 s"),
        ({"waveform": None}, "audio is not read"),
        ({"waveform": 0.5 * scene().waveform}, "loudness"),
        ({"frames": scene().frames[:NUM_FRAMES]}, "other frames"),
        ({"times": (np.arange(NUM_FRAMES) + 0.5) / 8 - 0.09}, "other frame times"),
        ({"frames": None}, "video is not read"),
        ({"duration": 2.2}, "lasts 2.200 s"),
        ({"stream": "streaming has other tracks"}, "streaming"),
    ],
)
def test_judge__wrong(changes, words):
    verdict = judge(reading(scene(), **changes), scene())
    assert verdict.kind == "wrong" and words in verdict.reason


def test_judge__refusals():
    played, silent = scene(), Played(refused="Invalid data")
    refusal = Outcome("value", {"read": False, "refused": "a.mp4: is empty."})
    kept = reading(played, refused="a.mp4: is truncated.")
    damaged = Played(played.frames, played.times, played.ends, played.waveform, complaints=["partial file"])
    assert judge(refusal, silent).kind == judge(kept, silent).kind == "refused by both"
    assert judge(refusal, played).kind == judge(kept, played).kind == "refused by us alone"
    assert judge(kept, damaged).kind == "right"
    assert judge(reading(played), silent).kind == "read by us alone"


def test_bounded_calls__survive_everything(monkeypatch):
    monkeypatch.setattr(bounded, "PRELOAD", ())  # what is called here needs nothing
    with BoundedCalls(eval, seconds=20.0, memory=1 << 30) as call:
        assert call("6 * 7").value == 42
        error = call("{}['some key']")
        assert (error.kind, error.reason.split(" (")[0]) == ("error", "KeyError: 'some key'")
        crash = call("__import__('os').abort()")
        assert (crash.kind, crash.reason) == ("crash", "the process ended with -6")
        call.seconds = 0.3
        assert call("__import__('time').sleep(60)").kind == "hang"
        call.seconds = 20.0
        eaten = call("len(bytearray(300 << 20))")
        assert eaten.kind == "value" and 250 << 20 < eaten.peak < 400 << 20
        assert call("6 * 7").peak < 50 << 20
