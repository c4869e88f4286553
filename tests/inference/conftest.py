# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Fixtures of the tests of what is done with a trained model."""

from pathlib import Path

import pytest
import torch

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor
from cavmae_sync_hf.syncworld import make_world
from helpers.clips import noise, write_clip
from helpers.tiny import tiny_config

# Frames appear at the very times of moments half a second apart.
FPS = 4


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model = CavMaeSyncModel(tiny_config()).eval()
    return model, CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Three videos of 6, 4 and 5 s."""
    folder = tmp_path_factory.mktemp("videos")
    for number, seconds in enumerate((6.0, 4.0, 5.0)):
        write_clip(folder / f"{number}.mp4", seconds=seconds, fps=FPS, audio=noise(seconds, seed=number))
    return folder


@pytest.fixture(scope="session")
def spatial_world(tmp_path_factory) -> Path:
    """Three clips in which one of two objects sounds, of the size of the example model."""
    folder = tmp_path_factory.mktemp("spatial")
    make_world(folder, clips=3, preset="spatial", split="spatial", seed=5, size=96)
    return folder / "spatial"
