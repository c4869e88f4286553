# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""H.264 video whose frames are coded as two fields, written bit by bit: no encoder at hand makes it.

All macroblocks hold plain samples (`I_PCM`), so that no transform is needed; syntax by ITU-T H.264, 7.3.
"""

from collections.abc import Collection, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from helpers.clips import numbered_frame

SIZE = (64, 64)  # width, height
_MAX_FRAME_NUM = 16
_DELIMITER = b"\0\0\0\1\x09\xf0"


class _Bits:
    def __init__(self) -> None:
        self.bits = ""

    def fixed(self, value: int, count: int = 1) -> "_Bits":
        self.bits += format(value, f"0{count}b")
        return self

    def golomb(self, *values: int) -> "_Bits":
        for value in values:
            digits = format(value + 1, "b")
            self.bits += "0" * (len(digits) - 1) + digits
        return self

    def samples(self, values: np.ndarray) -> "_Bits":
        self.bits += "0" * (-len(self.bits) % 8)
        self.bits += "".join(format(value, "08b") for value in values.ravel().tolist())
        return self

    def unit(self, head: int) -> bytes:
        """A NAL unit that starts with the byte `head`, its start code before it."""
        bits = self.bits + "1"
        bits += "0" * (-len(bits) % 8)
        payload, zeros = bytearray(), 0
        for byte in int(bits, 2).to_bytes(len(bits) // 8, "big"):
            if zeros >= 2 and byte <= 3:
                payload.append(3)
                zeros = 0
            payload.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes([head]) + bytes(payload)


def _parameters() -> bytes:
    width, height = SIZE
    # Main profile, level 3; order of output is that of decoding; frame_mbs_only_flag 0.
    sequence = _Bits().fixed(77, 8).fixed(0, 8).fixed(30, 8).golomb(0, 0, 2, 1).fixed(0)
    sequence.golomb(width // 16 - 1, height // 32 - 1).fixed(0b00100, 5)
    image = _Bits().golomb(0, 0).fixed(0, 2).golomb(0, 0, 0).fixed(0, 3).golomb(0, 0, 0).fixed(0b100, 3)
    return sequence.unit(0x67) + image.unit(0x68)


def _slice(luma: np.ndarray, frame_number: int, field: int | None, starts: bool) -> bytes:
    """A whole frame, or field 0 (top) or 1 (bottom) of one, from its luma samples."""
    bits = _Bits().golomb(0, 7, 0).fixed(frame_number % _MAX_FRAME_NUM, 4).fixed(field is not None)
    if field is not None:
        bits.fixed(field)
    if starts:
        bits.golomb(0).fixed(0, 2)
    else:
        bits.fixed(0)
    bits.golomb(0, 1)
    for y in range(0, luma.shape[0], 16):
        for x in range(0, luma.shape[1], 16):
            bits.golomb(25).samples(luma[y : y + 16, x : x + 16]).samples(np.full(128, 128))
    return bits.unit(0x65 if starts else 0x61)


def field_pictures(count: int, progressive: Collection[int] = ()) -> list[tuple[float, bytes]]:
    """Access units of `count` numbered frames as `(frame number, or half a frame more, bytes)`.

    Args:
        count: How many frames.
        progressive: Numbers of frames that are coded whole, in one access unit.
    """
    units: list[tuple[float, bytes]] = []
    for number in range(count):
        starts = number % 8 == 0
        luma = numbered_frame(number, SIZE).mean(axis=2).astype(np.uint8)
        head = _DELIMITER + (_parameters() if starts else b"")
        if number in progressive:
            units.append((number, head + _slice(luma, number % 8, None, starts)))
            continue
        units.append((number, head + _slice(luma[::2], number % 8, 0, starts)))
        units.append((number + 0.5, _DELIMITER + _slice(luma[1::2], number % 8, 1, False)))
    return units


def write_units(path: Path, units: Iterable[tuple[float, bytes]], fps: int = 25) -> Path:
    """Write access units, each a packet of its own, into a container; the suffix chooses it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
        for number, data in units:
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.duration = stream, Fraction(1, 2 * fps), 1
            packet.pts = packet.dts = round(2 * number)
            packet.is_keyframe = number % 8 == 0
            container.mux(packet)
    return path
