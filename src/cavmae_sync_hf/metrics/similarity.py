# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Similarity of the audio and the video of many clips.

Embeddings of a clip are `(frames, hidden)`, one per audio window or video frame. Both tensors of a set are compared as
matrix products over blocks of clips, so that neither the products nor the copies exceed a budget in bytes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

STRATEGIES = ("diagonal_mean", "diagonal_max", "mean", "max")
DEFAULT_CHUNK_BYTES = 512 * 2**20

Embeddings = Tensor | np.ndarray


class _Prepared(NamedTuple):
    """Some clips of one modality, ready for products.

    `features` is `(clips, frames * hidden)` for "diagonal_mean", `(clips, hidden)` for "mean" and otherwise
    `(frames, clips, hidden)`; `present` is `(clips, frames)`, True where there is a frame, or None if all are there.
    """

    features: Tensor
    present: Tensor | None


@dataclass(kw_only=True)
class Side:
    """One modality's embeddings, from which blocks of clips are taken and prepared."""

    name: str
    embeds: Embeddings
    mask: Embeddings | None
    strategy: str
    normalize: bool
    device: str | torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.clips, self.frames, self.hidden = (int(size) for size in self.embeds.shape)

    def prepare(self, clips: slice) -> _Prepared:
        embeds = on_device(self.embeds[clips], self.device).to(self.dtype)
        present = None if self.mask is None else on_device(self.mask[clips], self.device).bool()
        if present is not None:
            # What stands in for an absent frame may be anything, NaN included, and must not reach a product.
            embeds = embeds.masked_fill(~present.unsqueeze(-1), 0.0)
        lengths = torch.linalg.vector_norm(embeds, dim=-1, keepdim=True)
        # A vector that holds NaN or infinity has no finite length: a check without another pass over the values.
        if not torch.isfinite(lengths).all():
            first = clips.start + int((~torch.isfinite(lengths)).flatten(1).any(dim=1).nonzero()[0])
            raise ValueError(
                f"`{self.name}_embeds` of clip {first} hold NaN, infinity or values too large for {self.dtype}; leave "
                f"that clip out, or mark the frames as absent in `{self.name}_mask`."
            )
        if self.normalize:
            embeds = embeds / lengths.clamp_min(1e-12)
        if self.strategy == "diagonal_mean":
            return _Prepared(embeds.flatten(1), present)
        if self.strategy == "mean":
            # The mean over all pairs of frames is the product of the mean frames.
            count = embeds.shape[1] if present is None else present.sum(dim=1, keepdim=True).clamp(min=1)
            return _Prepared(embeds.sum(dim=1) / count, present)
        return _Prepared(embeds.transpose(0, 1).contiguous(), present)


def on_device(values: Embeddings, device: str | torch.device) -> Tensor:
    # A memory map is copied: it may be read-only, and torch would warn about sharing it.
    return (values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))).to(device)


def make_sides(
    audio_embeds: Embeddings,
    video_embeds: Embeddings,
    strategy: str,
    *,
    audio_mask: Embeddings | None = None,
    video_mask: Embeddings | None = None,
    normalize: bool = True,
    device: str | torch.device | None = None,
) -> tuple[Side, Side]:
    """Check the arguments shared by all functions here."""
    if strategy not in STRATEGIES:
        raise ValueError(f"`strategy` is {strategy!r}; choose one of {', '.join(STRATEGIES)}.")
    doubles, shapes = [], {}
    for name, embeds, mask in (("audio", audio_embeds, audio_mask), ("video", video_embeds, video_mask)):
        if not isinstance(embeds, Tensor | np.ndarray):
            raise ValueError(f"`{name}_embeds` is a {type(embeds).__name__}; pass a torch tensor or a numpy array.")
        shape = tuple(embeds.shape)
        if len(shape) != 3 or 0 in shape:
            raise ValueError(
                f"`{name}_embeds` has shape {shape}; it must be (clips, frames, hidden), none of them 0. One vector "
                "per clip is `embeds[:, None]`."
            )
        if mask is not None and tuple(mask.shape) != shape[:2]:
            raise ValueError(f"`{name}_mask` has shape {tuple(mask.shape)}; it must be (clips, frames) = {shape[:2]}.")
        floating = embeds.is_floating_point() if isinstance(embeds, Tensor) else embeds.dtype.kind == "f"
        if not floating:
            raise ValueError(f"`{name}_embeds` holds {embeds.dtype}; convert it to a floating-point type.")
        doubles.append(embeds.dtype in (torch.float64, np.dtype(np.float64)))
        shapes[name] = shape
    if shapes["audio"][2] != shapes["video"][2]:
        raise ValueError(
            f"The audio embeddings have {shapes['audio'][2]} dimensions, the video embeddings {shapes['video'][2]}; "
            "both must come from one model."
        )
    if strategy.startswith("diagonal") and shapes["audio"][1] != shapes["video"][1]:
        raise ValueError(
            f'strategy "{strategy}" compares window i with frame i, but there are {shapes["audio"][1]} windows and '
            f'{shapes["video"][1]} frames; embed as many of each, or use "mean" or "max".'
        )
    if device is None:
        device = audio_embeds.device if isinstance(audio_embeds, Tensor) else torch.device("cpu")
    # Half precision is for storing: cosines of neighbours in rank differ by less than it resolves.
    dtype = torch.float64 if all(doubles) else torch.float32
    shared: dict[str, Any] = {"strategy": strategy, "normalize": normalize, "device": device, "dtype": dtype}
    audio = Side(name="audio", embeds=audio_embeds, mask=audio_mask, **shared)
    return audio, Side(name="video", embeds=video_embeds, mask=video_mask, **shared)


