# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Subcommands that evaluate a model on a data set under a protocol."""

import inspect
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from . import terminal
from .commands import add, group
from .kinds import FileIn, FileOut, FolderIn, Needs, SourceIn
from .options import (
    AsJson,
    AudioTrack,
    Backend,
    Channel,
    Device,
    Media,
    ModelArgument,
    Overwrite,
    Precision,
    Split,
    settings,
    time_option,
)

app = group("evaluate", "Score a model on shards, videos or SyncWorld, under a protocol that the result names.")

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="Folder of shards or videos, SyncWorld split, or list."), SourceIn()
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Write the results to this JSON file."),
    FileOut((".json", ""), what="results file", marker='"cavmae-sync-results"'),
]
Ids = Annotated[
    str | None, typer.Option(metavar="FILE", help="The protocol's list of clips: ids, CSV or JSON."), FileIn()
]
Labels = Annotated[str | None, typer.Option(metavar="FILE", help="Label names of the data, in order."), FileIn()]
Limit = Annotated[int | None, typer.Option(min=1, help="Take so many clips at most, for a try.")]
Strict = Annotated[bool, typer.Option("--strict", help="Give no metrics where a clip is missing or unusable.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Clips per batch.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that load clips; 0 loads in this one.")]
NoiseLevel = Annotated[
    float | None, typer.Option(help="Add noise to every clip, this many dB below the clip; may be negative.")
]
NoiseSource = Annotated[
    str, typer.Option(help="white, babble (four other clips of the data), or a folder of recordings.")
]

# Metrics of several views of one set of annotations are shown as a table of views by these.
_VIEW_METRICS = ("hit_rate", "accuracy", "f1", "f1_macro", "jaccard", "precision", "recall")


Protocol = Annotated[str, typer.Option(help="Rules to follow; see `evaluate protocols`.")]


def _of_any_set(
    media: Media = None, labels: Labels = None, split: Split = None, noise_snr_db: NoiseLevel = None,
    noise_source: NoiseSource = "white",
) -> None:  # fmt: skip
    """Options of evaluations on any data set."""


