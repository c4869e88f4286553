# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Sound for silent pictures: which recordings of a library fit what happens on screen, and where each belongs.

The film is cut into segments where the embeddings of its own frames change. For each segment the index of the library
gives recordings whose audio is most like its frames; dynamic programming over the segments chooses among them and
silence, so that segments that look alike get the same recording. A recording begins where its segment begins, its
first sound at the first frame, or where the offset estimate of `sync` puts it. `soundtrack` writes the result.

The other way round, audio without pictures gets parts of the library's videos: the same, but that every segment has
one.

Memory grows with the number of segments alone.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from transformers import PreTrainedModel

from ..data.caption_tables import CLIP_NAMES, table_rows
from ..data.captions import first_of
from ..files import StrPath, parse_json, write_text, writing
from ..inference.features import check_towers, evaluating
from ..inference.moments import MediaSpan, OnError, Progress, embed_moments, report_seconds, source_name
from ..inference.sync_band import Band, band_contrast, find_offset
from ..model.alignment_cavmae_sync import window_seconds
from ..model.errors_cavmae_sync import CavMaeSyncError, DataError, Hint, InferenceError, QueryError, printable
from ..model.media_cavmae_sync import probe_media
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .placements import Candidate, FilmScore, FilmSegment, Placement
from .querying import Query, as_wave, embed_words, join_words
from .searching import Hit, load_index_model, search_moments
from .settings import IndexSettings
from .soundtrack import first_sound, read_samples
from .store import MomentStore, open_index
from .view import SearchFilters

Place = Literal["onset", "sync"]
DEFAULT_HOP = 0.1
# In nats: e^5, 150 times as likely as silence. Where a film does not tell by itself.
DEFAULT_MIN_FIT = 5.0
# Pink noise that is a silent room's, dB of full scale.
_ROOM_DB = -60.0
# Share of the variance of the logarithms of a film's fits that lies between two kinds where there are two; and what
# counts as no fit at all, nats.
_TWO_KINDS, _NO_FIT = 0.6, 1.5
# What sounds hardly may be a kind of its own between silence and what fits well: it then fits so much better.
_APART = 1.4
# A new segment has to spare so much of the squared distances of unit vectors from their mean.
DEFAULT_CHANGE = 0.2
# Moments of a segment at most, and of the film that are cut into segments at a time.
_LONGEST_SEGMENT, _AT_A_TIME = 600, 1200
# Segments before one that it is compared with.
_REMEMBERED = 8
# Recordings that are compared for a segment.
_CANDIDATES = 12
# What a recording gains that also sounds in a segment that looks the same, and loses that covers nothing of its
# segment, nats.
_AGREEMENT, _COVER = 1.0, 1.0
# Segments less alike than the first are none of the same; through those as alike as the second a recording goes on.
_ALIKE, _SAME = 0.5, 0.8
# A recording in which what fits comes so long after its first sound, and not within its segment, begins there.
_LATE_SECONDS = 2.0
# How alternatives differ, nats.
_SPREAD = 1.0
# Around a recording, where the offset estimate places it.
_MOST_OFFSET = 1.0


