"""AQFL: every client trains at its own fixed precision, the same in all layers.

The baseline of FedMPQ's Table 1 (after Abdelmoniem & Canini, "Towards Mitigating
Device Heterogeneity in Federated Learning via Adaptive Model Quantization", 2021):
client n trains and sends codes of v_n bits. It is FedMPQ without the group Lasso, MSB
pruning and the allocation of bits, and nothing else, so the rows of the paper's Table 4
lie between the two.

The paper does not state AQFL's aggregation weights; FedMPQ's are the default.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Optional

from tff_fedmpq.federated.config import LITERAL_CODE_TRAINING, CodeTrainingConfig

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_federated as tff

    from tff_fedmpq.federated.process import FederatedProcess
    from tff_fedmpq.federated.scheme import Scheme


@dataclasses.dataclass(frozen=True)
class AQFLConfig(CodeTrainingConfig):
    """Settings of AQFL: those of training codes."""

    name: ClassVar[str] = "aqfl"

    @classmethod
    def literal(cls, **changes: Any) -> "AQFLConfig":
        """Returns AQFL as the paper reads literally; clients weigh by |D_n|.

        Args:
          **changes: Fields to replace.
        """
        literal = {**LITERAL_CODE_TRAINING, "aggregation_weight": "examples"}
        return cls(**{**literal, **changes})

    def compose(self) -> "Scheme":
        """Returns AQFL as a `Scheme`."""
        from tff_fedmpq.federated.scheme import compose_code_scheme

        return compose_code_scheme(self)


def build_aqfl(
    model_fn: "Callable[[], tf.keras.Model]",
    budgets: Mapping[str, float],
    client_data: "tff.simulation.datasets.ClientData",
    config: AQFLConfig = AQFLConfig(),
    *,
    loss: "Optional[tf.keras.losses.Loss]" = None,
    augment: Optional[Callable[..., Any]] = None,
    dtype_policy: Optional[str] = None,
    on_step: Optional[Callable[..., Any]] = None,
    seed: int = 0,
) -> "FederatedProcess":
    """Builds AQFL's learning process; arguments are those of `build_process`."""
    from tff_fedmpq.federated.process import build_process

    return build_process(
        model_fn,
        budgets,
        client_data,
        config,
        loss=loss,
        augment=augment,
        dtype_policy=dtype_policy,
        on_step=on_step,
        seed=seed,
    )
