# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Texts as vectors that audio windows and frames are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from ..model.errors_cavmae_sync import InferenceError
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .features import evaluating, not_finite_error

# What of a text a message shows.
_SHOWN = 60


@dataclass(frozen=True)
class TextVectors:
    """Embedded texts.

    Attributes:
        embeds: `(texts, P)` float32, L2-normalised, in the space that texts share with audio and video.
        video_shares: How much frames count against audio, 0 to 1, as the model learned of each text, `(texts,)`.
        projections: Of `"audio"` and `"video"`, weights `(P, hidden)` that bring vectors of the audio-visual model
            into that space, where they are then L2-normalised; empty where it is the audio-visual model's own.
    """

    embeds: Tensor
    video_shares: Tensor
    projections: Mapping[str, Tensor] = field(default_factory=dict)

    def project(self, modality: str, embeds: Tensor) -> Tensor:
        """Vectors `(..., hidden)` of the audio-visual model in the space of texts, `(..., P)`."""
        return project(embeds, self.projections.get(modality))


def project(embeds: Tensor, weights: Tensor | None) -> Tensor:
    """Embeddings `(..., hidden)` in the space of texts, `(..., P)`: by weights `(P, hidden)`, if that is another."""
    if weights is None:
        return embeds
    return torch.nn.functional.normalize(embeds.float() @ weights.to(embeds.device).T, dim=-1)


def tokenize(
    model: Any, processor: CavMaeSyncProcessor, texts: Sequence[str], *, truncate: bool = False
) -> BatchFeature:
    """The text encoder's inputs, on its device.

    Args:
        model: A `CavMaeSyncTextDualEncoderModel`.
        processor: Its processor, with a tokenizer.
        texts: One or more.
        truncate: Whether too long ones are cut, as benchmarks do.

    Raises:
        InferenceError: The model has no text encoder, the processor no tokenizer, or a text is empty or too long.
    """
    if not hasattr(model, "get_text_features"):
        raise InferenceError(
            f"A {type(model).__name__} has no text encoder; load a model with text: load_model(folder, use='text')."
        )
    if not processor.has_tokenizer:
        raise InferenceError(
            "The processor has no tokenizer; load the one that was saved with the model with text, or make "
            "CavMaeSyncProcessor(feature_extractor, video_processor, tokenizer)."
        )
    limit = longest_text(model, processor)
    check_texts(texts, processor, None if truncate else limit)
    cut = {"truncation": True, "max_length": limit} if truncate else None
    return processor(text=list(texts), text_kwargs=cut, return_tensors="pt").to(model.device)


def check_texts(texts: Sequence[str], processor: CavMaeSyncProcessor, limit: int | None = None) -> None:
    """Refuse texts that are none, and those of more than `limit` tokens.

    Raises:
        InferenceError: There is one.
    """
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InferenceError(f"The text is {text!r}; say in words what is to be found, such as 'a dog barks'.")
        count = 0 if limit is None else len(processor.tokenizer(text, verbose=False)["input_ids"])
        if limit is not None and count > limit:
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
            raise InferenceError(
                f"The text {shown!r} has {count} tokens, and the text encoder takes {limit} at most; shorten it."
            )


@torch.no_grad()
def embed_texts(model: Any, processor: CavMaeSyncProcessor, texts: Sequence[str]) -> TextVectors:
    """Embed texts, to be compared with vectors of the audio-visual model.

    Args:
        model: A `CavMaeSyncTextDualEncoderModel`.
        processor: Its processor, with a tokenizer.
        texts: One or more.

    Raises:
        InferenceError: As `tokenize`.
    """
    tokens = tokenize(model, processor, texts)
    with evaluating(model):
        embeds = model.get_text_features(**tokens).pooler_output
        shares = model.video_gate(embeds).sigmoid()[:, 0]
    if not bool(embeds.isfinite().all()):
        raise not_finite_error("The embedding of the text", model.base_model)
    projections = {name: layer.weight.detach().float().cpu() for name, layer in model.projections.items()}
    return TextVectors(embeds=embeds.float().cpu(), video_shares=shares.float().cpu(), projections=projections)


def longest_text(model: Any, processor: CavMaeSyncProcessor) -> int:
    """Tokens that a text may have."""
    limits = (processor.tokenizer.model_max_length, getattr(model.config.text_config, "max_position_embeddings", None))
    return min(int(limit) for limit in limits if limit is not None)
