# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What the values of settings may be: of the configuration and of the processors, in Python and in saved files.

Each of those has one table, name to `Allowed`, for all its settings. The largest values are far above what anybody
uses, and far below what would fill the memory before anything is read.
"""

import difflib
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_LONGEST_SHOWN = 60
_MOST_CHOICES = 6


@dataclass(frozen=True)
class Allowed:
    """The values that a setting may have.

    Attributes:
        words: What they are, to follow "it must be", such as `"a whole number from 1 to 512"`.
        test: Whether a value is one of them; any value may come.
        names: Those that are texts, for remedies.
    """

    words: str
    test: Callable[[Any], bool]
    names: tuple[str, ...] = ()

    def __call__(self, value: Any) -> bool:
        return self.test(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floating-point ones
        return False


def whole(least: int, most: int) -> Allowed:
    """Whole numbers of a range, both ends included."""
    words = f"a whole number from {least} to {most}" if most > least else str(least)
    return Allowed(words, lambda value: _is_whole(value) and least <= value <= most)


def odd(least: int, most: int) -> Allowed:
    """Odd whole numbers of a range, both ends included."""
    words = f"an odd whole number from {least} to {most}"
    return Allowed(words, lambda value: _is_whole(value) and least <= value <= most and value % 2 == 1)


def number(least: float, most: float, *, above: bool = False, below: bool = False) -> Allowed:
    """Finite numbers of a range.

    Args:
        least: Lower end.
        most: Upper end.
        above: Whether the lower end itself is left out.
        below: Whether the upper end itself is left out.
    """
    words = f"a number {'above' if above else 'from'} {least:g} {'and below' if below else 'to'} {most:g}"

    def test(value: Any) -> bool:
        return (
            _is_number(value)
            and (value > least if above else value >= least)
            and (value < most if below else value <= most)
        )

    return Allowed(words, test)


def choice(*values: Any) -> Allowed:
    """Some values, of their own types."""

    def test(value: Any) -> bool:
        # 1 is not True.
        alike = (known for known in values if isinstance(value, type(known)))
        return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in alike)

    listed = ", ".join(map(repr, values[:_MOST_CHOICES]))
    words = f"one of {listed}" if len(values) <= _MOST_CHOICES else f"a known name such as {listed}"
    return Allowed(words, test, tuple(value for value in values if isinstance(value, str)))


def text() -> Allowed:
    """Texts of one line that are not empty."""
    return Allowed("a name", lambda value: isinstance(value, str) and bool(value.strip()) and value.isprintable())


def flag() -> Allowed:
    """True and False."""
    return Allowed("true or false", lambda value: isinstance(value, bool))


def optional(allowed: Allowed) -> Allowed:
    """`None` as well."""
    return Allowed(f"{allowed.words}, or none", lambda value: value is None or allowed(value))


def per_channel(allowed: Allowed) -> Allowed:
    """One value for all three colours, or a list of three."""
    return Allowed(
        f"{allowed.words}, or a list of three such",
        lambda value: (
            allowed(value) or (isinstance(value, list | tuple) and len(value) == 3 and all(map(allowed, value)))
        ),
    )


def sizes(*ways: tuple[str, ...], most: int) -> Allowed:
    """Mappings of names to pixels, in one of several ways, where `None` counts as left out; or one number."""

    def test(value: Any) -> bool:
        if not isinstance(value, Mapping):
            return _is_whole(value) and 1 <= value <= most
        given = {name: pixels for name, pixels in value.items() if pixels is not None}
        return set(given) in map(set, ways) and all(map(whole(1, most), given.values()))

    shown = " or ".join("{" + ", ".join(f'"{name}": N' for name in way) + "}" for way in ways)
    return Allowed(f"{shown} with N from 1 to {most}", test)


def shown(value: Any) -> str:
    """A value as messages show it, on one line."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({type(value).__name__})"


def check_values(values: Mapping[str, Any], table: Mapping[str, Allowed]) -> None:
    """Refuse the first value that is not allowed.

    Args:
        values: Settings by name; what the table does not know is passed over.
        table: What they may be.

    Raises:
        ValueError: Names the setting, its value and what is allowed.
    """
    for name, allowed in table.items():
        if name in values and not allowed(values[name]):
            near = difflib.get_close_matches(str(values[name])[:_LONGEST_SHOWN], allowed.names, n=1)
            meant = f" Perhaps {near[0]!r} is meant." if near else ""
            raise ValueError(f"`{name}` is {shown(values[name])}; it must be {allowed.words}.{meant}")


__all__ = [
    "Allowed",
    "check_values",
    "choice",
    "flag",
    "number",
    "optional",
    "per_channel",
    "shown",
    "sizes",
    "text",
    "whole",
]
