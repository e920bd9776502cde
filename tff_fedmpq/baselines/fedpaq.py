"""FedPAQ: float training, updates of v_n bits per entry, stochastic and unbiased.

Reisizadeh et al., "FedPAQ: A Communication-Efficient Federated Learning Method with
Periodic Averaging and Quantization", AISTATS 2020, with QSGD's quantizer
(`stochastic_quantizer`): ``W <- W + sum_n p_n Q(W_n - W)``.

Deviations: every client has its own number of bits, as in FedMPQ's comparison; the norm
is the largest magnitude of a tensor by default.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Literal, Optional, Union

from tff_fedmpq.federated.config import LocalTrainingConfig

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_federated as tff

    from tff_fedmpq.federated.process import FederatedProcess
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
        """Returns FedPAQ as a `Scheme`."""
        from tff_fedmpq.baselines.update_uplink import ScalarUpdateUplink
        from tff_fedmpq.federated.scheme import compose_float_scheme

        uplink = ScalarUpdateUplink(self.norm)
        return compose_float_scheme(self, uplink, min_budget=uplink.min_bits)


def build_fedpaq(
    model_fn: "Callable[[], tf.keras.Model]",
    budgets: Mapping[str, float],
    client_data: "tff.simulation.datasets.ClientData",
    config: FedPAQConfig = FedPAQConfig(),
    *,
    loss: "Optional[tf.keras.losses.Loss]" = None,
    augment: Optional[Callable[..., Any]] = None,
    dtype_policy: Optional[str] = None,
    on_step: Optional[Callable[..., Any]] = None,
    seed: int = 0,
) -> "FederatedProcess":
    """Builds FedPAQ's learning process; arguments are those of `build_process`."""
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
