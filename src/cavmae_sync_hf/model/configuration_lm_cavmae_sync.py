# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Sizes and options of a CAV-MAE Sync model that is joined to a causal language model."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .auto_map_cavmae_sync import LM_AUTO_MAP, ConfigSavedWithCode
from .configuration_cavmae_sync import CavMaeSyncConfig
from .values_cavmae_sync import Allowed, check_values, flag, optional, whole

# Of every setting of its own.
LM_CONFIG_VALUES: dict[str, Allowed] = {
    "tokens_per_frame": Allowed(
        "a square number from 0 to 256 (0, 1, 4, 9, 16 ...)",
        lambda value: whole(0, 256)(value) and math.isqrt(value) ** 2 == value,
    ),
    "tokens_per_window": whole(0, 256),
    "merge_tokens": flag(),
    "time_frequencies": whole(0, 256),
    "video_token_id": optional(whole(0, 1 << 30)),
    "audio_token_id": optional(whole(0, 1 << 30)),
    "projector_hidden_act": Allowed(
        "an activation that transformers knows, such as 'gelu'",
        lambda value: isinstance(value, str) and value in ACT2FN,
    ),
}


@strict
class CavMaeSyncLMConfig(ConfigSavedWithCode, PreTrainedConfig):
    r"""
    Configuration of [`CavMaeSyncForConditionalGeneration`]: a CAV-MAE Sync model and any causal language model of
    transformers.

    A moment of a clip reaches the language model as its time in words, one token for the frame and some for parts of
    it, and the same of its audio window.

    Args:
        av_config (`dict` or `CavMaeSyncConfig`, *optional*):
            Of the audio-visual model.
        text_config (`dict` or `PreTrainedConfig`, *optional*, defaults to a Qwen3):
            Of the language model: of any type that `AutoModelForCausalLM` knows.
        video_token_id (`int`, *optional*):
            Id of the placeholder of video tokens, `<|video|>`, in the tokenizer.
        audio_token_id (`int`, *optional*):
            Id of the placeholder of audio tokens, `<|audio|>`.
        tokens_per_frame (`int`, *optional*, defaults to 9):
            Tokens of parts of a frame beside its global token: means over a square grid of its patches. The global
            token alone (0) does not tell where something is.
        tokens_per_window (`int`, *optional*, defaults to 4):
            Tokens of parts of a window beside its global token: means over equal spans of its time.
        merge_tokens (`bool`, *optional*, defaults to `False`):
            Whether all of these of a frame are laid side by side before the projector, and become one token; likewise
            of a window. Where something is can then be told from one token, and texts are short.
        time_frequencies (`int`, *optional*, defaults to 32):
            How many sines and cosines of a moment's time are added, projected, to its tokens, so that each token knows
            its time without looking for it in the text; 0 for none. Their weights are 0 at the start.
        projector_hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the projectors.
        tie_word_embeddings (`bool`, *optional*):
            Whether the language model's head is its embedding; default: as `text_config` says.

    Raises:
        StrictDataclassClassValidationError: A value cannot work; the message says which one and what would.

    Example:

    ```python
    >>> from transformers import Qwen3Config
    >>> from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncLMConfig

    >>> config = CavMaeSyncLMConfig(av_config=CavMaeSyncConfig(), text_config=Qwen3Config(), tokens_per_frame=4)
    >>> config.frame_tokens, config.window_tokens
    (5, 5)
    ```
    """

    model_type = "cavmae_sync_lm"
    own_auto_map = LM_AUTO_MAP
    own_pipelines = {}  # noqa: RUF012
    sub_configs_defaults = {
        "av_config": SubConfigSpec(config_class=CavMaeSyncConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen3"),
    }

    av_config: CavMaeSyncConfig | PreTrainedConfig | dict | None = None
    text_config: PreTrainedConfig | dict | None = None
    video_token_id: int | None = None
    audio_token_id: int | None = None
    tokens_per_frame: int = 9
    tokens_per_window: int = 4
    merge_tokens: bool = False
    time_frequencies: int = 32
    projector_hidden_act: str = "gelu"
    tie_word_embeddings: bool | None = None

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame."""
        return 1 if self.merge_tokens else 1 + self.tokens_per_frame

    @property
    def window_tokens(self) -> int:
        """Tokens of a window."""
        return 1 if self.merge_tokens else 1 + self.tokens_per_window

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))

    def validate_allowed(self) -> None:
        """Refuse what no setting may be."""
        check_values({name: getattr(self, name) for name in LM_CONFIG_VALUES}, LM_CONFIG_VALUES)


__all__ = ["LM_CONFIG_VALUES", "CavMaeSyncLMConfig"]
