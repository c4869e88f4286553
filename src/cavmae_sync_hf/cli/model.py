# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Subcommands that make, check, export and describe a model folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from ..model.errors_cavmae_sync import ModelError, on_command_line
from ..names import find_published, is_published, nothing_at, published_weights
from . import terminal
from .completion import model_names
from .kinds import FileIn, FileOut, FolderOut, Kind, MediaIn, ModelName, Needs
from .options import MODEL_HELP, AsJson, Device, ModelArgument, Overwrite

if TYPE_CHECKING:
    from ..convert import ConversionReport
    from ..selfcheck import SelfCheckResult


class CheckpointIn(Kind):
    """A file or folder to convert, or the name of published weights."""

    def check(self, value: str, values: Mapping[str, Any]) -> None:
        if os.path.exists(value) or is_published(value):
            return
        if os.path.splitext(value)[1] or os.path.dirname(value):
            raise ModelError(nothing_at(value))
        find_published(value)


def checkpoint_names(incomplete: str) -> list[str]:
    """Names of published weights that begin so."""
    return [weights.name for weights in published_weights() if weights.name.startswith(incomplete)]


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Checkpoint file, a ViT-MAE folder, or a name that `cavmae-sync published` lists.",
            autocompletion=checkpoint_names,
        ),
        CheckpointIn(),
    ],
    destination: Annotated[
        Path | None,
        typer.Argument(metavar="DST", help="New folder to write the model to; for a name by default the cache."),
        FolderOut(new=True),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Configuration value that tensor shapes do not tell."),
    ] = None,
) -> None:
    """Turn a published checkpoint into a folder that transformers loads.

    Examples:
        cavmae-sync convert cav-mae-sync my-model
        cavmae-sync convert audio_model.25.pth my-model
    """
    overrides = _parse_settings(settings or [])
    if destination is None and Path(source).exists():
        raise typer.BadParameter("a file needs DST, the folder to write the model to.", param_hint="DST")
    from ..convert import convert_checkpoint, convert_published

    target = destination if destination is not None else "the cache"
    terminal.kept = f"{target} is as it was before; run the command again."
    if destination is not None and (Path(source).exists() or not is_published(source)):
        report: ConversionReport | None = convert_checkpoint(
            Path(source), destination, config_overrides=overrides or None
        )
    else:
        weights = find_published(source)
        terminal.say(f"{weights.name} ({weights.paper}): {weights.what}. {weights.metric}".rstrip(". ") + ".")
        with terminal.progress_bar("fetching", unit="MB") as show:
            folder, report = convert_published(
                source, destination, config_overrides=overrides, progress=lambda at, of: show(at >> 20, of >> 20)
            )
        if report is None:
            terminal.say(f"Converted before: {folder}")
    if report is not None:
        terminal.say(report.spelled(on_command_line))


def published(as_json: AsJson = False) -> None:
    """List the checkpoints that the methods' authors published; `convert NAME` makes a folder of one."""
    found = published_weights()
    if as_json:
        terminal.print_json([weights.to_dict() for weights in found])
        return
    for weights in found:
        figure = f"; {weights.metric}" if weights.metric else ""
        terminal.console.print(f"[bold]{escape(weights.name)}[/bold]  {escape(weights.paper)}", highlight=False)
        terminal.console.print(f"  {escape(weights.what + figure)}", highlight=False)
    licences = sorted({weights.licence for weights in found})
    terminal.say(f"Licence: {'; '.join(licences)}. Links, sizes and checksums: --json.")


