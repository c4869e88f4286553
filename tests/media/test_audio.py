"""The audio of files: on the clock of the video, resampled, one channel."""

import av
import numpy as np
import pytest
import torch

from cavmae_sync_hf import MediaError
from cavmae_sync_hf.model import media_cavmae_sync
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, resample
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from cavmae_sync_hf.model.media_waveform_cavmae_sync import WaveformBuilder
from helpers.clips import clicks, onset, tone, write_click_and_flash, write_clip


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("mp4", {}), ("mp4", {"rate": 44100}), ("ts", {}), ("mkv", {}), ("mov", {"audio_codec": "pcm_s16le"})],
)
def test_decode_media__click_and_flash_coincide(folder, suffix, options):
    moments = (0.52, 1.4)
    path = write_click_and_flash(folder / f"flash.{suffix}", moments, **options)
    media = decode_media(path, frame_times=[k / 50 for k in range(100)])
    bright = (media.frames.float().mean(dim=(1, 2, 3)) > 128).nonzero().flatten()
    for moment in moments:
        first = next(int(k) for k in bright if media.asked_times[k] > moment - 0.2)
        flash = float(media.frame_times[first])
        click = onset(media.waveform.numpy(), 16000, after=moment - 0.2)
        # AAC smears an onset over up to 10 ms; 20 ms is the promise.
        assert abs(click - flash) < 0.02
        if suffix not in ("ts",):  # transport streams keep the encoder's delay in both tracks
            assert abs(click - moment) < 0.02 and abs(flash - moment) < 0.002


def test_decode_media__lossless_audio_keeps_its_place_to_the_sample(folder):
    audio = clicks([0.5], 1.0)
    path = write_clip(folder / "exact.mkv", seconds=1, audio=audio, audio_codec="pcm_s16le")
    media = decode_media(path)
    reference = resample(torch.from_numpy(audio[0]), 48000, 16000)
    assert len(media.waveform) == 16000
    # Two resamplers; half a sample of shift would show as an error of 0.3.
    assert (media.waveform - reference).abs().max() < 0.05


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_decode_media__late_audio_keeps_its_distance(folder, suffix):
    path = write_clip(folder / f"late.{suffix}", seconds=2, audio=clicks([0.2], 1.0), audio_start=0.5)
    media = decode_media(path)
    assert onset(media.waveform.numpy(), 16000) == pytest.approx(0.7, abs=0.02)
    assert media.waveform[:6400].abs().max() < 0.01


@pytest.mark.parametrize("rate", [8000, 16000, 48000, 96000])
def test_decode_media__any_sampling_rate_becomes_16_khz(folder, rate):
    path = write_clip(folder / f"rate{rate}.mkv", seconds=1, audio=tone(1, rate), rate=rate, audio_codec="flac")
    media = decode_media(path)
    assert len(media.waveform) == 16000 and media.native_sampling_rate == rate
    spectrum = torch.fft.rfft(media.waveform).abs()
    assert int(spectrum.argmax()) == 440
    assert media.waveform[1000:-1000].abs().max() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("sample_format", ["u8", "s16", "s32", "flt", "dbl"])
def test_decode_media__sample_formats_share_one_scale(folder, sample_format):
    codecs = {"u8": "pcm_u8", "s16": "pcm_s16le", "s32": "pcm_s32le", "flt": "pcm_f32le", "dbl": "pcm_f64le"}
    codec = codecs[sample_format]
    path = write_clip(folder / f"{codec}.mkv", seconds=1, audio=tone(1, 16000), rate=16000, audio_codec=codec)
    waveform = decode_media(path).waveform.numpy()
    # Eight bits have steps of 1/128.
    assert np.abs(waveform - tone(1, 16000)[0]).max() < (0.01 if sample_format == "u8" else 1e-4)


@pytest.mark.parametrize(("channels", "codec"), [(1, "flac"), (2, "flac"), (6, "flac"), (6, "aac")])
def test_decode_media__first_channel_or_mean(folder, channels, codec):
    path = write_clip(
        folder / f"channels{channels}{codec}.mkv", seconds=1, audio=tone(1, channels=channels), audio_codec=codec
    )
    spectrum = torch.fft.rfft(decode_media(path).waveform[:16000]).abs()
    loud = [440 * (k + 1) for k in range(channels)]
    assert spectrum[440] > 100 * max([float(spectrum[f]) for f in loud[1:]], default=0.0)
    spectrum = torch.fft.rfft(decode_media(path, channel="mean").waveform[:16000]).abs()
    if codec == "flac":
        # 0.3 / channels in each tone, 8000 = half the samples.
        assert [float(spectrum[f]) for f in loud] == pytest.approx([0.3 / channels * 8000] * channels, rel=0.02)


