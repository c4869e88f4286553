# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Questions about SyncWorld clips: right answers, words that are all known, answers that cannot be guessed."""

import re
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from cavmae_sync_hf.syncworld import CLASS_NAMES, WorldOptions, sample_scene
from cavmae_sync_hf.syncworld.questions import (
    KINDS,
    PATTERNS,
    Question,
    conversation,
    dense_captions,
    is_right,
    made_up_captions,
    moment_questions,
    question_names,
    questions,
    score_answers,
    score_twins,
    twin_questions,
    vocabulary,
    written_time,
)
from cavmae_sync_hf.syncworld.truth import truth_record

TIMES = [0.5 + i for i in range(10)]


def hand_made(events: list[tuple[str, float, float]], places: dict[str, int], index: int = 0) -> dict:
    """A clip of 10 s with moments at 0.5, 1.5, ... 9.5 s, frames 100 pixels wide, and objects at rest at `places`."""
    names = list(places)
    on = [sorted({names.index(name) for name, start, end in events if start <= time < end}) for time in TIMES]
    boxes = [[places[name] - 5, 40, places[name] + 5, 50] for name in names]
    return {
        "clip_id": f"test-{index:06d}",
        "split": "test",
        "index": index,
        "partner": index ^ 1,
        "width": 100,
        "duration": 10.0,
        "objects": [{"label_name": name} for name in names],
        "events": [{"label_name": name, "start": start, "end": end} for name, start, end in events],
        "frame_times": TIMES,
        "sounding_objects": on,
        "sounding_boxes": [[boxes[slot] for slot in slots] for slots in on],
    }


PLACES = {"bell": 20, "bark": 80, "drum": 50}
RECORD = hand_made([("bark", 4.2, 5.8), ("bell", 1.2, 2.4), ("bell", 6.3, 8.75)], PLACES)


def all_questions(record: dict, kind: str, wording: str = "seen") -> dict[str, set[str]]:
    """Every question of a kind that comes up, by what it asks about, and its answers."""
    found: dict[str, set[str]] = defaultdict(set)
    for seed in range(40):
        for one in questions(record, np.random.default_rng(seed), wording, per_kind=20, kinds=[kind]):
            about = [*one.classes, *([f"{one.time}"] if one.time is not None else [])]
            found[" ".join(about)].add(one.answer)
            assert is_right(one, one.answer)
    return dict(found)


def synthetic(preset: str, clips: int, **options) -> list[dict]:
    """Records of a world whose media are not made: boxes are those of the paths, without the wobble."""
    world = WorldOptions(preset=preset, width=48, height=48, **options)
    records = []
    for index in range(clips):
        scene = sample_scene(world, index)
        corners = [
            (item.path - item.appearance.side / 2, item.path + item.appearance.side / 2) for item in scene.objects
        ]
        boxes = np.stack([np.concatenate(pair, axis=-1).round().astype(int) for pair in corners])
        records.append(truth_record(scene, world, boxes))
    return records


@pytest.fixture(scope="module")
def world() -> list[dict]:
    return synthetic("mixed", 200)


# --- answers --------------------------------------------------------------------------------------------------------


def test_what__is_asked_where_the_answer_is_steady():
    # Not at 0.5, 8.5 and 9.5, the ends; nor at 2.5, as the bell ended 0.1 s before.
    assert all_questions(RECORD, "what") == {
        "1.5": {"bell"}, "3.5": {"nothing"}, "4.5": {"bark"}, "5.5": {"bark"}, "6.5": {"bell"}, "7.5": {"bell"}
    }  # fmt: skip
    soon = hand_made([("bark", 4.6, 6.0)], PLACES)  # it begins 0.1 s after 4.5
    assert "4.5" not in all_questions(soon, "what")


def test_what__is_not_asked_where_two_sound():
    both = hand_made([("bark", 4.2, 6.8), ("bell", 5.2, 6.8)], PLACES)
    assert set(all_questions(both, "what")) == {"1.5", "2.5", "3.5", "4.5", "7.5"}


def test_when__is_the_first_moment_of_the_first_event():
    assert all_questions(RECORD, "when") == {"bell": {"1.5s"}, "bark": {"4.5s"}}
    missed = hand_made([("bark", 4.6, 5.3), ("bark", 7.0, 9.0)], PLACES)  # no moment shows its first event
    assert all_questions(missed, "when") == {}


