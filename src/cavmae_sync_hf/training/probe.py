# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How much of the classes can be read off a frozen model's features? The linear probe as a run with a recipe."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..data.dataset import CavMaeSyncDataset
from ..files import write_json
from ..inference.features import choose_features
from ..inference.loading import load_model
from ..model.errors_cavmae_sync import TrainingError
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..provenance import checkpoint_record, software_versions
from .arguments import _help as help_text
from .arguments import _mapping as as_mapping
from .classification_model import LabelSpace, find_labels
from .feature_cache import cached_features
from .linear import chance_figures, fit_probe, probe_figures, shuffled
from .sets import EvaluationSet, make_syncworld

__all__ = ["ProbeArguments", "join_features", "run_probe"]

# For which model or labels a probe is fitted, beside the true ones.
BASELINES = ("random_weights", "shuffled_labels")


@dataclass
class ProbeArguments:
    """What a linear probe is fitted to and evaluated on.

    Attributes:
        model: Folder or Hub name of a model.
        output_dir: Where `metrics.json` goes, and the features unless `cache_dir` says otherwise.
        train_data: A folder of shards, a folder or list of video files; see `open_clips`. With labels.
        eval_data: Name -> such a source, as a mapping or JSON; each is evaluated under its name.
        syncworld: Makes a SyncWorld and its shards first, where they are not there yet; as in `DataArguments`.
        class_names: File with the names of the classes; default: those stored with the training set.
        problem_type: One softmax, or a regression for each class. Default: the former where every training clip has
            exactly one label.
        features: What is probed, each in turn: names of `inference.features` (`a`, `v`, `av`, `a_patches`, ...), or
            several joined by `+`, such as `a+v`, which are put side by side.
        baselines: What the figures are to be compared with, measured in the same way: `random_weights`, the model
            before any training; `shuffled_labels`, training labels dealt out at random.
        strengths: Inverse strengths of regularisation (scikit-learn's `C`) to choose from.
        held_out: Share of the training clips that the choice is made on.
        max_iterations: Of the optimiser.
        jobs: Classes fitted side by side; -1: as many as there are cores.
        cache_dir: Where features are kept, a folder per set; default: `features` in `output_dir`.
        refresh_cache: Throw away features of another model or set, instead of refusing to go on.
        batch_frames: Frames (with their windows) encoded at a time.
        num_workers: Processes that load.
        device: Where the model runs; default: the first GPU if there is one.
        dtype: Of the model's weights.
        seed: Seeds the held-out clips and the baselines.
    """

    model: str | None = field(default=None, metadata=help_text("Folder or Hub name of a model."))
    output_dir: str = field(default="outputs/probe", metadata=help_text("Where metrics.json and the features go."))
    train_data: str | None = field(
        default=None, metadata=help_text("Shards, or a folder or list of videos; labelled.")
    )
    eval_data: dict[str, str] | str | None = field(
        default=None, metadata=help_text('Evaluation sets, as JSON: {"name": "folder"}.')
    )
    syncworld: dict[str, Any] | str | None = field(
        default=None,
        metadata=help_text("SyncWorld to make first, as JSON: folder, train, semantic, temporal, options."),
    )
    class_names: str | None = field(default=None, metadata=help_text("File of class names."))
    problem_type: Literal["single_label_classification", "multi_label_classification"] | None = field(
        default=None, metadata=help_text("One softmax, or a regression for each class.")
    )
    features: list[str] = field(
        default_factory=lambda: ["a", "v", "a+v", "av"], metadata=help_text("What is probed; + puts side by side.")
    )
    baselines: list[str] = field(
        default_factory=list, metadata=help_text("For comparison: random_weights, shuffled_labels.")
    )
    strengths: list[float] = field(
        default_factory=lambda: [0.001, 0.01, 0.1, 1.0, 10.0, 100.0], metadata=help_text("Values of C to choose from.")
    )
    held_out: float = field(default=0.2, metadata=help_text("Share of the training clips for choosing C."))
    max_iterations: int = field(default=1000, metadata=help_text("Of the optimiser."))
    jobs: int = field(default=-1, metadata=help_text("Classes fitted side by side; -1: one per core."))
    cache_dir: str | None = field(default=None, metadata=help_text("Where features are kept; default: in output_dir."))
    refresh_cache: bool = field(default=False, metadata=help_text("Replace features of another model or set."))
    batch_frames: int = field(default=256, metadata=help_text("Frames encoded at a time."))
    num_workers: int = field(default=0, metadata=help_text("Processes that load."))
    device: str | None = field(default=None, metadata=help_text("Where the model runs, such as cpu or cuda:1."))
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata=help_text("Of the model's weights.")
    )
    seed: int = field(default=0, metadata=help_text("Seeds the held-out clips and the baselines."))

    def __post_init__(self) -> None:
        for name in ("eval_data", "syncworld"):
            setattr(self, name, as_mapping(name, getattr(self, name)))
        unknown = sorted(set(self.baselines) - set(BASELINES))
        if unknown:
            raise TrainingError(f"`baselines` has {unknown[0]!r}; there are {' and '.join(BASELINES)}.")
        if not self.features:
            raise TrainingError("`features` is empty; name what is to be probed, such as a, v and a+v.")


