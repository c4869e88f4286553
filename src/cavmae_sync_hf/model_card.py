# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The card of a model, with a snippet that runs it."""

from dataclasses import dataclass, field, replace
from importlib import resources

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from .model.alignment_cavmae_sync import window_seconds
from .model.auto_map_cavmae_sync import CUSTOM_PIPELINES, TEXT_PIPELINES
from .model.configuration_cavmae_sync import CavMaeSyncConfig
from .model.configuration_text_cavmae_sync import audio_visual_config
from .model.encoder_families_cavmae_sync import encoder_family
from .model.processing_cavmae_sync import CavMaeSyncProcessor
from .model.processing_lm_cavmae_sync import CavMaeSyncLMProcessor

_PUBLISHED = """\
@inproceedings{araujo2025cavmaesync,
  title     = {{CAV-MAE Sync}: Improving Contrastive Audio-Visual Mask Autoencoders via Fine-Grained Alignment},
  author    = {Araujo, Edson and Rouditchenko, Andrew and Gong, Yuan and Bhati, Saurabhchand and Thomas, Samuel and
               Kingsbury, Brian and Karlinsky, Leonid and Feris, Rogerio and Glass, James R. and Kuehne, Hilde},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2025}
}
@inproceedings{gong2023cavmae,
  title     = {Contrastive Audio-Visual Masked Autoencoder},
  author    = {Gong, Yuan and Rouditchenko, Andrew and Liu, Alexander H. and Harwath, David and Karlinsky, Leonid and
               Kuehne, Hilde and Glass, James R.},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2023}
}"""

_INTENDED_USE = """\
Comparing the audio and the frames of a video at matching moments: retrieval of one by the other, localising what
sounds, measuring how well an audio track fits, and features for classifiers. Test it on your own data first. It is
not made to identify people, and its similarities are no evidence on their own that a recording is genuine or
forged."""

_BIASES = """\
The model repeats what its training videos over- and under-represent: languages, music, places, animals and devices.
How its quality differs between groups of people or regions is not known here; measure it where it matters."""

_LIMITS = (
    "{text}A window of audio is {seconds:.4g} s long and neighbouring windows overlap, so "
    "offsets of a fraction of a second are not resolved. {motion} Silence, still "
    "images and music laid over a video give similarities that say next to nothing."
)


@dataclass
class CardDetails:
    """What a model card says that the model does not know itself. What stays `None` gets a general text.

    Args:
        name: Title, and the repository or folder in the snippet.
        summary: First paragraph.
        license: Licence of the weights, as a Hub identifier (`"apache-2.0"`, `"bsd-2-clause"`, `"other"`, ...).
        license_name: Name of a licence that has no identifier (`license="other"`).
        license_link: Its address or file.
        datasets: Hub names of the training data.
        base_model: Hub name of the model that this one was tuned from.
        results: Measured values, as `huggingface_hub.EvalResult`; they become the card's table and its `model-index`.
        evaluations: How they were taken, a line each.
        weights_sha256: Checksum of the weights' file, where the card stands beside no weights.
        intended_use: What the model is for, and what not.
        limits: What it cannot do.
        biases: What it does unequally.
        training: Data, recipe and cost of the training.
        citation: BibTeX entries.
        tags: More tags.
    """

    name: str | None = None
    summary: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    datasets: list[str] = field(default_factory=list)
    base_model: str | None = None
    results: list[EvalResult] = field(default_factory=list)
    evaluations: list[str] = field(default_factory=list)
    weights_sha256: str | None = None
    intended_use: str | None = None
    limits: str | None = None
    biases: str | None = None
    training: str | None = None
    citation: str | None = None
    tags: list[str] = field(default_factory=list)

    def named(self, name: str) -> "CardDetails":
        """These details with a name, if they have none yet."""
        return self if self.name else replace(self, name=name)


