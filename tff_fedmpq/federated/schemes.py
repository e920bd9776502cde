"""All schemes by name: the six of the paper's Table 1, and two read literally."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Callable

from tff_fedmpq.federated.aqfl import aqfl_literal_scheme, aqfl_scheme
from tff_fedmpq.federated.fedavg import fedavg_scheme
from tff_fedmpq.federated.fedmpq import fedmpq_literal_scheme, fedmpq_scheme
from tff_fedmpq.federated.fedpaq import fedpaq_scheme
from tff_fedmpq.federated.fpq8 import fpq8_scheme
from tff_fedmpq.federated.local_training import LocalTrainingConfig
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

# FedMPQ and AQFL without our repairs.
LITERAL_SCHEMES: Mapping[str, Callable[..., Scheme]] = {
    "aqfl_literal": aqfl_literal_scheme,
    "fedmpq_literal": fedmpq_literal_scheme,
}
ALL_SCHEMES: Mapping[str, Callable[..., Scheme]] = {**SCHEMES, **LITERAL_SCHEMES}


def build_scheme(name: str, options: Mapping[str, Any]) -> Scheme:
    """Returns the scheme of that name.

    Args:
      name: in `ALL_SCHEMES`.
      options: arguments of the scheme's function.

    Raises:
      ValueError: for an unknown name, or an option that the scheme does not have.
    """
    if name not in ALL_SCHEMES:
        raise ValueError(f"Unknown scheme {name!r}; choose one of {list(ALL_SCHEMES)}.")
    try:
        return ALL_SCHEMES[name](**options)
    except TypeError as error:
        raise ValueError(
            f"Scheme {name} does not take these options ({error}). Options of local "
            f"training: {_field_names(LocalTrainingConfig)}, of which code_update, "
            "low_bit_damping, learning_rate_unit, pruning_threshold and saturate are "
            "for quantized schemes; of "
            f"{name}: {_option_names(ALL_SCHEMES[name])}."
        ) from error


def _field_names(config: type) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _option_names(scheme_fn: Callable[..., Scheme]) -> list[str]:
    """Returns the named arguments of a scheme's function."""
    # The others of codes hand theirs on to FedMPQ's function.
    parameters = inspect.signature(scheme_fn).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return names or _option_names(fedmpq_scheme)
