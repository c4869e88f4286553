"""Media files: the frame on screen at a time, sound on the same clock, and files that must be refused."""

import io
import math

import av
import numpy as np
import pytest
import torch

from cavmae_sync_hf import MediaError, MediaNotFoundError, MissingTrackError
from cavmae_sync_hf.model import media_cavmae_sync
from cavmae_sync_hf.model.alignment_cavmae_sync import reference_indices
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, probe_media, resample
from cavmae_sync_hf.model.media_decoders_cavmae_sync import WaveformBuilder
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from cavmae_sync_hf.model.media_tracks_cavmae_sync import INTERLEAVE_SECONDS, MediaReader
from helpers.clips import (
    clicks,
    corrupt,
    noise,
    onset,
    read_number,
    serve,
    tone,
    truncate,
    write_click_and_flash,
    write_clip,
)

FAST_START = {"movflags": "+faststart"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clip(folder):
    """4 s, 25 fps, numbered frames, noise."""
    return write_clip(folder / "clip.mp4", seconds=4, audio=noise(4), container_options=FAST_START)


def numbers(media):
    return [read_number(frame.numpy()) for frame in media.frames]


def on_screen(times, asked):
    """Brute force: the last frame that appears by each time, the first one before any does."""
    return [max([k for k, time in enumerate(times) if time <= t + 1e-9], default=0) for t in asked]


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
    # Lossy sound moves the clip's end, and with it the centres, by less than one frame of 40 ms.
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


def test_decode_media__a_still_picture_stands_for_the_asked_times(folder):
    media = decode_media(write_clip(folder / "still.mp4", num_frames=1, audio=tone(4.0)), num_frames=4)
    assert numbers(media) == [0, 0, 0, 0]
    assert media.frame_times.tolist() == pytest.approx([0.5, 1.5, 2.5, 3.5])


def test_decode_media__one_frame_without_sound(folder):
    media = decode_media(write_clip(folder / "one.mp4", num_frames=1, audio=False), num_frames=3, missing="mask")
    assert media.frames.shape[0] == 3 and media.waveform is None and media.duration == pytest.approx(0.04)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_decode_media__rotated_video_is_shown_upright(folder, rotation):
    def picture(number, time):
        frame = np.zeros((48, 64, 3), dtype=np.uint8)
        frame[:24, :32, 0] = 230  # red, top left
        frame[24:, 32:, 2] = 230  # blue, bottom right
        return frame

    path = write_clip(folder / f"rotated{rotation}.mp4", seconds=0.4, picture=picture, rotation=rotation)
    shown = decode_media(path, num_frames=1).frames[0].permute(1, 2, 0).numpy()
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0))
        expected = np.rot90(stored.to_ndarray(format="rgb24"), stored.rotation // 90)  # PyAV: counterclockwise
    assert (rotation == 0) == (stored.rotation == 0)
    # Frame 5 against frame 0 of the same picture: compression moves levels at the edges; a wrong turn moves them by
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
def test_decode_media__unusual_pictures_become_rgb(folder, name, options):
    media = decode_media(write_clip(folder / name, **options), num_frames=2)
    width, height = options.get("size", (64, 48))
    assert media.frames.shape == (2, 3, height, width) and numbers(media) == [12, 37]


def test_decode_media__colour_follows_the_files_matrix(folder):
    def red(number, time):
        return np.full((48, 64, 3), (200, 30, 30), dtype=np.uint8)

    media = decode_media(write_clip(folder / "red.mp4", seconds=0.4, picture=red), num_frames=1)
    # 4:2:0 at this quality keeps a flat colour to within 3 levels.
    assert (media.frames[0].float().mean(dim=(1, 2)) - torch.tensor([200.0, 30.0, 30.0])).abs().max() <= 3


def test_decode_media__short_side_scales_while_converting(clip):
    media = decode_media(clip, num_frames=2, short_side=24)
    assert media.frames.shape == (2, 3, 24, 32) and numbers(media) == [25, 75]


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


def test_decode_media__lossless_sound_keeps_its_place_to_the_sample(folder):
    audio = clicks([0.5], 1.0)
    path = write_clip(folder / "exact.mkv", seconds=1, audio=audio, audio_codec="pcm_s16le")
    media = decode_media(path)
    reference = resample(torch.from_numpy(audio[0]), 48000, 16000)
    assert len(media.waveform) == 16000
    # Two resamplers; half a sample of shift would show as an error of 0.3.
    assert (media.waveform - reference).abs().max() < 0.05


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_decode_media__late_sound_keeps_its_distance(folder, suffix):
    path = write_clip(folder / f"late.{suffix}", seconds=2, audio=clicks([0.2], 1.0), audio_start=0.5)
    media = decode_media(path)
    assert onset(media.waveform.numpy(), 16000) == pytest.approx(0.7, abs=0.02)
    assert media.waveform[:6400].abs().max() < 0.01


def test_decode_media__late_video_keeps_its_distance(folder):
    media = decode_media(write_clip(folder / "late_video.mp4", video_start=0.48), frame_times=[0.1, 0.5, 1.0])
    assert numbers(media) == [0, 0, 13]
    assert media.frame_times.tolist() == pytest.approx([0.48, 0.48, 1.0], abs=1e-6)


def test_decode_media__clip_lasts_as_long_as_the_longer_track(folder):
    longer_sound = decode_media(write_clip(folder / "a.mp4", seconds=1, audio=tone(2)), num_frames=4)
    assert longer_sound.duration == pytest.approx(2.0, abs=0.05)
    assert numbers(longer_sound) == [6, 18, 24, 24]
    longer_video = decode_media(write_clip(folder / "b.mp4", seconds=2, audio=tone(1)), num_frames=4)
    assert longer_video.duration == pytest.approx(2.0, abs=0.05)
    assert len(longer_video.waveform) == pytest.approx(16000, abs=1024)


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


def test_decode_media__short_and_silent_sound(folder):
    short = decode_media(write_clip(folder / "short.mp4", audio=tone(0.2)))
    assert 3200 <= len(short.waveform) < 3200 + 1024
    silent = decode_media(write_clip(folder / "silent.mp4", audio=np.zeros((2, 96000), dtype=np.float32)))
    assert silent.waveform.abs().max() == 0 and len(silent.waveform) >= 32000


def test_decode_media__not_a_number_in_the_sound_is_refused(folder):
    audio = tone(1)
    audio[0, 1000] = np.nan
    path = write_clip(folder / "nan.mkv", seconds=1, audio=audio, audio_codec="pcm_f32le")
    with pytest.raises(MediaError, match="nan.mkv.*NaN"):
        decode_media(path)
    with pytest.raises(MediaError, match="nan.mkv.*NaN.*encode it again"):
        list(iter_media(path))


def test_decode_media__segment_is_a_slice_of_the_whole(folder):
    path = write_clip(folder / "segment.mp4", seconds=8, audio=noise(8))
    whole = decode_media(path)
    part = decode_media(path, start=4.52, end=6.52, num_frames=4)
    assert part.duration == pytest.approx(2.0) and part.start == 4.52
    # Sound is resampled on the file's own grid, so that a segment is the very same samples.
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


class _Pipe(io.RawIOBase):
    """A file that can only be read forwards."""

    def __init__(self, data):
        self._buffer = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, target):
        return self._buffer.readinto(target)


