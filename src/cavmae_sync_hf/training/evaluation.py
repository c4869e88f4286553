# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How well a model in training aligns audio and video on whole clips, in metrics and in plots."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..data.engines import worker_deaths
from ..inference.local import dense_maps
from ..metrics import (
    clip_similarity,
    compute,
    loud_moments,
    patch_maps,
    pointing_accuracy,
    temporal_pair_discrimination,
)
from ..metrics.synchrony import default_min_shift, shifts_with_control
from ..model.alignment_cavmae_sync import FRAMES_PER_SECOND
from ..model.distributed_cavmae_sync import world_size
from ..model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..provenance import require_package
from .sets import INPUT_NAMES, EvaluationSet


class Embeddings:
    """Embeddings of whole clips, on the CPU.

    Attributes:
        audio, video: `(clips, frames, hidden)` float32, unit length.
        audio_mask, video_mask: `(clips, frames)` bool, False where a clip has no audio or video.
        frame_times: `(clips, frames)` seconds.
        levels: `(clips, frames)` loudness in the middle of each window, dB, NaN where it is not known.
        video_maps: `(clips, frames, rows, columns)`, cosine of every patch of a frame with its window; with a dense
            loss the mean cosine with the window's patches.
    """

    def __init__(self, parts: dict[str, Tensor]) -> None:
        self.audio, self.video = parts["audio"], parts["video"]
        self.audio_mask, self.video_mask = parts["audio_mask"].bool(), parts["video_mask"].bool()
        self.frame_times, self.levels, self.video_maps = parts["frame_times"], parts["levels"], parts["video_maps"]

    def __len__(self) -> int:
        return len(self.audio)

    @property
    def similarity(self) -> Tensor:
        """Of each clip's windows (rows) with its own frames, `(clips, frames, frames)`."""
        return self.audio @ self.video.transpose(1, 2)


