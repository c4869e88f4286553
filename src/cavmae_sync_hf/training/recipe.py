# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Recipes: the YAML files of settings that come with the package, by name, and those of users, by path."""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ..model.errors_cavmae_sync import TrainingError, printable

RECIPES = Path(__file__).parent / "recipes"
# Folder of recipes -> what runs them.
RUN_BY = {
    "pretraining": "cavmae-sync pretrain",
    "classification": "cavmae-sync finetune",
    "probe": "cavmae-sync probe",
    "text": "cavmae-sync text",
    "local_head": "cavmae-sync local-head",
    "instruction": "cavmae-sync instruct",
    "ablations": "python -m cavmae_sync_hf.training.ablations",
}


def list_recipes() -> dict[str, str]:
    """Name of each recipe of the package, such as `pretraining/syncworld_tiny`, and the line that says what it is."""
    found = {}
    for folder in RUN_BY:
        for path in sorted((RECIPES / folder).glob("*.yaml")):
            with open(path, encoding="utf-8") as file:
                found[f"{folder}/{path.stem}"] = file.readline().lstrip("#").strip()
    return found


def find_recipe(name: str, folder: str | None = None) -> Path:
    """The file of a recipe.

    Args:
        name: A path to a YAML file, or the name of a recipe of the package, with its folder or without.
        folder: Which of the package's recipes can be used; `None`: all.

    Raises:
        TrainingError: There is no such file or recipe, or it is for another command.
    """
    if Path(name).is_file():
        return Path(name)
    known = list_recipes()
    # A path of the recipes as they lay in a clone once leads to the same name.
    parts = Path(name.removesuffix(".yaml").removesuffix(".yml")).parts[-2:]
    found = [full for full in known if full.split("/")[-len(parts) :] == list(parts)] if parts else []
    mine = [full for full in found if folder in (None, full.split("/")[0])]
    is_path = name.endswith((".yaml", ".yml"))
    if len(mine) == 1 and not is_path and name.count("/") < 2:
        return RECIPES / f"{mine[0]}.yaml"
    shown, listed = printable(name), "`cavmae-sync recipes` lists all."
    if is_path and mine:
        raise TrainingError(f"{shown}: no such file; recipes come with the package, so write {mine[0]}.")
    if len(mine) > 1:
        raise TrainingError(f"There are several recipes {shown}; write {' or '.join(mine)}.")
    if found:
        raise TrainingError(f"{found[0]} is a recipe for `{RUN_BY[found[0].split('/')[0]]}`; {listed}")
    if is_path:
        raise TrainingError(f"{shown}: no such file; {listed}")
    usable = [full for full in known if folder in (None, full.split("/")[0])]
    words = {word: full for full in usable for word in (full, full.split("/")[1])}
    near = difflib.get_close_matches(name, words, n=1)
    raise TrainingError(f"There is no recipe {shown}; " + (f"did you mean {words[near[0]]}?" if near else listed))


def load_recipe(path: str | Path, known: Collection[str] | None = None) -> dict[str, Any]:
    """What a YAML recipe says.

    Args:
        path: The file.
        known: Names that it may set; `None`: any.

    Raises:
        TrainingError: The file cannot be read, is no mapping, or sets something unknown.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise TrainingError(f"{path}: cannot be read as a YAML recipe ({error}).") from error
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: a recipe is a YAML mapping of settings, this is a {type(values).__name__}.")
    wrong = next((str(name) for name in values if known is not None and name not in known), None)
    if wrong is not None:
        near = difflib.get_close_matches(wrong, known or (), n=1)
        hint = f"did you mean `{near[0]}`?" if near else "see --help-all for all of them."
        raise TrainingError(f"{path}: `{wrong}` is no setting; {hint}")
    return values


def read_recipe(path: str | Path, kinds: Sequence[type]) -> dict[str, Any]:
    """The settings of a YAML recipe, their names checked.

    Raises:
        TrainingError: The file cannot be read, is no mapping, or names a key that is no field of `kinds`.
    """
    values = load_recipe(path, {item.name for kind in kinds for item in fields(kind) if item.init})
    # YAML 1.1 takes 1e-3 for a text; the argument parser makes numbers of texts, but not of lists or mappings.
    return {name: _numbers(value) if isinstance(value, dict | list) else value for name, value in values.items()}


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
