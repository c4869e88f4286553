"""Where the time of a pretraining goes: steps, evaluation, plots, checkpoints written and loaded.

    python training/benchmarks/pretraining_run.py out
    python training/benchmarks/pretraining_run.py out --recipe audioset --train_data SHARDS --eval_data FOLDER

Runs `cavmae-sync pretrain` twice: from the start for `--steps` steps with a checkpoint and an evaluation with plots in
the middle and at the end, and once more from the checkpoint in the middle. Further flags are those of the command.
Each part is timed where the trainer does it, and is given in seconds and in steps of the same run, so that it can be
seen how often an evaluation or a checkpoint pays. What is left of a run is its start (world, model, clips in memory)
and its end (model and card written).

On CUDA kernels run on after a call returns; the device is waited for at the end of each part, not of each step.
"""

import argparse
import functools
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cavmae_sync_hf.training import pretrain as command
from cavmae_sync_hf.training.pretraining import CavMaeSyncTrainer

# What the trainer does, by the methods that do it; the innermost one counts.
PARTS = {
    "_inner_training_loop": "steps",
    "evaluate": "evaluation",
    "_draw": "plots",
    "_save_checkpoint": "checkpoint written",
    "_load_from_checkpoint": "checkpoint loaded",
    "_load_optimizer_and_scheduler": "checkpoint loaded",
    "_load_rng_state": "checkpoint loaded",
    "get_batch_samples": "waiting for batches",
}


class Clock:
    """Seconds and calls of the parts of a run; a part within another is taken off that one."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = time.perf_counter()

    def _turn(self) -> None:
        if torch.cuda.is_available() and self._open != ["steps"]:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._open[-1] if self._open else "start and end"] += now - self._since
        self._since = now

    def timed(self, part: str, method: Callable) -> Callable:
        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self.calls[part] += part not in self._open
            self._open.append(part)
            try:
                return method(*args, **kwargs)
            finally:
                self._turn()
                self._open.pop()

        return run


def run(flags: list[str], steps: int) -> dict[str, Any]:
    """The parts of one pretraining of so many steps."""
    clock = Clock()
    methods = {name: clock.timed(part, getattr(CavMaeSyncTrainer, name)) for name, part in PARTS.items()}
    command.CavMaeSyncTrainer = type("TimedTrainer", (CavMaeSyncTrainer,), methods)
    try:
        if status := command.pretrain(flags):
            sys.exit(status)
    finally:
        command.CavMaeSyncTrainer = CavMaeSyncTrainer
    clock._turn()
    clock.calls["steps"] = clock.calls["waiting for batches"] = steps
    clock.calls["start and end"] = clock.calls["checkpoint loaded"] = 1
    step = clock.seconds["steps"] / steps
    rows = {
        part: {
            "times": clock.calls[part],
            "seconds": round(seconds, 3),
            "seconds each": round(seconds / max(clock.calls[part], 1), 4),
            "steps each": round(seconds / max(clock.calls[part], 1) / step, 2),
            "share": round(seconds / sum(clock.seconds.values()), 3),
        }
        for part, seconds in clock.seconds.most_common()
    }
    return {"parts": rows, "peak MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the world and both runs")
    parser.add_argument("--recipe", default="syncworld_tiny")
    parser.add_argument("--steps", type=int, default=100)
    given, more = parser.parse_known_args()
    half, folder = given.steps // 2, given.out / "run"
    flags = [given.recipe, "--output_dir", str(folder), "--max_steps", str(given.steps), "--plots", "true",
             "--eval_strategy", "steps", "--eval_steps", str(half), "--save_steps", str(half),
             "--save_total_limit", "2"]  # fmt: skip
    if "--train_data" not in more:
        world = {
            "folder": str(given.out / "world"),
            "train": 200,
            "semantic": 200,
            "temporal": 0,
            "spatial": 0,
            "size": 96,
        }
        flags += ["--syncworld", json.dumps(world)]
    found = {"whole": run([*flags, *more, "--overwrite", "true"], given.steps)}
    found["resumed"] = run([*flags, *more, "--resume_from_checkpoint", str(folder / f"checkpoint-{half}")],
                           given.steps - half)  # fmt: skip
    for name, values in found.items():
        print(f"\n{name}, peak {values['peak MiB']:,} MiB")
        print(f"{'':22}{'times':>7}{'seconds':>10}{'each':>10}{'in steps':>10}{'share':>8}")
        for part, row in values["parts"].items():
            print(f"{part:22}{row['times']:7}{row['seconds']:10.2f}{row['seconds each']:10.3f}"
                  f"{row['steps each']:10.2f}{row['share']:8.1%}")  # fmt: skip
    (given.out / "times.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
