# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""CAV-MAE Sync models for MTEB, the embedding benchmark: its audio, video, image and, with text, text tasks.

MTEB hands out rows of a data set with `audio`, `video` and `image` columns and wants one vector for each. Files are
decoded here, by this package, with the alignment that the model's processor has, so that audio and video of a row
belong together and no other decoder is needed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..inference.features import move_inputs, not_finite_error
from ..inference.loading import has_text
from ..inference.texts import tokenize
from ..loading import load_model
from ..model.errors_cavmae_sync import ModelError
from ..model.modeling_cavmae_sync import pool_clip
from ..model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel
from ..model.pipeline_inputs_cavmae_sync import prepare_clip
from ..model.video_processing_cavmae_sync import is_media_source

__all__ = ["MtebEncoder"]

_COLUMNS = ("audio", "video", "image")


class MtebEncoder:
    """
    An encoder that `mteb.evaluate` takes.

    ```python
    >>> import mteb
    >>> from cavmae_sync_hf.evaluation.mteb import MtebEncoder

    >>> mteb.evaluate(MtebEncoder("owner/name"), mteb.get_tasks(tasks=["LombardGridA2VRetrieval"]))
    ```

    A row with audio and video gets the mean of both vectors, which lie in one space, so that it can be compared with
    rows of either kind. Of rows with text and something else only the latter counts. Rows of text alone need a model
    with text (`CavMaeSyncTextDualEncoderModel`), which compares them with moments; too long ones are cut.

    Args:
        model_name: Folder of a saved model, or Hub repository as `OWNER/NAME`.
        revision: Of the repository on the Hub.
        device: Where to run the model; default: a GPU if there is one.
        pooling: `"mean"`: the normalised mean of a clip's moments. `"frames"`: the moments one after the other; the
            cosine of two clips is then the mean over moments at the same place, the published retrieval (a still
            image stands for every moment).
        num_frames: Moments per clip; default: the processor's.
        damaged: `"error"`, or `"keep"` to use what can be decoded of damaged files.
        channel: `"first"` or `"mean"` of several audio channels; default: the processor's.
        audio_track: Which audio track of files that have several, by number or language; default: the one that a
            player plays.

    Raises:
        ModelError: There is no such model.
        ValueError: An option is unknown.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        pooling: Literal["mean", "frames"] = "mean",
        num_frames: int | None = None,
        damaged: Literal["error", "keep"] = "error",
        channel: Literal["first", "mean"] | None = None,
        audio_track: int | str | None = None,
    ):
        if pooling not in ("mean", "frames"):
            raise ValueError(f'`pooling` is {pooling!r}; use "mean" or "frames".')
        self.name, self.revision, self.pooling = model_name, revision, pooling
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        place = _at_revision(model_name, revision)
        self.text_model: CavMaeSyncTextDualEncoderModel | None = None
        if has_text(place):
            self.text_model, self.processor = load_model(place, use="text", device=device)
            self.model = self.text_model.av_model
        else:
            self.model, self.processor = load_model(place, device=device)
        self.processor = self.processor.with_audio_choice(channel, audio_track)
        self.num_frames = num_frames or self.processor.feature_extractor.num_frames
        self.damaged = damaged
        self._meta: Any = None

    @property
    def mteb_model_meta(self) -> Any:
        """What MTEB wants to know about the model, as its `ModelMeta`."""
        if self._meta is None:
            from mteb.models.model_meta import ModelMeta

            config = self.model.config
            has: dict[str, Any] = {
                "multimodal": ["audio", "video", "image"],
                "audio": ["audio"],
                "video": ["video", "image"],
            }
            width = config.hidden_size if self.text_model is None else self.text_model.config.space_dim
            modalities = has[config.modality] + ([] if self.text_model is None else ["text"])
            similarity: Any = "cosine"
            local = Path(self.name).is_dir() or "/" not in self.name
            self._meta = ModelMeta(
                loader=MtebEncoder,
                name=f"local/{Path(self.name).resolve().name}" if local else self.name,
                revision=self.revision or "no_revision_available",
                release_date=None,
                languages=None,
                n_parameters=sum(part.numel() for part in (self.text_model or self.model).parameters()),
                memory_usage_mb=None,
                max_tokens=None,
                embed_dim=width * (self.num_frames if self.pooling == "frames" else 1),
                license=None,
                open_weights=True,
                public_training_code=None,
                public_training_data=None,
                framework=["PyTorch", "Transformers"],
                similarity_fn_name=similarity,
                use_instructions=False,
                training_datasets=None,
                modalities=modalities,
                experiment_kwargs=None if self.pooling == "mean" else {"pooling": self.pooling},
            )
        return self._meta

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any = None,
        hf_split: str | None = None,
        hf_subset: str | None = None,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embed the rows of a data loader.

        Args:
            inputs: MTEB's loader. Where its data set has `datasets`' audio and video columns, their files are decoded
                here; else batches of it are taken as they come, in the forms that `read_clip` knows.
            task_metadata: Names the task in messages.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Not used: queries and documents are embedded alike.
            kwargs: `batch_size` and `show_progress_bar`; others are not used.

        Returns:
            `(rows, dimensions)` float32, of length 1.

        Raises:
            ValueError: The rows have nothing that the model can embed, or a clip cannot be used.
        """
        from tqdm.auto import tqdm

        batch_size = int(kwargs.get("batch_size") or getattr(inputs, "batch_size", None) or 1)
        rows = _rows(inputs)
        shown = tqdm(rows, disable=not kwargs.get("show_progress_bar", False), desc="Embedding", unit=" clips")
        vectors: list[np.ndarray] = []
        waiting: list[dict[str, Any]] = []
        for row in shown:
            waiting.append(self._prepare(row, str(getattr(task_metadata, "name", "the task"))))
            if len(waiting) == batch_size:
                vectors += self._embed(waiting)
                waiting = []
        if waiting:
            vectors += self._embed(waiting)
        if not vectors:
            raise ValueError("The loader gave no rows; there is nothing to embed.")
        return np.stack(vectors)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of all pairs, `(first, second)`."""
        first, second = (_unit_rows(values) for values in (embeddings1, embeddings2))
        return first @ second.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of the pairs in the same row, `(rows,)`."""
        first, second = (_unit_rows(values) for values in (embeddings1, embeddings2))
        return (first * second).sum(dim=-1)

    def _prepare(self, row: Mapping[str, Any], task: str) -> dict[str, Any]:
        """The model's inputs of a row."""
        own = {"multimodal": _COLUMNS, "audio": ("audio",), "video": ("video", "image")}[self.model.config.modality]
        given = {name: row[name] for name in own if row.get(name) is not None}
        if not given and self.text_model is not None and row.get("text") is not None:
            return {"text": row["text"]}
        if not given:
            has = ", ".join(sorted(map(str, row))) or "nothing"
            raise ValueError(
                f"{task}: a row has {has}, of which this model ({self.model.config.modality}) can embed none; choose "
                "tasks of audio, video or images."
            )
        if "image" in given:
            given.setdefault("video", given.pop("image"))
        modality = "both" if len(given) > 1 else next(iter(given))
        # Decoded frames and images are taken as they are.
        decoded = "video" in given and not is_media_source(given["video"])
        frames = None if decoded else self.num_frames
        return prepare_clip(self.processor, given, modality, num_frames=frames, damaged=self.damaged)

    @torch.no_grad()
    def _embed(self, batch: list[dict[str, Any]]) -> list[np.ndarray]:
        """Vectors of prepared rows; rows of one shape go through the model together."""
        shapes = {tuple(value.shape for value in row.values() if isinstance(value, Tensor)) for row in batch}
        groups = [batch] if len(shapes) == 1 else [[row] for row in batch]
        found: list[np.ndarray] = []
        for group in groups:
            if "text" in group[0]:
                found += list(self._embed_texts([row["text"] for row in group]).cpu().numpy())
                continue
            values = {
                name: torch.cat([row[name] for row in group])
                for name, value in group[0].items()
                if isinstance(value, Tensor)
            }
            inputs = move_inputs(values, self.model)
            output = self.model(**inputs)
            named = {"audio": output.audio_embeds, "video": output.video_embeds}
            known = {name: embeds for name, embeds in named.items() if embeds is not None}
            if self.text_model is not None:
                known = {name: self.text_model.project(name, embeds) for name, embeds in known.items()}
            sides = list(known.values())
            vectors = torch.stack([self._pool(embeds.float()) for embeds in sides]).mean(dim=0)
            if not bool(vectors.isfinite().all()):
                raise not_finite_error("An embedding", self.model)
            found += list(torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy())
        return found

    def _embed_texts(self, texts: list[str]) -> Tensor:
        """Vectors of texts, which stand for every moment."""
        assert self.text_model is not None
        tokens = tokenize(self.text_model, self.processor, texts, truncate=True)
        vectors = self._pool(self.text_model.get_text_features(**tokens).pooler_output.float().unsqueeze(1))
        if not bool(vectors.isfinite().all()):
            raise not_finite_error("An embedding", self.model)
        return vectors

    def _pool(self, embeds: Tensor) -> Tensor:
        """One vector per clip of `(clips, moments, hidden)`."""
        if self.pooling == "mean":
            return pool_clip(embeds)
        if embeds.shape[1] == 1:
            embeds = embeds.expand(-1, self.num_frames, -1)
        if embeds.shape[1] != self.num_frames:
            raise ValueError(
                f'A clip has {embeds.shape[1]} frames, and pooling="frames" needs {self.num_frames} of each; use '
                'pooling="mean" for decoded frames.'
            )
        return torch.nn.functional.normalize(embeds.flatten(1), dim=-1)


