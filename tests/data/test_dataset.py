# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets over shards and video files: frames and windows are what the processor would make."""

import ast
import gc
import io
import json
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cavmae_sync_hf import DataError
from cavmae_sync_hf.data.augmentation import AUGMENTATION_PRESETS
from cavmae_sync_hf.data.dataset import CavMaeSyncCollator, CavMaeSyncDataset, Draw
from cavmae_sync_hf.data.shards import (
    INDEX_NAME,
    decode_jpeg,
    encode_jpeg,
)
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from helpers.clips import write_clip
from helpers.tiny_shards import NUM_FRAMES, SECONDS, frame_of, log_mel_of, tiny_processor, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), [3, 4, 2], silent=[5], blind=[6], short=[7])


def test_evaluation_sample__is_what_the_processor_makes(shards):
    processor = tiny_processor()
    sample = CavMaeSyncDataset(shards, processor, frames="all")[4]
    frames = torch.stack([frame_of(4, i) for i in range(NUM_FRAMES)])
    expected = processor.video_processor(frames, return_tensors="pt")["pixel_values_videos"][0]
    # JPEG of quality 95 without chroma subsampling: at most 4 grey levels on this ramp, that is 4 / 255 / 0.225.
    assert torch.allclose(sample["pixel_values_videos"], expected, atol=0.07)
    times = [(i + 0.5) * SECONDS / NUM_FRAMES for i in range(NUM_FRAMES)]
    windows = processor.feature_extractor.windows(torch.from_numpy(log_mel_of(4).astype(np.float32)), times)
    assert torch.equal(sample["input_values"], windows.values)
    assert torch.equal(sample["padding_mask"], windows.mask)
    assert sample["padding_mask_videos"].all()
    assert sample["frame_times"].tolist() == times
    assert sample["clip_id"] == "clip-4" and sample["labels"] == [1]


def test_random_frame__has_its_own_window(shards):
    processor = tiny_processor()
    everything = CavMaeSyncDataset(shards, processor, frames="all")[0]
    dataset = CavMaeSyncDataset(shards, processor, frames=1)
    seen = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        (index,) = sample["frame_indices"].tolist()
        seen.add(index)
        assert torch.equal(sample["pixel_values_videos"][0], everything["pixel_values_videos"][index])
        assert torch.equal(sample["input_values"][0], everything["input_values"][index])
    assert seen == set(range(NUM_FRAMES))


def test_k_frames__are_distinct_and_in_order(shards):
    dataset = CavMaeSyncDataset(shards, tiny_processor(), frames=3)
    for number in range(5):
        indices = dataset[number]["frame_indices"].tolist()
        assert len(set(indices)) == 3 and indices == sorted(indices)
    assert len(dataset[7]["frame_indices"]) == 2  # the clip has no more


def test_reference_alignment__window_depends_on_the_place_among_all_frames(tmp_path):
    folder = write_shards(tmp_path, [2], alignment="reference")
    processor = tiny_processor(alignment="reference")
    everything = CavMaeSyncDataset(folder, processor, frames="all")[1]
    dataset = CavMaeSyncDataset(folder, processor, frames=1, seed=3)
    sample = dataset[1]
    index = int(sample["frame_indices"])
    assert index > 0  # else the test proves nothing
    assert torch.equal(sample["input_values"][0], everything["input_values"][index])


def test_choices__depend_on_seed_epoch_and_clip_alone(shards):
    def indices(seed: int, epoch: int, order: list[int]) -> list[int]:
        dataset = CavMaeSyncDataset(shards, tiny_processor(), seed=seed)
        dataset.set_epoch(epoch)
        found = {number: int(dataset[number]["frame_indices"]) for number in order}
        return [found[number] for number in sorted(found)]

    torch.manual_seed(0)
    first = indices(0, 0, list(range(9)))
    torch.manual_seed(1)
    assert indices(0, 0, list(reversed(range(9)))) == first
    assert indices(1, 0, list(range(9))) != first
    assert indices(0, 1, list(range(9))) != first


def test_augmented_samples__are_the_same_for_any_number_of_workers(shards):
    processor = tiny_processor()
    dataset = CavMaeSyncDataset(shards, processor, augmentation=AUGMENTATION_PRESETS["cavmae_classification"])
    state = torch.get_rng_state()
    alone = [dataset[number] for number in range(9)]
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is nobody's
    spread = list(DataLoader(dataset, batch_size=None, num_workers=2))
    for one, other in zip(alone, spread, strict=True):
        assert torch.equal(one["input_values"], other["input_values"])
        assert torch.equal(one["pixel_values_videos"], other["pixel_values_videos"])


