# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Engines that run tasks: in this process, in processes of this machine, or on a Ray cluster.

An engine is given a function and tasks and yields the results in any order. The function is called as
`function(task, begin, skip)`: it announces each item of the task with `begin(place)`, and leaves out the places in
`skip`. So a process that dies is known to have died of an item.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from ..model.errors_cavmae_sync import WorkerError
from ..provenance import install_line
from .failures import place_of

# A decoder that dies of a file dies of one of these; the file is left out for good. Anything else (SIGKILL by the
# kernel when memory runs out, SIGTERM by an operator) may not happen another time.
_CRASHES = frozenset(
    getattr(signal, name) for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL") if hasattr(signal, name)
)
# Once may be chance.
_CRASHES_UNTIL_SKIPPED = 2
# So many items of which processes died, and no task done in between: it is not the items.
_MOST_SKIPPED_IN_A_ROW = 20
# How the reason begins for which an item of which the decoder crashes is left out.
DECODER_CRASHES = "the decoder crashes on it"
# A process that has not worked at all for so long waits for a file that does not come.
STALLED_SECONDS = 120.0
_WORK_SECONDS = 0.005
# How long the end of a process is waited for; one that waits for a dead disk cannot be ended.
_PATIENCE_SECONDS = 5.0
# So often Ray's own processes are given a task of which they die.
_RAY_TRIES = 2
# What workers import before they are needed: where processes are forked from a server, only once for all.
_PRELOAD = ["cavmae_sync_hf.data.prepare"]


