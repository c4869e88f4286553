# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Features of a set's clips, computed once and kept, and never taken for those of another model or set.

A cache is a folder that belongs to one model, one set and one choice of features; `index.json` says which, by their
checksums. Features lie in parts of some hundred clips, each whole or not there, so that a killed run goes on behind
the last one. A cache of anything else is refused, not overwritten.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Subset

from ..data.dataset import CavMaeSyncCollator, CavMaeSyncDataset
from ..data.engines import worker_deaths
from ..files import StrPath, check_array_size, parse_json, whole_file, write_json
from ..inference.features import Feature, choose_features, encode_moments, not_finite_error
from ..model.errors_cavmae_sync import Hint, TrainingError
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..provenance import model_fingerprint

# Vectors of the widest models in float32, of every layer of the deepest ones.
_MOST_PART_BYTES = 1 << 32

_INDEX_NAME = "index.json"
_FORMAT_VERSION = 1


@worker_deaths()
def cached_features(
    model: CavMaeSyncModel,
    dataset: CavMaeSyncDataset,
    features: Sequence[str],
    folder: StrPath,
    *,
    refresh: bool = False,
    batch_frames: int = 256,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    wait: Callable[[], None] | None = None,
    progress: Callable[..., None] | None = None,
) -> dict[str, np.ndarray]:
    """Features of all clips of a set, each the mean over the clip's moments; computed where the cache lacks them.

    Args:
        model: A `CavMaeSyncModel` in evaluation mode.
        dataset: The clips, with all their frames (`frames="all"`).
        features: Names, see `inference.features`.
        folder: Folder of the cache, new or of the same model and set.
        refresh: Throw away what the folder holds of something else, instead of refusing it.
        batch_frames: Frames encoded at a time; at least one clip is taken.
        num_workers: Processes that load.
        rank: Number of this process; the parts are shared out.
        world_size: Number of processes.
        wait: Waits for the other processes.
        progress: Called with clips done and their number.

    Returns:
        Feature name -> `(clips, hidden)` float32; NaN for clips that have no audio or video for it.

    Raises:
        TrainingError: The folder holds features of another model, set or choice, and `refresh` is off.
        CavMaeSyncError: A clip cannot be read.
    """
    if dataset.maker.frames != "all" or dataset.maker.augmentation is not None:
        raise TrainingError('Features are those of whole clips as they are; make the set with frames="all".')
    chosen = choose_features(list(features), model.config)
    identity = model_fingerprint(model, dataset.maker.processor)
    cache = ClipCache(Path(folder).expanduser(), identity, dataset, [feature.name for feature in chosen])
    wait = wait or (lambda: None)
    if rank == 0:
        cache.open(refresh)
    wait()
    missing = [part for part in cache.missing() if part % world_size == rank]
    wait()  # nobody may write before all have looked
    done = len(dataset) - sum(len(cache.clips(part)) for part in missing)
    clips = [clip for part in missing for clip in cache.clips(part)]
    rows = _clip_means(model, dataset, chosen, clips, batch_frames=batch_frames, num_workers=num_workers)
    for part in missing:
        means = [next(rows) for _ in cache.clips(part)]
        cache.write(part, {feature.name: np.stack([row[feature.name] for row in means]) for feature in chosen})
        done += len(means)
        if progress is not None:
            progress(done, len(dataset))
    wait()
    return cache.read()


