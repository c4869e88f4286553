# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""CAV-MAE Sync joined to a text encoder: words find clips and moments, and name what is heard and seen."""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_cavmae_sync import CavMaeSyncConfig
from .configuration_text_cavmae_sync import CavMaeSyncTextDualEncoderConfig
from .distributed_cavmae_sync import gather_sizes, gather_with_gradient, world_size
from .losses_cavmae_sync import bridge_loss, moment_loss, text_loss
from .modeling_cavmae_sync import (
    CavMaeSyncAudioFeatures,
    CavMaeSyncLayer,
    CavMaeSyncModel,
    CavMaeSyncPreTrainedModel,
    CavMaeSyncVideoFeatures,
    pool_clip,
    run_layers,
)

_MODALITIES = ("audio", "video")
# Times that something may occur, told from each other.
_MOST_TIMES = 5
# See `sequence_features`.
SEQUENCE_FEATURES = 4 + _MOST_TIMES


@dataclass
class CavMaeSyncTextOutput(ModelOutput):
    """
    Output of [`CavMaeSyncTextDualEncoderModel`]; T texts, B clips, F moments, P the width of the shared space. What
    belongs to an input that was not given is `None`.

    Args:
        loss (`torch.Tensor` scalar, *optional*, returned when `return_loss=True`):
            Sum of the losses below, weighted as configured.
        text_audio_loss, text_video_loss, text_audio_video_loss (`torch.Tensor` scalar):
            Of texts and the audio, the frames, and both of the clips.
        moment_loss (`torch.Tensor` scalar):
            Of moments inside and outside of the spans of captions.
        audio_video_loss (`torch.Tensor` scalar):
            Contrastive loss of audio and video, where it has a weight.
        bridge_loss (`torch.Tensor` scalar):
            Of projected windows and frames and where another model puts the frames, where that is given.
        logits_per_text (`torch.Tensor` of shape `(T, B)`):
            Of every text with all that there is of every clip. `sigmoid` of it is a probability where the model was
            trained with the sigmoid loss.
        logits_per_audio, logits_per_video (`torch.Tensor` of shape `(B, T)`):
            Of the clips' audio alone and frames alone.
        moment_logits_audio, moment_logits_video (`torch.Tensor` of shape `(T, B, F)`):
            Of every text at every moment; the lowest number where window or frame is absent.
        text_embeds (`torch.Tensor` of shape `(T, P)`):
            L2-normalised, in the space of `audio_embeds` and `video_embeds`.
        text_clip_embeds (`torch.Tensor` of shape `(T, hidden_size)`):
            L2-normalised, in the space of `clip_embeds`; `None` without clip layers.
        audio_embeds, video_embeds (`torch.Tensor` of shape `(B, F, P)`):
            L2-normalised; zeros where absent.
        clip_embeds (`torch.Tensor` of shape `(B, hidden_size)`):
            L2-normalised vector of a clip's moments in their order, of all that there is of it.
        text_model_output (`BaseModelOutputWithPooling`):
            Of the text encoder.
    """

    loss: Tensor | None = None
    text_audio_loss: Tensor | None = None
    text_video_loss: Tensor | None = None
    text_audio_video_loss: Tensor | None = None
    moment_loss: Tensor | None = None
    audio_video_loss: Tensor | None = None
    bridge_loss: Tensor | None = None
    logits_per_text: Tensor | None = None
    logits_per_audio: Tensor | None = None
    logits_per_video: Tensor | None = None
    moment_logits_audio: Tensor | None = None
    moment_logits_video: Tensor | None = None
    text_embeds: Tensor | None = None
    text_clip_embeds: Tensor | None = None
    audio_embeds: Tensor | None = None
    video_embeds: Tensor | None = None
    clip_embeds: Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None


@dataclass
class CavMaeSyncTextFeatures(BaseModelOutputWithPooling):
    """
    Output of `get_text_features`.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(T, tokens, text hidden_size)`):
            Of the text encoder.
        pooler_output (`torch.Tensor` of shape `(T, P)`):
            L2-normalised, in the space of `audio_embeds` and `video_embeds`.
        text_clip_embeds (`torch.Tensor` of shape `(T, hidden_size)`):
            L2-normalised, in the space of `clip_embeds`; `None` without clip layers.
        text_part_embeds (`torch.Tensor` of shape `(T, 2, P)`):
            Two things that the text may speak of, L2-normalised; `None` unless sequences are scored.
        sequence_weights (`torch.Tensor` of shape `(T, SEQUENCE_FEATURES)`):
            What counts of their order and number, see `sequence_features`.
    """

    text_clip_embeds: Tensor | None = None
    text_part_embeds: Tensor | None = None
    sequence_weights: Tensor | None = None


