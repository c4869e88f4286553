# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Times as people write them, `1:02:03.5`: read and written the same way wherever there is a text."""

import math
import re
from typing import Any

from ..model.errors_cavmae_sync import DataError

_CLOCK = re.compile(r"(?:(?P<hours>\d+):(?=[0-5]?\d:))?(?P<minutes>\d+):(?P<seconds>[0-5]?\d(?:\.\d*)?)", re.ASCII)
_SECONDS = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)


def parse_clock(text: str) -> float:
    """Seconds of a time such as `80`, `80.5`, `1:20` or `1:02:03.5`: seconds, minutes and seconds, or hours, too.

    Raises:
        ValueError: The text is no such time.
    """
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    found = _CLOCK.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no time; write seconds such as 80.5, or 1:20, or 1:02:03.5.")
    return 3600 * int(found["hours"] or 0) + 60 * int(found["minutes"]) + float(found["seconds"])


def format_clock(seconds: float, digits: int = 1) -> str:
    """A time as `parse_clock` reads it: hours where there are any, minutes, seconds with `digits` decimals."""
    minutes, rest = divmod(round(seconds, digits), 60)
    hours, minutes = divmod(int(minutes), 60)
    clock = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{clock}:{rest:0{digits + 3 if digits else 2}.{digits}f}"


def as_seconds(value: Any) -> float | None:
    """Seconds of a value of a table, a number or a text; `None` for what is no time."""
    try:
        number = parse_clock(value) if isinstance(value, str) and ":" in value else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def cell_seconds(value: Any, place: str) -> float | None:
    """Seconds of a value of a table, `None` where it is empty.

    Args:
        value: The value.
        place: How a message about it begins, such as `list.csv: row 3 has the start`.

    Raises:
        DataError: It is no time.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip():
        return None
    seconds = as_seconds(value)
    if seconds is None or seconds < 0:
        raise DataError(f"{place} {value!r}; times are seconds, such as 80.5, or 1:20.")
    return seconds
