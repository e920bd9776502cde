"""FPQ8: all clients train and send codes of 8 bits, with activations of 8 bits.

Fixed-precision quantization-aware training whatever a client's budget: the upper bound
among the quantized schemes of FedMPQ's Table 1.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Optional

from tff_fedmpq.federated.config import AggregationWeight, CodeTrainingConfig

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_federated as tff

    from tff_fedmpq.federated.process import FederatedProcess
    from tff_fedmpq.federated.scheme import Scheme


_BITS = 8


@dataclasses.dataclass(frozen=True)
class FPQ8Config(CodeTrainingConfig):
    """Settings of FPQ8: those of training codes.

    All clients have the same precision, so by default they weigh by |D_n|.
    """

    name: ClassVar[str] = "fpq8"

    aggregation_weight: AggregationWeight = "examples"
    activation_bits: Optional[int] = _BITS

    def compose(self) -> "Scheme":
        """Returns FPQ8 as a `Scheme`."""
        from tff_fedmpq.federated.scheme import compose_code_scheme

        return compose_code_scheme(self, common_budget=float(_BITS))


def build_fpq8(
    model_fn: "Callable[[], tf.keras.Model]",
    budgets: Mapping[str, float],
    client_data: "tff.simulation.datasets.ClientData",
    config: FPQ8Config = FPQ8Config(),
    *,
    loss: "Optional[tf.keras.losses.Loss]" = None,
    augment: Optional[Callable[..., Any]] = None,
    dtype_policy: Optional[str] = None,
    on_step: Optional[Callable[..., Any]] = None,
    seed: int = 0,
) -> "FederatedProcess":
    """Builds FPQ8's learning process; arguments are those of `build_process`."""
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
