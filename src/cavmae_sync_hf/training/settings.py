# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""This package's own settings of trainings and probes, as dataclasses that flags and recipes fill in.

Nothing here loads torch: the command line shows them in its help, and tells a wrong one, before anything is loaded.
"""

import difflib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from ..model.errors_cavmae_sync import TrainingError

# Models or labels that a probe is fitted to for comparison.
BASELINES = ("random_weights", "shuffled_labels")


class FlagError(TrainingError):
    """A flag is unknown, lacks its value, or has one that cannot be used."""

    @classmethod
    def unknown(cls, word: str, known: Iterable[str]) -> "FlagError":
        """About a word of the command line that is no flag, with the nearest of the settings' names."""
        if not word.startswith("-"):
            return cls(f"{word!r} belongs to no flag; the recipe comes first, before all flags.")
        flag = word.partition("=")[0]
        near = difflib.get_close_matches(flag.lstrip("-").replace("-", "_"), known, n=1)
        return cls(
            f"{flag} is no flag; " + (f"did you mean --{near[0]}?" if near else "--help-all shows all of them.")
        )


def setting(default: Any, text: str) -> Any:
    """A field of a dataclass with a line in the help; a list is copied for every object."""
    help_text = {"help": text.replace("%", "%%")}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=help_text)
    return field(default=default, metadata=help_text)


def mapping(name: str, value: Any) -> dict[str, Any] | None:
    """A mapping given as such or as JSON.

    Raises:
        TrainingError: It is neither.
    """
    if isinstance(value, str):
        from ..files import parse_json  # which loads numpy; the help does without

        try:
            value = parse_json(value)
        except json.JSONDecodeError as error:
            raise TrainingError(f"`{name}` is {value!r}, which is no JSON ({error}).") from error
    if value is not None and not isinstance(value, dict):
        raise TrainingError(f'`{name}` is {value!r}; it must be a mapping, such as {{"key": value}}.')
    return value


def evaluation_sources(value: Any) -> dict[str, str] | None:
    """`eval_data` as a mapping: given as such or as JSON, or one source alone, which is called as its folder or file.

    Raises:
        TrainingError: It begins like JSON and is none.
    """
    if isinstance(value, str | os.PathLike) and not (text := os.fspath(value).strip()).startswith("{"):
        name = PurePath(text.partition("?")[0].rstrip("/")).stem or "evaluation"
        return {name: text} if text and text != "null" else None
    return mapping("eval_data", value)


@dataclass
class ModelArguments:
    """Which model is trained, and from which weights.

    Attributes:
        init_from: Where weights come from; `None` draws all of them at random. One of this package's models, by any
            name that `load_model` takes, is continued. A published `.pth` or safetensors file, an ImageNet MAE file
            or a ViT-MAE folder is converted on the spot.
        family: Whose settings `model_config` starts from: `"cav_mae_sync"` (CVPR 2025) or `"cav_mae"` (ICLR 2023).
            Not used when a model is continued, whose own settings hold.
        model_config: Settings of `CavMaeSyncConfig` that differ, as a mapping or JSON.
        processor: Settings of the feature extractor that the model's configuration does not hold (`alignment`,
            `mean`, `std`, `channel`), as a mapping or JSON. Defaults are those of a continued model, else
            `alignment="time"`.
        attention: Implementation of attention, such as `"sdpa"` or `"flash_attention_2"`; default: transformers'
            choice.
        audio_encoder: Folder or Hub name of a pretrained encoder of transformers in place of the audio tower; `None`:
            the tower of this package, or what `model_config` says.
        video_encoder: Of the video tower, likewise.
    """

    init_from: str | None = setting(
        None, "Model: folder, Hub name, published:NAME, example, published or MAE file; empty: random weights."
    )
    family: Literal["cav_mae_sync", "cav_mae"] = setting("cav_mae_sync", "Whose settings `model_config` starts from.")
    model_config: dict[str, Any] | str | None = setting(None, "Settings of CavMaeSyncConfig that differ, as JSON.")
    processor: dict[str, Any] | str | None = setting(
        None, "Settings of the feature extractor (alignment, mean, std, channel), as JSON."
    )
    attention: str | None = setting(None, "Attention implementation, such as sdpa.")
    audio_encoder: str | None = setting(None, "Pretrained encoder in place of the audio tower.")
    video_encoder: str | None = setting(None, "Pretrained encoder in place of the video tower.")

    def __post_init__(self) -> None:
        self.model_config = mapping("model_config", self.model_config)
        if self.init_from and (self.audio_encoder or self.video_encoder):
            raise TrainingError(
                "`init_from` continues a model that has its towers; leave it out, or `audio_encoder` and "
                "`video_encoder`."
            )
        self.processor = mapping("processor", self.processor)


