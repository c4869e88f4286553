# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The losses of pretraining: contrast between the modalities and reconstruction of removed patches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast

from .distributed_cavmae_sync import gather_sizes, gather_with_gradient, share_of_mean


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
    *,
    bidirectional: bool = False,
    valid: Tensor | None = None,
    clip_ids: Tensor | None = None,
    distributed: bool = False,
) -> ContrastiveLoss:
    """InfoNCE between the windows and the frames of a batch (CAV-MAE, `forward_contrastive`).

    One-directional as published: each frame must find its own window among all windows. Computed in float32.

    Args:
        audio_embeds: L2-normalised, shape `(pairs, hidden)`.
        video_embeds: L2-normalised, shape `(pairs, hidden)`.
        temperature: Divisor of the cosine similarities.
        bidirectional: Average with the opposite direction (a window must find its frame).
        valid: False for pairs to leave out on both sides, shape `(pairs,)`.
        clip_ids: Clip of each pair, numbers from 0 to below `pairs`, shape `(pairs,)`; other moments of the same clip
            are then no negatives.
        distributed: Contrast with the pairs of all processes, which must all call this with the same settings; their
            numbers of pairs may differ. The loss is then this process's share (see `share_of_mean`): averaged over
            the processes, as data-parallel training does with gradients, it is the loss of the joined batch.
    """
    return _info_nce(
        audio_embeds, video_embeds, temperature, _products, _products, bidirectional=bidirectional, valid=valid,
        clip_ids=clip_ids, distributed=distributed,
    )  # fmt: skip


def dense_contrastive_loss(audio_patches: Tensor, video_patches: Tensor, temperature: float, **options: Any) -> Tensor:
    """InfoNCE between windows and frames that are compared patch by patch, see `dense_similarities`, a scalar.

    Args:
        audio_patches: L2-normalised, `(pairs, patches, size)`.
        video_patches: L2-normalised, `(pairs, patches, size)`.
        temperature: Divisor of the similarities.
        options: As of `contrastive_loss`.
    """
    return _info_nce(
        audio_patches, video_patches, temperature, lambda frames, windows: dense_similarities(windows, frames).T,
        dense_similarities, **options,
    ).loss  # fmt: skip


def dense_similarities(audio_patches: Tensor, video_patches: Tensor) -> Tensor:
    """Of every window with every frame: mean over its patches of the largest cosine with the frame's (DenseAV).

    Args:
        audio_patches: L2-normalised, `(windows, patches, size)`.
        video_patches: L2-normalised, `(frames, patches, size)`.

    Returns:
        `(windows, frames)`.
    """
    return torch.einsum("apd,vqd->avpq", audio_patches, video_patches).amax(dim=-1).mean(dim=-1)


def dense_regularization(
    audio_patches: Tensor,
    video_patches: Tensor,
    *,
    places: Tensor,
    grid: tuple[int, int],
    silent: Tensor | None,
    weights: tuple[float, float, float],
    valid: Tensor | None = None,
    distributed: bool = False,
) -> Tensor:
    """DenseAV's regularisers of the cosines of a window's patches with its frame's: their weighted sum, a scalar.

    Args:
        audio_patches: L2-normalised, `(pairs, patches, size)`.
        video_patches: L2-normalised, `(pairs, patches, size)`.
        places: Where in the window's grid its patches are, `(pairs, patches)`, mel-major.
        grid: Rows and columns of it.
        silent: True for audio patches of silence, `(pairs, patches)`; `None`: none is known to be.
        weights: Of cosines below 0, of those of silence, and of changes from a patch to the next in time, all squared;
            each is a mean over the cosines that it is about.
        valid: False for pairs to leave out, `(pairs,)`.
        distributed: As of `contrastive_loss`.
    """
    with maybe_autocast(audio_patches.device.type, enabled=False):
        cosines = torch.einsum("apd,aqd->apq", audio_patches.float(), video_patches.float())
    there = torch.ones_like(places, dtype=torch.bool) if valid is None else valid.unsqueeze(1).expand(places.shape)
    squares = cosines.square().mean(dim=-1)
    parts = [(cosines.clamp(max=0).square().mean(dim=-1), there)]
    parts.append((squares, there & silent if silent is not None else torch.zeros_like(there)))
    size = grid[0] * grid[1]
    everywhere = cosines.new_zeros(len(cosines), size, cosines.shape[-1])
    everywhere = everywhere.scatter(1, places.unsqueeze(-1).expand_as(cosines), cosines).unflatten(1, grid)
    known = torch.zeros(len(places), size, dtype=torch.bool, device=places.device)
    known = known.scatter(1, places, there).unflatten(1, grid)
    steps = (everywhere[:, :, 1:] - everywhere[:, :, :-1]).square().mean(dim=-1)
    parts.append((steps, known[:, :, 1:] & known[:, :, :-1]))
    losses = [
        weight * share_of_mean((values * counted).sum(), counted.sum(), distributed)
        for weight, (values, counted) in zip(weights, parts, strict=True)
    ]
    return torch.stack(losses).sum()


