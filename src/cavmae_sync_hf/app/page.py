# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What is on the page, and which press does what?

The layout and the wiring alone: what happens is in `handlers.py`, what it looks like in `assets/`.
"""

import html
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from .demo_clips import DemoClips, default_folder, make_demo_clips
from .engine import Engine
from .handlers import SEARCHES, Desk
from .limits import Limits
from .server import Page
from .workspace import Workspace

__all__ = ["build_app"]

VIDEO_TYPES = ["video", ".mkv", ".mov", ".avi", ".ts", ".mts", ".m2ts", ".mxf", ".wmv", ".flv", ".mpg", ".webm"]
SOUND_TYPES = ["audio", ".flac", ".ogg", ".opus", ".m4a"]
PICTURE_TYPES = [".png", ".jpg", ".jpeg", ".webp", ".bmp"]

_INTRO = """
<div class="cs-intro">
<h1>Which sound belongs to which moment?</h1>
<p>This page watches a short video and listens to it. It tells whether sound and picture are <b>in step</b>
and, if not, by how much the sound is off; it shows <b>where in the picture</b> the sound comes from; and it finds
<b>other moments</b> that sound or look alike. Pick one of the clips below to see it work, or send one of your
own.</p>
{model}
</div>
"""
_EXAMPLE = """<p class="cs-model">The model at work is the small example that comes with the package. It was trained on
SyncWorld, the drawn world of the clips below, and knows nothing of real films: what it says about those means little.
Start the page with <code>--model</code> for another.</p>"""
_PROMISES = """
<div class="cs-promises">
<div><b>In step?</b><span>A matrix of every sound against every picture, a line that says how well each moment fits,
and the offset that would mend it.</span></div>
<div><b>Where?</b><span>The source of the sound lights up in the picture while the clip plays.</span></div>
<div><b>Similar</b><span>Stop at a moment and find others, by their sound or by their picture, and play
them.</span></div>
</div>
"""
_NO_LABELS = """<p class="cs-waiting">The model that this page runs with has no classification head, so it cannot
name what is heard and seen. Start the page with a fine-tuned classifier, as
<code>cavmae-sync app --model FOLDER</code>, and its labels appear here.</p>"""

# Runs once a part of the page is there; the script of the page may still be on its way.
_MOUNT = """
const mount = () => window.cavmaeSync ? window.cavmaeSync.mount(element, "{part}", trigger) : setTimeout(mount, 20);
mount();
"""
_SHOW = "(view) => { window.cavmaeSync.show(view); }"
_TURN = "window.cavmaeSync ? window.cavmaeSync.turn() : -1"
_TIME = "window.cavmaeSync ? window.cavmaeSync.time() : 0"


def build_app(
    model: str | os.PathLike[str] | None = None,
    *,
    index: str | None = None,
    device: str | torch.device = "cpu",
    limits: Limits | None = None,
    demo_folder: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Page:
    """Make the page; `launch()` serves it, and `close()` removes all its files.

    Args:
        model: Folder or Hub name; `None` for the small model that comes with the package.
        index: Folder or address of an index that `cavmae-sync index` made with this model; `None` for one of the demo
            clips, made when it is first searched.
        device: Where the model runs.
        limits: How much visitors may ask for.
        demo_folder: Where the demo clips are kept; default: the user's cache.
        progress: Called with the number of demo clips that are there, and of how many.

    Raises:
        ModelError: There is no such model, or it has one tower alone.
        SearchError: There is no such index, or it was made with another model.
    """
    engine = Engine(model, index=index, device=device)
    demo = make_demo_clips(Path(demo_folder) if demo_folder is not None else default_folder(), progress=progress)
    workspace = Workspace(limits)
    desk = Desk(engine, workspace, demo)
    page = Page(workspace, title="CAV-MAE Sync")
    with page:
        _Layout(desk).wire(page)
    page.queue(default_concurrency_limit=4, max_size=32, api_open=False)
    return page


class _Layout:
    """The parts of the page, from top to bottom."""

    def __init__(self, desk: Desk) -> None:
        self.desk, limits = desk, desk.limits
        about = (
            _EXAMPLE if desk.engine.is_example else f'<p class="cs-model">Model: {html.escape(desk.engine.name)}</p>'
        )
        gr.HTML(_INTRO.format(model=about))
        with gr.Row(elem_classes="cs-choose"):
            with gr.Column(scale=4, min_width=320):
                self.cards = _part("cards", _cards(desk.workspace, desk.demo))
            with gr.Column(scale=1, min_width=220, elem_classes="cs-upload"):
                gr.HTML('<div class="cs-heading">Or send your own</div>')
                self.upload = gr.File(
                    label=f"Video, up to {limits.megabytes:g} MB and {limits.seconds:g} s",
                    file_types=VIDEO_TYPES,
                    height=190,
                )
        self.status = _part("status")
        with gr.Row(elem_classes="cs-promises-block"):
            gr.HTML(_PROMISES)
        with gr.Row(elem_classes="cs-results"):
            with gr.Column(scale=5, min_width=320, elem_classes="cs-left"):
                _part("player")
            with gr.Column(scale=6, min_width=320), gr.Tabs():
                self._tabs(limits)
        # What the server found, for the script to draw. One for each step, so that none overtakes another.
        self.views = {name: gr.JSON(visible="hidden") for name in ("clip", "sync", "places", "labels", "film", "hits")}
        self.turn, self.time = gr.Number(-1, visible="hidden"), gr.Number(0, visible="hidden")

    def _tabs(self, limits: Limits) -> None:
        with gr.Tab("In step?"):
            _part("matrix")
            _part("offset")
        with gr.Tab("Where?"):
            _part("pictures")
            self.film = gr.Button("Make a film of it", size="sm")
            gr.HTML('<p class="cs-waiting">The clip with the source of the sound drawn in, as mp4, under Save.</p>')
        with gr.Tab("Similar"):
            self.what = gr.Radio(list(SEARCHES), value=next(iter(SEARCHES)), label="Look for")
            self.find = gr.Button("Search with the moment in the player", variant="primary")
            with gr.Accordion("Search with a sound or a picture of your own", open=False):
                with gr.Row():
                    self.sound = gr.File(label="Sound file", file_types=SOUND_TYPES, height=120)
                    self.picture = gr.File(label="Picture", file_types=PICTURE_TYPES, height=120)
                self.voice = gr.Audio(label="Microphone", sources=["microphone"], type="filepath")
            _part("hits")
        with gr.Tab("Labels"):
            if self.desk.engine.classifier is None:
                gr.HTML(_NO_LABELS)
            else:
                _part("labels")
        with gr.Tab("Save"):
            _part("downloads")

    def wire(self, page: Page) -> None:
        """Say which press does what."""
        desk, views = self.desk, self.views
        model_steps: dict[str, Any] = {
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "show_progress_on": self.status,
            "api_visibility": "private",
        }
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

        def pick(event: gr.EventData, request: gr.Request) -> Any:
            return desk.pick(_visitor(request), (getattr(event, "_data", None) or {}).get("clip"))

        def take(upload: Any, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            return desk.take(_visitor(request), upload, _reporter(progress, "reading the clip")), None

        picked = self.cards.click(pick, None, views["clip"], **quick)
        sent = self.upload.upload(
            take, self.upload, [views["clip"], self.upload],
            concurrency_id="uploads", concurrency_limit=2, show_progress_on=self.status, api_visibility="private",
        )  # fmt: skip
        for start in (picked, sent):
            shown = start.then(None, views["clip"], None, js=_SHOW)
            for name, step, words in (
                ("sync", desk.measure, "comparing sound and picture"),
                ("places", desk.locate, "finding the source of the sound"),
                ("labels", desk.label, "naming what is there"),
            ):
                done = shown.then(_step(step, words), views["clip"], views[name], **model_steps)
                shown = done.then(None, views[name], None, js=_SHOW)

        def film(turn: float, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            return desk.film(_visitor(request), _whole(turn), _reporter(progress, "drawing the film"))

        def find(turn: float, time: float, what: str, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            return desk.search(_visitor(request), _whole(turn), what, time, _reporter(progress, "searching"))

        self.film.click(film, self.turn, views["film"], js=f"() => {_TURN}", **model_steps).then(
            None, views["film"], None, js=_SHOW
        )
        self.find.click(
            find, [self.turn, self.time, self.what], views["hits"],
            js=f"(turn, time, what) => [{_TURN}, {_TIME}, what]", **model_steps,
        ).then(None, views["hits"], None, js=_SHOW)  # fmt: skip
        for source, kind, event in (
            (self.sound, "sound", self.sound.upload),
            (self.picture, "picture", self.picture.upload),
            (self.voice, "sound", self.voice.stop_recording),
        ):
            event(_sender(desk, kind), [source, self.what], [views["hits"], source], **model_steps).then(
                None, views["hits"], None, js=_SHOW
            )

        def leave(request: gr.Request) -> None:
            desk.workspace.drop(_visitor(request))

        page.unload(leave)


def _step(step: Callable[..., dict[str, Any]], words: str) -> Callable[..., Any]:
    """A step that follows the choice of a clip; the words say what it does."""

    def run(clip: Any, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        turn = clip.get("turn") if isinstance(clip, dict) and "clip" in clip else None
        return step(_visitor(request), turn, _reporter(progress, words)) if turn is not None else {}

    return run


def _sender(desk: Desk, kind: Any) -> Callable[..., Any]:
    """A search with a file of the visitor's; the file is taken off the page at once."""

    def run(upload: Any, what: str, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        return desk.search_with(_visitor(request), upload, kind, what, _reporter(progress, "searching")), None

    return run


def _visitor(request: gr.Request) -> str:
    return str(request.session_hash)


def _whole(turn: Any) -> int | None:
    return int(turn) if isinstance(turn, int | float) and turn == turn else None


def _reporter(progress: Any, words: str) -> Callable[..., None]:
    """Gradio's progress as `show(done, total, remark)`."""

    def show(done: float = 0, total: float = 0, remark: str = "") -> None:
        progress(min(1.0, done / total) if total else 0.0, desc=f"{words}, {remark}" if remark else words)

    return show


def _part(name: str, content: str = "") -> gr.HTML:
    """A place that the page's script fills."""
    return gr.HTML(
        f'<div class="cs-at-{name}" data-part="{name}">{content}</div>',
        js_on_load=_MOUNT.replace("{part}", name),
        elem_id=f"cs-{name}",
    )


def _cards(workspace: Workspace, demo: DemoClips) -> str:
    """The demo clips to choose from."""
    cards = []
    for number, clip in enumerate(demo.clips):
        poster = workspace.shared.offer(clip.poster, clip.poster.name)
        cards.append(
            f'<button type="button" class="cs-card" data-clip="{number}" aria-pressed="false">'
            f'<img src="{html.escape(poster)}" alt=""><b>{html.escape(clip.title)}</b>'
            f"<span>{html.escape(clip.text)}</span></button>"
        )
    return f'<div class="cs-heading">Pick a clip</div><div class="cs-deck">{"".join(cards)}</div>'