def score_film(
    film: StrPath,
    library: StrPath | MomentStore,
    model: PreTrainedModel | StrPath | None = None,
    processor: CavMaeSyncProcessor | None = None,
    *,
    text: str | None = None,
    text_weight: float = 0.5,
    files: str | None = None,
    start: float | None = None,
    end: float | None = None,
    hop: float = DEFAULT_HOP,
    change: float = DEFAULT_CHANGE,
    min_fit: float | None = None,
    top: int = 3,
    layers: int = 1,
    place: Place = "onset",
    seed: int | None = None,
    about: StrPath | None = None,
    work: StrPath | None = None,
    batch_size: int = 32,
    damaged: Literal["error", "keep"] = "error",
    progress: Progress | None = None,
    on_error: OnError | None = None,
) -> FilmScore:
    """Choose recordings of a library for what happens in a film, and place each; or pictures for audio alone.

    ```python
    index_videos("sounds/", "sounds.index", model, processor)
    found = score_film("silent.mp4", "sounds.index", model, processor)
    write_film(found, "film.mp4")
    ```

    Args:
        film: Path or address of a video, whose own audio is not listened to; or of audio alone, for which parts of
            videos are chosen. Where it is in the library itself, it is left out.
        library: An index of recordings, audio files or videos with audio; for audio one of videos.
        model: The model of the index; with `text` one with text that has it inside. Default: the one that the index
            remembers.
        processor: Its processor, where the model is not a name.
        text: What recordings are to be like, in words, beside the frames; `"metal, not music"` also says what not.
        text_weight: Share of the words, 0 to 1.
        files: Pattern of the paths of recordings, such as `*/metal/*`.
        start: Where in the film to start, seconds.
        end: Where to end.
        hop: Seconds between the moments of the film that are looked at.
        change: How much frames must change for a new segment: what it spares of the squared distances of the frames'
            unit vectors from their mean. Less makes more segments.
        min_fit: Segments whose best recording is less likely than this stay silent, nats. Default: what parts the
            film's segments best into two kinds, see `silence_threshold`. Every part of audio gets a picture.
        top: Other recordings named for each segment.
        layers: Recordings that sound at the same time, at most.
        place: `"onset"`: the first sound of a recording at the first frame of its segment; `"sync"`: moved to where
            the offset estimate of `measure_sync` finds it, where that is sure.
        seed: Draws another choice among recordings that fit nearly as well; default: the best.
        about: Table (CSV, TSV, JSON) with a column such as `file` and others, such as `licence`, that are kept
            beside what is placed of the file: it is named by its path, its name, or that without its suffix.
        work: File in which segments are kept as they are found: run again, the same call goes on after the last one.
        batch_size: Frames decoded and embedded at a time.
        damaged: `"keep"` uses what can be decoded of damaged films.
        progress: Called with seconds done and in all.
        on_error: Called with the name and the error of a recording that cannot be read; the next best is taken.
            Default: its error is raised.

    Raises:
        InferenceError: An argument cannot work, or nothing in the film asks for a sound of this library.
        MediaError: The film cannot be read.
        DataError: The table cannot be read.
        QueryError: The library holds no audio, or for audio no video; or a text is empty.
        SearchError: There is no index, or it was made with another model.
    """
    _check(hop=hop, change=change, top=top, layers=layers, place=place, batch_size=batch_size)
    store = open_index(library)
    name = source_name(film)
    info = probe_media(film)
    kind: Literal["audio", "video"] = "audio" if info.has_video else "video"
    if kind == "video" and (layers > 1 or place == "sync"):
        given = "layers" if layers > 1 else "place"
        raise InferenceError(
            f"{name}: has no pictures, and gets some; {given} is for recordings.", hint=Hint(given, None)
        )
    if not store.has_vectors(kind):
        files_of = "recordings" if kind == "audio" else "videos"
        raise QueryError(f"{store.uri}: holds no {kind}; index {files_of} (`cavmae-sync index FOLDER INDEX`).")
    if model is None or isinstance(model, str | os.PathLike):
        model, processor = load_index_model(store, model, words=text is not None)
    if processor is None:
        raise QueryError("There is a model and no processor; pass both, or the name of the model.")
    base = cast(CavMaeSyncModel, model.base_model)
    check_towers(cast(Any, base))
    store.settings.check(IndexSettings.of(base, processor, store.settings.hop), store.uri, adding=False)
    words = None if text is None else _wanted(text, model, processor, store.settings.hop)
    known = {} if about is None else _read_about(about)
    with evaluating(base):
        quiet = _silence(base, processor) if kind == "audio" else _mean_vector(store, kind)
        finder = _Finder(store, kind, base.config.temperature, quiet, words, text_weight, files, top, str(film))
        # What was found for another film under this name, or before the library changed, does not count.
        file = Path(film).stat() if "://" not in str(film) else None
        call = {
            "film": str(film), "bytes": file and file.st_size, "changed": file and file.st_mtime_ns, "hop": hop,
            "library": store.uri, "recordings": len(store.entries()),
            "model": store.settings.weights, "change": change, "text": text, "files": files,
            "text_weight": text_weight, "start": start, "end": end, "top": top,
        }  # fmt: skip
        journal = _Journal(work, call)
        segments = list(
            _segments(
                base, processor, film, finder, journal, start=start, end=end, hop=hop, change=change,
                batch_size=batch_size, damaged=damaged, progress=progress,
            )
        )  # fmt: skip
        if not segments:
            raise InferenceError(f"{name}: no moments lie between {start or 0:g} s and {end} s.")
        least = silence_threshold(segments) if min_fit is None else min_fit
        least = least if kind == "audio" else -math.inf
        rng = None if seed is None else np.random.default_rng(seed)
        placements: list[Placement] = []
        taken: list[set[str]] = [set() for _ in segments]
        for layer in range(layers):
            chosen = choose_sounds(segments, least, rng, taken)
            for first, after in _runs(segments, chosen):
                whole = replace(segments[first], end=segments[after - 1].end)
                left = [c for c in whole.candidates if c.fit >= least]
                for candidate in [cast(Candidate, chosen[first]), *left]:  # the next best where a file is gone
                    if candidate.path in taken[first]:
                        continue
                    for paths in taken[first:after]:
                        paths.add(candidate.path)
                    others = tuple(c for c in whole.candidates if c.path not in taken[first])[:top]
                    try:
                        placed = _placed(kind, whole, candidate, layer, others)
                        if place == "sync" and kind == "audio":
                            placed = _moved(base, processor, film, placed, hop, quiet)
                    except CavMaeSyncError as error:
                        if on_error is None:
                            raise
                        on_error(candidate.path, error)
                        continue
                    placements.append(placed)
                    break
    if not placements:
        best = max((c.fit for segment in segments for c in segment.candidates), default=-math.inf)
        raise InferenceError(
            f"{name}: nothing in it asks for anything of {store.uri}: the best fits by {best:.1f} nats, and "
            f"{least:.1f} are needed.",
            hint=Hint("min_fit", round(best - 0.5, 1), "take what fits less well") if best > 0 else (),
        )
    placements = [replace(placed, about=_about(placed.path, known)) for placed in placements]
    placements.sort(key=lambda placed: (placed.time, placed.layer))
    return FilmScore(str(film), store.uri, segments[-1].end, tuple(segments), tuple(placements), kind)