def test_repeated_draw__varies_the_sample(shards):
    dataset = CavMaeSyncDataset(shards, tiny_processor(), frames=1)
    chosen = {int(dataset[Draw(0, draw)]["frame_indices"]) for draw in range(12)}
    assert len(chosen) > 1
    assert int(dataset[Draw(0, 0)]["frame_indices"]) == int(dataset[0]["frame_indices"])


def test_set_epoch__reaches_workers_that_live_on(shards):
    dataset = CavMaeSyncDataset(shards, tiny_processor())
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        epochs.append([(sample["epoch"], int(sample["frame_indices"])) for sample in loader])
    assert {epoch for epoch, _ in epochs[0]} == {0} and {epoch for epoch, _ in epochs[1]} == {1}
    assert [index for _, index in epochs[0]] != [index for _, index in epochs[1]]


def test_absent_tracks__are_masked(shards):
    dataset = CavMaeSyncDataset(shards, tiny_processor(), frames="all")
    silent, blind = dataset[5], dataset[6]
    assert not silent["padding_mask"].any() and silent["padding_mask_videos"].all()
    assert blind["padding_mask"].all() and not blind["padding_mask_videos"].any()
    assert blind["pixel_values_videos"].shape == (NUM_FRAMES, 3, 32, 32) and not blind["pixel_values_videos"].any()


def test_collator__pads_as_the_processor_does(shards):
    processor = tiny_processor()
    dataset = CavMaeSyncDataset(shards, processor, frames="all")
    batch = CavMaeSyncCollator(processor)([dataset[0], dataset[7], dataset[6]])
    assert batch["pixel_values_videos"].shape == (3, NUM_FRAMES, 3, 32, 32)
    assert batch["padding_mask"].tolist() == [[True] * 4, [True, True, False, False], [True] * 4]
    assert batch["padding_mask_videos"].tolist() == [[True] * 4, [True, True, False, False], [False] * 4]
    silence = processor.feature_extractor.outside_value
    assert (batch["input_values"][1, 2:] == silence).all()
    assert batch["clip_ids"] == ["clip-0", "clip-7", "clip-6"]
    assert "padding_mask_videos" not in CavMaeSyncCollator(processor)([dataset[0], dataset[1]])


def test_collator__fixed_number_of_frames(shards):
    processor = tiny_processor()
    dataset = CavMaeSyncDataset(shards, processor, frames="all")
    assert CavMaeSyncCollator(processor, num_frames=6)([dataset[0]])["input_values"].shape[:2] == (1, 6)
    with pytest.raises(ValueError, match="clip-0.*has 4 frames.*room for 2"):
        CavMaeSyncCollator(processor, num_frames=2)([dataset[0]])


def test_collator__labels_of_both_kinds(shards):
    processor = tiny_processor()
    dataset = CavMaeSyncDataset(shards, processor)
    samples = [dataset[0], dataset[1] | {"labels": [0, 2]}]
    multi = CavMaeSyncCollator(processor, "multi_label_classification", 4)(samples)["labels"]
    assert multi.dtype == torch.float32 and multi.tolist() == [[1, 0, 0, 0], [1, 0, 1, 0]]
    single = CavMaeSyncCollator(processor, "single_label_classification", 4)
    assert single(samples[:1])["labels"].tolist() == [0] and single(samples[:1])["labels"].dtype == torch.int64
    with pytest.raises(ValueError, match="clip-1.*exactly one"):
        single(samples)
    with pytest.raises(ValueError, match="`num_labels` is 2"):
        CavMaeSyncCollator(processor, "multi_label_classification", 2)(samples)
    with pytest.raises(ValueError, match="number of classes"):
        CavMaeSyncCollator(processor, "multi_label_classification")


def test_pickling__data_set_and_collator(shards):
    processor = tiny_processor()
    dataset = CavMaeSyncDataset(shards, processor, frames="all")
    before = dataset[3]
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3]["input_values"], before["input_values"])
    collator = pickle.loads(pickle.dumps(CavMaeSyncCollator(processor, "multi_label_classification", 3)))
    assert collator([before])["labels"].shape == (1, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"alignment": "reference"}, "alignment='time'.*from_config.*'time'"), ({"channel": "mean"}, "channel='first'")],
)
def test_mismatch__names_the_remedy(shards, settings, message):
    with pytest.raises(DataError, match=message):
        CavMaeSyncDataset(shards, tiny_processor(**settings))


def test_mismatch__mel_bins(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "copy")
    index = json.loads((folder / INDEX_NAME).read_text())
    (folder / INDEX_NAME).write_text(json.dumps(index | {"num_mel_bins": 128}))
    with pytest.raises(DataError, match="num_mel_bins=128, the processor has 16"):
        CavMaeSyncDataset(folder, tiny_processor())


