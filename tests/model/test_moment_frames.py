# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Moments of several frames: which frames they are, and what the model makes of them."""

import numpy as np
import pytest
import torch

from cavmae_sync_hf import CavMaeSyncForPreTraining, CavMaeSyncModel, CavMaeSyncProcessor
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from cavmae_sync_hf.model_card import create_model_card
from helpers.clips import numbered_frame, numbers, write_clip
from helpers.moments import SIDE, moment_config, shown_numbers
from helpers.tiny import tiny_config, tiny_inputs

FPS, LAST = 25, 49


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "numbered.mp4", seconds=2, fps=FPS, size=(SIDE, SIDE))


@pytest.fixture(scope="module", params=[3, 5])
def processor(request):
    return CavMaeSyncProcessor.from_config(moment_config(frames_per_moment=request.param))


def around(middle, processor, first=0, last=LAST):
    """Numbers of the frames of moments, of which the middle ones are known, within a span."""
    half = processor.video_processor.frames_per_moment // 2
    return [[min(max(first, number + j), last) for j in range(-half, half + 1)] for number in middle]


def test_call__stacks_the_frames_around_each_time(clip, processor):
    inputs = processor(clip, num_frames=5, return_times=True, return_tensors="pt")
    assert inputs["pixel_values_videos"].shape[2] == 3 * processor.video_processor.frames_per_moment
    assert shown_numbers(inputs["pixel_values_videos"][0], processor) == around([5, 15, 25, 35, 45], processor)
    np.testing.assert_allclose(inputs["frame_times"][0], np.array([5, 15, 25, 35, 45]) / FPS, atol=1e-5)


def test_call__with_times_in_any_order_and_at_the_borders(clip, processor):
    inputs = processor(clip, frame_times=[1.5, 0.0, 1.99, 0.05], return_tensors="pt")
    assert shown_numbers(inputs["pixel_values_videos"][0], processor) == around([37, 0, 49, 1], processor)


def test_call__does_not_look_beyond_a_segment(clip, processor):
    inputs = processor(clip, start=0.52, end=0.8, num_frames=7, return_tensors="pt")
    expected = around(range(13, 20), processor, first=13, last=19)
    assert shown_numbers(inputs["pixel_values_videos"][0], processor) == expected


@pytest.mark.parametrize(("hop", "middle"), [(0.04, range(50)), (0.2, range(2, 50, 5)), (0.1, None)])
def test_stream__gives_the_moments_of_a_call(clip, processor, hop, middle):
    chunks = list(processor.stream(clip, hop=hop, num_frames=7, return_media=True))
    found = [moment for chunk in chunks for moment in shown_numbers(chunk["pixel_values_videos"][0], processor)]
    whole = processor(clip, num_frames=len(found), return_tensors="pt")
    assert found == shown_numbers(whole["pixel_values_videos"][0], processor)
    if middle is not None:
        assert found == around(middle, processor)
    half = processor.video_processor.frames_per_moment // 2
    assert [number for chunk in chunks for number in numbers(chunk["media"])] == [moment[half] for moment in found]


def test_decoded_frames__have_those_beside_them(processor):
    frames = np.stack([numbered_frame(number, (SIDE, SIDE)) for number in range(20)])
    for options in ({}, {"fps": 25}):
        pixels = processor(frames, return_tensors="pt", **options)["pixel_values_videos"][0]
        assert shown_numbers(pixels, processor) == around(range(20), processor, last=19)
    some = processor(frames, fps=25, num_frames=4, do_sample_frames=True, return_tensors="pt")
    assert shown_numbers(some["pixel_values_videos"][0], processor) == around([2, 7, 12, 17], processor, last=19)
    with pytest.raises(ValueError, match="Clip 0: its frames are 0.5 s apart, .* give all frames of the video"):
        processor(frames, fps=2, return_tensors="pt")


def test_reference_alignment__is_refused(clip):
    with pytest.raises(ValueError, match="frames_per_moment is 3.*alignment='time', not 'reference'"):
        decode_media(clip, frames_per_moment=3, alignment="reference")


