"""FedMPQ: federated learning of mixed-precision quantized networks.

Chen & Vikalo, "Mixed-Precision Quantization for Federated Learning on
Resource-Constrained Heterogeneous Devices", CVPR 2024.

    for each round t:
      for each client n of the round:
        G_n <- quantize(W, b_n)                                      Eq. 3, 14
        for tau epochs: G_n <- integer update of the codes by
            task loss + lambda sum_l M_l/M sum_i ||B_i||_2           Eq. 5-12
        drop nearly empty top planes (density <= epsilon)            Eq. 13
      W <- sum_n p_n dequantize(G_n),  p_n ~ v_n |D_n|               Eq. 15
      b_n <- Pruning-Growing of sum_n p_n b_n to the budget v_n      Eq. 16, Alg. 2

Paper symbols: W global weights, b_n `bit_widths`, v_n `budgets`, |D_n| number of
examples, lambda `lasso`, epsilon `pruning_threshold`, tau `epochs`, eta
`learning_rate`.

Deviations, each an argument, and why (docs/study.md):

* the symmetric representation with magnitude planes and scales of least squared error
  (`representation`, `scale_rule`): 1-bit layers live;
* saturating pruning (`saturate`): the weights that held a dropped bit stay large;
* bits where they remove the most quantization error (`allocation`): Pruning-Growing
  leaves large layers 1 bit on devices of few; it is `allocation="pruning_growing"`, and
  uses the whole budget without ever exceeding it;
* a learning rate of weights, not of codes, that falls to zero (`learning_rate_unit`,
  `learning_rate_decay`): wide layers learn, and the noise of rounding does not stay;
* the server adds the clients' changes to its own float weights (`error_feedback`): what
  quantization cuts from them is not lost.

`fedmpq_literal_scheme` has none of them, but is not literal in all (see there).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tff_fedmpq.allocation.policies import (
    AllocationPolicy,
    get_allocation_policy,
    pruning_growing,
    rate_distortion,
)
from tff_fedmpq.federated.local_training import LocalTrainingConfig
from tff_fedmpq.federated.process import process_builder
from tff_fedmpq.federated.scheme import (
    AggregationWeight,
    Scheme,
    WeightQuantization,
    get_aggregation_weight,
    weigh_by_budget_and_examples,
)
from tff_fedmpq.federated.uplink import ModelChangeUplink, ModelUplink
from tff_fedmpq.lookup import check_bool
from tff_fedmpq.quantization.representation import Representation, get_representation
from tff_fedmpq.quantization.scales import ScaleRule, get_scale_rule


def fedmpq_scheme(
    *,
    lasso: float = 0.01,
    pruning_threshold: float | None = 0.03,
    allocation: str | AllocationPolicy = rate_distortion,
    activation_bits: int | None = 4,
    representation: str | Representation = "sign_magnitude",
    scale_rule: str | ScaleRule = "least_squares",
    aggregation_weight: str | AggregationWeight = weigh_by_budget_and_examples,
    error_feedback: bool = True,
    server_learning_rate: float = 1.0,
    pooled_statistics: bool = False,
    outer_bit_width: int | None = None,
    **training: Any,
) -> Scheme:
    """Returns FedMPQ as a `Scheme`.

    Args:
      lasso: lambda; 0 leaves the Lasso out.
      pruning_threshold: epsilon; None leaves MSB pruning out.
      allocation: who decides the next bit-widths.
      activation_bits: of ReLU outputs.
      representation: what codes stand for.
      scale_rule: how the server chooses scales.
      aggregation_weight: p_n, before normalisation.
      error_feedback: whether the server adds the clients' changes to its own float
        weights (`uplink.ModelChangeUplink`) instead of averaging their models.
      server_learning_rate: by how much it adds them; needs `error_feedback`.
      pooled_statistics: whether BatchNorm's variances are pooled (`Scheme`).
      outer_bit_width: bits of the first and the last layer (`Scheme`).
      **training: other fields of `LocalTrainingConfig`.

    Raises:
      ValueError: for a setting that is unknown or out of range, or a
        `server_learning_rate` without effect.
    """
    check_bool(error_feedback, "error_feedback")
    representation = get_representation(representation)
    uplink = ModelUplink(representation)
    if error_feedback:
        uplink = ModelChangeUplink(representation, server_learning_rate)
    elif server_learning_rate != 1.0:
        raise ValueError(
            "server_learning_rate is of changes, which the server adds up with "
            "error_feedback=True only."
        )
    return Scheme(
        name="fedmpq",
        weights=WeightQuantization(representation, get_scale_rule(scale_rule)),
        activation_bits=activation_bits,
        lasso=lasso,
        training=LocalTrainingConfig(pruning_threshold=pruning_threshold, **training),
        uplink=uplink,
        aggregation_weight=get_aggregation_weight(aggregation_weight),
        allocation=get_allocation_policy(allocation),
        pooled_statistics=pooled_statistics,
        outer_bit_width=outer_bit_width,
    )


# What the paper's equations say where ours differ. Algorithm 2 as printed exceeds
# budgets; it stays an option of its own ("literal_pruning_growing").
LITERAL_OPTIONS: Mapping[str, Any] = {
    "representation": "offset_binary",
    "scale_rule": "max",
    "saturate": False,
    "error_feedback": False,
    "learning_rate_unit": "code",
    "learning_rate": 0.1,
    "learning_rate_decay": "none",
}


def fedmpq_literal_scheme(**options: Any) -> Scheme:
    """Returns FedMPQ as the paper reads literally, as a `Scheme`.

    Codes in offset binary, scales ``2 max|W|``, pruned planes dropped, the integer
    update of Eq. 6-10 at the rate of SGD, 0.1, models averaged as they come back. It is
    one reading: in offset binary no plane is sparse enough to be pruned where weights
    have both signs, and the Lasso pulls every weight down. Not literal: Algorithm 2
    grows the first layer too, keeps within budgets and rounds the averaged bits;
    momentum; activations clipped at 6; and pruning that keeps the step size.

    Args:
      **options: of `fedmpq_scheme`, on top of that.
    """
    literal = {**LITERAL_OPTIONS, "allocation": pruning_growing}
    scheme = fedmpq_scheme(**{**literal, **options})
    return dataclasses.replace(scheme, name="fedmpq_literal")


build_fedmpq = process_builder(fedmpq_scheme)
build_fedmpq_literal = process_builder(fedmpq_literal_scheme)
