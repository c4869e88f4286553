# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration, models, processor and pipelines: the files that travel with saved weights.

They import one another as `from .name import ...` and nothing else of the package, since a saved folder holds them
flat.
"""
