"""Building SyncWorld: the same bytes each time, and builds that are killed, refused or fail."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cavmae_sync_hf import DataError
from cavmae_sync_hf.files import locked
from cavmae_sync_hf.model.errors_cavmae_sync import LockedError, WorkerError
from cavmae_sync_hf.syncworld import PRESETS, build, make_world
from helpers.apart import group_members, wait_until

pytest.importorskip("av")

SMALL = {"size": 48, "fps": 8, "seconds": 3.0}  # a clip in about 15 ms
SOURCE = Path(__file__).parents[2] / "src"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_make_world__same_bytes_for_any_number_of_workers_and_other_bytes_for_another_seed(tmp_path):
    calls = []
    one = make_world(tmp_path / "a", clips=10, workers=1, progress=lambda *c: calls.append(c), **SMALL)
    two = make_world(tmp_path / "b", clips=10, workers=2, **SMALL)
    other = make_world(tmp_path / "c", clips=10, workers=2, seed=1, **SMALL)
    assert calls == [(k, 10) for k in range(11)]
    assert (one.made, two.made, one.clips) == (10, 10, 10)
    assert contents(one.folder) == contents(two.folder)
    assert set(contents(one.folder)) == {
        "metadata.parquet", "world.json", *(f"{k:06d}.{e}" for k in range(10) for e in ("mp4", "json"))
    }  # fmt: skip
    for name, data in contents(other.folder).items():
        assert data != contents(one.folder)[name]
    card = (tmp_path / "a" / "README.md").read_text()
    assert "| train | 10 | mixed | 0 | 48x48 | 8 | 3 |" in card
    assert all(f"\n- `{preset}`: " in card for preset in PRESETS)


def test_make_world__extends_and_repairs(tmp_path):
    whole = make_world(tmp_path / "whole", clips=9, workers=1, **SMALL)
    part = make_world(tmp_path / "part", clips=4, workers=1, **SMALL)
    (part.folder / "000001.json").unlink()
    (part.folder / "000002.mp4").unlink()
    (part.folder / ".partial-000007-1.mp4").write_bytes(b"half")
    again = make_world(tmp_path / "part", clips=9, workers=2, **SMALL)
    assert again.made == 7
    assert contents(part.folder) == contents(whole.folder)
    assert make_world(tmp_path / "part", clips=9, **SMALL).made == 0


def test_make_world__killed_and_run_again_ends_with_the_same_bytes(tmp_path):
    arguments = {"clips": 60, "workers": 2, **SMALL}
    script = f"from cavmae_sync_hf.syncworld import make_world; make_world({str(tmp_path / 'cut')!r}, **{arguments!r})"
    folder = tmp_path / "cut" / "train"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, start_new_session=True)
    wait_until(lambda: process.poll() is not None or len(list(folder.glob("0*.json"))) >= 5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not group_members(process.pid))  # the workers go with their parent, wherever they are
    made = len(list(folder.glob("0*.json")))
    assert 5 <= made < 60 and not (folder / "metadata.parquet").exists()
    again = make_world(tmp_path / "cut", **arguments)
    assert again.made == 60 - made
    assert contents(again.folder) == contents(make_world(tmp_path / "whole", **arguments).folder)


def test_make_world__refuses_a_second_run_on_the_split_and_lets_the_first_finish(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    monkeypatch.setattr(build, "LOCK_PATIENCE", 0.1)
    refused = []

    def second_run(done, total):
        if done == 2:
            with pytest.raises(LockedError, match="train: another run is writing to it; wait"):
                make_world(tmp_path, clips=4, workers=1, **SMALL)
            make_world(tmp_path, clips=2, split="test", workers=1, **SMALL)  # another split is free
            refused.append((tmp_path / "train").exists())

    first = make_world(tmp_path, clips=8, workers=2, progress=second_run, **SMALL)
    assert refused == [True] and first.made == 8
    assert make_world(tmp_path, clips=8, workers=1, **SMALL).made == 0
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_make_world__waits_for_a_run_that_is_about_to_end(tmp_path):
    pytest.importorskip("fcntl")
    (tmp_path / "world").mkdir()
    held, ended = threading.Event(), []

    def hold():
        with locked(tmp_path / "world" / ".train.lock", tmp_path):
            held.set()
            time.sleep(0.3)
            ended.append(True)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    make_world(tmp_path / "world", clips=1, workers=1, **SMALL)
    assert ended
    thread.join()


def test_make_world__goes_on_where_a_killed_run_left_its_lock_file(tmp_path):
    (tmp_path / ".train.lock").write_bytes(b"")
    assert make_world(tmp_path, clips=1, workers=1, **SMALL).made == 1
    assert not (tmp_path / ".train.lock").exists()


def test_make_world__reports_a_failing_worker_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    real = build.write_clip

    def fail(path, scene, options):
        real(path, scene, options)
        if scene.index == 6:
            raise OSError("disk full")

    monkeypatch.setattr(build, "write_clip", lambda *a: fail(*a) or real(*a))
    if sys.platform == "linux":  # elsewhere workers do not inherit the patched function
        with pytest.raises(WorkerError, match=r"OSError: disk full.*kept"):
            make_world(tmp_path, clips=12, workers=2, **SMALL)
    with pytest.raises(OSError, match="disk full"):
        make_world(tmp_path, clips=12, workers=1, **SMALL)
    names = set(contents(tmp_path / "train"))
    assert not [name for name in names if name.startswith(".")]
    assert "000006.json" not in names and "000006.mp4" not in names and "000005.json" in names


def test_make_world__reports_a_killed_worker(tmp_path, monkeypatch):
    if sys.platform != "linux":
        pytest.skip("workers inherit the patched function only where processes fork")

    def die(path, scene, options):
        os.kill(os.getpid(), signal.SIGKILL)

    make_world(tmp_path, clips=4, workers=1, **SMALL)
    monkeypatch.setattr(build, "write_clip", die)
    with pytest.raises(WorkerError, match="exit code -9.*run the same command again"):
        make_world(tmp_path, clips=12, workers=2, **SMALL)
    assert not (tmp_path / "train" / "metadata.parquet").exists()  # it would pass for that of the larger split


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "hard"}, "Unknown preset 'hard'; use one of semantic, temporal"),
        ({"preset": "temporal", "clips": 5}, "use 6"),
        ({"preset": "mixed", "clips": 7}, "use 8"),
        ({"preset": "semantic", "split": "test", "clips": 299}, "at most 298"),
        ({"clips": 0}, "at least one clip"),
        ({"size": 97}, "even width"),
        ({"size": 32}, "at least 48"),
        ({"fps": 2}, "fps must be in 5..120"),
        ({"seconds": 1.0}, "seconds must be in 3"),
        ({"split": "../up"}, "Split name"),
        ({"seed": -1}, "seed must be zero or more"),
        ({"echo": 2.0}, "echo must be in 0..1"),
        ({"noise_db": 5.0}, "noise_db must be"),
        ({"sampling_rate": 8000}, "sampling_rate must be"),
        ({"crf": 60}, "crf must be"),
        ({"audio_bitrate": 1}, "audio_bitrate must be"),
        ({"encoder_preset": "quick"}, "Unknown encoder_preset 'quick'; use one of ultrafast"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 1, got -1"),
    ],
)
def test_make_world__refuses_bad_options_before_writing(tmp_path, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_world(tmp_path / "out", **{"clips": 4, **SMALL, **settings})
    assert not (tmp_path / "out").exists()


def test_make_world__refuses_folders_of_others(tmp_path):
    make_world(tmp_path, clips=4, workers=1, **SMALL)
    with pytest.raises(DataError, match=r"other settings \(seed 0 -> 3\)"):
        make_world(tmp_path, clips=4, seed=3, **SMALL)
    with pytest.raises(DataError, match="already has more than 2 clips"):
        make_world(tmp_path, clips=2, **SMALL)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="no SyncWorld split"):
        make_world(tmp_path, clips=2, split="photos", **SMALL)
    note = tmp_path / "train" / "world.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "format_version": 1}))
    with pytest.raises(DataError, match=r"another version of SyncWorld \(format 1, this is 2\)"):
        make_world(tmp_path, clips=4, **SMALL)
    note.write_text("{")
    with pytest.raises(DataError, match="does not describe a SyncWorld split"):
        make_world(tmp_path, clips=4, **SMALL)


def test_make_world__keeps_a_readme_of_someone_else(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    make_world(tmp_path, clips=1, workers=1, **SMALL)
    assert (tmp_path / "README.md").read_text() == "mine"