def _check(*, hop: float, change: float, top: int, layers: int, place: str, batch_size: int) -> None:
    for name, value in (("hop", hop), ("change", change)):
        if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise InferenceError(f"{name} is {value!r}; it must be a number above 0.")
    for name, count, least in (("top", top, 0), ("layers", layers, 1), ("batch_size", batch_size, 1)):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise InferenceError(f"{name} is {count!r}; it must be a whole number of at least {least}.")
    if place not in ("onset", "sync"):
        raise InferenceError(f'place is {place!r}; it must be "onset" or "sync".')


def exchange(found: FilmScore, number: int, choice: int) -> FilmScore:
    """Take another of the choices of a placement.

    Args:
        found: From `score_film`.
        number: Which of its placements.
        choice: Which of its choices; the file that was there becomes the first of them. What a table said of it goes.

    Raises:
        InferenceError: There is no such placement or choice.
        MediaError: The file cannot be read.
    """
    if not 0 <= number < len(found.placements):
        raise InferenceError(f"There is no placement {number}; there are {len(found.placements)}, counted from 0.")
    old = found.placements[number]
    if not 0 <= choice < len(old.choices):
        raise InferenceError(f"Placement {number} has no choice {choice}; it has {len(old.choices)}, counted from 0.")
    taken = old.choices[choice]
    before = next(
        candidate for segment in found.segments if segment.start >= old.segment[0] - 1e-9
        for candidate in segment.candidates if candidate.path == old.path
    )  # fmt: skip
    others = (before, *(one for one in old.choices if one != taken))
    new = _placed(found.kind, FilmSegment(*old.segment), taken, old.layer, others)
    placements = [*found.placements[:number], new, *found.placements[number + 1 :]]
    return replace(found, placements=tuple(placements))


def _wanted(text: str, model: Any, processor: CavMaeSyncProcessor, hop: float) -> Query:
    """A text as a query, less what follows "not"."""
    wanted, *unwanted = (part.strip(" ,") for part in re.split(r"\bnot\b", text, maxsplit=1))
    found = embed_words((wanted,), model, processor, hop=hop)
    if not unwanted:
        return found
    other = embed_words((unwanted[0],), model, processor, hop=hop)
    assert found.text is not None and other.text is not None  # they are of words
    less = found.text - other.text
    less = less / np.maximum(np.linalg.norm(less, axis=1, keepdims=True), 1e-12)
    return replace(found, text=less, texts=(text,), name=f'"{text}"')


