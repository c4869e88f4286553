# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Sentences that are true of a SyncWorld clip, in several wordings, from its truth.

A `Statement` says what is true; `write` puts it into words. Two texts of one statement say the same, so the clips of
one are those of the other. Other names and patterns are kept from training (`wording="unseen"`): whether a model
understands them shows what its text encoder brought along.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .voices import CLASS_NAMES

Wording = Literal["seen", "unseen"]
KINDS = ("sounds", "heard", "silent", "order", "count", "side")
# Middle of the frame: what lies there is neither left nor right.
SIDES = (0.42, 0.58)
_NUMBERS = {1: "once", 2: "twice", 3: "three times", 4: "four times", 5: "five times", 6: "six times"}

# Names of every class: those of training, and others.
NAMES: dict[str, dict[Wording, tuple[str, ...]]] = {
    "bell": {
        "seen": ("a bell", "a chime", "a ringing bell", "chimes", "the ring of a bell"),
        "unseen": ("a church bell", "a tolling bell"),
    },
    "string": {
        "seen": ("a string", "a guitar", "a plucked string", "a string instrument", "guitar music"),
        "unseen": ("a harp", "a guitar string"),
    },
    "whistle": {
        "seen": ("a whistle", "whistling", "a tin whistle", "the whistle of a train", "someone who whistles"),
        "unseen": ("a referee's whistle", "a whistling"),
    },
    "hum": {
        "seen": ("a hum", "humming", "a low hum", "a droning motor", "the hum of a machine"),
        "unseen": ("a deep humming", "a humming engine"),
    },
    "hiss": {
        "seen": ("a hiss", "hissing", "a hissing noise", "escaping gas", "the hiss of a pipe"),
        "unseen": ("hissing steam", "the hiss of a snake"),
    },
    "bark": {
        "seen": ("a bark", "a dog", "a barking dog", "a dog's bark", "the barking of a dog"),
        "unseen": ("a hound", "a dog that barks"),
    },
    "clicks": {
        "seen": ("clicks", "clicking", "a clicking sound", "the click of a button", "a series of clicks"),
        "unseen": ("a mouse click", "repeated clicks"),
    },
    "siren": {
        "seen": ("a siren", "an alarm", "a wailing siren", "an emergency siren", "a fire alarm"),
        "unseen": ("an ambulance siren", "a police siren"),
    },
    "chirp": {
        "seen": ("a chirp", "a bird", "chirping", "a bird that chirps", "tweeting"),
        "unseen": ("a chirping bird", "birdsong"),
    },
    "buzz": {
        "seen": ("a buzz", "a bee", "buzzing", "a mosquito", "the buzz of a wasp"),
        "unseen": ("a buzzing insect", "a buzzing bee"),
    },
    "drum": {
        "seen": ("a drum", "drumming", "a drum beat", "drums", "the beat of a drum"),
        "unseen": ("a bass drum", "a beaten drum"),
    },
    "bubble": {
        "seen": ("a bubble", "bubbling", "bubbles", "gurgling", "the bubbling of a liquid"),
        "unseen": ("bubbling water", "boiling bubbles"),
    },
}
PATTERNS: dict[str, dict[Wording, tuple[str, ...]]] = {
    "sounds": {
        "seen": (
            "{all}",
            "the sound of {all}",
            "{all} can be heard",
            "there is {all}, and nothing else",
            "only {all} can be heard",
            "what sounds is {all}",
            "audio with {all} alone",
        ),
        "unseen": ("a recording of {all}", "we hear {all}", "{all} and no other sound"),
    },
    "heard": {
        "seen": (
            "{a}",
            "the sound of {a}",
            "{a} is heard",
            "one hears {a}",
            "there is {a}",
            "the noise of {a}",
            "{a} can be heard",
        ),
        "unseen": ("a recording of {a}", "we hear {a}", "listen to {a}"),
    },
    "silent": {
        "seen": (
            "{all} while {b} is silent",
            "{b} is seen in silence, and {all} is heard",
            "{b} is there but silent, and {all} can be heard",
            "{all} is heard, {b} is not",
        ),
        "unseen": ("one hears {all} but {b} makes no sound", "{all} sounds, {b} stays quiet"),
    },
    "order": {
        "seen": (
            "first {a}, then {b}",
            "{a} before {b}",
            "{a}, then {b}",
            "{b} after {a}",
            "{a} comes first and {b} second",
        ),
        "unseen": ("{a} followed by {b}", "it begins with {a}, and later comes {b}"),
    },
    "count": {
        "seen": ("{a} sounds {n}", "{n} {a} is heard", "{a} is heard {n}", "{n}: {a}"),
        "unseen": ("one hears {a} {n}", "{a}, {n}"),
    },
    "side": {
        "seen": (
            "{a} on the {side}",
            "{a} is heard, on the {side} of the image",
            "{side}, {a}",
            "{a} in the {side} part",
        ),
        "unseen": ("{a} at the {side} side", "to the {side} there is {a}"),
    },
}


