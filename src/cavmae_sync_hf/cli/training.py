# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Subcommands that train and probe, and the recipes for them.

Their flags are those of dataclasses, which transformers' parser reads together with a recipe. typer knows them for the
help and for completion alone.
"""

import dataclasses
import enum
import functools
import importlib.util
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from ..model.errors_cavmae_sync import TrainingError
from ..training.recipe import RUN_BY, find_recipe, list_recipes, load_recipe
from ..training.settings import (
    ClassificationModelArguments,
    ClassificationSettings,
    DataArguments,
    FlagError,
    InstructionArguments,
    LocalHeadArguments,
    LocalHeadSettings,
    ModelArguments,
    PretrainingSettings,
    ProbeArguments,
    RunSettings,
    TextArguments,
    evaluation_sources,
    mapping,
)
from . import commands, terminal
from .kinds import FileIn, ModelName, Needs, SourceIn

_ALL = "--help-all"
# Settings of transformers' Trainer that most runs change, as the short help shows them.
_MOST_USED = {
    "max_steps": ("N", "Steps to train; wins over num_train_epochs."),
    "num_train_epochs": ("NUMBER", "Times that the training set is gone through."),
    "per_device_train_batch_size": ("N", "Clips of a process in a batch."),
    "learning_rate": ("NUMBER", "Its highest value, after the warm-up."),
    "warmup_steps": ("NUMBER", "Steps of warm-up, or their share of all."),
    "bf16": ("", "Compute in bfloat16."),
    "torch_compile": ("", "Compile the model."),
    "use_cpu": ("", "Leave GPUs alone."),
    "dataloader_num_workers": ("N", "Processes that load, beside each training process."),
    "logging_steps": ("NUMBER", "Steps from one line of the log to the next."),
    "save_steps": ("NUMBER", "Steps from one checkpoint to the next."),
    "eval_strategy": ("WHEN", "When to evaluate before the end: no, steps or epoch."),
    "seed": ("N", "Seeds weights, masks and orders."),
    "report_to": ("NAME ...", "Where logs go, such as tensorboard, wandb or trackio."),
    "push_to_hub": ("", "Upload model, processor, code and card at the end."),
    "hub_model_id": ("NAME", "Repository on the Hub, as OWNER/NAME."),
}
# Of what is joined to a model there is one evaluation, and what is uploaded is one folder of what is written.
_NOT_OF_JOINED = ("eval_strategy", "push_to_hub", "hub_model_id")
_JOINED = ("text", "instruct")
_DOES = {"probe": "probe", "text": "join", "local_head": "train heads of", "instruction": "join"}
_WITH_SCIKIT_LEARN = ("classification", "probe", "text")
_TRAINER_PANEL = "transformers' Trainer, the most used"


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Recipe to print, as a file to edit.")] = None,
) -> None:
    """List the recipes that come with the package, or print one of them.

    Examples:
        cavmae-sync recipes
        cavmae-sync recipes syncworld_tiny > my.yaml
        cavmae-sync pretrain my.yaml
    """
    if name is not None:
        print(find_recipe(name).read_text(encoding="utf-8"), end="")
        return
    known = list_recipes()
    for folder, command in RUN_BY.items():
        terminal.say(f"{command} RECIPE")
        for full, line in known.items():
            if full.startswith(f"{folder}/"):
                terminal.say(f"  {full:28}  {line}")


def pretrain(context: typer.Context) -> None:
    """Pretrain a model by contrast and reconstruction, on one CPU, one GPU or many.

    RECIPE is a name that `cavmae-sync recipes` lists, or a YAML file; flags win over it.

    Examples:
        cavmae-sync pretrain syncworld_tiny
        cavmae-sync pretrain audioset --train_data SHARDS --init_from MODEL
        torchrun --nproc_per_node 8 -m cavmae_sync_hf.training.pretrain RECIPE ...
    """
    with _start(context.args, "pretraining"):
        from ..training.pretrain import pretrain as run

        sys.exit(run(context.args))  # with the code of a signal, too, of which it has told


def finetune(context: typer.Context) -> None:
    """Train a classifier of audio, video or both, from a pretrained model or from the start.

    RECIPE is a name that `cavmae-sync recipes` lists, or a YAML file; flags win over it.

    Examples:
        cavmae-sync finetune syncworld
        cavmae-sync finetune vggsound --train_data SHARDS --init_from MODEL
        torchrun --nproc_per_node 4 -m cavmae_sync_hf.training.finetune RECIPE ...
    """
    with _start(context.args, "classification"):
        from ..training.finetune import finetune as run

        sys.exit(run(context.args))


def probe(context: typer.Context) -> None:
    """Measure how much of the classes can be read off a frozen model's features, by linear probes.

    RECIPE is a name that `cavmae-sync recipes` lists, or a YAML file; flags win over it. Features
    are computed once and kept, so that other strengths or sums of features take seconds.

    Examples:
        cavmae-sync probe syncworld --model MODEL
        torchrun --nproc_per_node 8 -m cavmae_sync_hf.training.probe RECIPE ...
    """
    with _start(context.args, "probe"):
        _probe(context.args)


def _probe(words: list[str]) -> None:
    from accelerate import PartialState
    from rich.table import Table

    from ..training.arguments import parse_arguments
    from ..training.probe import run_probe

    (arguments,) = parse_arguments((ProbeArguments,), words, "probe")
    process = PartialState(cpu=arguments.device == "cpu")
    with terminal.progress_bar("extracting") as show:
        rows = run_probe(arguments, process=process, progress=show if process.is_main_process else None)
    for name in dict.fromkeys(row["set"] for row in rows):
        table = Table("weights", "labels", "features", "mAP", "ROC area", "d'", "accuracy", "C")
        mine = [row for row in rows if row["set"] == name]
        for row in mine:
            values = (row[key] for key in ("mean_average_precision", "mean_roc_auc", "d_prime", "accuracy"))
            names = (row["weights"], row["labels"], row["features"])
            table.add_row(*names, *(f"{value:.3f}" for value in values), f"{row['strength']:g}")
        chance = mine[0]["chance"]
        terminal.say(
            f"{name}: {mine[0]['samples']} clips, {mine[0]['classes']} classes; chance: mAP "
            f"{chance['mean_average_precision']:.3f}, ROC area 0.5, accuracy {chance['accuracy']:.3f}"
        )
        terminal.console.print(table)
    unfinished = [row["features"] for row in rows if not row["converged"]]
    if unfinished:
        terminal.say(f"Not converged: {', '.join(dict.fromkeys(unfinished))}; raise --max_iterations.")


def text(context: typer.Context) -> None:
    """Join a text encoder to a model: words then find its clips and moments, and name them.

    RECIPE is a name that `cavmae-sync recipes` lists, or a YAML file; flags win over it. As a rule
    both the model and the text encoder stay as they are, and what joins them is trained, in minutes
    on a CPU; --joint trains the model, too, and --bridge takes no captions.

    Examples:
        cavmae-sync text syncworld --model example --text_model MODEL
        cavmae-sync text syncworld --train_data VIDEOS --captions captions.csv
        cavmae-sync text bridge --model MODEL --bridge CLIP --train_data VIDEOS
    """
    with _start(context.args, "text"):
        sys.exit(_text(context.args))


@contextmanager
def _bars() -> Iterator[Callable[[int, int, str], None]]:
    """One bar after the other, before and after the training, which shows its own."""
    with ExitStack() as stack:
        bars: dict[str, Callable[..., None]] = {}

        def show(done: int, total: int, what: str) -> None:
            if what not in bars:
                stack.close()
                unit = next((unit for unit in ("texts", "answers") if unit in what), "clips")
                bars[what] = stack.enter_context(terminal.progress_bar(what, unit))
            bars[what](done, total)
            if done == total:
                stack.close()
                del bars[what]

        yield show


def _text(words: list[str]) -> int:
    from ..training.text import text as run

    with _bars() as show:
        status, record = run(words, show)
    if "metrics" not in record or int(os.environ.get("RANK", "0")):
        return status
    for name, metrics in record["metrics"].items():
        parts = {key: value for key, value in metrics.items() if isinstance(value, dict) and key != "chance"}
        for part, values in (parts or {"": metrics}).items():
            shown = ", ".join(f"{key} {value:.3g}" for key, value in values.items() if isinstance(value, int | float))
            part = f", {part} wordings" if part in ("seen", "unseen") else f", {part}" if part else ""
            terminal.say(f"{name}{part}: {shown}")
    return status


def local_head(context: typer.Context) -> None:
    """Train a model's local heads: localize then takes one pass, for audio, words or any vector.

    RECIPE is a name that `cavmae-sync recipes` lists, or a YAML file; flags win over it. No labels
    are needed. The model stays as it is; what is trained predicts what hiding a part would do, in
    minutes on a CPU for a small model.

    Examples:
        cavmae-sync local-head local_head/syncworld --model example
        cavmae-sync local-head --model MODEL --train_data SHARDS --frames_per_clip 4
        torchrun --nproc_per_node 4 -m cavmae_sync_hf.training.local_head RECIPE ...
    """
    with _start(context.args, "local_head"):
        from ..training.local_head import local_head as run

        sys.exit(run(context.args))


def instruct(context: typer.Context) -> None:
    """Join a language model to a model and train it on chats: questions about clips get answers.

    RECIPE is a name that `cavmae-sync recipes` lists, or a YAML file; flags win over it. The model
    stays as it is. Train the projectors first, then low-rank changes of the language model.

    Examples:
        cavmae-sync instruct instruction/syncworld
        cavmae-sync instruct qwen3_projectors --model MODEL --train_data chats.jsonl
        cavmae-sync instruct qwen3_lora --model MODEL --train_data chats.jsonl
    """
    with _start(context.args, "instruction"):
        from ..training.instruct import instruct as run

        with _bars() as show:
            status, record = run(context.args, show)
        if not int(os.environ.get("RANK", "0")):
            for name, metrics in record.get("metrics", {}).items():
                terminal.say(f"{name}:")
                for line in _answer_lines(metrics):
                    terminal.say(f"  {line}")
        sys.exit(status)


def _answer_lines(metrics: dict[str, Any]) -> Iterator[str]:
    """What a table of answers says, per cent."""
    if "seen" not in metrics:
        yield f"{metrics['exact']:.1f} of {metrics['count']} answers are those of the chats, word for word"
        return
    yield f"{'':9} {'right':>6} {'other words':>11} {'commonest':>9} {'chance':>6} {'questions':>9}"
    for kind, row in metrics["seen"].items():
        other = metrics["unseen"].get(kind, {}).get("accuracy", float("nan"))
        guessed = f"{row['majority']:9.1f} {row['chance']:6.1f} {row['count']:9}"
        yield f"{kind:9} {row['accuracy']:6.1f} {other:11.1f} {guessed}"
    for control, kinds in metrics["controls"].items():
        yield f"{control}: {', '.join(f'{kind} {value:.1f}' for kind, value in kinds.items())}"
    for name in ("true captions", "captions"):
        if name in metrics:
            yield f"{name}: {', '.join(f'{kind} {value:.1f}' for kind, value in metrics[name].items())}"
    if "twins" in metrics:
        pairs = (f"{kind} {row['accuracy']:.1f} of {row['count']}" for kind, row in metrics["twins"].items())
        yield f"both of temporal twins: {', '.join(pairs)}"
    if "moments" in metrics:
        yield "when by digits {digits:.1f}, by scores of moments {scores:.1f}".format(**metrics["moments"])


# What is told before torch is loaded


@contextmanager
def _start(words: list[str], folder: str) -> Iterator[None]:
    """Refuse what can be seen to fail, then run; a fault of the program shows where it was, for runs are long."""
    terminal.kept = "Whole checkpoints in output_dir are kept; --resume_from_checkpoint auto goes on from the last."
    if folder == "probe":
        terminal.kept = "Features that were cached are kept; run the same command again."
    try:
        _check(words, folder)
        yield
    except FlagError as error:
        terminal.print_error(terminal.error_text(error))
        raise typer.Exit(2) from error
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        terminal.show_tracebacks |= not type(error).__name__.startswith("Strict")
        raise


def _check(words: Sequence[str], folder: str) -> None:
    """Look at recipe, output folder, data, model and packages, without loading anything."""
    from ..files import check_free
    from ..training.earlier_run import check_output

    recipe, flags, known = {}, list(words), _names(folder)
    if flags and not flags[0].startswith("-"):
        recipe = load_recipe(find_recipe(flags.pop(0), folder), known)
    given = _given(flags)
    settings = recipe | given
    wrong = [word for word in flags[:1] if not word.startswith("-")]
    wrong += [f"--{name}" for name in given if name.removeprefix("no_") not in known]
    if wrong:
        raise FlagError.unknown(wrong[0], known)
    overwrite = _is_on(settings.get("overwrite"))
    if folder in _DOES:
        needed = ["model"] + ["text_model"] * (folder == "text" and not settings.get("bridge"))
        for name in needed:
            if not settings.get(name):
                raise TrainingError(f"There is nothing to {_DOES[folder]}; name a model by --{name}.")
    if folder == "probe":
        check_free(Path(settings.get("output_dir", ProbeArguments.output_dir)) / "metrics.json", overwrite=overwrite)
    elif settings.get("output_dir"):
        check_output(RunSettings(settings["output_dir"], settings.get("resume_from_checkpoint"), overwrite))
    evaluation = evaluation_sources(settings.get("eval_data")) or {}
    for source in (settings.get("train_data"), *evaluation.values()):
        if source is not None:
            SourceIn().check(str(source), settings)
    world = mapping("syncworld", settings.get("syncworld"))
    if settings.get("train_data") is None and not world:
        raise TrainingError("There is nothing to train on; name --train_data, or a --syncworld to make.")
    for model in (settings.get("init_from"), settings.get("model")):
        if model is not None and not Path(model).expanduser().is_file():
            ModelName().check(str(model), settings)
    for name in ("class_names", "captions", "eval_captions"):
        if settings.get(name):
            FileIn().check(settings[name], settings)
    packages = (
        "accelerate",
        *(["pyarrow"] if world else []),
        *(["scikit-learn"] if folder in _WITH_SCIKIT_LEARN else []),
    )
    Needs("training", "Training", packages=packages).check()
    if _is_on(settings.get("plots")):
        Needs("training", "Plots of training", packages=("matplotlib",)).check()
    if str(settings.get("lora_rank") or 0) != "0":
        Needs("lora", "Low-rank fine-tuning").check()
    terminal.note("loading ...")


def _is_on(value: object) -> bool:
    return str(value).lower() in ("true", "yes", "1", "t", "y")


def _names(folder: str) -> set[str]:
    """Names of all settings; those of transformers' Trainer are read off its source, for importing it loads torch."""
    panels = next(panels for _, other, panels in _COMMANDS.values() if other == folder)
    names = {item.name for kinds in panels.values() for kind in kinds for item in dataclasses.fields(kind)}
    spec = importlib.util.find_spec("transformers")
    if folder != "probe" and spec is not None and spec.origin is not None:
        source = Path(spec.origin).with_name("training_args.py").read_text(encoding="utf-8")
        names |= set(re.findall(r"^    (\w+): ", source, flags=re.MULTILINE))
    return names


