# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Settings of training runs, as dataclasses that flags and YAML recipes fill in alike."""

import difflib
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..files import parse_json
from ..model.errors_cavmae_sync import TrainingError

# Models or labels that a probe is fitted to for comparison.
BASELINES = ("random_weights", "shuffled_labels")


def setting(default: Any, text: str) -> Any:
    """A field of a dataclass with a line in `--help-all`; a list is copied for every object."""
    help_text = {"help": text.replace("%", "%%")}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=help_text)
    return field(default=default, metadata=help_text)


@dataclass
class ModelArguments:
    """Which model is trained, and from which weights.

    Attributes:
        init_from: Where weights come from; `None` draws all of them at random. A folder or Hub name of one of this
            package's models continues that one. A published `.pth` or safetensors file, an ImageNet MAE file or a
            ViT-MAE folder is converted on the spot.
        family: Whose settings `model_config` starts from: `"cav_mae_sync"` (CVPR 2025) or `"cav_mae"` (ICLR 2023).
            Not used when a model is continued, whose own settings hold.
        model_config: Settings of `CavMaeSyncConfig` that differ, as a mapping or JSON.
        processor: Settings of the feature extractor that the model's configuration does not hold (`alignment`,
            `mean`, `std`, `channel`), as a mapping or JSON. Defaults are those of a continued model, else
            `alignment="time"`.
        attention: Implementation of attention, such as `"sdpa"` or `"flash_attention_2"`; default: transformers'
            choice.
    """

    init_from: str | None = setting(None, "Model folder or Hub name, published file, MAE file; empty: random weights.")
    family: Literal["cav_mae_sync", "cav_mae"] = setting("cav_mae_sync", "Whose settings `model_config` starts from.")
    model_config: dict[str, Any] | str | None = setting(None, "Settings of CavMaeSyncConfig that differ, as JSON.")
    processor: dict[str, Any] | str | None = setting(
        None, "Settings of the feature extractor (alignment, mean, std, channel), as JSON."
    )
    attention: str | None = setting(None, "Attention implementation, such as sdpa.")

    def __post_init__(self) -> None:
        self.model_config = _mapping("model_config", self.model_config)
        self.processor = _mapping("processor", self.processor)


@dataclass
class DataArguments:
    """What is trained on and evaluated on.

    Attributes:
        train_data: A folder of shards, a folder or list of video files; see `open_clips`.
        eval_data: Name -> such a source, as a mapping or JSON; each is evaluated under its name.
        syncworld: Makes a SyncWorld and its shards before training, where they are not there yet: a mapping with
            `folder`, `train` (clips), `semantic` and `temporal` (clips of these evaluation sets), and any options of
            `make_world`. It gives `train_data` and `eval_data`, unless these are set.
        frames_per_clip: Random frames of a clip in a training sample; 1 as published.
        augmentation: Name of a preset (`none`, `cavmae_sync`, `cavmae`, `cavmae_classification`), or settings of
            `AugmentationOptions` as a mapping or JSON.
        streaming: Read shards in an order that is good to the disk, each process and worker its own part; for sets
            that no disk cache holds.
        shuffle_buffer: Clips among which a worker picks the next when streaming.
        in_memory: Decode all clips once and keep them, training and evaluation, for sets that fit: about 0.7 MB a
            clip at 96 pixels, 3.3 MB at 256.
    """

    train_data: str | None = setting(None, "Shards, or a folder or list of videos.")
    eval_data: dict[str, str] | str | None = setting(None, 'Evaluation sets, as JSON: {"name": "folder"}.')
    syncworld: dict[str, Any] | str | None = setting(
        None, "SyncWorld to make first, as JSON: folder, train, semantic, temporal, options."
    )
    frames_per_clip: int = setting(1, "Random frames of a clip in a training sample.")
    augmentation: dict[str, Any] | str | None = setting(
        None, "Preset (none, cavmae_sync, cavmae) or options, as JSON."
    )
    streaming: bool = setting(False, "Read shards in an order that is good to the disk.")
    shuffle_buffer: int = setting(1000, "Clips among which a streaming worker picks.")
    in_memory: bool = setting(False, "Decode all clips once and keep them.")

    def __post_init__(self) -> None:
        self.eval_data = _mapping("eval_data", self.eval_data)
        self.syncworld = _mapping("syncworld", self.syncworld)
        if isinstance(self.augmentation, str) and self.augmentation.lstrip().startswith("{"):
            self.augmentation = _mapping("augmentation", self.augmentation)
        if self.frames_per_clip < 1:
            raise TrainingError(f"`frames_per_clip` is {self.frames_per_clip}; it must be at least 1 (published: 1).")
        if self.streaming and self.in_memory:
            raise TrainingError("`streaming` and `in_memory` are both on; take one of them.")


