"""Of several tracks of a kind, the one that a player plays is read, or the audio track that was asked for."""

import itertools
import struct
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from cavmae_sync_hf import MediaWarning, MissingTrackError
from cavmae_sync_hf.model.feature_extraction_cavmae_sync import load_waveform
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, probe_media
from cavmae_sync_hf.model.media_selection_cavmae_sync import same_language
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from helpers.clips import loudest_frequency, numbered_frame, numbers, tone, write_audio_tracks, write_clip

NONE, DEFAULT = Disposition(0), Disposition.default


def heard(path, **options) -> int:
    """Number of the track that `write_audio_tracks` gave the tone that is heard; all ways of reading agree."""
    whole = decode_media(path, num_frames=2, **options).waveform
    alone = decode_media(path, want_video=False, **options).waveform
    streamed = next(iter(iter_media(path, hop=0.25, num_frames=4, context=0.5, **options))).waveform
    numbers_heard = {round(loudest_frequency(waveform) / 300) - 1 for waveform in (whole, alone, streamed)}
    assert len(numbers_heard) == 1
    if not options:
        assert [track.is_default for track in probe_media(path).audio_tracks].index(True) in numbers_heard
    return numbers_heard.pop()


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov"])
@pytest.mark.parametrize(
    ("dispositions", "expected"),
    [
        ((NONE, DEFAULT), 1),
        ((DEFAULT, NONE), 0),
        ((NONE, NONE, DEFAULT), 2),
        ((Disposition.comment, DEFAULT), 1),
        ((DEFAULT, DEFAULT | Disposition.comment), 0),
    ],
)
def test_decode_media__hears_the_default_track(folder, suffix, dispositions, expected):
    path = folder / f"{'_'.join(str(int(value)) for value in dispositions)}.{suffix}"
    assert heard(write_audio_tracks(path, [{"disposition": value} for value in dispositions])) == expected


@pytest.mark.parametrize(
    ("tracks", "expected"),
    [
        # FFmpeg's own choice goes by bit rate, and its command line's by channels.
        ([{"channels": 1}, {"channels": 2}], 0),
        ([{"channels": 2}, {"channels": 1}], 0),
        ([{"disposition": Disposition.comment, "channels": 2}, {}], 1),
        ([{"disposition": Disposition.visual_impaired, "channels": 2}, {}], 1),
        ([{"disposition": Disposition.hearing_impaired}, {"disposition": Disposition.visual_impaired}, {}], 2),
        ([{"disposition": Disposition.comment}, {"disposition": Disposition.visual_impaired}], 0),
        ([{"disposition": Disposition.dub}, {"disposition": Disposition.original}], 0),
    ],
)
def test_decode_media__without_a_default_track_hears_the_first_one_for_everybody(folder, tracks, expected):
    path = write_audio_tracks(folder / "none.mkv", [{"disposition": NONE} | track for track in tracks])
    assert heard(path) == expected


def test_decode_media__passes_over_a_track_without_a_packet(folder):
    path = write_audio_tracks(folder / "empty_first.ts", [{"audio": tone(0.0, channels=1)}, {}])
    assert len(probe_media(path).audio_tracks) == 2 and heard(path) == 1


@pytest.fixture(scope="module")
def film(folder):
    """Three tracks in two languages."""
    tracks = [
        {"language": "eng", "title": "Stereo", "channels": 2},
        {"language": "ger", "disposition": Disposition.visual_impaired, "title": "Hörfassung"},
        {"language": "deu", "disposition": NONE, "codec": "flac"},
    ]
    return write_audio_tracks(folder / "film.mkv", tracks)


@pytest.mark.parametrize(
    ("audio_track", "expected"),
    [(0, 0), (1, 1), (2, 2), ("en", 0), ("eng", 0), ("EN-gb", 0), ("de", 2), ("deu", 2), ("ger", 2), ("de_CH", 2)],
)
def test_decode_media__audio_track_chooses_by_number_or_language(film, audio_track, expected):
    assert heard(film, audio_track=audio_track) == expected


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
@pytest.mark.parametrize("audio_track", [1, "fr", "fre"])
def test_decode_media__audio_track_in_other_containers(folder, suffix, audio_track):
    path = write_audio_tracks(folder / f"two.{suffix}", [{"language": "eng"}, {"language": "fra"}])
    assert heard(path, audio_track=audio_track) == 1


