# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Pipelines: clips are classified, ranked for a query or turned into features in one call of `pipeline(...)`.

Three tasks for transformers' `pipeline`: `audio-visual-classification`, `audio-visual-retrieval` and
`audio-visual-feature-extraction`. Importing the package registers them; a saved folder names them in `config.json` and
carries this file, so that they also work without the package, with `trust_remote_code=True`.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Pipeline, PreTrainedModel

from .configuration_cavmae_sync import CavMaeSyncConfig
from .errors_cavmae_sync import ModelError
from .feature_extraction_cavmae_sync import check_channel
from .media_selection_cavmae_sync import check_audio_track
from .pipeline_inputs_cavmae_sync import MODALITIES, check_modality, prepare_clip, read_clip
from .processing_cavmae_sync import CavMaeSyncProcessor

STRATEGIES = ("diagonal_mean", "diagonal_max", "mean", "max")
_MASKS = {"input_values": "padding_mask", "pixel_values_videos": "padding_mask_videos"}
_CLASSIFIER = "CavMaeSyncForAudioVisualClassification"


def activation_for(config: CavMaeSyncConfig, function_to_apply: str | None = None) -> str:
    """Which function makes scores of a classifier's logits: `"softmax"`, `"sigmoid"` or `"none"`.

    Raises:
        ValueError: Another one is asked for.
    """
    if function_to_apply is not None:
        if function_to_apply not in ("softmax", "sigmoid", "none"):
            raise ValueError(f'`function_to_apply` is {function_to_apply!r}; use "softmax", "sigmoid" or "none".')
        return function_to_apply
    problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    return {"regression": "none", "multi_label_classification": "sigmoid"}.get(problem, "softmax")


def apply_activation(logits: Tensor, function: str) -> Tensor:
    """Scores `(..., num_labels)` float32 of logits."""
    logits = logits.float()
    return {"softmax": lambda: logits.softmax(-1), "sigmoid": logits.sigmoid, "none": lambda: logits}[function]()


def top_labels(scores: Tensor, names: Mapping[int, str], top_k: int | None = 5) -> list[dict[str, Any]]:
    """The highest of a clip's scores `(num_labels,)` as `{"label", "score"}`, highest first; `None` gives all."""
    found = scores.topk(len(scores) if top_k is None else min(top_k, len(scores)))
    return [
        {"label": names[place], "score": score}
        for score, place in zip(found.values.tolist(), found.indices.tolist(), strict=True)
    ]


def check_top_k(top_k: Any) -> None:
    """Refuse what is no number of results."""
    whole = isinstance(top_k, int) and not isinstance(top_k, bool)
    if top_k is not None and not (whole and top_k >= 1):
        raise ValueError(f"`top_k` is {top_k!r}; use a whole number of at least 1, or None for all.")


def check_classifier(config: CavMaeSyncConfig, name: str) -> None:
    """Refuse a checkpoint whose head would be made of random numbers.

    Raises:
        ValueError: It was saved as another class.
    """
    kinds = getattr(config, "architectures", None) or []
    if kinds and _CLASSIFIER not in kinds:
        raise ValueError(
            f"{name or 'The model'} was saved as {', '.join(kinds)}, without a classification head; name a fine-tuned "
            f"{_CLASSIFIER}, or save the model that you have just tuned before you use it here."
        )


def check_finite_output(values: Tensor, what: str) -> Tensor:
    """What a model gives, unless it is NaN or infinite."""
    if not bool(torch.isfinite(values).all()):
        dtype = str(values.dtype).removeprefix("torch.")
        raise ModelError(
            f"The model gives {what} that are NaN or infinite, computed in {dtype}; load it in float32, or take "
            "another one."
        )
    return values


