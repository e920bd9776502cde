"""Trimmed mean and median of clients' values, coordinate by coordinate.

Yin, Chen, Ramchandran & Bartlett, "Byzantine-Robust Distributed Learning: Towards
Optimal Statistical Rates", ICML 2018. Of each coordinate's values of n clients

    trimmed mean  drops the k smallest and the k largest, k = ceil(fraction n)
    median        drops as many as leave one value, or two: k = (n - 1) // 2

and takes the mean of the others. Clients count alike, whatever their weight, so that
none gains by claiming more examples; those without weight do not count. Fewer than
`fraction` of the clients, whatever they send, cannot take a coordinate out of the range
of the others. The server holds the values of all clients of a round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tff_fedmpq._tff import tff

_ROUNDING = 1e-5  # Of fraction times clients, so that 0.2 of 5 is 1.


def trimmed_mean(rows: tf.Tensor, fraction: float) -> tf.Tensor:
    """Returns the mean of values [n, ...] without the extreme ones; 0 of no values."""
    count = tf.shape(rows)[0]
    wanted = tf.math.ceil(fraction * tf.cast(count, tf.float32) - _ROUNDING)
    cut = tf.maximum(tf.minimum(tf.cast(wanted, tf.int32), (count - 1) // 2), 0)
    kept = tf.sort(rows, axis=0)[cut : count - cut]
    number = tf.cast(count - 2 * cut, rows.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(kept, axis=0), number)


@dataclasses.dataclass(frozen=True)
class TrimmedMeanFactory(tff.aggregators.WeightedAggregationFactory):
    """Aggregates lists of float tensors by `trimmed_mean`.

    Attributes:
      fraction: Share of clients to drop at each end, 0 to 0.5; 0.5 is the median.
    """

    fraction: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 0.5:
            raise ValueError(
                f"fraction has to be from 0 to 0.5, found {self.fraction!r}."
            )

    def create(
        self, value_type: tff.Type, weight_type: tff.Type
    ) -> tff.templates.AggregationProcess:
        compute = tff.tensorflow.computation
        types = tff.structure.flatten(value_type)
        rows_type = tff.to_type(
            [tff.TensorType(t.dtype, [None, *t.shape]) for t in types]
        )
        zero = compute(lambda: [tf.zeros([0, *t.shape], t.dtype) for t in types])

        def join(a: Sequence[tf.Tensor], b: Sequence[tf.Tensor]) -> list[tf.Tensor]:
            return [tf.concat(pair, axis=0) for pair in zip(a, b)]

        @compute(rows_type, tff.to_type((value_type, weight_type)))
        def accumulate(rows, answer):
            value, weight = answer
            counted = tf.cast(weight > 0, tf.int32)
            new = [tensor[tf.newaxis][:counted] for tensor in tf.nest.flatten(value)]
            return join(rows, new)

        merge = compute(join, rows_type, rows_type)

        @compute(rows_type)
        def report(rows):
            return [trimmed_mean(tensor, self.fraction) for tensor in rows]

        @tff.federated_computation
        def initialize():
            return tff.federated_value((), tff.SERVER)

        @tff.federated_computation(
            initialize.type_signature.result,
            tff.FederatedType(value_type, tff.CLIENTS),
            tff.FederatedType(weight_type, tff.CLIENTS),
        )
        def next_fn(state, value, weight):
            answers = tff.federated_zip((value, weight))
            means = tff.federated_aggregate(answers, zero(), accumulate, merge, report)
            nothing = tff.federated_value((), tff.SERVER)
            return tff.templates.MeasuredProcessOutput(state, means, nothing)

        return tff.templates.AggregationProcess(initialize, next_fn)
