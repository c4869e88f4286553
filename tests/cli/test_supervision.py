"""A process that dies of a file costs that file; one that is interrupted says what is kept, and leaves no other."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cavmae_sync_hf
from cavmae_sync_hf import CavMaeSyncProcessor
from cavmae_sync_hf.data.crashes import CrashWatch, ended_readings, open_readings
from cavmae_sync_hf.hub import save_for_hub
from cavmae_sync_hf.model.errors_cavmae_sync import UnexpectedError
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from helpers.apart import group_members, run_apart, wait_until
from helpers.classifiers import make_classifier
from helpers.clips import noise, write_clip
from helpers.tiny import tiny_config

SOURCE = str(Path(cavmae_sync_hf.__file__).parents[1])
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only there a batch has a process of its own")

# A batch that reads the names it is given, three at a time where it may, and dies of some.
READING = """
import os, signal, sys, threading
import cavmae_sync_command
cavmae_sync_command.defer_registration = True
from cavmae_sync_hf.cli.supervision import run_supervised
from cavmae_sync_hf.data import crashes


def read(name, done, together):
    try:
        with crashes.reading(name):
            together.wait()
            if "crash" in name:
                signal.raise_signal(signal.SIGSEGV)
            if "kill" in name:
                os.kill(os.getpid(), signal.SIGKILL)
            if "leave" in name:
                os._exit(0)
            together.wait()
    except Exception as error:
        done.append(f"{error}")
    else:
        done.append(name)


def run():
    done, names = [], sys.argv[2:]
    if names == ["nothing"]:
        os.kill(os.getpid(), signal.SIGSEGV)
    while names:
        taken = [names.pop(0) for _ in range(1 if crashes.must_read_alone() else min(3, len(names)))]
        together = threading.Barrier(len([name for name in taken if name not in crashes._watch.fatal]) or 1)
        threads = [threading.Thread(target=read, args=(name, done, together)) for name in taken]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(*done, sep="\\n")
    sys.exit(7)


run_supervised(run, sys.argv[1:])
"""


def read_apart(tmp_path, *names: str) -> subprocess.CompletedProcess:
    return run_apart(["-c", READING, "index", *names], tmp_path, PYTHONPATH=SOURCE)


@pytest.mark.parametrize("how", ["crash", "kill", "leave"])
def test_batch__leaves_out_the_file_of_which_its_process_dies(tmp_path, how):
    done = read_apart(tmp_path, "a", "b 'x'\n日本", f"{how}.mp4", "c", "d")

    assert done.returncode == 7, done.stderr  # what the batch itself ends with
    cause = {"crash": "SIGSEGV", "kill": "SIGKILL: memory may have run out", "leave": "exit code 0"}[how]
    assert f"{how}.mp4: the process that read it died, 2 times ({cause})." in done.stdout
    told = [line for line in done.stdout.splitlines() if "died" not in line]
    assert sorted(told) == sorted(["a", "b 'x'", "日本", "c", "d"])
    assert done.stderr.count("another goes on") == 2


def test_batch__several_deadly_files_cost_themselves(tmp_path):
    done = read_apart(tmp_path, "crash-1", "crash-2", "a", "kill-3", "b")

    assert done.returncode == 7 and done.stdout.count("died") == 3
    assert [line for line in done.stdout.splitlines() if "died" not in line] == ["a", "b"]


def test_batch__that_dies_of_no_file_ends(tmp_path):
    done = read_apart(tmp_path, "nothing")

    assert done.returncode == 128 + signal.SIGSEGV
    assert "The process died (SIGSEGV) while it read no file." in done.stderr


def test_watch__notes_tell_what_was_being_read(tmp_path):
    with open(tmp_path / "notes", "w+b", buffering=0) as file:
        watch = CrashWatch(file.fileno(), frozenset({"a"}), {"bad": "it died."})
        with watch.reading("a"), watch.reading("b"):
            pass
        with pytest.raises(UnexpectedError, match="bad: it died."), watch.reading("bad"):
            pass
        with watch.reading("c"):
            notes = (tmp_path / "notes").read_text()
    assert open_readings(notes) == {"'c'"} and ended_readings(notes) == {"'a'", "'b'"} and not watch.suspects


# Commands, one after the other, whose processes die whenever they open a file named "bad", and once while they draw
# one named "odd". What is loaded before them is loaded once.
DYING = """
import json, os, pkgutil, signal, sys
import cavmae_sync_hf.evaluation, cavmae_sync_hf.inference, cavmae_sync_hf.inference.plots, cavmae_sync_hf.search
import cavmae_sync_hf.inference.video_overlay as overlay
for package in (cavmae_sync_hf.evaluation, cavmae_sync_hf.inference, cavmae_sync_hf.search):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        __import__(module.name)
from cavmae_sync_hf.cli import main, supervision
from cavmae_sync_hf.model.media_source_cavmae_sync import MediaSource


