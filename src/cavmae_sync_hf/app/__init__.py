# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A web page for people who would rather look: `cavmae-sync app`, or a Space.

A Space needs three lines in its `app.py`:

    from cavmae_sync_hf.app import build_app

    build_app().launch()
"""

from typing import TYPE_CHECKING, Any

from ..provenance import install_line
from .workspace import Limits

if TYPE_CHECKING:
    from .server import Page

__all__ = ["Limits", "build_app"]


def build_app(*args: Any, **options: Any) -> "Page":
    """Make the page; arguments and errors as for `page.build_app`.

    Raises:
        ImportError: Gradio is not installed.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError(f"The web page needs gradio: {install_line('app')}") from error
    from .page import build_app as build

    return build(*args, **options)
