# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Searching by words: the moment that a text means, beside audio, in an order, and what cannot be asked in words."""

import json
import re

import numpy as np
import pytest
import torch

from cavmae_sync_hf import CavMaeSyncProcessor, ModelError, QueryError, SearchError, score_film, search
from cavmae_sync_hf.model.errors_cavmae_sync import InferenceError
from cavmae_sync_hf.search import IndexSettings, SearchFilters, search_moments
from cavmae_sync_hf.search.alignment import align_sequence
from cavmae_sync_hf.search.approximate import index_config
from cavmae_sync_hf.search.querying import embed_words, join_words, split_text
from helpers.clips import write_clip
from helpers.indexes import HALF, HOP, make_store, random_vectors, vector_query
from helpers.words import save, teach, text_model

WIDTH = 32
DOG, BELL = "a dog barks", "the bell rings"
# Far from each other and from all moments made at random.
DOG_VECTOR, BELL_VECTOR = np.eye(WIDTH, dtype=np.float32)[:2]


@pytest.fixture(scope="module")
def words():
    model, processor = text_model()
    teach(model, processor, {DOG: torch.from_numpy(DOG_VECTOR), BELL: torch.from_numpy(BELL_VECTOR)})
    return model, processor


def clip(seed: int, count: int = 40, **marks) -> dict:
    """Random moments; `audio={5: vector}` and `video` put vectors at some."""
    made = {}
    for number, side in enumerate(("audio", "video")):
        vectors = random_vectors(count, seed + 100 * number, WIDTH)
        vectors[:, :2] = 0  # nothing of a dog or a bell
        for place, vector in marks.get(side, {}).items():
            vectors[place] = vector
        made[side] = vectors
    return made


def index_of(words, place, clips, name=""):
    model, processor = words
    settings = IndexSettings.of(model.base_model, processor, HOP)
    return make_store(place, clips, IndexSettings(**(vars(settings) | {"model": str(name)})))


@pytest.fixture(scope="module")
def store(words, tmp_path_factory):
    orders = {
        "first": {"audio": {5: DOG_VECTOR, 11: BELL_VECTOR}, "video": {5: DOG_VECTOR, 11: BELL_VECTOR}},
        "second": {"audio": {5: BELL_VECTOR, 11: DOG_VECTOR}, "video": {5: BELL_VECTOR, 11: DOG_VECTOR}},
    }
    clips = {name: clip(seed, **marks) for seed, (name, marks) in enumerate(orders.items())}
    clips["heard"] = clip(3, audio={20: DOG_VECTOR})
    clips["seen"] = clip(4, video={30: DOG_VECTOR}) | {"loudness": np.full(40, -90.0)}
    clips["mute"] = clip(5, video={8: DOG_VECTOR}) | {"audio": None}
    return index_of(words, tmp_path_factory.mktemp("index") / "index", clips)


def found(result) -> dict[tuple[str, float], float]:
    return {(hit.path, hit.start): hit.score for hit in result}


def test_words__find_what_is_heard_and_seen(words, store):
    result = search(store, None, *words, text=DOG, top=5)

    assert found(result) == pytest.approx(
        {("first", 2.5): 1, ("second", 5.5): 1, ("mute", 4.0): 1, ("heard", 10.0): 0.5, ("seen", 15.0): 0.5},
        abs=HALF,
    )
    assert (result.by, result.pairs, result.exact) == ("text", ("text -> audio", "text -> video"), True)
    assert result.query == '"a dog barks"' and result.to_dict()["texts"] == [DOG]
    json.dumps(result.to_dict())


@pytest.mark.parametrize(
    ("find", "names"), [("audio", {"first", "second", "heard"}), ("video", {"first", "second", "seen", "mute"})]
)
def test_words__are_compared_with_what_is_asked_for(words, store, find, names):
    result = search(store, None, *words, text=DOG, find=find, top=9)

    assert {hit.path for hit in result if hit.score > 0.9} == names
    assert result.pairs == (f"text -> {find}",)
    assert find == "video" or "seen" not in {hit.path for hit in result}  # it is silent


