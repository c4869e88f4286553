# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Model, with or without text or a language model, classifier and index behind the page."""

import math
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..inference.loading import has_language_model, has_text
from ..inference.local import has_local_heads
from ..inference.relevance import has_relevance
from ..loading import Backend, Precision, load_model
from ..model.errors_cavmae_sync import ModelError
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..names import EXAMPLE, HUB, hub_name
from .demo_clips import DemoClips

# How the sources of audio are looked for, best first: maps a second, and patches from one place tried to the next.
_MAP_PLANS: tuple[dict[str, Any], ...] = (
    {"fps": 5.0},
    {"fps": 2.5},
    {"fps": 1.0},
    {"fps": 1.0, "stride": 3},
)
_QUICK_PLAN: dict[str, Any] = {"fps": 1.0, "method": "cosine"}
# What a visitor waits for them at most, as far as it can be foreseen.
_MAP_SECONDS = 45.0
_TRIAL_MOMENTS = 4
# A pass forward and back, and three forward with a place left out.
_RELEVANCE_PASSES = 6
# A pass forward with the head, and three with a place left out.
_LOCAL_PASSES = 4.5
# Of an answer, at most.
_MOST_TOKENS = 128


class Engine:
    """The model, its text encoder, language model or classifier where it has one, and the index.

    Args:
        model: Folder or Hub name; `None` for the model that comes with the package.
        index: Folder or address of an index; `None` to make one of the demo clips at first use.
        device: Where the model runs; `"auto"`: CUDA or MPS where this machine has one, else the CPU.
        backend, precision, progress: As of `load_model`. In ONNX Runtime the model measures synchrony and searches;
            maps are made by the same model in PyTorch, loaded when the first is asked for, unless it has local heads.

    Raises:
        ModelError: There is no such model, or it has one tower alone.
        SearchError: There is no such index, or it was made with another model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        index: str | None = None,
        device: str | torch.device = "auto",
        backend: Backend = "torch",
        precision: Precision = "float32",
        progress: Callable[..., None] | None = None,
    ) -> None:
        name = os.fspath(model) if model is not None else EXAMPLE
        self.is_example = model is None or name == EXAMPLE
        self.name = EXAMPLE if self.is_example else name
        # The whole of a model with text; what it compares without words is the audio-visual model inside.
        self.text_model: Any = None
        self._load = partial(load_model, name, device=device, modalities="both")
        run: dict[str, Any] = {"backend": backend, "precision": precision, "progress": progress}
        # A model with a language model and its processor, in PyTorch; `None` without one.
        self.language: Any = None
        if has_language_model(name):
            in_torch: dict[str, Any] = {"precision": precision} if backend == "torch" else {}
            self.language = load_model(name, use="answer", device=device, modalities="both", **in_torch)
        if self.language is not None and backend == "torch":
            whole, processor = self.language
            self.model: Any = whole.model.av_model
            self.processor = CavMaeSyncProcessor(processor.feature_extractor, processor.video_processor)
        elif has_text(name):
            self.text_model, self.processor = self._load(use="text", **run)
            self.model = self.text_model.base_model
        else:
            self.model, self.processor = self._load(**run)
        # With its text encoder, if it has one.
        self._torch_model: Any = (self.text_model or self.model) if backend == "torch" else None
        self.index = index
        self._store: Any = None
        self._lock, self._torch_lock = threading.Lock(), threading.Lock()
        self._pass_seconds: dict[str, float] = {}
        self.classifier = _classifier(name, device)
        if index is not None:
            self._store = self._open(index)

    @property
    def labels(self) -> int:
        """How many labels the model can tell apart; 0 without a head for it."""
        return int(self.classifier.config.num_labels) if self.classifier is not None else 0

    def torch_model(self, words: bool = False) -> Any:
        """The model in PyTorch, which can do all; with words the one with text."""
        with self._torch_lock:
            if self._torch_model is None:
                self._torch_model = self._load(use="embedding" if self.text_model is None else "text")[0]
        return self._torch_model if words else self._torch_model.base_model

    def map_model(self, words: bool = False) -> Any:
        """The model that makes maps: where it has no local heads the one in PyTorch; with words the one with text."""
        if has_local_heads(self.model):
            return self.text_model if words else self.model
        return self.torch_model(words)

    @property
    def card(self) -> Path | str | None:
        """The model's card: a file, or its page on the Hub; `None` where there is none."""
        name = self.name.removeprefix(HUB).partition("@")[0]
        if not Path(self.name).is_dir() and hub_name(name):
            return f"https://huggingface.co/{name}"
        card = Path(self.model.name_or_path or self.name) / "README.md"
        return card if card.is_file() else None

    def map_plan(self, seconds: float) -> dict[str, Any]:
        """Arguments of `localize` with which a clip of so many seconds takes a bearable time on this machine.

        Relevance and local heads take a few passes of a tower for each moment. Where a tower is another model's
        encoder and there are no heads, it runs once for every patch.
        """
        model = self.map_model()
        passes = _RELEVANCE_PASSES if has_relevance(model) else _LOCAL_PASSES if has_local_heads(model) else 0
        for plan in _MAP_PLANS:
            moments = max(1.0, seconds * plan["fps"])
            cost = sum(
                (passes or _places(grid, plan.get("stride"))) * self._seconds_of(name) for name, grid in self._grids()
            )
            if moments * cost <= _MAP_SECONDS:
                return dict(plan)
        return dict(_QUICK_PLAN)

    def ask(self, file: Any, question: str, tell: Callable[..., None], watched: Any = None) -> tuple[Any, Any]:
        """What the language model keeps of a clip, for more questions, and its answer.

        Args:
            file: The clip.
            question: In words.
            tell: Called with moments read, their number and a remark, then with the words that are there as a remark.
            watched: What it kept of the clip before.
        """
        from ..inference.ask import answer, room_for_moments, watch

        model, processor = self.language
        room = room_for_moments(model, processor, [question], _MOST_TOKENS)
        if watched is not None and room is not None and watched.tokens(processor) > room:
            watched = None  # a longer question leaves room for fewer moments
        if watched is None:
            watched = watch(model, processor, file, damaged="keep", most_tokens=room, progress=tell)
        said: list[str] = []

        def stream(piece: str) -> None:
            said.append(piece)
            tell(0, 0, "".join(said))

        return watched, answer(model, processor, watched, question, max_new_tokens=_MOST_TOKENS, stream=stream)

    def _grids(self) -> list[tuple[str, tuple[int, int]]]:
        return [("audio", self.model.config.audio_grid), ("video", self.model.config.video_grid)]

    def _seconds_of(self, modality: str) -> float:
        """How long a tower takes for one moment, measured once."""
        if modality not in self._pass_seconds:
            model = self.map_model()
            config, device = model.config, model.device
            shapes = {
                "audio": (1, _TRIAL_MOMENTS, config.heard_length, config.num_mel_bins),
                "video": (1, _TRIAL_MOMENTS, config.frame_channels, config.image_size, config.image_size),
            }
            encode = model.get_audio_features if modality == "audio" else model.get_video_features
            # All different, or the model would see that one will do.
            inputs = torch.randn(shapes[modality], device=device, dtype=model.dtype)
            more: dict[str, Any] = {}
            if modality == "audio" and config.audio_context == "clip":
                more["window_offsets"] = torch.zeros(1, _TRIAL_MOMENTS, dtype=torch.long, device=device)
            with torch.no_grad():
                encode(inputs[:, :1], **{name: value[:, :1] for name, value in more.items()})
                began = time.perf_counter()
                encode(inputs, **more).pooler_output.cpu()
            self._pass_seconds[modality] = (time.perf_counter() - began) / _TRIAL_MOMENTS
        return self._pass_seconds[modality]

    def store(self, demo: DemoClips, folder: Path, progress: Callable[..., None] | None = None) -> Any:
        """The open index; without one of the operator's own, one of the demo clips, made now.

        Args:
            demo: The demo clips.
            folder: Where that index goes.
            progress: Called with clips done, of how many, and a remark.
        """
        from ..search import index_videos

        with self._lock:
            if self._store is None:
                place = folder / "index"
                index_videos(demo.library, place, self.model, self.processor, decoders=1, progress=progress)
                self._store = self._open(os.fspath(place))
            return self._store

    def _open(self, index: str) -> Any:
        from ..search import IndexSettings, MomentStore

        store = MomentStore.open(index)
        store.settings.check(IndexSettings.of(self.model, self.processor, store.settings.hop), index, adding=False)
        return store


def _classifier(name: str, device: str | torch.device) -> Any:
    """The model with its classification head, or `None` where it has none."""
    try:
        return load_model(name, use="classification", device=device)[0]
    except ModelError:
        return None


def _places(grid: tuple[int, int], stride: int | None) -> int:
    """How many places of a grid are tried."""
    step = stride or (1 if grid[0] * grid[1] <= 100 else 2)
    return math.ceil(grid[0] / step + 0.5) * math.ceil(grid[1] / step + 0.5)