@pytest.mark.parametrize(
    ("answer", "right"),
    [("1.5s", True), ("at 2.2 s", True), ("0.5s", True), ("2.3s", False), ("0.1s", False), ("bell", False),
     ("1.5s or 2.2s", False), ("", False)],
)  # fmt: skip
def test_when__is_right_within_the_distance_of_two_moments(answer, right):
    asked = [questions(RECORD, np.random.default_rng(seed), per_kind=2, kinds=["when"]) for seed in range(20)]
    bell = next(one for row in asked for one in row if one.classes == ("bell",))
    assert is_right(bell, answer) is right


def test_count_order_and_silent__are_what_the_truth_says():
    assert all_questions(RECORD, "count") == {"bell": {"two"}, "bark": {"one"}}
    assert all_questions(RECORD, "order") == {"bell bark": {"yes"}, "bark bell": {"no"}}
    assert all_questions(RECORD, "silent") == {"": {"drum"}}
    assert all_questions(hand_made([("bell", 1.2, 2.4)], PLACES), "silent") == {}  # two are silent
    often = hand_made([("bell", 0.2 + i, 0.9 + i) for i in range(7)], PLACES)
    assert all_questions(often, "count") == {}  # there is no word for seven


def test_order__reads_the_same_whichever_way_it_is_asked():
    for wording in ("seen", "unseen"):
        for seed in range(30):
            (one,) = questions(RECORD, np.random.default_rng(seed), wording, kinds=["order"])
            first, second = (re.search("|".join(question_names(name)), one.text) for name in ("bell", "bark"))
            assert first and second
            said = (first.start() < second.start()) != (" after " in one.text)  # does it say that the bell is first?
            assert one.answer == ("yes" if said else "no"), one.text


def test_side__is_that_of_what_sounds_and_is_clearly_there():
    found = all_questions(RECORD, "side")
    assert found["bell 1.5"] == {"left"} and found["bark 4.5"] == {"right"} and len(found) == 6
    assert all_questions(hand_made([("drum", 1.2, 5.0)], PLACES), "side") == {}  # in the middle


def test_describe__names_all_that_sounds_in_order():
    assert all_questions(RECORD, "describe") == {"": {"bell 1.5s , bark 4.5s"}}
    (one,) = questions(RECORD, np.random.default_rng(0), kinds=["describe"])
    assert is_right(one, "Bell at 0.5s, bark at 9.5s.") and is_right(one, "bell , bark")
    for wrong in ("bark at 4.5s , bell at 1.5s", "bell", "bell , bark , bell", "bell , bark , drum", ""):
        assert not is_right(one, wrong)


def test_short_answers__are_right_in_a_sentence_but_not_among_others():
    (one,) = questions(RECORD, np.random.default_rng(0), kinds=["silent"])
    assert is_right(one, "The drum.") and not is_right(one, "the drum or the bell") and not is_right(one, "")


def test_dense_captions__tell_what_sounds_on_which_side_and_what_is_seen():
    record = hand_made([("bell", 1.2, 2.4), ("bark", 2.1, 3.9), ("drum", 5.0, 6.0)], PLACES)
    captions = dense_captions(record)
    assert captions.startswith(
        "0.5s nothing , 1.5s left first bell , 2.5s right first bark , 3.5s right bark , 4.5s nothing , "
        "5.5s middle first drum , 6.5s "
    )
    assert captions.endswith(" 9.5s nothing : bell 1.5s , bark 2.5s , drum 5.5s seen bark bell drum")
    again = hand_made([("bell", 1.2, 2.4), ("bell", 5.0, 7.0)], PLACES)
    assert " : bell 1.5s seen " in dense_captions(again)
    assert " : nothing seen " in dense_captions(hand_made([], PLACES))
    assert " 4.5s nothing , 5.5s left again bell , 6.5s left bell , 7.5s nothing ," in dense_captions(again)
    both = hand_made([("drum", 1.2, 2.8), ("bell", 1.2, 2.8)], PLACES)
    assert " 1.5s left first bell and middle first drum , 2.5s left bell and middle drum , 3.5s " in dense_captions(
        both
    )