def test_decode_media__takes_paths_addresses_bytes_and_file_objects(clip):
    expected = decode_media(clip, num_frames=3)
    data = clip.read_bytes()
    handle = clip.open("rb")
    sources = [str(clip), clip.as_uri(), data, bytearray(data), io.BytesIO(data), handle, _Pipe(data)]
    sources += [{"bytes": data, "path": None}, {"path": str(clip), "bytes": None}]
    for source in sources:
        media = decode_media(source, num_frames=3)
        assert torch.equal(media.frames, expected.frames) and torch.equal(media.waveform, expected.waveform)
    assert not handle.closed
    handle.close()


def test_decode_media__fsspec_addresses(clip):
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://clip.mp4", "wb") as file:
        file.write(clip.read_bytes())
    assert numbers(decode_media("memory://clip.mp4", num_frames=4)) == [12, 37, 62, 87]
    with pytest.raises(MediaError, match="memory://gone.mp4"):
        decode_media("memory://gone.mp4")


def test_decode_media__http_addresses(clip):
    with serve(clip.parent) as address:
        assert numbers(decode_media(f"{address}/clip.mp4", num_frames=4)) == [12, 37, 62, 87]
        with pytest.raises(MediaError, match="gone.mp4.*404"):
            decode_media(f"{address}/gone.mp4")
        (clip.parent / "list.mp4").write_bytes(b"#EXTM3U\nclip.mp4\n")
        with pytest.raises(MediaError, match="playlist"):
            decode_media(f"{address}/list.mp4")