class CavMaeSyncTextHead(nn.Module):
    """From a text encoder's tokens to the space of moments and to that of clips."""

    def __init__(self, config: CavMaeSyncTextDualEncoderConfig):
        super().__init__()
        av_config = cast(CavMaeSyncConfig, config.av_config)
        width, hidden = cast(Any, config.text_config).hidden_size, av_config.hidden_size
        self.pooling, self.dropout = config.text_pooling, config.text_dropout
        self.scores_sequences = config.score_sequences
        self.projection = nn.Linear(width, config.space_dim)
        self.clip_projection = nn.Linear(width, hidden) if config.num_clip_layers else None
        self.layers = nn.ModuleList([CavMaeSyncLayer(av_config) for _ in range(config.num_text_layers)])
        if config.num_text_layers:
            self.token_projection = nn.Linear(width, hidden)
            self.norm = nn.LayerNorm(hidden, eps=av_config.layer_norm_eps)
            self.token_mean_projection = nn.Linear(hidden, config.space_dim)
            self.token_mean_clip_projection = nn.Linear(hidden, hidden) if config.num_clip_layers else None
        if config.score_sequences:
            self.part_queries = nn.Linear(width, 2, bias=False)
            self.part_places = nn.Parameter(torch.empty(2))
            self.part_projection = nn.Linear(width, config.space_dim)
            self.sequence_weights = nn.Linear(width, SEQUENCE_FEATURES)
        self.config = av_config

    def forward(self, output: BaseModelOutputWithPooling, attention_mask: Tensor | None) -> "TextEncoding":
        """What clips are compared with, of the text encoder's output."""
        states = cast(Tensor, output.last_hidden_state)
        if attention_mask is None:
            attention_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        states = nn.functional.dropout(states, self.dropout, self.training)
        pooled = pool_text(states, attention_mask, self.pooling, output.get("pooler_output"))
        embeds = self.projection(pooled)
        clip_embeds = None if self.clip_projection is None else self.clip_projection(pooled)
        parts = weights = None
        if len(self.layers):
            tokens = self.token_projection(states)
            mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=tokens, attention_mask=attention_mask.bool()
            )
            tokens = self.norm(run_layers(self.layers, tokens, mask))
            mean = pool_text(tokens, attention_mask, "mean")
            embeds = embeds + self.token_mean_projection(mean)
            if clip_embeds is not None and self.token_mean_clip_projection is not None:
                clip_embeds = clip_embeds + self.token_mean_clip_projection(mean)
        if self.scores_sequences:
            shown = attention_mask.bool()
            places = (shown.cumsum(dim=1) / shown.sum(dim=1, keepdim=True).clamp(min=1)).unsqueeze(-1)
            read = self.part_queries(states) + places.to(states.dtype) * self.part_places
            read = read.masked_fill(~shown.unsqueeze(-1), -torch.inf).softmax(dim=1).transpose(1, 2)
            parts = nn.functional.normalize(self.part_projection(read @ states), dim=-1)
            weights = self.sequence_weights(pooled)
        return TextEncoding(
            embeds=nn.functional.normalize(embeds, dim=-1),
            clip_embeds=None if clip_embeds is None else nn.functional.normalize(clip_embeds, dim=-1),
            parts=parts,
            sequence_weights=weights,
        )


@dataclass
class TextEncoding:
    """Embedded texts.

    Attributes:
        embeds: `(texts, P)`, in the space of moments.
        clip_embeds: `(texts, hidden)`, in the space of clips.
        parts: `(texts, 2, P)`: two things that a text may speak of, one after the other, in the space of moments.
        sequence_weights: `(texts, SEQUENCE_FEATURES)`: what counts of their order and number.
    """

    embeds: Tensor
    clip_embeds: Tensor | None = None
    parts: Tensor | None = None
    sequence_weights: Tensor | None = None


def sequence_features(first: Tensor, second: Tensor) -> Tensor:
    """What is known of the order and number of two things, of the probability of each at every moment.

    With `O_f` the probability that a thing occurred by moment f (moments taken as independent), it begins at f with
    `O_f - O_(f-1)`. So the first begins before the second does with `sum_f (O_f - O_(f-1)) (1 - O'_f)`. The expected
    number of times that a thing begins is `sum_f p_f (1 - p_(f-1))`.

    Args:
        first: Probabilities `(..., moments)`.
        second: Likewise.

    Returns:
        `(..., SEQUENCE_FEATURES)`: whether the first and the second occur, the first before the second, the second
        before the first, and how near the number of times of the first is to 1, 2, 3, 4 and 5.
    """
    by_first, by_second = _occurred(first), _occurred(second)
    begins_first, begins_second = _steps(by_first), _steps(by_second)
    before = [(begins_first * (1 - by_second)).sum(dim=-1), (begins_second * (1 - by_first)).sum(dim=-1)]
    times = (first * (1 - nn.functional.pad(first, (1, 0))[..., :-1])).sum(dim=-1, keepdim=True)
    near = torch.exp(-2 * (times - torch.arange(1, _MOST_TIMES + 1, device=times.device)).square())
    return torch.cat([torch.stack([by_first[..., -1], by_second[..., -1], *before], dim=-1), near], dim=-1)


def _occurred(probabilities: Tensor) -> Tensor:
    """Probability that something occurred by each moment, `(..., moments)`."""
    return 1 - torch.exp(torch.log1p(-probabilities.clamp(max=1 - 1e-4)).cumsum(dim=-1))


def _steps(values: Tensor) -> Tensor:
    """By how much each is above the one before it."""
    return torch.diff(values, dim=-1, prepend=torch.zeros_like(values[..., :1]))


