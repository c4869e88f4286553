# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Subcommands over several files: what was named, one file after the other, and where their results go."""

import glob
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..model.errors_cavmae_sync import AlreadyExistsError, CavMaeSyncError, DiskError
from . import terminal
from .kinds import FileOut, FolderOut, Kind, Needs

if TYPE_CHECKING:
    from ..data.failures import Failure

# A file of such a name takes the table of all results; any other name is a folder for each one's own files.
TABLE_SUFFIXES = (".csv", ".json")


@dataclass(frozen=True)
class ResultsOut(Kind):
    """A file for a table of all results, or a folder for the files of each.

    Attributes:
        drawing: What the folder's plots are, as the beginning of a sentence.
    """

    drawing: str

    def check(self, value: Any, values: Mapping[str, Any]) -> None:
        if is_table(value):
            FileOut(TABLE_SUFFIXES).check(value, values)
            return
        FolderOut().check(value, values)
        Needs("plots", self.drawing).check()


def is_table(out: str | os.PathLike[str] | None) -> bool:
    """Whether results go into one table."""
    return out is not None and Path(out).suffix.lower() in TABLE_SUFFIXES and not Path(out).is_dir()


def find_files(names: Iterable[str], audio_files: bool = False) -> "tuple[list[str], list[Failure]]":
    """The files that were named, those of folders and patterns in order, and what nothing is found for.

    Args:
        names: Files, folders, patterns and addresses.
        audio_files: Whether folders and patterns also give files with audio alone.
    """
    from ..data import crashes

    names = list(names)
    # What a process that died has written into these folders is not looked for in them.
    return crashes.once("files", lambda: _find_files(names, audio_files))


def _find_files(names: Iterable[str], audio_files: bool) -> "tuple[list[str], list[Failure]]":
    found: list[str] = []
    failed: list[Failure] = []
    for name in names:
        is_pattern = glob.has_magic(name) and not os.path.exists(name)
        is_folder = os.path.isdir(name) or ("://" in name and name.endswith("/"))
        if not (is_pattern or is_folder) or name.startswith(("http://", "https://")):
            found.append(name)
            continue
        from ..data.sources import read_source

        try:
            records = read_source(name, audio_files=audio_files).records
            found += [record.path for record in records if record.path is not None]
        except CavMaeSyncError as error:
            failed += terminal.failures({name: error})
    return found, failed


def pair_audio(videos: Sequence[str], audio: Sequence[str] | None) -> list[tuple[str, str | None]]:
    """Videos with the audio tracks given for them, in their order.

    Raises:
        typer.BadParameter: There are not as many.
    """
    if not audio:
        return [(video, None) for video in videos]
    if len(audio) != len(videos):
        raise typer.BadParameter(f"--audio was given {len(audio)} times for {len(videos)} videos; once for each.")
    return list(zip(videos, audio, strict=True))


def each(
    names: Sequence[str], work: Callable[[int, Callable[..., None]], Any], what: str
) -> "tuple[dict[int, Any], list[Failure]]":
    """Work on file after file; gives results by number, and the files that were left out.

    What a process had done that then died of another file is not done again.

    Args:
        names: The files.
        work: Takes the number of a file, and what to call with seconds done and in all, and a remark instead. Its
            result can be pickled.
        what: What is done, for the progress.

    Raises:
        DiskError: There is no room for results, which the next file would meet, too.
    """
    from ..data import crashes

    done: dict[int, Any] = {}
    failed: list[Failure] = []

    def watched(number: int, name: str, tell: Callable[..., None]) -> Any:
        with crashes.reading(name, whole=True):
            return work(number, tell)

    with terminal.progress_bar(what) as show:
        for number, name in enumerate(names):

            def tell(seconds: int, total: int, remark: str = "", number: int = number) -> None:
                show(number, len(names), remark or (f"{seconds} of {total} s" if total else f"{seconds} s"))

            try:
                done[number] = crashes.once(f"result-{number}", partial(watched, number, name, tell))
            except DiskError:
                raise
            except Exception as error:
                failed += terminal.failures({name: error})
        show(len(names), len(names))
    return done, failed


class ResultFiles:
    """The files in a folder that take the results of each of several files.

    Args:
        folder: The folder, which is made when the first of them is written.
        names: The files; their places decide about names, so that another run gives the same.
        endings: What is written of each, and how its name ends.
        overwrite: Whether earlier results are replaced.

    Attributes:
        paths: Of each file the paths to write, by what they are.

    Raises:
        AlreadyExistsError: None of them could be written.
    """

    def __init__(self, folder: Path, names: Sequence[str], endings: Mapping[str, str], overwrite: bool) -> None:
        from ..data import crashes
        from ..files import check_free, file_stem

        self.overwrite = overwrite
        taken: set[str] = set()
        stems = [file_stem(name, taken) for name in names]
        self.paths = [{what: folder / f"{stem}.{ending}" for what, ending in endings.items()} for stem in stems]
        refused: list[AlreadyExistsError] = []
        for number, paths in enumerate(self.paths):
            try:
                check_free(*paths.values(), overwrite=overwrite or crashes.was_begun(f"files-{number}"))
            except AlreadyExistsError as error:
                refused.append(error)
        if refused and len(refused) == len(names):  # before the model is loaded
            raise refused[0]

    def begin(self, number: int) -> bool:
        """Refuse a file whose results are there, before it is worked on.

        Returns:
            Whether results are replaced: as asked for, or those that a process left that died of the file.
        """
        from ..data import crashes
        from ..files import check_free

        replacing = self.overwrite or crashes.was_begun(f"files-{number}")
        check_free(*self.paths[number].values(), overwrite=replacing)
        crashes.begin(f"files-{number}")
        return replacing


def write_table(
    out: Path, rows: Sequence[Mapping[str, Any]], values: Mapping[str, Any], *, overwrite: bool, as_json: bool
) -> None:
    """Write results as a table, or as the JSON that `--json` prints, as the file's name says.

    Args:
        out: The file.
        rows: Rows of the table.
        values: The JSON.
        overwrite: Whether an earlier file is replaced.
        as_json: Whether standard output is for JSON alone.
    """
    from ..files import write_csv, write_json

    if out.suffix.lower() == ".csv":
        write_csv(out, rows, overwrite=overwrite)
    else:
        write_json(out, values, overwrite=overwrite)
    if not as_json:
        terminal.say(f"wrote {out}")


__all__ = [
    "TABLE_SUFFIXES",
    "ResultFiles",
    "ResultsOut",
    "each",
    "find_files",
    "is_table",
    "pair_audio",
    "write_table",
]
