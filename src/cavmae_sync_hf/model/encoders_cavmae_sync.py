# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Encoders of transformers in place of this package's towers, behind the call that a tower has.

`CavMaeSyncEncoderTower` brings frames and windows into the form that an encoder takes, leaves tokens out of its
blocks, and gives its tokens as a tower does: global first, then the patches.
"""

import copy
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.audio_utils import mel_filter_bank
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.utils import is_peft_available, logging

from .encoder_families_cavmae_sync import (
    FRAME_STATISTICS,
    LOG_MEL_STATISTICS,
    audio_grid,
    encoder_family,
    fixed_image_size,
    frames_per_column,
    hidden_width,
    longest_input,
    video_grid,
)
from .errors_cavmae_sync import ModelError
from .masking_cavmae_sync import gather_patches

if is_peft_available():
    from peft import LoraConfig, inject_adapter_in_model

# Weights that no token passes: they stand in for masked ones, which here are left out.
_UNUSED_WEIGHTS = ("mask_token", "masked_spec_embed", "embedder.dac_encoder", "embedder.bottleneck")
# Heads over the tokens, which are pooled by this package, and the names under which modules hold them.
_HEADS = ("pooler", "head", "predictor")
_LORA_TARGETS = ("q_proj", "v_proj", "query", "value", "qkv")
_VARIANCE_FLOOR = 1e-7  # of Wav2Vec2's feature extractor
_WHISPER_FFT, _WHISPER_HOP = 400, 160


class CavMaeSyncAttentionPool(nn.Module):
    """One vector of many tokens, by the attention of a learned query: a global token for encoders that have none."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm = nn.LayerNorm(width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """The pooled token `(samples, 1, width)` of tokens `(samples, tokens, width)`."""
        normed = self.norm(tokens)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.query.expand(len(tokens), -1, -1), self.k_proj(normed), self.v_proj(normed))
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class CavMaeSyncEncoderTower(nn.Module):
    """An encoder of transformers as one modality's tower.

    Args:
        config: A `CavMaeSyncConfig` with an encoder for the modality.
        modality: `"audio"` or `"video"`.
    """

    def __init__(self, config: Any, modality: str):
        super().__init__()
        self.modality, self.settings = modality, config
        encoder_config = getattr(config, f"{modality}_encoder_config")
        self.family = encoder_family(encoder_config)
        # In one clip's pass over its whole audio a class token would tell every window of all others.
        whole_clips = modality == "audio" and config.audio_context == "clip"
        self.has_class = bool(self.family.classes) and not whole_clips
        self.frozen = config.encoder_training == "frozen"
        self.encoder = self._build(encoder_config)
        self.freeze()
        self.width = hidden_width(encoder_config)
        same = self.width == config.hidden_size
        self.projection = nn.Identity() if same else nn.Linear(self.width, config.hidden_size)
        pooled = config.use_global_tokens and not self.has_class
        self.pool = CavMaeSyncAttentionPool(config.hidden_size, config.num_attention_heads) if pooled else None

    def _build(self, encoder_config: Any) -> Any:
        """The encoder, without what stands behind its tokens, frozen as the configuration says."""
        inner = copy.deepcopy(encoder_config)
        if inner.model_type == "videomae":
            inner.num_frames = inner.tubelet_size  # a frame is one step of time
        if inner.model_type == "vit_mae":
            inner.mask_ratio = 0.0
        for name in ("vision_use_head", "use_head"):
            if hasattr(inner, name):
                setattr(inner, name, False)
        attention = getattr(self.settings, "_attn_implementation", None)
        # Not every encoder has "sdpa", which transformers takes by itself where there is one.
        inner._attn_implementation = None if attention == "sdpa" else attention
        model: Any = AutoModel.from_config(inner)
        encoder = model.get_encoder() if inner.is_encoder_decoder else model
        for name in _HEADS:
            if getattr(encoder, name, None) is not None:
                setattr(encoder, name, None)
        self._cut(encoder)
        if self.settings.encoder_training == "lora":
            self._add_lora(encoder)
        return encoder

    def _cut(self, encoder: Any) -> None:
        """Leave out the blocks behind the one whose output is asked for, and with them the last norm."""
        layer = getattr(self.settings, f"{self.modality}_encoder_layer")
        if layer is None:
            return
        parent, _, name = self.family.blocks.rpartition(".")
        holder = encoder.get_submodule(parent)
        blocks: Any = getattr(holder, name)
        setattr(holder, name, nn.ModuleList(list(blocks)[:layer]))
        names = [self.family.norm, "output"]
        if getattr(encoder.config, "do_stable_layer_norm", False):
            names.append("encoder.layer_norm")
        for path in names:
            parent, _, name = path.rpartition(".")
            if name and getattr(encoder.get_submodule(parent), name, None) is not None:
                setattr(encoder.get_submodule(parent), name, nn.Identity())

    def _add_lora(self, encoder: nn.Module) -> None:
        """Freeze the encoder and give the queries and values of its attention low-rank changes."""
        if not is_peft_available():
            raise ImportError("encoder_training='lora' needs peft: pip install 'cavmae-sync-hf[lora]'.")
        targets = [
            name
            for name, layer in encoder.named_modules()
            if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in _LORA_TARGETS
        ]
        rank = self.settings.encoder_lora_rank
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), encoder)
        for name, module in encoder.named_modules():
            if ".lora_" in name:  # they start as peft makes them: a change of zero
                module._is_hf_initialized = True

    def freeze(self) -> None:
        """Switch the gradients off of what is not trained; loading may have switched them on."""
        training = self.settings.encoder_training
        for name, weight in self.encoder.named_parameters():
            unused = any(part in name for part in _UNUSED_WEIGHTS)
            weight.requires_grad_(not unused and (training == "full" or ".lora_" in name))

    def train(self, mode: bool = True) -> "CavMaeSyncEncoderTower":
        """As of modules; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    @property
    def drops_tokens(self) -> bool:
        """Whether patches that are not kept are left out of the blocks; else they are blanked in the input."""
        return self.family.drops_tokens and self.settings.encoder_masking != "input"

    @property
    def num_tokens(self) -> int:
        """Tokens that `encode` gives of an input of the configured size."""
        grid = self.settings.audio_grid if self.modality == "audio" else self.settings.video_grid
        return int(self.has_class) + math.prod(grid)

    def encoder_weights(self) -> list[str]:
        """Names of the encoder's own weights within this module, low-rank changes apart."""
        return [name for name in self.state_dict() if name.startswith("encoder.") and ".lora_" not in name]

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patches as (rows, columns) of images as `forward` takes them, or of their tokens."""
        config = self.encoder.config
        if self.modality == "video":
            size = self.settings.image_size
            height, width = (size, size) if images.ndim < 4 else images.shape[-2:]
            return video_grid(config, (height, width))
        return audio_grid(config, self.settings.audio_length if images.ndim < 4 else images.shape[-1])

    def forward(self, images: Tensor, ids_keep: Tensor | None = None, record: Any = None) -> Tensor:
        """Tokens (global, patches) `(samples, tokens, hidden)`.

        Args:
            images: Frames `(samples, 3, height, width)`, audio windows as `(samples, 1, mel, time)`, or what `encode`
                gave of them without `ids_keep`, `(samples, tokens, width)`.
            ids_keep: Patches to keep, `(samples, kept)`; all when absent.
            record: Collects hidden states and attentions of the encoder, see `encode`.
        """
        if images.ndim == 3:
            tokens = images.to(self.encoder.dtype)
            if ids_keep is not None:
                first = int(self.has_class)
                tokens = torch.cat([tokens[:, :first], gather_patches(tokens[:, first:], ids_keep)], dim=1)
            if record is not None:
                record.add_hidden_states(self._with_global(tokens))
        else:
            tokens = self.encode(images, ids_keep, record)
        tokens = self.projection(tokens)
        if self.pool is not None:
            return torch.cat([self.pool(tokens), tokens], dim=1)
        return tokens if self.settings.use_global_tokens else tokens[:, int(self.has_class) :]

    def encode(self, images: Tensor, ids_keep: Tensor | None = None, record: Any = None) -> Tensor:
        """The encoder's own tokens, the mean of its class tokens first where it has some, `(samples, tokens, width)`.

        A frozen encoder gives the same tokens as long as its input is the same, so they can be kept.

        Args:
            images: As of `forward`.
            ids_keep: As of `forward`.
            record: With `add_hidden_states` and `add_attentions`. Hidden states are ordered as those of this package's
                towers: a global token (the mean where the encoder has none), the patches, registers.
        """
        grid = self.grid(images)
        if ids_keep is not None and not self.drops_tokens:
            images = _blank(images, ids_keep, grid)
        inputs, seen = self._prepare(images)
        places = None
        if seen != grid:  # the encoder's input is filled up to its fixed length
            columns = torch.arange(grid[1], device=images.device)
            rows = torch.arange(grid[0], device=images.device).unsqueeze(1)
            places = (rows * seen[1] + columns).flatten().expand(len(images), -1)
        if ids_keep is not None and self.drops_tokens:
            places = ids_keep if places is None else places.gather(1, ids_keep)
        wanted = {
            "output_hidden_states": record is not None and record.hidden_states is not None,
            "output_attentions": record is not None and record.attentions is not None,
        }
        prefix = self.family.prefix(self.encoder.config)
        within = self._keeping(places, prefix) if self.family.drops_tokens else nullcontext()
        # Gradients with respect to the input pass a frozen encoder, too.
        still = self.frozen and not images.requires_grad
        with torch.no_grad() if still else nullcontext(), within:
            output = self.encoder(**inputs, **{name: True for name, on in wanted.items() if on})
        tokens = output.last_hidden_state
        if self.encoder.config.model_type == "pe_audio_encoder":
            tokens = torch.cat([output.pooler_output.unsqueeze(1), tokens], dim=1)
        if self.family.norm_apart:
            tokens = self.encoder.get_submodule(self.family.norm)(tokens)
        if ids_keep is not None and not self.drops_tokens:
            places = ids_keep
        if places is not None and tokens.shape[1] != prefix + places.shape[1]:
            tokens = torch.cat([tokens[:, :prefix], gather_patches(tokens[:, prefix:], places)], dim=1)
        if record is not None:
            self._note(record, output, prefix)
        first = [tokens[:, : self.family.classes].mean(dim=1, keepdim=True)] if self.has_class else []
        return torch.cat([*first, tokens[:, prefix:]], dim=1)

    def encode_clips(self, clips: Tensor, offsets: Tensor) -> Tensor:
        """Tokens of every window, cut out of those of the clip around it; equal clips of a batch are heard once.

        Args:
            clips: `(batch, frames, 1, mel, time)`.
            offsets: Where in its clip each window starts, spectrogram frames, `(batch, frames)`.

        Returns:
            `(batch, frames, patches, width)`; there is no class token.
        """
        config, length = self.encoder.config, self.settings.audio_length
        rows, columns = audio_grid(config, length)
        outside = (offsets < 0) | (offsets > clips.shape[-1] - length)
        if bool(outside.any()):
            raise ValueError(
                f"`window_offsets` has {int(offsets[outside][0])}; a window of {length} steps in a clip of "
                f"{clips.shape[-1]} starts at 0 to {clips.shape[-1] - length}."
            )
        distinct, places = _distinct(clips.flatten(0, 1))
        tokens = self.encode(distinct).unflatten(1, audio_grid(config, clips.shape[-1]))
        shifts = (offsets.flatten() / frames_per_column(config)).round().long().clamp(max=tokens.shape[2] - columns)
        taken = shifts.unsqueeze(-1) + torch.arange(columns, device=shifts.device)  # (windows, columns)
        cut = tokens.transpose(1, 2)[places.unsqueeze(-1), taken].transpose(1, 2)  # (windows, rows, columns, width)
        return cut.flatten(1, 2).unflatten(0, clips.shape[:2])

    @contextmanager
    def _keeping(self, places: Tensor | None, prefix: int) -> Iterator[None]:
        """Within it the encoder's blocks see some patches alone, and tables of rotary positions are those of these."""
        if places is None:
            yield
            return
        index = torch.arange(prefix, device=places.device).expand(len(places), -1)
        index = torch.cat([index, prefix + places], dim=1)
        seen = 0

        def select(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            nonlocal seen
            if not seen:  # in the first block that runs: in training some are skipped at random
                seen = args[0].shape[1]
                args = (gather_patches(args[0], index), *args[1:])
            # Compiled and exported graphs spell out that all tokens see each other, for the number before.
            args = (args[0], *(None if _is_mask(value, seen) else value for value in args[1:]))
            if self.encoder.config.model_type == "vjepa2":  # which turns them by their place in the input
                args = (args[0], index)
            kwargs = {name: None if _is_mask(value, seen) else value for name, value in kwargs.items()}
            tables = kwargs.get("position_embeddings")
            if tables is not None:
                own = index if tables[0].shape[-2] == seen else places  # of all tokens, or of the patches alone
                kwargs = kwargs | {"position_embeddings": tuple(_of_tokens(table, own) for table in tables)}
            return args, kwargs

        blocks: Any = self.encoder.get_submodule(self.family.blocks)
        handles = [block.register_forward_pre_hook(select, with_kwargs=True) for block in blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, record: Any, output: Any, prefix: int) -> None:
        for states in getattr(output, "hidden_states", None) or ():
            if states.ndim == 3 and states.shape[-1] == self.width:
                classes, registers = states[:, : self.family.classes], states[:, self.family.classes : prefix]
                patches = states[:, prefix:]
                whole = classes if self.has_class else patches
                record.add_hidden_states(torch.cat([whole.mean(dim=1, keepdim=True), patches, registers], dim=1))
        for weights in getattr(output, "attentions", None) or ():
            record.add_attentions(weights)

    def _with_global(self, tokens: Tensor) -> Tensor:
        return tokens if self.has_class else torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)

    # Input

    def _prepare(self, images: Tensor) -> tuple[dict[str, Any], tuple[int, int]]:
        """The encoder's arguments for images as of `encode`, and the grid of tokens that it makes of them."""
        config, kind = self.encoder.config, self.family.input
        if self.modality == "audio":
            values, length = self._sound(images)
            return {self.family.argument: values.to(self.encoder.dtype)}, audio_grid(config, length)
        values = self._restated(images.float(), FRAME_STATISTICS, channel_dim=1)
        if self.family.fixed_size and values.shape[-2:] != (fixed_image_size(config),) * 2:
            values = nn.functional.interpolate(
                values, size=(fixed_image_size(config),) * 2, mode="bicubic", antialias=True
            )
        grid = video_grid(config, (values.shape[-2], values.shape[-1]))
        values = values.to(self.encoder.dtype)
        if kind == "clip":
            values = values.unsqueeze(1).expand(-1, config.tubelet_size, -1, -1, -1)
        inputs: dict[str, Any] = {self.family.argument: values}
        if config.model_type == "vjepa2":
            inputs["skip_predictor"] = True
        if config.model_type == "vit_mae":  # it shuffles the patches by noise
            inputs["noise"] = torch.arange(math.prod(grid), device=values.device).expand(len(values), -1)
        if "interpolate_pos_encoding" in inspect.signature(self.encoder.forward).parameters:
            inputs["interpolate_pos_encoding"] = True
        return inputs, grid

    def _sound(self, images: Tensor) -> tuple[Tensor, int]:
        """An audio encoder's input, and its length in steps of 10 ms."""
        config, kind, values = self.encoder.config, self.family.input, images[:, 0].float()
        length, longest = values.shape[-1], longest_input(config)
        if longest is not None and length > longest:
            raise ValueError(
                f"The encoder {config.model_type!r} hears at most {longest} steps of 10 ms at once, and was given "
                f"{length}; use windows of `audio_length` {longest} or less."
            )
        if kind == "log_mel":
            values = self._restated(values, LOG_MEL_STATISTICS).transpose(1, 2)
            assert longest is not None
            return nn.functional.pad(values, (0, 0, 0, longest - length)), longest
        waveform = values.transpose(1, 2).flatten(1)  # (samples, values)
        if kind == "whisper":
            assert longest is not None
            return _whisper_log_mel(waveform, longest, config.num_mel_bins), longest
        if kind == "raw_waveform":
            missing = -waveform.shape[1] % config.dac_config.hop_length
            return nn.functional.pad(waveform.unsqueeze(1), (0, missing), mode="reflect"), length
        centred = waveform - waveform.mean(dim=1, keepdim=True)
        return centred / (waveform.var(dim=1, unbiased=False, keepdim=True) + _VARIANCE_FLOOR).sqrt(), length

    def _restated(self, values: Tensor, ours: tuple[Any, Any], channel_dim: int | None = None) -> Tensor:
        """Values normalised with our statistics, as if with the encoder's."""
        given = [getattr(self.settings, f"{self.modality}_encoder_{name}") for name in ("mean", "std")]
        theirs = tuple(known if own is None else own for own, known in zip(given, self.family.statistics, strict=True))
        if all(_as_tuple(own) == _as_tuple(other) for own, other in zip(ours, theirs, strict=True)):
            return values
        numbers = [values.new_tensor(_as_tuple(number)) for number in (*ours, *theirs)]
        if channel_dim is not None:
            numbers = [number.view(-1, *[1] * (values.ndim - channel_dim - 1)) for number in numbers]
        mean, std, own_mean, own_std = numbers
        return (values * std + mean - own_mean) / own_std


