# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The encoder: aligned audio windows and video frames in, embeddings of both and their similarities out."""

import difflib
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, maybe_autocast

from .configuration_cavmae_sync import CavMaeSyncConfig
from .distributed_cavmae_sync import world_size
from .layers_cavmae_sync import (
    CavMaeSyncEmbeddings,
    CavMaeSyncJointLayer,
    CavMaeSyncLayer,
    CavMaeSyncPositions,
    CavMaeSyncTower,
    LayerRecord,
    run_layers,
)
from .losses_cavmae_sync import contrastive_loss

logger = logging.get_logger(__name__)

# What a forward or feature method takes without using it, so that the whole output of a processor or collator, and the
# arguments of the other classes, can be passed. Anything else is a slip of the pen.
KNOWN_ARGUMENTS = (
    "pixel_values_videos", "input_values", "padding_mask", "padding_mask_videos", "audio_noise", "video_noise",
    "labels", "return_loss", "output_attentions", "output_hidden_states", "return_dict", "num_items_in_batch",
    "frame_times", "window_times", "window_coverage", "frame_indices", "clip_ids",
)  # fmt: skip


@dataclass
class CavMaeSyncModelOutput(ModelOutput):
    """
    Output of [`CavMaeSyncModel`]. What belongs to a modality that was not given is `None`.

    Args:
        loss (`torch.Tensor` scalar, *optional*, returned when `return_loss=True`):
            Contrastive loss over the windows and frames of the batch; other moments of a frame's own clip are
            negatives only with `config.intra_clip_negatives`.
        audio_embeds (`torch.Tensor` of shape `(batch_size, num_frames, hidden_size)`):
            L2-normalised embedding of every audio window; zeros where a window is absent.
        video_embeds (`torch.Tensor` of shape `(batch_size, num_frames, hidden_size)`):
            L2-normalised embedding of every frame; zeros where a frame is absent.
        similarity (`torch.Tensor` of shape `(batch_size, num_frames, num_frames)`):
            Cosine similarity of window `i` (row) and frame `j` (column) of the same clip.
        audio_patch_embeds (`torch.Tensor` of shape `(batch_size, num_frames, patches, hidden_size)`):
            Audio patches after the modality's final norm, mel-major: `patch = mel_row * columns + time_column`.
        video_patch_embeds (`torch.Tensor` of shape `(batch_size, num_frames, patches, hidden_size)`):
            Picture patches after the modality's final norm, row-major.
        audio_hidden_states, video_hidden_states (`tuple` of `(batch_size, num_frames, tokens, hidden_size)`):
            On `output_hidden_states=True`: the embeddings and the output of every layer. Tokens are ordered (global,
            patches, registers); the registers end with the tower.
        audio_attentions, video_attentions (`tuple` of `(batch_size, num_frames, heads, tokens, tokens)`):
            On `output_attentions=True` (eager attention): the attention probabilities of every layer.
    """

    loss: Tensor | None = None
    audio_embeds: Tensor | None = None
    video_embeds: Tensor | None = None
    similarity: Tensor | None = None
    audio_patch_embeds: Tensor | None = None
    video_patch_embeds: Tensor | None = None
    audio_hidden_states: tuple[Tensor, ...] | None = None
    video_hidden_states: tuple[Tensor, ...] | None = None
    audio_attentions: tuple[Tensor, ...] | None = None
    video_attentions: tuple[Tensor, ...] | None = None


@dataclass
class CavMaeSyncAudioFeatures(BaseModelOutputWithPooling):
    """
    Output of `get_audio_features`.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, num_frames, patches, hidden_size)`):
            Audio patches after the modality's final norm.
        pooler_output (`torch.Tensor` of shape `(batch_size, hidden_size)`):
            One L2-normalised vector per clip: the mean of its present windows' embeddings.
        hidden_states, attentions (`tuple`, *optional*):
            As `audio_hidden_states` and `audio_attentions` of [`CavMaeSyncModelOutput`].
        audio_embeds (`torch.Tensor` of shape `(batch_size, num_frames, hidden_size)`):
            L2-normalised embedding of every window.
    """

    audio_embeds: Tensor | None = None


