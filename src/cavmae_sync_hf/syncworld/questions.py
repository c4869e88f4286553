# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Questions about a SyncWorld clip with their answers, from its truth, in a small closed vocabulary.

Words are what white space separates. Every word of a question, an answer or a moment's label is one of `vocabulary`,
so that a tokenizer of whole words knows them all. Patterns of `wording="unseen"` are kept from training and made of
words of training. Answers name classes as `CLASS_NAMES` does and write times as the text of a clip does, `3.4s`.

Answers are balanced where a clip leaves a choice, as an answer that is commoner than others can be guessed;
`score_answers` tells what guessing would reach.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .captions import NAMES, SIDES, Wording
from .voices import CLASS_NAMES

KINDS = ("what", "when", "count", "order", "side", "silent", "describe")
NOTHING = "nothing"
# What sounds must not change for so long before and after a moment, seconds, to be asked about.
STEADY_SECONDS = 0.2
_NUMBERS = ("one", "two", "three", "four", "five", "six")

PATTERNS: dict[str, dict[Wording, tuple[str, ...]]] = {
    "what": {
        "seen": (
            "what sounds at {time} ?",
            "what is heard at {time} ?",
            "what can be heard at {time} ?",
            "what sound is there at {time} ?",
            "what sound is heard at {time} ?",
            "which sound is there at {time} ?",
            "which sound can be heard at {time} ?",
            "at {time} , what can be heard ?",
            "at {time} , what sound is there ?",
            "at {time} , which sound is heard ?",
            "what is it that sounds at {time} ?",
            "at {time} , what is it that sounds ?",
            "at {time} , what sound can be heard ?",
        ),
        "unseen": ("at {time} , what sounds ?", "what sound can be heard at {time} ?", "at {time} , what is heard ?"),
    },
    "when": {
        "seen": (
            "when does the {a} first sound ?",
            "when does the {a} sound first ?",
            "when is the {a} heard first ?",
            "when is the {a} first heard ?",
            "when can the {a} first be heard ?",
            "at what time does the {a} start ?",
            "at what time does the {a} first sound ?",
            "at what time is the {a} heard first ?",
            "at what time can the {a} first be heard ?",
        ),
        "unseen": ("when does the {a} start ?", "at what time is the {a} first heard ?"),
    },
    "count": {
        "seen": (
            "how often does the {a} sound ?",
            "how often does the {a} start ?",
            "how many times does the {a} sound ?",
            "how many times does the {a} start ?",
            "how many times is the {a} heard ?",
            "how many times can the {a} be heard ?",
        ),
        "unseen": ("how often is the {a} heard ?", "how often can the {a} be heard ?"),
    },
    "order": {
        "seen": (
            "does the {a} first sound before the {b} ?",
            "does the {b} first sound after the {a} ?",
            "is the {a} first heard before the {b} ?",
            "is the {b} first heard after the {a} ?",
            "does the {a} start before the {b} ?",
            "can the {b} first be heard after the {a} ?",
            "is the {a} heard first , before the {b} ?",
        ),
        "unseen": ("does the {b} start after the {a} ?", "can the {a} first be heard before the {b} ?"),
    },
    "side": {
        "seen": (
            "is the {a} left or right at {time} ?",
            "is the {a} seen left or right at {time} ?",
            "at {time} , is the {a} left or right ?",
            "at {time} , can the {a} be seen left or right ?",
            "on which side is the {a} at {time} ?",
            "on which side is the {a} seen at {time} ?",
            "at {time} , on which side is the {a} seen ?",
            "at {time} , on which side can the {a} be seen ?",
            "at {time} , is the {a} seen left or right ?",
            "where is the {a} at {time} , left or right ?",
            "at {time} , where is the {a} , left or right ?",
            "at {time} , where can the {a} be seen ?",
            "where is the {a} seen at {time} ?",
            "at {time} , where is the {a} ?",
        ),
        "unseen": ("at {time} , on which side is the {a} ?", "on which side can the {a} be seen at {time} ?"),
    },
    "silent": {
        "seen": (
            "what is seen but never sounds ?",
            "what is seen but never heard ?",
            "what can be seen but not heard ?",
            "what is there but never sounds ?",
            "what can be seen but never heard ?",
        ),
        "unseen": ("what can be seen but never sounds ?", "what is seen but not heard ?"),
    },
    "describe": {
        "seen": (
            "describe the clip .",
            "describe what is heard .",
            "describe what sounds .",
            "describe what is heard , and when .",
            "what is heard , and when ?",
            "what can be heard , and when ?",
        ),
        "unseen": ("describe what can be heard .", "describe what sounds , and when ."),
    },
}


