# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What does a model in training fill in, and what does it find alike? Pictures for a person to look at."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..metrics.retrieval import clip_similarity
from .evaluation import Embeddings

__all__ = ["draw_reconstructions", "draw_similarities"]


@torch.no_grad()
def draw_reconstructions(model: Any, processor: Any, batch: dict[str, Any], path: Path, clips: int = 4) -> Path:
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
    filled = model.inpaint(frames, windows, video_noise=noise[0].to(device), audio_noise=noise[1].to(device))
    patches = {"video": model.patchify_video(frames), "audio": model.patchify_audio(windows)}
    # Removed patches in the colour of nothing: the mean of the pictures, the floor of the sound.
    seen_video = torch.where(filled.video_mask.bool().unsqueeze(-1), 0.0, patches["video"])
    seen_audio = torch.where(filled.audio_mask.bool().unsqueeze(-1), windows.min(), patches["audio"])
    rows = [
        *(_colours(values, processor) for values in
          (frames, model.unpatchify_video(seen_video, *frames.shape[-2:]), filled.pixel_values_videos)),
        *(values[:, 0].mT.cpu() for values in
          (windows, model.unpatchify_audio(seen_audio, windows.shape[2]), filled.input_values)),
    ]  # fmt: skip
    titles = ("frame", "seen", "filled", "window", "seen", "filled")
    figure, axes = pyplot.subplots(
        len(frames), 6, figsize=(13, 2.1 * len(frames)), squeeze=False, layout="constrained"
    )
    for clip, places in enumerate(axes):
        for place, values, title in zip(places, rows, titles, strict=True):
            sound = values[clip].ndim == 2
            place.imshow(
                values[clip].numpy(), origin="lower" if sound else "upper", aspect="auto" if sound else "equal"
            )
            place.set(xticks=[], yticks=[], title=title if clip == 0 else "")
    return _write(pyplot, figure, path)


def draw_similarities(embeddings: Embeddings, path: Path, clips: int = 64) -> Path:
    """Draw how alike sounds and pictures of different clips are, and moments of the same clips.

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
        (torch.as_tensor(between), "clips", "sound of clip", "pictures of clip"),
        (within.mean(dim=0), "moments, mean of all clips", "window", "frame"),
        (within[0], "moments of the first clip", "window", "frame"),
    )
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    for axis, (matrix, title, rows, columns) in zip(axes, panels, strict=True):
        image = axis.imshow(matrix.numpy(), cmap="viridis")
        axis.set(title=title, ylabel=rows, xlabel=columns)
        figure.colorbar(image, ax=axis, shrink=0.8)
    return _write(pyplot, figure, path)


def _colours(frames: Tensor, processor: Any) -> Tensor:
    """Pixels `(clips, height, width, 3)` in [0, 1] of normalised frames `(clips, 1, 3, height, width)`."""
    mean, std = (
        torch.tensor(getattr(processor.video_processor, name)).view(3, 1, 1) for name in ("image_mean", "image_std")
    )
    return (frames[:, 0].cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Pictures need matplotlib (pip install matplotlib); or leave `pictures` off.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _write(pyplot: Any, figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
    return path