@dataclass
class CavMaeSyncVideoFeatures(BaseModelOutputWithPooling):
    """
    Output of `get_video_features`: as [`CavMaeSyncAudioFeatures`], with `video_embeds` of every frame
    `(batch_size, num_frames, hidden_size)`.
    """

    video_embeds: Tensor | None = None


class ModalityEncoding(NamedTuple):
    """One modality of a batch after its tower and the joint layers; every tensor starts `(batch, frames, ...)`."""

    embeds: Tensor
    patch_embeds: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class CavMaeSyncPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by the CAV-MAE Sync models."""

    config: CavMaeSyncConfig
    config_class = CavMaeSyncConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values_videos"
    input_modalities = ["video", "audio"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["CavMaeSyncEmbeddings", "CavMaeSyncLayer", "CavMaeSyncJointLayer", "CavMaeSyncDecoder"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Published initialisation: Xavier-uniform projections, normal tokens, sine-cosine positions.

        Register tokens start with the small spread of the other tokens, not with the published unit variance.
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, CavMaeSyncPositions):
            module.reset()
        elif isinstance(module, CavMaeSyncEmbeddings):
            weight, bias = module.projection.weight, module.projection.bias
            bound = (6 / (weight[0].numel() + weight.shape[0])) ** 0.5  # Xavier of the equivalent linear layer
            init.uniform_(weight, -bound, bound)
            if bias is not None:
                init.zeros_(bias)
            for token in (module.modality_embedding, module.global_token, module.register_tokens):
                if token is not None:
                    init.normal_(token, std=std)

    def get_input_embeddings(self) -> nn.Module:
        """The patch projection of the frames (of the audio windows in an audio-only model)."""
        return self._main_embeddings().projection

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the module that `get_input_embeddings` gives."""
        self._main_embeddings().projection = value  # type: ignore[assignment]

    def _main_embeddings(self) -> CavMaeSyncEmbeddings:
        base: Any = getattr(self, self.base_model_prefix, self)
        tower: CavMaeSyncTower = base.tower("audio" if self.config.modality == "audio" else "video")
        return tower.embeddings


