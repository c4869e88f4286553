# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How much may a visitor of the web page ask for?"""

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds on what one visitor, and all of them together, can take.

    Attributes:
        megabytes: Largest file that is accepted, in millions of bytes.
        seconds: Longest clip that is accepted.
        decode_seconds: Wall-clock time that decoding one file may take.
        decode_memory: Bytes of address space that decoding one file may take, beyond what the process starts with.
        pixels: Largest picture that is decoded, width times height.
        sessions: Visitors whose files are kept at the same time; the one who was away longest makes room.
        idle_seconds: Time after which the files of a visitor who does nothing are removed.
        search_results: Moments that a search shows.
    """

    megabytes: float = 100.0
    seconds: float = 60.0
    decode_seconds: float = 180.0
    decode_memory: int = 3 << 30
    pixels: int = 4096 * 2304
    sessions: int = 32
    idle_seconds: float = 3600.0
    search_results: int = 6

    def __post_init__(self) -> None:
        for name in ("megabytes", "seconds", "decode_seconds", "decode_memory", "pixels", "sessions", "idle_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; it must be above 0.")

    @property
    def max_bytes(self) -> int:
        """Largest file that is accepted, bytes."""
        return round(self.megabytes * 1e6)
