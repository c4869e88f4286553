# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""From published checkpoints to folders that `from_pretrained` loads."""

from .conversion import convert_checkpoint, convert_file, convert_state_dict
from .report import Conversion, ConversionReport

__all__ = ["Conversion", "ConversionReport", "convert_checkpoint", "convert_file", "convert_state_dict"]
