"""UVeQFed: float training, updates by dithered lattice quantization, entropy-coded.

Shlezinger et al., "UVeQFed: Universal Vector Quantization for Federated Learning",
arXiv 2006.03262: pairs of entries of an update are quantized to the nearest point of a
hexagonal lattice, with a dither that client and server draw from a common seed and the
server subtracts; the points are entropy-coded (`update_uplink.LatticeUpdateUplink`).
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Literal, Optional

from tff_fedmpq.federated.config import LocalTrainingConfig

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_federated as tff

    from tff_fedmpq.federated.process import FederatedProcess
    from tff_fedmpq.federated.scheme import Scheme


@dataclasses.dataclass(frozen=True)
class UVeQFedConfig(LocalTrainingConfig):
    """Settings of UVeQFed.

    Attributes:
      lattice: Lattice of the quantizer: "hexagonal" or "integer".
    """

    name: ClassVar[str] = "uveqfed"

    lattice: Literal["hexagonal", "integer"] = "hexagonal"

    def compose(self) -> "Scheme":
        """Returns UVeQFed as a `Scheme`."""
        from tff_fedmpq.baselines.update_uplink import LatticeUpdateUplink
        from tff_fedmpq.federated.scheme import compose_float_scheme

        return compose_float_scheme(self, LatticeUpdateUplink(self.lattice))


def build_uveqfed(
    model_fn: "Callable[[], tf.keras.Model]",
    budgets: Mapping[str, float],
    client_data: "tff.simulation.datasets.ClientData",
    config: UVeQFedConfig = UVeQFedConfig(),
    *,
    loss: "Optional[tf.keras.losses.Loss]" = None,
    augment: Optional[Callable[..., Any]] = None,
    dtype_policy: Optional[str] = None,
    on_step: Optional[Callable[..., Any]] = None,
    seed: int = 0,
) -> "FederatedProcess":
    """Builds UVeQFed's learning process; arguments are those of `build_process`."""
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
