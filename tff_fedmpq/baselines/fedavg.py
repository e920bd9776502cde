"""FP32 FedAvg: float models are sent in both directions and trained by float SGD.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017: ``W <- sum_n p_n W_n``, ``p_n = |D_n| / sum |D_i|``.
"""

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from tff_fedmpq.federated.builder import builder
from tff_fedmpq.federated.config import LocalTrainingConfig

if TYPE_CHECKING:
    from tff_fedmpq.federated.scheme import Scheme


@dataclasses.dataclass(frozen=True)
class FedAvgConfig(LocalTrainingConfig):
    """Settings of FP32 FedAvg: those of local training."""

    name: ClassVar[str] = "fedavg"

    def compose(self) -> "Scheme":
        from tff_fedmpq.federated.scheme import compose_float_scheme

        return compose_float_scheme(self)


build_fedavg = builder(FedAvgConfig)
"""Builds FedAvg's learning process; the arguments are those of `build_process`."""
