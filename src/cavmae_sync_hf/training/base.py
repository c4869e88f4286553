# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What all trainings of this package share.

`CavMaeSyncBaseTrainer` adds to transformers' Trainer what these models need: orders that depend on the seed and the
epoch alone, so that a resumed run is the run that was not interrupted; checkpoints that hold the processor; a stop
with the clips named where a loss is not finite; the parts of the loss and the speed in the log; own evaluation sets.
`start_run` and `run_to_end` are what a training command does before and with a trainer.
"""

import contextlib
import itertools
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from huggingface_hub import EvalResult
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, IntervalStrategy, SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from ..data.augmentation import make_generator
from ..data.engines import worker_deaths
from ..data.streaming import CavMaeSyncStreamingDataset, StreamingLoader
from ..files import parse_json, whole_files, write_json, write_text, writing
from ..hub import register_auto_classes
from ..inference.loading import check_finite
from ..model.configuration_cavmae_sync import CavMaeSyncConfig
from ..model.distributed_cavmae_sync import world_size
from ..model.errors_cavmae_sync import DiskError, Hint, NonFiniteLossError, TrainingError, printable
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model.processing_lm_cavmae_sync import CavMaeSyncLMProcessor
from ..model_card import CardDetails, create_model_card
from .arguments import RunArguments, parse_arguments
from .earlier_run import check_output, last_checkpoint, remove_checkpoints
from .evaluation import map_clips
from .freezing import plain_model
from .loss_guard import LossGuard
from .sets import INPUT_NAMES, EvaluationSet
from .speed import SpeedMeter, measure_peak, memory_in_use

_logger = logging.get_logger(__name__)

_DATA_STATE = "data_state.json"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Most steps between two looks at losses and signals, where the log is written more seldom.
_LOOK_STEPS = 100


class EpochSampler(Sampler[int]):
    """Every number once, in an order drawn from (seed, epoch); tells the data set the epoch as well.

    Trainer and accelerate call `set_epoch` of a sampler before every epoch, on any number of processes and after a
    resume, but that of a data set on one process only.

    Args:
        dataset: Its length is the count of numbers; its `set_epoch` is called where it has one.
        seed: Seeds the orders.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Change the order."""
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        generator = make_generator("order", self.seed, self.epoch)
        yield from torch.randperm(len(self), generator=generator).tolist()


def looks(state: Any, control: Any) -> bool:
    """Whether a step ends with a look at what the device and other processes have to say: where it is logged, saved,
    evaluated or the last one, and every 100 steps. A look waits for them.
    """
    told = control.should_log or control.should_save or control.should_evaluate or control.should_training_stop
    return told or state.global_step % _LOOK_STEPS == 0


class SaveOnSignal(TrainerCallback):
    """At SIGTERM (and the first Ctrl-C) the step at hand is finished, a checkpoint saved and the training left.

    Schedulers send SIGTERM some seconds before they kill. Several processes agree at the next step that is logged (or
    saved, or evaluated; at least every 100 steps), and stop together, even where the signal reached only one of them.
    A second Ctrl-C interrupts at once.

    Attributes:
        received: The signal that ended the training, `None` if none did.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals while the block runs; in the main thread, where Python lets signals be taken."""
        previous = {}
        with contextlib.suppress(ValueError):  # not the main thread
            for number in _SIGNALS:
                previous[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Ask for a checkpoint and the end, if any process was told to end."""
        number = 0 if self.received is None else int(self.received)
        if world_size() > 1:
            if not looks(state, control):
                return control
            agreed = torch.tensor([number], device=args.device)
            dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
            number = int(agreed)
        if number:
            self.received = signal.Signals(number)
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        return control


