# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Tokens of frozen encoders, computed once for all clips of a set and read in their place at every step.

Kept in half precision: a clip of 16 frames at 257 tokens of width 768 takes 6.3 MB.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..data.dataset import CavMaeSyncCollator, CavMaeSyncDataset, InputMaker
from ..data.engines import worker_deaths
from ..files import StrPath, whole_file
from ..model.errors_cavmae_sync import TrainingError
from ..model.modeling_cavmae_sync import CavMaeSyncPreTrainedModel
from .feature_cache import ClipCache

_INPUTS = {"audio": "input_values", "video": "pixel_values_videos"}


class KeptTokens(Dataset):
    """A training set of which the tokens of encoders take the place of their inputs.

    Args:
        dataset: The set itself, without augmentation.
        cache: Where its tokens are.
        modalities: Which inputs tokens take the place of.
    """

    def __init__(self, dataset: CavMaeSyncDataset, cache: "TokenCache", modalities: Sequence[str]) -> None:
        self.dataset, self.cache, self.modalities = dataset, cache, list(modalities)
        self.source, self.maker = dataset.source, dataset.maker
        self._ids = list(dataset.clip_ids())

    def set_epoch(self, epoch: int) -> None:
        """As of `CavMaeSyncDataset`."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A clip's sample: `audio_tokens` and `video_tokens` `(frames, tokens, width)` in float16, masks, times."""
        rows = self.cache.rows(int(index))
        draw, epoch = getattr(index, "draw", 0), self.dataset.epoch
        count = int(rows["count"])
        chosen = self.maker.choose(self._ids[index], count, epoch, draw)
        sample: dict[str, Any] = {name: value[chosen] for name, value in rows.items() if name != "count"}
        if len(self.modalities) < len(_INPUTS):  # the other tower sees its own input
            read = self.dataset[index]
            sample |= {name: read[name] for modality, name in _INPUTS.items() if modality not in self.modalities}
        return sample | {
            "frame_indices": torch.tensor(chosen), "clip_id": self._ids[index], "epoch": epoch, "labels": [],
        }  # fmt: skip


class TokenCache(ClipCache):
    """The folder of the tokens."""

    kind, per_part, suffix = "cavmae-sync-encoder-tokens", 32, "safetensors"

    def write(self, part: int, values: Any) -> None:
        """Write a part; it is there whole or not at all."""
        with whole_file(self.part(part)) as partial:
            save_file(values, partial)

    def rows(self, clip: int) -> dict[str, Tensor]:
        """What is kept of a clip; nothing else of its part is read."""
        part, row = divmod(clip, self.per_part)
        path = self.part(part)
        try:
            file = _opened(str(path))
            names = file.keys()
            return {name: file.get_slice(name)[row] for name in names}
        except (OSError, SafetensorError, IndexError) as error:
            raise TrainingError(f"{path}: cannot be read ({error}); delete it and run again.") from error


@dataclass
class _Counting:
    """A collator whose batches also say how many frames each clip has."""

    collator: CavMaeSyncCollator

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        counts = torch.tensor([len(sample["frame_times"]) for sample in samples])
        return self.collator(samples) | {"count": counts}


@lru_cache(maxsize=64)
def _opened(path: str) -> Any:
    return safe_open(path, "pt")


