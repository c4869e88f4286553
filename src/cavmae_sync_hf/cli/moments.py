# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The subcommands that look at the moments of a film: does the sound fit the pictures, and where in them is it?"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from ..model.errors_cavmae_sync import CavMaeSyncError, InferenceError, on_command_line
from . import terminal

__all__ = ["localize", "sync"]

Model = Annotated[str, typer.Option("--model", "-m", help="Folder or Hub name of a model with both towers.")]
Start = Annotated[float | None, typer.Option(min=0.0, help="Where in the film to start, seconds.")]
End = Annotated[float | None, typer.Option(min=0.0, help="Where to end, seconds.")]
Damaged = Annotated[
    Literal["error", "keep"], typer.Option(help="Truncated and corrupt files: refuse, or use what is there.")
]
Device = Annotated[str, typer.Option(help="Where to run the model, such as cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]


def sync(
    videos: Annotated[list[str] | None, typer.Argument(metavar="VIDEO...", help="Video files or addresses.")] = None,
    *,
    model: Model,
    audio: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Another sound track; one for each video, in their order."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="LIST", help="Instead of videos a list with columns path, label and, if need be, audio."),
    ] = None,
    in_sync: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Label of films in sync; default: 1, true, sync, real.")
    ] = None,
    start: Start = None,
    end: End = None,
    hop: Annotated[float, typer.Option(help="Seconds between moments, and between the offsets tried.")] = 0.1,
    max_offset: Annotated[float, typer.Option(help="Largest offset tried both ways, seconds.")] = 2.0,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a timeline picture, JSON and arrays per video.")
    ] = None,
    damaged: Damaged = "error",
    batch_size: Annotated[int, typer.Option(min=1, help="Moments embedded at a time.")] = 32,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure how well sound and pictures fit in time: scores per moment, and by how much the sound is late.

    Several videos are also scored as a set. With --labels, AUC and equal-error rate tell how well the scores separate
    films in sync from others. Files that cannot be used are named, the others are measured; the exit code is then 1.
    """
    if bool(videos) == (labels is not None):
        raise typer.BadParameter("Name videos, or a list of them with --labels; one of the two.")
    if audio and (labels is not None or len(audio) != len(videos or [])):
        raise typer.BadParameter(
            f"--audio was given {len(audio)} times for {len(videos or [])} videos; once for each."
        )
    if in_sync and labels is None:
        raise typer.BadParameter("--in-sync goes with --labels.")
    terminal.check_device(device)
    from ..inference.loading import load_model
    from ..inference.sync import measure_sync
    from ..provenance import model_fingerprint

    films, truths = _films(videos, audio, labels, in_sync)
    write = None if out is None else _SyncWriter(out)
    loaded, processor = load_model(model, device=device, modalities="both")
    options: dict[str, Any] = {
        "start": start, "end": end, "hop": hop, "max_offset": max_offset, "batch_size": batch_size,
        "damaged": damaged, "fingerprint": model_fingerprint(loaded, processor),
    }  # fmt: skip

    def measure(number: int, progress: Callable[..., None]) -> Any:
        video, sound = films[number]
        return measure_sync(loaded, processor, video, sound, **options, progress=progress)

    done, failed = _each([video for video, _ in films], measure, "measuring", write)
    summary = _summary({number: result for number, (result, _) in done.items()}, truths)
    if as_json:
        entries = [result.to_dict() | {"files": files} for result, files in done.values()]
        _print_json({"model": model, "films": entries, "failed": failed, **summary})
    else:
        _show_sync([result for result, _ in done.values()], summary)
        for _, files in done.values():
            for file in files:
                terminal.say(f"wrote {file}")
    _end(failed)


def localize(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="Video file or address.")],
    *,
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for pictures, film, JSON and maps.")],
    audio: Annotated[str | None, typer.Option(metavar="FILE", help="Another sound track for the video.")] = None,
    start: Start = None,
    end: End = None,
    fps: Annotated[float, typer.Option(help="Moments per second for which maps are made.")] = 5.0,
    method: Annotated[
        Literal["occlusion", "cosine"],
        typer.Option(help="Leave out patch after patch, or compare the patches themselves: fast, but points badly."),
    ] = "occlusion",
    film: Annotated[
        bool, typer.Option("--video/--no-video", help="Also write the film with the maps drawn in.")
    ] = True,
    frames: Annotated[int, typer.Option(min=1, help="Frames on the contact strip.")] = 12,
    damaged: Damaged = "error",
    batch_size: Annotated[int, typer.Option(min=1, help="Moments decoded at a time.")] = 16,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Find where in the picture the sound is, and when and at which pitch in the sound the picture is."""
    terminal.check_device(device)
    from ..inference.loading import load_model
    from ..inference.localize import localize as run_localize

    loaded, processor = load_model(model, device=device, modalities="both")
    with terminal.progress_bar("localising") as show:
        found = run_localize(
            loaded, processor, video, audio, start=start, end=end, fps=fps, method=method, damaged=damaged,
            batch_size=batch_size, progress=_seconds(show),
        )  # fmt: skip
    files = _write_localization(found, video, audio, out, frames, film)
    if as_json:
        _print_json({"model": model, **found.to_dict(), "files": files})
        return
    _show_localization(found)
    for file in files.values():
        terminal.say(f"wrote {file}")