class CavMaeSyncBaseTrainer(Trainer):
    """transformers' Trainer for models of this package; subclasses say how a loss and an evaluation come about.

    Args:
        model: The model; no weight may be left without a gradient by every step.
        args: `RunArguments` of a kind.
        processor: The model's `CavMaeSyncProcessor`, saved with every checkpoint.
        data_collator: Makes batches.
        flops_per_pair: Operations of a training step for one moment (a frame with its audio window).
        train_dataset: A `CavMaeSyncDataset` or `CavMaeSyncStreamingDataset`.
        evaluation_sets: Name -> `EvaluationSet`; `evaluate` reports each under its name.
        kwargs: Other arguments of Trainer.

    Attributes:
        stopped_by: The signal that ended the last training, `None` if none did.
        logged_parts: Scalars of the model's output that the log shows beside the loss.
        card_task: The task that the model's card names, as the Hub calls it and in words.
        card_metrics: Metrics of an evaluation set that the card shows, and their names there.
    """

    logged_parts: tuple[str, ...] = ()
    card_task: tuple[str, str] = ("", "")
    card_metrics: Mapping[str, str] = {}
    model: Any
    args: RunArguments
    train_dataset: Any

    def __init__(
        self,
        model: nn.Module,
        args: RunArguments,
        *,
        processor: CavMaeSyncProcessor | CavMaeSyncLMProcessor,
        data_collator: Any,
        flops_per_pair: int,
        train_dataset: Dataset | None = None,
        evaluation_sets: dict[str, EvaluationSet] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        self.processor: Any = processor
        self.evaluation_sets = dict(evaluation_sets or {})
        self._signals = SaveOnSignal()
        if not self.evaluation_sets and args.eval_strategy != "no":
            _logger.warning("There are no evaluation sets, so there will be no evaluation (`eval_data` names some).")
            args.eval_strategy, args.do_eval = IntervalStrategy.NO, False
        if args.adam_with_l2 and "optimizer_cls_and_kwargs" not in kwargs:
            settings = {
                "lr": args.learning_rate,
                "betas": (args.adam_beta1, args.adam_beta2),
                "eps": args.adam_epsilon,
                "weight_decay": args.weight_decay,
                # One kernel instead of several over all weights, unless `optim` asks for those.
                "fused": args.optim == OptimizerNames.ADAMW_TORCH_FUSED,
            }
            kwargs["optimizer_cls_and_kwargs"] = (torch.optim.Adam, settings)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            # Trainer asks for one where evaluation is on; the sets go their own way.
            eval_dataset=train_dataset if self.evaluation_sets else None,
            data_collator=data_collator,
            callbacks=[*(callbacks or []), self._signals],
            **kwargs,
        )
        if self.accelerator.is_fsdp2:
            # Compiled as a whole, a model passes by the hooks that bring its sharded weights together.
            self.accelerator.state.dynamo_plugin.use_regional_compilation = True
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self._meter = SpeedMeter(flops_per_pair)
        self._guard: LossGuard | None = None
        self._resume_from: str | None = None
        self._loader: StreamingLoader | None = None
        self._streamed: Iterator[Any] | None = None

    @property
    def stopped_by(self) -> signal.Signals | None:
        """The signal that ended the last training."""
        return self._signals.received

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see Trainer. `resume_from_checkpoint=True` takes the newest whole checkpoint of `output_dir`.

        Raises:
            TrainingError: There is no whole checkpoint to go on from, or its weights are damaged.
            ModelError: The checkpoint's weights are not finite.
            NonFiniteLossError: A loss was NaN or infinite; no weight was changed by it.
        """
        if resume_from_checkpoint is True:
            found = last_checkpoint(self.args.output_dir)
            if found is None:
                raise TrainingError(
                    f"{self.args.output_dir}: holds no whole checkpoint to resume from.",
                    hint=Hint("resume_from_checkpoint", None, "train from the start"),
                )
            resume_from_checkpoint = str(found)
        self._resume_from = resume_from_checkpoint or None
        self._signals.received = None
        self._meter.peak_tflops = self.args.peak_tflops
        if not self.args.peak_tflops and self.args.device.type == "cuda":
            half = {"bf16": torch.bfloat16, "fp16": torch.float16}
            dtype = half.get(self.accelerator.mixed_precision, torch.float32)
            self._meter.peak_tflops = measure_peak(self.args.device, dtype)
        try:
            with self._signals.listening(), worker_deaths():
                return super().train(self._resume_from, *args, **kwargs)
        finally:
            if self._guard is not None:
                self._guard.detach()
            self._guard = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer's, which takes whatever a checkpoint holds; here weights that are not finite are refused."""
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except SafetensorError as error:
            raise TrainingError(
                f"{resume_from_checkpoint}: its weights are truncated or damaged ({error}); resume from another one."
            ) from error
        check_finite(self.model if model is None else model, str(resume_from_checkpoint))

    # Data

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return EpochSampler(dataset, self._data_seed)

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def get_train_dataloader(self) -> DataLoader:
        """The training batches; a streaming set reads its own part and must not be split once more."""
        dataset = self.train_dataset
        if not isinstance(dataset, CavMaeSyncStreamingDataset):
            return super().get_train_dataloader()
        self._loader = StreamingLoader(
            dataset,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        state = Path(self._resume_from or "") / _DATA_STATE
        if self._resume_from and state.is_file():
            self._loader.load_state_dict(parse_json(state.read_text(encoding="utf-8")))
        return self._loader

    def _run_epoch(self, *, epoch: int, train_dataloader: DataLoader, **kwargs: Any) -> None:  # type: ignore[override]
        if not isinstance(train_dataloader, StreamingLoader):
            super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **kwargs)
            return
        # To resume within an epoch, Trainer reads its first batches and drops them. A streaming loader goes on from
        # its state by itself, so Trainer is given an empty loader to skip in, and `get_batch_samples` reads this one:
        # not before it is asked, when the random state is what Trainer makes it.
        train_dataloader.set_epoch(epoch)
        self._streamed = itertools.chain.from_iterable([train_dataloader])
        # Its own generator: a loader draws a number from the global one whenever it begins.
        nothing: DataLoader = DataLoader([], generator=torch.Generator())  # type: ignore[arg-type]
        try:
            super()._run_epoch(epoch=epoch, train_dataloader=nothing, **kwargs)
        finally:
            self._streamed = None

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """As in Trainer, with the time taken."""
        began = time.perf_counter()
        found = super().get_batch_samples(self._streamed or epoch_iterator, num_batches, device)
        self._meter.waited += time.perf_counter() - began
        return found

    # Steps

    @property
    def _config(self) -> CavMaeSyncConfig:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False).config

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's loss; in training checked, and its parts noted."""
        given = self._model_inputs(model, inputs)
        output = model(**given)
        if model.training:
            self._check_and_note(output, given, inputs.get("clip_ids"))
        return (output.loss, output) if return_outputs else output.loss

    def _model_inputs(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """What the model is called with, of a batch."""
        return {name: inputs[name] for name in (*INPUT_NAMES, "labels") if name in inputs}

    def _check_and_note(self, output: Any, inputs: dict[str, Tensor], clip_ids: list[str] | None) -> None:
        """Keep weights from a loss that is not finite; add the batch to what the next log line says."""
        clips, frames = _clips_and_frames(inputs)
        if self._guard is None:
            self._guard = LossGuard()
            if self.optimizer is not None:
                self._guard.attach(self.optimizer, scales_gradients=self.accelerator.scaler is not None)
        self._guard.note(
            output,
            inputs,
            [f"clip {place} of the batch" for place in range(clips)] if clip_ids is None else list(clip_ids),
            step=self.state.global_step + 1,
            parts=tuple(name for name in self.logged_parts if name.endswith("loss")),
            last=self.accelerator.sync_gradients,
        )
        if not self._guard.waits:
            self._refuse_not_finite()
        for name in self.logged_parts:
            value = getattr(output, name, None)
            if value is not None:
                value = value.detach().float()
                self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._batches += 1
        self._meter.add(clips, clips * frames)

    def _refuse_not_finite(self) -> None:
        """Stop if one of the losses since the last call is not finite."""
        found = None if self._guard is None else self._guard.check(self.args.process_index)
        if found is None:
            return
        message, clips = found
        kept = last_checkpoint(self.args.output_dir)
        raise NonFiniteLossError(
            message + ("" if kept else " There is no checkpoint yet."),
            clips,
            hint=Hint("resume_from_checkpoint", str(kept), "go on from there") if kept else (),
        )

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if looks(self.state, self.control):
            self._refuse_not_finite()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Operations of a batch's step, for Trainer's `total_flos`."""
        clips, frames = _clips_and_frames(inputs)
        return self._meter.flops_per_pair * clips * frames

    def rate_multiple(self, name: str, weight: nn.Parameter) -> float:
        """How many times `learning_rate` a weight learns at; 1, unless overridden."""
        return 1.0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimiser, with the rates that `rate_multiple` says; those of 1 come first, which are logged."""
        chosen: Any = self.model if model is None else model
        weights = {name: weight for name, weight in chosen.named_parameters() if weight.requires_grad}
        multiples = {name: self.rate_multiple(name, weight) for name, weight in weights.items()}
        if self.optimizer is None and set(multiples.values()) != {1.0}:
            kind, settings = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, chosen)
            decaying = set(self.get_decay_parameter_names(chosen))
            groups: dict[tuple[float, bool], list[Any]] = {}
            for name, weight in weights.items():
                groups.setdefault((multiples[name], name in decaying), []).append(weight)
            rate = settings.get("lr", self.args.learning_rate)
            rows = [
                {"params": rows, "lr": rate * multiple, "weight_decay": self.args.weight_decay if decays else 0.0}
                for (multiple, decays), rows in sorted(groups.items(), key=lambda group: _rank(*group[0]))
            ]
            self.optimizer_cls_and_kwargs = (kind, settings | {"params": rows})
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The rate's course: Trainer's, or warm-up and steps with `step_decay`."""
        decay = self.args.step_decay
        if not isinstance(decay, dict) or not decay or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        per_epoch = num_training_steps / self.args.num_train_epochs

        def factor(step: int) -> float:
            drops = int((step / per_epoch - decay["start"]) // decay["every"]) + 1 if step else 0
            return min(1.0, (step + 1) / (warmup + 1)) * decay["factor"] ** max(0, drops)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)  # type: ignore[arg-type]
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # Log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in Trainer, with the parts of the loss, speed, waiting and memory beside the loss."""
        if self._batches and "loss" in logs:
            names = sorted(self._sums)
            if names:
                means = torch.stack([self._sums[name] for name in names]) / self._batches
                means = self.accelerator.reduce(means, "mean")
                logs = logs | dict(zip(names, means.tolist(), strict=True))
            logs = logs | self._meter.read(self.args.world_size)
            logs |= memory_in_use(self.args.device)
            self._sums, self._batches = {}, 0
        super().log(logs, start_time)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The metrics of each evaluation set.

        Args:
            eval_dataset: An `EvaluationSet` or a mapping of them; default: those given at the start.
            ignore_keys: Not used.
            metric_key_prefix: First part of every name.

        Returns:
            `eval_NAME_METRIC` for every set; see `evaluate_set`.
        """
        sets = self.evaluation_sets
        if isinstance(eval_dataset, EvaluationSet):
            sets = {"": eval_dataset}
        elif isinstance(eval_dataset, dict):
            sets = eval_dataset
        began = time.perf_counter()
        metrics: dict[str, float] = {}
        for name, evaluation_set in sets.items():
            middle = f"_{name}" if name else ""
            found = self.evaluate_set(name, evaluation_set)
            metrics |= {f"{metric_key_prefix}{middle}_{key}": value for key, value in found.items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - began
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._meter.restart()
        return metrics

    def evaluate_set(self, name: str, evaluation_set: EvaluationSet) -> dict[str, float]:
        """The metrics of one evaluation set; subclasses measure something."""
        return {}

    def map_set(
        self,
        evaluation_set: EvaluationSet,
        keep: Callable[[Any, dict[str, Tensor], dict[str, Any]], dict[str, Tensor]],
        collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        part: Callable[[Any], Callable[..., Any]] = lambda model: model,
    ) -> dict[str, Tensor]:
        """Show the model, in evaluation mode, all clips of a set; see `map_clips`.

        Args:
            evaluation_set: The clips.
            keep: What is kept of a batch's output.
            collator: Makes the batches.
            part: What of the model is called; default: all of it.
        """
        model = self._unwrapped()
        training = model.training
        model.eval()
        try:
            return map_clips(
                part(model),
                keep,
                evaluation_set,
                collator,
                accelerator=self.accelerator,
                batch_frames=self.args.eval_batch_frames,
                num_workers=self.args.dataloader_num_workers,
            )
        finally:
            model.train(training)

    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)

    def after_training(self) -> None:
        """What is done to the weights between the last step and the last evaluation; nothing, unless overridden."""

    # Saving

    def card_details(self, metrics: Mapping[str, float]) -> CardDetails:
        """What the model's card says of this run: its course and the metrics of the last evaluation.

        Args:
            metrics: Of the last evaluation, under `eval_NAME_METRIC`.
        """
        results = [
            EvalResult(
                task_type=self.card_task[0],
                task_name=self.card_task[1],
                dataset_type=name,
                dataset_name=f"{name} ({len(evaluation_set)} clips)",
                metric_type=metric,
                metric_name=text,
                metric_value=round(metrics[f"eval_{name}_{metric}"], 4),
            )
            for name, evaluation_set in self.evaluation_sets.items()
            for metric, text in self.card_metrics.items()
            if f"eval_{name}_{metric}" in metrics
        ]
        course = f"{self._course()} The metrics are those of the evaluation after the last step."
        return CardDetails(results=results, training=course)

    def _course(self) -> str:
        """How the training went, in a few sentences."""
        args, processes = self.args, self.args.world_size
        schedule = "steps" if args.step_decay else SchedulerType(args.lr_scheduler_type).value
        optimiser = "Adam with L2" if args.adam_with_l2 else OptimizerNames(args.optim).value
        return (
            f"{self.state.global_step} steps with batches of {args.per_device_train_batch_size * processes} clips out "
            f"of {len(self.train_dataset)}, on {processes} {'process' if processes == 1 else 'processes'}; "
            f"{optimiser}, rate {args.learning_rate:g} ({schedule}), betas {args.adam_beta1:g} and "
            f"{args.adam_beta2:g}, weight decay {args.weight_decay:g}, seed {args.seed}."
        )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        target = Path(output_dir or str(self.args.output_dir))
        with whole_files(target) as folder:
            super()._save(str(folder), state_dict)
            self.processor.save_pretrained(folder)
            written = {path.name for path in folder.iterdir()}
        for path in target.glob("model*.safetensors*"):  # of an earlier model in more or fewer files
            if path.name not in written:
                path.unlink()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of the model as it is, with the last evaluation's metrics, to `output_dir/README.md`.

        Trainer calls it before an upload.
        """
        if not self.is_world_process_zero():
            return
        metrics = next((entry for entry in reversed(self.state.log_history) if "eval_runtime" in entry), {})
        model = plain_model(self._unwrapped())
        name = self.args.hub_model_id or Path(str(self.args.output_dir)).resolve().name
        card = create_model_card(model, self.processor, self.card_details(metrics).named(name))
        card.save(Path(str(self.args.output_dir)) / "README.md")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As in Trainer, whose uploads on the way are weights and configuration alone; here also what loads them."""
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            for path in Path(checkpoint_folder).iterdir():
                if path.suffix == ".py" or path.name.endswith("_config.json"):
                    shutil.copy(path, Path(str(self.args.output_dir)) / path.name)
            self.create_model_card()
        super()._push_from_checkpoint(checkpoint_folder)

    def _checkpoint_folder(self, trial: Any) -> Path:
        """The folder of the checkpoint that is being written."""
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def _whole_checkpoint(self, trial: Any) -> Iterator[Path]:
        """Give the folder of a checkpoint, which goes when it cannot be written to its end."""
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            with writing(folder, partial=folder):
                yield self._checkpoint_folder(trial)
        except BaseException as error:
            if self.args.should_save and not (folder / TRAINER_STATE_NAME).exists():
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, DiskError) and (kept := last_checkpoint(self.args.output_dir)):
                raise DiskError(error.message, hint=Hint("resume_from_checkpoint", str(kept), "go on")) from error
            raise

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._whole_checkpoint(trial) as folder:
            if self._loader is not None and self.args.should_save:
                # Before the trainer's state, whose file says that a checkpoint is whole.
                write_text(folder / _DATA_STATE, json.dumps(self._loader.state_dict()))
            super()._save_checkpoint(model, trial)
        self._meter.restart()


def _rank(multiple: float, decays: bool) -> tuple[bool, float, bool]:
    return multiple != 1, multiple, not decays


def _clips_and_frames(inputs: dict[str, Any]) -> tuple[int, int]:
    """Size of a batch of either modality or both."""
    names = ("input_values", "pixel_values_videos", "audio_tokens", "video_tokens", "audio_embeds", "input_ids")
    values = next(inputs[name] for name in names if name in inputs)
    return values.shape[0], values.shape[1]


def start_run(kinds: Sequence[Any], words: Sequence[str], folder: str) -> tuple[Any, ...]:
    """Read the words of a training, and refuse an output folder that it cannot use before the work, not after it.

    Args:
        kinds: As of `parse_arguments`, the last one of `RunArguments`.
        words: As of `parse_arguments`.
        folder: Of its recipes.

    Returns:
        One object of each kind.
    """
    register_auto_classes()
    filled = parse_arguments(kinds, words, folder)
    logging.set_verbosity(filled[-1].get_process_log_level())
    check_output(filled[-1])
    return filled


def run_to_end(trainer: CavMaeSyncBaseTrainer) -> int:
    """Train, evaluate, and write model, card, `metrics.json` and `trainer_state.json` to `output_dir`.

    `resume_from_checkpoint="auto"` goes on from the newest whole checkpoint of `output_dir`, if there is one. An
    earlier run in `output_dir` that is not gone on with is replaced with `overwrite` only.

    Returns:
        The status to exit with: 0, or 128 and the number of the signal that ended the training early; then the
        checkpoint to go on from is all that was written.
    """
    settings = trainer.args
    output_dir = Path(str(settings.output_dir))
    resume = check_output(settings)
    if resume is None and trainer.is_world_process_zero():
        remove_checkpoints(output_dir)
    trainer.train(resume_from_checkpoint=resume)
    if trainer.stopped_by is not None:
        print(f"Stopped by {trainer.stopped_by.name} after a checkpoint; --resume_from_checkpoint auto goes on.")
        trainer.end()
        return 128 + int(trainer.stopped_by)

    trainer.after_training()
    metrics = trainer.evaluate() if trainer.evaluation_sets else {}
    if trainer.is_world_process_zero():
        trainer.save_state()
        write_json(output_dir / "metrics.json", metrics, indent=1)
        width = max(map(len, metrics), default=0)
        for name, value in metrics.items():
            print(f"{name:{width}}  {value:.4f}")
    trainer.create_model_card()
    trainer.save_model()  # and uploads all of the folder, with --push_to_hub
    trainer.accelerator.wait_for_everyone()  # the first process has more to write
    if trainer.is_world_process_zero():
        print(f"Model, card and metrics are in {printable(str(output_dir))}.")
    trainer.end()
    return 0
