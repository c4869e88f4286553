# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Registration with transformers' auto classes and pipelines, saved folders, and uploads to the Hub."""

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
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoProcessor,
    AutoVideoProcessor,
    PreTrainedModel,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .files import StrPath, parse_json, whole_folder
from .model import auto_classes_cavmae_sync
from .model.auto_classes_cavmae_sync import (
    CavMaeSyncConfig,
    CavMaeSyncFeatureExtractor,
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForConditionalGeneration,
    CavMaeSyncForPreTraining,
    CavMaeSyncLMConfig,
    CavMaeSyncLMModel,
    CavMaeSyncLMProcessor,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    CavMaeSyncTextDualEncoderConfig,
    CavMaeSyncTextDualEncoderModel,
    CavMaeSyncVideoProcessor,
)
from .model.auto_map_cavmae_sync import CODE_FILES, CUSTOM_PIPELINES, TEXT_PIPELINES
from .model.configuration_text_cavmae_sync import audio_visual_config
from .model.encoder_families_cavmae_sync import check_extractor
from .model.errors_cavmae_sync import Hint, ModelError
from .model_card import CardDetails, create_model_card

# What a folder written by `save_for_hub` consists of, and nothing else: such a folder may be replaced as a whole.
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model", "added_tokens.json")
_OWN_FILES = (
    *("config.json", "README.md", "processor_config.json", "model*.safetensors*", CODE_FILES),
    *_TOKENIZER_FILES,
)
_MODEL_TYPES = tuple(
    config.model_type for config in (CavMaeSyncConfig, CavMaeSyncTextDualEncoderConfig, CavMaeSyncLMConfig)
)


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
    AutoConfig.register(CavMaeSyncTextDualEncoderConfig.model_type, CavMaeSyncTextDualEncoderConfig, exist_ok=True)
    AutoModel.register(CavMaeSyncTextDualEncoderConfig, CavMaeSyncTextDualEncoderModel, exist_ok=True)
    AutoConfig.register(CavMaeSyncLMConfig.model_type, CavMaeSyncLMConfig, exist_ok=True)
    AutoModel.register(CavMaeSyncLMConfig, CavMaeSyncLMModel, exist_ok=True)
    for generator in (AutoModelForMultimodalLM, AutoModelForImageTextToText):
        generator.register(CavMaeSyncLMConfig, CavMaeSyncForConditionalGeneration, exist_ok=True)
    for config_class in (CavMaeSyncConfig, CavMaeSyncTextDualEncoderConfig, CavMaeSyncLMConfig):
        AutoFeatureExtractor.register(config_class, CavMaeSyncFeatureExtractor, exist_ok=True)
        AutoVideoProcessor.register(config_class, CavMaeSyncVideoProcessor, exist_ok=True)
        processor_class = CavMaeSyncLMProcessor if config_class is CavMaeSyncLMConfig else CavMaeSyncProcessor
        AutoProcessor.register(config_class, processor_class, exist_ok=True)

    for task, entry in (CUSTOM_PIPELINES | TEXT_PIPELINES).items():
        pipeline_class = getattr(auto_classes_cavmae_sync, entry["impl"].split(".")[1])
        if PIPELINE_REGISTRY.supported_tasks.get(task, {}).get("impl") is not pipeline_class:
            loaders = tuple(getattr(transformers, name) for name in entry["pt"])
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=loaders, type=entry["type"])

    # So that a subclass of these takes its own file along when it is saved, with its entry in the `auto_map`.
    CavMaeSyncModel.register_for_auto_class("AutoModel")
    CavMaeSyncForPreTraining.register_for_auto_class("AutoModelForPreTraining")
    CavMaeSyncForAudioVisualClassification.register_for_auto_class("AutoModelForVideoClassification")


