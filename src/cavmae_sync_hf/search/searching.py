# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which moments of an index are most like this one: found by vectors, laid along the diagonal, filtered and ranked.

In an index without an approximate index every moment is compared, which is exact. With one, each window of the query
first finds its nearest moments; each of these says where in its clip the query may lie; there all moments are fetched
and compared along the diagonal, so that scores are exact and only what was never found can be missed.
"""

import fnmatch
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from transformers import PreTrainedModel

from ..data.clock import format_clock
from ..files import StrPath
from ..inference.loading import has_text, load_model
from ..inference.loudness import SILENCE_DB
from ..model.errors_cavmae_sync import Hint, QueryError, SearchError
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .alignment import Alignments, align, align_sequence, best_apart
from .approximate import REFINE, partitions_to_search
from .comparing import Comparison, clip_similarity, similarity
from .querying import (
    THEN_WITHIN,
    Query,
    Side,
    choose_side,
    embed_query,
    embed_words,
    has_several_tracks,
    join_words,
    split_text,
)
from .settings import IndexSettings
from .store import MomentStore, open_index
from .tables import ClipEntry, content_of, file_key

# Windows of a long query that look for candidates; all of them are compared.
_MAX_PROBES = 16
# Moments that each of them finds first; more, where hits of one file crowd out the others.
_PER_PROBE = 100
_MOST_PER_PROBE = 1600
# As many times more where words are compared in a space of their own, of which the index knows no distances.
_PROJECTED = 4
# Many candidates need no such care as few: those on the brink are no hits.
_LEAST_REFINE = 2
# Places in clips that are compared along the diagonal, at most.
_MAX_CANDIDATES = 512
# Moments beside a candidate that are tried as well.
_SLACK = 1
_SECONDS_TOLERANCE = 1e-6


@dataclass(frozen=True)
class SearchFilters:
    """Which moments may be found.

    Attributes:
        exclude_same_file: Leave out the file that the query is from, and its copies.
        within: Start and end in seconds: moments outside this span of their files are left out; `None` in either
            place for no limit.
        files: Pattern, such as `*/interviews/*.mp4`, of the paths that are searched; default: all.
        min_loudness: Quieter moments are left out, dB of full scale. Default: those that are silent, where stored
            audio is compared; `-inf` leaves none out.
        min_overlap: Share of the query's windows that must meet a moment: less at the border of a clip is no hit.
        min_gap: Hits of one file lie at least so far apart, seconds. Default: the longer of the hits and the audio
            window of a moment, so that no audio is in two hits.
        per_file: Hits of one file, at most; default: any number.
    """

    exclude_same_file: bool = False
    within: tuple[float | None, float | None] = (None, None)
    files: str | None = None
    min_loudness: float | None = None
    min_overlap: float = 0.75
    min_gap: float | None = None
    per_file: int | None = None

    def __post_init__(self) -> None:
        first, last = self.within
        for value in self.within:
            if value is not None and not value >= 0:
                raise QueryError(f"within is {self.within!r}; it holds seconds of at least 0.")
        if first is not None and last is not None and last <= first:
            raise QueryError(f"within is {self.within!r}; its end must come after its start.")
        if not 0 < self.min_overlap <= 1:
            raise QueryError(f"min_overlap is {self.min_overlap!r}; it must be above 0 and at most 1.")
        if self.min_gap is not None and not self.min_gap >= 0:
            raise QueryError(f"min_gap is {self.min_gap!r}; it must be a number of seconds of at least 0.")
        if self.min_loudness is not None and math.isnan(self.min_loudness):
            raise QueryError("min_loudness is NaN; it must be a number of dB.")
        if self.per_file is not None and (isinstance(self.per_file, bool) or not self.per_file >= 1):
            raise QueryError(f"per_file is {self.per_file!r}; it must be at least 1.")


@dataclass(frozen=True)
class Hit:
    """A moment that was found.

    Attributes:
        path: Its file.
        start: Where it starts in the file, seconds.
        end: Where it ends.
        score: Mean cosine of the query's windows and the moments they meet; those that meet none count as 0. Words
            count as `search` says.
        windows: How many meet one.
        clip_start: Where the clip that it belongs to starts in the file.
        clip_end: Where that ends.
        loudness: Of the loudest moment in it, dB of full scale; `None` where whole clips are compared.
        thumbnail: JPEG of its middle, where the index has thumbnails.
    """

    path: str
    start: float
    end: float
    score: float
    windows: int
    clip_start: float
    clip_end: float
    loudness: float | None = None
    thumbnail: bytes | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON; without the thumbnail."""
        return {name: value for name, value in vars(self).items() if name != "thumbnail"}