def _products(queries: Tensor, keys: Tensor) -> Tensor:
    return queries @ keys.T


def _info_nce(
    audio_embeds: Tensor,
    video_embeds: Tensor,
    temperature: float,
    frames_to_windows: Callable[[Tensor, Tensor], Tensor],
    windows_to_frames: Callable[[Tensor, Tensor], Tensor],
    *,
    bidirectional: bool = False,
    valid: Tensor | None = None,
    clip_ids: Tensor | None = None,
    distributed: bool = False,
) -> ContrastiveLoss:
    """As `contrastive_loss`, of what two functions compare: each gives `(first, second)` of its two arguments."""
    count, device = len(audio_embeds), audio_embeds.device
    video_embeds = video_embeds.to(device)
    valid = torch.ones(count, dtype=torch.bool, device=device) if valid is None else valid.to(device)
    own = torch.arange(count, device=device)
    clip_ids = own if clip_ids is None else clip_ids.to(device)
    all_audio, all_video, all_valid, all_clips = audio_embeds, video_embeds, valid, clip_ids
    if distributed:
        sizes = gather_sizes(count)[0]
        own = own + sum(sizes[: dist.get_rank()])
        clip_ids = clip_ids + own[:1]
        all_audio = gather_with_gradient(audio_embeds.float(), sizes)
        all_video = gather_with_gradient(video_embeds.float(), sizes) if bidirectional else video_embeds
        all_valid, all_clips = gather_with_gradient(torch.stack([valid.long(), clip_ids], dim=1), sizes).unbind(1)

    excluded = ~(valid.unsqueeze(1) & all_valid.bool()) | (clip_ids.unsqueeze(1) == all_clips)
    # The true pair stays in its own softmax even where the pair is invalid: a row without any entry would be NaN.
    excluded = excluded & (own.unsqueeze(1) != torch.arange(len(all_valid), device=device))
    contested = valid & ((~excluded).sum(dim=1) > 1)
    losses, hits = [], []
    ways = ((video_embeds, all_audio, frames_to_windows), (audio_embeds, all_video, windows_to_frames))
    for queries, keys, compare in ways[: 2 if bidirectional else 1]:
        # Autocast would round the cosines, which the temperature multiplies, to half precision.
        with maybe_autocast(device.type, enabled=False):
            scores = compare(queries.float(), keys.float()) / temperature  # (own pairs, all pairs)
        scores = scores.masked_fill(excluded, -torch.inf)
        losses.append((nn.functional.cross_entropy(scores, own, reduction="none") * valid).sum())
        hits.append(((scores.argmax(dim=1) == own) & contested).sum())
    loss = share_of_mean(torch.stack(losses).mean(), valid.sum(), distributed)
    accuracy = share_of_mean(torch.stack(hits).float().mean(), contested.sum(), distributed)
    return ContrastiveLoss(loss, accuracy.detach())


