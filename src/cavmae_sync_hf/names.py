# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Names that people give: places on this machine, models, and what is asked of the Hub.

All of it is told without the network, and without torch. `published_weights.csv` lists the weights that the methods'
authors published; a table of one's own, such as of a mirror, is named by the environment variable
`CAVMAE_SYNC_PUBLISHED`.
"""

import csv
import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .model.errors_cavmae_sync import ModelError, printable

__all__ = [
    "EXAMPLE",
    "HUB",
    "PUBLISHED",
    "PublishedWeights",
    "check_model_name",
    "example_model",
    "find_published",
    "hub_name",
    "is_published",
    "model_names",
    "nothing_at",
    "published_weights",
    "split_revision",
]

EXAMPLE = "example"
PUBLISHED = "published:"
HUB = "hf://"
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_TABLE = Path(__file__).with_name("published_weights.csv")


@dataclass(frozen=True)
class PublishedWeights:
    """A checkpoint that its authors published.

    Attributes:
        name: By which it is asked for.
        file: The authors' name of the file, empty where they give none.
        paper: Where it is described.
        kind: `"pretrained"` or `"fine-tuned"`.
        modality: `"audio"` or `"video"` for classifiers of one modality, which the tensors do not tell; else empty.
        what: Data and settings of its training.
        metric: The authors' figure, empty where they give none.
        licence: What its authors say of its use.
        bytes: Size of the file, 0 where unknown.
        sha256: SHA-256 of the file or its beginning, empty where unknown.
        link: Where its authors have it.
    """

    name: str
    file: str
    paper: str
    kind: str
    modality: str
    what: str
    metric: str
    licence: str
    bytes: int
    sha256: str
    link: str

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def published_weights() -> list[PublishedWeights]:
    """All published checkpoints.

    Raises:
        ModelError: The table that `CAVMAE_SYNC_PUBLISHED` names cannot be read.
    """
    table = Path(os.environ.get("CAVMAE_SYNC_PUBLISHED") or _TABLE)
    try:
        with open(table, encoding="utf-8", newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        return [PublishedWeights(**row | {"bytes": int(row["bytes"] or 0)}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        fields = ", ".join(PublishedWeights.__dataclass_fields__)
        raise ModelError(f"{table}: is no table of published weights ({error}); its columns are {fields}.") from error


def is_published(name: str) -> bool:
    """Whether a text is the name of a published checkpoint, or says that it is one by `published:`."""
    return name.startswith(PUBLISHED) or any(weights.name == name for weights in published_weights())


def find_published(name: str) -> PublishedWeights:
    """The published checkpoint of a name, with or without `published:` before it.

    Raises:
        ModelError: There is none; the message names the nearest.
    """
    name = name.removeprefix(PUBLISHED)
    known = {weights.name: weights for weights in published_weights()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)[:3]
        raise ModelError(
            f"{name!r} is none of the {len(known)} published checkpoints; near are {', '.join(near)} "
            "(`cavmae-sync published` lists all)."
        )
    return known[name]


def example_model() -> Path:
    """Folder of the small model that comes with the package, to try everything with.

    Trained on SyncWorld by the recipe `pretraining/syncworld_tiny`: it knows that world, and nothing of the real one.
    """
    return Path(__file__).with_name("example")


def model_names() -> list[str]:
    """The names of models that need no folder: `example`, and `published:NAME` for each published checkpoint."""
    return [EXAMPLE, *(f"{PUBLISHED}{weights.name}" for weights in published_weights())]


def hub_name(name: str) -> bool:
    """Whether the Hub may be asked for a name: `owner/name`, or `hf://`.

    A mistyped path must not wait for the Hub, so `owner` is no folder of this one, nor spelled almost like one.
    """
    if name.startswith(HUB):
        return True
    owner = name.partition("/")[0]
    return _HUB_NAME.fullmatch(name) is not None and not os.path.lexists(owner) and not _beside(Path(owner))


def split_revision(name: str) -> tuple[str, str | None]:
    """A repository of the Hub and its branch, tag or commit, of `owner/name@revision`; `None` where none is named."""
    repository, sign, revision = name.partition("@")
    return repository, revision if sign else None


def check_model_name(name: str) -> None:
    """Refuse what names no model: no folder with one, none by name, and nothing that the Hub may be asked for.

    Raises:
        ModelError: What is wrong with it, and what is near.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{printable(name)} holds no config.json; name a folder that holds a saved model.")
    elif path.exists():
        raise ModelError(
            f"{printable(name)} is a file; name the folder of a saved model (`cavmae-sync convert` makes one)."
        )
    elif name.startswith(PUBLISHED):
        find_published(name)
    elif name.startswith(HUB):
        repository, revision = split_revision(name.removeprefix(HUB))
        if not _HUB_NAME.fullmatch(repository) or revision == "":
            raise ModelError(
                f"{printable(name)} is no repository on the Hub; write {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION."
            )
    elif name != EXAMPLE and (not hub_name(split_revision(name)[0]) or name.endswith("@")):
        named = {entry.removeprefix(PUBLISHED): entry for entry in model_names()}
        near = [named[match] for match in difflib.get_close_matches(name, named, n=2)]
        remedy = (
            f"For a model of that name on the Hub write {HUB}{name}"
            if _HUB_NAME.fullmatch(name)
            else f"Name one that holds a saved model, {EXAMPLE}, {PUBLISHED}NAME, or a Hub repository as OWNER/NAME"
        )
        raise ModelError(f"{printable(name)} is not a folder{_missing_part(name)}. {_meant(name, near)}{remedy}.")


def nothing_at(path: str, what: str = "file or folder") -> str:
    """Says that there is nothing at a path, which of its folders is missing, and what is near.

    Args:
        path: As it was given.
        what: What it should have been.
    """
    meant = _meant(path).strip()
    return f"{printable(path)}: no such {what}{_missing_part(path)}" + (f". {meant}" if meant else "; check the path.")


def _missing_part(path: str) -> str:
    """The first folder above a path that is not there, if any."""
    folders = [folder for folder in Path(path).parents if not folder.is_dir()]
    return f", for there is no folder {printable(str(folders[-1]))}" if folders else ""


def _meant(path: str, names: Iterable[str] = ()) -> str:
    """`Did you mean ...? ` with what lies beside a path, or beside the first folder of it that is missing."""
    parts = Path(path).parts
    lowest = next(number for number in range(1, len(parts) + 1) if not Path(*parts[:number]).exists())
    near = [*names, *(str(Path(found, *parts[lowest:])) for found in _beside(Path(*parts[:lowest])))]
    return f"Did you mean {' or '.join(map(printable, near))}? " if near else ""


def _beside(path: Path) -> list[Path]:
    """What lies in the folder of a path under almost its name."""
    try:
        entries = [entry for entry in os.listdir(path.parent) if not entry.startswith(".")]
    except OSError:
        return []
    return [path.parent / entry for entry in difflib.get_close_matches(path.name, entries, n=2, cutoff=0.7)]
