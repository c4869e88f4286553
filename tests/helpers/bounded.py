"""A function is called in a process of its own, with limits of time and memory."""

import multiprocessing
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The fork server imports these once; its children start in milliseconds.
PRELOAD = ("cavmae_sync_hf.model.media_stream_cavmae_sync",)


@dataclass
class Outcome:
    """What became of a call.

    Attributes:
        kind: `"value"`, `"error"` (an exception), `"crash"` (the process died) or `"hang"` (it was too slow).
        value: What the function returned.
        reason: Type, message and place of the exception, or how the process ended.
        seconds: How long it took.
        peak: By how many bytes the resident memory grew at its highest.
    """

    kind: str
    value: Any = None
    reason: str = ""
    seconds: float = 0.0
    peak: int = 0


class BoundedCalls:
    """Calls `function` again and again in one other process, which is started anew when a call ended it.

    Args:
        function: A function of a module.
        seconds: Longest time of a call.
        memory: Bytes that a call may allocate beyond what the process has when it starts.
    """

    def __init__(self, function: Callable[..., Any], seconds: float, memory: int) -> None:
        self.function, self.seconds, self.memory = function, seconds, memory
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOAD))
        self._process = self._pipe = None

    def __call__(self, *arguments: Any) -> Outcome:
        """Call the function; no exception of it comes out of here."""
        if self._process is None:
            self._pipe, other = self._context.Pipe()
            self._process = self._context.Process(target=_serve, args=(other, self.function, self.memory), daemon=True)
            self._process.start()
            other.close()
            self._pipe.recv()  # it is ready
        begin = time.monotonic()
        self._pipe.send(arguments)
        try:
            if self._pipe.poll(self.seconds):
                outcome = self._pipe.recv()
            else:
                outcome = Outcome("hang", reason=f"not done after {self.seconds:g} s")
                self.close()
        except (EOFError, ConnectionError):
            self._process.join()
            outcome = Outcome("crash", reason=f"the process ended with {self._process.exitcode}")
            self.close()
        outcome.seconds = time.monotonic() - begin
        return outcome

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def __enter__(self) -> "BoundedCalls":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _status(name: str) -> int:
    """A line of `/proc/self/status` in bytes; 0 on systems without it."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":")), 0)


def _serve(pipe: Any, function: Callable[..., Any], memory: int) -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if hasattr(resource, "RLIMIT_AS") and _status("VmSize"):
        # What is reserved is more than what is used: threads of decoders reserve stacks and arenas of 64 MiB each.
        limit = _status("VmSize") + 2 * memory + (4 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send(None)
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        peak_reset = Path("/proc/self/clear_refs")
        if peak_reset.exists():
            peak_reset.write_text("5")  # the highest resident memory is counted from now on
        before = _status("VmRSS")
        try:
            outcome = Outcome("value", function(*arguments))
        except Exception as error:
            outcome = Outcome("error", reason=describe(error))
        outcome.peak = max(0, _status("VmHWM") - before)
        pipe.send(outcome)


def describe(error: BaseException) -> str:
    """Type, message and place of an exception, in one line."""
    place = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(place))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({where})"
