"""AQFL: every client trains at its own fixed precision, the same in all layers.

The baseline of FedMPQ's Table 1 (after Abdelmoniem & Canini, "Towards Mitigating
Device Heterogeneity in Federated Learning via Adaptive Model Quantization", 2021):
client n trains and sends codes of v_n bits. It is FedMPQ without the group Lasso, MSB
pruning and the allocation of bits, and nothing else, so the rows of the paper's Table 4
lie between the two. The paper does not state AQFL's aggregation weights: they are
|D_n|, also in the literal reading, where FedMPQ's are v_n |D_n|.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from tff_fedmpq.federated.builder import builder
from tff_fedmpq.federated.config import LITERAL_CODE_TRAINING, CodeTrainingConfig

if TYPE_CHECKING:
    from tff_fedmpq.federated.scheme import Scheme


@dataclasses.dataclass(frozen=True)
class AQFLConfig(CodeTrainingConfig):
    """Settings of AQFL: those of training codes."""

    name: ClassVar[str] = "aqfl"

    @classmethod
    def literal(cls, **changes: Any) -> "AQFLConfig":
        """Returns AQFL as the paper reads literally, with `changes` of its fields."""
        return cls(**{**LITERAL_CODE_TRAINING, **changes})

    def compose(self) -> "Scheme":
        from tff_fedmpq.federated.scheme import compose_code_scheme

        return compose_code_scheme(self)


build_aqfl = builder(AQFLConfig)
"""Builds AQFL's learning process; the arguments are those of `build_process`."""
