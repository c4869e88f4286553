# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What the model is trained on: contrast between the modalities and reconstruction of hidden patches."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast


class ContrastiveLoss(NamedTuple):
    """Loss and accuracy of the contrastive objective, both scalars; the accuracy carries no gradient.

    The accuracy counts the pairs that had a negative to be told from, and is 0 when none had.
    """

    loss: Tensor
    accuracy: Tensor


def contrastive_loss(
    audio_embeds: Tensor,
    video_embeds: Tensor,
    temperature: float,
    bidirectional: bool = False,
    valid: Tensor | None = None,
    clip_ids: Tensor | None = None,
) -> ContrastiveLoss:
    """InfoNCE between the windows and the frames of a batch (CAV-MAE, `forward_contrastive`).

    One-directional as published: each frame must find its own window among all windows. Computed in float32.

    Args:
        audio_embeds: L2-normalised, shape `(pairs, hidden)`.
        video_embeds: L2-normalised, shape `(pairs, hidden)`.
        temperature: Divisor of the cosine similarities.
        bidirectional: Average with the opposite direction (a window must find its frame).
        valid: False for pairs to leave out on both sides, shape `(pairs,)`.
        clip_ids: Clip of each pair, shape `(pairs,)`; other moments of the same clip are then no negatives.
    """
    # Autocast would round the cosines, which the temperature multiplies, to half precision.
    with maybe_autocast(audio_embeds.device.type, enabled=False):
        logits = audio_embeds.float() @ video_embeds.to(audio_embeds.device).float().T / temperature  # (audio, video)
    pairs = torch.arange(logits.shape[0], device=logits.device)
    excluded = torch.zeros_like(logits, dtype=torch.bool)
    if valid is not None:
        excluded = ~(valid.unsqueeze(0) & valid.unsqueeze(1))
    if clip_ids is not None:
        excluded = excluded | (clip_ids.unsqueeze(0) == clip_ids.unsqueeze(1))
    # The true pair stays in its own softmax even where the pair is invalid: a row without any entry would be NaN.
    excluded = excluded & (pairs.unsqueeze(0) != pairs.unsqueeze(1))
    logits = logits.masked_fill(excluded, -torch.inf)
    weights = torch.ones_like(logits[0]) if valid is None else valid.to(logits.dtype)
    weights = weights / weights.sum().clamp(min=1)
    directions = (logits.T, logits) if bidirectional else (logits.T,)
    losses = [(nn.functional.cross_entropy(scores, pairs, reduction="none") * weights).sum() for scores in directions]
    contested = (weights > 0) & ((~excluded).sum(dim=0) > 1)  # `excluded` is symmetric
    contests = contested.sum().clamp(min=1)
    hits = [((scores.argmax(dim=1) == pairs) & contested).sum() / contests for scores in directions]
    return ContrastiveLoss(sum(losses[1:], losses[0]) / len(losses), (sum(hits[1:], hits[0]) / len(hits)).detach())


def reconstruction_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, norm_pix_loss: bool = True, valid: Tensor | None = None
) -> Tensor:
    """Mean squared error over the removed patches (MAE, He et al. 2022), a scalar in float32.

    Args:
        prediction: Shape `(samples, patches, patch values)`.
        target: The true patches, same shape.
        mask: 1 where a patch was removed, shape `(samples, patches)`.
        norm_pix_loss: Normalise each target patch by its own mean and (unbiased) variance.
        valid: False for samples without this modality, shape `(samples,)`; they do not count.
    """
    target = target.float()
    if norm_pix_loss:
        mean, std = patch_statistics(target)
        target = (target - mean) / std
    error = (prediction.float() - target).square().mean(dim=-1)
    if valid is not None:
        mask = mask * valid.unsqueeze(1).to(mask.dtype)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every patch, each `(..., patches, 1)`, as `norm_pix_loss` uses them."""
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (var + 1e-6).sqrt()


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut `(samples, channels, height, width)` into `(samples, rows * columns, patch_size**2 * channels)`.

    Patches are row-major; inside one the order is (row, column, channel), as in the published decoder's output.
    """
    samples, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(samples, channels, rows, patch_size, columns, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(samples, rows * columns, -1)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Put patches `(samples, rows * columns, patch_size**2 * channels)` back into images; inverse of `patchify`.

    Returns:
        Shape `(samples, channels, rows * patch_size, columns * patch_size)`.
    """
    rows, columns = grid
    if patches.shape[1] != rows * columns:
        raise ValueError(f"Got {patches.shape[1]} patches for a grid of {rows} x {columns}; pass their own grid.")
    images = patches.reshape(patches.shape[0], rows, columns, patch_size, patch_size, -1)
    return images.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], -1, rows * patch_size, columns * patch_size)


__all__ = [
    "ContrastiveLoss",
    "contrastive_loss",
    "patch_statistics",
    "patchify",
    "reconstruction_loss",
    "unpatchify",
]
