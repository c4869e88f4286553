"""Data that several tests of training share."""

from pathlib import Path

import pytest

from helpers.tiny_shards import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """14 clips of one label each, three classes; an epoch is 3 batches of 4 and drops two clips."""
    return write_shards(tmp_path_factory.mktemp("shards"), [8, 6])
