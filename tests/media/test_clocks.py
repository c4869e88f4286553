"""Clocks that jump, wrap, start late or below zero, or start anew: what plays counts, in order."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from cavmae_sync_hf import MediaError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, probe_media
from cavmae_sync_hf.model.media_clock_cavmae_sync import Clock
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from cavmae_sync_hf.model.media_waveform_cavmae_sync import WaveformBuilder, resample_with_ffmpeg
from helpers.clips import clicks, joined, noise, numbered_frame, numbers, on_screen, tone, write_clip

RATE = 16000
CODECS = {"mpg": {"video_codec": "mpeg2video", "audio_codec": "mp2"}, "ts": {}}


def part(folder, suffix, first, seconds, start=0.0, **options):
    """The bytes of a clip whose frames are numbered from `first` on, with a click after 0.6 s."""
    path = write_clip(
        folder / f"part_{first}_{start:g}.{suffix}",
        seconds=seconds,
        frame=lambda number, _: numbered_frame(first + number),
        video_start=start,
        audio_start=start,
        **{"audio": clicks([0.6], seconds), **CODECS[suffix], **options},
    )
    return path.read_bytes()


def clicks_heard(waveform):
    """Times of the clicks in a waveform, seconds."""
    loud = np.flatnonzero(waveform.abs().numpy() > 0.2)
    return [loud[0] / RATE] + [after / RATE for before, after in itertools.pairwise(loud) if after - before > RATE / 4]


def assert_plays_in_order(path, lengths, firsts):
    """A file gives the frames of its parts one after the other, with the click of each in its place.

    Args:
        path: The file.
        lengths: Of its parts, seconds.
        firsts: The number of the first frame of each.
    """
    begins = [0.0, *itertools.accumulate(lengths)]
    whole = decode_media(path, num_frames=24)
    # Each part's audio ends on a whole packet, or starts with the encoder's delay.
    assert whole.duration == pytest.approx(begins[-1], abs=0.05 * len(lengths))
    assert probe_media(path).duration == pytest.approx(whole.duration, abs=1e-6)
    assert len(whole.waveform) / RATE == pytest.approx(whole.duration, abs=0.06)
    shown = [first + k for first, length in zip(firsts, lengths, strict=True) for k in range(round(length * 25))]
    expected = [shown[min(int(time * 25 + 1e-6), len(shown) - 1)] for time in whole.asked_times.tolist()]
    places = [shown.index(number) for number in numbers(whole)]
    assert np.abs(np.array(places) - [shown.index(number) for number in expected]).max() <= 2
    # The frame that the click of each part belongs to, against the click.
    heard = clicks_heard(whole.waveform)
    assert heard == pytest.approx([begin + 0.6 for begin in begins[:-1]], abs=0.06)
    for begin, click in zip(begins, heard, strict=False):
        dense = decode_media(path, frame_times=[begin + 0.4 + k / 100 for k in range(40)])
        places = [shown.index(number) for number in numbers(dense)]
        clicked = round(begin * 25) + 15
        found = next(float(time) for time, place in zip(dense.frame_times, places, strict=True) if place >= clicked)
        assert found == pytest.approx(click, abs=0.03)
    # Parts of the file, and the file piece by piece.
    for start in (0.5, begins[-2] - 0.7, begins[-2] + 0.3):
        span = decode_media(path, start=start, end=start + 1.0, num_frames=5)
        same = decode_media(path, frame_times=(start + span.asked_times).tolist())
        assert numbers(span) == numbers(same)
        first = round(start * RATE)
        assert torch.equal(span.waveform, whole.waveform[first : first + RATE])
    chunks = list(iter_media(path, hop=0.25, num_frames=6, context=0.5))
    found, _ = joined(chunks)
    assert found == numbers(decode_media(path, frame_times=[(k + 0.5) / 4 for k in range(len(found))]))
    assert len(found) == round(whole.duration * 4)
    for chunk in chunks:
        first = chunk.waveform_start * RATE
        assert torch.equal(chunk.waveform, whole.waveform[first : first + len(chunk.waveform)])


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize(
    "starts",
    [(0, 0), (0, 0, 0), (0, 600), (600, 0), (0, 80000), (7, 3), (95440, 50)],
    ids=lambda s: "_".join(map(str, s)),
)
def test_decode_media__files_joined_end_to_end(tmp_path, suffix, starts):
    lengths, firsts = (3.0, 2.4, 2.0)[: len(starts)], (0, 100, 200)[: len(starts)]
    pieces = [part(tmp_path, suffix, *of) for of in zip(firsts, lengths, starts, strict=True)]
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(pieces))
    assert_plays_in_order(path, lengths, firsts)


@pytest.mark.parametrize("shorter", ["audio", "video"])
def test_decode_media__joined_files_whose_tracks_end_apart(tmp_path, shorter):
    # The second file starts where the longer track of the first one ends, for both of its tracks.
    uneven = {
        "audio": {"seconds": 4.0, "audio": clicks([0.6], 2.0)},
        "video": {"seconds": 2.0, "audio": clicks([0.6], 4.0)},
    }
    first = part(tmp_path, "ts", 0, **uneven[shorter])
    path = tmp_path / "uneven.ts"
    path.write_bytes(first + part(tmp_path, "ts", 200, 2.0))
    media = decode_media(path, frame_times=[k / 25 for k in range(145)])
    assert media.duration == pytest.approx(6.0, abs=0.1)
    begin = next(float(time) for time, number in zip(media.frame_times, numbers(media), strict=True) if number > 200)
    assert begin == pytest.approx(4.0, abs=0.1)
    assert clicks_heard(media.waveform)[1] == pytest.approx(begin - 1 / 25 + 0.6, abs=0.04)


@pytest.mark.parametrize(("suffix", "codec"), [("mp3", "mp3"), ("aac", "aac"), ("ogg", "libopus"), ("ac3", "ac3")])
def test_decode_media__audio_files_joined_end_to_end(tmp_path, suffix, codec):
    pieces = [
        write_clip(
            tmp_path / f"{frequency}.{suffix}", video=False, audio=tone(3, frequency=frequency), audio_codec=codec
        )
        for frequency in (500, 900)
    ]
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    whole = decode_media(path, want_video=False)
    assert whole.duration == pytest.approx(6.0, abs=0.15)
    assert len(whole.waveform) / RATE == pytest.approx(whole.duration, abs=0.08)
    assert probe_media(path).duration == pytest.approx(whole.duration, abs=0.05)

    def pitch(samples):
        return int(torch.fft.rfft(samples[:RATE]).abs().argmax())

    assert pitch(whole.waveform[RATE:]) == 500 and pitch(whole.waveform[4 * RATE :]) == 900
    span = decode_media(path, want_video=False, start=4.0, end=5.0)
    assert pitch(span.waveform) == 900
    chunks = list(iter_media(path, want_video=False, hop=1.0, num_frames=2))
    assert sum(len(chunk.asked_times) for chunk in chunks) == 6


def write_packets(path, format, times, audio_times=None, options=None):
    """A file whose key frames, one for each of `times`, and pieces of audio of 0.1 s come at these times exactly."""
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        video = container.add_stream("mpeg4" if format != "flv" else "flv1", rate=10)
        video.width, video.height, video.pix_fmt, video.gop_size = 64, 48, "yuv420p", 1
        audio = None if audio_times is None else container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        packets = []
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            packets += [(time, packet) for packet in video.encode(frame)]
        samples = (noise(0.1, RATE, 1) * 32767).astype(np.int16)
        for number, time in enumerate(audio_times or []):
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, number, Fraction(1, 10)
            packets += [(time, packet) for packet in audio.encode(frame)]
        for time, packet in packets:
            packet.pts = packet.dts = round(time / packet.time_base)
        container.mux([packet for _, packet in sorted(packets, key=lambda item: item[0])])
    return path


@pytest.mark.parametrize(("format", "suffix"), [("mpegts", "ts"), ("matroska", "mkv"), ("flv", "flv"), ("mp4", "mp4")])
def test_decode_media__a_clock_that_starts_late_or_pauses(tmp_path, format, suffix):
    late = write_packets(tmp_path / f"late.{suffix}", format, [5000 + k / 10 for k in range(20)])
    media = decode_media(late, num_frames=4, want_audio=False)
    assert media.duration == pytest.approx(2.0, abs=0.11)
    assert numbers(media) == on_screen([k / 10 for k in range(20)], media.asked_times.tolist())
    times = [k / 10 for k in range(10)] + [9 + k / 10 for k in range(10)]
    paused = write_packets(tmp_path / f"paused.{suffix}", format, times)
    media = decode_media(paused, num_frames=10, want_audio=False)
    assert numbers(media) == on_screen(times, media.asked_times.tolist())


def test_decode_media__a_clock_that_starts_below_zero(tmp_path):
    path = write_packets(tmp_path / "below.nut", "nut", [k / 10 - 5.0 for k in range(40)])
    media = decode_media(path, num_frames=4, want_audio=False)
    assert media.duration == pytest.approx(4.0, abs=0.11)
    assert numbers(media) == on_screen([k / 10 for k in range(40)], media.asked_times.tolist())


@pytest.mark.parametrize("jump", [40_000.0, 100_000.0])
def test_decode_media__a_jump_that_no_header_tells_of_is_named(tmp_path, jump):
    times = [k / 10 for k in range(20)] + [jump + k / 10 for k in range(20)]
    path = write_packets(tmp_path / "jump.mkv", "matroska", times, audio_times=times, options={"live": "1"})
    with pytest.raises(MediaError, match=rf"jump.mkv: its clock jumps from 2\.00 s to {jump:.2f} s.*damaged='keep'"):
        decode_media(path, num_frames=8)
    media = decode_media(path, num_frames=8, damaged="keep")
    assert media.duration == pytest.approx(4.0, abs=0.11) and len(media.waveform) == 4 * RATE
    assert numbers(media) == on_screen([k / 10 for k in range(40)], media.asked_times.tolist())
    assert numbers(decode_media(path, start=0.0, end=1.5, num_frames=3)) == [2, 7, 12]
    chunks = []
    with pytest.raises(MediaError, match="its clock jumps from 2.00 s"):
        chunks.extend(iter_media(path, hop=0.5, num_frames=2))
    assert joined(list(iter_media(path, hop=0.5, num_frames=2, damaged="keep")))[0] == numbers(media)


@pytest.mark.parametrize("wild", [5.0, 100.0, 30_000.0])
def test_decode_media__one_packet_with_a_wild_time_is_put_right(tmp_path, wild):
    path = tmp_path / "wild.mkv"
    times = [k / 10 for k in range(40)]
    write_packets(path, "matroska", times, options={"cluster_time_limit": "50"})
    # The time of that packet's cluster is found in the file and changed.
    data = bytearray(path.read_bytes())
    place = data.index(b"\xe7\x82" + (2000).to_bytes(2, "big"))
    assert data[place + 1] == 0x82
    data[place + 2 : place + 4] = min(0xFFFF, 2000 + round(wild * 1000)).to_bytes(2, "big")
    path.write_bytes(data)
    media = decode_media(path, num_frames=8, want_audio=False)
    assert media.duration == pytest.approx(4.0, abs=0.11)
    assert numbers(media) == on_screen(times, media.asked_times.tolist())
    assert numbers(decode_media(path, start=1.0, end=3.5, num_frames=5, want_audio=False)) == [12, 17, 22, 27, 32]


def test_decode_media__hours_of_silence_are_refused_and_streamed(tmp_path):
    # The header tells of the pause, and so it may be right: but the waveform of all of it would take gigabytes.
    times = [k / 10 for k in range(20)] + [5 * 3600 + k / 10 for k in range(20)]
    path = write_packets(tmp_path / "hours.mkv", "matroska", times, audio_times=times)
    assert path.stat().st_size < 200_000
    with pytest.raises(MediaError, match="hours.mkv: its audio pauses for 17998 s up to .*start, end"):
        decode_media(path)
    span = decode_media(path, start=1.0, end=5.0, num_frames=4)
    assert numbers(span) == [15, 19, 19, 19] and len(span.waveform) == RATE
    last = decode_media(path, start=17999.0, end=18001.0, num_frames=4)
    assert numbers(last) == [19, 19, 22, 27] and last.waveform[RATE:].abs().max() > 0.1
    chunks = list(iter_media(path, hop=600.0, num_frames=1, context=2.0))
    assert len(chunks) == 30 and max(len(chunk.waveform) for chunk in chunks) <= 6 * RATE
    assert all(chunk.waveform.abs().max() == 0 for chunk in chunks)


@pytest.mark.parametrize(("format", "suffix"), [("matroska", "mkv"), ("mp4", "mov"), ("flv", "flv")])
def test_decode_media__a_jump_that_nobody_would_wait_for_is_named(tmp_path, format, suffix):
    # Headers say what the clock says, and so do flipped bytes in tables of durations: 20 hours until the next frame.
    times = [k / 10 for k in range(20)] + [20 * 3600 + k / 10 for k in range(20)]
    path = write_packets(tmp_path / f"wait.{suffix}", format, times)
    for read in (decode_media, lambda source, **options: list(iter_media(source, **options))):
        with pytest.raises(MediaError, match=r"its clock jumps from [12]\.\d+ s to 720\d+"):
            read(path, want_audio=False)
        read(path, want_audio=False, damaged="keep")
    media = decode_media(path, num_frames=8, want_audio=False, damaged="keep")
    assert media.duration == pytest.approx(4.0, abs=0.21)
    assert np.abs(np.array(numbers(media)) - np.arange(2, 40, 5)).max() <= 1


@pytest.mark.parametrize("damaged", ["error", "keep"])
def test_rate__that_lets_each_frame_stay_for_hours_is_not_believed(tmp_path, damaged):
    path = write_clip(tmp_path / "slow.avi", seconds=2, video_codec="mpeg4")
    data = bytearray(path.read_bytes())
    place = data.index(b"vids") + 20  # scale and rate of the stream header
    data[place : place + 8] = (20_000).to_bytes(4, "little") + (1).to_bytes(4, "little")
    path.write_bytes(data)

    for read in (decode_media, lambda source, **options: list(iter_media(source, **options))):
        with pytest.raises(MediaError, match=r"slow.avi: .* bytes in all are said to last for \d+\.\d hours"):
            read(path, want_audio=False, damaged=damaged)


@pytest.mark.parametrize("rates", [(48000, 16000), (44100, 16000), (16000, 16000), (22050, 48000)])
def test_waveform_builder__long_silence_is_that_of_the_resampler(rates):
    def frame(samples, rate):
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = rate
        return frame

    source, target = rates
    sound = noise(1.7, source, 1)[0]
    silence = np.zeros(round(7.3 * source), dtype=np.float32)
    builder = WaveformBuilder(target, "first")
    pieces = builder.push(frame(sound, source), 0.0) + builder.push(frame(sound, source), 9.0)
    found = np.concatenate(pieces + builder.flush())
    assert np.array_equal(found, resample_with_ffmpeg(np.concatenate([sound, silence, sound]), source, target))


class TestClock:
    """Where a clock puts packets whose decoding times are given: the rule itself, without files."""

    class Track:
        def seconds(self, ticks):
            return ticks / 10

    class Packet:
        time_base = Fraction(1, 10)
        duration = 1

        def __init__(self, dts):
            self.dts = self.pts = dts

    def straightened(self, *runs, **options):
        """Tracks by letter and ticks, such as `("v", 0, 3)` for ticks 0, 1 and 2 of the video."""
        clock = Clock(may_restart=True, **options)
        tracks = {"v": self.Track(), "a": self.Track()}
        packets = [(letter, self.Packet(tick)) for letter, first, last in runs for tick in range(first, last)]
        order = [packet for _, packet in packets]
        list(clock.straightened((tracks[letter], packet) for letter, packet in packets))
        return [packet.dts for packet in order]

    def test_what_runs_on_stays(self):
        assert self.straightened(("v", 0, 30), ("a", 0, 30), ("v", 30, 33)) == [*range(30), *range(30), 30, 31, 32]

    def test_the_end_of_one_track_comes_behind_the_start_of_the_next_file(self):
        runs = [("v", 0, 20), ("a", 0, 19), ("v", 0, 2), ("a", 19, 20), ("a", 0, 3), ("v", 2, 4)]
        assert self.straightened(*runs)[39:] == [20, 21, 19, 20, 21, 22, 22, 23]

    def test_a_forward_jump_that_is_one_track_s_pause(self):
        runs = [("v", 0, 2), ("a", 0, 150), ("v", 140, 142), ("a", 150, 152)]
        assert self.straightened(*runs)[152:] == [140, 141, 150, 151]

    @pytest.mark.parametrize("wild", [5000, 40, -5000, 5])
    def test_one_wild_time_moves_nothing_else(self, wild):
        runs = [("v", 0, 20), ("a", 0, 20), ("v", wild, wild + 1), ("v", 21, 23), ("a", 20, 23), ("v", 23, 25)]
        assert self.straightened(*runs)[40:] == [20, 21, 22, 20, 21, 22, 23, 24]

    def test_tracks_that_stand_one_behind_the_other_in_joined_files(self):
        runs = [("v", 0, 50), ("v", 0, 30), ("v", 0, 40), ("a", 0, 50), ("a", 0, 30), ("a", 0, 40)]
        assert self.straightened(*runs) == [*range(120), *range(120)]

    def test_a_track_that_starts_in_the_second_file(self):
        assert self.straightened(("v", 0, 50), ("v", 0, 3), ("a", 0, 3))[50:] == [50, 51, 52, 50, 51, 52]

    def test_clocks_of_tracks_that_have_nothing_in_common(self):
        assert self.straightened(("v", 900000, 900003), ("a", 0, 3)) == [0, 1, 2, 2, 3, 4]
