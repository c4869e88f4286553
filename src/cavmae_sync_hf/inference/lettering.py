# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Names of files in pictures, in any script."""

import importlib.util
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont, features

# Joiners and choices between forms of a sign, which no font needs to have.
_UNSEEN = "\u200c\u200d\ufe0e\ufe0f"


def title_font(text: str, size: float, fonts: Sequence[str] | None = None) -> ImageFont.FreeTypeFont | None:
    """A font that has every sign of a text; `None` where there is none, or the text cannot be laid out.

    Args:
        text: Such as the name of a file in any script.
        size: Of the letters, pixels.
        fonts: Font files to choose from, best first; default: matplotlib's own, then this machine's.
    """
    text = unicodedata.normalize("NFC", text)
    turned = any(unicodedata.bidirectional(sign) in ("R", "AL") for sign in text)
    joined = turned or any(unicodedata.category(sign)[0] == "M" for sign in text)
    if joined and not features.check("raqm") or turned and not features.check("fribidi"):
        return None  # letters would stand apart, or in the wrong order
    signs = "".join(sorted({sign for sign in text if not sign.isspace() and sign not in _UNSEEN}))
    path = _font_with(signs, None if fonts is None else tuple(fonts))
    return None if path is None else ImageFont.truetype(path, size)


@lru_cache(maxsize=256)
def _font_with(signs: str, fonts: tuple[str, ...] | None) -> str | None:
    """The first font file that draws something for each of some signs."""
    from matplotlib import font_manager

    if fonts is not None:
        return next((path for path in fonts if _draws(path, signs)), None)
    own = font_manager.findfont("DejaVu Sans")
    return own if _draws(own, signs) else next((path for path in _installed_fonts() if _draws(path, signs)), None)


@lru_cache(maxsize=1)
def _installed_fonts() -> tuple[str, ...]:
    """This machine's font files, upright ones without serifs first."""
    from matplotlib import font_manager

    def rank(path: str) -> tuple[int, bool, str]:
        name = Path(path).name.lower()
        unlike = sum(word in name for word in ("bold", "italic", "oblique", "black", "light", "thin", "mono", "serif"))
        return unlike, "sans" not in name, path

    return tuple(sorted(font_manager.findSystemFonts(), key=rank))


def _draws(path: str, signs: str) -> bool:
    from matplotlib.ft2font import FT2Font, LoadFlags

    if "lastresort" in Path(path).name.lower():  # boxes for everything
        return False
    try:
        font = FT2Font(path)
        if not font.scalable or not all(font.get_char_index(ord(sign)) for sign in signs):
            return False
        # Fonts of coloured emoji have empty outlines.
        return all(font.load_char(ord(sign), flags=LoadFlags.NO_SCALE).width > 0 for sign in signs)
    except (OSError, RuntimeError, ValueError):  # no font, or one in a form of its own
        return False


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """A text cut to a width in pixels, with three dots where something is cut off."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def any_font(text: str, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of a title where there is one, else Pillow's own, which has Latin letters."""
    found = title_font(text, size) if importlib.util.find_spec("matplotlib") is not None else None
    return ImageFont.load_default(size) if found is None else found
