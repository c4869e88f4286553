"""Speed, memory and closeness of every backend and precision that can run a model, on the same films in one run.

    python training/benchmarks/backends.py                        # published sizes with random weights, this processor
    python training/benchmarks/backends.py --model MODEL --films FOLDER
    python training/benchmarks/backends.py --model example --world world/test --no-speed
    python training/benchmarks/backends.py --scene 2 --still 0.02         # films in which little moves
    python training/benchmarks/backends.py --no-vnni --no-bfloat16        # as if the processor had AVX2 alone

Needs the extras `export` and `archive`. Every measurement is a process of its own, which indexes all films; the
backends take turns, and what counts is the ratio of medians, by the clock and by processor time, which other work on
the machine changes less. What happens once (loading, opening the towers) is not timed, and an export is made before.
Memory is the highest of the process. Cosines are those of the index's vectors with the ones of PyTorch in float32. The
films are drawn now, if none are given: every frame and every sound differs, so that none is spared as equal to the one
before. With `--world`, a SyncWorld split: R@1 of the clips of that split with each backend. `OMP_NUM_THREADS` is the
number of threads of either backend.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import torch

from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncModel, CavMaeSyncProcessor
from cavmae_sync_hf.metrics import retrieval_metrics

# Backend, precision and the tolerance of still frames.
RUNS = (("torch", "float32", "0"), ("torch", "bfloat16", "0"), ("onnx", "float32", "0"), ("onnx", "int8", "0"))
MEASURE = """
import json, resource, sys, tempfile, time
import numpy as np
from cavmae_sync_hf import index_videos, load_model
from cavmae_sync_hf.evaluation.clips import open_evaluation
from cavmae_sync_hf.evaluation.protocols import RETRIEVAL_PROTOCOLS
from cavmae_sync_hf.evaluation.retrieval import embed_clips
from cavmae_sync_hf.search import MomentStore
from cavmae_sync_hf.search.tables import as_matrix

task, source, name, backend, precision, still, hop, vectors, warm = sys.argv[1:]
began = time.perf_counter()
model, processor = load_model(name, backend=backend, precision=precision, modalities="both")
found = {"loading": time.perf_counter() - began}
if task == "index":
    with tempfile.TemporaryDirectory() as folder:
        index_videos(warm, folder + "/first", model, processor, hop=float(hop))  # opens towers, imports
        spent = time.process_time()
        summary = index_videos(source, folder + "/index", model, processor, hop=float(hop), still=float(still))
        found |= {"seconds": summary.seconds, "spent": time.process_time() - spent, "moments": summary.moments}
        store = MomentStore.open(folder + "/index")
        paths = {entry.rows: entry.path for entry in store.entries().values()}
        rows = {}
        for batch in store.scan(["rows", "window", "audio", "video"]):
            sides = [as_matrix(batch[side], store.settings.hidden_size)[0] for side in ("audio", "video")]
            places = zip(batch["rows"].to_pylist(), batch["window"].to_pylist())
            for place, (owner, window) in enumerate(places):
                rows[paths[owner], window] = [side[place] for side in sides]
        np.save(vectors, np.array([rows[key] for key in sorted(rows)], np.float32))
elif task == "retrieval":
    clips = open_evaluation(source, processor, RETRIEVAL_PROTOCOLS["clips"], {})
    embeds = embed_clips(model, clips)
    np.savez(vectors, **{name: getattr(embeds, name) for name in ("audio", "video", "audio_mask", "video_mask")})
