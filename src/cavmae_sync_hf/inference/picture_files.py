# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How do pictures and other results come into files, whole or not at all, under names that are safe?"""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

__all__ = ["file_stem", "save_image", "whole_file"]

_LONGEST_STEM = 80


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary name beside `path`, which becomes `path` when all went well and disappears otherwise.

    The folder is made. The temporary name has the same suffix, by which writers choose the format.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".partial-{secrets.token_hex(4)}{target.suffix}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a PNG file."""
    with whole_file(path) as partial:
        image.save(partial, format="PNG")
    return Path(path)


def file_stem(source: object, taken: set[str]) -> str:
    """A file name without suffix for the results of a film: letters, digits, dots, dashes; each once.

    Args:
        source: Path or address of the film, or any name.
        taken: Stems given out before; the new one is added.
    """
    name = re.split(r"[\\/]", str(source).split("?")[0].rstrip("/\\"))[-1]
    stem = re.sub(r"[^\w.-]+", "_", Path(name).stem, flags=re.ASCII).strip("._-")[:_LONGEST_STEM] or "film"
    unique, number = stem, 2
    while unique.lower() in taken:
        unique, number = f"{stem}-{number}", number + 1
    taken.add(unique.lower())
    return unique