def _of_all(
    ids: Ids = None, limit: Limit = None, strict: Strict = False, channel: Channel = None,
    audio_track: AudioTrack = None, device: Device = "auto", backend: Backend = "torch",
    precision: Precision = "float32", batch_size: BatchSize = 8, num_workers: Workers = 0,
    out: Out = None, overwrite: Overwrite = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Options of all evaluations."""


def _with_options(*shared: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the parameters of other functions to a subcommand's own, for typer to see; they arrive in the context."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function)
        added = [parameter for other in shared for parameter in inspect.signature(other).parameters.values()]
        kept = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        function.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        function.__annotations__.update({parameter.name: parameter.annotation for parameter in added})
        return function

    return add


@_with_options(_of_any_set, _of_all)
def retrieval(
    context: typer.Context,
    model: ModelArgument,
    data: Data,
    protocol: Protocol = "clips",
    strategy: Annotated[
        str | None, typer.Option(help="diagonal_mean, diagonal_max, mean or max, instead of the protocol's.")
    ] = None,
    **_: Any,
) -> None:
    """Retrieval: audio finds its video, and video its audio.

    Examples:
        cavmae-sync evaluate retrieval my-model shards/ --out results.json
        cavmae-sync evaluate retrieval my-model shards/ --backend onnx
    """
    from ..evaluation import evaluate_retrieval

    _evaluate(context, evaluate_retrieval, modalities="both")


@_with_options(_of_any_set, _of_all)
def classification(
    context: typer.Context,
    model: ModelArgument,
    data: Data,
    protocol: Protocol = "clips",
    inputs: Annotated[
        str | None, typer.Option(metavar="av,a,v", help="What the model is given, in turn, instead of the protocol's.")
    ] = None,
    annotations: Annotated[
        str | None, typer.Option(metavar="FILE", help="VGGSounder's table of labels."), FileIn()
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Names of the model's classes, where its configuration has none."),
        FileIn(),
    ] = None,
    **_: Any,
) -> None:
    """Classification: a fine-tuned model labels clips.

    Examples:
        cavmae-sync evaluate classification my-classifier shards/ --inputs av,a,v
    """
    from ..evaluation import evaluate_classification

    context.params["inputs"] = None if inputs is None else [name.strip() for name in inputs.split(",") if name.strip()]
    _evaluate(context, evaluate_classification, use="classification")


@_with_options(_of_all)
def localization(
    context: typer.Context,
    model: ModelArgument,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="SyncWorld split, shards of one, or a table of masks."), SourceIn()
    ],
    protocol: Protocol = "syncworld",
    maps: Annotated[
        str | None,
        typer.Option(help="relevance, local, occlusion (slow), dense or cosine (rough), instead of the protocol's."),
    ] = None,
    truth: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="SyncWorld split of shards that lie elsewhere."), FolderIn()
    ] = None,
    **_: Any,
) -> None:
    """Localization: maxima of the maps against boxes or masks of what sounds.

    Examples:
        cavmae-sync evaluate localization example world/test
    """
    from ..evaluation import evaluate_localization

    _evaluate(context, evaluate_localization, modalities="both")


@_with_options(_of_any_set, _of_all)
def sync(
    context: typer.Context,
    model: ModelArgument,
    data: Data,
    protocol: Protocol = "shifted",
    min_shift: Annotated[
        float | None, time_option("Smallest shift; default: a fifth of the clips, 2 s at most.")
    ] = None,
    max_offset: Annotated[
        float | None, time_option("Largest offset tried; default: 0.6 s (protocol offsets).")
    ] = None,
    seconds: Annotated[float | None, time_option("Use so much of the middle of each clip (protocol offsets).")] = None,
    moments: Annotated[str | None, typer.Option(help="Which moments count: all, loud or captions.")] = None,
    num_frames: Annotated[
        int | None, typer.Option(min=1, help="Moments per clip; default: the model's. Offsets need many.")
    ] = None,
    positive: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Label of clips in sync (protocol labelled).")
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="mean, minimum, p10, median or z_score (protocol labelled).")
    ] = None,
    **_: Any,
) -> None:
    """Synchrony: true alignment against shifted audio, or clips in sync against others.

    Beside the accuracy stands that of another clip's audio at the same moments: only what exceeds it comes from
    the clip itself.

    Examples:
        cavmae-sync evaluate sync my-model shards/
        cavmae-sync evaluate sync my-model shards/ --moments loud
        cavmae-sync evaluate sync my-model talks/ --protocol offsets --num-frames 75
    """
    from ..evaluation import evaluate_sync

    _evaluate(context, evaluate_sync, modalities="both")


def protocols(as_json: AsJson = False) -> None:
    """List the protocols, with their versions."""
    from ..evaluation import PROTOCOLS

    if as_json:
        terminal.print_json({task: [rules.to_dict() for rules in of.values()] for task, of in PROTOCOLS.items()})
        return
    from rich.table import Table

    table = Table("task", "protocol", "version", "what", show_lines=False)
    for task, known in PROTOCOLS.items():
        for rules in known.values():
            table.add_row(task, rules.name, rules.version, escape(rules.summary))
    terminal.console.print(table)


def _evaluate(context: typer.Context, evaluate: Callable[..., dict[str, Any]], **wanted: Any) -> None:
    """Load, run, write and show."""
    model, data, device, out = (context.params[name] for name in ("model", "data", "device", "out"))
    overwrite = context.params["overwrite"]
    backend, precision = (context.params[name] for name in ("backend", "precision"))
    device = terminal.choose_device(device, backend)
    from ..data.failures import Failure
    from ..evaluation.results import write_results

    loaded, processor = terminal.load(model, device=device, backend=backend, precision=precision, **wanted)
    options = settings(context, "model", "data", "device", "backend", "precision", "out", "overwrite", "as_json")
    command = shlex.join(["cavmae-sync", *sys.argv[1:]])
    terminal.kept = "No results were written; run the command again."
    with terminal.progress_bar("evaluating") as show:
        record = evaluate(loaded, processor, data, **options, progress=show, command=command)
    # First, so that hours of work can be read where the file cannot be written.
    if context.params["as_json"]:
        terminal.print_json(record)
    else:
        _print_record(record)
    if out is not None:
        write_results(out, record, overwrite=overwrite)
        if not context.params["as_json"]:
            terminal.say(f"written to {out}")
    counts = record["counts"]
    left_out = [
        Failure(row["id"], row["reason"], row.get("unexpected", False), row.get("place", ""))
        for row in counts["unusable"]
    ]
    terminal.end(left_out, counts["clips_seen"], total=counts["clips_unusable"], noun="clip", report=out or "")


def _print_record(record: dict[str, Any]) -> None:
    from rich.table import Table

    rules, counts = record["protocol"], record["counts"]
    title = f"{record['task']}: {rules['name']} (version {rules['version']})"
    metrics = dict(record["metrics"])
    views = list(
        dict.fromkeys(key.partition("_clips")[0] for key in metrics if key.endswith("_clips") and "@" not in key)
    )
    if record["protocol"].get("scoring") == "vggsounder":
        table = Table("labels", "clips", *(f"{metric}@1" for metric in _VIEW_METRICS), title=escape(title))
        for view in views:
            row = [_number(metrics.get(f"{view}_{metric}@1")) for metric in _VIEW_METRICS]
            table.add_row(view, str(metrics[f"{view}_clips"]), *row)
        terminal.console.print(table)
        metrics = {key: value for key, value in metrics.items() if key.startswith(("mu_", "labels_"))}
        title = "over all labels"
    table = Table("metric", "value", title=escape(title))
    table.columns[1].justify = "right"
    for key, value in metrics.items():
        table.add_row(key, _number(value))
    terminal.console.print(table)
    text = f"{counts['clips_seen']} of {counts['clips_expected']} clips seen"
    absent = {what: counts[f"clips_{what}"] for what in ("missing", "unusable")}
    if any(absent.values()):
        text += f": {absent['missing']} missing, {absent['unusable']} unusable"
    published = counts.get("published_list")
    if published is not None and published != counts["clips_expected"]:
        text += f" (the published list has {published})"
    style = "green" if record["complete"] else "yellow"
    terminal.console.print(escape(text), style=style, highlight=False, soft_wrap=True)
    terminal.say(f"checkpoint {record['checkpoint']['sha256'][:12]}, data {record['data']['fingerprint'][:12]}")


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


_METRICS = Needs("evaluation", "This evaluation", packages=("scikit-learn",))
add(app, retrieval)
add(app, classification, _METRICS)
add(app, localization, _METRICS)
add(app, sync, _METRICS)
add(app, protocols)
