# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What every request to the page passes before Gradio sees it.

Whence it comes is checked (`access.py`); of Gradio's interface only what the page uses is open; uploads are received
here, each into a place of its own and within bounds; a request that names files may name uploads alone.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Container, Iterator
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..files import parse_json
from ..model.errors_cavmae_sync import AppError
from .access import Access
from .workspace import Limits, Upload, Workspace

_API = "/gradio_api"
_UPLOAD, _PROGRESS, _FILE = (f"{_API}/{name}" for name in ("upload", "upload_progress", "file="))
# Where the page asks for something: what waits its turn, and what does not.
_ASK = (f"{_API}/queue/join", f"{_API}/run/predict")
# What the page's scripts ask for, beside uploads and files.
_OPEN = re.compile(
    rf"{_API}/(queue/(data|join|status)|run/predict|cancel|reset|heartbeat/[\w-]+|info|startup-events|theme\.css|app_id"
    r"|user|login_check|token)/?"
)
# Largest request that is no upload; the page's own are much smaller.
_MAX_BODY = 256 * 1024
# What a form may have around the file in it.
_FORM_BYTES = 16 * 1024
# How long the page asks in vain how far a file is that the server has not heard of yet.
_UNHEARD_SECONDS = 3.0
# Nothing may keep one waiting for longer.
_STALL_SECONDS = 20.0
_SESSION = re.compile(r"[\w-]{1,64}")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
# The page's own scripts are inline, and Gradio makes functions of text; nothing comes from another host.
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Refusal(Exception):
    """A request that is not answered; the sentence is for the visitor."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Gate:
    """The outermost layer of the server.

    Args:
        app: What lies behind.
        access: Decides whence requests may come.
        workspace: Where uploads go.
        functions: Numbers of what may be asked for.
        waiting: Tells how many requests of a visitor wait or run.
        prefix: Path that a proxy may leave in front of the page's own.
        needs_login: Whether visitors must have logged in to send files.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        workspace: Workspace,
        *,
        functions: Container[int],
        waiting: Callable[[str], int],
        prefix: str = "",
        needs_login: bool = False,
    ) -> None:
        self.app, self.access, self.workspace = app, access, workspace
        self.functions, self.waiting = functions, waiting
        self.prefix, self.needs_login = prefix.rstrip("/"), needs_login
        self._arriving = 0
        self._progress: dict[str, _Form] = {}

    @property
    def limits(self) -> Limits:
        """How much a visitor may send."""
        return self.workspace.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self.access.refusal(scope.get("method", "GET"), scope["headers"])
        if scope["type"] == "websocket":  # the page has none
            await receive()
            await send(
                {"type": "websocket.close", "code": 1008, "reason": (refusal or "There is nothing here.")[:120]}
            )
            return

        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name.lower() for name, _ in message["headers"]}
                new = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
                message["headers"] = [*message["headers"], *(item for item in new if item[0] not in present)]
            await send(message)

        try:
            if refusal is not None:
                raise Refusal(403, refusal)
            await self._pass(scope, receive, send_with_headers)
        except ClientDisconnect:  # nobody is there to be told
            return
        except Refusal as error:
            if started:
                raise
            asks = self._path(scope).startswith(_ASK)  # whose reader takes JSON alone
            kind: type[Response] = JSONResponse if asks else PlainTextResponse
            content: Any = {"detail": str(error)} if asks else str(error)
            # What is still to come of the request is not read.
            await kind(content, status_code=error.status, headers={"Connection": "close"})(
                scope, receive, send_with_headers
            )

    def _path(self, scope: Scope) -> str:
        path = str(scope["path"])
        return path.removeprefix(self.prefix) if self.prefix and path.startswith(f"{self.prefix}/") else path

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through to where it is answered."""
        path, method = self._path(scope).rstrip("/"), scope["method"]
        if path == _UPLOAD and method == "POST":
            await self._check_login(scope)
            await JSONResponse([await self._take_upload(scope, receive)])(scope, receive, send)
            return
        if path == _PROGRESS and method == "GET":
            await self._tell_progress(scope)(scope, receive, send)
            return
        if path.startswith(_FILE):
            if self.workspace.upload(path.removeprefix(_FILE)) is None:
                raise Refusal(404, "There is no such file.")
        elif path.startswith(_API) and not _OPEN.fullmatch(path):
            raise Refusal(404, "There is nothing here.")
        if method not in ("GET", "HEAD", "OPTIONS"):
            body = await self._read(receive, _MAX_BODY)
            if path in _ASK:
                await self._ask(scope, body, receive, send)
                return
            receive = _replay(body, receive)
        await self.app(scope, receive, send)

    async def _read(self, receive: Receive, most: int) -> bytes:
        body = b""
        async for piece in _pieces(receive):
            body += piece
            if len(body) > most:
                raise Refusal(413, "The request is larger than any that this page sends.")
        return body

    # --- requests ------------------------------------------------------------------------------------------------

    async def _ask(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Let a visitor's request through, with no other files than uploads, which become the visitor's."""
        try:
            request = parse_json(body)
            visitor = request["session_hash"]
            if not isinstance(visitor, str) or not _SESSION.fullmatch(visitor):
                raise ValueError("no session")
            if type(request["fn_index"]) is not int or request["fn_index"] not in self.functions:
                raise ValueError("no function")
            files = list(_named_files(request))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Refusal(400, "The request cannot be read; load the page again.") from error
        if self.waiting(visitor) >= self.limits.waiting:
            raise Refusal(429, "Too much that you asked for is still to be done; wait until some of it is there.")
        for file in files:
            path = file["path"]
            if not isinstance(path, str) or not self.workspace.claim(path, visitor):
                raise Refusal(400, "The upload is not there any more; send it again.")
            # Gradio would follow an address.
            file.clear()
            file.update(path=path, meta={"_type": "gradio.FileData"})
        body = json.dumps(request).encode()
        headers = [item for item in scope["headers"] if item[0] not in (b"content-length", b"transfer-encoding")]
        headers.append((b"content-length", str(len(body)).encode()))

        async def remove_unused(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] != 200:  # nothing will come of them
                for file in files:
                    self.workspace.remove_upload(file["path"])
            await send(message)

        await self.app({**scope, "headers": headers}, _replay(body, receive), remove_unused)

    # --- uploads -------------------------------------------------------------------------------------------------

    async def _check_login(self, scope: Scope) -> None:
        """Ask Gradio whether the visitor has logged in, where that is needed."""
        if not self.needs_login:
            return
        status = 401

        async def note(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)

        async def nothing() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        path = f"{_API}/login_check"
        await self.app({**scope, "method": "GET", "path": path, "raw_path": path.encode()}, nothing, note)
        if status != 200:
            raise Refusal(401, "Log in first.")

    async def _take_upload(self, scope: Scope, receive: Receive) -> str:
        """Receive a file; returns where it lies, which is how requests name it."""
        headers, limits = Headers(scope=scope), self.limits
        kind, options = parse_options_header(headers.get("content-type"))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise Refusal(400, "A file must be sent as multipart/form-data.")
        declared = headers.get("content-length", "")
        most = limits.max_bytes + _FORM_BYTES
        size = int(declared) if declared.isdecimal() else most
        if size > most:
            raise _too_large(limits)
        if self._arriving >= limits.uploads:
            raise Refusal(503, "Many files are on their way just now; try again in a minute.")
        self._arriving += 1
        upload_id = dict(_query(scope)).get("upload_id", "")
        form = _Form(self.workspace, options[b"boundary"], min(size, limits.max_bytes))
        if upload_id:
            self._progress[upload_id] = form
        try:
            async with asyncio.timeout(limits.upload_seconds):
                with contextlib.closing(form):
                    total = 0
                    async for piece in _pieces(receive):
                        total += len(piece)
                        if total > most:
                            raise _too_large(limits)
                        await run_in_threadpool(form.feed, piece)
                    return form.finish()
        except TimeoutError as error:
            raise Refusal(
                408, f"The file took longer than the {limits.upload_seconds:g} s that are allowed here to arrive."
            ) from error
        except AppError as error:
            raise Refusal(507, error.message) from error
        except OSError as error:
            raise Refusal(507, "The file cannot be kept here just now; try again in a few minutes.") from error
        finally:
            self._arriving -= 1
            if upload_id:
                self._progress.pop(upload_id, None)

    def _tell_progress(self, scope: Scope) -> Response:
        """How far an upload is, as the page's uploader asks it."""
        upload_id = dict(_query(scope)).get("upload_id", "")

        async def events() -> AsyncIterator[str]:
            for _ in range(round(_UNHEARD_SECONDS / 0.1)):  # the question may be here before the file
                if upload_id in self._progress:
                    break
                await asyncio.sleep(0.1)
            told = 0
            while (form := self._progress.get(upload_id)) is not None:
                if form.received > told:
                    step = {"msg": "update", "orig_name": form.name, "chunk_size": form.received - told}
                    told = form.received
                    yield f"data: {json.dumps(step)}\n\n"
                await asyncio.sleep(0.1)
            yield f"data: {json.dumps({'msg': 'done'})}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


