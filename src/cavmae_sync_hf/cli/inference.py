# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Subcommands that say what a model finds in videos: synchrony, labels and features."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from ..model.errors_cavmae_sync import InferenceError, printable
from . import terminal
from .batch import TABLE_SUFFIXES, ResultFiles, ResultsOut, each, find_files, is_table, pair_audio, write_table
from .kinds import FileIn, FileOut, FolderOut, MediaIn, Needs, SourceIn
from .options import (
    AsJson,
    AudioTrack,
    Backend,
    Channel,
    Damaged,
    Device,
    End,
    Media,
    Missing,
    Model,
    Overwrite,
    Precision,
    Split,
    Start,
    time_option,
)

if TYPE_CHECKING:
    from ..data.failures import Failure
    from ..inference.classify import ClipLabels
    from ..inference.sync import SyncResult

_BAR_WIDTH = 24
_SYNC_FILES = {"timeline": "sync.png", "values": "sync.json", "arrays": "sync.npz"}


def sync(
    videos: Annotated[
        list[str] | None,
        typer.Argument(metavar="VIDEO...", help="Video files, folders, patterns or addresses."),
        MediaIn(folders=True),
    ] = None,
    *,
    model: Model,
    audio: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Another audio track; one for each video, in their order."),
        MediaIn(),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="LIST", help="Instead of videos a list with columns path, label and, if need be, audio."),
        FileIn(),
        Needs("evaluation", "Scoring against labels", packages=("scikit-learn",)),
    ] = None,
    in_sync: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Label of videos in sync; default: 1, true, sync, real.")
    ] = None,
    start: Start = None,
    end: End = None,
    hop: Annotated[float, time_option("From one moment to the next, and from one offset tried to the next.")] = 0.1,
    max_offset: Annotated[float, time_option("Largest offset tried both ways.")] = 2.0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER|FILE",
            help="Folder for a timeline image, JSON and arrays of each video; or a .csv or .json file for a table.",
        ),
        ResultsOut("The timeline"),
    ] = None,
    overwrite: Overwrite = False,
    damaged: Damaged = "error",
    channel: Channel = None,
    audio_track: AudioTrack = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Moments embedded at a time.")] = 32,
    device: Device = "auto",
    backend: Backend = "torch",
    precision: Precision = "float32",
    as_json: AsJson = False,
) -> None:
    """Measure how well audio and video fit in time: scores per moment, and by how much the audio is late.

    Several videos are also scored as a set. With --labels, AUC and equal-error rate tell how well the scores separate
    videos in sync from others. Files that cannot be used are named, the others are measured; the exit code is then 1.

    Examples:
        cavmae-sync sync video.mp4 --model example
        cavmae-sync sync video.mp4 --audio dub.wav --model my-model --out found
        cavmae-sync sync videos/ --model my-model --out offsets.csv
        cavmae-sync sync videos/ -m example --backend onnx --precision int8
    """
    if bool(videos) == (labels is not None):
        raise typer.BadParameter("Name videos, or a list of them with --labels; one of the two.")
    if audio and labels is not None:
        raise typer.BadParameter("--audio goes with videos; a list has a column audio.")
    if in_sync and labels is None:
        raise typer.BadParameter("--in-sync goes with --labels.")
    pairs, truths, lost = _pairs(videos or [], audio, labels, in_sync)
    names = [video for video, _ in pairs]
    files = None
    if out is not None and not is_table(out):
        files = ResultFiles(out, names, _SYNC_FILES, overwrite)
        terminal.kept = f"Files of finished videos in {out} are kept; run the command again for the others."
    device = terminal.choose_device(device, backend)
    from ..inference.sync import measure_sync
    from ..provenance import model_fingerprint

    loaded, processor = terminal.load(model, device=device, backend=backend, precision=precision, modalities="both")
    processor = processor.with_audio_choice(channel, audio_track)
    options: dict[str, Any] = {
        "start": start, "end": end, "hop": hop, "max_offset": max_offset, "batch_size": batch_size,
        "damaged": damaged, "fingerprint": model_fingerprint(loaded, processor),
    }  # fmt: skip

    def measure(number: int, progress: Callable[..., None]) -> Any:
        replacing = files is not None and files.begin(number)
        result = measure_sync(loaded, processor, *pairs[number], **options, progress=progress)
        if files is not None:
            _write_sync(result, files.paths[number], replacing)
        return result

    done, failed = each(names, measure, "measuring")
    failed = lost + failed
    summary = _summary(done, truths)
    written = {
        number: [] if files is None else [str(path) for path in files.paths[number].values()] for number in done
    }
    failures = [failure.to_dict("video") for failure in failed]
    entries = [result.to_dict() | {"files": written[number]} for number, result in done.items()]
    run = {"device": device, "backend": backend, "precision": precision}
    values = {"model": model, **run, "videos": entries, "failed": failures, **summary}
    if as_json:
        terminal.print_json(values)
    else:
        _show_sync(list(done.values()), summary)
        for path in (path for paths in written.values() for path in paths):
            terminal.say(f"wrote {path}")
    if out is not None and files is None:
        rows = [_sync_row(result) for result in done.values()] + failures
        write_table(out, rows, values, overwrite=overwrite, as_json=as_json)
    terminal.end(failed, len(done), noun="video")


