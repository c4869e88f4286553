# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Tiny models that see several frames of a moment, and which numbered frames their inputs hold."""

from typing import Any

import torch

from cavmae_sync_hf.model.configuration_cavmae_sync import CavMaeSyncConfig
from cavmae_sync_hf.model.processing_cavmae_sync import CavMaeSyncProcessor
from helpers.clips import read_number
from helpers.tiny import tiny_config

SIDE = 48


def moment_config(frames_per_moment: int = 3, **settings: Any) -> CavMaeSyncConfig:
    """Of a tiny model for square numbered frames, which it sees as they are."""
    return tiny_config(image_size=SIDE, frames_per_moment=frames_per_moment, **settings)


def shown_numbers(pixels: torch.Tensor, processor: CavMaeSyncProcessor) -> list[list[int]]:
    """The numbers in the frames of each moment of a clip `(num_frames, channels, height, width)`."""
    view = processor.video_processor
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (view.image_mean, view.image_std))
    grey = (pixels.unflatten(1, (-1, 3)) * std + mean) * 255
    return [[read_number(frame.numpy()) for frame in moment] for moment in grey]
