"""Variations by name: an argument may be an object, or the name of a known one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def check_name(name: str, known: Mapping[str, object], what: str) -> None:
    """Checks that an argument is one of the known names.

    Raises:
      ValueError: if it is not; it says which there are.
    """
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"Unknown {what} {name!r}; choose one of {sorted(known)}.")


def lookup(identifier: str | T, known: Mapping[str, T], what: str) -> T:
    """Returns the variation of that name, or the object itself.

    Args:
      identifier: a name, or anything else but None, which is returned.
      known: name -> variation.
      what: is looked up, for the error.

    Raises:
      ValueError: if there is none of that name; it says which there are.
    """
    if identifier is None or isinstance(identifier, str):
        check_name(identifier, known, what)
        return known[identifier]
    return identifier
