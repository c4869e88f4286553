"""Features of windows in files: whole or not at all, resumable, never mixed up, and whatever videos are called."""

import csv
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cavmae_sync_hf import CavMaeSyncModel, InferenceError, LockedError, save_for_hub
from cavmae_sync_hf.files import locked
from cavmae_sync_hf.inference.extract import ExtractionSummary, extract_features, extract_to_folder
from cavmae_sync_hf.inference.feature_folder import WORK_NAME, FeatureFolder
from cavmae_sync_hf.model.errors_cavmae_sync import printable
from helpers.apart import run_forked
from helpers.clips import noise, truncate, write_clip
from helpers.tiny import tiny_config

FPS = 4


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_folder__holds_arrays_a_timing_table_and_a_manifest(tiny, videos, tmp_path):
    shown: list[tuple] = []
    summary = extract_to_folder(
        *tiny, videos, tmp_path / "out", window=2, stride=1, progress=lambda *at: shown.append(at)
    )

    expected = extract_features(*tiny, videos, window=2, stride=1)
    assert sorted(contents(tmp_path / "out")) == ["a.npy", "av.npy", "manifest.json", "timing.csv", "v.npy"]
    for name, values in expected.features.items():
        stored = np.load(tmp_path / "out" / f"{name}.npy", mmap_mode="r")
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, values)
    table = read_table(tmp_path / "out" / "timing.csv")
    assert [int(row["row"]) for row in table] == list(range(len(expected)))
    assert [row["file"] for row in table] == ["0.mp4"] * 5 + ["1.mp4"] * 3 + ["2.mp4"] * 4
    assert [float(row["centre"]) for row in table] == [row["centre"] for row in expected.timing]
    assert [float(time) for time in table[1]["frame_times"].split(";")] == expected.timing[1]["frame_times"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["complete"] and manifest["rows"] == 12
    assert [(video["id"], video["first_row"], video["rows"]) for video in manifest["videos"]] == [
        ("0", 0, 5), ("1", 5, 3), ("2", 8, 4),
    ]  # fmt: skip
    assert manifest["identity"]["settings"]["audio_window"] == 0.48
    assert (summary.rows, summary.made, summary.failed) == (12, 3, {})
    assert shown[-1][:2] == (3, 3) and any("1.mp4 at 0:0" in remark for _, _, remark in shown)


def test_folder__as_parquet_reads_as_one_table(tiny, videos, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    extract_to_folder(*tiny, videos, tmp_path / "out", window=2, stride=1, format="parquet", modalities=["a", "v"])

    expected = extract_features(*tiny, videos, window=2, stride=1, modalities=["a", "v"])
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert len(parts) == 3
    np.testing.assert_array_equal(np.array([row["v"] for row in rows], dtype=np.float32), expected.features["v"])
    assert [row["frame_times"] for row in rows] == [row["frame_times"] for row in expected.timing]
    assert [row["audio_start"] for row in rows] == [row["audio_start"] for row in expected.timing]


def test_folder__that_is_complete_is_not_made_again(tiny, videos, tmp_path):
    extract_to_folder(*tiny, videos, tmp_path / "out", window=2)
    before = contents(tmp_path / "out")
    again = extract_to_folder(*tiny, videos, tmp_path / "out", window=2, batch_frames=5)

    assert again.made == 0 and again.rows == 12 and "all there already" in str(again)
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "v.npy").unlink()
    mended = extract_to_folder(*tiny, videos, tmp_path / "out", window=2)
    assert mended.made == 3 and contents(tmp_path / "out") == before


def read_features(folder: Path) -> dict[str, np.ndarray]:
    """All features of a folder of either format."""
    if (folder / "timing.csv").exists():
        return {path.stem: np.load(path) for path in folder.glob("*.npy")}
    import pyarrow.parquet as pq

    rows = [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    return {name: np.array([row[name] for row in rows]) for name in ("a", "v", "av")}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("format", "control"), [("npy", None), ("parquet", "scramble")])
def test_folder__goes_on_after_a_kill_in_the_middle_of_a_video(tiny, videos, tmp_path, format, control):
    out = tmp_path / "out"
    settings = {"format": format, "control": control, "window": 1, "stride": 1, "batch_frames": 2}

    def killed():
        add = FeatureFolder.add

        def add_until_killed(store, number, rows):
            def some():
                for place, row in enumerate(rows):
                    if number == 1 and place == 2:  # which of several videos is read first is a matter of chance
                        os.kill(os.getpid(), signal.SIGKILL)
                    yield row

            add(store, number, some())

        FeatureFolder.add = add_until_killed  # in this copy of the process alone
        summary = extract_to_folder(*tiny, videos, out, **settings)
        raise AssertionError(f"not killed: {summary}, failed: {summary.failed} {summary.errors}")

    status = run_forked(killed)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert not (out / "manifest.json").exists()
    assert list((out / WORK_NAME).glob("partial-*"))

    resumed = extract_to_folder(*tiny, videos, out, **settings)
    extract_to_folder(*tiny, videos, tmp_path / "whole", **settings)

    assert resumed.made == 2 and resumed.rows == 15
    whole = tmp_path / "whole"
    assert sorted(contents(out)) == sorted(contents(whole))
    assert json.loads((out / "manifest.json").read_text()) == json.loads((whole / "manifest.json").read_text())
    for name, values in read_features(whole).items():
        np.testing.assert_allclose(read_features(out)[name], values, atol=1e-6)


# Files that get their names in turn: the job, of each of three videos its rows and their note, then what is joined.
MOMENTS = {"job": 1, "rows": 2, "note": 3, "last note": 7, "joining": 8, "table": 9, "manifest": 10}


def killed_at(moment: int, before: bool, work: Callable[[], object]) -> int:
    """How a process of its own ends that does some work and kills itself when it gives a file its name."""
    rename, count = os.replace, 0

    def replace(old, new):
        nonlocal count
        count += 1
        if count == moment and before:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(old, new)
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def with_deadly_renames():
        os.replace = replace
        work()

    return run_forked(with_deadly_renames)


PLAIN = {"window": 2, "stride": 2, "modalities": ["a"]}


@pytest.fixture(scope="module")
def whole(tiny, videos, tmp_path_factory) -> ExtractionSummary:
    """What a run gives that is not killed."""
    return extract_to_folder(*tiny, videos, tmp_path_factory.mktemp("whole") / "out", **PLAIN)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_folder__killed_where_a_file_gets_its_name_goes_on_to_the_same_bytes(
    tiny, videos, whole, tmp_path, moment, before
):
    def work():
        return extract_to_folder(*tiny, videos, tmp_path / "out", **PLAIN)

    status = killed_at(moment, before, work)

    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert work().rows == whole.rows and contents(tmp_path / "out") == contents(whole.folder)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("seed", range(20))
def test_folder__killed_at_any_time_goes_on_to_the_same_bytes(tiny, videos, tmp_path, seed):
    def work(out: Path = tmp_path / "out"):
        return extract_to_folder(*tiny, videos, out, window=0.5, stride=0.25, hop=0.25)

    began = time.perf_counter()
    work(tmp_path / "whole")
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    time.sleep(random.Random(seed).uniform(0, time.perf_counter() - began))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    work()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 3}, "was begun with window=2.0, now it is 3.0"),
        ({"modalities": ["a"]}, "was begun with features=a, v, av, now it is a"),
        ({"control": "scramble"}, "was begun with control=None, now it is scramble"),
        ({"format": "parquet"}, "is in the format npy, not parquet"),
    ],
)
def test_folder__of_other_settings_is_refused(tiny, videos, tmp_path, change, words):
    extract_to_folder(*tiny, videos, tmp_path / "out", window=2)
    before = contents(tmp_path / "out")

    with pytest.raises(InferenceError, match=words):
        extract_to_folder(*tiny, videos, tmp_path / "out", **({"window": 2} | change))
    assert contents(tmp_path / "out") == before


