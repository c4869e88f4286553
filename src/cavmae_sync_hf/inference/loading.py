# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A model folder or Hub name becomes a model and its processor, fit for a use."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..convert.catalogue import convert_published
from ..convert.reading import not_finite, read_json_object, read_shapes, shorten, weight_files
from ..files import StrPath
from ..hub import register_auto_classes
from ..model.configuration_cavmae_sync import CONFIG_VALUES, CavMaeSyncConfig
from ..model.configuration_lm_cavmae_sync import LM_CONFIG_VALUES, CavMaeSyncLMConfig
from ..model.configuration_text_cavmae_sync import (
    TEXT_CONFIG_VALUES,
    CavMaeSyncTextDualEncoderConfig,
    audio_visual_config,
)
from ..model.encoder_families_cavmae_sync import check_extractor, num_blocks
from ..model.errors_cavmae_sync import Hint, ModelError
from ..model.feature_extraction_cavmae_sync import FEATURE_VALUES, CavMaeSyncFeatureExtractor
from ..model.modeling_cavmae_sync import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncPreTrainedModel,
)
from ..model.modeling_lm_cavmae_sync import CavMaeSyncForConditionalGeneration
from ..model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model.processing_lm_cavmae_sync import CavMaeSyncLMProcessor
from ..model.values_cavmae_sync import Allowed, check_values, choice, optional, shown
from ..model.video_processing_cavmae_sync import VIDEO_VALUES, CavMaeSyncVideoProcessor
from ..names import EXAMPLE, HUB, PUBLISHED, check_model_name, example_model, split_revision

_KERNEL = optional(
    Allowed("the name of one of transformers' own", lambda value: isinstance(value, str) and value.isidentifier())
)
# What transformers would do with the others of a file's values comes later, and in its own words.
_FILE_VALUES = {
    "dtype": optional(choice("float32", "bfloat16", "float16", "float64")),
    "torch_dtype": optional(choice("float32", "bfloat16", "float16", "float64")),
    # An address would have transformers fetch code from the Hub and run it.
    "attn_implementation": _KERNEL,
    "_attn_implementation": _KERNEL,
    "experts_implementation": _KERNEL,
    "_experts_implementation": _KERNEL,
}
_ENCODER = optional(Allowed("a mapping, with kernels of transformers' own", lambda value: _is_harmless(value)))
_CONFIG_FILE_VALUES = CONFIG_VALUES | _FILE_VALUES
_CONFIG_FILE_VALUES |= {f"{modality}_encoder_config": _ENCODER for modality in ("audio", "video")}
# Of models that have an audio-visual one inside, by their type.
_JOINED_FILE_VALUES = {
    kind.model_type: values | _FILE_VALUES | {"text_config": _ENCODER}
    for kind, values in ((CavMaeSyncTextDualEncoderConfig, TEXT_CONFIG_VALUES), (CavMaeSyncLMConfig, LM_CONFIG_VALUES))
}
# File, the part of it, and what its settings may be; transformers takes the parts from files of their own as well.
_PROCESSOR_FILES = (
    ("processor_config.json", "feature_extractor", FEATURE_VALUES),
    ("processor_config.json", "video_processor", VIDEO_VALUES),
    ("preprocessor_config.json", "", FEATURE_VALUES),
    ("video_preprocessor_config.json", "", VIDEO_VALUES),
)
_LAYERS = ("num_modality_layers", "num_joint_layers", "num_contrastive_head_layers")
_LONGEST_REASON = 300
_MODEL_FILES = ["*.json", "model*.safetensors", "vocab.txt", "merges.txt", "*.model"]  # the last three: tokenizers

_CLASSES: dict[str, Any] = {
    "embedding": CavMaeSyncModel,
    "classification": CavMaeSyncForAudioVisualClassification,
    "pretraining": CavMaeSyncForPreTraining,
    "text": CavMaeSyncTextDualEncoderModel,
    "answer": CavMaeSyncForConditionalGeneration,
}
Use = Literal["embedding", "classification", "pretraining", "text", "answer"]
# Of the audio-visual model in the weights of a model with text, and of one with a language model.
_INSIDE = f"{CavMaeSyncTextDualEncoderModel.base_model_prefix}."
_INSIDE_LM = f"{CavMaeSyncForConditionalGeneration.base_model_prefix}.{_INSIDE}"