class AudioVisualPipeline(Pipeline):
    """What the three pipelines share: the forms of clips, and saving."""

    processor: CavMaeSyncProcessor
    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_feature_extractor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokenizer = None  # the processor's stand-in for one would have a part in making batches
        if self.processor is None:
            raise ValueError(
                f"The {self.task} pipeline needs the model's processor; pass "
                "`processor=CavMaeSyncProcessor.from_config(model.config)`, or a folder that holds one."
            )

    @property
    def config(self) -> CavMaeSyncConfig:
        """The model's configuration."""
        return self.model.config  # type: ignore[return-value]

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if inputs is None or (isinstance(inputs, list | tuple) and not inputs):
            raise ValueError(f"The {self.task} pipeline got no clips; pass at least one.")
        return super().__call__(list(inputs) if isinstance(inputs, tuple) else inputs, *args, **kwargs)

    def _clip_options(self, options: dict[str, Any], with_modality: bool = True) -> dict[str, Any]:
        """Arguments of `preprocess` among a call's options; refuses those that there are not."""
        known: dict[str, Any] = {
            name: options.pop(name)
            for name in ("num_frames", "missing", "damaged", "channel", "audio_track")
            if name in options
        }
        if with_modality and (modality := options.pop("modality", None)) is not None:
            known["modality"] = check_modality(modality, self.config)
        if options:
            raise TypeError(f"The {self.task} pipeline has no option {', '.join(map(repr, sorted(options)))}.")
        for name, other in (("missing", "mask"), ("damaged", "keep")):
            if known.get(name, "error") not in ("error", other):
                raise ValueError(f'`{name}` is {known[name]!r}; it must be "error" or "{other}".')
        check_audio_track(known.get("audio_track"))
        if known.get("channel") is not None:
            check_channel(known["channel"])
        return known

    def preprocess(self, clip: Any, modality: str | None = None, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """The model's inputs of one clip."""
        return prepare_clip(self.processor, clip, check_modality(modality, self.config), **options)

    def _encode(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The model's inputs, in its type, without a modality that no clip of the batch has."""
        given = {}
        for values, mask in _MASKS.items():
            if values in inputs and bool(inputs[mask].any()):
                given[values] = inputs[values].to(self.dtype)
                if not bool(inputs[mask].all()):
                    given[mask] = inputs[mask]
        if "input_values" in given and "window_offsets" in inputs:
            given["window_offsets"] = inputs["window_offsets"]
        return given

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write the model, its processor and the code of both, this file included, as a folder to load again.

        Args:
            save_directory: The folder; it is made where it does not exist.
            kwargs: Passed on to both `save_pretrained` methods.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


class CavMaeSyncClassificationPipeline(AudioVisualPipeline):
    """
    `audio-visual-classification`: labels of clips by audio and video, with a fine-tuned
    `CavMaeSyncForAudioVisualClassification`. The frames of a clip are ensembled as in the published evaluation.

    ```python
    >>> from transformers import pipeline

    >>> classify = pipeline("audio-visual-classification", model="owner/name", trust_remote_code=True)
    >>> classify("clip.mp4", top_k=3)
    ```

    Called with a clip, or a list, generator or data set of clips (see `read_clip` for their forms), and with:

    Args:
        top_k (`int`, *optional*, defaults to 5): How many labels to return; `None` for all.
        function_to_apply (`str`, *optional*): `"softmax"`, `"sigmoid"` or `"none"`; by default as the model was
            trained.
        modality (`str`, *optional*): `"both"`, `"audio"` or `"video"`; by default all that the model has.
        missing (`str`, *optional*): With both modalities: `"error"`, or `"mask"` to classify a clip that lacks a
            track by the other one.
        damaged (`str`, *optional*): `"error"`, or `"keep"` to use what can be decoded of a damaged file.
        channel (`str`, *optional*): `"first"` or `"mean"` of several audio channels; default: the processor's.
        audio_track (`int` or `str`, *optional*): Which audio track of files that have several: its number, counted
            from 0, or its language such as `"de"`; by default the one that a player plays.
        num_frames (`int`, *optional*): Moments per clip; default: the processor's.
        batch_size (`int`, *optional*): Clips that the model sees at once.

    Returns:
        For each clip a list of `{"label": str, "score": float}`, highest first.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "head"):
            raise ValueError(
                f"{self.task} needs a {_CLASSIFIER}, got a {type(self.model).__name__} without a classification head."
            )
        check_classifier(self.config, self.config.name_or_path or "")

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        after = {name: options.pop(name) for name in ("top_k", "function_to_apply") if name in options}
        check_top_k(after.get("top_k"))
        activation_for(self.config, after.get("function_to_apply"))
        return self._clip_options(options), {}, after

    def _forward(self, inputs: dict[str, Any], **_: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": check_finite_output(self.model(**self._encode(inputs)).logits, "scores")}

    def postprocess(  # type: ignore[override]
        self, outputs: dict[str, Tensor], top_k: int | None = 5, function_to_apply: str | None = None
    ) -> list[dict[str, Any]]:
        """Labels and scores of one clip."""
        scores = apply_activation(outputs["logits"][0], activation_for(self.config, function_to_apply))
        return top_labels(scores, self.config.id2label, top_k)  # type: ignore[arg-type]


class _EmbeddingPipeline(AudioVisualPipeline):
    """What the two pipelines of the encoder share."""

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        # Of a model with a head, the encoder alone runs.
        super().__init__(getattr(model, "base_model", model), *args, **kwargs)

    def _embed(self, inputs: dict[str, Any], patches: bool = False) -> dict[str, Any]:
        """Embeddings of a batch; zeros for a modality that no clip of it has."""
        given = self._encode(inputs)
        encoded = self.model(**given) if given else {}
        result: dict[str, Any] = {}
        for modality, (values, mask) in zip(("audio", "video"), _MASKS.items(), strict=True):
            if values not in inputs:
                continue
            embeds = encoded.get(f"{modality}_embeds")
            if embeds is None:
                embeds = inputs[values].new_zeros(*inputs[values].shape[:2], self.config.hidden_size)
            result[f"{modality}_embeds"] = check_finite_output(embeds, f"{modality} embeddings")
            result[mask] = inputs[mask]
            if patches and encoded.get(f"{modality}_patch_embeds") is not None:
                result[f"{modality}_patch_embeds"] = encoded[f"{modality}_patch_embeds"]
        return result | {name: inputs[name] for name in ("frame_times", "window_times") if name in inputs}


class CavMaeSyncFeatureExtractionPipeline(_EmbeddingPipeline):
    """
    `audio-visual-feature-extraction`: embeddings of every moment of a clip, with its times, as numpy arrays.

    ```python
    >>> from transformers import pipeline

    >>> extract = pipeline("audio-visual-feature-extraction", model="owner/name", trust_remote_code=True)
    >>> extract("clip.mp4")["audio_embeds"].shape
    (16, 768)
    ```

    Called with a clip, or a list, generator or data set of clips (see `read_clip` for their forms), and with:

    Args:
        modality (`str`, *optional*): `"both"`, `"audio"` or `"video"`; by default all that the model has.
        return_patches (`bool`, *optional*, defaults to `False`): Whether to return patch embeddings, too.
        missing, damaged, channel, audio_track, num_frames, batch_size: As in `audio-visual-classification`.

    Returns:
        For each clip a dictionary. With audio `audio_embeds` `(moments, hidden)` float32, zeros where a window is
        absent, `padding_mask` `(moments,)` bool, False there, `audio_pooled` `(hidden,)`, the normalised mean, and
        `window_times` `(moments, 2)`, seconds. With video likewise `video_embeds`, `padding_mask_videos` and
        `video_pooled`. With both `similarity` `(moments, moments)`, cosines of windows (rows) and frames. Always
        `frame_times` `(moments,)`, seconds, NaN where decoded frames came without a rate. On request
        `audio_patch_embeds` and `video_patch_embeds` `(moments, patches, hidden)`.
    """

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        during = {"return_patches": bool(options.pop("return_patches"))} if "return_patches" in options else {}
        return self._clip_options(options), during, {}

    def _forward(self, inputs: dict[str, Any], return_patches: bool = False) -> dict[str, Any]:  # type: ignore[override]
        return self._embed(inputs, return_patches)

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, np.ndarray]:  # type: ignore[override]
        """Arrays of one clip, without what filled up its batch."""
        count = len(outputs["frame_times"])
        result: dict[str, np.ndarray] = {}
        for name, value in outputs.items():
            if isinstance(value, Tensor):
                value = value[0, :count]
                result[name] = (value.float() if value.is_floating_point() else value).numpy()
            else:
                result[name] = np.asarray(value, dtype=np.float64)
        for modality in ("audio", "video"):
            if f"{modality}_embeds" in result:
                total = result[f"{modality}_embeds"].sum(axis=0)
                result[f"{modality}_pooled"] = total / max(float(np.linalg.norm(total)), 1e-12)
        if "audio_embeds" in result and "video_embeds" in result:
            result["similarity"] = result["audio_embeds"] @ result["video_embeds"].T
        return result


class CandidateClips:
    """Clips to rank, embedded once and kept; made by `CavMaeSyncRetrievalPipeline.embed_candidates`.

    Attributes:
        names: One per clip, as results name them.
        clips: As they were given.
    """

    def __init__(self, names: list[str], clips: list[Any], pipeline: "CavMaeSyncRetrievalPipeline", options: dict):
        self.names, self.clips = names, clips
        self._pipeline, self._options = pipeline, options
        self._sides: dict[str, list[dict[str, Any] | None]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def side(self, modality: str) -> list[dict[str, Any] | None]:
        """Every clip's embeddings of `"audio"` or `"video"`, made at the first call; `None` for clips without it."""
        if modality not in self._sides:
            encoded = self._pipeline.embed(self.clips, modality, **self._options)
            self._sides[modality] = [one if bool(one["present"].any()) else None for one in encoded]
        return self._sides[modality]


class CavMaeSyncRetrievalPipeline(_EmbeddingPipeline):
    """
    `audio-visual-retrieval`: ranks clips for a query: by their video for an audio query, by their audio for
    a video query.

    ```python
    >>> from transformers import pipeline

    >>> retrieve = pipeline("audio-visual-retrieval", model="owner/name", trust_remote_code=True)
    >>> retrieve("bark.wav", candidates=["dog.mp4", "rain.mp4"])
    >>> clips = retrieve.embed_candidates(["dog.mp4", "rain.mp4"])  # once, for many queries
    >>> retrieve(["bark.wav", "dog.jpg"], candidates=clips)
    ```

    Called with a query, or a list or generator of queries (see `read_clip` for their forms), and with:

    Args:
        candidates: Clips to rank: a list of clips in any of the same forms, a mapping from names to clips, or what
            `embed_candidates` returned.
        by (`str`, *optional*): `"audio"`: the query's audio is compared with the candidates' video; `"video"`: its
            video with their audio. By default by the one track that the query has.
        strategy (`str`, *optional*): `"diagonal_mean"` (moment i of the query with moment i of a candidate, as
            published; the default where both have as many moments), `"diagonal_max"`, `"mean"` or `"max"` of all pairs
            of moments (`"max"` is the default otherwise, as for a still image).
        top_k (`int`, *optional*, defaults to 10): How many candidates to return; `None` for all.
        missing (`str`, *optional*): `"error"`, or `"mask"` to leave out candidates that lack the track.
        damaged, channel, audio_track, num_frames, batch_size: As in `audio-visual-classification`.

    Returns:
        For each query a list of `{"candidate": str, "index": int, "score": float, "time": float, "query_time":
        float}`, best first: the cosine by the strategy, and when in the candidate and in the query the two moments lie
        that are most alike (seconds).
    """

    def __call__(self, inputs: Any, *args: Any, candidates: Any = None, **kwargs: Any) -> Any:
        if candidates is None:
            raise ValueError(
                "audio-visual-retrieval needs clips to rank: retrieve(query, candidates=[...]), or what "
                "`embed_candidates` returned."
            )
        if not isinstance(candidates, CandidateClips):
            given = ("missing", "damaged", "channel", "audio_track", "num_frames", "batch_size", "num_workers")
            candidates = self.embed_candidates(candidates, **{name: kwargs[name] for name in given if name in kwargs})
        return super().__call__(inputs, *args, candidates=candidates, **kwargs)

    def embed_candidates(self, candidates: Any, **options: Any) -> CandidateClips:
        """Keep clips for several queries; each modality is embedded when a query first needs it.

        Args:
            candidates: A list of clips, or a mapping from names to clips.
            options: `num_frames`, `missing`, `damaged`, `channel`, `audio_track`, `batch_size` and `num_workers`, as
                in a call.
        """
        if isinstance(candidates, Mapping):
            names, clips = [str(name) for name in candidates], list(candidates.values())
        elif isinstance(candidates, str | bytes | os.PathLike) or not isinstance(candidates, Iterable):
            raise ValueError(
                f"`candidates` is a {type(candidates).__name__}; pass a list of clips, or names to clips."
            )
        else:
            clips = list(candidates)
            names = [str(clip) if isinstance(clip, str | os.PathLike) else "" for clip in clips]
            names = [name or f"candidate {place}" for place, name in enumerate(names)]
        if not clips:
            raise ValueError("`candidates` is empty; pass at least one clip to rank.")
        return CandidateClips(names, clips, self, options)

    def embed(self, clips: list[Any], modality: str, **options: Any) -> list[dict[str, Any]]:
        """Embeddings of one modality of clips.

        Returns:
            For each clip `embeds` `(moments, hidden)`, `present` `(moments,)` and `times`, a list of seconds.
        """
        return super().__call__(list(clips), by=modality, candidates=None, **options)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        before: dict[str, Any] = {}
        by = options.pop("by", None)
        if by is not None:
            if by not in ("audio", "video"):
                raise ValueError(f'`by` is {by!r}; use "audio" (audio to video) or "video" (video to audio).')
            before["by"] = by
        after = {name: options.pop(name) for name in ("candidates", "strategy", "top_k") if name in options}
        check_top_k(after.get("top_k"))
        if after.get("strategy") not in (None, *STRATEGIES):
            raise ValueError(f"`strategy` is {after['strategy']!r}; choose one of {', '.join(STRATEGIES)}.")
        return before | self._clip_options(options, with_modality=False), {}, after

    def preprocess(self, clip: Any, by: str | None = None, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """The model's inputs of a query or candidate."""
        if self.config.modality != "multimodal":
            raise ValueError(
                f"The model has the {self.config.modality} tower alone; retrieval compares audio and video."
            )
        given = read_clip(clip)
        if by is None:
            tracks = given.tracks()
            if len(tracks) != 1:
                raise ValueError(
                    f'{given.name} has audio and video; say which is the query: by="audio" or by="video".'
                )
            by = tracks[0]
        if options.get("missing") == "mask" and by not in given.tracks():
            return self._absent(by, options.get("num_frames"))
        return prepare_clip(self.processor, given, by, choice="by", **options)

    def _absent(self, modality: str, num_frames: int | None) -> dict[str, Any]:
        """Inputs of a clip that lacks the track, shaped like those of one that has it, with all absent."""
        count = num_frames or self.processor.feature_extractor.num_frames
        config = self.config
        absent = torch.zeros(1, count, dtype=torch.bool)
        times: dict[str, Any] = {"frame_times": [0.0] * count}
        if modality == "audio":
            values = torch.zeros(1, count, config.heard_length, config.num_mel_bins)
            if config.audio_context == "clip":
                times = times | {"window_offsets": torch.zeros(1, count, dtype=torch.long)}
            return times | {"input_values": values, "padding_mask": absent, "window_times": [[0.0, 0.0]] * count}
        shape = (config.frame_channels, config.image_size, config.image_size)
        return times | {"pixel_values_videos": torch.zeros(1, count, *shape), "padding_mask_videos": absent}

    def _forward(self, inputs: dict[str, Any], **_: Any) -> dict[str, Any]:  # type: ignore[override]
        return self._embed(inputs)

    def postprocess(  # type: ignore[override]
        self,
        outputs: dict[str, Any],
        candidates: CandidateClips | None = None,
        strategy: str | None = None,
        top_k: int | None = 10,
    ) -> Any:
        """The ranking for one query; the embeddings themselves where there is nothing to rank."""
        times = outputs["frame_times"]
        modality = "audio" if "audio_embeds" in outputs else "video"
        mask = "padding_mask" if modality == "audio" else "padding_mask_videos"
        query = {
            "embeds": outputs[f"{modality}_embeds"][0, : len(times)].float(),
            "present": outputs[mask][0, : len(times)],
            "times": times,
        }
        if candidates is None:
            return query
        if not bool(query["present"].any()):
            raise ValueError(f"The query has no {modality}; use another one, or the other `by`.")
        ranked = []
        for index, candidate in enumerate(candidates.side("video" if modality == "audio" else "audio")):
            if candidate is not None:
                score, own, other = compare_clips(query, candidate, strategy)
                ranked.append(
                    {
                        "candidate": candidates.names[index],
                        "index": index,
                        "score": score,
                        "time": candidate["times"][other],
                        "query_time": times[own],
                    }
                )
        ranked.sort(key=lambda entry: -entry["score"])
        return ranked[:top_k]


def compare_clips(
    query: Mapping[str, Any], candidate: Mapping[str, Any], strategy: str | None = None
) -> tuple[float, int, int]:
    """How alike two clips are, by the embeddings of their moments.

    Args:
        query: `embeds` `(moments, hidden)`, L2-normalised, and `present` `(moments,)`.
        candidate: Likewise.
        strategy: One of `STRATEGIES`; by default `"diagonal_mean"` where both have as many moments (and more than
            one), else `"max"`.

    Returns:
        The similarity (-inf where no two moments can be compared), and the places of the most alike moments in the
        query and in the candidate; with a diagonal strategy, of the most alike pair in the same place.

    Raises:
        ValueError: A diagonal strategy for different numbers of moments.
    """
    similarity = query["embeds"] @ candidate["embeds"].T  # (query moments, candidate moments)
    here = query["present"][:, None] & candidate["present"][None]
    rows, columns = similarity.shape
    if strategy is None:
        strategy = "diagonal_mean" if rows == columns and rows > 1 else "max"
    if strategy.startswith("diagonal"):
        if rows != columns:
            raise ValueError(
                f'strategy "{strategy}" compares moment i with moment i, but the query has {rows} moments and a '
                f'candidate {columns}; use "mean" or "max".'
            )
        here = here & torch.eye(rows, dtype=torch.bool)
    best = int(similarity.masked_fill(~here, -torch.inf).argmax())
    own, other = divmod(best, columns)
    if not bool(here.any()):
        return -float("inf"), own, other
    values = similarity[here]
    score = values.max() if strategy.endswith("max") else values.mean()
    return float(score), own, other


__all__ = [
    "MODALITIES",
    "STRATEGIES",
    "AudioVisualPipeline",
    "CandidateClips",
    "CavMaeSyncClassificationPipeline",
    "CavMaeSyncFeatureExtractionPipeline",
    "CavMaeSyncRetrievalPipeline",
    "activation_for",
    "apply_activation",
    "check_classifier",
    "check_finite_output",
    "check_top_k",
    "compare_clips",
    "top_labels",
]