def save_for_hub(
    model: PreTrainedModel,
    processor: CavMaeSyncProcessor | CavMaeSyncLMProcessor,
    directory: StrPath,
    *,
    card: CardDetails | None = None,
    overwrite: bool = False,
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
        ModelError: The model is not one of this package's, the processor makes inputs of another size, or the
            directory holds something that would be lost.
    """
    target = Path(directory).expanduser()
    _check_pair(model, processor)
    _check_target(target, overwrite)
    with whole_folder(target, overwrite=overwrite) as folder:
        # A weight-conversion mapping, where one is registered, must not turn our names into the published ones.
        model.save_pretrained(folder, save_original_format=False)
        # safetensors makes its files private; others may read these as they may read the configuration.
        for weights in folder.glob("*.safetensors"):
            weights.chmod((folder / "config.json").stat().st_mode)
        processor.save_pretrained(folder)
        details = card or CardDetails()
        create_model_card(model, processor, details.named(target.resolve().name)).save(folder / "README.md")
    return target


def push_to_hub(
    model: PreTrainedModel,
    processor: CavMaeSyncProcessor | CavMaeSyncLMProcessor,
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
        ModelError: As in `save_for_hub`.
        ValueError: `repo_id` is not a valid name.
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


def _check_pair(model: PreTrainedModel, processor: CavMaeSyncProcessor | CavMaeSyncLMProcessor) -> None:
    """Refuse what could be saved but not run."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in _MODEL_TYPES:
        raise ModelError(
            f"Got a {type(model).__name__} of model type {model_type!r}; pass one of this package's models, such as "
            "CavMaeSyncModel (without wrappers like DistributedDataParallel: pass `model.module`)."
        )
    extractor, video_processor = (getattr(processor, name, None) for name in ("feature_extractor", "video_processor"))
    if extractor is None or video_processor is None:
        raise ModelError(
            f"Got a {type(processor).__name__} as processor; pass a CavMaeSyncProcessor, for example "
            "CavMaeSyncProcessor.from_config(model.config)."
        )
    shape = video_processor.crop_size if video_processor.do_center_crop else video_processor.size
    if model_type == CavMaeSyncLMConfig.model_type:
        _check_tokens(model.config, processor)
    elif isinstance(processor, CavMaeSyncLMProcessor):
        raise ModelError(f"Got a CavMaeSyncLMProcessor for a {type(model).__name__}; pass a CavMaeSyncProcessor.")
    elif model_type == CavMaeSyncTextDualEncoderConfig.model_type and not processor.has_tokenizer:
        raise ModelError(
            "The processor has no tokenizer, and the model has a text encoder; pass "
            "CavMaeSyncProcessor(feature_extractor, video_processor, tokenizer)."
        )
    config = audio_visual_config(model.config)
    made = {
        "audio_length": extractor.audio_length,
        "num_mel_bins": extractor.num_mel_bins,
        "image_size": shape["height"],
        "frames_per_moment": video_processor.frames_per_moment,
    }
    if config.frames_per_moment > 1:
        made["frame_step"] = video_processor.frame_step
    for name, value in made.items():
        wanted = getattr(config, name)
        if value is not None and value != wanted:
            raise ModelError(
                f"The processor makes inputs of `{name}` {value}, the model takes {wanted}; use "
                "CavMaeSyncProcessor.from_config(model.config)."
            )
    if config.modality != "video":
        try:
            clip_length = config.heard_length if config.audio_context == "clip" else None
            check_extractor(config.audio_encoder_config, extractor, clip_length)
        except ValueError as error:
            raise ModelError(str(error)) from error


def _check_tokens(config: Any, processor: CavMaeSyncProcessor | CavMaeSyncLMProcessor) -> None:
    """Refuse a processor that writes other placeholders than a model with a language model reads."""
    if not isinstance(processor, CavMaeSyncLMProcessor):
        raise ModelError(f"Got a {type(processor).__name__} for a model with a language model; pass its LM processor.")
    for name in ("tokens_per_frame", "tokens_per_window", "merge_tokens", "video_token_id", "audio_token_id"):
        if getattr(processor, name) != getattr(config, name):
            raise ModelError(
                f"`{name}` of the processor is {getattr(processor, name)} and of the model {getattr(config, name)}; "
                "make the processor with the model's."
            )


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuse to write over anything but an earlier folder of `save_for_hub`, and over that unless it is asked for."""
    if not target.exists():
        return
    if not target.is_dir():
        raise ModelError(f"{target} is a file; name a folder to write the model to.")
    entries = sorted(target.iterdir())
    if not entries:
        return
    foreign = [entry.name for entry in entries if entry.is_dir() or not any(map(entry.match, _OWN_FILES))]
    try:
        model_type = parse_json((target / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        model_type = None
    if foreign or model_type not in _MODEL_TYPES:
        examples = ", ".join(foreign[:5] or [entry.name for entry in entries[:5]])
        raise ModelError(f"{target} is not empty and holds other files ({examples}); name a new or empty folder.")
    if not overwrite:
        raise ModelError(f"{target} already holds a saved model.", hint=Hint("overwrite", True, "replace it"))


__all__ = ["push_to_hub", "register_auto_classes", "save_for_hub"]