@pytest.fixture(scope="module")
def index_at_the_end(folder):
    """A plain mp4 whose index lies farther from its start than FFmpeg would read ahead for it."""
    path = write_clip(folder / "index_at_the_end.mp4", seconds=4, audio=noise(4, 48000), audio_codec="pcm_s16le")
    data = path.read_bytes()
    assert data.index(b"moov") > data.index(b"mdat") + 200_000
    return path


@pytest.mark.parametrize("spool_bytes", [1 << 26, 1000])
@pytest.mark.parametrize("ranges", [True, False])
def test_decode_media__http_servers_with_and_without_ranges(index_at_the_end, ranges, spool_bytes, monkeypatch):
    from cavmae_sync_hf.model import media_source_cavmae_sync

    monkeypatch.setattr(media_source_cavmae_sync, "SPOOL_BYTES", spool_bytes)
    expected = decode_media(index_at_the_end, num_frames=4)
    with serve(index_at_the_end.parent, ranges) as address:
        media = decode_media(f"{address}/{index_at_the_end.name}", num_frames=4)
        chunks = list(iter_media(f"{address}/{index_at_the_end.name}", hop=1.0, num_frames=4))
    assert torch.equal(media.frames, expected.frames) and torch.equal(media.waveform, expected.waveform)
    assert _joined(chunks)[0] == numbers(expected)


def test_decode_media__http_transfer_that_breaks_off(index_at_the_end):
    with (
        serve(index_at_the_end.parent, ranges=False, stop_after=100_000) as address,
        pytest.raises(MediaError, match="index_at_the_end.mp4: .*(breaks off after 100000|cannot be read)"),
    ):
        decode_media(f"{address}/{index_at_the_end.name}")


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


def test_decode_media__unwanted_track_changes_neither_frames_nor_sound(folder):
    path = write_clip(folder / "both.mp4", seconds=1, audio=tone(2))
    both = decode_media(path, num_frames=4)
    assert torch.equal(decode_media(path, num_frames=4, want_audio=False).frames, both.frames)
    assert torch.equal(decode_media(path, want_video=False).waveform, both.waveform)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\x00" * 5000, "zero bytes"),
        (b"just some words\n" * 50, "is text"),
        (b"<!DOCTYPE html><html>404</html>", "is text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "PNG image"),
        (b"\xff\xd8\xff\xe0" + bytes(range(256)), "JPEG image"),
        (b"PK\x03\x04" + bytes(range(256)), "ZIP archive"),
        (np.random.default_rng(0).bytes(20000), "not a media file"),
    ],
)
def test_decode_media__what_is_no_media_file_is_named(tmp_path, data, reason):
    path = tmp_path / "thing.mp4"
    path.write_bytes(data)
    with pytest.raises(MediaError, match=f"thing.mp4.*{reason}"):
        decode_media(path)
    with pytest.raises(MediaError, match=reason):
        decode_media(data)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:4,\n{clip}\n#EXT-X-ENDLIST\n",
        "\ufeff\n#EXTM3U\n{clip}\n",
        "ffconcat version 1.0\nfile {clip}\n",
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 1 RTP/AVP 96\r\n",
        "<?xml version='1.0'?>\n<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
    ],
)
def test_decode_media__playlists_are_never_followed(folder, clip, text, monkeypatch):
    path = folder / "posing.mp4"
    path.write_text(text.format(clip=clip))
    monkeypatch.setattr(av, "open", lambda *a, **k: pytest.fail("FFmpeg was given a playlist"))
    with pytest.raises(MediaError, match="posing.mp4.*playlist"):
        decode_media(path)


def test_media_source__ffmpeg_itself_may_not_follow_references(folder, clip, monkeypatch):
    from cavmae_sync_hf.model import media_source_cavmae_sync

    path = folder / "concat.txt"
    path.write_text(f"ffconcat version 1.0\nfile {clip}\n")
    monkeypatch.setattr(
        media_source_cavmae_sync.MediaSource, "_sniff", lambda self, head: setattr(self, "_is_mp4", False)
    )
    with pytest.raises(MediaError, match="concat.txt"):
        decode_media(path)
    with pytest.raises(MediaNotFoundError):
        decode_media(f"concat:{clip}|{clip}")


def test_decode_media__missing_file_and_wrong_kinds_of_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.mp4: no such file"):
        decode_media(tmp_path / "gone.mp4")
    with pytest.raises(MediaError, match="folder"):
        decode_media(tmp_path)
    with pytest.raises(MediaError, match="not a media source"):
        decode_media(3)
    with pytest.raises(MediaError, match="mode 'rb'"):
        decode_media(io.StringIO("text"))


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


