# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What a text side is trained on: clips as embeddings or as they are, what is said of them, and batches of both."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.augmentation import make_generator
from ..model.errors_cavmae_sync import TrainingError
from ..model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel, TextEncoding
from ..syncworld import temporal_partners
from .base import EpochSampler
from .captions import Caption, CaptionSet, tell_cut_texts

_TEXTS_AT_A_TIME = 128
_MASKS = {"audio": "padding_mask", "video": "padding_mask_videos"}


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

    @classmethod
    def without_moments(
        cls, captions: CaptionSet | None, records: list[dict[str, Any]] | None, count: int
    ) -> "TextSet":
        """A set of `count` clips whose embeddings are not known."""
        return cls(moments={}, present={}, times=np.zeros((count, 0)), captions=captions, records=records)

    @property
    def twins(self) -> list[int | None] | None:
        """Number of each clip's temporal twin; `None` without SyncWorld's truth."""
        return None if self.records is None else temporal_partners(self.records)


class KnownTexts:
    """Texts with the tokens that a frozen text encoder makes of them, each computed once.

    Args:
        model: The model with text.
        tokenizer: Of its text encoder.
        frozen: Whether the text encoder is; if not, or where it pools by itself, nothing is kept.
    """

    def __init__(self, model: CavMaeSyncTextDualEncoderModel, tokenizer: Any, frozen: bool = True) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.kept = frozen and model.config.text_pooling != "pooler"
        self._states: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> None:
        """Compute what is not known yet."""
        if not self.kept:
            return
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
        """Arguments of the model that stand for texts, on the CPU."""
        if not self.kept:
            # As the processor does: text encoders without a mask were trained with texts of one length.
            padding = True if "attention_mask" in self.tokenizer.model_input_names else "max_length"
            return dict(self.tokenizer(list(texts), padding=padding, truncation=True, return_tensors="pt"))
        self.add(texts)
        rows = [self._states[text] for text in texts]
        mask = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        states = torch.zeros(*mask.shape, rows[0].shape[1])
        for place, row in enumerate(rows):
            states[place, : len(row)] = row.float()
            mask[place, : len(row)] = 1
        return {"text_hidden_states": states, "attention_mask": mask}

    def encode(self, texts: Sequence[str]) -> TextEncoding:
        """Texts as clips are compared with them."""
        inputs = {name: values.to(self.model.device) for name, values in self.inputs(texts).items()}
        found = self.model.get_text_features(**inputs)
        return TextEncoding(
            embeds=found.pooler_output,
            clip_embeds=found.text_clip_embeds,
            parts=found.text_part_embeds,
            sequence_weights=found.sequence_weights,
        )


class Moments(Dataset):
    """The embeddings of a set's moments as samples.

    Args:
        clips: The set.
        teacher: Where another model puts the frames, `(clips, moments, P)`, zeros where there is none.
    """

    def __init__(self, clips: TextSet, teacher: Tensor | None = None) -> None:
        self.clips, self.teacher = clips, teacher

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> dict[str, Any]:
        clips = self.clips
        sample: dict[str, Any] = {"clip_id": f"number {number}", "frame_times": torch.from_numpy(clips.times[number])}
        for side, mask in _MASKS.items():
            sample[f"{side}_embeds"], sample[mask] = clips.moments[side][number], clips.present[side][number]
        return sample if self.teacher is None else sample | {"teacher_embeds": self.teacher[number]}