class CavMaeSyncModel(CavMaeSyncPreTrainedModel):
    """
    The CAV-MAE Sync encoder. It turns audio windows `input_values` of shape `(batch_size, num_frames, audio_length,
    num_mel_bins)` and frames `pixel_values_videos` of shape `(batch_size, num_frames, num_channels, height, width)`
    into one embedding each, in a space where a frame lies near the sound of its own moment.

    Args:
        config (`CavMaeSyncConfig`): Sizes and options; `config.modality` says which towers exist.

    Example:

    ```python
    >>> import torch
    >>> from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncModel

    >>> model = CavMaeSyncModel(CavMaeSyncConfig(num_modality_layers=1)).eval()
    >>> output = model(pixel_values_videos=torch.rand(1, 4, 3, 224, 224), input_values=torch.rand(1, 4, 416, 128))
    >>> output.similarity.shape
    torch.Size([1, 4, 4])
    ```
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^head\."]

    def __init__(self, config: CavMaeSyncConfig):
        super().__init__(config)
        self.audio_tower = CavMaeSyncTower(config, 1, config.audio_grid) if config.modality != "video" else None
        self.video_tower = (
            CavMaeSyncTower(config, config.num_channels, config.video_grid) if config.modality != "audio" else None
        )
        self.joint_layers = nn.ModuleList([CavMaeSyncJointLayer(config) for _ in range(config.num_joint_layers)])
        self.contrastive_layers = nn.ModuleDict(
            {
                modality: nn.ModuleList([CavMaeSyncLayer(config) for _ in range(config.num_contrastive_head_layers)])
                for modality in ("audio", "video")
                if config.num_contrastive_head_layers
            }
        )
        self.norms = nn.ModuleDict(
            {name: nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for name in ("audio", "video", "fused")}
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        padding_mask_videos: Tensor | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> tuple | CavMaeSyncModelOutput:
        """Embed frames, windows, or both. A modality that is not given costs nothing.

        Args:
            pixel_values_videos: Frames `(batch_size, num_frames, num_channels, height, width)`, normalised.
            input_values: Audio windows `(batch_size, num_frames, audio_length, num_mel_bins)`, normalised.
            padding_mask: False for absent windows, `(batch_size, num_frames)`.
            padding_mask_videos: False for absent frames, `(batch_size, num_frames)`.
            return_loss: Whether to compute the contrastive loss between the windows and frames of the batch.
            output_attentions: Whether to return attention probabilities (eager attention only).
            output_hidden_states: Whether to return the layers' hidden states.
            kwargs: What else a processor or collator gives is ignored; unknown names are refused.

        Raises:
            ValueError: No input, shapes that do not fit the configuration, or counts that differ.
            TypeError: An unknown argument.
        """
        images, present = self.check_inputs(
            pixel_values_videos, input_values, padding_mask, padding_mask_videos, **kwargs
        )
        if return_loss and len(images) < 2:
            raise ValueError("`return_loss=True` needs both `pixel_values_videos` and `input_values`.")
        encodings = {
            modality: self.encode(modality, values, present[modality], output_attentions, output_hidden_states)
            for modality, values in images.items()
        }
        audio, video = encodings.get("audio"), encodings.get("video")
        similarity = loss = None
        if audio is not None and video is not None:
            # Autocast would round the cosines of its float32 embeddings to half precision.
            with maybe_autocast(audio.embeds.device.type, enabled=False):
                similarity = audio.embeds @ video.embeds.to(audio.embeds.device).transpose(1, 2)
            if return_loss:
                loss = self.contrast(audio.embeds, video.embeds, present["audio"], present["video"]).loss
        return CavMaeSyncModelOutput(
            loss=loss,
            audio_embeds=audio and audio.embeds,
            video_embeds=video and video.embeds,
            similarity=similarity,
            audio_patch_embeds=audio and audio.patch_embeds,
            video_patch_embeds=video and video.patch_embeds,
            audio_hidden_states=audio and audio.hidden_states,
            video_hidden_states=video and video.hidden_states,
            audio_attentions=audio and audio.attentions,
            video_attentions=video and video.attentions,
        )

    @can_return_tuple
    def get_audio_features(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> tuple | CavMaeSyncAudioFeatures:
        """Embed audio windows alone; arguments as in `forward`. `pooler_output` is one vector per clip."""
        images, present = self.check_inputs(None, input_values, padding_mask, None, **kwargs)
        encoding = self.encode("audio", images["audio"], present["audio"], output_attentions, output_hidden_states)
        return CavMaeSyncAudioFeatures(
            last_hidden_state=encoding.patch_embeds,
            pooler_output=pool_clip(encoding.embeds),
            hidden_states=encoding.hidden_states,
            attentions=encoding.attentions,
            audio_embeds=encoding.embeds,
        )

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: Tensor,
        padding_mask_videos: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> tuple | CavMaeSyncVideoFeatures:
        """Embed frames alone; arguments as in `forward`. `pooler_output` is one vector per clip."""
        images, present = self.check_inputs(pixel_values_videos, None, None, padding_mask_videos, **kwargs)
        encoding = self.encode("video", images["video"], present["video"], output_attentions, output_hidden_states)
        return CavMaeSyncVideoFeatures(
            last_hidden_state=encoding.patch_embeds,
            pooler_output=pool_clip(encoding.embeds),
            hidden_states=encoding.hidden_states,
            attentions=encoding.attentions,
            video_embeds=encoding.embeds,
        )

    def check_inputs(
        self,
        pixel_values_videos: Tensor | None,
        input_values: Tensor | None,
        padding_mask: Tensor | None,
        padding_mask_videos: Tensor | None,
        **kwargs: Any,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
        """The given modalities, audio first, as `(batch, frames, channels, height, width)`, and who is present.

        Args:
            pixel_values_videos: As in `forward`.
            input_values: As in `forward`.
            padding_mask: As in `forward`.
            padding_mask_videos: As in `forward`.
            kwargs: Further arguments; unknown ones are refused.
        """
        for name in kwargs:
            if name not in KNOWN_ARGUMENTS:
                near = difflib.get_close_matches(name, KNOWN_ARGUMENTS, n=1)
                raise TypeError(f"Unknown argument `{name}`" + (f"; is `{near[0]}` meant?" if near else "."))
        images: dict[str, Tensor] = {}
        present: dict[str, Tensor | None] = {}
        for modality, inputs, mask in (
            ("audio", input_values, padding_mask),
            ("video", pixel_values_videos, padding_mask_videos),
        ):
            if inputs is not None:
                images[modality] = self.as_images(modality, inputs)
                present[modality] = check_present(mask, images[modality])
        if not images:
            raise ValueError("Got neither `pixel_values_videos` nor `input_values`; pass at least one of them.")
        check_same_frames(images.get("audio"), images.get("video"))
        return images, present

    def encode(
        self,
        modality: str,
        images: Tensor,
        present: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ModalityEncoding:
        """One modality through its tower, the joint layers and its final norm, unmasked.

        Args:
            modality: `"audio"` or `"video"`.
            images: From `check_inputs`, `(batch, frames, channels, height, width)`.
            present: From `check_inputs`, `(batch, frames)`.
            output_attentions: As in `forward`.
            output_hidden_states: As in `forward`.
        """
        record = self.make_record(output_attentions, output_hidden_states)
        distinct, places = select_distinct(images, present, self.config.deduplicate_windows)
        tokens = self.tower(modality)(distinct, record=record)
        embeds, patch_embeds = self.separate(modality, tokens, record)

        def restore(encoded: Tensor) -> Tensor:
            encoded = encoded if places is None else encoded[places]
            encoded = encoded.unflatten(0, images.shape[:2])
            if present is None:
                return encoded
            return encoded * present.view(*images.shape[:2], *[1] * (encoded.ndim - 2)).to(encoded.dtype)

        return ModalityEncoding(
            restore(embeds),
            restore(patch_embeds),
            None if record.hidden_states is None else tuple(map(restore, record.hidden_states)),
            None if record.attentions is None else tuple(restore(weights) for weights in record.attentions),
        )

    def separate(self, modality: str, tokens: Tensor, record: LayerRecord | None = None) -> tuple[Tensor, Tensor]:
        """From a tower's tokens `(samples, tokens, hidden)` to embeddings `(samples, hidden)` and patch embeddings."""
        tokens = run_layers(self.joint_layers, tokens, None, modality, record=record)
        if modality in self.contrastive_layers:
            head: Any = self.contrastive_layers[modality]
            tokens = run_layers(head, tokens, record=record)
        tokens = self.norms[modality](tokens)
        patches = tokens[:, 1:] if self.config.use_global_tokens else tokens
        pooled = tokens[:, 0] if self.config.use_global_tokens else tokens.mean(dim=1)
        return nn.functional.normalize(pooled, dim=-1), patches

    def fuse(self, audio_patches: Tensor, video_patches: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Both towers' patch tokens, joined, through the joint layers and the fused norm."""
        tokens = torch.cat([audio_patches, video_patches.to(audio_patches.device)], dim=1)
        return self.norms["fused"](run_layers(self.joint_layers, tokens, attention_mask, "fused"))

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        """A tower's tokens without the global token."""
        return tokens[:, 1:] if self.config.use_global_tokens else tokens

    def contrast(
        self,
        audio_embeds: Tensor,
        video_embeds: Tensor,
        padding_mask: Tensor | None = None,
        padding_mask_videos: Tensor | None = None,
    ) -> Any:
        """Contrastive loss of embeddings `(batch, frames, hidden)` with the configuration's settings."""
        batch_size, num_frames = audio_embeds.shape[:2]
        valid = both_present(padding_mask, padding_mask_videos)
        clip_ids = None
        # Processes may differ in their number of frames, but not in whether they name their clips.
        if not self.config.intra_clip_negatives:
            if batch_size == 1 and not self.trains_together and not torch.compiler.is_compiling():
                logger.warning_once(
                    "The contrastive loss of a batch of one clip is 0, since other moments of the same clip are no "
                    "negatives; give several clips, or set `config.intra_clip_negatives=True`."
                )
            clip_ids = torch.arange(batch_size, device=audio_embeds.device).repeat_interleave(num_frames)
        return contrastive_loss(
            audio_embeds.flatten(0, 1),
            video_embeds.flatten(0, 1),
            self.config.temperature,
            self.config.bidirectional_contrast,
            None if valid is None else valid.flatten(),
            clip_ids,
            distributed=self.trains_together,
        )

    @property
    def trains_together(self) -> bool:
        """Whether losses are those of the joined batch of several processes: in distributed training.

        Not in evaluation, where processes may hold different numbers of batches and would wait for each other for
        ever.
        """
        return self.training and world_size() > 1

    def tower(self, modality: str) -> CavMaeSyncTower:
        """The tower of `"audio"` or `"video"`; a `ValueError` where the configuration has none."""
        tower = self.audio_tower if modality == "audio" else self.video_tower
        if tower is None:
            given = {"audio": "input_values", "video": "pixel_values_videos"}
            raise ValueError(
                f"Got `{given[modality]}`, but this model has `modality={self.config.modality!r}` and no {modality} "
                "tower; leave that input out or load a multimodal checkpoint."
            )
        return tower

    def as_images(self, modality: str, inputs: Tensor) -> Tensor:
        """Check a modality's input and give it as `(batch, frames, channels, height, width)`."""
        self.tower(modality)
        if not isinstance(inputs, Tensor):
            raise ValueError(
                f"The {modality} input is a {type(inputs).__name__}, not a tensor; call the processor with "
                "return_tensors='pt'."
            )
        config, patch = self.config, self.config.patch_size
        if modality == "video":
            expected = f"(batch_size, num_frames, {config.num_channels}, height, width)"
            if inputs.ndim != 5 or inputs.shape[2] != config.num_channels:
                raise ValueError(f"`pixel_values_videos` has shape {tuple(inputs.shape)}; expected {expected}.")
            if inputs.shape[3] % patch or inputs.shape[4] % patch:
                raise ValueError(
                    f"`pixel_values_videos` has frames of {inputs.shape[3]} x {inputs.shape[4]} pixels, not multiples "
                    f"of the patch size {patch}; resize them to {config.image_size} x {config.image_size}."
                )
            return inputs
        expected = f"(batch_size, num_frames, audio_length, {config.num_mel_bins})"
        if inputs.ndim != 4 or inputs.shape[3] != config.num_mel_bins:
            raise ValueError(
                f"`input_values` has shape {tuple(inputs.shape)}; expected {expected}. The feature extractor's "
                "`num_mel_bins` must equal the model's."
            )
        if inputs.shape[2] % patch:
            raise ValueError(
                f"`input_values` has windows of {inputs.shape[2]} spectrogram frames, not a multiple of the patch "
                f"size {patch}; {max(1, inputs.shape[2] // patch) * patch} would work."
            )
        return inputs.transpose(2, 3).unsqueeze(2)  # a spectrogram is a one-channel picture of (mel, time)

    def make_record(self, output_attentions: bool | None, output_hidden_states: bool | None) -> LayerRecord:
        """Where the layers note what was asked for, in the call or in the configuration."""
        if output_attentions is None:
            output_attentions = bool(self.config.output_attentions)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                f"attn_implementation={self.config._attn_implementation!r} does not compute attention probabilities; "
                "load the model with attn_implementation='eager' or call model.set_attn_implementation('eager')."
            )
        return LayerRecord([] if output_hidden_states else None, [] if output_attentions else None)


