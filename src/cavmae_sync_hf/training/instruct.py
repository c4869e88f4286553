# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Training of a language model on chats about clips: `cavmae-sync instruct`.

The audio-visual model stays as it is: what it makes of all clips is computed once and kept. The loss is that of the
answers alone. As a rule the projectors come first (`train="projectors"`), then low-rank changes of the language model
with them (`train="lora"`, the model of the first training as `model`).

`torchrun -m cavmae_sync_hf.training.instruct` and `accelerate launch -m` start the same command on several
processes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from ..data.dataset import CavMaeSyncCollator, CavMaeSyncDataset
from ..files import write_json
from ..hub import register_auto_classes, save_for_hub
from ..inference.loading import saved_model
from ..loading import load_model
from ..model.errors_cavmae_sync import TrainingError
from ..model.modeling_lm_cavmae_sync import CavMaeSyncForConditionalGeneration
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model.processing_lm_cavmae_sync import CavMaeSyncLMProcessor
from ..model_card import CardDetails
from ..provenance import model_fingerprint, require_package, software_versions
from ..syncworld import find_truth, truth_at
from ..syncworld.questions import vocabulary
from .arguments import parse_arguments
from .base import CavMaeSyncBaseTrainer
from .earlier_run import check_output, remove_checkpoints
from .freezing import is_lora
from .instruction_arguments import InstructionRunArguments
from .instruction_data import (
    Chat,
    ChatCollator,
    ChatWriter,
    ClipTokens,
    FileChats,
    SyncWorldChats,
    apart_masks,
    holds_chats,
    media_paths,
    read_chats,
)
from .instruction_metrics import CONTROLS, answers_of, evaluate_syncworld, exact_answers
from .sets import find_sources
from .settings import InstructionArguments
from .token_cache import TokenCache

Progress = Callable[..., None] | None
_MODALITIES = ("video", "audio")
# Clips whose tokens new projectors are fitted to.
_FITTED = 256
# Of a language model that is made here: turns between marks of their own, each word a token.
_MARKS = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
_WORD_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<answer> {{ message.content }} <end>"
    "{% else %}<ask> {{ message.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}<answer> {% endif %}"
)
_INPUTS = (
    "input_ids", "attention_mask", "position_ids", "labels", "video_tokens", "audio_tokens", "padding_mask_videos",
    "padding_mask", "video_times", "audio_times",
)  # fmt: skip


class ClipTokenCache(TokenCache):
    """The folder of the clips' tokens."""

    kind = "cavmae-sync-clip-tokens"


