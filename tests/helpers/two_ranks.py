"""What each of several gloo processes does in the tests of distributed training."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from cavmae_sync_hf.model.configuration_text_cavmae_sync import CavMaeSyncTextDualEncoderConfig
from cavmae_sync_hf.model.distributed_cavmae_sync import gather_sizes
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from cavmae_sync_hf.model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel
from cavmae_sync_hf.training.cached_contrast import cached_contrastive_step
from helpers.tiny import tiny_config, tiny_inputs, tiny_text_config


def run_ranks(work: Callable[..., Any], folder: Path, *arguments: Any, ranks: int = 2) -> list[Any]:
    """What `work(rank, *arguments)` returns in each of `ranks` processes of one gloo group."""
    # Forked from a server that has imported what they need, once for all tests.
    mp.get_context("forkserver").set_forkserver_preload(["helpers.training_ranks", "cavmae_sync_hf.data.prepare"])
    mp.start_processes(_rank, (ranks, work, folder, arguments), nprocs=ranks, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _rank(rank: int, ranks: int, work: Callable[..., Any], folder: Path, arguments: tuple) -> None:
    torch.set_num_threads(1)
    # accelerate asks for an address, though the group is there already.
    os.environ.update(GLOO_SOCKET_IFNAME="lo", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    # A file, since a port that is free now may be another's when it is bound.
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    try:
        torch.save(work(rank, *arguments), folder / f"{rank}.pt")
        # Who leaves while another still hears of what they did together takes that process down.
        store.set(f"{rank} ends", "")
        store.wait([f"{other} ends" for other in range(ranks)])
    finally:
        dist.destroy_process_group()


def batch(clips: slice, masked: bool) -> dict[str, torch.Tensor]:
    """Some of five clips of two frames, with the noise that masks their patches."""
    generator = torch.Generator().manual_seed(1)
    inputs = tiny_inputs(batch_size=5, num_frames=2) | {
        "audio_noise": torch.rand(5, 2, 12, generator=generator),
        "video_noise": torch.rand(5, 2, 16, generator=generator),
        "contrastive_audio_noise": torch.rand(5, 2, 12, generator=generator),
        "contrastive_video_noise": torch.rand(5, 2, 16, generator=generator),
    }
    for modality in ("audio", "video"):
        target = torch.randn(5, 2, 32, generator=generator)
        inputs[f"{modality}_teacher_embeds"] = torch.nn.functional.normalize(target, dim=-1)
    if masked:
        inputs["padding_mask"] = torch.ones(5, 2, dtype=torch.bool)
        inputs["padding_mask"][3, 1] = inputs["padding_mask"][4, 0] = False
    inputs = {name: value[clips] for name, value in inputs.items()}
    if masked and inputs["padding_mask"].all():
        del inputs["padding_mask"]  # a collator leaves it out where nothing is absent, so ranks differ in it
    return inputs


def model(**settings: Any) -> CavMaeSyncForPreTraining:
    torch.manual_seed(0)
    return CavMaeSyncForPreTraining(tiny_config(**settings)).train()


# Texts of five clips: tokens, clip (-1: a made negative), what it says, where. Some say the same of several clips.
_TEXTS = (
    ([5, 6, 7], 0, 0, [1, 0]),
    ([5, 8], 0, 1, [-1, -1]),
    ([5, 6, 7], 1, 0, [-1, -1]),
    ([9, 6, 7, 4], -1, 2, [-1, -1]),
    ([5, 8], 2, 1, [0, 1]),
    ([9, 3], 3, 3, [1, 1]),
    ([5, 6, 7], 4, 0, [1, 0]),
    ([4, 4, 4, 4, 4], 4, 4, [-1, -1]),
    ([9, 3], -1, 3, [-1, -1]),
)
_CLIP_KEYS = torch.tensor([[0, 1, -1], [0, 3, -1], [1, -1, -1], [3, -1, -1], [0, 4, 2]])


def text_batch(clips: slice, texts: slice, keys: bool) -> dict[str, torch.Tensor]:
    """Some of five clips, and some of their texts, filled up to the longest of these; with or without keys."""
    rows = _TEXTS[texts]
    ids = torch.zeros(len(rows), max(len(row[0]) for row in rows), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row[0])] = torch.tensor(row[0])
    inputs = {name: value for name, value in batch(clips, keys).items() if name.startswith(("pixel", "input", "padd"))}
    inputs |= {"input_ids": ids, "attention_mask": (ids > 0).long()}
    first = clips.start or 0
    inputs["caption_clip_ids"] = torch.tensor([row[1] - first if row[1] >= 0 else -1 for row in rows])
    inputs["caption_moments"] = torch.tensor([row[3] for row in rows])
    if keys:
        inputs["caption_keys"] = torch.tensor([row[2] for row in rows])
        inputs["hard_clip_ids"] = torch.where(inputs["caption_keys"] == 1, inputs["caption_clip_ids"], -1)
        known = _CLIP_KEYS[clips]
        inputs["clip_keys"] = known[:, : int((known >= 0).sum(dim=1).max())]
    return inputs


def text_model(**settings: Any) -> CavMaeSyncTextDualEncoderModel:
    torch.manual_seed(0)
    text = tiny_text_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = CavMaeSyncTextDualEncoderConfig.from_av_text_configs(
        tiny_config(), text, text_dropout=0.0, logit_bias_init_value=-1.0, **settings
    )
    return CavMaeSyncTextDualEncoderModel(config).train()


# Settings, and whether what texts say is told by keys.
TEXT_CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "sigmoid": ({"audio_video_loss_weight": 0.5}, True),
    "softmax": ({"text_loss": "softmax", "projection_dim": 20}, True),
    "softmax without layers": (
        {"text_loss": "softmax", "num_text_layers": 0, "num_clip_layers": 0, "score_sequences": False},
        True,
    ),
    "texts told by their tokens": ({}, False),
}


def text_losses_and_gradients(network: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Of texts and clips."""
    output = network(**inputs, return_loss=True)
    output.loss.backward()
    return {name: output[name].detach() for name in output if name.endswith("loss")} | {
        "gradients": {name.removeprefix("module."): weight.grad for name, weight in network.named_parameters()}
    }


