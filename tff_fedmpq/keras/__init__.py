"""Keras layers, models and an optimizer that train on integer codes."""

from tff_fedmpq.keras.activation_layers import QuantActivation, QuantReLU
from tff_fedmpq.keras.conversion import load_float_weights, quantize_model
from tff_fedmpq.keras.layers import (
    QuantConv1D,
    QuantConv1DTranspose,
    QuantConv2D,
    QuantConv2DTranspose,
    QuantConv3D,
    QuantConv3DTranspose,
    QuantDense,
    QuantDepthwiseConv1D,
    QuantDepthwiseConv2D,
    QuantEinsumDense,
    QuantEmbedding,
    QuantGRU,
    QuantGRUCell,
    QuantLSTM,
    QuantLSTMCell,
    QuantMultiHeadAttention,
    QuantSeparableConv1D,
    QuantSeparableConv2D,
    QuantSimpleRNN,
    QuantSimpleRNNCell,
    register_quantized_layer,
)
from tff_fedmpq.keras.model_summary import LayerSummary, ModelSummary, summary
from tff_fedmpq.keras.optimizers import IntegerSGD
from tff_fedmpq.keras.quantization_report import LayerReport, QuantizationReport
from tff_fedmpq.keras.quantized_kernel import QuantizedKernel, quantized_kernels
from tff_fedmpq.keras.quantized_model import StopWhereNotFinite
from tff_fedmpq.keras.resnets import resnet, resnet20, resnet44

__all__ = [
    "IntegerSGD",
    "LayerReport",
    "LayerSummary",
    "ModelSummary",
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
    "QuantizationReport",
    "QuantizedKernel",
    "StopWhereNotFinite",
    "load_float_weights",
    "quantize_model",
    "quantized_kernels",
    "register_quantized_layer",
    "resnet",
    "resnet20",
    "resnet44",
    "summary",
]
