# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Every clip of a streamed epoch is seen exactly once, by any number of nodes and workers, and across any stop."""

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cavmae_sync_hf.data.augmentation import AugmentationOptions
from cavmae_sync_hf.data.dataset import CavMaeSyncCollator, CavMaeSyncDataset
from cavmae_sync_hf.data.streaming import (
    CavMaeSyncStreamingDataset,
    EpochPlan,
    Layout,
    Stage,
    StreamingLoader,
    yielded_after,
)
from helpers.tiny_shards import tiny_processor, write_shards

# Three workers on two cores are the point here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SIZES = [7, 3, 9, 4]  # 23 clips, so that nothing divides evenly
CLIPS = {f"clip-{number}" for number in range(sum(SIZES))}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES)


def streaming(shards, **settings) -> CavMaeSyncStreamingDataset:
    return CavMaeSyncStreamingDataset(shards, tiny_processor(), **({"shuffle_buffer": 5} | settings))


def make_loader(shards, num_workers=2, batch_size=3, seed=0, **settings) -> StreamingLoader:
    dataset = streaming(shards, batch_size=batch_size, seed=seed, **settings)
    return StreamingLoader(dataset, num_workers=num_workers, collate_fn=CavMaeSyncCollator(dataset.maker.processor))


def ids(batches) -> list[str]:
    return [clip for batch in batches for clip in batch["clip_ids"]]


# --- one epoch ------------------------------------------------------------------------------------------------------


def test_two_nodes_two_workers__every_clip_exactly_once(shards):
    for epoch in range(2):
        seen: Counter[str] = Counter()
        for rank in range(2):
            loader = make_loader(shards, rank=rank, world_size=2)
            loader.set_epoch(epoch)
            seen.update(ids(loader))
        assert seen == Counter(CLIPS)


def test_batches__are_whole_but_for_the_last(shards):
    for num_workers in (0, 2, 3):
        sizes = [len(batch["clip_ids"]) for batch in make_loader(shards, num_workers)]
        assert sizes == [3] * 7 + [2]


def test_plain_data_loader__every_clip_exactly_once(shards):
    for num_workers in (0, 3):
        loader = DataLoader(streaming(shards), batch_size=4, num_workers=num_workers, collate_fn=lambda rows: rows)
        assert Counter(row["clip_id"] for batch in loader for row in batch) == Counter(CLIPS)


def test_order__changes_with_epoch_and_seed_and_is_kept_without_shuffling(shards):
    def order(epoch=0, **settings) -> list[str]:
        dataset = streaming(shards, **settings)
        dataset.set_epoch(epoch)
        return [sample["clip_id"] for sample in dataset]

    assert order() == order()
    assert len({tuple(order(epoch)) for epoch in range(3)}) == 3
    assert order(seed=1) != order()
    assert order(shuffle=False) == [f"clip-{number}" for number in range(sum(SIZES))]


def test_samples__are_those_of_the_map_style_data_set(shards):
    options = AugmentationOptions(crop_scale=(0.2, 1.0), flip=0.5, noise=0.1)
    processor = tiny_processor()
    plain = CavMaeSyncDataset(shards, processor, augmentation=options, seed=4)
    stream = CavMaeSyncStreamingDataset(shards, processor, augmentation=options, seed=4)
    plain.set_epoch(2)
    stream.set_epoch(2)
    for sample in itertools.islice(stream, 6):
        same = plain[int(sample["clip_id"].removeprefix("clip-"))]
        assert torch.equal(sample["pixel_values_videos"], same["pixel_values_videos"])
        assert torch.equal(sample["input_values"], same["input_values"])


