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
from . import (
    ask,
    commands,
    completion,
    data,
    evaluate,
    inference,
    localize,
    model,
    page,
    score,
    search,
    terminal,
    training,
)
from .kinds import Needs

app = commands.group("cavmae-sync", "CAV-MAE and CAV-MAE Sync: which sound belongs to which moment of a video.")

_INTERRUPTED = 128 + signal.SIGINT
_MAKING = "Models and data"
_USING = "Using a model"
_SEARCH = Needs("search", "Search")
_TRAINING = "Training"

for _command, _panel, *_needs in (
    (inference.sync, _USING),
    (localize.localize, _USING),
    (ask.ask, _USING),
    (search.index, _USING, _SEARCH),
    (search.search, _USING, _SEARCH),
    (search.index_info, _USING, _SEARCH),
    (score.score, _USING, _SEARCH),
    (inference.classify, _USING),
    (inference.extract, _USING),
    (page.app, _USING, Needs("app", "The web page")),
    (model.published, _MAKING),
    (model.convert, _MAKING),
    (model.selfcheck, _MAKING),
    (model.card, _MAKING),
    (data.prepare, _MAKING),
    (data.world, _MAKING, Needs("parquet", "A SyncWorld")),
    (model.export, _MAKING),
    (training.recipes, _TRAINING),
    (completion.completion, "This command line"),
):
    commands.add(app, _command, *_needs, panel=_panel)
app.add_typer(evaluate.app, rich_help_panel=_USING)
training.add_to(app, _TRAINING)


def main() -> NoReturn:
    """Run the command line and exit.

    The exit code is 0 when all went well; 1 for an error, and when some of several files were left out; 2 for wrong
    arguments; 130 for Ctrl-C and 143 for SIGTERM.
    """
    terminal.accept_all_names()
    terminal.kept = terminal.NOTHING_KEPT
    with interruptible() as received:
        try:
            completion.register_shells()
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
