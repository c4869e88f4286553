"""The frame on screen at a time, where a file says it oddly or not at all.

Frames carry their numbers, so that what is right is known without another decoder. Where a container gives the times
of decoding only, frames come later by the encoder's delay, as FFmpeg's command line plays them.
"""

import math
import os
from fractions import Fraction

import av
import numpy as np
import pytest

from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from helpers.clips import joined, noise, numbered_frame, numbers, on_screen, tone, write_clip
from helpers.field_pictures import field_pictures, write_units

B_FRAMES = {"bf": "3", "preset": "medium", "crf": "10", "b-pyramid": "normal"}


def assert_plays(path, times, shown=None, duration=None):
    """Frame `shown[k]` (default: k) appears at `times[k]`, for `decode_media`, streaming, segments and by number."""
    shown = list(range(len(times))) if shown is None else shown
    media = decode_media(path, num_frames=2 * len(times), want_audio=False)
    assert numbers(media) == [shown[k] for k in on_screen(times, media.asked_times.tolist())]
    if duration is not None:
        assert media.duration == pytest.approx(duration, abs=2e-3)
    hop = media.duration / 12
    streamed, _ = joined(list(iter_media(path, hop=hop, num_frames=5, want_audio=False)))
    assert streamed == [shown[k] for k in on_screen(times, [(i + 0.5) * hop for i in range(len(streamed))])]
    assert len(streamed) in (11, 12)
    part = decode_media(path, start=0.55 * media.duration, end=0.95 * media.duration, num_frames=5, want_audio=False)
    assert numbers(part) == [shown[k] for k in on_screen(times, (part.asked_times + part.start).tolist())]
    counted = decode_media(path, num_frames=6, alignment="reference", want_audio=False)
    used = min(len(times), 10 * counted.frame_rate)
    assert numbers(counted) == [shown[int(i * used / 6)] for i in range(6)]


@pytest.mark.parametrize(
    ("name", "options", "delay"),
    [
        ("h264.avi", {"video_options": B_FRAMES, "gop": 30}, 2),
        ("h264_no_b.avi", {"video_options": {"bf": "0"}}, 0),
        ("mpeg4.avi", {"video_codec": "mpeg4", "video_options": {"bf": "2"}}, 1),
        ("mpeg4_no_b.avi", {"video_codec": "mpeg4", "video_options": {"bf": "0"}}, 0),
        ("mpeg4.wmv", {"video_codec": "mpeg4", "video_options": {"bf": "2"}}, 1),
    ],
)
def test_decode_media__containers_with_times_of_decoding_only(folder, name, options, delay):
    path = write_clip(folder / name, seconds=3, audio=False, **options)
    assert_plays(path, [(k + delay) / 25 for k in range(75)])


@pytest.mark.parametrize("fps", [25, 30, Fraction(30000, 1001)])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("h264", {"video_options": B_FRAMES}),
        ("hevc", {"video_codec": "libx265", "video_options": {"x265-params": "log-level=none:bframes=3"}}),
        ("m4v", {"video_codec": "mpeg4", "video_options": {"bf": "2"}}),
        ("m2v", {"video_codec": "mpeg2video", "video_options": {"bf": "2"}}),
    ],
)
def test_decode_media__bare_streams_play_at_their_frame_rate(folder, suffix, options, fps):
    path = write_clip(folder / f"bare_{float(fps):.0f}.{suffix}", num_frames=60, fps=fps, audio=False, **options)
    assert_plays(path, [k / fps for k in range(60)], duration=60 / fps)


