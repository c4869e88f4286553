# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The format of a folder of shards: its tar files, its index and its card, written and read.

A clip is a row of tar members that share a key: its frames as JPEG, the log-mel of its whole audio, and a JSON record.

    00000007-some_id.frame_00.jpg ... 00000007-some_id.frame_15.jpg
    00000007-some_id.log_mel.npy      float16 (log-mel frames, mel bins), not normalised
                or   waveform.flac    16 bits, one channel, where the set was prepared with audio="waveform"
    00000007-some_id.json             times, labels, source, versions, captions

That is the WebDataset layout, which `datasets`, `webdataset` and plain `tarfile` read. Nothing in a shard depends on
when, where or by how many processes it was written.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
import torch
from PIL import Image

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]

from ..files import StrPath, parse_json
from ..model.errors_cavmae_sync import DataError
from ..model.media_cavmae_sync import decode_media

FORMAT = "cavmae-sync-shards"
FORMAT_VERSION = 1
INDEX_NAME = "index.json"
CARD_NAME = "README.md"
CLIPS_NAME = "clips.jsonl"
BAD_CLIPS_NAME = "bad_clips.csv"
FLAC_NAME = "waveform.flac"
BAD_CLIPS_COLUMNS = ("number", "id", "source", "reason", "message")
# A key is at most this long, so that member names fit the 100 characters of a plain tar header.
_KEY_LENGTH = 72
_BLOCK = 512
_FLAC_FRAME = 4608  # samples handed to the encoder at a time
# numpy reads a header with `ast`, which fails at times in Python 3.11 when two threads use it (cpython#106905).
_HEADER_LOCK = threading.Lock()


@dataclass(frozen=True)
class ShardInfo:
    """One tar file of a set.

    Attributes:
        file: Its name in the folder.
        clips: Clips in it.
        bytes: Its size.
        sha256: Its checksum, hexadecimal.
    """

    file: str
    clips: int
    bytes: int
    sha256: str


@dataclass
class ShardIndex:
    """What `index.json` says about a set of shards.

    Attributes:
        name: Name of the set; shards are called `NAME-00000.tar` and so on.
        clips: Clips in all shards.
        bad_clips: Clips of the source that could not be used, listed in `bad_clips.csv`.
        seconds: Length of all clips together.
        num_frames: Frames per clip.
        alignment: `"time"` or `"reference"`: how frames were chosen and windows are to be cut.
        short_side: Shorter side of the stored frames in pixels; smaller images kept their size. `None`: all did.
        jpeg_quality: Quality of the frames' compression.
        jpeg_chroma: Its colour resolution, `"4:4:4"` or `"4:2:0"`.
        sampling_rate: Rate in Hz at which the log-mel was computed.
        num_mel_bins: Mel bins of the log-mel.
        channel: `"first"` or `"mean"`: how several audio channels became one.
        mean: Mean of the log-mel over the set, `None` without audio.
        std: Its standard deviation.
        log_mel_frames: Log-mel frames (10 ms each) in the set.
        with_audio: Clips that have audio.
        with_video: Clips that have frames.
        label_names: Names of the label numbers, `None` when labels have no names.
        label_counts: Clips per label number.
        versions: Versions of the software that wrote the shards.
        shards: The tar files, in order.
        folder: Where the set lies; not part of the file.
        audio_track: Which audio track of files was heard, where one was chosen; else not part of the file.
        audio: `"log_mel"`, or `"waveform"` where the audio itself is kept; only then part of the file.
    """

    name: str
    clips: int
    bad_clips: int
    seconds: float
    num_frames: int
    alignment: str
    short_side: int | None
    jpeg_quality: int
    jpeg_chroma: str
    sampling_rate: int
    num_mel_bins: int
    channel: str
    mean: float | None
    std: float | None
    log_mel_frames: int
    with_audio: int
    with_video: int
    label_names: list[str] | None
    label_counts: dict[int, int]
    versions: dict[str, str]
    shards: list[ShardInfo]
    folder: str = field(default="", compare=False)
    audio_track: int | str | None = None
    audio: str = "log_mel"

    @property
    def paths(self) -> list[str]:
        """Paths or addresses of the shards, in order."""
        return [_join(self.folder, shard.file) for shard in self.shards]

    def to_json(self) -> str:
        """The text of `index.json`."""
        facts = {"format": FORMAT, "format_version": FORMAT_VERSION} | asdict(self)
        del facts["folder"]
        if self.audio_track is None:
            del facts["audio_track"]
        if self.audio == "log_mel":
            del facts["audio"]
        facts["label_counts"] = {str(label): count for label, count in sorted(self.label_counts.items())}
        return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"