def _clip_means(
    model: CavMaeSyncModel,
    dataset: CavMaeSyncDataset,
    features: Sequence[Feature],
    clips: Sequence[int],
    *,
    batch_frames: int,
    num_workers: int,
) -> Iterator[dict[str, np.ndarray]]:
    """For each clip the means over the moments that are there, `(hidden,)` float32; NaN where there are none."""
    processor = dataset.maker.processor
    loader = DataLoader(
        Subset(dataset, clips),
        batch_size=max(1, batch_frames // processor.feature_extractor.num_frames),
        collate_fn=CavMaeSyncCollator(processor),
        num_workers=num_workers,
    )
    done = 0
    for batch in loader:
        encoded = encode_moments(model, batch, features)
        broken = encoded.broken(features).any(dim=1)
        if broken.any():
            clip = dataset.clip_ids()[clips[done + int(broken.int().argmax())]]
            raise TrainingError(not_finite_error(f"Clip {clip}: a feature", model).message)
        done += len(broken)
        means = {}
        for feature in features:
            counts = encoded.present(feature).sum(dim=1, keepdim=True)
            sums = encoded.values[feature.name].double().sum(dim=1)
            means[feature.name] = (sums / counts).float().numpy()  # 0 / 0 is NaN
        for place in range(len(batch["input_values"])):
            yield {name: values[place] for name, values in means.items()}


def cached_moments(
    model: CavMaeSyncModel,
    dataset: CavMaeSyncDataset,
    folder: StrPath,
    *,
    refresh: bool = False,
    batch_frames: int = 256,
    num_workers: int = 0,
    progress: Callable[..., None] | None = None,
) -> dict[str, np.ndarray]:
    """Embeddings of all moments of all clips of a set, computed where the cache lacks them.

    Args:
        model, dataset, folder, refresh, batch_frames, num_workers, progress: As of `cached_features`.

    Returns:
        `audio` and `video` `(clips, moments, hidden)` float16, NaN where absent, and `times` `(clips, moments)`
        float64, seconds, NaN where a clip has fewer moments than the longest.

    Raises:
        TrainingError, CavMaeSyncError: As `cached_features`.
    """
    if dataset.maker.frames != "all" or dataset.maker.augmentation is not None:
        raise TrainingError('Embeddings are those of whole clips as they are; make the set with frames="all".')
    processor = dataset.maker.processor
    cache = MomentCache(
        Path(folder).expanduser(), model_fingerprint(model, processor), dataset, ["audio", "video", "times"]
    )
    cache.open(refresh)
    features = choose_features(["a", "v"], model.config)
    done = len(dataset) - sum(len(cache.clips(part)) for part in cache.missing())
    for part in cache.missing():
        loader = DataLoader(
            Subset(dataset, cache.clips(part)),
            batch_size=max(1, batch_frames // processor.feature_extractor.num_frames),
            collate_fn=CavMaeSyncCollator(processor),
            num_workers=num_workers,
        )
        kept: dict[str, list[np.ndarray]] = {name: [] for name in cache.features}
        for batch in loader:
            encoded = encode_moments(model, batch, features)
            if encoded.broken(features).any():
                raise TrainingError(not_finite_error("An embedding", model).message)
            for name, feature in zip(("audio", "video"), features, strict=True):
                absent = ~encoded.present(feature).unsqueeze(-1)
                kept[name] += list(encoded.values[feature.name].masked_fill(absent, np.nan).half().numpy())
            kept["times"] += list(np.asarray(batch["frame_times"], dtype=np.float64))
            if progress is not None:
                progress(done + len(kept["times"]), len(dataset))
        cache.write(part, {name: stacked(rows) for name, rows in kept.items()})
        done += len(kept["times"])
    return cache.read()


def stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of different lengths, filled up with NaN."""
    longest = max(len(row) for row in rows)
    return np.stack(
        [np.concatenate([row, np.full((longest - len(row), *row.shape[1:]), np.nan, row.dtype)]) for row in rows]
    )


def _checked(path: Path, rows: np.ndarray) -> np.ndarray:
    """Features `(clips, hidden)`, each there or, as NaN throughout, absent."""
    finite = np.isfinite(rows)
    if not (finite.all(axis=1) | np.isnan(rows).all(axis=1)).all():
        raise ValueError("it holds NaN or infinite values")
    return rows


class ClipCache:
    """A folder of parts, each of some clips, that belongs to one model, one set and one choice of features.

    Args:
        folder: The folder.
        model: Checksum of the model.
        dataset: The clips.
        features: Names of what is kept.
    """

    kind, per_part, suffix = "cavmae-sync-clip-features", 256, "npz"

    def __init__(self, folder: Path, model: str, dataset: CavMaeSyncDataset, features: list[str]) -> None:
        self.folder, self.count, self.features = folder, len(dataset), features
        names = json.dumps(list(dataset.clip_ids()), ensure_ascii=False)
        self.identity = {
            "format": self.kind,
            "format_version": _FORMAT_VERSION,
            "model": model,
            "data": hashlib.sha256(f"{dataset.source.fingerprint}\n{names}".encode()).hexdigest(),
            "clips": self.count,
        }

    def open(self, refresh: bool) -> None:
        """Make the folder ours, or find that it is."""
        if self.folder.exists() and not self.folder.is_dir():
            raise TrainingError(f"{self.folder}: is a file; name a folder for the cache.")
        index: dict[str, Any] | None = None
        with contextlib.suppress(OSError, ValueError):
            found = parse_json((self.folder / _INDEX_NAME).read_text(encoding="utf-8"))
            if isinstance(found, dict) and found.get("identity", {}).get("format") == self.kind:
                index = found
        if index is None and self.folder.is_dir() and any(self.folder.iterdir()):
            raise TrainingError(f"{self.folder}: holds other files; name a new folder for the cache.")
        self.folder.mkdir(parents=True, exist_ok=True)
        for pattern in (".partial-*", "partial-*"):  # of killed runs, by this version and the one before
            for left in self.folder.glob(pattern):
                left.unlink(missing_ok=True)
        fault = None if index is None else self._fault(index)
        if fault is not None and not refresh:
            raise TrainingError(
                f"{self.folder}: holds {fault}. Name another folder (`cache_dir`).",
                hint=Hint("refresh_cache", True, "have it made anew"),
            )
        if fault is not None:
            (self.folder / _INDEX_NAME).unlink()
            for path in self.folder.glob(f"part-*.{self.suffix}"):
                path.unlink()
        if index is None or fault is not None:
            write_json(self.folder / _INDEX_NAME, {"identity": self.identity, "features": self.features}, indent=1)

    def _fault(self, index: dict[str, Any]) -> str | None:
        """What the cache holds, if it is not what is wanted."""
        before = index.get("identity", {})
        if before.get("model") != self.identity["model"]:
            return "the features of another model (other weights, configuration or processor)"
        if before.get("data") != self.identity["data"]:
            return f"the features of another set ({before.get('clips')} clips, this one has {self.count})"
        if before != self.identity:
            return f"features in the format version {before.get('format_version')}, not {_FORMAT_VERSION}"
        lacking = sorted(set(self.features) - set(index.get("features", ())))
        if lacking:
            return f"the features {', '.join(index['features'])} and not {', '.join(lacking)}"
        return None

    def clips(self, part: int) -> range:
        """Numbers of a part's clips."""
        return range(part * self.per_part, min((part + 1) * self.per_part, self.count))

    def missing(self) -> list[int]:
        """Numbers of the parts that are not there."""
        parts = -(-self.count // self.per_part)
        return [part for part in range(parts) if not self.part(part).is_file()]

    def write(self, part: int, values: Mapping[str, np.ndarray]) -> None:
        """Write a part; it is there whole or not at all."""
        with whole_file(self.part(part)) as partial, open(partial, "wb") as file:
            np.savez(file, **values)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> dict[str, np.ndarray]:
        """All features that are wanted."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in self.features}
        for part in range(-(-self.count // self.per_part)):
            path = self.part(part)
            try:
                check_array_size(path, _MOST_PART_BYTES)
                with np.load(path) as values:
                    for name, rows in columns.items():
                        rows.append(_checked(path, values[name]))
            except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
                raise TrainingError(f"{path}: cannot be read ({error}); delete it and run again.") from error
        return {name: np.concatenate(rows) for name, rows in columns.items()}

    def part(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{part:05d}.{self.suffix}"


class MomentCache(ClipCache):
    """The folder of the moments' embeddings."""

    kind = "cavmae-sync-clip-moments"

    def read(self) -> dict[str, np.ndarray]:
        """All that is kept."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.features}
        for part in range(-(-self.count // self.per_part)):
            path = self.part(part)
            try:
                check_array_size(path, _MOST_PART_BYTES)
                with np.load(path) as values:
                    for name, rows in parts.items():
                        rows.extend(values[name])
            except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
                raise TrainingError(f"{path}: cannot be read ({error}); delete it and run again.") from error
        return {name: stacked(rows) for name, rows in parts.items()}
