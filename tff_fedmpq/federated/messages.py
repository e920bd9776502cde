"""What travels between server and clients, and how many bits it has.

A model on the wire is an ordered dict of tensors, its keys in alphabetical order as
`tff.federated_select` wants them:

    bit_widths  uint8[L]     bits of each quantized layer
    codes       uint8[...]   all layers' codes, packed; each begins at a byte boundary
    rest        (float32...) the float rest
    scales      float32[L]   one per quantized layer

Bits are counted from these tensors, never from a formula.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tff_fedmpq.federated.model_spec import (
    FloatWeights,
    ModelSpec,
    float_rest_variables,
)
from tff_fedmpq.keras.quantized_kernel import quantized_kernels
from tff_fedmpq.quantization import packing
from tff_fedmpq.quantization.representation import Representation
from tff_fedmpq.quantization.scales import ScaleRule

# What the bits of a message are spent on; the order of every `bits` tensor.
BIT_ITEMS = ("codes", "scales", "headers", "float_rest")

ModelMessage = Mapping[str, Any]


class QuantizedWeights(NamedTuple):
    """A model of codes, as a client trains it.

    Attributes:
      codes: L tensors uint8, of the kernels' shapes.
      scales: float32[L].
      bit_widths: int32[L].
      rest: the float rest, tensors float32.
    """

    codes: Sequence[tf.Tensor]
    scales: tf.Tensor
    bit_widths: tf.Tensor
    rest: Sequence[tf.Tensor]


def quantize_weights(
    weights: FloatWeights,
    bit_widths: tf.Tensor,
    representation: Representation,
    scale_rule: ScaleRule,
) -> QuantizedWeights:
    """Quantizes each kernel to its bit-width (Eq. 14).

    Args:
      weights: the float model.
      bit_widths: int32[L].
      representation: what codes stand for.
      scale_rule: how scales are chosen.
    """
    codes, scales = [], []
    for kernel, bit_width in zip(weights.kernels, _unstack(bit_widths, weights)):
        scale = scale_rule(kernel, bit_width, representation)
        codes.append(representation.quantize(kernel, scale, bit_width))
        scales.append(scale)
    scales = tf.stack(scales) if scales else tf.zeros([0], tf.float32)
    return QuantizedWeights(tuple(codes), scales, bit_widths, tuple(weights.rest))


def assign_quantized_weights(model: tf.keras.Model, weights: QuantizedWeights) -> None:
    """Sets a client model's codes, scales, bit-widths and float rest."""
    for i, kernel in enumerate(quantized_kernels(model)):
        kernel.codes.assign(weights.codes[i])
        kernel.scale.assign(weights.scales[i])
        kernel.bit_width.assign(weights.bit_widths[i])
    for variable, value in zip(float_rest_variables(model), weights.rest):
        variable.assign(value)


def dequantize_weights(
    weights: QuantizedWeights, representation: Representation
) -> FloatWeights:
    """Returns the float model that codes stand for (Eq. 3)."""
    kernels = tuple(
        representation.dequantize(codes, weights.scales[i], weights.bit_widths[i])
        for i, codes in enumerate(weights.codes)
    )
    return FloatWeights(kernels, tuple(weights.rest))


def pack_model(weights: QuantizedWeights) -> dict[str, Any]:
    """Packs a model of codes for the wire (module docstring)."""
    packed = [
        packing.pack(tf.reshape(codes, [-1]), weights.bit_widths[i])
        for i, codes in enumerate(weights.codes)
    ]
    return collections.OrderedDict(
        bit_widths=tf.cast(weights.bit_widths, tf.uint8),
        codes=tf.concat(packed, axis=0) if packed else tf.zeros([0], tf.uint8),
        rest=tuple(weights.rest),
        scales=weights.scales,
    )


def unpack_model(message: ModelMessage, spec: ModelSpec) -> QuantizedWeights:
    """Restores what `pack_model` packed."""
    bit_widths = tf.cast(message["bit_widths"], tf.int32)
    sizes = spec.layer_sizes
    codes: list[tf.Tensor] = []
    if len(sizes):
        num_bytes = packing.packed_size(tf.constant(sizes, tf.int32), bit_widths)
        parts = tf.split(message["codes"], num_bytes, num=len(sizes))
        for i, (part, shape) in enumerate(zip(parts, spec.kernel_shapes)):
            flat = packing.unpack(part, bit_widths[i], int(sizes[i]))
            codes.append(tf.reshape(flat, shape))
    return QuantizedWeights(
        tuple(codes), message["scales"], bit_widths, tuple(message["rest"])
    )


def count_bits(
    codes: Sequence[tf.Tensor] = (),
    scales: Sequence[tf.Tensor] = (),
    headers: Sequence[tf.Tensor] = (),
    float_rest: Sequence[tf.Tensor] = (),
) -> tf.Tensor:
    """Returns the bits of the tensors of a message, int64[4], by `BIT_ITEMS`."""
    return tf.stack(
        [
            tf.add_n(
                [_size_in_bits(tensor) for tensor in item] or [tf.constant(0, tf.int64)]
            )
            for item in (codes, scales, headers, float_rest)
        ]
    )


def count_model_bits(
    message: ModelMessage, headers: Sequence[tf.Tensor] = ()
) -> tf.Tensor:
    """Returns the bits of a model message, int64[4], by `BIT_ITEMS`.

    Args:
      message: as `pack_model` returns it.
      headers: what travels with the message besides.
    """
    return count_bits(
        codes=[message["codes"]],
        scales=[message["scales"]],
        headers=[message["bit_widths"], *headers],
        float_rest=message["rest"],
    )


def _size_in_bits(tensor: tf.Tensor) -> tf.Tensor:
    return tf.size(tensor, out_type=tf.int64) * tensor.dtype.size * 8


def _unstack(bit_widths: tf.Tensor, weights: FloatWeights) -> list[tf.Tensor]:
    return [bit_widths[i] for i in range(len(weights.kernels))]
