"""UVeQFed: float training, updates by dithered lattice quantization, entropy-coded.

Shlezinger et al., "UVeQFed: Universal Vector Quantization for Federated Learning",
arXiv 2006.03262: pairs of entries of an update are quantized to the nearest point of a
hexagonal lattice, with a dither that client and server draw from a common seed and the
server subtracts; the points are entropy-coded.

Deviations: entries are scaled by their tensor's root mean square, and one step for
all tensors is chosen, by bisection on the empirical entropy, as fine as the client's
budget of v_n bits per entry admits, so that measured bits stay within the budget and no
entry overloads the quantizer. A model of so few weights that the coder's own overhead
exceeds the budget is not updated; what is sent for it is counted all the same.

The range coder runs where the round's measurements are read (`simulation.ledger`) and
not inside the computation, whose workers have no Python: within the round coordinates
travel as int16, and it is their range-coded bytes that are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tff_fedmpq.federated import messages
from tff_fedmpq.federated.fedavg import float_scheme
from tff_fedmpq.federated.model_spec import ModelSpec
from tff_fedmpq.federated.process import process_builder
from tff_fedmpq.federated.scheme import (
    AggregationWeight,
    Scheme,
    weigh_by_examples,
)
from tff_fedmpq.federated.update_uplink import UpdateUplink, tensor_shapes
from tff_fedmpq.federated.uplink import Message
from tff_fedmpq.lookup import lookup
from tff_fedmpq.quantization import entropy_coding
from tff_fedmpq.quantization import lattice as lattice_lib

# Bits of a range coder's block beside symbols and frequencies: its header, and what the
# coder's last words may waste.
_BLOCK_BITS = 192.0
_BITS_PER_FREQUENCY = 16.0

_LOG2_STEP_RANGE = (-12.0, 5.0)  # Of the step, in root mean squares.
_BISECTIONS = 14
_MAX_COORDINATE = 2.0**15 - 1  # Coordinates are int16.


class LatticeUpdateUplink(UpdateUplink):
    """Sends lattice points of updates, and a step per tensor."""

    def __init__(self, lattice: str = "hexagonal"):
        self._lattice = lookup(lattice, lattice_lib.LATTICES, "lattice")

    def encode_update(
        self, updates: Sequence[tf.Tensor], budget: tf.Tensor, seed: tf.Tensor
    ) -> Message:
        sizes = tf.stack([tf.sqrt(tf.reduce_mean(tf.square(u))) for u in updates])
        # A tensor that did not change is all zero, and so it is decoded: without its
        # size, 0, the dither would be noise on weights that nobody moved.
        divisors = tf.where(sizes > 0, sizes, 1.0)
        scaled = [u / divisors[i] for i, u in enumerate(updates)]
        vectors = tf.concat([self._to_vectors(u) for u in scaled], axis=0)
        uniform = self._uniform(tf.shape(vectors), seed)
        num_entries = sum(u.shape.num_elements() for u in updates)
        step, fits = self._finest_step(vectors, uniform, budget * num_entries)
        coordinates = self._coordinates(vectors, step, uniform)
        return {
            "bit_widths": tf.zeros([0], tf.uint8),
            "codes": tf.cast(coordinates, tf.int16),
            "dither_seed": seed,
            # An update too small for its budget (the block's overhead alone exceeds
            # it) is better not applied than applied as noise.
            "scales": tf.where(fits, step * sizes, 0.0),
        }

    def decode_update(
        self, message: Message, shapes: Sequence[tuple[int, ...]]
    ) -> list[tf.Tensor]:
        coordinates = tf.cast(message["codes"], tf.float32)
        uniform = self._uniform(tf.shape(coordinates), message["dither_seed"])
        points = lattice_lib.dequantize(self._lattice, coordinates, 1.0, uniform)
        sizes = [tf.TensorShape(shape).num_elements() for shape in shapes]
        parts = tf.split(points, [self._num_vectors(size) for size in sizes])
        return [
            message["scales"][i] * tf.reshape(tf.reshape(part, [-1])[:size], shape)
            for i, (part, size, shape) in enumerate(zip(parts, sizes, shapes))
        ]

    def count_bits(
        self, message: Message, headers: Sequence[tf.Tensor] = ()
    ) -> tf.Tensor:
        """Counts coordinates as int16, before entropy coding; see the module."""
        return messages.count_model_bits(message, [message["dither_seed"], *headers])

    def symbols(self, message: Message) -> tf.Tensor:
        return tf.transpose(message["codes"])

    def symbols_shape(self, spec: ModelSpec) -> tuple[int, int]:
        sizes = [tf.TensorShape(s).num_elements() for s in tensor_shapes(spec)]
        num_vectors = sum(self._num_vectors(size) for size in sizes)
        return self._lattice.dimension, num_vectors

    def _num_vectors(self, size: int) -> int:
        return -(-size // self._lattice.dimension)

    def _to_vectors(self, x: tf.Tensor) -> tf.Tensor:
        """Returns entries as float32[n, L]; zeros fill the last vector."""
        size = x.shape.num_elements()
        missing = self._num_vectors(size) * self._lattice.dimension - size
        flat = tf.pad(tf.reshape(x, [-1]), [[0, missing]])
        return tf.reshape(flat, [-1, self._lattice.dimension])

    def _uniform(self, shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return tf.random.stateless_uniform(shape, seed, alg="philox")

    def _coordinates(
        self, vectors: tf.Tensor, step: tf.Tensor, uniform: tf.Tensor
    ) -> tf.Tensor:
        return lattice_lib.quantize(self._lattice, vectors, step, uniform)

    def _finest_step(
        self, vectors: tf.Tensor, uniform: tf.Tensor, max_bits: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the smallest step of at most `max_bits`, and whether there is one."""
        low, high = (tf.constant(bound) for bound in _LOG2_STEP_RANGE)
        # Finer steps would take the largest entry out of the coordinates' range.
        largest = tf.reduce_max(tf.abs(vectors)) / (_MAX_COORDINATE - 1.0)
        low = tf.maximum(low, tf.math.log(largest) / math.log(2.0))
        high = tf.maximum(high, low)
        coarsest = self._coordinates(vectors, tf.pow(2.0, high), uniform)
        some_step_fits = self._coded_bits(coarsest) <= max_bits
        for _ in tf.range(_BISECTIONS):
            middle = (low + high) / 2.0
            coordinates = self._coordinates(vectors, tf.pow(2.0, middle), uniform)
            fits = self._coded_bits(coordinates) <= max_bits
            low, high = tf.where(fits, low, middle), tf.where(fits, middle, high)
        return tf.pow(2.0, high), some_step_fits

    def _coded_bits(self, coordinates: tf.Tensor) -> tf.Tensor:
        """Returns a bound on the range-coded size of all coordinates, float32[]."""
        bits = tf.constant(0.0)
        for column in range(self._lattice.dimension):
            symbols = coordinates[:, column]
            spread = tf.reduce_max(symbols) - tf.reduce_min(symbols) + 1.0
            overhead = _BLOCK_BITS + _BITS_PER_FREQUENCY * spread
            bits += entropy_coding.symbol_bits(symbols) + overhead
        return bits


def uveqfed_scheme(
    *,
    lattice: str = "hexagonal",
    aggregation_weight: str | AggregationWeight = weigh_by_examples,
    **training: Any,
) -> Scheme:
    """Returns UVeQFed as a `Scheme`.

    Args:
      lattice: "hexagonal" or "integer".
      aggregation_weight: p_n, before normalisation.
      **training: fields of `LocalTrainingConfig`.
    """
    uplink = LatticeUpdateUplink(lattice)
    return float_scheme("uveqfed", uplink, aggregation_weight, training)


build_uveqfed = process_builder(uveqfed_scheme)
