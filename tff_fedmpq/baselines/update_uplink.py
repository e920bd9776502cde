"""Quantized updates of float models: the encodings of FedPAQ and UVeQFed.

Matrices and convolution kernels are quantized; vectors (BatchNorm, biases) are few, and
their updates are sent in float32, like the float parameters of the other schemes.

The range coder of UVeQFed runs where a round's measurements arrive, not inside the
computation, whose workers have no Python: within the round coordinates travel as int16,
and the range-coded bytes are counted.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tff_fedmpq.baselines import entropy_coding, stochastic_quantizer
from tff_fedmpq.baselines import lattice as lattices
from tff_fedmpq.federated import acceptance
from tff_fedmpq.federated.acceptance import Check, Rejection
from tff_fedmpq.federated.messages import Message, QuantizedWeights, Uplink
from tff_fedmpq.keras.variables import FloatWeights, ModelSpec
from tff_fedmpq.lookup import lookup
from tff_fedmpq.quantization import packing

Shapes = Sequence[tuple[int, ...]]

# Bits of a range coder's block beside symbols and frequencies: its header and padding.
_BLOCK_BITS = 192.0
_BITS_PER_FREQUENCY = 16.0

_LOG2_STEP_RANGE = (-12.0, 5.0)  # Of the step, in root mean squares.
_BISECTIONS = 14
_MAX_COORDINATE = 2.0**15 - 1  # Coordinates are int16.
_MIN_RANK = 2  # Of tensors that are quantized.

_draw_uniform = functools.partial(tf.random.stateless_uniform, alg="philox")


class UpdateUplink(Uplink):
    """Sends ``trained - received``: quantized for tensors of rank 2 and more."""

    update_bits = "v"

    @abc.abstractmethod
    def encode_update(
        self, updates: Sequence[tf.Tensor], budget: tf.Tensor, seed: tf.Tensor
    ) -> Message:
        """Returns a message of quantized tensors, without `float_parameters`."""

    @abc.abstractmethod
    def decode_update(self, message: Message, shapes: Shapes) -> list[tf.Tensor]:
        """Returns the tensors of those shapes."""

    @abc.abstractmethod
    def check_update(
        self, message: Message, budget: tf.Tensor, shapes: Shapes
    ) -> Sequence[Check]:
        """Returns what has to hold before `decode_update`."""

    def checks(self, message, ticket, bit_widths, budget, spec) -> Sequence[Check]:
        shapes, scales = _shapes_of_tensors(spec), message["scales"]
        vectors = message["float_parameters"]
        vector_shapes = [s for s in spec.float_parameter_shapes if len(s) < _MIN_RANK]

        def have_shapes() -> tf.Tensor:
            expected = [(len(shapes),), *vector_shapes]
            return acceptance.have_shapes([scales, *vectors], expected)

        return (
            (have_shapes, Rejection.SHAPES),
            (lambda: acceptance.all_finite([scales, *vectors]), Rejection.NOT_FINITE),
            # Zero is the scale of a tensor that did not change.
            (lambda: tf.reduce_all(scales >= 0), Rejection.SCALES),
            *self.check_update(message, budget, shapes),
        )

    def encode(
        self,
        trained: QuantizedWeights,
        received: QuantizedWeights,
        budget: tf.Tensor,
        seed: tf.Tensor,
    ) -> Message:
        pairs = zip(trained.float_parameters, received.float_parameters)
        updates = [new - old for new, old in pairs]
        tensors = [u for u in updates if u.shape.rank >= _MIN_RANK]
        vectors = tuple(u for u in updates if u.shape.rank < _MIN_RANK)
        message = self.encode_update(tensors, budget, seed)
        return {**message, "float_parameters": vectors}

    def decode(self, message: Message, spec: ModelSpec) -> FloatWeights:
        shapes = spec.float_parameter_shapes
        tensors = iter(self.decode_update(message, _shapes_of_tensors(spec)))
        vectors = iter(message["float_parameters"])
        updates = [next(tensors if len(s) >= _MIN_RANK else vectors) for s in shapes]
        return FloatWeights((), tuple(updates))

    def apply(self, present: FloatWeights, mean: FloatWeights) -> FloatWeights:
        return tf.nest.map_structure(tf.add, present, mean)


class ScalarUpdateUplink(UpdateUplink):
    """Sends updates of v_n bits per entry, and a norm per tensor.

    A fractional budget is rounded down to whole bits, of which there are at least 2.
    """

    whole_bits = True
    min_bits = float(stochastic_quantizer.MIN_UPDATE_BITS)

    def __init__(self, norm: str | stochastic_quantizer.Norm = "max"):
        self._norm = lookup(norm, stochastic_quantizer.NORMS, "norm")

    def encode_update(
        self, updates: Sequence[tf.Tensor], budget: tf.Tensor, seed: tf.Tensor
    ) -> Message:
        bits = tf.cast(tf.floor(budget), tf.int32)
        norms, packed = [], []
        for i, update in enumerate(updates):
            norm = self._norm(update)
            uniform = _draw_uniform(update.shape, tf.random.fold_in(seed, i))
            codes = stochastic_quantizer.quantize(update, norm, bits, uniform)
            packed.append(packing.pack(tf.reshape(codes, [-1]), bits))
            norms.append(norm)
        return {
            "bit_widths": tf.cast([bits], tf.uint8),
            "codes": tf.concat(packed, axis=0),
            "scales": tf.stack(norms),
        }

    def check_update(self, message, budget, shapes) -> Sequence[Check]:
        bits = tf.cast(tf.floor(budget), tf.int32)
        sizes = [math.prod(shape) for shape in shapes]
        widths, codes = message["bit_widths"], message["codes"]

        def has_bits() -> tf.Tensor:
            same = tf.reduce_all(tf.equal(tf.cast(widths, tf.int32), bits))
            return same & acceptance.have_shapes([widths], [(1,)])

        def is_long_enough() -> tf.Tensor:
            return packing.has_packed_size(codes, np.array(sizes), bits)

        return (has_bits, Rejection.BIT_WIDTHS), (is_long_enough, Rejection.LENGTH)

    def decode_update(self, message: Message, shapes: Shapes) -> list[tf.Tensor]:
        bits = tf.cast(message["bit_widths"][0], tf.int32)
        sizes = [math.prod(shape) for shape in shapes]
        lengths = packing.packed_size(tf.constant(sizes), bits)
        parts = tf.split(message["codes"], lengths, num=len(sizes))
        updates = []
        for i, (part, size, shape) in enumerate(zip(parts, sizes, shapes)):
            codes = packing.unpack(part, bits, size)
            values = stochastic_quantizer.dequantize(codes, message["scales"][i], bits)
            updates.append(tf.reshape(values, shape))
        return updates


class LatticeUpdateUplink(UpdateUplink):
    """Sends lattice points of updates, and a step per tensor."""

    def __init__(self, lattice: str = "hexagonal"):
        self._lattice = lookup(lattice, lattices.LATTICES, "lattice")

    def encode_update(
        self, updates: Sequence[tf.Tensor], budget: tf.Tensor, seed: tf.Tensor
    ) -> Message:
        sizes = tf.stack([tf.sqrt(tf.reduce_mean(tf.square(u))) for u in updates])
        # A tensor that did not change is all zero, and so it is decoded: without its
        # size, 0, the dither would be noise on weights that nobody moved.
        divisors = tf.where(sizes > 0, sizes, 1.0)
        scaled = [self._to_vectors(u / divisors[i]) for i, u in enumerate(updates)]
        vectors = tf.concat(scaled, axis=0)
        uniform = _draw_uniform(tf.shape(vectors), seed)
        num_entries = sum(u.shape.num_elements() for u in updates)
        step, fits = self._finest_step(vectors, uniform, budget * num_entries)
        coordinates = lattices.quantize(self._lattice, vectors, step, uniform)
        return {
            "bit_widths": tf.zeros([0], tf.uint8),
            "codes": tf.cast(coordinates, tf.int16),
            "dither_seed": seed,
            # An update too small for its budget (the block's overhead alone exceeds
            # it) is better not applied than applied as noise.
            "scales": tf.where(fits, step * sizes, 0.0),
        }

    def check_update(self, message, budget, shapes) -> Sequence[Check]:
        sizes = [math.prod(shape) for shape in shapes]
        shape = sum(map(self._num_vectors, sizes)), self._lattice.dimension
        codes, seed = message["codes"], message["dither_seed"]

        def have_shapes() -> tf.Tensor:
            return acceptance.have_shapes([codes, seed], [shape, (2,)])

        return (
            (have_shapes, Rejection.LENGTH),
            # Symbols over the whole of int16 could not be entropy-coded.
            (lambda: tf.reduce_all(codes > -(2**15)), Rejection.SYMBOLS),
        )

    def decode_update(self, message: Message, shapes: Shapes) -> list[tf.Tensor]:
        coordinates = tf.cast(message["codes"], tf.float32)
        uniform = _draw_uniform(tf.shape(coordinates), message["dither_seed"])
        points = lattices.dequantize(self._lattice, coordinates, 1.0, uniform)
        sizes = [math.prod(shape) for shape in shapes]
        parts = tf.split(points, [self._num_vectors(size) for size in sizes])
        return [
            message["scales"][i] * tf.reshape(tf.reshape(part, [-1])[:size], shape)
            for i, (part, size, shape) in enumerate(zip(parts, sizes, shapes))
        ]

    def count_bits(
        self, message: Message, headers: Sequence[tf.Tensor] = ()
    ) -> tf.Tensor:
        """Counts a bound on the coordinates' code; see the module."""
        others = {**message, "codes": tf.zeros([0], tf.int16)}
        bits = super().count_bits(others, [message["dither_seed"], *headers])
        streams = tf.unstack(tf.cast(message["codes"], tf.float32), axis=1)
        coded = tf.math.ceil(tf.add_n(list(map(_coded_bits, streams))))
        return bits + tf.cast(tf.stack([coded, 0.0, 0.0, 0.0]), tf.int64)

    def symbols(self, message: Message) -> tf.Tensor:
        return tf.transpose(message["codes"])

    def coded_bits(self, symbols: np.ndarray) -> int:
        return entropy_coding.coded_bits(symbols)

    def symbols_shape(self, spec: ModelSpec) -> tuple[int, int]:
        sizes = [math.prod(shape) for shape in _shapes_of_tensors(spec)]
        return self._lattice.dimension, sum(map(self._num_vectors, sizes))

    def _num_vectors(self, size: int) -> int:
        return -(-size // self._lattice.dimension)

    def _to_vectors(self, x: tf.Tensor) -> tf.Tensor:
        """Returns entries as float32[n, L]; zeros fill the last vector."""
        missing = -x.shape.num_elements() % self._lattice.dimension
        flat = tf.pad(tf.reshape(x, [-1]), [[0, missing]])
        return tf.reshape(flat, [-1, self._lattice.dimension])

    def _finest_step(
        self, vectors: tf.Tensor, uniform: tf.Tensor, max_bits: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the smallest step of at most `max_bits`, and whether there is one."""

        def fits(log2_step):
            step = tf.pow(2.0, log2_step)
            coordinates = lattices.quantize(self._lattice, vectors, step, uniform)
            streams = tf.unstack(coordinates, self._lattice.dimension, axis=1)
            return tf.add_n(list(map(_coded_bits, streams))) <= max_bits

        def bisect(low, high):
            middle = (low + high) / 2.0
            is_enough = fits(middle)
            return tf.where(is_enough, low, middle), tf.where(is_enough, middle, high)

        low, high = (tf.constant(bound) for bound in _LOG2_STEP_RANGE)
        # Finer steps would take the largest entry out of the coordinates' range.
        largest = tf.reduce_max(tf.abs(vectors)) / (_MAX_COORDINATE - 1.0)
        low = tf.maximum(low, tf.math.log(largest) / math.log(2.0))
        high = tf.maximum(high, low)
        some_step_fits = fits(high)
        _, high = tf.while_loop(
            lambda *_: True, bisect, (low, high), maximum_iterations=_BISECTIONS
        )
        return tf.pow(2.0, high), some_step_fits


def _coded_bits(symbols: tf.Tensor) -> tf.Tensor:
    """Returns a bound on the size of symbols float32[n] as a block, float32[]."""
    spread = tf.reduce_max(symbols) - tf.reduce_min(symbols) + 1.0
    overhead = _BLOCK_BITS + _BITS_PER_FREQUENCY * spread
    return entropy_coding.symbol_bits(symbols) + overhead


def _shapes_of_tensors(spec: ModelSpec) -> Shapes:
    """Returns the shapes of the tensors that are quantized."""
    return [shape for shape in spec.float_parameter_shapes if len(shape) >= _MIN_RANK]
