"""FP32 FedAvg: float models are sent in both directions and trained by float SGD.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017: ``W <- sum_n p_n W_n``, ``p_n = |D_n| / sum |D_i|``.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Optional

from tff_fedmpq.federated.config import LocalTrainingConfig

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_federated as tff

    from tff_fedmpq.federated.process import FederatedProcess
    from tff_fedmpq.federated.scheme import Scheme


@dataclasses.dataclass(frozen=True)
class FedAvgConfig(LocalTrainingConfig):
    """Settings of FP32 FedAvg: those of local training."""

    name: ClassVar[str] = "fedavg"

    def compose(self) -> "Scheme":
        """Returns FedAvg as a `Scheme`."""
        from tff_fedmpq.federated.scheme import compose_float_scheme

        return compose_float_scheme(self)


def build_fedavg(
    model_fn: "Callable[[], tf.keras.Model]",
    budgets: Mapping[str, float],
    client_data: "tff.simulation.datasets.ClientData",
    config: FedAvgConfig = FedAvgConfig(),
    *,
    loss: "Optional[tf.keras.losses.Loss]" = None,
    augment: Optional[Callable[..., Any]] = None,
    dtype_policy: Optional[str] = None,
    on_step: Optional[Callable[..., Any]] = None,
    seed: int = 0,
) -> "FederatedProcess":
    """Builds FP32 FedAvg's learning process; arguments are those of `build_process`."""
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
