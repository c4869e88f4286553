# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How much arithmetic is a training step, and how much could the device do meanwhile?"""

import time

import torch

from ..configuration_cavmae_sync import CavMaeSyncConfig

__all__ = ["pretraining_flops", "measure_peak"]


def pretraining_flops(config: CavMaeSyncConfig) -> int:
    """Floating-point operations of one pair (a frame and its window) in a pretraining step, forward and backward.

    Matrix products alone, a multiply-add counted as two. The backward pass does twice the forward's, but for the
    projection of the patches, whose inputs need no gradient. Recomputation (activation checkpointing) is not counted,
    as is usual for a model's FLOP utilisation.
    """
    sizes = {
        "audio": (config.audio_grid[0] * config.audio_grid[1], config.audio_mask_ratio, config.patch_size**2),
        "video": (
            config.video_grid[0] * config.video_grid[1],
            config.video_mask_ratio,
            config.patch_size**2 * config.num_channels,
        ),
    }
    width, inner = config.hidden_size, config.intermediate_size
    extra = int(config.use_global_tokens)
    total, projected, fused, decoded = 0, 0, 0, 0
    for patches, ratio, values in sizes.values():
        kept = int(patches * (1 - ratio))
        # Every patch is projected before the masking picks among them.
        projected += 2 * patches * values * width
        total += config.num_modality_layers * _layer(kept + extra + config.num_register_tokens, width, inner)
        if config.contrastive_loss_weight:
            total += (config.num_joint_layers + config.num_contrastive_head_layers) * _layer(
                kept + extra, width, inner
            )
        fused += kept
        decoded += patches
        if config.reconstruction_loss_weight:
            total += 2 * patches * config.decoder_hidden_size * values
    if config.reconstruction_loss_weight:
        total += config.num_joint_layers * _layer(fused, width, inner)
        total += 2 * fused * width * config.decoder_hidden_size
        total += config.decoder_num_hidden_layers * _layer(
            decoded, config.decoder_hidden_size, config.decoder_intermediate_size
        )
    return 3 * total + 2 * projected


def _layer(tokens: int, width: int, inner: int) -> int:
    """Matrix products of a transformer layer: four projections, scores and their use, the feed-forward part."""
    return 2 * tokens * (4 * width * width + 2 * width * inner) + 4 * tokens * tokens * width


def measure_peak(device: torch.device, dtype: torch.dtype, size: int = 8192, seconds: float = 0.5) -> float:
    """Rate of a large matrix product on a CUDA device, in TFLOP/s: what is within reach, below the data sheet's."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    torch.cuda.synchronize(device)
    began, runs = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(5):
            left @ right
        torch.cuda.synchronize(device)
        runs += 5
    return runs * 2 * size**3 / (time.perf_counter() - began) / 1e12
