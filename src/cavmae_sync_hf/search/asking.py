# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Questions about a film of any length: which moments the language model is to see, and what it says then."""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict, Unpack, overload

from ..files import StrPath
from ..inference.ask import (
    Answer,
    answer,
    check_most,
    find_moments,
    room_for_moments,
    watch,
    with_neighbours,
)
from ..inference.moments import Progress, source_name
from ..loading import load_model
from ..model.errors_cavmae_sync import Hint, InferenceError, QueryError
from ..model.modeling_lm_cavmae_sync import CavMaeSyncForConditionalGeneration
from ..model.processing_lm_cavmae_sync import CavMaeSyncLMProcessor
from .searching import search
from .store import MomentStore, open_index
from .tables import file_key
from .view import SearchFilters


class AskOptions(TypedDict, total=False):
    """What `ask` takes beside the film, the question and the model; see there."""

    num_frames: int | None
    fps: float | None
    start: float | None
    end: float | None
    max_new_tokens: int
    search_model: Any
    index: StrPath | MomentStore | None
    search_text: str | None
    most_moments: int | None
    damaged: str
    stream: Callable[[str], None] | None
    progress: Progress | None


@overload
def ask(
    source: Any,
    question: str,
    model: CavMaeSyncForConditionalGeneration | StrPath,
    processor: CavMaeSyncLMProcessor | None = None,
    **options: Unpack[AskOptions],
) -> Answer: ...


@overload
def ask(
    source: Any,
    question: Sequence[str],
    model: CavMaeSyncForConditionalGeneration | StrPath,
    processor: CavMaeSyncLMProcessor | None = None,
    **options: Unpack[AskOptions],
) -> list[Answer]: ...


