"""Fine-tuning on two processes: the weights of one process with the joined batches, and no weight left waiting."""

import pytest
import torch

from cavmae_sync_hf.loading import load_model
from helpers.classification_runs import SGD, make_trainer, train_rank, weights
from helpers.tiny_shards import write_shards
from helpers.two_ranks import run_ranks

LABELS = [[0], [0, 1], [1], [2, 0], [1], [3, 1], [0, 2], [4]]
HEADS = ("mean_pooling", "frame_attention")


@pytest.mark.timeout(240)
def test_two_processes__train_as_one_with_the_joined_batches(tmp_path):
    # A clip without audio passes weights on its process that the other one does not touch.
    shards = write_shards(tmp_path / "shards", [8], LABELS, silent=[1])
    ranks = run_ranks(train_rank, tmp_path, shards, tmp_path / "two", HEADS)
    for head in HEADS:
        first, second = (rank[head] for rank in ranks)
        assert not set(first["seen"][:4]) & set(second["seen"][:4])  # an epoch's two batches of each
        names = [name for name in first["metrics"] if not name.endswith("runtime")]
        assert len(names) > 5 and all(first["metrics"][name] == second["metrics"][name] for name in names)
        assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())

        alone = make_trainer(shards, tmp_path / "one", model={"classifier": head}, evaluation=True, **SGD)
        before = weights(alone)
        alone.train()
        for name, value in weights(alone).items():
            # Gradients are added in another order.
            torch.testing.assert_close(first["weights"][name], value, rtol=1e-5, atol=1e-6, msg=f"{head}: {name}")
        moved = weights(alone)["head.classifier.weight"] - before["head.classifier.weight"]
        assert moved.abs().max() > 1e-3
        assert first["metrics"]["eval_all_loss"] == pytest.approx(alone.evaluate()["eval_all_loss"], rel=1e-5)
        saved = load_model(tmp_path / "two" / head, use="classification")[0].state_dict()
        assert all(torch.equal(saved[name], value) for name, value in first["weights"].items())