def test_moment_questions__each_ask_about_one_moment_what_sounds_or_on_which_side():
    seen = Counter()
    sides = {"bell": "left", "bark": "right"}
    for seed in range(60):
        found = moment_questions(RECORD, np.random.default_rng(seed), 3)
        kinds = Counter(one.kind for _, one in found)
        assert set(kinds) == {"what", "side"} and max(kinds.values()) == 3
        assert len({(moment, one.kind, one.classes) for moment, one in found}) == len(found)
        for moment, one in found:
            assert one.time == TIMES[moment] and written_time(one.time) in one.text
            names = [list(PLACES)[slot] for slot in RECORD["sounding_objects"][moment]]
            heard = names[0] if names else "nothing"
            assert one.answer == (sides[one.classes[0]] if one.kind == "side" else heard)
            seen[one.answer] += 1
    assert min(seen[answer] for answer in ("nothing", "bell", "bark", "left", "right")) > 4
    loud = hand_made([(name, 0.0, 10.0) for name in ("bell", "bark")], PLACES)
    assert {one.kind for _, one in moment_questions(loud, np.random.default_rng(0), 4)} == {"side"}
    central = hand_made([("drum", 0.0, 10.0)], {"drum": 50})
    short = central | {name: central[name][:2] for name in ("frame_times", "sounding_objects", "sounding_boxes")}
    assert moment_questions(short, np.random.default_rng(0), 4) == []


def test_made_up_captions__tell_what_their_questions_ask():
    texts, asked_of = set(), Counter()
    for seed in range(40):
        told, asked = made_up_captions(RECORD, np.random.default_rng(seed), count=5)
        moments, gathered = told.split(" : ")
        said = dict(re.findall(r"(\d+\.\ds) ((?:left |middle |right )?(?:first |again )?[a-z]+)", moments))
        assert list(said) == [f"{time:.1f}s" for time in TIMES]
        begins, seen = gathered.split(" seen ")
        entries = dict(entry.split() for entry in begins.split(" , "))
        firsts = {text.split()[2]: time for time, text in said.items() if " first " in text}
        assert firsts == entries
        assert set(entries) <= set(seen.split()) and len(seen.split()) == 5
        for one in asked:
            assert is_right(one, one.answer)
            if one.kind == "when":
                assert one.reasoned_answer == f"{one.classes[0]} {entries[one.classes[0]]}"
            else:
                time, _, answer = one.reasoned_answer.partition(" ")
                assert one.kind == "what" and answer == re.sub("first |again ", "", said[time])
            asked_of[one.kind, one.answer == "nothing"] += 1
        whens = [one.classes for one in asked if one.kind == "when"]
        assert len(set(whens)) == len(whens) == len(entries)
        assert {word for one in asked for word in one.text.split()} | set(told.split()) <= set(vocabulary())
        texts.add(told)
    assert len(texts) == 40 and asked_of["what", True] > 20 and asked_of["what", False] > 60
    one_moment = {"frame_times": [0.5], "duration": 1.0}
    assert made_up_captions(one_moment, np.random.default_rng(0), count=2)[0].startswith("0.5s ")


def test_answers__may_come_behind_a_reason_that_does_not_count():
    for one in questions(RECORD, np.random.default_rng(0)):
        assert is_right(one, one.reasoned_answer), one
    (order,) = questions(RECORD, np.random.default_rng(0), kinds=["order"])
    assert re.fullmatch(rf"[a-z]+ \d\.\ds , [a-z]+ \d\.\ds : {order.answer}", order.reasoned_answer)
    (count,) = questions(RECORD, np.random.default_rng(1), kinds=["count"])
    assert len(count.reason.split()) == 2 + {"one": 1, "two": 2}[count.answer]
    wrong = order.reasoned_answer.replace(": yes", ": no") if order.answer == "yes" else f"{order.reason} yes"
    assert not is_right(order, wrong)


# --- words ----------------------------------------------------------------------------------------------------------


