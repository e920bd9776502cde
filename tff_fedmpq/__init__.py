"""Federated mixed-precision quantization for TensorFlow Federated and Keras.

    import tff_fedmpq

    tff_fedmpq.quantize_model(model, bit_width=4)     quantized Keras layers
    tff_fedmpq.summary(model)                         bits and bytes per layer
    tff_fedmpq.prune_and_grow(...)                    bit-widths for a budget (Alg. 2)
    tff_fedmpq.build_fedmpq(model_fn, budgets, data)  the federated process

Subpackages, each using only those before it: `quantization`, `keras`,
`allocation`, `federated`, `simulation`. The last two need TensorFlow Federated. Names
here are imported when they are first used, so the others work without it.
"""

from __future__ import annotations

import importlib
from typing import Any

from tff_fedmpq.version import __version__

_EXPORTS = {
    "IntegerSGD": "tff_fedmpq.keras",
    "QuantConv2D": "tff_fedmpq.keras",
    "QuantDense": "tff_fedmpq.keras",
    "QuantDepthwiseConv2D": "tff_fedmpq.keras",
    "QuantReLU": "tff_fedmpq.keras",
    "build_aqfl": "tff_fedmpq.federated",
    "build_aqfl_literal": "tff_fedmpq.federated",
    "build_fedavg": "tff_fedmpq.federated",
    "build_fedmpq": "tff_fedmpq.federated",
    "build_fedmpq_literal": "tff_fedmpq.federated",
    "build_fedpaq": "tff_fedmpq.federated",
    "build_fpq8": "tff_fedmpq.federated",
    "build_uveqfed": "tff_fedmpq.federated",
    "local_runtime": "tff_fedmpq.simulation.runtime",
    "prune_and_grow": "tff_fedmpq.allocation",
    "quantize_model": "tff_fedmpq.keras",
    "resnet20": "tff_fedmpq.keras",
    "resnet44": "tff_fedmpq.keras",
    "summary": "tff_fedmpq.keras",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tff_fedmpq' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
