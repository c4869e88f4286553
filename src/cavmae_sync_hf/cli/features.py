# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The subcommand that writes features of windows for analyses elsewhere."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from ..model.errors_cavmae_sync import CavMaeSyncError, on_command_line
from . import terminal

__all__ = ["extract"]

_SHOWN_FAILURES = 10


def extract(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Video file, folder, pattern, list or data set name.")
    ],
    # Text: a Path would make the folder "s3:" of an address, which is to be refused.
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder: new, or begun by the same command.")],
    # What is left of `--modalities a v av` and `--layers 3 6` after their first values.
    more: Annotated[list[str] | None, typer.Argument(metavar="MORE", hidden=True)] = None,
    *,
    model: Annotated[str, typer.Option("--model", "-m", help="Folder or Hub name of a model.")],
    window: Annotated[float, typer.Option(help="Length of a window, seconds.")] = 5.0,
    stride: Annotated[float, typer.Option(help="From the start of a window to that of the next, seconds.")] = 1.0,
    hop: Annotated[
        float | None,
        typer.Option(help="From one moment to the next, seconds; divides the stride. Default: 0.625 or less."),
    ] = None,
    modalities: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[a v av ...]",
            help="Sound, picture, both fused (av), means of patches (a_patches, v_patches). Default: a v av.",
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="[N ...]", help="Also the mean patches after these layers; 0: embedded patches."),
    ] = None,
    control: Annotated[
        Literal["scramble"] | None, typer.Option(help="Give pictures the sound of other pieces of the films.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds the control.")] = 0,
    audio_context: Annotated[
        Literal["around", "inside"],
        typer.Option(help="Whether moments that hear beyond the window's ends count, or only those that do not."),
    ] = "around",
    sound: Annotated[Literal["around", "inside"] | None, typer.Option(hidden=True)] = None,
    partial: Annotated[
        Literal["drop", "keep"], typer.Option(help="Windows that reach beyond the film's end.")
    ] = "drop",
    missing: Annotated[
        Literal["error", "mask"], typer.Option(help="Films without sound or picture: unusable, or NaN for it.")
    ] = "error",
    damaged: Annotated[
        Literal["error", "keep"], typer.Option(help="Truncated and corrupt films: unusable, or what is there.")
    ] = "error",
    format: Annotated[  # noqa: A002 - the word users look for
        Literal["npy", "parquet"], typer.Option(help="Arrays and a timing table, or Parquet files.")
    ] = "npy",
    media: Annotated[str | None, typer.Option(help="Folder of the files that a list names.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a list or data set.")] = None,
    batch_frames: Annotated[int, typer.Option(min=1, help="Moments decoded and encoded at a time.")] = 16,
    device: Annotated[str, typer.Option(help="Where to run the model, such as cpu or cuda.")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the model's weights; features are float32.")
    ] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Write features of every window of videos of any length, with a table of their times.

    The feature of a window is the mean over the moments inside it, half a second or so apart; the model hears a few
    seconds around each. Films are read once, in constant memory. A run that is killed goes on when it is started
    again. Films that cannot be used are listed and left out; the exit code is then 1.
    """
    terminal.check_device(device)
    if sound is not None:
        terminal.errors.print(f"Note: --sound is now called --audio-context; taken as --audio-context {sound}.")
        audio_context = sound
    names, numbers = _sort_words(modalities or [], layers or [], more or [])
    import torch

    from ..inference.extract import extract_to_folder
    from ..inference.loading import load_model

    loaded, processor = load_model(model, device=device, dtype=getattr(torch, dtype))
    try:
        with terminal.progress_bar("extracting") as show:
            summary = extract_to_folder(
                loaded, processor, source, out, format=format, window=window, stride=stride, hop=hop,
                modalities=names or None, layers=numbers, control=control, seed=seed, audio_context=audio_context,
                partial=partial, missing=missing, damaged=damaged, batch_frames=batch_frames, media=media,
                split=split, progress=show,
            )  # fmt: skip
    except ValueError as error:
        raise ValueError(_spell(error)) from error
    if as_json:
        print(json.dumps(summary.to_dict(), indent=2))
    else:
        _print(summary)
    if summary.failed:
        raise typer.Exit(1)


def _sort_words(modalities: list[str], layers: list[str], more: list[str]) -> tuple[list[str], list[int]]:
    """The names of features and numbers of layers, which may be given one by one, with commas or with spaces."""
    names, numbers = _words(modalities), _words(layers)
    for word in more:
        whole = re.fullmatch(r"-?\d+", word) is not None
        if not (numbers if whole else names):
            raise typer.BadParameter(f"Got an argument too many: {word!r}. There are two, SOURCE and OUT.")
        (numbers if whole else names).append(word)
    wrong = [word for word in numbers if re.fullmatch(r"-?\d+", word) is None]
    if wrong:
        raise typer.BadParameter(f"--layers are whole numbers, got {wrong[0]!r}.")
    return names, [int(word) for word in numbers]


def _words(values: list[str]) -> list[str]:
    return [word for value in values for word in re.split(r"[,\s]+", value) if word]


def _spell(error: BaseException) -> str:
    """An error of the library with its remedies as this command's options."""
    text = error.spelled(on_command_line) if isinstance(error, CavMaeSyncError) else str(error)
    return re.sub(r"\b(damaged|missing)=(['\"])(\w+)\2", r"--\1 \3", text)


def _print(summary: Any) -> None:
    terminal.say(str(summary))
    for place, (name, reason) in enumerate(summary.failed.items()):
        if place == _SHOWN_FAILURES:
            terminal.errors.print(f"... and {len(summary.failed) - place} more; see {_manifest(summary.folder)}.")
            break
        text = " ".join(_spell(summary.errors[name]).split())
        text = text if name in reason else f"{name}: {text}"
        text = "".join(letter if letter.isprintable() else "?" for letter in text)
        terminal.errors.print(f"[bold red]Left out:[/bold red] {escape(text)}", highlight=False, soft_wrap=True)


def _manifest(folder: Path) -> str:
    return escape(str(folder / "manifest.json"))