def _given(flags: Sequence[str]) -> dict[str, str]:
    """Flags and the first words of their values, as far as can be told without a parser; one without is on."""
    found: dict[str, str] = {}
    for place, word in enumerate(flags):
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            follows = flags[place + 1 : place + 2]
            found[name.replace("-", "_")] = value or (follows[0] if follows and follows[0][:2] != "--" else "true")
    return found


# Help


class _Command(commands.Command):
    """Hands its words on as they are, but for those that ask for help, which has a section for each kind of flags."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the words; without any, print the help as well."""
        if not ctx.resilient_parsing and (not args or {"-h", "--help", _ALL} & set(args)):
            shown: Any = self
            if _ALL in args:
                app = typer.Typer(add_completion=False, rich_markup_mode=None)
                _add(app, str(self.name), all_of_them=True)
                shown = typer.main.get_command(app)
            typer.echo(shown.get_help(ctx), color=ctx.color)
            ctx.exit()
        ctx.args = list(args)
        return []

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The help's sections."""
        sections: dict[str, list[Any]] = {}
        for parameter in self.get_params(ctx):
            sections.setdefault(getattr(parameter, "rich_help_panel", None) or "", []).append(parameter)
        for section, parameters in sections.items():
            commands.write_parameters(parameters, formatter, options=section or "Options")


