# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Sizes, losses and options of a CAV-MAE Sync model that is joined to a text encoder."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .auto_map_cavmae_sync import TEXT_AUTO_MAP, TEXT_PIPELINES, ConfigSavedWithCode, pipelines_to_load
from .configuration_cavmae_sync import CavMaeSyncConfig
from .values_cavmae_sync import Allowed, check_values, choice, flag, number, optional, whole

# Of every setting of its own.
TEXT_CONFIG_VALUES: dict[str, Allowed] = {
    "projection_dim": optional(whole(1, 1 << 14)),
    "text_pooling": choice("mean", "cls", "eos", "pooler"),
    "num_text_layers": whole(0, 1 << 6),
    "text_dropout": number(0, 1, below=True),
    "num_clip_layers": whole(0, 1 << 6),
    "score_sequences": flag(),
    "text_loss": choice("sigmoid", "softmax"),
    "clip_pooling": choice("lse", "mean", "max"),
    "clip_pooling_temperature": number(0, 1e3, above=True),
    "logit_scale_init_value": number(-20, 20),
    "logit_bias_init_value": number(-1e3, 1e3),
    "moment_loss_weight": number(0, 1e6),
    "audio_video_loss_weight": number(0, 1e6),
    "hard_pair_weight": number(0, 1e6),
}


