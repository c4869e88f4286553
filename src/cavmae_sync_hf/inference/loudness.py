# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How loud spans of a file's audio are, and what counts as silence."""

import numpy as np

from ..model.media_stream_cavmae_sync import MediaChunk

# Loudness of nothing at all, dB of full scale.
FLOOR_DB = -120.0
# What is quieter counts as silent: below a quiet room, above the noise of compressed digital silence.
SILENCE_DB = -60.0


def span_loudness(chunk: MediaChunk, spans: np.ndarray) -> np.ndarray:
    """Loudness of spans of a chunk's audio: the root of the mean square of the samples, in dB of full scale.

    A span counts as far as it lies inside the file. (A full-scale sine has -3 dB.)

    Args:
        chunk: Decoded frames and audio, as `processor.stream(..., return_media=True)` gives them.
        spans: Start and end of each span in seconds of the file, `(spans, 2)`.

    Returns:
        float32 `(spans,)`; `FLOOR_DB` where there is no audio.
    """
    result = np.full(len(spans), FLOOR_DB, np.float32)
    if chunk.waveform is None or not len(chunk.waveform):
        return result
    energy = np.concatenate(([0.0], np.cumsum(np.square(chunk.waveform.numpy().astype(np.float64)))))
    places = np.round((spans - chunk.start - chunk.waveform_start) * chunk.sampling_rate).astype(np.int64)
    first, last = np.clip(places, 0, len(energy) - 1).T
    inside = last > first
    power = (energy[last] - energy[first])[inside] / (last - first)[inside]
    # Differences of sums may end below zero by a rounding error.
    result[inside] = 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10)))
    return result
