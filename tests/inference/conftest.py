# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Fixtures of the feature extraction tests."""

from pathlib import Path

import pytest
import torch

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor
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
