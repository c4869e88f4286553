# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics of retrieval: which rank the audio of a clip gives its video, and the video its audio.

Ranks are counted block by block of the similarity matrix, for both directions at once, so that the whole matrix is
never held.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .similarity import (
    DEFAULT_CHUNK_BYTES,
    Embeddings,
    common_length,
    make_sides,
    on_device,
    paired_similarity,
    similarity_blocks,
    slices,
)

TIES = ("expected", "optimistic", "pessimistic")
# A cosine summed in another order differs in its last bits (float32: below 4e-7 for unit vectors of 16 x 768). Closer
# than this, two similarities are taken as equal, or equal clips would be ranked by rounding.
COSINE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class RetrievalRanks:
    """How the true match of every query compares with the other candidates.

    Args:
        better: Candidates more similar to the query than its true match, int64 of shape `(queries,)`.
        tied: Other candidates exactly as similar (within the tolerance), int64 of shape `(queries,)`.
        candidates: Size of the gallery, the true match included.
    """

    better: Tensor
    tied: Tensor
    candidates: int

    def ranks(self, ties: str = "expected") -> Tensor:
        """Rank of the true match from 1, float64 of shape `(queries,)`; see `rank_metrics` for `ties`."""
        _check_ties(ties)
        share = {"optimistic": 0.0, "expected": 0.5, "pessimistic": 1.0}[ties]
        return 1.0 + self.better.double() + share * self.tied.double()

    def recalls(self, k: int, ties: str = "expected") -> Tensor:
        """Chance of every query that its true match is among the first `k`, float64 of shape `(queries,)`."""
        if k < 1:
            raise ValueError(f"k is {k}; recall at k needs at least 1.")
        if ties != "expected":
            return (self.ranks(ties) <= k).double()
        # The true match is equally likely in each of the `tied + 1` places after the better candidates.
        return ((k - self.better.double()) / (self.tied.double() + 1)).clamp(0, 1)


def _check_ties(ties: str) -> None:
    if ties not in TIES:
        raise ValueError(f"`ties` is {ties!r}; choose one of {', '.join(TIES)}.")


class _Counter:
    """Counts, over blocks, the candidates above and level with the true match; rows or columns are the queries."""

    def __init__(self, true_scores: Tensor, tolerance: float) -> None:
        # Counting is comparison with two thresholds; their difference is what is level with the true match.
        self.upper, self.lower = true_scores + tolerance, true_scores - tolerance
        self.above = torch.zeros(len(true_scores), dtype=torch.int64, device=true_scores.device)
        self.level_or_above = torch.zeros_like(self.above)

    def update(self, queries: slice, scores: Tensor, scratch: Tensor, queries_are_rows: bool) -> None:
        """Scores may hold NaN for what does not count: no comparison with it is true."""
        ones = scores.new_ones(scores.shape[1 if queries_are_rows else 0])
        for total, threshold, compare in (
            (self.above, self.upper, torch.gt),
            (self.level_or_above, self.lower, torch.ge),
        ):
            limits = threshold[queries]
            compare(scores, limits[:, None] if queries_are_rows else limits, out=scratch)
            # Products with ones: several times the speed of sums of booleans, and exact below 2**24 candidates.
            total[queries] += (scratch @ ones if queries_are_rows else ones @ scratch).long()

    def result(self, candidates: int) -> RetrievalRanks:
        return RetrievalRanks(self.above.cpu(), (self.level_or_above - self.above).cpu(), candidates)


def count_blocks(
    true_scores: Tensor, blocks: Iterator[tuple[slice, slice, Tensor]], tolerance: float
) -> tuple[RetrievalRanks, RetrievalRanks]:
    """Both directions' ranks from blocks of the matrix; the blocks are overwritten."""
    if tolerance < 0:
        raise ValueError(f"`tolerance` is {tolerance}; it must not be negative.")
    by_row, by_column = _Counter(true_scores, tolerance), _Counter(true_scores, tolerance)
    for rows, columns, scores in blocks:
        first, last = max(rows.start, columns.start), min(rows.stop, columns.stop)
        if first < last:
            own = torch.arange(first, last, device=scores.device)
            scores[own - rows.start, own - columns.start] = torch.nan
        scratch = torch.empty_like(scores)
        by_row.update(rows, scores, scratch, queries_are_rows=True)
        by_column.update(columns, scores, scratch, queries_are_rows=False)
    return by_row.result(len(true_scores)), by_column.result(len(true_scores))