class _Form:
    """One file in a form that comes piece by piece; what else is in the form is left out.

    Args:
        workspace: Where the file goes.
        boundary: Of the form's parts.
        size: Bytes that the file may have.
    """

    def __init__(self, workspace: Workspace, boundary: bytes, size: int) -> None:
        self.workspace, self.size, self.received, self.name = workspace, size, 0, ""
        self._stack = contextlib.ExitStack()
        self._upload: Upload | None = None
        self._file: BinaryIO | None = None
        self._header, self._value, self._disposition = b"", b"", b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_field,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_content,
                "on_part_data": self._add_content,
                "on_part_end": self._end_part,
            },
        )

    def feed(self, data: bytes) -> None:
        """Take in what has come."""
        try:
            self._parser.write(data)
        except ValueError as error:  # of the parser
            if isinstance(error, AppError):
                raise
            raise Refusal(400, "The form with the file cannot be read; send it again.") from error

    def finish(self) -> str:
        """Where the file lies, when all of it has come."""
        if self._upload is None:
            raise Refusal(400, "No file came; choose one and send it again.")
        if self._file is not None:
            raise Refusal(400, "The file did not arrive whole; send it again.")
        upload = self._upload
        self._stack.close()  # it stays
        return str(upload.path)

    def close(self) -> None:
        """Remove a file that did not arrive whole."""
        if self._file is not None:
            self._file.close()
        with contextlib.suppress(ClientDisconnect), self._stack:
            raise ClientDisconnect  # which removes it

    def _begin_part(self) -> None:
        self._header, self._value, self._disposition = b"", b"", b""

    def _add_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _begin_content(self) -> None:
        name = _file_name(self._disposition)
        if name is None:
            return
        if self._upload is not None:
            raise Refusal(400, "Send one file at a time.")
        self.name = name
        self._upload = self._stack.enter_context(self.workspace.receive(name, self.size))
        self._file = open(self._upload.path, "xb")  # noqa: SIM115

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            return
        self.received += end - start
        if self.received > self.workspace.limits.max_bytes:
            raise _too_large(self.workspace.limits)
        self._file.write(data[start:end])

    def _end_part(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _file_name(disposition: bytes) -> str | None:
    """What a part's header calls the file in it; `None` where the part is no file."""
    match = re.search(rb';\s*filename="((?:[^"\\]|\\.)*)"|;\s*filename=([^;]*)', disposition, re.IGNORECASE)
    if match is None:
        return None
    name = match[1] if match[1] is not None else match[2].strip()
    # As browsers write them.
    for written, meant in ((b"%22", b'"'), (b'\\"', b'"'), (b"%0D", b"\r"), (b"%0A", b"\n")):
        name = name.replace(written, meant)
    return name.decode("utf-8", errors="replace")


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"The file is too large: at most {limits.megabytes:g} MB are taken here.")


async def _pieces(receive: Receive) -> AsyncIterator[bytes]:
    """The body of a request as it comes; ends when it does not."""
    while True:
        try:
            message = await asyncio.wait_for(receive(), _STALL_SECONDS)
        except TimeoutError as error:
            raise Refusal(408, f"Nothing came for {_STALL_SECONDS:g} s; try again.") from error
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` that gives a body which was read before."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _named_files(request: Any) -> Iterator[dict[str, Any]]:
    """Every part of a request that names a file."""
    todo = [request]
    while todo:
        part = todo.pop()
        if isinstance(part, dict) and "path" in part:
            yield part
        elif isinstance(part, dict | list):
            todo.extend(part.values() if isinstance(part, dict) else part)


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"))
