# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The pipeline of a model with text: labels in words, of clips and of their moments, without training."""

from collections.abc import Sequence
from typing import Any

import torch

from .pipelines_cavmae_sync import AudioVisualPipeline, apply_activation, check_finite_output, check_top_k

DEFAULT_TEMPLATE = "{}"


def check_labels(candidate_labels: Any) -> list[str]:
    """Labels as a list of texts; one text is labels between commas, as in transformers' zero-shot pipelines.

    Raises:
        ValueError: There are none, or one is no text or empty.
    """
    if isinstance(candidate_labels, str):
        candidate_labels = [label.strip() for label in candidate_labels.split(",")]
    if not isinstance(candidate_labels, Sequence) or not candidate_labels:
        raise ValueError("`candidate_labels` is missing; pass words such as ['a dog', 'rain'].")
    for label in candidate_labels:
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"`candidate_labels` holds {label!r}; every label must be a text that is not empty.")
    return list(candidate_labels)


def check_template(template: Any) -> str:
    """A template that has a place for the label.

    Raises:
        ValueError: It has none.
    """
    if not isinstance(template, str) or "{}" not in template:
        raise ValueError(f"`hypothesis_template` is {template!r}; it must have a place for the label, '{{}}'.")
    return template


class CavMaeSyncZeroShotClassificationPipeline(AudioVisualPipeline):
    """
    `zero-shot-audio-visual-classification`: which of some labels in words fit a clip, with a
    `CavMaeSyncTextDualEncoderModel`.

    ```python
    >>> from transformers import pipeline

    >>> classify = pipeline("zero-shot-audio-visual-classification", model="owner/name", trust_remote_code=True)
    >>> classify("clip.mp4", candidate_labels=["a dog", "rain", "a siren"])
    ```

    Called with a clip, or a list, generator or data set of clips (see `read_clip` for their forms), and with:

    Args:
        candidate_labels (`list` of `str`, or one `str` of labels between commas): The labels.
        hypothesis_template (`str`, *optional*, defaults to `"{}"`): The text of a label.
        moments (`bool`, *optional*, defaults to `False`): Whether to score every moment, too.
        function_to_apply (`str`, *optional*): `"sigmoid"` judges each label by itself, `"softmax"` chooses among
            them, `"none"` gives logits; by default as the model was trained.
        top_k (`int`, *optional*): How many labels to return; by default all.
        modality, missing, damaged, channel, audio_track, num_frames, batch_size: As in
            `audio-visual-classification`.

    Returns:
        For each clip a list of `{"label": str, "score": float}`, highest first; with `moments=True` each also has
        `"moments"`, a list of `{"time": seconds, "score": float}`.
    """

    _load_tokenizer: Any = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "get_text_features"):
            raise ValueError(
                f"{self.task} needs a CavMaeSyncTextDualEncoderModel, got a {type(self.model).__name__} without a "
                "text encoder."
            )
        if not self.processor.has_tokenizer:
            raise ValueError(
                "The processor has no tokenizer; pass one that was saved with it, such as "
                "`CavMaeSyncProcessor(feature_extractor, video_processor, tokenizer)`."
            )

    @property
    def config(self) -> Any:
        """The configuration of the audio-visual model."""
        return self.model.config.av_config

    def __call__(self, inputs: Any, candidate_labels: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        during: dict[str, Any] = {}
        if "candidate_labels" in options:
            during["labels"] = check_labels(options.pop("candidate_labels"))
        during["template"] = check_template(options.pop("hypothesis_template", DEFAULT_TEMPLATE))
        after: dict[str, Any] = {
            name: options.pop(name) for name in ("top_k", "function_to_apply", "moments") if name in options
        }
        check_top_k(after.get("top_k"))
        if after.get("function_to_apply", "none") not in ("softmax", "sigmoid", "none"):
            raise ValueError(
                f'`function_to_apply` is {after["function_to_apply"]!r}; use "softmax", "sigmoid" or "none".'
            )
        if "labels" in during:
            after["labels"] = during["labels"]
        return self._clip_options(options), during, after

    def _forward(  # type: ignore[override]
        self, inputs: dict[str, Any], labels: list[str] | None = None, template: str = DEFAULT_TEMPLATE
    ) -> dict[str, Any]:
        texts = [template.format(label) for label in check_labels(labels)]
        tokens = self.processor(text=texts, return_tensors="pt").to(self.device)
        output = self.model(**tokens, **self._encode(inputs))
        result = {"logits": check_finite_output(output.logits_per_text, "scores").T}  # one row per clip
        for modality in ("audio", "video"):
            logits = output.get(f"moment_logits_{modality}")
            if logits is not None:
                result[f"moment_logits_{modality}"] = logits.transpose(0, 1)
        return result | {"frame_times": inputs["frame_times"]}

    def postprocess(  # type: ignore[override]
        self,
        outputs: dict[str, Any],
        labels: Sequence[str] = (),
        top_k: int | None = None,
        function_to_apply: str | None = None,
        moments: bool = False,
    ) -> list[dict[str, Any]]:
        """Labels and scores of one clip."""
        kind = function_to_apply or self.model.config.text_loss
        scores = apply_activation(outputs["logits"][0], kind)
        found = scores.topk(len(scores) if top_k is None else min(top_k, len(scores)))
        result = [
            {"label": labels[place], "score": score}
            for score, place in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]
        if moments:
            sides = [outputs[name][0] for name in ("moment_logits_audio", "moment_logits_video") if name in outputs]
            best = torch.stack(sides).amax(dim=0)  # heard or seen
            times = torch.as_tensor(outputs["frame_times"]).flatten().tolist()
            every = apply_activation(best.T, kind).T.tolist()
            for entry in result:
                row = every[labels.index(entry["label"])]
                entry["moments"] = [{"time": time, "score": score} for time, score in zip(times, row, strict=False)]
        return result


__all__ = ["CavMaeSyncZeroShotClassificationPipeline", "check_labels", "check_template"]
