# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What a preparation tells: how far it is, and what it did."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .failures import Failure
from .shards import BAD_CLIPS_NAME, ShardIndex


@dataclass(frozen=True)
class PrepareProgress:
    """How far a run is.

    Attributes:
        done: Clips finished, good and bad, in this run and in earlier ones.
        total: Clips of the source.
        bad: Bad clips in finished shards.
        rate: Clips per second of this run, 0 before the first.
        seconds_left: At that rate, `None` before the first clip.
    """

    done: int
    total: int
    bad: int
    rate: float
    seconds_left: float | None


@dataclass(frozen=True)
class PrepareSummary:
    """What a run did.

    Attributes:
        folder: Folder of the shards.
        index: What its `index.json` says.
        made: Clips read in this run, good and bad; the others were there already.
        reasons: Bad clips per reason.
        seconds: Time this run took.
        failures: The bad clips, as every batch tells them.
        captions: Captions of all clips.
        with_captions: Clips that have some.
    """

    folder: Path
    index: ShardIndex
    made: int
    reasons: dict[str, int]
    seconds: float
    failures: list[Failure] = field(default_factory=list, repr=False)
    captions: int = 0
    with_captions: int = 0

    def __str__(self) -> str:
        index = self.index
        rate = f", {self.made / self.seconds:.1f} clips/s" if self.made and self.seconds else ", all there already"
        text = f"{self.folder}: {counted(index.clips, 'clip')} in {counted(len(index.shards), 'shard')}{rate}; "
        if self.captions:
            text += f"{counted(self.captions, 'caption')} of {counted(self.with_captions, 'clip')}; "
        text += counted(index.bad_clips, "bad clip")
        if not index.bad_clips:
            return text
        kinds = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        return f"{text} left out ({kinds}), see {BAD_CLIPS_NAME}"


def counted(number: int, noun: str) -> str:
    """A number and what it counts, `1 clip` or `2 clips`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class ProgressMeter:
    """Counts clips and tells how fast and how far.

    Args:
        report: Called with every step, `None` for nothing.
        total: Clips of the source.
        to_make: Clips to make in this run.
    """

    def __init__(self, report: Callable[[PrepareProgress], None] | None, total: int, to_make: int) -> None:
        self.report, self.total, self.to_make = report, total, to_make
        self.finished = self.bad = self.shown = 0
        self.began = time.perf_counter()
        self.show(0)

    def add(self, note: dict[str, Any]) -> None:
        """A shard is finished."""
        self.finished += len(note["clips"]) + len(note["bad"])
        self.bad += len(note["bad"])
        self.show(0)

    def show(self, unfinished: int) -> None:
        """Report, with this many clips finished in unfinished shards."""
        if self.report is None:
            return
        # A shard that is begun again, after a crash, takes nothing back.
        self.shown = made = max(self.shown, self.finished + unfinished)
        rate = made / max(time.perf_counter() - self.began, 1e-9)
        left = (self.to_make - made) / rate if made else None
        done = self.total - self.to_make + made
        self.report(PrepareProgress(done=done, total=self.total, bad=self.bad, rate=rate, seconds_left=left))
