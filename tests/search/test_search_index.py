"""An index is the image of its files: kept up to date, whole after kills, right with two writers, clear in refusal."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lancedb
import numpy as np
import pytest
import torch

import cavmae_sync_hf
from cavmae_sync_hf import CavMaeSyncForPreTraining, CavMaeSyncModel, CavMaeSyncProcessor, DataError, SearchError
from cavmae_sync_hf.search import ClipEntry, MomentStore, SearchFilters, index_status, index_videos, search
from cavmae_sync_hf.search import embedding as embedding_module
from cavmae_sync_hf.search import indexing as indexing_module
from cavmae_sync_hf.search import tables as tables_module
from cavmae_sync_hf.search.cluster import _after_death
from cavmae_sync_hf.search.store import MOMENTS
from cavmae_sync_hf.search.tables import as_matrix, new_rows_name
from helpers.clips import corrupt, noise, truncate, write_clip
from helpers.little_index import little_settings, make_store, random_vectors
from helpers.tiny import tiny_config

SOURCE = str(Path(cavmae_sync_hf.__file__).parents[1])
HOP = 0.25
# Cosines of vectors that were rounded to half precision.
HALF = 2e-3


@pytest.fixture(scope="module")
def loaded():
    torch.manual_seed(0)
    model = CavMaeSyncModel(tiny_config()).eval()
    return model, CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Three clips of one to two seconds."""
    folder = tmp_path_factory.mktemp("media")
    for seed, seconds in enumerate((1.0, 1.5, 2.0)):
        write_clip(folder / f"{seed}.mp4", seconds=seconds, audio=noise(seconds, seed=seed))
    return folder


@pytest.fixture
def folder(media, tmp_path) -> Path:
    return Path(shutil.copytree(media, tmp_path / "films"))


@pytest.fixture
def run(loaded, tmp_path):
    """Index a source into this test's index."""

    def run(source, **options):
        return index_videos(source, options.pop("index", tmp_path / "index"), *loaded, **({"hop": HOP} | options))

    return run


def rows_of(index: Path | MomentStore) -> dict[str, list[tuple]]:
    """All that counts, by file name: window, start, end, and the two vectors."""
    store = index if isinstance(index, MomentStore) else MomentStore.open(index)
    names = {entry.rows: Path(entry.path).name for entry in store.entries().values() if entry.rows}
    found: dict[str, list[tuple]] = {name: [] for name in names.values()}
    for batch in store.scan(["rows", "window", "start", "end", "time", "loudness", "audio", "video"]):
        for row in batch.to_pylist():
            if row["rows"] in names:
                found[names[row["rows"]]].append(tuple(row.values())[1:])
    return {name: sorted(rows, key=lambda row: row[0]) for name, rows in found.items()}


def same_rows(one: dict, other: dict) -> bool:
    """Equal but for what the order of batches does to the last bits."""
    if {name: [row[:5] for row in rows] for name, rows in one.items()} != {
        name: [row[:5] for row in rows] for name, rows in other.items()
    }:
        return False
    return all(
        np.allclose(a[side], b[side], atol=HALF)
        for name in one
        for a, b in zip(one[name], other[name], strict=True)
        for side in (5, 6)
    )


def test_index_videos__one_row_per_moment_with_times_and_vectors(loaded, folder, run, tmp_path):
    summary = run(folder)

    assert (summary.added, summary.moments, summary.total_clips, summary.bad) == (3, 18, 3, {})
    rows = rows_of(tmp_path / "index")
    assert {name: len(found) for name, found in rows.items()} == {"0.mp4": 4, "1.mp4": 6, "2.mp4": 8}
    assert [row[:3] for row in rows["1.mp4"][:2]] == [(0, 0.0, 0.25), (1, 0.25, 0.5)]
    model, processor = loaded
    batch = next(processor.stream(folder / "2.mp4", hop=HOP, num_frames=8))
    with torch.inference_mode():
        output = model(**batch)
    np.testing.assert_allclose([row[5] for row in rows["2.mp4"]], output.audio_embeds[0], atol=HALF)
    np.testing.assert_allclose([row[6] for row in rows["2.mp4"]], output.video_embeds[0], atol=HALF)
    assert [row[3] for row in rows["2.mp4"]] == pytest.approx(batch["frame_times"][0].tolist())
    # Noise of -20 dB at 48 kHz, of which a third of the band is left at 16 kHz.
    assert [row[4] for row in rows["2.mp4"]] == pytest.approx([-20 - 10 * np.log10(3)] * 8, abs=1.0)
    entry = next(iter(MomentStore.open(tmp_path / "index").entries().values()))
    assert entry.has_audio and entry.has_video and entry.content.startswith("sha256:")
    assert entry.size == Path(entry.path).stat().st_size and entry.mtime_ns == Path(entry.path).stat().st_mtime_ns
    ends = sorted(entry.end for entry in MomentStore.open(tmp_path / "index").entries().values())
    assert ends == pytest.approx([1.0, 1.5, 2.0], abs=0.05)  # whole frames


