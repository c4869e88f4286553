"""`decode_media`: the frame on screen at a time, segments, missing tracks, and files that must be refused."""

import math

import av
import numpy as np
import pytest
import torch

from cavmae_sync_hf import MediaError, MissingTrackError
from cavmae_sync_hf.model.alignment_cavmae_sync import reference_indices
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, probe_media
from helpers.clips import corrupt, noise, numbers, on_screen, tone, truncate, write_clip


@pytest.mark.parametrize("count", [1, 4, 7, 100])
def test_decode_media__frame_i_is_on_screen_at_the_centre_of_span_i(clip, count):
    media = decode_media(clip, num_frames=count)
    expected = on_screen([k / 25 for k in range(100)], [(i + 0.5) * 4 / count for i in range(count)])
    assert numbers(media) == expected
    assert media.frame_times.tolist() == pytest.approx([k / 25 for k in expected], abs=1e-6)
    assert media.frames.shape == (count, 3, 48, 64) and media.frames.dtype == torch.uint8
    assert media.duration == pytest.approx(4.0, abs=1e-6)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mkv", {}),
        ("webm", {"video_codec": "libvpx-vp9", "audio_codec": "libopus"}),
        ("webm", {"video_codec": "libvpx", "audio_codec": "libopus"}),
        ("ts", {}),
        ("mov", {"video_codec": "mpeg4", "audio_codec": "pcm_s16le"}),
        ("flv", {"rate": 44100}),
    ],
)
def test_decode_media__every_container_gives_the_right_frames(folder, suffix, options):
    path = write_clip(folder / f"container.{suffix}", seconds=4, **options)
    media = decode_media(path, num_frames=4)
    # Lossy audio moves the clip's end, and with it the centres, by less than one frame of 40 ms.
    assert np.abs(np.array(numbers(media)) - [12, 37, 62, 87]).max() <= 1
    shown = media.frame_times.numpy() - np.array(numbers(media)) / 25
    assert np.ptp(shown) < 2e-3 and abs(shown[0]) < 0.05  # one clock; the whole may start with the encoder's delay
    assert numbers(decode_media(path, num_frames=4, alignment="reference")) == [0, 25, 50, 75]


@pytest.mark.parametrize(
    "options",
    [
        {"video_options": {"bf": "3", "b-pyramid": "normal", "preset": "medium"}, "gop": 60},
        {"video_options": {"bf": "0"}},
        {"video_codec": "libvpx-vp9", "audio_codec": "libopus"},
    ],
)
def test_decode_media__frames_left_undecoded_change_nothing(folder, options):
    path = write_clip(folder / f"skip.{'webm' if 'video_codec' in options else 'mp4'}", seconds=3, **options)
    with av.open(str(path)) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for alignment in ("time", "reference"):
        media = decode_media(path, num_frames=9, alignment=alignment)
        for frame, number in zip(media.frames, numbers(media), strict=True):
            assert np.array_equal(frame.permute(1, 2, 0).numpy(), everything[number])


def test_decode_media__reference_alignment_is_the_published_rule(folder, clip):
    media = decode_media(clip, num_frames=16, alignment="reference")
    expected = [int(i * min(100, 10 * 25) / 16) for i in range(16)]
    assert numbers(media) == expected
    assert media.frame_times.tolist() == pytest.approx([k / 25 for k in expected])
    # Clips above ten seconds: only the first ten count.
    long = write_clip(folder / "long.mp4", seconds=12, fps=5, audio=False)
    media = decode_media(long, num_frames=16, alignment="reference", missing="mask")
    assert numbers(media) == [int(i * 50 / 16) for i in range(16)]
    assert reference_indices(250, 25.0, 16)[-1] == 234


def test_decode_media__explicit_times_come_back_in_their_order(clip):
    media = decode_media(clip, frame_times=[3.0, 1.0, 2.99, 1.02])
    assert numbers(media) == [75, 25, 74, 25]
    with pytest.raises(MediaError, match="9.000 s, the clip lasts 4.000 s"):
        decode_media(clip, frame_times=[9.0])
    with pytest.raises(MediaError, match="finite"):
        decode_media(clip, frame_times=[math.nan])


def test_decode_media__variable_frame_rate_follows_presentation_times(folder):
    times = [0.0, 0.1, 0.15, 0.6, 0.7, 1.5, 1.52, 1.9]
    path = write_clip(folder / "vfr.mp4", frame_times=times, audio=tone(2.0))
    media = decode_media(path, num_frames=10)
    expected = on_screen(times, media.asked_times.tolist())
    assert numbers(media) == expected
    assert media.frame_times.tolist() == pytest.approx([times[k] for k in expected], abs=1e-4)


