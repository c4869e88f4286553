"""Recall and speed of the approximate index against comparing every moment, and what a search finds on SyncWorld.

    python training/benchmarks/search.py                                    # 1,000,000 moments of 768 values
    python training/benchmarks/search.py --moments 100000 --hidden 256 --index kept
    python training/benchmarks/search.py --world outputs/syncworld/semantic --model MODEL

The first form makes an index of synthetic videos: each is near one of a few thousand themes, with an offset of its
own, and wanders slowly about it, so that neighbours in time are alike as those of real videos are. Queries are stored
moments with noise. It counts how many of the ten nearest moments, by comparing all of them, the approximate index
gives back (recall@10), for several efforts. Then the approximate call alone (ten nearest of one vector, 200 compared
exactly) and whole searches along the diagonal, of one moment and of sixteen, with and without filters, take turns, so
that what else the machine does slows all alike; the ratios of their medians are printed, and which of the exact
search's hits they have, apart for queries whose own file a pattern leaves out: where no other video is of its theme
(`--themes` says of how many there are), all that is left is equally far. The index lies in a temporary
folder (`--folder`), which is removed; `--index` keeps it, and uses the one that is there.

`--before SRC`, the `src` folder of another version of the package, lets its searches take turns with these, in a
process of its own and on the same queries, and tells what its time is and how many of its hits are the same.

The second form indexes the clips of a SyncWorld and asks for each by its audio alone, among the frames of all, and
by its frames, among all audio: whether its own file comes first, and whether the moment found is the one asked for.
"""

import argparse
import fnmatch
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor
from cavmae_sync_hf.model.errors_cavmae_sync import QueryError
from cavmae_sync_hf.search import (
    ClipEntry,
    IndexSettings,
    MomentStore,
    Query,
    SearchFilters,
    embed_query,
    index_videos,
    search_moments,
)
from cavmae_sync_hf.search.approximate import index_config, partitions_to_search
from cavmae_sync_hf.search.querying import Side
from cavmae_sync_hf.search.tables import moments_schema, new_rows_name

HOP = 0.5
MOMENTS_PER_VIDEO = 1000
THEMES = 2000
REFINE = 20
LATE = MOMENTS_PER_VIDEO * HOP * 0.6
FILTERS = {
    "no filter": SearchFilters(),
    "files: half of them": SearchFilters(files="*[02468].mp4"),
    "files: one in a hundred": SearchFilters(files="*00.mp4"),
    "files: a tenth": SearchFilters(files="*7.mp4"),
    "time: the first 60 %": SearchFilters(within=(None, LATE)),
    "time: a tenth": SearchFilters(within=(LATE, LATE + MOMENTS_PER_VIDEO * HOP * 0.1)),
    "time: a fiftieth": SearchFilters(within=(LATE, LATE + MOMENTS_PER_VIDEO * HOP * 0.02)),  # room for sixteen
    "time: a hundredth": SearchFilters(within=(LATE, LATE + MOMENTS_PER_VIDEO * HOP * 0.01)),
    "louder than -30 dB: all are": SearchFilters(min_loudness=-30.0),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=1_000_000)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--themes", type=int, default=THEMES, help="the fewer, the more videos are alike")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--exact", type=int, default=5, help="searches of each kind that are compared with exact ones")
    parser.add_argument(
        "--only", action="append", choices=list(FILTERS), help="a filter that is measured; default: all"
    )
    parser.add_argument("--noise", type=float, default=0.5, help="of the queries, as a share of their length")
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--index", type=Path, help="index that is kept, and used where there is one")
    parser.add_argument("--before", type=Path, metavar="SRC", help="another version, which takes turns")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--world", type=Path, help="folder of a SyncWorld split instead")
    parser.add_argument("--model", help="folder or Hub name of a model, for --world")
    parser.add_argument("--hop", type=float, default=HOP, help="seconds between moments, for --world")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of the moments asked for, for --world")
    return parser.parse_args()


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def video_vectors(generator: np.random.Generator, themes: np.ndarray) -> np.ndarray:
    """A video: near a theme, with an offset of its own, wandering slowly; `(moments, hidden)` float16."""
    hidden = themes.shape[1]
    steps = generator.standard_normal((MOMENTS_PER_VIDEO, hidden), dtype=np.float32) / np.sqrt(hidden)
    keep = 0.8  # each moment holds so much of the one before: a scene lasts some seconds
    wander = np.empty_like(steps)
    wander[0] = steps[0]
    for place in range(1, len(steps)):
        wander[place] = keep * wander[place - 1] + np.sqrt(1 - keep**2) * steps[place]
    offset = generator.standard_normal(hidden, dtype=np.float32) / np.sqrt(hidden)
    return unit(themes[generator.integers(len(themes))] + 0.5 * offset + 1.0 * wander).astype(np.float16)


