"""Media that point at other files or addresses: nothing that they name is opened."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from cavmae_sync_hf import MediaError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, probe_media
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from helpers.clips import numbers, write_clip


@contextlib.contextmanager
def listening() -> Iterator[tuple[int, list[bytes]]]:
    """A port, and what came to it."""
    came: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        ended = threading.Event()

        def accept() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(1)
                        came.append(connection.recv(100))
                        connection.sendall(b"HTTP/1.0 404 no\r\n\r\n")

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1], came
        finally:
            ended.set()
            thread.join()


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{url}.ts\n#EXT-X-ENDLIST\n"
TEXTS = {
    "hls": HLS,
    "hls behind a mark": f"\ufeff{HLS}",
    "hls behind lines": f"\n \t\n{HLS}",
    "hls with a key": HLS.replace("#EXTINF", '#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF'),
    "dash": '<?xml version="1.0"?><MPD><Period><AdaptationSet><BaseURL>{url}</BaseURL></AdaptationSet></Period></MPD>',
    "smooth": '<?xml version="1.0"?><!-- x --><smil><video src="{url}"/></smil>',
    "concat": "ffconcat version 1.0\nfile '{url}'\n",
    "session": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video {port} RTP/AVP 96\r\n",
    "pls": "[playlist]\nFile1={url}\nNumberOfEntries=1\n",
    "asx": '<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
    "asf reference": "[Reference]\r\nRef1={url}\r\n",
    "xspf": '<?xml version="1.0"?><playlist><track><location>{url}</location></track></playlist>',
    "ram": "{url}\nrtsp://127.0.0.1:{port}/x\n",
    "shortcut": "[InternetShortcut]\nURL={url}\n",
    "script": 'DirectShowSource("{url}")\n',
    "vector image": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>',
    "subtitles": "1\n00:00:00,000 --> 00:00:09,000\n<img src='{url}'>\n",
    "vobsub": "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:01:000, filepos: 000000000\n",
    "packing list": '<?xml version="1.0"?><CompositionPlaylist><Id>{url}</Id></CompositionPlaylist>',
}


def test_listening__hears_who_comes():
    with listening() as (port, came):
        with contextlib.suppress(av.error.FFmpegError):
            av.open(f"http://127.0.0.1:{port}/x", timeout=2)
        assert came


@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".ts"])
@pytest.mark.parametrize("kind", TEXTS)
def test_lists_of_media__reach_nobody(tmp_path, kind, suffix):
    with listening() as (port, came):
        text = TEXTS[kind].format(url=f"http://127.0.0.1:{port}/clip", port=port)
        for encoding in ("utf-8", "utf-16"):
            path = tmp_path / f"{encoding}{suffix}"
            path.write_text(text, encoding=encoding)
            for source in (path, path.read_bytes()):
                for read in (decode_media, probe_media, lambda source: list(iter_media(source, hop=1.0))):
                    with pytest.raises(MediaError):
                        read(source)
        assert came == []


PROTOCOLS = (
    "concat:{clip}|{clip}", "subfile,,start,0,end,0,,:{clip}", "crypto:{clip}", "cache:{clip}", "async:{clip}",
    "pipe:0", "fd:0", "data:video/mp4;base64,AAAA", "tcp://127.0.0.1:{port}", "rtmp://127.0.0.1:{port}/x",
    "rtsp://127.0.0.1:{port}/x", "udp://127.0.0.1:{port}", "gopher://127.0.0.1:{port}/x", "%03d.mp4",
)  # fmt: skip


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_of_ffmpeg__are_no_sources(tmp_path, name):
    clip = write_clip(tmp_path / "001.mp4", seconds=0.2)
    with listening() as (port, came):
        with pytest.raises(MediaError):
            decode_media(name.format(clip=clip, port=port))
        assert came == []


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of the boxes in a row."""
    while data:
        size, name = struct.unpack(">I4s", data[:8])
        yield name, data[8:size]
        data = data[size:]


REFERENCES = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")


def with_reference(content: bytes, reference: bytes, path: tuple[bytes, ...] = REFERENCES) -> bytes:
    """The boxes in a row, their references to data replaced."""
    made = b""
    for name, inner in boxes(content):
        if path and name == path[0]:
            rest = path[1:]
            inner = with_reference(inner, reference, rest) if rest else struct.pack(">II", 0, 1) + reference
        made += box(name, inner)
    return made


def alias(target: Path) -> bytes:
    """A reference to another file as old Macintosh movies hold it, with its absolute path."""
    name = target.name.encode()
    record = bytes(10) + bytes([1]) + b"X".ljust(27, b"\0") + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0")
    record += bytes(16) + struct.pack(">hh", 1, 1) + bytes(16)
    absolute = f"X:{str(target).lstrip('/').replace('/', ':')}".encode()
    record += struct.pack(">hh", 2, len(absolute)) + absolute + bytes(len(absolute) % 2) + struct.pack(">hh", -1, 0)
    return box(b"alis", bytes(4) + record)


@pytest.fixture
def pointing(tmp_path) -> Path:
    """A movie without data of its own, beside the file that has them."""
    full = write_clip(tmp_path / "data.mov", seconds=1.0)
    data = full.read_bytes()
    index = data.index(b"moov") - 4
    assert data.index(b"mdat") < index
    path = tmp_path / "pointing.mov"
    empty = data[:48] + bytes(index - 48)  # the head, then nothing where the data were
    path.write_bytes(with_reference(empty + data[index:], alias(full)))
    return path


def decoded_by_ffmpeg(path: Path, **options: str) -> int:
    """Frames that FFmpeg decodes of a file."""
    with av.open(str(path), options=options, metadata_errors="ignore") as container:
        with contextlib.suppress(av.error.FFmpegError):
            return sum(1 for _ in container.decode(video=0))
        return 0


def test_movie_that_points_elsewhere__is_not_followed(pointing):
    followed = {"enable_drefs": "1", "use_absolute_path": "1"}
    assert decoded_by_ffmpeg(pointing, **followed) == 25 and decoded_by_ffmpeg(pointing) == 0
    for read in (decode_media, lambda path: list(iter_media(path, hop=0.2))):
        with pytest.raises(MediaError, match="pointing.mov"):
            read(pointing)
    assert len(numbers(decode_media(pointing.with_name("data.mov"), num_frames=4))) == 4
