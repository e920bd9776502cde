"""Variations by name: an argument may be an object, or the name of a known one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def lookup(identifier: str | T, known: Mapping[str, T], what: str) -> T:
    """Returns the variation of that name, or the object itself.

    Args:
      identifier: a name, or anything else, which is returned.
      known: name -> variation.
      what: is looked up, for the error.

    Raises:
      ValueError: if there is none of that name; it says which there are.
    """
    if not isinstance(identifier, str):
        return identifier
    if identifier not in known:
        raise ValueError(
            f"Unknown {what} {identifier!r}; choose one of {sorted(known)}."
        )
    return known[identifier]
