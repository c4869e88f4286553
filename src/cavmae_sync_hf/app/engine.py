# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which model and which index does the page ask, and when are they loaded?"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..inference.loading import ModelLoadError, example_model, load_model
from .demo_clips import DemoClips

__all__ = ["Engine"]


class Engine:
    """The model, its classifier where it has one, and the index.

    Args:
        model: Folder or Hub name; `None` for the model that comes with the package.
        index: Folder or address of an index; `None` to make one of the demo clips at first use.
        device: Where the model runs.

    Raises:
        ModelLoadError: There is no such model, or it has one tower alone.
        SearchIndexError: There is no such index, or it was made with another model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        index: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        name = os.fspath(model) if model is not None else os.fspath(example_model())
        self.is_example = model is None or name == "example"
        self.name = "example" if self.is_example else name
        self.model, self.processor = load_model(name, device=device, modalities="both")
        self.index = index
        self._store: Any = None
        self._lock = threading.Lock()
        self.classifier = _classifier(name, device)
        if index is not None:
            self._store = self._open(index)

    @property
    def labels(self) -> int:
        """How many labels the model can tell apart; 0 without a head for it."""
        return int(self.classifier.config.num_labels) if self.classifier is not None else 0

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
    except ModelLoadError:
        return None
