"""All schemes by name: the six of the paper's Table 1, and two read literally."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Callable

from tff_fedmpq.allocation.policies import ALLOCATION_POLICIES
from tff_fedmpq.federated.aqfl import aqfl_literal_scheme, aqfl_scheme
from tff_fedmpq.federated.fedavg import fedavg_scheme
from tff_fedmpq.federated.fedmpq import fedmpq_literal_scheme, fedmpq_scheme
from tff_fedmpq.federated.fedpaq import fedpaq_scheme
from tff_fedmpq.federated.fpq8 import fpq8_scheme
from tff_fedmpq.federated.local_training import LocalTrainingConfig
from tff_fedmpq.federated.scheme import AGGREGATION_WEIGHTS, Scheme
from tff_fedmpq.federated.uplink import ModelChangeUplink, Uplink
from tff_fedmpq.federated.uveqfed import uveqfed_scheme
from tff_fedmpq.quantization.scales import SCALE_RULES

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
            "learning_rate (its decay and unit too), low_bit_damping, "
            "pruning_threshold and saturate are for quantized schemes; of "
            f"{name}: {_option_names(ALL_SCHEMES[name])}."
        ) from error


def explicit_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options of a scheme by name, those left at their defaults too.

    But `outer_bit_width`, which is for experiments: it is there only where it is given.

    Args:
      name: of the scheme.
      options: those that are given.

    Raises:
      ValueError: as `build_scheme`; for an option that is an object without a name.
    """
    scheme = build_scheme(name, options)
    explicit: dict[str, Any] = {
        parameter.name: parameter.default
        for parameter in inspect.signature(ALL_SCHEMES[name]).parameters.values()
        if isinstance(parameter.default, (str, int, float))
    }
    explicit |= {
        **options,
        "aggregation_weight": _name(scheme.aggregation_weight, AGGREGATION_WEIGHTS),
    }
    if scheme.weights is not None:
        explicit |= {
            "representation": scheme.weights.representation.name,
            "scale_rule": _name(scheme.weights.scale_rule, SCALE_RULES),
            "activation_bits": scheme.activation_bits,
            "lasso": scheme.lasso,
            "allocation": _name(scheme.allocation, ALLOCATION_POLICIES),
            "code_update": scheme.training.code_update,
            "low_bit_damping": scheme.training.low_bit_damping,
            "learning_rate_unit": scheme.training.learning_rate_unit,
            "pruning_threshold": scheme.training.pruning_threshold,
            "saturate": scheme.training.saturate,
            "pooled_statistics": scheme.pooled_statistics,
            **_server_options(scheme.uplink),
        }
    return explicit


def _server_options(uplink: Uplink) -> dict[str, Any]:
    if isinstance(uplink, ModelChangeUplink):
        rate = uplink.server_learning_rate
        return {"error_feedback": True, "server_learning_rate": rate}
    return {"error_feedback": False, "server_learning_rate": 1.0}


def _name(value: Any, known: Mapping[str, Any]) -> str:
    """Returns the name under which a variation is known."""
    for name, variation in known.items():
        if variation is value:
            return name
    raise ValueError(f"{value!r} has no name; expected one of {', '.join(known)}.")


def _field_names(config: type) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _option_names(scheme_fn: Callable[..., Scheme]) -> list[str]:
    """Returns the named arguments of a scheme's function."""
    # The others of codes hand theirs on to FedMPQ's function.
    parameters = inspect.signature(scheme_fn).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return names or _option_names(fedmpq_scheme)
