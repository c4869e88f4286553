# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Names of videos in plots: drawn with a font that has their signs, or left out; never boxes, never a warning."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import features

from cavmae_sync_hf.inference.lettering import shorten, title_font
from cavmae_sync_hf.inference.plots import draw_timeline
from cavmae_sync_hf.inference.sync import SyncResult, measure_sync
from helpers.rule_models import ramp_pair, ramp_video

pytest.importorskip("matplotlib")
SIGNS = "日本語"


def make_font(path: Path, signs: str, empty: bool = False) -> Path:
    """A font that draws squares for some signs and what is in their names, or nothing where it is `empty`."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000, isTTF=True)
    pens = pytest.importorskip("fontTools.pens.ttGlyphPen")
    pen, nothing = pens.TTGlyphPen(None), pens.TTGlyphPen(None).glyph()
    for move, point in (("moveTo", (100, 0)), ("lineTo", (100, 700)), ("lineTo", (600, 700)), ("lineTo", (600, 0))):
        getattr(pen, move)(point)
    pen.closePath()
    square = nothing if empty else pen.glyph()
    names = {ord(sign): f"u{ord(sign):04X}" for sign in signs + "abcdefghijklmnopqrstuvwxyz0123456789.-_ "}
    order = [".notdef", *names.values()]
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    builder.setupGlyf({name: nothing if name == "u0020" else square for name in order})
    builder.setupHorizontalMetrics(dict.fromkeys(order, (700, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> SyncResult:
    video = ramp_video(tmp_path_factory.mktemp("videos") / "x.mp4")
    return measure_sync(*ramp_pair(), video, hop=0.5, end=4)


@pytest.fixture
def fonts(tmp_path, monkeypatch) -> list[str]:
    """The fonts of this machine, to be filled."""
    from matplotlib import font_manager

    from cavmae_sync_hf.inference import lettering

    found: list[str] = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *_, **__: found)
    for cache in (lettering._font_with, lettering._installed_fonts):
        cache.cache_clear()
    yield found
    for cache in (lettering._font_with, lettering._installed_fonts):
        cache.cache_clear()


def draw(result: SyncResult, name: str) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.asarray(draw_timeline(replace(result, source=f"folder/{name}"), size=(800, 500)))


@pytest.mark.parametrize(
    "name", ["Überschrift café.mp4", "Привет.mp4", "a $x$ {b}_c^d.mp4", "caf\\xe9\\n.mp4", "Ωμέγα.mp4"]
)
def test_title__in_matplotlibs_own_font(result, fonts, name):
    own = title_font(name, 15)

    assert own is not None and "DejaVu" in own.path
    assert (draw(result, name)[:20] != draw(result, f"{SIGNS}.mp4")[:20]).any()


@pytest.mark.parametrize("name", [f"{SIGNS}.mp4", "🦊.mp4", "हिन्दी.mp4", "𓀀.mp4"])
def test_title__without_a_font_is_left_out(result, fonts, name):
    assert title_font(name, 15) is None
    # All that is left is what the offset is.
    np.testing.assert_array_equal(draw(result, name), draw(result, "日" * 200 + ".mp4"))


def test_title__takes_the_installed_font_that_has_the_signs(result, fonts, tmp_path):
    without = draw(result, f"{SIGNS}.mp4")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    fonts += [
        str(tmp_path / "broken.ttf"), str(tmp_path / "gone.ttf"), str(make_font(tmp_path / "Other.ttf", "日本")),
        str(make_font(tmp_path / "Empty.ttf", SIGNS, empty=True)), str(make_font(tmp_path / "LastResort.ttf", SIGNS)),
        str(make_font(tmp_path / "Bold.ttf", SIGNS)), str(make_font(tmp_path / "Right.ttf", SIGNS)),
    ]  # fmt: skip
    from cavmae_sync_hf.inference import lettering

    for cache in (lettering._font_with, lettering._installed_fonts):
        cache.cache_clear()

    chosen = title_font(f"{SIGNS}.mp4", 15)
    assert chosen is not None and Path(chosen.path).name == "Right.ttf"
    assert (draw(result, f"{SIGNS}.mp4") != without).any()


def test_title__fonts_can_be_given(tmp_path):
    other, right = make_font(tmp_path / "a.ttf", "日"), make_font(tmp_path / "b.ttf", SIGNS)

    chosen = title_font(f"{SIGNS}.mp4", 20, [str(other), str(right)])

    assert chosen is not None and (chosen.path, chosen.size) == (str(right), 20)
    assert title_font("한.mp4", 20, [str(other), str(right)]) is None


@pytest.mark.parametrize(("name", "needed"), [("مرحبا.mp4", ("raqm", "fribidi")), ("שלום.mp4", ("raqm", "fribidi"))])
def test_title__that_runs_to_the_left_needs_a_layout_for_it(fonts, monkeypatch, name, needed):
    assert (title_font(name, 15) is not None) == all(map(features.check, needed))
    monkeypatch.setattr(features, "check", lambda feature: feature != "fribidi")
    assert title_font(name, 15) is None


def test_title__combining_letters_are_composed(fonts, monkeypatch):
    monkeypatch.setattr(features, "check", lambda feature: False)

    assert title_font("U\u0308berschrift.mp4", 15) is not None


def test_title__that_is_long_is_cut_to_the_width(result, fonts):
    font = title_font("a", 15)
    assert font is not None

    short = shorten("word " * 100, font, 300)

    assert short.endswith("...") and 250 < font.getlength(short) <= 300
    assert shorten("word", font, 300) == "word"
    edge = draw(result, "m" * 300 + ".mp4")[:20, -8:]
    assert (edge == 255).all()
