"""An index holds its files as they are: moments with times and vectors, kept up to date, whatever names they have."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cavmae_sync_hf import CavMaeSyncProcessor, DataError
from cavmae_sync_hf.search import MomentStore, SearchFilters, search
from cavmae_sync_hf.search import embedding as embedding_module
from cavmae_sync_hf.search import indexing as indexing_module
from helpers.clips import corrupt, noise, truncate, write_clip
from helpers.indexes import HALF, rows_of, same_rows

HOP = 0.25


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


def test_index_videos__clips_without_audio_or_frames_have_the_other(loaded, run, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_clip(folder / "mute.mp4", seconds=1.0, audio=False)
    write_clip(folder / "blind.mkv", seconds=1.0, video=False, audio=noise(1.0))
    run(folder)

    entries = {Path(entry.path).stem: entry for entry in MomentStore.open(tmp_path / "index").entries().values()}
    assert (entries["mute"].has_audio, entries["mute"].has_video) == (False, True)
    assert (entries["blind"].has_audio, entries["blind"].has_video) == (True, False)
    by_audio = search(tmp_path / "index", folder / "blind.mkv", *loaded, find="audio")
    by_video = search(tmp_path / "index", folder / "mute.mp4", *loaded, find="video")
    assert {Path(hit.path).stem for hit in by_audio} == {"blind"}
    assert {Path(hit.path).stem for hit in by_video} == {"mute"}


def test_index_videos__long_clips_wait_in_a_file_and_batches_cross_clips(folder, run, tmp_path, monkeypatch):
    run(folder, batch_size=1000, decoders=3)
    monkeypatch.setattr(embedding_module, "_BLOCK_ROWS", 3)

    run(folder, index=tmp_path / "spilled", batch_size=1, decoders=1)

    assert same_rows(rows_of(tmp_path / "index"), rows_of(tmp_path / "spilled"))


def test_index_videos__thumbnails(folder, run, loaded, tmp_path):
    run(folder, thumbnails=32)

    hit = search(tmp_path / "index", folder / "1.mp4", *loaded, find="video", by="video")[0]

    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(hit.thumbnail)) as image:
        assert image.size == (32, 24)


def test_index_videos__still_scenes_are_encoded_once(loaded, run, tmp_path):
    def frame(number: int, time: float) -> np.ndarray:
        """Two scenes of a second, under noise."""
        scene = np.random.default_rng(int(time)).integers(60, 200, (6, 8, 3)).repeat(8, 0).repeat(8, 1)
        return np.clip(scene + np.random.default_rng(number).normal(0, 2, scene.shape), 0, 255).astype(np.uint8)

    write_clip(tmp_path / "still.mp4", frame=frame, audio=noise(2.0))
    encoded: list[int] = []
    hook = loaded[0].video_tower.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    vectors = {}
    for still in (0.0, 0.3):
        encoded.clear()
        run(tmp_path / "still.mp4", index=tmp_path / f"index-{still}", still=still)
        rows = rows_of(tmp_path / f"index-{still}")["still.mp4"]
        vectors[still] = encoded.copy(), np.array([row[-1] for row in rows], np.float32)
    hook.remove()

    assert [sum(counts) for counts, _ in vectors.values()] == [8, 2]
    (_, exact), (_, held) = vectors.values()
    assert (exact * held).sum(-1).min() > 0.99
    assert np.array_equal(held, held[[0, 0, 0, 0, 4, 4, 4, 4]]) and not np.array_equal(exact[0], exact[1])


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
    query = {"by": "video", "find": "video", "start": 1.25, "end": 1.75}
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


def test_progress__tells_clips_and_speed(folder, run):
    told = []

    run(folder, progress=lambda done, total, remark: told.append((done, total, remark)))

    assert told[-1][:2] == (3, 3) and "min of media" in told[-1][2]
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


@pytest.mark.parametrize(
    "options",
    [
        {"engine": "magic"},
        {"batch_size": 0},
        {"decoders": 0},
        {"thumbnails": -1},
        {"damaged": "maybe"},
        {"still": -1.0},
    ],
)
def test_index_videos__refuses_values_that_cannot_work(folder, run, tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        run(folder, **options)
    assert not (tmp_path / "index").exists()