def test_folder__of_another_model_or_list_is_refused(tiny, videos, tmp_path):
    model, processor = tiny
    extract_to_folder(model, processor, videos, tmp_path / "out", window=2)

    torch.manual_seed(1)
    with pytest.raises(InferenceError, match="features of another model"):
        extract_to_folder(CavMaeSyncModel(tiny_config()).eval(), processor, videos, tmp_path / "out", window=2)
    with pytest.raises(InferenceError, match="another list of videos"):
        extract_to_folder(model, processor, videos / "1.mp4", tmp_path / "out", window=2)


def test_folder__that_is_not_ours_is_left_alone(tiny, videos, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "manifest.json").write_text('{"name": "another tool"}')

    with pytest.raises(InferenceError, match="holds other files"):
        extract_to_folder(*tiny, videos, tmp_path)
    with pytest.raises(InferenceError, match="is a file"):
        extract_to_folder(*tiny, videos, tmp_path / "notes.txt")
    with pytest.raises(InferenceError, match="written to a folder here"):
        extract_to_folder(*tiny, videos, "s3://bucket/features")
    assert sorted(contents(tmp_path)) == ["manifest.json", "notes.txt"]


def test_folder__in_use_is_refused(tiny, videos, tmp_path):
    (tmp_path / "out" / WORK_NAME).mkdir(parents=True)
    with locked(tmp_path / "out" / WORK_NAME / "lock", tmp_path), pytest.raises(LockedError, match="another run"):
        extract_to_folder(*tiny, videos, tmp_path / "out")


