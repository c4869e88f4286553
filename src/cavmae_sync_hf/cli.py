# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What can be done from the command line, and how do its errors read?

Every subcommand is one function that parses, calls the library and shows the result. What takes long to import is
imported inside it, so that `cavmae-sync --help` answers at once.
"""

import ast
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    name="cavmae-sync",
    help="CAV-MAE and CAV-MAE Sync: which sound belongs to which moment of a video.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_console = Console()
_errors = Console(stderr=True)

# How often progress is reported where the output is no terminal.
_SECONDS_BETWEEN_LINES = 30.0

# Set by `--traceback` before a subcommand runs.
_show_tracebacks = False


def main() -> NoReturn:
    """Run the command line and exit: 0 when all went well, 1 for an error, 2 for wrong arguments, 130 for Ctrl-C."""
    try:
        result = app(standalone_mode=False, prog_name="cavmae-sync")
    except Exception as error:
        sys.exit(_report(error))
    sys.exit(result if isinstance(result, int) else 0)


def _report(error: Exception) -> int:
    """Print an exception as one message and give the exit code."""
    if isinstance(error, typer.Exit):  # also Ctrl-C, as 130
        return error.exit_code
    if isinstance(error, typer.Abort):
        _errors.print("Aborted.")
        return 1
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # wrong usage: typer has its own words
        error.show()
        return int(error.exit_code)
    if isinstance(error, BrokenPipeError):
        # Whoever read the output has gone; the interpreter must not complain about it while closing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if _show_tracebacks:
        raise error
    strict = type(error).__name__.startswith("Strict")  # a configuration's check; the cause is what is wrong
    message = " ".join(str(error.__cause__ if strict and error.__cause__ else error).split()) or type(error).__name__
    expected = strict or isinstance(error, ValueError | OSError | ImportError)
    if not expected:
        message = f"{type(error).__name__}: {message} (run again with --traceback before the command to see where)"
    _errors.print(f"[bold red]Error:[/bold red] {escape(message)}", highlight=False, soft_wrap=True)
    return 1


def _show_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        _console.print(f"cavmae-sync-hf {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False,
) -> None:
    """Options of every subcommand."""
    global _show_tracebacks
    _show_tracebacks = traceback


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Published checkpoint file, or a ViT-MAE folder.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="New folder to write the model to.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Configuration value that tensor shapes do not tell."),
    ] = None,
) -> None:
    """Turn a published checkpoint into a folder that transformers loads."""
    overrides = _parse_settings(settings or [])
    from .convert import ConversionError, convert_checkpoint

    try:
        report = convert_checkpoint(source, destination, config_overrides=overrides or None)
    except ConversionError as error:
        raise ConversionError(_as_options(str(error))) from error
    _console.print(_as_options(str(report)), highlight=False, markup=False, soft_wrap=True)


@app.command()
def selfcheck(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or Hub name of a model.")],
    clips: Annotated[list[str], typer.Argument(metavar="CLIPS...", help="Video files or URLs with sound.")],
    device: Annotated[str, typer.Option(help="Where to run the model, such as cpu or cuda.")] = "cpu",
    min_margin: Annotated[float, typer.Option(help="How far true pairs must score above shuffled ones.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Check that sound scores higher with its own picture than with others; exit code 1 when it does not."""
    _check_device(device)
    from .selfcheck import selfcheck as run_selfcheck

    loaded, processor = _load(model)
    result = run_selfcheck(loaded.to(device), processor, clips, on_failure="ignore", min_margin=min_margin)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        _print_selfcheck(result)
    if not result.passed:
        raise typer.Exit(1)


