# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What is known of each kind of encoder that may take a tower's place: its input, its tokens and their grid.

Of configurations alone; `encoders_cavmae_sync.py` has the modules.
"""

import copy
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from .alignment_cavmae_sync import FRAMES_PER_SECOND

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

# What our processor's frames and log-mel windows are normalised with, see the processors' defaults.
FRAME_STATISTICS = _IMAGENET
LOG_MEL_STATISTICS = (-5.081, 4.4849)
# AST divides by twice the standard deviation.
_AST_STATISTICS = (-4.2677393, 2 * 4.5689974)


@dataclass(frozen=True)
class EncoderFamily:
    """Encoders of one `model_type`.

    Attributes:
        modality: `"audio"` or `"video"`.
        input: `"image"` `(samples, 3, height, width)`; `"clip"`, the same frame repeated along a time axis;
            `"log_mel"` `(samples, time, mel)`, made by our feature extractor; `"whisper"`, its own log-mel, made of a
            waveform; `"waveform"` `(samples, values)` of zero mean and unit variance; `"raw_waveform"`
            `(samples, 1, values)`.
        argument: Name of the encoder's input.
        blocks: Where its list of blocks is, which tokens can be left out of; empty: they cannot.
        norm: Where its last norm is, behind the blocks.
        norm_apart: Whether the encoder leaves that norm out of its tokens.
        prefix: How many tokens stand before the patches.
        classes: How many of these stand for the whole input, the first ones; they are averaged.
        drops_tokens: Whether tokens can be left out: each carries its position.
        statistics: Mean and standard deviation of the input's values that it was trained with, where it is an image
            or a log-mel.
        fixed_size: Whether frames must have the configured size.
        sampling_rate: Of waveforms, Hz.
    """

    modality: str
    input: str
    argument: str = "pixel_values"
    blocks: str = ""
    norm: str = ""
    norm_apart: bool = False
    prefix: Callable[[Any], int] = lambda config: 1
    classes: int = 1
    drops_tokens: bool = True
    statistics: tuple[Any, Any] = FRAME_STATISTICS
    fixed_size: bool = False
    sampling_rate: int = 16_000

    @property
    def hears_waveforms(self) -> bool:
        """Whether its input is made of samples, not of our log-mel."""
        return self.input in ("whisper", "waveform", "raw_waveform")


def _registers(config: Any) -> int:
    return 1 + int(config.num_register_tokens or 0)


def _none(config: Any) -> int:
    return 0


def _image(**settings: Any) -> EncoderFamily:
    return EncoderFamily("video", "image", **({"blocks": "layers", "norm": "layernorm"} | settings))


def _audio(input: str, argument: str = "input_values", **settings: Any) -> EncoderFamily:
    return EncoderFamily("audio", input, argument, **settings)


_VIDEO_BLOCKS: dict[str, Any] = {"blocks": "encoder.layer", "norm": "layernorm"}
_WITHOUT_CLASS: dict[str, Any] = {"prefix": _none, "classes": 0}
_WINDOWED: dict[str, Any] = {"blocks": "", "norm": "", "drops_tokens": False} | _WITHOUT_CLASS
# The last norm stands before the blocks in the small models and behind them in the large ones.
_SPEECH: dict[str, Any] = {"blocks": "encoder.layers"} | _WITHOUT_CLASS
FAMILIES: dict[str, EncoderFamily] = {
    "vit": _image(statistics=_HALF),
    "vit_mae": _image(),
    "vit_msn": _image(),
    "deit": _image(prefix=lambda config: 2, classes=2),
    "ijepa": _image(**_WITHOUT_CLASS),
    "dinov2": _image(**_VIDEO_BLOCKS),
    "dinov2_with_registers": _image(**_VIDEO_BLOCKS, prefix=_registers),
    "dinov3_vit": _image(blocks="model.layer", norm="norm", prefix=_registers),
    "clip_vision_model": _image(blocks="encoder.layers", norm="post_layernorm", norm_apart=True, statistics=_CLIP),
    "siglip_vision_model": _image(blocks="encoder.layers", norm="post_layernorm", statistics=_HALF, **_WITHOUT_CLASS),
    "aimv2_vision_model": _image(blocks="encoder.layers", norm="rms_norm", statistics=_CLIP, **_WITHOUT_CLASS),
    "videomae": EncoderFamily("video", "clip", **_VIDEO_BLOCKS, **_WITHOUT_CLASS, fixed_size=True),
    "vjepa2": EncoderFamily(
        "video",
        "clip",
        "pixel_values_videos",
        blocks="encoder.layer",
        norm="encoder.layernorm",
        **_WITHOUT_CLASS,
        fixed_size=True,
    ),
    "swin": _image(**_WINDOWED),
    "swinv2": _image(**_WINDOWED),
    "audio-spectrogram-transformer": _audio(
        "log_mel", blocks="layers", norm="layernorm", prefix=lambda config: 2, classes=2, statistics=_AST_STATISTICS
    ),
    "whisper": _audio("whisper", "input_features", blocks="layers", norm="layer_norm", **_WITHOUT_CLASS),
    # Behind its blocks it joins tokens by pairs.
    "qwen2_audio_encoder": _audio(
        "whisper", "input_features", blocks="layers", norm="layer_norm", **_WITHOUT_CLASS, drops_tokens=False
    ),
    "wav2vec2": _audio("waveform", **_SPEECH),
    "hubert": _audio("waveform", **_SPEECH),
    "unispeech": _audio("waveform", **_SPEECH),
    "unispeech-sat": _audio("waveform", **_SPEECH),
    "data2vec-audio": _audio("waveform", **_SPEECH),
    "wavlm": _audio("waveform", **_SPEECH, drops_tokens=False),
    "pe_audio_encoder": _audio("raw_waveform", blocks="layers", norm="norm", sampling_rate=48_000),
}
# Where the encoder is in configurations of several parts.
_PARTS = {"video": ("vision_config",), "audio": ("audio_config",)}


def known_encoders(modality: str) -> str:
    """The encoders that a modality may have, as messages list them."""
    return ", ".join(repr(name) for name, family in FAMILIES.items() if family.modality == modality)


def encoder_family(config: Any) -> EncoderFamily:
    """What is known of an encoder, of its configuration."""
    return FAMILIES[config.model_type]


def as_encoder_config(modality: str, value: Any) -> PreTrainedConfig:
    """The configuration of an encoder, of what a setting holds.

    Args:
        modality: `"audio"` or `"video"`.
        value: A configuration, also of a model that has the encoder as a part (`CLIPConfig`), or a mapping with
            `model_type`.

    Raises:
        ValueError: It is none, or of an encoder that is not known for this modality.
    """
    name = f"{modality}_encoder_config"
    if isinstance(value, Mapping):
        settings = dict(value)
        kind = settings.pop("model_type", None)
        if not isinstance(kind, str):
            raise ValueError(f"`{name}` has no `model_type`; known encoders are {known_encoders(modality)}.")
        try:
            value = AutoConfig.for_model(kind, **settings)
        except (ValueError, KeyError) as error:
            if kind in FAMILIES:
                raise
            raise _unknown(name, kind, modality) from error
    if not hasattr(value, "model_type"):
        raise ValueError(
            f"`{name}` is a {type(value).__name__}; give a configuration of transformers, or a mapping with "
            "`model_type`."
        )
    for part in _PARTS[modality]:
        if value.model_type not in FAMILIES and getattr(value, part, None) is not None:
            value = getattr(value, part)
    family = FAMILIES.get(value.model_type)
    if family is None or family.modality != modality:
        raise _unknown(name, value.model_type, modality)
    return copy.deepcopy(value)


def _unknown(name: str, kind: str, modality: str) -> ValueError:
    family = FAMILIES.get(kind)
    if family is not None:
        return ValueError(
            f"`{name}` is of type {kind!r}, an encoder of {family.modality}; give it as "
            f"`{family.modality}_encoder_config`."
        )
    known = [word for word, entry in FAMILIES.items() if entry.modality == modality]
    near = difflib.get_close_matches(kind, known, n=1)
    meant = f" Perhaps {near[0]!r} is meant." if near else ""
    return ValueError(f"`{name}` is of type {kind!r}; known encoders are {known_encoders(modality)}.{meant}")


def num_blocks(config: Any) -> int:
    """Blocks of an encoder whose output can be taken; 0 where there is no such list."""
    if not encoder_family(config).blocks:
        return 0
    return int(getattr(config, "encoder_layers", None) or config.num_hidden_layers)


def hidden_width(config: Any) -> int:
    """Width of an encoder's tokens."""
    if encoder_family(config).input == "image" and hasattr(config, "depths"):
        return int(config.embed_dim * 2 ** (len(config.depths) - 1))
    return int(config.d_model if config.model_type == "qwen2_audio_encoder" else config.hidden_size)