@dataclass
class ShardClip:
    """One clip as read from a shard.

    Attributes:
        key: What its members' names begin with.
        info: Its JSON record: `id`, `source`, `start`, `end`, `duration` (seconds), `frame_times` (seconds from the
            clip's start), `labels`, `sampling_rate`, `num_mel_bins`, `alignment`, `has_audio`, `has_video`,
            `versions`, and, where something is said of the clip, `captions`: each with `text` and its `spans`, start
            and end in seconds from the clip's start, none where it is about the whole.
        jpegs: Its frames, compressed.
        log_mel: `(log-mel frames, mel bins)` float16, no frames without audio or where the waveform is kept.
        flac: Its audio, compressed, where that is kept.
    """

    key: str
    info: dict[str, Any]
    jpegs: list[bytes]
    log_mel: np.ndarray
    flac: bytes | None = None

    def waveform(self) -> torch.Tensor | None:
        """Its audio `(num_samples,)` float32 at the set's `sampling_rate`, where that is kept and there is any."""
        if self.flac is None:
            return None
        rate = self.info["sampling_rate"]
        return decode_media(self.flac, sampling_rate=rate, want_video=False, name=f"{self.key}.{FLAC_NAME}").waveform

    def frames(self, numbers: Sequence[int] | None = None) -> torch.Tensor:
        """Frames (or those numbered `numbers`), `(num_frames, 3, height, width)` uint8 RGB."""
        chosen = range(len(self.jpegs)) if numbers is None else numbers
        return torch.stack([decode_jpeg(self.jpegs[number]) for number in chosen])