def _joined(chunks):
    frames = [number for chunk in chunks for number in numbers(chunk)]
    return frames, torch.cat([chunk.frame_times for chunk in chunks])


@pytest.mark.parametrize(
    ("argument", "value"), [("num_frames", "8"), ("hop", "x"), ("hop", 0), ("start", "abc"), ("end", "abc")]
)
def test_iter_media__impossible_arguments(clip, argument, value):
    with pytest.raises(ValueError, match=argument):
        next(iter_media(clip, **{argument: value}))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_iter_media__agrees_with_decode_media(folder, suffix):
    path = write_clip(folder / f"stream.{suffix}", seconds=8, audio=noise(8), audio_codec="flac")
    whole = decode_media(path, num_frames=16)
    chunks = list(iter_media(path, hop=0.5, num_frames=5, context=0.7))
    frames, times = _joined(chunks)
    assert frames == numbers(whole) and [len(chunk.frame_times) for chunk in chunks] == [5, 5, 5, 1]
    assert torch.equal(times, whole.frame_times)
    for chunk in chunks:
        first = chunk.waveform_start * 16000
        assert torch.equal(chunk.waveform, whole.waveform[first : first + len(chunk.waveform)])
        assert chunk.waveform_start <= max(0.0, float(chunk.frame_times[0]) - 0.7)
        assert first + len(chunk.waveform) >= min(128000, (float(chunk.frame_times[-1]) + 0.7) * 16000)


def test_iter_media__span_of_the_file(folder):
    path = write_clip(folder / "span.mp4", seconds=8, audio=noise(8))
    part = decode_media(path, start=4.3, end=6.3, num_frames=4)
    chunks = list(iter_media(path, hop=0.5, num_frames=3, start=4.3, end=6.3))
    frames, times = _joined(chunks)
    assert frames == numbers(part) and torch.allclose(times, part.frame_times)
    assert torch.equal(chunks[0].waveform, part.waveform)
    with pytest.raises(MediaError, match="span.mp4"):
        list(iter_media(path, start=20.0))


def test_iter_media__one_track_only_or_shorter(folder):
    mute = write_clip(folder / "stream_mute.mp4", seconds=2, audio=False)
    frames, _ = _joined(list(iter_media(mute, hop=0.5, num_frames=3, missing="mask")))
    assert frames == [6, 18, 31, 43]
    blind = write_clip(folder / "stream_blind.m4a", video=False, audio=noise(3))
    chunks = list(iter_media(blind, hop=0.5, num_frames=4, missing="mask"))
    asked = torch.cat([chunk.asked_times for chunk in chunks]).tolist()
    assert asked == pytest.approx([k / 2 + 0.25 for k in range(6)])
    short = write_clip(folder / "stream_short.mp4", seconds=1, audio=noise(3))
    frames, _ = _joined(list(iter_media(short, hop=0.5, num_frames=4)))
    assert frames == [6, 18, 24, 24, 24, 24]


def test_iter_media__holds_only_what_the_next_chunk_needs(folder, monkeypatch):
    # A still picture with 40 s of sound: nothing may wait for a second frame that never comes.
    path = write_clip(folder / "podcast.mp4", num_frames=1, audio=noise(40, 16000), rate=16000)
    position = [0.0]
    packets = MediaReader.packets

    def watched(*arguments):
        for packet in packets(*arguments):
            position[0] = packet.time or position[0]
            yield packet

    monkeypatch.setattr(MediaReader, "packets", watched)
    read_ahead = []
    for chunk in iter_media(path, hop=1.0, num_frames=4, context=1.0):
        read_ahead.append(position[0] - float(chunk.asked_times[-1]))
        assert chunk.frames.shape[0] == 4 and len(chunk.waveform) <= 7 * 16000
    # The sound runs ahead by the distance at which a silent video track counts as ended, plus resampling blocks.
    assert len(read_ahead) == 10 and max(read_ahead) < INTERLEAVE_SECONDS + 3


def test_iter_media__video_that_pauses_for_long_goes_on(folder):
    # Slides: after a pause longer than tracks may lie apart, frames are still built from those before it.
    times = [0.0, 1.0, 2.0, 14.0, 15.0, 30.0, 30.5]
    path = write_clip(folder / "slides.mp4", frame_times=times, audio=noise(32, 16000), rate=16000, gop=100)
    chunks = list(iter_media(path, hop=1.0, num_frames=4, context=1.0))
    frames, _ = _joined(chunks)
    assert frames == on_screen(times, [k + 0.5 for k in range(len(frames))]) and len(frames) == 32
