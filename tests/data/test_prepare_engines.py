"""A preparation may be killed at any moment; processes may die; a cluster may do the work: the bytes stay the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import cavmae_sync_hf
from cavmae_sync_hf import WorkerError
from cavmae_sync_hf.data import prepare as prepare_module
from cavmae_sync_hf.data.engines import run_processes, run_ray
from cavmae_sync_hf.data.prepare import PrepareSummary, ShardTask, prepare
from cavmae_sync_hf.data.sources import ClipRecord
from helpers.clips import noise, write_clip

SOURCE = str(Path(cavmae_sync_hf.__file__).parents[1])

# For every moment: a process that prepares a new folder and kills itself then (when it adds its n-th clip to a shard,
# or before or after it renames a file), and one that resumes it. Ends with the first that lives.
KILLED_EVERYWHERE = """
import os, signal, sys
from cavmae_sync_hf.data import shards
from cavmae_sync_hf.data.prepare import prepare

source, out = sys.argv[1:]


def run(folder, moment):
    count = 0

    def step():
        nonlocal count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def replace(old, new, rename=os.replace):
        step()
        rename(old, new)
        step()

    def add(self, key, members, add=shards.ShardWriter.add):
        place = add(self, key, members)
        self._file.flush()
        step()
        return place

    child = os.fork()
    if not child:
        os.replace, shards.ShardWriter.add = replace, add
        texts = os.path.dirname(source) + "/texts.csv"
        prepare(source, folder, spans=texts, clips_per_shard=2, workers=1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


moment = 1
while status := run(f"{out}/{moment}", moment):
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    assert run(f"{out}/{moment}", 0) == 0
    moment += 1
"""

RUN = """
import sys
from cavmae_sync_hf.data.prepare import prepare

if __name__ == "__main__":
    prepare(sys.argv[1], sys.argv[2], clips_per_shard=2, workers=2)
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        write_clip(folder / f"{number}.mp4", seconds=1, audio=noise(1.0, seed=number))
    (folder / "3_bad.mp4").write_text("no video")
    rows = [f"{name}.mp4,0.25,0.5,word {name} é\n{name}.mp4,,,a sentence\n" for name in (*range(5), "3_bad")]
    (folder / "texts.csv").write_text("file,start,end,text\n" + "".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory) -> dict[str, bytes]:
    """The files of a run without interruption."""
    return files_of(make(videos, tmp_path_factory.mktemp("whole") / "out", workers=1).folder)


def make(videos: Path, out: Path, **options: Any) -> PrepareSummary:
    """Prepare the videos with what is said of them, in shards of two clips."""
    return prepare(videos, out, spans=videos / "texts.csv", clips_per_shard=2, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_prepare__killed_at_every_moment_resumes_to_the_same_bytes(videos, tmp_path):
    source = f"{videos}/[123]*.mp4"  # four clips, one of them bad
    command = [sys.executable, "-c", KILLED_EVERYWHERE, source, str(tmp_path / "killed")]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": SOURCE}, check=True, timeout=200)

    texts = videos / "texts.csv"
    whole = files_of(prepare(source, tmp_path / "whole", spans=texts, clips_per_shard=2, workers=1).folder)
    folders = list((tmp_path / "killed").iterdir())
    assert len(folders) > 20
    for folder in folders:
        assert files_of(folder) == whole, folder
    assert "word 1 é".encode() in whole["clips.jsonl"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_prepare__killed_with_its_workers_resumes_to_the_same_bytes(videos, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for number in range(60):
        os.link(videos / f"{number % 5}.mp4", many / f"{number:02d}.mp4")
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = os.environ | {"PYTHONPATH": SOURCE}
    process = subprocess.Popen([sys.executable, script, many, tmp_path / "out"], env=environment)
    notes = tmp_path / "out" / ".prepare"
    limit = time.monotonic() + 120
    while len(list(notes.glob("shard-*"))) < 3:
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(notes.glob("shard-*")))

    assert not (tmp_path / "out" / "index.json").exists()
    summary = prepare(many, tmp_path / "out", clips_per_shard=2, workers=2)
    reference = prepare(many, tmp_path / "reference", clips_per_shard=2, workers=1)
    assert 0 < summary.made <= 60 - 2 * done and summary.index.clips == 60
    assert files_of(tmp_path / "out") == files_of(tmp_path / "reference") and len(reference.index.shards) == 30


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_prepare__killed_worker_costs_its_clip(videos, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "ShardJob", DeadlyJob)

    summary = make(videos, tmp_path / "out", workers=2)

    assert summary.index.clips == 4 and summary.reasons == {"crash": 1, "unreadable": 1}
    (lost,) = [failure for failure in summary.failures if failure.unexpected]
    assert "2.mp4: the process that read it was ended by SIGKILL, 2 times; memory may have run out" in lost.reason
    # Memory that ran out says nothing for good, so the next run tries the clip again.
    monkeypatch.undo()
    again = make(videos, tmp_path / "out", workers=1)
    assert again.made == 2 and files_of(again.folder) == whole


class CrashingJob(prepare_module.ShardJob):
    """Crashes of the clip "2", as a decoder might."""

    signal = signal.SIGSEGV

    def __call__(self, task, begin=None, skip=None):
        def begin_and_crash(place: int) -> None:
            if begin is not None:
                begin(place)
            if task.records[place].id == "2" and place not in (skip or {}):
                os.kill(os.getpid(), self.signal)

        return super().__call__(task, begin_and_crash, skip)


class DeadlyJob(CrashingJob):
    """Is killed at the clip "2", as where memory ends."""

    signal = signal.SIGKILL


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_prepare__clip_that_crashes_the_decoder_is_left_out(videos, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "ShardJob", CrashingJob)

    summary = make(videos, tmp_path / "out", workers=2)

    report = (summary.folder / "bad_clips.csv").read_text()
    assert summary.index.clips == 4 and summary.reasons == {"crash": 1, "unreadable": 1}
    assert "2,2,2.mp4,crash,2.mp4: the decoder crashes on it (SIGSEGV)" in report
    assert files_of(summary.folder)["train-00000.tar"] == whole["train-00000.tar"]


def tasks(count: int) -> list[ShardTask]:
    return [ShardTask(number, number, (ClipRecord(str(number), ""),)) for number in range(count)]


def raise_in_third(task, begin, skip):
    begin(0)
    if task.number == 2:
        raise OSError("No space left on device")
    return task.number


def test_run_processes__error_of_the_function_ends_the_run():
    with pytest.raises(WorkerError, match=r"OSError: No space left on device \(at test_prepare_engines.py:"):
        list(run_processes(raise_in_third, tasks(6), 2))


def stop_in_third(task, begin, skip):
    begin(0)
    if task.number == 2:
        raise WorkerError("The clip 2.mp4 cannot be read for now.")
    return task.number


def test_run_processes__own_errors_keep_their_words():
    with pytest.raises(WorkerError, match=r"^The clip 2.mp4 cannot be read for now\.$"):
        list(run_processes(stop_in_third, tasks(6), 2))


def die_of_all(task, begin, skip):
    begin(0)
    os._exit(3)


def test_run_processes__where_all_processes_die_it_is_not_the_items():
    with pytest.raises(WorkerError, match="die of one clip after the other, the last time by exit code 3"):
        list(run_processes(die_of_all, tasks(30), 2))


def wait_in_second(task, begin, skip):
    begin(0)
    if task.number == 1 and not skip:
        time.sleep(60)
    return task.number, dict(skip)


def test_run_processes__item_that_never_comes_is_left_out():
    results = dict(run_processes(wait_in_second, tasks(3), 2, stalled_after=0.5))

    assert set(results) == {0, 1, 2} and results[0] == results[2] == {}
    assert "nothing came of it for 0.5 s" in results[1][0]


def double(task, begin, skip):
    begin(0)
    return 2 * task.number


def test_run_processes__every_task_once():
    assert sorted(run_processes(double, tasks(9), 3)) == [2 * number for number in range(9)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::UserWarning:ray")
def test_prepare__ray_gives_the_same_bytes(videos, whole, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", SOURCE)

    summary = make(videos, tmp_path / "out", workers=2, engine="ray")
    (summary.folder / "train-00001.tar").unlink()
    again = make(videos, tmp_path / "out", workers=2, engine="ray")

    assert again.made == 2
    assert files_of(summary.folder) == whole


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::UserWarning:ray")
def test_prepare__clip_that_crashes_rays_workers_is_left_out(videos, whole, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((SOURCE, *map(str, Path(__file__).parents[:2]))))
    monkeypatch.setattr(prepare_module, "ShardJob", CrashingJob)

    summary = make(videos, tmp_path / "out", workers=2, engine="ray")

    assert summary.index.clips == 4 and summary.reasons == {"crash": 1, "unreadable": 1}
    assert [failure.reason for failure in summary.failures if failure.unexpected] == [
        "2.mp4: the decoder crashes on it (SIGSEGV)"
    ]
    assert files_of(summary.folder)["train-00000.tar"] == whole["train-00000.tar"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::UserWarning:ray")
def test_run_ray__error_of_the_function_ends_the_run(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((SOURCE, *map(str, Path(__file__).parents[:2]))))

    with pytest.raises(WorkerError, match="Ray gave up: No space left on device"):
        list(run_ray(raise_at_once, tasks(2), 2))


def raise_at_once(task, begin, skip):
    raise OSError("No space left on device")
