# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How a published checkpoint becomes a folder that `from_pretrained` loads."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from ..hub import save_for_hub
from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.errors_cavmae_sync import ModelError
from ..model.modeling_cavmae_sync import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncPreTrainedModel,
)
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model_card import CardDetails
from .mae import adapt_mae, is_mae, is_transformers_mae, rename_transformers_mae
from .naming import Renaming, drop_decoder, move_classifier, move_decoder, move_encoder
from .reading import Checkpoint, read_checkpoint, strip_prefixes
from .report import Conversion, ConversionReport, shorten
from .settings import Family, has_decoder, infer_config, tell_family


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
            `{"num_attention_heads": 6}`, or `{"modality": "audio"}` for a classifier fine-tuned on sound alone.

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
        conversion = convert_state_dict(checkpoint.tensors, _with_hints(checkpoint, config_overrides))
    except ModelError as error:
        raise ModelError(f"{src}: {error}") from error
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
    model_class = _choose_class(published, family, config)
    report = ConversionReport(str(family), model_class.__name__, config, notes=notes)
    names = Renaming(published, config, report)
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
    report.num_parameters = sum(tensor.numel() for tensor in state_dict.values())
    report.notes += _notes(published, family, model_class, config, overrides)
    return Conversion(model_class, config, state_dict, report)


def _with_hints(checkpoint: Checkpoint, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Overrides, completed by the head counts that a ViT-MAE folder's configuration names."""
    names = ("num_attention_heads", "decoder_num_attention_heads")
    hints = {}
    if checkpoint.config.get("model_type") == "vit_mae":
        hints = {name: checkpoint.config[name] for name in names if name in checkpoint.config}
    return hints | dict(overrides or {})


def _to_cav_mae_names(tensors: dict[str, Tensor], overrides: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the CAV-MAE authors' names, adapted where they are a picture-only MAE's, and notes on that."""
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


def _choose_class(
    published: Mapping[str, Tensor], family: Family, config: CavMaeSyncConfig
) -> type[CavMaeSyncPreTrainedModel]:
    if family.is_classifier:
        return CavMaeSyncForAudioVisualClassification
    if config.modality != "multimodal" or not has_decoder(published):
        return CavMaeSyncModel
    return CavMaeSyncForPreTraining


def _check_values(state_dict: Mapping[str, Tensor]) -> None:
    """Refuse weights that training has destroyed."""
    # A sum is NaN or infinite where a summand is; a mask of every value would cost a second copy.
    broken = [
        name
        for name, tensor in state_dict.items()
        if not tensor.is_meta and not tensor.sum(dtype=torch.float64).isfinite()
    ]
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


def _notes(
    published: Mapping[str, Tensor],
    family: Family,
    model_class: type[CavMaeSyncPreTrainedModel],
    config: CavMaeSyncConfig,
    overrides: Mapping[str, Any],
) -> list[str]:
    """What a reader must know that the tensors do not tell."""
    notes = []
    if family is Family.CLASSIFIER and "modality" not in overrides:
        notes.append(
            "Nothing in the file tells whether it was fine-tuned on both modalities or on one; taken as multimodal. "
            "For one fine-tuned on sound alone convert with config_overrides={'modality': 'audio'}."
        )
    if model_class is CavMaeSyncForAudioVisualClassification and config.problem_type is None:
        notes.append(
            "`problem_type` is open; to average several frames accordingly, name it, such as "
            "config_overrides={'problem_type': 'multi_label_classification'}."
        )
    if model_class is CavMaeSyncModel and not has_decoder(published):
        notes.append("The file has no decoder: saved as the encoder alone; pretraining would start a new decoder.")
    if config.position_embedding_type == "learned":
        notes.append("The positions were trained, and are kept as weights.")
    if config.num_joint_layers > 1:
        notes.append("The published code uses the last joint layer alone; here they follow one another.")
    guessed = [
        f"{name}={getattr(config, name)}"
        for name in ("num_attention_heads", "decoder_num_attention_heads", "norm_pix_loss", "temperature")
        if name not in overrides and (model_class is CavMaeSyncForPreTraining or name == "num_attention_heads")
    ]
    if guessed:
        notes.append(f"Not told by the tensors, taken as published: {', '.join(guessed)}.")
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in published.values()} - {"float32"})
    if dtypes:
        notes.append(f"Stored as {', '.join(dtypes)} in the file; written as float32.")
    return notes


def _write(conversion: Conversion, dst: Path) -> None:
    """Write a folder ready for the Hub: weights, settings, the code of every auto class and a model card."""
    # Published figures depend on the published alignment of frames and windows; an initialisation has none.
    published = conversion.report.family != Family.INITIALISATION
    processor = CavMaeSyncProcessor.from_config(conversion.config, alignment="reference" if published else "time")
    with _without_progress_bars():
        model = conversion.model_class.from_pretrained(
            None, config=conversion.config, state_dict=conversion.state_dict
        )
        save_for_hub(model, processor, dst, card=CardDetails(training=_provenance(conversion.report)))


def _provenance(report: ConversionReport) -> str:
    """Where the weights come from, for the model card."""
    files = ", ".join(f"`{name}` (SHA-256 `{digest}`)" for name, digest in report.sha256.items())
    origin = f"Converted from a published checkpoint ({report.family}), {files}, without further training."
    new = f" Drawn at random, since the file does not have them: {shorten(report.new)}." if report.new else ""
    return origin + new


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """A conversion prints nothing by itself."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


__all__ = ["convert_checkpoint", "convert_file", "convert_state_dict"]
