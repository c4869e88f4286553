# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What a model with text knows of a set, in wordings seen in training and in others."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..metrics import mean_average_precision, roc_auc
from ..model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel
from ..syncworld.captions import Statement, Wording, statements, write
from ..syncworld.voices import CLASS_NAMES
from .text_data import KnownTexts, TextSet, moments_inside


@torch.no_grad()
def evaluate_text(
    model: CavMaeSyncTextDualEncoderModel, texts: KnownTexts, clips: TextSet, seed: int = 0
) -> dict[str, Any]:
    """Metrics of texts and clips, in per cent but for areas under the ROC curve, each beside its chance.

    Of a SyncWorld set in wordings of training and in others: `text_to_clip_r1` and `clip_to_text_r1` by the sentence
    that names exactly what sounds, with audio alone, video alone and both; `zero_shot_map` of the classes by name, and
    `zero_shot_top1`; `moment_auroc` of names at moments; `twins`: which of two clips that differ in time alone an
    order is true of; `opposites`: a true sentence against the same with two words exchanged. Of other sets with
    captions `text_to_clip_r1` and `text_to_clip_r10`: whether one of the clips of which a caption is true is the
    first, or among the first ten, captions that say the same being asked once; `clip_to_text_r1` and `_r10`
    likewise; both also with audio alone and video alone; and, where captions have spans, `moment_auroc` of the moments
    of their clips inside of the spans against those outside.

    Args:
        model: In evaluation mode.
        texts: Its text encoder.
        clips: The set.
        seed: Seeds the wordings.
    """
    present = {side: mask for side, mask in clips.present.items() if not bool(mask.all())}
    encoded = model.encode_clips(
        {side: values.to(model.device) for side, values in clips.moments.items()},
        {side: mask.to(model.device) for side, mask in present.items()},
    )

    def logits(words: Sequence[str]) -> dict[str, Tensor]:
        return {name: values.cpu() for name, values in model.compare(texts.encode(words), encoded).items()}

    if clips.records is None:
        if clips.captions is None:
            return {}
        return _caption_metrics(model, texts, clips, encoded)
    result: dict[str, Any] = {"clips": len(clips), "chance": {"recall": 100 / len(clips), "twins": 50, "auroc": 0.5}}
    known = [statements(record) for record in clips.records]
    audible = torch.tensor([[name in record["label_names"] for name in CLASS_NAMES] for record in clips.records])
    partners = clips.twins
    for wording in ("seen", "unseen"):
        rng = np.random.default_rng(seed)
        found: dict[str, Any] = {}
        if len({row[0].key for row in known}) == len(known):  # no two clips with the same sounds
            by_target = logits([write(row[0], rng, wording) for row in known])
            right = torch.arange(len(clips))
            for target, scores in by_target.items():
                found[f"text_to_clip_r1_{target}"] = _share(scores.argmax(dim=1) == right)
            found["clip_to_text_r1"] = _share(by_target["audio_video"].argmax(dim=0) == right)
        found |= _class_metrics(model, texts, clips, encoded, audible, rng, wording)
        found |= _order_metrics(known, partners, logits, rng, wording)
        result[wording] = found
    return result


def _caption_metrics(
    model: CavMaeSyncTextDualEncoderModel, texts: KnownTexts, clips: TextSet, encoded: Any
) -> dict[str, Any]:
    """Captions of a set that is no SyncWorld, against its clips and their moments."""
    assert clips.captions is not None
    asked: dict[str, str] = {}
    for row in clips.captions.captions:
        for caption in row:
            asked.setdefault(caption.key, caption.text)
    if not asked:
        return {}
    known = texts.encode(list(asked.values()))
    right = torch.tensor([[key in true for true in map(set, clips.captions.keys)] for key in asked])
    found: dict[str, Any] = {}
    for target, scores in model.compare(known, encoded).items():
        ending = "" if target == "audio_video" else f"_{target}"
        found |= _recall("text_to_clip", ending, scores.cpu(), right)
        found |= _recall("clip_to_text", ending, scores.cpu().T, right.T)
    numbers = {key: number for number, key in enumerate(asked)}
    spans = [
        (numbers[caption.key], clip, caption.spans)
        for clip, row in enumerate(clips.captions.captions)
        for caption in row
        if caption.spans
    ]
    for side in ("audio", "video") if spans else ():
        moments = model.moment_logits(side, known, encoded).cpu().numpy()
        there = clips.present[side].numpy()
        values = np.concatenate([moments[text, clip][there[clip]] for text, clip, _ in spans])
        inside = np.concatenate([moments_inside(own, clips.times[clip])[there[clip]] for _, clip, own in spans])
        if 0 < inside.sum() < len(inside):
            found[f"moment_auroc_{side}"] = roc_auc(inside.astype(int), values)
    return found | {"texts": len(asked)}


