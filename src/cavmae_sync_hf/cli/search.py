# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The subcommands that make an index of moments, search it, and say what it holds."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..model.errors_cavmae_sync import on_command_line, printable
from . import terminal
from .kinds import FileOut, FolderIn, FolderOut, MediaIn, Needs, SourceIn
from .options import (
    AudioTrack,
    Backend,
    Channel,
    Device,
    Engine,
    IndexModel,
    Media,
    Model,
    Overwrite,
    Precision,
    time_option,
)

_INDEX = FolderIn("index", holds="moments.lance", remedy="`cavmae-sync index SOURCE INDEX` makes one.")
# As `search.writing` has them, which would load torch.
HIT_SUFFIXES = (".csv", ".json", ".html", ".edl", ".otio")
_SIDES = ("auto", "audio", "video", "both")


@dataclass(frozen=True)
class HitsOut(FileOut):
    """A file for hits; timelines need an extra."""

    def check(self, value: Any, values: Mapping[str, Any]) -> None:
        super().check(value, values)
        if Path(value).suffix.lower() in (".edl", ".otio"):
            Needs("archive", "A timeline").check()


@dataclass(frozen=True)
class WordsOrMediaIn(MediaIn):
    """A file or address; or words, which look like neither."""

    def check(self, value: Any, values: Mapping[str, Any]) -> None:
        if not are_words(value):
            super().check(value, values)


def are_words(value: str) -> bool:
    """Whether a text is words: no file or address, nor like one by a separator or a suffix."""
    if "://" in value or os.path.exists(value) or any(sign in value for sign in "/\\"):
        return False
    return not re.fullmatch(r"\.[A-Za-z0-9]{1,5}", os.path.splitext(value)[1])


def _words(query: str | None, text: str | None, then: list[str]) -> tuple[str | list[str] | None, str | None]:
    """The words that are searched for, and the file."""
    words = text
    if query is not None and are_words(query):
        if text is not None:
            raise typer.BadParameter(f"there is no file {query!r}, and --text has words, too.", param_hint="QUERY")
        words, query = query, None
    if words is None and then:
        raise typer.BadParameter("--then goes with words: as QUERY, or --text.")
    if words is None and query is None:
        raise typer.BadParameter("name a file, or say in words what to find.", param_hint="QUERY")
    return ([words, *then] if words is not None and then else words), query


def _side(text: str) -> str:
    """`audio`, `video`, `both` or `auto`; old spellings are accepted with a note."""
    if text in _SIDES:
        return text
    from ..search.querying import OLD_SIDES

    if text not in OLD_SIDES:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(_SIDES)}.")
    terminal.errors.print(f"Note: {text!r} is now written {OLD_SIDES[text]!r}.", highlight=False, soft_wrap=True)
    return OLD_SIDES[text]