def _distinct(clips: Tensor) -> tuple[Tensor, Tensor]:
    """The clips without those that came before `(distinct, ...)`, and which of them each one is."""
    if clips.requires_grad:  # which would be collected at one of several equal ones
        return clips, torch.arange(len(clips), device=clips.device)
    # Equal clips have equal sums, so that few have to be compared whole.
    sums = clips.flatten(1).double().sum(dim=1).tolist()
    kept: list[int] = []
    known: dict[float, list[int]] = {}
    places = []
    for number, total in enumerate(sums):
        alike = known.setdefault(total, [])
        place = next((place for place in alike if torch.equal(clips[kept[place]], clips[number])), None)
        if place is None:
            place = len(kept)
            kept.append(number)
            alike.append(place)
        places.append(place)
    return clips[kept], torch.tensor(places, device=clips.device)


def _as_tuple(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _is_mask(value: Any, tokens: int) -> bool:
    """Whether it is an attention mask over so many tokens, `(samples, heads, tokens, tokens)`."""
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[-2:] == (tokens, tokens)


def _of_tokens(table: Tensor, index: Tensor) -> Tensor:
    """Rotary positions `(tokens, size)` or `(1, tokens, size)` of each sample's own tokens.

    Tables without a batch are broadcast over samples and heads, those with one over the heads by the encoder.
    """
    if table.ndim == 2:
        return table[index].unsqueeze(1)
    return gather_patches(table.expand(len(index), -1, -1), index)


def _blank(images: Tensor, ids_keep: Tensor, grid: tuple[int, int]) -> Tensor:
    """Images whose patches that are not kept are the mean of all training images."""
    kept = torch.zeros(len(images), math.prod(grid), device=images.device).scatter_(1, ids_keep, 1.0)
    mask = nn.functional.interpolate(kept.view(-1, 1, *grid), size=images.shape[-2:], mode="nearest")
    return images * mask.to(images.dtype)


@lru_cache(maxsize=4)
def _whisper_filters(num_mel_bins: int) -> Tensor:
    return torch.from_numpy(
        mel_filter_bank(
            num_frequency_bins=1 + _WHISPER_FFT // 2,
            num_mel_filters=num_mel_bins,
            min_frequency=0.0,
            max_frequency=8000.0,
            sampling_rate=16_000,
            norm="slaney",
            mel_scale="slaney",
        )
    ).float()


def _whisper_log_mel(waveform: Tensor, length: int, num_mel_bins: int) -> Tensor:
    """Whisper's log-mel `(samples, mel, length)` of waveforms `(samples, values)` at 16 kHz, as its feature extractor
    makes it: silence up to the full length, the loudest 80 dB of each.
    """
    waveform = nn.functional.pad(waveform, (0, length * _WHISPER_HOP - waveform.shape[1]))
    window = torch.hann_window(_WHISPER_FFT, device=waveform.device)
    spectrum = torch.stft(waveform, _WHISPER_FFT, _WHISPER_HOP, window=window, return_complex=True)
    power = spectrum[..., :-1].abs().square()
    log_mel = (_whisper_filters(num_mel_bins).to(power.device).t() @ power).clamp(min=1e-10).log10()
    return (torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def encoder_statistics(modality: str, source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation that the processor saved beside an encoder names, as settings of the configuration.

    Args:
        modality: `"audio"` or `"video"`.
        source: Folder or Hub name of the encoder.
        given: Settings that are there already, and stay.

    Returns:
        `{modality}_encoder_mean` and `{modality}_encoder_std`; nothing where the processor has none.
    """
    names = {"video": ("image_mean", "image_std"), "audio": ("mean", "std")}[modality]
    try:
        saved, _ = FeatureExtractionMixin.get_feature_extractor_dict(source)
    except OSError:  # saved without a processor: what is usual for its kind
        return {}
    values = dict(zip((f"{modality}_encoder_mean", f"{modality}_encoder_std"), map(saved.get, names), strict=True))
    if modality == "audio" and values["audio_encoder_std"] is not None:
        values["audio_encoder_std"] *= 2  # AST divides by twice of it
    return {name: value for name, value in values.items() if value is not None and name not in given}


def encoder_settings(audio: str | None, video: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a `CavMaeSyncConfig` with pretrained encoders.

    Args:
        audio: Folder or Hub name of the audio encoder; `None`: no change.
        video: Of the video encoder, likewise.
        settings: The other settings, which come first.
    """
    given = dict(settings)
    for modality, source in (("audio", audio), ("video", video)):
        if source is not None:
            given |= {
                f"{modality}_encoder_config": AutoConfig.from_pretrained(source, trust_remote_code=False),
                f"{modality}_encoder_source": str(source),
            } | encoder_statistics(modality, str(source), given)
    return given


def load_pretrained_encoder(source: str, config: Any) -> dict[str, Tensor]:
    """Weights of a pretrained encoder by their names in `CavMaeSyncEncoderTower.encoder`.

    Args:
        source: Folder or Hub name of an encoder, or of a model that it is a part of.
        config: Its configuration, as a `CavMaeSyncConfig` holds it.

    Returns:
        Those that the source has.
    """
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it lists the weights of the other parts
    try:
        model, report = AutoModel.from_pretrained(
            source, config=copy.deepcopy(config), trust_remote_code=False, output_loading_info=True
        )
    finally:
        logging.set_verbosity(level)
    weights = {name: value for name, value in model.state_dict().items() if name not in report["missing_keys"]}
    if not config.is_encoder_decoder:
        return weights
    part = next(name for name, module in model.named_modules() if module is model.get_encoder())
    return {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(f"{part}.")}


class WithEncoders:
    """What a model with encoders of transformers is made of, and how it is saved; a base of this package's models."""

    config: Any
    _keys_to_ignore_on_save: Any

    @classmethod
    def from_encoders(cls, audio: str | None = None, video: str | None = None, **settings: Any) -> Any:
        """A model with pretrained encoders of transformers in place of its towers, everything else at random.

        Args:
            audio: Folder or Hub name of the audio encoder, or of a model that it is a part of; `None`: this package's
                tower.
            video: Of the video encoder, likewise.
            settings: Of `CavMaeSyncConfig`. Statistics that the encoder's own processor names are taken from it.

        Raises:
            ValueError: An encoder is not known, or a setting does not fit it.
            ModelError: The folder lacks weights of the encoder.
        """
        owner: Any = cls
        model = owner(owner.config_class(**encoder_settings(audio, video, settings)))
        model.load_encoders()
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As of transformers; encoders that were saved by reference are loaded from where they are."""
        parent: Any = super()
        result: Any = parent.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, report = result if isinstance(result, tuple) else (result, {})
        for tower in model.encoder_towers().values():
            tower.freeze()
        if model.config.encoders and model.config.save_encoders == "reference":
            model.load_encoders()
            missing = report.get("missing_keys")
            if missing:
                report["missing_keys"] = type(missing)(set(missing) - set(model.referenced_weights()))
        return result

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As of transformers; encoders that are saved by reference are left out."""
        if self.config.encoders:  # their weights keep their names, or a checkpoint could not be resumed from
            kwargs.setdefault("save_original_format", False)
        parent: Any = super()
        ignored = self._keys_to_ignore_on_save
        self._keys_to_ignore_on_save = set(ignored or ()) | set(self.referenced_weights())
        try:
            parent.save_pretrained(save_directory, *args, **kwargs)
        finally:
            self._keys_to_ignore_on_save = ignored

    def encoder_towers(self) -> dict[str, CavMaeSyncEncoderTower]:
        """The towers that are another model's encoder, by their names in this model's weights."""
        model: Any = self
        return {name: part for name, part in model.named_modules() if isinstance(part, CavMaeSyncEncoderTower)}

    def referenced_weights(self) -> list[str]:
        """Names of the weights that are not saved, since they are loaded from where the encoders are."""
        if not self.config.encoders or self.config.save_encoders != "reference":
            return []
        towers = self.encoder_towers().items()
        return [f"{name}.{weight}" for name, tower in towers for weight in tower.encoder_weights()]

    def load_encoders(self) -> None:
        """Give the encoders the weights of `config.audio_encoder_source` and `config.video_encoder_source`."""
        for tower in self.encoder_towers().values():
            source = getattr(self.config, f"{tower.modality}_encoder_source")
            if source is None:
                continue
            weights = load_pretrained_encoder(source, getattr(self.config, f"{tower.modality}_encoder_config"))
            own = tower.encoder.state_dict()
            # With low-rank changes a layer's own weight lies one level deeper.
            plain = {name: name.replace(".base_layer.", ".") for name in own if ".lora_" not in name}
            lacking = [name for name in plain.values() if name not in weights]
            if lacking:
                raise ModelError(
                    f"{source}: lacks {len(lacking)} weights of the {tower.modality} encoder, such as {lacking[0]}; "
                    "name the folder that its configuration came from."
                )
            with torch.no_grad():
                for name, source_name in plain.items():
                    own[name].copy_(weights[source_name])


__all__ = ["CavMaeSyncAttentionPool", "CavMaeSyncEncoderTower", "WithEncoders", "encoder_settings"]