HOSTILE = ("line\nbreak.mp4", "ünï 日本 [bold]*?.mp4", "-rf.mp4", "up..mp4", "quote\"',;.mp4")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, videos) -> Path:
    """A folder of videos with odd names, and of files that are none."""
    folder = tmp_path_factory.mktemp("mixed")
    for name in HOSTILE:
        (folder / name).write_bytes((videos / "1.mp4").read_bytes())
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:5,\n/etc/passwd\n")
    (folder / "archive.mp4").write_bytes(b"PK\x03\x04" + b"\0" * 64)
    (folder / "empty.mkv").write_bytes(b"")
    # With its header in front, so that half a file is half a video.
    whole = write_clip(
        folder / "cut.mp4", seconds=4, fps=FPS, audio=noise(4.0), container_options={"movflags": "faststart"}
    )
    truncate(whole, whole, 0.6)
    return folder


def test_folder__lists_bad_videos_and_keeps_the_good_ones(tiny, mixed, tmp_path):
    summary = extract_to_folder(*tiny, mixed, tmp_path / "out", window=2, stride=2)

    assert set(summary.failed) == {"playlist", "archive", "empty", "cut"}
    assert "playlist" in summary.failed["playlist"] and "ZIP" in summary.failed["archive"]
    assert summary.rows == 2 * len(HOSTILE)
    table = read_table(tmp_path / "out" / "timing.csv")
    assert {row["file"] for row in table} == {printable(name) for name in HOSTILE}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert not manifest["complete"] and manifest["failed"] == summary.failed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_folder__tries_bad_videos_again(tiny, videos, tmp_path):
    source = tmp_path / "videos"
    source.mkdir()
    (source / "0.mp4").write_bytes((videos / "0.mp4").read_bytes())
    (source / "1.mp4").write_bytes(b"\0" * (videos / "1.mp4").stat().st_size)
    first = extract_to_folder(*tiny, source, tmp_path / "out", window=2)
    assert list(first.failed) == ["1"] and first.made == 1
    (source / "1.mp4").write_bytes((videos / "1.mp4").read_bytes())
    second = extract_to_folder(*tiny, source, tmp_path / "out", window=2)

    assert second.made == 1 and not second.failed and second.rows == 8
    assert not (tmp_path / "out" / WORK_NAME).exists()


OLD_NAMES = {"audio_coverage": "sound_coverage", "audio_start": "sound_start", "audio_end": "sound_end"}


