# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Sentences of SyncWorld clips: true, in words of their wording, with opposites that are false."""

import numpy as np
import pytest

from cavmae_sync_hf.syncworld.captions import KINDS, NAMES, PATTERNS, Statement, statements, write


def event(name: str, start: float, end: float, x: int = 10) -> dict:
    return {"label_name": name, "start": start, "end": end, "boxes": [[x, 0, x + 10, 10]]}


RECORD = {
    "width": 100,
    "objects": [{"label_name": name} for name in ("bell", "bark", "drum")],
    "events": [event("bark", 4.0, 5.0, 80), event("bell", 1.0, 2.0), event("bell", 6.0, 7.5)],
}


def test_statements__are_what_the_truth_says():
    found = {(one.kind, one.classes, one.value) for one in statements(RECORD)}
    assert found == {
        ("sounds", ("bark", "bell"), ""),
        ("silent", ("bark", "bell", "drum"), ""),
        ("heard", ("bell",), ""),
        ("heard", ("bark",), ""),
        ("count", ("bell",), "twice"),
        ("count", ("bark",), "once"),
        ("side", ("bell",), "left"),
        ("side", ("bark",), "right"),
        ("order", ("bell", "bark"), ""),
    }
    spans = {one.classes: one.spans for one in statements(RECORD) if one.kind == "heard"}
    assert spans[("bell",)] == ((1.0, 2.0), (6.0, 7.5))


def test_opposites__are_false_of_the_clip():
    true = {one.key for one in statements(RECORD)}
    opposites = [one.opposite for one in statements(RECORD) if one.opposite is not None]
    assert len(opposites) == 4 and not {one.key for one in opposites} & true


@pytest.mark.parametrize("kind", KINDS)
def test_wordings__share_no_pattern_and_say_every_part(kind):
    classes = {"sounds": ("bell", "drum"), "order": ("bell", "drum"), "silent": ("bell", "drum")}.get(kind, ("bell",))
    value = {"count": "twice", "side": "left"}.get(kind, "")
    statement = Statement(kind, classes, value)
    texts = {
        wording: {write(statement, np.random.default_rng(seed), wording) for seed in range(60)}
        for wording in ("seen", "unseen")
    }
    assert not texts["seen"] & texts["unseen"] and len(texts["seen"]) > 3
    assert not set(PATTERNS[kind]["seen"]) & set(PATTERNS[kind]["unseen"])
    for wording, written in texts.items():
        for text in written:
            assert value in text
            assert all(any(name in text for name in NAMES[part][wording]) for part in classes)


def test_order__of_words_is_that_of_the_statement():
    texts = {write(Statement("order", ("bell", "drum")), np.random.default_rng(seed)) for seed in range(60)}
    for text in texts:
        place = {
            part: min(text.find(name) for name in NAMES[part]["seen"] if name in text) for part in ("bell", "drum")
        }
        assert (place["bell"] < place["drum"]) != (" after " in text), text


def test_writing__depends_on_the_seed_alone():
    first, second = ([write(one, np.random.default_rng(5)) for one in statements(RECORD)] for _ in range(2))
    assert first == second