def run_probe(
    arguments: ProbeArguments, *, process: Any = None, progress: Callable[..., None] | None = None
) -> list[dict[str, Any]]:
    """Extract features, fit the probes, evaluate them, and write `metrics.json`.

    Args:
        arguments: What to do.
        process: An `accelerate.PartialState` where several processes share the work of extraction; the first one
            fits.
        progress: Called with clips done, their number and which they are, during extraction.

    Returns:
        A row for each set, model, labels and features, see `metrics.json`; none on other processes than the first.

    Raises:
        ValueError: The model, the data, the cache or a setting cannot be used; the message says why.
    """
    rank, world = (0, 1) if process is None else (process.process_index, process.num_processes)
    wait = process.wait_for_everyone if process is not None else lambda: None
    model, processor = _model(arguments, process)
    needed = _needed(arguments.features, model.config)
    if rank == 0:  # the others find what it makes
        _sources(arguments, processor, is_main=True)
    wait()
    train_source, evaluation = _sources(arguments, processor, is_main=False)
    sets = {"train": CavMaeSyncDataset(train_source, processor, frames="all")}
    sets |= {name: CavMaeSyncDataset(source, processor, frames="all") for name, source in evaluation.items()}
    wrapped = {name: EvaluationSet(dataset) for name, dataset in sets.items() if name != "train"}
    space = find_labels(sets["train"], wrapped, arguments.class_names, arguments.problem_type)
    rows: list[dict[str, Any]] = []
    count = _Counter(progress, sets, 1 + ("random_weights" in arguments.baselines))
    for weights, probed in _models(arguments, model):
        vectors = {
            name: cached_features(
                probed, dataset, needed, _cache_folder(arguments, weights, name),
                refresh=arguments.refresh_cache, batch_frames=arguments.batch_frames,
                num_workers=arguments.num_workers, rank=rank, world_size=world, wait=wait,
                progress=count.of(name, weights),
            )
            for name, dataset in sets.items()
        }  # fmt: skip
        if rank == 0:
            rows += _fit_all(arguments, weights, vectors, sets, space)
    if rank == 0:
        _write(arguments, model, space, sets, rows)
    wait()
    return rows