def patch_size(config: Any) -> int:
    """Side of the square of pixels that one token of an image encoder stands for."""
    size = config.patch_size[0] if isinstance(config.patch_size, list | tuple) else config.patch_size
    return int(size * 2 ** (len(config.depths) - 1) if hasattr(config, "depths") else size)


def fixed_image_size(config: Any) -> int:
    """Side of the frames that an encoder of `fixed_size` takes."""
    size = config.crop_size if config.model_type == "vjepa2" else config.image_size
    return int(size[0] if isinstance(size, list | tuple) else size)


def video_grid(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Patches of an image encoder as (rows, columns), of frames of `size` (height, width)."""
    if encoder_family(config).fixed_size:
        size = (fixed_image_size(config),) * 2
    return size[0] // patch_size(config), size[1] // patch_size(config)


def audio_grid(config: Any, frames: int) -> tuple[int, int]:
    """Tokens of an audio encoder as (mel rows, time columns), one row where tokens are of time alone.

    Args:
        config: The encoder's.
        frames: Length of the input, in steps of 10 ms.
    """
    family = encoder_family(config)
    if family.input == "log_mel":
        rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        return rows, (frames - config.patch_size) // config.time_stride + 1
    if family.input == "whisper":
        return 1, -(-frames // _whisper_step(config))
    samples = frames * family.sampling_rate // FRAMES_PER_SECOND
    if family.input == "raw_waveform":
        return 1, -(-samples // config.dac_config.hop_length)
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return 1, samples


def _whisper_step(config: Any) -> int:
    """Steps of 10 ms that a token of Whisper's architecture stands for."""
    return 4 if config.model_type == "qwen2_audio_encoder" else 2


def frames_per_column(config: Any) -> float:
    """Steps of 10 ms from one time column of an audio encoder to the next."""
    family = encoder_family(config)
    if family.input == "log_mel":
        return float(config.time_stride)
    if family.input == "whisper":
        return float(_whisper_step(config))
    per_frame = family.sampling_rate // FRAMES_PER_SECOND
    if family.input == "raw_waveform":
        return config.dac_config.hop_length / per_frame
    stride = 1
    for step in config.conv_stride:
        stride *= step
    return stride / per_frame


def longest_input(config: Any) -> int | None:
    """Steps of 10 ms that an audio encoder has positions for; `None`: any number."""
    family = encoder_family(config)
    if family.input == "log_mel":
        return int(config.max_length)
    return 2 * int(config.max_source_positions) if family.input == "whisper" else None


def waveform_values(config: Any) -> int:
    """Samples per 10 ms that an encoder of waveforms takes."""
    return encoder_family(config).sampling_rate // FRAMES_PER_SECOND


def check_extractor(encoder: Any, extractor: Any, clip_length: int | None = None) -> None:
    """Refuse a feature extractor that does not make what an audio encoder hears.

    Args:
        encoder: The encoder's configuration; `None` for the tower of this package.
        extractor: A `CavMaeSyncFeatureExtractor`.
        clip_length: Of the clips that windows are heard within; `None`: they are heard alone.

    Raises:
        ValueError: Names the setting that differs.
    """
    wanted: dict[str, Any] = {"features": "log_mel"}
    if encoder is not None and encoder_family(encoder).hears_waveforms:
        wanted = {
            "features": "waveform",
            "sampling_rate": encoder_family(encoder).sampling_rate,
            "mean": 0.0,
            "std": 1.0,
        }
    elif encoder is not None:  # its own statistics are reckoned from these
        wanted |= dict(zip(("mean", "std"), LOG_MEL_STATISTICS, strict=True), sampling_rate=16_000)
    wanted["clip_length"] = clip_length
    kind = "this package's audio tower" if encoder is None else f"the audio encoder {encoder.model_type!r}"
    for name, value in wanted.items():
        if getattr(extractor, name) != value:
            raise ValueError(
                f"The feature extractor has `{name}` {getattr(extractor, name)!r}, and {kind} needs {value!r}; use "
                "CavMaeSyncProcessor.from_config(model.config)."
            )


__all__ = [
    "FAMILIES",
    "FRAME_STATISTICS",
    "LOG_MEL_STATISTICS",
    "EncoderFamily",
    "as_encoder_config",
    "audio_grid",
    "check_extractor",
    "encoder_family",
    "fixed_image_size",
    "frames_per_column",
    "hidden_width",
    "known_encoders",
    "longest_input",
    "num_blocks",
    "patch_size",
    "video_grid",
    "waveform_values",
]
