# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Subcommands that make data sets."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import terminal
from .kinds import FileIn, FolderOut, SourceIn
from .options import AudioTrack, Engine, Media, Split, settings, time_option


def prepare(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Folder, pattern, list, address, or data set OWNER/NAME of the Hub."),
        SourceIn(),
    ],
    # Text: a Path would make the folder "s3:" of an address, which is to be refused.
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Folder for the shards: new, or begun by the same command."),
        FolderOut(),
    ],
    name: Annotated[str, typer.Option(help="Name of the set; shards are called NAME-00000.tar.")] = "train",
    media: Media = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of label names: lines, JSON, or AudioSet's CSV."),
        FileIn(),
    ] = None,
    split: Split = None,
    folder_labels: Annotated[bool, typer.Option("--folder-labels", help="Label files by their folders.")] = False,
    cut: Annotated[
        Literal["auto", "done", "needed"], typer.Option(help="Whether files found by id are cut to their segments.")
    ] = "auto",
    caption_column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Column of captions of a list or data set; may be given several times."),
    ] = None,
    spans: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Table of texts with times: columns file, start, end and text."),
        FileIn(),
    ] = None,
    num_frames: Annotated[int, typer.Option(help="Frames per clip.")] = 16,
    alignment: Annotated[
        Literal["time", "reference"], typer.Option(help="Frames at centres of equal spans, or as published.")
    ] = "time",
    short_side: Annotated[int, typer.Option(help="Shorter side of stored frames, pixels; 0 keeps every size.")] = 256,
    jpeg_quality: Annotated[int, typer.Option(help="1 to 100.")] = 95,
    jpeg_chroma: Annotated[Literal["4:4:4", "4:2:2", "4:2:0"], typer.Option(help="Colour resolution.")] = "4:4:4",
    channel: Annotated[Literal["first", "mean"], typer.Option(help="How several channels become one.")] = "first",
    audio_track: AudioTrack = None,
    sampling_rate: Annotated[int, typer.Option(help="Rate of the audio in Hz, for the spectrogram.")] = 16000,
    num_mel_bins: Annotated[int, typer.Option(help="Mel bins of the spectrogram.")] = 128,
    audio: Annotated[
        Literal["log_mel", "waveform"],
        typer.Option(help="Keep the spectrogram, or the audio itself, for encoders that hear samples."),
    ] = "log_mel",
    missing: Annotated[
        Literal["error", "keep"], typer.Option(help="Clips without audio or video: bad, or kept as such.")
    ] = "error",
    silent: Annotated[Literal["error", "keep"], typer.Option(help="Clips with a silent audio track.")] = "error",
    damaged: Annotated[Literal["error", "keep"], typer.Option(help="Truncated and corrupt files.")] = "error",
    max_seconds: Annotated[float, time_option("Longer clips are bad clips.")] = 600.0,
    clips_per_shard: Annotated[int | None, typer.Option(help="Default: 256, less for small sets.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    engine: Engine = "local",
    ray_address: Annotated[str | None, typer.Option(help="Of the cluster; default: RAY_ADDRESS.")] = None,
) -> None:
    """Turn a collection of videos into shards for training; run it again to continue after an interruption.

    Clips that cannot be used are left out, named and listed in bad_clips.csv; the exit code is then 1. Those that
    could not be read for now, as the network or the disk failed, are tried again by the next run.

    Examples:
        cavmae-sync prepare videos/ shards/ --labels classes.csv
        cavmae-sync prepare 's3://bucket/videos/*.mp4' shards/ --name test
        cavmae-sync prepare clips.csv shards/ --caption-column caption
        cavmae-sync prepare videos/ shards/ --spans words.csv
    """
    from ..data.prepare import prepare as run_prepare
    from ..data.shards import BAD_CLIPS_NAME

    options = settings(context) | {"short_side": short_side or None}
    terminal.kept = f"Finished shards in {out} are kept; run the same command again to go on."
    with terminal.progress_bar("preparing") as show:
        summary = run_prepare(
            **options, progress=lambda at: show(at.done, at.total, f"{at.bad} bad" if at.bad else "")
        )
    terminal.say(str(summary))
    report = summary.folder / BAD_CLIPS_NAME
    terminal.end(summary.failures, summary.index.clips, noun="clip", report=report)


def world(
    context: typer.Context,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for the world; splits are folders in it."), FolderOut()
    ],
    clips: Annotated[int, typer.Option(help="Clips of the split.")] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed gives another world.")] = 0,
    split: Annotated[str, typer.Option(help="Name of the split.")] = "train",
    preset: Annotated[
        Literal["semantic", "temporal", "spatial", "mixed"],
        typer.Option(help="What makes the clips hard to tell apart."),
    ] = "mixed",
    size: Annotated[str, typer.Option(help="Side of the frame, or WIDTHxHEIGHT, pixels.")] = "96",
    fps: Annotated[int, typer.Option(help="Frames per second.")] = 10,
    seconds: Annotated[float, time_option("Length of a clip.")] = 10.0,
    echo: Annotated[float, typer.Option(help="Strength of the room's echo, 0 to 1.")] = 0.0,
    noise_db: Annotated[float, typer.Option(help="Background noise, dB relative to full scale.")] = -55.0,
    overlap: Annotated[float, typer.Option(help="Chance that a sound begins before the previous one ends.")] = 0.0,
    sampling_rate: Annotated[int, typer.Option(help="Audio samples per second.")] = 16000,
    crf: Annotated[int, typer.Option(help="H.264 compression, 0 (lossless) to 51.")] = 23,
    encoder_preset: Annotated[str, typer.Option(help="x264 preset: slower ones make smaller files.")] = "ultrafast",
    audio_bitrate: Annotated[int, typer.Option(help="AAC bits per second.")] = 64000,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Also write a page and an image to look at.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier page and image; clips are never replaced.")
    ] = False,
) -> None:
    """Make SyncWorld: short videos in which who sounds, when and where is known.

    Examples:
        cavmae-sync world world --clips 20
        cavmae-sync world world --clips 100 --split test --seed 1 --preview
    """
    options = settings(context, "preview", "overwrite") | {"size": _height_and_width(size)}
    from ..files import check_free
    from ..syncworld import contact_sheet, make_world, preview_page

    page, sheet = out / f"{split}.html", out / f"{split}.png"
    if preview:
        check_free(page, sheet, overwrite=overwrite)  # before the work, not after it
    terminal.kept = f"Finished clips in {out} are kept; run the same command again to go on."
    with terminal.progress_bar("making") as show:
        summary = make_world(**options, progress=show)
    rate = f", {summary.clips_per_second:.1f} clips/s" if summary.made else ", all there already"
    terminal.console.print(
        f"{summary.folder}: {summary.clips} clips{rate}", highlight=False, markup=False, soft_wrap=True
    )
    if preview:
        for path in (
            preview_page(out, page, split=split, overwrite=overwrite),
            contact_sheet(out, sheet, split=split, overwrite=overwrite),
        ):
            terminal.say(str(path))


def _height_and_width(size: str) -> tuple[int, int]:
    """Frame size of `96` or, width first as video sizes are written, `160x96`."""
    found = re.fullmatch(r"(\d+)(?:[xX](\d+))?", size.strip())
    if not found:
        raise ValueError(f"--size must be a number of pixels or WIDTHxHEIGHT such as 160x96, got {size!r}.")
    return int(found[2] or found[1]), int(found[1])