@torch.no_grad()
def similarity_ranks(
    similarity: Tensor | np.ndarray, *, tolerance: float = 0.0, chunk_bytes: int = DEFAULT_CHUNK_BYTES
) -> tuple[RetrievalRanks, RetrievalRanks]:
    """Ranks of the true matches, the diagonal, in a whole similarity matrix.

    Args:
        similarity: Rows are audio, columns are video, shape `(clips, clips)`; `-inf` is allowed, NaN is not.
        tolerance: Similarities no further apart than this count as equal.
        chunk_bytes: Working memory beyond the matrix.

    Returns:
        Ranks for the audio queries (rows) and for the video queries (columns).

    Raises:
        ValueError: If the matrix is not square, not of floating type, or holds NaN.
    """
    if len(similarity.shape) != 2 or similarity.shape[0] != similarity.shape[1] or similarity.shape[0] == 0:
        raise ValueError(f"The similarity matrix has shape {tuple(similarity.shape)}; it must be (clips, clips).")
    count = int(similarity.shape[0])
    device = similarity.device if isinstance(similarity, Tensor) else torch.device("cpu")
    wide = similarity.dtype in (torch.float64, np.dtype(np.float64))
    dtype = torch.float64 if wide else torch.float32
    length = max(1, chunk_bytes // (2 * count * torch.finfo(dtype).bits // 8))

    def blocks() -> Iterator[tuple[slice, slice, Tensor]]:
        for rows in slices(count, length):
            block = on_device(similarity[rows], device)
            block = block.clone() if block.dtype == dtype else block.to(dtype)
            if block.isnan().any():
                row = rows.start + int(block.isnan().any(dim=1).nonzero()[0])
                raise ValueError(f"The similarity matrix holds NaN in row {row}; use -inf for what must rank last.")
            yield rows, slice(0, count), block

    diagonal = similarity.diagonal() if isinstance(similarity, Tensor) else np.diagonal(similarity)
    return count_blocks(on_device(diagonal, device).to(dtype), blocks(), tolerance)


@torch.no_grad()
def retrieval_ranks(
    audio_embeds: Embeddings,
    video_embeds: Embeddings,
    strategy: str = "diagonal_mean",
    *,
    audio_mask: Embeddings | None = None,
    video_mask: Embeddings | None = None,
    normalize: bool = True,
    tolerance: float = COSINE_TOLERANCE,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    device: str | torch.device | None = None,
) -> tuple[RetrievalRanks, RetrievalRanks]:
    """Ranks of the true matches from embeddings, without the similarity matrix.

    One pass over blocks of the matrix serves both directions. Beyond the inputs, which may be memory maps, memory is
    `chunk_bytes` and about 70 bytes a clip.

    Args:
        audio_embeds: As for `clip_similarity`; clip i of both is the same clip.
        video_embeds: As for `clip_similarity`.
        strategy: One of `STRATEGIES`.
        audio_mask: As for `clip_similarity`. A clip whose own audio and video share no frame has a true similarity
            of `-inf`: every comparable clip ranks before it.
        video_mask: As for `clip_similarity`.
        normalize: Scale every embedding to unit length first.
        tolerance: Similarities no further apart than this count as equal; the default is the rounding of float32.
        chunk_bytes: Working memory.
        device: Where to compute, by default where `audio_embeds` lie.

    Returns:
        Ranks for the audio queries and for the video queries, on the CPU.

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
    common_length(audio, video)
    options: dict[str, Any] = {"normalize": normalize, "chunk_bytes": chunk_bytes, "device": device}
    true_scores = paired_similarity(
        audio_embeds, video_embeds, strategy, audio_mask=audio_mask, video_mask=video_mask, **options
    )
    return count_blocks(true_scores.to(audio.device), similarity_blocks(audio, video, chunk_bytes), tolerance)


def rank_metrics(ranks: RetrievalRanks, ks: Sequence[int] = (1, 5, 10), ties: str = "expected") -> dict[str, float]:
    """Recall at k, median and mean rank of one direction.

    Ties are counted once, whichever way: every query adds one rank and one chance to be right.

    Args:
        ranks: One direction's ranks.
        ks: Values of k for the recall.
        ties: Where the true match stands among candidates exactly as similar. "expected": in random order, so that
            recall is the probability to be among the first k and the rank is the mean of its places; a model that
            gives every clip one embedding then scores exactly chance. "optimistic": first. "pessimistic": last. All
            three agree where there are no ties. (The published evaluation lists a query once for each candidate level
            with its true match and divides by the length of that list, so queries with ties weigh more.)

    Returns:
        `r{k}` as shares between 0 and 1, `median_rank` and `mean_rank` from 1.

    Raises:
        ValueError: On an unknown `ties` or a k below 1.
    """
    _check_ties(ties)
    places = ranks.ranks(ties)
    metrics = {f"r{k}": float(ranks.recalls(k, ties).mean()) for k in ks}
    # numpy's median of an even number of queries is the mean of the middle two; torch's is the lower one.
    return metrics | {"median_rank": float(np.median(places.numpy())), "mean_rank": float(places.mean())}


def retrieval_metrics(
    similarity: Tensor | np.ndarray | None = None,
    *,
    audio_embeds: Embeddings | None = None,
    video_embeds: Embeddings | None = None,
    strategy: str = "diagonal_mean",
    audio_mask: Embeddings | None = None,
    video_mask: Embeddings | None = None,
    normalize: bool = True,
    ks: Sequence[int] = (1, 5, 10),
    ties: str = "expected",
    tolerance: float | None = None,
    clips_expected: int | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    device: str | torch.device | None = None,
) -> dict[str, float | int]:
    """Retrieval in both directions, from a similarity matrix or from embeddings.

    From embeddings the matrix is never held whole; see `retrieval_ranks`.

    Args:
        similarity: Rows are audio, columns are video, shape `(clips, clips)`; or else both embeddings.
        audio_embeds: Shape `(clips, windows, hidden)`.
        video_embeds: Shape `(clips, frames, hidden)`.
        strategy: How embeddings are compared, one of `STRATEGIES`.
        audio_mask: True where a window is present, shape `(clips, windows)`.
        video_mask: True where a frame is present, shape `(clips, frames)`.
        normalize: Scale every embedding to unit length first.
        ks: Values of k for the recall.
        ties: "expected", "optimistic" or "pessimistic"; see `rank_metrics`.
        tolerance: Similarities no further apart than this count as equal. By default 0 for a matrix and the rounding
            of float32 cosines (1e-6) for embeddings.
        clips_expected: Clips of the protocol's list, where some of them could not be had.
        chunk_bytes: Working memory.
        device: Where to compare embeddings, by default where they lie.

    Returns:
        `audio_to_video_r1` (the audio is the query), `..._r5`, `..._r10`, `..._median_rank`, `..._mean_rank`, the same
        for `video_to_audio`, and `clips_seen` of `clips_expected`. Recall is a share between 0 and 1.

    Raises:
        ValueError: If neither or both kinds of input are given, or on the conditions of `retrieval_ranks`.
    """
    embeds_given = [embeds is not None for embeds in (audio_embeds, video_embeds)]
    if (similarity is not None) == any(embeds_given) or any(embeds_given) != all(embeds_given):
        raise ValueError("Pass either a similarity matrix or both `audio_embeds` and `video_embeds`.")
    if similarity is not None:
        if audio_mask is not None or video_mask is not None:
            raise ValueError("Masks belong to embeddings; give them to `clip_similarity` when making the matrix.")
        directions = similarity_ranks(similarity, tolerance=tolerance or 0.0, chunk_bytes=chunk_bytes)
    else:
        directions = retrieval_ranks(
            audio_embeds,  # type: ignore[arg-type]
            video_embeds,  # type: ignore[arg-type]
            strategy,
            audio_mask=audio_mask,
            video_mask=video_mask,
            normalize=normalize,
            tolerance=COSINE_TOLERANCE if tolerance is None else tolerance,
            chunk_bytes=chunk_bytes,
            device=device,
        )
    seen = directions[0].candidates
    expected = seen if clips_expected is None else clips_expected
    if expected < seen:
        raise ValueError(f"`clips_expected` is {expected}, but {seen} clips were given; count the protocol's list.")
    metrics: dict[str, float | int] = {}
    for name, ranks in zip(("audio_to_video", "video_to_audio"), directions, strict=True):
        metrics |= {f"{name}_{key}": value for key, value in rank_metrics(ranks, ks, ties).items()}
    return metrics | {"clips_seen": seen, "clips_expected": expected}
