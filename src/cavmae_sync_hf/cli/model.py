# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The subcommands that make and check a model folder."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..model.errors_cavmae_sync import on_command_line
from . import terminal

__all__ = ["convert", "selfcheck"]


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
    from ..convert import convert_checkpoint

    report = convert_checkpoint(source, destination, config_overrides=overrides or None)
    terminal.say(report.spelled(on_command_line))


def selfcheck(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or Hub name of a model.")],
    clips: Annotated[list[str], typer.Argument(metavar="CLIPS...", help="Video files or URLs with sound.")],
    device: Annotated[str, typer.Option(help="Where to run the model, such as cpu or cuda.")] = "cpu",
    min_margin: Annotated[float, typer.Option(help="How far true pairs must score above shuffled ones.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Check that sound scores higher with its own picture than with others; exit code 1 when it does not."""
    terminal.check_device(device)
    from ..inference.loading import load_model
    from ..selfcheck import selfcheck as run_selfcheck

    loaded, processor = load_model(model, device=device)
    result = run_selfcheck(loaded, processor, clips, on_failure="ignore", min_margin=min_margin)
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
    terminal.console.print(table)
    style = "green" if result.passed else "bold red"
    terminal.console.print(escape(result.summary()), style=style, highlight=False, soft_wrap=True)
    for reason in result.reasons:
        terminal.console.print(f"- {escape(reason)}", highlight=False, soft_wrap=True)


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
