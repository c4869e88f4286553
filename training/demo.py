"""The whole story on two CPU cores: `make demo`, or

    python training/demo.py                                        # makes a world, trains, evaluates, looks
    python training/demo.py --video my.mp4 --model my/checkpoint   # looks at your own video with a trained model

Makes a SyncWorld (videos in which who sounds, when and where is known), pretrains a small model on it, compares its
metrics on held-out clips with chance, loads the saved folder back through `AutoModel` and `AutoProcessor`, and draws
what it hears and sees in one held-out video to `outputs/demo`.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, AutoProcessor

from cavmae_sync_hf.data.clock import format_clock
from cavmae_sync_hf.evaluation.localization import evaluate_localization
from cavmae_sync_hf.files import check_free, whole_file
from cavmae_sync_hf.inference.localize import localize
from cavmae_sync_hf.inference.plots import draw_strip
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.training.pretrain import pretrain

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

RECIPE = "pretraining/syncworld_tiny"
# The recipe with fewer clips and steps.
WORLD = {"train": 1000, "semantic": 100, "temporal": 100, "spatial": 60, "size": 96}
STEPS = 300

PLOTS = ("similarity.png", "localization.png")
# What is shown of the evaluation: text, metric, chance.
SHOWN: tuple[tuple[str, str, float], ...] = (
    ("video found by its audio first, of {semantic}", "eval_semantic_audio_to_video_r1", 1 / WORLD["semantic"]),
    ("audio found by its video first, of {semantic}", "eval_semantic_video_to_audio_r1", 1 / WORLD["semantic"]),
    ("own track preferred to one shifted by 2 s or more", "eval_temporal_shift_accuracy", 0.5),
    ("clips told apart that differ only in when things sound", "eval_temporal_pair_accuracy", 0.5),
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", help="a video file with audio; a held-out one of the world when absent")
    parser.add_argument("--model", help="folder or Hub name of a model; one is trained when absent")
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier demo left in --out")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps")
    parser.add_argument("--clips", type=int, default=WORLD["train"], help="training clips")
    return parser.parse_args()


def train_model(arguments: argparse.Namespace) -> Path:
    """Make the world, pretrain on it, and save the model; returns its folder."""
    folder = arguments.out / "model"
    world = WORLD | {"folder": str(arguments.out / "world"), "train": arguments.clips}
    words = ["--output_dir", str(folder), "--syncworld", json.dumps(world), "--max_steps", str(arguments.steps)]
    overwrite = ["--overwrite"] if arguments.overwrite else []
    if pretrain([RECIPE, *words, "--save_strategy", "no", "--plots", "true", *overwrite]):
        sys.exit("The training was stopped.")
    return folder


def show_metrics(folder: Path, world: Path, console: Console) -> None:
    """The evaluation of held-out clips beside chance; where sounds come from, as `localize` shows it."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    table = Table("held-out clips", "model", "chance", title="What it learned")
    for text, name, chance in SHOWN:
        table.add_row(text.format(**WORLD), f"{metrics[name]:.1%}", f"{chance:.1%}")
    model, processor = load_model(folder, modalities="both")
    found = evaluate_localization(model, processor, world / "spatial", maps="relevance")["metrics"]
    table.add_row("sounding object pointed at", f"{found['pointing_accuracy']:.1%}", f"{found['pointing_chance']:.1%}")
    table.add_row("the same with another clip's audio", f"{found['pointing_other_audio']:.1%}", "")
    console.print(table)


def draw_similarity(
    similarity: torch.Tensor,
    inputs: dict[str, torch.Tensor],
    processor: Any,
    path: Path,
    *,
    name: str,
    overwrite: bool,
) -> None:
    """The window-by-frame matrix with the frames along its top and the spectrogram windows along its side."""
    frames, windows = inputs["pixel_values_videos"][0], inputs["input_values"][0]
    times = inputs["frame_times"][0].tolist()
    mean, std = (
        torch.tensor(getattr(processor.video_processor, name)).view(3, 1, 1) for name in ("image_mean", "image_std")
    )
    images = ((frames * std + mean).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    count = len(times)
    plot = pyplot.figure(figsize=(16, 14), layout="constrained")
    plot.suptitle(f"{name}: similarity of audio windows and frames", x=0.01, ha="left", parse_math=False)
    plot.supxlabel(
        "How to read it: bright where a window's audio fits a frame. Where both are of the same moment, on the "
        "diagonal, it should be brightest.",
        fontsize=10,
    )
    grid = plot.add_gridspec(2, 3, width_ratios=[1.6, count / 1.6, 0.25], height_ratios=[1, count / 1.6])
    top, side, middle = (plot.add_subplot(grid[place]) for place in ((0, 1), (1, 0), (1, 1)))
    top.imshow(np.concatenate(list(images), axis=1), aspect="auto")
    top.set_title("frames")
    side.imshow(torch.cat(list(windows[:, ::8])).numpy(), aspect="auto", origin="upper", cmap="magma")
    centres = processor.feature_extractor.mel_frequencies
    places = np.interp([500, 2000], centres, np.arange(len(centres)))
    top.set(xticks=[], yticks=[])
    side.set(title="windows", xlabel="frequency", xticks=places, xticklabels=["500 Hz", "2 kHz"], yticks=[])
    image = middle.imshow(similarity.numpy(), aspect="auto", cmap="viridis")
    labels = [format_clock(time) for time in times]
    middle.set(xticks=range(count), yticks=range(count), xlabel="time of the frame", ylabel="centre of the window")
    middle.set_xticklabels(labels, fontsize=8)
    middle.set_yticklabels(labels, fontsize=8)
    plot.colorbar(image, cax=plot.add_subplot(grid[1, 2]), label="cosine similarity")
    with whole_file(path, overwrite=overwrite) as partial:
        plot.savefig(partial, dpi=110)
    pyplot.close(plot)


def look(source: str, video: str, out: Path, console: Console, overwrite: bool) -> None:
    """What the model hears and sees in one video: numbers, and two plots."""
    model, processor = AutoModel.from_pretrained(source).eval(), AutoProcessor.from_pretrained(source)
    inputs = processor(videos=video, return_tensors="pt", return_times=True)
    with torch.inference_mode():
        output = model(**inputs)
    similarity = output.similarity[0]
    name = Path(video).name
    draw_similarity(similarity, inputs, processor, out / "similarity.png", name=name, overwrite=overwrite)
    draw_strip(localize(model, processor, video), video, out / "localization.png", overwrite=overwrite)
    others = similarity[~torch.eye(len(similarity), dtype=torch.bool)]
    weights = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"model       {type(model).__name__} through AutoModel, {weights:,} weights, from {source}")
    console.print(f"video       {video}")
    console.print(f"similarity  same moment {similarity.diagonal().mean():+.3f}, other moments {others.mean():+.3f}")
    console.print(f"plots       {out / 'similarity.png'}, {out / 'localization.png'}")


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    check_free(*(arguments.out / name for name in PLOTS), overwrite=arguments.overwrite)
    console, began = Console(highlight=False, soft_wrap=True), time.perf_counter()
    source = arguments.model
    if source is None:
        source = str(train_model(arguments))
        show_metrics(Path(source), arguments.out / "world", console)
    video = arguments.video
    if video is None:
        if arguments.model is not None:
            sys.exit("--model needs --video, the file to look at.")
        video = str(arguments.out / "world" / "semantic" / "000000.mp4")
    look(source, video, arguments.out, console, arguments.overwrite)
    if arguments.model is None:
        console.print(f"            {Path(source) / 'plots'} (reconstructions and similarities of the evaluation)")
        console.print(f"time        {time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
