"""The server's part of a round: messages to clients, aggregation, the next state.

    message_for    averaged bits -> b_n within the client's budget        (Alg. 2)
                   W, b_n -> quantized, packed model                      (Eq. 14)
    accumulate     client result -> checked, decoded, added to the sums   (Eq. 15)
    update         sums -> next W, next averaged bits                     (Eq. 15, 16)

A client's bit-widths are computed when it is selected, from the average of the last
round, the bits that its own training pruned last, and its budget: clients that take
part for the first time also profit from what the others found. Client results are added
one at a time, so the server never holds more than one client's model beside its own.

Activations of coarser weights have other means and variances, so BatchNorm statistics
are averaged over the clients of each budget and sent to these. A budget of which no
client took part yet gets those of the nearest one that did. The global model has the
average over the clients of the last round, whatever their budget.

A result that fails a check of `acceptance` adds nothing to any sum; its reason is in
the measurements. A round of fewer contributions than `min_clients`, or whose next state
would hold a number that is not finite, is abandoned.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq._tff import tff
from tff_fedmpq.federated import acceptance, messages
from tff_fedmpq.federated.acceptance import Check, Rejection, Ticket
from tff_fedmpq.federated.aggregation import Aggregated, Aggregation
from tff_fedmpq.federated.client_work import ClientResult
from tff_fedmpq.federated.local_training import TrainingSums, learning_rates_at
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.federated.tasks import Metrics
from tff_fedmpq.keras.variables import FloatWeights, ModelSpec

# The type of `tff.learning.templates.LearningAlgorithmState`, which has no stubs.
State = Any


class RoundSums(NamedTuple):
    """Sums and tables over the clients of a round; rows of other clients are zero."""

    weights: FloatWeights  # Sum of p_n W_n.
    weighted_bit_widths: Any  # Sum of p_n b_n, float32[L].
    total_weight: Any  # Sum of p_n, float32[].
    training: TrainingSums
    msb_densities: Any  # Sum over clients, float32[L].
    participations: Any  # How often each client took part, int32[N].
    bit_widths: Any  # Bits per weight after training, int32[N, L].
    uplink_bits: Any  # Size of what each client sent, int64[N, 4].
    downlink_bits: Any  # Size of what each client received, int64[N, 4].
    symbols: Any  # To entropy-code, int16[N, streams, symbols].
    statistics: Sequence[Any]  # Sums of p_n times statistics by budget, [G, ...] each.
    budget_weights: Any  # Sums of p_n by budget, float32[G].
    num_contributions: Any  # Clients that have weight, int32[].
    rejected: Any  # `Rejection` of each client that was left out, or 0; int32[N].
    num_rejected: Any  # Also of those that cannot be named, int32[].
    round: Any  # Of all contributions, -1 if there is none; int32[].
    client_training: Any = ()  # `TrainingSums` [N, ...], if wanted.

    @property
    def is_empty(self) -> tf.Tensor:
        """Whether no client of the round had weight, bool[]."""
        return tf.logical_not(self.total_weight > 0)

    def mean_weights(self) -> FloatWeights:
        """Returns the average of Eq. 15; zeros for an empty round."""
        return tf.nest.map_structure(self._divide, self.weights)

    def mean_bit_widths(self) -> tf.Tensor:
        """Returns the average bit-widths, float32[L]; zeros for an empty round."""
        return self._divide(self.weighted_bit_widths)

    def _divide(self, total: tf.Tensor) -> tf.Tensor:
        return tf.math.divide_no_nan(total, self.total_weight)


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

    def reject_all() -> list[tf.Tensor]:
        took_part = sums.participations > 0
        late = tf.where(took_part, int(Rejection.ROUND), sums.rejected)
        emptied = tf.nest.map_structure(tf.zeros_like, sums)._replace(
            rejected=late,
            num_rejected=sums.num_rejected + tf.reduce_sum(sums.participations),
            round=round_number,
        )
        return tf.nest.flatten(emptied)

    is_other = tf.not_equal(sums.round, round_number)
    flat = tf.cond(is_other, reject_all, lambda: tf.nest.flatten(sums))
    return tf.nest.pack_sequence_as(sums, flat)


def _draw_secret() -> tuple[int, int]:
    """Returns the key of a server's tickets, on which no result depends."""
    return secrets.randbits(63), secrets.randbits(63)


