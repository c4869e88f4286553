# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What published checkpoints are: their families, the sizes in their shapes, and which tensor becomes which of ours.

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
from ..model.errors_cavmae_sync import Hint, ModelError
from ..model.modeling_cavmae_sync import sincos_positions
from .reading import shorten

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
# transformers' ViT-MAE has had several names for the same layers; (pattern, MAE name).
_TRANSFORMERS_NAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^(?:vit\.)?embeddings\.cls_token$", "cls_token"),
        (r"^(?:vit\.)?embeddings\.position_embeddings$", "pos_embed"),
        (r"^(?:vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^(?:vit\.)?layernorm\.", "norm."),
        (r"^(?:vit\.)?(?:encoder\.layer|layers)\.", "blocks."),
        (r"^decoder\.(?:decoder_layers|decoder_encoder\.layer)\.", "decoder_blocks."),
        (r"^decoder\.mask_token$", "mask_token"),
        (r"^decoder\.(decoder_(?:pos_embed|embed|norm|pred))", r"\1"),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.attention\.(?:attention\.query|q_proj)\.", ".attn.q."),
        (r"\.attention\.(?:attention\.key|k_proj)\.", ".attn.k."),
        (r"\.attention\.(?:attention\.value|v_proj)\.", ".attn.v."),
        (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
        (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
    )
]
_MODALITIES = {"audio": "a", "video": "v"}
_UNUSED_NORMS = "modality norms that the published forward pass never uses outside the joint layers"
_POSITIONS = "sine-cosine positions, which are computed"
_TOWER = "the tower of the other modality"
_TOKENS = "tokens that the configuration leaves out"
_DECODER = "the decoder, which this model does not have"
_SEED = 0


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
    # Both towers start from ImageNet with the same layers, and so they never stay in training.
    audio, video = (tensors.get(f"blocks_{modality}.0.attn.qkv.weight") for modality in "av")
    towers_are_equal = (
        audio is not None and video is not None and not audio.is_meta
        and audio.shape == video.shape and torch.equal(audio, video)
    )  # fmt: skip
    if "cls_token_av" in tensors or towers_are_equal:
        return Family.INITIALISATION
    sync = any(name in ("register_tokens", "cls_token_a") or name.startswith("constrative_head_") for name in tensors)
    return Family.SYNC if sync else Family.CAV_MAE


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
        raise ModelError(f"the settings given contradict the shapes in the file: {shorten(wrong)}.")
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
        raise ModelError(f"the sizes in the file and the settings given do not make a model: {reason}") from error


def _refuse_unknown(overrides: Mapping[str, Any]) -> None:
    known = sorted(_LABEL_SETTINGS | set(CavMaeSyncConfig().to_dict()) - _FIXED_SETTINGS)
    unknown = []
    for name in overrides:
        if name not in known:
            near = _nearest_name(name, known)
            unknown.append(f"{name} (did you mean {near}?)" if near else name)
    if unknown:
        raise ModelError(f"no setting of CavMaeSyncConfig: {shorten(unknown)}.")


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
                f"{patch_size}: name the count it was trained with.",
                hint=_setting("num_mel_bins", _nearest_divisor(patches, rows) * patch_size, "take that one"),
            )
        told["audio_length"] = patches // rows * patch_size
    if "pos_embed_v" in tensors:
        patches = tensors["pos_embed_v"].shape[1]
        if math.isqrt(patches) ** 2 != patches:
            raise ModelError(f"`pos_embed_v` has {patches} positions, which are not those of a square frame.")
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
            f"the head of this classifier is as wide as one modality ({width}), but nothing tells which: name it.",
            hint=tuple(_setting("modality", name, f"take it for {name}") for name in ("audio", "video")),
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
                f"count: name the one it was trained with ({fits} divide it).",
                hint=_setting(heads_name, _nearest_divisor(width, width / 64), "take that one"),
            )


def _setting(name: str, value: Any, purpose: str) -> Hint:
    return Hint("config_overrides", {name: value}, purpose)


def _nearest_divisor(number: int, wanted: float) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wanted))