@dataclass(frozen=True)
class SearchResult(Sequence[Hit]):
    """The moments found, best first, and how.

    Attributes:
        hits: The moments.
        by: What of the query was compared: `"audio"`, `"video"` or `"both"`; `"text"`: words alone.
        find: With what of the index.
        pairs: Both together, such as `["audio -> video"]`.
        exact: Whether all moments were compared.
        query: Name of the query.
        query_start: Where the query starts in its source, seconds.
        query_seconds: How long it is.
        query_windows: How many windows it has, or of words alone how many parts that follow each other.
        texts: The words searched for, part by part; empty without words.
    """

    hits: tuple[Hit, ...]
    by: str
    find: str
    pairs: tuple[str, ...]
    exact: bool
    query: str
    query_start: float
    query_seconds: float
    query_windows: int
    texts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, place: Any) -> Any:
        return self.hits[place]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        lists = {"pairs": list(self.pairs), "texts": list(self.texts), "hits": [hit.to_dict() for hit in self.hits]}
        return dict(vars(self)) | lists

    @property
    def title(self) -> str:
        """The query and, where it is a file, the span of it."""
        span = f"{format_clock(self.query_start)} to {format_clock(self.query_start + self.query_seconds)}"
        return self.query if self.by == "text" else f"{self.query}, {span}"