@worker_deaths()
def keep_tokens(
    model: CavMaeSyncPreTrainedModel,
    dataset: Any,
    folder: StrPath,
    *,
    device: str | torch.device = "cpu",
    batch_frames: int = 64,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    wait: Callable[[], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> KeptTokens:
    """The training set with the tokens of the model's frozen encoders, computed where the folder lacks them.

    Args:
        model: With at least one encoder of another model.
        dataset: A `CavMaeSyncDataset` without augmentation.
        folder: Where the tokens are kept, new or of the same encoders and set.
        device: Where they are computed.
        batch_frames: Frames encoded at a time; at least one clip is taken.
        num_workers: Processes that load.
        rank: Number of this process; the parts are shared out.
        world_size: Number of processes.
        wait: Waits for the other processes.
        progress: Called with clips done and their number.

    Raises:
        TrainingError: The encoders are trained or there is none, samples vary, or the folder holds something else.
    """
    config = model.config
    if not config.encoders or config.encoder_training != "frozen":
        have = "there is none" if not config.encoders else f"`encoder_training` is {config.encoder_training!r}"
        raise TrainingError(f"Tokens are kept of frozen encoders, and {have}; leave out `token_dir`.")
    if not isinstance(dataset, CavMaeSyncDataset):
        raise TrainingError("Tokens are kept of sets whose clips can be read in any order; leave out `streaming`.")
    if dataset.maker.augmentation is not None:
        raise TrainingError(
            "Kept tokens are those of clips as they are; set `augmentation` to none, or leave out `token_dir`."
        )
    base: Any = getattr(model, model.base_model_prefix, model)
    modalities = [modality for modality in _INPUTS if modality in config.encoders]
    cache = TokenCache(
        Path(folder).expanduser(), _identity(base, dataset, modalities), dataset,
        [f"{modality}_tokens" for modality in modalities],
    )  # fmt: skip
    wait = wait or (lambda: None)
    if rank == 0:
        cache.open(False)
    wait()
    missing = [part for part in cache.missing() if part % world_size == rank]
    wait()
    extractor = dataset.maker.processor.feature_extractor
    whole = copy.copy(dataset)
    whole.maker = InputMaker(dataset.maker.processor, "all")
    done, training = len(dataset) - sum(len(cache.clips(part)) for part in missing), model.training
    model.eval().to(device)
    for part in missing:
        loader = DataLoader(
            Subset(whole, cache.clips(part)),
            batch_size=max(1, batch_frames // extractor.num_frames),
            collate_fn=_Counting(CavMaeSyncCollator(dataset.maker.processor, num_frames=extractor.num_frames)),
            num_workers=num_workers,
        )
        rows: dict[str, list[Tensor]] = {}
        for batch in loader:
            for name, value in _encode(base, batch, modalities).items():
                rows.setdefault(name, []).append(value)
        cache.write(part, {name: torch.cat(values).contiguous() for name, values in rows.items()})
        done += len(cache.clips(part))
        if progress is not None:
            progress(done, len(dataset))
    model.train(training)
    wait()
    return KeptTokens(dataset, cache, modalities)


@torch.no_grad()
def _encode(model: Any, batch: dict[str, Any], modalities: Sequence[str]) -> dict[str, Tensor]:
    """What is kept of a batch's clips."""
    shape = batch["padding_mask"].shape
    everything = torch.ones(shape, dtype=torch.bool)
    kept = {"count": batch["count"], "frame_times": batch["frame_times"], "padding_mask": batch["padding_mask"]}
    kept["padding_mask_videos"] = batch.get("padding_mask_videos", everything)
    for modality in modalities:
        values = batch[_INPUTS[modality]].to(model.device)
        tokens = model.encode_tokens(modality, values, batch.get("window_offsets"))
        kept[f"{modality}_tokens"] = tokens.half().cpu()
    return kept


def _identity(model: Any, dataset: CavMaeSyncDataset, modalities: Sequence[str]) -> str:
    """Checksum of all that decides the tokens: the encoders, and how their inputs are made."""
    processor = dataset.maker.processor
    parts = [processor.feature_extractor.to_dict(), processor.video_processor.to_dict()]
    digest = hashlib.sha256(json.dumps([*parts, model.config.audio_context], sort_keys=True, default=str).encode())
    for modality in modalities:
        tower = model.tower(modality)
        for name, tensor in sorted(tower.encoder.state_dict().items()):
            digest.update(f"{modality} {name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        settings = [getattr(model.config, f"{modality}_encoder_{name}") for name in ("layer", "mean", "std")]
        digest.update(json.dumps([tower.encoder.config.to_dict(), *settings], sort_keys=True, default=str).encode())
    return digest.hexdigest()
