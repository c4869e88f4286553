# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Copies of uploaded files, made in a process of its own so that no file can harm the server.

Its size and first bytes are looked at here, before anything decodes it. Decoding happens in a process of its own
(`intake.py`) that is killed when it takes too long, that the system stops when it takes too much memory, processor
time or disk, and that knows nothing of the server's environment: a hole in a decoder finds no secrets there.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ..model.errors_cavmae_sync import AppError, MediaError
from ..model.media_source_cavmae_sync import MediaSource
from .spelling import on_page
from .workspace import Limits

# A `clip` is a video, or audio alone; a `query` an image too; `dub` puts the audio of a file to the frames of a clip.
Kind = Literal["video", "audio", "image", "clip", "query", "dub"]

logger = logging.getLogger(__name__)

_NAME_LENGTH = 80
# These two join or part letters, in Persian and in scripts of India.
_JOINERS = "\u200c\u200d"
_SAFE_VARIABLES = ("PATH", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "LD_LIBRARY_PATH")
# Without the registration with transformers, which decoding does not need (see `cavmae_sync_command`).
_PROGRAM = (
    "import sys; sys.path[:0] = sys.argv[1:]\n"
    "import cavmae_sync_command as command; command.defer_registration = True\n"
    "from cavmae_sync_hf.app.intake import main; main()\n"
)


def display_name(path: str | os.PathLike[str]) -> str:
    """What to call an uploaded file in messages: its last part, without what could disturb the page, not too long."""
    last = os.fspath(path).replace("\\", "/").rsplit("/", 1)[-1]
    # Control characters, and those that turn the direction of writing, would make a name look like another.
    unseen = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    last = "".join(c for c in last if c in _JOINERS or unicodedata.category(c) not in unseen).strip()
    if not last.strip("." + _JOINERS):
        return "your file"
    return last if len(last) <= _NAME_LENGTH else f"{last[: _NAME_LENGTH - 16]}…{last[-15:]}"


def copy_safely(
    upload: str | os.PathLike[str],
    target: Path,
    kind: Kind,
    limits: Limits,
    *,
    name: str | None = None,
    audio: dict[str, Any] | None = None,
    frames: Path | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> dict[str, Any]:
    """Decode an upload in a process of its own and write what is in it anew.

    Args:
        upload: The file that came.
        target: The copy to write: mp4 of a video, WAV of audio, PNG of an image. It is there as a whole or not at
            all.
        kind: What is wanted of it.
        limits: How large and long it may be, and how much decoding it may take.
        name: What to call it in messages.
        audio: What of its audio to take, as for `intake.copy_video`.
        frames: The clip that gets the audio, where it is dubbed.
        progress: Called with the seconds that are done, of how many; what it raises ends the process.

    Returns:
        Facts of the copy, such as its `kind`, `duration`, `width` and `height`, and `remarks` about the file.

    Raises:
        AppError: The file cannot be used; the message is for the one who sent it.
    """
    upload = Path(upload).absolute()
    name = display_name(name or upload)
    _check_size(upload, name, limits)
    if kind not in ("image", "query"):
        _look(upload, name)
    partial = target.with_name(f"{target.stem}.partial{target.suffix}")
    job = {
        "source": os.fspath(upload),
        "target": os.fspath(partial),
        "name": name,
        "kind": kind,
        "audio": audio,
        "frames": None if frames is None else os.fspath(frames),
        "max_seconds": limits.seconds,
        "max_pixels": limits.pixels,
        "memory": limits.decode_memory,
        # All threads count, hence more than the time by the clock.
        "cpu_seconds": 2 * limits.decode_seconds,
        "file_bytes": limits.copy_bytes,
    }
    try:
        result = _run(job, limits.decode_seconds, progress)
        os.replace(partial, target)
        return result
    finally:
        partial.unlink(missing_ok=True)


def _check_size(upload: Path, name: str, limits: Limits) -> None:
    try:
        size = upload.stat().st_size
    except OSError as error:
        raise AppError(f"{name}: the upload is not there any more; send it again.") from error
    if size > limits.max_bytes:
        raise AppError(
            f"{name}: is {size / 1e6:.0f} MB large, and at most {limits.megabytes:g} MB are taken here. Cut out the "
            "part that matters or save it smaller."
        )


def _look(upload: Path, name: str) -> None:
    """Refuse by its first bytes what is no media file."""
    try:
        with MediaSource(upload, name):
            pass
    except MediaError as error:
        raise AppError(error.spelled(on_page)) from error


def _run(job: dict[str, Any], seconds: float, progress: Callable[[float, float], None] | None) -> dict[str, Any]:
    """Run the process to its end, or end it."""
    variables = {key: value for key, value in os.environ.items() if key in _SAFE_VARIABLES}
    variables |= {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": ""}
    package = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _PROGRAM, os.fspath(package)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # FFmpeg's words on a stranger's file are of use to nobody
        env=variables,
        cwd=Path(job["target"]).parent,
        start_new_session=True,
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        _kill(process)

    clock = threading.Timer(seconds, stop)
    clock.start()
    last: dict[str, Any] = {}
    try:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(json.dumps(job).encode())
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                last = json.loads(line)
            if "done" in last and progress is not None:
                progress(last["done"], last["total"])
        process.wait()
    finally:
        clock.cancel()
        _kill(process)
        if process.stdout is not None:
            process.stdout.close()
    if "result" in last:
        return last["result"]
    if "details" in last:
        logger.warning("An upload could not be decoded: %s", last["details"])
    raise AppError(_reason(job["name"], last, process.returncode, seconds=seconds, late=late.is_set()))


def _reason(name: str, last: dict[str, Any], code: int, *, seconds: float, late: bool) -> str:
    """In plain words, why there is no result."""
    remedy = "Cut out the part that matters, or save it smaller or in another format such as mp4."
    if late or (code < 0 and -code == getattr(signal, "SIGXCPU", None)):
        return f"{name}: decoding took longer than the {seconds:g} s that are allowed here and was stopped. {remedy}"
    if last.get("failed") == "memory":
        return f"{name}: decoding needs more memory than is allowed here and was stopped. {remedy}"
    if code < 0 and -code == getattr(signal, "SIGXFSZ", None):
        return f"{name}: its copy grows larger than is allowed here and was stopped. {remedy}"
    if "error" in last:
        return str(last["error"])
    return f"{name}: the decoder broke on this file, which is damaged or made to do harm. {remedy}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it has started, and wait until it is gone."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
