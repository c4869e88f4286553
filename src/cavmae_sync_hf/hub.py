# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How do models and processors reach transformers' auto classes, a folder and the Hub?"""

import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import HfApi
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoProcessor,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .files import whole_folder
from .model import pipelines_cavmae_sync
from .model.auto_map_cavmae_sync import AUTO_MAP, CUSTOM_PIPELINES
from .model.configuration_cavmae_sync import CavMaeSyncConfig
from .model.feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor
from .model.modeling_cavmae_sync import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
)
from .model.processing_cavmae_sync import CavMaeSyncProcessor
from .model.video_processing_cavmae_sync import CavMaeSyncVideoProcessor
from .model_card import CardDetails, create_model_card

# What travels with a model; everything else in the package stays here.
_CODE_FILES = "*_cavmae_sync.py"
# What a folder written by `save_for_hub` consists of, and nothing else: such a folder may be replaced as a whole.
_OWN_FILES = ("config.json", "README.md", "processor_config.json", "model*.safetensors*", _CODE_FILES)


def register_auto_classes() -> None:
    """Make transformers' auto classes and pipelines know this package, and let saved folders carry its code.

    Importing the package does this; calling it again changes nothing. Installed classes win over the code in a
    folder or on the Hub, also under `trust_remote_code=True`.
    """
    AutoConfig.register(CavMaeSyncConfig.model_type, CavMaeSyncConfig, exist_ok=True)
    AutoModel.register(CavMaeSyncConfig, CavMaeSyncModel, exist_ok=True)
    AutoModelForPreTraining.register(CavMaeSyncConfig, CavMaeSyncForPreTraining, exist_ok=True)
    for classifier in (AutoModelForAudioClassification, AutoModelForVideoClassification):
        classifier.register(CavMaeSyncConfig, CavMaeSyncForAudioVisualClassification, exist_ok=True)
    AutoFeatureExtractor.register(CavMaeSyncConfig, CavMaeSyncFeatureExtractor, exist_ok=True)
    AutoVideoProcessor.register(CavMaeSyncConfig, CavMaeSyncVideoProcessor, exist_ok=True)
    AutoProcessor.register(CavMaeSyncConfig, CavMaeSyncProcessor, exist_ok=True)

    for task, entry in CUSTOM_PIPELINES.items():
        pipeline_class = getattr(pipelines_cavmae_sync, entry["impl"].split(".")[1])
        if PIPELINE_REGISTRY.supported_tasks.get(task, {}).get("impl") is not pipeline_class:
            loaders = tuple(getattr(transformers, name) for name in entry["pt"])
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=loaders, type=entry["type"])

    # With these, `save_pretrained` (and so a Trainer's checkpoint) copies the code beside the weights.
    CavMaeSyncConfig.register_for_auto_class()
    CavMaeSyncModel.register_for_auto_class("AutoModel")
    CavMaeSyncForPreTraining.register_for_auto_class("AutoModelForPreTraining")
    CavMaeSyncForAudioVisualClassification.register_for_auto_class("AutoModelForVideoClassification")
    CavMaeSyncFeatureExtractor.register_for_auto_class()
    CavMaeSyncVideoProcessor.register_for_auto_class()
    CavMaeSyncProcessor.register_for_auto_class()


def save_for_hub(
    model: Any, processor: Any, directory: Any, *, card: CardDetails | None = None, overwrite: bool = False
) -> Path:
    """Write a folder that anyone can load with `trust_remote_code=True`, without this package.

    The folder holds the weights, `config.json`, `processor_config.json`, the code of every auto class and a model
    card with a snippet that runs. It is written under another name first, so that it is there whole or not at all.

    Args:
        model: Any of this package's models.
        processor: The [`CavMaeSyncProcessor`] that makes the model's inputs.
        directory: Where to; its parent folders are made.
        card: What the model card says beyond what the model itself tells.
        overwrite: Whether to replace a folder that an earlier call wrote.

    Returns:
        The folder.

    Raises:
        ValueError: The model is not one of this package's, the processor makes inputs of another size, or the
            directory holds something that would be lost.
    """
    target = Path(directory).expanduser()
    _check_pair(model, processor)
    _check_target(target, overwrite)
    with whole_folder(target) as folder:
        _write_folder(model, processor, folder)
        details = card or CardDetails()
        create_model_card(model, processor, details.named(target.resolve().name)).save(folder / "README.md")
    return target


