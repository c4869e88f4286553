# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What is said of clips: captions of a table or of the set, what SyncWorld's truth makes true, labels as sentences."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import AutoConfig, AutoTokenizer

from ..data.caption_tables import ClipName, tell, tell_of_clips_without, texts_of_clips
from ..data.captions import TimedText
from ..data.clips import VideoClips, holds_shards
from ..data.dataset import CavMaeSyncDataset
from ..data.sources import read_source
from ..files import StrPath
from ..model.errors_cavmae_sync import TrainingError
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..syncworld import find_truth
from ..syncworld.captions import KINDS, Statement, Wording, statements, write
from .initialization import find_labels

TEMPLATES = ("{}", "the sound of {}", "a video of {}", "{} is heard")


@dataclass(frozen=True)
class Caption:
    """A text about a clip.

    Attributes:
        text: The words.
        key: Equal for captions that say the same.
        true: Whether it is true of the clip; made negatives are not.
        spans: Where in the clip, seconds; empty where it is about the whole or nobody knows.
        hard: Whether it is true of the clip and false in nearly the same words, or the reverse.
    """

    text: str
    key: str
    true: bool = True
    spans: tuple[tuple[float, float], ...] = ()
    hard: bool = False


@dataclass
class CaptionSet:
    """Captions of every clip of a set.

    Attributes:
        captions: One list per clip.
        keys: One list per clip: of all that is known to be true of it, said or not.
    """

    captions: list[list[Caption]]
    keys: list[list[str]]