def _read_about(table: StrPath) -> dict[str, dict[str, str]]:
    """Rows of a table by the name of the file."""
    found = {}
    for row in table_rows(os.fspath(table)):
        name = first_of(row, CLIP_NAMES)
        if name is not None:
            found[str(name)] = {key: str(value) for key, value in row.items() if value is not None and value != name}
    if not found:
        raise DataError(
            f"{printable(os.fspath(table))}: names no files; give it a column such as {', '.join(CLIP_NAMES[:3])}."
        )
    return found


def _about(path: str, known: dict[str, dict[str, str]]) -> dict[str, str]:
    name = os.path.basename(path)
    return next((known[key] for key in (path, name, os.path.splitext(name)[0]) if key in known), {})


def change_points(vectors: np.ndarray, change: float, longest: int = _LONGEST_SEGMENT) -> list[int]:
    """Where vectors change: the segmentation with the least squared distance from its means and `change` a segment.

    Optimal partitioning (Jackson et al., "An algorithm for optimal partitioning of data on an interval", 2005).

    Args:
        vectors: Of moments in order, `(moments, hidden)`.
        change: What a segment costs.
        longest: Moments of a segment, at most.

    Returns:
        The first moment of every segment, and the number of moments.
    """
    count = len(vectors)
    sums = np.concatenate([np.zeros((1, vectors.shape[1])), np.cumsum(vectors, axis=0, dtype=np.float64)])
    squares = np.concatenate([[0.0], np.cumsum(np.square(vectors, dtype=np.float64).sum(axis=1))])
    best, back = np.zeros(count + 1), np.zeros(count + 1, np.int64)
    for stop in range(1, count + 1):
        begins = np.arange(max(0, stop - longest), stop)
        means = np.square(sums[stop] - sums[begins]).sum(axis=1) / (stop - begins)
        costs = best[begins] + squares[stop] - squares[begins] - means + change
        place = int(costs.argmin())
        best[stop], back[stop] = costs[place], begins[place]
    edges = [count]
    while edges[-1] > 0:
        edges.append(int(back[edges[-1]]))
    return edges[::-1]


def silence_threshold(segments: Sequence[FilmSegment]) -> float:
    """The fit below which a film's segments are silent, nats.

    Otsu's method ("A threshold selection method from gray-level histograms", 1979) over the logarithms of the best fit
    of each segment: the two kinds whose means are furthest apart. Logarithms, as what sounds fits by anything from 3
    to 20 nats, and what is silent alike. Where they are hardly two kinds, 5 nats.
    """
    fits = np.sort([max(segment.candidates[0].fit, _NO_FIT) for segment in segments if segment.candidates])
    split = _two_kinds(fits)
    while True:
        # What is silent may be two kinds again, of which one sounds, as long as that leaves a quarter of the segments.
        lower = None if split is None else _two_kinds(fits[:split])
        if lower is None or lower < len(fits) / 4 or fits[lower] < _APART * fits[lower - 1]:
            break
        split = lower
    return DEFAULT_MIN_FIT if split is None else float(np.sqrt(fits[split - 1] * fits[split]))


def _two_kinds(fits: np.ndarray) -> int | None:
    """How many of ascending fits are of the lower of two kinds; `None` where they are hardly two."""
    if len(fits) < 3:
        return None
    logs = np.log(fits)
    share = np.arange(1, len(logs)) / len(logs)
    below = np.cumsum(logs)[:-1] / len(logs)
    between = np.square(logs.mean() * share - below) / (share * (1 - share))
    place = int(between.argmax())
    return place + 1 if between[place] > _TWO_KINDS * logs.var() else None


@dataclass
class _Finder:
    """Finds files of the library for segments."""

    store: MomentStore
    kind: Literal["audio", "video"]
    temperature: float
    quiet: np.ndarray
    words: Query | None
    text_weight: float
    files: str | None
    top: int
    film: str

    def find(self, vector: np.ndarray, start: float) -> tuple[Candidate, ...]:
        """Files for a segment by the mean of its moments' vectors, a unit vector."""
        is_seen = np.full(1, self.kind == "audio")
        query = Query(
            name="the film", by="video" if self.kind == "audio" else "audio", audio=vector[None], video=vector[None],
            audio_present=~is_seen, video_present=is_seen, start=start, seconds=self.store.settings.hop,
            path=self.film,
        )  # fmt: skip
        if self.words is not None:
            query = join_words(query, self.words, self.text_weight)
        filters = SearchFilters(files=self.files, per_file=1, exclude_same_file=True)
        hits = search_moments(self.store, query, find=self.kind, top=max(_CANDIDATES, self.top + 1), filters=filters)
        quiet = float(vector @ self.quiet)
        return tuple(self._candidate(hit, quiet) for hit in hits)

    def _candidate(self, hit: Hit, quiet: float) -> Candidate:
        fit = (hit.score - quiet) / self.temperature
        return Candidate(hit.path, (hit.start + hit.end) / 2, hit.clip_end, fit)