def selfcheck(
    model: ModelArgument,
    clips: Annotated[
        list[str], typer.Argument(metavar="CLIPS...", help="Video files or addresses, with audio."), MediaIn()
    ],
    device: Device = "auto",
    min_margin: Annotated[float, typer.Option(help="How far true pairs must score above shuffled ones.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Check that audio scores higher with its own frame than with others; exit code 1 when it does not.

    Examples:
        cavmae-sync selfcheck my-model a.mp4 b.mp4 c.mp4
    """
    device = terminal.choose_device(device)
    from ..loading import load_model
    from ..selfcheck import selfcheck as run_selfcheck

    loaded, processor = load_model(model, device=device)
    result = run_selfcheck(loaded, processor, clips, on_failure="ignore", min_margin=min_margin)
    if as_json:
        terminal.print_json(result.to_dict() | {"device": device})
    else:
        _print_selfcheck(result)
    if not result.passed:
        raise typer.Exit(1)


def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder to write to."), FolderOut(new=True)],
    format: Annotated[
        Literal["onnx", "torch"],
        typer.Option(help="For ONNX Runtime, or as torch.export programs."),
        Needs("export", "Writing ONNX files", value="onnx"),
    ] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Also write ONNX towers with 8-bit weights.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier export wrote.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the towers for ONNX Runtime or torch.export, checked against the model, with the processor beside them.

    Examples:
        cavmae-sync export my-model towers --int8
    """
    from ..export import export_model
    from ..inference.loading import has_text
    from ..loading import load_model

    loaded, processor = load_model(model, use="text" if has_text(model) else "embedding")
    terminal.kept = f"{out} is as it was before; run the command again."
    with terminal.progress_bar("exporting", unit="steps") as show:
        found = export_model(loaded, processor, out, format=format, int8=int8, overwrite=overwrite, progress=show)
    if as_json:
        terminal.print_json(found)
    else:
        _show_export(found, out)


def card(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=model_names),
        ModelName(loaded=False),
    ],
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", metavar="FILE", help="Results of `evaluate` on this model; repeat for more."),
        FileIn(),
    ] = None,
    details: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML of what neither model nor results tell: licence, training."),
        FileIn(),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the card and its snippet; default: the folder's.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it to this file, such as README.md."),
        FileOut(what="model card", marker="library_name: transformers"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Fill a model's card from its configuration, results files and details.

    Examples:
        cavmae-sync card my-model --results results.json --out my-model/README.md
    """
    from dataclasses import replace

    from ..evaluation.card import card_text, read_details
    from ..files import write_text
    from ..model_card import CardDetails

    known = read_details(details) if details is not None else CardDetails()
    text = card_text(model, results or [], known if name is None else replace(known, name=name))
    if out is None:
        print(text)
        return
    write_text(out, text.rstrip("\n") + "\n", overwrite=overwrite)
    terminal.say(f"written to {out}")


def _print_selfcheck(result: "SelfCheckResult") -> None:
    from rich.table import Table

    table = Table("clip", "moments", "true pairs", "shuffled", title="Similarity of audio and video")
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
    from ..files import parse_json

    parsed: dict[str, Any] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key.strip():
            raise typer.BadParameter(f"{setting!r} is not KEY=VALUE, such as --set num_attention_heads=12.")
        try:
            parsed[key.strip()] = parse_json(value)
        except ValueError:
            literal = {"true": True, "false": False, "none": None}
            parsed[key.strip()] = literal.get(value.strip().lower(), value)
    return parsed


def _show_export(found: dict[str, Any], out: Path) -> None:
    from rich.table import Table

    table = Table(title="Exported towers")
    for column in ("file", "size", "an input", "compared with the model"):
        table.add_column(column, no_wrap=True)
    for entry in found["towers"].values():
        shape = " x ".join(map(str, entry["inputs"][0]["shape"][2:])) or "tokens"
        worst = max(entry["max_difference"].values())
        table.add_row(escape(entry["file"]), _size(entry), shape, f"differs by {worst:.1g} at most")
        if "int8" in entry:
            small = entry["int8"]
            table.add_row(escape(small["file"]), _size(small), shape, f"cosine {small['min_cosine']:.5f} at least")
    terminal.console.print(table)
    terminal.say(f"Written to {out}. Any number of clips and frames will do; export.json says names and shapes.")


def _size(entry: dict[str, Any]) -> str:
    return f"{(entry['bytes'] + entry.get('data_bytes', 0)) / 1e6:.1f} MB"
