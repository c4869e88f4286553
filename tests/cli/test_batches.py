"""One bad file never ends a batch: whatever goes wrong with it, it is left out, named and counted."""

import errno
import itertools
import json
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from cavmae_sync_hf.model.errors_cavmae_sync import CavMaeSyncError, MediaError, UnexpectedError
from cavmae_sync_hf.model.media_source_cavmae_sync import MediaSource
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncModel
from helpers.clips import noise, write_clip

BAD = "1_bad.mp4"


class OddError(Exception):
    """What nobody has thought of."""


# What reading raises -> what the report says, and whether that is unexpected.
FAILURES = {
    "refused": (MediaError(f"{BAD}: is odd; fetch it again."), "is odd; fetch it again.", False),
    "codec": (IndexError("tuple index out of range"), "IndexError: tuple index out of range", True),
    "value": (ValueError("no such value"), "ValueError: no such value", True),
    "memory": (MemoryError(), "MemoryError at", True),
    "text": (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "UnicodeDecodeError", True),
    "odd": (OddError("oops"), "OddError: oops", True),
    "permission": (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied", False),
    "gone": (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), "not there", False),
    "stale": (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), os.strerror(errno.ESTALE), False),
    "timeout": (TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)), "timed out", False),
}
COMMANDS = ("prepare", "index", "extract", "evaluate", "sync", "classify")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(("0.mp4", BAD, "2.mp4", "3.mp4")):
        write_clip(folder / name, seconds=1, audio=noise(1.0, seed=number))
    return folder


def arguments(command: str, models: dict[str, Path], videos: Path, out: Path) -> list[object]:
    """A command over all videos."""
    each = sorted(videos.glob("*.mp4"))
    both, classifier = models["both"], models["classifier"]
    return {
        "prepare": ["prepare", videos, out, "--workers", 1, "--num-frames", 2],
        "index": ["index", videos, out, "--model", both],
        "extract": ["extract", videos, out, "--model", both, "--window", 0.5, "--stride", 0.5, "--hop", 0.25],
        "evaluate": ["evaluate", "retrieval", both, videos, "--out", out],
        "sync": ["sync", *each, "--model", both, "--hop", 0.25, "--max-offset", 0.5],
        "localize": ["localize", *each, "--model", both, "--fps", 4, "--method", "cosine"],
        "classify": ["classify", *each, "--model", classifier],
    }[command]


@pytest.fixture
def fail_on(monkeypatch):
    """Let the opening of the bad file raise an error."""
    real = MediaSource.open

    def install(error: BaseException) -> None:
        def open_or_fail(self, **options):
            if BAD in self.name:
                raise error
            return real(self, **options)

        monkeypatch.setattr(MediaSource, "open", open_or_fail)

    return install


@pytest.mark.parametrize(
    ("command", "kind"),
    [*itertools.product(COMMANDS, FAILURES), ("localize", "odd"), ("localize", "gone")],
)
def test_failure_of_one_file__costs_that_file(run, models, videos, tmp_path, fail_on, command, kind):
    error, words, unexpected = FAILURES[kind]
    fail_on(error)

    code, _, err = run(*arguments(command, models, videos, tmp_path / "out"))

    named = [line for line in err.splitlines() if line.startswith("Left out:")]
    assert code == 1 and len(named) == 1 and BAD.removesuffix(".mp4") in named[0] and words in named[0], err
    last = err.splitlines()[-1]
    assert "3 " in last and " done, 1 left out" in last
    assert ("1 of them by an unexpected error" in last) == unexpected
    assert (" at test_batches.py:" in named[0] and " open_or_fail" in named[0]) == unexpected


@pytest.fixture(scope="module")
def with_white(videos, tmp_path_factory) -> Path:
    """The same with a white video before them."""
    folder = shutil.copytree(videos, tmp_path_factory.mktemp("white") / "videos")
    write_clip(
        folder / "0_white.mp4", seconds=1, audio=noise(1.0), frame=lambda *_: np.full((48, 64, 3), 255, np.uint8)
    )
    return folder