def is_transformers_mae(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of transformers' ViT-MAE, with or without its decoder."""
    return any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in names)


def is_mae(names: Mapping[str, Tensor]) -> bool:
    """Whether these are names of the MAE authors' own checkpoints."""
    return "patch_embed.proj.weight" in names and "blocks.0.attn.qkv.weight" in names


def rename_transformers_mae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of transformers' ViT-MAE, old and new, as the MAE authors' names, with q, k and v in one tensor."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _TRANSFORMERS_NAMES:
            name = pattern.sub(replacement, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        missing = [part for part in parts if part not in renamed]
        if missing:
            raise ModelError(f"encoder names are missing: {shorten(missing)}.")
        renamed[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def adapt_mae(tensors: Mapping[str, Tensor], num_joint_layers: int) -> dict[str, Tensor]:
    """An image MAE under the MAE authors' names, as an initialisation under the CAV-MAE authors' names.

    The adaptation is the one of the CAV-MAE authors (`adapt_vmae_weights.py`): both towers start from the same layers,
    the last ones become the joint layers with one set of norms thrice, the audio projection is the sum of the three
    colour channels', and the audio prediction starts from the first rows of the frames'.
    """
    left = dict(tensors)
    depth = 1 + max(int(name.split(".")[1]) for name in left if name.startswith("blocks."))
    first_joint = depth - num_joint_layers
    if first_joint < 0:
        raise ModelError(f"`num_joint_layers` is {num_joint_layers}, but the file has {depth} layers.")
    adapted: dict[str, Tensor] = {}
    for name in [name for name in left if name.startswith("blocks.")]:
        tensor, (_, number, rest) = left.pop(name), name.split(".", 2)
        index = int(number)
        if index < first_joint:
            adapted[f"blocks_a.{index}.{rest}"] = adapted[f"blocks_v.{index}.{rest}"] = tensor
            continue
        adapted[f"blocks_u.{index - first_joint}.{rest}"] = tensor
        norm, _, kind = rest.partition(".")
        if norm in ("norm1", "norm2"):
            for modality in "av":
                adapted[f"blocks_u.{index - first_joint}.{norm}_{modality}.{kind}"] = tensor
    for kind in ("weight", "bias"):
        if f"norm.{kind}" in left:
            norm_values = left.pop(f"norm.{kind}")
            adapted |= {f"{norm}.{kind}": norm_values for norm in ("norm", "norm_a", "norm_v")}
        projection = f"patch_embed.proj.{kind}"
        if projection in left:
            values = left.pop(projection)
            adapted[f"patch_embed_v.proj.{kind}"] = values
            adapted[f"patch_embed_a.proj.{kind}"] = values.sum(1, keepdim=True) if kind == "weight" else values
        if f"decoder_pred.{kind}" in left:
            prediction = left.pop(f"decoder_pred.{kind}")
            adapted[f"decoder_pred_v.{kind}"] = prediction
            # All while the projection is missing, which is refused later on.
            audio = adapted.get("patch_embed_a.proj.weight")
            adapted[f"decoder_pred_a.{kind}"] = prediction if audio is None else prediction[: audio[0].numel()]
    if "cls_token" in left:
        adapted["cls_token_a"] = adapted["cls_token_v"] = left.pop("cls_token")
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in left:
            # The first position is the class token's, and zero.
            adapted[f"{name}_v"] = left.pop(name)[:, 1:]
    return adapted | left


class Renaming:
    """Moves tensors from published names to ours, and keeps account of both sides.

    Attributes:
        result: Our names and tensors.
        dropped: Published names that were left out, by the reason for it.
        new: Our names of weights that the file does not have and that were drawn at random.
    """

    def __init__(self, tensors: Mapping[str, Tensor], config: CavMaeSyncConfig, family: Family):
        self.left = dict(tensors)
        self.config = config
        self.family = family
        self.result: dict[str, Tensor] = {}
        self.dropped: dict[str, list[str]] = {}
        self.new: list[str] = []
        self.missing: list[str] = []
        self._generator = torch.Generator().manual_seed(_SEED)

    def take(self, published: str) -> Tensor | None:
        """The tensor of a published name, which is then used up; `None`, and noted, where it is missing."""
        if published not in self.left:
            self.missing.append(published)
            return None
        return self.left.pop(published)

    def move(self, published: str, ours: str) -> None:
        """One tensor under another name."""
        if (tensor := self.take(published)) is not None:
            self.result[ours] = tensor

    def move_module(self, published: str, ours: str) -> None:
        """Weight and bias of a module."""
        for kind in ("weight", "bias"):
            self.move(f"{published}.{kind}", f"{ours}.{kind}")

    def move_or_make(self, published: str, ours: str, shape: tuple[int, ...]) -> None:
        """One token, drawn as in a fresh model where an initialisation does not have it."""
        if published in self.left:
            self.move(published, ours)
            return
        token = torch.randn(shape, generator=self._generator) * self.config.initializer_range
        self.result[ours] = token
        self.new.append(ours)

    def drop(self, published: str, reason: str) -> None:
        """Leave a tensor out, if it is there."""
        if self.left.pop(published, None) is not None:
            self.dropped.setdefault(reason, []).append(published)

    def drop_all(self, prefixes: tuple[str, ...], reason: str) -> None:
        """Leave out every tensor whose name starts like this."""
        for name in [name for name in self.left if name.startswith(prefixes)]:
            self.drop(name, reason)

    def move_layer(self, published: str, ours: str, joint: bool = False) -> None:
        """A transformer layer; a joint one has the three sets of norms, any other one uses its plain set."""
        for theirs, norm in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
            self.move_module(f"{published}.{theirs}", f"{ours}.{norm}" + (".fused" if joint else ""))
            for modality, suffix in _MODALITIES.items():
                if joint:
                    self.move_module(f"{published}.{theirs}_{suffix}", f"{ours}.{norm}.{modality}")
                else:
                    self.drop_all((f"{published}.{theirs}_{suffix}.",), _UNUSED_NORMS)
        for kind in ("weight", "bias"):
            fused = self.take(f"{published}.attn.qkv.{kind}")
            if fused is not None:
                for part, values in zip("qkv", fused.chunk(3), strict=True):
                    self.result[f"{ours}.attention.{part}_proj.{kind}"] = values
        self.move_module(f"{published}.attn.proj", f"{ours}.attention.o_proj")
        self.move_module(f"{published}.mlp.fc1", f"{ours}.mlp.fc1")
        self.move_module(f"{published}.mlp.fc2", f"{ours}.mlp.fc2")

    def finish(self) -> None:
        """Refuse what is missing or left over, with a list."""
        problems = []
        if self.missing:
            problems.append(f"missing are {len(self.missing)} names: {shorten(self.missing)}")
        if self.left:
            problems.append(f"left over are {len(self.left)} names: {shorten(sorted(self.left))}")
        if problems:
            raise ModelError(
                f"this has the names of {self.family}, but the names do not fit; {'; '.join(problems)}. A model with "
                "random or lost weights would be the result, so nothing is converted."
            )


def move_encoder(names: Renaming, prefix: str, fresh_tokens: bool) -> None:
    """Everything that `CavMaeSyncModel` has; `prefix` goes before our names.

    Args:
        names: Where to take from and to put to.
        prefix: `"model."` for a model with a head.
        fresh_tokens: Whether tokens may be missing, as in an initialisation, and are then drawn.
    """
    config = names.config
    registers = _split_registers(names, fresh_tokens)
    for modality, letter in _MODALITIES.items():
        head = f"constrative_head_{'audio' if modality == 'audio' else 'visual'}"  # the published spelling
        for index in range(config.num_contrastive_head_layers):
            names.move_layer(f"{head}.{index}", f"{prefix}contrastive_layers.{modality}.{index}")
        names.move_module(f"norm_{letter}", f"{prefix}norms.{modality}")
        if config.modality not in ("multimodal", modality):
            names.drop_all((f"blocks_{letter}.", f"patch_embed_{letter}.", f"pos_embed_{letter}"), _TOWER)
            names.drop_all((f"modality_{letter}", f"cls_token_{letter}"), _TOWER)
            continue
        tower = f"{prefix}{modality}_tower"
        _move_embeddings(
            names, letter, f"{tower}.embeddings", registers=registers.get(modality), fresh_tokens=fresh_tokens
        )
        for index in range(config.num_modality_layers):
            names.move_layer(f"blocks_{letter}.{index}", f"{tower}.layers.{index}")
    for index in range(config.num_joint_layers):
        names.move_layer(f"blocks_u.{index}", f"{prefix}joint_layers.{index}", joint=True)
    names.move_module("norm", f"{prefix}norms.fused")
    names.drop("cls_token_av", _TOKENS)


def _split_registers(names: Renaming, fresh_tokens: bool) -> dict[str, Tensor]:
    """Register tokens per modality: the published tensor holds the audio ones first."""
    count = names.config.num_register_tokens
    if not count or (fresh_tokens and "register_tokens" not in names.left):
        names.drop("register_tokens", _TOKENS)
        return {}
    both = names.take("register_tokens")
    if both is None:
        return {}
    return {"audio": both[:count].unsqueeze(0), "video": both[count:].unsqueeze(0)}


def _move_embeddings(names: Renaming, letter: str, ours: str, *, registers: Tensor | None, fresh_tokens: bool) -> None:
    config = names.config
    names.move_module(f"patch_embed_{letter}.proj", f"{ours}.projection")
    _move_positions(names, f"pos_embed_{letter}", f"{ours}.positions.weight")
    token_shape = (1, 1, config.hidden_size)
    move_token = names.move_or_make if fresh_tokens else lambda published, ours, shape: names.move(published, ours)
    move_token(f"modality_{letter}", f"{ours}.modality_embedding", token_shape)
    if config.use_global_tokens:
        move_token(f"cls_token_{letter}", f"{ours}.global_token", token_shape)
    else:
        names.drop(f"cls_token_{letter}", _TOKENS)
    if registers is not None:
        names.result[f"{ours}.register_tokens"] = registers
    elif config.num_register_tokens and fresh_tokens:
        shape = (1, config.num_register_tokens, config.hidden_size)
        names.move_or_make("", f"{ours}.register_tokens", shape)


def _move_positions(names: Renaming, published: str, ours: str) -> None:
    if names.config.position_embedding_type == "learned":
        names.move(published, ours)
    else:
        names.drop(published, _POSITIONS)


def move_decoder(names: Renaming, fresh_tokens: bool) -> None:
    """Everything that the decoder of `CavMaeSyncForPreTraining` has."""
    config = names.config
    names.move_module("decoder_embed", "decoder.embed")
    names.move("mask_token", "decoder.mask_token")
    for modality, letter in _MODALITIES.items():
        published, ours = f"decoder_modality_{letter}", f"decoder.modality_embeddings.{modality}"
        if fresh_tokens:
            names.move_or_make(published, ours, (1, 1, config.decoder_hidden_size))
        else:
            names.move(published, ours)
        _move_positions(names, f"decoder_pos_embed_{letter}", f"decoder.positions.{modality}.weight")
        names.move_module(f"decoder_pred_{letter}", f"decoder.predictions.{modality}")
    for index in range(config.decoder_num_hidden_layers):
        names.move_layer(f"decoder_blocks.{index}", f"decoder.layers.{index}")
    names.move_module("decoder_norm", "decoder.norm")


def drop_decoder(names: Renaming) -> None:
    """Leave the decoder out."""
    names.drop_all(("decoder_", "mask_token"), _DECODER)


def move_classifier(names: Renaming) -> None:
    """The classification head, of either kind."""
    if names.config.classifier_type == "mean_pooling":
        names.move_module("mlp_head.0", "head.norm")
        names.move_module("mlp_head.1", "head.classifier")
        return
    names.move("cls_cls_token", "head.class_token")
    for index in range(names.config.num_classifier_layers):
        names.move_layer(f"classifier_layers.{index}", f"head.layers.{index}")
    names.move_module("classifier_norm", "head.norm")
    names.move_module("classifier_head", "head.classifier")
