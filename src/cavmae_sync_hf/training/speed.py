# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Arithmetic of a training step, the rate that a device reaches, and speed and memory of a run."""

import time

import torch

from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.encoder_families_cavmae_sync import encoder_family, hidden_width

# Times the forward pass's products: itself once, and the gradients of inputs and of weights.
_STEP = 3
# The same of another model's encoder: one that is frozen has no gradients, one with low-rank changes none of weights.
_PASSES = {"frozen": 1, "lora": 2, "full": _STEP}


def pretraining_flops(config: CavMaeSyncConfig) -> int:
    """Floating-point operations of one pair (a frame and its window) in a pretraining step, forward and backward.

    Matrix products alone, a multiply-add counted as two. The backward pass does twice the forward's, but for the
    projection of the patches, whose inputs need no gradient. Recomputation (activation checkpointing) is not counted,
    as is usual for a model's FLOP utilisation, and neither is a teacher.
    """
    return sum(pretraining_flops_by_part(config).values())


def pretraining_flops_by_part(config: CavMaeSyncConfig) -> dict[str, int]:
    """The operations that `pretraining_flops` adds up, of `"audio tower"`, `"video tower"`, `"contrast"` (the joint
    layers for each modality alone), `"fusion"` (the joint layers for both) and `"decoder"`.
    """
    width, inner = config.hidden_size, config.intermediate_size
    decode, align = bool(config.reconstruction_loss_weight), bool(config.contrastive_loss_weight)
    own_ratio = config.contrastive_mask_ratio if align else None
    apart = own_ratio is not None
    parts = dict.fromkeys(("audio tower", "video tower", "contrast", "fusion", "decoder"), 0)
    fused, asked = 0, 0
    for modality, grid, ratio, channels, predicted_channels in (
        ("audio", config.audio_grid, config.audio_mask_ratio, 1, 1),
        ("video", config.video_grid, config.video_mask_ratio, config.frame_channels, config.num_channels),
    ):
        patches, values = grid[0] * grid[1], config.patch_size**2 * channels
        kept = int(patches * (1 - ratio))
        contrasted = kept if own_ratio is None else int(patches * (1 - own_ratio))
        extra = int(config.use_global_tokens)
        encoder = config.encoders.get(modality)
        for visible in ([kept] if decode or not apart else []) + ([contrasted] if apart else []):
            if encoder is not None:
                seen = visible if encoder_family(encoder).drops_tokens else patches
                parts[f"{modality} tower"] += _PASSES[config.encoder_training] * _encoder_flops(config, modality, seen)
                continue
            tokens = visible + extra + config.num_register_tokens
            # Every patch is projected before the masking picks among them; inputs need no gradient.
            parts[f"{modality} tower"] += (_STEP - 1) * 2 * patches * values * width
            parts[f"{modality} tower"] += _STEP * config.num_modality_layers * _layer(tokens, width, inner)
        if align:
            layers = config.num_joint_layers + config.num_contrastive_head_layers
            parts["contrast"] += _STEP * layers * _layer(contrasted + extra, width, inner)
        removed = patches - kept
        if config.decoder_type == "cross" or config.decoder_mask_ratio:
            predicted = min(removed, max(1, removed - int(removed * config.decoder_mask_ratio)))
        else:
            predicted = patches
        fused, asked = fused + kept, asked + min(removed, predicted)
        parts["decoder"] += (
            _STEP * 2 * predicted * config.decoder_hidden_size * config.patch_size**2 * predicted_channels
        )
    parts["fusion"] = _STEP * config.num_joint_layers * _layer(fused, width, inner)
    decoder_sizes = config.decoder_hidden_size, config.decoder_intermediate_size
    if config.decoder_type == "cross":
        decoder_layer = _layer(asked, *decoder_sizes, memory=fused)
    else:
        decoder_layer = _layer(fused + asked, *decoder_sizes)
    parts["decoder"] += _STEP * config.decoder_num_hidden_layers * decoder_layer
    parts["decoder"] += _STEP * 2 * fused * width * config.decoder_hidden_size
    return parts if decode else parts | {"fusion": 0, "decoder": 0}


