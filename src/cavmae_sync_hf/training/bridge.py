# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Text without captions: audio windows and frames are put where a frozen CLIP or SigLIP puts the frame.

Its text tower then speaks of them. That images can stand between sound and words was shown by vip-AnT (Zhao et al.,
NAACL 2022).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from ..data.dataset import CavMaeSyncDataset
from ..inference.loading import saved_model
from ..model.batching_cavmae_sync import MomentFrames
from ..model.errors_cavmae_sync import TrainingError
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel
from ..provenance import model_fingerprint
from .captions import load_tokenizer
from .feature_cache import MomentCache, stacked
from .text_data import TextSet

# A model with text and images is compared with itself by these words.
_PROBE = ["a dog barks", "rain"]


class Teacher:
    """A CLIP or SigLIP of transformers, frozen, with what prepares its inputs.

    Args:
        name: Folder or Hub name.
        device: Where it runs.

    Raises:
        TrainingError: There is no such model, or it lacks a text tower, a vision tower, or what prepares the inputs.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.name = name
        place = saved_model(name)
        try:
            model: Any = AutoModel.from_pretrained(place)
            lacking = [side for side in ("text", "vision") if not hasattr(model, f"{side}_model")]
            if lacking:
                raise TrainingError(
                    f"{name}: a {type(model).__name__} has no {lacking[0]} tower beside the other; name a whole CLIP "
                    "or SigLIP."
                )
            self.images: Any = AutoImageProcessor.from_pretrained(place)
            self.tokenizer: Any = load_tokenizer(place)
            if model.text_model.config.model_type.startswith("siglip"):  # reads the filling of texts, too
                limit = self.tokenizer.model_max_length
                self.tokenizer = AutoTokenizer.from_pretrained(
                    place, model_input_names=["input_ids"], model_max_length=limit
                )
        except (OSError, ValueError) as error:
            if isinstance(error, TrainingError):
                raise
            reason = " ".join(str(error).split())[:300]
            raise TrainingError(
                f"{name}: is no CLIP or SigLIP with tokenizer and image processor ({reason})."
            ) from error
        self.model = model.eval().requires_grad_(False).to(device)
        projection, text_config = getattr(model, "text_projection", None), model.text_model.config
        self.width = text_config.projection_size if projection is None else projection.out_features

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """L2-normalised `(frames, P)` of prepared frames, on the CPU."""
        found = self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output
        return torch.nn.functional.normalize(found.float(), dim=-1).cpu()

    @torch.no_grad()
    def join(self, av_model: CavMaeSyncModel) -> CavMaeSyncTextDualEncoderModel:
        """A model with text whose text side is the teacher's, with projections into its space that know nothing yet.

        Raises:
            TrainingError: Its texts do not come out as from itself, since it pools them in a way of its own.
        """
        own = self.model
        projection, bias = getattr(own, "text_projection", None), getattr(own, "logit_bias", None)
        model: Any = CavMaeSyncTextDualEncoderModel.from_av_text_pretrained(
            av_model, own, projection_dim=self.width, text_pooling="pooler", num_text_layers=0,
            text_dropout=0.0, num_clip_layers=0, score_sequences=False,
            text_loss="softmax" if bias is None else "sigmoid", logit_scale_init_value=own.logit_scale.item(),
            logit_bias_init_value=0.0 if bias is None else bias.item(),
        )  # fmt: skip
        head = model.to(own.device).eval().text_head.projection
        head.bias.zero_()
        head.weight.copy_(torch.eye(self.width) if projection is None else projection.weight)
        tokens = self.tokenizer(_PROBE, padding="max_length", truncation=True, return_tensors="pt").to(own.device)
        found = model.get_text_features(**tokens).pooler_output
        wanted = torch.nn.functional.normalize(own.get_text_features(**tokens).pooler_output, dim=-1)
        if not torch.allclose(found, wanted, atol=1e-4):
            raise TrainingError(
                f"{self.name}: a {type(own).__name__} pools texts in a way of its own; name a CLIP or SigLIP."
            )
        return model


class _Frames(Dataset):
    """All frames of clips as the teacher takes them."""

    def __init__(self, dataset: CavMaeSyncDataset, images: Any) -> None:
        self.dataset, self.images = dataset, images

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> tuple[int, Tensor | None]:
        """How many frames the clip should have, and what is there of them."""
        clip = self.dataset.source.read(number, lambda clip_id, count: range(count))
        if clip.frames is None:
            return len(clip.chosen), None
        frames = clip.frames.middle if isinstance(clip.frames, MomentFrames) else clip.frames
        return len(clip.chosen), self.images(images=list(frames), return_tensors="pt")["pixel_values"]


def cached_frames(
    teacher: Teacher,
    dataset: CavMaeSyncDataset,
    folder: Path,
    *,
    refresh: bool = False,
    num_workers: int = 0,
    progress: Callable[..., None] | None = None,
) -> Tensor:
    """Where a teacher puts the frames of a set's clips, computed where the cache lacks them.

    Args:
        teacher: The teacher.
        dataset: The clips.
        folder: Folder of the cache, new or of the same teacher and set.
        refresh: Throw away what it holds of another.
        num_workers: Processes that load.
        progress: Called with clips done and their number.

    Returns:
        `(clips, moments, P)`, L2-normalised; zeros where there is no frame.

    Raises:
        TrainingError: The folder holds something else, or a vector is not finite.
    """
    cache = MomentCache(folder.expanduser(), model_fingerprint(teacher.model, teacher.images), dataset, ["image"])
    cache.open(refresh)
    done = len(dataset) - sum(len(cache.clips(part)) for part in cache.missing())
    for part in cache.missing():
        loader = DataLoader(
            Subset(_Frames(dataset, teacher.images), cache.clips(part)), batch_size=None, num_workers=num_workers
        )
        rows: list[np.ndarray | int] = []
        for count, pixels in loader:
            if pixels is None:
                rows.append(count)
            else:
                found = teacher.embed(pixels)
                if not bool(found.isfinite().all()):
                    raise TrainingError(f"{teacher.name}: gives vectors of frames that are not finite.")
                rows.append(found.half().numpy())
            done += 1
            if progress is not None:
                progress(done, len(dataset))
        whole = [np.zeros((row, teacher.width), np.float16) if isinstance(row, int) else row for row in rows]
        cache.write(part, {"image": stacked(whole)})
    return torch.from_numpy(cache.read()["image"].astype(np.float32)).nan_to_num()


def common_part(teacher: Tensor) -> Tensor:
    """What all frames `(clips, moments, P)` have in common, `(P,)`: their mean."""
    shown = teacher.any(dim=-1)
    if not bool(shown.any()):
        raise TrainingError("No clip has a frame, and `bridge` learns from frames; name clips with video.")
    return teacher[shown].mean(dim=0)


def centred(teacher: Tensor, common: Tensor) -> Tensor:
    """Frames without what they have in common, L2-normalised; zeros where there is none.

    The vectors of a CLIP's images all lie to one side, which projections without a bias cannot follow. To a text this
    part is the same in every frame, and takes no part in which of them it finds.
    """
    shown = teacher.any(dim=-1, keepdim=True)
    return torch.nn.functional.normalize((teacher - common) * shown, dim=-1)


@torch.no_grad()
def bridge_metrics(model: CavMaeSyncTextDualEncoderModel, clips: TextSet, teacher: Tensor) -> dict[str, Any]:
    """How near projected windows and frames of a set come to where the teacher puts the frames.

    Args:
        model: In evaluation mode.
        clips: The set.
        teacher: Its frames, `centred`, `(clips, moments, P)`.

    Returns:
        By modality the mean cosine, and that with the frame of another clip, which chance would reach.
    """
    found: dict[str, Any] = {}
    shown = teacher.any(dim=-1)
    for name, values in clips.moments.items():
        projected = model.project(name, values.to(model.device)).float().cpu()
        for what, shift in (("cosine", 0), ("cosine_other_clips", 1)):
            there = clips.present[name] & shown.roll(shift, dims=0)
            cosines = torch.cosine_similarity(projected, teacher.roll(shift, dims=0), dim=-1)[there]
            found[f"{what}_{name}"] = cosines.mean().item() if len(cosines) else math.nan
    return found


__all__ = ["Teacher", "bridge_metrics", "cached_frames", "centred", "common_part"]
