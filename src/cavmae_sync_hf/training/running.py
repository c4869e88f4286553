# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What does a training script do once its Trainer stands: train, evaluate, save, say how it went?"""

import json
import os
from pathlib import Path

from .base import CavMaeSyncBaseTrainer, last_checkpoint

__all__ = ["run_to_end"]


def run_to_end(trainer: CavMaeSyncBaseTrainer) -> int:
    """Train, evaluate, and write model, card, `metrics.json` and `trainer_state.json` to `output_dir`.

    `resume_from_checkpoint="auto"` goes on from the newest whole checkpoint of `output_dir`, if there is one.

    Returns:
        The status to exit with: 0, or 128 and the number of the signal that ended the training early; then the
        checkpoint to go on from is all that was written.
    """
    settings = trainer.args
    output_dir = Path(str(settings.output_dir))
    resume = settings.resume_from_checkpoint
    if resume == "auto":
        found = last_checkpoint(output_dir)
        resume = None if found is None else str(found)
    trainer.train(resume_from_checkpoint=resume)
    if trainer.stopped_by is not None:
        print(f"Stopped by {trainer.stopped_by.name} after a checkpoint; --resume_from_checkpoint auto goes on.")
        trainer.end()
        return 128 + int(trainer.stopped_by)

    trainer.after_training()
    metrics = trainer.evaluate() if trainer.evaluation_sets else {}
    if trainer.is_world_process_zero():
        trainer.save_state()
        text = json.dumps(metrics, indent=1) + os.linesep
        (output_dir / "metrics.json").write_text(text, encoding="utf-8")
        width = max(map(len, metrics), default=0)
        for name, value in metrics.items():
            print(f"{name:{width}}  {value:.4f}")
    trainer.create_model_card()
    trainer.save_model()  # and uploads all of the folder, with --push_to_hub
    trainer.accelerator.wait_for_everyone()  # the first process has more to write
    trainer.end()
    return 0