def test_decode_media__a_still_image_stands_for_the_asked_times(folder):
    media = decode_media(write_clip(folder / "still.mp4", num_frames=1, audio=tone(4.0)), num_frames=4)
    assert numbers(media) == [0, 0, 0, 0]
    assert media.frame_times.tolist() == pytest.approx([0.5, 1.5, 2.5, 3.5])


def test_decode_media__one_frame_without_audio(folder):
    media = decode_media(write_clip(folder / "one.mp4", num_frames=1, audio=False), num_frames=3, missing="mask")
    assert media.frames.shape[0] == 3 and media.waveform is None and media.duration == pytest.approx(0.04)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_decode_media__rotated_video_is_shown_upright(folder, rotation):
    def two_corners(number, time):
        frame = np.zeros((48, 64, 3), dtype=np.uint8)
        frame[:24, :32, 0] = 230  # red, top left
        frame[24:, 32:, 2] = 230  # blue, bottom right
        return frame

    path = write_clip(folder / f"rotated{rotation}.mp4", seconds=0.4, frame=two_corners, rotation=rotation)
    shown = decode_media(path, num_frames=1).frames[0].permute(1, 2, 0).numpy()
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0))
        expected = np.rot90(stored.to_ndarray(format="rgb24"), stored.rotation // 90)  # PyAV: counterclockwise
    assert (rotation == 0) == (stored.rotation == 0)
    # Frame 5 against frame 0 of the same image: compression moves levels at the edges; a wrong turn moves them by
    # 230.
    assert shown.shape == expected.shape and np.abs(shown.astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gray.mp4", {"pixel_format": "gray"}),
        ("alpha.mov", {"video_codec": "qtrle", "pixel_format": "argb", "audio_codec": "pcm_s16le"}),
        ("odd.mp4", {"size": (65, 49), "pixel_format": "yuv444p"}),
        ("ten_bit.mkv", {"video_codec": "ffv1", "pixel_format": "yuv420p10le"}),
    ],
)
def test_decode_media__unusual_frames_become_rgb(folder, name, options):
    media = decode_media(write_clip(folder / name, **options), num_frames=2)
    width, height = options.get("size", (64, 48))
    assert media.frames.shape == (2, 3, height, width) and numbers(media) == [12, 37]


def test_decode_media__colour_follows_the_files_matrix(folder):
    def red(number, time):
        return np.full((48, 64, 3), (200, 30, 30), dtype=np.uint8)

    media = decode_media(write_clip(folder / "red.mp4", seconds=0.4, frame=red), num_frames=1)
    # 4:2:0 at this quality keeps a flat colour to within 3 levels.
    assert (media.frames[0].float().mean(dim=(1, 2)) - torch.tensor([200.0, 30.0, 30.0])).abs().max() <= 3


def test_decode_media__short_side_scales_while_converting(clip):
    media = decode_media(clip, num_frames=2, short_side=24)
    assert media.frames.shape == (2, 3, 24, 32) and numbers(media) == [25, 75]


def test_decode_media__late_video_keeps_its_distance(folder):
    media = decode_media(write_clip(folder / "late_video.mp4", video_start=0.48), frame_times=[0.1, 0.5, 1.0])
    assert numbers(media) == [0, 0, 13]
    assert media.frame_times.tolist() == pytest.approx([0.48, 0.48, 1.0], abs=1e-6)


def test_decode_media__clip_lasts_as_long_as_the_longer_track(folder):
    longer_audio = decode_media(write_clip(folder / "a.mp4", seconds=1, audio=tone(2)), num_frames=4)
    assert longer_audio.duration == pytest.approx(2.0, abs=0.05)
    assert numbers(longer_audio) == [6, 18, 24, 24]
    longer_video = decode_media(write_clip(folder / "b.mp4", seconds=2, audio=tone(1)), num_frames=4)
    assert longer_video.duration == pytest.approx(2.0, abs=0.05)
    assert len(longer_video.waveform) == pytest.approx(16000, abs=1024)


def test_decode_media__segment_is_a_slice_of_the_whole(folder):
    path = write_clip(folder / "segment.mp4", seconds=8, audio=noise(8))
    whole = decode_media(path)
    part = decode_media(path, start=4.52, end=6.52, num_frames=4)
    assert part.duration == pytest.approx(2.0) and part.start == 4.52
    # Audio is resampled on the file's own grid, so that a segment is the very same samples.
    first = round(4.52 * 16000)
    assert (part.waveform - whole.waveform[first : first + 32000]).abs().max() < 1e-6
    asked = [4.52 + (i + 0.5) * 0.5 for i in range(4)]
    expected = on_screen([k / 25 for k in range(200)], asked)
    assert numbers(part) == expected
    assert part.frame_times.tolist() == pytest.approx([k / 25 - 4.52 for k in expected], abs=1e-6)
    assert numbers(decode_media(path, start=4.52, end=6.52, num_frames=2, alignment="reference")) == [113, 138]


