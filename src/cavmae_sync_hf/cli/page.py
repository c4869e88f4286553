# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The subcommand that serves the web page."""

from typing import Annotated

import typer

from . import terminal
from .completion import model_names
from .kinds import FolderIn, ModelName
from .options import Backend, Device, Precision, time_option


def app(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Folder of a model, published:NAME, or OWNER/NAME on the Hub; default: example, the small one in the "
            "package.",
            autocompletion=model_names,
        ),
        ModelName(unnamed="example"),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            metavar="INDEX",
            help="Index to search, made by `cavmae-sync index` with this model; default: one of the demo clips.",
        ),
        FolderIn(),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 127.0.0.1 is this machine alone, 0.0.0.0 everybody.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen at; default: the first free one from 7860.")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Make it public for three days, through Gradio's servers.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that the page is served under, as by a proxy; again for more, .example.org for all beneath it."
        ),
    ] = None,
    max_megabytes: Annotated[float, typer.Option(help="Largest upload, in megabytes.")] = 100.0,
    max_seconds: Annotated[float, time_option("Longest clip that is taken.")] = 60.0,
    max_disk: Annotated[
        float | None,
        typer.Option(help="Room for the files of all visitors, in megabytes; default: 2000, more for large uploads."),
    ] = None,
    device: Device = "auto",
    backend: Backend = "torch",
    precision: Precision = "float32",
) -> None:
    """Serve a web page that shows synchrony, sources of the audio and similar moments of a clip.

    It works with made demo clips at once. Uploads are limited, decoded in a process of their own, and removed. With
    --backend onnx, models without local heads still find places in the frame in PyTorch.

    Examples:
        cavmae-sync app
        cavmae-sync app --model my-model --index my.index --port 8000
        cavmae-sync app --model my-model --backend onnx --precision int8
    """
    for name, value in (
        ("--max-megabytes", max_megabytes), ("--max-seconds", max_seconds), ("--max-disk", max_disk)
    ):  # fmt: skip
        if value is not None and not value > 0:
            raise typer.BadParameter(f"{value:g} leaves nothing to take; give a number above 0.", param_hint=name)
    device = terminal.choose_device(device, backend)
    from ..app import Limits, build_app

    try:
        limits = Limits(megabytes=max_megabytes, seconds=max_seconds, disk_megabytes=max_disk)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--max-disk") from error
    with (
        terminal.export_progress(model or "example", bar=False) as show_export,
        terminal.progress_bar("making demo clips") as show,
    ):
        page = build_app(
            model,
            index=index,
            device=device,
            backend=backend,
            precision=precision,
            limits=limits,
            allow_hosts=allow_host or (),
            progress=show,
            export_progress=show_export,
        )
    if host not in ("127.0.0.1", "localhost", "::1") or share:
        terminal.say("Anyone who can reach this address can use the page; there is no password.")
    page.launch(server_name=host, server_port=port, share=share)
