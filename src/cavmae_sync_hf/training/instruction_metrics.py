# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What an audio-visual language model answers on held-out clips, and what it answers where it cannot know.

Every accuracy of questions about SyncWorld stands beside those of controls: without the clip, with its audio or its
video alone, with another clip, and with the times of its moments shuffled. The first and the last two should answer
what can be guessed. A model that captions a clip before it answers does so anew for each control; what it can do with
words is seen where the true captions precede the question, without the clip.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..inference.ask import MOST_CAPTION_TOKENS, answer_scores
from ..syncworld.questions import (
    KINDS,
    Question,
    caption_parts,
    dense_captions,
    questions,
    score_answers,
    score_twins,
    twin_questions,
    written_time,
)
from .instruction_data import Chat, ChatWriter, ClipTokens, media_inputs, question_chat

CONTROLS = ("no clip", "audio alone", "video alone", "another clip", "times shuffled")
Progress = Callable[..., None] | None
# Between the moments of dense captions.
_MOMENTS = re.compile(r" (?=\d+\.\d+s)")


def changed(clips: Sequence[ClipTokens], control: str | None, seed: int = 0) -> list[ClipTokens]:
    """Clips as a control shows them.

    Args:
        clips: Of a set; of temporal pairs both stand side by side.
        control: One of `CONTROLS`; `None` leaves them as they are.
        seed: Seeds the order of shuffled times.
    """
    if control is None:
        return list(clips)
    if control == "no clip":
        return [ClipTokens(clip.times[:0]) for clip in clips]
    if control in ("audio alone", "video alone"):
        return [clip.without("video" if control == "audio alone" else "audio") for clip in clips]
    if control == "another clip":
        # Half a set away: neither the clip nor its temporal twin.
        half = len(clips) // 2
        return [*clips[half:], *clips[:half]]
    generator = torch.Generator().manual_seed(seed)
    found = []
    for clip in clips:  # the times stay in order, what is said to be there does not
        order = torch.randperm(len(clip.times), generator=generator)
        tokens = {name: values[order] for name, values in clip.tokens.items()}
        present = {name: values[order] for name, values in clip.present.items()}
        found.append(replace(clip, tokens=tokens, present=present))
    return found


@torch.no_grad()
def answers_of(
    model: Any, writer: ChatWriter, chats: Sequence[Chat], clips: Sequence[ClipTokens], *, batch_size: int = 32,
    max_new_tokens: int = 64, progress: Progress = None,
) -> list[str]:  # fmt: skip
    """The model's answers to the last questions of chats, in words.

    Args:
        model: In evaluation mode.
        writer: Writes the chats.
        chats: Those that end with a question; what follows it is left out.
        clips: Of the set, by number.
        batch_size: Chats at a time.
        max_new_tokens: Longest answer.
        progress: Called with chats done and their number.
    """
    processor = writer.processor
    found: list[str] = []
    for first in range(0, len(chats), batch_size):
        part = chats[first : first + batch_size]
        inputs = _prompts(model, writer, part, clips)
        given = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = given[:, inputs["input_ids"].shape[1] :]
        found += [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
        if progress is not None:
            progress(len(found), len(chats))
    return found


def _prompts(model: Any, writer: ChatWriter, chats: Sequence[Chat], clips: Sequence[ClipTokens]) -> dict[str, Any]:
    """The model's inputs of chats up to their last answers."""
    own = [[clips[number] for number in chat.clips] for chat in chats]
    texts = [writer.prompt(chat, media) for chat, media in zip(chats, own, strict=True)]
    encoded = writer.processor.tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    )
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    inputs |= media_inputs([clip for media in own for clip in media])
    return {name: value.to(model.device) for name, value in inputs.items()}


