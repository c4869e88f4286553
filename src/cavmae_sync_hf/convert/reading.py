# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Reading of checkpoint files, and refusal of what is none.

What a file is, is told by its first bytes, not by its name: a download that failed often leaves a web page under the
checkpoint's name. No code in a file is run.
"""

import argparse
import contextlib
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..files import file_digest, parse_json
from ..model.errors_cavmae_sync import ModelError

# Where training scripts put the weights when they save more than weights.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")
# In the order in which transformers looks for them.
_FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_PREFIXES = ("module.", "_orig_mod.", "model.")
_SHOWN_NAMES = 8
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Most of it are the names of classes, or of a large model's tensors.
_MOST_JSON_BYTES = 1 << 26


@dataclass
class Checkpoint:
    """Contents of a checkpoint.

    Attributes:
        tensors: Names, as in the file, and tensors.
        sha256: SHA-256 of every weight file, by file name.
        config: `config.json` beside the weights of a transformers folder; empty otherwise.
    """

    tensors: dict[str, Tensor]
    sha256: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(src: str | os.PathLike) -> Checkpoint:
    """Read a `.pth`/`.bin` or safetensors file, or a transformers folder, without running any code in it.

    Raises:
        ModelError: The file is missing, empty, truncated, a web page, or holds something else than tensors.
    """
    path = Path(src)
    if not path.exists():
        raise ModelError("no such file or folder; give the path of a checkpoint that is on this machine.")
    if path.is_file():
        return Checkpoint(_read_file(path), {path.name: file_digest(path)})
    tensors: dict[str, Tensor] = {}
    files = weight_files(path)
    for file in files:
        tensors |= _read_file(file)
    config_file = path / "config.json"
    config = read_json_object(config_file) if config_file.is_file() else {}
    return Checkpoint(tensors, {file.name: file_digest(file) for file in files}, config)


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what wrappers put before every name, such as `module.` (DataParallel), once or several times."""
    stripped = dict(tensors)
    while prefix := next((p for p in _PREFIXES if stripped and all(name.startswith(p) for name in stripped)), None):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a weight file, whose length is checked against what its header promises.

    Raises:
        ModelError: As of `read_checkpoint`.
    """
    if _container(file) == "safetensors":
        with _damage_told(file), safe_open(file, "pt") as reader:
            return {name: tuple(reader.get_slice(name).get_shape()) for name in reader.keys()}  # noqa: SIM118
    return {name: tuple(tensor.shape) for name, tensor in _read_file(file).items()}


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity; those on the meta device hold nothing.

    One pass over the values: a sum is NaN or infinite where a summand is. It may also overflow, which a second look
    tells.
    """
    return [
        name
        for name, tensor in tensors.items()
        if tensor.dtype in _FLOATS  # those of quantised layers are packed
        and not tensor.is_meta
        and not bool(tensor.sum().isfinite())
        and not bool(tensor.isfinite().all())
    ]


def weight_files(folder: Path) -> list[Path]:
    """The files of a saved model's weights; all of them are there.

    Raises:
        ModelError: There are none, or an index names some that are not there, or lie elsewhere.
    """
    name = next((name for name in _FOLDER_FILES if (folder / name).is_file()), None)
    if name is None:
        found = shorten(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise ModelError(
            f"the folder holds none of {', '.join(_FOLDER_FILES)} (it holds: {found}); "
            "give the checkpoint file itself."
        )
    if not name.endswith(".index.json"):
        return [folder / name]
    places = read_json_object(folder / name).get("weight_map")
    shards = sorted({str(place) for place in places.values()}) if isinstance(places, Mapping) else []
    foreign = [shard for shard in shards if shard != Path(shard).name or "\\" in shard]
    if foreign:
        raise ModelError(f"{name} names files outside of its folder, which are not read: {shorten(foreign)}.")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing or not shards:
        what = shorten(missing) or "none at all"
        raise ModelError(f"{name} names files that are not there: {what}; download the whole folder.")
    return [folder / shard for shard in shards]


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: The file is larger than any such file of a model, or holds something else.
    """
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise ModelError(f"{path.name} has {path.stat().st_size:,} bytes and is no such file of a model; replace it.")
    try:
        contents = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is no readable JSON ({error}); download it again.") from error
    if not isinstance(contents, dict):
        raise ModelError(f"{path.name} holds no JSON object; download it again.")
    return contents


def _read_file(path: Path) -> dict[str, Tensor]:
    """Tensors of one weight file."""
    container = _container(path)
    if container == "safetensors":
        with _damage_told(path):
            return load_file(path)
    return _unwrap(_load_pickled(path, path.stat().st_size, container == "zip"), path.name)


def check_head(path: Path) -> bytes:
    """The first bytes of a weight file.

    Raises:
        ModelError: It is empty, or a web page or a pointer took its place.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if size == 0:
        raise ModelError(f"{path.name} is empty (0 bytes); download it again.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ModelError(
            f"{path.name} is a web page of {size:,} bytes, not a checkpoint: the download answered with a page (a "
            "consent or quota notice, or a login). Open the link in a browser and save the file itself."
        )
    if b"git-lfs" in text[:100]:
        raise ModelError(f"{path.name} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`.")
    return head


def _container(path: Path) -> Literal["safetensors", "zip", "pickle"]:
    """What a weight file is."""
    head, size = check_head(path), path.stat().st_size
    # A safetensors file starts with the length of its JSON header, eight bytes, and then the header.
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000):
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if not head.startswith(b"\x80"):
        raise ModelError(
            f"{path.name} ({size:,} bytes) is neither a torch checkpoint nor safetensors; "
            "give the file that the authors publish."
        )
    return "pickle"


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"{path.name} ({path.stat().st_size:,} bytes) is truncated or damaged safetensors ({error}); download it "
            "again."
        ) from error


def _load_pickled(path: Path, size: int, is_zip: bool) -> Any:
    try:
        # Training scripts save their arguments beside the weights; a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if "weights" in str(error).lower() and "global" in str(error).lower():
            raise ModelError(
                f"{path.name} holds objects other than tensors, and loading those could run code: refused. Where you "
                "trust the file, load it there and save its state dict alone with torch.save. "
                f"({str(error).splitlines()[0]})"
            ) from error
        raise ModelError(f"{path.name} ({size:,} bytes) is truncated or damaged; download it again.") from error
    except Exception as error:  # a damaged pickle can fail in any way
        reason = " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])
        raise ModelError(
            f"{path.name} ({size:,} bytes) is truncated or damaged, or no torch checkpoint ({reason}); "
            "download it again."
        ) from error


def _unwrap(contents: Any, name: str) -> dict[str, Tensor]:
    """The name-to-tensor mapping in what a training script saved."""
    while isinstance(contents, Mapping):
        tensors = {key: value.detach() for key, value in contents.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        if {"state", "param_groups"} <= set(contents):
            raise ModelError(f"{name} is the state of an optimizer, not of a model; give the model's file.")
        wrapper = next((key for key in _WRAPPERS if isinstance(contents.get(key), Mapping)), None)
        if wrapper is None:
            keys = shorten([str(key) for key in contents]) or "nothing"
            raise ModelError(f"{name} holds no tensors (it holds: {keys}); give a file with a model's state dict.")
        contents = contents[wrapper]
    raise ModelError(f"{name} holds a {type(contents).__name__}, not a model's state dict.")


def shorten(names: list[str], shown: int = _SHOWN_NAMES) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f", and {more} more" if more > 0 else "")
