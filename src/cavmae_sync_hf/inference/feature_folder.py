# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What does a folder of extracted features hold, whose is it, and what of it is there already?

The folder belongs to one job: one model, one list of films, one set of settings. A film is done when its note lies in
the hidden work folder; when all are, their rows are joined, `manifest.json` vouches for the whole, and the work folder
goes.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..data.sources import describe_difference
from ..files import write_bytes
from ..model.errors_cavmae_sync import InferenceError
from .feature_files import PARTIAL, join_npy, npy_names, open_part, parquet_name, part_folder
from .windows import Film, WindowRow

__all__ = ["MANIFEST_NAME", "FeatureFolder", "check_folder", "nothing_came"]

MANIFEST_NAME = "manifest.json"
WORK_NAME = ".extract"
FORMAT = "cavmae-sync-features"
_FORMAT_VERSION = 1
_JOB_NAME, _PAIRING_NAME = "job.json", "pairing.json"


class FeatureFolder:
    """The folder of a job.

    Args:
        folder: Where it is.
        kind: `"npy"` or `"parquet"`.
        films: All films, in order.
        sizes: Feature name -> length of its vectors.
        model: Checksum of the model.
        settings: What decides the values of the rows.
        lines: One text per film that says which it is.
        digest: Checksum of the list of films.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        films: Sequence[Film],
        sizes: dict[str, int],
        *,
        model: str,
        settings: dict[str, Any],
        lines: list[str],
        digest: str,
    ) -> None:
        self.folder, self.kind, self.films, self.sizes, self.lines = folder, kind, films, sizes, lines
        self.work = folder / WORK_NAME
        self.identity: dict[str, Any] = {
            "format": FORMAT,
            "format_version": _FORMAT_VERSION,
            "files": kind,
            "model": model,
            "settings": settings,
            "source": digest,
        }

    def begin(self) -> list[int]:
        """Look at what is there; returns the numbers of the films that are missing.

        Raises:
            InferenceError: It belongs to another job.
        """
        for left in self.work.glob(f"{PARTIAL}*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        finished = _read_json(self.folder / MANIFEST_NAME)
        started = _read_json(self.work / _JOB_NAME)
        self._compare((started or finished or {}).get("identity"), (started or {}).get("lines"))
        if finished is not None and finished.get("complete") and self._all_files(finished):
            return []
        return [number for number in range(len(self.films)) if not self._is_whole(number)]

    def claim(self, pairing: list[dict[str, Any]]) -> None:
        """Write down whose folder it is from now on, and who got whose sound, if it was dealt out.

        Raises:
            InferenceError: An earlier run of the job dealt it out otherwise.
        """
        path = self.folder / _PAIRING_NAME
        if not self.is_claimed():
            job = {"identity": self.identity, "lines": self.lines}
            write_bytes(self.work / _JOB_NAME, json.dumps(job).encode(), workplace=self.work)
        if not pairing:
            return
        text = json.dumps(pairing, indent=0, ensure_ascii=False) + "\n"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise InferenceError(
                f"{self.folder}: the films have other lengths than when this was begun, so their sound would be dealt "
                "out otherwise; name another folder, or delete this one."
            )
        write_bytes(path, text.encode(), workplace=self.work)

    def is_claimed(self) -> bool:
        """Whether a run of this job has begun to write."""
        return (self.work / _JOB_NAME).is_file()

    def add(self, number: int, rows: Iterator[WindowRow]) -> None:
        """Write the rows of a film, and the note that says so; nothing of it stays if the rows end in an error."""
        part = open_part(self.kind, self.folder, self.work, number, self.sizes)
        try:
            for row in rows:
                part.add(row)
            count = part.finish()
        except BaseException:
            part.abandon()
            raise
        write_bytes(self._note(number), json.dumps({"rows": count}).encode(), workplace=self.work)

    def finish(self, failed: dict[str, str], facts: dict[str, Any]) -> int:
        """Join what is there and write the manifest.

        Args:
            failed: Name of each film that gave no rows -> why.
            facts: What else the manifest says.

        Returns:
            The number of rows; with none, nothing is written.
        """
        done = {number: self._rows_of(number) for number in range(len(self.films)) if self._is_whole(number)}
        if not done:
            return 0
        # While files are exchanged no manifest vouches for them.
        (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
        total = sum(done.values())
        if self.kind == "npy":
            join_npy(self.folder, self.work, list(done), total, self.sizes)
        manifest = {
            "identity": self.identity,
            "complete": not failed,
            "rows": total,
            "features": self.sizes,
            "films": self._entries(done),
            "failed": failed,
            **facts,
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        write_bytes(self.folder / MANIFEST_NAME, text.encode(), workplace=self.work)
        return total

    def leave(self) -> None:
        """Remove what only a further run would need, and the folder itself if there is nothing else in it."""
        shutil.rmtree(self.work, ignore_errors=True)
        if not (self.folder / MANIFEST_NAME).exists():
            (self.folder / _PAIRING_NAME).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def rows(self) -> int:
        """Rows of a folder in which nothing is missing."""
        return int((_read_json(self.folder / MANIFEST_NAME) or {}).get("rows", 0))

    def _compare(self, before: dict[str, Any] | None, lines: list[str] | None) -> None:
        if before is None or before == self.identity:
            return
        old, new = before.get("settings", {}), self.identity["settings"]
        changed = [key for key in new if old.get(key) != new[key]]
        if before.get("files") != self.kind:
            what = f"is in the format {before.get('files')}, not {self.kind}"
        elif changed:
            key = changed[0]
            shown = [", ".join(value) if isinstance(value, dict) else value for value in (old.get(key), new[key])]
            what = f"was begun with {key}={shown[0]}, now it is {shown[1]}"
        elif before.get("model") != self.identity["model"]:
            what = "holds the features of another model (other weights, configuration or processor)"
        else:
            told = describe_difference(lines, self.lines) if lines else "other files, or files of other sizes"
            what = f"holds the features of another list of films ({told})"
        raise InferenceError(f"{self.folder}: {what}; name another folder, or delete this one.")

    def _all_files(self, manifest: dict[str, Any]) -> bool:
        names = npy_names(self.sizes) if self.kind == "npy" else [film["part"] for film in manifest["films"]]
        return all((self.folder / name).is_file() for name in names)

    def _is_whole(self, number: int) -> bool:
        part = part_folder(self.work, number) if self.kind == "npy" else self.folder / parquet_name(number)
        return self._note(number).is_file() and part.exists()

    def _rows_of(self, number: int) -> int:
        return int((_read_json(self._note(number)) or {})["rows"])

    def _entries(self, done: dict[int, int]) -> list[dict[str, Any]]:
        entries, first = [], 0
        for number, rows in done.items():
            film = self.films[number]
            entry: dict[str, Any] = {"id": film.id, "file": film.name, "rows": rows}
            entry |= {"first_row": first} if self.kind == "npy" else {"part": parquet_name(number)}
            entries.append(entry)
            first += rows
        return entries

    def _note(self, number: int) -> Path:
        return self.work / f"{part_folder(self.work, number).name}.json"


def check_folder(out: str | os.PathLike[str]) -> Path:
    """The folder to write to; refuses what is not one, or holds something else."""
    if re.match(r"\w[\w.+-]+:/", os.fspath(out)):
        raise InferenceError(f"{os.fspath(out)}: features are written to a folder here; upload the folder afterwards.")
    folder = Path(out).absolute()
    if folder.exists() and not folder.is_dir():
        raise InferenceError(f"{folder}: is a file; name a new or empty folder.")
    ours = (folder / WORK_NAME).is_dir() or (_read_json(folder / MANIFEST_NAME) or {}).get("identity", {}).get(
        "format"
    )
    if folder.is_dir() and ours not in (True, FORMAT) and any(folder.iterdir()):
        raise InferenceError(f"{folder}: holds other files; name a new or empty folder.")
    return folder


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, `None` where there is none that can be read."""
    with suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else None
    return None


def nothing_came(failed: dict[str, str]) -> str:
    """Says why there is not one row."""
    reasons = list(failed.values())
    if len(reasons) == 1:
        return reasons[0]
    return f"None of {len(reasons)} films could be used. The first: {reasons[0]}"
