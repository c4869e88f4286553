# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The steps behind the page: choosing a clip, analysing it, searching.

Every step takes the visitor's session, does one thing and returns a view: a dict that the page's script draws (see
`views.py`). What goes wrong becomes a view with a message. A step whose clip is not the current one any more stops.
"""

import logging
import math
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..files import file_stem, whole_file, write_json
from ..model.errors_cavmae_sync import AppError, CavMaeSyncError, DiskError, QueryError, SearchError
from ..model.media_source_cavmae_sync import NamedPath
from ..provenance import package_version
from .demo_clips import DemoClips
from .engine import Engine
from .guard import copy_safely, display_name
from .spelling import AUDIO_CHOICES, on_page
from .views import answers_view, frame_numbers, labels_view, places_view, scored_view, sound_view, sync_view
from .workspace import Limits, Session, Workspace

View = dict[str, Any]
Progress = Callable[..., None]

# What to look for, in the page's words: what of the query is compared with what of the index.
SEARCHES: dict[str, tuple[str, str]] = {
    "Frames that fit this audio": ("audio", "video"),
    "Audio that fits this frame": ("video", "audio"),
    "Moments that sound the same": ("audio", "audio"),
    "Moments that look the same": ("video", "video"),
}
# Seconds around the player's position that are searched for.
QUERY_SECONDS = 2.0
# A clip of this length has as many moments as the matrix shows at most, at the finest step.
_FINE_SECONDS = 60.0
_FINE_HOP = 0.1
_PREVIEW_MARGIN = 1.5
_PREVIEW_SECONDS = 12.0
_FRAME_SIDE = 320
# What the example model says of an upload is no more than an example.
_EXAMPLE_WARNING = (
    "The model of this page is the small example, which knows drawn clips alone: about a real video it says nothing."
)

logger = logging.getLogger(__name__)


class Superseded(Exception):
    """The visitor has gone on to something else; nobody waits for this result."""


@dataclass
class Clip:
    """The clip that a visitor looks at.

    Attributes:
        path: The file: a demo clip, or the copy that was made of an upload.
        title: What it is called on the page.
        stem: What its results are called when they are saved.
        seconds: Its length.
        has_video: Whether it has frames, or is audio alone.
        frames_of: Name of the file that its frames are from.
    """

    path: Path
    title: str
    stem: str
    seconds: float
    has_video: bool = True
    frames_of: str = ""

    @property
    def file(self) -> NamedPath:
        """The file under its title: where it lies on the server is nobody's business."""
        return NamedPath(self.path, self.title)


