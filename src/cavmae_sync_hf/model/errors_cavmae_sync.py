# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Exceptions of the package, the remedies that they name, and names of files as messages show them."""

import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Joiners between letters and within emoji, which cannot be seen but belong to a name.
_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """A text on one line, as a terminal, a table and UTF-8 can hold it: file names may hold all but `/` and zero.

    Control characters, line breaks and what turns the direction of writing are written as `\\n`, `\\x1b` or `\\u202e`,
    bytes of a name that are not UTF-8 as `\\xe9`. Letters of every script, spaces and emoji stay.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(sign: str) -> str:
    if sign.isprintable() or sign in _JOINERS or unicodedata.category(sign) == "Zs":
        return sign
    if "\udc80" <= sign <= "\udcff":  # how Python keeps a byte that is not UTF-8
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return sign.encode("unicode_escape").decode("ascii")


@dataclass(frozen=True)
class Hint:
    """A remedy that is an argument with a value, kept apart from the message so that each reader sees their spelling.

    Attributes:
        argument: Name of the argument in Python, such as `"missing"`.
        value: What to pass, such as `"mask"`; `None` to leave the argument out; for settings a mapping of names to
            values.
        purpose: What that does, to follow "to", such as `"go on without it"`; may be empty.
    """

    argument: str
    value: Any
    purpose: str = ""

    def sentence(self, spell: "Callable[[Hint], str | None]") -> str:
        """The remedy and its purpose, as a sentence; empty where `spell` gives nothing."""
        words = spell(self)
        if not words:
            return ""
        told = f"{words} to {self.purpose}" if self.purpose else words
        return f"{told[0].upper()}{told[1:]}."


def in_python(hint: Hint) -> str:
    """A hint as Python writes it: `pass missing='mask'`."""
    if hint.value is None:
        return f"leave out {hint.argument}"
    return f"pass {hint.argument}={hint.value!r}"


def on_command_line(hint: Hint) -> str:
    """A hint as the command line writes it: `add --missing mask`, and settings as `add --set name=value`."""
    if isinstance(hint.value, Mapping):
        return "add " + " ".join(f"--set {name}={value}" for name, value in hint.value.items())
    option = f"--{hint.argument.replace('_', '-')}"
    if hint.value is None:
        return f"leave out {option}"
    if isinstance(hint.value, bool):
        return f"add {option}" if hint.value else f"add --no-{option[2:]}"
    return f"add {option} {hint.value}"


class _Told(Exception):
    """A message and its remedies.

    `str(error)` spells the hints for Python; `error.spelled(on_command_line)` for the command line. Errors can be
    pickled, and so come out of worker processes whole.

    Args:
        message: One or more sentences that name the file or value, the reason and the remedy.
        hint: Remedies that are arguments, each told in a sentence of its own after the message.
    """

    def __init__(self, message: str = "", *, hint: Hint | tuple[Hint, ...] = ()) -> None:
        super().__init__(message)
        self.hints: tuple[Hint, ...] = (hint,) if isinstance(hint, Hint) else tuple(hint)

    @property
    def message(self) -> str:
        """The message without hints."""
        return str(self.args[0]) if self.args else ""

    def spelled(self, spell: Callable[[Hint], str | None] = in_python) -> str:
        """Message and hints.

        Args:
            spell: Gives a hint in a reader's own words, without its purpose; `None` leaves the hint out.
        """
        sentences = [self.message, *(hint.sentence(spell) for hint in self.hints)]
        return " ".join(sentence for sentence in sentences if sentence)

    def __str__(self) -> str:
        return self.spelled()


class CavMaeSyncError(_Told, ValueError):
    """Base of this package's errors: what is wrong, with what, and the remedy.

    `str(error)` spells the hints for Python; `error.spelled(on_command_line)` for the command line. Errors can be
    pickled, and so come out of worker processes whole.

    Args:
        message: One or more sentences that name the file or value, the reason and the remedy.
        hint: Remedies that are arguments, each told in a sentence of its own after the message.
    """


class MediaWarning(_Told, UserWarning):
    """A media file is read as asked, and there is something about it that its reader may want otherwise.

    The text is the same however often a file is read, so that it can be shown once.

    Args:
        message: As in `CavMaeSyncError`.
        hint: As in `CavMaeSyncError`.
    """


class DataWarning(MediaWarning):
    """A table or a set is read as asked, and there is something about it that its reader may want otherwise."""


@contextmanager
def collected_remarks() -> Iterator[list[MediaWarning]]:
    """Collect each `MediaWarning` in a list instead of showing them, each text once, for a worker process to hand on.

    Warnings of other kinds are shown when the block ends.
    """
    remarks: dict[str, MediaWarning] = {}
    found: list[MediaWarning] = []
    others: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", MediaWarning)
            yield found
            for entry in seen:
                if isinstance(entry.message, MediaWarning):
                    remarks.setdefault(str(entry.message), entry.message)
                else:
                    others.append(entry)
            found += remarks.values()
    finally:
        for entry in others:
            warnings.showwarning(entry.message, entry.category, entry.filename, entry.lineno)


class MediaError(CavMaeSyncError):
    """A media file cannot be used."""


class MediaNotFoundError(MediaError, FileNotFoundError):
    """A media file does not exist."""

    def __str__(self) -> str:  # OSError has a text of its own
        return self.spelled()


class MissingTrackError(MediaError):
    """A media file lacks a track that is needed.

    Args:
        message: As in `CavMaeSyncError`.
        track: `"audio"` or `"video"`.
        hint: As in `CavMaeSyncError`.
    """

    def __init__(self, message: str = "", track: str = "", *, hint: Hint | tuple[Hint, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.args = (message, track)
        self.track = track


class ModelError(CavMaeSyncError):
    """A checkpoint cannot be loaded, converted, saved or paired with a processor."""


class SelfCheckError(ModelError):
    """True pairs of audio and video do not score above shuffled ones.

    Args:
        message: As in `CavMaeSyncError`.
        result: The `SelfCheckResult`.
    """

    def __init__(self, message: str = "", result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class DataError(CavMaeSyncError):
    """A collection of videos, a table, a shard or a SyncWorld folder cannot be read or written."""


class WorkerError(DataError):
    """Work in other processes, or the fetching of a file, could not be finished."""


class UnexpectedError(CavMaeSyncError):
    """A fault of the program, met while one file was read; of a batch it costs that file.

    Args:
        message: As in `CavMaeSyncError`.
        place: Where in the code it was raised, `file:line function`; empty where the process died.
    """

    def __init__(self, message: str = "", place: str = "") -> None:
        super().__init__(message)
        self.place = place


class LockedError(CavMaeSyncError):
    """Another run writes to the same folder."""


class AlreadyExistsError(CavMaeSyncError, FileExistsError):
    """A file or folder is there already, and is not replaced unless that is asked for."""

    def __str__(self) -> str:  # OSError has a text of its own
        return self.spelled()


class DiskError(CavMaeSyncError, OSError):
    """A file cannot be written: the disk is full, or the place refuses it. No input is to blame, so it ends a run."""

    def __str__(self) -> str:  # OSError has a text of its own
        return self.spelled()


class TrainingError(CavMaeSyncError):
    """A recipe, its arguments or its checkpoints cannot be used."""


class NonFiniteLossError(TrainingError, FloatingPointError):
    """A loss is not finite; no weight was changed by it.

    Args:
        message: As in `CavMaeSyncError`.
        clip_ids: Clips of the batch that are to blame, or all of them where none can be told.
        hint: As in `CavMaeSyncError`.
    """

    def __init__(self, message: str = "", clip_ids: Sequence[str] = (), *, hint: Hint | tuple[Hint, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.clip_ids = list(clip_ids)


class InferenceError(CavMaeSyncError):
    """Features, synchrony, localization or labels cannot be computed of a video."""


class EvaluationError(CavMaeSyncError):
    """A protocol, its data, a results file or a model card cannot be used."""


class SearchError(CavMaeSyncError):
    """An index or a query cannot be used."""


class QueryError(SearchError):
    """A query cannot be used."""


class ExportError(CavMaeSyncError):
    """A model cannot be exported, or an export cannot be run."""


class AppError(CavMaeSyncError):
    """The web page refuses a request."""


__all__ = [
    "AlreadyExistsError",
    "AppError",
    "CavMaeSyncError",
    "DataError",
    "DataWarning",
    "DiskError",
    "EvaluationError",
    "ExportError",
    "Hint",
    "InferenceError",
    "LockedError",
    "MediaError",
    "MediaNotFoundError",
    "MediaWarning",
    "MissingTrackError",
    "ModelError",
    "NonFiniteLossError",
    "QueryError",
    "SearchError",
    "SelfCheckError",
    "TrainingError",
    "UnexpectedError",
    "WorkerError",
    "collected_remarks",
    "in_python",
    "on_command_line",
    "printable",
]
