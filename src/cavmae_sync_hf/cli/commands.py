# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Subcommands as typer runs them: added from functions, and how their help looks."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import ArgumentInfo, OptionInfo

from .kinds import Needs, prepared

_EXAMPLES = "\n\nExamples:\n"
# What stands in help for a value that has no better word.
_WORDS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


class Command(TyperCommand):
    """A subcommand whose help is plain text that fits into 80 columns."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return _usage(self, ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_parameters(self.get_params(ctx), formatter)


class Group(TyperGroup):
    """Subcommands, listed by panels with their first sentences in full."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*_usage(self, ctx), "COMMAND [ARGS]..."]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_parameters(self.get_params(ctx), formatter)
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None)
                first = " ".join((command.help or "").split("\n\n")[0].split())
                panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, first))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


def group(name: str, text: str) -> typer.Typer:
    """An empty group of subcommands.

    Args:
        name: What it is called.
        text: What its help says.
    """
    return typer.Typer(
        name=name,
        cls=Group,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def add(app: typer.Typer, function: Callable[..., Any], *needs: Needs, panel: str | None = None) -> None:
    """Add a function as a subcommand.

    Its docstring is the help; what follows a line `Examples:` stands at the end. Its arguments are checked by their
    kinds before it runs (see `kinds`).

    Args:
        app: The group.
        function: The function; a trailing underscore of its name is not part of the subcommand's.
        needs: Extras without which it does nothing.
        panel: Heading under which the group's help lists it.
    """
    _name_values(function)
    text, examples = parts_of_help(function)
    app.command(
        name=function.__name__.strip("_").replace("_", "-"),
        cls=Command,
        help=text,
        epilog=examples,
        rich_help_panel=panel,
    )(prepared(function, *needs))


def parts_of_help(function: Callable[..., Any]) -> tuple[str, str | None]:
    """What a function's docstring says before and after a line `Examples:`."""
    text, _, examples = (inspect.getdoc(function) or "").partition(_EXAMPLES)
    lines = [f"  {line.strip()}" for line in examples.splitlines()]
    return text, "\n".join(["\b", "Examples:", *lines]) if lines else None


def _name_values(function: Callable[..., Any]) -> None:
    """Give each option that has no word for its value one by its type: choices as `a|b`, numbers as `N`."""
    for hint in get_type_hints(function, include_extras=True).values():
        for note in getattr(hint, "__metadata__", ()):
            if isinstance(note, OptionInfo | ArgumentInfo) and note.metavar is None:
                note.metavar = _word(get_args(hint)[0])


def _word(kind: Any) -> str | None:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    inner = [part for part in get_args(kind) if part is not NoneType]
    return _word(inner[0]) if inner else _WORDS.get(kind)


def _usage(command: Any, ctx: Any) -> list[str]:
    pieces = [command.options_metavar] if command.options_metavar else []
    for parameter in command.get_params(ctx):
        if parameter.param_type_name == "argument" and not getattr(parameter, "hidden", False):
            name = parameter.metavar or parameter.name.upper()
            pieces.append(name if parameter.required else f"[{name}]")
    return pieces


def write_parameters(parameters: Sequence[Any], formatter: Any, options: str = "Options") -> None:
    """Arguments and options, with their defaults.

    Args:
        parameters: Of a subcommand.
        formatter: Takes the help.
        options: Heading of the options.
    """
    rows: dict[str, list[tuple[str, str]]] = {"Arguments": [], options: []}
    for parameter in parameters:
        if getattr(parameter, "hidden", False):
            continue
        remarks = ["required"] if parameter.required else []
        if parameter.param_type_name == "argument":
            names = parameter.metavar or parameter.name.upper()
        else:
            spellings = sorted(parameter.opts, key=lambda spelling: spelling.startswith("--"))
            names = ", ".join(spellings)
            if parameter.secondary_opts:
                names += f" / {', '.join(parameter.secondary_opts)}"
            if not parameter.is_flag:
                names += f" {parameter.metavar or 'VALUE'}"
        if not parameter.required and parameter.default not in (None, False, ()):
            default = parameter.default
            if default is True:
                default = parameter.opts[0] if getattr(parameter, "secondary_opts", ()) else ""
            remarks += [f"default: {default:g}" if isinstance(default, float) else f"default: {default}"]
        text = " ".join([parameter.help or "", *(f"[{remark}]" for remark in remarks)]).strip()
        rows["Arguments" if parameter.param_type_name == "argument" else options].append((names, text))
    for heading, entries in rows.items():
        if entries:
            with formatter.section(heading):
                formatter.write_dl(entries)


__all__ = ["Command", "Group", "add", "group", "parts_of_help", "write_parameters"]