@contextlib.contextmanager
def worker_deaths() -> Iterator[None]:
    """The death of a loader's worker process, for which torch has no error of its own, as a `WorkerError`."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise WorkerError(
            f"A process that loads clips died ({' '.join(str(error).split())}); memory may have run out, or a decoder "
            "crashed: use fewer of them, or none to see of which clip."
        ) from error


def run_here(
    function: Callable[..., Any], tasks: Sequence[Any], progress: Callable[[int], None] | None = None
) -> Iterator[Any]:
    """Run tasks one after the other in this process.

    Args:
        function: `function(task, begin, skip)`.
        tasks: What it is called with.
        progress: Called with the number of items finished in tasks that are not finished.

    Yields:
        Results, in the order of the tasks.
    """
    for task in tasks:
        yield function(task, progress or (lambda place: None), {})


def run_processes(
    function: Callable[..., Any],
    tasks: Sequence[Any],
    workers: int,
    progress: Callable[[int], None] | None = None,
    *,
    stalled_after: float = STALLED_SECONDS,
) -> Iterator[Any]:
    """Run tasks in processes of this machine.

    An item of which a process dies twice (by a fault of a decoder, or because memory ends) is left out from then on,
    and at once one for which it waits without working; the function is told why. When the function raises, or
    processes die of everything, all are ended.

    Args:
        function: `function(task, begin, skip)`; it, the tasks and the results can be pickled.
        tasks: What it is called with.
        workers: Number of processes.
        progress: Called with the number of items finished in tasks that are not finished.
        stalled_after: Seconds for which a process may wait for an item without working.

    Yields:
        Results as they come.

    Raises:
        WorkerError: Processes die before they begin with an item, or of one after the other; or the function raised.
    """
    waiting = deque(tasks)
    deaths = _Deaths()
    skips = deaths.skips
    team: list[_Worker] = []
    try:
        team = [_Worker(function, stalled_after) for _ in range(min(workers, len(waiting)))]
        for worker in team:
            worker.give(waiting.popleft(), skips)
        while any(worker.task is not None for worker in team):
            ready = set(wait([item for worker in team for item in worker.handles]))
            for place, worker in enumerate(team):
                if not ready & set(worker.handles):
                    continue
                kind, value = worker.receive()
                if kind == "begin":
                    if progress is not None:
                        progress(sum(member.finished for member in team))
                    continue
                if kind == "done":
                    worker.task = None
                    deaths.in_a_row = 0
                    yield value
                elif kind == "error":
                    raise WorkerError(value)
                elif kind in ("dead", "stalled"):
                    deaths.note(worker, value, stalled=kind == "stalled", seconds=stalled_after)
                    waiting.appendleft(worker.task)
                    team[place] = worker = _Worker(function, stalled_after)
                if waiting:
                    worker.give(waiting.popleft(), skips)
    finally:
        for worker in team:
            worker.end()


class _Deaths:
    """What processes died of.

    Attributes:
        skips: Number of a task -> places of the items to leave out, and why.
        in_a_row: Items left out since a task was done.
    """

    def __init__(self) -> None:
        self.skips: dict[int, dict[int, str]] = {}
        self.in_a_row = 0
        self._counts: dict[tuple[int, int], int] = {}

    def note(self, worker: "_Worker", exit_code: int, *, stalled: bool, seconds: float) -> None:
        """Count the death of a process, or its waiting in vain; raise an error when it says nothing of its item."""
        number, place = getattr(worker.task, "number", 0), worker.place
        try:
            cause = signal.Signals(-exit_code).name
        except ValueError:
            cause = f"exit code {exit_code}"
        memory = ""
        if -exit_code == getattr(signal, "SIGKILL", 9):
            memory = "; memory may have run out: use fewer workers"
        if place < 0:
            hint = memory
            if exit_code > 0:
                hint = "; a script that starts processes must do so under `if __name__ == '__main__':`"
            raise WorkerError(f"A worker process was ended by {cause} before it worked on shard {number}{hint}.")
        self._counts[number, place] = self._counts.get((number, place), 0) + 1
        if self._counts[number, place] < _CRASHES_UNTIL_SKIPPED and not stalled:
            return
        if stalled:
            why = f"nothing came of it for {seconds:g} s; check the disk or the network, and run again"
        elif -exit_code in _CRASHES:
            why = f"{DECODER_CRASHES} ({cause})"
        else:
            why = f"the process that read it was ended by {cause}, {self._counts[number, place]} times{memory}"
        self.skips.setdefault(number, {})[place] = why
        self.in_a_row += 1
        if self.in_a_row == _MOST_SKIPPED_IN_A_ROW:
            raise WorkerError(f"Worker processes die of one clip after the other, the last time by {cause}{memory}.")


def _start_server() -> None:
    """Start the process that workers are forked from, deaf to Ctrl-C from the first; it takes seconds to import."""
    if threading.current_thread() is not threading.main_thread():
        forkserver.ensure_running()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the process inherits
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


class _Worker:
    """A process of this machine and its task."""

    def __init__(self, function: Callable[..., Any], stalled_after: float) -> None:
        # Never as a copy of this process, whose threads a copy would lack.
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload(_PRELOAD)
            _start_server()
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, function, stalled_after), daemon=True)
        self.process.start()
        other.close()
        self.task: Any = None
        self.place = -1

    @property
    def handles(self) -> list[Any]:
        """What becomes ready when there is a message."""
        return [self.connection, self.process.sentinel] if self.task is not None else []

    @property
    def finished(self) -> int:
        """Items finished of a task that is not."""
        return max(0, self.place) if self.task is not None else 0

    def give(self, task: Any, skips: dict[int, dict[int, str]]) -> None:
        self.task, self.place = task, -1
        # A process that died at its start is found out by its sentinel.
        with contextlib.suppress(OSError):
            self.connection.send((task, skips.get(getattr(task, "number", 0), {})))

    def receive(self) -> tuple[str, Any]:
        """The next message; a dead process's last messages come before its death."""
        try:
            if self.connection.poll():
                kind, value = self.connection.recv()
                if kind == "begin":
                    self.place = value
                return kind, value
        except (EOFError, OSError):
            pass
        self.process.join()
        return "dead", self.process.exitcode or 0

    def end(self) -> None:
        self.connection.close()
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(_PATIENCE_SECONDS)
            self.process.kill()
        self.process.join(_PATIENCE_SECONDS)