def test_decode_media__bare_av1(folder):
    before = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    path = write_clip(folder / "bare.obu", seconds=2, audio=False, video_codec="libsvtav1", gop=25)
    # Else all later tests, and the browsers that they start, would leave other processes no time.
    assert before is None or os.sched_getscheduler(0) == before
    assert_plays(path, [k / 25 for k in range(50)], duration=2.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264.mpg", {"video_options": B_FRAMES}),  # a time in each block of 2 KB, not for each packet
        ("mpeg2.mpg", {"video_codec": "mpeg2video", "video_options": {"bf": "2"}}),
        ("mpeg2.vob", {"video_codec": "mpeg2video", "video_options": {"bf": "2"}}),
        ("h264.nut", {"video_options": B_FRAMES}),
    ],
)
def test_decode_media__program_streams_and_packets_without_times(folder, name, options):
    assert_plays(write_clip(folder / name, seconds=3, audio=False, **options), [k / 25 for k in range(75)])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_decode_media__times_of_decoding_given_for_those_of_presentation(folder, suffix):
    whole = write_clip(folder / "ordered.mp4", seconds=3, audio=False, video_options=B_FRAMES, gop=30)
    path = folder / f"permuted.{suffix}"
    with av.open(str(whole)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for place, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = 40 * place
            container.mux(packet)
    counted = decode_media(path, num_frames=6, alignment="reference", want_audio=False)
    assert numbers(counted) == [int(i * 75 / 6) for i in range(6)]
    # Late by the two frames that the decoder holds, and a bit more until the order is found to be wrong.
    asked = [0.5 + 0.1 * k for k in range(20)]
    lag = [
        int(25 * at + 1e-6) - number
        for at, number in zip(asked, numbers(decode_media(path, frame_times=asked, want_audio=False)), strict=True)
    ]
    assert set(lag) <= {0, 1, 2}


@pytest.mark.parametrize("progressive", [(), range(6), range(10, 20)])
@pytest.mark.parametrize("suffix", ["h264", "ts", "mkv"])
def test_decode_media__frames_that_are_coded_as_two_fields(folder, suffix, progressive):
    units = field_pictures(40, progressive)
    path = folder / f"fields{len(progressive)}{min(progressive, default=0)}.{suffix}"
    if suffix == "h264":
        path.write_bytes(b"".join(data for _, data in units))
    else:
        write_units(path, units)
    assert_plays(path, [k / 25 for k in range(40)], duration=1.6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vp8.webm", {"video_codec": "libvpx"}),
        ("vp9.webm", {"video_codec": "libvpx-vp9"}),
        ("vp8.ivf", {"video_codec": "libvpx"}),
        ("vp9.mp4", {"video_codec": "libvpx-vp9"}),
    ],
)
def test_decode_media__frames_that_are_never_shown(folder, name, options):
    hidden = {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "7", "arnr-strength": "5"}
    path = write_clip(folder / f"hidden_{name}", seconds=3, audio=False, gop=60, video_options=hidden, **options)
    assert_plays(path, [k / 25 for k in range(75)])


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_decode_media__av1(folder, suffix):
    path = write_clip(folder / f"av1.{suffix}", seconds=3, audio=False, video_codec="libsvtav1", gop=60)
    assert_plays(path, [k / 25 for k in range(75)])


@pytest.mark.parametrize("suffix", ["gif", "apng"])
def test_decode_media__animations(folder, suffix):
    pixel_format = {"gif": "rgb8", "apng": "rgb24"}[suffix]
    path = write_clip(
        folder / f"moving.{suffix}", seconds=2, audio=False, video_codec=suffix, pixel_format=pixel_format
    )
    assert_plays(path, [k / 25 for k in range(50)], duration=2.0)


@pytest.mark.parametrize("options", [{"video_options": {"bf": "0"}}, {"video_options": B_FRAMES, "gop": 50}])
def test_decode_media__frames_that_an_edit_list_leaves_out(folder, options):
    # The video begins 0.4 s before the audio: what lies before the audio's start is decoded, but not shown.
    path = write_clip(folder / f"cut{len(options)}.mp4", video_start=-0.4, seconds=3, audio=noise(2.6), **options)
    times = [k / 25 for k in range(65)]
    assert_plays(path, times, shown=list(range(10, 75)))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("options", [{"bf": "0"}, B_FRAMES])
def test_decode_media__pauses_of_the_video(folder, suffix, options):
    times = [0, 0.04, 0.08, 100, 100.04, 100.08, 100.12]
    path = write_clip(folder / f"pause{len(options)}.{suffix}", frame_times=times, audio=False, video_options=options)
    media = decode_media(path, frame_times=[0, 0.05, 60, 99.9, 100.0, 100.06, 100.1, 100.12], want_audio=False)
    assert numbers(media) == [0, 1, 2, 2, 3, 4, 5, 6]
    assert media.duration == pytest.approx(100.16, abs=0.05)
    part = decode_media(path, start=61.0, end=95.0, num_frames=3, want_audio=False)
    assert numbers(part) == [2, 2, 2]
    streamed, _ = joined(list(iter_media(path, hop=10.0, num_frames=4, want_audio=False)))
    assert streamed == [2] * 10