def select_distinct(images: Tensor, present: Tensor | None, deduplicate: bool) -> tuple[Tensor, Tensor | None]:
    """Pick the frames or windows that need encoding.

    Consecutive equal ones (a clip's first and last windows are clamped to its ends, and films stand still) are taken
    once, absent ones are not taken at all.

    Args:
        images: Shape `(batch, frames, ...)`.
        present: False for absent ones, shape `(batch, frames)`.
        deduplicate: Whether to look for equal neighbours.

    Returns:
        The picked ones `(picked, ...)`, and for each of the `batch * frames` places its index among them (`None`: all
        were picked). The index at an absent place is arbitrary.
    """
    flat = images.flatten(0, 1)
    # Shapes that depend on data break compiled and exported graphs; gradients with respect to the input must not be
    # collected at one of several equal windows.
    fixed_shapes = torch.compiler.is_compiling() or torch.jit.is_tracing() or images.is_meta
    if fixed_shapes or images.requires_grad or (present is None and (images.shape[1] == 1 or not deduplicate)):
        return flat, None
    first = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
    if deduplicate:
        first[:, 1:] = (images[:, 1:] != images[:, :-1]).flatten(2).any(dim=2)
    if present is not None:
        # The first present one after absent ones must be taken even if it equals the absent one before it.
        first[:, 1:] |= ~present[:, :-1]
        first &= present
    first = first.flatten()
    if not bool(first.any()):
        first[0] = True  # all are absent: the layers still need something to run on
    if bool(first.all()):
        return flat, None
    return flat[first], first.cumsum(0) - 1


