"""Federated mixed-precision quantization for TensorFlow Federated and Keras.

    import tff_fedmpq

    tff_fedmpq.quantize_model(model, bit_width=4)     quantized Keras layers
    tff_fedmpq.summary(model)                         bits and bytes per layer
    tff_fedmpq.prune_and_grow(...)                    bit-widths for a budget (Alg. 2)
    tff_fedmpq.build_fedmpq(model_fn, budgets, data)  the federated process

Subpackages, each using only those before it: `quantization`, `keras`, `allocation`,
`federated`, `baselines`, `simulation`. The last three need TensorFlow Federated.

Names are imported when they are first used, so that settings and `--help` do not wait
for TensorFlow. Where TensorFlow is imported, before or after this package, the Keras
layers register themselves at once: Keras can then load saved models.
"""

from __future__ import annotations

import importlib
from typing import Any

import wrapt

from tff_fedmpq.processor import enable_onednn
from tff_fedmpq.version import __version__

enable_onednn()

_NAMES = {
    "tff_fedmpq.allocation": ("prune_and_grow",),
    "tff_fedmpq.baselines.aqfl": ("AQFLConfig", "build_aqfl"),
    "tff_fedmpq.baselines.fedavg": ("FedAvgConfig", "build_fedavg"),
    "tff_fedmpq.baselines.fedpaq": ("FedPAQConfig", "build_fedpaq"),
    "tff_fedmpq.baselines.fpq8": ("FPQ8Config", "build_fpq8"),
    "tff_fedmpq.baselines.uveqfed": ("UVeQFedConfig", "build_uveqfed"),
    "tff_fedmpq.federated.fedmpq": ("FedMPQConfig", "build_fedmpq"),
    "tff_fedmpq.federated.process": ("build_process",),
    "tff_fedmpq.federated.remote_runtime": ("remote_runtime",),
    "tff_fedmpq.federated.runtime": ("local_async_runtime", "local_runtime"),
    "tff_fedmpq.keras": (
        "IntegerSGD",
        "QuantConv2D",
        "QuantDense",
        "QuantDepthwiseConv2D",
        "QuantReLU",
        "quantize_model",
        "quantized_kernels",
        "resnet20",
        "resnet44",
        "summary",
    ),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tff_fedmpq' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


wrapt.register_post_import_hook(
    lambda _: importlib.import_module("tff_fedmpq.keras"), "tensorflow"
)
