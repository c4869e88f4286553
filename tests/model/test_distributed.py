"""Several processes together compute the loss and the gradients of one process with all their clips."""

from typing import Any

import pytest
import torch

from helpers.two_ranks import (
    CASES,
    DENSE_CASES,
    TEXT_CASES,
    batch,
    losses_and_gradients,
    model,
    run_ranks,
    text_batch,
    text_losses_and_gradients,
    text_model,
    train_steps,
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return run_ranks(train_steps, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("chunks", [False, True], ids=["whole", "chunks"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes__equal_one_with_the_joined_batch(ranks, case, chunks):
    _, masked, settings = CASES[case]
    expected = losses_and_gradients(model(**settings), batch(slice(0, 5), masked))
    found = [rank[(case, "chunks") if chunks else case] for rank in ranks]
    assert_equal(found, expected)


@pytest.mark.parametrize("case", DENSE_CASES)
def test_dense_loss_of_two_processes__equals_one_with_the_joined_batch(ranks, case):
    _, masked, settings = DENSE_CASES[case]
    expected = losses_and_gradients(model(**settings), batch(slice(0, 5), masked))
    assert expected["dense_loss"] > 0 and expected["dense_regularization_loss"] > 0
    assert_equal([rank[case] for rank in ranks], expected)


@pytest.mark.parametrize("case", TEXT_CASES)
def test_texts_of_two_processes__equal_one_with_the_joined_batch(ranks, case):
    settings, keys = TEXT_CASES[case]
    expected = text_losses_and_gradients(text_model(**settings), text_batch(slice(0, 5), slice(0, 9), keys))
    assert expected["loss"] > 0 and "moment_loss" in expected
    assert_equal([rank[case] for rank in ranks], expected)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("case", CASES)
def test_chunks__equal_the_batch_at_once(case, chunk_size):
    _, masked, settings = CASES[case]
    inputs = batch(slice(0, 5), masked)
    expected = losses_and_gradients(model(**settings), inputs)
    assert_equal([losses_and_gradients(model(**settings), inputs, chunk_size)], expected)


def test_chunks__dropout_is_the_same_in_both_passes():
    """Without decoder and with one chunk, both passes together are the plain step if they drop the same weights."""
    settings = {"attention_probs_dropout_prob": 0.5, "reconstruction_loss_weight": 0.0}
    inputs, found = batch(slice(0, 5), False), []
    for chunk_size in (0, 5):
        network = model(**settings)
        torch.manual_seed(7)
        found.append(losses_and_gradients(network, inputs, chunk_size))
    assert_equal(found[1:], found[0])


def test_chunks__skip_what_has_no_weight():
    found = losses_and_gradients(model(reconstruction_loss_weight=0.0), batch(slice(0, 5), False), 2)
    assert "audio_reconstruction_loss" not in found and "contrastive_loss" in found


def assert_equal(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """The mean of what processes found is what one finds: losses, and to 1e-5 of their size gradients."""
    for one in found:
        assert set(one) == set(expected)
    for name, value in expected.items():
        if name != "gradients":
            shares = torch.stack([one[name] for one in found])
            torch.testing.assert_close(shares.mean(), value, rtol=1e-5, atol=1e-6, msg=name)
    wanted = {name: gradient for name, gradient in expected["gradients"].items() if gradient is not None}
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for name, gradient in wanted.items():
        # The key biases' gradients are zero but for rounding, hence the floor.
        tolerance = 1e-5 * max(gradient.abs().max(), 0.01 * largest)
        for one in found:
            torch.testing.assert_close(one["gradients"][name], gradient, rtol=0, atol=tolerance.item(), msg=name)


def test_evaluation__does_not_wait_for_other_processes(ranks):
    expected = model().eval()(**batch(slice(0, 3), False)).loss.item()
    assert ranks[0]["evaluation"] == pytest.approx(expected, rel=1e-6)


def test_sizes__go_from_host_to_host(ranks):
    assert [rank["sizes"] for rank in ranks] == [[[2, 3], [7, 7]]] * 2
