# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Appearance of the SyncWorld classes: at rest, sounding, and in silent animations.

Every class has a shape, a texture and a range of colour of its own; the face is the same for all. A sounding object
opens its mouth, brightens and gets a white glowing rim, which can be seen in a single frame of 96 pixels; the silent
animations (spin, squash, dim) never touch rim or mouth. Sprites are drawn once per object and state and pasted many
times.
"""

import colorsys
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import numpy as np

Grid = np.ndarray
SUPERSAMPLING = 3
CANVAS = 1.42  # half the sprite's side in units of half the body's side: room for the glow and for turned corners
GLOW = (1.20, 1.36)  # the solid and the soft rim, as enlargements of the body


@dataclass(frozen=True)
class ClassAppearance:
    """Appearance of a class.

    Attributes:
        inside: `inside(u, v)` is true inside the body, on [-1, 1] x [-1, 1] (v points down).
        texture: One of `TEXTURES`.
        hue, saturation, value: Middle of the range of colour; hue in degrees.
        eyes: Place `(u, v)` of the right eye; the left one mirrors it.
    """

    inside: Callable[[Grid, Grid], Grid]
    texture: str
    _: KW_ONLY
    hue: float
    saturation: float
    value: float
    eyes: tuple[float, float] = (0.28, -0.22)


@dataclass(frozen=True)
class Appearance:
    """Appearance of one object: side in pixels, hue in [0, 1), saturation, value, tilt in radians, texture phase."""

    class_name: str
    side: float
    hue: float
    saturation: float
    value: float
    tilt: float
    phase: float


@dataclass(frozen=True)
class Sprite:
    """An image to paste: colours times opacity and 256 minus opacity, uint16, and the body's box inside it.

    `box` is `(x0, y0, x1, y1)` in pixels of the sprite, half open, around the body without its glow.
    """

    colour: np.ndarray  # (side, side, 3), premultiplied by opacity in 0..256
    clear: np.ndarray  # (side, side, 1)
    box: tuple[int, int, int, int]


def sample_appearance(class_name: str, side: float, rng: np.random.Generator) -> Appearance:
    """Draw the appearance of one object within its class's ranges."""
    kind = CLASS_APPEARANCES[class_name]
    return Appearance(
        class_name=class_name,
        side=side,
        hue=(kind.hue + rng.uniform(-9, 9)) / 360 % 1.0,
        saturation=float(np.clip(kind.saturation + rng.uniform(-0.08, 0.08), 0, 1)),
        value=float(np.clip(kind.value + rng.uniform(-0.08, 0.08), 0, 1)),
        tilt=rng.uniform(-0.2, 0.2),
        phase=rng.uniform(0, 1),
    )