def _at_revision(name: str, revision: str | None) -> str:
    """A model at a revision: the folder that the Hub's client keeps it in."""
    if revision is None or Path(name).is_dir():
        return name
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(f"The Hub gives no {name} at revision {revision}: {error}") from error


def _rows(inputs: Any) -> Iterator[Mapping[str, Any]]:
    """Rows of a loader, with files in place of the audio and videos that `datasets` would decode."""
    dataset = getattr(inputs, "dataset", None)
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        for batch in inputs:
            names = [name for name in batch if name in (*_COLUMNS, "text")]
            for place in range(len(batch[names[0]]) if names else 0):
                yield {name: batch[name][place] for name in names}
        return
    for name, feature in features.items():
        kind = type(feature).__name__
        if kind in ("Audio", "Video", "Image") and feature.decode != (kind == "Image"):
            dataset = dataset.cast_column(name, type(feature)(decode=kind == "Image"))  # type: ignore[union-attr]
    columns = [name for name in (*_COLUMNS, "text") if name in features]
    yield from dataset.select_columns(columns)  # type: ignore[union-attr]


def _unit_rows(values: Any) -> Tensor:
    """Vectors of length 1, `(rows, dimensions)` float32."""
    rows = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    return torch.nn.functional.normalize(rows if rows.ndim > 1 else rows[None], dim=-1)
