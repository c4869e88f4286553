"""Audio of every format: samples, channels, rates that change on the way, and the place of the first sample."""

import struct
from fractions import Fraction

import av
import av.audio.plane
import numpy as np
import pytest

from cavmae_sync_hf import MediaError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from cavmae_sync_hf.model.media_waveform_cavmae_sync import WaveformBuilder, mono_samples
from helpers.clips import clicks, onset, tone, write_clip

KINDS = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}


def make_frame(channels, sample_format, layout, rate=16000):
    """A frame of `channels` `(channels, samples)` in [-1, 1].

    Not by `AudioFrame.from_ndarray`, which cannot make eight planes or more.
    """
    kind = sample_format.removesuffix("p")
    frame = av.AudioFrame(format=sample_format, layout=layout, samples=channels.shape[1])
    frame.sample_rate = rate
    if kind == "u8":
        values = np.round(channels * 128) + 128
    else:
        values = channels if kind in ("flt", "dbl") else np.round(channels * 2.0 ** (int(kind[1:]) - 1))
    values = values.astype(KINDS[kind])
    planes = list(values) if sample_format.endswith("p") else [values.T.ravel()]
    for index, samples in enumerate(planes):
        plane = av.audio.plane.AudioPlane(frame, index)
        plane.update(samples.tobytes().ljust(plane.buffer_size, b"\0"))
    return frame


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "7.1", "hexadecagonal", "22.2"])
@pytest.mark.parametrize("planar", ["", "p"])
@pytest.mark.parametrize("kind", KINDS)
def test_mono_samples__formats_and_layouts(kind, planar, layout):
    count = av.AudioLayout(layout).nb_channels
    channels = np.linspace(-0.75, 0.75, count * 100).reshape(count, 100)
    frame = make_frame(channels, kind + planar, layout)
    tolerance = 0.005 if kind == "u8" else 5e-5
    first, mean = mono_samples(frame, "first"), mono_samples(frame, "mean")
    assert first.dtype == mean.dtype == np.float32
    assert np.abs(first - channels[0]).max() < tolerance
    assert np.abs(mean - channels.mean(axis=0)).max() < tolerance


