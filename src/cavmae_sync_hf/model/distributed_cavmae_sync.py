# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Losses of a batch that is spread over N processes: those, and the gradients, of one process with all of it.

Data-parallel training averages the gradients of its processes. So every process returns `world_size` times its own
share of the global mean (`share_of_mean`); the average of the shares is the global loss, and so are its gradients,
also where the processes hold batches of different sizes. Embeddings are gathered with their gradients: what one
process's loss asks of another's embeddings flows back to it (a sum over processes), which the average then divides by
the number of processes, exactly as the shares need.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_tensor_autograd


def world_size() -> int:
    """Processes that train together; 1 outside distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.compiler.disable
def gather_sizes(*sizes: int) -> list[list[int]]:
    """What every process has of each of some sizes, by rank.

    They go from host to host in a gloo group of their own: a number that came by way of the device could be read only
    when all work that was queued there before is done.
    """
    values = torch.tensor(sizes, device="cpu")
    found = values.new_empty(world_size() * len(sizes))
    dist.all_gather_into_tensor(found, values, group=_hosts())
    return found.view(-1, len(sizes)).T.tolist()


# By what stays the same until the processes part: the group of all of them.
_groups: "WeakKeyDictionary[Any, dist.ProcessGroup]" = WeakKeyDictionary()


def _hosts() -> "dist.ProcessGroup":
    """The group over which sizes go; made where all processes ask for it first."""
    if dist.group.WORLD not in _groups:
        _groups[dist.group.WORLD] = dist.new_group(backend="gloo")
    return _groups[dist.group.WORLD]


def gather_with_gradient(tensor: Tensor, sizes: list[int]) -> Tensor:
    """Every process's `(rows, ...)`, joined by rank; gradients flow back to the process whose rows they are.

    Args:
        tensor: This process's rows.
        sizes: Rows of every process, from `gather_sizes`.

    Returns:
        Shape `(sum(sizes), ...)`.
    """
    longest = max(sizes)
    if len(tensor) < longest:  # the collective needs equal shapes
        tensor = torch.cat([tensor, tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])])
    assert dist.group.WORLD is not None
    gathered = all_gather_tensor_autograd(tensor.contiguous(), gather_dim=0, group=dist.group.WORLD)
    if gathered.requires_grad:  # the collective of the backward pass takes no others
        gathered.register_hook(torch.Tensor.contiguous)
    if min(sizes) == longest:
        return gathered
    return torch.cat([rows[:size] for rows, size in zip(gathered.split(longest), sizes, strict=True)])


def share_of_mean(total: Tensor, count: Tensor, distributed: bool) -> Tensor:
    """This process's share of a mean: `total / count`, or with `distributed` times processes over the global count.

    Args:
        total: Sum of this process's values, a scalar.
        count: Number of this process's values, a scalar; 0 everywhere gives 0.
        distributed: Whether all processes compute this mean together.
    """
    if not distributed:
        return total / count.clamp(min=1)
    everyone = count.detach().clone()
    dist.all_reduce(everyone)
    return total * (world_size() / everyone.clamp(min=1))


__all__ = ["gather_sizes", "gather_with_gradient", "share_of_mean", "world_size"]
