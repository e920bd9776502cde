"""FedPAQ: float training, updates of v_n bits per entry, stochastic and unbiased.

Reisizadeh et al., "FedPAQ: A Communication-Efficient Federated Learning Method with
Periodic Averaging and Quantization", AISTATS 2020, with QSGD's quantizer
(`stochastic_quantizer`): ``W <- W + sum_n p_n Q(W_n - W)``.

Deviations: each client has its own number of bits; the default norm is the maximum.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Literal, Union

from tff_fedmpq.federated.builder import builder
from tff_fedmpq.federated.config import LocalTrainingConfig

if TYPE_CHECKING:
    from tff_fedmpq.federated.scheme import Scheme

Norm = Union[Literal["max", "l2"], Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class FedPAQConfig(LocalTrainingConfig):
    """Settings of FedPAQ.

    Attributes:
      norm: Norm by which a tensor is scaled: "max", "l2", or a function of the tensor.
    """

    name: ClassVar[str] = "fedpaq"

    norm: Norm = "max"

    def compose(self) -> "Scheme":
        from tff_fedmpq.baselines.update_uplink import ScalarUpdateUplink
        from tff_fedmpq.federated.scheme import compose_float_scheme

        uplink = ScalarUpdateUplink(self.norm)
        return compose_float_scheme(self, uplink, min_budget=uplink.min_bits)


build_fedpaq = builder(FedPAQConfig)
"""Builds FedPAQ's learning process; the arguments are those of `build_process`."""
