# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Chats about clips for training and evaluation: read from files, made from SyncWorld's truth, written as tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..files import StrPath, parse_json
from ..model.batching_cavmae_sync import stack_padded
from ..model.errors_cavmae_sync import TrainingError, printable
from ..model.processing_lm_cavmae_sync import CavMaeSyncLMProcessor
from ..syncworld.questions import (
    KINDS,
    Question,
    caption_parts,
    conversation,
    dense_captions,
    made_up_captions,
    moment_questions,
    questions,
)

_MEDIA = ("video", "audio")
# What batches of chats are filled up with.
_FILLS = {"labels": -100, "question_ids": -1, "position_ids": 0}
# Where a chat comes from: its file's rows under one of these names, or in these columns.
_MESSAGES = ("messages", "conversations", "conversation")


@dataclass
class Chat:
    """A conversation about clips.

    Attributes:
        messages: `role` and `content` of each turn, content a list of texts, videos and audio clips.
        clips: Number of the clip of each video and audio clip, in the order of the messages.
        apart: Whether each question stands alone, about the media of the first one: none sees the others.
        captions: Whether the first two turns are a prompt for captions and these; every question sees them.
        follows: Part of captions of no clip that follows from what stands before it, and so is said.
        moment: Place of the only moment of the clips that is shown; default: all are.
    """

    messages: list[dict[str, Any]]
    clips: list[int]
    apart: bool = False
    captions: bool = False
    follows: str = ""
    moment: int | None = None

    def questions(self) -> Iterator["Chat"]:
        """Each question, with the captions or the media of the first one, and its answer as a chat of its own."""
        shared = self.messages[: 2 * self.captions]
        media = [part for part in self.messages[0]["content"] if part["type"] in _MEDIA and not shared]
        turns = self.messages[len(shared) :]
        for asked, answer in zip(turns[::2], turns[1::2], strict=True):
            texts = [part for part in asked["content"] if part["type"] == "text"]
            own = [{"role": "user", "content": [*media, *texts]}, answer]
            yield replace(self, messages=[*shared, *own], apart=False)


@dataclass
class ClipTokens:
    """What the audio-visual model makes of a clip, see `CavMaeSyncLMModel.encode_tokens`.

    Attributes:
        times: Of its moments, seconds, `(moments,)`.
        tokens: By modality, `(moments, tokens, width)`.
        present: By modality, which moments are there, `(moments,)`.
    """

    times: Tensor
    tokens: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)

    def without(self, *modalities: str) -> "ClipTokens":
        """The clip without the tokens of modalities."""
        present = {name: mask & (name not in modalities) for name, mask in self.present.items()}
        return ClipTokens(self.times, self.tokens, present)

    def at(self, moment: int) -> "ClipTokens":
        """One moment of the clip."""
        one = slice(moment, moment + 1)
        tokens, present = ({name: values[one] for name, values in own.items()} for own in (self.tokens, self.present))
        return ClipTokens(self.times[one], tokens, present)


def holds_chats(path: StrPath) -> bool:
    """Whether a source is a file of chats or a folder that `datasets` has saved, by its name and files alone."""
    source = Path(path).expanduser()
    return source.is_file() or (source / "state.json").is_file()


def read_chats(path: StrPath) -> list[dict[str, Any]]:
    """Chats of a JSON, JSON lines or Parquet file, or of a folder that `datasets` has saved.

    Each row has `messages`: a list of turns with `role` and `content`, content a text or a list of `{"type": "text",
    "text": ...}`, `{"type": "video", "path": ...}` and `{"type": "audio", "path": ...}`. Paths are relative to the
    file.

    Raises:
        TrainingError: The file cannot be read, or a row is no chat; the message names it.
    """
    source = Path(path).expanduser()
    try:
        if source.is_dir():
            from datasets import load_from_disk

            rows: Any = load_from_disk(str(source))
        elif source.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(source).to_pylist()
        elif source.suffix == ".jsonl":
            lines = source.read_text(encoding="utf-8").splitlines()
            rows = [parse_json(line) for line in lines if line.strip()]
        else:
            rows = parse_json(source.read_text(encoding="utf-8"))
    except Exception as error:  # whatever a reader makes of a damaged file
        raise TrainingError(
            f"{printable(str(path))}: cannot be read as chats ({error}); give a .json, .jsonl or .parquet file, or a "
            "folder that `datasets` has saved."
        ) from error
    if not isinstance(rows, list) and not hasattr(rows, "column_names"):
        raise TrainingError(f"{printable(str(path))}: holds a {type(rows).__name__}; give a list of chats.")
    return [_checked_row(row, number, source) for number, row in enumerate(rows)]


