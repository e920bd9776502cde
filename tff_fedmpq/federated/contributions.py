"""What clients' answers hold, and what has to hold before they count."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tff_fedmpq.federated import acceptance, messages
from tff_fedmpq.federated.acceptance import Check, Rejection, Ticket
from tff_fedmpq.federated.client_work import ClientResult
from tff_fedmpq.federated.local_training import TrainingSums
from tff_fedmpq.federated.round_sums import Contribution
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.keras.variables import FloatWeights, ModelSpec


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """Checks answers to a server, and reads them; for the fields see `Server`."""

    scheme: Scheme
    spec: ModelSpec
    budgets: np.ndarray
    is_variance: Sequence[bool]
    secret: tuple[int, int]

    def is_genuine(self, ticket: Ticket) -> tf.Tensor:
        """Returns whether this server made the ticket, bool[]."""
        in_range = (ticket.key >= 0) & (ticket.key < len(self.budgets))
        expected = acceptance.sign(ticket, self.secret).tag
        return in_range & tf.equal(expected, ticket.tag)

    def variances(self, statistics: tf.Tensor) -> tf.Tensor:
        """Returns the variances among statistics, flat; float32[V]."""
        shapes = self.spec.non_trainable_shapes
        sizes = np.array([np.prod(shape) for shape in shapes], np.int64)
        flags = self.is_variance or [False] * len(sizes)
        return tf.gather(statistics, np.flatnonzero(np.repeat(flags, sizes)))

    def checks(self, result: ClientResult, ticket: Ticket) -> Iterator[Check]:
        """Yields what has to hold before the message of a result is decoded."""
        scalars = result.key, result.fault, result.checksum
        yield lambda: acceptance.have_shapes(scalars, 3 * [()]), Rejection.SHAPES
        yield lambda: tf.equal(result.key, ticket.key), Rejection.TICKET
        yield (
            lambda: tf.equal(acceptance.checksum(result, ticket.seed), result.checksum),
            Rejection.CHECKSUM,
        )
        for fault in acceptance.OF_CLIENTS:
            yield functools.partial(tf.not_equal, result.fault, int(fault)), fault
        layers = (len(self.spec.kernel_shapes),)
        numbers = [result.bit_widths, result.msb_densities]
        numbers += [result.num_examples, result.weight]
        shapes = layers, layers, (), ()
        yield lambda: acceptance.have_shapes(numbers, shapes), Rejection.SHAPES
        yield (
            lambda: acceptance.all_finite(result._replace(message={})),
            Rejection.NOT_FINITE,
        )
        yield lambda: self._bit_widths_are_given(result, ticket), Rejection.BIT_WIDTHS
        uplink, budget = self.scheme.uplink, self._budget_of(ticket)
        yield from uplink.checks(
            result.message, ticket, result.bit_widths, budget, self.spec
        )
        yield lambda: self._weight_is_right(result, budget), Rejection.WEIGHT
        yield lambda: self._model_is_that_sent(result, ticket), Rejection.RECEIVED

    def checks_of_weights(self, decoded: tf.Tensor, ticket: Ticket) -> Iterator[Check]:
        """Yields what has to hold before decoded weights, flat, are added."""
        num_trainable = self.spec.num_weights - self.spec.num_statistics
        trainable, statistics = decoded[:num_trainable], decoded[num_trainable:]
        weight_limit = acceptance.MAX_WEIGHT_RATIO * ticket.magnitude
        statistics_limit = acceptance.MAX_STATISTICS_RATIO * ticket.magnitude
        yield (
            lambda: (
                acceptance.all_within(trainable, weight_limit)
                & acceptance.all_within(statistics, statistics_limit)
            ),
            Rejection.MAGNITUDE,
        )
        # Of a change the server can only judge what it makes of the statistics.
        pair = (ticket.variances,), (self.variances(statistics),)
        sent, found = (FloatWeights((), part) for part in pair)
        (variances,) = self.scheme.uplink.apply(sent, found).float_parameters
        yield (
            lambda: acceptance.variances_are_possible(variances, ticket.variances),
            Rejection.VARIANCE,
        )

    def read(
        self, result: ClientResult, can_read: tf.Tensor, training: TrainingSums
    ) -> Contribution:
        """Returns what a result holds, or zeros; `training` has their shapes."""

        def read() -> list[tf.Tensor]:
            return tf.nest.flatten(self.contribution(result))

        def nothing() -> list[tf.Tensor]:
            layers = [len(self.spec.kernel_shapes)]
            has_layer_weights = self.scheme.layer_weight is not None
            zeros = Contribution(
                layer_weights=tf.zeros(layers) if has_layer_weights else (),
                weight=tf.zeros([]),
                weights=tf.zeros([self.spec.num_weights]),
                bit_widths=tf.zeros(layers, tf.int32),
                training=tf.nest.map_structure(tf.zeros_like, training),
                msb_densities=tf.zeros(layers),
                num_examples=tf.zeros([]),
                uplink_bits=tf.zeros([len(messages.BIT_ITEMS)], tf.int64),
                symbols=tf.zeros(self.scheme.uplink.symbols_shape(self.spec), tf.int16),
            )
            return tf.nest.flatten(zeros)

        flat = tf.cond(can_read, read, nothing)
        layer_weights = () if self.scheme.layer_weight is None else 0
        like = Contribution(0, 0, 0, training, 0, 0, 0, 0, layer_weights)
        return tf.nest.pack_sequence_as(like, flat)

    def contribution(self, result: ClientResult) -> Contribution:
        """Returns what a result holds."""
        uplink, message = self.scheme.uplink, result.message
        layer_weight: Any = self.scheme.layer_weight
        return Contribution(
            layer_weights=layer_weight(result.bit_widths) if layer_weight else (),
            weight=result.weight,
            weights=self.spec.flatten(uplink.decode(message, self.spec)),
            bit_widths=result.bit_widths,
            training=result.training,
            msb_densities=result.msb_densities,
            num_examples=result.num_examples,
            uplink_bits=uplink.count_bits(message, [result.weight]),
            symbols=uplink.symbols(message),
        )

    def _budget_of(self, ticket: Ticket) -> tf.Tensor:
        row = tf.clip_by_value(ticket.key, 0, len(self.budgets) - 1)
        return tf.gather(self.budgets.astype(np.float32), row)

    def _bit_widths_are_given(self, result: ClientResult, ticket: Ticket) -> tf.Tensor:
        widths, at_most = result.bit_widths, tf.cast(ticket.bit_widths, tf.int32)
        return tf.reduce_all((widths >= 1) & (widths <= at_most))

    def _weight_is_right(self, result: ClientResult, budget: tf.Tensor) -> tf.Tensor:
        count, weight = result.num_examples, result.weight
        expected = self.scheme.aggregation_weight(budget, count)
        known = (count >= 0) & (count <= self.scheme.training.max_examples)
        same = tf.abs(weight - expected) <= 1e-5 * expected
        return known & same & tf.math.is_finite(expected)

    def _model_is_that_sent(self, result: ClientResult, ticket: Ticket) -> tf.Tensor:
        received = self.scheme.uplink.received(result.message)
        if received is None:
            return tf.constant(True)
        found = acceptance.fingerprint(received, self.secret)
        return tf.equal(found, ticket.model)