def make_index(folder: Path, arguments: argparse.Namespace) -> MomentStore:
    """An index of synthetic videos; only audio has vectors."""
    settings = IndexSettings(hop=HOP, hidden_size=arguments.hidden, window_seconds=4.16, weights="synthetic", model="")
    store = MomentStore.create(folder, settings)
    generator = np.random.default_rng(0)
    themes = unit(generator.standard_normal((arguments.themes, arguments.hidden), dtype=np.float32))
    entries: list[ClipEntry] = []
    schema = moments_schema(arguments.hidden)
    windows = np.arange(MOMENTS_PER_VIDEO, dtype=np.int32)

    def batches() -> Iterator[Any]:
        for number in range(arguments.moments // MOMENTS_PER_VIDEO):
            name = new_rows_name()
            values = pa.array(video_vectors(generator, themes).ravel())
            entries.append(
                ClipEntry(
                    key=f"{number:032x}:-", rows=name, path=f"/videos/{number:06d}.mp4", end=MOMENTS_PER_VIDEO * HOP,
                    moments=MOMENTS_PER_VIDEO, has_audio=True,
                )
            )  # fmt: skip
            columns = {
                "rows": pa.array([name] * MOMENTS_PER_VIDEO),
                "window": windows,
                "start": windows * HOP,
                "end": (windows + 1) * HOP,
                "time": (windows + 0.5) * HOP,
                "loudness": np.full(MOMENTS_PER_VIDEO, -20, np.float32),
                "audio": pa.FixedSizeListArray.from_arrays(values, arguments.hidden),
                "video": pa.nulls(MOMENTS_PER_VIDEO, schema.field("video").type),
                "thumbnail": pa.nulls(MOMENTS_PER_VIDEO, pa.binary()),
            }
            yield pa.record_batch(columns, schema=schema)

    store.append(batches())
    store.register(entries)
    return store


def make_queries(
    store: MomentStore, count: int, windows: int, noise: float, seed: int
) -> list[tuple[str, np.ndarray]]:
    """Stretches of stored videos with noise: path of the video, and `(windows, hidden)` float32."""
    generator = np.random.default_rng(seed)
    entries = sorted(store.entries().values(), key=lambda entry: entry.path)
    queries = []
    for entry in generator.choice(np.array(entries, dtype=object), count):
        first = int(generator.integers(MOMENTS_PER_VIDEO - windows))
        rows = pa.Table.from_batches(store.scan(["window", "audio"], f"rows = '{entry.rows}'")).sort_by("window")
        vectors = np.array(rows["audio"][first : first + windows].to_pylist(), np.float32)
        blur = generator.standard_normal(vectors.shape).astype(np.float32) / np.sqrt(vectors.shape[1])
        queries.append((entry.path, unit(vectors + noise * blur).astype(np.float32)))
    return queries


def nearest_exactly(store: MomentStore, vectors: np.ndarray, count: int) -> list[set[tuple[str, int]]]:
    """For each vector, its nearest moments by comparing all."""
    best = np.full((len(vectors), count), -np.inf, np.float32)
    names = np.full((len(vectors), count), None, dtype=object)
    hidden = vectors.shape[1]
    for batch in store.scan(["rows", "window", "audio"]):
        stored = batch["audio"].flatten().to_numpy().reshape(-1, hidden).astype(np.float32)
        cosines = vectors @ stored.T
        rows, windows = batch["rows"].to_pylist(), batch["window"].to_pylist()
        for query in np.flatnonzero(cosines.max(axis=1) > best[:, -1]):
            for place in np.argsort(-cosines[query], kind="stable")[:count]:
                if cosines[query, place] <= best[query, -1]:
                    break
                at = np.searchsorted(-best[query], -cosines[query, place], side="right")
                best[query, at + 1 :] = best[query, at:-1]
                names[query, at + 1 :] = names[query, at:-1]
                best[query, at], names[query, at] = cosines[query, place], (rows[place], windows[place])
    return [set(row) for row in names]


def peak() -> float:
    """MiB that this process had in memory at most, until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def timed(work: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """What a call gives; its milliseconds, and those of the processor, which other programs disturb less."""
    begin = np.array([time.perf_counter(), time.process_time()])
    result = work()
    return result, 1000 * (np.array([time.perf_counter(), time.process_time()]) - begin)


def measure_recall(store: MomentStore, arguments: argparse.Namespace) -> None:
    """Recall@10 and time of the nearest moments, for several efforts."""
    queries = np.concatenate(
        [audio for _, audio in make_queries(store, arguments.queries, 1, arguments.noise, seed=1)]
    )
    begin = time.perf_counter()
    expected = nearest_exactly(store, queries, 10)
    seconds = time.perf_counter() - begin
    print(f"all {len(queries)} queries compared with every moment in {seconds:.1f} s", flush=True)
    chosen = partitions_to_search(store.partitions("audio")), REFINE
    efforts = [(chosen[0] // 2, REFINE // 2), (chosen[0], REFINE // 4), chosen, (chosen[0] * 2, REFINE)]
    recalls: dict[Any, list[float]] = {effort: [] for effort in efforts}
    times: dict[Any, list[float]] = {effort: [] for effort in efforts}
    for vector, wanted in zip(queries, expected, strict=True):
        for effort in efforts:
            (ids, _, _), took = timed(lambda effort=effort, vector=vector: nearest(store, vector, *effort))
            rows = store.take(ids, ["rows", "window"])
            found = set(zip(rows["rows"].to_pylist(), rows["window"].to_pylist(), strict=True))
            recalls[effort].append(len(found & wanted) / 10)
            times[effort].append(took[0])
    for effort in efforts:
        mark = "  <- the approximate call" if effort == chosen else ""
        print(
            f"{effort[0]:4d} of {store.partitions('audio')} parts, refined {effort[1]:2d}-fold: recall@10 "
            f"{np.mean(recalls[effort]):.4f}, {statistics.median(times[effort]):.1f} ms median{mark}",
            flush=True,
        )


def nearest(store: MomentStore, vector: np.ndarray, partitions: int, refine: int) -> Any:
    return store.nearest("audio", vector[None], 10, partitions=partitions, refine=refine)


def as_query(path: str, audio: np.ndarray) -> Query:
    there = np.ones(len(audio), bool)
    return Query(
        name=path, by="audio", audio=audio, video=np.zeros_like(audio), audio_present=there, video_present=~there,
        start=0.0, seconds=len(audio) * HOP,
    )  # fmt: skip


def search_queries(store: MomentStore, arguments: argparse.Namespace) -> dict[int, list[Query]]:
    """Queries of one moment and of sixteen."""
    count = arguments.queries // 4
    return {
        windows: [as_query(*made) for made in make_queries(store, count, windows, arguments.noise, seed=windows)]
        for windows in (1, 16)
    }


class Before:
    """Another version of the package, which searches the same index in a process of its own."""

    def __init__(self, store: MomentStore, arguments: argparse.Namespace) -> None:
        given = f"--answer --queries {arguments.queries} --noise {arguments.noise} --index".split()
        self._process = subprocess.Popen(
            [sys.executable, __file__, *given, store.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(arguments.before.resolve())},
        )  # fmt: skip

    def search(self, windows: int, number: int, name: str) -> tuple[list[tuple[str, float]], np.ndarray]:
        """Paths and starts of the hits; milliseconds, and those of the processor."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([windows, number, name]), file=self._process.stdin, flush=True)
        hits, took = json.loads(self._process.stdout.readline())
        return [(path, start) for path, start in hits], np.array(took)


def answer(arguments: argparse.Namespace) -> None:
    """The other side of `Before`."""
    store = MomentStore.open(arguments.index)
    queries = search_queries(store, arguments)
    for line in sys.stdin:
        windows, number, name = json.loads(line)
        query, chosen = queries[windows][number], FILTERS[name]
        result, took = timed(
            lambda query=query, chosen=chosen: search_moments(store, query, find="audio", filters=chosen)
        )
        print(json.dumps([[(hit.path, hit.start) for hit in result], took.tolist()]), flush=True)


def measure_searches(store: MomentStore, arguments: argparse.Namespace) -> None:
    """Time of whole searches beside the approximate call, and whether they give what exact ones do."""
    count = arguments.queries // 4
    partitions = partitions_to_search(store.partitions("audio"))
    queries = search_queries(store, arguments)
    names = [name for name in FILTERS if name == "no filter" or name in (arguments.only or FILTERS)]
    kinds = [(windows, name) for windows in queries for name in names]
    before = None if arguments.before is None else Before(store, arguments)
    times: dict[Any, list[np.ndarray]] = {key: [] for key in ["call", *kinds, *(("before", *kind) for kind in kinds)]}
    found: dict[Any, list[Any]] = {key: [] for key in times}
    for number in range(-2, count):  # the first ones open files
        # In another order each time: what comes after a rest finds caches cold.
        for key in random.Random(number).sample(list(times), len(times)):
            if key == "call":
                audio = queries[1][number].audio[0]
                result, took = timed(lambda audio=audio: nearest(store, audio, partitions, REFINE))
            elif key[0] != "before":
                query, chosen = queries[key[0]][number], FILTERS[key[1]]
                result, took = timed(
                    lambda query=query, chosen=chosen: search_moments(store, query, find="audio", filters=chosen)
                )
            elif before is not None:
                result, took = before.search(key[1], number, key[2])
            else:
                continue
            if number >= 0:
                times[key].append(took)
                found[key].append(result)
    medians = {key: np.median(values, axis=0) for key, values in times.items() if values}
    (passed, worked), least = medians["call"], np.min(times["call"], axis=0)
    print(f"approximate call: median {passed:.1f} ms, least {least[0]:.1f}; of the processor {worked:.1f} ms")
    for windows in queries:
        for name in names:
            key = windows, name
            (passed, worked), least = medians[key], np.min(times[key], axis=0)
            of_call, of_none = medians[key] / medians["call"], medians[key] / medians[windows, "no filter"]
            print(
                f"search of {windows:2d} moments, {name}: median {passed:.1f} ms, least {least[0]:.1f}, "
                f"{of_call[0]:.2f} times the call, {of_none[0]:.2f} times no filter; of the processor {worked:.1f} "
                f"ms, {of_call[1]:.2f} times the call, {of_none[1]:.2f} times no filter",
                flush=True,
            )
            if before is not None:
                (passed, worked), pairs = medians["before", *key], zip(found["before", *key], found[key], strict=True)
                # Where neither finds anything they agree.
                same = [
                    len(set(old) & {(h.path, h.start) for h in new}) / len(old) if old else float(not len(new))
                    for old, new in pairs
                ]
                print(
                    f"    before: {passed:.1f} ms; of the processor {worked:.1f} ms, "
                    f"{worked / medians['call'][1]:.2f} times the call, "
                    f"{worked / medians['before', windows, 'no filter'][1]:.2f} times no filter; "
                    f"{np.mean(same):.3f} of its hits are the same",
                    flush=True,
                )
    compared = arguments.only or list(FILTERS)[:-1]
    for windows, name in ((w, name) for w in queries for name in compared):
        pattern = FILTERS[name].files
        pairs = list(zip(queries[windows], found[windows, name], strict=True))
        inside = [pair for pair in pairs if pattern is None or fnmatch.fnmatch(pair[0].name, pattern)]
        outside = [pair for pair in pairs if pattern is not None and not fnmatch.fnmatch(pair[0].name, pattern)]
        for kind, chosen in (("own file in", inside), ("own file left out", outside)):
            tell_agreement(
                f"{windows} moments, {name}" + (f", {kind}" if pattern else ""), store, chosen[: arguments.exact],
                FILTERS[name],
            )  # fmt: skip
    print(f"peak {peak():.0f} MiB")


def tell_agreement(what: str, store: MomentStore, pairs: list[tuple[Query, Any]], filters: SearchFilters) -> None:
    """Share of the exact search's hits that others have, and how far their mean score lies below."""
    same, lost, best = [], [], []
    begin = time.perf_counter()
    for query, one in pairs:
        other = search_moments(store, query, find="audio", exact=True, filters=filters)
        if not len(other):  # the limits have no room for the query
            continue
        same.append(len({(h.path, h.start) for h in one} & {(h.path, h.start) for h in other}) / len(other))
        lost.append(np.mean([h.score for h in other]) - np.mean([h.score for h in one] or [0.0]))
        best.append((other[0].score, other[-1].score))
    if same:
        first, last = np.mean(best, axis=0)
        print(
            f"{what}: {np.mean(same):.3f} of the exact search's hits, mean score {np.mean(lost):.4f} lower, where its "
            f"first has {first:.3f} and its last {last:.3f}; {len(same)} compared, "
            f"{(time.perf_counter() - begin) / len(same):.1f} s each",
            flush=True,
        )


def synthetic(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        place = arguments.index or Path(folder) / "index"
        begin, work = time.perf_counter(), time.process_time()
        store = MomentStore.open(place) if place.exists() else make_index(place, arguments)
        print(
            f"{store.count()} moments, written or opened in {time.perf_counter() - begin:.0f} s, "
            f"{time.process_time() - work:.0f} s of the processor; peak {peak():.0f} MiB",
            flush=True,
        )
        if not store.indexed_columns():
            begin, work = time.perf_counter(), time.process_time()
            store.build_index(index_config(store.count()), store.count(), ["audio"])
            print(
                f"approximate index built in {time.perf_counter() - begin:.0f} s, {time.process_time() - work:.0f} s "
                f"of the processor; peak {peak():.0f} MiB",
                flush=True,
            )
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        print(
            f"{size / 2**30:.2f} GiB on disk; load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
            flush=True,
        )
        measure_recall(store, arguments)
        measure_searches(store, arguments)


def world(arguments: argparse.Namespace) -> None:
    from cavmae_sync_hf.loading import load_model

    model, processor = load_model(arguments.model, modalities="both")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        summary = index_videos(arguments.world, Path(folder) / "index", model, processor, hop=arguments.hop)
        print(summary)
        store = MomentStore.open(Path(folder) / "index")
        entries = sorted((entry for entry in store.entries().values() if entry.rows), key=lambda entry: entry.path)
        generator = np.random.default_rng(0)
        latest = entries[0].end - arguments.seconds
        starts = np.round(generator.uniform(0, latest, len(entries)) / arguments.hop) * arguments.hop
        tasks = [("whole clips", None, None), (f"moments of {arguments.seconds:g} s", starts, arguments.seconds)]
        ways = [("audio", "video"), ("video", "audio"), ("audio", "audio"), ("video", "video")]
        for what, begins, length in tasks:
            for by, find in ways:
                tell(
                    store, entries, model, processor, hop=arguments.hop, what=what, begins=begins, length=length,
                    by=by, find=find,
                )  # fmt: skip


def tell(
    store: MomentStore, entries: list[ClipEntry], model: CavMaeSyncModel, processor: CavMaeSyncProcessor, *,
    hop: float, what: str, begins: np.ndarray | None, length: float | None, by: Side, find: Side,
) -> None:  # fmt: skip
    """Ask for each clip, or for a moment of it, and count what is found."""
    first = moment = near = 0
    times, asked = [], 0
    for number, entry in enumerate(entries):
        start = None if begins is None else float(begins[number])
        span = {} if start is None or length is None else {"start": start, "end": start + length}
        try:
            query = embed_query(entry.path, model, processor, hop=hop, by=by, **span)
        except QueryError:  # this moment is silent
            continue
        asked += 1
        begin = time.perf_counter()
        # One hit of each file: the rank of the file is asked for, and the best moment in it.
        result = search_moments(store, query, find=find, top=len(entries), filters=SearchFilters(per_file=1))
        times.append(1000 * (time.perf_counter() - begin))
        own = next((hit for hit in result if hit.path == entry.path), None)
        first += bool(len(result)) and result[0].path == entry.path
        if own is not None:
            moment += abs(own.start - (start or 0.0)) <= hop + 1e-6
            near += result[0].path == entry.path and abs(own.start - (start or 0.0)) <= hop + 1e-6
    print(
        f"{what}, {by} -> {find}: own file first {first / asked:.3f}; in the own file the moment within a hop "
        f"{moment / asked:.3f}; both {near / asked:.3f}; {asked} asked, {statistics.median(times):.0f} ms each"
    )


def main() -> None:
    arguments = parse_arguments()
    if arguments.answer:
        answer(arguments)
    elif arguments.world is None:
        synthetic(arguments)
    elif arguments.model is None:
        raise SystemExit("--world needs --model.")
    else:
        world(arguments)


if __name__ == "__main__":
    main()