def load_torch_model(
    name: StrPath,
    *,
    use: Use = "embedding",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    modalities: Literal["any", "both"] = "any",
) -> tuple[Any, Any]:
    """A model that PyTorch runs, and its processor; arguments and errors as of `loading.load_model`."""
    name, outer, processor = read_model(name, use=use, modalities=modalities)
    config = audio_visual_config(outer)
    whole = use in ("text", "answer")
    check_weight_files(name, _CLASSES[use], outer if whole else config)
    inside: dict[str, Any] = {}
    if outer is not config and not whole:
        prefix = _INSIDE_LM if isinstance(outer, CavMaeSyncLMConfig) else _INSIDE
        inside = {"config": config, "key_mapping": {f"^{re.escape(prefix)}": ""}}
    with _reasons_told(name):
        model, report = _CLASSES[use].from_pretrained(name, dtype=dtype, output_loading_info=True, **inside)
    if whole:
        _inside(model).config._name_or_path = str(name)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{name}: the weights lack {shorten(missing, 3)}; save the model anew.")
    check_finite(model, name)
    return model.to(choose_device(device)).eval(), processor


def read_model(
    name: StrPath, *, use: Use = "embedding", modalities: Literal["any", "both"] = "any"
) -> tuple[str, Any, Any]:
    """All of a saved model but its weights, fit for a use: name, configuration and processor.

    Arguments and errors are those of `loading.load_model`. The configuration of a model with text, or with a language
    model, is the whole of it.
    """
    name = saved_model(name)
    from transformers.utils import logging

    register_auto_classes()
    logging.disable_progress_bar()
    with_text, answers = has_text(name), has_language_model(name)
    outer = read_joined_config(name) if with_text or answers else read_config(name)
    config = audio_visual_config(outer)
    if modalities == "both" and config.modality != "multimodal":
        raise ModelError(f"{name} has the {config.modality} tower alone; this compares audio and video.")
    if use == "text" and not with_text:
        raise ModelError(
            f"{name} has no text encoder; name a model with text: `cavmae-sync text` trains one, and "
            "CavMaeSyncTextDualEncoderModel.from_av_text_pretrained joins two models."
        )
    if use == "answer" and not answers:
        raise ModelError(
            f"{name} has no language model; name a model with one: `cavmae-sync instruct` trains one, and "
            "CavMaeSyncForConditionalGeneration.from_av_text_pretrained joins two models."
        )
    kinds = outer.architectures or []
    if use in ("classification", "pretraining") and _CLASSES[use].__name__ not in kinds:
        remedy = "`cavmae-sync finetune` trains one" if use == "classification" else "name another"
        hint = Hint("labels", "dog,rain", "label in words") if use == "classification" and with_text else ()
        raise ModelError(
            f"{name} was saved as {', '.join(kinds) or 'a bare model'}, without the {use} head that this needs; "
            f"{remedy}.",
            hint=hint,
        )
    processor: Any = read_processor(name, CavMaeSyncLMProcessor if use == "answer" else CavMaeSyncProcessor)
    if use == "text" and not processor.has_tokenizer:
        raise ModelError(
            f"{name} holds no tokenizer; save the text encoder's beside the model: "
            "CavMaeSyncProcessor(feature_extractor, video_processor, tokenizer).save_pretrained(folder)."
        )
    if config.modality != "video":
        with _told(Path(name)):
            clip_length = config.heard_length if config.audio_context == "clip" else None
            check_extractor(config.audio_encoder_config, processor.feature_extractor, clip_length)
    return name, outer, processor


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device of a name; of `"auto"` the first of CUDA, MPS and CPU that this machine has."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def saved_model(name: StrPath) -> str:
    """What transformers loads by a model's name: a folder, which published weights are converted into, or a Hub name.

    Raises:
        ModelError: As `check_model_name` and `convert_published`.
    """
    name = os.fspath(name)
    check_model_name(name)
    if Path(name).is_dir():
        return name
    if name == EXAMPLE:
        return str(example_model())
    if name.startswith(PUBLISHED):
        return str(convert_published(name)[0])
    repository, revision = split_revision(name.removeprefix(HUB))
    return repository if revision is None else str(_fetched(repository, revision))


