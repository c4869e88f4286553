# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Hits of a search as one page to look at and to listen to: images are in it, videos play from where they lie."""

import base64
import html
import io
import os
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from ..data.clock import format_clock
from ..data.failures import file_error
from ..files import StrPath, check_free, write_text
from ..model.errors_cavmae_sync import CavMaeSyncError, MediaError, MissingTrackError, printable
from ..model.media_cavmae_sync import decode_media
from .cutting import CutClip
from .searching import Hit, SearchResult
from .timelines import media_address

OnError = Callable[[str, CavMaeSyncError], None]

_SHORT_SIDE, _JPEG_QUALITY = 270, 80
# What browsers play; of other files they show the image alone.
_PLAYED = frozenset({".mp4", ".m4v", ".mov", ".webm", ".ogv", ".wav", ".mp3", ".m4a", ".flac", ".ogg", ".opus"})

_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --quiet: #5b6068; --ground: #f5f6f7; --card: #fff;
  --line: #dcdfe3; --accent: #0b62c4; }
@media (prefers-color-scheme: dark) { :root { --text: #e8eaed; --quiet: #a2a8b0; --ground: #15171a; --card: #1f2226;
  --line: #34383e; --accent: #79b4ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.45 system-ui, sans-serif; }
header, main, footer { max-width: 1320px; margin: 0 auto; padding: 0 1.25rem; }
h1 { font-size: 1.45rem; margin: 1.5rem 0 .2rem; overflow-wrap: anywhere; }
p { margin: .2rem 0; color: var(--quiet); }
main { display: grid; gap: 1.1rem; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr));
  align-items: start; padding-top: 1.1rem; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
video, article > img { display: block; width: 100%; max-height: 70vh; object-fit: contain; background: #000; }
audio { display: block; width: calc(100% - 1.8rem); margin: .9rem .9rem 0; }
.about { padding: .7rem .9rem .9rem; }
.line { display: flex; gap: .6rem; align-items: baseline; justify-content: space-between; }
.time { font-weight: 600; font-variant-numeric: tabular-nums; }
.score { color: var(--quiet); font-variant-numeric: tabular-nums; }
.name { overflow-wrap: anywhere; }
.path { font-size: .8rem; color: var(--quiet); overflow-wrap: anywhere; }
.lost { margin: .9rem .9rem 0; color: var(--text); }
a { color: var(--accent); }
footer { padding-top: 1.2rem; padding-bottom: 2rem; font-size: .85rem; }
"""
# One plays at a time.
_SCRIPT = """
addEventListener("play", event => {
  for (const other of document.querySelectorAll("video, audio")) if (other !== event.target) other.pause();
}, true);
"""


def write_page(
    result: SearchResult,
    path: StrPath,
    *,
    clips: Sequence[CutClip | None],
    overwrite: bool = False,
    on_error: OnError | None = None,
) -> Path:
    """Write the page.

    Args:
        result: The hits.
        path: File to write.
        clips: For each hit the clip that was cut of it, which is played instead; `None` for its file.
        overwrite: Whether an earlier file is replaced.
        on_error: Called with the name and the error of a file that cannot be read; the page says so, too.

    Raises:
        MediaError: A file cannot be read, where there is no `on_error`.
    """
    check_free(path, overwrite=overwrite)
    folder = Path(path).absolute().parent
    told: set[str] = set()

    def tell(name: str, error: CavMaeSyncError) -> None:
        if on_error is None:
            raise error
        if name not in told:
            on_error(name, error)
        told.add(name)

    cards = [
        _card(number, hit, cut, folder, tell) for number, (hit, cut) in enumerate(zip(result, clips, strict=True), 1)
    ]
    count = f"{len(result)} hit{'' if len(result) == 1 else 's'}"
    how = "every moment compared" if result.exact else "by the approximate index"
    name = result.query if result.by == "text" else os.path.basename(result.query.rstrip("/"))
    title = f"Hits for {_text(name or result.query)}"
    notes = ["Score: mean cosine of the query and the moments found."]
    notes += ["The files play from where they lie on this computer." if not any(clips) else ""]
    played = [hit.path if cut is None else os.fspath(cut.path) for hit, cut in zip(result, clips, strict=True)]
    if any(os.path.splitext(name)[1].lower() not in _PLAYED for name in played):
        notes.append("Some files are of formats that browsers do not play; clips cut with --reencode are not.")
    page = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<header>\n<h1>{title}</h1>",
        f"<p>{_text(result.title)}: {_text(', '.join(result.pairs))}, {count}, {how}.</p>\n</header>",
        "<main>",
        *cards,
        "</main>",
        f"<footer><p>{' '.join(filter(None, notes))}</p></footer>",
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n",
    ]
    return write_text(path, "\n".join(page), overwrite=overwrite)


def _card(number: int, hit: Hit, cut: CutClip | None, folder: Path, tell: OnError) -> str:
    """The part of the page that is about one hit."""
    if cut is None:
        address, start, end = media_address(hit.path), hit.start, hit.end
    else:
        address, start, end = _beside(cut.path, folder), hit.start - cut.start, hit.end - cut.start
    image, reason = _image(hit, tell)
    source = html.escape(f"{address}#t={max(0.0, start):.3f},{end:.3f}")
    if reason:
        shown = f'<p class="lost">{_text(reason)}</p>'
        shown = f'<img alt="" src="{_data_address(image)}">{shown}' if image else shown
    elif image:
        width, height = Image.open(io.BytesIO(image)).size
        shown = (
            f'<video controls preload="none" style="aspect-ratio: {width} / {height}" '
            f'poster="{_data_address(image)}" src="{source}"></video>'
        )
    else:
        shown = f'<audio controls preload="none" src="{source}"></audio>'
    name = _text(os.path.basename(hit.path))
    link = name if reason else f'<a href="{source}">{name}</a>'
    clip = "" if cut is None else f'<div class="path">clip: {_text(os.fspath(cut.path))}</div>'
    return (
        f'<article>{shown}<div class="about"><div class="line">'
        f'<span class="time">{number}. {format_clock(hit.start)} to {format_clock(hit.end)}</span>'
        f'<span class="score">{hit.score:.3f}</span></div><div class="name">{link}</div>'
        f'<div class="path">{_text(hit.path)}</div>{clip}</div></article>'
    )


def _image(hit: Hit, tell: OnError) -> tuple[bytes | None, str]:
    """The frame in the middle of a hit as JPEG, where it has one, and why its file cannot be read, if so."""
    middle = (hit.start + hit.end) / 2
    try:
        media = decode_media(
            hit.path, frame_times=[middle], end=middle + 1.0, want_audio=False, short_side=_SHORT_SIDE,
            damaged="keep",
        )  # fmt: skip
    except MissingTrackError:
        return None, ""
    except Exception as error:
        known = file_error(error, hit.path)
        tell(hit.path, known)
        return hit.thumbnail, known.message if isinstance(known, MediaError) else str(known)
    assert media.frames is not None  # want_video makes its absence an error
    file = io.BytesIO()
    Image.fromarray(media.frames[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue(), ""


def _beside(path: Path, folder: Path) -> str:
    """The address of a file, from a page in a folder; both can be moved together."""
    try:
        relative = os.path.relpath(path.absolute(), folder)
    except ValueError:  # on another drive
        return media_address(os.fspath(path))
    return urllib.parse.quote(os.fsencode(Path(relative).as_posix()))


def _data_address(image: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"


def _text(text: str) -> str:
    return html.escape(printable(text))