def test_every_word__is_in_the_vocabulary_and_new_patterns_have_no_new_word(world):
    words = set(vocabulary())
    for record in world:
        for wording in ("seen", "unseen"):
            for one in questions(record, np.random.default_rng(record["index"]), wording, per_kind=2):
                assert set(one.text.split()) | set(one.reasoned_answer.split()) <= words, one
                assert all(set(choice.split()) <= words for choice in one.choices)
        assert set(dense_captions(record).split()) <= words
    assert len(words) < 250 and "9.7s" in words and "12.0s" in set(vocabulary(12))
    assert all(word == word.lower() for word in words)


@pytest.mark.parametrize("kind", KINDS)
def test_patterns__of_the_two_wordings_are_others_of_the_same_words(kind):
    seen, unseen = (set(PATTERNS[kind][wording]) for wording in ("seen", "unseen"))
    assert len(seen) >= 3 and len(unseen) >= 2 and not seen & unseen
    known = {word for patterns in PATTERNS.values() for text in patterns["seen"] for word in text.split()}
    assert {word for text in unseen for word in text.split()} <= known


def test_names__are_those_of_one_class_alone():
    names = [word for name in CLASS_NAMES for word in question_names(name)]
    assert len(names) == len(set(names)) and not any(" " in name for name in names)


def test_questions__depend_on_the_seed_alone():
    first, second = (questions(RECORD, np.random.default_rng(5), per_kind=3) for _ in range(2))
    assert first == second and [one.kind for one in first] == sorted((one.kind for one in first), key=KINDS.index)
    assert len({(one.kind, one.classes, one.time) for one in first}) == len(first)


# --- balance --------------------------------------------------------------------------------------------------------


def test_answers__are_balanced_over_a_world(world):
    rng = np.random.default_rng(0)
    asked = [one for record in world for one in questions(record, rng)]
    answers = {kind: Counter(one.answer for one in asked if one.kind == kind) for kind in KINDS}
    scores = score_answers(asked, [one.answer for one in asked])
    assert set(scores) == set(KINDS) and all(score["accuracy"] == 100 for score in scores.values())
    assert 40 < 100 * answers["what"]["nothing"] / scores["what"]["count"] < 60
    sounding = [answers["what"][name] for name in CLASS_NAMES]
    assert min(sounding) > 0 and max(sounding) < 3 * np.mean(sounding)
    # Of all classes 42 % begin within the first two moments.
    assert scores["when"]["majority"] < 35 and scores["count"]["majority"] < 30
    assert scores["order"]["majority"] < 60 and scores["side"]["majority"] < 60
    assert scores["silent"]["majority"] < 20 and scores["describe"]["majority"] < 10
    assert set(answers["count"]) == {"one", "two", "three", "four", "five", "six"}


def test_what__cannot_be_told_from_the_time(world):
    rng = np.random.default_rng(0)
    asked = [one for record in world for one in questions(record, rng, per_kind=4, kinds=["what"])]
    times = {one.time for one in asked}
    shares = [np.mean([one.answer == "nothing" for one in asked if one.time == time]) for time in times]
    assert len(times) == 13 and min(shares) > 0.2 and max(shares) < 0.8


@pytest.mark.parametrize("options", [{"overlap": 1.0}, {"seconds": 4.0, "fps": 25}])
def test_other_worlds__have_questions_of_every_kind_and_right_answers(options):
    records = synthetic("semantic", 60, split="train", **options)
    rng = np.random.default_rng(0)
    asked = [one for record in records for one in questions(record, rng, per_kind=3)]
    assert {one.kind for one in asked} == set(KINDS) and all(is_right(one, one.answer) for one in asked)
    words = set(vocabulary(options.get("seconds", 10.0)))
    assert {word for one in asked for word in (one.text + " " + one.answer).split()} <= words


# --- twins ----------------------------------------------------------------------------------------------------------