@pytest.mark.parametrize("outcome", ["error", "nan"])
@pytest.mark.parametrize(
    ("command", "options"),
    [(command, ()) for command in COMMANDS[1:]] + [("evaluate", ("--batch-size", 1)), ("index", ("--batch-size", 1))],
)
def test_failure_of_the_model_at_one_file__costs_that_file(
    run, models, with_white, tmp_path, monkeypatch, command, options, outcome
):
    real = CavMaeSyncModel.check_inputs

    def check_inputs(self, pixel_values_videos, *others, **more):
        white = (pixel_values_videos > 1.9).flatten(2).all(dim=2)
        if outcome == "error" and white.any():
            raise RuntimeError("no kernel for white")
        broken = pixel_values_videos.masked_fill(white[:, :, None, None, None], torch.nan)
        return real(self, broken, *others, **more)

    monkeypatch.setattr(CavMaeSyncModel, "check_inputs", check_inputs)

    code, _, err = run(*arguments(command, models, with_white, tmp_path / "out"), *options)

    named = [line for line in err.splitlines() if line.startswith("Left out:")]
    words = {"error": "RuntimeError: no kernel for white at test_batches.py", "nan": "NaN or infinite"}[outcome]
    assert code == 1 and len(named) == 1 and "0_white" in named[0] and words in named[0], err
    last = err.splitlines()[-1]
    assert "4 " in last and " done, 1 left out" in last
    assert ("1 of them by an unexpected error" in last) == (outcome == "error")


@pytest.mark.parametrize(
    ("command", "options", "taken"),
    [
        ("index", (), True),
        ("extract", ("--missing", "mask"), True),
        ("extract", ("--modalities", "a"), True),
        ("extract", (), False),
        ("classify", ("--modality", "audio"), True),
        ("classify", (), False),
        ("sync", (), False),
        ("localize", (), False),
        ("prepare", (), False),
        ("evaluate", (), False),
    ],
)
def test_folder_of_audio__is_taken_where_audio_is_enough(run, models, tmp_path, command, options, taken):
    (tmp_path / "sounds").mkdir()
    for suffix, codec in ((".wav", "pcm_s16le"), (".flac", "flac")):
        write_clip(tmp_path / "sounds" / f"of{suffix}", seconds=1, video=False, audio=noise(1.0), audio_codec=codec)
    words = arguments(command, models, tmp_path / "sounds", tmp_path / "out")
    if command in ("sync", "localize", "classify"):
        words.insert(1, tmp_path / "sounds")

    code, out, err = run(*words, *options)

    assert code == (0 if taken else 1), err
    if not taken:
        assert "holds no clips with video, only audio (such as of.flac)" in err.replace("\n", " ")
    elif command == "classify":
        assert "of.flac" in out and "of.wav" in out
    else:
        assert (tmp_path / "out").is_dir() and "2" in out


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


