"""A collection of videos becomes shards: what is in them, that others can read them, and what is left out."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncProcessor, DataError
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.data.packing import shrink
from cavmae_sync_hf.data.prepare import prepare
from cavmae_sync_hf.data.shards import check_shards, read_clip_table, read_index, read_shard
from cavmae_sync_hf.model.errors_cavmae_sync import LockedError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from helpers.clips import corrupt, noise, numbered_frame, read_number, truncate, write_clip
from helpers.columns import datasets_with_columns

# Log-mel values lie within (-16, 16), where neighbouring float16 numbers are at most 2**-7 apart, and are divided by
# 4.4849: half of that is 8.71e-4. The rest is for sums in another order.
WINDOW_TOLERANCE = 2**-8 / 4.4849 + 1e-5


def smooth_frame(number: int, time: float, size: tuple[int, int] = (640, 360)) -> np.ndarray:
    """A frame with the detail of a photograph: noise whose amplitude falls with the frequency."""
    width, height = size
    generator = np.random.default_rng(number // 8)
    small = generator.uniform(0, 255, (height // 20, width // 20, 3)).astype(np.uint8)
    frame = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    fine = np.random.default_rng(number).normal(0, 4, (height, width, 1))
    return (frame + fine).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Good clips of several kinds and every kind of bad one."""
    folder = tmp_path_factory.mktemp("videos")
    write_clip(folder / "a_plain.mp4", seconds=2, audio=noise(2.0))
    write_clip(folder / "b_rotated.mp4", seconds=1, rotation=90, audio=noise(1.0))
    write_clip(folder / "c_variable.mkv", frame_times=[0, 0.1, 0.15, 0.6, 0.7, 1.3, 1.9], audio=noise(2.0))
    write_clip(folder / "d_one_frame.mp4", num_frames=1, audio=noise(2.0))
    (folder / "deep" / "er").mkdir(parents=True)
    write_clip(folder / "deep" / "er" / "e.large.mp4", seconds=1, size=(480, 640), audio=noise(1.0))
    write_clip(folder / "x_silent.mp4", audio=np.zeros((2, 96000), dtype=np.float32))
    write_clip(folder / "x_no_audio.mp4", audio=False)
    write_clip(folder / "x_no_video.mp4", video=False, audio=noise(2.0))
    plain = folder / "a_plain.mp4"
    truncate(plain, folder / "x_truncated.mp4")
    corrupt(plain, folder / "x_corrupt.mp4")
    (folder / "x_text.mp4").write_text("not a video")
    (folder / "x_empty.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("no media")
    return folder


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory):
    return prepare(videos, tmp_path_factory.mktemp("set") / "out", clips_per_shard=3, workers=1)


