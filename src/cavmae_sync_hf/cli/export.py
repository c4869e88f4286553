# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The subcommand that writes a model for other runtimes."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from . import terminal


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or Hub name of a model.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder to write to.")],
    format: Annotated[
        Literal["onnx", "torch"], typer.Option(help="For ONNX Runtime, or as torch.export programs.")
    ] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Also write ONNX towers with 8-bit weights.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier export wrote.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what export.json says.")] = False,
) -> None:
    """Write the towers for ONNX Runtime or torch.export, checked against the model, with the processor beside them."""
    from ..export import export_model
    from ..inference.loading import load_model

    loaded, processor = load_model(model)
    with terminal.progress_bar("exporting", unit="steps") as show:
        found = export_model(loaded, processor, out, format=format, int8=int8, overwrite=overwrite, progress=show)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(found, out)


def _show(found: dict[str, Any], out: Path) -> None:
    from rich.table import Table

    table = Table(title="Exported towers")
    for column in ("file", "size", "a window or frame", "compared with the model"):
        table.add_column(column, no_wrap=True)
    for entry in found["towers"].values():
        shape = " x ".join(map(str, entry["inputs"][0]["shape"][2:]))
        worst = max(entry["max_difference"].values())
        table.add_row(escape(entry["file"]), _size(entry), shape, f"differs by {worst:.1g} at most")
        if "int8" in entry:
            small = entry["int8"]
            table.add_row(escape(small["file"]), _size(small), shape, f"cosine {small['min_cosine']:.5f} at least")
    terminal.console.print(table)
    terminal.say(f"Written to {out}. Any number of clips and frames will do; export.json says names and shapes.")


def _size(entry: dict[str, Any]) -> str:
    return f"{(entry['bytes'] + entry.get('data_bytes', 0)) / 1e6:.1f} MB"