def _checked_row(row: Any, number: int, source: Path) -> dict[str, Any]:
    """A row's messages with contents as lists and paths that can be opened from here."""
    where = f"{printable(str(source))}: row {number}"
    name = next((name for name in _MESSAGES if isinstance(row, Mapping) and row.get(name)), None)
    if name is None:
        raise TrainingError(f"{where} has no `messages`; give each row a list of turns with `role` and `content`.")
    messages = []
    for turn in row[name]:
        if not isinstance(turn, Mapping) or not turn.get("role") or turn.get("content") is None:
            raise TrainingError(f"{where} has a turn without `role` or `content`: {turn!r}.")
        content = turn["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else [_clean(part) for part in content]
        for part in parts:
            if part.get("type") in _MEDIA:
                media = next((part[key] for key in ("path", "url", part["type"]) if part.get(key)), None)
                if media is None:
                    raise TrainingError(f"{where} has a {part['type']} without `path`.")
                if isinstance(media, str) and "://" not in media:
                    media = str((source.parent / media).resolve())
                part["path"] = media
            elif part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise TrainingError(f"{where} has a content of type {part.get('type')!r}; give text, video or audio.")
        messages.append({"role": turn["role"], "content": parts})
    if messages[-1]["role"] != "assistant":
        raise TrainingError(f"{where} ends with the {messages[-1]['role']}'s turn; the last one is the answer.")
    return {"messages": messages}


def _clean(part: Any) -> dict[str, Any]:
    """A part of a content without the empty fields that tables give every row."""
    return {"type": None} if not isinstance(part, Mapping) else {key: value for key, value in part.items() if value}


def media_paths(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The media files of chats, each once, in their order."""
    return list(dict.fromkeys(part["path"] for part in _media_of(rows)))


def _media_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for row in rows:
        for turn in row["messages"]:
            yield from (part for part in turn["content"] if part["type"] in _MEDIA)


class FileChats(Dataset):
    """The chats of a file.

    Args:
        rows: From `read_chats`.
        numbers: Of the clips, by path.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], numbers: Mapping[str, int]) -> None:
        self.chats = [Chat(row["messages"], [numbers[part["path"]] for part in _media_of([row])]) for row in rows]

    def __len__(self) -> int:
        return len(self.chats)

    def __getitem__(self, index: int) -> Chat:
        return self.chats[index]


def question_chat(asked: Sequence[Question], clip: int | None, captions: tuple[str, str] | None = None) -> Chat:
    """Questions about one clip, or captions alone, one after the other; after captions where there are some."""
    messages = conversation(asked, None if clip is None else f"clip {clip}", captions)["messages"]
    return Chat(messages, [] if clip is None else [clip], captions=captions is not None)


