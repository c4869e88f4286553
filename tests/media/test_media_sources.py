"""What may be opened: paths, addresses, bytes and file objects; playlists and what is no media file are refused."""

import bz2
import errno
import gzip
import io
import lzma
import os
import pickle
import socket

import av
import numpy as np
import pytest
import torch

from cavmae_sync_hf import MediaError, MediaNotFoundError
from cavmae_sync_hf.model import media_source_cavmae_sync
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, probe_media
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from helpers.clips import RATE, joined, noise, numbers, serve, write_clip


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
    monkeypatch.setattr(media_source_cavmae_sync, "SPOOL_BYTES", spool_bytes)
    expected = decode_media(index_at_the_end, num_frames=4)
    with serve(index_at_the_end.parent, ranges) as address:
        media = decode_media(f"{address}/{index_at_the_end.name}", num_frames=4)
        chunks = list(iter_media(f"{address}/{index_at_the_end.name}", hop=1.0, num_frames=4))
    assert torch.equal(media.frames, expected.frames) and torch.equal(media.waveform, expected.waveform)
    assert joined(chunks)[0] == numbers(expected)


def test_decode_media__http_transfer_that_breaks_off(index_at_the_end):
    with (
        serve(index_at_the_end.parent, ranges=False, stop_after=100_000) as address,
        pytest.raises(MediaError, match="index_at_the_end.mp4: .*(breaks off after 100000|cannot be read)"),
    ):
        decode_media(f"{address}/{index_at_the_end.name}")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\x00" * 5000, "zero bytes"),
        (b"just some words\n" * 50, r'is text, not a media file; it begins with "just some words\\njust'),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (("just some words\n" * 9).encode("utf-16"), "is text"),
        (b"  \n<HTML><body>502 Bad Gateway</body></HTML>", "web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "PNG image"),
        (b"\xff\xd8\xff\xe0" + bytes(range(256)), "JPEG image"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(200), "HEIF"),
        (b"PK\x03\x04" + bytes(range(256)), "ZIP archive.*unpack"),
        (gzip.compress(b"a video", mtime=0), "gzip archive"),
        (bz2.compress(b"a video"), "bzip2 archive"),
        (lzma.compress(b"a video"), "xz archive"),
        (b"(\xb5/\xfd" + bytes(range(256)), "Zstandard archive"),
        (b"7z\xbc\xaf'\x1c" + bytes(range(256)), "7z archive"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(range(256)), "RAR archive"),
        (b"clip.mp4".ljust(257, b"\x00") + b"ustar\x0000" + bytes(248), "TAR archive"),
        (b"SQLite format 3\x00" + bytes(range(256)), "SQLite"),
        (b"\x7fELF\x02\x01\x01" + bytes(range(256)), "a program"),
        (b"MZ" + bytes(126) + b"PE\x00\x00" + bytes(range(256)), "a program"),
        (pickle.dumps({"a": np.arange(20)}), "pickle"),
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
    ("suffix", "options"),
    [
        ("latm", {"audio_codec": "aac"}),
        ("voc", {"audio_codec": "pcm_u8"}),
        ("sox", {"audio_codec": "pcm_s32le"}),
        ("ircam", {"audio_codec": "pcm_s16le"}),
        ("g722", {"audio_codec": "g722", "rate": 16000}),
        ("swf", {"video_codec": "flv", "audio_codec": "libmp3lame", "rate": 44100}),
        ("h263", {"video_codec": "h263", "size": (176, 144)}),
    ],
)
def test_decode_media__bare_streams_and_old_containers_are_read(tmp_path, suffix, options):
    has = {kind: f"{kind}_codec" in options for kind in ("audio", "video")}
    audio = noise(1.0, options.get("rate", RATE), channels=1) if has["audio"] else False
    path = write_clip(tmp_path / f"clip.{suffix}", seconds=1.0, video=has["video"], audio=audio, **options)
    media = decode_media(path, num_frames=4, missing="mask")
    assert {"audio": media.waveform is not None, "video": media.frames is not None} == has
    assert media.duration == pytest.approx(1.0, abs=0.2)


def test_decode_media__padding_before_the_first_packet(tmp_path):
    clip = write_clip(tmp_path / "clip.mpg", video_codec="mpeg2video", audio_codec="mp2", seconds=1.0)
    padded = tmp_path / "padded.mpg"
    padded.write_bytes(bytes(6000) + clip.read_bytes())
    assert torch.equal(decode_media(padded, num_frames=4).frames, decode_media(clip, num_frames=4).frames)


def test_container_formats__are_known_to_ffmpeg_and_name_no_other_files():
    known = {name for form in av.formats_available for name in form.split(",")}
    names = set(media_source_cavmae_sync.CONTAINER_FORMATS.split(","))
    assert names <= known
    assert not names & {"hls", "dash", "concat", "sdp", "rtsp", "rtp", "image2", "lavfi", "data", "imf"}


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:4,\n{clip}\n#EXT-X-ENDLIST\n",
        "\ufeff\n#EXTM3U\n{clip}\n",
        "utf-16:#EXTM3U\n{clip}\n",
        "ffconcat version 1.0\nfile {clip}\n",
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 1 RTP/AVP 96\r\n",
        "<?xml version='1.0'?>\n<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
    ],
)
def test_decode_media__playlists_are_never_followed(folder, clip, text, monkeypatch):
    path = folder / "posing.mp4"
    encoding, text = ("utf-16", text[7:]) if text.startswith("utf-16:") else ("utf-8", text)
    path.write_text(text.format(clip=clip), encoding=encoding)
    monkeypatch.setattr(av, "open", lambda *a, **k: pytest.fail("FFmpeg was given a playlist"))
    with pytest.raises(MediaError, match="posing.mp4.*playlist"):
        decode_media(path)


def test_media_source__ffmpeg_itself_may_not_follow_references(folder, clip, monkeypatch):
    path = folder / "concat.txt"
    path.write_text(f"ffconcat version 1.0\nfile {clip}\n")
    monkeypatch.setattr(media_source_cavmae_sync.MediaSource, "_sniff", lambda self, head: None)
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX files")
@pytest.mark.parametrize("kind", ["pipe", "zeros", "randomness", "socket"])
def test_decode_media__what_may_never_end_is_not_opened(tmp_path, kind):
    path = tmp_path / "endless.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.close()
    else:
        path.symlink_to({"zeros": "/dev/zero", "randomness": "/dev/urandom"}[kind])

    for read in (decode_media, probe_media):
        with pytest.raises(MediaError, match=r"endless.mp4: is a pipe or a device, not a file"):
            read(path)


class Endless(io.RawIOBase):
    """Gives bytes for ever, and cannot go back."""

    def __init__(self, block: bytes) -> None:
        self.block = block

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self.block[:size]


def test_decode_media__file_object_without_end_is_refused(clip, monkeypatch):
    with pytest.raises(MediaError, match="zero bytes"):  # without reading on
        decode_media(Endless(b"\0" * 4096))
    monkeypatch.setattr(media_source_cavmae_sync, "MOST_UNKNOWN_BYTES", 1 << 24)
    with pytest.raises(MediaError, match="has no end in 0.015625 GiB"):
        decode_media(Endless(clip.read_bytes()))


@pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_decode_media__file_that_cannot_be_looked_at_is_named_with_its_reason(clip, monkeypatch, code):
    def fail(path, **_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(media_source_cavmae_sync.os, "stat", fail)
    with pytest.raises(MediaError, match=f"cannot be read .{os.strerror(code)}") as caught:
        decode_media(clip)
    assert not isinstance(caught.value, FileNotFoundError)
