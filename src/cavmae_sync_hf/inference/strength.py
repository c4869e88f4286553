# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Whether the source of the audio is in the frame at all: one measure for Python, command line, plots and page."""

from torch import Tensor

# Nats from which on a moment has a source in the frame. Chosen on SyncWorld clips of one seed, shown on others:
# `python training/benchmarks/strength.py`.
LEAST_STRENGTH = 2.5
# A moment is silent where nothing is heard from so long before it to so long after.
NEAR_SECONDS = 0.25
NO_SOURCE = "no source"
# The same of a text: log-odds that it is true of the frame, from which on it is as likely as not.
LEAST_LOG_ODDS = 0.0
NOT_SEEN = "not seen"


def source_strength(audio: Tensor, video: Tensor, *, silence: Tensor, hidden: Tensor, temperature: float) -> Tensor:
    """How much better audio and frame fit each other than where one of them, or both, lack what would be the source.

    Taken away from the audio is everything: the window is silent. Taken away from the frame is the place that its map
    is highest at. What is left are three other pairs, and the strength is the mean of the three log-likelihood ratios
    of the pair against one of them, under the softmax of the training loss. So audio that is not of this frame, and a
    frame whose objects are at rest, have none, whatever the model thinks of the two in general.

    Args:
        audio: Embeddings of the windows, `(moments, hidden)`.
        video: Embeddings of the frames, `(moments, hidden)`.
        silence: Embedding of a silent window, `(hidden,)`.
        hidden: Embeddings of the frames without that place, `(moments, hidden)`.
        temperature: The model's.

    Returns:
        Nats, `(moments,)` float32.
    """
    audio, video, silence, hidden = (values.float() for values in (audio, video, silence, hidden))
    others = (video @ silence, (audio * hidden).sum(dim=-1), hidden @ silence)
    return ((audio * video).sum(dim=-1) - sum(others) / len(others)) / temperature
