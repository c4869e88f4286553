# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Resizing of many frames at once to exactly the pixels that PIL gives.

PIL resamples in integers; torchvision's uint8 kernel rounds its weights more coarsely and differs by a grey level in
about 0.4 % of the pixels. Here PIL's integers are computed with small matrix products, and only for the part of the
frame that the crop keeps: the same numbers in about a third of PIL's time, batched and on any device.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

# PIL keeps its filter weights as integers with this many fractional bits, in `Resample.c`.
_WEIGHT_BITS = 22
# Bicubic reach in source pixels at scale 1, and the parameter of Keys' kernel that PIL uses.
_CUBIC_REACH, _CUBIC_A = 2.0, -0.5
# Outputs per matrix product, by how far the frame shrinks: every product covers the union of its outputs' inputs, so
# few outputs waste less work on zero weights and many need fewer products (measured; other counts are slower).
_TILES = ((2.5, 4), (1.25, 8), (0.0, 16))
# Frames resized together; bounds the memory of the products' operands.
_FRAMES_PER_CHUNK = 16


def resize_crop_exact(
    frames: Tensor, resized: tuple[int, int], window: tuple[int, int, int, int] | None = None
) -> Tensor:
    """Bicubic resize with antialias as PIL computes it, of the pixels inside a window only.

    PIL resamples along each row, rounds to uint8, then down the columns; weights are integers with 22 fractional bits.
    Products of such weights with grey levels are exact in float64, so the result is PIL's, bit for bit. (Pillow 13
    takes the columns first where the height shrinks and the width does not, which no resize that keeps the aspect
    ratio does; here the rows always come first.) Devices without float64 (MPS) use float32, where about one pixel in
    50,000 differs by a grey level.

    Args:
        frames: `(T, C, H, W)` uint8, contiguous or as a view of `(T, H, W, C)`.
        resized: Height and width of the whole resized frame.
        window: `(top, left, height, width)` in the resized frame; default: all of it.

    Returns:
        `(T, C, height, width)` uint8.
    """
    top, left, height, width = (0, 0, *resized) if window is None else window
    columns = (frames.shape[-1], resized[1], left, left + width)
    rows = (frames.shape[-2], resized[0], top, top + height)
    return torch.cat([_resize_chunk(chunk, columns, rows) for chunk in frames.split(_FRAMES_PER_CHUNK)])


def _resize_chunk(frames: Tensor, columns: tuple[int, int, int, int], rows: tuple[int, int, int, int]) -> Tensor:
    """`resize_crop_exact` of a few frames; `columns` and `rows` are (input size, output size, first, last + 1)."""
    count, channels = frames.shape[:2]
    # Source rows that no kept output sees are left out of the first pass.
    size_in, size_out, low, high = rows
    if size_in != size_out:
        low = _pil_weights(size_in, size_out, rows[2])[0]
        start, weights = _pil_weights(size_in, size_out, rows[3] - 1)
        high = start + len(weights)
    # Pixels interleaved in memory are multiplied as they lie (weights repeated per channel), which costs less than
    # bringing them into planes first.
    interleaved = frames.permute(0, 2, 3, 1)
    if interleaved.is_contiguous():
        lines = _resample_columns(interleaved[:, low:high].flatten(2), columns, channels)
        planes = _resample_rows(lines, rows, low)
        return planes.reshape(count, planes.shape[1], -1, channels).permute(0, 3, 1, 2)
    lines = _resample_columns(frames[:, :, low:high].flatten(0, 1), columns, 1)
    return _resample_rows(lines, rows, low).unflatten(0, (count, channels))


def _resample_columns(lines: Tensor, span: tuple[int, int, int, int], channels: int) -> Tensor:
    """First pass: `(B, H, W * channels)` to `(B, H, width * channels)`."""
    size_in, size_out, first, last = span
    if size_in == size_out:
        # PIL skips the pass too.
        return lines[..., first * channels : last * channels]
    output = lines.new_empty((*lines.shape[:-1], (last - first) * channels))
    for start, low, high, weights in _weight_tiles(*span, channels, str(lines.device)):
        output[..., start : start + weights.shape[1]] = _to_levels(lines[..., low:high].to(weights.dtype) @ weights)
    return output


def _resample_rows(planes: Tensor, span: tuple[int, int, int, int], offset: int) -> Tensor:
    """Second pass: `(B, H, L)`, whose first row is row `offset` of the frame, to `(B, height, L)`."""
    size_in, size_out, first, last = span
    if size_in == size_out:
        return planes[:, first - offset : last - offset]
    output = planes.new_empty((planes.shape[0], last - first, planes.shape[2]))
    for start, low, high, weights in _weight_tiles(*span, 1, str(planes.device)):
        values = planes[:, low - offset : high - offset].to(weights.dtype)
        output[:, start : start + weights.shape[1]] = _to_levels(weights.t() @ values)
    return output


def _to_levels(values: Tensor) -> Tensor:
    """Half up and, by the conversion to uint8 that follows, down to whole levels: PIL's rounding. In place."""
    return values.add_(0.5).clamp_(0, 255)


@lru_cache(maxsize=32)
def _weight_tiles(
    size_in: int, size_out: int, first: int, last: int, channels: int, device: str
) -> list[tuple[int, int, int, Tensor]]:
    """Weights of outputs `first` to `last`, in tiles of `(first output, input from, input to, matrix)`.

    Positions are relative to `first` and counted in values, that is pixels times interleaved `channels`.
    """
    dtype = torch.float32 if device.startswith("mps") else torch.float64
    rows = [_pil_weights(size_in, size_out, position) for position in range(first, last)]
    tile = next(outputs for shrinkage, outputs in _TILES if size_in / size_out > shrinkage)
    tiles = []
    for start in range(0, len(rows), tile):
        group = rows[start : start + tile]
        low = min(begin for begin, _ in group)
        high = max(begin + len(weights) for begin, weights in group)
        matrix = torch.zeros(high - low, len(group), dtype=torch.float64)
        for column, (begin, weights) in enumerate(group):
            matrix[begin - low : begin - low + len(weights), column] = torch.tensor(weights, dtype=torch.float64)
        # Scaling by a power of two is exact, so the products stay PIL's integers.
        matrix = torch.kron(matrix * 2.0**-_WEIGHT_BITS, torch.eye(channels, dtype=torch.float64)).to(
            device=device, dtype=dtype
        )
        tiles.append((start * channels, low * channels, high * channels, matrix))
    return tiles


def _pil_weights(size_in: int, size_out: int, position: int) -> tuple[int, list[int]]:
    """First input and integer weights of one output of PIL's bicubic resize."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    # A product with the reciprocal, as PIL has it: the quotient can differ in the last bit, and so can the weight.
    squeeze = 1.0 / stretch
    reach = _CUBIC_REACH * stretch
    centre = (position + 0.5) * scale
    low, high = max(0, int(centre - reach + 0.5)), min(size_in, int(centre + reach + 0.5))
    weights = [_cubic((pixel - centre + 0.5) * squeeze) for pixel in range(low, high)]
    total = sum(weights)
    return low, [math.floor(abs(w) / total * (1 << _WEIGHT_BITS) + 0.5) * (1 if w >= 0 else -1) for w in weights]


def _cubic(distance: float) -> float:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = abs(distance)
    if x < 1.0:
        return ((_CUBIC_A + 2.0) * x - (_CUBIC_A + 3.0)) * x * x + 1.0
    return (((x - 5.0) * x + 8.0) * x - 4.0) * _CUBIC_A if x < 2.0 else 0.0


__all__ = ["resize_crop_exact"]
