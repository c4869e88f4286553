# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The subcommand that says what is to be heard and seen in videos."""

import json
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from ..model.errors_cavmae_sync import CavMaeSyncError, on_command_line
from . import terminal

__all__ = ["classify"]

_BAR_WIDTH = 24


def classify(
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO...", help="Video or sound files, or addresses.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Folder or Hub name of a fine-tuned classifier.")],
    top: Annotated[int, typer.Option(min=1, help="How many labels to show.")] = 5,
    modality: Annotated[
        Literal["both", "audio", "video"] | None,
        typer.Option(help="Go by sound and picture or by one of them; default: all that the model has."),
    ] = None,
    moments: Annotated[bool, typer.Option("--moments", help="Also say when: the labels along each file.")] = False,
    hop: Annotated[
        float | None,
        typer.Option(help="Seconds between moments; default: as in training up to 12 s, 0.625 in longer files."),
    ] = None,
    missing: Annotated[
        Literal["error", "mask"],
        typer.Option(help="Files without sound or without pictures: refuse, or go by the rest."),
    ] = "error",
    damaged: Annotated[
        Literal["error", "keep"], typer.Option(help="Truncated and corrupt files: refuse, or use what is there.")
    ] = "error",
    device: Annotated[str, typer.Option(help="Where to run the model, such as cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Say what is to be heard and seen: labels and scores by a fine-tuned model, over all moments of each file.

    Files that cannot be used are named, the others are classified; the exit code is then 1.
    """
    terminal.check_device(device)
    from ..inference.classify import iter_classify
    from ..inference.loading import load_model
    from ..model.pipeline_inputs_cavmae_sync import check_modality

    loaded, processor = load_model(model, use="classification", device=device)
    check_modality(modality, loaded.config)
    found: list[Any] = []
    failed: list[dict[str, str]] = []
    with terminal.progress_bar("classifying") as show:
        for number, video in enumerate(videos):

            def tell(_done: int, _total: int, remark: str = "", number: int = number) -> None:
                show(number, len(videos), remark)

            try:
                found += iter_classify(
                    loaded, processor, video, modality=modality, top_k=top, hop=hop, moments=moments,
                    missing=missing, damaged=damaged, progress=tell,
                )  # fmt: skip
            except ValueError as error:
                text = error.spelled(on_command_line) if isinstance(error, CavMaeSyncError) else str(error)
                failed.append({"clip": video, "error": text})
        show(len(videos), len(videos))
    if as_json:
        results = [result.to_dict() for result in found]
        print(json.dumps({"model": model, "clips": results, "failed": failed}, indent=2, ensure_ascii=False))
    else:
        for result in found:
            _show(result, moments)
    for entry in failed:
        terminal.errors.print(f"[bold red]Error:[/bold red] {escape(entry['error'])}", highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _show(result: Any, moments: bool) -> None:
    """A clip's labels with bars, and when they are to be heard or seen."""
    from rich.table import Table

    count = f"{result.num_moments} moment{'s' if result.num_moments != 1 else ''}"
    terminal.console.print(f"[bold]{escape(result.clip)}[/bold]  {count}", highlight=False, soft_wrap=True)
    table = Table.grid(padding=(0, 1))
    for entry in result.labels:
        filled = round(max(0.0, min(1.0, entry["score"])) * _BAR_WIDTH)
        bar = f"[cyan]{'█' * filled}[/cyan][dim]{'·' * (_BAR_WIDTH - filled)}[/dim]"
        table.add_row("", f"{entry['score']:.3f}", bar, escape(str(entry["label"])))
    terminal.console.print(table, highlight=False)
    if moments:
        from ..inference.moments import format_clock

        for start, end, label, score in _runs(result):
            terminal.say(f"   {format_clock(start)} - {format_clock(end)}  {label} ({score:.3f})")


def _runs(result: Any) -> list[tuple[float, float, str, float]]:
    """Stretches of moments with the same first label: start, end, label and mean score."""
    runs: list[tuple[float, float, str, float]] = []
    scores: list[float] = []
    for (start, end), labels in zip(result.spans.tolist(), result.moment_labels, strict=True):
        label, score = str(labels[0]["label"]), labels[0]["score"]
        if runs and runs[-1][2] == label and start <= runs[-1][1] + (end - start):
            scores.append(score)
            runs[-1] = (runs[-1][0], end, label, sum(scores) / len(scores))
        else:
            scores = [score]
            runs.append((start, end, label, score))
    return runs
