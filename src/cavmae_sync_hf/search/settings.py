# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Model, processor and hop that an index was made with, and whether others may search it or add to it."""

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from transformers import PreTrainedModel

from ..files import parse_json
from ..model.alignment_cavmae_sync import window_seconds
from ..model.errors_cavmae_sync import Hint, SearchError
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..provenance import backend_of, weights_fingerprint

# Of the tables and of these settings; an index of another one is refused.
FORMAT = 1
# What indexes were made with that do not say so.
_EARLIER = {"backend": "torch", "precision": "float32"}
# Settings that decide the values of a window and a frame; the rest says how inputs are handed over.
_AUDIO_SETTINGS = ("sampling_rate", "channel", "num_mel_bins", "audio_length", "mean", "std", "min_window_coverage")
_FRAME_SETTINGS = (
    "do_resize", "size", "resample", "exact_resize", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std", "do_convert_rgb",
)  # fmt: skip


@dataclass(frozen=True)
class IndexSettings:
    """What all rows of an index have in common.

    Attributes:
        hop: Seconds from one moment to the next.
        hidden_size: Length of the vectors.
        window_seconds: Length of a moment's audio window, seconds.
        weights: Checksum of the model's weights, from `weights_fingerprint`.
        model: Where the model was loaded from: what a search loads when it is given no model.
        processing: Settings of the processor that decide what the model sees and hears.
        format: `FORMAT` when the index was made.
        backend: What ran the model, `"torch"` or `"onnx"`.
        precision: Of its weights.
    """

    hop: float
    hidden_size: int
    window_seconds: float
    weights: str
    model: str
    processing: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    backend: str = "torch"
    precision: str = "float32"

    @classmethod
    def of(cls, model: PreTrainedModel, processor: CavMaeSyncProcessor, hop: float) -> "IndexSettings":
        """The settings of an index that this model and processor would make.

        Args:
            model: Any of this package's models with both towers.
            processor: Its processor.
            hop: Seconds from one moment to the next.

        Raises:
            SearchError: The hop is no positive number, or the model lacks a tower.
        """
        if isinstance(hop, bool) or not isinstance(hop, int | float) or not 0 < hop < math.inf:
            raise SearchError(f"hop is {hop!r}; it must be a number of seconds above 0.")
        if model.config.modality != "multimodal":
            raise SearchError(f"The model has the {model.config.modality} tower alone; an index needs both.")
        of_audio, of_frames = processor.feature_extractor.to_dict(), processor.video_processor.to_dict()
        processing = {name: of_audio.get(name) for name in _AUDIO_SETTINGS}
        processing |= {name: of_frames.get(name) for name in _FRAME_SETTINGS}
        if processor.video_processor.frames_per_moment > 1:
            processing |= processor.video_processor.moment_options
        if processor.feature_extractor.clip_length is not None:
            processing["clip_length"] = processor.feature_extractor.clip_length
        if processor.audio_track is not None:
            processing["audio_track"] = processor.audio_track
        place = str(model.config._name_or_path or "")
        return cls(
            hop=float(hop),
            hidden_size=int(model.config.hidden_size),
            window_seconds=window_seconds(processor.feature_extractor.audio_length),
            weights=weights_fingerprint(model),
            model=os.path.abspath(place) if place and os.path.isdir(place) else place,  # found from any folder
            processing=parse_json(json.dumps(processing)),  # as it is read back: lists, no tuples
            backend=backend_of(model)["backend"],
            precision=backend_of(model)["precision"],
        )

    @property
    def channel(self) -> str:
        """Which channel of files was heard."""
        return self.processing.get("channel", "first")

    @property
    def audio_track(self) -> int | str | None:
        """Which audio track of files was heard; `None` for the one that a player plays."""
        return self.processing.get("audio_track")

    def to_json(self) -> str:
        """As text, for the tables' own metadata."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, index: str) -> "IndexSettings":
        """Back from `to_json`.

        Args:
            text: The text.
            index: Name of the index, for messages.

        Raises:
            SearchError: The text is none, or of another version of this package.
        """
        try:
            values = parse_json(text)
            version = values["format"]
            values = _EARLIER | values
        except (ValueError, TypeError, KeyError) as error:
            raise SearchError(f"{index}: its settings cannot be read; make the index anew.") from error
        if version != FORMAT:
            raise SearchError(
                f"{index}: was written in format {version}, and this version of cavmae-sync-hf reads format {FORMAT}; "
                "make the index anew, or use the version that wrote it."
            )
        try:
            return cls(**{item.name: values[item.name] for item in fields(cls)})
        except KeyError as error:
            raise SearchError(f"{index}: its settings lack {error}; make the index anew.") from error

    def check(self, other: "IndexSettings", index: str, *, adding: bool) -> None:
        """Refuse another model's vectors.

        Args:
            other: Settings of the model at hand.
            index: Name of the index, for messages.
            adding: Whether rows are to be added, which must lie as far apart as those that are there.

        Raises:
            SearchError: Its vectors cannot be compared with those in the index.
        """
        purpose = "add to" if adding else "search"
        if other.weights != self.weights or other.hidden_size != self.hidden_size:
            raise SearchError(
                f"{index}: was made with another model ({self.model or 'of no name'}, weights {self.weights[:12]}), "
                f"whose vectors cannot be compared with those of this one ({other.model or 'of no name'}, weights "
                f"{other.weights[:12]}). To {purpose} it, use that model, or make another index with this one."
            )
        # A query may be of another audio track than what it is compared with.
        names = {*self.processing, "audio_track"} if adding else {*self.processing} - {"audio_track"}
        before, now = self.processing, other.processing
        different = sorted(name for name in names if now.get(name) != before.get(name))
        if different:
            name = different[0]
            what = f"{index}: was made with other settings: {name} was {before.get(name)!r} and is {now.get(name)!r}."
            if name in ("channel", "audio_track"):
                hint = Hint(name, before.get(name), f"{purpose} it")
                raise SearchError(f"{what} Name another index for another choice.", hint=hint)
            raise SearchError(f"{what} To {purpose} it, load the processor it was made with, or make another index.")
        if adding and (self.backend, self.precision) != (other.backend, other.precision):
            raise SearchError(
                f"{index}: was made by {self.backend} in {self.precision}, and this model runs by {other.backend} in "
                f"{other.precision}. Any may search it; an index holds moments of one.",
                hint=(Hint("backend", self.backend), Hint("precision", self.precision, "add to it")),
            )
        if adding and not math.isclose(other.hop, self.hop, rel_tol=1e-9):
            raise SearchError(
                f"{index}: its moments lie {self.hop:g} s apart, not {other.hop:g} s; add with a hop of {self.hop:g}, "
                "or make another index."
            )