@dataclass(frozen=True)
class Question:
    """A question about a clip, and its answer.

    Attributes:
        kind: One of `KINDS`: what sounds at a moment; when a class first sounds; how many times it does; whether one
            first sounds before another; on which side of the frame one that sounds is at a moment; which class is on
            screen and never sounds; all that sounds, in order of its first time.
        text: The question in words.
        answer: The answer in words.
        choices: All answers there are, empty for `describe`.
        classes: The classes the question names, in order.
        time: The moment it asks about, seconds.
        span: Of `when`: the first and the last time that is right, seconds.
        reason: What stands before the answer: what it follows from, such as when each of two classes first sounds, and
            a colon; empty for none.
    """

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    time: float | None = None
    span: tuple[float, float] | None = None
    reason: str = ""

    @property
    def reasoned_answer(self) -> str:
        """The answer behind what it follows from, `bell 0.9s , drum 3.4s : yes`, as models are taught to say.

        What is looked up in the captions stands behind what it is looked up by, as there: with a word between them
        small models do not learn to look it up. The side of what sounds comes before its class: both are
        looked up by the time.
        """
        return f"{self.reason} {self.answer}".lstrip()


def written_time(time: float) -> str:
    """A time as questions, answers and the text of a clip write it, `3.4s`."""
    return f"{time:.1f}s"


def question_names(name: str) -> tuple[str, str]:
    """What questions call a class: its name, and one other word, of the names that `captions` trains on."""
    return name, NAMES[name]["seen"][1].removeprefix("a ").removeprefix("an ")


def vocabulary(duration: float = 10.0) -> list[str]:
    """All words of questions, answers and moment labels, sorted.

    Args:
        duration: Of the longest clip in seconds; every tenth of a second up to it is a word, too.
    """
    texts = [pattern for kind in PATTERNS.values() for pattern in kind["seen"]]
    texts += [word for name in CLASS_NAMES for word in question_names(name)]
    texts += [NOTHING, "left", "middle", "right", "yes", "no", ",", ":", "and", "first", "again", "seen", *_NUMBERS]
    texts += [written_time(tenth / 10) for tenth in range(round(10 * duration) + 1)]
    return sorted({word for text in texts for word in text.split() if "{" not in word})


def questions(
    record: Mapping[str, Any],
    rng: np.random.Generator,
    wording: Wording = "seen",
    per_kind: int = 1,
    kinds: Sequence[str] = KINDS,
) -> list[Question]:
    """Questions about a clip, in the order of `kinds`.

    Half of `what` are about moments at which something sounds, with all classes of the clip alike; `when` passes over
    most of the classes that begin early, as every clip has one; `order` is yes as often as no; and `side` left as
    often as right, where the clip has both. One `count` a clip is more balanced than several: a class alone sounds
    often.

    Args:
        record: Truth of the clip.
        rng: Chooses what is asked and how.
        wording: `"seen"`: patterns for training; `"unseen"`: others, of the same words.
        per_kind: Most questions of each kind. There are fewer where the clip does not hold as many, or where more
            would make an answer common; no question is asked twice.
        kinds: The kinds to ask.

    Raises:
        ValueError: A kind is unknown, or `per_kind` is not positive.
    """
    _check(kinds, per_kind)
    asked = []
    for kind in kinds:
        asked += [worded(found, rng, wording) for found in _chosen(_candidates(record, kind), rng, per_kind)]
    return asked


