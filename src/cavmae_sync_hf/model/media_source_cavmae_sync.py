# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Media files are opened safely.

A path, URL, bytes or file object becomes a `MediaSource`, which looks at the first bytes before FFmpeg does: playlists
and session descriptions (which would make FFmpeg read *other* files and addresses), images, archives and text are
refused with a message. FFmpeg itself is then limited to the demuxers of real containers.
"""

import http.client
import io
import math
import os
import stat
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, BinaryIO

from .errors_cavmae_sync import MediaError, MediaNotFoundError, printable

try:
    import av
    import av.container
except ImportError:  # the folder must load without PyAV; decoding is what needs it
    av = None  # type: ignore[assignment]

try:
    import fsspec
except ImportError:
    fsspec = None

# FFmpeg's names of the demuxers of self-contained media. Left out on purpose: hls, dash, concat, sdp, image2, lavfi,
# ...
CONTAINER_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpegts,mpeg,mpegvideo,asf,ogg,wav,w64,mp3,flac,aac,ac3,eac3,"
    "dts,aiff,au,caf,amr,gif,apng,mxf,nut,h264,hevc,m4v,av1,obu,ivf,rm,dv,wtv,yuv4mpegpipe,ape,tta,wv,"
    "loas,mlp,truehd,dtshd,iamf,h261,h263,vc1,vvc,mjpeg,dirac,cavsvideo,dnxhd,swf,nsv,nuv,pva,ty,amrnb,amrwb,"
    "voc,sox,ircam,nistsphere,g722,g723_1,gsm,ilbc,qcp,oma,mpc,mpc8,tak,shn,dsf,xwma,aea,spdif,qoa"
)
# The largest frame that is decoded: 8192 x 8192. Levels of H.264, HEVC and AV1 allow half of it at most, and a file of
# some kilobytes can ask for any size.
MAX_FRAME_PIXELS = 1 << 26
SNIFF_BYTES = 4096
HTTP_TIMEOUT_SECONDS = 30.0
# Containers without a list of tracks: FFmpeg looks for them in the first seconds, and further where one is lacking.
_UNLISTED_CONTAINERS = frozenset({"mpegts", "mpeg", "flv", "live_flv"})
_FURTHER_BYTES = 50_000_000
_FURTHER_SECONDS = 90
# What can only be read forwards is copied: up to this many bytes in memory, more on disk.
SPOOL_BYTES = 1 << 26
_COPY_BYTES = 1 << 20
# More bytes from what does not say how many come are taken for a source without end.
MOST_UNKNOWN_BYTES = 1 << 32

_PLAYLIST_STARTS = (
    b"#extm3u",
    b"ffconcat",
    b"v=0\r",
    b"v=0\n",
    b"[playlist]",
    b"[reference]",
    b"<asx",
    b"<smil",
    b"<mpd",
)
_PLAYLIST_TAGS = (b"<mpd", b"<smil", b"<asx", b"<playlist")
_PNG = b"\x89PNG\r\n\x1a\n"
_IMAGES = (
    (_PNG, "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"8BPS", "a Photoshop image"),
)
# Says in a PNG file that it is animated, before its first image.
_ANIMATION_CHUNK = b"acTL"
_ARCHIVES = (
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"PK\x05\x06", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"(\xb5/\xfd", "a Zstandard archive"),
    (b'\x04"M\x18', "an LZ4 archive"),
    (b"7z\xbc\xaf'\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
)
_OTHER_FILES = (
    (b"%PDF", "a PDF document"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an office document"),
    (b"\x93NUMPY", "a NumPy array file"),
    (b"SQLite format 3\x00", "a SQLite database"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PAR1", "a Parquet table"),
    (b"ARROW1", "an Arrow table"),
    (b"\x7fELF", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"\xca\xfe\xba\xbe", "a program"),
    *((bytes([0x80, protocol]), "a Python pickle") for protocol in range(2, 6)),
)
# Major brands of ISO files (bytes 4 to 12) that hold still images.
_IMAGE_BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif")
_TAR_MARK = slice(257, 262)
_BLANK = "it begins with nothing but zero bytes and is corrupt"


def require_av() -> None:
    """Raise an `ImportError` that says what to install when PyAV is absent."""
    if av is None:
        raise ImportError("Decoding media needs PyAV, which brings its own FFmpeg: pip install av")


class MediaSource:
    """One media file that can be opened again and again.

    Args:
        source: Path (`str` or `os.PathLike`), `file://`, `http(s)://` or any address fsspec knows, `bytes`, a binary
            file object (left open, read from its beginning), or a mapping with `bytes` or `path` or a decoder object
            of torchcodec as `datasets` hands them out.
        name: What messages call it; default: its path or address.

    Attributes:
        name: For messages.
        streams: Numbers of the video and the audio stream in the file, where the source says which are meant.
        is_broadcast: Whether it is read as it comes from a server that can neither go back nor says how long it is, so
            that opening it again may give something else.
        has_frame_count: For MP3: whether it begins with the number of its frames, so that its length is no estimate.

    Raises:
        MediaError: The source is not something that can be a media file.
    """

    def __init__(self, source: Any, name: str | None = None) -> None:
        self.name = name or describe_source(source)
        self.streams: dict[str, int] = {}
        encoded = encoded_source(source)
        if encoded is not None:
            self.streams = {str(decoder_kind(source)): source.stream_index}
            source = encoded
        self.is_broadcast = False
        self._is_mp4 = self._is_blank = False
        self._target: str | BinaryIO
        self._owned: list[Any] = []
        self._protocols = "none"
        self._options = {"format_whitelist": CONTAINER_FORMATS, "max_pixels": str(MAX_FRAME_PIXELS)}
        self._is_unlisted = False
        if isinstance(source, dict):
            keys = [key for key in ("bytes", "path") if source.get(key) is not None]
            if not keys:
                raise MediaError(f"{self.name}: a mapping needs 'bytes' or 'path', it has {sorted(map(str, source))}.")
            source = source[keys[0]]
        if isinstance(source, str | os.PathLike):
            self._resolve_address(os.fspath(source))
        elif isinstance(source, bytes | bytearray | memoryview):
            self._target = io.BytesIO(source)
        elif hasattr(source, "read"):
            self._resolve_file_object(source)
        else:
            raise MediaError(
                f"{self.name}: not a media source; pass a path, an address, bytes or a file opened with mode 'rb'."
            )
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    def _resolve_address(self, address: str | bytes) -> None:
        text = os.fsdecode(address)
        scheme = text.split("://", 1)[0].lower() if "://" in text else ""
        if scheme in ("http", "https"):
            self._target, self._protocols = text, "http,https,tcp,tls,httpproxy"
            return
        if scheme == "file":
            text = urllib.request.url2pathname(urllib.parse.urlsplit(text).path)
        elif scheme:
            if fsspec is None:
                raise MediaError(f"{self.name}: addresses that start with {scheme}:// need fsspec: pip install fsspec")
            try:
                handle = fsspec.open(text, "rb").open()
            except Exception as error:  # each fsspec backend has its own errors
                raise MediaError(
                    f"{self.name}: cannot be opened ({error}); check the address and its access."
                ) from error
            self._owned.append(handle)
            self._resolve_file_object(handle)
            return
        try:
            mode = os.stat(text).st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a zero byte
            raise MediaNotFoundError(f"{self.name}: no such file; check the path.") from error
        except OSError as error:
            raise MediaError(
                f"{self.name}: cannot be read ({error.strerror}); check the path and the access rights."
            ) from error
        if stat.S_ISDIR(mode):
            raise MediaError(f"{self.name}: is a folder; pass the media files inside it.")
        if not stat.S_ISREG(mode):
            # It may never give anything, or never end; and FFmpeg must be able to go back.
            raise MediaError(f"{self.name}: is a pipe or a device, not a file; pass the media file itself.")
        # The prefix keeps names such as "concat:a|b" from being read as FFmpeg's own protocols.
        self._target, self._protocols = "file:" + os.path.abspath(text), "file"

    def _resolve_file_object(self, handle: Any) -> None:
        if isinstance(handle, io.TextIOBase):
            raise MediaError(f"{self.name}: the file is open in text mode; open it with mode 'rb'.")
        if not (hasattr(handle, "seekable") and handle.seekable()):
            # FFmpeg must be able to go back (MP4 keeps its index at the end as often as not).
            head = handle.read(SNIFF_BYTES)
            if isinstance(head, str):
                raise MediaError(f"{self.name}: the file is open in text mode; open it with mode 'rb'.")
            self._sniff(bytes(head))  # before all the rest is read, which may be without end
            if self._is_blank:
                raise MediaError(f"{self.name}: {_BLANK}; fetch it again.")
            handle = self._spool(handle, bytes(head), MOST_UNKNOWN_BYTES)
        self._target = handle

    def _spool(self, handle: Any, head: bytes = b"", limit: float = math.inf) -> Any:
        """Copy what can only be read forwards to where one can go back, in bounded memory and up to `limit` bytes."""
        spooled = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 (closed in close())
        self._owned.append(spooled)
        spooled.write(head)
        while block := handle.read(_COPY_BYTES):
            spooled.write(block)
            if spooled.tell() > limit:
                raise MediaError(f"{self.name}: has no end in {limit / 2**30:g} GiB; pass a file that has one.")
        return spooled

    def _look(self) -> None:
        """Read the first bytes and refuse what is no media file."""
        if not isinstance(self._target, str):
            try:
                self._target.seek(0)
                head = self._target.read(SNIFF_BYTES)
                self._target.seek(0)
            except Exception as error:  # file objects raise what they like
                raise MediaError(f"{self.name}: cannot be read ({error}); check where it comes from.") from error
            if isinstance(head, str):
                raise MediaError(f"{self.name}: the file is open in text mode; open it with mode 'rb'.")
            self._sniff(bytes(head))
            return
        try:
            if self._protocols == "file":
                with open(self._target.removeprefix("file:"), "rb") as file:
                    head = file.read(SNIFF_BYTES)
                self._sniff(head)
                return
            request = urllib.request.Request(self._target, headers={"Range": f"bytes=0-{SNIFF_BYTES - 1}"})
            with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_SECONDS) as reply:  # noqa: S310 (http(s) only)
                head = reply.read(SNIFF_BYTES)
                self._sniff(head)
                if reply.status == 200:
                    self._fetch_whole(reply, head)
        except urllib.error.HTTPError as error:
            raise MediaError(
                f"{self.name}: the server answers {error.code} ({error.reason}); check the address."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise MediaError(
                f"{self.name}: cannot be read ({error}); check the address and the access rights."
            ) from error

    def _fetch_whole(self, reply: Any, head: bytes) -> None:
        """Copy the reply of a server that knows no byte ranges, for FFmpeg could not go back in it."""
        promised = reply.headers.get("Content-Length")
        if promised is None and not self._is_mp4:
            self.is_broadcast = True  # perhaps without end: read forwards, as it comes
            return
        spooled = self._spool(reply, head)
        if promised is not None and spooled.tell() < int(promised):
            raise MediaError(
                f"{self.name}: the transfer breaks off after {spooled.tell()} of {promised} bytes; try again."
            )
        self._target, self._protocols = spooled, "none"

    def _sniff(self, head: bytes) -> None:
        self._is_mp4 = head[4:8] == b"ftyp"
        self._promised_bytes = _promised_bytes(head)
        self.has_frame_count = any(mark in head for mark in (b"Xing", b"Info", b"VBRI"))
        if not head:
            raise MediaError(f"{self.name}: is empty (0 bytes); fetch or record it again.")
        self._is_blank = not head.strip(b"\x00")  # padding, or a file whose bytes were never written
        text = _as_text(head)
        start = (head if text is None else text.encode()).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        tagged = start.startswith((b"<?xml", b"<!--")) and any(tag in start for tag in _PLAYLIST_TAGS)
        if tagged or start.startswith(_PLAYLIST_STARTS):
            raise MediaError(
                f"{self.name}: is a playlist that points at other files, not a media file; it is never followed. "
                "Pass the media file itself."
            )
        if text is not None and start.startswith((b"<!doctype html", b"<html")):
            raise MediaError(f"{self.name}: is a web page, not a media file; pass the address of the file itself.")
        if text is not None:
            raise MediaError(
                f'{self.name}: is text, not a media file; it begins with "{printable(text.strip()[:40])}".'
            )
        for kind, remedy in _posing_as_media(head):
            raise MediaError(f"{self.name}: is {kind}, not a video{remedy}.")

    def open(self, *, beside: bool = False) -> Any:
        """Open the container with FFmpeg; the caller closes it.

        Args:
            beside: Whether another container of this source is open, and must not notice.

        Raises:
            MediaError: FFmpeg finds no container it may read.
        """
        require_av()
        target: Any = self._target
        if not isinstance(target, str):
            target = _View(target) if beside else target
            target.seek(0)
        options = self._options | {"protocol_whitelist": self._protocols}
        timeout = HTTP_TIMEOUT_SECONDS if self._protocols.startswith("http") else None
        try:
            container = av.open(target, mode="r", options=options, metadata_errors="ignore", timeout=timeout)
        except Exception as error:  # FFmpeg's, PyAV's own of many types, and those of the file object read from
            if not isinstance(error, av.error.FFmpegError):
                raise MediaError(f"{self.name}: cannot be read ({error}); check where it comes from.") from error
            if self._is_blank:
                reason = _BLANK
            elif self._is_mp4:
                reason = "its index is missing or damaged: the file is truncated, corrupt or still being written"
            else:
                reason = f"it is not a media file that can be read, or it is corrupt ({error})"
            raise MediaError(f"{self.name}: {reason}; fetch it again or convert it with ffmpeg.") from error
        # PyAV lets FFmpeg make up the presentation times that AVI lacks, and it does so in the order of decoding.
        container.flags &= ~av.container.Flags.gen_pts.value
        self._is_unlisted = container.format.name in _UNLISTED_CONTAINERS
        return container

    @property
    def missing_bytes(self) -> int:
        """How many bytes of a file whose first bytes say its size are not there."""
        if self._promised_bytes is None or self._protocols.startswith("http"):
            return 0
        if isinstance(self._target, str):
            size = os.path.getsize(self._target.removeprefix("file:"))
        else:
            size = _View(self._target).seek(0, os.SEEK_END)
        return max(0, self._promised_bytes - size)

    def look_further(self) -> bool:
        """Let FFmpeg look further into the file for tracks from now on; gives whether it may find more then."""
        if not self._is_unlisted or self.is_broadcast or "probesize" in self._options:
            return False
        self._options |= {"probesize": str(_FURTHER_BYTES), "analyzeduration": str(_FURTHER_SECONDS * 1_000_000)}
        return True

    def close(self) -> None:
        """Close what this object opened itself; file objects of the caller stay open."""
        while self._owned:
            self._owned.pop().close()

    def __enter__(self) -> "MediaSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _View:
    """A file object for a second reader: it keeps a position of its own and leaves the file's where it was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0
        self.name = getattr(file, "name", "<none>")

    def read(self, size: int) -> bytes:
        place = self._file.tell()
        try:
            self._file.seek(self._position)
            data = self._file.read(size)
        finally:
            self._file.seek(place)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            place = self._file.tell()
            self._file.seek(0, os.SEEK_END)
            offset += self._file.tell()
            self._file.seek(place)
        elif whence == os.SEEK_CUR:
            offset += self._position
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position


