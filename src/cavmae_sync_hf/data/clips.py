# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Clips by their number, out of a folder of shards or a list of video files.

`open_clips` tells the two apart. Both give a `LoadedClip` and decode the frames that are asked for only.
"""

import mmap
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.util import Finalize
from typing import Any, Protocol

import fsspec
import numpy as np
import torch
from torch import Tensor

from ..files import StrPath, parse_json
from ..model.batching_cavmae_sync import MomentFrames, nearest_frames
from ..model.errors_cavmae_sync import DataError, Hint
from ..model.feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .captions import TimedText, cut_texts, given_texts
from .packing import BadClip, ClipPacker, PrepareOptions
from .shards import FLAC_NAME, INDEX_NAME, ShardIndex, decode_clip, decode_jpeg, read_clip_table, read_index
from .sources import ClipList, read_source

_BLOCK = 512
# Shards held open at a time; each is an address range, not memory, but a remote one is also a file on the disk.
_OPEN_SHARDS = 32
# Video files per group, so that a shuffled order keeps some of the files' order on the disk.
_FILES_PER_GROUP = 100

# Which of a clip's frames to use: called with the clip's id and the number of its frames, returns their indices.
FrameChooser = Callable[[str, int], Sequence[int]]


@dataclass
class LoadedClip:
    """One clip, decoded as far as asked, before the processor.

    Attributes:
        clip_id: Its name in the set.
        frames: `(len(chosen), 3, height, width)` uint8, `None` without video; of moments of several frames
            `MomentFrames`, each frame once.
        frame_times: Seconds from the clip's start of *all* frames, those not chosen included.
        chosen: Indices of the frames used.
        log_mel: `(log-mel frames, mel bins)` float32 of the whole clip, not normalised, `None` without audio; its
            samples, where the processor hears waveforms.
        labels: Its label numbers.
        duration: Its length in seconds.
        captions: What is said of it.
    """

    clip_id: str
    frames: Tensor | MomentFrames | None
    frame_times: list[float]
    chosen: list[int]
    log_mel: Tensor | None
    labels: list[int]
    duration: float
    captions: list[TimedText] = field(default_factory=list)

    @property
    def images(self) -> Tensor | None:
        """The frames that are decoded, `(num_images, 3, height, width)`; `None` without video."""
        return self.frames.images if isinstance(self.frames, MomentFrames) else self.frames

    def stacked(self, pixels: Tensor) -> Tensor:
        """What the images have become, as the model takes moments, `(len(chosen), channels, height, width)`."""
        return self.frames.stacked(pixels) if isinstance(self.frames, MomentFrames) else pixels


class ClipSource(Protocol):
    """Clips by number, in groups (shards) that are best read together."""

    @property
    def group_sizes(self) -> list[int]:
        """Clips per group, in the order of their numbers."""

    @property
    def fingerprint(self) -> str:
        """A text that changes when clips are added, removed or moved."""

    def read(self, number: int, choose: FrameChooser) -> LoadedClip:
        """The clip of that number with the frames that `choose` picks."""

    def labels(self) -> list[list[int]]:
        """The label numbers of every clip, without decoding any."""

    def clip_ids(self) -> list[str]:
        """The name of every clip, without decoding any."""

    def captions(self) -> list[list[TimedText]]:
        """What is said of every clip, without decoding any."""

    @property
    def label_names(self) -> list[str] | None:
        """Names of the label numbers, `None` where labels are numbers alone."""


def open_clips(source: Any, processor: CavMaeSyncProcessor) -> ClipSource:
    """Find out what a data set is to be read from.

    Args:
        source: A folder or address with an `index.json` (shards), or anything that
            [`~cavmae_sync_hf.data.sources.read_source`] lists: a folder of video files, a CSV, JSON or Parquet list, a
            sequence of paths or mappings, a `datasets.Dataset`; a `ClipList` as well.
        processor: Decides how frames are chosen and audio is read.

    Raises:
        ValueError: There are no clips, or the shards were prepared for other settings than the processor's.
    """
    if holds_shards(source):
        return ShardClips(source, processor)
    return VideoClips(source if isinstance(source, ClipList) else read_source(source, audio_files=False), processor)


def holds_shards(source: Any) -> bool:
    """Whether a source is a folder of shards, or the address of one."""
    if not isinstance(source, str | os.PathLike):
        return False
    system, root = fsspec.url_to_fs(os.fspath(source))
    return bool(system.exists(f"{root.rstrip('/')}/{INDEX_NAME}"))


class ShardClips(ClipSource):
    """Clips of a folder of shards.

    Shards are mapped into memory, so only the bytes of the chosen frames are read, and worker processes share them.
    Remote shards are fetched whole into a temporary folder of the process when their first clip is read, and removed
    when `_OPEN_SHARDS` others have been used since.

    Args:
        folder: Path or fsspec address of the folder.
        processor: What the clips are read for.

    Raises:
        DataError: The folder is not a set of shards, or its settings do not fit the processor's.
    """

    def __init__(self, folder: StrPath, processor: CavMaeSyncProcessor) -> None:
        self.folder = os.fspath(folder)
        self.index = read_index(self.folder)
        self.feature_extractor, self.shifts = processor.feature_extractor, processor.video_processor.shifts
        _check_fit(self.index, self.feature_extractor, self.folder)
        if processor.audio_track not in (None, self.index.audio_track):
            raise DataError(
                f"{self.folder}: the shards were prepared with audio_track={self.index.audio_track!r}, not "
                f"{processor.audio_track!r}; prepare the set again for another choice.",
                hint=Hint("audio_track", None, "take the shards as they are"),
            )
        self._bounds = np.cumsum([0] + [shard.clips for shard in self.index.shards])
        # A worker made by a fork shares the maps of its parent, one made otherwise opens its own.
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    @property
    def group_sizes(self) -> list[int]:
        return [shard.clips for shard in self.index.shards]

    @property
    def fingerprint(self) -> str:
        return " ".join(shard.sha256[:12] for shard in self.index.shards)

    def read(self, number: int, choose: FrameChooser) -> LoadedClip:
        group = int(np.searchsorted(self._bounds, number, side="right")) - 1
        shard = self._shard(group)
        place = number - int(self._bounds[group])
        return _read_shard_clip(shard, place, choose, extractor=self.feature_extractor, shifts=self.shifts)

    def labels(self) -> list[list[int]]:
        return [list(row["labels"]) for row in read_clip_table(self.folder)]

    def clip_ids(self) -> list[str]:
        return [row["id"] for row in read_clip_table(self.folder)]

    def captions(self) -> list[list[TimedText]]:
        return [given_texts(row) for row in read_clip_table(self.folder)]

    @property
    def label_names(self) -> list[str] | None:
        return self.index.label_names

    def _shard(self, group: int) -> "_OpenShard":
        shard = self._open.get(group)
        if shard is None:
            info = self.index.shards[group]
            shard = self._open[group] = _OpenShard(self.index.paths[group], info.clips, info.bytes)
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(group)
        return shard


class VideoClips(ClipSource):
    """Clips that are files of their own, decoded when they are read; meant for small sets.

    Args:
        clips: From [`~cavmae_sync_hf.data.sources.read_source`].
        processor: What the clips are read for.
    """

    def __init__(self, clips: ClipList, processor: CavMaeSyncProcessor) -> None:
        self.clips = clips
        self.feature_extractor = extractor = processor.feature_extractor
        options = PrepareOptions(
            num_frames=extractor.num_frames,
            alignment=extractor.alignment,
            short_side=None,
            sampling_rate=extractor.sampling_rate,
            num_mel_bins=extractor.num_mel_bins,
            channel=extractor.channel,
            audio_track=processor.audio_track,
            missing="keep",
            silent="keep",
        )
        self._packer = ClipPacker(options, clips.rows, moment_options=processor.video_processor.moment_options)
        self.shifts = processor.video_processor.shifts

    @property
    def group_sizes(self) -> list[int]:
        whole, rest = divmod(len(self.clips), _FILES_PER_GROUP)
        return [_FILES_PER_GROUP] * whole + [rest] * bool(rest)

    @property
    def fingerprint(self) -> str:
        return self.clips.digest(captions=False)

    def read(self, number: int, choose: FrameChooser) -> LoadedClip:
        record = self.clips.records[number]
        if record.problem is not None:
            raise DataError(f"{record.source}: {record.problem}. Take the clip out of the list.")
        try:
            clip = self._packer.decode(record)
        except BadClip as error:
            raise DataError(f"{error} Take the clip out of the list, or repair it.") from error
        times = clip.frame_times or self.feature_extractor.default_frame_times(clip.duration)
        chosen = list(choose(record.id, len(times)))
        used, places = chosen, None
        if clip.frames and clip.places is not None:
            kept, places = clip.places[chosen].unique(return_inverse=True)
            used = kept.tolist()
        elif clip.frames and len(self.shifts) > 1:
            used, places = _frames_of_moments(times, chosen, self.shifts, record.source)
        stored = [clip.frames[index] for index in used] if clip.frames else []
        frames = [decode_jpeg(frame) if isinstance(frame, bytes) else frame for frame in stored]
        images = torch.stack(frames) if frames else None
        return LoadedClip(
            clip_id=record.id,
            frames=images if images is None or places is None else MomentFrames(images, places),
            frame_times=times,
            chosen=chosen,
            log_mel=None if clip.waveform is None else self.feature_extractor.log_mel(clip.waveform),
            labels=list(record.labels),
            duration=clip.duration,
            captions=list(cut_texts(record.captions, None, clip.duration)),
        )

    def labels(self) -> list[list[int]]:
        return [list(record.labels) for record in self.clips.records]

    def clip_ids(self) -> list[str]:
        return [record.id for record in self.clips.records]

    def captions(self) -> list[list[TimedText]]:
        return [list(record.captions) for record in self.clips.records]

    @property
    def label_names(self) -> list[str] | None:
        return self.clips.label_names


class _OpenShard:
    """One tar file, mapped into memory, with the place of each of its clips.

    The places come from the headers alone, which takes about 15 microseconds a clip.
    """

    def __init__(self, path: str, clips: int, size: int) -> None:
        self.path = path
        self._remove: Finalize | None = None
        local = path.removeprefix("file://")
        if "://" in local:
            local = _fetch(path)
            # Also runs when a worker process ends, and only in the process that fetched the file.
            self._remove = Finalize(self, shutil.rmtree, (os.path.dirname(local), True), exitpriority=10)
        try:
            with open(local, "rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise DataError(f"{path}: is missing; prepare the set again, finished shards are kept.") from error
        except ValueError as error:
            raise DataError(f"{path}: is empty; delete it and prepare the set again.") from error
        if len(self.data) != size:
            raise DataError(
                f"{path}: has {len(self.data)} bytes, the index says {size}; delete it and prepare the set again."
            )
        self.starts: list[int] = []
        key = None
        for name, header, _, _ in _members(self.data, 0, path):
            stem = _split_name(name)[0]
            if stem != key:
                self.starts.append(header)
                key = stem
        if len(self.starts) != clips:
            raise DataError(
                f"{path}: holds {len(self.starts)} clips, the index says {clips}; delete it and prepare the set again."
            )

    def members(self, number: int) -> tuple[str, dict[str, tuple[int, int]]]:
        """Key of a clip, and per extension where the content begins and its length."""
        key = ""
        places: dict[str, tuple[int, int]] = {}
        for name, _, begin, size in _members(self.data, self.starts[number], self.path):
            stem, extension = _split_name(name)
            if places and stem != key:
                break
            key, places[extension] = stem, (begin, size)
        return key, places

    def content(self, place: tuple[int, int]) -> bytes:
        """Bytes of a member."""
        begin, size = place
        return self.data[begin : begin + size]

    def close(self) -> None:
        """Unmap the file, and remove it where it was fetched."""
        self.data.close()
        if self._remove is not None:
            self._remove()


def _read_shard_clip(
    shard: _OpenShard,
    number: int,
    choose: FrameChooser,
    *,
    extractor: CavMaeSyncFeatureExtractor,
    shifts: Sequence[float],
) -> LoadedClip:
    """Read one clip of a shard, with the chosen frames only, and those beside them that a moment has."""
    key, places = shard.members(number)
    try:
        info = parse_json(shard.content(places["json"]))
        jpegs = sorted(name for name in places if name.startswith("frame_"))
        times = [float(time) for time in info["frame_times"]] or extractor.default_frame_times(info["duration"])
        if jpegs and len(jpegs) != len(times):
            raise ValueError(f"{len(jpegs)} frames but {len(times)} times")
        chosen = list(choose(info["id"], len(times)))
        used, beside = chosen, None
        if jpegs and len(shifts) > 1:
            used, beside = _frames_of_moments(times, chosen, shifts, f"{shard.path}: clip {key}")
        wanted = [jpegs[index] for index in used] if jpegs else []
        names = [*wanted, *(name for name in ("log_mel.npy", FLAC_NAME, "json") if name in places)]
        stored = decode_clip(key, {name: shard.content(places[name]) for name in names})
        waveform, frames = stored.waveform(), stored.frames() if wanted else None
        log_mel = torch.from_numpy(stored.log_mel).float() if len(stored.log_mel) else None
        return LoadedClip(
            clip_id=info["id"],
            frames=frames if frames is None or beside is None else MomentFrames(frames, beside),
            frame_times=times,
            chosen=chosen,
            log_mel=log_mel if waveform is None else extractor.log_mel(waveform),
            labels=[int(label) for label in info["labels"]],
            duration=float(info["duration"]),
            captions=given_texts(info),
        )
    except DataError:
        raise
    except (KeyError, TypeError, OSError, ValueError, EOFError, MemoryError) as error:  # a MediaError is a ValueError
        raise DataError(f"{shard.path}: clip {key} cannot be read ({error!r}); prepare the set again.") from error


def _frames_of_moments(
    times: Sequence[float], chosen: Sequence[int], shifts: Sequence[float], name: str
) -> tuple[list[int], Tensor]:
    """Numbers of the frames that moments need, ascending, and of each moment's frames among those."""
    try:
        used, places = nearest_frames(times, chosen, shifts).unique(return_inverse=True)
    except ValueError as error:
        most = shifts[1] - shifts[0]
        raise DataError(
            f"{name}: {error}; prepare the set again with more of them (num_frames), about {most:g} s apart, or name "
            "the folder or list of the video files instead."
        ) from error
    return used.tolist(), places


