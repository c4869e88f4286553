"""Several processes together compute the loss and the gradients of one process with all their clips."""

import pytest
import torch

from two_ranks import batch, loss_in_evaluation, losses_and_gradients, model, run_ranks, train_step


@pytest.mark.parametrize(
    ("split", "masked", "settings"),
    [
        (3, False, {}),  # batches of unequal size, as at the end of an epoch
        (3, True, {"bidirectional_contrast": True, "contrastive_loss_weight": 1.0}),
        (2, True, {"intra_clip_negatives": True, "use_global_tokens": False, "num_register_tokens": 0}),
    ],
)
def test_two_processes__equal_one_with_the_joined_batch(split, masked, settings, tmp_path):
    expected = losses_and_gradients(model(**settings), batch(slice(0, 5), masked))
    ranks = run_ranks(train_step, tmp_path, split, masked, settings)
    for name, value in expected.items():
        if name != "gradients":
            torch.testing.assert_close(torch.stack([rank[name] for rank in ranks]).mean(), value, rtol=1e-5, atol=1e-6)
    for name, gradient in expected["gradients"].items():
        for rank in ranks:
            torch.testing.assert_close(rank["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_evaluation__does_not_wait_for_other_processes(tmp_path):
    expected = model().eval()(**batch(slice(0, 3), False)).loss.item()
    assert run_ranks(loss_in_evaluation, tmp_path)[0] == pytest.approx(expected, rel=1e-6)