@dataclass
class ClassificationModelArguments(ModelArguments):
    """Which classifier is trained, from which weights, and which of them.

    Attributes:
        init_from: As in `ModelArguments`. A pretrained model gives the encoder; a classifier gives its head as well
            where it has the same classes and the same kind of head.
        from_scratch: Take the sizes and the processor of `init_from`, but draw all weights at random, to see what
            pretraining is worth.
        modality: What the model sees; `"audio"` and `"video"` leave the other tower out. Default: that of the model
            that is continued, else both.
        classifier: `"mean_pooling"` (CAV-MAE: frames are classified one by one and their predictions averaged) or
            `"frame_attention"` (CAV-MAE Sync: layers that attend over the clip's frames; give `frames_per_clip` as
            many frames as a clip has). Default: that of the model that is continued, else mean pooling.
        problem_type: Cross-entropy over classes that exclude each other, or binary cross-entropy of each class.
            Default: the former where every training clip has exactly one label.
        class_names: File with the names of the classes (text lines, JSON, or a CSV table of index, mid and display
            name); default: those stored with the training set.
        freeze: `"encoder"` trains the head alone.
        lora_rank: Rank of low-rank changes to the encoder (LoRA), trained instead of its weights; `0`: none. Needs
            the `lora` extra.
        lora_alpha: Their scale is this over the rank; `0`: twice the rank.
        lora_dropout: Dropout on their inputs.
        lora_targets: Last parts of the names of the linear layers that get them.
    """

    from_scratch: bool = setting(False, "Take sizes and processor of init_from, and no weights.")
    modality: Literal["multimodal", "audio", "video"] | None = setting(None, "What the model sees.")
    classifier: Literal["mean_pooling", "frame_attention"] | None = setting(None, "Which head the model has.")
    problem_type: Literal["single_label_classification", "multi_label_classification"] | None = setting(
        None, "Cross-entropy, or binary cross-entropy of each class."
    )
    class_names: str | None = setting(None, "File of class names; empty: those stored with the training set.")
    freeze: Literal["none", "encoder"] = setting("none", "What is not trained.")
    lora_rank: int = setting(0, "Rank of low-rank changes to the encoder; 0: none.")
    lora_alpha: float = setting(0.0, "Scale of the changes; 0: twice the rank.")
    lora_dropout: float = setting(0.0, "Dropout on the inputs of the changes.")
    lora_targets: list[str] = setting(["q_proj", "v_proj"], "Linear layers that are changed.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_scratch and not self.init_from:
            raise TrainingError(
                "`from_scratch` takes the sizes of `init_from`, which is empty; name a model or drop it."
            )
        if self.lora_rank < 0 or not 0 <= self.lora_dropout < 1:
            raise TrainingError(
                f"`lora_rank` is {self.lora_rank} and `lora_dropout` {self.lora_dropout}; use a rank of 0 (none) or "
                "more, and a dropout of 0 or more, below 1."
            )
        if self.lora_rank and self.freeze != "none":
            raise TrainingError(
                "`lora_rank` leaves the encoder's own weights as they are already; leave `freeze` out."
            )


@dataclass
class DataArguments:
    """What is trained on and evaluated on.

    Attributes:
        train_data: A folder of shards, a folder or list of video files; see `open_clips`.
        eval_data: Such a source, or name -> source as a mapping or JSON; each is evaluated under its name.
        syncworld: Makes a SyncWorld and its shards before training, where they are not there yet: a mapping with
            `folder`, `train` (clips), `semantic` and `temporal` (clips of these evaluation sets), and any options of
            `make_world`. It gives `train_data` and `eval_data`, unless these are set; where both are, it is not made.
        frames_per_clip: Random frames of a clip in a training sample; 1 as published.
        augmentation: Name of a preset (`none`, `cavmae_sync`, `cavmae`, `cavmae_classification`), or settings of
            `AugmentationOptions` as a mapping or JSON.
        streaming: Read shards in an order that is good to the disk, each process and worker its own part; for sets
            that no disk cache holds.
        shuffle_buffer: Clips among which a worker picks the next when streaming.
        in_memory: Decode all clips once and keep them, training and evaluation, for sets that fit: about 0.7 MB a
            clip at 96 pixels, 3.3 MB at 256.
        token_dir: Folder in which the tokens of frozen encoders of other models are kept, in half precision: they are
            computed once for the training set, instead of at every step. Needs `augmentation` off. `None`: they are
            not kept.
    """

    train_data: str | None = setting(None, "Shards, or a folder or list of videos.")
    eval_data: dict[str, str] | str | None = setting(None, 'Evaluation set, or several as JSON: {"name": "folder"}.')
    syncworld: dict[str, Any] | str | None = setting(
        None, "SyncWorld to make first, as JSON: folder, train, semantic, temporal, options."
    )
    frames_per_clip: int = setting(1, "Random frames of a clip in a training sample.")
    augmentation: dict[str, Any] | str | None = setting(
        None, "Preset (none, cavmae_sync, cavmae, cavmae_classification) or options, as JSON."
    )
    streaming: bool = setting(False, "Read shards in an order that is good to the disk.")
    shuffle_buffer: int = setting(1000, "Clips among which a streaming worker picks.")
    in_memory: bool = setting(False, "Decode all clips once and keep them.")
    token_dir: str | None = setting(None, "Keep tokens of frozen encoders here, and compute them once.")

    def __post_init__(self) -> None:
        self.eval_data = evaluation_sources(self.eval_data)
        self.syncworld = mapping("syncworld", self.syncworld)
        if isinstance(self.augmentation, str) and self.augmentation.lstrip().startswith("{"):
            self.augmentation = mapping("augmentation", self.augmentation)
        if self.frames_per_clip < 1:
            raise TrainingError(f"`frames_per_clip` is {self.frames_per_clip}; it must be at least 1 (published: 1).")
        if self.streaming and self.in_memory:
            raise TrainingError("`streaming` and `in_memory` are both on; take one of them.")


@dataclass
class RunSettings:
    """What every training has beside the settings of transformers' Trainer.

    Attributes:
        output_dir: Where checkpoints, the final model, its card and `metrics.json` go.
        resume_from_checkpoint: A checkpoint to go on from; `"auto"`: the newest whole one of `output_dir`, if there is
            one.
        overwrite: Start anew in an `output_dir` that holds an earlier run, whose checkpoints go; off: refuse it.
        adam_with_l2: Adam whose weight decay is part of the gradient (`torch.optim.Adam`), as published, instead of
            the optimiser named by `optim`.
        step_decay: The rate is multiplied by `factor` from epoch `start` on, every `every` epochs, after the warm-up;
            as a mapping or JSON with these keys. Takes the place of `lr_scheduler_type` (published CAV-MAE: 10, 5,
            0.5).
        eval_batch_frames: Frames (with their windows) that the model sees at a time in evaluation.
        peak_tflops: Peak of a device in TFLOP/s at the precision in use, for the utilisation; `0` measures a matrix
            product on CUDA devices and leaves the utilisation out elsewhere.
    """

    output_dir: str | None = setting(None, "Where checkpoints, the final model and metrics.json go.")
    resume_from_checkpoint: str | None = setting(
        None, "Checkpoint to go on from; auto: the newest whole one of output_dir, if there is one."
    )
    overwrite: bool = setting(False, "Replace an earlier run in output_dir.")
    adam_with_l2: bool = setting(False, "Adam with weight decay in the gradient, as published, instead of `optim`.")
    step_decay: dict[str, Any] | str | None = setting(
        None, "Step decay of the rate, as JSON: start, every (epochs), factor."
    )
    eval_batch_frames: int = setting(256, "Frames seen at a time in evaluation.")
    peak_tflops: float = setting(0.0, "Peak TFLOP/s of a device; 0: measure it on CUDA.")


@dataclass
class PretrainingSettings:
    """What pretraining has beside them.

    Attributes:
        eval_min_shift: Smallest shift in seconds that the true alignment is compared with in evaluation; `None`: a
            fifth of the clips' length, 2 s at most.
        plots: Draw reconstructions and similarity matrices into `output_dir/plots` at every evaluation.
        contrast_chunk_size: Clips of a process that go through the model at a time, for batches that memory does not
            hold: same losses and gradients, one forward pass of the towers more. Unlike gradient accumulation, which
            adds up the gradients of batches that contrast each for itself, it makes more negatives. `0`: all at once.
        teacher_momentum: Momentum of a teacher (TG-DP) that guides the contrastive pass, which
            `contrastive_mask_ratio` and `distillation_loss_weight` of the model's configuration bring about; `0`: no
            teacher.
        pictures: Old name of `plots`, which still works in this version.
    """

    eval_min_shift: float | None = setting(
        None, "Smallest shift in the alignment check, seconds; default: a fifth of the clips, 2 s at most."
    )
    plots: bool = setting(False, "Draw reconstructions and similarities at evaluations.")
    contrast_chunk_size: int = setting(0, "Clips at a time of a batch that contrasts as a whole; 0: all.")
    teacher_momentum: float = setting(0.0, "Momentum of a teacher, such as 0.999; 0: none.")
    pictures: bool | None = setting(None, "Old name of plots.")


@dataclass
class ClassificationSettings:
    """What the training of a classifier has beside them.

    Attributes:
        head_lr_multiple: The head, which starts at random, learns at so many times `learning_rate` (published: 10 to
            100).
        balanced_sampling: Draw clips, with replacement, so that rare classes come as often as common ones.
        average_epochs: First and last epoch whose checkpoints are averaged, weight by weight, into the final model;
            as two numbers. Needs `save_strategy: epoch` and a `save_total_limit` that keeps them. `0`: none.
        eval_each_modality: Evaluate a multimodal model with audio alone and with video alone as well.
    """

    head_lr_multiple: float = setting(1.0, "The head's learning rate over the encoder's.")
    balanced_sampling: bool = setting(False, "Draw rare classes as often as common ones.")
    average_epochs: list[int] | None = setting(None, "First and last epoch whose checkpoints are averaged; 0: none.")
    eval_each_modality: bool = setting(False, "Evaluate with audio alone and video alone, too.")


@dataclass
class InstructionArguments:
    """Which language model is joined to which model, the chats it learns from, and what is trained.

    Attributes:
        model: Name of an audio-visual model, as `load_model` takes it, or of one with a language model to go on with.
        text_model: Folder or Hub name of a causal language model with its tokenizer.
        text_config: In place of it: settings of one to be made, with `model_type` of any family of transformers; its
            tokens are the words of the chats.
        lm_config: Settings of `CavMaeSyncLMConfig` that differ, as a mapping or JSON.
        train: What is trained: `"projectors"`; `"lora"`: them and low-rank changes of the language model; `"full"`:
            them and all of the language model. The audio-visual model stays as it is.
        projector_lr_multiple: The projectors' learning rate over `learning_rate`, which is the language model's.
        lora_rank: Rank of the changes.
        lora_targets: Last parts of the names of the layers that are changed.
        train_data: File of chats (JSON, JSON lines, Parquet) or a folder saved by `datasets`; or a SyncWorld split.
        eval_data: Such a source, or name -> source as a mapping or JSON; each is evaluated under its name.
        syncworld: Makes a SyncWorld and its shards first, as in `DataArguments`.
        chat_template: Jinja template, or a file of one, where the tokenizer has none.
        num_frames: Moments of a clip; default: as the model.
        max_length: Most tokens of a chat.
        questions_per_chat: Questions about a SyncWorld clip in a chat.
        questions_apart: Whether each of these questions sees the clip and not the other questions, as when it is asked
            alone, at the cost of one chat. For language models of attention, or of it and short convolutions.
        caption_prompt: What the model is asked first about every clip, so that it answers from what it said; kept in
            the processor. Chats about SyncWorld then begin with dense captions; those of a file have to.
        caption_epochs: Epochs before clips are shown in which chats about SyncWorld show made-up captions; the first
            of several shows their lists of when classes begin alone.
        moment_epochs: Epochs before whole clips are shown in which they show one moment alone; every other batch
            where an epoch is both. Both end together.
        drop_modality: Share of the chats without audio, and of those without video, while training.
        controls: Whether evaluation on SyncWorld measures controls.
        cache_dir: Where tokens of clips are kept, a folder per set; default: `clips` in `output_dir`.
        refresh_cache: Throw away tokens of another model or set, instead of refusing to go on.
    """

    model: str | None = setting(None, "Model: folder, Hub name, published:NAME or example.")
    text_model: str | None = setting(None, "Causal language model: folder or Hub name, with its tokenizer.")
    text_config: dict[str, Any] | str | None = setting(None, "Settings of a language model to be made, as JSON.")
    lm_config: dict[str, Any] | str | None = setting(None, "Settings of CavMaeSyncLMConfig that differ, as JSON.")
    train: Literal["projectors", "lora", "full"] = setting("lora", "What is trained.")
    projector_lr_multiple: float = setting(1.0, "The projectors' learning rate over the language model's.")
    lora_rank: int = setting(16, "Rank of the language model's changes, with lora.")
    lora_targets: list[str] = setting(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], "Layers that are changed."
    )
    train_data: str | None = setting(None, "File of chats, or a SyncWorld split.")
    eval_data: dict[str, str] | str | None = setting(None, 'Evaluation set, or several as JSON: {"name": "file"}.')
    syncworld: dict[str, Any] | str | None = setting(
        None, "SyncWorld to make first, as JSON: folder, train, mixed, temporal, options."
    )
    chat_template: str | None = setting(None, "Jinja template, or its file, where the tokenizer has none.")
    num_frames: int | None = setting(None, "Moments of a clip.")
    max_length: int | None = setting(None, "Most tokens of a chat.")
    questions_per_chat: int = setting(6, "Questions about a SyncWorld clip in a chat.")
    questions_apart: bool = setting(True, "These questions do not see each other.")
    caption_prompt: str | None = setting(None, "What the model is asked first about every clip.")
    caption_epochs: int = setting(0, "Epochs before clips are shown, with made-up captions.")
    moment_epochs: int = setting(0, "Epochs before whole clips, with single moments of them.")
    drop_modality: float = setting(0.0, "Share of the chats without audio, and of those without video.")
    controls: bool = setting(True, "Measure controls on SyncWorld.")
    cache_dir: str | None = setting(None, "Where tokens of clips are kept; default: in output_dir.")
    refresh_cache: bool = setting(False, "Replace tokens of another model or set.")

    def __post_init__(self) -> None:
        self.eval_data = evaluation_sources(self.eval_data)
        for name in ("syncworld", "text_config", "lm_config"):
            setattr(self, name, mapping(name, getattr(self, name)))
        for name in ("lora_rank", "questions_per_chat"):
            if getattr(self, name) < 1:
                raise TrainingError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if not self.projector_lr_multiple > 0:
            raise TrainingError(f"`projector_lr_multiple` is {self.projector_lr_multiple}; it must be positive.")
        if not 0 <= self.drop_modality <= 0.5:
            raise TrainingError(f"`drop_modality` is {self.drop_modality}; use 0 to 0.5.")
        if self.text_model and self.text_config:
            raise TrainingError("`text_config` makes a language model and `text_model` names one; leave one out.")


