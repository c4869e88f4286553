# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which moments of an index are most like this one: found by vectors, laid along the diagonal, filtered and ranked.

In an index without an approximate index every moment is compared, which is exact. With one, each window of the query
first finds its nearest moments; each of these says where in its clip the query may lie; there all moments are fetched
and compared along the diagonal, so that scores are exact and only what was never found can be missed.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from transformers import PreTrainedModel

from ..data.clock import format_clock
from ..files import StrPath
from ..inference.loading import has_text
from ..inference.loudness import SILENCE_DB
from ..loading import load_model
from ..model.errors_cavmae_sync import Hint, QueryError, SearchError
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .approximate import COMPARED_ALL, COMPARED_ALL_BYTES, COMPARED_ALL_OF, COMPARED_ALL_WINDOWS
from .candidates import Found, compare_all, compare_candidates, min_pairs
from .comparing import Comparison, clip_similarity
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
from .runs import code
from .settings import IndexSettings
from .store import MomentStore, open_index
from .view import SearchFilters, View


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
    store: MomentStore, name: StrPath | None = None, *, words: bool = False, device: str = "cpu", **run: Any
) -> tuple[PreTrainedModel, CavMaeSyncProcessor]:
    """The model to search an index with, and its processor.

    Args:
        store: The index.
        name: Of the model; default: the one that the index remembers.
        words: Whether words are searched for, which takes a model with text.
        device: Where it goes.
        run: `backend`, `precision` and `progress` of `load_model`; the index may have been made with others.

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
    return load_model(known, use="text" if words else "embedding", device=device, modalities="both", **run)


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
    view = View.of(store, query, comparison, filters)
    if query.then_within is None:
        view = view.with_room_for(min_pairs(query, filters))
    approximate = set(comparison.stored) <= set(view.clips.partitions)
    if query.then_within is not None:
        if exact is False:
            raise QueryError(f"{query.name}: parts that follow each other are looked for in all moments.",
                             hint=Hint("exact", None))  # fmt: skip
        exact = True
    if exact is None:
        total = int(view.clips.moments.sum())
        few = max(COMPARED_ALL, math.sqrt(COMPARED_ALL_OF * total * min(len(query), COMPARED_ALL_WINDOWS)))
        if filters.within == (None, None):  # whole clips, the rows of which lie side by side
            few = max(few, COMPARED_ALL_BYTES // (2 * store.settings.hidden_size * len(comparison.stored)))
        left = total * view.place_share()
        exact = not approximate or ((filters.files is not None or filters.within != (None, None)) and left <= few)
    elif not exact and not approximate:
        raise SearchError(f"{store.uri}: has no approximate index; search exactly.")
    if not view.searched.any():
        return _result(query, comparison, exact, [])
    found = (compare_all if exact else compare_candidates)(view, query, comparison, top)
    return _result(query, comparison, exact, _hits(view, found))


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
    view = View.of(store, query, comparison, filters)
    if len(query.texts) > 1:
        raise QueryError(f"{query.name}: a whole clip's vector does not know what comes first; search for moments.")
    scores = clip_similarity(query, comparison, store.clip_vectors)
    entries = {entry.key: entry for entry, kept in zip(view.clips.entries, view.searched, strict=True) if kept}
    ranked = sorted((key for key in scores if key in entries), key=lambda key: (-scores[key], entries[key].path))
    hits, count = [], dict.fromkeys((entry.path for entry in entries.values()), 0)
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


def _check_top(top: int) -> None:
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise QueryError(f"top is {top!r}; it must be a whole number of at least 1.")


def _check_width(store: MomentStore, query: Query) -> None:
    if query.audio.shape[1] != store.settings.hidden_size:
        raise SearchError(
            f"{query.name}: its vectors have {query.audio.shape[1]} values, those of {store.uri} "
            f"{store.settings.hidden_size}; embed it with the model of the index."
        )


def _hits(view: View, found: Found) -> list[Hit]:
    """The alignments picked as hits, with what the index knows of them."""
    if not found.picked:
        return []
    clips, firsts, lengths = (getattr(found.alignments, name)[found.picked] for name in ("clips", "firsts", "lengths"))
    rows = found.rows
    if rows is None:
        met = np.unique(code(clips, firsts)[:, None] + np.arange(lengths.max()))
        rows = view.store.take(view.runs.rows(met), ["loudness"])
    loudness, ids = rows["loudness"].to_numpy(), rows["_rowid"].to_numpy().astype(np.int64)
    numbers, windows = view.runs.moments(ids)
    under = [
        np.flatnonzero((numbers == clip) & (windows >= first) & (windows < first + length))
        for clip, first, length in zip(clips, firsts, lengths, strict=True)
    ]
    middles = [
        ids[places[np.argmin(np.abs(windows[places] - (first + (length - 1) / 2)))]]
        for places, first, length in zip(under, firsts, lengths, strict=True)
    ]
    thumbnails: dict[int, bytes | None] = {}
    if view.store.has_thumbnails:
        images = view.store.take(np.unique(middles), ["thumbnail"])
        thumbnails = dict(zip(images["_rowid"].to_pylist(), images["thumbnail"].to_pylist(), strict=True))
    hop = view.store.settings.hop
    earliest, latest = view.filters.within
    hits = []
    for number, place in enumerate(found.picked):
        entry, first, length = view.clips.entries[clips[number]], int(firsts[number]), int(lengths[number])
        hits.append(
            Hit(
                path=entry.path,
                start=max(entry.start, entry.start + first * hop, earliest or 0.0),
                end=min(entry.end, entry.start + (first + length) * hop, math.inf if latest is None else latest),
                score=float(found.alignments.scores[place]),
                windows=int(found.alignments.counts[place]),
                clip_start=entry.start,
                clip_end=entry.end,
                loudness=float(loudness[under[number]].max()),
                thumbnail=thumbnails.get(middles[number]),
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
