"""Searching by moments: exact along diagonals, right at the borders of files, filtered, and never twice the same."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor, MediaError, SearchError
from cavmae_sync_hf.search import MomentStore, SearchFilters, embed_query, search_clips, search_moments
from cavmae_sync_hf.search import alignment as alignment_module
from cavmae_sync_hf.search.alignment import align, best_apart
from cavmae_sync_hf.search.approximate import index_config
from cavmae_sync_hf.search.loudness import window_loudness
from cavmae_sync_hf.search.querying import MAX_QUERY_WINDOWS
from helpers.clips import noise, tone, write_clip
from helpers.little_index import HOP, little_query, little_settings, make_store, random_vectors, unit
from helpers.tiny import tiny_config

# Half precision resolves cosines near 1 to 2 ** -11.
HALF = 1e-3


def alignments_by_hand(similarity, clips, windows, present, min_pairs):
    """Every diagonal, pair by pair."""
    found = {}
    place = {
        (int(clip), int(window)): column for column, (clip, window) in enumerate(zip(clips, windows, strict=True))
    }
    queries = len(similarity)
    for clip in sorted(set(clips.tolist())):
        own = [window for number, window in place if number == clip]
        for first in range(min(own) - queries + 1, max(own) + 1):
            values = [
                similarity[i, place[clip, first + i]]
                for i in range(queries)
                if present[i] and (clip, first + i) in place and not np.isnan(similarity[i, place[clip, first + i]])
            ]
            if len(values) >= min_pairs:
                found[clip, first] = (sum(values) / present.sum(), len(values))
    return found


@pytest.mark.parametrize("block", [1 << 24, 40])
@pytest.mark.parametrize("queries", [1, 2, 5, 9])
@pytest.mark.parametrize("min_pairs", [1, 3])
def test_align__is_every_diagonal_pair_by_pair(queries, min_pairs, block, monkeypatch):
    monkeypatch.setattr(alignment_module, "_BLOCK_VALUES", block)
    generator = np.random.default_rng(queries)
    clips = np.repeat([7, 3, 5, 4], [6, 1, 30, 12])
    windows = np.concatenate([np.arange(6), [0], np.arange(30), np.arange(12)])
    kept = np.flatnonzero(~((clips == 5) & np.isin(windows, [4, 5, *range(12, 26)])))  # holes, one longer than a query
    kept = generator.permutation(kept)
    clips, windows = clips[kept], windows[kept]
    similarity = generator.standard_normal((queries, len(kept))).astype(np.float32)
    similarity[:, generator.random(len(kept)) < 0.1] = np.nan
    present = np.ones(queries, bool)
    present[queries // 3] = queries < 3

    found = align(similarity, clips, windows, present=present, min_pairs=min_pairs)

    expected = alignments_by_hand(similarity, clips, windows, present, min_pairs)
    places = list(zip(found.clips.tolist(), found.firsts.tolist(), strict=True))
    assert sorted(places) == sorted(expected)
    np.testing.assert_allclose(found.scores, [expected[place][0] for place in places], atol=1e-6)
    assert found.counts.tolist() == [expected[place][1] for place in places]


def test_align__of_nothing():
    found = align(np.zeros((3, 0), np.float32), np.zeros(0), np.zeros(0))

    assert len(found.scores) == 0


def test_best_apart__suppresses_the_neighbours_of_better_ones():
    scores = np.array([0.9, 0.95, 0.8, 0.7, 0.93])
    groups = np.array([0, 0, 0, 0, 1])
    times = np.array([1.0, 1.5, 2.5, 9.0, 1.5])

    assert best_apart(scores, groups, times, top=10, min_gap=1.0) == [1, 4, 2, 3]
    assert best_apart(scores, groups, times, top=10, min_gap=1.01) == [1, 4, 3]
    assert best_apart(scores, groups, times, top=2, min_gap=0.0) == [1, 4]
    assert best_apart(scores, groups, times, top=10, min_gap=0.0, per_group=1) == [1, 4]


def test_best_apart__sorts_no_more_than_needed_and_keeps_ties_in_order():
    scores = np.repeat(np.float32([3, 1, 2]), 7000)

    picked = best_apart(scores, np.arange(len(scores)), np.zeros(len(scores)), top=len(scores), min_gap=1.0)

    assert picked == np.argsort(-scores, kind="stable").tolist()


def film(count: int, seed: int, **more) -> dict:
    return {"audio": random_vectors(count, seed), "video": random_vectors(count, seed + 100), **more}


@pytest.fixture
def store(tmp_path) -> MomentStore:
    return make_store(tmp_path / "index", {f"/films/{name}.mp4": film(40, seed) for seed, name in enumerate("abc")})


def spans(result) -> list[tuple[str, float, float]]:
    return [(Path(hit.path).stem, hit.start, hit.end) for hit in result]


def test_search_moments__finds_the_moment_along_the_diagonal(store):
    sounds = random_vectors(40, 1)[12:17]

    result = search_moments(store, little_query(sounds), find="sound", top=3)

    assert spans(result)[0] == ("b", 6.0, 8.5)
    assert result[0].score == pytest.approx(1, abs=HALF) and result[0].windows == 5
    assert result[1].score < 0.8
    assert result.exact and result.pairs == ("sound -> sound",)


def test_search_moments__order_in_time_matters(store):
    sounds = random_vectors(40, 1)[12:17][::-1].copy()

    result = search_moments(store, little_query(sounds), find="sound", top=1)

    # The same windows backwards: only the middle one meets itself.
    assert result[0].score < 0.8


@pytest.mark.parametrize(
    ("by", "find", "pairs"),
    [
        ("sound", "auto", ("sound -> picture",)),
        ("picture", "auto", ("picture -> sound",)),
        ("both", "auto", ("sound -> sound", "picture -> picture")),
        ("sound", "both", ("sound -> sound", "sound -> picture")),
        ("both", "picture", ("sound -> picture", "picture -> picture")),
        ("picture", "picture", ("picture -> picture",)),
    ],
)
def test_search_moments__compares_what_is_asked_for(store, by, find, pairs):
    query = little_query(random_vectors(40, 2)[3:5], random_vectors(40, 102)[3:5], by=by)
    sides = {"sound": random_vectors(40, 2), "picture": random_vectors(40, 102)}
    names = [pair.split(" -> ") for pair in pairs]
    by_hand = np.mean(
        [[sides[asked][3 + i] @ sides[there][3 + i] for i in range(2)] for asked, there in names], dtype=np.float64
    )

    result = search_moments(store, query, find=find, top=200, filters=SearchFilters(min_gap=0))

    assert result.pairs == pairs
    own = next(hit for hit in result if (hit.path, hit.start) == ("/films/c.mp4", 1.5))
    assert own.score == pytest.approx(by_hand, abs=HALF)


def test_search_moments__never_reaches_from_one_file_into_the_next(tmp_path):
    whole = random_vectors(12, 5)
    # What looks like one film lies in two files.
    clips = {
        "/a.mp4": {"audio": whole[:6]},
        "/b.mp4": {"audio": whole[6:]},
        "/z.mp4": {"audio": random_vectors(30, 9)},
    }
    store = make_store(tmp_path / "index", clips)

    result = search_moments(store, little_query(whole[4:8]), find="sound", filters=SearchFilters(min_overlap=0.5))

    assert set(spans(result)[:2]) == {("a", 2.0, 3.0), ("b", 0.0, 1.0)}
    assert [hit.windows for hit in result[:2]] == [2, 2]
    # Half of the query met itself, the other half nothing.
    assert [hit.score for hit in result[:2]] == pytest.approx([0.5, 0.5], abs=HALF)


def test_search_moments__hangs_over_a_border_by_so_much_only(tmp_path):
    whole = random_vectors(12, 5)
    store = make_store(tmp_path / "index", {"/a.mp4": {"audio": whole[3:]}})
    query = little_query(whole[:4])

    full = search_moments(store, query, find="sound", filters=SearchFilters(min_overlap=1.0))
    part = search_moments(store, query, find="sound", filters=SearchFilters(min_overlap=0.25))

    assert all(hit.windows == 4 for hit in full)
    assert (part[0].start, part[0].end, part[0].windows) == (0.0, 0.5, 1)


def test_search_moments__longer_than_every_file(tmp_path):
    store = make_store(tmp_path / "index", {"/a.mp4": {"audio": random_vectors(3, 1)}})

    result = search_moments(store, little_query(random_vectors(20, 2)), find="sound")

    assert len(result) == 0 and result.to_dict()["hits"] == []


def test_search_moments__does_not_return_the_same_moment_twice(tmp_path):
    # A film that hardly changes: every moment is like its neighbours.
    still = unit(random_vectors(1, 3) + 0.05 * random_vectors(60, 4))
    store = make_store(tmp_path / "index", {"/still.mp4": {"audio": still}, "/other.mp4": {"audio": still[::-1]}})

    apart = search_moments(store, little_query(still[20:22]), find="sound", top=8)
    once = search_moments(store, little_query(still[20:22]), find="sound", filters=SearchFilters(per_file=1))
    close = search_moments(store, little_query(still[20:22]), find="sound", top=99, filters=SearchFilters(min_gap=0.5))

    for name in ("still", "other"):
        times = sorted(hit.start for hit in apart if Path(hit.path).stem == name)
        # Two windows are a second long, which is longer than what a moment hears.
        assert all(later - earlier >= 1.0 for earlier, later in zip(times, times[1:], strict=False))
    assert len(once) == 2
    assert min(abs(a.start - b.start) for a in close for b in close if a != b and a.path == b.path) == 0.5


def test_search_moments__silence_is_left_out_where_sound_is_compared(tmp_path):
    sounds = random_vectors(4, 1)
    loudness = [-20.0, -75.0, -55.0, -120.0]
    store = make_store(tmp_path / "index", {"/a.mp4": {"audio": sounds, "video": sounds, "loudness": loudness}})

    def found(find, **filters):
        chosen = SearchFilters(min_gap=0, **filters)
        return sorted(hit.start for hit in search_moments(store, little_query(sounds[:1]), find=find, filters=chosen))

    assert found("sound") == [0.0, 1.0]
    assert found("picture") == [0.0, 0.5, 1.0, 1.5]
    assert found("picture", min_loudness=-60.0) == [0.0, 1.0]
    assert found("sound", min_loudness=-30.0) == [0.0]
    assert found("sound", min_loudness=-np.inf) == [0.0, 0.5, 1.0, 1.5]


def test_search_moments__silent_windows_of_the_query_do_not_count(store):
    sounds = random_vectors(40, 1)[12:16].copy()
    sounds[2] = random_vectors(1, 77)
    heard = np.array([True, True, False, True])

    result = search_moments(store, little_query(sounds, audio_present=heard), find="sound", top=1)

    assert result[0].score == pytest.approx(1, abs=HALF) and result[0].windows == 3
    assert spans(result) == [("b", 6.0, 8.0)]


def test_search_moments__filters(store):
    sounds = random_vectors(40, 1)[12:14]
    query = little_query(sounds, path="/films/b.mp4")

    def found(**filters):
        return search_moments(store, query, find="sound", top=100, filters=SearchFilters(min_gap=0, **filters))

    assert {Path(hit.path).stem for hit in found(exclude_same_file=True)} == {"a", "c"}
    assert {Path(hit.path).stem for hit in found(files="*/[ab].mp4")} == {"a", "b"}
    assert len(found(files="*/nothing*")) == 0
    late = found(within=(5.0, 9.0))
    assert min(hit.start for hit in late) == 5.0 and max(hit.end for hit in late) == 9.0
    assert spans(late)[0] == ("b", 6.0, 7.0)


def test_search_moments__copies_of_the_file_count_as_the_same(tmp_path):
    film = {"audio": random_vectors(5, 1), "content": "sha256:1"}
    store = make_store(tmp_path / "index", {"/a.mp4": film, "/copy.mp4": film, "/c.mp4": {"audio": film["audio"]}})
    query = little_query(random_vectors(1, 1), content="sha256:1")

    result = search_moments(store, query, find="sound", filters=SearchFilters(exclude_same_file=True))

    assert {hit.path for hit in result} == {"/c.mp4"}


def test_search_moments__times_of_segments_are_those_of_the_file(tmp_path):
    sounds = random_vectors(10, 1)
    store = make_store(tmp_path / "index", {"/a.mp4": {"audio": sounds, "start": 30.0}})

    hit = search_moments(store, little_query(sounds[4:6]), find="sound")[0]

    assert (hit.start, hit.end, hit.clip_start, hit.clip_end) == (32.0, 33.0, 30.0, 35.0)


def test_search_moments__rows_of_no_clip_are_not_found(store):
    entry = next(entry for entry in store.entries().values() if entry.path == "/films/b.mp4")
    store.copy(entry.rows, "0-0-0-loose")
    store._clips.delete(f"key = '{entry.key}'")  # as after a kill between the two tables
    store.refresh()

    result = search_moments(store, little_query(random_vectors(40, 1)[12:17]), find="sound", top=100)

    assert {Path(hit.path).stem for hit in result} == {"a", "c"}


def test_search_moments__thumbnail_is_of_the_middle(tmp_path):
    clip = {"audio": random_vectors(9, 1), "thumbnails": [b"%d" % number for number in range(9)]}
    store = make_store(tmp_path / "index", {"/a.mp4": clip})

    hit = search_moments(store, little_query(random_vectors(9, 1)[3:6]), find="sound")[0]

    assert hit.thumbnail == b"4" and "thumbnail" not in hit.to_dict()


def test_search_clips__compares_means(store):
    query = little_query(random_vectors(40, 1))

    result = search_clips(store, query, find="sound")

    assert [Path(hit.path).stem for hit in result][0] == "b"
    assert result[0].score == pytest.approx(1, abs=HALF)
    assert (result[0].start, result[0].end, result[0].loudness) == (0.0, 20.0, None)
    assert len(search_clips(store, query, find="sound", top=2)) == 2


def clustered(count: int, seed: int) -> np.ndarray:
    """Vectors that wander slowly about a few places, as those of a film do."""
    generator = np.random.default_rng(seed)
    places = generator.standard_normal((8, 16)).repeat(count // 8, axis=0)
    return unit(places + 0.4 * np.cumsum(0.3 * generator.standard_normal((count, 16)), axis=0)).astype(np.float16)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> MomentStore:
    clips = {
        f"/films/{number}.mp4": {"audio": clustered(80, number), "video": clustered(80, number + 50)}
        for number in range(20)
    }
    store = make_store(tmp_path_factory.mktemp("large") / "index", clips)
    store.build_index(index_config(1600), 1600)
    return store


@pytest.mark.parametrize("windows", [1, 6])
@pytest.mark.parametrize("find", ["sound", "both"])
def test_search_moments__approximate_agrees_with_exact(large, windows, find):
    agreed, wanted = 0, 0
    for number in range(0, 20, 3):
        vectors = clustered(80, number)[20 : 20 + windows].astype(np.float32)
        pictures = clustered(80, number + 50)[20 : 20 + windows].astype(np.float32)
        query = little_query(vectors, pictures, by="both" if find == "both" else "sound")

        exact = search_moments(large, query, find=find, top=5, exact=True)
        quick = search_moments(large, query, find=find, top=5)

        assert exact.exact and not quick.exact
        assert spans(quick)[0] == spans(exact)[0] == (str(number), 10.0, 10.0 + windows * HOP)
        # Scores are exact whatever was found, and none is of a place cut off at the border of what was fetched.
        scores = dict(zip(spans(exact), (hit.score for hit in exact), strict=True))
        for hit, span in zip(quick, spans(quick), strict=True):
            assert hit.windows == windows
            assert span not in scores or hit.score == pytest.approx(scores[span], abs=1e-5)
        agreed += len(set(spans(exact)) & set(spans(quick)))
        wanted += len(exact)
    assert agreed >= 0.9 * wanted


def test_search_moments__approximate_heeds_filters(large):
    vectors = clustered(80, 6)[20:24].astype(np.float32)
    query = little_query(vectors, path="/films/6.mp4")
    filters = SearchFilters(exclude_same_file=True, within=(5.0, 15.0), files="*/1*.mp4")

    exact = search_moments(large, query, find="sound", exact=True, filters=filters)
    quick = search_moments(large, query, find="sound", filters=filters)

    assert spans(quick) == spans(exact) and len(quick)
    for hit in quick:
        assert hit.start >= 5.0 and hit.end <= 15.0 and Path(hit.path).stem.startswith("1")


def test_search_moments__approximate_without_an_index_is_refused(store):
    with pytest.raises(SearchError, match="no approximate index"):
        search_moments(store, little_query(random_vectors(1, 1)), exact=False)


@pytest.mark.parametrize(
    "arguments",
    [
        {"top": 0},
        {"find": "smell"},
        {"filters": {"within": (5.0, 5.0)}},
        {"filters": {"within": (-1.0, None)}},
        {"filters": {"min_overlap": 0.0}},
        {"filters": {"min_gap": -1.0}},
        {"filters": {"per_file": 0}},
        {"filters": {"min_loudness": float("nan")}},
    ],
)
def test_search_moments__refuses_values_that_cannot_work(store, arguments):
    with pytest.raises(ValueError, match=r"top|find|within|min_overlap|min_gap|per_file|min_loudness"):
        filters = SearchFilters(**arguments.pop("filters", {}))
        search_moments(store, little_query(random_vectors(1, 1)), filters=filters, **arguments)


def test_search_moments__refuses_vectors_of_another_width(store):
    with pytest.raises(SearchError, match="32 values"):
        search_moments(store, little_query(random_vectors(1, 1, 32)))


# --- queries -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded():
    torch.manual_seed(0)
    model = CavMaeSyncModel(tiny_config()).eval()
    return model, CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("media") / "video.mp4", seconds=4.0, audio=noise(4.0))


def test_embed_query__is_what_the_index_holds_of_the_same_moment(loaded, video):
    model, processor = loaded
    whole = embed_query(video, model, processor, hop=0.25)
    moment = embed_query(video, model, processor, hop=0.25, start=1.5, end=2.5)

    assert len(whole) == 16 and len(moment) == 4 and (moment.start, moment.seconds) == (1.5, 1.0)
    # What is heard around the moment is heard in both.
    np.testing.assert_allclose(moment.audio, whole.audio[6:10], atol=1e-5)
    np.testing.assert_allclose(moment.video, whole.video[6:10], atol=1e-5)


def test_embed_query__auto_is_all_there_is(loaded, video, tmp_path):
    model, processor = loaded
    sound = write_clip(tmp_path / "sound.wav", video=False, audio=noise(1.0), audio_codec="pcm_s16le")
    mute = write_clip(tmp_path / "mute.mp4", audio=False)

    assert embed_query(video, model, processor, hop=0.5).by == "both"
    assert embed_query(sound, model, processor, hop=0.5).by == "sound"
    assert embed_query(mute, model, processor, hop=0.5).by == "picture"
    assert embed_query(video, model, processor, hop=0.5, by="sound").by == "sound"


def test_embed_query__pictures(loaded, tmp_path):
    model, processor = loaded
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    picture.convert("L").save(tmp_path / "grey.jpg")

    memory = embed_query(picture, model, processor, hop=0.5)
    file = embed_query(tmp_path / "picture.png", model, processor, hop=0.5)
    raw = embed_query((tmp_path / "picture.png").read_bytes(), model, processor, hop=0.5)
    grey = embed_query(tmp_path / "grey.jpg", model, processor, hop=0.5)

    assert (memory.by, len(memory), file.by, len(grey)) == ("picture", 1, "picture", 1)
    np.testing.assert_array_equal(memory.video, file.video)
    np.testing.assert_array_equal(memory.video, raw.video)
    assert np.linalg.norm(grey.video) == pytest.approx(1, abs=1e-5)


def test_embed_query__samples_are_as_their_file(loaded, tmp_path):
    model, processor = loaded
    samples = noise(1.0, rate=16000, channels=1)
    file = write_clip(tmp_path / "s.wav", video=False, audio=samples, rate=16000, audio_codec="pcm_s16le")

    memory = embed_query({"array": samples[0], "sampling_rate": 16000}, model, processor, hop=0.25)
    whole = np.round(samples * 32767).astype(np.int16)
    integers = embed_query({"array": whole, "sampling_rate": 16000}, model, processor, hop=0.25)

    expected = embed_query(file, model, processor, hop=0.25)
    # The two round to 16 bits differently.
    np.testing.assert_allclose(memory.audio, expected.audio, atol=1e-3)
    np.testing.assert_allclose(integers.audio, memory.audio, atol=1e-5)


def test_embed_query__shorter_than_a_step_is_one_window(loaded, video):
    model, processor = loaded

    query = embed_query(video, model, processor, hop=1.0, start=1.0, end=1.2)

    assert len(query) == 1 and query.seconds == pytest.approx(0.2)


def test_embed_query__refuses(loaded, video, tmp_path):
    model, processor = loaded
    silent = write_clip(tmp_path / "silent.mp4", audio=np.zeros((1, 96000), np.float32))
    mute = write_clip(tmp_path / "mute.mp4", audio=False)
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "PNG")
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.getvalue()[:40])
    cases = [
        (SearchError, "silent", silent, {"by": "sound"}),
        (SearchError, "no sound", mute, {"by": "both"}),
        (SearchError, "picture and has no sound", picture.getvalue(), {"by": "sound"}),
        (SearchError, "no start", picture.getvalue(), {"start": 1.0}),
        (SearchError, "cannot be read", broken, {}),
        (SearchError, "is empty", video, {"start": 2.0, "end": 2.0}),
        (SearchError, "at least 0", video, {"start": -1.0}),
        (SearchError, "choose an earlier", video, {"start": 60.0}),
        (SearchError, "start and end", video, {"hop": 4.0 / (MAX_QUERY_WINDOWS + 2)}),
        (SearchError, "sampling_rate", {"array": [0.0]}, {}),
        (SearchError, "channels come first", {"array": np.zeros((99, 2)), "sampling_rate": 16000}, {}),
        (SearchError, "NaN", {"array": [np.nan] * 9000, "sampling_rate": 16000}, {}),
        (MediaError, "no such file", tmp_path / "nothing.mp4", {}),
        (ValueError, "by is", video, {"by": "smell"}),
    ]
    for kind, words, query, more in cases:
        with pytest.raises(kind, match=words):
            embed_query(query, model, processor, **({"hop": 0.5} | more))


def test_window_loudness__is_the_root_mean_square_in_db(loaded, tmp_path):
    _, processor = loaded
    # A second of silence, then a sine of amplitude 0.3 on both channels, then the end.
    samples = np.concatenate([np.zeros((1, 16000)), tone(2.0, rate=16000, channels=1)], axis=1).astype(np.float32)
    file = write_clip(tmp_path / "s.wav", video=False, audio=samples, rate=16000, audio_codec="pcm_s16le")
    levels = []
    for batch in processor.stream(file, hop=0.25, missing="mask", return_media=True):
        levels += window_loudness(batch, batch["media"]).tolist()

    assert levels[0] == -120.0
    expected = 20 * np.log10(0.3 / np.sqrt(2))
    # From the first window that hears nothing else, to the last, of which only half lies in the file.
    np.testing.assert_allclose(levels[6:], expected, atol=0.1)


def test_settings__say_which_value_differs():
    ours = little_settings(processing={"mean": 1.0, "size": {"shortest_edge": 32}})

    with pytest.raises(SearchError, match="another model"):
        ours.check(little_settings(weights="v" * 64), "index", adding=False)
    with pytest.raises(SearchError, match=r"mean was 1.0 and is 2.0"):
        ours.check(little_settings(processing={"mean": 2.0, "size": {"shortest_edge": 32}}), "index", adding=False)
    other = little_settings(hop=1.0, processing=ours.processing)
    ours.check(other, "index", adding=False)
    with pytest.raises(SearchError, match=r"hop of 0.5"):
        ours.check(other, "index", adding=True)