def create_model_card(
    model: PreTrainedModel, processor: CavMaeSyncProcessor | CavMaeSyncLMProcessor, details: CardDetails | None = None
) -> ModelCard:
    """The card of a model, filled from the model, its processor and `details`.

    Args:
        model: Any of this package's models.
        processor: The processor that makes its inputs.
        details: What the model does not tell.

    Returns:
        A card with its metadata; `card.save("README.md")` writes it.
    """
    details = details or CardDetails()
    name = details.name or type(model).__name__
    licence = "The code in this repository is under the Apache License 2.0."
    if details.license is None:
        licence += " No licence is stated for the weights; ask their authors before you use them."
    else:
        link = f" ({details.license_link})" if details.license_link else ""
        licence = f"The weights are under {details.license_name or details.license}{link}. {licence}"
    return ModelCard.from_template(
        _card_data(model, details, name),
        template_str=resources.files(__package__).joinpath("model_card_template.md").read_text(encoding="utf-8"),
        name=name.rsplit("/", 1)[-1],
        summary=details.summary or _summary(model),
        facts=_facts(model) + ([("Weights", f"sha256 `{details.weights_sha256}`")] if details.weights_sha256 else []),
        snippet=usage_snippet(model, name),
        pipelines=", ".join(f"`{task}`" for task in pipeline_tasks(model)),
        preprocessing=_preprocessing(model, processor),
        intended_use=details.intended_use or _INTENDED_USE,
        limits=details.limits or _limits(model, processor),
        biases=details.biases or _BIASES,
        training=details.training or "Nothing is recorded about the training of this checkpoint.",
        results=details.results,
        evaluations=details.evaluations,
        licence=licence,
        citation=details.citation or _PUBLISHED,
    )


def usage_snippet(model: PreTrainedModel, name: str) -> str:
    """Lines that load a model by `name` and run it on the file `clip.mp4`."""
    if _has_language(model):
        return _language_snippet(name)
    if _has_text(model):
        return _text_snippet(name)
    auto_class = "AutoModelForVideoClassification" if _is_classifier(model) else "AutoModel"
    inputs = {
        "multimodal": "**inputs",
        "audio": 'input_values=inputs["input_values"]'
        + (', window_offsets=inputs["window_offsets"]' if model.config.audio_context == "clip" else ""),
        "video": 'pixel_values_videos=inputs["pixel_values_videos"]',
    }[model.config.modality]
    if _is_classifier(model):
        shown = "print(model.config.id2label[outputs.logits[0].argmax().item()])"
    elif model.config.modality == "multimodal":
        shown = "print(outputs.similarity[0])  # row: audio of moment i, column: frame of moment j"
    else:
        shown = f"print(outputs.{model.config.modality}_embeds.shape)  # (clips, moments, {model.config.hidden_size})"
    return f"""\
import torch
from transformers import {auto_class}, AutoProcessor

model = {auto_class}.from_pretrained("{name}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)

inputs = processor(videos="clip.mp4", return_tensors="pt")
with torch.no_grad():
    outputs = model({inputs})
{shown}"""


def _text_snippet(name: str) -> str:
    return f"""\
import torch
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)

inputs = processor(videos="clip.mp4", text=["a dog barks", "a bell rings"], return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
print(outputs.logits_per_text.sigmoid())  # row: text, column: clip"""


def _language_snippet(name: str) -> str:
    return f"""\
from transformers import AutoModelForMultimodalLM, AutoProcessor

model = AutoModelForMultimodalLM.from_pretrained("{name}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)

content = [{{"type": "video", "path": "clip.mp4"}}, {{"type": "text", "text": "when does the bell first sound ?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}], add_generation_prompt=True, tokenize=True, return_dict=True,
    return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=64)[:, inputs["input_ids"].shape[1]:]
print(processor.batch_decode(answer, skip_special_tokens=True)[0])"""