@pytest.mark.parametrize(("uneven", "batches", "total"), [("drop", 2, 18), ("repeat", 3, 27), ("keep", None, 23)])
def test_uneven__equal_steps_on_all_processes(shards, uneven, batches, total):
    world = [make_loader(shards, rank=rank, world_size=3, uneven=uneven) for rank in range(3)]
    found = [list(loader) for loader in world]
    assert [len(rows) for rows in found] == [len(loader) for loader in world]
    seen = Counter(ids(itertools.chain(*found)))
    assert sum(seen.values()) == total
    if batches is not None:
        assert {len(rows) for rows in found} == {batches}
        assert {len(batch["clip_ids"]) for rows in found for batch in rows} == {3}
    if uneven == "drop":
        assert set(seen.values()) == {1}
    if uneven == "repeat":
        assert set(seen) == CLIPS and max(seen.values()) == 2


def test_drop__leaves_out_other_clips_each_epoch(shards):
    loader = make_loader(shards, num_workers=0, batch_size=10, uneven="drop")
    left = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        left.append(frozenset(CLIPS - set(ids(loader))))
    assert {len(clips) for clips in left} == {3}
    assert len(set(left)) > 1


def test_too_few_clips__is_an_error_with_the_numbers(shards):
    with pytest.raises(ValueError, match='23 clips.*2 processes.*batches of 12.*"repeat"'):
        streaming(shards, batch_size=12, world_size=2, rank=0, uneven="drop")


