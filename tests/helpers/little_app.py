# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A video, uploads and watched processes for the tests of the web page."""

import json
import secrets
import subprocess
import wave
from pathlib import Path

import httpx
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


def write_tone(path: Path, seconds: float = 3.0) -> Path:
    """A WAV file of a tone that comes and goes."""
    times = np.arange(round(seconds * 16000)) / 16000
    samples = 0.3 * np.sin(2 * np.pi * 440 * times) * (times % 1.0 < 0.5)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


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
            return json.loads(json.dumps(intake.do_job(job, progress)))
        except ValueError as error:
            raise AppError(intake.describe_failure(error)["error"]) from error

    patch.setattr(guard, "_run", run)


class Visitor:
    """A browser's part of the talk with a running page, without the browser.

    Args:
        page: The page, which serves.
        session: What the browser calls its visit; by default a name of its own.
        headers: Of every request.
    """

    def __init__(self, page, session: str | None = None, **headers: str) -> None:
        self.page, self.session = page, session or secrets.token_hex(6)
        self.client = httpx.Client(base_url=page.local_url, headers=headers, timeout=120, trust_env=False)
        self.functions = {fn.name: number for number, fn in page.fns.items() if fn.fn is not None}

    def upload(self, content: bytes, name: str = "clip.mp4") -> httpx.Response:
        """Send a file; the answer to a good one is a list with the path of it."""
        return self.client.post("/gradio_api/upload", files=[("files", (name, content))])

    def ask(self, function: str, *data, way: str = "/gradio_api/queue/join") -> httpx.Response:
        """Ask for something; the answer to a good request tells its number."""
        if function == "take" and len(data) == 1:
            data = (*data, "As it plays")
        body = {"data": list(data), "fn_index": self.functions[function], "session_hash": self.session}
        return self.client.post(way, json=body)

    def wait(self, event: str) -> dict:
        """The output of a request, as soon as it is there."""
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ") or "{}")
                if message.get("msg") == "process_completed" and message["event_id"] == event:
                    return message["output"]
        raise AssertionError("the stream ended without an answer")

    def send(self, content: bytes, name: str = "clip.mp4", function: str = "take", *more) -> dict:
        """Send a file and ask for something with it; gives the view, or what Gradio says of an error."""
        sent = self.upload(content, name)
        if sent.status_code != 200:
            return {"error": sent.text}
        file = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}, "orig_name": name}
        joined = self.ask(function, file, *more)
        if joined.status_code != 200:
            return {"error": joined.json()["detail"]}
        output = self.wait(joined.json()["event_id"])
        return output["data"][0] if "data" in output else output
