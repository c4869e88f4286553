"""Where tracks stand in a file, and where their clocks start, changes neither frames nor audio."""

import math
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from cavmae_sync_hf import MediaError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, probe_media
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from cavmae_sync_hf.model.media_tracks_cavmae_sync import INTERLEAVE_SECONDS, MediaReader
from helpers.clips import joined, noise, numbered_frame, numbers, on_screen, serve, tone, write_clip

RATE = 16000


def assert_same_clip(found, expected):
    """The same frames, by their numbers (two encodings differ by a level or two), and audio at the same times."""
    assert numbers(found) == numbers(expected) and torch.equal(found.waveform, expected.waveform)
    assert torch.equal(found.frame_times, expected.frame_times) and found.duration == expected.duration


def assert_stream_agrees(source, *, hop=1.0, num_frames=4, context=1.0, **span):
    """`iter_media` gives the frames and the audio of `decode_media`."""
    chunks = list(iter_media(source, hop=hop, num_frames=num_frames, context=context, **span))
    frames, times = joined(chunks)
    whole = decode_media(source, frame_times=[(k + 0.5) * hop for k in range(len(frames))], **span)
    assert frames == numbers(whole) and torch.allclose(times, whole.frame_times)
    assert len(frames) == round(whole.duration / hop)
    for chunk in chunks:
        first = chunk.waveform_start * RATE
        assert torch.equal(chunk.waveform, whole.waveform[first : first + len(chunk.waveform)])
        assert first <= max(0.0, float(chunk.asked_times[0]) - context) * RATE
        needed = min(len(whole.waveform), (float(chunk.asked_times[-1]) + context) * RATE)
        assert first + len(chunk.waveform) >= needed


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts"])
def test_decode_media__the_order_of_tracks_changes_nothing(folder, suffix):
    options = {"seconds": 3, "audio": noise(3)}
    usual = decode_media(write_clip(folder / f"video_first.{suffix}", **options))
    path = write_clip(folder / f"audio_first.{suffix}", first_track="audio", **options)
    assert_same_clip(decode_media(path), usual)
    assert_stream_agrees(path, hop=0.5)


