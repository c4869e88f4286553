# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Models to train, from random weights, an own checkpoint, a published file or an ImageNet MAE.

`build_for_pretraining` makes a model and its processor at once. A classifier comes in three steps, since the data sets
need the processor and the head needs the classes: `starting_point` finds the configuration and the processor,
`find_labels` the classes, `build_classifier` makes the model.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..convert import Conversion, Family, convert_file
from ..data.dataset import CavMaeSyncDataset
from ..data.streaming import CavMaeSyncStreamingDataset
from ..data.tables import read_vocabulary
from ..inference.loading import (
    check_finite,
    check_weight_files,
    has_processor,
    read_config,
    read_processor,
    saved_model,
    saved_model_type,
)
from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.encoders_cavmae_sync import encoder_settings
from ..model.errors_cavmae_sync import Hint, TrainingError
from ..model.modeling_cavmae_sync import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
)
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from .freezing import Classifier, add_lora, freeze_idle
from .sets import EvaluationSet
from .settings import ClassificationModelArguments, ModelArguments

# Of a model that is continued: they would be of the towers as they were.
_NO_LOCAL_HEADS = {"local_head_size": 0}
_MOMENT_SETTINGS = ("frames_per_moment", "frame_step")
_CLASSIFIER = CavMaeSyncForAudioVisualClassification.__name__