def syncworld_captions(
    records: Sequence[Mapping[str, Any]], per_clip: int, seed: int, wording: Wording = "seen"
) -> CaptionSet:
    """Captions from the truth of SyncWorld clips: every kind alike, each with its opposite where it has one.

    Args:
        records: The truth of every clip.
        per_clip: True captions of each clip.
        seed: Seeds what is said, and how.
        wording: Of `syncworld.captions`.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, KINDS.index("order")]))
    captions, keys = [], []
    for record in records:
        known = statements(record)
        true = {statement.key for statement in known}
        kinds = sorted({statement.kind for statement in known})
        said: list[Caption] = []
        for _ in range(per_clip):
            kind = kinds[rng.integers(len(kinds))]
            choices = [statement for statement in known if statement.kind == kind]
            statement = choices[rng.integers(len(choices))]
            opposite: Statement | None = statement.opposite
            hard = opposite is not None and opposite.key not in true
            said.append(Caption(write(statement, rng, wording), statement.key, spans=statement.spans, hard=hard))
            if opposite is not None and hard:
                said.append(Caption(write(opposite, rng, wording), opposite.key, true=False, hard=True))
        captions.append(said)
        keys.append(sorted(true))
    return CaptionSet(captions, keys)


def label_captions(
    labels: Sequence[Sequence[int]], names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> CaptionSet:
    """Labels as sentences, in every template.

    Args:
        labels: Class numbers of every clip.
        names: Of the classes.
        templates: Each with a place for the name, `{}`.

    Raises:
        TrainingError: A template has no place for the name, or there are no names.
    """
    if not names:
        raise TrainingError("The labels have no names; give `class_names`, or a file of `captions`.")
    for template in templates:
        if "{}" not in template:
            raise TrainingError(f"The template {template!r} has no place for the label, '{{}}'.")
    captions = [
        [Caption(template.format(names[label]), f"label:{label}") for label in row for template in templates]
        for row in labels
    ]
    return CaptionSet(captions, [[f"label:{label}" for label in row] for row in labels])


def read_captions(path: StrPath, dataset: CavMaeSyncDataset) -> CaptionSet:
    """Captions of a table with columns such as `clip_id` and `text`, and perhaps `start` and `end`.

    Args:
        path: The table, see [`~cavmae_sync_hf.data.caption_tables.read_texts`]; times are seconds from the clip's
            start. Clips may have several rows, or none, and are named by their id or, where they are whole files, by
            their file.
        dataset: The set; rows about other clips are told and passed over.

    Raises:
        DataError: The table cannot be read, lacks a column, has an empty text, or none of the clips.
    """
    source, names = dataset.source, [ClipName(clip_id) for clip_id in dataset.clip_ids()]
    if isinstance(source, VideoClips):
        names = [
            ClipName(record.id, record.source, record.path or "") if record.start is None is record.end else name
            for record, name in zip(source.clips.records, names, strict=True)
        ]
    return _said(texts_of_clips(path, names))


def _said(texts: Sequence[Sequence[TimedText]]) -> CaptionSet:
    """Captions as a set has them; equal words of several clips say the same."""
    captions = [
        [Caption(one.text, one.text.casefold().rstrip(" ."), spans=one.spans) for one in said] for said in texts
    ]
    return CaptionSet(captions, [sorted({caption.key for caption in said}) for said in captions])


def open_captioned(
    source: Any,
    processor: CavMaeSyncProcessor,
    caption_column: str | Sequence[str] | None = None,
    *,
    training: bool = True,
) -> CavMaeSyncDataset:
    """The clips of a source with all of their frames, and what is said of them.

    Args:
        source: As of `CavMaeSyncDataset`: shards, which hold their captions, a folder or list of video files, a data
            set of the Hub or a loaded one.
        processor: The model's processor.
        caption_column: Column of captions, or several, of a list or data set.
        training: Whether it is the set to train on; evaluation sets that have no columns are taken without.

    Raises:
        TrainingError: A column is named for shards.
        DataError: The source cannot be used, or lacks the column.
    """
    if not training and (holds_shards(source) or find_truth(source, ()) is not None):
        caption_column = None
    if caption_column and holds_shards(source):
        raise TrainingError(
            f"{source}: shards hold their captions, and have no columns; leave `caption_column` out, or prepare the "
            "set again with --caption-column."
        )
    if caption_column:
        source = read_source(source, audio_files=False, caption_column=caption_column)
    return CavMaeSyncDataset(source, processor, frames="all")


def choose_captions(
    dataset: CavMaeSyncDataset,
    table: StrPath | None = None,
    records: Sequence[Mapping[str, Any]] | None = None,
    *,
    class_names: StrPath | None = None,
    templates: Sequence[str] | None = None,
    per_clip: int = 8,
    seed: int = 0,
) -> CaptionSet:
    """What is said of the clips to train on: by a table; else by the set itself; else by SyncWorld's truth; else by
    labels.

    Args:
        dataset: The set.
        table: See `read_captions`.
        records: SyncWorld's truth of every clip.
        class_names: File with the names of the classes; default: those stored with the set.
        templates: As of `label_captions`.
        per_clip, seed: As of `syncworld_captions`.

    Raises:
        TrainingError: Nothing is said of any clip.
        DataError: As `read_captions`.
    """
    found = own_captions(dataset, table)
    if found is None and records is not None:
        return syncworld_captions(records, per_clip, seed)
    if found is None:
        if not any(dataset.labels()):
            raise TrainingError(
                "Nothing is said of any clip: the set has neither captions nor labels. Name a table by `captions`, or "
                "a column of captions of a list or data set by `caption_column`, or prepare the shards with "
                "--caption-column or --spans."
            )
        names = find_labels(dataset, {}, None if class_names is None else str(class_names), None).names
        found = label_captions(dataset.labels(), list(names or ()), templates or TEMPLATES)
    tell_of_clips_without(dataset.clip_ids(), found.captions)
    return found


def own_captions(dataset: CavMaeSyncDataset, table: StrPath | None = None) -> CaptionSet | None:
    """What a table says of the clips, else what the set itself holds; `None` where neither says anything.

    Args:
        dataset: The set.
        table: See `read_captions`.

    Raises:
        DataError: As `read_captions`.
    """
    if table is not None:
        return read_captions(table, dataset)
    texts = dataset.captions()
    return _said(texts) if any(texts) else None


def load_tokenizer(encoder: str) -> Any:
    """The tokenizer of a text encoder, which cuts texts at what the encoder takes.

    Args:
        encoder: Folder or Hub name.

    Raises:
        TrainingError: There is none, or one without words.
    """
    remedy = f"save it there: AutoTokenizer.from_pretrained(NAME).save_pretrained({encoder!r})."
    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        told = next(iter(str(error).splitlines()), type(error).__name__)
        raise TrainingError(f"{encoder}: has no tokenizer that loads ({told}); {remedy}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes up where there are no files
        raise TrainingError(f"{encoder}: has no tokenizer; {remedy}")
    config = AutoConfig.from_pretrained(encoder)
    limit = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit or tokenizer.model_max_length)
    return tokenizer


def tell_cut_texts(texts: Iterable[str], tokenizer: Any) -> None:
    """Warn, once, of texts that are longer than the text encoder takes, whose end is not read."""
    limit, known = tokenizer.model_max_length, list(dict.fromkeys(texts))
    lengths = map(len, tokenizer(known, verbose=False)["input_ids"]) if known else ()
    cut = [text for text, length in zip(known, lengths, strict=True) if length > limit]
    if cut:
        tell(
            f"{len(cut)} of {len(known)} texts are longer than the {limit} tokens that the text encoder takes; their "
            f"end is not read, such as of {cut[0][:60]!r}."
        )


__all__ = [
    "Caption",
    "CaptionSet",
    "choose_captions",
    "label_captions",
    "load_tokenizer",
    "open_captioned",
    "own_captions",
    "read_captions",
    "syncworld_captions",
    "tell_cut_texts",
]
