# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A model of exported towers: it embeds audio windows and frames as the model it was made from does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..files import StrPath, parse_json
from ..inference.loading import read_processor
from ..inference.texts import check_texts
from ..model.errors_cavmae_sync import ExportError
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .folder import DESCRIPTION, FORMAT, FORMAT_VERSION, PROJECTIONS
from .tower_files import RunTower, load_tower

_NAMES = {"audio": "input_values", "video": "pixel_values_videos", "text": "input_ids"}


class ExportedModel:
    """
    The towers of a folder that `export_model` wrote; called with what the processor gives, it embeds.

    ```python
    >>> from cavmae_sync_hf.export import ExportedModel

    >>> model = ExportedModel("exported")
    >>> inputs = model.processor(videos="clip.mp4", return_tensors="np")
    >>> model(**inputs)["similarity"].shape
    (1, 16, 16)
    ```

    Of a model with text, `model.embed_texts(["a dog barks"])` embeds words.

    Args:
        folder: The folder.
        precision: `"int8"` for the towers with 8-bit weights.
        threads: Threads of one operation; default: as many as there are cores.
        providers: ONNX Runtime's execution providers; default: the CPU.

    Raises:
        ExportError: The folder is none of that kind, or lacks what is asked for.
        ImportError: onnxruntime is missing.
    """

    def __init__(
        self,
        folder: StrPath,
        *,
        precision: Literal["float32", "int8"] = "float32",
        threads: int | None = None,
        providers: Any = None,
    ):
        self.folder = Path(folder)
        self.description = _read_description(self.folder)
        self.kind: str = self.description["kind"]
        if precision not in ("float32", "int8"):
            raise ExportError(f'`precision` is {precision!r}; use "float32" or "int8".')
        self._towers: dict[str, RunTower] = {}
        for modality, entry in self.description["towers"].items():
            if precision == "int8" and "int8" not in entry:
                raise ExportError(f"{self.folder} holds no 8-bit towers; export the model with 8-bit weights as well.")
            path = self._file(entry["int8"] if precision == "int8" else entry)
            self._towers[modality] = load_tower(path, threads, providers)
        self._processor: CavMaeSyncProcessor | None = None
        self._projections: dict[str, np.ndarray] = {}
        if "projections" in self.description:
            try:
                self._projections = load_file(self.folder / PROJECTIONS)
            except (OSError, SafetensorError) as error:
                raise ExportError(
                    f"{self.folder / PROJECTIONS} cannot be read ({error}); export the model anew."
                ) from error

    def _file(self, entry: dict[str, Any]) -> Path:
        """A tower's file, as the description has it."""
        for name, size in (("file", "bytes"), ("data_file", "data_bytes")):
            file = entry.get(name)
            if file is None and name == "data_file":
                continue
            if not isinstance(file, str) or file != Path(file).name or "\\" in file:
                raise ExportError(f"{self.folder / DESCRIPTION} names {file!r}; an export's files lie beside it.")
            path = self.folder / file
            if not path.is_file():
                raise ExportError(f"{path} is missing, though {DESCRIPTION} names it; export the model anew.")
            if path.stat().st_size != entry.get(size, path.stat().st_size):
                raise ExportError(
                    f"{path} has {path.stat().st_size:,} bytes, and {DESCRIPTION} says {entry.get(size)}; copy or "
                    "export it anew."
                )
        return self.folder / str(entry["file"])

    @property
    def processor(self) -> CavMaeSyncProcessor:
        """The processor that makes the inputs."""
        if self._processor is None:
            self._processor = read_processor(str(self.folder))
        return self._processor

    def __call__(
        self,
        input_values: Any = None,
        pixel_values_videos: Any = None,
        padding_mask: Any = None,
        padding_mask_videos: Any = None,
        return_patches: bool = False,
        input_ids: Any = None,
        attention_mask: Any = None,
        **_: Any,
    ) -> dict[str, np.ndarray]:
        """Embed windows, frames, texts or several of them.

        Args:
            input_values: Audio windows `(batch, frames, audio_length, num_mel_bins)`.
            pixel_values_videos: Frames `(batch, frames, channels, height, width)`.
            padding_mask: False for absent windows, `(batch, frames)`.
            padding_mask_videos: False for absent frames, `(batch, frames)`.
            return_patches: Whether to return patch embeddings, too.
            input_ids: Tokens of texts `(texts, tokens)`, of a model with text.
            attention_mask: 0 for padding, `(texts, tokens)`.
            _: Times and other things that a processor returns are left aside.

        Returns:
            `audio_embeds` and `video_embeds` `(batch, frames, hidden)` float32, L2-normalised, zeros where absent, as
            far as their inputs are given; with both, `similarity` `(batch, frames, frames)`; on request
            `audio_patch_embeds` and `video_patch_embeds` `(batch, frames, patches, hidden)`. Of texts what
            `embed_texts` gives.

        Raises:
            ExportError: No input, or one of another shape than the towers take.
        """
        given = {"audio": (input_values, padding_mask), "video": (pixel_values_videos, padding_mask_videos)}
        result: dict[str, np.ndarray] = {}
        for modality, (values, mask) in given.items():
            if values is None:
                continue
            for name, output in self._run(modality, [values], most=2 if return_patches else 1).items():
                if mask is not None:
                    here = np.asarray(mask).astype(bool)
                    output = output * here.reshape(*here.shape, *[1] * (output.ndim - 2))
                result[name] = output
        if input_ids is not None:
            mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
            result |= self._run("text", [input_ids, mask])
        if not result:
            raise ExportError("Got neither `input_values` nor `pixel_values_videos`; pass at least one of them.")
        if "audio_embeds" in result and "video_embeds" in result:
            result["similarity"] = result["audio_embeds"] @ result["video_embeds"].transpose(0, 2, 1)
        return result

    def embed_texts(self, texts: str | Sequence[str]) -> dict[str, np.ndarray]:
        """Embed texts.

        Args:
            texts: One or more.

        Returns:
            `text_embeds` `(texts, P)` float32, L2-normalised, in the space that `project` brings the others into (of
            most models the audio-visual model's own); `video_shares` `(texts,)`: how much frames count against audio
            for each, 0 to 1; and, of a model with clip layers, `text_clip_embeds` `(texts, hidden)`.

        Raises:
            ExportError: The folder holds no text tower.
            InferenceError: A text is empty or too long.
        """
        listed = [texts] if isinstance(texts, str) else list(texts)
        if "text" not in self._towers:
            raise ExportError(f"{self.folder} holds no text tower; export a model with text.")
        check_texts(listed, self.processor, self.description.get("longest_text"))
        return self(**self.processor(text=listed, return_tensors="np"))

    def project(self, modality: str, embeds: np.ndarray) -> np.ndarray:
        """`audio_embeds` or `video_embeds` `(..., hidden)`, also of an index, in the space of texts `(..., P)`."""
        if modality not in self._projections:
            return embeds
        projected = np.asarray(embeds, np.float32) @ self._projections[modality].T
        return np.asarray(projected / np.maximum(np.linalg.norm(projected, axis=-1, keepdims=True), 1e-12))

    def _run(self, modality: str, values: Sequence[Any], *, most: int | None = None) -> dict[str, np.ndarray]:
        """A tower's outputs by name, the first so many."""
        named = _NAMES[modality]
        if modality not in self._towers:
            raise ExportError(f"Got `{named}`, but {self.folder} holds no {modality} tower; leave that input out.")
        entry = self.description["towers"][modality]
        arrays = []
        for given, facts in zip(values, entry["inputs"], strict=True):
            array = np.ascontiguousarray(np.asarray(given), dtype=facts["dtype"])
            wanted = facts["shape"]
            if array.ndim != len(wanted) or list(array.shape[2:]) != wanted[2:]:
                expected = ", ".join(map(str, wanted))
                raise ExportError(f"`{facts['name']}` has shape {array.shape}; this export takes ({expected}).")
            arrays.append(array)
        names = [output["name"] for output in entry["outputs"]][:most]
        found = dict(zip(names, self._towers[modality](names, *arrays), strict=True))
        for name, output in found.items():
            if not np.isfinite(output).all():
                raise ExportError(
                    f"The {modality} tower of {self.folder} gives `{name}` that are NaN or infinite: its weights or "
                    "the inputs are; export a working model."
                )
        return found


def _read_description(folder: Path) -> dict[str, Any]:
    try:
        found = parse_json((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExportError(
            f"{folder} holds no {DESCRIPTION}; name a folder that `cavmae-sync export` wrote."
        ) from error
    except (OSError, ValueError) as error:
        raise ExportError(f"{folder / DESCRIPTION} cannot be read ({error}); export the model anew.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ExportError(f"{folder / DESCRIPTION} does not describe an exported CAV-MAE Sync model.")
    if found.get("format_version") != FORMAT_VERSION:
        raise ExportError(
            f"{folder} was written in version {found.get('format_version')} of the format, this reads version "
            f"{FORMAT_VERSION}; export the model anew."
        )
    towers = found.get("towers")
    if not isinstance(towers, dict) or not all(isinstance(entry, dict) for entry in towers.values()):
        raise ExportError(f"{folder / DESCRIPTION} does not say which towers there are; export the model anew.")
    return found
