"""Trainer on two processes: each its own clips and masks, one evaluation, whole checkpoints, DDP and FSDP2 alike."""

import pytest
import torch

from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from cavmae_sync_hf.training import last_checkpoint
from helpers.tiny_shards import write_shards
from helpers.training_ranks import train
from helpers.two_ranks import run_ranks


@pytest.mark.timeout(240)
def test_two_processes__train_alike_whole_and_sharded(tmp_path):
    shards = write_shards(tmp_path / "shards", [8, 7])
    ranks = {}
    for name in ("ddp", "fsdp"):
        (tmp_path / name).mkdir()
        ranks[name] = run_ranks(train, tmp_path / name, shards, tmp_path / name / "out", name == "fsdp")
    first, second = ranks["ddp"]
    assert not set(first["seen"][:6]) & set(second["seen"][:6])  # an epoch's two batches of each
    assert first["losses"] == second["losses"] and len(first["losses"]) == 3
    names = [name for name in first["metrics"] if not name.endswith("runtime")]
    assert [first["metrics"][name] for name in names] == [second["metrics"][name] for name in names]
    assert first["audio"].shape[0] == 15 and torch.equal(first["audio"], second["audio"])

    sharded = ranks["fsdp"][0]
    assert sharded["split"] and not first["split"]
    # Sums in another order; three steps at this rate carry the difference on.
    assert sharded["losses"] == pytest.approx(first["losses"], rel=1e-4)
    models = {name: CavMaeSyncForPreTraining.from_pretrained(tmp_path / name / "out") for name in ranks}
    for name, value in models["ddp"].state_dict().items():
        torch.testing.assert_close(models["fsdp"].state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)
    torch.testing.assert_close(sharded["audio"], first["audio"], rtol=0, atol=1e-3)
    for name in ranks:
        checkpoint = last_checkpoint(tmp_path / name / "out")
        assert checkpoint.name == "checkpoint-3" and (checkpoint / "processor_config.json").is_file()
