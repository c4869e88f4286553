# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How is a classifier trained by low-rank changes to its encoder (LoRA), and how do these become part of it?"""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from .freezing import idle_modules

__all__ = ["add_lora", "is_lora", "merged_copy", "plain_model"]

# How the head is called in the classifier; it starts at random, so it is trained as a whole and saved beside the
# low-rank changes.
_HEAD = "head"


def add_lora(
    model: Any,
    rank: int,
    *,
    alpha: float = 0.0,
    dropout: float = 0.0,
    targets: Sequence[str] = ("q_proj", "v_proj"),
) -> Any:
    """Freeze a classifier's encoder and give its linear layers low-rank changes; the head is trained as a whole.

    Args:
        model: A `CavMaeSyncForAudioVisualClassification`; it is changed.
        rank: Rank of the changes.
        alpha: They are scaled by `alpha / rank`; `0`: by 2.
        dropout: Dropout on their inputs.
        targets: Last parts of the names of the linear layers: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `fc1`, `fc2`.
            Layers that the classification never passes are left out.

    Returns:
        A `peft.PeftModel` around the model, which is called like it.

    Raises:
        ImportError: peft is not installed.
        ValueError: A target is the name of no linear layer.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("LoRA needs peft; install it with pip install 'cavmae-sync-hf[lora]'.") from error

    unreached = {id(layer) for module in idle_modules(model) for layer in module.modules()}
    layers = [
        f"model.{name}"
        for name, layer in model.model.named_modules()
        if isinstance(layer, nn.Linear) and id(layer) not in unreached
    ]
    known = {name.rpartition(".")[2] for name in layers}
    unknown = sorted(set(targets) - known)
    if unknown or not targets:
        raise ValueError(
            f"`lora_targets` has {', '.join(unknown) or 'no name'}; the encoder's linear layers are "
            f"{', '.join(sorted(known))}."
        )
    chosen = [name for name in layers if name.rpartition(".")[2] in targets]
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=chosen,
        modules_to_save=[_HEAD],
    )
    return get_peft_model(model, settings)


def is_lora(model: Any) -> bool:
    """Whether it is a model that `add_lora` gave."""
    return hasattr(model, "get_base_model") and hasattr(model, "peft_config")


def plain_model(model: Any) -> Any:
    """The model inside the low-rank changes, or the model itself."""
    return model.get_base_model() if is_lora(model) else model


def merged_copy(model: Any) -> Any:
    """A classifier of its own, on the CPU, whose weights include the changes; the model stays as it is."""
    return copy.deepcopy(model).cpu().merge_and_unload()
