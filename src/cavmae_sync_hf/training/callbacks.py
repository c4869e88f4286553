# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What happens beside the steps: a run that is told to end saves first."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from ..model.distributed_cavmae_sync import world_size

__all__ = ["SaveOnSignal"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SaveOnSignal(TrainerCallback):
    """At SIGTERM (and the first Ctrl-C) the step at hand is finished, a checkpoint saved and the training left.

    Schedulers send SIGTERM some seconds before they kill. All processes stop at the same step, even where the signal
    reached only one of them. A second Ctrl-C interrupts at once.

    Attributes:
        received: The signal that ended the training, `None` if none did.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals while the block runs; in the main thread, where Python lets signals be taken."""
        previous = {}
        with contextlib.suppress(ValueError):  # not the main thread
            for number in SIGNALS:
                previous[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Ask for a checkpoint and the end, if any process was told to end."""
        number = 0 if self.received is None else int(self.received)
        if world_size() > 1:
            agreed = torch.tensor([number], device=args.device)
            dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
            number = int(agreed)
        if number:
            self.received = signal.Signals(number)
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        return control
