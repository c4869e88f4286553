# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How does an encoder run where there is no PyTorch model: in ONNX Runtime, or as a `torch.export` program?"""

from .folder import export_model
from .runtime import ExportedModel

__all__ = ["ExportedModel", "export_model"]
