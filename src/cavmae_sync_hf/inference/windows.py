# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What is a feature of "5 seconds, every second" for a model that looks at moments, and how does a film become rows?

A film is sampled at moments `hop` seconds apart: moment k lies at `(k + 0.5) * hop`, with the frame on screen then and
the model's own window of sound (4.16 s as published) around it. The row of an analysis window is the mean of the
vectors of the moments *inside* it. Windows overlap without costing more: a moment is encoded once.

So the picture of a row comes from inside its window, but its sound reaches half a sound window further on both sides.
Where that must not be, `sound="inside"` averages those moments alone whose sound lies inside, too.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

from ..model.alignment_cavmae_sync import step_times, window_seconds
from ..model.errors_cavmae_sync import InferenceError
from .features import Feature, MomentFeatures, encode_moments

__all__ = ["DEFAULT_HOP", "Film", "Plan", "SoundSupply", "WindowGrid", "WindowRow", "iter_windows"]

# As far apart as the published 16 frames in 10 s.
DEFAULT_HOP = 0.625
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class WindowGrid:
    """Where windows and moments lie; made by `WindowGrid.of`.

    Attributes:
        window: Length of an analysis window, seconds.
        stride: From the start of a window to that of the next, seconds.
        hop: From one moment to the next, seconds.
        per_window: Moments in a window.
        per_stride: Moments in a stride; all windows are sampled alike because this is a whole number.
    """

    window: float
    stride: float
    hop: float
    per_window: int
    per_stride: int

    @classmethod
    def of(cls, window: float, stride: float, hop: float | None = None) -> "WindowGrid":
        """A grid.

        Args:
            window: Seconds, more than 0. A window shorter than the stride leaves gaps.
            stride: Seconds, more than 0.
            hop: Seconds; must divide the stride. Default: the longest that does and is no more than 0.625 s or the
                window.

        Raises:
            ValueError: A value cannot work; the message says what would.
        """
        for name, value in (("window", window), ("stride", stride), ("hop", 1.0 if hop is None else hop)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"`{name}` is {value!r}; it must be a number of seconds above 0.")
        if hop is None:
            per_stride = math.ceil(stride / min(DEFAULT_HOP, window) - _TOLERANCE)
        else:
            per_stride = max(1, round(stride / hop))
            if abs(per_stride * hop - stride) > _TOLERANCE * max(1.0, stride):
                raise ValueError(
                    f"`hop` is {hop:g} s, which does not divide the stride of {stride:g} s: windows would be sampled "
                    f"unlike each other. Use {stride / per_stride:.6g}, or a stride of {per_stride * hop:.6g}."
                )
        step = stride / per_stride
        per_window = math.ceil(window / step - 0.5 - _TOLERANCE)
        if per_window < 1:
            raise ValueError(
                f"No moment lies in a window of {window:g} s when they are {step:g} s apart; use a hop of at most the "
                "window."
            )
        return cls(float(window), float(stride), step, per_window, per_stride)

    def centres(self) -> np.ndarray:
        """Times of a window's moments from its start, `(per_window,)` seconds."""
        return np.array(step_times(self.hop, self.per_window))

    def inside(self, sound_seconds: float) -> np.ndarray:
        """Which of a window's moments have their window of sound wholly inside it, `(per_window,)` bool."""
        centres, half = self.centres(), sound_seconds / 2
        return (centres - half >= -_TOLERANCE) & (centres + half <= self.window + _TOLERANCE)


@dataclass(frozen=True)
class Film:
    """One video, or a span of one.

    Attributes:
        id: Its name in the set, unique.
        name: What messages and tables call its file.
        media: What is opened: path, address, bytes, or a function that fetches one of them.
        start: Where the span starts in the file, seconds.
        end: Where it ends; `None`: with the file.
    """

    id: str
    name: str
    media: Any = field(repr=False)
    start: float = 0.0
    end: float | None = None

    def open(self) -> Any:
        """What the decoder takes."""
        return self.media() if callable(self.media) else self.media