class _Journal:
    """Keeps segments in a file as they are found, for the same call to go on."""

    def __init__(self, path: StrPath | None, about: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.segments: list[FilmSegment] = []
        self.vectors: list[np.ndarray] = []
        if self.path is None:
            return
        head = json.dumps(about, sort_keys=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        if lines and lines[0] == head:
            for line in lines[1:]:
                try:
                    row = parse_json(line)
                except ValueError:  # the last line of a run that was killed
                    break
                row["candidates"] = tuple(Candidate(**candidate) for candidate in row["candidates"])
                self.vectors = [*self.vectors, np.asarray(row.pop("vector"), np.float32)][-_REMEMBERED:]
                self.segments.append(FilmSegment(**row | {"alike": tuple(row["alike"])}))
            text = "\n".join(lines[: 1 + len(self.segments)]) + "\n"
        else:
            text = head + "\n"
        write_text(self.path, text)

    def add(self, segment: FilmSegment, vector: np.ndarray) -> None:
        """Keep one more."""
        self.segments.append(segment)
        self.vectors = [*self.vectors, vector][-_REMEMBERED:]
        if self.path is not None:
            with writing(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(segment) | {"vector": [round(float(v), 5) for v in vector]}) + "\n")


def _segments(
    model: CavMaeSyncModel,
    processor: CavMaeSyncProcessor,
    film: StrPath,
    finder: _Finder,
    journal: _Journal,
    *,
    start: float | None,
    end: float | None,
    hop: float,
    change: float,
    batch_size: int,
    damaged: str,
    progress: Progress | None,
) -> Iterator[FilmSegment]:
    """The segments of a film with their recordings, those of an earlier run first."""
    yield from list(journal.segments)
    begin = journal.segments[-1].end if journal.segments else start
    duration = probe_media(film).duration
    last = min(value for value in (math.inf if duration is None else duration, end or math.inf))
    if begin is not None and begin >= last - hop / 2:
        return
    span = MediaSpan(film, source_name(film), start=begin, end=end)
    told = report_seconds(progress, replace(span, start=start))
    vectors, times = np.empty((0, model.config.hidden_size), np.float32), np.empty(0)

    def done(edges: Sequence[int], stop: float) -> Iterator[FilmSegment]:
        for first, after in zip(edges[:-1], edges[1:], strict=True):
            mean = vectors[first:after].mean(axis=0)
            mean = mean / max(float(np.linalg.norm(mean)), 1e-12)
            until = float(times[after]) if after < len(times) else stop
            alike = tuple(round(float(mean @ other), 5) for other in reversed(journal.vectors))
            found = finder.find(mean, float(times[first]))
            # A film begins before the middle of its first moment.
            since = float(times[first]) if journal.segments else begin or 0.0
            segment = FilmSegment(since, until, alike, found)
            journal.add(segment, mean)
            yield segment

    feature = "v" if finder.kind == "audio" else "a"
    groups = embed_moments(
        model, processor, [span], [feature], hop=hop, num_frames=batch_size, batch_size=1, damaged=damaged,
        want_audio=feature == "a",
    )  # fmt: skip
    for _, chunks in groups:
        for chunk in chunks:
            # Of a frame what matters is when it appears, of audio the time around which the window lies.
            here = chunk.video_present if feature == "v" else chunk.audio_present
            since = chunk.times if feature == "v" else chunk.window_times.mean(axis=1) - hop / 2
            vectors = np.concatenate([vectors, chunk.values[feature][here]])
            times = np.concatenate([times, since[here]])
            told(float(since[-1]))
            if len(vectors) >= _AT_A_TIME:
                edges = change_points(vectors, change)
                # The last segment may go on.
                kept = edges[:-1] if len(edges) > 2 else edges
                yield from done(kept, float(times[-1]) + hop)
                vectors, times = vectors[kept[-1] :], times[kept[-1] :]
    if len(vectors):
        stop = last if math.isfinite(last) else float(times[-1]) + hop
        yield from done(change_points(vectors, change), stop)


def choose_sounds(
    segments: Sequence[FilmSegment],
    min_fit: float,
    rng: np.random.Generator | None = None,
    taken: Sequence[set[str]] | None = None,
) -> list[Candidate | None]:
    """The recording of each segment, or `None` for silence, so that the sum of what they are worth is largest.

    A recording is worth its fit, less where it is too short for its segment, more where the last segment that sounds
    has the same one and looks alike; silence is worth `min_fit`. Exact but for one thing: of the choices that end with
    the same recording only the best is followed up.

    Args:
        segments: In order.
        min_fit: Nats.
        rng: Draws what recordings are worth anew, for alternatives.
        taken: Recordings that each segment may not have.
    """
    # By the recording that sounded last: what all is worth, in which segment that was, and the choices.
    states: dict[str | None, tuple[float, int, Any]] = {None: (0.0, -1, None)}
    for number, segment in enumerate(segments):
        left = [c for c in segment.candidates if taken is None or c.path not in taken[number]]
        drawn = np.zeros(len(left)) if rng is None else rng.gumbel(scale=_SPREAD, size=len(left))
        following: dict[str | None, tuple[float, int, Any]] = {
            path: (value + min_fit, at, (before, None)) for path, (value, at, before) in states.items()
        }
        for candidate, extra in zip(left, drawn, strict=True):
            if candidate.fit < min_fit:
                continue
            cover = min(1.0, candidate.seconds / max(segment.seconds, 1e-6))
            worth = candidate.fit - _COVER * (1 - cover) + float(extra)
            options = []
            for path, (value, at, before) in states.items():
                back, agrees = number - 1 - at, 0.0
                if path == candidate.path and back < len(segment.alike):
                    agrees = _AGREEMENT * max(0.0, (segment.alike[back] - _ALIKE) / (1 - _ALIKE))
                options.append((value + worth + agrees, before))
            value, before = max(options, key=lambda option: option[0])
            known = following.get(candidate.path)
            if known is None or value > known[0]:
                following[candidate.path] = (value, number, (before, candidate))
        states = following
    _, _, trail = max(states.values(), key=lambda state: state[0])
    chosen: list[Candidate | None] = []
    while trail is not None:
        trail, candidate = trail
        chosen.append(candidate)
    return chosen[::-1]


def _runs(segments: Sequence[FilmSegment], chosen: Sequence[Candidate | None]) -> Iterator[tuple[int, int]]:
    """First and last but one of the segments through which a recording goes on, as they look the same."""
    first = 0
    for number in range(1, len(chosen) + 1):
        before, here = chosen[number - 1], chosen[number] if number < len(chosen) else None
        goes_on = before is not None and here is not None and before.path == here.path
        if goes_on and segments[number].alike[0] >= _SAME:
            continue
        if before is not None:
            yield first, number
        first = number


def _placed(
    kind: str, segment: FilmSegment, candidate: Candidate, layer: int, choices: tuple[Candidate, ...]
) -> Placement:
    """A file of the library at its place: a recording, or of `"video"` a part of a film."""
    if kind == "video":
        return _picture(segment, candidate, choices)
    return _sound(segment, candidate, layer, choices)


def _sound(segment: FilmSegment, candidate: Candidate, layer: int, choices: tuple[Candidate, ...]) -> Placement:
    """A recording with its first sound at the first frame of its segment, cut where the segment ends."""
    onset = first_sound(candidate.path, 0.0, candidate.seconds)
    if candidate.at > onset + max(_LATE_SECONDS, segment.seconds):
        onset = first_sound(candidate.path, candidate.at - segment.seconds / 2, candidate.at + segment.seconds / 2)
    end = min(candidate.seconds, onset + segment.seconds)
    covered = (end - onset) / max(segment.seconds, 1e-6)
    reason = (
        f"fits {candidate.fit:.1f} nats better than silence, sounds in {100 * min(1.0, covered):.0f} % of "
        f"{segment.seconds:.1f} s"
    )
    fit, span = candidate.fit, (segment.start, segment.end)
    return Placement(segment.start, candidate.path, onset, end, fit, layer, span, reason, choices)


def _picture(segment: FilmSegment, candidate: Candidate, choices: tuple[Candidate, ...]) -> Placement:
    """A part of a video around where it fits best, as long as its segment, or as the video is."""
    probe_media(candidate.path)  # which tells where it is gone
    length = min(segment.seconds, candidate.seconds)
    begin = min(max(0.0, candidate.at - length / 2), candidate.seconds - length)
    reason = f"fits {candidate.fit:.1f} nats better than the mean picture of the library"
    span = (segment.start, segment.end)
    return Placement(segment.start, candidate.path, begin, begin + length, candidate.fit, 0, span, reason, choices)


def _mean_vector(store: MomentStore, kind: str) -> np.ndarray:
    """The mean of the library's clips, a unit vector."""
    _, vectors = store.clip_vectors(kind)
    mean = vectors.mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)