def common_length(audio: Side, video: Side) -> int:
    if audio.clips != video.clips:
        raise ValueError(
            f"There are {audio.clips} clips of audio and {video.clips} of video; clip i of both must be the same clip."
        )
    return audio.clips


def _block_length(audio: Side, video: Side, chunk_bytes: int) -> int:
    """Clips of each modality in one block, so that a block's copies and products stay within the budget.

    Raises:
        ValueError: If the budget does not hold a single pair of clips.
    """
    size = torch.finfo(audio.dtype).bits // 8
    # Both modalities' features, and twice as much again while they are prepared.
    per_clip = 3 * size * (audio.frames * audio.hidden + video.frames * video.hidden)
    # Similarities of this block and of the one before it, which still serves, with scratch of the same size; for "max"
    # also the products with every frame.
    per_pair = size * (6 + (2 * video.frames if audio.strategy == "max" else 0))
    needed = per_clip + per_pair
    if chunk_bytes < needed:
        raise ValueError(f"`chunk_bytes` is {chunk_bytes}; one pair of clips of this shape needs {needed} bytes.")
    # per_pair * n**2 + per_clip * n = chunk_bytes
    length = (math.sqrt(per_clip**2 + 4 * per_pair * chunk_bytes) - per_clip) / (2 * per_pair)
    return max(1, int(length))


def slices(count: int, length: int) -> Iterator[slice]:
    for start in range(0, count, length):
        yield slice(start, min(start + length, count))


