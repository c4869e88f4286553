# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""`datasets` with its `Video()` and `Audio()` columns, which use torchcodec where that is installed."""

import importlib.util
from types import ModuleType

import pytest


def datasets_with_columns(*, decoders: bool) -> ModuleType:
    """`datasets`; skips where it is not installed or its columns cannot be used.

    Args:
        decoders: Whether the columns shall decode, for which torchcodec must be there. Without, it need not, but must
            load where it is installed.
    """
    module = pytest.importorskip("datasets")
    if decoders or importlib.util.find_spec("torchcodec"):
        try:
            import torchcodec  # noqa: F401
        except (ImportError, RuntimeError, OSError) as error:  # it needs FFmpeg's libraries, which its wheel lacks
            pytest.skip(f"torchcodec does not load: {str(error).strip().splitlines()[0]}")
    return module