def pool_clip(embeds: Tensor) -> Tensor:
    """One L2-normalised vector per clip `(batch, hidden)`: the mean of its embeddings (absent ones are zeros)."""
    return nn.functional.normalize(embeds.sum(dim=1), dim=-1)


def both_present(padding_mask: Tensor | None, padding_mask_videos: Tensor | None) -> Tensor | None:
    """True where window and frame are both present, `(batch, frames)`; `None` when nothing is absent."""
    if padding_mask is None or padding_mask_videos is None:
        mask = padding_mask if padding_mask_videos is None else padding_mask_videos
        return None if mask is None else mask.bool()
    return padding_mask.bool() & padding_mask_videos.bool()


def check_present(present: Tensor | None, images: Tensor) -> Tensor | None:
    """A mask of present frames or windows as booleans, checked against the input it belongs to."""
    if present is None:
        return None
    if present.shape != images.shape[:2]:
        raise ValueError(
            f"The padding mask has shape {tuple(present.shape)} for an input of (batch, frames) "
            f"{tuple(images.shape[:2])}; pass one value per window or frame."
        )
    return present.bool()


def check_same_frames(audio: Tensor | None, video: Tensor | None) -> None:
    """Windows and frames go in pairs: where both are given, refuse batches or counts that differ."""
    if audio is not None and video is not None and audio.shape[:2] != video.shape[:2]:
        raise ValueError(
            f"Got {audio.shape[1]} audio windows for {video.shape[1]} frames (batch sizes {audio.shape[0]} and "
            f"{video.shape[0]}); give every frame the window of its moment, as CavMaeSyncProcessor does, or call "
            "get_audio_features and get_video_features."
        )


__all__ = [
    "CavMaeSyncAudioFeatures",
    "CavMaeSyncModel",
    "CavMaeSyncModelOutput",
    "CavMaeSyncPreTrainedModel",
    "CavMaeSyncVideoFeatures",
]
