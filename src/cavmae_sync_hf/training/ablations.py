# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Train variants of one recipe with several seeds and put their metrics into one table.

    python -m cavmae_sync_hf.training.ablations syncworld --jobs 2

The plan is a recipe of the package or a YAML file. Every run is a `cavmae-sync pretrain`. Finished ones are not run
again, so an interrupted table goes on where it stopped; `--only TEXT` takes the variants whose names contain a text.
The table is printed and written to `table.md`, with mean and standard deviation over the seeds, and all metrics to
`metrics.json`.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..files import parse_json, usable_cores, write_json
from ..model.errors_cavmae_sync import CavMaeSyncError
from .recipe import find_recipe, load_recipe

_START = "from cavmae_sync_command import main; main('pretrain')"
# What an interruption leaves.
KEPT = "Finished runs are kept; run the same command again to go on."


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="recipe of the package, or a YAML file")
    parser.add_argument("--only", nargs="*", default=[], help="only variants whose names contain one of these")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    return parser.parse_args()


def run_folder(plan: dict[str, Any], name: str, seed: int) -> Path:
    """Where the run of a variant and a seed goes."""
    return Path(plan["output_dir"]) / re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") / f"seed_{seed}"


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as flags; mappings become JSON, which changes the recipe's keys of the same names."""
    words = []
    for name, value in settings.items():
        words += [f"--{name}", json.dumps(value) if isinstance(value, dict | list | bool) else str(value)]
    return words


def train(plan: dict[str, Any], name: str, seed: int, threads: int) -> str | None:
    """One run, its output in `log.txt`; what went wrong, or `None`."""
    folder = run_folder(plan, name, seed)
    if (folder / "metrics.json").is_file():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    settings = plan["settings"] | plan["variants"][name]
    given = {"output_dir": str(folder), "seed": seed, "save_strategy": "no", "disable_tqdm": True}
    words = [sys.executable, "-c", _START, plan["recipe"], *flags(settings | given)]
    began = time.perf_counter()
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment) as process:
            running.add(process)
            code = process.wait()
        running.discard(process)
    print(
        f"{time.perf_counter() - began:6.0f} s  {name}, seed {seed}" + (f": exit {code}" if code else ""), flush=True
    )
    return f"{name}, seed {seed}: exit {code}, see {folder / 'log.txt'}" if code else None


# Trainings that run now.
running: set[subprocess.Popen] = set()


def table(plan: dict[str, Any], names: list[str]) -> tuple[str, dict[str, Any]]:
    """The metrics as Markdown, mean ± standard deviation in per cent, and as they are."""
    lines = ["| variant | seeds | " + " | ".join(plan["columns"]) + " |", "|---" * (2 + len(plan["columns"])) + "|"]
    metrics: dict[str, Any] = {}
    for name in names:
        found = []
        for seed in plan["seeds"]:
            path = run_folder(plan, name, seed) / "metrics.json"
            found += [parse_json(path.read_text(encoding="utf-8"))] if path.is_file() else []
        metrics[name] = found
        cells = []
        for metric in plan["columns"].values():
            values = [100 * run[metric] for run in found if metric in run]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "–")
        lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n", metrics


def main() -> int:
    """Run the plan that the command line names; gives the status to exit with."""
    arguments = _parse_arguments()
    try:
        plan = load_recipe(find_recipe(arguments.plan, "ablations"))
    except CavMaeSyncError as error:
        print(error, file=sys.stderr)
        return 1
    names = [name for name in plan["variants"] if not arguments.only or any(part in name for part in arguments.only)]
    runs = [(name, seed) for seed in plan["seeds"] for name in names]
    threads = max(1, usable_cores() // arguments.jobs)
    failed: list[str] = []
    # The first run makes the world, which the others must not do at the same time.
    name, seed = runs[0]
    failed += filter(None, [train(plan, name, seed, threads)])
    with ThreadPoolExecutor(arguments.jobs) as pool:
        try:
            failed += filter(
                None, pool.map(lambda run: train(plan, run[0], run[1], threads), [] if failed else runs[1:])
            )
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):  # each saves a checkpoint
                process.terminate()
            raise
    text, metrics = table(plan, names)
    folder = Path(plan["output_dir"])
    (folder / "table.md").write_text(text, encoding="utf-8")
    write_json(folder / "metrics.json", metrics, indent=1, overwrite=True)
    print(text + "\n".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    from cavmae_sync_command import run_script

    run_script(main, KEPT)