def search(
    index: StrPath | MomentStore,
    query: Any = None,
    model: PreTrainedModel | StrPath | None = None,
    processor: CavMaeSyncProcessor | None = None,
    *,
    text: str | Sequence[str] | None = None,
    by: Side = "auto",
    find: Side = "auto",
    start: float | None = None,
    end: float | None = None,
    text_weight: float = 0.5,
    then_within: float = THEN_WITHIN,
    top: int = 10,
    whole_clips: bool = False,
    exact: bool | None = None,
    filters: SearchFilters | None = None,
    channel: Literal["first", "mean"] | None = None,
    audio_track: int | str | None = None,
) -> SearchResult:
    """Find the moments of an index that are most like audio, an image, a moment of a video, or what words say.

    Args:
        index: Where the index is, or the open index.
        query: An audio file, a video, an image or samples, as `embed_query` takes them.
        model: The model that the index was made with; for words one with text that has this model inside. A model, or
            the name of one. Default: the one that the index remembers.
        processor: Its processor, where the model is not a name.
        text: Words to search for, such as `"a dog barks"`; with a query, beside it. `"A, then B"` (or "and then",
            "followed by") finds where one follows the other; a list of texts is such a sequence, too.
        by: What of the query counts: `"audio"`, `"video"`, `"both"`, or `"auto"` for all there is.
        find: What of the index it is compared with. `"auto"`: the other one, as the model was trained to: video for
            audio, audio for video; and for both the same of each. Words are compared with both: the mean counts,
            weighted as the model learned of these words; where one is absent the other counts alone.
        start: Where in the query's file the moment starts, seconds.
        end: Where it ends.
        text_weight: Share of the words in the score, where there is a query beside them, 0 to 1.
        then_within: Each part of a sequence of texts follows the one before it within so many seconds.
        top: Hits at most.
        whole_clips: Compare whole clips, each by one vector, instead of moments.
        exact: Whether all moments are compared; default: unless there is an approximate index. For sequences of texts
            all always are.
        filters: Which moments may be found.
        channel: `"first"` or `"mean"` of the query's channels; default: as the index was made.
        audio_track: Which audio track of the query's file, by number or language. Default: of a file with several the
            one that the index was made of.

    Raises:
        MediaError: The query cannot be read.
        ModelError: The model cannot be loaded.
        QueryError: The query lacks what `by` asks for, is silent or too long, there is none, or an argument cannot
            work; or the model has no text encoder.
        SearchError: There is no index, it was made with another model, or cannot be read.
    """
    filters = filters or SearchFilters()
    by, find = choose_side(by, "by"), choose_side(find, "find")
    _check_top(top)
    texts = () if text is None else split_text(text)
    if query is None:
        if not texts:
            raise QueryError("There is nothing to search for; pass a file, or text='a dog barks'.")
        given = {"by": None if by == "auto" else by, "start": start, "end": end}
        idle = [name for name, value in given.items() if value is not None]
        if idle:
            raise QueryError("Words alone have no start, no end and no modality.", hint=Hint(idle[0], None))
    store = open_index(index)
    if model is None or isinstance(model, str | os.PathLike):
        model, processor = load_index_model(store, model, words=bool(texts))
    if processor is None:
        raise QueryError("There is a model and no processor; pass both, or the name of the model.")
    base = cast(CavMaeSyncModel, model.base_model)
    processor = processor.with_audio_choice(store.settings.channel)
    store.settings.check(IndexSettings.of(base, processor, store.settings.hop), store.uri, adding=False)
    hop = store.settings.hop
    words = embed_words(texts, model, processor, hop=hop, then_within=then_within) if texts else None
    if query is None:
        assert words is not None
        embedded = words
    else:
        chosen = processor.audio_track if audio_track is None else audio_track
        if chosen is None and store.settings.audio_track is not None and has_several_tracks(query):
            chosen = store.settings.audio_track
        processor = processor.with_audio_choice(channel, chosen)
        embedded = embed_query(
            query, base, processor, hop=hop, by=by, start=start, end=end,
            # A quiet query may ask for louder moments.
            min_loudness=SILENCE_DB if filters.min_loudness is None else min(SILENCE_DB, filters.min_loudness),
        )  # fmt: skip
        if words is not None:
            embedded = join_words(embedded, words, text_weight)
    if whole_clips:
        return search_clips(store, embedded, find=find, top=top, filters=filters)
    return search_moments(store, embedded, find=find, top=top, exact=exact, filters=filters)


def load_index_model(
    store: MomentStore, name: StrPath | None = None, *, words: bool = False, device: str = "cpu"
) -> tuple[PreTrainedModel, CavMaeSyncProcessor]:
    """The model to search an index with, and its processor.

    Args:
        store: The index.
        name: Of the model; default: the one that the index remembers.
        words: Whether words are searched for, which takes a model with text.
        device: Where it goes.

    Raises:
        ModelError: It cannot be loaded.
        SearchError: The index remembers none, or one without text.
    """
    known = os.fspath(name or store.settings.model)
    if not known:
        raise SearchError(f"{store.uri}: does not say where its model lies.", hint=Hint("model", "MODEL", "name it"))
    if words and name is None and not has_text(known):
        raise SearchError(
            f"{store.uri}: was made with {known}, which has no text encoder, so it cannot be asked in words.",
            hint=Hint("model", "MODEL", "name a model with text that has this one inside (`cavmae-sync text` trains "
                      "one on it)"),
        )  # fmt: skip
    return load_model(known, use="text" if words else "embedding", device=device, modalities="both")


def search_moments(
    store: MomentStore,
    query: Query,
    *,
    find: Side = "auto",
    top: int = 10,
    exact: bool | None = None,
    filters: SearchFilters | None = None,
) -> SearchResult:
    """Find moments with a query that is embedded already; arguments as for `search`."""
    filters = filters or SearchFilters()
    comparison = Comparison.of(query, choose_side(find, "find"))
    _check_top(top)
    _check_width(store, query)
    view = _View.of(store, query, comparison, filters)
    approximate = set(comparison.stored) <= set(store.indexed_columns())
    if query.then_within is not None:
        if exact is False:
            raise QueryError(f"{query.name}: parts that follow each other are looked for in all moments.",
                             hint=Hint("exact", None))  # fmt: skip
        exact = True
    if exact is None:
        exact = not approximate
    elif not exact and not approximate:
        raise SearchError(f"{store.uri}: has no approximate index; search exactly.")
    if not view.entries:
        return _result(query, comparison, exact, [])
    if exact:
        found = _compare_all(view, query, comparison)
        picked = _pick(view, query, found, top)
    else:
        found, picked = _search_candidates(view, query, comparison, top)
    return _result(query, comparison, exact, _hits(view, query, found, picked))


