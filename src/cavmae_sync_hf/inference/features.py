# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which vectors there are of a moment, what they are called, and how they are computed.

A *moment* is a frame and the window of audio around it. Its vectors have names:

- `a`, `v`: the embedding of the audio window and of the frame, L2-normalised: what the contrastive loss compares.
- `av`: both *fused*: the mean over all patches of both after the joint layers see them together. (Two embeddings side
  by side would be no joint feature: join the columns of `a` and `v` for that.)
- `a_patches`, `v_patches`: the mean over the patches of one modality after its final norm.
- `a_layer_03`, `v_layer_03`: the mean over the patches after layer 3 of that modality's path: 0 are the embedded
  patches, then the tower's layers, the joint layers and those of the contrastive heads.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.errors_cavmae_sync import InferenceError
from ..model.modeling_cavmae_sync import CavMaeSyncModel, CavMaeSyncPreTrainedModel, both_present, select_distinct

# A modality's values and the mask of those that are present, audio first.
INPUTS = (("input_values", "padding_mask"), ("pixel_values_videos", "padding_mask_videos"))

_MODALITIES = {"a": "audio", "v": "video", "av": "fused"}
_NAME = re.compile(r"(a|v)(?:_(patches)|_layer_(\d+))?|av")
# Side of the squares by which frames are compared, pixels.
_SQUARE = 16
# What else belongs to the audio, for models that hear windows within longer clips.
OFFSETS = "window_offsets"
_INPUT_NAMES = (*(name for pair in INPUTS for name in pair), OFFSETS)


class Embedder(Protocol):
    """What embeds moments: a `CavMaeSyncModel`, or an `ExportedModel`, which gives `a` and `v` alone."""

    def __call__(
        self,
        *,
        input_values: Any = None,
        pixel_values_videos: Any = None,
        padding_mask: Any = None,
        padding_mask_videos: Any = None,
    ) -> Any:
        """A mapping with `audio_embeds` and `video_embeds` `(batch, moments, hidden)`, as far as inputs are given."""


@dataclass(frozen=True)
class Feature:
    """One kind of vector.

    Attributes:
        name: As in the table above.
        modality: `"audio"`, `"video"` or `"fused"`.
        kind: `"embedding"`, `"patches"`, `"layer"` or `"fused"`.
        layer: Number of the layer, for `kind="layer"`.
    """

    name: str
    modality: str
    kind: str
    layer: int | None = None

    @property
    def needs_audio(self) -> bool:
        """Whether it takes the audio window."""
        return self.modality != "video"

    @property
    def needs_video(self) -> bool:
        """Whether it takes the frame."""
        return self.modality != "audio"

    def describe(self) -> str:
        """What it is, in words."""
        if self.kind == "fused":
            return "audio window and frame fused: mean over all patches of both after the joint layers"
        what = {"audio": "audio window", "video": "frame"}[self.modality]
        if self.kind == "embedding":
            return f"L2-normalised embedding of the {what}"
        after = "the final norm" if self.kind == "patches" else f"layer {self.layer}"
        return f"mean over the patches of the {what} after {after}"


@dataclass
class MomentFeatures:
    """Vectors of moments, on the CPU.

    Attributes:
        values: Feature name -> `(batch, moments, hidden)` float32; zeros where absent.
        audio_present: `(batch, moments)` bool, whether there is audio.
        video_present: `(batch, moments)` bool, whether there is a frame.
    """

    values: dict[str, Tensor]
    audio_present: Tensor
    video_present: Tensor

    def present(self, feature: Feature) -> Tensor:
        """Where a feature is there: fused ones need audio and frame."""
        if feature.modality == "fused":
            return self.audio_present & self.video_present
        return self.audio_present if feature.modality == "audio" else self.video_present

    def broken(self, features: Sequence[Feature]) -> Tensor:
        """Where a feature that is there is NaN or infinite, `(batch, moments)` bool."""
        broken = torch.zeros_like(self.audio_present)
        for feature in features:
            broken |= ~torch.isfinite(self.values[feature.name]).all(dim=-1)
        return broken