def _with_flags(name: str, all_of_them: bool = False) -> Callable[..., None]:
    """A command's function with the signature that typer's help is made of."""
    run, _, panels = _COMMANDS[name]
    rows = [(panel, *row) for panel, kinds in panels.items() for kind in kinds for row in _flags(kind)]
    rows = [row for row in rows if row[1] != "pictures"]  # the old name of another
    shown = {"pictures", *(row[1] for row in rows)}
    by_trainer = run is not probe
    if all_of_them and by_trainer:
        from ..training.arguments import RunArguments

        rows += [("transformers' Trainer", *row) for row in _flags(RunArguments) if row[0] not in shown]
    elif by_trainer:
        rows += [(_TRAINER_PANEL, flag, metavar, None, text) for flag, (metavar, text) in _MOST_USED.items()]
        rows = [row for row in rows if name not in _JOINED or row[1] not in _NOT_OF_JOINED]
    recipe = typer.Argument(
        help="Recipe of the package, or a YAML file.", metavar="RECIPE", autocompletion=list_recipes
    )
    more = typer.Option(_ALL, help="Show all settings, and those of transformers' Trainer.")
    annotations: dict[str, tuple[Any, Any]] = {
        "context": (typer.Context, inspect.Parameter.empty),
        "recipe": (Annotated[str | None, recipe], None),
        "help_all": (Annotated[bool, more], False),
    }
    for panel, flag, metavar, default, line in rows:
        option = typer.Option(f"--{flag}", help=line, metavar=metavar or None, rich_help_panel=panel)
        annotations[flag] = (Annotated[str | None, option], default) if metavar else (Annotated[bool, option], False)
    signature = inspect.Signature(
        [
            inspect.Parameter(flag, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for flag, (annotation, default) in annotations.items()
        ]
    )

    @functools.wraps(run)
    def command(context: typer.Context, **_settings: Any) -> None:
        run(context)

    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {}
    del command.__wrapped__
    return command


def _flags(kind: Any) -> list[tuple[str, str, str | None, str]]:
    """Name, form of the value, default and text of each setting; a name without a form turns the setting on."""
    hints = get_type_hints(kind)
    rows = []
    for item in dataclasses.fields(kind):
        make: Any = item.default_factory
        default = make() if item.default is dataclasses.MISSING else item.default
        if isinstance(default, list):
            default = " ".join(map(str, default)) or None
        form = _form(hints[item.name])
        if form == "" and default:
            form, default = "true|false", "true"
        text = " ".join(str(item.metadata.get("help", "")).replace("%%", "%").split())
        rows.append((item.name, form, None if default is None else str(getattr(default, "value", default)), text))
    return rows


def _form(hint: Any) -> str:
    """How a value of a type is written."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if _is_union(hint) else [hint]
    origins = [get_origin(kind) or kind for kind in kinds]
    if dict in origins:
        return "JSON"
    if list in origins:
        return f"{_form(get_args(kinds[origins.index(list)])[0])} ..."
    if Literal in origins:
        return "|".join(map(str, get_args(kinds[0])))
    kind = origins[0]
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        return "|".join(str(member.value) for member in kind)
    return {bool: "", int: "N", float: "NUMBER"}.get(kind, "TEXT")


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


# Name -> function, folder of its recipes, settings by panel of the help.
_COMMANDS: dict[str, tuple[Callable[[typer.Context], None], str, dict[str, tuple[type, ...]]]] = {
    "pretrain": (
        pretrain,
        "pretraining",
        {"Model": (ModelArguments,), "Data": (DataArguments,), "Run": (RunSettings, PretrainingSettings)},
    ),
    "finetune": (
        finetune,
        "classification",
        {
            "Model": (ClassificationModelArguments,),
            "Data": (DataArguments,),
            "Run": (RunSettings, ClassificationSettings),
        },
    ),
    "probe": (probe, "probe", {"Probe": (ProbeArguments,)}),
    "text": (text, "text", {"Text": (TextArguments,), "Run": (RunSettings,)}),
    "instruct": (instruct, "instruction", {"Instruction": (InstructionArguments,), "Run": (RunSettings,)}),
    "local-head": (
        local_head,
        "local_head",
        {"Model": (LocalHeadArguments,), "Data": (DataArguments,), "Run": (RunSettings, LocalHeadSettings)},
    ),
}


def _add(app: typer.Typer, name: str, panel: str | None = None, all_of_them: bool = False) -> None:
    text, examples = commands.parts_of_help(_COMMANDS[name][0])
    command = app.command(name, cls=_Command, help=text, epilog=examples, rich_help_panel=panel)
    command(_with_flags(name, all_of_them))


def add_to(app: typer.Typer, panel: str) -> None:
    """Make the commands part of a command line, under a heading of its help."""
    for name in _COMMANDS:
        _add(app, name, panel)
