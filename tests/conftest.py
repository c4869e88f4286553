"""Settings shared by all tests: no network, one seed, few threads."""

import os

# Before anything imports huggingface_hub: a test that reaches for the network must fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

# The tensors are tiny: threads that wait for each other cost up to ten times what they save.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)
