"""Federated mixed-precision quantization for TensorFlow Federated and Keras.

    import tff_fedmpq

    tff_fedmpq.quantize_model(model, bit_width=4)     quantized Keras layers
    tff_fedmpq.summary(model)                         bits and bytes per layer
    tff_fedmpq.prune_and_grow(...)                    bit-widths for a budget (Alg. 2)
    tff_fedmpq.build_fedmpq(model_fn, budgets, data)  the federated process
    tff_fedmpq.plots                                  figures of runs and partitions

Subpackages, each using only those before it: `quantization`, `keras`, `allocation`,
`export`, `federated`, `baselines`, `simulation`. The last three need TensorFlow
Federated.

Names are imported when they are first used, so that settings and `--help` do not wait
for TensorFlow. Where TensorFlow is imported, before or after this package, the Keras
layers register themselves at once: Keras can then load saved models.
"""

from __future__ import annotations

import importlib
from typing import Any

import wrapt

from tff_fedmpq import _tff_shim
from tff_fedmpq._tensorflow import check_tensorflow, use_legacy_keras
from tff_fedmpq.processor import enable_onednn
from tff_fedmpq.version import __version__

enable_onednn()
use_legacy_keras()
_tff_shim.install()

_NAMES = {
    "tff_fedmpq.allocation": ("budget_for", "prune_and_grow"),
    "tff_fedmpq.baselines.aqfl": ("AQFLConfig", "build_aqfl"),
    "tff_fedmpq.baselines.fedavg": ("FedAvgConfig", "build_fedavg"),
    "tff_fedmpq.baselines.fedpaq": ("FedPAQConfig", "build_fedpaq"),
    "tff_fedmpq.baselines.fpq8": ("FPQ8Config", "build_fpq8"),
    "tff_fedmpq.baselines.uveqfed": ("UVeQFedConfig", "build_uveqfed"),
    "tff_fedmpq.federated.fedmpq": ("FedMPQConfig", "build_fedmpq"),
    "tff_fedmpq.federated.process": ("build_process", "carry_over"),
    "tff_fedmpq.federated.remote_runtime": ("remote_runtime",),
    "tff_fedmpq.federated.runtime": ("local_async_runtime", "local_runtime"),
    "tff_fedmpq.simulation.data.array_client_data": (
        "client_data_from_arrays",
        "client_data_from_tf_dataset",
    ),
    "tff_fedmpq.keras": (
        "IntegerSGD",
        "QuantActivation",
        "QuantConv1D",
        "QuantConv1DTranspose",
        "QuantConv2D",
        "QuantConv2DTranspose",
        "QuantConv3D",
        "QuantConv3DTranspose",
        "QuantDense",
        "QuantDepthwiseConv1D",
        "QuantDepthwiseConv2D",
        "QuantEinsumDense",
        "QuantEmbedding",
        "QuantGRU",
        "QuantGRUCell",
        "QuantLSTM",
        "QuantLSTMCell",
        "QuantMultiHeadAttention",
        "QuantReLU",
        "QuantSeparableConv1D",
        "QuantSeparableConv2D",
        "QuantSimpleRNN",
        "QuantSimpleRNNCell",
        "load_float_weights",
        "quantize_model",
        "quantized_kernels",
        "register_quantized_layer",
        "resnet20",
        "resnet44",
        "summary",
    ),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name == "plots":
        return importlib.import_module("tff_fedmpq.plots")
    if name not in _MODULES:
        raise AttributeError(f"module 'tff_fedmpq' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def _follow_tensorflow(tensorflow: Any) -> None:
    check_tensorflow(tensorflow)
    importlib.import_module("tff_fedmpq.keras")


wrapt.register_post_import_hook(_follow_tensorflow, "tensorflow")
