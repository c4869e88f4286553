# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A video, uploads and watched processes for the tests of the web page."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from cavmae_sync_hf import AppError
from cavmae_sync_hf.app import guard, intake
from helpers.clips import clicks, write_clip

RATE = 48000
PLAYLIST = "#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n"


def make_video(path: Path) -> Path:
    """Two seconds; at 0 and 1 s a flash and a click."""
    return write_clip(path, frame=_flash, audio=clicks([0.0, 1.0], 2.0, RATE), rate=RATE)


def _flash(number: int, time: float, size=(64, 48)) -> np.ndarray:
    """White in the first frames of every second, black otherwise."""
    return np.full((size[1], size[0], 3), 255 if time % 1.0 < 0.1 else 0, np.uint8)


def send(workspace, source: Path, name: str | None = None) -> Path:
    """Put a file where an upload would be."""
    folder = workspace.uploads / "0123"
    folder.mkdir(exist_ok=True)
    target = folder / (name or source.name)
    target.write_bytes(source.read_bytes())
    return target


def watch_processes(patch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    """Processes that are started from now on."""
    started: list[subprocess.Popen] = []
    popen = subprocess.Popen

    def start(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    patch.setattr(subprocess, "Popen", start)
    return started


def decode_here(patch: pytest.MonkeyPatch) -> None:
    """Decode without a process of its own, which takes seconds to start; `test_app_guard.py` tests that."""

    def run(job, seconds, progress):
        try:
            return intake.do_job(job, progress)
        except ValueError as error:
            raise AppError(str(error)) from error

    patch.setattr(guard, "_run", run)