def model_folder(name: StrPath) -> Path:
    """The folder of a saved model by any of its names; of the Hub's, one in its cache with all files of the model.

    Raises:
        ModelError: As `saved_model`, or the Hub gives no such model.
    """
    place = saved_model(name)
    return Path(place) if Path(place).is_dir() else _fetched(place)


def _fetched(repository: str, revision: str | None = None) -> Path:
    """The folder in the Hub's cache with all files of a model, of its main branch or another revision."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_MODEL_FILES))
    except OSError as error:
        named = repository if revision is None else f"{repository}@{revision}"
        raise ModelError(f"The Hub gives no model {named}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """The beginning of what the Hub's client says, which goes on for many lines."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def read_config(name: str) -> CavMaeSyncConfig:
    """The configuration of a saved model, whose values are checked before anything is made of them.

    Of a model with text, or with a language model, it is that of the audio-visual model inside.

    Raises:
        ModelError: There is no such model, it is of another kind, or a value is not allowed; the file is named.
    """
    name = saved_model(name)
    if has_text(name) or has_language_model(name):
        return audio_visual_config(read_joined_config(name))
    file, values = _read_config_file(name)
    kind = values.get("model_type")
    if kind != CavMaeSyncConfig.model_type:
        raise ModelError(f"{name} holds a model of type {shown(kind)}, not {CavMaeSyncConfig.model_type!r}.")
    with _told(file.parent, file.name):
        check_values(values, _CONFIG_FILE_VALUES)
    return cast(CavMaeSyncConfig, _made_config(name, file))


def has_text(name: str) -> bool:
    """Whether a saved model is one with a text encoder.

    Raises:
        ModelError: There is no such model, or its file cannot be read.
    """
    return bool(saved_model_type(name) == CavMaeSyncTextDualEncoderConfig.model_type)


def has_language_model(name: str) -> bool:
    """Whether a saved model is one with a language model; errors as of `has_text`."""
    return bool(saved_model_type(name) == CavMaeSyncLMConfig.model_type)


def read_joined_config(name: str) -> Any:
    """The whole configuration of a saved model with text, or with a language model; see `read_config`."""
    name = saved_model(name)
    file, values = _read_config_file(name)
    with _told(file.parent, file.name):
        check_values(values, _JOINED_FILE_VALUES[str(values.get("model_type"))])
        inside = values.get("av_config")
        if not isinstance(inside, dict) or not isinstance(values.get("text_config"), dict):
            raise ValueError("`av_config` and `text_config` must hold settings by name.")
        check_values(inside, _CONFIG_FILE_VALUES)
    return _made_config(name, file)


def _made_config(name: str, file: Path) -> Any:
    """The configuration object of checked values."""
    from transformers import AutoConfig

    register_auto_classes()
    with _reasons_told(str(file)):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def _is_harmless(encoder: Any, inside: bool = False) -> bool:
    """Whether the configuration of an encoder, and of its parts, would have transformers fetch no code."""
    if not isinstance(encoder, Mapping):
        return inside
    kernels = all(_KERNEL(encoder.get(name)) for name in _CONFIG_FILE_VALUES if name.endswith("_implementation"))
    return kernels and all(_is_harmless(part, inside=True) for part in encoder.values())


def saved_model_type(name: str) -> Any:
    """What a saved model's configuration says that it is.

    Raises:
        ModelError: There is no such model, or its file cannot be read.
    """
    return _read_config_file(name)[1].get("model_type")


