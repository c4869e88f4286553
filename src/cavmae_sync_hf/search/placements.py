# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What `score_film` finds: segments of a film, files of a library that fit them, and what was placed."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Candidate:
    """A file of the library that fits a segment.

    Attributes:
        path: The file.
        at: Where in the file it fits best, seconds.
        seconds: Length of the file.
        fit: How much likelier than silence the frames of the segment find it, in nats; of pictures for audio, how much
            likelier than the mean picture of the library.
    """

    path: str
    at: float
    seconds: float
    fit: float


@dataclass(frozen=True)
class FilmSegment:
    """A part of a film in which its frames look alike to the model, or of audio that sounds alike.

    Attributes:
        start: Where it starts, seconds.
        end: Where it ends.
        alike: Cosine with each of the segments before it that are remembered, the last one first.
        candidates: Files of the library that fit, best first.
    """

    start: float
    end: float
    alike: tuple[float, ...] = ()
    candidates: tuple[Candidate, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.start


@dataclass(frozen=True)
class Placement:
    """A part of a file of the library at its place in a film.

    Attributes:
        time: Where it begins in the film, seconds.
        path: Its file.
        start: Where in the file it begins, seconds.
        end: Where it ends there.
        fit: As of the candidate.
        layer: 0 for the first choice, 1 for what sounds beside it, and so on.
        segment: Start and end of the segment of the film it is for.
        reason: Why it is there, in words.
        choices: Other files for this segment, best first.
        about: What a table says of the file, such as its licence, by column.
    """

    time: float
    path: str
    start: float
    end: float
    fit: float
    layer: int
    segment: tuple[float, float]
    reason: str
    choices: tuple[Candidate, ...] = ()
    about: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.start


@dataclass(frozen=True)
class FilmScore:
    """Recordings for a film, or pictures for audio.

    Attributes:
        film: Path or address of the film, or of the audio.
        library: The index they are from.
        seconds: Length of the film.
        segments: Of the film.
        placements: What was placed, by its times.
        kind: What was placed: `"audio"` or `"video"`.
    """

    film: str
    library: str
    seconds: float
    segments: tuple[FilmSegment, ...]
    placements: tuple[Placement, ...]
    kind: Literal["audio", "video"] = "audio"

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


__all__ = ["Candidate", "FilmScore", "FilmSegment", "Placement"]