class NamedPath(os.PathLike[str]):
    """The path of a file that results and messages call by another name.

    Args:
        path: Where the file lies.
        name: What it is called.
    """

    def __init__(self, path: str | os.PathLike[str], name: str) -> None:
        self.path, self.name = os.fspath(path), name

    def __fspath__(self) -> str:
        return self.path


def decoder_kind(value: Any) -> str | None:
    """`"video"` or `"audio"` for a decoder object of torchcodec, by its methods; `None` for anything else."""
    if hasattr(value, "get_frames_played_at"):
        return "video"
    return "audio" if hasattr(value, "get_all_samples") else None


def encoded_source(value: Any) -> dict[str, Any] | None:
    """The `bytes` and `path` that a decoder object reads, which `datasets` notes on it; `None` where nothing does."""
    encoded = getattr(value, "_hf_encoded", None) if decoder_kind(value) else None
    known = isinstance(encoded, dict) and any(encoded.get(key) is not None for key in ("bytes", "path"))
    return encoded if known else None


def describe_source(source: Any) -> str:
    """Name a media source for messages, without its contents."""
    source = encoded_source(source) or source
    if isinstance(source, NamedPath):
        return source.name
    if isinstance(source, dict):
        return describe_source(source.get("path") or source.get("bytes") or "<mapping>")
    if isinstance(source, str | os.PathLike):
        return printable(os.fsdecode(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    name = getattr(source, "name", None)
    return printable(name) if isinstance(name, str) and name else f"<{type(source).__name__}>"


def _promised_bytes(head: bytes) -> int | None:
    """The size that a RIFF file (AVI, WAV) says it has; `None` for others and where it was not known while writing."""
    size = int.from_bytes(head[4:8], "little")
    # Padding at the end and an odd last chunk make no difference.
    return size if head[:4] == b"RIFF" and size < 0x7F000000 else None


def _posing_as_media(head: bytes) -> Iterator[tuple[str, str]]:
    """What a file is that is no media file, and what to do, by its first bytes."""
    for kinds, remedy in (
        (_IMAGES, "; images are passed as arrays, decoded"),
        (_ARCHIVES, "; unpack it and pass the media file in it"),
        (_OTHER_FILES, ""),
    ):
        for magic, kind in kinds:
            if head.startswith(magic) and not (magic == _PNG and _ANIMATION_CHUNK in head):
                yield kind, remedy
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        yield "a WebP image", "; images are passed as arrays, decoded"
    if head[4:12] in _IMAGE_BRANDS:
        yield "a HEIF or AVIF image", "; images are passed as arrays, decoded"
    if head[_TAR_MARK] == b"ustar":
        yield "a TAR archive", "; unpack it and pass the media file in it"
    if head[:2] == b"MZ" and b"PE\x00\x00" in head:
        yield "a program", ""


def _as_text(head: bytes) -> str | None:
    """The beginning of a file as text, `None` when it is none."""
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    if encoding == "utf-8" and b"\x00" in head:
        return None
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character cut in two by the end of the sample is no proof
            return None
        text = head[: error.start].decode(encoding)
    text = text.removeprefix("\ufeff")
    return text if text and all(character.isprintable() or character in "\t\r\n\f" for character in text) else None


__all__ = ["CONTAINER_FORMATS", "MediaSource", "decoder_kind", "describe_source", "encoded_source", "require_av"]
