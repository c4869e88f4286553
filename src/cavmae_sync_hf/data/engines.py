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
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from ..model.errors_cavmae_sync import WorkerError

# A decoder that dies of a file dies of one of these; the file is left out. Anything else (SIGKILL by the kernel when
# memory runs out, SIGTERM by an operator) says nothing about the file, and ends the run.
_CRASHES = frozenset(
    getattr(signal, name) for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL") if hasattr(signal, name)
)
# Once may be chance.
_CRASHES_UNTIL_SKIPPED = 2
_RAY_RETRIES = 2
# What workers import before they are needed: where processes are forked from a server, only once for all.
_PRELOAD = ["cavmae_sync_hf.data.prepare"]


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
    function: Callable[..., Any], tasks: Sequence[Any], workers: int, progress: Callable[[int], None] | None = None
) -> Iterator[Any]:
    """Run tasks in processes of this machine.

    An item of which a process crashes twice (by a fault of a decoder, say) is left out from then on; the function is
    told why. When a process is killed, or the function raises, all others are ended.

    Args:
        function: `function(task, begin, skip)`; it, the tasks and the results can be pickled.
        tasks: What it is called with.
        workers: Number of processes.
        progress: Called with the number of items finished in tasks that are not finished.

    Yields:
        Results as they come.

    Raises:
        WorkerError: A process was killed, or the function raised.
    """
    waiting = deque(tasks)
    crashes: dict[tuple[int, int], int] = {}
    skips: dict[int, dict[int, str]] = {}
    team: list[_Worker] = []
    try:
        team = [_Worker(function) for _ in range(min(workers, len(waiting)))]
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
                    yield value
                elif kind == "error":
                    raise WorkerError(value)
                elif kind == "dead":
                    lost = worker.task
                    team[place] = worker = _Worker(function)
                    waiting.appendleft(_after_crash(lost, value, crashes, skips))
                if waiting:
                    worker.give(waiting.popleft(), skips)
    finally:
        for worker in team:
            worker.end()


def _after_crash(lost: Any, death: tuple[int, int], crashes: dict[Any, int], skips: dict[int, dict[int, str]]) -> Any:
    """Count a crash and give the task back, to be done again; raise when it was no crash."""
    exit_code, place = death
    try:
        cause = signal.Signals(-exit_code).name
    except ValueError:
        cause = f"exit code {exit_code}"
    number = getattr(lost, "number", 0)
    if -exit_code not in _CRASHES or place < 0:
        hint = ""
        if -exit_code == getattr(signal, "SIGKILL", 9):
            hint = "; memory may have run out: use fewer workers"
        elif exit_code > 0 and place < 0:
            hint = "; a script that starts processes must do so under `if __name__ == '__main__':`"
        raise WorkerError(f"A worker process was ended by {cause} while it worked on shard {number}{hint}.")
    crashes[number, place] = crashes.get((number, place), 0) + 1
    if crashes[number, place] >= _CRASHES_UNTIL_SKIPPED:
        skips.setdefault(number, {})[place] = f"the decoder crashes on it ({cause})"
    return lost


class _Worker:
    """A process of this machine and its task."""

    def __init__(self, function: Callable[..., Any]) -> None:
        # Never as a copy of this process, whose threads a copy would lack.
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload(_PRELOAD)
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, function), daemon=True)
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
        return "dead", (self.process.exitcode or 0, self.place)

    def end(self) -> None:
        self.connection.close()
        if self.process.is_alive():
            self.process.terminate()
        self.process.join()


def _serve(connection: Connection, function: Callable[..., Any]) -> None:
    """Run tasks in a worker process and send messages about them, until nobody listens."""
    # Ctrl-C reaches the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task, skip = connection.recv()
            try:
                result = function(task, lambda place: connection.send(("begin", place)), skip)
            except (BrokenPipeError, ConnectionResetError):
                return
            except Exception as error:
                where = traceback.extract_tb(sys.exc_info()[2])[-1]
                place = f"{os.path.basename(where.filename)}, line {where.lineno}"
                known = isinstance(error, WorkerError)
                connection.send(("error", str(error) if known else f"{type(error).__name__}: {error} ({place})"))
                return
            connection.send(("done", result))


def _call_pickled(function: Callable[..., Any], task: bytes) -> bytes:
    """What Ray's workers run; at the top of the module, where they find it."""
    return pickle.dumps(function(pickle.loads(task), None, {}))


def run_ray(
    function: Callable[..., Any], tasks: Sequence[Any], workers: int | None = None, address: str | None = None
) -> Iterator[Any]:
    """Run tasks on a Ray cluster, as one Ray Data pipeline.

    The function's files must lie where every node of the cluster sees them. Ray starts lost tasks again elsewhere.

    Args:
        function: `function(task, begin, skip)`; it, the tasks and the results can be pickled.
        tasks: What it is called with.
        workers: Most tasks at a time; default: as many as the cluster has cores.
        address: Of the cluster; default: `RAY_ADDRESS`, else a Ray of this machine's own, which is ended afterwards.

    Yields:
        Results as they come.

    Raises:
        ImportError: Ray is not installed.
        WorkerError: A task failed for good.
    """
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError
    except ImportError as error:
        raise ImportError('The engine "ray" needs Ray: pip install "ray[data]"') from error
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

        def work(item: dict[str, Any]) -> dict[str, Any]:
            # A task of its own, whose retries have a bound: Ray Data itself starts for ever what crashes each time.
            bounded = ray.remote(num_cpus=1, max_retries=_RAY_RETRIES)(_call_pickled)
            return {"result": ray.get(bounded.remote(shared, item["task"]))}

        pipeline = ray.data.from_items(items, override_num_blocks=len(items))
        # This one only waits, so it takes next to nothing of a core.
        for row in pipeline.map(work, num_cpus=0.01, concurrency=workers).iter_rows():
            yield pickle.loads(row["result"])
    except RayError as error:
        reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        raise WorkerError(f"Ray gave up: {reason}") from error
    finally:
        settings.enable_progress_bars = shown
        if started:
            ray.shutdown()