def bad_rows(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "bad_clips.csv", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def all_clips(summary) -> dict:
    return {clip.info["id"]: clip for path in summary.index.paths for clip in read_shard(path)}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_prepare__bad_clips_are_listed_with_reasons(videos, prepared):
    rows = bad_rows(prepared.folder)

    assert {name: row["reason"] for name, row in rows.items()} == {
        "x_silent": "silent",
        "x_no_audio": "no audio",
        "x_no_video": "no video",
        "x_truncated": "unreadable",
        "x_corrupt": "unreadable",
        "x_text": "unreadable",
        "x_empty": "unreadable",
    }
    assert all(row["source"] in row["message"] for row in rows.values())
    assert "7 bad clips left out (1 no audio, 1 no video, 1 silent, 4 unreadable)" in str(prepared)
    # The same report wherever the videos lie.
    assert not any(str(videos) in row["message"] for row in rows.values())


def test_prepare__words_of_a_table_are_clips_of_their_own(tmp_path):
    """Words that are tones: each sample has its own sound and frames, and its word as the label."""
    words = [("low", 0.2, 0.56, 300), ("high", 0.56, 0.8, 3000), ("mid", 1.2, 1.6, 1000), ("low", 1.6, 1.84, 300)]
    times = np.arange(2 * 16000) / 16000
    said = np.zeros(len(times))
    for _, start, end, hertz in words:
        said += np.sin(2 * np.pi * hertz * times) * ((times >= start) & (times < end))
    (tmp_path / "talks").mkdir()
    write_clip(tmp_path / "talks" / "a.mp4", seconds=2, audio=(0.3 * said[None]).astype(np.float32), rate=16000)
    rows = [f"train,a.mp4,{word},{start},{end}" for word, start, end, _ in words]
    rows += ["train,a.mp4,late,1.9,2.9", "train,b.mp4,low,0.1,0.3", "test,a.mp4,other,0.1,0.3"]
    table = tmp_path / "words.csv"
    table.write_text("\n".join(["part,file,word,start,end", *rows]))

    summary = prepare(table, tmp_path / "out", media=tmp_path / "talks", split="train", num_frames=4, workers=1)

    processor = CavMaeSyncProcessor.from_config(CavMaeSyncConfig(num_frames=4, audio_length=32), alignment="time")
    samples = CavMaeSyncDataset(tmp_path / "out", processor, frames="all")
    assert samples.source.label_names == ["high", "late", "low", "mid"]
    assert [samples.source.label_names[own] for (own,) in samples.labels()] == ["low", "high", "mid", "low"]
    for number, (_, start, end, hertz) in enumerate(words):
        clip = samples.source.read(number, lambda _, count: range(count))
        assert clip.duration == pytest.approx(end - start, abs=0.001)
        loudest = processor.feature_extractor.mel_frequencies[clip.log_mel[2:-2].argmax(dim=1)]
        assert np.abs(loudest / hertz - 1).max() < 0.1
        shown = [read_number(frame.numpy()) / 25 for frame in clip.frames]
        assert all(start - 0.04 < time < end for time in shown)
    left_out = (tmp_path / "out" / "bad_clips.csv").read_text()
    assert len(summary.failures) == 2
    assert "a_1.9-2.9" in left_out and "holds 0.1 s of the 1 s" in left_out and "b.mp4: no such file" in left_out


def test_prepare__good_clips_are_whole(prepared):
    clips = all_clips(prepared)

    assert set(clips) == {"a_plain", "b_rotated", "c_variable", "d_one_frame", "deep/er/e.large"}
    assert [clip.key for clip in clips.values()] == sorted(clip.key for clip in clips.values())
    for clip in clips.values():
        frames = clip.frames()
        assert frames.shape[0] == len(clip.info["frame_times"]) == 16
        assert clip.log_mel.dtype == np.float16 and clip.log_mel.shape[1] == 128
        assert clip.info["has_audio"] and clip.info["has_video"]
        assert len(clip.log_mel) == pytest.approx(100 * clip.info["duration"], abs=8)
        assert np.abs(clip.log_mel).max() > 0
    assert clips["b_rotated"].frames().shape[-2:] == (64, 48)
    assert clips["deep/er/e.large"].frames().shape[-2:] == (341, 256)
    assert clips["a_plain"].frames().shape[-2:] == (48, 64)  # smaller images keep their size


def test_prepare__frames_are_those_on_screen(prepared):
    clips = all_clips(prepared)

    plain = clips["a_plain"]
    numbers = [read_number(frame.numpy()) for frame in plain.frames()]
    assert numbers == [int((i + 0.5) * 2 / 16 * 25) for i in range(16)]
    assert plain.info["frame_times"] == [pytest.approx(number / 25) for number in numbers]
    assert len({read_number(frame.numpy()) for frame in clips["d_one_frame"].frames()}) == 1
    shown = [max(k for k, at in enumerate([0, 0.1, 0.15, 0.6, 0.7, 1.3, 1.9]) if at <= t) for t in centers(2.0)]
    assert [read_number(frame.numpy()) for frame in clips["c_variable"].frames()] == pytest.approx(shown, abs=1)


def centers(duration: float) -> list[float]:
    return [(i + 0.5) * duration / 16 for i in range(16)]


@pytest.mark.parametrize("alignment", ["time", "reference"])
def test_prepare__shards_give_what_the_processor_gives(tmp_path, alignment):
    (tmp_path / "in").mkdir()
    path = write_clip(
        tmp_path / "in" / "clip.mp4", seconds=3, size=(640, 360), frame=smooth_frame, audio=noise(3.0, channels=1)
    )
    summary = prepare(tmp_path / "in", tmp_path / "out", workers=1, alignment=alignment)
    (clip,) = all_clips(summary).values()
    processor = CavMaeSyncProcessor.from_config(CavMaeSyncConfig(), alignment=alignment)

    whole = processor(videos=path, return_tensors="pt", return_times=True)
    windows = processor.feature_extractor.windows(torch.from_numpy(clip.log_mel).float(), clip.info["frame_times"])
    from_shard = processor.video_processor(clip.frames(), return_tensors="pt")["pixel_values_videos"]
    stored = torch.stack([shrink(frame, 256) for frame in decode_media(path, alignment=alignment).frames])
    uncompressed = processor.video_processor(stored, return_tensors="pt")["pixel_values_videos"]
    std = torch.tensor(processor.video_processor.image_std).view(-1, 1, 1)

    assert clip.info["frame_times"] == whole["frame_times"][0].tolist()
    assert (windows.values - whole["input_values"][0]).abs().max() <= WINDOW_TOLERANCE
    assert torch.equal(windows.mask, whole["padding_mask"][0])
    # In grey levels, measured on this clip: JPEG at quality 95 alone 1.14 on average, 9 at most and 0.001 too dark;
    # with the smaller size in between, against the original, 1.28 and 11.
    by_jpeg = (from_shard - uncompressed) * std * 255
    in_all = (from_shard - whole["pixel_values_videos"]) * std * 255
    assert by_jpeg.abs().mean() < 1.5 and by_jpeg.abs().max() < 15 and by_jpeg.mean().abs() < 0.05
    assert in_all.abs().mean() < 1.7 and in_all.abs().max() < 20


def test_prepare__index_counts_and_normalises(prepared):
    index = read_index(prepared.folder)
    clips = all_clips(prepared)
    values = np.concatenate([clip.log_mel for clip in clips.values()]).astype(np.float64)

    assert index.to_json() == prepared.index.to_json()
    assert (index.clips, index.bad_clips, sum(shard.clips for shard in index.shards)) == (5, 7, 5)
    assert index.seconds == pytest.approx(sum(clip.info["duration"] for clip in clips.values()))
    assert index.log_mel_frames == len(values)
    # The sums are of float32 values, these here of float16.
    assert index.mean == pytest.approx(values.mean(), abs=1e-3)
    assert index.std == pytest.approx(values.std(), abs=1e-3)
    assert check_shards(prepared.folder) == []
    first = Path(index.paths[0])
    content = first.read_bytes()
    try:
        first.write_bytes(content[:-1] + b"x")
        assert "sha256" in check_shards(prepared.folder)[0]
    finally:
        first.write_bytes(content)


def test_prepare__clip_table_finds_each_clip(prepared):
    clips = all_clips(prepared)

    rows = read_clip_table(prepared.folder)
    assert [row["id"] for row in rows] == list(clips)
    for row in rows:
        with open(prepared.folder / row["shard"], "rb") as file:
            file.seek(row["offset"])
            piece = file.read(row["size"])
        (clip,) = read_shard(io.BytesIO(piece))
        assert clip.info == clips[row["id"]].info


def test_prepare__datasets_reads_the_shards(prepared):
    datasets = pytest.importorskip("datasets")

    for rows in (
        datasets.load_dataset(
            "webdataset", data_files=str(prepared.folder / "train-*.tar"), split="train", streaming=True
        ),
        datasets.load_dataset(str(prepared.folder), split="train", streaming=True),
    ):
        rows = list(rows)
        assert [row["json"]["id"] for row in rows] == list(all_clips(prepared))
        assert np.asarray(rows[0]["log_mel.npy"]).shape == all_clips(prepared)["a_plain"].log_mel.shape
        assert rows[0]["frame_15.jpg"].size == (64, 48)


def test_prepare__webdataset_reads_the_shards(prepared):
    webdataset = pytest.importorskip("webdataset")

    rows = list(webdataset.WebDataset(prepared.index.paths, shardshuffle=False).decode("rgb8"))

    clips = all_clips(prepared)
    assert [row["__key__"] for row in rows] == [clip.key for clip in clips.values()]
    for row, clip in zip(rows, clips.values(), strict=True):
        assert row["json"] == clip.info
        assert np.array_equal(row["log_mel.npy"], clip.log_mel)
        assert np.array_equal(row["frame_03.jpg"], clip.frames([3])[0].permute(1, 2, 0).numpy())


def test_prepare__same_input_same_bytes(videos, prepared, tmp_path):
    moved = shutil.copytree(videos, tmp_path / "moved")

    again = prepare(str(moved), tmp_path / "out", clips_per_shard=3, workers=2)

    assert files_of(again.folder) == files_of(prepared.folder)


def test_prepare__second_run_makes_nothing(prepared, videos):
    before = files_of(prepared.folder)

    again = prepare(videos, prepared.folder, clips_per_shard=3, workers=1)

    assert again.made == 0 and "all there already" in str(again)
    assert files_of(prepared.folder) == before


def test_prepare__lost_shard_is_made_again(prepared, videos, tmp_path):
    folder = shutil.copytree(prepared.folder, tmp_path / "copy")
    (folder / "train-00001.tar").unlink()

    again = prepare(videos, folder, clips_per_shard=3, workers=1)

    assert again.made == 3
    assert files_of(folder) == files_of(prepared.folder)


def test_prepare__missing_tracks_and_silence_can_be_kept(videos, tmp_path):
    source = [videos / f"x_{kind}.mp4" for kind in ("no_audio", "no_video", "silent")]
    summary = prepare(source, tmp_path / "out", missing="keep", silent="keep", workers=1)

    clips = {Path(name).name: clip for name, clip in all_clips(summary).items()}
    assert summary.index.bad_clips == 0 and (summary.index.with_audio, summary.index.with_video) == (2, 2)
    assert clips["x_no_audio"].log_mel.shape == (0, 128) and not clips["x_no_audio"].info["has_audio"]
    assert clips["x_no_video"].jpegs == [] and not clips["x_no_video"].info["has_video"]
    assert len(clips["x_silent"].jpegs) == 16 and clips["x_silent"].info["has_audio"]


def test_prepare__set_of_bad_clips_only_is_an_error(videos, tmp_path):
    with pytest.raises(DataError, match=r"none of the 2 clips.*1 unreadable, 1 silent.*x_text"):
        prepare([videos / "x_text.mp4", videos / "x_silent.mp4"], tmp_path / "out", workers=1)

    assert len(bad_rows(tmp_path / "out")) == 2
    with pytest.raises(DataError, match="no finished set"):
        read_index(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_frames": 8}, r"num_frames was 16 and is 8"),
        ({"clips_per_shard": 4}, r"clips_per_shard was 3 and is 4"),
        ({"name": "test"}, r"name was 'train' and is 'test'"),
    ],
)
def test_prepare__other_options_are_refused_by_name(prepared, videos, change, words):
    before = files_of(prepared.folder)

    with pytest.raises(DataError, match=words):
        prepare(videos, prepared.folder, **{"clips_per_shard": 3, "workers": 1} | change)

    assert files_of(prepared.folder) == before