def pipeline_tasks(model: PreTrainedModel) -> list[str]:
    """Tasks of transformers' `pipeline` that a saved model works with; those of transformers itself come first.

    transformers' `feature-extraction` is none of them, since it feeds text to a tokenizer.
    """
    if _has_language(model):
        return ["any-to-any"]
    if _has_text(model):
        heard = ["zero-shot-audio-classification"] if audio_visual_config(model.config).modality != "video" else []
        return [*heard, *TEXT_PIPELINES]
    if not _is_classifier(model):
        pair = ["audio-visual-retrieval"] if model.config.modality == "multimodal" else []
        return ["audio-visual-feature-extraction", *pair]
    taken = [f"{modality}-classification" for modality in ("video", "audio")]
    return [
        *(task for task in taken if model.config.modality in ("multimodal", task[:5])),
        "audio-visual-classification",
    ]


def _card_data(model: PreTrainedModel, details: CardDetails, name: str) -> ModelCardData:
    tasks = pipeline_tasks(model)
    known = [task for task in tasks if task not in CUSTOM_PIPELINES | TEXT_PIPELINES]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=known[0] if known else None,
        tags=["audio-visual", "cav-mae", "cav-mae-sync", "custom_code", *tasks[bool(known) :], *details.tags],
        license=details.license,
        license_name=details.license_name,
        license_link=details.license_link,
        datasets=details.datasets or None,
        base_model=details.base_model,
        # The Hub wants a model's name with its results, and only then.
        model_name=name.rsplit("/", 1)[-1] if details.results else None,
        eval_results=details.results or None,
    )


def _is_classifier(model: PreTrainedModel) -> bool:
    return "Classification" in type(model).__name__


def _has_language(model: PreTrainedModel) -> bool:
    return hasattr(model.config, "tokens_per_frame")


def _has_text(model: PreTrainedModel) -> bool:
    return hasattr(model, "get_text_features")


def _limits(model: PreTrainedModel, processor: CavMaeSyncProcessor | CavMaeSyncLMProcessor) -> str:
    text = "" if _has_text(model) or _has_language(model) else "There is no text side. "
    if _has_language(model):
        text = "It answers every question, also those that the clip does not, and may say what is not there. "
    elif text == "" and model.config.text_loss == "sigmoid":
        text = "Scores of texts are those of the data that they were learned from, and of its wordings. "
    shifts = processor.video_processor.shifts
    motion = "Single frames are seen, not motion."
    if len(shifts) > 1:
        motion = f"Of motion it sees the {shifts[-1] - shifts[0]:.4g} s around a moment."
    seconds = window_seconds(processor.feature_extractor.audio_length)
    return _LIMITS.format(text=text, seconds=seconds, motion=motion)


def _summary(model: PreTrainedModel) -> str:
    config = audio_visual_config(model.config)
    if _has_language(model):
        return (
            "A CAV-MAE Sync model with a language model: it answers questions about what is heard and seen in videos, "
            "and when."
        )
    if _has_text(model):
        return (
            "A CAV-MAE Sync model with a text encoder: words find clips and moments of them, and name what is heard "
            "and seen."
        )
    if _is_classifier(model):
        seen = {"multimodal": "audio and frames", "audio": "audio", "video": "frames"}[config.modality]
        return f"A CAV-MAE Sync model that sorts video clips into {config.num_labels} classes by their {seen}."
    if config.modality != "multimodal":
        return f"The {config.modality} tower of a CAV-MAE Sync model: one embedding for every moment of a clip."
    return (
        "A CAV-MAE Sync model: it turns the audio and the frame at every moment of a video into embeddings that lie "
        "close together where the two belong to the same moment."
    )


