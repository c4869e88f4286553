# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Serving the page: to whom, with which files, and with nothing loaded from elsewhere."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from importlib import resources
from typing import Any
from urllib.parse import quote

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .workspace import FILES_ROUTE, Workspace

_UPLOAD_FOLDER = "GRADIO_TEMP_DIR"
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
_MONOSPACE = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
# The page's own scripts are inline, and Gradio makes functions of text; nothing comes from another host.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Page(gr.Blocks):
    """A page that knows how it is to be served: `launch()` without arguments is right on a desktop and in a Space.

    Args:
        workspace: Where visitors' files lie; it is closed with the page.
        options: Of `gr.Blocks`.
    """

    def __init__(self, workspace: Workspace, **options: Any) -> None:
        self.workspace = workspace
        # Gradio puts uploads where this says, and asks it again whenever it uses one: uploads of the page that was
        # made last go into its workspace, which is removed as a whole.
        self._upload_folder_before = os.environ.get(_UPLOAD_FOLDER)
        os.environ[_UPLOAD_FOLDER] = os.fspath(workspace.uploads)
        # Files that nobody fetched or used go after an hour.
        super().__init__(analytics_enabled=False, delete_cache=(600, 3600), **options)

    def launch(self, **options: Any) -> Any:  # type: ignore[override]
        """Serve the page until Ctrl-C, or in the background with `prevent_thread_lock=True`.

        Args:
            options: Of `gr.Blocks.launch`; what is not given is chosen for safety: this machine alone can reach the
                server (in a Space: the Space's proxy), uploads are limited in size, and nothing is loaded from
                elsewhere.
        """
        in_background, quiet = options.pop("prevent_thread_lock", False), options.pop("quiet", False)
        if "server_name" not in options and not os.environ.get("GRADIO_SERVER_NAME"):
            options["server_name"] = "127.0.0.1"
        defaults: dict[str, Any] = {
            "css": _asset("style.css"),
            "head": f"<style>{_asset('frame.css')}</style><script>{_asset('player.js')}</script>",
            "theme": _theme(),
            "max_file_size": self.workspace.limits.max_bytes,
            "footer_links": [],
            "run_history": False,  # what visitors did is nobody's business
            "ssr_mode": False,
            "enable_monitoring": False,
            "share": False,
            "app_kwargs": {
                "middleware": [Middleware(_Headers)],
                "routes": [Route(f"/{FILES_ROUTE}/{{token}}/{{name}}", self._hand_out)],
                "docs_url": None,
                "redoc_url": None,
                "openapi_url": None,
            },
        }
        result = super().launch(prevent_thread_lock=True, quiet=True, **(defaults | options))
        if not quiet:
            public = f", and to everybody at {self.share_url}" if self.share_url else ""
            print(f"The page is at {self.local_url}{public}. Ctrl-C ends it.", flush=True)
        if not in_background:
            try:
                with _termination_as_interrupt():
                    self.block_thread()
            finally:
                self.close(verbose=False)
        return result

    def close(self, verbose: bool = True) -> None:
        """Stop serving and remove all files."""
        super().close(verbose=verbose)
        self.workspace.close()
        if os.environ.get(_UPLOAD_FOLDER) == os.fspath(self.workspace.uploads):
            if self._upload_folder_before is None:
                del os.environ[_UPLOAD_FOLDER]
            else:
                os.environ[_UPLOAD_FOLDER] = self._upload_folder_before

    async def _hand_out(self, request: Request) -> Response:
        """A file of the workspace, whole or in part; `?save` asks for it as a download."""
        found = self.workspace.find(request.path_params["token"], request.path_params["name"])
        if found is None or not found[0].is_file():
            return PlainTextResponse("This file is not there any more; run the analysis again.", status_code=404)
        path, save_as = found
        kind = "attachment" if "save" in request.query_params else "inline"
        headers = {
            "Content-Disposition": f"{kind}; filename*=UTF-8''{quote(save_as)}",
            # For this visitor alone, and not beyond the visit.
            "Cache-Control": "private, no-store",
        }
        return FileResponse(path, headers=headers)


class _Headers:
    """Adds headers that keep a page from loading anything from elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                new = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
                message["headers"] = [*message["headers"], *(item for item in new if item[0] not in present)]
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """A polite request to end (SIGTERM) leaves the block as Ctrl-C does, so that files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _theme() -> Any:
    """Plain, and with the fonts that are there: Gradio's own themes fetch theirs."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=_FONTS,
        font_mono=_MONOSPACE,
        radius_size=gr.themes.sizes.radius_md,
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        # Gradio's own are too pale to read.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_border_width="1px",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_600",
        button_primary_text_color="white",
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")
