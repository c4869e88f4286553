# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What holds for every subcommand: what is missing is told before torch is loaded, and help is short and whole."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import cavmae_sync_hf
from cavmae_sync_hf import cli
from cavmae_sync_hf.cli import kinds
from helpers.apart import run_apart
from helpers.every_command import every_command

SOURCE = Path(cavmae_sync_hf.__file__).parents[1]
TESTS = Path(__file__).parents[1]
COMMANDS = {" ".join(words): (function, arguments) for words, function, arguments in every_command()}
# Values that are places or names, and so need a kind.
PLACES = re.compile(r"FILE|FOLDER|MODEL|INDEX|LIST|PATH|SOURCE|OUT|SRC|DST|DATA|QUERY|CLIPS?|VIDEO")


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments__say_what_they_stand_for(command):
    _, arguments = COMMANDS[command]

    places = [argument for argument in arguments if PLACES.fullmatch(argument.word.rstrip("."))]

    assert [argument.name for argument in places if not argument.kinds] == []


def test_what_is_missing__is_told_before_torch_is_loaded(tmp_path):
    """Each place, model and extra of every subcommand, wrong in each way, in one process."""
    start = "import runpy, sys, cavmae_sync_command\ncavmae_sync_command.defer_registration = True\n"
    code = f"{start}sys.argv = ['x', {str(TESTS.parent / 'pyproject.toml')!r}]\n"
    code += "runpy.run_module('helpers.every_command', run_name='__main__')"

    done = run_apart(["-c", code], tmp_path, PYTHONPATH=f"{SOURCE}:{TESTS}", COLUMNS="80")

    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)
    for run in runs:
        assert run["code"] == 1 and run["told"] in run["err"] and not run["out"], run
        assert run["kept"] and not run["torch"] and run["seconds"] < 2 and "loading" not in run["err"], run
    tried = {line for line in COMMANDS if any(run["line"].startswith(f"cavmae-sync {line} ") for run in runs)}
    assert tried == {line for line, (_, arguments) in COMMANDS.items() if any(entry.kinds for entry in arguments)}


@pytest.mark.parametrize("command", ["", "evaluate", *COMMANDS])
def test_help__fits_and_is_whole(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")

    code, out, _ = run(*command.split(), "--help")

    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert not re.search(r"<\w+>|…|\w\.\.\.$|\x1b", out.replace("ARGS]...", "")), out
    for entry in re.split(r"\n  (?=-)", out):
        assert len(re.findall(r"default:", entry)) <= 1, entry


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_help__are_commands_that_exist(run, command):
    _, out, _ = run(*command.split(), "--help")

    text = re.sub(r" [>|].*", "", out.partition("Examples:")[2])  # what the shell does
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    lines = [line for line in lines if line]
    for program, *words in lines:
        group, rest = typer.main.get_command(cli.app), words
        while program == "cavmae-sync" and hasattr(group, "commands"):
            group, *rest = group.commands[rest[0]], *rest[1:]
        assert program in ("torchrun", "eval") or group.make_context("example", rest.copy()).info_name
    assert not lines or any(words[: len(command.split())] == command.split() for _, *words in lines) or "eval" in out
    assert lines or not any(argument.required for argument in COMMANDS[command][1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["snc"], "Did you mean 'sync'?"),
        (["evaluate", "retrievel"], "Did you mean 'retrieval'?"),
        (["sync", "--overwrit"], "Did you mean --overwrite?"),
        (["evaluate", "sync", "--protocl"], "Did you mean --protocol?"),
    ],
)
def test_mistyped_words__are_told_with_what_is_near(run, arguments, words):
    code, _, err = run(*arguments)

    assert code == 2 and words in err


def test_extras__are_looked_for_by_version(monkeypatch):
    lines = ['gradio>=6.31 ; extra == "app"', 'cavmae-sync-hf[search] ; extra == "app"', "torch>=2.11"]
    lines += ['lancedb>=0.40 ; extra == "search"', 'pyarrow>=24 ; extra == "search"']
    there = {"gradio": "6.40", "lancedb": "0.3"}

    def version(name: str) -> str:
        if name not in there:
            raise kinds.importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(kinds.importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(kinds.importlib.metadata, "version", version)

    with pytest.raises(ImportError) as caught:
        kinds.Needs("app", "The page").check()
    assert str(caught.value) == (
        "The page needs lancedb>=0.40 (there is 0.3), pyarrow: pip install 'cavmae-sync-hf[app]'"
    )
    kinds.Needs("app", "The page", packages=("gradio",)).check()
    kinds.Needs("app", "The page", value="yes").check("no", {})


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion__prints_a_script_for_the_shell(run, shell):
    code, out, _ = run("completion", shell)

    assert code == 0 and f"_CAVMAE_SYNC_COMPLETE=complete_{shell}" in out and "cavmae-sync" in out


def test_completion__of_bash_knows_subcommands_options_choices_and_models(run, tmp_path):
    """The script, in a bash of its own; each line asks once."""
    program = tmp_path / "cavmae-sync"
    program.write_text(f"#!{sys.executable}\nfrom cavmae_sync_command import main\nmain()\n", encoding="utf-8")
    program.chmod(0o755)
    asked = {"locali": "localize", "sync --over": "--overwrite", "sync -m ex": "example", "sync --damaged k": "keep"}
    lines = [run("completion", "bash")[1]]
    for line in asked:
        lines.append(f"COMP_WORDS=(cavmae-sync {line}); COMP_CWORD={len(line.split())}")
        lines.append('_cavmae_sync_completion cavmae-sync; echo "${COMPREPLY[*]}"')

    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout.splitlines() == list(asked.values()), done.stderr
