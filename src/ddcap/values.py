"""Checks of what callers give: whole numbers, texts, and lists of them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ddcap.errors import DDCapError


def as_whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number between two bounds, those of numpy included.

    Args:
        name: of the argument, for messages.
        value: what was given.
        least: smallest allowed value.
        most: largest allowed value.

    Raises:
        DDCapError: if it is something else, or out of bounds.
    """
    wanted = "a whole number" if least is None else f"a whole number, at least {least}"
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise DDCapError(f"{name}={_shown(value)}: is not a whole number; give {wanted}") from None
    if least is not None and number < least:
        raise DDCapError(f"{name}={number}: must be at least {least}")
    if most is not None and number > most:
        raise DDCapError(f"{name}={number}: must be at most {most}")
    return number


def as_share(name: str, value: Any) -> float:
    """A number from 0 to 1.

    Raises:
        DDCapError: if it is something else, such as NaN.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number <= 1:
        raise DDCapError(f"{name}={_shown(value)}: is not a probability; give a number from 0 to 1")
    return number


def as_text(name: str, value: Any) -> str:
    """A text.

    Raises:
        DDCapError: if it is something else.
    """
    if not isinstance(value, str):
        raise DDCapError(f"{name}={_shown(value)}: is not a text; give a str")
    return value


def as_texts(name: str, value: Any) -> list[str]:
    """A text, or several, as a list.

    Raises:
        DDCapError: if one of them is something else.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Iterable) or isinstance(value, bytes | bytearray):
        raise DDCapError(f"{name}={_shown(value)}: is not a text; give a str, or a list of them")
    return [as_text(f"{name}[{number}]", one) for number, one in enumerate(value)]


def as_wholes(name: str, value: Any, least: int) -> list[int]:
    """Whole numbers as a list, at least one.

    Raises:
        DDCapError: if there is none, or one of them is something else or too small.
    """
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise DDCapError(f"{name}={_shown(value)}: is not a list; give a list of whole numbers")
    numbers: Sequence[int] = [as_whole(f"{name}[{place}]", one, least) for place, one in enumerate(value)]
    if not numbers:
        raise DDCapError(f"{name}: is empty; give at least one number, or leave it out")
    return list(numbers)


def _shown(value: Any) -> str:
    """A value in a message: on one line, and short."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 60 else f"{line[:57]}..."