@dataclasses.dataclass(frozen=True, eq=False)
class Server:
    """The server of a scheme; holds settings, not state."""

    scheme: Scheme
    spec: ModelSpec  # Weights of the scheme's client model.
    budgets: np.ndarray  # Bits per weight of each client, float64[N].
    seed: int  # Of all clients' training.
    population: int = 0  # Digest of client ids and budgets, in states.
    build_metrics: Callable[[], Metrics] = Metrics  # Of clients' training.
    optimizer: Any = None  # A `tff.learning.optimizers.Optimizer`; None takes averages.
    is_variance: Sequence[bool] = ()  # Of each tensor of statistics.
    per_client: bool = False  # Whether training is measured of each client too.
    aggregation: Aggregation | None = None  # None takes weighted means.
    secret: tuple[int, int] = dataclasses.field(
        default_factory=_draw_secret, repr=False
    )

    @property
    def levels(self) -> np.ndarray:
        """Budgets that have statistics of their own, ascending, float64[G]."""
        own = self.scheme.statistics_per_budget
        return np.unique(self.budgets) if own else self.budgets[:1]

    def _level_of(self, key: Any) -> tf.Tensor:
        """Returns the index of a client's budget among `levels`, int64[]."""
        if not self.scheme.statistics_per_budget:
            return tf.constant(0, tf.int64)
        return tf.gather(np.searchsorted(self.levels, self.budgets), key)

    def initial_state(
        self, trainable: Sequence[np.ndarray], non_trainable: Sequence[np.ndarray]
    ) -> State:
        """Returns the state before the first round, a `LearningAlgorithmState`.

        Its distributor holds ``round`` int32[]; ``mean_bit_widths`` float32[L], the
        average of the last round, 0 before the first; and ``bit_reductions`` int32[N,
        L], the bits that each client's training pruned when it last took part. For G
        budgets, ``statistics`` holds float32[G, ...] for each tensor of statistics, and
        ``has_statistics`` bool[G] whether a client of the budget took part.
        ``population`` int64[] is the digest of client ids and budgets. The finalizer is
        the state of the server's optimizer, () without one; the aggregator's is added
        by the process.
        """
        num_layers, num_budgets = len(self.spec.kernel_shapes), len(self.levels)
        copies = [np.stack(num_budgets * [value]) for value in non_trainable]
        distributor = collections.OrderedDict(
            bit_reductions=tf.zeros([len(self.budgets), num_layers], tf.int32),
            has_statistics=tf.zeros([num_budgets], tf.bool),
            mean_bit_widths=tf.zeros([num_layers]),
            population=tf.constant(self.population, tf.int64),
            round=tf.constant(0),
            statistics=list(map(tf.constant, copies)),
        )
        model = tff.learning.models.ModelWeights(
            list(map(tf.constant, trainable)), list(map(tf.constant, non_trainable))
        )
        specs = list(map(tf.TensorSpec.from_tensor, model.trainable))
        finalizer = () if self.optimizer is None else self.optimizer.initialize(specs)
        return tff.learning.templates.LearningAlgorithmState(
            model, distributor, client_work=(), aggregator=(), finalizer=finalizer
        )

    def message_for(self, state: State, key: tf.Tensor) -> messages.Message:
        """Returns the message to a client: its model, the seed and the learning rates.

        The seed is a function of the run's seed, the round and the client.
        """
        round_number = state.distributor["round"]
        round_seed = tf.random.fold_in([self.seed, 0], round_number)
        seed = tf.random.fold_in(round_seed, key)
        rates = learning_rates_at(self.scheme.training, round_number)
        model = messages.pack_model(self.model_for(state, key))
        others = model["float_parameters"]
        magnitudes = [tf.reduce_max(tf.abs(t)) for t in [model["scales"], *others]]
        ticket = Ticket(
            tf.convert_to_tensor(key),
            round_number,
            seed,
            model["bit_widths"],
            model["scales"],
            tf.maximum(tf.reduce_max(magnitudes), 1.0),
            self._variances(
                others[-len(self.spec.non_trainable_shapes) or len(others) :]
            ),
            messages.count_model_bits(model, [seed, rates]),
            acceptance.fingerprint(model, self.secret),
            tag=(),
        )
        # `tff.federated_select` requires keys in alphabetical order.
        return collections.OrderedDict(
            model,
            seed=seed,
            ticket=acceptance.sign(ticket, self.secret),
            training_rates=rates,
        )

    def _variances(self, statistics: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(itertools.compress(statistics, self.is_variance))

    def model_for(self, state: State, key: Any) -> messages.QuantizedWeights:
        """Returns the model of the client of row `key`, at its own bit-widths."""
        level = self._level_of(key)
        statistics = [
            rows[level] for rows in self.statistics_of(state, self.levels, self.levels)
        ]
        trainable = tuple(state.global_model_weights.trainable)
        weights = self.spec.split(trainable, statistics)
        bit_widths = self.bit_widths(state, [key])[0]
        if self.scheme.weights is None:
            others = weights.float_parameters
            return messages.QuantizedWeights((), tf.zeros([0]), bit_widths, others)
        return messages.quantize_weights(weights, bit_widths, *self.scheme.weights)

    def bit_widths(self, state: State, keys: Any = None) -> tf.Tensor:
        """Returns the next round's bit-widths of some clients, or of all; int32[n, L].

        Before the first average, Pruning-Growing starts from whole, uniform bits.
        """
        mean = state.distributor["mean_bit_widths"]
        reductions = state.distributor["bit_reductions"]
        budgets = tf.constant(self.budgets)
        if keys is not None:
            reductions, budgets = tf.gather(reductions, keys), tf.gather(budgets, keys)
        if not self.spec.kernel_shapes:
            return tf.zeros(tf.shape(reductions), tf.int32)
        uniform = tf.cast(tf.floor(budgets), tf.float32)[:, tf.newaxis]
        means = tf.where(mean > 0, mean, uniform)
        return self.scheme.allocation(means, reductions, self.spec.layer_sizes, budgets)

    def statistics_of(
        self, state: State, known_levels: np.ndarray, levels: np.ndarray
    ) -> list[tf.Tensor]:
        """Returns what clients of some budgets are sent, float32[G, ...] each.

        `known_levels` are the budgets of the state's rows. These are the statistics of
        the nearest budget that has any, or else the global model's.
        """
        common = state.global_model_weights.non_trainable
        known = state.distributor["has_statistics"]
        distances = np.abs(levels[:, np.newaxis] - known_levels)
        nearest = tf.argmin(tf.where(known, distances, np.inf), axis=1)
        return [
            tf.where(tf.reduce_any(known), tf.gather(rows, nearest), value)
            for rows, value in zip(state.distributor["statistics"], common)
        ]

    def float_weights(self, state: State) -> FloatWeights:
        """Returns the global model of a state."""
        weights = state.global_model_weights
        return self.spec.split(tuple(weights.trainable), tuple(weights.non_trainable))

    def zero(self) -> RoundSums:
        """Returns the sums over no client."""
        spec, num_clients = self.spec, len(self.budgets)
        num_layers, num_items = len(spec.kernel_shapes), len(messages.BIT_ITEMS)
        float_parameters = tuple(map(tf.zeros, spec.float_parameter_shapes))
        training = TrainingSums.zero(self.build_metrics().zeros())
        client_training: Any = ()
        if self.per_client:
            client_training = tf.nest.map_structure(
                lambda value: tf.zeros([num_clients, *value.shape], value.dtype),
                training,
            )
        return RoundSums(
            FloatWeights(tuple(map(tf.zeros, spec.kernel_shapes)), float_parameters),
            tf.zeros([num_layers]),
            tf.zeros([]),
            training,
            tf.zeros([num_layers]),
            tf.zeros([num_clients], tf.int32),
            tf.zeros([num_clients, num_layers], tf.int32),
            tf.zeros([num_clients, num_items], tf.int64),
            tf.zeros([num_clients, num_items], tf.int64),
            tf.zeros([num_clients, *self.scheme.uplink.symbols_shape(spec)], tf.int16),
            [tf.zeros([len(self.levels), *s]) for s in spec.non_trainable_shapes],
            tf.zeros([len(self.levels)]),
            tf.constant(0),
            tf.zeros([num_clients], tf.int32),
            tf.constant(0),
            tf.constant(-1),
            client_training,
        )

    def accumulate(
        self, sums: RoundSums, result: ClientResult, ticket: Ticket
    ) -> RoundSums:
        """Returns the sums with one more client, which answers to `ticket`.

        A result that fails a check is only noted.
        """
        is_genuine = self._is_genuine(ticket)
        latest = tf.where(is_genuine, tf.maximum(sums.round, ticket.round), sums.round)
        sums = only_of_round(sums, latest)
        genuine: list[Check] = [(lambda: is_genuine, Rejection.TICKET)]
        fault = acceptance.first_fault(genuine + self._checks(latest, result, ticket))

        def reject(fault: tf.Tensor) -> list[tf.Tensor]:
            # Nobody is blamed by a forged ticket.
            row = tf.where(is_genuine, ticket.key, 0)
            fault = tf.where(is_genuine, fault, 0)
            rejected = tf.tensor_scatter_nd_max(sums.rejected, [[row]], [fault])
            count = sums.num_rejected + 1
            noted = sums._replace(rejected=rejected, num_rejected=count)
            return tf.nest.flatten(noted)

        def add_unless_wrong() -> list[tf.Tensor]:
            decoded = self.scheme.uplink.decode(result.message, self.spec)
            fault = acceptance.first_fault(self._checks_of_decoded(decoded, ticket))
            return tf.cond(
                tf.equal(fault, 0),
                lambda: tf.nest.flatten(self._add(sums, result, ticket.key, decoded)),
                lambda: reject(fault),
            )

        flat = tf.cond(tf.equal(fault, 0), add_unless_wrong, lambda: reject(fault))
        return tf.nest.pack_sequence_as(sums, flat)

    def _is_genuine(self, ticket: Ticket) -> tf.Tensor:
        """Returns whether this server made the ticket, bool[]."""
        in_range = (ticket.key >= 0) & (ticket.key < len(self.budgets))
        expected = acceptance.sign(ticket, self.secret).tag
        return in_range & tf.equal(expected, ticket.tag)

    def _checks(
        self, latest: tf.Tensor, result: ClientResult, ticket: Ticket
    ) -> list[Check]:
        """Returns what has to hold before the message is decoded."""
        uplink, message = self.scheme.uplink, result.message

        def bit_widths_are_given() -> tf.Tensor:
            widths = result.bit_widths
            at_most = tf.cast(ticket.bit_widths, tf.int32)
            return tf.reduce_all((widths >= 1) & (widths <= at_most))

        def counts_are_right() -> tf.Tensor:
            pairs = (
                (result.uplink_bits, uplink.count_bits(message, [result.weight])),
                (result.downlink_bits, ticket.downlink_bits),
                (result.symbols, uplink.symbols(message)),
            )
            return tf.reduce_all([tf.reduce_all(tf.equal(a, b)) for a, b in pairs])

        def model_is_that_sent() -> tf.Tensor:
            received = uplink.received(message)
            if received is None:
                return tf.constant(True)
            found = acceptance.fingerprint(received, self.secret)
            return tf.equal(found, ticket.model)

        layers = (len(self.spec.kernel_shapes),)
        symbols = uplink.symbols_shape(self.spec)
        own = [result.bit_widths, result.msb_densities, result.num_examples]
        own += [result.weight, result.uplink_bits, result.downlink_bits, result.symbols]
        items = (len(messages.BIT_ITEMS),)
        shapes = [layers, layers, (), (), items, items, symbols]
        row = tf.clip_by_value(ticket.key, 0, len(self.budgets) - 1)
        budget = tf.gather(self.budgets.astype(np.float32), row)

        def weight_is_right() -> tf.Tensor:
            count, weight = result.num_examples, result.weight
            expected = self.scheme.aggregation_weight(budget, count)
            known = (count >= 0) & (count <= self.scheme.training.max_examples)
            same = tf.abs(weight - expected) <= 1e-5 * expected
            return known & same & tf.math.is_finite(expected)

        return [
            (lambda: tf.equal(ticket.round, latest), Rejection.ROUND),
            (lambda: tf.equal(result.key, ticket.key), Rejection.TICKET),
            (
                lambda: tf.equal(
                    acceptance.checksum(result, ticket.seed), result.checksum
                ),
                Rejection.CHECKSUM,
            ),
            *(
                (lambda fault=fault: tf.not_equal(result.fault, int(fault)), fault)
                for fault in acceptance.OF_CLIENTS
            ),
            (
                lambda: acceptance.have_shapes(own, shapes),
                Rejection.SHAPES,
            ),
            (
                lambda: acceptance.all_finite(result._replace(message={})),
                Rejection.NOT_FINITE,
            ),
            (bit_widths_are_given, Rejection.BIT_WIDTHS),
            *uplink.checks(message, ticket, result.bit_widths, budget, self.spec),
            (weight_is_right, Rejection.WEIGHT),
            (counts_are_right, Rejection.COUNTS),
            (model_is_that_sent, Rejection.RECEIVED),
        ]

    def _checks_of_decoded(self, decoded: FloatWeights, ticket: Ticket) -> list[Check]:
        """Returns what has to hold before decoded values are added."""
        trainable, statistics = self.spec.join(decoded)
        # Of a change the server can only judge what it makes of the statistics.
        variances = self.scheme.uplink.apply(
            FloatWeights((), ticket.variances),
            FloatWeights((), self._variances(statistics)),
        ).float_parameters
        limits = (
            acceptance.MAX_WEIGHT_RATIO * ticket.magnitude,
            acceptance.MAX_STATISTICS_RATIO * ticket.magnitude,
        )
        return [
            (
                lambda: (
                    acceptance.all_within(trainable, limits[0])
                    & acceptance.all_within(statistics, limits[1])
                ),
                Rejection.MAGNITUDE,
            ),
            (
                lambda: acceptance.variances_are_possible(variances, ticket.variances),
                Rejection.VARIANCE,
            ),
        ]

    def _add(
        self, sums: RoundSums, result: ClientResult, key: Any, decoded: FloatWeights
    ) -> RoundSums:
        """Returns the sums with a client's contribution."""
        _, statistics = self.spec.join(decoded)
        level = self._level_of(key)

        def add_weighted(total: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
            return total + result.weight * tf.cast(value, tf.float32)

        def add_row(table: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
            if table.shape.num_elements() == 0:
                return table  # A float model's; TensorFlow cannot update it.
            return tf.tensor_scatter_nd_add(table, [[key]], [row])

        return sums._replace(
            weights=tf.nest.map_structure(add_weighted, sums.weights, decoded),
            weighted_bit_widths=add_weighted(
                sums.weighted_bit_widths, result.bit_widths
            ),
            total_weight=sums.total_weight + result.weight,
            training=tf.nest.map_structure(tf.add, sums.training, result.training),
            client_training=tf.nest.map_structure(
                add_row, sums.client_training, result.training
            )
            if self.per_client
            else (),
            msb_densities=sums.msb_densities + result.msb_densities,
            participations=add_row(sums.participations, tf.constant(1)),
            bit_widths=add_row(sums.bit_widths, result.bit_widths),
            uplink_bits=add_row(sums.uplink_bits, result.uplink_bits),
            downlink_bits=add_row(sums.downlink_bits, result.downlink_bits),
            symbols=add_row(sums.symbols, result.symbols),
            statistics=[
                tf.tensor_scatter_nd_add(rows, [[level]], [result.weight * value])
                for rows, value in zip(sums.statistics, statistics)
            ],
            budget_weights=tf.tensor_scatter_nd_add(
                sums.budget_weights, [[level]], [result.weight]
            ),
            num_contributions=sums.num_contributions
            + tf.cast(result.weight > 0, tf.int32),
        )

    def change(
        self, result: ClientResult, ticket: Ticket, model: Any, round_number: tf.Tensor
    ) -> tuple[Mapping[str, Any], tf.Tensor]:
        """Returns what a client alone would change in the model of a state.

        `model` is the state's `tff.learning.models.ModelWeights`. The second result is
        the client's weight p_n, 0 for one that is left out, which changes nothing.
        """
        sums = self.accumulate(self.zero(), result, ticket)
        sums = only_of_round(sums, round_number)
        present = self.spec.split(tuple(model.trainable), tuple(model.non_trainable))
        trained = self.scheme.uplink.apply(present, sums.mean_weights())
        changes = [
            [tf.where(sums.is_empty, 0.0, new - old) for new, old in zip(*pair)]
            for pair in zip(self.spec.join(trained), self.spec.join(present))
        ]
        parts = collections.OrderedDict(zip(("weights", "statistics"), changes))
        return parts, sums.total_weight

    def update(
        self, state: State, sums: RoundSums, aggregated: Aggregated | None = None
    ) -> tuple[State, Mapping[str, Any]]:
        """Returns the next state, and the round's measurements.

        With an aggregator, `aggregated` takes the place of the sums of weights. An
        abandoned round leaves all of the state but the round's number as it is.
        """
        sums = only_of_round(sums, state.distributor["round"])
        once = tf.debugging.Assert(
            tf.reduce_all(sums.participations <= 1),
            ["A client took part twice in a round:", sums.participations],
            summarize=20,
        )
        same = tf.debugging.Assert(
            tf.equal(state.distributor["population"], self.population),
            ["The state is of other clients or budgets."],
        )
        with tf.control_dependencies([once, same]):
            following = self._following(state, sums, aggregated)
        min_clients = self.scheme.training.min_clients
        is_kept = sums.num_contributions >= min_clients
        is_kept &= acceptance.all_finite(following)
        flat = [
            tf.where(is_kept, new, old)
            for new, old in zip(tf.nest.flatten(following), tf.nest.flatten(state))
        ]
        next_state = tf.nest.pack_sequence_as(following, flat)
        next_state.distributor["round"] = state.distributor["round"] + 1
        table = self.bit_widths(next_state)
        rates = learning_rates_at(self.scheme.training, state.distributor["round"])
        measured = self.measurements(sums, table, rates, ~is_kept)
        if aggregated is not None:
            measured["aggregator"] = aggregated.measurements
        return next_state, measured

    def _following(
        self, state: State, sums: RoundSums, aggregated: Aggregated | None
    ) -> State:
        """Returns the next state of a round that is not abandoned."""
        bits = state.distributor
        trainable, rows, common = self._next_weights(state, sums, aggregated)
        took_part = sums.participations[:, tf.newaxis] > 0
        pruned = self.bit_widths(state) - sums.bit_widths
        mean_bit_widths = sums.mean_bit_widths()
        if self.aggregation is not None and self.aggregation.is_private:
            # The average depends on numbers of examples.
            mean_bit_widths = bits["mean_bit_widths"]
        distributor = collections.OrderedDict(
            bit_reductions=tf.where(took_part, pruned, bits["bit_reductions"]),
            has_statistics=bits["has_statistics"] | (sums.budget_weights > 0),
            mean_bit_widths=mean_bit_widths,
            population=bits["population"],
            round=bits["round"],
            statistics=rows,
        )
        finalizer = state.finalizer
        if self.optimizer is not None:
            old = list(state.global_model_weights.trainable)
            gradients = tf.nest.map_structure(tf.subtract, old, trainable)
            finalizer, trainable = self.optimizer.next(finalizer, old, gradients)
        model = tff.learning.models.ModelWeights(trainable, common)
        following = state._replace(
            global_model_weights=model, distributor=distributor, finalizer=finalizer
        )
        if aggregated is not None:
            following = following._replace(aggregator=aggregated.state)
        return following

    def _next_weights(
        self, state: State, sums: RoundSums, aggregated: Aggregated | None
    ) -> tuple[list[tf.Tensor], list[tf.Tensor], list[tf.Tensor]]:
        """Returns trainable weights, and statistics of each budget and in common."""
        if aggregated is None:
            present = self.float_weights(state)
            weights = self.scheme.uplink.apply(present, sums.mean_weights())
            rows = self._next_statistics(state, sums)
            shares = tf.math.divide_no_nan(sums.budget_weights, sums.total_weight)
            common = [tf.tensordot(shares, new, 1) for new in rows]
            return list(self.spec.join(weights)[0]), rows, common
        model, changes = state.global_model_weights, aggregated.changes
        trainable = list(map(tf.add, model.trainable, changes["weights"]))
        common = list(map(tf.add, model.non_trainable, changes.get("statistics", [])))
        # Noise may take variances below zero.
        flags = self.is_variance or itertools.repeat(False)
        common = [tf.maximum(t, 0) if v else t for t, v in zip(common, flags)]
        return trainable, [value[tf.newaxis] for value in common], common

    def measurements(
        self,
        sums: RoundSums,
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
        rejected: `acceptance.Rejection` of clients that were left out, or 0; int32[N].
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
        metrics = self.build_metrics()

        def measured(training: TrainingSums, results: Any) -> Mapping[str, Any]:
            loss = tf.math.divide_no_nan(training.loss, training.count)
            return collections.OrderedDict(
                loss=loss, **results, num_examples=training.count
            )

        num_clients = tf.cast(tf.reduce_sum(sums.participations), tf.float32)
        work = collections.OrderedDict(
            train=measured(sums.training, metrics.results(sums.training.metrics))
        )
        if self.per_client:
            rows = sums.client_training
            work["clients"] = measured(rows, metrics.results_of_rows(rows.metrics))
        return collections.OrderedDict(
            client_work=work,
            participations=sums.participations,
            rejected=sums.rejected,
            num_rejected=sums.num_rejected,
            abandoned=is_abandoned,
            uplink_bits=sums.uplink_bits,
            downlink_bits=sums.downlink_bits,
            uplink_symbols=sums.symbols,
            mean_bit_widths=sums.mean_bit_widths(),
            msb_densities=tf.math.divide_no_nan(sums.msb_densities, num_clients),
            bit_widths=table,
            training_rates=rates,
        )

    def _next_statistics(self, state: State, sums: RoundSums) -> list[tf.Tensor]:
        """Returns the statistics of each budget after a round, float32[G, ...] each."""

        def by_budget(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
            return tf.reshape(values, [-1] + [1] * (like.shape.rank - 1))

        means = [
            tf.math.divide_no_nan(rows, by_budget(sums.budget_weights, rows))
            for rows in sums.statistics
        ]
        following = self.scheme.uplink.apply(
            FloatWeights((), self.statistics_of(state, self.levels, self.levels)),
            FloatWeights((), means),
        )
        return [
            tf.where(by_budget(sums.budget_weights > 0, old), new, old)
            for new, old in zip(
                following.float_parameters, state.distributor["statistics"]
            )
        ]