@dataclass(frozen=True)
class Plan:
    """What is extracted, the same for all films.

    Attributes:
        grid: Windows and moments.
        features: From `choose_features`.
        sound: `"around"`: the sound of every moment in the window counts, with what it hears on either side.
            `"inside"`: that of moments that hear nothing from outside the window.
        partial: `"drop"`: windows that reach beyond the film's last moment give no row. `"keep"`: they are the mean
            of the moments there are.
        missing: `"error"`, or `"mask"`: films without sound or picture have NaN for what needs it.
        damaged: `"error"`, or `"keep"`: what can be decoded of a damaged film counts.
        batch_frames: Moments decoded and encoded at a time.
    """

    grid: WindowGrid
    features: tuple[Feature, ...]
    sound: Literal["around", "inside"] = "around"
    partial: Literal["drop", "keep"] = "drop"
    missing: Literal["error", "mask"] = "error"
    damaged: Literal["error", "keep"] = "error"
    batch_frames: int = 16

    def __post_init__(self) -> None:
        for name, values in (
            ("sound", ("around", "inside")),
            ("partial", ("drop", "keep")),
            ("missing", ("error", "mask")),
            ("damaged", ("error", "keep")),
        ):
            if getattr(self, name) not in values:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; it must be {' or '.join(map(repr, values))}.")
        if self.batch_frames < 1:
            raise ValueError(f"`batch_frames` is {self.batch_frames}; it must be at least 1.")

    @property
    def needs_audio(self) -> bool:
        """Whether any feature takes the sound."""
        return any(feature.needs_audio for feature in self.features)

    @property
    def needs_video(self) -> bool:
        """Whether any feature takes the picture."""
        return any(feature.needs_video for feature in self.features)

    def heard(self, sound_seconds: float) -> np.ndarray:
        """Which of a window's moments count for features that take the sound, `(per_window,)` bool.

        Raises:
            ValueError: None does, because windows are shorter than the model's windows of sound.
        """
        grid = self.grid
        if self.sound == "around" or not self.needs_audio:
            return np.ones(grid.per_window, dtype=bool)
        heard = grid.inside(sound_seconds)
        if not heard.any():
            raise ValueError(
                f'sound="inside": no moment of a window of {grid.window:g} s, sampled every {grid.hop:g} s, has its '
                f"{sound_seconds:g} s of sound inside it. Use windows of at least {sound_seconds + grid.hop:g} s, or "
                'sound="around".'
            )
        return heard