def twin_questions(
    record: Mapping[str, Any],
    partner: Mapping[str, Any],
    rng: np.random.Generator,
    wording: Wording = "seen",
    per_kind: int = 1,
    kinds: Sequence[str] = ("what", "when", "order", "describe"),
) -> list[tuple[Question, Question]]:
    """Questions in the same words about both clips of a temporal pair, where no answer is right for both.

    Whoever does not use when things sound in each clip answers at most one of the two.

    Args:
        record: Truth of one clip.
        partner: Truth of the other.
        rng, wording, per_kind, kinds: As of `questions`; the kinds that the pair differs in.

    Returns:
        Pairs of the question to `record`'s clip and that to `partner`'s.

    Raises:
        ValueError: The clips are no temporal pair, a kind is unknown, or `per_kind` is not positive.
    """
    _check(kinds, per_kind)
    if (record["split"], record["partner"]) != (partner["split"], partner["index"]):
        raise ValueError(
            f"{record['clip_id']} and {partner['clip_id']} are no temporal pair; the partner of {record['clip_id']} "
            f"is clip {record['partner']} of its split."
        )
    pairs = []
    for kind in kinds:
        same = {(other.classes, other.time): other for other in _candidates(partner, kind)}
        found = [(one, same.get((one.classes, one.time))) for one in _candidates(record, kind)]
        found = [(one, other) for one, other in found if other is not None and _exclude(one, other)]
        for place in rng.permutation(len(found))[:per_kind]:
            one, other = found[place]
            one = worded(one, rng, wording)
            pairs.append((one, replace(other, text=one.text)))
    return pairs


def dense_captions(record: Mapping[str, Any]) -> str:
    """What sounds at each of a clip's moments, `frame_times`, on which side; when classes begin; what is on screen.

    `0.3s nothing , 0.9s left first bell , 1.5s left bell , 2.1s nothing , 2.8s left again bell : bell 0.9s seen bell
    drum`: a class where it begins to sound, for the first time or again, and where it goes on; left, right or middle.
    The times at which classes first begin are gathered in their order, as answers tell them.
    """
    times, names = record["frame_times"], [item["label_name"] for item in record["objects"]]
    begins = {name: [_first_moment(event, times) for event in own] for name, own in _events_by_class(record).items()}
    moments = []
    for time, slots, boxes in zip(times, record["sounding_objects"], record["sounding_boxes"], strict=True):
        sides = {names[slot]: _side(box, record["width"]) for slot, box in zip(slots, boxes, strict=True)}
        new = {name: "first" if time == own[0] else "again" for name, own in begins.items() if time in own}
        said = [" ".join((sides.get(name, ""), new.get(name, ""), name)) for name in sorted({*new, *sides})]
        moments.append(" ".join([written_time(time), *(" and ".join(said) or NOTHING).split()]))
    return f"{' , '.join(moments)} {_gathered(begins, names)}"


def caption_parts(captions: str) -> tuple[str, str, str]:
    """Dense captions' moments, list of when classes begin, and list of what is on screen; "" for what is missing."""
    moments, _, lists = captions.partition(" : ")
    begins, _, seen = lists.partition(" seen ")
    return moments, begins, seen


