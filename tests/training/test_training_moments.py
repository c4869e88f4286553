# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets and pretraining of models that see several frames of a moment."""

import pytest
import torch

from cavmae_sync_hf import CavMaeSyncForPreTraining, CavMaeSyncProcessor
from cavmae_sync_hf.data.augmentation import AugmentationOptions
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.data.prepare import prepare
from cavmae_sync_hf.data.streaming import CavMaeSyncStreamingDataset
from cavmae_sync_hf.inference.loading import load_torch_model
from cavmae_sync_hf.model.errors_cavmae_sync import DataError
from cavmae_sync_hf.model_card import create_model_card
from cavmae_sync_hf.training import CavMaeSyncTrainer, PretrainingArguments
from cavmae_sync_hf.training.sets import InMemoryDataset
from helpers.clips import write_clip
from helpers.moments import SIDE, moment_config, shown_numbers
from helpers.pretraining_runs import ARGUMENTS

FRAMES = 12
CONFIG = moment_config(num_frames=FRAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`clips`, of 12 frames each, and shards of `all` of these and of a `few`."""
    folder = tmp_path_factory.mktemp("moments")
    (folder / "clips").mkdir()
    for number in range(2):
        write_clip(folder / "clips" / f"{number}.mp4", num_frames=FRAMES, seconds=FRAMES / 25, size=(SIDE, SIDE))
    for name, count in (("all", FRAMES), ("few", 3)):
        prepare(
            folder / "clips", folder / name, num_frames=count, short_side=None, jpeg_quality=100, num_mel_bins=16,
            workers=1,
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def processor():
    return CavMaeSyncProcessor.from_config(CONFIG)


@pytest.mark.parametrize("kind", [CavMaeSyncDataset, InMemoryDataset])
@pytest.mark.parametrize("source", ["clips", "all"])
def test_sets__give_the_frames_beside_each_moment(kind, source, folder, processor):
    whole = kind(folder / source, processor, frames="all")[1]
    expected = [[max(0, number - 1), number, min(FRAMES - 1, number + 1)] for number in range(FRAMES)]
    assert shown_numbers(whole["pixel_values_videos"], processor) == expected
    some = kind(folder / source, processor, frames=4)
    for sample in (some[1], *getattr(some, "__getitems__", lambda _: [])([1])):
        chosen = [expected[number] for number in sample["frame_indices"]]
        assert len(chosen) == 4 and shown_numbers(sample["pixel_values_videos"], processor) == chosen


def test_augmentation__is_the_same_for_all_frames_of_a_sample(folder, processor):
    options = AugmentationOptions(crop_scale=(0.5, 0.6), flip=0.5, color_jitter=0.3)
    sets = [
        kind(folder / "all", processor, frames="all", augmentation=options)
        for kind in (CavMaeSyncDataset, InMemoryDataset)
    ]
    pixels, kept = (clips[0]["pixel_values_videos"].unflatten(1, (3, 3)) for clips in sets)
    assert torch.equal(pixels, kept)
    assert torch.equal(pixels[1:, 0], pixels[:-1, 1]) and torch.equal(pixels[:-1, 2], pixels[1:, 1])
    assert not torch.equal(
        pixels, CavMaeSyncDataset(folder / "all", processor, frames="all")[0]["pixel_values_videos"]
    )


def test_frames_that_are_too_far_apart__are_refused(folder, processor):
    with pytest.raises(DataError, match=r"0.16 s apart, and the 3 frames of a moment 0.04 s; prepare the set again"):
        CavMaeSyncDataset(folder / "few", processor)[0]


@pytest.mark.parametrize("kind", [InMemoryDataset, CavMaeSyncStreamingDataset])
def test_training__takes_a_step_and_saves_what_it_takes_to_go_on(kind, folder, processor, tmp_path):
    trainer = CavMaeSyncTrainer(
        CavMaeSyncForPreTraining(moment_config(num_frames=FRAMES, contrastive_loss_weight=1.0)),
        PretrainingArguments(
            output_dir=str(tmp_path), **ARGUMENTS | {"max_steps": 1, "per_device_train_batch_size": 2}
        ),
        processor=processor,
        train_dataset=kind(
            folder / "all", processor, frames=2, **({} if kind is InMemoryDataset else {"batch_size": 2})
        ),
    )
    before = trainer.model.model.video_tower.embeddings.projection.weight.clone()
    trainer.train()
    changed = (trainer.model.model.video_tower.embeddings.projection.weight - before).unflatten(1, (3, 3)).abs()
    assert (changed.amax(dim=(0, 2, 3, 4)) > 0).all()  # weights of all three frames
    trainer.save_model(str(tmp_path / "saved"))
    model, loaded = load_torch_model(tmp_path / "saved")
    assert "Of motion it sees the 0.08 s around a moment." in str(create_model_card(model, loaded))
    pixels = loaded(folder / "clips" / "0.mp4", return_tensors="pt")["pixel_values_videos"]
    assert model(pixel_values_videos=pixels).video_embeds.shape == (1, FRAMES, 32)