@worker_deaths()
@torch.no_grad()
def map_clips(
    model: Callable[..., Any],
    keep: Callable[[Any, dict[str, Tensor], dict[str, Any]], dict[str, Tensor]],
    evaluation_set: EvaluationSet,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    *,
    accelerator: Accelerator,
    batch_frames: int = 256,
    num_workers: int = 0,
) -> dict[str, Tensor]:
    """Show a model all clips of a set, unmasked and with all their frames; the work is shared by all processes.

    Args:
        model: What is called with the inputs of a batch.
        keep: Takes the model's output, its inputs and the batch, gives tensors with a row per clip, of equal shapes
            from batch to batch.
        evaluation_set: The clips.
        collator: Makes batches; what it leaves out the model does not see.
        accelerator: Tells the processes and the precision.
        batch_frames: Frames per batch; at least one clip is taken.
        num_workers: Processes that load.

    Returns:
        What `keep` gives, a row per clip in the order of the set, on the CPU, the same on every process.
    """
    count, ranks = len(evaluation_set), accelerator.num_processes
    # Every process gets equally many clips (some twice), so that gathering is one collective of equal shapes.
    per_rank = -(-count // ranks)
    mine = [(accelerator.process_index + place * ranks) % count for place in range(per_rank)]
    frames = evaluation_set.dataset.maker.processor.feature_extractor.num_frames
    loader = DataLoader(
        Subset(evaluation_set.dataset, mine),
        batch_size=max(1, batch_frames // frames),
        collate_fn=collator,
        num_workers=num_workers,
    )
    parts: dict[str, list[Tensor]] = {}
    for batch in loader:
        inputs = {n: batch[n].to(accelerator.device, non_blocking=True) for n in INPUT_NAMES if n in batch}
        with accelerator.autocast():
            output = model(**inputs)
        for name, value in keep(output, inputs, batch).items():
            parts.setdefault(name, []).append(value)
    joined = {name: torch.cat(values) for name, values in parts.items()}
    if world_size() > 1:
        # Rank by rank; place k of rank r is clip k * ranks + r.
        order = torch.arange(per_rank * ranks).reshape(ranks, per_rank).T.flatten()[:count]
        joined = {
            name: accelerator.gather(value.contiguous())[order.to(value.device)] for name, value in joined.items()
        }
    return {name: value.cpu() for name, value in joined.items()}


def keep_embeddings(
    output: Any, inputs: dict[str, Tensor], batch: dict[str, Any], *, processor: CavMaeSyncProcessor
) -> dict[str, Tensor]:
    """What `Embeddings` are made of, for `map_clips` of an encoder."""
    everything = torch.ones(inputs["input_values"].shape[:2], dtype=torch.bool, device=inputs["input_values"].device)
    audio_mask = inputs.get("padding_mask", everything)
    height, width = inputs["pixel_values_videos"].shape[-2:]
    patch = width // round(output.video_patch_embeds.shape[2] ** 0.5)
    grid = (height // patch, width // patch)
    if output.local_video_embeds is None:
        video_maps = patch_maps(output.audio_embeds, output.video_patch_embeds, grid)
    else:
        video_maps = dense_maps(output.local_audio_embeds, output.local_video_embeds).unflatten(-1, grid)
    return {
        "audio": output.audio_embeds.float(),
        "video": output.video_embeds.float(),
        "audio_mask": audio_mask.to(torch.uint8),
        "video_mask": inputs.get("padding_mask_videos", everything).to(torch.uint8),
        "frame_times": batch["frame_times"].float().to(everything.device),
        "levels": processor.feature_extractor.window_levels(inputs["input_values"], audio_mask),
        "video_maps": video_maps,
    }


def evaluate_alignment(
    embeddings: Embeddings,
    partners: list[int | None] | None = None,
    *,
    min_shift: float | None = None,
    boxes: list[list[Tensor]] | None = None,
    image_size: int = 224,
) -> dict[str, float]:
    """The metrics of a set: recall in both directions, the true alignment against shifted ones, temporal twins, and
    pointing at what sounds.

    Args:
        embeddings: Of whole clips.
        partners: As in `EvaluationSet`.
        min_shift: Smallest shift in seconds; default: a fifth of the clips' length, 2 s at most.
        boxes: As in `EvaluationSet`.
        image_size: Side of the frames that the boxes are in, pixels.

    Returns:
        `audio_to_video_r1`, `..._r5`, `..._r10`, `..._median_rank`, the same for `video_to_audio`; `shift_accuracy`,
        `shift_auc` where clips are long enough, `shift_other_audio_accuracy`, the same with another clip's audio at
        the same moments, and `shift_beyond_other_audio`, their difference, with the bounds of its interval of 95 %
        (see `shift_discrimination`); `loud_shift_...` without the silence at the ends of each clip;
        `pair_accuracy`, `pair_audio_to_video`, `pair_video_to_audio` where clips have twins; `pointing_accuracy` and
        `pointing_chance` (of a random patch) where boxes are known: the share of moments at which the patch most like
        the window lies on what sounds; `same_moment_similarity` and `other_moment_similarity`, means over the clips.
    """
    masks: dict[str, Any] = {"audio_mask": embeddings.audio_mask, "video_mask": embeddings.video_mask}
    found = compute("retrieval", predictions=embeddings.audio, references=embeddings.video, **masks)
    metrics = {name: float(value) for name, value in found.items() if not name.startswith("clips_")}
    similarity = embeddings.similarity
    count = similarity.shape[-1]
    if count > 1:
        step = float((embeddings.frame_times[:, 1:] - embeddings.frame_times[:, :-1]).median())
        own = torch.eye(count, dtype=torch.bool)
        metrics["same_moment_similarity"] = float(similarity[:, own].mean())
        metrics["other_moment_similarity"] = float(similarity[:, ~own].mean())
        smallest = default_min_shift(step, count) if min_shift is None else min_shift
        if step > 0 and step * (count - max(1, count // 4)) >= smallest:
            metrics |= _shift_metrics(embeddings, partners, step, smallest)
    if partners is not None:
        pairs = temporal_pair_discrimination(embeddings.audio, embeddings.video, partners, **masks)
        metrics |= {f"pair_{name}": float(pairs[name]) for name in ("accuracy", "audio_to_video", "video_to_audio")}
    if boxes is not None:
        sounding = [given for clip in boxes for given in clip]
        pointing = pointing_accuracy(embeddings.video_maps.flatten(0, 1), sounding, (image_size, image_size))
        metrics |= {f"pointing_{name}": float(pointing[name]) for name in ("accuracy", "chance")}
    return metrics


# What is reported of `shift_discrimination`, by its name there.
_SHIFT_NAMES = {
    "accuracy": "accuracy",
    "all_shifts_accuracy": "all_accuracy",
    "auc": "auc",
    "other_audio_accuracy": "other_audio_accuracy",
    "beyond_other_audio": "beyond_other_audio",
    "beyond_other_audio_low": "beyond_other_audio_low",
    "beyond_other_audio_high": "beyond_other_audio_high",
}


def _shift_metrics(
    embeddings: Embeddings, partners: list[int | None] | None, step: float, min_shift: float
) -> dict[str, float]:
    """True alignment against shifted audio, and another clip's audio likewise: of all moments and of loud ones."""
    metrics: dict[str, float] = {}
    loud = loud_moments(embeddings.levels)
    for prefix, counted in (("shift", torch.ones_like(loud)), ("loud_shift", loud)):
        try:
            found = shifts_with_control(
                embeddings.audio, embeddings.video, counted, partners, audio_mask=embeddings.audio_mask,
                video_mask=embeddings.video_mask, step=step, min_shift=min_shift,
            )  # fmt: skip
        except ValueError:
            if prefix == "shift":
                raise
            continue  # the loud part of every clip is too short
        metrics |= {f"{prefix}_{name}": float(found[key]) for key, name in _SHIFT_NAMES.items() if key in found}
    return metrics


@torch.no_grad()
def draw_reconstructions(
    model: CavMaeSyncForPreTraining,
    processor: CavMaeSyncProcessor,
    batch: dict[str, Any],
    path: Path,
    clips: int = 4,
) -> Path:
    """Draw, for some clips, a frame and its window as they are, as the model sees them, and with its filling.

    Args:
        model: A `CavMaeSyncForPreTraining` with a decoder in use.
        processor: Its processor.
        batch: From the collator.
        path: PNG file to write; its folder is made.
        clips: Clips drawn at most; of each the middle frame.

    Raises:
        ImportError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    device = next(model.parameters()).device
    middle = batch["input_values"].shape[1] // 2
    frames = batch["pixel_values_videos"][:clips, middle : middle + 1].to(device)
    windows = batch["input_values"][:clips, middle : middle + 1].to(device)
    generator = torch.Generator().manual_seed(0)
    size = model.config.patch_size
    noise = [
        torch.rand(*values.shape[:2], (values.shape[-2] // size) * (values.shape[-1] // size), generator=generator)
        for values in (frames, windows)
    ]
    filled: Any = model.inpaint(frames, windows, video_noise=noise[0].to(device), audio_noise=noise[1].to(device))
    patches = {"video": model.patchify_video(frames), "audio": model.patchify_audio(windows)}
    shown = model.unpatchify_video(patches["video"], *frames.shape[-2:])
    # Removed patches in the colour of nothing: the mean of the frames, the floor of the windows.
    seen_video = torch.where(filled.video_mask.bool().unsqueeze(-1), 0.0, patches["video"])
    seen_audio = torch.where(filled.audio_mask.bool().unsqueeze(-1), windows.min(), patches["audio"])

    def pixels(values: Tensor) -> Tensor:
        """Normalised frames `(clips, 1, 3, height, width)` as `(clips, height, width, 3)` in [0, 1]."""
        view = processor.video_processor
        mean, std = (torch.tensor(given).view(3, 1, 1) for given in (view.image_mean, view.image_std))
        return (values[:, 0].cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1)

    columns = [
        *(pixels(values) for values in
          (shown, model.unpatchify_video(seen_video, *frames.shape[-2:]), filled.pixel_values_videos)),
        *(values[:, 0].mT.cpu() for values in
          (windows, model.unpatchify_audio(seen_audio, windows.shape[2]), filled.input_values)),
    ]  # fmt: skip
    titles = ("frame", "frame, as seen", "frame, filled", "window", "window, as seen", "window, filled")
    size_inches = (15, 2.3 * len(frames) + 0.8)
    plot, axes = pyplot.subplots(len(frames), 6, figsize=size_inches, squeeze=False, layout="constrained")
    plot.supxlabel(
        "How to read it: the model sees a part of frame and window (removed patches are grey, or silence) and fills "
        "in the rest;\nthe more a filled one is like the first of the three, the better. Windows: normalised log-mel, "
        "all on one scale.",
        fontsize=9,
    )
    seconds = windows.shape[2] / FRAMES_PER_SECOND
    hertz = [low for low in (200, 1000, 4000) if low < processor.feature_extractor.mel_frequencies[-1]]
    places = np.interp(hertz, processor.feature_extractor.mel_frequencies, np.arange(windows.shape[3]))
    levels = {"vmin": float(windows.min()), "vmax": float(windows.max())}
    for clip, row in enumerate(axes):
        for axis, values, title in zip(row, columns, titles, strict=True):
            axis.set(xticks=[], yticks=[], title=title if clip == 0 else "")
            if values[clip].ndim == 3:
                axis.imshow(values[clip].numpy())
                continue
            extent = (0, seconds, -0.5, windows.shape[3] - 0.5)
            image = axis.imshow(values[clip].numpy(), origin="lower", aspect="auto", extent=extent, **levels)
            axis.set_yticks(places, [f"{value} Hz" if value < 1000 else f"{value // 1000} kHz" for value in hertz])
            axis.set_xticks([0, round(seconds, 2)])
            axis.set_xlabel("s of the window" if clip == len(frames) - 1 else "")
        plot.colorbar(image, ax=row[-1], label="log-mel")
    return _write(pyplot, plot, path)


def draw_similarities(embeddings: Embeddings, path: Path, clips: int = 64) -> Path:
    """Draw how alike audio and video of different clips are, and moments of the same clips.

    Args:
        embeddings: Of whole clips.
        path: PNG file to write; its folder is made.
        clips: Clips of the left matrix at most.

    Raises:
        ImportError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    between = clip_similarity(
        embeddings.audio[:clips], embeddings.video[:clips],
        audio_mask=embeddings.audio_mask[:clips], video_mask=embeddings.video_mask[:clips],
    )  # fmt: skip
    within = embeddings.similarity
    panels = (
        (torch.as_tensor(between), "clips", "audio of clip", "video of clip"),
        (within.mean(dim=0), "moments, mean of all clips", "number of window", "number of frame"),
        (within[0], "moments of the first clip", "number of window", "number of frame"),
    )
    plot, axes = pyplot.subplots(1, 3, figsize=(15, 5), layout="constrained")
    plot.supxlabel(
        "How to read it: audio and video that belong together lie on the diagonal; the more it stands out, the better "
        "the model tells them from others.",
        fontsize=9,
    )
    for axis, (matrix, title, rows, columns) in zip(axes, panels, strict=True):
        image = axis.imshow(matrix.numpy(), cmap="viridis")
        axis.set(title=title, ylabel=rows, xlabel=columns)
        axis.locator_params(integer=True)
        plot.colorbar(image, ax=axis, shrink=0.8, label="cosine similarity")
    return _write(pyplot, plot, path)


def _pyplot() -> Any:
    require_package("matplotlib", "training", "Drawing").use("Agg")
    return require_package("matplotlib.pyplot", "training", "Drawing")


def _write(pyplot: Any, plot: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    plot.savefig(path, dpi=80)
    pyplot.close(plot)
    return path