@pytest.mark.parametrize(("bias", "certain", "doubtful"), [(3.0, "seen", "heard"), (-3.0, "heard", "seen")])
def test_words__count_as_the_model_learned_of_them(words, store, bias, certain, doubtful):
    model, processor = words
    share = 1 / (1 + np.exp(-3.0))
    with torch.no_grad():
        model.video_gate.bias.fill_(bias)
    try:
        result = search(store, None, model, processor, text=DOG, top=5)
    finally:
        torch.nn.init.zeros_(model.video_gate.bias)

    scores = {hit.path: hit.score for hit in result}
    assert scores[certain] == pytest.approx(share, abs=HALF) and scores[doubtful] == pytest.approx(1 - share, abs=HALF)
    assert scores["mute"] == pytest.approx(1, abs=HALF)  # what there is counts alone


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"{DOG}, then {BELL}", "first"),
        (f"{BELL} followed by {DOG}", "second"),
        (f"{BELL} and then {DOG}.", "second"),
        ([DOG, BELL], "first"),
    ],
)
def test_then__finds_the_order(words, store, text, name):
    result = search(store, None, *words, text=text, top=2)

    assert (result[0].path, result[0].start, result[0].end) == (name, 2.5, 6.0)
    assert result[0].score == pytest.approx(1, abs=HALF) and result[1].score < 0.75
    assert result.query_windows == result[0].windows == 2 and ", then " in result.query


def test_then__is_a_matter_of_seconds(words, store):
    near = search(store, None, *words, text=[DOG, BELL], then_within=3.0, top=1)
    nearer = search(store, None, *words, text=[DOG, BELL], then_within=2.5, top=1)

    assert near[0].score == pytest.approx(1, abs=HALF) and nearer[0].score < 0.75


def test_then__hits_do_not_overlap(words, store):
    result = search(store, None, *words, text=[DOG, BELL], top=50)

    spans = sorted((hit.path, hit.start, hit.end) for hit in result)
    assert len(spans) > 10
    assert all(a[0] != b[0] or a[2] <= b[1] + 1e-9 for a, b in zip(spans, spans[1:], strict=False))


@pytest.mark.parametrize(("parts", "most"), [(1, 3), (2, 1), (2, 4), (3, 2), (3, 7)])
def test_align_sequence__is_the_best_of_all_ways(parts, most):
    generator = np.random.default_rng(parts * 10 + most)
    clips, windows = np.repeat([7, 3, 5], [9, 1, 12]), np.concatenate([np.arange(9), [4], np.arange(12)])
    kept = generator.permutation(np.flatnonzero(~((clips == 5) & np.isin(windows, [3, 4, 5]))))
    clips, windows = clips[kept], windows[kept]
    similarity = generator.standard_normal((parts, len(kept))).astype(np.float32)
    similarity[:, generator.random(len(kept)) < 0.1] = np.nan
    place = {(int(c), int(w)): n for n, (c, w) in enumerate(zip(clips, windows, strict=True))}

    def ways(clip, last, part):
        """Sum and first moment of each way in which parts up to this one end here."""
        score = similarity[part, place[clip, last]] if (clip, last) in place else np.nan
        if np.isnan(score):
            return
        if not part:
            yield score, last
            return
        for gap in range(1, most + 1):
            yield from ((score + total, first) for total, first in ways(clip, last - gap, part - 1))

    made = align_sequence(similarity, clips, windows, most=most)

    expected = {
        (clip, last): max(ways(clip, last, parts - 1)) for clip, last in place if any(ways(clip, last, parts - 1))
    }
    lasts = (made.firsts + made.lengths - 1).tolist()
    assert sorted(zip(made.clips.tolist(), lasts, strict=True)) == sorted(expected)
    for clip, last, first, score in zip(made.clips.tolist(), lasts, made.firsts, made.scores, strict=True):
        assert score == pytest.approx(expected[clip, last][0] / parts, abs=1e-5)
        assert first == expected[clip, last][1]
    assert set(made.counts.tolist()) <= {parts}


def test_words_beside_audio__share_the_score(words, store):
    query = vector_query(random_vectors(40, 3, WIDTH)[18:21])
    text = embed_words([DOG], *words, hop=HOP)
    every = {"find": "audio", "top": 999, "filters": SearchFilters(min_gap=0)}

    alone = found(search_moments(store, query, **every))
    joined = search_moments(store, join_words(query, text, 0.25), **every)
    said = found(search_moments(store, join_words(query, text, 1.0), **every))
    unsaid = found(search_moments(store, join_words(query, text, 0.0), **every))

    assert unsaid == pytest.approx(alone, abs=1e-6)
    assert found(joined) == pytest.approx(
        {key: 0.75 * alone[key] + 0.25 * said[key] for key in found(joined)}, abs=1e-6
    )
    assert joined.pairs == ("audio -> audio", "text -> audio")
    # One of three moments is a dog.
    assert said["heard", 9.0] == pytest.approx(1 / 3, abs=HALF)


def test_whole_clips__by_words(words, store):
    result = search(store, None, *words, text=DOG, whole_clips=True)

    means = {
        name: np.mean(
            [
                vectors.mean(axis=0)[0] / np.linalg.norm(vectors.mean(axis=0))
                for vectors in (made["audio"], made["video"])
            ]
        )
        for name, made in {"heard": clip(3, audio={20: DOG_VECTOR}), "seen": clip(4, video={30: DOG_VECTOR})}.items()
    }
    scores = {hit.path: hit.score for hit in result}
    assert len(scores) == 5
    assert {name: scores[name] for name in means} == pytest.approx(means, abs=HALF)


