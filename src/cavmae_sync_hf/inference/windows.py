# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Features of analysis windows, such as of "5 seconds, every second", from a model that looks at moments.

A video is sampled at moments `hop` seconds apart: moment k lies at `(k + 0.5) * hop`, with the frame on screen then
and the model's own audio window (4.16 s as published) around it. The row of an analysis window is the mean of the
vectors of the moments *inside* it. Windows overlap without costing more: a moment is encoded once.

So the frames of a row come from inside its window, but its audio reaches half an audio window further on both sides.
Where that must not be, `audio_context="inside"` averages those moments alone whose audio lies inside, too.

`ScrambledAudio` is the control condition, in which frames get the audio of other moments: the audio of all videos of a
run is cut into pieces as long as an analysis window, and the pieces are dealt out anew, so that no frame keeps its own
audio, nor that of a piece beside it where there are others to choose from. Every modality keeps what it holds and,
within a piece, its course in time; what belongs together is what is lost. With windows side by side this replaces the
audio of window i by that of window `permutation[i]`. The audio of a piece is heard with its true surroundings, so no
audio window has a cut in it. Where a video's audio cannot be read, the frames that were dealt it have none, and their
rows are NaN: they stay beside those of the true condition.
"""

import copy
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..model.alignment_cavmae_sync import FRAMES_PER_SECOND, step_times, window_seconds
from ..model.errors_cavmae_sync import Hint, InferenceError
from ..model.media_cavmae_sync import decode_media, probe_media
from ..model.media_stream_cavmae_sync import iter_media
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .features import OFFSETS, Feature
from .moments import MediaSpan, MomentChunk, embed_moments

# As far apart as the published 16 frames in 10 s.
DEFAULT_HOP = 0.625
_TOLERANCE = 1e-6
# Decoded around a piece of audio beyond half an audio window: the spectrogram's own 25 ms and a margin for rounding.
_MARGIN_SECONDS = 0.2
_ROUNDS = 200


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
            InferenceError: A value cannot work; the message says what would.
        """
        for name, value in (("window", window), ("stride", stride), ("hop", 1.0 if hop is None else hop)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InferenceError(f"`{name}` is {value!r}; it must be a number of seconds above 0.")
        if hop is None:
            per_stride = math.ceil(stride / min(DEFAULT_HOP, window) - _TOLERANCE)
        else:
            per_stride = max(1, round(stride / hop))
            if abs(per_stride * hop - stride) > _TOLERANCE * max(1.0, stride):
                raise InferenceError(
                    f"`hop` is {hop:g} s, which does not divide the stride of {stride:g} s: windows would be sampled "
                    f"unlike each other. Use {stride / per_stride:.6g}, or a stride of {per_stride * hop:.6g}."
                )
        step = stride / per_stride
        per_window = math.ceil(window / step - 0.5 - _TOLERANCE)
        if per_window < 1:
            raise InferenceError(
                f"No moment lies in a window of {window:g} s when they are {step:g} s apart; use a hop of at most the "
                "window."
            )
        return cls(window=float(window), stride=float(stride), hop=step, per_window=per_window, per_stride=per_stride)

    def centres(self) -> np.ndarray:
        """Times of a window's moments from its start, `(per_window,)` seconds."""
        return np.array(step_times(self.hop, self.per_window))

    def inside(self, audio_seconds: float) -> np.ndarray:
        """Which of a window's moments have their audio window wholly inside it, `(per_window,)` bool."""
        centres, half = self.centres(), audio_seconds / 2
        return (centres - half >= -_TOLERANCE) & (centres + half <= self.window + _TOLERANCE)


@dataclass(frozen=True)
class Plan:
    """What is extracted, the same for all videos.

    Attributes:
        grid: Windows and moments.
        features: From `choose_features`.
        audio_context: `"around"`: the audio of every moment in the window counts, with what it hears on either side.
            `"inside"`: that of moments that hear nothing from outside the window.
        partial: `"drop"`: windows that reach beyond the video's last moment give no row. `"keep"`: they are the mean
            of the moments there are.
        missing: `"error"`, or `"mask"`: videos without audio or frames have NaN for what needs it.
        damaged: `"error"`, or `"keep"`: what can be decoded of a damaged video counts.
        batch_frames: Moments decoded and encoded at a time.
    """

    grid: WindowGrid
    features: tuple[Feature, ...]
    audio_context: Literal["around", "inside"] = "around"
    partial: Literal["drop", "keep"] = "drop"
    missing: Literal["error", "mask"] = "error"
    damaged: Literal["error", "keep"] = "error"
    batch_frames: int = 16

    def __post_init__(self) -> None:
        for name, values in (
            ("audio_context", ("around", "inside")),
            ("partial", ("drop", "keep")),
            ("missing", ("error", "mask")),
            ("damaged", ("error", "keep")),
        ):
            if getattr(self, name) not in values:
                choices = " or ".join(map(repr, values))
                raise InferenceError(f"`{name}` is {getattr(self, name)!r}; it must be {choices}.")
        if self.batch_frames < 1:
            raise InferenceError(f"`batch_frames` is {self.batch_frames}; it must be at least 1.")

    @property
    def needs_audio(self) -> bool:
        """Whether any feature takes the audio."""
        return any(feature.needs_audio for feature in self.features)

    @property
    def needs_video(self) -> bool:
        """Whether any feature takes the frames."""
        return any(feature.needs_video for feature in self.features)

    def heard(self, audio_seconds: float) -> np.ndarray:
        """Which of a window's moments count for features that take the audio, `(per_window,)` bool.

        Args:
            audio_seconds: Length of the model's audio windows.

        Raises:
            InferenceError: None does, because windows are shorter than the model's audio windows.
        """
        grid = self.grid
        if self.audio_context == "around" or not self.needs_audio:
            return np.ones(grid.per_window, dtype=bool)
        heard = grid.inside(audio_seconds)
        if not heard.any():
            raise InferenceError(
                f"No moment of a window of {grid.window:g} s, sampled every {grid.hop:g} s, has its "
                f"{audio_seconds:g} s of audio inside it; use windows of at least {audio_seconds + grid.hop:g} s.",
                hint=Hint("audio_context", "around", "count moments that hear beyond the window"),
            )
        return heard


class AudioSupply(Protocol):
    """Gives moments another audio than their own."""

    def windows(self, video: MediaSpan, numbers: Sequence[int]) -> dict[str, Tensor]:
        """For moments of a video: `input_values` and what goes with it, without a batch dimension.

        It is called in threads, for several videos at a time.
        """


@dataclass
class WindowRow:
    """One row: an analysis window of a video.

    Attributes:
        vectors: Feature name -> `(hidden,)` float32; NaN where nothing in the window has it.
        facts: The row's times and counts; see `extract_features`.
    """

    vectors: dict[str, np.ndarray]
    facts: dict[str, Any]


def iter_windows(
    model: CavMaeSyncModel,
    processor: CavMaeSyncProcessor,
    videos: Iterable[MediaSpan],
    plan: Plan,
    *,
    supply: AudioSupply | None = None,
    show: Callable[[MediaSpan, float], None] | None = None,
) -> Iterator[tuple[MediaSpan, Iterator[WindowRow]]]:
    """The rows of videos, in order of time, in memory that does not grow with their length.

    Args:
        model: In evaluation mode.
        processor: Its processor.
        videos: The videos, several of which are decoded at a time.
        plan: What is wanted.
        supply: Gives moments an audio that is not their own (a control condition); default: their own.
        show: Called with a video and the seconds of it that are done.

    Yields:
        Each video with its rows; these end in an `InferenceError` where not one window fits, and in the error of a
        video that cannot be read.
    """
    grid = plan.grid
    heard = plan.heard(window_seconds(processor.feature_extractor.audio_length))

    def prepare(video: MediaSpan, inputs: dict[str, Any], first: int) -> tuple[list[int], int]:
        """Numbers of the moments that are kept, and of the first one of the next chunk."""
        count = inputs["frame_times"].shape[1]
        # Windows shorter than the stride leave moments that no window holds.
        kept = [place for place in range(count) if (first + place) % grid.per_stride < grid.per_window]
        for name in inputs.keys() - {"media"}:
            inputs[name] = inputs[name][:, kept]
        numbers = [first + place for place in kept]
        if supply is not None and kept:
            inputs |= {name: value[None] for name, value in supply.windows(video, numbers).items()}
        return numbers, first + count

    # Chunks go to the model alone, so that rows do not depend on what other videos a run reads.
    groups = embed_moments(
        model, processor, videos, plan.features, hop=grid.hop, num_frames=plan.batch_frames, batch_size=1,
        missing=plan.missing, damaged=plan.damaged, prepare=prepare, want_audio=plan.needs_audio and supply is None,
    )  # fmt: skip
    for video, chunks in groups:
        rows = _Rows(video, plan, heard, own_audio=supply is None)
        yield video, _video_rows(rows, chunks, show)


def _video_rows(
    rows: "_Rows", chunks: Iterator[MomentChunk], show: Callable[[MediaSpan, float], None] | None
) -> Iterator[WindowRow]:
    grid, count = rows.plan.grid, 0
    for chunk in chunks:
        numbers, count = chunk.kept
        if numbers:
            rows.add(numbers, chunk)
        yield from rows.whole()
        if show is not None:
            show(rows.video, count * grid.hop)
    if rows.plan.partial == "keep":
        yield from rows.rest(count)
    if not rows.made:
        raise InferenceError(
            f"{rows.video.name}: has moments up to {max(0.0, count - 0.5) * grid.hop:g} s, too few for one window of "
            f"{grid.window:g} s; use shorter windows.",
            hint=Hint("partial", "keep", "keep partial ones"),
        )


@dataclass
class _Moment:
    vectors: dict[str, np.ndarray]
    audio: bool
    video: bool
    time: float
    span: tuple[float, float]  # of the audio window
    coverage: float


class _Rows:
    """Collects moments and gives the rows that are complete."""

    def __init__(self, video: MediaSpan, plan: Plan, heard: np.ndarray, own_audio: bool) -> None:
        self.video, self.plan, self.heard, self.own_audio = video, plan, heard, own_audio
        self.made = 0
        self.reached = 0  # number after the last moment
        self.held: deque[tuple[int, _Moment]] = deque()

    def add(self, numbers: Sequence[int], chunk: MomentChunk) -> None:
        """Take the moments of a chunk."""
        for place, number in enumerate(numbers):
            moment = _Moment(
                vectors={name: vectors[place] for name, vectors in chunk.values.items()},
                audio=bool(chunk.audio_present[place]),
                video=bool(chunk.video_present[place]),
                time=float(chunk.times[place]),
                span=(float(chunk.window_times[place, 0]), float(chunk.window_times[place, 1])),
                coverage=float(chunk.window_coverage[place]),
            )
            self.held.append((number, moment))
        self.reached = numbers[-1] + 1

    def whole(self) -> Iterator[WindowRow]:
        """Rows all of whose moments are there."""
        grid = self.plan.grid
        while self.made * grid.per_stride + grid.per_window <= self.reached:
            yield self._next()

    def rest(self, count: int) -> Iterator[WindowRow]:
        """Rows of windows that begin before the video ends after `count` moments."""
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
        grid, plan = self.plan.grid, self.plan
        start = (self.video.start or 0.0) + number * grid.stride
        facts: dict[str, Any] = {
            "id": self.video.id,
            "file": self.video.name,
            "window": number,
            "start": start,
            "end": start + grid.window,
            "centre": start + grid.window / 2,
            "moments": len(members),
            "partial": len(members) < grid.per_window,
            "frame_times": [moment.time for _, moment in members],
            "video_moments": sum(moment.video for _, moment in members) if plan.needs_video else None,
            "audio_moments": None,
            "audio_coverage": None,
            "audio_start": None,
            "audio_end": None,
            "similarity": None,
        }
        if plan.needs_audio:
            heard = [moment for counts, moment in members if counts]
            facts["audio_moments"] = sum(moment.audio for moment in heard)
            facts["audio_coverage"] = float(np.mean([moment.coverage for moment in heard])) if heard else 0.0
            if heard and self.own_audio:
                facts["audio_start"] = min(moment.span[0] for moment in heard)
                facts["audio_end"] = max(moment.span[1] for moment in heard)
        if {"a", "v"} <= {feature.name for feature in plan.features}:
            cosines = [
                float(np.dot(moment.vectors["a"], moment.vectors["v"]))
                for counts, moment in members
                if counts and moment.audio and moment.video
            ]
            facts["similarity"] = float(np.mean(cosines)) if cosines else None
        return facts


def derange(count: int, forbidden: Callable[[int, int], bool], generator: np.random.Generator) -> np.ndarray:
    """A random permutation without forbidden pairs, as far as that is possible; never with `i -> i`.

    Args:
        count: Length, at least 2.
        forbidden: `forbidden(i, j)`: whether i should not get j.
        generator: Draws.

    Returns:
        `(count,)`; where no permutation without forbidden pairs was found, one that only has no `i -> i`.
    """
    for rule in (lambda i, j: i == j or forbidden(i, j), lambda i, j: i == j):
        dealt = generator.permutation(count)
        for _ in range(_ROUNDS):
            wrong = [i for i in range(count) if rule(i, dealt[i])]
            if not wrong:
                return dealt
            for i in wrong:
                # An exchange that leaves both right, or a blind one that shakes things up.
                for j in generator.integers(0, count, 20):
                    if not rule(i, dealt[j]) and not rule(int(j), dealt[i]):
                        break
                dealt[[i, j]] = dealt[[j, i]]
    # Only for two or three pieces may the dealing above not have ended.
    return np.roll(np.arange(count), 1)


class ScrambledAudio:
    """Gives the moments of videos the audio of other pieces (an `AudioSupply`).

    Args:
        videos: All videos of the run.
        plan: What is extracted.
        processor: The model's processor.
        seed: Seeds the dealing.
        progress: Called with videos looked at and their number.

    Raises:
        InferenceError: There are fewer than two pieces.
    """

    def __init__(
        self,
        videos: Sequence[MediaSpan],
        plan: Plan,
        processor: CavMaeSyncProcessor,
        *,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.videos, self.plan, self.seed = list(videos), plan, seed
        # Windows are centred in time whatever the processor's setting, as in a stream.
        self.audio_track = processor.audio_track
        self.extractor = copy.copy(processor.feature_extractor)
        self.extractor.alignment = "time"
        self.piece = plan.grid.per_window  # moments
        self.seconds = self.piece * plan.grid.hop
        self.numbers = {video.id: number for number, video in enumerate(self.videos)}
        counts = []
        for place, video in enumerate(self.videos):
            counts.append(self._whole_pieces(video))
            if progress is not None:
                progress(place + 1, len(self.videos))
        # (video, piece) of every whole piece.
        self.pieces = [(video, piece) for video, count in enumerate(counts) for piece in range(count)]
        if len(self.pieces) < 2:
            raise InferenceError(
                f"The audio of {len(self.videos)} video(s) has {len(self.pieces)} whole piece(s) of "
                f"{self.seconds:g} s: nothing to deal out. Use more videos or shorter windows."
            )
        self.first = np.cumsum([0, *counts]).tolist()
        self.counts = counts
        # Pieces this close hear some of each other's time.
        self.reach = math.ceil(self.extractor.context_seconds / self.seconds)
        self.permutation = derange(len(self.pieces), self._near, np.random.default_rng(seed))
        self._held = threading.local()  # the last piece that each thread asked for

    def windows(self, video: MediaSpan, numbers: Sequence[int]) -> dict[str, Tensor]:
        """As of `AudioSupply`."""
        parts: list[dict[str, Tensor]] = []
        for number in numbers:
            piece, place = divmod(number, self.piece)
            partner = self.partner(self.numbers[video.id], piece)
            if getattr(self._held, "partner", None) != partner:
                self._held.partner, self._held.windows = partner, self._decode(*partner)
            parts.append({name: column[place] for name, column in self._held.windows.items()})
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    def partner(self, video: int, piece: int) -> tuple[int, int]:
        """Whose audio a piece of a video's frames gets: video and piece."""
        if piece < self.counts[video]:
            return self.pieces[self.permutation[self.first[video] + piece]]
        # The rest at the end of a video is no whole piece and gives its audio to nobody; it borrows.
        generator = np.random.default_rng((self.seed, video, piece))
        far = [at for at, other in enumerate(self.pieces) if other[0] != video or piece - other[1] > self.reach]
        return self.pieces[int(generator.choice(far or len(self.pieces)))]

    def pairing(self) -> list[dict[str, Any]]:
        """One row per piece: whose frames, and whose audio they get; times in seconds of the files."""
        rows = []
        for at, own in enumerate(self.pieces):
            row: dict[str, Any] = {}
            for prefix, (number, place) in (("", own), ("audio_", self.pieces[self.permutation[at]])):
                begin = (self.videos[number].start or 0.0) + place * self.seconds
                row |= {f"{prefix}id": self.videos[number].id, f"{prefix}start": begin}
                row[f"{prefix}end"] = begin + self.seconds
            rows.append(row)
        return rows

    def _near(self, i: int, j: int) -> bool:
        (video, piece), (other, other_piece) = self.pieces[i], self.pieces[j]
        return video == other and abs(piece - other_piece) <= self.reach

    def _whole_pieces(self, video: MediaSpan) -> int:
        """Pieces that fit into a video; none where it cannot be read, which its own turn will tell."""
        try:
            media = video.open()
            duration = probe_media(media).duration
            if duration is None:
                hop = self.plan.grid.hop
                chunks = iter_media(
                    media, hop=hop, want_video=False, missing="mask", damaged="keep", audio_track=self.audio_track
                )
                duration = sum(len(chunk.asked_times) for chunk in chunks) * hop
        except Exception:
            return 0
        stop = duration if video.end is None else min(video.end, duration)
        return max(0, math.floor((stop - (video.start or 0.0)) / self.seconds + 1e-6))

    def _decode(self, number: int, piece: int) -> dict[str, Tensor]:
        video, extractor, hop = self.videos[number], self.extractor, self.plan.grid.hop
        start = video.start or 0.0
        times = step_times(hop, self.piece, piece * self.piece)
        context = extractor.context_seconds + _MARGIN_SECONDS
        # A whole second of the span, as in a stream, so that the spectrogram lies on the same grid.
        second = max(0, math.floor(times[0] - context))
        stop = start + times[-1] + context
        waveform = None
        # What is wrong with that video is said at its own turn.
        with suppress(Exception):
            waveform = decode_media(
                video.open(),
                start=start + second,
                end=stop if video.end is None else min(stop, video.end),
                want_video=False,
                sampling_rate=extractor.sampling_rate,
                channel=extractor.channel,
                audio_track=self.audio_track,
                damaged=self.plan.damaged,
            ).waveform
        if waveform is None or not len(waveform):
            windows = extractor.windows(torch.empty(0, extractor.num_mel_bins), times)
            absent, coverage = torch.zeros_like(windows.mask), torch.zeros_like(windows.coverage)
            windows = windows._replace(mask=absent, coverage=coverage)
        else:
            log_mel = extractor.log_mel(waveform)
            windows = extractor.windows(log_mel, times, first_frame=second * FRAMES_PER_SECOND, origin=start)
        within = {} if extractor.clip_length is None else {OFFSETS: windows.offsets}
        return within | {
            "input_values": windows.values, "padding_mask": windows.mask, "window_coverage": windows.coverage,
        }  # fmt: skip
