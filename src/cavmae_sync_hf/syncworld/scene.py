# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What happens in a SyncWorld clip: which objects are there, how they move, and which sounds when.

A scene is a pure function of the options and the clip's index, so clips can be made in any order by any number of
processes. All times are whole video frames, so that an event begins and ends at the same instant in video and audio.
"""

import itertools
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np

from .appearance import Appearance, sample_appearance
from .voices import CLASS_NAMES, Voice, sample_voice

PRESETS = ("semantic", "temporal", "spatial", "mixed")
ENCODER_PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"
)  # fmt: skip
EVENT_SECONDS = (0.3, 2.0)
GAP_SECONDS = 0.25  # silence between events, so that every onset can be told from what came before
SOUNDING_SHARE = (0.5, 0.65)  # part of a clip in which something sounds: a random frame shows it as often as not
MAX_SOUNDING = 3
NUM_FRAME_TIMES = 16  # frames the processor takes of a clip
ANIMATIONS = ("spin", "squash", "dim", "hop")
TRAIN_SPLIT = "train"


@dataclass(frozen=True)
class WorldOptions:
    """Everything that decides the bytes of a split, except how many clips it has.

    Args:
        seed: Seed of the world.
        split: Name of the split; another name is another world from the same seed. Every split but `"train"` is an
            evaluation split.
        preset: `"semantic"` (1 to 3 of 2 to 4 objects sound; in an evaluation split no two clips have the same set of
            sounding classes), `"temporal"` (clips 2k and 2k + 1 differ only in when things sound, see
            `sample_scene`), `"spatial"` (two candidates, one sounds) or `"mixed"` (in turn one semantic clip, one
            spatial clip and a temporal pair).
        width: Width of the frames in pixels, even.
        height: Height of the frames in pixels, even.
        fps: Video frames per second.
        seconds: Length of a clip, rounded to whole frames.
        sampling_rate: Audio samples per second.
        echo: Strength of the room's echo, 0 (none) to 1; audio then outlasts its event by a fading tail.
        noise_db: Level of the background noise in dB relative to full scale, or None for digital silence. Events have
            -22 to -12 dB.
        overlap: Chance that an event begins before the previous one (of another object) has ended.
        crf: H.264 quality, 0 (lossless) to 51.
        encoder_preset: x264 preset; `"ultrafast"` keeps small clips cheap.
        audio_bitrate: AAC bits per second.

    Raises:
        ValueError: If a value is out of range.
    """

    seed: int = 0
    split: str = TRAIN_SPLIT
    preset: str = "mixed"
    width: int = 96
    height: int = 96
    fps: int = 10
    seconds: float = 10.0
    sampling_rate: int = 16000
    echo: float = 0.0
    noise_db: float | None = -55.0
    overlap: float = 0.0
    crf: int = 23
    encoder_preset: str = "ultrafast"
    audio_bitrate: int = 64000

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"Unknown preset {self.preset!r}; use one of {', '.join(PRESETS)}.")
        if not re.fullmatch(r"[A-Za-z0-9_]+", self.split):  # what `datasets` takes for a split
            raise ValueError(f"Split name {self.split!r} must be made of letters, digits and '_'.")
        if self.seed < 0:
            raise ValueError(f"The seed must be zero or more, got {self.seed}.")
        for name in ("width", "height"):
            value = getattr(self, name)
            if value < 48 or value % 2:
                raise ValueError(f"H.264 needs an even {name} and the objects at least 48 pixels, got {value}.")
        if not 5 <= self.fps <= 120:
            raise ValueError(f"fps must be in 5..120 (an event lasts 0.3 s and needs frames), got {self.fps}.")
        if not 3.0 <= self.seconds <= 3600.0:
            raise ValueError(f"seconds must be in 3..3600 (three events and their gaps must fit), got {self.seconds}.")
        if self.sampling_rate not in (16000, 22050, 24000, 32000, 44100, 48000):
            raise ValueError(f"sampling_rate must be a common AAC rate of 16000 or more, got {self.sampling_rate}.")
        for name in ("echo", "overlap"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in 0..1, got {getattr(self, name)}.")
        if self.noise_db is not None and not -120.0 <= self.noise_db <= -12.0:
            raise ValueError(f"noise_db must be None or in -120..-12, got {self.noise_db}.")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf must be in 0..51, got {self.crf}.")
        if self.encoder_preset not in ENCODER_PRESETS:
            raise ValueError(
                f"Unknown encoder_preset {self.encoder_preset!r}; use one of {', '.join(ENCODER_PRESETS)}."
            )
        if not 8000 <= self.audio_bitrate <= 512000:
            raise ValueError(f"audio_bitrate must be in 8000..512000, got {self.audio_bitrate}.")

    @property
    def num_frames(self) -> int:
        """Video frames of a clip."""
        return round(self.seconds * self.fps)

    @property
    def duration(self) -> float:
        """Length of a clip in seconds, a whole number of video frames."""
        return self.num_frames / self.fps

    @property
    def is_evaluation(self) -> bool:
        """Whether the split is one of evaluation."""
        return self.split != TRAIN_SPLIT

    def sample_of_frame(self, frame: int) -> int:
        """Audio sample at which a video frame comes on screen."""
        return round(frame * self.sampling_rate / self.fps)

    def to_dict(self) -> dict[str, object]:
        """The options as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "WorldOptions":
        """Options from plain values; unknown names are left out."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})  # type: ignore[arg-type]


@dataclass(frozen=True)
class WorldObject:
    """One object on screen: its class, appearance and the path of its centre, `(num_frames, 2)` x and y in pixels."""

    class_name: str
    appearance: Appearance
    sounding: bool
    path: np.ndarray


@dataclass(frozen=True)
class Event:
    """An object sounds: which one, from which video frame until before which, and its voice."""

    object: int
    start_frame: int
    end_frame: int
    voice: Voice


@dataclass(frozen=True)
class Animation:
    """A silent object moves: which one, which animation, from which video frame until before which."""

    object: int
    kind: str
    start_frame: int
    end_frame: int


@dataclass(frozen=True)
class Scene:
    """A clip before it is drawn. `partner` is the index of the other clip of a temporal pair, else None."""

    index: int
    kind: str
    partner: int | None
    objects: tuple[WorldObject, ...]
    events: tuple[Event, ...]
    animations: tuple[Animation, ...]
    background_seed: int
    noise_seed: int

    @property
    def classes(self) -> list[int]:
        """Sorted ids of the classes that sound."""
        return sorted({CLASS_NAMES.index(item.class_name) for item in self.objects if item.sounding})


def sounding_class_sets(num_classes: int = len(CLASS_NAMES), most: int = MAX_SOUNDING) -> list[tuple[int, ...]]:
    """All sets of 1 to `most` classes; 298 for 12 classes and 3."""
    return [s for size in range(1, most + 1) for s in itertools.combinations(range(num_classes), size)]


def sample_scene(options: WorldOptions, index: int) -> Scene:
    """Decide everything that happens in clip `index` of a split.

    The order of the objects is random, so their place in the list does not tell which of them sound.

    The two clips of a temporal pair share the objects, in the same order, with their classes, appearances and paths,
    the background and how it drifts, the animations of silent objects, the room's echo, and the events one by one:
    their object, length, pitch, rate, decay, level and random seed. They differ in when each event starts, hence also
    in the order of the events (and which of them meet, if `overlap` lets them), and in the samples of the background
    noise. An object vibrates by a fortieth of its side while it sounds, so in the truth its boxes move by these few
    pixels at the frames at which it sounds in one clip alone.

    Raises:
        ValueError: If a semantic evaluation split has no set of sounding classes left for this index.
    """
    kind = options.preset
    if kind == "mixed":
        kind = ("semantic", "spatial", "temporal", "temporal")[index % 4]
    paired = kind == "temporal"
    base = index - index % 2 if paired else index  # mixed pairs sit at 4k + 2 and 4k + 3, so this holds there too
    rng = _generator(options, base)
    sounding, silent = _sample_classes(options, kind, index, rng)
    objects = _sample_objects(options, sounding, silent, rng)
    slots = [slot for slot, item in enumerate(objects) if item.sounding]
    plan = _sample_plan(options, len(slots), rng)
    voices = [sample_voice(objects[slots[k]].class_name, rng) for k, _ in plan]
    background_seed = int(rng.integers(2**31))
    spans = _schedule(options, plan, rng)
    other = spans
    if paired:  # another schedule of the same plan, in which objects sound at other times
        tries = [_schedule(options, plan, rng) for _ in range(48)]
        first = _activity(options, plan, spans)
        other = min(tries, key=lambda tried: int((first & _activity(options, plan, tried)).sum()))
    animations = _sample_animations(options, objects, [spans, other], rng)
    if index != base:
        spans = other
    events = [Event(slots[plan[i][0]], start, end, voices[i]) for i, (start, end) in enumerate(spans)]
    events.sort(key=lambda event: (event.start_frame, event.object))
    return Scene(
        index=index,
        kind=kind,
        partner=index ^ 1 if paired else None,
        objects=tuple(objects),
        events=tuple(events),
        animations=tuple(animations),
        background_seed=background_seed,
        # The noise is the clip's own: two clips of a pair must not be recognisable by it.
        noise_seed=int(_generator(options, index, 1).integers(2**31)),
    )


def _generator(options: WorldOptions, *key: int) -> np.random.Generator:
    """Random numbers that depend on seed, split, preset and key alone."""
    names = [zlib.crc32(name.encode()) for name in (options.split, options.preset)]
    return np.random.default_rng(np.random.SeedSequence([options.seed, *names, *key]))


def _sample_classes(
    options: WorldOptions, kind: str, index: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Classes that sound and classes that are only seen, no class twice."""
    total = len(CLASS_NAMES)
    if options.preset == "semantic" and options.is_evaluation:
        sets = sounding_class_sets()
        if index >= len(sets):
            raise ValueError(
                f"A semantic evaluation split has at most {len(sets)} clips, one for each set of sounding classes; "
                f"clip {index} was asked for. Use fewer clips or another split name or seed for a second set."
            )
        order = _generator(options, 2**32 - 1).permutation(len(sets))
        sounding = list(rng.permutation(sets[order[index]]))
    else:
        low, high = {"semantic": (1, 3), "temporal": (2, 3), "spatial": (1, 1)}[kind]
        sounding = list(rng.permutation(total)[: rng.integers(low, high + 1)])
    rest = [c for c in rng.permutation(total) if c not in sounding]
    # There is always a silent candidate, or seeing an object would be as good as hearing it.
    most = 1 if kind == "spatial" else 4 - len(sounding)
    return [int(c) for c in sounding], [int(c) for c in rest[: rng.integers(1, most + 1)]]


