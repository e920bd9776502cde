"""The schemes by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from tff_fedmpq.federated.fedmpq import fedmpq_scheme
from tff_fedmpq.federated.scheme import Scheme

SCHEMES: Mapping[str, Callable[..., Scheme]] = {
    "fedmpq": fedmpq_scheme,
}


def build_scheme(name: str, options: Mapping[str, Any]) -> Scheme:
    """Returns the scheme of that name.

    Args:
      name: in `SCHEMES`.
      options: arguments of the scheme's function.

    Raises:
      ValueError: for an unknown name, or an option that the scheme does not have.
    """
    if name not in SCHEMES:
        raise ValueError(f"Unknown scheme {name!r}; choose one of {sorted(SCHEMES)}.")
    try:
        return SCHEMES[name](**options)
    except TypeError as error:
        raise ValueError(f"Scheme {name}: {error}.") from error