@dataclass
class RequestHandler:
    """Works on the requests of all visitors.

    Attributes:
        engine: Model and index.
        workspace: Where visitors' files lie.
        demo: The demo clips.
        turn_at_model: One request at a time uses the model: they would only slow each other down.
    """

    engine: Engine
    workspace: Workspace
    demo: DemoClips
    turn_at_model: Any = field(default_factory=threading.Lock)

    @property
    def limits(self) -> Limits:
        """How much a visitor may ask for."""
        return self.workspace.limits

    # --- choosing a clip -----------------------------------------------------------------------------------------

    def pick(self, visitor: str, number: Any) -> View:
        """Take a demo clip."""
        try:
            session = self.workspace.session(visitor)
        except AppError as error:
            return _message(spelled(error))
        clips = self.demo.clips
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(clips):
            return _message("There is no such clip.")
        chosen = clips[number]
        session.begin()
        session.state["clip"] = Clip(
            chosen.video, chosen.title, chosen.name, chosen.seconds, frames_of=f"{chosen.name}.mp4"
        )
        note = f"{chosen.text} {chosen.seconds:.1f} s."
        view = _clip_view(session, session.state["clip"], note)
        return view | {"clip": view["clip"] | {"number": number}}

    def take(self, visitor: str, upload: Any, audio: Any = None, progress: Progress | None = None) -> View:
        """Take an uploaded video, or audio alone: copy it safely and remove it, whatever comes of it.

        Args:
            visitor: Who sent it.
            upload: Where it lies.
            audio: What to listen to, one of `AUDIO_CHOICES`.
            progress: Called with the seconds that are done, and of how many.
        """
        return self._take(visitor, upload, audio, progress, dub=False)

    def dub(self, visitor: str, upload: Any, audio: Any = None, progress: Progress | None = None) -> View:
        """Give the clip the audio of a file that was sent, as `take`: what is measured from then on is the two."""
        return self._take(visitor, upload, audio, progress, dub=True)

    def _take(self, visitor: str, upload: Any, audio: Any, progress: Progress | None, *, dub: bool) -> View:
        if not upload:
            return {}
        name = display_name(self.name_of(upload))
        # Outside the visitor's folder, so that the clip they look at stays until there is another.
        incoming = self.workspace.uploads / f"{secrets.token_hex(8)}.copy"
        session, turn = None, -1
        try:
            session = self.workspace.session(visitor)
            turn = session.turn
            old: Clip | None = session.state.get("clip") if dub else None
            if dub and (old is None or not old.has_video):
                raise AppError("Choose a clip with video first; it then gets this audio.")

            def show(done: float, total: float) -> None:
                _check_turn(session, turn)
                if progress is not None:
                    progress(done, total)

            show(0.0, 0.0)
            with self.workspace.room(self.limits.copy_bytes):
                choice = AUDIO_CHOICES.get(audio) if isinstance(audio, str) else None
                facts = copy_safely(
                    upload, incoming, "dub" if dub else "clip", self.limits,
                    name=name, audio=choice, frames=old.path if old else None, progress=show,
                )  # fmt: skip
                _check_turn(session, turn)
            turn = session.begin()
            has_video = facts["kind"] != "audio"
            path, stem = session.path("clip.mp4" if has_video else "clip.wav"), file_stem(name, set())
            title = name
            if old is not None:
                stem = f"{file_stem(old.frames_of, set())}-with-{stem}"
                title = f"{old.frames_of} with the audio of {name}"
            clip = Clip(path, title, stem, facts["duration"], has_video, frames_of=old.frames_of if old else name)
            os.replace(incoming, clip.path)
            session.state["clip"] = clip
            note = f"{clip.seconds:.1f} s. Your upload is removed already; its copy goes when you leave."
            if name != self.name_of(upload):
                note += " Only a part of its name is shown."
            return _clip_view(
                session, clip, " ".join([note, *facts["remarks"]]),
                warning=_EXAMPLE_WARNING if self.engine.is_example else "",
            )  # fmt: skip
        except Exception as error:
            return self.failed(error, session, turn)
        finally:
            incoming.unlink(missing_ok=True)
            self.workspace.remove_upload(upload)

    # --- results -------------------------------------------------------------------------------------------------

    def measure(self, visitor: str, turn: Any, progress: Progress | None = None) -> View:
        """Synchrony of the clip."""
        from ..inference.plots import draw_timeline
        from ..inference.sync import measure_sync

        def work(session: Session, clip: Clip, tell: Progress) -> View:
            hop = fine_hop(clip.seconds)
            result = measure_sync(
                self.engine.model, self.engine.processor, clip.file, hop=hop, damaged="keep", progress=tell
            )
            facts = write_json(session.path("sync.json"), self._facts(clip) | {"sync": result.to_dict()})
            arrays = session.path("sync.npz")
            result.save_arrays(arrays, overwrite=True)
            downloads = [
                _download(session, facts, f"{clip.stem}-sync.json", "Everything measured, as numbers"),
                _download(session, arrays, f"{clip.stem}-sync.npz", "Matrix and curves as NumPy arrays"),
            ]
            try:
                image = session.path("sync.png")
                draw_timeline(result, image, overwrite=True)
                downloads.insert(0, _download(session, image, f"{clip.stem}-sync.png", "Matrix and timeline"))
            except ImportError:  # the image alone needs matplotlib
                logger.info("No image of the timeline: matplotlib is not installed.")
            return {"sync": sync_view(result), "downloads": downloads}

        return self._work(work, visitor, turn, progress, once="sync")

    def locate(self, visitor: str, turn: Any, progress: Progress | None = None) -> View:
        """Where in the frame the source of the audio is."""

        def work(session: Session, clip: Clip, tell: Progress) -> View:
            view = self._places(session, clip, tell)
            session.state["sources"] = session.state["found"], view
            return view

        return self._work(work, visitor, turn, progress, once="places")

    def locate_words(self, visitor: str, turn: Any, text: Any, progress: Progress | None = None) -> View:
        """Where in the frame words are seen, and when they are heard; without words the source of the audio again."""

        def work(session: Session, clip: Clip, tell: Progress) -> View:
            if not clip.has_video:
                raise AppError("This file has no video to look at.")
            if text == "" and "sources" in session.state:
                session.state["found"], view = session.state["sources"]
                return dict(view)
            return self._places(session, clip, tell, self.read_words(text))

        return self._work(work, visitor, turn, progress)

    def _places(self, session: Session, clip: Clip, tell: Progress, text: str | None = None) -> View:
        """Maps of a clip: of the source of its audio, or of words."""
        from ..inference.heat import overlay_frames
        from ..inference.localize import localize
        from ..inference.plots import draw_spectrogram, draw_strip

        plan = self.engine.map_plan(clip.seconds)
        model = self.engine.map_model(words=text is not None)
        found = localize(model, self.engine.processor, clip.file, text=text, damaged="keep", progress=tell, **plan)
        if "method" in plan:
            found.remarks.append(
                "This model is too large for the best method on this machine: the places come from a quicker one "
                "and point less well."
            )
        session.state["found"] = found
        name = "sources" if text is None else "words"
        strip, audio = session.path(f"{name}.png"), session.path(f"{name}-spectrogram.png")
        draw_strip(found, clip.file, strip, overwrite=True)
        draw_spectrogram(found, audio, overwrite=True)
        facts = write_json(session.path(f"{name}.json"), self._facts(clip) | {name: found.to_dict()})
        arrays = session.path(f"{name}.npz")
        found.save_arrays(arrays, overwrite=True)
        spectrogram = "spectrogram" if text is None else "words-spectrogram"
        said = ["the source of the audio", "what fits the frames", "Where the audio comes from"]
        if text is not None:
            said = ["where the words are seen", "what fits the words", "Where the words are seen"]
        downloads = [
            _download(session, strip, f"{clip.stem}-{name}.png", f"Frames with {said[0]}"),
            _download(session, audio, f"{clip.stem}-{spectrogram}.png", f"Spectrogram with {said[1]}"),
            _download(session, facts, f"{clip.stem}-{name}.json", f"{said[2]}, as numbers"),
            _download(session, arrays, f"{clip.stem}-{name}.npz", "Maps as NumPy arrays"),
        ]
        # Those of other words have other addresses, or a browser would show what it has kept.
        session.state["places"] = turn = session.state.get("places", 0) + 1
        session.remove("words-frame-")
        numbers, frames = frame_numbers(len(found.times)), []
        for number, image in zip(
            numbers, overlay_frames(found, clip.file, size=_FRAME_SIDE, indices=numbers), strict=True
        ):
            path = session.path(f"{name}-frame-{turn}-{number}.jpg")
            image.save(path, format="JPEG", quality=88)
            facts_of = {"time": round(float(found.times[number]), 3), "source": bool(found.has_source[number])}
            frames.append({"url": session.offer(path, path.name), **facts_of})
        return {"places": places_view(found), "sound": sound_view(found), "frames": frames, "downloads": downloads}

    def video(self, visitor: str, turn: Any, progress: Progress | None = None) -> View:
        """The clip as a video with the source of the audio drawn in."""
        from ..inference.video_overlay import write_overlay_video

        def work(session: Session, clip: Clip, tell: Progress) -> View:
            found = session.state.get("found")
            if found is None:
                raise AppError("The places are not found yet; wait a moment and press again.")
            name, what = ("sources", "the source of the audio") if found.text is None else ("words", "the words")
            target = session.path(f"{name}-{session.state['places']}.mp4")
            write_overlay_video(found, clip.file, target, overwrite=True, progress=tell)
            entry = _download(session, target, f"{clip.stem}-{name}.mp4", f"Video with {what}")
            return {"downloads": [entry], "video": entry["url"]}

        return self._work(work, visitor, turn, progress)

    def label(self, visitor: str, turn: Any, progress: Progress | None = None) -> View:
        """Labels of the clip, where the model has a head for them."""
        classifier = self.engine.classifier
        if classifier is None:
            return {}

        def work(session: Session, clip: Clip, tell: Progress) -> View:
            names = [str(name) for name in classifier.config.id2label.values()]
            return self._labels(session, clip, tell, classifier, names, top_k=10)

        return self._work(work, visitor, turn, progress, once="labels", video=classifier.config.modality != "audio")

    def label_words(self, visitor: str, turn: Any, labels: Any, progress: Progress | None = None) -> View:
        """How well labels in words fit the clip, and when."""

        def work(session: Session, clip: Clip, tell: Progress) -> View:
            names = self.read_labels(labels)
            options = {"labels": names, "missing": "mask"} | ({} if clip.has_video else {"modality": "audio"})
            model = self.engine.torch_model(words=True)
            return self._labels(session, clip, tell, model, names, top_k=None, **options)

        return self._work(work, visitor, turn, progress)

    def _labels(
        self,
        session: Session,
        clip: Clip,
        tell: Progress,
        model: Any,
        names: list[str],
        **options: Any,
    ) -> View:
        from ..inference.classify import classify

        result = classify(
            model,
            self.engine.processor,
            clip.file,
            moments=True,
            damaged="keep",
            progress=lambda *_: tell(),
            **options,
        )[0]
        facts = write_json(session.path("labels.json"), self._facts(clip) | {"labels": result.to_dict()})
        entry = _download(session, facts, f"{clip.stem}-labels.json", "Labels and scores")
        return {"labels": labels_view(result, names), "downloads": [entry]}

    # --- words ---------------------------------------------------------------------------------------------------

    def read_words(self, text: Any) -> str:
        """A text of a visitor's, within the limits.

        Raises:
            AppError: There is none, it is too long, or the model takes none.
        """
        if self.engine.text_model is None:
            raise AppError("The model of this page has no text encoder, so it cannot be asked in words.")
        return self._checked(text, "Write some words first, such as: a dog barks.")

    def _checked(self, text: Any, empty: str) -> str:
        """A text of a visitor's, within the limits; `empty` says what to do where there is none."""
        if not isinstance(text, str) or not text.strip():
            raise AppError(empty)
        if len(text) > self.limits.letters:
            raise AppError(
                f"The text has {len(text)} letters, and at most {self.limits.letters} are taken here; shorten it."
            )
        return text.strip()

    def read_labels(self, labels: Any) -> list[str]:
        """Labels between commas, within the limits.

        Raises:
            AppError: As for `read_words`, or there are too many.
        """
        parts = (part.strip() for part in self.read_words(labels).split(","))
        names = list(dict.fromkeys(part for part in parts if part))
        if not names:
            raise AppError("Write labels with commas between them, such as: a dog, rain.")
        if len(names) > self.limits.labels:
            raise AppError(
                f"There are {len(names)} labels, and at most {self.limits.labels} are taken; leave some out."
            )
        return names

    # --- questions -----------------------------------------------------------------------------------------------

    def ask(self, visitor: str, turn: Any, question: Any, progress: Progress | None = None) -> View:
        """Answers to the questions about the clip, the last one first; words come with the progress."""

        def work(session: Session, clip: Clip, tell: Progress) -> View:
            words, state = self.read_question(question), session.state
            state["watched"], found = self.engine.ask(clip.file, words, tell, state.get("watched"))
            answers = state.setdefault("answers", [])
            answers.insert(0, found)
            told = {"answers": [one.to_dict() for one in answers]}
            facts = write_json(session.path("answers.json"), self._facts(clip) | told)
            entry = _download(session, facts, f"{clip.stem}-answers.json", "Answers and their moments")
            return {"answers": answers_view(answers), "downloads": [entry]}

        return self._work(work, visitor, turn, progress)

    def read_question(self, question: Any) -> str:
        """A question of a visitor's, within the limits.

        Raises:
            AppError: There is none, it is too long, or the model answers none.
        """
        if self.engine.language is None:
            raise AppError("The model of this page has no language model, so it answers no questions.")
        return self._checked(question, "Write a question first, such as: When does the bell ring?")

    # --- sounds --------------------------------------------------------------------------------------------------

    def score(self, visitor: str, turn: Any, progress: Progress | None = None) -> View:
        """Sounds of the index for what happens in the clip, and the clip with them."""
        from ..search.scoring import score_film

        def work(session: Session, clip: Clip, tell: Progress) -> View:
            if not clip.has_video:
                raise AppError("This file has no video to find sounds for.")
            store = self.open_index(tell)
            session.state["scored"] = score_film(
                clip.path, store, self.engine.torch_model(), self.engine.processor, damaged="keep", progress=tell,
                on_error=lambda name, error: logger.warning("%s is left out: %s", name, error),
            )  # fmt: skip
            return self._scored(session, clip)

        return self._work(work, visitor, turn, progress)

    def exchange(self, visitor: str, turn: Any, number: Any, choice: Any, progress: Progress | None = None) -> View:
        """Another of the sounds that were found for a place."""
        from ..search.scoring import exchange

        def work(session: Session, clip: Clip, tell: Progress) -> View:
            found = session.state.get("scored")
            if found is None or not all(type(value) is int for value in (number, choice)):
                raise AppError("The sounds are not found yet; press the button first.")
            session.state["scored"] = exchange(found, number, choice)
            return self._scored(session, clip)

        return self._work(work, visitor, turn, progress)

    def _scored(self, session: Session, clip: Clip) -> View:
        """The clip with its sounds, and what they are."""
        from ..search.soundtrack import write_film, write_score

        found = session.state["scored"]
        session.state["mixes"] = count = session.state.get("mixes", 0) + 1
        session.remove("scored-")  # another address each time, or a browser would show what it has kept
        film, table = session.path(f"scored-{count}.mp4"), session.path(f"scored-{count}.csv")
        write_film(found, film, original="replace")
        write_score(_with_names(found), table)
        downloads = [
            _download(session, film, f"{clip.stem}-sounds.mp4", "The clip with sounds of the index"),
            _download(session, table, f"{clip.stem}-sounds.csv", "Which sounds, and where"),
        ]
        return {"scored": scored_view(found) | {"url": downloads[0]["url"]}, "downloads": downloads}

    # --- search --------------------------------------------------------------------------------------------------

    def search(self, visitor: str, turn: Any, what: Any, seconds: Any, progress: Progress | None = None) -> View:
        """Moments of the index that are like the one in the player."""

        def work(session: Session, clip: Clip, tell: Progress) -> View:
            return self._search(session, clip.file, what, tell, stem=f"{clip.stem}-similar", span=_around(seconds))

        return self._work(work, visitor, turn, progress)

    def search_words(
        self,
        visitor: str,
        turn: Any,
        text: Any,
        share: Any,
        what: Any,
        seconds: Any,
        progress: Progress | None = None,
    ) -> View:
        """Moments of the index that words tell of; below a share of 1 that are like the one in the player, too."""

        def work(session: Session, clip: Clip, tell: Progress) -> View:
            words = self.read_words(text)
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise AppError("The share of the words must be from 0 to 1.")
            if share == 1:
                return self._search(session, None, None, tell, stem="words-similar", text=words)
            return self._search(
                session, clip.file, what, tell, stem=f"{clip.stem}-words-similar", span=_around(seconds), text=words,
                text_weight=float(share),
            )  # fmt: skip

        return self._work(work, visitor, turn, progress)

    def search_with(
        self, visitor: str, upload: Any, kind: Literal["audio", "image"], what: Any, progress: Progress | None = None
    ) -> View:
        """Moments of the index that are like audio or an image that was sent; it is removed at once."""
        if not upload:
            return {}
        name, session, turn = display_name(self.name_of(upload)), None, -1
        try:
            session = self.workspace.session(visitor)
            turn = session.turn
            target = session.path("query.copy")
            try:
                with self.workspace.room(self.limits.copy_bytes, session):
                    copy_safely(upload, target, kind, self.limits, name=name)
                    with self.turn_at_model:
                        tell = self.teller(session, turn, progress)
                        found = self._search(session, NamedPath(target, name), what, tell, stem=f"{kind}-similar")
                        return {"turn": turn} | found
            finally:
                target.unlink(missing_ok=True)
        except Exception as error:
            told = self.failed(error, session, turn)
            return told | {"turn": turn} if told else told
        finally:
            self.workspace.remove_upload(upload)

    def _search(
        self,
        session: Session,
        query: NamedPath | None,
        what: Any,
        tell: Progress,
        *,
        stem: str,
        span: dict[str, Any] | None = None,
        **words: Any,
    ) -> View:
        if query is not None and what not in SEARCHES:
            raise AppError("Choose what to look for.")
        by, find = SEARCHES[what] if query is not None else ("auto", "auto")
        result = self.find(query, by, find, tell, **(span or {}), **words)
        session.state["searches"] = searches = session.state.get("searches", 0) + 1
        session.remove("hit-")  # those of the last search are not shown any more
        hits = []
        for number, hit in enumerate(result.hits):
            tell(number, len(result.hits))
            hits.append(self._hit_view(session, f"hit-{searches}-{number}.mp4", hit))
        found = {"model": self.engine.name, "search": hits_facts(result) | {"query": stem}}
        path = write_json(session.path("similar.json"), found)
        entry = _download(session, path, f"{stem}.json", "Moments found")
        return {"hits": hits, "asked": {"what": what, **(span or {}), **words}, "downloads": [entry]}

    def find(self, query: NamedPath | None, by: str, find: str, tell: Progress, **options: Any) -> Any:
        """Moments of the index that are like a query, at most two of a file.

        Args:
            query: Video, audio or image; `None` for words alone.
            by: What of it is compared, `"audio"` or `"video"`; of words alone `"auto"`.
            find: With what of the index.
            tell: Called with what is done.
            options: More for `search.search`: `start` and `end` of the moment in the query's file, `text` and
                `text_weight`.

        Raises:
            AppError: The index cannot be searched, or holds nothing else.
            QueryError: The query lacks what `by` asks for, is silent or too long.
        """
        from ..search import SearchFilters, search

        filters = SearchFilters(exclude_same_file=True, per_file=2)
        try:
            store = self.open_index(tell)
            model = self.engine.model if options.get("text") is None else self.engine.text_model
            result = search(
                store, query, model, self.engine.processor, by=by, find=find,  # type: ignore[arg-type]
                top=self.limits.search_results, filters=filters, **options,
            )  # fmt: skip
        except QueryError:
            raise
        except SearchError as error:  # where the index lies is nobody's business but the operator's
            logger.exception("The index cannot be searched.")
            raise AppError("The index cannot be searched just now. The server's log says why.") from error
        if not result.hits:
            raise AppError("The index holds no moment to compare with but this clip itself; index more videos.")
        return result

    def open_index(self, tell: Progress) -> Any:
        """The index of the page, made of the demo clips where the operator has named none."""
        store = self.engine.store(
            self.demo, self.workspace.root, lambda done, total, _="": tell(done, total, "indexing")
        )
        tell()
        return store

    def _hit_view(self, session: Session, name: str, hit: Any) -> View:
        """A hit with a video to play it from, if there still is one."""
        path = Path(hit.path)
        view = {"title": display_name(path), "score": round(hit.score, 3), "start": hit.start, "end": hit.end}
        if path.parent == self.demo.library:
            url = session.offer(path, path.name)
            return view | {"url": url, "from": hit.start, "to": hit.end}
        start = max(0.0, hit.start - _PREVIEW_MARGIN)
        end = min(hit.end + _PREVIEW_MARGIN, start + _PREVIEW_SECONDS)
        target = session.path(name)
        try:
            cut_preview(path, target, start, end)
        except (ValueError, OSError) as error:
            logger.warning("No preview of %s: %s", path, error)
            return view | {"url": None}
        url = session.offer(target, f"{file_stem(path, set())}-{hit.start:.1f}s.mp4")
        return view | {"url": url, "from": hit.start - start, "to": min(hit.end, end) - start}

    # --- the common way ------------------------------------------------------------------------------------------

    def _work(
        self,
        work: Callable[[Session, Clip, Progress], View],
        visitor: str,
        turn: Any,
        progress: Progress | None,
        *,
        once: str | None = None,
        video: bool = True,
    ) -> View:
        """Do a step for the clip of a turn, when the model is free.

        Args:
            work: Does it.
            visitor: Who asks.
            turn: Of the clip that is meant.
            progress: Called with how far it is, of how much, and a remark.
            once: Name of what is done once for a clip.
            video: Whether there is nothing to do for a clip of audio alone.
        """
        try:
            session = self.workspace.session(visitor)
        except AppError as error:
            return _message(spelled(error))
        clip = session.state.get("clip")
        if turn != session.turn:
            return {}
        if clip is None:
            return _message("The clip is not here any more; choose it again.")
        begun = session.state.setdefault("begun", set())
        if once in begun or (once is not None and video and not clip.has_video):
            return {}
        if once is not None:
            begun.add(once)
        try:
            with self.turn_at_model, self.workspace.room(self.limits.copy_bytes, session):
                tell = self.teller(session, session.turn, progress)
                tell()
                return {"turn": session.turn} | work(session, clip, tell)
        except Exception as error:
            told = self.failed(error, session, turn)
            return told | {"turn": turn, "step": once} if told else told

    def teller(self, session: Session, turn: int, progress: Progress | None) -> Progress:
        """Reports progress, and stops the work when the visitor has gone on or it takes too long."""
        clock, seconds = self.workspace.clock, self.limits.step_seconds
        end = clock() + seconds

        def tell(done: float = 0, total: float = 0, remark: str = "") -> None:
            _check_turn(session, turn)
            if clock() > end:
                raise AppError(f"This took longer than the {seconds:g} s that are allowed here; take a shorter clip.")
            if progress is not None:
                progress(done, total, remark)

        return tell

    def name_of(self, upload: str | os.PathLike[str]) -> str:
        """What the visitor calls an upload."""
        sent = self.workspace.upload(upload)
        return sent.name if sent is not None else os.path.basename(upload)

    def failed(self, error: Exception, session: Session | None, turn: int) -> View:
        """What to say of work that an error ended; call it where the error is handled.

        Nothing where the visitor has gone on since `turn`: the files of that turn were removed while it was at work.
        """
        if isinstance(error, Superseded) or (session is not None and session.turn != turn):
            return {}
        if isinstance(error, CavMaeSyncError | ImportError) and not isinstance(error, DiskError):
            return _message(spelled(error))
        return self.broken()

    def broken(self) -> View:
        """What to say when it is not the visitor's doing; the details are for the operator."""
        logger.exception("A request failed.")
        return _message("Something went wrong here, through no fault of your clip. The server's log says what.")

    def _facts(self, clip: Clip) -> dict[str, Any]:
        return {"clip": clip.title, "model": self.engine.name, "cavmae_sync_hf": package_version()}


