# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which family and which sizes do published tensors have?

Nothing is taken from file names: CAV-MAE and CAV-MAE Sync checkpoints travel under the same ones.
"""

import difflib
import math
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.errors_cavmae_sync import ModelError
from ..model.modeling_cavmae_sync import sincos_positions
from .report import shorten

# Head counts leave no trace in the shapes; these are the published ones.
PUBLISHED_HEADS = 12
PUBLISHED_DECODER_HEADS = 16
# The published code spreads every spectrogram over this many mel bins.
PUBLISHED_MEL_BINS = 128
# AudioSet's number of classes; its clips have several labels each. Other published classifiers have one per clip.
AUDIOSET_CLASSES = 527
POSITION_TOLERANCE = 1e-4
_ANCHORS = ("patch_embed_a.proj.weight", "patch_embed_v.proj.weight", "blocks_u.0.mlp.fc1.weight")
_LABEL_SETTINGS = {"num_labels", "id2label", "label2id", "problem_type"}
# In every configuration, and not for an override.
_FIXED_SETTINGS = {"model_type", "transformers_version", "architectures", "auto_map"}


class Family(StrEnum):
    """What a checkpoint is."""

    SYNC = "CAV-MAE Sync pretraining"
    CAV_MAE = "CAV-MAE pretraining"
    CLASSIFIER = "CAV-MAE classifier"
    SYNC_CLASSIFIER = "CAV-MAE Sync classifier"
    INITIALISATION = "ImageNet MAE initialisation"

    @property
    def is_classifier(self) -> bool:
        return self in (Family.CLASSIFIER, Family.SYNC_CLASSIFIER)

    @property
    def is_sync(self) -> bool:
        """Whether the settings that tensors do not tell are those of CAV-MAE Sync."""
        return self not in (Family.CAV_MAE, Family.CLASSIFIER)


def tell_family(tensors: Mapping[str, Tensor]) -> Family:
    """Tell what checkpoint this is, by its tensors under the authors' names."""
    if "cls_cls_token" in tensors:
        return Family.SYNC_CLASSIFIER
    if "mlp_head.0.weight" in tensors:
        return Family.CLASSIFIER
    if "cls_token_av" in tensors or _towers_are_equal(tensors):
        return Family.INITIALISATION
    sync = any(name in ("register_tokens", "cls_token_a") or name.startswith("constrative_head_") for name in tensors)
    return Family.SYNC if sync else Family.CAV_MAE


def _towers_are_equal(tensors: Mapping[str, Tensor]) -> bool:
    """Whether both towers hold the same layer: so they start from ImageNet, and so they never stay in training."""
    audio, video = (tensors.get(f"blocks_{modality}.0.attn.qkv.weight") for modality in "av")
    if audio is None or video is None or audio.is_meta or audio.shape != video.shape:
        return False
    return torch.equal(audio, video)


def count_layers(tensors: Mapping[str, Tensor], *groups: str) -> int:
    """Number of layers `GROUP.N.*`; the largest of several groups, so that gaps show as missing names."""
    pattern = re.compile(rf"(?:{'|'.join(map(re.escape, groups))})\.(\d+)\.")
    return max((int(match[1]) + 1 for name in tensors if (match := pattern.match(name))), default=0)