def _print_selfcheck(result: Any) -> None:
    from rich.table import Table

    table = Table("clip", "moments", "true pairs", "shuffled", title="Similarity of sound and picture")
    for row in result.per_clip:
        shuffled = row["shuffled_within"]
        numbers = (f"{row['true_similarity']:.4f}", "-" if shuffled is None else f"{shuffled:.4f}")
        table.add_row(escape(row["clip"]), str(row["moments"]), *numbers)
    _console.print(table)
    style = "green" if result.passed else "bold red"
    _console.print(escape(result.summary()), style=style, highlight=False, soft_wrap=True)
    for reason in result.reasons:
        _console.print(f"- {escape(reason)}", highlight=False, soft_wrap=True)


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, pattern, list, address or data set name.")],
    # Text: a Path would make the folder "s3:" of an address, which is to be refused.
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="Folder for the shards: new, or begun by the same command.")
    ],
    name: Annotated[str, typer.Option(help="Name of the set; shards are called NAME-00000.tar.")] = "train",
    media: Annotated[str | None, typer.Option(help="Folder of the files that a list names.")] = None,
    labels: Annotated[Path | None, typer.Option(help="File of label names: lines, JSON, or AudioSet's CSV.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a list or data set.")] = None,
    folder_labels: Annotated[bool, typer.Option("--folder-labels", help="Label files by their folders.")] = False,
    cut: Annotated[
        Literal["auto", "done", "needed"], typer.Option(help="Whether files found by id are cut to their segments.")
    ] = "auto",
    num_frames: Annotated[int, typer.Option(help="Frames per clip.")] = 16,
    alignment: Annotated[
        Literal["time", "reference"], typer.Option(help="Frames at centres of equal spans, or as published.")
    ] = "time",
    short_side: Annotated[int, typer.Option(help="Shorter side of stored frames, pixels; 0 keeps every size.")] = 256,
    jpeg_quality: Annotated[int, typer.Option(help="1 to 100.")] = 95,
    jpeg_chroma: Annotated[Literal["4:4:4", "4:2:2", "4:2:0"], typer.Option(help="Colour resolution.")] = "4:4:4",
    channel: Annotated[Literal["first", "mean"], typer.Option(help="How several channels become one.")] = "first",
    sampling_rate: Annotated[int, typer.Option(help="Rate of the sound in Hz, for the spectrogram.")] = 16000,
    num_mel_bins: Annotated[int, typer.Option(help="Mel bins of the spectrogram.")] = 128,
    missing: Annotated[
        Literal["error", "keep"], typer.Option(help="Clips without sound or pictures: bad, or kept as such.")
    ] = "error",
    silent: Annotated[Literal["error", "keep"], typer.Option(help="Clips with a silent sound track.")] = "error",
    damaged: Annotated[Literal["error", "keep"], typer.Option(help="Truncated and corrupt files.")] = "error",
    max_seconds: Annotated[float, typer.Option(help="Longer clips are bad clips.")] = 600.0,
    clips_per_shard: Annotated[int | None, typer.Option(help="Default: 256, less for small sets.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="This machine's processes, or a Ray cluster.")
    ] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Of the cluster; default: RAY_ADDRESS.")] = None,
) -> None:
    """Turn a collection of videos into shards for training; run it again to continue after an interruption.

    Clips that cannot be used are left out and listed. Where the network or a disk fails, the run ends, and continues
    when it is run again.
    """
    options = dict(locals())
    from .data.prepare import prepare as run_prepare

    options["short_side"] = short_side or None
    with _progress_bar("preparing") as show:
        summary = run_prepare(
            **options, progress=lambda at: show(at.done, at.total, f"{at.bad} bad" if at.bad else "")
        )
    _console.print(str(summary), highlight=False, markup=False, soft_wrap=True)


@app.command()
def world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the world; splits are folders in it.")],
    clips: Annotated[int, typer.Option(help="Clips of the split.")] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed gives another world.")] = 0,
    split: Annotated[str, typer.Option(help="Name of the split.")] = "train",
    preset: Annotated[
        Literal["semantic", "temporal", "spatial", "mixed"],
        typer.Option(help="What makes the clips hard to tell apart."),
    ] = "mixed",
    size: Annotated[str, typer.Option(help="Side of the picture, or WIDTHxHEIGHT, pixels.")] = "96",
    fps: Annotated[int, typer.Option(help="Frames per second.")] = 10,
    seconds: Annotated[float, typer.Option(help="Length of a clip.")] = 10.0,
    echo: Annotated[float, typer.Option(help="Strength of the room's echo, 0 to 1.")] = 0.0,
    noise_db: Annotated[float, typer.Option(help="Background noise, dB relative to full scale.")] = -55.0,
    overlap: Annotated[float, typer.Option(help="Chance that a sound begins before the previous one ends.")] = 0.0,
    sampling_rate: Annotated[int, typer.Option(help="Sound samples per second.")] = 16000,
    crf: Annotated[int, typer.Option(help="H.264 compression, 0 (lossless) to 51.")] = 23,
    encoder_preset: Annotated[str, typer.Option(help="x264 preset: slower ones make smaller files.")] = "ultrafast",
    audio_bitrate: Annotated[int, typer.Option(help="AAC bits per second.")] = 64000,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Also write a page and a picture to look at.")] = False,
) -> None:
    """Make SyncWorld: short videos in which who sounds, when and where is known."""
    options: dict[str, Any] = {key: value for key, value in locals().items() if key != "preview"}
    options["size"] = _height_and_width(size)
    from .data.world import contact_sheet, make_world, preview_page

    with _progress_bar("making") as show:
        summary = make_world(**options, progress=show)
    rate = f", {summary.clips_per_second:.1f} clips/s" if summary.made else ", all there already"
    _console.print(f"{summary.folder}: {summary.clips} clips{rate}", highlight=False, markup=False, soft_wrap=True)
    if preview:
        for path in (
            preview_page(out, out / f"{split}.html", split=split),
            contact_sheet(out, out / f"{split}.png", split=split),
        ):
            _console.print(str(path), highlight=False, markup=False, soft_wrap=True)


