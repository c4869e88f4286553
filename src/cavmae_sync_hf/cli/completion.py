# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Completion of subcommands, options and names by the shell."""

from typing import Annotated, Literal

import typer
from typer.completion import completion_init, get_completion_script

_PROGRAM = "cavmae-sync"
_VARIABLE = "_CAVMAE_SYNC_COMPLETE"


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print the script by which a shell completes subcommands, options and names of models.

    Examples:
        eval "$(cavmae-sync completion bash)"  # in ~/.bashrc
        eval "$(cavmae-sync completion zsh)"  # in ~/.zshrc, after compinit
        cavmae-sync completion fish | source  # in ~/.config/fish/config.fish
    """
    print(get_completion_script(prog_name=_PROGRAM, complete_var=_VARIABLE, shell=shell))


def register_shells() -> None:
    """Make typer answer the shells that ask by such a script."""
    completion_init()


def model_names(incomplete: str) -> list[str]:
    """Names of models that begin so; folders the shell completes itself."""
    from ..names import model_names as known

    return [name for name in known() if name.startswith(incomplete)]


__all__ = ["completion", "model_names", "register_shells"]
