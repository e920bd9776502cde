"""Checks of arguments: names of known objects, counts, kilobytes, true or false."""

from __future__ import annotations

import numbers
import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def check_name(name: object, known: Mapping[str, object], what: str) -> None:
    """Raises ValueError, listing the known names, unless `name` is one of them."""
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"Unknown {what} {name!r}; choose one of {sorted(known)}.")


def lookup(identifier: str | T, known: Mapping[str, T], what: str) -> T:
    """Returns the known object of that name, or `identifier` itself if it is an object.

    Other names, numbers and None raise ValueError, which lists the names of `what`.
    """
    if identifier is None or isinstance(identifier, (str, int, float)):
        check_name(identifier, known, what)
        return known[str(identifier)]
    return identifier


def check_count(value: int, what: str) -> None:
    """Raises ValueError unless the argument `what` is a whole number of at least 1."""
    if not isinstance(value, numbers.Integral) or value < 1:
        expected = "a whole number of at least 1"
        raise ValueError(f"{what} has to be {expected}; found {value!r}.")


def check_bool(value: bool, what: str) -> None:
    """Raises ValueError unless the argument `what` is a bool, not a word like "no"."""
    if not isinstance(value, bool):
        raise ValueError(f"{what} has to be true or false, found {value!r}.")


def kilobytes_of(text: str) -> float:
    """Returns the kilobytes of a budget like "40 kB"; ValueError for another text."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*kB\s*", text)
    if match is None:
        raise ValueError(
            f'Budgets are numbers of bits, or sizes like "40 kB"; found {text!r}.'
        )
    return float(match[1])
