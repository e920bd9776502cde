"""FP32 FedAvg: float models down and up, float SGD between.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017: ``W <- sum_n p_n W_n``, ``p_n = |D_n| / sum |D_i|``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tff_fedmpq.federated.local_training import LocalTrainingConfig
from tff_fedmpq.federated.process import process_builder
from tff_fedmpq.federated.scheme import (
    AggregationWeight,
    Scheme,
    get_aggregation_weight,
    weigh_by_examples,
)
from tff_fedmpq.federated.uplink import ModelUplink, Uplink
from tff_fedmpq.quantization.representation import SIGN_MAGNITUDE

_OPTIONS_OF_CODES = {
    "code_update",
    "low_bit_damping",
    "learning_rate",
    "learning_rate_decay",
    "learning_rate_unit",
    "pruning_threshold",
    "saturate",
}
# What `LocalTrainingConfig` says of codes, where there are none.
_NO_CODES = {"learning_rate_decay": "none"}


def fedavg_scheme(
    *,
    aggregation_weight: str | AggregationWeight = weigh_by_examples,
    pooled_statistics: bool = False,
    **training: Any,
) -> Scheme:
    """Returns FP32 FedAvg as a `Scheme`.

    Args:
      aggregation_weight: p_n, before normalisation.
      pooled_statistics: whether BatchNorm's variances are pooled (`Scheme`).
      **training: fields of `LocalTrainingConfig`; `float_learning_rate` is the rate of
        all weights.
    """
    # A float model has no codes, to represent or to train.
    uplink = ModelUplink(SIGN_MAGNITUDE)
    scheme = float_scheme("fedavg", uplink, aggregation_weight, training)
    return dataclasses.replace(scheme, pooled_statistics=pooled_statistics)


def float_scheme(
    name: str,
    uplink: Uplink,
    aggregation_weight: str | AggregationWeight,
    training: dict[str, Any],
) -> Scheme:
    """Returns a scheme of float training, which its uplink tells apart from others.

    Raises:
      TypeError: for an option that acts on codes, of which there are none.
    """
    of_codes = sorted(_OPTIONS_OF_CODES & set(training))
    if of_codes:
        raise TypeError(
            f"{name} trains float weights, at float_learning_rate, and has no "
            f"{of_codes}"
        )
    return Scheme(
        name=name,
        weights=None,
        activation_bits=None,
        training=LocalTrainingConfig(**{**_NO_CODES, **training}),
        uplink=uplink,
        aggregation_weight=get_aggregation_weight(aggregation_weight),
    )


build_fedavg = process_builder(fedavg_scheme)