def _height_and_width(size: str) -> tuple[int, int]:
    """Picture size of `96` or, width first as video sizes are written, `160x96`."""
    found = re.fullmatch(r"(\d+)(?:[xX](\d+))?", size.strip())
    if not found:
        raise ValueError(f"--size must be a number of pixels or WIDTHxHEIGHT such as 160x96, got {size!r}.")
    return int(found[2] or found[1]), int(found[1])


@contextmanager
def _progress_bar(what: str) -> Iterator[Callable[..., None]]:
    """A bar on the error stream, with rate and time left; gives `show(done, total, remark)`."""
    if not _errors.is_terminal:
        yield _plain_progress(what)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_errors, transient=True) as bar:
        task = bar.add_task(what, total=None, rate="")
        first: list[float] = []  # what earlier runs did, and when this one began

        def show(done: int, total: int, remark: str = "") -> None:
            first.extend([] if first else [done, time.monotonic()])
            rate = _rate(int(done - first[0]), time.monotonic() - first[1], total - done, remark)
            bar.update(task, completed=done, total=total, rate=rate)

        yield show


def _rate(made: int, seconds: float, to_do: int, remark: str) -> str:
    parts = [remark]
    if made and seconds:
        left = timedelta(seconds=round(to_do * seconds / made))
        parts = [f"{made / seconds:.1f} clips/s", f"{left} left", remark]
    return ", ".join(filter(None, parts))


def _plain_progress(what: str) -> Callable[..., None]:
    """`show(done, total, remark)` for logs: a line now and then."""
    first: list[float] = []  # what earlier runs did, and when this one began
    printed = time.monotonic()

    def show(done: int, total: int, remark: str = "") -> None:
        nonlocal printed
        now = time.monotonic()
        first.extend([] if first else [done, now])
        if now - printed < _SECONDS_BETWEEN_LINES:
            return
        printed = now
        rate = _rate(int(done - first[0]), now - first[1], total - done, remark)
        line = f"{what}: {done} of {total}" + (f", {rate}" if rate else "")
        _errors.print(line, highlight=False, markup=False, soft_wrap=True)

    return show


def _check_device(device: str) -> None:
    """Refuse a device that torch does not know, or that this machine does not have, before anything is loaded."""
    import torch

    try:
        torch.device(device)
    except RuntimeError as error:
        raise typer.BadParameter(f"{device!r} is no device; use one such as cpu, cuda, cuda:1 or mps.") from error
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise typer.BadParameter(f"{device!r} cannot be used on this machine ({reason}); use cpu.") from error


def _load(name: str) -> tuple[Any, Any]:
    """A model and its processor from a folder or the Hub, with this package's classes."""
    _check_name(name)
    from transformers import AutoConfig, AutoModel, AutoProcessor
    from transformers.utils import logging

    from .configuration_cavmae_sync import CavMaeSyncConfig
    from .hub import register_auto_classes

    register_auto_classes()
    logging.disable_progress_bar()
    try:
        model_type = AutoConfig.from_pretrained(name).model_type
    except OSError as error:
        if Path(name).is_dir():
            raise
        raise ValueError(f"There is no folder {name}, and the Hub gives no model of this name: {error}") from error
    if model_type != CavMaeSyncConfig.model_type:
        raise ValueError(f"{name} holds a model of type {model_type!r}, not {CavMaeSyncConfig.model_type!r}.")
    return AutoModel.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)


def _check_name(name: str) -> None:
    """Refuse what can be neither a folder with a model nor a repository on the Hub, without asking the Hub."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{name} holds no config.json; name a folder that holds a saved model.")
    elif path.exists():
        raise ValueError(f"{name} is a file; name the folder of a saved model (`cavmae-sync convert` makes one).")
    elif not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise ValueError(
            f"{name} is not a folder; name one that holds a saved model, or a Hub repository as OWNER/NAME."
        )


def _as_options(text: str) -> str:
    """`text` of the library with Python's `config_overrides={'key': value}` as this command's `--set key=value`."""

    def as_options(match: re.Match[str]) -> str:
        return " ".join(f"--set {key}={value}" for key, value in ast.literal_eval(match[1]).items())

    text = re.sub(r"config_overrides=(\{[^{}]*\})", as_options, text)
    return text.replace("config_overrides", "--set")


def _parse_settings(settings: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts as a dictionary; values are JSON where they can be (`8`, `0.5`, `true`), else text."""
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key.strip():
            raise typer.BadParameter(f"{setting!r} is not KEY=VALUE, such as --set num_attention_heads=12.")
        try:
            parsed[key.strip()] = json.loads(value)
        except ValueError:
            literal = {"true": True, "false": False, "none": None}
            parsed[key.strip()] = literal.get(value.strip().lower(), value)
    return parsed


if __name__ == "__main__":
    main()

__all__ = ["app", "main"]