def test_processes__are_read_from_the_environment(shards, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    dataset = streaming(shards)
    assert (dataset.rank, dataset.world_size) == (1, 4)
    with pytest.raises(ValueError, match="`rank` is 4"):
        streaming(shards, rank=4)


# --- stop and go ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2, 3])
@pytest.mark.parametrize("stop", [0, 1, 4, 7, 8])
def test_resume__gives_the_batches_of_an_uninterrupted_run(shards, num_workers, stop):
    whole = [batch["clip_ids"] for batch in make_loader(shards, num_workers)]
    assert len(whole) == 8
    loader = make_loader(shards, num_workers)
    batches = iter(loader)
    begun = [next(batches)["clip_ids"] for _ in range(stop)]
    state = json.loads(json.dumps(loader.state_dict()))
    del batches
    other = make_loader(shards, num_workers)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert begun + [batch["clip_ids"] for batch in other] == whole
    other.set_epoch(1)
    assert Counter(ids(other)) == Counter(CLIPS)  # later epochs are whole


def test_resume__twice_in_an_epoch(shards):
    whole = [batch["clip_ids"] for batch in make_loader(shards)]
    state, found = None, []
    for steps in (3, 2, 3):
        loader = make_loader(shards)
        if state is not None:
            loader.load_state_dict(state)
        found += [batch["clip_ids"] for batch in itertools.islice(loader, steps)]
        state = loader.state_dict()
    assert found == whole


def test_state__names_exactly_the_clips_that_were_handed_out(shards):
    loader = make_loader(shards, num_workers=2)
    batches = iter(loader)
    seen = ids([next(batches) for _ in range(5)])
    state = loader.state_dict()
    assert [f"clip-{number}" for number in loader.dataset.yielded(state)] == sorted(
        seen, key=lambda name: int(name.split("-")[1])
    )
    assert state["stages"][-1]["yielded"] == {"0": 9, "1": 6}


@pytest.mark.parametrize("then", [(1, 1), (1, 4), (3, 2)])
def test_resume__with_other_processes_and_workers(shards, then):
    """What two processes of two workers began, others finish; nothing is lost or seen twice."""
    seen: Counter[str] = Counter()
    states = []
    for rank in range(2):
        loader = make_loader(shards, rank=rank, world_size=2, batch_size=2)
        seen.update(ids(itertools.islice(loader, 3)))
        states.append(loader.state_dict())
    assert states[0] == states[1]
    world_size, num_workers = then
    for rank in range(world_size):
        loader = make_loader(shards, num_workers, rank=rank, world_size=world_size)
        loader.load_state_dict(states[0])
        first = ids(itertools.islice(loader, 1))
        # And once more in the middle of the second stage.
        again = make_loader(shards, num_workers, rank=rank, world_size=world_size)
        again.load_state_dict(loader.state_dict())
        seen.update(first + ids(again))
    assert seen == Counter(CLIPS)


def test_resume__clips_that_were_to_be_dropped_are_not_forgotten(shards):
    loader = make_loader(shards, num_workers=0, batch_size=5, uneven="drop")
    seen = ids(itertools.islice(loader, 2))
    other = make_loader(shards, num_workers=0, batch_size=13, uneven="drop")
    other.load_state_dict(loader.state_dict())
    assert set(ids(other)) == CLIPS - set(seen)


def test_resume__with_workers_that_live_on(shards):
    dataset = streaming(shards, batch_size=3)
    collator = CavMaeSyncCollator(dataset.maker.processor)
    loader = StreamingLoader(dataset, num_workers=2, persistent_workers=True, collate_fn=collator)
    whole = [batch["clip_ids"] for batch in loader]
    state = None
    for step, _ in enumerate(loader):
        if step == 2:
            state = loader.state_dict()
    loader.load_state_dict(state)
    assert [batch["clip_ids"] for batch in loader] == whole[3:]
    assert [batch["clip_ids"] for batch in loader] == whole
    loader.set_epoch(1)
    second = [batch["clip_ids"] for batch in loader]
    assert second != whole and Counter(itertools.chain(*second)) == Counter(CLIPS)


def test_resume__state_between_epochs(shards):
    loader = make_loader(shards, num_workers=0)
    list(loader)
    done = make_loader(shards, num_workers=0)
    done.load_state_dict(loader.state_dict())
    assert list(done) == []  # that epoch is over
    loader.set_epoch(1)
    fresh = make_loader(shards, num_workers=0)
    fresh.load_state_dict(loader.state_dict())
    assert len(list(fresh)) == 8


def test_resume__a_state_is_for_its_own_epoch(shards):
    loader = make_loader(shards, num_workers=0)
    list(itertools.islice(loader, 3))
    other = make_loader(shards, num_workers=0)
    other.load_state_dict(loader.state_dict())
    other.set_epoch(1)
    loader.set_epoch(1)
    assert ids(other) == ids(loader)


def test_resume__plain_data_loader_in_the_main_process(shards):
    whole = [sample["clip_id"] for sample in streaming(shards)]
    dataset = streaming(shards)
    begun = [sample["clip_id"] for sample in itertools.islice(DataLoader(dataset, batch_size=None), 9)]
    other = streaming(shards)
    other.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
    assert begun + [sample["clip_id"] for sample in DataLoader(other, batch_size=None)] == whole


def test_state__of_a_data_set_that_workers_read_is_refused(shards):
    dataset = streaming(shards)
    list(DataLoader(dataset, batch_size=None, num_workers=1))
    with pytest.raises(RuntimeError, match="StreamingLoader"):
        dataset.state_dict()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume__stateful_data_loader(shards, num_workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def make():
        dataset = streaming(shards, batch_size=3)
        collator = CavMaeSyncCollator(dataset.maker.processor)
        return stateful.StatefulDataLoader(dataset, batch_size=3, num_workers=num_workers, collate_fn=collator)

    whole = [batch["clip_ids"] for batch in make()]
    loader = make()
    begun = [batch["clip_ids"] for batch in itertools.islice(loader, 3)]
    state = loader.state_dict()
    other = make()
    other.load_state_dict(state)
    assert begun + [batch["clip_ids"] for batch in other] == whole


def test_state__of_other_data_or_order_is_refused(shards, tmp_path):
    state = make_loader(shards).state_dict()
    with pytest.raises(ValueError, match="seed=0.*has 1"):
        make_loader(shards, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="data="):
        make_loader(write_shards(tmp_path, [7, 3])).load_state_dict(state)
    with pytest.raises(ValueError, match="version"):
        make_loader(shards).load_state_dict({})


def test_loader__arguments_that_break_the_order_are_refused(shards):
    dataset = streaming(shards, batch_size=3)
    for wrong in ({"batch_size": 4}, {"drop_last": True}, {"in_order": False}, {"shuffle": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            StreamingLoader(dataset, **wrong)


def test_resume__after_a_kill(shards, tmp_path):
    """A process with two workers writes its state after every batch and is killed; another one finishes the epoch."""
    program = f"""
        import json, os, sys
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
        from test_streaming import make_loader
        loader = make_loader(Path({str(shards)!r}))
        seen = []
        for batch in loader:
            seen += batch["clip_ids"]
            partial = Path({str(tmp_path)!r}) / "partial"
            partial.write_text(json.dumps({{"seen": seen, "state": loader.state_dict()}}))
            os.replace(partial, {str(tmp_path / "state.json")!r})
            if len(seen) == 12:
                print("now", flush=True)
                import time; time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert process.stdout is not None and process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    saved = json.loads((tmp_path / "state.json").read_text())
    loader = make_loader(shards)
    loader.load_state_dict(saved["state"])
    rest = ids(loader)
    assert len(saved["seen"]) == 12
    assert saved["seen"] + rest == ids(make_loader(shards))


# --- the plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uneven", ["keep", "drop", "repeat"])
@pytest.mark.parametrize("layout", [Layout(1, 1, 1), Layout(2, 2, 3), Layout(3, 4, 2), Layout(5, 3, 7)])
def test_plan__shares_hold_the_order_once(layout, uneven):
    plan = EpochPlan((11, 0, 5, 40), seed=3, epoch=1, shuffle=True, buffer=8, uneven=uneven)
    shares = plan.shares(layout)
    found = Counter(np.concatenate([share for workers in shares for share in workers]).tolist())
    sizes = [sum(map(len, workers)) for workers in shares]
    assert set(found) <= set(range(56))
    if uneven == "keep":
        assert set(found.values()) == {1} and sum(sizes) == 56 and max(sizes) - min(sizes) <= 1
    else:
        assert len(set(sizes)) == 1 and sizes[0] % layout.batch_size == 0
        assert abs(sum(sizes) - 56) < layout.world_size * layout.batch_size
    for rank, workers in enumerate(shares):
        assert [len(share) for share in workers] == plan.share_sizes(layout, rank)
        for worker, share in enumerate(workers):
            assert np.array_equal(plan.share(layout, rank, worker), share)


def test_plan__buffer_mixes_over_shards_but_only_so_far():
    plan = EpochPlan((100,) * 10, seed=0, epoch=0, shuffle=True, buffer=50, uneven="keep")
    order, share = plan.order(), plan.share(Layout(1, 1, 1), 0, 0)
    place = {clip: index for index, clip in enumerate(order.tolist())}
    ahead = [place[clip] - index for index, clip in enumerate(share.tolist())]
    assert sorted(share.tolist()) == list(range(1000))
    assert max(ahead) < 50  # nothing comes before it was in the buffer
    assert np.array_equal(EpochPlan((100,) * 10, 0, 0, True, 1, "keep").share(Layout(1, 1, 1), 0, 0), order)


def test_yielded_after__counts_as_a_data_loader_does():
    # Shares of 3 workers with batches of 4: 9 batches, the last one broken and the third worker's.
    sizes = [12, 12, 10]
    turns = [(step % 3, 4 if step < 8 else 2) for step in range(9)]
    for begun in range(10):
        start = yielded_after(begun, sizes, 4)
        for steps in range(10 - begun):
            expected = dict.fromkeys(range(3), 0)
            for worker, count in turns[: begun + steps]:
                expected[worker] += count
            assert yielded_after(steps, sizes, 4, start) == expected


def test_stage__survives_json():
    stage = Stage(Layout(2, 3, 4), {0: 8, 1: 4, 2: 4})
    assert Stage.from_dict(json.loads(json.dumps(stage.to_dict()))) == stage
    assert stage.steps == 4


def test_dataset__pickles_with_its_state(shards):
    dataset = streaming(shards)
    dataset.set_epoch(3)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.epoch == 3
    assert [sample["clip_id"] for sample in copy] == [sample["clip_id"] for sample in dataset]
