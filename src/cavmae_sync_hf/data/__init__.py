# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Where does training data come from? Prepared shards of real videos, and SyncWorld, a synthetic world."""
