# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What a batch writes down of a file that it leaves out.

Whatever goes wrong with one file of many becomes a `CavMaeSyncError` by `file_error`, and an entry of the report by
`Failure.of`: every batch has the same words and fields.
"""

import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model.errors_cavmae_sync import (
    CavMaeSyncError,
    Hint,
    MediaError,
    MediaNotFoundError,
    UnexpectedError,
    in_python,
    printable,
)
from .fetching import fault_of_machine

_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))


@dataclass(frozen=True)
class Failure:
    """A file that was left out of a batch.

    Attributes:
        name: The file.
        reason: Why, in words that name it.
        unexpected: Whether the program is at fault, or died, instead of refusing the file.
        place: Where in the code an unexpected exception was raised, `file:line function`.
    """

    name: str
    reason: str
    unexpected: bool = False
    place: str = ""

    @classmethod
    def of(cls, name: str, error: Exception, spell: Callable[[Hint], str | None] = in_python) -> "Failure":
        """The failure of a file by its error.

        Args:
            name: The file.
            error: Any exception.
            spell: Gives the error's remedies in the reader's words.
        """
        name = printable(name)
        known = file_error(error, name)
        reason = printable(" ".join(known.spelled(spell).splitlines()))
        if name not in reason:
            reason = f"{name}: {reason}"
        if isinstance(known, UnexpectedError):
            return cls(name, reason, unexpected=True, place=known.place)
        return cls(name, reason)

    def to_dict(self, name: str = "file", reason: str = "error") -> dict[str, Any]:
        """As JSON has it, with these names of the first two fields; where it came from only if it was unexpected."""
        values: dict[str, Any] = {name: self.name, reason: self.reason}
        return values | ({"unexpected": True, "place": self.place} if self.unexpected else {})


def file_error(error: BaseException, name: str) -> CavMaeSyncError:
    """The error of one file as an error of this package, caused by what was raised.

    Args:
        error: What was raised while the file was read. Errors of this package stay as they are; those of the system
            say that it cannot be read; any other is an `UnexpectedError` that names its type and place.
        name: What messages call the file.
    """
    if isinstance(error, CavMaeSyncError):
        return error
    known: CavMaeSyncError
    if isinstance(error, FileNotFoundError):
        known = MediaNotFoundError(f"{name}: is not there, or not any more; check the path.")
    elif fault_of_machine(error) is not None or (isinstance(error, OSError) and error.errno is not None):
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        known = MediaError(f"{name}: cannot be read ({printable(reason)}); mend access or disk, and run again.")
    else:
        told = printable(" ".join(str(error).split()))
        kind, place = type(error).__name__, place_of(error)
        known = UnexpectedError(
            f"{name}: {kind}{': ' if told else ''}{told} at {place or 'an unknown place'}; that is a fault of the "
            "program: report it.",
            place,
        )
    known.__cause__ = error
    return known


def passes(error: BaseException) -> bool:
    """Whether an error may be gone the next time, since the machine or the program is at fault, not the file."""
    return isinstance(error, UnexpectedError) or fault_of_machine(error) is not None


def _is_library(file: Path) -> bool:
    return not file.is_relative_to(_PACKAGE) and any(file.is_relative_to(folder) for folder in _LIBRARIES)


def place_of(error: BaseException) -> str:
    """Where an exception was raised, `file:line function`: the innermost place outside other packages, else of all."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    frame = next((frame for frame in reversed(frames) if not _is_library(Path(frame.filename))), frames[-1])
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