def _films(
    videos: list[str] | None, audio: list[str] | None, labels: Path | None, in_sync: list[str] | None
) -> tuple[list[tuple[str, str | None]], list[bool] | None]:
    """Films with their sound, and whether each is in sync where that is known."""
    if labels is None:
        sounds: list[str | None] = list(audio) if audio else [None] * len(videos or [])
        return list(zip(videos or [], sounds, strict=True)), None
    from ..data.sync_list import read_sync_list

    listed = read_sync_list(labels, in_sync or ())
    return [(item.video, item.audio) for item in listed], [item.in_sync for item in listed]


def _each(
    names: list[str],
    measure: Callable[[int, Callable[..., None]], Any],
    what: str,
    write: Callable[[Any], list[str]] | None,
) -> tuple[dict[int, tuple[Any, list[str]]], list[dict[str, str]]]:
    """Measure film after film; gives results with the files written, by number, and those that failed."""
    done: dict[int, tuple[Any, list[str]]] = {}
    failed: list[dict[str, str]] = []
    with terminal.progress_bar(what) as show:
        for number, name in enumerate(names):

            def tell(seconds: int, total: int, _: str = "", number: int = number) -> None:
                show(number, len(names), f"{seconds} of {total} s" if total else f"{seconds} s")

            try:
                result = measure(number, tell)
                done[number] = result, [] if write is None else write(result)
            except (ValueError, OSError) as error:
                text = error.spelled(on_command_line) if isinstance(error, CavMaeSyncError) else str(error)
                failed.append({"film": name, "error": " ".join(text.split())})
        show(len(names), len(names))
    return done, failed


