# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Questions about clips, answered in words and with moments by a model with a language model.

`watch` reads the moments of a film that a model is to see and keeps what it makes of them; `answer` asks about that as
often as wanted. Moments that lie far apart are read one by one, so that neither step holds more of a film than they
need. `find_moments` looks through a film of any length for the moments that a text tells of. `search.asking.ask` is
all of it in one call.
"""

import copy
import heapq
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TextStreamer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..model.alignment_cavmae_sync import center_times
from ..model.clips_lm_cavmae_sync import MediaClip
from ..model.errors_cavmae_sync import Hint, InferenceError
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model.processing_lm_cavmae_sync import CavMaeSyncLMProcessor
from ..syncworld.questions import written_time
from .features import move_inputs, not_finite_error
from .moments import MediaSpan, MomentChunk, Progress, embed_moments, report_seconds, source_name
from .texts import TextVectors, embed_texts

SEARCH_HOP = 0.5
# Of the moments, so many of those that are clearly more likely than others are told.
_MOST_TOLD = 3
_CLEARLY = 2.0
# What is read around a moment beside what is heard with it: resampling and frames need a little.
_MARGIN_SECONDS = 1.0
# Clips up to this length are read whole in any case.
_WHOLE_SECONDS = 30.0
# So much that lies in both or in neither counts, as in a search of an index.
_LEAST_SHARE = 1e-6
# Of captions, for each moment.
MOST_CAPTION_TOKENS = 16
# As `written_time` writes it.
_TIME = re.compile(r"\d+\.\d+s\b")
_MODALITIES = (("video", "padding_mask_videos"), ("audio", "padding_mask"))


@dataclass(frozen=True)
class Answer:
    """What a model says about a film.

    Attributes:
        question: As it was asked.
        text: The answer.
        times: The moments that the model saw and heard, seconds of the film, `(moments,)`.
        scores: How likely each of them is in the place of the last time in the answer, or as the whole of an answer
            without one, `(moments,)`; they sum to 1. They mean something where the question asks for a time.
        source: What the film is called.
        seconds_watched: Length of the film, or of the span of it that was asked about.
    """

    question: str
    text: str
    times: np.ndarray
    scores: np.ndarray
    source: str
    seconds_watched: float

    @property
    def moments(self) -> list[tuple[float, float]]:
        """Times and shares of the likeliest moments, at most three, best first.

        Told are those that are at least twice as likely as all would be if they were alike.
        """
        least = min(0.5, _CLEARLY / max(1, len(self.scores)))
        best = sorted(zip(self.scores.tolist(), self.times.tolist(), strict=True), reverse=True)[:_MOST_TOLD]
        return [(time, share) for share, time in best if share >= least]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "source": self.source,
            "question": self.question,
            "answer": self.text,
            "moments": [{"time": round(time, 3), "share": round(share, 4)} for time, share in self.moments],
            "times": [round(float(time), 3) for time in self.times],
            "scores": [round(float(score), 6) for score in self.scores],
            "seconds_watched": round(self.seconds_watched, 3),
        }


@dataclass(frozen=True)
class Watched:
    """What a model keeps of a film: enough for any number of questions.

    Attributes:
        source: What the film is called.
        times: Of its moments, seconds of the film, `(moments,)` float64.
        start: Where the span of the film starts, from which the times count that the model reads, as in the processor.
        clip_text: What stands for it in the text that the model reads.
        encoded: Features by modality, as `mm_encoder_outputs` of the model.
        seconds: Length of the film, or of the span of it.
        captions: What the model says of every moment before it answers, where it was trained to
            (`caption_prompt` of the processor).
    """

    source: str
    times: Tensor
    start: float
    clip_text: str
    encoded: Mapping[str, BaseModelOutputWithPooling]
    seconds: float
    captions: str | None = None

    def tokens(self, processor: CavMaeSyncLMProcessor) -> int:
        """How many tokens of a text it takes."""
        return len(processor.tokenizer(self.clip_text, add_special_tokens=False, verbose=False)["input_ids"])


@torch.no_grad()
def watch(
    model: Any,
    processor: CavMaeSyncLMProcessor,
    source: Any,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    times: Sequence[float] | None = None,
    start: float | None = None,
    end: float | None = None,
    damaged: str = "error",
    most_tokens: int | None = None,
    progress: Progress | None = None,
) -> Watched:
    """Read moments of a film and encode them.

    Args:
        model: A `CavMaeSyncForConditionalGeneration` in evaluation mode.
        processor: Its processor.
        source: Video or audio: path, address, bytes or file object.
        num_frames: How many moments, evenly chosen; default: as many as in training.
        fps: Moments per second instead.
        times: The moments themselves instead, seconds of the film.
        start: Where in the film to start, seconds. Times that the model reads, and says, count from there.
        end: Where to end.
        damaged: `"error"`, or `"keep"` to use what can be decoded of damaged files.
        most_tokens: Tokens that the moments may have; there are fewer of them where they have more.
        progress: Called with the moments read and their number.

    Raises:
        InferenceError: An argument cannot work, the model takes nothing of what the file holds, or not even one
            moment has room.
        MediaError: The file cannot be used.
    """
    name = source_name(source)
    given = {"num_frames": num_frames, "fps": fps, "times": times}
    several = [word for word, value in given.items() if value is not None]
    if len(several) > 1:
        raise InferenceError(f"{' and '.join(several)} both say which moments; give one of them.")
    if num_frames is not None and (isinstance(num_frames, bool) or num_frames < 1):
        raise InferenceError(f"num_frames is {num_frames!r}; look at 1 moment at least.")
    if fps is not None and not 0 < fps < math.inf:
        raise InferenceError(f"fps is {fps!r}; it must be a number of moments per second above 0.")
    if times is not None and not all(0 <= time < math.inf for time in times):
        raise InferenceError(f"times are {list(times)!r}; they are seconds of at least 0.")
    clip = MediaClip(name, "video", source, start=start, end=end)
    seconds = clip.measure()
    begin = start or 0.0
    extractor = processor.feature_extractor
    if times is not None:
        times = sorted(times)
    else:
        count = num_frames or extractor.num_frames
        if fps is not None:
            count = max(1, round(seconds * fps))
    count = len(times) if times is not None else count
    if not count:
        raise InferenceError(f"{name}: there are no moments to look at.")
    if most_tokens is not None:
        longest = processor.clip_text([seconds], [clip.is_seen], [clip.is_heard])
        each = len(processor.tokenizer(longest, add_special_tokens=False)["input_ids"])
        each += MOST_CAPTION_TOKENS * (processor.caption_prompt is not None)
        room = most_tokens // each
        if room < 1:
            raise InferenceError(
                f"{name}: a moment has {each} tokens, and beside question and answer there is room for "
                f"{max(0, most_tokens)}; ask in fewer words, or take a model with a longer context.",
                hint=Hint("max_new_tokens", 32, "leave more room"),
            )
        if room < count and times is not None:
            times = [times[int(place)] for place in center_times(count, room)]
        count = min(count, room)
    plain = CavMaeSyncProcessor(extractor, processor.video_processor)
    rules = {"end": end, "missing": "mask", "damaged": damaged}
    parts = _read(plain, source, times, count, begin, seconds, rules)
    told, masks, features = _encode(model, parts, begin, count, progress)
    for modality, _ in _MODALITIES:
        # A model of one tower takes nothing of the other track.
        if modality in features and not bool(features[modality].isfinite().all()):
            raise not_finite_error(f"{name}: the embedding", model)
    if not features:
        takes = model.config.av_config.modality
        raise InferenceError(
            f"{name}: holds nothing here that the model takes, which is "
            f"{'audio and video' if takes == 'multimodal' else takes}; take another file, or another span of it."
        )
    watched = Watched(
        source=name,
        times=told,
        start=begin,
        clip_text=processor.clip_text((told - begin).tolist(), masks["video"], masks["audio"]),
        encoded={
            modality: BaseModelOutputWithPooling(pooler_output=[found])  # type: ignore[arg-type]
            for modality, found in features.items()
        },
        seconds=seconds,
    )
    if processor.caption_prompt is None:
        return watched
    _, captions = _say(model, processor, watched, processor.caption_prompt, MOST_CAPTION_TOKENS * len(told))
    return replace(watched, captions=captions)


def _read(
    plain: CavMaeSyncProcessor,
    source: Any,
    times: Sequence[float] | None,
    count: int,
    begin: float,
    seconds: float,
    rules: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """The inputs of moments, in order: all at once where they lie close, else of what lies close together.

    Args:
        plain: Makes them.
        source: The file.
        times: Of the moments, seconds of the file; `None` for evenly chosen ones.
        count: How many these are.
        begin: Where the span starts.
        seconds: How long it is.
        rules: Its end, and what holds for damage and absent tracks.

    Yields:
        Inputs of one clip, with `frame_times` in seconds of the file.
    """
    extractor = plain.feature_extractor
    around = extractor.context_seconds + _MARGIN_SECONDS
    if times is None and (seconds <= _WHOLE_SECONDS or seconds / count <= 2 * around):
        inputs = plain(
            videos=[source], num_frames=count, start=begin or None, return_times=True, return_tensors="pt", **rules
        )
        inputs["frame_times"] = inputs["frame_times"] + begin
        yield dict(inputs)
        return
    if times is None:
        times = [begin + time for time in center_times(seconds, count)]
    apart = CavMaeSyncProcessor(copy.copy(extractor), copy.copy(plain.video_processor))
    apart.feature_extractor.alignment = apart.video_processor.alignment = "time"  # the other rule needs whole clips
    groups: list[list[float]] = []
    for time in times:
        if groups and time - groups[-1][-1] <= 2 * around:
            groups[-1].append(time)
        else:
            groups.append([time])
    for group in groups:
        first, last = max(begin, group[0] - around), group[-1] + around
        stop = last if rules["end"] is None else min(last, rules["end"])
        options = rules | {"end": None if stop >= begin + seconds and rules["end"] is None else stop}
        inputs = apart(
            videos=[source], frame_times=[[time - first for time in group]], start=first or None, return_times=True,
            return_tensors="pt", **options,
        )  # fmt: skip
        inputs["frame_times"] = inputs["frame_times"] + first
        yield dict(inputs)


def _encode(
    model: Any, parts: Iterable[dict[str, Any]], begin: float, count: int, progress: Progress | None
) -> tuple[Tensor, dict[str, list[bool]], dict[str, Tensor]]:
    """Times, which frames and windows are present, and features by modality of the inputs of some moments."""
    times: list[Tensor] = []
    masks: dict[str, list[bool]] = {modality: [] for modality, _ in _MODALITIES}
    found: dict[str, list[Tensor]] = {modality: [] for modality, _ in _MODALITIES}
    done = 0
    for inputs in parts:
        here = inputs["frame_times"][0].double()
        times.append(here)
        given: dict[str, Any] = move_inputs(inputs, model.model.av_model)
        for modality, mask in _MODALITIES:
            values = "pixel_values_videos" if modality == "video" else "input_values"
            there = torch.zeros(len(here), dtype=torch.bool)
            if values in given and getattr(model.model, f"{modality}_projector") is not None:
                there = given[mask][0].bool().cpu() if mask in given else ~there
            masks[modality] += there.tolist()
            if bool(there.any()):
                given[f"{modality}_times"] = (here - begin).float()[None].to(model.device)
            else:
                for name in (values, mask, *(("window_offsets",) if modality == "audio" else ())):
                    given.pop(name, None)
        for modality, output in model.model.encode_media(given).items():
            found[modality] += output.pooler_output
        done += len(here)
        if progress is not None:
            progress(done, count, f"looking at {done} of {count} moments")
    return torch.cat(times), masks, {modality: torch.cat(parts) for modality, parts in found.items() if parts}


@torch.no_grad()
def answer(
    model: Any,
    processor: CavMaeSyncLMProcessor,
    watched: Watched,
    question: str,
    *,
    max_new_tokens: int = 128,
    stream: Callable[[str], None] | None = None,
) -> Answer:
    """Ask about a film.

    Args:
        model: A `CavMaeSyncForConditionalGeneration` in evaluation mode.
        processor: Its processor.
        watched: What `watch` made of the film.
        question: In words.
        max_new_tokens: Longest answer.
        stream: Called with pieces of the answer as they come.

    Raises:
        InferenceError: The question is empty or too long, or there is no chat template.
    """
    inputs, said = _say(model, processor, watched, question, max_new_tokens, stream)
    said_times = list(_TIME.finditer(said))
    before, after = (said[: said_times[-1].start()], said[said_times[-1].end() :]) if said_times else ("", "")
    times = (watched.times - watched.start).tolist()
    written = [f"{before}{written_time(time)}{after}" for time in times]
    scores = answer_scores(model, processor, inputs, written).softmax(dim=0)
    return Answer(question, said, watched.times.numpy(), scores.numpy(), watched.source, watched.seconds)


def _say(
    model: Any,
    processor: CavMaeSyncLMProcessor,
    watched: Watched,
    question: str,
    max_new_tokens: int,
    stream: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], str]:
    """The model's inputs for a question about a film, and what it says."""
    tokenizer = processor.tokenizer
    text = processor.expand(prompt(processor, question, watched.captions), [watched.clip_text])
    tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)
    length, limit = tokens["input_ids"].shape[1], context_length(model, processor)
    if limit is not None and length + max_new_tokens > limit:
        raise InferenceError(
            f"The question has {length} tokens with the film in it, an answer up to {max_new_tokens}, and the model "
            f"takes {limit} at most; ask in fewer words, or look at fewer moments.",
            hint=Hint("max_new_tokens", 32, "leave more room"),
        )
    inputs = {name: tokens[name].to(model.device) for name in ("input_ids", "attention_mask")}
    inputs["mm_encoder_outputs"] = dict(watched.encoded)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    streamer = None if stream is None else _Streamer(tokenizer, stream)
    given = model.generate(
        **inputs, max_new_tokens=max_new_tokens, do_sample=False, temperature=None, top_p=None, top_k=None,
        pad_token_id=pad, streamer=streamer,
    )  # fmt: skip
    return inputs, str(tokenizer.decode(given[0, length:], skip_special_tokens=True)).strip()