@pytest.mark.parametrize("fault", ["missing", "truncated", "empty", "header"])
def test_damaged_shard__is_named(shards, tmp_path, fault):
    folder = shutil.copytree(shards, tmp_path / "copy")
    path = folder / "set-00001.tar"
    data = path.read_bytes()
    if fault == "missing":
        path.unlink()
    else:
        damaged = {"truncated": data[:5000], "empty": b"", "header": data[:124] + b"rubbish!" + data[132:]}
        path.write_bytes(damaged[fault])
    dataset = CavMaeSyncDataset(folder, tiny_processor())
    dataset[0]
    with pytest.raises(DataError, match="set-00001.tar.*prepare"):
        dataset[3]


def test_threads__parse_array_headers_one_at_a_time(shards, monkeypatch):
    # Python 3.11's parser fails in two threads at once, and only seldom: what is held is that they never meet.
    parse, inside, met = ast.literal_eval, [], []

    def slow(text):
        met.append(len(inside))
        inside.append(text)
        time.sleep(0.01)
        inside.pop()
        return parse(text)

    dataset = CavMaeSyncDataset(shards, tiny_processor())
    monkeypatch.setattr(ast, "literal_eval", slow)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(dataset.__getitem__, range(4)))
    assert len(read) == len(met) == 4 and not any(met)


def test_remote_shards__are_fetched_and_removed(shards, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    memory = fsspec.filesystem("memory")
    for path in shards.iterdir():
        memory.pipe_file(f"/loading-test/{path.name}", path.read_bytes())
    dataset = CavMaeSyncDataset("memory://loading-test", tiny_processor(), frames="all")
    local = CavMaeSyncDataset(shards, tiny_processor(), frames="all")
    assert len(dataset) == 9
    for number in (8, 0):
        assert torch.equal(dataset[number]["input_values"], local[number]["input_values"])
    assert len(list(tmp_path.iterdir())) == 2
    # Workers fetch what they read and clean up when they end, but never their parent's copies.
    assert len(list(DataLoader(dataset, batch_size=None, num_workers=1))) == 9
    assert len(list(tmp_path.iterdir())) == 2
    dataset.source._open.clear()
    assert not list(tmp_path.iterdir())
    memory.rm("/loading-test", recursive=True)


def test_video_files__work_directly(tmp_path):
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4", seconds=2.0)
    processor = tiny_processor()
    dataset = CavMaeSyncDataset(tmp_path, processor, frames="all")
    assert len(dataset) == 2 and dataset.clip_ids() == ["a", "b"]
    expected = processor(videos=str(tmp_path / "b.mp4"), return_tensors="pt", return_times=True)
    sample = dataset[1]
    for name in ("pixel_values_videos", "input_values", "padding_mask"):
        assert torch.equal(sample[name], expected[name][0]), name
    assert torch.equal(sample["frame_times"], expected["frame_times"][0])
    listed = CavMaeSyncDataset(
        [{"path": str(tmp_path / "a.mp4"), "id": "one", "labels": [2], "start": 0.5, "end": 1.5}], processor
    )
    assert listed.labels() == [[2]]
    assert 0.0 <= float(listed[0]["frame_times"]) < 1.0


def test_forked_workers__after_a_video_was_decoded(tmp_path):
    """What is left of a decoder must not be freed in a worker, where its threads do not exist: that would hang."""
    path = write_clip(tmp_path / "a.mp4", seconds=1.0)
    gc.collect()
    gc.disable()  # so that the collector first runs in the worker
    try:
        decode_media(path, threads=2)
        loader = DataLoader(
            range(3), num_workers=1, timeout=20, multiprocessing_context="fork", worker_init_fn=_collect
        )
        assert [int(value) for value in loader] == [0, 1, 2]
    finally:
        gc.enable()


def _collect(worker: int) -> None:
    gc.collect()


def test_video_files__a_bad_one_is_named(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all" * 100)
    dataset = CavMaeSyncDataset(tmp_path, tiny_processor())
    with pytest.raises(ValueError, match="broken.mp4"):
        dataset[0]


def test_frames__nonsense_is_refused(shards):
    for frames in (0, -1, "some", True, 1.5):
        with pytest.raises(ValueError, match="positive number"):
            CavMaeSyncDataset(shards, tiny_processor(), frames=frames)
    with pytest.raises(IndexError, match="Clip 9 of 9"):
        CavMaeSyncDataset(shards, tiny_processor())[9]


def test_decode_jpeg__gives_pils_pixels_and_refuses_half_an_image():
    data = encode_jpeg(frame_of(3, 2), 90, "4:2:0")
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(decode_jpeg(data).permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
    with pytest.raises(OSError):
        decode_jpeg(data[: len(data) // 2])
    buffer = io.BytesIO()
    Image.fromarray(frame_of(0, 0)[0].numpy()).save(buffer, "PNG")
    assert decode_jpeg(buffer.getvalue()).shape == (3, 36, 48)  # grey, and no JPEG at all
