"""Federated mixed-precision quantization for TensorFlow Federated and Keras.

    import tff_fedmpq

    tff_fedmpq.quantize_model(model, bit_width=4)     quantized Keras layers
    tff_fedmpq.summary(model)                         bits and bytes per layer
    tff_fedmpq.prune_and_grow(...)                    bit-widths for a budget (Alg. 2)
    tff_fedmpq.build_fedmpq(model_fn, budgets, data)  the federated process

Subpackages, each using only those before it: `quantization`, `keras`,
`allocation`, `federated`, `simulation`. The last two need TensorFlow Federated, so
their names here are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

# At once: Keras then knows these layers, and loads models that were saved with them.
from tff_fedmpq.allocation import prune_and_grow
from tff_fedmpq.keras import (
    CompensatedSGD,
    IntegerSGD,
    QuantConv2D,
    QuantDense,
    QuantDepthwiseConv2D,
    QuantReLU,
    quantize_model,
    quantized_kernels,
    resnet20,
    resnet44,
    summary,
)
from tff_fedmpq.version import __version__

_LAZY = {
    "build_aqfl": "tff_fedmpq.federated",
    "build_aqfl_literal": "tff_fedmpq.federated",
    "build_fedavg": "tff_fedmpq.federated",
    "build_fedmpq": "tff_fedmpq.federated",
    "build_fedmpq_literal": "tff_fedmpq.federated",
    "build_fedpaq": "tff_fedmpq.federated",
    "build_fpq8": "tff_fedmpq.federated",
    "build_uveqfed": "tff_fedmpq.federated",
    "local_runtime": "tff_fedmpq.simulation.runtime",
}

__all__ = [
    "CompensatedSGD",
    "IntegerSGD",
    "QuantConv2D",
    "QuantDense",
    "QuantDepthwiseConv2D",
    "QuantReLU",
    "__version__",
    "prune_and_grow",
    "quantize_model",
    "quantized_kernels",
    "resnet20",
    "resnet44",
    "summary",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tff_fedmpq' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