class SoundSupply(Protocol):
    """Gives moments another sound than their own."""

    def windows(self, film: Film, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """For moments of a film: windows `(n, audio_length, mel bins)`, their presence and coverage `(n,)`."""


@dataclass
class WindowRow:
    """One row: an analysis window of a film.

    Attributes:
        vectors: Feature name -> `(hidden,)` float32; NaN where nothing in the window has it.
        facts: The row's times and counts; see `extract_features`.
    """

    vectors: dict[str, np.ndarray]
    facts: dict[str, Any]


def iter_windows(
    model: Any,
    processor: Any,
    film: Film,
    plan: Plan,
    supply: SoundSupply | None = None,
    show: Callable[[float], None] | None = None,
) -> Iterator[WindowRow]:
    """The rows of a film, in order of time, in memory that does not grow with its length.

    Args:
        model: A `CavMaeSyncModel` in evaluation mode.
        processor: Its processor.
        film: The film.
        plan: What is wanted.
        supply: Gives moments a sound that is not their own (a control condition); default: their own.
        show: Called with the seconds of the film that are done.

    Raises:
        InferenceError: Not one window fits.
        MediaError: The film cannot be read.
    """
    extractor = processor.feature_extractor
    sound_seconds = window_seconds(extractor.audio_length)
    rows = _Rows(film, plan, plan.heard(sound_seconds), own_sound=supply is None)
    grid, numbers = plan.grid, 0
    for chunk in processor.stream(
        film.open(),
        hop=grid.hop,
        num_frames=plan.batch_frames,
        start=film.start or None,
        end=film.end,
        missing=plan.missing,
        damaged=plan.damaged,
        want_audio=plan.needs_audio and supply is None,
        want_video=plan.needs_video,
        device=None if model.device.type == "cpu" else model.device,
    ):
        count = chunk["frame_times"].shape[1]
        # Windows shorter than the stride leave moments that no window holds.
        kept = [place for place in range(count) if (numbers + place) % grid.per_stride < grid.per_window]
        if kept:
            inputs = {name: value[:, kept] for name, value in chunk.items()}
            if supply is not None:
                values, mask, coverage = supply.windows(film, [numbers + place for place in kept])
                inputs |= {"input_values": values[None], "padding_mask": mask[None], "window_coverage": coverage[None]}
            rows.add([numbers + place for place in kept], inputs, encode_moments(model, inputs, plan.features))
        numbers += count
        yield from rows.whole()
        if show is not None:
            show(numbers * grid.hop)
    if plan.partial == "keep":
        yield from rows.rest(numbers)
    if not rows.made:
        raise InferenceError(
            f"{film.name}: has moments up to {max(0.0, numbers - 0.5) * grid.hop:g} s, too few for one window of "
            f"{grid.window:g} s; use shorter windows, or keep partial ones."
        )


@dataclass
class _Moment:
    vectors: dict[str, np.ndarray]
    audio: bool
    video: bool
    time: float
    sound: tuple[float, float]
    coverage: float


class _Rows:
    """Collects moments and gives the rows that are complete."""

    def __init__(self, film: Film, plan: Plan, heard: np.ndarray, own_sound: bool) -> None:
        self.film, self.plan, self.heard, self.own_sound = film, plan, heard, own_sound
        self.made = 0
        self.reached = 0  # number after the last moment
        self.held: deque[tuple[int, _Moment]] = deque()
        names = {feature.name for feature in plan.features}
        self.compared = {"a", "v"} <= names

    def add(self, numbers: Sequence[int], inputs: dict[str, Any], encoded: MomentFeatures) -> None:
        """Take the moments of a chunk."""
        values = {name: vectors[0].numpy() for name, vectors in encoded.values.items()}
        times, spans = inputs["frame_times"][0].tolist(), inputs["window_times"][0].tolist()
        coverage = inputs["window_coverage"][0].tolist()
        for place, number in enumerate(numbers):
            moment = _Moment(
                {name: vectors[place] for name, vectors in values.items()},
                bool(encoded.audio_present[0, place]),
                bool(encoded.video_present[0, place]),
                times[place],
                (spans[place][0], spans[place][1]),
                coverage[place],
            )
            self.held.append((number, moment))
        self.reached = numbers[-1] + 1

    def whole(self) -> Iterator[WindowRow]:
        """Rows all of whose moments are there."""
        grid = self.plan.grid
        while self.made * grid.per_stride + grid.per_window <= self.reached:
            yield self._next()

    def rest(self, count: int) -> Iterator[WindowRow]:
        """Rows of windows that begin before the film ends after `count` moments."""
        while self.made * self.plan.grid.per_stride < count:
            yield self._next()

    def _next(self) -> WindowRow:
        grid, number = self.plan.grid, self.made
        first = number * grid.per_stride
        while self.held and self.held[0][0] < first:
            self.held.popleft()
        members = [
            (bool(self.heard[place - first]), moment) for place, moment in self.held if place - first < grid.per_window
        ]
        self.made += 1
        vectors = {feature.name: self._mean(feature, members) for feature in self.plan.features}
        return WindowRow(vectors, self._facts(number, members))

    def _mean(self, feature: Feature, members: list[tuple[bool, _Moment]]) -> np.ndarray:
        chosen = [
            moment.vectors[feature.name]
            for heard, moment in members
            if (not feature.needs_audio or (heard and moment.audio)) and (not feature.needs_video or moment.video)
        ]
        if not chosen:
            return np.full_like(members[0][1].vectors[feature.name], np.nan)
        # Summed in double precision: the mean must not depend on how moments came in chunks.
        return np.stack(chosen).mean(axis=0, dtype=np.float64).astype(np.float32)

    def _facts(self, number: int, members: list[tuple[bool, _Moment]]) -> dict[str, Any]:
        grid, plan, film = self.plan.grid, self.plan, self.film
        start = film.start + number * grid.stride
        facts: dict[str, Any] = {
            "id": film.id,
            "file": film.name,
            "window": number,
            "start": start,
            "end": start + grid.window,
            "centre": start + grid.window / 2,
            "moments": len(members),
            "partial": len(members) < grid.per_window,
            "frame_times": [moment.time for _, moment in members],
            "video_moments": sum(moment.video for _, moment in members) if plan.needs_video else None,
            "audio_moments": None,
            "sound_coverage": None,
            "sound_start": None,
            "sound_end": None,
            "similarity": self._similarity(members) if self.compared else None,
        }
        if plan.needs_audio:
            heard = [moment for counts, moment in members if counts]
            facts["audio_moments"] = sum(moment.audio for moment in heard)
            facts["sound_coverage"] = float(np.mean([moment.coverage for moment in heard])) if heard else 0.0
            if heard and self.own_sound:
                facts["sound_start"] = min(moment.sound[0] for moment in heard)
                facts["sound_end"] = max(moment.sound[1] for moment in heard)
        return facts

    def _similarity(self, members: list[tuple[bool, _Moment]]) -> float | None:
        cosines = [
            float(np.dot(moment.vectors["a"], moment.vectors["v"]))
            for heard, moment in members
            if heard and moment.audio and moment.video
        ]
        return float(np.mean(cosines)) if cosines else None