def losses_and_gradients(
    network: torch.nn.Module, inputs: dict[str, torch.Tensor], chunk_size: int = 0
) -> dict[str, Any]:
    """Of a batch at once, or of `chunk_size` clips at a time."""
    if chunk_size:
        output = cached_contrastive_step(
            network,
            getattr(network, "module", network),
            dict(inputs),
            chunk_size,
            backward=torch.Tensor.backward,
            autocast=contextlib.nullcontext,
            no_sync=getattr(network, "no_sync", contextlib.nullcontext),
        )
    else:
        output = network(**inputs)
        output.loss.backward()
    parts = [name for name in output if name.endswith("loss")]
    return {name: output[name].detach() for name in (*parts, "contrastive_accuracy")} | {
        "gradients": {name.removeprefix("module."): weight.grad for name, weight in network.named_parameters()}
    }


# (clips of rank 0 out of five, whether windows are absent, settings)
CASES: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "unequal batches, as at the end of an epoch": (3, False, {}),
    "both directions, absent windows on one rank": (
        3,
        True,
        {"bidirectional_contrast": True, "contrastive_loss_weight": 1.0},
    ),
    "moments of the same clip as negatives": (
        2,
        True,
        {"intra_clip_negatives": True, "use_global_tokens": False, "num_register_tokens": 0},
    ),
    "contrast in a pass of its own, with a teacher": (
        3,
        True,
        {"contrastive_mask_ratio": 0.5, "distillation_loss_weight": 0.5},
    ),
}


# Cases of whole batches alone.
DENSE_CASES: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "patches with patches": (3, False, {"dense_loss_weight": 0.5, "dense_size": 6}),
    "patches in both directions, absent windows": (
        2,
        True,
        {"dense_loss_weight": 0.5, "bidirectional_contrast": True, "dense_variation_weight": 2.0},
    ),
}


def train_steps(rank: int) -> dict[str, Any]:
    """One step of data-parallel training for every case, also in chunks, and what evaluation by rank 0 alone gives."""
    results: dict[str, Any] = {}
    for name, (split, masked, settings) in CASES.items():
        clips = slice(0, split) if rank == 0 else slice(split, 5)
        inputs = batch(clips, masked)
        results[name] = losses_and_gradients(DistributedDataParallel(model(**settings)), inputs)
        results[name, "chunks"] = losses_and_gradients(DistributedDataParallel(model(**settings)), inputs, 2)
    for name, (split, masked, settings) in DENSE_CASES.items():
        inputs = batch(slice(0, split) if rank == 0 else slice(split, 5), masked)
        results[name] = losses_and_gradients(DistributedDataParallel(model(**settings)), inputs)
    for name, (settings, keys) in TEXT_CASES.items():
        clips, texts = (slice(0, 3), slice(0, 5)) if rank == 0 else (slice(3, 5), slice(5, 9))
        network = DistributedDataParallel(text_model(**settings), find_unused_parameters=True)
        results[name] = text_losses_and_gradients(network, text_batch(clips, texts, keys))
    with torch.device("meta"):  # whose values nobody can read
        results["sizes"] = gather_sizes(rank + 2, 7)
    if rank == 0:  # must not wait for the other
        results["evaluation"] = model().eval()(**batch(slice(0, 3), False)).loss.item()
    return results