def classify(
    videos: Annotated[
        list[str],
        typer.Argument(metavar="VIDEO...", help="Video or audio files, folders of them, patterns or addresses."),
        MediaIn(folders=True),
    ],
    model: Model,
    labels: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help='Labels in words, such as "a dog,rain"; needs a model with text.'),
    ] = None,
    template: Annotated[
        str, typer.Option(metavar="WORDS", help='With --labels: the text of a label, such as "the sound of {}".')
    ] = "{}",
    top: Annotated[int, typer.Option(min=1, help="How many labels to show.")] = 5,
    modality: Annotated[
        Literal["both", "audio", "video"] | None,
        typer.Option(help="Use audio and video or one of them; default: all that the model has."),
    ] = None,
    moments: Annotated[bool, typer.Option("--moments", help="Also say when: the labels along each file.")] = False,
    hop: Annotated[
        float | None,
        time_option("From one moment to the next; default: as in training up to 12 s, 0.625 s in longer files."),
    ] = None,
    missing: Missing = "error",
    damaged: Damaged = "error",
    channel: Channel = None,
    audio_track: AudioTrack = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the labels to a .csv or .json file."),
        FileOut(TABLE_SUFFIXES),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Label videos: labels and scores of a fine-tuned model, or of a model with text, over all moments of each file.

    Files that cannot be used are named, the others are classified; the exit code is then 1.

    Examples:
        cavmae-sync classify video.mp4 --model my-classifier --moments
        cavmae-sync classify video.mp4 --model my-text-model --labels "dog,rain"
    """
    device = terminal.choose_device(device)
    from ..inference.classify import iter_classify
    from ..inference.texts import tokenize
    from ..loading import load_model
    from ..model.pipeline_inputs_cavmae_sync import check_modality
    from ..model.pipelines_text_cavmae_sync import check_labels, check_template

    loaded: Any
    if labels is None:
        loaded, processor = load_model(model, use="classification", device=device)
    else:
        loaded, processor = load_model(model, use="text", device=device)
        # What is wrong with the words is told once, not of every file.
        tokenize(loaded, processor, [check_template(template).format(label) for label in check_labels(labels)])
    audio_files = check_modality(modality, loaded.base_model.config) == "audio" or missing == "mask"
    files, lost = find_files(videos, audio_files)

    def label(number: int, progress: Callable[..., None]) -> Any:
        (result,) = iter_classify(
            loaded, processor, files[number], labels=labels, template=template, modality=modality, top_k=top, hop=hop,
            moments=moments, missing=missing, damaged=damaged, channel=channel, audio_track=audio_track,
            progress=progress,
        )  # fmt: skip
        return result

    done, failed = each(files, label, "classifying")
    failed = lost + failed
    found: list[ClipLabels] = list(done.values())
    failures = [failure.to_dict("clip") for failure in failed]
    values = {"model": model, "device": device, "clips": [result.to_dict() for result in found], "failed": failures}
    if as_json:
        terminal.print_json(values)
    else:
        for result in found:
            _show_labels(result, moments)
    if out is not None:
        rows = [row for result in found for row in _label_rows(result)] + failures
        write_table(out, rows, values, overwrite=overwrite, as_json=as_json)
    terminal.end(failed, len(found), noun="clip")


def extract(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Video file, folder, pattern, list, or data set OWNER/NAME of the Hub."),
        SourceIn(),
    ],
    # Text: a Path would make the folder "s3:" of an address, which is to be refused.
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder: new, or begun by the same command."), FolderOut()],
    # What is left of `--modalities a v av` and `--layers 3 6` after their first values.
    more: Annotated[list[str] | None, typer.Argument(metavar="MORE", hidden=True)] = None,
    *,
    model: Model,
    window: Annotated[float, time_option("Length of a window.")] = 5.0,
    stride: Annotated[float, time_option("From the start of a window to that of the next.")] = 1.0,
    hop: Annotated[
        float | None,
        time_option("From one moment to the next; divides the stride. Default: 0.625 s or less."),
    ] = None,
    modalities: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[a v av ...]",
            help="Audio, video, both fused (av), means of patches (a_patches, v_patches). Default: a v av.",
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="[N ...]", help="Also the mean patches after these layers; 0: embedded patches."),
    ] = None,
    control: Annotated[
        Literal["scramble"] | None, typer.Option(help="Give frames the audio of other pieces of the videos.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds the control.")] = 0,
    audio_context: Annotated[
        Literal["around", "inside"],
        typer.Option(help="Whether moments that hear beyond the window's ends count, or only those that do not."),
    ] = "around",
    sound: Annotated[Literal["around", "inside"] | None, typer.Option(hidden=True)] = None,
    partial: Annotated[
        Literal["drop", "keep"], typer.Option(help="Windows that reach beyond the video's end.")
    ] = "drop",
    missing: Missing = "error",
    damaged: Damaged = "error",
    channel: Channel = None,
    audio_track: AudioTrack = None,
    format: Annotated[  # noqa: A002 - the word users look for
        Literal["npy", "parquet"],
        typer.Option(help="Arrays and a timing table, or Parquet files."),
        Needs("parquet", "Parquet", value="parquet"),
    ] = "npy",
    media: Media = None,
    split: Split = None,
    batch_frames: Annotated[int, typer.Option(min=1, help="Moments decoded and encoded at a time.")] = 16,
    device: Device = "auto",
    backend: Backend = "torch",
    precision: Precision = "float32",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="As --precision, and float16; features are float32 in any case."),
    ] = "float32",
    as_json: AsJson = False,
) -> None:
    """Write features of every window of videos of any length, with a table of their times.

    The feature of a window is the mean over the moments inside it, half a second or so apart; the model hears a few
    seconds around each. Videos are read once, in constant memory. A run that is killed goes on when it is started
    again. Videos that cannot be used are listed and left out; the exit code is then 1.

    Examples:
        cavmae-sync extract videos/ features --model my-model --window 5 --stride 1
        cavmae-sync extract videos/ features -m my-model --backend onnx
    """
    device = terminal.choose_device(device, backend)
    if sound is not None:
        terminal.errors.print(f"Note: --sound is now called --audio-context; taken as --audio-context {sound}.")
        audio_context = sound
    names, numbers = _sort_words(modalities or [], layers or [], more or [])
    import torch

    from ..inference.extract import extract_to_folder
    from ..provenance import backend_of

    kind = None if dtype == "float32" else getattr(torch, dtype)
    loaded, processor = terminal.load(model, device=device, backend=backend, precision=precision, dtype=kind)
    terminal.kept = f"Finished videos in {out} are kept; run the same command again to go on."
    with terminal.progress_bar("extracting") as show:
        summary = extract_to_folder(
            loaded, processor, source, out, format=format, window=window, stride=stride, hop=hop,
            modalities=names or None, layers=numbers, control=control, seed=seed, audio_context=audio_context,
            partial=partial, missing=missing, damaged=damaged, channel=channel, audio_track=audio_track,
            batch_frames=batch_frames, media=media, split=split, progress=show,
        )  # fmt: skip
    if as_json:
        terminal.print_json(summary.to_dict() | {"device": device} | backend_of(loaded))
    else:
        terminal.say(str(summary))
    done = summary.videos - len(summary.errors)
    terminal.end(terminal.failures(summary.errors), done, noun="video", report=summary.folder / "manifest.json")


def _pairs(
    videos: list[str], audio: list[str] | None, labels: Path | None, in_sync: list[str] | None
) -> tuple[list[tuple[str, str | None]], list[bool] | None, "list[Failure]"]:
    """Videos with their audio tracks, whether each is in sync where that is known, and what nothing is found for."""
    if labels is not None:
        from ..data.sync_list import read_sync_list

        listed = read_sync_list(labels, in_sync or ())
        return [(item.video, item.audio) for item in listed], [item.in_sync for item in listed], []
    found, lost = find_files(videos)
    return pair_audio(found, audio), None, lost


def _write_sync(result: "SyncResult", paths: dict[str, Path], overwrite: bool) -> None:
    """Write timeline, values and arrays of one video."""
    from ..files import write_json
    from ..inference.plots import draw_timeline

    draw_timeline(result, paths["timeline"], overwrite=overwrite)
    write_json(paths["values"], result.to_dict(), overwrite=overwrite)
    result.save_arrays(paths["arrays"], overwrite=overwrite)


def _summary(results: "dict[int, SyncResult]", truths: list[bool] | None) -> dict[str, Any]:
    """Scores of a set of videos."""
    from ..inference.sync import detection_metrics, join_scores

    measured = list(results.values())
    summary: dict[str, Any] = {}
    if len(measured) > 1:
        joined = join_scores(measured).to_dict()
        summary["alignment"] = {key: value for key, value in joined.items() if key != "videos"}
    if truths is not None:
        try:
            summary["detection"] = detection_metrics(measured, [truths[number] for number in results])
        except InferenceError as error:
            summary["detection"] = None
            terminal.errors.print(
                f"[yellow]{escape(terminal.error_text(error))}[/yellow]", highlight=False, soft_wrap=True
            )
    return summary


def _show_sync(results: "list[SyncResult]", summary: dict[str, Any]) -> None:
    from rich.table import Column, Table

    if results:
        table = Table(
            Column("verdict", no_wrap=True),
            Column("video", overflow="fold"),
            *(Column(name, no_wrap=True, justify="right") for name in ("confidence", "similarity", "lead")),
        )
        for result in results:
            table.add_row(
                str(result.verdict),
                escape(_name(result)),
                f"{result.confidence:.0%}" if result.verdict.fits else "-",
                f"{result.similarity:.3f}",
                "-" if result.lead is None else f"{result.lead:+z.2f}",
            )
        terminal.console.print(table)
        terminal.say(
            "Confidence: share of draws of the video's pieces with that offset. All values: --json, or --out."
        )
    for result in results:
        for remark in (result.verdict.reason, *result.remarks):
            terminal.say(f"- {_name(result)}: {remark}")
    alignment = summary.get("alignment")
    if alignment:
        error = alignment["standard_error"]
        terminal.say(
            f"Alignment score of {len(results)} videos: {alignment['score']:.4f} (standard error {error:.4f})"
        )
    for name, values in (summary.get("detection") or {}).items():
        terminal.say(f"{name:10s} AUC {values['auc']:.4f}, equal-error rate {values['equal_error_rate']:.2%}")
    if results:
        terminal.say(f"Protocol: {results[0].protocol}")


def _sync_row(result: "SyncResult") -> dict[str, Any]:
    """A video as a row of a table: its verdict and all values that are one number or word."""
    row: dict[str, Any] = {"video": result.source, "audio": result.audio_source, "verdict": str(result.verdict)}
    row["reason"] = result.verdict.reason
    plain = (str, int, float, type(None))
    values = result.to_dict(series=False)
    row |= {name: value for name, value in values.items() if isinstance(value, plain) and not name.endswith("source")}
    return row | {"remarks": " ".join(result.remarks), "error": None}


def _name(result: "SyncResult") -> str:
    """Names of a video and of its audio track, without their folders."""
    sources = [result.source] if result.audio_source is None else [result.source, result.audio_source]
    return " + ".join(printable(source.rstrip("/").rpartition("/")[2] or source) for source in sources)


def _show_labels(result: "ClipLabels", moments: bool) -> None:
    """A clip's labels with bars, and when they apply."""
    from rich.table import Table

    from ..data.clock import format_clock

    count = f"{result.num_moments} moment{'s' if result.num_moments != 1 else ''}"
    terminal.console.print(f"[bold]{escape(printable(result.clip))}[/bold]  {count}", highlight=False, soft_wrap=True)
    table = Table.grid(padding=(0, 1))
    full, empty = "█·" if terminal.console.encoding.startswith("utf") else "#."
    for entry in result.labels:
        filled = round(max(0.0, min(1.0, entry["score"])) * _BAR_WIDTH)
        bar = f"[cyan]{full * filled}[/cyan][dim]{empty * (_BAR_WIDTH - filled)}[/dim]"
        table.add_row("", f"{entry['score']:.3f}", bar, escape(str(entry["label"])))
    terminal.console.print(table, highlight=False)
    if moments:
        for start, end, label, score in _runs(result):
            terminal.say(f"   {format_clock(start)} - {format_clock(end)}  {label} ({score:.3f})")


def _label_rows(result: "ClipLabels") -> list[dict[str, Any]]:
    """Labels and scores of a clip as rows of a table, and then those of its moments, where they were asked for."""
    values = result.to_dict()
    whole = [{"clip": result.clip, "start": None, "end": None, **entry, "error": None} for entry in values["labels"]]
    return whole + [
        {"clip": result.clip, "start": moment["start"], "end": moment["end"], **entry, "error": None}
        for moment in values.get("moments", ())
        for entry in moment["labels"]
    ]


def _runs(result: "ClipLabels") -> list[tuple[float, float, str, float]]:
    """Runs of moments with the same first label: start, end, label and mean score."""
    assert result.spans is not None and result.moment_labels is not None  # asked for by `--moments`
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
