# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Results files: what a metric was measured on, and how, so that it can be checked and measured again."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..files import StrPath, check_free, parse_json, plain, write_json
from ..model.errors_cavmae_sync import EvaluationError
from ..model.modeling_cavmae_sync import CavMaeSyncPreTrainedModel
from ..provenance import backend_of, checkpoint_record, software_versions
from .protocols import Protocol

FORMAT = "cavmae-sync-results"
FORMAT_VERSION = 1
# What a reader of a record relies on.
_KEYS = ("task", "protocol", "metrics", "counts", "checkpoint", "data", "versions", "date")
# Metrics of version 0.1.0 that have another name now.
_FORMER_METRICS = {"pointing_other_sound": "pointing_other_audio"}


def make_record(
    task: str,
    protocol: Protocol,
    metrics: Mapping[str, float | int],
    *,
    model: CavMaeSyncPreTrainedModel,
    data: Mapping[str, Any],
    counts: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    seeds: Mapping[str, int] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """A results record, plain values all through.

    Args:
        task: `"retrieval"`, `"classification"`, `"localization"`, `"sync"` or `"text"`.
        protocol: A protocol of `evaluation.protocols`.
        metrics: Values by name. What is not finite becomes `None`, since JSON has no other word for it.
        model: What was evaluated.
        data: `name`, `kind`, `fingerprint` and what else tells the data.
        counts: `clips_seen` of `clips_expected`, `missing` and `unusable` clips.
        settings: What else a metric may depend on, such as the precision.
        seeds: Of random choices; empty where nothing was drawn.
        command: The command line.
    """
    seen, expected = counts["clips_seen"], counts["clips_expected"]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "task": task,
        "protocol": protocol.to_dict(),
        "metrics": plain(metrics),
        "counts": dict(counts),
        "complete": seen == expected,
        "checkpoint": checkpoint_record(model),
        "data": dict(data),
        "settings": {
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            **backend_of(model),
            **(settings or {}),
        },
        "seeds": dict(seeds or {}),
        "versions": software_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def write_results(path: StrPath, record: Mapping[str, Any], *, overwrite: bool = False) -> Path:
    """Write a record as JSON; the file is there whole or not at all.

    Args:
        path: The file.
        record: From `make_record`.
        overwrite: Whether an earlier results file is replaced; other files never are.

    Raises:
        AlreadyExistsError: The file holds results, and `overwrite` is off.
        EvaluationError: The path is a folder, or a file that holds something else.
    """
    target = Path(path).expanduser()
    check_target(target, overwrite=overwrite)
    return write_json(target, record, overwrite=overwrite)


def check_target(path: StrPath, *, overwrite: bool = False) -> None:
    """Refuse a path that `write_results` would refuse, before there is anything to write.

    Raises:
        AlreadyExistsError: As `write_results`.
        EvaluationError: As `write_results`.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        raise EvaluationError(f"{target} is a folder; name the file to write, such as {target / 'results.json'}.")
    if target.exists():
        try:
            read_results(target)
        except EvaluationError as error:
            raise EvaluationError(
                f"{target} exists and holds no results, so it is not replaced; name another file."
            ) from error
        check_free(target, overwrite=overwrite)


def read_results(path: StrPath) -> dict[str, Any]:
    """Read a results file; metrics of earlier versions have the names of today.

    Raises:
        EvaluationError: There is no such file, or it holds no results.
    """
    try:
        record = parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror or error}); name a results file.") from error
    except ValueError as error:
        raise EvaluationError(
            f"{path}: is not JSON ({error}); name a file that `cavmae-sync evaluate` wrote."
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise EvaluationError(f"{path}: holds no results; name a file that `cavmae-sync evaluate` wrote.")
    if record.get("format_version") != FORMAT_VERSION:
        raise EvaluationError(
            f"{path}: has format version {record.get('format_version')}, this package reads {FORMAT_VERSION}; "
            "evaluate again."
        )
    lacking = [key for key in _KEYS if key not in record]
    if lacking:
        raise EvaluationError(f"{path}: lacks {', '.join(lacking)}; evaluate again.")
    record["metrics"] = {_FORMER_METRICS.get(name, name): value for name, value in record["metrics"].items()}
    return record