def search_clips(
    store: MomentStore,
    query: Query,
    *,
    find: Side = "auto",
    top: int = 10,
    filters: SearchFilters | None = None,
) -> SearchResult:
    """Find whole clips, each by the mean of its moments' vectors; arguments as for `search`.

    Of the filters, those count that concern files.
    """
    filters = filters or SearchFilters()
    comparison = Comparison.of(query, choose_side(find, "find"))
    _check_top(top)
    _check_width(store, query)
    view = _View.of(store, query, comparison, filters)
    if len(query.texts) > 1:
        raise QueryError(f"{query.name}: a whole clip's vector does not know what comes first; search for moments.")
    scores = clip_similarity(query, comparison, store.clip_vectors)
    entries = {entry.key: entry for entry in view.entries}
    ranked = sorted((key for key in scores if key in entries), key=lambda key: (-scores[key], entries[key].path))
    hits, count = [], dict.fromkeys((entry.path for entry in view.entries), 0)
    for key in ranked:
        entry = entries[key]
        count[entry.path] += 1
        if filters.per_file is None or count[entry.path] <= filters.per_file:
            hits.append(
                Hit(
                    path=entry.path, start=entry.start, end=entry.end, score=scores[key], windows=entry.moments,
                    clip_start=entry.start, clip_end=entry.end,
                )
            )  # fmt: skip
    return _result(query, comparison, True, hits[:top])


@dataclass(frozen=True)
class _View:
    """What of an index is searched.

    Attributes:
        store: The index.
        entries: Its clips; a clip is told by its place among them.
        numbers: That place, by the name of its rows.
        files: Number of each clip's file: hits of one file keep apart.
        where: Condition for LanceDB that rows must fulfil.
        filters: As asked for.
    """

    store: MomentStore
    entries: list[ClipEntry]
    numbers: dict[str, int]
    files: np.ndarray
    where: str | None
    filters: SearchFilters

    @classmethod
    def of(cls, store: MomentStore, query: Query, comparison: Comparison, filters: SearchFilters) -> "_View":
        """What the filters leave."""
        everything = sorted((entry for entry in store.entries().values() if entry.rows), key=lambda entry: entry.key)
        own = _of_same_file(query, everything) if filters.exclude_same_file else frozenset()
        entries = [
            entry
            for entry in everything
            if entry.key not in own and (filters.files is None or fnmatch.fnmatchcase(entry.path, filters.files))
        ]
        kept = {entry.rows: number for number, entry in enumerate(entries)}
        loudness = filters.min_loudness
        if loudness is None:
            loudness = SILENCE_DB if comparison.needs_sound else -math.inf
        conditions = []
        if loudness > -math.inf:
            conditions.append(f"loudness >= {float(loudness)!r}")
        first, last = filters.within
        if first is not None:
            conditions.append(f"`start` >= {first - _SECONDS_TOLERANCE!r}")
        if last is not None:
            conditions.append(f"`end` <= {last + _SECONDS_TOLERANCE!r}")
        conditions += store.only_rows(kept, [entry.rows for entry in everything if entry.rows not in kept])
        paths = {path: number for number, path in enumerate(sorted({entry.path for entry in entries}))}
        files = np.array([paths[entry.path] for entry in entries], np.int64)
        return cls(
            store=store, entries=entries, numbers=kept, files=files, where=" AND ".join(conditions) or None,
            filters=filters,
        )  # fmt: skip

    def numbers_of(self, names: Any) -> np.ndarray:
        """Number of the clip that each of some rows belongs to, -1 for those that are not searched."""
        coded = (names.combine_chunks() if hasattr(names, "combine_chunks") else names).dictionary_encode()
        numbers = np.array([self.numbers.get(name, -1) for name in coded.dictionary.to_pylist()], np.int64)
        return numbers[coded.indices.to_numpy()] if len(numbers) else np.zeros(0, np.int64)


