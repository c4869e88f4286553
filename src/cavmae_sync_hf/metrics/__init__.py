# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics of retrieval, classification, synchrony and localization, as functions of arrays."""
