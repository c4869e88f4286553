# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which metrics does the `evaluate` library get from here? Each file beside this one is a module it loads offline."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import evaluate

__all__ = ["list_metrics", "load_metric", "metric_path"]


def list_metrics() -> list[str]:
    """Names of the metrics that `load_metric` knows."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def metric_path(name: str) -> str:
    """Path of a metric's file, for `evaluate.load`.

    Raises:
        ValueError: If there is no metric of this name.
    """
    known = list_metrics()
    if name not in known:
        raise ValueError(f"There is no metric {name!r}; choose one of {', '.join(known)}.")
    return str(Path(__file__).parent / f"{name}.py")


def load_metric(name: str, **kwargs: Any) -> "evaluate.EvaluationModule":
    """Load a metric of this package as an `evaluate` module, without a network.

    Args:
        name: One of `list_metrics()`.
        **kwargs: Passed on to `evaluate.load`, `process_id` and `num_process` for example.

    Raises:
        ValueError: If there is no metric of this name.
        ImportError: If the `evaluate` library is not installed.
    """
    path = metric_path(name)
    try:
        import evaluate
    except ImportError as error:
        raise ImportError("load_metric needs the evaluate library; run `pip install evaluate`.") from error
    return evaluate.load(path, **kwargs)