def write_surround(path, codec, layout, rate=48000):
    """A second in which channel k sounds at 200 + 100 k Hz, with an amplitude that grows with k."""
    count = av.AudioLayout(layout).nb_channels
    times = np.arange(rate) / rate
    loudness = np.arange(1, count + 1) / (2 * count)
    channels = [a * np.sin(2 * np.pi * (200 + 100 * k) * times) for k, a in enumerate(loudness)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        for first in range(0, rate, 1024):
            frame = make_frame(np.stack([row[first : first + 1024] for row in channels]), "flt", layout, rate)
            frame.pts, frame.time_base = first, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path, loudness


@pytest.mark.parametrize(
    ("name", "codec", "layout"),
    [
        ("aac.m4a", "aac", "7.1"),
        ("aac16.m4a", "aac", "hexadecagonal"),
        ("flac.flac", "flac", "7.1"),
        ("opus.opus", "libopus", "7.1"),
        ("wavpack.wv", "wavpack", "hexadecagonal"),
        ("wavpack24.wv", "wavpack", "22.2"),
        ("quad.m4a", "aac", "4.0"),
        ("ac3.mkv", "ac3", "5.1(side)"),
    ],
)
def test_decode_media__many_channels(folder, name, codec, layout):
    path, loudness = write_surround(folder / name, codec, layout)
    frequencies = 200 + 100 * np.arange(len(loudness))
    levels = {}
    for channel in ("first", "mean"):
        waveform = decode_media(path, want_video=False, channel=channel).waveform[:16000].numpy()
        levels[channel] = np.abs(np.fft.rfft(waveform))[frequencies] / 8000
    assert levels["first"][0] == pytest.approx(loudness[0], rel=0.1) and levels["first"][1:].max() < 0.1 * loudness[0]
    kept = levels["mean"] > 0.01 * loudness / len(loudness)  # the channel of low frequencies holds none of these
    assert kept.sum() >= len(loudness) - 2
    assert levels["mean"][kept] == pytest.approx((loudness / len(loudness))[kept], rel=0.1)


def write_wav(path, channels, rate, count=16000):
    """16 bits; channel k holds the value 100 (k + 1). Nothing says where the channels belong."""
    data = np.tile(100 * np.arange(1, channels + 1), (count, 1)).astype("<i2").tobytes()
    head = struct.pack(
        "<IHHIIHH", 16, 1, channels, rate & 0xFFFFFFFF, rate * channels * 2 & 0xFFFFFFFF, 2 * channels, 16
    )
    path.write_bytes(
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + head
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )
    return path


@pytest.mark.parametrize("channels", [1, 3, 5, 7, 8, 9, 24, 64, 65, 255])
def test_decode_media__channels_without_a_layout(tmp_path, channels):
    path = write_wav(tmp_path / "many.wav", channels, 16000)
    media = decode_media(path, want_video=False)
    assert media.native_channels == channels and len(media.waveform) == 16000
    assert float(media.waveform[8000]) * 2**15 == pytest.approx(100)
    mean = decode_media(path, want_video=False, channel="mean").waveform
    assert float(mean[8000]) * 2**15 == pytest.approx(50 * (channels + 1), rel=1e-5)


@pytest.mark.parametrize("rate", [100, 4000, 7999, 11025, 192000, 768000, 2_000_000])
def test_decode_media__rates_far_from_usual(tmp_path, rate):
    media = decode_media(write_wav(tmp_path / "rate.wav", 1, rate, count=2 * rate), want_video=False)
    assert media.duration == pytest.approx(2.0) and len(media.waveform) == pytest.approx(32000, abs=200)
    assert float(media.waveform[8000]) * 2**15 == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("rate", [2**31 - 1, 50_000_000])
def test_decode_media__rates_that_no_audio_has_are_refused(tmp_path, rate):
    path = write_wav(tmp_path / "mad.wav", 1, rate)
    with pytest.raises(MediaError, match=rf"mad\.wav: .*{rate} samples a second"):
        decode_media(path, want_video=False)
    with pytest.raises(MediaError, match=r"mad\.wav"):
        list(iter_media(path, want_video=False))


@pytest.mark.parametrize(
    ("suffix", "codec", "rates", "channels"),
    [
        (suffix, codec, *change)
        for suffix, codec in (("aac", "aac"), ("mp3", "libmp3lame"), ("ac3", "ac3"), ("ts", "aac"))
        for change in (((48000, 44100), (2, 2)), ((44100, 44100), (2, 1)), ((32000, 48000), (1, 2)))
        if (suffix, change[0]) != ("aac", (32000, 48000))  # FFmpeg counts packets of a bare stream at its first rate
    ],
)
def test_decode_media__rate_and_channels_change_on_the_way(folder, suffix, codec, rates, channels):
    parts = []
    for place, (rate, count) in enumerate(zip(rates, channels, strict=True)):
        audio = tone(2.0, rate, frequency=440.0 * (place + 1), channels=count)
        name = folder / f"{codec}{rate}{count}{place}.{suffix}"
        parts.append(write_clip(name, video=False, audio=audio, rate=rate, audio_codec=codec).read_bytes())
    path = folder / f"changing{codec}{rates}{channels}.{suffix}"
    path.write_bytes(b"".join(parts))
    waveform = decode_media(path, want_video=False, damaged="keep").waveform.numpy()
    assert len(waveform) / 16000 == pytest.approx(4.0, abs=0.2)
    for begin, frequency in ((0.5, 440), (2.7, 880)):
        spectrum = np.abs(np.fft.rfft(waveform[round(begin * 16000) :][:16000]))
        assert spectrum.argmax() == frequency


def test_waveform_builder__format_layout_and_rate_change_between_frames():
    builder = WaveformBuilder(16000, "first")
    pieces, time = [], 0.0
    for sample_format, layout, rate in (
        ("s16", "stereo", 16000),
        ("fltp", "mono", 16000),
        ("fltp", "7.1", 48000),
        ("u8", "stereo", 8000),
        ("dblp", "5.1", 16000),
    ):
        count = av.AudioLayout(layout).nb_channels
        channels = np.full((count, rate), 0.25) * np.arange(1, count + 1)[:, None] / np.arange(1, count + 1).sum()
        channels[0] = 0.25
        pieces += builder.push(make_frame(channels, sample_format, layout, rate), time)
        time += 1.0
    waveform = np.concatenate(pieces + builder.flush())
    assert len(waveform) == pytest.approx(5 * 16000, abs=100)
    middles = waveform.reshape(-1)[8000::16000][:5]
    assert middles == pytest.approx([0.25] * 5, abs=0.005)


def test_waveform_builder__frames_without_times_or_samples():
    builder = WaveformBuilder(16000, "first")
    empty = av.AudioFrame(format="fltp", layout="stereo", samples=0)
    empty.sample_rate = 16000
    pieces = builder.push(empty, 0.0)
    for level in (0.1, 0.2, 0.3):
        pieces += builder.push(make_frame(np.full((1, 1600), level), "flt", "mono"), None)
        pieces += builder.push(empty, None)
    waveform = np.concatenate(pieces + builder.flush())
    assert np.array_equal(waveform, np.repeat(np.float32([0.1, 0.2, 0.3]), 1600))


@pytest.mark.parametrize(
    ("name", "codec", "rate", "delay"),
    [
        ("a.m4a", "aac", 48000, 0.0),
        ("a44.m4a", "aac", 44100, 0.0),
        ("o.opus", "libopus", 48000, 0.0),
        ("o.webm", "libopus", 48000, 0.0),
        ("o.mp4", "libopus", 48000, 0.0),
        ("m.mp3", "libmp3lame", 44100, 0.0),
        ("m.mkv", "libmp3lame", 48000, 0.0),
        ("m.mp4", "libmp3lame", 44100, 0.0),
        ("e.mkv", "ac3", 48000, 0.0),
        ("e.mp4", "eac3", 48000, 0.0),
        ("f.flac", "flac", 44100, 0.0),
        ("l.m4a", "alac", 44100, 0.0),
        ("t.tta", "tta", 44100, 0.0),
        ("w.wv", "wavpack", 44100, 0.0),
        ("b.aiff", "pcm_s16be", 44100, 0.0),
        ("p.mov", "pcm_s24le", 48000, 0.0),
        ("d.wav", "adpcm_ms", 44100, 0.0),
        # These containers do not say how late the encoder is: whoever plays them hears it.
        ("d.adts", "aac", 48000, 1024 / 48000),
        ("m.avi", "libmp3lame", 44100, 1105 / 44100),
        ("a.flv", "aac", 44100, 1024 / 44100),
    ],
)
def test_decode_media__samples_that_an_encoder_puts_before_the_first(folder, name, codec, rate, delay):
    path = write_clip(folder / name, video=False, audio=clicks([0.5, 1.5], 2.0, rate), rate=rate, audio_codec=codec)
    waveform = decode_media(path, want_video=False).waveform.numpy()
    assert onset(waveform, 16000) == pytest.approx(0.5 + delay, abs=0.001)
    assert onset(waveform, 16000, after=1.2) == pytest.approx(1.5 + delay, abs=0.001)
    assert 0 <= len(waveform) / 16000 - 2.0 < 0.05  # lossy ones end on whole packets
