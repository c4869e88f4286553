# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Training data: collections of videos prepared as shards, and data sets that read shards or videos into batches."""