def classification_flops(config: CavMaeSyncConfig, encoder_passes: int = 3) -> int:
    """Floating-point operations of one pair (a frame and its window) in a step of a classifier's training.

    Args:
        config: The classifier's; a head over frames is taken to see `num_frames` of them.
        encoder_passes: Times the encoder's forward pass: 3 for a trained one, 2 where gradients only go through it
            (LoRA), 1 for a frozen one.
    """
    width, inner = config.hidden_size, config.intermediate_size
    extra, alone = int(config.use_global_tokens), config.modality != "multimodal"
    over_frames = config.classifier_type == "frame_attention"
    encoder, joined = 0, 0
    grids = (("audio", config.audio_grid, 1), ("video", config.video_grid, config.frame_channels))
    for modality, grid, channels in grids:
        if config.modality not in ("multimodal", modality):
            continue
        patches = grid[0] * grid[1]
        if modality in config.encoders:
            passes = min(encoder_passes, _PASSES[config.encoder_training])
            encoder += passes * _encoder_flops(config, modality, patches)
            joined += patches + (extra if over_frames else 0)
            continue
        encoder += min(encoder_passes, _STEP - 1) * 2 * patches * config.patch_size**2 * channels * width
        tokens = patches + extra + config.num_register_tokens
        encoder += encoder_passes * config.num_modality_layers * _layer(tokens, width, inner)
        joined += patches + (extra if over_frames else 0)
    if alone or not over_frames:
        encoder += encoder_passes * config.num_joint_layers * _layer(joined, width, inner)
    scale = 2 if over_frames and not alone else 1
    head = 2 * scale * width * (config.num_labels or 1)
    if over_frames:
        layers = config.num_classifier_layers * _layer(config.num_frames + 1, scale * width, scale * inner)
        head = (head + layers) // config.num_frames
    return encoder + _STEP * head


def _encoder_flops(config: CavMaeSyncConfig, modality: str, tokens: int) -> int:
    """Of one forward pass of another model's encoder: its blocks, without what makes tokens of its input."""
    encoder, width = config.encoders[modality], hidden_width(config.encoders[modality])
    inner = getattr(encoder, "intermediate_size", None) or getattr(encoder, "encoder_ffn_dim", None) or 4 * width
    return config.tower_layers(modality) * _layer(tokens, width, inner)


def _layer(tokens: int, width: int, inner: int, memory: int | None = None) -> int:
    """Matrix products of a transformer layer: four projections, scores and their use, the feed-forward part.

    Args:
        tokens: That go through it.
        width: Of a token.
        inner: Of the feed-forward part.
        memory: Tokens that they attend to, if it is not they themselves.
    """
    others = tokens if memory is None else memory
    projections = 2 * (2 * tokens + 2 * others) * width * width
    return projections + 4 * tokens * others * width + 2 * tokens * 2 * width * inner


def measure_peak(device: torch.device, dtype: torch.dtype, size: int | None = None, seconds: float = 0.5) -> float:
    """Rate of a large matrix product on a device, in TFLOP/s: what is within reach, below the data sheet's.

    Args:
        device: Where to multiply.
        dtype: Of the matrices.
        size: Rows and columns; default: 8192 on accelerators, 2048 on a CPU.
        seconds: How long to measure; at least five products are made.
    """
    size = size or (2048 if device.type == "cpu" else 8192)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    _wait(device)
    began, runs = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(5):
            left @ right
        _wait(device)
        runs += 5
    return runs * 2 * size**3 / (time.perf_counter() - began) / 1e12


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given; a CPU has by then."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class SpeedMeter:
    """Speed since the last log line."""

    def __init__(self, flops_per_pair: int) -> None:
        self.flops_per_pair, self.peak_tflops = flops_per_pair, 0.0
        self.restart()

    def restart(self) -> None:
        """Forget; called after what is no training."""
        self.began, self.waited, self.clips, self.pairs = time.perf_counter(), 0.0, 0, 0

    def add(self, clips: int, pairs: int) -> None:
        self.clips, self.pairs = self.clips + clips, self.pairs + pairs

    def read(self, processes: int) -> dict[str, float]:
        """Metrics of the time since the last call, of all processes, taken as alike; then begins anew."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        tflops = self.pairs * self.flops_per_pair / seconds / 1e12
        metrics = {
            "samples_per_second": self.clips * processes / seconds,
            "data_wait_share": min(1.0, self.waited / seconds),
            "tflops_per_device": tflops,
        }
        if self.peak_tflops:
            metrics["flop_utilisation"] = tflops / self.peak_tflops
        self.restart()
        return metrics


def memory_in_use(device: torch.device) -> dict[str, float]:
    """Most memory held so far, in GiB: the device's, or the process's own on a CPU."""
    if device.type == "cuda":
        return {"memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    try:
        import resource
    except ImportError:  # not on Windows
        return {}
    return {"memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