def test_approximate_index__agrees(words, tmp_path):
    clips = {f"{number}": clip(number, 80, audio={7 + number: DOG_VECTOR}) for number in range(20)}
    clips["both"] = clip(50, 80, audio={50: DOG_VECTOR}, video={50: DOG_VECTOR})
    large = index_of(words, tmp_path / "index", clips)
    large.build_index(index_config(large.count()), large.count())

    quick = search(large, None, *words, text=DOG, top=1)
    exact = search(large, None, *words, text=DOG, top=1, exact=True)

    assert not quick.exact and exact.exact
    assert (quick[0].path, quick[0].start) == (exact[0].path, exact[0].start) == ("both", 25.0)
    assert quick[0].score == pytest.approx(exact[0].score, abs=1e-6)
    assert search(large, None, *words, text=[DOG, DOG], top=1).exact
    with pytest.raises(QueryError, match="looked for in all moments. Leave out exact."):
        search(large, None, *words, text=[DOG, DOG], exact=False)


@pytest.fixture(scope="module")
def projected(words):
    """Texts, audio and frames meet in a space of 20 values, of which the index knows nothing."""
    model, processor = text_model(words[0].av_model, seed=2, projection_dim=20)
    with torch.no_grad():
        model.video_gate.bias.fill_(1.0)
    return model, processor


def told_by_model(projected, clips, text) -> dict[tuple[str, float], float]:
    """Cosines as the model with text itself computes them."""
    model, processor = projected
    with torch.no_grad():
        asked = model.get_text_features(**processor(text=[text], return_tensors="pt")).pooler_output
        share = float(model.video_gate(asked).sigmoid())
        scores = {}
        for path, made in clips.items():
            alike = {
                side: (model.project(side, torch.from_numpy(made[side])) @ asked[0]).numpy()
                for side in ("audio", "video")
                if made[side] is not None
            }
            mixed = alike["video"]
            if "audio" in alike:
                mixed = share * alike["video"] + (1 - share) * alike["audio"]
            scores |= {(path, number * HOP): float(score) for number, score in enumerate(mixed)}
    return scores


def test_projection__is_applied_to_what_the_index_holds(projected, tmp_path):
    clips = {name: clip(seed) for seed, name in enumerate(("one", "two"))}
    clips["mute"] = clip(5) | {"audio": None}
    plain = index_of(projected, tmp_path / "index", clips)
    every = {"top": 999, "filters": SearchFilters(min_gap=0)}

    scores = found(search(plain, None, *projected, text=DOG, **every))

    assert scores == pytest.approx(told_by_model(projected, clips, DOG), abs=1e-5)
    assert {hit.path for hit in search(plain, None, *projected, text=DOG, whole_clips=True)} == clips.keys()
    # Beside audio each is compared in its own space.
    query = vector_query(clips["one"]["audio"][4:6])
    text = embed_words([DOG], *projected, hop=HOP)
    alone = found(search_moments(plain, query, find="video", **every))
    said = found(search_moments(plain, join_words(query, text, 1.0), find="video", **every))
    half = found(search_moments(plain, join_words(query, text, 0.5), find="video", **every))
    assert half == pytest.approx({key: (alone[key] + said[key]) / 2 for key in half}, abs=1e-5)


def test_projection__approximate_index_finds_what_all_moments_have(projected, tmp_path):
    clips = {f"{number}": clip(number, 300) for number in range(20)}
    large = index_of(projected, tmp_path / "index", clips)
    large.build_index(index_config(large.count()), large.count())

    quick, exact = (search(large, None, *projected, text=DOG, top=10, exact=exact) for exact in (None, True))

    assert not quick.exact
    # The index is turned at random when it is built, and random moments are the hardest to tell apart.
    assert len(found(quick).keys() & found(exact).keys()) >= 9
    told = told_by_model(projected, clips, DOG)
    for hits in (quick, exact):
        assert found(hits) == pytest.approx({key: told[key] for key in found(hits)}, abs=1e-5)