def decode_jpeg(data: bytes) -> torch.Tensor:
    """A JPEG as `(3, height, width)` uint8 RGB, a view of `(height, width, 3)` memory."""
    # torchvision's decoder gives the same pixels in three quarters of the time, but takes a truncated image for a
    # whole one and is deprecated from 0.29 on.
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            pixels = np.array(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ValueError(f"an image is far too large ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def encode_jpeg(frame: torch.Tensor, quality: int, chroma: str) -> bytes:
    """Compress one frame `(3, height, width)` uint8."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()))
    image.save(buffer, "JPEG", quality=quality, subsampling=chroma)
    return buffer.getvalue()


def encode_flac(waveform: torch.Tensor, sampling_rate: int) -> bytes:
    """Compress audio without loss, after rounding to 16 bits.

    Args:
        waveform: `(num_samples,)` in [-1, 1]; what is louder is cut.
        sampling_rate: Hz.
    """
    samples = (waveform * 32768.0).round().clamp(-32768, 32767).to(torch.int16).numpy()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac", options={"fflags": "+bitexact", "metadata_header_padding": "0"}) as file:
        stream: Any = file.add_stream("flac", rate=sampling_rate, layout="mono", options={"flags": "+bitexact"})
        for begin in range(0, len(samples), _FLAC_FRAME):
            part = np.ascontiguousarray(samples[None, begin : begin + _FLAC_FRAME])
            frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
            frame.sample_rate, frame.pts = sampling_rate, begin
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def encode_array(array: np.ndarray) -> bytes:
    """An array as the bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def encode_json(value: Any) -> bytes:
    """A value as JSON without line breaks; the order of keys is the value's."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def clip_key(number: int, clip_id: str) -> str:
    """What the member names of a clip begin with: its number in the source list and its id, without dots."""
    return f"{number:08d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', clip_id)}"[:_KEY_LENGTH]


def shard_name(name: str, number: int) -> str:
    """File name of a shard."""
    return f"{name}-{number:05d}.tar"


class ShardWriter:
    """Writes one tar file, whose bytes depend only on what is added.

    Args:
        path: File to write; the caller renames it when it is whole.
    """

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 (closed in finish and close)

    def add(self, key: str, members: Sequence[tuple[str, bytes]]) -> tuple[int, int]:
        """Add a clip: members as (extension, content).

        Returns:
            Offset of the clip's first byte in the file and the number of its bytes.
        """
        begin = self.size
        for extension, content in members:
            header = tarfile.TarInfo(f"{key}.{extension}")
            header.size, header.mode = len(content), 0o644
            self._write(header.tobuf(tarfile.USTAR_FORMAT))
            self._write(content)
            self._write(bytes(-len(content) % _BLOCK))
        return begin, self.size - begin

    def finish(self) -> tuple[int, str]:
        """Close the file, with its bytes on the disk.

        Returns:
            Its size and sha256.
        """
        self._write(bytes(2 * _BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self.size, self._digest.hexdigest()

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)


def read_shard(path: StrPath | BinaryIO) -> Iterator[ShardClip]:
    """Read the clips of one shard in order.

    Args:
        path: Path or fsspec address of a tar file, or a file object at its beginning.

    Raises:
        DataError: The file is damaged.
    """
    with contextlib.ExitStack() as stack:
        handle: Any = path
        if isinstance(path, str | os.PathLike):
            handle = stack.enter_context(fsspec.open(os.fspath(path), "rb"))
        try:
            archive = stack.enter_context(tarfile.open(fileobj=handle, mode="r|"))
            key = ""
            members: dict[str, bytes] = {}
            for member in archive:
                content = archive.extractfile(member)
                stem, _, extension = os.path.basename(member.name).partition(".")
                if stem != key and members:
                    yield decode_clip(key, members)
                    members = {}
                key, members[extension] = stem, content.read() if content is not None else b""
            if members:
                yield decode_clip(key, members)
        except (tarfile.TarError, KeyError, ValueError, EOFError, MemoryError) as error:
            raise DataError(f"{path}: is not a whole shard ({error}); prepare it again.") from error


def decode_clip(key: str, members: dict[str, bytes]) -> ShardClip:
    """A clip from its members, by extension (`"json"`, `"log_mel.npy"`, `"frame_00.jpg"`, ...)."""
    jpegs = [members[name] for name in sorted(members) if name.startswith("frame_")]
    info = parse_json(members["json"])
    if "log_mel.npy" in members:
        with _HEADER_LOCK:
            log_mel = np.load(io.BytesIO(members["log_mel.npy"]), allow_pickle=False)
        return ShardClip(key, info, jpegs, log_mel)
    if info["has_audio"] and FLAC_NAME not in members:
        raise KeyError(FLAC_NAME)
    return ShardClip(key, info, jpegs, np.empty((0, info["num_mel_bins"]), np.float16), members.get(FLAC_NAME))


def read_index(folder: StrPath) -> ShardIndex:
    """Read `index.json` of a folder of shards.

    Args:
        folder: Path or fsspec address.

    Raises:
        DataError: There is no finished set of shards, or one of another format.
    """
    folder = os.fspath(folder)
    address = _join(folder, INDEX_NAME)
    try:
        with fsspec.open(address, "r", encoding="utf-8") as file:
            facts = parse_json(file.read())
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} holds no finished set of shards (no {INDEX_NAME}); make one with `cavmae-sync prepare`, or run "
            "an interrupted one again."
        ) from error
    except ValueError as error:
        raise DataError(f"{address}: is not JSON ({error}); prepare the set again, which is quick.") from error
    if not isinstance(facts, dict) or facts.pop("format", None) != FORMAT:
        raise DataError(f"{address}: does not describe shards of this package.")
    version = facts.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise DataError(
            f"{address}: has format version {version}, this package reads {FORMAT_VERSION}; prepare it again."
        )
    try:
        facts["label_counts"] = {int(label): count for label, count in facts["label_counts"].items()}
        facts["shards"] = [ShardInfo(**shard) for shard in facts["shards"]]
        foreign = [shard.file for shard in facts["shards"] if re.search(r"[/\\]|^\.\.$", shard.file)]
        if foreign:
            raise ValueError(f"it names {foreign[0]!r}, and shards lie beside it")
        return ShardIndex(**facts, folder=folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{address}: does not describe shards ({error}); prepare the set again.") from error


def read_clip_table(folder: StrPath) -> list[dict[str, Any]]:
    """Read `clips.jsonl`: per clip its `key`, `id`, `labels`, `duration`, `captions` where it has some, and where it
    lies: `shard`, `offset`, `size`."""
    with fsspec.open(_join(os.fspath(folder), CLIPS_NAME), "r", encoding="utf-8") as file:
        return [parse_json(line) for line in file]


def check_shards(folder: StrPath) -> list[str]:
    """Compare the shards with the sizes and checksums of the index.

    Returns:
        One message per missing or changed shard; none when all is well.
    """
    faults = []
    index = read_index(folder)
    for shard, path in zip(index.shards, index.paths, strict=True):
        try:
            with fsspec.open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            faults.append(f"{path}: is missing")
            continue
        if digest != shard.sha256:
            faults.append(f"{path}: has sha256 {digest}, the index says {shard.sha256}")
    return faults


def card_text(index: ShardIndex, *, captions: int = 0, with_captions: int = 0) -> str:
    """The dataset card of a set, with the settings by which `datasets.load_dataset(folder)` finds the shards.

    Args:
        index: The set.
        captions: Captions in it.
        with_captions: Clips that have some.
    """
    split = split_name(index.name)
    audio = "log_mel.npy" if index.audio == "log_mel" else FLAC_NAME
    said = f"{captions}, of {with_captions} of the clips" if captions else ""
    more = (
        " What is said of a clip is in\n`captions`, texts with their `spans` in seconds; a text without spans is of "
        "the whole clip."
    )
    return f"""---
pretty_name: {json.dumps(index.name)}
tags:
- audio-visual
- webdataset
configs:
- config_name: default
  data_files:
  - split: {split}
    path: {index.name}-*.tar
dataset_info:
  features:
{_features_text(index, with_captions=captions > 0)}
---

# {index.name}

Frames and spectrograms of videos, prepared for CAV-MAE Sync.

| | |
|---|---|
{_facts_text(index, said)}

Each clip is a row of members in a tar file: `frame_00.jpg` and so on, `{audio}` for the whole clip, and `json`
with the times of the frames in seconds, the length, the labels and the source.{more if captions else ""}

```python
from datasets import load_dataset

clips = load_dataset("path/of/this/folder", split="{split}", streaming=True)
```

Clips without frames have `None` for them. Whether the files are whole is told by

```python
from cavmae_sync_hf.data.shards import check_shards

print(check_shards("path/of/this/folder"))  # nothing but [] when they are
```

`{INDEX_NAME}` counts the clips and gives the mean and the standard deviation that the spectrogram is normalised with;
`{CLIPS_NAME}` says where each clip lies.
"""


def _facts_text(index: ShardIndex, captions: str) -> str:
    """The rows of a card's table."""
    minutes = index.seconds / 60
    length = f"{minutes / 60:.1f} hours" if minutes >= 120 else f"{minutes:.1f} minutes"
    size = (
        "their own size" if index.short_side is None else f"{index.short_side} pixels on the shorter side, or smaller"
    )
    spectrum = "-" if index.mean is None else f"mean {index.mean:.4f}, standard deviation {index.std:.4f}"
    labels = "none" if not index.label_counts else f"{len(index.label_counts)} in use"
    rows = [
        ("clips", f"{index.clips} ({index.with_audio} with audio, {index.with_video} with frames)"),
        ("left out", f"{index.bad_clips}, with reasons in `{BAD_CLIPS_NAME}`"),
        ("length", length),
        ("frames", f"{index.num_frames} per clip, {size}, JPEG quality {index.jpeg_quality} ({index.jpeg_chroma})"),
        ("frame times", f"alignment `{index.alignment}`"),
        (
            "audio",
            f"log-mel, {index.num_mel_bins} bins at {index.sampling_rate} Hz, 10 ms hop, float16, not normalised"
            if index.audio == "log_mel"
            else f"FLAC, 16 bits at {index.sampling_rate} Hz, one channel",
        ),
        ("log-mel", spectrum),
        ("labels", labels),
        *([("captions", captions)] if captions else []),
        ("shards", str(len(index.shards))),
        ("written by", ", ".join(f"{name} {version}" for name, version in index.versions.items())),
    ]
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def _features_text(index: ShardIndex, with_captions: bool) -> str:
    """The columns and their types as a card's YAML has them.

    Without them `datasets` takes the first clips for typical, which fails where later ones have labels, or none.
    """
    texts, numbers, flags = "string", "float64", "bool"
    record: dict[str, str] = {"id": texts, "source": texts, "start": numbers, "end": numbers, "duration": numbers}
    record |= {"frame_times": "list", "labels": "list", "sampling_rate": "int64", "num_mel_bins": "int64"}
    record |= {"alignment": texts, "has_audio": flags, "has_video": flags}
    lists = {"frame_times": numbers, "labels": "int64"}
    lines = []
    for number in range(index.num_frames):
        lines += [f"  - name: frame_{number:02d}.jpg", "    dtype: image"]
    if index.audio == "log_mel":
        lines += ["  - name: log_mel.npy", "    list:", "      list: float16"]
    else:
        lines += [f"  - name: {FLAC_NAME}", "    dtype:", "      audio:"]
        lines += [f"        sampling_rate: {index.sampling_rate}"]
    lines += ["  - name: json", "    struct:"]
    for name, kind in record.items():
        lines += [f"    - name: {name}", f"      list: {lists[name]}" if name in lists else f"      dtype: {kind}"]
    if index.versions:
        lines += ["    - name: versions", "      struct:"]
    for name in index.versions:
        lines += [f"      - name: {name}", "        dtype: string"]
    if with_captions:
        lines += ["    - name: captions", "      list:", "      - name: text", "        dtype: string"]
        lines += ["      - name: spans", "        list:", "          list: float64"]
    for name in ("__key__", "__url__"):
        lines += [f"  - name: {name}", "    dtype: string"]
    return "\n".join(lines)


def split_name(name: str) -> str:
    """A set's name as `datasets` allows splits to be called."""
    return re.sub(r"\W+", "_", name)


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if "://" in folder else os.path.join(folder, name)
