"""Time and memory of features and synchrony over short clips and a long video, also against another version.

    cavmae-sync world world --split short --clips 20 --size 640x360 --fps 25
    cavmae-sync world world --split long --clips 1 --size 640x360 --fps 25 --seconds 300
    python training/benchmarks/moments.py world/short world/long
    python training/benchmarks/moments.py world/short world/long --against OTHER_CHECKOUT/src --rounds 5

Every measurement is a process of its own; those of the two versions take turns, so that what else runs on the machine
meets both alike.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

# Only what both versions have; the last line that is printed is the result.
MEASURE = """
import glob, json, resource, sys, time
from cavmae_sync_hf.inference.extract import extract_features
from cavmae_sync_hf import load_model
from cavmae_sync_hf.inference.sync import measure_sync, score_alignment

task, source, name, device = sys.argv[1:]
model, processor = load_model(name, device=device)
paths = sorted(glob.glob(source))
measure_sync(model, processor, paths[0], hop=0.5, end=2.0)  # what is loaded on first use
began = time.perf_counter()
if task == "extract":
    result = len(extract_features(model, processor, paths, window=2.0, stride=1.0, partial="keep"))
else:
    result = score_alignment(model, processor, paths, hop=0.2).score
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "peak": peak / 1024, "result": result}))
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of videos, each measured by itself")
    parser.add_argument("--model", default="example")
    parser.add_argument("--against", type=Path, help="source folder of another version of the package")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def run(source: Path, task: str, pattern: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds, peak memory in MiB and result of a task in a new process."""
    command = [sys.executable, "-c", MEASURE, task, pattern, arguments.model, arguments.device]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(source)}, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    arguments = parse_arguments()
    versions = {"this version": Path(__file__).resolve().parents[2] / "src"}
    if arguments.against is not None:
        versions["the other"] = arguments.against.resolve()
    for task in ("extract", "sync"):
        for folder in arguments.folders:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
            for _ in range(arguments.rounds):
                for name, source in versions.items():
                    found[name].append(run(source, task, str(folder / "*.mp4"), arguments))
            for name, results in found.items():
                seconds = [result["seconds"] for result in results]
                print(
                    f"{task:8s} {folder.name:10s} {name:13s} {median(seconds):7.2f} s (from {min(seconds):.2f} to "
                    f"{max(seconds):.2f}), peak {median(result['peak'] for result in results):6.0f} MiB, "
                    f"result {results[0]['result']:.9g}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
