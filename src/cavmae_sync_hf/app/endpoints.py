# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What the page does, for programs (`gradio_client`): a file in, JSON out, within the limits that visitors have."""

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..model.errors_cavmae_sync import AppError, CavMaeSyncError, DiskError
from ..model.media_source_cavmae_sync import NamedPath
from .guard import Kind, copy_safely, display_name
from .handlers import Progress, RequestHandler, Superseded, fine_hop, hits_facts, spelled


@dataclass
class Copy:
    """The safe copy of a file that was sent, and how long it is."""

    file: NamedPath
    kind: str
    seconds: float


@dataclass
class Endpoints:
    """Works on the requests of programs.

    Attributes:
        handler: That of the page, with its model, index and limits.
    """

    handler: RequestHandler

    def sync(self, visitor: str, video: Any, audio: Any = None, progress: Progress | None = None) -> dict[str, Any]:
        """Whether audio and video fit in time: `SyncResult.to_dict`, which begins with the verdict.

        Args:
            visitor: Who asks.
            video: Where the video lies that was sent.
            audio: An audio or video file whose audio replaces the video's own, from the start.
            progress: Called with how far it is, of how much, and a remark.

        Raises:
            AppError: It cannot be done; the sentence is for the one who asked.
        """
        from ..inference.sync import measure_sync

        def work(copies: list[Copy], tell: Progress) -> dict[str, Any]:
            clip, engine = copies[0], self.handler.engine
            result = measure_sync(
                engine.model, engine.processor, clip.file, copies[1].file if audio else None,
                hop=fine_hop(clip.seconds), damaged="keep", progress=tell,
            )  # fmt: skip
            return dict(result.to_dict())

        return self._answer(visitor, [(video, "video"), (audio, "audio")], work, progress)

    def localize(
        self, visitor: str, video: Any, audio: Any = None, text: str | None = None, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Where in the frame the audio comes from, or with a text what that says: `LocalizationResult.to_dict`; the
        rest as for `sync`."""
        from ..inference.localize import localize

        def work(copies: list[Copy], tell: Progress) -> dict[str, Any]:
            clip, engine = copies[0], self.handler.engine
            words = self.handler.read_words(text) if text else None
            found = localize(
                engine.map_model(words=words is not None), engine.processor, clip.file,
                copies[1].file if audio else None, text=words, damaged="keep", progress=tell,
                **engine.map_plan(clip.seconds),
            )  # fmt: skip
            return dict(found.to_dict())

        return self._answer(visitor, [(video, "video"), (audio, "audio")], work, progress)

    def classify(
        self, visitor: str, video: Any, labels: str | None = None, progress: Progress | None = None
    ) -> dict[str, Any]:
        """What is heard and seen, at every moment, too: `ClipLabels.to_dict`.

        Args:
            visitor: Who asks.
            video: Where the video lies that was sent, or the audio file.
            labels: In words, between commas; a page of a classifier has its own.
            progress: As for `sync`.

        Raises:
            AppError: As for `sync`.
        """
        from ..inference.classify import classify

        def work(copies: list[Copy], tell: Progress) -> dict[str, Any]:
            engine = self.handler.engine
            options: dict[str, Any] = {"missing": "mask"}
            if labels:
                options |= {"labels": self.handler.read_labels(labels), "top_k": None}
            model = engine.torch_model(words=True) if labels else engine.classifier
            if model is None:
                raise AppError("The model of this page has no classification head; one with text takes `labels`.")
            if labels and copies[0].kind == "audio":
                options["modality"] = "audio"
            (found,) = classify(
                model, engine.processor, copies[0].file, moments=True, damaged="keep", progress=lambda *_: tell(),
                **options,
            )  # fmt: skip
            return found.to_dict()

        return self._answer(visitor, [(video, "clip")], work, progress)

    def ask(self, visitor: str, video: Any, question: Any, progress: Progress | None = None) -> dict[str, Any]:
        """An answer in words and its moments: `Answer.to_dict`.

        Args:
            visitor: Who asks.
            video: Where the video lies that was sent, or the audio file.
            question: In words.
            progress: As for `sync`.

        Raises:
            AppError: As for `sync`, or the model of the page has no language model.
        """

        def work(copies: list[Copy], tell: Progress) -> dict[str, Any]:
            words = self.handler.read_question(question)
            return dict(self.handler.engine.ask(copies[0].file, words, tell)[1].to_dict())

        return self._answer(visitor, [(video, "clip")], work, progress)

    def search(
        self,
        visitor: str,
        query: Any,
        by: Literal["audio", "video"],
        find: Literal["audio", "video"],
        *,
        text: str | None = None,
        text_weight: float = 0.5,
        start: float | None = None,
        end: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Moments of the page's index that are like a file, or what words say: `SearchResult.to_dict`, with names of
        files for paths.

        Args:
            visitor: Who asks.
            query: Where the video, audio file or image lies that was sent; none for words alone.
            by: What of it is compared.
            find: With what of the index; words alone are compared with both.
            text: Words, of a page whose model has text; "A, then B" where they are alone.
            text_weight: Their share of the score beside a file, 0 to 1.
            start: Where in the file the moment starts, seconds.
            end: Where it ends.
            progress: As for `sync`.

        Raises:
            AppError: As for `sync`.
        """
        if not {by, find} <= {"audio", "video"}:
            raise AppError(f"by is {by!r} and find {find!r}; each is 'audio' or 'video'.")
        span = {name: value for name, value in (("start", start), ("end", end)) if value is not None}

        def work(copies: list[Copy], tell: Progress) -> dict[str, Any]:
            words = {"text": self.handler.read_words(text)} if text else {}
            if not copies:
                result = self.handler.find(None, "auto", "auto", tell, **words, **span)
            else:
                weight = {"text_weight": text_weight} if words else {}
                result = self.handler.find(copies[0].file, by, find, tell, **words, **weight, **span)
            found = hits_facts(result)
            # The client would take an entry with a `path` for a file to fetch.
            found["hits"] = [{"file": entry.pop("path")} | entry for entry in found["hits"]]
            return found

        return self._answer(visitor, [(query, "query")], work, progress, needed=not text)

    def _answer(
        self,
        visitor: str,
        uploads: list[tuple[Any, Kind]],
        work: Callable[[list[Copy], Progress], dict[str, Any]],
        progress: Progress | None,
        *,
        needed: bool = True,
    ) -> dict[str, Any]:
        """Copy files safely, work on the copies when the model is free, and remove everything."""
        handler, workspace, limits = self.handler, self.handler.workspace, self.handler.limits
        sent = [(Path(upload), kind) for upload, kind in uploads if upload]
        try:
            if needed and not uploads[0][0]:
                raise AppError("No file came; send one.")
            session = workspace.session(visitor)
            tell = handler.teller(session, session.turn, progress)
            with contextlib.ExitStack() as stack:
                copies = []
                for upload, kind in sent:
                    stack.enter_context(workspace.room(limits.copy_bytes))
                    target = workspace.uploads / f"{secrets.token_hex(8)}.copy"
                    stack.callback(target.unlink, missing_ok=True)
                    name = display_name(handler.name_of(upload))
                    facts = copy_safely(upload, target, kind, limits, name=name, progress=tell)
                    copies.append(Copy(NamedPath(target, name), facts["kind"], facts.get("duration", 0.0)))
                with handler.turn_at_model:
                    tell()
                    return {"model": handler.engine.name} | work(copies, tell)
        except Superseded as error:
            raise AppError("The request was given up: its sender has gone.") from error
        except (CavMaeSyncError, ImportError) as error:
            raise AppError(handler.broken()["error"] if isinstance(error, DiskError) else spelled(error)) from error
        except Exception as error:
            raise AppError(handler.broken()["error"]) from error
        finally:
            for upload, _ in sent:
                workspace.remove_upload(upload)
