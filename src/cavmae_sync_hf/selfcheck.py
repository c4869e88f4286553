# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Check that a model and its processor fit each other: audio scores higher with its own frames than with others."""

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .files import plain
from .model.errors_cavmae_sync import SelfCheckError
from .model.modeling_cavmae_sync import CavMaeSyncPreTrainedModel
from .model.processing_cavmae_sync import CavMaeSyncProcessor

_PERMUTATIONS = 2000


class SelfCheckWarning(UserWarning):
    """As [`SelfCheckError`], where only a warning was asked for."""


@dataclass
class SelfCheckResult:
    """
    What `selfcheck` measured. All similarities are cosines.

    Args:
        clips: Names of the clips.
        true_similarity: Mean over clips of the similarity of a moment's audio and frame.
        shuffled_within: The same with the audio of another moment of the same clip; `None` where every moment of a
            clip has the same audio (one frame, or windows as long as the clip).
        within_margin: Mean over those clips of the true similarity less the shuffled one.
        within_p_value: Share of random orders of the moments whose similarity reaches the true order's; 0.5 is
            chance, near 0 is right.
        shuffled_across: Mean similarity of a clip's audio with the frames of another clip; `None` for one clip.
        across_margin: Mean similarity of all moments within clips less that across clips.
        across_accuracy: Share of clip pairs in which a clip's audio scores higher with its own frames.
        per_clip: Clip by clip `clip`, `true_similarity`, `shuffled_within`, and `moments`, how many were compared.
        reasons: Why the check failed; empty when it passed.
    """

    clips: list[str]
    true_similarity: float
    shuffled_within: float | None
    within_margin: float | None
    within_p_value: float | None
    shuffled_across: float | None
    across_margin: float | None
    across_accuracy: float | None
    per_clip: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether true pairs scored above shuffled ones everywhere this could be measured."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """All fields and `passed`, ready for JSON (what is not finite becomes `None`)."""
        return plain(asdict(self) | {"passed": self.passed})

    def summary(self) -> str:
        """One line with the numbers."""
        parts = [f"true pairs {self.true_similarity:.3f}"]
        if self.within_margin is not None:
            parts.append(f"shuffled within clips {self.shuffled_within:.3f} (p = {self.within_p_value:.3f})")
        if self.across_margin is not None:
            parts.append(f"across clips {self.shuffled_across:.3f} (own clip first in {self.across_accuracy:.0%})")
        return ("passed: " if self.passed else "FAILED: ") + ", ".join(parts)


@dataclass
class _Clip:
    name: str
    audio: Tensor  # (moments, hidden), L2-normalised
    video: Tensor  # (moments, hidden)
    distinct_audio: bool


@torch.no_grad()
def selfcheck(
    model: CavMaeSyncPreTrainedModel,
    processor: CavMaeSyncProcessor,
    clips: Sequence[Any] | str | os.PathLike,
    *,
    on_failure: Literal["raise", "warn", "ignore"] = "raise",
    min_margin: float = 0.0,
) -> SelfCheckResult:
    """Check on real clips that the audio of a moment scores higher with its own frame than with others.

    A pipeline with a wrong sampling rate, normalisation or frame order runs without any error; this is how to notice.
    Use a handful of clips in which different things sound at different times.

    Args:
        model: A multimodal model of this package, with or without a head.
        processor: The processor that makes its inputs.
        clips: Videos in any form that the processor takes: paths, URLs, bytes, file objects.
        on_failure: What to do when the check fails: raise [`SelfCheckError`], warn, or leave it to the caller.
        min_margin: How far true pairs must score above shuffled ones.

    Returns:
        The numbers.

    Raises:
        SelfCheckError: The check failed and `on_failure` is `"raise"`.
        ValueError: No clips, a model without both modalities, or nothing that can be shuffled.
    """
    if on_failure not in ("raise", "warn", "ignore"):
        raise ValueError(f'`on_failure` is {on_failure!r}; use "raise", "warn" or "ignore".')
    clips = [clips] if isinstance(clips, str | bytes | os.PathLike) else list(clips)
    if not clips:
        raise ValueError("Got no clips; pass at least one video with audio, better five or more.")
    base = getattr(model, "base_model", model)
    modality = getattr(getattr(base, "config", None), "modality", "multimodal")
    if modality != "multimodal":
        raise ValueError(f'The model has `modality="{modality}"`; comparing audio and frames needs "multimodal".')

    was_training = base.training
    base.eval()
    try:
        encoded = [_encode(base, processor, clip, position) for position, clip in enumerate(clips)]
    finally:
        base.train(was_training)
    result = _measure(encoded)
    result.reasons = _reasons(result, min_margin)
    if not result.passed and on_failure != "ignore":
        message = (
            f"The self-check failed on {len(clips)} clip(s): {'; '.join(result.reasons)}. {result.summary()}. The "
            "weights, the preprocessing (sampling rate, normalisation, alignment) or the clips do not fit; compare "
            "with the processor that was saved with the model."
        )
        if on_failure == "raise":
            raise SelfCheckError(message, result)
        warnings.warn(message, SelfCheckWarning, stacklevel=2)
    return result


def _encode(model: torch.nn.Module, processor: CavMaeSyncProcessor, clip: Any, position: int) -> _Clip:
    name = os.path.basename(os.fspath(clip)) if isinstance(clip, str | os.PathLike) else f"clip {position + 1}"
    inputs = processor(videos=clip, return_tensors="pt").to(model.device)
    floating = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    outputs = model(**floating)
    audio, video = outputs.audio_embeds[0].float().cpu(), outputs.video_embeds[0].float().cpu()
    present = torch.ones(len(audio), dtype=torch.bool)
    for mask in (inputs.get("padding_mask"), inputs.get("padding_mask_videos")):
        if mask is not None:
            present &= mask[0].bool().cpu()
    if not present.any():
        raise ValueError(f"{name} has no moment with both audio and a frame; use another clip.")
    windows = inputs["input_values"][0].cpu()[present]
    distinct = bool((windows != windows[:1]).any())
    return _Clip(name, audio[present], video[present], distinct)


def _measure(clips: list[_Clip]) -> SelfCheckResult:
    within = [clip.audio @ clip.video.T for clip in clips]  # (moments, moments) each
    true = [similarity.diagonal().mean().item() for similarity in within]
    shuffled: list[float | None] = []  # mean off the diagonal, where moments differ
    for clip, similarity in zip(clips, within, strict=True):
        count = len(similarity)
        total = similarity.sum() - similarity.diagonal().sum()
        comparable = clip.distinct_audio and count > 1
        shuffled.append((total / (count * (count - 1))).item() if comparable else None)
    usable = [
        (true[position], value, within[position]) for position, value in enumerate(shuffled) if value is not None
    ]
    result = SelfCheckResult(
        clips=[clip.name for clip in clips],
        true_similarity=_mean(true),
        shuffled_within=_mean([other for _, other, _ in usable]) if usable else None,
        within_margin=_mean([own - other for own, other, _ in usable]) if usable else None,
        within_p_value=_permutation_p_value([matrix for _, _, matrix in usable]) if usable else None,
        shuffled_across=None,
        across_margin=None,
        across_accuracy=None,
        per_clip=[
            {"clip": clip.name, "true_similarity": own, "shuffled_within": other, "moments": len(clip.audio)}
            for clip, own, other in zip(clips, true, shuffled, strict=True)
        ],
    )
    if len(clips) > 1:
        # (clips, clips): every window of a row's clip with every frame of a column's, so that counts may differ.
        matrix = torch.stack([torch.stack([(a.audio @ v.video.T).mean() for v in clips]) for a in clips])
        own = matrix.diagonal()
        others = ~torch.eye(len(clips), dtype=torch.bool)
        result.shuffled_across = matrix[others].mean().item()
        result.across_margin = own.mean().item() - result.shuffled_across
        result.across_accuracy = (own.unsqueeze(1) > matrix)[others].float().mean().item()
    elif not usable:
        raise ValueError(
            f"All moments of {clips[0].name} have the same audio for this model; pass two or more clips to compare."
        )
    return result


def _reasons(result: SelfCheckResult, min_margin: float) -> list[str]:
    reasons = []
    if not math.isfinite(result.true_similarity):
        reasons.append("the embeddings are not finite")
    for margin, where in ((result.within_margin, "other moments of the clip"), (result.across_margin, "other clips")):
        # Written so that a NaN fails.
        if margin is not None and not margin > min_margin:
            reasons.append(
                f"audio scores no higher with its own frames than with those of {where} (margin {margin:+z.4f}, "
                f"needed above {min_margin:g})"
            )
    return reasons


def _permutation_p_value(similarities: list[Tensor]) -> float:
    """Share of random orders of the moments whose mean similarity is at least the true order's."""
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.zeros(_PERMUTATIONS)
    for similarity in similarities:
        count = len(similarity)
        orders = torch.rand(_PERMUTATIONS, count, generator=generator).argsort(dim=1)
        shuffled += similarity[torch.arange(count), orders].mean(dim=1)
    true = sum(similarity.diagonal().mean() for similarity in similarities)
    # The true order counts as one of the orders, so that the share is never 0. Rounding must not break ties.
    return (1 + int((shuffled >= true - 1e-6).sum())) / (1 + _PERMUTATIONS)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


__all__ = ["SelfCheckResult", "SelfCheckWarning", "selfcheck"]
