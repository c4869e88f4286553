# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""From published checkpoints to folders that `from_pretrained` loads."""

from .conversion import Conversion, ConversionReport, convert_checkpoint, convert_file, convert_state_dict
from .published import Family

__all__ = ["Conversion", "ConversionReport", "Family", "convert_checkpoint", "convert_file", "convert_state_dict"]
