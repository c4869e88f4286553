# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Classification of clips from sound, picture or both, also where one of them is missing."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_cavmae_sync import CavMaeSyncConfig
from .layers_cavmae_sync import CavMaeSyncLayer, run_layers
from .modeling_cavmae_sync import (
    CavMaeSyncModel,
    CavMaeSyncPreTrainedModel,
)


@dataclass
class CavMaeSyncClassifierOutput(ModelOutput):
    """
    Output of [`CavMaeSyncForAudioVisualClassification`].

    Args:
        loss (`torch.Tensor` scalar, *optional*, returned when `labels` are given):
            Classification (or regression) loss.
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`):
            Scores of the clip. With the mean-pooling head and several frames, those whose probabilities are the mean
            of the frames' probabilities.
        frame_logits (`torch.Tensor` of shape `(batch_size, num_frames, num_labels)`, *optional*):
            Scores of every frame (mean-pooling head).
        audio_hidden_states, video_hidden_states (`tuple` of `(batch_size, num_frames, tokens, hidden_size)`):
            On `output_hidden_states=True`: the embeddings and the output of every tower layer.
        audio_attentions, video_attentions (`tuple` of `(batch_size, num_frames, heads, tokens, tokens)`):
            On `output_attentions=True` (eager attention): the towers' attention probabilities.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    frame_logits: Tensor | None = None
    audio_hidden_states: tuple[Tensor, ...] | None = None
    video_hidden_states: tuple[Tensor, ...] | None = None
    audio_attentions: tuple[Tensor, ...] | None = None
    video_attentions: tuple[Tensor, ...] | None = None


class CavMaeSyncMeanPoolingClassificationHead(nn.Module):
    """CAV-MAE's head: norm and linear over the mean of a sample's tokens."""

    def __init__(self, config: CavMaeSyncConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 1)

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits `(samples, num_labels)` of pooled tokens `(samples, hidden)`."""
        return self.classifier(self.norm(pooled))


class CavMaeSyncFrameTransformerClassificationHead(nn.Module):
    """CAV-MAE Sync's head: a class token attends to one token per frame, the modalities' global tokens joined."""

    def __init__(self, config: CavMaeSyncConfig):
        super().__init__()
        self.config = config
        scale = 2 if config.modality == "multimodal" else 1
        width = config.hidden_size * scale
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.layers = nn.ModuleList(
            [
                CavMaeSyncLayer(config, width, config.num_attention_heads, config.intermediate_size * scale)
                for _ in range(config.num_classifier_layers)
            ]
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(width, config.num_labels or 1)

    def forward(self, frames: Tensor, present: Tensor | None = None) -> Tensor:
        """Logits `(batch, num_labels)` of frame tokens `(batch, frames, width)`; `present` is False where absent."""
        tokens = torch.cat([self.class_token.expand(frames.shape[0], -1, -1), frames], dim=1)
        attention_mask = None
        if present is not None:
            attention_mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=tokens, attention_mask=nn.functional.pad(present, (1, 0), value=True)
            )
        return self.classifier(self.norm(run_layers(self.layers, tokens, attention_mask))[:, 0])


