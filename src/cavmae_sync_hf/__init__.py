# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""CAV-MAE Sync for transformers: which sound belongs to which moment of a video."""
