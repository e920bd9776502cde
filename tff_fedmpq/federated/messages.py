"""Messages between server and clients: encoding, decoding, and their size in bits.

A model on the wire is an ordered dict of tensors, its keys in alphabetical order as
`tff.federated_select` requires:

    bit_widths        uint8[L]      bits per weight of each quantized layer
    codes             uint8[...]    packed codes of all layers, each byte-aligned
    float_parameters  (float32...)  all other weights
    scales            float32[L]    scale of each quantized layer

Sizes are counted from the tensors that travel, never from a formula.
"""

from __future__ import annotations

import abc
import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq.federated import acceptance
from tff_fedmpq.federated.acceptance import Check, Rejection, Ticket
from tff_fedmpq.keras import variables
from tff_fedmpq.keras.quantized_kernel import quantized_kernels
from tff_fedmpq.keras.variables import FloatWeights, ModelSpec
from tff_fedmpq.quantization import packing
from tff_fedmpq.quantization.representations import Representation
from tff_fedmpq.quantization.scales import ScaleRule

# Items of a message's size; the order of every `bits` tensor.
BIT_ITEMS = ("codes", "scales", "headers", "float_parameters")

Message = Mapping[str, Any]


class QuantizedWeights(NamedTuple):
    """Weights of a quantized model: L kernels, and float parameters."""

    codes: Sequence[tf.Tensor]  # Uint8, of the kernels' shapes.
    scales: tf.Tensor  # Of each kernel, float32[L].
    bit_widths: tf.Tensor  # Bits per weight of each kernel, int32[L].
    float_parameters: Sequence[tf.Tensor]  # All other weights, float32.


def quantize_weights(
    weights: FloatWeights,
    bit_widths: tf.Tensor,
    representation: Representation,
    scale_rule: ScaleRule,
) -> QuantizedWeights:
    """Quantizes each kernel to its bit-width, of int32[L] (Eq. 14)."""
    codes, scales = [], []
    for i, kernel in enumerate(weights.kernels):
        scales.append(scale_rule(kernel, bit_widths[i], representation))
        codes.append(representation.quantize(kernel, scales[i], bit_widths[i]))
    scales = tf.convert_to_tensor(scales, tf.float32)
    return QuantizedWeights(tuple(codes), scales, bit_widths, weights.float_parameters)


def dequantize_weights(
    weights: QuantizedWeights, representation: Representation
) -> FloatWeights:
    """Returns the float model that the codes describe (Eq. 3)."""
    kernels = tuple(
        representation.dequantize(codes, weights.scales[i], weights.bit_widths[i])
        for i, codes in enumerate(weights.codes)
    )
    return FloatWeights(kernels, tuple(weights.float_parameters))


def assign_quantized_weights(model: tf.keras.Model, weights: QuantizedWeights) -> None:
    """Sets the codes, scales, bit-widths and float parameters of a client model."""
    for i, kernel in enumerate(quantized_kernels(model)):
        kernel.codes.assign(weights.codes[i])
        kernel.scale.assign(weights.scales[i])
        kernel.bit_width.assign(weights.bit_widths[i])
    others = variables.float_parameter_variables(model)
    for variable, value in zip(others, weights.float_parameters):
        variable.assign(value)


def pack_model(weights: QuantizedWeights) -> dict[str, Any]:
    """Returns a quantized model as a message (module docstring)."""
    packed = [
        packing.pack(tf.reshape(codes, [-1]), weights.bit_widths[i])
        for i, codes in enumerate(weights.codes)
    ]
    return collections.OrderedDict(
        bit_widths=tf.cast(weights.bit_widths, tf.uint8),
        codes=tf.concat(packed, axis=0) if packed else tf.zeros([0], tf.uint8),
        float_parameters=tuple(weights.float_parameters),
        scales=weights.scales,
    )


def unpack_model(message: Message, spec: ModelSpec) -> QuantizedWeights:
    """Returns the quantized model that `pack_model` packed."""
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
        tuple(codes), message["scales"], bit_widths, tuple(message["float_parameters"])
    )