def _read_config_file(name: str) -> tuple[Path, dict[str, Any]]:
    """Where a configuration lies, and what it says."""
    name = saved_model(name)
    try:
        file = _saved_file(name, "config.json", needed=True)
    except OSError as error:
        raise ModelError(
            f"There is no folder {name}, and the Hub gives no model of this name: {_first_line(error)}"
        ) from error
    with _told(file.parent, file.name):
        return file, read_json_object(file)


def has_processor(name: str) -> bool:
    """Whether a processor was saved beside a model."""
    return any(_saved_file(name, file).is_file() for file, _, _ in _PROCESSOR_FILES)


def read_processor(name: str, kind: type[Any] = CavMaeSyncProcessor) -> Any:
    """The processor saved beside a model; code in the folder, or that it names, is not run.

    Args:
        name: Folder or Hub name.
        kind: `CavMaeSyncLMProcessor` for that of a model with a language model, which otherwise becomes one of the
            audio-visual model inside.

    Raises:
        ModelError: There is none, or of another kind, or a setting is not allowed; the file is named.
    """
    from transformers import AutoProcessor

    if not has_processor(name):
        raise ModelError(
            f"{name} holds no processor_config.json; save a processor beside the model, such as "
            "CavMaeSyncProcessor.from_config(model.config)."
        )
    for file_name, part, table in _PROCESSOR_FILES:
        file = _saved_file(name, file_name)
        if not file.is_file():
            continue
        with _told(file.parent, file_name):
            values = read_json_object(file)
            values = values.get(part, {}) if part else values
            if not isinstance(values, dict):
                raise ValueError(f"`{part}` is {shown(values)}; it must hold settings by name.")
            check_values(values, table)
    register_auto_classes()
    with _reasons_told(name):
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    if kind is CavMaeSyncProcessor and isinstance(processor, CavMaeSyncLMProcessor):
        processor = CavMaeSyncProcessor(processor.feature_extractor, processor.video_processor)
    parts = (processor, getattr(processor, "feature_extractor", None), getattr(processor, "video_processor", None))
    kinds: tuple[type[Any], ...] = (kind, CavMaeSyncFeatureExtractor, CavMaeSyncVideoProcessor)
    for made, wanted in zip(parts, kinds, strict=True):
        if not isinstance(made, wanted):
            raise ModelError(
                f"{name}: its processor files make a {type(made).__name__} in place of a {wanted.__name__}; save the "
                "processor anew."
            )
    return processor


def check_weight_files(
    name: str, kind: type[PreTrainedModel] | None = None, config: PreTrainedConfig | None = None
) -> None:
    """Refuse weight files of which no model can be made, before it is tried.

    Args:
        name: Folder or Hub name.
        kind: With a configuration: the class whose encoder the weights must fit.
        config: Its sizes.

    Raises:
        ModelError: A file is missing, truncated, or none, or holds a model of other sizes.
    """
    folder = Path(name)
    if not folder.is_dir():
        # Of the Hub's models only what one file holds is looked at; transformers fetches it, as it would anyway.
        file = _saved_file(name, "model.safetensors")
        if not file.is_file():
            return
        folder = file.parent
    shapes: dict[str, tuple[int, ...]] = {}
    with _told(folder):
        for file in weight_files(folder):
            shapes |= read_shapes(file)
        if kind is not None and config is not None and getattr(config, "quantization_config", None) is None:
            _check_shapes(shapes, kind, config)