def build_for_pretraining(
    arguments: ModelArguments, seed: int = 0
) -> tuple[CavMaeSyncForPreTraining, CavMaeSyncProcessor]:
    """The model to pretrain, in float32, and the processor that makes its inputs.

    Args:
        arguments: What to build.
        seed: Seeds the weights that are drawn at random.

    Raises:
        CavMaeSyncError: The source holds no model that can be pretrained, or a setting contradicts it.
    """
    torch.manual_seed(seed)
    changes, settings = _settings(arguments)
    source = _place(arguments.init_from)
    extra = _attention(arguments)
    alignment = "time"
    # Weights of single frames are those of one of several.
    moment = {} if source is None else {name: changes.pop(name) for name in _MOMENT_SETTINGS if name in changes}
    if source is not None and changes.get("subtract_mean_frame") and _sees_single_frames(source):
        raise TrainingError(
            f"{source}: was trained on single frames, and its weights would see nothing of several less their mean; "
            "leave out `subtract_mean_frame`, or `init_from`."
        )
    if source is None:
        encoders = {"audio": arguments.audio_encoder, "video": arguments.video_encoder}
        config = getattr(CavMaeSyncConfig, arguments.family)(**encoder_settings(**encoders, settings=changes))
        model = CavMaeSyncForPreTraining._from_config(config, **extra)
        model.load_encoders()
    elif _is_foreign(source):
        conversion, alignment = _convert(source, changes, arguments.family)
        if conversion.model_class is not CavMaeSyncForPreTraining:
            raise TrainingError(
                f"{source}: is a {conversion.report.family}, converted to {conversion.model_class.__name__}, which "
                "cannot be pretrained; take a file with a decoder."
            )
        model = CavMaeSyncForPreTraining.from_pretrained(
            None, config=conversion.config, state_dict=conversion.state_dict, **extra
        )
        _widen(model, moment, source)
    else:
        changes = _NO_LOCAL_HEADS | changes
        _changed(read_config(source), changes)  # now, not when the trained model is saved
        check_weight_files(source)
        model = CavMaeSyncForPreTraining.from_pretrained(source, **changes, **extra)
        check_finite(model, source)
        _widen(model, moment, source)
        processor = _saved_processor(source, changes, settings)
        if processor is not None:
            for name in moment:
                setattr(processor.video_processor, name, getattr(model.config, name))
            return model, processor
    return model, CavMaeSyncProcessor.from_config(model.config, **({"alignment": alignment} | settings))


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a data set.

    Attributes:
        count: How many there are.
        names: Their names in order, `None` where they are numbers alone.
        problem_type: `"single_label_classification"` or `"multi_label_classification"`.
    """

    count: int
    names: tuple[str, ...] | None
    problem_type: str


@dataclass
class StartingPoint:
    """Where the weights of a classifier come from.

    Attributes:
        config: The configuration, its classes apart.
        processor: Makes the model's inputs.
        source: Folder or Hub name of one of this package's models.
        state_dict: Converted weights of a published file, under a classifier's names.
        has_head: Whether there is a trained head among the weights, for the classes of `config`.
    """

    config: CavMaeSyncConfig
    processor: CavMaeSyncProcessor
    source: str | None = None
    state_dict: dict[str, Tensor] | None = None
    has_head: bool = False


def starting_point(arguments: ClassificationModelArguments) -> StartingPoint:
    """Read the configuration and the processor of what a training starts from.

    Raises:
        CavMaeSyncError: The source holds no model that fits, or a setting contradicts it.
    """
    changes, settings = _settings(arguments)
    if arguments.modality is not None:
        changes["modality"] = arguments.modality
    if arguments.classifier is not None:
        changes["classifier_type"] = arguments.classifier
    source = _place(arguments.init_from)
    if source is None:
        if arguments.audio_encoder or arguments.video_encoder:
            raise TrainingError(
                "A classifier takes pretrained encoders with a model that has them: name that in `init_from` "
                "(`CavMaeSyncModel.from_encoders` makes one)."
            )
        config = getattr(CavMaeSyncConfig, arguments.family)(**changes)
        start = StartingPoint(config, CavMaeSyncProcessor.from_config(config, **({"alignment": "time"} | settings)))
    elif _is_foreign(source):
        start = _from_foreign(source, changes, settings, arguments.family)
    else:
        known = read_config(source)
        config = _changed(known, _NO_LOCAL_HEADS | changes)
        processor = _saved_processor(source, changes, settings)
        if processor is None:
            processor = CavMaeSyncProcessor.from_config(config, **({"alignment": "time"} | settings))
        has_head = _CLASSIFIER in (known.architectures or []) and _same_head(known, config)
        start = StartingPoint(config, processor, source=source, has_head=has_head)
    if arguments.from_scratch:
        start.source, start.state_dict, start.has_head = None, None, False
    return start


def find_labels(
    train_set: CavMaeSyncDataset | CavMaeSyncStreamingDataset,
    evaluation_sets: Mapping[str, EvaluationSet],
    names_file: str | None = None,
    problem_type: str | None = None,
) -> LabelSpace:
    """The classes of a training set, checked against the evaluation sets.

    Args:
        train_set: A data set of this package.
        evaluation_sets: As `build_sets` gives them.
        names_file: With the names of the classes; default: those stored with the training set.
        problem_type: Default: a single label where every training clip has exactly one.

    Raises:
        TrainingError: There are no labels, or those of the sets contradict each other or the problem type.
    """
    labels = train_set.source.labels()
    if not any(labels):
        raise TrainingError("No training clip has a label; prepare the set with labels.")
    vocabulary = read_vocabulary(names_file)
    names = train_set.source.label_names if vocabulary is None else vocabulary.names
    largest = max(max(clip, default=0) for clip in labels)
    count = largest + 1 if names is None else len(names)
    if problem_type is None:
        single = all(len(set(clip)) == 1 for clip in labels)
        problem_type = "single_label_classification" if single else "multi_label_classification"
    space = LabelSpace(count, None if names is None else tuple(names), problem_type)
    _check_labels("The training set", labels, space)
    for name, evaluation_set in evaluation_sets.items():
        source = evaluation_set.dataset.source
        own = source.label_names
        if vocabulary is None and own is not None and names is not None and list(own) != list(names):
            odd = sorted(set(own) ^ set(names))[:5] or ["the same names in another order"]
            raise TrainingError(
                f"The evaluation set {name!r} has other classes than the training set ({', '.join(odd)}); prepare "
                "both with the same label names."
            )
        _check_labels(f"The evaluation set {name!r}", source.labels(), space)
    return space


def _check_labels(who: str, labels: list[list[int]], space: LabelSpace) -> None:
    if not any(labels):
        raise TrainingError(f"{who} has no labels; prepare it with labels, or leave it out.")
    largest = max(max(clip, default=0) for clip in labels)
    if largest >= space.count:
        raise TrainingError(f"{who} has a label {largest}, and there are {space.count} classes; correct the names.")
    odd = next((clip for clip in labels if len(set(clip)) != 1), None)
    if space.problem_type == "single_label_classification" and odd is not None:
        raise TrainingError(
            f"{who} has a clip with {len(set(odd))} labels; single-label classification needs exactly one each.",
            hint=Hint("problem_type", "multi_label_classification", "allow any number"),
        )


def build_classifier(
    start: StartingPoint, labels: LabelSpace, arguments: ClassificationModelArguments, seed: int = 0
) -> Classifier:
    """The model to train, in float32, its weights frozen or changed in low rank as asked for.

    Args:
        start: From `starting_point`.
        labels: From `find_labels`.
        arguments: The same as for `starting_point`.
        seed: Seeds the weights that are drawn at random; the head's unless it is continued.

    Returns:
        A `CavMaeSyncForAudioVisualClassification`, or a `peft.PeftModel` around one.

    Raises:
        TrainingError: The source lacks weights that the model needs, or has them in other sizes.
        ImportError: LoRA is asked for and peft not installed.
    """
    config: Any = copy.deepcopy(start.config)
    names = labels.names or tuple(f"LABEL_{number}" for number in range(labels.count))
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = labels.problem_type
    torch.manual_seed(seed)
    model = CavMaeSyncForAudioVisualClassification._from_config(config, **_attention(arguments))
    # The head's start does not depend on where the encoder comes from: it is the one drawn above.
    head = start.has_head and _same_classes(start.config, config)
    if start.source is not None:
        kind = CavMaeSyncForAudioVisualClassification if head else CavMaeSyncModel
        _take_weights(model if head else model.model, _load(kind, start.source), start.source)
    elif start.state_dict is not None:
        for part in ("model", "head") if head else ("model",):
            prefix = f"{part}."
            weights = {k.removeprefix(prefix): v for k, v in start.state_dict.items() if k.startswith(prefix)}
            _take_weights(getattr(model, part), weights, str(arguments.init_from))
    model.name_or_path = arguments.init_from or ""  # an adapter's file names it
    if arguments.lora_rank:
        return add_lora(
            model,
            arguments.lora_rank,
            alpha=arguments.lora_alpha,
            dropout=arguments.lora_dropout,
            targets=arguments.lora_targets,
        )
    if arguments.freeze == "encoder":
        model.model.requires_grad_(False)
    else:
        freeze_idle(model)
    return model


def _settings(arguments: ModelArguments) -> tuple[dict[str, Any], dict[str, Any]]:
    """What differs in the configuration and in the processor."""
    config: Any = arguments.model_config
    processor: Any = arguments.processor
    return dict(config or {}), dict(processor or {})


def _widen(model: CavMaeSyncForPreTraining, moment: Mapping[str, Any], source: str) -> None:
    """Let a model that was loaded see as many frames of each moment as is asked for."""
    if not moment:
        return
    try:
        count = moment.get("frames_per_moment", model.config.frames_per_moment)
        model.model.set_frames_per_moment(count, moment.get("frame_step"))
    except ValueError as error:
        raise TrainingError(f"{source}: {error}") from error


def _attention(arguments: ModelArguments) -> dict[str, Any]:
    return {"attn_implementation": arguments.attention} if arguments.attention else {}


def _place(source: str | None) -> str | None:
    """The file or folder of a model by any of its names, or its name on the Hub."""
    return source if source is None or Path(source).expanduser().is_file() else saved_model(source)


def _is_foreign(source: str) -> bool:
    """Whether it is a file, or a folder of another model (a ViT-MAE); Hub names are taken for this package's."""
    path = Path(source).expanduser()
    if path.is_file():
        return True
    return (path / "config.json").is_file() and saved_model_type(str(path)) != CavMaeSyncConfig.model_type