def _serve(connection: Connection, function: Callable[..., Any], stalled_after: float) -> None:
    """Run tasks in a worker process and send messages about them, until nobody listens."""
    # Ctrl-C reaches the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    place = -1

    def begin(number: int) -> None:
        nonlocal place
        place = number
        connection.send(("begin", number))

    def watch() -> None:
        while True:
            seen, worked = place, time.process_time()
            time.sleep(stalled_after)
            if place >= 0 and place == seen and time.process_time() - worked < _WORK_SECONDS:
                connection.send(("stalled", 0))
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task, skip = connection.recv()
            try:
                result = function(task, begin, skip)
            except (BrokenPipeError, ConnectionResetError):
                return
            except Exception as error:
                known = isinstance(error, WorkerError)
                text = str(error) if known else f"{type(error).__name__}: {error} (at {place_of(error)})"
                connection.send(("error", text))
                return
            place = -1
            connection.send(("done", result))


def _call_pickled(function: Callable[..., Any], task: bytes) -> bytes:
    """What Ray's workers run; at the top of the module, where they find it."""
    return pickle.dumps(function(pickle.loads(task), None, {}))


def _call_apart(function: Callable[..., Any], task: bytes) -> bytes:
    """The same in a process of the worker's own, which may die of items."""
    (result,) = run_processes(function, [pickle.loads(task)], 1)
    return pickle.dumps(result)


def _last_line(error: BaseException) -> str:
    """What Ray's errors of many lines come to."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def run_ray(
    function: Callable[..., Any], tasks: Sequence[Any], workers: int | None = None, address: str | None = None
) -> Iterator[Any]:
    """Run tasks on a Ray cluster, as one Ray Data pipeline.

    The function's files must lie where every node of the cluster sees them. A task whose process dies is started
    again, the last time in a process apart from Ray's, so that an item of which processes die is left out as by
    `run_processes`.

    Args:
        function: `function(task, begin, skip)`; it, the tasks and the results can be pickled.
        tasks: What it is called with.
        workers: Most tasks at a time; default: as many as the cluster has cores.
        address: Of the cluster; default: `RAY_ADDRESS`, else a Ray of this machine's own, which is ended afterwards.

    Yields:
        Results as they come.

    Raises:
        ImportError: Ray is not installed.
        WorkerError: The function raised, or Ray failed.
    """
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise ImportError(f"The engine ray needs ray: {install_line('ray')}") from error
    started = not ray.is_initialized()
    if started:
        options: dict[str, Any] = {"address": address, "log_to_driver": False}
        if address is None and "RAY_ADDRESS" not in os.environ:
            options |= {"include_dashboard": False, "num_cpus": workers}
        ray.init(**options)
    settings = ray.data.DataContext.get_current()
    shown, settings.enable_progress_bars = settings.enable_progress_bars, False
    try:
        items = [{"task": pickle.dumps(task)} for task in tasks]
        shared = ray.put(function)

        # Tasks of their own: Ray Data starts for ever what crashes each time, Ray what runs out of memory.
        once = ray.remote(num_cpus=1, max_retries=0)
        ways = [once(_call_pickled)] * _RAY_TRIES + [once(_call_apart)]

        def work(item: dict[str, Any]) -> dict[str, Any]:
            reason: BaseException = WorkerError()
            for way in ways:
                try:
                    return {"result": ray.get(way.remote(shared, item["task"])), "error": ""}
                except RayTaskError as error:  # the function raised; raised on, it would be tried again for ever
                    reason = error.cause
                    break
                except RayError as error:
                    reason = error
            return {"result": b"", "error": _last_line(reason)}

        pipeline = ray.data.from_items(items, override_num_blocks=len(items))
        # This one only waits, so it takes next to nothing of a core.
        for row in pipeline.map(work, num_cpus=0.01, concurrency=workers).iter_rows():
            if row["error"]:
                raise WorkerError(f"Ray gave up: {row['error']}")
            yield pickle.loads(row["result"])
    except RayError as error:
        raise WorkerError(f"Ray gave up: {_last_line(error)}") from error
    finally:
        settings.enable_progress_bars = shown
        if started:
            ray.shutdown()