def _sample_objects(
    options: WorldOptions, sounding: list[int], silent: list[int], rng: np.random.Generator
) -> list[WorldObject]:
    """Appearances and paths, in random order: a path found later has less room, which must not tell what sounds."""
    classes = [int(c) for c in rng.permutation(sounding + silent)]
    low, high = {2: (0.25, 0.32), 3: (0.24, 0.29), 4: (0.22, 0.26)}[len(classes)]
    scale = min(options.width, options.height)
    sides = [rng.uniform(low, high) * scale for _ in classes]
    paths = _sample_paths(options, sides, rng)
    return [
        WorldObject(CLASS_NAMES[c], sample_appearance(CLASS_NAMES[c], side, rng), c in sounding, path)
        for c, side, path in zip(classes, sides, paths, strict=True)
    ]


def _sample_paths(options: WorldOptions, sides: list[float], rng: np.random.Generator) -> list[np.ndarray]:
    """Smooth paths on which no two objects, glow included, ever meet, so that nothing is hidden."""
    time = np.arange(options.num_frames)[:, None] / options.fps
    frame = np.array([options.width, options.height], dtype=float)
    tries = 24
    for attempt in range(60):
        swing = 0.25 * min(frame) * 0.95**attempt  # crowded scenes end up with smaller movements
        paths: list[np.ndarray] = []
        for slot, side in enumerate(sides):
            reach = np.minimum(rng.uniform(0.3, 1.0, (tries, 1, 2)) * swing, frame / 2 - 0.66 * side)
            room = 0.64 * side + reach
            centre = room + rng.uniform(0, 1, (tries, 1, 2)) * (frame - 2 * room)
            speed, start = rng.uniform(0.05, 0.22, (tries, 1, 2)), rng.uniform(0, 2 * np.pi, (tries, 1, 2))
            found = centre + reach * np.sin(2 * np.pi * speed * time + start)  # (tries, num_frames, 2)
            clear = np.ones(tries, bool)
            for k in range(slot):
                apart = np.maximum(*np.moveaxis(np.abs(found - paths[k]), -1, 0))
                clear &= apart.min(1) >= 0.62 * (side + sides[k])
            if not clear.any():
                break
            paths.append(found[np.argmax(clear)])
        if len(paths) == len(sides):
            return paths
    corners = rng.permutation([(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)])
    return [np.tile(corners[slot] * frame, (options.num_frames, 1)) for slot in range(len(sides))]