def test_model__is_the_one_that_the_index_remembers(words, tmp_path):
    folder = save(*words, tmp_path / "words")
    plain = tmp_path / "plain"
    words[0].av_model.save_pretrained(plain)
    CavMaeSyncProcessor.from_config(words[0].config.av_config).save_pretrained(plain)
    clips = {"heard": clip(3, audio={20: DOG_VECTOR})}
    index_of(words, tmp_path / "index", clips, folder)
    index_of(words, tmp_path / "older", clips, plain)

    assert search(tmp_path / "index", text=DOG, top=1)[0].start == 10.0
    with pytest.raises(
        SearchError, match=r"has no text encoder.*Pass model='MODEL' to name a model with text that has"
    ):
        search(tmp_path / "older", text=DOG)
    # An index made before there were words.
    assert search(tmp_path / "older", text=DOG, model=folder, top=1)[0].start == 10.0
    with pytest.raises(ModelError, match="has no text encoder; name a model with text: `cavmae-sync text`"):
        search(tmp_path / "older", text=DOG, model=plain)


def other_model(words):
    return text_model(seed=1)


def without_tokenizer(words):
    return words[0], CavMaeSyncProcessor.from_config(words[0].config.av_config)


def without_text(words):
    return words[0].av_model, words[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": ""}, "The text is ''; say in words what is to be found"),
        ({"text": " , then "}, "say in words"),
        ({"text": []}, r"The text is \[\]; say in words"),
        ({"text": [DOG, 5]}, "say in words"),
        ({"text": "a dog " * 20}, r"The text 'a dog a dog .*\.\.\.' has 42 tokens, and .* takes 32 at most"),
        ({"text": None}, "nothing to search for; pass a file, or text='a dog barks'"),
        ({"start": 1.0}, "Words alone have no start.*Leave out start."),
        ({"by": "audio"}, "Words alone have .*Leave out by."),
        ({"then_within": 0}, "then_within is 0; it must be"),
        ({"text": [DOG, BELL], "whole_clips": True}, "does not know what comes first; search for moments"),
        ({"words": other_model}, "was made with another model .* use that model, or make another index"),
        ({"words": without_tokenizer}, r"The processor has no tokenizer; load the one .*CavMaeSyncProcessor\("),
        ({"words": without_text}, r"A CavMaeSyncModel has no text encoder; load .*load_model\(folder, use='text'\)"),
    ],
)  # fmt: skip
def test_what_words_cannot_ask__is_refused_with_what_would_work(words, store, change, says):
    change = {"text": DOG} | change
    model, processor = change.pop("words", lambda words: words)(words)

    with pytest.raises(SearchError, match=says):
        search(store, None, model, processor, **change)


def test_joining__refuses_orders_and_weights(words):
    query = vector_query(random_vectors(3, 3, WIDTH))

    with pytest.raises(QueryError, match="cannot be joined with it; search by one text"):
        join_words(query, embed_words([DOG, BELL], *words, hop=HOP), 0.5)
    with pytest.raises(QueryError, match="text_weight is 2; it must be from 0 to 1"):
        join_words(query, embed_words([DOG], *words, hop=HOP), 2)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a dog barks, then a door slams", "a dog barks|a door slams"),
        ("A dog barks and then a door slams.", "A dog barks|a door slams"),
        ("rain; followed by thunder, then rain", "rain|thunder|rain"),
        ("a dog then a cat", "a dog|a cat"),
        ("now and then a bird sings", "now and then a bird sings"),
        ("strengthen the thenar, athens", "strengthen the thenar, athens"),
    ],
)
def test_split_text__at_what_says_an_order(text, parts):
    assert split_text(text) == tuple(parts.split("|"))
    assert not re.search(r"[,;.]$", split_text(text)[0])


@pytest.mark.parametrize(
    ("text", "best"),
    [(DOG, "dog"), (BELL, "bell"), (f"{DOG}, not {BELL}", "dog"), (f"{BELL} not {DOG}", "bell")],
)
def test_recordings_for_a_film__are_those_that_words_tell_of(words, tmp_path, text, best):
    heard = {"dog": DOG_VECTOR, "bell": BELL_VECTOR, "both": (DOG_VECTOR + BELL_VECTOR) / np.sqrt(2)}
    clips = {name: clip(seed, audio={5: vector}) for seed, (name, vector) in enumerate(heard.items())}
    store = index_of(words, tmp_path / "index", clips)
    film = write_clip(tmp_path / "film.mp4", seconds=1, audio=False)
    tried: dict[str, Exception] = {}
    with pytest.raises(InferenceError, match="nothing in it asks"):  # as their files are not there
        score_film(
            film, store, *words, text=text, text_weight=1.0, min_fit=-99.0, on_error=tried.setdefault, change=99.0
        )
    assert best in next(iter(tried))


def test_recordings_for_a_film__need_words_beside_what_they_are_not(words, store, tmp_path):
    film = write_clip(tmp_path / "film.mp4", seconds=1, audio=False)
    with pytest.raises(QueryError):
        score_film(film, store, *words, text=f"not {DOG}")
