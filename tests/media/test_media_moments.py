# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Moments of several frames of any clock: each frame is the one that is asked for alone at its time."""

import itertools

import pytest
import torch

from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from helpers.clips import read_number, write_clip

SHIFTS = (-0.08, -0.04, 0.0, 0.04, 0.08)
_GAPS = itertools.cycle((0.02, 0.033, 0.05, 0.1, 0.02, 0.3))
CLIPS = {
    "variable.mp4": {"frame_times": [0.0, *itertools.accumulate(next(_GAPS) for _ in range(20))]},
    "late.mp4": {"video_start": 0.3},
    "faster.ts": {"fps": 30},
    "old.avi": {"video_codec": "mpeg4", "audio_codec": "mp2"},
}


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize(("start", "end"), [(None, None), (0.51, 1.2)])
def test_frames_of_moments__are_those_on_screen_at_their_times(name, start, end, tmp_path):
    path = write_clip(tmp_path / name, **({"seconds": 1.5} | CLIPS[name]))
    span = {"start": start, "end": end}
    single, several = (decode_media(path, num_frames=7, frames_per_moment=count, **span) for count in (1, 5))
    assert torch.equal(several.frames, single.frames) and torch.equal(several.frame_times, single.frame_times)
    whole = decode_media(path, num_frames=1).duration if end is None else end
    limit = whole - (start or 0.0) - 1e-5

    def alone(times):
        asked = [min(max(0.0, time + shift), max(time, limit)) for time in times for shift in SHIFTS]
        return decode_media(path, frame_times=asked, want_audio=False, **span).frames.unflatten(0, (-1, len(SHIFTS)))

    assert torch.equal(several.moments.images[several.moments.places], alone(several.asked_times.tolist()))
    chunks = list(iter_media(path, hop=0.05, num_frames=4, frames_per_moment=5, **span))
    found = torch.cat([chunk.moments.images[chunk.moments.places] for chunk in chunks])
    expected = alone([time for chunk in chunks for time in chunk.asked_times.tolist()])
    assert [read_number(frame.numpy()) for frame in found.flatten(0, 1)] == [
        read_number(frame.numpy()) for frame in expected.flatten(0, 1)
    ]
