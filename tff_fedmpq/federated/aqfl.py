"""AQFL: every client trains at its own fixed precision, the same in all layers.

The baseline of FedMPQ's Table 1 (after Abdelmoniem & Canini, "Towards Mitigating
Device Heterogeneity in Federated Learning via Adaptive Model Quantization", 2021):
client n trains and sends codes of v_n bits. It is FedMPQ without the group Lasso, MSB
pruning and the allocation of bits, and nothing else, so the rows of the paper's Table 4
lie between the two.

The aggregation weights are not stated in the paper; FedMPQ's are the default here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tff_fedmpq.allocation.policies import keep_bit_widths
from tff_fedmpq.federated.fedmpq import LITERAL_OPTIONS, fedmpq_scheme
from tff_fedmpq.federated.process import process_builder
from tff_fedmpq.federated.scheme import Scheme, weigh_by_examples


def aqfl_scheme(**options: Any) -> Scheme:
    """Returns AQFL as a `Scheme`.

    Args:
      **options: of `fedmpq_scheme`.
    """
    fixed = {"lasso": 0.0, "pruning_threshold": None, "allocation": keep_bit_widths}
    return dataclasses.replace(fedmpq_scheme(**{**fixed, **options}), name="aqfl")


def aqfl_literal_scheme(**options: Any) -> Scheme:
    """Returns AQFL under the paper's literal reading, clients weighing by |D_n|.

    Args:
      **options: of `fedmpq_scheme`, on top of `fedmpq.LITERAL_OPTIONS`.
    """
    literal = {**LITERAL_OPTIONS, "aggregation_weight": weigh_by_examples}
    return dataclasses.replace(
        aqfl_scheme(**{**literal, **options}), name="aqfl_literal"
    )


build_aqfl = process_builder(aqfl_scheme)
build_aqfl_literal = process_builder(aqfl_literal_scheme)
