# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Retrieval of pictures by sounds and of sounds by pictures, as an `evaluate` metric."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from cavmae_sync_hf.metrics.retrieval import retrieval_metrics

__all__ = ["Retrieval"]


class Retrieval(evaluate.Metric):
    """`retrieval_metrics` of `cavmae_sync_hf.metrics.retrieval`, which documents it."""

    def _info(self) -> evaluate.MetricInfo:
        embeds = datasets.List(datasets.List(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation="",
            inputs_description=(
                "predictions: audio embeddings of each clip, (windows, hidden). references: video embeddings of the "
                "same clips, (frames, hidden). All clips have as many windows and frames."
            ),
            features=datasets.Features({"predictions": embeds, "references": embeds}),
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        strategy: str = "diagonal_mean",
        ks: Sequence[int] = (1, 5, 10),
        ties: str = "expected",
        clips_expected: int | None = None,
    ) -> dict[str, float | int]:
        return retrieval_metrics(
            audio_embeds=np.asarray(predictions, dtype=np.float32),
            video_embeds=np.asarray(references, dtype=np.float32),
            strategy=strategy,
            ks=ks,
            ties=ties,
            clips_expected=clips_expected,
        )
