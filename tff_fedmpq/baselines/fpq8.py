"""FPQ8: all clients train and send codes of 8 bits, with activations of 8 bits.

Whatever a client's budget: the upper bound among the quantized schemes of Table 1.
"""

import dataclasses
from typing import TYPE_CHECKING, ClassVar, Optional

from tff_fedmpq.federated.builder import builder
from tff_fedmpq.federated.config import CodeTrainingConfig

if TYPE_CHECKING:
    from tff_fedmpq.federated.scheme import Scheme


@dataclasses.dataclass(frozen=True)
class FPQ8Config(CodeTrainingConfig):
    """Settings of FPQ8: those of training codes."""

    name: ClassVar[str] = "fpq8"

    activation_bits: Optional[int] = 8

    def compose(self) -> "Scheme":
        from tff_fedmpq.federated.scheme import compose_code_scheme

        return compose_code_scheme(self, common_budget=8.0)


build_fpq8 = builder(FPQ8Config)
"""Builds FPQ8's learning process; the arguments are those of `build_process`."""
