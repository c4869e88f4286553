# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Losses that are not finite: no weight is changed by one, and the run stops with the clips named."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..model.distributed_cavmae_sync import world_size


@dataclass
class _Batch:
    """What is kept of a batch until its loss is looked at, all of it small."""

    step: int
    clips: list[str]
    loss: Tensor
    parts: dict[str, Tensor]
    # By clip a sum of all values, which is not finite where one of them is not.
    inputs: list[Tensor]
    outputs: list[Tensor]

    def bad_clips(self) -> tuple[list[str], str]:
        """Whose values are not finite, and which values."""
        for sums, why in (
            (self.inputs, "whose inputs are not finite"),
            (self.outputs, "whose outputs are not finite, while their inputs are"),
        ):
            bad = torch.zeros(len(self.clips), dtype=torch.bool)
            for values in sums:
                bad |= ~torch.isfinite(values).cpu()
            if bad.any() and not (bad.all() and sums is self.outputs):
                return [clip for clip, is_bad in zip(self.clips, bad.tolist(), strict=True) if is_bad], why
        return self.clips, "none of which stands out: lower the learning rate or `max_grad_norm`"


class LossGuard:
    """Keeps weights from losses that are not finite.

    To look at a loss is to wait for its device. torch's fused optimisers can be told there to leave the weights as
    they are, by the flag of gradient scaling (`found_inf`); with them, losses are looked at once in a while, and from
    the first that is not finite no weight is changed, on any process. With others each loss is looked at.

    Attributes:
        waits: Whether losses can wait until `check` is called.
    """

    def __init__(self) -> None:
        self.waits = False
        self._optimizer: Any = None
        self._flag = torch.zeros(())
        self._batches: list[_Batch] = []

    def attach(self, optimizer: Any, scales_gradients: bool = False) -> None:
        """Begin with an optimiser.

        Args:
            optimizer: Of torch, or accelerate's around it.
            scales_gradients: Whether the flag is in use for that.
        """
        self.detach()
        optimizer = getattr(optimizer, "optimizer", optimizer)
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.waits = (
            not scales_gradients
            and isinstance(optimizer, torch.optim.Adam)  # AdamW is one
            and all(group.get("fused") for group in optimizer.param_groups)
            and not any(isinstance(weight, DTensor) for weight in weights)
        )
        if self.waits:
            self._optimizer, self._flag = optimizer, torch.zeros((), device=weights[0].device)
            optimizer.found_inf = self._flag

    def detach(self) -> None:
        """Let the optimiser go."""
        if self._optimizer is not None:
            del self._optimizer.found_inf
        self._optimizer, self.waits, self._batches, self._flag = None, False, [], torch.zeros(())

    def note(
        self,
        output: Any,
        inputs: dict[str, Tensor],
        clips: list[str],
        *,
        step: int,
        parts: tuple[str, ...],
        last: bool,
    ) -> None:
        """Add a batch.

        Args:
            output: Of the model, with its `loss`.
            inputs: Of the model.
            clips: Names of the batch's clips.
            step: Number of the step.
            parts: Names of the losses in the output.
            last: Whether the optimiser's step follows.
        """
        loss = output.loss.detach()
        if not self.waits and bool(torch.isfinite(loss)):
            return
        count = len(clips)
        found = {name: output[name].detach() for name in parts if output.get(name) is not None}
        self._batches.append(
            _Batch(
                step,
                clips,
                loss,
                found or {"loss": loss},
                _sums(inputs.values(), count),
                _sums(output.values(), count),
            )  # fmt: skip
        )
        if not self.waits:
            return
        self._flag.clamp_(min=(~torch.isfinite(loss)).to(self._flag.dtype))
        if last and world_size() > 1:
            dist.all_reduce(self._flag, op=dist.ReduceOp.MAX)

    def check(self, process: int) -> tuple[str, list[str]] | None:
        """Look at the losses since the last call.

        Args:
            process: Number of this process.

        Returns:
            Of the first that is not finite what there is to say, and the names of the clips.
        """
        batches, self._batches = self._batches, []
        if not batches:
            return None
        losses = torch.stack([batch.loss.float() for batch in batches])
        flag = self._flag.to(losses.device) > 0
        *bad, stopped = torch.cat([~torch.isfinite(losses), flag.reshape(1)]).tolist()
        if True in bad:
            batch = batches[bad.index(True)]
            clips, why = batch.bad_clips()
            parts = ", ".join(f"{name} {value.item():g}" for name, value in batch.parts.items())
            return (
                f"The loss of step {batch.step} on process {process} is not finite ({parts}), with the clips "
                f"{', '.join(clips)}, {why}. No weight was changed by it."
            ), clips
        if stopped:
            return "The loss of another process is not finite; its message names the clips.", []
        return None


def _sums(tensors: Any, count: int) -> list[Tensor]:
    """By clip the sum of each tensor that has a row for every clip."""
    return [
        values.detach().reshape(count, -1).sum(dim=1, dtype=torch.float32)
        for values in tensors
        if isinstance(values, Tensor) and values.is_floating_point() and values.ndim and len(values) == count
    ]


__all__ = ["LossGuard"]
