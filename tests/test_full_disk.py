# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A disk that takes no more: the error names file and remedy, nothing half-written stays, and a rerun ends well.

The kernel is asked to refuse files beyond some bytes, which needs no disk of its own and reaches every library.
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cavmae_sync_hf import CavMaeSyncModel, DataError, save_for_hub
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.data.prepare import prepare
from cavmae_sync_hf.evaluation import write_results
from cavmae_sync_hf.export import export_model
from cavmae_sync_hf.inference.extract import extract_to_folder
from cavmae_sync_hf.model.errors_cavmae_sync import DiskError
from cavmae_sync_hf.search import index_status, index_videos
from cavmae_sync_hf.syncworld import make_world
from cavmae_sync_hf.training import last_checkpoint
from cavmae_sync_hf.training.feature_cache import cached_features
from helpers.clips import noise, write_clip
from helpers.pretraining_runs import make_trainer, weights
from helpers.tiny import tiny_config
from helpers.tiny_shards import tiny_processor, write_shards

resource = pytest.importorskip("resource")
KEPT = "make room and run the same again. Nothing half-written is left, and what was finished before is kept."


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def pair() -> tuple[CavMaeSyncModel, Any]:
    torch.manual_seed(0)
    return CavMaeSyncModel(tiny_config()).eval(), tiny_processor()


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number, seconds in enumerate((1.0, 3.0, 3.0)):
        write_clip(folder / f"{number}.mp4", seconds=seconds, audio=noise(seconds, 16000, 1, number), rate=16000)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), [4, 4])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def partial_files(folder: Path) -> list[Path]:
    """What runs call things that they have begun."""
    return [path for path in folder.rglob("*") if "partial-" in path.name]


Writer = Callable[[Any, Path, Path, Path], Any]
RESUMED: dict[str, tuple[int, str, Writer]] = {
    "extract": (1400, r"part-000001/\w+\.\w+: cannot be written", lambda pair, videos, shards, out: extract_to_folder(
        *pair, videos, out, window=0.5, stride=0.25, hop=0.25)),
    "extract_joining": (10_000, r"a\.npy: cannot be written .*10.0 kB of 13.3 kB written",
        lambda pair, videos, shards, out: extract_to_folder(
            *pair, [{"id": str(n), "path": str(videos / "1.mp4")} for n in range(4)], out,
            window=0.5, stride=0.1, hop=0.1, modalities=["a"])),
    "extract_parquet": (6000, r"part-00000\d\.parquet: cannot be written", lambda pair, videos, shards, out: (
        extract_to_folder(*pair, videos, out, window=0.5, stride=0.1, hop=0.1, format="parquet"))),
    "prepare": (90_000, r"train-00001\.tar: cannot be written", lambda pair, videos, shards, out: prepare(
        videos, out, workers=1, clips_per_shard=1)),
    "world": (12_000, r"\.mp4: cannot be written", lambda pair, videos, shards, out: make_world(
        out, clips=2, seconds=3.0, size=48, preset="spatial", workers=1)),
    "features": (1000, r"part-00000\.npz: cannot be written", lambda pair, videos, shards, out: cached_features(
        pair[0], CavMaeSyncDataset(shards, pair[1], frames="all"), ["a"], out)),
}  # fmt: skip
WHOLE: dict[str, tuple[int, str, Writer]] = {
    "save_for_hub": (20_000, r"/out/[\w.]+: cannot be written", lambda pair, videos, shards, out: (
        save_for_hub(*pair, out))),
    "export_torch": (50_000, r"tower\.pt2: cannot be written", lambda pair, videos, shards, out: (
        export_model(*pair, out, format="torch"))),
    "results": (100, r"out: cannot be written .* of .* written", lambda pair, videos, shards, out: (
        write_results(out, {"metrics": dict.fromkeys(map(str, range(100)), 0.5)}))),
}  # fmt: skip


@pytest.mark.parametrize("what", RESUMED)
def test_full_disk__what_is_done_is_kept_and_a_rerun_ends_as_if_nothing_had_been(what, pair, videos, shards, tmp_path):
    size, words, write = RESUMED[what]
    with largest_file(size), pytest.raises((DiskError, DataError), match=words) as caught:
        write(pair, videos, shards, tmp_path / "out")

    assert KEPT in str(caught.value) and " free); " in str(caught.value) and "File too large" in str(caught.value)
    assert partial_files(tmp_path) == []
    write(pair, videos, shards, tmp_path / "out")
    write(pair, videos, shards, tmp_path / "whole")
    assert partial_files(tmp_path) == []
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("what", WHOLE)
def test_full_disk__leaves_nothing(what, pair, videos, shards, tmp_path):
    if what == "export_torch" and sys.platform == "win32":
        pytest.skip("has no such limit")
    size, words, write = WHOLE[what]
    with largest_file(size), pytest.raises(DiskError, match=words) as caught:
        write(pair, videos, shards, tmp_path / "out")

    assert KEPT in str(caught.value) and " free); " in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_full_disk__index_stays_whole_and_goes_on(pair, videos, tmp_path):
    pytest.importorskip("lancedb")
    out = tmp_path / "index"
    index_videos(videos / "0.mp4", out, *pair, hop=0.25)
    before = index_status(out, check=True)

    with (
        largest_file(4000),
        pytest.raises(DiskError, match="index: cannot be written .File too large; .* free") as caught,
    ):
        index_videos(videos, out, *pair, hop=0.25, thumbnails=64)

    assert KEPT in str(caught.value)
    assert index_status(out, check=True)["clips"] == before["clips"] == 1
    assert index_videos(videos, out, *pair, hop=0.25).added == 2
    assert index_status(out, check=True)["clips"] == 3 and index_status(out)["loose_rows"] == 0


def test_full_disk__checkpoint_is_whole_or_not_there(shards, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(shards, tmp_path / "out", **settings)
    save = trainer._save_checkpoint

    def fill(*arguments: Any) -> None:
        with largest_file(1 << 30 if trainer.state.global_step == 2 else 300_000):
            save(*arguments)

    trainer._save_checkpoint = fill
    with pytest.raises(DiskError, match=r"checkpoint-4/[\w.]+: cannot be written") as caught:
        trainer.train()

    kept = last_checkpoint(tmp_path / "out")
    assert KEPT in str(caught.value) and f"Pass resume_from_checkpoint='{kept}' to go on." in str(caught.value)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    again, whole = make_trainer(shards, tmp_path / "out", **settings), make_trainer(shards, tmp_path / "w", **settings)
    again.train(resume_from_checkpoint=str(kept))
    whole.train()
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(again).items())


def test_full_disk__final_model_leaves_the_earlier_one(shards, tmp_path):
    trainer = make_trainer(shards, tmp_path / "out", max_steps=1)
    trainer.save_model()
    before = files_of(tmp_path / "out")

    with largest_file(50_000), pytest.raises(DiskError, match=r"/out/[\w.]+: cannot be written"):
        trainer.save_model()

    assert files_of(tmp_path / "out") == before


def test_full_disk__full_temporary_folder_ends_an_index_and_blames_no_file(pair, videos, tmp_path, monkeypatch):
    pytest.importorskip("lancedb")
    from cavmae_sync_hf.search import embedding

    monkeypatch.setattr(embedding, "_BLOCK_ROWS", 2)
    with largest_file(3000), pytest.raises(DiskError, match=f"{tempfile.gettempdir()}: cannot be written"):
        index_videos(videos, tmp_path / "index", *pair, hop=0.05)
    summary = index_videos(videos, tmp_path / "index", *pair, hop=0.05)
    assert summary.errors == {} and summary.total_clips == 3