def made_up_captions(
    record: Mapping[str, Any], rng: np.random.Generator, count: int = 8, moments: bool = True
) -> tuple[str, list[Question]]:
    """Dense captions of no clip, and questions that they answer: when classes first sound, and what at a moment.

    To learn to look up what a question names. A clip has few classes, and which of their times is asked for can be
    guessed; here many sound at any times, and each is asked for once.

    Args:
        record: Truth of a clip with the moments and the duration to take.
        rng: Chooses what sounds, what is asked and how.
        count: Of the classes, and of the questions about moments.
        moments: Whether the moments are told and asked about; else it is the list of when classes begin alone.
    """
    times, hop = record["frame_times"], record["duration"] / len(record["frame_times"])
    names = rng.permutation(CLASS_NAMES)[:count].tolist()
    events: list[dict[str, Any]] = []
    slots: list[int] = []
    for time in times:
        goes_on = bool(slots) and rng.random() < 0.25
        slots.append(slots[-1] if goes_on else int(rng.integers(-(count // 2), count)))  # a third is silent
        if slots[-1] < 0:
            continue
        if goes_on:
            events[-1]["end"] = time + hop / 2
        else:
            events.append({"label_name": names[slots[-1]], "start": time - hop / 2, "end": time + hop / 2})
    centres = [(1 + 2 * side) / 6 for side in rng.integers(3, size=len(times))]
    made_up = {
        "frame_times": times,
        "duration": record["duration"],
        "width": 1.0,
        "objects": [{"label_name": name} for name in names],
        "events": events,
        "sounding_objects": [[slot] if slot >= 0 else [] for slot in slots],
        "sounding_boxes": [[[x, 0, x, 1]] if slot >= 0 else [] for x, slot in zip(centres, slots, strict=True)],
    }
    whats = _candidates(made_up, "what")
    asked = [*_candidates(made_up, "when"), *(whats[place] for place in rng.permutation(len(whats))[:count])]
    told, asked = dense_captions(made_up), [worded(asked[place], rng) for place in rng.permutation(len(asked))]
    if moments:
        return told, asked
    return told[told.index(" : ") + 1 :], [question for question in asked if question.kind == "when"]


def moment_questions(record: Mapping[str, Any], rng: np.random.Generator, per_kind: int) -> list[tuple[int, Question]]:
    """Questions each of which one moment of a clip answers: what sounds, and on which side.

    Args:
        record: Truth of the clip.
        rng: Chooses the moments, and how they are asked about.
        per_kind: Most questions of either kind.

    Returns:
        The moment's place in `frame_times`, and the question about it.
    """
    asked = questions(record, rng, per_kind=per_kind, kinds=("what", "side"))
    return [(record["frame_times"].index(question.time), question) for question in asked]


def _gathered(begins: Mapping[str, Sequence[float]], seen: Sequence[str]) -> str:
    """The end of dense captions: when classes first begin, and which are on screen."""
    told = [f"{name} {written_time(own[0])}" for name, own in begins.items()]
    return " ".join([":", " , ".join(told) or NOTHING, "seen", *sorted(set(seen))])


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer in words is right.

    What comes before a colon is a reason, which does not count. The answer must hold the right choice and no other
    one; of `when` one time, at most the distance of two moments from the true one; of `describe` the right classes in
    the right order.
    """
    answer = answer.rpartition(":")[2]
    if question.span is not None:
        times = re.findall(r"\d+(?:\.\d+)?", answer)
        return len(times) == 1 and question.span[0] <= float(times[0]) <= question.span[1]
    if question.kind == "describe":
        return _said(answer, CLASS_NAMES) == _said(question.answer, CLASS_NAMES)
    return set(_said(answer, question.choices)) == {question.answer}


def score_answers(asked: Sequence[Question], answers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Accuracy of answers for each kind of question, beside what guessing reaches.

    Args:
        asked: The questions.
        answers: One answer in words to each.

    Returns:
        For each kind in per cent `accuracy`; `majority`, of the one answer that is right most often; `chance`, of any
        of the choices, 0 where there are none; and `count`, the number of questions.

    Raises:
        ValueError: There are not as many answers as questions.
    """
    if len(asked) != len(answers):
        raise ValueError(f"There are {len(asked)} questions but {len(answers)} answers.")
    by_kind: dict[str, list[tuple[Question, str]]] = defaultdict(list)
    for question, answer in zip(asked, answers, strict=True):
        by_kind[question.kind].append((question, answer))
    scores = {}
    for kind, rows in by_kind.items():
        choices = {choice for question, _ in rows for choice in question.choices}
        guesses = [sum(is_right(question, choice) for question, _ in rows) for choice in choices]
        if not choices:
            guesses = list(Counter(_said(question.answer, CLASS_NAMES) for question, _ in rows).values())
        scores[kind] = {
            "accuracy": 100 * float(np.mean([is_right(question, answer) for question, answer in rows])),
            "count": len(rows),
            "majority": 100 * max(guesses) / len(rows),
            "chance": 100 * float(np.mean([_chance(question) for question, _ in rows])),
        }
    return scores


def score_twins(
    pairs: Sequence[tuple[Question, Question]], answers: Sequence[tuple[str, str]]
) -> dict[str, dict[str, float]]:
    """How often both answers to a pair of `twin_questions` are right, for each kind.

    Args:
        pairs: The questions.
        answers: Two answers in words to each pair.

    Returns:
        For each kind in per cent `accuracy`; `chance`, of any two of the choices, 0 where there are none; and `count`,
        the number of pairs. One and the same answer to both is never right.

    Raises:
        ValueError: There are not as many answers as pairs.
    """
    if len(pairs) != len(answers):
        raise ValueError(f"There are {len(pairs)} pairs of questions but {len(answers)} pairs of answers.")
    by_kind: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for (one, other), (first, second) in zip(pairs, answers, strict=True):
        both = is_right(one, first) and is_right(other, second)
        by_kind[one.kind].append((both, _chance(one) * _chance(other)))
    scores = {}
    for kind, rows in by_kind.items():
        right, chance = np.mean(np.array(rows, float), axis=0)
        scores[kind] = {"accuracy": 100 * float(right), "count": len(rows), "chance": 100 * float(chance)}
    return scores


def conversation(
    asked: Sequence[Question], video: str | None, captions: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Questions about one clip and their answers as a row of a chat data set.

    The video comes with the first question. Later answers may follow from earlier ones (`describe` tells the order):
    ask one question a row where that must not be.

    Args:
        asked: The questions.
        video: The clip's file; none for captions alone.
        captions: The first two turns: a prompt, and what is said of every moment of the clip (`dense_captions`).

    Raises:
        ValueError: There are no questions.
    """
    turns = [(question.text, question.reasoned_answer) for question in asked]
    if captions is not None:
        turns.insert(0, captions)
    if not turns:
        raise ValueError(f"There are no questions about {video or 'these captions'}; leave the chat out.")
    messages: list[dict[str, Any]] = []
    for said, answer in turns:
        media = [] if messages or video is None else [{"type": "video", "path": video}]
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": said}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return {"messages": messages}


def _said(answer: str, words: Sequence[str]) -> tuple[str, ...]:
    """Those of some words that an answer holds, in its order; punctuation and capitals do not matter."""
    return tuple(word for word in re.findall(r"\w+", answer.lower()) if word in words)


def _check(kinds: Sequence[str], per_kind: int) -> None:
    """Refuse kinds that there are not, and to ask nothing."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"Unknown kind of question {unknown[0]!r}; use {', '.join(KINDS)}.")
    if per_kind < 1:
        raise ValueError(f"per_kind must be at least 1, got {per_kind}.")


def _side(box: Sequence[float], width: int) -> str:
    """`left`, `middle` or `right` of the frame."""
    centre = (box[0] + box[2]) / 2 / width
    return "middle" if SIDES[0] <= centre <= SIDES[1] else "left" if centre < SIDES[0] else "right"


def _candidates(record: Mapping[str, Any], kind: str) -> list[Question]:
    """All questions of a kind that can be asked about a clip, without words."""
    times = record["frame_times"]
    names = [item["label_name"] for item in record["objects"]]
    events = _events_by_class(record)
    onsets = {name: own[0]["start"] for name, own in events.items()}  # in the order in which they begin
    begins = {name: [written_time(_first_moment(event, times)) for event in own] for name, own in events.items()}
    hop = record["duration"] / len(times)
    if kind == "what":
        edges = [event[edge] for event in record["events"] for edge in ("start", "end")]
        # Clips begin with silence, and end with more of it: there the time alone would tell the answer.
        inner = list(zip(times, record["sounding_objects"], record["sounding_boxes"], strict=True))[1:-2]
        choices = (*CLASS_NAMES, NOTHING)
        return [
            Question(
                kind,
                "",
                names[slots[0]] if slots else NOTHING,
                choices,
                time=time,
                reason=" ".join([written_time(time), *(_side(box, record["width"]) for box in boxes)]),
            )
            for time, slots, boxes in inner
            if len(slots) < 2 and all(abs(edge - time) >= STEADY_SECONDS for edge in edges)
        ]
    if kind == "when":
        choices = tuple(written_time(time) for time in times)
        late = hop + 0.05  # a written time is off by up to half of its last digit
        return [
            Question(
                kind,
                "",
                written_time(moment),
                choices,
                (name,),
                span=(onsets[name] - late, onsets[name] + late),
                reason=name,
            )  # fmt: skip
            for name, own in events.items()
            if own[0]["start"] <= (moment := _first_moment(own[0], times)) < own[0]["end"]
        ]
    if kind == "count":
        counts = [(name, len(own)) for name, own in events.items() if len(own) <= len(_NUMBERS)]
        return [
            Question(kind, "", _NUMBERS[count - 1], _NUMBERS, (name,), reason=f"{name} {' '.join(begins[name])} :")
            for name, count in counts
        ]
    if kind == "order":
        return [
            Question(
                kind,
                "",
                "yes" if onsets[a] < onsets[b] else "no",
                ("yes", "no"),
                (a, b),
                reason=f"{a} {begins[a][0]} , {b} {begins[b][0]} :",
            )  # fmt: skip
            for a in events
            for b in events
            if abs(onsets[a] - onsets[b]) >= hop / 2
        ]
    if kind == "side":
        return [
            Question(kind, "", side, ("left", "right"), (names[slot],), time=time, reason=written_time(time))
            for time, slots, boxes in zip(times, record["sounding_objects"], record["sounding_boxes"], strict=True)
            for slot, box in zip(slots, boxes, strict=True)
            if (side := _side(box, record["width"])) != "middle"
        ]
    if kind == "silent":
        silent = sorted({name for name in names if name not in events})
        return [Question(kind, "", silent[0], CLASS_NAMES)] if len(silent) == 1 else []
    if not events or len(set(onsets.values())) < len(onsets):  # nothing to say, or no one order to say it in
        return []
    return [Question(kind, "", " , ".join(f"{name} {own[0]}" for name, own in begins.items()))]


def _events_by_class(record: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The events of each class that sounds, by their starts; classes in the order in which they begin."""
    events: dict[str, list[Mapping[str, Any]]] = {}
    for event in sorted(record["events"], key=lambda event: event["start"]):
        events.setdefault(event["label_name"], []).append(event)
    return events


def _first_moment(event: Mapping[str, Any], times: Sequence[float]) -> float:
    """The first moment in an event, or the one nearest to its start where it has none."""
    inside = [time for time in times if event["start"] <= time < event["end"]]
    return inside[0] if inside else min(times, key=lambda time: abs(time - event["start"]))


def _chosen(candidates: Sequence[Question], rng: np.random.Generator, most: int) -> list[Question]:
    """Up to `most` of the questions of a kind that can be asked, so that its answers are balanced."""
    left = [candidates[place] for place in rng.permutation(len(candidates))]
    if not left:
        return []
    kind = left[0].kind
    if kind == "when":
        # Every clip has a class that begins early, and few have one that begins late.
        shares = [(one.choices.index(one.answer) + 1) / (len(one.choices) / 2) for one in left]
        return [one for one, share in zip(left, shares, strict=True) if rng.random() < share][:most]
    if kind not in ("what", "order", "side"):
        return left[:most]
    chosen: list[Question] = []
    halves = {"what": NOTHING, "order": "yes", "side": "left"}
    turn = bool(rng.integers(2))
    while left and len(chosen) < most:
        fitting = [one for one in left if (one.answer == halves[kind]) == turn]
        if not fitting and kind == "what":
            break
        pool = fitting or left
        # A class that sounds for long has more moments than others: the class is drawn first, then the moment.
        used = Counter(one.answer for one in chosen)
        fewest = min(used[one.answer] for one in pool)
        answer = str(rng.choice(sorted({one.answer for one in pool if used[one.answer] == fewest})))
        chosen.append(next(one for one in pool if one.answer == answer))
        left.remove(chosen[-1])
        turn = not turn
    return chosen


def worded(question: Question, rng: np.random.Generator, wording: Wording = "seen") -> Question:
    """The question in words of a wording, drawn by `rng`."""
    names = [str(rng.choice(question_names(name))) for name in question.classes]
    parts = dict(zip("ab", names, strict=False))
    if question.time is not None:
        parts["time"] = written_time(question.time)
    return replace(question, text=str(rng.choice(PATTERNS[question.kind][wording])).format(**parts))


def _exclude(one: Question, other: Question) -> bool:
    """Whether no answer is right for both of two questions in the same words."""
    if one.span is not None and other.span is not None:
        return one.span[1] < other.span[0] or other.span[1] < one.span[0]
    return not is_right(other, one.answer)


def _chance(question: Question) -> float:
    """The share of the choices that is right."""
    return float(np.mean([is_right(question, choice) for choice in question.choices])) if question.choices else 0.0
