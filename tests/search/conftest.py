"""A tiny model, three clips and an index of them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor
from cavmae_sync_hf.search import IndexSummary, index_videos
from helpers.clips import noise, write_clip
from helpers.tiny import tiny_config


@pytest.fixture(scope="package")
def loaded() -> tuple[CavMaeSyncModel, CavMaeSyncProcessor]:
    torch.manual_seed(0)
    model = CavMaeSyncModel(tiny_config()).eval()
    return model, CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="package")
def media(tmp_path_factory) -> Path:
    """Three clips of one to two seconds."""
    folder = tmp_path_factory.mktemp("media")
    for seed, seconds in enumerate((1.0, 1.5, 2.0)):
        write_clip(folder / f"{seed}.mp4", seconds=seconds, audio=noise(seconds, seed=seed))
    return folder


@pytest.fixture
def folder(media, tmp_path) -> Path:
    return Path(shutil.copytree(media, tmp_path / "videos"))


@pytest.fixture
def many(tmp_path) -> Path:
    """Twelve clips of half a second."""
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(12):
        write_clip(folder / f"{seed:02d}.mp4", seconds=0.5, audio=noise(0.5, seed=seed))
    return folder


@pytest.fixture
def run(loaded, tmp_path) -> Callable[..., IndexSummary]:
    """Index a source into this test's index, a moment every 0.25 s."""

    def run(source, **options):
        return index_videos(source, options.pop("index", tmp_path / "index"), *loaded, **({"hop": 0.25} | options))

    return run