class InstructionTrainer(CavMaeSyncBaseTrainer):
    """Trains what is not frozen of a model with a language model; batches come from memory and from kept tokens.

    Args:
        model: The model; what is trained of it needs gradients.
        args: `InstructionRunArguments`. Its batch is made smaller where there are fewer chats.
        projector_lr_multiple: The projectors' learning rate over `learning_rate`.
        kwargs: Other arguments of `CavMaeSyncBaseTrainer`.
    """

    args: InstructionRunArguments

    def __init__(
        self, model: Any, args: InstructionRunArguments, *, projector_lr_multiple: float = 1.0, **kwargs: Any
    ) -> None:
        self._projector_lr_multiple = projector_lr_multiple
        chats = max(1, len(kwargs["train_dataset"]) // args.world_size)
        args.per_device_train_batch_size = min(args.per_device_train_batch_size, chats)
        super().__init__(model, args, flops_per_pair=0, **kwargs)

    def rate_multiple(self, name: str, weight: torch.nn.Parameter) -> float:
        """That of the projectors for these, else 1."""
        return self._projector_lr_multiple if "_projector." in name else 1.0

    def _model_inputs(self, model: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        base: Any = self._unwrapped()
        whole = base.get_base_model() if is_lora(base) else base
        whole.model.av_model.eval()
        found = {name: inputs[name] for name in _INPUTS if name in inputs} | {"only_labelled": model.training}
        if "question_ids" in inputs:
            kinds = getattr(whole.config.text_config, "layer_types", None)
            found["attention_mask"] = apart_masks(inputs["question_ids"], kinds)
        return found


def run_instruction(
    arguments: InstructionArguments, training: InstructionRunArguments, progress: Progress = None
) -> tuple[int, dict[str, Any]]:
    """Train, evaluate and save a model with a language model.

    Args:
        arguments: What to do.
        training: Steps, batch, rate, where to, and whether to go on with an earlier run.
        progress: Called with how much of what is done, how much there is, and what it is.

    Returns:
        The status to exit with, and what `metrics.json` holds: 0, or 128 and the number of the signal that ended the
        training early; then the checkpoint to go on from is all that was written.

    Raises:
        AlreadyExistsError: The output folder holds an earlier run, which is neither resumed nor to be replaced.
        CavMaeSyncError: The models, the chats or a setting cannot be used; the message says why.
    """
    return _Run(arguments, training, progress).to_end()


class _Run:
    """One training."""

    def __init__(self, arguments: InstructionArguments, training: InstructionRunArguments, progress: Progress) -> None:
        self.arguments, self.training = arguments, training
        self.is_main = training.process_index == 0
        self.progress = progress if self.is_main else None
        self.output = Path(str(training.output_dir))
        self.cache = Path(arguments.cache_dir or self.output / "clips")
        self.resume = check_output(training)
        torch.manual_seed(training.seed)
        self.model, self.processor, self.av_processor = self._build()
        if arguments.num_frames is not None:
            self.av_processor.feature_extractor.num_frames = arguments.num_frames
            self.av_processor.video_processor.num_frames = arguments.num_frames
        if arguments.caption_prompt is not None:
            self.processor.caption_prompt = arguments.caption_prompt
        self.model.to(training.device).eval()
        self.writer = ChatWriter(self.processor, arguments.max_length)

    def to_end(self) -> tuple[int, dict[str, Any]]:
        """Do it."""
        if self.resume is None and self.is_main:
            remove_checkpoints(self.output)
        with self.training.main_process_first(desc="data preparation"):
            train_source, evaluation = find_sources(self.arguments, self.av_processor, self.is_main)
            train_set, clips = self._chats("train", train_source)
        adapted = self._freeze()
        collator = ChatCollator(
            self.writer, clips, int(self.processor.tokenizer.pad_token_id or 0), drop=self.arguments.drop_modality
        )
        trainer = InstructionTrainer(
            adapted, self.training, projector_lr_multiple=self.arguments.projector_lr_multiple,
            processor=self.processor, train_dataset=train_set, data_collator=collator,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=self.resume)
        if trainer.stopped_by is not None:
            print(f"Stopped by {trainer.stopped_by.name} after a checkpoint; --resume_from_checkpoint auto goes on.")
            trainer.end()
            return 128 + int(trainer.stopped_by), {}
        model: Any = adapted.merge_and_unload() if is_lora(adapted) else adapted
        model.eval()
        record: dict[str, Any] = {
            "protocol": "instruction, version 1",
            "chats": {"train": len(train_set)},
            "steps": trainer.state.global_step,
            "seed": self.training.seed,
            "loss": [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry],
            "weights": {"all": _count(model), "trained": _count(adapted, trained=True)},
            "versions": software_versions(),
            "metrics": {},
        }
        if self.is_main:
            for name, source in evaluation.items():
                record["metrics"][name] = self._evaluate(model, name, source)
            said = (
                f"Trained for {record['steps']} steps on {len(train_set)} chats about clips ({self.arguments.train}, "
                f"{self.arguments.model}, {self.arguments.text_model or 'a language model made for it'})."
            )
            save_for_hub(model, self.processor, self.output / "model", card=CardDetails(training=said), overwrite=True)
            write_json(self.output / "metrics.json", record, overwrite=True)
        trainer.accelerator.wait_for_everyone()
        trainer.end()
        return 0, record

    def _build(self) -> tuple[Any, CavMaeSyncLMProcessor, CavMaeSyncProcessor]:
        """The model, its processor, and that of its audio-visual model."""
        arguments = self.arguments
        name = str(arguments.model)
        register_auto_classes()  # the command line does without it as long as it can
        config = AutoConfig.from_pretrained(saved_model(name)) if not name.startswith("published:") else None
        self.is_new = config is None or config.model_type != "cavmae_sync_lm"
        if not self.is_new:
            if arguments.text_model or arguments.text_config or arguments.lm_config:
                raise TrainingError(
                    f"{name} has a language model; leave out `text_model`, `text_config`, `lm_config`."
                )
            processor = CavMaeSyncLMProcessor.from_pretrained(saved_model(name))
            model = CavMaeSyncForConditionalGeneration.from_pretrained(saved_model(name))
            av_processor = CavMaeSyncProcessor(processor.feature_extractor, processor.video_processor)
            return model, processor, av_processor
        av_model, av_processor = load_model(name, device="cpu", modalities="both")
        language: Any
        tokenizer: Any
        if arguments.text_config:
            language, tokenizer = self._make_language_model()
        elif arguments.text_model:
            language = AutoModelForCausalLM.from_pretrained(saved_model(arguments.text_model))
            tokenizer = AutoTokenizer.from_pretrained(saved_model(arguments.text_model))
        else:
            raise TrainingError("There is no language model; name `text_model`, or give a `text_config`.")
        if arguments.chat_template:
            tokenizer.chat_template = _template(arguments.chat_template)
        CavMaeSyncLMProcessor.add_media_tokens(tokenizer)
        settings: Any = arguments.lm_config or {}
        model = CavMaeSyncForConditionalGeneration.from_av_text_pretrained(av_model, language, tokenizer, **settings)
        processor = CavMaeSyncLMProcessor(
            av_processor.feature_extractor, av_processor.video_processor, tokenizer,
            tokens_per_frame=model.config.tokens_per_frame, tokens_per_window=model.config.tokens_per_window,
            merge_tokens=model.config.merge_tokens,
        )  # fmt: skip
        return model, processor, av_processor

    def _make_language_model(self) -> tuple[Any, PreTrainedTokenizerFast]:
        """A language model with random weights, whose tokens are the words of the chats."""
        settings: Any = self.arguments.text_config or {}
        if "model_type" not in settings:
            raise TrainingError('`text_config` needs "model_type", a family of language models such as "qwen3".')
        if self.arguments.train_data and holds_chats(self.arguments.train_data):
            texts = [
                part["text"] for row in read_chats(self.arguments.train_data) for turn in row["messages"]
                for part in turn["content"] if part["type"] == "text"
            ]  # fmt: skip
            words = sorted({word for text in texts for word in text.split()})
        else:
            words = sorted({*vocabulary(), *(self.arguments.caption_prompt or "").split()})
        known = [*_MARKS.values(), "<ask>", "<answer>", *words]
        plain = Tokenizer(models.WordLevel({word: place for place, word in enumerate(known)}, unk_token="<unk>"))
        plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=plain, chat_template=_WORD_TEMPLATE, clean_up_tokenization_spaces=False, **_MARKS
        )
        CavMaeSyncLMProcessor.add_media_tokens(tokenizer)
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        config = AutoConfig.for_model(**({"vocab_size": len(tokenizer)} | ids | settings))
        return AutoModelForCausalLM.from_config(config), tokenizer

    def _freeze(self) -> Any:
        """Freeze what is not trained; gives the model, with low-rank changes where they are asked for."""
        model, train = self.model, self.arguments.train
        model.requires_grad_(train == "full")
        model.model.av_model.requires_grad_(False)
        projectors = [
            f"{name}_projector" for name in _MODALITIES if getattr(model.model, f"{name}_projector") is not None
        ]
        if train == "lora":
            peft = require_package("peft", "lora", "LoRA")
            known = {name.rpartition(".")[2] for name, layer in model.model.language_model.named_modules()
                     if isinstance(layer, torch.nn.Linear)}  # fmt: skip
            targets = [name for name in self.arguments.lora_targets if name in known]
            if not targets:
                raise TrainingError(
                    f"`lora_targets` names none of the language model's layers, which are {', '.join(sorted(known))}."
                )
            rank = self.arguments.lora_rank
            pattern = rf".*language_model\.(.*\.)?({'|'.join(targets)})"
            model = peft.get_peft_model(
                model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=pattern, modules_to_save=projectors)
            )
        elif train == "projectors":
            for name in projectors:
                getattr(model.model, name).requires_grad_(True)
        return model

    def _chats(self, name: str, source: str) -> tuple[Any, Callable[[int], ClipTokens]]:
        """The chats of a training set, and its clips' tokens, to which new projectors are fitted."""
        records, rows, dataset = self._open(source)
        clips = self._clips(name, dataset)
        if self.is_new:
            self._standardise(clips, len(dataset))
        if records is None:
            return self._file_chats(rows, dataset), clips
        chats = SyncWorldChats(
            timed(records, clips), per_chat=self.arguments.questions_per_chat, seed=self.training.seed,
            apart=self._apart(), caption_prompt=self.processor.caption_prompt,
            caption_epochs=self.arguments.caption_epochs, moment_epochs=self.arguments.moment_epochs,
        )  # fmt: skip
        return chats, clips

    def _standardise(self, clips: Callable[[int], ClipTokens], count: int) -> None:
        """Fit new projectors to what the clips hold; of many clips some tell it."""
        some = [clips(number) for number in sorted({place * count // _FITTED for place in range(_FITTED)})]
        for name in _MODALITIES:
            projector = getattr(self.model.model, f"{name}_projector")
            there = [clip.tokens[name][clip.present[name]] for clip in some if name in clip.tokens]
            if projector is not None and any(len(tokens) for tokens in there):
                projector.standardise(torch.cat(there).to(self.model.device))

    def _apart(self) -> bool:
        """Whether the questions of a chat are kept apart.

        Raises:
            TrainingError: They are to be, and the language model cannot.
        """
        if not self.arguments.questions_apart or self.arguments.questions_per_chat == 1:
            return False
        config = self.model.config.text_config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention", "conv"}
        reason = f"has layers of {', '.join(sorted(kinds))}" if kinds else ""
        if config._attn_implementation != "sdpa":
            reason = reason or f"computes attention by {config._attn_implementation!r}, not by 'sdpa'"
        if reason:
            raise TrainingError(
                f"Questions of a chat cannot be kept apart: the language model {reason}; set `questions_apart: false`."
            )
        return True

    def _open(self, source: str) -> tuple[Any, list[dict[str, Any]], CavMaeSyncDataset]:
        """Truth of a SyncWorld, or else rows of a file of chats; and the clips."""
        if holds_chats(source):
            rows = read_chats(source)
            paths = media_paths(rows)
            if not paths:
                raise TrainingError(
                    f"{source}: its chats have no clips; name them as {{'type': 'video', 'path': ...}}."
                )
            named = [{"path": path, "id": str(number)} for number, path in enumerate(paths)]
            return None, rows, CavMaeSyncDataset(named, self.av_processor, frames="all")
        dataset = CavMaeSyncDataset(source, self.av_processor, frames="all")
        records = find_truth(source, dataset.clip_ids())
        if records is None:
            raise TrainingError(f"{source}: is no SyncWorld; give a file of chats (.json, .jsonl, .parquet).")
        return records, [], dataset

    def _file_chats(self, rows: list[dict[str, Any]], dataset: CavMaeSyncDataset) -> FileChats:
        paths = media_paths(rows)
        return FileChats(rows, {paths[int(name)]: number for number, name in enumerate(dataset.clip_ids())})

    def _clips(self, name: str, dataset: CavMaeSyncDataset) -> Callable[[int], ClipTokens]:
        """Tokens of a set's clips by number, computed where the cache lacks them."""
        base = self.model.model
        sizes = f"{base.config.tokens_per_frame}/{base.config.tokens_per_window}"
        identity = f"{model_fingerprint(base.av_model, self.av_processor)} {sizes}"
        features = [f"{modality}_tokens" for modality in _MODALITIES]
        cache = ClipTokenCache(self.cache / name, identity, dataset, features)
        if self.is_main:
            cache.open(self.arguments.refresh_cache)
            self._compute(name, cache, dataset)

        def clip(number: int) -> ClipTokens:
            rows = cache.rows(number)
            count = int(rows["count"])
            present = {"video": rows["padding_mask_videos"], "audio": rows["padding_mask"]}
            return ClipTokens(
                rows["frame_times"][:count],
                {modality: rows[f"{modality}_tokens"][:count] for modality in _MODALITIES},
                {modality: mask[:count] for modality, mask in present.items()},
            )

        return clip

    @torch.no_grad()
    def _compute(self, name: str, cache: ClipTokenCache, dataset: CavMaeSyncDataset) -> None:
        """Compute the missing parts of a cache."""
        extractor = self.av_processor.feature_extractor
        done = len(dataset) - sum(len(cache.clips(part)) for part in cache.missing())
        for part in cache.missing():
            loader = DataLoader(
                Subset(dataset, cache.clips(part)), batch_size=8, num_workers=self.training.dataloader_num_workers,
                collate_fn=CavMaeSyncCollator(self.av_processor, num_frames=extractor.num_frames),
            )  # fmt: skip
            rows: dict[str, list[Tensor]] = {}
            for batch in loader:
                for key, value in self._encoded(batch).items():
                    rows.setdefault(key, []).append(value)
            cache.write(part, {key: torch.cat(values).contiguous() for key, values in rows.items()})
            done += len(cache.clips(part))
            if self.progress is not None:
                self.progress(done, len(dataset), f"clips of {name}")

    def _encoded(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What is kept of a batch's clips."""
        times = torch.as_tensor(batch["frame_times"]).double()
        kept = {"frame_times": times, "count": (~times.isnan()).sum(dim=1)}
        device = self.model.device
        for modality, values, mask in (
            ("video", "pixel_values_videos", "padding_mask_videos"), ("audio", "input_values", "padding_mask"),
        ):  # fmt: skip
            present = batch.get(mask, torch.ones(times.shape, dtype=torch.bool))
            tokens = self.model.model.encode_tokens(
                modality, batch[values].to(device), present.to(device),
                batch.get("window_offsets") if modality == "audio" else None,
            )  # fmt: skip
            kept[f"{modality}_tokens"], kept[mask] = tokens.half().cpu(), present.cpu()
        return kept

    def _evaluate(self, model: Any, name: str, source: str) -> dict[str, Any]:
        """Metrics on one set."""
        records, rows, dataset = self._open(source)
        clip = self._clips(name, dataset)
        clips = [clip(number) for number in range(len(dataset))]
        shown = None if self.progress is None else self._counter(f"answers on {name}")
        if records is not None:
            controls = CONTROLS if self.arguments.controls else ()
            return evaluate_syncworld(
                model, self.writer, timed(records, clip), clips, seed=self.training.seed, controls=controls,
                progress=shown,
            )  # fmt: skip
        chats: list[Chat] = self._file_chats(rows, dataset).chats
        answers = answers_of(model, self.writer, chats, clips, progress=shown)
        return {"exact": exact_answers(chats, answers), "count": len(chats)}

    def _counter(self, what: str) -> Callable[[int, int], None]:
        progress: Any = self.progress
        return lambda done, total: progress(done, total, what)


def timed(records: Sequence[Mapping[str, Any]], clip: Callable[[int], ClipTokens]) -> list[dict[str, Any]]:
    """Truth with the times of the clips' own frames, which the text of a clip names."""
    return [truth_at(record, clip(number).times.tolist()) for number, record in enumerate(records)]


def _template(text: str) -> str:
    """A chat template given as such or by its file."""
    return text if "{" in text else Path(text).expanduser().read_text(encoding="utf-8")


def _count(model: torch.nn.Module, trained: bool = False) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad or not trained)


def instruct(words: Sequence[str], progress: Progress = None) -> tuple[int, dict[str, Any]]:
    """Train by a recipe and flags, see `run_instruction`; `words` as for `parse_arguments`."""
    arguments, training = parse_arguments((InstructionArguments, InstructionRunArguments), words, "instruction")
    logging.set_verbosity(training.get_process_log_level())
    return run_instruction(arguments, training, progress)


if __name__ == "__main__":
    from cavmae_sync_command import main

    main("instruct")
