# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Layout of the page and its events; the steps are in `handlers.py`, the appearance in `assets/`."""

import base64
import html
import os
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from ..loading import Backend, Precision
from ..model.errors_cavmae_sync import AppError
from .access import Access
from .demo_clips import DemoClips, default_folder, make_demo_clips
from .endpoints import Endpoints
from .engine import Engine
from .handlers import SEARCHES, RequestHandler
from .server import Page
from .spelling import AUDIO_CHOICES, AUDIO_LABEL
from .workspace import Limits, Workspace

_INTRO = """
<div class="cs-intro">
<h1>Does the sound belong to the picture?</h1>
<div class="cs-long">
<p>Give this page a short video. It watches and listens, and tells you whether audio and video are
<b>in sync</b> and, if not, by how much; it shows <b>where in the frame</b> the audio comes from; and it finds
<b>other moments</b> that sound or look alike. Pick a clip to see it work, or send one of your own.</p>
{model}
</div>
<p class="cs-links">{links}</p>
</div>
"""
_EXAMPLE = """<p class="cs-model">The model at work is the small example that comes with the package. It was trained on
drawn clips like those below and knows nothing of real videos: what it says of those means nothing. Whoever runs this
page can give it another model with <code>--model</code>.</p>"""
_MODEL = '<p class="cs-model">Model: {name}</p>'
_PAPER = "https://arxiv.org/abs/2505.01237"
_CODE = "https://github.com/edsonroteia/cav-mae-sync"
_PROMISES = """
<div class="cs-promises">
<div><b>In sync?</b><span>A verdict in plain words, how well each moment fits, and what would mend it.</span></div>
<div><b>Where?</b><span>What makes the sound lights up in the video while the clip plays.</span></div>
<div><b>Similar</b><span>Stop at a moment and find others that sound or look like it, and play them. Audio alone can
search, too.</span></div>
</div>
"""
_NO_LABELS = """<p class="cs-waiting">The model of this page has no classification head, so it cannot name what it
hears and sees. Whoever runs the page can give it a fine-tuned classifier, as
<code>cavmae-sync app --model FOLDER</code>, and its labels appear here; or a model with text, which takes labels in
words.</p>"""
_REAL = """<figure class="cs-real">
<img alt="Similarities of audio and frames of a talking face, and the fit with the audio moved" src="{image}">
<figcaption>A talking face, and a small model that was trained on 800 clips of another person (recipe
<code>grid_lips</code>). On the left each row is a moment of the audio, each column a frame: what belongs together
lies on the diagonal. On the right the audio is moved: it fits best where it is. Picture made from the GRID corpus
(M. Cooke, J. Barker, S. Cunningham, X. Shao, 2006; CC BY 4.0).</figcaption></figure>"""
_WORDS = """<p class="cs-model">This model knows words: search for them, look for them in the frame, and give labels of
your own, under the tabs beside the clip.</p>"""