def _silence(model: CavMaeSyncModel, processor: CavMaeSyncProcessor) -> np.ndarray:
    """The model's vector of a silent room: recordings hold noise where nothing sounds, and never digital silence."""
    rate = processor.feature_extractor.sampling_rate
    seconds = 2 * window_seconds(processor.feature_extractor.audio_length)
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(round(seconds * rate)))
    pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)))
    noise = pink * 10 ** (_ROOM_DB / 20) / np.sqrt(np.square(pink).mean())
    return _audio_vectors(model, processor, noise.astype(np.float32), seconds)[1][0]


def _audio_vectors(
    model: CavMaeSyncModel, processor: CavMaeSyncProcessor, samples: np.ndarray, hop: float
) -> tuple[np.ndarray, np.ndarray]:
    """Times of the moments of samples in memory, and their vectors."""
    wave = as_wave({"array": samples, "sampling_rate": processor.feature_extractor.sampling_rate}, "the recording")
    ((_, chunks),) = ((span, list(parts)) for span, parts in embed_moments(
        model, processor, [MediaSpan(wave, "the recording")], ["a"], hop=hop, batch_size=1
    ))  # fmt: skip
    times = np.concatenate([chunk.window_times.mean(axis=1) for chunk in chunks])
    return times, np.concatenate([chunk.values["a"] for chunk in chunks])