def draw_sprite(appearance: Appearance, state: str = "idle", step: int = 0) -> Sprite:
    """Draw an object in one state.

    Args:
        appearance: The object.
        state: `"idle"`, `"active"` (steps 0 and 1 differ in the width of the glow), `"spin"` (8 steps to a turn),
            `"squash"` (4 steps) or `"dim"`.
        step: Phase of the animation.

    Raises:
        ValueError: If the state is not one of the above.
    """
    if state not in ("idle", "active", "spin", "squash", "dim"):
        raise ValueError(f"Unknown sprite state {state!r}; use idle, active, spin, squash or dim.")
    kind = CLASS_APPEARANCES[appearance.class_name]
    radius = appearance.side / 2
    side = 2 * int(np.ceil(radius * CANVAS))
    axis = (np.arange(side * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - side / 2
    angle = appearance.tilt + (2 * np.pi * step / 8 if state == "spin" else 0.0)
    x, y = axis[None, :] / radius, axis[:, None] / radius
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if state == "squash":
        stretch = (1.0, 1.22, 1.0, 0.82)[step % 4]
        u, v = u * stretch, v / stretch
    body = kind.inside(u, v)
    colour = _paint(appearance, state, u, v)
    opacity = body.astype(np.float32)
    if state == "active":
        grow = (1.0, 1.06)[step % 2]
        solid = kind.inside(u / (GLOW[0] * grow), v / (GLOW[0] * grow)) & ~body
        soft = kind.inside(u / (GLOW[1] * grow), v / (GLOW[1] * grow)) & ~body & ~solid
        opacity = opacity + solid + 0.55 * soft
        colour[solid] = (255.0, 255.0, 225.0)
        colour[soft] = (255.0, 250.0, 190.0)

    def shrink(values: np.ndarray) -> np.ndarray:
        return values.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING, -1).mean((1, 3))

    alpha = np.rint(shrink(opacity) * 256)
    premultiplied = np.rint(shrink(colour * opacity[..., None]) * 256)
    covered = shrink(body.astype(np.float32))[..., 0] >= 0.5
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Sprite(premultiplied.astype(np.uint16), (256 - alpha).astype(np.uint16), box)


def draw_background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a muted texture that repeats without seams, uint8, shape `(height, width, 3)`.

    Values stay below 0.55, so that bodies and above all the white glow stand out on every background.
    """
    fy, fx = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None, :] * width
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 4.0)
    along, across = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    distance = np.sqrt(along**2 + (across * stretch) ** 2) + 1.0
    spectrum = rng.standard_normal((2, height, fx.shape[1])) * distance ** -rng.uniform(1.2, 2.0)
    texture = np.fft.irfft2(spectrum[0] + 1j * spectrum[1], (height, width))
    texture = np.clip(0.5 + 0.25 * (texture - texture.mean()) / (texture.std() + 1e-9), 0, 1)[..., None]
    hues, values = rng.uniform(0, 1, 2), (rng.uniform(0.1, 0.28), rng.uniform(0.3, 0.5))
    ends = [np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.1, 0.4), v)) for hue, v in zip(hues, values, strict=True)]
    return np.rint(255 * (ends[0] + (ends[1] - ends[0]) * texture)).astype(np.uint8)


def _paint(appearance: Appearance, state: str, u: Grid, v: Grid) -> np.ndarray:
    """Colour every point of the canvas as if the body filled it; float32, 0..255."""
    kind = CLASS_APPEARANCES[appearance.class_name]
    value = appearance.value * (0.45 if state == "dim" else 1.0)
    if state == "active":
        value = min(1.0, value + 0.15)
    base = np.array(colorsys.hsv_to_rgb(appearance.hue, appearance.saturation, value), dtype=np.float32) * 255
    dark = TEXTURES[kind.texture](u, v, appearance.phase)
    colour = np.where(dark[..., None], base * 0.55, base).astype(np.float32)
    ex, ey = kind.eyes
    eye = np.minimum((u - ex) ** 2, (u + ex) ** 2) + (v - ey) ** 2
    if state == "dim":
        colour[(np.abs(v - ey) < 0.05) & (np.abs(np.abs(u) - ex) < 0.16)] = 10.0
    else:
        colour[eye < 0.17**2] = 250.0
        colour[eye < 0.085**2] = 10.0
    if state == "active":
        mouth = (u / (ex + 0.06)) ** 2 + ((v - 0.36) / 0.3) ** 2
        colour[mouth < 1] = (25.0, 5.0, 10.0)
        colour[(mouth < 0.7) & (v > 0.42)] = (220.0, 40.0, 60.0)
    else:
        colour[(np.abs(v - 0.3) < 0.055) & (np.abs(u) < ex)] = 20.0
    return colour


def _polar(u: Grid, v: Grid) -> tuple[Grid, Grid]:
    return np.hypot(u, v), np.arctan2(v, u)


def _bell(u: Grid, v: Grid) -> Grid:
    dome = np.abs(u) < 0.85 * np.sqrt(np.clip((v + 1) / 1.7, 0, 1))
    return (dome & (v < 0.7)) | ((np.abs(u) < 1.0) & (v >= 0.55) & (v < 0.9))


def _capsule(u: Grid, v: Grid) -> Grid:
    return np.hypot(u, np.maximum(np.abs(v) - 0.45, 0)) < 0.55


def _triangle(u: Grid, v: Grid) -> Grid:
    return (np.abs(u) < (v + 1.0) / 1.8) & (v < 0.8)


def _disc(u: Grid, v: Grid) -> Grid:
    return u**2 + v**2 < 0.95


def _cloud(u: Grid, v: Grid) -> Grid:
    lobes = ((-0.52, 0.2, 0.48), (0.52, 0.2, 0.48), (0.0, -0.25, 0.62), (0.0, 0.35, 0.5))
    inside = np.zeros(np.broadcast(u, v).shape, bool)
    for cx, cy, radius in lobes:
        inside |= (u - cx) ** 2 + (v - cy) ** 2 < radius**2
    return inside


def _square(u: Grid, v: Grid) -> Grid:
    return u**6 + v**6 < 0.85**6


def _gear(u: Grid, v: Grid) -> Grid:
    radius, angle = _polar(u, v)
    return radius < np.where(np.sin(9 * angle) > 0, 1.0, 0.76)


def _star(u: Grid, v: Grid) -> Grid:
    radius, angle = _polar(u, v)
    sector = np.abs((angle + np.pi / 2 + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    # The straight edge from the point (1, 0) to the notch at radius 0.55 and 36 degrees, in polar form.
    notch_x, notch_y = 0.55 * np.cos(np.pi / 5), 0.55 * np.sin(np.pi / 5)
    return radius < 1.05 * notch_y / (np.cos(sector) * notch_y - np.sin(sector) * (notch_x - 1.0))


def _heart(u: Grid, v: Grid) -> Grid:
    x, y = 1.12 * u, -1.12 * v + 0.12
    return (x**2 + y**2 - 0.8) ** 3 < 1.3 * x**2 * y**3


def _hexagon(u: Grid, v: Grid) -> Grid:
    return np.maximum(np.abs(u) * 0.866 + np.abs(v) * 0.5, np.abs(v)) < 0.86


def _ellipse(u: Grid, v: Grid) -> Grid:
    return u**2 + (v / 0.72) ** 2 < 1.0


def _flower(u: Grid, v: Grid) -> Grid:
    radius, angle = _polar(u, v)
    return radius < 0.8 + 0.2 * np.cos(6 * angle)


TEXTURES: dict[str, Callable[[Grid, Grid, float], Grid]] = {
    "plain": lambda u, v, p: np.zeros(np.broadcast(u, v).shape, bool),
    "stripes": lambda u, v, p: (v / 0.5 + p + 0 * u) % 1.0 < 0.45,
    "columns": lambda u, v, p: (u / 0.5 + p + 0 * v) % 1.0 < 0.45,
    "rings": lambda u, v, p: (np.hypot(u, v) / 0.45 + p) % 1.0 < 0.4,
    "dots": lambda u, v, p: ((u / 0.5 + p) % 1.0 - 0.5) ** 2 + ((v / 0.5 + p) % 1.0 - 0.5) ** 2 < 0.08,
    "checker": lambda u, v, p: (np.floor(u / 0.4 + p) + np.floor(v / 0.4 + p)) % 2 == 0,
}

CLASS_APPEARANCES: dict[str, ClassAppearance] = {
    "bell": ClassAppearance(_bell, "plain", hue=46, saturation=0.9, value=0.9),
    "string": ClassAppearance(_capsule, "stripes", hue=22, saturation=0.9, value=0.85, eyes=(0.22, -0.3)),
    "whistle": ClassAppearance(_triangle, "plain", hue=185, saturation=0.8, value=0.85, eyes=(0.2, -0.05)),
    "hum": ClassAppearance(_disc, "rings", hue=275, saturation=0.75, value=0.8),
    "hiss": ClassAppearance(_cloud, "plain", hue=210, saturation=0.1, value=0.88),
    "bark": ClassAppearance(_square, "dots", hue=25, saturation=0.65, value=0.5),
    "clicks": ClassAppearance(_gear, "plain", hue=215, saturation=0.25, value=0.6),
    "siren": ClassAppearance(_star, "plain", hue=0, saturation=0.92, value=0.88, eyes=(0.2, -0.18)),
    "chirp": ClassAppearance(_heart, "plain", hue=318, saturation=0.75, value=0.95),
    "buzz": ClassAppearance(_hexagon, "columns", hue=66, saturation=0.95, value=0.9),
    "drum": ClassAppearance(_ellipse, "checker", hue=130, saturation=0.8, value=0.72, eyes=(0.28, -0.2)),
    "bubble": ClassAppearance(_flower, "dots", hue=222, saturation=0.85, value=0.9),
}
