"""Searching by moments: exact along diagonals, right at the borders of files, filtered, and never twice the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from lancedb.index import IvfRq

from cavmae_sync_hf import SearchError
from cavmae_sync_hf.search import MomentStore, SearchFilters, candidates, search_clips, search_moments
from cavmae_sync_hf.search.approximate import index_config, partitions_to_search
from cavmae_sync_hf.search.view import View
from helpers.indexes import HOP, make_store, random_vectors, unit, vector_query

# Half precision resolves cosines near 1 to 2 ** -11.
HALF = 1e-3


def clip_of(count: int, seed: int, **more) -> dict:
    return {"audio": random_vectors(count, seed), "video": random_vectors(count, seed + 100), **more}


@pytest.fixture
def store(tmp_path) -> MomentStore:
    clips = {f"/videos/{name}.mp4": clip_of(40, seed) for seed, name in enumerate("abc")}
    return make_store(tmp_path / "index", clips)


def spans(result) -> list[tuple[str, float, float]]:
    return [(Path(hit.path).stem, hit.start, hit.end) for hit in result]


def test_search_moments__finds_the_moment_along_the_diagonal(store):
    vectors = random_vectors(40, 1)[12:17]

    result = search_moments(store, vector_query(vectors), find="audio", top=3)

    assert spans(result)[0] == ("b", 6.0, 8.5)
    assert result[0].score == pytest.approx(1, abs=HALF) and result[0].windows == 5
    assert result[1].score < 0.8
    assert result.exact and result.pairs == ("audio -> audio",)


def test_search_moments__order_in_time_matters(store):
    vectors = random_vectors(40, 1)[12:17][::-1].copy()

    result = search_moments(store, vector_query(vectors), find="audio", top=1)

    # The same windows backwards: only the middle one meets itself.
    assert result[0].score < 0.8


@pytest.mark.parametrize(
    ("by", "find", "pairs"),
    [
        ("audio", "auto", ("audio -> video",)),
        ("video", "auto", ("video -> audio",)),
        ("both", "auto", ("audio -> audio", "video -> video")),
        ("audio", "both", ("audio -> audio", "audio -> video")),
        ("both", "video", ("audio -> video", "video -> video")),
        ("video", "video", ("video -> video",)),
    ],
)
def test_search_moments__compares_what_is_asked_for(store, by, find, pairs):
    query = vector_query(random_vectors(40, 2)[3:5], random_vectors(40, 102)[3:5], by=by)
    sides = {"audio": random_vectors(40, 2), "video": random_vectors(40, 102)}
    names = [pair.split(" -> ") for pair in pairs]
    by_hand = np.mean(
        [[sides[asked][3 + i] @ sides[there][3 + i] for i in range(2)] for asked, there in names], dtype=np.float64
    )

    result = search_moments(store, query, find=find, top=200, filters=SearchFilters(min_gap=0))

    assert result.pairs == pairs
    own = next(hit for hit in result if (hit.path, hit.start) == ("/videos/c.mp4", 1.5))
    assert own.score == pytest.approx(by_hand, abs=HALF)


def test_search_moments__never_reaches_from_one_file_into_the_next(tmp_path):
    whole = random_vectors(12, 5)
    # What looks like one video lies in two files.
    clips = {
        "/a.mp4": {"audio": whole[:6]},
        "/b.mp4": {"audio": whole[6:]},
        "/z.mp4": {"audio": random_vectors(30, 9)},
    }
    store = make_store(tmp_path / "index", clips)

    result = search_moments(store, vector_query(whole[4:8]), find="audio", filters=SearchFilters(min_overlap=0.5))

    assert set(spans(result)[:2]) == {("a", 2.0, 3.0), ("b", 0.0, 1.0)}
    assert [hit.windows for hit in result[:2]] == [2, 2]
    # Half of the query met itself, the other half nothing.
    assert [hit.score for hit in result[:2]] == pytest.approx([0.5, 0.5], abs=HALF)


def test_search_moments__hangs_over_a_border_by_so_much_only(tmp_path):
    whole = random_vectors(12, 5)
    store = make_store(tmp_path / "index", {"/a.mp4": {"audio": whole[3:]}})
    query = vector_query(whole[:4])

    full = search_moments(store, query, find="audio", filters=SearchFilters(min_overlap=1.0))
    part = search_moments(store, query, find="audio", filters=SearchFilters(min_overlap=0.25))

    assert all(hit.windows == 4 for hit in full)
    assert (part[0].start, part[0].end, part[0].windows) == (0.0, 0.5, 1)


def test_search_moments__longer_than_every_file(tmp_path):
    store = make_store(tmp_path / "index", {"/a.mp4": {"audio": random_vectors(3, 1)}})

    result = search_moments(store, vector_query(random_vectors(20, 2)), find="audio")

    assert len(result) == 0 and result.to_dict()["hits"] == []


def test_search_moments__does_not_return_the_same_moment_twice(tmp_path):
    # A video that hardly changes: every moment is like its neighbours.
    still = unit(random_vectors(1, 3) + 0.05 * random_vectors(60, 4))
    store = make_store(tmp_path / "index", {"/still.mp4": {"audio": still}, "/other.mp4": {"audio": still[::-1]}})

    apart = search_moments(store, vector_query(still[20:22]), find="audio", top=8)
    once = search_moments(store, vector_query(still[20:22]), find="audio", filters=SearchFilters(per_file=1))
    close = search_moments(store, vector_query(still[20:22]), find="audio", top=99, filters=SearchFilters(min_gap=0.5))

    for name in ("still", "other"):
        times = sorted(hit.start for hit in apart if Path(hit.path).stem == name)
        # Two windows are a second long, which is longer than what a moment hears.
        assert all(later - earlier >= 1.0 for earlier, later in zip(times, times[1:], strict=False))
    assert len(once) == 2
    assert min(abs(a.start - b.start) for a in close for b in close if a != b and a.path == b.path) == 0.5


def test_search_moments__silence_is_left_out_where_audio_is_compared(tmp_path):
    vectors = random_vectors(4, 1)
    loudness = [-20.0, -75.0, -55.0, -120.0]
    store = make_store(tmp_path / "index", {"/a.mp4": {"audio": vectors, "video": vectors, "loudness": loudness}})

    def found(find, **filters):
        chosen = SearchFilters(min_gap=0, **filters)
        return sorted(hit.start for hit in search_moments(store, vector_query(vectors[:1]), find=find, filters=chosen))

    assert found("audio") == [0.0, 1.0]
    assert found("video") == [0.0, 0.5, 1.0, 1.5]
    assert found("video", min_loudness=-60.0) == [0.0, 1.0]
    assert found("audio", min_loudness=-30.0) == [0.0]
    assert found("audio", min_loudness=-np.inf) == [0.0, 0.5, 1.0, 1.5]


def test_search_moments__silent_windows_of_the_query_do_not_count(store):
    vectors = random_vectors(40, 1)[12:16].copy()
    vectors[2] = random_vectors(1, 77)
    heard = np.array([True, True, False, True])

    result = search_moments(store, vector_query(vectors, audio_present=heard), find="audio", top=1)

    assert result[0].score == pytest.approx(1, abs=HALF) and result[0].windows == 3
    assert spans(result) == [("b", 6.0, 8.0)]


def test_search_moments__filters(store):
    vectors = random_vectors(40, 1)[12:14]
    query = vector_query(vectors, path="/videos/b.mp4")

    def found(**filters):
        return search_moments(store, query, find="audio", top=100, filters=SearchFilters(min_gap=0, **filters))

    assert {Path(hit.path).stem for hit in found(exclude_same_file=True)} == {"a", "c"}
    assert {Path(hit.path).stem for hit in found(files="*/[ab].mp4")} == {"a", "b"}
    assert len(found(files="*/nothing*")) == 0
    late = found(within=(5.0, 9.0))
    assert min(hit.start for hit in late) == 5.0 and max(hit.end for hit in late) == 9.0
    assert spans(late)[0] == ("b", 6.0, 7.0)


@pytest.mark.parametrize("exact", [True, False])
def test_search_moments__passes_over_clips_that_have_no_room_for_the_query(large, monkeypatch, exact):
    query = vector_query(clustered(80, 6)[20:24].astype(np.float32))

    def found(last: float, overlap: float) -> list:
        filters = SearchFilters(within=(10.0, last), min_overlap=overlap)
        return spans(search_moments(large, query, find="audio", top=100, exact=exact, filters=filters))

    cases = [(last, overlap) for last in (10.4, 10.5, 11.0, 11.49, 11.5, 12.0) for overlap in (0.2, 0.5, 0.75, 1.0)]
    results = [found(*case) for case in cases]
    with monkeypatch.context() as patch:
        patch.setattr(View, "with_room_for", lambda view, count: view)
        assert results == [found(*case) for case in cases]
    for hits, (last, overlap) in zip(results, cases, strict=True):
        assert bool(hits) == ((last - 10.0) // HOP >= 4 * overlap), (last, overlap)

    def fail(*args, **kwargs):
        raise AssertionError("nothing is to be read")

    monkeypatch.setattr(MomentStore, "scan", fail)
    monkeypatch.setattr(MomentStore, "nearest", fail)
    assert found(11.49, 0.75) == []


def test_search_moments__copies_of_the_file_count_as_the_same(tmp_path):
    clip = {"audio": random_vectors(5, 1), "content": "sha256:1"}
    store = make_store(tmp_path / "index", {"/a.mp4": clip, "/copy.mp4": clip, "/c.mp4": {"audio": clip["audio"]}})
    query = vector_query(random_vectors(1, 1), content="sha256:1")

    result = search_moments(store, query, find="audio", filters=SearchFilters(exclude_same_file=True))

    assert {hit.path for hit in result} == {"/c.mp4"}


def test_search_moments__times_of_segments_are_those_of_the_file(tmp_path):
    vectors = random_vectors(10, 1)
    store = make_store(tmp_path / "index", {"/a.mp4": {"audio": vectors, "start": 30.0}})

    hit = search_moments(store, vector_query(vectors[4:6]), find="audio")[0]

    assert (hit.start, hit.end, hit.clip_start, hit.clip_end) == (32.0, 33.0, 30.0, 35.0)


def test_search_moments__rows_of_no_clip_are_not_found(store):
    entry = next(entry for entry in store.entries().values() if entry.path == "/videos/b.mp4")
    store.copy(entry.rows, "0-0-0-loose")
    store._clips.delete(f"key = '{entry.key}'")  # as after a kill between the two tables
    store.refresh()

    result = search_moments(store, vector_query(random_vectors(40, 1)[12:17]), find="audio", top=100)

    assert {Path(hit.path).stem for hit in result} == {"a", "c"}


def test_search_moments__thumbnail_is_of_the_middle(tmp_path):
    clip = {"audio": random_vectors(9, 1), "thumbnails": [b"%d" % number for number in range(9)]}
    store = make_store(tmp_path / "index", {"/a.mp4": clip})

    hit = search_moments(store, vector_query(random_vectors(9, 1)[3:6]), find="audio")[0]

    assert hit.thumbnail == b"4" and "thumbnail" not in hit.to_dict()


def test_search_clips__compares_means(store):
    query = vector_query(random_vectors(40, 1))

    result = search_clips(store, query, find="audio")

    assert [Path(hit.path).stem for hit in result][0] == "b"
    assert result[0].score == pytest.approx(1, abs=HALF)
    assert (result[0].start, result[0].end, result[0].loudness) == (0.0, 20.0, None)
    assert len(search_clips(store, query, find="audio", top=2)) == 2


def clustered(count: int, seed: int) -> np.ndarray:
    """Vectors that wander slowly about a few places, as those of a video do."""
    generator = np.random.default_rng(seed)
    places = generator.standard_normal((8, 16)).repeat(count // 8, axis=0)
    return unit(places + 0.4 * np.cumsum(0.3 * generator.standard_normal((count, 16)), axis=0)).astype(np.float16)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> MomentStore:
    clips = {
        f"/videos/{number}.mp4": {"audio": clustered(80, number), "video": clustered(80, number + 50)}
        for number in range(20)
    }
    store = make_store(tmp_path_factory.mktemp("large") / "index", clips)
    store.build_index(index_config(1600), 1600)
    return store


@pytest.mark.parametrize("windows", [1, 6, 16])
@pytest.mark.parametrize("find", ["audio", "both"])
def test_search_moments__approximate_agrees_with_exact(large, windows, find):
    agreed, wanted = 0, 0
    for number in range(0, 20, 3):
        vectors = clustered(80, number)[20 : 20 + windows].astype(np.float32)
        frames = clustered(80, number + 50)[20 : 20 + windows].astype(np.float32)
        query = vector_query(vectors, frames, by="both" if find == "both" else "audio")

        exact = search_moments(large, query, find=find, top=5, exact=True)
        quick = search_moments(large, query, find=find, top=5)

        assert exact.exact and not quick.exact
        assert spans(quick)[0] == spans(exact)[0] == (str(number), 10.0, 10.0 + windows * HOP)
        # Scores are exact whatever was found, and none is of a place cut off at the border of what was fetched.
        scores = dict(zip(spans(exact), (hit.score for hit in exact), strict=True))
        for hit, span in zip(quick, spans(quick), strict=True):
            assert hit.windows == windows or hit.start == 0.0 or hit.end == hit.clip_end
            assert span not in scores or hit.score == pytest.approx(scores[span], abs=1e-5)
        agreed += len(set(spans(exact)) & set(spans(quick)))
        wanted += len(exact)
    assert agreed >= 0.9 * wanted


def test_search_moments__approximate_heeds_filters(large):
    vectors = clustered(80, 6)[20:24].astype(np.float32)
    query = vector_query(vectors, path="/videos/6.mp4")
    filters = SearchFilters(exclude_same_file=True, within=(5.0, 15.0), files="*/1*.mp4")

    exact = search_moments(large, query, find="audio", exact=True, filters=filters)
    quick = search_moments(large, query, find="audio", exact=False, filters=filters)

    assert not quick.exact and spans(quick) == spans(exact) and len(quick)
    # So few moments are all compared.
    assert search_moments(large, query, find="audio", filters=filters).exact
    for hit in quick:
        assert hit.start >= 5.0 and hit.end <= 15.0 and Path(hit.path).stem.startswith("1")


@pytest.mark.parametrize(
    ("filters", "told", "many"),
    [
        # Most of the moments are left: more are looked for and some dropped.
        ({"within": (None, 30.0)}, set(), False),
        ({"min_loudness": -25.0}, set(), False),
        # Few are: the approximate index is told of it, but of no more than it takes.
        ({"min_loudness": -15.0}, {"loudness"}, False),
        ({"within": (3.0, 5.0), "min_loudness": -25.0}, {"start"}, False),
        # Few of many millions: telling it would take longer than to drop the others.
        ({"within": (3.0, 5.0), "min_loudness": -25.0}, set(), True),
    ],
)
def test_search_moments__approximate_limits_give_what_exact_ones_do(tmp_path, monkeypatch, filters, told, many):
    if many:
        monkeypatch.setattr(candidates, "_TOLD_MOMENTS", 0)
    loudness = np.tile([-10.0, -20.0, -20.0, -20.0, -40.0], 16)
    clips = {f"/{n}.mp4": {"audio": clustered(80, n), "loudness": loudness} for n in range(12)}
    store = make_store(tmp_path / "index", clips)
    store.build_index(index_config(960), 960, ["audio"])
    # What LanceDB has to look through all rows for, but for times.
    assert {index.columns[0] for index in store._moments.list_indices()} == {"rows", "start", "audio"}
    nearest, conditions = MomentStore.nearest, []
    monkeypatch.setattr(
        MomentStore, "nearest", lambda *args, **kwargs: conditions.append(args[4] or "") or nearest(*args, **kwargs)
    )
    chosen = SearchFilters(min_overlap=0.1, **filters)

    for windows in (1, 6):
        query = vector_query(clustered(80, 3)[8 : 8 + windows].astype(np.float32))
        exact = search_moments(store, query, find="audio", exact=True, filters=chosen)
        conditions.clear()
        quick = search_moments(store, query, find="audio", exact=False, filters=chosen)

        assert {name for name in ("start", "end", "loudness", "rows") if f"`{name}`" in conditions[0]} == told
        assert not quick.exact and len(quick) == len(exact) > 3
        assert len(set(spans(quick)) & set(spans(exact))) >= 0.9 * len(exact)
        assert quick[0].score == pytest.approx(exact[0].score, abs=1e-5)
        # So few moments are all compared, where files or times leave them out.
        assert search_moments(store, query, find="audio", filters=chosen).exact == ("within" in filters)


@pytest.mark.parametrize("filters", [{"files": "/small*"}, {"exclude_same_file": True}])
def test_search_moments__approximate_where_filters_leave_out_what_is_most_alike(tmp_path, filters):
    # Nearly all that the first search finds is of the file that is left out: what else it finds is no good choice.
    generator = np.random.default_rng(0)
    near = unit(np.eye(16)[:1] + 0.05 * generator.standard_normal((1680, 16)))
    clips = {"/big.mp4": {"audio": near}}
    clips |= {f"/small{n}.mp4": {"audio": random_vectors(250, n + 1)} for n in range(6)}
    store = make_store(tmp_path / "index", clips)
    store.build_index(index_config(3180), 3180, ["audio"])
    query = replace(vector_query(near[100:101].astype(np.float32)), path="/big.mp4", content="")
    chosen = SearchFilters(min_gap=0.0, **filters)

    quick, exact = (search_moments(store, query, find="audio", exact=e, filters=chosen) for e in (False, True))

    assert not quick.exact and len(exact) == 10 and "/big.mp4" not in {hit.path for hit in exact}
    assert spans(quick) == spans(exact)


def test_search_moments__approximate_finds_clips_whose_rows_lie_apart(tmp_path):
    # Rows of two clips, written in turn and backwards: no row lies beside the one of the moment that follows.
    clips = {f"/{n}.mp4": {"audio": clustered(80, n)} for n in range(6)}
    whole = make_store(tmp_path / "whole", clips)
    apart = make_store(tmp_path / "apart", {path: clips[path] for path in list(clips)[2:]})
    entries = [entry for entry in whole.entries().values() if entry.path in ("/0.mp4", "/1.mp4")]
    mixed = pa.Table.from_batches(whole.scan(apart._moments.schema.names)).filter(
        pc.is_in(pc.field("rows"), pa.array([entry.rows for entry in entries]))
    )
    apart.append(mixed.sort_by([("window", "descending"), ("rows", "ascending")]).to_batches())
    apart.register(entries)
    for store in (whole, apart):
        store.build_index(index_config(480), 480, ["audio"])

    for windows in (1, 5, 16):
        query = vector_query(clustered(80, 1)[30 : 30 + windows].astype(np.float32))
        hits = search_moments(apart, query, find="audio")

        assert not hits.exact and hits[0].windows == windows
        assert spans(hits)[0] == ("1", 15.0, 15.0 + windows * HOP)
        assert hits.hits == search_moments(whole, query, find="audio").hits


def test_search_moments__approximate_index_of_an_earlier_version_is_searched_alike(large, tmp_path):
    clips = {f"/{n}.mp4": {"audio": clustered(80, n)} for n in range(5)}
    store = make_store(tmp_path / "index", clips)
    plan = IvfRq(distance_type="cosine", num_partitions=40)
    store._moments.create_index("audio", config=plan, name="audio_80000")  # as version 0.1.0 named them

    assert (store.partitions("audio"), store.trained_on()) == (40, {"audio": 80000})
    assert (large.partitions("audio"), large.trained_on()) == (1, {"audio": 1600, "video": 1600})
    assert [partitions_to_search(parts) for parts in (12, 40, 500, 5000)] == [12, 20, 25, 250]
    hits = search_moments(store, vector_query(clustered(80, 2)[30:33].astype(np.float32)), find="audio")
    assert not hits.exact and spans(hits)[0] == ("2", 15.0, 16.5)


def test_search_moments__sees_what_others_write_meanwhile(tmp_path):
    store = make_store(tmp_path / "index", {"/a.mp4": {"audio": random_vectors(5, 1)}})
    query = vector_query(random_vectors(5, 2))
    before = search_moments(store, query, find="audio")

    make_store(tmp_path / "index", {"/b.mp4": {"audio": random_vectors(5, 2)}})
    store.refresh()

    assert {hit.path for hit in before} == {"/a.mp4"}
    assert search_moments(store, query, find="audio")[0].path == "/b.mp4"


def test_search_moments__approximate_without_an_index_is_refused(store):
    with pytest.raises(SearchError, match="no approximate index"):
        search_moments(store, vector_query(random_vectors(1, 1)), exact=False)


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
        search_moments(store, vector_query(random_vectors(1, 1)), filters=filters, **arguments)


def test_search_moments__refuses_vectors_of_another_width(store):
    with pytest.raises(SearchError, match="32 values"):
        search_moments(store, vector_query(random_vectors(1, 1, 32)))
