# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Arguments and options that several subcommands share."""

from typing import Annotated, Any, Literal

import typer

from ..data.clock import parse_clock
from .completion import model_names
from .kinds import FolderIn, ModelName, Needs

MODEL_HELP = "Folder of a model, example, published:NAME, or OWNER/NAME on the Hub (with @REVISION, if any)."


def _audio_track(text: str) -> int | str:
    """The number of an audio track, or a language."""
    from ..model.media_selection_cavmae_sync import check_audio_track

    try:
        value = check_audio_track(int(text) if text.strip().isdigit() else text.strip())
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no audio track; give its number, from 0, or a language such as de."
        ) from error
    assert value is not None
    return value


def _time(text: Any) -> float:
    """Seconds of a time in any of its spellings; defaults come as numbers."""
    try:
        return parse_clock(text) if isinstance(text, str) else float(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def time_option(help: str, *names: str) -> Any:  # noqa: A002 - as typer calls it
    """An option that takes a time or a length of time: `80`, `80.5`, `1:20` or `1:02:03.5`."""
    return typer.Option(*names, parser=_time, metavar="TIME", help=help)


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=model_names), ModelName()
]
Model = Annotated[
    str, typer.Option("--model", "-m", metavar="MODEL", help=MODEL_HELP, autocompletion=model_names), ModelName()
]
# Of an index, which remembers its own.
IndexModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="The index's model, where it now lies elsewhere; for words one with text that has it inside.",
        autocompletion=model_names,
    ),
    ModelName(unnamed="of the index"),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE", help="Where to run the model: cpu, cuda, cuda:1, mps; auto takes cuda or mps if there is."
    ),
]
# What runs a model: each subcommand that takes one of these takes the other.
Backend = Annotated[
    Literal["torch", "onnx"],
    typer.Option(
        help="What runs the model: PyTorch, or ONNX Runtime on the CPU, for which it is exported once into the user's "
        "cache."
    ),
    Needs("export", "ONNX Runtime", value="onnx"),
]
Precision = Annotated[
    Literal["float32", "bfloat16", "int8"],
    typer.Option(help="Of the model's weights: bfloat16 with torch, int8 with onnx."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Media = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Folder of the files that a list names."), FolderIn()
]
Split = Annotated[str | None, typer.Option(help="Split of a list or data set.")]
Damaged = Annotated[
    Literal["error", "keep"], typer.Option(help="Truncated and corrupt files: refuse, or use what is there.")
]
Missing = Annotated[
    Literal["error", "mask"], typer.Option(help="Files without audio or without video: refuse, or use the rest.")
]
Channel = Annotated[
    Literal["first", "mean"] | None,
    typer.Option(help="How several audio channels become one; default: as the model was trained."),
]
AudioTrack = Annotated[
    Any,
    typer.Option(
        parser=_audio_track,
        metavar="N|LANGUAGE",
        help="Which of several audio tracks: number from 0, or language; default: the one that a player plays.",
    ),
]
Start = Annotated[float | None, time_option("Where in the video to start, such as 80.5 or 1:20.")]
End = Annotated[float | None, time_option("Where to end.")]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="This machine, or a Ray cluster."),
    Needs("ray", "The engine ray", value="ray"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results of the same names.")]


def settings(context: typer.Context, *without: str) -> dict[str, Any]:
    """The subcommand's arguments and options by name, but for those named."""
    return {name: value for name, value in context.params.items() if name not in without}
