# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Consoles, progress and errors of the subcommands."""

import io
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..model.errors_cavmae_sync import CavMaeSyncError, MediaWarning, on_command_line, printable

if TYPE_CHECKING:
    from ..data.failures import Failure

console = Console()
errors = Console(stderr=True)

# How often progress is reported where the output is no terminal.
SECONDS_BETWEEN_LINES = 30.0

# Exit code where a batch is done but for files that it left out, as for any error.
LEFT_OUT = 1
# Of these files so many are named.
_MOST_NAMED = 20

NOTHING_KEPT = "Nothing was written; run the command again."
# What an interruption says: what is kept, and how to go on. Set by subcommands.
kept = NOTHING_KEPT

# Set by `--traceback` before a subcommand runs.
show_tracebacks = False


def say(text: str) -> None:
    """Print plain text: no markup or control characters in file names, no line breaks in paths."""
    console.print("\n".join(map(printable, text.split("\n"))), highlight=False, markup=False, soft_wrap=True)


def print_json(values: Any) -> None:
    """Print JSON on standard output, in letters that it can take."""
    from ..files import plain

    in_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(plain(values), indent=2, ensure_ascii=not in_unicode, allow_nan=False))


def accept_all_names() -> None:
    """Let the output take names of files in any script: what its encoding lacks is written as `\\u65e5`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def error_text(error: BaseException) -> str:
    """What an error or a warning says, on one line, its remedies as options of the command line."""
    text = error.spelled(on_command_line) if isinstance(error, CavMaeSyncError | MediaWarning) else str(error)
    return " ".join(filter(None, map(str.strip, text.splitlines()))) or type(error).__name__


def print_error(text: str, label: str = "Error") -> None:
    """Print a line on the error stream."""
    errors.print(f"[bold red]{label}:[/bold red] {escape(printable(text))}", highlight=False, soft_wrap=True)


def failures(found: Mapping[str, Exception]) -> "list[Failure]":
    """Names of files and their errors as every batch tells them, remedies as options; with `--traceback` in full."""
    from ..data.failures import Failure

    if show_tracebacks:
        for error in found.values():
            errors.print("".join(traceback.format_exception(error)), highlight=False, markup=False, soft_wrap=True)
    return [Failure.of(name, error, on_command_line) for name, error in found.items()]


def end(left_out: "Sequence[Failure]", done: int, *, total: int = 0, noun: str = "file", report: object = "") -> None:
    """Name what a batch left out, if anything, count it in a last line, and end with exit code 1 then.

    Args:
        left_out: The files that were left out, or the first of them.
        done: How many were done.
        total: How many were left out, where `left_out` does not hold all.
        noun: What they are.
        report: Where all of them are listed.
    """
    if not left_out:
        return
    count = max(total, len(left_out))
    if done + count == 1:
        print_error(left_out[0].reason)
        raise typer.Exit(LEFT_OUT)
    for failure in left_out[:_MOST_NAMED]:
        name = "" if failure.name in failure.reason else f"{failure.name}: "
        print_error(f"{name}{failure.reason}", label="Left out")
    if count > _MOST_NAMED:
        errors.print(f"... and {count - _MOST_NAMED} more.", highlight=False)
    unexpected = sum(failure.unexpected for failure in left_out)
    text = f"{done} {noun}{'' if done == 1 else 's'} done, {count} left out"
    if unexpected:
        text += f", {unexpected} of them by an unexpected error"
    errors.print(escape(printable(f"{text}; see {report}" if report else f"{text}.")), highlight=False, soft_wrap=True)
    raise typer.Exit(LEFT_OUT)


@contextmanager
def media_warnings() -> Iterator[None]:
    """Print `MediaWarning`s on the error stream, each as one line and once, however often a file is read."""
    usual, told = warnings.showwarning, set()

    def show(message: Any, *rest: Any, **options: Any) -> None:
        if not isinstance(message, MediaWarning):
            usual(message, *rest, **options)
        elif (text := error_text(message)) not in told:
            told.add(text)
            errors.print(f"[yellow]Warning:[/yellow] {escape(printable(text))}", highlight=False, soft_wrap=True)

    # Replaced, not recorded, for files are read in threads.
    warnings.showwarning = show
    warnings.simplefilter("always", MediaWarning, append=True)
    try:
        yield
    finally:
        warnings.showwarning = usual


def report(error: Exception) -> int:
    """Print an exception as one message and give the exit code."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort):
        errors.print("Aborted.")
        return 1
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # wrong usage: typer has its own words
        near = getattr(error, "possibilities", None)
        if near:
            error.message = f"{getattr(error, 'message', '')}. Did you mean {' or '.join(sorted(near))}?"  # type: ignore[attr-defined]
            error.possibilities = None  # type: ignore[attr-defined]
        error.show()
        return int(error.exit_code)
    if isinstance(error, BrokenPipeError):
        # Whoever read the output has gone; the interpreter must not complain about it while closing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if show_tracebacks:
        raise error
    strict = type(error).__name__.startswith("Strict")  # a configuration's check; the cause is what is wrong
    message = error_text(error.__cause__ if strict and error.__cause__ else error)
    expected = strict or isinstance(error, ValueError | OSError | ImportError)
    if not expected:
        message = f"{type(error).__name__}: {message} (run again with --traceback before the command to see where)"
    print_error(message)
    return 1