class _Streamer(TextStreamer):
    """Hands on the words of an answer as they come."""

    def __init__(self, tokenizer: Any, stream: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stream = stream

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with words that will not change any more."""
        if text:
            self.stream(text)


def prompt(processor: CavMaeSyncLMProcessor, question: str, captions: str | None = None) -> str:
    """The text of a question about one film, with `<|video|>` where that belongs, behind the film's captions.

    Raises:
        InferenceError: The question is empty or holds a placeholder, or there is no chat template.
    """
    if not isinstance(question, str) or not question.strip():
        raise InferenceError(f"The question is {question!r}; ask something, such as 'When does the bell ring?'.")
    held = [token for token in (processor.video_token, processor.audio_token) if token in question]
    if held:
        raise InferenceError(f"The question {question!r} holds {held[0]}, which stands for media; leave it out.")
    if not processor.chat_template:
        raise InferenceError(
            "The model has no chat template, by which it knows a question from an answer; set "
            "`processor.chat_template` (Jinja) and save the processor again, or train the model with one "
            "(`chat_template` of `cavmae-sync instruct`)."
        )
    turns = [{"role": "user", "content": [{"type": "text", "text": question.strip()}]}]
    if captions is not None:
        asked = {"role": "user", "content": [{"type": "text", "text": processor.caption_prompt}]}
        turns = [asked, {"role": "assistant", "content": [{"type": "text", "text": captions}]}, *turns]
    turns[0]["content"] = [{"type": "video"}, *turns[0]["content"]]
    return str(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def room_for_moments(
    model: Any, processor: CavMaeSyncLMProcessor, questions: Sequence[str], max_new_tokens: int
) -> int | None:
    """Tokens that a film may have beside the longest of some questions and its answer; `None` without a limit.

    Raises:
        InferenceError: As `prompt`, or `max_new_tokens` cannot work.
    """
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise InferenceError(f"max_new_tokens is {max_new_tokens!r}; it must be a whole number of at least 1.")
    captions = None if processor.caption_prompt is None else ""
    texts = [processor.expand(prompt(processor, question, captions), [""]) for question in questions]
    limit = context_length(model, processor)
    if limit is None:
        return None
    counts = [len(processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
    return limit - max(counts) - max_new_tokens


def context_length(model: Any, processor: CavMaeSyncLMProcessor) -> int | None:
    """Tokens that the language model reads at most; `None` where neither it nor the tokenizer has a limit."""
    limits = (processor.tokenizer.model_max_length, getattr(model.config.text_config, "max_position_embeddings", None))
    known = [int(limit) for limit in limits if limit is not None and limit < 1e9]
    return min(known, default=None)


def find_moments(
    model: Any,
    processor: CavMaeSyncProcessor,
    source: Any,
    text: str,
    *,
    most: int,
    hop: float = SEARCH_HOP,
    start: float | None = None,
    end: float | None = None,
    damaged: str = "error",
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[float]:
    """The moments of a film that a text tells of, in memory that does not grow with its length.

    Args:
        model: A model with text, `load_model(name, use="text")`.
        processor: Its processor.
        source: Video or audio: path, address, bytes or file object.
        text: What to find, in words.
        most: Moments at most: the best ones with those before and after them.
        hop: Seconds from one moment to the next.
        start: Where to start, seconds.
        end: Where to end.
        damaged: As of `watch`.
        batch_size: Moments that the model is given at a time.
        progress: Called with the seconds done and in all.

    Returns:
        Their times, seconds of the film, in order.

    Raises:
        InferenceError: The model has no text encoder, or an argument cannot work.
        MediaError: The file cannot be used.
    """
    check_most(most)
    vectors = embed_texts(model, processor, [text])
    heard = model.base_model.config.modality
    features = [name for name, kind in (("a", "audio"), ("v", "video")) if heard in (kind, "multimodal")]
    best: list[tuple[float, float]] = []
    span = MediaSpan(source, source_name(source), start=start, end=end)
    told = report_seconds(progress, span)
    number = 0
    for _, chunks in embed_moments(
        model.base_model, processor, [span], features, hop=hop, missing="mask", damaged=damaged, decoders=1,
        batch_size=batch_size,
    ):  # fmt: skip
        for chunk in chunks:
            for score in _text_scores(vectors, chunk).tolist():
                time = (start or 0.0) + (number + 0.5) * hop
                number += 1
                if not math.isnan(score):
                    heapq.heappush(best, (score, time))
                    if len(best) > most:
                        heapq.heappop(best)
            told((start or 0.0) + number * hop)
    if not best:
        raise InferenceError(f"{source_name(source)}: holds nothing here that the search model takes.")
    last = (start or 0.0) + number * hop
    return with_neighbours([time for _, time in sorted(best, reverse=True)], most, hop, (start or 0.0, last))


def check_most(most: Any) -> None:
    """Refuse a number of moments that is none."""
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise InferenceError(f"most_moments is {most!r}; it must be a whole number of at least 1.")


def with_neighbours(best: Sequence[float], most: int, hop: float, span: tuple[float, float]) -> list[float]:
    """Moments, each with the one before it and the one after it, in order of time.

    Args:
        best: Times in seconds, best first.
        most: How many moments there are in the end, at most.
        hop: Seconds from one moment to the next.
        span: Where they lie: from the first time, and before the second.
    """
    chosen: dict[int, float] = {}
    for time in best:
        for near in (time, time - hop, time + hop):
            if len(chosen) < most and span[0] <= near < span[1]:
                chosen.setdefault(round((near - best[0]) / hop), near)
    return sorted(chosen.values())


def _text_scores(vectors: TextVectors, chunk: MomentChunk) -> np.ndarray:
    """Cosines of a text with moments, `(moments,)`, weighted as in a search of an index; NaN where none is there."""
    share = min(max(float(vectors.video_shares[0]), _LEAST_SHARE), 1 - _LEAST_SHARE)
    total, weight = np.zeros(len(chunk)), np.zeros(len(chunk))
    sides = (("a", "audio", 1 - share, chunk.audio_present), ("v", "video", share, chunk.video_present))
    for name, modality, part, present in sides:
        if name in chunk.values:
            projected = vectors.project(modality, torch.from_numpy(chunk.values[name])) @ vectors.embeds[0]
            total += np.where(present, part * projected.numpy(), 0.0)
            weight += part * present
    with np.errstate(invalid="ignore"):
        return np.asarray(total / weight)  # 0 / 0 is NaN


@torch.no_grad()
def answer_scores(model: Any, processor: Any, inputs: Mapping[str, Tensor], answers: Sequence[str]) -> Tensor:
    """How likely each of some answers is, as log-probability of its tokens and of the end after them.

    Args:
        model: A `CavMaeSyncForConditionalGeneration` in evaluation mode.
        processor: Its processor.
        inputs: Of one prompt, `(1, tokens)`, with its clips.
        answers: In words.

    Returns:
        `(answers,)`, float32.
    """
    tokenizer = processor.tokenizer
    rows = [torch.tensor(tokenizer(f"{answer}{tokenizer.eos_token or ''}", add_special_tokens=False)["input_ids"])
            for answer in answers]  # fmt: skip
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    there = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
    asked = model(**inputs, use_cache=True, logits_to_keep=1)
    cache = asked.past_key_values
    # Of beams; `batch_repeat_interleave` knows no short convolutions.
    cache.reorder_cache(torch.zeros(len(rows), dtype=torch.long, device=model.device))
    mask = torch.cat([inputs["attention_mask"].expand(len(rows), -1), there], dim=1)
    # The last token of each answer is only looked for, so that nothing needs to follow it.
    said = model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits[:, :-1]
    logits = torch.cat([asked.logits.expand(len(rows), -1, -1), said], dim=1).float()
    likely = logits.log_softmax(dim=-1).gather(2, ids.unsqueeze(-1)).squeeze(-1)
    return (likely * there).sum(dim=1).cpu()


__all__ = [
    "SEARCH_HOP",
    "Answer",
    "Watched",
    "answer",
    "answer_scores",
    "check_most",
    "context_length",
    "find_moments",
    "prompt",
    "room_for_moments",
    "watch",
    "with_neighbours",
]
