# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What forms may sound in memory come in: which is one clip, which is several, and at what rate?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)


def split_waveforms(audio: Any) -> tuple[list[Any], bool]:
    """Tell one clip from several.

    Returns:
        The clips and whether the input was a batch.

    Raises:
        ValueError: The input is neither a waveform nor a list of them.
    """
    _refuse_text(audio)
    if isinstance(audio, Mapping):
        return [audio], False
    if isinstance(audio, (np.ndarray, Tensor)):
        return _split_array(audio)
    if not isinstance(audio, (list, tuple)):
        raise ValueError(f"`audio` must be a waveform (array, tensor or list) or several, not {type(audio).__name__}.")
    if not audio:
        raise ValueError("The list of clips is empty; pass at least one waveform.")
    for clip in audio:
        _refuse_text(clip)
    if all(isinstance(value, (int, float, np.number)) for value in audio):
        return [np.asarray(audio)], False
    # Rows of numbers read by a program that puts the channels last.
    if all(isinstance(clip, (list, tuple)) for clip in audio) and len(audio) > max(map(len, audio)):
        raise ValueError(channels_first("The waveform", len(audio), max(map(len, audio)), "clips"))
    return list(audio), True


def _split_array(audio: Any) -> tuple[list[Any], bool]:
    """`split_waveforms` of an array."""
    shape = tuple(audio.shape)
    if len(shape) not in (1, 2, 3):
        raise ValueError(
            f"The waveform has shape {shape}; expected (num_samples,), (batch, num_samples) or (batch, channels, "
            "num_samples)."
        )
    if len(shape) == 1:
        return [audio], False
    if shape[-2] > shape[-1]:
        rows, samples = shape[-2:]
        raise ValueError(channels_first("The waveform", rows, samples, "clips" if len(shape) == 2 else "channels"))
    if len(shape) == 2 and shape[0] == 2:
        logger.warning_once(
            "A waveform array of two rows is read as two clips; pass `[waveform]` if they are the two channels of one."
        )
    return list(audio), True


def channels_first(name: str, rows: int, samples: int, what: str) -> str:
    """The message for arrays `(num_samples, channels)`, as soundfile reads them."""
    return (
        f"{name} has shape {(rows, samples)}, which reads as {rows} {what} of {samples} samples; put the channels "
        "first, `(channels, num_samples)`, and pass several channels of one clip as `[waveform]`."
    )


def samples_and_rate(clip: Any, sampling_rate: Any, position: int = 0) -> tuple[Any, int]:
    """Samples of one clip and their rate in Hz.

    Args:
        clip: A waveform, `None`, or `{"array": ..., "sampling_rate": ...}`.
        sampling_rate: Rate of waveforms that do not bring their own.
        position: Of the clip, for messages.

    Raises:
        ValueError: The rate is missing, impossible, or given twice and differently.
    """
    if clip is None:
        return None, 0
    if isinstance(clip, Mapping):
        if clip.get("array") is None:
            raise ValueError(
                f"Clip {position} is a mapping with {sorted(map(str, clip))}; a decoded sound has 'array' and "
                "'sampling_rate'."
            )
        own = clip.get("sampling_rate")
        if own is not None and sampling_rate is not None and own != sampling_rate:
            raise ValueError(
                f"Clip {position} brings the sampling rate {own} and the call says {sampling_rate}; leave "
                "`sampling_rate` out."
            )
        clip, sampling_rate = clip["array"], sampling_rate if own is None else own
    if sampling_rate is None:
        raise ValueError(
            "`sampling_rate` is missing. Pass the rate of the waveform in Hz, e.g. `sampling_rate=16000`; a wrong "
            "rate would shift every mel band without any error."
        )
    number = isinstance(sampling_rate, (int, float, np.number)) and not isinstance(sampling_rate, bool)
    if not number or sampling_rate <= 0 or sampling_rate != int(sampling_rate):
        raise ValueError(f"`sampling_rate` is {sampling_rate!r}; it must be a positive whole number of Hz.")
    return clip, int(sampling_rate)


def _refuse_text(value: Any) -> None:
    """Refuse a path or any other text where samples belong."""
    if isinstance(value, (str, bytes)) or hasattr(value, "__fspath__"):
        shown = str(value)[:80]
        raise ValueError(
            f"Got text ({shown!r}) where a waveform belongs. To read a file use the processor, "
            "`processor(videos=path)`, or decode it first."
        )


def as_float_waveform(clip: Any, position: int) -> Tensor:
    """One clip as float32 tensor, `(num_samples,)` or `(channels, num_samples)`; integer samples are scaled."""
    if not isinstance(clip, Tensor):
        try:
            array = np.asarray(clip)
        except ValueError as error:
            raise ValueError(f"Clip {position} is a ragged list; its channels must have equal lengths.") from error
        if array.dtype.kind not in "iuf":
            raise ValueError(
                f"Clip {position} holds {array.dtype} values, not samples; pass floats in [-1, 1], int16 or int32."
            )
        # A copy where torch cannot share the memory: negative strides, read-only or byte-swapped arrays.
        native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
        clip = torch.from_numpy(np.ascontiguousarray(native))
    if clip.ndim not in (1, 2):
        raise ValueError(
            f"Clip {position} has shape {tuple(clip.shape)}; expected (num_samples,) or (channels, num_samples)."
        )
    clip = clip.detach()
    if clip.is_floating_point():
        return clip.to(torch.float32)
    # Integer PCM at full scale, as in WAV files; 8 bit is unsigned around 128.
    if clip.dtype == torch.uint8:
        return (clip.to(torch.float32) - 128.0) / 128.0
    if clip.dtype in (torch.int16, torch.int32):
        return clip.to(torch.float32) / float(-torch.iinfo(clip.dtype).min)
    raise ValueError(
        f"Clip {position} has dtype {clip.dtype}, whose full scale is unknown; pass floats in [-1, 1], int16 or int32."
    )


__all__ = ["as_float_waveform", "channels_first", "samples_and_rate", "split_waveforms"]