def text_loss(
    logits: Tensor,
    positives: Tensor,
    kind: str = "sigmoid",
    valid: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Loss of texts and clips of which any may belong to any, a scalar in float32.

    `"sigmoid"` judges every pair by itself: `-mean_t sum_b log sigmoid(z * logit)` with `z` 1 for pairs that belong
    together and -1 for others (SigLIP, Zhai et al. 2023, algorithm 1, with several positives in a row). `"softmax"`
    is InfoNCE in both directions, where the probabilities of all that belong to a row count together.

    Args:
        logits: Of every text with every clip, `(texts, clips)`.
        positives: True where they belong together, same shape.
        kind: `"sigmoid"` or `"softmax"`.
        valid: False for clips that lack what is compared, `(clips,)`.
        weights: How often each pair counts in the sigmoid loss, `(texts, clips)`; default: once.
    """
    logits = logits.float()
    if valid is None:
        valid = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    if kind == "sigmoid":
        signs = positives.to(logits.dtype) * 2 - 1
        counted = valid if weights is None else valid * weights
        return -(nn.functional.logsigmoid(signs * logits) * counted).sum() / max(1, len(logits))
    losses = []
    for scores, wanted in (
        (logits.masked_fill(~valid, -torch.inf), positives & valid),
        (logits.T[valid], positives.T[valid]),
    ):
        rows = wanted.any(dim=1)  # a text without a clip, such as a made negative, asks for nothing
        if bool(rows.any()):
            found = scores[rows].masked_fill(~wanted[rows], -torch.inf).logsumexp(dim=1)
            losses.append((scores[rows].logsumexp(dim=1) - found).mean())
    return torch.stack(losses).mean() if losses else logits.sum() * 0.0


def moment_loss(logits: Tensor, targets: Tensor, valid: Tensor, distributed: bool = False) -> Tensor:
    """Binary cross-entropy of moments inside and outside of a text's span, both halves with the same weight.

    Args:
        logits: Of each text at the moments of its own clip, `(texts, moments)`.
        targets: True where the text's span meets the moment, same shape.
        valid: False for moments that do not count, same shape.
        distributed: Whether all processes compute this loss together; then it is this one's share.
    """
    loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    halves = [
        share_of_mean((loss * part).sum(), part.sum(), distributed) for part in (targets & valid, ~targets & valid)
    ]
    return torch.stack(halves).mean()


def bridge_loss(embeds: Tensor, targets: Tensor, scale: Tensor, distributed: bool = False) -> Tensor:
    """How far embeddings are from where another model puts the same frames, a scalar in float32.

    One minus the cosine with its target, and the divergence (Kullback-Leibler) of how alike an embedding is to all
    targets of the batch from how alike its own target is to them. So frames that look alike, such as neighbours in a
    clip, are not driven apart, as they would be by telling each target from all others.

    Args:
        embeds: L2-normalised, `(moments, width)`.
        targets: L2-normalised, without a gradient, same shape.
        scale: What cosines are multiplied by.
        distributed: Compare with the targets of all processes; then the loss is this one's share.
    """
    embeds, targets = embeds.float(), targets.float()
    everyone = gather_with_gradient(targets, *gather_sizes(len(targets))) if distributed else targets
    wanted = (scale * targets @ everyone.T).log_softmax(dim=-1)
    found = (scale * embeds @ everyone.T).log_softmax(dim=-1)
    divergence = nn.functional.kl_div(found, wanted, reduction="none", log_target=True).sum()
    distance = (1 - (embeds * targets).sum(dim=-1)).sum()
    return share_of_mean(divergence + distance, torch.tensor(len(embeds), device=embeds.device), distributed)


def reconstruction_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    norm_pix_loss: bool = True,
    valid: Tensor | None = None,
    distributed: bool = False,
) -> Tensor:
    """Mean squared error over the removed patches (MAE, He et al. 2022), a scalar in float32.

    Args:
        prediction: Shape `(samples, patches, patch values)`.
        target: The true patches, same shape.
        mask: 1 where a patch was removed, shape `(samples, patches)`.
        norm_pix_loss: Normalise each target patch by its own mean and (unbiased) variance.
        valid: False for samples without this modality, shape `(samples,)`; they do not count.
        distributed: Average over the patches of all processes, as in `contrastive_loss`.
    """
    target = target.float()
    if norm_pix_loss:
        mean, std = patch_statistics(target)
        target = (target - mean) / std
    error = (prediction.float() - target).square().mean(dim=-1)
    if valid is not None:
        mask = mask * valid.unsqueeze(1).to(mask.dtype)
    return share_of_mean((error * mask).sum(), mask.sum(), distributed)


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
    "bridge_loss",
    "contrastive_loss",
    "dense_contrastive_loss",
    "dense_regularization",
    "dense_similarities",
    "moment_loss",
    "patch_statistics",
    "patchify",
    "reconstruction_loss",
    "text_loss",
    "unpatchify",
]
