"""Keras layers, models and an optimizer that train on integer codes."""

from tff_fedmpq.keras.conversion import quantize_model
from tff_fedmpq.keras.layers import (
    QuantConv2D,
    QuantDense,
    QuantDepthwiseConv2D,
    QuantReLU,
)
from tff_fedmpq.keras.model_summary import LayerSummary, ModelSummary, summary
from tff_fedmpq.keras.optimizers import IntegerSGD
from tff_fedmpq.keras.quantized_kernel import QuantizedKernel, quantized_kernels
from tff_fedmpq.keras.resnets import resnet, resnet20, resnet44

__all__ = [
    "IntegerSGD",
    "LayerSummary",
    "ModelSummary",
    "QuantConv2D",
    "QuantDense",
    "QuantDepthwiseConv2D",
    "QuantReLU",
    "QuantizedKernel",
    "quantize_model",
    "quantized_kernels",
    "resnet",
    "resnet20",
    "resnet44",
    "summary",
]