def test_index_videos__then_a_search_finds_each_moment_again(loaded, folder, run, tmp_path):
    run(folder)

    for name, start in (("0.mp4", 0.25), ("2.mp4", 1.0)):
        result = search(tmp_path / "index", folder / name, *loaded, by="both", start=start, end=start + 0.75, top=1)
        assert (Path(result[0].path).name, result[0].start, result[0].end) == (name, start, start + 0.75)
        assert result[0].score == pytest.approx(1, abs=HALF)


def test_index_videos__reads_only_what_is_new_or_changed(folder, run, tmp_path, monkeypatch):
    run(folder)
    before = rows_of(tmp_path / "index")
    read: list[str] = []
    stream = CavMaeSyncProcessor.stream

    def watched(self, video, *arguments, **options):
        read.append(Path(video).name)
        return stream(self, video, *arguments, **options)

    monkeypatch.setattr(CavMaeSyncProcessor, "stream", watched)

    again = run(folder)
    assert (again.unchanged, again.moments, read) == (3, 0, [])

    os.utime(folder / "0.mp4", (1, 1))  # touched, and the same content
    write_clip(folder / "1.mp4", seconds=1.0, audio=noise(1.0, seed=9))
    write_clip(folder / "new.mp4", seconds=0.5)
    (folder / "2.mp4").unlink()
    summary = run(folder)

    assert (summary.added, summary.changed, summary.unchanged, summary.removed) == (1, 1, 1, 1)
    assert sorted(read) == ["1.mp4", "new.mp4"]
    after = rows_of(tmp_path / "index")
    assert sorted(after) == ["0.mp4", "1.mp4", "new.mp4"] and len(after["1.mp4"]) == 4
    assert after["0.mp4"] == before["0.mp4"]
    store = MomentStore.open(tmp_path / "index")
    assert store.count() == 4 + 4 + 2 and store.loose_rows() == []
    touched = store.with_vectors(list(store.entries()))
    assert {entry.mtime_ns for entry in touched.values() if entry.path.endswith("0.mp4")} == {10**9}
    assert all(entry.audio is not None and entry.video is not None for entry in touched.values())
    read.clear()
    run(folder)
    assert read == []


def test_index_videos__moved_files_keep_their_rows(folder, run, tmp_path, monkeypatch):
    run(folder)
    before = rows_of(tmp_path / "index")
    (folder / "0.mp4").rename(folder / "moved.mp4")
    # Two that swap their names.
    (folder / "1.mp4").rename(folder / "x")
    (folder / "2.mp4").rename(folder / "1.mp4")
    (folder / "x").rename(folder / "2.mp4")
    monkeypatch.setattr(indexing_module, "embed_clips", lambda *arguments: pytest.fail("nothing needs the model"))

    summary = run(folder)

    assert (summary.copied, summary.added, summary.changed, summary.removed) == (3, 1, 2, 1)
    after = rows_of(tmp_path / "index")
    assert after["moved.mp4"] == before["0.mp4"] and after["1.mp4"] == before["2.mp4"]
    assert after["2.mp4"] == before["1.mp4"]