def as_version_1(folder: Path) -> None:
    """Rewrite the notes of a folder as version 1 of the format had them."""

    def older(identity: dict) -> None:
        settings = identity["settings"]
        identity["format_version"] = 1
        settings["sound"], settings["sound_window"] = settings.pop("audio_context"), settings.pop("audio_window")
        settings["features"] = {name: f"{text}, as it was called" for name, text in settings["features"].items()}

    for path in (folder / "manifest.json", folder / WORK_NAME / "job.json"):
        values = json.loads(path.read_text())
        older(values["identity"])
        if "videos" in values:
            values["films"] = values.pop("videos")
        path.write_text(json.dumps(values))
    for path in (folder / WORK_NAME).glob("part-*/timing.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        renamed = [{OLD_NAMES.get(name, name): value for name, value in row.items()} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in renamed))


def test_folder__begun_by_the_version_before_goes_on_under_its_names(tiny, videos, tmp_path):
    source = tmp_path / "videos"
    source.mkdir()
    (source / "0.mp4").write_bytes((videos / "0.mp4").read_bytes())
    (source / "1.mp4").write_bytes(b"\0" * (videos / "1.mp4").stat().st_size)
    out = tmp_path / "out"
    extract_to_folder(*tiny, source, out, window=2)
    as_version_1(out)
    (source / "1.mp4").write_bytes((videos / "1.mp4").read_bytes())
    resumed = extract_to_folder(*tiny, source, out, window=2)

    assert resumed.made == 1 and resumed.rows == 8
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["identity"]["format_version"] == 1 and "sound" in manifest["identity"]["settings"]
    assert [entry["id"] for entry in manifest["films"]] == ["0", "1"]
    expected = extract_features(*tiny, source, window=2)
    table = read_table(out / "timing.csv")
    assert [float(row["sound_end"]) for row in table] == pytest.approx([row["audio_end"] for row in expected.timing])
    np.testing.assert_array_equal(np.load(out / "v.npy"), expected.features["v"])
    assert extract_to_folder(*tiny, source, out, window=2).made == 0
    with pytest.raises(InferenceError, match="was begun with audio_context=around, now it is inside"):
        extract_to_folder(*tiny, source, out, window=2, audio_context="inside")


def test_source__without_videos_leaves_nothing_behind(tiny, mixed, tmp_path):
    (tmp_path / "nothing").mkdir()
    for source, words in (
        (tmp_path / "nothing", "holds no clips"),
        (tmp_path / "missing.mp4", "no such file or folder"),
        (mixed / "playlist.mp4", "never followed"),
        ([mixed / "archive.mp4", mixed / "empty.mkv"], "None of 2 videos could be used. The first: .*ZIP"),
        ([{"path": "../gone.mp4", "id": "x"}], "gone.mp4"),
    ):
        with pytest.raises(ValueError, match=words):
            extract_to_folder(*tiny, source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_folder__stays_whole_when_the_disk_is_full(tiny, videos, tmp_path, monkeypatch):
    from cavmae_sync_hf.inference import feature_folder

    def full(self, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_folder._NpyPart, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        extract_to_folder(*tiny, videos, tmp_path / "out", window=2)
    assert not list((tmp_path / "out" / WORK_NAME).glob("partial-*"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny) -> Path:
    return save_for_hub(*tiny, tmp_path_factory.mktemp("model") / "tiny")


def test_command__takes_several_features_in_a_row(run, saved, videos, tmp_path):
    code, out, _ = run(
        "extract", videos, tmp_path / "out", "--model", saved, "--window", 2, "--stride", 1,
        "--modalities", "a", "v", "av", "--layers", "1", "2", "--control", "scramble", "--json",
    )  # fmt: skip

    assert code == 0
    summary = json.loads(out)
    assert list(summary["features"]) == [
        "a", "v", "av", "a_layer_01", "v_layer_01", "a_layer_02", "v_layer_02",
    ]  # fmt: skip
    assert summary["rows"] == 12 and (tmp_path / "out" / "pairing.json").is_file()


def test_command__takes_the_earlier_name_of_an_option_with_a_note(run, saved, videos, tmp_path):
    code, _, err = run("extract", videos, tmp_path / "out", "-m", saved, "--window", 2, "--sound", "inside")

    assert code == 0 and "--sound is now called --audio-context" in err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["identity"]["settings"]["audio_context"] == "inside"


def test_command__says_what_was_written_and_what_was_left_out(run, saved, mixed, tmp_path):
    code, out, err = run("extract", mixed, tmp_path / "out", "-m", saved, "--window", "2")

    assert code == 1
    assert "15 windows of 5 videos; a (32), v (32), av (32); 5 videos read" in out
    assert err.count("Left out:") == 4 and "--damaged keep" in err
    code, out, _ = run("extract", mixed, tmp_path / "kept", "-m", saved, "--window", "1", "--damaged", "keep")
    assert code == 1 and "of 6 videos" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["SOURCE", "OUT"], 2, "Missing option '--model'"),
        (["SOURCE", "OUT", "-m", "MODEL", "more"], 2, "too many: 'more'"),
        (["SOURCE", "OUT", "-m", "MODEL", "--modalities", "x"], 1, "'x' is no feature"),
        (["SOURCE", "OUT", "-m", "MODEL", "--layers", "first"], 2, "whole numbers, got 'first'"),
        (["SOURCE", "OUT", "-m", "MODEL", "--window", "0"], 1, "`window` is 0.0"),
        (
            ["SOURCE", "OUT", "-m", "MODEL", "--window", "0.2", "--audio-context", "inside"],
            1,
            "Add --audio-context around",
        ),
        (["SOURCE", "OUT", "-m", "OUT"], 1, "is not a folder"),
        (["gone.mp4", "OUT", "-m", "MODEL"], 1, "gone.mp4: no such file"),
        (["SOURCE", "OUT", "-m", "MODEL", "--device", "foo"], 2, "'foo' is no device"),
    ],
)
def test_command__wrong_arguments(run, saved, videos, tmp_path, arguments, code, words):
    places = {"SOURCE": videos, "OUT": tmp_path / "out", "MODEL": saved}
    given, out, err = run("extract", *(places.get(word, word) for word in arguments))

    assert given == code and not out
    assert words in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
