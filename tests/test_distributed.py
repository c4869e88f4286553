"""Several processes together compute the loss and the gradients of one process with all their clips."""

from typing import Any

import pytest
import torch

from two_ranks import CASES, batch, losses_and_gradients, model, run_ranks, train_steps


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return run_ranks(train_steps, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes__equal_one_with_the_joined_batch(ranks, case):
    _, masked, settings = CASES[case]
    expected = losses_and_gradients(model(**settings), batch(slice(0, 5), masked))
    for name, value in expected.items():
        if name != "gradients":
            shares = torch.stack([rank[case][name] for rank in ranks])
            torch.testing.assert_close(shares.mean(), value, rtol=1e-5, atol=1e-6, msg=name)
    largest = max(gradient.abs().max() for gradient in expected["gradients"].values())
    for name, gradient in expected["gradients"].items():
        # The key biases' gradients are zero but for rounding, hence the floor.
        tolerance = 1e-5 * max(gradient.abs().max(), 0.01 * largest)
        for rank in ranks:
            torch.testing.assert_close(
                rank[case]["gradients"][name], gradient, rtol=0, atol=tolerance.item(), msg=name
            )


def test_evaluation__does_not_wait_for_other_processes(ranks):
    expected = model().eval()(**batch(slice(0, 3), False)).loss.item()
    assert ranks[0]["evaluation"] == pytest.approx(expected, rel=1e-6)