def join_features(vectors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Features by a name that may join several, `(clips, size)`: `a+v` has the columns of `a`, then those of `v`."""
    return np.concatenate([vectors[part] for part in _parts(name)], axis=1)


def _fit_all(
    arguments: ProbeArguments,
    weights: str,
    vectors: dict[str, dict[str, np.ndarray]],
    sets: dict[str, CavMaeSyncDataset],
    space: LabelSpace,
) -> Iterator[dict[str, Any]]:
    """Rows of one model: every choice of features, true labels first."""
    labels = {name: dataset.labels() for name, dataset in sets.items()}
    kinds: list[tuple[str, Any]] = [("true", labels["train"])]
    if "shuffled_labels" in arguments.baselines:
        kinds.append(("shuffled", shuffled(labels["train"], arguments.seed)))
    for kind, train_labels in kinds:
        for name in arguments.features:
            probe = fit_probe(
                join_features(vectors["train"], name), train_labels, space.count, space.problem_type,
                strengths=arguments.strengths, held_out=arguments.held_out,
                max_iterations=arguments.max_iterations, jobs=arguments.jobs, seed=arguments.seed,
            )  # fmt: skip
            for set_name in sets:
                if set_name == "train":
                    continue
                values = join_features(vectors[set_name], name)
                yield {
                    "set": set_name,
                    "weights": weights,
                    "labels": kind,
                    "features": name,
                    **probe_figures(probe, values, labels[set_name]),
                    "chance": chance_figures(labels["train"], labels[set_name], space.count),
                    "absent": int(np.isnan(values).any(axis=1).sum()),
                    "size": values.shape[1],
                    "strength": probe.strength,
                    "selection": {f"{strength:g}": score for strength, score in probe.selection.items()},
                    "converged": probe.converged,
                }


def _model(arguments: ProbeArguments, process: Any) -> tuple[Any, Any]:
    if arguments.model is None:
        raise TrainingError("There is nothing to probe; name a `model`.")
    device: Any = arguments.device
    if device is None:
        device = process.device if process is not None else "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(arguments.model, device=device, dtype=getattr(torch, arguments.dtype))


def _models(arguments: ProbeArguments, model: Any) -> Iterator[tuple[str, Any]]:
    """The model, and its like before any training."""
    yield "trained", model
    if "random_weights" in arguments.baselines:
        state = torch.random.get_rng_state()
        torch.manual_seed(arguments.seed)
        untrained: Any = CavMaeSyncModel(copy.deepcopy(model.config))
        torch.random.set_rng_state(state)
        yield "random", untrained.to(device=model.device, dtype=model.dtype).eval()


def _sources(arguments: ProbeArguments, processor: Any, is_main: bool) -> tuple[Any, dict[str, Any]]:
    """The training source and the evaluation sources by name."""
    train: Any = arguments.train_data
    given: Any = arguments.eval_data
    settings: Any = arguments.syncworld
    evaluation = dict(given or {})
    if settings:
        extractor = processor.feature_extractor
        made, made_evaluation = make_syncworld(settings, extractor.num_frames, extractor.alignment, is_main)
        train, evaluation = train or made, evaluation or made_evaluation
    if train is None:
        raise TrainingError("There is nothing to fit the probe to; name `train_data`, or a `syncworld` to make.")
    if not evaluation:
        raise TrainingError("There is nothing to evaluate the probe on; name `eval_data`.")
    if "train" in evaluation:
        raise TrainingError("An evaluation set is called 'train'; give it another name.")
    wrong = [name for name in evaluation if os.path.basename(name) != name or name in ("", ".", "..")]
    if wrong:
        raise TrainingError(f"An evaluation set is called {wrong[0]!r}, which is no name of a folder; choose another.")
    return train, evaluation


def _needed(names: Sequence[str], config: Any) -> list[str]:
    """The features that the names are made of, each once, by their own names."""
    parts = [part for name in names for part in _parts(name)]
    return [feature.name for part in dict.fromkeys(parts) for feature in choose_features([part], config)]


def _parts(name: str) -> list[str]:
    return name.split("+")


def _cache_folder(arguments: ProbeArguments, weights: str, name: str) -> Path:
    folder = arguments.cache_dir or os.path.join(arguments.output_dir, "features")
    return Path(folder) / (name if weights == "trained" else f"{name}-random_{arguments.seed}")


class _Counter:
    """Counts the clips of all sets and models together."""

    def __init__(self, progress: Callable[..., None] | None, sets: dict[str, Any], models: int) -> None:
        self.progress, self.sets = progress, sets
        self.total = models * sum(map(len, sets.values()))
        self.before = 0

    def of(self, name: str, weights: str) -> Callable[..., None] | None:
        """What reports the progress of the next set."""
        if self.progress is None:
            return None
        report, before = self.progress, self.before
        self.before += len(self.sets[name])
        return lambda done, _total: report(before + done, self.total, f"{name}, {weights} weights")


def _write(
    arguments: ProbeArguments,
    model: Any,
    space: LabelSpace,
    sets: dict[str, CavMaeSyncDataset],
    rows: Sequence[dict[str, Any]],
) -> None:
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "protocol": "linear probe of clip means, version 1",
        "checkpoint": checkpoint_record(model),
        "problem_type": space.problem_type,
        "classes": space.count,
        "clips": {name: len(dataset) for name, dataset in sets.items()},
        "held_out": arguments.held_out,
        "seed": arguments.seed,
        "versions": software_versions(),
        "rows": rows,
    }
    write_json(folder / "metrics.json", record)