@dataclass(frozen=True)
class Statement:
    """Something that is true of a clip.

    Attributes:
        kind: One of `KINDS`: exactly these classes sound; a class sounds; these sound and another is seen in silence;
            one begins before another; a class sounds so many times; a class sounds on one side.
        classes: What it is about, in order.
        value: The number of times, or the side; else empty.
        spans: Where in the clip it is true, seconds; empty where it is about the whole.
    """

    kind: str
    classes: tuple[str, ...]
    value: str = ""
    spans: tuple[tuple[float, float], ...] = ()

    @property
    def key(self) -> str:
        """Equal for statements that say the same."""
        return f"{self.kind}:{'+'.join(self.classes)}:{self.value}"

    @property
    def opposite(self) -> "Statement | None":
        """What is false where this is true, in nearly the same words; `None` for kinds that have no such."""
        if self.kind == "order":
            return Statement("order", self.classes[::-1])
        if self.kind == "side":
            return Statement("side", self.classes, "left" if self.value == "right" else "right")
        if self.kind == "silent":
            return Statement("silent", (*self.classes[1:], self.classes[0]))
        return None


def statements(record: Mapping[str, Any]) -> list[Statement]:
    """All statements of these kinds that are true of a clip.

    Args:
        record: Truth of the clip.
    """
    events: dict[str, list[Mapping[str, Any]]] = {}
    for event in sorted(record["events"], key=lambda event: event["start"]):
        events.setdefault(event["label_name"], []).append(event)
    sounding = tuple(sorted(events))
    silent = sorted(item["label_name"] for item in record["objects"] if item["label_name"] not in events)
    found = [Statement("sounds", sounding)]
    found += [Statement("silent", (*sounding, name)) for name in silent]
    for name, own in events.items():
        spans = tuple((event["start"], event["end"]) for event in own)
        found.append(Statement("heard", (name,), spans=spans))
        if len(own) in _NUMBERS:
            found.append(Statement("count", (name,), _NUMBERS[len(own)]))
        centre = np.mean([(box[0] + box[2]) / 2 for event in own for box in event["boxes"]]) / record["width"]
        if not SIDES[0] <= centre <= SIDES[1]:
            found.append(Statement("side", (name,), "left" if centre < SIDES[0] else "right", spans))
    begins = sorted(events, key=lambda name: events[name][0]["start"])  # no two begin at once, or the first is named
    for place, name in enumerate(begins):
        for later in begins[place + 1 :]:
            if events[later][0]["start"] > events[name][0]["start"]:
                found.append(Statement("order", (name, later)))
    return found


def write(statement: Statement, rng: np.random.Generator, wording: Wording = "seen") -> str:
    """Put a statement into words.

    Args:
        statement: What to say.
        rng: Chooses names and pattern, and the order of names where it means nothing.
        wording: `"seen"`: names and patterns for training; `"unseen"`: others.
    """
    names = [str(rng.choice(NAMES[name][wording])) for name in statement.classes]
    pattern = str(rng.choice(PATTERNS[statement.kind][wording]))
    together = names[:-1] if statement.kind == "silent" else names
    parts = {"all": _listed([together[place] for place in rng.permutation(len(together))])}
    parts |= {"a": names[0], "b": names[-1], "n": statement.value, "side": statement.value}
    return pattern.format(**parts)


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


assert set(NAMES) == set(CLASS_NAMES)
