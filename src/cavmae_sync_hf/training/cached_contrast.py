# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The contrast of a batch as a whole that does not fit into memory at once.

The contrastive loss needs the embeddings of all pairs, but of each pair's towers only the embedding. So the batch goes
through the model twice, a chunk at a time (GradCache, Gao et al. 2021): without gradients, to get all embeddings and
the gradient of the loss with respect to each; then with gradients, which start from those. The result is the gradient
of the whole batch, for the memory of a chunk and the time of one more forward pass of the towers.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..model.distributed_cavmae_sync import gather_sizes
from ..model.modeling_cavmae_sync import CavMaeSyncForPreTraining, CavMaeSyncForPreTrainingOutput

_MODALITIES = ("audio", "video")
_MASKS = {"audio": "padding_mask", "video": "padding_mask_videos"}


def cached_contrastive_step(
    model: nn.Module,
    core: CavMaeSyncForPreTraining,
    inputs: dict[str, Tensor],
    chunk_size: int,
    *,
    backward: Callable[[Tensor], None],
    autocast: Callable[[], AbstractContextManager],
    no_sync: Callable[[], AbstractContextManager],
) -> CavMaeSyncForPreTrainingOutput:
    """Accumulate the gradients of a batch's losses, computed `chunk_size` clips at a time.

    Args:
        model: What is called: the model itself or its data-parallel wrapper.
        core: The model inside.
        inputs: Arguments of the model for the whole batch, all tensors with the clips first. Masking noise must be
            among them, since both passes must hide the same patches.
        chunk_size: Most clips at a time. All processes use as many chunks as the one with the largest batch needs.
        backward: Called with a scalar for every chunk.
        autocast: Context of every forward pass.
        no_sync: Context of every backward pass but the last, in which processes need not exchange gradients.

    Returns:
        The losses of the whole batch and its embeddings, all without gradients.
    """
    teacher = {modality: inputs.pop(f"{modality}_teacher_embeds", None) for modality in _MODALITIES}
    present = {modality: inputs.get(_MASKS[modality]) for modality in _MODALITIES}
    together = core.model.trains_together
    # Nearly equal parts, the same number of them on every process.
    first = next(iter(inputs.values()))
    clips, device = len(first), first.device
    sizes = gather_sizes(clips)[0] if together else [clips]
    count = min(-(-max(sizes) // chunk_size), min(sizes))
    parts_of = {name: values.tensor_split(count) for name, values in inputs.items()}
    chunks = [{name: parts[number] for name, parts in parts_of.items()} for number in range(count)]
    output, states = CavMaeSyncForPreTrainingOutput(), []
    embeds: dict[str, list[Tensor]] = {modality: [] for modality in _MODALITIES}
    on_cuda = device.type == "cuda"
    with torch.no_grad(), autocast():
        for chunk in chunks:
            # What dropout draws from, on the CPU and the batch's device.
            states.append((torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_cuda else torch.empty(0)))
            found = model(**chunk, return_loss=False, reconstruct=False)
            for modality, parts in embeds.items():
                parts.append(found[f"{modality}_embeds"])
    for modality, parts in embeds.items():
        output[f"{modality}_embeds"] = torch.cat(parts).requires_grad_()
    with autocast():
        core.align(output, present, teacher)
    alignment: Any = core.weigh(output)
    sources = [output[f"{modality}_embeds"] for modality in _MODALITIES]
    wanted = torch.autograd.grad(alignment, sources)
    gradients = dict(zip(_MODALITIES, (gradient.split([len(p) for p in parts]) for gradient in wanted), strict=True))

    shares = _shares(chunks, together)
    reconstruction = {modality: torch.zeros((), device=alignment.device) for modality in _MODALITIES}
    for number, chunk in enumerate(chunks):
        torch.set_rng_state(states[number][0])
        if on_cuda:
            torch.cuda.set_rng_state(states[number][1])
        with autocast():
            found = model(**chunk, contrast=False)
            loss = torch.zeros((), device=alignment.device)
            for modality in _MODALITIES:
                loss = loss + (found[f"{modality}_embeds"] * gradients[modality][number]).sum()
                part = found.get(f"{modality}_reconstruction_loss")
                if part is not None:
                    part = part * shares[modality][number]
                    reconstruction[modality] += part.detach()
                    loss = loss + core.config.reconstruction_loss_weight * part
        if number + 1 < len(chunks):
            with no_sync():
                backward(loss)
        else:
            backward(loss)
    if core.config.reconstruction_loss_weight:
        for modality, total in reconstruction.items():
            output[f"{modality}_reconstruction_loss"] = total
    output.loss = core.weigh(output)
    for name, value in list(output.items()):
        output[name] = value.detach()
    return output


def _shares(chunks: list[dict[str, Tensor]], distributed: bool) -> dict[str, Tensor]:
    """Weight of every chunk's mean over removed patches in that of the batch: its share of the present samples."""
    counts = torch.stack([torch.stack([_present(chunk, modality) for chunk in chunks]) for modality in _MODALITIES])
    if distributed:
        dist.all_reduce(counts)
    return dict(zip(_MODALITIES, counts / counts.sum(dim=1, keepdim=True).clamp(min=1), strict=True))


def _present(chunk: dict[str, Tensor], modality: str) -> Tensor:
    mask = chunk.get(_MASKS[modality])
    values = chunk["audio_tokens"] if "audio_tokens" in chunk else chunk["input_values"]
    if mask is None:
        return torch.tensor(float(values.shape[0] * values.shape[1]), device=values.device)
    return mask.to(values.device).sum().float()