def check_finite(model: torch.nn.Module, name: str) -> None:
    """Refuse weights that are NaN or infinite: all they give is so too.

    Args:
        model: As it was loaded; one pass over its weights.
        name: What messages call it.

    Raises:
        ModelError: Names the tensors.
    """
    broken = not_finite(dict(model.named_parameters()) | dict(model.named_buffers()))
    if broken:
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        raise ModelError(
            f"{name}: {len(broken)} of its tensors hold NaN or infinite values as {dtype} ({shorten(broken, 3)}); "
            "take another checkpoint" + (f", or another precision than {dtype}." if dtype != "float32" else ".")
        )


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], kind: type[PreTrainedModel], config: Any) -> None:
    """Compare what the weight files hold with what the configuration asks for; heads that are not wanted are left."""
    prefix = f"{CavMaeSyncPreTrainedModel.base_model_prefix}."
    layers = 1 + max((int(number) for name in shapes for number in re.findall(r"\.(\d+)\.", name)), default=0)
    own = audio_visual_config(config)
    counts = [(name, getattr(own, name)) for name in _LAYERS]
    if own is not config:
        counts += [(name, getattr(config, name, 0)) for name in ("num_text_layers", "num_clip_layers")]
        counts += [("num_hidden_layers", getattr(config.text_config, "num_hidden_layers", 0))]
    for name, count in counts:
        if count > layers:
            raise ModelError(f"config.json has `{name}` {count}, and the weights have {layers} at most.")
    for modality, other in own.encoders.items():
        if own.save_encoders == "whole" and num_blocks(other) > layers:
            raise ModelError(
                f"config.json has a {modality} encoder of {num_blocks(other)} blocks, and the weights have {layers} "
                "at most."
            )
    with torch.device("meta"):
        made: Any = kind(config)
        inside = _inside(made) if own is not config else made
        place = next(f"{name}." if name else "" for name, module in made.named_modules() if module is inside)
        elsewhere = {place + name for name in inside.referenced_weights()}
        if getattr(config, "tie_word_embeddings", False):
            elsewhere |= set(getattr(made, "_tied_weights_keys", None) or {})
        wanted = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items() if name not in elsewhere}
    if kind is CavMaeSyncModel:
        for start in (prefix, _INSIDE):  # else it was saved alone
            if any(name.startswith(start) for name in shapes):
                shapes = {name.removeprefix(start): shape for name, shape in shapes.items() if name.startswith(start)}
    missing = [name for name in wanted if name not in shapes]
    parts = {_part(name, prefix) for name in wanted}
    extra = [name for name in shapes if name not in wanted and _part(name, prefix) in parts]
    for names, what in ((missing, "lack"), (extra, "hold, and config.json has no place for,")):
        if names:
            raise ModelError(
                f"the weights {what} {shorten(names, 3)}: they and config.json are not of one model; take both from "
                "one place."
            )
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise ModelError(
                f"`{name}` has shape {shapes[name]} in the weights, and config.json asks for {shape}: they are not of "
                "one model; take both from one place."
            )


def _inside(model: Any) -> Any:
    """The audio-visual model inside a model with text, or with a language model."""
    return getattr(model, "model", model).av_model


def _part(name: str, prefix: str) -> str:
    """What a weight belongs to, such as `audio_tower` or `decoder`."""
    return name.removeprefix(prefix).partition(".")[0]


def _saved_file(name: str, file: str, needed: bool = False) -> Path:
    """Where a file of a saved model lies, of a Hub name in the Hub's cache; there may be none unless it is needed.

    Raises:
        OSError: The Hub gives no such repository, or not the file that is needed.
    """
    from transformers.utils import cached_file

    folder = Path(name)
    if folder.is_dir():
        return folder / file
    found = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=needed,
        _raise_exceptions_for_connection_errors=needed,
    )
    return folder / file if found is None else Path(found)


@contextlib.contextmanager
def _told(folder: Path, file: str = "") -> Iterator[None]:
    """Errors about what a file or a folder holds name it."""
    try:
        yield
    except ModelError as error:  # names the file itself
        raise ModelError(f"{folder}: {error.message}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / file}: {error}") from error


@contextlib.contextmanager
def _reasons_told(name: str) -> Iterator[None]:
    """Whatever transformers says of a folder, in a sentence: files that others wrote can fail in any way."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # it writes whole configurations, and tables of weights, beside its errors
    try:
        yield
    except Exception as error:
        reason: BaseException = error
        if type(error).__name__.startswith("Strict") and error.__cause__ is not None:
            reason = error.__cause__  # a configuration's check
        words = " ".join(str(reason).split()) or type(reason).__name__
        shortened = words if len(words) <= _LONGEST_REASON else f"{words[:_LONGEST_REASON]}..."
        raise ModelError(f"{name}: cannot be loaded ({shortened}).") from error
    finally:
        logging.set_verbosity(level)
