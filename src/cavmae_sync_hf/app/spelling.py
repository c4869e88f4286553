# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Remedies in the page's words, and what a visitor may choose of a file's audio."""

from typing import Any

from ..model.errors_cavmae_sync import Hint

# What to listen to in a file that is sent: the page's words, and the arguments of `iter_media`.
AUDIO_CHOICES: dict[str, dict[str, Any]] = {
    "As it plays": {},
    "All channels mixed": {"channel": "mean"},
    "Audio track 1": {"audio_track": 0},
    "Audio track 2": {"audio_track": 1},
    "Audio track 3": {"audio_track": 2},
}
AUDIO_LABEL = "Audio of your file"


def on_page(hint: Hint) -> str | None:
    """A remedy as the page words it; `None` for what it has no place to set."""
    for words, arguments in AUDIO_CHOICES.items():
        if arguments == {hint.argument: hint.value}:
            return f"choose “{words}” at “{AUDIO_LABEL}” and send it again"
    return None