def _sample_plan(options: WorldOptions, num_sounding: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Events as (which of the sounding objects, frames long).

    Each of these objects has one long enough to be on at one of the 16 frame times.
    """
    shortest = math.ceil(EVENT_SECONDS[0] * options.fps - 1e-9)
    longest = math.floor(EVENT_SECONDS[1] * options.fps + 1e-9)
    gap = math.ceil(GAP_SECONDS * options.fps)
    total = options.num_frames
    room = min(longest, (total - (num_sounding + 1) * gap) // num_sounding)
    certain = min(max(math.ceil(options.duration / NUM_FRAME_TIMES * options.fps - 1e-9), shortest), room)
    plan = [(slot, int(rng.integers(certain, room + 1))) for slot in range(num_sounding)]
    budget = round(rng.uniform(*SOUNDING_SHARE) * total)
    while True:
        used = sum(frames for _, frames in plan)
        left = min(budget - used, total - used - (len(plan) + 2) * gap)
        if left < shortest:
            return plan
        plan.append((int(rng.integers(num_sounding)), min(left, int(rng.integers(shortest, longest + 1)))))


def _schedule(options: WorldOptions, plan: list[tuple[int, int]], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Put the events of a plan in a random order with random silences; (start, end) frames in the plan's order."""
    gap = math.ceil(GAP_SECONDS * options.fps)
    free = options.num_frames - sum(frames for _, frames in plan) - (len(plan) + 1) * gap
    cuts = np.sort(rng.integers(0, free + 1, len(plan) + 1))
    extra = np.diff(cuts, prepend=0)
    spans: list[tuple[int, int]] = [(0, 0)] * len(plan)
    cursor, before = 0, -1
    for place, item in enumerate(rng.permutation(len(plan))):
        slot, length = plan[item]
        start = cursor + gap + int(extra[place])
        if before >= 0 and rng.random() < options.overlap and plan[before][0] != slot:
            # Inside the previous event, and clear of the object's own earlier ones.
            own = max((spans[k][1] for k in range(len(plan)) if plan[k][0] == slot), default=0)
            earliest = max(spans[before][0] + 1, own + gap)
            start = int(rng.integers(earliest, max(spans[before][1], earliest + 1)))
        spans[item] = (start, start + length)
        cursor, before = max(cursor, start + length), int(item)
    return spans


def _activity(options: WorldOptions, plan: list[tuple[int, int]], spans: list[tuple[int, int]]) -> np.ndarray:
    """Which sounding object is on at which frame, bool, shape `(MAX_SOUNDING, num_frames)`."""
    active = np.zeros((MAX_SOUNDING, options.num_frames), bool)
    for (slot, _), (start, end) in zip(plan, spans, strict=True):
        active[slot, start:end] = True
    return active


def _sample_animations(
    options: WorldOptions,
    objects: list[WorldObject],
    schedules: list[list[tuple[int, int]]],
    rng: np.random.Generator,
) -> list[Animation]:
    """Animate silent objects while nothing sounds, in either clip of a pair, where there is time for it."""
    busy = np.zeros(options.num_frames, bool)
    for start, end in itertools.chain.from_iterable(schedules):
        busy[max(0, start - 1) : end + 1] = True
    shortest = math.ceil(EVENT_SECONDS[0] * options.fps - 1e-9)
    animations: list[Animation] = []
    for slot in rng.permutation(len(objects)):
        if objects[slot].sounding or rng.random() < 0.25:
            continue
        for _ in range(int(rng.integers(1, 4))):
            gaps = [(start, end) for start, end in _runs(~busy) if end - start >= shortest]
            if not gaps:
                return animations
            low, high = gaps[rng.integers(len(gaps))]
            start = int(rng.integers(low, high - shortest + 1))
            end = min(high, start + int(rng.integers(shortest, 2 * options.fps + 1)))
            animations.append(Animation(int(slot), str(rng.choice(ANIMATIONS)), start, end))
            busy[start:end] = True
    return animations


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]