def choose_features(
    names: Sequence[str], config: CavMaeSyncConfig | None, layers: Sequence[int] = ()
) -> tuple[Feature, ...]:
    """Features by their names.

    Args:
        names: Such as `("a", "v", "av")`; see this file's table.
        config: The model's configuration; `None` for an exported model.
        layers: Layers whose means are added for every modality among `names`; negative numbers count from the last.

    Raises:
        InferenceError: A name or layer does not exist, is doubled, or the model lacks the tower for it.
    """
    if isinstance(names, str) or not names:
        raise InferenceError(f"Features are given as a list such as ['a', 'v', 'av'], got {names!r}.")
    if config is None:
        if layers or not set(names) <= {"a", "v"}:
            raise InferenceError(f"An exported model gives the features a and v alone, got {list(names)!r}.")
        return tuple(Feature(name, _MODALITIES[name], "embedding") for name in dict.fromkeys(names))
    behind = config.num_joint_layers + config.num_contrastive_head_layers
    last = {letter: config.tower_layers(_MODALITIES[letter]) + behind for letter in ("a", "v")}
    chosen = [_feature(str(name), config, last) for name in names]
    wanted = [letter for letter in ("a", "v") if any(item.modality == _MODALITIES[letter] for item in chosen)]
    if layers and not wanted:
        raise InferenceError("`layers` are those of the audio or the video path; add `a` or `v` to the features.")
    for layer in layers:
        for letter in wanted:
            number = layer + last[letter] + 1 if layer < 0 else layer
            chosen.append(_feature(f"{letter}_layer_{number:02d}", config, last))
    doubled = {item.name for item in chosen if sum(other.name == item.name for other in chosen) > 1}
    if doubled:
        raise InferenceError(f"{', '.join(sorted(doubled))} is asked for twice; name every feature once.")
    return tuple(chosen)


def _feature(name: str, config: CavMaeSyncConfig, last: Mapping[str, int]) -> Feature:
    found = _NAME.fullmatch(name)
    if found is None:
        raise InferenceError(
            f"{name!r} is no feature; there are a, v, av, a_patches, v_patches, and a_layer_N and v_layer_N with N "
            f"from 0 to {max(last.values())}."
        )
    if name == "av":
        feature = Feature(name, "fused", "fused")
    elif found[3] is not None:
        layer = int(found[3])
        if layer > last[found[1]]:
            raise InferenceError(
                f"There is no layer {layer}; this model's go from 0 (embedded patches) to {last[found[1]]}."
            )
        feature = Feature(f"{found[1]}_layer_{layer:02d}", _MODALITIES[found[1]], "layer", layer)
    else:
        feature = Feature(name, _MODALITIES[found[1]], "patches" if found[2] else "embedding")
    if config.modality not in ("multimodal", feature.modality):
        raise InferenceError(
            f"{name!r} takes the {'other tower' if name == 'av' else feature.modality + ' tower'}, and this model has "
            f"the {config.modality} tower alone; leave it out or load a model with both."
        )
    return feature


def check_towers(model: Embedder) -> None:
    """Refuse models that cannot compare audio and video."""
    modality = getattr(getattr(model, "config", None), "modality", "multimodal")
    if modality != "multimodal":
        raise InferenceError(f"The model has the {modality} tower alone; comparing audio and video needs both.")


def not_finite_error(what: str, model: Embedder) -> InferenceError:
    """The error that says that a model gave something that is NaN or infinite.

    Args:
        what: The subject, with where it comes from, such as `"clip.mp4: the embedding at 0:03.5"`.
        model: What gave it.
    """
    dtype = str(getattr(model, "dtype", torch.float32)).removeprefix("torch.")
    remedy = "the weights or the processor do not fit it" if dtype == "float32" else "load the model in float32"
    return InferenceError(f"{what} is NaN or infinite, computed in {dtype}; {remedy}.")


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def move_inputs(inputs: Mapping[str, Any], model: CavMaeSyncPreTrainedModel) -> dict[str, Tensor]:
    """The model's inputs among `inputs`, on its device and in its precision.

    Args:
        inputs: As a processor or collator gives them; what is no input, or `None`, is left out.
        model: A module with `device` and `dtype`.
    """
    moved = {}
    for name in _INPUT_NAMES:
        if inputs.get(name) is not None:
            value = torch.as_tensor(inputs[name]).to(model.device, non_blocking=True)
            moved[name] = value.to(model.dtype) if value.is_floating_point() else value
    return moved


