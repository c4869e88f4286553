# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What a conversion found, kept, dropped and made new, and how it says that it cannot be done."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ..model.configuration_cavmae_sync import CavMaeSyncConfig

_SHOWN_NAMES = 8
_SIZES = (
    "hidden_size",
    "num_attention_heads",
    "num_modality_layers",
    "num_joint_layers",
    "intermediate_size",
    "audio_length",
    "num_mel_bins",
    "image_size",
    "patch_size",
    "use_global_tokens",
    "num_register_tokens",
    "num_contrastive_head_layers",
    "position_embedding_type",
    "modality",
)
_DECODER_SIZES = (
    "decoder_hidden_size",
    "decoder_num_attention_heads",
    "decoder_num_hidden_layers",
    "decoder_intermediate_size",
)


@dataclass
class ConversionReport:
    """What was converted into what. `str(report)` is the text that people read.

    Attributes:
        family: What the tensors show the file to be, such as `"CAV-MAE Sync pretraining"`.
        model_class: Name of the class that the weights were made for.
        config: The inferred configuration.
        num_parameters: Values in the converted state dict.
        dropped: Published names that were left out, by the reason for it.
        new: Our names of weights that the file does not have and that were drawn at random.
        notes: Facts about the file that the tensors do not tell, or that need a decision.
        source: The file or folder read, when there was one.
        sha256: SHA-256 of every weight file read, by its name.
        destination: The folder written, when there was one.
    """

    family: str
    model_class: str
    config: CavMaeSyncConfig
    num_parameters: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    destination: str | None = None

    def drop(self, reason: str, name: str) -> None:
        """Note that the published `name` is left out."""
        self.dropped.setdefault(reason, []).append(name)

    def __str__(self) -> str:
        lines = [f"Family:      {self.family}"]
        if self.source is not None:
            lines.insert(0, f"Source:      {self.source}")
        lines += [f"SHA-256:     {digest}  {name}" for name, digest in self.sha256.items()]
        lines.append(f"Model:       {self.model_class}, {self.num_parameters:,} parameters")
        names = [*_SIZES]
        if self.model_class == "CavMaeSyncForPreTraining":
            names += _DECODER_SIZES
        if self.model_class == "CavMaeSyncForAudioVisualClassification":
            names += ["classifier_type", "num_labels", "problem_type"]
        lines.append("Sizes:       " + ", ".join(f"{name}={getattr(self.config, name)}" for name in names))
        for reason, left_out in self.dropped.items():
            lines.append(f"Dropped:     {len(left_out)} tensors, {reason}: {shorten(left_out)}")
        if self.new:
            lines.append(f"New:         {len(self.new)} tensors, drawn at random: {shorten(self.new)}")
        lines += [f"Note:        {note}" for note in self.notes]
        if self.destination is not None:
            lines.append(f"Written to:  {self.destination}")
        return "\n".join(lines)


class Conversion(NamedTuple):
    """A converted state dict with what it belongs to.

    Attributes:
        model_class: The class whose `state_dict` this is.
        config: Its configuration.
        state_dict: Our names and tensors.
        report: How it came about.
    """

    model_class: Any
    config: CavMaeSyncConfig
    state_dict: dict[str, Tensor]
    report: ConversionReport


def shorten(names: list[str], shown: int = _SHOWN_NAMES) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f", and {more} more" if more > 0 else "")


__all__ = ["Conversion", "ConversionReport", "shorten"]
