# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Batches of clips: what is filled up where clips have different numbers of windows and frames."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import TensorType

from .alignment_cavmae_sync import TIME_TOLERANCE

# Inputs of the model and the mask of each; the entries of a clip with one value per window or frame, beside them.
_MASKS = {"input_values": "padding_mask", "pixel_values_videos": "padding_mask_videos"}
# What a batch is made of: inputs, or in their place the tokens that an encoder gave of them.
_VALUES = (*_MASKS, "audio_tokens", "video_tokens")
# Frames may be so many times as far apart as those of a moment are wanted; then the nearest is always the middle one.
_FURTHEST_STEPS = 2.0
_PER_MOMENT = frozenset(
    (*_VALUES, *_MASKS.values(), "attention_mask", "frame_times", "window_times", "window_coverage", "window_offsets")
) | {"video_times", "audio_times"}


class MomentFrames(NamedTuple):
    """The frames of moments that have several each.

    Attributes:
        images: Every frame once, `(num_images, channels, height, width)` where they are decoded.
        places: Numbers of the frames of each moment among them, the earliest first,
            `(num_moments, frames_per_moment)`.
    """

    images: Any
    places: Tensor

    def of(self, moments: Sequence[int]) -> "MomentFrames":
        """The frames of some of the moments, by their numbers."""
        used, places = self.places[list(moments)].unique(return_inverse=True)
        return MomentFrames(self.images[used], places)

    def stacked(self, pixels: Tensor | None = None) -> Tensor:
        """The frames of each moment as channels of one, `(num_moments, frames_per_moment * channels, height, width)`.

        Args:
            pixels: What the images have become, one for each; default: the images themselves.
        """
        values: Tensor = self.images if pixels is None else pixels
        return values[self.places.to(values.device)].flatten(1, 2)

    @property
    def middle(self) -> Tensor:
        """The frame of the time of each moment, `(num_moments, channels, height, width)`."""
        images: Tensor = self.images
        return images[self.places[:, self.places.shape[1] // 2]]


def nearest_frames(times: Sequence[float], chosen: Sequence[int], shifts: Sequence[float]) -> Tensor:
    """Which of some frames are those of moments, by their times: the nearest to each wanted one.

    Args:
        times: When each frame is on screen, seconds.
        chosen: Numbers of the frames that are the middle ones of the moments.
        shifts: From a moment's time to those of its frames, seconds.

    Returns:
        Numbers of frames `(num_moments, len(shifts))`; the middle ones are the chosen.

    Raises:
        ValueError: The frames are too far apart to be told from each other: the same would stand for several.
    """
    known = torch.tensor(times, dtype=torch.float64)
    step = shifts[1] - shifts[0]
    gap = float(known.max() - known.min()) / max(1, len(known) - 1)
    if gap > _FURTHEST_STEPS * step + TIME_TOLERANCE:
        raise ValueError(f"its frames are {gap:.3g} s apart, and the {len(shifts)} frames of a moment {step:.3g} s")
    wanted = known[list(chosen)].unsqueeze(1) + torch.tensor(shifts, dtype=torch.float64)
    places = (wanted.unsqueeze(-1) - known).abs().argmin(dim=-1)
    places[:, len(shifts) // 2] = torch.tensor(list(chosen))
    return places


def stack_padded(clips: Sequence[Tensor], longest: int, fill: float | bool = 0.0) -> Tensor:
    """Stack clips `(rows_i, ...)` to `(batch, longest, ...)`, filling up shorter ones."""
    if all(len(clip) == longest for clip in clips):
        return clips[0].unsqueeze(0) if len(clips) == 1 else torch.stack(list(clips))
    stacked = clips[0].new_full((len(clips), longest, *clips[0].shape[1:]), fill)
    for row, clip in zip(stacked, clips, strict=True):
        row[: len(clip)] = clip
    return stacked


def to_batch(values: Mapping[str, Tensor], return_tensors: str | TensorType | None) -> BatchFeature:
    """Hand out tensors (`"pt"`), arrays (`"np"`), or a list of arrays per clip (`None`)."""
    if return_tensors is not None and TensorType(return_tensors) == TensorType.PYTORCH:
        return BatchFeature(dict(values))
    arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in values.items()}
    if return_tensors is None:
        return BatchFeature({name: list(array) for name, array in arrays.items()})
    return BatchFeature(arrays, tensor_type=return_tensors)


def stack_all(
    clips: Mapping[str, Sequence[Tensor]], fills: Mapping[str, float | bool], count: int | None = None
) -> dict[str, Tensor]:
    """Stack every entry over the clips.

    Args:
        clips: Of every entry the clips' tensors; one with a value per window or frame may differ in length.
        fills: What fills those up, by entry, where it is not zero or False.
        count: Up to how many; by default as many as the longest has.
    """
    moments = {name: values for name, values in clips.items() if name in _PER_MOMENT}
    longest = max((len(clip) for values in moments.values() for clip in values), default=0) if count is None else count
    return {
        name: stack_padded(values, longest, fills.get(name, 0)) if name in moments else torch.stack(list(values))
        for name, values in clips.items()
    }


def pad_batch(
    clips: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
    fills: Mapping[str, float | bool],
    *,
    count: int | None = None,
    most: int | None = None,
    multiple: int = 1,
    equal: bool = False,
) -> dict[str, Tensor]:
    """Collect what a processor gave for each clip, filling up the shorter ones.

    Args:
        clips: One mapping per clip, or one mapping from names to values per clip: tensors, arrays or nested lists.
        fills: As in `stack_all`.
        count: Windows and frames per clip; by default as many as the longest has.
        most: Clips with more lose their last ones.
        multiple: The number is rounded up to a multiple of this.
        equal: Refuse clips of different lengths.

    Raises:
        ValueError: The clips cannot be collected.
    """
    if not isinstance(clips, Mapping):
        clips = {name: [clip[name] for clip in clips] for name in clips[0]}
    batch = {name: [_as_tensor(clip) for clip in values] for name, values in clips.items()}
    lengths = {len(clip) for name in _VALUES for clip in batch.get(name, ())}
    if not lengths:
        raise ValueError(f"There is nothing to pad: {sorted(clips)} hold none of {', '.join(_MASKS)}, or no clip.")
    if most is not None:
        batch = {name: [clip[:most] if name in _PER_MOMENT else clip for clip in batch[name]] for name in batch}
        lengths = {min(length, most) for length in lengths}
    total = max(lengths) if count is None else count
    if max(lengths) > total or (equal and len(lengths) > 1):
        raise ValueError(
            f"Clips of {min(lengths)} to {max(lengths)} windows do not make a batch of {total}; use `padding=True`, "
            "or `truncation=True` with `max_length`."
        )
    total = math.ceil(total / multiple) * multiple
    for values, mask in _MASKS.items():
        if values in batch and mask not in batch and lengths != {total}:
            batch[mask] = [torch.ones(len(clip), dtype=torch.bool) for clip in batch[values]]
    return stack_all(batch, fills, total)


def _as_tensor(value: Any) -> Tensor:
    """A tensor, array, number or nested list as a tensor; floats of lists in single precision, as of tables."""
    if isinstance(value, Tensor):
        return value
    tensor = torch.as_tensor(np.asarray(value))
    return tensor if isinstance(value, np.ndarray) or not tensor.is_floating_point() else tensor.float()


def cut_windows(rows: Tensor, offsets: Tensor | None, length: int) -> Tensor:
    """The windows themselves, of rows that may be the longer clips they are heard within.

    Args:
        rows: `input_values`, `(batch, frames, time, mel)`.
        offsets: `window_offsets`, `(batch, frames)`; `None`: the rows are the windows.
        length: Of a window.

    Returns:
        `(batch, frames, length, mel)`.
    """
    if offsets is None:
        return rows
    index = offsets.to(rows.device).unsqueeze(-1) + torch.arange(length, device=rows.device)
    return rows.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, rows.shape[-1]))


def holds(clips: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]) -> str:
    """Whether clips hold tensors, `"pt"`, or anything else, `"np"`."""
    values = clips.values() if isinstance(clips, Mapping) else clips[0].values()
    first = next(iter(values))
    return "pt" if isinstance(first[0] if isinstance(clips, Mapping) else first, Tensor) else "np"


__all__ = [
    "MomentFrames",
    "cut_windows",
    "holds",
    "nearest_frames",
    "pad_batch",
    "stack_all",
    "stack_padded",
    "to_batch",
]