def _of_same_file(query: Query, everything: list[ClipEntry]) -> frozenset[str]:
    """Keys of the clips of the query's file and of files with the same content."""
    content = query.content
    if query.path is not None:
        content = content_of(query.path)
    own = {entry.key for entry in everything if query.path is not None and entry.key.startswith(file_key(query.path))}
    return frozenset(own | {entry.key for entry in everything if content and entry.content == content})


def _check_top(top: int) -> None:
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise QueryError(f"top is {top!r}; it must be a whole number of at least 1.")


def _check_width(store: MomentStore, query: Query) -> None:
    if query.audio.shape[1] != store.settings.hidden_size:
        raise SearchError(
            f"{query.name}: its vectors have {query.audio.shape[1]} values, those of {store.uri} "
            f"{store.settings.hidden_size}; embed it with the model of the index."
        )


def _min_pairs(view: _View, query: Query) -> int:
    return max(1, math.ceil(view.filters.min_overlap * int(query.present.sum()) - 1e-9))


def _compare_all(view: _View, query: Query, comparison: Comparison) -> Alignments:
    """Compare every moment."""
    alike, clips, windows = [], [], []
    for batch in view.store.scan(["rows", "window", *comparison.stored], view.where):
        numbers = view.numbers_of(batch["rows"])
        kept = numbers >= 0
        alike.append(similarity(query, comparison, batch)[:, kept])
        clips.append(numbers[kept])
        windows.append(batch["window"].to_numpy()[kept])
    if not clips:
        return Alignments.none()
    places = np.concatenate(alike, axis=1), np.concatenate(clips), np.concatenate(windows)
    if query.then_within is not None:
        hops = math.floor(query.then_within / view.store.settings.hop + 1e-9)
        return align_sequence(*places, most=max(1, hops))
    return align(*places, present=query.present, min_pairs=_min_pairs(view, query))


def _search_candidates(view: _View, query: Query, comparison: Comparison, top: int) -> tuple[Alignments, list[int]]:
    """Look for more candidates until there are hits enough, or no more to be had."""
    per_probe = _PER_PROBE * (_PROJECTED if query.projections else 1)
    while True:
        found = _compare_candidates(view, query, comparison, per_probe)
        picked = _pick(view, query, found, top)
        if len(picked) >= top or per_probe >= _MOST_PER_PROBE:
            return found, picked
        per_probe *= 4


