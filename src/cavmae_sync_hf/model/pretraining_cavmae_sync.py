# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Pretraining: hide most patches, contrast what is left, reconstruct the rest."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_cavmae_sync import CavMaeSyncConfig
from .distributed_cavmae_sync import share_of_mean
from .layers_cavmae_sync import CavMaeSyncLayer, CavMaeSyncPositions, run_layers
from .losses_cavmae_sync import patch_statistics, patchify, reconstruction_loss, unpatchify
from .masking_cavmae_sync import Masking, gather_patches, random_masking, structured_noise
from .modeling_cavmae_sync import (
    CavMaeSyncModel,
    CavMaeSyncPreTrainedModel,
)


@dataclass
class CavMaeSyncForPreTrainingOutput(ModelOutput):
    """
    Output of [`CavMaeSyncForPreTraining`]. The single losses are unweighted; what a zero weight skips is `None`.

    Args:
        loss (`torch.Tensor` scalar, *optional*):
            `reconstruction_loss_weight * (audio + video) + contrastive_loss_weight * contrastive +
            distillation_loss_weight * distillation`.
        contrastive_loss (`torch.Tensor` scalar, *optional*):
            InfoNCE over the pairs of the batch; pairs of the same clip are negatives of each other only with
            `config.intra_clip_negatives`.
        audio_reconstruction_loss, video_reconstruction_loss (`torch.Tensor` scalar, *optional*):
            Mean squared error over the removed patches.
        distillation_loss (`torch.Tensor` scalar, *optional*):
            One less the cosine of an embedding and its teacher's, mean over the embeddings of both modalities; where
            a teacher's embeddings were given.
        contrastive_accuracy (`torch.Tensor` scalar, *optional*):
            Share of the frames whose own window scores highest, of those with a negative (with both directions: the
            mean of the two shares).
        audio_mask, video_mask (`torch.Tensor` of shape `(batch_size, num_frames, patches)`):
            1 where a patch was removed: in the pass that reconstructs, or in the only one there is.
        audio_reconstruction, video_reconstruction (`torch.Tensor` of shape `(batch_size, num_frames, patches, size)`):
            The decoder's patches, in normalised values under `norm_pix_loss`; `unpatchify_audio` and
            `unpatchify_video` put them together.
        audio_embeds, video_embeds (`torch.Tensor` of shape `(batch_size, num_frames, hidden_size)`):
            L2-normalised embeddings made from the visible patches (of the contrastive pass, where it is a pass of its
            own).
        audio_patch_embeds, video_patch_embeds (`torch.Tensor` of shape `(batch_size, num_frames, kept, hidden_size)`):
            The visible patches after the modality's final norm, in the order in which the noise picked them.
        audio_hidden_states, video_hidden_states (`tuple` of `(batch_size, num_frames, tokens, hidden_size)`):
            On `output_hidden_states=True`: the visible tokens and the output of every tower layer.
        audio_attentions, video_attentions (`tuple` of `(batch_size, num_frames, heads, tokens, tokens)`):
            On `output_attentions=True` (eager attention): the towers' attention probabilities.
    """

    loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    audio_reconstruction_loss: Tensor | None = None
    video_reconstruction_loss: Tensor | None = None
    distillation_loss: Tensor | None = None
    contrastive_accuracy: Tensor | None = None
    audio_mask: Tensor | None = None
    video_mask: Tensor | None = None
    audio_reconstruction: Tensor | None = None
    video_reconstruction: Tensor | None = None
    audio_embeds: Tensor | None = None
    video_embeds: Tensor | None = None
    audio_patch_embeds: Tensor | None = None
    video_patch_embeds: Tensor | None = None
    audio_hidden_states: tuple[Tensor, ...] | None = None
    video_hidden_states: tuple[Tensor, ...] | None = None
    audio_attentions: tuple[Tensor, ...] | None = None
    video_attentions: tuple[Tensor, ...] | None = None


