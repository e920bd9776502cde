"""Checks of arguments: the name of a known object; a count; true or false."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def check_name(name: object, known: Mapping[str, object], what: str) -> None:
    """Checks that an argument is one of the known names.

    Raises:
      ValueError: if it is not; it says which there are.
    """
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"Unknown {what} {name!r}; choose one of {sorted(known)}.")


def lookup(identifier: str | T, known: Mapping[str, T], what: str) -> T:
    """Returns the variation of that name, or the object itself.

    Args:
      identifier: a name, or an object, which is returned; a number or None is neither.
      known: name -> variation.
      what: is looked up, for the error.

    Raises:
      ValueError: if there is none of that name; it says which there are.
    """
    if identifier is None or isinstance(identifier, (str, int, float)):
        check_name(identifier, known, what)
        return known[str(identifier)]
    return identifier


def check_count(value: int, what: str) -> None:
    """Checks that an argument is a whole number of at least 1.

    Raises:
      ValueError: naming the argument, if it is not.
    """
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(
            f"{what} has to be a whole number of at least 1; found {value!r}."
        )


def check_bool(value: bool, what: str) -> None:
    """Checks that an argument is true or false, not a word such as "no".

    Raises:
      ValueError: naming the argument, if it is not.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{what} has to be true or false, found {value!r}.")