def test_probe_media__lists_the_audio_tracks(film):
    first, second, third = probe_media(film).audio_tracks
    assert (first.number, first.language, first.title, first.codec) == (0, "eng", "Stereo", "aac")
    assert (first.channels, first.sampling_rate, first.is_default) == (2, 48000, True)
    assert (second.number, second.language, second.title, second.channels) == (1, "ger", "Hörfassung", 1)
    assert (third.language, third.title, third.codec, third.is_default) == ("deu", "", "flac", False)


@pytest.mark.parametrize("read", [decode_media, lambda *args, **options: list(iter_media(*args, **options))])
@pytest.mark.parametrize("audio_track", [3, "fr", "german"])
def test_decode_media__an_audio_track_that_is_not_there(film, read, audio_track):
    with pytest.raises(MissingTrackError) as caught:
        read(film, audio_track=audio_track)
    text = str(caught.value)
    assert caught.value.track == "audio" and "film.mkv" in text and repr(audio_track) in text
    assert '0 (eng, "Stereo", aac, 2 channels, default), 1 (ger, "Hörfassung", aac, 1 channel), 2 (deu, flac' in text


def test_decode_media__a_file_of_other_audio_tracks_is_not_masked(film, folder):
    # Silence would be taken for what was asked for.
    with pytest.raises(MissingTrackError, match="'fr'"):
        decode_media(film, audio_track="fr", missing="mask", num_frames=2)
    mute = write_clip(folder / "without_audio.mp4", seconds=1, audio=False)
    media = decode_media(mute, audio_track="fr", missing="mask", num_frames=2)
    assert media.waveform is None and len(media.frames) == 2


def test_decode_media__frames_alone_heed_no_audio_track(film):
    assert len(decode_media(film, audio_track="fr", want_audio=False, num_frames=2).frames) == 2


def test_decode_media__a_file_without_audio_says_so_whatever_track_is_asked_for(folder):
    path = write_clip(folder / "mute.mp4", seconds=1, audio=False)
    with pytest.raises(MissingTrackError, match="has no audio track .it has video"):
        decode_media(path, audio_track="de")


@pytest.mark.parametrize("value", [-1, 1.5, True, "", "d", "2", [0], "de;en"])
def test_decode_media__refuses_a_choice_that_can_be_none(film, value):
    for read in (decode_media, lambda *args, **options: next(iter_media(*args, **options))):
        with pytest.raises(ValueError, match="audio_track is .*counted from 0, or a language"):
            read(film, audio_track=value)


def test_same_language__codes_of_two_and_three_letters():
    for codes in ("de deu ger de-AT", "fr fra fre", "zh zho chi zh-Hans", "pt por pt_BR", "nds nds-DE"):
        assert all(same_language(codes.split()[0], code) for code in codes.split())
    assert not same_language("de", "dan") and not same_language("nl", "no")


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("main", [0, 1])
def test_decode_media__shows_the_default_video_track(folder, suffix, main):
    path = folder / f"angles{main}.{suffix}"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25, options={"crf": str(10 + 20 * k)}) for k in range(2)]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.disposition = DEFAULT if number == main else NONE
        packets = []
        for number, stream in enumerate(streams):
            for index in range(25):
                frame = av.VideoFrame.from_ndarray(numbered_frame(100 * number + index), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    asked = [0.1, 0.5]
    expected = [100 * main + int(time * 25) for time in asked]
    assert numbers(decode_media(path, frame_times=asked, want_audio=False)) == expected
    assert [value // 100 for chunk in iter_media(path, hop=0.5, want_audio=False) for value in numbers(chunk)] == [
        main,
        main,
    ]


def with_cover(path, *, video: bool, audio_codec: str = "aac"):
    """A file with a cover image beside its audio, and perhaps a real video."""
    image = av.CodecContext.create("mjpeg", "w")
    image.width, image.height, image.pix_fmt, image.time_base = 32, 32, "yuvj420p", Fraction(1, 25)
    jpeg = image.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 200, np.uint8), format="rgb24"))
    source = write_clip(path.with_name(f"{path.name}.mkv"), seconds=2, video=video, audio_codec=audio_codec)
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        copies = {stream.index: container.add_stream_from_template(stream) for stream in given.streams}
        cover = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        for packet in jpeg:
            packet.stream = cover
            container.mux(packet)
        for packet in given.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                container.mux(packet)
    with av.open(str(path)) as container:
        assert any(Disposition.attached_pic in stream.disposition for stream in container.streams.video)
    return path


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "aac"), ("mp3", "libmp3lame"), ("flac", "flac")])
def test_decode_media__a_music_file_with_a_cover_has_no_video(folder, suffix, codec):
    path = with_cover(folder / f"song.{suffix}", video=False, audio_codec=codec)
    info = probe_media(path)
    assert info.has_audio and not info.has_video and info.duration == pytest.approx(2.0, abs=0.05)
    for read in (decode_media, lambda source: list(iter_media(source))):
        with pytest.raises(MissingTrackError, match="has no video track .it has audio"):
            read(path)
    media = decode_media(path, missing="mask")
    assert media.frames is None and loudest_frequency(media.waveform) == pytest.approx(440, abs=2)