@pytest.mark.parametrize("first", ["video", "audio"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_decode_media__a_track_that_is_not_used_changes_nothing(folder, suffix, first):
    options = {"seconds": 3, "audio": noise(3), "first_track": first}
    usual = decode_media(write_clip(folder / f"used_{first}.{suffix}", **options), num_frames=6)
    path = write_clip(folder / f"unused_{first}.{suffix}", unused_track=True, **options)
    info = probe_media(path)
    assert (info.height, info.width) == (48, 64)
    assert_same_clip(decode_media(path, num_frames=6), usual)
    assert_stream_agrees(path, hop=0.5)


@pytest.fixture(scope="module", params=[("video", "mkv"), ("audio", "mkv"), ("video", "ts"), ("audio", "ts")])
def far_apart(request, folder):
    """40 s whose tracks stand one behind the other in the file, each second with its own level of noise."""
    first, suffix = request.param
    audio = noise(40, RATE) * np.repeat(np.arange(40) % 7 + 1, RATE) / 4
    codec = "flac" if suffix == "mkv" else "aac"
    path = folder / f"{first}_stands_first.{suffix}"
    return write_clip(path, seconds=40, fps=4, audio=audio, rate=RATE, apart=first, audio_codec=codec)


def test_write_clip__tracks_are_far_apart(far_apart):
    with av.open(str(far_apart)) as container:
        kinds = [packet.stream.type for packet in container.demux() if packet.size]
    # FFmpeg's muxers hold a packet or two back.
    assert len(set(kinds[:140])) == len(set(kinds[-140:-20])) == 1


def test_iter_media__tracks_that_lie_far_apart_agree_with_decode_media(far_apart):
    assert_stream_agrees(far_apart)
    assert_stream_agrees(far_apart.read_bytes())
    with far_apart.open("rb") as file:
        assert_stream_agrees(file, num_frames=30)


def test_iter_media__a_span_of_tracks_that_lie_far_apart(far_apart):
    assert_stream_agrees(far_apart, start=21.0, end=35.0)


def test_iter_media__tracks_that_lie_far_apart_are_not_held(far_apart, monkeypatch):
    reached = {"audio": 0.0, "video": 0.0}
    packets = MediaReader.packets

    def watched(*arguments):
        for packet in packets(*arguments):
            reached[packet.track.kind] = packet.time if packet.time is not None else reached[packet.track.kind]
            yield packet

    monkeypatch.setattr(MediaReader, "packets", watched)
    for chunk in iter_media(far_apart, hop=1.0, num_frames=4, context=1.0):
        last = float(chunk.asked_times[-1])
        if last < 28:  # at its end, the reader of one track comes through the other, which it does not keep
            assert max(reached.values()) < last + INTERLEAVE_SECONDS + 3


@pytest.mark.parametrize("gap", [(8.0, 23.0), (0.0, 14.0), (20.0, 32.0)])
def test_iter_media__pauses_of_the_audio_are_silence(folder, gap):
    path = folder / f"gap{gap[0]:g}.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=4)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("flac", rate=RATE, layout="mono")
        samples = (noise(32, RATE, channels=1) * 32767).astype(np.int16)
        for second in range(32):
            for number in range(4 * second, 4 * second + 4):
                frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 4)
                container.mux(video.encode(frame))
            if not gap[0] <= second < gap[1]:
                piece = samples[:, second * RATE : (second + 1) * RATE]
                frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = RATE, second * RATE, Fraction(1, RATE)
                container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    assert_stream_agrees(path)
    if gap[0]:
        assert_stream_agrees(path, start=gap[0] - 3.0, end=gap[0] + 4.0)


def test_decode_media__the_clock_of_a_transport_stream_wraps(folder):
    # The 90 kHz clock of 33 bits starts 3.7 s before its end; FFmpeg gives the packets before that negative times.
    path = folder / "wrap.ts"
    begin = 2**33 - int(3.7 * 90000)
    with av.open(str(path), "w", format="mpegts") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 90000)
        for number in range(150):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = begin + number * 3600, Fraction(1, 90000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    media = decode_media(path, num_frames=6, want_audio=False)
    assert media.duration == pytest.approx(6.0, abs=0.05)
    assert numbers(media) == on_screen([k / 25 for k in range(150)], media.asked_times.tolist())
    part = decode_media(path, start=4.0, end=5.0, num_frames=2, want_audio=False)
    assert numbers(part) == on_screen([k / 25 for k in range(150)], [4.25, 4.75])


def test_decode_media__length_of_a_file_object_whose_header_does_not_say_it(folder):
    def detailed(number, time):  # large packets: the file is longer than what FFmpeg reads at once
        frame = np.random.default_rng(number).integers(0, 255, (240, 320, 3), dtype=np.uint8)
        frame[:120] = numbered_frame(number, (320, 240))[:120]
        return frame

    path = write_clip(folder / "live.mkv", seconds=4, size=(320, 240), frame=detailed, container_options={"live": "1"})
    expected = decode_media(path, num_frames=4)
    assert numbers(expected) == [12, 37, 62, 87]
    assert_same_clip(decode_media(path.read_bytes(), num_frames=4), expected)
    with path.open("rb") as file:
        assert_same_clip(decode_media(file, num_frames=4), expected)


@pytest.mark.parametrize("damaged", ["error", "keep"])
def test_decode_media__streams_that_appear_in_a_damaged_file(folder, damaged):
    whole = write_clip(folder / "whole.ts", seconds=6, audio=noise(6)).read_bytes()
    outcomes = set()
    for seed in range(24):
        data = bytearray(whole)
        for place in np.random.default_rng(seed).integers(len(data) // 5, len(data), 60):
            data[place] ^= 0xFF
        try:
            decode_media(bytes(data), num_frames=2, damaged=damaged, want_audio=False)
            outcomes.add("decoded")
        except MediaError:
            outcomes.add("refused")
    assert outcomes == ({"decoded"} if damaged == "keep" else {"decoded", "refused"})


@pytest.mark.parametrize("apart", [None, "video", "audio"])
def test_decode_media__a_broadcast_is_read_as_it_comes(folder, apart):
    # Neither ranges nor a length: FFmpeg cannot go back in it, and opening it again may give something else.
    path = write_clip(
        folder / f"broadcast_{apart}.ts", seconds=14, fps=5, audio=noise(14, RATE), rate=RATE, apart=apart
    )
    expected = decode_media(path, num_frames=5)
    with serve(folder, broadcast=1) as address:
        source = f"{address}/{path.name}"
        found = decode_media(source, num_frames=5)
        chunks = list(iter_media(source, hop=1.0, num_frames=4))
        span = decode_media(source, start=2.0, end=4.0, num_frames=4)
    if apart != "video":
        assert_same_clip(found, expected)
    # Nobody can look at the end of it for where its audio starts: the zero of the clock may be that of the video.
    assert np.abs(np.array(numbers(found)) - numbers(expected)).max() <= 1
    assert found.duration == pytest.approx(expected.duration, abs=0.1)
    assert np.abs(np.array(joined(chunks)[0]) - [5 * k + 2 for k in range(14)]).max() <= 1
    assert all(len(chunk.waveform) >= 3 * RATE and chunk.waveform.abs().max() > 0.2 for chunk in chunks)
    assert np.abs(np.array(numbers(span)) - [11, 13, 16, 18]).max() <= 1 and len(span.waveform) == 2 * RATE


def test_decode_media__a_broadcast_without_end(folder):
    path = write_clip(folder / "endless.ts", seconds=2, audio=noise(2))
    with serve(folder, broadcast=math.inf) as address:
        media = decode_media(f"{address}/{path.name}", start=1.0, end=5.0, num_frames=4)
        assert media.duration == 4.0 and len(media.waveform) == 4 * RATE
        chunks = iter_media(f"{address}/{path.name}", hop=1.0, num_frames=2)
        assert [len(next(chunks).frame_times) for _ in range(5)] == [2] * 5
        chunks.close()


_PEAK = """
import resource, sys
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
def peak(path):
    for chunk in iter_media(path, hop=1.0, num_frames=4, threads=1):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
small = peak(sys.argv[1])
print(peak(sys.argv[2]) - small)
"""


@pytest.mark.slow
@pytest.mark.parametrize("apart", [None, "video", "audio"])
def test_iter_media__memory_does_not_grow_with_the_file(folder, apart):
    noises = np.random.default_rng(0).integers(0, 255, (10, 120, 160, 3), dtype=np.uint8)

    def write(name, seconds):
        return write_clip(
            folder / name,
            seconds=seconds,
            fps=10,
            size=(160, 120),
            video_codec="ffv1",
            frame=lambda number, _: noises[number % 10],
            audio=noise(seconds, RATE),
            rate=RATE,
            audio_codec="pcm_s16le",
            apart=apart,
        )

    small, large = write("peak_small.mkv", 20), write("peak_large.mkv", 400)
    assert large.stat().st_size > 100 << 20
    told = subprocess.run(
        [sys.executable, "-c", _PEAK, str(small), str(large)], capture_output=True, text=True, check=True
    )
    assert int(told.stdout) < 80  # MiB; packets that wait are at most 64


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_decode_media__file_begins_where_its_first_track_does_whichever_that_is(folder, suffix):
    """As FFmpeg's command line has it: a second audio track from 0 on, all else from 0.6 s on."""
    late = write_clip(folder / f"late.{suffix}", video_start=0.6, audio_start=0.6, audio=noise(2))
    early = write_clip(folder / f"early.{suffix}", video=False, audio=tone(2))
    path = folder / f"three.{suffix}"
    with av.open(str(late)) as first, av.open(str(early)) as second, av.open(str(path), "w") as made:
        packets = []
        for given, disposition in ((first, av.stream.Disposition.default), (second, av.stream.Disposition(0))):
            streams = [made.add_stream_from_template(stream) for stream in given.streams]
            for packet in given.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    packets.append(packet)
            streams[-1].disposition = disposition
        made.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    media = decode_media(path, frame_times=[0.0, 0.58, 0.62, 1.0], audio_track=0)
    assert numbers(media) == [0, 0, 0, 10]
    assert media.duration == pytest.approx(2.6, abs=0.05)
    assert not media.waveform[: round(0.55 * 16000)].any() and media.waveform[round(0.65 * 16000)] != 0


def test_decode_media__flv_without_a_length_that_starts_late_is_whole(folder):
    path = folder / "live.flv"
    write_clip(path, video_start=5.0, audio_start=5.0, container_options={"flvflags": "no_duration_filesize"})
    media = decode_media(path, num_frames=4)
    assert media.duration == pytest.approx(2.0, abs=0.1)
    assert numbers(media) == pytest.approx([6, 18, 31, 43], abs=1)  # the audio begins 21 ms earlier
