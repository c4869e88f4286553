# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The subcommand that finds and places sounds for a silent film."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..data.clock import format_clock
from ..model.errors_cavmae_sync import printable
from . import terminal
from .kinds import FileIn, FileOut, FolderIn, FolderOut, MediaIn
from .options import AsJson, Backend, Damaged, Device, End, IndexModel, Overwrite, Precision, Start
from .search import HitsOut, open_with_model

# As `search.soundtrack` has them, which would load torch.
FILM_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
SCORE_SUFFIXES = (".csv", ".json", ".otio")


def score(
    film: Annotated[
        str, typer.Argument(metavar="FILM", help="Video file, or address of one; or audio alone."), MediaIn()
    ],
    *,
    library: Annotated[
        str,
        typer.Option(metavar="INDEX", help="Index of the recordings to choose from (`cavmae-sync index`)."),
        FolderIn("index", holds="moments.lance", remedy="`cavmae-sync index SOURCE INDEX` makes one."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the film with its sounds: .mp4, .m4v, .mov or .mkv."),
        FileOut(FILM_SUFFIXES),
    ] = None,
    timeline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what was placed: a timeline (.otio), a table (.csv), or .json."),
        HitsOut(SCORE_SUFFIXES),
    ] = None,
    stems: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write each recording's sounds as a WAV file as long as the film."),
        FolderOut(new=True),
    ] = None,
    model: IndexModel = None,
    text: Annotated[
        str | None, typer.Option(metavar="WORDS", help="What recordings are to be like, beside the picture.")
    ] = None,
    text_weight: Annotated[float, typer.Option(min=0, max=1, help="Share of --text.")] = 0.5,
    files: Annotated[
        str | None, typer.Option(help="Take only recordings whose paths are like this pattern, such as '*/metal/*'.")
    ] = None,
    about: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="CSV or JSON: what is kept beside each file, such as its licence."),
        FileIn(),
    ] = None,
    original: Annotated[
        Literal["refuse", "under", "replace"],
        typer.Option(help="The film's own audio: refuse a film that has some, keep it under the sounds, replace it."),
    ] = "refuse",
    room_tone: Annotated[
        str | None, typer.Option(metavar="FILE", help="A recording of the room to sound under all of it."), MediaIn()
    ] = None,
    start: Start = None,
    end: End = None,
    hop: Annotated[float, typer.Option(help="Seconds between the moments of the film that are looked at.")] = 0.1,
    change: Annotated[
        float, typer.Option(help="How much the picture changes for a new segment; less makes more segments.")
    ] = 0.2,
    min_fit: Annotated[
        float | None,
        typer.Option(help="Segments that no recording fits so well stay silent, nats; default: by the film itself."),
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Other recordings named for each.")] = 3,
    layers: Annotated[int, typer.Option(min=1, help="Recordings at the same time, at most.")] = 1,
    place: Annotated[
        Literal["onset", "sync"],
        typer.Option(help="A recording's first sound at the segment's first frame; or where the model hears it fit."),
    ] = "onset",
    seed: Annotated[int | None, typer.Option(min=0, help="Another choice among what fits nearly as well.")] = None,
    damaged: Damaged = "error",
    device: Device = "auto",
    backend: Backend = "torch",
    precision: Precision = "float32",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Choose recordings of a library for what happens in a silent film, and place each to the frame.

    Every sound is a file of the library. Segments that nothing fits stay silent. Audio alone as FILM gets pictures
    instead, parts of the videos of a library. An interrupted run goes on where it was when it is started again.

    Examples:
        cavmae-sync index sounds/ sounds.index --model my-model --hop 0.25
        cavmae-sync score silent.mp4 --library sounds.index --out film.mp4
        cavmae-sync score silent.mp4 --library sounds.index --timeline film.otio
        cavmae-sync score a.mp4 --library my.index --original replace --out b.mp4
    """
    device = terminal.choose_device(device, backend)
    from ..model.media_cavmae_sync import probe_media
    from ..search.scoring import score_film
    from ..search.soundtrack import check_original, write_film, write_score, write_stems

    if out is not None:
        info = probe_media(film)
        check_original(film, info.has_audio and info.has_video, original)
    store, loaded, processor = open_with_model(
        library, model, words=text is not None, device=device, backend=backend, precision=precision
    )
    target = out or timeline
    work = None if target is None else target.with_name(f"{target.name}.segments.jsonl")
    if work is not None:
        terminal.kept = f"{work} keeps what was found; the same command goes on from there."
    lost: dict[str, Exception] = {}

    def lose(name: str, error: Exception) -> None:
        lost.setdefault(name, error)

    with terminal.progress_bar("looking", unit="s") as show:
        found = score_film(
            film, store, loaded, processor, text=text, text_weight=text_weight, files=files, start=start, end=end,
            hop=hop, change=change, min_fit=min_fit, top=top, layers=layers, place=place, seed=seed, about=about,
            work=work, damaged=damaged, progress=show, on_error=lose,
        )  # fmt: skip
    written: list[Path] = []
    if out is not None:
        with terminal.progress_bar("writing", unit="s") as show:
            written.append(
                write_film(
                    found, out, original=original, room_tone=room_tone, overwrite=overwrite, progress=show
                )
            )  # fmt: skip
    if timeline is not None:
        written.append(write_score(found, timeline, overwrite=overwrite))
    if stems is not None:
        written += write_stems(found, stems, overwrite=overwrite)
    if work is not None:
        work.unlink(missing_ok=True)
    failed = terminal.failures(lost)
    if as_json:
        told = {"failed": [failure.to_dict() for failure in failed], "device": device}
        told |= {"backend": backend, "precision": precision}
        terminal.print_json(found.to_dict() | told | {"written": [str(path) for path in written]})
    else:
        for placed in found.placements:
            span = f"{format_clock(placed.time)}  {placed.seconds:4.1f} s"
            terminal.say(f"{span}  {printable(placed.path)}  {placed.reason}")
        free = max(0.0, found.seconds - sum(placed.seconds for placed in found.placements if not placed.layer))
        what = "recordings" if found.kind == "audio" else "pictures"
        terminal.say(f"{len(found.placements)} {what} in {len(found.segments)} segments; {free:.1f} s have none")
        for path in written:
            terminal.say(f"wrote {printable(str(path))}")
    terminal.end(failed, len(found.placements), noun="recording")