def test_index_videos__bad_files_are_listed_and_not_fatal(folder, run, tmp_path, media):
    (folder / "archive.mp4").write_bytes(b"PK\x03\x04" + bytes(100))
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video")
    truncate(media / "2.mp4", folder / "truncated.mp4")
    corrupt(media / "2.mp4", folder / "corrupt.mp4")

    summary = run(folder)

    assert summary.added == 3
    reasons = {Path(path).stem: reason for path, reason in summary.bad.items()}
    assert set(reasons) == {"archive", "playlist", "empty", "text", "truncated", "corrupt"}
    assert "ZIP" in reasons["archive"] and "playlist" in reasons["playlist"] and "0 bytes" in reasons["empty"]
    assert set(rows_of(tmp_path / "index")) == {"0.mp4", "1.mp4", "2.mp4"}
    assert MomentStore.open(tmp_path / "index").loose_rows() == []
    # Again they are named, without being opened; mended, they are indexed.
    shutil.copy(media / "0.mp4", folder / "empty.mp4")
    again = run(folder)
    assert len(again.bad) == 5 and again.added == 1 and again.unchanged == 3


def test_index_videos__bad_files_can_be_tried_again(folder, run):
    truncate(write_clip(folder / "2.mkv", seconds=2.0, audio=noise(2.0)), folder / "2.mkv")
    assert len(run(folder).bad) == 1

    assert len(run(folder, damaged="keep").bad) == 1
    summary = run(folder, damaged="keep", retry_bad=True)

    assert (summary.bad, summary.added) == ({}, 1)


def test_index_videos__clips_without_sound_or_picture_have_the_other(loaded, run, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    write_clip(folder / "mute.mp4", seconds=1.0, audio=False)
    write_clip(folder / "blind.mkv", seconds=1.0, video=False, audio=noise(1.0))
    run(folder)

    entries = {Path(entry.path).stem: entry for entry in MomentStore.open(tmp_path / "index").entries().values()}
    assert (entries["mute"].has_audio, entries["mute"].has_video) == (False, True)
    assert (entries["blind"].has_audio, entries["blind"].has_video) == (True, False)
    sounds = search(tmp_path / "index", folder / "blind.mkv", *loaded, find="sound")
    pictures = search(tmp_path / "index", folder / "mute.mp4", *loaded, find="picture")
    assert {Path(hit.path).stem for hit in sounds} == {"blind"}
    assert {Path(hit.path).stem for hit in pictures} == {"mute"}


def test_index_videos__long_clips_wait_in_a_file_and_batches_cross_clips(folder, run, tmp_path, monkeypatch):
    run(folder, batch_size=1000, decoders=3)
    monkeypatch.setattr(embedding_module, "_BLOCK_ROWS", 3)

    run(folder, index=tmp_path / "spilled", batch_size=1, decoders=1)

    assert same_rows(rows_of(tmp_path / "index"), rows_of(tmp_path / "spilled"))


def test_index_videos__thumbnails(folder, run, loaded, tmp_path):
    run(folder, thumbnails=32)

    hit = search(tmp_path / "index", folder / "1.mp4", *loaded, find="picture", by="picture")[0]

    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(hit.thumbnail)) as picture:
        assert picture.size == (32, 24)


def test_index_videos__segments_of_a_list(folder, run, loaded, tmp_path):
    rows = [
        {"path": str(folder / "2.mp4"), "start": 0.5, "end": 1.0, "id": "first"},
        {"path": str(folder / "2.mp4"), "start": 1.0, "end": 2.0, "id": "second"},
        {"path": str(folder / "nothing.mp4"), "id": "third"},
    ]

    summary = run(rows)

    assert summary.added == 2 and "no such file" in summary.bad[str(folder / "nothing.mp4")]
    entries = sorted(MomentStore.open(tmp_path / "index").entries().values(), key=lambda entry: entry.start)
    assert [(entry.start, entry.end, entry.moments) for entry in entries if entry.rows] == [(0.5, 1, 2), (1, 2, 4)]
    query = {"by": "picture", "find": "picture", "start": 1.25, "end": 1.75}
    hit = search(tmp_path / "index", folder / "2.mp4", *loaded, **query)[0]
    assert (hit.start, hit.end, hit.clip_start) == (1.25, 1.75, 1.0)
    own = SearchFilters(exclude_same_file=True)
    assert len(search(tmp_path / "index", folder / "2.mp4", *loaded, filters=own, **query)) == 0