def _members(data: mmap.mmap, position: int, path: str) -> Iterator[tuple[str, int, int, int]]:
    """Members of a tar file from a header on: name, where the header, where the content begins, and its length."""
    while position + _BLOCK <= len(data):
        header = data[position : position + _BLOCK]
        if header[:1] == b"\0":
            return
        name = header[:100].split(b"\0", 1)[0].decode(errors="replace")
        try:
            size = int(header[124:136].rstrip(b"\0 "), 8)
        except ValueError as error:
            raise DataError(f"{path}: is damaged at byte {position}; delete it and prepare the set again.") from error
        if header[156:157] not in (b"0", b"\0"):
            raise DataError(
                f"{path}: {name} is not a plain file; only shards written by `cavmae-sync prepare` are read."
            )
        begin = position + _BLOCK
        if begin + size > len(data):
            raise DataError(f"{path}: ends in the middle of a clip; delete it and prepare the set again.")
        yield name, position, begin, size
        position = begin + -(-size // _BLOCK) * _BLOCK


def _split_name(name: str) -> tuple[str, str]:
    """A member's key and extension."""
    stem, _, extension = name.rpartition("/")[2].partition(".")
    return stem, extension


def _fetch(address: str) -> str:
    """Copy a remote file into a temporary folder of its own; returns the path of the copy."""
    folder = tempfile.mkdtemp(prefix="cavmae-sync-shard-")
    local = os.path.join(folder, address.rpartition("/")[2])
    try:
        with fsspec.open(address, "rb") as remote, open(local, "wb") as copy:
            shutil.copyfileobj(remote, copy, 1 << 22)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return local


def _check_fit(index: ShardIndex, extractor: CavMaeSyncFeatureExtractor, folder: str) -> None:
    """Refuse shards whose frames or spectrograms are not what the processor would make."""
    if extractor.features == "waveform" and index.audio != "waveform":
        raise DataError(
            f"{folder}: the shards hold log-mels, and the model's audio encoder hears waveforms; prepare them with "
            f"audio='waveform' and sampling_rate={extractor.sampling_rate}, or name the folder or list of the video "
            "files instead."
        )
    for name, remedy in (
        ("alignment", "`CavMaeSyncProcessor.from_config(config, alignment={stored!r})`"),
        ("num_mel_bins", "a model and processor with `num_mel_bins={stored!r}`"),
        ("sampling_rate", "a feature extractor with `sampling_rate={stored!r}`"),
        ("channel", "`CavMaeSyncProcessor.from_config(config, channel={stored!r})`"),
    ):
        if name == "num_mel_bins" and index.audio == "waveform":  # made of the waveform as they are wanted
            continue
        stored, wanted = getattr(index, name), getattr(extractor, name)
        if stored != wanted:
            raise DataError(
                f"{folder}: the shards were prepared with {name}={stored!r}, the processor has {wanted!r}. Use "
                f"{remedy.format(stored=stored)}, or prepare the set again with {name}={wanted!r}."
            )