@dataclass
class RunArguments(TrainingArguments):
    """transformers' `TrainingArguments` with what every training here needs beside them, and other defaults where its
    own would be wrong here (each said below).

    Attributes:
        adam_with_l2: Adam whose weight decay is part of the gradient (`torch.optim.Adam`), as published, instead of
            the optimiser named by `optim`.
        step_decay: The rate is multiplied by `factor` from epoch `start` on, every `every` epochs, after the warm-up;
            as a mapping or JSON with these keys. Takes the place of `lr_scheduler_type` (published CAV-MAE: 10, 5,
            0.5).
        eval_batch_frames: Frames (with their windows) that the model sees at a time in evaluation.
        overwrite: Start anew in an `output_dir` that holds an earlier run, whose checkpoints go; off: refuse it.
        peak_tflops: Peak of a device in TFLOP/s at the precision in use, for the utilisation; `0` measures a matrix
            product on CUDA devices and leaves the utilisation out elsewhere.
        remove_unused_columns: Off: samples are not rows of columns named like the model's arguments.
        dataloader_drop_last: On: a contrastive loss needs batches of one size.
        ddp_find_unused_parameters: Off: weights without a gradient are frozen before training.
        average_tokens_across_devices: Off: there are no tokens to count.
        logging_nan_inf_filter: Off: a loss that is not finite stops the run instead of vanishing from the log.
    """

    adam_with_l2: bool = setting(False, "Adam with weight decay in the gradient, as published, instead of `optim`.")
    step_decay: dict[str, Any] | str | None = setting(
        None, "Step decay of the rate, as JSON: start, every (epochs), factor."
    )
    eval_batch_frames: int = setting(256, "Frames seen at a time in evaluation.")
    overwrite: bool = setting(False, "Replace an earlier run in output_dir.")
    peak_tflops: float = setting(0.0, "Peak TFLOP/s of a device; 0: measure it on CUDA.")
    remove_unused_columns: bool = setting(False, "Must stay off.")
    dataloader_drop_last: bool = setting(True, "Drop the incomplete last batch.")
    ddp_find_unused_parameters: bool | None = setting(False, "Not needed; costs time.")
    average_tokens_across_devices: bool = setting(False, "Has no use here.")
    logging_nan_inf_filter: bool = setting(False, "Hides non-finite losses from the log.")

    def __post_init__(self) -> None:
        self.step_decay = _mapping("step_decay", self.step_decay)
        if self.step_decay:
            wrong = set(self.step_decay) ^ {"start", "every", "factor"}
            if wrong:
                raise TrainingError(f"`step_decay` has {sorted(self.step_decay)}; it needs start, every and factor.")
        if self.remove_unused_columns:
            raise TrainingError("`remove_unused_columns` would remove the samples' content; leave it off.")
        if not self.dataloader_num_workers:
            # What only worker processes can have; a recipe names it, a flag takes the workers away.
            self.dataloader_multiprocessing_context = self.dataloader_prefetch_factor = None
            self.dataloader_persistent_workers = False
        super().__post_init__()