def ask(
    source: Any,
    question: str | Sequence[str],
    model: CavMaeSyncForConditionalGeneration | StrPath,
    processor: CavMaeSyncLMProcessor | None = None,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    max_new_tokens: int = 128,
    search_model: Any = None,
    index: StrPath | MomentStore | None = None,
    search_text: str | None = None,
    most_moments: int | None = None,
    damaged: str = "error",
    stream: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Answer | list[Answer]:
    """Ask about a video or an audio file; the model answers in words, and says which moments it means.

    The model sees moments of the film, as many as its context has room for: evenly chosen ones, or, with
    `search_model` or `index`, those that the question's words tell of, each with the one before and the one after it.
    A film of any length is looked through in memory that does not grow with it.

    ```python
    model, processor = load_model("my-lm", use="answer")
    found = ask("film.mp4", "When does the bell ring?", model, processor)
    found.text, found.moments
    ```

    Args:
        source: Video or audio: path, address, bytes or file object.
        question: A question, or several about the same film, which is then read once.
        model: A `CavMaeSyncForConditionalGeneration` in evaluation mode, or the name of one.
        processor: Its processor, where the model is not a name.
        num_frames: How many moments, evenly chosen; default: as many as in training.
        fps: Moments per second instead.
        start: Where in the film to start, seconds. Times in the text of an answer count from there, as in training;
            all others are of the film.
        end: Where to end.
        max_new_tokens: Longest answer.
        search_model: A model with text that looks for the moments: its name, or it and its processor as
            `load_model(name, use="text")` gives them.
        index: An index that holds the film (`cavmae-sync index`), which is asked in place of the film. Without
            `search_model` the model of the index needs text.
        search_text: What is looked for; default: the question, or all of them.
        most_moments: Moments found, at most; default: `num_frames` of training.
        damaged: `"error"`, or `"keep"` to use what can be decoded of damaged files.
        stream: Called with pieces of each answer as they come.
        progress: Called with how much of what is done, how much there is, and what it is.

    Returns:
        An `Answer`; of several questions a list of them.

    Raises:
        InferenceError: An argument cannot work, the question is empty or too long, or there is no chat template.
        MediaError: The file cannot be used.
        ModelError: A model cannot be loaded.
        QueryError: The index does not hold the film.
    """
    found = list(
        iter_ask(
            source, question, model, processor, num_frames=num_frames, fps=fps, start=start, end=end,
            max_new_tokens=max_new_tokens, search_model=search_model, index=index, search_text=search_text,
            most_moments=most_moments, damaged=damaged, stream=stream, progress=progress,
        )
    )  # fmt: skip
    return found[0] if isinstance(question, str) else found


def iter_ask(
    source: Any,
    question: str | Sequence[str],
    model: CavMaeSyncForConditionalGeneration | StrPath,
    processor: CavMaeSyncLMProcessor | None = None,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    max_new_tokens: int = 128,
    search_model: Any = None,
    index: StrPath | MomentStore | None = None,
    search_text: str | None = None,
    most_moments: int | None = None,
    damaged: str = "error",
    stream: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Iterator[Answer]:
    """As `ask`, one answer after the other: the film is read when the first is asked for."""
    questions = [question] if isinstance(question, str) else list(question)
    if not questions:
        raise InferenceError("There is no question; ask something, such as 'When does the bell ring?'.")
    searched = search_model is not None or index is not None
    for name, value in (("num_frames", num_frames), ("fps", fps)):
        if searched and value is not None:
            raise InferenceError(f"{name} chooses moments evenly, and a search chooses them by the question.",
                                 hint=Hint(name, None))  # fmt: skip
    for name, given in (("search_text", search_text), ("most_moments", most_moments)):
        if not searched and given is not None:
            raise InferenceError(f"{name} goes with `search_model` or `index`.", hint=Hint(name, None))
    if isinstance(model, str | os.PathLike):
        model, processor = load_model(model, use="answer")
    if processor is None or not hasattr(processor, "clip_text"):
        raise InferenceError(
            "A question needs a model with a language model and its processor; pass both as "
            "load_model(name, use='answer') gives them, or the name of the model."
        )
    room = room_for_moments(model, processor, questions, max_new_tokens)
    times = None
    if searched:
        most = processor.feature_extractor.num_frames if most_moments is None else most_moments
        text = " ".join(questions) if search_text is None else search_text
        if index is not None:
            times = find_in_index(index, source, text, search_model, most=most, start=start, end=end)
        else:
            finder = _loaded(search_model)
            times = find_moments(
                *finder, source, text, most=most, start=start, end=end, damaged=damaged, progress=progress
            )
    watched = watch(
        model, processor, source, num_frames=num_frames, fps=fps, times=times, start=start, end=end, damaged=damaged,
        most_tokens=room, progress=progress,
    )  # fmt: skip
    for one in questions:
        yield answer(model, processor, watched, one, max_new_tokens=max_new_tokens, stream=stream)


def find_in_index(
    index: StrPath | MomentStore,
    source: Any,
    text: str,
    search_model: Any = None,
    *,
    most: int,
    start: float | None = None,
    end: float | None = None,
) -> list[float]:
    """The moments of a film that a text tells of, as an index of it says; without reading the film.

    Args:
        index: Where the index is, or the open index.
        source: Path or address of the film, as it was indexed.
        text: What to find, in words.
        search_model: As of `ask`.
        most: Moments at most: the best ones with those before and after them.
        start: Where in the film to start, seconds.
        end: Where to end.

    Returns:
        Their times, seconds of the film, in order.

    Raises:
        QueryError: The index does not hold the film, or nothing of it within the span.
        SearchError: There is no index, or its model has no text.
    """
    check_most(most)
    store = open_index(index)
    name = source_name(source)
    entries = []
    if isinstance(source, str | os.PathLike):
        key = file_key(os.fspath(source))
        entries = [entry for entry in store.entries().values() if entry.key.startswith(key) and entry.rows]
    if not entries:
        raise QueryError(
            f"{store.uri}: holds nothing of {name}; add it (`cavmae-sync index SOURCE INDEX`), or look through the "
            "film itself with `search_model`."
        )
    within = (start, end) if start is not None or end is not None else (None, None)
    filters = SearchFilters(files=glob.escape(entries[0].path), within=within)
    finder = (None, None) if search_model is None else _loaded(search_model)
    hits = search(store, None, *finder, text=[text], top=most, filters=filters)
    if not hits:
        raise QueryError(f"{store.uri}: holds nothing of {name} in this span; take a longer one.")
    hop = store.settings.hop
    span = (max(start or 0.0, min(entry.start for entry in entries)), max(entry.end for entry in entries))
    span = (span[0], span[1] if end is None else min(end, span[1]))
    return with_neighbours([(hit.start + hit.end) / 2 for hit in hits], most, hop, span)


def _loaded(search_model: Any) -> tuple[Any, Any]:
    """A model with text and its processor, of its name or of both."""
    if isinstance(search_model, str | os.PathLike):
        return load_model(search_model, use="text")
    if not isinstance(search_model, tuple | list) or len(search_model) != 2:
        raise InferenceError(
            f"search_model is a {type(search_model).__name__}; pass the name of a model with text, or what "
            "load_model(name, use='text') gives."
        )
    return search_model[0], search_model[1]


__all__ = ["AskOptions", "ask", "find_in_index", "iter_ask"]
