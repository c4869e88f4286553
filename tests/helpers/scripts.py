"""Trainings as the command line starts them, and the recipes that come with the package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cavmae_sync_hf.training.recipe import RECIPES

__all__ = ["RECIPES", "run_training"]


def run_training(
    run: Callable[[list[str]], int], flags: dict[str, Any], recipe: Path | str | None = None, *more: str
) -> int:
    """The exit status of `pretrain` or `finetune` after a recipe, flags and more words; the last of a flag counts."""
    words = [str(text) for name, value in flags.items() for text in (f"--{name}", value)]
    return run([*([] if recipe is None else [str(recipe)]), *words, *more])
