# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Subcommands that say what a model finds in videos: synchrony, sources, labels and features."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from ..model.errors_cavmae_sync import DiskError, InferenceError, printable
from . import terminal
from .kinds import FileIn, FolderOut, MediaIn, Needs, SourceIn
from .options import (
    AsJson,
    AudioTrack,
    Channel,
    Damaged,
    Device,
    End,
    Media,
    Missing,
    Model,
    Overwrite,
    Split,
    Start,
    time_option,
)

if TYPE_CHECKING:
    from ..data.failures import Failure
    from ..inference.classify import ClipLabels
    from ..inference.localize import LocalizationResult
    from ..inference.sync import SyncResult

_BAR_WIDTH = 24


def sync(
    videos: Annotated[
        list[str] | None, typer.Argument(metavar="VIDEO...", help="Video files or addresses."), MediaIn()
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
        typer.Option(metavar="FOLDER", help="Write a timeline image, JSON and arrays per video."),
        FolderOut(),
        Needs("plots", "The timeline"),
    ] = None,
    overwrite: Overwrite = False,
    damaged: Damaged = "error",
    channel: Channel = None,
    audio_track: AudioTrack = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Moments embedded at a time.")] = 32,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure how well audio and video fit in time: scores per moment, and by how much the audio is late.

    Several videos are also scored as a set. With --labels, AUC and equal-error rate tell how well the scores separate
    videos in sync from others. Files that cannot be used are named, the others are measured; the exit code is then 1.

    Examples:
        cavmae-sync sync video.mp4 --model example
        cavmae-sync sync video.mp4 --audio dub.wav --model my-model --out found
    """
    if bool(videos) == (labels is not None):
        raise typer.BadParameter("Name videos, or a list of them with --labels; one of the two.")
    if audio and (labels is not None or len(audio) != len(videos or [])):
        raise typer.BadParameter(
            f"--audio was given {len(audio)} times for {len(videos or [])} videos; once for each."
        )
    if in_sync and labels is None:
        raise typer.BadParameter("--in-sync goes with --labels.")
    device = terminal.choose_device(device)
    from ..inference.loading import load_model
    from ..inference.sync import measure_sync
    from ..provenance import model_fingerprint

    pairs, truths = _pairs(videos, audio, labels, in_sync)
    if out is not None:
        terminal.kept = f"Files of finished videos in {out} are kept; run the command again for the others."
    write = None if out is None else _SyncWriter(out, [video for video, _ in pairs], overwrite)
    loaded, processor = load_model(model, device=device, modalities="both")
    processor = processor.with_audio_choice(channel, audio_track)
    options: dict[str, Any] = {
        "start": start, "end": end, "hop": hop, "max_offset": max_offset, "batch_size": batch_size,
        "damaged": damaged, "fingerprint": model_fingerprint(loaded, processor),
    }  # fmt: skip

    def measure(number: int, progress: Callable[..., None]) -> Any:
        if write is not None:
            write.check(number)
        return measure_sync(loaded, processor, *pairs[number], **options, progress=progress)

    done, failed = _each([video for video, _ in pairs], measure, "measuring", write)
    summary = _summary({number: result for number, (result, _) in done.items()}, truths)
    if as_json:
        entries = [result.to_dict() | {"files": files} for result, files in done.values()]
        failures = [failure.to_dict("video") for failure in failed]
        terminal.print_json({"model": model, "videos": entries, "failed": failures, **summary})
    else:
        _show_sync([result for result, _ in done.values()], summary)
        for _, files in done.values():
            for file in files:
                terminal.say(f"wrote {file}")
    terminal.end(failed, len(done), noun="video")


def localize(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="Video file or address."), MediaIn()],
    *,
    model: Model,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Folder for images, video, JSON and maps."),
        FolderOut(),
        Needs("plots", "Drawing"),
    ],
    overwrite: Overwrite = False,
    audio: Annotated[
        str | None, typer.Option(metavar="FILE", help="Another audio track for the video."), MediaIn()
    ] = None,
    start: Start = None,
    end: End = None,
    fps: Annotated[float, typer.Option(help="Moments per second for which maps are made.")] = 5.0,
    method: Annotated[
        Literal["occlusion", "cosine"],
        typer.Option(help="Leave out patch after patch, or compare the patches themselves: fast, but points badly."),
    ] = "occlusion",
    draw_video: Annotated[
        bool, typer.Option("--video/--no-video", help="Also write the video with the maps drawn in.")
    ] = True,
    frames: Annotated[int, typer.Option(min=1, help="Frames on the contact strip.")] = 12,
    damaged: Damaged = "error",
    channel: Channel = None,
    audio_track: AudioTrack = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Moments decoded at a time.")] = 16,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Find where in the frame the source of the audio is, and which part of the spectrogram belongs to the frame.

    Examples:
        cavmae-sync localize video.mp4 --model example --out places
    """
    device = terminal.choose_device(device)
    from ..files import check_free
    from ..inference.loading import load_model
    from ..inference.localize import localize as run_localize

    paths = _localization_paths(video, out, draw_video)
    check_free(*paths.values(), overwrite=overwrite)  # before the work, not after it
    loaded, processor = load_model(model, device=device, modalities="both")
    terminal.kept = f"Files that lie in {out} are whole; run the command again to have all of them."
    with terminal.progress_bar("localizing") as show:
        found = run_localize(
            loaded, processor, video, audio, start=start, end=end, fps=fps, method=method, damaged=damaged,
            channel=channel, audio_track=audio_track, batch_size=batch_size, progress=_seconds(show),
        )  # fmt: skip
    files = _write_localization(found, video, audio, paths, frames=frames, overwrite=overwrite)
    if as_json:
        terminal.print_json({"model": model, **found.to_dict(), "files": files})
        return
    _show_localization(found)
    for file in files.values():
        terminal.say(f"wrote {file}")


def classify(
    videos: Annotated[
        list[str], typer.Argument(metavar="VIDEO...", help="Video or audio files, or addresses."), MediaIn()
    ],
    model: Model,
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
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Label videos: labels and scores of a fine-tuned model, over all moments of each file.

    Files that cannot be used are named, the others are classified; the exit code is then 1.

    Examples:
        cavmae-sync classify video.mp4 --model my-classifier --moments
    """
    device = terminal.choose_device(device)
    from ..inference.classify import iter_classify
    from ..inference.loading import load_model
    from ..model.pipeline_inputs_cavmae_sync import check_modality

    loaded, processor = load_model(model, use="classification", device=device)
    check_modality(modality, loaded.config)

    def label(number: int, progress: Callable[..., None]) -> Any:
        (result,) = iter_classify(
            loaded, processor, videos[number], modality=modality, top_k=top, hop=hop, moments=moments,
            missing=missing, damaged=damaged, channel=channel, audio_track=audio_track, progress=progress,
        )  # fmt: skip
        return result

    done, failed = _each(videos, label, "classifying")
    found: list[ClipLabels] = [result for result, _ in done.values()]
    if as_json:
        failures = [failure.to_dict("clip") for failure in failed]
        terminal.print_json({"model": model, "clips": [result.to_dict() for result in found], "failed": failures})
    else:
        for result in found:
            _show_labels(result, moments)
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
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the model's weights; features are float32.")
    ] = "float32",
    as_json: AsJson = False,
) -> None:
    """Write features of every window of videos of any length, with a table of their times.

    The feature of a window is the mean over the moments inside it, half a second or so apart; the model hears a few
    seconds around each. Videos are read once, in constant memory. A run that is killed goes on when it is started
    again. Videos that cannot be used are listed and left out; the exit code is then 1.

    Examples:
        cavmae-sync extract videos/ features --model my-model --window 5 --stride 1
    """
    device = terminal.choose_device(device)
    if sound is not None:
        terminal.errors.print(f"Note: --sound is now called --audio-context; taken as --audio-context {sound}.")
        audio_context = sound
    names, numbers = _sort_words(modalities or [], layers or [], more or [])
    import torch

    from ..inference.extract import extract_to_folder
    from ..inference.loading import load_model

    loaded, processor = load_model(model, device=device, dtype=getattr(torch, dtype))
    terminal.kept = f"Finished videos in {out} are kept; run the same command again to go on."
    with terminal.progress_bar("extracting") as show:
        summary = extract_to_folder(
            loaded, processor, source, out, format=format, window=window, stride=stride, hop=hop,
            modalities=names or None, layers=numbers, control=control, seed=seed, audio_context=audio_context,
            partial=partial, missing=missing, damaged=damaged, channel=channel, audio_track=audio_track,
            batch_frames=batch_frames, media=media, split=split, progress=show,
        )  # fmt: skip
    if as_json:
        terminal.print_json(summary.to_dict())
    else:
        terminal.say(str(summary))
    done = summary.videos - len(summary.errors)
    terminal.end(terminal.failures(summary.errors), done, noun="video", report=summary.folder / "manifest.json")


def _pairs(
    videos: list[str] | None, audio: list[str] | None, labels: Path | None, in_sync: list[str] | None
) -> tuple[list[tuple[str, str | None]], list[bool] | None]:
    """Videos with their audio tracks, and whether each is in sync where that is known."""
    if labels is None:
        tracks: list[str | None] = list(audio) if audio else [None] * len(videos or [])
        return list(zip(videos or [], tracks, strict=True)), None
    from ..data.sync_list import read_sync_list

    listed = read_sync_list(labels, in_sync or ())
    return [(item.video, item.audio) for item in listed], [item.in_sync for item in listed]


def _each(
    names: list[str],
    measure: Callable[[int, Callable[..., None]], Any],
    what: str,
    write: Callable[[int, Any], list[str]] | None = None,
) -> tuple[dict[int, tuple[Any, list[str]]], list["Failure"]]:
    """Measure video after video; gives results with the files written, by number, and those that were left out."""
    done: dict[int, tuple[Any, list[str]]] = {}
    failed: list[Failure] = []
    with terminal.progress_bar(what) as show:
        for number, name in enumerate(names):

            def tell(seconds: int, total: int, remark: str = "", number: int = number) -> None:
                show(number, len(names), remark or (f"{seconds} of {total} s" if total else f"{seconds} s"))

            try:
                result = measure(number, tell)
                done[number] = result, [] if write is None else write(number, result)
            except DiskError:  # which the next video would meet, too
                raise
            except Exception as error:
                failed += terminal.failures({name: error})
        show(len(names), len(names))
    return done, failed


class _SyncWriter:
    """Writes timeline, values and arrays of one video after the other into a folder.

    Args:
        folder: The folder.
        videos: All of them, whose places decide about names, so that another run gives the same.
        overwrite: Whether earlier results are replaced.
    """

    def __init__(self, folder: Path, videos: list[str], overwrite: bool) -> None:
        from ..files import file_stem, writing
        from ..inference.plots import require_matplotlib

        # Before the first video is measured, not after it.
        _check_folder(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        require_matplotlib()
        self.overwrite = overwrite
        taken: set[str] = set()
        stems = [file_stem(video, taken) for video in videos]
        self.paths = [[folder / f"{stem}.sync.{suffix}" for suffix in ("png", "json", "npz")] for stem in stems]

    def check(self, number: int) -> None:
        """Refuse a video whose results are there, before it is measured."""
        from ..files import check_free

        check_free(*self.paths[number], overwrite=self.overwrite)

    def __call__(self, number: int, result: "SyncResult") -> list[str]:
        from ..files import write_json
        from ..inference.plots import draw_timeline

        image, values, arrays = self.paths[number]
        draw_timeline(result, image, overwrite=self.overwrite)
        write_json(values, result.to_dict(), overwrite=self.overwrite)
        result.save_arrays(arrays, overwrite=self.overwrite)
        return [str(path) for path in self.paths[number]]


def _localization_paths(video: str, folder: Path, draw_video: bool) -> dict[str, Path]:
    """The files to write, by what they are."""
    from ..files import file_stem

    _check_folder(folder)
    stem = file_stem(video, set())
    names = {"frames": "frames.png", "spectrogram": "spectrogram.png", "values": "places.json", "maps": "maps.npz"}
    names |= {"video": "places.mp4"} if draw_video else {}
    return {key: folder / f"{stem}.{name}" for key, name in names.items()}


def _write_localization(
    found: "LocalizationResult",
    video: str,
    audio: str | None,
    paths: dict[str, Path],
    *,
    frames: int,
    overwrite: bool,
) -> dict[str, str]:
    """Write images, values, maps and, where a path is given for it, the video."""
    from ..files import write_json
    from ..inference.plots import draw_spectrogram, draw_strip
    from ..inference.video_overlay import write_overlay_video

    draw_strip(found, video, paths["frames"], count=frames, overwrite=overwrite)
    draw_spectrogram(found, paths["spectrogram"], overwrite=overwrite)
    write_json(paths["values"], found.to_dict(), overwrite=overwrite)
    found.save_arrays(paths["maps"], overwrite=overwrite)
    if "video" in paths:
        with terminal.progress_bar("drawing") as show:
            write_overlay_video(found, video, paths["video"], audio, overwrite=overwrite, progress=_seconds(show))
    return {key: str(path) for key, path in paths.items()}


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
                "-" if result.lead is None else f"{result.lead:+.2f}",
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


def _show_localization(found: "LocalizationResult") -> None:
    from rich.table import Table

    table = Table("time", "similarity", "source at x, y", "box")
    moments = found.to_dict()["moments"]
    step = -(-len(moments) // 12)
    for moment in moments[::step]:
        if moment["peak"] is None:
            table.add_row(f"{moment['time']:.2f} s", "-", "-", "-")
            continue
        x, y = moment["peak"]
        box = ", ".join(f"{edge:.0f}" for edge in moment["box"])
        table.add_row(f"{moment['time']:.2f} s", f"{moment['similarity']:.3f}", f"{x:.0%}, {y:.0%}", box)
    terminal.console.print(table)
    for remark in found.remarks:
        terminal.say(f"- {remark}")


def _name(result: "SyncResult") -> str:
    """Names of a video and of its audio track, without their folders."""
    sources = [result.source] if result.audio_source is None else [result.source, result.audio_source]
    return " + ".join(printable(source.rstrip("/").rpartition("/")[2] or source) for source in sources)


def _seconds(show: Callable[..., None]) -> Callable[..., None]:
    """Progress of one video."""

    def tell(seconds: int, total: int, _: str = "") -> None:
        show(0, 1, f"{seconds} of {total} s" if total else f"{seconds} s")

    return tell


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the results.")


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