@pytest.mark.parametrize("span", [(5.0, None), (-1.0, 2.0), (2.0, 2.0)])
def test_decode_media__segment_outside_the_clip_is_refused(clip, span):
    with pytest.raises(MediaError, match="clip.mp4.*segment"):
        decode_media(clip, start=span[0], end=span[1])


def test_decode_media__header_without_duration(folder):
    path = write_clip(folder / "live.mkv", seconds=4, container_options={"live": "1"})
    assert probe_media(path).duration is None
    media = decode_media(path, num_frames=4)
    assert numbers(media) == [12, 37, 62, 87] and media.duration == pytest.approx(4.0, abs=0.05)
    assert numbers(decode_media(path, num_frames=4, alignment="reference")) == [0, 25, 50, 75]


def test_decode_media__missing_tracks(folder):
    for name, options, absent in (("mute.mp4", {"audio": False}, "audio"), ("blind.m4a", {"video": False}, "video")):
        path = write_clip(folder / name, **options)
        with pytest.raises(MissingTrackError, match=f"{name}: has no {absent} track") as caught:
            decode_media(path)
        assert caught.value.track == absent
        media = decode_media(path, missing="mask")
        assert (media.waveform is None) == (absent == "audio") and (media.frames is None) == (absent == "video")
        assert media.duration == pytest.approx(2.0, abs=0.05)
        with pytest.raises(MissingTrackError):
            decode_media(path, missing="mask", want_audio=absent == "audio", want_video=absent == "video")


def test_decode_media__unwanted_track_changes_neither_frames_nor_audio(folder):
    path = write_clip(folder / "both.mp4", seconds=1, audio=tone(2))
    both = decode_media(path, num_frames=4)
    assert torch.equal(decode_media(path, num_frames=4, want_audio=False).frames, both.frames)
    assert torch.equal(decode_media(path, want_video=False).waveform, both.waveform)


def test_decode_media__truncated_file(folder, clip):
    cut = truncate(clip, folder / "cut.mp4")
    with pytest.raises(MediaError, match=r"cut.mp4.*(truncated|breaks off).*damaged='keep'"):
        decode_media(cut)
    media = decode_media(cut, num_frames=4, damaged="keep")
    assert 1.5 < media.duration < 3.5
    assert numbers(media) == on_screen([k / 25 for k in range(100)], media.asked_times.tolist())
    plain = write_clip(folder / "plain.mp4", seconds=1)  # the index of a plain file is at its end
    with pytest.raises(MediaError, match="headless.mp4.*index"):
        decode_media(truncate(plain, folder / "headless.mp4"))
    mkv = truncate(write_clip(folder / "whole.mkv", seconds=4), folder / "cut.mkv")
    with pytest.raises(MediaError, match="cut.mkv.*truncated"):
        decode_media(mkv)


def test_decode_media__corrupt_file(folder, clip):
    with pytest.raises(MediaError, match="corrupt.mp4.*corrupt"):
        decode_media(corrupt(clip, folder / "corrupt.mp4"))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("alignment", "x"),
        ("channel", "x"),
        ("missing", "x"),
        ("damaged", "x"),
        ("num_frames", 0),
        ("num_frames", "8"),
        ("num_frames", 3.5),
        ("sampling_rate", 16000.5),
        ("short_side", 0),
        ("start", "abc"),
        ("end", math.nan),
        ("frame_times", "abc"),
    ],
)
def test_decode_media__impossible_arguments(clip, argument, value):
    with pytest.raises(ValueError, match=argument):
        decode_media(clip, **{argument: value})


def test_probe_media__reads_the_header(clip):
    info = probe_media(clip)
    assert (info.duration, info.frame_rate, info.height, info.width) == (pytest.approx(4.0), 25.0, 48, 64)
    assert (info.has_audio, info.has_video, info.sampling_rate, info.channels) == (True, True, 48000, 2)


def test_decode_media__reference_frames_of_a_span_behind_the_end_of_the_video(folder):
    path = write_clip(folder / "short_video.mp4", seconds=1, audio=noise(3))
    span = {"start": 1.5, "end": 2.5, "num_frames": 4, "alignment": "reference"}
    with pytest.raises(MissingTrackError, match="nothing could be decoded from its video track in this span"):
        decode_media(path, **span)
    media = decode_media(path, **span, missing="mask")
    assert media.frames is None and len(media.waveform) == 16000