def test_index_videos__other_sources_stay(folder, run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(folder / "2.mp4", other / "2.mp4")
    run(folder)
    run(other)
    run([folder / "0.mp4"])
    (folder / "0.mp4").unlink()

    kept = run(folder, remove_missing=False)
    summary = run(str(folder / "*.mp4"))

    assert kept.removed == summary.removed == 0
    assert run(folder).removed == 1
    assert sorted(rows_of(tmp_path / "index")) == ["1.mp4", "2.mp4"]


def test_index_videos__an_empty_folder_removes_nothing(folder, run, tmp_path):
    run(folder)
    for file in folder.iterdir():
        file.unlink()

    with pytest.raises(DataError, match="holds no clips"):
        run(folder)  # as when a disk is not mounted

    assert len(rows_of(tmp_path / "index")) == 3


HOSTILE = [
    "it's.mp4",
    'say "x".mp4',
    "new\nline.mp4",
    "-dash.mp4",
    "日本 ü.mp4",
    "' OR 1=1 --.mp4",
    "%s{}#?.mp4",
    "`t`.mp4",
]


def test_index_videos__hostile_file_names(media, run, loaded, tmp_path):
    folder = tmp_path / "fo'l \"der"
    folder.mkdir()
    for name in HOSTILE:
        shutil.copy(media / "0.mp4", folder / name)
        with (folder / name).open("ab") as file:  # something after the end tells them apart
            file.write(b"\0\0\0\x10free" + name.encode().ljust(8)[:8])
    odd = os.fsencode(folder) + b"/latin\xe9.mp4"
    shutil.copy(os.fsencode(media / "1.mp4"), odd)
    index = tmp_path / "in'dex;%20#?"

    assert run(folder, index=index).added == len(HOSTILE) + 1
    again = run(folder, index=index)
    assert (again.unchanged, again.removed) == (len(HOSTILE) + 1, 0)
    for name in HOSTILE:
        result = search(index, folder / name, *loaded, filters=SearchFilters(exclude_same_file=True), top=50)
        assert str(folder / name) not in {hit.path for hit in result}
        assert len({hit.path for hit in result}) == len(HOSTILE)
    assert os.fsdecode(odd) in {hit.path for hit in search(index, folder / HOSTILE[0], *loaded, top=50)}
    (folder / HOSTILE[0]).unlink()
    os.unlink(odd)
    assert run(folder, index=index).removed == 2


# --- other models, damage --------------------------------------------------------------------------------------------


def test_index__refuses_another_model_hop_or_processor(folder, run, loaded, tmp_path):
    run(folder)
    model, processor = loaded
    torch.manual_seed(1)
    other = CavMaeSyncModel(tiny_config()).eval()
    shifted = CavMaeSyncProcessor.from_config(model.config, mean=0.0)

    with pytest.raises(SearchError, match=r"another model.*make another index"):
        index_videos(folder, tmp_path / "index", other, processor, hop=HOP)
    with pytest.raises(SearchError, match="another model"):
        search(tmp_path / "index", folder / "0.mp4", other, processor)
    with pytest.raises(SearchError, match="mean was -5.081 and is 0.0"):
        search(tmp_path / "index", folder / "0.mp4", model, shifted)
    with pytest.raises(SearchError, match=r"a hop of 0.25"):
        index_videos(folder, tmp_path / "index", model, processor, hop=0.5)


def test_index__knows_its_model_in_half_precision_and_with_a_head(folder, run, loaded, tmp_path):
    run(folder)
    model, processor = loaded
    headed = CavMaeSyncForPreTraining(tiny_config()).eval()
    headed.model.load_state_dict(model.state_dict())
    half = CavMaeSyncModel(tiny_config()).eval()
    half.load_state_dict(model.state_dict())
    half = half.to(torch.bfloat16)

    assert search(tmp_path / "index", folder / "0.mp4", headed, processor, by="both")[0].score > 0.99
    assert search(tmp_path / "index", folder / "0.mp4", half, processor, by="both")[0].score > 0.99
    with torch.no_grad():
        next(half.parameters()).mul_(1.5)
    with pytest.raises(SearchError, match="another model"):
        search(tmp_path / "index", folder / "0.mp4", half, processor)


def test_index__one_tower_is_refused(folder, tmp_path):
    model = CavMaeSyncModel(tiny_config(modality="audio")).eval()

    with pytest.raises(ValueError, match="audio tower alone"):
        index_videos(folder, tmp_path / "index", model, CavMaeSyncProcessor.from_config(model.config), hop=HOP)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("hop", [0, -1.0, float("nan"), float("inf"), True, "x"])
def test_index__hop_must_be_a_length(folder, run, hop):
    with pytest.raises(ValueError, match="hop is"):
        run(folder, hop=hop)


def test_open__says_what_is_wrong_with_the_place(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "text.txt").write_text("x")
    lancedb.connect(tmp_path / "foreign").create_table(MOMENTS, [{"a": 1}])

    for name, words in (("none", "no such index"), ("file", "is a file"), ("folder", "holds no index")):
        with pytest.raises(SearchError, match=words):
            MomentStore.open(tmp_path / name)
    assert not (tmp_path / "none").exists()
    with pytest.raises(SearchError, match="did not make"):
        MomentStore.open(tmp_path / "foreign")
    with pytest.raises(SearchError, match="a new or empty folder"):
        MomentStore.create(tmp_path / "folder", little_settings())
    with pytest.raises(SearchError, match="is empty"):
        MomentStore.open("")
    with pytest.raises(SearchError, match="cannot be read"):
        MomentStore.open("nowhere-at-all://x/y")


def test_open__of_another_format(tmp_path):
    with pytest.raises(SearchError, match="format 99"):
        MomentStore.create(tmp_path / "index", little_settings(format=99))
    with pytest.raises(SearchError, match="format 99"):
        MomentStore.open(tmp_path / "index")


def test_open__an_index_without_clips_holds_nothing(loaded, folder, run, tmp_path):
    run(folder)
    store = MomentStore.create(tmp_path / "empty", MomentStore.open(tmp_path / "index").settings)

    assert len(search(store, folder / "0.mp4", *loaded)) == 0
    # As a writer leaves it that is killed between making the two tables.
    shutil.rmtree(tmp_path / "empty" / "clips.lance")
    assert len(search(tmp_path / "empty", folder / "0.mp4", *loaded)) == 0
    assert run(folder, index=tmp_path / "empty").added == 3


@pytest.mark.parametrize("part", ["data/*.lance", "_versions/*.manifest"])
@pytest.mark.parametrize("table", ["moments", "clips"])
def test_search__a_damaged_index_is_an_error_that_says_so(folder, run, loaded, tmp_path, part, table):
    run(folder)
    for file in (tmp_path / "index" / f"{table}.lance").glob(part):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    with pytest.raises(SearchError, match=r"cannot be read.*make it anew"):
        search(tmp_path / "index", folder / "0.mp4", *loaded)


def test_index_status__tells_what_is_there_and_what_is_missing(folder, run, tmp_path):
    (folder / "bad.mp4").touch()
    run(folder)

    status = index_status(tmp_path / "index", check=True)

    assert (status["clips"], status["files"], status["bad"], status["moments"]) == (3, 3, 1, 18)
    assert status["seconds"] == pytest.approx(4.5, abs=0.1) and status["loose_rows"] == 0
    assert [bool(entry["problem"]) for entry in status["entries"]] == [False, False, False, True]
    store = MomentStore.open(tmp_path / "index")
    store._moments.delete("`window` = 2 AND loudness < 0")
    with pytest.raises(SearchError, match="3 clips lack rows"):
        index_status(tmp_path / "index", check=True)
    # The next run mends it.
    assert run(folder).changed == 3
    index_status(tmp_path / "index", check=True)


# --- kills and several writers --------------------------------------------------------------------------------------


class _Killed(BaseException):
    """What no code catches."""


@pytest.mark.parametrize("step", ["append", "register", "_remove_rows", "optimise"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_index_videos__stopped_anywhere_is_whole_and_goes_on(folder, run, tmp_path, monkeypatch, step, when):
    monkeypatch.setattr(indexing_module, "_CLIPS_PER_COMMIT", 1)
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
    from dataclasses import replace

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
from cavmae_sync_hf.inference.loading import load_model
from cavmae_sync_hf.search import MomentStore, index_videos, indexing

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
indexing._CLIPS_PER_COMMIT = 2
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


@pytest.fixture
def many(tmp_path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(12):
        write_clip(folder / f"{seed:02d}.mp4", seconds=0.5, audio=noise(0.5, seed=seed))
    return folder


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
    monkeypatch.setattr(indexing_module, "_CLIPS_PER_COMMIT", 2)
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


# --- other places and engines ---------------------------------------------------------------------------------------


def test_index__lies_anywhere_lancedb_can_write(folder, run, loaded, tmp_path):
    run(folder)
    address = f"file://{tmp_path}/by-address"
    memory = MomentStore.create("memory://index", MomentStore.open(tmp_path / "index").settings)

    assert run(folder, index=address).added == 3
    assert run(folder, index=memory).added == 3

    expected = rows_of(tmp_path / "index")
    assert same_rows(rows_of(MomentStore.open(address)), expected)
    assert same_rows(rows_of(memory), expected)
    assert search(memory, folder / "1.mp4", *loaded, by="both")[0].path == str(folder / "1.mp4")


def test_index__approximate_index_is_built_above_the_threshold_and_extended(many, run, loaded, tmp_path):
    first = run(many, approximate_from=10)
    store = MomentStore.open(tmp_path / "index")
    write_clip(many / "new.mp4", seconds=0.5, audio=noise(0.5, seed=77))

    second = run(many, approximate_from=10)

    assert first.approximate == 24 and set(store.indexed_columns()) == {"audio", "video"}
    assert second.approximate == 26
    result = search(tmp_path / "index", many / "new.mp4", *loaded, by="both")
    assert not result.exact and Path(result[0].path).name == "new.mp4"
    (many / "new.mp4").unlink()
    assert run(many, approximate_from=10).removed == 1
    result = search(tmp_path / "index", many / "00.mp4", *loaded, by="both", top=50)
    assert {Path(hit.path).stem for hit in result} == {f"{number:02d}" for number in range(12)}


def test_progress__tells_clips_and_speed(folder, run):
    told = []

    run(folder, progress=lambda done, total, remark: told.append((done, total, remark)))

    assert told[-1][:2] == (3, 3) and "min of media" in told[-1][2]
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_ray__a_clip_of_which_workers_die_is_tried_alone_and_then_bad():
    good, bad = ClipEntry("a", "", "/a.mp4"), ClipEntry("b", "", "/b.mp4")
    deaths: dict[str, int] = {}
    again: list = []

    assert list(_after_death([good, bad], deaths, again)) == [] and again == [[good], [bad]]
    for _ in range(2):
        assert list(_after_death([bad], deaths, again)) == [] and again.pop() == [bad]
    ((given_up,),) = _after_death([bad], deaths, again)

    assert given_up.key == "b" and "died" in given_up.problem and again == [[good], [bad]]


@pytest.mark.slow
def test_index_videos__over_ray(folder, run, tmp_path):
    pytest.importorskip("ray")
    (folder / "bad.mp4").touch()
    run(folder)

    summary = run(folder, index=tmp_path / "by-ray", engine="ray", workers=2)

    assert summary.added == 3 and len(summary.bad) == 1
    assert same_rows(rows_of(tmp_path / "by-ray"), rows_of(tmp_path / "index"))


@pytest.mark.parametrize(
    "options",
    [{"engine": "magic"}, {"batch_size": 0}, {"decoders": 0}, {"thumbnails": -1}, {"damaged": "maybe"}],
)
def test_index_videos__refuses_values_that_cannot_work(folder, run, tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        run(folder, **options)
    assert not (tmp_path / "index").exists()


def test_as_matrix__leaves_out_what_is_null(folder, run, tmp_path):
    import pyarrow as pa

    values = random_vectors(3, 0).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 16, mask=pa.array([False, True, False]))

    vectors, places = as_matrix(column[1:], 16)

    np.testing.assert_array_equal(vectors, values[2:].astype(np.float32))
    assert places.tolist() == [1]