def test_prepare__other_lists_are_refused_by_name(prepared, videos, tmp_path):
    changed = shutil.copytree(videos, tmp_path / "changed")
    (changed / "a_plain.mp4").rename(changed / "aa_new.mp4")

    with pytest.raises(DataError, match=r"1 new \('aa_new'\); 1 gone \('a_plain'\)"):
        prepare(changed, prepared.folder, clips_per_shard=3, workers=1)


def test_prepare__other_versions_are_refused_by_name(prepared, videos, tmp_path):
    folder = shutil.copytree(prepared.folder, tmp_path / "copy")
    job = json.loads((folder / ".prepare" / "job.json").read_text())
    job["versions"]["av"] = "1.0"
    (folder / ".prepare" / "job.json").write_text(json.dumps(job))

    with pytest.raises(DataError, match=r"other versions: av was '1.0'"):
        prepare(videos, folder, clips_per_shard=3, workers=1)


def test_prepare__folder_with_other_files_is_refused(videos, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")

    with pytest.raises(DataError, match="holds other files"):
        prepare(videos, tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_prepare__folder_in_use_is_refused(prepared, videos):
    fcntl = pytest.importorskip("fcntl")
    with open(prepared.folder / ".prepare" / "lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="another run"):
            prepare(videos, prepared.folder, clips_per_shard=3, workers=1)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"alignment": "middle"}, "alignment must be one of"),
        ({"num_frames": 0}, "num_frames must be 1 to 100"),
        ({"jpeg_quality": 101}, "jpeg_quality must be 1 to 100"),
        ({"engine": "dask"}, "engine must be one of 'local', 'ray'"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"name": "a/b"}, "name must be letters"),
        ({"sampling_rate": 12345}, "multiple of 100"),
    ],
)
def test_prepare__wrong_options_touch_nothing(videos, tmp_path, option, words):
    with pytest.raises(ValueError, match=words):
        prepare(videos, tmp_path / "out", **option)

    assert not (tmp_path / "out").exists()