class SyncWorldChats(Dataset):
    """Questions from the truth of SyncWorld clips, others in every epoch.

    Args:
        records: Truth of every clip.
        per_chat: Questions of a chat.
        seed: Seeds what is asked, and how.
        apart: Whether the questions of a chat see the clip and not each other.
        caption_prompt: Each chat begins with it and the clip's dense captions.
        caption_epochs: Epochs before clips are shown in which a chat shows captions of none (`made_up_captions`): to
            look up there what a question names is learned in few steps, and late or never where the clip is shown too.
            Of several epochs the first shows the lists of when classes begin alone, which are less to look through;
            in the others these lists are said, as they follow from the moments.
        moment_epochs: Epochs before whole clips are shown in which a chat shows one moment and asks about it, several
            of each clip in a batch: what is seen and heard there is learned in fewer steps than where the moment must
            be found among others. Both end together: in epochs that are both, every other batch is of captions, so
            that neither is forgotten; with more epochs of one kind, the first are of that kind alone.
        kinds: Of questions.

    Raises:
        TrainingError: There are `caption_epochs` and no `caption_prompt`.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        *,
        per_chat: int = 6,
        seed: int = 0,
        apart: bool = False,
        caption_prompt: str | None = None,
        caption_epochs: int = 0,
        moment_epochs: int = 0,
        kinds: Sequence[str] = KINDS,
    ) -> None:
        self.records, self.per_chat, self.seed, self.apart, self.kinds = records, per_chat, seed, apart, kinds
        self.epoch, count = 0, max(caption_epochs, moment_epochs)
        first = count - caption_epochs
        self.early = [
            ["lists" if first == epoch < count - 1 else "captions"] * (epoch >= first)
            + ["moment"] * (epoch >= count - moment_epochs)
            for epoch in range(count)
        ]
        if caption_epochs and caption_prompt is None:
            raise TrainingError(
                "`caption_epochs` ask about captions, which the model lacks; set a `caption_prompt` or leave them out."
            )
        self.caption_prompt = caption_prompt or ""
        self._captions = [
            None if caption_prompt is None else (caption_prompt, dense_captions(record)) for record in records
        ]

    def set_epoch(self, epoch: int) -> None:
        """Ask other questions."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Chat:
        return self._chats(index, index)[0]

    def __getitems__(self, indexes: Sequence[int]) -> list[Chat]:
        """The chats of a batch, which are of one kind: short ones are not filled up to the length of others."""
        return [chat for index in indexes for chat in self._chats(index, indexes[0])]

    def _chats(self, index: int, turn: int) -> list[Chat]:
        """The chat about a clip, of the kind whose turn it is; about single moments one for each of several."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch, int(index)]))
        record, captions = self.records[index], self._captions[index]
        early = self.early[self.epoch] if self.epoch < len(self.early) else ["clip"]
        shown = early[(turn + self.epoch) % len(early)]
        if shown in ("lists", "captions"):
            told, asked = made_up_captions(record, rng, moments=shown == "captions")
            # The word after the list tells that it is whole.
            follows = f"{caption_parts(told)[1]} seen" if shown == "captions" else ""
            chat = question_chat(asked, None, (self.caption_prompt, told))
            return [replace(chat, apart=self.apart, follows=follows)]
        if shown == "moment":
            # A batch shows as many moments as it asks questions: more differ than where each is asked about again.
            found = moment_questions(record, rng, per_kind=-(-self.per_chat // 2))
            if found:
                return [
                    replace(question_chat([question], int(index)), apart=self.apart, moment=moment)
                    for moment, question in found
                ]
        per_kind, rounds = -(-self.per_chat // 3), 1
        if captions is not None:
            # Of what is read off them a clip has little to ask: each kind is asked as often, again in other words.
            per_kind, rounds = 1, -(-self.per_chat // len(self.kinds))
        known = [
            question for _ in range(rounds)
            for question in questions(record, rng, per_kind=per_kind, kinds=self.kinds)
        ]  # fmt: skip
        asked = [known[place] for place in rng.permutation(len(known))[: self.per_chat]]
        return [replace(question_chat(asked, int(index), captions), apart=self.apart)]


class ChatWriter:
    """Writes chats as tokens, with labels on the answers alone.

    Args:
        processor: Of the model.
        max_length: Most tokens of a chat.

    Raises:
        TrainingError: The tokenizer cannot tell where its tokens lie in a text, or has no chat template.
    """

    def __init__(self, processor: CavMaeSyncLMProcessor, max_length: int | None = None) -> None:
        self.processor, self.max_length = processor, max_length
        if not processor.tokenizer.is_fast:
            raise TrainingError(
                f"{type(processor.tokenizer).__name__} does not tell where its tokens lie in a text; take a fast "
                "tokenizer (tokenizer.json)."
            )
        if processor.chat_template is None:
            raise TrainingError(
                "The tokenizer has no chat template; set `chat_template` (a Jinja template, see transformers' "
                "documentation of chat templates)."
            )
        self._marks = self._find_marks()

    def _render(self, messages: Sequence[Mapping[str, Any]], ask: bool) -> str:
        return self.processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)

    def _pieces(self, messages: list[dict[str, Any]]) -> Iterator[tuple[str, bool]]:
        """The chat's text in pieces, and whether each is an answer."""
        if self._marks is not None:
            found = self._marked_pieces(messages, *self._marks)
            if found is not None:
                yield from found
                return
        done = ""
        for place, turn in enumerate(messages):
            if turn["role"] != "assistant":
                continue
            asked = self._render(messages[:place], True)
            answered = self._render(messages[: place + 1], False)
            if not asked.startswith(done) or not answered.startswith(asked):
                raise TrainingError(
                    "The chat template writes earlier turns in another way once there are later ones; give chats of "
                    "one question, or another `chat_template`."
                )
            yield asked[len(done) :], False
            yield answered[len(asked) :], True
            done = answered

    def _find_marks(self) -> tuple[str, str] | None:
        """What the template writes before and after an answer, where that is always the same."""
        asked, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        plain, prompt = self._render([asked], False), self._render([asked], True)
        whole = self._render([asked, answer], False)
        if not prompt.startswith(plain) or prompt == plain or not whole.startswith(f"{prompt}b"):
            return None
        return prompt[len(plain) :], whole[len(prompt) + 1 :]

    def _marked_pieces(self, messages: list[dict[str, Any]], before: str, after: str) -> list[tuple[str, bool]] | None:
        """As `_pieces`, of one rendering; `None` where an answer is not found in it as it was given."""
        text, done = self._render(messages, False), 0
        pieces: list[tuple[str, bool]] = []
        for turn in messages:
            if turn["role"] != "assistant":
                continue
            content = turn["content"]
            words = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
            place = text.find(before + words + after, done)
            if place < 0:
                return None
            begin = place + len(before)
            pieces += [(text[done:begin], False), (words + after, True)]
            done = begin + len(words) + len(after)
        return pieces

    def clip_text(self, clip: ClipTokens) -> str:
        """What stands for a clip."""
        times = [float(time) for time in clip.times]
        masks = [clip.present.get(name, torch.zeros(len(times), dtype=torch.bool)).tolist() for name in _MEDIA]
        return self.processor.clip_text(times, *masks)

    def write(self, chat: Chat, clips: Sequence[ClipTokens]) -> dict[str, Tensor]:
        """A chat as tokens.

        Returns:
            `input_ids` and `labels` `(tokens,)`; labels are -100 but for answers. Of a chat whose
            questions stand apart also `question_ids`, 0 for what all share and then 1, 2, ..., and `position_ids`,
            which go on from what is shared for each question.

        Raises:
            TrainingError: It has more than `max_length` tokens.
        """
        if not chat.apart:
            text, spans, _ = self._text(chat, clips)
            row = self._encode(text, spans, 0)
            self._check_length(len(row["input_ids"]))
            return row
        parts: list[dict[str, Tensor]] = []
        for question in chat.questions():
            text, spans, shared = self._text(question, clips)
            # What is shared ends with a placeholder or an answer's end, over which no token reaches.
            if not parts:
                parts.append(self._encode(text[:shared], spans, 0))
            parts.append(self._encode(text[shared:], spans, shared))
        lengths = [len(part["input_ids"]) for part in parts]
        self._check_length(lengths[0] + max(lengths[1:]))
        row = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        row["question_ids"] = torch.arange(len(parts)).repeat_interleave(torch.tensor(lengths))
        begins = [0] + [lengths[0]] * (len(parts) - 1)
        row["position_ids"] = torch.cat(
            [torch.arange(begin, begin + length) for begin, length in zip(begins, lengths, strict=True)]
        )
        return row

    def _text(self, chat: Chat, clips: Sequence[ClipTokens]) -> tuple[str, list[tuple[int, int]], int]:
        """The text of a chat, the spans in it that are to be said, and where what all its questions share ends."""
        left = iter([self.clip_text(clip) for clip in clips])
        text, spans, shared, captions = "", [], 0, chat.captions
        for piece, is_said in self._pieces(chat.messages):
            if is_said:
                if chat.clips or not captions:
                    spans.append((len(text), len(text) + len(piece)))
                elif chat.follows:  # captions of no clip are made up: nothing could have told the rest
                    begin = len(text) + piece.index(chat.follows)
                    spans.append((begin, begin + len(chat.follows)))
                text += piece
                shared, captions = (len(text), False) if captions else (shared, False)
                continue
            for part, is_clip in self._split(piece, left):
                text += part
                shared = len(text) if is_clip else shared
        return text, spans, shared

    def _encode(self, text: str, spans: Sequence[tuple[int, int]], start: int) -> dict[str, Tensor]:
        """Tokens and labels of a text; `spans` are to be said, and tell places where the text begins at `start`."""
        encoded = self.processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor(encoded["input_ids"], dtype=torch.long)
        begins, ends = (torch.tensor(encoded["offset_mapping"], dtype=torch.long).reshape(-1, 2) + start).T
        said = torch.zeros(len(ids), dtype=torch.bool)
        for begin, end in spans:
            said |= (begins < end) & (ends > begin)
        return {"input_ids": ids, "labels": torch.where(said, ids, -100)}

    def _check_length(self, tokens: int) -> None:
        if self.max_length is not None and tokens > self.max_length:
            raise TrainingError(
                f"A chat has {tokens} tokens, more than `max_length` ({self.max_length}); raise it, or take fewer "
                "moments (`num_frames`), `tokens_per_frame` or `tokens_per_window`."
            )

    def _split(self, text: str, clips: Iterator[str]) -> Iterator[tuple[str, bool]]:
        """A text with its placeholders replaced by what stands for clips, in pieces; whether each is of a clip."""
        tokens = (self.processor.video_token, self.processor.audio_token)
        while True:
            found = [(place, token) for token in tokens if (place := text.find(token)) >= 0]
            if not found:
                yield text, False
                return
            place, token = min(found)
            yield text[:place], False
            yield next(clips), True
            text = text[place + len(token) :]

    def prompt(self, chat: Chat, clips: Sequence[ClipTokens]) -> str:
        """The text of a chat up to its last answer, with what stands for its clips."""
        texts = [self.clip_text(clip) for clip in clips]
        answered = chat.messages[-1]["role"] == "assistant"
        return self.processor.expand(self._render(chat.messages[: -1 if answered else None], True), texts)