def _with_names(found: Any) -> Any:
    """Placed sounds under their names: where they lie on the server is nobody's business."""
    placements = [
        replace(
            placed, path=display_name(placed.path),
            choices=tuple(replace(choice, path=display_name(choice.path)) for choice in placed.choices),
        )
        for placed in found.placements
    ]  # fmt: skip
    return replace(found, placements=tuple(placements))


def _around(seconds: Any) -> dict[str, float]:
    """The moment that is searched for: `start` and `end` around the player's position."""
    middle = float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e6 else 0.0
    start = max(0.0, middle - QUERY_SECONDS / 2)
    return {"start": start, "end": start + QUERY_SECONDS}


def fine_hop(seconds: float) -> float:
    """Seconds between moments that a clip of so many is measured at: fine, and no more than the matrix shows."""
    return _FINE_HOP * max(1, math.ceil(seconds / _FINE_SECONDS))


def hits_facts(result: Any) -> dict[str, Any]:
    """A `SearchResult` as JSON, with names of files for paths: where they lie on the server is nobody's business."""
    found = dict(result.to_dict())
    found["hits"] = [entry | {"path": os.path.basename(entry["path"])} for entry in found["hits"]]
    return found


def cut_preview(source: Path, target: Path, start: float, end: float) -> None:
    """Write a piece of a video of the operator's own as an mp4 file that browsers play."""
    from .intake import cut

    with whole_file(target) as partial:
        cut(source, partial, start, end)


def _check_turn(session: Session, turn: int) -> None:
    if session.turn != turn:
        raise Superseded
    session.touch()


def _clip_view(session: Session, clip: Clip, note: str, *, warning: str = "") -> View:
    """What the page shows of the clip that was chosen."""
    name = f"{clip.stem}{clip.path.suffix}"
    view = {"title": clip.title, "note": note, "warning": warning, "sound": not clip.has_video}
    view |= {"url": session.offer(clip.path, name), "name": name, "bytes": clip.path.stat().st_size}
    return {"turn": session.turn, "clip": view}


def _message(text: str) -> View:
    return {"error": text}


def spelled(error: Exception) -> str:
    """A message with the remedies that the page has."""
    return error.spelled(on_page) if isinstance(error, CavMaeSyncError) else str(error)


def _download(session: Session, path: Path, save_as: str, what: str) -> dict[str, Any]:
    return {"url": session.offer(path, save_as), "name": save_as, "what": what, "bytes": path.stat().st_size}
