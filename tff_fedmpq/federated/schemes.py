"""The compared schemes by name, in the order of the paper's Table 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from tff_fedmpq.federated.aqfl import aqfl_scheme
from tff_fedmpq.federated.fedavg import fedavg_scheme
from tff_fedmpq.federated.fedmpq import fedmpq_scheme
from tff_fedmpq.federated.fedpaq import fedpaq_scheme
from tff_fedmpq.federated.fpq8 import fpq8_scheme
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.federated.uveqfed import uveqfed_scheme

SCHEMES: Mapping[str, Callable[..., Scheme]] = {
    "fedavg": fedavg_scheme,
    "fedpaq": fedpaq_scheme,
    "uveqfed": uveqfed_scheme,
    "fpq8": fpq8_scheme,
    "aqfl": aqfl_scheme,
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
        raise ValueError(f"Unknown scheme {name!r}; choose one of {list(SCHEMES)}.")
    try:
        return SCHEMES[name](**options)
    except TypeError as error:
        raise ValueError(f"Scheme {name} has no such option: {error}.") from error
