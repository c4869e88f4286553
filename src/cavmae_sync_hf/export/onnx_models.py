# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Models whose towers run in ONNX Runtime, for every tool that embeds audio, frames or texts.

They hold no weights of the towers, and open a tower's file when it is first used.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.errors_cavmae_sync import ExportError, Hint
from ..model.modeling_cavmae_sync import CavMaeSyncModel, LayerRecord
from ..model.modeling_text_cavmae_sync import CavMaeSyncTextFeatures
from .tower_files import RunTower, load_tower


class OnnxTower(nn.Module):
    """One exported tower.

    Args:
        entry: What `export.json` says of its inputs and outputs.
        path: Its file.
        grid: Its patches, rows and columns; of a text tower `None`.
    """

    def __init__(self, entry: Mapping[str, Any], path: Path, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.path, self._grid = path, grid
        self.inputs, self.outputs = entry["inputs"], [output["name"] for output in entry["outputs"]]
        self._session: RunTower | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:  # a copy, or another process, opens the file itself
        return {name: value for name, value in self.__dict__.items() if name not in ("_session", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._session, self._lock = None, threading.Lock()

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """All outputs for inputs of the exported shape."""
        with self._lock:
            if self._session is None:
                self._session = load_tower(self.path, torch.get_num_threads())
        found = self._session(self.outputs, *(values.contiguous().numpy() for values in inputs))
        return [torch.from_numpy(values) for values in found]

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of the patches."""
        assert self._grid is not None
        return self._grid

    def forward(self, images: Tensor, ids_keep: Tensor | None = None, record: LayerRecord | None = None) -> Tensor:
        """The embeddings of images and, after each, those of its patches, `(samples, 1 + patches, hidden)`."""
        if ids_keep is not None:
            refuse("leave out patches")
        embeds, patches, *_ = self.outputs_of(images)
        return torch.cat([embeds.unsqueeze(1), patches], dim=1)

    def outputs_of(self, images: Tensor) -> list[Tensor]:
        """All outputs, `(samples, ...)`, for images `(samples, channels, height, width)`."""
        if images.requires_grad:
            refuse("give gradients")
        images = images.detach().float().cpu()
        if self.inputs[0]["name"] == "input_values":
            images = images.squeeze(1).transpose(1, 2)
        wanted = self.inputs[0]["shape"][2:]
        if list(images.shape[1:]) != wanted:
            raise ExportError(
                f"`{self.inputs[0]['name']}` has samples of shape {tuple(images.shape[1:])}, and exported towers take "
                f"those that the model was made for, {tuple(wanted)}.",
                hint=Hint("backend", "torch", "take others"),
            )
        # One by one: in 8 bits what is added up has one scale for all that is given together, so that a vector would
        # depend on others; towers of published sizes are faster so (their values stay in the processor's cache), and
        # take less memory.
        found: list[Tensor] = []
        for number, image in enumerate(images):
            given = [values[0, 0] for values in self.run(image[None, None])]
            found = found or [values.new_empty(len(images), *values.shape) for values in given]
            for whole, values in zip(found, given, strict=True):
                whole[number] = values
        return found


def refuse(what: str) -> NoReturn:
    """Raise the error of what needs the model itself."""
    raise ExportError(f"A model in ONNX Runtime cannot {what}.", hint=Hint("backend", "torch", "run it in PyTorch"))


class OnnxModel(CavMaeSyncModel):
    """
    A `CavMaeSyncModel` whose towers run in ONNX Runtime: embeddings of windows and frames, and of their patches, with
    what local heads make of these.

    Args:
        config: The model's.
        towers: Modality -> its tower.
        exported: Where it comes from: `backend`, `precision`, `weights` (see `provenance.weights_fingerprint`) and
            `checkpoint` (see `provenance.checkpoint_record`).
    """

    def __init__(self, config: CavMaeSyncConfig, towers: Mapping[str, OnnxTower], exported: Mapping[str, Any]):
        super(CavMaeSyncModel, self).__init__(config)
        self.exported = dict(exported)
        self.audio_tower, self.video_tower = cast(Any, towers.get("audio")), cast(Any, towers.get("video"))
        self.joint_layers, self.contrastive_layers = nn.ModuleList(), nn.ModuleDict()
        # They are part of the towers; this says which have one.
        local = [name for name, tower in towers.items() if f"local_{name}_embeds" in tower.outputs]
        self.local_heads = nn.ModuleDict({name: nn.Identity() for name in local})
        self.dense_projections = nn.ModuleDict()
        super(CavMaeSyncModel, self).train(False)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs and outputs."""
        return torch.float32

    def train(self, mode: bool = True) -> "OnnxModel":
        """Refused but for evaluation mode."""
        if mode:
            refuse("be trained")
        return cast(OnnxModel, super().train(mode))

    def separate(self, modality: str, tokens: Tensor, record: LayerRecord | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings `(samples, hidden)` and patch embeddings of what a tower gives."""
        return tokens[:, 0], tokens[:, 1:]

    def _separate_locally(self, modality: str, images: Tensor, record: LayerRecord) -> tuple[Tensor, Tensor, Tensor]:
        if modality not in self.local_heads:
            return super()._separate_locally(modality, images, record)  # which says so
        tower: Any = self.tower(modality)
        embeds, patches, local = tower.outputs_of(images)
        return embeds, patches, local

    def make_record(self, output_attentions: bool | None, output_hidden_states: bool | None) -> LayerRecord:
        """Refused where anything is to be recorded."""
        if output_attentions or output_hidden_states:
            refuse("give the hidden states or attention of its layers")
        return LayerRecord(None, None)

    def fuse(self, audio_patches: Tensor, video_patches: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Refused: the joint layers are part of the towers."""
        refuse("fuse audio and frames")

    def encode_tokens(self, modality: str, images: Tensor, window_offsets: Tensor | None = None) -> Tensor:
        """Refused, see `fuse`."""
        refuse("give the tokens of an encoder")

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Refused: there are no weights."""
        refuse("be saved")


class OnnxTextModel(nn.Module):
    """
    What tools use of a `CavMaeSyncTextDualEncoderModel`, with the towers in ONNX Runtime: vectors of texts, and the
    audio-visual model inside. How texts and whole clips are scored stays in PyTorch.

    Args:
        config: The model's (`CavMaeSyncTextDualEncoderConfig`).
        base_model: The audio-visual model.
        tower: The text tower.
        parts: The weights of what joins texts to audio and video, by the model's names.
    """

    def __init__(self, config: Any, base_model: OnnxModel, tower: OnnxTower, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config, self.base_model, self.text_tower = config, base_model, tower
        self.video_gate = nn.Linear(config.space_dim, 1)
        self.projections = nn.ModuleDict()
        for name in ("audio", "video"):
            if f"projections.{name}.weight" in parts:
                width, hidden = parts[f"projections.{name}.weight"].shape
                self.projections[name] = nn.Linear(hidden, width, bias=False)
        self.moment_logit_scale, self.moment_logit_bias = (nn.Parameter(torch.zeros(())) for _ in range(2))
        self.load_state_dict(dict(parts))
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.base_model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of outputs."""
        return self.base_model.dtype

    @property
    def name_or_path(self) -> str:
        """Where the model lies."""
        return str(self.base_model.name_or_path)

    def train(self, mode: bool = True) -> "OnnxTextModel":
        """Refused but for evaluation mode."""
        if mode:
            refuse("be trained")
        return super().train(mode)

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> CavMaeSyncTextFeatures:
        """Embed texts: `pooler_output` `(texts, P)` and, with clip layers, `text_clip_embeds` `(texts, hidden)`."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        found = dict(zip(self.text_tower.outputs, self.text_tower.run(input_ids, mask), strict=True))
        return CavMaeSyncTextFeatures(
            pooler_output=found["text_embeds"],
            text_clip_embeds=found.get("text_clip_embeds"),
        )

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        refuse("score texts and whole clips")
