"""The scripts of `training/` as modules, and runs of them."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

TRAINING = Path(__file__).parents[2] / "training"


def load_script(name: str) -> ModuleType:
    """A script by its name without ending."""
    spec: Any = importlib.util.spec_from_file_location(name, TRAINING / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(script: ModuleType, flags: dict[str, Any], recipe: Path | None = None, *more: str) -> int:
    """Its exit status after a recipe, flags and more words, of which the last given of a flag counts."""
    words = [str(text) for name, value in flags.items() for text in (f"--{name}", value)]
    return script.main([*([] if recipe is None else [str(recipe)]), *words, *more])