class _SyncWriter:
    """Writes the picture, figures and arrays of one film after the other into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: set[str] = set()
        # Before the first film is measured, not after it.
        _check_folder(folder)
        from ..inference.plots import require_matplotlib

        require_matplotlib()

    def __call__(self, result: Any) -> list[str]:
        import numpy as np

        from ..files import file_stem, whole_file
        from ..inference.plots import draw_timeline

        stem = file_stem(result.source, self.taken)
        picture, figures, arrays = (self.folder / f"{stem}.sync.{suffix}" for suffix in ("png", "json", "npz"))
        draw_timeline(result, picture)
        _write_json(figures, result.to_dict())
        with whole_file(arrays) as partial:
            np.savez_compressed(
                partial, times=result.times, scores=result.scores, contrast=result.contrast, band=result.band,
                band_offsets=result.band_offsets, matrix=result.matrix, matrix_times=result.matrix_times,
                offsets=result.offsets, offset_scores=result.offset_scores,
            )  # fmt: skip
        return [str(path) for path in (picture, figures, arrays)]


def _write_localization(
    found: Any, video: str, audio: str | None, folder: Path, frames: int, film: bool
) -> dict[str, str]:
    """Write pictures, figures, maps and film; gives their paths by what they are."""
    import numpy as np

    from ..files import file_stem, whole_file
    from ..inference.plots import draw_spectrogram, draw_strip
    from ..inference.video_overlay import write_overlay_video

    _check_folder(folder)
    stem = file_stem(found.source, set())
    names = {"frames": "frames.png", "spectrogram": "spectrogram.png", "figures": "places.json", "maps": "maps.npz"}
    paths = {key: folder / f"{stem}.{name}" for key, name in names.items()}
    draw_strip(found, video, paths["frames"], count=frames)
    draw_spectrogram(found, paths["spectrogram"])
    _write_json(paths["figures"], found.to_dict())
    with whole_file(paths["maps"]) as partial:
        np.savez_compressed(
            partial, times=found.times, window_times=found.window_times, present=found.present,
            similarity=found.similarity, video_maps=found.video_maps, audio_maps=found.audio_maps,
            view=np.array(found.view.box),
        )  # fmt: skip
    if film:
        paths["video"] = folder / f"{stem}.places.mp4"
        with terminal.progress_bar("drawing") as show:
            write_overlay_video(found, video, paths["video"], audio, progress=_seconds(show))
    return {key: str(path) for key, path in paths.items()}


def _summary(results: dict[int, Any], truths: list[bool] | None) -> dict[str, Any]:
    """What can be said of a set of films."""
    from ..inference.sync import detection_metrics, join_scores

    films = list(results.values())
    summary: dict[str, Any] = {}
    if len(films) > 1:
        joined = join_scores(films).to_dict()
        summary["alignment"] = {key: value for key, value in joined.items() if key != "videos"}
    if truths is not None:
        try:
            summary["detection"] = detection_metrics(films, [truths[number] for number in results])
        except InferenceError as error:
            summary["detection"] = None
            terminal.errors.print(f"[yellow]{escape(str(error))}[/yellow]", highlight=False, soft_wrap=True)
    return summary


def _show_sync(results: list[Any], summary: dict[str, Any]) -> None:
    from rich.table import Column, Table

    if results:
        names = ("late by", "confidence", "similarity", "lead", "z", "shift p")
        table = Table(
            Column("film", overflow="fold"), *(Column(name, no_wrap=True, justify="right") for name in names)
        )
        for result in results:
            lead, z, turned = result.lead, result.test["z_score"], result.test["shift_p_value"]
            table.add_row(
                escape(_film_name(result)),
                "-" if result.offset is None else f"{round(result.offset, 2) + 0.0:+.2f} s",
                "-" if result.offset is None else f"{result.confidence:.0%}",
                f"{result.similarity:.3f}",
                "-" if lead is None else f"{lead:+.2f}",
                "-" if z is None else f"{z:.1f}",
                "-" if turned is None else f"{turned:.3f}",
            )
        terminal.console.print(table)
        terminal.say(
            f"Late by: below 0 the sound is early; in steps of {results[0].hop:g} s, interpolated. Lead: above 0 in "
            "sync. Shift p: share of shifts that fit as well."
        )
    for result in results:
        for remark in result.remarks:
            terminal.say(f"- {_film_name(result)}: {remark}")
    alignment = summary.get("alignment")
    if alignment:
        error = alignment["standard_error"]
        terminal.say(f"Alignment score of {len(results)} films: {alignment['score']:.4f} (standard error {error:.4f})")
    for name, figures in (summary.get("detection") or {}).items():
        terminal.say(f"{name:10s} AUC {figures['auc']:.4f}, equal-error rate {figures['equal_error_rate']:.2%}")
    if results:
        terminal.say(f"Protocol: {results[0].protocol}")


def _show_localization(found: Any) -> None:
    from rich.table import Table

    table = Table("time", "similarity", "sound at x, y", "box")
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


def _film_name(result: Any) -> str:
    sound = "" if result.audio_source is None else f" + {_short(result.audio_source)}"
    return _short(result.source) + sound


def _short(source: str) -> str:
    """A film's name without its folders, as one printable line."""
    name = source.rstrip("/").rpartition("/")[2] or source
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _seconds(show: Callable[..., None]) -> Callable[..., None]:
    """Progress of one film."""

    def tell(seconds: int, total: int, _: str = "") -> None:
        show(0, 1, f"{seconds} of {total} s" if total else f"{seconds} s")

    return tell


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the results.")
    folder.mkdir(parents=True, exist_ok=True)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    from ..files import whole_file

    with whole_file(path) as partial:
        partial.write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False))


def _end(failed: list[dict[str, str]]) -> None:
    for entry in failed:
        terminal.errors.print(f"[bold red]Error:[/bold red] {escape(entry['error'])}", highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)
