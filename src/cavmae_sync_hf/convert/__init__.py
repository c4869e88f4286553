# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""From published checkpoints to folders that `from_pretrained` loads."""

from ..names import PublishedWeights, find_published, is_published, published_weights
from .catalogue import convert_published, fetch_published
from .conversion import Conversion, ConversionReport, convert_checkpoint, convert_file, convert_state_dict
from .published import Family

__all__ = [
    "Conversion",
    "ConversionReport",
    "Family",
    "PublishedWeights",
    "convert_checkpoint",
    "convert_file",
    "convert_published",
    "convert_state_dict",
    "fetch_published",
    "find_published",
    "is_published",
    "published_weights",
]