@dataclass
class LocalHeadArguments:
    """Whose local heads are trained, and how large they are.

    Attributes:
        model: Name of a model, as `load_model` takes it. Local heads that it has already are replaced.
        local_head_size: Width of the heads.
    """

    model: str | None = setting(None, "Model: folder, Hub name, published:NAME or example.")
    local_head_size: int = setting(256, "Width of the heads.")

    def __post_init__(self) -> None:
        if self.local_head_size < 1:
            raise TrainingError(f"`local_head_size` is {self.local_head_size}; it must be at least 1.")


@dataclass
class LocalHeadSettings:
    """What the training of local heads has beside the settings of every training.

    Attributes:
        blocks_per_frame: Blocks of patches that are hidden, one at a time, of every frame and window of a step.
    """

    blocks_per_frame: int = setting(4, "Blocks of every frame and window hidden in a step.")

    def __post_init__(self) -> None:
        if self.blocks_per_frame < 1:
            raise TrainingError(f"`blocks_per_frame` is {self.blocks_per_frame}; it must be at least 1.")


@dataclass
class ProbeArguments:
    """What a linear probe is fitted to and evaluated on.

    Attributes:
        model: Name of a model, as `load_model` takes it.
        output_dir: Where `metrics.json` goes, and the features unless `cache_dir` says otherwise.
        train_data: A folder of shards, a folder or list of video files; see `open_clips`. With labels.
        eval_data: Such a source, or name -> source as a mapping or JSON; each is evaluated under its name.
        syncworld: Makes a SyncWorld and its shards first, where they are not there yet; as in `DataArguments`.
        class_names: File with the names of the classes; default: those stored with the training set.
        problem_type: One softmax, or a regression for each class. Default: the former where every training clip has
            exactly one label.
        features: What is probed, each in turn: names of `inference.features` (`a`, `v`, `av`, `a_patches`, ...), or
            several joined by `+`, such as `a+v`, which are put side by side.
        baselines: What the metrics are to be compared with, measured in the same way: `random_weights`, the model
            before any training; `shuffled_labels`, training labels dealt out at random.
        strengths: Inverse strengths of regularisation (scikit-learn's `C`) to choose from.
        held_out: Share of the training clips that the choice is made on.
        max_iterations: Of the optimiser.
        jobs: Classes fitted side by side; -1: as many as there are cores.
        cache_dir: Where features are kept, a folder per set; default: `features` in `output_dir`.
        overwrite: Replace the `metrics.json` of an earlier run, which is refused otherwise.
        refresh_cache: Throw away features of another model or set, instead of refusing to go on.
        batch_frames: Frames (with their windows) encoded at a time.
        num_workers: Processes that load.
        device: Where the model runs; default: the first GPU if there is one.
        dtype: Of the model's weights.
        seed: Seeds the held-out clips and the baselines.
    """

    model: str | None = setting(None, "Model: folder, Hub name, published:NAME or example.")
    output_dir: str = setting("outputs/probe", "Where metrics.json and the features go.")
    train_data: str | None = setting(None, "Shards, or a folder or list of videos; labelled.")
    eval_data: dict[str, str] | str | None = setting(None, 'Evaluation set, or several as JSON: {"name": "folder"}.')
    syncworld: dict[str, Any] | str | None = setting(
        None, "SyncWorld to make first, as JSON: folder, train, semantic, temporal, options."
    )
    class_names: str | None = setting(None, "File of class names.")
    problem_type: Literal["single_label_classification", "multi_label_classification"] | None = setting(
        None, "One softmax, or a regression for each class."
    )
    features: list[str] = setting(["a", "v", "a+v", "av"], "What is probed; + puts side by side.")
    baselines: list[str] = setting([], "For comparison: random_weights, shuffled_labels.")
    strengths: list[float] = setting([0.001, 0.01, 0.1, 1.0, 10.0, 100.0], "Values of C to choose from.")
    held_out: float = setting(0.2, "Share of the training clips for choosing C.")
    max_iterations: int = setting(1000, "Of the optimiser.")
    jobs: int = setting(-1, "Classes fitted side by side; -1: one per core.")
    cache_dir: str | None = setting(None, "Where features are kept; default: in output_dir.")
    overwrite: bool = setting(False, "Replace an earlier metrics.json.")
    refresh_cache: bool = setting(False, "Replace features of another model or set.")
    batch_frames: int = setting(256, "Frames encoded at a time.")
    num_workers: int = setting(0, "Processes that load.")
    device: str | None = setting(None, "Where the model runs, such as cpu or cuda:1.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Of the model's weights.")
    seed: int = setting(0, "Seeds the held-out clips and the baselines.")

    def __post_init__(self) -> None:
        self.eval_data = evaluation_sources(self.eval_data)
        self.syncworld = mapping("syncworld", self.syncworld)
        unknown = sorted(set(self.baselines) - set(BASELINES))
        if unknown:
            raise TrainingError(f"`baselines` has {unknown[0]!r}; there are {' and '.join(BASELINES)}.")
        if not self.features:
            raise TrainingError("`features` is empty; name what is to be probed, such as a, v and a+v.")


