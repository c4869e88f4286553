# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""CAV-MAE Sync joined to a causal language model: moments go in as tokens, words come out."""

import inspect
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.utils import torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .configuration_cavmae_sync import CavMaeSyncConfig
from .configuration_lm_cavmae_sync import CavMaeSyncLMConfig
from .modeling_cavmae_sync import CavMaeSyncModel, CavMaeSyncPreTrainedModel

_MODALITIES = ("video", "audio")


# Shortest and longest period of the sines of a moment's time, seconds.
_PERIODS = (0.5, 40.0)


class CavMaeSyncLMProjector(nn.Module):
    """From the width of the audio-visual model to that of the language model, with the time of each moment.

    Args:
        config: Sizes.
        tokens: That are laid side by side, with `config.merge_tokens`.
    """

    def __init__(self, config: CavMaeSyncLMConfig, tokens: int = 1):
        super().__init__()
        width, hidden = cast(CavMaeSyncConfig, config.av_config).hidden_size, cast(Any, config.text_config).hidden_size
        self.norm = nn.LayerNorm(width)
        self.merge_tokens = config.merge_tokens
        self.linear_1 = nn.Linear(width * (tokens if config.merge_tokens else 1), hidden)
        self.activation = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(hidden, hidden)
        self.time_frequencies = config.time_frequencies
        if config.time_frequencies:
            self.time_projection = nn.Linear(2 * config.time_frequencies, hidden, bias=False)

    @torch.no_grad()
    def standardise(self, tokens: Tensor) -> None:
        """Set the norm and the first bias so that what goes in has about mean 0 and variance 1.

        Much of what patches hold is alike in all of them and tells nothing.

        Args:
            tokens: Of some moments, `(moments, tokens, width)`.
        """
        tokens = tokens.to(self.norm.weight)
        spread = nn.functional.layer_norm(tokens, tokens.shape[-1:]).std(dim=(0, 1), correction=0)
        self.norm.weight.copy_(1 / spread.clamp_min(0.1))
        normed = self.norm(tokens)
        mean = normed.mean(dim=0).flatten() if self.merge_tokens else normed.mean(dim=(0, 1))
        self.linear_1.bias.copy_(-self.linear_1.weight @ mean)

    def forward(self, tokens: Tensor, times: Tensor | None = None) -> Tensor:
        """Tokens as the language model reads them.

        Args:
            tokens: `(clips, moments, tokens, width)`.
            times: Of the moments in seconds, `(clips, moments)`.

        Returns:
            `(clips, moments, tokens, hidden)`; with `merge_tokens` one token.

        Raises:
            ValueError: Times are needed, and not given.
        """
        dtype = self.linear_1.weight.dtype
        normed = self.norm(tokens.to(dtype))
        if self.merge_tokens:
            normed = normed.flatten(2).unsqueeze(2)
        projected = self.linear_2(self.activation(self.linear_1(normed)))
        if not self.time_frequencies:
            return projected
        if times is None:
            raise ValueError(
                "The model needs the times of moments, `video_times` and `audio_times` in seconds; pass all that "
                "CavMaeSyncLMProcessor gives."
            )
        return projected + self.time_projection(time_features(times, self.time_frequencies).to(dtype)).unsqueeze(2)


def _pooled(config: CavMaeSyncLMConfig, modality: str) -> int:
    """Vectors of a frame or a window: the global one, and those of its parts."""
    return 1 + (config.tokens_per_frame if modality == "video" else config.tokens_per_window)