def similarity_blocks(audio: Side, video: Side, chunk_bytes: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """All (audio clips, video clips, similarities) in blocks."""
    length = _block_length(audio, video, chunk_bytes)
    # With one block of video it is prepared once, not once for every block of audio.
    only = video.prepare(slice(0, video.clips)) if video.clips <= length else None
    for rows in slices(audio.clips, length):
        left = audio.prepare(rows)
        for columns in slices(video.clips, length):
            right = video.prepare(columns) if only is None else only
            yield rows, columns, _scores(left, right, audio.strategy, audio.frames)
            del right  # before the next one is prepared


def _scores(left: _Prepared, right: _Prepared, strategy: str, frames: int) -> Tensor:
    """Similarities of every clip of `left` with every clip of `right`; -inf where no two frames are comparable."""
    if strategy in ("diagonal_mean", "mean"):
        scores = left.features @ right.features.T  # (left clips, right clips)
        if left.present is None and right.present is None:
            return scores.div_(frames) if strategy == "diagonal_mean" else scores
        here, there = _both_present(left, right, frames, strategy)
        if strategy == "diagonal_mean":
            shared = here.to(scores.dtype) @ there.to(scores.dtype).T
            scores.div_(shared.clamp(min=1))
            return scores.masked_fill_(shared == 0, -torch.inf)
        return scores.masked_fill_(~(here.any(dim=1)[:, None] & there.any(dim=1)), -torch.inf)
    masked = left.present is not None or right.present is not None
    here, there = _both_present(left, right, frames, strategy)
    best: Tensor | None = None
    for index in range(frames):
        if strategy == "diagonal_max":
            scores = left.features[index] @ right.features[index].T
            if masked:
                scores.masked_fill_(~(here[:, index, None] & there[:, index]), -torch.inf)
            best = scores if best is None else torch.maximum(best, scores, out=best)
            continue
        products = left.features[index] @ right.features.flatten(0, 1).T  # (left clips, right frames * right clips)
        products = products.view(len(products), *right.features.shape[:2])
        if masked:
            products.masked_fill_(~(here[:, index, None, None] & there.T), -torch.inf)
        scores = products.amax(dim=1)
        best = scores if best is None else torch.maximum(best, scores, out=best)
    assert best is not None  # there is at least one frame
    return best


def _both_present(left: _Prepared, right: _Prepared, frames: int, strategy: str) -> tuple[Tensor, Tensor]:
    """The masks of both sides, all True where none was given."""
    by_frame = strategy.endswith("max")
    masks = []
    for side in (left, right):
        clips = side.features.shape[1] if by_frame else side.features.shape[0]
        count = side.features.shape[0] if by_frame else frames
        full = torch.ones(clips, count, dtype=torch.bool, device=side.features.device)
        masks.append(full if side.present is None else side.present)
    return masks[0], masks[1]


@torch.no_grad()
def clip_similarity(
    audio_embeds: Embeddings,
    video_embeds: Embeddings,
    strategy: str = "diagonal_mean",
    *,
    audio_mask: Embeddings | None = None,
    video_mask: Embeddings | None = None,
    normalize: bool = True,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    device: str | torch.device | None = None,
) -> Tensor:
    """Similarity of every clip's audio with every clip's video.

    With `c_ts` the cosine of window t of one clip and frame s of another: "diagonal_mean" is the mean of `c_tt` (one
    matrix product), "diagonal_max" their maximum, "mean" the mean of all `c_ts` (one product of mean frames), "max"
    their maximum. These are the similarities of the published CAV-MAE Sync evaluation.

    Args:
        audio_embeds: Embedding of every audio window, shape `(audio clips, windows, hidden)`, of any floating type;
            memory maps are read block by block. Computed in float32, in float64 where both are.
        video_embeds: Embedding of every frame, shape `(video clips, frames, hidden)`. Diagonal strategies need as many
            frames as windows.
        strategy: One of `STRATEGIES`.
        audio_mask: True where a window is present, shape `(audio clips, windows)`; all of them without it. Absent
            frames take no part; pairs of clips without comparable frames are `-inf`.
        video_mask: True where a frame is present, shape `(video clips, frames)`.
        normalize: Scale every embedding to unit length first. Zero vectors stay zero.
        chunk_bytes: Working memory beyond the inputs and the result.
        device: Where to compute, by default where `audio_embeds` lie.

    Returns:
        Shape `(audio clips, video clips)`, where `audio_embeds` lie; no gradient.

    Raises:
        ValueError: On shapes or types that do not fit, NaN in the embeddings of a present frame, or a budget too small
            for one pair of clips.
    """
    audio, video = make_sides(
        audio_embeds,
        video_embeds,
        strategy,
        audio_mask=audio_mask,
        video_mask=video_mask,
        normalize=normalize,
        device=device,
    )
    home = audio_embeds.device if isinstance(audio_embeds, Tensor) else torch.device("cpu")
    similarity = torch.empty(audio.clips, video.clips, dtype=audio.dtype, device=home)
    for rows, columns, scores in similarity_blocks(audio, video, chunk_bytes):
        similarity[rows, columns] = scores
    return similarity


@torch.no_grad()
def paired_similarity(
    audio_embeds: Embeddings,
    video_embeds: Embeddings,
    strategy: str = "diagonal_mean",
    *,
    audio_mask: Embeddings | None = None,
    video_mask: Embeddings | None = None,
    normalize: bool = True,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    device: str | torch.device | None = None,
) -> Tensor:
    """Similarity of clip i's audio with clip i's video only: the diagonal of `clip_similarity`.

    Arguments as for `clip_similarity`, with as many clips of audio as of video.

    Returns:
        Shape `(clips,)`, where `audio_embeds` lie.

    Raises:
        ValueError: As `clip_similarity`, and where the numbers of clips differ.
    """
    audio, video = make_sides(
        audio_embeds,
        video_embeds,
        strategy,
        audio_mask=audio_mask,
        video_mask=video_mask,
        normalize=normalize,
        device=device,
    )
    count = common_length(audio, video)
    home = audio_embeds.device if isinstance(audio_embeds, Tensor) else torch.device("cpu")
    size = torch.finfo(audio.dtype).bits // 8
    per_clip = size * (4 * audio.frames * audio.hidden + 4 * video.frames * video.hidden + audio.frames * video.frames)
    if chunk_bytes < per_clip:
        raise ValueError(f"`chunk_bytes` is {chunk_bytes}; one pair of clips of this shape needs {per_clip} bytes.")
    similarity = torch.empty(count, dtype=audio.dtype, device=home)
    for clips in slices(count, chunk_bytes // per_clip):
        similarity[clips] = _paired_scores(audio.prepare(clips), video.prepare(clips), strategy, audio.frames).to(home)
    return similarity


def _paired_scores(left: _Prepared, right: _Prepared, strategy: str, frames: int) -> Tensor:
    """`_scores` of clip i with clip i, shape `(clips,)`."""
    here, there = _both_present(left, right, frames, strategy)
    if strategy == "diagonal_mean":
        shared = (here & there).sum(dim=1)
        scores = (left.features * right.features).sum(dim=1) / shared.clamp(min=1)
        return scores.masked_fill_(shared == 0, -torch.inf)
    if strategy == "mean":
        scores = (left.features * right.features).sum(dim=1)
        return scores.masked_fill_(~(here.any(dim=1) & there.any(dim=1)), -torch.inf)
    if strategy == "diagonal_max":
        scores = (left.features * right.features).sum(dim=-1)  # (frames, clips)
        return scores.masked_fill_(~(here & there).T, -torch.inf).amax(dim=0)
    products = torch.einsum("tnd,snd->nts", left.features, right.features)
    return products.masked_fill_(~(here[:, :, None] & there[:, None]), -torch.inf).amax(dim=(1, 2))
