# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Sizes, losses and options of a CAV-MAE Sync model."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .auto_map_cavmae_sync import ConfigSavedWithCode, pipelines_to_load
from .encoder_families_cavmae_sync import (
    as_encoder_config,
    audio_grid,
    encoder_family,
    fixed_image_size,
    longest_input,
    num_blocks,
    patch_size,
    video_grid,
    waveform_values,
)
from .values_cavmae_sync import Allowed, check_values, choice, flag, number, odd, optional, per_channel, text, whole

# Of every setting of its own, and of the number of labels.
CONFIG_VALUES: dict[str, Allowed] = {
    "hidden_size": whole(4, 1 << 14),
    "num_attention_heads": whole(1, 1 << 10),
    "intermediate_size": whole(1, 1 << 17),
    "num_modality_layers": whole(0, 1 << 9),
    "num_joint_layers": whole(1, 1 << 9),
    "hidden_act": choice(*ACT2FN),
    "layer_norm_eps": number(0, 1),
    "initializer_range": number(0, 1e3),
    "attention_probs_dropout_prob": number(0, 1, below=True),
    "position_embedding_type": choice("sincos", "learned"),
    "image_size": whole(1, 1 << 13),
    "patch_size": whole(1, 1 << 10),
    "num_channels": whole(1, 1 << 10),
    "num_mel_bins": whole(1, 1 << 10),
    "audio_length": whole(1, 1 << 16),
    "num_frames": whole(1, 1 << 16),
    "frames_per_moment": odd(1, 99),
    "frame_step": number(0, 10, above=True),
    "subtract_mean_frame": flag(),
    "subtract_mean_spectrum": flag(),
    "use_global_tokens": flag(),
    "num_register_tokens": whole(0, 1 << 12),
    "num_contrastive_head_layers": whole(0, 1 << 9),
    "decoder_hidden_size": whole(4, 1 << 14),
    "decoder_num_hidden_layers": whole(1, 1 << 9),
    "decoder_num_attention_heads": whole(1, 1 << 10),
    "decoder_intermediate_size": whole(1, 1 << 17),
    "decoder_type": choice("self", "cross"),
    "decoder_mask_ratio": number(0, 1, below=True),
    "audio_mask_ratio": number(0, 1, below=True),
    "video_mask_ratio": number(0, 1, below=True),
    "contrastive_mask_ratio": optional(number(0, 1, below=True)),
    "audio_mask_mode": choice("unstructured", "time", "frequency", "time_frequency"),
    "norm_pix_loss": flag(),
    "temperature": number(0, 1e3, above=True),
    "contrastive_loss_weight": number(0, 1e6),
    "reconstruction_loss_weight": number(0, 1e6),
    "distillation_loss_weight": number(0, 1e6),
    "bidirectional_contrast": flag(),
    "intra_clip_negatives": flag(),
    "modality": choice("multimodal", "audio", "video"),
    "classifier_type": choice("mean_pooling", "frame_attention"),
    "num_classifier_layers": whole(0, 1 << 9),
    "deduplicate_windows": flag(),
    "local_head_size": whole(0, 1 << 14),
    "dense_loss_weight": number(0, 1e6),
    "dense_size": whole(1, 1 << 14),
    "dense_nonnegative_weight": number(0, 1e6),
    "dense_silence_weight": number(0, 1e6),
    "dense_variation_weight": number(0, 1e6),
    "audio_encoder_source": optional(text()),
    "video_encoder_source": optional(text()),
    "audio_encoder_layer": optional(whole(1, 1 << 9)),
    "video_encoder_layer": optional(whole(1, 1 << 9)),
    "audio_encoder_mean": optional(number(-1e6, 1e6)),
    "audio_encoder_std": optional(number(0, 1e6, above=True)),
    "video_encoder_mean": optional(per_channel(number(-1e6, 1e6))),
    "video_encoder_std": optional(per_channel(number(0, 1e6, above=True))),
    "encoder_training": choice("frozen", "lora", "full"),
    "encoder_lora_rank": whole(1, 1 << 12),
    "encoder_masking": choice("auto", "drop", "input"),
    "audio_context": choice("window", "clip"),
    "audio_clip_length": optional(whole(1, 3000)),
    "save_encoders": choice("whole", "reference"),
    "num_labels": whole(1, 1 << 20),
}
# What there is for encoders alone: it is saved where there is one, so that other models are saved as ever.
_ENCODER_SETTINGS = ("audio_encoder_config", "video_encoder_config") + tuple(
    name
    for name in CONFIG_VALUES
    if "encoder_" in name or name in ("audio_context", "audio_clip_length", "save_encoders")
)
# Saved where they are not as published, likewise.
_OPTIONS = {
    "decoder_type": "self", "decoder_mask_ratio": 0, "local_head_size": 0, "frames_per_moment": 1, "frame_step": 0.04,
    "subtract_mean_frame": False, "subtract_mean_spectrum": False,
}  # fmt: skip
_DENSE_OPTIONS = {
    "dense_loss_weight": 0, "dense_size": 128, "dense_nonnegative_weight": 0.01, "dense_silence_weight": 0.01,
    "dense_variation_weight": 0.01,
}  # fmt: skip
_MEL_BINS = 128
_CLIP_LENGTH = 1024  # the published length of a clip
# The positions of a grid, patches times width, are made before any weight is read.
_MOST_POSITIONS = 1 << 28


