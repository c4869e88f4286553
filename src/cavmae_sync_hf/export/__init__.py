# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""An encoder's towers as files for ONNX Runtime, or as `torch.export` programs, and a model that runs them."""

from .folder import export_model
from .runtime import ExportedModel

__all__ = ["ExportedModel", "export_model"]