def index(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Folder, pattern, list of files or segments, or one video."),
        SourceIn(),
    ],
    index: Annotated[
        str,
        typer.Argument(metavar="INDEX", help="Folder or address (s3://...) of the index: new, or to be updated."),
        FolderOut(),
    ],
    model: Model,
    hop: Annotated[float, time_option("From one moment to the next.")] = 0.5,
    media: Media = None,
    thumbnails: Annotated[
        int, typer.Option(help="Keep an image of each moment, so many pixels long (such as 160); 0: none.")
    ] = 0,
    damaged: Annotated[
        Literal["error", "keep"], typer.Option(help="Damaged files are bad, or count as far as they can be decoded.")
    ] = "error",
    still: Annotated[
        float,
        typer.Option(
            min=0, help="Encode frames once that differ so little, such as 0.02 (docs/export.md); 0: equal ones."
        ),
    ] = 0.0,
    channel: Channel = None,
    audio_track: AudioTrack = None,
    retry_bad: Annotated[
        bool, typer.Option("--retry-bad", "--retry", help="Try bad files again that have not changed.")
    ] = False,
    keep_missing: Annotated[
        bool, typer.Option("--keep-missing", help="Keep clips whose files SOURCE holds no more.")
    ] = False,
    approximate_from: Annotated[
        int, typer.Option(help="Moments from which on an approximate index is built; 0: never.")
    ] = 100_000,
    batch_size: Annotated[int, typer.Option(help="Moments that the model is given at a time.")] = 64,
    decoders: Annotated[int | None, typer.Option(help="Files decoded at a time; default: one per core, to 4.")] = None,
    engine: Engine = "local",
    workers: Annotated[int | None, typer.Option(help="With Ray: processes that hold the model.")] = None,
    address: Annotated[str | None, typer.Option(help="Of the cluster; default: RAY_ADDRESS, else one here.")] = None,
    device: Device = "auto",
    backend: Backend = "torch",
    precision: Precision = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Index the moments of videos, or bring an index up to date with them, so that they can be searched.

    Only new and changed files are read; clips of files that are gone go, too. Stopped runs can be run again; several
    may write to one index. Files that cannot be used are named and listed; the exit code is then 1.

    Examples:
        cavmae-sync index videos/ my.index --model example
        cavmae-sync index films my.index -m example --backend onnx --precision int8
    """
    device = terminal.choose_device(device, backend)
    from ..search import index_videos

    loaded, processor = terminal.load(model, device=device, backend=backend, precision=precision, modalities="both")
    terminal.kept = f"All but the last seconds of {index} is kept; run the same command again to go on."
    with terminal.progress_bar("indexing") as show:
        summary = index_videos(
            source, index, loaded, processor, hop=hop, media=media, thumbnails=thumbnails, damaged=damaged,
            still=still, channel=channel, audio_track=audio_track, retry_bad=retry_bad,
            remove_missing=not keep_missing, approximate_from=approximate_from or None, batch_size=batch_size,
            decoders=decoders, engine=engine, workers=workers, address=address, progress=show,
        )  # fmt: skip
    if as_json:
        terminal.print_json(summary.to_dict() | {"device": device, "backend": backend, "precision": precision})
    else:
        terminal.say(printable(str(summary)))
    done = summary.found - len(summary.errors)
    terminal.end(
        terminal.failures(summary.errors), done, noun="clip", report=f"cavmae-sync index-info {index} --files"
    )


def open_with_model(index: str, model: str | None, **options: Any) -> tuple[Any, Any, Any]:
    """An index, the model to search it with and its processor; `options` are those of `load_index_model`."""
    from ..search import MomentStore
    from ..search.searching import load_index_model

    store = MomentStore.open(index)
    with terminal.export_progress(model or store.settings.model) as show:
        return store, *load_index_model(store, model, progress=show, **options)


def search(
    index: Annotated[str, typer.Argument(metavar="INDEX", help="Folder or address of an index."), _INDEX],
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="QUERY", help='File or address of audio, a video or an image; or words, such as "a dog barks".'
        ),
        WordsOrMediaIn(),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help='Words; beside a file as QUERY both count. "A, then B" is a sequence.'),
    ] = None,
    then: Annotated[
        list[str] | None,
        typer.Option(metavar="WORDS", help="With words: what comes after them; repeat for more."),
    ] = None,
    then_within: Annotated[float, time_option("Longest time from one part of a sequence to the next.")] = 10.0,
    text_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Share of --text in the score, beside a file as QUERY.")
    ] = 0.5,
    start: Annotated[
        float | None,
        time_option("Where the moment of QUERY starts, such as 80.5 or 1:20."),
    ] = None,
    end: Annotated[float | None, time_option("Where it ends.")] = None,
    by: Annotated[
        Any,
        typer.Option(parser=_side, metavar=f"[{'|'.join(_SIDES)}]", help="What of QUERY counts; auto: all there is."),
    ] = "auto",
    find: Annotated[
        Any,
        typer.Option(
            "--in",
            parser=_side,
            metavar=f"[{'|'.join(_SIDES)}]",
            help="What it is compared with; auto: video for audio, audio for video, both for both and for words.",
        ),
    ] = "auto",
    top: Annotated[int, typer.Option(min=1, help="Moments found, at most.")] = 10,
    whole_clips: Annotated[bool, typer.Option("--whole-clips", help="Find whole clips, not moments.")] = False,
    exclude_same_file: Annotated[
        bool, typer.Option("--exclude-same-file", help="Leave out the file that QUERY is, and copies of it.")
    ] = False,
    files: Annotated[str | None, typer.Option(help="Search only paths like this pattern, such as '*/news/*'.")] = None,
    after: Annotated[
        float | None,
        time_option("Leave out moments that begin earlier in their files."),
    ] = None,
    before: Annotated[
        float | None,
        time_option("Leave out moments that end later in their files."),
    ] = None,
    min_loudness: Annotated[
        float | None,
        typer.Option(help="Leave out quieter moments, dB; default: silent ones (-60) where audio is compared."),
    ] = None,
    min_gap: Annotated[
        float | None, time_option("How far moments of one file lie apart; default: so that none overlap.")
    ] = None,
    per_file: Annotated[int | None, typer.Option(min=1, help="Moments of one file, at most.")] = None,
    exact: Annotated[
        bool | None, typer.Option("--exact/--approximate", help="Compare all moments, or use the approximate index.")
    ] = None,
    channel: Channel = None,
    audio_track: AudioTrack = None,
    model: IndexModel = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write the hits: .csv or .json, a page to look at (.html), or a timeline (.edl, .otio).",
        ),
        HitsOut(HIT_SUFFIXES, beside="clips"),
    ] = None,
    clips: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Cut the hits into files, copied from the key frame before each."),
        FolderOut(),
    ] = None,
    reencode: Annotated[
        bool, typer.Option("--reencode", help="With --clips: cut where the hits begin and end, and encode anew.")
    ] = False,
    padding: Annotated[float | None, time_option("With --clips: so much more on either side.")] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    backend: Backend = "torch",
    precision: Precision = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the hits as JSON.")] = False,
) -> None:
    """Find the moments of an index that are most like audio, an image or a moment of a video, or what words say.

    Words need a model with text (docs/text.md): the index's own, or --model.

    Hits whose files are not there any more, or cannot be read, are named and left out of what is cut and drawn; the
    exit code is then 1.

    Examples:
        cavmae-sync search my.index bark.wav
        cavmae-sync search my.index video.mp4 --start 1:20 --end 1:24 --top 5
        cavmae-sync search my.index "a dog barks, then a bell rings"
        cavmae-sync search my.index bark.wav --clips found --out found/hits.html
    """
    if clips is None and (reencode or padding is not None):
        raise typer.BadParameter("--reencode and --padding go with --clips.")
    words, query = _words(query, text, then or [])
    device = terminal.choose_device(device, backend)
    from ..search import CutClip, SearchFilters, cut_hits, write_hits
    from ..search import search as run_search

    filters = SearchFilters(
        exclude_same_file=exclude_same_file, within=(after, before), files=files, min_loudness=min_loudness,
        min_gap=min_gap, per_file=per_file,
    )  # fmt: skip
    store, loaded, processor = open_with_model(
        index, model, words=words is not None, device=device, backend=backend, precision=precision
    )
    result = run_search(
        store, query, loaded, processor, text=words, by=by, find=find, start=start, end=end, text_weight=text_weight,
        then_within=then_within, top=top, whole_clips=whole_clips, exact=exact, filters=filters, channel=channel,
        audio_track=audio_track,
    )  # fmt: skip
    if not as_json:
        _print_hits(result)
    lost: dict[str, Exception] = {}

    def lose(name: str, error: Exception) -> None:
        lost.setdefault(name, error)

    cuts: list[CutClip | None] | None = None
    if clips is not None:
        terminal.kept = f"Clips that lie in {clips} are whole; run the command again with --overwrite for all of them."
        with terminal.progress_bar("cutting") as show:
            cuts = cut_hits(
                result, clips, reencode=reencode, padding=padding or 0.0, audio_track=store.settings.audio_track,
                overwrite=overwrite, progress=show, on_error=lose,
            )  # fmt: skip
    written = []
    if out is not None:
        written = write_hits(result, out, clips=cuts, overwrite=overwrite, on_error=lose)
    failed = terminal.failures(lost)
    if as_json:
        told: dict[str, Any] = {} if clips is None else {"clips": [cut and cut.to_dict() for cut in cuts or ()]}
        told |= {"failed": [failure.to_dict() for failure in failed], "device": device}
        told |= {"backend": backend, "precision": precision}
        terminal.print_json(result.to_dict() | told)
    else:
        early = 0.0
        for hit, cut in zip(result, cuts or (), strict=cuts is not None):
            if cut is not None:
                before = max(0.0, hit.start - (padding or 0.0)) - cut.start
                early = max(early, before)
                terminal.say(f"wrote {cut.path}" + (f" (begins {before:.1f} s earlier)" if before >= 0.05 else ""))
        if early >= 0.05:
            terminal.say("Copies begin at the key frame before the hit; --reencode cuts at its start.")
        for path in written:
            terminal.say(f"wrote {path}")
    terminal.end(failed, sum(hit.path not in lost for hit in result), noun="hit")


def index_info(
    index: Annotated[str, typer.Argument(metavar="INDEX", help="Folder or address of an index."), _INDEX],
    files: Annotated[bool, typer.Option("--files", help="List the clips, and why bad files are bad.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Read every row and say whether all is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all as JSON.")] = False,
) -> None:
    """Say what an index holds, and whether it is whole.

    Examples:
        cavmae-sync index-info my.index --files
    """
    from ..data.clock import format_clock
    from ..search import MomentStore, index_status

    store = MomentStore.open(index)
    status = index_status(store, check=check)
    if not files:
        del status["entries"]
    if as_json:
        terminal.print_json(status)
        return
    covered = ", ".join(f"{rows} of {side}" for side, rows in status["approximate"].items())
    media = f"{status['files']} files, {format_clock(status['seconds'])} long"
    lines = {
        "index": status["index"],
        "model": f"{status['model'] or 'of no name'} (weights {status['weights'][:12]})",
        "run by": f"{'ONNX Runtime' if status['backend'] == 'onnx' else 'PyTorch'} in {status['precision']}",
        "moments": f"{status['moments']}, every {status['hop']:g} s, each hears {status['window_seconds']:g} s",
        "clips": f"{status['clips']} of {media}; {status['bad']} bad",
        "approximate index": covered or "none: searches are exact",
        "thumbnails": "yes" if status["thumbnails"] else "no",
    }
    if status["loose_rows"]:
        lines["left over"] = f"{status['loose_rows']} rows of runs that were stopped; the next run removes them"
    if check:
        lines["check"] = "all rows are there"
    for what, text in lines.items():
        terminal.say(f"{what + ':':<19}{printable(text)}")
    entries = store.entries().values() if files else ()
    for entry in sorted(entries, key=lambda entry: (entry.path, entry.start)):
        if entry.problem:
            terminal.say(f"- bad: {printable(entry.error.spelled(on_command_line))}")
        else:
            times = f"{format_clock(entry.start)} to {format_clock(entry.end)}, {entry.moments} moments"
            terminal.say(f"- {printable(entry.path)}: {times}")


def _print_hits(result: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    from ..data.clock import format_clock

    how = "every moment compared" if result.exact else "by the approximate index"
    title = f"{printable(result.title)}: {', '.join(result.pairs)} ({how})"
    if not len(result):
        terminal.say(f"{title}: nothing found; filters or the query's length leave no moment to compare.")
        return
    terminal.say(title)
    table = Table("", "score", "from", "to", "file", box=None, pad_edge=False)
    for number, hit in enumerate(result, 1):
        times = format_clock(hit.start), format_clock(hit.end)
        table.add_row(str(number), f"{hit.score:.3f}", *times, escape(printable(hit.path)))
    table.columns[-1].overflow = "fold"
    for column in table.columns[:-1]:
        column.justify, column.no_wrap = "right", True
    terminal.console.print(table, highlight=False)