@strict
class CavMaeSyncTextDualEncoderConfig(ConfigSavedWithCode, PreTrainedConfig):
    r"""
    Configuration of [`CavMaeSyncTextDualEncoderModel`]: a CAV-MAE Sync model and any text encoder of transformers.

    Args:
        av_config (`dict` or `CavMaeSyncConfig`, *optional*):
            Of the audio-visual model, whose embeddings stay what they are without text.
        text_config (`dict` or `PreTrainedConfig`, *optional*, defaults to a ModernBERT):
            Of the text encoder: of any type that `AutoModel` makes with `last_hidden_state` in its output. Of a CLIP
            or SigLIP, give the `text_config` of its configuration.
        projection_dim (`int`, *optional*):
            Width of the space of text, audio and video. `None`: text is brought into the space of the audio-visual
            model itself, so that its indexes can be searched by words. A number: audio and video are projected, too.
        text_pooling (`str`, *optional*, defaults to `"mean"`):
            How one vector is made of the text encoder's tokens: `"mean"`, `"cls"` (the first), `"eos"` (the last) or
            `"pooler"` (`pooler_output` of the text encoder).
        num_text_layers (`int`, *optional*, defaults to 1):
            Transformer layers over the text encoder's tokens, whose mean is added to the pooled vector. They read what
            that does not tell, such as which of two things a sentence says is silent.
        text_dropout (`float`, *optional*, defaults to 0.2):
            Dropout on the text encoder's tokens while training, so that texts in other words are understood.
        num_clip_layers (`int`, *optional*, defaults to 2):
            Transformer layers over the moments of a clip, which make one vector of it that knows their order. 0: a
            clip's score is made of the scores of its moments alone.
        score_sequences (`bool`, *optional*, defaults to `True`):
            Whether a clip's score also counts the order and number of what a text speaks of, as they follow from the
            moments' probabilities.
        text_loss (`str`, *optional*, defaults to `"sigmoid"`):
            `"sigmoid"`: each text and clip is judged by itself (SigLIP, Zhai et al. 2023). `"softmax"`: each text must
            find its clips and each clip its texts (InfoNCE with several positives).
        clip_pooling (`str`, *optional*, defaults to `"lse"`):
            How a clip's score is made of those of its moments: `"lse"` (log-mean-exp with learned sharpness), `"mean"`
            or `"max"`.
        clip_pooling_temperature (`float`, *optional*, defaults to 0.1):
            Of the log-mean-exp at the start: towards 0 it is the maximum, for large values the mean.
        logit_scale_init_value (`float`, *optional*, defaults to log 10):
            Logarithm of the scale of similarities at the start.
        logit_bias_init_value (`float`, *optional*, defaults to -5.0):
            What is added to scaled similarities at the start (sigmoid loss): most pairs are no pairs.
        moment_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the loss of moments, where captions have spans.
        audio_video_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the contrastive loss of audio and video, for joint training.
        hard_pair_weight (`float`, *optional*, defaults to 8.0):
            How often a hard pair counts in the sigmoid loss: a text and a clip of which it is true, while it is false
            in nearly the same words ("a before b", "b before a"), or the reverse. Other clips tell little of it.

    Raises:
        StrictDataclassClassValidationError: A value cannot work; the message says which one and what would.

    Example:

    ```python
    >>> from transformers import BertConfig
    >>> from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncTextDualEncoderConfig

    >>> config = CavMaeSyncTextDualEncoderConfig(
    ...     av_config=CavMaeSyncConfig(num_modality_layers=2).to_dict(), text_config=BertConfig().to_dict()
    ... )
    >>> config.space_dim
    768
    ```
    """

    model_type = "cavmae_sync_text_dual_encoder"
    own_auto_map = TEXT_AUTO_MAP
    own_pipelines = TEXT_PIPELINES
    sub_configs_defaults = {
        "av_config": SubConfigSpec(config_class=CavMaeSyncConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="modernbert"),
    }
    # What Trainer must not gather while predicting: scalars, and what differs in shape from batch to batch.
    keys_to_ignore_at_inference = [
        "text_audio_loss",
        "text_video_loss",
        "text_audio_video_loss",
        "moment_loss",
        "audio_video_loss",
        "bridge_loss",
        "moment_logits_audio",
        "moment_logits_video",
        "audio_embeds",
        "video_embeds",
        "text_model_output",
    ]

    av_config: CavMaeSyncConfig | PreTrainedConfig | dict | None = None
    text_config: PreTrainedConfig | dict | None = None
    projection_dim: int | None = None
    text_pooling: Literal["mean", "cls", "eos", "pooler"] = "mean"
    num_text_layers: int = 1
    text_dropout: float | int = 0.2
    num_clip_layers: int = 2
    score_sequences: bool = True
    text_loss: Literal["sigmoid", "softmax"] = "sigmoid"
    clip_pooling: Literal["lse", "mean", "max"] = "lse"
    clip_pooling_temperature: float | int = 0.1
    logit_scale_init_value: float | int = math.log(10)
    logit_bias_init_value: float | int = -5.0
    moment_loss_weight: float | int = 1.0
    audio_video_loss_weight: float | int = 0.0
    hard_pair_weight: float | int = 8.0

    @classmethod
    def from_av_text_configs(
        cls, av_config: CavMaeSyncConfig, text_config: PreTrainedConfig, **kwargs: Any
    ) -> "CavMaeSyncTextDualEncoderConfig":
        """Join two configurations; `kwargs` are settings of the joined one."""
        return cls(av_config=av_config.to_dict(), text_config=text_config.to_dict(), **kwargs)

    @property
    def space_dim(self) -> int:
        """Width of the space that text shares with audio and video."""
        assert self.av_config is not None
        return self.projection_dim or self.av_config.hidden_size  # type: ignore[union-attr]

    def __post_init__(self, **kwargs: Any) -> None:
        pipelines = pipelines_to_load(kwargs.pop("custom_pipelines", None))
        super().__post_init__(**kwargs, **({"custom_pipelines": pipelines} if pipelines else {}))

    def validate_allowed(self) -> None:
        """Refuse what no setting may be."""
        check_values({name: getattr(self, name) for name in TEXT_CONFIG_VALUES}, TEXT_CONFIG_VALUES)


def audio_visual_config(config: Any) -> CavMaeSyncConfig:
    """The configuration of the audio-visual model: of a model with text the one inside, else itself."""
    return getattr(config, "av_config", config)


__all__ = ["TEXT_CONFIG_VALUES", "CavMaeSyncTextDualEncoderConfig", "audio_visual_config"]