def evaluate_syncworld(
    model: Any, writer: ChatWriter, records: Sequence[Mapping[str, Any]], clips: Sequence[ClipTokens], *,
    seed: int = 0, controls: Sequence[str] = CONTROLS, progress: Progress = None,
) -> dict[str, Any]:  # fmt: skip
    """Accuracies on SyncWorld clips by kind of question, with controls.

    Args:
        model: In evaluation mode.
        writer: Writes the questions.
        records: Truth of the clips.
        clips: Their tokens.
        seed: Seeds what is asked.
        controls: Which of `CONTROLS` are measured.
        progress: Called with questions done and their number.

    Returns:
        `seen` and `unseen` wordings: by kind `accuracy`, `majority`, `chance` in per cent and `count`; `controls`: by
        control and kind the accuracy on seen wordings; `twins`: by kind, where there are temporal pairs; `moments`:
        accuracy of "when" by digits and by the scores of the moments. Of a model that captions clips first also
        `captions`: per cent of the captions that are true, of moments as far as there are both, and `true captions`:
        by kind the accuracy where these stand in the place of the clip and of its own.
    """
    found: dict[str, Any] = {}
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(records)]))
    asked = {wording: _asked(records, rng, wording) for wording in ("seen", "unseen")}

    prompt = writer.processor.caption_prompt

    def captions_of(shown: Sequence[ClipTokens]) -> list[Any]:
        if prompt is None:
            return [None] * len(shown)
        chats = [question_chat([], number, (prompt, "")) for number in range(len(shown))]
        longest = MOST_CAPTION_TOKENS * max(len(clip.times) for clip in clips)
        return [(prompt, said) for said in answers_of(model, writer, chats, shown, max_new_tokens=longest)]

    def answers(
        pairs: Sequence[tuple[int, Question]], shown: Sequence[ClipTokens], captions: Sequence[Any]
    ) -> list[str]:
        chats = [question_chat([question], number, captions[number]) for number, question in pairs]
        return answers_of(model, writer, chats, shown, progress=progress)

    own = captions_of(clips)
    for wording, pairs in asked.items():
        found[wording] = score_answers([question for _, question in pairs], answers(pairs, clips, own))
    pairs = asked["seen"]

    def accuracies(shown: Sequence[ClipTokens], captions: Sequence[Any]) -> dict[str, float]:
        scores = score_answers([question for _, question in pairs], answers(pairs, shown, captions))
        return {kind: values["accuracy"] for kind, values in scores.items()}

    found["controls"] = {}
    for control in controls:
        shown = changed(clips, control, seed)
        found["controls"][control] = accuracies(shown, captions_of(shown))
    if prompt is not None:
        true = [(prompt, dense_captions(record)) for record in records]
        found["true captions"] = accuracies(changed(clips, "no clip"), true)
        found["captions"] = caption_accuracy([said for _, said in true], [said for _, said in own])
    whens = [(number, question) for number, question in pairs if question.kind == "when"]
    if whens:
        by_scores = [
            _by_moments(model, writer, question, clips[number], question_chat([question], number, own[number]), clips)
            for number, question in whens
        ]
        found["moments"] = {
            "digits": found["seen"]["when"]["accuracy"],
            "scores": score_answers([question for _, question in whens], by_scores)["when"]["accuracy"],
        }
    twins = [
        (number, record["partner"], *pair)
        for number, record in enumerate(records)
        if record.get("partner") is not None and number < record["partner"] < len(records)
        for pair in twin_questions(record, records[record["partner"]], rng)
    ]
    if twins:
        both = answers([(a, one) for a, _, one, _ in twins] + [(b, other) for _, b, _, other in twins], clips, own)
        half = len(twins)
        found["twins"] = score_twins([pair[2:] for pair in twins], list(zip(both[:half], both[half:], strict=True)))
    return found


def _asked(records: Sequence[Mapping[str, Any]], rng: np.random.Generator, wording: Any) -> list[tuple[int, Question]]:
    return [
        (number, question)
        for number, record in enumerate(records)
        for question in questions(record, rng, wording=wording, kinds=KINDS)
    ]


def _by_moments(
    model: Any, writer: ChatWriter, question: Question, clip: ClipTokens, chat: Chat, clips: Sequence[ClipTokens]
) -> str:
    """The time of the moment that the model scores highest as the answer."""
    inputs = _prompts(model, writer, [chat], clips)
    times = [written_time(float(time)) for time in clip.times]
    answers = [replace(question, answer=time).reasoned_answer for time in times]
    return times[int(answer_scores(model, writer.processor, inputs, answers).argmax())]


def caption_accuracy(true: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """Per cent of the parts of dense captions that are true: moments, when classes begin, what is seen."""
    right: dict[str, list[bool]] = {"moments": [], "begins": [], "seen": []}
    for whole, own in zip(true, said, strict=True):
        (moments, begins, seen), (told, *lists) = caption_parts(whole), caption_parts(own)
        said_moments = _MOMENTS.split(told)
        right["moments"] += [moment in said_moments for moment in _MOMENTS.split(moments)]
        right["begins"].append(begins == lists[0])
        right["seen"].append(seen == lists[1])
    return {name: 100 * float(np.mean(values)) for name, values in right.items()}


def exact_answers(chats: Sequence[Chat], answers: Sequence[str]) -> float:
    """Share of answers, per cent, that are the chats' own but for case and spaces."""
    own = [" ".join(part["text"] for part in chat.messages[-1]["content"] if part["type"] == "text") for chat in chats]
    same = [" ".join(a.lower().split()) == " ".join(b.lower().split()) for a, b in zip(own, answers, strict=True)]
    return 100 * sum(same) / max(1, len(same))
