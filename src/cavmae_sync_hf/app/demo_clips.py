# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Clips that can be tried without an upload: SyncWorld clips, made on the spot.

They show objects whose rim glows and whose mouth opens while they sound. Some are in
step, in others audio and video were moved apart on purpose, so that a visitor can check what the model says.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import locked, user_cache, whole_file
from ..syncworld.render import encode_clip, render_frames, render_waveform
from ..syncworld.scene import Scene, WorldOptions, sample_scene

# Part of the folder's name: another version makes other clips.
VERSION = 2
SIDE = 288
LATE_SECONDS = 0.8
# Clips that are there to be found, besides the ones that can be picked.
LIBRARY_CLIPS = 10
_LOCK_PATIENCE = 120.0


@dataclass(frozen=True)
class DemoClip:
    """One clip that can be picked.

    Attributes:
        name: Short name; also of its files.
        title: What it is called on the page.
        text: What is known about it.
        video: The mp4 file.
        poster: An image of it, a JPEG file.
        seconds: Its length.
    """

    name: str
    title: str
    text: str
    video: Path
    poster: Path
    seconds: float


@dataclass(frozen=True)
class DemoClips:
    """The clips to pick from, and the folder with those that can be searched."""

    clips: tuple[DemoClip, ...]
    library: Path


def default_folder() -> Path:
    """Where the clips are kept from one start to the next: the user's cache, or else a temporary folder."""
    try:
        folder = user_cache() / f"demo-clips-{VERSION}"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # read-only, full, or no home
        return Path(tempfile.mkdtemp(prefix="cavmae-sync-demo-clips-"))


def make_demo_clips(folder: Path, *, progress: Callable[[int, int], None] | None = None) -> DemoClips:
    """Make the clips that are not there yet.

    Args:
        folder: Where they go. Several programs may share it.
        progress: Called with the number of clips that are there, and of how many.
    """
    library, parted = folder / "library", folder / "parted"
    for place in (folder, library, parted):
        place.mkdir(parents=True, exist_ok=True)
    makers = _makers(library, parted)
    with locked(folder / ".lock", folder, patience=_LOCK_PATIENCE):
        for done, (path, make) in enumerate(makers.items()):
            if progress is not None:
                progress(done, len(makers))
            if not (path.exists() and path.with_suffix(".jpg").exists()):
                make(path)
    if progress is not None:
        progress(len(makers), len(makers))

    def clip(place: Path, name: str, title: str, text: str) -> DemoClip:
        path = place / f"{name}.mp4"
        seconds = _options("mixed").duration
        return DemoClip(
            name=name, title=title, text=text, video=path, poster=path.with_suffix(".jpg"), seconds=seconds
        )

    return DemoClips(
        (
            clip(library, "in-sync", "In sync", "Audio and video as they were made."),
            clip(parted, "audio-late", "Audio late", f"Its audio was moved and comes {LATE_SECONDS:g} s too late."),
            clip(parted, "other-audio", "Other audio", "Its audio belongs to another clip."),
            clip(library, "who-is-it", "Who is it?", "Several things could make this sound; one of them does."),
        ),
        library,
    )


def _makers(library: Path, parted: Path) -> dict[Path, Callable[[Path], None]]:
    """How each file is made; a clip's poster lies beside it."""
    pair, single, mixed = _options("temporal"), _options("spatial"), _options("semantic")
    # Numbers 2k and 2k + 1 show the same objects and differ in when each of them sounds.
    in_sync, another_take, late, other, audio = (sample_scene(pair, number) for number in (0, 1, 2, 10, 13))
    makers: dict[Path, Callable[[Path], None]] = {
        library / "in-sync.mp4": lambda path: _write(path, pair, in_sync),
        library / "another-take.mp4": lambda path: _write(path, pair, another_take),
        library / "before-it-was-moved.mp4": lambda path: _write(path, pair, late),
        library / "who-is-it.mp4": lambda path: _write(path, single, sample_scene(single, 0)),
        parted / "audio-late.mp4": lambda path: _write(path, pair, late, late=LATE_SECONDS),
        parted / "other-audio.mp4": lambda path: _write(path, pair, other, audio_of=audio),
    }
    for number in range(LIBRARY_CLIPS):
        scene = sample_scene(mixed, number)
        names = sorted({item.class_name for item in scene.objects if item.sounding})
        path = library / f"{number + 1:02d}-{'-and-'.join(names)}.mp4"
        makers[path] = lambda path, scene=scene: _write(path, mixed, scene)  # type: ignore[misc]
    return makers


def _options(preset: str) -> WorldOptions:
    # A split of its own name is a world of its own, which no model was trained on.
    return WorldOptions(seed=1, split="demo", preset=preset, width=SIDE, height=SIDE, crf=20)


def _write(
    path: Path, options: WorldOptions, scene: Scene, *, audio_of: Scene | None = None, late: float = 0.0
) -> None:
    """Write a clip and an image of it, taken while something sounds."""
    frames, _ = render_frames(scene, options)
    waveform = render_waveform(audio_of or scene, options)
    if late:
        samples = round(late * options.sampling_rate)
        # What stands at the front is the noise that lies over the whole clip, not silence that would give it away.
        noise = render_waveform(dataclasses.replace(scene, events=()), options)[:samples]
        waveform = np.concatenate([noise, waveform[:-samples]])
    event = max(scene.events, key=lambda item: item.end_frame - item.start_frame)
    image = Image.fromarray(frames[(event.start_frame + event.end_frame) // 2])
    with whole_file(path.with_suffix(".jpg")) as poster:
        image.save(poster, format="JPEG", quality=85)
    with whole_file(path) as video:
        encode_clip(video, frames, waveform, options)