def _sees_single_frames(source: str) -> bool:
    return _is_foreign(source) or CavMaeSyncConfig.from_pretrained(source).frames_per_moment == 1


def _convert(source: str, changes: Mapping[str, Any], family: str) -> tuple[Conversion, str]:
    """Convert a published file or folder; also how a model of its kind aligns windows with frames."""
    preset: dict[str, Any] = {}
    if family == "cav_mae":
        config, default = CavMaeSyncConfig.cav_mae(), CavMaeSyncConfig()
        names = ("audio_length", "num_frames", "use_global_tokens", "num_register_tokens", "contrastive_loss_weight")
        preset = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(default, name)}
    conversion = convert_file(source, preset | dict(changes))
    return conversion, "time" if conversion.report.family == Family.INITIALISATION else "reference"


def _from_foreign(source: str, changes: dict[str, Any], settings: dict[str, Any], family: str) -> StartingPoint:
    """From a published file: of a pretraining, a classifier, or an ImageNet MAE."""
    # Head and modality are this training's business; the file is taken for what it is.
    names = ("modality", "classifier_type", "problem_type")
    ours = {name: value for name, value in changes.items() if name in names}
    rest = {name: value for name, value in changes.items() if name not in names}
    conversion, alignment = _convert(source, rest, family)
    config = _changed(conversion.config, ours)
    state_dict = conversion.state_dict
    if conversion.model_class is CavMaeSyncModel:
        state_dict = {f"model.{name}": tensor for name, tensor in state_dict.items()}
    is_classifier = conversion.model_class is CavMaeSyncForAudioVisualClassification
    return StartingPoint(
        config,
        CavMaeSyncProcessor.from_config(config, **({"alignment": alignment} | settings)),
        state_dict=state_dict,
        has_head=is_classifier and _same_head(conversion.config, config),
    )