def test_decode_media__one_image_with_audio_lasts_as_long_as_the_audio(folder):
    for suffix in ("mp4", "mkv", "avi"):
        path = write_clip(folder / f"still.{suffix}", num_frames=1, audio=tone(4.0))
        media = decode_media(path, num_frames=4)
        assert numbers(media) == [0] * 4 and media.duration == pytest.approx(4.0, abs=0.06)
        assert media.frame_times.tolist() == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.06)
        streamed, times = joined(list(iter_media(path, hop=1.0, num_frames=3)))
        assert streamed == [0] * 4 and times.tolist() == pytest.approx([0.5, 1.5, 2.5, 3.5])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "h264"])
def test_decode_media__one_frame(folder, suffix):
    media = decode_media(write_clip(folder / f"one.{suffix}", num_frames=1, audio=False), num_frames=3, missing="mask")
    assert numbers(media) == [0] * 3 and media.duration == pytest.approx(0.04, abs=0.021)  # ts: a field


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264-params": "open-gop=1:bframes=3:b-adapt=0"}),
        ("libx265", {"x265-params": "log-level=none:open-gop=1:keyint=25:min-keyint=25:bframes=4"}),
    ],
)
def test_decode_media__a_recording_that_starts_in_the_middle(folder, codec, options):
    whole = write_clip(
        folder / f"{codec}.ts", seconds=3, audio=False, video_codec=codec, video_options=options, gop=25
    )
    with av.open(str(whole)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size and packet.is_keyframe]
    path = folder / f"{codec}_cut.ts"
    path.write_bytes(whole.read_bytes()[starts[1] // 188 * 188 :])
    with av.open(str(path)) as container:  # what can be decoded, in the order in which it is shown
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    first = frames[0][0]
    media = decode_media(path, num_frames=40, want_audio=False)
    expected = on_screen([time - first for time, _ in frames], media.asked_times.tolist())
    for frame, number in zip(media.frames, expected, strict=True):
        assert np.array_equal(frame.permute(1, 2, 0).numpy(), frames[number][1])


def write_with_times(path, times):
    """One numbered key frame per time, written with exactly these times, seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 1
        packets = []
        for number in range(len(times)):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet, time in zip(packets, times, strict=True):
            packet.time_base = Fraction(1, 1000)
            packet.pts = packet.dts = round(1000 * time)
            container.mux(packet)
    return path


def test_decode_media__frames_at_the_same_time(folder):
    times = [0, 0.1, 0.2, 0.2, 0.2, 0.3, 0.4, 0.4, 0.5]
    path = write_with_times(folder / "same.mkv", times)
    asked = [0.05, 0.15, 0.25, 0.35, 0.45, 0.5]
    assert numbers(decode_media(path, frame_times=asked, want_audio=False)) == on_screen(times, asked)
    counted = decode_media(path, num_frames=9, alignment="reference", want_audio=False)
    assert numbers(counted) == list(range(9))


@pytest.mark.parametrize("threads", [1, 4])
def test_decode_media__threads_change_nothing(folder, threads):
    path = write_clip(folder / "threads.avi", seconds=3, audio=False, video_options=B_FRAMES, gop=30)
    media = decode_media(path, num_frames=30, threads=threads, want_audio=False)
    assert numbers(media) == on_screen([(k + 2) / 25 for k in range(75)], media.asked_times.tolist())


def test_decode_media__reference_rule_counts_frames_of_a_bare_stream_beyond_ten_seconds(folder):
    path = write_clip(folder / "long.h264", num_frames=330, fps=30, audio=False, video_options=B_FRAMES)
    media = decode_media(path, num_frames=16, alignment="reference", want_audio=False)
    assert numbers(media) == [int(i * 300 / 16) for i in range(16)]
    assert media.frame_times.tolist() == pytest.approx([math.floor(i * 300 / 16) / 30 for i in range(16)])
