"""How well `cavmae-sync score` finds and places sounds on SyncWorld: the table of the results.

    python training/benchmarks/score.py out --seeds 3
    python training/benchmarks/score.py out --seeds 3 --place sync
    python training/benchmarks/score.py out --table
    python training/benchmarks/score.py out --library 100000
    python training/benchmarks/score.py out --minutes 2 10 40

Models of the recipe `syncworld_tiny`, trained for `--steps` with one seed each, score `--films` semantic clips whose
audio they do not hear, with a library of the single events of another world. The first `--judged` results are judged
by `measure_sync` with the model itself and with that of the next seed, which has chosen nothing, beside

- the true track, and the true events of the clip put in their places by the same mixing (the ceiling of the method),
- as many random recordings, as long, at random times (chance).

All but the true track have the background of another clip as room tone.

`--library` times a film of 10 s with a library of so many recordings (links to one file, with vectors made at random)
and the example model; `--minutes` the memory and time of films of these lengths, each in a process of its own.

What is there already in `out` is not made again.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

from cavmae_sync_hf import index_videos, load_model, make_world, measure_sync
from cavmae_sync_hf.model.errors_cavmae_sync import InferenceError
from cavmae_sync_hf.search.approximate import keep_index
from cavmae_sync_hf.search.indexing import DEFAULT_THRESHOLD
from cavmae_sync_hf.search.placements import Placement
from cavmae_sync_hf.search.scoring import score_film
from cavmae_sync_hf.search.settings import IndexSettings
from cavmae_sync_hf.search.soundtrack import RATE, mix, read_samples, write_film
from cavmae_sync_hf.search.store import MomentStore, open_index
from cavmae_sync_hf.search.tables import ClipEntry, moments_schema, new_rows_name
from cavmae_sync_hf.syncworld import find_truth

NEAR = 0.1
TRACKS = ("true track", "scored", "true events", "random")


def write_wav(path: Path, samples: np.ndarray) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32), format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)


def truths(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """Truth of clips of a world."""
    return [dict(record) for record in find_truth(folder, names) or ()]


def events_as_files(folder: Path, names: list[str], target: Path) -> dict[str, list[Path]]:
    """Each event of clips as a file of its own, by the clip's name."""
    found = {}
    for name, record in zip(names, truths(folder, names), strict=True):
        paths = [target / f"{event['label_name']}_{name}_{n}.wav" for n, event in enumerate(record["events"])]
        found[name] = paths
        if all(path.exists() for path in paths):
            continue
        target.mkdir(parents=True, exist_ok=True)
        samples = read_samples(folder / f"{name}.mp4", 0.0, record["duration"], layout="mono")
        for path, event in zip(paths, record["events"], strict=True):
            write_wav(path, samples[:, round(event["start"] * RATE) : round(event["end"] * RATE)])
    return found


def write_room(folder: Path, name: str, record: dict[str, Any], target: Path) -> None:
    """The background of a clip, from where nothing sounds in it, as room tone."""
    samples = read_samples(folder / f"{name}.mp4", 0.0, record["duration"], layout="mono")
    times = np.arange(samples.shape[1]) / RATE
    quiet = np.ones(len(times), bool)
    for event in record["events"]:
        quiet &= (times < event["start"] - 0.05) | (times > event["end"] + 0.05)
    write_wav(target, samples[:, quiet])


def label(path: str | Path) -> str:
    return Path(path).name.split("_")[0]


def compare(sounds: tuple[Placement, ...], events: list[dict[str, Any]]) -> dict[str, Any]:
    """Placed sounds beside true events."""
    errors, right = [], 0
    for event in events:
        near = [sound for sound in sounds if sound.time < event["end"] and sound.time + sound.seconds > event["start"]]
        if near:
            best = min(near, key=lambda sound: abs(sound.time - event["start"]))
            right += label(best.path) == event["label_name"]
            errors.append(abs(best.time - event["start"]))
    idle = sum(
        all(sound.time >= event["end"] or sound.time + sound.seconds <= event["start"] for event in events)
        for sound in sounds
    )
    return {"events": len(events), "right": right, "errors": errors, "sounds": len(sounds), "idle": idle}


def at_random(
    sounds: tuple[Placement, ...], library: list[Path], seconds: float, rng: np.random.Generator
) -> tuple[Placement, ...]:
    """As many recordings of the library at random times."""
    found = []
    for sound in sounds:
        path = library[rng.integers(len(library))]
        with av.open(str(path)) as file:
            length = float((file.duration or 0) / av.time_base)
        length = min(length, sound.seconds)
        time = float(rng.uniform(0, seconds - length))
        found.append(replace(sound, path=str(path), time=time, start=0.0, end=length))
    return tuple(found)


