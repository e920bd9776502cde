"""Sums and tables over the clients of a round, and what is measured of them."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq.federated import messages
from tff_fedmpq.federated.acceptance import Rejection
from tff_fedmpq.federated.client_work import ClientResult
from tff_fedmpq.federated.local_training import TrainingSums
from tff_fedmpq.federated.messages import Uplink
from tff_fedmpq.federated.tasks import Metrics
from tff_fedmpq.keras.variables import FloatWeights, ModelSpec


class Contribution(NamedTuple):
    """What one client adds to the sums."""

    weight: Any  # p_n, float32[].
    weights: Any  # Decoded, by `ModelSpec.flatten`, float32[W].
    bit_widths: Any  # Int32[L].
    training: TrainingSums
    msb_densities: Any  # Float32[L].
    num_examples: Any  # Float32[].
    uplink_bits: Any  # Int64[4].
    symbols: Any  # Int16[streams, symbols].

    @classmethod
    def of(cls, result: ClientResult, uplink: Uplink, spec: ModelSpec) -> Contribution:
        """Returns what a result holds."""
        return cls(
            weight=result.weight,
            weights=spec.flatten(uplink.decode(result.message, spec)),
            bit_widths=result.bit_widths,
            training=result.training,
            msb_densities=result.msb_densities,
            num_examples=result.num_examples,
            uplink_bits=uplink.count_bits(result.message, [result.weight]),
            symbols=uplink.symbols(result.message),
        )

    @classmethod
    def of_nothing(
        cls, training: TrainingSums, uplink: Uplink, spec: ModelSpec
    ) -> Contribution:
        """Returns zeros; `training` has the shapes of its own."""
        layers = [len(spec.kernel_shapes)]
        return cls(
            weight=tf.zeros([]),
            weights=tf.zeros([spec.num_weights]),
            bit_widths=tf.zeros(layers, tf.int32),
            training=tf.nest.map_structure(tf.zeros_like, training),
            msb_densities=tf.zeros(layers),
            num_examples=tf.zeros([]),
            uplink_bits=tf.zeros([len(messages.BIT_ITEMS)], tf.int64),
            symbols=tf.zeros(uplink.symbols_shape(spec), tf.int16),
        )


class RoundSums(NamedTuple):
    """Sums and tables over the clients of a round; rows of other clients are zero."""

    weights: Any  # Sum of p_n W_n, by `ModelSpec.flatten`, float32[W].
    weighted_bit_widths: Any  # Sum of p_n b_n, float32[L].
    total_weight: Any  # Sum of p_n, float32[].
    training: TrainingSums
    msb_densities: Any  # Sum over clients, float32[L].
    participations: Any  # How often each client took part, int32[N].
    bit_widths: Any  # Bits per weight after training, int32[N, L].
    uplink_bits: Any  # Size of what each client sent, int64[N, 4].
    downlink_bits: Any  # Size of what each client received, int64[N, 4].
    symbols: Any  # To entropy-code, int16[N, streams, symbols].
    statistics: Any  # Sums of p_n times statistics by budget, float32[G, S].
    budget_weights: Any  # Sums of p_n by budget, float32[G].
    num_contributions: Any  # Clients that have weight, int32[].
    rejected: Any  # `Rejection` of each client that was left out, or 0; int32[N].
    num_rejected: Any  # Also of those that cannot be named, int32[].
    round: Any  # Of all contributions, -1 if there is none; int32[].
    client_training: Any = ()  # `TrainingSums` [N, ...], if wanted.

    @classmethod
    def zero(
        cls,
        spec: ModelSpec,
        num_clients: int,
        num_levels: int,
        symbols_shape: tuple[int, int],
        training: TrainingSums,
        per_client: bool,
    ) -> RoundSums:
        """Returns the sums over no client; `training` are those of no step."""
        num_layers, num_items = len(spec.kernel_shapes), len(messages.BIT_ITEMS)
        client_training: Any = ()
        if per_client:
            client_training = tf.nest.map_structure(
                lambda value: tf.zeros([num_clients, *value.shape], value.dtype),
                training,
            )
        return cls(
            tf.zeros([spec.num_weights]),
            tf.zeros([num_layers]),
            tf.zeros([]),
            training,
            tf.zeros([num_layers]),
            tf.zeros([num_clients], tf.int32),
            tf.zeros([num_clients, num_layers], tf.int32),
            tf.zeros([num_clients, num_items], tf.int64),
            tf.zeros([num_clients, num_items], tf.int64),
            tf.zeros([num_clients, *symbols_shape], tf.int16),
            tf.zeros([num_levels, spec.num_statistics]),
            tf.zeros([num_levels]),
            tf.constant(0),
            tf.zeros([num_clients], tf.int32),
            tf.constant(0),
            tf.constant(-1),
            client_training,
        )

    @property
    def is_empty(self) -> tf.Tensor:
        """Whether no client of the round had weight, bool[]."""
        return tf.logical_not(self.total_weight > 0)

    def mean_weights(self, spec: ModelSpec) -> FloatWeights:
        """Returns the average of Eq. 15; zeros for an empty round."""
        return spec.restore(self._divide(self.weights))

    def statistics_of(self, spec: ModelSpec) -> list[tf.Tensor]:
        """Returns the sums of `statistics` for each tensor, float32[G, ...]."""
        sizes = [int(np.prod(shape)) for shape in spec.non_trainable_shapes]
        parts = tf.split(self.statistics, sizes, axis=1) if sizes else []
        pairs = zip(parts, spec.non_trainable_shapes)
        return [tf.reshape(part, [-1, *shape]) for part, shape in pairs]

    def mean_bit_widths(self) -> tf.Tensor:
        """Returns the average bit-widths, float32[L]; zeros for an empty round."""
        return self._divide(self.weighted_bit_widths)

    def _divide(self, total: tf.Tensor) -> tf.Tensor:
        return tf.math.divide_no_nan(total, self.total_weight)

    def add(
        self,
        contribution: Contribution,
        key: tf.Tensor,
        level: tf.Tensor,
        downlink_bits: tf.Tensor,
        is_good: tf.Tensor,
    ) -> RoundSums:
        """Returns the sums with a contribution, or as they are unless it `is_good`.

        It is of row `key`, and of the budget of index `level` among those that have
        statistics.
        """

        def if_good(value: tf.Tensor) -> tf.Tensor:
            return either(is_good, value, tf.zeros_like(value))

        def add_row(table: tf.Tensor, row: tf.Tensor, index: Any = None) -> tf.Tensor:
            if table.shape.num_elements() == 0:
                return table  # A float model's; TensorFlow cannot update it.
            index = key if index is None else index
            return tf.tensor_scatter_nd_add(table, [[index]], [if_good(row)])

        weight = if_good(contribution.weight)
        # A weight of zero takes away what is not finite, too.
        weights = contribution.weights
        weighted = either(weight > 0, weight * weights, tf.zeros_like(weights))
        bit_widths = weight * tf.cast(contribution.bit_widths, tf.float32)
        num_statistics = self.statistics.shape[1]
        training = tf.nest.map_structure(if_good, contribution.training)
        client_training = self.client_training
        if client_training:
            client_training = tf.nest.map_structure(add_row, client_training, training)
        return self._replace(
            weights=self.weights + weighted,
            weighted_bit_widths=self.weighted_bit_widths + bit_widths,
            total_weight=self.total_weight + weight,
            training=tf.nest.map_structure(tf.add, self.training, training),
            client_training=client_training,
            msb_densities=self.msb_densities + if_good(contribution.msb_densities),
            participations=add_row(self.participations, tf.constant(1)),
            bit_widths=add_row(self.bit_widths, contribution.bit_widths),
            uplink_bits=add_row(self.uplink_bits, contribution.uplink_bits),
            downlink_bits=add_row(self.downlink_bits, downlink_bits),
            symbols=add_row(self.symbols, contribution.symbols),
            statistics=add_row(
                self.statistics,
                weighted[weighted.shape[0] - num_statistics :],
                level,
            ),
            budget_weights=add_row(self.budget_weights, weight, level),
            num_contributions=self.num_contributions + tf.cast(weight > 0, tf.int32),
        )

    def note(self, key: tf.Tensor, fault: tf.Tensor, is_named: tf.Tensor) -> RoundSums:
        """Returns the sums with the fault of a client, or of nobody; 0 is none."""
        named = tf.where(is_named, fault, 0)
        return self._replace(
            rejected=tf.tensor_scatter_nd_max(self.rejected, [[key]], [named]),
            num_rejected=self.num_rejected + tf.cast(fault > 0, tf.int32),
        )

    def measurements(
        self,
        metrics: Metrics,
        table: tf.Tensor,
        rates: tf.Tensor,
        is_abandoned: tf.Tensor,
    ) -> dict[str, Any]:
        """Returns a round's measurements.

        client_work.train: loss, metrics of the task by their names, and num_examples,
          of all steps, float32[] each; accuracy is that of classification.
        client_work.clients: where it is wanted, the same of each client, [N] each; 0
          examples for those that did not take part.
        participations: 1 for the clients whose contributions count, int32[N].
        rejected: `acceptance.Rejection` of clients that were left out, or have no
          examples; else 0; int32[N].
        num_rejected: their number, with those that no row can be given, int32[].
        abandoned: whether the state stays as it was, bool[].
        uplink_bits, downlink_bits: sizes of messages by `messages.BIT_ITEMS`, int64[N,
          4]; see `Uplink.count_bits` for entropy coding.
        uplink_symbols: symbols to entropy-code, int16[N, streams, symbols]; empty for
          schemes without entropy coding.
        mean_bit_widths: average bits per weight after training, float32[L].
        msb_densities: mean over clients, before pruning, float32[L].
        bit_widths: bits per weight in the next round (the argument `table`), int32[N,
          L].
        training_rates: learning rates of kernels and of float parameters, float32[2].
        aggregator: measurements of the aggregators, if there are any (`update`).
        """

        def measured(training: TrainingSums, results: Any) -> Mapping[str, Any]:
            loss = tf.math.divide_no_nan(training.loss, training.count)
            return collections.OrderedDict(
                loss=loss, **results, num_examples=training.count
            )

        num_clients = tf.cast(tf.reduce_sum(self.participations), tf.float32)
        work = collections.OrderedDict(
            train=measured(self.training, metrics.results(self.training.metrics))
        )
        if self.client_training:
            rows = self.client_training
            work["clients"] = measured(rows, metrics.results_of_rows(rows.metrics))
        return collections.OrderedDict(
            client_work=work,
            participations=self.participations,
            rejected=self.rejected,
            num_rejected=self.num_rejected,
            abandoned=is_abandoned,
            uplink_bits=self.uplink_bits,
            downlink_bits=self.downlink_bits,
            uplink_symbols=self.symbols,
            mean_bit_widths=self.mean_bit_widths(),
            msb_densities=tf.math.divide_no_nan(self.msb_densities, num_clients),
            bit_widths=table,
            training_rates=rates,
        )


def either(condition: tf.Tensor, value: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Returns `value`, or `other` of its shape unless a condition bool[] holds.

    Copies nothing, where `tf.where` would go through all numbers.
    """
    return tf.compat.v1.where(condition, value, other)


def merge(a: RoundSums, b: RoundSums) -> RoundSums:
    """Returns the sums over two disjoint sets of clients."""
    latest = tf.maximum(a.round, b.round)
    a, b = only_of_round(a, latest), only_of_round(b, latest)
    added = tf.nest.map_structure(tf.add, a, b)
    return added._replace(rejected=tf.maximum(a.rejected, b.rejected), round=latest)


def only_of_round(sums: RoundSums, round_number: tf.Tensor) -> RoundSums:
    """Returns the sums, from which contributions to another round are taken out.

    No ticket of a later round than the present exists: the latest one seen is right.
    """
    is_same = tf.equal(sums.round, round_number)
    kept = tf.nest.map_structure(
        lambda total: either(is_same, total, tf.zeros_like(total)), sums
    )
    late = tf.where(sums.participations > 0, int(Rejection.ROUND), sums.rejected)
    num_late = tf.reduce_sum(sums.participations - kept.participations)
    return kept._replace(
        rejected=either(is_same, sums.rejected, late),
        num_rejected=sums.num_rejected + num_late,
        round=round_number,
    )
