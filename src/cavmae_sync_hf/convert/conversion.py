# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Conversion of a published checkpoint into a folder that `from_pretrained` loads, and the report on it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging

from ..hub import save_for_hub
from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.errors_cavmae_sync import Hint, ModelError, in_python
from ..model.modeling_cavmae_sync import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncPreTrainedModel,
)
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model_card import CardDetails
from .published import (
    Family,
    Renaming,
    adapt_mae,
    drop_decoder,
    has_decoder,
    infer_config,
    is_mae,
    is_transformers_mae,
    move_classifier,
    move_decoder,
    move_encoder,
    rename_transformers_mae,
    tell_family,
)
from .reading import not_finite, read_checkpoint, shorten, strip_prefixes

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
    """What was converted into what. `str(report)` is the text that people read; `spelled` gives it in the words of
    another surface.

    Attributes:
        family: What the tensors show the file to be, such as `"CAV-MAE Sync pretraining"`.
        model_class: Name of the class that the weights were made for.
        config: The inferred configuration.
        num_parameters: Values in the converted state dict.
        dropped: Published names that were left out, by the reason for it.
        new: Our names of weights that the file does not have and that were drawn at random.
        notes: Facts about the file that the tensors do not tell, or that need a decision.
        hints: Settings that would decide otherwise.
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
    hints: list[Hint] = field(default_factory=list)
    source: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    destination: str | None = None

    def __str__(self) -> str:
        return self.spelled()

    def spelled(self, spell: Callable[[Hint], str | None] = in_python) -> str:
        """The text, a fact a line.

        Args:
            spell: As in `CavMaeSyncError.spelled`.
        """
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
        lines += [f"Option:      {sentence}" for hint in self.hints if (sentence := hint.sentence(spell))]
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

    model_class: type[CavMaeSyncPreTrainedModel]
    config: CavMaeSyncConfig
    state_dict: dict[str, Tensor]
    report: ConversionReport


def convert_checkpoint(
    src: str | os.PathLike, dst: str | os.PathLike, config_overrides: Mapping[str, Any] | None = None
) -> ConversionReport:
    """Convert a published checkpoint into a folder that loads, and can be uploaded, as it is.

    The folder holds the configuration, processor files, safetensors, the code of every auto class and a model card.

    The family is told by the tensors: CAV-MAE Sync and CAV-MAE pretraining, their classifiers, the ImageNet MAE
    initialisation that the authors adapted, an MAE checkpoint itself (the authors' file, or a transformers folder).
    Sizes come from the shapes; what shapes do not tell takes the published value, or the override.

    Args:
        src: A `.pth` or safetensors file, or a transformers folder.
        dst: The folder to write; it must not exist, or be empty. It appears when everything in it is written.
        config_overrides: Settings of `CavMaeSyncConfig` that the tensors do not tell, such as
            `{"num_attention_heads": 6}`, or `{"modality": "audio"}` for a classifier fine-tuned on audio alone.

    Returns:
        What was found, dropped and made new; `str()` of it is the text to show.

    Raises:
        ModelError: `src` is no checkpoint, is damaged or does not fit; or `dst` is in use. Nothing is written.
    """
    dst = Path(dst).expanduser()
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ModelError(f"{dst}: already exists and is not an empty folder; name another one, or remove it.")
    conversion = convert_file(src, config_overrides)
    conversion.report.destination = str(dst)
    _write(conversion, dst)
    return conversion.report


def convert_file(src: str | os.PathLike, config_overrides: Mapping[str, Any] | None = None) -> Conversion:
    """Convert a published checkpoint in memory; writes nothing.

    Args:
        src: As in `convert_checkpoint`. Of a ViT-MAE folder, the head counts are those of its `config.json`.
        config_overrides: As in `convert_checkpoint`.

    Raises:
        ModelError: `src` is no checkpoint, is damaged or does not fit.
    """
    src = Path(src).expanduser()
    try:
        checkpoint = read_checkpoint(src)
        overrides = dict(config_overrides or {})
        if checkpoint.config.get("model_type") == "vit_mae":
            names = ("num_attention_heads", "decoder_num_attention_heads")
            overrides = {name: checkpoint.config[name] for name in names if name in checkpoint.config} | overrides
        conversion = convert_state_dict(checkpoint.tensors, overrides)
    except ModelError as error:
        raise ModelError(f"{src}: {error.message}", hint=error.hints) from error
    conversion.report.source, conversion.report.sha256 = str(src), checkpoint.sha256
    return conversion


def convert_state_dict(tensors: Mapping[str, Tensor], config_overrides: Mapping[str, Any] | None = None) -> Conversion:
    """Convert a published state dict; changes nothing and writes nothing.

    Args:
        tensors: Published names and tensors, with or without `module.` before the names.
        config_overrides: As in `convert_checkpoint`.

    Raises:
        ModelError: The family is unknown, encoder names are missing or left over, or sizes contradict.
    """
    overrides = dict(config_overrides or {})
    published, notes = _to_cav_mae_names(strip_prefixes(tensors), overrides)
    family = tell_family(published)
    config = infer_config(published, family, overrides)
    if (
        family is Family.INITIALISATION
        and config.position_embedding_type == "learned"
        and not (overrides.get("position_embedding_type") == "learned")
    ):
        raise ModelError(
            "its positions are not the sine-cosine ones that every MAE has: they were trained, or never filled in. "
            "Take a checkpoint with those."
        )
    model_class: type[CavMaeSyncPreTrainedModel] = CavMaeSyncForPreTraining
    if family.is_classifier:
        model_class = CavMaeSyncForAudioVisualClassification
    elif config.modality != "multimodal" or not has_decoder(published):
        model_class = CavMaeSyncModel
    names = Renaming(published, config, family)
    fresh_tokens = family is Family.INITIALISATION
    move_encoder(names, "" if model_class is CavMaeSyncModel else "model.", fresh_tokens)
    if model_class is CavMaeSyncForPreTraining:
        move_decoder(names, fresh_tokens)
    else:
        drop_decoder(names)
    if model_class is CavMaeSyncForAudioVisualClassification:
        move_classifier(names)
    names.finish()
    _check_values(names.result)
    _check_against_model(names.result, model_class, config)
    # Weights of their own: parts of one tensor, or both towers of an initialisation, must not stay tied.
    state_dict = {
        name: tensor.to(torch.float32).clone(memory_format=torch.contiguous_format)
        for name, tensor in names.result.items()
    }
    report = ConversionReport(
        family=str(family),
        model_class=model_class.__name__,
        config=config,
        num_parameters=sum(tensor.numel() for tensor in state_dict.values()),
        dropped=names.dropped,
        new=names.new,
        notes=notes,
    )
    _add_notes(report, published, family, overrides)
    return Conversion(model_class, config, state_dict, report)


def _to_cav_mae_names(tensors: dict[str, Tensor], overrides: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the CAV-MAE authors' names, adapted where they are an image MAE's, and notes on that."""
    if any("audio_tower." in name or "video_tower." in name for name in tensors):
        raise ModelError("it is converted already; load it with `from_pretrained`.")
    if any(name.startswith("blocks_u.") or name.startswith("patch_embed_a.") for name in tensors):
        return tensors, []
    origin = "the MAE authors' checkpoint"
    if is_transformers_mae(tensors):
        tensors, origin = rename_transformers_mae(tensors), "transformers' ViT-MAE"
    if not is_mae(tensors):
        raise ModelError(
            "its names are those of no known family (CAV-MAE, CAV-MAE Sync, their classifiers, MAE); it holds: "
            f"{shorten(sorted(tensors)) or 'nothing'}."
        )
    note = f"Adapted from {origin}: both towers start from the same layers."
    return adapt_mae(tensors, overrides.get("num_joint_layers", 1)), [note]


def _check_values(state_dict: Mapping[str, Tensor]) -> None:
    """Refuse weights that training has destroyed."""
    broken = not_finite(state_dict)
    if broken:
        raise ModelError(f"{len(broken)} tensors hold NaN or infinite values: {shorten(broken)}; take another file.")


def _check_against_model(
    state_dict: Mapping[str, Tensor], model_class: type[CavMaeSyncPreTrainedModel], config: CavMaeSyncConfig
) -> None:
    """Every weight of the model must be filled, in its shape, and nothing else be there."""
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in model_class(config).state_dict().items()}
    problems = [f"{name} (no such weight)" for name in state_dict if name not in expected]
    problems += [f"{name} (not in the file)" for name in expected if name not in state_dict]
    problems += [
        f"{name} (file: {tuple(tensor.shape)}, model: {tuple(expected[name])})"
        for name, tensor in state_dict.items()
        if name in expected and tensor.shape != expected[name]
    ]
    if problems:
        raise ModelError(f"the tensors do not fit {model_class.__name__}: {shorten(problems)}.")