def score_seed(out: Path, seed: int, seeds: int, count: int, judged_films: int, place: str) -> dict[str, Any]:
    """All figures of one seed."""
    names = [f"{number:06d}" for number in range(count)]
    own = events_as_files(out / "world" / "films", names, out / "own")
    library = [
        path for paths in events_as_files(out / "world" / "others", names, out / "sounds").values() for path in paths
    ]
    write_room(out / "world" / "others", names[0], truths(out / "world" / "others", names[:1])[0], out / "room.wav")
    model, processor = load_model(out / f"model{seed}")
    index = out / f"sounds{seed}.index"
    if not index.exists():
        index_videos(out / "sounds", index, model, processor, hop=0.25)
    judges = {"itself": (model, processor), "another": load_model(out / f"model{(seed + 1) % seeds}")}
    rng = np.random.default_rng(seed)
    rows: dict[str, list[dict[str, Any]]] = {"scored": [], "random": []}
    judged: dict[str, dict[str, list[bool]]] = {judge: {track: [] for track in TRACKS} for judge in judges}
    for done, (name, record) in enumerate(zip(names, truths(out / "world" / "films", names), strict=True), 1):
        film, seconds = out / "world" / "films" / f"{name}.mp4", record["duration"]
        try:
            sounds = score_film(film, index, model, processor, place=place).placements  # type: ignore[arg-type]
        except InferenceError:  # nothing in it asks for a sound
            sounds = ()
        chance = at_random(sounds, library, seconds, rng)
        true = tuple(
            Placement(event["start"], str(path), 0.0, event["end"] - event["start"], 0.0, 0, (0.0, 0.0), "")
            for event, path in zip(record["events"], own[name], strict=True)
        )
        rows["scored"].append(compare(sounds, record["events"]))
        rows["random"].append(compare(chance, record["events"]))
        if done > judged_films:
            continue
        for track, placed in (("true track", None), ("scored", sounds), ("true events", true), ("random", chance)):
            wave = (
                None
                if placed is None
                else np.concatenate(list(mix(placed, seconds, room_tone=out / "room.wav")), axis=1).mean(axis=0)
            )
            for judge, (judging, prepared) in judges.items():
                try:
                    verdict = measure_sync(judging, prepared, film, wave, sampling_rate=None if wave is None else RATE)
                    judged[judge][track].append(verdict.verdict.kind == "in sync")
                except InferenceError:
                    judged[judge][track].append(False)
        if done % 20 == 0:
            print(f"seed {seed}: {done} of {count} films", file=sys.stderr)
    values: dict[str, Any] = {"seed": seed, "films": count, "judged": min(count, judged_films), "place": place}
    for kind, found in rows.items():
        errors = np.array([error for row in found for error in row["errors"]])
        events = sum(row["events"] for row in found)
        values[kind] = {
            "events": events,
            "with_sound": 100 * len(errors) / events,
            "class_right": 100 * sum(row["right"] for row in found) / events,
            "onset_median": float(np.median(errors)) if len(errors) else None,
            "onset_near": 100 * float((errors <= NEAR + 1e-6).sum()) / events,
            "idle_sounds": 100 * sum(row["idle"] for row in found) / max(1, sum(row["sounds"] for row in found)),
        }
    values["in_sync"] = {
        judge: {track: 100 * statistics.mean(told) for track, told in tracks.items()}
        for judge, tracks in judged.items()
    }
    return values