def _facts(model: PreTrainedModel) -> list[tuple[str, str]]:
    config = audio_visual_config(model.config)
    rows, columns = config.audio_grid
    layers = f"{config.num_modality_layers} per modality"
    if config.encoders:
        layers = ", ".join(f"{config.tower_layers(modality)} for {modality}" for modality in ("audio", "video"))
    audio, video = config.encoders.get("audio"), config.encoders.get("video")
    waveform = audio is not None and encoder_family(audio).hears_waveforms
    heard = "samples" if waveform else "log-mel"
    patches = f"patches of {config.patch_size}" if video is None else "{} x {} patches".format(*config.video_grid)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    text = []
    if _has_text(model):
        encoder = model.config.text_config
        text = [("Text encoder", f"{encoder.model_type}, width {encoder.hidden_size}")]
    elif _has_language(model):
        language = model.config.text_config
        text = [
            ("Language model", f"{language.model_type}, width {language.hidden_size}, {language.vocab_size} tokens"),
            (
                "Tokens of a moment",
                f"{model.config.frame_tokens} for a frame, {model.config.window_tokens} for a window",
            ),
        ]
    return [
        ("Class", f"`{type(model).__name__}`"),
        ("Parameters", f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters:,}"),
        ("Modality", config.modality),
        ("Layers", f"{layers}, {config.num_joint_layers} joint"),
        *_encoders(config),
        ("Width", str(config.hidden_size)),
        ("Moments per clip", f"{config.num_frames} by default, any number works"),
        (
            "Audio of a moment",
            f"{config.audio_length} x {config.num_mel_bins} {heard}{_less_mean(config.subtract_mean_spectrum)}, "
            f"{rows} x {columns} patches",
        ),
        (_frames_of(config), f"{config.image_size} x {config.image_size} pixels, {patches}"),
        *text,
    ]


def _frames_of(config: CavMaeSyncConfig) -> str:
    """How many frames are seen of a moment."""
    if config.frames_per_moment == 1:
        return "Frame of a moment"
    frames = f"{config.frames_per_moment} frames of a moment, {config.frame_step:g} s apart"
    return frames + _less_mean(config.subtract_mean_frame)


def _less_mean(subtracted: bool) -> str:
    return ", less their mean" if subtracted else ""


def _encoders(config: CavMaeSyncConfig) -> list[tuple[str, str]]:
    """What is said of encoders of other models: what they are, how they were trained, and where their weights are."""
    facts = []
    trained = {"frozen": "frozen", "lora": f"low-rank changes of rank {config.encoder_lora_rank}", "full": "trained"}
    for modality, encoder in config.encoders.items():
        source, layer = (getattr(config, f"{modality}_encoder_{name}") for name in ("source", "layer"))
        words = [encoder.model_type + (f" from {source}" if source else ""), trained[config.encoder_training]]
        if layer is not None:
            words.append(f"output of block {layer}")
        if modality == "audio" and config.audio_context == "clip":
            words.append(
                f"hears clips of {window_seconds(config.heard_length):g} s, so that moments know what surrounds them"
            )
        if config.save_encoders == "reference":
            words.append(f"its weights are not in this folder but loaded from {source}, under its own license")
        facts.append((f"{modality.capitalize()} encoder", "; ".join(words)))
    return facts


def _preprocessing(model: PreTrainedModel, processor: CavMaeSyncProcessor | CavMaeSyncLMProcessor) -> str:
    extractor = processor.feature_extractor
    seconds = window_seconds(extractor.audio_length)
    side = audio_visual_config(model.config).image_size
    if extractor.alignment == "reference":
        alignment = (
            "Windows and frames are placed as in the published code, which takes every clip for one of "
            f"{window_seconds(extractor.reference_length):.4g} s: results compare with the published ones, but "
            "moments are right for clips of that length only."
        )
    else:
        alignment = "Every window is centred on the time of its frame, whatever the length of the clip."
    channel = {"first": "first channel", "mean": "mean of the channels"}.get(extractor.channel, extractor.channel)
    made = f"Kaldi log-mel filter bank, mean {extractor.mean} and standard deviation {extractor.std}"
    if extractor.features == "waveform":
        made = "samples as they are"
    return (
        f"Audio: {extractor.sampling_rate} Hz, {channel}, {made}, windows of {seconds:.4g} s. "
        f"Frames: {side} pixels, "
        f"ImageNet mean and standard deviation. {alignment} The processor does all of this."
    )


__all__ = ["CardDetails", "create_model_card", "pipeline_tasks", "usage_snippet"]