class CavMaeSyncClipEncoder(nn.Module):
    """One vector per clip of its moments in their order, of one modality or of both."""

    def __init__(self, config: CavMaeSyncTextDualEncoderConfig):
        super().__init__()
        self.config = cast(CavMaeSyncConfig, config.av_config)
        hidden = self.config.hidden_size
        self.projections = nn.ModuleDict({name: nn.Linear(hidden, hidden) for name in _MODALITIES})
        self.modality_embeddings = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(1, 1, hidden)) for name in _MODALITIES}
        )
        self.class_token = nn.Parameter(torch.empty(1, 1, hidden))
        self.layers = nn.ModuleList([CavMaeSyncLayer(self.config) for _ in range(config.num_clip_layers)])
        self.norm = nn.LayerNorm(hidden, eps=self.config.layer_norm_eps)

    def forward(self, embeds: dict[str, Tensor], present: dict[str, Tensor | None]) -> Tensor:
        """L2-normalised `(clips, hidden)` of moments.

        Args:
            embeds: By modality, L2-normalised moments `(clips, moments, hidden)` of the audio-visual model.
            present: By modality, False for absent moments, `(clips, moments)`.
        """
        hidden = self.config.hidden_size
        first = next(iter(embeds.values()))
        parts, masks = [self.class_token.expand(len(first), -1, -1)], [first.new_ones(len(first), 1, dtype=torch.bool)]
        for name, values in embeds.items():
            places = moment_positions(values.shape[1], hidden, values)
            # Unit vectors have entries of 1 / sqrt(hidden); layers expect entries of about 1.
            tokens = self.projections[name](values * hidden**0.5) + places + self.modality_embeddings[name]
            there = present[name]
            parts.append(tokens)
            masks.append(torch.ones_like(values[..., 0], dtype=torch.bool) if there is None else there.bool())
        tokens, visible = torch.cat(parts, dim=1), torch.cat(masks, dim=1)
        mask: Any = None
        if any(one is not None for one in present.values()):
            mask = create_bidirectional_mask(config=self.config, inputs_embeds=tokens, attention_mask=visible)
        return nn.functional.normalize(self.norm(run_layers(self.layers, tokens, mask)[:, 0]), dim=-1)