def collate_moments(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of `Moments`, without masks that mask nothing."""
    batch: dict[str, Any] = {"clip_ids": [sample["clip_id"] for sample in samples]}
    for name in samples[0].keys() - {"clip_id", "said", "keys"}:
        batch[name] = torch.stack([sample[name] for sample in samples])
    for name in _MASKS.values():
        if bool(batch[name].all()):
            del batch[name]
    return batch


class CaptionedClips(Dataset):
    """The clips of a set of which something is said, each with some of what is said of it.

    Args:
        clips: Samples of all clips, by number.
        captions: Of every clip.
        count: Captions of a sample, chosen by seed, epoch and clip.
        seed: Seeds the choice.
        twins: Number of each clip's temporal twin, which `TwinsSampler` puts beside it.
        shuffled: The control: captions are dealt out to other clips.

    Raises:
        TrainingError: Nothing is said of any two clips.
    """

    def __init__(
        self,
        clips: Any,
        captions: CaptionSet,
        *,
        count: int,
        seed: int,
        twins: Sequence[int | None] | None = None,
        shuffled: bool = False,
    ) -> None:
        self.clips, self.count, self.seed = clips, count, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers see it change
        order = np.random.default_rng(seed).permutation(len(clips)) if shuffled else np.arange(len(clips))
        self.said = [captions.captions[place] for place in order]
        self.keys = [captions.keys[place] for place in order]
        self.places = [place for place, row in enumerate(self.said) if row]
        if len(self.places) < 2:
            raise TrainingError(
                f"{len(self.places)} of {len(clips)} clips have captions; a text needs another clip to be told from."
            )
        numbers = {place: number for number, place in enumerate(self.places)}
        self.twins = None if twins is None else [numbers.get(-1 if twin is None else twin) for twin in twins]
        if self.twins is not None:
            self.twins = [self.twins[place] for place in self.places]
        every = {key for row in self.keys for key in row} | {said.key for row in self.said for said in row}
        self.numbers = {key: number for number, key in enumerate(sorted(every))}

    def texts(self) -> list[str]:
        """All that is said."""
        return [caption.text for row in self.said for caption in row]

    def set_epoch(self, epoch: int) -> None:
        """Change the choice."""
        self._epoch.fill_(epoch)
        if hasattr(self.clips, "set_epoch"):
            self.clips.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, Any]:
        place = self.places[number]
        said = self.said[place]
        generator = make_generator("captions", self.seed, int(self._epoch), place)
        chosen = torch.randperm(len(said), generator=generator)[: self.count].tolist()
        return self.clips[place] | {"said": [said[one] for one in chosen], "keys": self.keys[place]}


class TwinsSampler(EpochSampler):
    """An `EpochSampler` over `CaptionedClips` that puts temporal twins side by side."""

    def __iter__(self) -> Iterator[int]:
        taken: dict[int, None] = {}
        for clip in super().__iter__():
            taken[clip] = None
            twin = None if self.dataset.twins is None else self.dataset.twins[clip]
            if twin is not None:
                taken[twin] = None
        yield from taken


@dataclass
class CaptionCollator:
    """Batches of clips and of what is said of them, as the model with text takes them.

    Args:
        clips: Makes the batch of clips, with `frame_times`.
        texts: Makes the text encoder's part.
        numbers: Of what captions say.
    """

    clips: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    texts: KnownTexts
    numbers: Mapping[str, int]

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch."""
        batch = self.clips(samples)
        times = np.asarray(batch["frame_times"], dtype=np.float64)
        chosen: list[tuple[int, Caption]] = [
            (place, caption) for place, sample in enumerate(samples) for caption in sample["said"]
        ]
        keys = torch.full((len(samples), max(1, *(len(sample["keys"]) for sample in samples))), -1)
        for place, sample in enumerate(samples):
            true = [self.numbers[key] for key in sample["keys"]]
            keys[place, : len(true)] = torch.tensor(true, dtype=torch.long)
        marks = [moments_inside(caption.spans if caption.true else (), times[place]) for place, caption in chosen]
        return batch | self.texts.inputs([caption.text for _, caption in chosen]) | {
            "caption_clip_ids": torch.tensor([place if caption.true else -1 for place, caption in chosen]),
            "caption_keys": torch.tensor([self.numbers[caption.key] for _, caption in chosen]),
            "hard_clip_ids": torch.tensor([place if caption.hard else -1 for place, caption in chosen]),
            "clip_keys": keys,
            "caption_moments": torch.from_numpy(np.stack(marks)),
        }  # fmt: skip


def moments_inside(spans: Sequence[tuple[float, float]], times: np.ndarray) -> np.ndarray:
    """1 at the moments in a span, 0 at others, -1 where there are no spans."""
    if not spans:
        return np.full(len(times), -1, np.int64)
    return np.any([(times >= start) & (times < end) for start, end in spans], axis=0).astype(np.int64)
