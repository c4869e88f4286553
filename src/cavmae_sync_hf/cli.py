# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What can be done from the command line, and how do its errors read?

Every subcommand is one function that parses, calls the library and shows the result. What takes long to import is
imported inside it, so that `cavmae-sync --help` answers at once.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

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
    message = " ".join(str(error).split()) or type(error).__name__
    expected = isinstance(error, ValueError | OSError | ImportError) or type(error).__name__.startswith("Strict")
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
    from .convert import convert_checkpoint
    from .hub import register_auto_classes

    register_auto_classes()  # so that the folder carries the code
    report = convert_checkpoint(source, destination, config_overrides=overrides or None)
    _console.print(str(report), highlight=False, markup=False, soft_wrap=True)


@app.command()
def selfcheck(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or Hub name of a model.")],
    clips: Annotated[list[str], typer.Argument(metavar="CLIPS...", help="Video files or URLs with sound.")],
    device: Annotated[str, typer.Option(help="Where to run the model, such as cpu or cuda.")] = "cpu",
    min_margin: Annotated[float, typer.Option(help="How far true pairs must score above shuffled ones.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Check that sound scores higher with its own picture than with others; exit code 1 when it does not."""
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


def _load(name: str) -> tuple[Any, Any]:
    """A model and its processor from a folder or the Hub, with this package's classes."""
    from transformers import AutoConfig, AutoModel, AutoProcessor
    from transformers.utils import logging

    from .configuration_cavmae_sync import CavMaeSyncConfig
    from .hub import register_auto_classes

    register_auto_classes()
    logging.disable_progress_bar()
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"{name} is not a folder; name one that holds a saved model, or a Hub repository.")
    model_type = AutoConfig.from_pretrained(name).model_type
    if model_type != CavMaeSyncConfig.model_type:
        raise ValueError(f"{name} holds a model of type {model_type!r}, not {CavMaeSyncConfig.model_type!r}.")
    return AutoModel.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)


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
