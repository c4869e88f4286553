"""Recall and speed of the approximate index against comparing every moment, and what a search finds on SyncWorld.

    python training/benchmarks/search.py                                    # 1,000,000 moments of 768 values
    python training/benchmarks/search.py --moments 100000 --hidden 256
    python training/benchmarks/search.py --world outputs/syncworld/semantic --model MODEL

The first form makes an index of synthetic videos: each is near one of a few thousand themes, with an offset of its
own, and wanders slowly about it, so that neighbours in time are alike as those of real videos are. Queries are stored
moments with noise. It counts how many of the ten nearest moments, by comparing all of them, the approximate index
gives back (recall@10), for several efforts; then whole searches along the diagonal are timed, queries of one moment
and of sixteen. The index lies in a temporary folder (`--folder`), which is removed.

The second form indexes the clips of a SyncWorld and asks for each by its audio alone, among the frames of all, and
by its frames, among all audio: whether its own file comes first, and whether the moment found is the one asked for.
"""

import argparse
import os
import statistics
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
from cavmae_sync_hf.search.approximate import REFINE, index_config, partitions_to_search
from cavmae_sync_hf.search.querying import Side
from cavmae_sync_hf.search.tables import moments_schema, new_rows_name

HOP = 0.5
MOMENTS_PER_VIDEO = 1000
THEMES = 2000
BATCH = 10_000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=1_000_000)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--noise", type=float, default=0.5, help="of the queries, as a share of their length")
    parser.add_argument("--folder", help="where the temporary folder is made")
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


def make_index(folder: str, arguments: argparse.Namespace) -> MomentStore:
    """An index of synthetic videos; only audio has vectors."""
    settings = IndexSettings(hop=HOP, hidden_size=arguments.hidden, window_seconds=4.16, weights="synthetic", model="")
    store = MomentStore.create(Path(folder) / "index", settings)
    generator = np.random.default_rng(0)
    themes = unit(generator.standard_normal((THEMES, arguments.hidden), dtype=np.float32))
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


def make_queries(store: MomentStore, count: int, windows: int, noise: float, seed: int) -> list[np.ndarray]:
    """Stretches of stored videos with noise, each `(windows, hidden)` float32."""
    generator = np.random.default_rng(seed)
    entries = sorted(store.entries().values(), key=lambda entry: entry.path)
    queries = []
    for entry in generator.choice(np.array(entries, dtype=object), count):
        first = int(generator.integers(MOMENTS_PER_VIDEO - windows))
        ids, _, numbers = store.locate([entry.rows])
        chosen = ids[(numbers >= first) & (numbers < first + windows)]
        rows = store.take(chosen, ["window", "audio"]).sort_by("window")
        vectors = np.array(rows["audio"].to_pylist(), np.float32)
        blur = generator.standard_normal(vectors.shape).astype(np.float32) / np.sqrt(vectors.shape[1])
        queries.append(unit(vectors + noise * blur).astype(np.float32))
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


def timed(work: Callable[[Any], Any], items: list[Any]) -> tuple[list[Any], list[float]]:
    """Results and milliseconds of each call; the first, which opens files, is made twice."""
    work(items[0])
    results, times = [], []
    for item in items:
        begin = time.perf_counter()
        results.append(work(item))
        times.append(1000 * (time.perf_counter() - begin))
    return results, times


def say_times(times: list[float]) -> str:
    return f"{statistics.median(times):7.1f} ms median, {np.quantile(times, 0.95):7.1f} ms at the 95th percentile"


def measure_recall(store: MomentStore, arguments: argparse.Namespace) -> None:
    """Recall@10 and time of the nearest moments, for several efforts."""
    queries = np.concatenate(make_queries(store, arguments.queries, 1, arguments.noise, seed=1))
    begin = time.perf_counter()
    expected = nearest_exactly(store, queries, 10)
    seconds = time.perf_counter() - begin
    print(f"all {len(queries)} queries compared with every moment in {seconds:.1f} s")
    chosen = partitions_to_search(store.count()), REFINE
    for partitions, refine in (
        (chosen[0] // 2, REFINE // 2),
        (chosen[0], REFINE // 4),
        chosen,
        (chosen[0] * 2, REFINE),
    ):

        def nearest(vector: np.ndarray, partitions: int = partitions, refine: int = refine) -> set[tuple[str, int]]:
            names, windows, _, _ = store.nearest("audio", vector[None], 10, partitions=partitions, refine=refine)
            return set(zip(names.to_pylist(), windows.tolist(), strict=True))

        found, times = timed(nearest, list(queries))
        recall = np.mean([len(one & other) / 10 for one, other in zip(found, expected, strict=True)])
        mark = "  <- used" if (partitions, refine) == chosen else ""
        print(f"{partitions:4d} parts, refined {refine:2d}-fold: recall@10 {recall:.4f}, {say_times(times)}{mark}")


def measure_searches(store: MomentStore, arguments: argparse.Namespace) -> None:
    """Time of whole searches, and whether they give what exact ones do."""
    for windows in (1, 16):
        vectors = make_queries(store, arguments.queries // 4, windows, arguments.noise, seed=windows)
        there = np.ones(windows, bool)
        queries = [
            Query(
                name="query",
                by="audio",
                audio=audio,
                video=np.zeros_like(audio),
                audio_present=there,
                video_present=~there,
                start=0.0,
                seconds=windows * HOP,
            )
            for audio in vectors
        ]
        quick, times = timed(lambda query: search_moments(store, query, find="audio", top=10), queries)
        some = queries[:5]
        exact, exact_times = timed(lambda query: search_moments(store, query, find="audio", top=10, exact=True), some)
        same = [
            len({(hit.path, hit.start) for hit in one} & {(hit.path, hit.start) for hit in other}) / len(other)
            for one, other in zip(quick, exact, strict=False)
        ]
        firsts = np.mean([one[0].path == other[0].path for one, other in zip(quick, exact, strict=False)])
        print(f"search of {windows:2d} moments, ten hits: {say_times(times)}; exactly: {say_times(exact_times)}")
        print(
            f"  of {len(some)} compared with exact: {np.mean(same):.3f} of ten hits the same, first file {firsts:.2f}"
        )


def synthetic(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        begin = time.perf_counter()
        store = make_index(folder, arguments)
        print(f"{store.count()} moments of {arguments.hidden} written in {time.perf_counter() - begin:.0f} s")
        begin = time.perf_counter()
        store.build_index(index_config(store.count()), store.count(), ["audio"])
        print(f"approximate index built in {time.perf_counter() - begin:.0f} s")
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        print(
            f"{size / 2**30:.2f} GiB on disk; load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        )
        measure_recall(store, arguments)
        measure_searches(store, arguments)


def world(arguments: argparse.Namespace) -> None:
    from cavmae_sync_hf.inference.loading import load_model

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
    if arguments.world is None:
        synthetic(arguments)
    elif arguments.model is None:
        raise SystemExit("--world needs --model.")
    else:
        world(arguments)


if __name__ == "__main__":
    main()
