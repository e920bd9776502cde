"""UVeQFed: float training, updates by dithered lattice quantization, entropy-coded.

Shlezinger et al., "UVeQFed: Universal Vector Quantization for Federated Learning",
arXiv 2006.03262: pairs of entries of an update are quantized to the nearest point of a
hexagonal lattice, with a dither that client and server draw from a common seed and the
server subtracts; the points are entropy-coded (`update_uplink.LatticeUpdateUplink`).
"""

import dataclasses
from typing import TYPE_CHECKING, ClassVar, Literal

from tff_fedmpq.federated.builder import builder
from tff_fedmpq.federated.config import LocalTrainingConfig

if TYPE_CHECKING:
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
        from tff_fedmpq.baselines.update_uplink import LatticeUpdateUplink
        from tff_fedmpq.federated.scheme import compose_float_scheme

        return compose_float_scheme(self, LatticeUpdateUplink(self.lattice))


build_uveqfed = builder(UVeQFedConfig)
"""Builds UVeQFed's learning process; the arguments are those of `build_process`."""
