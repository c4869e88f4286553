"""Every subcommand with what its arguments stand for, and ways to get each of them wrong. Loads no torch."""

import importlib.metadata
import io
import json
import shlex
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_type_hints

import typer
from typer.models import OptionInfo, ParameterInfo

from cavmae_sync_hf import cli
from cavmae_sync_hf.cli import batch, kinds, model
from cavmae_sync_hf.cli.kinds import Kind, Needs


@dataclass(frozen=True)
class Argument:
    """An argument or option of a subcommand.

    Attributes:
        name: In Python.
        option: As the command line spells it; empty where it has a place.
        word: What help calls its value.
        kinds: What it stands for.
        required: Whether it must be given.
    """

    name: str
    option: str
    word: str
    kinds: tuple[Kind, ...]
    required: bool


def every_command(app: typer.Typer = cli.app, *above: str) -> Iterator[tuple[tuple[str, ...], Any, list[Argument]]]:
    """Words, function and arguments of each subcommand."""
    for info in app.registered_commands:
        yield (*above, str(info.name)), info.callback, _arguments(info.callback)
    for group in app.registered_groups:
        yield from every_command(group.typer_instance, *above, str(group.typer_instance.info.name))


def _arguments(function: Any) -> list[Argument]:
    hints = get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in signature(function).parameters.items():
        notes = getattr(hints.get(name), "__metadata__", ())
        info = next((note for note in notes if isinstance(note, ParameterInfo)), None)
        if info is None or info.hidden:
            continue
        option = ""
        if isinstance(info, OptionInfo):
            spelled = [word for word in info.param_decls or () if word.startswith("--")]
            option = spelled[0].split("/")[0] if spelled else f"--{name.replace('_', '-')}"
        own = tuple(note for note in notes if isinstance(note, Kind))
        found.append(Argument(name, option, str(info.metavar), own, parameter.default is Parameter.empty))
    return found


def _right(argument: Argument, place: Path) -> str:
    """A value that can be used."""
    for kind in argument.kinds:
        match kind:
            case kinds.ModelName():
                return "example"
            case kinds.FolderIn():
                return str(place / "full" if not kind.holds else place / "index")
            case kinds.SourceIn():
                return str(place / "full")
            case kinds.FileOut():
                return str(place / f"new{next(iter(kind.suffixes), '')}")
            case kinds.FolderOut() | batch.ResultsOut():
                return str(place / "new")
            case Needs():
                continue
            case _:
                return str(place / "clip.mp4")
    return "bash"


def _wrong(kind: Kind, place: Path) -> Iterator[tuple[str, str]]:
    """Values that cannot be used, and words of the message."""
    match kind:
        case kinds.ModelName():
            yield "exmple", "Did you mean example?"
            yield f"{place}/fulll", f"Did you mean {place}/full?"
            yield "full/model", "hf://full/model"
            yield "published:cav-mae-snc", "near are cav-mae-sync"
        case kinds.FileOut():
            suffix = next(iter(kind.suffixes), "")
            yield f"{place}/none/new{suffix}", "no such folder"
            yield f"{place}/full", "is a folder; name the file to write"
            if kind.what:
                (place / f"foreign{suffix}").write_text("notes", encoding="utf-8")
                yield f"{place}/foreign{suffix}", "is not replaced"
            (place / f"taken{suffix}").write_text(kind.marker, encoding="utf-8")
            yield f"{place}/taken{suffix}", "Add --overwrite to replace it."
            if kind.suffixes:
                yield f"{place}/new.odd", f"ends in {kind.suffixes[0]}"
        case kinds.FolderOut():
            yield f"{place}/clip.mp4", "is a file; name a folder"
            yield f"{place}/clip.mp4/new", "clip.mp4 is a file, not a folder"
            if kind.new:
                yield f"{place}/full", "is not"
        case kinds.FolderIn():
            yield f"{place}/fulll", f"no such {kind.what}. Did you mean {place}/full?"
            yield f"{place}/clip.mp4", "is a file; name a folder"
            if kind.holds:
                yield f"{place}/full", f"holds no {kind.what}"
        case kinds.SourceIn():
            yield f"{place}/fulll", f"Did you mean {place}/full?"
            yield f"{place}/*.mov", "no file matches this pattern"
            yield "full/clips", "no such file or folder"
        case batch.ResultsOut():
            yield from _wrong(kinds.FolderOut(), place)
            (place / "taken.csv").write_text("a,b", encoding="utf-8")
            yield f"{place}/taken.csv", "Add --overwrite to replace it."
            yield f"{place}/none/new.csv", "no such folder"
        case kinds.FileIn() | kinds.MediaIn() | model.CheckpointIn():
            yield f"{place}/clp.mp4", f"Did you mean {place}/clip.mp4?"
        case Needs():
            pass
        case _:
            raise TypeError(f"Say here what is wrong for a {type(kind).__name__}.")


def refusals(place: Path, pyproject: Path) -> Iterator[dict[str, Any]]:
    """Run every subcommand with each of its arguments wrong in each way; gives what was said.

    Args:
        place: An empty folder, which is the current one.
        pyproject: Says what the extras bring; none of that is installed, when it is asked for.
    """
    (place / "full").mkdir()
    (place / "index" / "moments.lance").mkdir(parents=True)
    for file in ("clip.mp4", "full/clip.mp4", "full/config.json"):
        (place / file).write_bytes(b"{}")
    for words, _, arguments in every_command():
        for argument in arguments:
            for kind in argument.kinds:
                for value, told in _wrong(kind, place):
                    yield _run(words, arguments, place, {argument.name: value}) | {"told": told}
    extras = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["optional-dependencies"]

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    lines = [f'{line} ; extra == "{extra}"' for extra, brought in extras.items() for line in brought]
    importlib.metadata.requires = lambda name: lines
    importlib.metadata.version = absent
    for words, function, arguments in every_command():
        for needs in getattr(function, "needs", ()):
            yield _run(words, arguments, place, {}) | {"told": f"pip install 'cavmae-sync-hf[{needs.extra}]'"}
        for argument in arguments:
            for needs in argument.kinds:
                if isinstance(needs, Needs) and not getattr(function, "needs", ()):
                    value = needs.value or _right(argument, place)
                    told = f"pip install 'cavmae-sync-hf[{needs.extra}]'"
                    yield _run(words, arguments, place, {argument.name: value}) | {"told": told}


def _run(words: tuple[str, ...], arguments: list[Argument], place: Path, given: dict[str, str]) -> dict[str, Any]:
    """The line, its exit code, what it said, and how long it took."""
    line = ["cavmae-sync", *words]
    for argument in arguments:
        if argument.required or argument.name in given:
            value = given.get(argument.name) or _right(argument, place)
            line += [argument.option, value] if argument.option else [value]
    sys.argv, code, torch = line, None, "torch" in sys.modules
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    out, err, begin = io.StringIO(), io.StringIO(), time.process_time()
    cli.terminal.errors.file = err
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    return {
        "line": shlex.join(line),
        "code": code,
        "out": out.getvalue(),
        "err": " ".join(err.getvalue().split()),
        "seconds": time.process_time() - begin,
        "torch": "torch" in sys.modules and not torch,
        "kept": before == after,
    }


if __name__ == "__main__":
    print(json.dumps(list(refusals(Path.cwd(), Path(sys.argv[1])))))
