"""The server's part of a round: what a client gets, and what becomes of the results.

State and measurements are structures of tensors; `process` places these functions.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_fedmpq.federated import aggregation, messages
from tff_fedmpq.federated.aggregation import RoundSums
from tff_fedmpq.federated.model_spec import FloatWeights, ModelSpec
from tff_fedmpq.federated.scheme import Scheme


class Server:
    """What a scheme's server does; holds settings, not state."""

    def __init__(self, scheme: Scheme, spec: ModelSpec, budgets: np.ndarray, seed: int):
        """Initializes the server.

        Args:
          scheme: what to do.
          spec: of the scheme's client model.
          budgets: float64[N], bits per weight.
          seed: of all clients' training.
        """
        self._scheme = scheme
        self._spec = spec
        self._budgets = budgets
        self._seed = seed
        self._initial_bit_widths = scheme.initial_bit_widths(spec.layer_sizes, budgets)

    def initial_state(
        self, trainable: Sequence[np.ndarray], non_trainable: Sequence[np.ndarray]
    ) -> tff.learning.templates.LearningAlgorithmState:
        """Returns the state before the first round.

        Args:
          trainable: initial weights, in Keras's order.
          non_trainable: initial statistics.
        """
        return tff.learning.templates.LearningAlgorithmState(
            global_model_weights=tff.learning.models.ModelWeights(
                [tf.constant(w) for w in trainable],
                [tf.constant(w) for w in non_trainable],
            ),
            distributor=collections.OrderedDict(
                bit_widths=tf.constant(self._initial_bit_widths),
                round=tf.constant(0),
            ),
            client_work=(),
            aggregator=(),
            finalizer=(),
        )

    def message_for(
        self, state: tff.learning.templates.LearningAlgorithmState, key: tf.Tensor
    ) -> messages.ModelMessage:
        """Returns the model of one client, quantized to its bit-widths and packed.

        Beside the model travel the seed of its training, which is a function of the
        run's seed, the round and the client, and the round's learning rates.

        Args:
          state: of the process.
          key: int32[], the client's row in tables.
        """
        weights = self._float_weights(state)
        bit_widths = tf.gather(state.distributor["bit_widths"], key)
        quantization = self._scheme.weights
        if quantization is None:
            quantized = messages.QuantizedWeights(
                (), tf.zeros([0]), bit_widths, weights.rest
            )
        else:
            quantized = messages.quantize_weights(
                weights,
                bit_widths,
                quantization.representation,
                quantization.scale_rule,
            )
        round_number = state.distributor["round"]
        round_seed = tf.random.fold_in([self._seed, 0], round_number)
        # `tff.federated_select` wants keys in alphabetical order.
        return collections.OrderedDict(
            messages.pack_model(quantized),
            seed=tf.random.fold_in(round_seed, key),
            training_rates=self._scheme.training.learning_rates_at(round_number),
        )

    def update(
        self, state: tff.learning.templates.LearningAlgorithmState, sums: RoundSums
    ) -> tuple[tff.learning.templates.LearningAlgorithmState, Mapping[str, Any]]:
        """Returns the next state, and the round's measurements."""
        once = tf.debugging.Assert(
            tf.reduce_all(sums.participations <= 1),
            [
                "A client took part twice in a round; participations:",
                sums.participations,
            ],
            summarize=20,
        )
        with tf.control_dependencies([once]):
            trainable, non_trainable = self._spec.join(self._next_weights(state, sums))
            table = self._next_bit_widths(state, sums)
        next_state = state._replace(
            global_model_weights=tff.learning.models.ModelWeights(
                list(trainable), list(non_trainable)
            ),
            distributor=collections.OrderedDict(
                bit_widths=table, round=state.distributor["round"] + 1
            ),
        )
        return next_state, measurements(sums, table)

    def _float_weights(
        self, state: tff.learning.templates.LearningAlgorithmState
    ) -> FloatWeights:
        weights = state.global_model_weights
        return self._spec.split(tuple(weights.trainable), tuple(weights.non_trainable))

    def _next_weights(
        self, state: tff.learning.templates.LearningAlgorithmState, sums: RoundSums
    ) -> FloatWeights:
        """Returns the next global model; the present one after a round of nobody."""
        present = self._float_weights(state)
        mean, _ = aggregation.weighted_mean(sums)
        if self._scheme.pooled_statistics:
            as_sent = present._replace(rest=self._spec.to_moments(present.rest))
            following = self._scheme.uplink.apply(as_sent, mean)
            rest = self._spec.from_moments(following.rest)
            following = following._replace(rest=rest)
        else:
            following = self._scheme.uplink.apply(present, mean)
        return tf.nest.map_structure(
            lambda new, old: tf.where(aggregation.has_average(sums), new, old),
            following,
            present,
        )

    def _next_bit_widths(
        self, state: tff.learning.templates.LearningAlgorithmState, sums: RoundSums
    ) -> tf.Tensor:
        """Returns the table with new rows for the participants, int32[N, L]."""
        table = state.distributor["bit_widths"]
        if not self._spec.kernel_shapes:
            return table
        took_part = sums.participations[:, tf.newaxis] > 0
        reductions = tf.where(took_part, table - sums.bit_widths, 0)
        _, mean_bit_widths = aggregation.weighted_mean(sums)
        decided = self._scheme.allocation(
            table, mean_bit_widths, reductions, self._spec.layer_sizes, self._budgets
        )
        changed = tf.logical_and(took_part, aggregation.has_average(sums))
        return tf.where(changed, decided, table)


def measurements(sums: RoundSums, table: tf.Tensor) -> Mapping[str, Any]:
    """Returns what is known of a round.

    client_work.train: loss and accuracy (float32[]) over all steps of all clients, and
      how many examples those were.
    participations: int32[N], 1 for those that took part.
    uplink_bits, downlink_bits: int64[N, 4] by `messages.BIT_ITEMS`, counted from the
      tensors that travelled.
    uplink_symbols: int16[N, streams, symbols], counted so far as they are, of schemes
      whose uplink is entropy-coded; empty for others.
    mean_bit_widths: float32[L], the average of what came back.
    top_plane_densities: float32[L], mean over clients, before pruning.
    bit_widths: int32[N, L], the table of the next round.

    Args:
      sums: over the round.
      table: of the next round.
    """
    count = sums.training.count
    num_clients = tf.cast(tf.reduce_sum(sums.participations), tf.float32)
    train = collections.OrderedDict(
        loss=tf.math.divide_no_nan(sums.training.loss, count),
        accuracy=tf.math.divide_no_nan(sums.training.correct, count),
        num_examples=count,
    )
    return collections.OrderedDict(
        client_work=collections.OrderedDict(train=train),
        participations=sums.participations,
        uplink_bits=sums.uplink_bits,
        downlink_bits=sums.downlink_bits,
        uplink_symbols=sums.symbols,
        mean_bit_widths=aggregation.weighted_mean(sums)[1],
        top_plane_densities=tf.math.divide_no_nan(
            sums.top_plane_densities, num_clients
        ),
        bit_widths=table,
    )
