# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What the arguments of subcommands stand for, and what is looked for before a subcommand works.

A kind stands beside typer's own words in an `Annotated` type. It is checked before the subcommand runs, and so before
torch is loaded: a mistyped path is told at once. Kinds do not open files; what is in them is the library's to judge.
"""

import functools
import glob
import importlib.metadata
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from packaging.requirements import Requirement

from ..model.errors_cavmae_sync import (
    AlreadyExistsError,
    CavMaeSyncError,
    DataError,
    DiskError,
    MediaError,
    MediaNotFoundError,
    printable,
)
from . import terminal

_DISTRIBUTION = "cavmae-sync-hf"


class Kind(ABC):
    """What an argument stands for."""

    @abstractmethod
    def check(self, value: Any, values: Mapping[str, Any]) -> None:
        """Refuse a value that cannot be used.

        Args:
            value: Of the argument; not `None`.
            values: Of all arguments of the subcommand.
        """


@dataclass(frozen=True)
class Needs(Kind):
    """Packages that an extra of this package brings, by an argument's value or, of a function, in any case.

    Attributes:
        extra: The extra.
        purpose: What needs it, as the beginning of a sentence.
        value: With which value of the argument it is needed; default: with any but `False`.
        packages: Which of the extra's packages are needed; default: all.
    """

    extra: str
    purpose: str
    value: Any = None
    packages: tuple[str, ...] = ()

    def check(self, value: Any = True, values: Mapping[str, Any] | None = None) -> None:
        if value is False or self.value not in (None, value):
            return
        try:
            lacking = [text for name, text in _lacking(self.extra) if name in self.packages or not self.packages]
        except importlib.metadata.PackageNotFoundError:  # a source tree: the import will tell
            return
        if lacking:
            from ..provenance import install_line

            raise ImportError(f"{self.purpose} needs {', '.join(lacking)}: {install_line(self.extra)}")


def _lacking(extra: str) -> list[tuple[str, str]]:
    """Distributions of an extra that are not installed, or of a version that does not fit: names, and how to tell."""
    found: list[tuple[str, str]] = []
    for line in importlib.metadata.requires(_DISTRIBUTION) or ():
        requirement = Requirement(line)
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.marker.evaluate({"extra": ""}):
            continue  # of the package itself
        if requirement.name == _DISTRIBUTION:
            found += [entry for inner in sorted(requirement.extras) for entry in _lacking(inner)]
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found.append((requirement.name, requirement.name))
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                text = f"{requirement.name}{requirement.specifier} (there is {version})"
                found.append((requirement.name, text))
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class ModelName(Kind):
    """A model: folder, `example`, `published:NAME` or Hub name.

    Attributes:
        loaded: Whether the subcommand loads it, which takes seconds and is announced.
        unnamed: What is announced where no name is given; nothing by default.
    """

    loaded: bool = True
    unnamed: str = ""

    def check(self, value: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
        from ..names import check_model_name

        check_model_name(os.fspath(value))


@dataclass(frozen=True)
class FileIn(Kind):
    """A file to read, or several."""

    def check(self, value: Any, values: Mapping[str, Any]) -> None:
        from ..names import nothing_at

        for path in map(os.fspath, value if isinstance(value, list) else [value]):
            if "://" in path:
                continue
            if os.path.isdir(path):
                raise DataError(f"{printable(path)}: is a folder; name a file.")
            if not os.path.exists(path):
                raise DataError(nothing_at(path, "file"))


@dataclass(frozen=True)
class FolderIn(Kind):
    """A folder to read, or an address.

    Attributes:
        what: What it is.
        holds: What lies in every folder of this kind.
        remedy: How one is made, where that helps; a sentence.
    """

    what: str = "folder"
    holds: str = ""
    remedy: str = ""

    def check(self, value: Any, values: Mapping[str, Any]) -> None:
        from ..names import nothing_at

        path = os.fspath(value)
        if "://" in path:
            return
        if not os.path.isdir(path):
            found = f"{printable(path)}: is a file; name a folder." if os.path.exists(path) else ""
            raise DataError(f"{found or nothing_at(path, self.what)} {self.remedy}".strip())
        if self.holds and not os.path.exists(os.path.join(path, self.holds)):
            raise DataError(f"{printable(path)}: holds no {self.what}. {self.remedy}".strip())


@dataclass(frozen=True)
class MediaIn(Kind):
    """Media: a file, an address, or several, of which one that is missing costs itself alone.

    Attributes:
        folders: Whether folders, and patterns with `*`, stand for the files in them.
    """

    folders: bool = False

    def check(self, value: Any, values: Mapping[str, Any]) -> None:
        faults = [self._fault(path) for path in map(os.fspath, value if isinstance(value, list) else [value])]
        first = next(iter(faults), None)
        if first is not None and all(faults):
            raise first

    def _fault(self, path: str) -> CavMaeSyncError | None:
        from ..names import nothing_at

        if "://" in path or os.path.exists(path):
            if os.path.isdir(path) and not self.folders:
                return MediaError(f"{printable(path)}: is a folder; pass the media files inside it.")
            return None
        if self.folders and glob.has_magic(path):
            return None if _matches(path) else MediaNotFoundError(f"{printable(path)}: no file matches this pattern.")
        return MediaNotFoundError(nothing_at(path, "file"))


@dataclass(frozen=True)
class SourceIn(Kind):
    """A source of clips: folder, pattern, list, address, or a data set of the Hub."""

    def check(self, value: Any, values: Mapping[str, Any]) -> None:
        from ..data.tables import is_data_set_name
        from ..names import nothing_at

        path = os.fspath(value)
        if "://" in path or os.path.exists(path):
            return
        if glob.has_magic(path):
            if not _matches(path):
                raise DataError(f"{printable(path)}: no file matches this pattern; check the path.")
        elif not is_data_set_name(path):
            raise DataError(nothing_at(path))


@dataclass(frozen=True)
class FileOut(Kind):
    """A file to write, in a folder that is there; an earlier one is not replaced without `--overwrite`.

    Attributes:
        suffixes: What its name may end in, which decides its format; empty for none; default: anything.
        what: What is written, where nothing else is ever replaced by it.
        marker: What every such file says.
        beside: The argument of a folder that is made, in which the file may lie.
    """

    suffixes: tuple[str, ...] = ()
    what: str = ""
    marker: str = ""
    beside: str = ""

    def check(self, value: Any, values: Mapping[str, Any]) -> None:
        from ..files import check_free
        from ..names import nothing_at

        path = Path(value)
        if self.suffixes and path.suffix.lower() not in self.suffixes and not path.is_dir():
            known = " or ".join(filter(None, self.suffixes))
            raise DataError(f"{printable(str(path))}: the name of a file to write ends in {known} here.")
        if path.is_dir():
            raise AlreadyExistsError(f"{printable(str(path))} is a folder; name the file to write.")
        if self.what and path.is_file() and self.marker not in path.read_text("utf-8", errors="replace"):
            raise AlreadyExistsError(
                f"{printable(str(path))} exists and is no {self.what}, so it is not replaced; name another file."
            )
        check_free(path, overwrite=bool(values.get("overwrite")))
        made = values.get(self.beside)
        if not path.parent.is_dir() and not (made and path.absolute().parent == Path(made).absolute()):
            raise DataError(nothing_at(str(path.parent), "folder"))
        _check_writable(path)


@dataclass(frozen=True)
class FolderOut(Kind):
    """A folder to write to, or an address; folders above it are made.

    Attributes:
        new: Whether it must be new or empty, unless `--overwrite` is given.
    """

    new: bool = False

    def check(self, value: Any, values: Mapping[str, Any]) -> None:
        if "://" in os.fspath(value):
            return
        path = Path(value)
        if os.path.lexists(path) and not path.is_dir():
            raise AlreadyExistsError(f"{printable(str(path))} is a file; name a folder to write to.")
        if self.new and path.is_dir() and any(path.iterdir()) and not values.get("overwrite"):
            from ..files import taken

            if "overwrite" in values:
                raise taken(path)
            raise AlreadyExistsError(f"{printable(str(path))} is not empty; name a new or an empty folder.")
        for above in path.parents:
            if above.exists() and not above.is_dir():
                raise AlreadyExistsError(f"{printable(str(path))}: {printable(str(above))} is a file, not a folder.")
        _check_writable(path / "file")


def _check_writable(path: Path) -> None:
    above = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    if above is not None and not os.access(above, os.W_OK | os.X_OK):
        raise DiskError(
            f"{printable(str(path))}: cannot be written (Permission denied in {printable(str(above))}); mend the "
            "access, or name another place."
        )


def _matches(pattern: str) -> bool:
    return next(glob.iglob(pattern, recursive=True), None) is not None


def kinds_of(function: Callable[..., Any]) -> Iterator[tuple[str, Kind]]:
    """The kinds of a subcommand's arguments, with their names."""
    for name, hint in get_type_hints(function, include_extras=True).items():
        for note in getattr(hint, "__metadata__", ()):
            if isinstance(note, Kind):
                yield name, note


def prepared(function: Callable[..., Any], *needs: Needs) -> Callable[..., Any]:
    """A subcommand that first looks for what it needs, and then says that it loads its model, where it does.

    Its attribute `needs` has the extras.

    Args:
        function: The subcommand.
        needs: Extras that it needs, whatever its arguments.
    """
    kinds = list(kinds_of(function))

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        values = inspect.signature(function).bind(*args, **options).arguments
        for extra in needs:
            extra.check()
        for name, kind in kinds:
            if values.get(name) is not None:
                kind.check(values[name], values)
        for name, kind in kinds:
            if isinstance(kind, ModelName) and kind.loaded:
                shown = values.get(name) or kind.unnamed
                if shown:
                    terminal.note(f"loading model {printable(shown)} ...")
        return function(*args, **options)

    run.needs = needs  # type: ignore[attr-defined]
    return run


__all__ = [
    "FileIn",
    "FileOut",
    "FolderIn",
    "FolderOut",
    "Kind",
    "MediaIn",
    "ModelName",
    "Needs",
    "SourceIn",
    "kinds_of",
    "prepared",
]
