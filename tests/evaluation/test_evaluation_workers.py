"""A process that loads clips and dies costs an evaluation the clip of which it dies, and a training a plain error."""

import os
import signal
import sys

import pytest
from torch.utils.data import get_worker_info

from cavmae_sync_hf import CavMaeSyncProcessor, WorkerError
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.data.engines import worker_deaths
from cavmae_sync_hf.evaluation import evaluate_retrieval
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncModel
from helpers.tiny import tiny_config
from helpers.tiny_shards import write_shards

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are copies of this process only there")


@pytest.fixture(scope="module")
def model():
    return CavMaeSyncModel(tiny_config()).eval()


@pytest.fixture(scope="module")
def processor(model):
    return CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), [4, 4])


def die_of(monkeypatch, clips: list[int], how) -> None:
    """Let worker processes die of some clips."""
    read = CavMaeSyncDataset.__getitem__

    def read_or_die(self, number):
        if number in clips and get_worker_info() is not None:
            how()
        return read(self, number)

    monkeypatch.setattr(CavMaeSyncDataset, "__getitem__", read_or_die)


DEATHS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crash": lambda: signal.raise_signal(signal.SIGSEGV),
    "leave": lambda: os._exit(3),
}


# torch looks every five seconds whether its workers live.
SLOW = [
    pytest.param(how, workers, marks=pytest.mark.slow) for how, workers in (("kill", 1), ("crash", 2), ("leave", 2))
]


@pytest.mark.parametrize(("how", "workers"), [("kill", 2), *SLOW])
def test_evaluation__leaves_out_the_clip_of_which_its_workers_die(model, processor, shards, monkeypatch, how, workers):
    die_of(monkeypatch, [3], DEATHS[how])

    record = evaluate_retrieval(model, processor, shards, num_workers=workers, batch_size=2)

    (lost,) = record["counts"]["unusable"]
    assert (record["counts"]["clips_seen"], record["counts"]["clips_unexpected"]) == (7, 1)
    assert lost["unexpected"] and "the process that read it died, twice" in lost["reason"]


@pytest.mark.slow
def test_evaluation__several_deadly_clips_cost_themselves(model, processor, shards, monkeypatch):
    die_of(monkeypatch, [0, 1, 7], DEATHS["kill"])

    record = evaluate_retrieval(model, processor, shards, num_workers=2, batch_size=2)

    alone = evaluate_retrieval(model, processor, shards)  # in this process none dies
    assert record["counts"]["clips_unusable"] == 3 and alone["counts"]["clips_unusable"] == 0
    assert record["metrics"]["audio_to_video_r1"] is not None


def test_worker_deaths__are_errors_of_the_package():
    told = "DataLoader worker (pid 9) is killed by signal: Killed. "  # torch's words

    with pytest.raises(WorkerError, match="A process that loads clips died .*Killed"), worker_deaths():
        raise RuntimeError(told)
    with pytest.raises(RuntimeError, match="another"), worker_deaths():
        raise RuntimeError("another")
