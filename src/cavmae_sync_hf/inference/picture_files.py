# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Images written whole."""

from pathlib import Path

from PIL import Image

from ..files import StrPath, whole_file

__all__ = ["save_image"]


def save_image(image: Image.Image, path: StrPath) -> Path:
    """Write a PNG file."""
    with whole_file(path) as partial:
        image.save(partial, format="PNG")
    return Path(path)