def test_twins__are_asked_the_same_with_no_answer_for_both(world):
    rng = np.random.default_rng(0)
    pairs = []
    for record, partner in pairwise(world):
        if record["partner"] == partner["index"]:
            own = twin_questions(record, partner, rng, per_kind=2)
            back = twin_questions(partner, record, rng, per_kind=2)
            assert Counter(one.kind for one, _ in own) == Counter(one.kind for one, _ in back)
            pairs += own
    assert {one.kind for one, _ in pairs} == {"what", "when", "order", "describe"} and len(pairs) > 150
    for one, other in pairs:
        assert one.text == other.text
        assert is_right(one, one.answer) and is_right(other, other.answer)
        assert not any(is_right(one, choice) and is_right(other, choice) for choice in one.choices)
        assert not is_right(one, other.answer) and not is_right(other, one.answer)
    right = score_twins(pairs, [(one.answer, other.answer) for one, other in pairs])
    blind = score_twins(pairs, [(one.answer, one.answer) for one, _ in pairs])
    assert right["order"]["accuracy"] == 100 and right["order"]["chance"] == 25
    assert all(score["accuracy"] == 0 for score in blind.values())


def test_twins__of_two_clips_by_hand():
    one = hand_made([("bell", 1.2, 2.4), ("bark", 4.2, 5.8)], PLACES, 0)
    other = hand_made([("bark", 1.2, 2.8), ("bell", 6.2, 7.4)], PLACES, 1)
    found = defaultdict(set)
    for seed in range(30):
        for first, second in twin_questions(one, other, np.random.default_rng(seed), per_kind=9):
            found[first.kind].add((*first.classes, first.time, first.answer, second.answer))
    assert found["order"] == {("bell", "bark", None, "yes", "no"), ("bark", "bell", None, "no", "yes")}
    assert found["when"] == {("bell", None, "1.5s", "6.5s"), ("bark", None, "4.5s", "1.5s")}
    assert ("1.5", "bell", "bark") in {(str(time), *rest) for time, *rest in found["what"]}
    assert found["describe"] == {(None, "bell 1.5s , bark 4.5s", "bark 1.5s , bell 6.5s")}


def test_twins__must_be_a_pair():
    with pytest.raises(ValueError, match="test-000000 and test-000003 are no temporal pair"):
        twin_questions(RECORD, hand_made([], PLACES, 3), np.random.default_rng(0))


# --- scores and chats -----------------------------------------------------------------------------------------------


def test_scores__stand_beside_the_best_guess_and_chance():
    yes = Question("order", "?", "yes", ("yes", "no"))
    when = Question("when", "?", "1.5s", ("0.5s", "1.5s", "2.5s", "3.5s"), span=(0.0, 2.0))
    late = replace(when, answer="2.5s", span=(1.0, 3.0))
    first = Question("describe", "?", "bell 1.5s , bark 2.5s")
    asked = [
        yes,
        yes,
        replace(yes, answer="no"),
        when,
        late,
        first,
        replace(first, answer="bell 0.5s , bark 1.5s"),
    ]
    scores = score_answers(asked, ["yes", "no", "no", "0.5s", "0.5s", "bell , bark", "bark , bell"])
    assert scores["order"] == pytest.approx({"accuracy": 200 / 3, "count": 3, "majority": 200 / 3, "chance": 50})
    # 1.5s is right for both, though it is the answer of one.
    assert scores["when"] == pytest.approx({"accuracy": 50, "count": 2, "majority": 100, "chance": 50})
    assert scores["describe"] == pytest.approx({"accuracy": 50, "count": 2, "majority": 100, "chance": 0})


def test_conversation__has_the_video_once():
    asked = questions(RECORD, np.random.default_rng(0), kinds=["what", "order"])
    messages = conversation(asked, "clip.mp4")["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[0]["content"] == [{"type": "video", "path": "clip.mp4"}, {"type": "text", "text": asked[0].text}]
    assert messages[2]["content"] == [{"type": "text", "text": asked[1].text}]
    assert messages[3]["content"] == [{"type": "text", "text": asked[1].reasoned_answer}]
    told = conversation(asked, None, ("describe .", "nothing"))["messages"]
    assert [part["type"] for turn in told for part in turn["content"]] == ["text"] * 6


def test_bad_input__is_told():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="'where'; use what, when"):
        questions(RECORD, rng, kinds=["where"])
    with pytest.raises(ValueError, match="per_kind must be at least 1, got 0"):
        questions(RECORD, rng, per_kind=0)
    with pytest.raises(ValueError, match="1 questions but 0 answers"):
        score_answers([Question("order", "?", "yes", ("yes", "no"))], [])
    with pytest.raises(ValueError, match="no questions about clip.mp4"):
        conversation([], "clip.mp4")
