# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The subcommand that finds where in the frame the source of the audio is."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from ..data.clock import format_clock
from ..model.errors_cavmae_sync import printable
from . import terminal
from .batch import ResultFiles, ResultsOut, each, find_files, is_table, pair_audio, write_table
from .kinds import MediaIn
from .options import AsJson, AudioTrack, Backend, Channel, Damaged, Device, End, Model, Overwrite, Precision, Start

if TYPE_CHECKING:
    from ..inference.localize import LocalizationResult

_FILES = {"frames": "frames.png", "spectrogram": "spectrogram.png", "values": "places.json", "maps": "maps.npz"}
_MOST_ROWS = 12


def localize(
    videos: Annotated[
        list[str],
        typer.Argument(metavar="VIDEO...", help="Video files, folders, patterns or addresses."),
        MediaIn(folders=True),
    ],
    *,
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER|FILE",
            help="Folder for images, video, JSON and maps of each video; or a .csv or .json file for a table.",
        ),
        ResultsOut("Drawing"),
    ] = None,
    overwrite: Overwrite = False,
    audio: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Another audio track; one for each video, in their order."),
        MediaIn(),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help='What to look for instead, such as "the bell"; needs a model with text.'),
    ] = None,
    start: Start = None,
    end: End = None,
    fps: Annotated[float, typer.Option(help="Moments per second for which maps are made.")] = 5.0,
    method: Annotated[
        Literal["relevance", "local", "occlusion", "dense", "cosine"] | None,
        typer.Option(
            help="relevance: one pass forward and back; local: one pass, with local heads; occlusion: leave out patch "
            "after patch, slow; dense: projected patches of a model trained for it; cosine: the patches "
            "themselves, points badly. Default: the first of the first three that the model allows."
        ),
    ] = None,
    least_strength: Annotated[
        float | None,
        typer.Option(
            metavar="NATS", help="Strength from which on a moment has a source in the frame; default: 2.5, of words 0."
        ),
    ] = None,
    draw_video: Annotated[
        bool, typer.Option("--video/--no-video", help="Also write the video with the maps drawn in.")
    ] = True,
    frames: Annotated[int, typer.Option(min=1, help="Frames on the contact strip.")] = 12,
    damaged: Damaged = "error",
    channel: Channel = None,
    audio_track: AudioTrack = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Moments decoded at a time.")] = 16,
    device: Device = "auto",
    backend: Backend = "torch",
    precision: Precision = "float32",
    as_json: AsJson = False,
) -> None:
    """Find where in the frame the source of the audio is, and which part of the spectrogram belongs to the frame.

    With --text: where and when what the words say is seen and heard.

    Files that cannot be used are named, the others are looked at; the exit code is then 1. ONNX Runtime (--backend)
    makes maps by --method local and cosine alone.

    Examples:
        cavmae-sync localize video.mp4 --model example
        cavmae-sync localize videos/ --model example --out places
        cavmae-sync localize video.mp4 --model my-text-model --text "the bell"
    """
    names, lost = find_files(videos)
    pairs = pair_audio(names, audio)
    files = None
    if out is not None and not is_table(out):
        files = ResultFiles(out, names, _FILES | ({"video": "places.mp4"} if draw_video else {}), overwrite)
        terminal.kept = f"Files that lie in {out} are whole; run the command again to have all of them."
    device = terminal.choose_device(device, backend)
    from ..inference.loading import read_config
    from ..inference.localize import check_method
    from ..inference.localize import localize as run_localize
    from ..inference.texts import embed_texts

    if backend != "torch" and not (method is None and read_config(model).local_head_size):
        check_method(backend, method)  # before the model is exported
    loaded, processor = terminal.load(
        model, device=device, backend=backend, precision=precision, modalities="both",
        use="embedding" if text is None else "text",
    )  # fmt: skip
    if text is not None:
        embed_texts(loaded, processor, [text])  # what is wrong with it is told once, not of every video

    def find(number: int, progress: Callable[..., None]) -> Any:
        replacing = files is not None and files.begin(number)
        found = run_localize(
            loaded, processor, *pairs[number], text=text, start=start, end=end, fps=fps, method=method,
            least_strength=least_strength, damaged=damaged, channel=channel, audio_track=audio_track,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        if files is not None:
            _write(found, *pairs[number], files.paths[number], frames=frames, overwrite=replacing, progress=progress)
        return found.to_dict()  # the maps of all videos would fill the memory

    done, failed = each(names, find, "localizing")
    failed = lost + failed
    written = {
        number: {} if files is None else {what: str(path) for what, path in files.paths[number].items()}
        for number in done
    }
    entries = [found | {"files": written[number]} for number, found in done.items()]
    failures = [failure.to_dict("video") for failure in failed]
    run = {"device": device, "backend": backend, "precision": precision}
    values = {"model": model, **run, "videos": entries, "failed": failures}
    if as_json:
        terminal.print_json(values)
    else:
        _show(list(done.values()))
        for path in (path for paths in written.values() for path in paths.values()):
            terminal.say(f"wrote {path}")
    if out is not None and files is None:
        rows = [row for found in done.values() for row in _rows(found)] + failures
        write_table(out, rows, values, overwrite=overwrite, as_json=as_json)
    terminal.end(failed, len(done), noun="video")


def _write(
    found: "LocalizationResult",
    video: str,
    audio: str | None,
    paths: dict[str, Path],
    *,
    frames: int,
    overwrite: bool,
    progress: Callable[..., None],
) -> None:
    """Write images, values, maps and, where a path is given for it, the video."""
    from ..files import write_json
    from ..inference.plots import draw_spectrogram, draw_strip
    from ..inference.video_overlay import write_overlay_video

    draw_strip(found, video, paths["frames"], count=frames, overwrite=overwrite)
    draw_spectrogram(found, paths["spectrogram"], overwrite=overwrite)
    write_json(paths["values"], found.to_dict(), overwrite=overwrite)
    found.save_arrays(paths["maps"], overwrite=overwrite)
    if "video" in paths:

        def show(seconds: int, total: int) -> None:
            progress(seconds, total, f"drawing {seconds} of {total} s")

        write_overlay_video(found, video, paths["video"], audio, overwrite=overwrite, progress=show)


def _show(results: list[dict[str, Any]]) -> None:
    """The moments of one video, or the strongest of each of several."""
    from rich.table import Column, Table

    several, said = len(results) > 1, any("text" in found for found in results)
    heads = ("time", "seen at x, y" if said else "source at x, y", "strength", "similarity", "box")[
        : 4 if several else 5
    ]
    numbers = [Column(name, justify="right", no_wrap=True) for name in heads]
    table = Table(Column("video", overflow="fold"), *numbers) if several else Table(*numbers)
    for found in results:
        moments = found["moments"]
        if several:
            # Those with a source first.
            moments = [max(moments, key=lambda moment: (moment["source"], moment["strength"] or -math.inf))]
        for moment in moments[:: -(-len(moments) // _MOST_ROWS) or 1]:
            cells = [escape(_name(found)), *_cells(moment, said)[:4]] if several else _cells(moment, said)
            table.add_row(*cells, style=None if moment["source"] else "dim")
    if results:
        terminal.console.print(table)
    if several:
        terminal.say("Of each video the strongest moment. All moments: --json, or --out.")
    for found in results:
        for remark in found["remarks"]:
            terminal.say(f"- {_name(found)}: {remark}" if several else f"- {remark}")


def _cells(moment: dict[str, Any], said: bool) -> list[str]:
    from ..inference.strength import NO_SOURCE, NOT_SEEN

    absence = NOT_SEEN if said else NO_SOURCE
    time, strength = format_clock(moment["time"]), moment["strength"]
    if strength is None:
        return [time, absence, "-", "-", "-"]
    place = box = "-"
    if moment["source"]:
        x, y = moment["peak"]
        place, box = f"{x:.0%}, {y:.0%}", ", ".join(f"{edge:.0f}" for edge in moment["box"])
    strength = "silence" if moment["silent"] and not said else f"{strength:z.1f}"
    return [time, place if moment["source"] else absence, strength, f"{moment['similarity']:.3f}", box]


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The moments of a video as rows of a table: seconds, the peak as shares of the frame, the box in pixels."""
    rows = []
    for moment in found["moments"]:
        x, y = moment["peak"] or (None, None)
        box = dict(zip(("left", "top", "right", "bottom"), moment["box"] or [None] * 4, strict=True))
        rest = {name: value for name, value in moment.items() if name not in ("time", "peak", "box")}
        rows.append({"video": found["source"], "time": moment["time"], "x": x, "y": y, **box, **rest, "error": None})
    return rows


def _name(found: dict[str, Any]) -> str:
    """A video without its folders."""
    return printable(found["source"].rstrip("/").rpartition("/")[2] or found["source"])