found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(found))
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: published sizes with random weights")
    parser.add_argument("--films", type=Path, help="folder of films; default: drawn now")
    parser.add_argument("--count", type=int, default=2, help="films that are drawn")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each")
    parser.add_argument("--hop", type=float, default=0.5)
    parser.add_argument(
        "--scene", type=float, default=0, help="drawn scenes stand still so many seconds, but for noise"
    )
    parser.add_argument("--still", type=float, default=0, help="also with this `--still` of `cavmae-sync index`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-bfloat16", action="store_true", help="for processors without it, which take minutes")
    parser.add_argument("--no-vnni", action="store_true", help="hide AVX-512, AMX and VNNI (Linux, Intel, C compiler)")
    parser.add_argument("--no-speed", action="store_true", help="retrieval alone")
    parser.add_argument("--world", type=Path, help="SyncWorld split for the retrieval")
    parser.add_argument("--cache", type=Path, help="folder of exports to keep; default: made anew and removed")
    return parser.parse_args()


def draw_film(path: Path, seconds: float, seed: int, scene: float = 0) -> None:
    """A film of 640 x 360 with a square that wanders over noise, or with scenes that stand still, and tones that
    change."""
    generator, rate = np.random.default_rng(seed), 16_000
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "28", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = 640, 360, "yuv420p"
        audio = container.add_stream("aac", rate=rate, layout="mono")
        for number in range(round(seconds * 25)):
            if number == 0 or (scene and number % round(scene * 25) == 0):
                ground = generator.integers(0, 255, (9, 16, 3), dtype=np.uint8).repeat(40, 0).repeat(40, 1)
            if scene:
                image = np.clip(ground + 3 * generator.standard_normal(ground.shape), 0, 255).astype(np.uint8)
                for packet in video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                    container.mux(packet)
                continue
            image = ground.copy()
            left, top = 300 + int(280 * np.sin(number / 20 + seed)), 150 + int(140 * np.cos(number / 31))
            image[top : top + 60, left : left + 60] = generator.integers(0, 255, 3)
            for packet in video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        times = np.arange(round(seconds * rate)) / rate
        wave = 0.3 * np.sin(2 * np.pi * (200 + 150 * seed + 80 * times) * times)
        wave += 0.05 * generator.standard_normal(len(times))
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        for packet in [*audio.encode(frame), *audio.encode(), *video.encode()]:
            container.mux(packet)


