# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A SyncWorld scene as frames, as audio and as an mp4 file.

The frames of an event change where its audio begins, and the audio begins at that frame's time to the sample. Both
tracks start at time zero: the samples that prime AAC, and the delay of B-frames where the encoder preset has them, are
taken out again by the container's edit list, which FFmpeg and browsers honour.
"""

import math
import os

import numpy as np

from ..files import StrPath
from .appearance import Sprite, draw_background, draw_sprite
from .scene import Scene, WorldOptions
from .voices import synthesize

try:
    import av
except ImportError:  # the scenes and their truth can be sampled without it
    av = None  # type: ignore[assignment]

HOP_HEIGHT = 0.22  # in units of the object's side


def render_frames(scene: Scene, options: WorldOptions) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Returns:
        frames: uint8, shape `(num_frames, height, width, 3)`.
        boxes: Bodies without their glow as half-open `(x0, y0, x1, y1)` in pixels, inside the frame, int32, shape
            `(num_objects, num_frames, 4)`.
    """
    frames = _render_background(scene, options)
    boxes = np.zeros((len(scene.objects), options.num_frames, 4), np.int32)
    limits = np.array([options.width, options.height] * 2)
    for slot, item in enumerate(scene.objects):
        states = _states(scene, slot, options.num_frames)
        sprites: dict[tuple[str, int], Sprite] = {}
        for k, (state, step) in enumerate(states):
            drawn = ("idle", 0) if state == "hop" else (state, step)
            if drawn not in sprites:
                sprites[drawn] = draw_sprite(item.appearance, *drawn)
            sprite = sprites[drawn]
            half = sprite.clear.shape[0] / 2
            x, y = np.rint(item.path[k] - half).astype(int)
            if state == "active":  # vibrate by about a fortieth of the body
                x += (1 if step % 2 else -1) * max(1, round(item.appearance.side / 40))
            elif state == "hop":
                y -= round(HOP_HEIGHT * item.appearance.side * abs(math.sin(math.pi * step / 4)))
            _paste(frames[k], sprite, x, y)
            boxes[slot, k] = np.clip(np.array(sprite.box) + (x, y, x, y), 0, limits)
    return frames, boxes


def render_waveform(scene: Scene, options: WorldOptions) -> np.ndarray:
    """Mix the audio of a scene; float32 in [-1, 1], shape `(num_samples,)`."""
    rate = options.sampling_rate
    total = options.sample_of_frame(options.num_frames)
    mix = np.zeros(total, np.float32)
    for event in scene.events:
        start, end = options.sample_of_frame(event.start_frame), options.sample_of_frame(event.end_frame)
        mix[start:end] += synthesize(event.voice, end - start, rate)
    if options.echo > 0:  # the room goes with the background: the two clips of a pair share both
        mix = _add_echo(mix, options, np.random.default_rng([scene.background_seed, 1]))
    if options.noise_db is not None:
        rng = np.random.default_rng(scene.noise_seed)
        mix += np.float32(10 ** (options.noise_db / 20)) * rng.standard_normal(total, dtype=np.float32)
    peak = float(np.abs(mix).max())
    # AAC may overshoot what it is given, hence the head room.
    return mix * np.float32(0.9 / peak) if peak > 0.9 else mix


def encode_clip(path: StrPath, frames: np.ndarray, waveform: np.ndarray, options: WorldOptions) -> None:
    """Write an mp4 file with H.264 and AAC tracks that both begin at time zero.

    Args:
        path: File to write; the caller renames it when it is whole.
        frames: uint8, shape `(num_frames, height, width, 3)`.
        waveform: float32, shape `(num_samples,)`.

    Raises:
        ImportError: If PyAV is not installed.
    """
    if av is None:
        raise ImportError("Writing SyncWorld clips needs PyAV; run `pip install av`.")
    # AAC's default coder takes six times as long for 4 dB that no onset or spectrogram shows.
    settings = {
        "preset": options.encoder_preset,
        "crf": str(options.crf),
        "threads": "1",  # clips run in parallel already, and one thread gives the same bytes everywhere
        "flags": "+bitexact",
    }
    container = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(os.fspath(path), "w", format="mp4", options=container) as file:
        video = file.add_stream("libx264", rate=options.fps, options=settings)
        video.width, video.height, video.pix_fmt = options.width, options.height, "yuv420p"
        audio = file.add_stream("aac", rate=options.sampling_rate, options={"aac_coder": "fast", "flags": "+bitexact"})
        audio.bit_rate, audio.layout = options.audio_bitrate, "mono"
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = k
            file.mux(video.encode(frame))
        file.mux(video.encode())
        samples = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts = options.sampling_rate, 0
        file.mux(audio.encode(samples))
        file.mux(audio.encode())