def _recall(name: str, ending: str, scores: Tensor, right: Tensor) -> dict[str, float]:
    """Recall at 1 and 10 of rows that have something right, in per cent; without an ending also that of chance."""
    asked = right.any(dim=1)
    scores, right = scores[asked], right[asked]
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    ranks = ((scores >= best) & ~right).sum(dim=1)
    found = {f"{name}_r{k}{ending}": _share(ranks < k) for k in (1, 10)}
    if not ending:
        prefix = "chance" if name == "text_to_clip" else f"{name}_chance"
        count, wrong = right.shape[1], (~right).sum(dim=1).tolist()
        for which, k in ((prefix, 1), (f"{prefix}_r10", min(10, count))):  # of k drawn none is right
            found[which] = 100 * float(np.mean([1 - math.comb(others, k) / math.comb(count, k) for others in wrong]))
    return found


def flat_metrics(metrics: Mapping[str, Any], start: str = "") -> dict[str, float]:
    """Metrics in one level, such as `unseen_zero_shot_map`; `chance` alone, of captions, is `chance_recall`."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= flat_metrics(value, f"{start}{name}_")
        else:
            found["chance_recall" if name == "chance" else f"{start}{name}"] = value
    return found


def _class_metrics(
    model: CavMaeSyncTextDualEncoderModel,
    texts: KnownTexts,
    clips: TextSet,
    encoded: Any,
    audible: Tensor,
    rng: np.random.Generator,
    wording: Wording,
) -> dict[str, float]:
    """Zero-shot classes of clips and moments."""
    names = texts.encode([write(Statement("heard", (name,)), rng, wording) for name in CLASS_NAMES])
    scores = model.compare(names, encoded)["audio_video"].T.cpu()
    truth = np.zeros((len(CLASS_NAMES), *clips.times.shape), dtype=bool)
    for place, record in enumerate(clips.records or ()):
        for event in record["events"]:
            inside = (clips.times[place] >= event["start"]) & (clips.times[place] < event["end"])
            truth[event["label"], place] |= inside
    found = {
        "zero_shot_map": 100 * mean_average_precision(audible.int().numpy(), scores.numpy()),
        "zero_shot_top1": _share(audible[torch.arange(len(audible)), scores.argmax(dim=1)]),
    }
    for side in ("audio", "video"):
        moments = model.moment_logits(side, names, encoded).cpu().numpy()
        there = np.broadcast_to(clips.present[side].numpy(), truth.shape)
        found[f"moment_auroc_{side}"] = roc_auc(truth[there].astype(int), moments[there])
    return found


def _order_metrics(
    known: list[list[Statement]],
    partners: list[int | None] | None,
    logits: Callable[[Sequence[str]], dict[str, Tensor]],
    rng: np.random.Generator,
    wording: Wording,
) -> dict[str, float]:
    """Sentences on order, true of one of two clips that differ in time alone; sentences against their opposites."""
    found: dict[str, float] = {}
    keys = [{statement.key for statement in row} for row in known]
    if partners is not None:
        asked: list[tuple[str, int, int]] = []  # text, clip, partner
        for clip, other in enumerate(partners):
            orders = [
                statement
                for statement in known[clip]
                if other is not None and statement.kind == "order" and statement.key not in keys[other]
            ]
            if orders and other is not None:
                asked.append((write(orders[rng.integers(len(orders))], rng, wording), clip, other))
        if asked:
            scores = logits([words for words, _, _ in asked])["audio_video"]
            rows = torch.arange(len(asked))
            mine, theirs = torch.tensor([pair[1:] for pair in asked]).unbind(dim=1)
            found["twins"], found["twins_count"] = _share(scores[rows, mine] > scores[rows, theirs]), len(asked)
    for kind in ("order", "silent", "side"):
        pairs = []
        for clip, row in enumerate(known):
            for statement in row:
                opposite = statement.opposite
                if statement.kind == kind and opposite is not None and opposite.key not in keys[clip]:
                    pairs.append((write(statement, rng, wording), write(opposite, rng, wording), clip))
                    break
        if pairs:
            rows, place = torch.arange(len(pairs)), torch.tensor([clip for *_, clip in pairs])
            true = logits([words for words, _, _ in pairs])["audio_video"]
            false = logits([words for _, words, _ in pairs])["audio_video"]
            found[f"opposites_{kind}"] = _share(true[rows, place] > false[rows, place])
    return found


def _share(flags: Tensor) -> float:
    return 100 * flags.double().mean().item()


__all__ = ["evaluate_text"]