def run(
    task: str, source: Any, model: str, *how: str, hop: float = 0.5, vectors: Any = "", warm: Any = "", **env: str
) -> dict:
    """What one process measured."""
    command = [sys.executable, "-c", MEASURE, task, str(source), model, *how, str(hop), str(vectors), str(warm)]
    done = subprocess.run(command, env=os.environ | env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def processor_name() -> str:
    """The processor, and what of it counts here."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    facts = dict(line.split("\t: ", 1) for line in text.partition("\n\n")[0].replace("\t\t", "\t").splitlines()
                 if "\t: " in line)  # fmt: skip
    flags = {"avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"} & {*facts["flags"].split()}
    family = f"family {facts.get('cpu family')}, model {facts.get('model')}"
    return f"{facts['model name']} ({family}; {', '.join(sorted(flags))})"


def hide_vnni(folder: Path) -> str:
    """The library that hides AVX-512, AMX and VNNI from processes that preload it, built into a folder.

    Raises:
        SystemExit: This machine cannot.
    """
    library = folder / "without_vnni.so"
    source = Path(__file__).with_name("without_vnni.c")
    try:
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"--no-vnni: {source.name} needs a C compiler, `cc`, on Linux: {error}") from error
    show = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    shown = subprocess.run(
        [sys.executable, "-c", show], env=os.environ | {"LD_PRELOAD": str(library)}, capture_output=True, text=True
    ).stdout.strip()
    if shown != "AVX2":
        raise SystemExit(f"--no-vnni: the processor cannot be hidden here, PyTorch still finds {shown or 'nothing'}.")
    return str(library)


def words(how: tuple[str, ...]) -> str:
    """A backend, its precision and, where there is one, the tolerance, for a line of a table."""
    return " ".join(how[:2]) + (f", still {how[2]}" if how[2] != "0" else "")


def show_speed(arguments: argparse.Namespace, model: str, films: Path, folder: Path, **env: str) -> None:
    runs = [how for how in RUNS if how[1] != "bfloat16" or not arguments.no_bfloat16]
    if arguments.still:
        runs += [(*how[:2], str(arguments.still)) for how in (RUNS[0], RUNS[-1])]
    results: dict[tuple[str, ...], list[dict]] = {how: [] for how in runs}
    for number in range(arguments.rounds):
        for how in runs:
            vectors = folder / f"{'-'.join(how)}.npy"
            measured = run(
                "index", films, model, *how, hop=arguments.hop, vectors=vectors, warm=folder / "warm.mp4", **env
            )
            results[how].append(measured)
            made = results[how][-1]
            print(f"  round {number + 1}, {words(how)}: {made['moments'] / made['seconds']:.2f} moments/s", flush=True)
    found = {how: torch.from_numpy(np.load(folder / f"{'-'.join(how)}.npy")) for how in runs}
    base = {what: median(made[what] for made in results[RUNS[0]]) for what in ("seconds", "spent")}
    print(f"{'backend':24} moments/s   ratio, and of processor time   peak memory   cosine with float32: mean, lowest")
    for how, made in results.items():
        times = {what: median(one[what] for one in made) for what in base}
        cosines = torch.cosine_similarity(found[how], found[RUNS[0]], dim=-1)
        print(
            f"{words(how):24} {made[0]['moments'] / times['seconds']:9.2f} "
            f"{base['seconds'] / times['seconds']:7.2f} "
            f"{base['spent'] / times['spent']:23.2f} {median(one['peak'] for one in made):12.0f} MiB   "
            f"{cosines.mean():.5f}, {cosines.min():.5f}   (loaded in {median(one['loading'] for one in made):.1f} s)",
            flush=True,
        )


def show_retrieval(world: Path, model: str, folder: Path, **env: str) -> None:
    """R@1 with each backend, and with the audio of one and the video of another, as where an index is searched."""
    found = {}
    for how in RUNS:
        run("retrieval", world, model, *how, vectors=folder / "clips.npz", **env)
        found[how] = dict(np.load(folder / "clips.npz"))
    exact, small = RUNS[0], RUNS[-1]
    print(f"{len(found[exact]['audio'])} clips of {world}       R@1 audio to video, video to audio")
    for audio, video in (*((how, how) for how in RUNS), (exact, small), (small, exact)):
        metrics = retrieval_metrics(
            audio_embeds=found[audio]["audio"], audio_mask=found[audio]["audio_mask"],
            video_embeds=found[video]["video"], video_mask=found[video]["video_mask"],
        )  # fmt: skip
        name = words(audio) + ("" if audio == video else f", video by {words(video)}")
        print(f"{name:40} {metrics['audio_to_video_r1']:.4f}  {metrics['video_to_audio_r1']:.4f}", flush=True)


def main() -> None:
    arguments = parse_arguments()
    print(f"{processor_name()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        env = {"CAVMAE_SYNC_CACHE": str(arguments.cache or folder / "cache")}
        if arguments.no_vnni:
            env["LD_PRELOAD"] = hide_vnni(folder)
            print("AVX-512, AMX and VNNI are hidden from what is measured")
        model, films = arguments.model, arguments.films
        if model is None:
            torch.manual_seed(0)
            config, model = CavMaeSyncConfig(), str(folder / "model")
            CavMaeSyncModel(config).save_pretrained(model)
            CavMaeSyncProcessor.from_config(config).save_pretrained(model)
        for how in RUNS[2:]:  # exports now, not in what is timed
            run("load", "", model, *how, **env)
            print(f"{words(how)}: exported, or found", flush=True)
        if not arguments.no_speed:
            if films is None:
                films = folder / "films"
                films.mkdir()
                for number in range(arguments.count):
                    draw_film(films / f"{number}.mp4", arguments.seconds, number, arguments.scene)
            draw_film(folder / "warm.mp4", 1.0, 0)
            show_speed(arguments, model, films, folder, **env)
        if arguments.world is not None:
            show_retrieval(arguments.world, model, folder, **env)


if __name__ == "__main__":
    main()
