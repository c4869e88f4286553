# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The subcommand that fills a model's card."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ..model.errors_cavmae_sync import EvaluationError
from . import terminal

__all__ = ["card"]


def card(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a saved model.")],
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", metavar="FILE", help="Results of `evaluate` on this model; repeat for more."),
    ] = None,
    details: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML of what neither model nor results tell: licence, training."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the card and its snippet; default: the folder's.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Card to write; default: print it.")
    ] = None,
) -> None:
    """Fill a model's card from its configuration, results files and details."""
    from dataclasses import replace

    from ..evaluation.card import card_text, read_details
    from ..model_card import CardDetails

    known = read_details(details) if details is not None else CardDetails()
    text = card_text(model, results or [], known if name is None else replace(known, name=name))
    if out is None:
        print(text)
        return
    if out.is_dir():
        raise EvaluationError(f"{out} is a folder; name the file to write, such as {out / 'README.md'}.")
    if out.exists() and "library_name: transformers" not in out.read_text(encoding="utf-8", errors="replace"):
        raise EvaluationError(f"{out} exists and is no model card, so it is not replaced; name another file.")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        scratch.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True)
    terminal.say(f"written to {out}")
