# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Serving the page: to whom, with which files, and with nothing loaded from elsewhere."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from importlib import resources
from typing import Any
from urllib.parse import quote, urlsplit

import gradio as gr
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from .access import Access
from .gate import Gate
from .workspace import FILES_ROUTE, Workspace

_UPLOAD_FOLDER = "GRADIO_TEMP_DIR"
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
_MONOSPACE = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
# Seconds between two looks for files that nobody needs any more.
_SWEEP_SECONDS = 20.0

logger = logging.getLogger(__name__)


class Page(gr.Blocks):
    """A page that knows how it is to be served: `launch()` without arguments is right on a desktop and in a Space.

    Args:
        workspace: Where visitors' files lie; it is closed with the page.
        allow_hosts: Names that the page is served under, beside those of this machine (see `Access.served_at`).
        options: Of `gr.Blocks`.

    Raises:
        AppError: One of `allow_hosts` is not a name.
    """

    def __init__(self, workspace: Workspace, allow_hosts: Iterable[str] = (), **options: Any) -> None:
        self.workspace = workspace
        self.allow_hosts = tuple(allow_hosts)
        self.access = Access.served_at("127.0.0.1", self.allow_hosts)
        # Gradio puts uploads where this says, and asks it again whenever it uses one: uploads of the page that was
        # made last go into its workspace, which is removed as a whole.
        self._upload_folder_before = os.environ.get(_UPLOAD_FOLDER)
        os.environ[_UPLOAD_FOLDER] = os.fspath(workspace.uploads)
        super().__init__(analytics_enabled=False, **options)

    def launch(self, **options: Any) -> Any:  # type: ignore[override]
        """Serve the page until Ctrl-C, or in the background with `prevent_thread_lock=True`.

        Args:
            options: Of `gr.Blocks.launch`; what is not given is chosen for safety: this machine alone can reach the
                server (in a Space: the Space's proxy), under its own names and those of `allow_hosts`; uploads are
                limited in size, and nothing is loaded from elsewhere.
        """
        in_background, quiet = options.pop("prevent_thread_lock", False), options.pop("quiet", False)
        if "server_name" not in options and not os.environ.get("GRADIO_SERVER_NAME"):
            options["server_name"] = "127.0.0.1"
        self.access = Access.served_at(
            options.get("server_name") or os.environ["GRADIO_SERVER_NAME"],
            self.allow_hosts,
            root_path=options.get("root_path") or os.environ.get("GRADIO_ROOT_PATH"),
        )
        defaults: dict[str, Any] = {
            "css": _asset("style.css"),
            "head": f"<style>{_asset('frame.css')}</style><script>{_asset('draw.js')}{_asset('player.js')}</script>",
            "theme": _theme(),
            "max_file_size": self.workspace.limits.max_bytes,
            "footer_links": [],
            "run_history": False,  # what visitors did is nobody's business
            "ssr_mode": False,
            "enable_monitoring": False,
            "share": False,
            "state_session_capacity": 256,
            "app_kwargs": {
                "lifespan": self._serve,
                "routes": [Route(f"/{FILES_ROUTE}/{{token}}/{{name}}", self._hand_out)],
                "docs_url": None,
                "redoc_url": None,
                "openapi_url": None,
            },
        }
        result = super().launch(prevent_thread_lock=True, quiet=True, **(defaults | options))
        if self.share_url:
            self.access.allow(urlsplit(self.share_url).hostname or "")
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

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any) -> Any:
        """What a request holds, as the page's functions take it; what it lacks becomes a sentence.

        Raises:
            gr.Error: The request cannot be used; its uploads are removed.
        """
        try:
            return await super().preprocess_data(block_fn, inputs, *arguments, **options)
        except Exception as error:
            for value in inputs:
                if isinstance(value, dict) and "path" in value:
                    self.workspace.remove_upload(value["path"])
            logger.warning("A request cannot be read.", exc_info=error)
            raise gr.Error("The request cannot be read; load the page again.", print_exception=False) from error

    @contextlib.asynccontextmanager
    async def _serve(self, app: Any) -> AsyncIterator[None]:
        """For as long as the server runs: the gate is in front of everything, and old files are removed."""
        # Layers that are given to Gradio's server come behind its own, which answer some requests themselves.
        app.middleware_stack = Gate(
            app.middleware_stack,
            self.access,
            self.workspace,
            functions=self.fns,
            waiting=lambda visitor: len(self._queue.pending_event_ids_session.get(visitor, ())),
            prefix=urlsplit(self.root_path or "").path,
            needs_login=app.auth is not None or app.auth_dependency is not None,
        )

        async def sweep() -> None:
            while True:
                await asyncio.sleep(_SWEEP_SECONDS)
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(self.workspace.sweep)

        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()

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
        # Browsers show plain text, and save what they are told is Markdown.
        return FileResponse(path, headers=headers, media_type="text/plain" if path.suffix == ".md" else None)


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
        block_label_text_size="*text_md",  # for phones
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_600",
        button_primary_text_color="white",
        color_accent="*primary_700",
        checkbox_background_color_selected="*primary_700",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")