def test_decode_media__a_video_with_a_cover_shows_the_video(folder):
    path = with_cover(folder / "film_with_cover.mp4", video=True)
    assert probe_media(path).width == 64
    assert numbers(decode_media(path, frame_times=[0.5, 1.5])) == [12, 37]
    assert [number for chunk in iter_media(path, hop=1.0) for number in numbers(chunk)] == [12, 37]


@pytest.mark.parametrize("late", ["audio", "video"])
@pytest.mark.parametrize(
    ("suffix", "audio_codec", "video_codec"),
    [
        ("ts", "aac", "libx264"),
        ("ts", "mp2", "mpeg2video"),
        ("mpg", "mp2", "mpeg1video"),
        ("flv", "aac", "libx264"),
        ("mkv", "aac", "libx264"),
    ],
)
def test_probe_media__finds_a_track_that_begins_late(folder, suffix, audio_codec, video_codec, late):
    length = 16.0
    begin = {"audio": 0.0, "video": 0.0} | {late: 12.0}
    path = write_clip(
        folder / f"{late}_late_{video_codec}.{suffix}",
        audio=tone(length - begin["audio"], channels=1),
        audio_codec=audio_codec,
        audio_start=begin["audio"],
        num_frames=round(25 * (length - begin["video"])),
        video_codec=video_codec,
        video_start=begin["video"],
    )
    info = probe_media(path)
    assert info.has_audio and info.has_video and info.sampling_rate == 48000 and info.width == 64
    media = decode_media(path, num_frames=8)
    assert media.duration == pytest.approx(length, abs=0.1)
    loud = np.flatnonzero(np.abs(media.waveform.numpy()) > 0.1) / media.sampling_rate
    assert loud[0] == pytest.approx(begin["audio"], abs=0.05)
    assert loud[-1] == pytest.approx(length, abs=0.1)
    chunks = list(iter_media(path, hop=1.0, num_frames=4, context=1.0))
    assert sum(len(chunk.frame_times) for chunk in chunks) == length
    assert np.abs(chunks[-1].waveform.numpy()).max() > 0.1


@pytest.mark.parametrize("suffix", ["ts", "mpg", "flv"])
def test_decode_media__a_file_that_lacks_a_track_for_good_says_so(folder, suffix):
    codec = "mpeg1video" if suffix == "mpg" else "libx264"
    path = write_clip(folder / f"no_audio.{suffix}", seconds=12, audio=False, video_codec=codec)
    assert not probe_media(path).has_audio
    with pytest.raises(MissingTrackError, match="has no audio track"):
        decode_media(path)


def test_decode_media__a_file_of_data_alone_has_neither(folder):
    path = folder / "data.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_data_stream("klv")
        for time in range(0, 9000, 900):
            packet = av.Packet(bytes(range(64)))
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 90000), time, time
            container.mux(packet)
    for read in (decode_media, probe_media, lambda source: list(iter_media(source, missing="mask"))):
        with pytest.raises(MissingTrackError, match="neither audio nor video"):
            read(path)


