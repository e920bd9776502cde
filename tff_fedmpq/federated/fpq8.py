"""FPQ8: all clients train and send codes of 8 bits, with activations of 8 bits.

Fixed-precision quantization-aware training, whatever a client's budget: the upper bound
among the quantized schemes of FedMPQ's Table 1.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tff_fedmpq.federated.aqfl import aqfl_scheme
from tff_fedmpq.federated.process import process_builder
from tff_fedmpq.federated.scheme import Scheme, weigh_by_examples

_BITS = 8


def fpq8_scheme(**options: Any) -> Scheme:
    """Returns FPQ8 as a `Scheme`.

    Args:
      **options: of `fedmpq_scheme`. By default clients weigh by their examples alone:
        all have the same precision.
    """
    defaults = {"activation_bits": _BITS, "aggregation_weight": weigh_by_examples}
    scheme = aqfl_scheme(**{**defaults, **options})
    return dataclasses.replace(scheme, name="fpq8", common_budget=float(_BITS))


build_fpq8 = process_builder(fpq8_scheme)