def count_model_bits(message: Message, headers: Sequence[tf.Tensor] = ()) -> tf.Tensor:
    """Returns the size of a model message in bits, int64[4] by `BIT_ITEMS`.

    `headers` are tensors that travel with the message of `pack_model`.
    """
    items = [
        [message["codes"]],
        [message["scales"]],
        [message["bit_widths"], *headers],
        message["float_parameters"],
    ]

    def size_in_bits(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        sizes = [tf.size(t, out_type=tf.int64) * t.dtype.size * 8 for t in tensors]
        return tf.add_n([tf.constant(0, tf.int64), *sizes])

    return tf.stack(list(map(size_in_bits, items)))


class Uplink(abc.ABC):
    """Client-to-server encoding of a scheme. Instances hold no state.

    The server averages what `decode` returns, and `apply` makes the next global model
    of the average: a scheme that sends models takes the average, one that sends updates
    adds it to the present model. `update_bits`, for tables, are the bits per entry of
    an update, "v" for the client's budget; None where the model itself is sent.
    `whole_bits` says whether a budget is rounded down to whole bits.
    """

    update_bits: str | None = None
    whole_bits: bool = False

    @abc.abstractmethod
    def encode(
        self,
        trained: QuantizedWeights,
        received: QuantizedWeights,
        budget: tf.Tensor,
        seed: tf.Tensor,
    ) -> Message:
        """Returns the message of a client that received one model and trained another.

        `budget` is in bits per weight, float32[]; `seed` is stateless, int32[2].
        """

    @abc.abstractmethod
    def decode(self, message: Message, spec: ModelSpec) -> FloatWeights:
        """Returns what the server averages."""

    @abc.abstractmethod
    def apply(self, present: FloatWeights, mean: FloatWeights) -> FloatWeights:
        """Returns the next global model from the present one and the average."""

    def checks(
        self,
        message: Message,
        ticket: Ticket,
        bit_widths: tf.Tensor,
        budget: tf.Tensor,
        spec: ModelSpec,
    ) -> Sequence[Check]:
        """Returns what has to hold before `decode`; see `acceptance.first_fault`.

        `bit_widths`, int32[L], are those that the client says it trained.
        """
        return ()

    def received(self, message: Message) -> Message | None:
        """Returns the model message that the client says it received, if it does."""
        return None

    def count_bits(
        self, message: Message, headers: Sequence[tf.Tensor] = ()
    ) -> tf.Tensor:
        """Returns the size of a message in bits, as `count_model_bits` does.

        Where symbols are entropy-coded, for which workers have no Python, this is a
        bound; a round that returns values replaces it by the size of the code.
        """
        return count_model_bits(message, headers)

    def symbols(self, message: Message) -> tf.Tensor:
        """Returns the symbols to entropy-code, int16 of `symbols_shape`."""
        return tf.zeros([0, 0], tf.int16)

    def coded_bits(self, symbols: np.ndarray) -> int:
        """Returns the size in bits of the entropy code of `symbols`."""
        raise NotImplementedError(f"{type(self).__name__} codes no symbols.")

    def symbols_shape(self, spec: ModelSpec) -> tuple[int, int]:
        """Returns (streams, symbols per stream); (0, 0) without entropy coding."""
        return 0, 0


class ModelUplink(Uplink):
    """Sends the trained model: packed codes, if any, and float parameters."""

    def __init__(self, representation: Representation):
        self._representation = representation

    def encode(self, trained, received, budget, seed) -> Message:
        return pack_model(trained)

    def decode(self, message: Message, spec: ModelSpec) -> FloatWeights:
        return dequantize_weights(unpack_model(message, spec), self._representation)

    def checks(self, message, ticket, bit_widths, budget, spec) -> Sequence[Check]:
        layers, sizes = (len(spec.kernel_shapes),), spec.layer_sizes
        scales, widths = message["scales"], message["bit_widths"]
        others = message["float_parameters"]
        shapes = (layers, layers, *spec.float_parameter_shapes)

        def holds_as_many_bytes() -> tf.Tensor:
            return packing.has_packed_size(message["codes"], sizes, bit_widths)

        return (
            (
                lambda: acceptance.have_shapes([scales, widths, *others], shapes),
                Rejection.SHAPES,
            ),
            (lambda: acceptance.all_finite([scales, *others]), Rejection.NOT_FINITE),
            (
                lambda: tf.reduce_all(tf.equal(tf.cast(widths, tf.int32), bit_widths)),
                Rejection.BIT_WIDTHS,
            ),
            (holds_as_many_bytes, Rejection.LENGTH),
            (
                lambda: acceptance.scales_are_kept(scales, ticket.scales),
                Rejection.SCALES,
            ),
        )

    def apply(self, present: FloatWeights, mean: FloatWeights) -> FloatWeights:
        return mean


class ModelChangeUplink(ModelUplink):
    """Sends the trained model; the server adds only what training changed.

        W <- W + sum_n p_n (dequantize(G_n trained) - dequantize(G_n sent))

    The server's float weights keep the quantization error of the download, and changes
    too small to alter a client's codes add up over rounds: error feedback (Seide et al.
    2014; Karimireddy et al. 2019), without additional traffic. As TFF's aggregation
    sees only client results, the received model is in the message, but not counted.
    """

    def encode(self, trained, received, budget, seed) -> Message:
        sent = super().encode(trained, received, budget, seed)
        return {"sent": sent, acceptance.RECEIVED: pack_model(received)}

    def decode(self, message: Message, spec: ModelSpec) -> FloatWeights:
        trained = super().decode(message["sent"], spec)
        received = super().decode(message[acceptance.RECEIVED], spec)
        return tf.nest.map_structure(tf.subtract, trained, received)

    def apply(self, present: FloatWeights, mean: FloatWeights) -> FloatWeights:
        return tf.nest.map_structure(tf.add, present, mean)

    def checks(self, message, *others) -> Sequence[Check]:
        return super().checks(message["sent"], *others)

    def received(self, message: Message) -> Message:
        return message[acceptance.RECEIVED]

    def count_bits(self, message, headers=()) -> tf.Tensor:
        return super().count_bits(message["sent"], headers)
