"""Which word is said, by ear, by eye and by both, clean and in noise: the table of docs/classes.md and the results.

    python training/benchmarks/words.py grid out --init_from outputs/grid_lips --seeds 3
    python training/benchmarks/words.py grid out --init_from outputs/grid_lips --table

`grid` holds `train/`, `validation/` and `words.csv` (part, file, word, start, end). Words become shards, each modality
is fine-tuned with each seed by the recipe `grid_words`, and every model is evaluated at every noise. What is in `out`
already is not made again, so that the command goes on after an interruption; flags that it does not know are those of
`cavmae-sync finetune`.

The control is the model of both with another clip's frames beside the sound: at the same moments of the next clip in
which another word is said then. "Noise alone" is sound under 60 dB more of babble, which leaves nothing of a word but
how long it is.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from cavmae_sync_hf import prepare
from cavmae_sync_hf.evaluation import evaluate_classification, write_results
from cavmae_sync_hf.loading import load_model

MODALITIES = ("audio", "video", "multimodal")
LEVELS = (10.0, 0.0, -5.0, -10.0)
NOISES = (
    ("clean", {}),
    *((f"{kind} {level:g} dB", {"noise_snr_db": level, "noise_source": kind})
      for kind in ("babble", "white") for level in LEVELS),
    ("noise alone", {"noise_snr_db": -60.0, "noise_source": "babble"}),
)  # fmt: skip
# Where the control is asked for.
CONTROLLED = ("clean", "babble 0 dB", "babble -10 dB")
COLUMNS = (
    ("audio", "accuracy", "sound"),
    ("video", "accuracy", "sight"),
    ("multimodal", "accuracy", "both"),
    ("multimodal", "a_accuracy", "both, given sound alone"),
    ("multimodal", "v_accuracy", "both, given sight alone"),
    ("control", "accuracy", "both, with another clip's frames"),
)


def other_frames(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Words with the frames of the next clip in which another word is said in the middle of the same span."""
    clips: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        clips.setdefault(row["file"], []).append(row)
    names = list(clips)

    def said(file: str, time: float) -> str | None:
        return next((row["word"] for row in clips[file] if float(row["start"]) <= time < float(row["end"])), None)

    changed = []
    for row in rows:
        place, middle = names.index(row["file"]), (float(row["start"]) + float(row["end"])) / 2
        following = [*names[place + 1 :], *names[:place]]
        other = next(name for name in following if said(name, middle) not in (None, row["word"]))
        changed.append({"id": f"{row['file']}_{row['start']}", "path": other, "audio": row["file"]} | {
            key: row[key] for key in ("start", "end", "word")
        })  # fmt: skip
    return changed


def make_shards(grid: Path, out: Path) -> None:
    """The words of both parts, and those of validation with other frames."""
    kept: dict[str, Any] = {"num_frames": 20, "short_side": 96}  # 0.04 s apart
    for part in ("train", "validation"):
        prepare(grid / "words.csv", out / part, media=grid / part, split=part, name=part, **kept)
    with open(grid / "words.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "validation"]
    labels = json.loads((out / "validation" / "index.json").read_text())["label_names"]
    prepare(other_frames(rows), out / "control", media=grid / "validation", name="control", labels=labels, **kept)


def train(out: Path, modality: str, seed: int, flags: list[str]) -> Path:
    """The folder of a model, which is trained unless it is there."""
    folder = out / f"{modality}-{seed}"
    if not (folder / "metrics.json").exists():
        command = [sys.executable, "-m", "cavmae_sync_hf.training.finetune", "grid_words", "--modality", modality,
                   "--seed", str(seed), "--train_data", str(out / "train"), "--output_dir", str(folder),
                   "--resume_from_checkpoint", "auto", *flags]  # fmt: skip
        if modality == "video":
            command += ["--augmentation", "none"]  # it hears no noise, which takes time to make
        subprocess.run(command, check=True)
        (folder / "metrics.json").exists() or sys.exit(f"{folder}: holds no metrics.json; the training was stopped.")
    return folder


def evaluate(out: Path, folder: Path) -> None:
    """Results files of a model at every noise, beside it."""
    model, processor = load_model(folder, use="classification")
    both = model.config.modality == "multimodal"
    for name, noise in NOISES:
        for data in ("validation", "control"):
            target = folder / f"{data}-{name.replace(' ', '_')}.json"
            if target.exists() or (data == "control" and not (both and name in CONTROLLED)):
                continue
            if noise and model.config.modality == "video":
                continue  # which hears none
            inputs = (["av", "a"] if noise else ["av", "a", "v"]) if both and data == "validation" else None
            record = evaluate_classification(model, processor, out / data, inputs=inputs, batch_size=32, **noise)
            write_results(target, record)


def table(out: Path, seeds: int) -> None:
    """Mean and deviation of the accuracy over the seeds, in percent, as Markdown."""
    print("| | " + " | ".join(title for *_, title in COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name, _ in NOISES:
        cells = []
        for modality, metric, _title in COLUMNS:
            data = "control" if modality == "control" else "validation"
            noise = "clean" if modality == "video" or metric == "v_accuracy" else name.replace(" ", "_")
            files = [out / f"{'multimodal' if data == 'control' else modality}-{seed}" / f"{data}-{noise}.json"
                     for seed in range(seeds)]  # fmt: skip
            found = [100 * json.loads(file.read_text())["metrics"][metric] for file in files if file.exists()]
            spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.1f}{spread}" if found else "–")
        print(f"| {name} | " + " | ".join(cells) + " |")
    index = json.loads((out / "validation" / "index.json").read_text())
    counts = index["label_counts"]
    words, most = index["clips"], max(counts.values())
    chance = 100 / len(index["label_names"])
    print(f"\n{words} words; chance {chance:.1f} %, the commonest word {100 * most / words:.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--modalities", nargs="+", default=list(MODALITIES), choices=MODALITIES)
    parser.add_argument("--table", action="store_true", help="print what is there, and make nothing")
    arguments, flags = parser.parse_known_args()
    if not arguments.table:
        make_shards(arguments.grid, arguments.out)
        for seed in range(arguments.seeds):
            for modality in arguments.modalities:
                evaluate(arguments.out, train(arguments.out, modality, seed, flags))
    table(arguments.out, arguments.seeds)


if __name__ == "__main__":
    main()