@dataclass
class PretrainingArguments(RunArguments):
    """`RunArguments` with what pretraining needs beside them.

    Attributes:
        eval_min_shift: Smallest shift in seconds that the true alignment is compared with in evaluation.
        plots: Draw reconstructions and similarity matrices into `output_dir/plots` at every evaluation.
        contrast_chunk_size: Clips of a process that go through the model at a time, for batches that memory does not
            hold: same losses and gradients, one forward pass of the towers more. Unlike gradient accumulation, which
            adds up the gradients of batches that contrast each for itself, it makes more negatives. `0`: all at once.
        teacher_momentum: Momentum of a teacher (TG-DP) that guides the contrastive pass, which
            `contrastive_mask_ratio` and `distillation_loss_weight` of the model's configuration bring about; `0`: no
            teacher.
        pictures: Old name of `plots`, which still works in this version.
    """

    eval_min_shift: float = setting(2.0, "Smallest shift in the alignment check, seconds.")
    plots: bool = setting(False, "Draw reconstructions and similarities at evaluations.")
    contrast_chunk_size: int = setting(0, "Clips at a time of a batch that contrasts as a whole; 0: all.")
    teacher_momentum: float = setting(0.0, "Momentum of a teacher, such as 0.999; 0: none.")
    pictures: bool | None = setting(None, "Old name of plots.")

    def __post_init__(self) -> None:
        if self.pictures is not None:
            warnings.warn("`pictures` is now called `plots`; the old name goes.", FutureWarning, stacklevel=2)
            self.plots, self.pictures = self.pictures, None
        super().__post_init__()
        if self.contrast_chunk_size < 0:
            raise TrainingError(f"`contrast_chunk_size` is {self.contrast_chunk_size}; use 0 (all at once) or more.")
        if not 0 <= self.teacher_momentum < 1:
            raise TrainingError(f"`teacher_momentum` is {self.teacher_momentum}; use 0 (none) or more, below 1.")


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
        baselines: What the metrics are to be compared with, measured in the same way: `random_weights`, the model
            before any training; `shuffled_labels`, training labels dealt out at random.
        strengths: Inverse strengths of regularisation (scikit-learn's `C`) to choose from.
        held_out: Share of the training clips that the choice is made on.
        max_iterations: Of the optimiser.
        jobs: Classes fitted side by side; -1: as many as there are cores.
        cache_dir: Where features are kept, a folder per set; default: `features` in `output_dir`.
        overwrite: Replace the `metrics.json` of an earlier run, which is refused otherwise.
        refresh_cache: Throw away features of another model or set, instead of refusing to go on.
        batch_frames: Frames (with their windows) encoded at a time.
        num_workers: Processes that load.
        device: Where the model runs; default: the first GPU if there is one.
        dtype: Of the model's weights.
        seed: Seeds the held-out clips and the baselines.
    """

    model: str | None = setting(None, "Folder or Hub name of a model.")
    output_dir: str = setting("outputs/probe", "Where metrics.json and the features go.")
    train_data: str | None = setting(None, "Shards, or a folder or list of videos; labelled.")
    eval_data: dict[str, str] | str | None = setting(None, 'Evaluation sets, as JSON: {"name": "folder"}.')
    syncworld: dict[str, Any] | str | None = setting(
        None, "SyncWorld to make first, as JSON: folder, train, semantic, temporal, options."
    )
    class_names: str | None = setting(None, "File of class names.")
    problem_type: Literal["single_label_classification", "multi_label_classification"] | None = setting(
        None, "One softmax, or a regression for each class."
    )
    features: list[str] = setting(["a", "v", "a+v", "av"], "What is probed; + puts side by side.")
    baselines: list[str] = setting([], "For comparison: random_weights, shuffled_labels.")
    strengths: list[float] = setting([0.001, 0.01, 0.1, 1.0, 10.0, 100.0], "Values of C to choose from.")
    held_out: float = setting(0.2, "Share of the training clips for choosing C.")
    max_iterations: int = setting(1000, "Of the optimiser.")
    jobs: int = setting(-1, "Classes fitted side by side; -1: one per core.")
    cache_dir: str | None = setting(None, "Where features are kept; default: in output_dir.")
    overwrite: bool = setting(False, "Replace an earlier metrics.json.")
    refresh_cache: bool = setting(False, "Replace features of another model or set.")
    batch_frames: int = setting(256, "Frames encoded at a time.")
    num_workers: int = setting(0, "Processes that load.")
    device: str | None = setting(None, "Where the model runs, such as cpu or cuda:1.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Of the model's weights.")
    seed: int = setting(0, "Seeds the held-out clips and the baselines.")

    def __post_init__(self) -> None:
        for name in ("eval_data", "syncworld"):
            setattr(self, name, _mapping(name, getattr(self, name)))
        unknown = sorted(set(self.baselines) - set(BASELINES))
        if unknown:
            raise TrainingError(f"`baselines` has {unknown[0]!r}; there are {' and '.join(BASELINES)}.")
        if not self.features:
            raise TrainingError("`features` is empty; name what is to be probed, such as a, v and a+v.")


def parse_arguments(
    kinds: Sequence[Any], arguments: Sequence[str] | None = None, description: str | None = None
) -> tuple[Any, ...]:
    """Read flags, after the recipe that the first argument may name.

    Args:
        kinds: Dataclasses to fill, such as `(ModelArguments, DataArguments, PretrainingArguments)`.
        arguments: Words of the command line without the program's name; default: this process's. If the first one is
            no flag it is a YAML recipe: `key: value` lines whose keys are the fields of `kinds`. Flags win over it;
            a mapping given as a flag changes the keys that it names.
        description: Text of `--help`.

    Returns:
        One object of each kind.

    Raises:
        TrainingError: The recipe cannot be read, or names a key that is no field.
        SystemExit: A flag is wrong or `--help` was asked for.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = HfArgumentParser(kinds, description=description)
    recipe: dict[str, Any] = {}
    if words and not words[0].startswith("-"):
        recipe = read_recipe(words.pop(0), kinds)
        parser.set_defaults(**recipe)
    filled = parser.parse_args_into_dataclasses(args=words, look_for_args_file=False)
    for item in filled:
        for name, value in recipe.items():
            given = getattr(item, name, None)
            if isinstance(value, dict) and isinstance(given, dict):
                setattr(item, name, value | given)
    return filled


def read_recipe(path: str | Path, kinds: Sequence[type]) -> dict[str, Any]:
    """The settings of a YAML recipe, their names checked.

    Raises:
        TrainingError: The file cannot be read, is no mapping, or names a key that is no field of `kinds`.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise TrainingError(f"{path}: cannot be read as a YAML recipe ({error}).") from error
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: a recipe is a YAML mapping of settings, this is a {type(values).__name__}.")
    known = {item.name: item for kind in kinds for item in fields(kind) if item.init}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "see --help-all for all of them."
            raise TrainingError(f"{path}: `{name}` is no setting; {hint}")
        # YAML 1.1 takes 1e-3 for a text; the argument parser makes numbers of texts, but not of lists or mappings.
        values[name] = _numbers(value) if isinstance(value, dict | list) else value
    return values


def _numbers(value: Any) -> Any:
    """Texts like 1e-3 in mappings and lists as the numbers that they are meant to be."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _mapping(name: str, value: Any) -> dict[str, Any] | None:
    """A mapping given as such or as JSON."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except json.JSONDecodeError as error:
            raise TrainingError(f"`{name}` is {value!r}, which is no JSON ({error}).") from error
    if value is not None and not isinstance(value, dict):
        raise TrainingError(f'`{name}` is {value!r}; it must be a mapping, such as {{"key": value}}.')
    return value
