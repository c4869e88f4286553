# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Settings of training runs, transformers' own among them, and how flags and recipes fill them in."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import SchedulerType

from ..model.errors_cavmae_sync import TrainingError
from .recipe import find_recipe, read_recipe
from .settings import FlagError, PretrainingSettings, RunSettings, mapping, setting


@dataclass
class RunArguments(RunSettings, TrainingArguments):
    """transformers' `TrainingArguments` with `RunSettings`, and other defaults where its own would be wrong here (each
    said below).

    Attributes:
        remove_unused_columns: Off: samples are not rows of columns named like the model's arguments.
        dataloader_drop_last: On: a contrastive loss needs batches of one size.
        ddp_find_unused_parameters: Off: weights without a gradient are frozen before training.
        average_tokens_across_devices: Off: there are no tokens to count.
        logging_nan_inf_filter: Off: a loss that is not finite stops the run instead of vanishing from the log.
    """

    remove_unused_columns: bool = setting(False, "Must stay off.")
    dataloader_drop_last: bool = setting(True, "Drop the incomplete last batch.")
    ddp_find_unused_parameters: bool | None = setting(False, "Not needed; costs time.")
    average_tokens_across_devices: bool = setting(False, "Has no use here.")
    logging_nan_inf_filter: bool = setting(False, "Hides non-finite losses from the log.")

    def __post_init__(self) -> None:
        self.step_decay = mapping("step_decay", self.step_decay)
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
class SmallRunArguments(RunArguments):
    """`RunArguments` with defaults for what is trained beside frozen encoders in a thousand steps."""

    max_steps: int = setting(1000, "Steps to train.")
    warmup_steps: float = setting(0.1, "Steps of warm-up, or their share of all.")
    lr_scheduler_type: SchedulerType | str = setting("cosine", "Course of the rate.")
    logging_steps: float = setting(0.1, "Steps from one line of the log to the next, or their share of all.")
    save_total_limit: int | None = setting(1, "Checkpoints that are kept.")


@dataclass
class PretrainingArguments(PretrainingSettings, RunArguments):
    """`RunArguments` with `PretrainingSettings`."""

    def __post_init__(self) -> None:
        if self.pictures is not None:
            warnings.warn("`pictures` is now called `plots`; the old name goes.", FutureWarning, stacklevel=2)
            self.plots, self.pictures = self.pictures, None
        super().__post_init__()
        if self.contrast_chunk_size < 0:
            raise TrainingError(f"`contrast_chunk_size` is {self.contrast_chunk_size}; use 0 (all at once) or more.")
        if not 0 <= self.teacher_momentum < 1:
            raise TrainingError(f"`teacher_momentum` is {self.teacher_momentum}; use 0 (none) or more, below 1.")


class _Parser(HfArgumentParser):
    """transformers' parser, which takes whole names alone and raises instead of printing hundreds of lines."""

    def __init__(self, kinds: Sequence[Any]) -> None:
        super().__init__(kinds, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise FlagError(f"{message[:1].upper()}{message[1:]}.")


def parse_arguments(
    kinds: Sequence[Any], arguments: Sequence[str] | None = None, folder: str | None = None
) -> tuple[Any, ...]:
    """Read flags, after the recipe that the first argument may name.

    Args:
        kinds: Dataclasses to fill, such as `(ModelArguments, DataArguments, PretrainingArguments)`.
        arguments: Words of the command line without the program's name; default: this process's. If the first one is
            no flag it is a recipe, see `find_recipe`: `key: value` lines whose keys are the fields of `kinds`. Flags
            win over it; a mapping given as a flag changes the keys that it names.
        folder: Of the recipes that come with the package, for short names: `"pretraining"`.

    Returns:
        One object of each kind.

    Raises:
        FlagError: A flag is wrong.
        TrainingError: The recipe cannot be read, or names a key that is no field.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(kinds)
    recipe: dict[str, Any] = {}
    if words and not words[0].startswith("-"):
        recipe = read_recipe(find_recipe(words.pop(0), folder), kinds)
        parser.set_defaults(**recipe)
    *filled, rest = parser.parse_args_into_dataclasses(
        args=words, look_for_args_file=False, return_remaining_strings=True
    )
    if rest:
        raise FlagError.unknown(rest[0], {item.name for kind in kinds for item in fields(kind)})
    for item in filled:
        for name, value in recipe.items():
            given = getattr(item, name, None)
            if isinstance(value, dict) and isinstance(given, dict):
                setattr(item, name, value | given)
    return tuple(filled)