def test_one_frame__leaves_settings_and_weights_as_they_were(tmp_path):
    config = tiny_config(frames_per_moment=1)
    processor = CavMaeSyncProcessor.from_config(config)
    CavMaeSyncModel(config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for name in ("config.json", "processor_config.json"):
        assert "frames_per_moment" not in (tmp_path / name).read_text()
        assert "frame_step" not in (tmp_path / name).read_text()
    assert CavMaeSyncModel(config).video_tower.embeddings.projection.weight.shape[1] == 3


def test_several_frames__are_saved_and_loaded(tmp_path):
    config = tiny_config(frames_per_moment=5, frame_step=0.05)
    CavMaeSyncProcessor.from_config(config).save_pretrained(tmp_path)
    CavMaeSyncModel(config).save_pretrained(tmp_path)
    view = CavMaeSyncProcessor.from_pretrained(tmp_path).video_processor
    assert (view.frames_per_moment, view.frame_step) == (5, 0.05)
    loaded = CavMaeSyncModel.from_pretrained(tmp_path)
    assert (loaded.config.frames_per_moment, loaded.config.frame_step) == (5, 0.05)
    assert loaded.video_tower.embeddings.projection.weight.shape[1] == 15


def test_pretraining__sees_all_frames_and_reconstructs_the_middle_one():
    single, several = (CavMaeSyncForPreTraining(tiny_config(frames_per_moment=count)).eval() for count in (1, 3))
    weights = single.state_dict()
    name = "model.video_tower.embeddings.projection.weight"
    weights[name] = torch.cat([torch.zeros_like(weights[name]), weights[name], torch.zeros_like(weights[name])], dim=1)
    several.load_state_dict(weights)
    inputs, patches = tiny_inputs(), {"video": 16, "audio": 12}
    noise = {f"{modality}_noise": torch.rand(2, 3, count) for modality, count in patches.items()}
    before, middle, after = (tiny_inputs(seed=seed)["pixel_values_videos"] for seed in (1, 0, 2))
    stacked = inputs | {"pixel_values_videos": torch.cat([before, middle, after], dim=2)}
    expected, found = single(**inputs, **noise), several(**stacked, **noise)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.video_reconstruction, expected.video_reconstruction)
    filled = several.inpaint(**stacked, **noise).pixel_values_videos
    torch.testing.assert_close(filled, single.inpaint(**inputs, **noise).pixel_values_videos)
    with pytest.raises(ValueError, match=r"expected \(batch_size, num_frames, 9, height, width\), 3 frames a moment"):
        several(**inputs)


def test_subtracted_means__hide_what_stands_still_and_leave_what_changes():
    config = tiny_config(frames_per_moment=3, subtract_mean_frame=True, subtract_mean_spectrum=True)
    model, inputs = CavMaeSyncModel(config).eval(), tiny_inputs()
    frames = torch.cat([tiny_inputs(seed=seed)["pixel_values_videos"] for seed in (1, 0, 2)], dim=2)
    windows = inputs["input_values"]
    face, voice = torch.randn_like(frames[:, :, :3]).repeat(1, 1, 3, 1, 1), torch.randn_like(windows[:, :, :1])
    expected = model(pixel_values_videos=frames, input_values=windows)
    same = model(pixel_values_videos=frames + face, input_values=windows + voice)
    torch.testing.assert_close(same.video_embeds, expected.video_embeds)
    torch.testing.assert_close(same.audio_embeds, expected.audio_embeds)
    changed = model(pixel_values_videos=frames.flip(2), input_values=windows.flip(2))
    assert not torch.allclose(changed.video_embeds, expected.video_embeds, atol=1e-3)
    assert not torch.allclose(changed.audio_embeds, expected.audio_embeds, atol=1e-3)


def test_subtracted_means__are_saved_where_they_are_on(tmp_path):
    CavMaeSyncModel(tiny_config()).save_pretrained(tmp_path / "off")
    assert "subtract" not in (tmp_path / "off" / "config.json").read_text()
    config = tiny_config(frames_per_moment=3, subtract_mean_frame=True, subtract_mean_spectrum=True)
    CavMaeSyncModel(config).save_pretrained(tmp_path / "on")
    loaded = CavMaeSyncModel.from_pretrained(tmp_path / "on").config
    assert (loaded.subtract_mean_frame, loaded.subtract_mean_spectrum) == (True, True)
    card = str(create_model_card(CavMaeSyncModel(config), CavMaeSyncProcessor.from_config(config)))
    assert "3 frames of a moment, 0.04 s apart, less their mean" in card and "log-mel, less their mean, " in card


def test_motion__is_told_by_several_frames_alone():
    places = [8, 16, 24]
    clips = np.full((2, 3, 32, 32, 3), 20, dtype=np.uint8)
    for clip, order in enumerate((places, places[::-1])):
        for frame, column in zip(clips[clip], order, strict=True):
            frame[12:20, column - 4 : column + 4] = 220
    embeds = {}
    for count in (1, 3):
        config = tiny_config(frames_per_moment=count)
        inputs = CavMaeSyncProcessor.from_config(config)(list(clips), fps=25, return_tensors="pt")
        with torch.no_grad():
            embeds[count] = CavMaeSyncModel(config).eval()(**inputs).video_embeds[:, 1]
    assert torch.equal(embeds[1][0], embeds[1][1])
    assert float(embeds[3][0] @ embeds[3][1]) < 0.999