def media_inputs(clips: Sequence[ClipTokens]) -> dict[str, Tensor]:
    """The model's inputs of clips in the order of their placeholders."""
    inputs: dict[str, Tensor] = {}
    for name, mask in (("video", "padding_mask_videos"), ("audio", "padding_mask")):
        there = [clip for clip in clips if name in clip.tokens and bool(clip.present[name].any())]
        if there:
            longest = max(len(clip.times) for clip in there)
            inputs[f"{name}_tokens"] = stack_padded([clip.tokens[name].float() for clip in there], longest)
            inputs[mask] = stack_padded([clip.present[name] for clip in there], longest)
            inputs[f"{name}_times"] = stack_padded([clip.times.float() for clip in there], longest)
    return inputs


def apart_masks(question_ids: Tensor, layer_types: Sequence[str] | None) -> Any:
    """What a language model takes as `attention_mask` so that questions see what all share, and themselves.

    Args:
        question_ids: `(texts, tokens)`, 0 for what all share, see `ChatWriter.write`.
        layer_types: Of the language model, where its configuration tells them.

    Returns:
        `(texts, 1, tokens, tokens)`, True where a row's token sees a column's; with `layer_types` by their kind, and
        none for short convolutions, which see the few tokens before them.
    """
    own, other = question_ids.unsqueeze(2), question_ids.unsqueeze(1)
    mask = (((own == other) | (other == 0)).tril()).unsqueeze(1)
    return mask if layer_types is None else {"full_attention": mask, "conv": None}


