# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How loud is the sound that the model hears around a moment?"""

from typing import Any

import numpy as np

__all__ = ["FLOOR_DB", "SILENCE_DB", "window_loudness"]

# Of nothing at all.
FLOOR_DB = -120.0
# Quieter windows count as silent: below a quiet room, above the noise of compressed digital silence.
SILENCE_DB = -60.0


def window_loudness(batch: Any, chunk: Any) -> np.ndarray:
    """Loudness of each window of a chunk: the root of the mean square of its samples, in dB of full scale.

    A window counts as far as it lies inside the file. (A full-scale sine has -3 dB.)

    Args:
        batch: A chunk from `processor.stream`, with `window_times` `(1, windows, 2)` in seconds of the file.
        chunk: Its `MediaChunk`.

    Returns:
        float32 `(windows,)`; `FLOOR_DB` where there is no sound.
    """
    spans = batch["window_times"][0].numpy() - chunk.start
    result = np.full(len(spans), FLOOR_DB, np.float32)
    if chunk.waveform is None or not len(chunk.waveform):
        return result
    energy = np.concatenate(([0.0], np.cumsum(np.square(chunk.waveform.numpy().astype(np.float64)))))
    places = np.round((spans - chunk.waveform_start) * chunk.sampling_rate).astype(np.int64)
    first, last = np.clip(places, 0, len(energy) - 1).T
    heard = last > first
    power = (energy[last] - energy[first])[heard] / (last - first)[heard]
    # Differences of sums may end a little below zero.
    result[heard] = 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10)))
    return result