def test_prepare__progress_counts_up_to_all(videos, tmp_path):
    seen = []

    prepare([videos / "a_plain.mp4", videos / "x_text.mp4"], tmp_path / "out", workers=1, progress=seen.append)

    assert (seen[0].done, seen[0].rate, seen[0].seconds_left) == (0, 0.0, None)
    assert (seen[-1].done, seen[-1].total, seen[-1].bad, seen[-1].seconds_left) == (2, 2, 1, 0.0)
    assert [step.done for step in seen] == sorted(step.done for step in seen)


def test_prepare__segments_and_labels_of_a_list(videos, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("path,start,end,labels\na_plain.mp4,0.5,1.5,dog;cat\na_plain.mp4,0,1,cat\nmissing.mp4,0,1,cat\n")

    summary = prepare(table, tmp_path / "out", media=videos, workers=1)

    clips = all_clips(summary)
    assert summary.index.label_names == ["cat", "dog"] and summary.index.label_counts == {0: 2, 1: 1}
    assert clips["a_plain_0.5-1.5"].info["labels"] == [0, 1]
    late, early = clips["a_plain_0.5-1.5"], clips["a_plain_0-1"]
    assert late.info["duration"] == early.info["duration"] == 1.0
    assert read_number(late.frames([0])[0].numpy()) == int((0.5 + 0.5 / 16) * 25)
    assert bad_rows(summary.folder)["missing"]["reason"] == "not found"


def test_prepare__published_layout_of_images_and_audio(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_clip(folder / "a.wav", video=False, audio=noise(4.0, channels=1), audio_codec="pcm_s16le")
    for number in range(16):
        (folder / f"frame_{number}").mkdir()
        Image.fromarray(numbered_frame(number, (256, 224))).save(folder / f"frame_{number}" / "clip.jpg", quality=90)
    data = [
        {"video_id": "clip", "wav": "a.wav", "video_path": ".", "labels": "/m/01,/m/02"},
        {"video_id": "none", "wav": "a.wav", "video_path": ".", "labels": "/m/02"},
    ]
    (folder / "train.json").write_text(json.dumps({"data": data}))

    summary = prepare(folder / "train.json", tmp_path / "out", workers=1, alignment="reference")

    (clip,) = all_clips(summary).values()
    assert [read_number(frame.numpy()) for frame in clip.frames()] == list(range(16))
    assert clip.jpegs[3] == (folder / "frame_3" / "clip.jpg").read_bytes()  # small enough: not compressed again
    assert clip.info["frame_times"] == [number * 4.0 / 16 for number in range(16)]
    assert clip.info["labels"] == [0, 1] and summary.index.label_names == ["/m/01", "/m/02"]
    assert "0 of 16 images" in bad_rows(summary.folder)["none"]["message"]


def test_prepare__too_long_clips_are_left_out(videos, tmp_path):
    with pytest.raises(DataError, match="lasts 2 s, the limit is 1.5 s"):
        prepare([videos / "a_plain.mp4"], tmp_path / "out", workers=1, max_seconds=1.5)


def test_prepare__rows_of_a_data_set(videos, tmp_path):
    datasets = datasets_with_columns(decoders=False)
    features = datasets.Features(
        {"video": datasets.Video(decode=False), "label": datasets.ClassLabel(names=["quiet", "loud"])}
    )
    content = (videos / "a_plain.mp4").read_bytes()
    video = [{"path": None, "bytes": content}, {"path": None, "bytes": b"nothing"}]
    rows = datasets.Dataset.from_dict({"video": video, "label": [1, 0]}, features=features)
    rows.save_to_disk(tmp_path / "rows")

    summary = prepare(datasets.load_from_disk(tmp_path / "rows"), tmp_path / "out", workers=2)

    (clip,) = all_clips(summary).values()
    assert clip.info["labels"] == [1] and summary.index.label_names == ["quiet", "loud"]
    assert clip.info["source"] == "row 0" and bad_rows(summary.folder)["row_00000001"]["reason"] == "unreadable"


def test_prepare__command_line(videos, tmp_path, run):
    command = ("prepare", videos / "?_*.mp4", tmp_path / "out", "--workers", 1, "--short-side", 0, "--name", "test")
    code, printed, errors = run(*command)
    assert code == 1 and errors.count("Left out:") == 7
    assert errors.splitlines()[-1] == f"3 clips done, 7 left out; see {tmp_path / 'out' / 'bad_clips.csv'}"
    assert "3 clips in 1 shard," in printed and "7 bad clips left out (1 no audio" in printed
    assert read_index(tmp_path / "out").short_side is None
    code, printed, _ = run(*command)
    assert code == 1 and "all there already" in printed
    code, _, errors = run(*command, "--num-frames", 4)
    assert code == 1 and "num_frames was 16 and is 4" in errors
    code, _, errors = run("prepare", videos / "x_text.mp4", tmp_path / "bad")
    assert code == 1 and "none of the 1 clips can be used" in errors


def test_prepare__bucket(videos, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/prepare-test/one.mp4", (videos / "a_plain.mp4").read_bytes())
    memory.pipe("/prepare-test/two.mp4", b"text")

    summary = prepare("memory://prepare-test", tmp_path / "out", workers=1)

    plain = prepare([str(videos / "a_plain.mp4")], tmp_path / "plain", workers=1)
    assert all_clips(summary)["one"].jpegs == next(iter(all_clips(plain).values())).jpegs
    assert bad_rows(summary.folder)["two"]["message"].startswith("two.mp4: ")