# What happens to a file after it was listed -> what the report says.
HAPPENINGS = {
    "vanishes": (Path.unlink, "no such file"),
    "folder": (_become_folder, "is a folder"),
    "pipe": (_become_pipe, "is a pipe or a device"),
    "truncated": (_truncate, "truncated, corrupt or still being written"),
    # A file may also have been looked at by another thread and not opened when it changes.
    "emptied": (lambda path: path.write_bytes(b""), "is empty|truncated, corrupt"),
    "other": (lambda path: path.write_text("words " * 99), "is text|truncated, corrupt"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX files")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("happening", HAPPENINGS)
def test_file_that_changes_under_the_run__costs_that_file(
    run, models, videos, tmp_path, monkeypatch, command, happening
):
    folder = shutil.copytree(videos, tmp_path / "videos")
    change, words = HAPPENINGS[happening]
    real, todo, lock = MediaSource.__init__, [folder / BAD], threading.Lock()

    def change_and_init(self, source, name=None):
        with lock:  # another thread opens the file before the change or after it
            if BAD in str(source) and todo:
                change(todo.pop())
        real(self, source, name)

    monkeypatch.setattr(MediaSource, "__init__", change_and_init)

    code, _, err = run(*arguments(command, models, folder, tmp_path / "out"))

    named = [line for line in err.splitlines() if line.startswith("Left out:")]
    assert code == 1 and not todo and len(named) == 1 and re.search(words, named[0]), err
    assert "3 " in err.splitlines()[-1] and "unexpected" not in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX files")
@pytest.mark.parametrize("command", COMMANDS)
def test_pipes_and_devices__are_refused_and_not_waited_for(run, models, videos, tmp_path, command):
    folder = shutil.copytree(videos, tmp_path / "videos")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "zeros.mp4").symlink_to("/dev/zero")

    code, _, err = run(*arguments(command, models, folder, tmp_path / "out"))

    assert code == 1 and err.count("is a pipe or a device") == 2 and "4 " in err.splitlines()[-1]


@pytest.mark.parametrize("command", ["sync", "classify", "extract", "index"])
def test_json__tells_what_was_unexpected_and_where(run, models, videos, tmp_path, fail_on, command):
    fail_on(IndexError("tuple index out of range"))

    code, out, _ = run(*arguments(command, models, videos, tmp_path / "out"), "--json")

    told = json.loads(out)
    (entry,) = told.get("failures") or told["failed"]
    assert code == 1 and entry["unexpected"] and entry["place"].startswith("test_batches.py:")
    assert "IndexError" in entry["error"]


def test_index__tries_again_what_may_pass_but_not_what_was_refused(
    run, models, videos, tmp_path, fail_on, monkeypatch
):
    command = arguments("index", models, videos, tmp_path / "out")
    fail_on(PermissionError(errno.EACCES, "Permission denied"))
    assert run(*command)[0] == 1
    monkeypatch.undo()

    code, out, _ = run(*command)

    assert code == 0 and "1 added, 3 unchanged" in out
    fail_on(MediaError(f"{BAD}: is odd."))
    command[2] = tmp_path / "second"
    assert run(*command)[0] == 1
    monkeypatch.undo()
    assert run(*command)[0] == 1


def test_index_info__tells_an_unexpected_error(run, models, videos, tmp_path, fail_on):
    fail_on(IndexError("tuple index out of range"))
    run(*arguments("index", models, videos, tmp_path / "out"))

    _, out, _ = run("index-info", tmp_path / "out", "--files")

    assert "IndexError: tuple index out of range at test_batches.py:" in out


def test_python__of_one_file_raises_an_error_of_the_package(models, videos, fail_on):
    from cavmae_sync_hf.inference.sync import measure_sync
    from cavmae_sync_hf.loading import load_model

    fail_on(IndexError("tuple index out of range"))

    with pytest.raises(UnexpectedError, match="1_bad.mp4: IndexError") as caught:
        measure_sync(*load_model(models["both"], modalities="both"), videos / BAD, hop=0.25)
    assert isinstance(caught.value.__cause__, IndexError) and caught.value.place.endswith("open_or_fail")


@pytest.mark.parametrize("error", [MediaError(f"{BAD}: is odd."), IndexError("tuple index out of range")])
def test_python__batches_go_on_where_they_are_told_what_to_do_with_errors(models, videos, fail_on, error):
    from cavmae_sync_hf.inference.classify import classify
    from cavmae_sync_hf.inference.sync import score_alignment
    from cavmae_sync_hf.loading import load_model

    fail_on(error)
    files, told = sorted(videos.glob("*.mp4")), {}
    options = {"on_error": told.__setitem__}

    labels = classify(*load_model(models["classifier"], use="classification"), files, **options)
    assert len(labels) == 3 and list(told) == [str(videos / BAD)] and isinstance(told.popitem()[1], CavMaeSyncError)
    both = load_model(models["both"], modalities="both")
    scores = score_alignment(*both, files, hop=0.25, max_offset=0.5, **options)
    assert len(scores.videos) == 3 and list(told) == [str(videos / BAD)]
    with pytest.raises(CavMaeSyncError, match=BAD):
        score_alignment(*both, files, hop=0.25, max_offset=0.5)