@dataclass
class ChatCollator:
    """Makes batches of chats, filled up on the right.

    Attributes:
        writer: Writes them.
        clip: Gives a clip's tokens by its number.
        pad_token_id: Fills up.
        drop: Share of the clips that lose their audio, and of those that lose their video.
    """

    writer: ChatWriter
    clip: Callable[[int], ClipTokens]
    pad_token_id: int
    drop: float = 0.0

    def __call__(self, chats: Sequence[Chat]) -> dict[str, Tensor]:
        """Make a batch."""
        clips = [[self._shown(chat, number) for number in chat.clips] for chat in chats]
        rows = [self.writer.write(chat, own) for chat, own in zip(chats, clips, strict=True)]
        batch = {
            name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=fill)
            for name, fill in (_FILLS | {"input_ids": self.pad_token_id}).items()
            if name in rows[0]
        }
        mask = [torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows]
        batch["attention_mask"] = torch.nn.utils.rnn.pad_sequence(mask, batch_first=True)
        return batch | media_inputs([clip for own in clips for clip in own])

    def _shown(self, chat: Chat, number: int) -> ClipTokens:
        """A clip as the chat shows it, or without a modality; drawn from torch's generator, which checkpoints keep."""
        clip = self.clip(number) if chat.moment is None else self.clip(number).at(chat.moment)
        if not self.drop:
            return clip
        drawn = float(torch.rand(()))
        lost = "audio" if drawn < self.drop else "video" if drawn < 2 * self.drop else ""
        return clip.without(lost) if lost else clip
