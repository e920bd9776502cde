"""Keras layers, models and an optimizer that train on integer codes."""

from tff_fedmpq.keras.conversion import quantize_model
from tff_fedmpq.keras.layers import (
    QuantConv2D,
    QuantDense,
    QuantDepthwiseConv2D,
    QuantReLU,
)
from tff_fedmpq.keras.optimizer import (
    CompensatedSGD,
    IntegerSGD,
    StraightThroughSGD,
)
from tff_fedmpq.keras.quantized_kernel import QuantizedKernel, quantized_kernels
from tff_fedmpq.keras.resnet import resnet, resnet20, resnet44
from tff_fedmpq.keras.summary import LayerSummary, ModelSummary, summary

__all__ = [
    "CompensatedSGD",
    "IntegerSGD",
    "LayerSummary",
    "ModelSummary",
    "QuantConv2D",
    "QuantDense",
    "QuantDepthwiseConv2D",
    "QuantReLU",
    "QuantizedKernel",
    "StraightThroughSGD",
    "quantize_model",
    "quantized_kernels",
    "resnet",
    "resnet20",
    "resnet44",
    "summary",
]
