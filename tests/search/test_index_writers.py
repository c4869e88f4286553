"""Writers of an index: killed anywhere it stays whole, several at once do not harm it, also on a Ray cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import cavmae_sync_hf
from cavmae_sync_hf.search import ClipEntry, MomentStore, index_status
from cavmae_sync_hf.search import embedding as embedding_module
from cavmae_sync_hf.search import tables as tables_module
from cavmae_sync_hf.search.cluster import retry_after_death
from cavmae_sync_hf.search.tables import new_rows_name
from helpers.clips import noise, write_clip
from helpers.indexes import make_store, random_vectors, rows_of, same_rows

SOURCE = str(Path(cavmae_sync_hf.__file__).parents[1])


class _Killed(BaseException):
    """What no code catches."""


@pytest.mark.parametrize("step", ["append", "register", "_remove_rows", "optimise"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_index_videos__stopped_anywhere_is_whole_and_goes_on(folder, run, tmp_path, monkeypatch, step, when):
    monkeypatch.setattr(embedding_module, "_CLIPS_PER_COMMIT", 1)
    monkeypatch.setattr("cavmae_sync_hf.search.approximate._PIECES", 0)
    run(folder)
    write_clip(folder / "0.mp4", seconds=0.5)
    write_clip(folder / "2.mp4", seconds=0.5, audio=noise(0.5))
    real, calls = getattr(MomentStore, step), []

    def stop(self, *arguments, **options):
        if step != "append" and not list(arguments[0]):  # nothing to do
            return real(self, *arguments, **options)
        calls.append(step)
        if when == "before":
            raise _Killed
        real(self, *arguments, **options)
        raise _Killed

    if step == "optimise":
        stop = lambda self: (_ for _ in ()).throw(_Killed)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(MomentStore, step, stop)
        with pytest.raises(_Killed):
            run(folder)
    monkeypatch.setattr(tables_module, "_unfinished", set())  # the process that began them is no more

    index_status(tmp_path / "index", check=True)
    sizes = {name: len(rows) for name, rows in rows_of(tmp_path / "index").items()}
    assert sizes["0.mp4"] in (4, 2) and sizes["1.mp4"] == 6 and sizes["2.mp4"] in (8, 2)
    run(folder)
    assert {name: len(rows) for name, rows in rows_of(tmp_path / "index").items()} == {
        "0.mp4": 2,
        "1.mp4": 6,
        "2.mp4": 2,
    }
    store = MomentStore.open(tmp_path / "index")
    assert store.loose_rows() == [] and store.count() == 10


def test_sweep__leaves_what_others_are_writing(tmp_path):
    store = make_store(tmp_path / "index", {"/a.mp4": {"audio": random_vectors(3, 1)}})
    rows = next(iter(store.entries().values())).rows
    now, host = f"{int(time.time()):x}", tables_module._this_host()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {
        "ours, unfinished": (new_rows_name(), False),
        "of a process that lives": (f"{now}-{host}-{os.getppid():x}-aaaa", False),
        "of a process that died": (f"{now}-{host}-{gone.pid:x}-aaaa", True),
        "of another machine": (f"{now}-00000000-1-aaaa", False),
        "of another machine, long ago": (f"{int(time.time() - 90000):x}-00000000-1-aaaa", True),
        "of nobody": ("nonsense", True),
    }
    for name, _ in names.values():
        store.copy(rows, name)

    store.sweep()

    assert set(store.count_by_rows()) == {rows} | {name for name, swept in names.values() if not swept}


def test_register__of_two_writers_the_first_counts(tmp_path):
    store = make_store(tmp_path / "index", {"/a.mp4": {"audio": random_vectors(3, 1)}})
    other = MomentStore.open(tmp_path / "index")
    old = next(iter(store.entries().values()))
    one, two = (replace(old, rows=new_rows_name(), previous=old.rows) for _ in range(2))
    store.copy(old.rows, one.rows)
    other.copy(old.rows, two.rows)

    assert store.register([one]) == {old.key}
    assert other.register([two]) == set()

    assert other.entries()[old.key].rows == one.rows
    assert set(other.count_by_rows()) == {one.rows}


# Indexes a folder once a file says so. One that is to die stops when its first rows are written and before they count.
WRITER = """
import json, os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.search import MomentStore, embedding, index_videos

model, folder, index, begin, die = sys.argv[1:]


def wait(name):
    Path(name + ".reached").touch()
    while not os.path.exists(name):
        time.sleep(0.01)


def register(self, entries, real=MomentStore.register):
    if die and entries:
        wait(die)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, entries)


MomentStore.register = register
embedding._CLIPS_PER_COMMIT = 2
loaded = load_model(model)
wait(begin)
print(json.dumps(index_videos(folder, index, *loaded, hop=0.25).to_dict()))
"""


@pytest.fixture(scope="module")
def saved(loaded, tmp_path_factory) -> Path:
    model, processor = loaded
    place = tmp_path_factory.mktemp("model")
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place


def start_writer(*arguments: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITER, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(file: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_index_videos__several_writers_at_once_one_of_them_killed(saved, many, run, tmp_path, monkeypatch):
    index, begin, die = tmp_path / "together", tmp_path / "begin", tmp_path / "die"
    (tmp_path / "at-once").touch()
    monkeypatch.setattr(embedding_module, "_CLIPS_PER_COMMIT", 2)
    dying = start_writer(saved, many, index, tmp_path / "at-once", die)
    other = start_writer(saved, many, index, begin, "")
    wait_for(tmp_path / "die.reached", dying)
    wait_for(tmp_path / "begin.reached", other)
    begin.touch()
    here = run(many, index=index).to_dict()
    output, errors = other.communicate(timeout=120)
    left = MomentStore.open(index).loose_rows()
    die.touch()
    dying.communicate(timeout=120)

    assert (other.returncode, dying.returncode) == (0, -signal.SIGKILL), errors
    there = json.loads(output.splitlines()[-1])
    for summary in (here, there):
        assert summary["total_clips"] == 12 and not summary["bad"]
        assert summary["added"] + summary["others"] + summary["unchanged"] == 12
    # No clip was added twice, none is lost, and nobody took away what the third had not finished.
    assert here["added"] + there["added"] == 12
    assert len(left) == 2
    index_status(index, check=True)
    run(many)
    assert same_rows(rows_of(index), rows_of(tmp_path / "index"))
    assert run(many, index=index).unchanged == 12
    assert MomentStore.open(index).loose_rows() == []


def test_ray__a_clip_of_which_workers_die_is_tried_alone_and_then_bad():
    good, bad = ClipEntry("a", "", "/a.mp4"), ClipEntry("b", "", "/b.mp4")
    deaths: dict[str, int] = {}
    again: list = []

    assert list(retry_after_death([good, bad], deaths, again)) == [] and again == [[good], [bad]]
    for _ in range(2):
        assert list(retry_after_death([bad], deaths, again)) == [] and again.pop() == [bad]
    ((given_up,),) = retry_after_death([bad], deaths, again)

    assert given_up.key == "b" and "died" in given_up.problem and again == [[good], [bad]]


@pytest.mark.slow
def test_index_videos__over_ray(folder, run, tmp_path):
    pytest.importorskip("ray")
    (folder / "bad.mp4").touch()
    run(folder)

    summary = run(folder, index=tmp_path / "by-ray", engine="ray", workers=2)

    assert summary.added == 3 and len(summary.bad) == 1
    assert same_rows(rows_of(tmp_path / "by-ray"), rows_of(tmp_path / "index"))