def one_sided(silent: int, loud: float = 0.3, hiss: float = 0.0, channels: int = 2) -> np.ndarray:
    """A second of tones, but for one channel with at most noise of this peak."""
    samples = tone(1.0, channels=channels) / 0.3 * loud
    samples[silent] = hiss * np.sin(np.arange(samples.shape[1]) / 9)
    return samples


@pytest.mark.parametrize(
    ("samples", "is_told"),
    [
        (one_sided(0), True),
        (one_sided(0, hiss=0.0005), True),
        (one_sided(0, channels=6), True),
        (one_sided(1), False),
        (one_sided(0, hiss=0.01), False),
        (one_sided(0, loud=0.01), False),
        (np.zeros((2, 48000), np.float32), False),
        (tone(1.0), False),
        (one_sided(0)[:1], False),
    ],
)
@pytest.mark.parametrize(
    ("suffix", "codec"), [("wav", "pcm_s16le"), ("wav", "pcm_u8"), ("mkv", "aac"), ("mkv", "flac")]
)
def test_decode_media__a_silent_first_channel_beside_a_loud_one_is_told(folder, suffix, codec, samples, is_told):
    if codec == "pcm_u8" and 0 < np.abs(samples[0]).max() < 0.005:
        pytest.skip("8 bits do not hold so little")
    path = write_clip(folder / f"sides_{codec}.{suffix}", video=False, audio=samples, audio_codec=codec)
    readers = (
        lambda channel: decode_media(path, want_video=False, channel=channel),
        lambda channel: list(iter_media(path, want_video=False, hop=0.25, channel=channel)),
        lambda channel: load_waveform(samples, 48000, to_rate=16000, channel=channel, name=str(path)),
    )
    for read in readers:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            read("first")
            read("mean")
        told = [entry.message for entry in seen if isinstance(entry.message, MediaWarning)]
        assert len(told) == is_told
        if told:
            assert (
                str(told[0]).startswith(f"{path}: the first channel of its audio") and told[0].hints[0].value == "mean"
            )
            assert str(told[0]).endswith("Pass channel='mean' to hear all channels.")


def joined_programs(path, *programs):
    """A transport stream of several programs, each a list of `write_audio_tracks` and whether it has a video."""
    packets, entries = [], b""
    for number, (tracks, video) in enumerate(programs, start=1):
        part = path.with_name(f"{path.stem}{number}.ts")
        options = {"mpegts_start_pid": str(256 * number), "mpegts_pmt_start_pid": str(32 + number)}
        write_audio_tracks(part, tracks, video=video, container_options=options | {"mpegts_service_id": str(number)})
        data = part.read_bytes()
        packets.append([data[first : first + 188] for first in range(0, len(data), 188)])
        entries += struct.pack(">HH", number, 0xE000 | 32 + number)
    section = b"\x00" + struct.pack(">H", 0xB000 | len(entries) + 9) + b"\x00\x01\xc1\x00\x00" + entries
    checksum = 0xFFFFFFFF  # CRC-32 of MPEG-2 systems
    for byte in section:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
    table = (b"\x47\x40\x00\x10\x00" + section + struct.pack(">I", checksum)).ljust(188, b"\xff")
    others = [[packet for packet in part if (packet[1] & 0x1F) << 8 | packet[2]] for part in packets]
    mixed = [packet for row in itertools.zip_longest(*others) for packet in row if packet is not None]
    path.write_bytes(table + b"".join(mixed))
    return path


@pytest.mark.parametrize("first", ["radio", "television"])
def test_decode_media__hears_the_program_that_it_shows(folder, first):
    radio = ([{"audio": tone(1.0, 48000, 1500, 1)}], False)
    television = ([{"audio": tone(1.0, 48000, 600, 1)}, {"audio": tone(1.0, 48000, 900, 2)[:1]}], True)
    programs = (radio, television) if first == "radio" else (television, radio)
    path = joined_programs(folder / f"{first}.ts", *programs)
    assert len(probe_media(path).audio_tracks) == 3
    assert loudest_frequency(decode_media(path, num_frames=2).waveform) == pytest.approx(600, abs=3)