_ASKS = """<p class="cs-model">This model answers questions about a clip, under the tab Ask.</p>"""

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
    backend: Backend = "torch",
    precision: Precision = "float32",
    limits: Limits | None = None,
    demo_folder: str | os.PathLike[str] | None = None,
    allow_hosts: Iterable[str] = (),
    progress: Callable[[int, int], None] | None = None,
    export_progress: Callable[..., None] | None = None,
) -> Page:
    """Make the page; `launch()` serves it, and `close()` removes all its files.

    Args:
        model: Folder or Hub name; `None` for the small model that comes with the package.
        index: Folder or address of an index that `cavmae-sync index` made with this model; `None` for one of the demo
            clips, made when it is first searched.
        device: Where the model runs; `"auto"`: CUDA or MPS where this machine has one, else the CPU.
        backend, precision: As of `load_model`; see `Engine`.
        limits: How much visitors may ask for.
        demo_folder: Where the demo clips are kept; default: the user's cache.
        allow_hosts: Names that the page is served under, beside those of this machine, such as that of a proxy before
            it; `.example.org` for all beneath a name, `*` for any.
        progress: Called with the number of demo clips that are there, and of how many.
        export_progress: As `progress` of `load_model`.

    Raises:
        ModelError: There is no such model, or it has one tower alone.
        SearchError: There is no such index, or it was made with another model.
        AppError: One of `allow_hosts` is not a name.
    """
    allow_hosts = tuple(allow_hosts)
    Access.served_at("", allow_hosts)  # before the work
    engine = Engine(model, index=index, device=device, backend=backend, precision=precision, progress=export_progress)
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
        self.words, self.asks = handler.engine.text_model is not None, handler.engine.language is not None
        gr.HTML(_intro(handler))
        with gr.Row(elem_classes="cs-choose"):
            with gr.Column(scale=4, min_width=320):
                self.cards = _part("cards", _cards(handler.workspace, handler.demo))
            with gr.Column(scale=1, min_width=220, elem_classes="cs-upload"):
                gr.HTML(
                    '<h2 class="cs-heading">Or send your own</h2><p class="cs-limits">A video, or audio alone, up to '
                    f"{limits.megabytes:g} MB and {limits.seconds:g} s. It is removed when you leave.</p>"
                )
                self.upload = gr.File(label="Video or audio", elem_classes="cs-clip-file", height=150)
                self.audio_choice = gr.Dropdown(
                    list(AUDIO_CHOICES), value=next(iter(AUDIO_CHOICES)), label=AUDIO_LABEL
                )
        self.status = _part("status", facts={"most": limits.max_bytes})
        with gr.Row(elem_classes="cs-promises-block"):
            gr.HTML(_PROMISES)
        with gr.Row(elem_classes="cs-results"):
            with gr.Column(scale=5, min_width=320, elem_classes="cs-left"):
                _part("verdict")
                _part("player")
                with gr.Accordion("Try other audio with this video", open=False, elem_classes="cs-dub"):
                    gr.HTML(
                        '<p class="cs-waiting">The audio of the file that you send is put to the frames of this clip, '
                        "from the start, and the two are measured together.</p>"
                    )
                    self.dub = gr.File(label="Audio or video", elem_classes="cs-sound-file", height=150)
            with gr.Column(scale=6, min_width=320), gr.Tabs():
                self._tabs()
        # What the server found, for the script to draw. One for each step, so that none overtakes another.
        self.views = {
            name: gr.JSON(visible="hidden")
            for name in ("clip", "sync", "places", "labels", "video", "hits", "answers", "scored")
        }
        self.turn, self.time = gr.Number(-1, visible="hidden"), gr.Number(0, visible="hidden")

    def _tabs(self) -> None:
        with gr.Tab("In sync?"):
            _part("matrix")
            _part("offset")
            with gr.Accordion("A real recording, for comparison", open=False):
                picture = resources.files(__package__).joinpath("assets", "talking_face.png").read_bytes()
                gr.HTML(_REAL.format(image=f"data:image/png;base64,{base64.b64encode(picture).decode()}"))
        with gr.Tab("Where?"):
            if self.words:
                self.place_text = self._words("Or look for words", "the bell", "Empty: the source of the audio again.")
                self.look = gr.Button("Look for the words", size="md")
            _part("images")
            self.video = gr.Button("Make a video of it", size="md")
            gr.HTML('<p class="cs-waiting">The clip with these colours drawn in, as an mp4 file; also under Save.</p>')
        if self.asks:
            with gr.Tab("Ask"):
                self.question = self._words(
                    "Question about this clip", "When does the bell ring?", "What is heard and seen, when, and where."
                )
                self.ask = gr.Button("Ask", variant="primary")
                _part("answers")
        with gr.Tab("Similar"):
            self.what = gr.Radio(list(SEARCHES), value=next(iter(SEARCHES)), label="Look for")
            self.find = gr.Button("Search with the moment in the player", variant="primary")
            if self.words:
                self.text = self._words(
                    "Or search by words",
                    "a dog barks, then a bell rings",
                    "“A, then B” finds where one follows the other.",
                )
                self.share = gr.Slider(
                    0, 1, value=1, step=0.05, label="Share of the words", buttons=[],
                    info="1: words alone. Less: the moment in the player counts, too, as chosen above.",
                )  # fmt: skip
                self.find_words = gr.Button("Search by words", variant="primary")
            with gr.Accordion("Search with audio or an image of your own", open=False):
                with gr.Row():
                    self.audio = gr.File(label="Audio file", elem_classes="cs-sound-file", height=150)
                    self.image = gr.File(label="Image", elem_classes="cs-image-file", height=150)
                self.voice = gr.Audio(label="Microphone", sources=["microphone"], type="filepath")
            _part("hits")
        with gr.Tab("Sounds"):
            self.score = gr.Button("Find sounds for the silent clip", variant="primary")
            gr.HTML(
                '<p class="cs-waiting">From the index of this page, for what happens in the picture; the audio of the '
                "clip is not listened to, and left out.</p>"
            )
            self.scored = _part("scored")
        with gr.Tab("Labels"):
            if self.words:
                self.labels = self._words("Labels in words", "a dog, rain, a bell", "With commas between them.")
                self.name = gr.Button("Name what is there", variant="primary")
                _part("labels", facts={"words": "1"})
            elif self.handler.engine.classifier is None:
                gr.HTML(_NO_LABELS)
            else:
                _part("labels")
        with gr.Tab("Save"):
            _part("downloads")

    def _words(self, label: str, example: str, info: str) -> gr.Textbox:
        """A field for words."""
        return gr.Textbox(
            label=label, placeholder=f"such as: {example}", info=info, max_length=self.handler.limits.letters,
            max_lines=3,
        )  # fmt: skip

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
            show = _reporter(progress, "reading the file")
            return handler.take(_visitor(request), upload, audio, progress=show), None

        def dub(upload: Any, audio: str, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            show = _reporter(progress, "putting the audio to the video")
            return handler.dub(_visitor(request), upload, audio, progress=show), None

        picked = self.cards.click(pick, None, views["clip"], **quick)
        sent = [
            place.upload(
                step, [place, self.audio_choice], [views["clip"], place],
                concurrency_id="uploads", concurrency_limit=2, show_progress_on=self.status, api_visibility="private",
            )
            for place, step in ((self.upload, take), (self.dub, dub))
        ]  # fmt: skip
        for start in (picked, *sent):
            shown = start.then(None, views["clip"], None, js=_SHOW)
            for name, step, words in (
                ("sync", handler.measure, "comparing audio and video"),
                ("places", handler.locate, "finding where the audio comes from"),
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

        def score(turn: float, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            return handler.score(_visitor(request), _whole(turn), _reporter(progress, "looking for sounds"))

        def exchange(event: gr.EventData, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            data = getattr(event, "_data", None) or {}
            show = _reporter(progress, "mixing")
            return handler.exchange(
                _visitor(request), _whole(data.get("turn")), data.get("sound"), data.get("choice"), show
            )

        for done in (
            self.score.click(score, self.turn, views["scored"], js=f"() => {_TURN}", **model_steps),
            self.scored.click(exchange, None, views["scored"], **model_steps),
        ):
            done.then(None, views["scored"], None, js=_SHOW)

        if self.words:
            self._wire_words(model_steps)
        if self.asks:
            self._wire_questions(model_steps)
        self._serve_programs(model_steps)

        def leave(request: gr.Request) -> None:
            handler.workspace.drop(_visitor(request))

        page.unload(leave)

    def _wire_words(self, options: dict[str, Any]) -> None:
        """Say what the fields for words do, by their buttons and by Enter."""
        handler, views = self.handler, self.views

        def search_words(
            turn: float, text: str, share: float, what: str, time: float, request: gr.Request,
            progress: Any = gr.Progress(),  # noqa: B008
        ) -> Any:  # fmt: skip
            show = _reporter(progress, "searching")
            return handler.search_words(_visitor(request), _whole(turn), text, share, what, time, show)

        def locate_words(turn: float, text: str, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            show = _reporter(progress, "looking for the words")
            return handler.locate_words(_visitor(request), _whole(turn), text, show)

        def label_words(turn: float, text: str, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            show = _reporter(progress, "naming what is there")
            return handler.label_words(_visitor(request), _whole(turn), text, show)

        joined = [self.turn, self.text, self.share, self.what, self.time]
        for step, inputs, given, shown, button, field in (
            (search_words, joined, f"[{_TURN}, text, share, what, {_TIME}]", "hits", self.find_words, self.text),
            (locate_words, [self.turn, self.place_text], f"[{_TURN}, text]", "places", self.look, self.place_text),
            (label_words, [self.turn, self.labels], f"[{_TURN}, text]", "labels", self.name, self.labels),
        ):
            for event in (button.click, field.submit):
                event(
                    step, inputs, views[shown], js=f"(turn, text, share, what, time) => {given}", **options
                ).then(None, views[shown], None, js=_SHOW)  # fmt: skip

    def _wire_questions(self, options: dict[str, Any]) -> None:
        """Say what the field for questions does, by its button and by Enter."""
        handler, shown = self.handler, self.views["answers"]

        def ask(turn: float, question: str, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            return handler.ask(_visitor(request), _whole(turn), question, _reporter(progress, "answering"))

        for event in (self.ask.click, self.question.submit):
            event(
                ask, [self.turn, self.question], shown, js=f"(turn, question) => [{_TURN}, question]", **options
            ).then(None, shown, None, js=_SHOW)  # fmt: skip

    def _serve_programs(self, options: dict[str, Any]) -> None:
        """Name what programs may ask for; `docs/web_page.md` says how."""
        endpoints = Endpoints(self.handler)
        options = options | {"api_visibility": "public", "show_progress_on": None}

        def sync(
            video: str,
            request: gr.Request,
            audio: str | None = None,
            progress: Any = gr.Progress(),  # noqa: B008
        ) -> Any:
            return _answer(endpoints.sync, _visitor(request), video, audio, progress=_reporter(progress, "sync"))

        def localize(
            video: str,
            request: gr.Request,
            audio: str | None = None,
            text: str | None = None,
            progress: Any = gr.Progress(),  # noqa: B008
        ) -> Any:
            show = _reporter(progress, "localize")
            return _answer(endpoints.localize, _visitor(request), video, audio, text, progress=show)

        def classify(
            video: str,
            request: gr.Request,
            labels: str | None = None,
            progress: Any = gr.Progress(),  # noqa: B008
        ) -> Any:
            show = _reporter(progress, "classify")
            return _answer(endpoints.classify, _visitor(request), video, labels, progress=show)

        def ask(video: str, question: str, request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            show = _reporter(progress, "ask")
            return _answer(endpoints.ask, _visitor(request), video, question, progress=show)

        def search(
            request: gr.Request, query: str | None = None, by: str = "audio", find: str = "video",
            start: float | None = None, end: float | None = None, text: str | None = None, text_weight: float = 0.5,
            progress: Any = gr.Progress(),  # noqa: B008
        ) -> Any:  # fmt: skip
            return _answer(
                endpoints.search, _visitor(request), query, by, find, text=text, text_weight=text_weight, start=start,
                end=end, progress=_reporter(progress, "search"),
            )  # fmt: skip

        def file(label: str) -> gr.File:
            return gr.File(label=label, visible=False)

        def choice(label: str, value: str) -> gr.Dropdown:
            return gr.Dropdown(["audio", "video"], value=value, label=label, visible=False)

        def words(label: str) -> gr.Textbox:
            return gr.Textbox(None, label=label, visible=False)

        span = [gr.Number(None, label=label, visible=False) for label in ("start, seconds", "end, seconds")]
        share = gr.Number(0.5, label="share of the words, 0 to 1", visible=False)
        for function, inputs, what in (
            (sync, [file("video"), file("other audio")], "Whether audio and video fit in time."),
            (localize, [file("video"), file("other audio"), words("words")],
             "Where in the frame the audio comes from, or what words say."),
            (classify, [file("video or audio"), words("labels, between commas")], "What is heard and seen."),
            (ask, [file("video or audio"), words("question")], "An answer in words, and its moments."),
            (search, [file("video, audio or image"), choice("by", "audio"), choice("find", "video"), *span,
                      words("words"), share],
             "Moments of the page's index that are like a file, or what words say."),
        ):  # fmt: skip
            gr.Button(visible=False).click(
                function, inputs, gr.JSON(visible=False), api_name=function.__name__, api_description=what, **options
            )


def _answer(endpoint: Callable[..., dict[str, Any]], *arguments: Any, **options: Any) -> dict[str, Any]:
    """What an endpoint gives; its sentence, where it cannot, as Gradio passes it on."""
    try:
        return endpoint(*arguments, **options)
    except AppError as error:
        raise gr.Error(error.message, print_exception=False) from error


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


def _part(name: str, content: str = "", *, facts: Mapping[str, Any] | None = None) -> gr.HTML:
    """A place that the page's script fills; `facts` are for it to read, such as the bytes that may be sent."""
    told = "".join(f' data-{fact}="{html.escape(str(value))}"' for fact, value in (facts or {}).items())
    return gr.HTML(
        f'<div class="cs-at-{name}" data-part="{name}"{told}>{content}</div>',
        js_on_load=_MOUNT.replace("{part}", name),
        elem_id=f"cs-{name}",
    )


def _intro(handler: RequestHandler) -> str:
    """What the page is for, which model is at work, and where to read more."""
    engine = handler.engine
    about = _EXAMPLE if engine.is_example else _MODEL.format(name=html.escape(engine.name))
    about += _WORDS if engine.text_model is not None else ""
    about += _ASKS if engine.language is not None else ""
    links = [("Paper", _PAPER), ("Code of its authors", _CODE)]
    card = engine.card
    if isinstance(card, Path):
        links.append(("Model card", handler.workspace.shared.offer(card, "model-card.md")))
    elif card is not None:
        links.append(("Model card", card))
    shown = " · ".join(
        f'<a href="{html.escape(link)}" target="_blank" rel="noopener noreferrer">{name}</a>' for name, link in links
    )
    return _INTRO.format(model=about, links=shown)


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
    return f'<h2 class="cs-heading">Pick a clip</h2><div class="cs-deck">{"".join(cards)}</div>'