@dataclass
class CavMaeSyncInpaintingOutput(ModelOutput):
    """
    Output of [`CavMaeSyncForPreTraining.inpaint`].

    Args:
        pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`):
            The frames with their removed patches filled in, in the processor's normalised values.
        input_values (`torch.Tensor` of shape `(batch_size, num_frames, audio_length, num_mel_bins)`):
            The spectrograms with their removed patches filled in.
        video_mask, audio_mask (`torch.Tensor` of shape `(batch_size, num_frames, patches)`):
            1 where a patch was removed, and is now the model's.
    """

    pixel_values_videos: Tensor | None = None
    input_values: Tensor | None = None
    video_mask: Tensor | None = None
    audio_mask: Tensor | None = None


class CavMaeSyncModalityEmbeddings(nn.Module):
    """One embedding per modality, got by a call: weights offloaded to disk are brought in when a module is called."""

    def __init__(self, width: int):
        super().__init__()
        self.audio, self.video = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))

    def forward(self, modality: str) -> Tensor:
        """The embedding of `"audio"` or `"video"`, `(1, 1, width)`."""
        return self.audio if modality == "audio" else self.video


class CavMaeSyncDecoder(nn.Module):
    """Recovers every patch of both modalities from the fused visible ones."""

    def __init__(self, config: CavMaeSyncConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.modality_embeddings = CavMaeSyncModalityEmbeddings(width)
        learned = config.position_embedding_type == "learned"
        self.positions = nn.ModuleDict(
            {
                "audio": CavMaeSyncPositions(config.audio_grid, width, learned),
                "video": CavMaeSyncPositions(config.video_grid, width, learned),
            }
        )
        heads, inner = config.decoder_num_attention_heads, config.decoder_intermediate_size
        self.layers = nn.ModuleList(
            [CavMaeSyncLayer(config, width, heads, inner) for _ in range(config.decoder_num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.predictions = nn.ModuleDict(
            {
                "audio": nn.Linear(width, config.patch_size**2),
                "video": nn.Linear(width, config.patch_size**2 * config.num_channels),
            }
        )

    def forward(
        self,
        fused: Tensor,
        maskings: dict[str, Masking],
        grids: dict[str, tuple[int, int]],
        attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predict patches `(samples, patches, values)` per modality.

        Args:
            fused: Visible patches, audio first, `(samples, kept of both, hidden)`.
            maskings: Per modality which patches those are.
            grids: Per modality the patch grid.
            attention_mask: In the form of the attention implementation; `None` when every sample has both modalities.
        """
        fused = self.embed(fused)
        kept = [masking.ids_keep.shape[1] for masking in maskings.values()]
        visible = dict(zip(maskings, fused.split(kept, dim=1), strict=True))
        parts = []
        for modality, masking in maskings.items():
            removed = masking.ids_restore.shape[1] - masking.ids_keep.shape[1]
            mask_tokens = self.mask_token.expand(fused.shape[0], removed, -1)
            tokens = gather_patches(torch.cat([visible[modality], mask_tokens], dim=1), masking.ids_restore)
            embedding = self.modality_embeddings(modality)
            parts.append(tokens + (self.positions[modality](grids[modality]) + embedding).to(embedding.dtype))
        hidden_states = self.norm(run_layers(self.layers, torch.cat(parts, dim=1), attention_mask))
        split = hidden_states.split([part.shape[1] for part in parts], dim=1)
        return {modality: self.predictions[modality](part) for modality, part in zip(maskings, split, strict=True)}


class CavMaeSyncForPreTraining(CavMaeSyncPreTrainedModel):
    """
    CAV-MAE Sync with its two pretraining objectives: contrast between a frame and the window of its moment, and
    reconstruction of removed patches of both.

    Args:
        config (`CavMaeSyncConfig`): Sizes, mask ratios and loss weights; `modality` must be `"multimodal"`.

    Example:

    ```python
    >>> import torch
    >>> from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncForPreTraining

    >>> model = CavMaeSyncForPreTraining(CavMaeSyncConfig(num_modality_layers=1, decoder_num_hidden_layers=1))
    >>> output = model(pixel_values_videos=torch.rand(2, 1, 3, 224, 224), input_values=torch.rand(2, 1, 416, 128))
    >>> output.audio_reconstruction.shape
    torch.Size([2, 1, 208, 256])
    ```
    """

    # The losses are means over the batch: the Trainer must divide them by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: CavMaeSyncConfig):
        super().__init__(config)
        if config.modality != "multimodal":
            raise ValueError(f"Pretraining needs both towers; `modality` is {config.modality!r}, use 'multimodal'.")
        if not config.contrastive_loss_weight and not config.reconstruction_loss_weight:
            raise ValueError(
                "`contrastive_loss_weight` and `reconstruction_loss_weight` are both 0: nothing would be learned."
            )
        self.model = CavMaeSyncModel(config)
        self.decoder = CavMaeSyncDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CavMaeSyncDecoder):
            for token in (module.mask_token, *module.modality_embeddings.parameters()):
                init.normal_(token, std=self.config.initializer_range)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        padding_mask_videos: Tensor | None = None,
        video_noise: Tensor | None = None,
        audio_noise: Tensor | None = None,
        contrastive_video_noise: Tensor | None = None,
        contrastive_audio_noise: Tensor | None = None,
        video_teacher_embeds: Tensor | None = None,
        audio_teacher_embeds: Tensor | None = None,
        return_loss: bool = True,
        reconstruct: bool = True,
        contrast: bool = True,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> tuple | CavMaeSyncForPreTrainingOutput:
        """One pretraining step's computation.

        Args:
            pixel_values_videos: Frames `(batch_size, num_frames, num_channels, height, width)`, normalised.
            input_values: Audio windows `(batch_size, num_frames, audio_length, num_mel_bins)`, normalised.
            padding_mask: False for absent windows, `(batch_size, num_frames)`; they take part in no loss.
            padding_mask_videos: False for absent frames, likewise.
            video_noise: Decides the masking, `(batch_size, num_frames, patches)`: the smallest are kept. Drawn
                uniformly when absent.
            audio_noise: Likewise for the audio patches.
            contrastive_video_noise: Likewise for the contrastive pass, where `config.contrastive_mask_ratio` makes it
                one of its own; a teacher's attention may have shaped it (its smallest are kept, whatever the scale).
            contrastive_audio_noise: Likewise for its audio patches.
            video_teacher_embeds: Embeddings of the frames by a teacher, `(batch_size, num_frames, hidden_size)`,
                L2-normalised, for `config.distillation_loss_weight`.
            audio_teacher_embeds: Likewise of the windows.
            return_loss: Whether to compute the losses; embeddings and reconstructions come either way.
            reconstruct: Whether to run the decoder; without it no reconstruction and no loss of it.
            contrast: Whether to compute the losses between embeddings, which come either way. `align` computes them
                elsewhere, for a batch that is larger than memory holds.
            output_attentions: Whether to return the towers' attention probabilities (eager attention only).
            output_hidden_states: Whether to return the towers' hidden states.
            kwargs: What else a processor or collator gives is ignored; unknown names are refused.

        Raises:
            ValueError: An input is missing or its shape does not fit.
            TypeError: An unknown argument.
        """
        if pixel_values_videos is None or input_values is None:
            missing = "pixel_values_videos" if pixel_values_videos is None else "input_values"
            raise ValueError(f"Pretraining needs both modalities; `{missing}` is missing.")
        images, present = self.model.check_inputs(
            pixel_values_videos, input_values, padding_mask, padding_mask_videos, **kwargs
        )
        batch_shape = images["audio"].shape[:2]
        images = {modality: values.flatten(0, 1) for modality, values in images.items()}
        align = bool(self.config.contrastive_loss_weight)
        decode = bool(self.config.reconstruction_loss_weight) and reconstruct
        # Where the contrast has a pass of its own, the other one serves the decoder alone.
        apart = align and self.config.contrastive_mask_ratio is not None
        records = {modality: self.model.make_record(output_attentions, output_hidden_states) for modality in images}
        output, tokens = CavMaeSyncForPreTrainingOutput(), {}
        if decode or not apart:
            maskings = self._mask(images, batch_shape, {"audio": audio_noise, "video": video_noise})
            tokens = self._towers(images, maskings, batch_shape, output, records)
        if decode:
            self._add_reconstruction(output, tokens, images, maskings, present, return_loss)
        if apart:
            noise = {"audio": contrastive_audio_noise, "video": contrastive_video_noise}
            maskings = self._mask(images, batch_shape, noise, self.config.contrastive_mask_ratio)
            tokens = self._towers(images, maskings, batch_shape, output, None if decode else records)
        if align:
            self._add_embeddings(output, tokens)
            if return_loss and contrast:
                self.align(output, present, {"audio": audio_teacher_embeds, "video": video_teacher_embeds})
        output.loss = self.weigh(output) if return_loss else None
        for modality, record in records.items():
            for name, recorded in record.batch_first(modality, batch_shape).items():
                output[name] = recorded
        return output

    def align(
        self,
        output: CavMaeSyncForPreTrainingOutput,
        present: dict[str, Tensor | None],
        teacher: dict[str, Tensor | None],
    ) -> None:
        """Add the losses between the embeddings that `output` holds: contrastive, and to a teacher's where given.

        Args:
            output: With `audio_embeds` and `video_embeds`, `(batch_size, num_frames, hidden_size)`.
            present: By modality False for absent frames or windows, `(batch_size, num_frames)`; `None`: none is.
            teacher: By modality a teacher's embeddings, of the same shape as the own.
        """
        output.contrastive_loss, output.contrastive_accuracy = self.model.contrast(
            output.audio_embeds, output.video_embeds, present["audio"], present["video"]
        )
        if self.config.distillation_loss_weight and all(target is not None for target in teacher.values()):
            output.distillation_loss = self._distil(output, present, teacher)

    def weigh(self, output: CavMaeSyncForPreTrainingOutput) -> Tensor | None:
        """The weighted sum of the losses that `output` holds, a scalar; `None` where it holds none."""
        config = self.config
        weighted = [
            weight * loss
            for weight, loss in (
                (config.reconstruction_loss_weight, output.audio_reconstruction_loss),
                (config.reconstruction_loss_weight, output.video_reconstruction_loss),
                (config.contrastive_loss_weight, output.contrastive_loss),
                (config.distillation_loss_weight, output.distillation_loss),
            )
            if weight and loss is not None
        ]
        return sum(weighted[1:], weighted[0]) if weighted else None

    @torch.no_grad()
    def inpaint(
        self,
        pixel_values_videos: Tensor,
        input_values: Tensor,
        video_noise: Tensor | None = None,
        audio_noise: Tensor | None = None,
        **kwargs: Any,
    ) -> CavMaeSyncInpaintingOutput:
        """Remove patches and fill them in again.

        Under `norm_pix_loss` the decoder predicts each patch up to its mean and standard deviation; these two numbers
        are then taken from the true patch, so the result shows what was learned but is no reconstruction from
        nothing.

        Args:
            pixel_values_videos: As in `forward`.
            input_values: As in `forward`.
            video_noise: As in `forward`.
            audio_noise: As in `forward`.
            kwargs: Masks of absent windows and frames, and the rest of a processor's output, as in `forward`.
        """
        if not self.config.reconstruction_loss_weight:
            raise ValueError("`reconstruction_loss_weight` is 0, so the decoder is off; set it above 0 to inpaint.")
        output = self(
            pixel_values_videos=pixel_values_videos,
            input_values=input_values,
            video_noise=video_noise,
            audio_noise=audio_noise,
            **(kwargs | {"return_loss": False, "return_dict": True}),
        )
        video = self._fill(self.patchify_video(pixel_values_videos), output.video_reconstruction, output.video_mask)
        audio = self._fill(self.patchify_audio(input_values), output.audio_reconstruction, output.audio_mask)
        height, width = pixel_values_videos.shape[-2:]
        return CavMaeSyncInpaintingOutput(
            pixel_values_videos=self.unpatchify_video(video, height, width),
            input_values=self.unpatchify_audio(audio, input_values.shape[2]),
            video_mask=output.video_mask,
            audio_mask=output.audio_mask,
        )

    def patchify_video(self, pixel_values_videos: Tensor) -> Tensor:
        """Frames `(batch, frames, channels, height, width)` as patches `(batch, frames, patches, values)`."""
        patches = patchify(self.model.as_images("video", pixel_values_videos).flatten(0, 1), self.config.patch_size)
        return patches.unflatten(0, pixel_values_videos.shape[:2])

    def patchify_audio(self, input_values: Tensor) -> Tensor:
        """Windows `(batch, frames, audio_length, mel)` as patches `(batch, frames, patches, values)`, mel-major."""
        patches = patchify(self.model.as_images("audio", input_values).flatten(0, 1), self.config.patch_size)
        return patches.unflatten(0, input_values.shape[:2])

    def unpatchify_video(self, patches: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        """Inverse of `patchify_video`; the frame size defaults to the configured one."""
        height, width = height or self.config.image_size, width or self.config.image_size
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        return unpatchify(patches.flatten(0, 1), grid, self.config.patch_size).unflatten(0, patches.shape[:2])

    def unpatchify_audio(self, patches: Tensor, audio_length: int | None = None) -> Tensor:
        """Inverse of `patchify_audio`; the window length defaults to the configured one."""
        size = self.config.patch_size
        grid = (self.config.audio_grid[0], (audio_length or self.config.audio_length) // size)
        spectrograms = unpatchify(patches.flatten(0, 1), grid, size).unflatten(0, patches.shape[:2])
        return spectrograms.squeeze(2).transpose(2, 3)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[-2] // self.config.patch_size, images.shape[-1] // self.config.patch_size

    def _mask(
        self,
        images: dict[str, Tensor],
        batch_shape: torch.Size,
        given: dict[str, Tensor | None],
        ratio: float | None = None,
    ) -> dict[str, Masking]:
        """Draw and check the maskings of a pass; `images` are `(samples, channels, height, width)`.

        Args:
            images: By modality.
            batch_shape: `(batch, frames)`.
            given: Noise that the caller drew, by modality.
            ratio: Share to remove; default: the configured ones, with the configured structure in the audio.
        """
        config, maskings = self.config, {}
        for modality, values in images.items():
            grid = self._grid(values)
            expected, noise = (*batch_shape, grid[0] * grid[1]), given[modality]
            if noise is None:
                noise = torch.rand(expected, device=values.device)
            elif noise.shape != expected:
                name = f"{modality}_noise" if ratio is None else f"contrastive_{modality}_noise"
                raise ValueError(
                    f"`{name}` has shape {tuple(noise.shape)}; expected (batch_size, num_frames, patches) {expected}."
                )
            noise = noise.flatten(0, 1)
            if modality == "audio" and ratio is None:
                noise = structured_noise(noise, grid, config.audio_mask_ratio, config.audio_mask_mode)
            configured = config.audio_mask_ratio if modality == "audio" else config.video_mask_ratio
            maskings[modality] = random_masking(noise, configured if ratio is None else ratio)
        return maskings

    def _towers(
        self,
        images: dict[str, Tensor],
        maskings: dict[str, Masking],
        batch_shape: torch.Size,
        output: CavMaeSyncForPreTrainingOutput,
        records: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """The visible tokens of both modalities, through their towers; notes the masks of the first pass."""
        tokens = {}
        for modality, values in images.items():
            record = None if records is None else records[modality]
            tokens[modality] = self.model.tower(modality)(values, maskings[modality].ids_keep, record)
            if f"{modality}_mask" not in output:
                output[f"{modality}_mask"] = maskings[modality].mask.unflatten(0, batch_shape)
        return tokens

    def _add_reconstruction(
        self,
        output: CavMaeSyncForPreTrainingOutput,
        tokens: dict[str, Tensor],
        images: dict[str, Tensor],
        maskings: dict[str, Masking],
        present: dict[str, Tensor | None],
        with_loss: bool,
    ) -> None:
        """Decode, and compare with the true patches."""
        grids = {modality: self._grid(values) for modality, values in images.items()}
        predictions = self._reconstruct(tokens, maskings, grids, present)
        losses = self._reconstruction_losses(predictions, images, maskings, present) if with_loss else {}
        for modality, prediction in predictions.items():
            output[f"{modality}_reconstruction"] = prediction.unflatten(0, output[f"{modality}_mask"].shape[:2])
            if with_loss:
                output[f"{modality}_reconstruction_loss"] = losses[modality]

    def _add_embeddings(self, output: CavMaeSyncForPreTrainingOutput, tokens: dict[str, Tensor]) -> None:
        for modality, values in tokens.items():
            embeds, patches = self.model.separate(modality, values)
            shape = output[f"{modality}_mask"].shape[:2]
            output[f"{modality}_embeds"] = embeds.unflatten(0, shape)
            output[f"{modality}_patch_embeds"] = patches.unflatten(0, shape)

    def _distil(
        self, output: CavMaeSyncForPreTrainingOutput, present: dict[str, Tensor | None], teacher: dict[str, Any]
    ) -> Tensor:
        """How far the embeddings are from their teacher's: 1 - cosine, mean over both modalities' present ones."""
        distances, counts = [], []
        for modality, target in teacher.items():
            embeds = output[f"{modality}_embeds"]
            if target.shape != embeds.shape:
                raise ValueError(
                    f"`{modality}_teacher_embeds` has shape {tuple(target.shape)}; expected {tuple(embeds.shape)}."
                )
            mask = present[modality]
            valid = torch.ones_like(embeds[..., 0]) if mask is None else mask
            distance = 1 - (embeds.float() * target.to(embeds.device).float()).sum(dim=-1)
            distances.append((distance * valid).sum())
            counts.append(valid.sum().to(distance.dtype))
        total, count = torch.stack(distances).sum(), torch.stack(counts).sum()
        return share_of_mean(total, count, self.model.trains_together)

    def _reconstruct(
        self,
        tokens: dict[str, Tensor],
        maskings: dict[str, Masking],
        grids: dict[str, tuple[int, int]],
        present: dict[str, Tensor | None],
    ) -> dict[str, Tensor]:
        patches = {modality: self.model.patch_tokens(values) for modality, values in tokens.items()}
        fused_mask = decoder_mask = None
        if any(mask is not None for mask in present.values()):
            fused = torch.cat(list(patches.values()), dim=1)
            fused_mask = self._attention_mask(fused, present, [p.shape[1] for p in patches.values()])
            lengths = [masking.ids_restore.shape[1] for masking in maskings.values()]
            decoded = fused.new_empty(fused.shape[0], sum(lengths), self.config.decoder_hidden_size)
            decoder_mask = self._attention_mask(decoded, present, lengths)
        fused = self.model.fuse(patches["audio"], patches["video"], fused_mask)
        return self.decoder(fused, maskings, grids, decoder_mask)

    def _attention_mask(self, inputs_embeds: Tensor, present: dict[str, Tensor | None], lengths: list[int]) -> Any:
        """Hide an absent modality's tokens from the other's; `lengths` are the token counts of (audio, video)."""
        samples, device = inputs_embeds.shape[0], inputs_embeds.device
        masks = [
            torch.ones(samples, dtype=torch.bool, device=device) if mask is None else mask.flatten()
            for mask in present.values()
        ]
        # With both absent nothing is counted in any loss; attending to something keeps the softmax defined.
        nothing = ~(masks[0] | masks[1])
        visible = torch.cat(
            [(mask | nothing).unsqueeze(1).expand(-1, length) for mask, length in zip(masks, lengths, strict=True)],
            dim=1,
        )
        return create_bidirectional_mask(config=self.config, inputs_embeds=inputs_embeds, attention_mask=visible)

    def _reconstruction_losses(
        self,
        predictions: dict[str, Tensor],
        images: dict[str, Tensor],
        maskings: dict[str, Masking],
        present: dict[str, Tensor | None],
    ) -> dict[str, Tensor]:
        losses = {}
        for modality, prediction in predictions.items():
            target = patchify(images[modality], self.config.patch_size)
            valid = present[modality]
            losses[modality] = reconstruction_loss(
                prediction,
                target,
                maskings[modality].mask,
                self.config.norm_pix_loss,
                None if valid is None else valid.flatten(),
                distributed=self.model.trains_together,
            )
        return losses

    def _fill(self, patches: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """True patches where visible, predicted ones where removed; all `(batch, frames, patches, values)`."""
        prediction = prediction.to(patches.dtype)
        if self.config.norm_pix_loss:
            mean, std = patch_statistics(patches)
            prediction = prediction * std + mean
        return torch.where(mask.unsqueeze(-1).bool(), prediction, patches)


__all__ = ["CavMaeSyncForPreTraining", "CavMaeSyncForPreTrainingOutput", "CavMaeSyncInpaintingOutput"]