def _compare_candidates(view: _View, query: Query, comparison: Comparison, per_probe: int) -> Alignments:
    """Compare the places that the approximate index points at."""
    places = np.flatnonzero(query.present)
    probes = places[np.unique(np.linspace(0, len(places) - 1, min(len(places), _MAX_PROBES)).round().astype(int))]
    clips, firsts, votes = [], [], []
    effort = {
        "partitions": partitions_to_search(view.store.count()),
        "refine": max(_LEAST_REFINE, REFINE * _PER_PROBE // per_probe),
    }
    for asked, stored in comparison.all_pairs:
        names, windows, which, cosines = view.store.nearest(
            stored, query.probes(asked, stored, probes), per_probe, view.where, **effort
        )
        clips.append(view.numbers_of(names))
        firsts.append(windows - probes[which])
        votes.append(cosines)
    candidates = _strongest(np.concatenate(clips), np.concatenate(firsts), np.concatenate(votes))
    if not len(candidates):
        return Alignments.none()
    slack = _SLACK if len(query) > 1 else 0
    wanted = np.unique(np.concatenate([candidates + [0, shift] for shift in range(-slack, slack + 1)]), axis=0)
    rows = _rows_under(view, wanted, len(query), ["rows", "window", *comparison.stored], where=view.where)
    found = align(
        similarity(query, comparison, rows), view.numbers_of(rows["rows"]), rows["window"].to_numpy(),
        present=query.present, min_pairs=_min_pairs(view, query),
    )  # fmt: skip
    # Others hang over the borders of what was fetched.
    kept = np.isin(_code(found.clips, found.firsts), _code(wanted[:, 0], wanted[:, 1]))
    return Alignments(*(values[kept] for values in found))


def _strongest(clips: np.ndarray, firsts: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """The places `(clip, first moment)` that most, and most alike, moments speak for."""
    known = clips >= 0
    places, which = np.unique(np.stack((clips[known], firsts[known]), axis=1), axis=0, return_inverse=True)
    weights = np.bincount(which.ravel(), votes[known], len(places))
    return places[np.sort(np.argsort(-weights, kind="stable")[:_MAX_CANDIDATES])]


def _rows_under(view: _View, places: np.ndarray, length: int, columns: list[str], *, where: str | None = None) -> Any:
    """All rows that fulfil a condition and that a query of some length meets at some places."""
    store = view.store
    names = [view.entries[number].rows for number in np.unique(places[:, 0])]
    ids, found, windows = store.locate(names, where)
    numbers = view.numbers_of(found)
    begins = np.sort(_code(places[:, 0], places[:, 1]))
    codes = _code(numbers, windows)
    # Under a place lie the rows from its first moment on; the last place that begins at or before a row tells.
    last = np.searchsorted(begins, codes, side="right") - 1
    under = (last >= 0) & (codes - begins[np.maximum(last, 0)] < length)
    return store.take(ids[under], columns)


def _code(clips: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Clip and moment as one number; no clip has so many moments, and no query begins so far before one."""
    return clips.astype(np.int64) * (1 << 32) + windows.astype(np.int64) + (1 << 20)


def _pick(view: _View, query: Query, found: Alignments, top: int) -> list[int]:
    """Places among the alignments of the hits, best first."""
    hop, filters = view.store.settings.hop, view.filters
    starts = np.array([entry.start for entry in view.entries])
    least = filters.min_gap
    return best_apart(
        found.scores, view.files[found.clips], starts[found.clips] + (found.firsts + found.lengths / 2) * hop,
        top=top, min_gap=view.store.settings.window_seconds if least is None else least, per_group=filters.per_file,
        lengths=found.lengths * hop if least is None else None,
    )  # fmt: skip


def _hits(view: _View, query: Query, found: Alignments, picked: list[int]) -> list[Hit]:
    """The alignments picked as hits, with what the index knows of them."""
    if not picked:
        return []
    hop = view.store.settings.hop
    places = np.stack((found.clips[picked], found.firsts[picked]), axis=1)
    rows = _rows_under(view, places, int(found.lengths[picked].max()), ["rows", "window", "loudness", "thumbnail"])
    numbers, windows = view.numbers_of(rows["rows"]), rows["window"].to_numpy()
    loudness = rows["loudness"].to_numpy()
    thumbnails = rows["thumbnail"]
    earliest, latest = view.filters.within
    hits = []
    for (clip, first), place in zip(places.tolist(), picked, strict=True):
        entry, length = view.entries[clip], int(found.lengths[place])
        under = np.flatnonzero((numbers == clip) & (windows >= first) & (windows < first + length))
        middle = under[np.argmin(np.abs(windows[under] - (first + (length - 1) / 2)))]
        hits.append(
            Hit(
                path=entry.path,
                start=max(entry.start, entry.start + first * hop, earliest or 0.0),
                end=min(entry.end, entry.start + (first + length) * hop, math.inf if latest is None else latest),
                score=float(found.scores[place]),
                windows=int(found.counts[place]),
                clip_start=entry.start,
                clip_end=entry.end,
                loudness=float(loudness[under].max()),
                thumbnail=thumbnails[int(middle)].as_py(),
            )
        )
    return hits


def _result(query: Query, comparison: Comparison, exact: bool, hits: list[Hit]) -> SearchResult:
    return SearchResult(
        hits=tuple(hits),
        by=query.by,
        find=comparison.find,
        pairs=comparison.names,
        exact=exact,
        query=query.name,
        query_start=query.start,
        query_seconds=query.seconds,
        query_windows=len(query),
        texts=query.texts,
    )