def _saved_processor(
    source: str, changes: Mapping[str, Any], settings: Mapping[str, Any]
) -> CavMaeSyncProcessor | None:
    """The processor saved with a model, with the settings that were named and the number of frames of a changed
    configuration; `None` where there is none."""
    if not has_processor(source):
        return None
    processor = read_processor(source)
    for part in (processor.feature_extractor, processor.video_processor):
        part.num_frames = changes.get("num_frames", part.num_frames)
    for name, value in settings.items():
        if not hasattr(processor.feature_extractor, name):
            raise TrainingError(f"`processor` has `{name}`, which the feature extractor does not know.")
        setattr(processor.feature_extractor, name, value)
        if name == "alignment":
            processor.video_processor.alignment = value
    return processor


def _changed(config: CavMaeSyncConfig, changes: Mapping[str, Any]) -> CavMaeSyncConfig:
    """The configuration with some settings changed, and checked as a whole."""
    return CavMaeSyncConfig.from_dict(config.to_dict() | dict(changes))


def _same_head(first: CavMaeSyncConfig, second: CavMaeSyncConfig) -> bool:
    """Whether the weights of a head fit another configuration, its classes apart."""
    names = ("classifier_type", "modality", "hidden_size", "num_classifier_layers")
    return all(getattr(first, name) == getattr(second, name) for name in names)


def _same_classes(first: CavMaeSyncConfig, second: CavMaeSyncConfig) -> bool:
    """Whether two configurations have the same classes, as far as names tell."""
    generic = {number: f"LABEL_{number}" for number in range(first.num_labels or 0)}
    named = generic not in (first.id2label, second.id2label)
    return first.num_labels == second.num_labels and (not named or first.id2label == second.id2label)


def _load(kind: Any, source: str) -> dict[str, Tensor]:
    """Weights of one of this package's models, as a model of its own configuration; none of them made up."""
    check_weight_files(source)
    model, report = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    check_finite(model, source)
    weights: dict[str, Tensor] = model.state_dict()
    return {name: tensor for name, tensor in weights.items() if name not in report["missing_keys"]}


def _take_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights; those of the model must all be there, others (such as another tower's) are no matter."""
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(weights))
    if missing:
        raise TrainingError(
            f"{source}: lacks weights that the classifier needs: {', '.join(missing[:5])}"
            f"{' ...' if len(missing) > 5 else ''}. Name a model of these modalities, or set `modality` to what it "
            "has."
        )
    for name, value in wanted.items():
        if value.shape != weights[name].shape:
            raise TrainingError(
                f"{source}: `{name}` has shape {tuple(weights[name].shape)}, the settings ask for "
                f"{tuple(value.shape)}. Leave sizes out of `model_config`, they are those of the model."
            )
    model.load_state_dict({name: weights[name] for name in wanted})
