# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The `cavmae-sync` command line.

Every subcommand is one function, in the file of its subject, that parses, calls the library and shows the result. What
takes long to import is imported inside it, so that `cavmae-sync --help` answers at once.
"""

import signal
import sys
from typing import Annotated, NoReturn

import typer

from cavmae_sync_command import interruptible, report_interrupt

from ..model.errors_cavmae_sync import printable
from . import data, evaluate, inference, model, page, search, terminal

app = typer.Typer(
    name="cavmae-sync",
    help="CAV-MAE and CAV-MAE Sync: which sound belongs to which moment of a video.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INTERRUPTED = 128 + signal.SIGINT
_MAKING = "Models and data"
_USING = "Using a model"

for _command, _panel in (
    (model.published, _MAKING),
    (model.convert, _MAKING),
    (model.selfcheck, _MAKING),
    (model.card, _MAKING),
    (data.prepare, _MAKING),
    (data.world, _MAKING),
    (model.export, _MAKING),
    (inference.classify, _USING),
    (inference.sync, _USING),
    (inference.localize, _USING),
    (inference.extract, _USING),
    (search.index, _USING),
    (search.search, _USING),
    (search.index_info, _USING),
    (page.app, _USING),
):
    app.command(rich_help_panel=_panel)(_command)
app.add_typer(evaluate.app, rich_help_panel=_USING)


def main() -> NoReturn:
    """Run the command line and exit.

    The exit code is 0 when all went well; 1 for an error, and when some of several files were left out; 2 for wrong
    arguments; 130 for Ctrl-C and 143 for SIGTERM.
    """
    terminal.accept_all_names()
    terminal.kept = terminal.NOTHING_KEPT
    with interruptible() as received:
        try:
            with terminal.media_warnings():
                code = app(standalone_mode=False, prog_name="cavmae-sync")
        except KeyboardInterrupt:
            code = _INTERRUPTED
        except Exception as error:
            sys.exit(terminal.report(error))
        if code == _INTERRUPTED:  # as typer gives it, too
            code = report_interrupt(signal.SIGTERM in received, printable(terminal.kept))
    sys.exit(code if isinstance(code, int) else 0)


def _show_version(wanted: bool) -> None:
    if wanted:
        from ..provenance import package_version

        terminal.console.print(f"cavmae-sync-hf {package_version()}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False,
) -> None:
    """Options of every subcommand."""
    terminal.show_tracebacks = traceback


if __name__ == "__main__":
    main()

__all__ = ["app", "main"]