@strict
class CavMaeSyncConfig(ConfigSavedWithCode, PreTrainedConfig):
    r"""
    Configuration of the CAV-MAE Sync models. The defaults are the published CAV-MAE Sync release (CVPR 2025): a
    ViT-B tower for each modality, one joint layer, 16 frames with a 4.16 s audio window around each.

    Args:
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the two towers and of the joint layers. A multiple of 4 (the 2-D sine-cosine positions need it)
            and of `num_attention_heads`.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Attention heads of each encoder layer.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the feed-forward part of each encoder layer.
        num_modality_layers (`int`, *optional*, defaults to 11):
            Layers of the audio tower, and of the video tower.
        num_joint_layers (`int`, *optional*, defaults to 1):
            Layers shared by both modalities, each with its own norms for audio, video and the fused tokens.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward parts.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of every layer norm.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial global, register, modality and mask tokens. Linear layers start
            Xavier-uniform, as published.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout on attention probabilities while training.
        position_embedding_type (`str`, *optional*, defaults to `"sincos"`):
            `"sincos"`: fixed 2-D sine-cosine positions, made for the window length at hand. `"learned"`: positions
            are weights, as in fine-tuned CAV-MAE checkpoints, resized when the window length differs.
        image_size (`int`, *optional*, defaults to 224):
            Height and width of a frame, in pixels. A multiple of `patch_size`.
        patch_size (`int`, *optional*, defaults to 16):
            Side of a square patch, in pixels and in spectrogram bins.
        num_channels (`int`, *optional*, defaults to 3):
            Colour channels of a frame.
        num_mel_bins (`int`, *optional*, defaults to 128):
            Mel bins of the spectrogram. A multiple of `patch_size`.
        audio_length (`int`, *optional*, defaults to 416):
            Spectrogram frames (10 ms each) in one audio window. A multiple of `patch_size`.
        num_frames (`int`, *optional*, defaults to 16):
            Moments, each a frame and a window, sampled from a clip by default. The model takes any number.
        frames_per_moment (`int`, *optional*, defaults to 1):
            Consecutive frames that the video tower sees of each moment, an odd number: the frame of the moment is the
            middle one. They are stacked as channels, the earliest first, so that a patch is one of all of them and
            shows what moves (as in SyncNet, Chung and Zisserman 2016); only the middle one is reconstructed. 1: a
            single frame, as published.
        frame_step (`float`, *optional*, defaults to 0.04):
            Seconds between these frames, where there are several.
        subtract_mean_frame (`bool`, *optional*, defaults to `False`):
            Whether the video tower sees the frames of a moment less their mean: what moves, and nothing of what stands
            still, such as whose face it is and its light. Needs several frames a moment.
        subtract_mean_spectrum (`bool`, *optional*, defaults to `False`):
            Whether the audio tower hears each window less its mean over time in every mel bin (cepstral mean
            normalisation, Atal 1974, of log-mel): what changes, and little of the voice and the microphone.
        use_global_tokens (`bool`, *optional*, defaults to `True`):
            Whether each modality has a global token that carries the contrastive objective. Without them the mean
            of the patch tokens does (plain CAV-MAE).
        num_register_tokens (`int`, *optional*, defaults to 8):
            Register tokens per modality, seen by the tower and dropped before the joint layers.
        num_contrastive_head_layers (`int`, *optional*, defaults to 0):
            Extra layers per modality between the joint layers and the contrastive objective.
        decoder_hidden_size (`int`, *optional*, defaults to 512):
            Width of the decoder. A multiple of 4 and of `decoder_num_attention_heads`.
        decoder_num_hidden_layers (`int`, *optional*, defaults to 8):
            Layers of the decoder.
        decoder_num_attention_heads (`int`, *optional*, defaults to 16):
            Attention heads of each decoder layer.
        decoder_intermediate_size (`int`, *optional*, defaults to 2048):
            Width of the feed-forward part of each decoder layer.
        decoder_type (`str`, *optional*, defaults to `"self"`):
            What decoder layers attend to. `"self"`: all tokens of the decoder, visible and removed patches, to each
            other (MAE, as published). `"cross"`: each removed patch to the visible ones alone (CrossMAE, Fu et al.
            2024), which costs less; visible patches are then not predicted.
        decoder_mask_ratio (`float`, *optional*, defaults to 0.0):
            Share of the removed patches that a training step does not reconstruct (the decoder's masking of VideoMAE
            V2, Wang et al. 2023). Which ones is random. 0: all are reconstructed, as published, and so they are
            outside of training steps.
        audio_mask_ratio (`float`, *optional*, defaults to 0.75):
            Share of audio patches removed in pretraining.
        video_mask_ratio (`float`, *optional*, defaults to 0.75):
            Share of frame patches removed in pretraining.
        contrastive_mask_ratio (`float`, *optional*):
            Share of the patches of both modalities removed in a pass of its own for the contrastive objective (TG-DP,
            CVPR 2026: 0.5). `None`: one pass serves both objectives, as published.
        audio_mask_mode (`str`, *optional*, defaults to `"unstructured"`):
            `"unstructured"` removes single audio patches, `"time"` columns, `"frequency"` rows, `"time_frequency"`
            both.
        norm_pix_loss (`bool`, *optional*, defaults to `True`):
            Whether each target patch is normalised by its own mean and variance.
        temperature (`float`, *optional*, defaults to 0.05):
            Divisor of the cosine similarities in the contrastive loss.
        contrastive_loss_weight (`float`, *optional*, defaults to 0.1):
            Weight of the contrastive loss. 0 skips its computation.
        reconstruction_loss_weight (`float`, *optional*, defaults to 1.0, with an encoder of another model to 0.0):
            Weight of the reconstruction losses. 0 skips the decoder.
        distillation_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the distance between the embeddings and a teacher's, where pretraining is given those (TG-DP).
        bidirectional_contrast (`bool`, *optional*, defaults to `False`):
            `False`: a frame must find its audio among all audio windows (as published). `True`: the mean of that and
            of the opposite direction.
        intra_clip_negatives (`bool`, *optional*, defaults to `False`):
            Whether the other moments of the same clip count as negatives. `False` leaves them out of the softmax, so
            that a batch needs several clips.
        modality (`str`, *optional*, defaults to `"multimodal"`):
            `"multimodal"`, or `"audio"` / `"video"` for a model that has, and was fine-tuned with, that tower alone.
        classifier_type (`str`, *optional*, defaults to `"mean_pooling"`):
            Head of the classifier: `"mean_pooling"` (CAV-MAE: mean of tokens, norm, linear; frames are ensembled) or
            `"frame_attention"` (CAV-MAE Sync: transformer layers over the frames' joined global tokens).
        num_classifier_layers (`int`, *optional*, defaults to 2):
            Layers of the `"frame_attention"` head.
        deduplicate_windows (`bool`, *optional*, defaults to `True`):
            Whether windows and frames that equal their predecessor in the clip are encoded once. Changes the cost, not
            the output. Has no effect in compiled or exported models, whose shapes must not depend on data.
        local_head_size (`int`, *optional*, defaults to 0):
            Width of a head for each tower that predicts, from the tokens of one pass, by which vector an embedding
            falls where a patch is hidden; `cavmae-sync local-head` trains it. 0: there is none, as published.
        dense_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of a contrastive loss between the patches of both modalities (DenseAV, Hamilton et al., CVPR 2024):
            a window and a frame are as alike as audio patches are, on average, to the patch of the frame that each is
            most like. 0: there is none, as published.
        dense_size (`int`, *optional*, defaults to 128):
            Width of the projections in which these patches are compared.
        dense_nonnegative_weight (`float`, *optional*, defaults to 0.01):
            Weight, within the dense loss, of similarities below 0, squared.
        dense_silence_weight (`float`, *optional*, defaults to 0.01):
            Likewise, of all similarities of audio patches that hold digital silence.
        dense_variation_weight (`float`, *optional*, defaults to 0.01):
            Likewise, of changes from an audio patch to the next in time.
        audio_encoder_config, video_encoder_config (`dict` or `PreTrainedConfig`, *optional*):
            Encoder of transformers that takes the place of a tower: its configuration, as a mapping with `model_type`.
            `None`: the tower of this package, as published. See `docs/encoders.md` for those that are known.
        audio_encoder_source, video_encoder_source (`str`, *optional*):
            Folder or Hub name that the encoder's pretrained weights come from.
        audio_encoder_layer, video_encoder_layer (`int`, *optional*):
            Block of the encoder whose output is taken, counted from 1, without the last norm; those behind it are left
            out. `None`: the encoder's own output.
        audio_encoder_mean, audio_encoder_std (`float`, *optional*):
            What the encoder's log-mel input was normalised with; `None`: what is usual for its kind.
        video_encoder_mean, video_encoder_std (`list` of `float`, *optional*):
            Likewise of the pixels, a value for each colour.
        encoder_training (`str`, *optional*, defaults to `"frozen"`):
            `"frozen"`: encoders stay as they are, `"lora"`: their attention gets low-rank changes, `"full"`: all of
            them is trained. Towers of this package are always trained.
        encoder_lora_rank (`int`, *optional*, defaults to 8):
            Rank of these changes.
        encoder_masking (`str`, *optional*, defaults to `"auto"`):
            How patches that pretraining removes are kept from an encoder: `"drop"` leaves their tokens out of its
            blocks, `"input"` blanks them in its input; `"auto"` drops where the encoder allows it.
        audio_context (`str`, *optional*, defaults to `"window"`):
            `"window"`: an audio encoder hears each window alone. `"clip"`: it hears a longer clip around the window
            once, and its tokens are cut into windows, which then know of the rest of the clip.
        audio_clip_length (`int`, *optional*):
            Spectrogram frames of such a clip, at most 3000. Clips begin every `audio_clip_length - audio_length`
            frames of a file. `None`: 1024, or as many as the encoder hears at once.
        save_encoders (`str`, *optional*, defaults to `"whole"`):
            `"whole"`: encoders are saved with the model. `"reference"`: only the names they were loaded from are,
            which `from_pretrained` loads them from again.
        id2label, label2id, num_labels, problem_type:
            As in every transformers configuration.

    Raises:
        StrictDataclassClassValidationError: A value cannot work; the message says which one and what would.

    Example:

    ```python
    >>> from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncModel

    >>> model = CavMaeSyncModel(CavMaeSyncConfig(num_modality_layers=2))
    >>> model.config.audio_length
    416
    ```
    """

    model_type = "cavmae_sync"
    sub_configs_defaults = {
        "audio_encoder_config": SubConfigSpec(AutoConfig, model_type="audio-spectrogram-transformer", optional=True),
        "video_encoder_config": SubConfigSpec(AutoConfig, model_type="vit", optional=True),
    }
    # What Trainer must not gather while predicting: scalars, which it would join as rows, and what is large. Left are
    # the logits of a classifier, and the embeddings and similarities of the others.
    keys_to_ignore_at_inference = [
        "contrastive_loss",
        "audio_reconstruction_loss",
        "video_reconstruction_loss",
        "distillation_loss",
        "contrastive_accuracy",
        "audio_mask",
        "video_mask",
        "audio_reconstruction",
        "video_reconstruction",
        "audio_reconstruction_mask",
        "video_reconstruction_mask",
        "audio_patch_embeds",
        "video_patch_embeds",
        "local_audio_embeds",
        "local_video_embeds",
        "frame_logits",
        "audio_hidden_states",
        "video_hidden_states",
        "audio_attentions",
        "video_attentions",
    ]

    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_modality_layers: int = 11
    num_joint_layers: int = 1
    hidden_act: str = "gelu"
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02
    attention_probs_dropout_prob: float | int = 0.0
    position_embedding_type: Literal["sincos", "learned"] = "sincos"
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    num_mel_bins: int = 128
    audio_length: int = 416
    num_frames: int = 16
    frames_per_moment: int = 1
    frame_step: float | int = 0.04
    subtract_mean_frame: bool = False
    subtract_mean_spectrum: bool = False
    use_global_tokens: bool = True
    num_register_tokens: int = 8
    num_contrastive_head_layers: int = 0
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    decoder_type: Literal["self", "cross"] = "self"
    decoder_mask_ratio: float | int = 0.0
    audio_mask_ratio: float | int = 0.75
    video_mask_ratio: float | int = 0.75
    contrastive_mask_ratio: float | int | None = None
    audio_mask_mode: Literal["unstructured", "time", "frequency", "time_frequency"] = "unstructured"
    norm_pix_loss: bool = True
    temperature: float | int = 0.05
    contrastive_loss_weight: float | int = 0.1
    reconstruction_loss_weight: float | int | None = None
    distillation_loss_weight: float | int = 0.0
    bidirectional_contrast: bool = False
    intra_clip_negatives: bool = False
    modality: Literal["multimodal", "audio", "video"] = "multimodal"
    classifier_type: Literal["mean_pooling", "frame_attention"] = "mean_pooling"
    num_classifier_layers: int = 2
    deduplicate_windows: bool = True
    local_head_size: int = 0
    dense_loss_weight: float | int = 0.0
    dense_size: int = 128
    dense_nonnegative_weight: float | int = 0.01
    dense_silence_weight: float | int = 0.01
    dense_variation_weight: float | int = 0.01
    audio_encoder_config: dict | PreTrainedConfig | None = None
    video_encoder_config: dict | PreTrainedConfig | None = None
    audio_encoder_source: str | None = None
    video_encoder_source: str | None = None
    audio_encoder_layer: int | None = None
    video_encoder_layer: int | None = None
    audio_encoder_mean: float | int | None = None
    audio_encoder_std: float | int | None = None
    video_encoder_mean: list[float | int] | float | int | None = None
    video_encoder_std: list[float | int] | float | int | None = None
    encoder_training: Literal["frozen", "lora", "full"] = "frozen"
    encoder_lora_rank: int = 8
    encoder_masking: Literal["auto", "drop", "input"] = "auto"
    audio_context: Literal["window", "clip"] = "window"
    audio_clip_length: int | None = None
    save_encoders: Literal["whole", "reference"] = "whole"

    @classmethod
    def cav_mae_sync(cls, **overrides: Any) -> "CavMaeSyncConfig":
        """The CAV-MAE Sync release (CVPR 2025): 416-frame windows, global tokens, 8 registers."""
        return cls(**overrides)

    @classmethod
    def cav_mae(cls, **overrides: Any) -> "CavMaeSyncConfig":
        """Plain CAV-MAE (ICLR 2023): the whole 10.24 s clip as one window, no global tokens, no registers."""
        settings: dict[str, Any] = {
            "audio_length": 1024,
            "num_frames": 1,
            "use_global_tokens": False,
            "num_register_tokens": 0,
            "contrastive_loss_weight": 0.01,
        }
        return cls(**(settings | overrides))

    @property
    def num_hidden_layers(self) -> int:
        """Layers that a token of one modality passes: its tower and the joint layers."""
        return self.num_modality_layers + self.num_joint_layers

    @property
    def frame_channels(self) -> int:
        """Channels that the video tower sees of a moment: those of all its frames."""
        return self.num_channels * self.frames_per_moment

    @property
    def encoders(self) -> dict[str, Any]:
        """Configurations of the encoders that take the place of towers, by modality."""
        given = {"audio": self.audio_encoder_config, "video": self.video_encoder_config}
        return {modality: config for modality, config in given.items() if config is not None}

    def tower_layers(self, modality: str) -> int:
        """Layers of a modality's own tower or encoder; 0 where an encoder's cannot be counted."""
        encoder = self.encoders.get(modality)
        if encoder is None:
            return self.num_modality_layers
        return getattr(self, f"{modality}_encoder_layer") or num_blocks(encoder)

    @property
    def heard_length(self) -> int:
        """Spectrogram frames that the audio tower or encoder is given at once: a window, or the clip around it."""
        if self.audio_context == "window" or self.audio_encoder_config is None:
            return self.audio_length
        if self.audio_clip_length is not None:
            return self.audio_clip_length
        return max(self.audio_length, min(_CLIP_LENGTH, longest_input(self.audio_encoder_config) or _CLIP_LENGTH))

    @property
    def audio_grid(self) -> tuple[int, int]:
        """Audio patches as (mel rows, time columns); one row where an encoder's tokens are of time alone."""
        if self.audio_encoder_config is not None:
            return audio_grid(self.audio_encoder_config, self.audio_length)
        return self.num_mel_bins // self.patch_size, self.audio_length // self.patch_size

    @property
    def video_grid(self) -> tuple[int, int]:
        """Frame patches as (rows, columns)."""
        if self.video_encoder_config is not None:
            return video_grid(self.video_encoder_config, (self.image_size, self.image_size))
        return self.image_size // self.patch_size, self.image_size // self.patch_size

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None and "num_labels" in kwargs:  # a name is made for each of them
            try:
                check_values(kwargs, {"num_labels": CONFIG_VALUES["num_labels"]})
            except ValueError as error:
                raise StrictDataclassFieldValidationError(field="num_labels", cause=error) from error
        for modality in ("audio", "video"):
            name = f"{modality}_encoder_config"
            if getattr(self, name) is not None:
                setattr(self, name, as_encoder_config(modality, getattr(self, name)))
        heard = self.audio_encoder_config
        if heard is not None and encoder_family(heard).hears_waveforms and self.num_mel_bins == _MEL_BINS:
            self.num_mel_bins = waveform_values(heard)  # mel bins mean nothing to it, so the default is none either
        if self.reconstruction_loss_weight is None:
            self.reconstruction_loss_weight = 0.0 if self.encoders else 1.0
        pipelines = pipelines_to_load(kwargs.pop("custom_pipelines", None))
        super().__post_init__(**kwargs, **({"custom_pipelines": pipelines} if pipelines else {}))

    def to_dict(self) -> dict[str, Any]:
        """All settings; those of encoders where there is one, and options where they are not as published."""
        settings = super().to_dict()
        for name, published in (_OPTIONS | _DENSE_OPTIONS).items():
            if settings.get(name) == published:
                settings.pop(name)
        if not self.encoders:
            for name in _ENCODER_SETTINGS:
                settings.pop(name, None)
        return settings

    def validate_allowed(self) -> None:
        """Refuse what no setting may be; `validate_architecture` comes after it and may divide by them."""
        check_values({name: getattr(self, name) for name in CONFIG_VALUES}, CONFIG_VALUES)

    def validate_architecture(self) -> None:
        """Refuse sizes that cannot work together, each with what would."""
        super().validate_architecture()
        if self.classifier_type == "frame_attention" and self.num_classifier_layers < 1:
            raise ValueError(
                "`num_classifier_layers` is 0; the class token of a 'frame_attention' head sees the frames in its "
                "layers, use 1 or more (published: 2)."
            )
        towers = {"audio": ("audio_length", "num_mel_bins"), "video": ("image_size",)}
        for modality, names in towers.items():
            if modality not in self.encoders:
                for name in names:
                    _require_multiple(name, getattr(self, name), "patch_size", self.patch_size)
        self._check_encoders()
        if self.subtract_mean_frame and self.frames_per_moment == 1:
            raise ValueError(
                "`subtract_mean_frame` is True and `frames_per_moment` 1: nothing is left of a single frame less its "
                "mean; use 3 frames or more, or leave the mean."
            )
        if self.dense_loss_weight and (self.local_head_size or not self.contrastive_loss_weight):
            raise ValueError(
                f"`dense_loss_weight` is {self.dense_loss_weight}, which needs `contrastive_loss_weight` above 0 and "
                "`local_head_size` 0: it goes with the other contrast, and `local_video_embeds` are of one kind."
            )
        for width, heads in (
            ("hidden_size", "num_attention_heads"),
            ("decoder_hidden_size", "decoder_num_attention_heads"),
        ):
            _require_multiple(width, getattr(self, width), heads, getattr(self, heads))
            if getattr(self, width) % 4:
                raise ValueError(
                    f"`{width}` is {getattr(self, width)}; the 2-D sine-cosine positions need a multiple of 4, "
                    f"such as {max(4, getattr(self, width) // 4 * 4)}."
                )
        for name, grid in (("audio_length", self.audio_grid), ("image_size", self.video_grid)):
            positions = math.prod(grid) * self.hidden_size
            if positions > _MOST_POSITIONS:
                fit = _MOST_POSITIONS // self.hidden_size
                raise ValueError(
                    f"`{name}` is {getattr(self, name)} with `patch_size` {self.patch_size}, which makes "
                    f"{math.prod(grid):,} patches; at most {fit:,} of width {self.hidden_size:,} fit: use larger ones."
                )

    def _check_encoders(self) -> None:
        """Refuse settings that an encoder cannot follow, each with what would work."""
        for modality, encoder in self.encoders.items():
            family, kind = encoder_family(encoder), encoder.model_type
            layer, blocks = getattr(self, f"{modality}_encoder_layer"), num_blocks(encoder)
            if layer is not None and layer > blocks:
                has = f"has {blocks} blocks, use 1 to {blocks}" if blocks else "has no list of blocks, leave it out"
                raise ValueError(f"`{modality}_encoder_layer` is {layer}; the encoder {kind!r} {has}.")
            if self.encoder_masking == "drop" and not family.drops_tokens:
                raise ValueError(
                    f"`encoder_masking` is 'drop'; the encoder {kind!r} cannot leave tokens out, since their places "
                    "are not their own: use 'auto' or 'input', which blank them in its input."
                )
            if modality == "video":
                self._check_image_encoder(encoder)
            elif self.subtract_mean_spectrum:
                raise ValueError(
                    f"`subtract_mean_spectrum` is True; the encoder {kind!r} takes its input as it was trained on: "
                    "leave the mean, or use this package's own audio tower."
                )
            else:
                self._check_audio_encoder(encoder)
            if self.save_encoders == "reference" and not getattr(self, f"{modality}_encoder_source"):
                raise ValueError(
                    f"`save_encoders` is 'reference'; name where the encoder is in `{modality}_encoder_source`, or "
                    "use 'whole'."
                )
        if self.encoders and self.save_encoders == "reference" and self.encoder_training == "full":
            raise ValueError("`save_encoders` is 'reference', which would lose trained encoders; use 'whole'.")
        if self.audio_context == "clip" and "audio" not in self.encoders:
            raise ValueError("`audio_context` is 'clip', which needs an `audio_encoder_config`; use 'window'.")
        if self.audio_clip_length is not None and self.audio_clip_length < self.audio_length:
            raise ValueError(
                f"`audio_clip_length` is {self.audio_clip_length}, shorter than the windows in it, `audio_length` "
                f"{self.audio_length}; use at least that, or leave it out."
            )
        if self.audio_context == "clip" and self.reconstruction_loss_weight:
            raise ValueError(
                f"`reconstruction_loss_weight` is {self.reconstruction_loss_weight}; of windows that are heard within "
                "a clip nothing can be removed and recovered: use 0, or `audio_context='window'`."
            )
        if self.encoders and self.reconstruction_loss_weight:
            self._check_decodable()

    def _check_image_encoder(self, encoder: Any) -> None:
        if encoder_family(encoder).fixed_size:
            size, name = fixed_image_size(encoder), f"image size of the encoder {encoder.model_type!r}"
            _require_multiple(name, size, "patch_size", patch_size(encoder))
        else:
            name = f"patch size of the encoder {encoder.model_type!r}"
            _require_multiple("image_size", self.image_size, name, patch_size(encoder))
        if self.num_channels != 3:
            raise ValueError(f"`num_channels` is {self.num_channels}; encoders take 3.")
        if self.frames_per_moment != 1:
            raise ValueError(
                f"`frames_per_moment` is {self.frames_per_moment}; the encoder {encoder.model_type!r} takes single "
                "frames: use 1, or this package's own video tower."
            )

    def _check_audio_encoder(self, encoder: Any) -> None:
        family, kind = encoder_family(encoder), encoder.model_type
        longest = longest_input(encoder)
        if longest is not None and self.heard_length > longest:
            name = "audio_length" if self.heard_length == self.audio_length else "audio_clip_length"
            raise ValueError(
                f"`{name}` is {self.heard_length}; the encoder {kind!r} has positions for {longest} steps of "
                f"10 ms: use at most {longest}."
            )
        if family.hears_waveforms and self.num_mel_bins != waveform_values(encoder):
            raise ValueError(
                f"`num_mel_bins` is {self.num_mel_bins}; the encoder {kind!r} hears waveforms at "
                f"{family.sampling_rate} Hz, {waveform_values(encoder)} samples per 10 ms: use that, or leave it out."
            )
        if family.input == "log_mel" and self.num_mel_bins != encoder.num_mel_bins:
            raise ValueError(
                f"`num_mel_bins` is {self.num_mel_bins}; the encoder {kind!r} takes {encoder.num_mel_bins}: use that."
            )
        if math.prod(self.audio_grid) < 1:
            raise ValueError(
                f"`audio_length` is {self.audio_length}, too short for a single token of the encoder {kind!r}; use "
                "more."
            )

    def _check_decodable(self) -> None:
        """Refuse reconstruction where a token is not a square patch of the input."""
        size = self.patch_size
        squares = {
            "audio": (self.num_mel_bins / size, self.audio_length / size),
            "video": (self.image_size / size, self.image_size / size),
        }
        for modality, encoder in self.encoders.items():
            grid = self.audio_grid if modality == "audio" else self.video_grid
            if grid != squares[modality]:
                raise ValueError(
                    f"`reconstruction_loss_weight` is {self.reconstruction_loss_weight}; the tokens of the {modality} "
                    f"encoder {encoder.model_type!r} are no patches of {size} x {size} (`patch_size`) to be recovered "
                    f"({grid[0]} x {grid[1]} of them): use 0."
                )

    def validate_objectives(self) -> None:
        """Refuse mask ratios that leave nothing to see, or nothing to a decoder that needs something removed."""
        if self.decoder_type == "cross" and not self.audio_mask_ratio and not self.video_mask_ratio:
            raise ValueError(
                "`audio_mask_ratio` and `video_mask_ratio` are both 0; a decoder of `decoder_type` 'cross' predicts "
                "what was removed: use more for one of them, or 'self'."
            )
        fewest = min(self.audio_grid, self.video_grid, key=math.prod)
        for name, (rows, columns) in (
            ("audio_mask_ratio", self.audio_grid),
            ("video_mask_ratio", self.video_grid),
            ("contrastive_mask_ratio", fewest),
        ):
            ratio, patches = getattr(self, name), rows * columns
            if ratio is None:
                continue
            if int(patches * (1 - ratio)) < 1:
                raise ValueError(
                    f"`{name}` is {ratio}; of {patches} patches at least one must stay visible: "
                    f"use a value from 0 to {1 - 1 / patches:.4g}."
                )


def _require_multiple(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        lower, upper = value // divisor * divisor, (value // divisor + 1) * divisor
        fits = f"{lower} or {upper}" if lower else str(upper)
        raise ValueError(f"`{name}` is {value}, not a multiple of `{divisor_name}` ({divisor}); {fits} would work.")


__all__ = ["CavMaeSyncConfig"]