def test_decode_media__short_and_silent_audio(folder):
    short = decode_media(write_clip(folder / "short.mp4", audio=tone(0.2)))
    assert 3200 <= len(short.waveform) < 3200 + 1024
    silent = decode_media(write_clip(folder / "silent.mp4", audio=np.zeros((2, 96000), dtype=np.float32)))
    assert silent.waveform.abs().max() == 0 and len(silent.waveform) >= 32000


def test_decode_media__not_a_number_in_the_audio_is_refused(folder):
    audio = tone(1)
    audio[0, 1000] = np.nan
    path = write_clip(folder / "nan.mkv", seconds=1, audio=audio, audio_codec="pcm_f32le")
    with pytest.raises(MediaError, match="nan.mkv.*NaN"):
        decode_media(path)
    with pytest.raises(MediaError, match="nan.mkv.*NaN.*encode it again"):
        list(iter_media(path))


@pytest.mark.parametrize("with_soxr", [True, False])
@pytest.mark.parametrize("rates", [(44100, 16000), (8000, 16000), (16000, 16000)])
def test_resample__keeps_time_and_level(rates, with_soxr, monkeypatch):
    if not with_soxr:
        monkeypatch.setattr(media_cavmae_sync, "soxr", None)
    wave = torch.from_numpy(tone(1.0, rates[0]))
    result = resample(wave, *rates)
    assert result.shape == (2, rates[1]) and result.dtype == torch.float32
    # Away from the ends, where the filter sees no neighbours; both resamplers are flat at these frequencies.
    assert (result - torch.from_numpy(tone(1.0, rates[1])))[:, 500:-500].abs().max() < 2e-3


def test_resample__refuses_impossible_rates():
    with pytest.raises(ValueError, match="positive"):
        resample(torch.zeros(10), 0, 16000)


def test_waveform_builder__gaps_are_silence_and_jitter_is_not():
    def frame(samples, rate=16000):
        frame = av.AudioFrame.from_ndarray(np.full((1, samples), 0.5, dtype=np.float32), format="flt", layout="mono")
        frame.sample_rate = rate
        return frame

    builder = WaveformBuilder(16000, "first")
    pieces = builder.push(frame(1600), 0.001)  # starts 1 ms late: exact
    pieces += builder.push(frame(1600), 0.1015)  # half a millisecond of jitter: none
    pieces += builder.push(frame(1600), 0.301)  # 100 ms missing
    wave = np.concatenate(pieces + builder.flush())
    assert np.flatnonzero(wave == 0).tolist() == [*range(16), *range(16 + 3200, 16 + 4800)]


@pytest.mark.parametrize("video", [True, False])
@pytest.mark.parametrize("faster", [3, 100])
def test_decode_media__audio_whose_clock_creeps_is_heard_in_a_row(folder, faster, video):
    path = write_clip(folder / f"right{video}.avi", video=video, video_codec="mpeg4", audio_codec="mp2", audio=tone(2))
    data = bytearray(path.read_bytes())
    rate = data.index(b"auds") + 24  # dwRate of the stream's header: packets a second
    data[rate : rate + 4] = (int.from_bytes(data[rate : rate + 4], "little") * faster).to_bytes(4, "little")
    wrong = folder / f"wrong{faster}{video}.avi"
    wrong.write_bytes(data)
    due = decode_media(path, num_frames=4, missing="mask")
    media = decode_media(wrong, num_frames=4, missing="mask")
    assert media.duration == pytest.approx(2.0, abs=0.06)
    chunks = list(iter_media(wrong, hop=0.5, num_frames=4, missing="mask"))
    assert sum(len(chunk.frame_times) for chunk in chunks) == 4
    for waveform in (media.waveform, chunks[0].waveform):
        size = min(len(waveform), len(due.waveform))
        assert size > 1.9 * 16000
        torch.testing.assert_close(waveform[:size], due.waveform[:size])


@pytest.mark.parametrize("rates", [(44100, 22050), (48000, 32000)])
def test_decode_media__rate_that_falls_in_audio_without_a_container(folder, rates):
    parts = [
        write_clip(folder / f"part{rate}.aac", video=False, audio=tone(1, rate, channels=1), rate=rate)
        for rate in rates
    ]
    path = folder / f"rates{rates[0]}.aac"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    media = decode_media(path, missing="mask")
    assert media.duration == pytest.approx(2.0, abs=0.3)  # padded to whole frames at either end
    for start in (0.3, 1.4):
        part = media.waveform[round(start * 16000) :][:4096].numpy()
        assert np.abs(np.fft.rfft(part * np.hanning(4096))).argmax() * 16000 / 4096 == pytest.approx(440, abs=4)
        assert np.abs(part).max() == pytest.approx(0.3, abs=0.03)
