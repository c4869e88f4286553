"""Settings of the optional job that runs transformers' own common tests."""

import os

import pytest

# Nothing is fetched: what the mixins would load from the Hub fails at once instead of after retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

MARKERS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers of the mixins known; this project refuses unknown ones."""
    for name in MARKERS:
        config.addinivalue_line("markers", f"{name}: set by the common tests of transformers")