class StillFrames:
    """Frames of one video that hardly differ from the last one that did become that one, which is then encoded once.

    Args:
        tolerance: How far pixels of any square of 16 x 16 may be from those of the earlier frame on average, in the
            processor's values; 0 changes nothing, for equal frames are encoded once anyway.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self._last: Tensor | None = None

    def hold(self, frames: Tensor) -> None:
        """Change the next frames `(frames, channels, height, width)` in their place."""
        if not self.tolerance:
            return
        for frame in frames:
            if self._last is not None and self._last.shape == frame.shape:
                squares = torch.nn.functional.avg_pool2d((frame - self._last).abs(), _SQUARE, ceil_mode=True)
                if bool((squares.mean(dim=0) <= self.tolerance).all()):
                    frame.copy_(self._last)
                    continue
            self._last = frame


@torch.inference_mode()
def encode_moments(model: Embedder, inputs: Mapping[str, Any], features: Sequence[Feature]) -> MomentFeatures:
    """Vectors of every moment of a batch; what no feature needs is not computed.

    Args:
        model: A `CavMaeSyncModel` in evaluation mode, or an `ExportedModel`.
        inputs: As the processor returns them: `input_values`, `pixel_values_videos`, and the masks where there are
            any. What no feature needs may be missing.
        features: From `choose_features`.
    """
    wanted: list[str] = []
    if any(feature.needs_audio for feature in features):
        wanted += ["input_values", "padding_mask", OFFSETS]
    if any(feature.needs_video for feature in features):
        wanted += ["pixel_values_videos", "padding_mask_videos"]
    given = {name: inputs[name] for name in wanted if inputs.get(name) is not None}
    values: dict[str, Tensor] = {}
    if isinstance(model, torch.nn.Module):
        encoder = cast(CavMaeSyncModel, model)
        moved = move_inputs(given, encoder)
        images, present = encoder.check_inputs(**dict.fromkeys(_INPUT_NAMES) | moved)
        patches: dict[str, Tensor] = {}
        for modality, pixels in images.items():
            own = [feature for feature in features if feature.modality == modality]
            found, patches[modality] = _one_modality(
                encoder, modality, pixels, present=present[modality], features=own
            )
            values |= found
        fused = [feature for feature in features if feature.modality == "fused"]
        if fused:
            values[fused[0].name] = _fuse(encoder, patches, both_present(present["audio"], present["video"]))
    else:
        output = model(**given)
        for feature in features:
            values[feature.name] = torch.as_tensor(output[f"{feature.modality}_embeds"]).flatten(0, 1)
    shape = given[wanted[0]].shape[:2]
    result = MomentFeatures({}, *(_presence(given, shape, *names) for names in INPUTS))
    for feature in features:
        vectors = values[feature.name].float().cpu().unflatten(0, shape)
        # Not a product: what stands in for an absent one may be anything, NaN included.
        result.values[feature.name] = vectors.masked_fill(~result.present(feature).unsqueeze(-1), 0.0)
    return result


def _presence(inputs: Mapping[str, Any], shape: tuple[int, int], values: str, mask: str) -> Tensor:
    """Which moments have a modality, bool `(batch, moments)` on the CPU."""
    if values not in inputs:
        return torch.zeros(shape, dtype=torch.bool)
    return torch.ones(shape, dtype=torch.bool) if mask not in inputs else torch.as_tensor(inputs[mask]).cpu().bool()


def _one_modality(
    model: CavMaeSyncModel, modality: str, images: Tensor, *, present: Tensor | None, features: Sequence[Feature]
) -> tuple[dict[str, Tensor], Tensor]:
    """A modality's features `(moments, hidden)`, and its tower's patches for fusing `(moments, patches, hidden)`."""
    distinct, places = select_distinct(images, present, model.config.deduplicate_windows)
    record = model.make_record(False, any(feature.kind == "layer" for feature in features))
    tokens = model.tower(modality)(distinct, record=record)
    patches = model.patch_tokens(tokens)
    values: dict[str, Tensor] = {}
    if features:
        embeds, patch_embeds = model.separate(modality, tokens, record)
        for feature in features:
            if feature.kind == "layer":
                # Between the global token, where there is one, and the registers, which end with the tower.
                assert record.hidden_states is not None and feature.layer is not None
                states = model.patch_tokens(record.hidden_states[feature.layer])[:, : patches.shape[1]]
                values[feature.name] = states.mean(dim=1)
            else:
                values[feature.name] = embeds if feature.kind == "embedding" else patch_embeds.mean(dim=1)
    if places is not None:
        values = {name: value[places] for name, value in values.items()}
        patches = patches[places]
    return values, patches


def _fuse(model: CavMaeSyncModel, patches: dict[str, Tensor], both: Tensor | None) -> Tensor:
    """Mean fused patch of every moment `(moments, hidden)`, zeros where audio or frame is absent."""
    audio, video = patches["audio"], patches["video"]
    if both is None:
        return model.fuse(audio, video).mean(dim=1)
    places = both.flatten()
    values = audio.new_zeros(len(audio), audio.shape[-1])
    if bool(places.any()):
        values[places] = model.fuse(audio[places], video[places]).mean(dim=1)
    return values