@dataclass
class TextArguments:
    """Which text encoder is joined to which model, what it learns from, and what is trained.

    Attributes:
        model: Name of a model, as `load_model` takes it.
        text_model: Folder or Hub name of a text encoder with its tokenizer.
        bridge: Folder or Hub name of a CLIP or SigLIP, in place of `text_model` and captions: audio and video are put
            where it puts the frames, and its text tower then speaks of them.
        joint: Train the audio-visual model, too. Its own loss is kept, with the weight `audio_video_loss_weight` of
            `text_config` (1 unless set).
        towers: `"frozen"`: of the audio-visual model only what follows its towers is trained; with `joint`.
        train_text_model: Train the text encoder, too.
        av_lr_multiple: The audio-visual model's learning rate over `learning_rate`; with `joint`.
        text_lr_multiple: The text encoder's, likewise; with `train_text_model`.
        frames_per_clip: Random frames of a clip in a training sample; `0`: all. With `joint`.
        train_data: A folder of shards, a folder or list of video files, or a SyncWorld split.
        eval_data: Such a source, or name -> source as a mapping or JSON; each is evaluated under its name.
        syncworld: Makes a SyncWorld and its shards first, as in `DataArguments`.
        captions: CSV, JSON or Parquet file with the columns `clip_id`, `text` and perhaps `start` and `end`, seconds
            from the clip's start. Default: what the shards hold, else what SyncWorld's truth says, else the labels as
            sentences.
        caption_column: Column of captions, or several, of a list or data set of `train_data`, as `prepare` takes it.
        eval_captions: Likewise, of evaluation sets that are no SyncWorld.
        class_names: File with the names of the classes; default: those stored with the training set.
        templates: Sentences that labels become, each with a place for the name, `{}`.
        text_config: Settings of `CavMaeSyncTextDualEncoderConfig` that differ, as a mapping or JSON.
        captions_per_clip: Captions that SyncWorld's truth gives each clip, and their opposites.
        captions_per_step: Captions of a clip in a batch.
        shuffled_texts: The control: captions (with `bridge`, frames) are dealt out to other clips.
        cache_dir: Where embeddings are kept, a folder per set; default: `moments` in `output_dir`.
        refresh_cache: Throw away embeddings of another model or set, instead of refusing to go on.
    """

    model: str | None = setting(None, "Model: folder, Hub name, published:NAME or example.")
    text_model: str | None = setting(None, "Text encoder: folder or Hub name, with its tokenizer.")
    bridge: str | None = setting(None, "CLIP or SigLIP to learn words from over the frames, without captions.")
    joint: bool = setting(False, "Train the audio-visual model, too.")
    towers: Literal["full", "frozen"] = setting("full", "What is trained of its towers, with joint.")
    train_text_model: bool = setting(False, "Train the text encoder, too.")
    av_lr_multiple: float = setting(0.1, "The audio-visual model's rate over learning_rate.")
    text_lr_multiple: float = setting(0.1, "The text encoder's rate over learning_rate.")
    frames_per_clip: int = setting(0, "Random frames of a clip in a sample, with joint; 0: all.")
    train_data: str | None = setting(None, "Shards, or a folder or list of videos.")
    eval_data: dict[str, str] | str | None = setting(None, 'Evaluation set, or several as JSON: {"name": "folder"}.')
    syncworld: dict[str, Any] | str | None = setting(
        None, "SyncWorld to make first, as JSON: folder, train, semantic, temporal, options."
    )
    captions: str | None = setting(None, "Table of captions: clip_id, text, perhaps start and end.")
    caption_column: list[str] | None = setting(None, "Column of captions of a list or data set of train_data.")
    eval_captions: str | None = setting(None, "Likewise, of evaluation sets.")
    class_names: str | None = setting(None, "File of class names.")
    templates: list[str] | None = setting(None, "Sentences that labels become, {} in the name's place.")
    text_config: dict[str, Any] | str | None = setting(
        None, "Settings of CavMaeSyncTextDualEncoderConfig that differ, as JSON."
    )
    captions_per_clip: int = setting(8, "Captions that SyncWorld's truth gives each clip.")
    captions_per_step: int = setting(5, "Captions of a clip in a batch.")
    shuffled_texts: bool = setting(False, "The control: captions are dealt out to other clips.")
    cache_dir: str | None = setting(None, "Where embeddings are kept; default: in output_dir.")
    refresh_cache: bool = setting(False, "Replace embeddings of another model or set.")

    def __post_init__(self) -> None:
        self.eval_data = evaluation_sources(self.eval_data)
        self.syncworld = mapping("syncworld", self.syncworld)
        self.text_config = mapping("text_config", self.text_config)
        for name in ("captions_per_clip", "captions_per_step", "av_lr_multiple", "text_lr_multiple"):
            least = 1 if name.startswith("captions") else 1e-6
            if getattr(self, name) < least:
                raise TrainingError(f"`{name}` is {getattr(self, name)}; it must be at least {least:g}.")
        if self.frames_per_clip < 0:
            raise TrainingError(f"`frames_per_clip` is {self.frames_per_clip}; use 0 (all) or more.")
        for name in ("text_model", "captions", "joint", "train_text_model", "text_config"):
            if self.bridge and getattr(self, name):
                raise TrainingError(
                    f"`bridge` learns from frames and takes its own text tower; leave out `{name}`, or `bridge`."
                )