def has_decoder(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any part of a decoder is there."""
    return any(name.startswith("decoder_") or name == "mask_token" for name in tensors)


def infer_config(tensors: Mapping[str, Tensor], family: Family, overrides: Mapping[str, Any]) -> CavMaeSyncConfig:
    """The configuration that the shapes tell, completed by the published values and the overrides.

    Raises:
        ModelError: The shapes do not tell a size, or an override contradicts them.
    """
    _refuse_unknown(overrides)
    missing = [name for name in _ANCHORS if name not in tensors]
    if missing:
        raise ModelError(f"encoder names are missing: {shorten(missing)}.")
    told = _told_sizes(tensors, overrides)
    if family.is_classifier:
        told |= _told_head(tensors, family, told["hidden_size"], overrides)
    free = set()
    if "position_embedding_type" not in told:
        free |= {"audio_length", "image_size"}  # sine-cosine positions are made for any size
    if family is Family.INITIALISATION:
        free |= {"use_global_tokens", "num_register_tokens"}
        told["num_register_tokens"] = told["num_register_tokens"] or CavMaeSyncConfig().num_register_tokens
        told["use_global_tokens"] = True
        # The initialisation is for any window length; the one of its file is that of the code it was made with.
        told["audio_length"] = CavMaeSyncConfig().audio_length
    told |= {name: overrides[name] for name in free & set(overrides)}
    wrong = [
        f"{name} (file: {told[name]}, override: {overrides[name]})"
        for name in overrides
        if told.get(name, overrides[name]) != overrides[name]
    ]
    if wrong:
        raise ModelError(f"`config_overrides` contradicts the shapes in the file: {shorten(wrong)}.")
    settings = told | dict(overrides)
    if settings.get("id2label") is not None:
        settings.pop("num_labels", None)
    _add_heads(settings, tensors)
    make = CavMaeSyncConfig.cav_mae_sync if family.is_sync else CavMaeSyncConfig.cav_mae
    try:
        return make(**settings)
    except (ValueError, TypeError, StrictDataclassError) as error:
        # A strict configuration puts the name of its validator before what is wrong.
        reason = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        raise ModelError(f"the sizes in the file and `config_overrides` do not make a model: {reason}") from error


def _refuse_unknown(overrides: Mapping[str, Any]) -> None:
    known = sorted(_LABEL_SETTINGS | set(CavMaeSyncConfig().to_dict()) - _FIXED_SETTINGS)
    unknown = []
    for name in overrides:
        if name not in known:
            near = _nearest_name(name, known)
            unknown.append(f"{name} (did you mean {near}?)" if near else name)
    if unknown:
        raise ModelError(f"`config_overrides` names no setting of CavMaeSyncConfig: {shorten(unknown)}.")


def _nearest_name(name: str, known: list[str]) -> str | None:
    """The known name with most words in common, then most letters; `None` where none comes near."""

    def likeness(other: str) -> tuple[int, float]:
        shared = len(set(name.split("_")) & set(other.split("_")))
        return shared, difflib.SequenceMatcher(None, name, other).ratio()

    best = max(known, key=likeness)
    shared, ratio = likeness(best)
    return best if shared > 1 or ratio > 0.7 else None


def _told_sizes(tensors: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of encoder and decoder that shapes (and trained positions) tell."""
    hidden_size, _, patch_size, _ = tensors["patch_embed_a.proj.weight"].shape
    mel_bins = overrides.get("num_mel_bins", PUBLISHED_MEL_BINS)
    told: dict[str, Any] = {
        "hidden_size": hidden_size,
        "patch_size": patch_size,
        "num_channels": tensors["patch_embed_v.proj.weight"].shape[1],
        "num_mel_bins": mel_bins,
        "intermediate_size": tensors["blocks_u.0.mlp.fc1.weight"].shape[0],
        "num_modality_layers": count_layers(tensors, "blocks_a", "blocks_v"),
        "num_joint_layers": count_layers(tensors, "blocks_u"),
        "use_global_tokens": "cls_token_a" in tensors or "cls_token_v" in tensors,
        "num_register_tokens": 0,
        "num_contrastive_head_layers": count_layers(tensors, "constrative_head_audio", "constrative_head_visual"),
    }
    if "register_tokens" in tensors:
        total = tensors["register_tokens"].shape[0]
        if total % 2:
            raise ModelError(f"`register_tokens` has {total} rows; there must be as many for audio as for video.")
        told["num_register_tokens"] = total // 2
    if "pos_embed_a" in tensors:
        patches, rows = tensors["pos_embed_a"].shape[1], mel_bins // patch_size
        if patches % max(rows, 1):
            raise ModelError(
                f"`pos_embed_a` has {patches} positions, which do not fit {mel_bins} mel bins in patches of "
                f"{patch_size}: name the count it was trained with, such as "
                f"config_overrides={{'num_mel_bins': {_nearest_divisor(patches, rows) * patch_size}}}."
            )
        told["audio_length"] = patches // rows * patch_size
    if "pos_embed_v" in tensors:
        patches = tensors["pos_embed_v"].shape[1]
        if math.isqrt(patches) ** 2 != patches:
            raise ModelError(f"`pos_embed_v` has {patches} positions, which are not those of a square picture.")
        told["image_size"] = math.isqrt(patches) * patch_size
    if "decoder_embed.weight" in tensors:
        told["decoder_hidden_size"] = tensors["decoder_embed.weight"].shape[0]
        told["decoder_num_hidden_layers"] = count_layers(tensors, "decoder_blocks")
        if "decoder_blocks.0.mlp.fc1.weight" in tensors:
            told["decoder_intermediate_size"] = tensors["decoder_blocks.0.mlp.fc1.weight"].shape[0]
    if not positions_are_sincos(tensors, mel_bins // patch_size):
        told["position_embedding_type"] = "learned"
    return told


def positions_are_sincos(tensors: Mapping[str, Tensor], mel_rows: int) -> bool:
    """Whether all stored positions are the fixed sine-cosine ones (in half precision: up to its rounding)."""
    for name, values in tensors.items():
        if not re.fullmatch(r"(?:decoder_)?pos_embed_[av]", name) or values.is_meta:
            continue
        patches, width = values.shape[1:]
        rows = mel_rows if name.endswith("_a") else math.isqrt(patches)
        expected = sincos_positions((rows, patches // rows), width)
        tolerance = max(POSITION_TOLERANCE, torch.finfo(values.dtype).eps)
        if (values.float() - expected).abs().max() > tolerance:
            return False
    return True


def _told_head(
    tensors: Mapping[str, Tensor], family: Family, hidden_size: int, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings that a classification head tells."""
    head = "mlp_head.1" if family is Family.CLASSIFIER else "classifier_head"
    if f"{head}.weight" not in tensors:
        raise ModelError(f"names of the classification head are missing: {head}.weight.")
    num_labels, width = tensors[f"{head}.weight"].shape
    told: dict[str, Any] = {"num_labels": num_labels}
    if num_labels == AUDIOSET_CLASSES and "problem_type" not in overrides:
        told["problem_type"] = "multi_label_classification"
    if family is Family.CLASSIFIER:
        if "cls_token_a" in tensors:
            raise ModelError(
                "this classifier has global tokens and no frame-attention head (`cls_cls_token`): it reads the fused "
                "global token of a single modality, which no head here computes."
            )
        if width != hidden_size or count_layers(tensors, "mlp_head") > 2:
            raise ModelError(
                "this classifier joins the frames in a perceptron (`mlp_head` with more than a norm and a linear "
                "layer); only the mean-pooling and the frame-attention heads can be converted."
            )
        return told | {"classifier_type": "mean_pooling"}
    told |= {"classifier_type": "frame_attention", "num_classifier_layers": count_layers(tensors, "classifier_layers")}
    if width == 2 * hidden_size:
        return told | {"modality": "multimodal"}
    if overrides.get("modality") not in ("audio", "video"):
        raise ModelError(
            f"the head of this classifier is as wide as one modality ({width}), but nothing tells which: name it, "
            "with config_overrides={'modality': 'audio'} or config_overrides={'modality': 'video'}."
        )
    return told


def _add_heads(settings: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Published head counts where none are given, refused where they do not fit the width."""
    pairs = [("hidden_size", "num_attention_heads", PUBLISHED_HEADS)]
    if "decoder_hidden_size" in settings:
        pairs.append(("decoder_hidden_size", "decoder_num_attention_heads", PUBLISHED_DECODER_HEADS))
    for width_name, heads_name, published in pairs:
        width, heads = settings[width_name], settings.setdefault(heads_name, published)
        if width % heads:
            fits = ", ".join(str(count) for count in range(1, 65) if width % count == 0)
            raise ModelError(
                f"`{width_name}` is {width}, which {heads} attention heads do not divide, and shapes do not tell the "
                "count: name the one it was trained with, such as "
                f"config_overrides={{'{heads_name}': {_nearest_divisor(width, width / 64)}}} ({fits} divide it)."
            )


def _nearest_divisor(number: int, wanted: float) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wanted))


__all__ = [
    "Family",
    "count_layers",
    "has_decoder",
    "infer_config",
    "positions_are_sincos",
    "tell_family",
]
