# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Labels of what is heard and seen in clips and in videos of hours, by a fine-tuned classifier or in words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data.failures import file_error
from ..model.configuration_text_cavmae_sync import audio_visual_config
from ..model.errors_cavmae_sync import Hint, InferenceError
from ..model.media_cavmae_sync import probe_media
from ..model.modeling_cavmae_sync import CavMaeSyncForAudioVisualClassification
from ..model.modeling_text_cavmae_sync import TextEncoding
from ..model.pipeline_inputs_cavmae_sync import ClipInput, check_modality, prepare_clip, read_clip
from ..model.pipelines_cavmae_sync import activation_for, apply_activation, check_classifier, check_top_k, top_labels
from ..model.pipelines_text_cavmae_sync import DEFAULT_TEMPLATE, check_labels, check_template
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model.video_processing_cavmae_sync import is_media_source
from .features import INPUTS, OFFSETS, move_inputs
from .moments import MediaSpan, OnError, Progress, read_ahead, read_moments, source_name
from .texts import tokenize

# Classifiers are trained on clips of about 10 s. Files up to this length are taken whole, as there.
WHOLE_SECONDS = 12.0
# Distance of 16 moments in 10 s.
HOP_SECONDS = 0.625


@dataclass
class ClipLabels:
    """
    What `classify` found in one clip.

    Attributes:
        clip: Name of the clip.
        labels: The highest scores as `{"label", "score"}`, highest first.
        scores: `(num_labels,)` float32, the mean over the clip's moments; of labels in words see `iter_classify`.
        num_moments: How many moments that is the mean of.
        spans: `(moments, 2)` float64, seconds of the file that each moment stands for; `None` unless asked for.
        moment_scores: `(moments, num_labels)` float32; `None` unless asked for. With a head that attends to several
            frames at once (`"frame_attention"`), a moment is as many of them as the model takes at a time.
        moment_labels: The highest scores of each moment; `None` unless asked for.
    """

    clip: str
    labels: list[dict[str, Any]]
    scores: Tensor
    num_moments: int
    spans: Tensor | None = None
    moment_scores: Tensor | None = None
    moment_labels: list[list[dict[str, Any]]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Names, labels and scores, ready for JSON."""
        result: dict[str, Any] = {"clip": self.clip, "num_moments": self.num_moments, "labels": self.labels}
        if self.spans is not None and self.moment_labels is not None:
            result["moments"] = [
                {"start": round(start, 3), "end": round(end, 3), "labels": labels}
                for (start, end), labels in zip(self.spans.tolist(), self.moment_labels, strict=True)
            ]
        return result


@dataclass
class _Part:
    """Scores of some moments in a row."""

    scores: Tensor  # (moments, num_labels)
    weights: Tensor  # (moments,), the frames that each stands for
    spans: Tensor  # (moments, 2)
    whole: Tensor | None = None  # (num_labels,), of all of them together, where that is no mean


def classify(model: PreTrainedModel, processor: CavMaeSyncProcessor, clips: Any, **options: Any) -> list[ClipLabels]:
    """Classify clips; arguments and errors as for `iter_classify`, which hands out one result at a time."""
    return list(iter_classify(model, processor, clips, **options))


def iter_classify(
    model: PreTrainedModel,
    processor: CavMaeSyncProcessor,
    clips: Any,
    *,
    labels: Sequence[str] | str | None = None,
    template: str = DEFAULT_TEMPLATE,
    modality: Literal["both", "audio", "video"] | None = None,
    top_k: int | None = 5,
    hop: float | None = None,
    num_frames: int | None = None,
    moments: bool = False,
    missing: Literal["error", "mask"] = "error",
    damaged: Literal["error", "keep"] = "error",
    channel: Literal["first", "mean"] | None = None,
    audio_track: int | str | None = None,
    progress: Progress | None = None,
    on_error: OnError | None = None,
) -> Iterator[ClipLabels]:
    """Classify clips, each by the mean of its moments' scores, as the published evaluation ensembles frames.

    A file of up to 12 s is taken whole: `num_frames` moments, spread over it as in training. A longer one is read
    moment by moment, every 0.625 s, in memory that does not grow with its length. Several clips are decoded at a time.

    With `labels` a model with text judges how well each fits: a clip as a whole, as it was trained to, and of a longer
    file the mean over pieces of `num_frames` moments.

    Args:
        model: In evaluation mode: a `CavMaeSyncForAudioVisualClassification`, or for `labels` a
            `CavMaeSyncTextDualEncoderModel`, as `load_model(name, use="text")` gives it.
        processor: Its processor.
        clips: A clip, or several (any iterable), in the forms that `read_clip` knows: paths, addresses, bytes, file
            objects, mappings with `"video"` and `"audio"`.
        labels: Labels in words, such as `["a dog", "rain"]`, or one text of labels between commas.
        template: The text of a label, with a place for it: `"the sound of {}"`.
        modality: `"both"`, `"audio"` or `"video"`; by default all that the model has.
        top_k: How many labels to name; `None` for all.
        hop: Seconds from one moment to the next; then every file is read moment by moment.
        num_frames: Moments of a clip taken whole, and the most that the model sees at once; default: the processor's.
        moments: Whether to keep the scores of every moment.
        missing: With both modalities `"error"`, or `"mask"` to go by one track where the other is missing.
        damaged: `"error"`, or `"keep"` to use what can be decoded of a damaged file.
        channel: `"first"` or `"mean"` of several audio channels; default: the processor's.
        audio_track: Which audio track of files that have several: its number, counted from 0, or its language such as
            `"de"`. Default: the one that a player plays.
        progress: Called with the number of clips that are done, of how many (0 where that is not known), and where
            in a long file the work is.
        on_error: Called with the name and the error of each clip that cannot be used; the others go on. Default: its
            error is raised.

    Yields:
        One result per clip that can be used, in order.

    Raises:
        InferenceError: The model has no classification head, or for `labels` no text encoder; or not that modality, or
            an option cannot work.
        MediaError: A clip cannot be used, and there is no `on_error`; it is named. Results before it have been handed
            out.
    """
    check_top_k(top_k)
    scorer: _Scorer | _WordScorer
    if labels is not None:
        scorer = _WordScorer(model, processor, check_labels(labels), check_template(template))
    elif hasattr(model, "get_text_features"):
        raise InferenceError("A model with text is given its labels in words.", hint=Hint("labels", "dog,rain"))
    elif hasattr(model, "head"):
        scorer = _Scorer(cast(CavMaeSyncForAudioVisualClassification, model))
    else:
        raise InferenceError(f"A {type(model).__name__} has no classification head; load a fine-tuned classifier.")
    track = check_modality(modality, audio_visual_config(model.config))
    if hop is not None and not hop > 0:
        raise InferenceError(f"`hop` is {hop!r}; it must be a number of seconds above 0.")
    processor = processor.with_audio_choice(channel, audio_track)
    several = isinstance(clips, Iterable) and not hasattr(clips, "ndim") and not hasattr(clips, "keys")
    listed = clips if several and not (is_media_source(clips) or isinstance(clips, ClipInput)) else [clips]
    total = len(listed) if hasattr(listed, "__len__") else 0
    show = progress or (lambda *_: None)
    read = partial(
        _read, processor, modality=track, hop=hop, num_frames=num_frames, missing=missing, damaged=damaged,
        device=None if model.device.type == "cpu" else model.device,
    )  # fmt: skip
    for done, (clip, items) in enumerate(read_ahead(listed, read)):

        def labelled(items: Iterator[Any] = items, done: int = done) -> ClipLabels:
            name = cast(ClipInput, next(items)).name
            show(done, total, name)
            parts = scored(items, name, done)
            return _combine(name, parts, scorer.names, top_k=top_k, moments=moments)

        def scored(items: Iterator[Any], name: str, done: int) -> Iterator[_Part]:
            for inputs, times, step, streamed in items:
                if streamed:
                    show(done, total, f"{name}: {times[-1]:.0f} s")
                yield _score(scorer, inputs, times, step)

        try:
            result = labelled()
        except Exception as error:  # of the clip, or of the model at it
            if on_error is None:
                raise
            on_error(source_name(clip), file_error(error, source_name(clip)))
        else:
            yield result
        show(done + 1, total, "")


def _read(
    processor: CavMaeSyncProcessor,
    clip: Any,
    *,
    modality: str,
    hop: float | None,
    num_frames: int | None,
    missing: str,
    damaged: str,
    device: torch.device | None,
) -> Iterator[Any]:
    """The clip as a `ClipInput`, then its moments, some at a time: inputs, times, seconds each, whether streamed."""
    given = read_clip(clip)
    yield given
    source = _streamed(given, modality, hop)
    options: dict[str, Any] = {"num_frames": num_frames, "missing": missing, "damaged": damaged}
    if source is None:
        inputs = prepare_clip(processor, given, modality, **options)
        times = inputs["frame_times"]
        step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
        yield inputs, times, step, False
        return
    span = MediaSpan(source, start=given.options.get("start"), end=given.options.get("end"))
    options |= {"want_audio": modality != "video", "want_video": modality != "audio"}
    hop = HOP_SECONDS if hop is None else hop
    processor = processor.with_audio_choice(audio_track=given.options.get("audio_track"))
    for inputs in read_moments(processor, span, hop=hop, device=device, **options):
        wanted = [pair for pair, track in zip(INPUTS, ("audio", "video"), strict=True) if modality in ("both", track)]
        names = [name for pair in wanted for name in pair] + ([OFFSETS] if modality != "video" else [])
        chosen = {name: inputs[name] for name in names if name in inputs}
        yield chosen, inputs["frame_times"][0].tolist(), hop, True


def _streamed(given: ClipInput, modality: str, hop: float | None) -> Any:
    """The file to read moment by moment, or `None` where the clip is taken whole.

    Raises:
        InferenceError: `hop` is given for what is not one file.
    """
    source = given.video if given.one_file else None
    if source is None and modality != "both" and is_media_source(getattr(given, modality)):
        source = getattr(given, modality)
    if source is None or given.options.get("frame_times") is not None:
        if hop is not None:
            raise InferenceError(
                f"{given.name} is not one file, which `hop` needs in order to read it moment by moment.",
                hint=Hint("hop", None, "take the clip whole"),
            )
        return None
    if hop is not None:
        return source
    duration = probe_media(source).duration
    if duration is not None:
        end = min(duration, given.options.get("end", duration))
        if end - given.options.get("start", 0.0) <= WHOLE_SECONDS:
            return None
    return source


class _Scorer:
    """A fine-tuned classifier."""

    def __init__(self, model: CavMaeSyncForAudioVisualClassification) -> None:
        check_classifier(model.config, model.config.name_or_path or "")
        self.model = model
        self.names = cast(Mapping[int, str], model.config.id2label)

    def __call__(self, given: dict[str, Any], present: Tensor, spans: Tensor) -> _Part:
        output = self.model(**move_inputs(given, self.model))
        function = activation_for(self.model.config)
        if output.frame_logits is not None:
            return _Part(apply_activation(output.frame_logits[0].cpu(), function), present.float(), spans)
        scores = apply_activation(output.logits.cpu(), function)
        return _Part(scores, present.float().sum(dim=0, keepdim=True), torch.stack((spans[0, 0], spans[-1, 1]))[None])


class _WordScorer:
    """A model with text and labels in words."""

    @torch.no_grad()
    def __init__(self, model: Any, processor: CavMaeSyncProcessor, labels: list[str], template: str) -> None:
        self.model = model
        self.names = dict(enumerate(labels))
        tokens = tokenize(model, processor, [template.format(label) for label in labels])
        found = model.get_text_features(**tokens)
        self.texts = TextEncoding(
            embeds=found.pooler_output, clip_embeds=found.text_clip_embeds, parts=found.text_part_embeds,
            sequence_weights=found.sequence_weights,
        )  # fmt: skip

    def __call__(self, given: dict[str, Any], present: Tensor, spans: Tensor) -> _Part:
        moved = move_inputs(given, self.model.av_model)
        output = self.model.av_model(**moved)
        embeds = {"audio": output.audio_embeds, "video": output.video_embeds}
        moments = {name: values for name, values in embeds.items() if values is not None}
        masks = {"audio": moved.get("padding_mask"), "video": moved.get("padding_mask_videos")}
        known = {name: mask.bool() for name in moments if (mask := masks[name]) is not None}
        clips = self.model.encode_clips(moments, known)
        function = self.model.config.text_loss
        whole = self.model.compare(self.texts, clips)[clips.targets[-1]][:, 0]
        sides = [self.model.moment_logits(name, self.texts, clips)[:, 0] for name in moments]
        best = torch.stack(sides).amax(dim=0).T  # heard or seen
        return _Part(
            scores=apply_activation(best.cpu(), function), weights=present.float(), spans=spans,
            whole=apply_activation(whole.cpu(), function),
        )  # fmt: skip


@torch.no_grad()
def _score(scorer: _Scorer | _WordScorer, inputs: dict[str, Any], times: list[float], step: float) -> _Part:
    """Scores of one batch of moments of a clip."""
    present = torch.zeros(len(times), dtype=torch.bool)
    given = {}
    for values, mask in INPUTS:
        here = inputs.get(mask)
        if values in inputs and (here is None or bool(here.any())):
            given[values] = inputs[values]
            present |= torch.ones(len(times), dtype=torch.bool) if here is None else here[0].cpu()
            if here is not None and not bool(here.all()):
                given[mask] = here
    if "input_values" in given and OFFSETS in inputs:
        given[OFFSETS] = inputs[OFFSETS]
    starts = torch.tensor(times, dtype=torch.float64) - step / 2
    spans = torch.stack((starts.clamp(min=0), starts + step), dim=1)
    if not given:  # nothing at the end of a video whose frames are not wanted: there is nothing to score
        return _Part(torch.zeros(len(times), len(scorer.names)), torch.zeros(len(times)), spans)
    return scorer(given, present, spans)


def _combine(
    name: str, parts: Iterator[_Part], names: Mapping[int, str], *, top_k: int | None, moments: bool
) -> ClipLabels:
    """The mean over all parts, which are kept only on request."""
    total, weight = torch.zeros(len(names), dtype=torch.float64), 0.0
    kept: list[_Part] = []
    for part in parts:
        if part.whole is None:
            total += part.weights.double() @ part.scores.double()
        else:
            total += part.weights.double().sum() * part.whole.double()
        weight += float(part.weights.sum())
        if moments:
            here = part.weights > 0
            kept.append(_Part(part.scores[here], part.weights[here], part.spans[here]))
    if not bool(total.isfinite().all()):
        raise InferenceError(f"{name}: its scores are NaN or infinite; load the model in float32, or another one.")
    if not weight:
        raise InferenceError(f"{name}: holds no moment of that modality; use another one, or another clip.")
    scores = (total / weight).float()
    result = ClipLabels(name, top_labels(scores, names, top_k), scores, round(weight))
    if moments:
        result.spans = torch.cat([part.spans for part in kept])
        result.moment_scores = torch.cat([part.scores for part in kept])
        result.moment_labels = [top_labels(row, names, top_k) for row in result.moment_scores]
    return result