def _add_notes(
    report: ConversionReport, published: Mapping[str, Tensor], family: Family, overrides: Mapping[str, Any]
) -> None:
    """Add what a reader must know that the tensors do not tell, and which settings would decide otherwise."""
    notes, hints, config = report.notes, report.hints, report.config
    is_classifier, pretrains = family.is_classifier, report.model_class == CavMaeSyncForPreTraining.__name__
    if family is Family.CLASSIFIER and "modality" not in overrides:
        notes.append(
            "Nothing in the file tells whether it was fine-tuned on both modalities or on one; taken as multimodal."
        )
        hints.append(Hint("config_overrides", {"modality": "audio"}, "convert one that was fine-tuned on audio alone"))
    if is_classifier and config.problem_type is None:
        notes.append("`problem_type` is open.")
        problem = {"problem_type": "multi_label_classification"}
        hints.append(Hint("config_overrides", problem, "average several frames accordingly"))
    if not is_classifier and not has_decoder(published):
        notes.append("The file has no decoder: saved as the encoder alone; pretraining would start a new decoder.")
    if config.position_embedding_type == "learned":
        notes.append("The positions were trained, and are kept as weights.")
    if config.num_joint_layers > 1:
        notes.append("The published code uses the last joint layer alone; here they follow one another.")
    guessed = [
        f"{name}={getattr(config, name)}"
        for name in ("num_attention_heads", "decoder_num_attention_heads", "norm_pix_loss", "temperature")
        if name not in overrides and (pretrains or name == "num_attention_heads")
    ]
    if guessed:
        notes.append(f"Not told by the tensors, taken as published: {', '.join(guessed)}.")
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in published.values()} - {"float32"})
    if dtypes:
        notes.append(f"Stored as {', '.join(dtypes)} in the file; written as float32.")


def _write(conversion: Conversion, dst: Path) -> None:
    """Write a folder ready for the Hub: weights, settings, the code of every auto class and a model card."""
    report = conversion.report
    # Published results depend on the published alignment of frames and windows; an initialisation has none.
    published = report.family != Family.INITIALISATION
    processor = CavMaeSyncProcessor.from_config(conversion.config, alignment="reference" if published else "time")
    files = ", ".join(f"`{name}` (SHA-256 `{digest}`)" for name, digest in report.sha256.items())
    origin = f"Converted from a published checkpoint ({report.family}), {files}, without further training."
    if report.new:
        origin += f" Drawn at random, since the file does not have them: {shorten(report.new)}."
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a conversion prints nothing by itself
    try:
        model = conversion.model_class.from_pretrained(
            None, config=conversion.config, state_dict=conversion.state_dict
        )
        save_for_hub(model, processor, dst, card=CardDetails(training=origin))
    finally:
        if shown:
            logging.enable_progress_bar()
