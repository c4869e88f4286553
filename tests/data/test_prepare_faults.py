"""What fails for now ends a preparation, what fails for good is left out; and mixed sets load with `datasets`."""

import builtins
import csv
import errno
import http.server
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cavmae_sync_hf import DataError, MediaError, cli
from cavmae_sync_hf.data import fetching, packing
from cavmae_sync_hf.data import prepare as prepare_module
from cavmae_sync_hf.data.prepare import prepare
from cavmae_sync_hf.data.shards import read_shard
from cavmae_sync_hf.model.errors_cavmae_sync import Hint, MissingTrackError
from helpers.clips import noise, write_clip


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        write_clip(folder / f"{number}.mp4", seconds=1, audio=noise(1.0, seed=number))
    return folder


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(fetching, "_FETCH_PAUSE_SECONDS", 0.0)


def bad_rows(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "bad_clips.csv", newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def ids(summary) -> list[str]:
    return [clip.info["id"] for path in summary.index.paths for clip in read_shard(path)]


def run_cli(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(cli.terminal, "console", Console(width=300))
    monkeypatch.setattr(cli.terminal, "errors", Console(stderr=True, width=300))
    monkeypatch.setattr("sys.argv", ["cavmae-sync", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


class Server(http.server.ThreadingHTTPServer):
    """Serves files, with an answer of its own for the first requests of some."""

    answers: dict[str, list[int]]


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        answers = self.server.answers.get(self.path, [])  # type: ignore[attr-defined]
        if answers:
            self.send_error(answers.pop(0))
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(videos) -> Iterator[Server]:
    def handler(*arguments: object) -> Handler:
        return Handler(*arguments, directory=str(videos))  # type: ignore[arg-type]

    with Server(("127.0.0.1", 0), handler) as server:
        server.answers = {}
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_prepare__http_failure_costs_its_clip_until_a_second_run(server, tmp_path):
    base = f"http://127.0.0.1:{server.server_port}"
    source = [{"id": str(number), "path": f"{base}/{number}.mp4"} for number in range(3)]
    source.append({"id": "gone", "path": f"{base}/gone.mp4"})
    server.answers = {"/0.mp4": [503, 503], "/1.mp4": [503] * 3}

    summary = prepare(source, tmp_path / "out", workers=1, clips_per_shard=1)
    row = bad_rows(summary.folder)["1"]
    assert ids(summary) == ["0", "2"]  # 503 twice was tried again
    assert row["reason"] == "no access" and "1.mp4: cannot be fetched" in row["message"] and "503" in row["message"]
    assert not list((tmp_path / "out" / ".prepare").glob("*partial-*"))

    summary = prepare(source, tmp_path / "out", workers=1, clips_per_shard=1)
    assert summary.made == 1 and ids(summary) == ["0", "1", "2"]
    assert bad_rows(summary.folder)["gone"]["reason"] == "not found"


def test_prepare__server_that_is_down_ends_the_run(tmp_path):
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/x.mp4: cannot be fetched"):
        prepare([{"id": "x", "path": "http://127.0.0.1:9/x.mp4"}], tmp_path / "out", workers=1)


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT])
def test_prepare__clip_that_cannot_be_read_for_now_is_tried_again(videos, tmp_path, monkeypatch, code):
    real = builtins.open

    def fail(file, *arguments, **options):
        if str(file).endswith("1.mp4"):
            raise OSError(code, os.strerror(code))
        return real(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", fail)
    if code == errno.EMFILE:  # then no clip can be read
        with pytest.raises(DataError, match=rf"clip 1.mp4 cannot be read for now .*{os.strerror(code)}"):
            prepare(videos, tmp_path / "out", workers=1)
    else:
        summary = prepare(videos, tmp_path / "out", workers=1)
        row = bad_rows(summary.folder)["1"]
        assert ids(summary) == ["0", "2"] and row["reason"] == "no access"
        assert row["message"].startswith("1.mp4: cannot be read for now") and os.strerror(code) in row["message"]

    monkeypatch.undo()
    assert ids(prepare(videos, tmp_path / "out", workers=1)) == ["0", "1", "2"]


def test_prepare__disk_that_fails_for_ten_clips_in_a_row_ends_the_run(videos, tmp_path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise MediaError("reading breaks off")  # all that FFmpeg tells

    monkeypatch.setattr(packing, "decode_media", broken)
    monkeypatch.setattr(packing, "reading_fault", lambda paths: OSError(errno.EIO, "Input/output error"))

    many = [{"id": str(number), "path": str(videos / "0.mp4")} for number in range(12)]

    with pytest.raises(DataError, match="none of the 3 clips can be used .3 no access.*0.mp4.*Input/output error"):
        prepare(videos, tmp_path / "few", workers=1)
    with pytest.raises(DataError, match="10 clips in a row cannot be read for now.*Input/output error.*again"):
        prepare(many, tmp_path / "many", workers=1, clips_per_shard=12)


class OddError(Exception):
    """What nobody has thought of."""


def test_prepare__unexpected_error_costs_its_clip_and_is_told_with_its_place(videos, tmp_path, monkeypatch):
    def fail(self, record):
        if record.id == "1":
            raise OddError("oops")
        return decode(self, record)

    decode = packing.ClipPacker.decode
    monkeypatch.setattr(packing.ClipPacker, "decode", fail)
    summary = prepare(videos, tmp_path / "out", workers=1)

    row = bad_rows(summary.folder)["1"]
    (failure,) = summary.failures
    assert ids(summary) == ["0", "2"] and row["reason"] == "unexpected"
    assert "1.mp4: OddError: oops at test_prepare_faults.py:" in row["message"]
    assert failure.unexpected and failure.place.endswith(" fail")


def test_prepare__remedies_are_told_as_options_of_prepare(videos, tmp_path, monkeypatch):
    def refuse(file, *, name, **_: object) -> None:
        hints = (Hint("missing", "mask", "go on without it"), Hint("audio", "more.wav", "add it"))
        raise MissingTrackError(f"{name}: has no audio track.", "audio", hint=hints)

    monkeypatch.setattr(packing, "decode_media", refuse)
    with pytest.raises(DataError, match="none of the 3 clips can be used"):
        prepare(videos, tmp_path / "out", workers=1)

    row = bad_rows(tmp_path / "out")["1"]
    assert row["reason"] == "no audio"
    assert row["message"] == "1.mp4: has no audio track. Set the option missing to 'keep' to go on without it."


def test_prepare__full_disk_names_the_shard_and_leaves_nothing(videos, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare_module.ShardWriter, "finish", full)
    with pytest.raises(DataError, match=r"train-00000.tar: cannot be written .*No space left"):
        prepare(videos, tmp_path / "out", workers=1)
    assert not list((tmp_path / "out" / ".prepare").glob("*partial-*"))


class LeavingJob(prepare_module.ShardJob):
    """Fails and leaves what it was writing."""

    def __call__(self, task, begin=None, skip=None):
        (self.notes / "partial-left").write_text("half")
        raise KeyboardInterrupt


def test_prepare__interrupted_run_leaves_no_partial_files(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "ShardJob", LeavingJob)
    with pytest.raises(KeyboardInterrupt):
        prepare(videos, tmp_path / "out", workers=1)
    assert not list((tmp_path / "out" / ".prepare").glob("*partial-*"))


@pytest.mark.parametrize("address", ["s3://bucket/shards", "memory://set", "hf://datasets/a/b"])
def test_prepare__remote_out_is_refused(videos, tmp_path, monkeypatch, capsys, address):
    monkeypatch.chdir(tmp_path)

    assert run_cli(monkeypatch, "prepare", videos, address) == 1
    assert f"{address}: shards are written to a folder" in capsys.readouterr().err
    with pytest.raises(DataError, match="shards are written to a folder"):
        prepare(videos, Path(address))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names of any bytes")
@pytest.mark.parametrize("workers", [1, 2])
def test_prepare__file_name_that_is_not_utf8(videos, tmp_path, workers):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(videos / "0.mp4", os.fsencode(folder) + b"/lat\xe9.mp4")
    with open(os.fsencode(folder) + b"/bad\xe9.mp4", "w") as file:
        file.write("text")

    summary = prepare(folder, tmp_path / "out", workers=workers)

    assert ids(summary) == ["lat\\xe9"]
    assert bad_rows(summary.folder)["bad\\xe9"]["message"].startswith("bad\\xe9.mp4: is text")


def load_both_ways(folder: Path, split: str = "train", cache: Path | None = None) -> list[dict]:
    datasets = pytest.importorskip("datasets")
    streamed = list(datasets.load_dataset(str(folder), split=split, streaming=True))
    whole = list(datasets.load_dataset(str(folder), split=split, cache_dir=str(cache)))
    assert [row["__key__"] for row in whole] == [row["__key__"] for row in streamed]
    return streamed


def test_prepare__datasets_reads_labels_and_times_that_come_late(videos, tmp_path):
    rows = [{"id": f"{number}", "path": str(videos / f"{number % 3}.mp4")} for number in range(8)]
    rows[6] |= {"labels": [0, 2], "start": 0.25, "end": 1.0}

    prepare(rows, tmp_path / "out", workers=1)

    loaded = load_both_ways(tmp_path / "out", cache=tmp_path / "cache")
    assert [row["json"]["labels"] for row in loaded] == [[], [], [], [], [], [], [0, 2], []]
    assert loaded[6]["json"]["start"] == 0.25 and loaded[0]["json"]["start"] is None
    assert loaded[0]["frame_15.jpg"].size == (64, 48)
    assert np.asarray(loaded[0]["log_mel.npy"]).shape[1] == 128


@pytest.mark.parametrize("first", [True, False])
def test_prepare__datasets_reads_clips_without_frames(videos, tmp_path, first):
    folder = tmp_path / "in"
    shutil.copytree(videos, folder)
    name = "a" if not first else "+"  # "+" sorts before the digits
    write_clip(folder / f"{name}_sound.mp4", video=False, audio=noise(1.0))
    write_clip(folder / f"{name}_mute.mp4", audio=False)

    prepare(folder, tmp_path / "out", missing="keep", workers=1)

    loaded = {row["json"]["id"]: row for row in load_both_ways(tmp_path / "out", cache=tmp_path / "cache")}
    assert len(loaded) == 5 and loaded[f"{name}_sound"]["frame_00.jpg"] is None
    assert loaded["0"]["frame_00.jpg"].size == (64, 48)
    assert len(loaded[f"{name}_mute"]["log_mel.npy"]) == 0 and not loaded[f"{name}_mute"]["json"]["has_audio"]


def test_prepare__card_tells_how_to_load_and_check(videos, tmp_path):
    card = (prepare(videos, tmp_path / "out", name="my-set", workers=1).folder / "README.md").read_text()

    assert 'load_dataset("path/of/this/folder", split="my_set", streaming=True)' in card
    assert "check_shards" in card


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"name": "all"}, "name must not be 'all'"),
        ({"ray_address": "auto"}, "ray_address is for the engine 'ray'"),
        ({"max_seconds": float("nan")}, "max_seconds must be positive"),
        ({"split": "train"}, "has no use for the option `split`"),
        ({"media": "elsewhere"}, "has no use for the option `media`"),
    ],
)
def test_prepare__options_without_effect_are_refused(videos, tmp_path, option, words):
    with pytest.raises(ValueError, match=words):
        prepare(videos, tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


def test_prepare__folder_that_cannot_be_made_is_named(videos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/out: cannot be written"):
        prepare(videos, tmp_path / "file" / "out", workers=1)


def test_prepare__changed_file_is_noticed(videos, tmp_path):
    folder = shutil.copytree(videos, tmp_path / "in")
    prepare(folder, tmp_path / "out", workers=1)
    write_clip(folder / "1.mp4", seconds=2, audio=noise(2.0))

    with pytest.raises(DataError, match=r"1 changed \('1'\)"):
        prepare(folder, tmp_path / "out", workers=1)


def test_prepare__segment_mostly_outside_its_file_is_left_out(videos, tmp_path):
    path = str(videos / "0.mp4")  # 1 s
    source = [{"id": name, "path": path, "start": 0.5, "end": end} for name, end in (("most", 1.4), ("half", 2.5))]

    summary = prepare(source, tmp_path / "out", workers=1)

    assert ids(summary) == ["most"]
    assert bad_rows(summary.folder)["half"]["reason"] == "cut short"
    assert "of the 2 s from 0.5 s to 2.5 s" in bad_rows(summary.folder)["half"]["message"]


def test_prepare__braces_in_the_published_layout(videos, tmp_path):
    from PIL import Image

    folder = tmp_path / "da{ta}"
    folder.mkdir()
    write_clip(folder / "a.wav", video=False, audio=noise(1.0, channels=1), audio_codec="pcm_s16le")
    for number in range(2):
        (folder / f"frame_{number}").mkdir()
        Image.new("RGB", (64, 48)).save(folder / f"frame_{number}" / "x{0}{}.jpg")
    data = [{"video_id": "x{0}{}", "wav": "a.wav", "video_path": "."}]
    (folder / "list.json").write_text(json.dumps(data))

    summary = prepare(folder / "list.json", tmp_path / "out", workers=1, num_frames=2, alignment="reference")

    assert ids(summary) == ["x{0}{}"]


def test_prepare__command_line_reports_in_lines_without_a_terminal(videos, tmp_path, monkeypatch, capsys):
    assert run_cli(monkeypatch, "prepare", videos, tmp_path / "quiet", "--workers", 1, "--sampling-rate", 8000) == 0
    assert capsys.readouterr().err == ""

    monkeypatch.setattr(cli.terminal, "SECONDS_BETWEEN_LINES", 0.0)
    assert run_cli(monkeypatch, "prepare", videos, tmp_path / "out", "--workers", 1) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "preparing: 0 of 3" and lines[-1].startswith("preparing: 3 of 3, ")
    index = json.loads((tmp_path / "quiet" / "index.json").read_text())
    assert index["sampling_rate"] == 8000
