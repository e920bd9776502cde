"""Mathematics of FedMPQ: codes, scales, bit planes, code updates and packing.

Pure functions of tensors, without Keras layers or TensorFlow Federated.
"""

# First: a hook of `tff_fedmpq` on this import loads `tff_fedmpq.keras`, which must not
# find half-initialized modules of this package.
import tensorflow  # noqa: F401

from tff_fedmpq.quantization.activations import quantized_relu
from tff_fedmpq.quantization.bit_planes import msb_density, plane_densities, prune_msb
from tff_fedmpq.quantization.code_updates import integer_update
from tff_fedmpq.quantization.packing import (
    pack,
    pack_numpy,
    packed_size,
    unpack,
    unpack_numpy,
)
from tff_fedmpq.quantization.representations import (
    MAX_BIT_WIDTH,
    MIN_BIT_WIDTH,
    OFFSET_BINARY,
    SIGN_MAGNITUDE,
    Representation,
    get_representation,
    scale_of,
    step_size,
)
from tff_fedmpq.quantization.scales import (
    ScaleRule,
    gaussian_scale,
    get_scale_rule,
    least_squares_scale,
    max_scale,
)

__all__ = [
    "MAX_BIT_WIDTH",
    "MIN_BIT_WIDTH",
    "OFFSET_BINARY",
    "SIGN_MAGNITUDE",
    "Representation",
    "ScaleRule",
    "gaussian_scale",
    "get_representation",
    "get_scale_rule",
    "integer_update",
    "least_squares_scale",
    "max_scale",
    "msb_density",
    "pack",
    "pack_numpy",
    "packed_size",
    "plane_densities",
    "prune_msb",
    "quantized_relu",
    "scale_of",
    "step_size",
    "unpack",
    "unpack_numpy",
]