def write_clip(path: StrPath, scene: Scene, options: WorldOptions) -> np.ndarray:
    """Render and encode a scene; returns the boxes of `render_frames`."""
    frames, boxes = render_frames(scene, options)
    encode_clip(path, frames, render_waveform(scene, options), options)
    return boxes


def _states(scene: Scene, slot: int, num_frames: int) -> list[tuple[str, int]]:
    """Sprite state and step of one object at every frame."""
    states = [("idle", 0)] * num_frames
    for event in scene.events:
        if event.object == slot:
            for k in range(event.start_frame, event.end_frame):
                states[k] = ("active", k % 2)
    cycle = {"spin": 8, "squash": 4, "dim": 1, "hop": 4}
    for animation in scene.animations:
        if animation.object == slot:
            for k in range(animation.start_frame, animation.end_frame):
                states[k] = (animation.kind, (k - animation.start_frame + 1) % cycle[animation.kind])
    return states


def _paste(frame: np.ndarray, sprite: Sprite, x: int, y: int) -> None:
    """Blend a sprite into a frame at its upper left corner, cut at the borders."""
    side = sprite.clear.shape[0]
    top, left = max(0, -y), max(0, -x)
    bottom, right = min(side, frame.shape[0] - y), min(side, frame.shape[1] - x)
    if bottom <= top or right <= left:
        return
    target = frame[y + top : y + bottom, x + left : x + right]
    # 255 * 256 fits 16 bits: behind * clear + colour never exceeds it, for the two weights sum to 256.
    blend = target * sprite.clear[top:bottom, left:right]
    blend += sprite.colour[top:bottom, left:right]
    target[:] = blend >> 8


def _render_background(scene: Scene, options: WorldOptions) -> np.ndarray:
    """A texture that drifts and sways; uint8, shape `(num_frames, height, width, 3)`."""
    rng = np.random.default_rng(scene.background_seed)
    height, width = options.height, options.width
    tile = draw_background(height, width, rng)
    wide = np.concatenate([np.concatenate([tile, tile], 0)] * 2, 1)
    time = np.arange(options.num_frames) / options.fps
    drift, sway = rng.uniform(-0.12, 0.12, 2), rng.uniform(0, 0.06, 2)
    shift = drift * time[:, None] + sway * np.sin(2 * np.pi * rng.uniform(0.1, 0.3, 2) * time[:, None])
    rows = np.rint(shift[:, 1] * height).astype(int) % height
    columns = np.rint(shift[:, 0] * width).astype(int) % width
    frames = np.empty((options.num_frames, height, width, 3), np.uint8)
    for k, (row, column) in enumerate(zip(rows, columns, strict=True)):
        frames[k] = wide[row : row + height, column : column + width]
    return frames


def _add_echo(mix: np.ndarray, options: WorldOptions, rng: np.random.Generator) -> np.ndarray:
    """Add 24 reflections between 15 ms and up to 0.5 s, the last 40 dB down; the direct path stays strongest."""
    count = 24
    reach = options.sampling_rate * (0.15 + 0.35 * options.echo)
    delays = np.sort(rng.uniform(0.015 * options.sampling_rate, reach, count)).astype(int)
    strengths = 0.5 * options.echo * 10 ** (-2.0 * np.arange(count) / count) * rng.choice((-1.0, 1.0), count)
    result = mix.copy()
    for delay, strength in zip(delays, strengths, strict=True):
        result[delay:] += np.float32(strength) * mix[:-delay]
    return result