class CavMaeSyncForAudioVisualClassification(CavMaeSyncPreTrainedModel):
    """
    CAV-MAE Sync with a classification head over clips. `config.modality` says what it is fine-tuned with, and
    `config.classifier_type` which head it has. A multimodal model also takes one modality alone, by the published
    missing-modality path.

    Args:
        config (`CavMaeSyncConfig`): Sizes, head and labels.

    Example:

    ```python
    >>> import torch
    >>> from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncForAudioVisualClassification

    >>> config = CavMaeSyncConfig(num_modality_layers=1, num_labels=7)
    >>> model = CavMaeSyncForAudioVisualClassification(config).eval()
    >>> model(input_values=torch.rand(1, 2, 416, 128)).logits.shape
    torch.Size([1, 7])
    ```
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\."]
    # The losses are means over the batch: the Trainer must divide them by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: CavMaeSyncConfig):
        super().__init__(config)
        self.loss_type = "ForSequenceClassification"
        self.model = CavMaeSyncModel(config)
        heads = {
            "mean_pooling": CavMaeSyncMeanPoolingClassificationHead,
            "frame_attention": CavMaeSyncFrameTransformerClassificationHead,
        }
        self.head = heads[config.classifier_type](config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CavMaeSyncFrameTransformerClassificationHead):
            init.normal_(module.class_token, std=self.config.initializer_range)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        padding_mask_videos: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> tuple | CavMaeSyncClassifierOutput:
        """Classify clips.

        Args:
            pixel_values_videos: Frames `(batch_size, num_frames, num_channels, height, width)`, normalised.
            input_values: Audio windows `(batch_size, num_frames, audio_length, num_mel_bins)`, normalised.
            padding_mask: False for absent windows, `(batch_size, num_frames)`.
            padding_mask_videos: False for absent frames, `(batch_size, num_frames)`.
            labels: Class indices `(batch_size,)`, or 0/1 (also soft) targets `(batch_size, num_labels)` in floats for
                several labels; `config.problem_type` decides where set (`"single_label_classification"` also takes
                class probabilities `(batch_size, num_labels)`).
            output_attentions: Whether to return the towers' attention probabilities (eager attention only).
            output_hidden_states: Whether to return the towers' hidden states.
            kwargs: What else a processor or collator gives is ignored; unknown names are refused.

        Raises:
            ValueError: No input, or an input that the model's modality does not have.
            TypeError: An unknown argument.
        """
        images, present = self.model.check_inputs(
            pixel_values_videos, input_values, padding_mask, padding_mask_videos, **kwargs
        )
        batch_shape = next(iter(images.values())).shape[:2]
        records = {modality: self.model.make_record(output_attentions, output_hidden_states) for modality in images}
        tokens = {
            modality: self.model.tower(modality)(values.flatten(0, 1), record=records[modality])
            for modality, values in images.items()
        }
        any_present = self._any_present(present)
        if self.config.classifier_type == "frame_attention":
            frames = self._frame_tokens(tokens, present).unflatten(0, batch_shape)
            logits, frame_logits = self.head(frames, any_present), None
        else:
            frame_logits = self.head(self._pooled_tokens(tokens, present)).unflatten(0, batch_shape)
            logits = self._ensemble(frame_logits, any_present, labels)
        loss = None if labels is None else self._loss(logits, labels)
        output = CavMaeSyncClassifierOutput(loss=loss, logits=logits, frame_logits=frame_logits)
        for modality, record in records.items():
            for name, values in record.batch_first(modality, batch_shape).items():
                output[name] = values
        return output

    def _any_present(self, present: dict[str, Tensor | None]) -> Tensor | None:
        """True for frames that have sound or picture, `(batch, frames)`; `None` when all have."""
        masks = [mask for mask in present.values() if mask is not None]
        return None if len(masks) < len(present) else torch.stack(masks).any(dim=0)

    def _pooled_tokens(self, tokens: dict[str, Tensor], present: dict[str, Tensor | None]) -> Tensor:
        """Mean tokens `(samples, hidden)` by the paths that CAV-MAE publishes for full and missing modalities."""
        patches = {modality: self.model.patch_tokens(values) for modality, values in tokens.items()}
        if len(patches) == 1:
            return self._single_modality(*next(iter(patches.items())))
        pooled = self.model.fuse(patches["audio"], patches["video"]).mean(dim=1)
        for modality, other in (("audio", "video"), ("video", "audio")):
            mask = present[other]
            if mask is not None and (torch.compiler.is_compiling() or not bool(mask.all())):
                alone = self._single_modality(modality, patches[modality])
                pooled = torch.where(mask.flatten().unsqueeze(1), pooled, alone)
        return pooled

    def _single_modality(self, modality: str, patches: Tensor) -> Tensor:
        """One modality's mean token; in a multimodal model the mean of the modality's and the fused norms' passes."""
        own = self.model.norms[modality](run_layers(self.model.joint_layers, patches, None, modality)).mean(dim=1)
        if self.config.modality != "multimodal":
            return own
        fused = self.model.norms["fused"](run_layers(self.model.joint_layers, patches, None, "fused")).mean(dim=1)
        return (own + fused) / 2

    def _frame_tokens(self, tokens: dict[str, Tensor], present: dict[str, Tensor | None]) -> Tensor:
        """One token per sample for the frame-attention head, `(samples, width)`.

        As published: a multimodal model joins the towers' global tokens (means without them); a single-modality model
        takes the mean over its tokens after the joint layers with the fused norms. Nothing is published for a missing
        modality here: its half is zero.
        """
        if self.config.modality != "multimodal":
            values = next(iter(tokens.values()))
            return self.model.norms["fused"](run_layers(self.model.joint_layers, values, None, "fused")).mean(dim=1)
        halves = []
        for modality in ("audio", "video"):
            if modality not in tokens:
                halves.append(torch.zeros_like(next(iter(tokens.values()))[:, 0]))
                continue
            values = tokens[modality]
            half = values[:, 0] if self.config.use_global_tokens else values.mean(dim=1)
            here = present[modality]
            halves.append(half if here is None else half * here.flatten().unsqueeze(1).to(half.dtype))
        return torch.cat(halves, dim=1)

    def _problem_type(self, labels: Tensor | None) -> str:
        """The configured problem type, or the one that the labels show."""
        if self.config.problem_type is not None:
            return self.config.problem_type
        if self.config.num_labels == 1:
            return "regression"
        multi_label = labels is not None and labels.is_floating_point()
        return "multi_label_classification" if multi_label else "single_label_classification"

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """transformers' classification loss; class probabilities as labels (mixup, smoothing) are taken too."""
        if self._problem_type(labels) == "single_label_classification" and labels.is_floating_point():
            return nn.functional.cross_entropy(logits, labels.to(logits))
        return self.loss_function(labels, logits, self.config)

    def _ensemble(self, frame_logits: Tensor, present: Tensor | None, labels: Tensor | None) -> Tensor:
        """Logits `(batch, num_labels)` whose probabilities are the mean of the present frames' probabilities.

        The published evaluation averages the frames' predictions; these logits put that average through any loss or
        activation. One frame keeps its logits.
        """
        if frame_logits.shape[1] == 1:
            return frame_logits[:, 0]
        scores = frame_logits.float()
        weights = torch.ones_like(scores[..., :1]) if present is None else present.unsqueeze(-1).to(scores.dtype)
        problem_type = self._problem_type(labels)
        if problem_type == "regression":
            mean = (scores * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
            return mean.to(frame_logits.dtype)
        # Absent frames get no weight; a clip without any frame falls back to all of them instead of to NaN.
        log_weights = torch.where((weights > 0) | (weights.sum(dim=1, keepdim=True) == 0), 0.0, -math.inf)
        if problem_type == "multi_label_classification":
            positive = (nn.functional.logsigmoid(scores) + log_weights).logsumexp(dim=1)
            negative = (nn.functional.logsigmoid(-scores) + log_weights).logsumexp(dim=1)
            return (positive - negative).to(frame_logits.dtype)
        log_probabilities = scores.log_softmax(dim=-1) + log_weights
        counts = log_weights.exp().sum(dim=1)
        return (log_probabilities.logsumexp(dim=1) - counts.log()).to(frame_logits.dtype)


__all__ = ["CavMaeSyncClassifierOutput", "CavMaeSyncForAudioVisualClassification"]