def time_features(times: Tensor, count: int) -> Tensor:
    """Sines and cosines `(..., 2 * count)` of times in seconds `(...)`, of periods in equal ratios.

    In float32 whatever the weights are: half precision would not tell neighbouring frames of a film apart.
    """
    shortest, longest = (math.log(period) for period in _PERIODS)
    rates = 2 * math.pi * torch.exp(-torch.linspace(shortest, longest, count, device=times.device))
    angles = times.float().unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class CavMaeSyncLMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation of the models with a language model."""

    config: CavMaeSyncLMConfig
    config_class = CavMaeSyncLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["video", "audio", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = [*CavMaeSyncPreTrainedModel._no_split_modules]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Small projections; the audio-visual and the language model initialise themselves."""
        if isinstance(module, CavMaeSyncLMProjector) and module.time_frequencies:
            init.zeros_(module.time_projection.weight)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=getattr(self.config.text_config, "initializer_range", 0.02))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class CavMaeSyncLMModel(CavMaeSyncLMPreTrainedModel):
    """
    A CAV-MAE Sync model, two projectors and a language model without its head.

    Args:
        config (`CavMaeSyncLMConfig`): Sizes and options.
    """

    def __init__(self, config: CavMaeSyncLMConfig):
        super().__init__(config)
        av_config = cast(CavMaeSyncConfig, config.av_config)
        self.av_model = CavMaeSyncModel._from_config(av_config)
        for name in _MODALITIES:
            there = av_config.modality in (name, "multimodal")
            setattr(self, f"{name}_projector", CavMaeSyncLMProjector(config, _pooled(config, name)) if there else None)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's embeddings of tokens."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the module that `get_input_embeddings` gives."""
        self.language_model.set_input_embeddings(value)

    def encode_tokens(
        self, modality: str, inputs: Tensor, padding_mask: Tensor | None = None, window_offsets: Tensor | None = None
    ) -> Tensor:
        """What the audio-visual model makes of frames or windows, before a projector; may be kept and given again.

        Args:
            modality: `"video"` or `"audio"`.
            inputs: `pixel_values_videos` or `input_values`, as of [`CavMaeSyncModel`].
            padding_mask: False for absent ones, `(clips, moments)`.
            window_offsets: As of [`CavMaeSyncModel`].

        Returns:
            `(clips, moments, tokens, width)`: of each frame the global token and `tokens_per_frame` means over its
            patches, row by row; of each window the global token and `tokens_per_window` means over its time.
        """
        heard = modality == "audio"
        images, present = self.av_model.check_inputs(
            None if heard else inputs, inputs if heard else None, padding_mask if heard else None,
            None if heard else padding_mask, window_offsets=window_offsets,
        )  # fmt: skip
        encoding = self.av_model.encode(modality, images[modality], present[modality])
        embeds, patches = encoding.embeds, encoding.patch_embeds
        # Embeddings are of length 1, patches have entries of about 1.
        tokens = [embeds.unsqueeze(2) * embeds.shape[-1] ** 0.5]
        count = self.config.tokens_per_window if heard else self.config.tokens_per_frame
        if count:
            side = round(count**0.5)
            grid = self.av_model.tower(modality).grid(images[modality].flatten(0, 1))
            laid = patches.flatten(0, 1).transpose(1, 2).unflatten(2, grid)
            pooled = nn.functional.adaptive_avg_pool2d(laid, (1, count) if heard else (side, side))
            tokens.append(pooled.flatten(2).transpose(1, 2).unflatten(0, embeds.shape[:2]).to(embeds.dtype))
        return torch.cat(tokens, dim=2)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: Tensor | None = None,
        padding_mask_videos: Tensor | None = None,
        video_tokens: Tensor | None = None,
        video_times: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling:
        """Frames as the language model reads them.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(clips, frames, channels, height, width)`):
                As of [`CavMaeSyncModel`].
            padding_mask_videos (`torch.Tensor` of shape `(clips, frames)`, *optional*):
                False for absent frames, which have no tokens.
            video_tokens (`torch.Tensor` of shape `(clips, frames, tokens, width)`, *optional*):
                From `encode_tokens`, in place of `pixel_values_videos`.
            video_times (`torch.Tensor` of shape `(clips, frames)`, *optional*):
                Of the frames, seconds; needed unless `config.time_frequencies` is 0.

        Returns:
            `last_hidden_state` are the tokens before the projector; `pooler_output` is a list with, for each clip,
            `(tokens of its present frames, hidden)`.
        """
        return self._features("video", pixel_values_videos, padding_mask_videos, video_tokens, video_times)

    @can_return_tuple
    def get_audio_features(
        self,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        window_offsets: Tensor | None = None,
        audio_tokens: Tensor | None = None,
        audio_times: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling:
        """Windows as the language model reads them.

        Args:
            input_values (`torch.Tensor` of shape `(clips, windows, audio_length, num_mel_bins)`):
                As of [`CavMaeSyncModel`].
            padding_mask (`torch.Tensor` of shape `(clips, windows)`, *optional*):
                False for absent windows, which have no tokens.
            window_offsets (`torch.Tensor`, *optional*):
                As of [`CavMaeSyncModel`].
            audio_tokens (`torch.Tensor` of shape `(clips, windows, tokens, width)`, *optional*):
                From `encode_tokens`, in place of `input_values`.
            audio_times (`torch.Tensor` of shape `(clips, windows)`, *optional*):
                Of the windows' middles, seconds; needed unless `config.time_frequencies` is 0.

        Returns:
            As `get_video_features`.
        """
        return self._features("audio", input_values, padding_mask, audio_tokens, audio_times, window_offsets)

    def _features(
        self,
        modality: str,
        inputs: Tensor | None,
        mask: Tensor | None,
        tokens: Tensor | None,
        times: Tensor | None,
        window_offsets: Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        projector = getattr(self, f"{modality}_projector")
        if projector is None:
            raise ValueError(f"Got {modality} for a model of {self.config.av_config.modality} alone; leave it out.")  # type: ignore[union-attr]
        if tokens is None:
            if inputs is None:
                raise ValueError(f"Got no {modality}; pass what CavMaeSyncLMProcessor makes of the clips.")
            tokens = self.encode_tokens(modality, inputs, mask, window_offsets)
        projected = projector(tokens, times)
        clips = (
            projected.unbind()
            if mask is None
            else [row[kept] for row, kept in zip(projected, mask.bool(), strict=True)]
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=cast(Any, tokens), pooler_output=cast(Any, [clip.flatten(0, 1) for clip in clips])
        )

    def encode_media(self, inputs: dict[str, Any]) -> dict[str, BaseModelOutputWithPooling]:
        """Features by modality, as `mm_encoder_outputs`, of what `inputs` holds, which is taken out of it."""
        encoded = {}
        for modality in _MODALITIES:
            encode = getattr(self, f"get_{modality}_features")
            given = {name: inputs.pop(name) for name in inspect.signature(encode).parameters if name in inputs}
            names = ("pixel_values_videos" if modality == "video" else "input_values", f"{modality}_tokens")
            if any(given.get(name) is not None for name in names):
                encoded[modality] = encode(**given)
        return encoded

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        padding_mask_videos: Tensor | None = None,
        padding_mask: Tensor | None = None,
        window_offsets: Tensor | None = None,
        video_tokens: Tensor | None = None,
        audio_tokens: Tensor | None = None,
        video_times: Tensor | None = None,
        audio_times: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: Mapping[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPast:
        """Hidden states of the language model over text and moments.

        Args:
            input_ids (`torch.Tensor` of shape `(texts, tokens)`):
                With a placeholder for every token of a moment, as [`CavMaeSyncLMProcessor`] makes them.
            pixel_values_videos, padding_mask_videos, video_tokens, video_times (`torch.Tensor`, *optional*):
                Clips with video, in the order of the texts; as of `get_video_features`.
            input_values, padding_mask, window_offsets, audio_tokens, audio_times (`torch.Tensor`, *optional*):
                Clips with audio, in the order of the texts; as of `get_audio_features`.
            attention_mask, position_ids, past_key_values, inputs_embeds, use_cache:
                As of any language model.
            mm_encoder_outputs (`dict`, *optional*):
                `"video"` and `"audio"`: what `get_video_features` and `get_audio_features` gave, in place of clips.

        Raises:
            ValueError: The numbers of placeholders and of tokens of moments differ, or features and clips are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either `input_ids` or `inputs_embeds`.")
        media = {
            "pixel_values_videos": pixel_values_videos, "padding_mask_videos": padding_mask_videos,
            "video_tokens": video_tokens, "input_values": input_values, "padding_mask": padding_mask,
            "window_offsets": window_offsets, "audio_tokens": audio_tokens, "video_times": video_times,
            "audio_times": audio_times,
        }  # fmt: skip
        encoded = self.encode_media(media)
        for modality, features in (mm_encoder_outputs or {}).items():
            if modality in encoded:
                raise ValueError(
                    f"Got `mm_encoder_outputs[{modality!r}]` and the {modality} itself; pass one of them."
                )
            encoded[modality] = features
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        known = past_key_values if past_key_values is not None else kwargs.get("cache")  # its name from 5.24 on
        first = known is None or known.get_seq_length() == 0
        for modality in _MODALITIES:
            # Later steps have new tokens alone, none of which stands for a moment.
            if modality in encoded or (first and input_ids is not None and not torch.compiler.is_compiling()):
                inputs_embeds = self._put(modality, input_ids, cast(Tensor, inputs_embeds), encoded.get(modality))
        return self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, use_cache=use_cache, **kwargs,
        )  # fmt: skip

    def _put(
        self, modality: str, input_ids: Tensor | None, embeds: Tensor, features: BaseModelOutputWithPooling | None
    ) -> Tensor:
        """Embeddings `(texts, tokens, hidden)` with a modality's features in the place of its placeholders."""
        token_id = getattr(self.config, f"{modality}_token_id")
        if token_id is None:
            if features is None:
                return embeds
            raise ValueError(
                f"The configuration has no `{modality}_token_id`; set it to the tokenizer's <|{modality}|>."
            )
        if input_ids is not None:
            places = input_ids == token_id
        else:
            token = self.get_input_embeddings()(torch.tensor(token_id, device=embeds.device))
            places = (embeds == token).all(dim=-1)
        found = [] if features is None else list(cast(Any, features.pooler_output))
        count = sum(len(clip) for clip in found)
        torch_compilable_check(
            places.sum() == count,
            f"The texts have another number of {modality} placeholders than the {count} {modality} tokens of the "
            "clips; make both in one call of CavMaeSyncLMProcessor, whose `tokens_per_frame` and `tokens_per_window` "
            "must be the model's.",
        )
        if not count:
            return embeds
        values = torch.cat(found).to(embeds.device, embeds.dtype)
        return embeds.masked_scatter(places.unsqueeze(-1), values)


class CavMaeSyncForConditionalGeneration(CavMaeSyncLMPreTrainedModel, GenerationMixin):
    """
    A CAV-MAE Sync model joined to a causal language model: questions about clips are answered in words.

    Args:
        config (`CavMaeSyncLMConfig`): Sizes and options.
    """

    def __init__(self, config: CavMaeSyncLMConfig):
        super().__init__(config)
        self.model = CavMaeSyncLMModel(config)
        self.lm_head = make_head(cast(PreTrainedConfig, config.text_config))
        embedding = self.model.get_input_embeddings()
        for name, module in self.model.language_model.named_modules():
            if module is embedding:
                self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{name}.weight"}
        self.post_init()

    @classmethod
    def from_av_text_pretrained(
        cls, av: Any, text: Any, tokenizer: Any = None, **kwargs: Any
    ) -> "CavMaeSyncForConditionalGeneration":
        """Join a trained audio-visual model and a trained language model; the projectors are new.

        Args:
            av: Folder or Hub name of any CAV-MAE Sync checkpoint, or a `CavMaeSyncModel`.
            text: Folder or Hub name of a causal language model, or a model.
            tokenizer: The language model's, with the placeholders (`CavMaeSyncLMProcessor.add_media_tokens`); the
                embeddings grow to its size, and the ids of the placeholders are taken from it.
            kwargs: Settings of [`CavMaeSyncLMConfig`].
        """
        av_model: Any = av if isinstance(av, nn.Module) else CavMaeSyncModel.from_pretrained(av)
        language: Any = text if isinstance(text, nn.Module) else AutoModelForCausalLM.from_pretrained(text)
        if tokenizer is not None:
            for name in _MODALITIES:
                kwargs.setdefault(f"{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|{name}|>"))
            if len(tokenizer) > language.get_input_embeddings().num_embeddings:
                language.resize_token_embeddings(len(tokenizer))
        config = CavMaeSyncLMConfig(av_config=av_model.config, text_config=language.config, **kwargs)
        with torch.device("meta"):  # nothing of it is kept but the projectors, which are made below
            model = cls(config)
        model.model.av_model, model.model.language_model = av_model, language.base_model
        model.lm_head = language.get_output_embeddings()
        dtype = language.get_input_embeddings().weight.dtype
        for name in _MODALITIES:
            if getattr(model.model, f"{name}_projector") is not None:
                projector = CavMaeSyncLMProjector(config, _pooled(config, name)).to(language.device, dtype)
                projector.apply(model._init_weights)
                setattr(model.model, f"{name}_projector", projector)
        model.tie_weights()
        if language.can_generate():
            model.generation_config = language.generation_config
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's embeddings of tokens."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the module that `get_input_embeddings` gives."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the module that `get_output_embeddings` gives."""
        self.lm_head = value

    def get_video_features(self, *args: Any, **kwargs: Any) -> Any:
        """As `CavMaeSyncLMModel.get_video_features`."""
        return self.model.get_video_features(*args, **kwargs)

    def get_audio_features(self, *args: Any, **kwargs: Any) -> Any:
        """As `CavMaeSyncLMModel.get_audio_features`."""
        return self.model.get_audio_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        padding_mask_videos: Tensor | None = None,
        padding_mask: Tensor | None = None,
        window_offsets: Tensor | None = None,
        video_tokens: Tensor | None = None,
        audio_tokens: Tensor | None = None,
        video_times: Tensor | None = None,
        audio_times: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: Mapping[str, BaseModelOutputWithPooling] | None = None,
        num_items_in_batch: Any = None,
        only_labelled: bool = False,
        **kwargs: Any,
    ) -> tuple | CausalLMOutputWithPast:
        """Logits of the next tokens, and with `labels` the loss.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache:
                As of [`CavMaeSyncLMModel`].
            pixel_values_videos, padding_mask_videos, video_tokens, video_times (`torch.Tensor`, *optional*):
                As of [`CavMaeSyncLMModel`].
            input_values, padding_mask, window_offsets, audio_tokens, audio_times (`torch.Tensor`, *optional*):
                As of [`CavMaeSyncLMModel`].
            mm_encoder_outputs (`dict`, *optional*):
                As of [`CavMaeSyncLMModel`].
            labels (`torch.Tensor` of shape `(texts, tokens)`, *optional*):
                The tokens to be said, -100 where none is asked for; they are shifted here.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Number of last positions whose logits are wanted, 0 for all; or the positions.
            num_items_in_batch (*optional*):
                By what the sum of the losses is divided, as Trainer gives it.
            only_labelled (`bool`, *optional*, defaults to `False`):
                Compute logits where `labels` ask for a token alone, `(labelled tokens, vocabulary)`: the loss is the
                same, and a prompt takes no memory for its logits.
        """
        output = self.model(
            input_ids=input_ids, pixel_values_videos=pixel_values_videos, input_values=input_values,
            padding_mask_videos=padding_mask_videos, padding_mask=padding_mask, window_offsets=window_offsets,
            video_tokens=video_tokens, audio_tokens=audio_tokens, video_times=video_times, audio_times=audio_times,
            attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            inputs_embeds=inputs_embeds, use_cache=use_cache, mm_encoder_outputs=mm_encoder_outputs, **kwargs,
        )  # fmt: skip
        hidden = slice_logits_to_keep(output.last_hidden_state, logits_to_keep)
        following = None if labels is None else nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        if only_labelled and following is not None:
            is_labelled = following != -100
            hidden, following = hidden[is_labelled], following[is_labelled]
        logits = self._scale(self.lm_head(hidden))
        loss = None
        if following is not None:
            loss = self.loss_function(
                logits=logits, labels=None, shift_labels=following, vocab_size=logits.shape[-1],
                num_items_in_batch=num_items_in_batch,
            )  # fmt: skip
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=output.past_key_values, hidden_states=output.hidden_states,
            attentions=output.attentions,
        )  # fmt: skip

    def _scale(self, logits: Tensor) -> Tensor:
        """Logits as families of language models finish them after their head."""
        text_config = self.config.text_config
        logits = logits * (getattr(text_config, "logit_scale", None) or 1.0)  # Cohere
        logits = logits / (getattr(text_config, "logits_scaling", None) or 1.0)  # Granite
        cap = getattr(text_config, "final_logit_softcapping", None)  # Gemma 2
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs: dict[str, Any]) -> Any:
        """Encode the clips once, before the first token; transformers does so for video alone."""
        given = dict(model_kwargs.pop("mm_encoder_outputs", None) or {})
        encoded = self.model.encode_media(model_kwargs)
        if given.keys() & encoded.keys():
            raise ValueError("Got `mm_encoder_outputs` and the clips themselves; pass one of them.")
        return model_kwargs | {"mm_encoder_outputs": given | encoded}

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **model_kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat texts, each with all of its clips, for beams and for several answers."""
        encoded = model_kwargs.pop("mm_encoder_outputs", None)
        if encoded and expand_size > 1 and input_ids is not None:
            expanded = {}
            for modality, features in encoded.items():
                counts = (input_ids == getattr(self.config, f"{modality}_token_id")).sum(dim=1).tolist()
                rows = torch.cat(list(features.pooler_output)).split(counts)
                repeated: Any = [row for row in rows for _ in range(expand_size)]
                expanded[modality] = BaseModelOutputWithPooling(pooler_output=repeated)
            encoded = expanded
        parent: Any = super()
        input_ids, model_kwargs = parent._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if encoded is not None:
            model_kwargs["mm_encoder_outputs"] = encoded
        return input_ids, model_kwargs


def make_head(text_config: PreTrainedConfig) -> nn.Linear:
    """A head with random weights, of the shape that a family of causal language models has.

    Raises:
        ValueError: `AutoModelForCausalLM` makes no model of the configuration.
    """
    try:
        with torch.device("meta"):
            causal: Any = AutoModelForCausalLM.from_config(text_config)
    except ValueError as error:
        raise ValueError(
            f"`text_config` is of the type {text_config.model_type!r}, which is no causal language model of "
            "transformers; take one of those, such as 'qwen3' or 'smollm3'."
        ) from error
    head = causal.get_output_embeddings()
    return nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)


__all__ = [
    "CavMaeSyncForConditionalGeneration",
    "CavMaeSyncLMModel",
    "CavMaeSyncLMPreTrainedModel",
    "make_head",
]