def push_to_hub(
    model: Any,
    processor: Any,
    repo_id: str,
    *,
    card: CardDetails | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model, processor, code and model card",
) -> str:
    """Upload what `save_for_hub` writes to a model repository on the Hub, in one commit.

    Args:
        model: Any of this package's models.
        processor: The processor that makes the model's inputs.
        repo_id: `"owner/name"`, or `"name"` under the token's owner; created where it does not exist.
        card: As in `save_for_hub`. The snippet names the repository unless the card has a name.
        private: Whether a new repository is private; `None` is the owner's default.
        token: Access token; `None` takes the one that `hf auth login` stored.
        revision: Branch to upload to, made where it does not exist; the main one by default.
        commit_message: First line of the commit.

    Returns:
        The address of the commit.

    Raises:
        ValueError: As in `save_for_hub`, or `repo_id` is not a valid name.
    """
    _check_pair(model, processor)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as scratch:
        # First all that can fail here, then what others can see.
        folder = save_for_hub(model, processor, Path(scratch) / "model", card=card)
        full_name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(full_name, branch=revision, exist_ok=True)
        details = (card or CardDetails()).named(full_name)
        create_model_card(model, processor, details).save(folder / "README.md")
        commit = api.upload_folder(
            repo_id=full_name, folder_path=folder, revision=revision, commit_message=commit_message
        )
    return str(commit.commit_url)


def code_files() -> list[Path]:
    """The files of this package that a saved folder carries."""
    return sorted((Path(__file__).parent / "model").glob(_CODE_FILES))


def _write_folder(model: Any, processor: Any, folder: Path) -> None:
    for file in code_files():
        shutil.copyfile(file, folder / file.name)
    # A weight-conversion mapping, where one is registered, must not turn our names into the published ones.
    model.save_pretrained(folder, save_original_format=False)
    # safetensors makes its files private; others may read these as they may read the configuration.
    for weights in folder.glob("*.safetensors"):
        weights.chmod((folder / "config.json").stat().st_mode)
    save_processor(processor, folder)


def save_processor(processor: Any, folder: Path) -> None:
    """Write `processor_config.json`, with the classes of every auto class, and the code."""
    # Saving writes into the objects that are saved; the caller's processor stays as it was.
    saved = copy.copy(processor)
    for name in saved.get_attributes():
        setattr(saved, name, copy.copy(getattr(saved, name)))
    for part in (saved, *(getattr(saved, name) for name in saved.get_attributes())):
        part.auto_map = dict(AUTO_MAP)
    saved.save_pretrained(folder)


def _check_pair(model: Any, processor: Any) -> None:
    """Refuse what could be saved but not run."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type != CavMaeSyncConfig.model_type:
        raise ValueError(
            f"Got a {type(model).__name__} of model type {model_type!r}; pass one of this package's models, such as "
            "CavMaeSyncModel (without wrappers like DistributedDataParallel: pass `model.module`)."
        )
    extractor, video_processor = (getattr(processor, name, None) for name in ("feature_extractor", "video_processor"))
    if extractor is None or video_processor is None:
        raise ValueError(
            f"Got a {type(processor).__name__} as processor; pass a CavMaeSyncProcessor, for example "
            "CavMaeSyncProcessor.from_config(model.config)."
        )
    shape = video_processor.crop_size if video_processor.do_center_crop else video_processor.size
    made = {
        "audio_length": extractor.audio_length,
        "num_mel_bins": extractor.num_mel_bins,
        "image_size": shape["height"],
    }
    for name, value in made.items():
        wanted = getattr(model.config, name)
        if value is not None and value != wanted:
            raise ValueError(
                f"The processor makes inputs of `{name}` {value}, the model takes {wanted}; use "
                "CavMaeSyncProcessor.from_config(model.config)."
            )


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"{target} is a file; name a folder to write the model to.")
    entries = sorted(target.iterdir())
    if not entries:
        return
    foreign = [entry.name for entry in entries if entry.is_dir() or not any(map(entry.match, _OWN_FILES))]
    if foreign or not _is_own_model(target):
        examples = ", ".join(foreign[:5] or [entry.name for entry in entries[:5]])
        raise ValueError(f"{target} is not empty and holds other files ({examples}); name a new or empty folder.")
    if not overwrite:
        raise ValueError(f"{target} already holds a saved model; pass `overwrite=True` to replace it.")


def _is_own_model(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == CavMaeSyncConfig.model_type


__all__ = [
    "AUTO_MAP",
    "code_files",
    "push_to_hub",
    "register_auto_classes",
    "save_for_hub",
    "save_processor",
]