def die_at(owner, name, deadly):
    real = getattr(owner, name)

    def work(*values, **options):
        if deadly(values):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*values, **options)

    setattr(owner, name, work)


def drawn_first(values):
    if "odd" not in values[1] or os.path.exists("drawn"):
        return False
    open("drawn", "w").close()
    return True


die_at(MediaSource, "open", lambda values: "bad" in values[0].name)
die_at(overlay, "write_overlay_video", drawn_first)
supervision._can_fork = lambda: True
parent = os.getpid()
for name, words in json.load(open("commands")).items():
    for stream in (1, 2):
        os.dup2(os.open(f"{name}.{stream}", os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    sys.argv[1:] = words
    try:
        supervision.run_supervised(main, words)
    except SystemExit as error:
        sys.stdout.flush()
        if os.getpid() != parent:
            os._exit(error.code)
        open(f"{name}.code", "w").write(str(error.code))
"""


def run_dying(folder: Path, wanted: tuple[str, ...]) -> None:
    """Run commands over three videos, of one of which their processes die, in a folder."""
    names = ("0.mp4", "1_bad.mp4", "2_odd.mp4")
    (folder / "videos").mkdir()
    for number, name in enumerate(names):
        write_clip(folder / "videos" / name, seconds=1, audio=noise(1.0, seed=number))
    for name, each in (("both", CavMaeSyncForPreTraining(tiny_config())), ("classifier", make_classifier())):
        save_for_hub(each, CavMaeSyncProcessor.from_config(each.config), folder / name)
    commands = {
        "sync": ["sync", "videos", "--model", "both", "--hop", "0.25", "--max-offset", "0.5", "--out", "sync"],
        "classify": ["classify", "videos", "--model", "classifier"],
        "extract": [
            "extract",
            "videos",
            "extract",
            "--model",
            "both",
            "--window",
            "0.5",
            "--stride",
            "0.5",
            "--hop",
            "0.25",
        ],
        "index": ["index", "videos", "index", "--model", "both"],
        "prepare": ["prepare", "videos", "prepare", "--workers", "1", "--num-frames", "2"],
        "evaluate": ["evaluate", "retrieval", "both", "videos", "--num-workers", "0"],
        # Last, for it writes videos beside those that it is given.
        "localize": ["localize", "videos", "--model", "both", "--fps", "4", "--method", "cosine", "--out", "videos"],
    }
    as_json = {"sync", "localize", "classify"}
    (folder / "commands").write_text(
        json.dumps(
            {name: [*words, *["--json"] * (name in as_json)] for name, words in commands.items() if name in wanted}
        )
    )
    done = run_apart(["-c", DYING], folder, PYTHONPATH=SOURCE)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "commands",
    [
        ("sync", "localize"),
        pytest.param(("classify", "extract", "index", "prepare", "evaluate"), marks=pytest.mark.slow),
    ],
    ids=["with files", "others"],
)
def test_command__whose_process_dies_of_a_file_tells_of_all_others(tmp_path, commands):
    run_dying(tmp_path, commands)

    for command in commands:
        told = (tmp_path / f"{command}.2").read_text()
        left_out = [line for line in told.splitlines() if line.startswith("Left out:")]
        assert (tmp_path / f"{command}.code").read_text() == "1" and len(left_out) == 1, told
        assert "1_bad" in left_out[0] and "the process that read it died, 2 times" in left_out[0]
        last = told.splitlines()[-1]
        assert "2 " in last and " done, 1 left out" in last

    for command, kept in (("sync", 3), ("localize", 5), ("classify", 0)):
        if command not in commands:
            continue
        report = json.loads((tmp_path / f"{command}.1").read_text())
        name, found = ("clip", report["clips"]) if command == "classify" else ("video", report["videos"])
        assert [Path(each.get("clip") or each["source"]).stem for each in found] == ["0", "2_odd"]
        assert [Path(each[name]).stem for each in report["failed"]] == ["1_bad"]
        for each in found:
            files = each.get("files", [])
            paths = list(files.values()) if isinstance(files, dict) else files
            assert len(paths) == kept and all((tmp_path / path).is_file() for path in paths)
    # One that died when its file had some of its results.
    assert (tmp_path / "drawn").exists() == ("localize" in commands)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(40):
        if number < 2:
            write_clip(folder / f"{number:02d}.mp4", seconds=2, audio=noise(2.0, seed=number))
        else:
            os.link(folder / f"{number % 2:02d}.mp4", folder / f"{number:02d}.mp4")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    model = CavMaeSyncForPreTraining(tiny_config())
    return save_for_hub(
        model, CavMaeSyncProcessor.from_config(model.config), tmp_path_factory.mktemp("model") / "both"
    )


# Runs the command as the script does, with files that are slow to open, so that it is at work when it is interrupted.
SLOW = """
import sys, time
sys.argv = ["cavmae-sync", *sys.argv[1:]]
import av
real = av.open
av.open = lambda *words, **options: time.sleep(0.3) or real(*words, **options)
from cavmae_sync_command import main
if __name__ == "__main__":
    main()
"""
INTERRUPTIONS = {
    "prepare": ("are kept; run the same command again to go on.", ["--workers", "2", "--clips-per-shard", "2"]),
    "extract": ("are kept; run the same command again to go on.", ["--window", "1"]),
    "index": ("is kept; run the same command again to go on.", []),
    "evaluate": ("No results were written; run the command again.", ["--batch-size", "1", "--num-workers", "1"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", INTERRUPTIONS)
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "Ctrl-C"])
def test_interruption__tells_in_a_line_what_is_kept_and_ends_all_processes(videos, model, tmp_path, command, how):
    words, options = INTERRUPTIONS[command]
    out = tmp_path / "out"
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    each = {
        "prepare": ["prepare", videos, out],
        "extract": ["extract", videos, out, "--model", model],
        "index": ["index", videos, out, "--model", model],
        "evaluate": ["evaluate", "retrieval", model, videos, "--out", out],
    }[command]
    environment = os.environ | {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(tmp_path / "errors", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, script, *map(str, each), *options],
            stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True, text=True,
        )  # fmt: skip
    notes = {"prepare": out / ".prepare", "extract": out / ".extract", "index": out, "evaluate": tmp_path}[command]
    wait_until(lambda: process.poll() is not None or (notes.is_dir() and any(notes.iterdir())))
    time.sleep(3.0 if command != "evaluate" else 20.0)
    assert process.poll() is None, (tmp_path / "errors").read_text()
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(getattr(signal, how))
    process.wait(200)

    lines = (tmp_path / "errors").read_text().splitlines()
    assert process.returncode == (143 if how == "SIGTERM" else 130), lines
    assert "Traceback" not in "".join(lines)
    assert lines[-1].startswith("Terminated. " if how == "SIGTERM" else "Interrupted. ") and words in lines[-1]
    wait_until(lambda: not group_members(process.pid))


@pytest.mark.slow
def test_killed_parent__takes_its_child_with_it(videos, model, tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    words = ["extract", videos, tmp_path / "out", "--model", model, "--window", "1"]
    environment = os.environ | {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, script, *map(str, words)], env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: (tmp_path / "out" / ".extract").is_dir())

    process.kill()
    process.wait(200)
    wait_until(lambda: not group_members(process.pid))

    assert process.returncode == -signal.SIGKILL and not group_members(process.pid)


@pytest.mark.parametrize(("number", "code", "word"), [("SIGINT", 130, "Interrupted"), ("SIGTERM", 143, "Terminated")])
def test_script__ends_with_one_line_however_often_it_is_interrupted(tmp_path, number, code, word):
    script = (
        "import time\nfrom cavmae_sync_command import run_script\n"
        "def run():\n    print('at work', flush=True)\n    time.sleep(60)\n"
        "run_script(run, 'Checkpoints are kept.')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": SOURCE},
    )  # fmt: skip
    assert process.stdout.readline() == "at work\n"

    for _ in range(3):
        process.send_signal(getattr(signal, number))
    _, errors = process.communicate(timeout=60)

    assert process.returncode == code and errors == f"{word}. Checkpoints are kept.\n"
