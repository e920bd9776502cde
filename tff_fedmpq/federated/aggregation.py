"""Adding up what the clients of a round send (FedMPQ, Eq. 15).

The server holds one `RoundSums` and adds each client's message to it as it comes: the
message is unpacked and dequantized there, one model at a time. Beside the weighted sum
it keeps, per client, the bit-widths that came back and the bits that travelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tff_fedmpq.federated import messages
from tff_fedmpq.federated.local_training import TrainingSums
from tff_fedmpq.federated.model_spec import FloatWeights, ModelSpec
from tff_fedmpq.federated.uplink import Uplink


class ClientResult(NamedTuple):
    """What the server learns of one client in a round.

    Attributes:
      key: int32[], the client's row in tables.
      weight: float32[], how much it counts in the average.
      message: the trained model, as the scheme's uplink encodes it.
      bit_widths: int32[L] of the trained model.
      training: sums over the client's examples.
      top_plane_densities: float32[L], before pruning.
      uplink_bits: int64[4], by `messages.BIT_ITEMS`.
      downlink_bits: int64[4], the same of what the client received.
      symbols: int16[streams, symbols] of `message` that are to be entropy-coded.
    """

    key: Any
    weight: Any
    message: Mapping[str, Any]
    bit_widths: Any
    training: TrainingSums
    top_plane_densities: Any
    uplink_bits: Any
    downlink_bits: Any
    symbols: Any


class RoundSums(NamedTuple):
    """Sums and tables over the clients of a round; rows of others are zero.

    Attributes:
      weights: sum of ``p_n W_n``.
      weighted_bit_widths: float32[L], sum of ``p_n b_n``.
      total_weight: float32[], sum of ``p_n``.
      training: sums over all examples.
      top_plane_densities: float32[L], sum over clients.
      participations: int32[N], how often each client took part.
      bit_widths: int32[N, L], what came back.
      uplink_bits: int64[N, 4].
      downlink_bits: int64[N, 4].
      symbols: int16[N, streams, symbols].
    """

    weights: FloatWeights
    weighted_bit_widths: Any
    total_weight: Any
    training: TrainingSums
    top_plane_densities: Any
    participations: Any
    bit_widths: Any
    uplink_bits: Any
    downlink_bits: Any
    symbols: Any


def zero(spec: ModelSpec, uplink: Uplink, num_clients: int) -> RoundSums:
    """Returns the sums over no client."""
    num_layers, num_items = len(spec.kernel_shapes), len(messages.BIT_ITEMS)
    return RoundSums(
        FloatWeights(
            tuple(tf.zeros(shape) for shape in spec.kernel_shapes),
            tuple(tf.zeros(shape) for shape in spec.rest_shapes),
        ),
        tf.zeros([num_layers]),
        tf.zeros([]),
        TrainingSums.zero(),
        tf.zeros([num_layers]),
        tf.zeros([num_clients], tf.int32),
        tf.zeros([num_clients, num_layers], tf.int32),
        tf.zeros([num_clients, num_items], tf.int64),
        tf.zeros([num_clients, num_items], tf.int64),
        tf.zeros([num_clients, *uplink.symbols_shape(spec)], tf.int16),
    )


def accumulate(
    sums: RoundSums, result: ClientResult, uplink: Uplink, spec: ModelSpec
) -> RoundSums:
    """Adds one client."""
    decoded = uplink.decode(result.message, spec)

    def add_weighted(total: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        return total + result.weight * tf.cast(value, tf.float32)

    def add_row(table: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
        if table.shape.num_elements() == 0:
            return table  # Of a float model; TensorFlow refuses to add nothing.
        return tf.tensor_scatter_nd_add(table, [[result.key]], [row])

    return RoundSums(
        tf.nest.map_structure(add_weighted, sums.weights, decoded),
        add_weighted(sums.weighted_bit_widths, result.bit_widths),
        sums.total_weight + result.weight,
        tf.nest.map_structure(tf.add, sums.training, result.training),
        sums.top_plane_densities + result.top_plane_densities,
        add_row(sums.participations, tf.constant(1)),
        add_row(sums.bit_widths, result.bit_widths),
        add_row(sums.uplink_bits, result.uplink_bits),
        add_row(sums.downlink_bits, result.downlink_bits),
        add_row(sums.symbols, result.symbols),
    )


def merge(a: RoundSums, b: RoundSums) -> RoundSums:
    """Adds the sums over two disjoint sets of clients."""
    return tf.nest.map_structure(tf.add, a, b)


def weighted_mean(sums: RoundSums) -> tuple[FloatWeights, tf.Tensor]:
    """Returns the averages of Eq. 15: weights, and bit-widths float32[L].

    A round of nobody, or of clients without examples, has no average; all of it is then
    zero, and the caller has to keep what it had (`has_average`).
    """
    mean_weights, mean_bit_widths = tf.nest.map_structure(
        lambda total: tf.math.divide_no_nan(total, sums.total_weight),
        (sums.weights, sums.weighted_bit_widths),
    )
    return mean_weights, mean_bit_widths


def has_average(sums: RoundSums) -> tf.Tensor:
    """Returns whether any client of the round had weight, bool[]."""
    return sums.total_weight > 0