@contextmanager
def progress_bar(what: str, unit: str = "clips") -> Iterator[Callable[..., None]]:
    """A bar on the error stream, with rate and time left; gives `show(done, total, remark)`."""
    if not errors.is_terminal:
        yield _plain_progress(what, unit)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(what, total=None, rate="")
        first: list[float] = []  # what earlier runs did, and when this one began

        def show(done: int, total: int, remark: str = "") -> None:
            first.extend([] if first else [done, time.monotonic()])
            rate = _rate(int(done - first[0]), time.monotonic() - first[1], total - done, unit=unit, remark=remark)
            bar.update(task, completed=done, total=total, rate=rate)

        yield show


def _rate(made: int, seconds: float, to_do: int, *, unit: str, remark: str) -> str:
    parts = [remark]
    if made and seconds:
        left = timedelta(seconds=round(to_do * seconds / made))
        parts = [f"{made / seconds:.1f} {unit}/s", f"{left} left", remark]
    return ", ".join(filter(None, parts))


def _plain_progress(what: str, unit: str) -> Callable[..., None]:
    """`show(done, total, remark)` for logs: a line now and then."""
    first: list[float] = []  # what earlier runs did, and when this one began
    printed = time.monotonic()

    def show(done: int, total: int, remark: str = "") -> None:
        nonlocal printed
        now = time.monotonic()
        first.extend([] if first else [done, now])
        if now - printed < SECONDS_BETWEEN_LINES:
            return
        printed = now
        rate = _rate(int(done - first[0]), now - first[1], total - done, unit=unit, remark=remark)
        line = f"{what}: {done} of {total}" + (f", {rate}" if rate else "")
        errors.print(line, highlight=False, markup=False, soft_wrap=True)

    return show


@contextmanager
def export_progress(model: str, *, bar: bool = True) -> Iterator[Callable[..., None]]:
    """`show(done, total, remark)` for an export that may have to be made before a model can run.

    Args:
        model: Its name, for the line that tells so.
        bar: Whether a bar follows the line; not where another one is shown.
    """
    with ExitStack() as stack:
        bars: list[Callable[..., None]] = []

        def show(done: int, total: int, remark: str = "") -> None:
            if not bars:
                note(f"exporting {printable(model)} for ONNX Runtime, once: minutes for a large model ...")
                shown = stack.enter_context(progress_bar("exporting", unit="steps")) if bar else lambda *_: None
                bars.append(shown)
            bars[0](done, total, remark)

        yield show


def note(text: str) -> None:
    """Print a line on the error stream that is no error."""
    errors.print(text, highlight=False, markup=False, soft_wrap=True)


def load(name: str, *, device: str, backend: str, precision: str, **wanted: Any) -> tuple[Any, Any]:
    """A model and its processor as of `load_model`, with progress where it is exported first."""
    from ..loading import load_model

    options: Any = {"device": device, "backend": backend, "precision": precision} | wanted
    with export_progress(name) as show:
        return load_model(name, progress=show, **options)


def choose_device(device: str, backend: str = "torch") -> str:
    """The device to run on, of `auto` the best that there is for a backend, which is told.

    One that torch does not know, or that this machine does not have, is refused before anything is loaded.
    """
    import torch

    from ..inference.loading import choose_device as choose

    if device == "auto":
        device = str(choose()) if backend == "torch" else "cpu"
        note(f"running on {device}" + (" in ONNX Runtime" if backend == "onnx" else ""))
        return device
    try:
        torch.device(device)
    except RuntimeError as error:
        raise typer.BadParameter(f"{device!r} is no device; use one such as cpu, cuda, cuda:1 or mps.") from error
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise typer.BadParameter(f"{device!r} cannot be used on this machine ({reason}); use cpu.") from error
    return device
