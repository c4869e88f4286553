# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Layout of the page and its events; the steps are in `handlers.py`, the appearance in `assets/`."""

import html
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from .access import Access
from .demo_clips import DemoClips, default_folder, make_demo_clips
from .engine import Engine
from .handlers import SEARCHES, RequestHandler
from .server import Page
from .spelling import AUDIO_CHOICES, AUDIO_LABEL
from .workspace import Limits, Workspace

_INTRO = """
<div class="cs-intro">
<h1>Which sound belongs to which moment?</h1>
<p>This page watches a short video and listens to it. It tells whether audio and video are <b>in step</b>
and, if not, by how much the audio is off; it shows <b>where in the frame</b> the audio comes from; and it finds
<b>other moments</b> that sound or look alike. Pick one of the clips below to see it work, or send one of your
own.</p>
{model}
</div>
"""
_EXAMPLE = """<p class="cs-model">The model at work is the small example that comes with the package. It was trained on
SyncWorld, the drawn world of the clips below, and knows nothing of real videos: its answers about those mean nothing.
Start the page with <code>--model</code> for another.</p>"""
_MODEL = '<p class="cs-model">Model: {name}</p>'
_PROMISES = """
<div class="cs-promises">
<div><b>In step?</b><span>A matrix of every audio window against every frame, a line that says how well each moment
fits, and the offset that would mend it.</span></div>
<div><b>Where?</b><span>The source of the audio lights up in the video while the clip plays.</span></div>
<div><b>Similar</b><span>Stop at a moment and find others, by their audio or by their frame, and play
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
    device: str | torch.device = "auto",
    limits: Limits | None = None,
    demo_folder: str | os.PathLike[str] | None = None,
    allow_hosts: Iterable[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Page:
    """Make the page; `launch()` serves it, and `close()` removes all its files.

    Args:
        model: Folder or Hub name; `None` for the small model that comes with the package.
        index: Folder or address of an index that `cavmae-sync index` made with this model; `None` for one of the demo
            clips, made when it is first searched.
        device: Where the model runs; `"auto"`: CUDA or MPS where this machine has one, else the CPU.
        limits: How much visitors may ask for.
        demo_folder: Where the demo clips are kept; default: the user's cache.
        allow_hosts: Names that the page is served under, beside those of this machine, such as that of a proxy before
            it; `.example.org` for all beneath a name, `*` for any.
        progress: Called with the number of demo clips that are there, and of how many.

    Raises:
        ModelError: There is no such model, or it has one tower alone.
        SearchError: There is no such index, or it was made with another model.
        AppError: One of `allow_hosts` is not a name.
    """
    allow_hosts = tuple(allow_hosts)
    Access.served_at("", allow_hosts)  # before the work
    engine = Engine(model, index=index, device=device)
    demo = make_demo_clips(Path(demo_folder) if demo_folder is not None else default_folder(), progress=progress)
    workspace = Workspace(limits)
    handler = RequestHandler(engine, workspace, demo)
    page = Page(workspace, allow_hosts, title="CAV-MAE Sync")
    with page:
        _Layout(handler).wire(page)
    page.queue(default_concurrency_limit=4, max_size=32, api_open=False)
    return page


class _Layout:
    """The parts of the page, from top to bottom."""

    def __init__(self, handler: RequestHandler) -> None:
        self.handler, limits = handler, handler.limits
        about = _EXAMPLE if handler.engine.is_example else _MODEL.format(name=html.escape(handler.engine.name))
        gr.HTML(_INTRO.format(model=about))
        with gr.Row(elem_classes="cs-choose"):
            with gr.Column(scale=4, min_width=320):
                self.cards = _part("cards", _cards(handler.workspace, handler.demo))
            with gr.Column(scale=1, min_width=220, elem_classes="cs-upload"):
                gr.HTML('<div class="cs-heading">Or send your own</div>')
                self.upload = gr.File(
                    label=f"Video, up to {limits.megabytes:g} MB and {limits.seconds:g} s",
                    elem_classes="cs-video-file",
                    height=150,
                )
                self.audio_choice = gr.Dropdown(
                    list(AUDIO_CHOICES), value=next(iter(AUDIO_CHOICES)), label=AUDIO_LABEL
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
        self.views = {
            name: gr.JSON(visible="hidden") for name in ("clip", "sync", "places", "labels", "video", "hits")
        }
        self.turn, self.time = gr.Number(-1, visible="hidden"), gr.Number(0, visible="hidden")

    def _tabs(self, limits: Limits) -> None:
        with gr.Tab("In step?"):
            _part("matrix")
            _part("offset")
        with gr.Tab("Where?"):
            _part("images")
            self.video = gr.Button("Make a video of it", size="sm")
            gr.HTML('<p class="cs-waiting">The clip with the source of the audio drawn in, as mp4, under Save.</p>')
        with gr.Tab("Similar"):
            self.what = gr.Radio(list(SEARCHES), value=next(iter(SEARCHES)), label="Look for")
            self.find = gr.Button("Search with the moment in the player", variant="primary")
            with gr.Accordion("Search with audio or an image of your own", open=False):
                with gr.Row():
                    self.audio = gr.File(label="Audio file", elem_classes="cs-audio-file", height=120)
                    self.image = gr.File(label="Image", elem_classes="cs-image-file", height=120)
                self.voice = gr.Audio(label="Microphone", sources=["microphone"], type="filepath")
            _part("hits")
        with gr.Tab("Labels"):
            if self.handler.engine.classifier is None:
                gr.HTML(_NO_LABELS)
            else:
                _part("labels")
        with gr.Tab("Save"):
            _part("downloads")

    def wire(self, page: Page) -> None:
        """Say which press does what."""
        handler, views = self.handler, self.views
        model_steps: dict[str, Any] = {
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "show_progress_on": self.status,
            "api_visibility": "private",
        }
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

        def pick(event: gr.EventData, request: gr.Request) -> Any:
            return handler.pick(_visitor(request), (getattr(event, "_data", None) or {}).get("clip"))

        def take(upload: Any, audio: str, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            show = _reporter(progress, "reading the clip")
            return handler.take(_visitor(request), upload, audio, progress=show), None

        picked = self.cards.click(pick, None, views["clip"], **quick)
        sent = self.upload.upload(
            take, [self.upload, self.audio_choice], [views["clip"], self.upload],
            concurrency_id="uploads", concurrency_limit=2, show_progress_on=self.status, api_visibility="private",
        )  # fmt: skip
        for start in (picked, sent):
            shown = start.then(None, views["clip"], None, js=_SHOW)
            for name, step, words in (
                ("sync", handler.measure, "comparing audio and video"),
                ("places", handler.locate, "finding the source of the audio"),
                ("labels", handler.label, "naming what is there"),
            ):
                done = shown.then(_step(step, words), views["clip"], views[name], **model_steps)
                shown = done.then(None, views[name], None, js=_SHOW)

        def video(turn: float, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            return handler.video(_visitor(request), _whole(turn), _reporter(progress, "drawing the video"))

        def find(turn: float, time: float, what: str, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            show = _reporter(progress, "searching")
            return handler.search(_visitor(request), _whole(turn), what, seconds=time, progress=show)

        self.video.click(video, self.turn, views["video"], js=f"() => {_TURN}", **model_steps).then(
            None, views["video"], None, js=_SHOW
        )
        self.find.click(
            find, [self.turn, self.time, self.what], views["hits"],
            js=f"(turn, time, what) => [{_TURN}, {_TIME}, what]", **model_steps,
        ).then(None, views["hits"], None, js=_SHOW)  # fmt: skip
        for source, kind, event in (
            (self.audio, "audio", self.audio.upload),
            (self.image, "image", self.image.upload),
            (self.voice, "audio", self.voice.stop_recording),
        ):
            event(_sender(handler, kind), [source, self.what], [views["hits"], source], **model_steps).then(
                None, views["hits"], None, js=_SHOW
            )

        def leave(request: gr.Request) -> None:
            handler.workspace.drop(_visitor(request))

        page.unload(leave)


def _step(step: Callable[..., dict[str, Any]], words: str) -> Callable[..., Any]:
    """A step that follows the choice of a clip; the words say what it does."""

    def run(clip: Any, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        turn = clip.get("turn") if isinstance(clip, dict) and "clip" in clip else None
        return step(_visitor(request), turn, _reporter(progress, words)) if turn is not None else {}

    run.__name__ = step.__name__
    return run


def _sender(handler: RequestHandler, kind: Any) -> Callable[..., Any]:
    """A search with a file of the visitor's; the file is taken off the page at once."""

    def run(upload: Any, what: str, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        show = _reporter(progress, "searching")
        return handler.search_with(_visitor(request), upload, kind, what, progress=show), None

    run.__name__ = f"search_with_{kind}"
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