def make_text_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A text encoder with random weights; `AutoModel` does not know the text towers of some models with two."""
    kind = getattr(transformers, type(config).__name__.replace("Config", "Model"), None)
    if type(config) not in MODEL_MAPPING and kind is not None:
        return kind._from_config(config)
    return AutoModel.from_config(config)


def moment_positions(count: int, hidden: int, like: Tensor) -> Tensor:
    """Sine-cosine positions `(1, count, hidden)` of moments by their number (Vaswani et al. 2017, section 3.5)."""
    rates = torch.exp(torch.arange(0, hidden, 2, device=like.device) * (-math.log(10_000.0) / hidden))
    angles = torch.arange(count, device=like.device).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :hidden].to(like.dtype).unsqueeze(0)


def pool_text(states: Tensor, attention_mask: Tensor, pooling: str, pooler_output: Tensor | None = None) -> Tensor:
    """One vector per text `(texts, hidden)` of its tokens `(texts, tokens, hidden)`.

    Args:
        states: Tokens.
        attention_mask: 0 for padding, `(texts, tokens)`.
        pooling: `"mean"`, `"cls"`, `"eos"` or `"pooler"`.
        pooler_output: What the text encoder itself makes of them.

    Raises:
        ValueError: The text encoder has no pooled output, and that was asked for.
    """
    if pooling == "pooler":
        if pooler_output is None:
            raise ValueError(
                "This text encoder gives no `pooler_output`; set `text_pooling` to 'mean', 'cls' or 'eos'."
            )
        return pooler_output
    places = torch.arange(states.shape[0], device=states.device)  # `len` would fix the size in exported programs
    shown = attention_mask.to(states.dtype)
    if pooling == "cls":  # where padding comes first, the first token is not at 0
        return states[places, shown.argmax(dim=1)]
    if pooling == "eos":
        numbers = torch.arange(states.shape[1], device=states.device)
        return states[places, (shown * numbers).argmax(dim=1)]
    return (states * shown.unsqueeze(-1)).sum(dim=1) / shown.sum(dim=1, keepdim=True).clamp(min=1)


def pool_moments(scores: Tensor, present: Tensor | None, pooling: str, temperature: Tensor) -> Tensor:
    """A clip's score `(...)` of those of its moments `(..., moments)`.

    Args:
        scores: Of the moments.
        present: False for moments that do not count, same shape or one that broadcasts to it. Where none counts, the
            score is 0.
        pooling: `"lse"` is `t * log(mean(exp(score / t)))`; or `"mean"`, `"max"`.
        temperature: The `t`.
    """
    if present is None:
        present = torch.ones_like(scores, dtype=torch.bool)
    present = present.expand_as(scores)
    count = present.sum(dim=-1)
    if pooling == "mean":
        return (scores * present).sum(dim=-1) / count.clamp(min=1)
    # Where no moment counts all of them do, so that nothing is infinite; the score is not used.
    left_out = ~present & (count > 0).unsqueeze(-1)
    if pooling == "max":
        pooled = scores.masked_fill(left_out, -torch.inf).amax(dim=-1)
    else:  # scaled first, for infinity has no gradient with respect to the temperature
        scaled = (scores / temperature).masked_fill(left_out, -torch.inf)
        pooled = temperature * (scaled.logsumexp(dim=-1) - count.clamp(min=1).log())
    return torch.where(count > 0, pooled, torch.zeros_like(pooled))


class CavMaeSyncTextPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation of the model with text."""

    config: CavMaeSyncTextDualEncoderConfig
    config_class = CavMaeSyncTextDualEncoderConfig
    base_model_prefix = "av_model"
    main_input_name = "pixel_values_videos"
    input_modalities = ["video", "audio", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = [*CavMaeSyncPreTrainedModel._no_split_modules]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier-uniform projections and small tokens, as the audio-visual model's; towers initialise themselves."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, CavMaeSyncTextHead) and module.scores_sequences:
            # What is said first comes first, until training knows better: the one part reads the beginning of a text,
            # the other its end, and the first before the second counts for the clip.
            init.copy_(module.part_places, torch.tensor([-4.0, 4.0]))
            init.zeros_(module.part_queries.weight)
            init.zeros_(module.sequence_weights.weight)
            init.copy_(module.sequence_weights.bias, torch.tensor([0.0, 0.0, 4.0, -4.0] + [0.0] * _MOST_TIMES))
        elif isinstance(module, CavMaeSyncClipEncoder):
            for token in (module.class_token, *module.modality_embeddings.values()):
                init.normal_(token, std=module.config.initializer_range)
        elif isinstance(module, CavMaeSyncTextDualEncoderModel):
            config = self.config
            for name in ("logit_scale", "moment_logit_scale", "clip_logit_scale"):
                init.constant_(getattr(module, name), config.logit_scale_init_value)
            for name in ("logit_bias", "moment_logit_bias"):
                init.constant_(getattr(module, name), config.logit_bias_init_value)
            init.constant_(module.log_pooling_temperature, math.log(config.clip_pooling_temperature))
            init.zeros_(module.video_gate.weight)
            init.zeros_(module.video_gate.bias)


class CavMaeSyncTextDualEncoderModel(CavMaeSyncTextPreTrainedModel):
    """
    A CAV-MAE Sync model and a text encoder with one space for text, audio windows and frames.

    A text is compared with every moment. A clip's score is made of those of its moments, and of a vector of all its
    moments in their order (`config.num_clip_layers`), which can know that one comes before another. The embeddings of
    the audio-visual model inside, `model.av_model`, are not changed by the text encoder.

    Args:
        config (`CavMaeSyncTextDualEncoderConfig`): Sizes and options.
    """

    def __init__(self, config: CavMaeSyncTextDualEncoderConfig):
        super().__init__(config)
        av_config = cast(CavMaeSyncConfig, config.av_config)
        self.av_model = CavMaeSyncModel._from_config(av_config)
        self.text_model = make_text_model(cast(PreTrainedConfig, config.text_config))
        self.text_head = CavMaeSyncTextHead(config)
        self.projections = nn.ModuleDict(
            {
                name: nn.Linear(av_config.hidden_size, config.projection_dim, bias=False)
                for name in _MODALITIES
                if config.projection_dim and av_config.modality in (name, "multimodal")
            }
        )
        self.clip_encoder = CavMaeSyncClipEncoder(config) if config.num_clip_layers else None
        # How much frames count against audio, by what the text asks for.
        self.video_gate = nn.Linear(config.space_dim, 1)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.clip_logit_scale = nn.Parameter(torch.empty(()))
        self.logit_bias = nn.Parameter(torch.empty(()))
        self.moment_logit_scale = nn.Parameter(torch.empty(()))
        self.moment_logit_bias = nn.Parameter(torch.empty(()))
        self.log_pooling_temperature = nn.Parameter(torch.empty(()))
        self.post_init()

    @classmethod
    def from_av_text_pretrained(cls, av: Any, text: Any, **kwargs: Any) -> "CavMaeSyncTextDualEncoderModel":
        """Join a trained audio-visual model and a trained text encoder; what joins them is new.

        Args:
            av: Folder or Hub name of any CAV-MAE Sync checkpoint, or a `CavMaeSyncModel`.
            text: Folder or Hub name of a text encoder (of a CLIP or SigLIP its text tower is taken), or a model.
            kwargs: Settings of [`CavMaeSyncTextDualEncoderConfig`].

        Raises:
            ValueError: `text_pooling` is `"pooler"`, and the text encoder pools nothing.
        """
        av_model: Any = av if isinstance(av, nn.Module) else CavMaeSyncModel.from_pretrained(av)
        text_model: Any = text if isinstance(text, nn.Module) else AutoModel.from_pretrained(text)
        if hasattr(text_model, "vision_model"):
            text_model = text_model.text_model
        config = CavMaeSyncTextDualEncoderConfig.from_av_text_configs(av_model.config, text_model.config, **kwargs)
        model = cls(config)
        model.av_model.load_state_dict(av_model.state_dict())
        model.text_model.load_state_dict(text_model.state_dict())
        if config.text_pooling == "pooler":  # told now, not after the work on the clips
            with torch.no_grad():
                model.get_text_features(torch.zeros(1, 1, dtype=torch.long))
        return cast(Any, model).to(next(av_model.parameters()).dtype)

    def get_input_embeddings(self) -> nn.Module:
        """The text encoder's embeddings of tokens."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the module that `get_input_embeddings` gives."""
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        text_hidden_states: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | CavMaeSyncTextFeatures:
        """Embed texts.

        Args:
            input_ids (`torch.Tensor` of shape `(texts, tokens)`):
                From the tokenizer.
            attention_mask (`torch.Tensor` of shape `(texts, tokens)`, *optional*):
                0 for padding.
            position_ids, token_type_ids (`torch.Tensor` of shape `(texts, tokens)`, *optional*):
                Where the text encoder takes them.
            text_hidden_states (`torch.Tensor` of shape `(texts, tokens, text hidden_size)`, *optional*):
                The text encoder's own output, where that is known; then it is not run. Not for
                `text_pooling="pooler"`.
            kwargs:
                More for the text encoder.

        Raises:
            ValueError: There are no texts.
        """
        if text_hidden_states is not None:
            output: Any = BaseModelOutputWithPooling(last_hidden_state=cast(Any, text_hidden_states))
        elif input_ids is None:
            raise ValueError("Got no `input_ids`; pass texts to the processor: `processor(text=[...])`.")
        else:
            extra = {"position_ids": position_ids, "token_type_ids": token_type_ids}
            extra = {name: value for name, value in extra.items() if value is not None}
            output = self.text_model(input_ids=input_ids, attention_mask=attention_mask, **extra, **kwargs)
        texts = self.text_head(output, attention_mask)
        return CavMaeSyncTextFeatures(
            last_hidden_state=output.last_hidden_state,
            pooler_output=texts.embeds,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
            text_clip_embeds=texts.clip_embeds,
            text_part_embeds=texts.parts,
            sequence_weights=texts.sequence_weights,
        )

    @can_return_tuple
    def get_audio_features(self, input_values: Tensor, **kwargs: Any) -> tuple | CavMaeSyncAudioFeatures:
        """As `CavMaeSyncModel.get_audio_features`, with `audio_embeds` and `pooler_output` in the space of text."""
        features = self.av_model.get_audio_features(input_values, **kwargs)
        features.audio_embeds = self.project("audio", features.audio_embeds)
        features.pooler_output = pool_clip(features.audio_embeds)
        return features

    @can_return_tuple
    def get_video_features(self, pixel_values_videos: Tensor, **kwargs: Any) -> tuple | CavMaeSyncVideoFeatures:
        """As `CavMaeSyncModel.get_video_features`, with `video_embeds` and `pooler_output` in the space of text."""
        features = self.av_model.get_video_features(pixel_values_videos, **kwargs)
        features.video_embeds = self.project("video", features.video_embeds)
        features.pooler_output = pool_clip(features.video_embeds)
        return features

    def project(self, modality: str, embeds: Tensor) -> Tensor:
        """Embeddings `(..., hidden)` of the audio-visual model, L2-normalised in the space of text `(..., P)`."""
        if not self.config.projection_dim:
            return embeds
        return nn.functional.normalize(self.projections[modality](embeds), dim=-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        padding_mask_videos: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        audio_embeds: Tensor | None = None,
        video_embeds: Tensor | None = None,
        text_hidden_states: Tensor | None = None,
        caption_clip_ids: Tensor | None = None,
        caption_keys: Tensor | None = None,
        clip_keys: Tensor | None = None,
        caption_moments: Tensor | None = None,
        hard_clip_ids: Tensor | None = None,
        teacher_embeds: Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs: Any,
    ) -> tuple | CavMaeSyncTextOutput:
        """Compare texts with clips. Each input may be left out; what needs it is then `None`.

        Args:
            input_ids, attention_mask, position_ids, token_type_ids (`torch.Tensor` of shape `(T, tokens)`):
                Texts, as in `get_text_features`.
            pixel_values_videos, input_values, padding_mask, padding_mask_videos (`torch.Tensor`):
                Clips, as in `CavMaeSyncModel.forward`.
            audio_embeds, video_embeds (`torch.Tensor` of shape `(B, F, hidden_size)`, *optional*):
                The audio-visual model's own embeddings in place of windows and frames, where they are known.
            text_hidden_states (`torch.Tensor`, *optional*):
                As in `get_text_features`.
            caption_clip_ids (`torch.Tensor` of shape `(T,)`, *optional*):
                The clip, by its place in the batch, that each text describes; -1 for none, such as texts made to be
                wrong. Default: text i describes clip i.
            caption_keys (`torch.Tensor` of shape `(T,)`, *optional*):
                Texts with the same number say the same: the clips of one are those of the other. Default: texts with
                the same tokens.
            clip_keys (`torch.Tensor` of shape `(B, statements)`, *optional*):
                Numbers of texts that are true of a clip beyond those in the batch, filled up with -1.
            caption_moments (`torch.Tensor` of shape `(T, F)`, *optional*):
                Where in its clip a text is true: 1 at those moments, 0 at the others, -1 where it is not known.
            hard_clip_ids (`torch.Tensor` of shape `(T,)`, *optional*):
                The clip with which each text makes a hard pair, by its place in the batch, -1 for none: the text is
                true of the clip and false in nearly the same words, or the reverse. Such pairs count
                `config.hard_pair_weight` times.
            teacher_embeds (`torch.Tensor` of shape `(B, F, P)`, *optional*):
                Where the model that the text encoder comes from, such as a CLIP, puts the frames: L2-normalised,
                zeros where there is none. The loss is then that of the projections and needs no texts.
            return_loss (`bool`, *optional*):
                Whether to compute the losses. In distributed training they are those of the joined batch.
            kwargs:
                Further arguments of the audio-visual model; unknown ones are refused.

        Raises:
            ValueError: Inputs do not fit each other, or a loss lacks its inputs.
            TypeError: An unknown argument.
        """
        features = None
        if input_ids is not None or text_hidden_states is not None:
            features = self.get_text_features(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                token_type_ids=token_type_ids,
                text_hidden_states=text_hidden_states,
            )
        given = {"audio": audio_embeds, "video": video_embeds}
        if input_values is not None or pixel_values_videos is not None:
            output = self.av_model(
                pixel_values_videos=pixel_values_videos,
                input_values=input_values,
                padding_mask=padding_mask,
                padding_mask_videos=padding_mask_videos,
                **kwargs,
            )
            given = {"audio": output.audio_embeds, "video": output.video_embeds}
        moments = {name: values for name, values in given.items() if values is not None}
        masks = {"audio": padding_mask, "video": padding_mask_videos}
        present = {name: mask.bool() for name in moments if (mask := masks[name]) is not None}
        clips = self.encode_clips(moments, present)
        texts = None
        if features is not None:
            texts = TextEncoding(
                embeds=features.pooler_output,
                clip_embeds=features.text_clip_embeds,
                parts=features.text_part_embeds,
                sequence_weights=features.sequence_weights,
            )
        result = CavMaeSyncTextOutput(
            text_embeds=texts.embeds if texts else None,
            text_clip_embeds=texts.clip_embeds if texts else None,
            audio_embeds=clips.moments.get("audio"),
            video_embeds=clips.moments.get("video"),
            clip_embeds=clips.embeds.get(clips.targets[-1]) if clips.targets else None,
            text_model_output=features,
        )
        logits: dict[str, Tensor] = {}
        if texts is not None and clips.moments:
            logits = self.compare(texts, clips)
            result.logits_per_text = logits[clips.targets[-1]]
            for name in clips.moments:
                result[f"logits_per_{name}"] = logits[name].T
                result[f"moment_logits_{name}"] = self.moment_logits(name, texts, clips)
        if return_loss and teacher_embeds is not None:
            result.loss = result.bridge_loss = self._bridge_loss(clips, teacher_embeds)
        elif return_loss:
            if texts is None or not clips.moments:
                raise ValueError("`return_loss=True` needs texts and clips; pass `input_ids` and a modality.")
            if caption_keys is None:
                given_texts = cast(Tensor, input_ids if input_ids is not None else text_hidden_states)
                caption_keys = _same_texts(given_texts, attention_mask, self.trains_together)
            count = len(texts.embeds)
            if caption_clip_ids is None:
                if count != clips.count:
                    raise ValueError(
                        f"Got {count} texts for {clips.count} clips; say which clip each describes with "
                        "`caption_clip_ids`."
                    )
                caption_clip_ids = torch.arange(count, device=texts.embeds.device)
            if hard_clip_ids is None:
                hard_clip_ids = torch.full_like(caption_clip_ids, -1)
            self._add_losses(
                result, texts, clips, logits, moments, caption_clip_ids, caption_keys, clip_keys, caption_moments,
                hard_clip_ids,
            )  # fmt: skip
        return result

    def encode_clips(self, moments: dict[str, Tensor], present: dict[str, Tensor]) -> "_Clips":
        """Clips as texts are compared with them.

        Args:
            moments: By modality, embeddings of the audio-visual model `(clips, moments, hidden)`.
            present: By modality, where some are absent, False for those, `(clips, moments)`.
        """
        targets = [*moments, "audio_video"] if len(moments) == 2 else [*moments]
        embeds = {}
        if self.clip_encoder is not None:
            for target in targets:
                part = moments if target == "audio_video" else {target: moments[target]}
                embeds[target] = self.clip_encoder(part, {name: present.get(name) for name in part})
        projected = {name: self.project(name, values) for name, values in moments.items()}
        return _Clips(moments=projected, present=present, embeds=embeds, targets=targets)

    def compare(self, texts: TextEncoding, clips: "_Clips") -> dict[str, Tensor]:
        """Logits `(texts, clips)` of texts with the clips' `"audio"`, `"video"` and, with both, `"audio_video"`."""
        gate = self.video_gate(texts.embeds).sigmoid().view(-1, 1, 1)
        whole, present = self._mix(texts.embeds, clips, gate)
        pairs: dict[str, list[Tensor]] = {name: [] for name in whole}
        if texts.parts is not None:
            for part in texts.parts.unbind(dim=1):
                for name, scores in self._mix(part, clips, gate)[0].items():
                    seen = self._scaled(scores).sigmoid()
                    pairs[name].append(seen * present[name] if name in present else seen)
        logits = {}
        for target, scores in whole.items():
            pooled = pool_moments(
                scores, present.get(target), self.config.clip_pooling, self.log_pooling_temperature.exp()
            )
            logits[target] = self.logit_scale.exp() * pooled + self.logit_bias
            if target in clips.embeds and texts.clip_embeds is not None:
                similarity = texts.clip_embeds @ clips.embeds[target].to(texts.clip_embeds.dtype).T
                logits[target] = logits[target] + self.clip_logit_scale.exp() * similarity
            if texts.sequence_weights is not None:
                known = sequence_features(*pairs[target])
                logits[target] = logits[target] + torch.einsum("tbs,ts->tb", known, texts.sequence_weights)
        return logits

    def _scaled(self, scores: Tensor) -> Tensor:
        """Logits of cosines with moments."""
        return self.moment_logit_scale.exp() * scores + self.moment_logit_bias

    def _mix(self, queries: Tensor, clips: "_Clips", gate: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cosines `(texts, clips, moments)` of queries with moments by target, and which moments are there."""
        scores = {name: _moment_scores(queries, values) for name, values in clips.moments.items()}
        present = dict(clips.present)
        if "audio_video" in clips.targets:
            mixed = gate * scores["video"] + (1 - gate) * scores["audio"]
            if present:  # where one is absent the other counts alone
                seen = {name: present.get(name, torch.ones_like(mixed[0], dtype=torch.bool)) for name in _MODALITIES}
                mixed = torch.where(
                    seen["audio"] & seen["video"], mixed, torch.where(seen["audio"], scores["audio"], scores["video"])
                )
                present["audio_video"] = seen["audio"] | seen["video"]
            scores["audio_video"] = mixed
        return scores, present

    def moment_logits(self, modality: str, texts: TextEncoding, clips: "_Clips") -> Tensor:
        """Logits `(texts, clips, moments)` of every text at every moment; the lowest number at absent ones."""
        scores = _moment_scores(texts.embeds, clips.moments[modality])
        logits = self._scaled(scores)
        if modality in clips.present:
            logits = logits.masked_fill(~clips.present[modality], torch.finfo(logits.dtype).min)
        return logits

    def _add_losses(
        self,
        result: CavMaeSyncTextOutput,
        texts: TextEncoding,
        clips: "_Clips",
        logits: dict[str, Tensor],
        moments: dict[str, Tensor],
        caption_clip_ids: Tensor,
        caption_keys: Tensor,
        clip_keys: Tensor | None,
        caption_moments: Tensor | None,
        hard_clip_ids: Tensor,
    ) -> None:
        """Put the losses into the output."""
        own, hard = (
            ids.unsqueeze(1) == torch.arange(clips.count, device=ids.device)
            for ids in (caption_clip_ids, hard_clip_ids)
        )
        losses: list[Tensor] = []
        if caption_moments is not None:
            rows = own.any(dim=1)
            known, places = rows.unsqueeze(1) & (caption_moments >= 0), caption_clip_ids.clamp(min=0)
            # A text with a span speaks of one thing, which both of its parts are, too.
            queries = [texts.embeds] if texts.parts is None else [texts.embeds, *texts.parts.unbind(dim=1)]
            parts = []
            for name, values in clips.moments.items():
                mask = clips.present.get(name)
                valid = known if mask is None else known & mask[places]
                for query in queries:
                    scores = torch.einsum("tp,tfp->tf", query.float(), values[places].float())
                    parts.append(moment_loss(self._scaled(scores), caption_moments > 0, valid, self.trains_together))
            result.moment_loss = torch.stack(parts).mean()
            losses.append(self.config.moment_loss_weight * result.moment_loss)
        if self.config.audio_video_loss_weight and len(moments) == 2:
            result.audio_video_loss = self.av_model.contrast(
                moments["audio"], moments["video"], clips.present.get("audio"), clips.present.get("video")
            ).loss
            losses.append(self.config.audio_video_loss_weight * result.audio_video_loss)
        if clip_keys is None:
            clip_keys = caption_keys.new_full((clips.count, 1), -1)
        if self.trains_together:
            texts, clips, caption_keys, clip_keys, own, hard = _join(texts, clips, caption_keys, clip_keys, own, hard)
            logits = self.compare(texts, clips)
        same = caption_keys.unsqueeze(1) == caption_keys
        positives = (same.float() @ own.float()) > 0
        positives |= (caption_keys.view(-1, 1, 1) == clip_keys).any(dim=-1)
        weights = torch.where(hard, float(self.config.hard_pair_weight), 1.0)
        for target in clips.targets:
            loss = text_loss(logits[target], positives, self.config.text_loss, clips.complete(target), weights)
            result[f"text_{target}_loss"] = loss
            losses.append(loss)
        result.loss = torch.stack(losses).sum()

    def _bridge_loss(self, clips: "_Clips", targets: Tensor) -> Tensor:
        """Sum over the modalities of `bridge_loss`, at the moments that have what it compares."""
        if not self.config.projection_dim or not clips.moments:
            raise ValueError("`teacher_embeds` are compared with projected clips; set `projection_dim`, pass clips.")
        there, losses = targets.any(dim=-1), []
        for name, values in clips.moments.items():
            valid = there & clips.present[name] if name in clips.present else there
            losses.append(bridge_loss(values[valid], targets[valid], self.logit_scale.exp(), self.trains_together))
        return torch.stack(losses).sum()

    @property
    def trains_together(self) -> bool:
        """Whether losses are those of the joined batch of several processes: in distributed training."""
        return self.training and world_size() > 1


@dataclass
class _Clips:
    """Embedded clips.

    Attributes:
        moments: By modality, `(clips, moments, P)`, L2-normalised.
        present: By modality, where some are absent, `(clips, moments)`.
        embeds: By target, `(clips, hidden)`; empty without clip layers.
        targets: What texts are compared with: the modalities, and both where there are both.
    """

    moments: dict[str, Tensor]
    present: dict[str, Tensor]
    embeds: dict[str, Tensor]
    targets: list[str]

    @property
    def count(self) -> int:
        """How many."""
        return len(next(iter(self.moments.values())))

    def complete(self, target: str) -> Tensor | None:
        """Which clips have any moment of all that a target needs, `(clips,)`; `None`: all have."""
        needed = [name for name in (_MODALITIES if target == "audio_video" else (target,)) if name in self.present]
        if not needed:
            return None
        return torch.stack([self.present[name].any(dim=1) for name in needed]).all(dim=0)


def _moment_scores(text_embeds: Tensor, moments: Tensor) -> Tensor:
    """Cosine of every text with every moment, `(texts, clips, moments)`."""
    return torch.einsum("tp,bfp->tbf", text_embeds.float(), moments.float())


def _same_texts(values: Tensor, attention_mask: Tensor | None, together: bool) -> Tensor:
    """Numbers `(texts,)` that are equal where the tokens are, also on other processes with `together`."""
    if attention_mask is not None:  # processes may fill up to other lengths
        padding = ~attention_mask.bool().view(*attention_mask.shape, *[1] * (values.ndim - 2))
        values = values.detach().masked_fill(padding, -1)
    first, count = 0, len(values)
    if together:
        sizes, lengths = gather_sizes(count, values.shape[1])
        missing = (0, 0) * (values.ndim - 2) + (0, max(lengths) - values.shape[1])
        values = gather_with_gradient(nn.functional.pad(values, missing, value=-1), sizes)
        first = sum(sizes[: torch.distributed.get_rank()])
    return torch.unique(values.flatten(1), dim=0, return_inverse=True)[1][first : first + count]


def _join(
    texts: TextEncoding, clips: _Clips, caption_keys: Tensor, clip_keys: Tensor, own: Tensor, hard: Tensor
) -> tuple[TextEncoding, _Clips, Tensor, Tensor, Tensor, Tensor]:
    """The texts and clips of all processes; every process then computes the whole loss.

    The gradient of a gathered row is the sum of what all processes' losses ask of it, and these are equal; the mean
    over processes, which data-parallel training takes, makes it that of one loss.
    """
    device = texts.embeds.device
    count = next(iter(clips.moments.values())).shape[1]
    text_sizes, clip_sizes, counts, keys = gather_sizes(len(texts.embeds), clips.count, count, clip_keys.shape[1])
    first = sum(clip_sizes[: torch.distributed.get_rank()])
    longest, statements = max(counts), max(keys)

    def gather_clips(values: Tensor, length: int, fill: float) -> Tensor:
        if values.shape[1] < length:
            missing = values.new_full((len(values), length - values.shape[1], *values.shape[2:]), fill)
            values = torch.cat([values, missing], dim=1)
        return gather_with_gradient(values, clip_sizes)

    present = dict(clips.present)
    for name, values in clips.moments.items():  # all processes must gather the same
        present.setdefault(name, torch.ones_like(values[..., 0], dtype=torch.bool))
    joined = _Clips(
        moments={name: gather_clips(values, longest, 0.0) for name, values in clips.moments.items()},
        present={name: gather_clips(mask.long(), longest, 0).bool() for name, mask in present.items()},
        embeds={name: gather_with_gradient(values, clip_sizes) for name, values in clips.embeds.items()},
        targets=clips.targets,
    )
    everyone: dict[str, Any] = {
        name: None if values is None else gather_with_gradient(values, text_sizes)
        for name, values in vars(texts).items()
    }

    def gather_pairs(pairs: Tensor) -> Tensor:  # texts of no clip have a row of False
        place = torch.where(pairs.any(dim=1), pairs.long().argmax(dim=1) + first, -1)
        places = gather_with_gradient(place, text_sizes)
        return places.unsqueeze(1) == torch.arange(sum(clip_sizes), device=device)

    return (
        TextEncoding(**everyone),
        joined,
        gather_with_gradient(caption_keys, text_sizes),
        gather_clips(clip_keys, statements, -1),
        gather_pairs(own),
        gather_pairs(hard),
    )


__all__ = [
    "CavMaeSyncTextDualEncoderModel",
    "CavMaeSyncTextFeatures",
    "CavMaeSyncTextOutput",
    "CavMaeSyncTextPreTrainedModel",
    "pool_moments",
    "pool_text",
    "sequence_features",
]
