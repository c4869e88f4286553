# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The subcommand that asks about a film in words."""

from contextlib import ExitStack
from typing import Annotated, Any

import typer

from ..data.clock import format_clock
from ..model.errors_cavmae_sync import printable
from . import terminal
from .completion import model_names
from .kinds import FolderIn, MediaIn, ModelName, Needs
from .options import AsJson, Damaged, Device, End, Model, Start


def ask(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="Video or audio file, or address of one."), MediaIn()],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="One or more, about the same film.")],
    *,
    model: Model,
    num_frames: Annotated[
        int | None, typer.Option(min=1, help="Moments looked at, evenly chosen; default: as many as in training.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Moments looked at per second instead.")] = None,
    start: Start = None,
    end: End = None,
    search_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A model with text, which first looks through all of the film for what the question tells of.",
            autocompletion=model_names,
        ),
        ModelName(),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(metavar="INDEX", help="An index that holds the film, which is asked instead of the film itself."),
        FolderIn("index", holds="moments.lance", remedy="`cavmae-sync index SOURCE INDEX` makes one."),
        Needs("search", "Search"),
    ] = None,
    search_text: Annotated[
        str | None, typer.Option(metavar="WORDS", help="What is looked for; default: the question.")
    ] = None,
    most_moments: Annotated[
        int | None, typer.Option(min=1, help="Moments found, at most; default: as many as in training.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    damaged: Damaged = "error",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Ask about a video or an audio file in words; prints the answer, then the moments that it may mean.

    The model needs a language model, as `cavmae-sync instruct` trains one. Moments are told with their shares, as far
    as they are clearly likelier than others; they mean something where the question asks for a time. Of a long film
    the model looks at a few moments: give --search-model or --index to have them found by the question.

    Examples:
        cavmae-sync ask film.mp4 "When does the bell ring?" --model my-lm
        cavmae-sync ask film.mp4 "What rings?" "Left or right?" -m my-lm --fps 2
        cavmae-sync ask film.mp4 "When does it ring?" -m my-lm --search-model words
    """
    device = terminal.choose_device(device)
    from ..loading import load_model
    from ..search.asking import iter_ask

    loaded, processor = load_model(model, use="answer", device=device)
    finder = None if search_model is None else load_model(search_model, use="text", device=device)
    answers = []
    with ExitStack() as bar:
        show = bar.enter_context(terminal.progress_bar("looking", unit="s"))
        begun = False

        def stream(piece: str) -> None:
            nonlocal begun
            bar.close()  # which would be drawn over the answer
            piece = piece if begun else piece.lstrip()
            begun = begun or bool(piece)
            print("\n".join(map(printable, piece.split("\n"))), end="", flush=True)

        found = iter_ask(
            video, questions, loaded, processor, num_frames=num_frames, fps=fps, start=start, end=end,
            max_new_tokens=max_new_tokens, search_model=finder, index=index, search_text=search_text,
            most_moments=most_moments, damaged=damaged, stream=None if as_json else stream, progress=show,
        )  # fmt: skip
        for question in questions:
            if len(questions) > 1 and not as_json:
                bar.close()
                terminal.say(question)
            begun = False
            answers.append(next(found))
            if not as_json:
                _show(answers[-1])
    if as_json:
        entries: list[dict[str, Any]] = [answer.to_dict() for answer in answers]
        terminal.print_json({"model": model, "device": device, "answers": entries})
    elif start:
        terminal.note(f"Times in the words of an answer count from {format_clock(start)}.")


def _show(answer: Any) -> None:
    """End the line of an answer, and tell its moments."""
    if not answer.text:
        print("(no words)", end="")
    print(flush=True)
    for time, share in answer.moments:
        terminal.say(f"  {format_clock(time)}  {share:.0%}")
