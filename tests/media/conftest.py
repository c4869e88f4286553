"""Clips that the tests of media share."""

import pytest

from helpers.clips import noise, write_clip

FAST_START = {"movflags": "+faststart"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clip(folder):
    """4 s, 25 fps, numbered frames, noise."""
    return write_clip(folder / "clip.mp4", seconds=4, audio=noise(4), container_options=FAST_START)