def make_library(out: Path, count: int) -> Path:
    """An index of so many recordings of four moments each: all are one file, and their vectors random."""
    folder, index = out / f"library{count}", out / f"library{count}.index"
    if index.exists():
        return index
    model, processor = load_model("example")
    settings = IndexSettings.of(model, processor, 0.25)
    (out / "world").mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True)
    write_wav(out / "sound.wav", np.random.default_rng(0).normal(scale=0.1, size=(1, RATE)))
    store, generator = MomentStore.create(index, settings), np.random.default_rng(0)
    schema = moments_schema(settings.hidden_size)
    entries: list[ClipEntry] = []

    def batches() -> Iterator[Any]:
        for first in range(0, count, 1000):
            names = [new_rows_name() for _ in range(min(1000, count - first))]
            for number, name in enumerate(names, first):
                path = (folder / f"{number:06d}.wav").absolute()
                path.symlink_to((out / "sound.wav").absolute())
                key = f"{number:032x}:-"
                entries.append(ClipEntry(key=key, rows=name, path=str(path), end=1.0, moments=4, has_audio=True))
            windows = np.tile(np.arange(4, dtype=np.int32), len(names))
            vectors = generator.standard_normal((len(windows), settings.hidden_size), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            values = pa.array(vectors.astype(np.float16).ravel())
            columns = {
                "rows": pa.array([name for name in names for _ in range(4)]),
                "window": windows,
                "start": windows * 0.25,
                "end": (windows + 1) * 0.25,
                "time": (windows + 0.5) * 0.25,
                "loudness": np.full(len(windows), -20, np.float32),
                "audio": pa.FixedSizeListArray.from_arrays(values, settings.hidden_size),
                "video": pa.nulls(len(windows), schema.field("video").type),
                "thumbnail": pa.nulls(len(windows), pa.binary()),
            }
            yield pa.record_batch(columns, schema=schema)

    store.append(batches())
    store.register(entries)
    keep_index(store, DEFAULT_THRESHOLD)
    return index


def time_library(out: Path, count: int) -> None:
    """How long a film of 10 s takes with a library of so many recordings."""
    index = make_library(out, count)
    make_world(out / "world", clips=1, seed=101, split="timed", preset="semantic", workers=1)
    film, (model, processor) = out / "world" / "timed" / "000000.mp4", load_model("example")
    store = open_index(index)
    for run in ("first", "second"):  # an open index remembers its files
        began, used = time.perf_counter(), time.process_time()
        found = score_film(film, store, model, processor, min_fit=-99.0)
        took = f"{time.perf_counter() - began:.1f} s ({time.process_time() - used:.1f} s of processor time)"
        print(f"{count} recordings, {run} time: {took} for {len(found.segments)} segments")


def measure_film(out: Path, minutes: float) -> None:
    """Memory and time of one film, with the first seed's model and index."""
    split = f"long{minutes:g}"
    make_world(out / "world", clips=1, seed=103, split=split, preset="semantic", seconds=60 * minutes, workers=1)
    film, (model, processor) = out / "world" / split / "000000.mp4", load_model(out / "model0")
    began = time.perf_counter()
    found = score_film(film, out / "sounds0.index", model, processor)
    scored = time.perf_counter() - began
    write_film(found, out / "long.mp4", original="replace", overwrite=True)
    written = time.perf_counter() - began - scored
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    counted = f"{len(found.placements)} sounds in {len(found.segments)} segments"
    print(f"{minutes:g} minutes: {counted}, {scored:.0f} s to find, {written:.0f} s to write, peak {peak:.0f} MiB")


def show(found: list[dict[str, Any]]) -> None:
    def cells(values: list[float]) -> str:
        return f"{statistics.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"

    print("| per cent, mean and seeds | scored | random recordings and times |\n|---|---|---|")
    for key, name in (
        ("with_sound", "events with a sound"), ("class_right", "events with a sound of the right class"),
        ("onset_near", f"events with a sound within {NEAR} s"), ("idle_sounds", "sounds where nothing sounds"),
    ):  # fmt: skip
        row = [cells([one[kind][key] for one in found]) for kind in ("scored", "random")]
        print(f"| {name} | {' | '.join(row)} |")
    medians = [
        f"{statistics.mean([one[kind]['onset_median'] for one in found]):.3f} s" for kind in ("scored", "random")
    ]
    print(f"| median onset error | {' | '.join(medians)} |")
    print(f"\n| judged in sync by | {' | '.join(TRACKS)} |\n|---|{'---|' * len(TRACKS)}")
    for judge in ("itself", "another"):
        row = [cells([one["in_sync"][judge][track] for one in found]) for track in TRACKS]
        print(f"| {judge} | {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, help="one of them alone, once all models are there")
    parser.add_argument("--steps", type=int, default=1200, help="steps in which each model is trained")
    parser.add_argument("--films", type=int, default=200)
    parser.add_argument("--judged", type=int, default=200, help="films that are judged by `measure_sync`")
    parser.add_argument("--place", choices=("onset", "sync"), default="onset")
    parser.add_argument("--table", action="store_true", help="print what is there")
    parser.add_argument("--library", type=int, help="recordings of a library that is timed")
    parser.add_argument("--minutes", type=float, nargs="+", help="lengths of films that are measured")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if arguments.library:
        time_library(out, arguments.library)
        return
    if arguments.minutes and len(arguments.minutes) == 1:
        measure_film(out, arguments.minutes[0])
        return
    if arguments.minutes:
        for minutes in arguments.minutes:
            subprocess.run([sys.executable, __file__, str(out), "--minutes", str(minutes)], check=True)
        return
    for split, seed in (("films", 101), ("others", 102)):
        if not arguments.table:
            make_world(out / "world", clips=arguments.films, seed=seed, split=split, preset="semantic", workers=1)
    for seed in range(arguments.seeds):
        if not (out / f"model{seed}" / "config.json").exists() and not arguments.table:
            command = ["cavmae-sync", "pretrain", "syncworld_tiny", "--seed", str(seed), "--disable_tqdm", "true"]
            command += ["--output_dir", str(out / f"run{seed}"), "--max_steps", str(arguments.steps)]
            subprocess.run(command, check=True)
            (out / f"run{seed}").rename(out / f"model{seed}")
    for seed in range(arguments.seeds) if arguments.seed is None else [arguments.seed]:
        path = out / f"{arguments.place}{seed}.json"
        if not path.exists() and not arguments.table:
            values = score_seed(out, seed, arguments.seeds, arguments.films, arguments.judged, arguments.place)
            path.write_text(json.dumps(values, indent=2))
    show([json.loads(path.read_text()) for path in sorted(out.glob(f"{arguments.place}[0-9].json"))])


if __name__ == "__main__":
    main()