def _moved(
    model: CavMaeSyncModel,
    processor: CavMaeSyncProcessor,
    film: StrPath,
    sound: Placement,
    hop: float,
    quiet: np.ndarray,
) -> Placement:
    """A sound where the offset estimate puts it, where at least half of the draws agree."""
    rate = processor.feature_extractor.sampling_rate
    around = _MOST_OFFSET + window_seconds(processor.feature_extractor.audio_length) / 2
    begin, stop = max(0.0, sound.time - around), sound.time + min(sound.seconds, 4.0) + around
    frames = [
        (chunk.times[chunk.video_present], chunk.values["v"][chunk.video_present])
        for _, chunks in embed_moments(
            model, processor, [MediaSpan(film, start=begin, end=stop)], ["v"], hop=hop, batch_size=1, want_audio=False
        )
        for chunk in chunks
    ]
    times, video = (np.concatenate(values) for values in zip(*frames, strict=True))
    own = read_samples(sound.path, sound.start, sound.start + min(sound.seconds, 4.0), rate, "mono")[0]
    pad = np.zeros(round(around * rate), np.float32)
    at, audio = _audio_vectors(model, processor, np.concatenate([pad, own, pad]), hop)
    nearest = np.abs(at[None] - (times - sound.time + around)[:, None]).argmin(axis=1)
    inside = (times - sound.time + around >= at[0] - hop) & (times - sound.time + around <= at[-1] + hop)
    windows = np.where(inside[:, None], audio[nearest], quiet).astype(np.float32)
    band = Band(round(_MOST_OFFSET / hop))
    band.add(windows, video)
    found = find_offset(band_contrast(band.finish(), model.config.temperature), hop, block=max(1, round(0.3 / hop)))
    if found.offset is None or found.confidence < 0.5 or found.at_edge:
        return sound
    time = max(0.0, sound.time - found.offset)
    return replace(sound, time=time, reason=f"{sound.reason}, moved by {time - sound.time:+z.2f} s")


__all__ = ["change_points", "choose_sounds", "exchange", "score_film", "silence_threshold"]
